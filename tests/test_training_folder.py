"""OUT of a pretraining run: what is its own and what is not; launchers and schedulers that meddle."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState

from croplem_hf import open_source
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.training import load_config, train
from croplem_hf.training_config import ProbeConfig
from croplem_hf.training_files import checkpoints_in
from croplem_hf.training_probe import Probe

pytestmark = pytest.mark.usefixtures("single_thread")


def run(config, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    loaded = load_config(config)
    return train(loaded, **changes), Path(loaded.out)


def test_files_of_the_user_stay(write, tmp_path):
    out = tmp_path / "run"
    for name in ("notes.old", "work.tmp", "notes"):
        (out / name).mkdir(parents=True)
        (out / name / "mine.txt").touch()
    (out / "model.tmp").mkdir()
    for _ in range(2):
        assert run(write(steps=2), resume=False)[0] == "finished"
        assert all((out / name / "mine.txt").exists() for name in ("notes.old", "work.tmp", "notes"))
    assert not (out / "model.tmp").exists()


def test_a_wrong_configuration_deletes_nothing(write, tmp_path):
    _, out = run(write(steps=4))
    kept = sorted(path.name for path in out.rglob("*"))
    for changes in ({"model": {"preset": "huge"}}, {"model": None, "init_from": str(tmp_path / "nothing")},
                    {"model": {"latent_size": 4}}):  # fmt: skip
        with pytest.raises((DataError, CheckpointError)):
            run(write(**changes), resume=False)
        assert sorted(path.name for path in out.rglob("*")) == kept


def test_what_another_run_left_without_a_checkpoint(write, tmp_path):
    out = tmp_path / "run"
    (out / "best").mkdir(parents=True)
    (out / "best" / "probe.json").write_text("{}")
    _, out = run(write(steps=2))
    assert not (out / "best").exists()
    for checkpoint in checkpoints_in(out):
        (checkpoint / "state.json").unlink()
    with pytest.raises(CheckpointError, match="holds a model but no checkpoint"):
        run(write(steps=2))
    assert (out / "model").exists() and run(write(steps=2), resume=False)[0] == "finished"


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_named(write, name):
    _, out = run(write(steps=4, checkpoint_every=2))
    newest = checkpoints_in(out)[-1]
    os.truncate(newest / name, 10)
    with pytest.raises(CheckpointError, match=f"{newest.name}: {name} is damaged.*one before"):
        run(write(steps=4, checkpoint_every=2))


def test_a_launcher_changes_nothing_in_silence(write, monkeypatch):
    for name, value, message in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps is 2, and the launcher says 4"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "torch.compile of the whole model"),
        ("WORLD_SIZE", "2", "2 processes were started, and each takes itself for one of 1"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "needs a GPU"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            patch.setenv("ACCELERATE_USE_CPU", "false" if name == "WORLD_SIZE" else "true")
            if name == "WORLD_SIZE":
                patch.setattr("croplem_hf.training_setup.Accelerator", _alone(name))
            with pytest.raises(DataError, match=message):
                run(write(gradient_accumulation_steps=2, steps=1))


def _alone(name):
    """An Accelerator that does not look at the number of processes, as where there is no GPU for them."""
    from accelerate import Accelerator

    def make(**kwargs):
        value = os.environ.pop(name)
        try:
            return Accelerator(**kwargs)
        finally:
            os.environ[name] = value

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["learning_rate", "min_learning_rate", "weight_decay", "clip_norm"])
def test_numbers_that_are_none(write, key, value):
    with pytest.raises(DataError, match=f"{key} must be"):
        load_config(write(**{key: value}))


def write_targets(path, ids):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(5.0 * len(ids))), 5)
    pq.write_table(pa.table({"id": list(ids), "embedding": lists}), path)


def test_vectors_from_outside_that_fit_nothing(write, sen12ms_tree, tmp_path):
    table = tmp_path / "targets.parquet"
    options = {"model": {"preset": "nano", "latent_size": 5}, "latent_targets": str(table), "steps": 1}
    write_targets(table, ["a", "b"])
    with pytest.raises(DataError, match="none of its ids is one of the sources; it has 'a'"):
        run(write(**options))
    id = open_source(sen12ms_tree).ids[0]
    write_targets(table, [id, id])
    with pytest.raises(DataError, match="stands in 2 rows; ids must be unique"):
        run(write(**options))


def test_few_samples_can_be_probed(tmp_path, monkeypatch):
    class Source:
        ids = [str(k) for k in range(16)]

        def __len__(self):
            return 16

        def columns(self):
            labels = np.array([k % 2 for k in range(16)], object)
            return {"label": labels, "block": np.array([k // 4 for k in range(16)], object)}

    monkeypatch.setattr("croplem_hf.training_config.open_source", lambda *args, **kwargs: Source())
    probe = Probe(ProbeConfig(path="x", label="label", group="block"))
    vectors = np.random.default_rng(0).normal(size=(16, 4)) + 5.0 * (probe.labels == "1")[:, None]
    vectors += 5.0 * (probe.labels == 1)[:, None]
    assert all(probe._score(vectors, *fold) == 1 for fold in probe.folds)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds loaders in /proc")
def test_a_scheduler_that_signals_every_process_loses_nothing(write, tmp_path):
    config = write(steps=100_000, num_workers=2, checkpoint_every=100_000, log_every=1)
    command = [sys.executable, "-m", "croplem_hf.training", "--config", config]
    with subprocess.Popen(command, text=True, stderr=subprocess.PIPE) as process:
        log = tmp_path / "run" / "log.csv"
        begin = time.monotonic()
        while not (log.exists() and log.read_text().count("\n") > 3):
            assert process.poll() is None and time.monotonic() - begin < 120
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
        for pid in (*map(int, children), process.pid):
            os.kill(pid, signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert len(checkpoints_in(tmp_path / "run")) == 1
