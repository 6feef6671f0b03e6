"""Pretraining: what is hidden, what counts in the loss, and that few tokens still teach."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from croplem_hf import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, make_sample
from croplem_hf.model.tokens_croplem import SensorInput, draw_hidden_bands, draw_noise, select_visible, smooth_radar

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
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CropLEMConfig(**change)
