import gzip
import io
import json
import logging
import os
import pickle
import random
import shutil
import tarfile
import tracemalloc

import numpy as np
import pytest

from croplem_hf.data import SEN12MSFolder, generate_sen12ms, spill as module
from croplem_hf.data.archives import Archives
from croplem_hf.data.splits import scene_places
from croplem_hf.data.tarstream import TarStream
from croplem_hf.errors import DataError

ORDERS = {"sorted": lambda names, _: sorted(names), "reversed": lambda names, _: sorted(names)[::-1], "random": None}
ROOM = 10**9


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Four scenes of six patches; the last patch of each lacks a partner."""
    return generate_sen12ms(tmp_path_factory.mktemp("tree"), size=32)


def pack(tree, out, order="sorted", mode="w:gz", change=None):
    """Write the tree as archives of a season and kind; `change(tar, info, data)` may write another member instead."""
    out.mkdir(exist_ok=True)
    files = {}
    for path in sorted(tree.rglob("*.tif")):
        season, kind = path.parts[-3], path.parent.name.split("_")[0]
        files.setdefault(f"{season}_{kind}", []).append(path)
    for k, (name, paths) in enumerate(sorted(files.items())):
        paths = sorted(paths, reverse=order == "reversed")
        if order == "random":
            random.Random(k).shuffle(paths)
        with tarfile.open(out / f"{name}.tar{'.gz' if mode == 'w:gz' else ''}", mode) as tar:
            for path in paths:
                data = path.read_bytes()
                info = tarfile.TarInfo(str(path.relative_to(tree)))
                info.size = len(data)
                if change is None or not change(tar, info, data):
                    tar.addfile(info, io.BytesIO(data))
    return out


def same(a, b):
    assert a.keys() == b.keys()
    for key, value in b.items():
        if isinstance(value, np.ndarray):
            assert a[key].dtype == value.dtype and a[key].shape == value.shape, key
            assert a[key].tobytes() == value.tobytes(), key
        else:
            assert a[key] == value, key


def groups_of(source, wanted, spill, spill_bytes, to_end=()):
    """(number, its samples in order, an error in the place of a bad one) of each group."""
    for number, group in source.spilled_groups(wanted, spill, spill_bytes, to_end):
        try:
            yield number, group.items()
        finally:
            group.delete()


def read(source, wanted, spill, spill_bytes=ROOM, to_end=("spring", "summer", "fall", "winter")):
    got = dict(groups_of(source, wanted, spill, spill_bytes, to_end))
    assert not list(spill.iterdir())
    return got


def split(ids, size=5):
    return [ids[k : k + size] for k in range(0, len(ids), size)]


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_gives_the_samples_of_the_tree(tree, tmp_path, order, mode):
    folder = SEN12MSFolder(tree)
    source = Archives(pack(tree, tmp_path / "in", order, mode))
    assert (source.kind, source.ids, source.sensors) == ("sen12ms", folder.ids, ("s1", "s2"))
    wanted = split(source.ids)
    got = read(source, wanted, tmp_path / "spill")
    assert sorted(got) == list(range(len(wanted)))
    for i, sample in enumerate(sample for k in sorted(got) for sample in got[k]):
        same(sample, folder[i])
    assert source.scenes == scene_places(folder)
    assert not source.damaged and not source.unlisted and not source.refused


def test_real_patches(real_data, tmp_path):
    folder = SEN12MSFolder(real_data / "sen12ms")
    source = Archives(pack(real_data / "sen12ms", tmp_path / "in", "random"))
    got = read(source, [source.ids], tmp_path / "spill")[0]
    assert len(got) >= 3
    for id, sample in zip(source.ids, got, strict=True):
        same(sample, folder[folder.ids.index(id)])
    # Land cover is the smallest archive of spring, and holds one of its patches.
    assert set(source.ids) | source.unlisted == set(folder.ids)


@pytest.mark.parametrize("room", [1, 60_000, 200_000])
def test_little_room_takes_more_passes_and_no_more_disk(tree, tmp_path, room):
    folder = SEN12MSFolder(tree)
    source = Archives(pack(tree, tmp_path / "in", "random"))
    wanted = split(source.ids, 4)
    patch = 32 * 32 * 38 + 3000
    spill, most, got = tmp_path / "spill", 0, {}
    for number, group in source.spilled_groups(wanted, spill, room):
        group = pickle.loads(pickle.dumps(group))
        most = max(most, sum(file.stat().st_size for file in spill.iterdir() if file != group.path))
        got[number] = group.items()
        group.delete()
    assert most <= max(room, 4 * patch) + patch
    assert not list(spill.iterdir())
    for i, sample in enumerate(sample for k in sorted(got) for sample in got[k]):
        same(sample, folder[i])
    assert len(got) == len(wanted)


def test_only_what_is_wanted_and_only_those_seasons(tree, tmp_path, monkeypatch):
    source = Archives(pack(tree, tmp_path / "in"))
    ids = [id for id in source.ids if "spring" in id]
    opened = []
    begin = TarStream.__iter__
    monkeypatch.setattr(TarStream, "__iter__", lambda self: opened.append(self.path.name) or begin(self))
    got = read(source, [[], ids[1:3], []], tmp_path / "spill", to_end=())
    assert [sample["id"] for sample in got[1]] == ids[1:3] and list(got) == [1]
    assert opened and all("spring" in name for name in opened)
    only = Archives(tmp_path / "in", seasons=["spring"], kinds=("s2",))
    assert only.ids == ids and only.sensors == ("s2",)
    (sample,) = read(only, [ids[:1]], tmp_path / "spill", to_end=())[0]
    assert sample["s1"] is None and sample["lc"] is None and sample["s2"] is not None


def test_the_inventory_is_made_once(tree, tmp_path, monkeypatch):
    folder = pack(tree, tmp_path / "in")
    first = Archives(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Archives, "_list", None)
        again = Archives(folder)
    assert (again.ids, again.scenes, again.present) == (first.ids, first.scenes, first.present)
    memo = next(folder.glob("*_inventory.json"))
    for text in ("", "[]", "{", json.dumps({"archives": {}}), memo.read_text().replace("ROIs", "X")):
        memo.write_text(text)
        assert Archives(folder).ids == first.ids
    shutil.copy(next(folder.glob("*_s1.tar.gz")), tmp_path / "copy")
    lc = next(folder.glob("*_lc.tar.gz"))
    os.utime(lc, (1, 1))
    with pytest.raises(TypeError), monkeypatch.context() as patch:
        patch.setattr(Archives, "_list", None)
        Archives(folder)


def test_a_truncated_archive_costs_only_what_lies_behind(tree, tmp_path):
    folder = pack(tree, tmp_path / "in")
    path = next(folder.glob("*spring_s2.tar.gz"))
    os.truncate(path, path.stat().st_size // 2)
    source = Archives(folder)
    samples = [s for group in read(source, split(source.ids), tmp_path / "spill").values() for s in group]
    bad = [s for s in samples if isinstance(s, DataError)]
    assert 0 < len(bad) < len(samples) and list(source.damaged) == [path.name]
    assert all("spring_s2.tar.gz" in str(s) and "MD5" in str(s) and "ROIs1158_spring" in str(s) for s in bad)
    assert {s["id"] for s in samples if not isinstance(s, DataError) and s["s2"] is None} == {
        id for id in source.ids if SEN12MSFolder(tree)[source.ids.index(id)]["s2"] is None
    } - {str(s).split(":")[0] for s in bad}


def test_a_damaged_inventory_archive_is_made_good_by_the_next(tree, tmp_path):
    folder = pack(tree, tmp_path / "in")
    path = next(folder.glob("*spring_lc.tar.gz"))
    os.truncate(path, path.stat().st_size // 2)
    for _ in range(2):
        source = Archives(folder)
        assert path.name in source.damaged
        missing = set(SEN12MSFolder(tree).ids) - set(source.ids)
        assert all(id in {i for i in SEN12MSFolder(tree, sensors=["s2"]).ids} for id in missing) and len(missing) <= 1


def test_a_checksum_that_fails_at_the_end_is_told(tree, tmp_path):
    folder = pack(tree, tmp_path / "in")
    path = next(folder.glob("*spring_s1.tar.gz"))
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    source = Archives(folder)
    got = read(source, split(source.ids), tmp_path / "spill")
    assert len(got) == len(split(source.ids)) and "CRC" in source.damaged[path.name]


def test_a_damaged_file_and_refused_members_are_errors_by_name(tree, tmp_path):
    def change(tar, info, data):
        base = os.path.basename(info.name)
        if "spring_s1" not in base:
            return False
        done.append(base)
        if len(done) == 1:
            info.size = 100
            tar.addfile(info, io.BytesIO(data[:100]))
        elif len(done) == 2:
            info.name = f"../../{base}"
            tar.addfile(info, io.BytesIO(data))
        elif len(done) == 3:
            info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(info)
        elif len(done) == 4:
            tar.addfile(info, io.BytesIO(data))
            tar.addfile(info, io.BytesIO(b"x" * info.size))
        else:
            return False
        return True

    done = []
    source = Archives(pack(tree, tmp_path / "in", change=change))
    by_id = {}
    for number, group in read(source, split(source.ids), tmp_path / "spill").items():
        by_id |= dict(zip(split(source.ids)[number], group, strict=True))
    bad = [base.replace("_s1_", "_").removesuffix(".tif") for base in done[:3]]
    assert {id for id, s in by_id.items() if isinstance(s, DataError)} == set(bad)
    for id, base, word in zip(bad, done, ("ROIs1158_spring_s1.tar.gz", "leads outside", "link"), strict=False):
        assert base in str(by_id[id]) and word in str(by_id[id])
    assert len(source.refused) == 3 and any("second time" in reason for reason in source.refused.values())
    assert not list(tmp_path.parent.glob("*.tif"))


def test_patches_that_the_inventory_lacks_are_told(tree, tmp_path, caplog):
    lost = "ROIs1158_spring_lc"

    def change(tar, info, data):
        return os.path.basename(info.name) == first

    first = sorted(p.name for p in tree.rglob(f"{lost}_*.tif"))[0]
    source = Archives(pack(tree, tmp_path / "in", change=change))
    id = first.replace("_lc_", "_").removesuffix(".tif")
    assert id not in source.ids
    read(source, split(source.ids), tmp_path / "spill")
    assert source.unlisted == {id} and id in caplog.text and "_inventory.json" in caplog.text


def test_a_full_disk_is_told_before_anything_is_written(tree, tmp_path, monkeypatch):
    source = Archives(pack(tree, tmp_path / "in"))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DataError, match="are free on this disk.*another disk"):
        next(groups_of(source, [source.ids], tmp_path / "spill", ROOM))
    assert not list((tmp_path / "spill").iterdir())


def test_what_was_spilled_goes_when_the_taker_stops(tree, tmp_path):
    source = Archives(pack(tree, tmp_path / "in"))
    (tmp_path / "spill").mkdir()
    (tmp_path / "spill" / "000007.spill").write_bytes(b"left")
    groups = groups_of(source, split(source.ids), tmp_path / "spill", ROOM)
    next(groups)
    groups.close()
    assert not list((tmp_path / "spill").iterdir())


def test_recognises_and_refuses(tree, tmp_path):
    folder = pack(tree, tmp_path / "in")
    one = next(folder.glob("*spring_s1.tar.gz"))
    assert Archives.recognises(folder) and Archives.recognises(one)
    assert not any(map(Archives.recognises, (tree, tmp_path / "none", tree / "labels.csv")))
    assert Archives(one).sensors == ("s1",)
    for path, options, words in (
        (tmp_path / "none", {}, "no such file or folder"),
        (tree, {}, "no archive of SEN12MS"),
        (folder, {"kinds": ("lc",)}, "kinds must be"),
        (folder, {"seasons": ["autumn"]}, "seasons must be"),
        (folder / next(folder.glob("*_lc.tar.gz")), {}, "no archive of"),
    ):
        with pytest.raises(DataError, match=words):
            Archives(path, **options)
    source = Archives(folder)
    for wanted, words in (([["x"]], "no id"), ([source.ids[:1] * 2], "again in group")):
        with pytest.raises(DataError, match=words):
            next(groups_of(source, wanted, tmp_path / "spill", ROOM))
    (folder / f"{one.name[:-3]}").write_bytes(gzip.decompress(one.read_bytes()))
    with pytest.raises(DataError, match="the same archive twice"):
        Archives(folder)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_joined_gzip(tmp_path, format):
    name = "/".join(["e" * 60] * 2) + "/ROIs1158_spring_s1_1_p30.tif"
    if format != tarfile.USTAR_FORMAT:
        name = "ä" * 150 + name
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for data in (b"abc", b"d" * 600):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    plain = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain[:700]) + gzip.compress(plain[700:]))
    for path in (tmp_path / "a.tar", tmp_path / "a.tar.gz"):
        stream = TarStream(path)
        assert [(member.name, member.problem, stream.read()) for member in stream] == [
            (name, None, b"abc"), (name, None, b"d" * 600)
        ]  # fmt: skip


def spoil(data, rng):
    """A damaged copy of a tar: cut, flipped bytes, or a header that claims what is not so (its checksum made right)."""
    data = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) // 512) * 512
        if kind == 1:
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 2:
            data[at + rng.choice([0, 100, 124, 135, 148, 156, 257, 345])] = rng.randrange(256)
        else:
            try:
                info = tarfile.TarInfo.frombuf(bytes(data[at : at + 512]), "utf-8", "replace")
            except tarfile.TarError:
                continue
            info.type = bytes([rng.choice(b"0123456789LKxgS7VZ\0")])
            info.size = rng.choice([0, 1, 511, 2**20 + 1, 2**26 + 1, 2**33, 2**62, info.size])
            info.name = rng.choice([info.name, "/" + info.name, "../" * 9 + info.name, "a/../../" + info.name])[-99:]
            data[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)[-512:]
    return bytes(data)


@pytest.fixture
def silent():
    """No log: what pytest keeps of thousands of damages would be measured as memory of ours."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def fuzz(tmp_path, count, seed):
    """Archives of three small patches, one of them spoiled each time."""
    rng = random.Random(seed)
    tree = generate_sen12ms(tmp_path / "tree", size=4, scenes=1, patches_per_scene=3)
    clean = pack(tree, tmp_path / "clean", mode="w")
    plain = {path: path.read_bytes() for path in sorted(clean.glob("*.tar"))}
    folder, spill = tmp_path / "box" / "in", tmp_path / "box" / "spill"
    folder.mkdir(parents=True)
    outcomes = set()
    tracemalloc.start()
    for _ in range(count):
        for old in folder.iterdir():
            old.unlink()
        victim = rng.choice(sorted(plain))
        for path, data in plain.items():
            data = spoil(data, rng) if path == victim else data
            packed = rng.random() < 0.5
            data = gzip.compress(data, 1) if packed else data
            if packed and path == victim and rng.random() < 0.3:
                data = bytearray(data)
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            (folder / f"{path.name}{'.gz' if packed else ''}").write_bytes(data)
        source = Archives(folder)
        wanted = split(source.ids, 2)
        got = read(source, wanted, spill, rng.choice([1, 50_000, ROOM]))
        assert sorted(got) == list(range(len(wanted)))
        for number, group in got.items():
            for id, sample in zip(wanted[number], group, strict=True):
                outcomes.add(type(sample))
                assert isinstance(sample, DataError) or sample["id"] == id
        assert not [p for p in tmp_path.parent.iterdir() if p.suffix == ".tif"]
        assert {p.name for p in (tmp_path / "box").iterdir()} == {"in", "spill"}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6 and outcomes == {dict, DataError}


@pytest.mark.slow
def test_spoiled_archives_neither_crash_nor_escape(tmp_path, silent):
    fuzz(tmp_path, 500, seed=0)


@pytest.mark.slow
def test_thousands_of_spoiled_archives(tmp_path, silent):
    fuzz(tmp_path, int(os.environ.get("CROPLEM_FUZZ", "5000")), seed=1)
