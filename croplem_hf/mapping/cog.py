"""Finished tiles -> one Cloud-Optimised GeoTIFF, whose bands may differ in how their overviews are made."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window

from .. import __version__
from ..data.files import write_aside
from ..data.geotiff import reason
from ..errors import DataError
from .tiles import TileStore

BLOCK = 512
"""Rows and columns of a block of the file; overviews are made until one block holds all."""
_TYPES = {"uint8": "Byte", "int8": "Int8", "float32": "Float32"}


@dataclasses.dataclass(frozen=True)
class BandGroup:
    """Neighbouring bands whose overviews are made alike.

    names: one a band. resampling: of the overviews, "mode" for classes, "average" for numbers. scales: what a stored
    number of each band is to be multiplied with, or None.
    """

    names: Sequence[str]
    resampling: str
    scales: Sequence[float] | None = None


def write_cog(
    out: Path,
    store: TileStore,
    groups: Sequence[BandGroup],
    *,
    dtype: str,
    nodata: float,
    crs: str | None,
    transform: Sequence[float],
    tags: Mapping[str, str],
) -> None:
    """Join the tiles under the final name and remove their folder.

    GDAL makes the overviews of each group, in a file of its own beside the tiles, and copies all into one file. Memory
    does not grow with the raster; the disk holds it three times for a moment.

    Args:
        out: the file; one that is there is replaced.
        store: its tiles, all finished.
        groups: its bands, in their order.
        dtype, nodata: of all bands.
        crs: "EPSG:32737" or WKT; None for a raster without a place.
        transform: six numbers as in `RasterInfo`.
        tags: metadata of the file.

    Raises:
        DataError: it cannot be written, as on a full disk.
    """
    profile = {
        "driver": "GTiff", "dtype": dtype, "nodata": nodata, "height": store.shape[0], "width": store.shape[1],
        "crs": crs, "transform": Affine(*transform), "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK,
        "interleave": "band", "BIGTIFF": "YES", "SPARSE_OK": "TRUE",
    }  # fmt: skip
    tags = {"TIFFTAG_SOFTWARE": f"croplem_hf {__version__}"} | dict(tags)
    files = [store.folder / f"bands-{number}.tif" for number in range(len(groups))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            _join(store, files, groups, profile)
            for file, group in zip(files, groups, strict=True):
                with rasterio.open(file, "r+") as raster:
                    raster.build_overviews(list(_factors(store.shape)), Resampling[group.resampling])
            whole = store.folder / "bands.vrt"
            with rasterio.open(files[0]) as raster:
                _write_vrt(whole, files, groups, raster, tags)
            with write_aside(out) as aside:
                rasterio.shutil.copy(
                    whole, aside, driver="COG", compress="DEFLATE", predictor="YES", blocksize=BLOCK,
                    overviews="FORCE_USE_EXISTING", bigtiff="IF_SAFER",
                )  # fmt: skip
    except RasterioError as error:
        raise DataError(f"{out}: cannot be written ({reason(error)})") from error
    store.discard()


def _join(store: TileStore, files: Sequence[Path], groups: Sequence[BandGroup], profile: dict) -> None:
    """Write the bands of each group to a file of its own."""
    with contextlib.ExitStack() as stack:
        rasters = [
            stack.enter_context(rasterio.open(file, "w", count=len(group.names), **profile))
            for file, group in zip(files, groups, strict=True)
        ]
        for tile in store:
            row, column, height, width = tile
            bands, first = store.read(tile), 0
            for raster, group in zip(rasters, groups, strict=True):
                part = bands[first : first + len(group.names)]
                raster.write(part, window=Window(column, row, width, height))
                first += len(group.names)


def _factors(shape: tuple[int, int]) -> Iterator[int]:
    factor = 2
    while max(shape) > BLOCK * factor // 2:
        yield factor
        factor *= 2


def _write_vrt(
    path: Path, files: Sequence[Path], groups: Sequence[BandGroup], grid: rasterio.DatasetReader, tags: dict[str, str]
) -> None:
    """A virtual raster of the bands of all files, which shows their overviews; format: gdal.org/drivers/raster/vrt."""

    def add(parent: ElementTree.Element, name: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, name, attributes)
        element.text = text
        return element

    root = ElementTree.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    if grid.crs:
        add(root, "SRS", grid.crs.to_wkt())
    add(root, "GeoTransform", ", ".join(map(repr, grid.transform.to_gdal())))
    metadata = add(root, "Metadata")
    for key, value in tags.items():
        add(metadata, "MDI", value, key=key)
    number = 0
    for file, group in zip(files, groups, strict=True):
        for source, name in enumerate(group.names, start=1):
            number += 1
            band = add(root, "VRTRasterBand", dataType=_TYPES[grid.dtypes[0]], band=str(number))
            add(band, "Description", name)
            add(band, "NoDataValue", str(grid.nodata))
            # Else the first three bands would be taken for red, green and blue.
            add(band, "ColorInterp", "Gray" if number == 1 else "Undefined")
            if group.scales is not None:
                add(band, "Scale", repr(float(group.scales[source - 1])))
            simple = add(band, "SimpleSource")
            add(simple, "SourceFilename", file.name, relativeToVRT="1")
            add(simple, "SourceBand", str(source))
    ElementTree.ElementTree(root).write(path)


__all__ = ["BLOCK", "BandGroup", "write_cog"]
