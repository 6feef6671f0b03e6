import gc
import hashlib
import json
import os
import pickle
import shutil
import signal

import fsspec
import fsspec.asyn
import fsspec.implementations.memory
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data import codec, make_sample
from croplem_hf.data.shards import SCHEMA, ShardFolder, verify_shards, write_shard
from croplem_hf.errors import DataError

NAME = "train-00000-of-00001.parquet"


def make(id="a", t1=1, t2=1, size=(6, 5), seed=0, holes=False, **more):
    """A sample with `t1` dates of radar and `t2` of optics."""
    rng = np.random.default_rng(seed)
    fields = {}
    if t1:
        fields |= {"s1": rng.normal(-12, 3, (t1, 2, *size)).astype(np.float32), "s1_kind": "sigma0"}
        fields |= {"s1_dates": [f"2020-{m + 1:02d}-01" for m in range(t1)]}
    if t2:
        fields |= {"s2": rng.integers(1, 9000, (t2, 13, *size)).astype(np.uint16), "s2_level": "L1C"}
        fields |= {"s2_dates": [f"2020-{m + 1:02d}-02" for m in range(t2)]}
    if holes:
        for sensor, t in (("s1", t1), ("s2", t2)):
            if t:
                mask = rng.random((t, *size)) < 0.7
                mask[0, 0, 0] = True
                fields[f"{sensor}_valid"] = mask
    return make_sample(id, **fields, **more)


def put(root, samples, split="train", name=NAME, **manifest):
    """Shards of one file as a build leaves them."""
    index = write_shard(root / "data" / name, samples, split)
    pq.write_table(index, root / "index.parquet")
    path = root / "data" / name
    about = {"rows": len(index), "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    index = hashlib.sha256((root / "index.parquet").read_bytes()).hexdigest()
    about = {"format": 1, "shards": {name: about}, "index_sha256": index}
    (root / "manifest.json").write_text(json.dumps(about | manifest))
    return root


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], np.ndarray):
            assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
            assert a[key].tobytes() == b[key].tobytes(), key
        else:
            assert a[key] == b[key] and type(a[key]) is type(b[key]), key


@given(st.data())
def test_any_sample_comes_back_bit_by_bit(tmp_path_factory, data):
    samples = []
    for k in range(data.draw(st.integers(1, 20))):
        t1 = data.draw(st.integers(0, 3))
        t2 = data.draw(st.integers(0 if t1 else 1, 3))
        more = data.draw(st.dictionaries(
            st.sampled_from(["region", "crop_type", "cropland", "field_id", "land_use", "note", "igbp", "lon"]),
            st.none() | st.integers(0, 17), max_size=3,
        ))  # fmt: skip
        more = {key: value if key in ("cropland", "field_id", "igbp") or value is None else
                float(value) if key == "lon" else f"v{value}" for key, value in more.items()}  # fmt: skip
        if more.get("igbp", 0) is None:
            del more["igbp"]
        if more.get("land_use", 0) is None:
            del more["land_use"]
        if data.draw(st.booleans()):
            more |= {"lc": np.full((4, 6, 5), 12, data.draw(st.sampled_from([np.uint8, np.uint16])))}
        if data.draw(st.booleans()):
            more |= {"transform": (10.0, 0.0, 5e5, 0.0, -10.0, 1 / 3), "crs": "EPSG:32636", "patch": k}
        samples.append(make(f"é{k}", t1, t2, seed=k, holes=data.draw(st.booleans()), **more))
    root = put(tmp_path_factory.mktemp("shards"), samples)
    source = ShardFolder(root)
    assert source.ids == [sample["id"] for sample in samples]
    for i, sample in enumerate(samples):
        same(source[i], sample)
    expected = [[len(s["s1_dates"]), len(s["s2_dates"]), 6, 5] for s in samples]
    assert source.layout().shapes.tolist() == expected and source.layout().groups is None
    assert list(verify_shards(root)) == []


def test_arrays_are_the_callers_own(tmp_path):
    source = ShardFolder(put(tmp_path, [make()]))
    first = source[0]
    first["s1"] += 1
    first["s1_valid"][:] = False
    same(source[0], make())


