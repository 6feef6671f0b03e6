"""Polygons of fields from GeoJSON, GeoPackage, Shapefile or GeoParquet. Needs the extra `geo`: pyogrio and shapely.

These two and rasterio, which knows coordinate systems, do all that is needed here; geopandas would add pyproj, a second
copy of what rasterio brings.
"""

import dataclasses
import datetime
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rasterio.crs import CRS
from rasterio.errors import CRSError

from ..errors import DataError

try:
    import pyogrio
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError
except ImportError as error:  # pragma: no cover
    raise DataError("polygons need pyogrio and shapely: pip install 'croplem-hf[geo]'") from error

logger = logging.getLogger(__name__)

FORMATS = {".geojson": "GeoJSON", ".json": "GeoJSON", ".gpkg": "GPKG", ".shp": "Shapefile", ".parquet": "GeoParquet",
           ".geoparquet": "GeoParquet"}  # fmt: skip
SAME_AREA = 1e-3
"""Two ways to mend a polygon are one where their areas differ by less than this share."""


@dataclasses.dataclass
class Polygons:
    """Fields of one file, in its order.

    ids: N names, unique. geometries: object (N,), shapely polygons and multi-polygons, None where there is none to use.
    crs: of the coordinates, longitude or easting first. attributes: N dicts of text, numbers, bools or None. problems:
    id -> why there is no geometry. repaired: bool (N,), where the geometry was not valid and could be mended.
    """

    path: Path
    ids: list[str]
    geometries: np.ndarray
    crs: CRS
    attributes: list[dict]
    problems: dict[str, str]
    repaired: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        """Of ids, coordinates and coordinate system."""
        digest = hashlib.sha256(f"{self.crs.to_string()} {json.dumps(self.ids)}".encode())
        for geometry in self.geometries:
            digest.update(b"none" if geometry is None else shapely.to_wkb(geometry))
        return digest.hexdigest()


def read_polygons(path: str | os.PathLike, *, id_column: str | None = None, crs: str | None = None) -> Polygons:
    """Read the polygons of a file with their attributes.

    What is empty, no polygon, or broken so that it is not certain what was meant, has no geometry but an entry in
    `problems`. A broken polygon is mended where keeping its lines and keeping its rings give the same area
    (`make_valid` of GEOS by both methods), as for a figure of eight.

    Args:
        path: .geojson or .json, .gpkg, .shp, .parquet or .geoparquet (GeoParquet with WKB), one layer.
        id_column: attribute that names the fields; None for `id` where the file has such, else the file's name and the
            number of the row, from 0.
        crs: such as "EPSG:32736", for files that do not say. GeoJSON is WGS84 unless this is given.

    Raises:
        DataError: no such file or another format, damaged, several layers, no rows, no coordinate system or one that
            contradicts `crs`, degrees that are none, no such column, or ids that are missing or repeat.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file of polygons; expected {', '.join(FORMATS)}")
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: {path.suffix or 'no'} suffix; polygons are read from {', '.join(FORMATS)}")
    table, wkb, found = _read_geoparquet(path) if kind == "GeoParquet" else _read_ogr(path)
    if not len(wkb):
        raise DataError(f"{path}: holds no fields")
    system = _system(path, kind, found, crs)
    attributes = _attributes(path, table)
    ids = _ids(path, attributes, id_column)
    geometries, problems = np.full(len(ids), None, object), {}
    repaired = np.zeros(len(ids), bool)
    for row, data in enumerate(wkb):
        geometry, reason, repaired[row] = _usable(data)
        if geometry is None:
            problems[ids[row]] = reason
        else:
            geometries[row] = geometry
    _check_degrees(path, geometries, system)
    for values in attributes:
        values.pop("id", None)
    return Polygons(path, ids, geometries, system, attributes, problems, repaired)


def _read_ogr(path: Path) -> tuple[pa.Table, list[bytes | None], str | None]:
    """Attributes, geometries as WKB, and the coordinate system."""
    try:
        layers = [str(name) for name, geometry in pyogrio.list_layers(path) if geometry is not None]
        if len(layers) != 1:
            text = f"{len(layers)} layers of geometries ({', '.join(layers[:5])})" if layers else "no geometries"
            raise DataError(f"{path}: holds {text}; write the fields to a file of one layer")
        about, table = pyogrio.read_arrow(path, layer=layers[0], datetime_as_string=True)
    except (DataSourceError, DataLayerError, pa.ArrowException, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as polygons ({' '.join(str(error).split())})") from error
    name = about["geometry_name"] or "wkb_geometry"
    return table.drop_columns([name]), table[name].to_pylist(), about["crs"]


def _read_geoparquet(path: Path) -> tuple[pa.Table, list[bytes | None], str | None]:
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    try:
        geo = json.loads((table.schema.metadata or {})[b"geo"])
        name = geo["primary_column"]
        about, column = geo["columns"][name], table[name]
    except (TypeError, KeyError, ValueError) as error:
        text = "is no GeoParquet (its metadata 'geo' names no column of geometries)"
        raise DataError(f"{path}: {text}; write it with geopandas, GDAL or DuckDB") from error
    if about.get("encoding") != "WKB" or not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(f"{path}: geometries are encoded as {about.get('encoding')}; write them as WKB")
    # GeoParquet 1.1: a missing crs is longitude and latitude, null is unknown.
    crs = about.get("crs", "OGC:CRS84")
    return table.drop_columns([name]), column.to_pylist(), json.dumps(crs) if isinstance(crs, dict) else crs


def _system(path: Path, kind: str, found: str | None, given: str | None) -> CRS:
    try:
        said = None if given is None else CRS.from_user_input(given)
    except CRSError as error:
        raise DataError(f"crs {given!r} is no coordinate system; give one such as EPSG:32736") from error
    if kind == "GeoJSON" and said is not None:
        return said
    if found is None and said is None:
        raise DataError(f"{path}: says nothing of its coordinate system; say it, such as --crs EPSG:32736")
    try:
        system = said if found is None else CRS.from_user_input(found)
    except CRSError as error:
        raise DataError(f"{path}: its coordinate system cannot be read ({error}); say it by --crs") from error
    if said is not None and said != system:
        raise DataError(f"{path}: is in {system.to_string()[:60]}, which is not the crs {given}; leave crs out")
    return system


def _check_degrees(path: Path, geometries: Sequence, system: CRS) -> None:
    if not system.is_geographic:
        return
    bounds = shapely.bounds(np.array([g for g in geometries if g is not None], object).reshape(-1))
    wrong = np.flatnonzero((np.abs(bounds[:, ::2]) > 360).any(axis=1) | (np.abs(bounds[:, 1::2]) > 90).any(axis=1))
    if len(wrong):
        x, y = bounds[wrong[0], :2]
        raise DataError(
            f"{path}: coordinates such as ({x:.8g}, {y:.8g}) are no longitude and latitude; say their coordinate "
            "system, such as --crs EPSG:32736"
        )


def _attributes(path: Path, table: pa.Table) -> list[dict]:
    """Rows as dicts of plain values; times become text, columns of other kinds are left out."""
    keep = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            logger.warning("%s: column %r of %s is left out", path, name, kind)
        elif pa.types.is_decimal(kind):
            keep[name] = column.cast(pa.float64())
        else:
            keep[name] = column
    rows = pa.table(keep).to_pylist() if keep else [{} for _ in range(len(table))]
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value):
    """A value that a column of the embeddings table can hold; NaN is None, as in a table with gaps."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return None if isinstance(value, float) and np.isnan(value) else value


