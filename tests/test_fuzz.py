"""Mutated files: a reader either succeeds or ends with its one clear error.

FUZZ=10000 python -m pytest tests/test_fuzz.py   tries that many of each kind.
"""

import contextlib
import gzip
import io
import json
import os

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from PIL import Image

pytestmark = pytest.mark.slow
NUMBER = int(os.environ.get("FUZZ", 150))
FIXED = settings(
    max_examples=NUMBER,
    deadline=None,
    database=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
EDITS = some.lists(
    some.tuples(
        some.sampled_from(["set", "cut", "drop", "repeat", "insert"]),
        some.floats(0, 1),
        some.integers(1, 40),
        some.binary(min_size=1, max_size=9)
        | some.sampled_from([b"NaN", b"1e999", b"[", b"]"]),
    ),
    min_size=1,
    max_size=6,
)


def mutate(content, edits):
    """Return content with a few bytes changed, left out, repeated or put in."""
    for kind, place, length, new in edits:
        at = int(place * len(content))
        if kind == "set":
            content = content[:at] + new + content[at + len(new) :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[at + length :]
        elif kind == "repeat":
            content = (
                content[:at] + content[at : at + length] * 3 + content[at + length :]
            )
        else:
            content = content[:at] + new + content[at:]
    return content


def read(script, function, path, content):
    """Let function read content from path; return what came of it."""
    path.write_bytes(content)
    try:
        function(path)
    except script.UserError as error:
        text = script.printable(error)
        assert text and "\n" not in text
        return "refused"
    return "read"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize(
    "packed", [True, False], ids=["the gzip file", "the JSON in it"]
)
def test_mutated_data(packed, place, module):
    script = module("train_json")
    row = [0] * 700 + list(range(0, 252, 3))
    text = json.dumps([[[row, row], [1, 2]], [[row], [3]], [[row], [4]]]).encode()
    whole = gzip.compress(text, mtime=0)

    def function(path):
        script.read_splits.cache_clear()
        path.with_name("data.npz").unlink(missing_ok=True)
        with contextlib.redirect_stderr(io.StringIO()):
            script.read_splits(str(path))

    @FIXED
    @given(EDITS)
    def check(edits):
        content = (
            mutate(whole, edits) if packed else gzip.compress(mutate(text, edits), 1)
        )
        read(script, function, place / "data.json.gz", content)

    check()


def test_mutated_cache(place, module):
    script = module("train_json")
    row = [0] * 783 + [1]
    data = place / "cached.json.gz"
    data.write_bytes(gzip.compress(json.dumps([[[row], [1]]] * 3).encode(), mtime=0))
    script.read_splits.cache_clear()
    script.read_splits(str(data))
    whole = (place / "cached.npz").read_bytes()

    def function(path):
        script.read_splits.cache_clear()
        with contextlib.redirect_stderr(io.StringIO()):
            splits, _ = script.read_splits(str(data))
        assert splits["train"][0].shape == (1, 28, 28)

    @FIXED
    @given(EDITS)
    def check(edits):
        outcome = read(script, function, place / "cached.npz", mutate(whole, edits))
        assert outcome == "read"

    check()


@pytest.mark.parametrize("kind", ["linear", "cnn"])
def test_mutated_parameters(kind, place, module):
    script = module("predict")
    whole = (ROOT / "tests" / "witness" / f"{kind}.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    @FIXED
    @given(EDITS, some.booleans())
    def check(edits, in_header):
        content = mutate(whole, edits)
        if in_header:
            content = mutate(whole[:header], edits) + whole[header:]
        read(script, script.load_network, place / "mnist.safetensors", content)

    check()


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"]
)
def test_mutated_pictures(kind, place, module):
    script = module("predict")
    values = np.full((40, 30), 250, np.uint8)
    values[8:32, 13:17] = 20
    file = io.BytesIO()
    Image.fromarray(values).convert("RGB").save(file, kind)

    def function(path):
        try:
            steps = script.normalise(script.open_picture(path))
        except ValueError as error:
            raise script.UserError(str(error)) from None
        assert steps[-1][1].shape == (28, 28) and steps[-1][1].dtype == np.uint8

    @FIXED
    @given(EDITS)
    def check(edits):
        read(
            script, function, place / f"picture.{kind}", mutate(file.getvalue(), edits)
        )

    check()
