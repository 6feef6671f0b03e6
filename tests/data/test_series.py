import datetime
import logging
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data import SeriesTable, open_source
from croplem_hf.errors import DataError
from croplem_hf.sensors import S2_BANDS

B10 = S2_BANDS.index("B10")
FLOATS = pa.list_(pa.float32())


def row(rng, t=3, **change):
    """One row of a good table: T dates of radar in dB and of L1C digital numbers."""
    s2 = rng.integers(100, 6000, (t, 13)).astype(np.float32)
    s2[:, B10] = 12
    fields = {"dates": [f"2019-{k + 1:02d}-15" for k in range(t)], "s2": s2.ravel()}
    return fields | {"s1": rng.normal(-14, 3, 2 * t).astype(np.float32), "region": "Iran", "cropland": 1} | change


def write(path, rows, *, types=None, **options):
    names = list(dict.fromkeys(name for values in rows for name in values))
    types = {"s1": FLOATS, "s2": FLOATS, "dates": pa.list_(pa.string())} | (types or {})
    columns = {"id": pa.array([values.get("id", f"r{k}") for k, values in enumerate(rows)])}
    for name in names:
        if name != "id":
            columns[name] = pa.array([values.get(name) for values in rows], types.get(name))
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@st.composite
def tables(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keep = draw(st.sampled_from([("s1",), ("s2",), ("s1", "s2")]))
    rows = []
    for _ in range(draw(st.integers(1, 9))):
        values = row(rng, draw(st.integers(1, 7)))
        for sensor, channels in (("s1", 2), ("s2", 13)):
            if sensor not in keep:
                del values[sensor]
                continue
            stack = values[sensor].reshape(-1, channels)
            stack[rng.random(len(stack)) < 0.2] = np.nan
            stack[:, rng.random(channels) < 0.1] = np.nan
        rows.append(values)
    return keep, rows, draw(st.integers(1, 4))


@given(tables(), st.sampled_from(["list", "large", "64 bit"]))
def test_round_trip_bit_by_bit(tmp_path_factory, table, storage):
    keep, rows, group = table
    kind = {"list": FLOATS, "large": pa.large_list(pa.float32()), "64 bit": pa.list_(pa.float64())}[storage]
    types = {sensor: kind for sensor in keep}
    path = write(tmp_path_factory.mktemp("t") / "a.parquet", rows, types=types, row_group_size=group)
    source = SeriesTable(path)
    assert source.ids == [f"r{k}" for k in range(len(rows))] and source.sensors == keep
    for i in np.random.default_rng(0).permutation(len(rows)).tolist():
        try:
            sample = source[i]
        except DataError as error:
            assert f"r{i}: nothing valid" in str(error)
            continue
        for sensor, channels in (("s1", 2), ("s2", 13)):
            values = sample[sensor]
            if values is None:
                assert sensor not in keep or not np.isfinite(rows[i][sensor].reshape(-1, channels)).all(axis=1).any()
                continue
            assert values.shape == (len(rows[i]["dates"]), channels, 1, 1) and values.flags.writeable
            assert np.array_equal(values.ravel(), rows[i][sensor], equal_nan=True)
            assert sample[f"{sensor}_dates"] == rows[i]["dates"]


def test_a_series_and_its_metadata(tmp_path, rng):
    extra = {"lon": 48.5, "crop_type": None, "field_id": "f9", "temporary_crop": -1, "year": 2019, "ok": True}
    extra |= {"day": datetime.date(2019, 5, 1), "tags": ["a"], "landcover_code": float("nan")}
    source = open_source(write(tmp_path / "a.parquet", [row(rng, **extra), row(rng, cropland=-1)]))
    assert (source.kind, source.unit, len(source)) == ("series", "series", 2)
    sample = source[0]
    assert (sample["id"], sample["gsd"], sample["region"], sample["cropland"]) == ("r0", 10, "Iran", 1)
    assert (sample["lon"], sample["field_id"], sample["year"], sample["ok"]) == (48.5, "f9", 2019, True)
    assert sample["day"] == "2019-05-01" and "tags" not in sample
    assert sample["crop_type"] is None and sample["temporary_crop"] is None and sample["landcover_code"] is None
    assert source[1]["cropland"] is None and source[1]["lon"] is None


def test_labels_may_be_names(tmp_path, rng):
    source = SeriesTable(write(tmp_path / "a.parquet", [row(rng, cropland="rainfed"), row(rng, cropland=None)]))
    assert [sample["cropland"] for sample in source] == ["rainfed", None]


def test_columns_that_fill_the_sample(tmp_path, rng):
    change = {"gsd": 20.0, "s1_kind": "gamma0", "s1_orbit": "ascending", "s2_level": "L2A"}
    rows = [row(rng, **change), row(rng)]
    source = SeriesTable(write(tmp_path / "a.parquet", rows))
    assert {key: source[0][key] for key in change} == change
    assert source[1]["gsd"] == 10 and source[1]["s1_kind"] is None and source[1]["s2_level"] == "L1C"
    assert SeriesTable(source.path, s2_level="L1C")[0]["s2_level"] == "L1C"


def test_without_b10_the_level_is_an_assumption_said_once(tmp_path, rng, caplog):
    rows = [row(rng) for _ in range(3)]
    for values in rows[1:]:
        values["s2"].reshape(-1, 13)[:, B10] = np.nan
    source = SeriesTable(write(tmp_path / "a.parquet", rows))
    with caplog.at_level(logging.WARNING):
        assert [sample["s2_level"] for sample in source] == ["L1C", "L2A", "L2A"]
    assert caplog.text.count("without B10") == 1
    assert open_source(source.path, s2_level="L1C")[1]["s2_level"] == "L1C"


def test_sensors_can_be_chosen(tmp_path, rng):
    path = write(tmp_path / "a.parquet", [row(rng)])
    assert open_source(path, sensors=["s1"])[0]["s2"] is None
    assert open_source(path, sensors=["s2"])[0]["s1"] is None
    with pytest.raises(DataError, match="sensors must be some of"):
        SeriesTable(path, sensors=["s4"])


@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 26, reason="older pyarrow cannot read nulls in such a column")
def test_fixed_size_lists_nulls_and_date_types(tmp_path, rng):
    days = [datetime.date(2019, 1, 15), datetime.date(2019, 1, 15), datetime.date(2020, 2, 15)]
    rows = [row(rng, s1=None, dates=days), row(rng, dates=days)]
    types = {"s1": pa.list_(pa.float32(), 6), "s2": pa.list_(pa.float32(), 39), "dates": pa.list_(pa.date32())}
    source = SeriesTable(write(tmp_path / "a.parquet", rows, types=types))
    assert source[0]["s1"] is None and source[1]["s2_dates"] == ["2019-01-15", "2019-01-15", "2020-02-15"]
    assert np.array_equal(source[1]["s1"].ravel(), rows[1]["s1"])
    assert np.array_equal(source[0]["s2"].ravel(), rows[0]["s2"])


