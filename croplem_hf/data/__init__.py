"""Readers of Sentinel-1 and Sentinel-2 data: every one gives the same sample (see `sample`)."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..sensors import SENSORS
from .sample import check_sample, make_sample

# Resolved on first use: rasterio and pyarrow take their time to import.
_LAZY = {
    "ImageFolder": "folder",
    "SEN12MSFolder": "sen12ms",
    "SeriesTable": "series",
    "generate_scene": "synthetic",
    "generate_sen12ms": "synthetic",
    "open_scene": "folder",
}


def open_source(
    path: str | os.PathLike,
    *,
    sensors: Sequence[str] | None = None,
    s2_level: str | None = None,
    s1_units: str = "auto",
    s2_units: str = "auto",
    s2_offset: int | str = "auto",
):
    """Open data as a source: `len(source)`, `source[i]` -> sample, `source.ids`, `source.kind`, `source.unit`.

    A bad item raises `DataError` where it is read, so that a caller may report it and go on with the others.

    Args:
        path: a Parquet table of series (`SeriesTable`), a folder of SEN12MS patches (`SEN12MSFolder`), or a
            `metadata.csv` of a user's own rasters, or the folder that holds one (`ImageFolder`).
        sensors: which of "s1" and "s2" to read; None for all that are there.
        s2_level: "L1C" or "L2A", for tables that do not say; SEN12MS is L1C.
        s1_units: "db", "linear" or "auto".
        s2_units: "dn", "reflectance" or "auto".
        s2_offset: 0, 1000 or "auto".

    Raises:
        DataError: nothing at the path, or nothing that a reader knows.
    """
    path = Path(path)
    options = {"s1_units": s1_units, "s2_units": s2_units, "s2_offset": s2_offset}
    accepted = "accepted are a .parquet table of series, a folder of SEN12MS patches, and a folder with metadata.csv"
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {accepted}")
    if path.name == "metadata.csv" or (path / "metadata.csv").is_file():
        from .folder import ImageFolder

        return ImageFolder(path, sensors=sensors, s2_level=s2_level, **options)
    if path.is_dir():
        if s2_level not in (None, "L1C"):
            raise DataError(f"{path}: SEN12MS patches are level L1C, not {s2_level!r}; leave s2_level out")
        from .sen12ms import SEN12MSFolder

        return SEN12MSFolder(path, sensors=SENSORS if sensors is None else sensors, **options)
    if path.suffix.lower() != ".parquet":
        raise DataError(f"{path}: cannot be read as a source; {accepted}")
    from .series import SeriesTable

    return SeriesTable(path, sensors=sensors, s2_level=s2_level, **options)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ImageFolder", "SEN12MSFolder", "SeriesTable", "check_sample", "generate_scene", "generate_sen12ms", "make_sample",
    "open_scene", "open_source",
]  # fmt: skip
