"""Areas of a map's classes in hectares, corrected by labels of sampled places."""

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import transform

from ..errors import DataError
from ..labels import as_label, read_columns, warn_of_case
from .area import area_estimates
from .design import COLUMNS, design, refuse_unweighted
from .unit_area import unit_estimates

_log = logging.getLogger(__name__)


def map_area(
    map_path: str | os.PathLike,
    labels_path: str | os.PathLike,
    units_path: str | os.PathLike | None = None,
    unit_column: str | None = None,
    units_crs: str | None = None,
) -> dict:
    """Area of each class and accuracy of a map that `croplem map` wrote, from a probability sample.

    Args:
        map_path: GeoTIFF; band 1 holds numbers of classes, its tag CLASSES their names.
        labels_path: CSV or Parquet with `lon`, `lat` (WGS 84, degrees) and `label`, and where the sample was stratified
            `stratum` and `inclusion_probability`. Without these the places must have been drawn at random from the
            whole map, or from each of its classes; the strata are then the classes of the map. With them, hectares
            assume that what the sample was drawn from has the map's extent.
        units_path: polygons such as administrative units (`read_polygons`; extra `geo`); a pixel is in a unit where its
            middle is, and units may overlap.
        unit_column, units_crs: `id_column` and `crs` of `read_polygons`.

    Returns:
        What `area_estimates` gives, in `classes` also `hectares` (an estimate) and `mapped_hectares` (pixels counted,
        biased); `hectares` of the whole map, `strata` and `outside` (labels where the map has no data). With units also
        `units`: what `unit_estimates` gives of each, its name as `unit`, its `hectares` that the map has data for and
        their share of the polygon as `covered`; in `classes` also `mapped_hectares`, `mapped_share`, `direct_hectares`
        and `synthetic_hectares` (None where there is no estimate).

    Raises:
        DataError: no such map, no such columns, labels that were picked by a strategy, strata that are not the map's
            classes and have no probability, too few labels in a stratum, none on the map, or none of its classes; units
            that cannot be read, or none of which lies on the map.
    """
    cells = read_columns(labels_path, ("lon", "lat", "label"), COLUMNS)
    rows = [row for row, label in enumerate(cells["label"]) if as_label(label) is not None]
    if not rows:
        raise DataError(f"{labels_path}: column 'label' holds no label")
    given = design([cells.get(name, [None] * len(cells["label"])) for name in COLUMNS], rows, str(labels_path))
    keep = np.flatnonzero(given.tests)
    truth = np.array([as_label(cells["label"][rows[k]]) for k in keep])
    lon, lat = (np.array([_degrees(cells[name][rows[k]], name, labels_path) for k in keep]) for name in ("lon", "lat"))
    polygons = None
    if units_path is not None:
        from ..data.polygons import read_polygons

        polygons = read_polygons(units_path, id_column=unit_column, crs=units_crs)
    names, hectares, codes, units = _read(Path(map_path), lon, lat, polygons)
    on_map = codes >= 0
    if not on_map.any():
        raise DataError(f"{labels_path}: none of the {len(keep)} labels lies on pixels of {map_path}")
    if not on_map.all():
        _log.warning("%d of %d labels lie where %s has no data; left out", (~on_map).sum(), len(keep), map_path)
    warn_of_case(truth[on_map].tolist(), names)
    truth, mapped = truth[on_map], np.array(names)[codes[on_map]]
    if not set(truth) & set(names):
        found = ", ".join(sorted(set(truth))[:5])
        raise DataError(f"{labels_path}: labels are {found}, the classes of {map_path} {', '.join(names)}; none agrees")
    weights, strata = given.weights[keep][on_map], given.strata[keep][on_map]
    if (weights == 1).all():
        if set(strata) - {""} and (strata != mapped).any():
            # Strata that are the classes of the map need no probability: their sizes are counted.
            refuse_unweighted(given, str(labels_path))
        strata, sizes = mapped, {name: n for name, n in zip(names, hectares, strict=True) if n > 0}
        # Counted in places of 10 m: the correction for a finite population is then nothing.
        sizes = {name: 100 * n for name, n in sizes.items()}
        how = "classes of the map"
    else:
        sizes = {str(name): float(weights[strata == name].sum()) for name in np.unique(strata)}
        how = "strata of the sample"
    found = area_estimates(mapped, truth, strata, sizes)
    whole = float(hectares.sum())
    counted = dict(zip(names, hectares.tolist(), strict=True))
    for row in found["classes"]:
        row["hectares"] = {key: value * whole for key, value in row["area"].items()}
        row["mapped_hectares"] = counted.get(row["class"], 0.0)
    found |= {"hectares": whole, "strata": how, "outside": int((~on_map).sum())}
    if units is not None:
        by_class = how == "classes of the map"
        found["units"] = [
            _unit(unit, names, mapped, truth, strata, sizes, unit.inside[on_map], by_class) for unit in units
        ]
    return found


def _unit(unit, names, mapped, truth, strata, sizes, inside, by_class: bool) -> dict:
    """The estimates of a unit in hectares too."""
    whole = float(unit.hectares.sum())
    counted = dict(zip(names, unit.hectares.tolist(), strict=True))
    # In the measure of `sizes`, see above.
    counts = {name: 100 * area for name, area in counted.items()}
    found = unit_estimates(mapped, truth, strata, sizes, counts, inside, by_class=by_class)
    if unit.problem:
        found |= {"no_direct": unit.problem, "no_synthetic": unit.problem}
    for row in found["classes"]:
        area = counted.get(row["class"], 0.0)
        row |= {"mapped_hectares": area, "mapped_share": area / whole if whole else None}
        for kind in ("direct", "synthetic"):
            row[f"{kind}_hectares"] = row[kind] and {key: value * whole for key, value in row[kind].items()}
    return {"unit": unit.name, "hectares": whole, "covered": unit.covered} | found


