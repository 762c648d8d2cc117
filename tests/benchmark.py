"""Measure every figure of the README, row by row, and print it as Markdown.

    python tests/benchmark.py                  all rows; an hour and a half
    python tests/benchmark.py seeds lessons    some rows
    python tests/benchmark.py --list           what rows there are
    python tests/benchmark.py seeds --runs 3   fewer runs than the README's

Run it from a clone whose machine does nothing else. Each row compares within one run,
states times as median (lowest-highest), and starts with machine, versions and date.
`lessons` and `growth` also renew their pictures in work/pictures. Nothing here is a
test: the tests assert no times.
"""

import argparse
import contextlib
import csv
import datetime
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LESSONS = {  # Each is one change from the one before.
    "linear, square error, sgd: the article": "--network linear --loss square_error "
    "--optimizer sgd --lr 0.001 --no-augment",
    "→ cross-entropy": "--network linear --optimizer sgd --no-augment",
    "→ adam": "--network linear --no-augment",
    "→ mlp": "--network mlp --no-augment",
    "→ cnn": "--no-augment",
    "→ augmentation: the default": "",
    "→ 20 epochs": "--epochs 20",
}


def progress(text):
    """Show on stderr how far a long row has come."""
    print(f"  {text}", file=sys.stderr, flush=True)


# A process's peak memory includes that of the process which started it, up to then: a
# small one starts it here, and tells how it went.
LAUNCH = """
import json, os, resource, subprocess, sys, time
begin = time.perf_counter()
status = subprocess.call(sys.argv[2:])
took = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
with open(sys.argv[1], "w") as file:
    json.dump([status, took, peak], file)
"""


def run(*command, cwd, **environment):
    """Run a command; return (stdout, seconds, peak memory in MB); it must succeed."""
    command = [sys.executable, *map(str, command)]
    with tempfile.NamedTemporaryFile("r") as told:
        done = subprocess.run(
            [sys.executable, "-c", LAUNCH, told.name, *command],
            cwd=cwd,
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
        status, took, peak = json.loads(told.read())
    if status:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return done.stdout, took, peak


def load(script):
    """Import one of the scripts by its path."""
    spec = importlib.util.spec_from_file_location(script, ROOT / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spread(values, form="{:.1f}"):
    """Return "median (lowest-highest)"."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{form.format(middle)} ({form.format(low)}–{form.format(high)})"


def around(values, form="{:.2f}"):
    """Return "mean (lowest-highest)"."""
    low, middle, high = min(values), statistics.mean(values), max(values)
    return f"{form.format(middle)} ({form.format(low)}–{form.format(high)})"


def table(*rows):
    """Print rows, the first of them the head, as a Markdown table."""
    for number, row in enumerate(rows):
        print("| " + " | ".join(map(str, row)) + " |")
        if number == 0:
            print("|" + "---|" * len(row))
    print(flush=True)


def accuracy(out):
    """Return the test accuracy in percent that a script printed."""
    return float(re.search(r"^test: .*\((\d+\.\d+) %\)", out, re.M)[1])


def epoch_seconds(out):
    """Return the seconds of each epoch that a script printed."""
    return [float(s) for s in re.findall(r"^epoch \d+/\d+: .* ([\d.]+) s$", out, re.M)]


# ------------------------------------------------------------------------------ rows


def seeds(home, runs=20):
    """The default training for 20 seeds: accuracy, and time from command to file."""
    found, seconds = [], []
    for seed in range(runs):
        out, took, _ = run("train_async.py", "--seed", seed, cwd=home)
        found.append(accuracy(out))
        seconds.append(took)
        progress(f"seed {seed}: {found[-1]} % in {took:.1f} s")
    table(
        ("default training", "mean", "lowest", "highest", "seconds in all"),
        (
            f"{runs} seeds",
            f"{statistics.mean(found):.3f} %",
            f"{min(found)} %",
            f"{max(found)} %",
            spread(seconds),
        ),
    )
    print("Each seed's: " + " ".join(f"{value:.2f}" for value in found) + "\n")


def lessons(home, runs=5):
    """The table of lessons for 5 seeds, and the learning curves as a picture."""
    rows, curves = [("change", "test accuracy, %", "training, s")], {}
    for name, flags in LESSONS.items():
        found, seconds, curve = [], [], []
        for seed in range(runs):
            out, _, _ = run("train_async.py", *flags.split(), "--seed", seed, cwd=home)
            found.append(accuracy(out))
            seconds.append(sum(epoch_seconds(out)))
            valid = re.findall(r"^epoch .*valid .*\((\d+\.\d+) %\)", out, re.M)
            curve.append([float(value) for value in valid])
            progress(f"{name}, seed {seed}: {found[-1]} %")
        curves[name] = np.array(curve)
        rows.append((name, around(found), spread(seconds)))
    table(*rows)
    draw_curves(curves, ROOT / "work" / "pictures" / "lessons.png")


def draw_curves(curves, path):
    """Draw misses on the validation set over epochs: {name: percent [runs, epochs]}."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    styles = ["o-", "s-", "^-", "D-", "v-", "P-", "-"]
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(curves)))
    for (name, values), style, shade in zip(curves.items(), styles, shades):
        misses = 100 - values
        epochs = np.arange(1, misses.shape[1] + 1)
        axes.plot(epochs, misses.mean(0), style, color=shade, label=name)
        axes.fill_between(epochs, misses.min(0), misses.max(0), color=shade, alpha=0.2)
    axes.set(xscale="log", yscale="log", xlim=(0.95, 21))
    axes.set(xlabel="epoch", ylabel="misses on the validation set, %")
    axes.set_xticks([1, 2, 3, 5, 10, 20], [1, 2, 3, 5, 10, 20])
    axes.set_yticks([0.5, 1, 2, 5, 10, 20, 50, 80], [0.5, 1, 2, 5, 10, 20, 50, 80])
    axes.minorticks_off()
    axes.grid(color="0.9")
    axes.legend(loc="center right", fontsize=9)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def regressions(home, runs=5):
    """What the article's straight line reaches, as both scripts train it, 5 seeds."""
    head = ("script", "loss", "mean absolute error", "right of 10,000", "seconds")
    rows = [head]
    for script in ("train_builtin.py", "train_json.py"):
        losses, errors, right, seconds = [], [], [], []
        for seed in range(runs):
            out, took, _ = run(script, "--seed", seed, cwd=home)
            losses.append(
                float(re.findall(r"^epoch \d+/\d+: loss ([\d.]+)", out, re.M)[-1])
            )
            errors.append(float(re.search(r"absolute error ([\d.]+)", out)[1]))
            right.append(int(re.search(r"^test: (\d+) /", out, re.M)[1]))
            seconds.append(took)
            progress(f"{script}, seed {seed}: {right[-1]} right")
        rows.append(
            (
                f"`{script}`",
                around(losses),
                around(errors),
                around(right, "{:.0f}"),
                spread(seconds),
            )
        )
    table(*rows)


