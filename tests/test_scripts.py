"""Each script runs alone, has the promised shape, and shares text with the others."""

import ast
import importlib
import io
import itertools
import re
import shlex
import tokenize

import pytest
from conftest import ROOT, SCRIPTS, succeed

TRAINING = ["train_builtin", "train_json", "train_async"]
# Shape is a promise, by which no line has to be squeezed.
LONGEST = {"main": 45, "parse_args": 45}  # Lines; of any other function:
FUNCTION = 35
TOKENS = 10.5  # In a line of code, on average
PARAGRAPH = 8  # Lines of code without a blank one
TOGETHER = 1200  # Lines of the five scripts
LINES = {
    "show_batch.py": 180,
    "train_builtin.py": 205,
    "train_json.py": 235,
    "train_async.py": 400,
    "predict.py": 450,
    "tests/benchmark.py": 320,
    "work/make_data.py": 220,
    "README.md": 140,
    "README.zh-CN.md": 140,
}
TESTS = 800  # Lines of all tests, without the benchmark
# What a script teaches is its own text, under the name that it has in all of them.
LESSONS = {"main", "parse_args", "train_one_epoch", "evaluate"}


def source(name):
    return (ROOT / name).read_text(encoding="utf-8")


def count_lines(name):
    return len(source(name).splitlines())


def functions(text):
    return [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]


def paragraphs(function, lines):
    """Return the lengths of a function's runs of lines without a blank one."""
    body = function.body[ast.get_docstring(function) is not None :]
    code = lines[body[0].lineno - 1 : function.end_lineno] if body else []
    groups = itertools.groupby(code, key=lambda line: bool(line.strip()))
    return [len(list(group)) for filled, group in groups if filled]


def commands(readme):
    """Return the python commands in a README's sentences, tables and blocks."""
    pattern = r"`(python [^`\n]+)`|^ *((?:python|pip) .*)$"
    found = ["".join(pair) for pair in re.findall(pattern, source(readme), re.M)]
    parts = [part.strip() for line in found for part in line.split("&&")]
    return [part for part in parts if part.startswith("python ")]


@pytest.mark.parametrize("script", TRAINING)
def test_training_runs_one_epoch_on_a_subset_alone_in_a_folder(script, folder):
    flags = "--epochs", 1, "--limit", 300, "--batch-size", 20
    out = succeed(folder, script, *flags, "--params", "it's 网络.safetensors")
    assert "300" in out and "epoch: 0, batch: 0, loss is: " in out
    assert re.search(
        r"^epoch 1/1  loss \d+\.\d{4}  .* \d\d?\.\d\d %  \d+\.\d s$", out, re.M
    )
    assert re.search(r"^test: \d+ / 200 correct \(\d+\.\d\d %\)", out, re.M)
    assert out.splitlines()[-2] == "saved: it's 网络.safetensors"
    assert max(map(len, out.splitlines())) <= 80
    next_command = shlex.split(out.splitlines()[-1])
    assert next_command[:2] == ["next:", "python"]
    assert succeed(folder, next_command[2].removesuffix(".py"), *next_command[3:])


@pytest.mark.parametrize("source", ["builtin", "json"])
def test_show_batch_prints_a_batch_and_draws_it(source, folder, splits):
    out = succeed(folder, "show_batch", "--source", source, "--save", "shown.png")
    shape, labels = {
        "builtin": ("8, 784", r"(8, 1) int64, the first is [5]"),
        "json": ("8, 1, 28, 28", r"(8, 1) float32, the first is [5.]"),
    }[source]
    assert f"images: ({shape}) float32, -1.0 to 1.0\nlabels: {labels}\n" in out
    rows = [line.split() for line in out.splitlines() if re.fullmatch("[0-9 ]+", line)]
    left, right = map(int, re.search(r"columns (\d+) to (\d+)", out).groups())
    assert (splits[0][0][0][:, left : right + 1].astype(str) == rows).all()
    assert out.endswith("drawn: shown.png\n")
    assert (folder / "shown.png").read_bytes().startswith(b"\x89PNG")


def test_commands_of_the_readme_run_as_they_stand(folder):
    both = [commands(readme) for readme in ("README.md", "README.zh-CN.md")]
    assert both[0] == both[1]
    ran = 0
    for command in dict.fromkeys(both[0]):
        script, *arguments = shlex.split(command)[1:]
        files = [a for a in arguments if a.endswith((".gz", ".jpg", ".png"))]
        here = all((folder / file).exists() for file in files)  # Recipes bring theirs.
        if script.removesuffix(".py") in SCRIPTS and here and "--draw" not in arguments:
            succeed(folder, script.removesuffix(".py"), *arguments)
            ran += 1
    assert ran > 15


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_every_flag_does(script, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(script).parse_args()
    out = capsys.readouterr().out
    found = re.findall(r"^  (--[^\n]*?)(?:\n {10,}| {2,})(\S.*)", out, re.M)
    assert len(found) > 3 and [flag for flag, text in found if len(text) <= 8] == []


@pytest.mark.parametrize("name", [f"{script}.py" for script in SCRIPTS])
def test_shape_is_as_promised(name):
    text = source(name)
    lines = text.splitlines()
    for function in functions(text):
        length = function.end_lineno - function.lineno + 1
        assert length <= LONGEST.get(function.name, FUNCTION), function.name
        assert max(paragraphs(function, lines), default=0) <= PARAGRAPH, function.name
    code = [line for line in lines if line.strip() and line.strip()[0] != "#"]
    kinds = tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    assert sum(token.type in kinds for token in tokens) / len(code) <= TOKENS


def test_sizes_are_as_promised():
    sizes = {name: count_lines(name) for name in LINES}
    assert {name: n for name, n in sizes.items() if n > LINES[name]} == {}
    assert sum(sizes[f"{script}.py"] for script in SCRIPTS) <= TOGETHER
    tests = [f"tests/{path.name}" for path in ROOT.glob("tests/*.py")]
    assert sum(map(count_lines, tests)) - sizes["tests/benchmark.py"] <= TESTS


def definitions(script):
    """Return {name: source} of a script's functions, classes, constants, imports."""
    text = source(f"{script}.py")
    found = {}
    for node in ast.parse(text).body:
        segment = ast.get_source_segment(text, node)
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = segment
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            decorators = [ast.get_source_segment(text, d) for d in node.decorator_list]
            found[node.name] = decorators, segment
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                name = alias.asname or alias.name
                found[f"import {name}"] = getattr(node, "module", None), alias.name
    return found


def test_what_bears_one_name_is_one_text():
    shared = set()
    for one, other in itertools.combinations(map(definitions, SCRIPTS), 2):
        for name in one.keys() & other.keys() - LESSONS:
            assert one[name] == other[name], name
            shared.add(name)
    assert {"build_network", "read_splits", "save_parameters", "OUTPUTS"} <= shared
    builtin, by_hand = definitions("train_builtin"), definitions("train_json")
    for name in ("MNIST", "evaluate", "train_one_epoch"):
        assert builtin[name] == by_hand[name]
    imports = rf"^\s*(import|from) ({'|'.join(SCRIPTS)})\b"
    assert not any(re.search(imports, source(f"{s}.py"), re.M) for s in SCRIPTS)
