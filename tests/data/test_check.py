import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from croplem_hf.cli import main
from croplem_hf.data import SEN12MSFolder, generate_sen12ms
from croplem_hf.data.build import build_shards
from croplem_hf.data.check import (
    SCHEMA,
    about_findings,
    check_source,
    read_findings,
    summarise_findings,
    write_findings,
)  # fmt: skip
from croplem_hf.data.geotiff import read_geotiff, write_geotiff
from croplem_hf.data.pixel_checks import KINDS, look_at_raster
from croplem_hf.data.sen12ms import BAD_PATCHES
from croplem_hf.data.synthetic import DEFECTS
from croplem_hf.errors import DataError

GRID = {"crs": "EPSG:32737", "transform": (10, 0, 375412.3, 0, -10, 8116742.8)}
ID = "ROIs1158_spring_1_p30"
# The findings of each planted defect that are errors; the others are corrected or only looked at.
ERRORS = {"truncated": "truncated", "empty": "empty", "band_count": "band_count", "other_grid": "grid"}
WARNINGS = {
    "constant_band": "constant", "saturated": "saturated", "offset": "offset", "reflectance": "units", "nan": "nan",
    "linear": "units",
}  # fmt: skip


def arrays(size=32, seed=0):
    rng = np.random.default_rng(seed)
    s1 = rng.normal([[[-11]], [[-18]]], 2, (2, size, size)).astype(np.float32)
    s2 = rng.integers(300, 2500, (13, size, size)).astype(np.uint16)
    s2[10] = rng.integers(5, 40, (size, size))
    return {"s1": s1, "s2": s2, "lc": rng.integers(1, 18, (4, size, size)).astype(np.uint8)}


def put(root, kind, array=None, *, season="ROIs1158_spring", scene="1", patch="30", folder=None, seed=0, **grid):
    """Write one file of a patch and return its path."""
    folder = f"{season}/{kind}_{scene}" if folder is None else folder
    path = Path(root, folder, f"{season}_{kind}_{scene}_p{patch}.tif")
    return write_geotiff(path, arrays(seed=seed)[kind] if array is None else array, **(GRID | grid))


def check(src, **options):
    return check_source(src, **{"workers": 1} | options)