def start(home, runs=5):
    """From command to parameters file: the first run in a clone, and later ones."""
    first, later = [], []
    for number in range(runs):
        (home / "work" / "mnist.npz").unlink(missing_ok=True)
        first.append(run("train_async.py", cwd=home)[1])
        later.append(run("train_async.py", cwd=home)[1])
        progress(f"run {number}: {first[-1]:.1f} s, then {later[-1]:.1f} s")
    head = ("`train_async.py`", "seconds from command to parameters file")
    table(head, ("first run", spread(first)), ("later runs", spread(later)))


def augmentation(home, runs=5):
    """What augmentation costs: epochs with and without it, in turn."""
    found = {"--augment": [], "--no-augment": []}
    for number in range(runs):
        for flag, seconds in found.items():
            out, _, _ = run("train_async.py", "--epochs", 2, flag, cwd=home)
            seconds += epoch_seconds(out)
        progress(f"run {number}")
    ratio = statistics.median(found["--augment"]) / statistics.median(
        found["--no-augment"]
    )
    table(
        ("an epoch", "seconds"),
        ("with augmentation", spread(found["--augment"], "{:.2f}")),
        ("without", spread(found["--no-augment"], "{:.2f}")),
        ("ratio", f"{ratio:.3f}"),
    )


def asynchronous(home, runs=3):
    """When reading beside training pays: a reader slowed on purpose, 100 batches."""
    script = load("train_async")
    network, kept = (script.build_network("cnn", 10) for _ in range(2))
    with contextlib.redirect_stdout(io.StringIO()):
        data = home / "work" / "mnist.json.gz"
        batches, _ = script.load_data("train", data, 100, limit=10000)
        optimizer, schedule = script.make_optimizer("adam", 0.001, network)

    def slowed(pause):
        def generate(epoch=0, worker=0, workers=1):
            for batch in batches(epoch, worker, workers):
                time.sleep(pause)
                yield batch

        return generate

    def measure(source):
        begin = time.perf_counter()
        tensors = (
            (script.paddle.to_tensor(i), script.paddle.to_tensor(n)) for i, n in source
        )
        with contextlib.redirect_stdout(io.StringIO()):
            script.train(network, kept, optimizer, schedule, tensors, 100, 0, 1)
        return time.perf_counter() - begin

    def read_only(source):
        begin = time.perf_counter()
        for _ in source:
            pass
        return time.perf_counter() - begin

    measure(batches(0))  # The first steps of a process are slower.
    step = statistics.median(measure(batches(0)) for _ in range(runs))
    rows = [
        ("a batch takes", "reading alone, s", "training alone, s")
        + ("one after the other, s", "beside, by a thread, s", "by a process, s")
        + ("best / longer of the two",)
    ]
    for factor in (0, 0.25, 0.5, 1, 2):
        pause = factor * step / 100
        alone = statistics.median(read_only(slowed(pause)(0)) for _ in range(runs))
        times = [statistics.median(measure(slowed(pause)(0)) for _ in range(runs))]
        for workers in (0, 1):
            times.append(
                statistics.median(
                    measure(script.read_ahead(slowed(pause), 0, workers, "cpu"))
                    for _ in range(runs)
                )
            )
        overhead = min(times[1:]) / max(alone, step)
        shown = [f"{value:.2f}" for value in (alone, step, *times, overhead)]
        rows.append((f"{factor} steps longer" if factor else "nothing extra", *shown))
        progress(f"pause of {factor} steps")
    table(*rows)


