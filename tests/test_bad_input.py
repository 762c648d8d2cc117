"""Bad input gets one line that says what and where, and loses nothing on disk."""

import gzip
import importlib
import json
import pickle
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, SCRIPTS, run, start, succeed
from PIL import Image

from predict import Reader
from train_builtin import read_builtin
from train_json import MNIST, parse_args, read_splits, save_parameters

pack = gzip.compress
DARK = [1, *[0] * 783]


def end_with(images, labels):
    """Return a data file of one image a split, but for the last."""
    return pack(json.dumps([([DARK], [5])] * 2 + [(images, labels)]).encode())


JSON = [  # (mnist.json.gz, what the error says)
    (b"", "truncated"),
    (b"not packed", "Not a gzipped file"),
    (end_with([DARK], [5])[:-9], "end-of-stream marker"),
    (pack(b"[]")[:10] + b"\xff" * 99, "invalid block type"),
    (pack(b"[]"), "length 3"),
    (pack(b"[" * 10**5), "recursion"),
    (end_with([[256, *DARK[1:]]], [5]), r"range\(0, 256\) - at `\$\[2\]\[0\]\[0\]`"),
    (end_with([[0, 0.5, *DARK[2:]]], [5]), "'float' object .* - at"),
    (end_with([[0.5] * 783 + [1.0]], [5]), r"range\(0, 256\) - at"),
    (end_with([DARK, DARK[1:]], [5, 5]), r"size 783 .* - at `\$\[2\]\[0\]\[1\]`"),
    (end_with([784], [5]), "'int' object"),
    (end_with([{"pixels": DARK}], [5]), "'str' object"),
    (end_with([DARK], [10]), r"`int` <= 9 - at `\$\[2\]\[1\]\[0\]`"),
    (end_with([DARK], [5, 5]), "eval: 1 images, 2 labels"),
    (end_with([], []), r"length >= 1 - at `\$\[2\]\[0\]`"),
]
IDX = [  # (which file, what becomes of it: a are images, b labels; what the error says)
    ("images-idx3", lambda a, b: None, "No such file.*images-idx3"),
    ("labels-idx1", lambda a, b: None, "No such file.*labels-idx1"),
    ("images-idx3", lambda a, b: a, "Not a gzipped file"),
    ("images-idx3", lambda a, b: pack(a)[:-50], "end-of-stream"),
    ("images-idx3", lambda a, b: pack(a[:-784]), "requires a buffer of"),
    ("images-idx3", lambda a, b: pack(b), "requires a buffer of"),
    ("labels-idx1", lambda a, b: pack(b[:208]), "requires a buffer of"),
]
COMMANDS = [  # (script, arguments, what the error says)
    ("train_json", "--data nowhere.gz", "nowhere.gz: .*No such file"),
    ("train_json", "--lr 1e9 --limit 100 --params kept", "use a smaller --lr"),
    ("train_async", "--lr 1e9 --limit 50 --epochs 1 --params kept", "a smaller --lr"),
    ("train_builtin", "--params work", "work: "),
    ("train_json", "--params work/mnist.json.gz", "work/mnist.json.gz: .*not a param"),
    ("train_async", "--params train_async.py", "train_async.py: .*not a parameters"),
    ("train_builtin", "--params foreign", "foreign: .*not a parameters file"),
    ("train_json", "--params protected", "protected: protected"),
    ("train_async", "--params nowhere/new", "nowhere/new: No such file or directory"),
    ("train_builtin", f"--params {'x' * 300}", "File name too long"),
    ("train_async", "--resume --params kept --epochs 5 --network mlp", "kept"),
    ("train_async", "--batch-size 1", "--batch-size"),
    ("train_async", "--params kept --lr 1e9", "use a smaller --lr"),
    ("train_async", "--params kept --lr 1 --network linear --loss regression", "--lr"),
    ("show_batch", "--data bad.json.gz", "eval: 1 images, 2 labels"),
    ("show_batch", "--save nowhere/new.png", "nowhere/new.png: No such file"),
]
FLAGS = [  # (script, arguments, of which the first is named by the error)
    ("train_json", "--lr nan"),
    ("train_async", "--lr -0.01"),
    ("train_builtin", "--seed -1"),
    ("train_json", "--seed 4294967296"),
    ("train_async", "--epochs 0"),
    ("train_async", "--workers -1"),
    ("show_batch", "--batch-size -1"),
    ("show_batch", "--save show_batch.py"),
    ("predict", "--samples -3"),
    ("predict", "--samples 3 work/example_0.png"),
]


@pytest.fixture(scope="module")
def place(small_work, tmp_path_factory):
    """A folder with a small work/, a parameters file called kept, and odd files."""
    place = tmp_path_factory.mktemp("bad")
    shutil.copytree(small_work, place / "work")
    succeed(place, "train_async.py --epochs 2 --params kept")
    shutil.copy(place / "kept", place / "protected")
    (place / "protected").chmod(0o444)
    (place / "foreign").write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    (place / "bad.json.gz").write_bytes(end_with([DARK], [5, 5]))
    for script in SCRIPTS:
        shutil.copy(ROOT / f"{script}.py", place)
    return place


