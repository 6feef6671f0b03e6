"""Kenya crop type (CV4A 2020, `ref_african_crops_kenya_02`, doi 10.34911/RDNT.DW605X, CC-BY-SA-4.0): fields of western
Kenya in 13 dates of Sentinel-2 L2A, no radar.

Three layouts are in circulation, and files are found by their names in any of them:

    FieldIds.csv, data/0/0_field_id.tif, data/0/0_label.tif, data/0/20190606/0_B01_20190606.tif   Source Cooperative
    the same with folders data/00 to data/03                                                      Zindi
    ref_african_crops_kenya_02_tile_00_20190606/B01.tif, ..._tile_00_label/{labels,field_ids}.tif,
    _common/field_train_test_ids.csv                                                              MLHub

The four tiles are one mosaic, [1 | 3] over [0 | 2]; windows are read across their seams. Every field is crop: the data
holds no example of land that is not, and ground without a field is unknown.
"""

import collections
import csv
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
from scipy import ndimage

from ..errors import DataError
from ..sensors import L2A_BANDS, S2_BANDS, decide_s2_units, s2_to_dn
from .geotiff import read_geotiff, reason
from .metadata import CLOUD_THRESHOLD
from .sample import Sample, make_sample

logger = logging.getLogger(__name__)

CROPS = {
    1: "maize", 2: "cassava", 3: "common bean", 4: "maize and common bean", 5: "maize and cassava",
    6: "maize and soybean", 7: "cassava and common bean",
}  # fmt: skip
"""Names of the crop codes; 0 is a test field, whose label is withheld."""

BANDS = tuple(band for band, exists in zip(S2_BANDS, L2A_BANDS, strict=True) if exists)
TILE_SIZE = (2016, 3035)
"""Width and height of a published tile in pixels of 10 m."""
CORNER = (613740.0, 79160.0)
"""Easting and northing of the mosaic's upper left corner in EPSG:32636: the files carry none, others recovered it."""
TILE_PLACES = {1: (0, 0), 3: (0, 1), 0: (1, 0), 2: (1, 1)}
"""Row and column of each tile in the mosaic."""
BLOCK = 256
"""Side of a spatial block in pixels; never split one between training and test."""
GENERATED = "GENERATED.txt"
"""A folder with this file holds invented data."""

_PLAIN_IMAGE = re.compile(r"(?:^|/)0?([0-3])/(\d{8})/\d+_(B\d\d|B8A|CLD)_\d{8}\.tif$")
_PLAIN_LABEL = re.compile(r"(?:^|/)0?([0-3])/\d+_(label|field_id)\.tif$")
_MLHUB_IMAGE = re.compile(r"_tile_0?([0-3])_(\d{8})/(B\d\d|B8A|CLD)\.tif$")
_MLHUB_LABEL = re.compile(r"_tile_0?([0-3])_label/(label|field_id)s\.tif$")
_SPLITS = ("FieldIds.csv", "field_train_test_ids.csv")
# Files of one tile (13 dates x 13, and its field ids): walking along a tile opens none twice.
_OPEN_FILES = 192
_ROWS_TOGETHER = 64
# Parts of one field in two tiles meet at the seam; if they lie further apart, the number was used twice.
_LONGEST_FIELD = 400


class _Mosaic:
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
                if name in _SPLITS:
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


