import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data.geotiff import read_geotiff, write_geotiff
from croplem_hf.data.kenya import CROPS, KenyaFields, KenyaTiles
from croplem_hf.data.kenya_mosaic import BANDS
from croplem_hf.data.plan import BatchPlan
from croplem_hf.data.synthetic_kenya import DATES, generate_kenya
from croplem_hf.errors import DataError
from croplem_hf.sensors import S2_BANDS

SMALL = {"seed": 3, "tile_size": (30, 36), "fields": 30, "clouds": 0.2}


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """One invented copy in each layout; read only."""
    root = tmp_path_factory.mktemp("kenya")
    return {layout: generate_kenya(root / layout, layout=layout, **SMALL) for layout in ("source", "zindi", "mlhub")}


@pytest.fixture
def copy(copies, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(copies["source"], tmp_path / "copy"))


def mosaic(root, name):
    """Tiles [1 | 3] over [0 | 2] of a raster, read by plain means."""
    tiles = [read_geotiff(root / "data" / str(t) / name.format(t))[0][0] for t in range(4)]
    return np.block([[tiles[1], tiles[3]], [tiles[0], tiles[2]]])


def same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == b[key].dtype and value.tobytes() == b[key].tobytes(), key
        else:
            assert value == b[key], key


def readable(source):
    """Numbers of the items that have a clear pixel."""
    found = []
    for i in range(len(source)):
        try:
            source[i]
            found.append(i)
        except DataError as error:
            assert source.ids[i] in str(error)
    return found


@pytest.mark.parametrize("options", [{}, {"window": 9, "masked": False}, {"context": 2}])
def test_the_layouts_give_the_same_samples(copies, options):
    sources = [KenyaFields(copies[layout], **options) for layout in copies]
    for other in sources[1:]:
        assert other.ids == sources[0].ids and len(other) > 20
        for i in readable(sources[0])[::3]:
            same(sources[0][i], other[i])


def test_a_sample_holds_the_pixels_of_the_files(copies):
    root = copies["source"]
    source = KenyaFields(root, window=7, masked=False)
    ids, labels, tile = mosaic(root, "{0}_field_id.tif"), mosaic(root, "{0}_label.tif"), source.columns()["tile"]
    stack = {band: mosaic(root, f"{DATES[4]}/{{0}}_{band}_{DATES[4]}.tif") for band in (*BANDS, "CLD")}
    assert set(tile) == {0, 1, 2, 3} and (source.kind, source.unit, source.seasonal) == ("kenya", "field", False)
    for i in readable(source):
        sample = source[i]
        rows, columns = np.nonzero(ids == sample["field_id"])
        top = (rows.min() + rows.max() + 1 - 7) // 2
        left = (columns.min() + columns.max() + 1 - 7) // 2
        assert sample["transform"] == (10, 0, 613740 + 10 * left, 0, -10, 79160 - 10 * top)
        assert 34 < sample["lon"] < 34.4 and 0.5 < sample["lat"] < 0.8
        assert sample["s2"].shape == (13, 13, 7, 7) and sample["s2_dates"][4] == "2019-07-21"
        assert sample["s2_level"] == "L2A" and not sample["s2_bands"][:, S2_BANDS.index("B10")].any()
        assert sample["area_px"] == len(rows)
        code = int(labels[rows[0], columns[0]])
        assert (sample["crop_code"], sample["crop_type"]) == ((code, CROPS[code]) if code else (None, None))
        assert sample["split"] == ("train" if code else "test") and sample["cropland"] == (1 if code else None)
        pad = 8
        cut = np.s_[top + pad : top + pad + 7, left + pad : left + pad + 7]
        for band in BANDS:
            expected = np.pad(stack[band].astype(np.float32), pad, constant_values=np.nan)[cut] * np.float32(10000)
            assert np.array_equal(sample["s2"][4, S2_BANDS.index(band)], expected, equal_nan=True)
        assert np.array_equal(sample["s2_valid"][4], np.pad(stack["CLD"] < 40, pad)[cut])


def test_only_the_field_is_valid_unless_the_surroundings_are_wanted(copies):
    root = copies["source"]
    ids = mosaic(root, "{0}_field_id.tif")
    source, around = KenyaFields(root, context=3), KenyaFields(root, context=3, masked=False)
    padded = np.pad(ids, 3)
    for i in readable(source):
        sample, wide = source[i], around[i]
        rows, columns = np.nonzero(ids == sample["field_id"])
        field = padded[rows.min() : rows.max() + 7, columns.min() : columns.max() + 7] == sample["field_id"]
        assert np.array_equal(sample["s2_valid"], wide["s2_valid"] & field)
        assert np.array_equal(sample["s2"], wide["s2"], equal_nan=True)
        assert wide["s2_valid"].sum() > sample["s2_valid"].sum()


