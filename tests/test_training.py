"""What training promises: it learns, gives the same bytes again, and can be resumed."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import POOL, ROOT, run, start, succeed

ARTICLE = "--network linear --loss square_error --optimizer sgd --lr 0.001".split()
ARTICLE += ["--batch-size", 100, "--no-augment"]
LAUNCH = "-m paddle.distributed.launch --nproc_per_node 2 --backend gloo".split()


def correct(text):
    """Return the test accuracy in percent that a script printed or promises."""
    return float(re.search(r"^ *test: \d+ / \d+ correct \((.*?) %\)", text, re.M)[1])


def train(folder, name, *flags):
    """Train on the small data; return the parameters file's bytes."""
    succeed(folder, "train_async", "--params", name, *flags)
    return (folder / name).read_bytes()


def until(process, pattern):
    """Read what a process prints until a line matches."""
    if not any(re.search(pattern, line) for line in process.stdout):
        raise AssertionError(process.stderr.read())


def children(process):
    """Return the process ids of a process's children, as Linux knows them."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return path.read_text().split()


def test_first_command_ends_as_the_docstring_says(trained):
    found = correct((trained / "out.txt").read_text())
    assert abs(found - correct((ROOT / "train_async.py").read_text("utf-8"))) < 0.2
    assert found > 99.2


def test_same_seed_gives_the_same_bytes_whoever_loads_the_batches(folder):
    flags = "--seed 7", "--seed 7 --workers 0", "--seed 7 --workers 2", "--seed 8"
    one, two, three, other = POOL.map(
        lambda flags: train(folder, flags, "--epochs", 1, *flags.split()), flags
    )
    assert one == two == three != other


def test_a_batch_as_one_image_gives_what_its_images_give():
    from train_async import BatchLast, build_network, paddle

    network, images = build_network("cnn", 10), paddle.rand([7, 1, 28, 28])
    outputs = BatchLast(*network)(images).numpy()
    np.testing.assert_allclose(outputs, network(images).numpy(), atol=1e-5)


def test_article_training_is_the_same_bit_for_bit(folder):
    succeed(folder, "train_json", "--epochs", 3, "--params", "json")
    train(folder, "async", "--epochs", 3, *ARTICLE)
    one, two = (safetensors.numpy.load_file(folder / n) for n in ("json", "async"))
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "adagrad", "sgd"])
def test_killed_training_leaves_no_worker_and_resumes_to_the_same_bytes(
    optimizer, folder
):
    flags = ["--epochs", 4, "--optimizer", optimizer, "--batch-size", 20]
    whole = POOL.submit(train, folder, "whole", *flags)
    killed = start(folder, "train_async", "--params", "killed", *flags)
    until(killed, "^epoch: 2, ")
    (worker,) = children(killed)
    killed.kill()
    killed.communicate()  # It waits for the end of the worker's standard output, too.
    assert train(folder, "killed", "--resume") == whole.result()
    status = Path(f"/proc/{worker}/stat")
    assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def test_killed_worker_ends_the_training(folder):
    process = start(folder, "train_async", "--epochs", 10**5)
    until(process, "^epoch 0: ")
    while not (workers := children(process)):
        time.sleep(0.001)
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err


@pytest.mark.parametrize("script", ["train_builtin", "train_json", "train_async"])
def test_ctrl_c_is_one_line_and_keeps_the_last_epoch(script, folder):
    process = start(folder, script, "--epochs", 10**5)
    until(process, "^epoch 1: ")
    os.killpg(process.pid, signal.SIGINT)  # A terminal sends it to the workers, too.
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (1, 1)
    assert err.startswith("stopped: ")
    assert safetensors.numpy.load_file(folder / "mnist.safetensors")


def test_two_processes_learn_what_one_learns(folder):
    flags = ["--epochs", 8, "--batch-size", 20, "--limit", 599, "--params"]
    one = POOL.submit(succeed, folder, "train_async", *flags, "one")
    status, out, err = run(folder, "train_async", *flags, "two", launcher=LAUNCH)
    assert status == 0, out + err
    assert out.count("test: ") == 1 and "(10, 1, 28, 28)" in out
    assert abs(correct(one.result()) - correct(out)) < 10


def test_a_failed_write_keeps_the_old_file(folder):
    before = train(folder, "mnist.safetensors", "--epochs", 1, "--limit", 100)
    mode = (folder / "mnist.safetensors").stat().st_mode
    assert mode == (folder / "train_async.py").stat().st_mode  # Others may read it.
    (folder / "mnist.safetensors.tmp").mkdir()  # Stands in the way of the next write.
    status, _, err = run(folder, "train_async", "--epochs", 1, "--limit", 100)
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert (folder / "mnist.safetensors").read_bytes() == before
