"""Pretraining: what is hidden, what counts in the loss, and that few tokens still teach."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from croplem_hf import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, CropLEMModel, make_sample
from croplem_hf.model.tokens_croplem import (
    SensorInput,
    contrast,
    draw_hidden_bands,
    draw_noise,
    select_visible,
    smooth_radar,
    summarise,
)

PROCESSOR = CropLEMImageProcessor()


def sample(t1, t2, size=1, level="L2A", seed=0):
    rng = np.random.default_rng(seed)
    return make_sample(
        f"s{seed}",
        s1=rng.normal(-14, 4, (t1, 2, size, size)) if t1 else None,
        s1_dates=[f"2019-{n % 12 + 1:02d}-03" for n in range(t1)],
        s2=rng.integers(20, 5000, (t2, 13, size, size)).astype(np.float32) if t2 else None,
        s2_dates=[f"2019-{n % 12 + 1:02d}-13" for n in range(t2)],
        s2_level=level if t2 else None,
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CropLEMForPreTraining(CropLEMConfig())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(1, 1), (0, 1), (1, 0), (0, 2), (2, 0), (3, 5), (12, 12)]),
    st.integers(1, 20),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(0, 99),
)
def test_every_sample_gives_a_finite_loss_with_gradients(dates, size, patch_size, seed):
    torch.manual_seed(0)
    model = CropLEMForPreTraining(CropLEMConfig(num_hidden_layers=1, decoder_num_hidden_layers=1))
    inputs = PROCESSOR([sample(*dates, size, seed=seed), sample(*dates, size, "L1C", seed=seed + 1)])
    out = model(**inputs, patch_size=patch_size, generator=generator(seed))
    out.loss.backward()
    assert torch.isfinite(out.loss) and out.loss > 0
    for sensor, t, c in (("s1", dates[0], 2), ("s2", dates[1], 13)):
        if t:
            assert out[f"{sensor}_reconstruction"].shape == (2, t, c, size, size)
            target, valid = out[f"{sensor}_target"], inputs[f"{sensor}_valid"]
            assert not (target & ~valid[:, :, None]).any()
            if sensor == "s2":
                assert not (target & ~inputs["s2_bands"][..., None, None]).any()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_parameter_learns(model):
    model.zero_grad()
    for seed, kwargs in enumerate([{"patch_size": 8}, {"patch_size": 1}]):
        pair = [sample(2, 2, 9, seed=seed), sample(2, 2, 9, "L1C", seed=9)]
        model(**PROCESSOR(pair), **kwargs, generator=generator(seed)).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 128])
def test_the_count_of_visible_tokens(n, ratio):
    present = torch.zeros(2, 130, dtype=torch.bool)
    present[:, 2 : n + 2] = True
    order, visible, mask = select_visible(torch.rand(2, 130, generator=generator()), present, ratio)
    expected = 1 if n == 1 else min(max(round(n * (1 - ratio)), 1), n - 1)
    assert visible.sum(1).tolist() == [expected] * 2 and mask.sum(1).tolist() == [n - expected] * 2
    assert present.gather(1, order)[:, :n].all()
    assert not (mask.bool() & ~present).any()


def test_mask_kinds():
    shape = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2), torch.arange(2))  # 24 tokens
    present = torch.ones(1, 24, dtype=torch.bool)

    def hidden(kind, ratio):
        weights = [float(k == kind) for k in range(4)]
        return shape[select_visible(draw_noise(shape, 1, weights, generator(3)), present, ratio)[2][0].bool()]

    assert len(hidden(1, 0.5)[:, 0].unique()) == 1  # half of the tokens: one whole sensor
    assert len((hidden(2, 0.5)[:, 0] * 3 + hidden(2, 0.5)[:, 1]).unique()) == 3  # three of six dates
    places = hidden(3, 0.5)[:, 2] * 2 + hidden(3, 0.5)[:, 3]
    assert sorted(torch.bincount(places).tolist(), reverse=True)[:2] == [6, 6]  # two places, on all dates and sensors
    assert len(hidden(0, 0.5)) == 12


def test_hidden_bands_leave_one_and_exist():
    bands = torch.rand(64, 3, 13, generator=generator()) < 0.7
    bands[0] = False
    bands[1, 0] = torch.arange(13) == 4
    x = SensorInput(torch.zeros(64, 3, 13, 1, 1), torch.zeros(64, 3), torch.ones(64, 3, 1, 1, dtype=torch.bool), bands)
    always = torch.arange(64) % 2 == 0
    hide = draw_hidden_bands(x, always, 0.0, generator())
    assert not (hide & ~bands).any()
    assert ((bands & ~hide).any(-1) == bands.any(-1)).all()
    assert not hide[1::2].any()
    enough = bands.sum(-1) > 1
    assert hide.any(-1)[::2][enough[::2]].all()


def test_a_hidden_band_does_not_leak(model):
    """The value of a hidden band must not reach the prediction."""
    inputs = PROCESSOR(sample(0, 2))
    model.eval()
    outs = []
    for shift in (0.0, 5.0):
        changed = dict(inputs)
        first = model(**inputs, patch_size=1, generator=generator(4))
        changed["s2_values"] = inputs["s2_values"] + shift * first.s2_target
        outs.append(model(**changed, patch_size=1, generator=generator(4)))
    model.train()
    assert outs[0].s2_target.sum() >= 12
    assert torch.equal(outs[0].s2_reconstruction, outs[1].s2_reconstruction)
    assert outs[0].loss != outs[1].loss


def test_the_same_generator_gives_the_same_loss(model):
    inputs = PROCESSOR([sample(2, 2, 9), sample(2, 2, 9, seed=1)])
    a, b, c = (model(**inputs, generator=generator(s)).loss.item() for s in (0, 0, 1))
    assert a == b != c


def test_two_token_samples_train():
    """Two optical dates of one pixel, two tokens: the loss falls well below that of predicting the mean."""
    torch.manual_seed(0)
    model = CropLEMForPreTraining(CropLEMConfig(num_hidden_layers=2, decoder_num_hidden_layers=1))
    rng = np.random.default_rng(0)
    samples = []
    for n in range(256):
        spectrum = rng.choice([0.5, 1.0, 2.0]) * np.linspace(500, 3000, 13)
        spectrum[10] = 20
        s2 = (spectrum[None] * np.array([[1.0], [1.3]]))[:, :, None, None]
        samples.append(make_sample(str(n), s2=s2, s2_dates=["2019-04-01", "2019-10-01"], s2_level="L1C"))
    inputs = PROCESSOR(samples)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(150):
        loss = model(**inputs, patch_size=1, generator=generator(step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3])


def test_radar_at_one_pixel_is_compared_without_speckle():
    values = torch.randn(1, 4, 2, 5, 5)
    valid = torch.ones(1, 4, 5, 5, dtype=torch.bool)
    valid[0, 0, 0, 0] = False
    x = SensorInput(values, torch.zeros(1, 4), valid, torch.ones(1, 4, 2, dtype=torch.bool))
    smooth = smooth_radar(x)
    torch.testing.assert_close(smooth[0, 1, :, 2, 2], values[0, 1, :, 1:4, 1:4].mean(dim=(-1, -2)))
    torch.testing.assert_close(smooth[0, 0, :, 1, 0], values[0, 0, :, :3, :2].flatten(1)[:, 1:].mean(-1))
    series = SensorInput(values[..., :1, :1], x.days, valid[..., 1:2, 1:2], x.bands)
    torch.testing.assert_close(smooth_radar(series)[0, 1, :, 0, 0], values[0, :3, :, 0, 0].mean(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_pix_loss": True}, "norm_pix_loss"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_weights": [1.0]}, "mask_weights"),
        ({"hidden_size": 100}, "hidden_size"),
        ({"train_patch_sizes": [32]}, "train_patch_sizes"),
        ({"s2_indices": [["B08", "NIR"]]}, "s2_indices"),
        ({"s2_indices": [["B08", "B08"]]}, "s2_indices"),
        ({"s2_mean": [0.0]}, "s2_mean"),
        ({"pooling": "max"}, "pooling"),
        ({"latent_weight": -1.0}, "latent_weight"),
        ({"agreement_temperature": 0.0}, "agreement_temperature"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CropLEMConfig(**change)


# What is told from the whole embedding

ALL_TERMS = {
    "num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "s2_indices": [["B08", "B04"]], "pooling": "mean_std",
    "summary_weight": 0.5, "latent_size": 7, "latent_weight": 2.0, "agreement_weight": 0.25,
}  # fmt: skip


@pytest.fixture
def complete():
    torch.manual_seed(0)
    return CropLEMForPreTraining(CropLEMConfig(**ALL_TERMS))


def test_the_loss_is_the_weighted_sum_of_its_terms_and_reaches_every_parameter(complete):
    for seed, p in enumerate([8, 1]):
        inputs = PROCESSOR([sample(2, 2, 9, seed=seed), sample(2, 2, 9, "L1C", seed=9)])
        out = complete(**inputs, patch_size=p, generator=generator(seed), latent_target=torch.randn(2, 7))
        terms = out.reconstruction_loss, out.summary_loss, out.latent_loss, out.agreement_loss
        assert all(term > 0 for term in terms)
        weighted = sum(w * t for w, t in zip((1.0, 0.5, 2.0, 0.25), terms, strict=True))
        torch.testing.assert_close(out.loss, weighted)
        out.loss.backward()
    assert [n for n, p in complete.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("dates", [(2, 2), (0, 2), (2, 0)])
@pytest.mark.parametrize("vectors", ["all", "one", "nan", None])
def test_as_many_passes_whatever_a_batch_holds(complete, dates, vectors, monkeypatch):
    """Processes that met different numbers of passes would wait for each other for ever."""
    inputs = PROCESSOR([sample(*dates, seed=n) for n in range(3)])
    target = torch.full((3, 7), float("nan")) if vectors else None
    if vectors in ("all", "one"):
        target[: 3 if vectors == "all" else 1] = 1.0
    passes = []
    complete.croplem.register_forward_hook(lambda *_: passes.append(1))
    out = complete(**inputs, patch_size=1, generator=generator(), latent_target=target)
    out.loss.backward()
    assert len(passes) == 4
    assert torch.isfinite(out.loss) and (out.agreement_loss > 0) == (dates == (2, 2))
    assert (out.latent_loss > 0) == (vectors in ("all", "one"))
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in complete.parameters())


def test_agreement_leaves_out_places_that_lack_a_sensor(complete):
    both = [sample(2, 2, seed=n) for n in range(2)]
    alone = complete(**PROCESSOR(both), patch_size=1, generator=generator()).agreement_loss
    mixed = PROCESSOR([sample(2, 0, seed=8), both[0], sample(0, 2, seed=9), both[1]])
    torch.testing.assert_close(complete(**mixed, patch_size=1, generator=generator()).agreement_loss, alone)
    one = complete(**PROCESSOR([both[0], sample(0, 2, seed=9)]), patch_size=1, generator=generator())
    assert one.agreement_loss == 0 and torch.isfinite(one.loss)


def test_a_target_of_the_wrong_length_is_refused(complete):
    with pytest.raises(ValueError, match=r"latent_target must be \(1, 7\), found \(1, 3\)"):
        complete(**PROCESSOR(sample(1, 1)), patch_size=1, latent_target=torch.zeros(1, 3))


def test_a_hidden_band_does_not_leak_through_an_index(complete):
    complete.eval()
    inputs, outs = PROCESSOR(sample(0, 2)), []
    for shift in (0.0, 5.0):
        first = complete(**inputs, patch_size=1, generator=generator(4))
        changed = inputs | {"s2_values": inputs["s2_values"] + shift * first.s2_target}
        outs.append(complete(**changed, patch_size=1, generator=generator(4)))
    assert torch.equal(outs[0].s2_reconstruction, outs[1].s2_reconstruction)


def test_the_summary_holds_what_was_measured():
    values = torch.arange(24.0).reshape(1, 2, 3, 2, 2)
    measured = torch.ones_like(values, dtype=torch.bool)
    measured[:, :, 2] = False
    measured[:, 1, 1] = False
    out, there = summarise(values, measured)
    assert there[0].tolist() == [True, True, False] * 4 and not out[0, 2::3].any()
    first, second = values[:, :, 0].flatten(), values[:, 0, 1].flatten()
    for channel, x in enumerate((first, second)):
        expected = torch.stack([x.mean(), 2 * x.std(correction=0), x.min(), x.max()])
        torch.testing.assert_close(out[0, channel::3], expected)


def test_contrast_is_least_where_pairs_belong_together():
    x = torch.randn(16, 8, generator=generator())
    assert contrast(x, 3 * x, 0.1) < 0.1 < contrast(x, x.roll(1, 0), 0.1)
    assert contrast(x[:1], x[:1], 0.1) == 0


def test_the_encoder_loads_from_a_complete_checkpoint_without_complaint(complete, tmp_path):
    complete.save_pretrained(tmp_path)
    model, report = CropLEMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(model.embeddings.projection["s2"].weight, complete.croplem.embeddings.projection["s2"].weight)
