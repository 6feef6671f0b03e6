"""Invented patches in the layout of EuroSAT (multi-spectral), for demonstrations and tests without a download."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..sensors import S2_BANDS
from .eurosat import CLASSES, FILE_BANDS
from .files import GENERATED
from .geotiff import write_geotiff
from .landscape import PLACES, SURFACES, Place, see_scene

# Bands as in `S2_BANDS`: the figures in common use with EuroSAT (torchgeo's data module), which gives them in the order
# of the files.
PUBLISHED_MEAN = (1354.41, 1118.24, 1042.93, 947.63, 1199.47, 1999.79, 2369.22, 2296.83, 2594.14, 732.08, 12.11,
                  1819.01, 1118.92)  # fmt: skip
PUBLISHED_STD = (245.72, 333.01, 395.09, 593.75, 566.42, 861.18, 1086.63, 1117.98, 1231.59, 404.92, 4.78, 1002.59,
                 761.30)  # fmt: skip
_NOTICE = """GENERATED DATA - NOT EUROSAT

These patches were invented by croplem_hf (generate_eurosat, seed {seed}). They have the file layout of EuroSAT and
nothing else of it: no pixel was measured. A score on this folder is not a result on EuroSAT.
"""
# What a landscape of each class has (shares of forest, grass and town; water; theme; surface between the fields), the
# surfaces that make a patch one of the class (`fields`: crops), and the least and greatest share of them.
_RECIPES = {
    "AnnualCrop": ((0.03, 0.03, 0.0), 20, "", "grass", ("fields",), 0.8, 1.0),
    "Forest": ((0.93, 0.03, 0.0), 20, "", "grass", ("forest", "conifer"), 0.85, 1.0),
    "HerbaceousVegetation": ((0.06, 0.08, 0.0), 20, "heath", "dry grass", ("heath", "dry grass"), 0.75, 1.0),
    "Highway": ((0.05, 0.10, 0.0), 20, "highway", "grass", ("street",), 0.03, 1.0),
    "Industrial": ((0.02, 0.0, 0.55), 20, "halls", "grass", ("hall", "street"), 0.65, 1.0),
    "Pasture": ((0.06, 0.10, 0.0), 20, "pastures", "grass", ("grass", "dry grass"), 0.75, 1.0),
    "PermanentCrop": ((0.06, 0.04, 0.0), 20, "orchards", "dry grass", ("orchard", "vineyard"), 0.65, 1.0),
    "Residential": ((0.03, 0.0, 0.60), 20, "", "grass", ("roof", "street"), 0.5, 0.95),
    "River": ((0.12, 0.06, 0.02), 220, "", "grass", ("river",), 0.12, 0.8),
    "SeaLake": ((0.05, 0.0, 0.0), -9000, "", "grass", ("water",), 0.97, 1.0),
}
_SIDE = 384
_TRIES = 60


def generate_eurosat(root: str | os.PathLike, *, seed: int = 0, per_class: int = 20, size: int = 64) -> Path:
    """Write invented patches of the ten classes; the same arguments give the same bytes.

    Files are uint16 of 13 bands, B8A last, in UTM zones of western, central and eastern Europe; the patches of a class
    are cut without overlap from several landscapes at different seasons.

    Args:
        root: the folder, made where missing; files of the same names are replaced.
        seed: of all that is random.
        per_class: patches of each class.
        size: pixels of 10 m along a side, 8 to 128.

    Returns:
        `root`. `GENERATED.txt` in it says what it is.

    Raises:
        DataError: no patches, or a size out of range.
    """
    root = Path(root)
    if per_class < 1 or not 8 <= size <= 128:
        raise DataError(f"per_class must be at least 1 and size 8 to 128, found {per_class} and {size}")
    root.mkdir(parents=True, exist_ok=True)
    (root / GENERATED).write_text(_NOTICE.format(seed=seed))
    order = [S2_BANDS.index(band) for band in FILE_BANDS]
    for name, child in zip(CLASSES, np.random.default_rng(seed).spawn(len(CLASSES)), strict=True):
        count, tries = 0, 0
        while count < per_class:
            place = _place(name, child)
            layers = see_scene(place, (_SIDE, _SIDE), child)
            # A few of each landscape, so that a class is not one place.
            windows = _windows(name, layers["surface"][0], size, least=0.0 if tries > _TRIES else None)
            tries = 0 if windows else tries + 1
            for row, column in child.permutation(windows)[: max(1, min(8, per_class // 3))][: per_class - count]:
                count += 1
                s2 = layers["s2"][order, row : row + size, column : column + size]
                x, y = place.origin[0] + 10 * int(column), place.origin[1] - 10 * int(row)
                path = root / name / f"{name}_{count}.tif"
                write_geotiff(path, s2, crs=f"EPSG:{place.epsg}", transform=(10, 0, x, 0, -10, y))
    return root


def _place(name: str, rng: np.random.Generator) -> Place:
    """A landscape of a class, somewhere in Europe, in one of four seasons."""
    shares, water, theme, base, *_ = _RECIPES[name]
    season = str(rng.choice(["ROIs1158_spring", "ROIs1868_summer", "ROIs1868_summer", "ROIs1970_fall"]))
    return dataclasses.replace(
        PLACES["france"],
        scene=f"{season}_1",
        epsg=int(rng.integers(32630, 32636)),
        origin=(float(rng.integers(30, 70) * 10_000), float(rng.integers(420, 600) * 10_000)),
        field=((90, 200), (150, 330), (300, 520))[int(rng.integers(3))],
        shares=shares,
        base=base,
        water=float(water),
        early=float(rng.uniform(-20, 30)),
        theme=theme,
    )


def _windows(name: str, surface: np.ndarray, size: int, least: float | None = None) -> list[tuple[int, int]]:
    """Upper left corners of the windows of `size` that do not overlap and are of the class."""
    surfaces, low, high = _RECIPES[name][4:]
    low = low if least is None else least
    wanted = np.isin(surface, [-1 if s == "fields" else SURFACES.index(s) for s in surfaces])
    corners = [(r, c) for r in range(0, _SIDE - size + 1, size) for c in range(0, _SIDE - size + 1, size)]
    return [(r, c) for r, c in corners if low <= wanted[r : r + size, c : c + size].mean() <= high]


__all__ = ["PUBLISHED_MEAN", "PUBLISHED_STD", "generate_eurosat"]
