#!/usr/bin/env python3
"""Turn small chips of many dates into a series table of single pixels, for pretraining.

    python scripts/chips_series.py OUT.parquet --worldcereal DIR --cropharvest DIR [--every 2]

WorldCereal chips (netCDF, one folder a place): S2 L2A of which clouds and shadows are left out by the scene class, and
S1 in dB x 10,000; composed to monthly medians of twelve months and to two half-year medians. CropHarvest chips
(GeoTIFF): their months as they are. Columns as `croplem_hf.data.series` reads them; no label is read or written.
"""

import argparse
import datetime
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from croplem_hf.sensors import S2_BANDS

CLEAR = (2, 4, 5, 6, 7, 11)
"""Scene classes kept: dark, vegetation, bare, water, unclassified, snow; without clouds, shadows, cirrus, nothing."""
MONTHS = 12


def read_netcdf(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """-> {variable: (T, H, W)}, dates as datetime64[D] (T,)."""
    with rasterio.open(f"netcdf:{path}") as file:
        names = file.subdatasets
    out, dates = {}, None
    for name in names:
        with rasterio.open(name) as file:
            tags = file.tags()
            out[name.split(":")[-1]] = file.read()
        start = re.search(r"since (\d{4}-\d{2}-\d{2}) (\d{2}):(\d{2}):(\d{2})", tags["timestamp#units"])
        first = datetime.datetime.fromisoformat(f"{start[1]}T{start[2]}:{start[3]}:{start[4]}")
        seconds = [int(v) for v in tags["NETCDF_DIM_timestamp_VALUES"].strip("{}").split(",")]
        dates = np.array([np.datetime64(first, "s") + np.timedelta64(s, "s") for s in seconds]).astype("datetime64[D]")
    return out, dates


def composites(values: np.ndarray, dates: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Medians (len(edges) - 1, C, H, W) of (T, C, H, W) within [edge, next edge); NaN where there is nothing."""
    parts = []
    for low, high in itertools.pairwise(edges):
        inside = values[(dates >= low) & (dates < high)]
        parts.append(np.nanmedian(inside, axis=0) if len(inside) else np.full(values.shape[1:], np.nan))
    return np.stack(parts)


def worldcereal(folder: Path, every: int) -> list[dict]:
    """Rows of one place: pixels of every `every`-th row and column of the 20 m grid."""
    rows = []
    bands, dates = read_netcdf(next(folder.glob("S2_L2A_20m_*.nc")))
    radar, radar_dates = read_netcdf(next(folder.glob("S1_GRD*_20m_*.nc")))
    clear = np.isin(bands.pop("SCL"), CLEAR)
    for path in folder.glob("S2_L2A_10m_*.nc"):
        fine, fine_dates = read_netcdf(path)
        if not np.array_equal(fine_dates, dates):
            raise SystemExit(f"{path}: its dates are not those of the 20 m bands")
        bands |= {name: x.reshape(*x.shape[:1], x.shape[1] // 2, 2, -1, 2).mean((2, 4)) for name, x in fine.items()}
    s2 = np.full((len(dates), len(S2_BANDS), *clear.shape[1:]), np.nan, np.float32)
    for name, x in bands.items():
        s2[:, S2_BANDS.index(name)] = np.where(clear & (x > 0), x, np.nan)
    s1 = np.stack([radar["VV"], radar["VH"]], axis=1).astype(np.float32)
    s1 = np.where(s1 == 0, np.nan, s1 / 1e4)
    s1 = 10 * np.log10(np.maximum(10 ** (s1 / 10), 1e-6))
    first = min(dates[0], radar_dates[0]).astype("datetime64[M]")
    for start in (0, 2, 4):
        months = (first + start + np.arange(MONTHS + 1)).astype("datetime64[D]")
        for kind, edges in (("months", months), ("halves", months[[0, 6, 12]])):
            optics = composites(s2, dates, edges)
            backscatter = composites(s1, radar_dates, edges) if kind == "months" else None
            middle = [str(a + (b - a) // 2) for a, b in itertools.pairwise(edges)]
            offset = start % every
            for y, x in itertools.product(*(range(offset, n, every) for n in clear.shape[1:])):
                rows.append({
                    "id": f"{folder.name}_{kind}{start}_{y}_{x}", "dates": middle, "s2": optics[:, :, y, x].ravel(),
                    "s1": None if backscatter is None else backscatter[:, :, y, x].ravel(), "s2_level": "L2A",
                    "source": f"worldcereal_{kind}", "region": folder.name,
                })  # fmt: skip
    return rows


def cropharvest(path: Path, every: int) -> list[dict]:
    """Rows of one chip: twelve months from each half-year start."""
    with rasterio.open(path) as file:
        names, values = file.descriptions, file.read().astype(np.float32)
    start = np.datetime64(re.search(r"(\d{4}-\d{2})-\d{2}_\d{4}-\d{2}-\d{2}", path.name)[1], "M")
    months = sum(name == "VV" or name.startswith("VV_") for name in names)

    def read(band: str) -> np.ndarray:
        name = re.sub("^B0", "B", band)
        return np.stack([values[names.index(name if t == 0 else f"{name}_{t}")] for t in range(months)])

    s1 = np.stack([read("VV"), read("VH")], axis=1)
    s2 = np.stack([read(band) for band in S2_BANDS], axis=1)
    rows = []
    for begin in range(0, months - MONTHS + 1, 3):
        part = slice(begin, begin + MONTHS)
        dates = [f"{start + begin + t}-15" for t in range(MONTHS)]
        for y, x in itertools.product(*(range(0, n, every) for n in values.shape[1:])):
            rows.append({
                "id": f"{path.stem}_{begin}_{y}_{x}", "dates": dates, "s1": s1[part, :, y, x].ravel(),
                "s2": s2[part, :, y, x].ravel(), "s2_level": "L1C", "source": "cropharvest", "region": path.stem,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--worldcereal", type=Path, help="folder of chips")
    parser.add_argument("--cropharvest", type=Path, help="folder of chips")
    parser.add_argument("--every", type=int, default=2, help="of rows and columns, take each so many-th")
    args = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
    rows = []
    for folder in sorted(p.parent for p in args.worldcereal.glob("*/S2_L2A_20m_*.nc")) if args.worldcereal else []:
        rows += worldcereal(folder, args.every)
    for path in sorted(args.cropharvest.glob("*.tif")) if args.cropharvest else []:
        rows += cropharvest(path, args.every)
    if not rows:
        parser.error("no chips found in these folders")
    with_values = [row for row in rows if np.isfinite(row["s2"]).any()]
    lists = {"dates": pa.list_(pa.string()), "s1": pa.list_(pa.float32()), "s2": pa.list_(pa.float32())}
    schema = pa.schema({"id": pa.string()} | lists | dict.fromkeys(("s2_level", "source", "region"), pa.string()))
    pq.write_table(pa.Table.from_pylist(with_values, schema), args.out, row_group_size=1024)
    print(f"{args.out}: {len(with_values)} series")


if __name__ == "__main__":
    main()
