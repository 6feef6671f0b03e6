"""Label files, their match with a table, and the choice of rows by metadata."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from croplem_hf.errors import DataError
from croplem_hf.labels import (
    column_labels,
    column_values,
    encode_labels,
    match_labels,
    read_labels,
    select_where,
    spatial_blocks,
)
from croplem_hf.table import EmbeddingsTable


def make_table(**columns) -> EmbeddingsTable:
    count = len(next(iter(columns.values())))
    vectors = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    return EmbeddingsTable([f"p{n}" for n in range(count)], vectors, pa.table(columns), {})


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_csv_as_text(tmp_path):
    path = write(tmp_path / "a.csv", "id,label,who\n007, maize ,ann\nb,,\nc,wheat,bob\nd,nan,\ne,-1,\n")
    assert read_labels(path) == {"007": "maize", "c": "wheat"}


def test_reads_a_file_with_a_byte_order_mark_and_another_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffcrop,id\nblé,a\n".encode())
    assert read_labels(path, "crop") == {"a": "blé"}


@pytest.mark.parametrize(
    "values",
    [pa.array([1, None, 0, -1]), pa.array([1.0, None, 0.0, -1.0]), pa.array(["1", "", "0", "-1"]),
     pa.array([1.0, float("nan"), 0.0, None]), pa.array(["1.0", None, "0", ""]).dictionary_encode()],
)  # fmt: skip
def test_one_label_reads_alike_whatever_its_type(tmp_path, values):
    pq.write_table(pa.table({"id": list("abcd"), "label": values}), tmp_path / "a.parquet")
    assert read_labels(tmp_path / "a.parquet") == {"a": "1", "c": "0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable label file"),
        ("id,label\n", "no rows"),
        ("id,crop\na,b\n", "one column 'label', found 'id', 'crop'"),
        ("id;label\na;b\n", "separated by commas"),
        ("label\na\n", "one column 'id'"),
        ("id,label,label\na,b,c\n", "one column 'label'"),
        ("id,label\na,b,c\n", "not a readable label file"),
        ("id,label\na,b\n,b\n", "data row 2 has no id"),
        ("id,label\na,maize\na,wheat\n", "'a' is labelled 'maize' and 'wheat'"),
    ],
)
def test_refuses_by_name(tmp_path, text, message):
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(DataError, match=message) as error:
        read_labels(path)
    assert "a.csv" in str(error.value) and "\n" not in str(error.value)


def test_refuses_what_is_not_there_or_not_parquet(tmp_path):
    with pytest.raises(DataError, match="no such label file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(DataError, match="not a readable label file"):
        read_labels(write(tmp_path / "a.parquet", "id,label\na,b\n"))


def test_says_what_it_passes_over(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "croplem_hf"):
        assert read_labels(write(tmp_path / "a.csv", "id,label\na,x\nb,y\na,x\na,\n")) == {"a": "x", "b": "y"}
        assert read_labels(write(tmp_path / "b.csv", "id,label\na,\n")) == {}
    assert "1 repeated labels, the first for 'a'" in caplog.text
    assert "holds no label" in caplog.text


def test_matches_in_the_order_of_the_table(caplog):
    table = make_table(region=["x"] * 4)
    with caplog.at_level(logging.WARNING, "croplem_hf"):
        y = match_labels(table, {"p3": "a", "p0": "b", "q": "a"})
    assert y.tolist() == ["b", None, None, "a"]
    assert "1 of 3 labelled ids are not in the table, the first is 'q'" in caplog.text


def test_no_common_id_is_refused():
    with pytest.raises(DataError, match=r"none of the 1 labelled ids .* 'q', the table's like 'p0'"):
        match_labels(make_table(region=["x"]), {"q": "a"})
    assert match_labels(make_table(region=["x"]), {}).tolist() == [None]


def test_column_labels_take_missing_for_not_labelled():
    table = make_table(cropland=[1.0, float("nan"), 0.0, -1.0], empty=[None] * 4)
    assert column_labels(table, "cropland").tolist() == ["1", None, "0", None]
    with pytest.raises(DataError, match="'empty' of the table holds no label"):
        column_labels(table, "empty")
    with pytest.raises(DataError, match="no column 'crop'; found cropland, empty"):
        column_labels(table, "crop")


@given(st.lists(st.none() | st.text(min_size=1, max_size=3), min_size=1))
def test_codes_stand_for_their_classes(y):
    codes, classes = encode_labels(y)
    assert classes == sorted(set(classes))
    assert [None if code == -1 else classes[code] for code in codes] == y


def test_codes_of_given_classes():
    codes, classes = encode_labels(["b", None, "a"], np.array(["c", "b", "a"]))
    assert codes.tolist() == [1, -1, 2] and classes == ["c", "b", "a"]
    with pytest.raises(DataError, match=r"class 'rice' was not seen in training \(known: a, b\)"):
        encode_labels(["a", "rice"], ["a", "b"])


def test_selects_rows():
    table = make_table(source=["a", "a", "b", "b"], region=["x", "y", "x", None], code=[1.0, 2.0, 1.0, 2.0])
    assert select_where(table, []).ids == table.ids
    assert select_where(table, ["source=a"]).ids == ["p0", "p1"]
    assert select_where(table, ["source=a", "region=x", "region=y"]).ids == ["p0", "p1"]
    assert select_where(table, ["code=1", "source=b"]).ids == ["p2"]
    assert select_where(table, ["id=p3"]).vectors.tolist() == [[9, 10, 11]]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["source"], "'source' is not a filter of the form column=value"),
        (["crop=x"], "no column 'crop'"),
        (["source=c"], "no row has source=c; the column holds a, b"),
        (["region="], "no row has region="),
        (["source=b", "region=y"], "no row fits source=b and region=y together"),
    ],
)
def test_refuses_filters_that_choose_nothing(filters, message):
    table = make_table(source=["a", "a", "b", "b"], region=["x", "y", "x", None])
    with pytest.raises(DataError, match=message):
        select_where(table, filters)


def test_blocks_of_rows():
    table = make_table(block=["a", "b", None, "a"], other=[None] * 4)
    assert len(set(spatial_blocks(table))) == 3
    assert spatial_blocks(table)[0] == spatial_blocks(table)[3]
    assert spatial_blocks(table, "other") is None and spatial_blocks(table, "none") is None
    assert column_values(table, "block") == ["a", "b", None, "a"]


def test_labels_of_real_series_are_read_from_their_table(real_data):
    labels = read_labels(real_data / "series" / "series.parquet", "cropland")
    assert set(labels.values()) == {"0", "1"}
    assert len(labels) > 20_000


def test_labels_that_differ_by_case_or_blanks_are_told(tmp_path, caplog):
    path = write(tmp_path / "a.csv", "id,label\np0,Cropland\np1,cropland\np2,cropland \np3,other\n")
    y = match_labels(make_table(x=range(4)), read_labels(path))
    assert y.tolist() == ["Cropland", "cropland", "cropland", "other"], "nothing is merged by itself"
    told = "labels 'Cropland' (1) and 'cropland' (2) differ only by case and are classes of their own"
    assert told in caplog.text
    assert f"{path}: 'cropland' (1), 'cropland ' (1) are taken as one label 'cropland'" in caplog.text
    caplog.clear()
    column_labels(make_table(crop=["Cropland", "cropland", None, "other"]), "crop")
    assert "'Cropland' (1) and 'cropland' (1) differ only by case" in caplog.text
    caplog.clear()
    match_labels(make_table(x=range(2)), read_labels(write(tmp_path / "b.csv", "id,label\np0, a\np1, b\n")))
    assert caplog.text == "", "blanks behind every comma confuse nothing"


def test_sheets_put_together_are_read(tmp_path):
    path = write(tmp_path / "a.csv", "rank,id,label,lon\n1,a,x,35.1\n2,b,y,35.2\nrank,id,label,lon\n1,c,x,35.3\n")
    assert read_labels(path) == {"a": "x", "b": "y", "c": "x"}
    path = write(tmp_path / "b.csv", "id,label,who\na,x,ann\nid,who,label\nb,bob,y\n")
    with pytest.raises(DataError, match="data row 2 is a header with other columns; give each of the sheets"):
        read_labels(path)
    path = write(tmp_path / "c.csv", "id,label\na,x\nid,label,who\nb,y,bob\n")
    with pytest.raises(DataError, match="several sheets put together.* Give each a --labels of its own"):
        read_labels(path)
    with pytest.raises(DataError, match="no rows below the header"):
        read_labels(write(tmp_path / "d.csv", "id,label\nid,label\n"))
