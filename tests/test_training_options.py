"""What a pretraining run can be told besides its data: averages, probe, trackers, presets, ViTMAE, checkpointing."""

import csv
import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pretraining_runs import TINY
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

from croplem_hf import (
    CropLEMConfig,
    CropLEMForPreTraining,
    CropLEMImageProcessor,
    build_shards,
    generate_sen12ms,
    open_source,
)
from croplem_hf.errors import CropLEMError, DataError
from croplem_hf.training import load_bad_batch, load_config, main, train
from croplem_hf.training_config import ProbeConfig
from croplem_hf.training_ema import WeightAverage
from croplem_hf.training_files import best_score
from croplem_hf.training_probe import Probe
from croplem_hf.training_setup import build_model, open_data

VIT = TINY | {"num_hidden_layers": 2}


pytestmark = pytest.mark.usefixtures("single_thread")


def run(config):
    loaded = load_config(config)
    return train(loaded), Path(loaded.out)


def tensors(folder):
    return load_file(folder / "model.safetensors")


def rows_of(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def losses(out):
    return [float(row["loss"]) for row in rows_of(out / "log.csv")]


def test_an_average_of_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = WeightAverage(model, 0.5)
    for step, value in enumerate((2.0, 3.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(step)
    first = 0.1 * 1 + 0.9 * 2
    expected = 2 / 11 * first + 9 / 11 * 3
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 3.0
    again = WeightAverage(model, 0.5, average.averages)
    assert torch.equal(again.averages["weight"], average.averages["weight"])


def probe_of(real_data, **changes):
    return {
        "path": str(real_data / "series/series.parquet"), "label": "cropland", "group": "block", "samples": 200,
        "where": {"source": ["itu_cropland_2023"]},
    } | changes  # fmt: skip


def test_a_probe_is_logged_changes_nothing_and_keeps_the_best(write, tmp_path, real_data):
    _, bare = run(write(steps=6, log_every=2))
    config = write(
        steps=6, log_every=2, probe=probe_of(real_data), probe_every=2, keep_best=True, keep_checkpoints=1,
        out=str(tmp_path / "probed"), trackers=["tensorboard"],
    )  # fmt: skip
    _, out = run(config)
    scores = [float(row["probe"]) for row in rows_of(out / "log.csv")]
    assert len(scores) == 3 and all(0.4 < score < 1 for score in scores)
    best = json.loads((out / "best/probe.json").read_text())
    assert best["value"] == max(scores) and best["step"] == 2 * (1 + int(np.argmax(scores)))
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000006"]
    a, b = tensors(bare / "model"), tensors(out / "model")
    assert all(torch.equal(a[key], b[key]) for key in a) and losses(bare) == losses(out)
    kept = CropLEMForPreTraining.from_pretrained(out / "best")
    again = Probe(load_config(config).probe).score(kept.croplem, CropLEMImageProcessor.from_pretrained(out / "best"))
    assert again == best["value"]
    assert list((out / "trackers").rglob("events.out.tfevents*"))


@pytest.fixture
def scores(monkeypatch):
    """A probe that gives these scores in turn."""
    scores = []

    class Fake:
        metric = "AUC"

        def __init__(self, config):
            pass

        def score(self, model, processor):
            return scores.pop(0)

    monkeypatch.setattr("croplem_hf.training_outputs.Probe", Fake)
    return scores


def test_a_model_that_scores_less_does_not_replace_the_best(write, tmp_path, scores, caplog):
    scores += [0.7, 0.5, 0.6]
    settings = {"steps": 6, "probe_every": 2, "keep_best": True, "checkpoint_every": 2}
    probe = {"path": "labelled.parquet", "label": "cropland", "group": "block"}
    _, out = run(write(probe=probe, **settings))
    best = json.loads((out / "best/probe.json").read_text())
    assert (best["step"], best["value"]) == (2, 0.7)
    kept, then = tensors(out / "best"), tensors(out / "checkpoints/step-00000002")
    assert all(torch.equal(kept[key], then[key]) for key in then if not key.endswith("embedding_centre"))
    # The score of another probe is no measure for this one.
    assert best_score(out, best["probe"]) == 0.7
    assert best_score(out, best["probe"] | {"samples": 5}) == float("-inf")
    assert "chosen by another probe" in caplog.text


def test_a_probe_compares_around_the_mean(monkeypatch):
    """Far from the origin all directions are alike, and what tells the labels apart lies along the common one."""
    side = np.repeat([-1.0, 1.0], 60)

    class Source:
        ids = [f"p{n}" for n in range(120)]

        def __len__(self):
            return 120

        def columns(self):
            return {"label": (side > 0).tolist(), "group": [str(n % 2) for n in range(120)]}

    monkeypatch.setattr("croplem_hf.training_config.open_source", lambda *args, **kwargs: Source())
    probe = Probe(ProbeConfig(path="x", label="label", group="group"))
    vectors = np.stack([100 + side, np.random.default_rng(0).normal(size=120)], axis=1)[probe.rows]
    assert all(probe._score(vectors, *fold) > 0.95 for fold in probe.folds)


def test_no_group_of_a_probe_is_on_both_sides(real_data):
    for group, parts in (("block", 5), ("region", 2)):
        probe = Probe(ProbeConfig(**probe_of(real_data, group=group)))
        assert len(probe.folds) == parts and probe.metric == "AUC" and len(probe.rows) == 200
        assert all(not set(probe.groups[train]) & set(probe.groups[test]) for train, test in probe.folds)
    assert np.array_equal(probe.rows, Probe(ProbeConfig(**probe_of(real_data, group="region"))).rows)
    with pytest.raises(DataError, match="has no column 'crops'"):
        Probe(ProbeConfig(**probe_of(real_data, label="crops")))
    with pytest.raises(DataError, match="leave no part to test on"):
        Probe(ProbeConfig(**probe_of(real_data, group="source")))


def test_a_bad_batch_is_kept_and_gives_its_loss_again(write, tmp_path):
    with pytest.raises(CropLEMError, match=r"bad_batch-step-\d{8}-rank-0-part-0\.safetensors") as caught:
        run(write(learning_rate=1e30, warmup_steps=0, checkpoint_every=1, keep_checkpoints=99))
    out = tmp_path / "run"
    inputs, record = load_bad_batch(next(out.glob("bad_batch-*.safetensors")))
    assert all(id in str(caught.value) for id in record["ids"]) and len(record["ids"]) == 4
    model = CropLEMForPreTraining.from_pretrained(out / f"checkpoints/step-{record['step'] - 1:08d}")
    generator = torch.Generator().manual_seed(record["mask_seed"])
    loss = model(**inputs, patch_size=record["patch_size"], generator=generator).loss
    if "loss" in record["reason"]:
        assert not torch.isfinite(loss)
    else:
        loss.backward()
        assert not all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_an_unknown_tracker_is_refused(write):
    with pytest.raises(DataError, match="trackers: 'wandbee' is not installed"):
        run(write(trackers=["wandbee"]))


def test_activation_checkpointing_changes_no_bit(write, tmp_path):
    model = TINY | {"hidden_dropout_prob": 0.1}
    _, one = run(write(steps=4, log_every=1, model=model))
    changes = {"activation_checkpointing": True, "out": str(tmp_path / "other")}
    _, other = run(write(steps=4, log_every=1, model=model, **changes))
    assert losses(one) == losses(other) and len(losses(one)) == 4
    built, _ = build_model(load_config(write(activation_checkpointing=True)), None)
    assert all(layer.gradient_checkpointing for layer in (*built.croplem.layers, *built.decoder.layers))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch, while it looks at inputs
def test_compiled_layers_give_the_losses_of_the_others(write):
    models = [build_model(load_config(write(compile=compile)), None)[0] for compile in (False, True)]
    torch._dynamo.utils.counters.clear()
    source = open_source(load_config(write()).sources[0].path)
    samples = CropLEMImageProcessor()([source[0], source[1]])
    for p in (8, 16):
        losses = [m(**samples, patch_size=p, generator=torch.Generator().manual_seed(1)).loss for m in models]
        for loss in losses:
            loss.backward()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_presets():
    nano, small, base = (CropLEMConfig.preset(name) for name in ("nano", "small", "base"))
    assert nano.to_dict() == CropLEMConfig().to_dict()
    assert (small.hidden_size, small.num_hidden_layers) == (384, 12)
    assert (base.hidden_size, base.num_attention_heads) == (768, 12)
    assert CropLEMConfig.preset("base", mask_ratio=0.5).mask_ratio == 0.5
    with pytest.raises(ValueError, match="preset must be one of nano, small, base, found 'huge'"):
        CropLEMConfig.preset("huge")


def test_a_preset_in_the_configuration(write):
    config = load_config(write(model={"preset": "small", "num_hidden_layers": 1}))
    model, _ = build_model(config, None)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (384, 1)
    with pytest.raises(DataError, match=r"model\.preset must be one of"):
        build_model(load_config(write(model={"preset": "large"})), None)


def test_a_vitmae_gives_its_blocks(write, tmp_path, caplog):
    torch.manual_seed(5)
    native = ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=16, layer_norm_eps=1e-12, **VIT))
    native.save_pretrained(tmp_path / "vitmae")
    with caplog.at_level("INFO"):
        model, _ = build_model(load_config(write(model=None, init_from=str(tmp_path / "vitmae"))), None)
    assert model.config.layer_norm_eps == 1e-12
    assert "tensors copied" in caplog.text and "croplem.embeddings.projection.s1" in caplog.text
    x = torch.randn(2, 5, 32)
    layers = (model.croplem.layers, native.vit.layers), (model.decoder.layers, native.decoder.decoder_layers)
    for ours, theirs in layers:
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a(x), b(x))
    assert torch.equal(model.decoder.decoder_embed(x), native.decoder.decoder_embed(x))
    # Another decoder keeps its own weights; another width is refused.
    given = {"init_from": str(tmp_path / "vitmae"), "model": {"decoder_hidden_size": 16}}
    other, _ = build_model(load_config(write(**given)), None)
    assert torch.equal(other.croplem.layers[1](x), native.vit.layers[1](x))
    with pytest.raises(DataError, match=r"hidden_size \(32 there, 384 in model\)"):
        build_model(load_config(write(**given | {"model": {"preset": "small"}})), None)
    assert run(write(model=None, init_from=str(tmp_path / "vitmae"), steps=1))[0] == "finished"


