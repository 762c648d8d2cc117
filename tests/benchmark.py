"""Measure the figures of the READMEs, row by row, and draw their plots.

    python tests/benchmark.py seeds lessons --results results.json
    python tests/benchmark.py plots --results results.json

A row prints a Markdown table and keeps its numbers in the JSON file, from which `plots`
draws. benchmark.json has the commands of most rows. All runs in a scratch copy of the
project. "Training" is the epochs with the loading of their batches, not the validation.
"""

import argparse
import csv
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
TABLES = json.loads(Path(__file__).with_suffix(".json").read_text())
VERDICTS = ["right, %", "unsure, %", "wrong and sure, %"]


# ---- running, counting, printing


def run(args, *command, python=sys.executable, until="$."):
    """Run Python until a line matches; return [(seconds since the start, line)]."""
    lines, begin = [], time.perf_counter()
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [python, "-u", *map(str, command)]
    with subprocess.Popen(command, cwd=args.home, **options) as process:
        for line in process.stdout:
            lines.append((time.perf_counter() - begin, line))
            if re.search(until, line):
                process.kill()
    return lines


def train(args, seed, command):
    """Train by a command; return {column: value}."""
    lines = run(args, *command.split(), "--seed", seed)
    text = "".join(line for _, line in lines)
    test = re.search(r"^test: (\d+) / (\d+)", text, re.M)
    if not test:
        raise SystemExit(f"error: {command} printed\n{text}")
    accuracy = 100 * int(test[1]) / int(test[2])
    epochs = [float(s) for s in re.findall(r"^epoch \d.* ([\d.]+) s\b", text, re.M)]
    row = {"test accuracy, %": accuracy, "training, s": sum(epochs)}
    print(command, row, file=sys.stderr)
    return row | {"epochs": len(epochs), "command to file, s": lines[-1][0]}


def add(results, name, row):
    """Append one run's {column: value} to {name: {column: [values]}}."""
    columns = results.setdefault(name, {})
    for column, value in row.items():
        columns.setdefault(column, []).append(value)


def show(results):
    """Print results as Markdown: mean of what is in %, or median, and the range."""
    head = list(dict.fromkeys(c for columns in results.values() for c in columns))
    print("\n| | " + " | ".join(head) + " |\n" + "|---" * (len(head) + 1) + "|")
    for name, columns in results.items():
        print(f"| {name}", end=" |")
        for column in head:
            values = columns.get(column, [np.nan])
            middle = np.mean(values) if "%" in column else np.median(values)
            print(f" {middle:.2f} ({min(values):.2f}–{max(values):.2f})", end=" |")
        print()


def make_copies(args, row):
    """Write the patched copies of scripts that a row runs into the scratch copy."""
    if args.edition:
        copy(args.edition, args.home / "edition.py")
    for name, (script, *changes) in TABLES["copies"].items():
        if name in str(row):
            text = (args.home / script).read_text()
            for old, new in changes:
                assert text.count(old) == 1, f"{name}: {script} has not once: {old}"
                text = text.replace(old, new)
            (args.home / name).write_text(text)


def read_mnist(name):
    """Return images, uint8 [N, 28, 28], and labels, uint8 [N], of MNIST's own files."""
    paths = sorted((ROOT / "work").glob(f"{name}-*-ubyte.gz"))  # Images, then labels.
    images, labels = (np.frombuffer(gzip.open(p).read(), np.uint8) for p in paths)
    return images[16:].reshape(-1, 28, 28), labels[8:]


# ---- pictures


