"""Chapter 5: read, split, shuffle, batch and validate the data by hand.

`python train_json.py` trains chapter 4's linear regression on them and ends with

    test: 2472 / 10000 correct (24.72 %), mean absolute error 1.439
"""

import argparse
import gzip
import json
import os
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

# On AMD, paddle's matrix library takes its slowest path unless this is set before.
if os.path.exists("/proc/cpuinfo") and "AuthenticAMD" in open("/proc/cpuinfo").read():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")

import paddle  # noqa: E402
import safetensors.paddle  # noqa: E402

Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]  # From paper to ink.
Image = Annotated[list[Pixel], msgspec.Meta(min_length=784, max_length=784)]
Label = Annotated[int, msgspec.Meta(ge=0, le=9)]
Split = tuple[Annotated[list[Image], msgspec.Meta(min_length=1)], list[Label]]


def read_splits(path, limit):
    """Return {mode: (images uint8 [N, 28, 28], labels [N])}; wrong data: ValueError."""
    print(f"loading {path} ...")
    try:
        with gzip.open(path) as file:
            data = msgspec.json.decode(file.read(), type=tuple[Split, Split, Split])
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {error}") from None
    splits = {}
    for mode, (images, labels) in zip(("train", "valid", "eval"), data):
        print(f"{mode}: {len(images)} images, {len(labels)} labels")
        if len(images) != len(labels):
            raise ValueError(f"{path}: {len(images)} images, {len(labels)} labels")
        pixels = np.frombuffer(b"".join(map(bytes, images[:limit])), np.uint8)
        splits[mode] = pixels.reshape(-1, 28, 28), np.array(labels[:limit], np.uint8)
    return splits


def load_data(mode, splits, batch_size, seed=0, epoch=0):
    """Yield images float32 [N, 1, 28, 28] in [-1, 1] and labels float32 [N, 1]."""
    if mode not in splits:
        raise ValueError(f"mode must be one of {list(splits)}, not {mode!r}")
    images, labels = splits[mode]
    order = np.arange(len(labels))
    if mode == "train":  # A model remembers best what it saw last.
        np.random.default_rng([seed, epoch]).shuffle(order)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        pixels = images[chosen, None].astype(np.float32) / 127.5 - 1
        yield pixels, labels[chosen, None].astype(np.float32)


@paddle.no_grad()
def evaluate(network, images, labels):
    """Return how many digits are right, of how many, and the mean absolute error."""
    network.eval()
    outputs = network(paddle.to_tensor(images)).numpy()
    single = outputs.shape[1] == 1  # A quantity: its integer part is the digit.
    digits = np.trunc(outputs).clip(0, 9) if single else outputs.argmax(1)[:, None]
    return int((digits == labels).sum()), len(labels), np.abs(outputs - labels).mean()


def save_parameters(path, tensors, metadata):
    """Write {name: paddle.Tensor} and metadata, atomically; loading cannot run code."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} is not a regular file")
    data = safetensors.paddle.save(tensors, {"mnist": json.dumps(metadata)})
    Path(f"{path}.tmp").write_bytes(data)
    os.replace(f"{path}.tmp", path)


def main():
    parser = argparse.ArgumentParser(usage="%(prog)s [options]")
    add = parser.add_argument
    add("--gpu", action="store_true", help="train on the GPU, if there is one")
    add("--epochs", type=int, default=10, help="passes over the images (10)")
    add("--batch-size", type=int, default=100, help="images in a training step (100)")
    add("--lr", type=float, default=0.001, help="learning rate (0.001)")
    add("--seed", type=int, default=0, help="same seed, same result (0)")
    add("--limit", type=int, help="use the first LIMIT images of each set (all)")
    add("--data", default="work/mnist.json.gz", help="read this (work/mnist.json.gz)")
    add("--params", default="mnist.safetensors", help="write this (mnist.safetensors)")
    args = parser.parse_args()
    if min(args.epochs, args.batch_size, 1 if args.limit is None else args.limit) < 1:
        parser.error("--epochs, --batch-size and --limit must be at least 1")
    if args.gpu and not paddle.device.cuda.device_count():
        print("warning: no usable GPU, training on the CPU", file=sys.stderr)
        args.gpu = False
    paddle.set_device("gpu" if args.gpu else "cpu")

    splits = read_splits(args.data, args.limit)
    valid, test = (next(load_data(m, splits, 10**9)) for m in ("valid", "eval"))
    paddle.seed(args.seed)
    network = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(784, 1))
    optimizer = paddle.optimizer.SGD(args.lr, network.parameters())

    for epoch in range(args.epochs):
        start, losses = time.perf_counter(), []
        network.train()
        batches = load_data("train", splits, args.batch_size, args.seed, epoch)
        for batch, (images, labels) in enumerate(batches):
            if epoch == batch == 0:
                print(f"{images.dtype} {images.shape}, {labels.dtype} {labels.shape}")
            outputs = network(paddle.to_tensor(images))  # [N, 1]
            loss = (outputs - paddle.to_tensor(labels)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            losses.append(loss.item())
            if batch % 200 == 0:
                print(f"epoch: {epoch}, batch: {batch}, loss is: {losses[-1]:.4f}")
        if not np.isfinite(losses).all():
            raise ValueError("the loss is not finite: use a smaller --lr")
        took = time.perf_counter() - start
        right, count, _ = evaluate(network, *valid)
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, {took:.1f} s, ", end="")
        print(f"valid {right} / {count}, {count - right} misses")
        metadata = {"network": "linear", "loss": "square_error", "done": epoch + 1}
        save_parameters(args.params, network.state_dict(), metadata)

    right, count, error = evaluate(network, *test)
    print(f"test: {right} / {count} correct ({100 * right / count:.2f} %)", end="")
    print(f", mean absolute error {error:.3f}")
    print(f"saved: {args.params}\nnext: python train_async.py --epochs 3")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: finished epochs are saved")