def devices(home, runs=3):
    """One process and two (gloo, CPU) at --batch-size 512 --no-augment, in turn."""
    flags = ["train_async.py", "--batch-size", 512, "--no-augment", "--epochs", 2]
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", 2]
    launch += ["--backend", "gloo"]
    one, two, exact = [], [], []
    for number in range(runs):
        out, _, _ = run(*flags, cwd=home)
        one += epoch_seconds(out)
        out_two, _, _ = run(*launch, *flags, cwd=home)
        two += epoch_seconds(out_two)
        exact.append((accuracy(out), accuracy(out_two)))
        progress(f"run {number}: {one[-1]} s, {two[-1]} s")
    rates = [50000 / statistics.median(seconds) for seconds in (one, two)]
    table(
        ("processes", "epoch, s", "images per second", "test accuracy, %"),
        (1, spread(one, "{:.2f}"), f"{rates[0]:.0f}", around([a for a, _ in exact])),
        (2, spread(two, "{:.2f}"), f"{rates[1]:.0f}", around([b for _, b in exact])),
        ("ratio", "", f"{rates[1] / rates[0]:.2f}", ""),
    )


def saving(home, runs=20):
    """What saving parameters and checkpoint costs of an epoch."""
    script = load("train_async")
    network, kept = (script.build_network("cnn", 10) for _ in range(2))
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer, _ = script.make_optimizer("adam", 0.001, network)
    (0 * sum(parameter.sum() for parameter in network.parameters())).backward()
    optimizer.step()
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        script.save_checkpoint(
            home / "s.safetensors", network, kept, optimizer, {"facts": {}}
        )
        seconds.append(time.perf_counter() - begin)
    epoch = statistics.median(epoch_seconds(run("train_async.py", cwd=home)[0]))
    share = 100 * statistics.median(seconds) / epoch
    table(
        ("saving, ms", "an epoch, s", "share, %"),
        (spread([1000 * s for s in seconds]), f"{epoch:.2f}", f"{share:.2f}"),
    )


def reading(home, runs=3):
    """Reading mnist.json.gz: json.load, the first reading, and later ones."""
    data = home / "work" / "mnist.json.gz"
    library = "import gzip, json, time; begin = time.perf_counter();"
    library += "json.load(gzip.open('work/mnist.json.gz'));"
    library += "print(time.perf_counter() - begin)"
    bare = "import train_json"
    ours = "import time, resource, train_json; begin = time.perf_counter();"
    ours += "train_json.read_splits('work/mnist.json.gz');"
    ours += "print(time.perf_counter() - begin)"
    found = {"json.load": [], "first reading": [], "later readings": []}
    peaks = {name: [] for name in found} | {"paddle": []}
    for _ in range(runs):
        out, _, peak = run("-c", library, cwd=home)
        found["json.load"].append(float(out))
        peaks["json.load"].append(peak)
        peaks["paddle"].append(run("-c", bare, cwd=home)[2])
        (home / "work" / "mnist.npz").unlink(missing_ok=True)
        for name in ("first reading", "later readings"):
            out, _, peak = run("-c", ours, cwd=home)
            found[name].append(float(out))
            peaks[name].append(peak - peaks["paddle"][-1])
        progress(f"{data.name}: {found['first reading'][-1]:.1f} s")
    beside = statistics.median(found["json.load"])
    rows = [("reading mnist.json.gz", "s", "times json.load's", "peak memory, MB")]
    for name, seconds in found.items():
        ratio = f"{statistics.median(seconds) / beside:.3f}"
        peak = spread(peaks[name], "{:.0f}")
        rows.append((name, spread(seconds, "{:.2f}"), ratio, peak))
    print("Peak memory of json.load alone; of ours, over that of `import paddle`.\n")
    table(*rows)


