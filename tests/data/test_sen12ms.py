import logging
import os
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data import SEN12MSFolder, open_source
from croplem_hf.data.geotiff import read_geotiff, write_geotiff
from croplem_hf.data.sen12ms import BAD_PATCHES, HELD_OUT_SCENES
from croplem_hf.errors import DataError

GRID = {"crs": "EPSG:32737", "transform": (10, 0, 375412.3, 0, -10, 8116742.8)}
RNG = np.random.default_rng(0)
S1 = RNG.normal(-14, 3, (2, 8, 8)).astype(np.float32)
S2 = RNG.integers(300, 4000, (13, 8, 8)).astype(np.uint16)
S2[10] = 15
LC = RNG.integers(1, 17, (4, 8, 8)).astype(np.uint8)
ARRAYS = {"s1": S1, "s2": S2, "lc": LC}


def put(root, kind, array=None, *, season="ROIs1158_spring", scene="1", patch="30", layout="{0}/{1}_{2}", **grid):
    """Write one file of a patch and return its path."""
    path = root / layout.format(season, kind, scene) / f"{season}_{kind}_{scene}_p{patch}.tif"
    return write_geotiff(path, ARRAYS[kind] if array is None else array, **(GRID | grid))


@pytest.mark.parametrize("layout", ["{0}/{1}_{2}", "{0}_{1}/{1}_{2}", "{0}/{1}/{1}_{2}", "."])
def test_a_patch_in_every_layout(tmp_path, layout):
    for kind in ARRAYS:
        put(tmp_path, kind, layout=layout)
    source = open_source(tmp_path)
    assert (source.kind, source.unit, source.ids, len(source)) == ("sen12ms", "patch", ["ROIs1158_spring_1_p30"], 1)
    sample = source[0]
    assert sample["s1"].tobytes() == S1.tobytes() and sample["s1"].shape == (1, 2, 8, 8)
    assert sample["s2"].dtype == np.uint16 and sample["s2"].tobytes() == S2.tobytes()
    assert sample["lc"].dtype == np.uint8 and np.array_equal(sample["lc"], LC)
    assert sample["s1_valid"].all() and sample["s2_valid"].all() and sample["s2_bands"].all()
    assert sample["s1_dates"] == sample["s2_dates"] == ["2017-04-15"]
    assert (sample["s1_kind"], sample["s2_level"], sample["gsd"]) == ("sigma0", "L1C", 10)
    expected = {"season": "spring", "scene": "ROIs1158_spring_1", "region": "ROIs1158_spring_1", "patch": 30}
    assert {key: sample[key] for key in expected} == expected
    assert sample["crs"] == "EPSG:32737" and sample["transform"] == tuple(map(float, GRID["transform"]))
    assert 37 < sample["lon"] < 39 and -18 < sample["lat"] < -16


@given(st.lists(st.tuples(st.sampled_from(["spring", "fall"]), st.integers(1, 150), st.integers(0, 900)), unique=True))
def test_ids_are_in_numeric_order(tmp_path_factory, keys):
    if not keys:
        return
    root = tmp_path_factory.mktemp("order")
    for season, scene, patch in keys:
        (root / f"ROIs1_{season}_s2_{scene}_p{patch}.tif").touch()
    assert SEN12MSFolder(root).ids == [
        f"ROIs1_{season}_{scene}_p{patch}" for season, scene, patch in sorted(keys, key=lambda k: (k[0] != "fall", *k))
    ]


@pytest.mark.parametrize(
    ("season", "date"),
    [
        ("ROIs2017_winter", "2017-01-15"),
        ("ROIs1158_spring", "2017-04-15"),
        ("ROIs1868_summer", "2017-07-15"),
        ("ROIs1970_fall", "2017-10-15"),
    ],
)
def test_the_date_is_the_middle_of_the_season(tmp_path, season, date):
    put(tmp_path, "s1", season=season)
    assert SEN12MSFolder(tmp_path)[0]["s1_dates"] == [date]


def test_an_unknown_season_is_refused_by_file(tmp_path):
    path = put(tmp_path, "s1", season="ROIs1158_autumn")
    with pytest.raises(DataError, match=f"{path}: unknown season 'autumn'"):
        SEN12MSFolder(tmp_path)[0]


def test_partners_may_be_missing(tmp_path):
    put(tmp_path, "s1", patch="1")
    put(tmp_path, "s2", patch="2")
    put(tmp_path, "lc", patch="3")
    source = SEN12MSFolder(tmp_path)
    assert source.ids == ["ROIs1158_spring_1_p1", "ROIs1158_spring_1_p2"]
    assert source[0]["s2"] is None and source[1]["s1"] is None and source[1]["lc"] is None
    assert SEN12MSFolder(tmp_path, sensors=("s2",)).ids == ["ROIs1158_spring_1_p2"]


