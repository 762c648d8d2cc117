"""Two READMEs, one set of commands and figures; and the commands are real."""

import re
import shlex

import pytest
from conftest import ROOT, SCRIPTS

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
COMMAND = re.compile(
    r"python (?:[a-z_]+|tests/[a-z_]+|SCRIPT)\.py[^`\n]*|python -m [^`\n]*"
)


def commands(text):
    """Return every command in a README."""
    return [found.strip() for found in COMMAND.findall(text)]


def figures(text):
    """Return every number of a README that is not part of a name."""
    return re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)", text)


def test_both_readmes_have_the_same_commands():
    assert commands(ENGLISH) == commands(CHINESE)
    assert len(commands(ENGLISH)) > 30


def test_both_readmes_have_the_same_figures():
    tables = [re.findall(r"^\|.*\|$", text, re.M) for text in (ENGLISH, CHINESE)]
    assert len(tables[0]) == len(tables[1])
    for one, other in zip(*tables):
        assert figures(one) == figures(other)
    prose = [{n for n in figures(text) if len(n) > 1} for text in (ENGLISH, CHINESE)]
    assert prose[0] == prose[1]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_readme_is_finished(text):
    assert len(text.splitlines()) <= 200
    assert "@@" not in text and "TODO" not in text
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


def test_every_command_of_the_readme_has_flags_that_exist(module):
    for command in commands(ENGLISH):
        words = shlex.split(command.split(" && ")[0].split("#")[0])
        script = next((w[:-3] for w in words if w[:-3] in SCRIPTS), None)
        if script and words[-1] != "--help":
            module(script).parse(words[words.index(f"{script}.py") + 1 :])


def test_every_row_of_the_article_has_a_command():
    for row in range(1, 22):
        assert re.search(rf"^\| A{row} \| .*\| .*\| .*\|$", ENGLISH, re.M)
        assert re.search(rf"^\| A{row} \| .*\| .*\| .*\|$", CHINESE, re.M)


def test_every_benchmark_that_the_readme_names_exists():
    source = (ROOT / "tests" / "benchmark.py").read_text(encoding="utf-8")
    for row in re.findall(r"benchmark\.py ([a-z]\w+)|… ([a-z]\w+)`", ENGLISH):
        assert f"def {''.join(row)}(" in source
