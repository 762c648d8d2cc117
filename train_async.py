"""Chapters 5.6 to 10: load data in the background while a network learns its digits.

A worker process queues the next batches. `python train_async.py --epochs 3` ends with

    test: 9941 / 10000 correct (99.41 %)
"""

import argparse
import contextlib
import ctypes
import gzip
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Annotated

if __name__ == "__main__":  # Ctrl-C as an exception would get lost in the imports.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\n"), os._exit(1)))
    with contextlib.suppress(AttributeError):  # A notebook's stdout; Windows
        sys.stdout.reconfigure(errors="replace")  # A console may lack letters.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it in silence.
CPU = Path("/proc/cpuinfo")  # On AMD, MKL needs twice the time unless told to use AVX2.
if CPU.exists() and "AuthenticAMD" in CPU.read_text():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")

import cv2
import msgspec
import numpy as np
import paddle
import paddle.nn as nn
import paddle.nn.functional as F
import safetensors.paddle
from tqdm import tqdm

Label = Annotated[int, msgspec.Meta(ge=0, le=9)]  # msgspec refuses any other.
Split = tuple[Annotated[list[np.ndarray], msgspec.Meta(min_length=1)], list[Label]]
Splits = tuple[Split, Split, Split]

SIGNS = "ACEFHKMNPRTUVWXadefhkmnprtuvwx&?%#*+=-."  # None that looks like a digit
NO_DIGIT = 10  # The class of what is none of the ten digits.
OUTPUTS = {"cross_entropy": 11, "square_error": 11, "regression": 1}

# ---- data --------------------------------------------------------------------------


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


def draw_pair(images, rng):
    """Return two or three digits side by side: apart, touching or overlapping."""
    canvas = np.zeros((28, 3 * 32), np.uint8)
    right = 0
    for image in images[rng.integers(2) :]:
        x, _, width, _ = cv2.boundingRect(image)
        left = max(0, right + rng.integers(-5, 5))  # Pixels
        right = left + width
        canvas[:, left:right] = cv2.max(canvas[:, left:right], image[:, x : x + width])
    return cv2.dilate(canvas, np.ones((2, 2)))  # It will be reduced.


def draw_sign(rng):
    """Return a letter, another sign, a zigzag or the outline of a polygon."""
    canvas = np.zeros((56, 56), np.uint8)
    if rng.random() < 0.5:
        sign, font = SIGNS[rng.integers(len(SIGNS))], int(rng.integers(5))
        cv2.putText(canvas, sign, (14, 42), font, 1.2, 255, 1, cv2.LINE_AA)

    else:  # In the order of their columns, or of the angle from the middle
        points = rng.integers(14, 42, (rng.integers(4, 8), 2), dtype=np.int32)
        closed = rng.random() < 0.5
        order = np.arctan2(*(points - 28).T) if closed else points[:, 0]
        cv2.polylines(canvas, [points[order.argsort()]], closed, 255, 1, cv2.LINE_AA)
    pen = rng.integers(2, 6, 2).tolist()
    return cv2.dilate(canvas, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, pen))


def cut_out(ink, rng):
    """Return a quarter to 60 % of the ink's width, or of its height."""
    x, y, width, height = cv2.boundingRect(ink)
    share = rng.uniform(0.25, 0.6)
    begin = rng.uniform(0, 1 - share)
    if rng.random() < 2 / 3:
        x, width = x + int(begin * width), int(share * width) + 1
    else:
        y, height = y + int(begin * height), int(share * height) + 1
    return np.pad(ink[y : y + height, x : x + width], 1)


def centre_by_mass(ink):
    """Return ink in MNIST's form, uint8 [28, 28]: 20 pixels long, centred by mass."""
    scale = 20 / max(cv2.boundingRect(ink)[2:])
    moments = cv2.moments(ink)
    middle = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    matrix = np.column_stack([scale * np.eye(2), 13.5 - scale * middle])
    return cv2.warpAffine(ink, matrix, (28, 28))


