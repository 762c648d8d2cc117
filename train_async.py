"""Chapters 5.6 to 10: read beside training, and train a network that can read digits.

A second process reads, shuffles and augments batches while this one trains; a queue
between them lets each keep its own pace. That pays where a batch takes long to make:
here augmentation comes for nothing, plain batches gain nothing. Then the network, its
loss and optimizer, several devices, and going on after an interruption:

    python train_async.py
    python train_async.py --epochs 20
    python train_async.py --epochs 30 --resume
    python train_async.py --network linear --loss square_error --optimizer sgd \\
        --lr 0.001 --no-augment
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo \\
        train_async.py

The one with sgd is the article's training to the letter. The first one ends with

    test: 9927 / 10000 correct (99.27 %)
"""

import argparse
import errno
import functools
import gzip
import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import shlex
import signal
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
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

SPLITS = ("train", "valid", "eval")
PIXELS = 28 * 28
PACKED = 100  # Times that JSON may be larger than its gzip file; MNIST's is 9 times.
LONGEST_LIST = 2**26  # Bytes of JSON.
QUEUE = 5  # Batches that wait between reading and training.
NETWORKS = ("cnn", "mlp", "linear")
OUTPUTS = {"cross_entropy": 10, "square_error": 1}  # Of the network, for each loss.
LEARNING_RATES = {  # Of each optimizer: for cnn and mlp, for linear.
    "adam": (0.01, 0.001),
    "momentum": (0.01, 0.0002),
    "adagrad": (0.02, 0.01),
    "sgd": (0.02, 0.001),
}
WARM_UP = 200  # Training steps.
SMOOTHING = 0.05  # Of the labels, for cross-entropy.
DECAY = 8  # Of the average; 0 weighs all steps alike.
DEFAULTS = {
    "network": "cnn",
    "loss": "cross_entropy",
    "optimizer": "adam",
    "lr": None,  # The optimizer's own.
    "batch_size": 100,
    "augment": True,
    "seed": 0,
    "limit": None,
}


class UserError(Exception):
    """A user's mistake or a broken file: shown as one line, without a traceback."""


# ------------------------------------------------------------------------------ data


def parse_numbers(text):
    """Return the numbers in text, a JSON list without its brackets, as float64 [N]."""
    values = np.asarray(json.loads(b"[%b]" % text))
    if values.dtype.kind not in "iuf":
        raise ValueError("it holds something that is not a number")
    if not np.isfinite(values).all():
        raise ValueError("it holds a number that is not finite")
    return values.astype(np.float64)


def parse_image(text, pixel_range):
    """Return the 784 grey values (bytes) of an image's JSON list, and pixel_range.

    pixel_range is the (lowest, highest) value that a pixel has in this file: (0, 255),
    (0, 1) or (-1, 1). It is None for the first image, which decides for all.
    """
    if pixel_range in (None, (0, 255)):
        try:
            grey = bytes(json.loads(b"[%b]" % text))  # Only whole numbers 0-255 pass.
            if len(grey) == PIXELS:
                return grey, (0, 255)
        except (TypeError, ValueError):
            pass  # Fractions, or a mistake; the lines below tell which.
    values = parse_numbers(text)
    if len(values) != PIXELS:
        raise ValueError(f"{len(values)} pixels instead of {PIXELS}")
    lowest, highest = values.min(), values.max()
    if pixel_range is None:
        pixel_range = (-1, 1) if lowest < 0 else (0, 1) if highest <= 1 else (0, 255)
    if lowest < pixel_range[0] or highest > pixel_range[1]:
        raise ValueError(
            f"pixels from {lowest:g} to {highest:g} in a file whose pixels "
            f"go from {pixel_range[0]} to {pixel_range[1]}"
        )
    if pixel_range == (0, 255) and (values % 1).any():
        raise ValueError("a pixel between 0 and 255 that is not a whole number")
    if pixel_range == (-1, 1):
        values = (values + 1) * 127.5
    elif pixel_range == (0, 1):
        values = values * 256  # The well-known file holds grey value / 256.
    return np.rint(values).clip(0, 255).astype(np.uint8).tobytes(), pixel_range


