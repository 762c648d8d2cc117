"""What training promises: it learns, it is exact, and it can be interrupted."""

import gzip
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors.numpy
from conftest import ROOT, environment, run, succeed

ARTICLE = "--network linear --loss square_error --optimizer sgd --lr 0.001".split()


def tensors(path):
    return safetensors.numpy.load_file(path)


def facts(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["mnist"])


def test_same_seed_gives_the_same_bytes(folder):
    for name in ("one", "two"):
        succeed("train_async", "--epochs", 1, "--seed", 7, "--params", name)
    one, two = (folder / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    succeed("train_async", "--epochs", 1, "--seed", 8, "--params", "two")
    assert one.read_bytes() != two.read_bytes()


@pytest.mark.slow
def test_result_does_not_depend_on_who_reads(folder):
    for workers in (0, 1, 3):
        name = f"by{workers}"
        succeed("train_async", "--epochs", 1, "--workers", workers, "--params", name)
    files = [
        (folder / f"by{workers}.safetensors").read_bytes() for workers in (0, 1, 3)
    ]
    assert files[0] == files[1] == files[2]


def test_article_training_is_the_same_read_by_hand_or_asynchronously(folder):
    succeed("train_json", "--epochs", 2, "--params", "json")
    succeed("train_async", "--epochs", 2, *ARTICLE, "--no-augment", "--params", "async")
    by_hand = (folder / "json.safetensors").read_bytes()
    assert by_hand == (folder / "async.safetensors").read_bytes()


def test_cnn_learns_a_small_set(folder):
    out = succeed("train_async", "--epochs", 8, "--batch-size", 20)
    assert int(re.search(r"^test: (\d+) / 200", out, re.M)[1]) > 160


@pytest.mark.parametrize("loss", ["cross_entropy", "square_error"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "adagrad", "sgd"])
@pytest.mark.parametrize("network", ["cnn", "mlp", "linear"])
def test_any_network_trains_with_any_loss_and_optimizer(
    network, optimizer, loss, folder, module, capsys
):
    flags = ["--network", network, "--optimizer", optimizer, "--loss", loss]
    flags += ["--batch-size", "20", "--workers", "0", "--no-augment", "--epochs", "3"]
    assert module("train_async").main(flags) == 0
    out = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"^epoch \d/3: loss ([\d.]+)", out, re.M)]
    assert losses[2] < 0.9 * losses[0]


def test_paddle_itself_can_load_the_parameters(trained):
    state = paddle.load(str(trained["cnn"]), safetensors=True)
    assert set(state) == set(tensors(trained["cnn"]))


def test_parameters_file_says_how_to_use_it(trained):
    told = facts(trained["cnn"])
    assert (told["network"], told["loss"]) == ("cnn", "cross_entropy")
    assert (told["pixels"], told["epochs"], told["seed"]) == ([-1, 1], 12, 0)
    assert 0.5 < told["accuracy"] <= 1
    assert re.fullmatch("[0-9a-f]{64}", told["data"])


def test_two_and_two_epochs_are_four(folder):
    succeed("train_async", "--epochs", 2, "--params", "parts")
    succeed("train_async", "--epochs", 4, "--params", "parts", "--resume")
    succeed("train_async", "--epochs", 4, "--params", "whole")
    for kind in (".safetensors", ".resume.safetensors"):
        whole = (folder / f"whole{kind}").read_bytes()
        assert whole == (folder / f"parts{kind}").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["momentum", "adagrad", "sgd"])