def test_settings_beside_a_checkpoint_are_refused(write, tmp_path):
    CropLEMForPreTraining(CropLEMConfig(**TINY)).save_pretrained(tmp_path / "ours")
    with pytest.raises(DataError, match="exclude each other"):
        build_model(load_config(write(init_from=str(tmp_path / "ours"))), None)


def test_shards_a_tree_and_a_table_in_one_run(write, tmp_path, sen12ms_tree, real_data):
    build_shards(sen12ms_tree, tmp_path / "shards", workers=1, progress=False)
    generate_sen12ms(tmp_path / "sample", seed=9, size=32, scenes=2)
    series = {"path": str(real_data / "series/series.parquet"), "s2_level": "L2A", "weight": 0.05,
              "where": {"source": ["worldcereal_france_2022"]}}  # fmt: skip
    folder = {"path": str(real_data / "terramesh"), "weight": 4.0}
    kinds = ["shards", "series", "sen12ms"]
    sources = [{"path": str(tmp_path / "shards"), "weight": 0.5}, series, {"path": str(tmp_path / "sample")}]
    if (real_data / "terramesh/metadata.csv").is_file():
        sources, kinds = [*sources, folder], [*kinds, "folder"]
    config = write(sources=sources, steps=16, crop_size=32, log_every=1)
    found, plan, _ = open_data(load_config(config))
    assert [source.kind for source in found][: len(kinds) - 1] == kinds[: len(kinds) - 1]
    batches = [plan.batch(n) for n in range(plan.batches_per_epoch)]
    assert {int(source) for batch in batches for source in batch[:, 0]} == set(range(len(sources)))
    # A batch is of one image size, so that nothing is padded.
    assert all(len(np.unique(plan.shapes(batch)[:, 2:], axis=0)) == 1 for batch in batches)
    result, out = run(config)
    assert result == "finished" and np.isfinite(losses(out)).all()


