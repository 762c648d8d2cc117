"""One picture of a digit, or many, in; digits out (chapter 4, and what it lacked).

The article made a picture grey, resized it to 28x28 and read the wrong digit. MNIST's
digits are size-normalised and centred, so a picture from outside must be brought to
that form first. Here it is, in steps that --show lets you see:

    python predict.py work/example_0.png
    python predict.py work/ --show
    python predict.py work/example_0.png --raw
    python predict.py --samples 100

The first command prints

    work/example_0.png: 0  (98.6 %)
"""

import argparse
import errno
import functools
import gzip
import hashlib
import json
import logging
import math
import os
import signal
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy
from PIL import Image, ImageFilter, ImageOps
from safetensors import SafetensorError

# Paddle's matrix library takes its slowest path on AMD processors unless it is told
# otherwise before it is loaded; on Intel this must not be set.
CPU = Path("/proc/cpuinfo")
if CPU.exists() and "AuthenticAMD" in CPU.read_text():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")
logging.disable(logging.WARNING)  # Of libraries; what matters comes as an error.

import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import paddle.nn.functional as F  # noqa: E402

SPLITS = ("train", "valid", "eval")
PIXELS = 28 * 28
PACKED = 100  # Times that JSON may be larger than its gzip file; MNIST's is 9 times.
LONGEST_LIST = 2**26  # Bytes of JSON.
NETWORKS = ("cnn", "mlp", "linear")
OUTPUTS = {"cross_entropy": 10, "square_error": 1}  # Of the network, for each loss.
# Not all that Pillow knows: it hands EPS files to another program, which runs them.
FORMATS = "PNG JPEG BMP DIB GIF TIFF WEBP PPM ICO TGA PCX JPEG2000".split()
FOREIGN = {  # Recognised by a few bytes near their beginning.
    b"ftyp": "a HEIC or AVIF picture",
    b"<svg": "an SVG drawing",
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript document",
}
STORED_SIDE = 1024  # Pixels: the longest side kept of a large picture.
WORKING_SIDE = 256  # Pixels: the longest side while the digit is looked for.
STROKE = 2.8  # Pixels: the least mean stroke width in the 20x20 box.
FINE = 4  # Times finer than the 20x20 box while strokes are thickened.
BATCH = 64  # Pictures that are read at once.
SHEET = 60  # Pictures that are drawn at most.
ROW = 20  # Samples in a row.
SUFFIXES = ".png .jpg .jpeg .jpe .bmp .gif .tif .tiff .webp .ppm .pgm .ico".split()


class UserError(Exception):
    """A user's mistake or a broken file: shown as one line, without a traceback."""


# ------------------------------------------------------------------------------ data


def parse_numbers(text):
    """Return the numbers in text, a JSON list without its brackets, as float64 [N]."""
    values = np.asarray(json.loads(b"[%b]" % text))
    if values.dtype.kind not in "iuf":
        raise ValueError("it holds something that is not a number")
    if not np.isfinite(values).all():
        raise ValueError("it holds a number that is not finite")
    return values.astype(np.float64)


def parse_image(text, pixel_range):
    """Return the 784 grey values (bytes) of an image's JSON list, and pixel_range.

    pixel_range is the (lowest, highest) value that a pixel has in this file: (0, 255),
    (0, 1) or (-1, 1). It is None for the first image, which decides for all.
    """
    if pixel_range in (None, (0, 255)):
        try:
            grey = bytes(json.loads(b"[%b]" % text))  # Only whole numbers 0-255 pass.
            if len(grey) == PIXELS:
                return grey, (0, 255)
        except (TypeError, ValueError):
            pass  # Fractions, or a mistake; the lines below tell which.
    values = parse_numbers(text)
    if len(values) != PIXELS:
        raise ValueError(f"{len(values)} pixels instead of {PIXELS}")
    lowest, highest = values.min(), values.max()
    if pixel_range is None:
        pixel_range = (-1, 1) if lowest < 0 else (0, 1) if highest <= 1 else (0, 255)
    if lowest < pixel_range[0] or highest > pixel_range[1]:
        raise ValueError(
            f"pixels from {lowest:g} to {highest:g} in a file whose pixels "
            f"go from {pixel_range[0]} to {pixel_range[1]}"
        )
    if pixel_range == (0, 255) and (values % 1).any():
        raise ValueError("a pixel between 0 and 255 that is not a whole number")
    if pixel_range == (-1, 1):
        values = (values + 1) * 127.5
    elif pixel_range == (0, 1):
        values = values * 256  # The well-known file holds grey value / 256.
    return np.rint(values).clip(0, 255).astype(np.uint8).tobytes(), pixel_range


def parse_labels(text, images):
    """Return the labels of a set with that many images, from their JSON list: bytes."""
    labels = parse_numbers(text)
    if len(labels) != images:
        raise ValueError(f"{images} images but {len(labels)} labels")
    wrong = np.flatnonzero((labels < 0) | (labels > 9) | (labels % 1 != 0))
    if len(wrong):
        raise ValueError(f"label {labels[wrong[0]]:g} of image {wrong[0]} is no digit")
    return labels.astype(np.uint8).tobytes()


