"""Bulk export: the same table by any number of processes, whoever is killed, and a clear end where it cannot go on."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_runs import Source, small_embedder

from croplem_hf import Embedder, embedding_inputs, packaged_path, read_table
from croplem_hf.data import generate_sen12ms
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.export import block_rows, export_source
from croplem_hf.table_writer import TableWriter

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
}  # fmt: skip


@pytest.fixture(scope="module")
def embedder():
    return small_embedder()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(embedding_inputs, "CHUNK", 4)


def run_ranks(embedder, source, out, ranks, **options):
    """All ranks at once, as threads -> what each returned or raised."""
    ends = [None] * ranks

    def work(rank):
        try:
            ends[rank] = export_source(embedder, source, out, rank=rank, ranks=ranks, progress=False, **options)
        except Exception as error:
            ends[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def assert_same(one, other):
    a, b = read_table(one), read_table(other)
    assert a.ids == b.ids and a.vectors.tobytes() == b.vectors.tobytes() and a.metadata.equals(b.metadata)
    assert {k: v for k, v in a.info.items() if k != "created"} == {k: v for k, v in b.info.items() if k != "created"}
    lists = [path.with_name(path.name + ".skipped.csv") for path in (one, other)]
    assert lists[0].read_bytes() == lists[1].read_bytes()


# Several processes


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("options", [{}, {"precision": "int8", "truncate_dim": 9}])
def test_any_number_of_ranks_gives_the_same_table(
    embedder, tmp_path, small_chunks, monkeypatch, single_thread, ranks, options
):
    monkeypatch.setattr("croplem_hf.export._POLL", 0.02)
    source = Source(30, bad=(0, 5, 20, 21, 22, 23))
    one, many = tmp_path / "one.parquet", tmp_path / "many.parquet"
    assert export_source(embedder, source, one, progress=False, **options) == (24, 6)
    assert run_ranks(embedder, source, many, ranks, **options) == [(24, 6)] + [None] * (ranks - 1)
    assert_same(one, many)
    files = ["many.parquet", "many.parquet.skipped.csv", "one.parquet", "one.parquet.skipped.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_one_rank_does_its_share_alone(embedder, tmp_path, small_chunks):
    class Counting(Source):
        read = ()

        def __getitem__(self, k):
            self.read = (*self.read, k)
            return super().__getitem__(k)

    source, out = Counting(20), tmp_path / "e.parquet"
    with pytest.raises(CheckpointError, match=r"nothing was heard of rank 1 for 0\.2 s, .* run the same command again"):
        export_source(embedder, source, out, progress=False, rank=0, ranks=2, wait=0.2)
    assert source.read == (*range(4), *range(8, 12), *range(16, 20)) and not out.exists()
    # One process goes on with what two began.
    source.read = ()
    export_source(embedder, source, out, progress=False)
    assert source.read == (*range(4, 8), *range(12, 16))
    export_source(embedder, Source(20), tmp_path / "whole.parquet", progress=False)
    assert np.array_equal(read_table(out).vectors, read_table(tmp_path / "whole.parquet").vectors)


def test_other_ranks_wait_for_rank_0(embedder, tmp_path):
    out = tmp_path / "e.parquet"
    with pytest.raises(CheckpointError, match=r"rank 0 has not begun within 0\.1 s"):
        export_source(embedder, Source(2), out, progress=False, rank=1, ranks=2, wait=0.1)
    assert list(tmp_path.iterdir()) == []
    for rank, ranks in ((2, 2), (-1, 1), (0, 0)):
        with pytest.raises(DataError, match="rank must lie in"):
            export_source(embedder, Source(2), out, rank=rank, ranks=ranks)


def test_ranks_without_work_are_waited_for_and_not_let_down(embedder, tmp_path, monkeypatch):
    """Who comes when the folder is gone would wait for rank 0 in vain."""
    monkeypatch.setattr("croplem_hf.export._POLL", 0.02)
    out = tmp_path / "e.parquet"

    def come(self, *args, **kwargs):
        if kwargs["rank"]:
            time.sleep(0.7)
        return begin(self, *args, **kwargs)

    begin = TableWriter.__init__
    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "__init__", come)
        assert run_ranks(embedder, Source(2), out, 3, wait=20) == [(2, 0), None, None]
    # One that never comes is not needed where nothing of its is missing.
    assert export_source(embedder, Source(2), out, progress=False, rank=0, ranks=2, wait=0.3) == (2, 0)


def test_a_slow_rank_is_waited_for_as_long_as_it_lives(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr("croplem_hf.export._SIGN_OF_LIFE", 0.05)
    monkeypatch.setattr("croplem_hf.export._POLL", 0.05)
    monkeypatch.setattr(embedding_inputs, "CHUNK", 1)

    class Slow(Source):
        def __getitem__(self, k):
            time.sleep(1.5 if k == 1 else 0)
            return super().__getitem__(k)

    assert run_ranks(embedder, Slow(2), tmp_path / "e.parquet", 2, wait=0.75) == [(2, 0), None]


@pytest.mark.slow
def test_two_runs_do_not_write_one_table(embedder, tmp_path):
    out = tmp_path / "e.parquet"
    code = (
        "import sys; from export_runs import *; import croplem_hf.export as e, time\n"
        "e._add_part = lambda *a: (print('here', flush=True), time.sleep(60))\n"
        "export_source(small_embedder(), Source(6), sys.argv[1], progress=False)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(out)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "here\n"
        with pytest.raises(CheckpointError, match=r"e\.parquet: another run writes it; wait for it, stop it"):
            export_source(embedder, Source(6), out, progress=False)
    finally:
        other.kill()
        other.communicate()
    # Killed, it holds nothing back.
    assert export_source(embedder, Source(6), out, progress=False) == (6, 0)


def test_blocks_depend_on_the_length_alone_and_keep_many_processes_busy():
    assert [block_rows(n) for n in (0, 1, 64, 4096, 8192, 10**4, 32768, 10**8)] == [64, 64, 64, 64, 128, 157, 512, 512]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ten_random_kills_and_resumes_end_as_one_unbroken_run(tmp_path, seed):
    """By one to three processes that are killed anywhere, and two that end it."""
    command = [sys.executable, str(ROOT / "tests" / "export_runs.py"), str(tmp_path / "e.parquet"), str(seed), "10"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert rounds[0] == [0] and rounds[-1] == [0, 0] and len(rounds) == 12
    assert sum(-signal.SIGKILL in ends for ends in rounds) >= 8
    assert_same(tmp_path / "whole.parquet", tmp_path / "e.parquet")
    assert len(list(tmp_path.iterdir())) == 4


# Commands


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """70 patches of 32 px: two blocks."""
    return generate_sen12ms(tmp_path_factory.mktemp("tree"), scenes=2, patches_per_scene=35, size=32)


def embed(*argv, processes=1):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, str(ROOT / "scripts" / "embed.py"), *map(str, argv)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_launched_processes_give_the_table_of_one(tree, tmp_path):
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    out, err = embed(tree, one, "--quiet").communicate(timeout=300)
    assert out == f"70 embeddings of 256 numbers in {one}\n", err
    out, err = embed(tree, two, "--quiet", processes=2).communicate(timeout=300)
    assert out == f"70 embeddings of 256 numbers in {two} by 2 processes\n", err
    a, b = read_table(one), read_table(two)
    assert a.ids == b.ids and a.vectors.tobytes() == b.vectors.tobytes() and a.metadata.equals(b.metadata)


@pytest.mark.slow
def test_accelerate_launch_starts_the_script(tree, tmp_path):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    command = [*accelerate, str(ROOT / "scripts" / "embed.py"), str(tree), str(tmp_path / "e.parquet"), "--quiet"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("70 embeddings of 256 numbers"), done.stderr


@pytest.mark.slow
def test_where_one_launched_process_is_killed_nothing_waits_for_ever(tree, tmp_path):
    out = tmp_path / "e.parquet"
    launcher = embed(tree, out, "--quiet", "--wait", "20", processes=2)
    file, deadline = tmp_path / "e.parquet.parts" / "rank-00001", time.monotonic() + 200
    while not file.exists():
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.02)
    ranks = [p for p in psutil.Process(launcher.pid).children() if p.environ().get("RANK") == "1"]
    assert len(ranks) == 1
    ranks[0].kill()
    launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and not out.exists()
    done = embed(tree, out, "--quiet", processes=1)
    assert done.communicate(timeout=300)[0] == f"70 embeddings of 256 numbers in {out}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


# What cannot be written


class Full:
    """`pq.write_table` of a disk that is full after some parts."""

    def __init__(self, parts):
        self.parts, self.write = parts, pq.write_table

    def __call__(self, table, path, **kwargs):
        self.parts -= 1
        if self.parts < 0:
            Path(path).write_bytes(b"PAR1 half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.write(table, path, **kwargs)


def test_a_full_disk_ends_clearly_and_keeps_what_is_done(embedder, tmp_path, small_chunks, monkeypatch):
    out, source = tmp_path / "e.parquet", Source(20, bad=(2,))
    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", Full(3))
        with pytest.raises(DataError, match=r"e\.parquet: cannot be written \(No space left on device\); .* is kept"):
            export_source(embedder, source, out, progress=False)
    parts = sorted(path.name for path in (tmp_path / "e.parquet.parts").iterdir())
    done = [f"part-{start:010d}-{start + 4:010d}.parquet" for start in (0, 4, 8)]
    assert parts == ["manifest.json", *done, "rank-00000"]
    read = []
    monkeypatch.setattr(Source, "__getitem__", lambda s, k, get=Source.__getitem__: (read.append(k), get(s, k))[1])
    assert export_source(embedder, source, out, progress=False) == (19, 1)
    assert read == list(range(12, 20)) and len(read_table(out)) == 19


def test_a_disk_that_is_full_at_the_end_leaves_the_old_table(embedder, tmp_path, small_chunks, monkeypatch):
    out = tmp_path / "e.parquet"
    export_source(embedder, Source(6), out, progress=False)
    before = out.read_bytes()

    class FullWriter(pq.ParquetWriter):
        def write_table(self, *args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", FullWriter)
        with pytest.raises(DataError, match="cannot be written"):
            export_source(embedder, Source(9), out, progress=False)
    assert out.read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if "table.parquet" in path.name]
    assert export_source(embedder, Source(9), out, progress=False) == (9, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_embedded(embedder, tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Source, "__getitem__", lambda self, k: pytest.fail("read"))
    with pytest.raises(DataError, match=r"e\.parquet: cannot be written \(Read-only file system\)$"):
        export_source(embedder, Source(2), tmp_path / "e.parquet", progress=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
@pytest.mark.parametrize(
    ("mount", "reason"), [("size=40k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_real_disks(tree, tmp_path, mount, reason):
    script = f'mount -t tmpfs -o {mount} tmpfs "$1" || exit 99; shift; "$@"; code=$?; ls -A "$OUT"; exit $code'
    command = [sys.executable, str(ROOT / "scripts" / "embed.py"), str(tree), str(tmp_path / "e.parquet"), "--quiet"]
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", str(tmp_path), *command],
        env=ENVIRONMENT | {"OUT": str(tmp_path)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no right to mount a small disk")
    assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "e.parquet" not in done.stdout.split()


# Items


def test_what_only_the_processor_sees_is_skipped_too(embedder, tmp_path, monkeypatch):
    class Odd(Source):
        def __getitem__(self, k):
            sample = super().__getitem__(k)
            return sample | ({"s1_dates": ["May"] * len(sample["s1"])} if k in (1, 4) else {})

    assert export_source(embedder, Odd(6), tmp_path / "e.parquet", progress=False) == (4, 2)
    with open(tmp_path / "e.parquet.skipped.csv", newline="") as handle:
        rows = list(csv.reader(handle))
    assert [row[0] for row in rows] == ["id", "i1", "i4"] and "s1_dates must be ISO dates" in rows[1][1]
    table = read_table(tmp_path / "e.parquet")
    assert np.array_equal(table.vectors, embedder.encode([Source(6)[k] for k in (0, 2, 3, 5)]))


def test_an_embedding_that_is_not_finite_is_skipped(embedder, tmp_path, monkeypatch):
    encode = embedder.encode

    def broken(samples, **options):
        vectors = encode(samples, **options)
        vectors[1] = np.nan
        return vectors

    monkeypatch.setattr(embedder, "encode", broken)
    assert export_source(embedder, Source(3), tmp_path / "e.parquet", progress=False) == (2, 1)
    assert read_table(tmp_path / "e.parquet").ids == ["i0", "i2"]
    assert "i1,its embedding is not finite" in (tmp_path / "e.parquet.skipped.csv").read_text()


def test_what_is_no_source_is_refused(embedder, tmp_path):
    for nothing in ([Source(1)[0]], str(tmp_path), None):
        with pytest.raises(DataError, match=r"is no source .* open_source\(...\) gives one"):
            export_source(embedder, nothing, tmp_path / "e.parquet")
    with pytest.raises(DataError, match="pooling 'dense' is for `encode`"):
        export_source(embedder, Source(1), tmp_path / "e.parquet", pooling="dense")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_table_that_was_cut_otherwise_is_refused(embedder, tmp_path):
    info = embedder.info("patch") | {"source": {"kind": "test", "s1_units": "db"}}
    TableWriter(tmp_path / "e.parquet", info, Source(3).ids, cut={"rows": 1, "tokens": 8192}).close()
    with pytest.raises(CheckpointError, match="differs in how the work is cut"):
        export_source(embedder, Source(3), tmp_path / "e.parquet", progress=False)


# Options


def test_options_stand_in_the_table(tmp_path):
    embedder, source = Embedder.from_pretrained(packaged_path(), device="cpu"), Source(6)
    options = {"truncate_dim": 100, "precision": "int8", "pooling": "mean", "dtype": "bfloat16", "sensors": ["s2"]}
    table = embedder.embed_source(source, tmp_path / "e.parquet", progress=False, **options)
    assert table.info == embedder.info("patch", **options) | {
        key: table.info[key] for key in ("source", "created", "skipped")
    }
    assert (table.info["truncate_dim"], table.info["precision"], table.info["dim"]) == (100, "int8", 100)
    assert table.info["pooling"] == "mean of tokens within sensors, then over sensors"
    assert table.info["dtype"] == "bfloat16"
    codes, scales = embedder.encode(source, **options)
    assert np.array_equal(table.vectors, codes * scales[:, None])
    schema = pq.read_schema(tmp_path / "e.parquet")
    assert schema.names[:3] == ["id", "embedding", "embedding_scale"]
    assert schema.field("embedding").type == pa.list_(pa.int8(), 100)
    assert "embedding_scale" not in table.metadata.column_names


