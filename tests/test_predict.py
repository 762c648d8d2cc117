"""Pictures of every kind come to MNIST's form, and what is said of them is true."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, environment, read_idx, run, succeed
from PIL import Image

WITNESS = ROOT / "tests" / "witness"
EXAMPLES = [f"work/example_{digit}.png" for digit in range(10)]


@pytest.fixture
def reader(folder):
    """A folder with the parameters of a default training, kept since it was made."""
    shutil.copy(WITNESS / "cnn.safetensors", folder / "mnist.safetensors")
    return folder


def test_every_example_picture_is_read_and_clear(reader):
    lines = succeed("predict", *EXAMPLES).splitlines()
    assert len(lines) == 10
    for digit, line in enumerate(lines):
        assert re.fullmatch(rf"{EXAMPLES[digit]}: {digit}  \(\d\d\.\d %\)", line)


def test_a_folder_is_read_in_one_go(reader):
    lines = succeed("predict", "work").splitlines()
    assert [line[: len(path)] for line, path in zip(lines, EXAMPLES)] == EXAMPLES


def test_a_reader_that_has_seen_enough_is_no_crash(reader):
    command = f"{sys.executable} {ROOT / 'predict.py'} work work work | head -1"
    done = subprocess.run(
        command, shell=True, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.startswith("work/example_0.png: 0")
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", [["predict.py", "work"], ["show_batch.py"]])
def test_output_to_a_full_disk_is_one_line(reader, command):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, ROOT / command[0], *command[1:]],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
    assert done.returncode == 2
    assert done.stderr == "error: standard output: no space left on its disk\n"


def test_closed_output_is_no_crash(reader):
    command = f"{sys.executable} {ROOT / 'predict.py'} work >&-"
    done = subprocess.run(
        command, shell=True, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unreadable_picture_is_named_and_the_others_are_read(reader):
    (reader / "work" / "broken.png").write_bytes(b"nothing")
    (reader / "work" / "example_3.png").write_bytes(b"")
    done = run("predict", "work", "nowhere.png")
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 9
    for name in ("work/broken.png", "work/example_3.png", "nowhere.png"):
        assert re.search(rf"^error: {name} cannot be read", done.stderr, re.M)


@pytest.fixture(scope="module")
def four():
    """A four from the test set, large and dark on white: uint8 [280, 280]."""
    images = read_idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    image = Image.fromarray(255 - images[4]).resize(
        (280, 280), Image.Resampling.BICUBIC
    )
    return np.array(image)


@pytest.mark.parametrize("place", [(600, 300), (1500, 1100), (2500, 1700)])
def test_a_phone_photo_in_bad_light_is_read_and_clear(place, four, reader):
    """12 megapixels, turned by EXIF, a corner in the shade, grainy, the digit small."""
    chance = np.random.default_rng(3)
    ink = np.array(Image.fromarray(np.uint8(four < 128)).resize((900, 900))) * 0.75
    light = 225 * np.linspace(1, 0.8, 4000)[:, None] * np.linspace(0.55, 1.05, 3000)
    grain = Image.fromarray(chance.normal(1, 0.014, (1000, 750))).resize((3000, 4000))
    photo = light * np.array(grain) + chance.normal(0, 6, (4000, 3000))
    top, left = place
    photo[top : top + 900, left : left + 900] *= 1 - ink
    turned = Image.fromarray(np.uint8(photo.clip(0, 255))).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x112] = 6  # Orientation: to be shown turned back.
    turned.save("photo.jpg", quality=80, exif=exif)
    assert re.fullmatch(
        r"photo\.jpg: 4  \(.*%\)", succeed("predict", "photo.jpg").strip()
    )


def layers(four, ink, paper=(0, 0, 0, 0)):
    """Return an RGBA picture of ink on paper, both four values 0-255."""
    weight = (255 - four[..., None].astype(float)) / 255
    return Image.fromarray(
        np.uint8(weight * ink + (1 - weight) * np.array(paper)), "RGBA"
    )


def transparent_palette(four):
    image = Image.fromarray(np.uint8(four < 128), "P")
    image.putpalette([255, 0, 255, 0, 0, 0])
    image.info["transparency"] = 0
    return image


PICTURES = {
    "1.png": lambda four: Image.fromarray(four).convert("1"),
    "L.png": lambda four: Image.fromarray(four),
    "L inverted.png": lambda four: Image.fromarray(255 - four),
    "LA.png": lambda four: layers(four, (0, 0, 0, 255)).convert("LA"),
    "P.png": lambda four: Image.fromarray(four).convert("P"),
    "P transparent.png": transparent_palette,
    "RGB.png": lambda four: Image.fromarray(four).convert("RGB"),
    "RGBA black on nothing.png": lambda four: layers(four, (0, 0, 0, 255)),
    "RGBA white on nothing.png": lambda four: layers(
        four, (255, 255, 255, 255), (255, 255, 255, 0)
    ),
    "RGBA red on green.png": lambda four: layers(
        four, (200, 60, 40, 255), (90, 120, 90, 255)
    ),
    "RGBA yellow on white.png": lambda four: layers(
        four, (250, 240, 60, 255), (255,) * 4
    ),
    "I16.png": lambda four: Image.fromarray(four.astype(np.uint16) * 200),
    "L.jpg": lambda four: Image.fromarray(four),
    "RGB.jpg": lambda four: Image.fromarray(four).convert("RGB"),
    "CMYK.jpg": lambda four: Image.fromarray(four).convert("CMYK"),
    "L.bmp": lambda four: Image.fromarray(four),
    "L.gif": lambda four: Image.fromarray(four),
    "L.tiff": lambda four: Image.fromarray(four),
    "I16.tiff": lambda four: Image.fromarray(four.astype(np.uint16) * 99),
    "F.tiff": lambda four: Image.fromarray(four.astype(np.float32) / 7),
    "RGB.webp": lambda four: Image.fromarray(four).convert("RGB"),
    "RGBA.webp": lambda four: layers(four, (0, 0, 0, 255)),
}


def test_every_kind_of_file_and_mode_is_read(reader, four):
    (reader / "many").mkdir()
    for name, make in PICTURES.items():
        make(four).save(reader / "many" / name)
    lines = succeed("predict", *[f"many/{name}" for name in PICTURES]).splitlines()
    for name, line in zip(PICTURES, lines):
        assert line.startswith(f"many/{name}: 4  ("), line


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_photo_held_any_way_is_turned_upright(orientation, reader, four, module):
    script = module("predict")
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(four).transpose(turns[orientation])
    turned.save(reader / "turned.jpg", exif=exif, quality=95)
    seen = script.normalise(script.open_picture(reader / "turned.jpg"))[-1][1]
    expected = script.normalise(Image.fromarray(four))[-1][1]
    assert np.abs(seen.astype(int) - expected).mean() < 5


@pytest.mark.slow
def test_pictures_in_mnist_form_pass_unchanged(module):
    script = module("predict")
    images = read_idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    for invert in (False, True):
        given = (Image.fromarray(255 - image if invert else image) for image in images)
        same = [
            np.array_equal(script.normalise(picture)[-1][1], image)
            for picture, image in zip(given, images)
        ]
        assert sum(same) >= 9990


def test_each_step_can_be_shown(reader):
    out = succeed("predict", "work/example_0.png", "--show")
    assert out.splitlines()[-1] == "drawn: show_predict.png"
    with Image.open("show_predict.png") as image:
        assert min(image.size) > 500
    out = succeed("predict", *EXAMPLES, "--show")
    assert out.splitlines()[-1] == "drawn: show_predict.png"


def test_raw_is_the_article_to_the_letter(reader, module):
    """Grey, 28x28 with the anti-aliasing filter, 1 - v / 127.5."""
    script = module("predict")
    with Image.open("work/example_0.png") as image:
        seen = script.resize_only(image)[-1][1]
        grey = np.array(image.convert("RGB"), float).mean(2).astype(np.uint8)
    small = np.array(Image.fromarray(grey).resize((28, 28), Image.Resampling.LANCZOS))
    to_network = seen.astype(np.float32) / 127.5 - 1
    assert np.allclose(to_network, 1 - small.astype(np.float32) / 127.5, atol=1e-6)
    assert not succeed("predict", "work/example_0.png", "--raw").startswith(
        "work/example_0.png: 0  "
    )


def test_samples_stand_beside_their_labels(reader):
    out = succeed("predict", "--samples", 100).splitlines()
    labels = [line.split()[1:] for line in out if line.startswith("label ")]
    digits = [line.split()[1:] for line in out if line.startswith("digit ")]
    pairs = list(zip(sum(labels, []), sum(digits, [])))
    assert len(pairs) == 100
    right = sum(label == digit for label, digit in pairs)
    assert sum(line.count("^") for line in out) == 100 - right
    assert f"{right} / 100 right" + ", the wrong ones marked" * (right < 100) in out
    assert out == succeed("predict", "--samples", 100).splitlines()
    assert out != succeed("predict", "--samples", 100, "--seed", 1).splitlines()


def test_a_regression_says_its_output_and_what_the_article_found(folder):
    shutil.copy(WITNESS / "linear.safetensors", folder / "mnist.safetensors")
    out = succeed("predict", "work/example_9.png")
    found = re.match(r"work/example_9.png: (\d)  \(output (-?\d+\.\d\d)\)", out)
    assert int(found[1]) == min(9, max(0, int(float(found[2]))))
    assert "As the article found" in succeed("predict", "--samples", 20)


@pytest.mark.parametrize("kind", ["cnn", "mlp", "linear"])
def test_parameters_kept_since_the_first_release_still_load(kind, folder):
    shutil.copy(WITNESS / f"{kind}.safetensors", folder / "mnist.safetensors")
    assert succeed("predict", "work/example_9.png").startswith("work/example_9.png: ")


def test_a_checkpoint_kept_since_the_first_release_still_resumes(folder):
    for name in ("linear.safetensors", "linear.resume.safetensors"):
        shutil.copy(WITNESS / name, folder)
    flags = ["--data", ROOT / "work" / "mnist.json.gz", "--epochs", 4]
    out = succeed("train_async", "--params", "linear", "--resume", *flags)
    assert "going on after epoch 3" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, name", [("RGB", "a.png"), ("RGBA", "b.png"), ("RGB", "c.jpg")]
)
def test_a_photo_of_fifty_megapixels_needs_under_600_mb(mode, name, reader):
    image = Image.new(mode, (8660, 5774), "white")
    image.paste("black", (4000, 1500, 4400, 4200))
    image.save(reader / name, compress_level=1)
    # A small process starts it: a process's peak begins with that of its parent.
    launch = "import resource, subprocess, sys; subprocess.call(sys.argv[1:]);"
    launch += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", launch, sys.executable]
    command += [str(ROOT / "predict.py"), name]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    line, peak = done.stdout.splitlines()
    assert line.startswith(f"{name}: 1  (")
    assert int(peak) < 600 * 1024  # In KB on Linux.