def add_no_digits(images, labels, rng):
    """Return both with one NO_DIGIT more for each 20: digits joined or cut, and signs.

    A network that has only seen digits is sure of everything (tests/README.md).
    """
    made = []
    ones = np.flatnonzero(labels == 1)
    while len(made) < len(images) // 20:
        chosen = rng.integers(len(images), size=3)
        if len(ones) and rng.random() < 0.5:  # A one beside another is overlooked.
            chosen[rng.integers(3)] = rng.choice(ones)
        digits = images[chosen]
        kind = rng.choice(["pair", "piece of digit", "sign", "piece of sign"])

        ink = draw_sign(rng) if "sign" in kind else digits[0]
        if kind == "pair":
            ink = draw_pair(digits, rng)
        if "piece" in kind:
            ink = cut_out(ink, rng)

        _, _, width, height = cv2.boundingRect(ink)
        if 2 * width > height:  # A narrower one may be a one.
            made.append(centre_by_mass(ink))
    print(f"train: {len(made)} images of no digit are added")
    labels = np.pad(labels, (0, len(made)), constant_values=NO_DIGIT)
    return np.stack([*images, *made]), labels


def hook(image, rng):
    """Return a one with a hook and mostly a foot: common elsewhere, rare in MNIST."""
    top, base = np.flatnonzero(image.any(1))[[0, -1]]
    head, foot = image[top].argmax(), image[base].argmax()
    length, half = rng.integers((0, -6), (11, 13)).clip(0)  # Pixels
    drop = int(length * rng.uniform(0.4, 1))

    hooks = [[head, top], [head - length, top + drop]]
    feet = [[foot - half, base], [foot + half, base]]
    lines = np.int32([hooks, feet])
    image = cv2.polylines(image.copy(), lines, False, 255, 2, cv2.LINE_AA)
    return centre_by_mass(image)


def augment(images, labels, distortion, rng):
    """Return images uint8 [N, 28, 28] distorted, a fifth blurred, some ones hooked."""
    count = len(images)
    matrices = np.eye(2) + rng.uniform(-distortion, distortion, (count, 2, 2))
    shifts = 13.5 - matrices @ [13.5, 13.5] + rng.uniform(-1.5, 1.5, (count, 2))
    transforms = np.concatenate([matrices, shifts[..., None]], axis=2)
    sigmas = rng.uniform(0.4, 1.6, count)
    blurred = rng.random(count) < 0.2
    hooked = (labels == 1) & (rng.random(count) < 0.2) & images.any((1, 2))

    distorted = np.empty_like(images)
    for i, image in enumerate(images):
        if hooked[i]:
            image = hook(image, rng)
        if blurred[i]:
            image = cv2.GaussianBlur(image, (0, 0), sigmas[i])
        distorted[i] = cv2.warpAffine(image, transforms[i], (28, 28))
    return distorted


class Batches(paddle.io.Dataset):
    """An epoch's batches: images float32 [N, 1, 28, 28] in [-1, 1], labels [N, 1]."""

    def __init__(self, split, args, epoch, rank, processes):
        self.images, self.labels = split
        self.augmented = args.augment
        self.seeds = [args.seed, epoch]
        self.rank = rank

        # Batch norm needs two images in each process.
        least = processes * (1 if args.network == "linear" else 2)
        if min(len(self.labels), args.batch_size) < least:
            raise SystemExit(f"error: --batch-size and --limit: at least {least}")

        # In random order, so that every batch is a fair sample.
        order = np.random.default_rng(self.seeds).permutation(len(self.labels))
        starts = range(0, len(order) - least + 1, args.batch_size)
        # Each of several training processes takes its share of every batch.
        self.chosen = [order[i : i + args.batch_size][rank::processes] for i in starts]
        # Ever less over all epochs: the last images are more as people write them.
        progress = (epoch + np.arange(len(starts)) / len(starts)) / args.epochs
        self.distortions = 0.24 - 0.12 * progress  # Shares of an image's size

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, index):
        try:
            pixels = self.images[self.chosen[index]]
            labels = self.labels[self.chosen[index]]
            if self.augmented:  # Seeded per batch: it does not matter who loads it.
                rng = np.random.default_rng([*self.seeds, index, self.rank])
                pixels = augment(pixels, labels, self.distortions[index], rng)
            pixels = pixels[:, None].astype(np.float32) / 127.5 - 1
            return pixels, labels[:, None].astype(np.float32)

        except Exception:
            if paddle.io.get_worker_info() is None:
                raise
            traceback.print_exc()  # Paddle would wait for a failed worker for ever.
            os._exit(1)


