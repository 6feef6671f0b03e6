"""Pretraining: what is drawn for a batch, the configuration, and runs that learn, stop, go on and fail as they must."""

import csv
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, strategies as st
from pretraining_runs import ENVIRONMENT, TINY
from safetensors.torch import load_file

from croplem_hf import (
    CropLEMConfig,
    CropLEMForPreTraining,
    CropLEMImageProcessor,
    Embedder,
    build_shards,
    generate_sen12ms,
    make_sample,
    open_source,
    packaged_path,
    training,
)
from croplem_hf.augment import Augmentation, TrainingBatches, augment, draw_recipe, mask_seed, sample_seed
from croplem_hf.data.plan import BatchPlan, read_layout
from croplem_hf.errors import CheckpointError, CropLEMError, DataError
from croplem_hf.training import load_config, main, train
from croplem_hf.training_setup import build_model, build_optimizer, learning_rate_at, open_data

STILL = Augmentation(0, 0.0, False, 0.0, 0.0, 0.0, 0.0)
# Stops itself at the start of a step: by a signal to its process group, which is what Ctrl-C reaches, or by a bug.
DRIVER = """
import os, signal, sys
import croplem_hf.training as training
step, name, *arguments = sys.argv[1:]
original = training.learning_rate_at
def learning_rate_at(number, config):
    if number == int(step):
        os.killpg(0, getattr(signal, name))  # no signal of that name: an error that nothing expects
    return original(number, config)
training.learning_rate_at = learning_rate_at
sys.exit(training.main(arguments))
"""


pytestmark = pytest.mark.usefixtures("single_thread")


def run(config, **changes):
    loaded = load_config(config)
    return train(loaded, **changes), Path(loaded.out)


def tensors(folder):
    """All tensors of a checkpoint or model."""
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.name}:{key}": value for file in files for key, value in load_file(file).items()}