def test_a_field_across_a_seam_is_one_item(copies):
    root = copies["source"]
    tiles = {t: read_geotiff(root / "data" / str(t) / f"{t}_field_id.tif")[0][0] for t in range(4)}
    seam = (set(tiles[1][-1]) & set(tiles[0][0])) - {0}
    assert seam
    source = KenyaFields(root, cloud_threshold=100)
    for number in seam:
        sample = source[source.ids.index(f"generated_kenya_{number}")]
        assert sample["area_px"] == sum((tile == number).sum() for tile in tiles.values())
        assert sample["s2_valid"].any(axis=0).sum() == sample["area_px"]


def test_splits_columns_and_layout(copies):
    root = copies["source"]
    both, train, test = (KenyaFields(root, split=split) for split in (None, "train", "test"))
    assert sorted(train.ids + test.ids) == sorted(both.ids) and len(set(both.ids)) == len(both)
    assert set(test.columns()["crop_type"]) == {None} and None not in train.columns()["crop_type"]
    layout = both.layout()
    for i in readable(both)[::2]:
        sample = both[i]
        assert layout.shapes[i].tolist() == [0, 13, *sample["s2"].shape[2:]]
        assert all(values[i] == sample[name] for name, values in both.columns().items())
    assert layout.shapes.dtype == layout.groups.dtype == np.int32
    assert BatchPlan([layout], batch_size=4).items == len(both)


@given(size=st.integers(7, 50), seed=st.integers(0, 10**6))
def test_tiles_cover_every_pixel_once(copies, size, seed):
    root = copies["zindi"]
    source = KenyaTiles(root, size=size, cloud_threshold=100)
    assert len(source) == -(-72 // size) * -(-60 // size) and len(set(source.ids)) == len(source)
    i = seed % len(source)
    row, column = (int(part[1:]) for part in source.ids[i].split("_")[-2:])
    whole = mosaic(copies["source"], f"{DATES[0]}/{{0}}_B08_{DATES[0]}.tif") * np.float32(10000)
    part = whole[row : row + size, column : column + size]
    found = source[i]["s2"][0, S2_BANDS.index("B08")]
    assert np.array_equal(found[: part.shape[0], : part.shape[1]], part)
    assert np.isnan(found[part.shape[0] :]).all() and np.isnan(found[:, part.shape[1] :]).all()
    assert source.layout().shapes[i].tolist() == [0, 13, size, size]


def test_digital_numbers_are_the_same_as_reflectance(copies, copy):
    for path in copy.rglob("*_B*.tif"):
        values, _ = read_geotiff(path)
        write_geotiff(path, np.rint(values * 10000).astype(np.uint16))
    a, b = KenyaFields(copies["source"]), KenyaFields(copy)
    assert (a.s2_units, b.s2_units) == ("reflectance", "dn")
    i = readable(a)[0]
    assert np.nanmax(np.abs(a[i]["s2"] - b[i]["s2"])) <= 0.51
    assert np.array_equal(a[i]["s2_valid"], b[i]["s2_valid"])


def test_a_pixel_of_zeros_in_all_bands_is_missing(copy):
    for path in copy.glob(f"data/*/{DATES[2]}/*_B*.tif"):
        write_geotiff(path, np.zeros_like(read_geotiff(path)[0]))
    sample = KenyaFields(copy, cloud_threshold=100)[0]
    assert not sample["s2_valid"][2].any() and sample["s2_valid"][3].any()


def test_missing_rasters_are_named_or_absent(copy):
    (copy / "data" / "1" / DATES[5] / f"1_B11_{DATES[5]}.tif").unlink()
    with pytest.raises(DataError, match=f"1 rasters are missing, tile 1 {DATES[5]} B11"):
        KenyaFields(copy)
    source = KenyaFields(copy, allow_missing=True, cloud_threshold=100)
    first, last = source[source.columns()["tile"].tolist().index(1)], source[len(source) - 1]
    gap = np.zeros((13, 13), bool)
    gap[5, S2_BANDS.index("B11")] = gap[:, S2_BANDS.index("B10")] = True
    assert np.array_equal(first["s2_bands"], ~gap) and first["s2_valid"][5].any()
    assert last["region"] == "generated_kenya_tile_3" and last["s2_bands"].sum() == 13 * 12


def test_bad_rasters_are_named_and_cost_no_other_item(copy):
    path = copy / "data" / "3" / DATES[0] / f"3_B02_{DATES[0]}.tif"
    path.write_bytes(path.read_bytes()[:300])
    wrong = write_geotiff(copy / "data" / "2" / DATES[0] / f"2_B02_{DATES[0]}.tif", np.zeros((1, 5, 5), np.float32))
    source = KenyaFields(copy, cloud_threshold=100)
    tiles = source.columns()["tile"].tolist()
    for tile, name in ((3, path), (2, wrong)):
        with pytest.raises(DataError, match=str(name)):
            source[tiles.index(tile)]
    assert source[tiles.index(1)]["s2"] is not None


def test_odd_labels_are_reported(copy, caplog):
    path = copy / "FieldIds.csv"
    header, first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, "," + first.split(",")[1], "9999,", *lines]))
    source = KenyaFields(copy)
    assert "are in no raster" in caplog.text and "1 fields are in no split" in caplog.text
    assert source.columns()["split"].tolist().count(None) == 1
    label = copy / "data" / "0" / "0_label.tif"
    values, _ = read_geotiff(label)
    write_geotiff(label, np.full_like(values, 9))
    with pytest.raises(DataError, match=f"{label}: unknown classes .9"):
        KenyaFields(copy)