def test_filters(tmp_path):
    for kind in ARRAYS:
        put(tmp_path, kind)
    sample = SEN12MSFolder(tmp_path, sensors=["s2"], labels=False)[0]
    assert sample["s1"] is None and sample["lc"] is None and sample["s2"] is not None
    for bad in ((), ("s3",)):
        with pytest.raises(DataError, match="sensors must be some of"):
            SEN12MSFolder(tmp_path, sensors=bad)


def test_folders_without_patches_say_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: no SEN12MS patch.*ROIs1158_spring_s1_1_p30.tif"):
        SEN12MSFolder(tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        SEN12MSFolder(tmp_path / "nowhere")
    put(tmp_path, "s2")
    with pytest.raises(DataError, match=r"no patch of s1 in this folder, only \['s2'\]"):
        SEN12MSFolder(tmp_path, sensors=("s1",))


def test_the_same_patch_twice_names_both_files(tmp_path):
    paths = put(tmp_path, "s1"), put(tmp_path, "s1", layout="copy")
    with pytest.raises(DataError, match="the same patch twice") as error:
        SEN12MSFolder(tmp_path)
    assert all(str(path) in str(error.value) for path in paths)


def test_a_link_to_a_folder_already_seen_is_no_second_patch(tmp_path):
    put(tmp_path / "tree", "s1")
    os.symlink(tmp_path, tmp_path / "tree" / "loop")
    assert len(SEN12MSFolder(tmp_path)) == 1


@pytest.mark.parametrize(
    ("kind", "array", "text"),
    [
        ("s1", S1[:1], "expected 2 bands, found 1"),
        ("s1", np.full_like(S1, np.nan), "no valid radar pixel"),
        ("s1", np.zeros_like(S1), "no valid radar pixel"),
        ("s1", S1 * 100, "outside"),
        ("s2", S2[:12], "expected 13 bands, found 12"),
        ("s2", np.zeros_like(S2), "no valid optical pixel"),
        ("lc", LC[:1], "expected 4 bands, found 1"),
        ("lc", LC.astype(np.float32), "must be uint8 or uint16, found float32"),
    ],
)
def test_a_bad_file_is_named_and_its_partner_is_no_substitute(tmp_path, kind, array, text):
    for other in set(ARRAYS) - {kind}:
        put(tmp_path, other)
    path = put(tmp_path, kind, array)
    with pytest.raises(DataError, match=text) as error:
        SEN12MSFolder(tmp_path)[0]
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["s1", "s2", "lc"])
def test_a_truncated_file_is_named(tmp_path, kind):
    for other in ARRAYS:
        put(tmp_path, other)
    path = put(tmp_path, kind)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=f"{path}: "):
        SEN12MSFolder(tmp_path)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"crs": "EPSG:32736"},
        {"transform": (10, 0, 375412.5, 0, -10, 8116742.8)},
        {"transform": (20, 0, 375412.3, 0, -20, 8116742.8)},
        {"array": S2[:, :4]},
    ],
)
def test_different_grids_are_refused_with_both_files(tmp_path, change):
    paths = put(tmp_path, "s1"), put(tmp_path, "s2", **change)
    with pytest.raises(DataError, match="different grids") as error:
        SEN12MSFolder(tmp_path)[0]
    assert all(str(path) in str(error.value) for path in paths)


def test_a_hundredth_of_a_pixel_is_the_same_grid(tmp_path):
    put(tmp_path, "s1")
    put(tmp_path, "s2", transform=(10, 0, 375412.35, 0, -10, 8116742.8))
    assert SEN12MSFolder(tmp_path)[0]["s2"] is not None


def test_nodata_is_masked_and_a_clipped_band_is_kept(tmp_path):
    s1, s2 = S1.copy(), S2.copy()
    s1[:, 0, 0] = 0
    s1[0, 1, 1] = 0
    s1[1, 2, 2] = np.nan
    s2[:, 3, 3] = 0
    s2[:5, 4, 4] = 0
    put(tmp_path, "s1", s1)
    put(tmp_path, "s2", s2)
    sample = SEN12MSFolder(tmp_path)[0]
    assert np.argwhere(~sample["s1_valid"][0]).tolist() == [[0, 0], [2, 2]]
    assert np.isnan(sample["s1"][0, :, 0, 0]).all() and sample["s1"][0, 0, 1, 1] == 0
    assert np.argwhere(~sample["s2_valid"][0]).tolist() == [[3, 3]]


