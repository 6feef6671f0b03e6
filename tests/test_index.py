"""The index: exact against brute force, recall of inverted lists, the item itself left out, and bad files refused."""

import json
import os
import shutil

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.hub_parts import PATTERNS
from croplem_hf.index import EmbeddingIndex
from croplem_hf.index_files import FILES
from croplem_hf.index_halves import HalvesFile, in_memory, new_halves, take_halves
from croplem_hf.table import EmbeddingsTable, read_batches, read_table

INFO = {"weights_hash": "ab", "processor": {"s1_mean": [1.5]}, "sensors": None, "patch_size": "auto", "pooling": "mean",
        "centred": True, "unit": "patch", "model": "m"}  # fmt: skip


def make(vectors, ids=None, info=INFO, **columns):
    vectors = np.asarray(vectors, np.float32)
    ids = [f"i{k}" for k in range(len(vectors))] if ids is None else ids
    metadata = pa.table({"number": list(range(len(vectors)))} | columns)
    return EmbeddingsTable(ids, vectors, metadata, info)


def curved(n, d=32, seed=0):
    """Vectors of d numbers that vary in six directions only, on a curved surface, as embeddings do."""
    rng = np.random.default_rng(seed)
    return np.tanh(rng.normal(size=(n, 6)) @ rng.normal(size=(6, d))).astype(np.float32)


def cosines(a, b):
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


@given(st.data())
def test_exact_search_is_brute_force(data):
    n, d = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 8))
    finite = st.floats(-(2.0**50), 2.0**50, width=32).filter(lambda x: x == 0 or abs(x) > 2**-50)
    vectors = data.draw(arrays(np.float32, (n, d), elements=finite))
    queries = data.draw(arrays(np.float32, (data.draw(st.integers(0, 4)), d), elements=finite))
    for x in (vectors, queries):
        x[~x.any(axis=1), 0] = 1
    k = data.draw(st.integers(1, 40))
    found = EmbeddingIndex.build(make(vectors)).query(queries, k=k)
    truth = cosines(queries, vectors)
    k = min(k, n)
    assert found.rows.shape == found.scores.shape == (len(queries), k)
    assert found.ids == [[f"i{row}" for row in line] for line in found.rows]
    np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.rows, axis=1), atol=2e-6)
    np.testing.assert_allclose(found.scores, -np.sort(-truth, axis=1)[:, :k], atol=2e-6)
    assert all(len(set(line)) == k for line in found.rows.tolist())


@pytest.mark.parametrize("options", [{}, {"exact_below": 0, "preset": "compact"}])
@given(groups=st.lists(st.integers(1, 4), min_size=2, max_size=12), k=st.integers(1, 20))
def test_an_item_is_left_out_of_its_own_result_even_among_twins(options, groups, k):
    rng = np.random.default_rng(len(groups))
    vectors = np.repeat(rng.normal(size=(len(groups), 4)), groups, axis=0)
    index = EmbeddingIndex.build(make(vectors), **options)
    found = index.query(ids=index.ids, k=k)
    truth = cosines(vectors, vectors)
    np.fill_diagonal(truth, -2)
    k = min(k, len(vectors) - 1)
    assert found.rows.shape == (len(vectors), k)
    assert not (found.rows == np.arange(len(vectors))[:, None]).any()
    # A byte a number costs some hundredths.
    np.testing.assert_allclose(found.scores, -np.sort(-truth, axis=1)[:, :k], atol=2e-2 if options else 2e-6)


def recall_of_lists(vectors, queries, **options):
    """Share of the true ten nearest that lists find, and the index."""
    exact, lists = (EmbeddingIndex.build(make(vectors), exact_below=n, **options) for n in (10**6, 1000))
    assert exact.lists is None and lists.lists is not None
    truth, found = exact.query(queries, k=10).rows, lists.query(queries, k=10).rows
    return np.mean([len({*a} & {*b}) / 10 for a, b in zip(truth.tolist(), found.tolist(), strict=True)]), lists


