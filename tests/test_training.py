"""What training promises: it learns, gives the same bytes again, and can be resumed."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from benchmark import read_mnist
from conftest import ROOT, SCRIPTS, start, succeed
from safetensors.numpy import load_file

import train_async
from predict import Reader

OPTIMIZERS = ["adam", "momentum", "adagrad", "sgd"]


def until(process, pattern):
    """Read what a process prints until a line matches."""
    assert any(re.search(pattern, line) for line in process.stdout), pattern


def test_first_command_ends_as_the_docstring_says(trained):
    pattern = r"^ *test: \d+ / 10000 correct \((.*?) %\)"
    texts = (trained / "out.txt").read_text("utf-8"), train_async.__doc__
    found, promised = (float(re.search(pattern, text, re.M)[1]) for text in texts)
    assert abs(found - promised) < 0.2 and found > 99.2


def test_percentages_are_true_and_what_is_no_digit_is_doubted(trained):
    reader = Reader(trained / "mnist.safetensors")
    images, labels = read_mnist("t10k")
    digits, shares = reader.classify(images)
    assert abs(shares.mean() - (digits == labels).mean()) < 0.01

    images, labels = train_async.add_no_digits(images, labels, np.random.default_rng(9))
    _, shares = reader.classify(images[labels == train_async.NO_DIGIT])
    assert len(shares) >= 500 and (shares > 0.8).mean() < 0.15


def test_same_seed_gives_the_same_bytes_whoever_loads_the_batches(folder):
    train = "train_async.py --epochs 1 --params"
    seven = [f"{train} {number} --seed 7 --workers {number}" for number in range(3)]
    succeed(folder, *seven, f"{train} other --seed 8")
    assert len({(folder / number).read_bytes() for number in "012"}) == 1
    one, other = (load_file(folder / name)["0.weight"] for name in ("0", "other"))
    assert (one != other).any()


def test_killed_trainings_leave_no_worker_and_resume_to_the_same_bytes(folder):
    train = "train_async.py --epochs 2 --batch-size 20 --optimizer"
    for optimizer in OPTIMIZERS:
        killed = start(folder, f"{train} {optimizer} --params {optimizer}")
        until(killed, "^epoch: 1, ")
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children")
        assert len(children.read_text().split()) == 1
        killed.kill()
        killed.communicate(timeout=60)  # The worker's standard output ends, too.

    # Resuming takes the other flags over.
    resumed = [f"train_async.py --resume --params {name}" for name in OPTIMIZERS]
    whole = [f"{train} {name} --params whole.{name}" for name in OPTIMIZERS]
    succeed(folder, *resumed, *whole)
    for name in OPTIMIZERS:
        one, other = folder / name, folder / f"whole.{name}"
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slip_in_augment_is_a_traceback_and_an_end(workers, folder):
    text = (ROOT / "train_async.py").read_text("utf-8")
    line = "    distorted = np"
    # Between good batches, of which the training process makes the first itself
    here = f"{workers} == 0 or paddle.io.get_worker_info()"
    slip = f"    if ({here}) and rng.random() < 0.3: slip\n"
    (folder / "train_async.py").write_text(text.replace(line, slip + line, 1))
    process = start(folder, f"train_async.py --batch-size 50 --workers {workers}")
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "NameError: name 'slip' is not defined" in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_is_one_true_line(script, folder):
    process = start(folder, f"{script}.py")
    while "libpaddle" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)  # While paddle is imported
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "stopped\n")
    if not script.startswith("train"):
        return  # It ends too soon.

    for done in (0, 1):
        process = start(folder, f"{script}.py --epochs 100000 --params {done}")
        until(process, f"^epoch: {done}, batch: 0")
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does, workers included.
        _, err = process.communicate(timeout=60)
        epochs = int(re.fullmatch(r"stopped, epochs saved: (\d+)\n", err)[1])
        assert process.returncode == 1 and epochs >= done
        assert (folder / str(done)).exists() or epochs == 0


def test_two_processes_learn_what_one_learns(folder):
    # No batch norm, which sees half a batch; and the same images.
    flags = "--network linear --epochs 4 --batch-size 40 --limit 498 --no-augment"
    succeed(folder, f"train_async.py {flags} --params one")
    launch = "-m paddle.distributed.launch --backend gloo --nproc_per_node 2"
    both = start(folder, f"{launch} train_async.py {flags} --params two")
    out, err = both.communicate(timeout=300)
    assert both.returncode == 0 and "images (20, 1, 28, 28)" in out, out + err
    assert re.findall(r"^test: .* \(([6-9]\d\.\d\d) %\)", out, re.M), out
    one, two = (load_file(folder / name)["fc.weight"] for name in ("one", "two"))
    assert np.abs(one - two).max() < 1e-4