def innermost_lists(stream, limit):
    """Yield (brackets, text) for each list in a JSON stream that holds no other list.

    text is the list without its brackets; brackets is what stands between it and the
    list before, such as b"],[[["; the last text is None. Only one list at a time is
    in memory: as Python numbers, all 55 million pixels would take 700 MB. Raises
    ValueError behind limit bytes.
    """
    brackets = rest = b""
    while block := stream.read(2**20):
        limit -= len(block)
        if limit < 0:
            raise ValueError(f"it unpacks to over {PACKED} times its size")
        *pieces, rest = (rest + block).split(b"]")
        for piece in pieces:
            before, bracket, text = piece.rpartition(b"[")
            if bracket:
                yield brackets + before + b"[", text
                brackets = b"]"
            else:
                brackets += piece + b"]"
            if len(brackets) > 1000:
                raise ValueError("nothing but brackets")
        if len(rest) > LONGEST_LIST:
            raise ValueError("a list without an end")
    yield brackets + rest, None


def parse_splits(stream, limit):
    """Parse [[images, labels], [images, labels], [images, labels]]: machine validation.

    stream: the JSON text as a binary file, of limit bytes at most.
    Returns {split: (images uint8 [N, 28, 28], labels uint8 [N])}. Raises ValueError,
    which names set and image, unless there are three sets of two lists, as many
    images as labels, 784 pixels in each image, all in one range, and labels 0-9.
    """
    splits, images, pixel_range = {}, bytearray(), None
    expected = {b"[[[[": "image"}
    for brackets, text in innermost_lists(stream, limit):
        kind = expected.get(brackets.translate(None, b" \t\r\n"))
        if kind == "end":
            return splits
        if text is None:
            kind = None  # The file ends where a list would have to begin.
        place = f"set {len(splits) + 1} of 3, image {len(images) // PIXELS}"
        try:
            if kind == "image":
                grey, pixel_range = parse_image(text, pixel_range)
                images += grey
                expected = {b"],[": "image", b"]],[": "labels"}
            elif kind == "labels":
                place = f"set {len(splits) + 1} of 3"
                labels = parse_labels(text, len(images) // PIXELS)
                splits[SPLITS[len(splits)]] = (
                    np.frombuffer(images, np.uint8).reshape(-1, 28, 28),
                    np.frombuffer(labels, np.uint8),
                )
                images = bytearray()
                more = len(splits) < len(SPLITS)
                expected = {b"]],[[[": "image"} if more else {b"]]]": "end"}
            else:
                form = "[[images, labels], [images, labels], [images, labels]]"
                raise ValueError(f"the file is not of the form {form}")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


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


def read_cache(path, digest):
    """Return the splits that an earlier reading left in path, or None.

    digest: the sha256 of the data file; a cache made from other data is not used.
    """
    try:
        with np.load(path) as arrays:
            if str(arrays["sha256"]) != digest:
                return None
            splits = {
                name: (arrays[f"{name}_images"], arrays[f"{name}_labels"])
                for name in SPLITS
            }
        for images, labels in splits.values():
            if images.shape != (len(labels), 28, 28) or images.dtype != np.uint8:
                raise ValueError("not grey images with a label each")
            if labels.shape != (len(labels),) or labels.dtype != np.uint8:
                raise ValueError("not a label each")
            if labels.max(initial=0) > 9:
                raise ValueError("labels that are no digits")
    except FileNotFoundError:
        return None
    except Exception:  # Whatever is wrong with it, the data file can replace it.
        print(f"{path} is damaged and will be made anew", file=sys.stderr)
        return None
    return splits


@functools.lru_cache(maxsize=1)
def read_splits(path):
    """Read mnist.json.gz, or the cache beside it if that was made from the same bytes.

    Returns ({split: (images uint8 [N, 28, 28], labels uint8 [N])}, sha256 of the
    file). Grey values go from 0, paper, to 255, ink. Raises UserError.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there or not a file; --data names the data")
    cache = path.with_name(path.name.split(".")[0] + ".npz")
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.sha256()
            while block := file.read(2**20):
                sha256.update(block)
        digest = sha256.hexdigest()
        splits = read_cache(cache, digest)
        if splits is None:
            print(f"parsing {path}; later runs will read {cache}", file=sys.stderr)
            # A file may be small and unpack to terabytes.
            limit = 2**24 + PACKED * path.stat().st_size
            with gzip.open(path) as stream:
                splits = parse_splits(stream, limit)
            arrays = {"sha256": np.array(digest)}
            for name, (images, labels) in splits.items():
                arrays |= {f"{name}_images": images, f"{name}_labels": labels}
            try:
                write_whole(cache, lambda file: np.savez(file, **arrays))
            except OSError:
                pass  # A folder that cannot be written costs time, nothing else.
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; get it again") from None
    except ValueError as error:
        raise UserError(f"{path}, {error}") from None
    return splits, digest


# -------------------------------------------------------------------------- pictures


def open_picture(path):
    """Return the picture in a file upright, its longest side at most STORED_SIDE.

    Of a moving picture it is the first frame. Raises UserError.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        for mark, kind in FOREIGN.items():
            if mark in start and not start.startswith(b"\x89PNG"):
                raise UserError(f"{path} is {kind}: convert it to PNG or JPEG")
        with Image.open(path, formats=FORMATS) as image:
            image.draft(None, (STORED_SIDE, STORED_SIDE))  # Decodes a JPEG smaller.
            return ImageOps.exif_transpose(shrink(image, STORED_SIDE))
    except UserError:
        raise
    except Exception as error:  # A broken picture raises whatever its decoder likes.
        reason = getattr(error, "strerror", None) or f"no picture: {error}"
        raise UserError(f"{path} cannot be read: {reason}") from None


def shrink(image, side):
    """Return the Pillow picture with no side longer than `side` pixels."""
    # Averaging all of a huge picture takes memory, and every fourth pixel is enough.
    image = resize(image, 4 * side / max(image.size), Image.Resampling.NEAREST)
    if image.mode in ("1", "P", "PA") or image.mode.startswith("I;16"):
        # The values of these modes cannot be averaged.
        image = image.convert({"1": "L", "I": "I"}.get(image.mode[0], "RGBA"))
    return resize(image, side / max(image.size), Image.Resampling.BOX)


def resize(image, scale, resampling):
    """Return the Pillow picture made smaller by `scale`, or as it is from 1 on."""
    size = [max(1, round(scale * length)) for length in image.size]
    return image.resize(size, resampling) if scale < 1 else image


def lay_on_white(image):
    """Return uint8 [H, W, 3]: the colours on white, or else the alpha."""
    if image.mode in ("I", "F"):  # The values have no fixed range: take their own.
        values = np.array(image, np.float64)
        values = (values - values.min()) / max(np.ptp(values), 1e-9)
        image = Image.fromarray(np.uint8(255 * values))
    rgba = image.convert("RGB" if image.mode == "CMYK" else "RGBA").convert("RGBA")
    page = Image.new("RGBA", rgba.size, "white")
    colours = np.array(Image.alpha_composite(page, rgba))[..., :3]
    if np.ptp(colours, axis=(0, 1)).max() < 8:
        colours = 255 - np.array(rgba)[..., [3, 3, 3]]
    return colours


def in_mnist_form(colours):
    """Return uint8 [28, 28] if uint8 [H, W, 3] is made as MNIST's pictures, else None.

    MNIST's makers fitted each digit into 20x20 pixels with grey edges on clean paper,
    its centre of mass in the middle. Such a picture must not be changed again.
    """
    ink = colours[..., 0]
    if ink.shape != (28, 28) or np.ptp(colours, axis=2).any():
        return None
    ink = 255 - ink if np.median(ink) > 127 else ink
    if np.median(ink) > 0 or ink.max() < 200 or len(np.unique(ink)) < 4:
        return None
    top, bottom, left, right = box_of(ink > 0)
    off = [np.average(place, weights=ink) - 14 for place in np.indices(ink.shape)]
    fits = 19 <= max(bottom - top, right - left) <= 20 and np.abs(off).max() < 1.2
    return ink if fits else None


def box_of(mask):
    """Return top, bottom, left and right, in pixels, of what is True in bool [H, W]."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def edge_of(values):
    """Return the outermost rows and columns of [H, W, ...] in one row."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def label_parts(mask):
    """Return int [H, W]: the numbers, from 1, of the connected parts of bool [H, W]."""
    width = mask.shape[1] + 2  # Two empty columns keep the rows apart.
    flat = np.pad(mask, ((0, 0), (0, 2))).ravel()
    changes = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=0, append=0))
    starts, ends = changes[::2], changes[1::2]  # of the runs of True
    # The runs of the next row that touch a run, if only at a corner:
    first = np.searchsorted(ends, starts + width - 1, "right").tolist()
    last = np.searchsorted(starts, ends + width, "right").tolist()
    parent = list(range(len(starts)))

    def root(run):
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    for run in range(len(starts)):
        for below in range(first[run], last[run]):
            parent[root(below)] = root(run)
    numbers = np.unique([root(run) for run in parent], return_inverse=True)[1] + 1
    labels = np.zeros(flat.size, int)
    labels[flat] = np.repeat(numbers, ends - starts)
    return labels.reshape(-1, width)[:, :-2]


