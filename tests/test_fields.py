"""Fields of polygons: exact areas, embeddings of the field alone, and every one that is left out told."""

import csv
import json

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, strategies as st
from rasterio.crs import CRS
from shapely import affinity

from croplem_hf import (
    CheckpointError,
    DataError,
    Embedder,
    EmbeddingIndex,
    KenyaFields,
    KenyaTiles,
    SceneFields,
    embed_fields,
    generate_kenya,
    open_scene,
    read_table,
)
from croplem_hf.data import scene_fields
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.data.polygons import Polygons
from croplem_hf.data.scene_fields import coverage, lattice, patch_weights
from croplem_hf.fields import encode_fields
from croplem_hf.model import CropLEMConfig, CropLEMImageProcessor, CropLEMModel
from croplem_hf.model.tokens_croplem import pool_sensors
from croplem_hf.sensors import S2_BANDS

CLOSE = {"rtol": 0, "atol": 1e-5}
X, Y, EPSG = 766410.0, 9951740.0, "EPSG:32736"


def make_embedder(pooling="mean_std"):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = CropLEMModel(CropLEMConfig(**sizes, initializer_range=0.2, pooling=pooling))
    model.embedding_centre.copy_(torch.randn(model.config.embedding_size))
    return Embedder(model, CropLEMImageProcessor(), name="tiny", device="cpu")


@pytest.fixture(scope="module")
def embedder():
    return make_embedder()


def ground(height, width, seed=0, plots=None):
    """Optics of two dates and radar of two of one ground, where plots (H, W) of numbers have colours of their own."""
    rng = np.random.default_rng(seed)
    s2 = rng.integers(300, 4000, (2, 13, height, width)).astype(np.uint16)
    s1 = rng.normal(-14, 3, (2, 2, height, width)).clip(-30, -1).astype(np.float32)
    if plots is not None:
        colours = rng.uniform(500, 4500, (plots.max() + 1, 2, 13))
        s2 = np.moveaxis(colours[plots], (0, 1), (2, 3)) + rng.normal(0, 40, (2, 13, height, width))
        s2 = s2.clip(1).astype(np.uint16)
        levels = rng.normal(-14, 3, (plots.max() + 1, 2, 2))
        s1 = np.moveaxis(levels[plots], (0, 1), (2, 3)) + rng.normal(0, 0.5, (2, 2, height, width))
        s1 = s1.clip(-30, -1).astype(np.float32)
    s2[:, 10] = rng.integers(3, 40, (2, height, width))
    return s1, s2


