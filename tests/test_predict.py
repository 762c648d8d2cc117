"""From pictures to digits: every kind of picture that people have, read right."""

import re

import numpy as np
import pytest
from conftest import ROOT, read_idx, run, succeed
from PIL import Image

EXAMPLES = [f"work/example_{digit}.png" for digit in range(10)]
TEST = read_idx("t10k-images-idx3")  # It begins with 7 2 1 0 4 1 4 9 5 9.


def read(folder, *arguments):
    """Return what predict.py says of each picture: [(digits, percentage, the rest)]."""
    out = succeed(folder, "predict", *arguments)
    said = re.findall(r"^.*: ([\d ]+)  \((\d+\.\d) %\)(.*)$", out, re.M)
    return [(digits, float(percent), rest) for digits, percent, rest in said]


def page(*digits, gap=12):
    """Lay digits, uint8 [28, 28], side by side on white, four times as large."""
    parts = [np.pad(digit, ((20, 20), (gap // 2, gap // 2))) for digit in digits]
    image = Image.fromarray(255 - np.hstack(parts))
    return image.resize([4 * side for side in image.size], Image.Resampling.BICUBIC)


def test_example_pictures_are_read(trained):
    assert [digits for digits, _, _ in read(trained, *EXAMPLES)] == list("0123456789")
    # The article's way reads some of them wrong, the first one among them.
    raw = [digits for digits, _, _ in read(trained, "--raw", *EXAMPLES)]
    assert raw[0] != "0" and sum(a == b for a, b in zip(raw, "0123456789")) < 8


def test_the_first_example_is_read_as_the_docstring_says(trained):
    promised = re.search(
        r"(work/example_0.png: 0)  \((.*) %\)", (ROOT / "predict.py").read_text("utf-8")
    )
    digits, percent, _ = read(trained, "work/example_0.png")[0]
    assert digits == "0" and abs(percent - float(promised[2])) < 3


def test_mnist_itself_is_read_as_the_network_reads_it(trained, tmp_path):
    for number in range(300):
        image = TEST[number] if number % 2 else 255 - TEST[number]
        Image.fromarray(image).save(tmp_path / f"{number:03d}.png")
    labels = read_idx("t10k-labels-idx1")[:300]
    said = [int(digits) for digits, _, _ in read(trained, tmp_path)]
    assert (np.array(said) == labels).sum() >= 297


def test_digits_side_by_side_are_a_number_and_lines_follow_each_other(
    trained, tmp_path
):
    page(*TEST[:4]).save(tmp_path / "a.png")
    two_lines = np.vstack([np.asarray(page(*TEST[i : i + 3])) for i in (0, 3)])
    Image.fromarray(two_lines).save(tmp_path / "b.png")
    page(TEST[8]).save(tmp_path / "c.png")
    said = read(trained, tmp_path)
    assert [digits for digits, _, _ in said] == ["7210", "721 041", "5"]
    assert all(percent > 30 for _, percent, _ in said)


def test_every_form_of_a_picture_is_read(trained, tmp_path):
    grey = page(TEST[0])
    turned = grey.rotate(90, expand=True)  # A phone notes how it was held.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a turned.jpg", exif=exif)
    grey.convert("1").save(tmp_path / "b black and white.png")
    grey.convert("P").save(tmp_path / "c palette.gif")
    grey.convert("CMYK").save(tmp_path / "d cmyk.jpg")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 128)
    deep.save(tmp_path / "e sixteen bits.png")
    clear = Image.new("RGBA", grey.size)
    clear.putalpha(Image.eval(grey, lambda value: 255 - value))
    clear.save(tmp_path / "f transparent.png")
    grey.resize((13000, 15800)).save(tmp_path / "g huge.jpg")  # 205 megapixels
    grey.save(tmp_path / "h 照片.webp")
    said = read(trained, tmp_path)
    assert [digits for digits, _, _ in said] == ["7"] * 8


def test_unsure_guesses_say_so(trained, tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (28, 28)).astype(np.uint8)
    Image.fromarray(noise).resize((140, 140)).save(tmp_path / "noise.png")
    _, out, _ = run(trained, "predict", tmp_path / "noise.png", *EXAMPLES)
    noisy = [line for line in out.splitlines() if "noise.png" in line]
    assert all("not sure" in line for line in noisy)
    assert out.count("not sure") <= len(noisy) + 1


def test_samples_stand_beside_their_labels_and_wrong_ones_are_marked(folder):
    succeed(folder, "train_builtin", "--epochs", 3)
    out = succeed(folder, "predict", "--samples", 40, "--seed", 1)
    labels = "".join(re.findall(r"^label(.*)$", out, re.M)).split()
    digits = "".join(re.findall(r"^digit(.*)$", out, re.M)).split()
    assert len(labels) == len(digits) == 40
    wrong = sum(a != b for a, b in zip(labels, digits))
    assert out.count("^") == wrong > 5
    assert f"{40 - wrong} / 40" in out
    assert out != succeed(folder, "predict", "--samples", 40, "--seed", 2)


@pytest.mark.parametrize("count", [1, 10])
def test_show_draws_what_was_seen(count, trained, tmp_path):
    name = tmp_path / ("很长的文件名" * 8 + ".png")
    page(*TEST[:2]).save(name)
    (trained / "show_predict.png").unlink(missing_ok=True)
    out = succeed(trained, "predict", "--show", *([name] + EXAMPLES)[:count])
    assert out.splitlines()[-1] == "drawn: show_predict.png"
    with Image.open(trained / "show_predict.png") as drawn:
        assert drawn.format == "PNG" and np.asarray(drawn.convert("L")).std() > 20
