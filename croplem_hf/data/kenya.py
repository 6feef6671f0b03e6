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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import DataError
from .geotiff import read_geotiff
from .kenya_mosaic import SPLIT_FILES, TILE_PLACES, KenyaMosaic
from .metadata import CLOUD_THRESHOLD
from .plan import Layout
from .sample import Sample

logger = logging.getLogger(__name__)

CROPS = {
    1: "maize", 2: "cassava", 3: "common bean", 4: "maize and common bean", 5: "maize and cassava",
    6: "maize and soybean", 7: "cassava and common bean",
}  # fmt: skip
"""Names of the crop codes; 0 is a test field, whose label is withheld."""

_ROWS_TOGETHER = 64
# Parts of one field in two tiles meet at the seam; if they lie further apart, the number was used twice.
_LONGEST_FIELD = 400


class KenyaFields(KenyaMosaic):
    """Fields of the Kenya crop-type data, one sample a field, in the order of tiles and rows.

    Beside the contract a sample has `field_id`, `crop_type` and `crop_code` (None where the label is withheld),
    `cropland` (1 where labelled), `split`, `region` and `tile`, `block` (a spatial block of 2.56 km), `area_px` (pixels
    of the field) and `generated` (invented data, whose ids begin with "generated_").

    This is the way for this data set, whose fields are numbers of pixels. Fields that are polygons go through
    `croplem_hf.embed_fields`; of the same pixels, both give the same embedding at patch size 1.

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

    def layout(self) -> Layout:
        """`Layout` by the windows; fields of the same rows of a tile are one group."""
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
            logger.warning("%s: no %s; fields without a label are taken as test", self.root, " or ".join(SPLIT_FILES))
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


class KenyaTiles(KenyaMosaic):
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

    def layout(self) -> Layout:
        """`Layout`: all windows are alike; those of one row are one group."""
        shapes = np.tile(np.array([0, len(self.dates), self.size, self.size], np.int32), (len(self), 1))
        return Layout(shapes, np.array([row // self.size for row, _ in self._corners], np.int32))

    def columns(self) -> dict[str, np.ndarray]:
        """Metadata to choose windows by: object (N,) each."""
        places = [self._place(*corner) for corner in self._corners]
        return {name: np.array([place[name] for place in places], object) for name in places[0]}


__all__ = ["CROPS", "KenyaFields", "KenyaTiles"]