def test_null_numbers_and_zero_dates_are_missing(tmp_path, rng):
    values = row(rng)
    s1, s2 = values["s1"].tolist(), values["s2"].reshape(-1, 13).copy()
    s1[0] = None
    s2[1] = 0
    sample = SeriesTable(write(tmp_path / "a.parquet", [values | {"s1": s1, "s2": s2.ravel()}]))[0]
    assert sample["s1_valid"].ravel().tolist() == [False, True, True]
    assert sample["s2_valid"].ravel().tolist() == [True, False, True]
    assert sample["s2_bands"].all(axis=1).tolist() == [True, False, True]


def test_units_belong_to_the_table_not_to_the_row(tmp_path, rng):
    dark = row(rng)
    dark["s2"][:] = 1.5
    rows = [row(rng), dark]
    assert SeriesTable(write(tmp_path / "dn.parquet", rows))[1]["s2"].max() == 1.5
    for values in rows:
        values["s2"] = values["s2"] / 10000
        values["s1"] = 10 ** (values["s1"] / 10)
    source = SeriesTable(write(tmp_path / "r.parquet", rows))
    assert (source.s1_units, source.s2_units) == ("linear", "reflectance")
    np.testing.assert_allclose(source[1]["s2"], 1.5, rtol=1e-5)
    assert -25 < source[0]["s1"].mean() < -5
    assert SeriesTable(source.path, s2_units="dn")[1]["s2"].max() < 1


def test_units_come_from_the_first_rows_that_have_the_sensor(tmp_path, rng):
    empty = row(rng)
    empty["s1"][:] = np.nan
    last = row(rng)
    last["s1"] = 10 ** (last["s1"] / 10)
    source = SeriesTable(write(tmp_path / "a.parquet", [empty, last], row_group_size=1))
    assert source.s1_units == "linear" and source[0]["s1"] is None