def test_the_trainer_of_transformers(tmp_path, sen12ms_tree):
    """One step; a collator of the processor, since samples are dicts of arrays, and no column is to be removed."""
    torch.manual_seed(0)
    model = CropLEMForPreTraining(CropLEMConfig(**TINY))
    before = model.croplem.layers[0].mlp.fc1.weight.detach().clone()
    processor, source = CropLEMImageProcessor(), open_source(sen12ms_tree)
    samples = [source[n] for n in range(8) if source[n]["s1"] is not None and source[n]["s2"] is not None]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, remove_unused_columns=False,
        report_to=[], use_cpu=True, save_strategy="no", dataloader_pin_memory=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, data_collator=lambda x: dict(processor(x)), train_dataset=samples)
    done = trainer.train()
    assert np.isfinite(done.training_loss) and not torch.equal(before, model.croplem.layers[0].mlp.fc1.weight)
    trainer.save_model(str(tmp_path / "saved"))
    assert load_file(tmp_path / "saved/model.safetensors").keys() == model.state_dict().keys()


def test_the_command_logs_that_the_model_is_an_average(write, caplog):
    with caplog.at_level("INFO"):
        assert main(["--config", str(write(steps=2, ema_decay=0.9, trackers=[]))]) == 0
    assert "weights averaged over the run, ema_decay 0.9" in caplog.text


