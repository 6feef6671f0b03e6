"""How far the embedding of a field moves when fewer tokens see it: pixels on a lattice against larger patches.

    python benchmarks/field_sampling.py

Fields of several sizes lie turned at random over an invented scene. Each is embedded from all its pixels, and then from
a lattice of a quarter of them and in patches of 2 x 2 and 4 x 4. Printed are the mean cosine with the full embedding,
and how often a field is nearest to its own full embedding among all fields of its size.
"""

import tempfile

import numpy as np
import shapely
from rasterio.crs import CRS
from shapely import affinity

from croplem_hf import Embedder, SceneFields, generate_scene, open_scene, packaged_path
from croplem_hf.data import scene_fields
from croplem_hf.data.polygons import Polygons
from croplem_hf.fields import encode_fields

FIELDS = 100
SIZES = ((60, 80), (120, 150), (250, 300))


def main() -> None:
    embedder, rng = Embedder.from_pretrained(packaged_path(), device="cpu"), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        scene = open_scene(generate_scene(folder, "kenya", size=256))
        left, top = scene.transform[2], scene.transform[5]
        print("| field, m | tokens a sensor | seen as | cosine | nearest to itself |\n|---|---|---|---|---|")
        for width, height in SIZES:
            corners = rng.uniform(350, 2100, (FIELDS, 2))
            shapes = np.array(
                [
                    affinity.rotate(shapely.box(left + x, top - y - height, left + x + width, top - y), turn)
                    for (x, y), turn in zip(corners, rng.uniform(0, 180, FIELDS), strict=True)
                ]
            )
            fields = Polygons(
                None, [str(k) for k in range(FIELDS)], shapes, CRS.from_user_input(scene.crs), [{}] * FIELDS, {},
                np.zeros(FIELDS, bool),
            )  # fmt: skip
            full, pixels = embed(embedder, scene, fields, 1, 10**9)
            quarter = int(2 * pixels / 4)  # two dates, one of each sensor
            for name, patch_size, budget in (
                ("lattice", 1, quarter), ("patches of 2 x 2", 2, 10**9), ("patches of 4 x 4", 4, 10**9)
            ):  # fmt: skip
                found, tokens = embed(embedder, scene, fields, patch_size, budget)
                cosines = full @ found.T
                own = (cosines.argmax(axis=1) == np.arange(FIELDS)).mean()
                row = f"{tokens:.0f} of {pixels:.0f} | {name} | {np.diag(cosines).mean():.3f} | {own:.2f}"
                print(f"| {width} x {height} | {row} |")


def embed(embedder: Embedder, scene, fields: Polygons, patch_size: int, budget: int) -> tuple[np.ndarray, float]:
    """Unit vectors of the fields, in their order, and the mean number of tokens of a sensor."""
    scene_fields.TOKENS_PER_FIELD = budget
    source = SceneFields(scene, fields, patch_size=patch_size)
    samples = [source[source.ids.index(name)] for name in fields.ids]
    vectors = encode_fields(embedder, samples, patch_size=patch_size)
    tokens = np.mean([(scene_fields.patch_weights(s["coverage"], patch_size) > 0).sum() for s in samples])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), float(tokens)


if __name__ == "__main__":
    main()