def parse_labels(text, images):
    """Return the labels of a set with that many images, from their JSON list: bytes."""
    labels = parse_numbers(text)
    if len(labels) != images:
        raise ValueError(f"{images} images but {len(labels)} labels")
    wrong = np.flatnonzero((labels < 0) | (labels > 9) | (labels % 1 != 0))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]:g} of image {wrong[0]} is no digit")
    return labels.astype(np.uint8).tobytes()


def innermost_lists(stream, limit):
    """Yield (brackets, text) for each list in a JSON stream that holds no other list.

    text is the list without its brackets; brackets is what stands between it and the
    list before, such as b"],[[["; the last text is None. Only one list at a time is
    in memory: as Python numbers, all 55 million pixels would take 700 MB. Raises
    ValueError behind limit bytes.
    """
    brackets = rest = b""
    while block := stream.read(2**20):
        limit -= len(block)
        if limit < 0:
            raise ValueError(f"it unpacks to over {PACKED} times its size")
        *pieces, rest = (rest + block).split(b"]")
        for piece in pieces:
            before, bracket, text = piece.rpartition(b"[")
            if bracket:
                yield brackets + before + b"[", text
                brackets = b"]"
            else:
                brackets += piece + b"]"
            if len(brackets) > 1000:
                raise ValueError("nothing but brackets")
        if len(rest) > LONGEST_LIST:
            raise ValueError("a list without an end")
    yield brackets + rest, None


