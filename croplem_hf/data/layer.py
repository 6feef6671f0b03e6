"""One raster of a place: which bands it holds, where it lies on the place's finest grid, and reading by windows."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ..errors import DataError
from ..sensors import S1_BANDS, S2_BANDS
from .geotiff import GDAL_OPTIONS, RasterInfo, raster_info, reason
from .metadata import CLOUD_BANDS, RasterRow, band_name

_BY_NUMBER = {"s1": {2: S1_BANDS}, "s2": {13: S2_BANDS, 12: tuple(name for name in S2_BANDS if name != "B10")}}


@contextlib.contextmanager
def open_raster(path: Path, where: str) -> Iterator[rasterio.DatasetReader]:
    """A raster for reading; `where` names the line of the table in errors."""
    # Unlike `Path.is_file` it takes names that are too long for one.
    if not os.path.isfile(path):
        raise DataError(f"{where}: no such file {path}; paths are relative to the table")
    with rasterio.Env(**GDAL_OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            raster = rasterio.open(path)
        except (RasterioError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: {path} is not a readable raster ({reason(error)})") from error
        with raster:
            try:
                yield raster
            except RasterioError as error:
                raise DataError(f"{where}: {path} is damaged, fetch it again ({reason(error)})") from error


@dataclasses.dataclass(frozen=True)
class Layer:
    """One raster: `bands` name -> number in the file, `factor` = rows and columns of the place in one of its pixels."""

    row: RasterRow
    path: Path
    bands: dict[str, int]
    info: RasterInfo
    shape: tuple[int, int]
    dtype: np.dtype
    scaling: dict[str, tuple[float, float]] | None
    tags: dict[str, str]
    factor: tuple[int, int] = (1, 1)

    @classmethod
    def open(cls, row: RasterRow, kind: str = "path") -> "Layer":
        """The raster that the line names in column `kind`: path, mask or clouds."""
        path = getattr(row, kind)
        with open_raster(path, row.where) as raster:
            bands = _bands(row, raster) if kind == "path" else _one_band(row, path, raster, kind)
            scaling = {name: (raster.scales[n - 1], raster.offsets[n - 1]) for name, n in bands.items()}
            if kind != "path" or row.units != "auto" or set(scaling.values()) == {(1, 0)}:
                scaling = None
            strange = [name for name in raster.dtypes if name.startswith("complex")]
            if strange:
                raise DataError(f"{row.where}: pixels of {path} are {strange[0]} numbers, which no band can be")
            info, dtype = raster_info(raster, path), np.dtype(raster.dtypes[0])
            return cls(row, path, bands, info, raster.shape, dtype, scaling, raster.tags())

    def fitted(self, grid: "Layer") -> "Layer":
        """The same with its factor to the finest grid of the place."""
        fy, fx = (g // max(n, 1) for g, n in zip(grid.shape, self.shape, strict=True))
        same = self.info.crs == grid.info.crs and (self.shape[0] * fy, self.shape[1] * fx) == grid.shape
        if same:
            pixel = np.sqrt(abs(np.linalg.det(np.reshape(grid.info.transform, (2, 3))[:, :2])))
            same = bool(np.abs(self._corners() - grid._corners()).max() <= 0.01 * pixel)
        if not same:
            raise DataError(
                f"{self.row.where}: {self.path} is {self.shape} pixels, {self.info.crs}, {self.info.transform}; "
                f"{grid.path} is {grid.shape} pixels, {grid.info.crs}, {grid.info.transform}. All rasters of one "
                "place must cover the same ground, each pixel a whole number of the finest ones: cut or warp one to "
                "the grid of the other, or give the places different ids"
            )
        return dataclasses.replace(self, factor=(fy, fx))

    def _corners(self) -> np.ndarray:
        (height, width), t = self.shape, np.reshape(self.info.transform, (2, 3))
        return t @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])

    def window(self, row: int, column: int, height: int, width: int) -> dict[str, np.ndarray]:
        """Stored numbers (height, width) of each band in a window of the place's grid."""
        fy, fx = self.factor
        top, left, bottom, right = row // fy, column // fx, -(-(row + height) // fy), -(-(column + width) // fx)
        with open_raster(self.path, self.row.where) as raster:
            part = raster.read(list(self.bands.values()), window=Window(left, top, right - left, bottom - top))
        if self.factor != (1, 1):
            part = part.repeat(fy, axis=1).repeat(fx, axis=2)
        part = part[:, row - top * fy :, column - left * fx :][:, :height, :width]
        return dict(zip(self.bands, part, strict=True))

    def overview(self, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """Stored numbers `(*shape)` of each band, spread over the whole raster."""
        with open_raster(self.path, self.row.where) as raster:
            part = raster.read(list(self.bands.values()), out_shape=(len(self.bands), *shape))
        return dict(zip(self.bands, part, strict=True))

    def is_missing(self, band: np.ndarray) -> np.ndarray:
        """bool (h, w): NaN, infinite or the file's nodata. A nodata of 0 is left to the rule of all bands."""
        nodata = self.info.nodata
        missing = ~np.isfinite(band) if band.dtype.kind == "f" else np.zeros(band.shape, bool)
        return missing | (band == nodata) if nodata else missing

    def without(self, names: Collection[str]) -> "Layer":
        """The same without some of its bands."""
        return dataclasses.replace(self, bands={name: n for name, n in self.bands.items() if name not in names})


def _bands(row: RasterRow, raster: rasterio.DatasetReader) -> dict[str, int]:
    """Names of the bands of a raster -> their numbers in the file."""
    names = row.bands
    if names is not None and len(names) != raster.count:
        raise DataError(f"{row.where}: {len(names)} names in column bands, but {row.path} has {raster.count} bands")
    if names is None:
        names = [band_name(text, row.sensor) for text in raster.descriptions]
        if names == [None]:
            names = [band_name(row.path.stem, row.sensor)]
    if not any(names):
        names = _BY_NUMBER[row.sensor].get(raster.count)
    if names is None:
        raise DataError(
            f"{row.where}: {row.path} has {raster.count} bands without names that {row.sensor} knows; expected "
            f"{' or '.join(map(str, _BY_NUMBER[row.sensor]))}, or names in column bands or in the file"
        )
    bands = {name: number for number, name in enumerate(names, start=1) if name}
    if len(bands) < sum(name is not None for name in names):
        raise DataError(f"{row.where}: {row.path} names a band twice: {' '.join(str(name) for name in names)}")
    return bands


def _one_band(row: RasterRow, path: Path, raster: rasterio.DatasetReader, kind: str) -> dict[str, int]:
    if raster.count != 1:
        raise DataError(f"{row.where}: the {kind} raster {path} must have one band, found {raster.count}")
    if kind == "mask":
        return {"mask": 1}
    name = band_name(raster.descriptions[0], "s2") or band_name(path.stem, "s2")
    return {name if name in CLOUD_BANDS else "CLD": 1}


def raster_size(row: RasterRow) -> tuple[float, int, int]:
    """Size of a pixel (in units of its coordinates, squared), rows and columns, from the header alone."""
    with open_raster(row.path, row.where) as raster:
        a, b, _, d, e, _ = tuple(raster.transform)[:6]
        return abs(a * e - b * d), *raster.shape


__all__ = ["Layer", "open_raster", "raster_size"]