def rows_of(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def assert_equal(one, other):
    """Two runs ended alike, bit by bit: last checkpoint, model and log, but for the clock."""
    for name in (f"checkpoints/{max(path.name for path in (one / 'checkpoints').iterdir())}", "model"):
        a, b = tensors(one / name), tensors(other / name)
        assert a.keys() == b.keys() and len(a) > 20
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    logs = [rows_of(out / "log.csv") for out in (one, other)]
    for row in sum(logs, []):
        del row["samples_per_second"], row["data_wait_percent"]
    assert logs[0] == logs[1] and len(logs[0]) > 2


def launch(arguments, *, driver=None, processes=1):
    """Run the command in a process group of its own."""
    command = [sys.executable, *(["-m", "croplem_hf.training"] if driver is None else driver), *map(str, arguments)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, start_new_session=True, check=False
    )


# What is drawn for a batch


dates, sides = st.integers(0, 20), st.integers(1, 70)
shapes = st.tuples(dates, dates, sides, sides).filter(lambda shape: shape[0] + shape[1])


@given(shapes, st.integers(0, 99), st.integers(0, 9999), st.sampled_from([1, 16, 64, 512]))
def test_a_recipe_fits_the_images_and_the_tokens(shape, seed, number, most):
    settings = dict(seed=seed, number=number, max_tokens=most, augmentation=Augmentation())
    recipe = draw_recipe(np.tile(shape, (5, 1)), patch_sizes=(1, 2, 4, 8, 16), **settings)
    p, (t1, t2, h, w) = recipe.patch_size, shape
    assert p <= min(h, w) and recipe.height <= h and recipe.width <= w
    tokens = sum(recipe.dates) * -(-recipe.height // p) * -(-recipe.width // p)
    assert tokens <= max(most, sum(recipe.dates))
    assert all((t > 0) == (s in recipe.sensors) for t, s in zip(recipe.dates, ("s1", "s2"), strict=True))
    assert recipe.dates[0] in (0, *range(min(2, t1), t1 + 1)) and recipe.dates[1] in (0, *range(min(2, t2), t2 + 1))
    assert recipe == draw_recipe(np.tile(shape, (2, 1)), patch_sizes=(1, 2, 4, 8, 16), **settings)


def test_recipes_draw_every_patch_size_and_hide_each_sensor():
    recipes = [
        draw_recipe(
            np.array([[5, 5, 64, 64]] * 4), seed=0, number=n, patch_sizes=(1, 2, 4, 8, 16), max_tokens=512,
            augmentation=Augmentation(hide_sensor=0.4),
        )
        for n in range(500)
    ]  # fmt: skip
    assert {recipe.patch_size for recipe in recipes} == {1, 2, 4, 8, 16}
    kinds = [recipe.sensors for recipe in recipes]
    assert 0.15 < kinds.count(("s1",)) / 500 < 0.25 and 0.15 < kinds.count(("s2",)) / 500 < 0.25
    assert {recipe.dates for recipe in recipes} > {(5, 5), (0, 5), (5, 0), (2, 3)}
    # Images smaller than every patch size still get one.
    one = dict(seed=0, number=0, patch_sizes=(8, 4), max_tokens=9, augmentation=STILL)
    assert draw_recipe(np.array([[1, 1, 3, 3]]), **one).patch_size == 4


def places_sample(t1, t2, h, w, seed):
    """Radar and optics both hold the number of the pixel, and only some pixels are valid."""
    rng = np.random.default_rng(seed)
    place = np.arange(h * w, dtype=np.float32).reshape(h, w) % 50
    valid = {1: rng.random((t1, h, w)) < 0.3, 2: rng.random((t2, h, w)) < 0.3}
    fields = {}
    if t1:
        fields |= {"s1": np.tile(place - 60, (t1, 2, 1, 1)), "s1_valid": valid[1]}
    if t2:
        fields |= {"s2": np.tile(place, (t2, 13, 1, 1)), "s2_valid": valid[2], "s2_level": "L2A"}
    days = (np.datetime64("2019-01-10") + 9 * np.arange(20)).astype(str).tolist()
    return make_sample(f"x{seed}", s1_dates=days[:t1], s2_dates=days[:t2], **fields)


@given(shapes, st.integers(0, 999))
def test_an_augmented_sample_keeps_its_places_and_something_valid(shape, seed):
    try:
        sample = places_sample(*shape, seed)
    except DataError:  # nothing valid was drawn
        return
    copy = {key: np.copy(sample[key]) for key in ("s1", "s2") if sample[key] is not None}
    settings = Augmentation(date_jitter_days=0, radar_gain_db=0, optics_gain=0, calendar_shift=0)
    recipe = draw_recipe(
        np.array([shape]), seed=seed, number=3, patch_sizes=(1, 2, 4), max_tokens=40, augmentation=settings
    )
    out = augment(sample, recipe, sample_seed(seed, "x", 0, 0), settings)
    present = [s for s in recipe.sensors if sample[s] is not None]
    assert [s for s in ("s1", "s2") if out[s] is not None] == present
    for sensor in present:
        t = min(len(sample[sensor]), recipe.dates[("s1", "s2").index(sensor)])
        assert out[sensor].shape[0] == len(out[f"{sensor}_dates"]) == t
        assert out[sensor].shape[2:] == (recipe.height, recipe.width)
        assert out[f"{sensor}_valid"].shape == (t, *out[sensor].shape[2:])
        assert set(out[f"{sensor}_dates"]) <= set(sample[f"{sensor}_dates"])
        assert out[f"{sensor}_dates"] == sorted(out[f"{sensor}_dates"])
    if len(present) == 2:
        assert np.array_equal(out["s1"][0, 0] + 60, out["s2"][0, 0])
    valid_dates = {s: sample[f"{s}_valid"].any(axis=(1, 2)).sum() for s in present}
    if recipe.height == shape[2] and recipe.width == shape[3] and any(valid_dates.values()):
        assert any(out[f"{s}_valid"].any() for s in present)
    assert all(np.array_equal(sample[key], value, equal_nan=True) for key, value in copy.items())
    if any(out[f"{s}_valid"].any() for s in present):
        CropLEMImageProcessor()(out)


def test_a_crop_finds_the_one_valid_pixel():
    valid = np.zeros((1, 64, 64), bool)
    valid[0, 63, 5] = True
    sample = make_sample("x", s1=np.full((1, 2, 64, 64), -9.0), s1_dates=["2019-01-01"], s1_valid=valid)
    one = dict(seed=0, number=0, patch_sizes=(2,), max_tokens=9, augmentation=STILL)
    recipe = draw_recipe(np.array([[1, 0, 64, 64]]), **one)
    for seed in range(20):
        out = augment(sample, recipe, np.random.default_rng(seed), Augmentation())
        assert out["s1"].shape == (1, 2, 6, 6) and out["s1_valid"].sum() == 1


def test_gains_dates_and_turns():
    rng = np.random.default_rng(0)
    sample = make_sample(
        "x", s1=rng.normal(-12, 3, (1, 2, 8, 8)), s1_dates=["2017-01-15"], s2=rng.integers(1, 9000, (1, 13, 8, 8)),
        s2_dates=["2017-01-15"], s2_level="L1C",
    )  # fmt: skip
    one = dict(seed=0, number=0, patch_sizes=(2,), max_tokens=99, augmentation=STILL)
    recipe = draw_recipe(np.array([[1, 1, 8, 8]]), **one)
    same = augment(sample, recipe, np.random.default_rng(0), STILL, jitter=True)
    assert np.array_equal(same["s1"], sample["s1"]) and np.array_equal(same["s2"], sample["s2"])
    assert same["s1_dates"] == same["s2_dates"] == ["2017-01-15"]
    days, gains, factors, corners = [], [], [], set()
    for seed in range(300):
        settings = Augmentation(calendar_shift=0)
        out = augment(sample, recipe, np.random.default_rng(seed), settings, jitter=True)
        still = augment(sample, recipe, np.random.default_rng(seed), settings)
        assert still["s1_dates"] == ["2017-01-15"] and np.array_equal(still["s1"], out["s1"])
        moved = np.array([out["s1_dates"], out["s2_dates"]], "datetime64[D]")[:, 0] - np.datetime64("2017-01-15")
        days.append(moved.astype(int))
        gains.append(float(out["s1"].mean() - sample["s1"].mean()))
        factors.append(float(np.log(out["s2"].mean() / sample["s2"].mean())))
        corners.add(round(float(out["s2"][0, 0, 0, 0] / np.exp(factors[-1]))))
    days = np.array(days)
    assert days.min() >= -45 and days.max() <= 45 and days.min() < -35 and days.max() > 35
    assert abs(np.corrcoef(days.T)[0, 1]) < 0.2
    assert np.std(gains) == pytest.approx(1.5, rel=0.15) and np.std(factors) == pytest.approx(0.1, rel=0.15)
    assert len(corners) == 4
    shifted = [augment(sample, recipe, np.random.default_rng(n), Augmentation(calendar_shift=1)) for n in range(50)]
    assert len({out["s1_dates"][0] for out in shifted}) > 30
    assert all(out["s1_dates"] == out["s2_dates"] for out in shifted)


def test_seeds_differ_by_sample_epoch_repetition_step_and_rank():
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    draws = [sample_seed(*key).random() for key in keys]
    assert len(set(draws)) == 5 and sample_seed(0, "a", 0, 0).random() == draws[0]
    assert len({mask_seed(*key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))}) == 4


def make_batches(root, **changes):
    sources = [open_source(root)]
    plan = BatchPlan([read_layout(source) for source in sources], batch_size=4, seed=7)
    options = dict(patch_sizes=(1, 4, 8), max_tokens=64, augmentation=Augmentation(), seed=7)
    return TrainingBatches(sources, plan, CropLEMImageProcessor(), **options | changes)


def test_batches_do_not_depend_on_workers(sen12ms_tree):
    batches = make_batches(sen12ms_tree)
    runs = [
        list(torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(3, 12), num_workers=workers))
        for workers in (0, 1, 2)
    ]
    for one, other in [*zip(*runs[:2], strict=True), *zip(*runs[1:], strict=True)]:
        assert one["ids"] == other["ids"] and one["patch_size"] == other["patch_size"]
        assert one["inputs"].keys() == other["inputs"].keys()
        assert all(torch.equal(one["inputs"][key], other["inputs"][key]) for key in one["inputs"])


