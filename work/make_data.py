"""Make a data file, and the example pictures, from the IDX files beside this script.

    python work/make_data.py                                        all of work/
    python work/make_data.py --data fashion.json.gz                 only this data file
    python work/make_data.py --data mine.json.gz --pictures FOLDER  own digits, too

The own digits are in FOLDER/0 to FOLDER/9, one in a picture.
"""

import argparse
import gzip
import io
import json
import os
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def read_idx(path):
    """Return a gzipped IDX file of unsigned bytes as an array uint8."""
    try:
        data = gzip.decompress(path.read_bytes())
        # Byte 3 is the number of axes; then each has 4 bytes for its length.
        shape = np.frombuffer(data, ">i4", data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + shape.nbytes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise SystemExit(f"error: {path}: {error}") from None


def read_set(folder, name):
    """Return a set's images, uint8 [N, 784], and labels, uint8 [N]."""
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
    if images.shape != (*labels.shape, 28, 28):
        raise SystemExit(f"error: {name}: {images.shape} images, {labels.shape} labels")
    return images.reshape(-1, 784), labels


def read_pictures(folder):
    """Return own digits in MNIST's form, uint8 [N, 784], and labels, uint8 [N]."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from predict import read_digits

    images, labels = [], []
    for path in sorted(folder.glob("[0-9]/*")):
        try:
            digits = read_digits(path)
            if len(digits) != 1:
                raise ValueError(f"{len(digits)} digits")
            images.append(digits[0].reshape(784))
            labels.append(int(path.parent.name))
        except ValueError as error:
            print(f"left out: {path}: {error}")
    if not images:
        raise SystemExit(f"error: {folder}: no digits in its folders 0 to 9")
    print("own digits of 0 to 9:", *np.bincount(labels, minlength=10))
    return np.array(images), np.array(labels, np.uint8)


def write_json(path, splits):
    """Write [(images uint8 [N, 784], labels uint8 [N]), ...] as gzipped JSON."""
    text = json.dumps(splits, default=np.ndarray.tolist, separators=(",", ":"))
    # Without a name and a date in the header, the same content gives the same bytes.
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text.encode())


def enlarge(image, size, edge=110):
    """Return a digit, uint8 [28, 28], as ink from 0 to 1, which begins at grey edge."""
    wide = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    # Half a pixel's blur takes the steps off the edge, a steep slope makes it sharp.
    wide = wide.filter(ImageFilter.GaussianBlur(size / 28 / 2))
    return 1 / (1 + np.exp((edge - np.asarray(wide, np.float64)) / 10))


def grain(rng, height, width, scale=1):
    """Return noise, float [height, width], mean 0, in specks of about scale pixels."""
    noise = rng.normal(size=(-(-height // scale), -(-width // scale)))
    wide = Image.fromarray(noise.astype(np.float32))
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC))


def paint(ground, colour, ink):
    """Return ground, [..., 3] from 0 to 255, with a colour where ink [H, W] lies."""
    ink = ink[..., None]
    return ground * (1 - ink) + colour * ink


def picture(values):
    """Return values from 0 to 255, whatever their type, as a picture."""
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def plot(image):
    """The article's example: a plot of the pixels, with axes and tick numbers."""
    os.environ.pop("MPLBACKEND", None)  # A notebook's own may not be installed here.
    import matplotlib.figure

    matplotlib.rcdefaults()  # Not the user's own fonts and colours.
    figure = matplotlib.figure.Figure(figsize=(4.32, 4.32), dpi=100)
    figure.subplots().imshow(image, cmap="viridis_r")
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file).convert("RGB")


def pencil(image):
    """Pencil on white paper: grey, and broken where the paper's grain stands out."""
    rng = np.random.default_rng(1)
    ink = enlarge(image, 280, edge=190)
    ink = ink * np.clip(0.72 + 0.1 * grain(rng, 280, 280, 3), 0, 1)
    return picture((248 + 2 * grain(rng, 280, 280, 2)) * (1 - ink) + 45 * ink)


def chalk(image):
    """White chalk on a dark green board with traces of the last wiping."""
    rng = np.random.default_rng(2)
    ink = np.pad(enlarge(image, 280), ((10, 10), (40, 40)))
    rough = np.clip(0.9 + 0.3 * grain(rng, 300, 360, 3), 0.3, 1)
    wiped = 4 * grain(rng, 300, 360, 60) + 1.5 * grain(rng, 300, 360, 2)
    board = np.array([38, 66, 54]) + wiped[..., None]
    return picture(paint(board, (238, 240, 232), ink * rough))


