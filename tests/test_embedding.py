"""The embedder: the same vector for the same sample in any company, and a table that survives bad items and kills."""

import csv
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, strategies as st

from croplem_hf import Embedder, embedding_inputs, make_sample, open_source, packaged_path, read_table
from croplem_hf.cli import main
from croplem_hf.data import generate_sen12ms
from croplem_hf.embedding import default_patch_size, weights_hash
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.model import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, CropLEMModel

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained(packaged_path(), device="cpu")


def sample(name="a", *, t1=1, t2=1, size=(16, 16), seed=0, level="L1C", **change):
    """A sample of random values with T1 radar and T2 optical dates; 0 for none."""
    rng = np.random.default_rng(seed)
    fields = {"id": name}
    if t1:
        fields |= {"s1": rng.normal(-14, 4, (t1, 2, *size)), "s1_dates": [f"2019-{k % 12 + 1:02d}-03" for k in range(t1)]}  # noqa: E501
    if t2:
        fields |= {"s2": rng.integers(1, 6000, (t2, 13, *size)).astype(np.uint16), "s2_level": level}
        fields["s2_dates"] = [f"2019-{k % 12 + 1:02d}-17" for k in range(t2)]
    return make_sample(**(fields | change))


@st.composite
def samples(draw):
    """Any number of dates and pixels, either sensor absent, bands, dates and pixels missing."""
    t1, t2 = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any))
    size = draw(st.sampled_from([(1, 1), (3, 2), (9, 9), (17, 20), (40, 33)]))
    s = sample(t1=t1, t2=t2, size=size, seed=draw(st.integers(0, 2**32 - 1)), level=draw(st.sampled_from(["L1C", "L2A"])))  # noqa: E501
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fields = {k: v for k, v in s.items() if k.startswith(("s1", "s2")) and v is not None} | {"id": "x"}
    for sensor in ("s1", "s2"):
        if sensor in fields:
            values = fields[sensor].astype(np.float32)
            values[rng.random(len(values)) < draw(st.sampled_from([0, 0.4]))] = np.nan
            if sensor == "s2":
                values[:, rng.random(13) < draw(st.sampled_from([0, 0.3]))] = np.nan
            fields[sensor] = values
            fields[f"{sensor}_valid"] = rng.random((len(values), *size)) >= draw(st.sampled_from([0, 0.2]))
    try:
        return make_sample(gsd=draw(st.sampled_from([5.0, 10.0, 30.0])), **fields)
    except DataError:
        assume(False)


# One encode


@given(st.lists(samples(), min_size=1, max_size=5), st.sampled_from([None, 4, 8]), st.randoms(use_true_random=False))
def test_an_embedding_depends_on_its_own_sample_alone(embedder, batch, patch_size, random):
    alone = np.stack([embedder.encode(s, patch_size=patch_size) for s in batch])
    assert alone.shape == (len(batch), embedder.dim) and alone.dtype == np.float32 and np.isfinite(alone).all()
    order = random.sample(range(len(batch)), len(batch))
    together = embedder.encode([batch[k] for k in order], patch_size=patch_size)
    np.testing.assert_allclose(together, alone[order], **CLOSE)
    assert embedder.encode([batch[k] for k in order], patch_size=patch_size).tobytes() == together.tobytes()


@pytest.mark.parametrize(
    ("tokens", "chunk", "values"), [(1, 512, 2**26), (64, 3, 2**26), (8192, 512, 1), (10**6, 7, 5000)]
)
def test_the_size_of_batches_and_chunks_changes_nothing(embedder, monkeypatch, tokens, chunk, values):
    batch = [sample(t1=k % 3, t2=2 - k % 2, size=(8 + k % 2, 8), seed=k) for k in range(20)]
    expected = embedder.encode(batch)

    monkeypatch.setattr(embedding_inputs, "CHUNK", chunk)
    monkeypatch.setattr(embedding_inputs, "CHUNK_VALUES", values)
    np.testing.assert_allclose(embedder.encode(batch, tokens_per_batch=tokens), expected, **CLOSE)


