"""Bad input gets one line that says what and where, and loses nothing on disk."""

import gzip
import json
import pickle
import re
import resource
import shutil

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, SCRIPTS, start
from PIL import Image

from train_json import MNIST, save_parameters

DARK = [1, *[0] * 783]
TENSORS = {"fc.weight": np.ones((784, 1), "f"), "fc.bias": np.ones(1, "f")}


def end_with(images, labels):
    """Return a data file of one image a split, but for the last."""
    splits = [([DARK], [5]), ([DARK], [5]), (images, labels)]
    return gzip.compress(json.dumps(splits).encode())


def parameters(tensors, network="linear"):
    """Return a parameters file of a regression."""
    metadata = json.dumps({"network": network, "loss": "regression"})
    return safetensors.numpy.save(tensors, {"mnist": metadata})


FILES = {  # name: (content, what the error says)
    "text.json.gz": (b"not packed", "Not a gzipped file"),
    "cut.json.gz": (end_with([DARK], [5])[:-9], "end-of-stream marker"),
    "deep.json.gz": (gzip.compress(b"[" * 10**5), "recursion"),
    # The course's own file has pixel / 256.
    "256.json.gz": (end_with([[1.0] * 784], [5]), r"256\) - at `\$\[2\]\[0\]\[0\]`"),
    "half.json.gz": (end_with([[0, 0.5, *DARK[2:]]], [5]), "'float' object .* - at"),
    "783.json.gz": (end_with([DARK, DARK[1:]], [5, 5]), r"783 .*`\$\[2\]\[0\]\[1\]`"),
    "10.json.gz": (end_with([DARK], [10]), r"`int` <= 9 - at `\$\[2\]\[1\]\[0\]`"),
    "two.json.gz": (end_with([DARK], [5, 5]), "eval: 1 images, 2 labels"),
    "pickled.params": (pickle.dumps(TENSORS), "not a parameters file"),
    "cut.params": (parameters(TENSORS)[:-100], "not a parameters file"),
    "nameless.params": (safetensors.numpy.save(TENSORS), "not a parameters file"),
    "resnet.params": (parameters(TENSORS, "resnet"), "not a parameters file"),
    "less.params": (parameters({}), "not a parameters file"),
}
WRONG = {  # command: what the error says
    "train_json.py --lr nan": "--lr",
    "train_json.py --seed 4294967296": "--seed",
    "train_async.py --epochs 0": "--epochs",
    "train_async.py --batch-size 1": "--batch-size",
    "show_batch.py --batch-size -1": "--batch-size",
    "predict.py --samples 3 work/example_0.png": "--samples",
    "train_json.py --data nowhere.gz": "nowhere.gz: .*No such file",
    "train_json.py --lr 1e9 --limit 100 --params kept": "use a smaller --lr",
    "train_async.py --network linear --loss regression --lr 1 --params kept": "--lr",
    "train_async.py --resume --params kept --network mlp": "kept holds another network",
    "train_async.py --params train_async.py": "train_async.py: .*not a parameters file",
    "train_json.py --params work/mnist.json.gz": "work/mnist.json.gz: .*not a param",
    "train_json.py --params protected": "protected: protected",
    "train_builtin.py --params nowhere/new": "nowhere/new: No such file or directory",
    "predict.py --test --params kept": "work/t10k-.*gz: .*No such file.*labels",
    "show_batch.py": "work/train-.*gz: not as many images as labels",
    "show_batch.py --source json --save nowhere/new.png": "nowhere/new.png: No such",
    "show_batch.py --save predict.py": "--save must end in .png",
}


@pytest.fixture
def place(folder):
    """A folder with the scripts, bad files, and a good one that is called kept."""
    for script in SCRIPTS:
        shutil.copy(ROOT / f"{script}.py", folder)
    for name, (content, _) in FILES.items():
        (folder / name).write_bytes(content)
    for name in ("kept", "protected"):
        (folder / name).write_bytes(parameters(TENSORS))
    (folder / "protected").chmod(0o444)
    labels = folder / "work" / "t10k-labels-idx1-ubyte.gz"
    labels.rename(folder / "work" / "train-labels-idx1-ubyte.gz")
    return folder


def contents(folder):
    """Return {path: its bytes} of all files in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_wrong_flags_and_files_get_one_line_and_leave_all_files(place):
    wrong = dict(WRONG)
    for name, (_, words) in FILES.items():
        command = "predict.py work/example_0.png --params"
        if name.endswith(".gz"):
            command = "show_batch.py --data"
        wrong[f"{command} {name}"] = f"{name}: .*{words}"
    before = contents(place)
    _, err = start(place, *wrong).communicate(timeout=300)
    # Of a wrong flag argparse prints the usage, too.
    err = re.sub(r"usage: .*\n\S+ (error: .*)\nfailed: 2", r"failed: \1", err)
    for words, line in zip(wrong.values(), err.splitlines(), strict=True):
        assert re.match(f"failed: error: .*{words}", line), (words, line)
    assert contents(place) == before


def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "link"
    path.symlink_to("target")
    save_parameters(path, MNIST().state_dict(), {})
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Bytes
    with pytest.raises(SystemExit, match="^error: .*link: File too large$"):
        save_parameters(path, MNIST().state_dict(), {})
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.is_symlink() and contents(tmp_path) == before


def test_bad_pictures_get_a_line_each_and_the_others_are_read(place):
    form = np.pad(np.pad(np.full((90, 90), 240), 3), 30, constant_values=240)
    Image.fromarray(np.uint8(np.tile(form, 3))).save(place / "form.png")  # Empty boxes
    light = np.random.default_rng(0).normal(np.linspace(235, 130, 600), 3, (400, 600))
    Image.fromarray(np.uint8(light)).save(place / "light.png")  # Falls off by 45 %
    cut = (place / "work" / "example_7.png").read_bytes()[:5000]
    (place / "cut.png").write_bytes(cut)

    bad = ["work", "kept", "cut.png", "no.png", "form.png", "light.png"]
    good = ["work/example_3.png", "work/example_9.png"]
    names = " ".join([good[0], *bad, good[1]])
    process = start(place, f"predict.py --params kept {names}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and re.findall("^(.*): .*$", out, re.M) == good
    assert [re.match("error: (.*?): ", s)[1] for s in err.splitlines()] == bad
    assert err.count("no writing") == 2
