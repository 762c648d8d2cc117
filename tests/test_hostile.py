"""Every broken input ends in one clear line and exit status 2, and nothing is lost."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
import safetensors.numpy
from conftest import run
from PIL import Image

ROW = [0] * 783 + [255]
MARKER = "the code in the pickle ran"


def splits(**changes):
    """Return the article's three sets, two images each, one part exchanged.

    rows, labels: the first set's; sets: the whole.
    """
    rows, labels = changes.get("rows", [ROW, ROW]), changes.get("labels", [3, 4])
    return changes.get("sets", [[rows, labels], [[ROW], [1]], [[ROW], [2]]])


def gz(text):
    return gzip.compress(text if isinstance(text, bytes) else text.encode(), 1)


def data(**changes):
    return gz(json.dumps(splits(**changes)))


def pixel(text):
    """A data file with one pixel of the second image replaced by any text."""
    return gz(json.dumps(splits()).replace("255]]", f"{text}]]", 1))


def label(text):
    """A data file with the second label replaced by any text."""
    return gz(json.dumps(splits()).replace("[3, 4]", f"[3, {text}]", 1))


GOOD = data()
LARGE = gz(json.dumps([[[ROW] * 999, [3] * 999], [[ROW], [1]], [[ROW], [2]]]))


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def zeros(megabytes):
    """A gzip file of that many zeros, made without ever holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


