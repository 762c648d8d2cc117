"""What the tests share: the scripts, small real data, and ways to run them."""

import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["train_builtin", "train_json", "train_async", "predict", "show_batch"]
KINDS = ["images-idx3", "labels-idx1"]  # Of MNIST's files.
sys.path.insert(0, str(ROOT))  # For the few tests that import a script.
POOL = ThreadPoolExecutor(2)  # Most of a short run is `import paddle`: two at a time.
# What a notebook and a launcher leave behind must not matter.
ENVIRONMENT = os.environ | {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PADDLE_TRAINERS_NUM": "2",
    "PYTHONIOENCODING": "utf-8",
}


def read_idx(name):
    """Return one of MNIST's files in work/: uint8 [N] or [N, 28, 28]."""
    data = gzip.decompress((ROOT / "work" / f"{name}-ubyte.gz").read_bytes())
    if "labels" in name:
        return np.frombuffer(data, np.uint8, offset=8)
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, 28, 28)


def write_json(path, splits):
    """Write splits, (images [N, 28, 28], labels) each, as mnist.json.gz is written."""
    lists = [[i.reshape(-1, 784).tolist(), n.tolist()] for i, n in splits]
    path.write_bytes(gzip.compress(json.dumps(lists).encode(), 1))


def write_idx(work, prefix, *arrays):
    """Write images and labels as two of MNIST's files."""
    for kind, array in zip(KINDS, arrays):
        header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
        data = gzip.compress(header + array.tobytes(), 1)
        (work / f"{prefix}-{kind}-ubyte.gz").write_bytes(data)


@pytest.fixture(scope="session")
def splits():
    """The first of MNIST: three pairs of images uint8 [N, 28, 28] and labels."""
    parts = ("train", 0, 600), ("train", 50000, 50200), ("t10k", 0, 200)
    return [[read_idx(f"{x}-{kind}")[a:b] for kind in KINDS] for x, a, b in parts]


@pytest.fixture(scope="session")
def small_work(splits, tmp_path_factory):
    """A folder work/ like the project's own, with a thousand images in all."""
    work = tmp_path_factory.mktemp("small") / "work"
    work.mkdir()
    write_json(work / "mnist.json.gz", splits)
    write_idx(work, "train", *splits[0])
    write_idx(work, "t10k", *splits[2])
    (work / "train-labels-idx1-ubyte (1).gz").touch()  # A browser's second copy
    for picture in ROOT.glob("work/example_*.png"):
        shutil.copy(picture, work)
    return work


@pytest.fixture
def folder(small_work, tmp_path):
    """A folder that holds nothing but a small work/."""
    shutil.copytree(small_work, tmp_path / "work")
    return tmp_path


def start(folder, script, *arguments, launcher=(), **variables):
    """Start a script from its copy in the folder, alone beside work/."""
    if not (folder / f"{script}.py").exists():
        shutil.copy(ROOT / f"{script}.py", folder)
    return subprocess.Popen(
        [sys.executable, *launcher, f"{script}.py", *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT | variables,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def run(folder, script, *arguments, **options):
    """Run a script to its end; return (status, stdout, stderr)."""
    process = start(folder, script, *arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def succeed(folder, script, *arguments):
    """Run a script that must succeed and be quiet; return what it printed."""
    status, out, err = run(folder, script, *arguments)
    assert (status, err) == (0, ""), out + err
    return out


def refused(folder, script, *arguments, **options):
    """Run a script on bad input; return the one line that it says, or all it says."""
    status, _, err = run(folder, script, *arguments, **options)
    if status != 0 and re.fullmatch("error: .*\n", err):
        return err.strip()
    return f"{status}: not refused in one line, but:\n{err}"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with all of work/ where the README's first training was run."""
    home = tmp_path_factory.mktemp("trained")
    (home / "work").symlink_to(ROOT / "work")
    (home / "out.txt").write_text(succeed(home, "train_async", "--epochs", 3))
    return home
