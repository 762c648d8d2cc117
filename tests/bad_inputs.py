"""Pictures that are no single digit, for measuring how often they are called unclear.

make(digits, number, seed) returns {kind: list of Pillow pictures in mode L, ink dark}.
"""

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 200  # pixels
CAPITALS, SMALL = "AEFHKMNPRVWXY", "aefhkmnrvwx"  # those that resemble no digit
FONTS = [
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
]


def smooth_path(random, corners):
    """Return float [N, 2]: a smooth curve through random corners on the picture."""
    points = random.uniform(0.15 * SIDE, 0.85 * SIDE, (corners, 2))
    places = np.linspace(0, corners - 1, 40 * corners)
    path = np.stack([np.interp(places, np.arange(corners), p) for p in points.T], 1)
    weights = np.hanning(41) / np.hanning(41).sum()
    return np.stack(
        [np.convolve(np.pad(p, 20, "edge"), weights, "valid") for p in path.T], 1
    )


def draw_path(draw, path, width):
    """Draw the float [N, 2] path with a round pen."""
    for x, y in path:
        draw.ellipse(
            [x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=0
        )


def warp(image, random, strength=5):
    """Lean, turn and bend a picture, so that type looks written by hand."""
    lean, turn = random.uniform(-0.25, 0.25, 2)
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    bend = []
    for _ in range(2):
        coarse = Image.fromarray(random.uniform(0, 255, (6, 6)).astype(np.uint8))
        smooth = np.array(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), float)
        bend.append((smooth - smooth.mean()) / smooth.std() * strength)
    middle = SIDE / 2
    from_x = x + (lean + turn) * (y - middle) + bend[0]
    from_y = y - turn * (x - middle) + bend[1]
    rows, columns = (
        np.clip(n.round().astype(int), 0, SIDE - 1) for n in (from_y, from_x)
    )
    warped = Image.fromarray(np.array(image)[rows, columns])
    return warped.filter(ImageFilter.GaussianBlur(1))


def scribble(random):
    image = Image.new("L", (SIDE, SIDE), 255)
    draw_path(
        ImageDraw.Draw(image),
        smooth_path(random, random.integers(6, 16)),
        random.uniform(3, 10),
    )
    return image


def letter(random, letters):
    import matplotlib

    name = FONTS[random.integers(len(FONTS))] + ".ttf"
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    font = ImageFont.truetype(os.path.join(folder, name), 120)
    image = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(image).text(
        (SIDE / 2, SIDE / 2), letters[random.integers(len(letters))], 0, font, "mm"
    )
    return image


def face(random):
    image = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(image)
    middle = SIDE / 2 + random.uniform(-15, 15, 2)
    radii = random.uniform(55, 80, 2)
    width = int(random.integers(4, 10))

    def at(x, y, radius=0):
        low, high = np.array([x, y]) - radius, np.array([x, y]) + radius
        return [*(middle + low * radii), *(middle + high * radii)]

    draw.ellipse(at(0, 0, 1), outline=0, width=width)
    height = random.uniform(-0.45, -0.2)
    for side in (-0.4, 0.4):
        draw.ellipse(at(side, height, random.uniform(0.08, 0.15)), fill=0)
    draw.arc(at(0, 0.1, random.uniform(0.4, 0.6)), 20, 160, 0, width)
    return warp(image, random, 3)


def two_digits(random, digits, gap):
    """Put two of the uint8 [N, 28, 28] digits side by side, `gap` pixels apart."""
    left, right = digits[random.integers(len(digits), size=2)]
    left = left[:, : left.any(0).nonzero()[0][-1] + 1]
    right = right[:, right.any(0).nonzero()[0][0] :]
    canvas = np.zeros((28, 64), np.uint8)
    canvas[:, : left.shape[1]] = left
    start = left.shape[1] + gap
    place = canvas[:, start : start + right.shape[1]]
    np.maximum(place, right, out=place)
    return Image.fromarray(255 - canvas).resize(
        (64 * 5, 28 * 5), Image.Resampling.BICUBIC
    )


def noise(random):
    kind = random.integers(3)
    values = random.normal(128, 50, (SIDE, SIDE))
    if kind == 1:
        values = (
            random.integers(0, 2, (SIDE // 4, SIDE // 4)).repeat(4, 0).repeat(4, 1)
            * 255
        )
    image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(3)) if kind == 2 else image


def empty_paper(random):
    """A photo of paper with nothing on it: a slope of light and the sensor's noise."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    slope = random.uniform(-50, 50, 2)
    values = 200 + slope[0] * y + slope[1] * x + random.normal(0, 3, (SIDE, SIDE))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def make(digits, number=100, seed=0):
    """Return {kind: list of `number` pictures}, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    makers = {
        "blank": lambda: Image.new("L", (SIDE, SIDE), int(random.integers(256))),
        "empty paper": lambda: empty_paper(random),
        "noise": lambda: noise(random),
        "scribble": lambda: scribble(random),
        "capital letter, type": lambda: letter(random, CAPITALS),
        "capital letter, hand": lambda: warp(letter(random, CAPITALS), random),
        "small letter, type": lambda: letter(random, SMALL),
        "small letter, hand": lambda: warp(letter(random, SMALL), random),
        "face": lambda: face(random),
        "two digits, touching": lambda: two_digits(random, digits, -1),
        "two digits, near": lambda: two_digits(random, digits, 2),
        "two digits, apart": lambda: two_digits(random, digits, 8),
    }
    return {kind: [maker() for _ in range(number)] for kind, maker in makers.items()}