def found(table, *columns):
    return [tuple(row[name] for name in columns) for row in table.to_pylist()]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree of 48 patches of 32 px, each of whose `DEFECTS` is in another patch; read only."""
    return generate_sen12ms(tmp_path_factory.mktemp("tree") / "t", size=32, scenes=8, defects=list(DEFECTS))


@pytest.fixture(scope="module")
def findings(tree):
    return check(tree)


def test_planted_defects_are_found_and_nothing_else(tree, findings):
    with open(tree / "defects.csv", newline="") as handle:
        planted = {row["file"]: row["kind"] for row in csv.DictReader(handle)}
    rows = found(findings, "file", "kind", "severity")
    for file, defect in planted.items():
        expected = (ERRORS.get(defect), "error") if defect in ERRORS else (WARNINGS.get(defect), "warning")
        if defect != "missing_partner":
            assert (file, *expected) in rows, defect
    assert sorted(kind for _, kind, severity in rows if severity == "error") == sorted(ERRORS.values())
    allowed = {*planted, *(file for file, kind, _ in rows if kind == "missing_partner")}
    assert {file for file, *_ in rows} <= allowed
    lost = next(file for file, defect in planted.items() if defect == "missing_partner")
    id = Path(lost).stem.replace("_s1_", "_")
    assert (id, "missing_partner", "warning") in found(findings, "id", "kind", "severity")
    assert {kind for _, kind, _ in rows} <= KINDS.keys()
    about = about_findings(findings)
    assert (about["items"], about["errors"], about["items_with_errors"], about["source"]) == (48, 4, 4, str(tree))
    assert about["errors"] + about["warnings"] == len(findings) == sum(about["kinds"].values())


def test_what_has_no_error_can_be_read_and_what_has_one_cannot(tree, findings, tmp_path):
    errors = read_findings(write_findings(findings, tmp_path / "f.parquet"))
    source = SEN12MSFolder(tree, skip=())
    for i, id in enumerate(source.ids):
        if id in errors:
            with pytest.raises(DataError):
                source[i]
        else:
            assert source[i]["id"] == id


def test_processes_change_nothing(tree, findings, monkeypatch):
    # So that there is work for two.
    monkeypatch.setattr("croplem_hf.data.check._CHUNK", 10)
    assert check(tree, workers=2).equals(findings)


def test_one_season(tree, findings):
    fall = check(tree, seasons=["fall"])
    assert found(fall, *SCHEMA.names) == [row for row in found(findings, *SCHEMA.names) if "_fall_" in row[0]]
    with pytest.raises(DataError, match="no patch of autumn there, only of fall, spring, summer, winter"):
        check(tree, seasons=["autumn"])
    with pytest.raises(DataError, match="workers must be 1 or more"):
        check(tree, workers=0)


A = arrays()
CLOUD = A["s2"] + np.uint16(4000)
CLOUD[10] = np.random.default_rng(1).integers(1200, 3000, CLOUD[10].shape)
QUARTER = np.s_[..., :16, :16]


def changed(kind, where, value):
    array = A[kind].copy()
    array[where] = value
    return array


@pytest.mark.parametrize(("sensor", "array", "expected"), [
    ("s1", A["s1"], []),
    ("s2", A["s2"], []),
    ("lc", A["lc"], []),
    ("s1", A["s1"][:1], ["error band_count"]),
    ("s1", A["s1"] * 100, ["error units"]),
    ("s1", (A["s1"] * 100).astype(np.int16), ["warning dtype", "error units"]),
    ("s1", 10 ** (A["s1"] / 10), ["warning units"]),
    ("s1", A["s1"][::-1], ["warning band_order"]),
    ("s1", np.full_like(A["s1"], np.nan), ["error no_data"]),
    ("s1", np.full_like(A["s1"], -12), ["error constant"]),
    ("s1", np.clip(A["s1"], -18, 0), ["warning saturated"]),
    ("s1", changed("s1", QUARTER, 0), ["warning fill"]),
    ("s1", changed("s1", np.s_[0, 3, 3], np.inf), ["warning nan"]),
    ("s2", A["s2"][:12], ["error band_count"]),
    ("s2", A["s2"].astype(np.uint8), ["warning dtype", "error units"]),
    ("s2", np.zeros_like(A["s2"]), ["error no_data"]),
    ("s2", A["s2"] / np.float32(10000), ["warning dtype", "warning units"]),
    ("s2", A["s2"] + np.uint16(1000), ["warning offset"]),
    ("s2", CLOUD, ["error offset"]),
    ("s2", changed("s2", 1, A["s2"][1] + 3000), ["warning clouds"]),
    ("s2", changed("s2", np.s_[4, :16], 0), ["warning saturated"]),
    ("s2", changed("s2", np.s_[7, :8], 10000), ["warning saturated"]),
    ("s2", changed("s2", np.s_[7, :8], 9000), []),
    ("s2", changed("s2", 6, 1200), ["warning constant"]),
    ("s2", changed("s2", QUARTER, 0), ["warning fill"]),
    ("s2", A["s2"][[0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 9, 11, 12]] + np.uint16(600) * (np.arange(13) == 10)[:, None, None],
     ["warning band_order"]),
    ("lc", changed("lc", np.s_[0, 0], 18), ["warning land_cover"]),
    ("lc", changed("lc", np.s_[1], 200), []),
    ("lc", A["lc"].astype(np.float32), ["error dtype"]),
    ("lc", A["lc"][:3], ["error band_count"]),
])  # fmt: skip
def test_pixels(sensor, array, expected):
    looks = list(look_at_raster(sensor, array, None, "place.tif"))
    assert [f"{look.severity} {look.kind}" for look in looks] == expected, looks
    assert all(look.detail and "place.tif" not in look.detail for look in looks)
    assert all(look.share is None or 0 < look.share <= 1 for look in looks)


def test_shares_are_those_of_the_pixels():
    (look,) = look_at_raster("s2", changed("s2", QUARTER, 0), None, "")
    assert look.share == 0.25 and "25 %" in look.detail
    (look,) = look_at_raster("s1", changed("s1", QUARTER, -99), -99, "")
    assert (look.kind, look.share) == ("fill", 0.25)


def test_the_tree_itself(tmp_path):
    for kind in A:
        put(tmp_path, kind)
    twin = put(tmp_path, "s1", folder="copy")
    put(tmp_path, "s2", season="ROIs9_monsoon", seed=1)
    bad = next(iter(BAD_PATCHES))
    put(tmp_path, "s2", season="ROIs1868_summer", scene="146", patch="202", seed=2)
    put(tmp_path, "lc", patch="31")
    put(tmp_path, "s2", patch="32", seed=3)
    (tmp_path / "ROIs1158_spring_s1_1_p32.tif").symlink_to("nowhere")
    (tmp_path / "ROIs1158_spring_lc_1_p32.tif").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    rows = found(check(tmp_path), "id", "kind", "severity")
    spring = "ROIs1158_spring_1_p3"
    assert sorted(rows) == sorted([
        (f"{spring}0", "duplicate", "error"),
        ("ROIs9_monsoon_1_p30", "season", "error"),
        (bad, "known_bad", "error"),
        (f"{spring}1", "missing_partner", "warning"),
        (f"{spring}2", "missing_partner", "warning"),
        (f"{spring}2", "not_a_file", "warning"),
        (f"{spring}2", "not_a_file", "warning"),
    ])  # fmt: skip
    twin.unlink()
    assert len(SEN12MSFolder(tmp_path, skip=[id for id, _, severity in rows if severity == "error"])) == 1


def test_the_file_on_another_grid_is_named(tmp_path):
    put(tmp_path, "s1", transform=(10, 0, 375447.3, 0, -10, 8116742.8))
    put(tmp_path, "s2")
    put(tmp_path, "lc")
    assert found(check(tmp_path), "file", "kind") == [("ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif", "grid")]


def test_same_pixels_under_two_ids(tmp_path):
    put(tmp_path, "s1")
    put(tmp_path, "s1", patch="31")
    put(tmp_path, "s1", patch="32", seed=1)
    (row,) = check(tmp_path).to_pylist()
    assert (row["id"], row["kind"], row["severity"]) == (ID.replace("30", "31"), "duplicate", "warning")
    assert ID in row["detail"]


@given(st.data())
def test_damaged_bytes_never_stop_the_check(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("damaged")
    kind = data.draw(st.sampled_from(["s1", "s2", "lc"]))
    for each in A:
        put(root, each, A[each][:, :8, :8])
    path = next(root.rglob(f"*_{kind}_*.tif"))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        at = data.draw(st.integers(0, min(500, len(content) - 1)))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    errors = [row for row in check(root).to_pylist() if row["severity"] == "error"]
    assert all(row["id"] == ID and row["detail"] for row in errors)
    if not errors:
        assert SEN12MSFolder(root)[0]["id"] == ID


def test_no_half_table_and_what_is_none(findings, tmp_path, monkeypatch):
    path = write_findings(findings, tmp_path / "new" / "f.parquet")
    assert pq.read_table(path).equals(findings) and about_findings(pq.read_table(path)) == about_findings(findings)
    errors = read_findings(path)
    assert {id: len(reasons) for id, reasons in errors.items()} == {
        id: 1 for id, severity in found(findings, "id", "severity") if severity == "error"
    }
    assert any(reason.startswith("empty: ") for reasons in errors.values() for reason in reasons)
    before = path.read_bytes()

    def half(table, where):
        Path(where).write_bytes(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(KeyboardInterrupt):
        write_findings(findings, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["f.parquet"]
    monkeypatch.undo()
    with pytest.raises(DataError, match="no such file"):
        read_findings(tmp_path / "none.parquet")
    path.write_bytes(before[:-7])
    with pytest.raises(DataError, match="not a table that `croplem data check` wrote"):
        read_findings(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(DataError, match="not a table that `croplem data check` wrote"):
        read_findings(path)


def test_shards_are_verified_and_looked_at(tree, findings, tmp_path):
    write_findings(findings, tmp_path / "f.parquet")
    build_shards(tree, tmp_path / "out", findings=tmp_path / "f.parquet", workers=1, progress=False)
    table = check(tmp_path / "out")
    about = about_findings(table)
    assert (about["items"], about["errors"]) == (44, 0)
    assert {"warning offset", "warning units", "warning constant", "warning saturated"} <= about["kinds"].keys()
    shard = sorted((tmp_path / "out" / "data").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    rows = found(check(tmp_path / "out"), "id", "file", "severity", "kind")
    errors = [row for row in rows if row[2] == "error"]
    assert ("", f"data/{shard.name}", "error", "shard") in errors
    assert [id for id, *_ in errors if id] != []
    summer = about_findings(check(tmp_path / "out", seasons=["summer"]))
    assert 0 < summer["items"] < 44


def test_other_sources(tmp_path):
    lines = ["id,sensor,date,path,level"]
    for name, seed in (("a", 0), ("b", 1)):
        for sensor in ("s1", "s2"):
            write_geotiff(tmp_path / f"{name}_{sensor}.tif", arrays(seed=seed)[sensor], **GRID)
            lines.append(f"{name},{sensor},2019-06-15,{name}_{sensor}.tif,{'L1C' if sensor == 's2' else ''}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    assert len(check(tmp_path)) == 0
    values, info = read_geotiff(tmp_path / "a_s2.tif")
    values[6] = 1200
    write_geotiff(tmp_path / "a_s2.tif", values, crs=info.crs, transform=info.transform)
    os.truncate(tmp_path / "b_s1.tif", 900)
    rows = found(check(tmp_path), "id", "kind", "severity")
    assert rows == [("a", "constant", "warning"), ("b", "unreadable", "error")]
    with pytest.raises(DataError, match="no seasons"):
        check(tmp_path, seasons=["summer"])


def test_nothing_to_check(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        check(tmp_path / "none")
    with pytest.raises(DataError, match="no SEN12MS patch in this folder"):
        check(tmp_path)
    (tmp_path / "ROIs1868_summer_s1.tar.gz").touch()
    with pytest.raises(DataError, match="checked as they are built"):
        check(tmp_path)


def test_the_command(tree, tmp_path, capsys, answer):
    out = tmp_path / "f.parquet"
    assert main(["data", "check", str(tree), "--out", str(out), "--workers", "1", "--quiet"]) == 3
    text, err = capsys.readouterr()
    assert text == summarise_findings(pq.read_table(out)) + "\n" and err == ""
    assert "48 items checked" in text and "error empty: 1\n    ROIs" in text
    about = answer("data", "check", tree, "--seasons", "summer", "--quiet", "--workers", "1")
    assert about["errors"] == 0 and about["warnings"] > 0 and about["seasons"] == ["summer"]
    assert main(["data", "check", str(tmp_path / "none")]) == 1
    assert "croplem data check: " in capsys.readouterr().err
    assert main(["data", "check", str(tree), "--out", str(tmp_path)]) == 1
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    for name, message in (("other.parquet", "exists and is no table of findings"), ("f.csv", "ends in .parquet")):
        assert main(["data", "check", str(tree), "--out", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["data", "check", "--help"])
    assert stop.value.code == 0 and "3 errors were found" in capsys.readouterr().out


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """4,000 patches of which all are one file: some minutes of work, made at once."""
    root = tmp_path_factory.mktemp("large")
    path = write_geotiff(root / "one", arrays(256)["s2"], **GRID)
    for patch in range(4000):
        (root / f"ROIs1158_spring_s2_1_p{patch}.tif").symlink_to(path)
    return root


def running(large, out):
    """A check in two processes, some of its work done, and the folder where its table would be."""
    command = [sys.executable, "-m", "croplem_hf.cli", "data", "check", str(large), "--workers", "2", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    seen, end = b"", time.monotonic() + 60
    while b"/4000" not in seen or b"| 0/4000" in seen[-60:]:
        assert time.monotonic() < end and process.poll() is None, seen
        seen += os.read(process.stderr.fileno(), 4096)
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a process in /proc")
@pytest.mark.parametrize("what", ["interrupted", "killed"])
def test_a_check_that_ends_early_writes_nothing(large, tmp_path, what):
    process = running(large, tmp_path / "f.parquet")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if what == "interrupted":
        process.send_signal(signal.SIGINT)
    else:
        os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    expected = {"interrupted": (130, b"interrupted"), "killed": (1, b"a process was killed")}[what]
    assert process.returncode == expected[0] and expected[1] in err and b"Traceback" not in err, err
    assert list(tmp_path.iterdir()) == []
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end, "a process is left behind"
        time.sleep(0.05)


def test_real_patches_have_no_error(real_data):
    rows = found(check(real_data / "sen12ms"), "kind", "severity")
    assert set(rows) == {("missing_partner", "warning")}
    values, info = read_geotiff(real_data / "sen12ms_cloudy" / "ROIs1970_fall_139_p839.tif")
    (look,) = look_at_raster("s2", values, info.nodata, "")
    assert (look.kind, look.severity) == ("clouds", "warning") and 0.2 < look.share < 0.22
