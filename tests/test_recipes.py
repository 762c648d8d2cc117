"""The README's recipes, run as they stand there, on small data."""

import gzip
import json
import re
import shlex
import struct
import subprocess
import sys
from shutil import copy

import numpy as np
from conftest import ENVIRONMENT, ROOT, succeed
from PIL import Image, ImageOps


def follow(folder, title):
    """Run the commands of a recipe in a folder; return what they printed."""
    part = (ROOT / "README.md").read_text("utf-8").split(f"**{title}**")[1]
    commands = re.findall(r"^    python (.*)$", part.split("\n\n**")[0], re.M)
    for script in [*ROOT.glob("*.py"), ROOT / "work" / "make_data.py"]:
        copy(script, folder / script.relative_to(ROOT))
    text = ""
    for command in commands:
        options = {"cwd": folder, "env": ENVIRONMENT, "capture_output": True}
        arguments = [sys.executable, *shlex.split(command)]
        done = subprocess.run(arguments, encoding="utf-8", **options)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        text += done.stdout
    return text


def read_data(path):
    """Return the labels and the images, uint8 [N, 28, 28], of the three splits."""
    splits = json.loads(gzip.decompress(path.read_bytes()))
    return [(n, np.array(i, np.uint8).reshape(-1, 28, 28)) for i, n in splits]


def test_own_pictures_are_learned_beside_mnist(folder, splits):
    images, labels = splits[0]
    chosen = [np.flatnonzero(labels == n)[k] for n in range(10) for k in range(2)]
    for index in chosen:
        place = folder / "mine" / str(labels[index])
        place.mkdir(parents=True, exist_ok=True)
        page = ImageOps.expand(Image.fromarray(images[index]).resize((140, 140)), 60)
        ImageOps.invert(page).save(place / f"{index:03}.png")
    Image.new("L", (300, 300), "white").save(folder / "mine" / "3" / "blank.png")
    (folder / "mine" / "4" / "notes.txt").touch()
    succeed(folder, "train_async", "--epochs", 3)
    said = follow(folder, "My own hand.")
    for name in ("3/blank.png", "4/notes.txt"):
        assert re.search(f"^left out: mine/{name}: .+", said, re.M), said
    assert "resuming: 3 epochs are done" in said and "epoch 6/6" in said

    (own_labels, own), valid, test = read_data(folder / "mine.json.gz")
    # A sixth of 600 images is for validation; a tenth of 500 takes three rounds of 20.
    assert [len(own_labels), len(valid[0]), len(test[0])] == [560, 100, 200]
    assert own_labels[:20] == labels[chosen].tolist()
    alike = [np.corrcoef(own[n].flat, images[chosen[n]].flat)[0, 1] for n in range(20)]
    assert np.median(alike) > 0.8, alike


def test_other_idx_files_take_the_place_of_mnists(folder, splits):
    for name, (images, labels) in (("train", splits[0]), ("t10k", splits[2])):
        turned = np.rot90(images, axes=(1, 2)), 9 - labels
        for kind, array in zip(("images-idx3", "labels-idx1"), turned):
            header = struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape)
            data = gzip.compress(header + array.tobytes(), 1)
            (folder / "work" / f"{name}-{kind}-ubyte.gz").write_bytes(data)
    before = (folder / "work" / "example_0.png").read_bytes()
    said = follow(folder, "Fashion-MNIST")
    assert int(re.search(r"^test: (\d+) / 200 correct", said, re.M)[1]) > 60
    labels, images = read_data(folder / "fashion.json.gz")[2]
    assert labels == (9 - splits[2][1]).tolist()
    assert (images == np.rot90(splits[2][0], axes=(1, 2))).all()
    assert (folder / "work" / "example_0.png").read_bytes() == before
