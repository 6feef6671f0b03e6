import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import croplem_hf.data.build
from croplem_hf.cli import main
from croplem_hf.data import SEN12MSFolder, generate_sen12ms
from croplem_hf.data.build import build_shards
from croplem_hf.data.card import DECODE
from croplem_hf.data.shard_plan import SHARD_COUNTS, plan_shards
from croplem_hf.data.shards import ShardFolder, verify_shards
from croplem_hf.data.tarstream import TarStream
from croplem_hf.errors import DataError


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Eight scenes of twelve patches of 32 px in four seasons."""
    return generate_sen12ms(tmp_path_factory.mktemp("tree"), size=32, scenes=8, patches_per_scene=12)


def build(src, out, **options):
    return build_shards(src, out, **{"workers": 1, "progress": False} | options)


def contents(folder, below="."):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder, below).rglob("*")) if p.is_file()}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        equal = a[key].tobytes() == b[key].tobytes() if isinstance(a[key], np.ndarray) else a[key] == b[key]
        assert equal, key


def test_a_tree_comes_back_bit_by_bit(tree, tmp_path):
    manifest = build(tree, tmp_path / "out")
    source, shards = SEN12MSFolder(tree), ShardFolder(tmp_path / "out")
    assert sorted(shards.ids) == sorted(source.ids) and manifest["samples"] == len(source)
    for i, id in enumerate(source.ids):
        same(shards[shards.ids.index(id)], source[i])
    assert list(verify_shards(tmp_path / "out")) == []
    assert shards.seasonal and shards.unit == "patch"
    splits = dict(zip(shards.ids, shards.columns()["split"], strict=True))
    for scene in {id.rpartition("_p")[0] for id in shards.ids}:
        assert len({split for id, split in splits.items() if id.startswith(f"{scene}_p")}) == 1
    assert {name.rsplit("-of-")[1] for name in manifest["shards"]} <= {f"{n:05d}.parquet" for n in SHARD_COUNTS}
    assert sum(manifest["splits"].values()) == len(source)


def test_the_number_of_processes_changes_no_byte(tree, tmp_path):
    build(tree, tmp_path / "a")
    build(tree, tmp_path / "b", workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(("count", "size", "expected"), [
    (5, 1e3, 1), (160, 1e3, 8), (160, 40e6, 24), (75_000, 1.9e6, 384),
])  # fmt: skip
def test_shard_counts_divide_common_numbers_of_processes(count, size, expected):
    class Source:
        kind, sensors = "folder", ("s1", "s2")

        def layout(self):
            from croplem_hf.data.plan import Layout

            side = int((size / 22) ** 0.5)
            return Layout(np.array([[1, 1, side, side]]))

    ids = [str(k) for k in range(count)]
    shards = plan_shards(Source(), ids, dict.fromkeys(ids, "train"))
    assert len(shards) == expected and [id for shard in shards for id in shard.ids] == ids
    assert {len(shard.ids) for shard in shards} <= {count // expected, count // expected + 1}
    assert shards[0].name == f"train-00000-of-{expected:05d}.parquet"


def test_seasons_and_a_limit_spread_over_scenes(tree, tmp_path):
    manifest = build(tree, tmp_path / "out", seasons=["summer"], limit=10)
    ids = ShardFolder(tmp_path / "out").ids
    assert manifest["samples"] == len(ids) == 10 and all("_summer_" in id for id in ids)
    scenes = [id.rpartition("_p")[0] for id in ids]
    assert {scenes.count(scene) for scene in scenes} == {5}
    with pytest.raises(DataError, match="no patch of autumn there, only of fall, spring"):
        build(tree, tmp_path / "b", seasons=["autumn"])
    with pytest.raises(DataError, match="limit must be at least 1"):
        build(tree, tmp_path / "b", limit=0)


def test_a_season_is_added_and_another_selection_refused(tree, tmp_path):
    out = tmp_path / "out"
    build(tree, out, seasons=["summer"])
    before = contents(out, "data")
    manifest = build(tree, out, seasons=["fall"])
    assert manifest["seasons"] == ["summer", "fall"] and before.items() <= contents(out, "data").items()
    assert {id.split("_")[1] for id in ShardFolder(out).ids} == {"summer", "fall"}
    for options, found in (({"limit": 5}, "another selection of summer"), ({"sensors": ["s1"]}, "other sensors")):
        with pytest.raises(DataError, match=found):
            build(tree, out, **options)
    with pytest.raises(DataError, match="holds other things, such as keep.txt"):
        (out / "keep.txt").touch()
        build(tree, out)


def test_bad_patches_are_skipped_and_listed(tmp_path):
    tree = generate_sen12ms(tmp_path / "tree", size=32, scenes=2, patches_per_scene=4)
    path = next(tree.rglob("*_s2_*.tif"))
    os.truncate(path, 900)
    manifest = build(tree, tmp_path / "out")
    rows = list(csv.reader((tmp_path / "out" / "skipped.csv").read_text().splitlines()))
    assert rows[0] == ["id", "reason"] and len(rows) == 2 and str(path) in rows[1][1]
    assert manifest["skipped"] == 1 and manifest["samples"] == 7
    assert list(verify_shards(tmp_path / "out")) == []


def test_nothing_to_build_from(tmp_path):
    with pytest.raises(DataError, match="no such"):
        build(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def archive(tree, folder, shuffle=True):
    """The tree as three archives a season, members in random order, or in theirs."""
    folder.mkdir()
    rng = random.Random(0)
    for season in sorted(path.name for path in tree.iterdir() if path.is_dir()):
        for kind in ("s1", "s2", "lc"):
            files = sorted(tree.glob(f"{season}/{kind}_*/*.tif"))
            if shuffle:
                rng.shuffle(files)
            with tarfile.open(folder / f"{season}_{kind}.tar.gz", "w:gz", compresslevel=1) as tar:
                for file in files:
                    tar.add(file, file.relative_to(tree))
    return folder


def test_archives_give_the_shards_of_the_tree(tree, tmp_path):
    build(tree, tmp_path / "a")
    archives = archive(tree, tmp_path / "archives")
    build(archives, tmp_path / "b", workers=2)
    names = contents(tmp_path / "a", "data").keys()
    assert names == contents(tmp_path / "b", "data").keys()
    a, b = ShardFolder(tmp_path / "a"), ShardFolder(tmp_path / "b")
    assert a.ids == b.ids
    for i in range(len(a)):
        same(a[i], b[i])
    assert not (tmp_path / "b" / ".build" / "spill").exists()


def test_a_damaged_archive_loses_no_shard_and_leaves_none_with_holes(tree, tmp_path):
    archives = archive(tree, tmp_path / "archives")
    damaged = archives / "ROIs1970_fall_s2.tar.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{damaged.name}.*again"):
        build(archives, tmp_path / "out", workers=2)
    made = {path.name.split("-")[1] for path in (tmp_path / "out" / "data").iterdir()}
    assert made >= {"spring", "summer", "winter"}
    damaged.write_bytes(whole)
    manifest = build(archives, tmp_path / "out")
    assert (manifest["samples"], manifest["skipped"]) == (96, 0)


def test_a_spoiled_archive_publishes_no_wrong_pixel(tree, tmp_path):
    """Its members can all be read, and only the checksum at the end tells."""
    archives = archive(tree, tmp_path / "archives")
    path = archives / "ROIs1970_fall_s2.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    with pytest.raises(DataError, match="may hold wrong ones"):
        build(archives, tmp_path / "out")
    assert not any("-fall-" in file.name for file in (tmp_path / "out" / "data").iterdir())
    path.write_bytes(whole)
    assert build(archives, tmp_path / "out")["samples"] == 96


def test_a_resumed_build_reads_spoiled_archives_to_their_end_too(tree, tmp_path):
    archives, out = archive(tree, tmp_path / "archives"), tmp_path / "out"
    build(archives, out)
    # As if it had been killed when a shard of fall was not done, or all were, and the archive not read to its end.
    plan = json.loads((out / ".build" / "plan.json").read_text())
    plan["read"].remove("fall")
    path = archives / "ROIs1970_fall_s2.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    for missing in (1, 0):
        (out / ".build" / "plan.json").write_text(json.dumps(plan))
        for file in list((out / "data").glob("*-fall-*"))[:missing]:
            file.unlink()
        with pytest.raises(DataError, match="may hold wrong ones"):
            build(archives, out)
        assert not list((out / "data").glob("*-fall-*"))
        path.write_bytes(whole)
        assert build(archives, out)["samples"] == 96
        path.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])


def test_what_is_taken_of_an_archive_later_is_held_to_its_checksum_too(tree, tmp_path):
    source, out = shutil.copytree(tree, tmp_path / "tree"), tmp_path / "out"
    path = sorted(source.rglob("ROIs1970_fall_s2_*.tif"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    build(archive(source, tmp_path / "archives"), out)
    # Fetched again, with that patch mended, and damaged elsewhere.
    path.write_bytes(whole)
    archives = archive(source, tmp_path / "again")
    packed = archives / "ROIs1970_fall_s2.tar.gz"
    data = packed.read_bytes()
    packed.write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
    with pytest.raises(DataError, match="may hold wrong ones"):
        build(archives, out)


def test_seasons_that_were_read_to_the_end_are_not_read_again(tree, tmp_path, monkeypatch):
    archives, out = archive(tree, tmp_path / "archives"), tmp_path / "out"
    make = croplem_hf.data.build._make

    def stopped(source, shard, folder):
        if shard.season == "winter":
            raise KeyboardInterrupt
        return make(source, shard, folder)

    with monkeypatch.context() as patch:
        patch.setattr(croplem_hf.data.build, "_make", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(archives, out)
    opened = []
    begin = TarStream.__iter__
    monkeypatch.setattr(TarStream, "__iter__", lambda self: opened.append(self.path.name) or begin(self))
    assert build(archives, out)["samples"] == 96
    assert opened and not any("spring" in name or "summer" in name for name in opened)


def test_an_archive_that_ends_early_takes_only_its_own_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("croplem_hf.data.shard_plan._FEWEST_ROWS", 8)
    tree = generate_sen12ms(tmp_path / "tree", size=8, scenes=8, patches_per_scene=48)
    archives, out = archive(tree, tmp_path / "archives", shuffle=False), tmp_path / "out"
    path = archives / "ROIs1970_fall_s2.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 5])
    with pytest.raises(DataError, match=f"{path.name}.*fetch the archives again"):
        build(archives, out)
    made = {file.name.split("-")[1] for file in (out / "data").iterdir()}
    assert made >= {"spring", "summer", "winter"}
    path.write_bytes(whole)
    assert build(archives, out)["skipped"] == 0


def test_a_source_that_vanished_is_no_success(tree, tmp_path):
    source = shutil.copytree(tree, tmp_path / "source")
    for path in source.rglob("ROIs1970_fall_s?_*_p*.tif"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its .* items can be read.*data check"):
        build(source, tmp_path / "out")
    made = {path.name.split("-")[1] for path in (tmp_path / "out" / "data").iterdir()}
    assert "fall" not in made
    assert build(tree, tmp_path / "out")["samples"] == 96


def test_what_was_mended_is_taken_in(tmp_path):
    tree = generate_sen12ms(tmp_path / "tree", size=32, scenes=2, patches_per_scene=4)
    path = next(tree.rglob("*_s2_*.tif"))
    whole = path.read_bytes()
    path.write_bytes(whole[:900])
    assert build(tree, tmp_path / "out")["samples"] == 7
    path.write_bytes(whole)
    manifest = build(tree, tmp_path / "out")
    assert (manifest["samples"], manifest["skipped"]) == (8, 0)


def test_files_of_tools_and_of_a_killed_build_are_no_hindrance(tree, tmp_path):
    out = tmp_path / "out"
    build(tree, out, seasons=["summer"])
    for name in (".gitattributes", ".DS_Store", ".index.parquet.77.part"):
        (out / name).touch()
    assert build(tree, out, seasons=["fall"])["seasons"] == ["summer", "fall"]
    next((out / "data").glob("*-summer-*")).unlink()
    with pytest.raises(DataError, match="of an earlier build, missing or changed"):
        build(tree, out, seasons=["spring"])


def test_one_build_at_a_time(tree, tmp_path):
    import fcntl

    build(tree, tmp_path / "out")
    with open(tmp_path / "out" / ".build" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is at work there"):
            build(tree, tmp_path / "out")
    with pytest.raises(DataError, match="workers must be at least 1"):
        build(tree, tmp_path / "out", workers=-1)


def test_findings_of_other_seasons_are_not_listed_and_what_is_there_neither(tree, tmp_path, monkeypatch):
    ids = [id for id in SEN12MSFolder(tree).ids if "_fall_" in id][:3]
    monkeypatch.setattr("croplem_hf.data.check.read_findings", lambda path: {id: ["bad"] for id in ids})
    assert build(tree, tmp_path / "out", seasons=["summer"], findings="f.parquet")["skipped"] == 0
    assert build(tree, tmp_path / "out", seasons=["fall"], findings="f.parquet")["skipped"] == 3
    assert not set(ids) & set(ShardFolder(tmp_path / "out").ids)


def test_no_worker_outlives_a_parent_that_was_killed(tree, tmp_path):
    archives = archive(tree, tmp_path / "archives")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(script), str(archives), str(out), "2"])
    limit = time.monotonic() + 60
    while process.poll() is None and not list(out.glob("data/*")) and time.monotonic() < limit:
        time.sleep(0.005)
    process.kill()
    process.wait()
    manifest = build(archives, out)
    assert (manifest["samples"], manifest["skipped"]) == (96, 0)
    assert list(verify_shards(out)) == []


RUN = """
import sys
from croplem_hf.data.build import build_shards
if __name__ == "__main__":
    build_shards(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), progress=False)