ARTICLE = '''
"""Training as the article did it, in lists, written anew on today's paddle."""
import gzip, json, random, sys, time
import numpy as np, paddle

def read_json():
    return json.load(gzip.open("work/mnist.json.gz"))

def json_batches(images, labels):
    order = list(range(len(images)))
    random.shuffle(order)
    some_images, some_labels = [], []
    for index in order:
        some_images.append(np.reshape(images[index], [1, 28, 28]).astype("float32"))
        some_labels.append(np.reshape(labels[index], [1]).astype("float32"))
        if len(some_images) == 100:
            yield np.array(some_images), np.array(some_labels)
            some_images, some_labels = [], []

def builtin_batches(reader):
    for data in reader():
        yield (np.array([item[0] for item in data]).astype("float32"),
               np.array([item[1] for item in data]).astype("float32")[:, None])

def train(batches):
    for images, labels in batches:
        output = network(paddle.to_tensor(images))
        loss = paddle.nn.functional.square_error_cost(output, paddle.to_tensor(labels))
        loss.mean().backward()
        optimizer.step()
        optimizer.clear_grad()

network = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(784, 1))
optimizer = paddle.optimizer.SGD(0.001, parameters=network.parameters())
begin = time.perf_counter()
if sys.argv[1] == "json":
    (images, labels), _, _ = read_json()
    make = lambda: json_batches(images, labels)
else:
    reader = paddle.batch(paddle.dataset.mnist.reader_creator(
        "work/train-images-idx3-ubyte.gz", "work/train-labels-idx1-ubyte.gz", 100), 16)
    make = lambda: builtin_batches(reader)
print("read", time.perf_counter() - begin)
for _ in range(2):
    begin = time.perf_counter()
    train(make())
    print("epoch", time.perf_counter() - begin)
'''


def article(home, runs=3):
    """The article's way, in lists and an image at a time, beside ours."""
    (home / "article.py").write_text(ARTICLE)
    reading = "import time, train_json; begin = time.perf_counter();"
    reading += "train_json.read_splits('work/mnist.json.gz');"
    reading += "print('read', time.perf_counter() - begin)"
    commands = {
        "reading the JSON": (
            ["article.py", "json"],
            ["-c", reading],
            r"^read ([\d.]+)",
        ),
        "an epoch from JSON": (["article.py", "json"], ["train_json.py"], None),
        "an epoch from the built-in reader": (
            ["article.py", "builtin"],
            ["train_builtin.py"],
            None,
        ),
    }
    run("-c", reading, cwd=home)
    rows = [("", "the article's way, s", "ours, s", "times as fast", "peak memory, MB")]
    for name, (theirs, ours, pattern) in commands.items():
        old, new, old_peaks, new_peaks = [], [], [], []
        for _ in range(runs):
            out, _, peak = run(*theirs, cwd=home)
            old += [
                float(s) for s in re.findall(pattern or r"^epoch ([\d.]+)", out, re.M)
            ]
            old_peaks.append(peak)
            extra = [] if pattern else ["--epochs", 3]
            out, took, peak = run(*ours, *extra, cwd=home)
            new += (
                [float(s) for s in re.findall(pattern, out, re.M)]
                if pattern
                else epoch_seconds(out)
            )
            new_peaks.append(peak)
        ratio = statistics.median(old) / max(statistics.median(new), 0.001)
        peaks = (
            f"{statistics.median(old_peaks):.0f} → {statistics.median(new_peaks):.0f}"
        )
        rows.append(
            (name, spread(old, "{:.2f}"), spread(new, "{:.2f}"), f"{ratio:.1f}", peaks)
        )
        progress(name)
    table(*rows)


FIRST_99 = '''
"""Seconds spent in training until the test set first reads 99 %."""
import sys, time, contextlib, io
import train_async as script
seed = int(sys.argv[1])
paddle = script.paddle
with contextlib.redirect_stdout(io.StringIO()):
    data = "work/mnist.json.gz"
    batches, steps = script.load_data("train", data, 100, seed, None, True)
    tests, _ = script.load_data("eval", data, 1000)
    paddle.seed(seed)
    network, kept = (script.build_network("cnn", 10) for _ in range(2))
    kept.set_state_dict(network.state_dict())
    lr = script.LEARNING_RATES["adam"][0]
    optimizer, schedule = script.make_optimizer("adam", lr, network)
spent = 0
for epoch in range(4):
    source, begin = script.read_ahead(batches, epoch, 1, "cpu"), time.perf_counter()
    for number, (images, labels) in enumerate(source):
        loss = script.compute_loss(network(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        schedule.step()
        script.average(kept, network, schedule.last_epoch)
        loss.item()
        if (epoch, number) > (0, 350) and number % 25 == 24:
            spent += time.perf_counter() - begin
            for buffer, now in zip(kept.buffers(), network.buffers()):
                buffer.set_value(now)
            count, right, _, _ = script.evaluate(kept, tests())
            network.train()
            if right >= 9900:
                print(spent, epoch * steps + number + 1)
                sys.exit()
            begin = time.perf_counter()
    spent += time.perf_counter() - begin
'''