def make_scene(folder, s1, s2, row=0, column=0, clouds=None, crs=EPSG):
    """A scene of arrays whose first pixel is `row`, `column` of the ground."""
    grid = {"crs": crs, "transform": (10, 0, X + 10 * column, 0, -10, Y - 10 * row)}
    lines = ["path,sensor,date,mask,level,id"]
    for t in range(2):
        write_geotiff(folder / f"o{t}.tif", s2[t], **grid)
        write_geotiff(folder / f"r{t}.tif", s1[t], **grid)
        mask = ""
        if clouds is not None:
            write_geotiff(folder / f"m{t}.tif", clouds[t : t + 1].astype(np.uint8), **grid)
            mask = f"m{t}.tif"
        lines.append(f"o{t}.tif,s2,2020-0{2 + t}-10,{mask},L1C,{folder.name}")
        lines.append(f"r{t}.tif,s1,2020-0{2 + t}-05,,,{folder.name}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return open_scene(folder)


def box(row, column, height, width):
    """Polygon in metres of a box of pixels of the ground."""
    return shapely.box(X + 10 * column, Y - 10 * (row + height), X + 10 * (column + width), Y - 10 * row)


def polygons(geometries, ids=None, crs=EPSG, problems=None, **attributes):
    ids = ids or [f"f{k}" for k in range(len(geometries))]
    shapes = np.full(len(geometries), None, object)
    shapes[:] = geometries
    rows = [{name: values[k] for name, values in attributes.items()} for k in range(len(ids))]
    return Polygons("f.gpkg", ids, shapes, CRS.from_user_input(crs), rows, problems or {}, np.zeros(len(ids), bool))


def vectors_of(embedder, scene, fields, **options):
    """{id: embedding} of all that can be embedded."""
    source, found = SceneFields(scene, fields, **options), {}
    for i, name in enumerate(source.ids):
        try:
            found[name] = encode_fields(embedder, [source[i]], patch_size=options.get("patch_size", 1))[0]
        except DataError:
            continue
    return found


# Weights

points = st.tuples(st.floats(-3, 12), st.floats(-3, 12))


@given(st.lists(points, min_size=3, max_size=9), st.lists(points, min_size=3, max_size=5), st.sampled_from([1, 2, 4]))
def test_coverage_is_the_area_of_the_polygon_in_every_pixel_and_patch(outer, inner, p):
    shape = shapely.make_valid(shapely.Polygon(outer)).difference(shapely.make_valid(shapely.Polygon(inner)).buffer(0))
    shape = shapely.MultiPolygon([g for g in shapely.get_parts(shape) if g.geom_type == "Polygon"])
    shares = coverage(shape, -3, -4, 17, 18)
    assert shares.shape == (17, 18) and shares.min() >= 0 and shares.max() <= 1
    assert shares.sum() == pytest.approx(shape.area, abs=1e-9)
    for row, column in ((0, 0), (5, 7), (9, 3), (16, 17)):
        pixel = shapely.box(column - 4, row - 3, column - 3, row - 2)
        assert shares[row, column] == pytest.approx(shape.intersection(pixel).area, abs=1e-9)
    weights = patch_weights(shares, p)
    assert weights.shape == (-(-17 // p), -(-18 // p)) and weights.sum() == pytest.approx(shape.area, abs=1e-9)
    patch = shapely.box(p - 4, p - 3, 2 * p - 4, 2 * p - 3)
    assert weights[1, 1] == pytest.approx(shape.intersection(patch).area, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.integers(1, 300), st.sampled_from([1, 2]))
def test_a_lattice_is_part_of_the_field_and_within_the_budget(seed, height, width, dates, p):
    rng = np.random.default_rng(seed)
    shares = rng.random((height, width)) * (rng.random((height, width)) < rng.random())
    shares[rng.integers(height), rng.integers(width)] = 1
    kept = lattice(shares, dates, p)
    tokens = int((patch_weights(kept, p) > 0).sum())
    assert np.isin(kept, [*shares.ravel(), 0]).all() and np.array_equal(kept[kept > 0], shares[kept > 0]) and tokens > 0
    assert tokens * dates <= scene_fields.TOKENS_PER_FIELD or tokens == 1
    if (patch_weights(shares, p) > 0).sum() * dates <= scene_fields.TOKENS_PER_FIELD:
        assert np.array_equal(kept, shares)


@pytest.mark.parametrize("spread", [False, True])
def test_weights_pool_as_so_many_equal_tokens_would(spread):
    torch.manual_seed(0)
    tokens, sensor = torch.randn(1, 4, 8), torch.tensor([[0, 0, 1, 1]])
    many = torch.tensor([[3, 1, 2, 5]])
    repeated = (x.repeat_interleave(many[0], dim=1) for x in (tokens, torch.ones(1, 4, dtype=torch.bool), sensor))
    expected = pool_sensors(*repeated, spread)
    for scale in (1, 0.01):
        torch.testing.assert_close(pool_sensors(tokens, many * scale, sensor, spread), expected)


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_field_of_whole_pixels_is_embedded_as_its_window(tmp_path, pooling, patch_size):
    embedder = make_embedder(pooling)
    scene = make_scene(tmp_path, *ground(20, 20), clouds=np.random.default_rng(1).random((2, 20, 20)) < 0.3)
    [found] = vectors_of(embedder, scene, polygons([box(4, 6, 8, 4)]), patch_size=patch_size).values()
    np.testing.assert_allclose(found, embedder.encode(scene.read(4, 6, 8, 4), patch_size=patch_size), **CLOSE)


def test_half_a_pixel_counts_half(tmp_path):
    embedder = make_embedder("mean")
    scene = make_scene(tmp_path, *ground(20, 20))
    [found] = vectors_of(embedder, scene, polygons([box(4, 6, 1, 1.5)])).values()
    sample = scene.read(4, 6, 1, 2)
    with torch.inference_mode():
        out = embedder.model(**embedder.processor([sample]), patch_size=1)
    tokens, index = out.last_hidden_state[0], out.token_index[0]
    weight = torch.where(index[:, 3] == 0, 1.0, 0.5)
    means = [(tokens * (weight * (index[:, 0] == s))[:, None]).sum(0) / weight[index[:, 0] == s].sum() for s in (0, 1)]
    expected = (means[0] + means[1]) / 2 - embedder.model.embedding_centre
    np.testing.assert_allclose(found, expected.numpy(), **CLOSE)


# The field alone


def test_a_field_is_the_same_in_two_scenes_that_overlap_and_in_any_company(tmp_path, embedder):
    s1, s2 = ground(60, 60)
    clouds = np.random.default_rng(1).random((2, 60, 60)) < 0.3
    shapes = [affinity.rotate(box(22 + 3 * k, 25 + 2 * k, 5, 3), 25 * k) for k in range(4)] + [box(20, 20, 3, 4)]
    found = []
    for name, cut in (("a", np.s_[..., :45, :50]), ("b", np.s_[..., 20:, 20:])):
        scene = make_scene(tmp_path / name, s1[cut], s2[cut], *(20 * (name == "b"),) * 2, clouds=clouds[cut])
        others = [box(30, 30, 6, 6), box(22, 22, 9, 9)] if name == "b" else []
        given = polygons(shapes + others, [f"f{k}" for k in range(5 + len(others))])
        table = embed_fields(scene, given, embedder, tmp_path / f"{name}.parquet", progress=False)
        found.append(dict(zip(table.ids, table.vectors, strict=True)))
    for k in range(5):
        np.testing.assert_allclose(found[0][f"f{k}"], found[1][f"f{k}"], **CLOSE)
    different = [np.abs(found[0][f"f{k}"] - found[0]["f4"]).max() for k in range(4)]
    assert min(different) > 0.05


def test_what_lies_outside_the_field_changes_nothing(tmp_path, embedder):
    s1, s2 = ground(20, 20)
    before = vectors_of(embedder, make_scene(tmp_path / "a", s1, s2), polygons([box(5, 5, 4, 3)]))
    outside = np.ones((20, 20), bool)
    outside[5:9, 5:8] = False
    s1[..., outside], s2[..., outside] = -5, 9000
    after = vectors_of(embedder, make_scene(tmp_path / "b", s1, s2), polygons([box(5, 5, 4, 3)]))
    np.testing.assert_allclose(before["f0"], after["f0"], **CLOSE)


def test_a_hole_is_none_of_the_field_and_parts_are_one_field(tmp_path, embedder):
    s1, s2 = ground(20, 20)
    ring = box(2, 2, 7, 7).difference(box(4, 4, 3, 3))
    two = shapely.MultiPolygon([box(12, 2, 2, 3), box(15, 8, 3, 2)])
    source = SceneFields(make_scene(tmp_path / "a", s1, s2), polygons([ring, two]))
    first, second = (source[source.ids.index(name)] for name in ("f0", "f1"))
    assert first["coverage"].sum() == first["pixels"] == 40 and not first["coverage"][2:5, 2:5].any()
    assert second["pixels"] == 12 and second["coverage"].shape == (6, 8)
    before = vectors_of(embedder, source.scene, source.polygons)
    s2[..., 4:7, 4:7], s2[..., 12:14, 6:10] = 9000, 9000
    after = vectors_of(embedder, make_scene(tmp_path / "b", s1, s2), source.polygons)
    for name in before:
        np.testing.assert_allclose(before[name], after[name], **CLOSE)
    s2[..., 16, 9] = 9000
    changed = vectors_of(embedder, make_scene(tmp_path / "c", s1, s2), source.polygons)
    assert np.abs(changed["f1"] - before["f1"]).max() > 1e-3


def test_a_field_of_ten_pixels_is_found_again_among_a_thousand(tmp_path, embedder):
    # Plots of 5 x 2 pixels, each with its own colours; the overlapping scene has speckle of its own.
    rows, columns = 25, 40
    plots = np.arange(rows * columns).reshape(rows, columns).repeat(2, axis=0).repeat(5, axis=1)
    shapes = [box(2 * r, 5 * c, 2, 5) for r in range(rows) for c in range(columns)]
    s1, s2 = ground(2 * rows, 5 * columns, plots=plots)
    scene = make_scene(tmp_path / "a", s1, s2)
    table = embed_fields(scene, polygons(shapes), embedder, tmp_path / "a.parquet", progress=False)
    assert len(table) == 1000 and set(table.metadata["pixels"].to_pylist()) == {10.0}
    index = EmbeddingIndex.build(table)
    wanted = [f"f{k}" for k in (610, 611, 934)]
    cut = np.s_[..., 28:, 40:]
    noisy = s2.astype(int) + np.random.default_rng(9).integers(-20, 20, s2.shape)
    other = make_scene(tmp_path / "b", s1[cut], noisy.clip(1).astype(np.uint16)[cut], 28, 40)
    again = embed_fields(other, polygons([shapes[int(n[1:])] for n in wanted], wanted), embedder,
                         tmp_path / "b.parquet", progress=False)  # fmt: skip
    assert [names[0] for names in index.query(again, k=1).ids] == again.ids
    # A table of the same imagery by patches is no query for it.
    with pytest.raises(CheckpointError, match="differ from the index in pooling"):
        index.check_settings(embedder.info("field", patch_size=1))


# What cannot be embedded, and what is told of the rest


def test_every_field_is_in_the_table_or_in_the_list_with_its_reason(tmp_path, embedder):
    clouds = np.zeros((2, 30, 30), bool)
    clouds[:, 20:, 20:] = clouds[0, :, :10] = True
    s1, s2 = ground(30, 30)
    s1[..., 20:, 20:] = np.nan
    scene = make_scene(tmp_path, s1, s2, clouds=clouds)
    fields = {
        "whole": box(2, 12, 4, 4), "half seen": box(2, 2, 4, 4), "half outside": box(-2, 12, 4, 4),
        "outside": box(50, 50, 4, 4), "cloudy": box(22, 22, 4, 4), "thin": box(10, 12, 8, 1.5),
        "speck": box(5.2, 20.2, 0.05, 0.05), "broken": None, "corner cloud": box(18, 18, 4, 4),
    }  # fmt: skip
    given = polygons(list(fields.values()), list(fields), problems={"broken": "its polygon is empty"},
                     crop=["maize"] * 9, area_ha=[7] * 9)  # fmt: skip
    table = embed_fields(scene, given, embedder, tmp_path / "e.parquet", shrink=8, progress=False)
    rows = dict(zip(table.ids, table.metadata.to_pylist(), strict=True))
    assert set(rows) == {"whole", "half seen", "half outside", "corner cloud"}
    with open(tmp_path / "e.parquet.skipped.csv", newline="") as handle:
        skipped = {row["id"]: row["reason"] for row in csv.DictReader(handle)}
    assert set(skipped) | set(rows) == set(fields) and not set(skipped) & set(rows)
    for name, reason in {
        "outside": "lies outside the scene", "cloudy": "nothing valid in it on any of 4 dates", "broken": "is empty",
        "thin": "nothing is left of it after shrinking by 8 m on each side, since it is 15 m wide; shrink by less",
        "speck": "nothing is left of it",
    }.items():  # fmt: skip
        assert skipped[name].startswith(f"{name}: ") and reason in skipped[name]
    whole = rows["whole"]
    assert whole["area_ha"] == pytest.approx(0.16, rel=2e-3)
    assert whole["area_ha_given"] == 7 and whole["crop"] == "maize"
    assert whole["pixels"] == pytest.approx(2.4**2, abs=0.01) and whole["patch_size"] == 1
    assert (whole["valid_share"], whole["inside_share"], whole["sampled_share"]) == pytest.approx((1, 1, 1))
    assert rows["half seen"]["valid_share"] == pytest.approx(0.75)
    assert rows["half outside"]["valid_share"] == rows["half outside"]["inside_share"] == pytest.approx(0.5, abs=0.01)
    assert 0.7 < rows["corner cloud"]["valid_share"] < 0.9
    assert (whole["lon"], whole["lat"]) == pytest.approx((35.395, -0.4366), abs=1e-2)
    assert table.info["unit"] == "field" and table.info["shrink_m"] == 8 and table.info["skipped"] == 5
    with pytest.raises(DataError, match="smaller than a hundredth of a pixel"):
        embed_fields(scene, polygons([fields["speck"]]), embedder, tmp_path / "s.parquet", progress=False)


def test_four_pixels_are_embedded_and_fewer_are_told(tmp_path, embedder, caplog):
    scene = make_scene(tmp_path, *ground(20, 20))
    four, two = affinity.translate(box(4, 4, 2, 2), 4, 3), box(10, 10, 1, 2)
    table = embed_fields(scene, polygons([four, two]), embedder, tmp_path / "e.parquet", progress=False)
    assert np.array(table.metadata["pixels"]) == pytest.approx([4, 2])
    assert "1 of 2 fields cover fewer than 4 pixels" in caplog.text


def test_a_large_field_is_seen_on_a_lattice_and_is_much_like_itself(tmp_path, embedder, monkeypatch):
    plots = np.arange(4).reshape(2, 2).repeat(30, axis=0).repeat(30, axis=1)
    scene = make_scene(tmp_path, *ground(60, 60, plots=plots))
    given = polygons([box(1, 1, 28, 28), box(1, 31, 28, 28), box(31, 1, 28, 28)])
    monkeypatch.setattr(scene_fields, "TOKENS_PER_FIELD", 4 * 28**2)
    full = vectors_of(embedder, scene, given)
    monkeypatch.setattr(scene_fields, "TOKENS_PER_FIELD", 400)
    source = SceneFields(scene, given)
    assert (source[0]["coverage"] > 0).sum() <= 100 and 0.05 < source[0]["sampled_share"] < 0.13
    some = vectors_of(embedder, scene, given)
    unit = {k: v / np.linalg.norm(v) for k, v in {**full, **{f"some {k}": v for k, v in some.items()}}.items()}
    for name in full:
        own = unit[name] @ unit[f"some {name}"]
        assert own > 0.98 and own > max(unit[name] @ unit[other] for other in full if other != name)


def test_polygons_in_degrees_or_another_zone_are_the_same_fields(tmp_path, embedder):
    scene = make_scene(tmp_path, *ground(30, 30))
    shapes = [box(4, 4, 5, 6), affinity.rotate(box(15, 15, 5, 6), 30)]
    expected = vectors_of(embedder, scene, polygons(shapes))
    for crs in ("EPSG:4326", "EPSG:32737", "EPSG:3857"):
        target = CRS.from_user_input(crs)
        moved = scene_fields.transformed(np.array(shapes, object), CRS.from_user_input(EPSG), target)
        source = SceneFields(scene, polygons(list(moved), crs=crs), shrink=0)
        found = vectors_of(embedder, scene, source.polygons)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-3)
        assert source[source.ids.index("f0")]["area_ha"] == pytest.approx(0.30, rel=2e-3)


def test_a_polygon_without_a_place_in_the_system_of_the_scene_stops_no_other(tmp_path, embedder):
    scene = make_scene(tmp_path, *ground(20, 20))
    degrees = CRS.from_epsg(4326)
    near = scene_fields.transformed(np.array([box(5, 5, 4, 4)], object), CRS.from_user_input(EPSG), degrees)
    given = polygons([shapely.box(125, 0, 126, 1), near[0], shapely.box(10, 89, 11, 90)], crs="EPSG:4326")
    source, reasons = SceneFields(scene, given), {}
    assert list(vectors_of(embedder, scene, given)) == ["f1"]
    for i, name in enumerate(source.ids):
        if name != "f1":
            with pytest.raises(DataError, match="outside the scene|cannot be brought") as error:
                source[i]
            reasons[name] = str(error.value)
    assert set(reasons) == {"f0", "f2"}


def test_sensors_can_be_chosen_and_must_be_there(tmp_path, embedder):
    s1, s2 = ground(20, 20)
    scene, given = make_scene(tmp_path, s1, s2), polygons([box(5, 5, 4, 4)])
    radar = vectors_of(embedder, scene, given, sensors=["s1"])
    expected = embedder.encode(scene.read(5, 5, 4, 4), sensors=["s1"], patch_size=1)
    np.testing.assert_allclose(radar["f0"], expected, **CLOSE)
    only = open_scene(tmp_path, sensors=["s1"])
    with pytest.raises(DataError, match="holds no imagery of s2"):
        SceneFields(only, given, sensors=["s2"])
    with pytest.raises(DataError, match="shrink must be metres of at least 0, found -1"):
        SceneFields(scene, given, shrink=-1)


def test_a_scene_without_a_place_is_refused(tmp_path):
    scene = make_scene(tmp_path, *ground(20, 20), crs=None)
    with pytest.raises(DataError, match="the rasters have no coordinate system; fields cannot be laid over them"):
        SceneFields(scene, polygons([box(5, 5, 4, 4)]))


# Long work


def test_reading_together_or_one_by_one_is_the_same_and_a_run_goes_on(tmp_path, embedder, monkeypatch):
    scene = make_scene(tmp_path, *ground(60, 60))
    rng = np.random.default_rng(0)
    shapes = [affinity.rotate(box(*rng.integers(0, 55, 2), 4, 3), 20 * k) for k in range(40)]
    expected = embed_fields(scene, polygons(shapes), embedder, tmp_path / "a.parquet", progress=False)
    monkeypatch.setattr(scene_fields, "BLOCK", 16)
    monkeypatch.setattr(scene_fields, "CHUNK", 3)
    calls, real = [], SceneFields.read_chunk

    def cut_off(self, start, most=3):
        calls.append(start)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, start, most)

    monkeypatch.setattr(SceneFields, "read_chunk", cut_off)
    with pytest.raises(KeyboardInterrupt):
        embed_fields(scene, polygons(shapes), embedder, tmp_path / "b.parquet", progress=False)
    assert not (tmp_path / "b.parquet").exists()
    with pytest.raises(CheckpointError, match="differs in source"):
        embed_fields(scene, polygons(shapes[::-1]), embedder, tmp_path / "b.parquet", progress=False)
    table = embed_fields(scene, polygons(shapes), embedder, tmp_path / "b.parquet", progress=False)
    assert len(calls) == len(set(calls)) + 1 and sorted(table.ids) == sorted(expected.ids)
    order = [table.ids.index(name) for name in expected.ids]
    np.testing.assert_allclose(table.vectors[order], expected.vectors, **CLOSE)
    assert read_table(tmp_path / "b.parquet").info["source"]["scene"] == scene.id
    assert json.loads(json.dumps(table.info)) == table.info


def test_a_scene_that_gets_another_date_is_the_same_source(tmp_path, embedder):
    scene, out = make_scene(tmp_path / "a", *ground(20, 20)), tmp_path / "e.parquet"
    fields = polygons([box(2, 2, 8, 8)])
    before = embed_fields(scene, fields, embedder, out, progress=False)
    (tmp_path / "a" / "earlier.tif").write_bytes((tmp_path / "a" / "o0.tif").read_bytes())
    with open(tmp_path / "a" / "metadata.csv", "a") as handle:
        handle.write("earlier.tif,s2,2020-01-10,,L1C,a\n")
    after = embed_fields(open_scene(tmp_path / "a"), fields, embedder, out, progress=False)
    assert not np.array_equal(before.vectors, after.vectors)
    elsewhere = make_scene(tmp_path / "b" / "a", *ground(20, 20))
    with pytest.raises(DataError, match="another source"):
        embed_fields(elsewhere, fields, embedder, out, progress=False)


def test_no_field_at_all_is_an_error(tmp_path, embedder):
    scene = make_scene(tmp_path, *ground(20, 20))
    with pytest.raises(DataError, match="none of 2 items could be embedded, see .*; the first: f0: lies outside"):
        embed_fields(scene, polygons([box(50, 50, 4, 4), box(60, 60, 4, 4)]), embedder, tmp_path / "e.parquet",
                     progress=False)  # fmt: skip
    assert not (tmp_path / "e.parquet").exists() and not (tmp_path / "e.parquet.parts").exists()


# The other way to fields


@pytest.mark.slow
def test_polygons_of_whole_pixels_are_embedded_as_the_fields_of_kenya(tmp_path, embedder):
    root = generate_kenya(tmp_path / "kenya", tile_size=(48, 60), fields=30)
    fields, tiles = KenyaFields(root), KenyaTiles(root, size=128)
    tile, keep = tiles[0], [band != "B10" for band in S2_BANDS]
    a, b, x, d, e, y = tile["transform"]
    grid, lines = {"crs": tile["crs"], "transform": tile["transform"]}, ["path,sensor,date,mask,level,units"]
    for t, date in enumerate(tile["s2_dates"]):
        write_geotiff(tmp_path / f"o{t}.tif", np.nan_to_num(tile["s2"][t, keep]), **grid)
        write_geotiff(tmp_path / f"m{t}.tif", (~tile["s2_valid"][t])[None].astype(np.uint8), **grid)
        lines.append(f"o{t}.tif,s2,{date},m{t}.tif,L2A,dn")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    scene, samples, shapes = open_scene(tmp_path, s2_offset=0), [], []
    for sample in (fields[i] for i in range(len(fields))):
        seen = sample["s2_valid"].any(axis=0)
        if seen.sum() == sample["area_px"]:
            left, top = sample["transform"][2], sample["transform"][5]
            pixels = [shapely.box(left + 10 * c, top - 10 * r - 10, left + 10 * c + 10, top - 10 * r)
                      for r, c in np.argwhere(seen)]  # fmt: skip
            samples.append(sample)
            shapes.append(shapely.union_all(pixels))
    assert len(samples) > 10
    found = vectors_of(embedder, scene, polygons(shapes, [s["id"] for s in samples], crs=tile["crs"]))
    expected = embedder.encode(samples, patch_size=1)
    np.testing.assert_allclose(np.stack([found[s["id"]] for s in samples]), expected, rtol=0, atol=1e-4)
