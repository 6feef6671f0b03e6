"""The embeddings table: what is written is read back bit by bit, a cut-off run resumes, bad tables are refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from croplem_hf.compact import dequantise, quantise
from croplem_hf.errors import CheckpointError, CropLEMError, DataError
from croplem_hf.table import KEY, SETTINGS, EmbeddingsTable, content_hash, read_batches, read_table
from croplem_hf.table_writer import TableWriter

INFO = {
    "model": "m", "weights_hash": "ab", "processor": {"s1_mean": [1.5]}, "sensors": ["s1"], "patch_size": 8,
    "pooling": "mean", "centred": True, "truncate_dim": None, "unit": "patch", "library_version": "0", "dim": 3,
}  # fmt: skip


def fill(writer, ids, vectors, rows, parts, bad=()):
    """Walk the source as `embed_source` does, in parts of the given lengths; returns how many parts were written."""
    start, written = 0, 0
    for length in parts:
        stop = start + length
        if writer.finished(start) is None:
            good = [k for k in range(start, stop) if k not in bad]
            skipped = [(ids[k], f"reason {k}") for k in range(start, stop) if k in bad]
            writer.add_part(start, stop, vectors[good], [{"id": ids[k], **rows[k]} for k in good], skipped)
            written += 1
        start = stop
    return written


def some(n, d=3, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return [f"r{k}" for k in range(n)], vectors, [{"region": "x"} for _ in range(n)]


KINDS = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "text": st.text(st.characters(exclude_categories=["Cs"])),
    "floats": st.lists(st.floats(allow_nan=False), min_size=6, max_size=6),
    "nothing": st.none(),
}


@st.composite
def tables(draw):
    """Ids, vectors of any finite bits, and rows of metadata, some of it missing, cut into parts with skipped items."""
    parts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    n = sum(parts)
    ids = draw(st.lists(KINDS["text"].filter(bool), min_size=n, max_size=n, unique=True))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    vectors = draw(arrays(np.float32, (n, draw(st.integers(1, 5))), elements=finite))
    kinds = draw(st.dictionaries(st.sampled_from("abcde"), st.sampled_from(sorted(KINDS)), max_size=4))
    rows = []
    for _ in range(n):
        row = {name: draw(st.none() | KINDS[kind]) for name, kind in kinds.items()}
        for name in draw(st.sets(st.sampled_from("abcde"))):
            row.pop(name, None)
        rows.append(row)
    bad = draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    return ids, vectors, rows, parts, bad


@given(tables())
def test_round_trip_bit_by_bit(tmp_path_factory, table):
    ids, vectors, rows, parts, bad = table
    path = tmp_path_factory.mktemp("t") / "e.parquet"
    writer = TableWriter(path, INFO, ids)
    fill(writer, ids, vectors, rows, parts, bad)
    assert not path.exists()
    assert writer.skipped() == [(ids[k], f"reason {k}") for k in sorted(bad)]
    writer.finish()
    good = [k for k in range(len(ids)) if k not in bad]
    found = read_table(path)
    assert found.ids == [ids[k] for k in good] and len(found) == len(good)
    assert found.vectors.dtype == np.float32 and found.vectors.tobytes() == vectors[good].tobytes()
    names = {name for k in good for name in rows[k]}
    assert set(found.metadata.column_names) == names
    for name in names:
        assert found.metadata[name].to_pylist() == [rows[k].get(name) for k in good]
    schema = pq.read_schema(path)
    assert schema.names[:2] == ["id", "embedding"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), vectors.shape[1])
    assert [p.name for p in path.parent.iterdir()] == ["e.parquet"]


@given(tables())
def test_int8_is_read_as_floats_wherever_parts_end(tmp_path_factory, table):
    ids, vectors, rows, parts, bad = table
    vectors = vectors.clip(-(2.0**100), 2.0**100)
    path = tmp_path_factory.mktemp("t") / "e.parquet"
    writer = TableWriter(path, INFO | {"precision": "int8"}, ids)
    fill(writer, ids, vectors, [row | {"embedding_scale": 9} for row in rows], parts, bad)
    writer.finish()
    schema = pq.read_schema(path)
    assert schema.names[:3] == ["id", "embedding", "embedding_scale"]
    assert schema.field("embedding").type == pa.list_(pa.int8(), vectors.shape[1])
    assert schema.field("embedding_scale").type == pa.float32()
    good = [k for k in range(len(ids)) if k not in bad]
    found = read_table(path)
    expected = dequantise(*quantise(vectors[good]))
    assert found.vectors.dtype == np.float32 and found.vectors.tobytes() == expected.tobytes()
    assert "embedding_scale" not in found.metadata.column_names and found.info["precision"] == "int8"
    assert found.content_hash == content_hash(found.ids, expected)
    batches = list(read_batches(path, 2))
    assert sum((names for names, _ in batches), []) == found.ids
    assert np.concatenate([block for _, block in batches]).tobytes() == expected.tobytes()


@given(st.lists(st.one_of(*KINDS.values(), st.integers(-(2**80), 2**80)), min_size=2, max_size=8), st.data())
def test_mixed_values_of_a_column_become_floats_or_text_wherever_parts_end(tmp_path_factory, values, data):
    values = [v for v in values if not isinstance(v, list)] or [1]
    ids, vectors, _ = some(len(values))
    cut = data.draw(st.integers(0, len(values)))
    path = tmp_path_factory.mktemp("t") / "e.parquet"
    writer = TableWriter(path, INFO, ids)
    fill(writer, ids, vectors, [{"mixed": v} for v in values], [n for n in (cut, len(values) - cut) if n])
    writer.finish()
    found = read_table(path).metadata["mixed"].to_pylist()
    assert [v is None for v in found] == [v is None for v in values]
    kinds = {type(v) for v in found if v is not None}
    assert len(kinds) <= 1
    if kinds == {str} and all(isinstance(v, str | None) for v in values):
        assert found == values
    if kinds and kinds <= {int, float}:
        assert all(v is None or v == pytest.approx(float(w), rel=1e-15) for v, w in zip(found, values, strict=True))


def test_a_column_of_huge_integers_and_floats_is_rounded_not_refused(tmp_path):
    ids, vectors, _ = some(3)
    writer = TableWriter(tmp_path / "e.parquet", INFO, ids)
    fill(writer, ids, vectors, [{"n": 2**60 + 1}, {"n": 0.5}, {}], [1, 1, 1])
    writer.finish()
    assert read_table(tmp_path / "e.parquet").metadata["n"].to_pylist() == [2.0**60, 0.5, None]


def test_the_file_says_how_it_was_made(tmp_path):
    ids, vectors, rows = some(5)
    path = tmp_path / "deep" / "folder" / "e.parquet"
    writer = TableWriter(path, INFO, ids)
    fill(writer, ids, vectors, rows, [2, 3], bad={4})
    writer.finish()
    stored = json.loads(pq.read_schema(path).metadata[KEY])
    assert stored.items() >= INFO.items() and stored["skipped"] == 1 and stored["created"].endswith("+00:00")
    table = read_table(path)
    assert table.info == stored and table.settings == {key: INFO[key] for key in SETTINGS}


def test_the_content_hash_is_of_rows_not_of_the_file(tmp_path):
    ids, vectors, rows = some(6)
    hashes = []
    for number, parts in enumerate(([6], [1, 2, 3])):
        writer = TableWriter(tmp_path / f"{number}.parquet", INFO | {"model": str(number)}, ids)
        fill(writer, ids, vectors, rows, parts)
        writer.finish()
        hashes.append(read_table(tmp_path / f"{number}.parquet").content_hash)
    assert hashes == [content_hash(ids, vectors)] * 2
    changed = vectors.copy()
    changed[3, 1] = np.nextafter(changed[3, 1], np.float32(9))
    others = [content_hash(ids[::-1], vectors), content_hash(ids, vectors[::-1]), content_hash(ids, changed),
              content_hash(ids, vectors.reshape(3, 6)), content_hash([*ids[:-1], "s"], vectors)]  # fmt: skip
    assert len({hashes[0], *others}) == 6


def test_many_small_parts_become_few_row_groups(tmp_path):
    ids, vectors, rows = some(60)
    writer = TableWriter(tmp_path / "e.parquet", INFO, ids)
    fill(writer, ids, vectors, rows, [1] * 60)
    writer.finish()
    assert pq.ParquetFile(tmp_path / "e.parquet").num_row_groups == 1


def test_select(tmp_path):
    table = EmbeddingsTable(["a", "b", "c"], np.eye(3, dtype=np.float32), pa.table({"k": [1, 2, 3]}), INFO)
    part = table.select([2, 0])
    assert part.ids == ["c", "a"] and part.metadata["k"].to_pylist() == [3, 1] and part.info is table.info
    assert np.array_equal(part.vectors, np.eye(3)[[2, 0]])
    assert table.select(np.array([False, True, True])).ids == ["b", "c"] and table.select([-1]).ids == ["c"]
    assert len(table.select([])) == len(table.select(np.array([], int)).metadata) == 0


# Resuming


def test_a_cut_off_run_goes_on_where_it_stopped(tmp_path):
    ids, vectors, rows = some(9)
    path = tmp_path / "e.parquet"
    fill(TableWriter(path, INFO, ids), ids, vectors, rows, [4])
    # A kill in the middle of writing: a part under its temporary name.
    (tmp_path / "e.parquet.parts" / "part-0000000004-0000000008.tmp").write_bytes(b"PAR1 half")
    writer = TableWriter(path, INFO, ids)
    assert writer.finished(0) == 4 and writer.finished(4) is None
    with pytest.raises(CheckpointError, match="rows from 4 on are missing"):
        writer.finish()
    assert not path.exists()
    assert fill(writer, ids, vectors, rows, [4, 4, 1]) == 2
    writer.finish()
    assert read_table(path).ids == ids and np.array_equal(read_table(path).vectors, vectors)
    assert [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("keep", [0, 4, 0.5, -1])
def test_a_damaged_part_is_made_anew(tmp_path, keep):
    ids, vectors, rows = some(9)
    path = tmp_path / "e.parquet"
    fill(TableWriter(path, INFO, ids), ids, vectors, rows, [4, 4, 1])
    part = tmp_path / "e.parquet.parts" / "part-0000000004-0000000008.parquet"
    data = part.read_bytes()
    part.write_bytes(data[: int(keep * len(data)) if keep == 0.5 else keep])
    writer = TableWriter(path, INFO, ids)
    # Another cut than before leaves no row twice.
    assert fill(writer, ids, vectors, rows, [4, 1, 3, 1]) == 2
    writer.finish()
    assert read_table(path).ids == ids and np.array_equal(read_table(path).vectors, vectors)


@pytest.mark.parametrize("key", [*INFO, "new"])
def test_an_unfinished_table_of_other_settings_is_refused(tmp_path, key):
    ids, vectors, rows = some(4)
    path = tmp_path / "e.parquet"
    fill(TableWriter(path, INFO, ids), ids, vectors, rows, [2])
    with pytest.raises(CheckpointError, match=rf"e\.parquet\.parts holds .* differs in {key}; delete that folder"):
        TableWriter(path, INFO | {key: "other"}, ids)
    assert TableWriter(path, INFO, ids).finished(0) == 2


def test_an_unfinished_table_of_another_source_is_refused(tmp_path):
    ids, vectors, rows = some(4)
    TableWriter(tmp_path / "e.parquet", INFO, ids)
    for other in (ids[::-1], ids[:3], ["r0\nr1", "r2", "r3"]):
        with pytest.raises(CheckpointError, match="the items of the source"):
            TableWriter(tmp_path / "e.parquet", INFO, other)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"info": 3}', '{"info": {}}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    ids, _, _ = some(4)
    TableWriter(tmp_path / "e.parquet", INFO, ids)
    (tmp_path / "e.parquet.parts" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest.json is damaged|differs in"):
        TableWriter(tmp_path / "e.parquet", INFO, ids)


def test_parts_that_a_killed_clean_up_left_are_not_mixed_in(tmp_path):
    ids, vectors, rows = some(4)
    path = tmp_path / "e.parquet"
    fill(TableWriter(path, INFO, ids), ids, vectors + 1, rows, [2, 2])
    (tmp_path / "e.parquet.parts" / "manifest.json").unlink()
    writer = TableWriter(path, INFO | {"patch_size": 4}, ids)
    assert fill(writer, ids, vectors, rows, [2, 2]) == 2
    writer.finish()
    assert np.array_equal(read_table(path).vectors, vectors)


def test_a_kill_between_the_table_and_the_clean_up_costs_nothing(tmp_path, monkeypatch):
    ids, vectors, rows = some(4)
    path = tmp_path / "e.parquet"
    writer = TableWriter(path, INFO, ids)
    fill(writer, ids, vectors, rows, [2, 2])
    with monkeypatch.context() as patch:
        patch.setattr(writer, "discard", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    assert np.array_equal(read_table(path).vectors, vectors)
    writer = TableWriter(path, INFO, ids)
    assert fill(writer, ids, vectors, rows, [2, 2]) == 0
    writer.finish()
    assert np.array_equal(read_table(path).vectors, vectors) and [p.name for p in tmp_path.iterdir()] == ["e.parquet"]


def test_a_table_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    ids, vectors, rows = some(4)
    path = tmp_path / "e.parquet"
    for shift in (0, 1):
        writer = TableWriter(path, INFO, ids)
        fill(writer, ids, vectors + shift, rows, [4])
        if shift:
            assert np.array_equal(read_table(path).vectors, vectors)
        writer.finish()
    assert np.array_equal(read_table(path).vectors, vectors + 1)


def test_only_an_embeddings_table_is_replaced(tmp_path):
    ids, _, _ = some(2)
    series = tmp_path / "series.parquet"
    pq.write_table(pa.table({"id": ids, "s1": [[1.0], [2.0]]}), series)
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    for path in (series, text):
        before = path.read_bytes()
        with pytest.raises(DataError, match=rf"{path.name}: exists and is no embeddings table; give another name"):
            TableWriter(path, INFO, ids)
        assert path.read_bytes() == before
    with pytest.raises(DataError, match="is a folder"):
        TableWriter(tmp_path, INFO, ids)
    with pytest.raises(DataError, match="id 'r0' stands in 2 rows"):
        TableWriter(tmp_path / "e.parquet", INFO, [*ids, "r0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "series.parquet"]


# Foreign and bad tables

VECTORS = [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2), pa.list_(pa.float16())]
)
@pytest.mark.parametrize("ids", [["a", "b"], [7, 8]])
def test_tables_of_others_are_read(tmp_path, kind, ids):
    columns = {"embedding": pa.array([np.array(v, np.float16) if "half" in str(kind) else v for v in VECTORS], kind)}
    pq.write_table(pa.table(columns | {"id": ids, "note": ["x", None]}), tmp_path / "e.parquet")
    table = read_table(tmp_path / "e.parquet")
    assert table.ids == [str(i) for i in ids] and table.info == {} and table.settings == {}
    assert table.vectors.dtype == np.float32 and table.vectors.tolist() == VECTORS
    assert table.metadata.to_pydict() == {"note": ["x", None]}


FLOATS, BYTES = pa.list_(pa.float32()), pa.list_(pa.int8())
BAD = {
    "no column 'id'; found embedding": {"embedding": VECTORS},
    "no column 'embedding'; found id": {"id": ["a", "b"]},
    "has no rows": {"id": pa.array([], pa.string()), "embedding": pa.array([], FLOATS)},
    "row 1 has no id": {"id": ["a", None], "embedding": VECTORS},
    "id 'a' stands in 2 rows": {"id": ["a", "a"], "embedding": VECTORS},
    "column 'id' must hold texts or numbers": {"id": [["a"], ["b"]], "embedding": VECTORS},
    "must hold lists of floats, found int64": {"id": ["a", "b"], "embedding": [1, 2]},
    "must hold lists of floats, found list": {"id": ["a", "b"], "embedding": [["1"], ["2"]]},
    "embedding of 'b' has 1 numbers, expected 2": {"id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0]]},
    "embedding of 'b' has 0 numbers, expected 2": {"id": ["a", "b"], "embedding": [[1.0, 2.0], None]},
    "embedding of 'a' has 0 numbers, expected at least 1": {"id": ["a", "b"], "embedding": pa.array([[], []], FLOATS)},
    "holds int8 without the column 'embedding_scale'": {"id": ["a", "b"], "embedding": pa.array([[1], [2]], BYTES)},
    "1 embeddings hold NaN or infinite values, the first is 'a'": {
        "id": ["a", "b"], "embedding": pa.array([[1], [2]], BYTES), "embedding_scale": [None, 0.5],
    },
    "holds empty values": {"id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0, None]]},
    "1 embeddings hold NaN or infinite values, the first is 'b'": {
        "id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0, float("nan")]],
    },
    "2 embeddings hold NaN or infinite values, the first is 'a'": {
        "id": ["a", "b"], "embedding": pa.array([[1e300, 2.0], [3.0, float("-inf")]], pa.list_(pa.float64())),
    },
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_tables_are_refused(tmp_path, message):
    pq.write_table(pa.table(BAD[message]), tmp_path / "e.parquet")
    with pytest.raises(DataError) as error:
        read_table(tmp_path / "e.parquet")
    assert message in str(error.value) and str(tmp_path / "e.parquet") in str(error.value)


@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 26, reason="older pyarrow cannot read nulls in such a column")
def test_a_null_in_a_fixed_size_column_is_refused(tmp_path):
    column = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": column}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="embedding of 'b' has 0 numbers, expected 2"):
        read_table(tmp_path / "e.parquet")


def test_what_is_no_table_is_refused(tmp_path):
    path = tmp_path / "e.parquet"
    with pytest.raises(DataError, match="no such embeddings table; `croplem embed` writes one"):
        read_table(path)
    pq.write_table(pa.table({"id": ["a"], "embedding": [[1.0]]}).replace_schema_metadata({KEY: "{"}), path)
    with pytest.raises(DataError, match="metadata 'croplem' is not JSON"):
        read_table(path)
    data = path.read_bytes()
    for damaged in (b"", b"text", data[:-9], data[4:]):
        path.write_bytes(damaged)
        with pytest.raises(CropLEMError, match=r"e\.parquet: not a readable Parquet file"):
            read_table(path)


@pytest.mark.parametrize(("group", "rows"), [(1000, 5000), (1000, 700), (100_000, 5000)])
def test_batches_of_a_large_table_hold_little_of_it(tmp_path, group, rows):
    vectors = np.random.default_rng(0).standard_normal((60_000, 32)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 32)
    table = pa.table({"id": [f"i{k}" for k in range(60_000)], "embedding": flat})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group, compression="none", use_dictionary=False)
    del flat, table
    before, most, start = pa.total_allocated_bytes(), 0, 0
    for ids, found in read_batches(tmp_path / "t.parquet", rows):
        assert 0 < len(ids) <= rows and ids[0] == f"i{start}"
        assert np.array_equal(found, vectors[start : start + len(ids)])
        start += len(ids)
        most = max(most, pa.total_allocated_bytes() - before)
    assert start == 60_000
    # Of 8 MB; a single group has to be read as it is.
    assert group > 60_000 or most < 4e6
