"""The rasters of Kenya CV4A as one mosaic: which files there are, and windows of them across the seams of the tiles."""

import collections
import logging
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ..errors import DataError
from ..sensors import L2A_BANDS, S2_BANDS, decide_s2_units, s2_to_dn
from .files import GENERATED
from .geotiff import read_geotiff, reason
from .sample import Sample, make_sample

logger = logging.getLogger(__name__)

BANDS = tuple(band for band, exists in zip(S2_BANDS, L2A_BANDS, strict=True) if exists)
TILE_SIZE = (2016, 3035)
"""Width and height of a published tile in pixels of 10 m."""
CORNER = (613740.0, 79160.0)
"""Easting and northing of the mosaic's upper left corner in EPSG:32636: the files carry none, others recovered it."""
TILE_PLACES = {1: (0, 0), 3: (0, 1), 0: (1, 0), 2: (1, 1)}
"""Row and column of each tile in the mosaic."""
BLOCK = 256
"""Side of a spatial block in pixels; never split one between training and test."""

_PLAIN_IMAGE = re.compile(r"(?:^|/)0?([0-3])/(\d{8})/\d+_(B\d\d|B8A|CLD)_\d{8}\.tif$")
_PLAIN_LABEL = re.compile(r"(?:^|/)0?([0-3])/\d+_(label|field_id)\.tif$")
_MLHUB_IMAGE = re.compile(r"_tile_0?([0-3])_(\d{8})/(B\d\d|B8A|CLD)\.tif$")
_MLHUB_LABEL = re.compile(r"_tile_0?([0-3])_label/(label|field_id)s\.tif$")
SPLIT_FILES = ("FieldIds.csv", "field_train_test_ids.csv")
# Files of one tile (13 dates x 13, and its field ids): walking along a tile opens none twice.
_OPEN_FILES = 192


