"""What training promises: it learns, gives the same bytes again, and can be resumed."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import POOL, ROOT, refused, run, start, succeed

ARTICLE = "--network linear --loss regression --optimizer sgd --schedule constant"
ARTICLE = f"{ARTICLE} --lr 0.001 --no-augment".split()
LAUNCH = "-m paddle.distributed.launch --nproc_per_node {} --backend gloo"


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


def test_trained_network_doubts_what_is_no_digit_and_its_percentages_are_true(trained):
    import train_async as script

    tensors, metadata = script.load_parameters(trained / "mnist.safetensors")
    network = script.build_network("cnn", 11)
    network.set_state_dict({n: t for n, t in tensors.items() if "optimizer" not in n})
    images, labels = script.read_splits(ROOT / "work" / "mnist.json.gz")["eval"]

    def say(images, labels):
        outputs, right = script.evaluate(network, "cross_entropy", images, labels)
        logits = script.paddle.to_tensor(outputs / metadata["temperature"])
        shares = script.F.softmax(logits).numpy()[:, :10].max(1)
        return shares, right

    shares, right = say(images, labels)
    assert abs(shares.mean() - right.mean()) < 0.01
    others, classes = script.add_no_digits(images, labels, np.random.default_rng(9))
    strange = classes == script.NO_DIGIT
    shares, _ = say(others[strange], classes[strange])
    assert strange.sum() >= 500 and (shares > 0.8).mean() < 0.15


def test_same_seed_gives_the_same_bytes_whoever_loads_the_batches(folder):
    flags = "--seed 7", "--seed 7 --workers 0", "--seed 7 --workers 2", "--seed 8"
    one, two, three, other = POOL.map(
        lambda flags: train(folder, flags, "--epochs", 1, *flags.split()), flags
    )
    assert one == two == three != other


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


def test_resuming_takes_other_data_and_more_epochs_and_knows_when_it_is_done(folder):
    before = train(folder, "mnist.safetensors", "--epochs", 1, "--limit", 100)
    out = succeed(folder, "train_async", "--resume")
    assert out == "1 epochs are done already: ask for more --epochs\n"
    assert (folder / "mnist.safetensors").read_bytes() == before
    (folder / "work" / "mnist.json.gz").rename(folder / "own.json.gz")
    more = "--resume --epochs 2 --data own.json.gz".split()
    out = succeed(folder, "train_async", *more)
    assert "\nresuming: 1 epochs are done\nthe rate goes on at " in out
    assert "100 of them used" in out and "\nepoch 2/2  " in out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slip_in_augment_is_a_traceback_and_an_end(workers, folder):
    text = (ROOT / "train_async.py").read_text("utf-8")
    slip = text.replace("    distorted = np", "    images[count, 0] = slip\n\\g<0>", 1)
    (folder / "train_async.py").write_text(slip.replace("\\g<0>", "    distorted = np"))
    process = start(folder, "train_async", "--workers", workers)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "NameError: name 'slip' is not defined" in err


def test_killed_worker_ends_the_training(folder):
    process = start(folder, "train_async", "--epochs", 10**5)
    until(process, "^epoch 1/")
    while not (workers := children(process)):
        time.sleep(0.001)
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err


@pytest.mark.parametrize("script", ["train_builtin", "train_json", "train_async"])
def test_ctrl_c_is_one_true_line(script, folder):
    flags = ["--epochs", 10**5, "--params", "new"]
    for line, done in ("^epoch: 0, batch: 0", 0), ("^epoch: 1, batch: 0", 1):
        process = start(folder, script, *flags)
        until(process, line)
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does, workers included.
        _, err = process.communicate(timeout=60)
        epochs = int(re.fullmatch(r"stopped: (\d+) epochs saved\n", err)[1])
        assert process.returncode == 1 and epochs >= done
        assert (folder / "new").exists() or epochs == 0


def test_two_processes_learn_what_one_learns(folder):
    flags = ["--epochs", 12, "--batch-size", 20, "--limit", 599, "--params"]
    one = POOL.submit(succeed, folder, "train_async", *flags, "one")
    launcher = LAUNCH.format(2).split()
    status, out, err = run(folder, "train_async", *flags, "two", launcher=launcher)
    assert status == 0, out + err
    assert out.count("test: ") == 1 and "images (10, 1, 28, 28)" in out
    assert abs(correct(one.result()) - correct(out)) <= 2


def test_the_launcher_with_one_process_trains_and_its_leavings_are_named(folder):
    flags = ["--epochs", 1, "--limit", 100]
    launcher = LAUNCH.format(1).split()
    status, out, err = run(folder, "train_async", *flags, launcher=launcher)
    assert status == 0 and "test: " in out, out + err
    left = {"PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:6070,127.0.0.1:6071"}
    assert "ENDPOINTS" in refused(folder, "train_async", *flags, **left)


def test_a_batch_too_small_for_the_norm_is_refused(folder):
    assert "--batch-size" in refused(folder, "train_async", "--batch-size", 1)


@pytest.mark.parametrize("flags", [["--lr", 1e9], [*ARTICLE, "--lr", 1]])
def test_a_loss_that_grows_keeps_the_good_network(flags, folder):
    before = train(folder, "mnist.safetensors", "--epochs", 1, "--limit", 100)
    assert "--lr" in refused(folder, "train_async", *flags)
    assert (folder / "mnist.safetensors").read_bytes() == before
