"""What training promises: it learns, gives the same bytes again, and can be resumed."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, finish, run, start, succeed

import train_async

ARTICLE = "--network linear --loss regression --optimizer sgd --schedule constant"
ARTICLE = f"{ARTICLE} --lr 0.001 --no-augment"
LAUNCH = "-m paddle.distributed.launch --backend gloo --nproc_per_node"
OPTIMIZERS = ["adam", "momentum", "adagrad", "sgd"]


def correct(text):
    """Return the test accuracy in percent that a script printed or promises."""
    return float(re.search(r"^ *test: \d+ / \d+ correct \((.*?) %\)", text, re.M)[1])


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


def test_trained_network_doubts_what_is_no_digit_and_its_percentages_are_true(
    trained, mnist
):
    tensors, metadata = train_async.load_parameters(trained / "mnist.safetensors")
    network = train_async.build_network("cnn", 11)
    network.set_state_dict({n: t for n, t in tensors.items() if "optimizer" not in n})

    def say(images, labels):
        outputs, right = train_async.evaluate(network, "cross_entropy", images, labels)
        logits = train_async.paddle.to_tensor(outputs / metadata["temperature"])
        shares = train_async.F.softmax(logits).numpy()[:, :10].max(1)
        return shares, right

    shares, right = say(*mnist["eval"])
    assert abs(shares.mean() - right.mean()) < 0.01
    images, classes = train_async.add_no_digits(
        *mnist["eval"], np.random.default_rng(9)
    )
    strange = classes == train_async.NO_DIGIT
    shares, _ = say(images[strange], classes[strange])
    assert strange.sum() >= 500 and (shares > 0.8).mean() < 0.15


def test_same_seed_gives_the_same_bytes_whoever_loads_the_batches(folder):
    train = "train_async.py --epochs 1 --params"
    flags = ["--seed 7", "--seed 8", "--seed 7 --workers 0", "--seed 7 --workers 2"]
    commands = [f"{train} {number} {flag}" for number, flag in enumerate(flags)]
    for process in start(folder, *commands[:2]), start(folder, *commands[2:]):
        finish(process)
    one, other, two, three = ((folder / number).read_bytes() for number in "0123")
    assert one == two == three
    one, other = (safetensors.numpy.load(file)["0.weight"] for file in (one, other))
    assert (one != other).any()  # The files name their seeds.


def test_article_training_is_the_same_bit_for_bit(folder):
    by_hand = start(folder, "train_json.py --epochs 3 --params json")
    succeed(folder, f"train_async.py --epochs 3 --params async {ARTICLE}")
    finish(by_hand)
    one, two = (safetensors.numpy.load_file(folder / n) for n in ("json", "async"))
    assert one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def test_killed_trainings_leave_no_worker_and_resume_to_the_same_bytes(folder):
    train = "train_async.py --epochs 2 --batch-size 20 --optimizer"
    whole = start(folder, *(f"{train} {o} --params whole.{o}" for o in OPTIMIZERS))
    for optimizer in OPTIMIZERS:
        killed = start(folder, f"{train} {optimizer} --params {optimizer}")
        until(killed, "^epoch: 1, ")
        assert len(children(killed)) == 1
        killed.kill()
        killed.communicate(timeout=60)  # The worker's standard output ends, too.
    succeed(folder, *(f"train_async.py --resume --params {o}" for o in OPTIMIZERS))
    finish(whole)
    for optimizer in OPTIMIZERS:
        resumed = (folder / optimizer).read_bytes()
        assert resumed == (folder / f"whole.{optimizer}").read_bytes(), optimizer


def test_resuming_takes_other_data_and_more_epochs_and_knows_when_it_is_done(folder):
    succeed(folder, "train_async.py --epochs 1 --limit 100 --params done")
    before = (folder / "done").read_bytes()
    (folder / "more").write_bytes(before)
    (folder / "work" / "mnist.json.gz").rename(folder / "own.json.gz")
    more = "--params more --epochs 2 --data own.json.gz"
    resume = "train_async.py --resume"
    out = succeed(folder, f"{resume} --params done", f"{resume} {more}")
    assert out.startswith("1 epochs are done already: ask for more --epochs\n")
    assert (folder / "done").read_bytes() == before
    assert "\nresuming: 1 epochs are done, rate " in out
    assert "train: 100 images" in out and "\nepoch 2/2  " in out


@pytest.mark.parametrize(
    "workers, who", [(0, True), (1, "paddle.io.get_worker_info()")]
)
def test_a_slip_in_augment_is_a_traceback_and_an_end(workers, who, folder):
    text = (ROOT / "train_async.py").read_text("utf-8")
    line = "    distorted = np"
    slip = f"    if {who} and rng.random() < 0.3: slip\n"  # Between good batches
    (folder / "train_async.py").write_text(text.replace(line, slip + line, 1))
    process = start(folder, f"train_async.py --batch-size 50 --workers {workers}")
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "NameError: name 'slip' is not defined" in err


def test_killed_worker_ends_the_training(folder):
    process = start(folder, "train_async.py --epochs 100000")
    until(process, "^epoch: 0")
    while not (workers := children(process)):
        time.sleep(0.001)
    os.kill(int(workers[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err


@pytest.mark.parametrize("script", ["train_builtin", "train_json", "train_async"])
def test_ctrl_c_is_one_true_line(script, folder):
    command = f"{script}.py --epochs 100000 --params"
    for done in (0, 1):
        process = start(folder, f"{command} {done}", PYTHONUNBUFFERED="1")
        until(process, f"^epoch: {done}, batch: 0")
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does, workers included.
        _, err = process.communicate(timeout=60)
        epochs = int(re.fullmatch(r"stopped: (\d+) epochs saved\n", err)[1])
        assert process.returncode == 1 and epochs >= done
        assert (folder / str(done)).exists() or epochs == 0


def test_two_processes_learn_what_one_learns(folder):
    # No batch norm, which sees half a batch; and the same images.
    flags = "--network linear --epochs 4 --batch-size 40 --limit 498 --no-augment"
    one = start(folder, f"train_async.py {flags} --params one")
    status, out, err = run(folder, f"{LAUNCH} 2 train_async.py {flags} --params two")
    assert status == 0, out + err
    assert out.count("test: ") == 1 and "images (20, 1, 28, 28)" in out
    assert correct(finish(one)) > 60
    load = safetensors.numpy.load_file
    weights = [load(folder / name)["fc.weight"] for name in ("one", "two")]
    assert np.abs(weights[0] - weights[1]).max() < 1e-4


def test_the_launcher_with_one_process_trains_and_its_leavings_do_not_matter(
    folder, monkeypatch
):
    command = f"{LAUNCH} 1 train_async.py --epochs 1 --limit 100"
    status, out, err = run(folder, command)
    assert status == 0 and "test: " in out, out + err
    monkeypatch.setenv("PADDLE_TRAINER_ENDPOINTS", "127.0.0.1:6070,127.0.0.1:6071")
    assert train_async.start_processes() == (0, 1)