def felt_pen(image):
    """Blue ink on yellow paper: neither is dark or light in every channel."""
    ink = np.pad(enlarge(image, 240), 10)
    return picture(paint((250, 226, 120), (36, 52, 150), ink))


def transparent(image):
    """Black ink on nothing: all of the picture is black, only the alpha tells."""
    black = Image.new("RGB", (256, 256))
    black.putalpha(picture(255 * enlarge(image, 256)))
    return black


def corner(image):
    """A large sheet with a small digit near its upper right corner."""
    return picture(255 - 225 * np.pad(enlarge(image, 230), ((20, 550), (740, 30))))


def hairline(_):
    """A 6 drawn with the mouse in a paint program: 2 pixels wide, without greys."""
    canvas = Image.new("RGB", (400, 400), "white")
    t = np.linspace(0, 1, 60)[:, None]
    # The stem is a quadratic curve from the top; the bowl goes on where it ends.
    stem = (1 - t) ** 2 * (242, 78) + 2 * t * (1 - t) * (150, 140) + t**2 * (142, 252)
    angle = np.pi * (1 + 2 * t)
    bowl = np.hstack([198 + 56 * np.cos(angle), 252 - 62 * np.sin(angle)])
    points = np.rint(np.vstack([stem, bowl])).ravel().tolist()
    ImageDraw.Draw(canvas).line(points, fill="black", width=2)
    return canvas


def photo(image):
    """A phone's photo: slanting light, a shadow across, grain, blur, brownish ink."""
    rng = np.random.default_rng(7)
    sheet = Image.fromarray(np.pad(enlarge(image, 220), ((55, 65), (15, 25))))
    ink = np.asarray(sheet.rotate(-4, Image.Resampling.BICUBIC))
    paper = 226 + 5 * grain(rng, 340, 260, 3)
    values = paint(paper[..., None] * (1, 0.97, 0.9), (72, 60, 62), ink)
    down, right = np.mgrid[0:1:340j, 0:1:260j]
    light = 1.05 - 0.5 * (0.6 * right + 0.4 * down)
    # The shadow of the hand that holds the phone: it begins along a soft slanting line.
    shadow = 1 / (1 + np.exp((0.85 - down - 0.45 * right) / 0.035))
    values = values * (light * (1 - 0.38 * shadow))[..., None]
    blurred = picture(values).filter(ImageFilter.GaussianBlur(1))
    return picture(blurred + 1.5 * grain(rng, 340, 260)[..., None])


def squared(image):
    """Red ink on squared paper, whose pale blue lines run through the digit."""
    paper = np.full((300, 300, 3), 253)
    paper[9::20] = paper[:, 9::20] = (178, 205, 235)
    return picture(paint(paper, (200, 30, 40), np.pad(enlarge(image, 240), 30)))


DRAWN = [plot, pencil, chalk, felt_pen, transparent, corner, hairline, photo, squared]
CHOSEN = [13, 5, 35, 32, 24, 53, 0, 17, 110, 12]  # Test images, by eye.


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, metavar="FILE", help="make only this file")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="own digits")
    args = parser.parse_args()
    if args.pictures and not args.data:
        parser.error("--pictures needs --data FILE")
    train, test = read_set(here, "train"), read_set(here, "t10k")
    last = len(train[1]) - len(train[1]) // 6  # The last sixth is for validation.
    splits = [[a[:last] for a in train], [a[last:] for a in train], test]
    if args.pictures:
        own = read_pictures(args.pictures)
        # They are repeated to a tenth of the others (tests/README.md), and stand first.
        times = -(-last // 10 // len(own[1]))
        splits[0] = [np.concatenate([*[a] * times, b]) for a, b in zip(own, splits[0])]
    data = args.data or here / "mnist.json.gz"
    # No file takes its place before all of them are whole.
    with tempfile.TemporaryDirectory(suffix=".tmp", dir=data.parent) as temporary:
        write_json(Path(temporary, data.name), splits)
        if not args.data:
            images = test[0][CHOSEN].reshape(-1, 28, 28)
            for n, draw in enumerate([*DRAWN, Image.fromarray]):
                draw(images[n]).save(f"{temporary}/example_{n}.png", optimize=True)
        for file in sorted(Path(temporary).iterdir()):
            print(f"made: {file.replace(data.parent / file.name)}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
