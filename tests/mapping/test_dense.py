import json

import numpy as np
import pytest
import rasterio
from mapping_scenes import make_scene, read

from croplem_hf.data.sample import make_sample
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.mapping import Basis, basis_path, dense, map_embeddings
from croplem_hf.mapping.tokens import Tokens
from croplem_hf.model import CropLEMModel


def by_hand(scene, embedder, p: int, window: int, **encode) -> np.ndarray:
    """Blended tokens (rows, columns, D), one window at a time."""
    rows, columns = -(-scene.height // p), -(-scene.width // p)
    fields = scene.arrays(0, 0, scene.height, scene.width)
    n = window // p
    size = (min(n, rows), min(n, columns))
    total, weight = np.zeros((rows, columns, embedder.dim)), np.zeros((rows, columns, 1))
    falling = np.outer(*(np.sin(np.pi * (np.arange(k) + 0.5) / k) ** 2 for k in size))[..., None]
    for top in sorted({min(y, rows - size[0]) for y in range(0, rows, n // 2)}):
        for left in sorted({min(x, columns - size[1]) for x in range(0, columns, n // 2)}):
            cut = np.s_[..., top * p : (top + size[0]) * p, left * p : (left + size[1]) * p]
            pixels = {key: fields[key][cut] for key in ("s1", "s1_valid", "s2", "s2_valid")}
            if not (pixels["s1_valid"].any() or pixels["s2_valid"].any()):
                continue
            sample = make_sample("window", gsd=scene.gsd, **(fields | pixels))
            outputs = embedder.model(**embedder.processor([sample]), patch_size=p)
            tokens = CropLEMModel.dense_features(outputs)[0].detach().numpy() - embedder.model.embedding_centre.numpy()
            known = np.isfinite(tokens[..., :1])
            place = np.s_[top : top + tokens.shape[0], left : left + tokens.shape[1]]
            part = falling[: tokens.shape[0], : tokens.shape[1]]
            total[place] += np.where(known, tokens, 0) * part
            weight[place] += known * part
    return np.where(weight > 0, total / np.maximum(weight, 1e-9), np.nan)


@pytest.mark.parametrize(
    ("p", "window", "shape"), [(1, 4, (7, 5)), (4, 16, (17, 23)), (4, 8, (18, 20)), (3, 24, (10, 9))]
)
def test_a_token_is_the_weighted_mean_of_the_windows_that_cover_it(tmp_path, embedder, small_reads, p, window, shape):
    scene = make_scene(tmp_path, *shape)
    tokens = Tokens(scene, embedder, patch_size=p, window=window, tokens_per_batch=50)
    whole = tokens.read((0, 0, *tokens.shape))
    want = by_hand(scene, embedder, p, window)
    assert np.isnan(want[0, 0]).all() and np.isfinite(want[-1, -1]).all()
    np.testing.assert_allclose(whole, want, atol=2e-5)
    part = tokens.read((1, 2, tokens.shape[0] - 1, tokens.shape[1] - 2))
    np.testing.assert_allclose(part, whole[1:, 2:], atol=1e-6)


@pytest.mark.parametrize("grid", [
    {"crs": "EPSG:32737", "transform": (10, 0, 375410.0, 0, -10, 8116740.0)},
    {"crs": "EPSG:4326", "transform": (1e-4, 0, 35.5, 0, -9e-5, -17.25)},
    {"crs": "EPSG:32737", "transform": (8, 6, 375410.0, 6, -8, 8116740.0)},
])  # fmt: skip
def test_a_token_lies_where_its_pixels_lie(tmp_path, embedder, grid):
    scene = make_scene(tmp_path, 17, 22, grid=grid)
    out = map_embeddings(scene, embedder, tmp_path / "e.tif", patch_size=4, precision="float32", progress=False)
    with rasterio.open(out) as raster, rasterio.open(tmp_path / "o0.tif") as source:
        assert raster.crs == source.crs and raster.shape == (5, 6)
        assert np.isnan(raster.nodata) and raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        for row, column in ((0, 0), (9, 13), (16, 21)):
            x, y = source.xy(row, column)
            assert raster.index(x, y) == (row // 4, column // 4)
        values = raster.read()
    tokens = Tokens(scene, embedder, patch_size=4)
    np.testing.assert_allclose(values, np.moveaxis(tokens.read((0, 0, 5, 6)), -1, 0), atol=1e-5)
    assert np.isnan(values[:, :2, :2]).all() and np.isfinite(values[:, 2:]).all()


def test_bytes_times_the_scale_of_their_band_are_the_embeddings(tmp_path, scene, embedder):
    options = {"patch_size": 2, "progress": False}
    exact = read(map_embeddings(scene, embedder, tmp_path / "f.tif", precision="float32", **options))
    with rasterio.open(map_embeddings(scene, embedder, tmp_path / "e.tif", tile=4, **options)) as raster:
        assert set(raster.dtypes) == {"int8"} and raster.nodata == -128 and raster.count == 16
        stored, scales = raster.read(masked=True), np.array(raster.scales)
        assert raster.descriptions[0] == "embedding 0" and raster.tags()["CENTRED"] == "True"
    assert (stored.mask == np.isnan(exact)).all() and 0 < stored.mask.mean() < 1
    known = ~stored.mask[0]
    error = np.abs(stored.data * scales[:, None, None] - exact)[:, known]
    assert (error <= scales[:, None] * 0.501).all()
    assert (np.abs(stored.data[:, known]).max(axis=1) > 60).all()
    assert not basis_path(tmp_path / "e.tif").exists()


def test_components_are_kept_for_other_scenes(tmp_path, scene, embedder):
    options = {"patch_size": 2, "precision": "float32", "progress": False}
    out = map_embeddings(scene, embedder, tmp_path / "e.tif", bands=3, **options)
    basis = Basis.load(basis_path(out))
    tokens = Tokens(scene, embedder, patch_size=2)
    full = tokens.read((0, 0, *tokens.shape))
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(read(out), np.moveaxis((full - basis.mean) @ basis.components.T, -1, 0), atol=1e-4)
    with rasterio.open(out) as raster:
        assert raster.descriptions == ("component 1", "component 2", "component 3")
        explained = json.loads(raster.tags()["EXPLAINED"])
    assert 1 > explained[0] > explained[1] > explained[2] > 0
    (tmp_path / "other").mkdir()
    other = make_scene(tmp_path / "other", 12, 10, seed=3)
    again = map_embeddings(other, embedder, tmp_path / "o.tif", basis=basis_path(out), **options)
    tokens = Tokens(other, embedder, patch_size=2)
    want = (tokens.read((0, 0, *tokens.shape)) - basis.mean) @ basis.components.T
    np.testing.assert_allclose(read(again), np.moveaxis(want, -1, 0), atol=1e-4)
    with pytest.raises(CheckpointError, match="differ in patch_size"):
        map_embeddings(scene, embedder, tmp_path / "x.tif", basis=basis_path(out), patch_size=4, progress=False)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name, text in (("bad", "not a basis"), ("none", "no such file")):
        with pytest.raises(CheckpointError, match=text):
            map_embeddings(scene, embedder, tmp_path / "x.tif", basis=tmp_path / f"{name}.safetensors", progress=False)
    assert not list(tmp_path.glob("x.tif*"))


def test_embeddings_that_were_cut_off_go_on(tmp_path, scene, embedder, monkeypatch):
    options = {"patch_size": 2, "bands": 3, "tile": 4, "progress": False}
    want = read(map_embeddings(scene, embedder, tmp_path / "whole.tif", **options))
    real, calls = Tokens.read, []

    def interrupted(self, window, **kwargs):
        calls.append(window)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, window)

    monkeypatch.setattr(Tokens, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        map_embeddings(scene, embedder, tmp_path / "e.tif", **options)
    assert {path.name for path in tmp_path.glob("e.*")} == {"e.tif.parts"}
    monkeypatch.setattr(dense.Basis, "fit", lambda *args: 1 / 0)
    assert np.array_equal(read(map_embeddings(scene, embedder, tmp_path / "e.tif", **options)), want)
    assert len(set(calls)) == len(calls) - 1 == 9
    assert {path.name for path in tmp_path.glob("e.*")} == {"e.tif", "e.basis.safetensors"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"patch_size": 17}, "patch_size must be 1 to 16, found 17"),
        ({"patch_size": 4, "window": 12}, "window must be a multiple of 8 pixels, twice the patch size; found 12"),
        ({"bands": 17}, "bands must be 1 to 8, found 17: the embeddings have 16 numbers, and 8 of them"),
        ({"bands": 3, "basis": "x.safetensors"}, "a basis has its own number of bands"),
        ({"precision": "float16"}, "precision must be one of int8, float32, found 'float16'"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, scene, embedder, options, text):
    with pytest.raises(DataError, match=text):
        map_embeddings(scene, embedder, tmp_path / "e.tif", **options, progress=False)
    assert not list(tmp_path.glob("e.tif*"))


def test_sensors_are_as_asked_for(tmp_path, embedder):
    scene = make_scene(tmp_path, 9, 9)
    radar = Tokens(scene, embedder, sensors=["s1"], patch_size=1).read((0, 0, 9, 9))
    assert np.array_equal(np.isfinite(radar[..., 0]), scene.arrays(0, 0, 9, 9)["s1_valid"].any(axis=0))
    assert not np.allclose(radar[5:, 5:], Tokens(scene, embedder, patch_size=1).read((5, 5, 4, 4)), equal_nan=True)
    (tmp_path / "optics").mkdir()
    optics = make_scene(tmp_path / "optics", 9, 9, radar=0)
    with pytest.raises(DataError, match="holds s2, but s1 was asked for"):
        Tokens(optics, embedder, sensors=["s1"])


def test_a_scene_that_nobody_saw_is_refused(tmp_path, embedder):
    scene = make_scene(tmp_path, 9, 9, clouds=1, radar=0)
    with pytest.raises(DataError, match="nothing valid"):
        map_embeddings(scene, embedder, tmp_path / "e.tif", progress=False)


def test_a_real_scene(real_data, tmp_path):
    from croplem_hf import Embedder, open_scene, packaged_path

    lines = ["path,sensor,date,kind"]
    for kind, sensor, how in (("S1RTC", "s1", "gamma0"), ("S2L1C", "s2", "")):
        lines.append(f"{real_data / 'terramesh' / kind / '637U_59R_1_3.tif'},{sensor},2017-10-30,{how}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    embedder = Embedder.from_pretrained(packaged_path(), device="cpu")
    scene = open_scene(tmp_path)
    options = {"patch_size": 16, "progress": False}
    exact = read(map_embeddings(scene, embedder, tmp_path / "f.tif", precision="float32", **options))
    with rasterio.open(map_embeddings(scene, embedder, tmp_path / "e.tif", **options)) as raster:
        found = raster.read() * np.array(raster.scales)[:, None, None]
    cosine = (found * exact).sum(axis=0) / np.linalg.norm(found, axis=0) / np.linalg.norm(exact, axis=0)
    assert exact.shape == (128, 14, 14) and cosine.min() > 0.999


def test_a_map_that_finished_no_tile_blocks_no_other(tmp_path, scene, embedder, monkeypatch):
    out = tmp_path / "e.tif"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Tokens, "read", lambda *args, **kwargs: 1 / 0)
        map_embeddings(scene, embedder, out, bands=2, progress=False)
    assert (tmp_path / "e.tif.parts" / "basis.safetensors").exists()
    with rasterio.open(map_embeddings(scene, embedder, out, bands=3, progress=False)) as raster:
        assert raster.count == 3


def test_the_bar_moves_with_every_window(scene, embedder):
    tokens, shares = Tokens(scene, embedder, patch_size=2, window=4), []
    tokens.read((0, 0, *tokens.shape), progress=shares.append)
    assert len(shares) > 20 and sum(shares) == pytest.approx(1)
