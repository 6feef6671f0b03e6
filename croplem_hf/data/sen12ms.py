"""SEN12MS (Schmitt et al. 2019, doi 10.5194/isprs-annals-IV-2-W7-153-2019): patches of radar, optics and land cover.

A patch is found by its base name, wherever it lies below the folder: the archives unpack to
`ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif`; `ROIs1158_spring_s1/s1_1/` and `ROIs1158_spring/s1/s1_1/` are
common too.
"""

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..sensors import SENSORS, harmonise_s1, harmonise_s2
from .files import entry_kind
from .geotiff import RasterInfo, read_geotiff
from .landcover import patch_labels
from .plan import Layout, first_size
from .sample import Sample, make_sample

logger = logging.getLogger(__name__)

SEASON_DATES = {"winter": "2017-01-15", "spring": "2017-04-15", "summer": "2017-07-15", "fall": "2017-10-15"}
"""Middle of each three-month window. The seasons run from December 2016 to November 2017 and are those of the northern
hemisphere wherever the place is."""

HELD_OUT_SCENES = frozenset(
    f"{season}_{scene}"
    for season, scenes in {
        "ROIs1158_spring": (15, 17, 63, 97, 124, 146),
        "ROIs1868_summer": (15, 19, 43, 72, 79, 104, 131),
        "ROIs1970_fall": (30, 35, 39, 47, 61, 120, 141, 144),
        "ROIs2017_winter": (32, 64, 107, 135, 146),
    }.items()
    for scene in scenes
)
"""The official test scenes, as in the sample's `scene`."""

BAD_PATCHES = frozenset({"ROIs1868_summer_146_p202"})
"""Documented as damaged: NaN in its radar."""

KINDS = ("s1", "s2", "lc")
"""What a patch may have a file of, in this order everywhere."""

PATCH_NAME = re.compile(r"^(ROIs\d+_[a-z]+)_(s1|s2|lc)_(\w+)_p(\d+)\.tif$")
"""Name of a file -> season, kind, scene, patch."""

PATCH_ID = re.compile(r"^((ROIs\d+_([a-z]+))_(\w+))_p(\d+)$")
"""Id -> the sample's `scene`, season with and without its number, scene, patch."""

_LAYOUT = "expected files such as ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif (s1, s2 or lc)"


