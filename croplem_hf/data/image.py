"""One sensor of one place at one time: its rasters on the finest grid, their units and offset, clouds and nodata."""

import contextlib
import dataclasses
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from ..errors import DataError
from ..sensors import L2A_BANDS, S1_BANDS, S1_RANGE_DB, S2_BANDS, S2_OFFSET, SENSORS, s1_to_db, s2_to_dn
from .geotiff import GDAL_OPTIONS, RasterInfo, raster_info, reason
from .metadata import CHANNELS, RasterRow, band_name
from .sample import parse_date

SCL_BAD = (0, 1, 3, 8, 9, 10)
"""Scene classes that are no view of the ground: nodata, defective, cloud shadow, cloud (two), cirrus (ESA, Sen2Cor)."""

_BY_NUMBER = {"s1": {2: S1_BANDS}, "s2": {13: S2_BANDS, 12: tuple(name for name in S2_BANDS if name != "B10")}}
_LEVEL = re.compile(r"L1C|L2A")
_BASELINE = re.compile(r"_N(\d{4})_")


@contextlib.contextmanager
def open_raster(path: Path, where: str) -> Iterator[rasterio.DatasetReader]:
    """A raster for reading; `where` names the line of the table in errors."""
    if not path.is_file():
        raise DataError(f"{where}: no such file {path}; paths are relative to the table")
    with rasterio.Env(**GDAL_OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            raster = rasterio.open(path)
        except RasterioError as error:
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
    factor: tuple[int, int] = (1, 1)

    @classmethod
    def open(cls, row: RasterRow, mask: bool = False) -> "Layer":
        path = row.mask if mask else row.path
        with open_raster(path, row.where) as raster:
            bands = _mask_band(row, raster) if mask else _bands(row, raster)
            scaling = {name: (raster.scales[n - 1], raster.offsets[n - 1]) for name, n in bands.items()}
            if mask or row.units != "auto" or set(scaling.values()) == {(1, 0)}:
                scaling = None
            return cls(row, path, bands, raster_info(raster, path), raster.shape, np.dtype(raster.dtypes[0]), scaling)

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
        """Stored numbers (*shape) of each band, spread over the whole raster."""
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


def _mask_band(row: RasterRow, raster: rasterio.DatasetReader) -> dict[str, int]:
    if raster.count != 1:
        raise DataError(f"{row.where}: the mask {row.mask} must have one band, found {raster.count}")
    return {"mask": 1}


@dataclasses.dataclass
class Image:
    """One sensor at one time: its rasters and masks, and what was decided about their numbers."""

    sensor: str
    date: str
    layers: list[Layer]
    masks: list[Layer]
    units: str = "auto"
    offset: int | str = "auto"

    @property
    def where(self) -> str:
        row = self.layers[0].row
        return f"{row.where} ({row.path.name})"

    @property
    def exists(self) -> np.ndarray:
        """bool (C,), which bands there are."""
        return np.array([any(name in layer.bands for layer in self.layers) for name in CHANNELS[self.sensor]])

    def stored(self, get: Callable[[Layer], dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (C, h, w) as stored, scale tags applied and 0 where invalid; and bool (h, w), which are valid."""
        names = CHANNELS[self.sensor]
        plain = self.sensor == "s2" and all(x.dtype == np.uint16 and x.scaling is None for x in self.layers)
        values, valid, seen = None, True, False
        for layer in self.layers:
            planes = get(layer)
            for name in layer.bands:
                band = planes[name]
                valid = valid & ~layer.is_missing(band)
                if name == "SCL":
                    valid = valid & ~np.isin(band, SCL_BAD)
                if name not in names:
                    continue
                if values is None:
                    values = np.zeros((len(names), *band.shape), np.uint16 if plain else np.float32)
                # 0 is the fill of the products where all bands are 0; in a single band it may be a dark measurement.
                seen = seen | (band != 0)
                scale, shift = (layer.scaling or {}).get(name, (None, None))
                values[names.index(name)] = band if scale is None else band * scale + shift
        for mask in self.masks:
            valid = valid & (get(mask)["mask"] == 0)
        valid = valid & seen
        values[:, ~valid] = 0
        return values, valid

    def measured(self, get: Callable[[Layer], dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (C, h, w) in dB (NaN where invalid) or DN without offset (0 there), and bool (h, w), valid."""
        values, valid = self.stored(get)
        if self.units == "auto":
            # The overview met no valid pixel to judge by: what few there are stay unused.
            values[:], valid[:] = 0, False
        if self.sensor == "s2":
            options = {"units": self.units, "offset": self.offset, "bands": self.exists[None], "where": self.where}
            return s2_to_dn(values[None], **options)[0], valid
        if self.units == "db":
            # Single pixels beyond the range are artefacts of borders; `decide` has refused rasters full of them.
            valid = valid & ((values >= S1_RANGE_DB[0]) & (values <= S1_RANGE_DB[1])).all(axis=0)
        values[:, ~valid] = np.nan
        return s1_to_db(values, units=self.units, where=self.where), valid

    def decide(self, shape: tuple[int, int]) -> None:
        """Settle units and offset for good by an overview: a window of dark water says nothing.

        Raises:
            DataError: the numbers fit no units, or may or may not carry the offset.
        """
        for key in ("units", "offset"):
            said = {getattr(layer.row, key) for layer in self.layers} - {"auto"}
            if len(said) > 1:
                raise DataError(f"{self.where}: {key} differ among the bands of one image: {sorted(map(str, said))}")
            setattr(self, key, said.pop() if said else "auto")
        overviews = defaultdict(dict)
        for layer in (*self.layers, *self.masks):
            overviews[layer.path] |= layer.overview(shape)
        self._drop_empty_bands(overviews)
        self._check_bands()
        values, valid = self.stored(lambda layer: overviews[layer.path])
        if valid.any():
            (self._decide_radar if self.sensor == "s1" else self._decide_optics)(values, valid)

    def _drop_empty_bands(self, overviews: dict[Path, dict[str, np.ndarray]]) -> None:
        """A band that is 0 or missing all over, where others are not, does not exist (B10 in 13 bands of L2A)."""
        empty = {
            (layer.path, name): bool((layer.is_missing(band) | (band == 0)).all())
            for layer in self.layers
            for name, band in overviews[layer.path].items()
        }
        if not all(empty.values()):
            self.layers = [x.without([name for name in x.bands if empty[x.path, name]]) for x in self.layers]

    def _check_bands(self) -> None:
        found = " ".join(sorted({name for layer in self.layers for name in layer.bands})) or "none"
        if self.sensor == "s1" and not self.exists.all():
            raise DataError(f"{self.where}: radar needs VV and VH at each time, found {found} with values in it")
        if not self.exists.any():
            raise DataError(f"{self.where}: no optical band with values among its rasters, found {found}")

    def _decide_radar(self, values: np.ndarray, valid: np.ndarray) -> None:
        seen = values[:, valid]
        middle = float(np.median(seen))
        if self.units == "auto":
            if middle > 5:
                raise DataError(
                    f"{self.where}: radar with a median of {middle:.4g} is neither dB nor linear power; calibrate to "
                    "sigma0 or gamma0 first, or say db or linear in column units"
                )
            # Most natural surfaces return less than they receive: dB below 0, power below 1.
            self.units = "db" if middle < 0 else "linear"
        if self.units == "db" and ((seen < S1_RANGE_DB[0]) | (seen > S1_RANGE_DB[1])).mean() > 0.01:
            s1_to_db(seen, units="db", where=self.where)

    def _decide_optics(self, values: np.ndarray, valid: np.ndarray) -> None:
        seen = values[self.exists][:, valid]
        if self.units == "auto":
            self.units = "reflectance" if values.dtype.kind == "f" and np.median(seen) <= 2 else "dn"
        if self.units == "reflectance":
            if self.offset == S2_OFFSET:
                raise DataError(f"{self.where}: offset {S2_OFFSET} belongs to digital numbers, these are reflectance")
            self.offset = 0
        self._check_order(seen)
        if self.offset == "auto":
            self.offset = self._find_offset(values, seen)

    def _check_order(self, seen: np.ndarray) -> None:
        """Refuse 13 bands where another one than B10 is nearly black (EuroSAT stores B8A last)."""
        if not self.exists.all() or self.layers[0].row.bands:
            return
        medians = np.median(seen, axis=1) * (10000 if self.units == "reflectance" else 1)
        darkest = int(medians.argmin())
        if medians[darkest] < 100 and medians[S2_BANDS.index("B10")] > medians[darkest] + 500:
            raise DataError(
                f"{self.where}: the band in the place of {S2_BANDS[darkest]} is nearly black and B10 is not: are "
                f"they in another order than {' '.join(S2_BANDS)}? Name them in column bands"
            )

    def _find_offset(self, values: np.ndarray, seen: np.ndarray) -> int:
        baselines = {text for layer in self.layers for text in _BASELINE.findall(layer.path.as_posix())}
        # Reflectance below -0.01 is rarer than a hundredth; without the offset B10 and shadows lie far below 900.
        dark = np.percentile(seen, 1) < 900
        if len(baselines) == 1:
            named = S2_OFFSET if baselines.pop() >= "0400" else 0
            if named and dark:
                raise DataError(
                    f"{self.where}: the name says baseline 04.00 or later, with an offset of {S2_OFFSET}, but a "
                    "hundredth of the values lies below 900: was it taken off already? "
                    f"Say 0 or {S2_OFFSET} in column offset"
                )
            return named
        if dark:
            return 0
        if self.exists[S2_BANDS.index("B10")]:
            shifted = s2_to_dn(values[None], units="dn", bands=self.exists[None], where=self.where)[0]
            return 0 if np.array_equal(shifted, values) else S2_OFFSET
        raise DataError(
            f"{self.where}: no value below 900 and no B10: either a bright place or the offset of baseline 04.00; say "
            f"0 or {S2_OFFSET} in column offset"
        )

    def level(self) -> str:
        """L1C or L2A, by the table, else by the names of the files and the bands.

        Raises:
            DataError: none of them tells, or they disagree.
        """
        said = {layer.row.level for layer in self.layers} - {None}
        if not said:
            said = {name for layer in self.layers for name in _LEVEL.findall(layer.path.as_posix().upper())}
            said |= {"L1C"} if self.exists[S2_BANDS.index("B10")] else set()
            said |= {"L2A"} if tuple(self.exists) == L2A_BANDS else set()
        if len(said) != 1:
            found = " and ".join(sorted(said)) or "unknown"
            raise DataError(f"{self.where}: the level of these optics is {found}; say L1C or L2A in column level")
        return said.pop()


def group_images(layers: Sequence[Layer], grid: Layer) -> dict[str, list[Image]]:
    """Layers -> images of each sensor in order of time."""
    found = defaultdict(list)
    for layer in layers:
        day = parse_date(layer.row.date, layer.row.where).isoformat()
        found[layer.row.sensor, day, layer.row.date].append(layer)
    images = {sensor: [] for sensor in SENSORS}
    for (sensor, day, _), group in sorted(found.items(), key=lambda item: item[0]):
        owner = {}
        for layer in group:
            for name in layer.bands:
                if name in owner:
                    raise DataError(
                        f"{layer.row.where}: band {name} of {day} stands in {owner[name].path} too; give two "
                        "acquisitions of one day their times (2021-06-15T05:40), or the places different ids"
                    )
                owner[name] = layer
        masks = {layer.row.mask: layer.row for layer in group if layer.row.mask}
        masks = [Layer.open(row, mask=True).fitted(grid) for row in masks.values()]
        images[sensor].append(Image(sensor, day, group, masks))
    return images


__all__ = ["Image", "Layer", "group_images", "open_raster"]
