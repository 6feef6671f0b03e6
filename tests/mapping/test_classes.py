import dataclasses
import json
import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings, strategies as st
from mapping_scenes import make_head, make_scene, read

from croplem_hf.data.folder import open_scene
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.data.sample import make_sample
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.heads import LogisticHead
from croplem_hf.mapping import block, classes, map_scene, map_settings
from croplem_hf.mapping.classes import predict_window


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
def test_each_pixel_is_classified_by_its_own_series(tmp_path, scene, embedder, small_reads, encode):
    head = make_head(embedder, "series", **encode)
    out = map_scene(scene, embedder, head, tmp_path / "maps" / "m.tif", tile=16, tokens_per_batch=60, progress=False)
    found = predict_window(scene, embedder, head, map_settings(scene, embedder, head), (1, 1), (0, 0, 18, 20))
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


@settings(max_examples=5)
@given(st.data())
def test_each_pixel_has_the_weighted_mean_of_the_windows_that_cover_it(embedder, data):
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    rows, columns = data.draw(st.integers(height, 11)), data.draw(st.integers(width, 13))
    stride = data.draw(st.none() | st.integers(1, min(height, width)))
    head = make_head(embedder, "patch", height, width)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "BLOCK_VALUES", data.draw(st.sampled_from([1, 43 * height * width * 3])))
        scene = make_scene(Path(folder), rows, columns, seed=data.draw(st.integers(0, 99)))
        tile = data.draw(st.integers(4, 20))
        out = map_scene(scene, embedder, head, Path(folder, "m.tif"), stride=stride, tile=tile, progress=False)
        written, fields = read(out), scene.arrays(0, 0, rows, columns)
        seen = fields["s1_valid"].any(axis=0) | fields["s2_valid"].any(axis=0)
        steps = (stride or max(1, height // 4), stride or max(1, width // 4))
        # Whole windows: the last ones are shifted inward.
        tops = sorted({min(top, rows - height) for top in range(0, rows, steps[0])})
        lefts = sorted({min(left, columns - width) for left in range(0, columns, steps[1])})
        windows = [(y, x, height, width) for y in tops for x in lefts if seen[y : y + height, x : x + width].any()]
        total, weight = np.zeros((3, rows, columns)), np.zeros((rows, columns))
        falling = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width)))
        for (y, x, *_), told in zip(windows, by_hand(scene, embedder, head, windows), strict=True):
            total[:, y : y + height, x : x + width] += told[:, None, None] * falling
            weight[y : y + height, x : x + width] += falling
        assert (weight[seen] > 0).all() and (written[:, ~seen] == 255).all()
        np.testing.assert_allclose(written[1:, seen], 100 * (total / weight.clip(1e-12))[:, seen], atol=0.51)


@pytest.mark.parametrize("unit", ["series", "patch"])
def test_borders_of_tiles_do_not_show(tmp_path, scene, embedder, unit):
    head = make_head(embedder, unit, *((1, 1) if unit == "series" else (8, 8)))
    how = map_settings(scene, embedder, head)
    steps = (1, 1) if unit == "series" else (3, 3)
    whole = predict_window(scene, embedder, head, how, steps, (0, 0, 18, 20))
    parts = [
        [predict_window(scene, embedder, head, how, steps, (y, x, h, w)) for x, w in ((0, 13), (13, 7))]
        for y, h in ((0, 5), (5, 13))
    ]
    np.testing.assert_allclose(np.block(parts), whole, atol=1e-6)
    assert np.nanstd(whole) > 0.01


