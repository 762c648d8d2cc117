"""Bad input gets one line that says what and where, and loses nothing on disk."""

import copy
import gzip
import importlib
import json
import pickle
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import KINDS, POOL, ROOT, SCRIPTS, refused, run, start, succeed
from PIL import Image

pack = gzip.compress
PLACES = [  # (indices into mnist.json.gz, what is put there, what the error says)
    ((2, 0, 0, 2), 256, r"range\(0, 256\) - at `\$\[2\]\[0\]\[0\]`"),
    ((0, 0, 1, 0), -1, r"range\(0, 256\) - at `\$\[0\]\[0\]\[1\]`"),
    ((0, 0, 1, 5), 0.5, "'float' object .* - at"),
    ((0, 0, 0), [0.5] * 783 + [1.0], r"range\(0, 256\) - at"),
    ((0, 0, 3), [0] * 783, r"783 pixels instead of 784 - at `\$\[0\]\[0\]\[3\]`"),
    ((0, 0, 3), [0] * 785, "785 pixels"),
    ((0, 0, 3), 784, "'int'"),
    ((0, 0, 3), ["0"] * 784, "'str'"),
    ((1, 1, 7), 10, r"`int` <= 9 - at `\$\[1\]\[1\]\[7\]`"),
    ((1, 1), [1] * 199, "valid: 200 images, 199 labels"),
    ((2,), [[], []], r"length >= 1 - at `\$\[2\]\[0\]`"),
    ((2,), None, r"Expected `array`, got `null` - at `\$\[2\]`"),
]
FILES = [  # (the whole file, what the error says)
    (b"", "truncated"),
    (b"not packed", "Not a gzipped file"),
    (pack(b"[[[[0,NaN]"), "JSON is malformed"),
    (pack(b"[[[[1,2]],[3]]]")[:-9], "end-of-stream marker"),
    (pack(b"[]")[:10] + b"\xff" * 99, "invalid block type"),
    (pack(b"[]"), "length 3"),
]
IDX = [  # (which file, what becomes of it: a are images, b labels; what the error says)
    ("images-idx3", lambda a, b: None, "No such file.*images-idx3"),
    ("labels-idx1", lambda a, b: None, "No such file.*labels-idx1"),
    ("images-idx3", lambda a, b: a, "Not a gzipped file"),
    ("images-idx3", lambda a, b: pack(a)[:-50], "end-of-stream"),
    ("images-idx3", lambda a, b: pack(a[:-784]), "599 images, 600 labels"),
    ("images-idx3", lambda a, b: pack(a + b"1"), "600.001 images"),
    ("images-idx3", lambda a, b: pack(b), "600 labels"),
    ("labels-idx1", lambda a, b: pack(a), "600 images"),
    ("labels-idx1", lambda a, b: pack(b[:208]), "600 images, 200 labels"),
]
COMMANDS = [  # (script, arguments, what the error says)
    ("train_json", "--data nowhere.gz", "nowhere.gz: .*No such file"),
    ("train_json", "--lr 1e9 --limit 100 --params kept", "use a smaller --lr"),
    ("train_builtin", "--lr 1 --params kept", "use a smaller --lr"),
    ("train_builtin", "--params work", "work: "),
    ("train_json", "--params /dev/null", "/dev/null: .*not a parameters file"),
    ("train_json", "--params work/mnist.json.gz", "work/mnist.json.gz: .*not a param"),
    ("train_async", "--params train_async.py", "train_async.py: .*not a parameters"),
    ("train_builtin", "--params foreign", "foreign: .*not a parameters file"),
    ("train_json", "--params protected", "protected: protected"),
    ("train_async", "--params nowhere/new", "nowhere/new: No such file or directory"),
    ("train_json", "--params train_json.py/new", "train_json.py/new: Not a directory"),
    ("train_builtin", f"--params {'x' * 300}", "File name too long"),
    ("train_async", "--resume --params kept --epochs 5 --network mlp", "kept"),
    ("train_async", "--resume --params kept --epochs 5 --optimizer sgd", "kept"),
    ("show_batch", "--source json --data work/example_0.png", "example_0.png"),
    ("show_batch", "--source json --data bad.json.gz", "valid: 200 images, 199 labels"),
    ("show_batch", "--save show_batch.py", "show_batch.py is there and is not a PNG"),
    ("show_batch", "--save nowhere/new.png", "nowhere/new.png: No such file"),
    ("predict", "work/example_0.png --params nowhere", "nowhere"),
]
FLAGS = [  # (script, arguments, of which the first is named by the error)
    ("train_json", "--lr nan"),
    ("train_async", "--lr -0.01"),
    ("train_builtin", "--seed -1"),
    ("train_json", "--seed 4294967296"),
    ("train_async", "--epochs 0"),
    ("train_json", "--batch-size 0"),
    ("train_builtin", "--limit 0"),
    ("train_async", "--workers -1"),
    ("show_batch", "--batch-size -1"),
    ("show_batch", "--data work/mnist.json.gz"),
    ("predict", "--samples -3"),
    ("predict", "--samples 3 work/example_0.png"),
]
# A file may grow to 1000 bytes, which is less than the parameters take.
FULL_DISK = """-c
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")""".split("\n", 1)


