"""One harmonisation for all readers: what is decided about units, offset and order, and from which evidence."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, strategies as st

from croplem_hf.errors import DataError
from croplem_hf.sensors import (
    L2A_BANDS,
    S2_BANDS,
    decide_s1_units,
    decide_s2_offset,
    decide_s2_units,
    harmonise_s1,
    harmonise_s2,
    misplaced_b10,
    offset_by_name,
)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # netCDF chips

B10 = S2_BANDS.index("B10")
L2A = np.array(L2A_BANDS)
# Surface reflectance x 10000 of B01 .. B12 (B10 of no account): published library spectra, rounded.
SURFACES = {
    "desert": (1100, 1400, 2100, 3000, 3300, 3500, 3600, 3700, 3800, 3800, 0, 4700, 4300),
    "bare soil": (620, 750, 1050, 1450, 1700, 1850, 1950, 2050, 2150, 2200, 0, 2900, 2500),
    "snow": (9000, 9000, 8900, 8700, 8600, 8400, 8200, 8000, 7700, 7400, 0, 1200, 1300),
    "cloud": (5200, 5000, 5000, 5100, 5200, 5300, 5300, 5300, 5300, 5000, 0, 3600, 2700),
    "crop": (250, 300, 550, 350, 900, 2500, 3200, 3400, 3500, 3500, 0, 1700, 850),
    "water": (320, 280, 250, 150, 120, 90, 80, 60, 50, 40, 0, 20, 15),
}


def scene(rng, *surfaces, side=128, spread=0.12):
    """Digital numbers (13, side, side) of level L2A: parts of several surfaces, with texture."""
    which = np.sort(rng.integers(0, len(surfaces), side * side))
    spectra = np.array([SURFACES[name] for name in surfaces], float)[which].T
    texture = rng.lognormal(0, spread, side * side) * rng.lognormal(0, spread / 4, spectra.shape)
    return np.clip(spectra * texture, 1, 16000).reshape(13, side, side).astype(np.uint16)


@given(
    st.lists(st.sampled_from(sorted(SURFACES)), min_size=1, max_size=4, unique=True),
    st.sampled_from([8, 32, 128]),
    st.sampled_from([0, 1000]),
    st.integers(0, 2**32),
)
def test_without_b10_the_offset_is_told_rightly_or_not_at_all(surfaces, side, offset, seed):
    values = scene(np.random.default_rng(seed), *surfaces, side=side) + np.uint16(offset)
    assert decide_s2_offset(values, L2A).value in (offset, None)


@pytest.mark.parametrize(
    ("surfaces", "plain", "shifted"),
    [
        (["desert"], None, None),
        (["bare soil"], 0, None),
        (["snow"], None, None),
        (["cloud"], None, None),
        (["crop"], 0, None),
        (["crop", "water"], 0, 1000),
        (["desert", "water"], 0, 1000),
        (["snow", "water"], 0, 1000),
    ],
)
def test_what_can_be_told_without_b10(surfaces, plain, shifted):
    values = scene(np.random.default_rng(0), *surfaces)
    assert decide_s2_offset(values, L2A).value == plain
    assert decide_s2_offset(values + 1000, L2A).value == shifted


def test_a_few_pixels_are_no_evidence_and_nodata_is_none():
    values = scene(np.random.default_rng(0), "crop", "water") + 1000
    assert decide_s2_offset(values[:, ::4, ::4], L2A).value is None
    values[:, :64] = 0
    assert decide_s2_offset(values, L2A).value is None  # 8,192 pixels are left
    values = np.concatenate([values, values[:, 64:]], axis=1)
    assert decide_s2_offset(values, L2A).value == 1000
    assert decide_s2_offset(np.zeros((13, 4, 4)), L2A).value == 0


def test_bands_of_one_part_of_the_spectrum_never_carry_the_offset_for_certain():
    values, visible = scene(np.random.default_rng(0), "crop", "water"), np.isin(S2_BANDS, ["B02", "B03", "B04"])
    assert decide_s2_offset(values, visible).value == 0
    assert decide_s2_offset(values + 1000, visible).value is None


@pytest.mark.parametrize("surface", ["desert", "snow", "crop"])
def test_b10_settles_bright_places(surface):
    rng = np.random.default_rng(0)
    values = scene(rng, surface, side=32)
    values[B10] = rng.integers(4, 60, (32, 32))
    assert decide_s2_offset(values).value == 0 and decide_s2_offset(values + 1000).value == 1000
    values[B10] = rng.integers(1000, 2500, (32, 32))  # thick cirrus
    assert decide_s2_offset(values).value == (0 if surface == "crop" else None)


@pytest.mark.parametrize(
    ("text", "tags", "value"),
    [
        ("S2A_MSIL2A_20220615T101031_N0400_R022_T33UUP.SAFE/x.tif", {}, 1000),
        ("S2A_MSIL2A_20220615T101031_N0510_R022_T33UUP.tif", {}, 1000),
        ("S2A_MSIL2A_20170613T101031_N0205_R022_T33UUP.tif", {}, 0),
        ("COPERNICUS_S2_SR_HARMONIZED/a.tif", {}, 0),
        ("a.tif", {"PROCESSING_BASELINE": "05.10"}, 1000),
        ("a.tif", {"BOA_ADD_OFFSET_1": "-1000", "BOA_ADD_OFFSET_2": "-1000"}, 1000),
        ("a.tif", {"BOA_ADD_OFFSET": "0", "PROCESSING_BASELINE": "05.10"}, 0),
        ("a.tif", {"BOA_ADD_OFFSET_1": "-1000", "BOA_ADD_OFFSET_2": "0"}, None),
        ("S2A_N0205_.tif", {"PROCESSING_BASELINE": "05.00"}, None),
        ("a.tif", {"AREA_OR_POINT": "Area"}, None),
    ],
)
def test_names_and_tags(text, tags, value):
    assert offset_by_name(text, tags).value == value


@given(st.floats(-25, -5), st.floats(1, 5), st.integers(0, 2**32))
def test_radar_units(mean, spread, seed):
    db = np.random.default_rng(seed).normal(mean, spread, (2, 500)).astype(np.float32)
    assert decide_s1_units(db).value == "db"
    assert decide_s1_units(10 ** (db / 10)).value == "linear"
    for scale in (100, 10_000):
        with pytest.raises(DataError, match="dB x 100 and dB x 10,000 are common"):
            harmonise_s1(db * scale)


def test_radar_with_a_little_below_zero_is_power_and_a_mixture_is_refused():
    rng = np.random.default_rng(0)
    power = rng.exponential(0.05, (2, 1000))
    power[:, :20] *= -1
    values, note = harmonise_s1(power)
    assert note == "linear power to dB" and np.isnan(values[:, :20]).all() and np.isfinite(values[:, 20:]).any()
    with pytest.raises(DataError, match="neither dB nor linear power"):
        harmonise_s1(rng.normal(1.5, 2, (2, 1000)))
    # Digital numbers of GRD products that were never calibrated.
    with pytest.raises(DataError, match="calibrate to sigma0 or gamma0 first"):
        harmonise_s1(rng.integers(20, 400, (2, 1000)))


def test_optical_units():
    values = scene(np.random.default_rng(0), "crop", "water")
    assert decide_s2_units(values).value == decide_s2_units(values.astype(np.float32)).value == "dn"
    assert decide_s2_units(values / np.float32(10000)).value == "reflectance"
    assert decide_s2_units(values / np.float32(100)).value is None  # percent
    assert decide_s2_units((values // 64).astype(np.uint8)).value is None


def test_reflectance_that_kept_the_offset_is_asked_about():
    values = (scene(np.random.default_rng(0), "crop", "water")[None] + 1000) / np.float32(10000)
    bands = L2A[None]
    with pytest.raises(DataError, match=r"tile: this reflectance is 0.1 too high"):
        harmonise_s2(values, bands=bands, where="tile")
    fixed, note = harmonise_s2(values, bands=bands, offset=1000)
    assert note == "reflectance to DN; offset 1000 off" and 0 <= fixed[:, L2A].min() < 200
    assert harmonise_s2(values, bands=bands, offset=0)[1] == "reflectance to DN"


def test_the_order_of_eurosat_is_seen():
    rng = np.random.default_rng(0)
    values = scene(rng, "crop")
    values[B10] = 12
    medians = np.median(values.reshape(13, -1), axis=1)
    eurosat = [*range(8), 9, 10, 11, 12, 8]
    assert misplaced_b10(medians) is None and misplaced_b10(medians[eurosat]) == "B09"


# Every real chip: where the offset is for certain, and what must be decided.


def bands_of(path, names):
    with rasterio.open(path) as raster:
        array = raster.read()
    values = np.zeros((13, *array.shape[1:]), np.float32)
    values[[S2_BANDS.index(name) for name in names]] = array
    return values, np.isin(S2_BANDS, names)


def real_places(root):
    """Yields (name, values (13, H, W), bands, true offset, must it be decided)."""
    l2a = [name for name in S2_BANDS if name != "B10"]
    with_offset = {("S2L1C", "282D"), ("S2L1C", "433D"), ("S2L1C", "609U"), ("S2L2A", "433D")}
    for path in sorted(root.glob("terramesh/S2L??/*.tif")):
        level = path.parent.name
        place = bands_of(path, S2_BANDS if level == "S2L1C" else l2a)
        yield str(path), *place, 1000 * ((level, path.stem[:4]) in with_offset), True
    for folder in ("sen12ms/*/s2_*", "sen12ms_cloudy", "sen1floods11"):
        for path in sorted(root.glob(f"{folder}/*.tif")):
            if "_s2_" in path.name or "cloudy" in folder or "S2Hand" in path.name:
                yield str(path), *bands_of(path, S2_BANDS), 0, True
    for path in sorted(root.glob("bigearthnet/BigEarthNet-S2-Example/*/")):
        values = np.zeros((13, 120, 120), np.float32)
        for name in l2a:
            with rasterio.open(path / f"{path.name}_{name}.tif") as raster:
                band = raster.read(1)
            values[S2_BANDS.index(name)] = band.repeat(120 // len(band), 0).repeat(120 // len(band), 1)
        yield str(path), values, L2A, 0, True
    for path in sorted(root.glob("worldcereal_chips/*/S2_L2A_20m*.nc")):
        stacks = {}
        for file in (path, path.with_name(path.name.replace("20m", "10m"))):
            for name in S2_BANDS if file.is_file() else ():
                try:
                    with rasterio.open(f"netcdf:{file}:{name}") as raster:
                        stacks[name] = raster.read()
                except rasterio.errors.RasterioIOError:
                    continue
        for t in range(len(stacks["B11"])):
            values = np.zeros((13, 64, 64), np.float32)
            for name, stack in stacks.items():
                step = 64 // stack.shape[1]
                values[S2_BANDS.index(name)] = stack[t].repeat(step, 0).repeat(step, 1)
            yield f"{path} date {t}", values, np.isin(S2_BANDS, list(stacks)), 0, False


def test_real_places_with_and_without_the_offset(real_data):
    count = 0
    for name, values, bands, truth, must in real_places(real_data):
        decision, count = decide_s2_offset(values, bands), count + 1
        assert decision.value == truth or (not must and decision.value is None), (name, decision)
        other = np.where(values > 0, np.maximum(values + 1000 - 2 * truth, 1), 0)
        assert decide_s2_offset(other, bands).value in (1000 - truth, None), name
        if bands[B10] and must:
            assert decide_s2_offset(other, bands).value == 1000 - truth, name
            bands[B10] = False
            assert decide_s2_offset(values, bands).value in (truth, None), name
    assert count > 300


def test_real_radar_units(real_data):
    places = ("terramesh/S1RTC/*.tif", "sen1floods11/*S1Hand.tif", "sen12ms/*/s1_*/*.tif")
    for path in [path for place in places for path in real_data.glob(place)]:
        with rasterio.open(path) as raster:
            values = raster.read().astype(np.float32)
        assert decide_s1_units(values).value == "db" and harmonise_s1(values)[1] is None, path
        assert decide_s1_units(10 ** (values / 10)).value == "linear", path


def test_worldcereal_radar_is_scaled_back_by_its_tags_or_refused(real_data):
    from croplem_hf.data.folder import open_scene
    from croplem_hf.data.geotiff import write_geotiff

    path = next(root for root in real_data.glob("worldcereal_chips/*/S1_*.nc"))
    stored = []
    for name in ("VV", "VH"):
        with rasterio.open(f"netcdf:{path}:{name}") as raster:
            stored.append(raster.read(10))
            assert raster.scales[0] == 1e-4
    stored = np.array(stored)
    with pytest.raises(DataError, match="dB x 10,000 are common"):
        harmonise_s1(np.where(stored == 0, np.nan, stored))
    with tempfile.TemporaryDirectory() as folder:
        file = write_geotiff(
            Path(folder, "r.tif"), stored, crs="EPSG:32631", transform=(20, 0, 5e5, 0, -20, 5e6), nodata=0
        )
        Path(folder, "metadata.csv").write_text("path,sensor,date\nr.tif,s1,2018-06-15\n")
        with pytest.raises(DataError, match="line 2 .*dB x 10,000 are common"):
            open_scene(folder)
        with rasterio.open(file, "r+") as raster:
            raster.scales = [1e-4, 1e-4]
        sample = open_scene(folder).read()
    assert sample["s1_correction"] == "scale tags applied"
    valid = sample["s1_valid"][0]
    np.testing.assert_allclose(sample["s1"][0][:, valid], stored[:, valid] / 1e4, rtol=1e-6)