def endless_rows(images):
    """A data file that begins well and goes on with the same image for very long."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = (json.dumps(ROW) + ",").encode() * 1000
    start = packer.compress(b"[[[")
    middle = b"".join(packer.compress(block) for _ in range(images // 1000))
    return start + middle + packer.flush()


DATA = {
    "missing": None,
    "a folder": "folder",
    "empty": b"",
    "not gzip": b"hello, world",
    "json but not gzip": json.dumps(splits()).encode(),
    "cut at 1 %": LARGE[: len(LARGE) // 100],
    "cut at 50 %": LARGE[: len(LARGE) // 2],
    "cut at 99 %": LARGE[: len(LARGE) * 99 // 100],
    "a flipped bit": flipped(GOOD),
    "garbage behind": GOOD + b"garbage",
    "not json": gz("hello, world"),
    "not text": gz(bytes(range(256)) * 9),
    "json cut short": gz(json.dumps(splits())[:-3]),
    "json cut at a bracket": gz("[[[" + json.dumps(ROW) + ",["),
    "json with a tail": gz(json.dumps(splits()) + "[1]"),
    "a number": gz("3"),
    "an object": gz('{"train": []}'),
    "an empty list": gz("[]"),
    "lists without end": gz("[" * 100000),
    "brackets only": gz("[]" * 100000),
    "closing brackets": gz("]" * 100000),
    "three empty sets": gz("[[],[],[]]"),
    "two sets": data(sets=splits()[:2]),
    "four sets": data(sets=splits() + [[[ROW], [2]]]),
    "a set of three lists": data(sets=[[[ROW], [1], [1]]] * 3),
    "a set of images only": data(sets=[[[ROW]]] * 3),
    "a set of labels only": data(sets=[[[1, 2]]] * 3),
    "images and labels changed": data(sets=[[[1], [ROW]]] * 3),
    "images one level up": data(sets=[ROW] * 3),
    "images of rows": data(rows=[[[0] * 28] * 28]),
    "no images": data(rows=[], labels=[]),
    "more labels than images": data(labels=[1, 2, 3]),
    "fewer labels than images": data(labels=[1]),
    "a row of 783": data(rows=[ROW, ROW[1:]]),
    "a row of 785": data(rows=[ROW, ROW + [0]]),
    "an empty row": data(rows=[ROW, []]),
    "a row of strings": data(rows=[ROW, ["0"] * 784]),
    "a row of nulls": data(rows=[ROW, [None] * 784]),
    "a pixel that is a string": pixel('"7"'),
    "a pixel that is null": pixel("null"),
    "a pixel that is NaN": pixel("NaN"),
    "a pixel that is Infinity": pixel("Infinity"),
    "a pixel of 1e400": pixel("1e400"),
    "a pixel of 400 digits": pixel("9" * 400),
    "a pixel of 5000 digits": pixel("9" * 5000),
    "a pixel of -1": pixel("-1"),
    "a pixel of 256": pixel("256"),
    "a pixel of 0.5 among whole ones": pixel("0.5"),
    "a pixel that is no json": pixel("0x10"),
    "ranges mixed": data(rows=[[0.5] * 784, ROW]),
    "ranges mixed, negative": data(rows=[[0.5] * 784, [-0.5] * 784]),
    "label 10": label("10"),
    "label -1": label("-1"),
    "label 1.5": label("1.5"),
    "label that is a string": label('"3"'),
    "label that is null": label("null"),
    "label NaN": label("NaN"),
    "label 1e400": label("1e400"),
    "a bomb of zeros": lambda: zeros(2000),
    "a bomb of images": lambda: endless_rows(200_000),
}


@pytest.fixture
def keeper(folder, trained):
    """A folder with a good parameters file, and a check that it is as it was."""
    target = folder / "mnist.safetensors"
    shutil.copy(trained["cnn"], target)
    before = target.read_bytes()
    names = {path.name for path in folder.iterdir()}
    yield folder
    assert target.read_bytes() == before
    left = {path.name for path in folder.iterdir()} - names
    assert not [name for name in left if name.endswith((".tmp", ".safetensors"))]


def refused(status, err):
    """Assert that a script ended with exactly one clear error line."""
    assert status == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    assert errors[0].isprintable()
    return errors[0]


def put(path, content):
    """Make path what a case says: bytes, a function that gives them, a folder, None."""
    content = content() if callable(content) else content
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", DATA)
def test_broken_data_is_refused(case, keeper, module, capsys):
    put(keeper / "broken.json.gz", DATA[case])
    status = module("train_json").main(["--data", "broken.json.gz"])
    assert "broken.json.gz" in refused(status, capsys.readouterr().err)
    assert not (keeper / "broken.npz").exists()


def test_data_that_may_not_be_read_are_refused(keeper, module, capsys):
    path = keeper / "secret.json.gz"
    path.write_bytes(GOOD)
    path.chmod(0)
    if not os.geteuid():  # Root may read all but such a thing as this.
        path = "/proc/self/mem"
    status = module("train_json").main(["--data", str(path)])
    assert str(path) in refused(status, capsys.readouterr().err)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


CACHES = {
    "empty": b"",
    "random bytes": bytes(range(256)) * 40,
    "not npz": b"PK\x03\x04 hello",
    "of other data": npz(sha256=np.array("0" * 64)),
    "of an older form": npz(train=np.zeros((5, 784)), labels=np.zeros(5)),
    "a pickle": npz(sha256=np.array([{}], object)),
    "an array": b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False}",
}


@pytest.mark.parametrize("case", CACHES)
def test_broken_cache_is_replaced(case, folder, module, capsys):
    script = module("train_json")
    cache = folder / "work" / "mnist.npz"
    cache.write_bytes(CACHES[case])
    assert script.main(["--epochs", "1"]) == 0
    assert cache.stat().st_size > 100_000
    capsys.readouterr()
    script.read_splits.cache_clear()
    assert script.main(["--epochs", "1"]) == 0
    assert "parsing" not in capsys.readouterr().err


def test_changed_data_are_noticed_by_their_content(folder, module, real):
    script = module("train_json")
    path = folder / "work" / "mnist.json.gz"
    times = path.stat()
    first = script.read_splits(str(path))[0]["train"][1]
    script.read_splits.cache_clear()
    content = json.loads(gzip.decompress(path.read_bytes()))
    content[0][1][0] = 9
    path.write_bytes(gz(json.dumps(content)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (first[0], script.read_splits(str(path))[0]["train"][1][0]) == (5, 9)
    script.read_splits.cache_clear()


@pytest.mark.parametrize("scale", ["0 to 255", "0 to 1", "-1 to 1"])
def test_three_ranges_of_pixels_give_the_same_images(scale, folder, module, real):
    script = module("train_json")
    convert = {
        "0 to 255": lambda v: v,
        "0 to 1": lambda v: v / 256,
        "-1 to 1": lambda v: (v / 127.5 - 1).astype(np.float32),
    }[scale]
    sets = [
        [convert(i[:50].reshape(-1, 784)).tolist(), n[:50].tolist()]
        for i, n in real.values()
    ]
    (folder / "other.json.gz").write_bytes(gz(json.dumps(sets, indent=1)))
    images, labels = script.read_splits("other.json.gz")[0]["train"]
    assert (images == real["train"][0][:50]).all()
    assert (labels == real["train"][1][:50]).all()


IDX = {
    "images cut": ("images", lambda c: c[: len(c) // 2]),
    "images not gzip": ("images", gzip.decompress),
    "images empty": ("images", lambda c: b""),
    "images with a wrong magic number": ("images", lambda c: wrong(c, 0, 2049)),
    "images that claim more": ("images", lambda c: wrong(c, 4, 700)),
    "images that claim fewer": ("images", lambda c: wrong(c, 4, 500)),
    "images that claim billions": ("images", lambda c: wrong(c, 4, 4_000_000_000)),
    "images of 29 rows": ("images", lambda c: wrong(c, 8, 29)),
    "labels cut": ("labels", lambda c: c[: len(c) // 2]),
    "labels with a wrong magic number": ("labels", lambda c: wrong(c, 0, 2051)),
    "labels that claim more": ("labels", lambda c: wrong(c, 4, 700)),
    "labels of fewer images": ("labels", lambda c: idx(np.zeros(500, np.uint8))),
    "labels that are no digits": ("labels", lambda c: idx(np.full(600, 77, np.uint8))),
}


def wrong(content, place, number):
    raw = bytearray(gzip.decompress(content))
    raw[place : place + 4] = struct.pack(">I", number)
    return gz(bytes(raw))


def idx(labels):
    return gz(struct.pack(">II", 2049, len(labels)) + labels.tobytes())


@pytest.mark.parametrize("script", ["train_builtin", "show_batch"])
@pytest.mark.parametrize("case", IDX)
def test_broken_idx_files_are_refused(case, script, keeper, module, capsys):
    kind, change = IDX[case]
    path = (
        keeper / "work" / next(p.name for p in (keeper / "work").glob(f"train-{kind}*"))
    )
    path.write_bytes(change(path.read_bytes()))
    status = module(script).main([])
    assert "work" in refused(status, capsys.readouterr().err)


class Bomb:
    def __reduce__(self):
        return print, (MARKER,)


def parameters(change=None, tensors=None, metadata=None):
    """Return a function good -> bytes: a good file with tensors or facts changed."""

    def make(good):
        found = safetensors.numpy.load(good)
        size = struct.unpack("<Q", good[:8])[0]
        told = json.loads(good[8 : 8 + size])["__metadata__"]
        if change:
            change(found)
        if metadata is not None:
            told = metadata(told)
        return safetensors.numpy.save(found, told)

    return make


def fact(**changes):
    def change(told):
        facts = json.loads(told["mnist"])
        facts.update(changes)
        return {"mnist": json.dumps(facts)}

    return parameters(metadata=change)


PARAMETERS = {
    "missing": None,
    "a folder": "folder",
    "empty": lambda good: b"",
    "cut in the header": lambda good: good[:100],
    "cut in the middle": lambda good: good[: len(good) // 2],
    "cut by one byte": lambda good: good[:-1],
    "random bytes": lambda good: bytes(np.random.default_rng(0).bytes(5000)),
    "a header length that lies": lambda good: struct.pack("<Q", 2**62) + good[8:],
    "a header length of nothing": lambda good: bytes(8) + good[8:],
    "a header that is not json": lambda good: good[:8] + b"{" * (len(good) - 8),
    "a tensor of another shape": parameters(
        lambda t: t.update({"fc.bias": t["fc.weight"]})
    ),
    "a tensor of another type": parameters(
        lambda t: t.update({"fc.bias": t["fc.bias"].astype(np.float64)})
    ),
    "a missing tensor": parameters(lambda t: t.pop("fc.bias")),
    "a tensor too many": parameters(lambda t: t.update(more=np.zeros(3, np.float32))),
    "NaN inside": parameters(lambda t: t["fc.bias"].fill(np.nan)),
    "infinity inside": parameters(lambda t: t["fc.bias"].fill(np.inf)),
    "of another program": lambda good: safetensors.numpy.save({"a": np.zeros(3)}),
    "facts missing": parameters(metadata=lambda told: {"other": "3"}),
    "facts not json": parameters(metadata=lambda told: {"mnist": "nonsense"}),
    "facts of another kind": parameters(metadata=lambda told: {"mnist": "[1, 2]"}),
    "facts empty": parameters(metadata=lambda told: {"mnist": "{}"}),
    "an unknown network": fact(network="transformer"),
    "a network that is a list": fact(network=["cnn"]),
    "an unknown loss": fact(loss="hinge"),
    "other pixels": fact(pixels=[0, 1]),
    "another network": fact(network="mlp"),
    "another loss": fact(loss="square_error"),
    "control characters": fact(network="cnn\x1b[2J\n"),
    "a pickle": lambda good: pickle.dumps({"fc.bias": [1.0]}),
    "a pickle that runs code": lambda good: pickle.dumps(Bomb()),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_broken_parameters_are_refused(case, folder, trained, module, capsys):
    content, good = PARAMETERS[case], trained["cnn"].read_bytes()
    put(folder / "mnist.safetensors", content(good) if callable(content) else content)
    status = module("predict").main(["work/example_9.png"])
    captured = capsys.readouterr()
    line = refused(status, captured.err)
    assert "mnist.safetensors" in line
    assert MARKER not in captured.out + captured.err
    assert ("pickle" in line) == ("pickle" in case)


CHECKPOINTS = {
    case: PARAMETERS[case]
    for case in PARAMETERS
    if "tensor" not in case and "inside" not in case and "another" not in case
    if case not in ("an unknown network", "an unknown loss", "other pixels")
} | {
    "a missing tensor": parameters(lambda t: t.pop("network.fc.bias")),
    "a missing part": parameters(lambda t: [t.pop(n) for n in list(t) if n[0] == "k"]),
    "a tensor too many": parameters(lambda t: t.update({"kept.x": np.ones(3)})),
    "an unknown part": parameters(lambda t: t.update({"x.x": np.ones(3)})),
    "no optimizer": parameters(lambda t: [t.pop(n) for n in list(t) if n[0] == "o"]),
    "another shape": parameters(
        lambda t: t.update({n: np.ones(3, np.float32) for n in t if "moment1" in n})
    ),
    "NaN in the network": parameters(lambda t: t["network.fc.bias"].fill(np.nan)),
    "NaN in the optimizer": parameters(
        lambda t: [t[n].fill(np.nan) for n in t if "moment1" in n]
    ),
    "settings missing": fact(settings={}),
    "settings of another kind": fact(settings=[1]),
    "settings that are nonsense": fact(settings={"network": "x", "lr": "fast"}),
    "steps that are nonsense": fact(steps="many"),
    "steps below zero": fact(steps=-1),
    "epochs that are nonsense": fact(facts={"epochs": "many"}),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_broken_checkpoints_are_refused(case, folder, trained, module, capsys):
    for kind in (".safetensors", ".resume.safetensors"):
        source = trained["cnn"].with_name("cnn" + kind)
        shutil.copy(source, folder / f"mnist{kind}")
    before = (folder / "mnist.safetensors").read_bytes()
    path = folder / "mnist.resume.safetensors"
    content, good = CHECKPOINTS[case], path.read_bytes()
    path.unlink()
    put(path, content(good) if callable(content) else content)
    status = module("train_async").main(["--resume", "--epochs", "20"])
    captured = capsys.readouterr()
    assert "mnist.resume.safetensors" in refused(status, captured.err)
    assert MARKER not in captured.out + captured.err
    assert (folder / "mnist.safetensors").read_bytes() == before


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def digit(mode="L"):
    """A picture of a one, 90x90, black on white."""
    image = Image.new("L", (90, 90), 255)
    image.paste(0, (42, 15, 48, 75))
    return image.convert(mode)


def huge():
    """A PNG whose header promises 60,000 by 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header
    chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + png(digit())[33:]


