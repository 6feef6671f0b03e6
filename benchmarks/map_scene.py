"""How fast a large scene is mapped, in how much memory: classes by a head, and dense embeddings, one thread.

    OMP_NUM_THREADS=1 python benchmarks/map_scene.py --size 2048 --json map_scene.json
    OMP_NUM_THREADS=1 python benchmarks/map_scene.py --size 10980 --only embeddings_16

The scene is invented: ground of 1,024 px, mirrored and repeated, radar and optics of one date or of twelve, as tiled
GeoTIFF, written and mapped in tiles. Heads are fitted on random labels of windows of the scene: what a class means does
not matter here. Each map is made in a process of its own, whose own peak of resident memory is reported; reading is
all that `Scene.arrays` takes, computing is the encoder's forward pass, and the rest is standardising, blending and
writing. All but `wall_s` is CPU time, so that other work on the machine does not count.

Cases: `embeddings_16` and `embeddings_8`, dense embeddings at that patch size; `patches`, a head on patches of 128 px
at patch size 16, windows every 64 px; `series_1`, a head on pixels, one date of each sensor; `series_12`, twelve.
Pixels are slow: their maps are made of a scene of at most --pixels px, and `whole_tile_hours` extrapolates each case to
10,980 x 10,980 px, linearly in time of the CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import rasterio
import torch
from rasterio.windows import Window

from croplem_hf import Embedder, EmbeddingsTable, fit_head, map_embeddings, map_scene, open_scene
from croplem_hf.data.folder import Scene
from croplem_hf.data.landscape import PLACES, make_scene

CASES = ("embeddings_16", "embeddings_8", "patches", "series_1", "series_12")
WHOLE = 10980
GROUND = 1024


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="croplem/mae-s1s2")
    parser.add_argument("--size", type=int, default=1024, help="pixels along a side (default 1024)")
    parser.add_argument("--pixels", type=int, default=192, help="the same for heads on pixels, at most (default 192)")
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure(Path(args.one), args.only[0], args.model)))
        return
    figures = {"size": args.size}
    with tempfile.TemporaryDirectory() as folder:
        for case in args.only:
            size = min(args.size, args.pixels) if case.startswith("series") else args.size
            scene = Path(folder, f"{size}_{case == 'series_12'}")
            if not scene.exists():
                write_scene(scene, size, dates=12 if case == "series_12" else 1)
            command = [sys.executable, __file__, "--one", str(scene), "--only", case, "--model", args.model]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures[case] = json.loads(done.stdout.splitlines()[-1])
            print(case, figures[case], file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures, indent=1))


def write_scene(folder: Path, size: int, dates: int) -> None:
    """S1 and S2 of `dates` months, in tiles, from invented ground that is mirrored and repeated."""
    folder.mkdir(parents=True)
    ground = make_scene(PLACES["france"], (GROUND, GROUND), np.random.default_rng(0))
    grid = {
        "driver": "GTiff", "height": size, "width": size, "crs": "EPSG:32631", "tiled": True, "blockxsize": 512,
        "blockysize": 512, "transform": rasterio.Affine(10, 0, 399960, 0, -10, 5400000), "compress": "deflate",
        "zlevel": 1, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    lines = ["path,sensor,date,level,units,offset"]
    for month in range(1, dates + 1):
        for sensor in ("s1", "s2"):
            name, layer = f"{sensor}_{month:02d}.tif", ground[sensor]
            with rasterio.open(folder / name, "w", count=len(layer), dtype=layer.dtype, **grid) as raster:
                for row in range(0, size, GROUND):
                    for column in range(0, size, GROUND):
                        part = layer[:, :: 1 - row // GROUND % 2 * 2, :: 1 - column // GROUND % 2 * 2]
                        part = part[:, : size - row, : size - column]
                        raster.write(part, window=Window(column, row, part.shape[2], part.shape[1]))
            how = "L1C,dn,0" if sensor == "s2" else ",db,"
            lines.append(f"{name},{sensor},2019-{month:02d}-15,{how}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def measure(folder: Path, case: str, model: str) -> dict:
    """Make one map in this process."""
    torch.set_num_threads(1)
    embedder, scene, spent = Embedder.from_pretrained(model, device="cpu"), open_scene(folder), {}
    timed(Scene, "arrays", spent, "reading")
    timed(embedder.model, "forward", spent, "computing")
    head = None if case.startswith("embeddings") else random_head(scene, embedder, case)
    spent.clear()
    before, begin, wall = peak_mb(), time.process_time(), time.monotonic()
    if case.startswith("embeddings"):
        map_embeddings(scene, embedder, folder / f"{case}.tif", patch_size=int(case[11:]), progress=False)
    else:
        stride = 64 if case == "patches" else None
        map_scene(scene, embedder, head, folder / f"{case}.tif", stride=stride, progress=False)
    seconds = time.process_time() - begin
    rate = scene.height * scene.width / seconds
    return {
        "pixels": f"{scene.height} x {scene.width}", "cpu_s": round(seconds, 1),
        "wall_s": round(time.monotonic() - wall, 1), "pixels_per_cpu_s": round(rate),
        "reading_percent": round(100 * spent["reading"] / seconds, 1),
        "computing_percent": round(100 * spent["computing"] / seconds, 1),
        "peak_mb": round(peak_mb()), "peak_mb_before": round(before),
        "file_mb": round((folder / f"{case}.tif").stat().st_size / 2**20, 1),
        "whole_tile_hours": round(WHOLE**2 / rate / 3600, 2),
    }  # fmt: skip


def timed(owner, name: str, spent: dict, key: str) -> None:
    """Count the seconds of a method."""
    real = getattr(owner, name)

    def wrapped(*args, **kwargs):
        begin = time.process_time()
        try:
            return real(*args, **kwargs)
        finally:
            spent[key] = spent.get(key, 0) + time.process_time() - begin

    setattr(owner, name, wrapped)


def random_head(scene: Scene, embedder: Embedder, case: str):
    """A head of three classes on forty windows of the scene."""
    rng = np.random.default_rng(0)
    side, p = (128, 16) if case == "patches" else (1, None)
    samples = [scene.read(*map(int, rng.integers(0, scene.height - side + 1, 2)), side, side) for _ in range(40)]
    unit = "patch" if case == "patches" else "series"
    table = EmbeddingsTable(
        [str(n) for n in range(40)], embedder.encode(samples, patch_size=p),
        pa.table({"height": [side] * 40, "width": [side] * 40, "gsd": [10.0] * 40}), embedder.info(unit, patch_size=p),
    )  # fmt: skip
    return fit_head(table, [("maize", "wheat", "other")[n % 3] for n in range(40)])


def peak_mb() -> float:
    # Not getrusage: its peak includes the parent's at the fork.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
