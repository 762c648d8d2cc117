"""Make mnist.json.gz and the ten example pictures again, from MNIST's four IDX files.

    python work/make_data.py [--into FOLDER]

It reads the IDX files beside it, takes about twenty seconds and prints a line per
file: name, bytes, sha256. README.md tells what is in them.
"""

import argparse
import gzip
import hashlib
import json
import math
import os
import platform
import sys
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter

# The same bytes need the same compressors and the same fonts. These made the files in
# the repository; others make the same content, and may pack or letter it differently.
MADE_WITH = {
    "machine": "x86_64",
    "zlib": "1.2.13",
    "numpy": "2.4.6",
    "pillow": "13.0.0",
    "matplotlib": "3.11.2",
}

# The test image behind each example picture, chosen by eye; the 6 alone is drawn.
TEST_IMAGE = {0: 13, 1: 5, 2: 35, 3: 32, 4: 24, 5: 53, 7: 17, 8: 110, 9: 12}


def versions():
    """Return what MADE_WITH would be here and now."""
    return {
        "machine": platform.machine(),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "matplotlib": matplotlib.__version__,
    }


# ----------------------------------------------------------------------------- files


def read_idx(path, shape):
    """Return a gzipped IDX file as uint8 of this shape; raise OSError or ValueError."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); get it again") from None
    # Two zero bytes, 8 for uint8, the number of axes, each axis's length in 4 bytes.
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise ValueError(f"{path} is not {shape} bytes in IDX form; get it again")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def write_whole(path, write):
    """Write a file that is there whole or not at all; raise OSError.

    write(file) fills a temporary file in the same folder, which takes path's place
    only when all of it is on the disk: whoever is killed leaves the old file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(file, splits):
    """Write splits, [(images uint8 [N, 28, 28], labels uint8 [N])], as gzipped JSON."""
    # Without a name and a date in the header, the same content gives the same bytes.
    with gzip.GzipFile("", "wb", 9, file, mtime=0) as stream:
        for number, (images, labels) in enumerate(splits):
            stream.write(b",[[" if number else b"[[[")
            # As Python lists all the images would take 500 MB, so a thousand at a time.
            for start in range(0, len(images), 1000):
                rows = images[start : start + 1000].reshape(-1, 784).tolist()
                text = json.dumps(rows, separators=(",", ":"))[1:-1]
                stream.write(b"," * (start > 0) + text.encode())
            text = json.dumps(labels.tolist(), separators=(",", ":"))
            stream.write(b"]," + text.encode() + b"]")
        stream.write(b"]")


# -------------------------------------------------------------------------- pictures


def enlarge(image, size, edge=110):
    """Return a digit uint8 [28, 28] as smooth ink, float [size, size] from 0 to 1.

    edge: the grey value at which ink begins; a higher one makes a thinner pen.
    """
    wide = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
    # Half a pixel's blur takes the steps off the edge, a steep slope makes it sharp.
    wide = wide.filter(ImageFilter.GaussianBlur(size / 28 / 2))
    return 1 / (1 + np.exp((edge - np.asarray(wide, np.float64)) / 10))


def place(ink, height, width, top, left):
    """Return float [height, width], nought but for ink with its corner at top, left."""
    canvas = np.zeros((height, width))
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas


