"""Chapters 5.6 to 10: load data in the background while training, and read digits.

A worker process queues the next batches. `python train_async.py --epochs 3` ends with

    test: 9946 / 10000 correct (99.46 %)
"""

import argparse
import ctypes
import gzip
import json
import os
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Annotated

import cv2
import msgspec
import numpy as np
from tqdm import tqdm

# On AMD, paddle's matrix library takes its slowest path unless this is set before.
if os.path.exists("/proc/cpuinfo") and "AuthenticAMD" in open("/proc/cpuinfo").read():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")

import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import safetensors.paddle  # noqa: E402

Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]  # From paper to ink.
Image = Annotated[list[Pixel], msgspec.Meta(min_length=784, max_length=784)]
Label = Annotated[int, msgspec.Meta(ge=0, le=9)]
Split = tuple[Annotated[list[Image], msgspec.Meta(min_length=1)], list[Label]]

OUTPUTS = {"cross_entropy": 10, "square_error": 1}  # Of the network, for each loss.
RATES = {"adam": 0.02, "momentum": 0.1, "adagrad": 0.1, "sgd": 0.001}


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


def augment(image, label, rng):
    """Return a digit, uint8 [28, 28], distorted; a third blurred, some ones hooked."""
    if label == 1 and image.any() and rng.random() < 0.1:
        # Few ones of MNIST have a hook and a foot, which are common elsewhere.
        top, base = np.flatnonzero(image.any(1))[[0, -1]]
        (head, foot), (h, w) = image[[top, base]].argmax(1), rng.integers(0, 10, 2)
        lines = [[head, top], [head - h, top + h]], [[foot - w, base], [foot + w, base]]
        image = cv2.polylines(image, np.int32(lines), False, 255, 2, cv2.LINE_AA)
    if rng.random() < 1 / 3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6))
    matrix = np.eye(2) + rng.uniform(-0.18, 0.18, (2, 2))
    shift = 13.5 - matrix @ [13.5, 13.5] + rng.uniform(-1.5, 1.5, 2)  # Round the centre
    return cv2.warpAffine(image, np.column_stack([matrix, shift]), (28, 28))


class Batches(paddle.io.Dataset):
    """An epoch's batches: images float32 [N, 1, 28, 28] in [-1, 1], labels [N, 1]."""

    def __init__(self, split, size, seed=None, augmented=False, rank=0, processes=1):
        self.images, self.labels = split
        order = np.arange(len(self.labels))
        if seed:  # [seed, epoch]. A model remembers best what it saw last.
            np.random.default_rng(seed).shuffle(order)
        # Each of several training processes takes its share of every batch.
        starts = range(0, len(order) - processes + 1, size)
        self.chosen = [order[start : start + size][rank::processes] for start in starts]
        self.seed, self.augmented, self.rank = seed, augmented, rank

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, index):
        chosen = self.chosen[index]
        pixels, labels = self.images[chosen], self.labels[chosen]
        if self.augmented:  # Seeded per batch: it does not matter who loads it.
            rng = np.random.default_rng([*self.seed, index, self.rank])
            pixels = np.stack([augment(i, k, rng) for i, k in zip(pixels, labels)])
        pixels = pixels[:, None].astype(np.float32) / 127.5 - 1
        return pixels, labels[:, None].astype(np.float32)


def build_network(name, outputs):
    """Return the network: float32 [N, 1, 28, 28] in [-1, 1] -> float32 [N, outputs]."""
    if name == "linear":  # With one output, as in the article, it is a regression.
        return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs))
    layers, features = [], 784  # An MLP has no convolutions.
    if name == "cnn":  # Strides are cheaper than pooling; the norm has the bias.
        for cin, cout, side, stride in (1, 24, 5, 2), (24, 48, 3, 2), (48, 64, 3, 1):
            layers += [nn.Conv2D(cin, cout, side, stride, bias_attr=False)]
            layers += [nn.BatchNorm2D(cout), nn.ReLU()]
        features = 576  # [N, 24, 12, 12], [N, 48, 5, 5], [N, 64, 3, 3]
    layers += [nn.Flatten(), nn.Linear(features, 256, bias_attr=False)]
    layers += [nn.BatchNorm1D(256), nn.ReLU(), nn.Linear(256, outputs)]
    return nn.Sequential(*layers)


