"""DFC2020 (IEEE GRSS Data Fusion Contest 2020, doi 10.1109/MGRS.2020.2970124): patches like those of SEN12MS, with land
cover at 10 m, drawn by hand, in the simplified scheme of ten classes.

The contest's parts lie in `ROIs0000_validation/{s1,s2,lc,dfc}_validation` and `ROIs0000_test/{s1,s2,lc,dfc}_0`, a
public bundle in `ROIs0000_autumn/dfc_Mumbai/ROIs0000_autumn_dfc_Mumbai_p741.tif` and the like. A patch is found by its
base name, wherever it lies below the folder.
"""

import logging
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..sensors import SENSORS
from .files import entry_kind
from .geotiff import RasterInfo, read_geotiff
from .landcover import SIMPLIFIED, SIMPLIFIED_LABELS, simplified_labels
from .plan import Layout, first_size
from .sample import Sample, make_sample
from .sen12ms import SEASON_DATES, check_same_grid, read_s1, read_s2

logger = logging.getLogger(__name__)

DATE = SEASON_DATES["summer"]
"""Stand-in for the date of the contest's own parts, which do not tell a season; they have `date_known` False."""

_SEASONS = {"autumn": "fall"}
_SPLITS = {"validation": "validation", "test": "test"}
_NAME = re.compile(r"^(ROIs0000_([a-z]+))_(s1|s2|lc|dfc)_(\w+)_p(\d+)\.tif$")
_KINDS = ("s1", "s2", "lc", "dfc")
_LAYOUT = "expected files such as ROIs0000_validation/s1_validation/ROIs0000_validation_s1_0_p0.tif (s1, s2, lc or dfc)"
# Entries that `recognises` looks at before it gives up: a folder may hold a million.
_LOOKS = 20_000


class DFC2020Folder:
    """The patches of DFC2020 as samples of one date, with the land cover at 10 m in `lc`.

    `lc` holds one scheme of land cover in all samples of a source, which `lc_scheme` names: "dfc2020", uint8 (1, H, W)
    of codes 1..10 (`landcover.SIMPLIFIED`) and 0 unlabelled, or, with `labels="lc"`, "igbp" as in SEN12MS, uint8 or
    uint16 (1 or 4, H, W), from MODIS at 500 m. From the truth at 10 m come, over its labelled pixels, `land_cover` (the
    code of most of them), `land_cover_fraction` (its share), `cropland_fraction`, and `cropland` (1 where that is above
    0.5, else 0); a patch without labels has None of these.

    Args:
        root: the folder; subfolders are searched.
        sensors: None or which of "s1" and "s2" to read; a patch with none of them is no item.
        labels: "dfc", "lc", or None for no raster.
        s1_units: "db", "linear" or "auto" (see `s1_to_db`).
        s2_units: "dn", "reflectance" or "auto" (see `s2_to_dn`).
        s2_offset: 0, 1000 or "auto" (see `s2_to_dn`).
        skip: ids left out.

    Attributes:
        ids: such as "ROIs0000_autumn_Mumbai_p741", by scene and patch.

    Raises:
        DataError: no such folder, no patch in it, no patch of the sensors, or one patch twice.
    """

    kind = "dfc2020"
    unit = "patch"
    seasonal = True

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        sensors: Sequence[str] | None = None,
        labels: str | None = "dfc",
        s1_units: str = "auto",
        s2_units: str = "auto",
        s2_offset: int | str = "auto",
        skip: Collection[str] = (),
    ):
        sensors = SENSORS if sensors is None else tuple(sensors)
        if not sensors or not set(sensors) <= set(SENSORS):
            raise DataError(f"sensors must be some of {SENSORS}, found {sensors!r}")
        if labels not in ("dfc", "lc", None):
            raise DataError(f"labels must be 'dfc' (10 m), 'lc' (MODIS) or None, found {labels!r}")
        self.root = Path(root)
        self.sensors = sensors
        self.labels = labels
        self.s1_units = s1_units
        self.s2_units = s2_units
        self.s2_offset = s2_offset
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        found: dict[str, dict[str, Path]] = {}
        for path, match in _walk(self.root):
            prefix, _, kind, scene, patch = match.groups()
            files = found.setdefault(f"{prefix}_{scene}_p{patch}", {})
            if kind in files:
                raise DataError(f"the same patch twice: {files[kind]} and {path}; remove one, or open one tree")
            files[kind] = path
        if not found:
            raise DataError(f"{self.root}: no DFC2020 patch in this folder; {_LAYOUT}")
        usable = [id for id, files in found.items() if not files.keys().isdisjoint(sensors)]
        if not usable:
            kinds = sorted(set().union(*found.values()))
            raise DataError(f"{self.root}: no patch of {' or '.join(sensors)} in this folder, only {kinds}")
        self.ids = sorted(set(usable).difference(skip), key=_order)
        self._paths = [found[id] for id in self.ids]
        bare = sum("dfc" not in files for files in self._paths)
        if bare:
            logger.info("%s: %d of %d patches have no labels at 10 m (dfc)", self.root, bare, len(self.ids))

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether a folder holds patches of DFC2020; only its first thousands of entries are looked at."""
        path = Path(path)
        return path.is_dir() and next(_walk(path, _LOOKS), None) is not None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`.

        Raises:
            IndexError: past the end.
            DataError: naming the file: cut short, wrong bands, nothing valid in it, unknown codes or season, or another
                grid than its partners. A damaged sensor is never passed over for the other one.
        """
        id, paths = self.ids[i], self.paths(i)
        scene, _, patch = id.rpartition("_p")
        part = scene.split("_")[1]
        season = _SEASONS.get(part, part)
        if season not in SEASON_DATES and part not in _SPLITS:
            names = (*SEASON_DATES, *_SEASONS, *_SPLITS)
            raise DataError(f"{next(iter(paths.values()))}: unknown part {part!r}, expected one of {names}")
        date = SEASON_DATES.get(season, DATE)
        fields, shapes = dict.fromkeys(SIMPLIFIED_LABELS), {}
        if "s1" in paths:
            values, info, note = read_s1(paths["s1"], None, self.s1_units)
            fields |= {"s1_correction": note} if note else {}
            fields |= {"s1": values, "s1_dates": [date], "s1_kind": "sigma0"}
            shapes["s1"] = values.shape[-2:], info
        if "s2" in paths:
            values, valid, info, note = read_s2(paths["s2"], None, self.s2_units, self.s2_offset)
            fields |= {"s2_correction": note} if note else {}
            fields |= {"s2": values, "s2_valid": valid, "s2_dates": [date], "s2_level": "L1C"}
            shapes["s2"] = values.shape[-2:], info
        if "lc" in paths and self.labels == "lc":
            fields["lc"], info = _read_coarse(paths["lc"])
            fields["lc_scheme"] = "igbp"
            shapes["lc"] = fields["lc"].shape[-2:], info
        if "dfc" in paths:
            truth, info = _read_truth(paths["dfc"])
            fields |= truth_labels(truth)
            fields |= {"lc": truth, "lc_scheme": "dfc2020"} if self.labels == "dfc" else {}
            shapes["dfc"] = truth.shape[-2:], info
        first, *others = shapes
        for other in others:
            check_same_grid(paths[first], shapes[first], paths[other], shapes[other])
        info = shapes[first][1]
        return make_sample(
            id,
            gsd=info.gsd or 10.0,
            season=season if season in SEASON_DATES else None,
            date_known=season in SEASON_DATES,
            split=_SPLITS.get(part),
            scene=scene,
            patch=int(patch),
            lon=info.lon,
            lat=info.lat,
            crs=info.crs,
            transform=info.transform,
            region=scene,
            **fields,
        )

    def paths(self, i: int) -> dict[str, Path]:
        """The files that make up sample `i`, by "s1", "s2", "lc" and "dfc"."""
        files = self._paths[i]
        return {kind: files[kind] for kind in _KINDS if kind in files and (kind not in SENSORS or kind in self.sensors)}

    def layout(self) -> Layout:
        """One date of each sensor whose file lies there, all of the size of the first patch that can be read.

        Raises:
            DataError: none of the first patches can be read.
        """
        shapes = np.zeros((len(self), 4), np.int32)
        for k, sensor in enumerate(SENSORS):
            shapes[:, k] = [sensor in files and sensor in self.sensors for files in self._paths]
        shapes[:, 2:] = first_size(self)
        return Layout(shapes)

    def columns(self) -> dict[str, np.ndarray]:
        """`scene`, `season` and `split`, object arrays (N,); None where not known."""
        scenes = [id.rpartition("_p")[0] for id in self.ids]
        parts = [scene.split("_")[1] for scene in scenes]
        seasons = [season if (season := _SEASONS.get(part, part)) in SEASON_DATES else None for part in parts]
        columns = {"scene": scenes, "season": seasons, "split": [_SPLITS.get(part) for part in parts]}
        return {name: np.array(values, object) for name, values in columns.items()}