def test_processes_see_other_samples_of_the_same_shape(sen12ms_tree):
    whole = make_batches(sen12ms_tree)
    parts = [make_batches(sen12ms_tree, rank=rank, ranks=2) for rank in (0, 1)]
    for number in range(12):
        first, second = (part[number] for part in parts)
        assert sorted(first["ids"] + second["ids"]) == sorted(whole[number]["ids"])
        assert first["patch_size"] == second["patch_size"] and first["inputs"].keys() == second["inputs"].keys()
        assert all(first["inputs"][key].shape == second["inputs"][key].shape for key in first["inputs"])


def write_targets(path, ids, size=5):
    vectors = np.arange(len(ids) * size, dtype=np.float32).reshape(len(ids), size)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), size)
    pq.write_table(pa.table({"id": list(ids), "embedding": lists}), path)
    return dict(zip(ids, vectors, strict=True))


def test_samples_bring_their_vectors_from_outside(sen12ms_tree, tmp_path):
    ids = open_source(sen12ms_tree).ids
    targets = write_targets(tmp_path / "targets.parquet", ids[::2])
    batches = make_batches(sen12ms_tree, targets=targets)
    for number in range(4):
        batch = batches[number]
        for id, found in zip(batch["ids"], batch["inputs"]["latent_target"].numpy(), strict=True):
            np.testing.assert_array_equal(found, targets.get(id, np.full(5, np.nan)))
    assert "latent_target" not in make_batches(sen12ms_tree)[0]["inputs"]


def test_a_run_learns_vectors_from_outside(write, sen12ms_tree, tmp_path):
    write_targets(tmp_path / "targets.parquet", open_source(sen12ms_tree).ids)
    terms = {"latent_size": 5, "summary_weight": 0.1, "agreement_weight": 0.1, "pooling": "mean_std"}
    result, out = run(write(model=TINY | terms, latent_targets=str(tmp_path / "targets.parquet"), steps=3))
    assert result == "finished"
    assert Embedder.from_pretrained(out / "model").dim == 64
    AcceleratorState._reset_state(reset_partial_state=True)
    further = write(init_from=str(out / "model"), model=None, out=str(tmp_path / "further"), steps=2)
    assert run(further)[0] == "finished"