class KenyaFields(_Mosaic):
    """Fields of the Kenya crop-type data, one sample a field, in the order of tiles and rows.

    Beside the contract a sample has `field_id`, `crop_type` and `crop_code` (None where the label is withheld),
    `cropland` (1 where labelled), `split`, `region` and `tile`, `block` (a spatial block of 2.56 km), `area_px` (pixels
    of the field) and `generated` (invented data, whose ids begin with "generated_").

    Args:
        root: a copy of the data in any layout.
        split: "train", "test" (labels withheld), or None for both.
        window: side of a square around the middle of the field in pixels, odd; None for the smallest that holds it.
            What lies beyond the tiles is invalid; a field larger than the window is cut.
        context: pixels around the smallest window.
        masked: True: pixels outside the field are invalid, so that an embedding is the field's own; False: they stay.
        sensors: must hold "s2".
        cloud_threshold: percent of the layer CLD from which a pixel is cloud, so invalid; the default is s2cloudless'.
        allow_missing: True: a band whose file is missing is absent on that date, and a date without CLD is taken as
            clear; False: either is refused.
        s2_units: "reflectance", "dn" or "auto", found once for all fields. There is no offset: the data is of 2020.

    Attributes:
        ids: such as "kenya_1234", the number of the field.
        dates: ISO texts of the T2 dates.

    Raises:
        DataError: no copy of the data, files missing (which), rasters of other sizes, an unknown class, or no field.
    """

    unit = "field"

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        split: str | None = None,
        window: int | None = None,
        context: int = 0,
        masked: bool = True,
        sensors: Sequence[str] | None = None,
        cloud_threshold: float = CLOUD_THRESHOLD,
        allow_missing: bool = False,
        s2_units: str = "auto",
    ):
        if split not in (None, "train", "test"):
            raise DataError(f"split must be 'train', 'test' or None, found {split!r}")
        if (window is not None and (window < 1 or window % 2 == 0)) or context < 0:
            raise DataError(f"window must be odd and above 0, context at least 0, found {window} and {context}")
        super().__init__(root, sensors, cloud_threshold, allow_missing, s2_units)
        self.split, self.window, self.context, self.masked = split, window, context, masked
        fields = [field for field in self._inventory() if split in (None, field["split"])]
        if not fields:
            raise DataError(f"{self.root}: no field of split {split!r} in tiles {self.tiles}")
        self._fields = sorted(fields, key=lambda field: (field["tile"], field["box"][:2], field["field_id"]))
        self.ids = [f"{self._prefix}_{field['field_id']}" for field in self._fields]
        cut = 0 if window is None else sum(max(field["box"][2:]) > window for field in self._fields)
        if cut:
            logger.warning("%s: %d fields are larger than the window of %d pixels and cut", root, cut, window)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`.

        Raises:
            IndexError: past the end.
            DataError: naming the file or the id: a damaged raster, or no clear pixel on any date.
        """
        field = self._fields[i]
        metadata = {name: value for name, value in field.items() if name != "box"}
        return self._window(self.ids[i], self._box(i), field["field_id"] if self.masked else None, metadata)

    def layout(self):
        """`Layout` by the windows; fields of the same rows of a tile are one group."""
        from .plan import Layout

        boxes = np.array([self._box(i) for i in range(len(self))])
        shapes = np.zeros((len(self), 4), np.int32)
        shapes[:, 1], shapes[:, 2:] = len(self.dates), boxes[:, 2:]
        keys = [(field["tile"], field["box"][0] // _ROWS_TOGETHER) for field in self._fields]
        return Layout(shapes, np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32))

    def columns(self) -> dict[str, np.ndarray]:
        """Metadata to choose fields by: object (N,) each."""
        names = [name for name in self._fields[0] if name != "box"]
        columns = {name: np.empty(len(self), object) for name in names}
        for i, field in enumerate(self._fields):
            for name in names:
                columns[name][i] = field[name]
        return columns

    def _box(self, i: int) -> tuple[int, int, int, int]:
        row, column, height, width = self._fields[i]["box"]
        if self.window is not None:
            side = self.window
            return (2 * row + height - side) // 2, (2 * column + width - side) // 2, side, side
        c = self.context
        return row - c, column - c, height + 2 * c, width + 2 * c

    def _inventory(self) -> list[dict]:
        """Every field with its box (row, column, height, width) in the mosaic, its label and its place."""
        parts, mixed = collections.defaultdict(list), 0
        for tile in self.tiles:
            rasters = {kind: self._whole(self._label_files[tile, kind]) for kind in ("field_id", "label")}
            ids, labels = rasters["field_id"], rasters["label"]
            unknown = sorted(set(np.unique(labels[ids > 0]).tolist()) - {0, *CROPS})
            if unknown:
                raise DataError(f"{self._label_files[tile, 'label']}: unknown classes {unknown[:5]}, known are 0 to 7")
            numbers = np.unique(ids[ids > 0])
            compact = np.where(ids > 0, np.searchsorted(numbers, ids) + 1, 0)
            counts = np.zeros((len(numbers) + 1, 8), np.int64)
            np.add.at(counts, (compact[ids > 0], labels[ids > 0]), 1)
            top, left = TILE_PLACES[tile][0] * ids.shape[0], TILE_PLACES[tile][1] * ids.shape[1]
            for k, (rows, columns) in enumerate(ndimage.find_objects(compact), start=1):
                box = (rows.start + top, columns.start + left, rows.stop + top, columns.stop + left)
                parts[int(numbers[k - 1])].append((box, counts[k]))
        splits, fields, far = self._read_splits(), [], []
        for number, found in parts.items():
            boxes = np.array([box for box, _ in found])
            box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
            if len(found) > 1 and max(box[2] - box[0], box[3] - box[1]) > _LONGEST_FIELD:
                far.append(number)
                found = [max(found, key=lambda part: part[1].sum())]
                box = found[0][0]
            count = sum(counts for _, counts in found)
            mixed += int((count > 0).sum() > 1)
            # A field with a label on some of its pixels has that label.
            code = int(count[1:].argmax()) + 1 if count[1:].any() else 0
            split = splits.get(number) if splits is not None else "train" if code else "test"
            code = code if split != "test" else 0
            fields.append(
                {
                    "field_id": number,
                    "crop_type": CROPS.get(code),
                    "crop_code": code or None,
                    "cropland": 1 if code else None,
                    "split": split,
                    "area_px": int(count.sum()),
                    "box": (box[0], box[1], box[2] - box[0], box[3] - box[1]),
                    **self._place((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
                }
            )
        self._report(mixed, far, splits, fields)
        return fields

    def _report(self, mixed: int, far: list[int], splits: dict | None, fields: list[dict]) -> None:
        """Warn of what is odd in the labels."""
        numbers = {field["field_id"] for field in fields}
        lost = sum(number not in numbers for number in splits or {})
        bare = [field["field_id"] for field in fields if field["split"] == "train" and not field["crop_code"]]
        unlisted = [field["field_id"] for field in fields if field["split"] is None]
        for count, text in (
            (mixed, "fields have pixels of several classes; the most frequent one counts"),
            (len(far), f"field numbers stand in tiles far apart; the larger part counts: {far[:5]}"),
            (lost if len(self.tiles) == len(TILE_PLACES) else 0, f"fields of {self._split_file} are in no raster"),
            (len(bare), f"training fields have no label: {bare[:5]}"),
            (len(unlisted), f"fields are in no split: {unlisted[:5]}"),
        ):
            if count:
                logger.warning("%s: %d %s", self.root, count, text)

    def _whole(self, path: Path) -> np.ndarray:
        """A raster of whole numbers, int64 (H, W); missing is 0."""
        values = read_geotiff(path, count=1)[0][0]
        if values.shape != self.tile_size[::-1]:
            raise DataError(f"{path}: {values.shape[1]} x {values.shape[0]} pixels, expected {self.tile_size}")
        whole = np.nan_to_num(values, nan=0).astype(np.int64)
        if values.dtype.kind == "f" and not np.array_equal(whole, np.nan_to_num(values, nan=0)):
            raise DataError(f"{path}: holds numbers that are not whole")
        return np.maximum(whole, 0)

    def _read_splits(self) -> dict[int, str] | None:
        """Field number -> split by the official table, whose columns run out at different lines."""
        path = self._split_file
        if path is None:
            logger.warning("%s: no %s; fields without a label are taken as test", self.root, " or ".join(_SPLITS))
            return None
        with open(path, newline="", encoding="utf-8-sig") as handle:
            header, *lines = list(csv.reader(handle)) or [[]]
        columns = {name: k for name in ("train", "test") for k, text in enumerate(header)
                   if text.strip().lower().startswith(name)}  # fmt: skip
        if len(columns) < 2:
            raise DataError(f"{path}: columns train and test are expected, found {header}")
        splits = {}
        for number, line in enumerate(lines, start=2):
            for split, k in columns.items():
                text = line[k].strip() if k < len(line) else ""
                if not text:
                    continue
                try:
                    field = int(float(text))
                except ValueError:
                    raise DataError(f"{path} line {number}: {text!r} is no number of a field") from None
                if splits.setdefault(field, split) != split:
                    raise DataError(f"{path} line {number}: field {field} is in both splits")
        return splits


class KenyaTiles(_Mosaic):
    """Square windows that cover the tiles, without labels, for pretraining and maps.

    Args:
        root: a copy of the data in any layout.
        size: pixels along a side; windows beyond the edge are filled up with invalid pixels.
        sensors, cloud_threshold, allow_missing, s2_units: as in `KenyaFields`.

    Attributes:
        ids: such as "kenya_r00064_c00128": row and column of the upper left pixel in the mosaic.

    Raises:
        DataError: as for `KenyaFields`.
    """

    unit = "patch"

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        size: int = 64,
        sensors: Sequence[str] | None = None,
        cloud_threshold: float = CLOUD_THRESHOLD,
        allow_missing: bool = False,
        s2_units: str = "auto",
    ):
        if size < 1:
            raise DataError(f"size must be above 0, found {size}")
        super().__init__(root, sensors, cloud_threshold, allow_missing, s2_units)
        self.size = size
        width, height = self.tile_size
        corners = ((row, column) for row in range(0, 2 * height, size) for column in range(0, 2 * width, size))
        self._corners = [corner for corner in corners if any(self._parts((*corner, size, size)))]
        self.ids = [f"{self._prefix}_r{row:05d}_c{column:05d}" for row, column in self._corners]

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`; raises as `KenyaFields`."""
        row, column = self._corners[i]
        return self._window(self.ids[i], (row, column, self.size, self.size), None, self._place(row, column))

    def layout(self):
        """`Layout`: all windows are alike; those of one row are one group."""
        from .plan import Layout

        shapes = np.tile(np.array([0, len(self.dates), self.size, self.size], np.int32), (len(self), 1))
        return Layout(shapes, np.array([row // self.size for row, _ in self._corners], np.int32))

    def columns(self) -> dict[str, np.ndarray]:
        """Metadata to choose windows by: object (N,) each."""
        places = [self._place(*corner) for corner in self._corners]
        return {name: np.array([place[name] for place in places], object) for name in places[0]}


__all__ = ["BANDS", "CROPS", "KenyaFields", "KenyaTiles"]
