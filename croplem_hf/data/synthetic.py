"""Invented patches in the layout of SEN12MS, for demonstrations and tests without a download."""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..sensors import S1_BANDS, S1_MEAN, S1_STD, S2_BANDS, S2_MEAN, S2_STD
from .files import GENERATED, write_aside
from .geotiff import read_geotiff, write_geotiff
from .landscape import PLACES, make_scene
from .sample import Sample
from .sen12ms import SEASON_DATES

# Patches of a scene are numbered row by row, 29 to a row.
_WIDTH = 29
LABELS = ("cropland", "other")
_NOTICE = """GENERATED DATA - NOT SEN12MS

These patches were invented by croplem_hf (generate_sen12ms, seed {seed}). They have the file layout of SEN12MS and
nothing else of it: no pixel was measured. A score on this folder is not a result on SEN12MS.
"""
# The optics of SEN12MS itself; B01, B09 and B10 are published of SSL4EO-S12 alone (see `sensors`).
PUBLISHED_MEAN = (*S1_MEAN, S2_MEAN[0], 1226.42, 1137.38, 1139.68, 1351.00, 1932.91, 2211.16, 2154.98, 2409.11,
                  *S2_MEAN[9:11], 2001.86, 1356.08)  # fmt: skip
PUBLISHED_STD = (*S1_STD, S2_STD[0], 741.63, 740.88, 960.10, 946.76, 985.53, 1082.43, 1057.76, 1136.19, *S2_STD[9:11],
                 1132.79, 991.48)  # fmt: skip
"""Means and deviations over SEN12MS, bands as in `S1_BANDS` and `S2_BANDS`."""
DEFECTS = {
    "truncated": "s2", "empty": "s2", "band_count": "s2", "constant_band": "s2", "saturated": "s2", "offset": "s2",
    "reflectance": "s2", "nan": "s1", "linear": "s1", "other_grid": "s1", "missing_partner": "s1",
}  # fmt: skip
"""Defects that can be planted, and the sensor whose file has each."""


def generate_sen12ms(
    root: str | os.PathLike,
    *,
    seed: int = 0,
    scenes: int | Sequence[str] = 4,
    patches_per_scene: int = 6,
    size: int = 256,
    defects: bool | Sequence[str] = False,
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
        defects: True to cut short the very first S2 file, or names of `DEFECTS`, each planted in another patch. Which
            file has which stands in `defects.csv`, `file,kind`, with paths below `root`.
        clouds: share of the optical pixels under cloud in every second scene, 0..1.

    Returns:
        `root`. `GENERATED.txt` in it says what it is.

    Raises:
        DataError: an unknown place or defect, too many, or a size that cannot be halved.
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
    kinds = [] if isinstance(defects, bool) else list(defects)
    if set(kinds) - DEFECTS.keys():
        raise DataError(f"unknown defects {sorted(set(kinds) - DEFECTS.keys())}; choose from {', '.join(DEFECTS)}")
    complete = len(scenes) * (patches_per_scene - (patches_per_scene >= 3))
    if len(kinds) > complete:
        raise DataError(f"{len(kinds)} defects need as many patches of both sensors, found {complete}; ask for more")
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
    (root / GENERATED).write_text(_NOTICE.format(seed=seed))
    optics = sorted(root.rglob("*_s2_*.tif"))
    if defects is True:
        planted = [(_plant("truncated", optics[0]), "truncated")]
    else:
        # Another patch for each, not side by side where there are enough.
        pairs = [(radar, path) for path in optics if (radar := _partner(path)).is_file()]
        chosen = pairs[:: max(1, len(pairs) // max(1, len(kinds)))]
        planted = [(_plant(kind, pair[DEFECTS[kind] == "s2"]), kind) for kind, pair in zip(kinds, chosen, strict=False)]
    if planted:
        rows = [(path.relative_to(root).as_posix(), kind) for path, kind in planted]
        _write_csv(root / "defects.csv", [("file", "kind"), *rows])
    return root


def damaged_ids(root: str | os.PathLike) -> set[str]:
    """Ids of the patches that `defects.csv` of a generated tree names; none where there is no such list."""
    path = Path(root) / "defects.csv"
    if not path.is_file():
        return set()
    with open(path, newline="") as handle:
        return {re.sub(r"_s[12]_", "_", Path(row["file"]).stem) for row in csv.DictReader(handle)}


def _partner(path: Path) -> Path:
    """The radar file of an optical one."""
    return path.parent.parent / path.parent.name.replace("s2_", "s1_") / path.name.replace("_s2_", "_s1_")


def _plant(kind: str, path: Path) -> Path:
    """Damage one file in place."""
    if kind in ("truncated", "empty"):
        os.truncate(path, path.stat().st_size // 2 if kind == "truncated" else 0)
        return path
    if kind == "missing_partner":
        path.unlink()
        return path
    values, info = read_geotiff(path)
    transform = list(info.transform)
    quarter = np.s_[:, : values.shape[1] // 2, : values.shape[2] // 2]
    if kind == "band_count":
        values = values[:-1]
    elif kind == "constant_band":
        values[4] = 1200
    elif kind == "saturated":
        values[quarter] = 65535
    elif kind == "offset":
        values = values + np.uint16(1000)
    elif kind == "reflectance":
        values = values.astype(np.float32) / np.float32(10000)
    elif kind == "nan":
        values[quarter] = np.nan
    elif kind == "linear":
        values = np.float32(10) ** (values / np.float32(10))
    elif kind == "other_grid":
        transform[2] += 35
    return write_geotiff(path, values, crs=info.crs, transform=transform)


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


def measure_bands(source: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Band -> mean and standard deviation over the valid pixels of a source: dB for radar, digital numbers for optics.

    Samples that cannot be read are passed over; a band that is nowhere has no entry.
    """
    sums: dict[str, np.ndarray] = {}
    for i in range(len(source)):
        try:
            sample = source[i]
        except DataError:
            continue
        for sensor, bands in (("s1", S1_BANDS), ("s2", S2_BANDS)):
            if sample[sensor] is None:
                continue
            for k, band in enumerate(bands):
                values = sample[sensor][:, k][sample[f"{sensor}_valid"]].astype(np.float64)
                if sensor == "s1" or sample["s2_bands"][:, k].all():
                    sums[band] = sums.get(band, 0) + np.array([values.size, values.sum(), (values**2).sum()])
    found = {}
    for band in (*S1_BANDS, *S2_BANDS):
        if band in sums and sums[band][0]:
            count, total, squares = sums[band]
            found[band] = total / count, float(np.sqrt(max(squares / count - (total / count) ** 2, 0)))
    return found


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    with write_aside(path) as aside, open(aside, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)


__all__ = [
    "DEFECTS", "LABELS", "PLACES", "PUBLISHED_MEAN", "PUBLISHED_STD", "damaged_ids", "generate_scene",
    "generate_sen12ms", "measure_bands",
]  # fmt: skip