@pytest.mark.parametrize(("preset", "least"), [("default", 0.97), ("compact", 0.93)])
def test_lists_find_what_they_are_tuned_to(preset, least):
    vectors = curved(20_300)
    recall, lists = recall_of_lists(vectors[300:], vectors[:300], preset=preset)
    assert recall >= least, recall
    again = EmbeddingIndex.build(make(vectors[300:]), exact_below=1000, preset=preset)
    assert np.array_equal(again.query(vectors[:300]).rows, lists.query(vectors[:300]).rows)
    assert again.settings == lists.settings
    if preset == "default":
        assert abs(lists.settings["recall"] - recall) < 0.02


@pytest.mark.parametrize("peer", ["presto", "galileo_nano"])
def test_lists_find_97_of_100_real_embeddings(real_data, peer):
    vectors = np.load(real_data / "series" / "peer_embeddings.npz")[peer].astype(np.float32)
    vectors = np.random.default_rng(0).permutation(vectors - vectors.mean(axis=0))
    recall, _ = recall_of_lists(vectors[300:], vectors[:300])
    assert recall >= 0.97, recall


def test_scores_of_lists_are_cosines_but_for_half_floats(monkeypatch):
    vectors = curved(5000)
    index = EmbeddingIndex.build(make(vectors), exact_below=0)
    found = index.query(vectors[:40] + 0.01, k=8)
    # In many small parts, as of many queries.
    monkeypatch.setattr("croplem_hf.index._AT_ONCE", 1000)
    again = index.query(vectors[:40] + 0.01, k=8)
    assert np.array_equal(found.rows, again.rows)
    truth = np.take_along_axis(cosines(vectors[:40] + 0.01, vectors), found.rows, axis=1)
    np.testing.assert_allclose(found.scores, truth, atol=1e-3)
    assert (np.diff(found.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("exact_below", [10**6, 0])
@pytest.mark.parametrize("preset", ["default", "compact"])
def test_added_and_removed(tmp_path, exact_below, preset):
    vectors = curved(3000)
    index = EmbeddingIndex.build(make(vectors[:2000]), exact_below=exact_below, preset=preset)
    before = index.content_hash
    more = make(vectors[2000:], ids=[f"new{k}" for k in range(1000)])
    index.add(more)
    index.remove(["i7", "new3"])
    assert len(index) == len(index.ids) == 2998 and index.content_hash != before
    index.save(tmp_path / "x")
    for same in (index, EmbeddingIndex.load(tmp_path / "x")):
        found = same.query(vectors[[7, 2003, 2500]], k=3)
        assert found.ids[2][0] == "new500" and not {"i7", "new3"} & {name for line in found.ids for name in line}
        assert same.query(ids=["new500"], k=2).rows.shape == (1, 2)
        for name in ("i7", "new3"):
            with pytest.raises(DataError, match=f"holds no '{name}'"):
                same.query(ids=[name])
    with pytest.raises(DataError, match="'i8' is in the index"):
        index.add(make(vectors[:1], ids=["i8"]))
    with pytest.raises(CheckpointError, match="differ from the index in unit"):
        index.add(make(vectors[:1], ids=["z"], info=INFO | {"unit": "field"}))
    with pytest.raises(DataError, match="no 'nobody'"):
        index.remove(["i1", "nobody"])
    assert len(index) == 2998
    index.add(make(vectors[7:8], ids=["i7"]))
    assert index.query(ids=["i7"], k=1).rows.shape == (1, 1)


def test_nearly_parallel_vectors_are_told_apart():
    vectors = curved(6000) * 0.05 + 1
    assert cosines(vectors[:9], vectors[9:99]).mean() > 0.998
    recall, index = recall_of_lists(vectors[300:], vectors[:300])
    assert recall > 0.95
    # It is measured among the half floats themselves.
    assert abs(index.settings["recall"] - recall) < 0.05


def test_equal_vectors_do_not_disturb_the_tuning(caplog):
    index = EmbeddingIndex.build(make(np.repeat(curved(300), 20, axis=0)), exact_below=0)
    assert index.settings["recall"] > 0.98 and not caplog.text
    index = EmbeddingIndex.build(make(np.random.default_rng(0).normal(size=(9000, 64))), exact_below=0, recall=1.0)
    assert index.settings["recall"] < 1 and "not the 1.000 that was asked for" in caplog.text


def test_removed_rows_take_no_places_of_others():
    vectors = curved(5000)
    index, exact = (EmbeddingIndex.build(make(vectors), exact_below=n) for n in (0, 10**6))
    gone = [f"i{k}" for k in np.random.default_rng(0).permutation(5000)[:2500]]
    index.remove(gone)
    exact.remove(gone)
    found, truth = (x.query(vectors[:200] + 0.01, k=10).ids for x in (index, exact))
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(found, truth, strict=True)]) > 0.95


