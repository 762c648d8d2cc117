"""Look at a batch of the data before you train on it: print it, and draw a PNG."""

import argparse
import gzip
import os
import struct
import sys
import warnings
import zlib

import msgspec
import numpy as np

os.environ.pop("MPLBACKEND", None)  # A notebook's own backend writes no file.
warnings.filterwarnings("ignore", module="paddle")

import matplotlib.pyplot as plt  # noqa: E402
import paddle  # noqa: E402


def read_builtin(mode):
    """Return MNIST's "train" or "test" images, float32 [N, 784] in [-1, 1], and labels.

    Paddle takes the files in work/, or else downloads them. Raises ValueError.
    """
    prefix = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    local = paths if all(map(os.path.exists, paths)) else ()
    try:
        data = paddle.vision.datasets.MNIST(*local, mode=mode)
    except (OSError, EOFError, RuntimeError, struct.error, zlib.error) as error:
        raise ValueError(f"{' or '.join(paths)}: {error}") from None
    return np.array(data.images) / 127.5 - 1, np.concatenate(data.labels)


def read_json(path):
    """Return the file's training images, lists of 784 grey values, and their labels."""
    split = tuple[list[list[int]], list[int]]
    try:
        with gzip.open(path) as file:
            return msgspec.json.decode(file.read(), type=tuple[split, split, split])[0]
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {error}") from None


def main():
    parser = argparse.ArgumentParser(usage="%(prog)s [options]")
    add = parser.add_argument
    add("--source", choices=["builtin", "json"], help="chapter 4's or 5's (builtin)")
    add("--batch-size", type=int, default=8, help="how many images to look at (8)")
    add("--data", default="work/mnist.json.gz", help="read this (work/mnist.json.gz)")
    add("--save", default="show_batch.png", help="draw into this (show_batch.png)")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    if args.source == "json":
        images, labels = (np.array(a[: args.batch_size]) for a in read_json(args.data))
        images = images.reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1
    else:
        images, labels = (array[: args.batch_size] for array in read_builtin("train"))
    print(f"images: {images.shape} {images.dtype}, {images.min()} to {images.max()}")
    print(f"labels: {labels.shape} {labels.dtype}, the first is {labels[0]}")
    print(f"first image: {np.array2string(images[0].ravel(), threshold=9)}")
    rows = -(-len(labels) // 8)
    figure = plt.figure(figsize=(12, 1.9 * rows), layout="constrained")
    for index, (image, label) in enumerate(zip(images, labels), 1):
        axes = figure.add_subplot(rows, 8, index, title=f"label {label}")
        grey = ((image.reshape(28, 28) + 1) * 127.5).astype(np.uint8)
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    figure.savefig(args.save, format="png")
    print(f"drawn: {args.save}")
    if plt.get_backend().lower() != "agg":  # There is a display: a window, too.
        plt.show()


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
