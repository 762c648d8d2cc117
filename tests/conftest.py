"""What the tests share: small real data, and ways to run the real scripts on them."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["train_builtin", "train_json", "train_async", "predict", "show_batch"]
# What a notebook and a launcher leave behind must not matter.
ENVIRONMENT = os.environ | {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PADDLE_TRAINERS_NUM": "2",
    "PYTHONIOENCODING": "utf-8",
}


@pytest.fixture(scope="session")
def small_work(tmp_path_factory):
    """A folder work/ that make_data.py made of the first 600 and 200 images."""
    work = tmp_path_factory.mktemp("small") / "work"
    work.mkdir()
    for name, count in ("train", 600), ("t10k", 200):
        for kind, size in ("images-idx3", 16 + 784 * count), ("labels-idx1", 8 + count):
            file = f"{name}-{kind}-ubyte.gz"
            data = gzip.decompress((ROOT / "work" / file).read_bytes())
            data = data[:4] + count.to_bytes(4, "big") + data[8:size]
            (work / file).write_bytes(gzip.compress(data, 1))
    succeed(work.parent, "work/make_data.py")
    return work


@pytest.fixture
def folder(small_work, tmp_path):
    """A folder that holds nothing but a small work/."""
    shutil.copytree(small_work, tmp_path / "work")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with all of work/ where the README's first training was run."""
    home = tmp_path_factory.mktemp("trained")
    (home / "work").symlink_to(ROOT / "work")
    (home / "out.txt").write_text(succeed(home, "train_async.py --epochs 3"))
    return home


def start(folder, *commands):
    """Start a command, or several in one process, on copies of the scripts."""
    for command in commands:
        script = re.search(r"\S+\.py", command)[0]
        if not (folder / script).exists():
            shutil.copy(ROOT / script, folder / script)

    arguments = [ROOT / "tests" / "commands.py", *commands]
    if len(commands) == 1:
        arguments = shlex.split(commands[0])
    return subprocess.Popen(
        [sys.executable, "-u", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def succeed(folder, *commands):
    """Run commands that must succeed and be quiet; return what they printed."""
    process = start(folder, *commands)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out + err
    return out
