import csv
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, strategies as st

from croplem_hf.data import check_sample
from croplem_hf.data.folder import ImageFolder, Scene, open_scene
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.data.metadata import read_metadata
from croplem_hf.errors import DataError
from croplem_hf.sensors import L2A_BANDS, S2_BANDS

B10 = S2_BANDS.index("B10")
KEYS = ("s1", "s1_valid", "s2", "s2_valid")


def tif(path: Path, array, size: float = 10, crs="EPSG:32737", x: float = 375410.0, **options) -> str:
    """Writes (bands, H, W) with its upper left always at one place; returns the name for the table."""
    write_geotiff(path, np.asarray(array), crs=crs, transform=(size, 0, x, 0, -size, 8116740.0), **options)
    return path.name


def table(folder: Path, *rows: dict) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(folder / "metadata.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def optics(rng, height=6, width=6, bands=13) -> np.ndarray:
    """Digital numbers of one date; B10 nearly black, B01 below 900 everywhere."""
    values = rng.integers(900, 6000, (13, height, width)).astype(np.uint16)
    values[0] = rng.integers(100, 800, (height, width))
    values[B10] = rng.integers(3, 40, (height, width))
    return values if bands == 13 else values[list(L2A_BANDS)]


def radar(rng, height=6, width=6) -> np.ndarray:
    return rng.normal(-12, 3, (2, height, width)).clip(-30, -1).astype(np.float32)


def same_bits(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and np.ascontiguousarray(a).tobytes() == b.tobytes()


@st.composite
def places(draw):
    """A random place: files to write (name -> arguments of `tif`), lines of the table, what is expected, its size."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    coarse = draw(st.sampled_from([1, 2, 6]))
    height, width = (coarse * draw(st.integers(1, 3)) for _ in range(2))
    t1, t2 = draw(st.tuples(st.integers(0, 2), st.integers(0, 3)).filter(any))
    fraction, split, fill = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([0, np.nan, -9999]))
    files, rows = {}, []
    want = {"s1": [], "s1_valid": [], "s2": [], "s2_valid": [], "s2_bands": []}
    for t in range(t1):
        values, missing = radar(rng, height, width), rng.random((height, width)) < 0.2
        values[:, missing] = fill
        files[f"r{t}.tif"] = {"array": values, "nodata": -9999}
        rows.append({"path": f"r{t}.tif", "sensor": "s1", "date": f"2020-0{t + 1}-05"})
        want["s1"].append(np.where(missing, np.nan, values))
        want["s1_valid"].append(~missing)
    # Coarse bands and masks hold one number for coarse x coarse pixels of the grid.
    slow = np.array([split and name in ("B01", "B09", "B11") for name in S2_BANDS])
    for t in range(t2):
        values, there = optics(rng, height, width), rng.random(13) < 0.7
        there[0] = True
        values[slow] = values[slow, ::coarse, ::coarse].repeat(coarse, 1).repeat(coarse, 2)
        cloudy = rng.random((height // coarse, width // coarse)) < 0.2
        valid = ~cloudy.repeat(coarse, 0).repeat(coarse, 1)
        files[f"m{t}.tif"] = {"array": cloudy[None].astype(np.uint8), "size": 10 * coarse}
        line = {"sensor": "s2", "date": f"2020-0{t + 1}-15", "level": "L1C", "offset": "0", "mask": f"m{t}.tif"}
        stored = values / np.float32(10000) if fraction else values
        for number in np.flatnonzero(there) if split else ():
            step = coarse if slow[number] else 1
            name = f"o{t}_{S2_BANDS[number]}.tif"
            files[name] = {"array": stored[[number], ::step, ::step], "size": 10 * step}
            rows.append(line | {"path": name})
        if not split:
            files[f"o{t}.tif"] = {"array": stored[there]}
            rows.append(line | {"path": f"o{t}.tif", "bands": " ".join(np.array(S2_BANDS)[there])})
        want["s2"].append(np.where(there[:, None, None] & valid, values, 0))
        want["s2_valid"].append(valid)
        want["s2_bands"].append(there)
    # B01 alone is coarse, but some band or radar must be on the finest grid.
    files["fine.tif"] = {"array": radar(rng, height, width)}
    rows.append({"path": "fine.tif", "sensor": "s1", "date": "2020-12-31"})
    want["s1"].append(files["fine.tif"]["array"])
    want["s1_valid"].append(np.ones((height, width), bool))
    return files, draw(st.permutations(rows)), {k: np.stack(v) for k, v in want.items() if v}, (height, width)


@given(places(), st.data())
def test_any_place_reads_as_it_was_written_whole_and_by_windows(place, data):
    files, rows, want, size = place
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in files.items():
            tif(Path(folder, name), **arguments)
        check_place(open_scene(table(Path(folder), *rows)), want, *size, data)


def check_place(scene, want, height, width, data):
    assert (scene.height, scene.width, scene.gsd) == (height, width, 10)
    sample = check_sample(scene.read())
    for key in ("s1", "s2"):
        if key not in want or not want[f"{key}_valid"].any():
            assert sample[key] is None
            continue
        assert np.array_equal(sample[f"{key}_valid"], want[f"{key}_valid"])
        np.testing.assert_allclose(sample[key], want[key], rtol=1e-6, atol=1e-3)
        assert sample[f"{key}_dates"] == sorted(sample[f"{key}_dates"]) == scene.dates[key]
    if sample["s2"] is not None:
        assert np.array_equal(sample["s2_bands"], want["s2_bands"])

    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - column))
    part, whole = scene.arrays(row, column, h, w), scene.arrays(0, 0, height, width)
    for key in set(KEYS) & set(whole):
        assert same_bits(part[key], whole[key][..., row : row + h, column : column + w])
    assert {k: v for k, v in part.items() if k not in (*KEYS, "s2_bands")} == {
        k: v for k, v in whole.items() if k not in (*KEYS, "s2_bands")
    }
    assert "s2_bands" not in whole or same_bits(part["s2_bands"], whole["s2_bands"])


def test_a_window_is_a_sample_with_its_own_place(tmp_path):
    rng = np.random.default_rng(0)
    table(tmp_path, {"path": tif(tmp_path / "a.tif", optics(rng)), "sensor": "S2", "date": "2020-06-15T10:30:00Z"})
    scene = open_scene(tmp_path / "metadata.csv")
    whole, part = scene.read(), scene.read(2, 3, 2, 1)
    assert whole["id"] == tmp_path.name == scene.id and part["id"] == f"{tmp_path.name} [2:4, 3:4]"
    assert whole["s2"].dtype == np.uint16 and whole["s2_dates"] == ["2020-06-15"] and whole["s2_level"] == "L1C"
    assert part["transform"] == (10, 0, 375440, 0, -10, 8116720) and part["crs"] == whole["crs"] == "EPSG:32737"
    assert part["gsd"] == 10 and abs(part["lat"] - whole["lat"]) < 1e-3 and part["lat"] != whole["lat"]
    for window in ((-1, 0, 2, 2), (0, 0, 7, 6), (5, 5, 2, 1), (0, 0, 0, 1)):
        with pytest.raises(DataError, match="leaves the scene of 6 x 6"):
            scene.read(*window)


def test_places_are_items_and_a_bad_one_is_refused_alone(tmp_path):
    rng = np.random.default_rng(0)
    tif(tmp_path / "a.tif", optics(rng))
    table(
        tmp_path,
        {"path": "a.tif", "sensor": "s2", "date": "2020-06-15", "id": "west", "region": "Njoro"},
        {"path": tif(tmp_path / "r.tif", radar(rng)), "sensor": "s1", "date": "2020-06-14", "id": "west", "kind": "gamma0", "orbit": "Ascending"},  # noqa: E501
        {"path": "gone.tif", "sensor": "s2", "date": "2020-06-15", "id": "east"},
    )
    source = ImageFolder(tmp_path)
    assert (source.ids, len(source), source.kind, source.unit) == (["west", "east"], 2, "folder", "patch")
    sample = source[0]
    assert (sample["region"], sample["s1_kind"], sample["s1_orbit"]) == ("Njoro", "gamma0", "ascending")
    with pytest.raises(DataError, match=r"metadata.csv line 4: no such file .*gone.tif; paths are relative"):
        source[1]
    with pytest.raises(IndexError):
        source[2]
    assert ImageFolder(tmp_path, sensors=["s1"]).ids == ["west"]
    assert ImageFolder(tmp_path, sensors=["s1"])[0]["s2"] is None
    with pytest.raises(DataError, match="holds 2 places, west, east"):
        open_scene(tmp_path)
    with pytest.raises(DataError, match="no place 'north'; there are west, east"):
        open_scene(tmp_path, "north")


@pytest.mark.parametrize("layout", ["descriptions", "names of files"])
def test_bands_are_found_by_name_at_their_native_resolution(tmp_path, layout):
    rng = np.random.default_rng(0)
    names = {"B02": 10, "B8A": 20, "B09": 60, "B11": 20}
    rows = []
    for name, size in names.items():
        values = rng.integers(100, 4000, (1, 120 // size, 120 // size)).astype(np.uint16)
        short = {"B02": "B2", "B09": "b9"}.get(name, name)
        path = tmp_path / (f"T33UUP_{name}_{size}m.tif" if layout != "descriptions" else f"{size}-{name[1:]}.tif")
        tif(path, values, size, descriptions=[short] if layout == "descriptions" else None)
        rows.append({"path": path.name, "sensor": "s2", "date": "2020-06-15", "level": "L2A"})
    sample = open_scene(table(tmp_path, *rows)).read()
    assert sample["s2"].shape == (1, 13, 12, 12) and sample["gsd"] == 10
    assert [name for name, there in zip(S2_BANDS, sample["s2_bands"][0], strict=True) if there] == list(names)
    for row, (name, size) in zip(rows, names.items(), strict=True):
        with rasterio.open(tmp_path / row["path"]) as raster:
            near = raster.read(1).repeat(size // 10, 0).repeat(size // 10, 1)
        assert np.array_equal(sample["s2"][0, S2_BANDS.index(name)], near)


def test_named_bands_may_stand_in_any_order_among_others(tmp_path):
    rng = np.random.default_rng(0)
    values = optics(rng)
    order = [*range(8), 9, 10, 11, 12, 8]
    tif(tmp_path / "a.tif", values[order], descriptions=[f"S2_{S2_BANDS[k]}" for k in order])
    tif(tmp_path / "b.tif", np.concatenate([values[order], values[:1]]))
    names = " ".join([S2_BANDS[k] for k in order] + ["-"])
    for path, bands in (("a.tif", ""), ("b.tif", names)):
        table(tmp_path, {"path": path, "sensor": "s2", "date": "2020-06-15", "bands": bands})
        assert np.array_equal(open_scene(tmp_path).read()["s2"][0], values)
    # EuroSAT's order without names: B11 stands in the place of B10, and is not black.
    tif(tmp_path / "a.tif", values[order])
    table(tmp_path, {"path": "a.tif", "sensor": "s2", "date": "2020-06-15"})
    with pytest.raises(DataError, match="nearly black and B10 is not"):
        open_scene(tmp_path)


def test_scene_classes_mask_clouds_and_empty_bands_do_not_exist(tmp_path):
    rng = np.random.default_rng(0)
    values = optics(rng)
    values[B10] = 0
    classes = rng.integers(0, 12, (1, 3, 3)).astype(np.uint8)
    table(
        tmp_path,
        {"path": tif(tmp_path / "a.tif", values), "sensor": "s2", "date": "2020-06-15"},
        {"path": tif(tmp_path / "a_SCL_20m.tif", classes, 20), "sensor": "s2", "date": "2020-06-15"},
    )
    sample = open_scene(tmp_path).read()
    assert sample["s2_level"] == "L2A" and sample["s2_bands"][0].tolist() == list(L2A_BANDS)
    good = np.isin(classes[0], (2, 4, 5, 6, 7, 11)).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(sample["s2_valid"][0], good)


def test_offset_and_units_are_decided_for_the_raster_not_the_window(tmp_path):
    rng = np.random.default_rng(0)
    values = optics(rng, 40, 40)
    power = 10 ** (radar(rng, 40, 40) / 10)
    power[:, :4, :4] = 30
    table(
        tmp_path,
        {"path": tif(tmp_path / "a.tif", values + 1000), "sensor": "s2", "date": "2022-06-15"},
        {"path": tif(tmp_path / "b.tif", values), "sensor": "s2", "date": "2020-06-15"},
        {"path": tif(tmp_path / "c.tif", values / np.float32(10000)), "sensor": "s2", "date": "2021-06-15"},
        {"path": tif(tmp_path / "r.tif", power), "sensor": "s1", "date": "2020-06-15"},
    )
    sample = open_scene(tmp_path).read(0, 0, 2, 2)
    for date in sample["s2"]:
        np.testing.assert_allclose(date, values[:, :2, :2], rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(sample["s1"], 10 * np.log10(30), rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 1000])
def test_an_offset_that_cannot_be_told_is_asked_for(tmp_path, offset):
    rng = np.random.default_rng(0)
    bright = rng.integers(1000, 6000, (12, 20, 20)).astype(np.uint16)
    row = {"path": tif(tmp_path / "a.tif", bright), "sensor": "s2", "date": "2022-06-15"}
    with pytest.raises(DataError, match=r"line 2 \(a.tif\): the darkest hundredth .* no B10.*say 0 or 1000 in"):
        open_scene(table(tmp_path, row))
    for scene in (open_scene(tmp_path, s2_offset=offset), open_scene(table(tmp_path, row | {"offset": offset}))):
        assert np.array_equal(scene.read()["s2"][0, list(L2A_BANDS)], bright - offset)
    # The baseline in the name of a product settles it.
    name = f"S2A_MSIL2A_20220615T101031_N0{4 * (offset > 0)}00_R022_T33UUP.tif"
    tif(tmp_path / name, bright)
    sample = open_scene(table(tmp_path, {"path": name, "sensor": "s2", "date": "2022-06-15"})).read()
    assert np.array_equal(sample["s2"][0, list(L2A_BANDS)], bright - offset)


def test_a_name_that_the_values_contradict_is_asked_about(tmp_path):
    rng = np.random.default_rng(0)
    dark, shifted = optics(rng, 40, 40), optics(rng, 40, 40) + 1000
    for values, name, text in (
        (dark, "S2B_MSIL1C_20220615T101031_N0400_R092_T33UUP.tif", "offset of 1000, but by its numbers it is 0"),
        (shifted, "S2B_MSIL1C_20210615T101031_N0301_R092_T33UUP.tif", "offset of 0, but by its numbers it is 1000"),
        (shifted, "COPERNICUS_S2_HARMONIZED.tif", "offset of 0, but by its numbers it is 1000"),
    ):
        tif(tmp_path / name, values)
        with pytest.raises(DataError, match=f"{text} .*Say 0 or 1000 in column offset"):
            open_scene(table(tmp_path, {"path": name, "sensor": "s2", "date": "2022-06-15"}))
        assert np.array_equal(open_scene(tmp_path, s2_offset=0).read()["s2"][0], values)
        sample = open_scene(tmp_path, s2_offset=1000).read()
        assert np.array_equal(sample["s2"][0], np.maximum(values, 1000) - 1000)
        assert sample["s2_correction"] == "offset 1000 off"


def test_scale_tags_of_the_file_are_applied_unless_units_are_said(tmp_path):
    rng = np.random.default_rng(0)
    values = optics(rng)
    tif(tmp_path / "a.tif", values + 1000)
    with rasterio.open(tmp_path / "a.tif", "r+") as raster:
        raster.scales, raster.offsets = [1e-4] * 13, [-0.1] * 13
    row = {"path": "a.tif", "sensor": "s2", "date": "2022-06-15"}
    for said in ({}, {"units": "dn", "offset": "1000"}):
        sample = open_scene(table(tmp_path, row | said)).read()
        np.testing.assert_allclose(sample["s2"][0], values, rtol=1e-4, atol=0.1)


def test_one_file_may_hold_both_sensors_and_several_lines(tmp_path):
    rng = np.random.default_rng(0)
    values, sigma = optics(rng).astype(np.float32), radar(rng)
    tif(tmp_path / "stack.tif", np.concatenate([sigma, values]))
    none, first, last = ["-"] * 13, list(S2_BANDS[:6]) + ["-"] * 7, ["-"] * 6 + list(S2_BANDS[6:])
    rows = [("s1", ["VV", "VH", *none]), ("s2", ["-", "-", *first]), ("s2", ["-", "-", *last])]
    rows = [{"path": "stack.tif", "sensor": s, "date": "2020-06-15", "bands": " ".join(b)} for s, b in rows]
    sample = open_scene(table(tmp_path, *rows)).read()
    assert np.array_equal(sample["s2"][0], values) and np.array_equal(sample["s1"][0], sigma)


def test_what_the_overview_cannot_judge_is_not_used_unless_units_are_said(tmp_path):
    power = np.zeros((2, 600, 600), np.float32)
    power[:, 0, 0] = 0.1
    row = {"path": tif(tmp_path / "r.tif", power), "sensor": "s1", "date": "2020-06-15"}
    with pytest.raises(DataError, match="nothing valid"):
        open_scene(table(tmp_path, row)).read()
    sample = open_scene(table(tmp_path, row | {"units": "linear"})).read(0, 0, 2, 2)
    assert sample["s1_valid"].sum() == 1 and np.allclose(sample["s1"][0, :, 0, 0], -10)


def test_rasters_without_a_place_are_taken_as_ten_metres_and_it_is_said(tmp_path, caplog):
    rng = np.random.default_rng(0)
    write_geotiff(tmp_path / "a.tif", optics(rng))
    sample = open_scene(table(tmp_path, GOOD)).read()
    assert (sample["gsd"], sample["crs"], sample["lon"]) == (10, None, None)
    assert "a.tif does not tell the size of a pixel in metres; taken as 10 m" in caplog.text


def test_two_acquisitions_of_a_day_need_their_times(tmp_path):
    rng = np.random.default_rng(0)
    first, second = radar(rng), radar(rng)
    rows = [
        {"path": tif(tmp_path / "a.tif", second), "sensor": "s1", "date": "2020-06-15", "orbit": "ascending"},
        {"path": tif(tmp_path / "b.tif", first), "sensor": "s1", "date": "2020-06-15", "orbit": "descending"},
    ]
    with pytest.raises(DataError, match=r"line 3: band VV of 2020-06-15 stands in .*a.tif too; .*times"):
        open_scene(table(tmp_path, *rows))
    rows[0]["date"], rows[1]["date"] = "2020-06-15T17:40", "2020-06-15T05:40"
    sample = open_scene(table(tmp_path, *rows)).read()
    assert sample["s1_dates"] == ["2020-06-15"] * 2 and sample["s1_orbit"] is None
    assert np.array_equal(sample["s1"], [first, second])


def test_single_radar_outliers_are_invalid_and_a_raster_of_them_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    values = radar(rng, 20, 20)
    values[0, 3, 4] = -75
    row = {"path": tif(tmp_path / "r.tif", values), "sensor": "s1", "date": "2020-06-15"}
    sample = open_scene(table(tmp_path, row)).read()
    assert np.argwhere(~sample["s1_valid"][0]).tolist() == [[3, 4]]
    for wrong, text in ((values * 100, "outside"), (np.abs(values) * 100, "neither dB nor linear power")):
        tif(tmp_path / "r.tif", wrong)
        with pytest.raises(DataError, match=text):
            open_scene(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"size": 20}, "cover the same ground"),
        ({"x": 375415.0}, "cover the same ground"),
        ({"crs": "EPSG:32736"}, "cover the same ground"),
        ({"array": np.full((2, 4, 4), -12.0), "size": 15}, "cover the same ground"),
    ],
)
def test_rasters_of_one_place_must_share_their_ground(tmp_path, change, text):
    rng = np.random.default_rng(0)
    tif(tmp_path / "a.tif", optics(rng))
    tif(tmp_path / "r.tif", **({"array": radar(rng)} | change))
    rows = [{"path": p, "sensor": s, "date": "2020-06-15"} for p, s in (("a.tif", "s2"), ("r.tif", "s1"))]
    with pytest.raises(DataError, match=f"(?s)metadata.csv line .: .*{text}") as error:
        open_scene(table(tmp_path, *rows))
    assert "a.tif" in str(error.value) and "r.tif" in str(error.value) and "\n" not in str(error.value)


GOOD = {"path": "a.tif", "sensor": "s2", "date": "2020-06-15"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"date": "15.06.2020"}, "line 2: '15.06.2020' is not an ISO date"),
        ({"date": ""}, "line 2: column 'date' is empty"),
        ({"sensor": "landsat"}, "line 2: sensor must be s1 or s2, found 'landsat'"),
        ({"level": "L3"}, r"line 2: level must be one of .*found 'L3'"),
        ({"units": "db"}, "line 2: units of s2 must be one of .*found 'db'"),
        ({"offset": "100"}, "line 2: offset must be 0, 1000 or auto"),
        ({"bands": "B02 B99"}, "line 2: 'B99' is no band of s2"),
        ({"bands": "B02 B03"}, "line 2: 2 names in column bands, but .*a.tif has 13 bands"),
        ({"bands": " ".join(["B02"] * 13)}, "names a band twice"),
        ({"bands": " ".join(["-"] * 13)}, "line 2: '-' is no band of s2"),
        ({"unit": "dn"}, "column 'unit' is unknown or there twice; did you mean 'units'"),
        ({"shade": "red"}, "column 'shade' is unknown .*known are path"),
        ({"path": "bad.tif"}, "line 2: .*bad.tif is not a readable raster"),
        ({"path": "cut.tif"}, "line 2: .*cut.tif is damaged, fetch it again"),
        ({"path": "three.tif"}, "has 3 bands without names that s2 knows; expected 13 or 12, or names in column bands"),
        ({"path": "three.tif", "bands": "B04 B03 B02"}, "level of these optics is unknown; say L1C or L2A"),
        ({"path": "MSIL2A.tif"}, "level of these optics is L1C and L2A; say"),
        ({"path": "three.tif", "sensor": "s1"}, "has 3 bands without names that s1 knows; expected 2"),
        ({"path": "hh.tif", "sensor": "s1"}, "radar needs VV and VH at each time, found HH HV"),
        ({"mask": "three.tif"}, "the mask .*three.tif must have one band, found 3"),
        ({"mask": "gone.tif"}, "line 2: no such file .*gone.tif"),
        ({"path": "zero.tif"}, "nothing valid"),
    ],
)
def test_what_is_wrong_is_said_with_line_file_and_remedy(tmp_path, change, text):
    rng = np.random.default_rng(0)
    for name in ("a.tif", "MSIL2A.tif", "cut.tif"):
        tif(tmp_path / name, optics(rng))
    data = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    (tmp_path / "bad.tif").write_text("not a raster")
    tif(tmp_path / "three.tif", optics(rng)[:3])
    tif(tmp_path / "zero.tif", np.zeros((13, 3, 3), np.uint16))
    tif(tmp_path / "hh.tif", radar(rng), descriptions=["HH", "HV"])
    with pytest.raises(DataError, match=text) as error:
        ImageFolder(table(tmp_path, GOOD | change))[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,sensor\na.tif,s2\n", r"columns \['date'\] are missing; found path, sensor"),
        ("path;sensor;date\na.tif;s2;2020-06-15\n", "separate them by commas"),
        ("path,sensor,date\na.tif,s2\n", "line 2: the line has more or fewer cells"),
        ("path,sensor,date\na.tif,s2,2020-06-15,x\n", "line 2: the line has more or fewer cells"),
        ("path,sensor,date\n", "lists no raster"),
        ("", r"columns .* are missing"),
        ("path,sensor,date\n\xe9.tif,s2,2020-06-15\n", "not a CSV table in UTF-8"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    (tmp_path / "metadata.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        read_metadata(tmp_path)


def test_spreadsheets_byte_order_mark_and_a_missing_table(tmp_path):
    with pytest.raises(DataError, match="metadata.csv: no such table"):
        read_metadata(tmp_path)
    (tmp_path / "metadata.csv").write_text("path,sensor,date\na.tif,s2,2020-06-15\n", encoding="utf-8-sig")
    (row,) = read_metadata(tmp_path)[tmp_path.name]
    assert row.path == tmp_path / "a.tif" and row.where.endswith("metadata.csv line 2")


def test_one_place_has_one_level_kind_and_region(tmp_path):
    rng = np.random.default_rng(0)
    tif(tmp_path / "a.tif", optics(rng))
    tif(tmp_path / "r.tif", radar(rng))
    cases = (("s2", "level", ("L1C", "L2A")), ("s1", "kind", ("sigma0", "gamma0")), ("s2", "region", "AB"))
    for sensor, column, values in cases:
        rows = [
            {"path": "a.tif" if sensor == "s2" else "r.tif", "sensor": sensor, "date": f"2020-0{n}-15", column: value}
            for n, value in enumerate(values, start=1)
        ]
        text = f"column {column} differs" if column == "region" else f"{column}s different ids"
        with pytest.raises(DataError, match=text):
            open_scene(table(tmp_path, *rows))


def test_terramesh_offsets_are_found_or_asked_for(real_data, tmp_path):
    root = real_data / "terramesh"
    found = {}
    for path in sorted(root.glob("S2L??/*.tif")):
        table(tmp_path, {"path": path, "sensor": "s2", "date": "2020-04-08"})
        try:
            sample = open_scene(tmp_path).read()
        except DataError as error:
            found[path.parent.name, path.stem[:4]] = "asked" if "offset of baseline 04.00" in str(error) else str(error)
            continue
        with rasterio.open(path) as raster:
            first = raster.read(2)
        found[path.parent.name, path.stem[:4]] = float(np.median(first - sample["s2"][0, 1]))
    assert found == {
        ("S2L1C", "282D"): 1000, ("S2L1C", "433D"): 1000, ("S2L1C", "609U"): 1000, ("S2L1C", "637U"): 0,
        ("S2L2A", "282D"): 0, ("S2L2A", "433D"): 1000, ("S2L2A", "609U"): 0, ("S2L2A", "637U"): 0,
    }  # fmt: skip


def test_bigearthnet_one_file_a_band(real_data, tmp_path):
    place = real_data / "bigearthnet"
    optical = place / "BigEarthNet-S2-Example" / "S2A_MSIL2A_20170613T101031_87_48"
    radar_folder = place / "BigEarthNet-S1-Example" / "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48"
    rows = [
        {"path": path, "sensor": sensor, "date": "2017-06-13"}
        for sensor, folder in (("s2", optical), ("s1", radar_folder))
        for path in sorted(folder.glob("*.tif"))
    ]
    scene = open_scene(table(tmp_path, *rows))
    sample = scene.read()
    assert isinstance(scene, Scene) and sample["s2"].shape == (1, 13, 120, 120) and sample["s2"].dtype == np.uint16
    assert sample["s2_level"] == "L2A" and sample["s2_bands"][0].tolist() == list(L2A_BANDS)
    for number, name in enumerate(S2_BANDS):
        if name != "B10":
            with rasterio.open(optical / f"{optical.name}_{name}.tif") as raster:
                band = raster.read(1)
            assert np.array_equal(sample["s2"][0, number], band.repeat(120 // len(band), 0).repeat(120 // len(band), 1))
    assert -16 < sample["s1"][0, 0].mean() < -6 and sample["s1"][0, 1].mean() < sample["s1"][0, 0].mean()
