"""Look at the data before you train on them (chapters 4 and 5).

Takes the first batch from the framework's built-in reader or from mnist.json.gz,
prints what is in it and draws it as a grid, each digit under its label:

    python show_batch.py
    python show_batch.py --source json --batch-size 100 --save batch.png

Without a display the drawing becomes a PNG file; the last line printed names it.
"""

import argparse
import errno
import functools
import gzip
import hashlib
import json
import logging
import math
import os
import signal
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np

# Paddle's matrix library takes its slowest path on AMD processors unless it is told
# otherwise before it is loaded; on Intel this must not be set.
CPU = Path("/proc/cpuinfo")
if CPU.exists() and "AuthenticAMD" in CPU.read_text():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")
logging.disable(logging.WARNING)  # Of libraries; what matters comes as an error.

import paddle  # noqa: E402

SPLITS = ("train", "valid", "eval")
FILES = {  # The names of the built-in data set's files, for paddle's two modes.
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
PIXELS = 28 * 28
PACKED = 100  # Times that JSON may be larger than its gzip file; MNIST's is 9 times.
LONGEST_LIST = 2**26  # Bytes of JSON.


class UserError(Exception):
    """A user's mistake or a broken file: shown as one line, without a traceback."""


# ------------------------------------------------------------------------------ data


def parse_numbers(text):
    """Return the numbers in text, a JSON list without its brackets, as float64 [N]."""
    values = np.asarray(json.loads(b"[%b]" % text))
    if values.dtype.kind not in "iuf":
        raise ValueError("it holds something that is not a number")
    if not np.isfinite(values).all():
        raise ValueError("it holds a number that is not finite")
    return values.astype(np.float64)


def parse_image(text, pixel_range):
    """Return the 784 grey values (bytes) of an image's JSON list, and pixel_range.

    pixel_range is the (lowest, highest) value that a pixel has in this file: (0, 255),
    (0, 1) or (-1, 1). It is None for the first image, which decides for all.
    """
    if pixel_range in (None, (0, 255)):
        try:
            grey = bytes(json.loads(b"[%b]" % text))  # Only whole numbers 0-255 pass.
            if len(grey) == PIXELS:
                return grey, (0, 255)
        except (TypeError, ValueError):
            pass  # Fractions, or a mistake; the lines below tell which.
    values = parse_numbers(text)
    if len(values) != PIXELS:
        raise ValueError(f"{len(values)} pixels instead of {PIXELS}")
    lowest, highest = values.min(), values.max()
    if pixel_range is None:
        pixel_range = (-1, 1) if lowest < 0 else (0, 1) if highest <= 1 else (0, 255)
    if lowest < pixel_range[0] or highest > pixel_range[1]:
        raise ValueError(
            f"pixels from {lowest:g} to {highest:g} in a file whose pixels "
            f"go from {pixel_range[0]} to {pixel_range[1]}"
        )
    if pixel_range == (0, 255) and (values % 1).any():
        raise ValueError("a pixel between 0 and 255 that is not a whole number")
    if pixel_range == (-1, 1):
        values = (values + 1) * 127.5
    elif pixel_range == (0, 1):
        values = values * 256  # The well-known file holds grey value / 256.
    return np.rint(values).clip(0, 255).astype(np.uint8).tobytes(), pixel_range


def parse_labels(text, images):
    """Return the labels of a set with that many images, from their JSON list: bytes."""
    labels = parse_numbers(text)
    if len(labels) != images:
        raise ValueError(f"{images} images but {len(labels)} labels")
    wrong = np.flatnonzero((labels < 0) | (labels > 9) | (labels % 1 != 0))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]:g} of image {wrong[0]} is no digit")
    return labels.astype(np.uint8).tobytes()


def innermost_lists(stream, limit):
    """Yield (brackets, text) for each list in a JSON stream that holds no other list.

    text is the list without its brackets; brackets is what stands between it and the
    list before, such as b"],[[["; the last text is None. Only one list at a time is
    in memory: as Python numbers, all 55 million pixels would take 700 MB. Raises
    ValueError behind limit bytes.
    """
    brackets = rest = b""
    while block := stream.read(2**20):
        limit -= len(block)
        if limit < 0:
            raise ValueError(f"it unpacks to over {PACKED} times its size")
        *pieces, rest = (rest + block).split(b"]")
        for piece in pieces:
            before, bracket, text = piece.rpartition(b"[")
            if bracket:
                yield brackets + before + b"[", text
                brackets = b"]"
            else:
                brackets += piece + b"]"
            if len(brackets) > 1000:
                raise ValueError("nothing but brackets")
        if len(rest) > LONGEST_LIST:
            raise ValueError("a list without an end")
    yield brackets + rest, None


