"""Promises of work/: the data are MNIST, make_data.py makes them and one's own data."""

import gzip
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from conftest import KINDS, ROOT, read_idx, succeed
from PIL import Image, ImageOps

WORK = ROOT / "work"
MD5 = {  # Of the unpacked files, as they were published.
    "train-images-idx3": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1": "27ae3e4e09519cfbb04c329615203637",
}


def unpack(path):
    return gzip.decompress(path.read_bytes())


def recipe(title):
    """Return the commands of one of the README's recipes."""
    part = (ROOT / "README.md").read_text("utf-8").split(f"**{title}")[1]
    return re.findall(r"^    python (.*)$", part.split("\n\n**")[0], re.M)


def read_data(path):
    """Return the labels and the images, uint8 [N, 28, 28], of the three splits."""
    splits = json.loads(unpack(path))
    return [(n, np.array(i, np.uint8).reshape(-1, 28, 28)) for i, n in splits]


@pytest.mark.parametrize("name", MD5)
def test_idx_files_unpack_to_mnist_as_it_was_published(name):
    assert hashlib.md5(unpack(WORK / f"{name}-ubyte.gz")).hexdigest() == MD5[name]


def test_json_holds_mnist_in_order(mnist):
    train, valid, test = mnist.values()
    for kind, name in enumerate(KINDS):
        assert len(train[kind]) == 50000
        found = np.concatenate([train[kind], valid[kind]])
        assert np.array_equal(found, read_idx(f"train-{name}"))
        assert np.array_equal(test[kind], read_idx(f"t10k-{name}"))


def test_make_data_makes_the_json_and_the_pictures_again(small_work):
    images = unpack(small_work / "mnist.json.gz").split(b"]]")[0]
    assert images.count(b"],[") == 499  # A sixth of its 600 is for validation.
    assert unpack(WORK / "mnist.json.gz").startswith(images)
    for name in [f"example_{digit}.png" for digit in range(10)]:
        old, new = (np.int16(Image.open(at / name)) for at in (WORK, small_work))
        # Other versions of the libraries may round another way or have another font.
        assert (abs(old - new) > 1).mean() <= 0.03, name


def test_own_pictures_are_learned_beside_mnist(folder):
    images, labels = (read_idx(f"train-{kind}")[:600] for kind in KINDS)
    chosen = [np.flatnonzero(labels == n)[k] for n in range(10) for k in range(2)]
    for index in chosen:
        place = folder / "mine" / str(labels[index])
        place.mkdir(parents=True, exist_ok=True)
        page = ImageOps.expand(Image.fromarray(images[index]).resize((140, 140)), 60)
        ImageOps.invert(page).save(place / f"{index:03}.png")
    Image.new("L", (300, 300), "white").save(folder / "mine" / "3" / "blank.png")
    (folder / "mine" / "4" / "notes.txt").touch()
    shutil.copy(ROOT / "predict.py", folder)
    said = succeed(folder, "train_async.py --epochs 3", *recipe("My own hand."))
    for name in ("3/blank.png", "4/notes.txt"):
        assert re.search(f"^left out: mine/{name}: .+", said, re.M), said
    assert "resuming: 3 epochs are done" in said and "epoch 6/6" in said

    (own_labels, own), valid, test = read_data(folder / "mine.json.gz")
    # A sixth of 600 images is for validation; a tenth of 500 takes three rounds of 20.
    assert [len(own_labels), len(valid[0]), len(test[0])] == [560, 100, 200]
    assert own_labels[:20] == labels[chosen].tolist()
    alike = [np.corrcoef(own[n].flat, images[chosen[n]].flat)[0, 1] for n in range(20)]
    assert np.median(alike) > 0.8, alike


def test_other_idx_files_take_the_place_of_mnists(folder):
    work = folder / "work"
    for kind in KINDS:
        (work / f"train-{kind}-ubyte.gz").rename(work / "other")
        (work / f"t10k-{kind}-ubyte.gz").rename(work / f"train-{kind}-ubyte.gz")
        (work / "other").rename(work / f"t10k-{kind}-ubyte.gz")
    before = (work / "example_0.png").stat()
    said = succeed(folder, *recipe("Fashion-MNIST"))
    assert int(re.search(r"^test: (\d+) / 600 correct", said, re.M)[1]) > 120
    labels, images = read_data(folder / "fashion.json.gz")[2]
    assert labels == read_idx("train-labels-idx1")[:600].tolist()
    assert (images == read_idx("train-images-idx3")[:600]).all()
    assert (work / "example_0.png").stat() == before
