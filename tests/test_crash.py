"""Killed, interrupted, without room or processes: nothing is lost, nothing hangs."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.numpy
from conftest import ROOT, environment, run, succeed

pytestmark = pytest.mark.slow
TRAIN = [sys.executable, str(ROOT / "train_async.py")]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc, or mounts")


def start(*arguments, prefix=(), **options):
    """Start train_async as a process, in a group of its own like a shell's job."""
    return subprocess.Popen(
        [*prefix, *TRAIN, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def until(process, pattern):
    """Read a process's lines until one matches."""
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"it ended before {pattern}")


def children(pid):
    """Return the process ids of a process's children."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def alive(pid):
    """Return whether a process runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


SAVE_FOREVER = """
import os, sys, pathlib
sys.path.insert(0, sys.argv[1])
import numpy as np, paddle, train_async as script
network, kept = script.build_network("cnn", 10), script.build_network("cnn", 10)
optimizer, schedule = script.make_optimizer("adam", 0.001, network)
path = pathlib.Path("mnist.safetensors")
for number in range(10**9):
    for parameter in network.parameters() + kept.parameters():
        parameter.set_value(paddle.full(parameter.shape, float(number)))
    progress = {"facts": {"epochs": number}}
    script.save_checkpoint(path, network, kept, optimizer, progress)
    os.write(1, b"saved %d\\n" % number)  # At once: print may be killed in its midst.
"""


def test_killed_at_fifty_moments_the_files_are_whole_and_old_or_new(folder):
    """The real saving, again and again with nothing between, killed at random."""
    chance = random.Random(0)
    for _ in range(50):
        command = [sys.executable, "-c", SAVE_FOREVER, str(ROOT)]
        with subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, text=True
        ) as process:
            until(process, "^saved 1$")
            time.sleep(chance.uniform(0, 0.08))
            process.kill()
            said = re.findall(r"^saved (\d+)$", process.stdout.read(), re.M)
        last = int(said[-1]) if said else 1
        saved = safetensors.numpy.load_file("mnist.safetensors")
        values = {float(saved[name].flat[0]) for name in saved if "fc" in name}
        assert len(values) == 1
        assert values <= {float(last), float(last + 1)}
        further = safetensors.numpy.load_file("mnist.resume.safetensors")
        ahead = float(further["kept.fc.bias"][0]) - values.pop()
        assert ahead in (0, 1)


@pytest.fixture
def small_disk(folder):
    """A disk of 600 KB, on which one parameters file has room, but not two."""
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if os.geteuid():
        mount = ["sudo", "-n", *mount]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user cannot mount a disk")
    yield place
    subprocess.run(
        [*mount[: -7 if os.geteuid() == 0 else 2], "umount", str(place)][-2:]
    )


@LINUX
def test_full_disk_keeps_the_old_file_and_leaves_nothing_behind(small_disk, trained):
    target = small_disk / "mnist.safetensors"
    target.write_bytes(trained["cnn"].read_bytes())
    before = target.read_bytes()
    done = run("train_async", "--epochs", 1, "--params", small_disk / "mnist")
    assert done.returncode == 2
    assert re.search(
        r"^error: .*mnist.* cannot be written: No space", done.stderr, re.M
    )
    assert target.read_bytes() == before
    assert [path.name for path in small_disk.iterdir()] == ["mnist.safetensors"]


def test_two_trainings_into_one_file_leave_a_whole_one(folder):
    both = [start("--epochs", 6, "--seed", seed) for seed in (1, 2)]
    for process in both:
        process.communicate(timeout=120)
        assert process.returncode == 0
    for name in ("mnist.safetensors", "mnist.resume.safetensors"):
        safetensors.numpy.load_file(name)
    assert not list(folder.glob(".*.tmp"))
    assert succeed("predict", "work/example_9.png")


@LINUX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_signal_ends_it_without_orphans_or_a_hang(name, workers, folder):
    process = start("--epochs", 100000, "--workers", workers)
    until(process, "^epoch 2/")
    started = children(process.pid)
    # Ctrl-C reaches the whole group, as in a terminal; SIGTERM one process only.
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "stopped: what was finished before is on disk"
    assert "Traceback" not in said
    time.sleep(0.2)
    assert not [pid for pid in started if alive(pid)]
    safetensors.numpy.load_file("mnist.safetensors")


@LINUX
def test_a_killed_reading_process_is_an_error_and_no_hang(folder):
    process = start("--epochs", 100000, "--workers", 1)
    until(process, "^epoch 2/")
    deadline = time.monotonic() + 20
    while not (victims := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(victims[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert re.search(r"^error: a reading process", said, re.M)


@LINUX
def test_without_shared_memory_a_thread_reads(folder):
    unshare = (
        ["unshare", "--mount", "--map-root-user"] if os.geteuid() else ["unshare", "-m"]
    )
    hide = 'mount -t tmpfs -o size=0,mode=000,ro tmpfs /dev/shm && exec "$@"'
    if subprocess.run(
        [*unshare, "sh", "-c", "mount -t tmpfs tmpfs /dev/shm"]
    ).returncode:
        pytest.skip("this user cannot hide /dev/shm")
    process = start("--epochs", 1, prefix=[*unshare, "sh", "-c", hide, "sh"])
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "no reading processes (" in said
    assert "read by a thread" in said


@LINUX
def test_little_shared_memory_is_enough(folder):
    unshare = (
        ["unshare", "--mount", "--map-root-user"] if os.geteuid() else ["unshare", "-m"]
    )
    shrink = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    if subprocess.run(
        [*unshare, "sh", "-c", "mount -t tmpfs tmpfs /dev/shm"]
    ).returncode:
        pytest.skip("this user cannot shrink /dev/shm")
    process = start(
        "--epochs", 1, "--batch-size", 600, prefix=[*unshare, "sh", "-c", shrink, "sh"]
    )
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "read by 1 process" in said


def test_a_gpu_that_is_not_there_is_one_warning(folder):
    done = run("train_async", "--gpu", "--epochs", 1)
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "paddlepaddle-gpu" in warnings[0]


@LINUX
def test_everything_runs_without_network_and_home(folder):
    offline = ["unshare", "--net"] + ["--map-root-user"] * bool(os.geteuid())
    if subprocess.run([*offline, "true"]).returncode:
        pytest.skip("this user cannot unplug the network")
    (folder / "home").mkdir()
    done = subprocess.run(
        [*offline, *TRAIN, "--epochs", "1"],
        env=environment(HOME=str(folder / "home")),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@LINUX
def test_a_failed_download_says_which_files_go_where(folder):
    offline = ["unshare", "--net"] + ["--map-root-user"] * bool(os.geteuid())
    if subprocess.run([*offline, "true"]).returncode:
        pytest.skip("this user cannot unplug the network")
    for path in (folder / "work").glob("*ubyte.gz"):
        path.unlink()
    (folder / "home").mkdir()
    done = subprocess.run(
        [*offline, sys.executable, str(ROOT / "train_builtin.py")],
        env=environment(HOME=str(folder / "home")),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "train-images-idx3-ubyte.gz" in errors[0] and "work/" in errors[0]
