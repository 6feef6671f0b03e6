import numpy as np
import pytest
import rasterio

from croplem_hf.errors import DataError
from croplem_hf.mapping import cog
from croplem_hf.mapping.cog import BandGroup, write_cog
from croplem_hf.mapping.tiles import TileStore

TRANSFORM = (20.0, 0.0, 375410.0, 0.0, -20.0, 8116740.0)


def write(out, shape=(1100, 700), **options):
    """A class and two numbers a pixel; the upper left is missing."""
    rng = np.random.default_rng(0)
    store = TileStore(out, {}, shape, 300)
    store.start()
    whole = np.zeros((3, *shape), np.uint8)
    for tile in store:
        y, x, h, w = tile
        bands = np.stack([rng.integers(0, 3, (h, w)), *rng.integers(0, 101, (2, h, w))]).astype(np.uint8)
        bands[:, : max(0, 101 - y), : max(0, 51 - x)] = 255
        whole[:, y : y + h, x : x + w] = bands
        store.add(tile, bands)
    groups = [BandGroup(["class"], "mode"), BandGroup(["a", "b"], "average")]
    options = {"crs": "EPSG:32737", "transform": TRANSFORM} | options
    write_cog(out, store, groups, dtype="uint8", nodata=255, tags={"K": "<&>"}, **options)
    return whole


def test_tiles_become_one_cloud_optimised_file(tmp_path):
    out = tmp_path / "m.tif"
    whole = write(out)
    assert list(tmp_path.iterdir()) == [out]
    with rasterio.open(out) as raster:
        assert np.array_equal(raster.read(), whole)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and raster.block_shapes == [(512, 512)] * 3
        assert raster.crs.to_epsg() == 32737 and tuple(raster.transform)[:6] == TRANSFORM and raster.nodata == 255
        assert raster.tags()["K"] == "<&>" and raster.descriptions == ("class", "a", "b")
        assert [raster.overviews(band) for band in (1, 2, 3)] == [[2, 4]] * 3


def test_overviews_hold_the_most_frequent_class_and_the_mean_of_numbers(tmp_path):
    whole = write(tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif", overview_level=0) as raster:
        half = raster.read()
    assert half.shape == (3, 550, 350)
    blocks = whole.reshape(3, 550, 2, 350, 2).transpose(0, 1, 3, 2, 4).reshape(3, 550, 350, 4)
    missing = blocks == 255
    counts = (blocks[0][..., None] == np.arange(3)).sum(axis=2)
    seen = counts.sum(axis=-1) > 0
    assert np.array_equal(half[0] == 255, ~seen)
    chosen = np.take_along_axis(counts, np.where(seen, half[0], 0)[..., None].astype(int), axis=-1)[..., 0]
    assert np.array_equal(chosen[seen], counts.max(axis=-1)[seen])
    with np.errstate(invalid="ignore"):
        mean = np.where(missing, 0, blocks).sum(axis=-1) / (~missing).sum(axis=-1)
    assert (np.abs(half - mean)[1:][:, seen] <= 0.5).all() and (half[1:][:, ~seen] == 255).all()


def test_small_rasters_have_no_overviews_and_need_no_place(tmp_path):
    whole = write(tmp_path / "m.tif", shape=(17, 120), crs=None, transform=(1, 0, 0, 0, 1, 0))
    with rasterio.open(tmp_path / "m.tif") as raster:
        assert np.array_equal(raster.read(), whole) and raster.overviews(1) == [] and raster.crs is None


def test_a_file_that_cannot_be_written_is_told_and_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise rasterio.errors.RasterioIOError("No space left on device")

    monkeypatch.setattr(cog.rasterio.shutil, "copy", full)
    with pytest.raises(DataError, match="m.tif: cannot be written .No space left on device"):
        write(tmp_path / "m.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["m.tif.parts"]