def test_splits_that_contradict_are_refused(copy):
    (copy / "FieldIds.csv").write_text("train,test\n5,6\n7,5\n")
    with pytest.raises(DataError, match="line 3: field 5 is in both splits"):
        KenyaFields(copy)
    (copy / "FieldIds.csv").write_text("a,b\n5,6\n")
    with pytest.raises(DataError, match="columns train and test"):
        KenyaFields(copy)


def test_without_the_table_fields_without_label_are_test(copies, copy, caplog):
    (copy / "FieldIds.csv").unlink()
    source = KenyaFields(copy)
    assert source.columns()["split"].tolist() == KenyaFields(copies["source"]).columns()["split"].tolist()
    assert "no FieldIds.csv" in caplog.text


def test_a_copy_that_was_cut_has_no_place(copy, caplog):
    (copy / "GENERATED.txt").unlink()
    sample = KenyaFields(copy, cloud_threshold=100)[0]
    assert (sample["crs"], sample["transform"], sample["lon"], sample["generated"]) == (None, None, None, False)
    assert sample["id"].startswith("kenya_") and sample["region"].startswith("kenya_tile_")
    assert "not as published" in caplog.text


def test_invented_data_says_so(copies, caplog):
    source = KenyaFields(copies["mlhub"])
    assert "invented" in caplog.text and all(id.startswith("generated_kenya_") for id in source.ids)
    assert source[readable(source)[0]]["generated"] is True


def test_recognises_its_layouts_only(copies, sen12ms_tree, tmp_path):
    assert all(KenyaFields.recognises(root) for root in copies.values())
    assert KenyaFields.recognises(copies["zindi"] / "data")
    assert not any(KenyaFields.recognises(path) for path in (sen12ms_tree, tmp_path, copies["zindi"] / "FieldIds.csv"))


def _bytes(source, i, queue):
    queue.put(source[i]["s2"].tobytes())


def test_workers_read_the_same(copies):
    source = KenyaFields(copies["source"], cloud_threshold=100)
    expected = source[0]["s2"].tobytes()
    assert pickle.loads(pickle.dumps(source))[0]["s2"].tobytes() == expected
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_bytes, args=(source, 0, queue))
    worker.start()
    assert queue.get(timeout=60) == expected
    worker.join()


@pytest.mark.parametrize(
    "options",
    [{"split": "val"}, {"window": 4}, {"window": 0}, {"context": -1}, {"sensors": ("s1",)}, {"cloud_threshold": 0}],
)
def test_options_out_of_range_are_refused(copies, options):
    with pytest.raises(DataError):
        KenyaFields(copies["source"], **options)


def test_folders_without_the_data_are_refused(tmp_path, copy):
    for root, text in ((tmp_path / "nothing", "no such folder"), (tmp_path, "same raster twice|no imagery")):
        with pytest.raises(DataError, match=text):
            shutil.copytree(copy, tmp_path / "again", dirs_exist_ok=True)
            KenyaFields(root)
