"""Make mnist.json.gz and the ten example pictures from MNIST's four IDX files.

    python work/make_data.py [--into FOLDER]

It reads the IDX files beside it, takes about twenty seconds and prints the name and
the size of each file it has made. README.md tells what is in them.
"""

import argparse
import gzip
import io
import json
import tempfile
import zlib
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter

# With these the files are the same byte for byte; with others their content is the
# same, but may be compressed differently, and the plot lettered in another font.
MADE_WITH = "x86_64, zlib 1.2.13, numpy 2.4.6, pillow 13.0.0, matplotlib 3.11.2"


def read_idx(path, shape):
    """Return a gzipped IDX file of unsigned bytes as an array uint8 of this shape."""
    try:
        data = gzip.decompress(path.read_bytes())
        # The header has 4 bytes for the type and 4 for the length of each axis.
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (gzip.BadGzipFile, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def write_json(path, splits):
    """Write [(images uint8 [N, 784], labels uint8 [N]), ...] as gzipped JSON."""
    text = json.dumps(splits, default=np.ndarray.tolist, separators=(",", ":"))
    # Without a name and a date in the header, the same content gives the same bytes.
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(text.encode())


def enlarge(image, size, edge=110):
    """Return a digit uint8 [28, 28] as smooth ink, float [size, size] from 0 to 1."""
    wide = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    # Half a pixel's blur takes the steps off the edge, a steep slope makes it sharp.
    wide = wide.filter(ImageFilter.GaussianBlur(size / 28 / 2))
    # Ink begins at the grey value edge: a higher one makes a thinner pen.
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
    matplotlib.rcdefaults()  # Not the user's own fonts and colours.
    figure = Figure(figsize=(4.32, 4.32), dpi=100)
    figure.subplots().imshow(image, cmap="viridis_r")
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file).convert("RGB")


def pencil(image):
    """Pencil on white paper: grey, and broken where the paper's grain stands out."""
    rng = np.random.default_rng(1)
    ink = enlarge(image, 280, edge=190)
    ink = ink * np.clip(0.72 + 0.1 * grain(rng, 280, 280, 3), 0, 1)
    paper = 248 + 2 * grain(rng, 280, 280, 2)
    return picture(paper * (1 - ink) + 45 * ink)


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


def hairline():
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


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--into", type=Path, default=here, metavar="FOLDER", help="default: its own"
    )
    into = parser.parse_args().into
    images = read_idx(here / "train-images-idx3-ubyte.gz", (60000, 28, 28))
    labels = read_idx(here / "train-labels-idx1-ubyte.gz", (60000,))
    test_images = read_idx(here / "t10k-images-idx3-ubyte.gz", (10000, 28, 28))
    test_labels = read_idx(here / "t10k-labels-idx1-ubyte.gz", (10000,))
    splits = [
        (images[:50000].reshape(-1, 784), labels[:50000]),
        (images[50000:].reshape(-1, 784), labels[50000:]),
        (test_images.reshape(-1, 784), test_labels),
    ]
    # The test image behind each picture was chosen by eye.
    examples = [
        plot(test_images[13]),
        pencil(test_images[5]),
        chalk(test_images[35]),
        felt_pen(test_images[32]),
        transparent(test_images[24]),
        corner(test_images[53]),
        hairline(),
        photo(test_images[17]),
        squared(test_images[110]),
        Image.fromarray(test_images[12]),
    ]
    into.mkdir(parents=True, exist_ok=True)
    # No file takes its place before all of them are whole.
    with tempfile.TemporaryDirectory(suffix=".tmp", dir=into) as temporary:
        write_json(Path(temporary, "mnist.json.gz"), splits)
        for digit, example in enumerate(examples):
            example.save(Path(temporary, f"example_{digit}.png"), optimize=True)
        for file in sorted(Path(temporary).iterdir()):
            made = file.replace(into / file.name)
            print(f"{made.name} {made.stat().st_size:>8} bytes")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
