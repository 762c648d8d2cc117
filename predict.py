"""Pictures in, digits out: photos, scans, screenshots and drawings of numbers.

MNIST's digits are white on black, of one size and centred. The article only resized its
picture; here any picture is brought to that form first, in steps that --show draws:

    python predict.py work/example_0.png

    work/example_0.png: 0  (97.0 %)
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

# On AMD, paddle's matrix library takes its slowest path unless this is set before.
if os.path.exists("/proc/cpuinfo") and "AuthenticAMD" in open("/proc/cpuinfo").read():
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
warnings.filterwarnings("ignore", module="paddle")
os.environ.pop("MPLBACKEND", None)  # A notebook's own backend writes no file.

import paddle  # noqa: E402
import paddle.nn as nn  # noqa: E402

Image.MAX_IMAGE_PIXELS = None  # Large photos are no attack.
OUTPUTS = {"cross_entropy": 10, "square_error": 1}  # Of the network, for each loss.
SIDE = 640  # Pixels: a larger picture is reduced to this, which averages its grain.
SMALL = 64  # Pixels: up to this side, grain, shadows and ruled lines do not matter.
UNSURE = 0.6  # 1 % of the validation images fall below this probability.


def open_picture(path):
    """Return the picture in a file, upright and on white, as uint8 [H, W, 3]."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (SIDE, SIDE))  # Decode a JPEG at a smaller size.
            image = ImageOps.exif_transpose(image)
    except Exception as error:  # A broken file raises whatever its decoder likes.
        raise ValueError(getattr(error, "strerror", 0) or error) from None
    if image.mode[0] in "IF":  # 16 bits and more have no fixed range.
        values = cv2.normalize(np.float32(image), None, 0, 255, cv2.NORM_MINMAX)
        image = Image.fromarray(np.uint8(values))
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image.convert("RGBA"))
    return shrink(np.array(image.convert("RGB")), SIDE)


def shrink(values, side):
    """Return [H, W, ...] reduced by averaging to at most `side` pixels a side."""
    scale = min(1, side / max(values.shape))
    size = [max(1, round(scale * length)) for length in values.shape[1::-1]]
    return cv2.resize(values, size, interpolation=cv2.INTER_AREA)


def rim(values):
    """Return the outermost rows and columns of [H, W, ...] one after the other."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def in_mnist_form(grey):
    """Return whether a digit is 20 pixels long, with grey edges, centred by mass."""
    moments, grey_values = cv2.moments(grey), len(np.unique(grey))
    middle = np.array([moments["m10"], moments["m01"]]) / max(moments["m00"], 1)
    fits = max(cv2.boundingRect(grey)[2:]) in (19, 20) and grey_values > 3
    return fits and np.abs(middle - 14).max() < 1.2


def find_paper(colours):
    """Return uint8 [H, W, 3]: the paper's colour at every pixel, shadows included."""
    if min(colours.shape[:2]) <= SMALL:
        codes = (rim(colours) >> 5) @ np.array([64, 8, 1])  # Coarse colours
        common = rim(colours)[codes == np.bincount(codes).argmax()]
        return np.full_like(colours, np.median(common, axis=0))
    small = shrink(colours, SMALL)
    half = max(small.shape) // 2 | 1
    # Paper differs a little from its surroundings in many places, ink much in few.
    contrast = small - cv2.blur(np.float32(small), (half, half))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (half, half))
    opened = cv2.morphologyEx(small, cv2.MORPH_OPEN, disc)
    closed = cv2.morphologyEx(small, cv2.MORPH_CLOSE, disc)
    paper = np.where((contrast**3).sum((0, 1)) > 0, opened, closed)
    return cv2.resize(paper, colours.shape[1::-1])


