"""Look at a batch of the data before you train on it: print it, and draw a PNG."""

import argparse
import glob
import gzip
import os
import sys
import warnings
import zlib

import msgspec
import numpy as np

os.environ.pop("MPLBACKEND", None)  # A notebook's own backend writes no file.
warnings.filterwarnings("ignore", module="paddle")

import matplotlib.pyplot as plt  # noqa: E402
import paddle  # noqa: E402


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
    source, size = "work/train-*.gz", args.batch_size
    try:
        if args.source == "json":
            source, split = args.data, tuple[list[list[int]], list[int]]
            with gzip.open(source) as file:
                data = msgspec.json.decode(file.read(), type=tuple[split, split, split])
            images = np.float32(data[0][0][:size]).reshape(-1, 1, 28, 28) / 127.5 - 1
            labels = np.array(data[0][1][:size])
        else:  # Images and labels; without these files, paddle downloads them.
            data = paddle.vision.datasets.MNIST(*sorted(glob.glob(source)))
            images = np.array(data.images[:size]) / 127.5 - 1
            labels = np.concatenate(data.labels[:size])
    except (EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        raise ValueError(f"{source}: {error}") from None
    print(f"images: {images.shape} {images.dtype}, {images.min()} to {images.max()}")
    print(f"labels: {labels.shape} {labels.dtype}, the first is {labels[0]}")
    print(f"first image: {np.array2string(images[0].ravel(), threshold=9)}")
    rows = -(-len(labels) // 8)
    figure = plt.figure(figsize=(12, 1.9 * rows), layout="constrained")
    for index, (image, label) in enumerate(zip(images, labels), 1):
        axes = figure.add_subplot(rows, 8, index, title=f"label {label}")
        axes.imshow(image.reshape(28, 28), cmap="gray", vmin=-1, vmax=1)
    figure.savefig(args.save, format="png")
    print(f"drawn: {args.save}")
    if plt.get_backend().lower() != "agg":  # There is a display: a window, too.
        plt.show()


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