class SEN12MSFolder:
    """The patches of a SEN12MS tree as samples of one date, each with the sensors that lie there.

    Args:
        root: the folder; subfolders are searched.
        sensors: which of "s1" and "s2" to read; a patch with none of them is no item.
        labels: whether to read land cover where there is one: `lc` (4, H, W), uint8 or uint16, bands IGBP, LCCS land
            cover, land use, surface hydrology, and what it says of the patch as a whole (`landcover.patch_labels`).
        s1_units: "db", "linear" or "auto" (see `s1_to_db`).
        s2_units: "dn", "reflectance" or "auto" (see `s2_to_dn`).
        s2_offset: 0, 1000 or "auto" (see `s2_to_dn`).
        skip: ids left out.

    Attributes:
        ids: such as "ROIs1158_spring_1_p30", by season, scene and patch; `id.rpartition("_p")[0]` is the scene.

    Raises:
        DataError: no such folder, no patch in it, no patch of the sensors, or one patch twice.
    """

    kind = "sen12ms"
    licence = "cc-by-4.0"
    unit = "patch"
    seasonal = True

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        sensors: Sequence[str] = SENSORS,
        labels: bool = True,
        s1_units: str = "auto",
        s2_units: str = "auto",
        s2_offset: int | str = "auto",
        skip: Collection[str] = BAD_PATCHES,
    ):
        if not sensors or not set(sensors) <= set(SENSORS):
            raise DataError(f"sensors must be some of {SENSORS}, found {sensors!r}")
        self.root = Path(root)
        self.sensors = tuple(sensors)
        self.labels = labels
        self.s1_units = s1_units
        self.s2_units = s2_units
        self.s2_offset = s2_offset
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        self._folders, found = _scan(self.root)
        if not found:
            own = "your own rasters need a metadata.csv there (docs/imagery.md)"
            raise DataError(f"{self.root}: no SEN12MS patch in this folder; {_LAYOUT}; {own}")
        wanted = [KINDS.index(sensor) for sensor in self.sensors]
        ids = [id for id, row in found.items() if any(row[kind] >= 0 for kind in wanted)]
        if not ids:
            kinds = [kind for k, kind in enumerate(KINDS) if any(row[k] >= 0 for row in found.values())]
            raise DataError(f"{self.root}: no patch of {' or '.join(self.sensors)} in this folder, only {kinds}")
        bad = sorted(set(skip).intersection(ids))
        if bad:
            logger.warning("%s: leaving out %d patches known as damaged: %s", self.root, len(bad), ", ".join(bad[:5]))
        self.ids = sorted(set(ids).difference(bad), key=patch_order)
        self._rows = np.array([found[id] for id in self.ids], np.int32).reshape(-1, len(KINDS))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`.

        Raises:
            IndexError: past the end.
            DataError: naming the file: cut short, wrong bands, nothing valid in it, another grid than its partners, or
                an unknown season. A damaged sensor is never passed over for the other one.
        """
        options = {"s1_units": self.s1_units, "s2_units": self.s2_units, "s2_offset": self.s2_offset}
        return read_patch(self.ids[i], self.paths(i), **options)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a folder holds a patch, itself or up to three folders down; a cheap look, not a walk."""
        return path.is_dir() and _holds_patch(path, 3)

    def layout(self) -> Layout:
        """Which files there are, and the size of the first patch that can be read; one that differs is padded.

        Raises:
            DataError: none of the first patches can be read.
        """
        shapes = np.zeros((len(self), 4), np.int32)
        for k, sensor in enumerate(SENSORS):
            if sensor in self.sensors:
                shapes[:, k] = self._rows[:, KINDS.index(sensor)] >= 0
        shapes[:, 2:] = first_size(self)
        return Layout(shapes)

    def columns(self) -> dict[str, np.ndarray]:
        """What items can be chosen by without reading them: `scene`, `season` and `patch`, objects (N,)."""
        found = [PATCH_ID.match(id).groups() for id in self.ids]
        values = [(scene, season, int(patch)) for scene, _, season, _, patch in found]
        return dict(zip(("scene", "season", "patch"), np.array(values, object).reshape(-1, 3).T, strict=True))

    def paths(self, i: int) -> dict[str, Path]:
        """The files that make up sample `i`, by "s1", "s2" and "lc"."""
        _, folder, _, number, patch = PATCH_ID.match(self.ids[i]).groups()
        return {
            kind: Path(self._folders[f], f"{folder}_{kind}_{number}_p{patch}.tif")
            for kind, f in zip(KINDS, self._rows[i].tolist(), strict=True)
            if f >= 0 and (self.labels if kind == "lc" else kind in self.sensors)
        }


def read_patch(
    id: str,
    paths: Mapping[str, Path],
    *,
    s1_units: str = "auto",
    s2_units: str = "auto",
    s2_offset: int | str = "auto",
    contents: Mapping[str, bytes] | None = None,
) -> Sample:
    """The sample of one patch.

    Args:
        id: such as "ROIs1158_spring_1_p30".
        paths: its files by "s1", "s2" and "lc"; at least one of the first two.
        s1_units, s2_units, s2_offset: as in `SEN12MSFolder`.
        contents: the bytes of the files, where they are not on disk (members of an archive); `paths` are names then.

    Raises:
        DataError: naming the file: cut short, wrong bands, nothing valid in it, another grid than its partners, or an
            unknown season. A damaged sensor is never passed over for the other one.
    """
    scene, _, season, _, patch = PATCH_ID.match(id).groups()
    date = SEASON_DATES.get(season)
    if date is None:
        raise DataError(
            f"{next(iter(paths.values()))}: unknown season {season!r}, expected one of {tuple(SEASON_DATES)}"
        )
    fields, grids, notes = {}, {}, {}
    files = {kind: (path, contents[kind] if contents else None) for kind, path in paths.items()}
    if "s1" in files:
        values, grids["s1"], notes["s1_correction"] = read_s1(*files["s1"], s1_units)
        fields |= {"s1": values, "s1_dates": [date], "s1_kind": "sigma0"}
    if "s2" in files:
        values, valid, grids["s2"], notes["s2_correction"] = read_s2(*files["s2"], s2_units, s2_offset)
        fields |= {"s2": values, "s2_valid": valid, "s2_dates": [date], "s2_level": "L1C"}
    if "lc" in files:
        fields["lc"], grids["lc"] = _read_lc(*files["lc"])
        fields |= patch_labels(fields["lc"])
    shapes = {kind: (fields[kind].shape[-2:], info) for kind, info in grids.items()}
    first, *others = shapes
    for other in others:
        check_same_grid(paths[first], shapes[first], paths[other], shapes[other])
    info = grids[first]
    return make_sample(
        id,
        gsd=info.gsd or 10.0,
        season=season,
        scene=scene,
        patch=int(patch),
        lon=info.lon,
        lat=info.lat,
        crs=info.crs,
        transform=info.transform,
        region=scene,
        **fields,
        **{key: note for key, note in notes.items() if note},
    )


def _holds_patch(folder: Path, depth: int) -> bool:
    inner = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if PATCH_NAME.match(entry.name):
                    return True
                if depth and entry_kind(entry) == "folder":
                    inner.append(Path(entry.path))
    except OSError:  # a folder that may not be read; it is named where patches are listed
        return False
    return any(_holds_patch(path, depth - 1) for path in inner)


def _scan(root: Path) -> tuple[list[str], dict[str, list[int]]]:
    """One walk -> the folders that hold patches, and per patch id the folder number of its s1, s2 and lc (-1: none)."""
    folders, found, seen = [], {}, set()
    stack = [str(root)]
    while stack:
        folder = stack.pop()
        try:
            status = os.stat(folder)
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder == str(root):
                raise DataError(f"{root}: the folder cannot be read ({error.strerror})") from error
            logger.warning("%s: left out, the folder cannot be read (%s)", folder, error.strerror)
            continue
        # Links may lead back up or twice to the same folder.
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        number = len(folders)
        for entry in entries:
            match, what = PATCH_NAME.match(entry.name), entry_kind(entry)
            if match is None:
                if what == "folder":
                    stack.append(entry.path)
                elif what is None:
                    logger.warning("%s: left out, no folder and no file, or a link that leads nowhere", entry.path)
                continue
            if what != "file":
                logger.warning("%s: left out, it has the name of a patch and is no file", entry.path)
                continue
            season, kind, scene, patch = match.groups()
            row = found.setdefault(f"{season}_{scene}_p{patch}", [-1, -1, -1])
            k = KINDS.index(kind)
            if row[k] >= 0:
                twin = Path(folders[row[k]], entry.name)
                raise DataError(f"the same patch twice: {twin} and {entry.path}; remove one, or open one tree")
            row[k] = number
            if number == len(folders):
                folders.append(folder)
    return folders, found


def patch_order(id: str) -> tuple:
    """Sort key: season, scene and patch, numbers by value."""
    _, season, _, scene, patch = PATCH_ID.match(id).groups()
    return season, (0, int(scene), "") if scene.isdecimal() else (1, 0, scene), int(patch), patch


def read_s1(path: Path, data: bytes | None, units: str) -> tuple[np.ndarray, RasterInfo, str | None]:
    """Radar of a file or its content: float32 (1, 2, H, W) in dB, NaN where missing; its place; what was corrected."""
    values, info = read_geotiff(path, count=2, data=data)
    values = values.astype(np.float32, copy=False)
    # A single band of exactly 0 dB is a clipped measurement; both at 0 are the fill of the products.
    missing = (values == 0).all(axis=0)
    if info.nodata is not None:
        missing |= (values == np.float32(info.nodata)).any(axis=0)
    values[:, missing] = np.nan
    values, note = harmonise_s1(values, units=units, where=str(path))
    if not np.isfinite(values).all(axis=0).any():
        raise DataError(f"{path}: no valid radar pixel (all NaN or nodata)")
    return values[None], info, note


def read_s2(
    path: Path, data: bytes | None, units: str, offset: int | str
) -> tuple[np.ndarray, np.ndarray, RasterInfo, str | None]:
    """Optics of a file or its content: (1, 13, H, W); bool (1, H, W), valid; its place; what was corrected."""
    values, info = read_geotiff(path, count=13, data=data)
    valid = values.any(axis=0)
    if info.nodata is not None:
        valid &= (values != info.nodata).any(axis=0)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
        values[:, ~valid] = np.nan
    elif not valid.all():
        values = np.where(valid, values, 0)
    if not valid.any():
        raise DataError(f"{path}: no valid optical pixel (all 0, NaN or nodata)")
    values, note = harmonise_s2(values[None], units=units, offset=offset, where=str(path))
    return values, valid[None], info, note


def _read_lc(path: Path, data: bytes | None) -> tuple[np.ndarray, RasterInfo]:
    values, info = read_geotiff(path, count=4, data=data)
    if values.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: land cover must be uint8 or uint16, found {values.dtype}")
    return values, info


def check_same_grid(path_a: Path, a: tuple, path_b: Path, b: tuple) -> None:
    """`DataError` unless two rasters, each (size, `RasterInfo`), cover the same ground to a hundredth of a pixel."""
    (size_a, info_a), (size_b, info_b) = a, b
    same = size_a == size_b and info_a.crs == info_b.crs
    if same:
        ta, tb = (np.array(info.transform).reshape(2, 3) for info in (info_a, info_b))
        corners = np.array([[0, size_a[1], 0, size_a[1]], [0, 0, size_a[0], size_a[0]], [1, 1, 1, 1]])
        pixel = np.sqrt(abs(np.linalg.det(ta[:, :2])))
        same = bool(np.abs((ta - tb) @ corners).max() <= 0.01 * pixel)
    if not same:
        raise DataError(
            f"different grids: {path_a} is {size_a} pixels, {info_a.crs}, {info_a.transform}; "
            f"{path_b} is {size_b} pixels, {info_b.crs}, {info_b.transform}. Bring both to one grid"
        )


__all__ = [
    "BAD_PATCHES", "HELD_OUT_SCENES", "KINDS", "PATCH_ID", "PATCH_NAME", "SEASON_DATES", "SEN12MSFolder",
    "check_same_grid", "patch_order", "read_patch", "read_s1", "read_s2",
]  # fmt: skip