def test_the_offset_is_removed_where_the_whole_table_shows_it(tmp_path, rng):
    rows = [row(rng) for _ in range(40)]
    for values in rows:
        values["s2"] = values["s2"] + 1000
    source = SeriesTable(write(tmp_path / "a.parquet", rows))
    assert source.s2_offset == 1000 and source[0]["s2"][0, B10] == 12
    assert SeriesTable(source.path, s2_offset=0)[0]["s2"][0, B10] == 1012
    assert source[0]["s2_correction"] == "offset 1000 off"
    # A single bright row is a cloud as well as an offset.
    path = write(tmp_path / "b.parquet", rows[:1])
    with pytest.raises(DataError, match="b.parquet: .*B10 is at 1012.*; say s2_offset=0 or 1000"):
        SeriesTable(path)
    assert SeriesTable(path, s2_offset=0)[0]["s2"][0, B10] == 1012


def test_dates_on_both_sides_of_the_baseline_that_differ_are_refused(tmp_path, rng):
    rows = [row(rng, dates=["2021-12-01", "2022-03-01", "2022-06-01"]) for _ in range(60)]
    for values in rows:
        values["s2"].reshape(3, 13)[1:] += 1000
    with pytest.raises(DataError, match="a.parquet: dates before 2022-01-25 have no offset and later ones have it"):
        SeriesTable(write(tmp_path / "a.parquet", rows))


def test_layout_and_columns_without_decoding(tmp_path, rng):
    rows = [row(rng, t, year=2019 + t, s2_level="L1C") for t in (1, 2, 3, 4)]
    rows[1]["s1"] = None
    rows[2]["s2"][:] = np.nan
    source = SeriesTable(write(tmp_path / "a.parquet", rows, row_group_size=3))
    layout, columns = source.layout(), source.columns()
    for i, sample in enumerate(source):
        dates = [0 if sample[s] is None else len(sample[s]) for s in ("s1", "s2")]
        assert layout.shapes[i].tolist() == [*dates, 1, 1]
        assert (columns["year"][i], columns["region"][i]) == (sample["year"], "Iran")
    assert layout.groups.tolist() == [0, 0, 0, 1] and not source.seasonal
    assert SeriesTable.recognises(source.path) and not SeriesTable.recognises(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dates": ["2019-01-15"]}, "r1: 1 dates but 6 values in s1"),
        ({"s2": np.ones(38, np.float32)}, "r1: 3 dates but 38 values in s2"),
        ({"dates": []}, "r1: 0 dates but 6 values"),
        ({"dates": ["2019-01-15", "May", "2019-03-15"]}, "r1: s1_dates: 'May' is not an ISO date"),
        ({"dates": ["2019-01-15", None, "2019-03-15"]}, "r1: s1_dates: '' is not an ISO date"),
        ({"s1": [-1200.0] * 6}, "r1: radar values"),
        ({"s2": [1e6] * 39}, "r1: values"),
        ({"s1": None, "s2": None}, "r1: nothing valid"),
        ({"s2_level": "L7"}, "r1: s2_level must be one of"),
    ],
)
def test_a_bad_row_is_refused_by_id_and_the_others_are_read(tmp_path, rng, change, text):
    source = SeriesTable(write(tmp_path / "a.parquet", [row(rng) | {"s2_level": "L1C"}, row(rng, **change), row(rng)]))
    with pytest.raises(DataError, match=text):
        source[1]
    assert source[0]["id"] == "r0" and source[2]["id"] == "r2"


