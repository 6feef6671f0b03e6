import dataclasses
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import torch
from hypothesis import given, settings, strategies as st

from croplem_hf import mapping
from croplem_hf.data.folder import open_scene
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.data.sample import make_sample
from croplem_hf.embedding import Embedder
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.heads import LogisticHead, fit_head
from croplem_hf.mapping import map_scene, map_settings, predict_pixels
from croplem_hf.model import CropLEMConfig, CropLEMImageProcessor, CropLEMModel
from croplem_hf.table import EmbeddingsTable

GRID = {"crs": "EPSG:32737", "transform": (10, 0, 375410.0, 0, -10, 8116740.0)}
CLASSES = ("beans", "cassava", "maize")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = CropLEMModel(CropLEMConfig(**sizes, initializer_range=0.3))
    model.embedding_centre.copy_(torch.randn(16))
    return Embedder(model, CropLEMImageProcessor(), name="tiny", device="cpu")


def make_scene(folder: Path, height: int, width: int, *, seed: int = 0, clouds: float = 0.3, radar: int = 2):
    """Optics of three dates, the first in another year than the rest, and radar; a corner that nothing saw."""
    rng = np.random.default_rng(seed)
    lines = ["path,sensor,date,mask"]
    for t in range(3):
        values = rng.integers(100, 4000, (13, height, width)).astype(np.uint16)
        values[10] = rng.integers(3, 40, (height, width))
        cloudy = (rng.random((1, height, width)) < clouds).astype(np.uint8)
        cloudy[:, : height // 2, : width // 2] = 1
        write_geotiff(folder / f"o{t}.tif", values, **GRID)
        write_geotiff(folder / f"m{t}.tif", cloudy, **GRID)
        lines.append(f"o{t}.tif,s2,{('2019-11-20', '2020-02-10', '2020-05-01')[t]},m{t}.tif")
    for t in range(radar):
        values = rng.normal(-12, 3, (2, height, width)).clip(-30, -1).astype(np.float32)
        values[:, : height // 2, : width // 2] = np.nan
        values[:, rng.random((height, width)) < clouds] = 0
        write_geotiff(folder / f"r{t}.tif", values, **GRID)
        lines.append(f"r{t}.tif,s1,2020-0{t + 1}-05,")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return open_scene(folder)


def make_head(
    embedder: Embedder, unit: str, height: int = 1, width: int = 1, *, info: dict | None = None, **encode
) -> LogisticHead:
    """A head that was fitted on invented patches of this size, or on series, with a temperature of 1."""
    rng = np.random.default_rng(1)
    samples = [
        make_sample(
            str(n), s1=rng.normal(-12, 3, (1, 2, height, width)), s1_dates=["2020-02-02"], s2_level="L1C",
            s2=rng.integers(100, 4000, (2, 13, height, width)).astype(np.uint16), s2_dates=["2020-02-10", "2020-05-01"],
        )
        for n in range(60)
    ]  # fmt: skip
    columns = {"height": height, "width": width, "gsd": 10.0}
    table = EmbeddingsTable(
        [sample["id"] for sample in samples],
        embedder.encode(samples, **encode),
        pa.table({name: [value] * 60 for name, value in columns.items()}),
        embedder.info(unit, **encode) | (info or {}),
    )
    # Calibrated on labels without meaning it would say the same everywhere.
    head = fit_head(table, [CLASSES[k] for k in rng.integers(0, 3, 60)])
    head.temperature_ = 1.0
    return head


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path, 18, 20)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles and several reads a tile on a small scene of 43 values a pixel."""
    monkeypatch.setattr(mapping, "TILE", 16)
    monkeypatch.setattr(mapping, "BLOCK_VALUES", 16 * 10 * 43)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()


def by_hand(scene, embedder, head, windows, **encode) -> np.ndarray:
    """Probabilities (N, K) of windows (row, column, height, width), each a sample that has something valid."""
    fields, samples = scene.arrays(0, 0, scene.height, scene.width), []
    for row, column, height, width in windows:
        cut = np.s_[..., row : row + height, column : column + width]
        pixels = {key: fields[key][cut] for key in ("s1", "s1_valid", "s2", "s2_valid")}
        samples.append(make_sample("window", gsd=scene.gsd, **(fields | pixels)))
    return head.predict_proba(embedder.encode(samples, **encode))


@pytest.mark.parametrize("encode", [{}, {"sensors": ["s1"]}, {"sensors": ["s2"], "centre": False}, {"patch_size": 2},
                                    {"truncate_dim": 5}, {"pooling": "mean_std", "centre": False}])
def test_each_pixel_is_classified_by_its_own_series(tmp_path, scene, embedder, small_tiles, encode):
    head = make_head(embedder, "series", **encode)
    out = map_scene(scene, embedder, head, tmp_path / "maps" / "m.tif", tokens_per_batch=60, progress=False)
    found = predict_pixels(scene, embedder, head, map_settings(scene, embedder, head), (0, 0, 18, 20))
    written, fields = read(out), scene.arrays(0, 0, 18, 20)
    seen = np.any([fields[f"{s}_valid"].any(axis=0) for s in encode.get("sensors", ("s1", "s2"))], axis=0)
    assert found.shape == (3, 18, 20) and written.shape == (4, 18, 20) and written.dtype == np.uint8
    assert 90 <= (~seen).sum() < 180 and np.isnan(found[:, ~seen]).all() and (written[:, ~seen] == 255).all()
    want = by_hand(scene, embedder, head, [(*map(int, place), 1, 1) for place in np.argwhere(seen)], **encode).T
    assert want.std(axis=1).min() > 0.01
    np.testing.assert_allclose(found[:, seen], want, atol=1e-5)
    np.testing.assert_allclose(written[1:, seen], 100 * want, atol=0.502)
    clear = np.ptp(np.sort(want, axis=0)[-2:], axis=0) > 1e-4
    assert np.array_equal(written[0, seen][clear], want.argmax(axis=0)[clear])


@settings(max_examples=12)
@given(st.data())
def test_each_cell_is_classified_by_the_window_around_it(embedder, data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    rows, columns = data.draw(st.integers(height, 17)), data.draw(st.integers(width, 17))
    stride = data.draw(st.none() | st.integers(1, min(height, width)))
    head = make_head(embedder, "patch", height, width)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "TILE", 16)
        patch.setattr(mapping, "BLOCK_VALUES", data.draw(st.sampled_from([1, 43 * height * width * 3])))
        scene = make_scene(Path(folder), rows, columns, seed=data.draw(st.integers(0, 99)))
        written = read(map_scene(scene, embedder, head, Path(folder, "m.tif"), stride=stride, progress=False))
        steps = (stride or max(1, height // 4), stride or max(1, width // 4))
        fields = scene.arrays(0, 0, rows, columns)
        seen = fields["s1_valid"].any(axis=0) | fields["s2_valid"].any(axis=0)
        cells, windows = [], []
        for top in range(0, rows, steps[0]):
            for left in range(0, columns, steps[1]):
                cell = np.s_[top : top + steps[0], left : left + steps[1]]
                if not seen[cell].any():
                    assert (written[:, *cell] == 255).all()
                    continue
                # As much before the cell as behind it, one pixel more behind; whole windows at the edges.
                before = ((height - steps[0]) // 2, (width - steps[1]) // 2)
                start = np.clip((top - before[0], left - before[1]), 0, (rows - height, columns - width))
                cells.append(cell)
                windows.append((*start.tolist(), height, width))
        for cell, want in zip(cells, by_hand(scene, embedder, head, windows), strict=True):
            values = written[1:, *cell].reshape(3, -1)
            assert (values == values[:, :1]).all()
            np.testing.assert_allclose(values[:, 0], 100 * want, atol=0.502)


@pytest.mark.parametrize("unit", ["series", "patch"])
def test_the_map_lies_on_the_grid_of_the_scene_and_says_where_it_comes_from(tmp_path, scene, embedder, unit):
    head = make_head(embedder, unit, *((1, 1) if unit == "series" else (8, 8)))
    head.save(tmp_path / "head")
    head = LogisticHead.load(tmp_path / "head")
    before = set(tmp_path.iterdir())
    out = map_scene(scene, embedder, head, tmp_path / "m.tif", progress=False)
    assert set(tmp_path.iterdir()) - before == {out}
    with rasterio.open(tmp_path / "o0.tif") as source, rasterio.open(out) as raster:
        assert (raster.crs, raster.transform, raster.shape) == (source.crs, source.transform, source.shape)
        assert (raster.nodata, raster.count, set(raster.dtypes)) == (255, 4, {"uint8"})
        assert raster.profile["compress"] == "deflate" and raster.block_shapes[0] == (256, 256)
        assert raster.descriptions == ("class", "beans (percent)", "cassava (percent)", "maize (percent)")
        tags, bands = raster.tags(), raster.read()
    assert json.loads(tags["CLASSES"]) == {"0": "beans", "1": "cassava", "2": "maize"}
    assert tags["WEIGHTS_HASH"] == embedder.info(unit)["weights_hash"] and tags["MODEL"] == "tiny"
    assert tags["UNIT"] == unit and len(tags["HEAD_HASH"]) == 64 and tags["TIFFTAG_SOFTWARE"].startswith("croplem_hf ")
    assert json.loads(tags["DATES"])["s2"] == ["2019-11-20", "2020-02-10", "2020-05-01"]
    assert set(np.unique(bands[0])) <= {0, 1, 2, 255}
    known = bands[0] != 255
    assert known.any() and not known.all() and ((bands[1:] <= 100).all(axis=0) == known).all()


def test_heads_of_other_training_have_another_hash(tmp_path, scene, embedder):
    head = make_head(embedder, "series")
    hashes = []
    for temperature in (head.temperature_, head.temperature_, 2.5):
        head.temperature_ = temperature
        with rasterio.open(map_scene(scene, embedder, head, tmp_path / "m.tif", progress=False)) as raster:
            hashes.append(raster.tags()["HEAD_HASH"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("info", "patch", "error", "text"),
    [
        ({}, {"gsd": 20.0}, DataError, "pixels of 10 m, but the head was fitted on 20 m"),
        ({}, {"gsd": 9.7}, DataError, "pixels of 10 m, but the head was fitted on 9.7 m"),
        ({"unit": "field"}, {}, DataError, "unit 'field'; a map needs 'series' or 'patch'"),
        ({}, {"height": None}, DataError, "patches of several or unknown sizes"),
        ({}, {"width": 21}, DataError, "18 x 20 pixels is smaller than the head's patches of 8 x 21"),
        ({"weights_hash": "0" * 64}, {}, CheckpointError, "differ from those of the head in weights_hash"),
        ({"processor": {}}, {}, CheckpointError, "differ from those of the head in processor"),
        ({"pooling": "cls"}, {}, CheckpointError, "differ from those of the head in pooling"),
    ],
)
def test_what_the_head_cannot_be_asked_is_refused(tmp_path, scene, embedder, info, patch, error, text):
    head = make_head(embedder, "patch", 8, 8, info=info)
    head.patch_ |= patch
    with pytest.raises(error, match=text):
        map_scene(scene, embedder, head, tmp_path / "m.tif")
    assert not list(tmp_path.glob("*m.tif*"))


def test_a_head_on_arrays_alone_or_on_sensors_that_are_not_there_is_refused(tmp_path, embedder):
    scene = make_scene(tmp_path, 6, 6, radar=0)
    rng = np.random.default_rng(0)
    head = LogisticHead().fit(rng.normal(size=(20, 16)), np.repeat(["a", "b"], 10))
    with pytest.raises(CheckpointError, match="weights_hash"):
        map_scene(scene, embedder, head, tmp_path / "m.tif")
    head = make_head(embedder, "series", sensors=["s1"])
    with pytest.raises(DataError, match="holds s2, but the head was fitted on s1"):
        map_scene(scene, embedder, head, tmp_path / "m.tif")


@pytest.mark.parametrize(("unit", "stride"), [("patch", 0), ("patch", 9), ("series", 2)])
def test_strides_that_leave_gaps_or_mean_nothing_are_refused(tmp_path, scene, embedder, unit, stride):
    head = make_head(embedder, unit, 8, 8)
    with pytest.raises(DataError, match="stride"):
        map_scene(scene, embedder, head, tmp_path / "m.tif", stride=stride)


def test_too_many_classes_for_a_byte_are_refused(tmp_path, scene, embedder):
    head = make_head(embedder, "series")
    head.classes_ = np.arange(256)
    with pytest.raises(DataError, match="at most 255 classes, the head has 256"):
        map_scene(scene, embedder, head, tmp_path / "m.tif")


def test_other_data_than_the_head_saw_are_told_in_one_line(scene, embedder, caplog):
    head = make_head(embedder, "series")
    head.patch_ = {"gsd": 10.1, "sensors": "s2", "s2_level": "L2A"}
    with caplog.at_level(logging.WARNING):
        map_settings(scene, embedder, head)
    (record,) = caplog.records
    assert "fitted on sensors s2, here s1+s2, and on level of optics L2A, here L1C; check" in record.getMessage()
    caplog.clear()
    head.patch_ = {"sensors": "s1+s2", "s2_level": "L1C"}
    with caplog.at_level(logging.WARNING):
        map_settings(scene, embedder, head)
    assert "pixels of unknown size, here 10 m" in caplog.text and "level" not in caplog.text


@pytest.mark.parametrize("unit", ["series", "patch"])
def test_an_interrupted_map_leaves_the_old_one_and_the_next_run_replaces_it(
    tmp_path, scene, embedder, small_tiles, monkeypatch, unit
):
    head, out = make_head(embedder, unit, *((1, 1) if unit == "series" else (8, 8))), tmp_path / "m.tif"
    map_scene(scene, embedder, head, out, progress=False)
    old, names = out.read_bytes(), set(tmp_path.iterdir())
    calls = []
    real = head.predict_proba

    def interrupted(X):
        calls.append(len(X))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(X)

    monkeypatch.setattr(head, "predict_proba", interrupted)
    with pytest.raises(KeyboardInterrupt):
        map_scene(scene, embedder, head, out, progress=False)
    assert out.read_bytes() == old and set(tmp_path.iterdir()) == names
    map_scene(scene, embedder, head, out, progress=False)
    assert np.array_equal(read(out), read_bytes(old, tmp_path))


def read_bytes(data: bytes, folder: Path) -> np.ndarray:
    (folder / "old.tif").write_bytes(data)
    return read(folder / "old.tif")


def test_batches_do_not_change_a_map_and_the_bar_stands_on_stderr(tmp_path, scene, embedder, capsys):
    head = make_head(embedder, "series")
    how = map_settings(scene, embedder, head)
    single, many = (predict_pixels(scene, embedder, head, how, (3, 2, 14, 17), tokens) for tokens in (1, 10**6))
    np.testing.assert_allclose(single, many, atol=1e-5)
    map_scene(scene, embedder, head, tmp_path / "m.tif")
    shown = capsys.readouterr()
    assert shown.out == "" and "360" in shown.err and "px" in shown.err


def test_patches_of_one_pixel_are_mapped_like_series(tmp_path, scene, embedder):
    maps = []
    for unit in ("series", "patch"):
        map_scene(scene, embedder, make_head(embedder, unit), tmp_path / "m.tif", progress=False)
        maps.append(read(tmp_path / "m.tif"))
    assert np.array_equal(*maps)


def test_settings_are_plain(scene, embedder):
    how = map_settings(scene, embedder, make_head(embedder, "patch", 8, 4))
    assert dataclasses.asdict(how) == {
        "unit": "patch", "height": 8, "width": 4, "sensors": None, "patch_size": None, "centre": True,
        "pooling": "mean", "truncate_dim": None,
    }  # fmt: skip


def test_a_real_scene(real_data, tmp_path, embedder):
    name = "637U_59R_1_3.tif"
    radar, optics = (real_data / "terramesh" / kind / name for kind in ("S1RTC", "S2L1C"))
    lines = ["path,sensor,date,kind", f"{radar},s1,2017-10-30,gamma0", f"{optics},s2,2017-10-30,"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    scene = open_scene(tmp_path)
    for unit, size in (("series", 1), ("patch", 32)):
        out = map_scene(scene, embedder, make_head(embedder, unit, size, size), tmp_path / "m.tif", progress=False)
        with rasterio.open(optics) as source, rasterio.open(out) as raster:
            assert (raster.crs, raster.transform, raster.shape) == (source.crs, source.transform, source.shape)
            bands = raster.read()
        assert (bands[0] < 3).all() and abs(bands[1:].sum(axis=0, dtype=int) - 100).max() <= 2
        assert len(np.unique(bands[1])) > 20 and len(np.unique(bands[0])) > 1