def _ids(path: Path, attributes: list[dict], column: str | None) -> list[str]:
    names = list(attributes[0])
    if column is not None and column not in names:
        raise DataError(f"{path}: no column {column!r} to name the fields by; found {', '.join(names) or 'none'}")
    if column is None and "id" not in names:
        return [f"{path.stem}_{row}" for row in range(len(attributes))]
    column = column or "id"
    seen: dict[str, int] = {}
    for row, values in enumerate(attributes):
        value = values[column]
        if value is None or value == "":
            raise DataError(f"{path}: row {row} has no {column!r}; fill it in, or name another column by id_column")
        # A shapefile or a column with gaps holds whole numbers as floats.
        name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if name in seen:
            raise DataError(f"{path}: {column} {name!r} stands in rows {seen[name]} and {row}; ids must be unique")
        seen[name] = row
    return list(seen)


def _usable(data: bytes | None) -> tuple[object | None, str, bool]:
    """Geometry or None, why there is none, and whether it was mended."""
    if data is None:
        return None, "has no geometry", False
    geometry = shapely.from_wkb(data, on_invalid="ignore")
    if geometry is None:
        return None, "its geometry cannot be read (a ring that is not closed, or damaged)", False
    geometry = shapely.force_2d(geometry)
    if geometry.geom_type not in ("Polygon", "MultiPolygon"):
        return None, f"is a {geometry.geom_type}, expected a polygon", False
    if geometry.is_empty:
        return None, "its polygon is empty", False
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        return None, "its polygon has coordinates that are no numbers", False
    if geometry.is_valid:
        return (geometry, "", False) if geometry.area > 0 else (None, "its polygon has no area", False)
    reason = shapely.is_valid_reason(geometry)
    lines, rings = (
        _polygonal(shapely.make_valid(geometry, method=method, keep_collapsed=method == "linework"))
        for method in ("linework", "structure")
    )
    if lines is None or rings is None:
        return None, f"its polygon is broken and has no area ({reason})", False
    # Both methods make a field of a hole that lies outside, which nobody can have meant.
    if "Hole lies outside" in reason or abs(lines.area - rings.area) > SAME_AREA * max(lines.area, rings.area):
        return None, f"its polygon is broken and can be mended in several ways ({reason}); mend it by hand", False
    return lines, "", True


def _polygonal(geometry) -> object | None:
    """The polygons of a geometry, without its lines and points."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    parts = parts[(shapely.get_type_id(parts) == 3) & (shapely.area(parts) > 0)]
    return shapely.union_all(parts) if len(parts) else None


__all__ = ["FORMATS", "Polygons", "read_polygons"]