@pytest.mark.parametrize(
    ("size", "table", "message"),
    [(4, "targets.parquet", r"vectors \(5,\), but model.latent_size is 4"), (4, None, "latent_targets names no table"),
     (4, "none.parquet", "cannot be read as a table")],
)  # fmt: skip
def test_vectors_that_do_not_fit_are_refused(write, tmp_path, size, table, message):
    write_targets(tmp_path / "targets.parquet", ["a", "b"])
    path = None if table is None else str(tmp_path / table)
    with pytest.raises(DataError, match=message):
        run(write(model=TINY | {"latent_size": size}, latent_targets=path))


# The configuration


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rat": 1}, "unknown key learning_rat; the nearest is learning_rate"),
        ({"augmentation": {"flip": True}}, r"unknown key augmentation\.flip; the nearest is augmentation\.flips"),
        ({"sources": [{"paht": "x"}]}, r"unknown key sources\[0\]\.paht; the nearest is sources\[0\]\.path"),
        ({"sources": [{"weight": 1}]}, r"sources\[0\]\.path is missing"),
        ({"sources": []}, "sources is empty"),
        ({"sources": None}, "sources is missing"),
        ({"out": None}, "out is missing; or pass --out"),
        ({"steps": "many"}, "steps must be int, found 'many'"),
        ({"steps": 1.5}, "steps must be int, found 1.5"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": "fast"}, "learning_rate must be float, found 'fast'"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"crop_size": "big"}, "crop_size must be int or null"),
        ({"betas": [0.9]}, "betas must be two"),
        ({"mixed_precision": "fp8"}, "mixed_precision"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1"),
        ({"keep_best": True}, "keep_best needs a probe"),
        ({"probe": {"path": "x"}}, r"probe\.label is missing"),
        ({"probe": {"path": "x", "label": "y", "samples": 3}}, r"probe\.samples must be at least 10"),
        ({"model": 3}, "model must be dict"),
        ({"augmentation": {"hide_sensor": 2}}, r"augmentation\.hide_sensor must lie between 0 and 1, found 2"),
        ({"augmentation": {"radar_gain_db": -1}}, r"augmentation\.radar_gain_db must be at least 0"),
    ],
)
def test_a_wrong_configuration_is_refused(write, changes, message):
    path = write(**changes)
    with pytest.raises(DataError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model, message",
    [
        ({"hidden_sise": 32}, r"unknown key model\.hidden_sise; the nearest is model\.hidden_size"),
        ({"hidden_size": 33}, "hidden_size must be divisible by 16"),
        ({"hidden_size": "x"}, "hidden_size"),
    ],
)
def test_wrong_settings_of_the_model_are_refused(write, model, message):
    with pytest.raises(DataError, match=message):
        build_model(load_config(write(model=model)), None)


def test_yaml_and_json_are_read_alike(tmp_path):
    (tmp_path / "a.yaml").write_text("sources:\n  - path: x\n    s2_offset: 1000\nout: y\nlearning_rate: 1e-3\n")
    given = {"sources": [{"path": "x", "s2_offset": 1000}], "out": "y", "learning_rate": 0.001}
    (tmp_path / "a.json").write_text(json.dumps(given))
    one, other = load_config(tmp_path / "a.yaml"), load_config(tmp_path / "a.json")
    assert one == other and one.learning_rate == 0.001 and load_config(tmp_path / "a.yaml", out="z").out == "z"
    (tmp_path / "b.yaml").write_text("sources: [")
    with pytest.raises(DataError, match="neither YAML nor JSON"):
        load_config(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").write_text("just text")
    with pytest.raises(DataError, match="must hold keys"):
        load_config(tmp_path / "b.yaml")


def test_the_configuration_of_the_packaged_checkpoint_is_that_of_its_weights():
    config = load_config(Path(__file__).parents[1] / "scripts/pretrain_small.yaml")
    packaged = CropLEMConfig.from_pretrained(packaged_path()).to_dict()
    assert {key: packaged[key] for key in config.model} == config.model


def test_the_example_configuration_is_valid():
    config = load_config(Path(__file__).parents[1] / "scripts/pretrain_sen12ms.yaml")
    model, _ = build_model(config, None)
    assert config.steps * config.batch_size > 1e6 and model.config.hidden_size % model.config.num_attention_heads == 0


def test_the_schedule(write):
    config = load_config(write(steps=100, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.1))
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) < 0)
    assert rates[55] == pytest.approx(0.55) and 0.1 < rates[99] < 0.102
    assert learning_rate_at(0, load_config(write(warmup_steps=0))) == 3e-3


# Runs


