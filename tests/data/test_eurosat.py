import pickle

import numpy as np
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data.eurosat import CLASSES, FILE_BANDS, SPLITS, EuroSATFolder, split_of
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.errors import DataError
from croplem_hf.sensors import S2_BANDS

GRID = {"crs": "EPSG:32632", "transform": (10, 0, 500_000, 0, -10, 5_300_000)}


def image(order=FILE_BANDS, *, seed=0, b10=12, b11=1800, level=2000, side=8):
    """uint16 (13, side, side): about `level` in each band, with B10 and B11 as given."""
    rng = np.random.default_rng(seed)
    levels = {band: level + 10 * k for k, band in enumerate(S2_BANDS)} | {"B10": b10, "B11": b11}
    return np.stack([rng.integers(levels[b], levels[b] + 5, (side, side)) for b in order]).astype(np.uint16)


def put(root, name, values, **grid):
    return write_geotiff(root / name.rpartition("_")[0] / f"{name}.tif", values, **(GRID | grid))


def test_bands_are_brought_to_our_order_bit_by_bit(tmp_path):
    values = image()
    put(tmp_path, "AnnualCrop_1", values)
    sample = EuroSATFolder(tmp_path)[0]
    assert sample["s2"].dtype == np.uint16 and sample["s1"] is None and sample["s2_level"] == "L1C"
    for k, band in enumerate(FILE_BANDS):
        assert np.array_equal(sample["s2"][0, S2_BANDS.index(band)], values[k]), band
    assert sample["land_use"] == "AnnualCrop" and sample["cropland"] == 1 and sample["date_known"] is False
    assert sample["crs"] == "EPSG:32632" and 8.9 < sample["lon"] < 9.1 and 47 < sample["lat"] < 49
    assert sample["split"] == split_of(sample["lon"], sample["lat"])


def test_a_copy_in_the_order_of_sen12ms_is_noticed(tmp_path):
    values = image(S2_BANDS)
    put(tmp_path, "Forest_3", values)
    source = EuroSATFolder(tmp_path)
    assert source.band_order == "sen12ms" and np.array_equal(source[0]["s2"][0], values)


def test_an_order_that_does_not_show_is_asked_for(tmp_path):
    values = image(b10=2000)
    put(tmp_path, "Pasture_1", values)
    with pytest.raises(DataError, match="band_order="):
        EuroSATFolder(tmp_path)
    sample = EuroSATFolder(tmp_path, band_order="eurosat", s2_offset=0)[0]
    assert np.array_equal(sample["s2"][0, 8], values[12]) and sample["cropland"] == 0


def test_two_orders_are_refused_as_a_whole_and_one_by_one(tmp_path):
    put(tmp_path, "Forest_1", image())
    put(tmp_path, "River_1", image(S2_BANDS))
    with pytest.raises(DataError, match="two orders.*River_1"):
        EuroSATFolder(tmp_path)
    source = EuroSATFolder(tmp_path, band_order="eurosat")
    assert source[0]["id"] == "Forest_1"
    with pytest.raises(DataError, match=r"River_1\.tif.*B10"):
        source[1]


def test_dark_water_is_no_other_order(tmp_path):
    """Over deep sea under thin cirrus B11 is darker than B10."""
    put(tmp_path, "Forest_1", image())
    put(tmp_path, "SeaLake_1", image(b10=30, b11=10, level=300))
    source = EuroSATFolder(tmp_path)
    assert source.band_order == "eurosat" and len([source[i] for i in range(2)]) == 2


def test_items_by_class_and_number_below_single_folders(tmp_path):
    for name in ("Forest_10", "Forest_2", "AnnualCrop_1"):
        put(tmp_path / "EuroSAT_MS" / "tif", name, image())
    (tmp_path / "EuroSAT_MS" / "tif" / "Forest" / "notes.txt").write_text("no patch")
    assert EuroSATFolder.recognises(tmp_path)
    source = pickle.loads(pickle.dumps(EuroSATFolder(tmp_path)))
    assert source.ids == ["AnnualCrop_1", "Forest_2", "Forest_10"]
    assert source.layout().shapes.tolist() == [[0, 1, 8, 8]] * 3
    columns = source.columns()
    assert columns["land_use"].tolist() == ["AnnualCrop", "Forest", "Forest"] and list(columns["cropland"]) == [1, 0, 0]
    assert [sample["split"] for sample in source] == columns["split"].tolist()


def test_bad_files_are_named_and_the_others_read(tmp_path):
    good = put(tmp_path, "Highway_1", image())
    put(tmp_path, "Highway_2", image()[:12])
    put(tmp_path, "Highway_3", np.zeros((13, 8, 8), np.uint16))
    put(tmp_path, "Highway_5", image()[:3])
    (tmp_path / "Highway" / "Highway_4.tif").write_bytes(good.read_bytes()[:300])
    source = EuroSATFolder(tmp_path)
    assert source[0]["id"] == "Highway_1"
    for i, text in enumerate(["found 12", "no valid", "Highway_4", "edition in colour"], start=1):
        with pytest.raises(DataError, match=rf"Highway_{i + 1}\.tif.*|{text}") as error:
            source[i]
        assert text in str(error.value) and f"Highway_{i + 1}.tif" in str(error.value)


def test_splits_are_by_place_and_part_the_whole(tmp_path):
    for k in range(24):
        west = 300_000 + 40_000 * (k % 12)
        put(tmp_path, f"{CLASSES[k % 3]}_{k}", image(), transform=(10, 0, west, 0, -10, 5_300_000))
    put(tmp_path, "Forest_99", image(), crs=None, transform=None)
    parts = {split: EuroSATFolder(tmp_path, split=split).ids for split in ("train", "test")}
    everything = EuroSATFolder(tmp_path)
    for split, ids in parts.items():
        assert ids == [everything.ids[i] for i in np.flatnonzero(everything.columns()["split"] == split)]
        assert all(sample["split"] == split for sample in EuroSATFolder(tmp_path, split=split))
    assert not set(parts["train"]) & set(parts["test"])
    assert everything.columns()["split"][everything.ids.index("Forest_99")] is None


def test_without_places_there_is_no_split(tmp_path):
    put(tmp_path, "Forest_1", image(), crs=None, transform=None)
    assert EuroSATFolder(tmp_path)[0]["split"] is None
    with pytest.raises(DataError, match="leave split out"):
        EuroSATFolder(tmp_path, split="train")


@given(st.integers(-360, 359), st.integers(-180, 179), st.floats(0, 0.499), st.floats(0, 0.499))
def test_a_block_falls_together(column, row, dx, dy):
    assert split_of(column / 2 + dx, row / 2 + dy) == split_of(column / 2, row / 2)


def test_shares_of_the_splits():
    found = [split_of(lon / 2, lat / 2) for lon in range(-60, 60) for lat in range(70, 140)]
    shares = [found.count(split) / len(found) for split in SPLITS]
    assert np.allclose(shares, (0.7, 0.15, 0.15), atol=0.02) and split_of(None, 3.0) is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sensors": ("s1",)}, "optics alone"),
        ({"split": "val"}, "split must"),
        ({"band_order": "rgb"}, "band_order must"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, text):
    put(tmp_path, "Forest_1", image())
    with pytest.raises(DataError, match=text):
        EuroSATFolder(tmp_path, **options)
    with pytest.raises(DataError, match="no such folder"):
        EuroSATFolder(tmp_path / "x")
    with pytest.raises(DataError, match="no EuroSAT class"):
        EuroSATFolder(tmp_path / "Forest")
    assert not EuroSATFolder.recognises(tmp_path / "Forest")
