"""What the tests share: the scripts, small real data, and ways to run them."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["train_builtin", "train_json", "train_async", "predict", "show_batch"]
KINDS = ["images-idx3", "labels-idx1"]  # MNIST's files of a set
sys.path.insert(0, str(ROOT))  # For the tests that import a script.
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


@pytest.fixture(scope="session")
def mnist():
    """All of work/mnist.json.gz: {mode: (images uint8 [N, 28, 28], labels)}."""
    from train_json import read_splits

    return read_splits(ROOT / "work" / "mnist.json.gz")


@pytest.fixture(scope="session")
def small_work(tmp_path_factory):
    """A folder work/ that make_data.py made of the first 600 and 200 images."""
    home = tmp_path_factory.mktemp("small")
    work = home / "work"
    work.mkdir()
    for name, count in ("train", 600), ("t10k", 200):
        for kind, size in zip(KINDS, (16 + 784 * count, 8 + count)):
            file = f"{name}-{kind}-ubyte.gz"
            data = gzip.decompress((ROOT / "work" / file).read_bytes())
            data = data[:4] + count.to_bytes(4, "big") + data[8:size]
            (work / file).write_bytes(gzip.compress(data, 1))
    succeed(home, "work/make_data.py")
    (work / "train-labels-idx1-ubyte (1).gz").touch()  # A browser's second copy
    return work


@pytest.fixture
def folder(small_work, tmp_path):
    """A folder that holds nothing but a small work/."""
    shutil.copytree(small_work, tmp_path / "work")
    return tmp_path


def start(folder, *commands, **variables):
    """Start a command, or several in one process, on copies of the scripts."""
    for command in commands:
        script = re.search(r"\S+\.py", command)[0]
        if not (folder / script).exists():
            shutil.copy(ROOT / script, folder / script)
    arguments = [ROOT / "tests" / "commands.py", *commands]
    if len(commands) == 1:
        arguments = shlex.split(commands[0])

    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=ENVIRONMENT | variables,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def run(folder, *commands, **options):
    """Run commands to their end; return (status, stdout, stderr)."""
    process = start(folder, *commands, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def finish(process):
    """Wait for a process that must succeed and be quiet; return what it printed."""
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out + err
    return out


def succeed(folder, *commands):
    """Run commands that must succeed and be quiet; return what they printed."""
    return finish(start(folder, *commands))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with all of work/ where the README's first training was run."""
    home = tmp_path_factory.mktemp("trained")
    (home / "work").symlink_to(ROOT / "work")
    (home / "out.txt").write_text(succeed(home, "train_async.py --epochs 3"))
    return home
