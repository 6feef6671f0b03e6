"""Units such as districts over a map: which pixels and which labelled places lie in each, block by block."""

import dataclasses

import numpy as np
from rasterio.features import geometry_mask
from rasterio.transform import Affine
from rasterio.windows import Window

from ..data.polygons import Polygons, shapely  # shapely from there, where its absence is told
from ..data.scene_fields import transformed
from ..errors import DataError

# Borders are straight in their own coordinate system: points so close follow them in that of the map.
STEP_DEGREES, STEP_METRES = 0.01, 1_000.0


@dataclasses.dataclass
class Unit:
    """name; polygon in the map's coordinates, None where `problem` says why; K classes' hectares inside; which of the
    n places lie inside; pixels with data inside; and all pixels, of which some may lie off the map.
    """

    name: str
    polygon: object | None
    problem: str | None
    hectares: np.ndarray
    inside: np.ndarray
    pixels: int = 0
    whole: float = 0.0

    @property
    def covered(self) -> float:
        """Share of the unit for which the map has data, 0 to 1."""
        return min(self.pixels / self.whole, 1.0) if self.whole else 0.0


class MapUnits:
    """Polygons over a map; `add` is called with each of its blocks.

    Args:
        polygons: the units (`read_polygons`).
        raster: the open map.
        classes: K, how many it has.
        places: n, how many places are asked for.
    """

    def __init__(self, polygons: Polygons, raster, classes: int, places: int):
        there = np.array([shape is not None for shape in polygons.geometries])
        shapes = np.full(len(polygons), None, object)
        step = STEP_DEGREES if polygons.crs.is_geographic else STEP_METRES
        dense = shapely.segmentize(polygons.geometries[there], step)
        shapes[there] = transformed(dense, polygons.crs, raster.crs)
        pixel = abs(raster.transform.a * raster.transform.e - raster.transform.b * raster.transform.d)
        self.path, self.raster, self.units = polygons.path, raster, []
        for name, shape in zip(polygons.ids, shapes, strict=True):
            problem = polygons.problems.get(name)
            if shape is not None and not np.isfinite(shapely.bounds(shape)).all():
                shape, problem = None, "cannot be brought to the coordinate system of the map"
            unit = Unit(name, shape, problem, np.zeros(classes), np.zeros(places, bool))
            unit.whole = 0.0 if shape is None else shapely.area(shape) / pixel
            self.units.append(unit)

    def add(self, window: Window, block: np.ndarray, area: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        """Count a block.

        Args:
            window: where it lies. block: its classes (h, w). area: hectares of a pixel of each of its rows (h,).
            rows, columns: int (n,), pixels of the places in the block, which may lie outside it.
        """
        left, top = window.col_off, window.row_off
        right, bottom = left + block.shape[1], top + block.shape[0]
        corners = [self._to_map(x, y) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
        frame = shapely.Polygon(corners)
        a, b, _, d, e, _ = self.raster.transform[:6]
        grid = Affine(a, b, corners[0][0], d, e, corners[0][1])
        here = np.flatnonzero((rows >= 0) & (rows < block.shape[0]) & (columns >= 0) & (columns < block.shape[1]))
        for unit in self.units:
            if unit.polygon is None or not shapely.intersects(unit.polygon, frame):
                continue
            own = geometry_mask([unit.polygon], block.shape, grid, invert=True)
            for k in range(len(unit.hectares)):
                pixels = np.count_nonzero(own & (block == k), axis=1)
                unit.hectares[k] += pixels @ area
                unit.pixels += int(pixels.sum())
            unit.inside[here] = own[rows[here], columns[here]]

    def _to_map(self, x: float, y: float) -> tuple[float, float]:
        a, b, c, d, e, f = self.raster.transform[:6]
        return a * x + b * y + c, d * x + e * y + f

    def check(self) -> None:
        """Refuse units none of which lies on the map.

        Raises:
            DataError: naming the file.
        """
        if not any(unit.pixels for unit in self.units):
            raise DataError(
                f"{self.path}: none of its {len(self.units)} units has pixels of {self.raster.name}; is it another "
                "place, or another coordinate system?"
            )


__all__ = ["MapUnits", "Unit"]
