"""Measure the figures of the READMEs, row by row, and print them as Markdown.

    python tests/benchmark.py [ROW ...] [--runs 1] [--limit 2000]

"Training" is the epochs with the loading of their batches, without evaluation.
"""

import argparse
import csv
import gzip
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np

ROOT, SCRIPT = Path(__file__).resolve().parent.parent, "train_async.py"
LESSONS = [  # Each changes one thing in the one before; the learning rate is tuned.
    "--no-augment --network linear --loss square_error --optimizer sgd --lr 0.001",
    "--no-augment --network linear --optimizer sgd --lr 0.03",
    "--no-augment --network linear --lr 0.01",
    "--no-augment --network mlp --lr 0.02",
    "--no-augment --lr 0.02",
    "--lr 0.02",
    "--lr 0.02 --epochs 20",
]


def table(head, results):
    """Print {name: [the numbers of a run]}: means where the head says %, or medians."""
    print("\n| ", *head, sep=" | ", end=" |\n|" + "---|" * (len(head) + 1) + "\n")
    for name, runs in results.items():
        print("|", name, end=" |")
        for title, values in zip(head, zip(*runs)):
            middle = np.mean(values) if "%" in title else np.median(values)
            print(f" {middle:.2f} ({min(values):.2f}–{max(values):.2f})", end=" |")
        print(flush=True)


def run(home, *command, python=sys.executable, until="$."):
    """Run Python until a line matches; return the output and [(seconds, line)]."""
    begin, lines, command = time.perf_counter(), [], [python, "-u", *map(str, command)]
    with subprocess.Popen(command, cwd=home, stdout=-1, text=True) as process:
        for line in process.stdout:
            lines.append((time.perf_counter() - begin, line))
            if re.search(until, line):
                process.kill()
    return "".join(line for _, line in lines), lines


def train(home, args, seed, *command):
    """Run train_async.py; return accuracy in %, seconds of training, an epoch, all."""
    out, lines = run(home, *command, "--seed", seed, *args.flags)
    epochs = [float(s) for s in re.findall(r"^epoch \d+: .* ([\d.]+) s,", out, re.M)]
    right, count = map(int, re.search(r"^test: (\d+) / (\d+)", out, re.M).groups())
    print(seed, *command, f"{right} / {count}, {sum(epochs):.1f} s", file=sys.stderr)
    return 100 * right / count, sum(epochs), np.mean(epochs), lines[-1][0]


def compare(home, args, runs, commands):
    """Train by each command with several seeds, in turn."""
    results = {f"`{command}`": [] for command in commands}
    for seed in range(args.runs or runs):
        for command, found in zip(commands, results.values()):
            found.append(train(home, args, seed, *command.split()))
    for name, found in results.items():
        print(f"- {name}:", *(f"{accuracy:.2f}" for accuracy, *_ in found))
    table(["test accuracy, %", "training, s", "an epoch, s", "to the file, s"], results)


def predict(home, args, sets):
    """Read sets {name: {path: label}} with predict.py after each of 3 trainings."""
    results = {}
    for seed in range(args.runs or 3):
        print("The network's own test accuracy:", train(home, args, seed, SCRIPT)[0])
        for name, labels in sets.items():
            shares = []
            for flags in (["--raw"], []):
                out, lines = run(home, "predict.py", *flags, *labels)
                said = dict(re.findall(r"^(.+\.\w+): *(\d+)\b", out, re.M))
                shares.append(100 * np.mean([said.get(p) == labels[p] for p in labels]))
            each = 1000 * (lines[-1][0] - lines[0][0]) / max(len(lines) - 1, 1)
            results.setdefault(f"{name} ({len(labels)})", []).append((*shares, each))
    table(["right with --raw, %", "right, %", "ms a picture"], results)


def read_mnist(name):
    """Return images, uint8 [N, 28, 28], and labels, uint8 [N], of MNIST's own files."""
    paths = sorted((ROOT / "work").glob(f"{name}-*.gz"))  # "images" before "labels"
    images, labels = (np.frombuffer(gzip.open(p).read(), np.uint8) for p in paths)
    return images[16:].reshape(-1, 28, 28), labels[8:]


