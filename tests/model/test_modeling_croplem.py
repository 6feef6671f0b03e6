"""The encoder: tokens only for what is there, positions that matter, and embeddings that depend on nothing else."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from croplem_hf import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, CropLEMModel, make_sample
from croplem_hf.model.tokens_croplem import (
    DARKEST,
    from_patches,
    normalised_differences,
    pool_sensors,
    resample_matrices,
    to_patches,
)

PROCESSOR = CropLEMImageProcessor()


def sample(t1=1, t2=1, height=16, width=16, *, level="L1C", seed=0, id="x", year=2019):
    """A random sample: smooth spectra, every pixel valid."""
    rng = np.random.default_rng(seed)
    return make_sample(
        id,
        s1=rng.normal(-14, 4, (t1, 2, height, width)) if t1 else None,
        s1_dates=[f"{year + n // 12}-{n % 12 + 1:02d}-03" for n in range(t1)],
        s2=rng.integers(20, 5000, (t2, 13, height, width)).astype(np.uint16) if t2 else None,
        s2_dates=[f"{year + n // 12}-{n % 12 + 1:02d}-13" for n in range(t2)],
        s2_level=level if t2 else None,
    )


@pytest.fixture(scope="module")
def pretraining():
    torch.manual_seed(0)
    return CropLEMForPreTraining(CropLEMConfig()).eval()


@pytest.fixture(scope="module")
def model(pretraining):
    return pretraining.croplem


def embed(model, *samples, patch_size=8, **kwargs):
    with torch.inference_mode():
        return model(**PROCESSOR(list(samples), **kwargs), patch_size=patch_size)


def test_a_fresh_model_has_no_constant_weights(pretraining):
    constant = [
        n for n, p in pretraining.named_parameters() if p.numel() > 1 and p.std() == 0 and not n.endswith("bias")
        and "norm" not in n
    ]  # fmt: skip
    assert constant == []


@pytest.mark.parametrize("patch_size", [1, 2, 8])
def test_shuffling_the_patches_changes_the_output(model, patch_size):
    x = PROCESSOR(sample(height=16, width=16))
    moved = {k: v.roll(patch_size, dims=-1) if k in ("s1_values", "s2_values") else v for k, v in x.items()}
    with torch.inference_mode():
        a, b = (model(**i, patch_size=patch_size) for i in (x, moved))
    assert (a.pooler_output - b.pooler_output).abs().max() > 1e-3


def test_dates_and_years_change_the_output(model):
    a = sample(t1=2, t2=2)
    later = a | {"s2_dates": ["2019-07-13", "2019-08-13"]}
    next_year = a | {"s2_dates": ["2019-01-13", "2020-02-13"]}
    base, *others = (embed(model, s).pooler_output for s in (a, later, next_year))
    assert all((base - other).abs().max() > 1e-3 for other in others)


def test_the_same_input_twice_gives_the_same_bits(model):
    s = sample(t1=3, t2=2, height=17, width=20)
    a, b = (embed(model, s) for _ in range(2))
    assert torch.equal(a.pooler_output, b.pooler_output)
    assert torch.equal(a.last_hidden_state, b.last_hidden_state)


def test_nothing_is_masked_in_training_mode_either(model):
    model.train()
    try:
        out = embed(model, sample(height=32, width=32))
    finally:
        model.eval()
    assert out.mask is None and out.last_hidden_state.shape[1] == 2 * 16


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_alone_and_in_a_padded_batch_agree(data):
    torch.manual_seed(0)
    model = CropLEMModel(CropLEMConfig(num_hidden_layers=2)).eval()
    samples = []
    for n in range(data.draw(st.integers(2, 4))):
        t1, t2 = data.draw(st.sampled_from([(0, 1), (1, 0), (1, 1), (2, 5), (12, 3)]))
        size = [data.draw(st.integers(1, 21)) for _ in range(2)]
        s = sample(t1, t2, *size, seed=n, level=data.draw(st.sampled_from(["L1C", "L2A"])), id=str(n))
        for sensor in ("s1", "s2"):
            if s[sensor] is not None and data.draw(st.booleans()):
                s[f"{sensor}_valid"] = np.random.default_rng(n).random(s[f"{sensor}_valid"].shape) < 0.5
                s[f"{sensor}_valid"].flat[0] = True
        samples.append(s)
    p = data.draw(st.sampled_from([1, 2, 3, 4, 8, 16]))
    together = embed(model, *samples, patch_size=p).pooler_output
    alone = torch.cat([embed(model, s, patch_size=p).pooler_output for s in samples])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("drop", ["s1", "s2"])
def test_a_dropped_sensor_has_no_tokens_and_no_zeros(model, drop):
    both = sample(t1=2, t2=3, height=16, width=16)
    other = "s2" if drop == "s1" else "s1"
    inputs = PROCESSOR(both, sensors=[other])
    assert not any(key.startswith(drop) for key in inputs)
    out = embed(model, both, sensors=[other])
    assert out.last_hidden_state.shape[1] == (3 if other == "s2" else 2) * 4
    absent = embed(model, both | {drop: None})
    assert torch.equal(out.pooler_output, absent.pooler_output)
    masked = embed(model, both | {f"{drop}_valid": np.zeros_like(both[f"{drop}_valid"])})
    torch.testing.assert_close(out.pooler_output, masked.pooler_output, rtol=0, atol=1e-5)


def test_invalid_pixels_cannot_be_seen(model):
    s = sample(height=16, width=16)
    s["s2_valid"][0, 3:9, 2:5] = False
    changed = s | {"s2": s["s2"].copy()}
    changed["s2"][0][:, ~s["s2_valid"][0]] = 9999
    assert torch.equal(embed(model, s).pooler_output, embed(model, changed).pooler_output)


def test_a_missing_band_cannot_be_seen_but_is_told(model):
    s = sample()
    missing = s | {"s2_bands": s["s2_bands"].copy()}
    missing["s2_bands"][:, 4] = False
    changed = missing | {"s2": s["s2"].copy()}
    changed["s2"][:, 4] = 9999
    assert torch.equal(embed(model, missing).pooler_output, embed(model, changed).pooler_output)
    assert not torch.equal(embed(model, s).pooler_output, embed(model, missing).pooler_output)


def test_the_level_of_optics_is_told(model):
    s = sample()
    s["s2_bands"][:, 10] = False
    assert not torch.equal(embed(model, s).pooler_output, embed(model, s | {"s2_level": "L2A"}).pooler_output)


def test_an_empty_date_changes_nothing(model):
    s = sample(t1=0, t2=2)
    longer = s | {"s2": np.concatenate([s["s2"][:1] * 0, s["s2"]]), "s2_dates": ["2017-05-01", *s["s2_dates"]]}
    longer["s2_valid"] = np.concatenate([np.zeros((1, 16, 16), bool), s["s2_valid"]])
    longer["s2_bands"] = np.concatenate([s["s2_bands"][:1], s["s2_bands"]])
    a, b = (embed(model, x).pooler_output for x in (s, longer))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "patch_size", "grid"), [(120, 16, 8), (17, 8, 3), (1, 1, 1), (1, 8, 1), (64, 8, 8), (10, 3, 4)]
)
def test_any_size_at_any_patch_size(model, size, patch_size, grid):
    out = embed(model, sample(height=size, width=size), patch_size=patch_size)
    assert out.last_hidden_state.shape == (1, 2 * grid * grid, 128)
    assert CropLEMModel.dense_features(out).shape == (1, grid, grid, 128)
    assert torch.isfinite(out.pooler_output).all()


def test_token_index_and_dense_features(model):
    s = sample(t1=2, t2=1, height=24, width=16)
    s["s1_valid"][:, :8, :8] = False
    s["s2_valid"][:, :8] = False
    out = embed(model, s)
    index = out.token_index[0].tolist()
    assert [0, 1, 0, 0] not in index and [0, 1, 0, 1] in index and [1, 0, 2, 1] in index
    dense = CropLEMModel.dense_features(out)[0]  # (3, 2, D)
    assert dense.shape == (3, 2, 128) and dense[0, 0].isnan().all() and dense.isfinite().all(dim=-1).sum() == 5
    tokens = out.last_hidden_state[0]

    def token(sensor, date, row, column):
        return tokens[index.index([sensor, date, row, column])]

    expected = ((token(0, 0, 1, 1) + token(0, 1, 1, 1)) / 2 + token(1, 0, 1, 1)) / 2
    torch.testing.assert_close(dense[1, 1], expected)


def test_pooling_weighs_sensors_alike(model):
    out = embed(model, sample(t1=9, t2=1))
    tokens, sensor = out.last_hidden_state[0], out.token_index[0, :, 0]
    expected = (tokens[sensor == 0].mean(0) + tokens[sensor == 1].mean(0)) / 2
    torch.testing.assert_close(out.pooler_output[0], expected)


@pytest.mark.parametrize("size", range(1, 17))
def test_resampling_keeps_constant_patches(size):
    grow, weights = resample_matrices(8, size)
    np.testing.assert_allclose(grow.sum(1), 1, rtol=1e-6)
    w, x = np.random.default_rng(0).normal(size=(2, 64))
    np.testing.assert_allclose(weights.sum(0) @ np.ones(64) if size == 8 else (weights @ w).sum(), w.sum() if size != 8 else 64, rtol=1e-4, atol=1e-4)  # noqa: E501
    if size >= 8:  # growing loses nothing: <x, w> = <B x, R w>
        np.testing.assert_allclose((grow @ x) @ (weights @ w), x @ w, rtol=1e-4, atol=1e-4)


def test_a_flat_place_gives_the_same_token_content_at_every_patch_size(model):
    embeddings = model.embeddings
    flat = torch.randn(13)
    seen = []
    for p in (1, 2, 4, 8, 16):
        weight = embeddings.projection["s2"].weight.flatten(2) @ torch.as_tensor(resample_matrices(8, p)[1]).T
        seen.append((weight * flat[None, :, None]).sum(dim=(1, 2)))
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=1e-3, atol=1e-3)


def test_patches_round_trip():
    x = torch.randn(2, 3, 5, 12, 8)
    assert torch.equal(from_patches(to_patches(x, 4), 4), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2_values": torch.zeros(1, 1, 12, 16, 16)}, "s2_values must be"),
        ({"s2_valid": torch.ones(1, 1, 8, 8, dtype=torch.bool)}, "s2_valid must be"),
        ({"s2_level": None}, "s2_level must be"),
        ({"s2_days": torch.zeros(1, 4)}, "s2_days must be"),
        ({"s1_values": torch.zeros(1, 1, 2, 8, 8), "s1_valid": None}, "agree in batch size, height and width"),
        ({"patch_size": 17}, "patch_size must lie in"),
        ({"s2_values": None, "s1_values": None}, "no sensor"),
        ({"s1_valid": torch.zeros(1, 1, 16, 16, dtype=torch.bool), "s2_valid": torch.zeros(1, 1, 16, 16)}, "nothing valid"),  # noqa: E501
    ],
)
def test_wrong_inputs_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        model(**(dict(PROCESSOR(sample())) | change))


def test_eager_and_sdpa_agree(pretraining, tmp_path):
    pretraining.save_pretrained(tmp_path)
    eager, sdpa = (CropLEMModel.from_pretrained(tmp_path, attn_implementation=a) for a in ("eager", "sdpa"))
    pair = sample(3, 2, 17, 9), sample(1, 1, 8, 8, id="y")
    torch.testing.assert_close(
        embed(eager, *pair).pooler_output, embed(sdpa, *pair).pooler_output, rtol=0, atol=1e-5
    )  # fmt: skip


def test_hidden_states_and_attentions_are_given_on_request(model):
    with torch.inference_mode():
        out = model(**PROCESSOR(sample()), output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1


# Indices and spread

NDVI = {"s2_indices": [["B08", "B04"], ["B03", "B08"]], "pooling": "mean_std"}


@pytest.fixture(scope="module")
def with_indices():
    torch.manual_seed(0)
    return CropLEMModel(CropLEMConfig(num_hidden_layers=2, **NDVI)).eval()


def test_indices_are_those_of_the_digital_numbers():
    s = sample(0, 2, 3, 3)
    x, config = PROCESSOR(s), CropLEMConfig()
    assert (list(config.s2_mean), list(config.s2_std)) == (PROCESSOR.s2_mean, PROCESSOR.s2_std)
    measured = x["s2_valid"][:, :, None].expand_as(x["s2_values"]).clone()
    measured[0, 1, 3] = False
    mean, std = torch.tensor(config.s2_mean), torch.tensor(config.s2_std)
    index, both = normalised_differences(x["s2_values"], measured, [(7, 3), (2, 7)], mean, std)
    b03, b04, b08 = (s["s2"][:, band].astype(np.float64) for band in (2, 3, 7))
    np.testing.assert_allclose(index[0, 0, 0], 2 * (b08 - b04)[0] / np.maximum(b08 + b04, DARKEST)[0], atol=1e-3)
    np.testing.assert_allclose(index[0, :, 1], 2 * (b03 - b08) / np.maximum(b03 + b08, DARKEST), atol=1e-3)
    assert both[0, :, 1].all() and not both[0, 1, 0].any() and not index[0, 1, 0].any()


@pytest.mark.parametrize("patch_size", [1, 8])
def test_an_index_does_not_show_a_band_that_is_missing_hidden_or_invalid(with_indices, patch_size):
    s = sample(1, 2)
    gone = s | {"s2_bands": s["s2_bands"].copy()}
    gone["s2_bands"][:, 3] = False
    changed = gone | {"s2": s["s2"].copy()}
    changed["s2"][:, 3] = 9999
    a, b = (embed(with_indices, x, patch_size=patch_size).pooler_output for x in (gone, changed))
    assert torch.equal(a, b) and not torch.equal(a, embed(with_indices, s, patch_size=patch_size).pooler_output)

    hidden = torch.zeros(1, 2, 13, dtype=torch.bool)
    hidden[:, :, 3] = True
    seen = []
    for x in (s, s | {"s2": changed["s2"]}):
        with torch.inference_mode():
            out = with_indices(**PROCESSOR(x), patch_size=patch_size, hidden_bands={"s2": hidden})
        seen.append(out.pooler_output)
    assert torch.equal(*seen)

    cloudy = s | {"s2_valid": s["s2_valid"].copy()}
    cloudy["s2_valid"][0, 3:9, 2:5] = False
    bright = cloudy | {"s2": s["s2"].copy()}
    bright["s2"][0][:, ~cloudy["s2_valid"][0]] = 9999
    assert torch.equal(*(embed(with_indices, x, patch_size=patch_size).pooler_output for x in (cloudy, bright)))


def test_spread_is_the_deviation_of_each_sensor_and_nothing_for_one_token(with_indices):
    torch.manual_seed(0)
    tokens, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    sensor = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    out = pool_sensors(tokens, mask, sensor, spread=True)
    assert torch.equal(out[:, :4], pool_sensors(tokens, mask, sensor))
    expected = (tokens[0, :2].std(0, correction=0) + tokens[0, 2:].std(0, correction=0)) / 2
    torch.testing.assert_close(out[0, 4:], expected, atol=0.011, rtol=0)  # SPREAD_FLOOR takes off up to its root
    assert out[1, 4:].abs().max() > 0  # its radar token has none, its two optical ones do

    single = embed(with_indices, sample(0, 1, 1, 1), patch_size=1).pooler_output
    assert single.shape == (1, 256) == (1, with_indices.config.embedding_size)
    assert not single[:, 128:].any() and single[:, :128].all()


def test_with_indices_and_spread_an_embedding_depends_on_its_sample_alone(with_indices):
    samples = [sample(3, 2, 5, 9, seed=1), sample(0, 4, 7, 2, seed=2, level="L2A"), sample(2, 0, 3, 3, seed=3)]
    samples[0]["s2_valid"][1, 2:] = False
    for p in (1, 4):
        together = embed(with_indices, *samples, patch_size=p).pooler_output
        alone = torch.cat([embed(with_indices, s, patch_size=p).pooler_output for s in samples])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_checkpoint_without_the_newer_settings_loads(tmp_path):
    torch.manual_seed(0)
    old = CropLEMForPreTraining(CropLEMConfig(num_hidden_layers=1, decoder_num_hidden_layers=1))
    old.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    newer = ("s2_", "pooling", "latent", "summary", "agreement", "reconstruction")
    settings = {k: v for k, v in json.loads(path.read_text()).items() if not k.startswith(newer) or k == "s2_bands"}
    path.write_text(json.dumps(settings))
    for kind, keep in ((CropLEMModel, "croplem."), (CropLEMForPreTraining, "")):
        model, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        for name, value in model.state_dict().items():
            assert torch.equal(value, old.state_dict()[keep + name])
