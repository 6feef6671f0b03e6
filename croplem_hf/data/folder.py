"""A user's own imagery as samples of whole places and as windows; `metadata` describes the table that lists it."""

import collections
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio.warp

from ..errors import DataError
from ..sensors import SENSORS
from .image import Image, group_images, settle_offsets
from .layer import Layer, raster_size
from .metadata import CLOUD_THRESHOLD, NAMES, RasterRow, find_table, place_labels, read_metadata
from .plan import Layout
from .sample import Sample, make_sample

logger = logging.getLogger(__name__)

OVERVIEW = 256
"""Units and offset are decided on this many rows and columns, spread over the whole raster."""

KEPT_SCENES = 256


class Scene:
    """One place on one grid, read window by window: memory follows the window, not the scene.

        scene = open_scene("my_place")               # the folder of metadata.csv
        sample = scene.read(0, 512, 256, 256)

    Args:
        rows: the lines of one place (`read_metadata`).

    Attributes:
        id, paths (its files), height, width (pixels), crs, transform (as in `RasterInfo`), gsd (metres), lon, lat,
        region; `labels` (all metadata that the table gives); `dates` {"s1": [...], "s2": [...]} in order of time,
        `s2_level`, `s1_kind`, `s1_orbit` (None where dates differ); `corrections` {"s1": ..., "s2": ...}, what is done
        to the stored numbers, in words, None for nothing.

    Raises:
        DataError: naming file and line: missing or damaged, wrong bands, other ground than its partners, one band
            twice, units or level that cannot be told.
    """

    def __init__(self, rows: Sequence[RasterRow]):
        self.id = rows[0].id
        self.paths = {path for row in rows for path in (row.path, row.mask, row.clouds) if path is not None}
        self.labels = place_labels(self.id, rows)
        self.region = self.labels.get("region")
        layers = [Layer.open(row) for row in rows]
        grid = min(layers, key=lambda layer: abs(np.linalg.det(np.reshape(layer.info.transform, (2, 3))[:, :2])))
        self.height, self.width = grid.shape
        self.crs, self.transform = grid.info.crs, grid.info.transform
        self.lon, self.lat, self.gsd = grid.info.lon, grid.info.lat, grid.info.gsd
        if self.gsd is None:
            logger.warning("%s: %s does not tell the size of a pixel in metres; taken as 10 m", self.id, grid.path)
            self.gsd = 10.0
        self._images = group_images([layer.fitted(grid) for layer in layers], grid)
        for image in (image for images in self._images.values() for image in images):
            image.decide((min(self.height, OVERVIEW), min(self.width, OVERVIEW)))
        settle_offsets(self._images["s2"])
        self.dates = {sensor: [image.date for image in images] for sensor, images in self._images.items()}
        self.corrections = {sensor: _corrections(images) for sensor, images in self._images.items()}
        kinds = {kind: image.where for image in self._images["s1"] if (kind := image.kind())}
        if len(kinds) > 1:
            raise DataError(f"{self.id}: radar of both kinds, {kinds}; give the kinds different ids")
        self.s1_kind = next(iter(kinds), None)
        orbits = {row.orbit for row in rows if row.sensor == "s1"}
        self.s1_orbit = orbits.pop() if len(orbits) == 1 else None
        levels = {image.level(): image.where for image in self._images["s2"]}
        if len(levels) > 1:
            raise DataError(f"{self.id}: optics of both levels, {levels}; give the levels different ids")
        self.s2_level = next(iter(levels), None)

    def read(self, row: int = 0, column: int = 0, height: int | None = None, width: int | None = None) -> Sample:
        """The sample of a window, the whole scene by default.

        Raises:
            DataError: the window leaves the scene, nothing is valid in it, or a file cannot be read.
        """
        height, width = (self.height if height is None else height), (self.width if width is None else width)
        whole = (row, column, height, width) == (0, 0, self.height, self.width)
        name = self.id if whole else f"{self.id} [{row}:{row + height}, {column}:{column + width}]"
        a, b, c, d, e, f = self.transform
        x, y = c + a * column + b * row, f + d * column + e * row
        lon, lat = self._place(x + (a * width + b * height) / 2, y + (d * width + e * height) / 2)
        fields = self.arrays(row, column, height, width) | self.labels
        # A table may tell where a raster without coordinates lies.
        fields |= {} if lon is None else {"lon": lon, "lat": lat}
        fields |= {f"{sensor}_correction": text for sensor, text in self.corrections.items() if text}
        return make_sample(name, gsd=self.gsd, **fields, crs=self.crs, transform=(a, b, x, d, e, y))

    def arrays(self, row: int, column: int, height: int, width: int) -> dict:
        """Keywords of `make_sample` for the sensors of a window, whether or not anything is valid in it.

        `s1` is NaN and `s2` is 0 where a pixel is not valid; bands and dates are the same in every window.
        """
        if not (0 <= row and 0 <= column and 0 < height <= self.height - row and 0 < width <= self.width - column):
            raise DataError(
                f"{self.id}: window of {height} x {width} pixels at row {row}, column {column} leaves the scene of "
                f"{self.height} x {self.width}"
            )
        fields = {}
        for sensor, images in self._images.items():
            if images:
                parts = [image.measured(lambda layer: layer.window(row, column, height, width)) for image in images]
                fields[sensor] = np.stack([values for values, _ in parts])
                fields |= {f"{sensor}_valid": np.stack([valid for _, valid in parts])}
                fields |= {f"{sensor}_dates": self.dates[sensor]}
        if "s1" in fields:
            fields |= {"s1_kind": self.s1_kind, "s1_orbit": self.s1_orbit}
        if "s2" in fields:
            fields |= {"s2_level": self.s2_level, "s2_bands": np.stack([image.exists for image in self._images["s2"]])}
        return fields

    def _place(self, x: float, y: float) -> tuple[float | None, float | None]:
        if self.lon is None:
            return None, None
        (lon,), (lat,) = rasterio.warp.transform(self.crs, "EPSG:4326", [x], [y])
        return lon, lat


