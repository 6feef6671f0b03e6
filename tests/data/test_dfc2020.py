import pickle

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from croplem_hf.data.dfc2020 import DFC2020Folder, truth_labels
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.errors import DataError

GRID = {"crs": "EPSG:32643", "transform": (10, 0, 300_000, 0, -10, 2_100_000)}
RNG = np.random.default_rng(0)
S1 = RNG.normal(-14, 3, (2, 8, 8))  # float64, as in some of the files
S2 = RNG.integers(300, 4000, (13, 8, 8)).astype(np.uint16)
S2[10] = 12
DFC = np.array([6] * 40 + [10] * 8 + [0] * 16, np.uint8).reshape(1, 8, 8)
LC = np.full((4, 8, 8), 12, np.uint8)


def put(root, part, scene, patch, *, folder=None, **files):
    for kind, values in files.items():
        below = folder.format(kind=kind) if folder else f"{kind}_{scene}"
        name = f"ROIs0000_{part}_{kind}_{scene}_p{patch}.tif"
        write_geotiff(root / f"ROIs0000_{part}" / below / name, values, **GRID)


@pytest.fixture
def tree(tmp_path):
    put(tmp_path, "validation", "0", 3, folder="{kind}_validation", s1=S1, s2=S2, lc=LC[:1], dfc=DFC)
    put(tmp_path, "test", "0", 12, s1=S1, s2=S2, lc=LC, dfc=DFC)
    put(tmp_path, "autumn", "Mumbai", 741, s2=S2, dfc=DFC)
    put(tmp_path, "winter", "CapeTown", 2, s1=S1)
    return tmp_path


def test_every_part_is_read(tree):
    source = pickle.loads(pickle.dumps(DFC2020Folder(tree)))
    assert source.ids == [
        "ROIs0000_autumn_Mumbai_p741", "ROIs0000_test_0_p12", "ROIs0000_validation_0_p3", "ROIs0000_winter_CapeTown_p2",
    ]  # fmt: skip
    mumbai, test, validation, cape = source
    assert np.array_equal(test["s1"][0], S1.astype(np.float32)) and np.array_equal(test["s2"][0], S2)
    assert np.array_equal(test["lc"], DFC) and test["lc"].dtype == np.uint8 and test["lc_scheme"] == "dfc2020"
    assert (test["split"], validation["split"], mumbai["split"]) == ("test", "validation", None)
    assert (mumbai["season"], mumbai["s2_dates"], mumbai["date_known"]) == ("fall", ["2017-10-15"], True)
    assert (test["season"], test["date_known"]) == (None, False)
    assert (mumbai["scene"], mumbai["patch"]) == ("ROIs0000_autumn_Mumbai", 741)
    assert cape["lc"] is None and cape["land_cover"] is None and cape["cropland"] is None
    assert source.layout().shapes.tolist() == [[0, 1, 8, 8], [1, 1, 8, 8], [1, 1, 8, 8], [1, 0, 8, 8]]
    for name, values in source.columns().items():
        assert values.tolist() == [sample[name] for sample in source]
    assert DFC2020Folder.recognises(tree) and source.seasonal


def test_labels_count_labelled_pixels_alone(tree):
    sample = DFC2020Folder(tree)[1]
    assert sample["land_cover"] == 6 and sample["cropland"] == 1
    assert sample["land_cover_fraction"] == sample["cropland_fraction"] == pytest.approx(40 / 48)


def test_the_coarse_labels_are_another_scheme(tree):
    sample = DFC2020Folder(tree, labels="lc")[1]
    assert np.array_equal(sample["lc"], LC) and sample["lc_scheme"] == "igbp" and sample["land_cover"] == 6
    assert DFC2020Folder(tree, labels="lc")[2]["lc"].shape == (1, 8, 8)
    none = DFC2020Folder(tree, labels=None)[1]
    assert none["lc"] is None and none["land_cover"] == 6


@given(arrays(np.uint8, (1, 5, 7), elements=st.integers(0, 10)))
def test_shares_of_any_truth(truth):
    found, labelled = truth_labels(truth), truth[truth > 0]
    if not labelled.size:
        assert set(found.values()) == {None}
        return
    assert found["land_cover_fraction"] == pytest.approx((labelled == found["land_cover"]).mean())
    assert found["cropland_fraction"] == pytest.approx((labelled == 6).mean())
    assert found["cropland"] == int((labelled == 6).sum() * 2 > labelled.size)
    assert all((labelled == code).sum() <= (labelled == found["land_cover"]).sum() for code in range(1, 11))


def test_sensors_are_chosen(tree):
    radar = DFC2020Folder(tree, sensors=("s1",), skip=["ROIs0000_test_0_p12"])
    assert radar.ids == ["ROIs0000_validation_0_p3", "ROIs0000_winter_CapeTown_p2"]
    assert radar[0]["s2"] is None and radar.layout().shapes[0].tolist() == [1, 0, 8, 8]


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("dfc", np.full((1, 8, 8), 11, np.uint8), "0..10"),
        ("dfc", DFC[:, :4], "different grids"),
        ("s2", S2[:12], "expected 13 bands"),
        ("s1", np.full((2, 8, 8), np.nan), "no valid radar"),
    ],
)
def test_a_bad_file_is_named_and_the_others_read(tree, kind, values, text):
    put(tree, "test", "0", 12, **{kind: values})
    source = DFC2020Folder(tree)
    with pytest.raises(DataError, match=text) as error:
        source[1]
    assert f"ROIs0000_test_{kind}_0_p12.tif" in str(error.value)
    assert source[2]["id"] == "ROIs0000_validation_0_p3"


def test_impossible_sources_are_refused(tree, tmp_path):
    put(tmp_path, "monsoon", "Goa", 1, s2=S2)
    source = DFC2020Folder(tmp_path)
    with pytest.raises(DataError, match="unknown part 'monsoon'"):
        source[source.ids.index("ROIs0000_monsoon_Goa_p1")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no DFC2020 patch"):
        DFC2020Folder(tmp_path / "empty")
    assert not DFC2020Folder.recognises(tmp_path / "empty") and not DFC2020Folder.recognises(tmp_path / "none")
    for options in ({"sensors": ()}, {"labels": "igbp"}):
        with pytest.raises(DataError, match="must be"):
            DFC2020Folder(tmp_path, **options)
    with pytest.raises(DataError, match="the same patch twice"):
        put(tmp_path, "test", "0", 12, folder="copy", s2=S2)
        DFC2020Folder(tmp_path)