def test_the_same_samples_give_the_same_bytes(tmp_path):
    samples = [make(str(k), seed=k) for k in range(40)]
    a, b = (put(tmp_path / name, samples) / "data" / NAME for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert pq.read_metadata(a).num_row_groups == 3


def test_a_shard_is_plain_parquet(tmp_path):
    samples = [make("x", lc=np.full((4, 6, 5), 12, np.uint8), note="n"), make("y", t1=0)]
    path = put(tmp_path, samples) / "data" / NAME
    table = pq.read_table(path)
    assert table.schema.names == SCHEMA.names
    row = table.to_pylist()[0]
    assert [row[f"{name}_dtype"] for name in ("s1", "s2", "lc")] == ["float32", "uint16", "uint8"]
    assert row["s2_shape"] == [1, 13, 6, 5]
    assert row["s1_valid"] is None and json.loads(row["extra"]) == {"note": "n"}
    assert table["s1"].null_count == 1


def test_sensors_labels_split_and_skip(tmp_path):
    lc = np.full((4, 6, 5), 12, np.uint8)
    samples = [make("a", lc=lc), make("b", t1=0), make("c", t2=0)]
    root = put(tmp_path, samples, "validation", unit="field", seasonal=True)
    source = ShardFolder(root, sensors=["s1"], labels=False)
    assert source.ids == ["a", "c"] and (source.kind, source.unit, source.seasonal) == ("shards", "field", True)
    sample = source[0]
    assert sample["lc"] is None and sample["s2"] is None and sample["s2_level"] is None and sample["s1"] is not None
    assert source.layout().shapes.tolist() == [[1, 0, 6, 5]] * 2
    assert ShardFolder(root, split="validation", skip={"b"}).ids == ["a", "c"]
    assert ShardFolder(root).columns()["split"].tolist() == ["validation"] * 3
    with pytest.raises(DataError, match="no split 'test' in these shards, only validation"):
        ShardFolder(root, split="test")
    with pytest.raises(DataError, match="no sample with s1"):
        ShardFolder(root, sensors=["s1"], skip={"a", "c"})
    with pytest.raises(DataError, match="sensors must be"):
        ShardFolder(root, sensors=["s3"])
    with pytest.raises(IndexError):
        source[2]


def test_it_is_read_from_any_file_system_and_in_other_processes(tmp_path):
    samples = [make(str(k), seed=k) for k in range(20)]
    root = put(tmp_path, samples)
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/corpus", recursive=True)
    for source in (ShardFolder("memory://corpus"), pickle.loads(pickle.dumps(ShardFolder(root)))):
        for i in (19, 0, 7, *range(20)):
            same(source[i], samples[i])
    memory.rm("/corpus", recursive=True)


def test_from_afar_little_is_asked_for_and_in_order_seldom(tmp_path, monkeypatch):
    samples = [make(str(k), seed=k) for k in range(40)]
    memory = fsspec.filesystem("memory")
    memory.put(str(put(tmp_path, samples)), "/far", recursive=True)
    asked = []
    original = type(memory).cat_file

    def cat_file(self, path, start=None, end=None, **options):
        asked.append((path, (end or 0) - (start or 0)))
        return original(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    monkeypatch.setattr("croplem_hf.data.ranged.RangedFiles.NEAR", 8)  # these rasters are tiny
    source = ShardFolder("memory://far")
    asked.clear()
    source[30], source[3]
    assert len(asked) == 4 and sum(size for _, size in asked) < 40_000
    asked.clear()
    for i in range(40):
        same(source[i], samples[i])
    assert len(asked) < 10
    memory.rm("/far", recursive=True)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed by Linux alone")
def test_a_folder_that_is_let_go_closes_its_files(tmp_path):
    root = put(tmp_path, [make()])

    def open_shards():
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).endswith(NAME) for link in links if os.path.islink(link))

    source = ShardFolder(root)
    source[0]
    assert open_shards() == 1
    del source
    gc.collect()
    assert open_shards() == 0


