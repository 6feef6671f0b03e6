import numpy as np
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data import check_sample, make_sample
from croplem_hf.data.sample import METADATA, SENSOR_KEYS, parse_date
from croplem_hf.errors import DataError
from croplem_hf.sensors import L2A_BANDS, S2_BANDS

B10 = S2_BANDS.index("B10")


def dates(n):
    return [f"2019-{1 + k % 12:02d}-15" for k in range(n)]


@st.composite
def inputs(draw):
    """Arguments of make_sample: any number of dates and pixels, one sensor or both, missing bands, dates and pixels."""
    which = draw(st.sampled_from([("s1",), ("s2",), ("s1", "s2")]))
    height, width = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    fields = {}
    if "s1" in which:
        t = draw(st.integers(1, 6))
        fields["s1"] = rng.normal(-14, 4, (t, 2, height, width)).astype(np.float32)
        fields["s1"][rng.random(t) < 0.3] = np.nan
        fields["s1"][..., rng.random((height, width)) < 0.2] = np.nan
        fields |= {"s1_dates": dates(t), "s1_kind": "sigma0"}
    if "s2" in which:
        t = draw(st.integers(1, 6))
        fields["s2"] = rng.integers(1, 9000, (t, 13, height, width)).astype(np.float32)
        fields["s2"][rng.random((t, 13)) < 0.2] = np.nan
        fields["s2"][rng.random(t) < 0.3] = np.nan
        fields["s2_valid"] = rng.random((t, height, width)) < 0.8
        fields |= {"s2_dates": dates(t), "s2_level": draw(st.sampled_from(["L1C", "L2A"]))}
    return fields


@given(inputs())
def test_what_is_valid_is_what_was_measured(fields):
    try:
        sample = make_sample("place", **fields)
    except DataError as error:
        assert "place: nothing valid" in str(error)
        return
    assert check_sample(sample) is sample
    assert set(METADATA) | set(SENSOR_KEYS) <= set(sample)
    for sensor in ("s1", "s2"):
        if sample[sensor] is None:
            assert sample[f"{sensor}_valid"] is None and sample[f"{sensor}_dates"] == []
            continue
        assert sample[sensor].tobytes() == fields[sensor].tobytes()
        assert sample[f"{sensor}_dates"] == fields[f"{sensor}_dates"]
    if sample["s1"] is not None:
        assert np.array_equal(sample["s1_valid"], np.isfinite(fields["s1"]).all(axis=1))
    if sample["s2"] is not None:
        bands = sample["s2_bands"]
        assert not (sample["s2_level"] == "L2A" and bands[:, B10].any())
        for t, kept in enumerate(bands):
            seen = sample["s2"][t][kept][:, sample["s2_valid"][t]]
            assert np.isfinite(seen).all()
            assert kept.any() or not sample["s2_valid"][t].any()


@given(st.integers(1, 4), st.integers(1, 4))
def test_one_measured_sensor_is_enough_and_the_empty_one_becomes_none(t1, t2):
    s1, s2 = np.full((t1, 2, 3, 3), np.nan), np.full((t2, 13, 3, 3), 900, np.uint16)
    sample = make_sample("p", s1=s1, s1_dates=dates(t1), s2=s2, s2_dates=dates(t2), s2_level="L1C")
    assert sample["s1"] is None and sample["s1_kind"] is None
    assert sample["s2"].dtype == np.uint16 and sample["s2_valid"].all() and sample["s2_bands"].all()


def test_level_l2a_has_no_b10_whatever_the_array_holds():
    s2 = np.full((1, 13, 1, 1), 900, np.uint16)
    sample = make_sample("p", s2=s2, s2_dates=dates(1), s2_level="L2A")
    assert sample["s2_bands"].tolist() == [list(L2A_BANDS)]


def test_bands_said_to_be_missing_do_not_count():
    s2 = np.full((1, 13, 1, 1), 900, np.uint16)
    said = np.zeros((1, 13), bool)
    said[0, 3] = True
    sample = make_sample("p", s2=s2, s2_dates=dates(1), s2_level="L1C", s2_bands=said)
    assert np.array_equal(sample["s2_bands"], said) and sample["s2_valid"].all()
    with pytest.raises(DataError, match="p: nothing valid"):
        make_sample("p", s2=s2, s2_dates=dates(1), s2_level="L1C", s2_bands=~np.ones((1, 13), bool))


S1, S2 = np.full((2, 2, 3, 3), -12.0, np.float32), np.full((2, 13, 3, 3), 900, np.uint16)
GOOD = {"s1": S1, "s1_dates": dates(2), "s2": S2, "s2_dates": dates(2), "s2_level": "L1C"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"s1": S1[:, :1]}, r"s1 must have shape \(T, 2, H, W\)"),
        ({"s2": S2[:, :12]}, r"s2 must have shape \(T, 13, H, W\)"),
        ({"s1_dates": dates(3)}, "s1 has 2 dates of pixels but 3"),
        ({"s2_dates": ["2019-01-15", "15/02/2019"]}, "s2_dates: '15/02/2019' is not an ISO date"),
        ({"s2_level": None}, "s2_level must be one of"),
        ({"s2_level": "L3"}, "'L3'"),
        ({"s1_valid": np.ones((2, 3, 4), bool)}, "s1_valid has shape"),
        ({"s2_valid": np.ones((1, 3, 3), bool)}, "s2_valid has shape"),
        ({"s2_bands": np.ones((2, 12), bool)}, "s2_bands has shape"),
        ({"s1": S1[..., :2]}, "bring both to one grid"),
        ({"gsd": 0}, "gsd must be metres"),
        ({"gsd": float("nan")}, "gsd must be metres"),
        ({"s1": None, "s2": None}, "nothing valid"),
        ({"s1": None, "s2_valid": np.zeros((2, 3, 3), bool)}, "nothing valid"),
    ],
)
def test_what_breaks_the_contract_is_refused_by_name(change, text):
    with pytest.raises(DataError, match=f"field 7: .*{text}"):
        make_sample("field 7", **(GOOD | change))


def test_check_sample_refuses_what_make_sample_did_not_build():
    with pytest.raises(DataError, match="needs an id"):
        check_sample({})
    with pytest.raises(DataError, match="x: keys .*s2_level"):
        check_sample({"id": "x", "gsd": 10})
    sample = make_sample("x", **GOOD)
    for change, text in (
        ({"s1_valid": np.ones((2, 3, 3))}, "s1_valid must be bool"),
        ({"s2_bands": None}, "s2_bands must be bool"),
        ({"s2_level": "L4"}, "s2_level"),
    ):
        with pytest.raises(DataError, match=f"x: {text}"):
            check_sample(sample | change)


def test_metadata_travels_and_unknown_is_none():
    sample = make_sample("p", **GOOD, region="Iran", irrigated=True)
    assert sample["region"] == "Iran" and sample["irrigated"] is True and sample["lon"] is None and sample["lc"] is None


def test_dates():
    assert parse_date("2019-06-15T10:30:00Z").isoformat() == "2019-06-15"
    with pytest.raises(DataError, match="row 3: 'June'"):
        parse_date("June", "row 3")
