"""A user's own imagery: rasters of one or several places, listed in `metadata.csv` or `metadata.parquet`.

The header tells which of two forms a table has. **With a column `sensor`, a line is a raster**:

    path,sensor,date,level
    s2_june.tif,s2,2021-06-15,L2A
    s1_june.tif,s1,2021-06-14,

    path     the raster, relative to the table (also `file_name`)      sensor   s1 or s2
    date     ISO; two acquisitions of one day need their times (2021-06-15T05:40)
    id       the place; else the name of the folder: lines of one place and time are one image, of one sensor

**Without `sensor`, a line is a place at one date**, as Hugging Face lists images; lines of one `id` are its dates:

    id,s1,s2,date,region,crop_type
    f1,f1_s1.tif,f1_s2.tif,2021-06-15,Njoro,maize
    f1,,f1_july.tif,2021-07-10,Njoro,maize
    f2,,f2_s2.tif,2021-06-15,Molo,

    s1, s2   rasters (also `s1_file_name`, `s2_file_name`; `file_name` is s2); one of the two may be empty
    date     of both, or `s1_date` and `s2_date`          id   else every line is a place, named as its raster
    any other column is a label or a name of the place and becomes metadata of its sample; where lines of a place differ
    in it, they are refused

What may be said in both forms, and be left out or empty (the second form writes `s2_level`, `s1_units`, ...):

    level    L1C or L2A; else by the name of the file, else L1C with B10, L2A with the other twelve bands
    units    of the stored numbers: db, linear, dn, reflectance or auto
    offset   0, 1000 or auto                             kind     sigma0 or gamma0
    orbit    ascending or descending                     region   text
    bands    names in the order of the file, `-` for one to pass over; else the descriptions in the file, else its name
             where it holds one band, else by number: 13 as `S2_BANDS`, 12 the same without B10, 2 VV VH
    mask     a raster whose non-zero pixels are cloud or nodata
    clouds   a raster of cloud probability                cloud_threshold   percent from which a pixel is cloud (40)

All rasters of a place, at any resolution, are brought to the finest grid of the place by repeating pixels (nearest),
which invents no value, and must cover the same ground. Bands named SCL (scene classes of L2A), QA60 (Earth Engine's
bits), CLD, CLDPRB, CLP, cloud_probability or cs, cs_cdf (Cloud Score+) mask what is no view of the ground. Scale and
offset tags of a file are applied where units are "auto".
"""

import csv
import dataclasses
import difflib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..sensors import S1_BANDS, S2_BANDS, S2_LEVELS, S2_OFFSET, SENSORS
from .sample import SENSOR_KEYS, parse_date

NAMES = ("metadata.csv", "metadata.parquet")
CLOUD_THRESHOLD = 40.0
"""Percent of cloud probability from which a pixel is cloud: the default of s2cloudless (0.4)."""

REQUIRED = ("path", "sensor", "date")
_SAID = {
    "s1": ("units", "kind", "orbit", "bands", "mask"),
    "s2": ("units", "level", "offset", "bands", "mask", "clouds"),
}
OPTIONAL = ("id", "level", "units", "offset", "kind", "orbit", "bands", "mask", "clouds", "cloud_threshold", "region")
# What a line of the second form may say of its sensors, and other names of its rasters.
_PREFIXED = tuple(f"{s}_{name}" for s in SENSORS for name in ("date", *_SAID[s]))
_ALIASES = {"s1_file_name": "s1", "s2_file_name": "s2", "file_name": "s2"}
_OWN = {"id", "date", "cloud_threshold", *SENSORS, *_PREFIXED}
_INTEGER = re.compile(r"0|-?[1-9]\d{0,17}")
_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][+-]?\d+)?")
_FROM_RASTER = ("lc", "gsd", "crs", "transform", *SENSOR_KEYS)

CHANNELS = {"s1": S1_BANDS, "s2": S2_BANDS}
CLOUD_BANDS = ("CLD", "CLDPRB", "CLP", "PROBABILITY", "CS", "CS_CDF")
"""Bands of cloud probability by name; CS and CS_CDF (Cloud Score+) say how clear it is instead."""

# Known by name, so that they are not taken for something else.
_OTHER_BANDS = {"s1": ("HH", "HV"), "s2": ("SCL", "QA60", *CLOUD_BANDS)}
_CHOICES = {"level": S2_LEVELS, "kind": ("sigma0", "gamma0"), "orbit": ("ascending", "descending")}
_UNITS = {"s1": ("auto", "db", "linear"), "s2": ("auto", "dn", "reflectance")}
_BAND = re.compile(
    r"(?<![A-Z0-9])(?:B0?(\d{1,2}A?)|(VV|VH|HH|HV|SCL|QA60|CLD|CLDPRB|CLP|PROBABILITY|CS_CDF|CS))(?![A-Z0-9])"
)


