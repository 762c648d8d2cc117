"""Chapter 4: the starter model, a linear regression on MNIST.

One fully connected layer predicts the digit as a number. That does not get far, because
digits are classes, not quantities: `python train_builtin.py` ends with

    test: 2498 / 10000 correct (24.98 %), rounded 21.82 %
"""

import argparse
import contextlib
import gzip
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C as an exception would get lost in the imports.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\n"), os._exit(1)))
    with contextlib.suppress(AttributeError):  # A notebook's stdout; Windows
        sys.stdout.reconfigure(errors="replace")  # A console may lack letters.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it in silence.
warnings.filterwarnings("ignore", module="paddle")

import numpy as np
import paddle
import safetensors.paddle


def read_builtin(mode, limit=None):
    """Return a set's images float32 [N, 784] in [-1, 1] and its labels int64 [N, 1]."""
    name = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = [f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz"]
    if not any(map(os.path.exists, paths)):
        paths = []  # Paddle looks in ~/.cache, and downloads.

    try:
        counts = {gzip.open(path).read(8)[4:] for path in paths}  # Bytes 4 to 7
        if len(counts) > 1:
            raise ValueError("not as many images as labels")
        data = paddle.vision.datasets.MNIST(*paths, mode=mode)
    except Exception as error:  # A damaged file raises what its decoders like.
        raise SystemExit(f"error: {name}-*-ubyte.gz: {error}") from None
    return np.array(data.images[:limit]) / 127.5 - 1, np.array(data.labels[:limit])


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
            known = b'{"mnist":' in target.read_bytes()[:40]
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


def parse_args():
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(usage="%(prog)s [options]", formatter_class=form)
    add = parser.add_argument

    add("--gpu", action="store_true", help="train on the GPU, if there is one")
    add("--epochs", type=above(0), default=10, help="passes over the images")
    add("--batch-size", type=above(0), default=16, help="images in a training step")
    add("--lr", type=above(0, float), default=0.001, help="learning rate of SGD")
    add("--seed", type=above(-1), default=0, help="same seed, same result")
    add("--limit", type=above(0), help="images of each set, the first ones; None: all")
    add("--params", default="mnist.safetensors", help="write this file")

    args = parser.parse_args()
    if args.gpu and not paddle.device.cuda.device_count():
        built = paddle.is_compiled_with_cuda()
        print(f"warning: no GPU (built for CUDA: {built}): on the CPU", file=sys.stderr)
        args.gpu = False
    return args


def main():
    args = parse_args()
    done = 0  # Epochs
    signal.signal(signal.SIGINT, lambda *_: sys.exit(f"stopped, epochs saved: {done}"))
    save_parameters(args.params, {}, {}, dry_run=True)  # Fail now, not in an hour.
    paddle.set_device("gpu" if args.gpu else "cpu")

    images, labels = read_builtin("train", args.limit)
    test = read_builtin("test", args.limit)
    sampler = paddle.io.BatchSampler(labels, shuffle=True, batch_size=args.batch_size)
    np.random.seed(args.seed)  # The sampler's
    paddle.seed(args.seed)

    network = MNIST()
    count = sum(parameter.size for parameter in network.parameters())
    print(f"linear: {count} parameters, to be trained on {len(labels)} images")
    optimizer = paddle.optimizer.SGD(args.lr, network.parameters())

    for epoch in range(args.epochs):
        start = time.perf_counter()
        batches = ((images[chosen], labels[chosen]) for chosen in sampler)
        loss = train_one_epoch(network, optimizer, batches, epoch, 1000)
        seconds = time.perf_counter() - start
        correct, _, error = evaluate(network, [(images, labels)])
        if not error <= 9:  # Two digits are at most 9 apart; NaN is refused, too.
            raise SystemExit("error: training diverged, use a smaller --lr")

        metadata = {"network": "linear", "loss": "regression", "done": epoch + 1}
        save_parameters(args.params, network.state_dict(), metadata)
        done = epoch + 1
        result = f"loss {loss:.4f}  train {100 * correct.mean():.2f} %"
        print(f"epoch {done}/{args.epochs}  {result}  {seconds:.1f} s")

    correct, rounded, _ = evaluate(network, [test])
    result = f"{correct.sum()} / {correct.size} correct ({100 * correct.mean():.2f} %)"
    print(f"test: {result}, rounded {100 * rounded.mean():.2f} %")
    print(f"saved: {args.params}")
    print(f"next: python predict.py --samples 100 --params {shlex.quote(args.params)}")


if __name__ == "__main__":
    main()