def start_worker(_):
    """Leave Ctrl-C to the training, and end with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # PR_SET_PDEATHSIG of Linux: without it a worker left alone waits for ever.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def make_loader(batches, workers):
    """Return the batches as tensors, behind a progress bar; workers queue them."""
    options = {
        "batch_size": None,  # An item is a batch already.
        "num_workers": workers,
        "prefetch_factor": 5,  # The length of the queue.
        "use_shared_memory": False,  # Containers have little of it.
        "worker_init_fn": start_worker,
    }

    loader = (map(paddle.to_tensor, batches[i]) for i in range(len(batches)))
    if workers:
        loader = paddle.io.DataLoader(batches, **options)
    return tqdm(loader, total=len(batches), leave=False, disable=None)


# ---- network -----------------------------------------------------------------------


def build_network(name, outputs):
    """Return the network: float32 [N, 1, 28, 28] in [-1, 1] -> float32 [N, outputs]."""
    if name == "linear":
        return nn.Sequential(("flatten", nn.Flatten()), ("fc", nn.Linear(784, outputs)))

    layers = []
    features = 784  # An MLP has no convolutions.
    if name == "cnn":  # Strides are cheaper than pooling; the norm has the bias.
        for cin, cout, side, stride in (1, 32, 7, 3), (32, 48, 2, 2):
            layers += [nn.Conv2D(cin, cout, side, stride, bias_attr=False)]
            layers += [nn.BatchNorm2D(cout), nn.GELU(approximate=True)]
        features = 768  # [N, 32, 8, 8], [N, 48, 4, 4]

    layers += [nn.Flatten(), nn.Linear(features, 256, bias_attr=False)]
    layers += [nn.BatchNorm1D(256), nn.GELU(approximate=True)]
    return nn.Sequential(*layers, nn.Linear(256, outputs))


# ---- loss --------------------------------------------------------------------------


def cross_entropy(outputs, labels):
    """Return the mean cross-entropy of outputs [N, 11] and labels [N, 1]."""
    # The right class is to get 91 %, each other 1 %: 100 % would need endless outputs.
    classes = labels[:, 0].astype("int64")
    return F.cross_entropy(outputs, classes, label_smoothing=0.1)


def square_error(outputs, labels):
    """Return the mean squared error of outputs [N, 11] and labels [N, 1], one-hot."""
    classes = labels[:, 0].astype("int64")
    return F.mse_loss(outputs, F.one_hot(classes, outputs.shape[1]))


def regression(outputs, labels):
    """Return the mean squared error of outputs [N, 1] and labels [N, 1], the digits."""
    return F.mse_loss(outputs, labels)


LOSSES = {loss.__name__: loss for loss in (cross_entropy, square_error, regression)}
DIVERGED = 1000  # A mean loss, or any output, that reaches it: tests/README.md


@paddle.no_grad()
def evaluate(network, loss_name, images, labels):
    """Return the outputs for images uint8 [N, 28, 28], and which digits are right."""
    network.eval()
    inputs = images[:, None].astype(np.float32) / 127.5 - 1
    outputs = network(paddle.to_tensor(inputs)).numpy()
    if loss_name == "regression":  # Its integer part is the digit, as in the article.
        digits = np.trunc(outputs[:, 0]).clip(0, 9)
    else:
        digits = outputs[:, :NO_DIGIT].argmax(1)
    return outputs, digits == labels


def fit_temperature(outputs, labels):
    """Return the T that gives softmax(outputs / T) true percentages (Guo, 2017)."""
    temperatures = np.geomspace(0.02, 5, 114)  # In steps of 5 %
    logits, classes = paddle.to_tensor(outputs), paddle.to_tensor(labels, "int64")
    losses = [F.cross_entropy(logits / t, classes).item() for t in temperatures]
    return temperatures[np.argmin(losses)]


# ---- optimizer ---------------------------------------------------------------------

# The highest rates, tuned on the validation set in one epoch of the CNN. Twice as high,
# Adagrad and SGD are 0.2 points better still, but diverge on few images.
OPTIMIZERS = {
    "adam": (paddle.optimizer.Adam, 0.03),
    "momentum": (paddle.optimizer.Momentum, 0.3),
    "adagrad": (paddle.optimizer.Adagrad, 0.1),
    "sgd": (paddle.optimizer.SGD, 1.5),
}


def make_optimizer(args, batches, network):
    """Return the optimizer, and its schedule: one cycle (Smith, 2018) or constant."""
    make, rate = OPTIMIZERS[args.optimizer]
    rate = args.lr or rate
    steps = max(6, args.epochs * batches)  # Paddle's cycle divides by zero under 6.
    schedule = paddle.optimizer.lr.OneCycleLR(rate, steps, end_learning_rate=0)
    if args.schedule == "constant":
        schedule = paddle.optimizer.lr.LambdaDecay(rate, lambda step: 1)

    options = {}
    if args.optimizer == "adam":  # It remembers a tenth of the training.
        beta2 = max(0.9, 1 - 10 / steps)
        options = {"beta1": 0.7, "beta2": beta2, "use_multi_tensor": True}
    return make(schedule, parameters=network.parameters(), **options), schedule


# ---- parameters file ---------------------------------------------------------------

# What is saved; --resume takes it from the file, unless a flag says otherwise.
SAVED = "done network loss optimizer schedule lr augment epochs batch_size seed limit"


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


def save_epoch(args, network, optimizer, results):
    """Write network, optimizer, settings and results to the parameters file."""
    state = optimizer.state_dict()
    del state["LR_Scheduler"]  # It follows from the epochs done.
    tensors = {f"optimizer.{name}": tensor for name, tensor in state.items()}
    settings = {name: getattr(args, name) for name in SAVED.split()}
    save_parameters(args.params, tensors | network.state_dict(), settings | results)


def load_parameters(path):
    """Return (tensors {name: array}, metadata) of a parameters file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads(file.metadata()["mnist"])
    except (OSError, KeyError, TypeError, safetensors.SafetensorError):
        raise SystemExit(f"error: {path}: missing, or not a parameters file") from None


