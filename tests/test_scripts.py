"""What scripts and READMEs promise: shape, shared text, commands, recipes, the data."""

import ast
import gzip
import hashlib
import io
import re
import shlex
import shutil
import tokenize

import numpy as np
import pytest
from benchmark import read_mnist
from conftest import ROOT, SCRIPTS, succeed
from PIL import Image, ImageOps
from safetensors.numpy import load_file

from train_json import read_splits

WORK = ROOT / "work"
IMAGES, LABELS = read_mnist("train")
OWN = [np.flatnonzero(LABELS == n)[k] for n in range(10) for k in (0, 1)]
SIZES = {  # Lines: (what was aimed at, what holds)
    "show_batch.py": (70, 138),
    "train_builtin.py": (120, 183),
    "train_json.py": (160, 221),
    "train_async.py": (400, 561),
    "predict.py": (450, 1141),
    "*.py": (1200, 2244),
    "tests/[cdt]*.py": (800, 800),  # All but the benchmark
    "tests/benchmark.py": (320, 320),
    "work/make_data.py": (220, 220),
    "README.md": (140, 140),
    "README.zh-CN.md": (140, 140),
}


@pytest.mark.parametrize("script", ["train_builtin", "train_json", "train_async"])
def test_training_runs_one_epoch_on_a_subset_alone_in_a_folder(script, folder):
    name = "it's 网络.safetensors"
    flags = f"--epochs 1 --limit 300 --batch-size 20 --params {shlex.quote(name)}"
    out = succeed(folder, f"{script}.py {flags}")
    for line in (
        r".*\b300\b.*",
        r"epoch: 0, batch: 0, loss is: .*",
        r"epoch 1/1  loss \d+\.\d{4}  .* \d\d?\.\d\d %  \d+\.\d s",
        r"test: \d+ / 200 correct \(\d+\.\d\d %\).*",
        f"saved: {name}",
        rf"next: python \w+\.py .*(--epochs 3|{re.escape(shlex.quote(name))})",
    ):
        assert re.search(f"^{line}$", out, re.M), line


def test_help_says_what_every_flag_does(folder):
    out = succeed(folder, *(f"{script}.py --help" for script in SCRIPTS))
    flags = re.findall(r"^  --.*\n(?: {4,}.*\n)*", out, re.M)
    assert len(flags) > 40
    for flag in flags:
        assert re.match(r"  --.*?(\n {10,}| {2,})\S.{8}", flag), flag