def slide(values, size, choose, axes=(0, 1)):
    """Return [H, W]: the least or greatest of the `size` pixels around each."""
    for axis in axes:
        around = [(0, 0), (0, 0)]
        around[axis] = size // 2, (size - 1) // 2
        values = np.pad(values, around, mode="edge").swapaxes(0, axis)
        done = 1  # Two neighbouring windows of `done` pixels make one twice as long.
        while done < size:
            step = min(done, size - done)
            values = choose(values[:-step], values[step:])
            done += step
        values = values.swapaxes(0, axis)
    return values


def remove_narrow(values, size, axes=(0, 1)):
    """Return [H, W] without what is bright and narrower than about `size` pixels."""
    size |= 1  # An odd window has a middle.
    return slide(slide(values, size, np.minimum, axes), size, np.maximum, axes)


def split(values):
    """Return Otsu's threshold, and the share of the variance that it explains."""
    counts, edges = np.histogram(values, 128)
    middles = (edges[1:] + edges[:-1]) / 2 - values.mean()
    below, total = np.cumsum(counts)[:-1], np.cumsum(counts * middles)[:-1]
    between = total**2 / np.maximum(below * (values.size - below), 1)
    best = between.argmax()
    return edges[best + 1], between[best] / max(values.var(), 1e-9)


