"""Chapter 4: the starter model, a linear regression on MNIST.

One fully connected layer predicts the digit as a number. That does not get far, because
digits are classes, not quantities: `python train_builtin.py` ends with

    test: 2498 / 10000 correct (24.98 %), rounded 21.82 %, mean error 1.419
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

if __name__ == "__main__":  # In the imports below, an exception would get lost.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\n"), os._exit(1)))
    with contextlib.suppress(AttributeError):  # A notebook's stdout; Windows
        sys.stdout.reconfigure(errors="replace")  # A console may lack letters.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it in silence.
warnings.filterwarnings("ignore", module="paddle")

import numpy as np
import paddle
import safetensors.paddle


def read_builtin(mode):
    """Return a set's images float32 [N, 784] in [-1, 1] and its labels int64 [N, 1]."""
    name = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = [f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz"]
    if not any(map(os.path.exists, paths)):
        paths = []  # Paddle looks in ~/.cache, and downloads.

    try:
        sizes = [len(gzip.open(path).read()) for path in paths]
        # Paddle does not compare what is behind the headers of 16 and 8 bytes.
        if paths and sizes[0] - 16 != 784 * (sizes[1] - 8):
            raise ValueError(f"{(sizes[0] - 16) / 784:g} images, {sizes[1] - 8} labels")

        with contextlib.redirect_stderr(io.StringIO()):  # A download's three tries
            data = paddle.vision.datasets.MNIST(*paths, mode=mode)
    except Exception as error:  # A damaged file raises what its decoders like.
        raise SystemExit(f"error: {name}-*-ubyte.gz: {error}") from None
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
    """Return which outputs, cut off or rounded, are the digit, and the mean error."""
    network.eval()
    pairs = [(network(paddle.to_tensor(x)).numpy(), y) for x, y in batches]
    outputs, labels = map(np.concatenate, zip(*pairs))  # [N, 1] each
    correct = np.trunc(outputs).clip(0, 9) == labels  # As in the article
    rounded = np.rint(outputs).clip(0, 9) == labels
    return correct, rounded, np.abs(outputs - labels).mean()


def save_parameters(path, tensors, metadata, dry_run=False):
    """Write {name: paddle.Tensor} and metadata atomically; in a dry run only try to."""
    target = Path(os.path.realpath(path))  # A symbolic link stays one.
    data = safetensors.paddle.save(tensors, {"mnist": json.dumps(metadata)})
    try:
        if target.exists():
            with open(target, "r+b") as file:  # Root may write what is protected.
                known = b'{"mnist":' in file.read(40)
            if not known or target.stat().st_mode & 0o222 == 0:
                raise SystemExit(f"error: {path}: protected, or not a parameters file")

        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            new = Path(folder, target.name)
            new.write_bytes(data)
            if not dry_run:
                new.replace(target)
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror}") from None


def train_one_epoch(network, optimizer, batches, epoch, log_interval):
    """Take a step for each batch, print some of the losses; return their mean."""
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
        if batch % log_interval == 0:
            print(f"epoch: {epoch}, batch: {batch}, loss is: {losses[-1]:.4f}")
    return np.mean(losses)


def above(low, kind=int):
    """Return a type for argparse: a number above low and below 2**32."""

    def number(text):
        if low < kind(text) < 2**32:
            return kind(text)
        raise argparse.ArgumentTypeError(f"must be above {low} and below 2**32")

    return number


def choose_device(gpu):
    """Use the GPU if it is asked for and there is one, else the CPU."""
    if gpu and not paddle.device.cuda.device_count():
        built = "finds none" if paddle.is_compiled_with_cuda() else "is for the CPU"
        print(f"warning: no GPU, this paddle {built}: on the CPU", file=sys.stderr)
        gpu = False
    paddle.set_device("gpu" if gpu else "cpu")


def parse_args():
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(usage="%(prog)s [options]", formatter_class=form)
    add = parser.add_argument
    add("--gpu", action="store_true", help="train on the GPU, if there is one")
    add("--epochs", type=above(0), default=10, help="passes over the images")
    add("--batch-size", type=above(0), default=16, help="images in a training step")
    add("--lr", type=above(0, float), default=0.001, help="learning rate")
    add("--seed", type=above(-1), default=0, help="same seed, same result")

    add("--limit", type=above(0), help="images of each set, the first ones; None: all")
    add("--params", default="mnist.safetensors", help="write this file")
    return parser.parse_args()


def main():
    args = parse_args()
    done = 0  # Epochs
    signal.signal(signal.SIGINT, lambda *_: sys.exit(f"stopped: {done} epochs saved"))
    save_parameters(args.params, {}, {}, dry_run=True)  # Fail now, not in an hour.
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
        seconds = time.perf_counter() - start
        correct, _, error = evaluate(network, [(images, labels)])
        if not error <= 9:  # Two digits are at most 9 apart.
            raise SystemExit("error: training diverged, use a smaller --lr")

        metadata = {"network": "linear", "loss": "regression", "done": epoch + 1}
        save_parameters(args.params, network.state_dict(), metadata)
        done = epoch + 1
        result = f"loss {loss:.4f}  train {100 * correct.mean():.2f} %"
        print(f"epoch {done}/{args.epochs}  {result}  {seconds:.1f} s")

    correct, rounded, error = evaluate(network, [(test_images, test_labels)])
    result = f"{correct.sum()} / {correct.size} correct ({100 * correct.mean():.2f} %)"
    result += f", rounded {100 * rounded.mean():.2f} %"
    print(f"test: {result}, mean error {error:.3f}")
    print(f"saved: {args.params}")
    print(f"next: python predict.py --samples 100 --params {shlex.quote(args.params)}")


if __name__ == "__main__":
    main()
