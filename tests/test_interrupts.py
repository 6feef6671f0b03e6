"""Ctrl-C during any verb: one line, exit code 130, and nothing half under its final name."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from croplem_hf import generate_scene, generate_sen12ms, read_table
from croplem_hf.cli import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with a tree, a scene, a table of two classes, its index, and a head on patches of 32 px."""
    folder = tmp_path_factory.mktemp("made")
    tree = generate_sen12ms(folder / "tree", scenes=2, patches_per_scene=6, size=32)
    generate_scene(folder / "scene", "iran", size=48)
    assert main(["embed", str(tree), str(folder / "t.parquet"), "--quiet"]) == 0
    assert main(["index", str(folder / "t.parquet"), str(folder / "i")]) == 0
    rows = [f"{name},{'ab'[k % 2]}" for k, name in enumerate(read_table(folder / "t.parquet").ids)]
    (folder / "labels.csv").write_text("\n".join(["id,label", *rows, ""]))
    assert main(["fit", str(folder / "t.parquet"), "--labels", str(folder / "labels.csv"), str(folder / "h")]) == 0
    n, vectors = 40, np.random.default_rng(0).normal(size=40 * 8).astype(np.float32)
    columns = {"id": [f"p{k}" for k in range(n)], "label": ["a", "b"] * (n // 2)}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), 8)
    pq.write_table(pa.table(columns), folder / "e.parquet")
    return folder


# Command, in which OUT and MADE stand for folders, and what is being done when the signal comes.
INTERRUPTED = {
    "sample": (["data", "sample", "OUT/x"], "croplem_hf.data.synthetic.write_geotiff"),
    "build": (["data", "build", "MADE/tree", "OUT/x", "--workers", "1"], "croplem_hf.data.build.write_shard"),
    "check": (["data", "check", "MADE/tree", "--workers", "1", "--out", "OUT/x.parquet"],
              "pyarrow.parquet.write_table"),
    "embed": (["embed", "MADE/tree", "OUT/x.parquet"], "croplem_hf.embedding.Embedder.encode"),
    "index": (["index", "MADE/t.parquet", "OUT/x"], "croplem_hf.index_files._sha256"),
    "similar": (["similar", "MADE/i", "--image", "MADE/tree"], "croplem_hf.index.EmbeddingIndex.query"),
    "suggest": (["suggest", "MADE/t.parquet", "--state", "OUT/s", "--out", "OUT/x.csv"],
                "croplem_hf.active.sheets._is_place"),
    "fit": (["fit", "MADE/e.parquet", "--label-column", "label", "OUT/x"], "croplem_hf.heads.files.save_file"),
    "map": (["map", "MADE/scene", "--head", "MADE/h", "OUT/x.tif"], "croplem_hf.mapping.classes.blend"),
    "embeddings": (["map", "MADE/scene", "OUT/x.tif", "--embeddings"], "croplem_hf.mapping.tokens.Tokens.read"),
    "evaluate": (["evaluate", "MADE/e.parquet", "--label-column", "label", "--out", "OUT/x", "--seeds", "0"],
                 "croplem_hf.evaluation.run.neighbours"),
    "demo": (["demo", "--out", "OUT/x"], "croplem_hf.demo.generate_sen12ms"),
}  # fmt: skip


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_verb_says_so_and_leaves_nothing_half(made, tmp_path, capsys, monkeypatch, name):
    argv, busy = INTERRUPTED[name]
    argv = [word.replace("OUT", str(tmp_path)).replace("MADE", str(made)) for word in argv]
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(busy, interrupted)
    assert main(argv) == 130 and calls
    shown = capsys.readouterr()
    verb = " ".join(argv[:2]) if argv[0] == "data" else argv[0]
    resumes = "; the same command goes on where it stopped" * (name in ("build", "embed", "map", "embeddings", "demo"))
    assert shown.out == "" and shown.err.splitlines()[-1] == f"croplem {verb}: interrupted{resumes}"
    # What goes on stays in folders of parts, or in the folder of a build or a demo, which they know as unfinished.
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"embed": {"x.parquet.parts"}, "map": {"x.tif.parts"}, "embeddings": {"x.tif.parts"},
                    "build": {"x"}, "demo": {"x"}}.get(name, set())  # fmt: skip


@pytest.mark.slow  # processes that import all that a reader needs
@pytest.mark.parametrize("seconds", [0, 0.3, 0.7, 1.2])
def test_workers_that_just_begin_print_no_trace(tmp_path, seconds):
    tree = generate_sen12ms(tmp_path / "tree", scenes=8, patches_per_scene=32, size=128)
    command = ["-m", "croplem_hf.cli", "data", "build", str(tree), str(tmp_path / "x"), "--workers", "2"]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, start_new_session=True)
    # Machines differ in how long imports take: workers are started once the plan is written.
    while not (tmp_path / "x/.build/plan.json").is_file() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # Killed by the signal itself, where it came while a module of C was running Python: 130 in a shell, too.
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in err
    assert "croplem data build: interrupted; the same command goes on where it stopped" in err.splitlines()