def crop_to_panel(colours):
    """Return uint8 [h, w, 3] cut out of uint8 [H, W, 3], and its left and top.

    A panel is a plot's axes, a frame or a card: what the even ground at the picture's
    edge cannot flow into, if it is a rectangle and has something inside.
    """
    corner = np.zeros(2, int)
    for _ in range(3):  # A panel may stand in a panel, as axes in a window.
        ground = np.median(edge_of(colours), axis=0)
        even = np.abs(colours - ground).max(2) < 25
        parts = label_parts(even)
        solid = label_parts(~np.isin(parts, np.setdiff1d(edge_of(parts), 0)))
        if edge_of(even).mean() < 0.65 or not solid.any():
            break
        part = solid == np.bincount(solid[solid > 0]).argmax()
        rows, columns = part.sum(1), part.sum(0)
        # Tick marks stick out of a plot's axes, but few pixels in a row or column.
        top, bottom, left, right = box_of(
            (rows > rows.max() / 2)[:, None] & (columns > columns.max() / 2)
        )
        height, width = bottom - top, right - left
        covered = part[top:bottom, left:right]
        rim = 2 + max(height, width) // 50  # the frame's own line
        inner = colours[top + rim : bottom - rim, left + rim : right - rim]
        if (
            covered.mean() < 0.96
            or covered.sum() < 0.95 * part.sum()
            or height < 0.15 * len(even)
            or width < 0.15 * len(even[0])
            or max(height, width) > 3 * min(height, width)
            or min(inner.shape[:2]) < 12
            or np.ptp(inner, axis=(0, 1)).max() < 50
        ):
            break
        colours, corner = inner, corner + (left + rim, top + rim)
    return colours, corner


def to_grey(colours):
    """Return uint8 [H, W]: the colours along the line on which they differ most."""
    pixels = colours.reshape(-1, 3) - colours.mean((0, 1))
    line = np.linalg.eigh(pixels.T @ pixels)[1][:, -1]
    values = (pixels @ line).reshape(colours.shape[:2])
    if np.ptp(values) < 8:
        raise ValueError("there is no ink in the picture: it is all one colour")
    return np.uint8(np.round(255 * (values - values.min()) / np.ptp(values)))


def make_ink_bright(grey):
    """Return uint8 [H, W]: uint8 [H, W], or its negative if ink was darker than paper.

    Against the mean around, which takes shadows out, paper differs a little in many
    places and ink much in few: the mean of the cubes has the sign of the ink.
    """
    around = Image.fromarray(grey).filter(ImageFilter.BoxBlur(min(grey.shape) / 4))
    contrast = grey - np.array(around, np.float32)
    return 255 - grey if np.mean(contrast**3) < 0 else grey