PICTURES = {
    "missing": None,
    "a folder without pictures": "folder",
    "empty": b"",
    "text": b"hello, I am a picture",
    "a PNG cut in half": lambda: png(digit())[: len(png(digit())) // 2],
    "a PNG cut in its header": lambda: png(digit())[:20],
    "a JPEG cut in half": lambda: jpeg(digit())[: len(jpeg(digit())) // 2],
    "a JPEG cut in its header": lambda: jpeg(digit())[:20],
    "1x1": lambda: png(Image.new("L", (1, 1))),
    "1x10000": lambda: png(Image.new("L", (1, 10000))),
    "10000x1": lambda: png(Image.new("L", (10000, 1))),
    "a decompression bomb": huge,
    "all white": lambda: png(Image.new("RGB", (90, 90), "white")),
    "all black": lambda: png(Image.new("L", (90, 90), 0)),
    "all transparent": lambda: png(Image.new("RGBA", (90, 90), (255, 0, 0, 0))),
    "one grey, 28x28": lambda: png(Image.new("L", (28, 28), 128)),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "PDF": b"%PDF-1.4 hello",
    "HEIC": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\nshowpage\n",
}


@pytest.mark.parametrize("case", PICTURES)
def test_broken_pictures_are_refused_and_the_others_read(case, keeper, module, capsys):
    name = {"text": "note.png", "SVG": "a.svg", "PDF": "a.pdf", "HEIC": "a.heic"}
    path = put(keeper / name.get(case, "picture.png"), PICTURES[case])
    pictures = [path.name, "work/example_9.png"]
    status = module("predict").main(pictures)
    captured = capsys.readouterr()
    assert path.name in refused(status, captured.err)
    assert captured.out.startswith("work/example_9.png: 9  (")
    if case in ("SVG", "PDF", "HEIC"):
        assert "convert" in captured.err


@pytest.mark.parametrize("noise", range(3))
def test_noise_is_never_a_clear_digit(noise, keeper, module, capsys):
    values = np.random.default_rng(noise).integers(0, 256, (90, 90), np.uint8)
    (keeper / "noise.png").write_bytes(png(Image.fromarray(values)))
    status = module("predict").main(["noise.png"])
    captured = capsys.readouterr()
    assert status == 2 or "no clear digit" in captured.out


NAMES = [
    "with space.png",
    "Ziffer ü.png",
    "数字一.png",
    "-1.png",
    "--gpu.png",
    "a:b.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_read(name, keeper, module, capsys):
    (keeper / name).write_bytes(png(digit()))
    assert module("predict").main(["--show", "--", name]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: ")


def test_file_names_cannot_steer_the_terminal(keeper, module, capsys):
    (keeper / "a\x1b[2J\n.png").write_bytes(png(digit()))
    (keeper / "b\x1b]0;x\x07.png").write_bytes(b"nothing")
    assert module("predict").main([str(keeper)]) == 2
    captured = capsys.readouterr()
    assert all(line.isprintable() for line in captured.out.splitlines())
    assert all(line.isprintable() for line in captured.err.splitlines())


def test_animated_gif_shows_its_first_frame(keeper, module, capsys):
    frames = [digit(), Image.new("L", (90, 90), 255)]
    frames[0].save(keeper / "moving.gif", save_all=True, append_images=frames[1:])
    assert module("predict").main(["moving.gif"]) == 0


FLAGS = {
    "--epochs": ["0", "-1", "two", "nan", "inf", "1.5", "", "9" * 30],
    "--batch-size": ["0", "-1", "two", "nan", "inf", "1.5", "", "9" * 30],
    "--lr": ["0", "-1", "two", "nan", "inf", "-inf", "", "1e300"],
    "--seed": ["-1", "two", "nan", "1.5", "", "9" * 30],
    "--limit": ["0", "-1", "two", "nan", "", "9" * 30],
    "--workers": ["-1", "two", "nan", "", "9" * 30],
    "--network": ["transformer", "", "CNN"],
    "--loss": ["hinge"],
    "--optimizer": ["lion"],
    "--samples": ["0", "-1", "two", "", "9" * 30],
    "--source": ["web"],
    "--data": ["", "nowhere/mnist.json.gz", "/dev/zero", "work"],
    "--params": ["nowhere/mnist", "/proc/mnist", "", "mnist\0"],
    "--unknown": ["1"],
}


@pytest.mark.parametrize("script", ["train_builtin", "train_json", "train_async"])
@pytest.mark.parametrize("flag, value", [(f, v) for f in FLAGS for v in FLAGS[f]])
def test_senseless_flags_are_refused(script, flag, value, keeper, module, capsys):
    refused(module(script).main([f"{flag}={value}"]), capsys.readouterr().err)


@pytest.mark.parametrize("flag, value", [(f, v) for f in FLAGS for v in FLAGS[f]])
def test_predict_refuses_senseless_flags(flag, value, keeper, module, capsys):
    pictures = (
        [] if flag in ("--samples", "--data", "--seed") else ["work/example_9.png"]
    )
    arguments = [f"{flag}={value}", *pictures]
    if flag in ("--data", "--seed"):
        arguments.append("--samples=5")
    refused(module("predict").main(arguments), capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch-size=0"],
        ["--batch-size=x"],
        ["--source=json", "--data=nowhere"],
        ["--save=nowhere/a.png"],
        ["--save=/proc/a.png"],
        ["--save="],
        ["--gpu"],
    ],
)
def test_show_batch_refuses_senseless_flags(arguments, keeper, module, capsys):
    refused(module("show_batch").main(arguments), capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, arguments",
    [
        ("train_builtin", ["--lr", "10"]),
        ("train_json", ["--lr", "10"]),
        ("train_async", ["--lr", "10", "--batch-size", "2"]),
        ("train_json", ["--data", "work/example_0.png"]),
        ("train_async", ["--params", "/proc/mnist"]),
        ("train_async", ["--epochs", "none"]),
        ("show_batch", ["--source", "json", "--data", "nowhere"]),
        ("predict", ["nowhere.png"]),
        ("predict", ["work/example_0.png", "--params", "nowhere"]),
        ("predict", []),
    ],
)
def test_as_processes_too(script, arguments, keeper):
    done = run(script, *arguments)
    refused(done.returncode, done.stderr)