def test_every_optimizer_resumes(optimizer, folder):
    flags = ["--optimizer", optimizer, "--network", "mlp"]
    succeed("train_async", "--epochs", 1, "--params", "parts", *flags)
    succeed("train_async", "--epochs", 2, "--params", "parts", "--resume")
    succeed("train_async", "--epochs", 2, "--params", "whole", *flags)
    whole = (folder / "whole.safetensors").read_bytes()
    assert whole == (folder / "parts.safetensors").read_bytes()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--network", "mlp"], ["--network mlp", "cnn"]),
        (["--loss", "square_error"], ["--loss square_error", "cross_entropy"]),
        (["--optimizer", "sgd"], ["--optimizer sgd", "adam"]),
        (["--seed", "5"], ["--seed 5", "0"]),
        (["--no-augment"], ["--augment False", "True"]),
    ],
)
def test_resuming_refuses_flags_that_contradict(flags, words, folder):
    succeed("train_async", "--epochs", 1)
    before = (folder / "mnist.safetensors").read_bytes()
    done = run("train_async", "--epochs", 2, "--resume", *flags)
    assert done.returncode == 2
    assert all(word in done.stderr for word in ["error: ", *words])
    assert (folder / "mnist.safetensors").read_bytes() == before


def test_resuming_refuses_other_data(folder):
    succeed("train_async", "--epochs", 1)
    data = folder / "work" / "mnist.json.gz"
    data.write_bytes(gzip.compress(gzip.decompress(data.read_bytes()) + b" "))
    done = run("train_async", "--epochs", 2, "--resume")
    assert done.returncode == 2
    assert (
        "work/mnist.json.gz is not what mnist.safetensors was trained on" in done.stderr
    )


def test_resuming_a_finished_training_says_so(folder):
    succeed("train_async", "--epochs", 1)
    before = (folder / "mnist.safetensors").read_bytes()
    out = succeed("train_async", "--epochs", 1, "--resume")
    assert "mnist.safetensors has had its 1 epochs" in out
    assert (folder / "mnist.safetensors").read_bytes() == before


def test_resuming_refuses_parameters_of_another_training(folder):
    succeed("train_async", "--epochs", 1)
    succeed("train_json", "--epochs", 1)
    done = run("train_async", "--epochs", 2, "--resume")
    assert done.returncode == 2
    assert "another training" in done.stderr


KILLED_SAVING = """
import os, signal, sys
sys.argv = sys.argv[1:]
replace, left = os.replace, int(sys.argv.pop(0))
def replace_or_die(source, target):
    global left
    left -= "mnist" in os.path.basename(target) and "npz" not in str(target)
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("saves", [2, 3, 4, 5])
def test_killed_while_saving_it_resumes_from_the_last_finished_epoch(saves, folder):
    """Each epoch saves twice: the checkpoint, then the parameters."""
    command = [sys.executable, "-c", KILLED_SAVING, str(saves)]
    command += [str(ROOT / "train_async.py"), "--epochs", "3"]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert facts(folder / "mnist.safetensors")["epochs"] == saves // 2
    out = succeed("train_async", "--epochs", 3, "--resume")
    finished = (saves + 1) // 2
    assert (f"going on after epoch {finished}" in out) == (finished < 3)
    assert ("mnist.safetensors has had its 3 epochs" in out) == (finished == 3)
    succeed("train_async", "--epochs", 3, "--params", "whole")
    whole = (folder / "whole.safetensors").read_bytes()
    assert whole == (folder / "mnist.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_in_mid_training_it_resumes_from_the_last_finished_epoch(folder):
    command = [sys.executable, str(ROOT / "train_async.py"), "--epochs", "1000"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            if line.startswith(b"epoch 2/1000"):
                break
        time.sleep(0.1)  # Somewhere in a later epoch.
        process.kill()
    done = facts(folder / "mnist.resume.safetensors")["facts"]["epochs"]
    assert done >= 2
    succeed("train_async", "--epochs", done + 1, "--resume")
    succeed("train_async", "--epochs", done + 1, "--params", "whole")
    whole = (folder / "whole.safetensors").read_bytes()
    assert whole == (folder / "mnist.safetensors").read_bytes()


def launch(*arguments):
    """Run train_async in two processes on this machine's CPU."""
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
    ]
    command += ["--backend", "gloo", str(ROOT / "train_async.py"), *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(folder):
    flags = ["--epochs", 8, "--batch-size", 20, "--limit", 599]
    done = launch(*flags, "--params", "two")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("test: ") == 1
    assert re.search(r"^  0 \[10, 1, 28, 28\] \[10, 1\]$", done.stdout, re.M)
    succeed("train_async", *flags, "--params", "one")
    one, two = (facts(folder / f"{name}.safetensors") for name in ("one", "two"))
    assert abs(one["accuracy"] - two["accuracy"]) < 0.1


@pytest.mark.slow
def test_more_processes_than_images_are_refused(folder):
    done = launch("--limit", 1)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "error: --batch-size or --limit: too small for 2 processes" in said
    assert not (folder / "mnist.safetensors").exists()


def test_processes_share_every_batch_without_loss_or_repetition(folder, module):
    script = module("train_async")
    images = script.read_splits("work/mnist.json.gz")[0]["train"][0]
    for size, processes in ((100, 2), (599, 3), (7, 4), (198, 5), (1, 1)):
        seen = []
        for rank in range(processes):
            batches, steps = script.load_data(
                "train", "work/mnist.json.gz", size, rank=rank, processes=processes
            )
            shares = list(batches(3))
            assert len(shares) == steps
            assert all(len(share) for share, _ in shares)
            seen += [share for share, _ in shares]
        seen = np.concatenate(seen).reshape(-1, 784)
        expected = images.reshape(-1, 784).astype(np.float32) / 127.5 - 1
        assert len(seen) == len(expected)
        assert (np.sort(seen.sum(1)) == np.sort(expected.sum(1))).all()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [200, 100, 50])  # 3, 6 and 12 batches