@pytest.mark.parametrize("script", SCRIPTS)
def test_shape_is_as_promised(script):  # By which no line has to be squeezed.
    text = (ROOT / f"{script}.py").read_text("utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            longest = 45 if node.name in ("main", "parse_args") else 35
            assert node.end_lineno - node.lineno < longest, node.name
            first = node.body[ast.get_docstring(node) is not None]
            code = "\n".join(lines[first.lineno - 1 : node.end_lineno])
            paragraphs = [part.count("\n") + 1 for part in code.split("\n\n")]
            assert max(paragraphs) <= 8, node.name

    code = [line for line in lines if line.strip() and line.strip()[0] != "#"]
    kinds = tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    assert sum(token.type in kinds for token in tokens) / len(code) <= 10.5


@pytest.mark.parametrize("pattern", SIZES)
def test_sizes_are_as_promised(pattern):
    texts = [path.read_text("utf-8") for path in ROOT.glob(pattern)]
    assert 0 < sum(len(text.splitlines()) for text in texts) <= SIZES[pattern][1]


def test_what_bears_one_name_is_one_text():
    texts = {}  # {name: [its text in each script that has it]}
    imports = rf"^\s*(import|from) ({'|'.join(SCRIPTS)})\b"
    for script in SCRIPTS:
        text = (ROOT / f"{script}.py").read_text("utf-8")
        assert not re.search(imports, text, re.M)
        for node in ast.parse(text).body:
            name = getattr(node, "name", None)  # Of a function or a class
            if isinstance(node, ast.Assign):
                name = ast.unparse(node.targets[0])
            if name:
                texts.setdefault(name, []).append(ast.get_source_segment(text, node))

    shared = {name: found for name, found in texts.items() if len(found) > 1}
    assert {"build_network", "read_splits", "save_parameters", "OUTPUTS"} <= set(shared)
    # What a script teaches is its own.
    lessons = {"main", "parse_args", "train_one_epoch", "evaluate"}
    assert {name for name, found in shared.items() if len(set(found)) > 1} == lessons


def commands(readme):
    """Return a README's commands, each once, in its order."""
    found = re.findall(r"\bpython ([^`&\n]+)", (ROOT / readme).read_text("utf-8"))
    return list(dict.fromkeys(command.strip() for command in found))


@pytest.fixture(scope="module")
def home(small_work, tmp_path_factory):
    """A folder with a small work/, and own pictures in mine/."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(small_work, home / "work")
    for index in OWN:
        place = home / "mine" / str(LABELS[index])
        place.mkdir(parents=True, exist_ok=True)
        page = ImageOps.expand(Image.fromarray(IMAGES[index]).resize((140, 140)), 60)
        ImageOps.invert(page).save(place / f"{index:03}.png")
    (home / "mine" / "4" / "notes.txt").touch()
    return home


@pytest.fixture(scope="module")
def said(home):
    """The README's commands and what they print: {command: text}."""
    left_out = r"^-|--draw|bad.json"  # No script; a window; a file of a command before
    chosen = [c for c in commands("README.md") if not re.search(left_out, c)]
    parts = re.split(r"^\$ (.*)\n", succeed(home, *chosen), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def test_commands_of_the_readmes_are_the_same_and_run_as_they_stand(said):
    assert commands("README.md") == commands("README.zh-CN.md")
    assert len(said) > 20


def test_show_batch_prints_a_batch_and_draws_it(said, home):
    one, two = said["show_batch.py"], said["show_batch.py --source json"]
    assert "images: (8, 784) float32, -1.0 to 1.0\nlabels: (8, 1) int64, " in one
    assert "images: (8, 1, 28, 28) float32, -1.0 to 1.0\nlabels: (8, 1) float32" in two
    for out in (one, two):
        rows = [line.split() for line in out.splitlines() if re.match(" *[0-9]", line)]
        assert (rows[:28] == IMAGES[0, :, 4:24].astype(str)).all()
        assert "the first is [5" in out and "\ndrawn: show_batch.png\n" in out
    assert (home / "show_batch.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_misread_is_marked_counted_and_drawn(said, home):
    out = said["predict.py --samples 100 --params ch4.safetensors"]
    rows = re.findall("^label (.*)\ndigit (.*)$", out, re.M)
    labels, digits = (" ".join(part).split() for part in zip(*rows))
    wrong = sum(a != b for a, b in zip(labels, digits, strict=True))
    assert out.count("^") == wrong > 5 and f"{100 - wrong} / 100" in out

    out = succeed(home, "predict.py --test --show --params one.safetensors")
    table = out.split("label, and how often")[1].splitlines()[1:11]
    counts = np.array([line.split()[1:] for line in table], int)
    assert counts.sum() == 200 and f"\n{np.trace(counts)} / 200 correct" in out
    with Image.open(home / "show_predict.png") as drawn:
        assert drawn.format == "PNG" and np.asarray(drawn.convert("L")).std() > 20


def test_asynchronous_training_is_the_articles_bit_for_bit(said, home):
    succeed(home, "train_json.py --epochs 3 --params json.safetensors")
    one, two = (load_file(home / f"{name}.safetensors") for name in ("json", "ch5"))
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def test_recipes_make_data_files_of_own_pictures_and_of_what_is_in_work(said, home):
    made = said["work/make_data.py --data mine.json.gz --pictures mine"]
    assert re.search("^left out: mine/4/notes.txt: .+", made, re.M)
    trained = said["train_async.py --data mine.json.gz --resume --epochs 6"]
    assert "resuming: 3 epochs are done" in trained and "epoch 6/6" in trained
    assert "epochs done already: 6" in said["train_async.py --epochs 6 --resume"]

    (images, labels), valid, test = read_splits(home / "mine.json.gz").values()
    # A sixth of 600 images is for validation; a tenth of 500 takes three rounds of 20.
    assert [len(labels), len(valid[1]), len(test[1])] == [560, 100, 200]
    assert (labels[:20] == LABELS[OWN]).all()
    alike = [np.corrcoef(images[n].flat, IMAGES[OWN[n]].flat)[0, 1] for n in range(20)]
    assert np.median(alike) > 0.8, alike

    assert said["work/make_data.py --data fashion.json.gz"].count("made: ") == 1
    made = (home / "fashion.json.gz").read_bytes()
    assert made == (home / "work" / "mnist.json.gz").read_bytes()


def test_idx_files_unpack_to_mnist_as_it_was_published():
    readme = (WORK / "README.md").read_text("utf-8")
    published = re.findall(r"^\| `(.*\.gz)` .* MD5 .*`(\w{32})`", readme, re.M)
    assert len(published) == 4
    for name, digest in published:
        data = gzip.decompress((WORK / name).read_bytes())
        assert hashlib.md5(data).hexdigest() == digest, name


def test_json_holds_mnist_and_make_data_makes_it_and_the_pictures(small_work):
    for work, count in (WORK, 60000), (small_work, 600):
        train, valid, test = read_splits(work / "mnist.json.gz").values()
        assert len(valid[1]) == count / 6
        for kind in (0, 1):  # Images, labels
            both = np.concatenate([train[kind], valid[kind]])
            assert np.array_equal(both, read_mnist("train")[kind][:count])
            expected = read_mnist("t10k")[kind][: len(test[kind])]
            assert np.array_equal(test[kind], expected)

    for name in [f"example_{digit}.png" for digit in range(10)]:
        old, new = (np.int16(Image.open(at / name)) for at in (WORK, small_work))
        # Other versions of the libraries may round another way or have another font.
        assert (abs(old - new) > 1).mean() <= 0.03, name
