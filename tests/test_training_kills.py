"""Runs that are killed: wherever it happens, the run that goes on ends as the unbroken one, to the last bit."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pretraining_runs import ENVIRONMENT, TINY
from safetensors.torch import load_file

from croplem_hf.errors import CheckpointError
from croplem_hf.training_files import locked

# All that a run knows of before it was killed is what it wrote, so a kill between two touches of OUT is one of the
# kills at a touch. Children of one warm process run the whole command: touch.py CONFIG COUNT prints the number of
# touches; touch.py CONFIG OUT N ... kills a fresh run at touch N and lets the same command go on, for each N.
TOUCH = """
import json, os, shutil, signal, sys
import torch
import croplem_hf.training as training
torch.set_num_threads(1)

def child(out, kill=None):
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    touches = 0
    def hook(event, arguments):
        nonlocal touches
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and any(
            isinstance(x, (str, os.PathLike)) and os.fspath(x).startswith(out) for x in arguments
        ):
            touches += 1
            if touches == kill:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    code = training.main(["--config", sys.argv[1], "--out", out])
    with open(out.rstrip("/") + ".touches", "w") as file:
        file.write(str(touches))
    os._exit(code)

out, numbers = sys.argv[2], [int(n) for n in sys.argv[3:]]
print(child(out), flush=True)
for number in numbers:
    killed = child(f"{out}-{number}", number)
    print(number, killed, child(f"{out}-{number}"), flush=True)
"""


@pytest.fixture
def config(tmp_path, sen12ms_tree):
    """config(**changes) -> path of a configuration of a run that writes all there is to write."""

    def config(**changes):
        given = {
            "sources": [{"path": str(sen12ms_tree)}], "out": str(tmp_path / "run"), "steps": 5,
            "model": TINY | {"hidden_dropout_prob": 0.1},
            "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3, "max_tokens": 32, "num_workers": 0,
            "gradient_accumulation_steps": 2, "log_every": 1, "checkpoint_every": 2, "picture_every": 3,
            "keep_checkpoints": 1, "ema_decay": 0.9, "trackers": [],
        } | changes  # fmt: skip
        path = tmp_path / "config.json"
        path.write_text(json.dumps(given))
        return path

    return config


def log_of(out):
    """Rows of the log without what the clock decides; numbers are written to the last bit."""
    with open(out / "log.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return [{k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait_percent")} for row in rows]


def content(out):
    """Every file of a run by its bytes, but for the log, which is compared by itself, and what is never read again."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    skip = ("log.csv", ".lock", "state.json", "training.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in paths if path.name not in skip}


def assert_same(one, other):
    assert log_of(one) == log_of(other) and len(log_of(one)) > 3
    a, b = content(one), content(other)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def touch(tmp_path, config, *numbers, out="touched"):
    (tmp_path / "touch.py").write_text(TOUCH)
    command = [sys.executable, tmp_path / "touch.py", config, tmp_path / out, *numbers]
    done = subprocess.run(
        [str(part) for part in command], env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    whole, *lines = done.stdout.splitlines()
    assert whole == "0", done.stderr
    killed = [[int(part) for part in line.split()] for line in lines]
    assert all(first == signal.SIGKILL and second == 0 for _, first, second in killed), (killed, done.stderr)
    return tmp_path / out, [tmp_path / f"{out}-{n}" for n in numbers]


def test_a_kill_at_some_touches_of_the_folder(config, tmp_path):
    """First, last and a few in between; the slow test has many more."""
    whole, broken = touch(tmp_path, config(), 2, 40, 55, 75, 90)
    for out in broken:
        assert_same(whole, out)
    average, last = (load_file(whole / f"checkpoints/step-00000005/{n}.safetensors") for n in ("ema", "model"))
    final = load_file(whole / "model/model.safetensors")
    assert all((final[key] == value).all() for key, value in average.items())
    assert any((last[key] != value).any() for key, value in average.items())


@pytest.mark.slow
def test_a_kill_at_every_third_touch_of_the_folder(config, tmp_path, real_data):
    probe = {
        "path": str(real_data / "series/series.parquet"), "label": "cropland", "group": "region", "samples": 60,
        "where": {"source": ["itu_cropland_2023"]},
    }  # fmt: skip
    path = config(probe=probe, probe_every=2, keep_best=True, trackers=["tensorboard"])
    touch(tmp_path, path, out="counted")
    count = int((tmp_path / "counted.touches").read_text())
    assert count > 100
    shutil.rmtree(tmp_path / "counted")
    numbers = list(range(1, count + 1, 3))
    whole, broken = touch(tmp_path, path, *numbers)
    for out in (whole, *broken):
        shutil.rmtree(out / "trackers")
    for out in broken:
        assert_same(whole, out)
    assert (whole / "best/probe.json").is_file()


def start(config, out, processes):
    command = [sys.executable, "-m", "croplem_hf.training", "--config", str(config), "--out", str(out)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ten_kills_at_random_moments(config, tmp_path, processes):
    """Ten times, after a random time behind a random line of the log, all of the run's processes are killed."""
    draw = random.Random(processes)
    path = config(steps=60, num_workers=1, picture_every=7, checkpoint_every=3)
    whole = start(path, tmp_path / "whole", processes)
    said = whole.communicate()[1]
    assert whole.returncode == 0, said
    out, kills, reached = tmp_path / "broken", 0, 0
    while kills < 10:
        running = start(path, out, processes)
        wanted = min(60, reached + draw.randint(1, 5)) if kills < 8 else 60
        # Where all steps are done, only the model is still to be written.
        sign = f" step {wanted}/60 " if reached < 60 else "resume from"
        said = []
        for line in running.stderr:
            said.append(line)
            if sign in line:
                time.sleep(draw.uniform(0, 0.3))
                break
        for process in (*psutil.Process(running.pid).children(recursive=True), running):
            process.kill()
        running.wait()
        running.stderr.close()
        assert any(sign in line for line in said), "".join(said)
        names = sorted(path.name for path in (out / "checkpoints").glob("step-????????"))
        reached = int(names[-1][5:]) if names else 0
        kills += 1
    last = start(path, out, processes)
    said = last.communicate()[1]
    assert last.returncode == 0, said
    assert_same(tmp_path / "whole", out)
    assert len(log_of(out)) == 60


def test_two_runs_do_not_share_a_folder(tmp_path):
    code = "import sys; from croplem_hf.training_files import locked\nfrom pathlib import Path\n" + (
        "with locked(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "mine\n"
    with pytest.raises(CheckpointError, match=rf"another run writes here \(process {other.pid}\)"):
        with locked(tmp_path / "out"):
            pass
    other.kill()
    other.communicate()
    with locked(tmp_path / "out"):
        assert Path(tmp_path / "out/.lock").read_text() == str(os.getpid())
