"""Look at a batch of the data before you train on it: print it, and draw it.

`python show_batch.py` shows the first images of the framework's built-in MNIST,
`python show_batch.py --source json` those of work/mnist.json.gz.
"""

import argparse
import contextlib
import gzip
import io
import math
import os
import signal
import sys
import warnings
import zlib
from pathlib import Path
from typing import Annotated


def on_interrupt(line):
    """Let Ctrl-C end the script with this line instead of a traceback."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(line))


if __name__ == "__main__":  # The imports below take seconds.
    on_interrupt("stopped: nothing is drawn")
warnings.filterwarnings("ignore", module="paddle")

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]  # From 0, paper, to 255, ink.
Share = Annotated[float, msgspec.Meta(ge=0, le=255 / 256)]  # The course's: pixel / 256.
Length = msgspec.Meta(min_length=784, max_length=784)
Images = Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
Label = Annotated[int, msgspec.Meta(ge=0, le=9)]
Split = tuple[Images, list[Label]]


def count_items(path, *shape):
    """Return how many arrays of uint8 with this shape a gzipped IDX file holds."""
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise SystemExit(f"error: {path}: {error}") from None

    start = 8 + 4 * len(shape)
    count = (len(data) - start) // math.prod(shape)
    header = np.array([2049 + len(shape), count, *shape], ">i4")
    if data[:start] != header.tobytes():
        raise SystemExit(f"error: {path} is damaged, or not what its name says")
    return count


def read_builtin(mode):
    """Return the set's images, float32 [N, 784] in [-1, 1], and labels, int64 [N, 1].

    Paddle's own reader reads hundreds only, and compares nothing. It looks for what
    work/ lacks in ~/.cache/paddle, and on the network.
    """
    name = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = [f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz"]
    if os.path.exists(paths[0]) or os.path.exists(paths[1]):
        images, labels = count_items(paths[0], 28, 28), count_items(paths[1])
        if images != labels or images % 100:
            raise SystemExit(f"error: {paths[0]}: {images} images, {labels} labels")
    else:
        paths = []
    try:
        with contextlib.redirect_stderr(
            io.StringIO()
        ):  # Six lines of a failed download.
            data = paddle.vision.datasets.MNIST(*paths, mode=mode)
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"error: {name}-*-ubyte.gz are missing: {error}") from None
    return np.array(data.images) / 127.5 - 1, np.array(data.labels)


def decode_images(mode, texts):
    """Return images uint8 [N, 28, 28] from N JSON lists, or raise a DecodeError.

    One at a time: the course's own file would take 2.8 GB as Python lists.
    """
    shares = b"." in bytes(texts[0])
    decoder = msgspec.json.Decoder(Annotated[list[Share if shares else Pixel], Length])
    pixels = bytearray()
    for index, text in enumerate(texts):
        try:
            values = decoder.decode(text)
        except msgspec.DecodeError as error:
            raise msgspec.DecodeError(f"{mode} image {index}: {error}") from None

        if shares:
            values = np.rint(np.multiply(values, 256)).astype(np.uint8)
        pixels += bytes(values)
    return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)


def read_splits(path, limit=None):
    """Return {mode: (images uint8 [N, 28, 28], labels uint8 [N])}, N at most limit.

    The file is checked whole; one that is wrong ends the script with one line.
    """
    print(f"loading {path} ...")
    splits = {}
    try:
        with gzip.open(path) as file:
            data = msgspec.json.decode(file.read(), type=tuple[Split, Split, Split])
        for mode, (texts, labels) in zip(("train", "valid", "eval"), data):
            splits[mode] = decode_images(mode, texts), np.array(labels, np.uint8)
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error, msgspec.DecodeError) as error:
        raise SystemExit(f"error: {path}: {error}") from None

    for mode, (images, labels) in splits.items():
        counts = f"{mode}: {len(images)} images, {len(labels)} labels"
        if len(images) != len(labels):
            raise SystemExit(f"error: {path}: {counts}")
        splits[mode] = images[:limit], labels[:limit]
        print(counts if limit is None else f"{counts}, the first {limit} are used")

    if splits["train"][0].max() <= 1:
        print(f"warning: {path}: pixels are 0 and 1, not 0 to 255", file=sys.stderr)
    return splits


def check_output(path, start, kind):
    """End the script if a file cannot be written, or is there and of another kind."""
    target = os.path.realpath(path)
    if not os.access(os.path.dirname(target), os.W_OK):
        raise SystemExit(f"error: {path}: its folder is missing or read-only")
    if not os.path.exists(target):
        return
    # Replacing a file asks its folder only, and root may write what is read-only.
    if not os.access(target, os.W_OK) or os.stat(target).st_mode & 0o222 == 0:
        raise SystemExit(f"error: {path} is write-protected")
    if not os.path.isfile(target) or start not in open(target, "rb").read(40):
        raise SystemExit(f"error: {path} is there and is not a {kind}")


def write_output(path, data):
    """Write bytes atomically: a failed write leaves the old file and nothing else."""
    target = os.path.realpath(path)  # A symbolic link stays one.
    temporary = Path(f"{target}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def print_batch(images, labels):
    """Print shapes, types and range, and the first image's grey values row by row."""
    print(f"images: {images.shape} {images.dtype}, {images.min()} to {images.max()}")
    print(f"labels: {labels.shape} {labels.dtype}, the first is {labels[0]}")
    grey = np.rint((images[0].reshape(28, 28) + 1) * 127.5).astype(int)
    inked = np.flatnonzero(grey.any(axis=0))
    first, last = inked.min(initial=27), inked.max(initial=0)
    print(f"the first image, columns {first} to {last}, without which it is 0:")
    for row in grey[:, first : last + 1]:  # 20 columns of MNIST's fit a terminal.
        print(" ".join(f"{value:3}" for value in row))


