"""What the tests share: the scripts, small real data, and ways to run them."""

import gzip
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train_builtin", "train_json", "train_async", "predict", "show_batch")
SIZES = {"train": 600, "valid": 200, "eval": 200}


def read_idx(name, header):
    """Return the bytes of one of MNIST's files in work/, behind its header: uint8."""
    data = gzip.decompress((ROOT / "work" / name).read_bytes())
    return np.frombuffer(data, np.uint8, offset=header)


def write_idx(path, array):
    """Write array, uint8 [N] or [N, 28, 28], as a gzipped IDX file."""
    header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), 1))


@pytest.fixture(scope="session")
def real():
    """The first images of MNIST as {split: (images uint8 [N, 28, 28], labels [N])}."""
    images = read_idx("train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read_idx("train-labels-idx1-ubyte.gz", 8)
    test_images = read_idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    test_labels = read_idx("t10k-labels-idx1-ubyte.gz", 8)
    train, valid, test = SIZES.values()
    return {
        "train": (images[:train], labels[:train]),
        "valid": (images[50000 : 50000 + valid], labels[50000 : 50000 + valid]),
        "eval": (test_images[:test], test_labels[:test]),
    }


@pytest.fixture(scope="session")
def small_work(real, tmp_path_factory):
    """A folder work/ like the project's own, with a thousand images in all."""
    work = tmp_path_factory.mktemp("small") / "work"
    work.mkdir()
    data = [[i.reshape(-1, 784).tolist(), n.tolist()] for i, n in real.values()]
    (work / "mnist.json.gz").write_bytes(gzip.compress(json.dumps(data).encode(), 1))
    write_idx(work / "train-images-idx3-ubyte.gz", real["train"][0])
    write_idx(work / "train-labels-idx1-ubyte.gz", real["train"][1])
    write_idx(work / "t10k-images-idx3-ubyte.gz", real["eval"][0])
    write_idx(work / "t10k-labels-idx1-ubyte.gz", real["eval"][1])
    for picture in sorted((ROOT / "work").glob("example_*.png")):
        shutil.copy(picture, work)
    return work


@pytest.fixture
def folder(small_work, tmp_path, monkeypatch, module):
    """An empty folder with only work/ in it, which becomes the current one."""
    shutil.copytree(small_work, tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    for script in module.loaded.values():
        if hasattr(script, "read_splits"):
            script.read_splits.cache_clear()  # It knows the data by a relative path.
    return tmp_path


def environment(**changes):
    """Return the environment for a script: no display, home of its own."""
    removed = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return kept | {"PYTHONIOENCODING": "utf-8"} | changes


def run(script, *arguments, cwd=".", **options):
    """Run a script as its user would; return the finished process, text captured."""
    path = Path(cwd, f"{script}.py")
    if not path.exists():
        path = ROOT / path.name
    options = {"env": environment(), "timeout": 300} | options
    return subprocess.run(
        [sys.executable, path, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        **options,
    )


def succeed(script, *arguments, **options):
    """Run a script that must succeed; return what it printed on stdout."""
    done = run(script, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def module():
    """A function that imports a script by its name, once."""

    def load(name):
        if name not in load.loaded:
            spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
            load.loaded[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(load.loaded[name])
        return load.loaded[name]

    load.loaded = {}
    return load


@pytest.fixture(scope="session")
def trained(small_work, tmp_path_factory):
    """Parameters files made by the real scripts: {kind: path}."""
    home = tmp_path_factory.mktemp("trained")
    shutil.copytree(small_work, home / "work")
    flags = ["--epochs", 12, "--batch-size", 20, "--params", "cnn"]
    succeed("train_async", *flags, cwd=home)
    succeed("train_json", "--epochs", 1, "--params", "regression", cwd=home)
    return {kind: home / f"{kind}.safetensors" for kind in ("cnn", "regression")}
