"""Finished tiles of a raster that is being made, each a small GeoTIFF, so that a map of hours survives a kill."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from ..data.folder import Scene
from ..data.geotiff import read_geotiff, write_geotiff
from ..errors import CheckpointError, DataError


class TileStore:
    """The folder `OUT.parts` of a raster: a manifest and the tiles that are finished.

    A folder of other settings that holds no finished tile is started over.

    Args:
        out: the raster to be made.
        settings: all that decides about its pixels, plain JSON; finished tiles of other settings are refused.
        shape: rows and columns of the raster.
        side: rows and columns of a tile.

    Raises:
        DataError: `out` is a folder, or a file that is no map.
        CheckpointError: finished tiles of other settings lie there.
    """

    def __init__(self, out: Path, settings: dict, shape: tuple[int, int], side: int):
        _check_replaceable(out)
        self.shape, self.side = shape, side
        self.folder = out.with_name(out.name + ".parts")
        self._settings = settings = json.loads(json.dumps(settings | {"shape": shape, "tile": side}))
        if self._file.is_file():
            try:
                found = json.loads(self._file.read_text())
                different = [key for key in found | settings if found.get(key) != settings.get(key)]
            except (ValueError, TypeError):
                different = ["everything (its manifest.json is damaged)"]
            if different and not any(self.folder.glob("tile-*.tif")):
                self.discard()
            elif different:
                raise CheckpointError(
                    f"{self.folder} holds an unfinished map that differs in {', '.join(different)}; delete that folder "
                    "to start over, or write to another file"
                )

    @property
    def _file(self) -> Path:
        return self.folder / "manifest.json"

    def start(self) -> None:
        """Make the folder and its manifest, unless an earlier run did."""
        if self._file.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Tiles without a manifest are what a killed `discard` left behind.
        for leftover in self.folder.iterdir():
            leftover.unlink()
        partial = self._file.with_suffix(".tmp")
        partial.write_text(json.dumps(self._settings))
        os.replace(partial, self._file)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """Row, column, height and width of each tile, row by row."""
        for row in range(0, self.shape[0], self.side):
            for column in range(0, self.shape[1], self.side):
                yield row, column, min(self.side, self.shape[0] - row), min(self.side, self.shape[1] - column)

    def is_finished(self, tile: tuple[int, int, int, int]) -> bool:
        return self._path(tile).is_file()

    def add(self, tile: tuple[int, int, int, int], bands: np.ndarray) -> None:
        """Store the bands (C, height, width) of a tile.

        Raises:
            CheckpointError: a run of other settings has taken the folder meanwhile.
        """
        if not self._file.is_file() or json.loads(self._file.read_text()) != self._settings:
            raise CheckpointError(f"{self.folder}: another run has taken it; give each map a name of its own")
        write_geotiff(self._path(tile), bands, compress="deflate")

    def read(self, tile: tuple[int, int, int, int]) -> np.ndarray:
        """The bands (C, height, width) of a finished tile."""
        return read_geotiff(self._path(tile))[0]

    def discard(self) -> None:
        """Remove the folder, its manifest first."""
        self._file.unlink()
        shutil.rmtree(self.folder)

    def _path(self, tile: tuple[int, int, int, int]) -> Path:
        return self.folder / f"tile-{tile[0]:07d}-{tile[1]:07d}.tif"


def _check_replaceable(out: Path) -> None:
    """Refuse to put a map where something else lies, such as imagery."""
    if out.is_dir():
        raise DataError(f"{out}: is a folder; give the name of a .tif file")
    if out.exists():
        try:
            with rasterio.open(out) as raster:
                ours = "WEIGHTS_HASH" in raster.tags()
        except RasterioError:
            ours = False
        if not ours:
            raise DataError(f"{out}: exists and is no map of this library; give another name")


def bounded_cache() -> rasterio.Env:
    """GDAL's settings while a map is made: blocks of 512 MB are kept, not a twentieth of the machine's memory.

    The environment variable GDAL_CACHEMAX goes before, as for scenes of many dates in strips that span all columns.
    """
    return rasterio.Env() if "GDAL_CACHEMAX" in os.environ else rasterio.Env(GDAL_CACHEMAX=512)


def imagery_hash(scene: Scene) -> str:
    """SHA-256 over names, sizes and times of change of a scene's files, and what is done to their numbers."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(scene.paths)]
    about = [files, scene.dates, scene.s2_level, scene.corrections]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


__all__ = ["TileStore", "bounded_cache", "imagery_hash"]