def seeds(home, args):
    """The default training, for 1, 3 and 20 epochs."""
    for epochs, runs in ((1, 20), (3, 20), (20, 5)):
        compare(home, args, runs, [f"{SCRIPT} --epochs {epochs}"])


def lessons(home, args):
    """One change after the other, 5 seeds; three epochs, the last one 20."""
    compare(home, args, 5, [f"{SCRIPT} {flags}" for flags in LESSONS])


def drive_keras(example):
    """Run Keras's example; test after each epoch, and print lines as PyTorch's does."""
    import keras

    watch = keras.callbacks.LambdaCallback()
    watch.on_epoch_begin = lambda *_: print("[0/54000 (0%)]")
    watch.on_test_begin = lambda *_: print("\n[54000/54000 (99%)]")  # Validation.
    watch.on_epoch_end = lambda *_: print(
        "Accuracy:", watch.model.evaluate(names["x_test"], names["y_test"], verbose=0)
    )
    names, fit = {"__name__": "__main__"}, keras.Model.fit
    keras.Model.fit = lambda *data, **flags: fit(*data, callbacks=[watch], **flags)
    keras.datasets.mnist.load_data = lambda: (read_mnist("train"), read_mnist("t10k"))
    exec(compile(Path(example).read_text(), example, "exec"), names)


def others(home, args):
    """Training until the test set first reads 99 %, asked after each epoch, 3 seeds.

    Ours is asked at its end; after a miss it is trained anew with one epoch more, which
    adds up. PyTorch's is timed from batch 1 to 931 of 938, Keras's to its validation.
    """
    if not (args.python and args.torch_example and args.keras_example):
        return print("It needs --python, --torch-example and --keras-example.")
    raw = copytree(ROOT / "work", home / "data" / "MNIST" / "raw")  # For PyTorch's.
    subprocess.run(["gunzip", "-r", raw], check=True)
    keras = f"import benchmark; benchmark.drive_keras({args.keras_example!r})"
    results, goal = {}, r"Accuracy: (99\d\d/|.+, 0\.99)"
    for seed in range(args.runs or 3):
        ours = []
        while not ours or ours[-1][0] < 99:
            ours.append(train(home, args, seed, SCRIPT, "--epochs", len(ours) + 1))
        spent = sum(seconds for _, seconds, *_ in ours)
        results.setdefault("ours, 50,000 images", []).append((spent, 1, len(ours)))
        for name, command in (
            ("PyTorch's example, 60,000 images", [args.torch_example, "--seed", seed]),
            ("Keras's example, 54,000 images", ["-c", keras]),
        ):
            out, lines = run(home / "tests", *command, python=args.python, until=goal)
            assert re.search(goal, out), f"{name} ended before 99 %"
            begun, ended = ([w for w, t in lines if m in t] for m in ("[0/", "(99%)]"))
            seconds = sum(ended) - sum(begun[: len(ended)])
            row = seconds, seconds / spent, out.count("Accuracy: ")
            results.setdefault(name, []).append(row)
            print(seed, name, *row, file=sys.stderr)
    table(["training, s", "times ours", "epochs"], results)


def pictures(home, args):
    """Real pictures: how many are read right, 3 seeds."""
    if not args.pictures:
        return print("It needs --pictures FOLDER: index.csv has file, label, kind.")
    sets, folder = {}, Path(args.pictures)
    for row in csv.DictReader((folder / "index.csv").read_text().splitlines()):
        for kind in (row["kind"], "all"):
            sets.setdefault(kind, {})[str(folder / row["file"])] = row["label"]
    predict(home, args, sets)


