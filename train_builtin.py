"""Chapter 4: the starter model, a straight line through pixel space.

The framework's built-in reader gives MNIST, one fully connected layer predicts the
digit as a number, and ten epochs of plain gradient descent show how far that goes:

    python train_builtin.py
    python train_builtin.py --epochs 1 --limit 5000

Not far. The first command ends with

    test: 2395 / 10000 correct (23.95 %), mean absolute error 1.456
"""

import argparse
import errno
import gzip
import hashlib
import json
import logging
import math
import os
import shlex
import signal
import struct
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

FILES = {  # The names of the built-in data set's files, for paddle's two modes.
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
PIXELS = 28 * 28


class UserError(Exception):
    """A user's mistake or a broken file: shown as one line, without a traceback."""


# ------------------------------------------------------------------------------ data


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


def read_builtin(mode):
    """Read MNIST with paddle's built-in reader: mode is "train" or "test".

    It takes the files in work/ if they are there, else those that paddle downloads into
    its cache. Returns (images uint8 [N, 784], labels uint8 [N], path of the images);
    grey values go from 0, paper, to 255, ink. Raises UserError.
    """
    images, labels = paths = [Path("work") / name for name in FILES[mode]]
    if images.is_file() and labels.is_file():
        if len(read_idx(images, 2051)) != len(read_idx(labels, 2049)):
            raise UserError(f"{images} has not as many items as {labels}")
        try:
            data = paddle.vision.datasets.MNIST(*paths, mode)
        except struct.error:  # The only fault that is left for it to find.
            raise UserError(f"{images}: paddle reads whole hundreds only") from None
    else:
        data = download(mode)
    # One array, once: gathering each batch from a list of 60,000 would slow training.
    images = np.array(data.images, np.uint8)  # [N, 784]
    return images, np.array(data.labels, np.uint8)[:, 0], Path(data.image_path)


def make_batches(images, labels, batch_size, rng=None):
    """Yield (images float32 [N, 784] in [-1, 1], labels float32 [N, 1]) of an epoch.

    images: uint8 [., 784]. labels: uint8 [.]. rng: shuffles, if given.
    """
    order = np.arange(len(images))
    if rng is not None:
        rng.shuffle(order)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield (
            images[chosen].astype(np.float32) / 127.5 - 1,
            labels[chosen, None].astype(np.float32),
        )


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


# --------------------------------------------------------------------------- network


def build_network():
    """Return chapter 4's network: one fully connected layer without activation.

    It takes float32 [N, 784] and gives float32 [N, 1], the digit as a number.
    """
    return nn.Sequential(("fc", nn.Linear(PIXELS, 1)))  # 785 parameters


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

    batches: iterable of (images float32 [N, 784], labels float32 [N, 1]), steps
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
            if batch % 1000 == 0:
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
    """Load the data, train, and test once at the end."""
    path = parameters_path(args.params)
    print(machine(choose_device(args.gpu)))
    images, labels, source = read_builtin("train")
    images, labels = images[: args.limit], labels[: args.limit]
    test_images, test_labels, _ = read_builtin("test")
    test_images, test_labels = test_images[: args.limit], test_labels[: args.limit]
    print(f"train: {len(labels)} images, test: {len(test_labels)} images")

    paddle.seed(args.seed)
    network = build_network()
    print(f"network: linear, {sum(p.size for p in network.parameters())} parameters")
    optimizer = paddle.optimizer.SGD(args.lr, parameters=network.parameters())
    facts = {
        "network": "linear",
        "loss": "square_error",
        "pixels": [-1, 1],
        "epochs": 0,
        "accuracy": None,  # Measured once, at the end.
        "seed": args.seed,
        "data": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    steps = math.ceil(len(labels) / args.batch_size)
    for epoch in range(args.epochs):
        start = time.perf_counter()
        rng = np.random.default_rng([args.seed, epoch])
        batches = make_batches(images, labels, args.batch_size, rng)
        loss = train(network, optimizer, batches, steps, epoch, args.epochs)
        facts["epochs"] = epoch + 1
        save_parameters(path, network.state_dict(), facts)
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {loss:.4f}, "
            f"{time.perf_counter() - start:.1f} s",
            flush=True,
        )
    batches = make_batches(test_images, test_labels, args.batch_size)
    count, right, error = evaluate(network, batches)
    facts["accuracy"] = right / count
    save_parameters(path, network.state_dict(), facts)
    print(f"test: {right} / {count} correct ({100 * right / count:.2f} %), ", end="")
    print(f"mean absolute error {error:.3f}")
    print("Why so few: a straight line has one weight for each pixel, the same for all")
    print("digits, but ink in one place speaks for a 1 here and for a 4 or a 9 there.")
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
    parser = Parser(description="Train the article's starter model on MNIST.")
    add = parser.add_argument
    add("--gpu", action="store_true", help="train on GPU 0")
    add("--epochs", type=number(int, 1, 10**6), default=10, help="default: 10")
    add("--batch-size", type=number(int, 1, 10**4), default=16, help="default: 16")
    add("--lr", type=number(float, 1e-12, 1e12), default=0.001, help="default: 0.001")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="default: 0")
    add("--limit", type=number(int, 1, 10**9), help="only the first N of each set")
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