@pytest.mark.parametrize(("chunk", "values", "most"), [(4, 2**26, 4), (512, 2000, 3)])
def test_no_more_is_held_in_memory_than_a_chunk(embedder, tmp_path, monkeypatch, chunk, values, most):
    monkeypatch.setattr(embedding_inputs, "CHUNK", chunk)
    monkeypatch.setattr(embedding_inputs, "CHUNK_VALUES", values)
    source = Source([sample(size=(8, 8))] * 10)  # of 960 values each
    processor, waiting = embedder.processor, []

    class Counting:
        to_dict = processor.to_dict

        def __call__(self, samples, **kwargs):
            waiting.append(len(source.read) - sum(waiting))
            return processor(samples, **kwargs)

    monkeypatch.setattr(embedder, "processor", Counting())
    embedder.encode(source[k] for k in range(10))
    assert max(waiting) == most and sum(waiting) == 10
    source.read, waiting = [], []
    embedder.embed_source(source, tmp_path / "e.parquet", progress=False)
    assert max(waiting) == most and sum(waiting) == 10


@pytest.mark.parametrize("sensor", ["s1", "s2"])
def test_a_dropped_sensor_is_absent_and_not_zero(embedder, sensor):
    both = sample(t1=2, t2=2)
    other = {"s1": "s2", "s2": "s1"}[sensor]
    dropped = embedder.encode(both, sensors=[sensor])
    np.testing.assert_allclose(dropped, embedder.encode(both | {other: None}), **CLOSE)
    zeros = embedder.encode(both | {other: np.zeros_like(both[other])})
    assert np.abs(dropped - zeros).max() > 0.05
    assert np.abs(dropped - embedder.encode(both)).max() > 0.05
    assert np.array_equal(embedder.encode(both, sensors=["s2", "s1"]), embedder.encode(both))
    one, two, none = (embedder.info("patch", sensors=s) for s in (["s2"], ["s2", "s1"], None))
    assert one != two == none