def test_ids_stand_once(tmp_path):
    table = make(curved(4), ids=["a", "a", "b", "c"])
    with pytest.raises(DataError, match="'a' stands in 2 rows"):
        EmbeddingIndex.build(table)
    index = EmbeddingIndex.build(make(curved(9)))
    with pytest.raises(DataError, match="'a' stands in 2 rows"):
        index.add(table)


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    index = EmbeddingIndex.build(make(curved(9)))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.json").write_text('{"site": 1}')
    index.save(tmp_path / "x")
    (tmp_path / "x" / "thesis.txt").write_text("mine")
    for name in ("site", "x"):
        with pytest.raises(DataError, match="or holds other files too"):
            index.save(tmp_path / name)
    assert (tmp_path / "x" / "thesis.txt").exists()
    (tmp_path / "x" / "thesis.txt").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    for _ in range(2):
        index.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and len(EmbeddingIndex.load(tmp_path / "link")) == 9
    # A save that was killed between its two renames has left the index under a hidden name.
    os.replace(tmp_path / "x", tmp_path / ".x.croplem-old")
    index.save(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "site", "x"]


def test_tables_that_are_none(tmp_path):
    ragged = [[1.0, 2.0]] * 3 + [[1.0]] * 3
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"id": list("abcdef"), "embedding": ragged}), path, row_group_size=3)
    with pytest.raises(DataError, match="of 'd' has 1 numbers, expected 2"):
        list(read_batches(path, 3))
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array([[1.0]]), pa.array([1]), pa.array([2])],
                                        names=["id", "embedding", "x", "x"]), path)  # fmt: skip
    with pytest.raises(DataError, match="two columns are named 'x'"):
        EmbeddingIndex.build_file(path, tmp_path / "x")


