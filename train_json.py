"""Chapter 5: read, split, shuffle, batch and validate the data by hand.

`python train_json.py` trains chapter 4's regression on them and ends with

    test: 2472 / 10000 correct (24.72 %), rounded 23.85 %, mean error 1.439
"""

import argparse
import gzip
import itertools
import json
import os
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Annotated


def on_interrupt(line):
    """Let Ctrl-C end the script with this line instead of a traceback."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(line))


if __name__ == "__main__":  # The imports below take seconds.
    on_interrupt("stopped: nothing is saved yet")
CPU = Path("/proc/cpuinfo")  # Set as in train_async.py, so that both round alike.
if CPU.exists() and "AuthenticAMD" in CPU.read_text():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")

import msgspec  # noqa: E402
import numpy as np  # noqa: E402
import paddle  # noqa: E402
import safetensors.paddle  # noqa: E402

Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]  # From 0, paper, to 255, ink.
Share = Annotated[float, msgspec.Meta(ge=0, le=255 / 256)]  # The course's: pixel / 256.
Length = msgspec.Meta(min_length=784, max_length=784)
Images = Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
Label = Annotated[int, msgspec.Meta(ge=0, le=9)]
Split = tuple[Images, list[Label]]


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


def load_data(mode, splits=None, batch_size=100, seed=0):
    """Return the generator of a set's batches; each call of it begins an epoch.

    A batch is images float32 [N, 1, 28, 28] in [-1, 1] and labels float32 [N, 1].
    The mode is "train", "valid" or "eval"; any other is a ValueError.
    """
    if splits is None:
        splits = read_splits("work/mnist.json.gz")
    if mode not in splits:
        raise ValueError(f"mode must be one of {list(splits)}, not {mode!r}")
    images, labels = splits[mode]
    epochs = itertools.count()

    def data_generator():
        order = np.arange(len(labels))
        if mode == "train":  # Anew in each epoch, so that batches are fair samples.
            np.random.default_rng([seed, next(epochs)]).shuffle(order)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            pixels = images[chosen, None].astype(np.float32) / 127.5 - 1
            yield pixels, labels[chosen, None].astype(np.float32)

    return data_generator


class MNIST(paddle.nn.Layer):
    """The starter model: one layer of 785 parameters gives the digit as a number."""

    def __init__(self):
        super().__init__()
        self.fc = paddle.nn.Linear(in_features=784, out_features=1)

    def forward(self, images):
        return self.fc(paddle.reshape(images, [-1, 784]))  # [N, 1]


@paddle.no_grad()
def evaluate(network, batches):
    """Return the digits right, cut off and rounded, of how many, and the mean error.

    The article cuts off: the output's integer part is the digit.
    """
    network.eval()
    pairs = [(network(paddle.to_tensor(x)).numpy(), labels) for x, labels in batches]
    outputs, labels = map(np.concatenate, zip(*pairs))  # [N, 1] each
    cut_off = np.trunc(outputs).clip(0, 9) == labels
    rounded = np.rint(outputs).clip(0, 9) == labels
    error = np.abs(outputs - labels).mean()
    return cut_off.sum(), rounded.sum(), len(labels), error


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


def save_parameters(path, tensors, metadata):
    """Write {name: paddle.Tensor} and metadata; loading them cannot run code."""
    write_output(
        path, safetensors.paddle.save(tensors, {"mnist": json.dumps(metadata)})
    )


def train_one_epoch(network, optimizer, batches, epoch, every):
    """Take one step for each batch and show every so many losses; return their mean."""
    network.train()
    losses = []
    for batch, (images, labels) in enumerate(batches):
        outputs = network(paddle.to_tensor(images))  # [N, 1]
        targets = paddle.to_tensor(labels, "float32")
        loss = paddle.nn.functional.mse_loss(outputs, targets)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()

        losses.append(loss.item())
        if batch % every == 0:
            print(f"epoch: {epoch}, batch: {batch}, loss is: {losses[-1]:.4f}")
    return np.mean(losses)


def above(low, high=2**32, kind=int):
    """Return a type for argparse: a number above low and below high."""

    def number(text):
        if low < kind(text) < high:
            return kind(text)
        raise argparse.ArgumentTypeError(f"must be above {low} and below {high}")

    return number


def choose_device(gpu):
    """Use the GPU if it is asked for and paddle finds one, else the CPU."""
    found = paddle.device.cuda.device_count() > 0
    if gpu and not found:
        built = paddle.is_compiled_with_cuda()
        why = "paddle finds none" if built else "this paddle is built for the CPU"
        print(f"warning: no GPU, {why}: using the CPU", file=sys.stderr)
    paddle.set_device("gpu" if gpu and found else "cpu")


def parse_args():
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--gpu", action="store_true", help="train on the GPU, if there is one")
    add("--epochs", type=above(0), default=10, help="passes over the images")
    add("--batch-size", type=above(0), default=100, help="images in a training step")
    add("--lr", type=above(0, float("inf"), float), default=0.001, help="learning rate")
    add("--seed", type=above(-1), default=0, help="same seed, same result")
    add("--limit", type=above(0), help="use the first LIMIT images of each set")

    add("--data", default="work/mnist.json.gz", help="read this file")
    add("--params", default="mnist.safetensors", help="write this file")
    return parser.parse_args()


def main():
    args = parse_args()
    if hasattr(sys.stdout, "reconfigure"):  # A notebook's stdout lacks no letters.
        sys.stdout.reconfigure(errors="replace")
    check_output(args.params, b'{"mnist":', "parameters file")
    choose_device(args.gpu)

    splits = read_splits(args.data, args.limit)
    train_loader = load_data("train", splits, args.batch_size, args.seed)
    valid_loader, eval_loader = load_data("valid", splits), load_data("eval", splits)
    images, labels = next(load_data("train", splits, args.batch_size)())
    print(f"first batch: {images.dtype} {images.shape}, {labels.dtype} {labels.shape}")

    paddle.seed(args.seed)
    network = MNIST()
    optimizer = paddle.optimizer.SGD(args.lr, network.parameters())
    for epoch in range(args.epochs):
        start = time.perf_counter()
        loss = train_one_epoch(network, optimizer, train_loader(), epoch, 200)
        right, _, count, error = evaluate(network, valid_loader())
        if not error <= 9:  # Two digits are at most 9 apart.
            raise SystemExit("error: the loss has grown, use a smaller --lr")

        valid, seconds = 100 * right / count, time.perf_counter() - start
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {loss:.4f}  valid {valid:.2f} %  "
            f"{seconds:.1f} s"
        )
        metadata = {"network": "linear", "loss": "regression", "done": epoch + 1}
        save_parameters(args.params, network.state_dict(), metadata)
        on_interrupt(f"stopped: {args.params} holds epoch {epoch + 1}")

    right, rounded, count, error = evaluate(network, eval_loader())
    print(
        f"test: {right} / {count} correct ({100 * right / count:.2f} %), "
        f"rounded {100 * rounded / count:.2f} %, mean error {error:.3f}"
    )
    print(f"saved: {args.params}\nnext: python train_async.py --epochs 3")


if __name__ == "__main__":
    main()