def numbers(home, args):
    """Pictures made of MNIST's test digits: how many are read right, 3 seeds."""
    from PIL import Image, ImageOps

    images, labels = read_mnist("t10k")
    digits = [image.crop(image.getbbox()) for image in map(Image.fromarray, images)]
    rng, made, sets = np.random.default_rng(0), [], {}
    for _ in range(500):
        chosen = rng.integers(len(digits), size=rng.integers(2, 7))
        page, x = Image.new("L", (300, 40)), 10
        for digit in (digits[number] for number in chosen):
            page.paste(digit, (x, 30 - digit.height))
            x += digit.width + int(rng.integers(2, 21))
        made.append(("numbers", page, "".join(map(str, labels[chosen]))))
    for digit, label in zip(digits[:1000], labels):
        small = ImageOps.pad(digit, (8, 8), Image.Resampling.BOX)
        large = ImageOps.pad(digit, (16, 16), Image.Resampling.BOX)
        made += [("8×8", small, label), ("in blocks", small.resize((64, 64), 0), label)]
        made.append(("16×16, two tones", large.point(lambda v: 255 * (v > 127)), label))
    for image, label in zip(map(Image.fromarray, images), labels):
        made += [("28×28", image, label), ("on black", ImageOps.invert(image), label)]
    for number, (name, image, label) in enumerate(made):
        path = str(home / f"{number}.png")
        ImageOps.invert(image).save(path)
        sets.setdefault(name, {})[path] = str(label)
    predict(home, args, sets)


def asynchronous(home, args):
    """Seconds of 100 batches from a reader that pauses for some training steps."""
    sys.path.insert(0, str(home))
    import train_async as script

    class Slow(script.Batches):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            time.sleep(pause)
            return batch

    def measure(source, training=True):
        begin = time.perf_counter()
        for batch in source:
            if training:
                images, labels = map(script.paddle.to_tensor, batch)
                script.compute_loss(network(images), labels).backward()
                optimizer.step()
                optimizer.clear_grad()
        return time.perf_counter() - begin

    network = script.build_network("cnn", 10)
    optimizer, _ = script.make_optimizer("adam", 0.001, 100, network)
    plain, pause, results = Slow([x[:5000] for x in read_mnist("train")], 50), 0, {}
    options = dict(batch_size=None, num_workers=1, use_shared_memory=False)
    loader, ready = script.paddle.io.DataLoader(plain, **options), list(plain)
    step = min(measure(ready) for _ in range(5)) / 100
    for steps in (0, 0.25, 0.5, 1, 2):
        pause = steps * step
        for _ in range(args.runs or 5):
            row = measure(plain, False), measure(ready), measure(plain), measure(loader)
            results.setdefault(steps, []).append((*row, row[3] / max(row[:2])))
    table(["reading", "training", "in turn", "in the background", "ratio"], results)


def devices(home, args):
    """Batches of 512, not augmented, 3 epochs: one process; two, no core to spare."""
    command = f"{SCRIPT} --batch-size 512 --no-augment"
    launch = "-m paddle.distributed.launch --nproc_per_node 2 --backend gloo"
    compare(home, args, 3, [command, f"{launch} {command} --workers 0"])


def main():
    rows = (seeds, lessons, others, pictures, numbers, asynchronous, devices)
    rows = {row.__name__: row for row in rows}
    parser = argparse.ArgumentParser(epilog="Other flags go to train_async.py.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(rows))
    parser.add_argument("--runs", type=int, help="seeds")
    for name in ("pictures", "python", "torch-example", "keras-example"):
        parser.add_argument(f"--{name}", type=os.path.abspath)
    args, args.flags = parser.parse_known_args()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    print(f"{cpu}, {os.cpu_count()} cores; Python {sys.version.split()[0]}", end=", ")
    print("paddle", version("paddlepaddle"), "numpy", np.__version__, time.ctime())
    with tempfile.TemporaryDirectory() as temp:
        home = copytree(ROOT, Path(temp, "copy"), ignore=ignore_patterns(".*", "venv"))
        for row in args.rows or rows:
            print(f"\n### {row}:", re.sub("\n +", "\n", rows[row].__doc__), flush=True)
            rows[row](home, args)


if __name__ == "__main__":
    main()
