"""Maps of two classes and samples of labelled places on them, for tests of areas."""

import csv
import json

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.warp import transform


def write_map(path, codes, crs="EPSG:32636", step=10.0, corner=(500_000.0, 100_000.0)):
    height, width = codes.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "nodata": 255, "crs": crs}
    profile |= {"height": height, "width": width, "transform": Affine(step, 0, corner[0], 0, -step, corner[1])}
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(codes.astype(np.uint8), 1)
        raster.update_tags(CLASSES=json.dumps({0: "crop", 1: "other"}))
    return path


def write_sample(path, places, labels, raster_path, **columns):
    with rasterio.open(raster_path) as raster:
        grid, (row, column) = raster.transform, np.asarray(places).T
        x, y = grid.c + grid.a * (column + 0.5), grid.f + grid.e * (row + 0.5)
        lon, lat = transform(raster.crs, "EPSG:4326", x, y)
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "lon", "lat", "label", *columns])
        writer.writerows(zip(range(len(lon)), lon, lat, labels, *columns.values(), strict=True))
    return path
