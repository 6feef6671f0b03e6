"""Fields over a scene as samples: which pixels a polygon covers, read field by field."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import rasterio.warp
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.transform import Affine

from ..errors import DataError
from ..sensors import SENSORS
from .folder import Scene
from .polygons import Polygons, shapely  # shapely from there, where its absence is told
from .sample import Sample, make_sample

logger = logging.getLogger(__name__)

TOKENS_PER_FIELD = 2048
LEAST_COVER = 0.01
"""A pixel of which the field covers less is none of the field's."""
# Fields are read together where they lie in one square of so many values (bands, dates, pixels; 128 MB as float32).
BLOCK_VALUES = 2**25
BLOCK = 256
CHUNK = 128


def coverage(geometry, row: int, column: int, height: int, width: int) -> np.ndarray:
    """Share of each pixel that a polygon covers, exactly.

    Args:
        geometry: shapely polygon in pixels: x is the column, y the row, whole numbers are the pixels' edges.
        row, column, height, width: the window.

    Returns:
        float64 (height, width), 0..1.
    """
    rows, columns = np.mgrid[row : row + height, column : column + width]
    boxes = shapely.box(columns, rows, columns + 1, rows + 1)
    shapely.prepare(geometry)
    shares = shapely.contains_properly(geometry, boxes).astype(np.float64)
    border = (shares == 0) & shapely.intersects(geometry, boxes)
    shares[border] = shapely.area(shapely.intersection(geometry, boxes[border]))
    return shares.clip(0, 1)