def test_what_is_no_shard_folder_is_refused_by_name(tmp_path):
    root = put(tmp_path / "whole", [make()])
    assert ShardFolder.recognises(root) and not ShardFolder.recognises(tmp_path)
    with pytest.raises(DataError, match="no manifest.json"):
        ShardFolder(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text('{"format": 9}')
    with pytest.raises(DataError, match="format 9"):
        ShardFolder(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text("[1")
    with pytest.raises(DataError, match="not the manifest"):
        ShardFolder(tmp_path / "b")
    (root / "index.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="index.parquet"):
        ShardFolder(root)
    (root / "index.parquet").unlink()
    with pytest.raises(DataError, match="no index.parquet there"):
        ShardFolder(root)
    with pytest.raises(DataError, match="cannot be opened"):
        ShardFolder("nothing://there")


def test_a_missing_cut_or_foreign_shard_is_named(tmp_path):
    root = put(tmp_path, [make(str(k), seed=k) for k in range(3)])
    shard = root / "data" / NAME
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"2: s2 in .*{NAME}: the shard is damaged"):
        ShardFolder(root)[2]
    assert {name for name, _ in verify_shards(root)} >= {NAME}
    write_shard(shard, [make(str(k), seed=k + 9) for k in range(3)])
    with pytest.raises(DataError, match="another build"):
        ShardFolder(root)[0]
    shard.unlink()
    with pytest.raises(DataError, match="the shard is missing"):
        ShardFolder(root)[0]
    assert "cannot be read" in dict(verify_shards(root))[NAME]


def test_an_index_that_lies_is_refused(tmp_path):
    root = put(tmp_path, [make()])
    index = pq.read_table(root / "index.parquet")
    for column, value in (("s2_codec", "zip"), ("s2_dtype", "no"), ("s2_shape", [1, 13, 9, 9]), ("s2_offset", 10**12)):
        place = index.schema.get_field_index(column)
        wrong = index.set_column(place, column, pa.array([value], index.schema.field(column).type))
        pq.write_table(wrong, root / "index.parquet")
        with pytest.raises(DataError, match=NAME):
            ShardFolder(root)[0]


@pytest.mark.parametrize(("column", "value"), [
    ("shard", "../../etc/passwd"), ("shard", None), ("s2_offset", None), ("extra", "[1]"), ("extra", "{no"),
    ("s2_shape", [1, 13, 2**17, 2**17]), ("s2_bands", [True] * 5), ("s2_shape", [-1, 13, 6, 5]),
])  # fmt: skip
def test_a_hostile_index_is_refused(tmp_path, column, value):
    root = put(tmp_path, [make()])
    index = pq.read_table(root / "index.parquet")
    place = index.schema.get_field_index(column)
    wrong = index.set_column(place, column, pa.array([value], index.schema.field(column).type))
    pq.write_table(wrong, root / "index.parquet")
    with pytest.raises(DataError, match="again"):
        ShardFolder(root)[0]


@pytest.mark.parametrize(("column", "shape"), [
    ("s2", [13, 6, 5]), ("s2", [1, 6, 13, 5]), ("s1", [2, 1, 6, 5]), ("s2_valid", [1, 5, 6]), ("s2_valid", [30]),
])  # fmt: skip
def test_rasters_of_another_form_are_refused(tmp_path, column, shape):
    root = put(tmp_path, [make(holes=True)])
    index = pq.read_table(root / "index.parquet")
    place = index.schema.get_field_index(f"{column}_shape")
    wrong = index.set_column(place, f"{column}_shape", pa.array([shape], index.schema.field(place).type))
    pq.write_table(wrong, root / "index.parquet")
    with pytest.raises(DataError, match=f"^a: .*{column} has shape"):
        ShardFolder(root)[0]


def test_verify_sees_another_index(tmp_path):
    root = put(tmp_path, [make("a", seed=0), make("b", seed=1)])
    assert list(verify_shards(root)) == []
    index = pq.read_table(root / "index.parquet")
    place = index.schema.get_field_index("id")
    pq.write_table(index.set_column(place, "id", pa.array(["b", "a"])), root / "index.parquet")
    assert [name for name, _ in verify_shards(root)] == ["index.parquet"]


def test_an_index_is_small_in_memory_and_to_send(tmp_path):
    samples = [make(f"sample-{k}", region="a region with a name of some length") for k in range(2000)]
    source = ShardFolder(put(tmp_path, samples))
    assert len(pickle.dumps(source)) < 450 * len(source)
    assert pickle.loads(pickle.dumps(source))[1999]["region"] == samples[0]["region"]


class NoNetwork(fsspec.AbstractFileSystem):
    """A file system whose connection is gone; its error is one that only its client knows."""

    protocol, cachable = "nonet", False

    def cat_file(self, path, start=None, end=None, **kwargs):
        raise ConnectError("no route to host")


class ConnectError(Exception):
    pass


def test_no_connection_is_an_error_in_one_sentence(tmp_path):
    fsspec.register_implementation("nonet", NoNetwork, clobber=True)
    with pytest.raises(DataError, match="nonet://far.*manifest.json: cannot be read .no route to host"):
        ShardFolder("nonet://far")
    source = ShardFolder(put(tmp_path, [make()]))
    source._files.fs, source._files.local = NoNetwork(), False
    with pytest.raises(DataError, match="^a: s1 in .*cannot be read .no route to host"):
        source[0]


class Cached(fsspec.implementations.memory.MemoryFileSystem):
    """Has fsspec's own `cat_file`, as the Hub's file system: it opens the file. Notes with which cache."""

    protocol, store, asked = "cached", {}, []
    cat_file = fsspec.AbstractFileSystem.cat_file

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("cached://", "memory://"))

    def open(self, path, mode="rb", **kwargs):
        self.asked.append(kwargs.pop("cache_type", None))
        return super().open(path, mode, **kwargs)


def test_a_file_that_must_be_opened_is_not_read_ahead(tmp_path):
    fsspec.register_implementation("cached", Cached, clobber=True)
    root = put(tmp_path, [make()])
    for path in root.rglob("*.*"):
        Cached().pipe_file(f"/far/{path.relative_to(root)}", path.read_bytes())
    source = ShardFolder("cached://far")
    Cached.asked.clear()
    assert source[0]["s2"].tobytes() == make()["s2"].tobytes()
    assert Cached.asked == ["none"] * 2


class Async(fsspec.asyn.AsyncFileSystem):
    """As those of S3 and HTTP: its reading takes no options, and its connections are of one process."""

    protocol, cachable, files = "async", False, {}
    whole = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pid = os.getpid()

    async def _cat_file(self, path, start=None, end=None):
        if self.pid != os.getpid():
            raise ConnectError("a connection of another process")
        data = self.files[path.removeprefix("async://")]
        return data if self.whole else data[start:end]


def far(root):
    fsspec.register_implementation("async", Async, clobber=True)
    Async.files = {f"far/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*.*")}
    return ShardFolder("async://far")


