"""Pictures in, digits out: photos, scans, screenshots and drawings of numbers.

MNIST's digits are white on black, of one size and centred: whatever is on the picture
is brought to that form first, in steps that --show draws. `python predict.py
work/example_0.png` says

    work/example_0.png: 0  (99.9 %)
"""

import argparse
import contextlib
import gzip
import json
import math
import os
import signal
import sys
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

if __name__ == "__main__":  # Ctrl-C as an exception would get lost in the imports.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\n"), os._exit(1)))
    with contextlib.suppress(AttributeError):  # A notebook's stdout; Windows
        sys.stdout.reconfigure(errors="replace")  # A console may lack letters.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it in silence.
if "ipykernel" not in sys.modules:  # A notebook's own backend is not for its children.
    os.environ.pop("MPLBACKEND", None)
warnings.filterwarnings("ignore", module="paddle")

import cv2
import numpy as np
import paddle
import paddle.nn as nn
import safetensors
from matplotlib.figure import Figure
from matplotlib.widgets import LassoSelector
from PIL import Image, ImageOps

OUTPUTS = {"cross_entropy": 11, "square_error": 11, "regression": 1}

Image.MAX_IMAGE_PIXELS = None  # Large photos are no attack.
LONGEST = 1600  # Pixels: a larger picture is reduced to this, which averages its grain.
SMALL = 64  # Pixels at the scale in use: up to this side no shadows, no ruled lines.
WRITING = 48  # Pixels: a page is scaled until half of its ink is in pieces so high.
LOWEST = 5  # Pixels: a digit that is lower cannot be read.
MOST = 2000  # Pieces of ink: a full sheet of digits has fewer, noise has more.
CUTS = 100  # Doubted Symbols: with more it is no page of digits, and none is cut.
SPACE = 1.7 * WRITING  # Pixels: a gap that is narrower is none.
HIGHEST = 2.5 * WRITING  # Pixels: what is higher is a frame with a gap, or a drawing.
DOT = WRITING // 4  # What is smaller is a dot between two digits, or dirt.
SURE = 0.9  # Below this probability a reading is not sure, and may be several digits.
DOUBT = 0.7  # The most for what was cut, of which 5 % is wrong; and after odd gaps.
PIECE = 0.5  # Log-probability: the price of each piece, so that no cut is in vain.
WIDEST = 1.2  # Heights: a wider one is cut if its pieces are more than guesses.
GUESS = 0.2  # Less than this is "?": ink that is no digit.
BESIDE = 0.9  # Heights: so far apart may the middles of neighbours on a line be.
SLOPE = 0.08  # Pixels a pixel: steeper lines are levelled; training shears by 0.24.
TURNED = 0.75  # Below this mean probability a page may have been turned by 90°.

# ---- picture -----------------------------------------------------------------------


class Unreadable(ValueError):
    """A picture in which nothing can be read; the text says why."""


def open_picture(path):
    """Return the picture in a file, upright and without transparency: uint8 [H, W, 3].

    Raises Unreadable.
    """
    if not os.path.isfile(path):  # A pipe would never end.
        raise Unreadable("is not a file")

    try:
        with Image.open(path) as image:
            image.draft("RGB", (LONGEST, LONGEST))  # Decode a JPEG at a smaller size.
            image = ImageOps.exif_transpose(image)
            if image.mode[0] not in "IF":
                image = image.convert("RGBA")

    except Exception:  # A broken file raises whatever its decoder likes.
        text = "damaged, or no picture (save HEIC, PDF and SVG as PNG)"
        raise Unreadable(text) from None

    if image.mode[0] in "IF":  # 16 or 32 bits: from black to the brightest pixel
        values = np.float32(image)
        image = Image.fromarray(np.uint8(255 * values / max(values.max(), 1e-9)))
    grey, opacity = np.asarray(image.convert("LA")).transpose(2, 0, 1)

    opaque = grey[opacity > 127]
    light = opacity.min() == 0 and opaque.size and opaque.mean() > 191
    page = Image.new("RGBA", image.size, "black" if light else "white")
    page.alpha_composite(image.convert("RGBA"))
    page.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    return np.array(page.convert("RGB"))