def _read(
    path: Path, lon: np.ndarray, lat: np.ndarray, polygons
) -> tuple[list[str], np.ndarray, np.ndarray, list | None]:
    """-> names of classes (K), hectares of each float64 (K,), class at each place int64 (n,), -1 for no data; units."""
    try:
        with rasterio.open(path) as raster:
            tags = raster.tags().get("CLASSES")
            if tags is None or raster.crs is None:
                raise DataError(f"{path}: has no tag CLASSES or no coordinate system; give a map of `croplem map`")
            names = list(json.loads(tags).values())
            hectares, known = np.zeros(len(names)), np.full(len(lon), -1, np.int64)
            x, y = transform("EPSG:4326", raster.crs, lon, lat)
            back, x, y = ~raster.transform, np.asarray(x), np.asarray(y)
            row = np.floor(back.d * x + back.e * y + back.f).astype(int)
            column = np.floor(back.a * x + back.b * y + back.c).astype(int)
            units = None
            if polygons is not None:
                from .map_units import MapUnits

                units = MapUnits(polygons, raster, len(names), len(lon))
            for _, window in raster.block_windows(1):
                block = raster.read(1, window=window)
                area = _pixel_hectares(raster, np.arange(window.row_off, window.row_off + window.height))
                for k in range(len(names)):
                    hectares[k] += ((block == k) * area[:, None]).sum()
                r, c = row - window.row_off, column - window.col_off
                here = (r >= 0) & (r < block.shape[0]) & (c >= 0) & (c < block.shape[1])
                values = block[r[here], c[here]].astype(np.int64)
                known[here] = np.where(values < len(names), values, -1)
                if units is not None:
                    units.add(window, block, area, r, c)
            if units is not None:
                units.check()
    except RasterioError as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    return names, hectares, known, units and units.units


def _pixel_hectares(raster, rows: np.ndarray) -> np.ndarray:
    """Area of a pixel of each row; of geographic grids by the length of a degree on WGS 84."""
    size = abs(raster.transform.a * raster.transform.e - raster.transform.b * raster.transform.d)
    if not raster.crs.is_geographic:
        return np.full(len(rows), size * raster.crs.linear_units_factor[1] ** 2 / 1e4)
    phi = np.radians(raster.transform.f + raster.transform.e * (rows + 0.5))
    meridian = 111_132.95 - 559.85 * np.cos(2 * phi)
    parallel = 111_412.88 * np.cos(phi) - 93.50 * np.cos(3 * phi)
    return size * meridian * parallel / 1e4


def _degrees(value: object, name: str, path: str | os.PathLike) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not abs(number) <= (180 if name == "lon" else 90):
        raise DataError(f"{path}: {name} must be degrees, found {value!r}")
    return number


def area_lines(found: dict) -> Iterator[str]:
    """The result as lines of text."""
    yield f"{'class':16} {'labels':>6} {'area, ha (95 %)':>24} {'mapped, ha':>12} {'user, %':>14} {'producer, %':>14}"
    for row in found["classes"]:
        yield (
            f"{row['class']:16} {row['n_reference']:6} {_plus_minus(row['hectares'], 1, ',.1f'):>24} "
            f"{row['mapped_hectares']:12,.1f} {_plus_minus(row['users_accuracy'], 100, '.1f'):>14} "
            f"{_plus_minus(row['producers_accuracy'], 100, '.1f'):>14}"
        )
    yield f"overall accuracy {_plus_minus(found['overall_accuracy'], 100, '.1f')} % of {found['hectares']:,.1f} ha"
    if found["overall_accuracy"]["se"] == 0:
        yield "an error of 0 says that the sample met no confusion, not that there is none: label more places"
    if "units" in found:
        yield from _unit_lines(found["units"])


def _unit_lines(units: Sequence[dict]) -> Iterator[str]:
    yield ""
    yield (
        f"{'unit':20} {'class':16} {'labels':>6} {'mapped, ha':>12} {'direct, ha (95 %)':>30} "
        f"{'synthetic, ha (95 %)':>30}"
    )
    for unit in units:
        for row in unit["classes"]:
            cells = (_from_to(row[f"{kind}_hectares"]) for kind in ("direct", "synthetic"))
            yield (
                f"{unit['unit']:20} {row['class']:16} {row['n_reference']:6} {row['mapped_hectares']:12,.1f} "
                + " ".join(f"{cell:>30}" for cell in cells)
            )
    yield "synthetic: assumes that each class of the map is wrong as often in the unit as in the whole map"
    for unit in units:
        for reason in dict.fromkeys((unit["no_direct"], unit["no_synthetic"])):
            names = [name for name in ("direct", "synthetic") if unit[f"no_{name}"] == reason]
            if reason:
                yield f"{unit['unit']}: no {' or '.join(names)} estimate: {reason}"
        if 0 < unit["covered"] < 0.99:
            yield f"{unit['unit']}: the map has data for {100 * unit['covered']:.0f} % of it, and figures hold for that"


def _plus_minus(estimate: dict, factor: float, form: str) -> str:
    if math.isnan(estimate["value"]):
        return "-"
    return f"{factor * estimate['value']:{form}} +- {factor * 1.96 * estimate['se']:{form}}"


def _from_to(estimate: dict | None) -> str:
    return f"{estimate['value']:,.1f} ({estimate['low']:,.1f} to {estimate['high']:,.1f})" if estimate else "-"


__all__ = ["area_lines", "map_area"]