def draw_batch(images, labels):
    """Return a figure of the images, their labels above them."""
    columns = max(8, math.ceil(len(images) ** 0.5))
    rows = math.ceil(len(images) / columns)
    cells = np.ones((rows * columns, 40, 32))  # White, with room for label and gap.
    cells[: len(images), 12:, 4:] = images.reshape(-1, 28, 28)
    sheet = cells.reshape(rows, columns, 40, 32).swapaxes(1, 2).reshape(rows * 40, -1)

    figure = Figure(figsize=(columns, 1.25 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, cmap="gray", vmin=-1, vmax=1)
    axes.set_axis_off()
    for index, label in enumerate(labels.ravel()):
        row, column = divmod(index, columns)
        axes.text(column * 32 + 18, row * 40 + 9, f"{label:.0f}", ha="center")
    return figure


def save_figure(figure, path):
    """Draw a figure into a PNG file, and below the cell if this is a notebook."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_output(path, data.getvalue())
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(path))
    print(f"drawn: {path}")


def above(low, high=2**32, kind=int):
    """Return a type for argparse: a number above low and below high."""

    def number(text):
        if low < kind(text) < high:
            return kind(text)
        raise argparse.ArgumentTypeError(f"must be above {low} and below {high}")

    return number


def parse_args():
    parser = argparse.ArgumentParser(usage="%(prog)s [options]")
    add = parser.add_argument
    add(
        "--source",
        choices=["builtin", "json"],
        default="builtin",
        help="chapter 4's data or chapter 5's",
    )
    add("--batch-size", type=above(0), default=8, help="how many images to look at")
    add("--data", help="read this file (work/mnist.json.gz)")
    add("--save", default="show_batch.png", help="draw into this file")
    args = parser.parse_args()
    if args.data and args.source != "json":
        parser.error("--data needs --source json")
    return args


def main():
    args = parse_args()
    if hasattr(sys.stdout, "reconfigure"):  # A notebook's stdout lacks no letters.
        sys.stdout.reconfigure(errors="replace")
    check_output(args.save, b"\x89PNG", "PNG")

    if args.source == "json":
        images, labels = read_splits(
            args.data or "work/mnist.json.gz", args.batch_size
        )["train"]
        images = images[:, None].astype(np.float32) / 127.5 - 1
        labels = labels[:, None].astype(np.float32)
    else:
        images, labels = (array[: args.batch_size] for array in read_builtin("train"))

    print_batch(images, labels)
    save_figure(draw_batch(images, labels), args.save)


if __name__ == "__main__":
    main()