def contents(folder):
    """Return {path: its bytes} of all files in a folder."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("script, arguments", FLAGS)
def test_wrong_flags_are_named(script, arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{script}.py", *arguments.split()])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).parse_args()
    pattern = f"usage: .*\n.*error: .*{arguments.split()[0]}.*\n"
    assert re.fullmatch(pattern, capsys.readouterr().err)


def test_wrong_files_get_one_line_and_leave_all_files(place):
    commands = [f"{script}.py {arguments}" for script, arguments, _ in COMMANDS]
    before = contents(place)
    lines = run(place, *commands)[2].splitlines()
    for (_, _, words), line in zip(COMMANDS, lines, strict=True):
        assert re.match(f"failed: error: .*{words}", line), lines
    assert contents(place) == before


def test_bad_json_is_refused_with_its_place(tmp_path):
    path = tmp_path / "bad.json.gz"
    for content, words in JSON:
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=rf"\Aerror: {path}: .*{words}.*\Z"):
            read_splits(path)


def test_the_courses_pixels_are_read_as_ours(folder, capsys):
    ours, course = folder / "work" / "mnist.json.gz", folder / "course.json.gz"
    splits = json.loads(gzip.decompress(ours.read_bytes()))
    floats = [[(np.array(images) / 256).tolist(), n] for images, n in splits]
    course.write_bytes(pack(json.dumps(floats).encode()))
    for one, other in zip(read_splits(ours).values(), read_splits(course).values()):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind, change, words", IDX)
def test_bad_idx_files_are_refused_by_name(kind, change, words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    paths = sorted(Path("work").glob("train-*ubyte.gz"))
    content = change(*(gzip.decompress(path.read_bytes()) for path in paths))
    bad = Path(f"work/train-{kind}-ubyte.gz")
    bad.write_bytes(content) if content else bad.unlink()
    with pytest.raises(SystemExit, match=f"^error: work/train-.*ubyte.gz: .*{words}"):
        read_builtin("train")


def test_a_full_disk_leaves_the_old_file_and_no_rest(place):
    before = contents(place)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Bytes
    with pytest.raises(SystemExit, match="^error: .*kept: File too large$"):
        save_parameters(place / "kept", MNIST().state_dict(), {})
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(place) == before


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to("target")
    for _ in range(2):  # The second time the target is there.
        save_parameters(link, MNIST().state_dict(), {})
    assert link.is_symlink()
    assert safetensors.numpy.load_file(target).keys() == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_paddle_is_imported_is_one_line(script, folder):
    process = start(folder, f"{script}.py")
    while "libpaddle" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "stopped\n")


def test_output_that_nobody_reads_ends_a_script_in_silence(folder):
    process = start(folder, "show_batch.py")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() != 0


def test_letters_that_the_console_lacks_are_replaced(folder):
    command = "train_json.py --epochs 1 --limit 100 --params é网络.safetensors"
    done = run(folder, command, PYTHONIOENCODING="ascii")
    assert done[0] == 0 and "saved: ???.safetensors" in done[1]


@pytest.mark.filterwarnings("ignore:Skip loading")
def test_bad_parameters_are_refused_by_their_name(tmp_path):
    def save(tensors, network="linear"):
        metadata = json.dumps({"network": network, "loss": "regression"})
        return safetensors.numpy.save(tensors, {"mnist": metadata})

    good = {"fc.weight": np.ones((784, 1), "f"), "fc.bias": np.ones(1, "f")}
    path = tmp_path / "given"
    path.write_bytes(save(good))
    Reader(path)
    for content in (
        pickle.dumps(good),
        save(good)[:-100],
        safetensors.numpy.save(good),  # Without metadata
        save(good, "resnet"),
        save({}),
        save(good | {"more": np.zeros(3)}),
        save(good | {"fc.bias": np.ones(2, "f")}),
    ):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=f"^error: {path}: not a parameters file"):
            Reader(path)


def test_bad_pictures_get_a_line_each_and_the_others_are_read(place):
    (place / "empty").mkdir()
    (place / "text.png").write_text("no picture")
    content = (place / "work" / "example_7.png").read_bytes()
    (place / "cut.png").write_bytes(content[:5000])
    Image.new("L", (90, 90), 200).save(place / "blank.jpg")
    Image.new("L", (2, 1)).save(place / "tiny.png")
    noise = np.random.default_rng(0).normal(0, 3, (400, 600))
    light = np.linspace(235, 130, 600) + noise  # Falls off by 45 %
    Image.fromarray(light.astype(np.uint8)).save(place / "light.png")
    form = np.pad(np.pad(np.full((90, 90), 240, np.uint8), 3), 30, constant_values=240)
    Image.fromarray(np.hstack([form] * 3)).save(place / "form.png")  # Empty boxes
    blank = ["blank.jpg", "tiny.png", "light.png", "form.png"]
    bad = ["empty", "text.png", "cut.png", *blank, "no.png", "x" * 300]
    good = ["work/example_3.png", "work/example_9.png"]
    names = " ".join([good[0], *bad, good[1]])
    status, out, err = run(place, f"predict.py --params kept {names}")
    assert status == 1 and re.findall("^(.*): .*$", out, re.M) == good
    assert [re.match("error: (.*?): ", s)[1] for s in err.splitlines()] == bad
    assert err.count("no ink") == len(blank)


def test_missing_gpu_is_one_warning(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_json.py", "--gpu"])
    assert not parse_args().gpu
    assert re.fullmatch("warning: .*GPU.*\n", capsys.readouterr().err)
