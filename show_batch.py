"""Look at a batch of the data before you train on it: print it, and draw it."""

import argparse
import contextlib
import gzip
import io
import math
import os
import signal
import struct
import sys
import warnings
import zlib
from typing import Annotated

if __name__ == "__main__":  # In the imports below, an exception would get lost.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\n"), os._exit(1)))
if "ipykernel" not in sys.modules:  # A notebook leaves its backend to its children.
    os.environ.pop("MPLBACKEND", None)
warnings.filterwarnings("ignore", module="paddle")

import matplotlib.figure  # noqa: E402
import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402

Label = Annotated[int, msgspec.Meta(ge=0, le=9)]
Split = tuple[Annotated[list[np.ndarray], msgspec.Meta(min_length=1)], list[Label]]


def decode_image(kind, values):
    """Turn an image's list in the JSON, 784 pixels from 0 to 255, into uint8 [784]."""
    if len(values) != 784:
        raise ValueError(f"{len(values)} pixels instead of 784")
    if isinstance(values[0], float):  # The course's own file has pixel / 256.
        values = np.rint(np.multiply(values, 256)).astype(int).tolist()
    return np.frombuffer(bytes(values), np.uint8)


def read_splits(path, limit=None):
    """Return {mode: (images uint8 [N, 28, 28], labels uint8 [N])}, N at most limit."""
    print(f"loading {path} ...")
    kind = tuple[Split, Split, Split]
    try:
        with gzip.open(path) as file:
            data = msgspec.json.decode(file.read(), type=kind, dec_hook=decode_image)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise SystemExit(f"error: {path}: {error}") from None

    splits = {}
    for mode, (images, labels) in zip(("train", "valid", "eval"), data):
        counts = f"{mode}: {len(images)} images, {len(labels)} labels"
        if len(images) != len(labels):
            raise SystemExit(f"error: {path}: {counts}")
        images, labels = np.stack(images[:limit]), np.array(labels[:limit], np.uint8)
        print(counts if limit is None else f"{counts}, {len(labels)} of them used")
        splits[mode] = images.reshape(-1, 28, 28), labels

    if splits["train"][0].max() <= 1:
        print(f"warning: {path}: pixels are 0 and 1, not 0 to 255", file=sys.stderr)
    return splits


DAMAGED = EOFError, OSError, RuntimeError, ValueError, struct.error, zlib.error


def read_builtin(mode):
    """Return a set's images float32 [N, 784] in [-1, 1] and its labels int64 [N, 1]."""
    name = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = [f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz"]
    if not any(map(os.path.exists, paths)):
        paths = []  # Paddle looks in ~/.cache, and downloads.

    try:
        sizes = [len(gzip.open(path).read()) for path in paths]
        # Paddle does not compare them. The headers have 16 and 8 bytes.
        if sizes and sizes[0] - 16 != 784 * (sizes[1] - 8):
            images, labels = (sizes[0] - 16) / 784, sizes[1] - 8
            raise ValueError(f"{images:g} images, {labels} labels")

        with contextlib.redirect_stderr(io.StringIO()):  # A download's three tries
            data = paddle.vision.datasets.MNIST(*paths, mode=mode)
    except DAMAGED as error:
        raise SystemExit(f"error: {name}-*-ubyte.gz: {error}") from None
    return np.array(data.images) / 127.5 - 1, np.array(data.labels)


def draw_batch(images, labels):
    """Return a figure of images [N, ...] from -1, black, to 1, with their labels."""
    columns = max(8, math.ceil(len(images) ** 0.5))
    rows = math.ceil(len(images) / columns)
    cells = np.ones((rows * columns, 40, 32))  # White, with room for label and gap.
    cells[: len(images), 12:, 2:30] = images.reshape(-1, 28, 28)
    sheet = cells.reshape(rows, columns, 40, 32).swapaxes(1, 2).reshape(rows * 40, -1)

    figure = matplotlib.figure.Figure(figsize=(columns, 1.25 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
    axes.set_axis_off()

    for index, label in enumerate(labels.ravel()):
        row, column = divmod(index, columns)
        axes.text(column * 32 + 16, row * 40 + 9, f"{label:.0f}", ha="center")
    return figure


def save_figure(figure, path):
    """Draw a figure into a PNG file, atomically."""
    target = os.path.realpath(path)  # A symbolic link stays one.
    temporary = f"{target}.{os.getpid()}.tmp"
    try:
        if os.path.exists(target):
            with open(target, "r+b") as file:
                if file.read(4) != b"\x89PNG":
                    raise SystemExit(f"error: {path} is there and is not a PNG")

        figure.savefig(temporary, format="png")
        os.replace(temporary, target)
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror}") from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def parse_args():
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(usage="%(prog)s [options]", formatter_class=form)
    add = parser.add_argument
    add("--source", choices=["builtin", "json"], default="builtin", help="what to read")
    add("--batch-size", type=int, default=8, help="how many images to look at")
    add("--data", help="read this JSON instead of work/mnist.json.gz")
    add("--save", default="show_batch.png", help="draw into this file")
    args = parser.parse_args()

    if not 1 <= args.batch_size <= 1000:  # More would be a picture of gigabytes.
        parser.error("--batch-size must be from 1 to 1000")
    if args.data and args.source != "json":
        parser.error("--data needs --source json")
    return args


def main():
    args = parse_args()
    signal.signal(signal.SIGINT, lambda *_: sys.exit("stopped"))
    if hasattr(sys.stdout, "reconfigure"):  # A notebook's stdout lacks no letters.
        sys.stdout.reconfigure(errors="replace")

    if args.source == "json":
        data = read_splits(args.data or "work/mnist.json.gz", args.batch_size)["train"]
        images = data[0][:, None].astype(np.float32) / 127.5 - 1
        labels = data[1][:, None].astype(np.float32)
    else:
        images, labels = (array[: args.batch_size] for array in read_builtin("train"))
    print(f"images: {images.shape} {images.dtype}, {images.min()} to {images.max()}")
    print(f"labels: {labels.shape} {labels.dtype}, the first is {labels[0]}")

    grey = np.rint((images[0].reshape(28, 28) + 1) * 127.5).astype(int)
    inked = np.flatnonzero(grey.any(axis=0))
    first, last = inked.min(initial=27), inked.max(initial=0)
    print(f"the first as grey values, columns {first} to {last}, the others are 0:")
    for row in grey[:, first : last + 1]:  # MNIST's 20 columns fit a terminal.
        print(" ".join(f"{value:3}" for value in row))

    save_figure(draw_batch(images, labels), args.save)
    print(f"drawn: {args.save}")
    if "ipykernel" in sys.modules:  # A notebook's cell shows it, too.
        from IPython.display import Image, display

        display(Image(args.save))


if __name__ == "__main__":
    main()
