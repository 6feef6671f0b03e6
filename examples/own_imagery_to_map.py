"""Own GeoTIFFs and labelled points -> a head -> a map of cropland -> hectares with their error.

A head learns what 80 m around a labelled point look like, and the map asks it everywhere. Counting the pixels of a map
gives biased areas; labels of places drawn at random over the map correct that and give the error.

As it stands it invents a scene and takes labels from its own truth; some 15 s on one core. For your own data:
--scene, a folder with the metadata.csv of its rasters (docs/imagery.md); --points, a CSV of labelled points (columns
lon,lat,label); --sample, another of points that were drawn at random over the scene, for the areas alone.

    python examples/own_imagery_to_map.py [--scene my_scene/ --points points.csv --sample sample.csv] [--out own-map]
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import rowcol
from rasterio.warp import transform

from croplem_hf import Embedder, fit_head, generate_scene, map_scene, open_scene
from croplem_hf.evaluation.map_area import area_lines, map_area
from croplem_hf.labels import read_columns

SIDE, PATCH_SIZE = 8, 2


class Windows:
    """Squares of the scene around the points as a source to embed."""

    kind, unit = "windows", "patch"

    def __init__(self, scene, lon: list[str], lat: list[str]):
        x, y = transform("EPSG:4326", scene.crs, [float(v) for v in lon], [float(v) for v in lat])
        places = zip(*rowcol(rasterio.Affine(*scene.transform), x, y), strict=True)
        self.corners = [(int(row) - SIDE // 2, int(column) - SIDE // 2) for row, column in places]
        self.scene, self.ids = scene, [f"point{number}" for number in range(len(lon))]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return self.scene.read(*self.corners[i], SIDE, SIDE) | {"id": self.ids[i]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", type=Path, help="folder with metadata.csv (default: an invented one)")
    parser.add_argument("--points", type=Path, help="labelled points to learn from")
    parser.add_argument("--sample", type=Path, help="labelled points drawn at random, for the areas")
    parser.add_argument("--out", type=Path, default=Path("own-map"), help="folder to write")
    parser.add_argument("--size", type=int, default=192, help="pixels along a side of the invented scene")
    args = parser.parse_args()
    if len({args.scene is None, args.points is None, args.sample is None}) == 2:
        parser.error("--scene, --points and --sample go together")
    if args.scene is None:
        args.scene = generate_scene(args.out / "scene", "ukraine", size=args.size, clouds=0.05)
        args.points = invent_labels(args.scene, args.out / "points.csv", 150, seed=0)
        args.sample = invent_labels(args.scene, args.out / "sample.csv", 200, seed=1)

    scene, embedder = open_scene(args.scene), Embedder.from_pretrained("croplem/mae-s1s2")
    points = read_columns(args.points, ("lon", "lat", "label"))
    table = embedder.embed_source(
        Windows(scene, points["lon"], points["lat"]), args.out / "points.parquet", patch_size=PATCH_SIZE
    )
    label = dict(zip((f"point{number}" for number in range(len(points["label"]))), points["label"], strict=True))
    head = fit_head(table, [label[name] for name in table.ids])
    head.save(args.out / "cropland.head")
    print(f"head on {len(table)} points: {dict(zip(head.classes_.tolist(), head.n_labels_.tolist(), strict=True))}")
    cropland = map_scene(scene, embedder, head, args.out / "map.tif", stride=4)
    print(f"map of {scene.height} x {scene.width} pixels in {cropland}")
    print("\n".join(area_lines(map_area(cropland, args.sample))))


def invent_labels(root: Path, out: Path, count: int, seed: int) -> Path:
    """Points at random over the invented scene with what is really there."""
    rng = np.random.default_rng(seed)
    with rasterio.open(root / "cropland.tif") as raster:
        truth = raster.read(1)
        rows, columns = rng.integers(SIDE, np.array(truth.shape) - SIDE, (count, 2)).T
        lon, lat = transform(raster.crs, "EPSG:4326", *raster.xy(rows, columns))
    with open(out, "w", newline="") as handle:
        labels = np.where(truth[rows, columns] == 1, "cropland", "other")
        csv.writer(handle).writerows([("lon", "lat", "label"), *zip(lon, lat, labels, strict=True)])
    return out


if __name__ == "__main__":
    main()