"""


def kill_and_finish(src, folder, times, workers):
    """Build, killed at random `times`; the unbroken build's bytes must come out."""
    build(src, folder / "unbroken")
    script = folder / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(src), str(folder / "broken"), str(workers)]
    rng, killed, finished = random.Random(0), 0, contents(folder / "unbroken", "data")
    while killed < times:
        process = subprocess.Popen(command, start_new_session=True)
        data = folder / "broken" / "data"
        limit = time.monotonic() + 60
        while process.poll() is None and not (data.exists() and any(data.iterdir())) and time.monotonic() < limit:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.2)
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.wait()
        killed += 1
        whole = {name: data for name, data in contents(folder / "broken", "data").items() if name.endswith(".parquet")}
        whole = {name: data for name, data in whole.items() if not Path(name).name.startswith(".")}
        assert whole.items() <= finished.items()
        if not (folder / "broken" / "manifest.json").exists():
            with pytest.raises(DataError):
                ShardFolder(folder / "broken")
        else:
            shutil.rmtree(folder / "broken")
    build(src, folder / "broken")
    assert contents(folder / "broken", "data") == finished
    assert (folder / "broken" / "index.parquet").read_bytes() == (folder / "unbroken" / "index.parquet").read_bytes()


def test_a_killed_build_goes_on(tree, tmp_path):
    kill_and_finish(tree, tmp_path, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_build_killed_ten_times_goes_on(tree, tmp_path, packed):
    kill_and_finish(archive(tree, tmp_path / "archives") if packed else tree, tmp_path, 10, 2)


PLAIN = """
import os, sys
os.environ |= {"HF_HOME": sys.argv[2], "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
import json, warnings
from datasets import load_dataset
from datasets.distributed import split_dataset_by_node
folder, out = sys.argv[1], {}
for config in ("default", "summer"):
    splits = load_dataset(folder, config, streaming=True)
    out[config] = {name: [row["id"] for row in split] for name, split in splits.items()}
train = load_dataset(folder, split="train", streaming=True)
out["shards"] = train.num_shards
for world in (2, 4):
    out[str(world)] = [[r["id"] for r in split_dataset_by_node(train, k, world)] for k in range(world)]
import hashlib
out["pixels"] = {}
for row in train:
    if row["s2"] is not None:
        %s
        out["pixels"][row["id"]] = hashlib.sha256(s2.tobytes()).hexdigest() + str(s2.shape) + str(s2.dtype)
print(json.dumps(out))
"""


def test_plain_datasets_reads_the_folder_and_the_card_tells_how_to_unpack(tree, tmp_path):
    build(tree, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert DECODE in card and "MODIS at 500 m" in card and "Invented data" in card
    script = tmp_path / "plain.py"
    script.write_text(PLAIN % textwrap.indent(DECODE.strip(), "        ").strip())
    command = [sys.executable, str(script), str(tmp_path / "out"), str(tmp_path / "home")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    out = json.loads(result.stdout.splitlines()[-1])
    shards = ShardFolder(tmp_path / "out")
    split = shards.columns()["split"]
    for name in set(split.tolist()):
        expected = sorted(id for id, where in zip(shards.ids, split, strict=True) if where == name)
        assert sorted(out["default"][name]) == expected
        summer = [id for id in expected if "_summer_" in id]
        assert sorted(out["summer"].get(name, [])) == summer
    for world in ("2", "4"):
        parts = out[world]
        assert sorted(id for part in parts for id in part) == sorted(out["default"]["train"])
    for id, digest in out["pixels"].items():
        s2 = shards[shards.ids.index(id)]["s2"]
        assert digest == hashlib.sha256(s2.tobytes()).hexdigest() + str(s2.shape) + str(s2.dtype)


def test_the_command(tree, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["data", "build", str(tree), str(out), "--seasons", "summer,fall", "--workers", "1", "--quiet"]
    assert main([*arguments, "--verify"]) == 0
    text = capsys.readouterr().out
    assert f"shards in {out}" in text and "verified" in text
    shard = next((out / "data").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(bytes(data))
    assert main([*arguments, "--verify"]) == 3
    assert shard.name in capsys.readouterr().out
    assert main(["data", "build", str(tmp_path / "none"), str(out)]) == 1
    assert "croplem data build: " in capsys.readouterr().err