def test_a_bad_gradient_keeps_all_parts_of_the_step(write, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", lambda *args: torch.tensor(float("inf")))
    with pytest.raises(CropLEMError, match="step 1: the gradient's norm is inf") as caught:
        run(write(gradient_accumulation_steps=3))
    files = sorted((tmp_path / "run").glob("bad_batch-*.safetensors"))
    assert [file.stem for file in files] == [f"bad_batch-step-00000001-rank-0-part-{part}" for part in range(3)]
    ids = [load_bad_batch(file)[1]["ids"] for file in files]
    assert len(ids[0]) == 4 and all(name in str(caught.value) for part in ids for name in part)


def test_a_probe_of_a_certain_day_is_kept_with_the_best(tmp_path, write, monkeypatch):
    class Certain:
        metric = "AUC"

        def __init__(self, config):
            assert config.where == {"day": [datetime.date(2019, 7, 1)]}

        def score(self, *_):
            return 0.75

    monkeypatch.setattr("croplem_hf.training_outputs.Probe", Certain)
    config = write(steps=2, probe={"path": "x", "label": "y", "where": {"day": ["DAY"]}}, probe_every=1, keep_best=True)
    config.write_text(config.read_text().replace('"DAY"', "2019-07-01"))
    assert run(config)[0] == "finished"
    record = json.loads((tmp_path / "run/best/probe.json").read_text())
    # The same score at the second step is no better: it is the same probe.
    assert record["step"] == 1 and record["probe"]["where"] == {"day": ["2019-07-01"]}


def test_a_setting_that_is_refused_with_a_vitmae(write, tmp_path):
    ViTMAEForPreTraining(ViTMAEConfig(image_size=32, patch_size=16, **VIT)).save_pretrained(tmp_path / "vitmae")
    for model in ({"pooling": "most"}, {"mask_ratio": "much"}):
        with pytest.raises(DataError, match="model: .*(pooling|mask_ratio)"):
            run(write(model=model, init_from=str(tmp_path / "vitmae")))


def test_vectors_to_tell_that_changed_are_another_run(write, tmp_path, sen12ms_tree):
    ids, path = open_source(sen12ms_tree).ids, tmp_path / "targets.parquet"
    config = write(model=TINY | {"latent_size": 4, "latent_weight": 1.0}, latent_targets=str(path), steps=4)
    for seed, message in ((0, None), (0, None), (1, "differs in the items of the sources, or latent_targets")):
        vectors = np.random.default_rng(seed).normal(size=(len(ids), 4)).astype(np.float32)
        pq.write_table(pa.table({"id": ids, "embedding": list(vectors)}), path)
        if message is None:
            assert run(config)[0] == "finished"
        else:
            with pytest.raises(CropLEMError, match=message):
                run(config)
