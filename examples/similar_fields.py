"""Fields like a known one: polygons over a scene -> embeddings -> index -> nearest neighbours and a sheet of pictures.

As it stands it invents a scene and draws the outlines of its fields; takes some 20 s on one core.
For your own data: --scene, a folder with the metadata.csv of its rasters, and --fields, a file of polygons (.geojson,
.gpkg, .shp or .parquet; column `id`). Needs croplem-hf[geo].

    python examples/similar_fields.py [--scene my_scene/ --fields fields.gpkg] [--out similar-fields]
"""

import argparse
import json
from pathlib import Path

import numpy as np
from rasterio.features import shapes
from rasterio.warp import transform_geom
from scipy import ndimage

from croplem_hf import Embedder, EmbeddingIndex, SceneFields, embed_fields, generate_scene, open_scene, read_polygons
from croplem_hf.pictures import draw_similar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", type=Path, help="folder with metadata.csv (default: an invented one)")
    parser.add_argument("--fields", type=Path, help="polygons of fields; needed with --scene")
    parser.add_argument("--out", type=Path, default=Path("similar-fields"), help="folder to write")
    parser.add_argument("--size", type=int, default=384, help="pixels along a side of the invented scene")
    args = parser.parse_args()
    if (args.scene is None) != (args.fields is None):
        parser.error("--scene and --fields go together")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.scene is None:
        args.scene = generate_scene(args.out / "scene", "france", size=args.size)
        args.fields = outline_fields(args.scene, args.out / "fields.geojson")

    scene, polygons = open_scene(args.scene), read_polygons(args.fields)
    embedder = Embedder.from_pretrained("croplem/mae-s1s2")
    # Every field from its own pixels; what cannot be embedded stands in fields.parquet.skipped.csv with the reason.
    table = embed_fields(scene, polygons, embedder, args.out / "fields.parquet")
    index = EmbeddingIndex.build(table)
    index.save(args.out / "fields.index")

    queries = [table.ids[row] for row in np.linspace(0, len(table) - 1, 6)[1:-1].astype(int)]
    found = index.query(ids=queries, k=6)
    for query, ids, scores in zip(queries, found.ids, found.scores, strict=True):
        likes = ", ".join(f"{name} {score:.2f}" for name, score in zip(ids, scores, strict=True))
        print(f"like {query}: {likes}")
    draw_similar(SceneFields(scene, polygons), queries, found, args.out / "similar.png")
    print(f"{len(table)} fields; picture in {args.out / 'similar.png'}")


def outline_fields(root: Path, out: Path) -> Path:
    """Outlines of invented fields: cropland within which the greenness hardly changes."""
    scene = open_scene(root)
    red, near = (scene.read()["s2"][0, band].astype(float) for band in (3, 7))
    ndvi = ndimage.gaussian_filter((near - red) / (near + red), 1)
    even = ndimage.gaussian_gradient_magnitude(ndvi, 1) < 0.02
    numbers, _ = ndimage.label(ndimage.binary_opening(even & (ndvi > 0.1), iterations=2))
    pixels = np.bincount(numbers.ravel())[numbers]
    keep = (numbers > 0) & (pixels >= 60) & (pixels <= 1200)
    features = []
    for geometry, number in shapes(numbers.astype(np.int32), mask=keep, transform=scene.transform):
        geometry = transform_geom(scene.crs, "EPSG:4326", geometry)
        features.append({"type": "Feature", "properties": {"id": f"field{number:.0f}"}, "geometry": geometry})
    out.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return out


if __name__ == "__main__":
    main()