def first99(home, runs=10):
    """Training seconds until the test set first reads 99 %, 10 seeds."""
    (home / "first99.py").write_text(FIRST_99)
    found, batches = [], []
    for seed in range(runs):
        seconds, number = run("first99.py", seed, cwd=home)[0].split()
        found.append(float(seconds))
        batches.append(int(number))
        progress(f"seed {seed}: {found[-1]:.1f} s, {number} batches")
    table(
        ("until the test set first reads 99 %", "training, s", "batches of 100"),
        (f"`train_async.py`, {runs} seeds", spread(found), spread(batches, "{:.0f}")),
    )


TORCH = '''
"""A network of the shape of PyTorch's MNIST example, trained as that is."""
import sys, time
import torch, torch.nn as nn
from common import batches
torch.manual_seed(int(sys.argv[1]))
network = nn.Sequential(
    nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
    nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5),
    nn.Linear(128, 10))
optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
spent = 0
for epoch in range(14):
    network.train()
    begin = time.perf_counter()
    for images, labels in batches(64, epoch):
        optimizer.zero_grad()
        output = network(torch.from_numpy(images))
        nn.functional.cross_entropy(output, torch.from_numpy(labels)).backward()
        optimizer.step()
    spent += time.perf_counter() - begin
    schedule.step()
    network.eval()
    right = 0
    with torch.no_grad():
        for images, labels in batches(1000, None):
            output = network(torch.from_numpy(images)).numpy()
            right += int((output.argmax(1) == labels).sum())
    print("epoch", epoch + 1, right, spent, file=sys.stderr, flush=True)
    if right >= 9900:
        break
print(spent, epoch + 1, right, torch.__version__)
'''

LENET = '''
"""The LeNet of PaddlePaddle's MNIST tutorial, with its optimizer and batch size."""
import sys, time
import paddle
from common import batches
paddle.seed(int(sys.argv[1]))
network = paddle.vision.models.LeNet()
optimizer = paddle.optimizer.Adam(0.001, parameters=network.parameters())
spent = 0
for epoch in range(10):
    network.train()
    begin = time.perf_counter()
    for images, labels in batches(64, epoch):
        output = network(paddle.to_tensor(images))
        paddle.nn.functional.cross_entropy(output, paddle.to_tensor(labels)).backward()
        optimizer.step()
        optimizer.clear_grad()
    spent += time.perf_counter() - begin
    network.eval()
    right = 0
    with paddle.no_grad():
        for images, labels in batches(1000, None):
            output = network(paddle.to_tensor(images)).numpy()
            right += int((output.argmax(1) == labels).sum())
    print("epoch", epoch + 1, right, spent, file=sys.stderr, flush=True)
    if right >= 9900:
        break
print(spent, epoch + 1, right, paddle.__version__)
'''

KERAS = '''
"""A network of the shape of Keras's convnet example, trained as that is."""
import sys, time
import numpy as np
import keras
from keras import layers
from common import batches, whole
keras.utils.set_random_seed(int(sys.argv[1]))
network = keras.Sequential([
    keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"),
    layers.MaxPooling2D(2), layers.Conv2D(64, 3, activation="relu"),
    layers.MaxPooling2D(2), layers.Flatten(), layers.Dropout(0.5),
    layers.Dense(10, activation="softmax")])
network.compile(
    optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
images, labels = whole("train")
test_images, test_labels = whole("eval")
spent = 0
for epoch in range(15):
    begin = time.perf_counter()
    network.fit(images, labels, batch_size=128, epochs=1, verbose=0)
    spent += time.perf_counter() - begin
    right = network.predict(test_images, batch_size=1000, verbose=0).argmax(1)
    right = int((right == test_labels).sum())
    print("epoch", epoch + 1, right, spent, file=sys.stderr, flush=True)
    if right >= 9900:
        break
print(spent, epoch + 1, right, keras.__version__ + " on " + keras.config.backend())
'''

COMMON = '''
"""The same data for other frameworks: float32 [N, 1, 28, 28] and int64 [N]."""
import numpy as np
with np.load("work/mnist.npz") as arrays:
    splits = {name: arrays[name] for name in arrays.files}

def whole(mode):
    images = splits[f"{mode}_images"][..., None].astype(np.float32) / 255
    return images, splits[f"{mode}_labels"].astype(np.int64)

def batches(size, epoch):
    mode = "eval" if epoch is None else "train"
    images, labels = splits[f"{mode}_images"], splits[f"{mode}_labels"].astype(np.int64)
    order = np.arange(len(labels))
    if epoch is not None:
        np.random.default_rng(epoch).shuffle(order)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        pixels = images[chosen, None].astype(np.float32) / 255
        yield (pixels - 0.1307) / 0.3081, labels[chosen]
'''