def test_batches_shown_are_trained_on_too(batch_size, workers, folder, module):
    script = module("train_async")
    threads = threading.active_count()
    batches, steps = script.load_data("train", "work/mnist.json.gz", batch_size)
    ahead = script.read_ahead(batches, 0, workers, "cpu")
    seen = list(script.show_reader(ahead, workers, "cpu"))
    assert len(seen) == steps
    for (images, labels), (ours, digits) in zip(seen, batches(0)):
        assert (images.numpy() == ours).all()
        assert (labels.numpy() == digits).all()
    assert threading.active_count() == threads


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_averaging_leaves_no_memory_behind(module):
    script = module("train_async")
    network, kept = (script.build_network("cnn", 10) for _ in range(2))

    def resident(steps):
        for step in range(steps):
            script.average(kept, network, step + 1)
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    before = resident(300)
    assert resident(3000) - before < 2**20


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(folder):
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
    ]
    command += ["--backend", "gloo", str(ROOT / "train_async.py"), "--epochs", "1000"]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as launcher:
        for line in launcher.stdout:
            if line.startswith(b"epoch 1/1000"):
                break
        children = f"/proc/{launcher.pid}/task/{launcher.pid}/children"
        with open(children, encoding="ascii") as file:
            victim = int(file.read().split()[-1])
        subprocess.run(["kill", "-KILL", str(victim)], check=True)
        launcher.stdout.read()
        assert launcher.wait(timeout=60) != 0


@pytest.mark.parametrize("network", ["linear", "mlp", "cnn"])
def test_network_on_the_page_has_the_shapes_and_counts_that_it_names(network, module):
    """The comments beside build_network's layers, held against the layers."""
    source = (ROOT / "train_async.py").read_text(encoding="utf-8")
    pattern = (
        rf'name == "{network}":  # (\d+) parameters.*?layers = \[\n(.*?)\n        \]'
    )
    total, lines = re.search(pattern, source, re.S).groups()
    layers = module("train_async").build_network(network, 10)
    layers.eval()
    value = paddle.zeros([3, 1, 28, 28])
    for line, (name, layer) in zip(lines.splitlines(), layers.named_children()):
        value = layer(value)
        count = sum(parameter.size for parameter in layer.parameters())
        assert line.strip().startswith(f'("{name}", ')
        if not name.startswith(("norm", "relu")):
            said = f"# {list(value.shape)}{f', {count}' if count else ''}"
            assert line.endswith(said.replace("[3, ", "[N, ")), line
    assert int(total) == sum(p.size for p in layers.parameters() if p.trainable)
