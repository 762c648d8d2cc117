"""Look at a batch of the data before you train on it: print it, and draw it."""

import argparse
import contextlib
import gzip
import math
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # Ctrl-C as an exception would get lost in the imports.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\n"), os._exit(1)))
    with contextlib.suppress(AttributeError):  # A notebook's stdout; Windows
        sys.stdout.reconfigure(errors="replace")  # A console may lack letters.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it in silence.
if "ipykernel" not in sys.modules:  # A notebook's own backend is not for its children.
    os.environ.pop("MPLBACKEND", None)
warnings.filterwarnings("ignore", module="paddle")

import msgspec
import numpy as np
import paddle
from matplotlib.figure import Figure

Label = Annotated[int, msgspec.Meta(ge=0, le=9)]  # msgspec refuses any other.
Split = tuple[Annotated[list[np.ndarray], msgspec.Meta(min_length=1)], list[Label]]
Splits = tuple[Split, Split, Split]


def decode_image(_, values):
    """Turn an image's list in the JSON, 784 pixels of 0 to 255, to uint8 [28, 28]."""
    if isinstance(next(iter(values), 0), float):  # The course's file has pixel / 256.
        values = np.rint(np.multiply(values, 256)).astype(int).tolist()
    return np.frombuffer(bytes(values), np.uint8).reshape(28, 28)


def read_splits(path, limit=None):
    """Return {mode: (images uint8 [N, 28, 28], labels uint8 [N])}, N at most limit."""
    print(f"loading {path} ...")
    try:
        text = gzip.decompress(Path(path).read_bytes())
        data = msgspec.json.decode(text, type=Splits, dec_hook=decode_image)
    except Exception as error:  # A damaged file raises what its decoders like.
        raise SystemExit(f"error: {path}: {error}") from None

    splits = {}
    for mode, (images, labels) in zip(("train", "valid", "eval"), data):
        if len(images) != len(labels):
            counts = f"{len(images)} images, {len(labels)} labels"
            raise SystemExit(f"error: {path}: {mode}: {counts}")
        splits[mode] = np.stack(images[:limit]), np.array(labels[:limit], np.uint8)
        print(f"{mode}: {len(splits[mode][1])} images")
    return splits


def read_builtin(mode, limit=None):
    """Return a set's images float32 [N, 784] in [-1, 1] and its labels int64 [N, 1]."""
    name = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = [f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz"]
    if not any(map(os.path.exists, paths)):
        paths = []  # Paddle looks in ~/.cache, and downloads.

    try:
        counts = {gzip.open(path).read(8)[4:] for path in paths}  # Bytes 4 to 7
        if len(counts) > 1:
            raise ValueError("not as many images as labels")
        data = paddle.vision.datasets.MNIST(*paths, mode=mode)
    except Exception as error:  # A damaged file raises what its decoders like.
        raise SystemExit(f"error: {name}-*-ubyte.gz: {error}") from None
    return np.array(data.images[:limit]) / 127.5 - 1, np.array(data.labels[:limit])


def draw_batch(images, labels):
    """Return a figure of images [N, ...] from -1, black, to 1, with their labels."""
    columns = max(8, math.ceil(len(images) ** 0.5))
    rows = math.ceil(len(images) / columns)
    cells = np.ones((rows * columns, 40, 32))  # White, with room for label and gap.
    cells[: len(images), 12:, 2:30] = images.reshape(-1, 28, 28)
    sheet = cells.reshape(rows, columns, 40, 32).swapaxes(1, 2).reshape(rows * 40, -1)

    figure = Figure(figsize=(columns, 1.25 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
    axes.set_axis_off()
    for index, label in enumerate(labels.ravel()):
        row, column = divmod(index, columns)
        axes.text(column * 32 + 16, row * 40 + 9, f"{label:.0f}", ha="center")
    return figure


def parse_args():
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(usage="%(prog)s [options]", formatter_class=form)
    add = parser.add_argument
    add("--source", choices=["builtin", "json"], default="builtin", help="what to read")
    add("--batch-size", type=int, default=8, help="how many images to look at")
    add("--data", help="read this JSON file; None: what --source names")
    add("--save", default="show_batch.png", help="draw into this file")

    args = parser.parse_args()
    if not 1 <= args.batch_size <= 1000:  # More would be a picture of gigabytes.
        parser.error("--batch-size must be from 1 to 1000")
    if not args.save.endswith(".png"):
        parser.error("--save must end in .png")
    return args


def main():
    args = parse_args()
    if args.source == "json" or args.data:
        images, labels = read_splits(args.data or "work/mnist.json.gz")["train"]
        images = images[: args.batch_size, None].astype(np.float32) / 127.5 - 1
        labels = labels[: args.batch_size, None].astype(np.float32)
    else:
        images, labels = read_builtin("train", args.batch_size)

    print(f"images: {images.shape} {images.dtype}, {images.min()} to {images.max()}")
    print(f"labels: {labels.shape} {labels.dtype}, the first is {labels[0]}")
    print("the first as grey values, columns 4 to 23:")  # All 28 are too wide.
    grey = 127.5 * (images[0].reshape(28, 28) + 1)
    np.savetxt(sys.stdout, grey[:, 4:24], fmt="%3.0f")

    try:
        draw_batch(images, labels).savefig(args.save)
    except OSError as error:
        raise SystemExit(f"error: {args.save}: {error.strerror}") from None
    print(f"drawn: {args.save}")
    if "ipykernel" in sys.modules:  # A notebook's cell shows it, too.
        from IPython.display import Image, display

        display(Image(args.save))


if __name__ == "__main__":
    main()