def others(home, runs=3):
    """Training until 99 %: ours, and other frameworks' examples, where installed."""
    (home / "common.py").write_text(COMMON)
    backend = "tensorflow" if importlib.util.find_spec("tensorflow") else "torch"
    sources = {"torch": TORCH, "keras": KERAS, "paddle": LENET}
    found = {"train_async.py": []}
    for seed in range(runs):
        epochs, right = 0, 0
        while right < 9900 and epochs < 20:
            epochs += 1
            out, _, _ = run(
                "train_async.py", "--epochs", epochs, "--seed", seed, cwd=home
            )
            right = round(100 * accuracy(out))
        found["train_async.py"].append((sum(epoch_seconds(out)), epochs, right))
        progress(f"train_async.py, seed {seed}: {found['train_async.py'][-1]}")
        for name, source in sources.items():
            if importlib.util.find_spec(name) is None:
                progress(f"{name} is not installed")
                continue
            (home / f"in_{name}.py").write_text(source)
            out, _, _ = run(f"in_{name}.py", seed, cwd=home, KERAS_BACKEND=backend)
            spent, epochs, right, version = out.split(maxsplit=3)
            title = f"{name} {version.strip()}'s example"
            found.setdefault(title, []).append((float(spent), int(epochs), int(right)))
            progress(f"{title}, seed {seed}: {found[title][-1]}")
    ours = statistics.median(seconds for seconds, _, _ in found["train_async.py"])
    rows = [("", "training, s", "times ours", "epochs", "right of 10,000")]
    for title, values in found.items():
        seconds, epochs, right = zip(*values)
        reached = "" if min(right) >= 9900 else "> "
        ratio = f"{reached}{statistics.median(seconds) / ours:.1f}"
        rows.append(
            (title, spread(seconds), ratio)
            + (spread(epochs, "{:.0f}"), spread(right, "{:.0f}"))
        )
    print("Looked at after each epoch; at most 14 (torch), 15 (keras), 10 (paddle).\n")
    table(*rows)


def startup(home, runs=7):
    """What starting costs over the imports: predict.py and show_batch.py."""
    run("train_async.py", "--epochs", 1, "--limit", 5000, cwd=home)
    one = ["predict.py", "work/example_0.png"]
    paddle_alone = ["-c", "import paddle"]
    imports = ["-c", "import paddle, matplotlib.pyplot"]
    show = ["show_batch.py", "--save", "shown.png"]
    found = {"paddle": [], "one": [], "imports": [], "show": []}
    for _ in range(runs):
        for name, command in zip(found, (paddle_alone, one, imports, show)):
            found[name].append(run(*command, cwd=home)[1])
    middle = {name: statistics.median(values) for name, values in found.items()}
    many = home / "many"
    many.mkdir(exist_ok=True)
    for number in range(700):
        source = home / "work" / f"example_{number % 10}.png"
        shutil.copy(source, many / f"{number:03d}.png")
    all_of_them = [run("predict.py", many, cwd=home)[1] for _ in range(3)]
    each = 1000 * (statistics.median(all_of_them) - middle["paddle"]) / 700
    table(
        ("", "s", "over the imports, s"),
        ("`import paddle`", spread(found["paddle"], "{:.2f}"), ""),
        (
            "`predict.py` and one picture",
            spread(found["one"], "{:.2f}"),
            f"{middle['one'] - middle['paddle']:.2f}",
        ),
        ("700 pictures", spread(all_of_them, "{:.2f}"), f"{each:.1f} ms each"),
        ("`import paddle, matplotlib`", spread(found["imports"], "{:.2f}"), ""),
        (
            "`show_batch.py`",
            spread(found["show"], "{:.2f}"),
            f"{middle['show'] - middle['imports']:.2f}",
        ),
    )