def fixed_loss(folder, source):
    """Loss of a model over all samples, with the same masks for every model."""
    model = CropLEMForPreTraining.from_pretrained(folder).eval()
    processor = CropLEMImageProcessor.from_pretrained(folder)
    losses = []
    with torch.no_grad():
        for n in range(len(source)):
            generator = torch.Generator().manual_seed(n)
            losses.append(float(model(**processor(source[n]), patch_size=8, generator=generator).loss))
    return np.mean(losses)


def test_a_run_learns_and_leaves_a_model(write, sen12ms_tree, tmp_path):
    changes = {"batch_size": 8, "max_tokens": 128, "learning_rate": 1e-2, "picture_every": 50, "checkpoint_every": 50}
    result, out = run(write(steps=80, log_every=10, **changes))
    assert result == "finished"
    source = open_source(sen12ms_tree)
    fresh, processor = build_model(load_config(write()), None)
    fresh.save_pretrained(tmp_path / "fresh")
    processor.save_pretrained(tmp_path / "fresh")
    # The best constant for each band reaches 0.95 of the fresh model's loss.
    assert fixed_loss(out / "model", source) < 0.9 * fixed_loss(tmp_path / "fresh", source)
    rows = rows_of(out / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(10, 81, 10))
    cost = json.loads((out / "model/training.json").read_text())
    assert (cost["steps"], cost["samples"], cost["processes"], cost["device"]) == (80, 640, 1, "cpu")
    kept = json.loads((out / "checkpoints/step-00000050/state.json").read_text())["seconds"]
    assert 0 < kept < json.loads((out / "checkpoints/step-00000080/state.json").read_text())["seconds"] < 600
    assert all(float(row["loss"]) > 0 and 0 <= float(row["data_wait_percent"]) <= 100 for row in rows)
    assert {path.name for path in (out / "pictures").iterdir()} == {"step-00000050.png", "step-00000080.png"}
    # The centre is the mean embedding of the data, all of which this small set is.
    embedder = Embedder.from_pretrained(out / "model")
    means = [embedder.encode(list(source), centre=centre).mean(axis=0) for centre in (True, False)]
    assert np.abs(means[0]).max() < 1e-4 < 0.1 < np.abs(means[1]).max()
    # Its weights are otherwise those of the last checkpoint.
    last, model = (tensors(folder) for folder in (out / "checkpoints/step-00000080", out / "model"))
    different = [key for key in model if not torch.equal(model[key], last[key])]
    assert different == ["model.safetensors:croplem.embedding_centre"]


def test_only_the_newest_checkpoints_stay(write):
    _, out = run(write(checkpoint_every=2, keep_checkpoints=2))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]
    state = json.loads((out / "checkpoints/step-00000010/state.json").read_text())
    assert (state["step"], state["epoch"], state["next_batch"], state["world_size"]) == (10, 1, 4, 1)


def interrupt_at(monkeypatch, step, number):
    """From now on a run gets a signal at the start of a step, and so do its loaders, as from Ctrl-C in a terminal."""

    def rate(at, config):
        if at == step:
            for process in (*multiprocessing.active_children(), os):
                os.kill(process.pid if process is not os else os.getpid(), number)
        return learning_rate_at(at, config)

    monkeypatch.setattr(training, "learning_rate_at", rate)