def truth_labels(truth: np.ndarray) -> dict[str, float | int | None]:
    """`simplified_labels` of a raster (1, H, W) of codes 0..10, over its labelled pixels."""
    return simplified_labels(np.bincount(truth.ravel(), minlength=len(SIMPLIFIED) + 1))


def _walk(root: Path, most: int | None = None):
    """Yields (path, match) of each file of a patch below `root`, folder by folder in order of name."""
    stack, seen, looked = [str(root)], set(), 0
    while stack:
        folder = stack.pop()
        status = os.stat(folder)
        # Links may lead back up or twice to the same folder.
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        with os.scandir(folder) as entries:
            for entry in entries:
                looked += 1
                if most is not None and looked > most:
                    return
                what = entry_kind(entry)
                if match := _NAME.match(entry.name):
                    if what == "file":
                        yield Path(entry.path), match
                elif what == "folder":
                    below.append(entry.path)
        stack += sorted(below, reverse=True)


def _order(id: str) -> tuple[str, int, str]:
    scene, _, patch = id.rpartition("_p")
    return scene, int(patch), patch


def _read_truth(path: Path) -> tuple[np.ndarray, RasterInfo]:
    values, info = read_geotiff(path, count=1)
    whole = values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))
    if not whole or values.min() < 0 or values.max() > len(SIMPLIFIED):
        raise DataError(
            f"{path}: labels at 10 m must be whole numbers 0..{len(SIMPLIFIED)}, found {values.min()} to {values.max()}"
        )
    return values.astype(np.uint8), info


def _read_coarse(path: Path) -> tuple[np.ndarray, RasterInfo]:
    values, info = read_geotiff(path)
    if len(values) not in (1, 4):
        raise DataError(f"{path}: land cover must have 1 or 4 bands, found {len(values)}")
    if values.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: land cover must be uint8 or uint16, found {values.dtype}")
    return values, info


__all__ = ["DATE", "DFC2020Folder", "truth_labels"]
