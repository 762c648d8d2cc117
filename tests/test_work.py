"""Promises of work/: the data are MNIST, and make_data.py makes all of it again."""

import gzip
import hashlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORK = Path(__file__).resolve().parent.parent / "work"
# The MD5 sums of the unpacked files, as they are known everywhere.
IDX = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}
EXAMPLES = [f"example_{digit}.png" for digit in range(10)]


def unpack(name):
    return gzip.decompress((WORK / name).read_bytes())


def read_pixels(path):
    with Image.open(path) as picture:
        return picture.mode, np.asarray(picture).astype(int)


def command(work, into):
    return [sys.executable, work / "make_data.py", "--into", into]


@pytest.fixture(scope="module")
def make_data():
    """make_data.py as a module."""
    spec = importlib.util.spec_from_file_location("make_data", WORK / "make_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mnist():
    """MNIST as (images uint8 [70000, 784], labels uint8 [70000]), test set last."""
    train, train_labels, test, test_labels = map(unpack, IDX)
    images = np.frombuffer(train[16:] + test[16:], np.uint8).reshape(-1, 784)
    return images, np.frombuffer(train_labels[8:] + test_labels[8:], np.uint8)


def test_every_file_has_the_sha256_that_the_readme_gives():
    text = (WORK / "README.md").read_text("utf-8")
    promised = {
        name: digest
        for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)
    }
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in WORK.iterdir()
        if path.is_file()
        and path.name != "README.md"
        and path.suffix not in (".npz", ".tmp")  # What git ignores.
    }
    assert found == promised
    assert {*IDX, *EXAMPLES, "mnist.json.gz", "make_data.py"} <= promised.keys()


@pytest.mark.parametrize("name", IDX)
def test_the_idx_files_unpack_to_mnist_as_it_was_published(name):
    assert hashlib.md5(unpack(name)).hexdigest() == IDX[name]


@pytest.mark.slow
def test_the_json_holds_mnist_in_order_as_50000_10000_and_10000(mnist):
    assert (WORK / "mnist.json.gz").stat().st_size < 16e6
    splits = json.loads(unpack("mnist.json.gz"))
    assert [len(split) for split in splits] == [2, 2, 2]
    start = 0
    for (images, labels), size in zip(splits, (50_000, 10_000, 10_000), strict=True):
        assert type(images[0][0]) is int and type(labels[0]) is int
        assert np.array_equal(images, mnist[0][start : start + size])
        assert np.array_equal(labels, mnist[1][start : start + size])
        start += size


def test_each_example_is_made_from_a_test_image_of_its_digit(make_data, mnist):
    labels = mnist[1][60_000:]
    assert make_data.TEST_IMAGE.keys() == set(range(10)) - {6}
    assert all(labels[index] == d for d, index in make_data.TEST_IMAGE.items())


def test_the_examples_are_small_files_of_the_promised_kinds(make_data, mnist):
    sizes = [(WORK / name).stat().st_size for name in EXAMPLES]
    assert max(sizes) <= 150_000 and sum(sizes) <= 600_000
    pictures = [read_pixels(WORK / name) for name in EXAMPLES]
    modes = "RGB L RGB RGB RGBA L RGB RGB RGB L"
    assert [mode for mode, _ in pictures] == modes.split()
    pixels = [values for _, values in pictures]
    assert pixels[2][..., :3].mean() < 100 < 200 < pixels[3][0, 0, 0]  # Board, paper.
    assert pixels[4][..., :3].max() == 0 and set(pixels[4][0, :, 3]) == {0}
    rows = np.flatnonzero(pixels[5].min(1) < 128)
    assert np.ptp(rows) < len(pixels[5]) / 4 and rows[-1] < len(pixels[5]) / 3
    assert set(pixels[6].ravel()) == {0, 255}
    assert pixels[7][:20, :20].mean() > 1.8 * pixels[7][-20:, -20:].mean()
    assert np.array_equal(pixels[9].ravel(), mnist[0][60_000 + make_data.TEST_IMAGE[9]])


@pytest.mark.slow
def test_make_data_makes_the_same_files_again(make_data, tmp_path):
    done = subprocess.run(
        command(WORK, tmp_path), cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made.keys() == {*EXAMPLES, "mnist.json.gz"}
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name: (int(size), digest) for name, size, digest in lines} == {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, content in made.items()
    }
    if make_data.versions() == make_data.MADE_WITH:
        for name, content in made.items():
            assert content == (WORK / name).read_bytes(), name
        return
    assert gzip.decompress(made["mnist.json.gz"]) == unpack("mnist.json.gz")
    for name in EXAMPLES:
        mode, pixels = read_pixels(tmp_path / name)
        old_mode, old_pixels = read_pixels(WORK / name)
        assert (mode, pixels.shape) == (old_mode, old_pixels.shape), name
        # Other versions may round another way, and letter the plot's axes otherwise.
        differing = np.mean(abs(pixels - old_pixels) > 1)
        assert differing <= (0.03 if name == "example_0.png" else 0), name


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def alter(path):
    content = bytearray(path.read_bytes())
    content[10:20] = b"\xff" * 10  # Behind the header: no such kind of block.
    path.write_bytes(content)


def pack_something_else(path):
    path.write_bytes(gzip.compress(b"not an IDX file"))


def name_another_type(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[2] = 9  # Signed bytes.
    path.write_bytes(gzip.compress(content, 1))


def shorten_inside(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1], 1))


def leave_unpacked(path):
    path.write_bytes(gzip.decompress(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train-images-idx3-ubyte.gz", Path.unlink),
        ("train-images-idx3-ubyte.gz", cut),
        ("train-labels-idx1-ubyte.gz", alter),
        ("t10k-images-idx3-ubyte.gz", pack_something_else),
        ("t10k-images-idx3-ubyte.gz", name_another_type),
        ("t10k-labels-idx1-ubyte.gz", leave_unpacked),
        ("t10k-labels-idx1-ubyte.gz", shorten_inside),
    ],
)
def test_a_broken_idx_file_gives_one_line_and_makes_nothing(name, damage, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    for copied in ("make_data.py", *IDX):
        shutil.copy(WORK / copied, work)
    damage(work / name)
    done = subprocess.run(
        command(work, tmp_path / "made"), cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: .*{re.escape(name)}.*\n", done.stderr)
    assert not (tmp_path / "made").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_a_stopped_run_leaves_the_old_file_and_no_other(tmp_path):
    old = tmp_path / "mnist.json.gz"
    old.write_bytes(b"old")
    with subprocess.Popen(
        command(WORK, tmp_path), stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and len(list(tmp_path.iterdir())) == 1:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.startswith("stopped: ") and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == b"old"
