"""Chapter 4: the starter model, a linear regression on MNIST.

One fully connected layer predicts the digit as a number. That does not get far, because
digits are classes, not quantities: `python train_builtin.py` ends with

    test: 2395 / 10000 correct (23.95 %), mean absolute error 1.456
"""

import argparse
import glob
import json
import os
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np

warnings.filterwarnings("ignore", module="paddle")

import paddle  # noqa: E402
import safetensors.paddle  # noqa: E402


def read_builtin(name):
    """Return "train" or "t10k": images float32 [N, 784] in [-1, 1], and labels [N]."""
    paths = sorted(glob.glob(f"work/{name}-*.gz"))  # None: paddle downloads them.
    try:
        data = paddle.vision.datasets.MNIST(*paths, mode=name.replace("t10k", "test"))
    except (EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        raise ValueError(f"{', '.join(paths) or 'download'}: {error}") from None
    return np.array(data.images) / 127.5 - 1, np.concatenate(data.labels)


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
    add("--batch-size", type=int, default=16, help="images in a training step (16)")
    add("--lr", type=float, default=0.001, help="learning rate (0.001)")
    add("--seed", type=int, default=0, help="same seed, same result (0)")
    add("--limit", type=int, help="use the first LIMIT images of each set (all)")
    add("--params", default="mnist.safetensors", help="write this (mnist.safetensors)")
    args = parser.parse_args()
    if min(args.epochs, args.batch_size, 1 if args.limit is None else args.limit) < 1:
        parser.error("--epochs, --batch-size and --limit must be at least 1")
    if args.gpu and not paddle.device.cuda.device_count():
        print("warning: no usable GPU, training on the CPU", file=sys.stderr)
        args.gpu = False
    paddle.set_device("gpu" if args.gpu else "cpu")

    images, labels = (array[: args.limit] for array in read_builtin("train"))
    test_images, test_labels = (array[: args.limit] for array in read_builtin("t10k"))
    print(f"train: {len(labels)} images, test: {len(test_labels)} images")
    paddle.seed(args.seed)
    network = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(784, 1))
    print(f"network: linear, {sum(p.size for p in network.parameters())} parameters")
    optimizer = paddle.optimizer.SGD(args.lr, network.parameters())

    for epoch in range(args.epochs):
        start, losses = time.perf_counter(), []
        network.train()
        order = np.random.default_rng([args.seed, epoch]).permutation(len(labels))
        for batch, first in enumerate(range(0, len(order), args.batch_size)):
            chosen = order[first : first + args.batch_size]
            outputs = network(paddle.to_tensor(images[chosen]))  # [N, 1]
            targets = paddle.to_tensor(labels[chosen, None], "float32")
            loss = (outputs - targets).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            losses.append(loss.item())
            if batch % 1000 == 0:
                print(f"epoch: {epoch}, batch: {batch}, loss is: {losses[-1]:.4f}")
        if not np.isfinite(losses).all():
            raise ValueError("the loss is not finite: use a smaller --lr")
        took = time.perf_counter() - start
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, {took:.1f} s")
        metadata = {"network": "linear", "loss": "square_error", "done": epoch + 1}
        save_parameters(args.params, network.state_dict(), metadata)

    outputs = network(paddle.to_tensor(test_images)).numpy()[:, 0]
    right, count = (np.trunc(outputs).clip(0, 9) == test_labels).sum(), len(outputs)
    print(f"test: {right} / {count} correct ({100 * right / count:.2f} %)", end="")
    print(f", mean absolute error {np.abs(outputs - test_labels).mean():.3f}")
    print(f"saved: {args.params}")
    print(f"next: python predict.py --samples 100 --params {args.params}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: finished epochs are saved")