class BatchLast(nn.Sequential):
    """The same layers and weights, with a batch as one image: faster on a CPU."""

    def forward(self, images):
        x = images.transpose([1, 2, 3, 0]).unsqueeze(0).flatten(3)  # [1, 1, 28, 28 * N]
        for layer in self:
            if isinstance(layer, nn.Conv2D):  # One matrix product for all images
                x = x.reshape([*x.shape[:3], -1, len(images)])
                weight, stride = layer.weight.unsqueeze(-1), [*layer._stride, 1]
                x = nn.functional.conv3d(x, weight, stride=stride).flatten(3)
            elif isinstance(layer, nn.Flatten):
                x = x.reshape([-1, len(images)]).t()
            else:
                x = layer(x)
        return x


def compute_loss(outputs, labels):
    """Return the mean loss of outputs [N, 10] or [N, 1] against labels [N, 1]."""
    if outputs.shape[1] == 1:
        return (outputs - labels).square().mean()
    classes = labels.squeeze(1).astype("int64")
    # Label smoothing keeps the logits bounded.
    return nn.functional.cross_entropy(outputs, classes, label_smoothing=0.1)


def make_optimizer(name, lr, steps, network):
    """Return the optimizer and its schedule, one cycle of >= 6 steps (Smith, 2018)."""
    schedule = paddle.optimizer.lr.OneCycleLR(lr, max(6, steps), phase_pct=0.2)
    if name == "sgd":  # A constant rate, as in the article.
        schedule = paddle.optimizer.lr.LambdaDecay(lr, lambda step: 1)
    options = {}
    if name == "adam":  # It remembers a tenth of the training; one call updates all.
        options = {"beta2": max(0.9, 1 - 10 / steps), "use_multi_tensor": True}
    kind = getattr(paddle.optimizer, {"sgd": "SGD"}.get(name, name.title()))  # Adam
    return kind(schedule, parameters=network.parameters(), **options), schedule


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


