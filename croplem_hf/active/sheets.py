"""Sheets of items to label: a CSV to fill in, and a GeoJSON of the same for a map or a field app."""

import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError

FIRST = ("rank", "id", "label")


def write_sheets(picks: Sequence[dict], path: str | os.PathLike) -> list[Path]:
    """Write items as CSV with an empty column `label`, and beside it as GeoJSON points where all have lon and lat.

    Args:
        picks: what `suggest` or `draw_validation` gives.
        path: the CSV; the GeoJSON (RFC 7946) has its name with the suffix .geojson.

    Returns:
        The files, each written whole or not at all.

    Raises:
        DataError: another file than a sheet without labels lies there, or `path` ends in .geojson.
    """
    path = Path(path)
    if path.suffix.lower() == ".geojson":
        raise DataError(f"{path}: is the name of the map beside the sheet; give one that ends in .csv")
    if path.exists() and not _is_empty_sheet(path):
        raise DataError(f"{path}: exists and is no sheet without labels; give another name, so that no label is lost")
    map_path = path.with_suffix(".geojson")
    mapped = all(_is_place(pick.get("lon"), pick.get("lat")) for pick in picks)
    if mapped and map_path.exists() and not _is_our_map(map_path):
        raise DataError(f"{map_path}: exists and is no map of a sheet; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    columns = [*FIRST, *(name for name in picks[0] if name not in FIRST)]
    with open(partial, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        writer.writerows([_cell(pick.get(name)) for name in columns] for pick in picks)
    files = [path]
    if mapped:
        map_partial = map_path.with_name(map_path.name + ".tmp")
        map_partial.write_text(json.dumps(_features(picks), indent=1, allow_nan=False), encoding="utf-8")
        os.replace(map_partial, map_path)
        files.append(map_path)
    elif map_path.exists() and _is_our_map(map_path):
        # Of an earlier sheet by this name, whose places these are not.
        map_path.unlink()
    os.replace(partial, path)
    return files


def _features(picks: Sequence[dict]) -> dict:
    return {
        "type": "FeatureCollection",
        "croplem_sheet": True,
        "features": [
            {
                "type": "Feature",
                "id": pick["id"],
                "geometry": {"type": "Point", "coordinates": [pick["lon"], pick["lat"]]},
                "properties": {key: _json(value) for key, value in pick.items() if key not in ("lon", "lat")},
            }
            for pick in picks
        ],
    }


def _is_place(lon: object, lat: object) -> bool:
    numbers = isinstance(lon, int | float) and isinstance(lat, int | float)
    return numbers and math.isfinite(lon) and math.isfinite(lat) and abs(lat) <= 90


def _json(value: object) -> object:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_our_map(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("croplem_sheet") is True
    except (OSError, ValueError, AttributeError):
        return False


def _is_empty_sheet(path: Path) -> bool:
    """Whether a file is one that `write_sheets` wrote and nobody filled in."""
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.reader(handle))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    ours = bool(rows) and tuple(rows[0][:3]) == FIRST
    return ours and not any("".join(row[2:3]).strip() for row in rows[1:])


def _cell(value: object) -> str:
    if value is None:
        return ""
    # Places keep their digits: six of them are some ten metres.
    return f"{value:.8g}" if isinstance(value, float) else str(value)


__all__ = ["write_sheets"]
