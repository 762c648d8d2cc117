"""From pictures to digits: every kind of picture that people have, read right."""

import re

import numpy as np
from conftest import ROOT, read_idx, succeed
from PIL import Image

EXAMPLES = [f"work/example_{digit}.png" for digit in range(10)]
TEST = read_idx("t10k-images-idx3")  # It begins with 7 2 1 0 4 1 4 9 5 9.


def read(folder, *arguments):
    """Return what predict.py says of each picture: [(digits, percentage, the rest)]."""
    out = succeed(folder, "predict", *arguments)
    said = re.findall(r"^.*: ([\d ]+)  \((\d+\.\d) %(.*)\)$", out, re.M)
    return [(digits, float(percent), rest) for digits, percent, rest in said]


def page(*digits, gap=12):
    """Lay digits, uint8 [28, 28], side by side on white, four times as large."""
    parts = [np.pad(digit, ((20, 20), (gap // 2, gap // 2))) for digit in digits]
    image = Image.fromarray(255 - np.hstack(parts))
    return image.resize([4 * side for side in image.size], Image.Resampling.BICUBIC)


def test_example_pictures_are_read(trained):
    said = read(trained, *EXAMPLES)
    assert [digits for digits, _, _ in said] == list("0123456789")
    source = (ROOT / "predict.py").read_text("utf-8")
    promised = re.search(r"work/example_0.png: 0  \((.*) %\)", source)[1]
    assert abs(said[0][1] - float(promised)) < 3
    # The article's way reads half of them wrong.
    raw = [digits for digits, _, _ in read(trained, "--raw", *EXAMPLES)]
    assert sum(a == b for a, b in zip(raw, "0123456789")) < 8


def test_mnist_itself_is_read_as_the_network_reads_it(trained, tmp_path):
    for number in range(300):
        image = TEST[number] if number % 2 else 255 - TEST[number]
        Image.fromarray(image).save(tmp_path / f"{number:03d}.png")
    labels = read_idx("t10k-labels-idx1")[:300]
    said = [int(digits) for digits, _, _ in read(trained, *sorted(tmp_path.iterdir()))]
    assert (np.array(said) == labels).sum() >= 297


def test_digits_side_by_side_are_a_number_and_lines_follow_each_other(
    trained, tmp_path
):
    page(*TEST[:4]).save(tmp_path / "a.png")
    two_lines = np.vstack([np.asarray(page(*TEST[i : i + 3])) for i in (0, 3)])
    Image.fromarray(two_lines).save(tmp_path / "b.png")
    page(TEST[8]).save(tmp_path / "c.png")
    said = read(trained, *sorted(tmp_path.iterdir()))
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
    said = read(trained, *sorted(tmp_path.iterdir()))
    assert [digits for digits, _, _ in said] == ["7"] * 8


def test_unsure_guesses_say_so(trained, tmp_path):
    for number in range(20):
        mixed = TEST[number] // 2 + TEST[number + 1] // 2
        Image.fromarray(mixed).save(tmp_path / f"{number}.png")
    assert "not sure" in succeed(trained, "predict", *tmp_path.iterdir())
    assert "not sure" not in succeed(trained, "predict", *EXAMPLES)


def test_samples_stand_beside_their_labels_and_wrong_ones_are_marked(folder):
    succeed(folder, "train_builtin", "--epochs", 3)
    out = succeed(folder, "predict", "--samples", 40)
    labels, digits = (
        "".join(re.findall(rf"^{word}(.*)$", out, re.M)).split()
        for word in ("label", "digit")
    )
    wrong = sum(a != b for a, b in zip(labels, digits, strict=True))
    assert out.count("^") == wrong > 5 and f"{40 - wrong} / 40" in out


def test_show_draws_what_was_seen(trained, tmp_path):
    name = tmp_path / ("很长的文件名" * 8 + ".png")
    page(*TEST[:2]).save(name)
    out = succeed(trained, "predict", "--show", name, *EXAMPLES)
    assert out.splitlines()[-1] == "drawn: show_predict.png"
    with Image.open(trained / "show_predict.png") as drawn:
        assert drawn.format == "PNG" and np.asarray(drawn.convert("L")).std() > 20