def resize(picture, scale):
    """Return a picture at another scale; pixels are averaged where it gets smaller."""
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    height, width = (max(1, round(scale * side)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=method)


def find_sheet(colours):
    """Return the corners [4, 2] of a sheet that lies on something else, or None.

    As scanners on phones do: the largest outline that four straight sides fill.
    """
    scale = 400 / max(colours.shape[:2])  # Enough for edges, too little for writing
    if scale > 1:
        return None

    small = resize(colours, scale)
    small = cv2.morphologyEx(small, cv2.MORPH_CLOSE, np.ones((15, 15)))  # No writing
    small = cv2.medianBlur(small, 9)  # No wood grain
    edges = [cv2.Canny(channel, 20, 40) for channel in cv2.split(small)]
    edges = np.bitwise_or.reduce(edges)
    edges = cv2.dilate(edges, np.ones((3, 3)))  # Without gaps
    outlines, _ = cv2.findContours(edges, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)

    largest = 0.2 * edges.size  # Less is a thing on the paper.
    found = None

    for outline in outlines:
        hull = cv2.convexHull(outline)
        corners = cv2.approxPolyDP(hull, 0.03 * cv2.arcLength(hull, True), True)
        area = cv2.contourArea(corners)
        filled = cv2.contourArea(outline) > 0.95 * area
        if len(corners) != 4 or not filled or area < largest:
            continue

        inside = cv2.fillPoly(np.zeros_like(edges), [corners], 1) > 0
        lighter = small[inside].mean() > small[~inside].mean()
        if lighter or area > edges.size / 2:  # A smaller one is a tinted box.
            found, largest = corners[:, 0] / scale, area
    return found


def lay_flat(colours, corners):
    """Return the part of a picture within four corners as if seen from above."""
    corners = corners.mean(0) + 0.985 * (corners - corners.mean(0))  # Without its edge
    corners = np.roll(corners, -corners.sum(1).argmin(), axis=0)  # From the top left
    sides = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    width, height = int(sides[::2].max()), int(sides[1::2].max())

    flat = np.float32([(0, 0), (width, 0), (width, height), (0, height)])
    matrix = cv2.getPerspectiveTransform(np.float32(corners), flat)
    return cv2.warpPerspective(colours, matrix, (width, height))


# ---- ink ----------------------------------------------------------------------------


def find_ink(colours, size):
    """Return float32 [H, W]: by how many grey levels each pixel differs from the paper.

    In each colour the paper is what an opening or a closing leaves: a shadow or a dark
    table, wider than the strokes of digits that are size pixels high, belongs to it.
    """
    small = cv2.resize(colours, (64, 64), interpolation=cv2.INTER_AREA)
    around = cv2.blur(np.float32(small), (33, 33))
    if min(colours.shape[:2]) <= SMALL:  # The digit may fill it, but for the rim.
        around = np.median(list_rim(colours), axis=0)

    # Ink differs much from its surroundings in few places: the cube brings it out.
    light = ((small - around) ** 3).sum((0, 1)) > 0
    square = np.ones((2 * size // 3 | 1,) * 2)  # No stroke is so wide.
    paper = np.empty_like(colours)

    for channel, is_light in enumerate(light):
        method = cv2.MORPH_OPEN if is_light else cv2.MORPH_CLOSE
        paper[..., channel] = cv2.morphologyEx(colours[..., channel], method, square)
    return np.linalg.norm(np.float32(colours) - paper, axis=2)


def find_mask(ink, size, share):
    """Return uint8 [H, W]: 1 where the ink has a share of its own stroke's strength."""
    ink = cv2.GaussianBlur(ink, (0, 0), 1)
    ink = (ink - np.quantile(ink, 0.25)).clip(0)  # Most of a picture is paper.
    grain = np.median(np.abs(ink - cv2.medianBlur(ink, 5)))
    least = max(12, 9 * grain)  # Grey levels
    # Ink has edges, which a shadow has not.
    edge = ink - cv2.blur(ink, (size // 3 | 1, size // 3 | 1))

    count, labels = cv2.connectedComponents(np.uint8(ink > least))
    strength, sharpness = np.zeros((2, count), np.float32)
    some = labels > 0
    np.maximum.at(strength, labels[some], ink[some])
    np.maximum.at(sharpness, labels[some], edge[some])
    if sharpness.max() <= least:
        return np.zeros(ink.shape, np.uint8)

    typical = np.quantile(strength[labels[edge > least]], 0.95)
    needed = np.full(count, 0.2 * typical)  # Pencil beside a pen is ink,
    needed[list_rim(labels)] = 0.5 * typical  # but a shadow in a corner is not.
    strength[(sharpness <= least) | (strength < needed)] = np.inf
    # A hairline is faint in places, but more than all around it.
    strength = strength[labels]
    return np.uint8((ink > share * strength) | (edge > 0.2 * strength))


def list_rim(image):
    """Return the values along the four sides of a picture."""
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def drop_lines(mask, thickness, gap):
    """Return the mask without thin lines from rim to rim; what crosses them stays."""
    mask = np.pad(mask, gap)
    for _ in range(4):  # Downwards and across, and what a crossing line hid
        mask = np.ascontiguousarray(mask.T)
        thin = mask - cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((thickness, 1)))
        fat = cv2.dilate(thin, np.ones((3, 1)))  # A line may be slightly tilted.
        joined = cv2.morphologyEx(fat, cv2.MORPH_CLOSE, np.ones((1, gap | 1)))

        labels, stats = cv2.connectedComponentsWithStats(joined)[1:3]
        # A line is longer than a digit is high.
        least = max(0.97 * (mask.shape[1] - 2 * gap), 1.3 * WRITING)
        across = stats[:, cv2.CC_STAT_WIDTH] > least
        across[0] = False  # The paper
        rules = thin * across[labels]

        # A stroke that runs along a line or crosses it is thicker than it.
        usual = np.median(rules.sum(0)) / max(1, across.sum())
        thick = np.ones((2 + int(1.5 * usual), 1))
        mask = mask & ~(rules - cv2.morphologyEx(rules, cv2.MORPH_OPEN, thick))
    return mask[gap:-gap, gap:-gap]


def find_strokes(colours, size):
    """Return the ink of a picture, its mask, and the mask without lines.

    Digits are up to size pixels high.
    """
    ink = find_ink(colours, size)
    if min(colours.shape[:2]) <= SMALL:
        mask = find_mask(ink, size, 0.20)
        return ink, mask, mask
    mask = find_mask(ink, size, 0.35) & (ink > 0)  # A shadow's edge has less.
    rest = drop_lines(mask, 3 + size // 8, size // 2)
    return ink, mask, rest if rest.any() else mask


def keep_table(mask, rest):
    """Return the mask with its lines if no digit crosses them: they part cells."""
    rules = cv2.dilate(mask & ~rest, np.ones((3, 3)))  # Without gaps
    labels, stats = cv2.connectedComponentsWithStats(rest)[1:3]
    digits = np.flatnonzero(stats[1:, cv2.CC_STAT_HEIGHT] > WRITING / 2) + 1
    crossing = np.intersect1d(digits, labels[rules > 0])
    if not rules.any() or len(crossing) > 0.1 * len(digits):
        return rest

    table = mask | rules
    rim = max(table.shape) // 200 + 2  # What may be missing at a line's ends
    table[:rim] = table[-rim:] = table[:, :rim] = table[:, -rim:] = 1
    return table


# ---- page ---------------------------------------------------------------------------


class Page(NamedTuple):
    """A picture whose digits are WRITING pixels high, and its ink."""

    colours: np.ndarray  # uint8 [H, W, 3]
    ink: np.ndarray  # float32 [H, W], in grey levels
    mask: np.ndarray  # uint8 [H, W], 1 for ink


class Parts(NamedTuple):
    """The connected pieces of writing on a page: no frames, no edges of things."""

    labels: np.ndarray  # int [H, W], the piece at each pixel; -1: none
    boxes: np.ndarray  # int [N, 4]: left, top, right, bottom
    areas: np.ndarray  # int [N], pixels
    cells: np.ndarray  # int [N], the cell that each lies in; -1: in none
    rooms: dict  # {cell: its box}


def find_page(colours):
    """Return the Page of a picture; raises Unreadable if there is nothing to read."""
    side, longest = min(colours.shape[:2]), max(colours.shape[:2])
    if side > SMALL:  # Strokes are narrower than a third of the picture.
        scale = min(1, 600 / longest)
        size = int(scale * side / 2)
    else:  # A digit may fill it.
        scale, size = WRITING / side, WRITING

    for _ in range(3):  # A frame may hide its digits at first.
        scaled = resize(colours, scale)
        ink, mask, rest = find_strokes(scaled, size)

        parts = find_parts(rest)
        if not len(parts.boxes):
            raise Unreadable("there is no writing in the picture")
        if len(parts.boxes) > MOST:
            raise Unreadable("there are specks all over the picture")
        height = measure_height(parts)
        if size == WRITING and 0.7 < height / WRITING < 1.4:
            break

        scale = min(WRITING * scale / height, WRITING / LOWEST, 3000 / longest)
        size = WRITING
    return Page(scaled, ink, keep_table(mask, rest))


def measure_height(parts):
    """Return the height in pixels below which half of the ink's pieces are, by area."""
    heights = parts.boxes[:, 3] - parts.boxes[:, 1]
    return np.quantile(heights, 0.5, weights=parts.areas, method="inverted_cdf")


def turn(page, degrees):
    """Return a Page turned to the left, none of it cut off."""
    height, width = page.mask.shape
    middle = width / 2, height / 2
    matrix = cv2.getRotationMatrix2D(middle, degrees, 1)
    size = np.abs(matrix[:, :2]) @ [width, height]
    matrix[:, 2] += size / 2 - middle
    size = np.rint(size).astype(int)
    return Page(*(cv2.warpAffine(image, matrix, size) for image in page))


def find_parts(mask):
    """Return the Parts of a mask."""
    frames, cells, rooms = find_frames(mask)
    rest = mask & ~frames
    joined = cv2.morphologyEx(rest, cv2.MORPH_CLOSE, np.ones((7, 1)))  # Broken strokes
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    left, top, width, height, areas = stats.T
    boxes = np.stack([left, top, left + width, top + height], axis=1)

    along = np.bincount(list_rim(labels), minlength=count)
    # The edge of a desk, of a frame or of a scanner's lid
    edge = along > 0.3 * np.hypot(width, height)
    edge &= (height < WRITING / 2) | (height > 1.6 * WRITING)
    writing = np.maximum(width, height) > 3
    writing[0] = False  # The paper
    if writing[~edge].any():
        writing[edge] = False

    numbers = np.where(writing, writing.cumsum() - 1, -1)
    inside = np.full(count, -1)
    inside[labels[rest > 0]] = cells[rest > 0]
    labels = np.where(rest, numbers[labels], -1)
    return Parts(labels, boxes[writing], areas[writing], inside[writing], rooms)


def find_frames(mask):
    """Return uint8 [H, W], 1 for frames; int32 [H, W], each pixel's cell; their boxes.

    A hole in the ink that has ink inside is a cell, whatever its shape: the box of a
    form, a table's cell, a card, the axes of a plot; the ink may touch its frame.
    Pixels in no cell are -1.
    """
    outlines, tree = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    areas = np.array([cv2.contourArea(o, oriented=True) for o in outlines])
    labels = cv2.connectedComponents(mask)[1]
    frame_mask = np.zeros_like(mask)
    cells = np.full(mask.shape, -1, np.int32)
    rooms = {}

    for frame in choose_frames(outlines, tree, areas):
        x, y = outlines[frame][0, 0]
        ink = np.uint8(labels == labels[y, x])
        frame_mask |= ink

        for hole in np.flatnonzero(tree[0, :, 3] == frame):
            if areas[hole] < WRITING**2 / 2:
                continue

            left, top, width, height = cv2.boundingRect(outlines[hole])
            area = slice(top, top + height), slice(left, left + width)
            rooms[hole] = left, top, left + width, top + height
            cv2.drawContours(cells, outlines, hole, int(hole), cv2.FILLED)
            frame_mask[area] &= ~find_touching(ink[area], outlines[hole] - (left, top))
    return frame_mask, cells, rooms


def choose_frames(outlines, tree, areas):
    """Return which outlines are frames: around holes with ink, or thin boxes."""
    if tree is None:
        return []
    parents = tree[0, :, 3]
    is_hole = areas > 0
    areas = np.abs(areas)
    inside = np.bincount(parents + 1, areas, minlength=len(areas) + 1)[1:]
    filled = is_hole & (inside > areas / 100)  # A zero with a speck is no frame.

    thin = np.flatnonzero(~is_hole & (inside > 0.6 * areas))
    rectangles = np.array([math.prod(cv2.minAreaRect(outlines[i])[1]) for i in thin])
    boxes = thin[areas[thin] > 0.95 * rectangles]
    return np.union1d(parents[filled], boxes).astype(int)


def find_touching(frame, outline):
    """Return uint8 [H, W]: the ink of a frame that stands into its hole.

    It is a digit that touches its frame: what is within the hole's convex hull.
    """
    room = cv2.fillConvexPoly(np.zeros_like(frame), cv2.convexHull(outline), 1)
    touching = frame & cv2.erode(room, np.ones((5, 5)), borderValue=0)  # No rim
    labels, stats = cv2.connectedComponentsWithStats(touching)[1:3]

    width, height = stats[:, cv2.CC_STAT_WIDTH : cv2.CC_STAT_AREA].T
    sized = (height > WRITING / 2) & (np.maximum(width, height) < 2 * WRITING)
    thick = labels[cv2.erode(touching, np.ones((3, 3))) > 0]  # No side that is bent
    return np.uint8(np.isin(labels, np.intersect1d(np.flatnonzero(sized), thick)))


# ---- lines --------------------------------------------------------------------------


def find_lines(boxes):
    """Return lists of indices of boxes [N, 4]: each line from left to right, downwards.

    A line is a chain of neighbours, so that it may slant, bend and dance. The boxes are
    those of pieces of ink, or of cells.
    """
    left, top, right, bottom = np.float32(boxes).T
    height, middle = bottom - top, (top + bottom) / 2
    is_low = height < WRITING / 2
    lines = []

    for i in left.argsort():
        if is_low[i]:
            continue
        away = []  # From the last boxes of each line, in heights
        for line in lines:
            mean = (height[i] + height[line[-3:]]) / 2
            away.append(min(np.abs(middle[i] - middle[line[-3:]]) / mean))

        if away and min(away) < BESIDE:
            lines[np.argmin(away)].append(i)
        else:
            lines.append([i])

    add_low(lines, np.flatnonzero(is_low), boxes)
    lines = [sorted(line, key=lambda i: left[i]) for line in lines]
    return sorted(lines, key=lambda line: middle[line].mean())


def add_low(lines, low, boxes):
    """Add what is low to the line it is near: a dot, a dash, a broken-off stroke."""
    tall = [(boxes[i], line) for line in lines for i in line]

    for i in low:
        left, top, right, bottom = boxes[i]
        nearest, least = None, 0.3 * WRITING

        for other, line in tall:
            across = max(0, other[0] - right, left - other[2])
            down = max(0, other[1] - bottom, top - other[3])
            away = down + across / 5  # Along a line there are gaps.
            if away < least:
                nearest, least = line, away

        if nearest is not None:
            nearest.append(i)
        elif max(right - left, bottom - top) > DOT:  # Dirt is smaller.
            lines.append([i])


def find_slope(boxes):
    """Return by how much lines fall, in pixels a pixel: the median of neighbours."""
    boxes = boxes[boxes[:, 3] - boxes[:, 1] >= WRITING / 2]
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    slopes = []

    for middle in middles:
        right, down = (middles - middle).T
        near = (right > 0) & (right < 3 * WRITING)
        near &= np.abs(down) < 0.8 * right  # Not the line below
        if near.any():
            nearest = np.where(near, np.hypot(right, down), np.inf).argmin()
            slopes.append(down[nearest] / right[nearest])
    return np.median(slopes) if len(slopes) > 3 else 0  # Of fewer it says nothing.


@dataclass
class Symbol:
    """A digit or a sign of a line, ink that is neither, or a cell."""

    box: list  # left, top, right, bottom
    ink: np.ndarray  # float32 [H, W] in grey levels
    mask: np.ndarray  # uint8 [H, W]
    text: str = ""
    probability: float = 1.0  # Of a regression its output
    images: list = field(default_factory=list)  # uint8 [28, 28], what the network saw
    odd_gap: bool = False  # Before it there may be a space, or not.
    inside: list = field(default_factory=list)  # Symbols, if it is a cell

    def is_wide(self):
        return self.mask.shape[1] > WIDEST * self.mask.shape[0]


def find_symbols(ink, parts, line):
    """Return a line's Symbols from left to right: signs are read, digits not yet."""
    left, top, right, bottom = parts.boxes[line].T
    height = bottom - top
    tall = np.quantile(height, 0.75) if len(line) > 3 else height.max()

    # What stands above or below something else belongs to it, if it shares a third.
    margin = np.where(height < 0.4 * tall, 0, (right - left) / 6)
    order = (left + margin).argsort()
    reached = np.maximum.accumulate((right - margin)[order])
    begins = (left + margin)[order]
    starts = 1 + np.flatnonzero(begins[1:] > reached[:-1])

    symbols = []
    for group in np.split(np.array(line)[order], starts):
        box = [*parts.boxes[group, :2].min(0), *parts.boxes[group, 2:].max(0)]
        area = slice(box[1], box[3]), slice(box[0], box[2])
        mask = np.uint8(np.isin(parts.labels[area], group))
        symbols.append(Symbol(box, ink[area], mask))

    low = 0.45 * tall  # Of what is lower, nothing is a digit.
    digits = [symbol.box for symbol in symbols if len(symbol.mask) >= low]

    for symbol in symbols:
        if len(symbol.mask) < low:
            symbol.text = read_sign(symbol.box, digits)
        if len(symbol.mask) > HIGHEST:
            symbol.text = "?"
        symbol.probability = 0.0 if symbol.text == "?" else 1.0
    return [symbol for symbol in symbols if symbol.text != "dirt"]


def read_sign(box, digits):
    """Return "-", ".", "?" or "dirt" for the box of something lower than the digits."""
    left, top, right, bottom = box
    size = max(right - left, bottom - top)
    thin = min(right - left, bottom - top)
    before = next((d for d in reversed(digits) if d[0] < left), None)
    after = next((d for d in digits if d[0] >= left), None)

    if after and right - left > max(1.5 * thin, DOT):
        begins = before is None or left - before[2] > WRITING
        height = (top + bottom) / 2 - after[1]
        if begins and 0.25 < height / (after[3] - after[1]) < 0.75:
            return "-"

    if before and after and before[2] + 0.35 * WRITING < after[0] >= right:
        on_line = bottom > min(before[3], after[3]) - DOT / 4
        if on_line and size < min(1.7 * thin, 1.5 * DOT):
            return "."

    # What is small is dirt, and beside a digit its broken-off stroke.
    beside = [d for d in digits if left - d[2] < DOT / 2 and d[0] - right < DOT / 2]
    return "dirt" if size < (DOT if beside else DOT / 2) else "?"


# ---- digits -------------------------------------------------------------------------


def centre(ink, mask):
    """Return uint8 [28, 28]: a digit 20 pixels long, centred by mass, thick enough."""
    x, y, width, height = cv2.boundingRect(mask)
    ink = np.pad(ink, 2) * cv2.dilate(np.pad(mask, 2), np.ones((3, 3)))
    ink = ink[y : y + height + 4, x : x + width + 4]
    strongest = np.partition(ink, -9, axis=None)[-9]  # Not a lone speck
    ink = ink / np.median(ink[ink > strongest / 2])
    fine = resize(ink, 80 / max(width, height))  # Four times as large, for a start
    fine = np.pad(fine.clip(0, 1), 8)

    # A straight stroke's width is four times the mean distance to its edge, less 2.
    # Below 10 pixels, 2.5 of MNIST's, strokes are thickened; the 12.2 was fitted.
    strokes = np.uint8(fine > fine.max() / 2)
    distance = cv2.distanceTransform(strokes, cv2.DIST_L2, 5)
    lack = max(0, round(12.2 - 4 * distance[distance > 0].mean()))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (lack + 1, lack + 1))

    fine = cv2.dilate(fine, disc)
    small = resize(fine, 20 / (80 + lack))
    moments = cv2.moments(small)
    x = round(13.5 - moments["m10"] / moments["m00"])
    y = round(13.5 - moments["m01"] / moments["m00"])
    shift = np.float32([[1, 0, x], [0, 1, y]])
    return np.uint8(np.round(255 * cv2.warpAffine(small, shift, (28, 28))))


def build_network(name, outputs):
    """Return the network: float32 [N, 1, 28, 28] in [-1, 1] -> float32 [N, outputs]."""
    if name == "linear":
        return nn.Sequential(("flatten", nn.Flatten()), ("fc", nn.Linear(784, outputs)))

    layers = []
    features = 784  # An MLP has no convolutions.
    if name == "cnn":  # Strides are cheaper than pooling; the norm has the bias.
        for cin, cout, side, stride in (1, 32, 7, 3), (32, 48, 2, 2):
            layers += [nn.Conv2D(cin, cout, side, stride, bias_attr=False)]
            layers += [nn.BatchNorm2D(cout), nn.GELU(approximate=True)]
        features = 768  # [N, 32, 8, 8], [N, 48, 4, 4]

    layers += [nn.Flatten(), nn.Linear(features, 256, bias_attr=False)]
    layers += [nn.BatchNorm1D(256), nn.GELU(approximate=True)]
    return nn.Sequential(*layers, nn.Linear(256, outputs))


class Reader:
    """The network of a parameters file; SystemExit if there is none in it."""

    def __init__(self, path):
        try:
            with safetensors.safe_open(path, "numpy") as file:
                settings = json.loads(file.metadata()["mnist"])
                names = [name for name in file.keys() if "optimizer." not in name]
                tensors = {name: file.get_tensor(name) for name in names}
            self.regression = settings["loss"] == "regression"
            self.temperature = settings.get("temperature", 1)

            outputs = OUTPUTS[settings["loss"]]
            self.network = build_network(settings["network"], outputs)
            missing, unexpected = self.network.set_state_dict(tensors)
            if missing or unexpected:
                raise ValueError("its tensors are not the network's")
        except Exception as error:  # A foreign file fails in many ways.
            text = f"error: {path}: not a parameters file, train first: {error}"
            raise SystemExit(text) from None

        self.network.eval()

    @paddle.no_grad()
    def classify(self, images):
        """Return digits, int [N], and their probabilities of uint8 [N, 28, 28].

        A regression has outputs, float32 [N], in the place of probabilities.
        """
        inputs = np.float32(images).reshape(-1, 1, 28, 28) / 127.5 - 1
        outputs = self.network(paddle.to_tensor(inputs))
        if self.regression:
            outputs = outputs.numpy()[:, 0]
            return np.trunc(outputs).clip(0, 9).astype(int), outputs

        outputs = outputs / self.temperature  # Calibrated (Guo et al., 2017)
        probabilities = nn.functional.softmax(outputs).numpy()
        digits = probabilities[:, :10]  # The last is no digit.
        return digits.argmax(1), digits.max(1)

    def read(self, symbols, cutting):
        """Read the digits among Symbols; cutting: those that are not sure are cut."""
        unread = [symbol for symbol in symbols if not symbol.text]
        if not unread:
            return

        for symbol in unread:
            symbol.images = [centre(symbol.ink, symbol.mask)]
        digits, values = self.classify([symbol.images[0] for symbol in unread])
        for symbol, digit, value in zip(unread, digits, values):
            symbol.text, symbol.probability = str(digit), float(value)
        if self.regression:
            return

        doubted = [s for s in unread if s.probability < SURE or s.is_wide()]
        if cutting and len(doubted) <= CUTS:
            for symbol in doubted:
                self.cut(symbol)
        for symbol in unread:
            if symbol.probability < GUESS:
                symbol.text = "?"

    def cut(self, symbol):
        """Read a Symbol as digits that touch, if that is more probable than one digit.

        Of all ways to cut it, it is the one that scores most: see find_path.
        """
        cuts, prices = find_cuts(symbol.mask)
        spans = find_spans(symbol.mask, cuts)
        if not spans:
            return

        images = []
        for begin, end in spans:
            piece = slice(cuts[begin], cuts[end])
            images.append(centre(symbol.ink[:, piece], symbol.mask[:, piece]))
        digits, values = self.classify(images)

        scores = np.log(values.clip(1e-9)) - PIECE  # It must be worth its cut.
        score, chosen = find_path(spans, scores, prices)
        whole = symbol.probability
        if symbol.is_wide():
            whole = min(whole, GUESS)
        if score <= math.log(max(whole, 1e-9)):
            return

        symbol.text = "".join(str(digits[number]) for number in chosen)
        symbol.images = [images[number] for number in chosen]
        symbol.probability = min(float(values[chosen].min()), DOUBT)


def find_path(spans, scores, prices):
    """Return the most that spans in a row from end to end score, and their numbers.

    Spans are (begin, end), sorted by end; a cut's price is that of the span after it.
    """
    best = {0: (0, [])}  # {cut: (score, numbers of the spans to the left of it)}
    for number, (begin, end) in enumerate(spans):
        if begin in best:
            score, before = best[begin]
            score += scores[number] - prices[begin]
            if end not in best or score > best[end][0]:
                best[end] = score, [*before, number]
    return best.get(len(prices), (-np.inf, []))


def find_cuts(mask):
    """Return columns from edge to edge, and what a cut costs at each but the last."""
    height, width = mask.shape
    strokes = (np.diff(mask, axis=0, prepend=0) == 1).sum(0)
    # Digits touch in one place: a true cut crosses one stroke, and little ink.
    price = mask.sum(0) / height + 0.5 * (strokes > 1)
    step = height / 10
    cuts = [0]

    for middle in np.arange(step, width - step / 2, step):
        start, stop = int(middle - step / 2), int(middle + step / 2) + 1
        cuts.append(start + int(price[start:stop].argmin()))
    return [*cuts, width], [0, *price[cuts[1:]]]


def find_spans(mask, cuts):
    """Return (begin, end), indices of cuts between which a digit may be, by end."""
    height, width = mask.shape
    thinnest, widest = height / 8, min(height, width)  # Of a 1; of a 0, not of all
    spans = []

    for end, stop in enumerate(cuts):
        for begin, start in enumerate(cuts[:end]):
            high = cv2.boundingRect(mask[:, start:stop])[3] > height / 2
            if high and thinnest < stop - start < widest:
                spans.append((begin, end))
    return spans


# ---- reading ------------------------------------------------------------------------


class Reading(NamedTuple):
    """What was read on a page."""

    text: str
    symbols: list  # of Symbols, in the order in which people read
    page: Page  # Turned until its lines are level
    parts: Parts

    def trust(self):
        return sum(s.probability for s in self.symbols) / max(1, len(self.symbols))


def read_picture(reader, colours):
    """Return the text of a picture, its Symbols, and {title: picture} of the steps.

    Raises Unreadable if nothing is written on it.
    """
    steps = {"picture": colours}
    corners = find_sheet(colours)
    if corners is not None:
        steps["sheet laid flat"] = lay_flat(colours, corners)

    try:
        page = find_page(steps.get("sheet laid flat", colours))
    except Unreadable:
        if corners is None:
            raise
        del steps["sheet laid flat"]  # It was no sheet.
        page = find_page(colours)

    # What has MNIST's size is one digit.
    read = read_digit if max(colours.shape[:2]) <= 28 else read_turned
    text, symbols, page, parts = read(reader, page)
    if not symbols:
        raise Unreadable("there is no writing in the picture")

    steps["ink"] = page.ink
    steps["lines and frames removed"] = parts.labels >= 0
    steps["digits found"] = page.colours
    for symbol in symbols:
        left, top, right, bottom = map(int, symbol.box)
        cv2.rectangle(page.colours, (left, top), (right, bottom), (255, 0, 0))
    return text, symbols, steps


def read_turned(reader, page):
    """Return the Reading of a Page as it lies, or turned by 90° if that is likelier."""
    reading = read_page(reader, page)
    few = len(reading.symbols) < 6  # They may look right in any position.
    if few or reader.regression or reading.trust() > TURNED:
        return reading
    turned = [read_page(reader, turn(page, degrees)) for degrees in (90, -90)]
    return max([reading, *turned], key=Reading.trust)


def read_digit(reader, page):
    """Return the Reading of a Page whose ink is all one digit."""
    parts = find_parts(page.mask)
    mask = np.uint8(parts.labels >= 0)
    left, top, width, height = cv2.boundingRect(mask)
    box = [left, top, left + width, top + height]
    symbol = Symbol(box, page.ink, mask)
    reader.read([symbol], cutting=False)
    return Reading(symbol.text, [symbol], page, parts)


def read_page(reader, page):
    """Return the Reading of a Page."""
    parts = find_parts(page.mask)
    slope = find_slope(parts.boxes)
    if abs(slope) > SLOPE:
        page = turn(page, math.degrees(math.atan(slope)))
        parts = find_parts(page.mask)

    lines = {}  # {cell: its lines of Symbols}
    for cell in (-1, *parts.rooms):
        inside = np.flatnonzero(parts.cells == cell)
        found = find_lines(parts.boxes[inside])
        found = [find_symbols(page.ink, parts, inside[line]) for line in found]
        lines[cell] = [line for line in found if line]
    symbols = [s for cell in lines.values() for line in cell for s in line]
    reader.read(symbols, cutting=True)

    text, symbols = write_page(lines, parts.rooms)
    return Reading(text, symbols, page, parts)


def write_page(lines, rooms):
    """Return the text of a page, and its Symbols in the order in which people read.

    Lines are {cell: lists of Symbols}, -1 for those in no cell; rooms are {cell: box}.
    """
    items = [symbol for line in lines[-1] for symbol in line]
    for cell, room in rooms.items():
        inside = [symbol for line in lines[cell] for symbol in line]
        if inside:  # A cell stands on its line as a digit does.
            text = " ".join(map(write_line, lines[cell]))
            items.append(Symbol(room, None, None, text, inside=inside))

    boxes = np.array([item.box for item in items]).reshape(-1, 4)
    rows = [[items[i] for i in row] for row in find_lines(boxes)]
    text = " ".join(map(write_line, rows))
    symbols = [s for row in rows for item in row for s in item.inside or [item]]
    return text, symbols


def write_line(symbols):
    """Return the text of a line of Symbols: a wide gap is a space.

    A gap that may be one, or not, is noted in the Symbol after it.
    """
    boxes = np.array([symbol.box for symbol in symbols])
    gaps = boxes[1:, 0] - boxes[:-1, 2]
    wide = 3 * WRITING  # Of a lone gap nobody can say what is usual.
    if len(gaps) > 1:
        usual = np.quantile(gaps, 0.5, method="lower")
        wide = max(SPACE, 2 * usual + WRITING / 3)

    words = not are_boxes([symbol for symbol in symbols if symbol.inside])
    text = symbols[0].text

    for before, after, gap in zip(symbols, symbols[1:], gaps):
        apart = gap > wide or (words and before.inside and after.inside)
        text += f" {after.text}" if apart else after.text
        if gap > SPACE and not apart:
            (after.inside or [after])[0].odd_gap = True
    return text


def are_boxes(cells):
    """Return whether cells are a form's: about as wide as high, most with one digit."""
    alone = sum(len(cell.text) == 1 for cell in cells)
    boxes = np.array([cell.box for cell in cells]).reshape(-1, 4)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    square = (0.6 * height < width) & (width < 1.4 * height)
    return square.all() and alone > len(cells) / 2


def read_raw(reader, colours):
    """Do as read_picture, but in the article's way: the picture is one digit."""
    grey = Image.fromarray(colours).convert("L")
    image = 255 - np.array(grey.resize((28, 28), Image.Resampling.LANCZOS))
    digits, values = reader.classify([image])
    symbol = Symbol([0, 0, 28, 28], image, image, str(digits[0]), values[0], [image])
    return symbol.text, [symbol], {"picture": colours, "grey": grey}


def read_digits(path):
    """Return a picture's digits, unread, as uint8 [28, 28]: for work/make_data.py."""
    page = find_page(open_picture(path))
    parts = find_parts(page.mask)
    lines = [find_symbols(page.ink, parts, line) for line in find_lines(parts.boxes)]
    return [centre(s.ink, s.mask) for line in lines for s in line if not s.text]


def describe(reader, symbols):
    """Return how probable it is that all is right, or a regression's outputs."""
    if reader.regression:
        outputs = [symbol.probability for symbol in symbols if symbol.images]
        return "output " + ", ".join(f"{output:.2f}" for output in outputs)

    probability = math.prod(symbol.probability for symbol in symbols)
    if any(symbol.odd_gap for symbol in symbols):
        probability = min(probability, DOUBT)
    sure = "" if probability >= SURE else ", not sure"
    percent = min(99.9, 100 * probability)  # Nothing is certain.
    return f"{percent:.1f} %{sure}"


# ---- drawing -------------------------------------------------------------------------


def draw(drawings, path):
    """Draw a list of {title: picture} into a PNG file, a row each."""
    rows, columns = len(drawings), max(map(len, drawings))
    figure = Figure(figsize=(2.4 * columns, 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)

    for axis in axes.flat:
        axis.axis("off")
    for row, steps in zip(axes, drawings):
        for axis, (title, picture) in zip(row, steps.items()):
            axis.imshow(picture, "gray")
            axis.set_title(title, fontsize=9, wrap=True)

    try:
        figure.savefig(path)
    except OSError as error:
        raise SystemExit(f"error: {path}: {error.strerror}") from None
    print(f"drawn: {path}")


def tile(images):
    """Return images uint8 [28, 28] as one, eight in a row."""
    rows = [np.hstack(images[start : start + 8]) for start in range(0, len(images), 8)]
    width = rows[0].shape[1]
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])


class Board:
    """A board for the mouse; its title says what is read as each stroke ends."""

    def __init__(self, reader, figure):
        self.reader = reader
        self.page = np.zeros((280, 420, 3), np.uint8)
        self.axes = figure.add_axes((0.03, 0.03, 0.94, 0.82))
        self.axes.axis("off")
        self.picture = self.axes.imshow(self.page)
        self.show("draw a number with the mouse")

        line = {"color": "gray", "linewidth": 12}  # Until the stroke ends
        self.lasso = LassoSelector(self.axes, self.add_stroke, props=line)
        figure.canvas.mpl_connect("key_press_event", self.press_key)

    def show(self, title):
        self.picture.set_data(self.page)
        self.axes.set_title(f"{title}\nc: clear   i: invert   q: close")
        self.axes.figure.canvas.draw_idle()

    def add_stroke(self, points):
        pen = (255 - np.median(self.page),) * 3  # Most of the board is its ground.
        cv2.polylines(self.page, [np.int32(points)], False, pen, 12, cv2.LINE_AA)
        try:
            text, symbols, _ = read_picture(self.reader, self.page)
            self.show(f"{text}  ({describe(self.reader, symbols)})")
        except Unreadable as error:
            self.show(error)

    def press_key(self, event):
        if event.key == "c":
            self.page[:] = np.median(self.page)
        if event.key == "i":
            self.page = 255 - self.page
        if event.key in ("c", "i"):
            self.show("draw a number with the mouse")


def open_board(reader):
    """Open a window with a Board, until it is closed."""
    import matplotlib.pyplot as plt  # Only here: it looks for a display.

    if plt.get_backend().lower() == "agg":
        raise SystemExit("error: --draw needs a display")
    figure = plt.figure("draw a number", figsize=(6, 4.6))
    figure.board = Board(reader, figure)  # Its callbacks alone would not keep it.
    plt.show()


# ---- command line --------------------------------------------------------------------


def read_files(reader, args):
    """Print a line for each picture; return what --show draws and whether all went."""
    drawings, failed = [], False
    read = read_raw if args.raw else read_picture

    for path in args.images:
        try:
            text, symbols, steps = read(reader, open_picture(path))
        except Unreadable as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
            continue

        result = f"{text}  ({describe(reader, symbols)})"
        print(f"{path}: {result}")
        seen = [image for symbol in symbols for image in symbol.images]
        if seen:
            steps[f"what the network saw:\n{result}"] = tile(seen)
        drawings.append(steps)
    return drawings, failed


def read_builtin(mode, limit=None):
    """Return a set's images float32 [N, 784] in [-1, 1] and its labels int64 [N, 1]."""
    name = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = [f"{name}-images-idx3-ubyte.gz", f"{name}-labels-idx1-ubyte.gz"]
    if not any(map(os.path.exists, paths)):
        paths = []  # Paddle looks in ~/.cache, and downloads.

    try:
        counts = {gzip.open(path).read(8)[4:] for path in paths}  # Bytes 4 to 7
        if len(counts) > 1:
            raise ValueError("not as many images as labels")
        data = paddle.vision.datasets.MNIST(*paths, mode=mode)
    except Exception as error:  # A damaged file raises what its decoders like.
        raise SystemExit(f"error: {name}-*-ubyte.gz: {error}") from None
    return np.array(data.images[:limit]) / 127.5 - 1, np.array(data.labels[:limit])


def read_samples(reader, args):
    """Print digits beside labels, for --samples or --test; return those misread."""
    images, labels = read_builtin("test" if args.test else "train")
    order = np.random.default_rng(args.seed).permutation(len(labels))
    chosen = order[: args.samples]  # For --test all
    images = np.uint8(np.rint(127.5 * (images[chosen] + 1)))
    labels = labels[chosen, 0]
    digits, _ = reader.classify(images)
    right = labels == digits

    if args.test:
        print_counts(labels, digits)
    else:
        print_rows(labels, digits)
    print(f"{right.sum()} / {right.size} correct ({100 * right.mean():.2f} %)")

    misread = []  # Rows of ten
    for number, i in enumerate(np.flatnonzero(~right)):
        if number % 10 == 0:
            misread.append({})
        title = f"{labels[i]}, read {digits[i]}\nimage {chosen[i]}"
        misread[-1][title] = images[i].reshape(28, 28)
    return misread


def print_counts(labels, digits):
    """Print how often the digit of each column was read for the label of each row."""
    counts = np.bincount(10 * labels + digits, minlength=100).reshape(10, 10)
    table = np.column_stack([range(10), counts])
    title = "label, and how often it was read as 0, 1, 2, ... 9:"
    np.savetxt(sys.stdout, table, "%5d", header=title, comments="")


def print_rows(labels, digits):
    """Print 25 labels a row, the digits below them, and marks below the wrong ones."""
    marks = np.where(labels == digits, " ", "^")
    for start in range(0, len(labels), 25):
        print("label", *labels[start : start + 25])
        print("digit", *digits[start : start + 25])
        print("     ", *marks[start : start + 25])


def above(low, kind=int):
    """Return a type for argparse: a number above low and below 2**32."""

    def number(text):
        if low < kind(text) < 2**32:
            return kind(text)
        raise argparse.ArgumentTypeError(f"must be above {low} and below 2**32")

    return number


def parse_args():
    form = argparse.ArgumentDefaultsHelpFormatter
    usage = "%(prog)s [options] [IMAGE ...]"
    parser = argparse.ArgumentParser(usage=usage, formatter_class=form)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="picture files")
    add("--gpu", action="store_true", help="predict on the GPU, if there is one")

    add("--params", default="mnist.safetensors", help="read this file")
    add("--samples", type=above(0), help="predict so many of 60,000 training images")
    add("--seed", type=above(-1), default=0, help="same seed, same samples")
    add("--test", action="store_true", help="predict the 10,000 test images")
    add("--draw", action="store_true", help="draw with the mouse in a window")
    add("--show", action="store_true", help="draw steps, or what is misread, as PNG")
    add("--raw", action="store_true", help="only resize pictures, as in the article")

    args = parser.parse_args()
    if bool(args.images) + bool(args.samples) + args.test + args.draw != 1:
        parser.error("name either pictures or one of --samples, --test, --draw")
    if args.raw and not args.images:
        parser.error("--raw is for pictures")
    if args.show and args.draw:
        parser.error("--show is not for --draw")

    if args.gpu and not paddle.device.cuda.device_count():
        built = paddle.is_compiled_with_cuda()
        print(f"warning: no GPU (built for CUDA: {built}): on the CPU", file=sys.stderr)
        args.gpu = False
    return args


def main():
    args = parse_args()
    signal.signal(signal.SIGINT, lambda *_: sys.exit("stopped"))
    paddle.set_device("gpu" if args.gpu else "cpu")
    reader = Reader(args.params)
    drawings = []
    failed = False

    if args.draw:
        open_board(reader)
    elif args.images:
        drawings, failed = read_files(reader, args)
    else:
        drawings = read_samples(reader, args)

    if args.show and not drawings:
        print("nothing to draw")
    elif args.show:
        if len(drawings) > 20:
            print("warning: only the first 20 rows are drawn", file=sys.stderr)
        draw(drawings[:20], "show_predict.png")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