def test_the_nodata_value_of_the_file_is_masked(tmp_path):
    s1, s2 = S1.copy(), S2.astype(np.int16)
    s1[:, 0, 0] = -9999
    s2[:, 3, 3] = -9999
    put(tmp_path, "s1", s1, nodata=-9999)
    put(tmp_path, "s2", s2, nodata=-9999)
    sample = SEN12MSFolder(tmp_path)[0]
    assert np.argwhere(~sample["s1_valid"][0]).tolist() == [[0, 0]]
    assert np.argwhere(~sample["s2_valid"][0]).tolist() == [[3, 3]]


def test_units_are_detected_and_can_be_said(tmp_path):
    put(tmp_path, "s1", (10 ** (S1.astype(np.float64) / 10)))
    put(tmp_path, "s2", S2 / np.float32(10000))
    sample = SEN12MSFolder(tmp_path)[0]
    np.testing.assert_allclose(sample["s1"][0], S1, atol=1e-4)
    np.testing.assert_allclose(sample["s2"][0], S2, atol=1e-2)
    shifted = put(tmp_path, "s2", S2 + 1000)
    assert np.array_equal(SEN12MSFolder(tmp_path)[0]["s2"][0], S2)
    assert np.array_equal(SEN12MSFolder(tmp_path, s2_offset=0)[0]["s2"][0], S2 + 1000)
    with pytest.raises(DataError, match=f"{shifted}: .*'feet'"):
        SEN12MSFolder(tmp_path, s2_units="feet")[0]


def test_the_documented_bad_patch_is_left_out_and_said(tmp_path, caplog):
    put(tmp_path, "s1", season="ROIs1868_summer", scene="146", patch="202")
    put(tmp_path, "s1", season="ROIs1868_summer", scene="146", patch="203")
    with caplog.at_level(logging.WARNING):
        assert SEN12MSFolder(tmp_path).ids == ["ROIs1868_summer_146_p203"]
    assert "ROIs1868_summer_146_p202" in caplog.text and BAD_PATCHES == {"ROIs1868_summer_146_p202"}
    assert len(SEN12MSFolder(tmp_path, skip=())) == 2


def test_wide_land_cover_is_kept(tmp_path):
    put(tmp_path, "s1")
    put(tmp_path, "lc", LC.astype(np.uint16) + 300)
    lc = SEN12MSFolder(tmp_path)[0]["lc"]
    assert lc.dtype == np.uint16 and np.array_equal(lc, LC.astype(np.uint16) + 300)


def test_held_out_scenes():
    assert len(HELD_OUT_SCENES) == 26 and "ROIs1158_spring_15" in HELD_OUT_SCENES


def test_walking_and_pickling(sen12ms_tree):
    source = SEN12MSFolder(sen12ms_tree)
    again = pickle.loads(pickle.dumps(source))
    assert [sample["id"] for sample in again] == source.ids
    assert again[-1]["id"] == source.ids[-1]
    with pytest.raises(IndexError):
        source[len(source)]


def test_real_patches(real_data, tmp_path):
    root = real_data / "sen12ms"
    source = SEN12MSFolder(root)
    assert source.ids[:3] == ["ROIs1158_spring_1_p30", "ROIs1158_spring_15_p30", "ROIs1158_spring_101_p30"]
    assert len(source) == 7
    for i, sample in enumerate(source):
        for kind, path in source.paths(i).items():
            raw, _ = read_geotiff(path)
            assert np.array_equal(sample[kind].reshape(raw.shape), raw), path
    assert sum(sample["s1"] is not None and sample["s2"] is not None for sample in source) == 5
    assert source[0]["lc"].shape == (4, 256, 256)
    shutil.copytree(root, tmp_path / "copy", copy_function=os.symlink)
    assert SEN12MSFolder(tmp_path).ids == source.ids


@pytest.mark.parametrize("layout", ["{0}/{1}_{2}", "{0}_{1}/{1}_{2}", "{0}/{1}/{1}_{2}", "."])
def test_a_tree_is_recognised_in_every_layout(tmp_path, layout):
    assert not SEN12MSFolder.recognises(tmp_path) and not SEN12MSFolder.recognises(tmp_path / "nowhere")
    put(tmp_path, "s2", layout=layout)
    assert SEN12MSFolder.recognises(tmp_path)


def test_columns_and_seasonal_dates(tmp_path):
    put(tmp_path, "s2", patch="7")
    source = SEN12MSFolder(tmp_path)
    found = {name: column.tolist() for name, column in source.columns().items()}
    assert found == {"scene": ["ROIs1158_spring_1"], "season": ["spring"], "patch": [7]} and source.seasonal