def _corrections(images: Sequence[Image]) -> str | None:
    """What is done to the numbers of all dates, and to how many where not to all."""
    found = collections.Counter(image.correction for image in images)
    texts = [
        text if count == len(images) else f"{text} (some dates)"
        for text, count in sorted(found.items(), key=lambda item: str(item[0]))
        if text
    ]
    return "; ".join(texts) or None


class ImageFolder:
    """The places of a `metadata.csv` or `.parquet` as samples, each whole; its two forms stand in `metadata`.

    A mistake in the table is refused at once, a raster that cannot be used where its place is read. What is done to the
    stored numbers stands in a sample's `s1_correction` and `s2_correction`.

    Args:
        root_or_table: the table, or the folder that holds it.
        sensors: which of "s1" and "s2" to read; None for all that are listed. A place with none of them is no item.
        s2_level, s1_units, s2_units, s2_offset: for lines that leave them empty.
        cloud_threshold: percent of cloud probability from which a pixel is cloud, for lines that leave it empty.

    Attributes:
        ids: the places, in the order of the table.

    Raises:
        DataError: see `read_metadata`; or no place has the sensors.
    """

    kind = "folder"
    unit = "patch"
    seasonal = False

    def __init__(
        self,
        root_or_table: str | os.PathLike,
        *,
        sensors: Sequence[str] | None = None,
        s2_level: str | None = None,
        s1_units: str = "auto",
        s2_units: str = "auto",
        s2_offset: int | str = "auto",
        cloud_threshold: float = CLOUD_THRESHOLD,
    ):
        sensors = SENSORS if sensors is None else tuple(sensors)
        if not sensors or not set(sensors) <= set(SENSORS):
            raise DataError(f"sensors must be some of {SENSORS}, found {sensors!r}")
        self.root, self.sensors, self.s2_level = Path(root_or_table), sensors, s2_level
        self.s1_units, self.s2_units, self.s2_offset = s1_units, s2_units, s2_offset
        self.cloud_threshold = cloud_threshold
        options = {"s2_level": s2_level, "s1_units": s1_units, "s2_units": s2_units, "s2_offset": s2_offset}
        places = read_metadata(root_or_table, cloud_threshold=cloud_threshold, **options)
        places = {id: [row for row in rows if row.sensor in sensors] for id, rows in places.items()}
        self._places = {id: rows for id, rows in places.items() if rows}
        if not self._places:
            raise DataError(f"{root_or_table}: the table lists no raster of {' or '.join(sensors)}")
        self._labels = {id: place_labels(id, rows) for id, rows in places.items() if id in self._places}
        self.ids = list(self._places)
        self._scenes: collections.OrderedDict[int, Scene] = collections.OrderedDict()

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is a table such as `metadata.csv` or `metadata.parquet`, or the folder of one."""
        if path.is_dir():
            return any((path / name).is_file() for name in NAMES)
        return path.is_file() and (path.suffix.lower() == ".csv" or path.name == "metadata.parquet")

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_scenes": collections.OrderedDict()}

    def layout(self) -> Layout:
        """Dates by the table, and sizes by the headers of the rasters of one date of each sensor.

        A place whose rasters cannot be opened is left out with a warning.

        Raises:
            DataError: no place can be opened.
        """
        shapes, first = np.zeros((len(self), 4), np.int32), None
        for i, (id, rows) in enumerate(self._places.items()):
            dates = [dict.fromkeys(row.date for row in rows if row.sensor == sensor) for sensor in SENSORS]
            opened = [r for r in rows if r.date == next(iter(dates[SENSORS.index(r.sensor)]))]
            try:
                _, *size = min(raster_size(row) for row in opened)
            except DataError as error:
                logger.warning("left out: %s: %s", id, error)
                first = first or error
                continue
            shapes[i] = [len(dates[0]), len(dates[1]), *size]
        if not shapes.any():
            raise DataError(f"no place of the table can be read; the first: {first}")
        return Layout(shapes)

    def columns(self) -> dict[str, np.ndarray]:
        """Metadata that the table gives, by column: object (N,), None where a place has none."""
        names = dict.fromkeys(name for labels in self._labels.values() for name in labels)
        found = {name: np.empty(len(self), object) for name in names}
        for i, labels in enumerate(self._labels.values()):
            for name, value in labels.items():
                found[name][i] = value
        return found

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`: the whole place.

        Raises:
            IndexError: past the end.
            DataError: see `Scene`.
        """
        return self.scene(i).read()

    def scene(self, i: int) -> Scene:
        """Place `i` for reading by windows; what was found out about the last ones is kept."""
        i = range(len(self))[i]
        if i not in self._scenes:
            self._scenes[i] = Scene(self._places[self.ids[i]])
            if len(self._scenes) > KEPT_SCENES:
                self._scenes.popitem(last=False)
        self._scenes.move_to_end(i)
        return self._scenes[i]