def test_file_systems_of_s3_and_http_are_read(tmp_path, monkeypatch):
    source = far(put(tmp_path, [make()]))
    assert source[0]["s2"].tobytes() == make()["s2"].tobytes()
    monkeypatch.setattr(Async, "whole", True)
    with pytest.raises(DataError, match="sends whole files where parts"):
        far(put(tmp_path, [make()]))[0]


def assert_a_fork_reads(source):
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            os._exit(0 if source[0]["id"] == "a" else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_makes_connections_of_its_own(tmp_path):
    source = far(put(tmp_path, [make()]))
    source[0]
    assert_a_fork_reads(source)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_reads_does_not_hang(tmp_path):
    source = ShardFolder(put(tmp_path, [make()]))
    source[0]
    with source._files.lock, codec._OneThread.lock:  # as if a thread were in the middle of a read
        assert_a_fork_reads(source)


def test_extra_keys_replace_no_pixels(tmp_path):
    root = put(tmp_path, [make()])
    index = pq.read_table(root / "index.parquet")
    place = index.schema.get_field_index("extra")
    extra = pa.array([json.dumps({"s2": 1, "id": "other", "note": "n"})], pa.string())
    pq.write_table(index.set_column(place, "extra", extra), root / "index.parquet")
    sample = ShardFolder(root)[0]
    assert sample["id"] == "a" and sample["s2"].shape == (1, 13, 6, 5) and sample["note"] == "n"


def damage(rng, data, kind):
    data = bytearray(data)
    if kind == "cut":
        return bytes(data[: rng.integers(len(data))])
    for place in rng.integers(0, len(data), rng.integers(1, 9)).tolist():
        data[place] = rng.integers(256)
    return bytes(data)


def check_damaged(folder, count):
    """Each damaged shard or index gives the right sample or an error that names it, never another sample."""
    samples = [make(str(k), seed=k, holes=True) for k in range(3)]
    root = put(folder / "whole", samples)
    rng = np.random.default_rng(1)
    read = refused = 0
    for number in range(count):
        name = ("data/" + NAME, "index.parquet", "manifest.json")[number % 3]
        trial = folder / "trial"
        shutil.copytree(root, trial, dirs_exist_ok=True)
        (trial / name).write_bytes(damage(rng, (root / name).read_bytes(), ("cut", "flip")[number % 2]))
        try:
            source = ShardFolder(trial)
        except DataError:
            refused += 1
            continue
        for i in range(len(source)):
            try:
                sample = source[i]
            except DataError:
                refused += 1
                continue
            read += 1
            if name.startswith("data"):
                same(sample, samples[i])
    assert read and refused


def test_damaged_shards(tmp_path):
    check_damaged(tmp_path, 150)


@pytest.mark.slow
def test_many_damaged_shards(tmp_path):
    check_damaged(tmp_path, 3000)


def test_what_no_column_holds_is_refused(tmp_path):
    with pytest.raises(DataError, match="a: cannot be stored"):
        write_shard(tmp_path / NAME, [make() | {"thing": object()}])
    assert list(tmp_path.iterdir()) == []
