"""Pictures in, digits out: photos, scans, screenshots and drawings of numbers.

The article only resized its picture, and read the wrong digit. MNIST's digits are of
one size, centred, and white on black: here any picture is brought to that form first.

    python predict.py work/example_0.png
    python predict.py work --show
    python predict.py --samples 100

The first command prints

    work/example_0.png: 0  (91.6 %)
"""

import argparse
import json
import os
import struct
import sys
import warnings
import zlib

import cv2
import numpy as np
import safetensors.numpy
from PIL import Image, ImageOps

# On AMD, paddle's matrix library takes its slowest path unless this is set before.
if os.path.exists("/proc/cpuinfo") and "AuthenticAMD" in open("/proc/cpuinfo").read():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
os.environ.pop("MPLBACKEND", None)  # A notebook's own backend writes no file.
warnings.filterwarnings("ignore", module="paddle")

import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402
import paddle.nn.functional as F  # noqa: E402

Image.MAX_IMAGE_PIXELS = None  # Pillow refuses large photos otherwise.
OUTPUTS = {"cross_entropy": 10, "square_error": 1}  # Of the network, for each loss.
SIDE = 1024  # Pixels: a larger picture is reduced to this, which averages its grain.
TINY = 24  # Pixels: up to this side, a digit's strokes look like rules.
SMALL = 64  # Pixels: up to this side, grain, shadows and fine rules do not matter.
STROKE = 2.8  # Pixels: the least stroke width in MNIST's 20x20 box.
INK = 0.4  # Of the contrast of ink; pale rules and shadows have less.
UNSURE = 0.6  # 1 % of the validation images fall below this probability.


def open_picture(path):
    """Return the picture in a file, upright and on white, as uint8 [H, W, 3] (RGB)."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (SIDE, SIDE))  # Decode a JPEG at a smaller size.
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # 16 bits and more have no fixed range.
                values = np.float32(image)
                grey = 255 * (values - values.min()) / max(np.ptp(values), 1)
                image = Image.fromarray(np.uint8(grey))
            if image.has_transparency_data:
                ink, image = (
                    image.convert("RGBA"),
                    Image.new("RGBA", image.size, "white"),
                )
                image.alpha_composite(ink)
            return shrink(np.array(image.convert("RGB")), SIDE)
    except Exception as error:  # A broken file raises whatever its decoder likes.
        raise ValueError(getattr(error, "strerror", 0) or error) from None


def shrink(values, side):
    """Return [H, W, ...] reduced by averaging to at most `side` pixels a side."""
    scale = min(1, side / max(values.shape))
    size = [max(1, round(scale * length)) for length in values.shape[1::-1]]
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)


def rim(values):
    """Return the outermost rows and columns of [H, W, ...] one after the other."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def disc(size):
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def in_mnist_form(grey):
    """Return whether uint8 [H, W], white on black, must not be changed any more.

    MNIST's digits are 20 pixels long, with grey edges and their mass in the middle.
    """
    if grey.shape != (28, 28) or np.median(grey) or len(np.unique(grey)) < 4:
        return False
    moments = cv2.moments(grey)
    middle = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    fits = max(cv2.boundingRect(grey)[2:]) in (19, 20)
    return fits and np.abs(middle - 14).max() < 1.2


def find_paper(colours):
    """Return uint8 [H, W, 3]: the paper's colour at every pixel, shadows included."""
    if min(colours.shape[:2]) <= SMALL:  # The most frequent colour on the rim
        codes = (rim(colours) >> 5) @ np.array([64, 8, 1])
        common = rim(colours)[codes == np.bincount(codes).argmax()]
        return np.full_like(colours, np.median(common, axis=0))
    small = shrink(colours, SMALL)
    half = max(small.shape) // 2 | 1
    # Paper differs a little from its surroundings in many places, ink much in few.
    contrast = small - cv2.blur(np.float32(small), (half, half))
    bright = (contrast**3).sum((0, 1)) > 0  # Ink may be, in each colour channel.
    opened = cv2.morphologyEx(small, cv2.MORPH_OPEN, disc(half))
    closed = cv2.morphologyEx(small, cv2.MORPH_CLOSE, disc(half))
    return cv2.resize(np.where(bright, opened, closed), colours.shape[1::-1])