def test_killed_and_interrupted_the_run_ends_bit_by_bit_as_if_it_had_not_been(write, tmp_path, monkeypatch, caplog):
    changes = {"gradient_accumulation_steps": 2, "picture_every": 5}
    _, unbroken = run(write(num_workers=2, **changes))
    config, out = write(num_workers=2, out=str(tmp_path / "broken"), **changes), tmp_path / "broken"
    (tmp_path / "driver.py").write_text(DRIVER)
    killed = launch(["--config", config], driver=[tmp_path / "driver.py", "6", "SIGKILL"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000004"]
    # What a kill in the middle of saving leaves is cleared away.
    shutil.copytree(out / "checkpoints/step-00000004", out / "checkpoints/step-00000008.tmp")
    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        interrupt_at(patch, 9, signal.SIGINT)
        assert main(["--config", str(config), "--resume"]) == 130
    assert "interrupted: stopped after step 10 of 12" in caplog.text and "same command goes on" in caplog.text
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000008", "step-00000010"]
    assert run(write(num_workers=0, out=str(out), **changes))[0] == "finished"
    assert_equal(unbroken, out)
    assert [int(row["step"]) for row in rows_of(out / "log.csv")] == [3, 6, 9, 12]


def test_shards_train_as_their_tree_does_and_resume(write, tmp_path, sen12ms_tree, monkeypatch):
    build_shards(sen12ms_tree, tmp_path / "shards", workers=1, progress=False)
    shards = [{"path": str(tmp_path / "shards")}]
    _, plan, _ = open_data(load_config(write()))
    _, packed, _ = open_data(load_config(write(sources=shards)))
    assert plan.items == packed.items and plan.batches_per_epoch == packed.batches_per_epoch
    _, unbroken = run(write(sources=shards, num_workers=2))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, signal.SIGINT)
        assert main(["--config", str(write(sources=shards, out=str(tmp_path / "broken"), num_workers=2))]) == 130
    _, broken = run(write(sources=shards, out=str(tmp_path / "broken")))
    assert_equal(unbroken, broken)


def test_sigterm_saves_too_and_handlers_are_put_back(write, monkeypatch, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, signal.SIGTERM)
        assert main(["--config", str(write())]) == 130
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_time_limit_stops_with_a_checkpoint(write):
    config = write(time_limit_minutes=1e-9)
    result, out = run(config)
    assert result == "time limit" and [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000001"]
    assert run(write(time_limit_minutes=1e-9))[0] == "time limit"
    assert run(write())[0] == "finished"
    unbroken = out.with_name("unbroken")
    run(write(out=str(unbroken)))
    assert_equal(unbroken, out)


def test_a_checkpoint_of_another_run_is_refused(write, tmp_path):
    run(write(steps=4))
    with pytest.raises(CheckpointError, match=r"differs in learning_rate \(0\.003 there, 0\.1 now\), seed"):
        run(write(steps=4, seed=1, learning_rate=0.1))
    generate_sen12ms(tmp_path / "other", seed=5, size=64, scenes=2)
    with pytest.raises(CheckpointError, match="the items of the sources"):
        run(write(steps=4, sources=[{"path": str(tmp_path / "other")}]))
    assert run(write(steps=4, log_every=1, num_workers=1), resume=True)[0] == "finished"
    assert run(write(steps=4, seed=1), resume=False)[0] == "finished"
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        run(write(out=str(tmp_path / "nothing")), resume=True)


def test_the_same_tree_elsewhere_goes_on(write, tmp_path, sen12ms_tree):
    run(write(steps=4))
    shutil.copytree(sen12ms_tree, tmp_path / "moved")
    assert run(write(steps=4, sources=[{"path": str(tmp_path / "moved")}]), resume=True)[0] == "finished"


def test_a_run_starts_from_a_checkpoint(write, tmp_path):
    _, out = run(write(steps=2))
    config = load_config(write(model=None, init_from=str(out / "model"), steps=1, out=str(tmp_path / "more")))
    model, _ = build_model(config, None)
    saved = {key.split(":")[1]: value for key, value in tensors(out / "model").items()}
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert train(config) == "finished"


def test_a_loss_that_is_not_finite_stops_the_run(write, tmp_path):
    config = write(learning_rate=1e30, warmup_steps=0, checkpoint_every=1)
    with pytest.raises(CropLEMError, match=r"step \d+: the (loss|gradient's norm) is (nan|inf).*this batch: ROIs"):
        run(config)
    kept = tensors(max((tmp_path / "run/checkpoints").iterdir()))
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert not (tmp_path / "run/model").exists()


def test_a_damaged_file_is_replaced_reported_once_and_costs_nothing(write, tmp_path, caplog):
    tree = generate_sen12ms(tmp_path / "damaged", size=64, defects=True)
    result, out = run(write(sources=[{"path": str(tree)}], steps=18, num_workers=2))
    assert result == "finished"
    skipped = rows_of(out / "skipped.csv")
    source = open_source(tree)
    bad = []
    for n, id in enumerate(source.ids):
        try:
            source[n]
        except DataError:
            bad.append(id)
    assert [row["id"] for row in skipped] == bad and len(bad) == 1
    assert "tif" in skipped[0]["reason"]
    assert [record.message for record in caplog.records if "skipped" in record.message] == [
        f"skipped {bad[0]}: {skipped[0]['reason']}"
    ]
    batches = make_batches(tree)
    assert all(len(batches[n]["ids"]) == 4 and bad[0] not in batches[n]["ids"] for n in range(18))
    numbers = [n for n in range(18) if batches[n]["bad"]]
    assert numbers and batches[numbers[0]]["ids"] == make_batches(tree)[numbers[0]]["ids"]


def test_a_bucket_of_one_damaged_item_borrows_from_the_others(tmp_path, sen12ms_tree):
    shutil.copytree(sen12ms_tree, tmp_path / "tree")
    source = open_source(tmp_path / "tree")
    only = [n for n in range(len(source)) if "s2" not in source.paths(n)]
    for n in only:
        source.paths(n)["s1"].write_bytes(b"")
    batches = make_batches(tmp_path / "tree", augmentation=STILL)
    found = [batches[n] for n in range(12)]
    assert all(len(batch["ids"]) == 4 and batch["inputs"] is not None for batch in found)
    assert {id for batch in found for id, _ in batch["bad"]} == {source.ids[n] for n in only}


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_is_mostly_damaged_stops_the_run(write, tmp_path, sen12ms_tree, workers):
    shutil.copytree(sen12ms_tree, tmp_path / "tree")
    for file in sorted((tmp_path / "tree").rglob("*_s1_*.tif"))[6:]:
        file.write_bytes(b"no image")
    for file in sorted((tmp_path / "tree").rglob("*_s2_*.tif"))[6:]:
        file.write_bytes(b"no image")
    config = write(sources=[{"path": str(tmp_path / "tree")}], steps=40, num_workers=workers)
    with pytest.raises(DataError, match=r"step \d+: \d+ of \d+ items that were tried cannot be used.*tif"):
        run(config)


def test_series_and_patches_train_together(write, tmp_path, real_data):
    sources = [
        {"path": str(real_data / "series/series.parquet"), "s2_level": "L2A", "weight": 0.002,
         "where": {"source": ["worldcereal_france_2022", "dea_cropmask_2019"]}},
        {"path": str(real_data / "sen12ms")},
    ]  # fmt: skip
    result, out = run(write(sources=sources, steps=20, num_workers=0, crop_size=64))
    assert result == "finished" and (out / "pictures/step-00000020.png").is_file()
    _, plan, _ = open_data(load_config(write(sources=sources, crop_size=64)))
    assert plan.items == 498 + 17_681 + 6


def test_mixed_precision_and_a_single_patch_size(write):
    config = write(mixed_precision="bf16", model=TINY | {"train_patch_sizes": [8]}, steps=3, log_every=1)
    result, out = run(config)
    assert result == "finished"
    assert all(value.dtype == torch.float32 for value in tensors(out / "model").values())
    AcceleratorState._reset_state(reset_partial_state=True)
    changes = {"mixed_precision": "no", "out": str(out.with_name("whole")), "log_every": 1}
    _, whole = run(write(model=TINY | {"train_patch_sizes": [8]}, steps=3, **changes))
    half, full = (float(rows_of(folder / "log.csv")[0]["loss"]) for folder in (out, whole))
    assert half != full and half == pytest.approx(full, rel=0.02)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(CheckpointError, match="mixed_precision"):
        run(write(mixed_precision="no", model=TINY | {"train_patch_sizes": [8]}, steps=3))


def test_the_number_of_processes_is_checked(write):
    with pytest.raises(DataError, match=r"expected_processes is 2.*torchrun --standalone --nproc_per_node 2"):
        run(write(expected_processes=2))


def test_the_command_explains_itself(write, tmp_path, capsys):
    for arguments, said in (([], "--config"), (["--config", "x", "--resume", "--fresh"], "not allowed with")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2 and "usage: pretrain" in (error := capsys.readouterr().err) and said in error
    for config, said in (
        (tmp_path / "missing.yaml", "no such configuration file"),
        (write("b.json", stepz=3), "unknown key stepz; the nearest is steps"),
        (write("c.json", sources=[{"path": str(tmp_path / "no data")}]), "no such file or folder"),
        (write("d.json", sources=[{"path": str(tmp_path)}]), "no SEN12MS patch"),
    ):
        assert main(["--config", str(config)]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("pretrain: ") and said in error


def test_the_script_is_the_command(monkeypatch, capsys):
    script = Path(__file__).parents[1] / "scripts/pretrain.py"
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == 2 and "usage: pretrain" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_bit_by_bit(write, tmp_path, caplog):
    config = write(
        gradient_accumulation_steps=2, num_workers=1, expected_processes=2, steps=8, checkpoint_every=2,
        keep_checkpoints=9, augmentation={"hide_sensor": 0.7},
    )  # fmt: skip
    unbroken = tmp_path / "run"
    done = launch(["--config", config], processes=2, driver=["-m", "croplem_hf.training"])
    assert done.returncode == 0, done.stderr
    assert "start: processes: 2" in done.stderr and done.stderr.count("finished") == 1
    state = json.loads((unbroken / "checkpoints/step-00000008/state.json").read_text())
    assert state["world_size"] == 2

    (tmp_path / "driver.py").write_text(DRIVER)
    arguments = ["--config", config, "--out", tmp_path / "broken"]
    killed = launch(arguments, processes=2, driver=[tmp_path / "driver.py", "5", "SIGKILL"])
    names = sorted(path.name for path in (tmp_path / "broken/checkpoints").iterdir())
    assert killed.returncode != 0 and names == ["step-00000002", "step-00000004"]
    shutil.copytree(tmp_path / "broken", tmp_path / "alone")
    done = launch([*arguments, "--resume"], processes=2, driver=["-m", "croplem_hf.training"])
    assert done.returncode == 0, done.stderr
    assert_equal(unbroken, tmp_path / "broken")

    # One process that does the work of both in turn, and averages, gets the same weights but for rounding.
    loaded = load_config(config)
    model, processor = build_model(loaded, None)
    optimizer = build_optimizer(model, loaded)
    sources, plan, _ = open_data(loaded)
    batches = [
        TrainingBatches(
            sources, plan, processor, patch_sizes=model.config.train_patch_sizes, max_tokens=loaded.max_tokens,
            augmentation=loaded.augmentation, seed=loaded.seed, rank=rank, ranks=2,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    sensors = set()
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, loaded)
        for number in (2 * step, 2 * step + 1):
            for rank in (0, 1):
                batch = batches[rank][number]
                sensors.add(tuple(s for s in ("s1", "s2") if f"{s}_values" in batch["inputs"]))
                generator = torch.Generator().manual_seed(mask_seed(loaded.seed, number, rank))
                output = model(**batch["inputs"], patch_size=batch["patch_size"], generator=generator)
                (output.loss / 4).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), loaded.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 2 == 0:
            reached = load_file(unbroken / f"checkpoints/step-{step + 1:08d}/model.safetensors")
            assert all(torch.allclose(value, model.state_dict()[key], atol=2e-5) for key, value in reached.items())
    assert sensors == {("s1",), ("s2",), ("s1", "s2")}

    # Another number of processes goes on at the same step, and says what changed.
    alone = write(
        gradient_accumulation_steps=2, num_workers=0, steps=8, checkpoint_every=2, keep_checkpoints=9,
        augmentation={"hide_sensor": 0.7}, out=str(tmp_path / "alone"),
    )  # fmt: skip
    assert run(alone)[0] == "finished"
    said = [record.message for record in caplog.records if "written by 2 processes" in record.message]
    assert len(said) == 1 and "now there are 1" in said[0] and "step 5" in said[0]


# Process 1 gets values that are not numbers in the fourth batch.
POISON = """
import os, sys
from croplem_hf import augment, training
original = augment.TrainingBatches.__getitem__
def item(self, number):
    batch = original(self, number)
    if number == 3 and self.rank == 1:
        batch["inputs"]["gsd"] = batch["inputs"]["gsd"] * float("nan")
    return batch
augment.TrainingBatches.__getitem__ = item
sys.exit(training.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "BUG"])
def test_loaders_neither_die_early_nor_keep_a_run_alive(write, tmp_path, name, processes):
    (tmp_path / "driver.py").write_text(DRIVER)
    config = write(num_workers=2, checkpoint_every=3, steps=9)
    done = launch(["--config", config], driver=[tmp_path / "driver.py", "4", name], processes=processes)
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    if name == "BUG":
        assert done.returncode == 1 and "AttributeError" in done.stderr and names == ["step-00000003"]
    else:
        assert done.returncode == (130 if processes == 1 else 1) and names == ["step-00000003", "step-00000005"]
        assert done.stderr.count("interrupted: stopped after step 5 of 9") == 1
        assert "DataLoader worker" not in done.stderr


@pytest.mark.slow
def test_what_one_of_two_processes_meets_stops_or_reaches_both(write, tmp_path):
    tree = generate_sen12ms(tmp_path / "damaged", size=64, defects=True)
    config = write(sources=[{"path": str(tree)}], steps=12, num_workers=1, checkpoint_every=2)
    (tmp_path / "poison.py").write_text(POISON)
    done = launch(["--config", config], processes=2, driver=[tmp_path / "poison.py"])
    loaded = load_config(config)
    sources, plan, _ = open_data(loaded)
    ids = [
        TrainingBatches(
            sources, plan, CropLEMImageProcessor(), patch_sizes=(1, 2, 4, 8, 16), max_tokens=loaded.max_tokens,
            augmentation=loaded.augmentation, seed=loaded.seed, rank=rank, ranks=2,
        )[3]["ids"]
        for rank in (0, 1)
    ]  # fmt: skip
    assert done.returncode != 0
    for process in ("pretrain:", "pretrain (process 1):"):
        line = next(line for line in done.stderr.splitlines() if process in line)
        assert "step 4: the loss is nan" in line and ", ".join(ids[1]) + ". Try" in line
        assert not set(ids[0]) - set(ids[1]) or ids[0][0] not in line
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]

    # Ctrl-C reaches the launcher, which hands it on.
    config = write(sources=[{"path": str(tree)}], steps=2000, num_workers=1, log_every=1, out=str(tmp_path / "long"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.Popen(
        [*command, "-m", "croplem_hf.training", "--config", str(config)], env=ENVIRONMENT, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    lines = []
    for line in process.stderr:
        lines.append(line)
        if " step 5/2000" in line:
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait() != 0
    process.stderr.close()
    said = [line for line in lines if "interrupted: stopped after step" in line]
    assert len(said) == 1
    step = int(said[0].split("after step ")[1].split()[0])
    assert (tmp_path / f"long/checkpoints/step-{step:08d}/state.json").is_file()
    # Both processes met the damaged file in the epochs so far, and it is told once.
    assert sum("skipped ROIs" in line for line in lines) == 1
