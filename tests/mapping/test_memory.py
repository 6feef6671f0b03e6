"""Memory of a map does not follow the size of its scene."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

SCRIPT = """
import sys
from pathlib import Path
import torch
from mapping_scenes import make_head, tiny_embedder
from croplem_hf import map_embeddings, map_scene, open_scene
from croplem_hf.mapping import block

torch.set_num_threads(1)
folder, what = Path(sys.argv[1]), sys.argv[2]
block.BLOCK_VALUES = 2**21
embedder, scene = tiny_embedder(), open_scene(folder)
if what == "classes":
    map_scene(scene, embedder, make_head(embedder, "patch", 64, 64, patch_size=16), folder / "m.tif", stride=64,
              tile=512, progress=False)
else:
    map_embeddings(scene, embedder, folder / "m.tif", patch_size=16, window=32, tile=32, progress=False)
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def write_scene(folder: Path, size: int) -> None:
    """Optics of one date as bands that are written row by row of tiles."""
    folder.mkdir()
    grid = {"driver": "GTiff", "height": size, "width": size, "tiled": True, "blockxsize": 512, "blockysize": 512}
    grid |= {"crs": "EPSG:32737", "transform": rasterio.Affine(10, 0, 375410, 0, -10, 8116740)}
    part = np.random.default_rng(0).integers(100, 4000, (13, 512, size)).astype(np.uint16)
    with rasterio.open(folder / "s2.tif", "w", count=13, dtype="uint16", **grid) as raster:
        for row in range(0, size, 512):
            raster.write(part[:, : size - row], window=Window(0, row, size, min(512, size - row)))
    (folder / "metadata.csv").write_text("path,sensor,date,level,units,offset\ns2.tif,s2,2020-02-10,L1C,dn,0\n")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("what", ["classes", "embeddings"])
def test_a_scene_six_times_as_large_takes_no_more_memory(tmp_path, what):
    peaks = []
    for size in (1024, 2560):
        write_scene(tmp_path / str(size), size)
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / str(size)), what]
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
        environment = {"PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1", "GDAL_CACHEMAX": "32", "PATH": ""}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        peaks.append(int(done.stdout.split()[-1]))
    # The larger scene has 143 MB of pixels more, and twice as many as floats.
    assert peaks[1] < peaks[0] + 40