@pytest.mark.parametrize("exact_below", [10**6, 0])
def test_among_those_with_wanted_values(exact_below):
    vectors = curved(2000)
    region = [("Kenya", "Iran", None)[k % 3] for k in range(2000)]
    index = EmbeddingIndex.build(make(vectors, region=region, year=[2019, 2020] * 1000), exact_below=exact_below)
    found = index.query(ids=["i0", "i1"], k=5, where={"region": "Kenya", "year": [2019, 2021]})
    rows = np.array([k for k in range(2000) if region[k] == "Kenya" and k % 2 == 0])
    truth = cosines(vectors[:2], vectors[rows])
    truth[0, 0] = -2
    assert found.rows.tolist() == rows[np.argsort(-truth, axis=1)[:, :5]].tolist()
    assert set(found.metadata["region"].to_pylist()) == {"Kenya"}
    assert index.query(ids=["i0"], k=9999, where={"region": "Kenya"}).rows.shape == (1, 666)
    both = index.query(ids=["i0", "i1"], k=9999, where={"region": "Kenya"})
    assert both.rows.shape == (2, 666) and not (both.rows == [[0], [1]]).any()
    coded = make(vectors, region=pa.array(region).dictionary_encode())
    assert EmbeddingIndex.build(coded).query(ids=["i0"], k=9999, where={"region": "Kenya"}).rows.shape == (1, 666)
    for where, message in (({"place": 1}, "no column 'place'; found id, number"), ({"region": "Mars"}, "no item"),
                           ({"year": "x"}, "cannot hold")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            index.query(ids=["i0"], where=where)


@pytest.mark.parametrize("exact_below", [10**6, 0])
@pytest.mark.parametrize("preset", ["default", "compact"])
def test_a_file_is_indexed_as_its_table(tmp_path, monkeypatch, exact_below, preset):
    monkeypatch.setattr("croplem_hf.index._BLOCK", 700)
    vectors = curved(3000)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 32)
    path = tmp_path / "table.parquet"
    table = pa.table({"id": [f"i{k}" for k in range(3000)], "embedding": flat, "number": range(3000)})
    pq.write_table(table.replace_schema_metadata({"croplem": json.dumps(INFO)}), path, row_group_size=1000)
    options = {"exact_below": exact_below, "preset": preset}
    a = EmbeddingIndex.build_file(path, tmp_path / "x", **options)
    b = EmbeddingIndex.build(read_table(path), **options)
    assert (a.ids, a.info, a.content_hash, a.settings) == (b.ids, b.info, b.content_hash, b.settings)
    x, y = a.query(vectors[:50]), b.query(vectors[:50])
    assert np.array_equal(x.rows, y.rows) and np.array_equal(x.scores, y.scores) and x.metadata.equals(y.metadata)
    assert sorted(os.listdir(tmp_path)) == ["table.parquet", "x"]
    pq.write_table(table.select(["id", "embedding"]), path)
    assert EmbeddingIndex.build_file(path, tmp_path / "x", **options).metadata.column_names == ["id"]
    pq.write_table(pa.concat_tables([table, table[:1]]), path)
    with pytest.raises(DataError, match="unique"):
        EmbeddingIndex.build_file(path, tmp_path / "y", **options)
    assert sorted(os.listdir(tmp_path)) == ["table.parquet", "x"]


def test_inverted_lists_give_k_results_where_the_nearest_lists_hold_fewer():
    vectors = curved(4000)
    index = EmbeddingIndex.build(make(vectors), exact_below=0)
    index.settings |= {"probes": 1}
    for k in (100, 1500):
        found = index.query(vectors[:50], k=k)
        assert found.rows.shape == (50, k) and found.rows.min() >= 0
        assert all(len(set(line)) == k for line in found.rows.tolist())
        assert (np.diff(found.scores, axis=1) <= 0).all()
    assert [len(line) for line in index.query(ids=["i0"], k=5000).ids] == [3999]


@pytest.mark.parametrize("exact_below", [10**6, 0])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_small_indexes(exact_below, n):
    index = EmbeddingIndex.build(make(np.random.default_rng(0).normal(size=(n, 3))), exact_below=exact_below)
    assert len(index) == n and index.dim == 3
    assert index.query(np.ones(3), k=99).rows.shape == (1, n)
    assert index.query(ids=["i0", "i0"], k=99).rows.shape == (2, n - 1)
    assert index.query(ids=[], k=4).ids == [] and index.query(np.zeros((0, 3)), k=4).ids == []
    assert index.query(ids=[], k=4).rows.shape == (0, min(4, n - 1))


@pytest.mark.parametrize("exact_below", [10**6, 0])
def test_saved_moved_and_loaded(tmp_path, exact_below):
    table = make(curved(800), crop=["wheat", None] * 400)
    index = EmbeddingIndex.build(table, exact_below=exact_below)
    index.save(tmp_path / "a" / "patches.index")
    moved = shutil.move(tmp_path / "a" / "patches.index", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "a")
    loaded = EmbeddingIndex.load(moved)
    assert (loaded.ids, loaded.info, loaded.content_hash) == (table.ids, INFO, table.content_hash)
    assert loaded.metadata.column_names == ["id", "number", "crop"] and loaded.metadata.equals(index.metadata)
    for a, b in ((index.query(ids=["i3", "i7"]), loaded.query(ids=["i3", "i7"])),
                 (index.query(table.vectors), loaded.query(table.vectors))):  # fmt: skip
        assert a.ids == b.ids and np.array_equal(a.scores, b.scores)
    arrays = ["centre.npy", "lists.faiss", "vectors.faiss"] if exact_below == 0 else ["vectors.npy"]
    assert sorted(os.listdir(moved)) == sorted(["index.json", *arrays, "metadata.parquet"])