@dataclasses.dataclass(frozen=True)
class RasterRow:
    """One raster of the table, checked; `where` names file and line for messages, `date` keeps a time if given.

    labels: metadata of the place, as the line gives it.
    """

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
    clouds: Path | None = None
    cloud_threshold: float = CLOUD_THRESHOLD
    labels: dict[str, str | int | float | bool] = dataclasses.field(default_factory=dict)


def find_table(path: Path) -> Path | None:
    """The table at a path or in the folder; None if there is none.

    Raises:
        DataError: the folder holds both a CSV and a Parquet table.
    """
    if not path.is_dir():
        return path if path.is_file() and path.suffix.lower() in (".csv", ".parquet") else None
    found = [path / name for name in NAMES if (path / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{path}: holds {' and '.join(NAMES)}; remove one, or name the one to read")
    return found[0] if found else None


def read_metadata(
    root_or_table: str | os.PathLike,
    *,
    s2_level: str | None = None,
    s1_units: str = "auto",
    s2_units: str = "auto",
    s2_offset: int | str = "auto",
    cloud_threshold: float = CLOUD_THRESHOLD,
) -> dict[str, list[RasterRow]]:
    """Rasters of the table by place, in the order of the file.

    Args:
        root_or_table: `metadata.csv` or `metadata.parquet`, or the folder that holds it.
        s2_level, s1_units, s2_units, s2_offset, cloud_threshold: for lines that leave them empty.

    Raises:
        DataError: naming file and line: no such table, a column missing or unknown, a cell that cannot be, labels that
            differ within a place.
    """
    path = find_table(Path(root_or_table))
    if path is None:
        missing = Path(root_or_table) / NAMES[0] if Path(root_or_table).is_dir() else root_or_table
        raise DataError(
            f"{missing}: no such table; it lists rasters in columns {', '.join(REQUIRED)} (one line a raster), or "
            "s1, s2, date and labels (one line a place and date)"
        )
    text = path.suffix.lower() == ".csv"
    names, lines = _read_csv(path) if text else _read_parquet(path)
    defaults = {"level": s2_level, "s1": s1_units, "s2": s2_units, "offset": s2_offset, "clouds": cloud_threshold}
    one_raster = "sensor" in names or "path" in names
    if one_raster:
        names = ["path" if name == "file_name" else name for name in names]
    else:
        names = [_ALIASES.get(name, name) for name in names]
    (_check_rasters if one_raster else _check_places)(path, names)
    numbers = _numbers(names, lines) if text and not one_raster else {}
    folder, places = path.absolute().parent.name, defaultdict(list)
    for k, (where, cells) in enumerate(lines):
        cells = dict(zip(names, cells, strict=True)) | {name: column[k] for name, column in numbers.items()}
        rows = [_row(path, where, cells, defaults, folder)] if one_raster else _place(path, where, cells, defaults)
        places[rows[0].id] += rows
    if not places:
        raise DataError(f"{path}: the table lists no raster")
    return dict(places)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[str, list]]]:
    """Names of columns, and (file and line, cells) of each line; empty cells are None."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            names = next(reader, [])
            lines = [(f"{path} line {reader.line_num}", cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV table in UTF-8 ({error})") from error
    for where, cells in lines:
        if len(cells) != len(names):
            raise DataError(f"{where}: the line has more or fewer cells than the header")
    return names, [(where, [text.strip() or None for text in cells]) for where, cells in lines]


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[str, list]]]:
    columns = []
    try:
        table = pq.read_table(path, partitioning=None)
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
                raise DataError(f"{path}: column {name!r} must hold single values, found {column.type}")
            columns.append((column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())[:200]})") from error
    lines = zip(*columns, strict=True)
    return table.column_names, [
        (f"{path} row {k}", [None if v != v or v == "" else v for v in cells]) for k, cells in enumerate(lines, start=1)
    ]


def _numbers(names: Sequence[str], lines: Sequence[tuple[str, list]]) -> dict[str, list]:
    """Columns of labels of a CSV table that are numbers all through -> numbers; 007 is none."""
    found = {}
    for k, name in enumerate(names):
        cells = [] if name in _OWN else [cells[k] for _, cells in lines]
        for pattern, kind in ((_INTEGER, int), (_FLOAT, float)):
            if cells and all(cell is None or pattern.fullmatch(cell) for cell in cells):
                found[name] = [None if cell is None else kind(cell) for cell in cells]
                break
    return found


def _check_rasters(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise DataError(f"{path}: columns {missing} are missing; found {', '.join(names)} (separate them by commas)")
    for name in names:
        if name not in REQUIRED + OPTIONAL or names.count(name) > 1:
            close = difflib.get_close_matches(name, REQUIRED + OPTIONAL, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(REQUIRED + OPTIONAL)}"
            raise DataError(f"{path}: column {name!r} is unknown or there twice; {hint}")


def _check_places(path: Path, names: Sequence[str]) -> None:
    found = f"found {', '.join(names)} (separate them by commas)"
    if not set(SENSORS) & set(names):
        raise DataError(
            f"{path}: columns of rasters are missing, {', '.join(REQUIRED)} for one line a raster, or s1 or s2 with "
            f"date for one line a place; {found}"
        )
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: column {name!r} is there twice, or under two of its names; {found}")
        if name in ("kind", "orbit", "units", "level", "offset", "bands", "mask", "clouds"):
            said = [f"{s}_{name}" for s in SENSORS if name in _SAID[s]]
            raise DataError(f"{path}: column {name!r} must say of which sensor: {' or '.join(said)}")
        if name not in _OWN and (name in _FROM_RASTER or name.startswith(("s1_", "s2_"))):
            close = difflib.get_close_matches(name, _PREFIXED, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "give it another name"
            raise DataError(f"{path}: column {name!r} is unknown, and no name for a label; {hint}")


def _place(table: Path, where: str, cells: dict, defaults: dict) -> list[RasterRow]:
    """The rasters of one line of the second form."""
    rows, labels = [], {name: value for name, value in cells.items() if name not in _OWN and value is not None}
    first = next((cells[s] for s in ("s2", "s1") if cells.get(s) is not None), None)
    if first is None:
        raise DataError(f"{where}: neither s1 nor s2 names a raster")
    id = cells.get("id")
    id = Path(str(first)).with_suffix("").as_posix() if id is None else id
    for sensor in SENSORS:
        if cells.get(sensor) is None:
            continue
        own = {name: cells.get(f"{sensor}_{name}") for name in _SAID[sensor]}
        date = cells.get(f"{sensor}_date")
        own |= {"id": id, "path": cells[sensor], "sensor": sensor, "date": cells.get("date") if date is None else date}
        own["cloud_threshold"] = cells.get("cloud_threshold")
        rows.append(_row(table, where, own, defaults, None, labels))
    return rows


def _row(
    table: Path, where: str, cells: dict, defaults: dict, folder: str | None, labels: dict | None = None
) -> RasterRow:
    if labels is None:
        labels = {"region": str(cells["region"])} if cells.get("region") is not None else {}
    cells = {name: _text(value) for name, value in cells.items() if value is not None}
    for name in REQUIRED:
        if name not in cells:
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
        cells.get("id") or folder,
        units=units.lower(),
        offset=offset if offset == "auto" else int(offset),
        bands=bands,
        mask=table.parent / cells["mask"] if "mask" in cells else None,
        clouds=table.parent / cells["clouds"] if "clouds" in cells else None,
        cloud_threshold=_threshold(where, cells.get("cloud_threshold", defaults["clouds"])),
        labels=labels,
        **chosen,
    )


def _text(value) -> str:
    # pandas writes integers of a column with gaps as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _threshold(where: str, value: str | float) -> float:
    try:
        percent = float(value)
    except ValueError:
        percent = -1.0
    if not 0 < percent <= 100:
        raise DataError(f"{where}: cloud_threshold must be percent above 0, up to 100, found {value!r}")
    return percent


def place_labels(id: str, rows: Sequence[RasterRow]) -> dict[str, str | int | float | bool]:
    """Metadata of a place, which any of its lines may give.

    Raises:
        DataError: two lines of the place differ.
    """
    found, by = {}, {}
    for row in rows:
        for name, value in row.labels.items():
            if found.setdefault(name, value) != value:
                said = {by[name]: found[name], row.where: value}
                raise DataError(f"{id}: column {name} differs within one place: {said}; give the places different ids")
            by.setdefault(name, row.where)
    return found


def band_name(text: str | None, sensor: str) -> str | None:
    """The band of a sensor that a text names, such as "B2", "S2_B02" or "vv"; None for no band or several."""
    words = _BAND.findall(str(text).upper())
    found = {word or ("B8A" if number == "8A" else f"B{number:0>2}") for number, word in words}
    found &= {*CHANNELS[sensor], *_OTHER_BANDS[sensor]}
    return found.pop() if len(found) == 1 else None


__all__ = [
    "CHANNELS", "CLOUD_BANDS", "CLOUD_THRESHOLD", "NAMES", "RasterRow", "band_name", "find_table", "place_labels",
    "read_metadata",
]  # fmt: skip
