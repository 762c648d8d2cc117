"""Run other software for benchmark.py, in a Python that has it; print as ours does."""

import re
import sys
from pathlib import Path

from benchmark import read_mnist


def print_reading(path, words):
    """Print [(word, score), ...] as predict.py does; below 80 % it is not sure."""
    text = " ".join(re.findall(r"[-.\d]+", " ".join(word for word, _ in words))) or "?"
    score = 100 * float(min([score for _, score in words], default=0))
    print(f"{path}: {text}  ({score:.1f} %{', not sure' if score < 80 else ''})")


program, *paths = sys.argv[1:]
if program == "keras":  # Its example, which is tested after each epoch
    import keras

    watch = keras.callbacks.LambdaCallback()
    watch.on_epoch_begin = lambda *_: print("[0/54000 (0%)]")  # As PyTorch's prints
    watch.on_test_begin = lambda *_: print("\n[54000/54000 (99%)]")  # Validation
    watch.on_epoch_end = lambda *_: print(
        "Accuracy:", watch.model.evaluate(names["x_test"], names["y_test"], verbose=0)
    )
    names, fit = {"__name__": "__main__"}, keras.Model.fit
    keras.Model.fit = lambda *data, **flags: fit(*data, callbacks=[watch], **flags)
    keras.datasets.mnist.load_data = lambda: (read_mnist("train"), read_mnist("t10k"))
    exec(compile(Path(paths[0]).read_text(), paths[0], "exec"), names)

elif program == "rapidocr":  # PP-OCRv4's models, as they come with the package
    from rapidocr_onnxruntime import RapidOCR

    reader = RapidOCR()
    for path in paths:
        boxes = reader(path)[0] or []
        print_reading(path, [(box[1], box[2]) for box in boxes])

elif program == "tesseract":  # Told that a picture is one block of digits and signs
    import pytesseract

    config = "--psm 6 -c tessedit_char_whitelist=0123456789.-"
    for path in paths:
        found = pytesseract.image_to_data(path, config=config, output_type="dict")
        words = zip(found["text"], found["conf"])
        print_reading(path, [(word, c / 100) for word, c in words if word.strip()])