def test_windows_are_blended_without_a_step(tmp_path, embedder):
    """Two halves of other ground: where the windows of 16 px pass from one to the other the map has no jump."""
    values = np.full((13, 32, 64), 900, np.uint16)
    values[:, :, 32:] = 3000
    write_geotiff(tmp_path / "L2A.tif", np.delete(values, 10, 0), crs="EPSG:32737", transform=(10, 0, 0, 0, -10, 0))
    (tmp_path / "metadata.csv").write_text("path,sensor,date,units,offset\nL2A.tif,s2,2020-02-10,dn,0\n")
    scene, head = open_scene(tmp_path), make_head(embedder, "patch", 16, 16)
    how = map_settings(scene, embedder, head)
    found = predict_window(scene, embedder, head, how, (4, 4), (0, 0, 32, 64))
    assert np.abs(found[:, :, :16] - found[:, :1, :1]).max() < 1e-5
    assert np.abs(found[:, :, 48:] - found[:, :1, -1:]).max() < 1e-5
    steps, whole = np.abs(np.diff(found[:, 0])).max(), np.abs(found[:, 0, -1] - found[:, 0, 0]).max()
    assert whole > 0.05 and steps < whole / 4


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
        assert raster.profile["compress"] == "deflate" and raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
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
        ({"unit": "field"}, {}, DataError, "unit 'field', a map needs .*; such a head tells the class of whole fields"),
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
def test_an_interrupted_map_leaves_the_old_one_and_goes_on(tmp_path, scene, embedder, monkeypatch, unit):
    head, out = make_head(embedder, unit, *((1, 1) if unit == "series" else (8, 8))), tmp_path / "m.tif"
    want = read(map_scene(scene, embedder, head, out, tile=9, progress=False))
    old, names = out.read_bytes(), set(tmp_path.iterdir())
    real, calls = classes.predict_window, []

    def interrupted(*args, **kwargs):
        calls.append(args[5])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(classes, "predict_window", interrupted)
    with pytest.raises(KeyboardInterrupt):
        map_scene(scene, embedder, head, out, tile=9, progress=False)
    assert out.read_bytes() == old and set(tmp_path.iterdir()) == {*names, tmp_path / "m.tif.parts"}
    other = make_head(embedder, unit, *((1, 1) if unit == "series" else (8, 8)), centre=False)
    with pytest.raises(CheckpointError, match="m.tif.parts holds an unfinished map that differs in HEAD_HASH; delete"):
        map_scene(scene, embedder, other, out, tile=9, progress=False)
    map_scene(scene, embedder, head, out, tile=9, progress=False)
    assert len(calls) == 4 + 6 - 3 and len(set(calls)) == 6
    assert np.array_equal(read(out), want) and set(tmp_path.iterdir()) == names


def test_a_scene_that_changed_is_not_joined_with_its_old_tiles(tmp_path, scene, embedder, monkeypatch):
    head, real = make_head(embedder, "series"), classes.predict_window
    monkeypatch.setattr(classes, "predict_window", lambda *args, **kwargs: real(*args, **kwargs) if first() else 1 / 0)
    first = iter([True, False]).__next__
    with pytest.raises(ZeroDivisionError):
        map_scene(scene, embedder, head, tmp_path / "m.tif", tile=9, progress=False)
    monkeypatch.setattr(classes, "predict_window", real)
    again = make_scene(tmp_path, 18, 20, seed=5)
    with pytest.raises(CheckpointError, match="differs in imagery"):
        map_scene(again, embedder, head, tmp_path / "m.tif", tile=9, progress=False)


