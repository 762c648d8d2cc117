"""Chapter 4: the starter model, a linear regression on MNIST.

One fully connected layer predicts the digit as a number. That does not get far, because
digits are classes, not quantities: `python train_builtin.py` ends with

    test: 2395 / 10000 correct (23.95 %), rounded 21.02 %, mean error 1.456
"""

import argparse
import contextlib
import gzip
import io
import json
import math
import os
import shlex
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path


def on_interrupt(line):
    """Let Ctrl-C end the script with this line instead of a traceback."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(line))


if __name__ == "__main__":  # The imports below take seconds.
    on_interrupt("stopped: nothing is saved yet")
warnings.filterwarnings("ignore", module="paddle")

import numpy as np  # noqa: E402
import paddle  # noqa: E402
import safetensors.paddle  # noqa: E402


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
    add("--batch-size", type=above(0), default=16, help="images in a training step")
    add("--lr", type=above(0, float("inf"), float), default=0.001, help="learning rate")
    add("--seed", type=above(-1), default=0, help="same seed, same result")
    add("--limit", type=above(0), help="use the first LIMIT images of each set")
    add("--params", default="mnist.safetensors", help="write this file")
    return parser.parse_args()


def main():
    args = parse_args()
    if hasattr(sys.stdout, "reconfigure"):  # A notebook's stdout lacks no letters.
        sys.stdout.reconfigure(errors="replace")
    check_output(args.params, b'{"mnist":', "parameters file")
    choose_device(args.gpu)

    images, labels = (array[: args.limit] for array in read_builtin("train"))
    test_images, test_labels = (array[: args.limit] for array in read_builtin("test"))
    print(f"train: {len(labels)} images, test: {len(test_labels)} images")
    sampler = paddle.io.BatchSampler(labels, shuffle=True, batch_size=args.batch_size)
    np.random.seed(args.seed)  # The sampler's
    paddle.seed(args.seed)
    network = MNIST()
    print(f"network: linear, {sum(p.size for p in network.parameters())} parameters")
    optimizer = paddle.optimizer.SGD(args.lr, network.parameters())

    for epoch in range(args.epochs):
        start = time.perf_counter()
        batches = ((images[chosen], labels[chosen]) for chosen in sampler)
        loss = train_one_epoch(network, optimizer, batches, epoch, 1000)
        right, _, count, error = evaluate(network, [(images, labels)])
        if not error <= 9:  # Two digits are at most 9 apart.
            raise SystemExit("error: the loss has grown, use a smaller --lr")

        share, seconds = 100 * right / count, time.perf_counter() - start
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {loss:.4f}  train {share:.2f} %  "
            f"{seconds:.1f} s"
        )
        metadata = {"network": "linear", "loss": "regression", "done": epoch + 1}
        save_parameters(args.params, network.state_dict(), metadata)
        on_interrupt(f"stopped: {args.params} holds epoch {epoch + 1}")

    right, rounded, count, error = evaluate(network, [(test_images, test_labels)])
    print(
        f"test: {right} / {count} correct ({100 * right / count:.2f} %), "
        f"rounded {100 * rounded / count:.2f} %, mean error {error:.3f}"
    )
    params = shlex.quote(args.params)
    print(
        f"saved: {args.params}\nnext: python predict.py --samples 100 --params {params}"
    )


if __name__ == "__main__":
    main()
