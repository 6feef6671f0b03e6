"""Readers of Sentinel-1 and Sentinel-2 data: every one gives the same sample (see `sample`)."""

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .sample import check_sample, make_sample

# Resolved on first use: rasterio and pyarrow take their time to import.
_LAZY = {
    "DFC2020Folder": "dfc2020",
    "EuroSATFolder": "eurosat",
    "ImageFolder": "folder",
    "KenyaFields": "kenya",
    "KenyaTiles": "kenya",
    "SEN12MSFolder": "sen12ms",
    "SeriesTable": "series",
    "ShardFolder": "shards",
    "build_shards": "build",
    "generate_eurosat": "synthetic_eurosat",
    "generate_kenya": "synthetic_kenya",
    "generate_scene": "synthetic",
    "generate_sen12ms": "synthetic",
    "load_sen12ms": "streaming",
    "open_scene": "folder",
}
# In the order in which they are asked; SEN12MS looks into folders, so it comes last. With each, the options that it
# takes besides `sensors`, and its level of optics where there is only one.
_UNITS = ("s1_units", "s2_units", "s2_offset")
_READERS = {
    "ImageFolder": (("s2_level", *_UNITS), None),
    "ShardFolder": ((), None),
    "SeriesTable": (("s2_level", *_UNITS), None),
    "KenyaFields": (("s2_units",), "L2A"),
    "EuroSATFolder": (("s2_units", "s2_offset"), "L1C"),
    "DFC2020Folder": (_UNITS, "L1C"),
    "SEN12MSFolder": (_UNITS, "L1C"),
}
_ACCEPTED = (
    "accepted are a folder of SEN12MS, DFC2020, EuroSAT or Kenya CV4A, one with metadata.csv or of shards, a .parquet "
    "table of series, and shards on the Hub (owner/name) or at an address such as s3://bucket/folder"
)
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


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
        path: what a reader of this package knows, by the names in it: a Parquet table of series (`SeriesTable`); a
            `metadata.csv` or `.parquet` of a user's own rasters, or its folder (`ImageFolder`); a folder of shards, its
            address, or the name of a dataset of the Hub (`ShardFolder`); fields of Kenya (`KenyaFields`); EuroSAT,
            DFC2020 or SEN12MS (`EuroSATFolder`, `DFC2020Folder`, `SEN12MSFolder`).
        sensors: which of "s1" and "s2" to read; None for all that are there.
        s2_level: "L1C" or "L2A", for tables that do not say.
        s1_units: "db", "linear" or "auto".
        s2_units: "dn", "reflectance" or "auto".
        s2_offset: 0, 1000 or "auto".

    Raises:
        DataError: nothing at the path, nothing that a reader knows, or an option that its reader does not take.
    """
    options = {"s2_level": s2_level, "s1_units": s1_units, "s2_units": s2_units, "s2_offset": s2_offset}
    given = {key: value for key, value in options.items() if value not in (None, "auto")}
    if "://" in str(path):
        return _open(str(path), "ShardFolder", sensors, given)
    folder = Path(path)
    if not folder.exists():
        if _HUB_NAME.fullmatch(str(path)):
            return _open(_on_hub(str(path)), "ShardFolder", sensors, given)
        raise DataError(f"{path}: no such file or folder; {_ACCEPTED}")
    name = reader_of(folder)
    if name is not None:
        return _open(folder, name, sensors, given)
    raise DataError(f"{path}: cannot be read as a source; {_ACCEPTED}")


def reader_of(path: Path) -> str | None:
    """Name of the reader of what lies at a local path; of a folder that none knows `SEN12MSFolder`, which says what it
    found instead of patches; None for another file."""
    known = (name for name in _READERS if _reader(name).recognises(path))
    return next(known, "SEN12MSFolder" if path.is_dir() else None)


def _reader(name: str) -> type:
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def _open(path: str | Path, name: str, sensors: Sequence[str] | None, given: dict):
    reader = _reader(name)
    takes, level = _READERS[name]
    if level and given.get("s2_level") not in (None, level):
        raise DataError(f"{path}: optics of {name} are level {level}, not {given['s2_level']!r}; leave s2_level out")
    for key in given:
        if key not in takes and not (level and key == "s2_level"):
            raise DataError(f"{path}: is read by {name}, which takes no {key}; leave it out")
    options = {key: value for key, value in given.items() if key in takes}
    return reader(path, **options) if sensors is None else reader(path, sensors=sensors, **options)


def _on_hub(name: str) -> str:
    """Address of a dataset of the Hub, after one short look whether it is there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=5)
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{name}: no such file or folder here, and no such dataset on the Hub (or a private one; log in by "
            f"`hf auth login`); {_ACCEPTED}"
        ) from error
    except Exception as error:  # whatever the client raises where there is no network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: no such file or folder here, and the Hub cannot be asked ({reason})") from error
    return f"hf://datasets/{name}"


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DFC2020Folder", "EuroSATFolder", "ImageFolder", "KenyaFields", "KenyaTiles", "SEN12MSFolder", "SeriesTable",
    "ShardFolder", "build_shards", "check_sample", "generate_eurosat", "generate_kenya", "generate_scene",
    "generate_sen12ms", "load_sen12ms", "make_sample", "open_scene", "open_source",
]  # fmt: skip