def grain(rng, height, width, scale=1):
    """Return noise, float [height, width], mean 0, in specks of about scale pixels."""
    noise = rng.normal(size=(-(-height // scale), -(-width // scale)))
    wide = Image.fromarray(noise.astype(np.float32))
    return np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC))


def paint(ground, colour, ink):
    """Return ground, [..., 3] from 0 to 255, with a colour where ink [H, W] lies."""
    ink = ink[..., None]
    return ground * (1 - ink) + np.array(colour) * ink


def picture(values):
    """Return values from 0 to 255, whatever their type, as a picture."""
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def plot(image):
    """The article's example: a plot of the pixels, with axes and tick numbers."""
    matplotlib.rcdefaults()  # Not the user's own fonts and colours.
    figure = Figure(figsize=(4.32, 4.32), dpi=100)
    figure.subplots().imshow(image, cmap="viridis_r")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def pencil(image):
    """Pencil on white paper: grey, and broken where the paper's grain stands out."""
    rng = np.random.default_rng(1)
    ink = enlarge(image, 280, edge=190)
    rough = np.clip(0.72 + 0.1 * grain(rng, 280, 280, 3), 0, 1)
    paper = 248 + 2 * grain(rng, 280, 280, 2)
    return picture(paper * (1 - ink * rough) + 45 * ink * rough)


def chalk(image):
    """White chalk on a dark green board with traces of the last wiping."""
    rng = np.random.default_rng(2)
    ink = place(enlarge(image, 280), 300, 360, 10, 40)
    rough = np.clip(0.9 + 0.3 * grain(rng, 300, 360, 3), 0.3, 1)
    wiped = 4 * grain(rng, 300, 360, 60) + 1.5 * grain(rng, 300, 360, 2)
    board = np.array([38, 66, 54]) + wiped[..., None]
    return picture(paint(board, (238, 240, 232), ink * rough))


def felt_pen(image):
    """Blue ink on yellow paper: neither is dark or light in every channel."""
    ink = place(enlarge(image, 240), 260, 260, 10, 10)
    return picture(paint(np.full((260, 260, 3), (250, 226, 120)), (36, 52, 150), ink))


def transparent(image):
    """Black ink on nothing: all of the picture is black, only the alpha tells."""
    rgba = np.zeros((256, 256, 4))
    rgba[..., 3] = 255 * enlarge(image, 256)
    return picture(rgba)


def corner(image):
    """A large sheet with a small digit near its upper right corner."""
    ink = place(enlarge(image, 230), 800, 1000, 20, 740)
    return picture(255 - 225 * ink)


def hairline():
    """A 6 drawn with the mouse in a paint program: 2 pixels wide, without greys."""
    canvas = Image.new("RGB", (400, 400), "white")
    turn = np.linspace(0, 1, 60)[:, None]
    # The stem is a quadratic curve from the top; the bowl goes on where it ends.
    stem = (1 - turn) ** 2 * (242, 78) + 2 * turn * (1 - turn) * (150, 140)
    stem = stem + turn**2 * (142, 252)
    angle = math.pi * (1 + 2 * turn)
    bowl = np.hstack([198 + 56 * np.cos(angle), 252 - 62 * np.sin(angle)])
    points = [tuple(point) for point in np.rint(np.vstack([stem, bowl])).tolist()]
    ImageDraw.Draw(canvas).line(points, fill="black", width=2)
    return canvas


def photo(image):
    """A phone's photo: slanting light, a shadow across, grain, blur, brownish ink."""
    rng = np.random.default_rng(7)
    height, width = 340, 260
    sheet = Image.fromarray(place(enlarge(image, 220), height, width, 55, 15))
    sheet = sheet.rotate(-4, Image.Resampling.BICUBIC)
    paper = 226 + 5 * grain(rng, height, width, 3)
    values = paint(paper[..., None] * (1, 0.97, 0.9), (72, 60, 62), np.asarray(sheet))
    down = np.linspace(0, 1, height)[:, None]
    right = np.linspace(0, 1, width)
    light = 1.05 - 0.5 * (0.6 * right + 0.4 * down)
    # The shadow of the hand that holds the phone: it begins along a soft slanting line.
    shadow = 1 / (1 + np.exp((0.85 - down - 0.45 * right) / 0.035))
    values = values * (light * (1 - 0.38 * shadow))[..., None]
    blurred = picture(values).filter(ImageFilter.GaussianBlur(1))
    noise = 1.5 * grain(rng, height, width)
    return picture(np.asarray(blurred) + noise[..., None])


def squared(image):
    """Red ink on squared paper, whose pale blue lines run through the digit."""
    ground = np.full((300, 300, 3), 253)
    for line in range(9, 300, 20):
        ground[line] = ground[:, line] = (178, 205, 235)
    ink = place(enlarge(image, 240), 300, 300, 30, 30)
    return picture(paint(ground, (200, 30, 40), ink))


def draw_examples(images):
    """Return {file name: picture}, from the test images, uint8 [10000, 28, 28]."""
    digit = {number: images[index] for number, index in TEST_IMAGE.items()}
    return {
        "example_0.png": plot(digit[0]),
        "example_1.png": pencil(digit[1]),
        "example_2.png": chalk(digit[2]),
        "example_3.png": felt_pen(digit[3]),
        "example_4.png": transparent(digit[4]),
        "example_5.png": corner(digit[5]),
        "example_6.png": hairline(),
        "example_7.png": photo(digit[7]),
        "example_8.png": squared(digit[8]),
        "example_9.png": Image.fromarray(digit[9]),
    }


# ------------------------------------------------------------------------------ main


def make(source, into):
    """Make all files of the folder into, from the IDX files of the folder source."""
    images = read_idx(source / "train-images-idx3-ubyte.gz", (60000, 28, 28))
    labels = read_idx(source / "train-labels-idx1-ubyte.gz", (60000,))
    test_images = read_idx(source / "t10k-images-idx3-ubyte.gz", (10000, 28, 28))
    test_labels = read_idx(source / "t10k-labels-idx1-ubyte.gz", (10000,))
    splits = [
        (images[:50000], labels[:50000]),
        (images[50000:], labels[50000:]),
        (test_images, test_labels),
    ]
    writers = {"mnist.json.gz": lambda file: write_json(file, splits)}
    for name, example in draw_examples(test_images).items():
        writers[name] = lambda file, example=example: example.save(
            file, "PNG", optimize=True
        )
    into.mkdir(parents=True, exist_ok=True)
    for name, write in writers.items():
        write_whole(into / name, write)
        content = (into / name).read_bytes()
        print(f"{name} {len(content):>8} {hashlib.sha256(content).hexdigest()}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    here = Path(__file__).resolve().parent
    parser.add_argument(
        "--into", type=Path, default=here, metavar="FOLDER", help="default: its own"
    )
    arguments = parser.parse_args()
    try:
        make(here, arguments.into)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: every file is whole, some may not be made yet", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