class KenyaMosaic:
    """The files of a copy, and windows of them."""

    kind = "kenya"
    seasonal = False
    sensors = ("s2",)

    def __init__(self, root, sensors, cloud_threshold, allow_missing, s2_units):
        self.root, self.cloud_threshold = Path(root), float(cloud_threshold)
        if sensors is not None and "s2" not in sensors:
            raise DataError(f"sensors must hold 's2', the only one of the Kenya data, found {sensors!r}")
        if not 0 < self.cloud_threshold <= 100:
            raise DataError(f"cloud_threshold must be percent above 0, up to 100, found {cloud_threshold!r}")
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder")
        self._scan()
        self._check_complete(allow_missing)
        self.generated = (self.root / GENERATED).is_file()
        self._prefix = "generated_kenya" if self.generated else "kenya"
        if self.generated:
            logger.warning("%s: invented data in the layout of Kenya CV4A; no score on it says a thing", self.root)
        tile = self.tiles[0]
        raster, _ = read_geotiff(self._label_files[tile, "field_id"], count=1)
        self.tile_size = raster.shape[2], raster.shape[1]
        # A copy that was cut lies somewhere else.
        self.crs = "EPSG:32636" if self.tile_size == TILE_SIZE or self.generated else None
        if self.crs is None:
            logger.warning("%s: tiles of %d x %d pixels are not as published; places unknown", root, *self.tile_size)
        self._open_files, self._owner = collections.OrderedDict(), os.getpid()
        self.s2_units = self._find_units() if s2_units == "auto" else s2_units

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open_files": collections.OrderedDict(), "_owner": None}

    @staticmethod
    def recognises(path: str | os.PathLike) -> bool:
        """Whether a folder looks like a copy of the data; a few names are looked at."""
        path = Path(path)
        if not path.is_dir():
            return False
        if next(path.glob("ref_african_crops_kenya_02*"), None):
            return True
        folders = (base / f"{zero}{t}" / f"{t}_field_id.tif" for base in (path / "data", path) for zero in ("", "0")
                   for t in TILE_PLACES)  # fmt: skip
        return any(file.is_file() for file in folders)

    def _scan(self) -> None:
        self._images, self._label_files, self._split_file = {}, {}, None
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                text = path.relative_to(self.root.parent).as_posix()
                if name in SPLIT_FILES:
                    self._split_file = path
                if image := _PLAIN_IMAGE.search(text) or _MLHUB_IMAGE.search(text):
                    key, found = (int(image[1]), image[2], image[3]), self._images
                elif label := _PLAIN_LABEL.search(text) or _MLHUB_LABEL.search(text):
                    key, found = (int(label[1]), label[2]), self._label_files
                else:
                    continue
                if key in found:
                    raise DataError(f"the same raster twice: {found[key]} and {path}; open one copy of the data")
                found[key] = path
        self.tiles = sorted({tile for tile, *_ in (*self._images, *self._label_files)})
        self._dates = sorted({date for _, date, _ in self._images})
        if not self._images or not self._label_files:
            raise DataError(
                f"{self.root}: {'no imagery' if not self._images else 'no field_id rasters'} of Kenya CV4A; expected "
                "files such as data/0/20190606/0_B01_20190606.tif and data/0/0_field_id.tif"
            )
        self.dates = [f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in self._dates]

    def _check_complete(self, allow_missing: bool) -> None:
        without = [f"tile {t} {kind}" for t in self.tiles for kind in ("field_id", "label")
                   if (t, kind) not in self._label_files]  # fmt: skip
        if without:
            raise DataError(f"{self.root}: rasters are missing: {', '.join(without)}; fetch them")
        lacking = [f"tile {t} {date} {band}" for t in self.tiles for date in self._dates for band in (*BANDS, "CLD")
                   if (t, date, band) not in self._images]  # fmt: skip
        if lacking and not allow_missing:
            some = ", ".join(lacking[:5]) + " ..." * (len(lacking) > 5)
            raise DataError(
                f"{self.root}: {len(lacking)} rasters are missing, {some}; fetch them, or say "
                "allow_missing=True to read the rest"
            )
        if lacking:
            logger.warning("%s: %d rasters are missing, the first %s", self.root, len(lacking), lacking[0])

    def _find_units(self) -> str:
        """Units of the copy, by the middle rows of the near infrared: a field of ten pixels says little."""
        width, height = self.tile_size
        for path in (path for (_, _, band), path in sorted(self._images.items()) if band == "B08"):
            try:
                values = self._read(path, 0, max(height // 2 - 32, 0), width, min(height, 64))
            except DataError as error:
                logger.warning("passed over for the units: %s", error)
                continue
            if np.any(np.isfinite(values) & (values != 0)):
                decision = decide_s2_units(values)
                if decision.value is None:
                    raise DataError(f"{path}: {decision.evidence}; say s2_units='reflectance' or 'dn'")
                return decision.value
        return "reflectance"

    def _read(self, path: Path, column: int, row: int, width: int, height: int) -> np.ndarray:
        """A window (height, width) of a one-band raster that is as large as a tile."""
        if self._owner != os.getpid():
            # Forked workers would share the position in a file: they open their own.
            self._open_files, self._owner = collections.OrderedDict(), os.getpid()
        try:
            if path not in self._open_files:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", NotGeoreferencedWarning)
                    raster = rasterio.open(path)
                if (raster.count, raster.width, raster.height) != (1, *self.tile_size):
                    raise DataError(
                        f"{path}: {raster.count} bands of {raster.width} x {raster.height} pixels, expected 1 band of "
                        "{} x {} as in the other rasters".format(*self.tile_size)
                    )
                self._open_files[path] = raster
                if len(self._open_files) > _OPEN_FILES:
                    self._open_files.popitem(last=False)[1].close()
            self._open_files.move_to_end(path)
            return self._open_files[path].read(1, window=Window(column, row, width, height))
        except RasterioError as error:
            raise DataError(f"{path}: missing, cut short or damaged, fetch it again ({reason(error)})") from error

    def _parts(self, box: tuple[int, int, int, int]):
        """Tiles under a box (row, column, height, width) of the mosaic: number, place in the box, window in it."""
        width, height = self.tile_size
        for tile in self.tiles:
            top, left = TILE_PLACES[tile][0] * height, TILE_PLACES[tile][1] * width
            r0, r1 = max(box[0], top), min(box[0] + box[2], top + height)
            c0, c1 = max(box[1], left), min(box[1] + box[3], left + width)
            if r0 < r1 and c0 < c1:
                inside = np.s_[r0 - box[0] : r1 - box[0], c0 - box[1] : c1 - box[1]]
                yield tile, inside, (c0 - left, r0 - top, c1 - c0, r1 - r0)

    def _window(self, id: str, box: tuple[int, int, int, int], mask: int | None, metadata: dict) -> Sample:
        """The sample of a box of the mosaic; only pixels of field `mask` are valid, where it is given."""
        dates, size = len(self._dates), box[2:]
        values = np.full((dates, 13, *size), np.nan, np.float32)
        valid = np.zeros((dates, *size), bool)
        exists = np.tile(np.array(L2A_BANDS), (dates, 1))
        for tile, inside, window in self._parts(box):
            shown = np.ones((window[3], window[2]), bool)
            if mask is not None:
                shown = self._read(self._label_files[tile, "field_id"], *window) == mask
            for t, date in enumerate(self._dates):
                for band in BANDS:
                    path, k = self._images.get((tile, date, band)), S2_BANDS.index(band)
                    if path is None:
                        exists[t, k] = False
                    else:
                        values[(t, k, *inside)] = self._read(path, *window)
                clouds = self._images.get((tile, date, "CLD"))
                clear = True if clouds is None else self._read(clouds, *window) < self.cloud_threshold
                valid[(t, *inside)] = shown & clear
        values[~exists] = np.nan
        # Nothing reflects exactly 0 in every band: fill.
        empty = ((values == 0) | ~np.isfinite(values)).all(axis=1)
        valid &= ~empty
        if not valid.any():
            raise DataError(f"{id}: no clear pixel on any of {dates} dates (cloud_threshold {self.cloud_threshold:g})")
        np.moveaxis(values, 1, -1)[empty] = np.nan
        values = s2_to_dn(values, units=self.s2_units, offset=0, bands=exists, where=id)
        x, y = CORNER[0] + 10 * box[1], CORNER[1] - 10 * box[0]
        lon, lat = self._lon_lat([(box[0] + box[2] / 2, box[1] + box[3] / 2)])
        return make_sample(
            id,
            s2=values,
            s2_dates=self.dates,
            s2_valid=valid,
            s2_bands=exists,
            s2_level="L2A",
            lon=lon[0],
            lat=lat[0],
            crs=self.crs,
            transform=(10.0, 0.0, x, 0.0, -10.0, y) if self.crs else None,
            generated=self.generated,
            **metadata,
        )

    def _lon_lat(self, points: Sequence[tuple[float, float]]) -> tuple[list, list]:
        """Longitudes and latitudes of (row, column) in the mosaic."""
        if self.crs is None:
            return [None] * len(points), [None] * len(points)
        xs, ys = zip(*((CORNER[0] + 10 * c, CORNER[1] - 10 * r) for r, c in points), strict=True)
        return rasterio.warp.transform(self.crs, "EPSG:4326", xs, ys)

    def _place(self, row: float, column: float) -> dict:
        """Region (the tile) and block of a pixel of the mosaic."""
        down, right = min(int(row // self.tile_size[1]), 1), min(int(column // self.tile_size[0]), 1)
        tile = next(tile for tile, place in TILE_PLACES.items() if place == (down, right))
        block = f"{self._prefix}_{int(row // BLOCK):02d}_{int(column // BLOCK):02d}"
        return {"region": f"{self._prefix}_tile_{tile}", "tile": tile, "block": block}


__all__ = ["BANDS", "CORNER", "KenyaMosaic", "SPLIT_FILES", "TILE_PLACES", "TILE_SIZE"]