def test_an_index_is_replaced_whole_and_nothing_else_ever(tmp_path, monkeypatch):
    first, second = (EmbeddingIndex.build(make(curved(20, seed=s))) for s in (0, 1))
    for name in ("x.tmp", "x.old", "x.index.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").touch()
    first.save(tmp_path / "x.index")
    second.save(str(tmp_path / "x.index") + "/")
    assert EmbeddingIndex.load(tmp_path / "x.index").content_hash == second.content_hash
    # What a killed save leaves does not disturb the next one, and the index that was there stays.
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            first.save(tmp_path / "x.index")
    assert EmbeddingIndex.load(tmp_path / "x.index").content_hash == second.content_hash
    first.save(tmp_path / "x.index")
    assert EmbeddingIndex.load(tmp_path / "x.index").content_hash == first.content_hash
    assert sorted(os.listdir(tmp_path)) == ["x.index", "x.index.old", "x.old", "x.tmp"]
    assert (tmp_path / "x.index.old" / "mine.txt").exists()
    with pytest.raises(DataError, match="exists and is no index, or holds other files too; give another name"):
        first.save(tmp_path / "x.tmp")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="exists and is no index"):
        first.save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    first.save(tmp_path / "empty")
    assert len(EmbeddingIndex.load(tmp_path / "empty")) == 20