def parse_splits(stream, limit):
    """Parse [[images, labels], [images, labels], [images, labels]]: machine validation.

    stream: the JSON text as a binary file, of limit bytes at most.
    Returns {split: (images uint8 [N, 28, 28], labels uint8 [N])}. Raises ValueError,
    which names set and image, unless there are three sets of two lists, as many
    images as labels, 784 pixels in each image, all in one range, and labels 0-9.
    """
    splits, images, pixel_range = {}, bytearray(), None
    expected = {b"[[[[": "image"}
    for brackets, text in innermost_lists(stream, limit):
        kind = expected.get(brackets.translate(None, b" \t\r\n"))
        if kind == "end":
            return splits
        if text is None:
            kind = None  # The file ends where a list would have to begin.
        place = f"set {len(splits) + 1} of 3, image {len(images) // PIXELS}"
        try:
            if kind == "image":
                grey, pixel_range = parse_image(text, pixel_range)
                images += grey
                expected = {b"],[": "image", b"]],[": "labels"}
            elif kind == "labels":
                place = f"set {len(splits) + 1} of 3"
                labels = parse_labels(text, len(images) // PIXELS)
                splits[SPLITS[len(splits)]] = (
                    np.frombuffer(images, np.uint8).reshape(-1, 28, 28),
                    np.frombuffer(labels, np.uint8),
                )
                images = bytearray()
                more = len(splits) < len(SPLITS)
                expected = {b"]],[[[": "image"} if more else {b"]]]": "end"}
            else:
                form = "[[images, labels], [images, labels], [images, labels]]"
                raise ValueError(f"the file is not of the form {form}")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def write_whole(path, write):
    """Write a file that is there whole or not at all; raise OSError.

    write(file) fills a temporary file in the same folder, which takes path's place
    only when all of it is on the disk: whoever is killed leaves the old file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_cache(path, digest):
    """Return the splits that an earlier reading left in path, or None.

    digest: the sha256 of the data file; a cache made from other data is not used.
    """
    try:
        with np.load(path) as arrays:
            if str(arrays["sha256"]) != digest:
                return None
            splits = {
                name: (arrays[f"{name}_images"], arrays[f"{name}_labels"])
                for name in SPLITS
            }
        for images, labels in splits.values():
            if images.shape != (len(labels), 28, 28) or images.dtype != np.uint8:
                raise ValueError("not grey images with a label each")
            if labels.shape != (len(labels),) or labels.dtype != np.uint8:
                raise ValueError("not a label each")
            if labels.max(initial=0) > 9:
                raise ValueError("labels that are no digits")
    except FileNotFoundError:
        return None
    except Exception:  # Whatever is wrong with it, the data file can replace it.
        print(f"{path} is damaged and will be made anew", file=sys.stderr)
        return None
    return splits


@functools.lru_cache(maxsize=1)
def read_splits(path):
    """Read mnist.json.gz, or the cache beside it if that was made from the same bytes.

    Returns ({split: (images uint8 [N, 28, 28], labels uint8 [N])}, sha256 of the
    file). Grey values go from 0, paper, to 255, ink. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there or not a file; --data names the data")
    cache = path.with_name(path.name.split(".")[0] + ".npz")
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.sha256()
            while block := file.read(2**20):
                sha256.update(block)
        digest = sha256.hexdigest()
        splits = read_cache(cache, digest)
        if splits is None:
            print(f"parsing {path}; later runs will read {cache}", file=sys.stderr)
            # A file may be small and unpack to terabytes.
            limit = 2**24 + PACKED * path.stat().st_size
            with gzip.open(path) as stream:
                splits = parse_splits(stream, limit)
            arrays = {"sha256": np.array(digest)}
            for name, (images, labels) in splits.items():
                arrays |= {f"{name}_images": images, f"{name}_labels": labels}
            try:
                write_whole(cache, lambda file: np.savez(file, **arrays))
            except OSError:
                pass  # A folder that cannot be written costs time, nothing else.
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; get it again") from None
    except ValueError as error:
        raise UserError(f"{path}, {error}") from None
    return splits, digest


def read_idx(path, magic):
    """Return what a gzipped IDX file holds: uint8 [N, 784] images or [N] labels.

    magic: the number that such a file begins with, 2051 for images, 2049 for labels.
    Raises UserError. Paddle's reader, for one, would take anything for granted.
    """
    try:
        with gzip.open(path) as file:
            found, count = struct.unpack(">II", file.read(8))
            if found != magic:
                raise ValueError(f"it begins with {found}, not {magic}")
            if magic == 2051 and struct.unpack(">II", file.read(8)) != (28, 28):
                raise ValueError("its images are not 28 by 28")
            size = count * PIXELS if magic == 2051 else count
            data = bytearray()
            while block := file.read(min(2**20, size - len(data) + 1)):
                data += block
        if len(data) != size or count == 0:
            raise ValueError(f"it does not hold the {count} items that it names")
        if magic == 2049 and max(data) > 9:
            raise ValueError(f"{max(data)} is no digit")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is not a data file of MNIST: {error}") from None
    shape = (count, PIXELS) if magic == 2051 else count
    return np.frombuffer(data, np.uint8).reshape(shape)


def download(mode):
    """Let paddle download MNIST into its cache, and return its data set."""
    files = " and ".join(FILES[mode])
    print(f"work/ lacks {files}: paddle downloads them", file=sys.stderr)
    try:
        return paddle.vision.datasets.MNIST(mode=mode)
    except Exception as error:  # Of many kinds: no network, no space, wrong bytes.
        kind = type(error).__name__
        raise UserError(f"no download ({kind}); put {files} into work/") from None


def read_training_files():
    """Return (images uint8 [N, 784], labels uint8 [N], path) of MNIST's training files.

    These are the built-in reader's: those in work/, else those that paddle downloads.
    They are read here, because the reader needs a second to make 60,000 arrays of them.
    """
    images, labels = [Path("work") / name for name in FILES["train"]]
    if not (images.is_file() and labels.is_file()):
        data = download("train")
        images, labels = data.image_path, data.label_path
    found = read_idx(images, 2051), read_idx(labels, 2049)
    if len(found[0]) != len(found[1]):
        raise UserError(f"{images} has not as many items as {labels}")
    return *found, images


# --------------------------------------------------------------------------- drawing


def draw(images, labels, title, file):
    """Draw images, uint8 [N, 28, 28], in a grid, each under its label, uint8 [N].

    file: the PNG to write, or None for a window. Without a display the window becomes
    show_batch.png. Returns the file written, None after a window. Raises UserError.
    """
    import matplotlib.pyplot as plt  # Only here: importing it takes half a second.

    warnings.filterwarnings("ignore", message="Glyph")  # A path may have any letters.

    columns = max(8, math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    figure, axes = plt.subplots(figsize=(0.9 * columns, 1.15 * rows + 0.5))
    for index, (image, label) in enumerate(zip(images, labels)):
        row, column = divmod(index, columns)
        left, top = 32 * column, 40 * row
        axes.imshow(
            image, "gray_r", vmin=0, vmax=255, extent=(left, left + 28, top + 28, top)
        )
        axes.text(left + 14, top - 1, str(label), ha="center", va="bottom")
    axes.set(xlim=(-3, 32 * columns - 1), ylim=(40 * rows - 10, -10), aspect="equal")
    axes.set_title(title, parse_math=False)
    axes.axis("off")
    if file is None and plt.get_backend().lower() != "agg":
        plt.show()
        return None
    path = Path("show_batch.png" if file is None else file)
    try:
        write_whole(path, lambda png: figure.savefig(png, dpi=150, bbox_inches="tight"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--save {path} cannot be written: {reason}") from None
    return path


# ------------------------------------------------------------------------------ main


def run(args):
    """Print what a batch holds, and draw it."""
    if args.source == "builtin":
        images, labels, source = read_training_files()
        shape = (-1, PIXELS)  # As the built-in reader gives them.
    else:
        images, labels = read_splits(args.data)[0]["train"]
        source, shape = args.data, (-1, 1, 28, 28)
    images, labels = images[: args.batch_size], labels[: args.batch_size]
    batch = images.reshape(shape).astype(np.float32) / 127.5 - 1
    print(f"source: {source}, the first {len(labels)} training images")
    print(f"images: {batch.shape} {batch.dtype}, {batch.min():g} to {batch.max():g}")
    print(f"labels: {labels.shape} {labels.dtype}, {labels.min()} to {labels.max()}")
    print(f"first image: {np.array2string(batch[0].ravel(), threshold=9)}")
    print(f"first label: {labels[0]}")
    # Back to grey values, which a drawing needs: (x + 1) * 127.5.
    grey = ((batch + 1) * 127.5).round().astype(np.uint8).reshape(-1, 28, 28)
    path = draw(grey, labels, f"First training images of {source}", args.save)
    if path:
        print(f"drawn: {path}")


def printable(text):
    """Return text without the characters that could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def number(convert, lowest, highest):
    """Return an argparse type: int or float (convert) from lowest to highest."""

    def checked(text):
        value = convert(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"not from {lowest} to {highest}: {text}")
        return value

    checked.__name__ = "number"  # argparse says "invalid number value: ..."
    return checked


class Parser(argparse.ArgumentParser):
    """argparse's parser; its complaints are one line, as all others are."""

    def error(self, message):
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def parse(arguments):
    """Return the command line's flags."""
    parser = Parser(description="Print and draw a batch of the data.")
    add = parser.add_argument
    add("--source", choices=("builtin", "json"), default="builtin", help="the reader")
    add("--batch-size", type=number(int, 1, 1000), default=8, help="default: 8")
    add("--data", default="work/mnist.json.gz", help="default: work/mnist.json.gz")
    add("--save", metavar="FILE", help="write a PNG instead of opening a window")
    return parser.parse_args(arguments)


def stop(*_):
    """Answer Ctrl-C and SIGTERM: remember them, for what is raised may get lost.

    It does where a library happens to tidy up, which then would only print about it.
    """
    stop.asked = True
    sys.unraisablehook = lambda _: None
    raise KeyboardInterrupt


stop.asked = False


def main(arguments=None):
    """Run the script; return 0, 2 after a user's mistake, 130 after Ctrl-C."""
    stop.asked = False
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        run(parse(arguments))
        print(end="", flush=True)
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # Of what is printed; files have messages of their own.
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno == errno.EPIPE:  # Whoever reads it, `head` say, has seen enough.
            return 1
        print("error: standard output: no space left on its disk", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what was finished before is on disk", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