def read_folder(folder):
    """Return {kind: {path: text}} of a folder's index.csv: file, kind, text or label.

    The halves are by source or row.
    """
    kinds = {}
    with open(Path(folder, "index.csv"), newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            source = int(row.get("source", f"r{number}")[1:])
            half = "odd half" if source % 2 else "even half"
            for kind in (row["kind"], half, "all"):
                text = row["text"] if "text" in row else row["label"]
                path = str(Path(folder, row["file"]).resolve())
                kinds.setdefault(kind, {})[path] = text
    return kinds


def make_numbers(folder):
    """Lay MNIST's test digits side by side, 500 times; return {kind: {path: text}}."""
    images, labels = read_mnist("t10k")
    texts, rng = {}, np.random.default_rng(0)
    for number in range(500):
        chosen = rng.integers(len(labels), size=rng.integers(2, 7))
        page, x = Image.new("L", (300, 40)), 10
        for image in map(Image.fromarray, images[chosen]):
            digit = image.crop(image.getbbox())
            page.paste(digit, (x, 30 - digit.height))
            x += digit.width + int(rng.integers(2, 21))
        path = folder / f"{number}.png"
        ImageOps.invert(page).save(path)
        texts[str(path)] = "".join(map(str, labels[chosen]))
    return {"all": texts}


def judge(line, text, apart):
    """Return the verdict on what was read; spaces count if words are to be apart."""
    unsure = line.startswith("error") or "not sure" in line or "?" in line
    space = " " if apart else ""
    same = space.join(line.split("  (")[0].split()) == space.join(text.split())
    right = same if text else unsure  # A blank sheet, letters, shapes: no digit.
    return VERDICTS[0 if right else 1 if unsure else 2]


def read(args, results, name, reader, kinds):
    """Read {kind: {path: text}} by a command, and add the verdicts to results."""
    apart = reader.startswith("predict")  # Others may part digits, to their advantage.
    python = sys.executable if apart else args.python
    lines = run(args, *reader.split(), *kinds["all"], python=python)
    found = [re.match(r"(error: )?(.*\.\w+): (.*)", line) for _, line in lines]
    said = {match[2]: (match[1] or "") + match[3] for match in found if match}
    if not said:  # It is not installed.
        return print(reader, lines[-1][1], file=sys.stderr)
    seconds = lines[-1][0] - lines[0][0]
    for kind, texts in kinds.items():
        row = dict.fromkeys(VERDICTS, 0)
        for path, text in texts.items():
            row[judge(said.get(path, "error"), text, apart)] += 100 / len(texts)
        row["ms a picture"] = 1000 * seconds / max(len(lines) - 1, 1)
        add(results, f"{name}, {kind} ({len(texts)})", row)


# ---- rows


def measure(args, row):
    """Train by each command with several seeds, in turn; read pictures after each."""
    spec, results = TABLES["rows"][row], {}
    make_copies(args, spec)
    readers = spec.get("readers", [])
    made = [make_numbers(args.home)] if row == "numbers" else []
    folders = made or list(map(read_folder, args.folder))
    for seed in range(args.runs or spec["seeds"]):
        for name, command in spec["trainings"].items():
            add(results, name, train(args, seed, command))
            for reader in readers:
                title = name if len(readers) == 1 else reader
                for kinds in folders:
                    read(args, results, title, reader, kinds)
    return results


def regression(args):
    """The starter model's outputs for 100 test images of each digit."""
    from safetensors.numpy import load_file

    train(args, 0, TABLES["rows"]["lessons"]["trainings"]["regression, one output"])
    images, labels = read_mnist("t10k")
    tensors = load_file(args.home / "mnist.safetensors")
    pixels = images.reshape(-1, 784) / 127.5 - 1
    outputs = (pixels @ tensors["fc.weight"] + tensors["fc.bias"])[:, 0]
    return {n: {"output": outputs[labels == n][:100].tolist()} for n in range(10)}


def others(args):
    """Training until the test set reads 99 %, asked after each epoch; ours at its end.

    After a miss ours begins anew with one epoch more; the seconds add up.
    """
    copytree(ROOT / "work", args.home.parent / "data/MNIST/raw")  # For PyTorch's
    subprocess.run(["gunzip", "-rq", args.home.parent / "data"])
    results, goal = {}, r"Accuracy: (99\d\d/|.+, 0\.99)"
    for seed in range(args.runs or 3):
        ours = [train(args, seed, "train_async.py --epochs 1")]
        while ours[-1]["test accuracy, %"] < 99:
            ours.append(train(args, seed, f"train_async.py --epochs {len(ours) + 1}"))
        seconds = sum(row["training, s"] for row in ours)
        add(results, "this project", {"training, s": seconds, "epochs": len(ours)})
        for name, command in (
            ("Keras's example", ["tests/drive_others.py", "keras", args.keras_example]),
            ("PyTorch's example", [args.torch_example, "--seed", seed]),
        ):
            lines = run(args, *command, python=args.python, until=goal)
            begun, ended = ([w for w, t in lines if m in t] for m in ("[0/", "(99%)]"))
            seconds = sum(ended) - sum(begun[: len(ended)])
            add(results, name, {"training, s": seconds, "epochs": len(ended)})
    return results


# ---- plots, into work/pictures/


def plot_lessons(axes, results):
    """The error of each lesson: mean of its seeds, and their range."""
    errors = [100 - np.array(r["test accuracy, %"]) for r in results.values()]
    for place, values in enumerate(errors):
        axes.plot([values.min(), values.max()], [place, place], "C0", linewidth=4)
        axes.plot(values.mean(), place, "C0o")
        axes.text(values.max(), place, f"  {values.mean():.3g} %", va="center")
    axes.set(xscale="log", xlim=(0.2, 200), xlabel="wrong of the test images, %")
    axes.set_yticks(range(len(errors)), results)
    axes.invert_yaxis()


def plot_seconds(axes, results):
    """Seconds of training until the test set reads 99 %."""
    medians = [np.median(result["training, s"]) for result in results.values()]
    bars = axes.barh(list(results), medians, color=["C0", "C7", "C7"])
    axes.bar_label(bars, [f"{seconds:.0f} s" for seconds in medians], padding=4)
    axes.set(xlabel="seconds of training to 99 % on two cores", xmargin=0.1)
    axes.invert_yaxis()


def plot_regression(axes, results):
    """Outputs against digits; the band of a digit is what is cut off to it."""
    rng = np.random.default_rng(0)
    for digit, columns in results.items():
        digit, outputs = int(digit), np.array(columns["output"])
        right = np.trunc(outputs).clip(0, 9) == digit
        low, high = {0: (-9, 1), 9: (9, 19)}.get(digit, (digit, digit + 1))
        axes.fill_between([digit - 0.45, digit + 0.45], low, high, color="0.85")
        places = digit + rng.uniform(-0.3, 0.3, len(outputs))
        axes.scatter(places, outputs, 6, np.where(right, "C0", "C3"))
    axes.set(xlabel="true digit", ylabel="output", xticks=range(10), yticks=range(11))
    axes.set(ylim=(-4, 11), title="grey: where the integer part is the digit")


def plot_background(axes, results):
    """Seconds of an epoch against the pause of the reader."""
    ways = {}
    for name, result in results.items():
        way, pause = name.split(", ")
        point = float(pause.split()[0]), np.median(result["training, s"])
        ways.setdefault(way, []).append(point)
    for way, points in ways.items():
        axes.plot(*zip(*points), marker="o", label=way)
    axes.set(xlabel="pause for each batch, ms", ylabel="seconds of an epoch", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()


def plots(args):
    """Draw the kept figures."""
    from matplotlib.figure import Figure

    for row, draw in (
        ("lessons", plot_lessons),
        ("others", plot_seconds),
        ("regression", plot_regression),
        ("asynchronous", plot_background),
    ):
        figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
        draw(figure.subplots(), args.kept[row])
        figure.savefig(ROOT / "work" / "pictures" / f"{row}.png")


def main():
    own = {"regression": regression, "others": others, "plots": plots}
    names = [*TABLES["rows"], *own]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("rows", nargs="+", metavar="ROW", choices=names, help=", ".join(names))
    add("--results", type=Path, default=Path("results.json"), help="keep figures here")
    add("--runs", type=int, help="seeds, in place of the row's own number")
    add("--folder", nargs="*", default=[], help="pictures with an index.csv")
    add("--python", default=sys.executable, help="has Keras, PyTorch, the readers")
    add("--keras-example", type=os.path.abspath, help="its mnist_convnet.py")
    add("--torch-example", type=os.path.abspath, help="its mnist/main.py")
    add("--edition", type=os.path.abspath, help="another train_async.py")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, paddle {version('paddlepaddle')}, {time.ctime()}")
    args.kept = json.loads(args.results.read_text()) if args.results.exists() else {}
    with tempfile.TemporaryDirectory() as temp:
        args.home = Path(temp, "copy")
        copytree(ROOT, args.home, ignore=ignore_patterns(".*", "venv"))
        for row in args.rows:
            results = own[row](args) if row in own else measure(args, row)
            if row != "plots":
                print(f"\n### {row}")
                show(results)
                args.kept[row] = results
                args.results.write_text(json.dumps(args.kept))


if __name__ == "__main__":
    main()