def write_json(path, splits):
    """Write splits, (images uint8 [N, 28, 28], labels) each, as mnist.json.gz is."""
    lists = [[i.reshape(-1, 784).tolist(), n.tolist()] for i, n in splits]
    path.write_bytes(pack(json.dumps(lists).encode(), 1))
    return lists


@pytest.fixture(scope="module")
def place(small_work, splits, tmp_path_factory):
    """A folder with a small work/, a parameters file called kept, and odd files."""
    place = tmp_path_factory.mktemp("bad")
    shutil.copytree(small_work, place / "work")
    succeed(place, "train_async", "--epochs", 2, "--params", "kept")
    shutil.copy(place / "kept", place / "protected")
    (place / "protected").chmod(0o444)
    (place / "foreign").write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    valid, labels = splits[1]
    write_json(place / "bad.json.gz", [splits[0], (valid, labels[:-1]), splits[2]])
    for script in SCRIPTS:
        shutil.copy(ROOT / f"{script}.py", place)
    return place


def contents(folder):
    """Return {path: its bytes} of all files in a folder."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("script, arguments", FLAGS)
def test_wrong_flags_are_named(script, arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{script}.py", *arguments.split()])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(script).parse_args()
    usage, line = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and usage.startswith("usage: ")
    assert "error: " in line and arguments.split()[0] in line


def test_wrong_files_get_one_line_and_leave_all_files(place):
    before = contents(place)
    lines = POOL.map(lambda row: refused(place, row[0], *row[1].split()), COMMANDS)
    wrong = [row for row, line in zip(COMMANDS, lines) if not re.search(row[2], line)]
    assert wrong == [] and contents(place) == before


def test_bad_json_is_refused_with_its_place(splits, tmp_path):
    from train_json import read_splits

    path = tmp_path / "bad.json.gz"
    good = write_json(path, splits)
    files = list(FILES)
    for indices, value, words in PLACES:
        part = data = copy.deepcopy(good)
        for index in indices[:-1]:
            part = part[index]
        part[indices[-1]] = value
        files.append((pack(json.dumps(data).encode(), 1), words))
    for content, words in files:
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=words) as caught:
            read_splits(path)
        assert str(caught.value).startswith(f"error: {path}: ")
        assert "\n" not in str(caught.value)


def test_the_courses_own_file_gives_the_same_arrays(splits, tmp_path):
    from train_json import read_splits

    ours, course = tmp_path / "ours.json.gz", tmp_path / "course.json.gz"
    write_json(ours, splits)
    write_json(course, [(images / 256, labels) for images, labels in splits])
    one, other = read_splits(ours), read_splits(course)
    for mode in one:
        assert all(np.array_equal(a, b) for a, b in zip(one[mode], other[mode]))


def test_black_and_white_pixels_are_a_warning(splits, tmp_path, capsys):
    from train_json import read_splits

    write_json(tmp_path / "bw.json.gz", [(images // 128, n) for images, n in splits])
    read_splits(tmp_path / "bw.json.gz")
    assert re.fullmatch("warning: .*bw.json.gz.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("kind, change, words", IDX)
def test_bad_idx_files_are_refused_by_their_name(
    kind, change, words, folder, monkeypatch
):
    from train_builtin import read_builtin

    monkeypatch.chdir(folder)
    paths = [folder / "work" / f"train-{kind}-ubyte.gz" for kind in KINDS]
    content = change(*(gzip.decompress(path.read_bytes()) for path in paths))
    bad = folder / "work" / f"train-{kind}-ubyte.gz"
    bad.unlink() if content is None else bad.write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: work/train-.*ubyte.gz: .*{words}"):
        read_builtin("train")


def test_a_full_disk_leaves_the_old_file_and_no_rest(place):
    flags = "--epochs", 1, "--limit", 100, "--params", "kept"
    before = contents(place)
    line = refused(place, "train_json", *flags, launcher=FULL_DISK)
    assert line == "error: kept: File too large"
    assert contents(place) == before


def test_a_link_stays_and_what_it_names_is_written(folder):
    (folder / "link").symlink_to("target")
    for _ in range(2):  # The second time the target is there.
        succeed(folder, "train_json", "--epochs", 1, "--params", "link")
    assert (folder / "link").is_symlink()
    assert safetensors.numpy.load_file(folder / "target").keys() == {
        "fc.weight",
        "fc.bias",
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_paddle_is_imported_is_one_line(script, folder):
    process = start(folder, script, *["work/example_0.png"] * (script == "predict"))
    while "libpaddle" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert re.fullmatch("stopped\n", err), err


@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_letters_that_the_console_lacks_are_replaced(encoding, folder):
    flags = "--epochs", 1, "--limit", 100, "--params", "é网络.safetensors"
    process = start(folder, "train_json", *flags, PYTHONIOENCODING=encoding)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "") and "saved: " in out


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
