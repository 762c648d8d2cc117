"""Run other software for benchmark.py, in a Python that has it; print as ours does.

python drive_others.py keras mnist_convnet.py
python drive_others.py rapidocr PICTURE ...
python drive_others.py tesseract PICTURE ...
"""

import re
import sys
from pathlib import Path

from benchmark import read_mnist


def drive_keras(example):
    """Run Keras's example; test after each epoch, and print lines as PyTorch's does."""
    import keras

    watch = keras.callbacks.LambdaCallback()
    watch.on_epoch_begin = lambda *_: print("[0/54000 (0%)]")
    watch.on_test_begin = lambda *_: print("\n[54000/54000 (99%)]")  # Validation.
    watch.on_epoch_end = lambda *_: print(
        "Accuracy:", watch.model.evaluate(names["x_test"], names["y_test"], verbose=0)
    )
    names, fit = {"__name__": "__main__"}, keras.Model.fit
    keras.Model.fit = lambda *data, **flags: fit(*data, callbacks=[watch], **flags)
    keras.datasets.mnist.load_data = lambda: (read_mnist("train"), read_mnist("t10k"))
    exec(compile(Path(example).read_text(), example, "exec"), names)


def print_reading(path, words, scores):
    """Print predict.py's line; not sure means that the lowest score is below 80 %."""
    text = " ".join(re.findall(r"[-.\d]+", " ".join(words))) or "?"
    score = 100 * float(min(scores, default=0))
    print(f"{path}: {text}  ({score:.1f} %{', not sure' if score < 80 else ''})")


def drive_rapidocr(*paths):
    """Read pictures with PP-OCRv4's models, as they come with the package."""
    from rapidocr_onnxruntime import RapidOCR

    reader = RapidOCR()
    for path in paths:
        boxes = reader(path)[0] or []
        print_reading(path, [box[1] for box in boxes], [box[2] for box in boxes])


def drive_tesseract(*paths):
    """Read pictures with Tesseract, told that each is one block of digits and signs."""
    import pytesseract

    config = "--psm 6 -c tessedit_char_whitelist=0123456789.-"
    for path in paths:
        found = pytesseract.image_to_data(path, config=config, output_type="dict")
        words = [i for i, word in enumerate(found["text"]) if word.strip()]
        scores = [found["conf"][i] / 100 for i in words]
        print_reading(path, [found["text"][i] for i in words], scores)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {
        "keras": drive_keras,
        "rapidocr": drive_rapidocr,
        "tesseract": drive_tesseract,
    }[name](*arguments)
