"""Each script runs alone, is small, and shares its text with the others."""

import ast
import itertools
import re
import shlex

import pytest
from conftest import ROOT, SCRIPTS, run, succeed

TRAINING = ["train_builtin", "train_json", "train_async"]
LINES = {  # Size is a promise: the scripts together have at most 900.
    "show_batch.py": 70,
    "train_builtin.py": 120,
    "train_json.py": 160,
    "train_async.py": 290,
    "predict.py": 290,
    "tests/benchmark.py": 260,
    "work/make_data.py": 200,
    "README.md": 110,
    "README.zh-CN.md": 110,
}


def source(script):
    return (ROOT / f"{script}.py").read_text(encoding="utf-8")


def commands(readme):
    """Return the python commands in a README's tables and blocks, in their order."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    found = re.findall(r"`(python \w+\.py[^`]*)`|^    (.*python .*)$", text, re.M)
    return ["".join(pair) for pair in found]


@pytest.mark.parametrize("script", TRAINING)
def test_training_runs_one_epoch_on_a_subset_alone_in_a_folder(script, folder):
    out = succeed(folder, script, "--epochs", 1, "--limit", 300, "--batch-size", 20)
    assert "epoch: 0, batch: 0, loss is: " in out
    assert re.search(r"^epoch 0: loss .* s", out, re.M)
    assert re.search(r"^test: \d+ / 200 correct \(\d+\.\d\d %\)", out, re.M)
    assert out.splitlines()[-2] == "saved: mnist.safetensors"
    next_command = shlex.split(out.splitlines()[-1])
    assert next_command[:2] == ["next:", "python"]
    assert succeed(folder, next_command[2].removesuffix(".py"), *next_command[3:])


@pytest.mark.parametrize("source, shape", [("builtin", "784"), ("json", "1, 28, 28")])
def test_show_batch_prints_a_batch_and_draws_it(source, shape, folder):
    out = succeed(folder, "show_batch", "--source", source, "--save", "shown.png")
    assert f"images: (8, {shape}) float32, -1.0 to 1.0\n" in out
    assert "the first is 5\n" in out and out.endswith("drawn: shown.png\n")
    assert (folder / "shown.png").read_bytes().startswith(b"\x89PNG")


def test_commands_of_the_readme_run_as_they_stand(folder):
    both = [commands(readme) for readme in ("README.md", "README.zh-CN.md")]
    assert both[0] == both[1]
    assert len(both[0]) > 20
    for command in dict.fromkeys(" && ".join(both[0]).split(" && ")):
        words = shlex.split(command)
        if words[1].endswith(".py") and "photo.jpg" not in words:
            succeed(folder, words[1].removesuffix(".py"), *words[2:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_every_flag_does(script, folder):
    out = succeed(folder, script, "--help")
    for flag, text in re.findall(r"^  (--[^\n]*?)(?:\n {10,}| {2,})(\S.*)", out, re.M):
        assert len(text) > 8, flag
    usage, complaint = run(folder, script, "--wrong")[2].splitlines()
    assert usage.startswith("usage: ") and "--wrong" in complaint


def test_sizes_are_as_promised():
    def lines(path):
        return len(path.read_text(encoding="utf-8").splitlines())

    sizes = {name: lines(ROOT / name) for name in LINES}
    assert {name: n for name, n in sizes.items() if n > LINES[name]} == {}
    assert sum(sizes[f"{script}.py"] for script in SCRIPTS) <= 900
    tests = set(ROOT.glob("tests/*.py")) - {ROOT / "tests" / "benchmark.py"}
    assert sum(map(lines, tests)) <= 650


def definitions(script):
    """Return {name: source} of a script's functions, classes and constants."""
    text = source(script)
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            found[ast.unparse(node.targets[0])] = ast.get_source_segment(text, node)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "main":
            decorators = [ast.get_source_segment(text, d) for d in node.decorator_list]
            found[node.name] = decorators, ast.get_source_segment(text, node)
    return found


def test_what_bears_one_name_is_one_text():
    shared = set()
    for one, other in itertools.combinations(map(definitions, SCRIPTS), 2):
        for name in one.keys() & other.keys():
            assert one[name] == other[name], name
            shared.add(name)
    assert {"build_network", "read_splits", "save_parameters", "OUTPUTS"} <= shared
    imports = rf"^\s*(import|from) ({'|'.join(SCRIPTS)})\b"
    assert not any(re.search(imports, source(script), re.M) for script in SCRIPTS)