def patch_weights(shares: np.ndarray, patch_size: int) -> np.ndarray:
    """Covered pixels of each patch: (height, width) -> (rows, columns), beyond the window nothing is covered."""
    height, width = shares.shape
    p = patch_size
    shares = np.pad(shares, ((0, -height % p), (0, -width % p)))
    return shares.reshape(shares.shape[0] // p, p, shares.shape[1] // p, p).sum(axis=(1, 3))


def lattice(shares: np.ndarray, dates: int, patch_size: int = 1) -> np.ndarray:
    """Leave every k-th row and column of patches, for the least k that leaves `TOKENS_PER_FIELD` tokens or one patch.

    Args:
        shares: (H, W), as of `FieldWindow`.
        dates: of all sensors.
        patch_size: pixels a patch.

    Returns:
        (H, W), 0 off the lattice; of the k x k lattices the one that covers most.
    """
    patches, step = patch_weights(shares, patch_size), 1
    most = max(1, TOKENS_PER_FIELD // dates)
    kept = patches > 0
    while kept.sum() > most:
        step += 1
        area = _offset_sums(patches, step)
        first = np.unravel_index(area.argmax(), area.shape)
        kept = np.zeros(patches.shape, bool)
        kept[first[0] :: step, first[1] :: step] = True
        kept &= patches > 0
    pixels = kept.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    return shares * pixels[: shares.shape[0], : shares.shape[1]]


def _offset_sums(patches: np.ndarray, step: int) -> np.ndarray:
    """(step, step): sum of the patches of each lattice."""
    rows, columns = patches.shape
    patches = np.pad(patches, ((0, -rows % step), (0, -columns % step)))
    return patches.reshape(patches.shape[0] // step, step, patches.shape[1] // step, step).sum(axis=(0, 2))


@dataclasses.dataclass(frozen=True)
class FieldWindow:
    """The window of a field: first row and column, which may lie outside the scene, and `shares` (height, width) of
    its pixels that are the field's."""

    row: int
    column: int
    shares: np.ndarray


class SceneFields:
    """The fields of a file over a scene as a source: `ids`, `kind`, `unit`, and samples by number.

    Fields are in the order in which they are read, by squares of the scene. A sample has, beside the contract, what the
    table says of the field, its `attributes`, and `coverage` float64 (H, W), the share of each pixel that is the
    field's, 0 off the `lattice`; pixels without a share are not valid.

    Args:
        scene: the place (`open_scene`).
        polygons: its fields (`read_polygons`).
        sensors: which of "s1" and "s2" to read; None for both.
        shrink: metres by which the border moves inward, for polygons drawn with an error of GPS.
        patch_size: pixels a patch.

    Raises:
        DataError: a scene that lies nowhere on Earth or lacks the sensors, or a negative `shrink`.
    """

    kind = "fields"
    unit = "field"

    def __init__(
        self,
        scene: Scene,
        polygons: Polygons,
        *,
        sensors: Sequence[str] | None = None,
        shrink: float = 0.0,
        patch_size: int = 1,
    ):
        if not 0 <= shrink < np.inf:
            raise DataError(f"shrink must be metres of at least 0, found {shrink}")
        if scene.crs is None or scene.lon is None:
            raise DataError(f"{scene.id}: the rasters have no coordinate system; fields cannot be laid over them")
        self.scene, self.polygons, self.shrink, self.patch_size = scene, polygons, float(shrink), patch_size
        self.sensors = tuple(s for s in SENSORS if scene.dates[s] and s in (sensors or SENSORS))
        if not self.sensors:
            raise DataError(f"{scene.id}: holds no imagery of {' or '.join(sensors or SENSORS)}")
        self._dates = sum(len(scene.dates[s]) for s in self.sensors)
        self._values = sum({"s1": 2, "s2": 13}[s] * len(scene.dates[s]) for s in SENSORS)
        self._inverse = ~Affine(*scene.transform)
        # Equal areas, and true lengths as near as a scene is wide.
        self._local = CRS.from_string(f"+proj=laea +lat_0={scene.lat} +lon_0={scene.lon} +units=m")
        self._place()

    def __len__(self) -> int:
        return len(self.ids)

    def _place(self) -> None:
        """Bring all polygons to pixels of the scene, find what cannot be used, and choose the order of reading."""
        given, n = self.polygons.geometries, len(self.polygons)
        problems = dict(self.polygons.problems)
        there = np.flatnonzero([g is not None for g in given])
        local = np.full(n, None, object)
        local[there] = transformed(given[there], self.polygons.crs, self._local)
        there = there[np.isfinite(shapely.bounds(local[there])).all(axis=1)]
        area, bounds = np.zeros(n), np.full((n, 4), np.nan)
        area[there] = shapely.area(local[there]) / 1e4
        middle = transformed(shapely.centroid(given[there]), self.polygons.crs, CRS.from_epsg(4326))
        centre = np.full((n, 2), np.nan)
        centre[there] = shapely.get_coordinates(middle)
        target = CRS.from_user_input(self.scene.crs)
        if self.shrink:
            shrunk = np.full(n, None, object)
            shrunk[there] = shapely.buffer(local[there], -self.shrink, join_style="mitre")
            for k in there[shapely.is_empty(shrunk[there])]:
                widest = 2 * shapely.maximum_inscribed_circle(local[k]).length
                problems[self.polygons.ids[k]] = (
                    f"nothing is left of it after shrinking by {self.shrink:g} m on each side, since it is "
                    f"{widest:.0f} m wide; shrink by less"
                )
                shrunk[k] = None
            there = np.flatnonzero([g is not None for g in shrunk])
            pixels = np.full(n, None, object)
            pixels[there] = transformed(shrunk[there], self._local, target)
        else:
            pixels = np.full(n, None, object)
            pixels[there] = transformed(given[there], self.polygons.crs, target)
        there = there[np.isfinite(shapely.bounds(pixels[there])).all(axis=1)]
        if len(there):
            pixels[there] = shapely.transform(pixels[there], self._to_pixels)
            bounds[there] = shapely.bounds(pixels[there])
        for k in np.flatnonzero([g is not None for g in given]):
            left, top, right, bottom = bounds[k]
            if self.polygons.ids[k] in problems:
                continue
            if not np.isfinite(bounds[k]).all():
                problems[self.polygons.ids[k]] = "cannot be brought to the coordinate system of the scene"
            elif right <= 0 or bottom <= 0 or left >= self.scene.width or top >= self.scene.height:
                place = f"({centre[k, 0]:.5f}, {centre[k, 1]:.5f})"
                problems[self.polygons.ids[k]] = (
                    f"lies outside the scene {self.scene.id}: its longitude and latitude are {place}, those of the "
                    f"scene's middle ({self.scene.lon:.5f}, {self.scene.lat:.5f})"
                )
        side = int(np.clip(np.sqrt(BLOCK_VALUES / self._values), 1, BLOCK))
        corner = np.nan_to_num(bounds[:, :2], nan=-1, posinf=-1, neginf=-1) // side
        order = np.lexsort((np.arange(n), corner[:, 0], corner[:, 1]))
        self.ids = [self.polygons.ids[k] for k in order]
        self._problems = [problems.get(name) for name in self.ids]
        self._rows, self._pixels = order, pixels[order]
        self._square = [tuple(square) for square in corner[order]]
        self._area, self._lon_lat = area[order], centre[order]

    def _to_pixels(self, xy: np.ndarray) -> np.ndarray:
        a, b, c, d, e, f = self._inverse[:6]
        x, y = xy.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    def window(self, i: int) -> FieldWindow:
        """The window of field `i`.

        Raises:
            DataError: why there is none.
        """
        if self._problems[i]:
            raise DataError(f"{self.ids[i]}: {self._problems[i]}")
        left, top, right, bottom = shapely.bounds(self._pixels[i])
        row, column, stop, end = int(np.floor(top)), int(np.floor(left)), int(np.ceil(bottom)), int(np.ceil(right))
        if (stop - row) * (end - column) * self._values > 2 * BLOCK_VALUES:
            raise DataError(
                f"{self.ids[i]}: its window of {stop - row} x {end - column} pixels over all dates is too large to be "
                "read at once; cut it into several polygons"
            )
        try:
            shares = coverage(self._pixels[i], row, column, stop - row, end - column)
        except shapely.errors.GEOSException as error:
            raise DataError(f"{self.ids[i]}: its polygon is broken ({error})") from error
        shares[shares < LEAST_COVER] = 0
        # Edges that lie on the grid may be rounded across it.
        rows, columns = np.flatnonzero(shares.any(axis=1)), np.flatnonzero(shares.any(axis=0))
        if not len(rows):
            raise DataError(f"{self.ids[i]}: is smaller than a hundredth of a pixel")
        shares = shares[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return FieldWindow(row + int(rows[0]), column + int(columns[0]), shares)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`.

        Raises:
            IndexError: past the end.
            DataError: naming the field: why it cannot be used, or nothing valid in it.
        """
        i = range(len(self))[i]
        window = self.window(i)
        return self._sample(i, window, self._arrays(*self._inside([window])), self._inside([window]))

    def view(self, i: int, margin: int = 8) -> tuple[Sample, list[np.ndarray]]:
        """For a picture: the field with its surroundings, and its outline.

        Args:
            i: number of the field.
            margin: pixels around it, or half its size, whatever is more.

        Returns:
            a sample, square where the scene goes on, in which all pixels count; rings (N, 2) of column and row in it.

        Raises:
            DataError: as for a sample.
        """
        window = self.window(i)
        height, width = window.shares.shape
        side = max(height, width) + 2 * max(margin, max(height, width) // 2)
        top, left = window.row - (side - height) // 2, window.column - (side - width) // 2
        bottom, right = min(self.scene.height, top + side), min(self.scene.width, left + side)
        top, left = max(0, top), max(0, left)
        height, width = bottom - top, right - left
        if height <= 0 or width <= 0:
            raise DataError(f"{self.ids[i]}: lies outside the scene {self.scene.id}")
        polygons = shapely.get_parts(self._pixels[i])
        rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
        return self.scene.read(top, left, height, width), [np.array(ring.coords) - (left, top) for ring in rings]

    def read_chunk(self, start: int, most: int = CHUNK) -> tuple[list[Sample], list[tuple[str, str]], int]:
        """Samples of the fields from `start` on that lie in one square; (id, reason) of the others; where it ends."""
        stop = start + 1
        while stop < min(start + most, len(self)) and self._square[stop] == self._square[start]:
            stop += 1
        windows, samples, skipped = {}, [], []
        for i in range(start, stop):
            try:
                windows[i] = self.window(i)
            except DataError as error:
                skipped.append((self.ids[i], str(error)))
        box = self._inside(windows.values()) if windows else None
        together = box is not None and box[2] * box[3] * self._values <= BLOCK_VALUES
        arrays = None
        if together and len(windows) > 1 and min(box[2:]) > 0:
            try:
                arrays = self._arrays(*box)
            except DataError:
                logger.debug("rows %d to %d are read field by field", start, stop)
        for i, window in windows.items():
            own = box if arrays is not None else self._inside([window])
            try:
                samples.append(self._sample(i, window, self._arrays(*own) if arrays is None else arrays, own))
            except DataError as error:
                skipped.append((self.ids[i], str(error)))
        return samples, sorted(skipped, key=lambda item: self.ids.index(item[0], start, stop)), stop

    def _inside(self, windows) -> tuple[int, int, int, int]:
        """Row, column, height and width of the part of the scene that holds these windows."""
        windows = list(windows)
        top, left = (max(0, min(getattr(w, name) for w in windows)) for name in ("row", "column"))
        bottom = min(self.scene.height, max(w.row + w.shares.shape[0] for w in windows))
        right = min(self.scene.width, max(w.column + w.shares.shape[1] for w in windows))
        return top, left, max(0, bottom - top), max(0, right - left)

    def _arrays(self, row: int, column: int, height: int, width: int) -> dict:
        return self.scene.arrays(row, column, height, width) if height and width else {}

    def _sample(self, i: int, window: FieldWindow, arrays: dict, box: tuple[int, int, int, int]) -> Sample:
        """The sample of a window, cut from the arrays of a box of the scene that holds what of it is inside."""
        name, shares = self.ids[i], window.shares
        height, width = shares.shape
        top, left = max(window.row, box[0]), max(window.column, box[1])
        bottom, right = min(window.row + height, box[0] + box[2]), min(window.column + width, box[1] + box[3])
        if bottom <= top or right <= left:
            raise DataError(f"{name}: lies outside the scene {self.scene.id}")
        source = np.s_[..., top - box[0] : bottom - box[0], left - box[1] : right - box[1]]
        target = np.s_[..., top - window.row : bottom - window.row, left - window.column : right - window.column]
        inside = np.zeros((height, width), bool)
        inside[target] = True
        looked_at = lattice(shares, self._dates, self.patch_size)
        fields, seen = {}, 0.0
        for key, value in arrays.items():
            if key[:2] not in self.sensors:
                continue
            if key.endswith("_valid") or (isinstance(value, np.ndarray) and value.ndim == 4):
                whole = np.zeros((*value.shape[:-2], height, width), value.dtype)
                whole[target] = value[source]
                if key.endswith("_valid"):
                    seen += float((whole * shares).sum())
                    whole &= looked_at > 0
                value = whole
            fields[key] = value
        if not any(fields[f"{sensor}_valid"].any() for sensor in self.sensors):
            some = shares[inside].sum() / shares.sum()
            where = "" if some > 0.999 else f"; {some:.0%} of it lies inside the scene"
            raise DataError(f"{name}: nothing valid in it on any of {self._dates} dates (clouds or no data){where}")
        a, b, c, d, e, f = self.scene.transform
        row = self._rows[i]
        own = {
            "lon": float(self._lon_lat[i, 0]), "lat": float(self._lon_lat[i, 1]), "area_ha": float(self._area[i]),
            "pixels": float(shares.sum()), "valid_share": seen / float(self._dates * shares.sum()),
            "inside_share": float(shares[inside].sum() / shares.sum()),
            "sampled_share": float(looked_at.sum() / shares.sum()), "repaired": bool(self.polygons.repaired[row]),
        }  # fmt: skip
        place = c + a * window.column + b * window.row, f + d * window.column + e * window.row
        sample = make_sample(
            name, gsd=self.scene.gsd, **fields, crs=self.scene.crs, transform=(a, b, place[0], d, e, place[1]),
            scene=self.scene.id, **own,
        )  # fmt: skip
        return sample | {"coverage": looked_at, "attributes": self.polygons.attributes[row]}


def transformed(geometries: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    """Geometries in another coordinate system; of those that have no place there the coordinates become infinite."""
    if source == target or not len(geometries):
        return geometries
    try:
        return shapely.transform(geometries, lambda xy: _points(xy, source, target))
    except CPLE_BaseError:
        # One point stops all: the bad ones are found by halving.
        if len(geometries) == 1:
            return shapely.transform(geometries, lambda xy: np.full(xy.shape, np.inf))
        middle = len(geometries) // 2
        parts = [transformed(part, source, target) for part in (geometries[:middle], geometries[middle:])]
        return np.concatenate(parts)


def _points(xy: np.ndarray, source: CRS, target: CRS) -> np.ndarray:
    xs, ys = rasterio.warp.transform(source, target, xy[:, 0], xy[:, 1]) if len(xy) else ([], [])
    return np.stack([xs, ys], axis=1).astype(np.float64).reshape(-1, 2)


__all__ = ["TOKENS_PER_FIELD", "FieldWindow", "SceneFields", "coverage", "lattice", "patch_weights", "transformed"]