@pytest.mark.parametrize(("size", "patch_size"), [(120, 16), (17, 8)])
def test_sizes_that_the_patch_does_not_divide(embedder, size, patch_size):
    whole = -(-size // patch_size) * patch_size
    odd = sample(size=(size, size))
    padded = {key: np.pad(odd[key].astype(float), [(0, 0), (0, 0), *[(0, whole - size)] * 2], constant_values=np.nan)
              for key in ("s1", "s2")}  # fmt: skip
    same = sample(size=(whole, whole), **padded)
    np.testing.assert_allclose(
        embedder.encode(odd, patch_size=patch_size), embedder.encode(same, patch_size=patch_size), **CLOSE
    )


def test_two_dates_of_one_pixel(embedder):
    vectors = embedder.encode([sample(t1=0, t2=2, size=(1, 1), seed=k) for k in range(3)])
    assert vectors.shape == (3, embedder.dim) and np.isfinite(vectors).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_forms_of_input(embedder):
    batch = [sample(str(k), seed=k) for k in range(3)]
    vectors = embedder.encode(batch)
    assert vectors.shape == (3, embedder.dim) and embedder.encode(batch[0]).shape == (embedder.dim,)
    assert np.array_equal(embedder.encode(s for s in batch), vectors)
    assert np.array_equal(embedder.encode(tuple(batch)), vectors)
    bare = {key: value for key, value in batch[0].items() if key in ("s1", "s1_dates", "s2", "s2_dates", "s2_level")}
    np.testing.assert_allclose(embedder.encode(bare | {"s1_valid": None}), vectors[0], **CLOSE)
    for nothing in ([], iter(())):
        empty = embedder.encode(nothing)
        assert empty.shape == (0, embedder.dim) and empty.dtype == np.float32


def test_centring_subtracts_the_constant_of_the_checkpoint(embedder):
    raw, centred = (embedder.encode(sample(), centre=centre) for centre in (False, True))
    centre = embedder.model.embedding_centre.numpy()
    assert np.linalg.norm(centre) > 0.1
    np.testing.assert_allclose(raw - centred, centre, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_embeddings(embedder):
    batch = [sample(t1=k % 3, t2=2 - k % 2, size=(8 + k % 2, 8), seed=k) for k in range(20)]
    on_gpu = Embedder.from_pretrained(packaged_path(), device="cuda")
    assert on_gpu.model.device.type == "cuda" and weights_hash(on_gpu.model) == weights_hash(embedder.model)
    np.testing.assert_allclose(on_gpu.encode(batch), embedder.encode(batch), rtol=0, atol=1e-4)


def test_progress_is_shown_only_on_demand(embedder, capsys):
    embedder.encode([sample()])
    assert capsys.readouterr() == ("", "")
    embedder.encode([sample()], progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "1/1" in err


GOOD = sample("fine")
BAD = {
    "bad: nothing valid in s1": (sample("bad", t1=0), ["s1"]),
    "bad: nothing valid in s1 or s2": (GOOD | {"id": "bad", "s1": None, "s2": None}, None),
    "bad: nothing valid in s2": (GOOD | {"id": "bad", "s2_valid": np.zeros((1, 16, 16), bool)}, ["s2"]),
    "bad: s1 must have shape": (GOOD | {"id": "bad", "s1": np.zeros((2, 16, 16))}, None),
    "bad: s2 must have shape": (GOOD | {"id": "bad", "s2": np.zeros((1, 12, 16, 16))}, None),
    "bad: s1_dates must be ISO dates": (GOOD | {"id": "bad", "s1_dates": ["May"]}, None),
    "bad: S1 and S2 have different sizes": (
        GOOD | {"id": "bad", "s1": GOOD["s1"][..., :8], "s1_valid": GOOD["s1_valid"][..., :8]}, None,
    ),
    "sample 1: must be a dict": (np.zeros((1, 13, 8, 8)), None),
    "sample 1: nothing valid in": ({"s1": None}, None),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_the_sample_that_cannot_be_embedded_is_named(embedder, message):
    bad, sensors = BAD[message]
    with pytest.raises(DataError, match=f"^{message}"):
        embedder.encode([GOOD, bad, GOOD], sensors=sensors)


@pytest.mark.parametrize("option", [{"sensors": "s1"}, {"sensors": []}, {"sensors": ["s3"]}, {"patch_size": 0},
                                    {"patch_size": 17}, {"patch_size": 8.0}, {"patch_size": "8"}])  # fmt: skip
def test_wrong_options_are_refused(embedder, tmp_path, option):
    with pytest.raises(DataError, match=f"{next(iter(option))} must be"):
        embedder.encode(GOOD, **option)
    with pytest.raises(DataError, match=f"{next(iter(option))} must be"):
        embedder.embed_source(Source([GOOD]), tmp_path / "e.parquet", **option)
    assert list(tmp_path.iterdir()) == []


def test_default_patch_size():
    sizes = [(1, 1), (7, 7), (8, 8), (17, 17), (31, 99), (32, 32), (120, 120), (128, 128), (256, 256), (300, 4)]
    assert [default_patch_size(*s) for s in sizes] == [1, 1, 2, 4, 4, 8, 8, 16, 16, 1]


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small pretraining model and its processor, saved."""
    folder = tmp_path_factory.mktemp("pretraining")
    torch.manual_seed(0)
    config = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "decoder_hidden_size": 32}
    model = CropLEMForPreTraining(CropLEMConfig(**config, decoder_num_hidden_layers=1, decoder_intermediate_size=64))
    model.croplem.embedding_centre.copy_(torch.randn(32))
    model.save_pretrained(folder)
    CropLEMImageProcessor().save_pretrained(folder)
    return folder


def test_pretraining_and_encoder_checkpoints_are_alike(checkpoint, tmp_path):
    CropLEMModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    CropLEMImageProcessor().save_pretrained(tmp_path)
    from_pretraining, from_encoder = (Embedder.from_pretrained(f, device="cpu") for f in (checkpoint, tmp_path))
    assert not from_pretraining.model.training and from_pretraining.dim == 32
    assert np.array_equal(from_pretraining.encode(GOOD), from_encoder.encode(GOOD))
    a, b = from_pretraining.info("patch"), from_encoder.info("patch")
    assert a.pop("model") == str(checkpoint) and b.pop("model") == str(tmp_path) and a == b


def test_the_hash_is_of_the_weights(checkpoint):
    model = CropLEMModel.from_pretrained(checkpoint)
    before = weights_hash(model)
    assert before == weights_hash(CropLEMModel.from_pretrained(checkpoint)) and len(before) == 64
    with torch.no_grad():
        model.layernorm.bias[0] += 1e-6
    assert weights_hash(model) != before


def damage(folder, what):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if what == "cut short":
        os.truncate(weights, weights.stat().st_size // 2)
    elif what == "pickle":
        weights.unlink()
        torch.save({}, folder / "pytorch_model.bin")
    elif what == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif what == "no config":
        config.unlink()
    elif what == "not JSON":
        config.write_text("{")
    elif what == "not finite":
        model = CropLEMModel.from_pretrained(folder)
        with torch.no_grad():
            model.layernorm.bias[0] = float("nan")
        model.save_pretrained(folder)
    else:
        key, value = {"another model": ("model_type", "bert"), "more layers": ("num_hidden_layers", 2),
                      "wider": ("hidden_size", 48), "wrong type": ("hidden_size", "x")}[what]  # fmt: skip
        config.write_text(json.dumps(json.loads(config.read_text()) | {key: value}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cut short", "cannot be used as a checkpoint"),
        ("pickle", "no file named model.safetensors"),
        ("no processor", "cannot be used as a checkpoint .*image processor"),
        ("no config", "no config.json in this folder"),
        ("not JSON", "not a valid JSON file"),
        ("not finite", "weights are missing, not finite or do not fit .* layernorm.bias"),
        ("another model", "its model_type is 'bert', expected 'croplem'"),
        ("more layers", r"weights are missing, .* such as layers\.1\."),
        ("wider", "weights are missing, not finite or do not fit its configuration"),
        ("wrong type", "'hidden_size' expected int"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_never_completed_with_random_weights(checkpoint, tmp_path, what, message):
    folder = shutil.copytree(checkpoint, tmp_path / "c")
    damage(folder, what)
    with pytest.raises(CheckpointError, match=message) as error:
        Embedder.from_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_an_impossible_device_and_unknown_arguments_are_refused(checkpoint):
    with pytest.raises(CheckpointError, match="device 'abacus' cannot be used .*; try 'cpu'"):
        Embedder.from_pretrained(checkpoint, device="abacus")
    with pytest.raises(TypeError, match="unknown arguments .'colour'"):
        Embedder.from_pretrained(checkpoint, colour="red")


# A source into a table


class Source:
    """Samples, or errors to raise, as a source; `stop` raises KeyboardInterrupt where that item is read."""

    kind, unit, s1_units = "test", "patch", "db"

    def __init__(self, items, stop=None):
        self.items, self.stop, self.read = items, stop, []
        self.ids = [f"i{k}" for k in range(len(items))]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        if number == self.stop:
            raise KeyboardInterrupt
        self.read.append(number)
        if isinstance(self.items[number], Exception):
            raise self.items[number]
        return self.items[number] | {"id": self.ids[number]}


def items(n, bad=()):
    good = [sample(t1=k % 3, t2=1 + k % 2, size=(4, 4 + k % 2), seed=k, k=k) for k in range(n)]
    return [DataError(f"/data/{k}.tif: cut short") if k in bad else s for k, s in enumerate(good)]


def test_a_source_becomes_a_table_in_its_order(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_inputs, "CHUNK", 4)
    source = Source(items(11, bad=(0, 5, 6, 7, 4, 10)))
    table = embedder.embed_source(source, tmp_path / "e.parquet", progress=False)
    good = [1, 2, 3, 8, 9]
    assert table.ids == [f"i{k}" for k in good] and table.metadata["k"].to_pylist() == good
    np.testing.assert_allclose(table.vectors, embedder.encode([source.items[k] for k in good]), **CLOSE)
    with open(tmp_path / "e.parquet.skipped.csv", newline="") as handle:
        assert list(csv.reader(handle)) == [["id", "reason"]] + [
            [f"i{k}", f"/data/{k}.tif: cut short"] for k in (0, 4, 5, 6, 7, 10)
        ]
    expected = embedder.info("patch") | {"skipped": 6, "source": {"kind": "test", "s1_units": "db"}}
    assert table.info == expected | {"created": table.info["created"]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "e.parquet.skipped.csv"]
    # Mended and embedded again: nothing is skipped any more.
    table = embedder.embed_source(Source(items(11)), tmp_path / "e.parquet", progress=False)
    assert len(table) == 11 and [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("values", [2**26, 500])
def test_a_resumed_run_gives_the_same_bits(embedder, tmp_path, monkeypatch, values):
    monkeypatch.setattr(embedding_inputs, "CHUNK", 3)
    monkeypatch.setattr(embedding_inputs, "CHUNK_VALUES", values)
    whole = embedder.embed_source(Source(items(14, bad=(4,))), tmp_path / "whole.parquet", progress=False)
    out = tmp_path / "e.parquet"
    source = Source(items(14, bad=(4,)), stop=8)
    with pytest.raises(KeyboardInterrupt):
        embedder.embed_source(source, out, progress=False)
    assert not out.exists() and (tmp_path / "e.parquet.parts").is_dir()
    source.stop, source.read = None, []
    resumed = embedder.embed_source(source, out, progress=False)
    assert min(source.read) >= 6 and source.read == sorted(set(source.read))
    assert resumed.content_hash == whole.content_hash
    assert resumed.metadata.equals(whole.metadata)


@pytest.mark.parametrize("change", [{"sensors": ["s2"]}, {"patch_size": 2}, {"centre": False}])
def test_an_interrupted_run_is_not_continued_with_other_settings(embedder, tmp_path, monkeypatch, change):
    monkeypatch.setattr(embedding_inputs, "CHUNK", 2)
    source = Source(items(6), stop=4)
    with pytest.raises(KeyboardInterrupt):
        embedder.embed_source(source, tmp_path / "e.parquet", progress=False)
    key = {"centre": "centred"}.get(next(iter(change)), next(iter(change)))
    with pytest.raises(CheckpointError, match=f"unfinished table that differs in {key}; delete that folder"):
        embedder.embed_source(Source(items(6)), tmp_path / "e.parquet", progress=False, **change)
    source = Source(items(6))
    source.s1_units = "linear"
    with pytest.raises(CheckpointError, match="differs in source"):
        embedder.embed_source(source, tmp_path / "e.parquet", progress=False)


def test_nothing_good(embedder, tmp_path):
    with pytest.raises(DataError, match=r"none of 3 items .* see .*e\.parquet\.skipped\.csv; the first: /data/0"):
        embedder.embed_source(Source(items(3, bad=(0, 1, 2))), tmp_path / "e.parquet", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet.skipped.csv"]
    with pytest.raises(DataError, match="the source holds no items"):
        embedder.embed_source(Source([]), tmp_path / "e.parquet", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_every_metadata_column_is_kept(embedder, tmp_path):
    metadata = {
        "season": "fall", "scene": "ROIs1_fall_3", "patch": 7, "lon": 5.5, "lat": -1.25, "crs": "EPSG:32737",
        "transform": (10, 0, 375412.3, 0, -10, 8116742.8), "region": "here", "field_id": "f", "crop_type": "maize",
        "cropland": 1,
    }  # fmt: skip
    extra = {"s2_cloud_share": 0.25, "block": np.int64(4), "irrigated": np.True_, "note": None, "source": "x"}
    lc = np.full((4, 8, 4), 3, np.uint8)
    lc[0, :2] = 12
    one = sample(size=(8, 4), lc=lc, **metadata, **extra)
    other = sample(t2=0, size=(1, 1), lon=6.5)
    table = embedder.embed_source(Source([one, other]), tmp_path / "e.parquet", progress=False)
    first, second = table.metadata.to_pylist()
    derived = {"gsd": 10.0, "sensors": "s1+s2", "height": 8, "width": 4}
    derived |= {"s1_kind": None, "s2_level": "L1C"}
    metadata["transform"] = list(map(float, metadata["transform"]))
    assert first == metadata | extra | derived
    assert second == dict.fromkeys(first) | {"lon": 6.5, "gsd": 10.0, "sensors": "s1", "height": 1, "width": 1}


def test_the_column_of_sensors_says_what_was_embedded(embedder, tmp_path):
    source = Source([sample(), sample(t1=0), sample(t2=0)])
    table = embedder.embed_source(source, tmp_path / "e.parquet", sensors=["s2"], progress=False)
    assert table.ids == ["i0", "i1"] and table.metadata["sensors"].to_pylist() == ["s2", "s2"]
    assert table.info["skipped"] == 1 and table.info["sensors"] == ["s2"]


# Real data and invented trees


def test_a_generated_tree(embedder, tmp_path):
    generate_sen12ms(tmp_path / "tree", scenes=2, patches_per_scene=3, size=32, defects=True)
    source = open_source(tmp_path / "tree")
    table = embedder.embed_source(source, tmp_path / "e.parquet", progress=False)
    assert table.ids == source.ids[1:] and table.info["skipped"] == 1
    assert set(table.metadata["sensors"].to_pylist()) == {"s1+s2", "s1", "s2"}


def test_real_patches_of_land_and_sea(real_data, tmp_path):
    assert main(["embed", str(real_data / "sen12ms"), str(tmp_path / "e.parquet"), "--quiet"]) == 0
    table = read_table(tmp_path / "e.parquet")
    assert len(table) == 7 and np.isfinite(table.vectors).all()
    sensors = dict(zip(table.ids, table.metadata["sensors"].to_pylist(), strict=True))
    assert sensors["ROIs1158_spring_1_p30"] == "s1" and sensors["ROIs1158_spring_15_p30"] == "s2"
    assert [sensors[name] for name in ("ROIs1970_fall_139_p839", "ROIs2017_winter_112_p797")] == ["s1+s2"] * 2
    unit = table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(7)
    sea = {name for name in table.ids if "_101_" in name}
    pairs = [name for name in table.ids if sensors[name] == "s1+s2"]
    assert len(sea) == 3 and len(pairs) == 5
    for name in pairs:
        nearest = table.ids[cosines[table.ids.index(name)].argmax()]
        assert (nearest in sea) == (name in sea), (name, nearest)


@pytest.mark.slow
def test_all_real_series(real_data, tmp_path):
    path = real_data / "series" / "series.parquet"
    assert main(["embed", str(path), str(tmp_path / "e.parquet"), "--quiet"]) == 0
    table = read_table(tmp_path / "e.parquet")
    assert len(table) == 28_722 and table.info["skipped"] == 0 and table.info["unit"] == "series"
    assert table.ids == pq.read_table(path, columns=["id"])["id"].to_pylist() and len(set(table.ids)) == 28_722
    assert np.isfinite(table.vectors).all() and table.vectors.std(axis=0).min() > 0


def test_a_table_of_series(embedder, real_data, tmp_path):
    rows = pq.read_table(real_data / "series" / "series.parquet")
    some = pa.concat_tables([rows.filter(pa.compute.equal(rows["source"], s)).slice(0, 4)
                             for s in ("dea_cropmask_2019", "presto_usa", "itu_cropland_2023")])  # fmt: skip
    pq.write_table(some, tmp_path / "series.parquet")
    table = embedder.embed_source(open_source(tmp_path / "series.parquet"), tmp_path / "e.parquet", progress=False)
    assert table.ids == some["id"].to_pylist() and table.metadata["block"].to_pylist() == some["block"].to_pylist()
    assert table.metadata["height"].to_pylist() == table.metadata["width"].to_pylist() == [1] * 12


