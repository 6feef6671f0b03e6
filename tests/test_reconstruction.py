"""Pictures of reconstructions: what is shown is what the model was given and what it predicted."""

import numpy as np
import pytest
import torch
from PIL import Image

from croplem_hf import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor, make_sample, open_source
from croplem_hf.errors import DataError
from croplem_hf.pictures import CELL, GAP, GREY
from croplem_hf.reconstruction import reconstruct, reconstruction_sheet

PROCESSOR = CropLEMImageProcessor()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CropLEMForPreTraining(CropLEMConfig(num_hidden_layers=1, decoder_num_hidden_layers=1)).train()


@pytest.fixture(scope="module")
def samples(sen12ms_tree):
    """Pairs, radar alone, optics alone, and a series with a gap."""
    source = list(open_source(sen12ms_tree))
    rng = np.random.default_rng(0)
    optics = rng.integers(100, 4000, (6, 13, 1, 1)).astype(np.float32)
    optics[2] = np.nan
    dates = [f"2019-{month:02d}-05" for month in range(1, 7)]
    series = make_sample(
        "series", s1=rng.normal(-12, 3, (6, 2, 1, 1)), s1_dates=dates, s2=optics, s2_dates=dates, s2_level="L2A"
    )
    alone = [next(s for s in source if s[missing] is None) for missing in ("s1", "s2")]
    return [source[0], source[1], source[2], *alone, series]


def test_hidden_values_are_predicted_and_the_rest_is_the_input(model, samples):
    results = reconstruct(model, PROCESSOR, samples)
    assert len(results) == len(samples)
    for sample, result in zip(samples, results, strict=True):
        inputs = PROCESSOR(sample)
        assert [s for s in ("s1", "s2") if s in result] == [s for s in ("s1", "s2") if sample[s] is not None]
        hidden, measured = 0, 0
        for sensor in set(result) - {"hidden"}:
            truth, seen, predicted = (result[sensor][key] for key in ("input", "seen", "predicted"))
            valid = np.isfinite(truth)
            expected = inputs[f"{sensor}_valid"][0][:, None].numpy() & np.ones((1, truth.shape[1], 1, 1), bool)
            if sensor == "s2":
                expected &= inputs["s2_bands"][0][..., None, None].numpy()
            assert np.array_equal(valid, expected)
            assert np.array_equal(truth[valid], inputs[f"{sensor}_values"][0].numpy()[valid])
            shown = np.isfinite(seen)
            assert not (shown & ~valid).any() and np.array_equal(seen[shown], truth[shown])
            assert np.array_equal(np.isfinite(predicted), valid) and np.array_equal(predicted[shown], truth[shown])
            assert (predicted[valid & ~shown] != truth[valid & ~shown]).mean() > 0.99
            hidden, measured = hidden + (valid & ~shown).sum(), measured + valid.sum()
        assert 0.4 < hidden / measured < 1


def test_the_kinds_of_masks_take_turns(model, samples):
    pairs = [samples[0]] * 3
    single, places, sensor = reconstruct(model, PROCESSOR, pairs)
    gone = [[np.isnan(r[s]["seen"]).all(axis=(0, 1)) for s in ("s1", "s2")] for r in (single, places, sensor)]
    assert not np.array_equal(*gone[0]) and np.array_equal(*gone[1])
    assert sorted(float(x.mean()) for x in gone[2]) == [0.5, 1.0]
    assert {r["hidden"] for r in (single, places, sensor)} == {
        "single patches and dates", "the same places of all dates and sensors", "a whole sensor first",
    }  # fmt: skip


def test_pictures_repeat_and_leave_the_model_as_it_was(model, samples):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, other = (reconstruct(model, PROCESSOR, samples, seed=3) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert all(np.array_equal(a[s]["seen"], b[s]["seen"], equal_nan=True) for s in set(a) - {"hidden"})
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.config.band_mask_prob == 0.5 and list(model.config.mask_weights) == list(CropLEMConfig().mask_weights)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = reconstruct(model, PROCESSOR, samples, seed=4)
    assert not np.array_equal(one[0]["s1"]["seen"], other[0]["s1"]["seen"], equal_nan=True)


def test_a_sample_that_cannot_be_shown_is_named_and_the_model_recovers(model, samples):
    with pytest.raises(DataError, match="odd"):
        reconstruct(model, PROCESSOR, [samples[0] | {"id": "odd", "s2": samples[0]["s2"][:, :5]}])
    assert model.training and model.config.band_mask_prob == 0.5


def cell(picture, row, column):
    """Pixels (CELL, CELL, 3) of one panel: columns 0 to 2 optics, 3 to 5 radar."""
    x = GAP + column * (CELL + GAP) + (3 * GAP if column > 2 else 0)
    y = 40 + GAP + row * (CELL + 32)
    return picture[y : y + CELL, x : x + CELL]


def test_the_sheet_shows_what_was_hidden_in_grey(model, samples, tmp_path):
    results = reconstruct(model, PROCESSOR, samples)
    path = tmp_path / "pictures" / "step-00000001.png"
    reconstruction_sheet(results, [s["id"] for s in samples], PROCESSOR, path, title="step 1")
    picture = np.asarray(Image.open(path))
    assert picture.shape == (40 + GAP + 6 * (CELL + 32), 6 * (CELL + GAP) + 4 * GAP, 3)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    grey = np.array([[(cell(picture, row, n) == GREY).all(axis=-1).mean() for n in range(6)] for row in range(6)])
    for row, (sample, result) in enumerate(zip(samples, results, strict=True)):
        for column, sensor in ((0, "s2"), (3, "s1")):
            if sample[sensor] is None:
                assert (cell(picture, row, column) == 238).mean() > 0.9
                continue
            seen = result[sensor]["seen"]
            share = np.isnan(seen[:, [3, 2, 1] if sensor == "s2" else [0, 1]]).any(axis=1).mean()
            if seen.shape[2:] == (1, 1):
                share = np.isnan(seen).mean()
            assert grey[row, column + 1] == pytest.approx(share, abs=0.03)
            assert grey[row, column] < 0.25 and grey[row, column + 2] < 0.25
    # Where nothing was hidden the picture is the input's.
    for column in (0, 3):
        first, second, third = (cell(picture, 0, column + n).astype(int) for n in range(3))
        visible = (second != GREY).any(axis=-1)
        assert (np.abs(first - second)[visible].max(axis=-1) == 0).mean() > 0.99
        assert (np.abs(first - third)[visible].max(axis=-1) == 0).mean() > 0.99