def find_ink(colours, paper):
    """Return float32 [H, W], 0 for paper to 1 for ink: the difference in colour.

    Raises ValueError if there is no ink.
    """
    light = np.float32(paper.max(2)) + 16  # Shadows weaken the ink, too.
    ink = np.linalg.norm(np.float32(colours) - paper, axis=2) * light.max() / light
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
    """Return uint8 [H, W] without lines that are thin, straight and reach the rim.

    A stroke that crosses one is not thin there, so it stays.
    """
    for _ in range(2):  # The lines downwards, then those across
        mask = np.ascontiguousarray(mask.T)
        width = mask.shape[1]
        thick = np.ones((5 + max(mask.shape) // 40, 1))
        thin = mask - cv2.morphologyEx(mask, cv2.MORPH_OPEN, thick)
        fat = cv2.dilate(thin, np.ones((3, 1)))  # A line may be slightly tilted.
        long = cv2.morphologyEx(fat, cv2.MORPH_OPEN, np.ones((1, width // 20 | 1)))
        long = cv2.morphologyEx(long, cv2.MORPH_CLOSE, np.ones((1, width // 4 | 1)))
        count, labels, stats, _ = cv2.connectedComponentsWithStats(long)
        ends = (labels * fat)[:, [0, 1, -2, -1]]
        rules = np.isin(np.arange(count), ends) & (stats[:, 2] > 0.1 * width)
        rules[0] = False
        mask = mask & ~(thin * rules[labels])
    return mask


def stroke_width(mask):
    """Return the mean stroke width of uint8 [H, W], in pixels."""
    distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)
    return 4 * distance[distance > 0].mean() - 1


def find_digits(mask):
    """Return the lines of digits in uint8 [H, W]; a digit is (slices, its mask there).

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
    count, bands = cv2.connectedComponents(rows)
    lines = []
    for band in range(1, count):
        parts = np.flatnonzero(keep & (bands[top, 0] == band))
        extent, digits = bottom[parts].max() - top[parts].min(), []
        for part in parts[height[parts].argsort()[::-1]]:
            small = height[part] < 0.4 * extent
            for digit in digits:
                begin, end = left[digit].min(), right[digit].max()
                common = min(end, right[part]) - max(begin, left[part])
                if common > (-reach if small else min(end - begin, width[part]) / 3):
                    digit.append(part)
                    break
            else:
                digits += [[part]] * (not small or not digits)
        line = []
        for digit in sorted(digits, key=lambda digit: left[digit].min()):
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
    mask = cv2.dilate(np.pad(mask, 2), np.ones((3, 3)))
    ink = np.pad(ink, 2)[place[0].start :, place[1].start :]
    ink = ink[: mask.shape[0], : mask.shape[1]] * mask
    scale, lack = 80 / (max(mask.shape) - 4), 0
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    fine = cv2.resize(ink, None, fx=scale, fy=scale, interpolation=method).clip(0, 1)
    if scale < 4:  # The greys of a smaller digit tell its stroke width.
        fine = np.pad(fine, 8)
        # MNIST's strokes are 2.8 pixels wide at least, here four times as many.
        lack = max(0, round(11.2 - stroke_width(np.uint8(fine > 0.5))))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (lack + 1, lack + 1))
        fine = cv2.dilate(fine, disc)
    scale = 20 / (80 + lack)
    small = cv2.resize(fine, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    moments = cv2.moments(small)
    x, y = (round(13.5 - moments[m] / moments["m00"]) for m in ("m10", "m01"))
    image = cv2.warpAffine(small, np.float32([[1, 0, x], [0, 1, y]]), (28, 28))
    return np.uint8(np.round(255 * image))


def normalise(colours):
    """Return (lines of images uint8 [28, 28], places, steps) of uint8 [H, W, 3].

    steps is {name: array}; places are the digits' slices in the first of them. Raises
    ValueError if there is no ink.
    """
    grey = colours[..., 0]
    grey = 255 - grey if np.median(grey) > 127 else grey
    if grey.shape == (28, 28) and in_mnist_form(grey):
        return [[grey]], [np.s_[0:28, 0:28]], {"picture": colours}
    paper = find_paper(colours)
    ink = find_ink(colours, paper)
    mask = np.uint8(ink > 0.4)  # Pale lines and shadows have less.
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
    rest = drop_rules(mask) if min(mask.shape) > SMALL else mask
    rest = rest if rest.any() else mask  # A digit may be as thin, and reach the rim.
    lines = find_digits(rest)
    images = [[centre(ink, *digit) for digit in line] for line in lines]
    places = [place for line in lines for place, _ in line]
    steps = {"picture": colours, "paper": paper, "ink": ink, "without rules": rest}
    return images, places, steps


def build_network(name, outputs):
    """Return the network: float32 [N, 1, 28, 28] in [-1, 1] -> float32 [N, outputs]."""

    def block(layer, norm, *shape):  # The bias is batch normalization's.
        return [layer(*shape, bias_attr=False), norm(shape[1]), nn.ReLU()]

    if name == "linear":  # 7,850 parameters; with one output 785, as in the article
        return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs))
    if name == "mlp":  # 203,786 parameters
        layers = [nn.Flatten(), *block(nn.Linear, nn.BatchNorm1D, 784, 256)]
    if name == "cnn":  # 224,182 parameters; for a CPU, strides are cheaper than pooling
        layers = [
            *block(nn.Conv2D, nn.BatchNorm2D, 1, 20, 5, 2, 2),  # [N, 20, 14, 14]
            *block(nn.Conv2D, nn.BatchNorm2D, 20, 40, 3, 2),  # [N, 40, 6, 6]
            *block(nn.Conv2D, nn.BatchNorm2D, 40, 80, 3, 2, 1),  # [N, 80, 3, 3]
            *[nn.Flatten(), *block(nn.Linear, nn.BatchNorm1D, 720, 256)],
        ]
    return nn.Sequential(*layers, nn.Linear(256, outputs))


def load_network(path):
    """Return the network of a parameters file; raise ValueError, which names path."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = json.loads(file.metadata()["mnist"])
            names = [name for name in file.keys() if not name.startswith("optimizer.")]
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
    """Return digits, int [N], and probabilities of images [N, 28, 28] from 0 to 255.

    A regression's digit is the integer part of its output, which is returned, too.
    """
    inputs = np.float32(images).reshape(-1, 1, 28, 28) / 127.5 - 1
    outputs = network(paddle.to_tensor(inputs))
    if outputs.shape[1] == 1:
        return np.trunc(outputs.numpy()[:, 0]).clip(0, 9).astype(int), outputs.numpy()
    probabilities = nn.functional.softmax(outputs).numpy()
    return probabilities.argmax(1), probabilities.max(1)


def predict_picture(network, path, raw):
    """Print what is read in a picture; return {title: picture} of the steps there."""
    colours = open_picture(path)
    if raw:  # The article's way
        grey = Image.fromarray(colours).convert("L").resize((28, 28), Image.LANCZOS)
        lines, places, steps = [[255 - np.array(grey)]], [], {"picture": colours}
    else:
        lines, places, steps = normalise(colours)
    images = np.array([image for line in lines for image in line])
    digits, values = predict(network, images)
    said = iter(map(str, digits))
    text = " ".join("".join(next(said) for _ in line) for line in lines)
    if values.ndim == 2:
        note = "output " + ", ".join(f"{value:.2f}" for value in values[:, 0])
    else:
        sure = values.min() >= UNSURE
        note = f"{100 * values.min():.1f} %" + ("" if sure else ", not sure")
    print(f"{path}: {text}  ({note})")
    picture = steps["picture"]
    for (rows, columns), digit in zip(places, digits):
        corner, size = (columns.start, rows.start), max(picture.shape) / 300
        cv2.rectangle(picture, corner, (columns.stop, rows.stop), (255, 0, 0))
        cv2.putText(picture, str(digit), corner, 0, size, (255, 0, 0))
    return {**steps, "for the network": np.hstack(images)}


def draw(pictures, path):
    """Draw a list of {title: picture} into a PNG file, and a window if there is one."""
    import matplotlib.pyplot as plt  # Only here: it takes half a second.

    rows, columns = len(pictures), max(map(len, pictures))
    figure = plt.figure(figsize=(2 * columns, 2 * rows), layout="constrained")
    for row, steps in enumerate(pictures):
        for column, (title, picture) in enumerate(steps.items(), 1):
            axes = figure.add_subplot(rows, columns, row * columns + column)
            axes.imshow(picture, "gray")
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{row + 1}. {title}", fontsize=8)
    figure.savefig(path, format="png")
    print(f"drawn: {path}")
    if plt.get_backend().lower() != "agg":  # There is a display: a window, too.
        plt.show()


def main():
    parser = argparse.ArgumentParser(usage="%(prog)s [options] [IMAGE ...]")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="picture files, or folders of them")
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
    for name in args.images:
        inside = sorted(glob.glob(f"{glob.escape(name)}/*"))  # Empty for a file.
        known = tuple(Image.registered_extensions())
        for path in [p for p in inside if p.lower().endswith(known)] or [name]:
            try:
                drawings += [predict_picture(network, path, args.raw)] * args.show
            except ValueError as error:
                print(f"error: {path}: {error}", file=sys.stderr)
                failed = True
    if drawings:
        draw(drawings[:20], "show_predict.png")
    sys.exit(failed)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
