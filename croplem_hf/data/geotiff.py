"""Reading and writing GeoTIFF with errors that name the file and say what is wrong with it."""

import contextlib
import dataclasses
import io
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
import tifffile
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from ..errors import DataError
from .files import write_aside

logger = logging.getLogger(__name__)
# rasterio repeats GDAL's errors on its loggers; without a handler, Python prints them to stderr next to our exception.
logging.getLogger("rasterio").addHandler(logging.NullHandler())

METRES_PER_DEGREE = 111_320.0
"""Length of a degree of latitude, and of longitude at the equator (WGS84, to half a percent)."""

# A folder of SEN12MS holds hundreds of patches: GDAL would list it anew for every file it opens.
GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}

MOST_BYTES = 4 * 2**30
"""A raster that is read at once is at most so large; a damaged header may claim anything."""
_IN_MEMORY = 256 * 2**20
# What rasterio raises over damaged files; ValueError for texts that are none and for coordinate systems.
_BROKEN = (RasterioError, CPLE_BaseError, TypeError, ValueError)
# Bits in another order, further images inside, and of GDAL its own metadata (scales, names of bands) and nodata.
_OTHER_TAGS = {266, 330, 42112, 42113}
# Tags of one number each, which GDAL does not take otherwise.
_SINGLE_TAGS = (256, 257, 259, 262, 277, 278, 284)
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


@dataclasses.dataclass(frozen=True)
class RasterInfo:
    """Where the pixels of a raster lie.

    Attributes:
        crs: "EPSG:32737" where an authority code is known, else WKT; None if the file has no coordinate system.
        transform: six numbers (a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f, in units of `crs`.
        nodata: the value of missing pixels, or None.
        descriptions: one name or None a band.
        gsd: metres a pixel (geometric mean of width and height), None where `crs` does not tell.
        lon: longitude of the centre in degrees (WGS84), None where `crs` does not tie it to the Earth.
        lat: latitude of the centre, likewise.
    """

    crs: str | None
    transform: tuple[float, ...]
    nodata: float | None
    descriptions: tuple[str | None, ...]
    gsd: float | None
    lon: float | None
    lat: float | None