def load_parameters(path):
    """Return (tensors {name: array}, metadata); raise ValueError, which names path."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads(file.metadata()["mnist"])
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is no parameters file: {error}") from None


def main():
    parser = argparse.ArgumentParser(usage="%(prog)s [options]")
    add, on_off = parser.add_argument, argparse.BooleanOptionalAction
    add("--gpu", action="store_true", help="train on the GPU, if there is one")
    add("--epochs", type=int, default=3, help="passes over the images (3)")
    add("--batch-size", type=int, default=100, help="images in a training step (100)")
    add("--lr", type=float, help="highest learning rate (the optimizer's own)")
    add("--seed", type=int, default=0, help="same seed, same result (0)")
    add("--limit", type=int, help="use the first LIMIT images of each set (all)")
    add("--data", default="work/mnist.json.gz", help="read this (work/mnist.json.gz)")
    add("--params", default="mnist.safetensors", help="write this (mnist.safetensors)")
    add("--network", choices=["cnn", "mlp", "linear"], help="what to train (cnn)")
    add("--loss", choices=OUTPUTS, help="what to minimize (cross_entropy)")
    add("--optimizer", choices=RATES, help="how to update the weights (adam)")
    add("--augment", action=on_off, default=True, help="distort training images (on)")
    add("--workers", type=int, default=1, help="processes that load batches (1)")
    add("--resume", action="store_true", help="go on from the parameters file")
    parser.set_defaults(network="cnn", loss="cross_entropy", optimizer="adam", done=0)
    args = parser.parse_args()
    if args.resume:  # What was saved takes the place of the defaults.
        tensors, metadata = load_parameters(args.params)
        parser.set_defaults(**metadata)
        args = parser.parse_args()
    if min(args.epochs, args.batch_size, 1 if args.limit is None else args.limit) < 1:
        parser.error("--epochs, --batch-size and --limit must be at least 1")
    if args.epochs < args.done:
        parser.error(f"{args.done} epochs are done already: name more --epochs")
    if args.gpu and not paddle.device.cuda.device_count():
        print("warning: no usable GPU, training on the CPU", file=sys.stderr)
        args.gpu = False
    paddle.set_device("gpu" if args.gpu else "cpu")
    rank, processes = 0, 1
    if "PADDLE_TRAINER_ENDPOINTS" in os.environ:  # Set by paddle.distributed.launch.
        group = paddle.distributed.init_parallel_env()
        rank, processes = group.rank, group.nranks

    train, *others = read_splits(args.data, args.limit).values()
    valid, test = (Batches(split, 10**9)[0] for split in others)
    paddle.seed(args.seed)
    network = build_network(args.network, OUTPUTS[args.loss])
    lr = RATES[args.optimizer] if args.lr is None else args.lr
    steps = args.epochs * len(Batches(train, args.batch_size))
    optimizer, schedule = make_optimizer(args.optimizer, lr, steps, network)
    if args.resume:
        made_by = metadata.get("optimizer", "sgd")  # train_json.py does not name it.
        if network.set_state_dict(tensors)[0] or args.optimizer != made_by:
            raise ValueError(f"{args.params} is of another network or optimizer")
        schedule.step(args.done * steps // args.epochs)
        state = {n.split(".", 1)[1]: t for n, t in tensors.items() if "optimizer" in n}
        optimizer.set_state_dict(state | {"LR_Scheduler": schedule.state_dict()})
        print(f"resuming after epoch {args.done - 1}")
    model = network if args.gpu else BatchLast(*network)
    if processes > 1:  # All gradients go in one message (up to 25 MB).
        model = paddle.DataParallel(model, last_comm_buffer_size=25)

    for epoch in range(args.done, args.epochs):
        start, losses, seed = time.perf_counter(), [], [args.seed, epoch]
        model.train()
        loader = paddle.io.DataLoader(
            Batches(train, args.batch_size, seed, args.augment, rank, processes),
            batch_size=None,  # An item is a batch already.
            num_workers=args.workers,
            prefetch_factor=5,  # The length of the queue.
            use_shared_memory=False,
            # PR_SET_PDEATHSIG: if this process is killed, the worker ends, too.
            worker_init_fn=lambda worker: ctypes.CDLL(None).prctl(1, 9),
        )
        bar = tqdm(loader, leave=False, disable=None if sys.stderr else True)
        for batch, (images, labels) in enumerate(bar):
            if epoch == args.done and batch < 6:
                bar.write(f"{batch}: {(*images.shape,)} {(*labels.shape,)}")
            loss = compute_loss(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()
            losses.append(loss.item())
            if batch % 200 == 0:
                bar.write(f"epoch: {epoch}, batch: {batch}, loss is: {losses[-1]:.4f}")
        if not np.isfinite(losses).all():
            raise ValueError("the loss is not finite: use a smaller --lr")
        took = time.perf_counter() - start
        right, count, _ = evaluate(network, *valid)
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, {took:.1f} s, ", end="")
        print(f"valid {right} / {count}, {count - right} misses")
        if rank == 0:
            unsaved = ("gpu", "data", "params", "workers", "resume")
            metadata = {n: v for n, v in vars(args).items() if n not in unsaved}
            metadata |= {"done": epoch + 1, "valid": right / count}
            state = {f"optimizer.{n}": t for n, t in optimizer.state_dict().items()}
            del state["optimizer.LR_Scheduler"]
            save_parameters(args.params, network.state_dict() | state, metadata)

    right, count, error = evaluate(network, *test)
    error = f", mean absolute error {error:.3f}" if args.loss == "square_error" else ""
    print(f"test: {right} / {count} correct ({100 * right / count:.2f} %){error}")
    print(f"saved: {args.params}")
    print(f"next: python predict.py work/example_0.png --params {args.params}")


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: finished epochs are saved")
