"""The embedder: the same vector for the same sample in any company, and a table that survives bad items and kills."""

import csv
import json
import os
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, strategies as st

from croplem_hf import Embedder, embedding_inputs, make_sample, open_source, packaged_path, read_table
from croplem_hf.cli import main
from croplem_hf.data import build_shards, generate_sen12ms
from croplem_hf.data.shards import row_sample
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


# What samples may be


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Shards of six patches, some with one sensor."""
    folder = tmp_path_factory.mktemp("shards")
    generate_sen12ms(folder / "tree", scenes=2, patches_per_scene=3, size=32, clouds=0.3)
    build_shards(folder / "tree", folder / "shards", workers=1, progress=False)
    return folder / "shards"


def test_a_source_is_embedded_like_its_samples(embedder, shards):
    source = open_source(shards)
    samples = [source[k] for k in range(len(source))]
    assert len(samples) == 6
    assert np.array_equal(embedder.encode(source), embedder.encode(samples))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", [None, "numpy"])
def test_a_dataset_of_shards_is_embedded_like_the_shards(embedder, shards, tmp_path, streaming, form):
    files = sorted(str(path) for path in (shards / "data").glob("*.parquet"))
    data = datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path)
    ).with_format(form)
    source = open_source(shards)
    expected = dict(zip(source.ids, embedder.encode(source), strict=True))
    ids = [row["id"] for row in data.with_format(None)]
    assert sorted(ids) == sorted(expected)
    np.testing.assert_allclose(embedder.encode(data), np.stack([expected[name] for name in ids]), **CLOSE)
    row = next(iter(data.with_format(None)))
    np.testing.assert_allclose(embedder.encode(row), expected[row["id"]], **CLOSE)
    sensor = "s1" if row["s1"] is not None else "s2"
    damaged = row | {sensor: row[sensor][:-1] + bytes([row[sensor][-1] ^ 1])}
    with pytest.raises(DataError, match=rf"^{row['id']}: cannot be read from its row .*{sensor} is damaged"):
        embedder.encode([damaged])


def test_rows_of_shards_are_the_samples_that_were_stored(shards):
    source = open_source(shards)
    rows = {row["id"]: row for path in (shards / "data").glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    for k, name in enumerate(source.ids):
        expected, found = source[k], row_sample(rows[name])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                assert found[key].dtype == value.dtype and np.array_equal(found[key], value, equal_nan=True)
            else:
                assert found[key] == value


def test_arrays_are_embedded_like_their_samples(embedder):
    batch = [sample(str(k), t1=2, t2=3, size=(9, 8), seed=k, level="L2A") for k in range(5)]
    arrays = {key: np.stack([s[key] for s in batch]) for key in ("s1", "s2", "s1_valid", "s2_valid", "s2_bands")}
    expected = embedder.encode(batch)
    shared = {"s1_dates": batch[0]["s1_dates"], "s2_dates": batch[0]["s2_dates"], "s2_level": "L2A", "gsd": 10}
    assert np.array_equal(embedder.encode(arrays | shared), expected)
    own = {key: [s[key] for s in batch] for key in ("s1_dates", "s2_dates", "s2_level", "id")} | {"gsd": [10.0] * 5}
    assert np.array_equal(embedder.encode(arrays | own), expected)
    optics = {"s2": arrays["s2"], "s2_dates": np.array(shared["s2_dates"]), "s2_level": "L2A", "s1": None}
    assert np.array_equal(embedder.encode(optics), embedder.encode(batch, sensors=["s2"]))
    with pytest.raises(DataError, match="s2_dates holds 4 samples, expected 5"):
        embedder.encode(arrays | own | {"s2_dates": own["s2_dates"][:4]})
    with pytest.raises(DataError, match="equally many samples, found .'s1': 4, 's2': 5"):
        embedder.encode(arrays | shared | {"s1": arrays["s1"][:4]})
    with pytest.raises(DataError, match="^sample 0: s2_level must be one of"):
        embedder.encode(arrays | shared | {"s2_level": "L3"})


@pytest.mark.parametrize("tensors", ["pt", "np"])
def test_inputs_of_the_model_are_embedded_like_their_samples(embedder, tensors):
    batch = [sample(str(k), t1=1 + k % 2, t2=k % 3, size=(12, 8), seed=k) for k in range(7)]
    inputs = embedder.processor(batch, return_tensors=tensors)
    expected = embedder.encode(batch)
    for options in ({}, {"tokens_per_batch": 1}, {"tokens_per_batch": 60}):
        np.testing.assert_allclose(embedder.encode(inputs, **options), expected, **CLOSE)
    np.testing.assert_allclose(embedder.encode(dict(inputs)), expected, **CLOSE)
    radar = embedder.encode(inputs, sensors=["s1"])
    np.testing.assert_allclose(radar, embedder.encode(batch, sensors=["s1"]), **CLOSE)
    assert embedder.encode({key: value[:0] for key, value in inputs.items()}).shape == (0, embedder.dim)


def test_wrong_inputs_of_the_model_are_told(embedder):
    inputs = dict(embedder.processor([sample(t1=1, t2=0), sample(t1=1, t2=0)]))
    for change, message in [
        ({"s1_values": inputs["s1_values"][0]}, r"must hold s1_values or s2_values of shape \(N, T, bands, H, W\)"),
        ({"s1_days": inputs["s1_days"][:1]}, "must all hold 2 samples, found .'s1_days': 1"),
        ({"s1_valid": torch.zeros_like(inputs["s1_valid"])}, r"inputs 0 to 1: samples \[0, 1\] .* hold nothing valid"),
        ({"s1_days": None}, "inputs 0 to 1: s1_days must be"),
        ({"colour": inputs["gsd"]}, "inputs hold 'colour', which the model does not know"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            embedder.encode(inputs | change)
    with pytest.raises(DataError, match="must hold s2_values"):
        embedder.encode(inputs, sensors=["s2"])


def test_what_holds_no_samples_is_told(embedder, tmp_path):
    for path in ("series.parquet", tmp_path):
        with pytest.raises(DataError, match="not the name of a file; open_source"):
            embedder.encode(path)
    with pytest.raises(DataError, match="an iterable of samples, found int"):
        embedder.encode(3)


def test_samples_of_plain_lists_are_embedded(embedder):
    one = sample(size=(3, 3))
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in one.items()}
    np.testing.assert_allclose(embedder.encode(plain), embedder.encode(one), **CLOSE)


# What comes out


def test_poolings(embedder):
    batch = [sample(str(k), t1=k % 3, t2=2, size=(8, 8), seed=k) for k in range(4)]
    both, mean = (embedder.encode(batch, pooling=pooling) for pooling in ("mean_std", "mean"))
    assert np.array_equal(both, embedder.encode(batch))
    assert mean.shape == (4, embedder.dim // 2) and np.array_equal(mean, both[:, : embedder.dim // 2])
    infos = [embedder.info("patch", pooling=pooling) for pooling in ("default", "mean_std", "mean")]
    assert infos[0] == infos[1] != infos[2] and infos[2]["dim"] == mean.shape[1]


def test_a_model_of_means_gives_the_spread_too(checkpoint):
    means = Embedder.from_pretrained(checkpoint, device="cpu")
    batch = [sample(str(k), t1=k % 3, t2=2, size=(8, 8), seed=k) for k in range(4)]
    both = means.encode(batch, pooling="mean_std", centre=False)
    assert both.shape == (4, 64) and np.array_equal(both[:, :32], means.encode(batch, centre=False))
    tokens = [means.model(**means.processor(batch[k]), patch_size=2) for k in (0, 3)]  # optics alone
    for row, outputs in zip(both[[0, 3]], tokens, strict=True):
        spread = outputs.last_hidden_state[0].std(dim=0, correction=0).detach().numpy()
        np.testing.assert_allclose(row[32:], spread, atol=0.02)
    with pytest.raises(DataError, match="holds no centre for pooling 'mean_std'; say centre=False"):
        means.encode(batch, pooling="mean_std")


@pytest.mark.parametrize("patch_size", [4, 5])
def test_dense_features_lie_on_the_grid_of_patches(embedder, patch_size):
    batch = [sample(str(k), t1=k % 2, t2=2, size=(12, 10 + k % 2), seed=k) for k in range(5)]
    dense = embedder.encode(batch, pooling="dense", patch_size=patch_size)
    assert isinstance(dense, list) and len(dense) == 5
    width = embedder.dim // 2
    for one, found in zip(batch, dense, strict=True):
        columns = -(-one["s2"].shape[3] // patch_size)
        assert found.shape == (-(-12 // patch_size), columns, width) and found.dtype == np.float32
        np.testing.assert_allclose(embedder.encode(one, pooling="dense", patch_size=patch_size), found, **CLOSE)
    # Of optics alone, the mean over the grid is the pooled mean.
    pooled = embedder.encode(batch[0], pooling="mean", patch_size=patch_size)
    np.testing.assert_allclose(dense[0].mean(axis=(0, 1)), pooled, atol=1e-4)
    raw = embedder.encode(batch[0], pooling="dense", patch_size=patch_size, centre=False)
    centre = np.broadcast_to(embedder.model.embedding_centre[:width], raw.shape)
    np.testing.assert_allclose(raw - dense[0], centre, atol=1e-5)


def test_dense_features_are_nan_where_nothing_was_seen(embedder):
    valid = np.ones((1, 16, 16), bool)
    valid[:, 8:] = False
    valid[:, :4, :4] = False
    dense = embedder.encode(sample(t1=0, s2_valid=valid), pooling="dense", patch_size=4)
    expected = np.ones((4, 4), bool)
    expected[2:], expected[0, 0] = False, False
    assert np.array_equal(np.isfinite(dense).all(axis=-1), expected)
    assert np.array_equal(np.isnan(dense).all(axis=-1), ~expected)


def test_truncation_and_rounding(embedder):
    batch = [sample(str(k), seed=k, size=(8, 8)) for k in range(6)]
    whole, short = embedder.encode(batch), embedder.encode(batch, truncate_dim=100)
    assert short.shape == (6, 100) and embedder.encode(batch[0], truncate_dim=100).shape == (100,)
    assert np.array_equal(short, whole[:, :100])
    assert np.array_equal(embedder.encode(batch, truncate_dim=embedder.dim), whole)
    codes, scales = embedder.encode(batch, precision="int8")
    assert codes.dtype == np.int8 and codes.shape == whole.shape and scales.shape == (6,)
    assert (np.abs(codes * scales[:, None] - whole) <= scales[:, None] * 0.5001).all()
    one, scale = embedder.encode(batch[0], precision="int8")
    assert one.shape == (embedder.dim,) and scale.shape == () and np.abs(one.astype(int) - codes[0]).max() <= 1
    assert embedder.encode([], precision="int8")[0].shape == (0, embedder.dim)


def test_bfloat16_moves_embeddings_little(embedder):
    batch = [sample(str(k), t1=k % 2, seed=k, size=(16, 16)) for k in range(6)]
    exact, rough = embedder.encode(batch), embedder.encode(batch, dtype="bfloat16")
    cosine = (exact * rough).sum(axis=1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert rough.dtype == np.float32 and not np.array_equal(exact, rough) and cosine.min() > 0.999


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pooling": "max"}, "pooling must be one of default, mean, mean_std, dense; found 'max'"),
        ({"precision": "int4"}, "precision must be one of float32, int8"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
        ({"truncate_dim": 0}, "truncate_dim must be a whole number from 1 to 256, or None; found 0"),
        ({"truncate_dim": 257}, "from 1 to 256"),
        ({"truncate_dim": 129, "pooling": "mean"}, "from 1 to 128"),
        ({"truncate_dim": True}, "found True"),
        ({"tokens_per_batch": 0}, "tokens_per_batch must be a whole number of at least 1; found 0"),
        ({"tokens_per_batch": None}, "found None"),
        ({"pooling": "dense", "truncate_dim": 8}, "goes with neither truncate_dim nor precision"),
        ({"pooling": "dense", "precision": "int8"}, "goes with neither truncate_dim nor precision"),
    ],
)
def test_impossible_options_are_told(embedder, option, message):
    with pytest.raises(DataError, match=message):
        embedder.encode(GOOD, **option)
    with pytest.raises(DataError, match=message):
        embedder.info("patch", **option)


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
    derived |= {"s1_kind": None, "s2_level": "L1C", "s1_date_count": 1, "s2_date_count": 1}
    metadata["transform"] = list(map(float, metadata["transform"]))
    assert first == metadata | extra | derived
    assert second == dict.fromkeys(first) | {"lon": 6.5, "gsd": 10.0, "sensors": "s1", "height": 1, "width": 1} | {
        "s1_date_count": 1, "s2_date_count": 0,
    }  # fmt: skip


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


