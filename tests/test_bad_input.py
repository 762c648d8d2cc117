"""Bad input gets one line that says what and where, and loses nothing on disk."""

import copy
import gzip
import json
import pickle
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy
from conftest import POOL, run, succeed
from PIL import Image

PLACES = [  # (indices into the data, what is put there, what the error says)
    ((2, 0, 0, 2), 256, r"`int` <= 255 - at `\$\[2\]\[0\]\[0\]\[2\]`"),
    ((0, 0, 1, 0), -1, r"`int` >= 0 - at `\$\[0\]\[0\]\[1\]\[0\]`"),
    ((0, 0, 1, 5), 0.5, "Expected `int`, got `float`"),
    ((0, 0, 1, 5), True, "Expected `int`, got `bool`"),
    ((0, 0, 3), [0] * 783, r"length >= 784 - at `\$\[0\]\[0\]\[3\]`"),
    ((0, 0, 3), [0] * 785, r"length <= 784 - at `\$\[0\]\[0\]\[3\]`"),
    ((1, 1, 7), 10, r"`int` <= 9 - at `\$\[1\]\[1\]\[7\]`"),
    ((1, 1), [1] * 199, "200 images, 199 labels"),
    ((2,), [[], []], r"length >= 1 - at `\$\[2\]\[0\]`"),
    ((2,), None, r"Expected `array`, got `null` - at `\$\[2\]`"),
]
FILES = [  # (the whole file, what the error says)
    (b"", "truncated"),
    (b"not packed", "Not a gzipped file"),
    (gzip.compress(b"[[[[0,NaN]"), "JSON is malformed"),
    (gzip.compress(b"[[[[1,2]],[3]]]")[:-9], "end-of-stream marker"),
    (gzip.compress(b"[]")[:10] + b"\xff" * 99, "invalid block type"),
]
COMMANDS = [  # (script, arguments, what the error says)
    ("train_json", "--data nowhere.gz", "nowhere.gz"),
    ("train_json", "--lr 1e9 --params kept", "not finite: use a smaller --lr"),
    ("train_builtin", "--params kept", "t10k-images-idx3-ubyte.gz"),
    ("train_async", "--epochs 0 --params kept", "at least 1"),
    ("train_json", "--batch-size 0", "at least 1"),
    ("train_builtin", "--limit 0", "at least 1"),
    ("train_async", "--network resnet", "invalid choice: 'resnet'"),
    ("train_json", "--epochs 1 --params work", "work"),
    ("train_json", "--epochs 1 --params /dev/null", "/dev/null is not a regular file"),
    ("train_async", "--resume --params kept --network mlp", "kept is of another"),
    ("train_async", "--resume --params kept --optimizer sgd", "kept is of another"),
    ("train_async", "--resume --params kept --epochs 1", "2 epochs are done"),
    ("show_batch", "--source json --data work/example_0.png", "example_0.png"),
    ("predict", "work/example_0.png --params nowhere", "nowhere"),
    ("predict", "", "--samples"),
    ("predict", "work/example_0.png --samples 3", "--samples"),
]


@pytest.fixture(scope="module")
def place(small_work, tmp_path_factory):
    """A folder with a small work/ and a parameters file called kept."""
    place = tmp_path_factory.mktemp("bad")
    shutil.copytree(small_work, place / "work")
    succeed(place, "train_async", "--epochs", 2, "--params", "kept")
    cut = place / "work" / "t10k-images-idx3-ubyte.gz"
    cut.write_bytes(cut.read_bytes()[:-50])
    return place


def refused(folder, script, *arguments):
    """Run a script that must refuse its input in one line; return that line."""
    status, _, err = run(folder, script, *arguments)
    *usage, line = err.splitlines()
    assert status != 0 and "error: " in line and "Traceback" not in err, err
    assert len(usage) <= 1 and all(part.startswith("usage: ") for part in usage), err
    return line


def test_wrong_flags_and_files_get_one_line_and_leave_the_old_parameters(place):
    before = (place / "kept").read_bytes()
    lines = POOL.map(lambda row: refused(place, row[0], *row[1].split()), COMMANDS)
    for (script, arguments, words), line in zip(COMMANDS, lines):
        assert words in line, (script, arguments, line)
    assert (place / "kept").read_bytes() == before
    assert not list(place.glob("*.tmp"))


def test_bad_data_are_refused_with_their_place(splits, tmp_path):
    from train_json import read_splits

    good = [[i.reshape(-1, 784).tolist(), n.tolist()] for i, n in splits]
    files = list(FILES)
    for indices, value, words in PLACES:
        part = data = copy.deepcopy(good)
        for index in indices[:-1]:
            part = part[index]
        part[indices[-1]] = value
        files.append((gzip.compress(json.dumps(data).encode(), 1), words))
    path = tmp_path / "bad.json.gz"
    for content, words in files:
        path.write_bytes(content)
        with pytest.raises((ValueError, OSError), match=words) as caught:
            read_splits(path, None)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_parameters_are_refused_by_their_name(place):
    with safetensors.safe_open(place / "kept", "numpy") as file:
        good = json.loads(file.metadata()["mnist"])
        names = [n for n in file.keys() if not n.startswith("optimizer.")]
        tensors = {name: file.get_tensor(name) for name in names}
    first = names[0]
    rest = {name: tensors[name] for name in names[1:]}

    def save(tensors, metadata=good):
        return safetensors.numpy.save(tensors, {"mnist": json.dumps(metadata)})

    files = {
        "pickle": pickle.dumps(tensors),
        "cut": save(tensors)[:-100],
        "without metadata": safetensors.numpy.save(tensors),
        "foreign metadata": save(tensors, []),
        "network": save(tensors, good | {"network": "resnet"}),
        "missing": save(rest),
        "surplus": save(tensors | {"more": np.zeros(3)}),
        "shape": save(rest | {first: np.zeros((1, 2), np.float32)}),
        "dtype": save(rest | {first: tensors[first].astype(np.float16)}),
    }
    for name, content in files.items():
        (place / name).write_bytes(content)
    flags = "predict", "work/example_9.png", "--params"
    for name, line in zip(files, POOL.map(lambda n: refused(place, *flags, n), files)):
        assert name in line, line


def test_bad_pictures_get_a_line_each_and_the_others_are_read(place):
    (place / "empty").mkdir()
    (place / "text.png").write_text("no picture")
    content = (place / "work" / "example_7.png").read_bytes()
    (place / "cut.png").write_bytes(content[:5000])
    Image.new("L", (90, 90), 200).save(place / "blank.jpg")
    Image.new("L", (2, 1)).save(place / "tiny.png")
    bad = ["empty", "text.png", "cut.png", "blank.jpg", "tiny.png", "no.png", "x" * 300]
    good = ["work/example_3.png", "work/example_9.png"]
    names = ["--params", "kept", good[0], *bad, good[1]]
    status, out, err = run(place, "predict", *names)
    assert status == 1
    assert [line.split(":")[0] for line in out.splitlines()] == good
    lines = err.splitlines()
    assert len(lines) == len(bad) and all(x.startswith("error: ") for x in lines)
    assert all(name in line for name, line in zip(bad, lines)), err
    assert err.count("no ink") == 2  # The blank and the tiny one


def test_missing_gpu_is_one_warning(place):
    for command in ("train_json --epochs 1", "predict work/example_9.png"):
        status, _, err = run(place, *command.split(), "--gpu", "--params", "kept.json")
        assert status == 0 and re.fullmatch("warning: .*GPU.*\n", err)
