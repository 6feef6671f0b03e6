"""Invented patches in the layout of SEN12MS, for demonstrations and tests without a download."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from .geotiff import write_geotiff
from .landscape import PLACES, make_scene
from .sen12ms import SEASON_DATES

# Patches of a scene are numbered row by row, 29 to a row.
_WIDTH = 29
LABELS = ("cropland", "other")


def generate_sen12ms(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    scenes: int | Sequence[str] = 4,
    patches_per_scene: int = 6,
    size: int = 256,
    defects: bool = False,
    clouds: float = 0.0,
) -> Path:
    """Write invented patches as a SEN12MS tree; the same arguments give the same bytes.

    Neighbouring patches overlap by half, as the real ones do. With three patches a scene or more, the last one of each
    scene lacks a partner: it has radar only in one scene and optics only in the next. Beside the tree lies
    `labels.csv` with `id,label`: "cropland" where that covers more than half of a patch, else "other".

    Args:
        root: the folder, made where missing; files of the same names are replaced.
        seed: of all that is random.
        scenes: names of `PLACES`, or how many of them, in their order.
        patches_per_scene: number of patches of each scene.
        size: pixels of 10 m along a side; even.
        defects: whether to cut short the S2 file of the very first patch.
        clouds: share of the optical pixels under cloud in every second scene, 0..1.

    Returns:
        `root`.

    Raises:
        DataError: an unknown place, too many, or a size that cannot be halved.
    """
    root = Path(root)
    if isinstance(scenes, int):
        if not 1 <= scenes <= len(PLACES):
            raise DataError(f"scenes must be 1 to {len(PLACES)}, found {scenes}; places: {', '.join(PLACES)}")
        scenes = list(PLACES)[:scenes]
    unknown = [name for name in scenes if name not in PLACES]
    if unknown or not scenes:
        raise DataError(f"unknown places {unknown}; choose from {', '.join(PLACES)}")
    if size < 2 or size % 2 or patches_per_scene < 1:
        raise DataError(f"size must be even and above 0, patches at least 1; found {size} and {patches_per_scene}")
    columns = min(int(np.ceil(np.sqrt(patches_per_scene))), _WIDTH - 1)
    rows = -(-patches_per_scene // columns)
    stride = size // 2
    shape = (stride * (rows + 1), stride * (columns + 1))
    labels = []
    for number, (name, child) in enumerate(zip(scenes, np.random.default_rng(seed).spawn(len(scenes)), strict=True)):
        place = PLACES[name]
        layers = make_scene(place, shape, child, clouds=clouds * (number % 2))
        cropland = layers.pop("cropland")
        season, _, scene = place.scene.rpartition("_")
        for k in range(patches_per_scene):
            row, column = divmod(k, columns)
            patch = (row + 1) * _WIDTH + column + 1
            window = np.s_[:, row * stride : row * stride + size, column * stride : column * stride + size]
            x = place.origin[0] + 10 * stride * (column + 1)
            y = place.origin[1] - 10 * stride * (row + 1)
            labels.append((f"{place.scene}_p{patch}", LABELS[int(cropland[window].mean() <= 0.5)]))
            lacking = ("s1", "s2")[(number + 1) % 2] if k == patches_per_scene - 1 >= 2 else None
            for kind, values in layers.items():
                if kind != lacking:
                    path = root / season / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p{patch}.tif"
                    write_geotiff(path, values[window], crs=f"EPSG:{place.epsg}", transform=(10, 0, x, 0, -10, y))
    _write_csv(root / "labels.csv", [("id", "label"), *labels])
    if defects:
        path = sorted(root.rglob("*_s2_*.tif"))[0]
        os.truncate(path, path.stat().st_size // 2)
    return root


def generate_scene(root: str | os.PathLike, place: str, *, size: int = 512, seed: int = 0, clouds: float = 0.0) -> Path:
    """Write one invented place as a user's own imagery: `s1.tif`, `s2.tif`, `metadata.csv`, and `cropland.tif`.

    Args:
        root: the folder, made where missing; files of the same names are replaced.
        place: one of `PLACES`.
        size: pixels of 10 m along a side.
        seed: of all that is random.
        clouds: share of the optical pixels under cloud, 0..1.

    Returns:
        `root`. `cropland.tif` is the truth: uint8, 1 on cropland.

    Raises:
        DataError: an unknown place, or no pixels.
    """
    root = Path(root)
    if place not in PLACES:
        raise DataError(f"unknown places {[place]}; choose from {', '.join(PLACES)}")
    if size < 1:
        raise DataError(f"size must be above 0, found {size}")
    about = PLACES[place]
    layers = make_scene(about, (size, size), np.random.default_rng(seed), clouds=clouds)
    grid = {"crs": f"EPSG:{about.epsg}", "transform": (10, 0, about.origin[0], 0, -10, about.origin[1])}
    for kind in ("s1", "s2", "cropland"):
        write_geotiff(root / f"{kind}.tif", layers[kind], **grid)
    date = SEASON_DATES[about.scene.split("_")[1]]
    rows = [(place, "s1", date, "s1.tif", ""), (place, "s2", date, "s2.tif", "L1C")]
    _write_csv(root / "metadata.csv", [("id", "sensor", "date", "path", "level"), *rows])
    return root


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    aside = path.with_name(f".{path.name}.part")
    with open(aside, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    os.replace(aside, path)


__all__ = ["LABELS", "PLACES", "generate_scene", "generate_sen12ms"]
