import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from croplem_hf import sensors
from croplem_hf.errors import DataError
from croplem_hf.sensors import S2_BANDS, harmonise_s2, s1_to_db, s2_to_dn

DB = st.floats(-45, 10, width=32)


def stack(value=1500, shape=(1, 13, 2, 2), dtype=np.uint16, b10=20):
    values = np.full(shape, value, dtype)
    values[:, S2_BANDS.index("B10")] = b10
    return values


def test_every_band_has_its_statistics():
    for table in (
        sensors.S2_WAVELENGTHS_NM,
        sensors.S2_RESOLUTION_M,
        sensors.S2_MEAN,
        sensors.S2_STD,
        sensors.L2A_BANDS,
    ):
        assert len(table) == len(S2_BANDS) == 13
    assert len(sensors.S1_MEAN) == len(sensors.S1_STD) == len(sensors.S1_BANDS) == 2
    assert [band for band, kept in zip(S2_BANDS, sensors.L2A_BANDS, strict=True) if not kept] == ["B10"]


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4), elements=DB))
def test_power_and_db_are_one_thing(db):
    linear = 10 ** (db.astype(np.float64) / 10)
    np.testing.assert_allclose(s1_to_db(linear, units="linear"), db, atol=1e-4)
    assert np.array_equal(s1_to_db(db, units="db"), db)


@given(hnp.arrays(np.float32, (2, 5), elements=st.floats(-45, -1, width=32)))
def test_radar_units_are_detected(db):
    assert np.array_equal(s1_to_db(db), db)
    np.testing.assert_allclose(s1_to_db(10 ** (db / 10)), db, atol=1e-4)


def test_radar_without_measurement_is_nan_never_a_number():
    assert np.isnan(s1_to_db(np.array([0.0, np.inf, np.nan]), units="linear")).all()
    assert np.array_equal(np.isnan(s1_to_db(np.array([-12.0, np.inf, -np.inf]))), [False, True, True])
    assert np.isnan(s1_to_db(np.full(3, np.nan))).all()


@pytest.mark.parametrize(
    ("values", "units", "text"),
    [
        ([100.0, 250.0, 300.0], "auto", "place.tif: .*neither dB nor linear"),
        ([-9999.0, -12.0], "auto", "place.tif: .*-9999.*nodata"),
        ([-1200.0, -900.0], "db", "place.tif: .*outside"),
        ([-12.0], "decibel", "place.tif: .*'decibel'"),
    ],
)
def test_radar_in_other_units_is_refused(values, units, text):
    with pytest.raises(DataError, match=text):
        s1_to_db(np.array(values), units=units, where="place.tif")


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4).map(lambda s: (s[0], 13, *s[1:]))))
def test_digital_numbers_without_offset_stay_bit_by_bit(values):
    values[:, S2_BANDS.index("B10")] %= 949
    values[:, S2_BANDS.index("B10")] += 1
    assert s2_to_dn(values) is values
    assert np.array_equal(s2_to_dn(values, offset=0), values)


@given(hnp.arrays(np.float32, (2, 13, 2, 3), elements=st.floats(0.015625, 1.5, width=32)))
def test_reflectance_is_scaled(values):
    dn = s2_to_dn(values)
    assert dn.dtype == np.float32
    np.testing.assert_allclose(dn, values * 10000, rtol=1e-6)


def test_reflectance_in_integers_does_not_overflow():
    assert s2_to_dn(stack(9, b10=0), units="reflectance").max() == 90000


def test_offset_is_found_per_date_and_only_where_certain():
    plain, shifted = stack(), stack(2500, b10=1020)
    out, note = harmonise_s2(np.concatenate([plain, shifted]))
    assert out.dtype == np.uint16 and np.array_equal(out[0], plain[0]) and np.array_equal(out[1], shifted[0] - 1000)
    assert note == "offset 1000 off (B10)"
    # A date with one dark pixel in another band has no offset, whatever a cloud does to B10.
    shifted[0, 3, 0, 0] = 200
    assert np.array_equal(s2_to_dn(shifted), shifted)


def test_an_offset_that_is_said_is_taken_off_whatever_the_values():
    assert s2_to_dn(stack(2500), offset=1000)[0, :, 0, 0].tolist() == [1500] * 10 + [0] + [1500] * 2


@pytest.mark.parametrize("b10", [1400, 1020, 0])
def test_an_offset_that_cannot_be_told_is_asked_for(b10):
    # Thick cirrus all over; the offset without B10 in a few pixels; B10 that was not measured.
    values, bands = stack(3500, b10=b10), np.array([sensors.L2A_BANDS]) if b10 == 1020 else None
    with pytest.raises(DataError, match=r"tile: .*say 0 or 1000 as the offset"):
        s2_to_dn(values, bands=bands, where="tile")
    assert np.array_equal(s2_to_dn(values, bands=bands, offset=0), values)
    assert s2_to_dn(values, bands=bands, offset=1000).max() == 2500


def test_offset_ignores_nodata_and_never_goes_below_zero():
    values = stack(2500, shape=(1, 13, 3, 3), b10=1020)
    values[..., 0, 0] = 0
    for dtype in (np.uint16, np.int16, np.float32):
        out = s2_to_dn(values.astype(dtype))
        assert out[0, 0, 0, 0] == 0 and out[0, 0, 1, 1] == 1500


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        (stack(), {"units": "percent"}, "'percent'"),
        (stack(), {"offset": 500}, "found 500"),
        (stack(), {"units": "reflectance"}, "not reflectance"),
        (stack(-9999, dtype=np.int16), {}, "-9999"),
        (stack(1e6, dtype=np.float32), {}, "1e\\+06"),
    ],
)
def test_optics_in_other_units_are_refused(values, options, text):
    with pytest.raises(DataError, match=f"tile: .*{text}"):
        s2_to_dn(values, where="tile", **options)


def test_nothing_present_stays_nothing():
    assert np.isnan(s2_to_dn(np.full((1, 13, 1, 1), np.nan))).all()
