"""Polygons of fields: every format the same, each broken one told, and nothing guessed."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS

from croplem_hf import DataError, read_polygons

SQUARE = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
UTM = "EPSG:32736"


def write(path, geometries, crs=UTM, **columns):
    """A file of these geometries (shapely, or None) with these columns."""
    wkb = [None if g is None else shapely.to_wkb(g) for g in geometries]
    if path.suffix == ".parquet":
        known = {} if crs == "absent" else {"crs": CRS.from_user_input(crs).to_dict(projjson=True) if crs else None}
        geo = {"version": "1.1.0", "primary_column": "shape"}
        geo["columns"] = {"shape": {"encoding": "WKB", "geometry_types": []} | known}
        table = pa.table({"shape": pa.array(wkb, pa.binary())} | columns)
        pq.write_table(table.replace_schema_metadata({"geo": json.dumps(geo)}), path)
    else:
        driver = {".geojson": "GeoJSON", ".gpkg": "GPKG", ".shp": "ESRI Shapefile"}[path.suffix]
        table = pa.table({"geometry": pa.array(wkb, pa.binary())} | columns)
        kind = "Unknown" if path.suffix != ".shp" else "Polygon"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pyogrio misses a crs, as we do
            pyogrio.write_arrow(table, path, geometry_name="geometry", geometry_type=kind, crs=crs, driver=driver)
    return path


@pytest.fixture
def fields():
    ring = shapely.Polygon([(500, 500), (540, 500), (540, 560), (500, 560)], [[(510, 510), (520, 510), (515, 520)]])
    two = shapely.MultiPolygon([shapely.box(0, 0, 30, 40), shapely.box(100, 0, 140, 40)])
    return np.array([shapely.box(0, 0, 20, 30), ring, two], object)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp", ".parquet"])
def test_every_format_gives_the_same_fields(tmp_path, fields, suffix):
    crs = "EPSG:4326" if suffix == ".geojson" else UTM
    shapes = shapely.transform(fields, lambda xy: xy / 1000) if suffix == ".geojson" else fields
    columns = {"name": ["a", "b", "c"], "crop": ["maize", None, "beans"], "size": [1.5, 2.0, None]}
    found = read_polygons(write(tmp_path / f"f{suffix}", shapes, crs, **columns), id_column="name")
    assert found.ids == ["a", "b", "c"] and not found.problems and not found.repaired.any()
    assert found.crs == CRS.from_user_input(crs)
    assert all(shapely.equals(a, b) for a, b in zip(found.geometries, shapes, strict=True))
    assert [row["crop"] for row in found.attributes] == ["maize", None, "beans"]
    assert [row["size"] for row in found.attributes] == [1.5, 2.0, None]


BROKEN = {
    "nothing": (None, "has no geometry"),
    "empty": (shapely.Polygon(), "is empty"),
    "point": (shapely.Point(1, 1), "is a Point, expected a polygon"),
    "line": (shapely.LineString([(0, 0), (1, 1)]), "is a LineString"),
    "flat": (shapely.Polygon([(0, 0), (1, 1), (2, 2)]), "no area"),
    "overlap": (shapely.MultiPolygon([shapely.box(0, 0, 2, 2), shapely.box(1, 1, 3, 3)]), "in several ways"),
    "hole outside": (shapely.Polygon(SQUARE, [[(2, 2), (3, 2), (3, 3)]]), "in several ways .*Hole lies outside"),
    "infinite": (shapely.Polygon([(0, 0), (np.inf, 0), (1, 1)]), "coordinates that are no numbers"),
}


def test_what_is_broken_is_told_and_only_what_is_certain_is_mended(tmp_path):
    eight = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    spike = shapely.Polygon([(0, 0), (2, 0), (2, 2), (5, 2), (2, 2), (0, 2)])
    shapes = [SQUARE, eight, spike, *(shape for shape, _ in BROKEN.values())]
    shapes[0] = shapely.Polygon(SQUARE)
    ids = ["good", "eight", "spike", *BROKEN]
    found = read_polygons(write(tmp_path / "f.parquet", shapes, id=ids))
    assert found.ids == ids and found.repaired.tolist() == [False, True, True] + [False] * len(BROKEN)
    assert [g.area for g in found.geometries[:3]] == [1.0, 2.0, 4.0] and all(g.is_valid for g in found.geometries[:3])
    assert set(found.problems) == set(BROKEN) and not any(found.geometries[3:])
    for name, (_, message) in BROKEN.items():
        with pytest.raises(DataError, match=message):
            raise DataError(found.problems[name])


def test_a_file_without_coordinate_system_is_refused_unless_it_is_said(tmp_path, fields):
    for suffix in (".shp", ".parquet"):
        path = write(tmp_path / f"f{suffix}", fields, None, name=["a", "b", "c"])
        with pytest.raises(DataError, match="says nothing of its coordinate system; say it, such as --crs"):
            read_polygons(path)
        assert read_polygons(path, crs="EPSG:32637").crs == CRS.from_epsg(32637)
        with pytest.raises(DataError, match="'EPSG:1' is no coordinate system"):
            read_polygons(path, crs="EPSG:1")
    small = shapely.transform(fields, lambda xy: xy / 1000)
    assert read_polygons(write(tmp_path / "absent.parquet", small, "absent")).crs.is_geographic


def test_a_coordinate_system_that_contradicts_the_file_is_refused(tmp_path, fields):
    path = write(tmp_path / "f.gpkg", fields)
    assert read_polygons(path, crs=UTM).crs == CRS.from_user_input(UTM)
    with pytest.raises(DataError, match="is in EPSG:32736, which is not the crs EPSG:32737; leave crs out"):
        read_polygons(path, crs="EPSG:32737")


def test_geojson_is_degrees_unless_metres_are_said(tmp_path):
    shapes = [{"type": "Polygon", "coordinates": [[[x + 766500, y + 9951000] for x, y in SQUARE]]}]
    features = [{"type": "Feature", "properties": {}, "geometry": shape} for shape in shapes]
    path = tmp_path / "f.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pytest.raises(DataError, match=r"\(766500, 9951000\) are no longitude and latitude; say their"):
        read_polygons(path)
    assert read_polygons(path, crs=UTM).geometries[0].area == 1


def test_names_of_fields(tmp_path, fields):
    path = write(tmp_path / "plots.gpkg", fields, name=["a", "b", "c"], number=[3.0, 1.0, 2.0], gap=["x", None, "z"],
                 twice=["x", "y", "x"])  # fmt: skip
    assert read_polygons(path).ids == ["plots_0", "plots_1", "plots_2"]
    assert read_polygons(path, id_column="number").ids == ["3", "1", "2"]
    with pytest.raises(DataError, match="no column 'nome' to name the fields by; found name, number"):
        read_polygons(path, id_column="nome")
    with pytest.raises(DataError, match="row 1 has no 'gap'"):
        read_polygons(path, id_column="gap")
    with pytest.raises(DataError, match="twice 'x' stands in rows 0 and 2; ids must be unique"):
        read_polygons(path, id_column="twice")
    assert read_polygons(write(tmp_path / "f.gpkg", fields, id=["p", "q", "r"])).ids == ["p", "q", "r"]


def test_files_that_hold_no_fields_are_refused(tmp_path, fields):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.gpkg").write_text("x")
    (tmp_path / "broken.geojson").write_text("{")
    (tmp_path / "broken.parquet").write_text("x")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "plain.parquet")
    write(tmp_path / "none.gpkg", [])
    table = pa.table({"geometry": [shapely.to_wkb(fields[0])]})
    for layer in ("one", "two"):
        pyogrio.write_arrow(table, tmp_path / "layers.gpkg", layer=layer, geometry_name="geometry",
                            geometry_type="Polygon", crs=UTM, driver="GPKG", append=layer == "two")  # fmt: skip
    for name, message in [
        ("nothing.gpkg", "no such file of polygons"),
        ("notes.txt", "polygons are read from .geojson, .json, .gpkg, .shp"),
        ("broken.gpkg", "cannot be read as polygons"),
        ("broken.geojson", "cannot be read as polygons"),
        ("broken.parquet", "not a readable Parquet file"),
        ("plain.parquet", "is no GeoParquet"),
        ("none.gpkg", "holds no fields"),
        ("layers.gpkg", r"holds 2 layers of geometries \(one, two\)"),
    ]:
        with pytest.raises(DataError, match=f"{name}: .*{message}"):
            read_polygons(tmp_path / name)
