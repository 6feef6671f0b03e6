"""The command line: one clear line for every mistake, good items kept, and long work that survives a kill."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from croplem_hf import CheckpointError, EmbeddingIndex, __version__, fit_head, read_table
from croplem_hf.cli import main
from croplem_hf.data import generate_sen12ms
from croplem_hf.data.geotiff import read_geotiff, write_geotiff

CROPLEM = [sys.executable, "-m", "croplem_hf.cli"]


def run(capsys, *argv):
    """Run a command -> exit code, what it printed, and the lines of its own on stderr."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "Loading weights" not in err
    return code, out, [line for line in re.split(r"[\r\n]+", err) if line.startswith("croplem")]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Four patches of 32 px: two of both sensors, one of radar, one of optics."""
    return generate_sen12ms(tmp_path_factory.mktemp("tree"), scenes=2, patches_per_scene=3, size=32)


@pytest.fixture(scope="module")
def embedded(tree, tmp_path_factory):
    """The embeddings table of `tree`, and its index."""
    folder = tmp_path_factory.mktemp("embedded")
    assert main(["embed", str(tree), str(folder / "e.parquet"), "--quiet"]) == 0
    assert main(["index", str(folder / "e.parquet"), str(folder / "e.index")]) == 0
    return folder / "e.parquet", folder / "e.index"


def series(path, rows, dates=12, **columns):
    rng = np.random.default_rng(0)
    s2 = rng.integers(100, 6000, (rows, dates, 13)).astype(np.float32)
    s2[:, :, 10] = np.nan
    table = {
        "id": [f"r{k}" for k in range(rows)], "dates": [[f"2019-{k + 1:02d}-15" for k in range(dates)]] * rows,
        "s1": list(rng.normal(-14, 3, (rows, dates * 2)).astype(np.float32)), "s2": list(s2.reshape(rows, -1)),
    }  # fmt: skip
    pq.write_table(pa.table(table | columns), path)
    return path


# From imagery to similar places


def test_from_imagery_to_similar_places(tree, tmp_path, capsys):
    table, index, picture = tmp_path / "e.parquet", tmp_path / "e.index", tmp_path / "similar.png"
    code, out, err = run(capsys, "embed", tree, table)
    assert (code, err) == (0, []) and out == f"6 embeddings of 256 numbers in {table}\n"
    assert sorted(read_table(table).metadata["sensors"].to_pylist()) == ["s1", "s1+s2", "s1+s2", "s1+s2", "s1+s2", "s2"]
    assert run(capsys, "index", table, index) == (0, f"6 embeddings indexed in {index}\n", [])
    first, second = read_table(table).ids[:2]
    code, out, err = run(capsys, "similar", index, "--id", first, "--id", second, "-k", 3, "--json")
    rows = json.loads(out)["neighbours"]
    expected = [(query, rank) for query in (first, second) for rank in (1, 2, 3)]
    assert code == 0 and [(row["query"], row["rank"]) for row in rows] == expected
    assert all(row["id"] != row["query"] and row["height"] == 32 and row["crs"].startswith("EPSG:") for row in rows)
    scores = [row["score"] for row in rows[:3]]
    assert scores == sorted(scores, reverse=True) and -1 <= scores[2] and scores[0] <= 1
    code, out, err = run(capsys, "similar", index, "--id", first, "-k", 2, "--images", tree, "--picture", picture)
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["query", "rank", "id", "score", "region", "lon", "lat"]
    assert [line[:3] for line in lines[1:]] == [[first, str(row["rank"]), row["id"]] for row in rows[:2]]
    options = ["--where", "sensors=s2", "--where", "height=32", "--json"]
    code, out, err = run(capsys, "similar", index, "--id", first, *options)
    assert code == 0 and {row["sensors"] for row in json.loads(out)["neighbours"]} == {"s2"}
    for option, message in (("sensors", "must be COLUMN=VALUE"), ("height=tall", "cannot hold")):
        code, out, err = run(capsys, "similar", index, "--id", first, "--where", option)
        assert code == 1 and message in err[0]


@pytest.mark.parametrize(("what", "kind", "key"), [(0, "embeddings table", "weights_hash"), (1, "index", "patch_size")])
def test_info_of_what_was_made(embedded, capsys, what, kind, key):
    code, out, _ = run(capsys, "info", embedded[what])
    found = json.loads(out)
    assert code == 0 and (found["kind"], found["rows"]) == (kind, 6) and key in found and "lon" in found["columns"]


def test_info_of_the_library_and_a_checkpoint(capsys):
    code, out, _ = run(capsys, "info")
    found = json.loads(out)
    assert code == 0 and found["croplem_hf"] == __version__ and found["libraries"]["torch"]
    packaged = found["packaged_checkpoint"]
    assert packaged["name"] == "croplem/mae-s1s2" and packaged["weights_bytes"] > 1e5
    code, out, _ = run(capsys, "info", packaged["folder"])
    assert code == 0 and json.loads(out) == {"kind": "checkpoint"} | {k: packaged[k] for k in packaged if k != "name"}


def test_options_of_embed(tree, embedded, tmp_path, capsys):
    out = tmp_path / "e.parquet"
    options = ["--sensors", "s2", "--patch-size", "4", "--no-centre", "--device", "cpu", "--model", "croplem_hf_copy"]
    shutil.copytree(json.loads(run(capsys, "info")[1])["packaged_checkpoint"]["folder"], tmp_path / "croplem_hf_copy")
    options[-1] = str(tmp_path / "croplem_hf_copy")
    assert run(capsys, "embed", tree, out, *options, "--quiet")[0] == 0
    table, other = read_table(out), read_table(embedded[0])
    assert len(table) == 5 and set(table.metadata["sensors"].to_pylist()) == {"s2"}
    assert (table.info["sensors"], table.info["patch_size"], table.info["centred"]) == (["s2"], 4, False)
    assert table.info["model"] == options[-1] and table.info["weights_hash"] == other.info["weights_hash"]
    assert table.settings != other.settings


def test_int8_and_fewer_numbers_go_all_the_way(tree, embedded, tmp_path, capsys):
    out = tmp_path / "small.parquet"
    code, said, err = run(capsys, "embed", tree, out, "--precision", "int8", "--truncate-dim", 100, "--quiet")
    assert (code, err) == (0, []) and said == f"6 embeddings of 100 numbers in {out}\n"
    small, whole = read_table(out), read_table(embedded[0])
    assert np.abs(small.vectors - whole.vectors[:, :100]).max() < 0.05
    found = json.loads(run(capsys, "info", out)[1])
    assert (found["precision"], found["truncate_dim"], found["dim"], found["rows"]) == ("int8", 100, 100, 6)
    assert "embedding_scale" not in found["columns"]
    code, said, _ = run(capsys, "index", out, tmp_path / "small.index")
    assert code == 0 and json.loads(run(capsys, "info", tmp_path / "small.index")[1])["truncate_dim"] == 100
    code, said, _ = run(capsys, "similar", tmp_path / "small.index", "--id", small.ids[0], "-k", 3, "--json")
    rows = json.loads(said)["neighbours"]
    assert code == 0 and len(rows) == 3 and "embedding_scale" not in rows[0]
    index = EmbeddingIndex.load(tmp_path / "small.index")
    assert index.query(small, k=1).ids == [[name] for name in small.ids]
    with pytest.raises(CheckpointError, match="differ from the index in truncate_dim"):
        index.query(whole)
    head = fit_head(small, ["a", "b"] * 3)
    with pytest.raises(CheckpointError, match="differ from those of the head in truncate_dim"):
        head.check_settings(whole.info)
    head.check_settings(small.info | {"precision": "float32"})
    code, _, err = run(capsys, "embed", tree, out, "--truncate-dim", 300, "--quiet")
    assert code == 1 and err == ["croplem embed: truncate_dim must be a whole number from 1 to 256, or None; found 300"]
    for option, value in (("--precision", "int4"), ("--truncate-dim", "0"), ("--pooling", "dense"), ("--wait", "x")):
        assert run(capsys, "embed", tree, out, option, value)[0] == 2


def test_a_table_at_out_is_made_anew(tree, tmp_path, capsys):
    out = tmp_path / "e.parquet"
    run(capsys, "embed", tree, out, "--sensors", "s1", "--quiet")
    assert len(read_table(out)) == 5
    run(capsys, "embed", tree, out, "--quiet")
    assert len(read_table(out)) == 6
    main_help = run(capsys, "embed", "--help")[1]
    assert "table of the same source that already lies at OUT is made anew and replaced" in " ".join(main_help.split())


def test_a_table_of_another_source_is_not_replaced_without_a_word(tree, tmp_path, capsys):
    out, other = tmp_path / "e.parquet", series(tmp_path / "s.parquet", 3)
    again = shutil.copytree(tree, tmp_path / "copy")
    assert run(capsys, "embed", tree, out, "--quiet")[0] == 0
    before = out.read_bytes()
    # Other ids; and the same ids from another folder.
    for source in (other, again):
        code, _, err = run(capsys, "embed", source, out, "--quiet")
        assert code == 1 and out.read_bytes() == before and not (tmp_path / "e.parquet.parts").exists()
        assert "holds the embeddings of another source, such as 'ROIs" in err[0] and "--overwrite" in err[0]
    assert run(capsys, "embed", other, out, "--quiet", "--overwrite")[0] == 0
    assert read_table(out).ids == ["r0", "r1", "r2"]
    # What a foreign table was made of is told by its ids alone.
    foreign = pq.read_table(out).replace_schema_metadata(None)
    pq.write_table(foreign, out)
    assert run(capsys, "embed", tree, out, "--quiet")[0] == 1
    assert run(capsys, "embed", other, out, "--quiet")[0] == 0


def test_an_unfinished_table_of_another_source_is_not_gone_on_with(tree, tmp_path, capsys, monkeypatch):
    out, again = tmp_path / "e.parquet", shutil.copytree(tree, tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr("croplem_hf.table_writer.TableWriter.finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["embed", str(tree), str(out), "--quiet"])
    capsys.readouterr()
    code, _, err = run(capsys, "embed", again, out, "--quiet")
    assert code == 1 and "holds an unfinished table that differs in where the source lies; delete" in err[0]
    assert run(capsys, "embed", tree, out, "--quiet")[0] == 0 and len(read_table(out)) == 6


def test_skipped_items_are_told_once(tmp_path, capsys, caplog):
    tree = generate_sen12ms(tmp_path / "tree", scenes=1, patches_per_scene=4, size=16)
    next(tree.rglob("*_s2_*.tif")).write_bytes(b"")
    assert main(["embed", str(tree), str(tmp_path / "e.parquet"), "--quiet"]) == 0
    assert caplog.text.count("skipped.csv") == 1 and "skipped.csv" not in capsys.readouterr().out


def test_a_map_of_what_is_no_scene(tree, tmp_path, capsys):
    code, _, err = run(capsys, "map", tree, tmp_path / "m.tif", "--embeddings")
    assert code == 1 and f"{tree}: is no scene; a scene is a folder with metadata.csv" in err[0]


# Mistakes


def spoil(tree, patch, kind, how):
    """Damage one file of a patch of a tree."""
    season, scene, number = re.fullmatch(r"(ROIs\d+_[a-z]+)_(\w+)_p(\d+)", patch).groups()
    path = tree / season / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p{number}.tif"
    values, info = read_geotiff(path)
    grid = {"crs": info.crs, "transform": info.transform}
    if how == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "empty file":
        path.write_bytes(b"")
    elif how == "wrong band count":
        write_geotiff(path, values[:12], **grid)
    elif how == "all NaN":
        write_geotiff(path, np.full_like(values, np.nan), **grid)
    elif how == "another grid":
        a, b, c, d, e, f = info.transform
        write_geotiff(path, values, crs=info.crs, transform=(a, b, c + 160, d, e, f))
    return path


SPOILT = [
    ("s2", "cut short", "the file is cut short or damaged, fetch it again"),
    ("s2", "empty file", "the file is empty; fetch it again"),
    ("s2", "wrong band count", "expected 13 bands, found 12"),
    ("s1", "all NaN", r"no valid radar pixel \(all NaN or nodata\)"),
    ("s1", "another grid", "different grids: .*Bring both to one grid"),
]


@pytest.mark.parametrize(("kind", "how", "message"), SPOILT)
def test_a_bad_patch_alone_is_one_clear_line(tree, tmp_path, capsys, kind, how, message):
    patch = "ROIs1158_spring_1_p30"
    for sensor in ("s1", "s2"):
        source = spoil(tree, patch, sensor, None)
        target = tmp_path / "tree" / source.relative_to(tree)
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
    path = spoil(tmp_path / "tree", patch, kind, how)
    code, out, err = run(capsys, "embed", tmp_path / "tree", tmp_path / "e.parquet")
    assert code == 1 and out == ""
    [line] = err
    assert re.match(f"croplem embed: none of 1 items could be embedded, .*; the first: .*{message}", line)
    assert str(path) in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet.skipped.csv", "tree"]


def test_good_patches_are_kept_where_others_are_bad(tmp_path, capsys):
    tree = generate_sen12ms(tmp_path / "tree", scenes=2, patches_per_scene=5, size=16)
    whole = tmp_path / "whole.parquet"
    run(capsys, "embed", tree, whole, "--quiet")
    everything = read_table(whole)
    both = [i for i, s in zip(everything.ids, everything.metadata["sensors"].to_pylist(), strict=True) if s == "s1+s2"]
    spoilt = {patch: (kind, how, message) for patch, (kind, how, message) in zip(both, SPOILT, strict=False)}
    for patch, (kind, how, _) in spoilt.items():
        spoil(tree, patch, kind, how)
    code, out, err = run(capsys, "embed", tree, tmp_path / "e.parquet")
    assert (code, err) == (0, []) and "; 5 skipped" in out
    table = read_table(tmp_path / "e.parquet")
    good = [row for row, name in enumerate(everything.ids) if name not in spoilt]
    assert table.ids == [everything.ids[row] for row in good] and table.info["skipped"] == 5
    np.testing.assert_allclose(table.vectors, everything.vectors[good], rtol=0, atol=1e-5)
    with open(tmp_path / "e.parquet.skipped.csv", newline="") as handle:
        listed = {row["id"]: row["reason"] for row in csv.DictReader(handle)}
    assert list(listed) == [name for name in everything.ids if name in spoilt]
    for patch, reason in listed.items():
        assert re.search(spoilt[patch][2], reason)


def test_wrong_usage(tree, capsys):
    for argv, message in [
        (["harvest"], "croplem: error: argument VERB: invalid choice: 'harvest'"),
        (["embed"], "croplem embed: error: the following arguments are required: SRC, OUT"),
        (["embed", tree, "o", "--patch-size", "17"], "argument --patch-size: '17' is not a whole number from 1 to 16"),
        (["embed", tree, "o", "--patch-size", "0"], "argument --patch-size: '0' is not a whole number from 1 to 16"),
        (["embed", tree, "o", "--patch-size", "x"], "argument --patch-size: 'x' is not a whole number from 1 to 16"),
        (["embed", tree, "o", "--sensors", "s3"], "argument --sensors: 's3' is not s1, s2 or s1,s2"),
        (["similar", "i"], "one of the arguments --id --lonlat --field --image is required"),
    ]:
        code, out, err = run(capsys, *argv)
        assert (code, out, len(err)) == (2, "", 1) and message in err[0]


def test_one_clear_line_for_every_mistake(tree, embedded, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, index = embedded
    known = read_table(table).ids[0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    good = series("good.parquet", 2)
    columns = pq.read_table(good)
    for name in ("id", "dates"):
        pq.write_table(columns.drop_columns([name]), f"without_{name}.parquet")
    pq.write_table(columns.drop_columns(["s1", "s2"]), "without_s1_s2.parquet")
    pq.write_table(read_table(table).metadata, "without_embedding.parquet")
    broken = tmp_path / "broken.index"
    shutil.copytree(index, broken)
    os.truncate(broken / "vectors.npy", 10)
    for argv, message in [
        (["embed", "nothing", "o.parquet"], "nothing: no such file or folder; accepted are"),
        (["embed", "empty", "o.parquet"], "empty: no SEN12MS patch in this folder; expected files such as"),
        (["embed", "empty", "o.parquet"], "your own rasters need a metadata.csv there (docs/imagery.md)"),
        (["embed", "notes.txt", "o.parquet"], "notes.txt: cannot be read as a source"),
        (["embed", "without_id.parquet", "o.parquet"], "without_id.parquet: column 'id' is missing"),
        (["embed", "without_dates.parquet", "o.parquet"], "column 'dates' is missing; found id, s1, s2"),
        (["embed", "without_s1_s2.parquet", "o.parquet"], "columns s1 and s2 are both missing"),
        (["embed", tree, "o.parquet", "--s2-level", "L2A"], "optics of SEN12MSFolder are level L1C"),
        (["embed", good, good], "good.parquet: exists and is no embeddings table; give another name"),
        (["embed", good, "empty"], "empty: is a folder; give the name of a .parquet file"),
        (["embed", good, "o.parquet", "--model", "./nothing"], "./nothing: no such folder"),
        (["embed", good, "o.parquet", "--model", "empty"], "empty: no config.json in this folder"),
        (["embed", good, "o.parquet", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["index", "nothing.parquet", "i"], "nothing.parquet: no such embeddings table"),
        (["index", "without_embedding.parquet", "i"], "without_embedding.parquet: no column 'id'"),
        (["index", good, "i"], "good.parquet: no column 'embedding'"),
        (["index", table, "."], "exists and is no index, or holds other files too; give another name"),
        (["similar", "nothing", "--id", "x"], "nothing: no index here (no index.json)"),
        (["similar", broken, "--id", known], "vectors.npy is damaged or foreign (checksum)"),
        (["similar", index, "--id", "x"], "the index holds no 'x'; ids look like"),
        (["similar", index, "--id", known, "-k", "0"], "k must be at least 1, found 0"),
        (["similar", index, "--id", known, "--picture", "p.png"], "--picture needs --images SRC"),
        (["similar", index, "--id", known, "--picture", "p.png", "--images", good], "the images hold no"),
        (["info", "nothing"], "nothing: no such file or folder"),
        (["info", "empty"], "empty: neither an embeddings table, an index nor a checkpoint"),
        (["info", "notes.txt"], "notes.txt: not a readable Parquet file"),
    ]:
        before = {p: p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()}
        code, out, err = run(capsys, *argv)
        assert (code, out, len(err)) == (1, "", 1), (argv, code, out, err)
        assert err[0].startswith(f"croplem {argv[0]}: ") and message in err[0], (argv, err)
        assert {p: p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()} == before, argv


def test_debug_shows_the_trace(capsys):
    with pytest.raises(ValueError, match="no such file or folder"):
        main(["embed", "/nothing", "o.parquet", "--debug"])


# Long work in a process of its own


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_and_an_interrupted_run_lose_and_double_nothing(tmp_path):
    rows = 8192  # sixteen parts: the signal comes in time on a busy machine too
    source, out = series(tmp_path / "series.parquet", rows, dates=6, block=list(range(rows))), tmp_path / "e.parquet"
    parts = tmp_path / "e.parquet.parts"
    command, env = [*CROPLEM, "embed", str(source), str(out)], os.environ | {"OMP_NUM_THREADS": "1"}

    def finished():
        return len(list(parts.glob("part-*.parquet")))

    errors, written = [], []
    for number, stop in enumerate((signal.SIGKILL, signal.SIGINT)):
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wait_for(lambda number=number: finished() > number, process)
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
        assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[stop]
        assert not out.exists() and 0 < finished() < 16
        errors.append(re.split(r"[\r\n]+", err.decode()))
        written.append(sorted((path.name, path.stat().st_mtime_ns) for path in parts.glob("part-*.parquet")))
    assert set(written[0]) < set(written[1]), "the second run did the work of the first anew"
    assert errors[1][-2] == "croplem embed: interrupted; the same command goes on where it stopped"

    assert main(["embed", str(source), str(out), "--quiet"]) == 0
    table = read_table(out)
    assert table.ids == [f"r{k}" for k in range(rows)] and table.metadata["block"].to_pylist() == list(range(rows))
    assert main(["embed", str(source), str(tmp_path / "whole.parquet"), "--quiet"]) == 0
    np.testing.assert_allclose(table.vectors, read_table(tmp_path / "whole.parquet").vectors, rtol=0, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "series.parquet", "whole.parquet"]

    # Lines of the log stand alone, and loading shows no bar.
    for lines in errors:
        assert any("embedding series" in line for line in lines)
        [line] = [line for line in lines if "optical rows without B10 are taken as level L2A" in line]
        assert line.strip().startswith(str(source)) and "%|" not in line
        assert not any("Loading weights" in line for line in lines)


def test_a_reader_that_leaves_early_is_no_error(embedded):
    _, index = embedded
    first = read_table(embedded[0]).ids[0]
    command = [*CROPLEM, "similar", str(index), "--id", first]
    # Buffered, as users have it: the pipe breaks when Python flushes.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)
