"""Promises of work/: the data are MNIST, and make_data.py makes the rest of it."""

import gzip
import hashlib
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from conftest import KINDS, ROOT, read_idx
from PIL import Image

WORK = ROOT / "work"
MD5 = {  # Of the unpacked files, as they were published.
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.mark.parametrize("name", MD5)
def test_idx_files_unpack_to_mnist_as_it_was_published(name):
    content = gzip.decompress((WORK / name).read_bytes())
    assert hashlib.md5(content).hexdigest() == MD5[name]


def test_json_holds_mnist_in_order():
    train, test = (
        [read_idx(f"{prefix}-{kind}") for kind in KINDS] for prefix in ("train", "t10k")
    )
    data = gzip.decompress((WORK / "mnist.json.gz").read_bytes())
    splits = msgspec.json.decode(data)
    for kind in (0, 1):
        expected = train[kind][:50000], train[kind][50000:], test[kind]
        for split, array in zip(splits, expected):
            rows = split[kind] if kind == 0 else [split[kind]]
            assert b"".join(map(bytes, rows)) == array.tobytes()


def test_make_data_makes_the_same_files_again(tmp_path):
    for name in ("make_data.py", *MD5):
        shutil.copy(WORK / name, tmp_path)
    command = [sys.executable, tmp_path / "make_data.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    made = {path.name for path in tmp_path.iterdir()} - {"make_data.py", *MD5}
    pictures = {f"example_{digit}.png" for digit in range(10)}
    assert made == {"mnist.json.gz"} | pictures

    for name in pictures:
        old, new = (
            np.asarray(Image.open(folder / name)).astype(int)
            for folder in (WORK, tmp_path)
        )
        # Other versions of the libraries may round another way or have another font.
        assert (abs(old - new) > 1).mean() <= 0.03, name
    old, new = ((place / "mnist.json.gz").read_bytes() for place in (WORK, tmp_path))
    assert gzip.decompress(old) == gzip.decompress(new)
