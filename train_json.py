"""Chapter 5: read, split, shuffle, batch and validate the data by hand.

`python train_json.py` trains chapter 4's regression on them and ends with

    test: 2472 / 10000 correct (24.72 %), rounded 23.85 %
"""

import argparse
import contextlib
import gzip
import itertools
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # Ctrl-C as an exception would get lost in the imports.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\n"), os._exit(1)))
    with contextlib.suppress(AttributeError):  # A notebook's stdout; Windows
        sys.stdout.reconfigure(errors="replace")  # A console may lack letters.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it in silence.
CPU = Path("/proc/cpuinfo")  # On AMD as in train_async.py, so that both round alike.
if CPU.exists() and "AuthenticAMD" in CPU.read_text():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")

import msgspec
import numpy as np
import paddle
import safetensors.paddle

Label = Annotated[int, msgspec.Meta(ge=0, le=9)]  # msgspec refuses any other.
Split = tuple[Annotated[list[np.ndarray], msgspec.Meta(min_length=1)], list[Label]]
Splits = tuple[Split, Split, Split]


def decode_image(_, values):
    """Turn an image's list in the JSON, 784 pixels of 0 to 255, to uint8 [28, 28]."""
    if isinstance(next(iter(values), 0), float):  # The course's file has pixel / 256.
        values = np.rint(np.multiply(values, 256)).astype(int).tolist()
    return np.frombuffer(bytes(values), np.uint8).reshape(28, 28)


def read_splits(path, limit=None):
    """Return {mode: (images uint8 [N, 28, 28], labels uint8 [N])}, N at most limit."""
    print(f"loading {path} ...")
    try:
        text = gzip.decompress(Path(path).read_bytes())
        data = msgspec.json.decode(text, type=Splits, dec_hook=decode_image)
    except Exception as error:  # A damaged file raises what its decoders like.
        raise SystemExit(f"error: {path}: {error}") from None

    splits = {}
    for mode, (images, labels) in zip(("train", "valid", "eval"), data):
        if len(images) != len(labels):
            counts = f"{len(images)} images, {len(labels)} labels"
            raise SystemExit(f"error: {path}: {mode}: {counts}")
        splits[mode] = np.stack(images[:limit]), np.array(labels[:limit], np.uint8)
        print(f"{mode}: {len(splits[mode][1])} images")
    return splits


def load_data(mode, splits=None, batch_size=100, seed=0):
    """Return a function; each call of it returns a generator of one epoch's batches.

    It yields images float32 [N, 1, 28, 28] in [-1, 1] and labels float32 [N, 1].
    """
    if mode not in ("train", "valid", "eval"):
        raise ValueError(f"mode must be train, valid or eval, not {mode!r}")
    images, labels = (splits or read_splits("work/mnist.json.gz"))[mode]
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
    add("--batch-size", type=above(0), default=100, help="images in a training step")
    add("--lr", type=above(0, float), default=0.001, help="learning rate of SGD")
    add("--seed", type=above(-1), default=0, help="same seed, same result")
    add("--limit", type=above(0), help="images of each set, the first ones; None: all")
    add("--data", default="work/mnist.json.gz", help="read this file")
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

    splits = read_splits(args.data, args.limit)
    train_loader = load_data("train", splits, args.batch_size, args.seed)
    valid_loader, eval_loader = load_data("valid", splits), load_data("eval", splits)
    # Its own: a call of train_loader would use up the first epoch's order.
    images, labels = next(load_data("train", splits, args.batch_size, args.seed)())
    print(f"first batch: {images.dtype} {images.shape}, {labels.dtype} {labels.shape}")

    paddle.seed(args.seed)
    network = MNIST()
    optimizer = paddle.optimizer.SGD(args.lr, network.parameters())

    for epoch in range(args.epochs):
        start = time.perf_counter()
        loss = train_one_epoch(network, optimizer, train_loader(), epoch, 200)
        seconds = time.perf_counter() - start
        correct, _, error = evaluate(network, valid_loader())
        if not error <= 9:  # Two digits are at most 9 apart; NaN is refused, too.
            raise SystemExit("error: training diverged, use a smaller --lr")

        metadata = {"network": "linear", "loss": "regression", "done": epoch + 1}
        save_parameters(args.params, network.state_dict(), metadata)
        done = epoch + 1
        result = f"loss {loss:.4f}  valid {100 * correct.mean():.2f} %"
        print(f"epoch {done}/{args.epochs}  {result}  {seconds:.1f} s")

    correct, rounded, _ = evaluate(network, eval_loader())
    result = f"{correct.sum()} / {correct.size} correct ({100 * correct.mean():.2f} %)"
    print(f"test: {result}, rounded {100 * rounded.mean():.2f} %")
    print(f"saved: {args.params}\nnext: python train_async.py --epochs 3")


if __name__ == "__main__":
    main()
