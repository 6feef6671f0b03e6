"""A user's own imagery: rasters of one or several places, listed in `metadata.csv`, as samples and as windows.

    path,sensor,date,level
    s2_june.tif,s2,2021-06-15,L2A
    s1_june.tif,s1,2021-06-14,

One line a raster. Every column but the first three may be left out, and every cell of them may be empty:

    path     the raster, relative to the table           sensor   s1 or s2
    date     ISO; two acquisitions of one day need their times (2021-06-15T05:40)
    id       the place; else the name of the folder      region   text
    level    L1C or L2A; else by the name of the file, else L1C with B10, L2A with the other twelve bands
    units    of the stored numbers: db, linear, dn, reflectance or auto
    offset   0, 1000 or auto                             kind     sigma0 or gamma0
    orbit    ascending or descending
    bands    names in the order of the file, `-` for one to pass over; else the descriptions in the file, else its name
             where it holds one band, else by number: 13 as `S2_BANDS`, 12 the same without B10, 2 VV VH
    mask     a raster whose non-zero pixels are cloud or nodata

Lines of one place, sensor and time are bands of one image, at any resolution: all are brought to the finest grid of the
place by repeating pixels (nearest), which invents no value, and must cover the same ground. A band named SCL (the scene
classes of L2A) masks clouds, shadows and defects. Scale and offset tags of a file are applied where units are "auto".
"""

import csv
import dataclasses
import difflib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..sensors import S1_BANDS, S2_BANDS, S2_LEVELS, S2_OFFSET, SENSORS
from .sample import parse_date

REQUIRED = ("path", "sensor", "date")
OPTIONAL = ("id", "level", "units", "offset", "kind", "orbit", "bands", "mask", "region")
CHANNELS = {"s1": S1_BANDS, "s2": S2_BANDS}
# Known by name, so that they are not taken for something else.
_OTHER_BANDS = {"s1": ("HH", "HV"), "s2": ("SCL",)}
_CHOICES = {"level": S2_LEVELS, "kind": ("sigma0", "gamma0"), "orbit": ("ascending", "descending")}
_UNITS = {"s1": ("auto", "db", "linear"), "s2": ("auto", "dn", "reflectance")}
_BAND = re.compile(r"(?<![A-Z0-9])(?:B0?(\d{1,2}A?)|(VV|VH|HH|HV|SCL))(?![A-Z0-9])")


@dataclasses.dataclass(frozen=True)
class RasterRow:
    """One line of `metadata.csv`, checked; `where` names file and line for messages, `date` keeps a time if given."""

    where: str
    path: Path
    sensor: str
    date: str
    id: str
    level: str | None = None
    units: str = "auto"
    offset: int | str = "auto"
    kind: str | None = None
    orbit: str | None = None
    bands: tuple[str | None, ...] | None = None
    mask: Path | None = None
    region: str | None = None


def read_metadata(
    root_or_csv: str | os.PathLike,
    *,
    s2_level: str | None = None,
    s1_units: str = "auto",
    s2_units: str = "auto",
    s2_offset: int | str = "auto",
) -> dict[str, list[RasterRow]]:
    """Lines of `metadata.csv` by place, in the order of the file.

    Args:
        root_or_csv: the table, or the folder that holds it.
        s2_level, s1_units, s2_units, s2_offset: for lines that leave them empty.

    Raises:
        DataError: naming file and line: no such table, a column missing or unknown, a cell that cannot be.
    """
    path = Path(root_or_csv)
    path = path / "metadata.csv" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such table; it lists rasters in columns {', '.join(REQUIRED)} (one line a raster)")
    defaults = {"level": s2_level, "s1": s1_units, "s2": s2_units, "offset": s2_offset}
    places = defaultdict(list)
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, strict=True)
            _check_header(path, reader.fieldnames or [])
            for cells in reader:
                row = _row(path, f"{path} line {reader.line_num}", cells, defaults)
                places[row.id].append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table in UTF-8 ({error})") from error
    if not places:
        raise DataError(f"{path}: the table lists no raster")
    return dict(places)


def _check_header(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(f"{path}: columns {missing} are missing; found {', '.join(names)} (separate them by commas)")
    for name in names:
        if name not in REQUIRED + OPTIONAL or names.count(name) > 1:
            close = difflib.get_close_matches(name, REQUIRED + OPTIONAL, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(REQUIRED + OPTIONAL)}"
            raise DataError(f"{path}: column {name!r} is unknown or there twice; {hint}")


def _row(table: Path, where: str, cells: dict, defaults: dict) -> RasterRow:
    if None in cells or None in cells.values():
        raise DataError(f"{where}: the line has more or fewer cells than the header")
    cells = {name: text.strip() or None for name, text in cells.items()}
    for name in REQUIRED:
        if cells[name] is None:
            raise DataError(f"{where}: column {name!r} is empty")
    sensor = cells["sensor"].lower()
    if sensor not in SENSORS:
        raise DataError(f"{where}: sensor must be s1 or s2, found {cells['sensor']!r}")
    parse_date(cells["date"], where)
    units, offset = cells.get("units") or defaults[sensor], str(cells.get("offset") or defaults["offset"])
    if units.lower() not in _UNITS[sensor]:
        raise DataError(f"{where}: units of {sensor} must be one of {_UNITS[sensor]}, found {units!r}")
    if offset not in ("auto", "0", str(S2_OFFSET)):
        raise DataError(f"{where}: offset must be 0, {S2_OFFSET} or auto, found {offset!r}")
    chosen = {}
    for name, choices in _CHOICES.items():
        text = cells.get(name) or (defaults["level"] if name == "level" else None)
        chosen[name] = next((c for c in choices if text and c.lower() == text.lower()), None)
        if text and chosen[name] is None:
            raise DataError(f"{where}: {name} must be one of {choices}, found {text!r}")
    bands = None
    if cells.get("bands"):
        texts = cells["bands"].split()
        bands = tuple(band_name(text, sensor) for text in texts)
        for text, name in zip(texts, bands, strict=True):
            if name is None and (text != "-" or not any(bands)):
                raise DataError(f"{where}: {text!r} is no band of {sensor}; write `-` for a band to pass over")
    return RasterRow(
        where,
        table.parent / cells["path"],
        sensor,
        cells["date"],
        cells.get("id") or table.absolute().parent.name,
        units=units.lower(),
        offset=offset if offset == "auto" else int(offset),
        bands=bands,
        mask=table.parent / cells["mask"] if cells.get("mask") else None,
        region=cells.get("region"),
        **chosen,
    )


def band_name(text: str | None, sensor: str) -> str | None:
    """The band of a sensor that a text names, such as "B2", "S2_B02" or "vv"; None for no band or several."""
    words = _BAND.findall(str(text).upper())
    found = {word or ("B8A" if number == "8A" else f"B{number:0>2}") for number, word in words}
    found &= {*CHANNELS[sensor], *_OTHER_BANDS[sensor]}
    return found.pop() if len(found) == 1 else None


__all__ = ["CHANNELS", "RasterRow", "band_name", "read_metadata"]
