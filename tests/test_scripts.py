"""Each script runs alone, has the promised shape, and shares text with the others."""

import ast
import importlib
import io
import itertools
import re
import shlex
import sys
import tokenize

import pytest
from conftest import ROOT, SCRIPTS, read_idx, succeed

# Shape is a promise, by which no line has to be squeezed.
LONGEST = {"main": 45, "parse_args": 45}  # Lines; of any other function:
FUNCTION = 35
TOKENS = 10.5  # In a line of code, on average
PARAGRAPH = 8  # Lines of code without a blank one
SIZES = {  # Lines: (what was aimed at, what holds)
    "show_batch.py": (70, 129),
    "train_builtin.py": (120, 177),
    "train_json.py": (160, 219),
    "train_async.py": (400, 537),
    "predict.py": (450, 1228),
    "*.py": (1200, 2290),
    "tests/[ct]*.py": (800, 1056),  # conftest.py and the tests
    "tests/[bd]*.py": (320, 390),  # The benchmark
    "work/make_data.py": (220, 220),
    "README.md": (140, 140),
    "README.zh-CN.md": (140, 140),
}
# What a script teaches is its own text, under the name that it has in all of them.
LESSONS = {"main", "parse_args", "train_one_epoch", "evaluate"}


def source(script):
    return (ROOT / f"{script}.py").read_text("utf-8")


@pytest.mark.parametrize("script", ["train_builtin", "train_json", "train_async"])
def test_training_runs_one_epoch_on_a_subset_alone_in_a_folder(
    script, folder, monkeypatch
):
    flags = "--epochs 1 --limit 300 --batch-size 20"
    out = succeed(folder, f"{script}.py {flags} --params 网络.safetensors")
    assert "300" in out and "epoch: 0, batch: 0, loss is: " in out
    epoch = r"^epoch 1/1  loss \d+\.\d{4}  .* \d\d?\.\d\d %  \d+\.\d s$"
    assert re.search(epoch, out, re.M)
    assert re.search(r"^test: \d+ / 200 correct \(\d+\.\d\d %\)", out, re.M)
    *lines, saved, following = out.splitlines()
    assert saved == "saved: 网络.safetensors" and max(map(len, lines)) <= 80
    assert following.startswith("next: python ")
    monkeypatch.setattr("sys.argv", shlex.split(following)[2:])
    args = importlib.import_module(sys.argv[0].removesuffix(".py")).parse_args()
    assert args.params in ("网络.safetensors", "mnist.safetensors")


def test_show_batch_prints_a_batch_and_draws_it(folder):
    both = "show_batch.py --save one.png", "show_batch.py --source json --save two.png"
    one, two = succeed(folder, *both).split("images: ")[1:]
    assert one.startswith("(8, 784) float32, -1.0 to 1.0\nlabels: (8, 1) int64, ")
    assert two.startswith("(8, 1, 28, 28) float32, -1.0 to 1.0\nlabels: (8, 1) float32")
    grey = read_idx("train-images-idx3")[0, :, 4:24].astype(str)
    for out, name in (one, "one.png"), (two, "two.png"):
        rows = [line.split() for line in out.splitlines() if re.match(" *[0-9]", line)]
        assert (rows[:28] == grey).all() and "the first is [5" in out
        assert f"\ndrawn: {name}\n" in out
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def commands(readme):
    """Return the python commands in a README's sentences, tables and blocks."""
    pattern = r"`(python [^`\n]+)`|^ *((?:python|pip) .*)$"
    found = re.findall(pattern, (ROOT / readme).read_text("utf-8"), re.M)
    parts = [part.strip() for pair in found for part in "".join(pair).split("&&")]
    return [part for part in parts if part.startswith("python ")]


def test_commands_of_the_readme_run_as_they_stand(folder):
    both = [commands(readme) for readme in ("README.md", "README.zh-CN.md")]
    assert both[0] == both[1]
    first, then = [], []
    for command in dict.fromkeys(both[0]):
        command = command.removeprefix("python ")
        script, *arguments = shlex.split(command)
        files = [a for a in arguments if a.endswith((".gz", ".jpg", ".png"))]
        here = all((folder / file).exists() for file in files)  # Recipes bring theirs.
        ours = (ROOT / script).exists() and "/" not in script
        if ours and here and "--draw" not in arguments:
            trains = script.startswith("train") and "--resume" not in arguments
            (first if trains else then).append(command)
    assert len(first) > 7 and len(then) > 7
    succeed(folder, *first, *then)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_every_flag_does(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args()
    out = capsys.readouterr().out
    found = re.findall(r"^  (--[^\n]*?)(?:\n {10,}| {2,})(\S.*)", out, re.M)
    assert len(found) > 3 and [flag for flag, text in found if len(text) <= 8] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_shape_is_as_promised(script):
    text = source(script)
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST.get(node.name, FUNCTION), node.name
            first = node.body[ast.get_docstring(node) is not None]
            code = "\n".join(lines[first.lineno - 1 : node.end_lineno])
            paragraphs = [part.count("\n") + 1 for part in code.split("\n\n")]
            assert max(paragraphs) <= PARAGRAPH, node.name

    code = [line for line in lines if line.strip() and line.strip()[0] != "#"]
    kinds = tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    assert sum(token.type in kinds for token in tokens) / len(code) <= TOKENS


@pytest.mark.parametrize("pattern", SIZES)
def test_sizes_are_as_promised(pattern):
    texts = [path.read_text("utf-8") for path in ROOT.glob(pattern)]
    assert 0 < sum(len(text.splitlines()) for text in texts) <= SIZES[pattern][1]


def definitions(script):
    """Return {name: source} of a script's functions, classes, constants, imports."""
    found = {}
    for node in ast.parse(source(script)).body:
        segment = ast.get_source_segment(source(script), node)
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = segment
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = segment
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found[f"import {segment.split()[-1]}"] = segment
    return found


def test_what_bears_one_name_is_one_text():
    shared = set()
    for one, other in itertools.combinations(map(definitions, SCRIPTS), 2):
        for name in one.keys() & other.keys() - LESSONS:
            assert one[name] == other[name], name
            shared.add(name)
    assert {"build_network", "read_splits", "save_parameters", "OUTPUTS"} <= shared
    builtin, by_hand = definitions("train_builtin"), definitions("train_json")
    for name in ("evaluate", "train_one_epoch"):
        assert builtin[name] == by_hand[name]
    imports = rf"^\s*(import|from) ({'|'.join(SCRIPTS)})\b"
    assert not any(re.search(imports, source(script), re.M) for script in SCRIPTS)