def growth(home, runs=3):
    """Training time and peak memory from 10,000 to 1,000,000 images (mlp, 1 epoch)."""
    script = load("train_async")
    splits, _ = script.read_splits(str(home / "work" / "mnist.json.gz"))
    rows, points = [("images", "epoch, s", "µs an image", "peak memory, MB")], []
    for count in (10_000, 30_000, 100_000, 300_000, 1_000_000):
        place = home / f"growth{count}"
        (place / "work").mkdir(parents=True)
        # The data file need not hold them: the cache does, under the file's sha256.
        data = place / "work" / "mnist.json.gz"
        data.write_bytes(b"stands for repeated images")
        digest = script.hashlib.sha256(data.read_bytes()).hexdigest()
        arrays = {"sha256": np.array(digest)}
        for name, (images, labels) in splits.items():
            if name == "train":
                times = -(-count // len(labels))
                images = np.tile(images, (times, 1, 1))[:count]
                labels = np.tile(labels, times)[:count]
            arrays |= {f"{name}_images": images, f"{name}_labels": labels}
        np.savez(place / "work" / "mnist.npz", **arrays)
        flags = ["--network", "mlp", "--no-augment", "--epochs", 1]
        seconds, peaks = [], []
        for _ in range(runs):
            out, _, peak = run(ROOT / "train_async.py", *flags, cwd=place)
            seconds += epoch_seconds(out)
            peaks.append(peak)
        points.append((count, statistics.median(seconds), statistics.median(peaks)))
        each = f"{1e6 * points[-1][1] / count:.0f}"
        rows.append(
            (f"{count:,}", spread(seconds), each, spread(peaks, "{:.0f}")),
        )
        shutil.rmtree(place)
        progress(f"{count:,} images: {points[-1][1]} s, {points[-1][2]:.0f} MB")
    table(*rows)
    (fewest, _, lowest), (most, _, highest) = points[0], points[-1]
    slope = 2**20 * (highest - lowest) / (most - fewest)
    print(f"From the first row to the last: {slope:.0f} bytes an image.\n")
    draw_growth(points, ROOT / "work" / "pictures" / "growth.png")


def draw_growth(points, path):
    """Draw (images, seconds, MB) as two straight lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts, seconds, peaks = np.array(points, float).T
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for ax, values, label in zip(axes, (seconds, peaks), ("an epoch, s", "peak, MB")):
        ax.plot(counts / 1e6, values, "o-", color="black")
        ax.set(xlabel="million images", ylabel=label, ylim=(0, None), xlim=(0, None))
        ax.grid(color="0.9")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


AS_AMD = r"""
/* Makes an Intel processor call itself AMD in this process (Linux, LD_PRELOAD): the
   kernel lets CPUID fault, and the answer to leaf 0 gets the other maker's name. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
enum { ARCH_CPUID_SET = 0x1012 };

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned a, b, c, d, leaf = r[REG_RAX];
    if (memcmp((void *)r[REG_RIP], "\x0f\xa2", 2)) abort();  /* A real fault. */
    syscall(SYS_arch_prctl, ARCH_CPUID_SET, 1);
    __cpuid_count(leaf, r[REG_RCX], a, b, c, d);
    syscall(SYS_arch_prctl, ARCH_CPUID_SET, 0);
    if (leaf == 0) memcpy(&b, "Auth", 4), memcpy(&d, "enti", 4), memcpy(&c, "cAMD", 4);
    r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d, r[REG_RIP] += 2;
}

typedef int setter(int, const struct sigaction *, struct sigaction *);
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
    if (number == SIGSEGV && new && new->sa_sigaction != answer) return 0;
    return ((setter *)dlsym(RTLD_NEXT, "sigaction"))(number, new, old);
}

