"""Promises of work/: the data are MNIST, and make_data.py makes the rest of it."""

import gzip
import hashlib
import shutil
import subprocess
import sys

import numpy as np
from conftest import KINDS, ROOT, read_idx
from PIL import Image

WORK = ROOT / "work"
MD5 = {  # Of the unpacked files, as they were published.
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


def unpack(path):
    return gzip.decompress(path.read_bytes())


def test_idx_files_unpack_to_mnist_as_it_was_published():
    assert {name: hashlib.md5(unpack(WORK / name)).hexdigest() for name in MD5} == MD5


def test_json_holds_mnist_in_order():
    from train_json import read_splits

    train, valid, test = read_splits(WORK / "mnist.json.gz").values()
    for kind, name in enumerate(KINDS):
        assert len(train[kind]) == 50000
        found = np.concatenate([train[kind], valid[kind]])
        assert np.array_equal(found, read_idx(f"train-{name}"))
        assert np.array_equal(test[kind], read_idx(f"t10k-{name}"))


def test_make_data_makes_the_same_files_again(tmp_path):
    for name in ("make_data.py", *MD5):
        shutil.copy(WORK / name, tmp_path)
    command = [sys.executable, tmp_path / "make_data.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    made = {path.name for path in tmp_path.iterdir()} - {"make_data.py", *MD5}
    pictures = {f"example_{digit}.png" for digit in range(10)}
    assert made == {"mnist.json.gz"} | pictures

    assert unpack(tmp_path / "mnist.json.gz") == unpack(WORK / "mnist.json.gz")
    for name in pictures:
        old, new = (np.int16(Image.open(at / name)) for at in (WORK, tmp_path))
        # Other versions of the libraries may round another way or have another font.
        assert (abs(old - new) > 1).mean() <= 0.03, name
