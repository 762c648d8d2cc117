"""Pictures in, digits out: photos, scans, screenshots and drawings of numbers.

MNIST's digits are white on black, of one size and centred: any picture is brought to
that form first, in steps that --show draws. `python predict.py work/example_0.png`:

    work/example_0.png: 0  (99.9 %)
"""

import argparse
import glob
import json
import os
import sys
import warnings

import cv2
import numpy as np
import safetensors.numpy
from PIL import Image, ImageOps

warnings.filterwarnings("ignore", module="paddle")
os.environ.pop("MPLBACKEND", None)  # A notebook's own backend writes no file.

import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402

Image.MAX_IMAGE_PIXELS = None  # Large photos are no attack.
OUTPUTS = {"cross_entropy": 10, "square_error": 1}  # Of the network, for each loss.
SIDE = 640  # Pixels: a larger picture is reduced to this, which averages its grain.
SMALL = 64  # Pixels: up to this side, grain, shadows and ruled lines do not matter.


def open_picture(path):
    """Return the picture in a file, upright and on white, as uint8 [H, W, 3]."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (SIDE, SIDE))  # Decode a JPEG at a smaller size.
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # A broken file raises whatever its decoder likes.
        raise ValueError(getattr(error, "strerror", 0) or error) from None
    if image.mode[0] == "I":  # 16 bits
        image = Image.fromarray(np.uint8(np.array(image) // 256))
    page = Image.new("RGBA", image.size, "white")  # For what is transparent
    image = Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return np.array(image)


def find_paper(colours):
    """Return the paper's colour at each pixel, uint8 [H, W, 3], shadows included."""
    small = cv2.resize(colours, (64, 64), interpolation=cv2.INTER_AREA)
    # Ink differs much from its surroundings in few places: the cube brings it out.
    contrast = small - cv2.blur(np.float32(small), (33, 33))
    if min(colours.shape[:2]) <= SMALL:  # The digit may fill it, but for the rim.
        rim = np.concatenate([*colours[[0, -1]], colours[:, 0], colours[:, -1]])
        contrast = small - np.median(rim, axis=0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (33, 33))
    opened = cv2.morphologyEx(small, cv2.MORPH_OPEN, disc)
    closed = cv2.morphologyEx(small, cv2.MORPH_CLOSE, disc)
    paper = np.where((contrast**3).sum((0, 1)) > 0, opened, closed)
    return cv2.resize(paper, colours.shape[1::-1])


def find_ink(colours, paper):
    """Return float32 [H, W], 0 for paper to 1 for ink: the difference in colour."""
    ink = np.linalg.norm(np.float32(colours) - paper, axis=2)
    strongest = np.partition(np.pad(ink, 4), -9, axis=None)[-9]  # Not a lone speck
    noise = np.quantile(ink, 0.25)  # Most of a picture is paper.
    if strongest < max(14, 2.5 * noise):
        raise ValueError("there is no ink in the picture")
    contrast = np.median(ink[ink > strongest / 2])
    return np.where(ink > 1.5 * noise, ink / contrast, 0).clip(0, 1)


