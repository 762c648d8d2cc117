"""From pictures to digits: each step alone, then the pages that people have."""

import re
import shlex

import cv2
import numpy as np
import pytest
from conftest import ROOT, read_idx, succeed
from PIL import Image

import predict

EXAMPLES = [f"work/example_{digit}.png" for digit in range(10)]
TEST = read_idx("t10k-images-idx3")
LABELS = read_idx("t10k-labels-idx1")  # 7 2 1 0 4 1 4 9 5 9 ...


def white(width):
    """Return white paper as high as a row of digits."""
    return np.full((272, width), 255, np.uint8)


def row(*numbers, gap=12):
    """Lay test digits side by side on white, uint8 [272, W], four times as large."""
    parts = [np.pad(TEST[n], ((20, 20), (gap // 2, gap // 2))) for n in numbers]
    return cv2.resize(255 - np.hstack(parts), None, fx=4, fy=4, interpolation=2)


def box(*numbers, margin=0, down=0):
    """Return a row of test digits with a frame 20 pixels inside its rim."""
    page = np.hstack([white(margin), row(*numbers), white(margin)])
    page = np.roll(page, down, axis=0)
    return cv2.rectangle(page, (20, 20), (page.shape[1] - 21, 251), 90, 3)


def pair(one, other):
    """Return two test digits that share a column of pixels, uint8 [H, W]."""
    left, right = (TEST[n][:, TEST[n].any(0)] for n in (one, other))
    shared = np.maximum(left[:, -1:], right[:, :1])
    digits = np.pad(np.hstack([left[:, :-1], shared, right[:, 1:]]), 14)
    return cv2.resize(255 - digits, None, fx=5, fy=5, interpolation=2)


def turn(page, degrees):
    """Return a page turned to the left, on white."""
    turned = Image.fromarray(page).rotate(degrees, expand=True, fillcolor=255)
    return np.array(turned)


INDENTED = np.hstack([white(120), row(0, 1)])
BOXES = np.hstack([box(n, margin=60) for n in range(4)])
EMPTY = cv2.rectangle(white(280), (20, 20), (259, 251), 90, 3)
RING = cv2.ellipse(row(1, gap=20), (96, 136), (72, 80), 0, 0, 360, 0, 5)
SHEET = np.vstack([row(0, 1, 2, 3, 4), row(5, 6, 7, 8, 9)])
TABLE = np.hstack([box(0, 1), box(2, 3, 5)])
PAGES = {  # What it shows: (what is to be read, the page)
    "a number": ("7210", row(0, 1, 2, 3)),
    "two lines": ("721 041", np.vstack([row(0, 1, 2), row(3, 4, 5)])),
    "a space": ("72 10", np.hstack([row(0, 1), white(260), row(2, 3)])),
    "a point": ("7.2", cv2.circle(row(0, 1, gap=24), (180, 178), 6, 0, -1)),
    "a minus": ("-72", cv2.line(INDENTED, (50, 136), (95, 136), 0, 9)),
    "boxes": ("7210", BOXES),
    "a table": ("72 101 72 101", np.vstack([TABLE, TABLE])),
    "an empty box": ("7210", np.hstack([BOXES, EMPTY])),
    "a digit on its box": ("72104", np.hstack([BOXES, box(4, margin=60, down=70)])),
    "a ring around a digit": ("721", np.hstack([row(0), RING, row(2)])),
    "a table with no rim": ("72 101", 255 - TABLE[26:-26, 26:-26]),
    "lines that climb": ("72104 14959", turn(SHEET, 25)),
    "a turned sheet": ("72104 14959", turn(SHEET, 90)),
    "a cut frame": ("7", cv2.line(row(0), (8, 0), (8, 271), 40, 8)),
}
PAIRS = (0, 3), (1, 7), (3, 4), (8, 1), (4, 7), (9, 3)
PAIRS = {f"{LABELS[a]}{LABELS[b]}": pair(a, b) for a, b in PAIRS}
LETTERS = {s: cv2.putText(white(272), s, (70, 190), 0, 5, 0, 12) for s in "AEFHKMRWX&%"}
MNIST = {f"{n:03}": TEST[n] if n % 2 else 255 - TEST[n] for n in range(300)}


def test_a_sheet_on_a_desk_is_found_and_laid_flat():
    corners = np.int32([(100, 80), (520, 120), (560, 700), (60, 680)])
    photo = cv2.fillPoly(np.full((800, 640, 3), 70, np.uint8), [corners], (240,) * 3)
    found = predict.find_sheet(photo)
    assert np.abs(np.sort(found, 0) - np.sort(corners, 0)).max() < 8
    assert predict.lay_flat(photo, found).min() > 200
    assert predict.find_sheet(np.full_like(photo, 240)) is None


def test_a_shadow_is_paper_and_a_hairline_is_ink():
    shadow = cv2.GaussianBlur(np.full((200, 300, 3), 240, np.uint8), (0, 0), 1)
    shadow[:, 150:] = 170
    shadow = cv2.GaussianBlur(shadow, (0, 0), 12)
    assert not predict.find_mask(predict.find_ink(shadow, 48), 48, 0.35).any()
    line = cv2.line(shadow.copy(), (40, 150), (260, 40), (120,) * 3, 2, cv2.LINE_AA)
    mask = predict.find_mask(predict.find_ink(line, 48), 48, 0.35)
    assert mask.any(0)[45:255].all() and mask.sum() < 2000


def test_lines_from_rim_to_rim_go_and_what_crosses_them_stays():
    mask = np.zeros((120, 200), np.uint8)
    mask[60:63] = 1  # A ruled line
    mask[40:90, 100:108] = 1  # A stroke across it
    rest = predict.drop_lines(mask, 11, 24)
    assert not rest[60:63, :95].any() and rest[40:90, 100:108].all()


def test_a_hole_with_ink_inside_is_a_cell_but_no_zero_with_a_speck():
    mask = cv2.rectangle(np.zeros((100, 200), np.uint8), (5, 5), (90, 90), 1, 2)
    mask[30:60, 40:46] = 1
    cv2.ellipse(mask, (150, 50), (20, 35), 0, 0, 360, 1, 4)
    mask[50:52, 150:152] = 1
    frames, cells, rooms = predict.find_frames(mask)
    assert len(rooms) == 1 and frames[5, 50] and not frames[50, 170]
    assert cells[40, 42] >= 0 > cells[50, 150]


def test_lines_may_slant_and_dots_and_dashes_belong_to_them():
    places = [(x, y + x // 6) for y in (20, 100) for x in range(0, 400, 50)]
    boxes = [(x, y, x + 30, y + 48) for x, y in places] + [(32, 64, 38, 70)]
    lines = predict.find_lines(np.array(boxes))
    assert [sorted(line) for line in lines] == [[*range(8), 16], [*range(8, 16)]]


def test_cuts_lie_where_digits_touch():
    mask = np.zeros((50, 80), np.uint8)
    mask[:, 5:11] = mask[:, 60:66] = mask[25:29, 11:60] = 1
    cuts, prices = predict.find_cuts(mask)
    assert prices[0] == 0 and max(prices[2:-2]) < 0.2


def save_forms(folder):
    """Save a seven in every form that a picture may have."""
    grey = Image.fromarray(row(0))
    exif = Image.Exif()
    exif[0x0112] = 6  # A phone notes how it was held.
    grey.rotate(90, expand=True).save(folder / "turned.jpg", exif=exif)
    grey.convert("1").save(folder / "black and white.png")
    grey.convert("P").save(folder / "palette.gif")
    grey.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.uint16(grey) * 128).save(folder / "sixteen bits.png")
    Image.fromarray(np.float32(grey) / 255).save(folder / "floats.tiff")
    for ink in ("black", "white"):
        clear = Image.new("RGBA", grey.size, ink)
        clear.putalpha(Image.eval(grey, lambda value: 255 - value))
        clear.save(folder / f"{ink} on a transparent ground.png")
    grey.resize((13000, 15800)).save(folder / "huge.jpg")  # 205 megapixels
    grey.save(folder / "照片.webp")


def read(folder, *arguments):
    """Return what predict.py says: {folder: {picture: (text, what is in brackets)}}."""
    out = succeed(folder, shlex.join(["predict.py", *map(str, arguments)]))
    said = {}
    for line in re.findall(r"^.*?(\w+)/([^/]+)\.\w+: (.+)  \((.*)\)$", out, re.M):
        kind, name, *text_and_note = line
        said.setdefault(kind, {})[name] = text_and_note
    return said


@pytest.fixture(scope="module")
def said(trained, tmp_path_factory):
    """What predict.py says of all pictures, which it gets in one command."""
    home = tmp_path_factory.mktemp("pictures")
    pages = {name: page for name, (_, page) in PAGES.items()}
    kinds = {"pages": pages, "pairs": PAIRS, "letters": LETTERS, "mnist": MNIST}
    for kind, pictures in kinds.items():
        (home / kind).mkdir()
        for name, picture in pictures.items():
            Image.fromarray(picture).save(home / kind / f"{name}.png")
    (home / "forms").mkdir()
    save_forms(home / "forms")
    return read(trained, *EXAMPLES, *sorted(home.glob("*/*")))


def test_example_pictures_are_read(said):
    texts, notes = zip(*said["work"].values())
    assert texts == tuple("0123456789") and "not sure" not in str(notes)
    source = (ROOT / "predict.py").read_text("utf-8")
    promised = re.search(r"work/example_0.png: 0  \((.*) %\)", source)[1]
    assert abs(float(notes[0].split()[0]) - float(promised)) < 3


def test_the_articles_way_misreads_some_of_them(trained):
    texts, _ = zip(*read(trained, "--raw", *EXAMPLES)["work"].values())
    assert sum(a == b for a, b in zip(texts, "0123456789", strict=True)) < 8


def test_mnist_itself_is_read_as_the_network_reads_it(said):
    texts, _ = zip(*said["mnist"].values())
    assert sum(a == str(b) for a, b in zip(texts, LABELS[:300], strict=True)) >= 296


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_read(page, said):
    assert said["pages"][page][0] == PAGES[page][0]


def test_touching_digits_are_cut(said):
    assert sum(said["pairs"][text][0] == text for text in PAIRS) >= 4


def test_letters_are_doubted(said):
    lines = [" ".join(said["letters"][letter]) for letter in LETTERS]
    assert sum("?" in line or "not sure" in line for line in lines) >= 7, lines


def test_every_form_of_a_picture_is_read(said):
    assert [text for text, _ in said["forms"].values()] == ["7"] * 10


def test_samples_stand_beside_their_labels_and_wrong_ones_are_marked(folder):
    train = "train_builtin.py --epochs 3"
    out = succeed(folder, train, "predict.py --samples 40", f"predict.py {EXAMPLES[9]}")
    rows = re.findall("^label (.*)\ndigit (.*)$", out, re.M)
    labels, digits = (" ".join(part).split() for part in zip(*rows))
    wrong = sum(a != b for a, b in zip(labels, digits, strict=True))
    assert out.count("^") == wrong > 5 and f"{40 - wrong} / 40" in out
    assert re.search(r": \d  \(output -?\d+\.\d\d\)\n$", out)


def test_the_test_set_is_counted_and_the_misread_are_drawn(folder):
    out = succeed(folder, "train_async.py --epochs 2", "predict.py --test --show")
    table = out.split("label    read as")[1].splitlines()[1:11]
    counts = np.array([line.split()[1:] for line in table], int)
    assert counts.sum() == 200 and f"\n{np.trace(counts)} / 200 correct" in out
    with Image.open(folder / "show_predict.png") as drawn:
        assert drawn.format == "PNG" and np.asarray(drawn.convert("L")).std() > 20


def test_show_draws_each_step(trained, tmp_path):
    name = tmp_path / ("很长的文件名" * 8 + ".png")
    Image.fromarray(row(0, 1)).save(name)
    out = succeed(trained, f"predict.py --show {name} {EXAMPLES[7]}")
    assert out.splitlines()[-1] == "drawn: show_predict.png"
    assert (trained / "show_predict.png").read_bytes().startswith(b"\x89PNG")


def test_the_board_reads_what_the_mouse_draws(trained):
    from matplotlib.backend_bases import KeyEvent, MouseEvent
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((6, 4.6))
    canvas = FigureCanvasAgg(figure)
    board = predict.Board(predict.Reader(trained / "mnist.safetensors"), figure)
    for key in ("c", "i"):  # White on black, then black on white
        KeyEvent("key_press_event", canvas, key)._process()
        names = ["button_press", *["motion_notify"] * 20, "button_release"]
        for step, name in enumerate(names):
            x, y = board.axes.transData.transform((210, 60 + 7 * step))
            MouseEvent(f"{name}_event", canvas, x, y, 1)._process()
        assert board.axes.get_title().startswith("1  (")
