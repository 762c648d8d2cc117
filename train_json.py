"""Chapter 5: read, split, shuffle, batch and validate the data by hand.

The data are one JSON file of three sets. `load_data` reads them, checks them and
hands them out in batches, and chapter 4's straight line is trained on these:

    python train_json.py
    python train_json.py --epochs 1 --limit 5000

The lesson is the data, not the digits. The first command ends with

    test: 2472 / 10000 correct (24.72 %), mean absolute error 1.439
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
import shlex
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy
from tqdm import tqdm

# Paddle's matrix library takes its slowest path on AMD processors unless it is told
# otherwise before it is loaded; on Intel this must not be set.
CPU = Path("/proc/cpuinfo")
if CPU.exists() and "AuthenticAMD" in CPU.read_text():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")
logging.disable(logging.WARNING)  # Of libraries; what matters comes as an error.

import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import paddle.nn.functional as F  # noqa: E402

SPLITS = ("train", "valid", "eval")
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


def load_data(mode, path, batch_size, seed=0, limit=None):
    """Return a function that yields an epoch's batches, and how many these are.

    mode: "train", "valid" or "eval"; only "train" is shuffled, anew in each epoch.
    Each batch is (images float32 [N, 1, 28, 28] in [-1, 1], labels float32 [N, 1]);
    N is batch_size, or what is left at the end. limit: take the first images only.
    """
    if mode not in SPLITS:
        raise ValueError(f"mode must be one of {SPLITS}, not {mode!r}")
    images, labels = (array[:limit] for array in read_splits(path)[0][mode])
    print(f"{mode}: {len(images)} images, {len(labels)} labels")

    def batches(epoch=0):
        order = np.arange(len(images), dtype=np.uint32)
        if mode == "train":
            # A model remembers best what it saw last, so that must not be one digit.
            np.random.default_rng([seed, epoch]).shuffle(order)
        # A generator makes one batch at a time; all floats at once would be 157 MB.
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield (
                images[chosen, None].astype(np.float32) / 127.5 - 1,
                labels[chosen, None].astype(np.float32),
            )

    return batches, math.ceil(len(images) / batch_size)


# --------------------------------------------------------------------------- network


def build_network():
    """Return chapter 4's network: one fully connected layer without activation.

    It takes float32 [N, 1, 28, 28] and gives float32 [N, 1], the digit as a number.
    """
    return nn.Sequential(
        ("flatten", nn.Flatten()),  # [N, 784]
        ("fc", nn.Linear(PIXELS, 1)),  # [N, 1], 785 parameters
    )


# -------------------------------------------------------------------------- training


def choose_device(gpu):
    """Make paddle use the GPU or the CPU, and return its name, such as "cpu"."""
    device = "cpu"
    if gpu and paddle.device.cuda.device_count():
        device = "gpu:" + os.environ.get("FLAGS_selected_gpus", "0")
    elif gpu:
        print(
            "warning: --gpu: this paddlepaddle finds no usable GPU; "
            "install paddlepaddle-gpu; going on on the CPU",
            file=sys.stderr,
        )
    paddle.set_device(device)
    return device


def machine(device):
    """Return a line about what computes: device, threads, version."""
    threads = paddle.get_flags("FLAGS_paddle_num_threads")["FLAGS_paddle_num_threads"]
    return f"device: {device}, threads: {threads}, paddle {paddle.__version__}"


def save_parameters(path, tensors, facts):
    """Write tensors {name: paddle.Tensor}, and facts about them as metadata, to path.

    The file is data only, so that loading it can never run code. Raises UserError.
    """
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"a parameter is not finite any more; {path} is as it was")
    # All facts under one key: the order of several keys in the file would be random.
    data = safetensors.numpy.save(arrays, {"mnist": json.dumps(facts)})
    try:
        write_whole(path, lambda file: file.write(data))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def parameters_path(name):
    """Return the path of the parameters file called name; UserError if unwritable."""
    path = Path(name if name.endswith(".safetensors") else name + ".safetensors")
    try:
        if path.name == ".safetensors":
            raise ValueError("it has no name")
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        trial.touch()
        trial.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--params {path} cannot be written: {reason}") from None
    return path


def train(network, optimizer, batches, steps, epoch, epochs):
    """Train for one epoch and return the mean loss; UserError if it is not finite.

    batches: iterable of (images float32 [N, 1, 28, 28], labels float32 [N, 1]), steps
    of them.
    """
    network.train()
    total = count = 0
    title = f"epoch {epoch + 1}/{epochs}"
    with tqdm(batches, title, steps, leave=False, disable=None) as bar:
        for batch, (images, labels) in enumerate(bar):
            if stop.asked:
                raise KeyboardInterrupt
            output = network(paddle.to_tensor(images))
            loss = F.square_error_cost(output, paddle.to_tensor(labels)).mean()
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f"the loss is {value}: give a smaller --lr")
            if batch % 200 == 0:
                bar.write(f"epoch: {epoch}, batch: {batch}, loss is: {value:.4f}")
            total += value * len(labels)
            count += len(labels)
    return total / count


# ------------------------------------------------------------------------ evaluation


def evaluate(network, batches):
    """Return (images, digits right, mean absolute error) of a regression.

    The digit is the output's integer part, kept within 0-9.
    """
    network.eval()
    count = right = error = 0
    with paddle.no_grad():
        for images, labels in batches:
            output = network(paddle.to_tensor(images)).numpy()  # [N, 1]
            right += int((np.trunc(output).clip(0, 9) == labels).sum())
            error += float(np.abs(output - labels).sum())
            count += len(labels)
    return count, right, error / count


# ------------------------------------------------------------------------------ main


def run(args):
    """Load the data, look at them, train, and test once at the end."""
    path = parameters_path(args.params)
    print(machine(choose_device(args.gpu)))
    print(f"loading mnist dataset from {args.data} ......")
    digest = read_splits(args.data)[1]
    print("mnist dataset load done")
    (train_batches, steps), (valid_batches, _), (test_batches, _) = (
        load_data(mode, args.data, args.batch_size, args.seed, args.limit)
        for mode in SPLITS
    )
    # Human validation: look at a batch before you train on it.
    images, labels = next(train_batches())
    print(f"first batch: images {images.shape} {images.dtype}", end=", ")
    print(f"labels {labels.shape} {labels.dtype}")

    paddle.seed(args.seed)
    network = build_network()
    print(f"network: linear, {sum(p.size for p in network.parameters())} parameters")
    optimizer = paddle.optimizer.SGD(args.lr, parameters=network.parameters())
    for epoch in range(args.epochs):
        start = time.perf_counter()
        batches = train_batches(epoch)
        loss = train(network, optimizer, batches, steps, epoch, args.epochs)
        seconds = time.perf_counter() - start
        count, right, error = evaluate(network, valid_batches())
        facts = {
            "network": "linear",
            "loss": "square_error",
            "pixels": [-1, 1],
            "epochs": epoch + 1,
            "accuracy": right / count,
            "seed": args.seed,
            "data": digest,
        }
        save_parameters(path, network.state_dict(), facts)
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {loss:.4f}, "
            f"valid {right} / {count} ({100 * right / count:.2f} %), "
            f"{count - right} misses, {seconds:.1f} s",
            flush=True,
        )
    count, right, error = evaluate(network, test_batches())
    print(f"test: {right} / {count} correct ({100 * right / count:.2f} %), ", end="")
    print(f"mean absolute error {error:.3f}")
    print(f"saved: {path}")
    named = "" if args.params == "mnist" else f" --params {shlex.quote(args.params)}"
    print(f"next: python predict.py --samples 100{named}")


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
    parser = Parser(description="Read, split, shuffle, batch and validate the data.")
    add = parser.add_argument
    add("--gpu", action="store_true", help="train on GPU 0")
    add("--epochs", type=number(int, 1, 10**6), default=10, help="default: 10")
    add("--batch-size", type=number(int, 1, 10**4), default=100, help="default: 100")
    add("--lr", type=number(float, 1e-12, 1e12), default=0.001, help="default: 0.001")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="default: 0")
    add("--limit", type=number(int, 1, 10**9), help="only the first N of each set")
    add("--data", default="work/mnist.json.gz", help="default: work/mnist.json.gz")
    add("--params", default="mnist", help="default: mnist, for mnist.safetensors")
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