def read_geotiff(
    path: str | os.PathLike, *, count: int | None = None, data: bytes | None = None
) -> tuple[np.ndarray, RasterInfo]:
    """Read all bands of a raster.

    Args:
        path: the file.
        count: the number of bands that it must have; None for any.
        data: the content of the file, where it is not on disk; `path` is only its name then.

    Returns:
        The array (bands, H, W) in the type of the file, and its `RasterInfo`.

    Raises:
        DataError: no such file, not a raster, cut short or damaged, another number of bands, or more than `MOST_BYTES`.
    """
    path = Path(path)
    try:
        if data is None and not path.is_file():
            raise DataError(f"{path}: no such file")
        stored = path.stat().st_size if data is None else len(data)
        if stored == 0:
            raise DataError(f"{path}: the file is empty; fetch it again")
        if data is None and stored <= _IN_MEMORY:
            data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    plain = None if data is None else _read_plain(data, path)
    if plain is not None and count in (None, len(plain[0])):
        return plain
    # GDAL takes strips that are not compressed straight from memory, 13 bands more than twice as fast as through its
    # cache. A mapped file would do as well, but a failing disk or network then kills the process.
    options = GDAL_OPTIONS | {"GTIFF_VIRTUAL_MEM_IO": "NO" if data is None else "YES"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(rasterio.Env(**options))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            # Other formats may name further files, or addresses.
            if data is None:
                raster = rasterio.open(path, driver="GTiff")
            else:
                raster = stack.enter_context(MemoryFile(data)).open(driver="GTiff")
        except _BROKEN as error:
            raise DataError(f"{path}: not a readable raster ({reason(error)})") from error
        with raster:
            if count is not None and raster.count != count:
                raise DataError(f"{path}: expected {count} bands, found {raster.count}")
            _check_claims(raster, stored, path)
            try:
                return raster.read(), raster_info(raster, path)
            except DataError:
                raise
            except _BROKEN as error:
                raise DataError(
                    f"{path}: the file is cut short or damaged, fetch it again ({reason(error)})"
                ) from error


def _is_sound(page: tifffile.TiffPage) -> bool:
    """Whether the tags that say where the pixels lie fit each other; tifffile takes much as it should have been."""
    tags, height, bands = page.tags, page.imagelength, page.samplesperpixel
    rows = min(tags[278].value, height)
    counts = np.full(-(-height // rows), rows * (page.nbytes // height))
    counts[-1] = page.nbytes - counts[:-1].sum()
    offsets = tags[273].value[0] + np.cumsum(counts) - counts
    extra = bands - (3 if tags[262].value == 2 else 1)
    return (
        all(tags[code].count == 1 and tags[code].dtype in (3, 4) for code in _SINGLE_TAGS)
        and tags[262].value in (0, 1, 2)
        and all(tags[code].count == bands and np.unique(tags[code].value).size == 1 for code in (258, 339))
        and (not extra or tags[338].count == extra and np.max(tags[338].value) <= 2)
        and np.array_equal(tags[279].value, counts)
        and np.array_equal(tags[273].value, offsets)
        and offsets[0] >= 8
    )


def _check_claims(raster: rasterio.DatasetReader, stored: int, path: Path) -> None:
    """Refuse what a damaged header claims before anything is allocated for it; `stored` is the size of the file."""
    strange = [name for name in raster.dtypes if name.startswith("complex")]
    if strange:
        raise DataError(f"{path}: pixels are {strange[0]} numbers; if they should not be, the file is damaged")
    size = raster.count * raster.height * raster.width * max(np.dtype(name).itemsize for name in raster.dtypes)
    claim = f"{raster.count} bands of {raster.height} x {raster.width} pixels are {size / 2**30:.3g} GiB"
    if size > MOST_BYTES:
        raise DataError(f"{path}: {claim}, too much to read at once; if it is no such scene, the file is damaged")
    damaged = f"{path}: the file is cut short or damaged, fetch it again"
    # A pixel has a bit at the least, and its place in memory a byte.
    if "COMPRESSION" not in raster.tags(ns="IMAGE_STRUCTURE") and size > 8 * stored:
        raise DataError(f"{damaged} ({claim}, the file has {stored} bytes)")
    # GDAL takes blocks that are not there as zeros.
    rows, columns = raster.block_shapes[-1]
    last = f"BLOCK_OFFSET_{(raster.width - 1) // columns}_{(raster.height - 1) // rows}"
    if raster.get_tag_item(last, "TIFF", bidx=raster.count) is None:
        raise DataError(f"{damaged} (its last pixels of {raster.height} x {raster.width} are not in it)")


def _read_plain(data: bytes, path: Path) -> tuple[np.ndarray, RasterInfo] | None:
    """Pixels and place of a file as those of SEN12MS are: uncompressed, pixel by pixel, in a UTM zone. None for others.

    It takes about half of GDAL's time, and gives what GDAL gives.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            contiguous = page.is_contiguous and page.compression == 1 and page.planarconfig == 1
            if not contiguous or page.is_tiled or _OTHER_TAGS.intersection(page.tags.keys()):
                return None
            keys = page.geotiff_tags
            height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
            start, size = page.dataoffsets[0], page.nbytes
            code = int(keys["ProjectedCSTypeGeoKey"])
            utm = keys["GTModelTypeGeoKey"] == 1 and (32601 <= code <= 32660 or 32701 <= code <= 32760)
            if not utm or keys["GTRasterTypeGeoKey"] != 1 or page.dtype is None or page.nbytes > len(data) - start:
                return None
            if page.dtype.kind not in "uif" or size == 0 or not _is_sound(page):
                return None
            (i, j, _, x, y, _), (right, down, _) = keys["ModelTiepoint"], keys["ModelPixelScale"]
            if "GeographicTypeGeoKey" in keys or "ModelTransformation" in keys or file.byteorder != "<":
                return None
            pixels = np.frombuffer(data, page.dtype, size // page.dtype.itemsize, start)
            array = pixels.reshape(height, width, bands).transpose(2, 0, 1).copy()
            crs = f"EPSG:{code}"
            transform = (right, 0.0, x - i * right, 0.0, -down, y + j * down)
            _check_transform(transform, path)
            a, _, left, _, e, top = transform
            (lon,), (lat,) = rasterio.warp.transform(crs, "EPSG:4326", [left + a * width / 2], [top + e * height / 2])
    except Exception:  # whatever a damaged header leads to; GDAL says what is wrong
        return None
    return array, RasterInfo(crs, transform, None, (None,) * bands, float(np.sqrt(abs(a * e))), lon, lat)


def write_geotiff(
    path: str | os.PathLike,
    array: np.ndarray,
    *,
    crs: str | None = None,
    transform: Sequence[float] | None = None,
    nodata: float | None = None,
    descriptions: Sequence[str] | None = None,
    compress: str | None = None,
) -> Path:
    """Write (bands, H, W) as a pixel-interleaved GeoTIFF: aside first, then renamed, so no half file ever shows.

    Args:
        path: the file; its folder is made.
        array: (bands, H, W), any type that GeoTIFF holds.
        crs: "EPSG:32737" or WKT.
        transform: six numbers as in `RasterInfo`.
        nodata: the value of missing pixels.
        descriptions: one name a band.
        compress: "deflate", "zstd", ... or None.

    Raises:
        DataError: the array is not (bands, H, W), the names do not fit the bands, or GeoTIFF cannot hold it.
    """
    path = Path(path)
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"{path}: a raster to write must be (bands, H, W), found {array.shape}")
    if descriptions is not None and len(descriptions) != len(array):
        raise DataError(f"{path}: {len(descriptions)} band names for {len(array)} bands")
    profile = {"driver": "GTiff", "count": len(array), "height": array.shape[1], "width": array.shape[2]}
    profile |= {"dtype": array.dtype.name, "crs": crs, "nodata": nodata, "interleave": "pixel"}
    if transform is not None:
        profile["transform"] = Affine(*transform)
    if compress is not None:
        profile["compress"] = compress
    try:
        with write_aside(path) as aside, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(aside, "w", **profile) as raster:
                raster.write(array)
                for band, name in enumerate(descriptions or (), start=1):
                    raster.set_band_description(band, name)
    except (RasterioError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error
    return path


def raster_info(raster: rasterio.DatasetReader, path: Path) -> RasterInfo:
    """`RasterInfo` of an open raster; `path` for messages."""
    a, b, c, d, e, f = transform = tuple(float(value) for value in raster.transform[:6])
    _check_transform(transform, path)
    crs, gsd, lon, lat = raster.crs, None, None, None
    if crs:
        column, row = raster.width / 2, raster.height / 2
        x, y = a * column + b * row + c, d * column + e * row + f
        try:
            (lon,), (lat,) = rasterio.warp.transform(crs, "EPSG:4326", [x], [y])
        except (CPLE_BaseError, CRSError, RasterioError) as error:
            logger.warning("%s: the place of the raster on Earth is unknown (%s)", path, reason(error))
        if lat is not None and not abs(lat) < 90:
            logger.warning("%s: the place of the raster on Earth is unknown (its latitude is %g)", path, lat)
            lon = lat = None
        units = None
        if crs.is_projected:
            units = crs.linear_units_factor[1] ** 2
        elif crs.is_geographic and lat is not None:
            units = METRES_PER_DEGREE**2 * np.cos(np.radians(lat))
        gsd = None if units is None else float(np.sqrt(abs(a * e - b * d) * units))
    return RasterInfo(
        crs=crs.to_string() if crs else None,
        transform=transform,
        nodata=raster.nodata,
        descriptions=raster.descriptions,
        gsd=gsd,
        lon=lon,
        lat=lat,
    )


def _check_transform(transform: tuple[float, ...], path: Path) -> None:
    a, b, _, d, e, _ = transform
    if not (np.isfinite(transform).all() and 0 < abs(a * e - b * d) < np.inf):
        raise DataError(f"{path}: the place of its pixels is {transform}, which is none; the file is damaged")


def reason(error: Exception) -> str:
    """GDAL's own words, which rasterio keeps in the cause, on one line."""
    return " ".join(str(error.__cause__ or error).split())


__all__ = ["GDAL_OPTIONS", "METRES_PER_DEGREE", "RasterInfo", "raster_info", "read_geotiff", "reason", "write_geotiff"]
