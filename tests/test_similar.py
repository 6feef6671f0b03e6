"""Looking for a place, a field or an image: embedded as the index was, or refused with the reason."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from PIL import Image

from croplem_hf import EmbeddingIndex, EmbeddingsTable, generate_scene, generate_sen12ms, open_scene, read_table
from croplem_hf.cli import main
from croplem_hf.errors import DataError
from croplem_hf.geodesy import kilometres
from croplem_hf.pictures import CELL
from croplem_hf.similar import nearest_items


def run(capsys, *argv):
    """Run a command -> exit code, what it printed, and what it said."""
    try:
        code = main([str(a) for a in argv])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def height(picture):
    with Image.open(picture) as image:
        return image.height


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """A scene, a grid of fields over it, their index, and one of them in a file of its own."""
    folder = tmp_path_factory.mktemp("fields")
    scene = open_scene(generate_scene(folder / "scene", "kenya", size=64))
    x, y = scene.transform[2], scene.transform[5]
    shapes = [shapely.box(x + 80 * c + 10, y - 80 * r - 60, x + 80 * c + 50, y - 80 * r - 20)
              for r in range(8) for c in range(8)]  # fmt: skip
    ids = [f"plot {k}" for k in range(64)]
    for name, rows in (("all", range(64)), ("one", [27])):
        table = pa.table({"geometry": [shapely.to_wkb(shapes[k]) for k in rows], "name": [ids[k] for k in rows]})
        pyogrio.write_arrow(table, folder / f"{name}.gpkg", geometry_name="geometry", geometry_type="Polygon",
                            crs=scene.crs, driver="GPKG")  # fmt: skip
    command = ["embed", folder / "scene", folder / "e.parquet", "--fields", folder / "all.gpkg", "--id-column", "name",
               "--shrink", 3, "--quiet"]  # fmt: skip
    assert main([str(a) for a in command]) == 0
    assert main(["index", str(folder / "e.parquet"), str(folder / "e.index")]) == 0
    return folder


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    generate_sen12ms(folder / "tree", scenes=2, patches_per_scene=4, size=32)
    assert main(["embed", str(folder / "tree"), str(folder / "e.parquet"), "--quiet", "--patch-size", "4"]) == 0
    assert main(["index", str(folder / "e.parquet"), str(folder / "e.index")]) == 0
    return folder


# Places


def test_distances_are_those_of_a_sphere():
    found = kilometres(np.array([[90.0, 0], [0, 90], [180, 0]]), np.zeros(2))
    assert found == pytest.approx(np.pi / 2 * 6_371.009 * np.array([1, 1, 2]))
    assert 1000 * kilometres(np.array([[-179.999, 10.0]]), np.array([179.999, 10]))[0] == pytest.approx(219, abs=1)


def table_of(lon, lat):
    vectors = np.random.default_rng(0).normal(size=(len(lon), 8)).astype(np.float32)
    columns = pa.table({"lon": pa.array(lon, pa.float64()), "lat": pa.array(lat, pa.float64())})
    return EmbeddingsTable([f"i{k}" for k in range(len(lon))], vectors, columns, {})


def test_the_nearest_item_is_found_and_what_is_far_is_refused():
    index = EmbeddingIndex.build(table_of([10.0, 10.0, 10.5, None, -10.0], [50.0, 50.0, 50.0, None, 50.0]))
    assert [name for name, _ in nearest_items(index, 10.001, 50.0)] == ["i0", "i1"]
    [(name, metres)] = nearest_items(index, 10.499, 50.0)
    assert name == "i2" and metres == pytest.approx(71.5, abs=1)
    with pytest.raises(DataError, match="'i4', lies 71.5 km from .* farther than 1000 m"):
        nearest_items(index, -11, 50)
    assert nearest_items(index, -11, 50, within=np.inf)[0][0] == "i4"
    index.remove(["i2"])
    with pytest.raises(DataError, match="lies 35.7 km"):
        nearest_items(index, 10.499, 50.0)
    with pytest.raises(DataError, match=r"\(10, 91\) is no longitude and latitude"):
        nearest_items(index, 10, 91)
    with pytest.raises(DataError, match="the items of the index have no places"):
        nearest_items(EmbeddingIndex.build(table_of([None], [None])), 10, 50)


def test_a_place_of_a_map_is_looked_for(fields, capsys):
    row = read_table(fields / "e.parquet").metadata.to_pylist()[read_table(fields / "e.parquet").ids.index("plot 20")]
    place = f"{row['lon']:.6f},{row['lat']:.6f}"
    code, out, err = run(capsys, "similar", fields / "e.index", "--lonlat", place, "-k", 2, "--json")
    assert code == 0 and f"plot 20 lies 0 m from {row['lon']:g},{row['lat']:g}" in err
    rows = json.loads(out)["neighbours"]
    assert [r["query"] for r in rows] == ["plot 20"] * 2 and "plot 20" not in {r["id"] for r in rows}
    far = f"-{row['lon']:.4f},{row['lat']:.4f}"  # begins with a minus
    code, _, err = run(capsys, "similar", fields / "e.index", "--lonlat", far)
    assert code == 1 and "farther than 1000 m" in err
    code, out, err = run(capsys, "similar", fields / "e.index", "--lonlat", far, "--within", "any", "-k", 1)
    assert code == 0 and len(out.splitlines()) == 2


# Fields


def test_a_field_of_a_file_is_found_again_and_drawn_with_its_outline(fields, tmp_path, capsys):
    picture, field = tmp_path / "p.png", ["--field", fields / "one.gpkg", "--scene", fields / "scene"]
    code, out, err = run(capsys, "similar", fields / "e.index", *field, "-k", 3, "--json", "--images", fields / "scene",
                         "--outlines", fields / "all.gpkg", "--id-column", "name", "--picture", picture)  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)["neighbours"]
    # The shrinking of the index is part of what is repeated: the very same numbers.
    assert (rows[0]["id"], rows[0]["score"], rows[0]["query"]) == ("plot 27", 1.0, "plot 27") and rows[1]["score"] < 1
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    outline = (np.abs(pixels - (255, 225, 40)) < 8).all(axis=-1)
    columns = np.flatnonzero(outline.any(axis=0))
    assert len(np.flatnonzero(np.diff(columns) > CELL // 3)) == 3 and pixels.shape[0] > 3 * CELL
    code, out, _ = run(capsys, "similar", fields / "e.index", *field, "-k", 1)
    assert code == 0 and out.splitlines()[0].split() == "query rank id score region lon lat area_ha valid_share".split()


def test_what_a_query_of_fields_needs(fields, capsys):
    index, field, scene = fields / "e.index", fields / "one.gpkg", fields / "scene"
    for argv, message in [
        (["--field", field], "--field needs --scene"),
        (["--id", "plot 1", "--scene", scene], "--scene is for --field"),
        (["--id", "plot 1", "--item", "x"], "--item is for --field and --image"),
        (["--id", "plot 1", "--outlines", field], "--outlines is for --picture"),
        (["--id", "plot 1", "--picture", "p.png", "--images", scene], "needs --images SCENE and --outlines"),
        (["--field", fields / "all.gpkg", "--scene", scene], "64 items are too many"),
        (["--field", field, "--scene", scene, "--item", "x"], "no 'x' among what to look for; there are one_0"),
        (["--field", fields / "none.gpkg", "--scene", scene], "no such file of polygons"),
    ]:
        code, out, err = run(capsys, "similar", index, *argv)
        assert (code, out) == (1, "") and message in err
    for argv, message in [
        ([], "one of the arguments --id --lonlat --field --image is required"),
        (["--id", "plot 1", "--lonlat", "1,2"], "--lonlat: not allowed with argument --id"),
        (["--lonlat", "1;2"], "'1;2' is not LON,LAT"),
        (["--lonlat", "1,2", "--within", "-3"], "'-3' is not metres, or any"),
    ]:
        code, out, err = run(capsys, "similar", index, *argv)
        assert (code, out) == (2, "") and message in err


def test_another_unit_is_refused_with_the_reason(fields, patches, capsys):
    field = ["--field", fields / "one.gpkg", "--scene", fields / "scene"]
    code, _, err = run(capsys, "similar", patches / "e.index", *field)
    assert code == 1 and re.search(r"unit 'patch' \(of a whole image.*unit 'field'.*embed SCENE OUT --fields", err)
    code, _, err = run(capsys, "similar", fields / "e.index", "--image", patches / "tree")
    assert code == 1 and re.search(r"unit 'field' .*unit 'patch'.*index a table of patches", err)


def test_another_model_or_a_foreign_index_is_refused(fields, capsys, tmp_path):
    index = EmbeddingIndex.load(fields / "e.index")
    index.info["weights_hash"] = "0"
    index.save(tmp_path / "other.index")
    field = ["--field", fields / "one.gpkg", "--scene", fields / "scene"]
    code, _, err = run(capsys, "similar", tmp_path / "other.index", *field)
    assert code == 1 and "differ from the index in weights_hash" in err
    del index.info["weights_hash"]
    index.save(tmp_path / "foreign.index")
    code, _, err = run(capsys, "similar", tmp_path / "foreign.index", *field)
    assert code == 1 and "says nothing of how its vectors were made" in err


# Images


def test_a_new_image_is_embedded_by_the_settings_of_the_index(patches, tmp_path, capsys):
    known = read_table(patches / "e.parquet").ids[:2]
    argv = ["--item", known[0], "--item", known[1], "-k", 1, "--json", "--picture", tmp_path / "p.png"]
    code, out, err = run(capsys, "similar", patches / "e.index", "--image", patches / "tree", *argv, "--images",
                         patches / "tree")  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)["neighbours"]
    assert [(r["query"], r["id"], r["score"]) for r in rows] == [(name, name, 1.0) for name in known]
    assert height(tmp_path / "p.png") > 6 * CELL
    other = generate_sen12ms(tmp_path / "tree", scenes=1, patches_per_scene=1, size=64)
    code, out, err = run(capsys, "similar", patches / "e.index", "--image", other, "-k", 1)
    assert code == 0 and "has 64 x 64 pixels, the items of the index such as 32 x 32" in err


def test_a_new_series_is_looked_for_among_series(tmp_path, capsys):
    rng = np.random.default_rng(0)
    s1 = rng.normal(-14, 3, (6, 24)).astype(np.float32)
    dates = [[f"2019-{k + 1:02d}-15" for k in range(12)]]
    for name, rows in (("all", slice(0, 6)), ("new", slice(4, 5))):
        ids = [f"r{k}" for k in range(6)][rows]
        table = pa.table({"id": ids, "dates": dates * len(ids), "s1": list(s1[rows])})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert run(capsys, "embed", tmp_path / "all.parquet", tmp_path / "e.parquet", "--quiet")[0] == 0
    run(capsys, "index", tmp_path / "e.parquet", tmp_path / "i")
    code, out, err = run(capsys, "similar", tmp_path / "i", "--image", tmp_path / "new.parquet", "-k", 1, "--json",
                         "--picture", tmp_path / "p.png", "--images", tmp_path / "all.parquet")  # fmt: skip
    assert code == 0, err
    assert [(r["query"], r["id"], r["score"]) for r in json.loads(out)["neighbours"]] == [("r4", "r4", 1.0)]
    assert 2 * CELL < height(tmp_path / "p.png") < 3 * CELL