def open_scene(root_or_table: str | os.PathLike, id: str | None = None, **options) -> Scene:
    """One place of a `metadata.csv` or `metadata.parquet` for reading by windows.

    Args:
        root_or_table: the table, or the folder that holds it.
        id: which place; may be left out where there is one only.
        options: as in `ImageFolder`.

    Raises:
        DataError: see `ImageFolder` and `Scene`; no such place, or several and none was named; data of another layout.
    """
    path = Path(root_or_table)
    if path.exists() and find_table(path) is None:
        raise DataError(
            f"{path}: is no scene; a scene is a folder with metadata.csv, which lists the rasters of a place and their "
            "dates, or that table itself (docs/imagery.md). Only `croplem embed` takes SEN12MS, shards and series"
        )
    folder = ImageFolder(root_or_table, **options)
    if id is None and len(folder) > 1:
        found = ", ".join(folder.ids[:5])
        raise DataError(f"{root_or_table}: holds {len(folder)} places, {found} ...; name one of them")
    if id is not None and id not in folder.ids:
        raise DataError(f"{root_or_table}: no place {id!r}; there are {', '.join(folder.ids[:5])}")
    return folder.scene(0 if id is None else folder.ids.index(id))


__all__ = ["ImageFolder", "Scene", "open_scene"]