@pytest.mark.parametrize(
    ("rows", "types", "text"),
    [
        ([{"dates": ["2019-01-15"], "s3": 1}], {}, "columns s1 and s2 are both missing.*found id, dates, s3"),
        ([{"embedding": [0.5]}], {}, "holds embeddings, no imagery; give the imagery that they were made from"),
        ([{"s1": [-12.0, -15.0]}], {}, "column 'dates' is missing; found id, s1"),
        ([{"dates": ["2019-01-15"], "s1": "a"}], {"s1": pa.string()}, "column 's1' must be a flat list"),
        (
            [{"dates": ["2019-01-15"], "s1": [[-12.0, -15.0]]}],
            {"s1": pa.list_(FLOATS)},
            "column 's1' must be a flat list",
        ),
        ([{"id": "x", "dates": [], "s1": []}, {"id": "x", "dates": [], "s1": []}], {}, r"ids repeat.*'x' \(2 rows\)"),
        ([{"id": None, "dates": [], "s1": []}], {}, "column 'id' has empty values"),
        ([{"dates": ["2019-01-15"], "s1": [120.0, 80.0]}], {}, ".*neither dB nor linear power"),
        ([{"dates": ["2019-01-15"], "s1": ["a", "b"]}], {"s1": pa.list_(pa.string())}, "row group 0 cannot be read"),
    ],
)
def test_a_table_that_cannot_serve_is_refused(tmp_path, rows, types, text):
    path = write(tmp_path / "bad.parquet", rows, types=types)
    with pytest.raises(DataError, match=f"{path}: {text}"):
        SeriesTable(path)


def test_files_that_are_no_table(tmp_path, rng):
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match="a.parquet: no such file"):
        SeriesTable(path)
    for content in (b"", b"id,dates\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="a.parquet: not a readable Parquet file"):
            SeriesTable(path)
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "dates": [], "s1": pa.array([], FLOATS)}).cast(
        pa.schema({"id": pa.string(), "dates": pa.list_(pa.string()), "s1": FLOATS})), path)  # fmt: skip
    with pytest.raises(DataError, match="a.parquet: the table holds no rows"):
        SeriesTable(path)
    with pytest.raises(DataError, match="column 'id' is missing"):
        pq.write_table(pa.table({"s1": [[1.0]]}), path)
        SeriesTable(path)
    with pytest.raises(DataError, match="s2_level must be one of"):
        SeriesTable(path, s2_level="L9")
    write(path, [row(rng) for _ in range(50)])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match="a.parquet: not a readable"):
        SeriesTable(path)


def test_a_table_damaged_inside_is_refused_by_row_group(tmp_path, rng):
    path = write(tmp_path / "a.parquet", [row(rng, t=12) for _ in range(40)], row_group_size=20, compression="gzip")
    source = SeriesTable(path)
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 600] = b"\xff" * 600
    path.write_bytes(content)
    assert source[0]["id"] == "r0"
    with pytest.raises(DataError, match="a.parquet: row group 1 cannot be read"):
        source[20]


def test_walking_and_pickling(tmp_path, rng):
    source = SeriesTable(write(tmp_path / "a.parquet", [row(rng) for _ in range(7)], row_group_size=2))
    again = pickle.loads(pickle.dumps(source))
    assert [sample["id"] for sample in again] == source.ids and again[-1]["id"] == "r6"
    with pytest.raises(IndexError):
        source[7]


def test_open_source_names_what_it_accepts(tmp_path, sen12ms_tree):
    for path, text in ((tmp_path / "gone", "no such file or folder"), (tmp_path / "a.txt", "cannot be read")):
        if path.suffix:
            path.touch()
        with pytest.raises(DataError, match=f"{path}: {text}.*SEN12MS.*parquet"):
            open_source(path)
    assert open_source(sen12ms_tree, sensors=["s1"], s2_level="L1C").sensors == ("s1",)
    with pytest.raises(DataError, match="optics of SEN12MSFolder are level L1C, not 'L2A'"):
        open_source(sen12ms_tree, s2_level="L2A")


def test_real_series(real_data):
    path = real_data / "series" / "series.parquet"
    source = open_source(path)
    table = pq.read_table(path).to_pandas()
    assert len(source) == 28722 and (source.s1_units, source.s2_units, source.s2_offset) == ("db", "dn", 0)
    seen = dict.fromkeys(table["source"], 0)
    for i in range(0, len(source), 23):
        sample, expected = source[i], table.iloc[i]
        seen[sample["source"]] += 1
        assert sample["id"] == expected["id"] and sample["s2_level"] == "L2A"
        if sample["s2"] is not None:
            dates = sample["s2_valid"].ravel()
            values = expected["s2"].reshape(-1, 13)
            assert np.array_equal(sample["s2"][dates, :, 0, 0], values[dates], equal_nan=True)
        if sample["s1"] is not None:
            assert np.array_equal(sample["s1"].ravel(), expected["s1"], equal_nan=True)
        assert (sample["s1"] is None) == (not np.isfinite(expected["s1"]).any())
        assert sample["cropland"] == (None if expected["cropland"] < 0 else expected["cropland"])
    assert all(seen.values())