def drop_rules(mask):
    """Return uint8 [H, W] without thin lines to the rim; what crosses them stays."""
    for _ in range(2):  # The lines downwards, then those across
        mask = np.ascontiguousarray(mask.T)
        width = mask.shape[1]
        thick = np.ones((5 + max(mask.shape) // 40, 1))
        thin = mask - cv2.morphologyEx(mask, cv2.MORPH_OPEN, thick)
        fat = cv2.dilate(thin, np.ones((3, 1)))  # A line may be slightly tilted.
        long = cv2.morphologyEx(fat, cv2.MORPH_CLOSE, np.ones((1, width // 4 | 1)))
        labels = cv2.connectedComponents(long)[1]
        ends = (labels * fat)[:, [0, 1, -2, -1]]
        mask = mask & ~(thin * np.isin(labels, ends[ends > 0]))
    return mask


def merge(begins, ends):
    """Return the indices of intervals in groups that overlap, from left to right."""
    order = begins.argsort()
    reached = np.maximum.accumulate(ends[order])
    return np.split(order, 1 + np.flatnonzero(begins[order][1:] > reached[:-1]))


def find_digits(mask):
    """Return lines of digits, each as a mask, of the mask of all ink, uint8 [H, W]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    left, top, width, height, area = stats.T
    right, bottom, length = left + width, top + height, np.hypot(width, height)
    rim = np.concatenate([*labels[[0, -1]], labels[:, 0], labels[:, -1]])
    along = np.bincount(rim, minlength=count) / length
    main = 1 + (area * length)[1:].argmax()
    # Specks fall away, and what lies along the picture's rim.
    keep = (area > area[main] / 50) & (along <= max(0.3, along[main]))
    parts, lines = 1 + np.flatnonzero(keep[1:]), []
    near = 0.08 * length[main]
    for line in merge(top[parts] - near, bottom[parts] + near):
        line = parts[line]
        small = height[line] < 0.4 * np.ptp([top[line], bottom[line]])
        margin = np.where(small, 2 * near, -width[line] / 6)  # A third of both
        digits = [line[d] for d in merge(left[line] - margin, right[line] + margin)]
        heights = [np.ptp([top[digit], bottom[digit]]) for digit in digits]
        tall = 0.4 * max(height[main], *heights)
        digits = [digit for digit, high in zip(digits, heights) if high > tall]
        lines.append([np.uint8(np.isin(labels, digit)) for digit in digits])
    return [line for line in lines if line]


def centre(ink, mask):
    """Return uint8 [28, 28]: a digit 20 pixels long, centred by mass, thick enough."""
    x, y, width, height = cv2.boundingRect(mask)
    ink = np.pad(ink, 2) * cv2.dilate(np.pad(mask, 2), np.ones((3, 3)))
    ink = ink[y : y + height + 4, x : x + width + 4]
    scale = 80 / max(width, height)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fine = cv2.resize(ink, None, fx=scale, fy=scale, interpolation=method)
    fine = np.pad(fine.clip(0, 1), 8)
    # MNIST's strokes are 2.8 pixels wide at least, here four times as many; a stroke's
    # width is about 4 times its pixels' mean distance to the edge, less 1.
    distance = cv2.distanceTransform(np.uint8(fine > fine.max() / 2), cv2.DIST_L2, 5)
    lack = max(0, round(12.2 - 4 * distance[distance > 0].mean()))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (lack + 1, lack + 1))
    fine = cv2.dilate(fine, disc)
    scale = 20 / (80 + lack)
    small = cv2.resize(fine, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    moments = cv2.moments(small)
    x, y = (round(13.5 - moments[m] / moments["m00"]) for m in ("m10", "m01"))
    image = cv2.warpAffine(small, np.float32([[1, 0, x], [0, 1, y]]), (28, 28))
    return np.uint8(np.round(255 * image))


def normalise(colours):
    """Return lines of digits, uint8 [28, 28], and the steps; no ink: ValueError."""
    paper = find_paper(colours)
    ink = find_ink(colours, paper)
    large = min(ink.shape) > SMALL
    mask = np.uint8(ink > (0.4 if large else 0.15))  # Shadows have less than 0.4.
    for outline in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        x, y, width, height = cv2.boundingRect(outline)
        line = 2 + max(width, height) // 50
        inside = colours[y + line : y + height - line, x + line : x + width - line]
        least = max(144, 0.03 * mask.size, 0.9 * width * height)
        # A frame, a card or a plot's axes, with something inside: look there.
        if cv2.contourArea(outline) > least and np.ptp(inside, axis=(0, 1)).max() > 50:
            return normalise(np.ascontiguousarray(inside))
    rest = drop_rules(mask) if large else mask
    rest = rest if rest.any() else mask  # A digit may be as thin, and reach the rim.
    lines = find_digits(rest) if max(mask.shape) > 28 else [[mask]]  # MNIST's own size
    lines = [[centre(ink, digit) for digit in line] for line in lines]
    return lines, {"picture": colours, "paper": paper, "ink": ink, "no rules": rest}


def build_network(name, outputs):
    """Return the network: float32 [N, 1, 28, 28] in [-1, 1] -> float32 [N, outputs]."""
    if name == "linear":  # With one output, as in the article, it is a regression.
        return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs))
    layers, features = [], 784  # An MLP has no convolutions.
    if name == "cnn":  # Strides are cheaper than pooling; the norm has the bias.
        for cin, cout, side, stride in (1, 24, 5, 2), (24, 48, 3, 2), (48, 64, 3, 1):
            layers += [nn.Conv2D(cin, cout, side, stride, bias_attr=False)]
            layers += [nn.BatchNorm2D(cout), nn.ReLU()]
        features = 576  # [N, 24, 12, 12], [N, 48, 5, 5], [N, 64, 3, 3]
    layers += [nn.Flatten(), nn.Linear(features, 256, bias_attr=False)]
    layers += [nn.BatchNorm1D(256), nn.ReLU(), nn.Linear(256, outputs)]
    return nn.Sequential(*layers)


def load_network(path):
    """Return the network of a parameters file; raise ValueError, which names path."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = json.loads(file.metadata()["mnist"])
            names = [name for name in file.keys() if "optimizer." not in name]
            tensors = {name: file.get_tensor(name) for name in names}
        network = build_network(metadata["network"], OUTPUTS[metadata["loss"]])
        if any(network.set_state_dict(tensors)):
            raise ValueError("its tensors are not the network's")
    except Exception as error:  # A foreign file fails in many ways.
        raise ValueError(f"{path}: no parameters, train first: {error}") from None
    network.eval()
    return network


@paddle.no_grad()
def predict(network, images):
    """Return digits [N], probabilities (regression: outputs) of uint8 [N, 28, 28]."""
    inputs = np.float32(images).reshape(-1, 1, 28, 28) / 127.5 - 1
    outputs = network(paddle.to_tensor(inputs))
    if outputs.shape[1] == 1:
        return np.trunc(outputs.numpy()[:, 0]).clip(0, 9).astype(int), outputs.numpy()
    probabilities = nn.functional.softmax(2 * outputs).numpy()  # Calibrated (Guo, 2017)
    return probabilities.argmax(1), probabilities.max(1)


def read_picture(network, path, raw):
    """Print what is read in a picture; return {step: picture} to draw."""
    colours = open_picture(path)
    if raw:  # The article's way
        image = Image.fromarray(colours).convert("L").resize((28, 28), Image.LANCZOS)
        lines, steps = [[255 - np.array(image)]], {"picture": colours}
    else:
        lines, steps = normalise(colours)
    images = [digit for line in lines for digit in line]
    digits, values = predict(network, images)
    ends = np.cumsum([len(line) for line in lines])[:-1]
    text = " ".join("".join(map(str, line)) for line in np.split(digits, ends))
    note = f"{100 * values.min():.1f} %" + ", not sure" * bool(values.min() < 0.8)
    if values.ndim == 2:
        note = "output " + ", ".join(f"{value:.2f}" for value in values[:, 0])
    print(f"{path}: {text}  ({note})")
    return steps | {f"read: {text}": np.hstack(images)}


def draw(pictures, path):
    """Draw a list of {title: picture} into a PNG file, and a window if there is one."""
    import matplotlib.pyplot as plt  # Only here: it takes half a second.

    rows, columns = len(pictures), max(map(len, pictures))
    figure = plt.figure(figsize=(2 * columns, 2 * rows), layout="constrained")
    for row, steps in enumerate(pictures):
        for place, (title, picture) in enumerate(steps.items(), row * columns + 1):
            axes = figure.add_subplot(rows, columns, place, title=title)
            axes.imshow(picture, "gray")
            axes.set(xticks=[], yticks=[])
    figure.savefig(path, format="png")
    print(f"drawn: {path}")
    if plt.get_backend().lower() != "agg":  # There is a display: a window, too.
        plt.show()


def main():
    parser = argparse.ArgumentParser(usage="%(prog)s [options] [IMAGE ...]")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="picture files")
    add("--gpu", action="store_true", help="predict on the GPU, if there is one")
    add("--params", default="mnist.safetensors", help="read this (mnist.safetensors)")
    add("--samples", type=int, default=0, help="predict so many training images")
    add("--seed", type=int, default=0, help="same seed, same samples (0)")
    add("--show", action="store_true", help="draw the steps into show_predict.png")
    add("--raw", action="store_true", help="only resize pictures, as in the article")
    args = parser.parse_args()
    if bool(args.images) == (args.samples > 0):
        parser.error("name pictures, or else a number of --samples")
    if args.gpu and not paddle.device.cuda.device_count():
        print("warning: no usable GPU, predicting on the CPU", file=sys.stderr)
        args.gpu = False
    paddle.set_device("gpu" if args.gpu else "cpu")
    network = load_network(args.params)
    if args.samples:
        # The images and the labels; without them, paddle downloads both.
        data = paddle.vision.datasets.MNIST(*sorted(glob.glob("work/train-*.gz")))
        order = np.random.default_rng(args.seed).permutation(len(data))[: args.samples]
        labels = np.concatenate([data.labels[i] for i in order])
        digits, _ = predict(network, np.array([data.images[i] for i in order]))
        for row in np.split(np.arange(len(order)), range(25, len(order), 25)):
            print("label", *labels[row])
            print("digit", *digits[row])
            print("     ", *np.where(labels[row] == digits[row], " ", "^"))
        print(f"{(labels == digits).sum()} / {len(order)} correct")
    drawings, failed = [], False
    for path in args.images:
        try:
            drawings += [read_picture(network, path, args.raw)] * args.show
        except ValueError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
    if drawings:
        draw(drawings[:20], "show_predict.png")
    sys.exit(failed)


if __name__ == "__main__":
    try:
        main()
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
