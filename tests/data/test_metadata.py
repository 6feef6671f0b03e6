"""The table of a user's own rasters: its two forms, CSV and Parquet, and what masks clouds."""

import csv
import pickle
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from croplem_hf.data.folder import ImageFolder, open_scene
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.data.metadata import band_name, read_metadata
from croplem_hf.errors import DataError
from croplem_hf.sensors import S2_BANDS

B10 = S2_BANDS.index("B10")


def tif(path: Path, array, size=10, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": "EPSG:32737", "transform": (size, 0, 375410.0, 0, -size, 8116740.0)}
    write_geotiff(path, np.asarray(array), **place, **options)
    return path.name


def optics(rng, side=6):
    values = rng.integers(900, 6000, (13, side, side)).astype(np.uint16)
    values[0] = rng.integers(100, 800, (side, side))
    values[B10] = rng.integers(3, 40, (side, side))
    return values


def write(folder: Path, rows: list[dict], parquet: bool = False) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if parquet:
        columns = {name: [row.get(name) or None for row in rows] for name in names}
        pq.write_table(pa.table(columns), folder / "metadata.parquet")
        return folder
    with open(folder / "metadata.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture
def places(tmp_path):
    """Rasters of two places: f1 with two optical dates and one of radar, f2 with one optical date."""
    rng = np.random.default_rng(0)
    values = {name: optics(rng) for name in ("f1_june", "f1_july", "f2")}
    for name, array in values.items():
        tif(tmp_path / f"{name}.tif", array)
    values["radar"] = rng.normal(-12, 2, (2, 6, 6)).astype(np.float32)
    tif(tmp_path / "radar.tif", values["radar"])
    return tmp_path, values


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("names", [("s1", "s2"), ("s1_file_name", "s2_file_name"), ("s1", "file_name")])
def test_a_line_may_be_a_place_at_a_date(places, names, parquet):
    root, values = places
    s1, s2 = names
    rows = [
        {"id": "f1", s1: "radar.tif", s2: "f1_june.tif", "date": "2021-06-15", "s1_date": "2021-06-14"},
        {"id": "f1", s1: "", s2: "f1_july.tif", "date": "2021-07-10"},
        {"id": "f2", s1: "", s2: "f2.tif", "date": "2021-06-15"},
    ]
    labels = [{"crop": "maize", "yield": "2.5", "plot": "007", "region": "Njoro"}, {"crop": "maize"}, {"crop": ""}]
    for row, more in zip(rows, labels, strict=True):
        row |= {"s1_kind": "gamma0" if row[s1] else "", "s2_level": "L1C"} | more
    source = ImageFolder(write(root, rows, parquet))
    assert source.ids == ["f1", "f2"]
    sample = source[0]
    assert (sample["s1_dates"], sample["s2_dates"]) == (["2021-06-14"], ["2021-06-15", "2021-07-10"])
    assert np.array_equal(sample["s2"], [values["f1_june"], values["f1_july"]])
    assert np.array_equal(sample["s1"][0], values["radar"]) and sample["s1_kind"] == "gamma0"
    assert (sample["crop"], sample["plot"], sample["region"]) == ("maize", "007", "Njoro")
    assert sample["yield"] == (2.5 if not parquet else "2.5")
    assert source[1]["s1"] is None and "crop" not in source[1] and "s2_correction" not in sample
    columns = source.columns()
    assert columns["crop"].tolist() == ["maize", None] and columns["region"].tolist() == ["Njoro", None]
    assert ImageFolder(root, sensors=["s1"]).ids == ["f1"]


def test_without_ids_every_line_is_a_place_named_as_its_raster(places):
    root, _ = places
    tif(root / "north" / "a.tif", optics(np.random.default_rng(1)))
    rows = [{"file_name": name, "date": "2021-06-15", "label": k} for k, name in enumerate(["north/a.tif", "f2.tif"])]
    source = ImageFolder(write(root, rows))
    assert source.ids == ["north/a", "f2"] and [s["label"] for s in source] == [0, 1]


def test_a_line_may_be_a_raster_in_parquet_too(places):
    root, values = places
    rows = [
        {"path": "f1_june.tif", "sensor": "s2", "date": "2021-06-15", "offset": 1000, "region": "Njoro"},
        {"path": "radar.tif", "sensor": "s1", "date": "2021-06-14", "offset": None},
    ]
    sample = ImageFolder(write(root, rows, parquet=True), s2_offset=0)[0]
    assert np.array_equal(sample["s2"][0], np.maximum(values["f1_june"], 1000) - 1000)
    assert (sample["region"], sample["s2_correction"]) == ("Njoro", "offset 1000 off")
    pq.write_table(pa.table({"path": ["f2.tif"], "sensor": ["s2"], "date": [["2021"]]}), root / "metadata.parquet")
    with pytest.raises(DataError, match="column 'date' must hold single values"):
        read_metadata(root)
    (root / "metadata.parquet").write_text("no table")
    with pytest.raises(DataError, match="metadata.parquet: not a readable Parquet file"):
        read_metadata(root)
    (root / "metadata.csv").touch()
    with pytest.raises(DataError, match=r"holds metadata.csv and metadata.parquet; remove one"):
        read_metadata(root)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"s2": "f2.tif"}], "line 2: column 'date' is empty"),
        ([{"s2": "", "date": "2021-06-15"}], "line 2: neither s1 nor s2 names a raster"),
        ([{"s2": "f2.tif", "s1": "radar.tif", "s2_date": "2021-06-15"}], "line 2: column 'date' is empty"),
        ([{"s2": "f2.tif", "date": "June"}], "line 2: 'June' is not an ISO date"),
        ([{"s2": "f2.tif", "date": "2021-06-15", "s2_unit": "dn"}], "column 's2_unit' is unknown.*'s2_units'"),
        ([{"s2": "f2.tif", "date": "2021-06-15", "level": "L1C"}], "column 'level' must say of which .*: s2_level"),
        ([{"s2": "f2.tif", "date": "2021-06-15", "units": "dn"}], "'units' must say of which .*: s1_units or s2_units"),
        ([{"s2": "f2.tif", "date": "2021-06-15", "gsd": "10"}], "column 'gsd' is unknown.*give it another name"),
        ([{"s2": "f2.tif", "file_name": "f2.tif", "date": "2021-06-15"}], "column 's2' is there twice, or under two"),
        ([{"image": "f2.tif", "date": "2021-06-15"}], "columns of rasters are missing.*found image, date"),
        ([{"s2": "f2.tif", "date": "2021-06-15", "s2_offset": "9"}], "line 2: offset must be 0, 1000 or auto"),
        ([{"s2": "f2.tif", "date": "2021-06-15", "cloud_threshold": "0"}], "line 2: cloud_threshold must be percent"),
        (
            [{"id": "a", "s2": f"{name}.tif", "date": f"2021-0{k}-15", "crop": crop} for k, (name, crop) in enumerate(
                [("f1_june", "maize"), ("f1_july", ""), ("f2", "beans")], start=1)],
            "a: column crop differs within one place: .*line 2.*maize.*line 4.*beans",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_table_is_refused_at_once(places, rows, text):
    with pytest.raises(DataError, match=text):
        ImageFolder(write(places[0], rows))


@pytest.mark.parametrize(
    ("name", "stored", "threshold", "bad"),
    [
        ("CLD", np.array([0, 39, 40, 100], np.uint8), None, [0, 0, 1, 1]),
        ("MSK_CLDPRB", np.array([0, 39, 40, 100], np.uint8), 60, [0, 0, 0, 1]),
        ("CLP", np.array([0, 101, 102, 255], np.uint8), None, [0, 0, 1, 1]),
        ("cloud_probability", np.array([0, 0.39, 0.4, 1], np.float32), None, [0, 0, 1, 1]),
        ("probability", np.array([0, 39, 40, 100], np.float32), None, [0, 0, 1, 1]),
        ("cs_cdf", np.array([1, 0.6, 0.59, 0], np.float32), None, [0, 0, 1, 1]),
        ("QA60", np.array([0, 4, 1 << 10, 1 << 11], np.uint16), None, [0, 0, 1, 1]),
    ],
)
@pytest.mark.parametrize("form", ["band", "raster", "line"])
def test_clouds_by_probability_and_bits(places, name, stored, threshold, bad, form):
    root, values = places
    clouds = np.zeros((1, 6, 6), stored.dtype) + stored[0]
    clouds[0, :2, :2] = stored.reshape(2, 2)
    row = {"path": "f2.tif", "sensor": "s2", "date": "2021-06-15", "cloud_threshold": threshold}
    rows = [row]
    if form == "band":
        both = np.concatenate([values["f2"].astype(np.float32), clouds.astype(np.float32)])
        if stored.dtype.kind == "u":
            both = both.astype(np.uint16)
        tif(root / "f2.tif", both, descriptions=[*S2_BANDS, name])
    else:
        tif(root / f"T37_{name}_10m.tif", clouds)
        if form == "raster" and name != "QA60":
            row["clouds"] = f"T37_{name}_10m.tif"
        else:
            rows = [row, row | {"path": f"T37_{name}_10m.tif"}]
    sample = open_scene(write(root, rows)).read()
    assert (~sample["s2_valid"][0, :2, :2]).ravel().tolist() == [bool(b) for b in bad]
    assert sample["s2_valid"].sum() == 36 - sum(bad)
    assert np.array_equal(sample["s2"][0][:, sample["s2_valid"][0]], values["f2"][:, sample["s2_valid"][0]])


def test_small_clouds_that_the_overview_misses_still_mask(tmp_path):
    rng = np.random.default_rng(0)
    clouds = np.zeros((1, 600, 600), np.uint8)
    clouds[0, 1, 1] = 100
    tif(tmp_path / "a.tif", optics(rng, 600))
    tif(tmp_path / "c.tif", clouds)
    write(tmp_path, [{"s2": "a.tif", "s2_clouds": "c.tif", "date": "2021-06-15"}])
    assert np.argwhere(~open_scene(tmp_path).read(0, 0, 4, 4)["s2_valid"][0]).tolist() == [[1, 1]]


def test_cloud_probabilities_in_other_numbers_are_refused(places):
    root, _ = places
    row = {"s2": "f2.tif", "s2_clouds": "c.tif", "date": "2021-06-15"}
    tif(root / "c.tif", np.full((1, 6, 6), 250, np.uint8))
    with pytest.raises(DataError, match="probability CLD in .*c.tif runs from 250 to 250; expected 0..1 or 0..100"):
        open_scene(write(root, [row]))
    tif(root / "c.tif", np.zeros((2, 6, 6), np.uint8))
    with pytest.raises(DataError, match="the clouds raster .*c.tif must have one band, found 2"):
        open_scene(root)


def test_names_of_bands():
    names = {"T37_B8A_20m": "B8A", "B2": "B02", "MSK_CLDPRB_20m": "CLDPRB", "QA60": "QA60", "cs_cdf": "CS_CDF"}
    assert {text: band_name(text, "s2") for text in names} == names
    assert band_name("B02_B03", "s2") is None and band_name("VV", "s2") is None


def test_dates_too_bright_to_tell_follow_the_others_of_their_side_of_the_baseline(tmp_path):
    rng = np.random.default_rng(0)
    dark, bright = optics(rng), optics(rng) + 3000
    for name, values in (("dark", dark), ("bright", bright)):
        tif(tmp_path / f"{name}.tif", np.delete(values, B10, axis=0))
    days = {"2021-06-01": "dark", "2021-06-11": "bright", "2021-06-21": "dark", "2022-06-01": "dark"}
    rows = [{"id": "a", "s2": f"{name}.tif", "date": day} for day, name in days.items()]
    sample = open_scene(write(tmp_path, rows)).read()
    assert np.array_equal(sample["s2"][1, 0], bright[0]) and "s2_correction" not in sample
    rows[1]["date"] = "2022-06-11"
    with pytest.raises(DataError, match=r"line 3 \(bright.tif\): .*or the offset.*say 0 or 1000 in column"):
        open_scene(write(tmp_path, rows))


def test_kind_of_radar_by_name(tmp_path):
    rng = np.random.default_rng(0)
    for name, kind in (("S1A_RTC.tif", "gamma0"), ("S1A_sigma0_VV_VH.tif", "sigma0"), ("cartcloud.tif", None)):
        tif(tmp_path / name, rng.normal(-12, 2, (2, 6, 6)).astype(np.float32))
        write(tmp_path, [{"s1": name, "date": "2021-06-14"}])
        assert open_scene(tmp_path).s1_kind == kind


def test_pictures_are_no_measurement(tmp_path):
    tif(tmp_path / "a.tif", np.full((3, 6, 6), 80, np.uint8), descriptions=["B04", "B03", "B02"])
    write(tmp_path, [{"s2": "a.tif", "date": "2021-06-14", "s2_level": "L2A"}])
    with pytest.raises(DataError, match="line 2 .*optics of 8 bits are a picture"):
        open_scene(tmp_path)


def test_layout_reads_headers_only_and_leaves_out_what_cannot_be_opened(places, caplog):
    root, _ = places
    tif(root / "coarse.tif", np.ones((1, 3, 3), np.uint16), size=20, descriptions=["B11"])
    rows = [
        {"id": "f1", "s1": "radar.tif", "s2": "coarse.tif", "date": "2021-06-15"},
        {"id": "f1", "s1": "", "s2": "f1_july.tif", "date": "2021-07-15"},
        {"id": "gone", "s1": "gone.tif", "s2": "", "date": "2021-07-15"},
        {"id": "f2", "s1": "", "s2": "f2.tif", "date": "2021-07-15"},
    ]
    source = ImageFolder(write(root, rows))
    assert source.layout().shapes.tolist() == [[1, 2, 6, 6], [0, 0, 0, 0], [0, 1, 6, 6]]
    assert "left out: gone: " in caplog.text and not source.seasonal
    source[2]
    again = pickle.loads(pickle.dumps(source))
    assert again.ids == source.ids and len(pickle.dumps(source)) < 10_000
    for path, known in ((root, True), (root / "metadata.csv", True), (root / "f2.tif", False), (root / "no", False)):
        assert ImageFolder.recognises(path) is known
    with pytest.raises(DataError, match="no place of the table can be read; the first: .*line 2"):
        ImageFolder(write(root, rows[2:3])).layout()


def test_a_table_of_fifty_thousand_places_opens_no_file(tmp_path):
    lines = [f"p{k},place/{k}.tif,2021-06-{k % 28 + 1:02d},{k % 9},Njoro" for k in range(50_000)]
    (tmp_path / "metadata.csv").write_text("\n".join(["id,s2,date,label,region", *lines]))
    start = time.process_time()
    source = ImageFolder(tmp_path)
    assert time.process_time() - start < 6  # 2 s on an idle core
    assert len(source) == 50_000 and source.columns()["label"][8] == 8
