"""The processor: standardised values, days, and nothing that looks like data where there is none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from croplem_hf import CropLEMConfig, CropLEMImageProcessor, make_sample, sensors

PROCESSOR = CropLEMImageProcessor()


def test_bands_and_statistics_equal_those_of_sensors():
    config = CropLEMConfig()
    for thing in (config, PROCESSOR):
        assert tuple(thing.s1_bands) == sensors.S1_BANDS
        assert tuple(thing.s2_bands) == sensors.S2_BANDS
        assert tuple(thing.s2_levels) == sensors.S2_LEVELS
    for key in ("S1_MEAN", "S1_STD", "S2_MEAN", "S2_STD"):
        assert tuple(getattr(PROCESSOR, key.lower())) == getattr(sensors, key)


def test_standardised_values_and_days():
    s2 = np.full((2, 13, 1, 1), 2000, np.uint16)
    s2[:, sensors.S2_BANDS.index("B10")] = 30
    s1 = np.array([-10.0, -20.0], np.float32).reshape(1, 2, 1, 1)
    s = make_sample(
        "a", s1=s1, s1_dates=["2019-12-31"], s2=s2, s2_dates=["2019-11-01", "2020-01-05T10:00:00"], s2_level="L1C"
    )
    out = PROCESSOR(s)
    np.testing.assert_allclose(out["s2_values"][0, 0, :, 0, 0], (s2[0, :, 0, 0] - np.array(sensors.S2_MEAN)) / sensors.S2_STD, rtol=1e-5)  # noqa: E501
    np.testing.assert_allclose(out["s1_values"][0, 0, :, 0, 0], (s1[0, :, 0, 0] - sensors.S1_MEAN) / sensors.S1_STD, rtol=1e-5)  # noqa: E501
    assert out["s1_days"].tolist() == [[364]] and out["s2_days"].tolist() == [[304, 369]]
    assert out["gsd"].tolist() == [10.0] and out["s2_level"].tolist() == [0]
    assert out["s2_values"].dtype == torch.float32 and out["s2_valid"].dtype == torch.bool


def test_dry_radar_is_kept():
    s1 = np.array([-30.0, -40.0], np.float32).reshape(1, 2, 1, 1)
    a, b = (PROCESSOR(make_sample("a", s1=s1 + d, s1_dates=["2019-05-01"]))["s1_values"] for d in (0, 1))
    assert (b > a).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_batch_of_samples(data):
    """Any T1, T2, size, missing sensor, band, date and pixel: finite, zero where missing, the rest unchanged."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    samples = []
    for n in range(data.draw(st.integers(1, 3))):
        size = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
        t1, t2 = data.draw(st.sampled_from([(0, 1), (1, 0), (1, 1), (3, 2), (2, 5)]))
        s1, s2 = rng.normal(-12, 6, (t1, 2, *size)), rng.uniform(0, 12000, (t2, 13, *size))
        if data.draw(st.booleans()):
            s1[rng.random(s1.shape) < 0.3] = np.nan
            s2[rng.random(s2.shape[:2]) < 0.3] = np.nan
            s2[rng.random(s2.shape) < 0.02] = np.nan
        if t1:
            s1[0, :, 0, 0] = -11
        if t2:
            s2[0, 1, 0, 0] = s2[0, 2, 0, 0] = 500
        samples.append({
            "id": str(n), "gsd": 10.0, "s1": s1 if t1 else None, "s1_dates": ["2018-05-01"] * t1,
            "s2": s2 if t2 else None, "s2_dates": [f"2019-{k + 1:02d}-11" for k in range(t2)],
            "s2_level": data.draw(st.sampled_from(["L1C", "L2A"])),
        })  # fmt: skip
        valid = [np.isfinite(s1).all(1).any() if t1 else False]
        bands = np.isfinite(s2).any((2, 3)) & (
            np.array([samples[-1]["s2_level"] == "L1C" or b != "B10" for b in sensors.S2_BANDS])
        )
        valid.append(
            ((np.isfinite(s2) | ~bands[:, :, None, None]).all(1) & bands.any(1)[:, None, None]).any() if t2 else False
        )
        if not any(valid):
            samples.pop()
    if not samples:
        return
    out = PROCESSOR(samples, return_tensors="np")
    for sensor in ("s1", "s2"):
        if f"{sensor}_values" not in out:
            continue
        values, valid = out[f"{sensor}_values"], out[f"{sensor}_valid"]
        assert np.isfinite(values).all() and values.dtype == np.float32
        assert (values[~np.broadcast_to(valid[:, :, None], values.shape)] == 0).all()
        mean, std = (np.array(getattr(PROCESSOR, f"{sensor}_{k}")) for k in ("mean", "std"))
        for n, s in enumerate(samples):
            t, h, w = (0, 0, 0) if s[sensor] is None else (len(s[sensor]), *s[sensor].shape[2:])
            assert not valid[n, t:].any() and not valid[n, :, h:].any() and not valid[n, :, :, w:].any()
            if t:
                expected = np.clip((s[sensor] - mean[:, None, None]) / std[:, None, None], -8, 8)
                used = np.broadcast_to(valid[n, :t, None, :h, :w], expected.shape)
                if sensor == "s2":
                    used = used & out["s2_bands"][n, :t, :, None, None]
                np.testing.assert_allclose(values[n, :t, :, :h, :w][used], expected[used], rtol=1e-4, atol=1e-4)
                assert (values[n, :t, :, :h, :w][~used] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2": np.zeros((1, 12, 2, 2))}, r"field-7: s2 must have shape \(T, 13, H, W\)"),
        ({"s2_dates": ["12/05/2019"]}, "field-7: s2_dates must be ISO"),
        ({"s2_dates": []}, "field-7: s2_dates must hold 1"),
        ({"s2_level": "L3"}, "field-7: s2_level"),
        ({"s2_valid": np.ones((1, 3, 3), bool)}, "field-7: s2_valid"),
        ({"s2_valid": np.zeros((1, 2, 2), bool)}, "field-7: nothing valid"),
        ({"s2": None}, "field-7: nothing valid"),
        ({"s1": np.zeros((1, 2, 3, 3)), "s1_dates": ["2019-01-01"]}, "different sizes"),
    ],
)
def test_bad_samples_are_refused_by_name(change, message):
    good = {"id": "field-7", "s2": np.ones((1, 13, 2, 2)), "s2_dates": ["2019-05-01"], "s2_level": "L1C"}
    assert PROCESSOR(good)["s2_values"].shape == (1, 1, 13, 2, 2)
    with pytest.raises(ValueError, match=message):
        PROCESSOR(good | change)


def test_no_samples_and_unknown_sensors_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        PROCESSOR([])
    with pytest.raises(ValueError, match="sensors must be"):
        PROCESSOR({"id": "x"}, sensors=["s3"])