def flatten_light(bright):
    """Return float32 [H, W]: how much brighter each place is than paper around."""
    if max(bright.shape) > 60:  # Average the grain of paper and camera.
        bright = np.array(Image.fromarray(bright).filter(ImageFilter.GaussianBlur(1)))
    bright = bright.astype(np.float32)
    threshold, explained = split(bright)
    if explained > 0.92:  # Two even tones: there is no shadow.
        paper = np.median(bright[bright <= threshold])
    else:
        paper = remove_narrow(bright, max(3, min(bright.shape) // 3))
        paper = paper + np.median(bright - paper)
    return np.maximum(bright - paper, 0)


def find_ink(light):
    """Return bool [H, W]: where float32 [H, W] is ink."""
    # A few very bright places must not draw the threshold up.
    return light > split(np.minimum(light, np.percentile(light, 99.5)))[0]


def drop_lines(ink):
    """Return bool [H, W]: the ink without a ruled or squared paper's lines."""
    for _ in range(2):
        ink = ink.T  # First come the lines downwards, then those across.
        height = len(ink)
        wide = slide(ink, 5, np.maximum, axes=[1])  # A line may be slightly tilted.
        lines = label_parts(remove_narrow(wide, int(0.7 * height), axes=[0]))
        for number in np.setdiff1d(np.intersect1d(lines[0], lines[-1]), 0):
            line = ink & (lines == number)
            thickness = int(np.median(line.sum(1))) + 1
            # What is much wider than the line is a stroke that crosses it.
            rest = ink & (remove_narrow(ink, 2 * thickness + 1, axes=[1]) | ~line)
            if thickness <= max(2, 0.03 * height) and rest.any():
                ink = rest
    return ink


def keep_digit(light, ink):
    """Return bool [H, W]: the part that stands out, and what belongs to it."""
    parts = label_parts(ink)
    if not ink.any():
        raise ValueError("there is no ink in the picture")
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    touching = np.bincount(edge_of(parts), minlength=len(areas))

    def prominence(number):
        top, bottom, left, right = box_of(parts == number)
        size = np.hypot(bottom - top, right - left)
        # What lies along the edge is a frame, or the table under the paper.
        inside = max(0.01, 1 - touching[number] / size)
        return light[parts == number].sum() * size**2 * inside

    main = max(areas.argsort()[-min(8, len(areas) - 1) :], key=prominence)
    digit = parts == main
    width = stroke_width(digit)
    specks = areas < width**2 / 4
    foreign = (touching > 0) & (touching[main] == 0)
    while True:
        top, bottom, left, right = box_of(digit)
        reach = int(max(max(bottom - top, right - left) / 9, 1.6 * width))
        around = slide(digit, 2 * reach + 1, np.maximum)
        around[top:bottom, left:right] = True
        near = np.unique(parts[around])
        larger = digit | np.isin(parts, near[~(specks | foreign)[near]])
        if (larger == digit).all():
            return digit
        digit = larger


def stroke_width(mask):
    """Return the mean stroke width of bool [H, W], in pixels."""
    padded = np.pad(mask, 1).astype(np.int8)
    outline = np.abs(np.diff(padded)).sum() + np.abs(np.diff(padded, axis=0)).sum()
    # Steps along rows and columns overstate a slanting outline, by 4 / pi on average.
    # A stroke has two sides, so its width is twice its area over its outline.
    return 2 * mask.sum() / max(outline * np.pi / 4, 1)


def fit_stroke(light, digit):
    """Return bool [h, w], about 20 * FINE pixels long: the digit, STROKE thick."""
    top, bottom, left, right = box_of(digit)
    soft = np.where(slide(digit, 3, np.maximum), light / np.median(light[digit]), 0)
    soft = np.pad(np.float32(soft.clip(0, 1))[top:bottom, left:right], 2)
    scale = 20 * FINE / max(bottom - top, right - left)
    size = [max(1, round(scale * length)) for length in soft.shape[::-1]]
    fine = np.array(Image.fromarray(soft).resize(size, Image.Resampling.BICUBIC)) > 0.5
    thick = fine = np.pad(fine, 2 * FINE)
    radius = (STROKE * FINE - stroke_width(fine)) / 2
    reach = int(max(0, radius))
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down**2 + right**2 <= radius**2:
                thick = thick | np.roll(fine, (down, right), (0, 1))
    return thick


def centre(digit):
    """Return uint8 [28, 28]: the digit in a 20x20 box, its mass in the middle."""
    top, bottom, left, right = box_of(digit)
    image = Image.fromarray(np.uint8(255 * digit[top:bottom, left:right]))
    size = [max(1, round(20 * length / max(image.size))) for length in image.size]
    small = np.array(image.resize(size, Image.Resampling.BOX))
    picture = np.zeros((28, 28), np.uint8)
    picture[: small.shape[0], : small.shape[1]] = small
    for axis in (0, 1):
        middle = picture.sum(1 - axis) @ np.arange(28) / picture.sum()
        shift = np.clip(round(13.5 - middle), 0, 28 - small.shape[axis])
        picture = np.roll(picture, shift, axis)
    return picture


def normalise(image, look_closer=True):
    """Return [(name, array)] from Pillow picture to the network's uint8 [28, 28]."""
    colours = lay_on_white(shrink(image, WORKING_SIDE))
    ready = in_mnist_form(colours)
    if ready is not None:
        return [("on white", colours), ("already in MNIST's form", ready)]
    panel, corner = crop_to_panel(colours)
    grey = to_grey(panel)
    bright = make_ink_bright(grey)
    light = flatten_light(bright)
    ink = drop_lines(find_ink(light))
    digit = keep_digit(light, ink)
    done = [
        ("on white", colours),
        ("panel", panel),
        ("grey", grey),
        ("ink bright", bright),
        ("light flattened", light),
        ("ink", ink),
        ("digit", digit),
    ]
    top, bottom, left, right = box_of(digit)
    side, scale = max(bottom - top, right - left), max(image.size) / WORKING_SIDE
    if look_closer and scale > 1 and side < WORKING_SIDE / 3:
        middle = corner + ((left + right) / 2, (top + bottom) / 2)
        low = np.maximum(scale * (middle - side), 0).astype(int)
        high = np.minimum(scale * (middle + side), image.size).astype(int)
        return done + normalise(image.crop([*low, *high]), look_closer=False)
    stroke = fit_stroke(light, digit)
    return done + [("stroke", stroke), ("centred", centre(stroke))]


def one_digit(done):
    """Return whether the steps' ink is one digit and little else."""
    first = dict(reversed(done))  # A closer look does not see what lies further off.
    if "digit" not in first:
        return True
    digit, ink = first["digit"], first["ink"]
    parts = label_parts(ink)
    frame = np.isin(parts, np.setdiff1d(edge_of(parts), 0))
    if not (digit & frame).any():
        ink = ink & ~frame  # The table under the paper, a corner in the shade.
    areas = np.bincount(label_parts(digit).ravel())[1:]
    top, bottom, left, right = box_of(digit)
    return bool(
        digit.sum() >= 0.8 * ink.sum()  # Else there may be a second digit.
        and np.sum(areas >= 0.03 * areas.sum()) <= 2  # A 5 may have two parts.
        and right - left <= 1.6 * (bottom - top)  # Wider ones are two digits.
    )


def resize_only(image):
    """Return [(name, array)] as the article prepares a picture: grey, then resized.

    The last array is uint8 [28, 28]; it takes ink for dark, whatever the picture is.
    """
    grey = lay_on_white(image).mean(2).astype(np.uint8)
    small = Image.fromarray(grey).resize((28, 28), Image.Resampling.LANCZOS)
    # To the network this is 1 - v / 127.5: dark ink on white gets MNIST's polarity.
    return [("grey", grey), ("resized", 255 - np.array(small))]


# --------------------------------------------------------------------------- network


def build_network(name, outputs):
    """Return the network called name: "linear", "mlp" or "cnn".

    It takes float32 [N, 1, 28, 28] in [-1, 1] and gives float32 [N, outputs]: ten
    logits, or one number. The shapes and numbers of parameters beside the layers are
    for ten. Batch normalisation has a bias, so the layer before it needs none, and
    halving an image by stride costs a CPU less than pooling does.
    """

    def convolution(inputs, filters, size, padding):
        return nn.Conv2D(inputs, filters, size, 2, padding, bias_attr=False)

    if name == "linear":  # 7850 parameters; with one output 785, as in the article
        layers = [
            ("flatten", nn.Flatten()),  # [N, 784]
            ("fc", nn.Linear(784, outputs)),  # [N, 10], 7850
        ]
    elif name == "mlp":  # 235530 parameters
        layers = [
            ("flatten", nn.Flatten()),  # [N, 784]
            ("hidden1", nn.Linear(784, 256, bias_attr=False)),  # [N, 256], 200704
            ("norm1", nn.BatchNorm1D(256)),
            ("relu1", nn.ReLU()),
            ("hidden2", nn.Linear(256, 128, bias_attr=False)),  # [N, 128], 32768
            ("norm2", nn.BatchNorm1D(128)),
            ("relu2", nn.ReLU()),
            ("fc", nn.Linear(128, outputs)),  # [N, 10], 1290
        ]
    elif name == "cnn":  # 98938 parameters
        layers = [
            ("conv1", convolution(1, 16, 5, 2)),  # [N, 16, 14, 14], 400
            ("norm1", nn.BatchNorm2D(16)),
            ("relu1", nn.ReLU()),
            ("conv2", convolution(16, 32, 3, 0)),  # [N, 32, 6, 6], 4608
            ("norm2", nn.BatchNorm2D(32)),
            ("relu2", nn.ReLU()),
            ("conv3", convolution(32, 64, 3, 1)),  # [N, 64, 3, 3], 18432
            ("norm3", nn.BatchNorm2D(64)),
            ("relu3", nn.ReLU()),
            ("flatten", nn.Flatten()),  # [N, 576]
            ("hidden", nn.Linear(576, 128, bias_attr=False)),  # [N, 128], 73728
            ("norm4", nn.BatchNorm1D(128)),
            ("relu4", nn.ReLU()),
            ("fc", nn.Linear(128, outputs)),  # [N, 10], 1290
        ]
    return nn.Sequential(*layers)


# -------------------------------------------------------------------------- training


def choose_device(gpu):
    """Make paddle use the GPU or the CPU, and return its name, such as "cpu"."""
    device = "cpu"
    if gpu and paddle.device.cuda.device_count():
        device = "gpu:" + os.environ.get("FLAGS_selected_gpus", "0")
    elif gpu:
        print(
            "warning: --gpu: this paddlepaddle finds no usable GPU; "
            "install paddlepaddle-gpu; going on on the CPU",
            file=sys.stderr,
        )
    paddle.set_device(device)
    return device


def machine(device):
    """Return a line about what computes: device, threads, version."""
    threads = paddle.get_flags("FLAGS_paddle_num_threads")["FLAGS_paddle_num_threads"]
    return f"device: {device}, threads: {threads}, paddle {paddle.__version__}"


def read_parameters(path):
    """Return (tensors {name: array}, facts) of a parameters file; raise UserError."""
    if not path.is_file():
        raise UserError(f"{path} is not there or not a file; train, or give --params")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
            if start[:1] == b"\x80" and start[8:] != b"{":
                raise UserError(
                    f"{path} is a pickle: refused, since loading one can run code; "
                    "train again to get a .safetensors file"
                )
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = dict(json.loads(file.metadata()["mnist"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise ValueError(f"tensor {name} is not finite")
        return tensors, facts
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is no parameters file of ours ({reason})") from None


def fill(target, tensors, path):
    """Put tensors {name: array} into a network or an optimizer.

    Paddle only warns when they do not fit; this raises UserError, which names path.
    """
    own = target.state_dict()
    schedule = own.pop("LR_Scheduler", None)  # Of an optimizer; it keeps its own.
    for name in own.keys() ^ tensors.keys():
        what = "missing" if name in own else "one too many"
        raise UserError(f"{path}: tensor {name} is {what}")
    for name, tensor in tensors.items():
        shape = list(own[name].shape)
        if tensor.dtype != np.float32 or list(tensor.shape) != shape:
            raise UserError(f"{path}: tensor {name} is not float32 {shape}")
    target.set_state_dict(
        {**tensors, "LR_Scheduler": schedule} if schedule else tensors
    )


def load_network(path):
    """Return (network in eval mode, facts) from a parameters file; raise UserError."""
    tensors, facts = read_parameters(path)
    name, loss, clear = (facts.get(key) for key in ("network", "loss", "clear"))
    if name not in NETWORKS or loss not in list(OUTPUTS):
        raise UserError(f"{path} is for an unknown network or loss: {name}, {loss}")
    if facts.get("pixels") != [-1, 1]:
        raise UserError(f"{path} wants pixels in {facts.get('pixels')}, not in [-1, 1]")
    if not isinstance(clear, (int, float, type(None))):
        raise UserError(f"{path} calls {clear} a clear digit's probability")
    network = build_network(name, OUTPUTS[loss])
    fill(network, tensors, path)
    network.eval()
    return network, facts


# ------------------------------------------------------------------------ evaluation


@paddle.no_grad()
def predict(network, images):
    """Return (digits int [N], values float32 [N, 10] or [N, 1]) of uint8 [N, 28, 28].

    values are the ten probabilities, or the one output whose integer part, kept within
    0-9, is the digit.
    """
    pixels = images[:, None].astype(np.float32) / 127.5 - 1  # [N, 1, 28, 28]
    output = network(paddle.to_tensor(pixels))
    if output.shape[1] == 1:
        values = output.numpy()
        return np.trunc(values[:, 0]).clip(0, 9).astype(int), values
    values = F.softmax(output).numpy()
    return values.argmax(1), values


def read_pictures(network, facts, paths, raw):
    """Yield (path, steps, digit, values, clear) for each picture.

    steps: what was done to it, [(name, array)], or the UserError that was in the way.
    digit, values: as predict returns them. clear: whether the digit is beyond
    doubt, that is as probable as those of the data that the network was tested with.
    """
    for start in range(0, len(paths), BATCH):
        done = []
        for path in paths[start : start + BATCH]:
            try:
                if isinstance(path, UserError):
                    raise path
                picture = open_picture(path)
                done.append((resize_only if raw else normalise)(picture))
            except UserError as error:
                done.append(error)
            except ValueError as error:
                done.append(UserError(f"{path}: {error}"))
        ready = [steps[-1][1] for steps in done if isinstance(steps, list)]
        found = iter(zip(*predict(network, np.array(ready)))) if ready else iter(())
        for path, steps in zip(paths[start:], done):
            digit = values = clear = None
            if isinstance(steps, list):
                digit, values = next(found)
                clear = raw or one_digit(steps)
                clear = clear and values.max() >= (facts.get("clear") or -math.inf)
            yield path, steps, digit, values, clear


def describe(digit, values, clear):
    """Return what is said of a picture, such as "3  (97.0 %)"."""
    number = (
        f"output {values[0]:.2f}" if len(values) == 1 else f"{100 * max(values):.1f} %"
    )
    return f"{digit}  ({number})" + ("" if clear else "  no clear digit")


def show_samples(network, args):
    """Print the digits of shuffled training images beside their labels.

    The article's second look: its picture was read wrongly, so how are its own images?
    """
    images, labels = read_splits(args.data)[0]["train"]
    chosen = np.random.default_rng(args.seed).permutation(len(labels))[: args.samples]
    digits, values = predict(network, images[chosen])
    labels = labels[chosen]
    for start in range(0, len(chosen), ROW):
        row = slice(start, start + ROW)
        marks = np.where(digits[row] == labels[row], " ", "^")
        print("label " + "  ".join(map(str, labels[row])))
        print("digit " + "  ".join(map(str, digits[row])))
        print(("      " + "  ".join(marks)).rstrip())
    right = int((digits == labels).sum())
    marked = ", the wrong ones marked" if right < len(labels) else ""
    print(f"{right} / {len(labels)} right{marked}")
    if values.shape[1] == 1:
        error = np.abs(values[:, 0] - labels).mean()
        if right < len(labels) / 2:
            print("As the article found: most are wrong.")
        print(
            f"The outputs miss by {error:.2f} on average: a number may, a name may not."
        )


# --------------------------------------------------------------------------- drawing


def draw(read):
    """Draw pictures that were read: one with all its steps, several as a sheet.

    read: what read_pictures yields, of readable pictures. A window shows the drawing;
    without a display it becomes show_predict.png. Returns the file written, or None.
    """
    import matplotlib.pyplot as plt  # Only here: importing it takes half a second.

    warnings.filterwarnings("ignore", message="Glyph")  # A name may have any letters.
    figure = draw_steps(plt, read[0]) if len(read) == 1 else draw_sheet(plt, read)
    if plt.get_backend().lower() != "agg":
        plt.show()
        return None
    path = Path("show_predict.png")
    try:
        write_whole(path, lambda png: figure.savefig(png, dpi=110))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path


def draw_picture(axes, array, title):
    """Draw one array, [H, W] or [H, W, 3], without ticks."""
    axes.imshow(array, "gray")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set(xticks=[], yticks=[])


def draw_bars(axes, values):
    """Draw the ten probabilities as bars, or a regression's output on its scale."""
    if len(values) == 1:
        axes.axvline(values[0], color="black")
        axes.set(xlim=(-0.5, 9.5), ylim=(0, 1), xticks=range(10), yticks=[])
        axes.set_xlabel("output", fontsize=9)
        return
    best = int(np.argmax(values))
    colours = ["black" if digit == best else "0.6" for digit in range(10)]
    axes.bar(range(10), values, color=colours)
    axes.set(ylim=(0, 1), xticks=range(10), yticks=[0, 0.5, 1])
    axes.set_xlabel("digit", fontsize=9)


def draw_steps(plt, picture):
    """Return a figure of one picture: each step, and the probabilities."""
    path, steps, digit, values, clear = picture
    columns = 4
    rows = math.ceil((len(steps) + 1) / columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(2.4 * columns, 2.6 * rows + 0.5),
        squeeze=False,
        layout="constrained",
    )
    axes = axes.ravel()
    for number, (ax, (name, array)) in enumerate(zip(axes, steps), 1):
        height, width = array.shape[:2]
        draw_picture(ax, array, f"{number}. {name}, {width}×{height}")
    draw_bars(axes[len(steps)], values)
    axes[len(steps)].set_title("what the network says", fontsize=10)
    for ax in axes[len(steps) + 1 :]:
        ax.axis("off")
    title = f"{printable(path.name)}: {describe(digit, values, clear)}"
    figure.suptitle(title, fontweight="bold", parse_math=False)
    return figure


def draw_sheet(plt, read):
    """Return a figure of several pictures: each as given and as the network saw it."""
    columns = 5
    rows = math.ceil(len(read) / columns)
    figure, axes = plt.subplots(
        2 * rows,
        columns,
        figsize=(1.9 * columns, 3.7 * rows),
        squeeze=False,
        layout="constrained",
        height_ratios=[1.3, 1] * rows,
    )
    for ax in axes.ravel():
        ax.axis("off")
    for number, (path, steps, digit, values, clear) in enumerate(read):
        row, column = divmod(number, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        above.axis("on")
        below.axis("on")
        draw_picture(above, steps[0][1], printable(path.name))
        draw_picture(below, steps[-1][1], describe(digit, values, clear))
    return figure


# ------------------------------------------------------------------------------ main


def find_pictures(names):
    """Return the paths of the pictures named; a folder stands for those in it.

    A UserError stands for a folder without any.
    """
    paths = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            paths += inside or [UserError(f"{path} is a folder without pictures")]
        else:
            paths.append(path)
    return paths


def run(args):
    """Print a line for each picture, or samples of the data; draw if asked."""
    choose_device(args.gpu)
    name = args.params
    if not Path(name).is_file() and not name.endswith(".safetensors"):
        name += ".safetensors"
    network, facts = load_network(Path(name))
    if args.samples:
        show_samples(network, args)
        return
    if not args.images:
        raise UserError("no picture given: predict.py IMAGE..., or --samples N")
    shown, broken = [], []
    for read in read_pictures(network, facts, find_pictures(args.images), args.raw):
        path, steps, digit, values, clear = read
        if isinstance(steps, UserError):
            broken.append(steps)
            continue
        print(f"{printable(path)}: {describe(digit, values, clear)}", flush=True)
        if args.show and len(shown) < SHEET:
            shown.append(read)
    if shown:
        drawn = draw(shown)
        if drawn:
            print(f"drawn: {drawn}")
    for error in broken[:-1]:
        print(f"error: {printable(error)}", file=sys.stderr)
    if broken:
        raise broken[-1]


def printable(text):
    """Return text without the characters that could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def number(convert, lowest, highest):
    """Return an argparse type: int or float (convert) from lowest to highest."""

    def checked(text):
        value = convert(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"not from {lowest} to {highest}: {text}")
        return value

    checked.__name__ = "number"  # argparse says "invalid number value: ..."
    return checked


class Parser(argparse.ArgumentParser):
    """argparse's parser; its complaints are one line, as all others are."""

    def error(self, message):
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def parse(arguments):
    """Return the command line's flags."""
    parser = Parser(description="Read the digit in each picture.")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="a picture, or a folder of them")
    add("--gpu", action="store_true", help="predict on GPU 0")
    add("--params", default="mnist", help="default: mnist, for mnist.safetensors")
    add(
        "--samples",
        type=number(int, 1, 10**4),
        metavar="N",
        help="N training images, and their labels",
    )
    add("--data", default="work/mnist.json.gz", help="default: work/mnist.json.gz")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="which samples")
    add("--show", action="store_true", help="draw what was given, and what was seen")
    add("--raw", action="store_true", help="only resize, as the article does")
    return parser.parse_args(arguments)


def stop(*_):
    """Answer Ctrl-C and SIGTERM: remember them, for what is raised may get lost.

    It does where a library happens to tidy up, which then would only print about it.
    """
    stop.asked = True
    sys.unraisablehook = lambda _: None
    raise KeyboardInterrupt


stop.asked = False


def main(arguments=None):
    """Run the script; return 0, 2 after a user's mistake, 130 after Ctrl-C."""
    stop.asked = False
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        run(parse(arguments))
        print(end="", flush=True)
    except UserError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # Of what is printed; files have messages of their own.
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno == errno.EPIPE:  # Whoever reads it, `head` say, has seen enough.
            return 1
        print("error: standard output: no space left on its disk", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what was finished before is on disk", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