def find_ink(colours, paper):
    """Return float32 [H, W], from 0 for paper to 1 for ink: the difference in colour.

    Raises ValueError if there is no ink.
    """
    ink = np.linalg.norm(np.float32(colours) - paper, axis=2)
    light = np.float32(paper.max(2)) + 16
    ink *= light.max() / light  # Shadows weaken the ink, too.
    noise = 0
    if min(ink.shape) > SMALL:
        ink = cv2.GaussianBlur(ink, (3, 3), 0)
        noise = np.median(np.abs(ink - cv2.medianBlur(ink, 3)))
    strongest = np.partition(ink, -9, axis=None)[-9]  # A few pixels may be anything.
    if strongest < max(14, 10 * noise):
        raise ValueError("there is no ink in the picture")
    contrast = np.median(ink[ink > strongest / 2])
    return np.where(ink > 6 * noise, ink / contrast, 0).clip(0, 1)


def drop_rules(mask):
    """Return uint8 [H, W] without the lines of ruled paper or a screenshot's rim.

    They are thin, straight and reach the picture's rim. A stroke that crosses is not
    thin there, so it stays.
    """
    side, rest = max(mask.shape), mask
    thick, least = (4 + side // 40, 0.1) if min(mask.shape) > SMALL else (2, 0.97)
    for _ in range(2 if side > TINY else 0):  # The lines downwards, then those across
        rest = np.ascontiguousarray(rest.T)
        width = rest.shape[1]
        thin = rest - cv2.morphologyEx(rest, cv2.MORPH_OPEN, np.ones((thick + 1, 1)))
        fat = cv2.dilate(thin, np.ones((3, 1)))  # A rule may be slightly tilted.
        long = cv2.morphologyEx(fat, cv2.MORPH_OPEN, np.ones((1, width // 20 | 1)))
        bridge = np.ones((1, min(rest.shape) // 4 | 1))  # Over a stroke that crosses
        long = cv2.morphologyEx(long, cv2.MORPH_CLOSE, bridge)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(long)
        touching = np.isin(np.arange(count), (labels * fat)[:, [0, 1, -2, -1]])
        rules = touching & (np.arange(count) > 0) & (stats[:, 2] > least * width)
        rest = rest & ~(thin * rules[labels])
    # A digit that fills the picture reaches the rim, too: leave that as it is.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(rest)
    largest = stats[1:, 4].argmax() + 1 if len(stats) > 1 else 0
    inside = largest and not (rim(labels) == largest).any()
    return rest if inside and max(stats[largest, 2:4]) > 0.15 * side else mask


def stroke_width(mask):
    """Return the mean stroke width of uint8 [H, W], in pixels."""
    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)
    return 4 * distance[distance > 0].mean() - 1


def find_digits(mask):
    """Return the digits in uint8 [H, W] as lines of (slices, mask of what is in them).

    Parts whose widths overlap by a third are one digit, parts side by side are two.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    left, top, width, height, area = stats.T
    right, bottom, length = left + width, top + height, np.hypot(width, height)
    along = np.bincount(rim(labels), minlength=count) / length
    main = 1 + (area * length * (1 - along).clip(0.01))[1:].argmax()
    stroke = stroke_width(np.uint8(labels == main))
    # Specks fall away, and what lies along the picture's rim.
    keep = (area > stroke**2 / 4) & (along <= max(0.3, along[main]))
    keep[[0, main]] = False, True
    reach = int(max(0.1 * max(width[main], height[main]), 1.2 * stroke)) | 1
    rows = cv2.dilate(np.uint8(keep[labels].any(1, keepdims=True)), np.ones((reach, 1)))
    count, row_lines = cv2.connectedComponents(rows)
    lines = []
    for number in range(1, count):
        parts = np.flatnonzero(keep & (row_lines[top, 0] == number))
        parts = parts[left[parts].argsort()]
        extent = bottom[parts].max() - top[parts].min()
        tall, digits = height[parts] >= 0.4 * extent, []
        for part in parts[tall]:
            digit = digits[-1] if digits else [part]
            begin, end = left[digit].min(), right[digit].max()
            common = min(end, right[part]) - left[part]
            if digits and common > min(end - begin, width[part]) / 3:
                digit.append(part)
            else:
                digits.append([part])
        for part in parts[~tall]:  # Smaller ones belong to a digit close by.
            for digit in digits:
                begin, end = left[digit].min() - reach, right[digit].max() + reach
                if right[part] >= begin and left[part] <= end:
                    digit.append(part)
                    break
        line = []
        for digit in digits or [parts]:
            x, x_end = left[digit].min(), right[digit].max()
            place = np.s_[top[digit].min() : bottom[digit].max(), x:x_end]
            line.append((place, np.uint8(np.isin(labels[place], digit))))
        if extent > 0.4 * height[main]:
            lines.append(line)
    return lines


def centre(ink, place, mask):
    """Return uint8 [28, 28]: a digit 20 pixels long, its centre of mass in the middle.

    Its strokes are thickened to MNIST's. ink is float32 [H, W], 0 to 1.
    """
    around = cv2.dilate(np.pad(mask, 2), np.ones((3, 3)))
    ink = np.pad(ink, 2)[place[0].start :, place[1].start :]
    ink = ink[: around.shape[0], : around.shape[1]] * around
    scale, lack = 80 / max(mask.shape), 0
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fine = cv2.resize(ink, None, fx=scale, fy=scale, interpolation=method).clip(0, 1)
    if scale < 4:  # The greys of a smaller digit tell its stroke width.
        fine = np.pad(fine, 8)
        lack = max(0, round(4 * STROKE - stroke_width(np.uint8(fine > 0.5))))
        fine = cv2.dilate(fine, disc(lack + 1))
    scale = 20 / (80 + lack)
    small = cv2.resize(fine, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    moments = cv2.moments(small)
    x, y = (round(13.5 - moments[m] / moments["m00"]) for m in ("m10", "m01"))
    image = cv2.warpAffine(small, np.float32([[1, 0, x], [0, 1, y]]), (28, 28))
    return np.uint8(np.round(255 * image))


def normalise(colours):
    """Return (lines of images uint8 [28, 28], places, steps) of uint8 [H, W, 3].

    steps is {name: array} for drawing; places are the digits' slices in the first of
    them. Raises ValueError if there is no ink.
    """
    grey = colours[..., 0]
    grey = 255 - grey if np.median(grey) > 127 else grey
    if in_mnist_form(grey) and not np.ptp(colours, axis=2).any():
        return [[grey]], [np.s_[0:28, 0:28]], {"picture": colours}
    paper = find_paper(colours)
    ink = find_ink(colours, paper)
    mask = np.uint8(ink > INK)
    for outline in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        x, y, width, height = cv2.boundingRect(outline)
        line = 2 + max(width, height) // 50
        inside = colours[y + line : y + height - line, x + line : x + width - line]
        if (  # A frame, a card or a plot's axes, with something inside: look there.
            min(width, height) > max(12, 0.15 * max(mask.shape))
            and cv2.contourArea(outline) > 0.9 * width * height
            and np.ptp(inside, axis=(0, 1)).max() > 50
        ):
            return normalise(np.ascontiguousarray(inside))
    rest = drop_rules(mask)
    lines = find_digits(rest)
    images = [[centre(ink, *digit) for digit in line] for line in lines]
    places = [place for line in lines for place, _ in line]
    steps = {"picture": colours, "paper": paper, "ink": ink, "without rules": rest}
    return images, places, steps


def build_network(name, outputs):
    """Return the network: float32 [N, 1, 28, 28] in [-1, 1] -> float32 [N, outputs].

    Batch normalization has a bias, so the layer before it needs none. Halving an image
    by stride costs a CPU less than pooling does.
    """

    def block(layer, norm, *shape):
        return [layer(*shape, bias_attr=False), norm(shape[1]), nn.ReLU()]

    if name == "linear":  # 7,850 parameters; with one output 785, as in the article
        return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs))
    if name == "mlp":  # 203,786 parameters
        layers = [nn.Flatten(), *block(nn.Linear, nn.BatchNorm1D, 784, 256)]
    if name == "cnn":  # 224,182 parameters
        layers = [
            *block(nn.Conv2D, nn.BatchNorm2D, 1, 20, 5, 2, 2),  # [N, 20, 14, 14]
            *block(nn.Conv2D, nn.BatchNorm2D, 20, 40, 3, 2),  # [N, 40, 6, 6]
            *block(nn.Conv2D, nn.BatchNorm2D, 40, 80, 3, 2, 1),  # [N, 80, 3, 3]
            *[nn.Flatten(), *block(nn.Linear, nn.BatchNorm1D, 720, 256)],
        ]
    return nn.Sequential(*layers, nn.Linear(256, outputs))


def load_parameters(path):
    """Return (tensors {name: array}, metadata); raise ValueError, which names path."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads(file.metadata()["mnist"])
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is no parameters file: {error}") from None


def load_network(path):
    """Return the network in a parameters file; raise ValueError, which names path."""
    tensors, metadata = load_parameters(path)
    name, loss = metadata.get("network"), metadata.get("loss")
    if name not in ("linear", "mlp", "cnn") or loss not in OUTPUTS:
        raise ValueError(f"{path}: unknown network {name} or loss {loss}")
    network = build_network(name, OUTPUTS[loss])
    state = {n: t for n, t in tensors.items() if not n.startswith("optimizer.")}
    if any(network.set_state_dict(state)):
        raise ValueError(f"{path}: its tensors are not those of the network {name}")
    network.eval()
    return network


@paddle.no_grad()
def predict(network, images):
    """Return (digits int [N], values float32 [N]) of float32 [N, 784] in [-1, 1].

    A value is the digit's probability; or a regression's output, whose integer part
    is the digit.
    """
    outputs = network(paddle.to_tensor(np.float32(images).reshape(-1, 1, 28, 28)))
    if outputs.shape[1] == 1:
        values = outputs.numpy()[:, 0]
        return np.trunc(values).clip(0, 9).astype(int), values
    probabilities = F.softmax(outputs).numpy()
    return probabilities.argmax(1), probabilities.max(1)


def read_builtin(mode):
    """Return MNIST's "train" or "test" images, float32 [N, 784] in [-1, 1], and labels.

    Paddle takes the files in work/, or else downloads them. Raises ValueError.
    """
    prefix = {"train": "work/train", "test": "work/t10k"}[mode]
    paths = f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
    local = paths if all(map(os.path.exists, paths)) else ()
    try:
        data = paddle.vision.datasets.MNIST(*local, mode=mode)
    except (OSError, EOFError, RuntimeError, struct.error, zlib.error) as error:
        raise ValueError(f"{' or '.join(paths)}: {error}") from None
    return np.array(data.images) / 127.5 - 1, np.concatenate(data.labels)


def predict_samples(network, count, seed):
    """Predict shuffled training images at once and print labels and predictions."""
    images, labels = read_builtin("train")
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    labels, digits = labels[chosen], predict(network, images[chosen])[0]
    for i in range(0, len(chosen), 25):
        label, digit = labels[i : i + 25], digits[i : i + 25]
        print("label:     ", *label)
        print("prediction:", *digit)
        print("           ", *np.where(label == digit, " ", "^"))
    print(f"{(labels == digits).sum()} / {len(chosen)} correct, ^ marks the others")


def predict_picture(network, path, raw):
    """Print what is read in a picture; return {title: picture} of the steps there."""
    colours = open_picture(path)
    if raw:  # The article's way
        grey = Image.fromarray(colours).convert("L").resize((28, 28), Image.LANCZOS)
        lines, places, steps = [[255 - np.array(grey)]], [], {"picture": colours}
    else:
        lines, places, steps = normalise(colours)
    images = [image for line in lines for image in line]
    digits, values = predict(network, np.array(images) / 127.5 - 1)
    said = iter(map(str, digits))
    text = " ".join("".join(next(said) for _ in line) for line in lines)
    note = f"{100 * values.min():.1f} %"
    if values.min() < UNSURE:
        note += ", not sure"
    if len(network[-1].bias) == 1:
        note = "output " + ", ".join(f"{value:.2f}" for value in values)
    print(f"{path}: {text}  ({note})")
    picture = steps["picture"]
    for (rows, columns), digit in zip(places, digits):
        corner, size = (columns.start, rows.start), max(picture.shape) / 300
        cv2.rectangle(picture, corner, (columns.stop, rows.stop), (255, 0, 0))
        cv2.putText(picture, str(digit), corner, 0, size, (255, 0, 0))
    return {**steps, "for the network": np.hstack(images)}


def draw(pictures, path):
    """Draw a list of {title: picture} into a PNG file, and a window if there is one."""
    import matplotlib.pyplot as plt

    columns = max(map(len, pictures))
    size = 2 * columns, 2 * len(pictures)
    _, axes = plt.subplots(len(pictures), columns, squeeze=False, figsize=size)
    for number, (row, steps) in enumerate(zip(axes, pictures), 1):
        row[0].set_ylabel(number)
        for cell, (title, picture) in zip(row, steps.items()):
            cell.imshow(picture, "gray")
            cell.set_title(title[:20], fontsize=8)
        for cell in row:
            cell.set(xticks=[], yticks=[], frame_on=False)
    plt.tight_layout()
    plt.savefig(path)
    print(f"drawn, numbered as above: {path}")
    if plt.get_backend() != "agg":
        plt.show()


def main():
    parser = argparse.ArgumentParser(usage="%(prog)s [options] [IMAGE ...]")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="picture files, or folders of them")
    add("--gpu", action="store_true", help="predict on the GPU, if there is one")
    add("--params", default="mnist.safetensors", help="read this (mnist.safetensors)")
    add("--samples", type=int, metavar="N", help="predict N training images instead")
    add("--seed", type=int, default=0, help="same seed, same samples (0)")
    add("--show", action="store_true", help="draw the steps into show_predict.png")
    add("--raw", action="store_true", help="only resize pictures, as in the article")
    args = parser.parse_args()
    if bool(args.images) == bool(args.samples) or (args.samples or 1) < 1:
        parser.error("name pictures, or else --samples N with N of at least 1")
    if args.gpu and not paddle.device.cuda.device_count():
        print("warning: no usable GPU, predicting on the CPU", file=sys.stderr)
        args.gpu = False
    paddle.set_device("gpu" if args.gpu else "cpu")
    network = load_network(args.params)
    if args.samples:
        return predict_samples(network, args.samples, args.seed)
    drawings, failed, known = [], False, tuple(Image.registered_extensions())
    for name in args.images:
        files = [name]
        if os.path.isdir(name) and os.access(name, os.R_OK):
            files = [os.path.join(name, file) for file in sorted(os.listdir(name))]
            files = [file for file in files if file.lower().endswith(known)] or [name]
        for path in files:
            try:
                drawings.append(predict_picture(network, path, args.raw))
            except ValueError as error:
                print(f"error: {path}: {error}", file=sys.stderr)
                failed = True
    if args.show and drawings:
        draw(drawings[:20], "show_predict.png")
    sys.exit(int(failed))


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
