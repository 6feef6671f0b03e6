import json
import logging
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from croplem_hf.data import SEN12MSFolder, build_shards, generate_eurosat, generate_sen12ms
from croplem_hf.data.splits import scene_splits
from croplem_hf.data.streaming import load_sen12ms
from croplem_hf.errors import DataError

# Number of a winter scene that is validation by its name.
VALIDATION = next(n for n in range(150) if "validation" in scene_splits({f"ROIs2017_winter_{n}": None}).values())


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Scenes of all splits: spring 15 is an official test scene; two of the 20 patches lack a sensor."""
    root = generate_sen12ms(tmp_path_factory.mktemp("tree"), size=16, scenes=4, patches_per_scene=5)
    for old, new in {"ROIs1158_spring_1": "15", "ROIs2017_winter_21": str(VALIDATION)}.items():
        season, _, number = old.rpartition("_")
        for path in sorted(root.glob(f"{season}/*_{number}/*.tif")):
            to = path.parent.with_name(path.parent.name.replace(f"_{number}", f"_{new}"))
            to.mkdir(exist_ok=True)
            path.rename(to / path.name.replace(f"_{number}_p", f"_{new}_p"))
    return root


@pytest.fixture(scope="module")
def shards(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    build_shards(tree, out, workers=1, progress=False)
    return out


@pytest.fixture(scope="module")
def ids(tree):
    return SEN12MSFolder(tree).ids


def names(batches):
    return [[sample["id"] for sample in batch] for batch in batches]


def loaded(stream, batch_size, workers):
    return names(DataLoader(stream, batch_size=batch_size, num_workers=workers, collate_fn=list))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batches_are_the_same_whatever_the_number_of_workers(shards, ids, ranks):
    options = {"split": "all", "batch_size": 3, "ranks": ranks}
    for workers in (0, 1, 2):
        for rank in range(ranks):
            expected = [ids[k : k + 3] for k in range(3 * rank, len(ids), 3 * ranks)]
            assert loaded(load_sen12ms(shards, rank=rank, num_workers=workers, **options), 3, workers) == expected
    even = [loaded(load_sen12ms(shards, rank=r, num_workers=0, drop_last=True, **options), 3, 0) for r in range(ranks)]
    assert {len(batches) for batches in even} == {len(ids) // (3 * ranks)}
    assert all(len(batch) == 3 for batches in even for batch in batches)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_split_by_node_and_any_loader_give_every_sample_once(shards, ids, ranks, workers):
    for parts in (
        [split_dataset_by_node(load_sen12ms(shards, "all"), rank, ranks) for rank in range(ranks)],
        [load_sen12ms(shards, "all", rank=rank, ranks=ranks) for rank in range(ranks)],
    ):
        read = [sum(loaded(part, 3, workers), []) for part in parts]
        assert sorted(sum(read, [])) == sorted(ids)
        assert max(map(len, read)) - min(map(len, read)) <= 3
        if (ranks, workers) == (1, 0):
            assert read == [ids]


def test_a_number_of_processes_that_does_not_divide_the_lanes(shards, ids):
    parts = [split_dataset_by_node(load_sen12ms(shards, "all", seed=1), rank, 7) for rank in range(7)]
    assert sorted(sum((sum(loaded(part, 3, 0), []) for part in parts), [])) == sorted(ids)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_goes_on_at_any_batch(shards, workers):
    options = {"split": None, "seed": 5, "epoch": 2, "batch_size": 4, "ranks": 2, "rank": 1, "num_workers": workers}
    whole = loaded(load_sen12ms(shards, **options), 4, workers)
    assert len(whole) == 2
    for start in (0, 1, 2, 9):
        assert loaded(load_sen12ms(shards, start_batch=start, **options), 4, workers) == whole[start:]


def test_order_is_of_seed_and_epoch_alone(tree, shards, ids):
    def order(root, **options):
        return [sample["id"] for sample in load_sen12ms(root, "all", labels=False, **options)]

    orders = [order(shards), *(order(shards, seed=s, epoch=e) for s in (0, 1) for e in (0, 1))]
    assert orders[0] == ids and len({tuple(o) for o in orders}) == 5
    assert all(sorted(o) == sorted(ids) for o in orders)
    assert order(tree, seed=1, epoch=1) == orders[-1]
    assert order(shards, epoch=3) == ids


def test_a_dataset_of_datasets_resumes_by_its_state(shards, ids):
    stream = load_sen12ms(shards, "all")
    reader = iter(stream)
    read = [next(reader)["id"] for _ in range(7)]
    stream.load_state_dict(stream.state_dict())
    assert read + [sample["id"] for sample in stream] == ids


def test_tree_and_shards_and_source_agree_bit_by_bit(tree, shards):
    source = SEN12MSFolder(tree)
    for stream in (load_sen12ms(tree, "all"), load_sen12ms(shards, "all"), load_sen12ms(f"file://{shards}", "all")):
        read = list(stream)
        assert len(read) == len(source)
        for sample, expected in zip(read, source, strict=True):
            assert sample.keys() == expected.keys()
            for key, value in expected.items():
                if isinstance(value, np.ndarray):
                    assert sample[key].dtype == value.dtype and sample[key].shape == value.shape, key
                    assert sample[key].tobytes() == value.tobytes(), key
                else:
                    assert sample[key] == value and type(sample[key]) is type(value), key
    assert {(s["s1"].dtype, s["s2"].dtype) for s in source if s["s1"] is not None and s["s2"] is not None} == {
        (np.dtype(np.float32), np.dtype(np.uint16))
    }


def test_splits_seasons_and_sensors_are_chosen(tree, shards, ids):
    winter = f"ROIs2017_winter_{VALIDATION}"
    for root in (tree, shards):
        scenes = {split: {s["scene"] for s in load_sen12ms(root, split)} for split in ("train", "validation", "test")}
        assert scenes["test"] == {"ROIs1158_spring_15"} and scenes["validation"] == {winter}
        assert scenes["train"] == {id.rpartition("_p")[0] for id in ids} - {"ROIs1158_spring_15", winter}
        read = list(load_sen12ms(root, "all", seasons=["winter", "spring"], sensors=["s1"]))
        assert [s["id"] for s in read] == [
            i for i in ids if ("_winter_" in i or "_spring_" in i) and i in SEN12MSFolder(tree, sensors=["s1"]).ids
        ]
        assert all(s["s2"] is None and s["s1"] is not None for s in read)
        assert all(s["lc"] is None for s in load_sen12ms(root, "test", labels=False))
        assert [s["id"] for s in load_sen12ms(root, None, skip=ids[1:])] == ids[:1]
        for options, text in (
            ({"split": "dev"}, "split must be one of"),
            ({"split": "validation", "seasons": ["spring"]}, r"nothing is left of split 'validation'.*'test': 5"),
            ({"seasons": ["autumn"]}, "no patch of autumn, only of fall, spring, summer, winter"),
            ({"split": None, "skip": ids}, "nothing is left"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"seed": -1}, "found 1, -1"),
            ({"rank": 2, "ranks": 2}, "rank must be 0 to ranks - 1"),
            ({"start_batch": 1}, "start_batch=1 needs num_workers"),
        ):
            with pytest.raises(DataError, match=text):
                load_sen12ms(root, **options)


def test_other_sources_are_refused(tmp_path):
    generate_eurosat(tmp_path / "eurosat", per_class=1, size=16)
    with pytest.raises(DataError, match="neither a tree of SEN12MS nor shards"):
        load_sen12ms(tmp_path / "eurosat")


def test_a_bad_file_is_left_out_or_raises_and_resuming_loses_nothing(tree, ids, tmp_path, caplog):
    root = shutil.copytree(tree, tmp_path / "tree")
    source = SEN12MSFolder(root)
    bad = source.paths(3)["s2"]
    bad.write_bytes(b"")
    good = [id for id in ids if id != ids[3]]
    with caplog.at_level(logging.WARNING):
        assert [sample["id"] for sample in load_sen12ms(root, "all")] == good
    assert f"left out, number 1 in this process: {bad}" in caplog.text
    with pytest.raises(DataError, match=re.escape(str(bad))):
        list(load_sen12ms(root, "all", strict=True))
    for workers in (0, 2):
        options = {"split": "all", "batch_size": 3, "num_workers": workers, "seed": 0}
        whole = loaded(load_sen12ms(root, **options), 3, workers)
        for start in range(1, 6):
            rest = loaded(load_sen12ms(root, start_batch=start, **options), 3, workers)
            assert set(sum(whole[:start] + rest, [])) == set(good)


def test_findings_are_left_out(shards, ids, monkeypatch):
    found = types.SimpleNamespace(read_findings=lambda path: {ids[2]: [f"cut short, says {path}"]})
    monkeypatch.setitem(sys.modules, "croplem_hf.data.check", found)
    assert [s["id"] for s in load_sen12ms(shards, "all", findings="findings.parquet")] == ids[:2] + ids[3:]


def test_a_lost_disk_is_no_stream_of_bad_samples(tmp_path):
    root = generate_sen12ms(tmp_path / "tree", size=16, scenes=1, patches_per_scene=101)
    for path in root.rglob("*.tif"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="100 samples in a row cannot be read; the last: "):
        list(load_sen12ms(root, None))


def test_another_number_of_workers_than_told_is_refused(shards):
    with pytest.raises(DataError, match="was given num_workers=2, but 0 workers"):
        next(iter(load_sen12ms(shards, num_workers=2)))


def test_a_stream_is_pickled_before_and_while_it_is_read(shards, ids):
    stream = load_sen12ms(shards, "all")
    next(iter(stream))
    assert [sample["id"] for sample in pickle.loads(pickle.dumps(stream))] == ids


@pytest.mark.slow
def test_a_worker_takes_less_than_a_gigabyte(tmp_path):
    """256 px, from a tree and from shards whose index is as long as that of all of SEN12MS."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tree = generate_sen12ms(tmp_path / "tree", scenes=2, patches_per_scene=16)
    build_shards(tree, tmp_path / "shards", workers=1, progress=False)
    index = pq.read_table(tmp_path / "shards" / "index.parquet")
    times = -(-180_662 // len(index))
    ids = pa.array([f"{id}{k:05d}" for k in range(times) for id in index["id"].to_pylist()])
    large = pa.concat_tables([index] * times).set_column(index.schema.get_field_index("id"), "id", ids)
    pq.write_table(large, tmp_path / "shards" / "index.parquet")
    script = """
        import json, resource, sys, time
        from torch.utils.data import DataLoader
        from croplem_hf.data.streaming import load_sen12ms

        def used(batch):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(batch)

        if __name__ == "__main__":
            began = time.monotonic()
            stream = load_sen12ms(sys.argv[1], "all", seed=0, batch_size=32, num_workers=2)
            opened = time.monotonic() - began
            most = count = 0
            for megabytes, n in DataLoader(stream, batch_size=32, num_workers=2, collate_fn=used):
                most, count = max(most, megabytes), count + n
                if count >= 4000:
                    break
            print(json.dumps([most, count, opened, count / (time.monotonic() - began - opened)]))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    for root, least in ((tree, 32), (tmp_path / "shards", 4000)):
        command = [sys.executable, str(tmp_path / "script.py"), str(root)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        megabytes, count, opened, rate = json.loads(run.stdout)
        print(f"{root.name}: {megabytes:.0f} MB a worker, opened in {opened:.1f} s, {rate:.0f} samples/s")
        assert count >= least and megabytes < 1000