def resume(args, batches, network, optimizer, schedule):
    """Put network, optimizer and schedule where the saved training left them."""
    tensors, metadata = load_parameters(args.params)
    missing, _ = network.set_state_dict(tensors)
    made_by = metadata.get("optimizer", args.optimizer)  # Other scripts name none.
    if missing or made_by != args.optimizer:
        raise SystemExit(f"error: {args.params} holds another network or optimizer")
    if args.epochs <= args.done:
        print(f"epochs done already: {args.done}; ask for more --epochs")
        sys.exit()

    schedule.step(args.done * batches)
    prefix = "optimizer."
    state = {n.removeprefix(prefix): tensors[n] for n in tensors if prefix in n}
    if state:
        optimizer.set_state_dict(state | {"LR_Scheduler": schedule.state_dict()})
    print(f"resuming: {args.done} epochs are done")
    print(f"the rate goes on at {optimizer.get_lr():.2g}")


# ---- training ----------------------------------------------------------------------


def train_one_epoch(network, compute_loss, optimizer, schedule, loader, epoch):
    """Take a step for each batch; return the mean loss."""
    network.train()
    losses = []
    for batch, (images, labels) in enumerate(loader):
        loss = compute_loss(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()

        losses.append(loss.item())
        if batch % 200 == 0:
            tqdm.write(f"epoch: {epoch}, batch: {batch}, loss is: {losses[-1]:.4f}")
    return np.mean(losses)


def start_processes():
    """Return this process's rank and their number, as paddle's launcher set them."""
    if "PADDLE_CURRENT_ENDPOINT" not in os.environ:
        return 0, 1
    paddle.distributed.init_parallel_env()
    return paddle.distributed.get_rank(), paddle.distributed.get_world_size()


def print_test(args, network, images, labels):
    """Print how many test images are read right, the file, and what to try next."""
    outputs, correct = evaluate(network, args.loss, images, labels)
    result = f"{correct.sum()} / {len(correct)} correct ({100 * correct.mean():.2f} %)"
    if args.loss == "regression":
        rounded = np.rint(outputs[:, 0]).clip(0, 9) == labels
        result += f", rounded {100 * rounded.mean():.2f} %"
    print(f"test: {result}\nsaved: {args.params}")
    params = shlex.quote(args.params)
    print(f"next: python predict.py work/example_0.png --params {params}")


# ---- command line ------------------------------------------------------------------


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
    add("--epochs", type=above(0), default=3, help="passes over the images")
    add("--batch-size", type=above(0), default=100, help="images in a training step")
    add("--seed", type=above(-1), default=0, help="same seed, same result")
    add("--limit", type=above(0), help="images of each set, the first ones; None: all")

    add("--data", default="work/mnist.json.gz", help="read this file")
    add("--params", default="mnist.safetensors", help="write this file")
    add("--network", choices=["cnn", "mlp", "linear"], default="cnn", help="the model")
    add("--loss", choices=LOSSES, default="cross_entropy", help="what to minimize")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="updates the weights")
    add("--lr", type=above(0, float), help="highest rate; None: the optimizer's own")
    schedules = ["one_cycle", "constant"]
    add("--schedule", choices=schedules, default="one_cycle", help="the rate's course")

    on_off = argparse.BooleanOptionalAction
    add("--augment", action=on_off, default=True, help="distort; add what is no digit")
    add("--workers", type=int, choices=range(9), default=1, help="loading processes")
    add("--resume", action="store_true", help="go on from the parameters file")
    parser.set_defaults(done=0)  # Epochs
    args = parser.parse_args()

    if args.resume:  # What was saved takes the place of the defaults.
        _, metadata = load_parameters(args.params)
        saved = {name: metadata[name] for name in SAVED.split() if name in metadata}
        parser.set_defaults(**saved)
        args = parser.parse_args()

    if args.gpu and not paddle.device.cuda.device_count():
        built = paddle.is_compiled_with_cuda()
        print(f"warning: no GPU (built for CUDA: {built}): on the CPU", file=sys.stderr)
        args.gpu = False

    if args.workers and sys.platform != "linux":
        print("warning: on this system paddle loads without workers", file=sys.stderr)
        args.workers = 0
    return args