def parse_splits(stream, limit):
    """Parse [[images, labels], [images, labels], [images, labels]]: machine validation.

    stream: the JSON text as a binary file, of limit bytes at most.
    Returns {split: (images uint8 [N, 28, 28], labels uint8 [N])}. Raises ValueError,
    which names set and image, unless there are three sets of two lists, as many
    images as labels, 784 pixels in each image, all in one range, and labels 0-9.
    """
    splits, images, pixel_range = {}, bytearray(), None
    expected = {b"[[[[": "image"}
    for brackets, text in innermost_lists(stream, limit):
        kind = expected.get(brackets.translate(None, b" \t\r\n"))
        if kind == "end":
            return splits
        if text is None:
            kind = None  # The file ends where a list would have to begin.
        place = f"set {len(splits) + 1} of 3, image {len(images) // PIXELS}"
        try:
            if kind == "image":
                grey, pixel_range = parse_image(text, pixel_range)
                images += grey
                expected = {b"],[": "image", b"]],[": "labels"}
            elif kind == "labels":
                place = f"set {len(splits) + 1} of 3"
                labels = parse_labels(text, len(images) // PIXELS)
                splits[SPLITS[len(splits)]] = (
                    np.frombuffer(images, np.uint8).reshape(-1, 28, 28),
                    np.frombuffer(labels, np.uint8),
                )
                images = bytearray()
                more = len(splits) < len(SPLITS)
                expected = {b"]],[[[": "image"} if more else {b"]]]": "end"}
            else:
                form = "[[images, labels], [images, labels], [images, labels]]"
                raise ValueError(f"the file is not of the form {form}")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


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


def read_cache(path, digest):
    """Return the splits that an earlier reading left in path, or None.

    digest: the sha256 of the data file; a cache made from other data is not used.
    """
    try:
        with np.load(path) as arrays:
            if str(arrays["sha256"]) != digest:
                return None
            splits = {
                name: (arrays[f"{name}_images"], arrays[f"{name}_labels"])
                for name in SPLITS
            }
        for images, labels in splits.values():
            if images.shape != (len(labels), 28, 28) or images.dtype != np.uint8:
                raise ValueError("not grey images with a label each")
            if labels.shape != (len(labels),) or labels.dtype != np.uint8:
                raise ValueError("not a label each")
            if labels.max(initial=0) > 9:
                raise ValueError("labels that are no digits")
    except FileNotFoundError:
        return None
    except Exception:  # Whatever is wrong with it, the data file can replace it.
        print(f"{path} is damaged and will be made anew", file=sys.stderr)
        return None
    return splits


@functools.lru_cache(maxsize=1)
def read_splits(path):
    """Read mnist.json.gz, or the cache beside it if that was made from the same bytes.

    Returns ({split: (images uint8 [N, 28, 28], labels uint8 [N])}, sha256 of the
    file). Grey values go from 0, paper, to 255, ink. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there or not a file; --data names the data")
    cache = path.with_name(path.name.split(".")[0] + ".npz")
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.sha256()
            while block := file.read(2**20):
                sha256.update(block)
        digest = sha256.hexdigest()
        splits = read_cache(cache, digest)
        if splits is None:
            print(f"parsing {path}; later runs will read {cache}", file=sys.stderr)
            # A file may be small and unpack to terabytes.
            limit = 2**24 + PACKED * path.stat().st_size
            with gzip.open(path) as stream:
                splits = parse_splits(stream, limit)
            arrays = {"sha256": np.array(digest)}
            for name, (images, labels) in splits.items():
                arrays |= {f"{name}_images": images, f"{name}_labels": labels}
            try:
                write_whole(cache, lambda file: np.savez(file, **arrays))
            except OSError:
                pass  # A folder that cannot be written costs time, nothing else.
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; get it again") from None
    except ValueError as error:
        raise UserError(f"{path}, {error}") from None
    return splits, digest


def augment(images, rng):
    """Return images, each rotated, scaled, sheared and shifted a little by chance.

    images: uint8 [N, 28, 28]; returns float32 [N, 28, 28] from 0 to 255. Each pixel is
    looked up in the original, between four of its pixels (bilinear interpolation).
    """
    count = len(images)
    chance = rng.uniform(-1, 1, (6, count))
    angle = np.deg2rad(10 * chance[0])
    scale_y, scale_x = 1 + 0.12 * chance[1:3]
    shear, shift = 0.15 * chance[3], 1.5 * chance[4:6]
    matrix = np.array(
        [
            [scale_y * np.cos(angle), shear - scale_x * np.sin(angle)],
            [scale_y * np.sin(angle), scale_x * np.cos(angle)],
        ],
        np.float32,
    ).transpose(2, 0, 1)  # [N, 2, 2]
    centre = 13.5
    grid = (np.indices((28, 28), np.float32) - centre).reshape(2, PIXELS)
    # A margin of paper is added: it is found wherever a pixel comes from outside.
    padded = np.zeros((count, 32, 32), np.float32)
    padded[:, 2:30, 2:30] = images
    places = matrix @ grid + (shift.T[:, :, None] + centre + 2).astype(np.float32)
    places = places.clip(0, 30.999)  # [N, 2, 784], rows and columns
    whole = places.astype(np.int32)
    down, right = (places - whole.astype(np.float32)).transpose(1, 0, 2)
    corner = whole[:, 0] * 32 + whole[:, 1] + 32 * 32 * np.arange(count)[:, None]
    pixels = padded.reshape(-1)
    top = pixels[corner] * (1 - right) + pixels[corner + 1] * right
    bottom = pixels[corner + 32] * (1 - right) + pixels[corner + 33] * right
    return (top * (1 - down) + bottom * down).reshape(-1, 28, 28)


def load_data(
    mode, path, batch_size, seed=0, limit=None, augmented=False, rank=0, processes=1
):
    """Return a function that gives an epoch's batches, and how many these are.

    mode: "train", "valid" or "eval"; only "train" is shuffled, anew in each epoch.
    Each batch is (images float32 [N, 1, 28, 28] in [-1, 1], labels float32 [N, 1]);
    N is batch_size, or what is left at the end. limit: take the first images only.
    Of several training processes, the one called rank gets its share of each batch.
    """
    if mode not in SPLITS:
        raise ValueError(f"mode must be one of {SPLITS}, not {mode!r}")
    images, labels = (array[:limit] for array in read_splits(path)[0][mode])
    print(f"{mode}: {len(images)} images, {len(labels)} labels")

    # A rest too small to give each process an image goes into the batch before it.
    starts = range(0, len(images) - processes + 1, batch_size)

    def batch(epoch, index, order):
        last = index + 1 == len(starts)
        end = len(order) if last else starts[index + 1]
        chosen = order[starts[index] + rank : end : processes]
        pixels = images[chosen]
        if augmented:
            # Chance hangs on the batch, not on who reads it or what came before.
            pixels = augment(pixels, np.random.default_rng([seed, epoch, index, rank]))
        return (
            pixels[:, None].astype(np.float32) / 127.5 - 1,
            labels[chosen, None].astype(np.float32),
        )

    def batches(epoch=0, worker=0, workers=1):
        order = np.arange(len(images), dtype=np.uint32)
        if mode == "train":
            # A model remembers best what it saw last, so that must not be one digit.
            np.random.default_rng([seed, epoch]).shuffle(order)
        return (
            batch(epoch, index, order) for index in range(worker, len(starts), workers)
        )

    return batches, len(starts)


class Reader(paddle.io.IterableDataset):
    """One epoch of load_data's batches, as paddle.io.DataLoader wants it."""

    def __init__(self, batches, epoch):
        self.batches, self.epoch = batches, epoch

    def __iter__(self):
        worker = paddle.io.get_worker_info()  # None in a thread of the main process.
        if worker is None:
            return self.batches(self.epoch)
        return self.batches(self.epoch, worker.id, worker.num_workers)


def read_ahead(batches, epoch, workers, device):
    """Return an iterable of an epoch's batches, as tensors, read while others train.

    workers: reading processes; 0 means a background thread. QUEUE batches wait ready.
    """
    return paddle.io.DataLoader(
        Reader(batches, epoch),
        batch_size=None,  # The generator makes whole batches.
        places=device,
        num_workers=workers,
        prefetch_factor=QUEUE,
        use_shared_memory=False,  # It may be missing or small; pipes are as fast here.
        worker_init_fn=leave_signals,
    )


def leave_signals(worker):
    """Let the main process alone answer Ctrl-C; it ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def show_reader(batches, workers, device):
    """Print where an epoch's batches land, and shapes of the first six; return all."""
    reader = f"{workers} process{'es' * (workers > 1)}" if workers else "a thread"
    print(f"batches land on {device}, read by {reader}; the first six:")
    batches = iter(batches)
    first = list(itertools.islice(batches, 6))
    for index, (images, labels) in enumerate(first):
        print(f"  {index} {list(images.shape)} {list(labels.shape)}")
    # Behind its end, paddle's iterator may not be asked for more.
    return itertools.chain(first, batches if len(first) == 6 else ())


def usable_workers(asked, useful):
    """Return how many reading processes to start; asked is None for "you choose"."""
    if asked is None:
        asked = int(useful and sys.platform == "linux" and (os.cpu_count() or 1) > 1)
    if asked:
        try:
            if sys.platform != "linux":
                raise OSError(f"paddle starts none on {sys.platform}")
            multiprocessing.Queue().close()
        except (OSError, ImportError) as error:
            print(f"no reading processes ({error}): a thread reads", file=sys.stderr)
            asked = 0
    return asked


# --------------------------------------------------------------------------- network


def build_network(name, outputs):
    """Return the network called name: "linear", "mlp" or "cnn".

    It takes float32 [N, 1, 28, 28] in [-1, 1] and gives float32 [N, outputs]: ten
    logits, or one number. The shapes and numbers of parameters beside the layers are
    for ten. Batch normalisation has a bias, so the layer before it needs none, and
    halving an image by stride costs a CPU less than pooling does.
    """

    def convolution(inputs, filters, size, padding):
        return nn.Conv2D(inputs, filters, size, 2, padding, bias_attr=False)

    if name == "linear":  # 7850 parameters; with one output 785, as in the article
        layers = [
            ("flatten", nn.Flatten()),  # [N, 784]
            ("fc", nn.Linear(784, outputs)),  # [N, 10], 7850
        ]
    elif name == "mlp":  # 235530 parameters
        layers = [
            ("flatten", nn.Flatten()),  # [N, 784]
            ("hidden1", nn.Linear(784, 256, bias_attr=False)),  # [N, 256], 200704
            ("norm1", nn.BatchNorm1D(256)),
            ("relu1", nn.ReLU()),
            ("hidden2", nn.Linear(256, 128, bias_attr=False)),  # [N, 128], 32768
            ("norm2", nn.BatchNorm1D(128)),
            ("relu2", nn.ReLU()),
            ("fc", nn.Linear(128, outputs)),  # [N, 10], 1290
        ]
    elif name == "cnn":  # 98938 parameters
        layers = [
            ("conv1", convolution(1, 16, 5, 2)),  # [N, 16, 14, 14], 400
            ("norm1", nn.BatchNorm2D(16)),
            ("relu1", nn.ReLU()),
            ("conv2", convolution(16, 32, 3, 0)),  # [N, 32, 6, 6], 4608
            ("norm2", nn.BatchNorm2D(32)),
            ("relu2", nn.ReLU()),
            ("conv3", convolution(32, 64, 3, 1)),  # [N, 64, 3, 3], 18432
            ("norm3", nn.BatchNorm2D(64)),
            ("relu3", nn.ReLU()),
            ("flatten", nn.Flatten()),  # [N, 576]
            ("hidden", nn.Linear(576, 128, bias_attr=False)),  # [N, 128], 73728
            ("norm4", nn.BatchNorm1D(128)),
            ("relu4", nn.ReLU()),
            ("fc", nn.Linear(128, outputs)),  # [N, 10], 1290
        ]
    return nn.Sequential(*layers)


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


def make_optimizer(name, lr, network):
    """Return the optimizer called name and its learning rate's schedule; print both.

    The article's sgd has a constant learning rate and no schedule. The others warm up
    and then stay: what a rate that falls does at the end, `average` does at any time.
    """
    parameters = network.parameters()
    if name == "sgd":
        print(f"optimizer: sgd, learning rate {lr:g}, constant")
        return paddle.optimizer.SGD(lr, parameters=parameters), None
    print(f"optimizer: {name}, learning rate {lr:g}, constant after {WARM_UP} batches")
    print("of warm-up; what is kept is the average of the network over all batches")
    schedule = paddle.optimizer.lr.LinearWarmup(lr, WARM_UP, lr / WARM_UP, lr)
    if name == "momentum":
        return paddle.optimizer.Momentum(schedule, 0.9, parameters), schedule
    if name == "adagrad":
        return paddle.optimizer.Adagrad(schedule, parameters=parameters), schedule
    return paddle.optimizer.Adam(schedule, parameters=parameters), schedule


@paddle.no_grad()
def average(averaged, network, step):
    """Move averaged, a second network, towards network after training step 1, 2, ...

    It becomes the mean over all steps, late ones weighing more: polynomial-decay
    averaging (Shamir and Zhang, 2013). That takes out the noise of the single steps as
    a falling learning rate does, but needs no end of training to fall towards.
    """
    for mean, now in zip(averaged.parameters(), network.parameters()):
        mean.add_((now - mean) * ((DECAY + 1) / (step + DECAY)))  # lerp_ leaks memory.


def compute_loss(output, labels):
    """Return the mean loss of a batch: output [N, 10] or [N, 1], labels [N, 1]."""
    if output.shape[1] == 1:
        return F.square_error_cost(output, labels).mean()
    # A little of the probability is asked for the other nine: no logit need grow on.
    classes = labels.squeeze(1).astype("int64")
    return F.cross_entropy(output, classes, label_smoothing=SMOOTHING)


def train(model, kept, optimizer, schedule, batches, steps, epoch, epochs):
    """Train for one epoch and return the mean loss; UserError if it is not finite.

    model: a network, or paddle.DataParallel of one. kept: the network that takes its
    average if there is a schedule. batches: iterable of (images float32
    [N, 1, 28, 28], labels float32 [N, 1]), steps of them.
    """
    model.train()
    total = count = 0
    title = f"epoch {epoch + 1}/{epochs}"
    with tqdm(batches, title, steps, leave=False, disable=None) as bar:
        for batch, (images, labels) in enumerate(bar):
            if stop.asked:
                raise KeyboardInterrupt
            loss = compute_loss(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            if schedule:
                schedule.step()
                average(kept, model, schedule.last_epoch)
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f"the loss is {value}: give a smaller --lr")
            if batch % 200 == 0:
                bar.write(f"epoch: {epoch}, batch: {batch}, loss is: {value:.4f}")
            total += value * len(labels)
            count += len(labels)
    return total / count


# -------------------------------------------------------------------------- resuming


def read_parameters(path):
    """Return (tensors {name: array}, facts) of a parameters file; raise UserError."""
    if not path.is_file():
        raise UserError(f"{path} is not there or not a file; train, or give --params")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
            if start[:1] == b"\x80" and start[8:] != b"{":
                raise UserError(
                    f"{path} is a pickle: refused, since loading one can run code; "
                    "train again to get a .safetensors file"
                )
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = dict(json.loads(file.metadata()["mnist"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise ValueError(f"tensor {name} is not finite")
        return tensors, facts
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no parameters file of ours ({reason})") from None


def fill(target, tensors, path):
    """Put tensors {name: array} into a network or an optimizer.

    Paddle only warns when they do not fit; this raises UserError, which names path.
    """
    own = target.state_dict()
    schedule = own.pop("LR_Scheduler", None)  # Of an optimizer; it keeps its own.
    for name in own.keys() ^ tensors.keys():
        what = "missing" if name in own else "one too many"
        raise UserError(f"{path}: tensor {name} is {what}")
    for name, tensor in tensors.items():
        shape = list(own[name].shape)
        if tensor.dtype != np.float32 or list(tensor.shape) != shape:
            raise UserError(f"{path}: tensor {name} is not float32 {shape}")
    target.set_state_dict(
        {**tensors, "LR_Scheduler": schedule} if schedule else tensors
    )


def resume_path(path):
    """Return where what resuming needs is kept: mnist.resume.safetensors for mnist."""
    return path.with_name(path.name.replace(".safetensors", ".resume.safetensors"))


def facts_of(path):
    """Return the facts in the parameters file, None without one that can be read."""
    try:
        return read_parameters(path)[1]
    except UserError:
        return None


def save_checkpoint(path, network, kept, optimizer, progress):
    """Write what going on from here needs, then the parameters file that is for use.

    Whoever is killed between the two leaves a checkpoint one epoch ahead of the
    parameters; progress["previous"] says which it knows as its own all the same.
    """
    state = optimizer.state_dict()
    progress["steps"] = state.pop("LR_Scheduler", {}).get("last_epoch")
    tensors = {f"optimizer.{name}": value for name, value in state.items()}
    for prefix, net in (("network", network), ("kept", kept)):
        for name, value in net.state_dict().items():
            tensors[f"{prefix}.{name}"] = value
    save_parameters(resume_path(path), tensors, progress)
    save_parameters(path, kept.state_dict(), progress["facts"])


def check_settings(saved, source):
    """Raise UserError unless saved are settings that could have been given as flags."""
    try:
        if saved.keys() != DEFAULTS.keys() or not isinstance(saved["augment"], bool):
            raise ValueError("some are missing or unknown")
        flags = [f"--{name}={saved[name]}" for name in ("network", "loss", "optimizer")]
        flags += [f"--lr={saved['lr']}", f"--batch-size={saved['batch_size']}"]
        flags += [f"--seed={saved['seed']}"]
        flags += [f"--limit={saved['limit']}"] * (saved["limit"] is not None)
        parse(flags)
    except (AttributeError, ValueError, UserError) as error:
        raise UserError(f"{source}: its settings make no sense: {error}") from None


def read_checkpoint(path):
    """Return (tensors, progress) of the training that wrote path; raise UserError."""
    source = resume_path(path)
    tensors, progress = read_parameters(source)
    if progress.keys() != {"settings", "facts", "previous", "steps"}:
        raise UserError(f"{source} is not what --resume needs; train without it")
    check_settings(progress["settings"], source)
    facts = progress["facts"]
    if not isinstance(facts, dict) or not isinstance(facts.get("epochs"), int):
        raise UserError(f"{source} does not say how many epochs it has had")
    if facts_of(path) not in (progress["facts"], progress["previous"]):
        raise UserError(f"{path} is from another training than {source}; train anew")
    return tensors, progress


def resume(path, tensors, progress, network, kept, optimizer, schedule):
    """Put the checkpoint's tensors back where save_checkpoint took them from."""
    source = resume_path(path)
    parts = {"network": {}, "kept": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, name = name.partition(".")
        if part not in parts:
            raise UserError(f"{source}: tensor {part}.{name} is one too many")
        parts[part][name] = tensor
    # An optimizer has no tensors before its first step: here is one of zero length.
    (0 * sum(parameter.sum() for parameter in network.parameters())).backward()
    optimizer.step()
    optimizer.clear_grad()
    fill(network, parts["network"], source)
    fill(kept, parts["kept"], source)
    fill(optimizer, parts["optimizer"], source)
    if schedule:
        if not isinstance(progress["steps"], int) or progress["steps"] < 0:
            raise UserError(f"{source}: {progress['steps']} is no number of steps")
        schedule.step(progress["steps"])


# ------------------------------------------------------------------------ evaluation


@paddle.no_grad()
def evaluate(network, batches):
    """Return (images, digits right, mean absolute error, clear) over the batches.

    A single output is a regression: the digit is its integer part, kept within 0-9 as
    in the article, and clear is None. Of ten logits the largest is the digit, there is
    no error (None), and clear is the probability that 96 % of the images reach or pass:
    predict.py calls a digit clear only from there on.
    """
    network.eval()
    outputs, labels = [], []
    for images, batch_labels in batches:
        outputs.append(network(paddle.to_tensor(images)))
        labels.append(batch_labels)
    output, labels = paddle.concat(outputs), np.concatenate(labels)  # [N, .], [N, 1]
    if output.shape[1] == 1:
        output = output.numpy()
        right = int((np.trunc(output).clip(0, 9) == labels).sum())
        return len(labels), right, float(np.abs(output - labels).mean()), None
    probabilities = F.softmax(output).numpy()
    right = int((probabilities.argmax(1) == labels[:, 0]).sum())
    return len(labels), right, None, float(np.percentile(probabilities.max(1), 4))


# ------------------------------------------------------------------------------ main


def settle(args, saved):
    """Return the settings: the flags given, else those saved, else the defaults."""
    settings = {}
    for name, default in DEFAULTS.items():
        given = getattr(args, name)
        settings[name] = saved.get(name, default) if given is None else given
        if name in saved and settings[name] != saved[name]:
            flag = "--" + name.replace("_", "-")
            raise UserError(
                f"{flag} {given} contradicts the training to resume: {saved[name]}"
            )
    if settings["lr"] is None:
        rates = LEARNING_RATES[settings["optimizer"]]
        settings["lr"] = rates[settings["network"] == "linear"]
    return settings


def end_epoch(path, epochs, steps, network, kept, optimizer, progress, digest, batches):
    """Validate and save after that many epochs and steps; return (images, right).

    progress: what save_checkpoint writes beside the tensors, updated here. digest: the
    data file's sha256. batches: of the validation set. Raises UserError, and leaves the
    files alone, if nothing was learnt.
    """
    for buffer, now in zip(kept.buffers(), network.buffers()):
        buffer.set_value(now)  # Batch normalisation's statistics.
    count, right, _, clear = evaluate(kept, batches)
    if steps > WARM_UP and count >= 100 and right < 0.12 * count:
        raise UserError(
            f"no better than guessing after {epochs} epochs, {path} is as it was: "
            "give a smaller --lr"
        )
    progress["previous"] = progress["facts"]
    progress["facts"] = {
        "network": progress["settings"]["network"],
        "loss": progress["settings"]["loss"],
        "pixels": [-1, 1],
        "epochs": epochs,
        "accuracy": right / count,
        "seed": progress["settings"]["seed"],
        "data": digest,
    }
    if clear is not None:
        progress["facts"]["clear"] = clear
    save_checkpoint(path, network, kept, optimizer, progress)
    return count, right


def run(args):
    """Load the data, train while showing how, validate, save, and test at the end."""
    rank, processes = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    if rank:
        sys.stdout = open(os.devnull, "w")  # One process speaks for all.
    path = parameters_path(args.params)
    device = choose_device(args.gpu)
    print(machine(device))
    if processes > 1:
        paddle.distributed.init_parallel_env()
    paddle.utils.unique_name.switch()  # The optimizer's state goes by names: from zero.
    tensors, progress = {}, {}
    if args.resume:
        tensors, progress = read_checkpoint(path)
    settings = settle(args, progress.get("settings", {}))
    batch_size, seed, limit = (settings[k] for k in ("batch_size", "seed", "limit"))

    print(f"loading mnist dataset from {args.data} ......")
    digest = read_splits(args.data)[1]
    print("mnist dataset load done")
    augmented = settings["augment"]
    train_batches, steps = load_data(
        "train", args.data, batch_size, seed, limit, augmented, rank, processes
    )
    if batch_size < processes or not steps:
        raise UserError(f"--batch-size or --limit: too small for {processes} processes")
    valid_batches, _ = load_data("valid", args.data, 1000, limit=limit)
    test_batches, _ = load_data("eval", args.data, 1000, limit=limit)

    paddle.seed(seed)
    network = build_network(settings["network"], OUTPUTS[settings["loss"]])
    size = sum(p.size for p in network.parameters() if p.trainable)
    print(f"network: {settings['network']}, {size} parameters, {settings['loss']}")
    name, lr = settings["optimizer"], settings["lr"]
    optimizer, schedule = make_optimizer(name, lr, network)
    kept = network
    if schedule:
        kept = build_network(settings["network"], OUTPUTS[settings["loss"]])
        kept.set_state_dict(network.state_dict())

    first = 0
    if args.resume:
        first = progress["facts"]["epochs"]
        if progress["facts"].get("data") != digest:
            raise UserError(f"{args.data} is not what {path} was trained on")
        resume(path, tensors, progress, network, kept, optimizer, schedule)
        if rank == 0:
            save_parameters(path, kept.state_dict(), progress["facts"])
        if first >= args.epochs:
            print(f"{path} has had its {first} epochs; a larger --epochs goes on")
            return
        print(f"going on after epoch {first}")
    else:
        progress = {"settings": settings, "facts": facts_of(path)}
    model = paddle.DataParallel(network) if processes > 1 else network
    workers = usable_workers(args.workers, augmented and processes == 1)
    for epoch in range(first, args.epochs):
        start = time.perf_counter()
        try:
            batches = read_ahead(train_batches, epoch, workers, device)
            if epoch == first:
                batches = show_reader(batches, workers, device)
            loss = train(
                model, kept, optimizer, schedule, batches, steps, epoch, args.epochs
            )
        except SystemError:  # What paddle raises, from wherever the training just was.
            raise UserError(
                "a reading process was killed; --workers 0 trains without one"
            ) from None
        seconds = time.perf_counter() - start
        if rank:
            continue  # One process validates and saves for all.
        count, right = end_epoch(
            path,
            epoch + 1,
            (epoch + 1) * steps,
            network,
            kept,
            optimizer,
            progress,
            digest,
            valid_batches(),
        )
        print(
            f"epoch {epoch + 1}/{args.epochs}: loss {loss:.4f}, "
            f"valid {right} / {count} ({100 * right / count:.2f} %), "
            f"{count - right} misses, {seconds:.1f} s",
            flush=True,
        )
    if rank:
        return
    count, right, error, _ = evaluate(kept, test_batches())
    print(f"test: {right} / {count} correct ({100 * right / count:.2f} %)", end="")
    print("" if error is None else f", mean absolute error {error:.3f}")
    print(f"saved: {path}")
    what = "work/example_0.png" if error is None else "--samples 100"
    named = "" if args.params == "mnist" else f" --params {shlex.quote(args.params)}"
    print(f"next: python predict.py {what}{named}")


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
    """Return the command line's flags; None stands for those to settle later."""
    parser = Parser(description="Train on batches that are read asynchronously.")
    add = parser.add_argument
    add("--gpu", action="store_true", help="train on GPU 0, or this process's GPU")
    add("--epochs", type=number(int, 1, 10**6), default=3, help="default: 3")
    add("--batch-size", type=number(int, 1, 10**4), help="default: 100")
    add("--lr", type=number(float, 1e-12, 1e12), help="default: the optimizer's own")
    add("--seed", type=number(int, 0, 2**32 - 1), help="default: 0")
    add("--limit", type=number(int, 1, 10**9), help="only the first N of each set")
    add("--data", default="work/mnist.json.gz", help="default: work/mnist.json.gz")
    add("--params", default="mnist", help="default: mnist, for mnist.safetensors")
    add("--network", choices=NETWORKS, help="default: cnn")
    add("--loss", choices=OUTPUTS, help="default: cross_entropy")
    add("--optimizer", choices=LEARNING_RATES, help="default: adam")
    add("--augment", action=argparse.BooleanOptionalAction, help="default: on")
    add("--workers", type=number(int, 0, 64), help="reading processes; 0: a thread")
    add(
        "--resume", action="store_true", help="go on, with the settings that were saved"
    )
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
