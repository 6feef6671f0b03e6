"""A map whose process is killed goes on with its finished tiles."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mapping_scenes import make_scene, read, tiny_embedder

from croplem_hf.mapping import map_embeddings
from croplem_hf.mapping.tokens import Tokens

SCRIPT = """
import sys
from mapping_scenes import tiny_embedder
from croplem_hf import map_embeddings, open_scene

map_embeddings(open_scene(sys.argv[1]), tiny_embedder(), sys.argv[1] + "/m.tif", patch_size=1, tile=8, progress=False)
"""


@pytest.mark.slow
def test_a_killed_map_goes_on_with_its_finished_tiles(tmp_path, monkeypatch):
    scene = make_scene(tmp_path, 64, 64)
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "PATH": ""}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment)
    parts, deadline = tmp_path / "m.tif.parts", time.monotonic() + 300
    while len(list(parts.glob("tile-*.tif"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("tile-*.tif")}
    assert 3 <= len(finished) < 64 and not (tmp_path / "m.tif").exists()
    real, calls = Tokens.read, []
    monkeypatch.setattr(Tokens, "read", lambda *args, **kwargs: calls.append(args[1]) or real(*args, **kwargs))
    options = {"patch_size": 1, "tile": 8, "progress": False}
    found = read(map_embeddings(scene, tiny_embedder(), tmp_path / "m.tif", **options))
    assert len(calls) == 64 - len(finished)
    want = read(map_embeddings(scene, tiny_embedder(), tmp_path / "whole.tif", **options))
    # Another process may sum in another order, which a rounding to bytes can show.
    assert found.shape == (16, 64, 64) and np.abs(found.astype(int) - want).max() <= 1
    assert not parts.exists()