def main():
    args = parse_args()
    done = args.done
    signal.signal(signal.SIGINT, lambda *_: sys.exit(f"stopped, epochs saved: {done}"))
    save_parameters(args.params, {}, {}, dry_run=True)  # Fail now, not in an hour.
    paddle.set_device("gpu" if args.gpu else "cpu")
    rank, processes = start_processes()

    train, valid, test = read_splits(args.data, args.limit).values()
    if args.augment and args.loss != "regression":
        train = add_no_digits(*train, np.random.default_rng(args.seed))
    batches = Batches(train, args, done, rank, processes)
    for index in range(min(6, len(batches))):
        images, labels = batches[index]
        print(f"{index}: images {images.shape}, labels {labels.shape}")

    paddle.seed(args.seed)
    paddle.utils.unique_name.switch()  # A notebook's earlier networks do not count.
    network = build_network(args.network, OUTPUTS[args.loss])
    print(f"{args.network}: {sum(p.size for p in network.parameters()):,} parameters")
    optimizer, schedule = make_optimizer(args, len(batches), network)
    if args.resume:
        resume(args, len(batches), network, optimizer, schedule)

    compute_loss = LOSSES[args.loss]
    model = paddle.DataParallel(network) if processes > 1 else network
    for epoch in range(done, args.epochs):
        start = time.perf_counter()
        loader = make_loader(Batches(train, args, epoch, rank, processes), args.workers)
        loss = train_one_epoch(model, compute_loss, optimizer, schedule, loader, epoch)
        seconds = time.perf_counter() - start

        outputs, correct = evaluate(network, args.loss, *valid)
        if not np.maximum(loss, np.abs(outputs).max()) < DIVERGED:
            raise SystemExit("error: training diverged, use a smaller --lr")
        if rank == 0:
            results = {"done": epoch + 1, "valid": correct.mean()}
            if args.loss != "regression":
                results["temperature"] = fit_temperature(outputs, valid[1])
            save_epoch(args, network, optimizer, results)

        done = epoch + 1
        result = f"loss {loss:.4f}  valid {100 * correct.mean():.2f} %"
        print(f"epoch {done}/{args.epochs}  {result}  {seconds:.1f} s")
    print_test(args, network, *test)


if __name__ == "__main__":
    main()