def edit(folder, **change):
    about = json.loads((folder / "index.json").read_text()) | change
    (folder / "index.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))


DAMAGE = {
    "no index here": lambda f: (f / "index.json").unlink(),
    "index.json is damaged": lambda f: (f / "index.json").write_text("{"),
    "index.json is damaged .*TypeError": lambda f: (f / "index.json").write_text("[]"),
    "index.json is damaged .*format": lambda f: edit(f, format=None),
    "index.json is damaged .*sha256": lambda f: edit(f, sha256=None),
    "index.json is damaged .*settings": lambda f: edit(f, settings={"probes": 0}),
    "an index of format 9, this library reads 3": lambda f: edit(f, format=9),
    "metadata.parquet is missing": lambda f: (f / "metadata.parquet").unlink(),
    "vectors.npy is damaged or foreign": lambda f: os.truncate(f / "vectors.npy", 100),
    "index.json is damaged .*files": lambda f: edit(f, sha256={"../x": "1"}),
    "metadata.parquet is damaged or foreign": lambda f: (f / "metadata.parquet").write_bytes(b"other"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_and_foreign_files_are_refused(tmp_path, message):
    folder = tmp_path / "x"
    EmbeddingIndex.build(make(curved(20))).save(folder)
    DAMAGE[message](folder)
    with pytest.raises(CheckpointError, match=message) as error:
        EmbeddingIndex.load(folder)
    assert str(folder) in str(error.value)


def test_files_of_another_index_are_refused(tmp_path):
    for seed in (0, 1):
        EmbeddingIndex.build(make(curved(20, seed=seed))).save(tmp_path / str(seed))
    shutil.copy(tmp_path / "1" / "vectors.npy", tmp_path / "0" / "vectors.npy")
    with pytest.raises(CheckpointError, match="vectors.npy is damaged or foreign"):
        EmbeddingIndex.load(tmp_path / "0")
    for path in (tmp_path / "nothing", tmp_path / "0" / "vectors.npy"):
        with pytest.raises(CheckpointError, match="no index here"):
            EmbeddingIndex.load(path)


@pytest.mark.parametrize("key", ["weights_hash", "processor", "sensors", "patch_size", "pooling", "centred", "unit"])
def test_vectors_of_other_settings_are_refused(key):
    table = make(curved(20))
    index = EmbeddingIndex.build(table)
    assert index.query(table, k=1).ids == [[name] for name in table.ids]
    index.check_settings(INFO | {"model": "the same weights under another name", "created": "later"})
    other = INFO | {key: "other"}
    with pytest.raises(CheckpointError, match=f"differ from the index in {key};"):
        index.check_settings(other)
    with pytest.raises(CheckpointError, match=f"differ from the index in {key};"):
        index.query(make(curved(5), info=other))
    with pytest.raises(CheckpointError, match="differ from the index in weights_hash, "):
        index.query(make(curved(5), info={}))
    assert EmbeddingIndex.build(make(curved(5), info={})).query(make(curved(5), info={}), k=1).ids[3] == ["i3"]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused_by_name(value):
    vectors = curved(5, d=3)
    index = EmbeddingIndex.build(make(vectors))
    vectors[3] = value
    with pytest.raises(DataError, match="the vector of 'i3' is all zeros or not finite"):
        EmbeddingIndex.build(make(vectors))
    with pytest.raises(DataError, match="the vector of 'query 3' is all zeros or not finite"):
        index.query(vectors)
    with pytest.raises(DataError, match="the vector of 'x' is all zeros or not finite"):
        index.query(make(vectors[3:4], ids=["x"]))


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e37])
def test_tiny_and_huge_vectors_have_a_direction(scale):
    vectors = curved(20)
    found = EmbeddingIndex.build(make(vectors * np.float32(scale))).query(vectors, k=1)
    assert found.rows[:, 0].tolist() == list(range(20)) and found.scores == pytest.approx(1, abs=1e-5)


def test_wrong_questions():
    index = EmbeddingIndex.build(make(curved(20), ids=[f"ROIs1970_fall_139_p{k}" for k in range(20)]))
    for kwargs, message in [
        ({}, "give either vectors or ids"),
        ({"vectors": np.ones(32), "ids": ["ROIs1970_fall_139_p1"]}, "give either vectors or ids"),
        ({"vectors": np.ones(32), "k": 0}, "k must be at least 1, found 0"),
        ({"vectors": np.ones((2, 31))}, r"queries have shape \(2, 31\), the index holds vectors of 32 numbers"),
        ({"vectors": np.ones((2, 2, 32))}, "queries have shape"),
        ({"ids": ["ROIs1970_fall_139p7"]}, "holds no 'ROIs1970_fall_139p7'; did you mean 'ROIs1970_fall_139_p7'"),
        ({"ids": ["x"]}, "the index holds no 'x'; ids look like 'ROIs1970_fall_139_p0'"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            index.query(**kwargs)


def test_half_floats_in_a_file_are_what_faiss_writes(tmp_path):
    vectors = curved(1001, d=6)
    file = HalvesFile(tmp_path / "ours", len(vectors), 6)
    for start in range(0, len(vectors), 300):
        file.add(vectors[start : start + 300])
    mapped = file.finish()
    theirs = new_halves(6)
    theirs.add(vectors)
    faiss.write_index(theirs, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert not mapped.codes.is_owned
    assert np.array_equal(mapped.search(vectors[:5], 3)[1], theirs.search(vectors[:5], 3)[1])
    halves = vectors.astype(np.float16).astype(np.float32)
    for rows in (slice(3, 9), np.array([5, 0, 1000])):
        assert np.array_equal(take_halves(mapped, rows), halves[rows])
    copy = in_memory(mapped)
    copy.add(vectors[:2])
    assert copy.ntotal == 1003 and np.array_equal(take_halves(copy, slice(1001, None)), halves[:2])


def test_every_file_of_an_index_goes_to_the_hub():
    assert set(PATTERNS["index"]) == {"index.json", *FILES}