def test_a_map_that_finished_no_tile_blocks_no_other(tmp_path, scene, embedder, monkeypatch):
    head, out, real = make_head(embedder, "patch", 8, 8), tmp_path / "m.tif", classes.predict_window
    monkeypatch.setattr(classes, "predict_window", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        map_scene(scene, embedder, head, out, stride=2, progress=False)
    assert [path.name for path in (tmp_path / "m.tif.parts").iterdir()] == ["manifest.json"]
    monkeypatch.setattr(classes, "predict_window", real)
    map_scene(scene, embedder, head, out, stride=4, progress=False)
    with rasterio.open(out) as raster:
        assert raster.tags()["STRIDE"] == "4 x 4"


def test_two_runs_of_different_settings_do_not_mix_their_tiles(tmp_path, scene, embedder, monkeypatch):
    head, out, real = make_head(embedder, "patch", 8, 8), tmp_path / "m.tif", classes.predict_window

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(classes, "predict_window", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            map_scene(scene, embedder, head, out, stride=4, progress=False)
        return real(*args, **kwargs)

    monkeypatch.setattr(classes, "predict_window", overtaken)
    with pytest.raises(CheckpointError, match="another run has taken it"):
        map_scene(scene, embedder, head, out, stride=2, progress=False)
    assert not list((tmp_path / "m.tif.parts").glob("tile-*"))


def test_a_scene_of_one_window_is_told(tmp_path, embedder, caplog):
    scene, head = make_scene(tmp_path, 8, 8, clouds=0), make_head(embedder, "patch", 8, 8)
    found = read(map_scene(scene, embedder, head, tmp_path / "m.tif", progress=False))
    assert len(np.unique(found[0])) <= 2 and "all of the map gets one value" in caplog.text
    caplog.clear()
    for other in (make_head(embedder, "patch", 4, 4), make_head(embedder, "series")):
        map_scene(scene, embedder, other, tmp_path / "m.tif", progress=False)
    assert "one value" not in caplog.text


def test_the_bar_moves_with_every_batch_of_windows(scene, embedder):
    head, shares = make_head(embedder, "series"), []
    predict_window(
        scene, embedder, head, map_settings(scene, embedder, head), (1, 1), (0, 0, 18, 20), tokens_per_batch=50,
        progress=shares.append,
    )  # fmt: skip
    assert len(shares) > 20 and sum(shares) == pytest.approx(1)


def test_the_map_does_not_take_the_place_of_a_folder(tmp_path, scene, embedder):
    (tmp_path / "m.tif").mkdir()
    with pytest.raises(DataError, match="is a folder; give the name of a .tif file"):
        map_scene(scene, embedder, make_head(embedder, "series"), tmp_path / "m.tif", progress=False)


def test_batches_do_not_change_a_map_and_the_bar_stands_on_stderr(tmp_path, scene, embedder, capsys):
    head = make_head(embedder, "series")
    how = map_settings(scene, embedder, head)
    single, many = (
        predict_window(scene, embedder, head, how, (1, 1), (3, 2, 14, 17), tokens_per_batch=tokens)
        for tokens in (1, 10**6)
    )
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


def test_another_number_of_dates_than_the_head_saw_is_told(scene, embedder, caplog):
    head = make_head(embedder, "series")
    head.patch_ = {"gsd": 10.0, "s1_date_count": [1, 2], "s2_date_count": [12, 12]}
    with caplog.at_level(logging.WARNING):
        map_settings(scene, embedder, head)
    (record,) = caplog.records
    assert record.getMessage().endswith("the head was fitted on 12 dates of s2, here 3; check the map")
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


@pytest.mark.parametrize("unit", ["series", "patch"])
def test_a_scene_in_degrees_has_its_map_in_degrees(tmp_path, embedder, unit):
    for name in ("metres", "degrees"):
        (tmp_path / name).mkdir()
    grid = {"crs": "EPSG:4326", "transform": (9e-5, 0, 35.1, 0, -9e-5, -0.4)}  # ten metres at the equator
    scenes = [make_scene(tmp_path / "metres", 12, 20), make_scene(tmp_path / "degrees", 12, 20, grid=grid)]
    assert scenes[1].gsd == pytest.approx(10, rel=0.01)
    head = make_head(embedder, unit, *((8, 8) if unit == "patch" else ()))
    for scene in scenes:
        map_scene(scene, embedder, head, tmp_path / f"{scene.crs[5:]}.tif", progress=False)
    found = {code: read(tmp_path / f"{code}.tif") for code in ("32737", "4326")}
    # Positions are in metres, of which there are not exactly as many.
    moved = np.abs(found["4326"].astype(int) - found["32737"])
    assert (moved[1:].max(axis=0) > 1).mean() < 0.02 and len(np.unique(found["4326"][1])) > 3
    with rasterio.open(tmp_path / "4326.tif") as raster:
        assert raster.crs.to_epsg() == 4326 and raster.transform == rasterio.Affine(*grid["transform"])