__attribute__((constructor)) static void start(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    if (syscall(SYS_arch_prctl, ARCH_CPUID_SET, 0)) abort();
}
"""


def amd(home, runs=3):
    """What MKL_DEBUG_CPU_TYPE=5 is worth on AMD, or on an Intel that says it is AMD."""
    as_amd = {}
    if "AMD" not in processor():
        (home / "as_amd.c").write_text(AS_AMD)
        library = home / "as_amd.so"
        compiler = ["cc", "-O1", "-shared", "-fPIC", "as_amd.c", "-o", library, "-ldl"]
        try:
            subprocess.run(compiler, cwd=home, check=True, capture_output=True)
            as_amd = {"LD_PRELOAD": str(library)}
            run("-c", "pass", cwd=home, **as_amd)
        except (OSError, subprocess.CalledProcessError, SystemExit) as error:
            print(f"No AMD processor, and this one cannot pose as one: {error}\n")
            return
        print("An Intel processor that calls itself AMD, measured in that disguise.\n")
    ways = {"0": "switched off", "5": "as the scripts set it"}
    product = "import time, paddle; a = paddle.rand([2048, 2048]); (a @ a).numpy();"
    product += "begin = time.perf_counter(); (a @ a).numpy();"
    product += "print(time.perf_counter() - begin)"
    products, epochs, first = ({way: [] for way in ways} for _ in range(3))
    (home / "first99.py").write_text(FIRST_99)
    for number in range(runs):
        for way in ways:
            changes = {**as_amd, "MKL_DEBUG_CPU_TYPE": way}
            products[way].append(float(run("-c", product, cwd=home, **changes)[0]))
            out, _, _ = run("train_async.py", "--epochs", 2, cwd=home, **changes)
            epochs[way] += epoch_seconds(out)
            out, _, _ = run("first99.py", number, cwd=home, **changes)
            first[way].append(float(out.split()[0]))
        progress(f"run {number}: {epochs['0'][-1]} s, {epochs['5'][-1]} s")
    rows = [("", *ways.values(), "factor")]
    for name, found in (
        ("a product of two 2048x2048 matrices, s", products),
        ("an epoch of `train_async.py`, s", epochs),
        ("until the test set first reads 99 %, s", first),
    ):
        slow, fast = (statistics.median(found[way]) for way in ways)
        shown = [spread(found[way], "{:.2f}") for way in ways]
        rows.append((name, *shown, f"{slow / fast:.2f}"))
    table(*rows)


def pictures(home, runs=3, folder=None):
    """Real pictures: a folder of yours with index.csv (file, label, kind)."""
    if folder is None:
        print("`pictures` needs --pictures FOLDER, with an index.csv in it.\n")
        return
    with open(folder / "index.csv", encoding="utf-8") as file:
        index = list(csv.DictReader(file))
    kinds = sorted({row["kind"] for row in index})
    also = ("all", "called clear", "right of these", "all, only resized")
    found = {kind: [] for kind in (*kinds, *also)}
    for seed in range(runs):
        run("train_async.py", "--seed", seed, cwd=home)
        paths = [str(folder / row["file"]) for row in index]
        out, _, _ = run("predict.py", *paths, cwd=home)
        said = dict(line.rsplit(": ", 1) for line in out.splitlines())
        right = [said[path].startswith(row["label"]) for path, row in zip(paths, index)]
        clear = ["no clear digit" not in said[path] for path in paths]
        for kind in kinds:
            chosen = [r for r, row in zip(right, index) if row["kind"] == kind]
            found[kind].append(100 * statistics.mean(chosen))
        found["all"].append(100 * statistics.mean(right))
        found["called clear"].append(100 * statistics.mean(clear))
        sure = [r for r, c in zip(right, clear) if c]
        found["right of these"].append(100 * statistics.mean(sure))
        out, _, _ = run("predict.py", "--raw", *paths, cwd=home)
        said = dict(line.rsplit(": ", 1) for line in out.splitlines())
        right = [said[path].startswith(row["label"]) for path, row in zip(paths, index)]
        found["all, only resized"].append(100 * statistics.mean(right))
        progress(f"seed {seed}: {found['all'][-1]:.2f} %")
    rows = [(name, around(values, "{:.1f}")) for name, values in found.items()]
    table((f"{len(index)} pictures, {runs} seeds", "%"), *rows)


def unclear(home, runs=3):
    """What is no digit is to be called unclear: 200 bad pictures of each kind."""
    import bad_inputs
    from PIL import Image

    script = load("predict")
    digits = script.read_splits(str(home / "work" / "mnist.json.gz"))[0]["eval"][0]
    place = home / "bad"
    place.mkdir(exist_ok=True)
    rates = {}
    for seed in range(runs):
        run("train_async.py", "--seed", seed, cwd=home)
        for kind, images in bad_inputs.make(digits, 200, 7).items():
            shutil.rmtree(place)
            place.mkdir()
            for number, image in enumerate(images):
                if not isinstance(image, Image.Image):
                    image = Image.fromarray(image)
                image.save(place / f"{number:03d}.png")
            command = [sys.executable, "predict.py", str(place)]
            done = subprocess.run(command, cwd=home, capture_output=True, text=True)
            clear = done.stdout.splitlines()
            clear = [line for line in clear if "no clear digit" not in line]
            rates.setdefault(kind, []).append(100 - 100 * len(clear) / 200)
        progress(f"seed {seed}")
    rows = [(kind, around(values, "{:.0f}")) for kind, values in rates.items()]
    table(("200 pictures of", "called unclear or refused, %"), *rows)


ROWS = {
    function.__name__: function
    for function in (
        seeds,
        lessons,
        regressions,
        start,
        augmentation,
        asynchronous,
        devices,
        saving,
        reading,
        article,
        first99,
        others,
        startup,
        growth,
        amd,
        unclear,
        pictures,
    )
}


def processor():
    """Return the processor's name and the number of cores that may be used."""
    cpu = Path("/proc/cpuinfo")
    found = cpu.exists() and re.search(r"model name\s*: (.*)", cpu.read_text())
    name = found[1] if found else platform.processor()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def main():
    """Measure the rows that the command line names, in a copy of the project."""
    parser = argparse.ArgumentParser(description="Measure the README's figures.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all")
    parser.add_argument("--runs", type=int, metavar="N", help="default: each row's own")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--pictures", type=Path, help="folder for the row `pictures`")
    args = parser.parse_args()
    if args.list:
        for name, function in ROWS.items():
            print(f"{name:13s} {function.__doc__}")
        return
    unknown = set(args.rows) - set(ROWS)
    if args.runs is not None and args.runs < 1:
        parser.error("--runs must be at least 1")
    if unknown:
        parser.error(f"unknown row: {', '.join(sorted(unknown))}")
    warnings.filterwarnings("ignore", module="paddle")
    import paddle

    print(f"{processor()}; Python {platform.python_version()}, ", end="")
    print(f"paddle {paddle.__version__}, numpy {np.__version__}; ", end="")
    print(f"{datetime.date.today()}\n")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for script in ROOT.glob("*.py"):
            shutil.copy(script, home)
        shutil.copytree(ROOT / "work", home / "work")
        run("show_batch.py", "--source", "json", cwd=home)  # Leaves the parsed data.
        for row in args.rows or ROWS:
            options = {"runs": args.runs} if args.runs else {}
            if row == "pictures":
                options["folder"] = args.pictures and args.pictures.resolve()
            runs = args.runs or ROWS[row].__defaults__[0]
            print(f"### {row}, {runs} runs: {ROWS[row].__doc__}\n", flush=True)
            ROWS[row](home, **options)


if __name__ == "__main__":
    main()
