import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from croplem_hf.data.geotiff import raster_info, read_geotiff, write_geotiff
from croplem_hf.errors import DataError

UTM = {"crs": "EPSG:32737", "transform": (10, 0, 375412.3389928384, 0, -10, 8116742.836060452)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.float64]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=3, max_dims=3, max_side=14))
    )
)
def test_round_trip_bit_by_bit(tmp_path, array):
    path = write_geotiff(tmp_path / "a.tif", array, **UTM)
    back, info = read_geotiff(path, count=len(array))
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()
    assert info.crs == UTM["crs"] and info.transform == tuple(map(float, UTM["transform"])) and info.gsd == 10


def test_names_nodata_and_compression(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    path = write_geotiff(
        tmp_path / "new" / "b.tif", array, **UTM, nodata=-9999, descriptions=["VV", "VH"], compress="deflate"
    )
    back, info = read_geotiff(path)
    assert np.array_equal(back, array) and info.nodata == -9999 and info.descriptions == ("VV", "VH")
    assert os.listdir(path.parent) == ["b.tif"]


def test_place_of_a_projected_raster(tmp_path):
    _, info = read_geotiff(write_geotiff(tmp_path / "a.tif", np.ones((1, 256, 256), np.uint8), **UTM))
    # UTM zone 37 south: the central meridian is 39 degrees east, 500 km east of the zone's origin.
    assert info.lon == pytest.approx(39 + (376692.3 - 500000) / (111320 * np.cos(np.radians(17))), abs=0.01)
    assert info.lat == pytest.approx((8115462.8 - 1e7) / 110600, abs=0.05)


def test_degrees_become_metres_at_the_latitude(tmp_path):
    step = 10 / 111_320
    grid = {"crs": "EPSG:4326", "transform": (step, 0, -3, 0, -step, 60)}
    _, info = read_geotiff(write_geotiff(tmp_path / "a.tif", np.ones((1, 10, 10), np.uint8), **grid))
    assert info.gsd == pytest.approx(10 * np.sqrt(np.cos(np.radians(60))), rel=1e-3)
    assert (info.lon, info.lat) == pytest.approx((-3, 60), abs=1e-3)


def test_feet_become_metres(tmp_path):
    grid = {"crs": "EPSG:2263", "transform": (100, 0, 980000, 0, -100, 200000)}
    assert read_geotiff(write_geotiff(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8), **grid))[
        1
    ].gsd == pytest.approx(30.48, abs=0.01)


def test_without_coordinates_the_place_is_unknown(tmp_path):
    _, info = read_geotiff(write_geotiff(tmp_path / "a.tif", np.ones((1, 4, 4), np.uint8)))
    assert info.crs is None and info.gsd is None and info.lon is None
    local = {"crs": 'LOCAL_CS["site",UNIT["metre",1]]', "transform": (5, 0, 0, 0, -5, 0)}
    _, info = read_geotiff(write_geotiff(tmp_path / "b.tif", np.ones((1, 4, 4), np.uint8), **local))
    assert info.lon is None and info.gsd is None


def test_errors_name_the_file(tmp_path):
    good = write_geotiff(tmp_path / "good.tif", np.ones((12, 4, 4), np.uint16), **UTM)
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "empty.tif").touch()
    for path, count, text in (
        (good, 13, "expected 13 bands, found 12"),
        (tmp_path / "gone.tif", None, "no such file"),
        (tmp_path, None, "no such file"),
        (tmp_path / "text.tif", None, "not a readable raster"),
        (tmp_path / "empty.tif", None, "is empty"),
    ):
        with pytest.raises(DataError, match=text) as error:
            read_geotiff(path, count=count)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("compress", [None, "deflate"])
def test_a_file_cut_short_is_refused_not_filled_with_zeros(tmp_path, share, compress):
    array = np.random.default_rng(0).integers(1, 9000, (13, 64, 64)).astype(np.uint16)
    path = write_geotiff(tmp_path / "cut.tif", array, **UTM, compress=compress)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match=f"{path}: (the file is cut short|not a readable)"):
        read_geotiff(path)


def test_a_real_file_cut_short_is_refused(real_data, tmp_path):
    for source in sorted((real_data / "sen12ms" / "ROIs1158_spring").rglob("*_p30.tif")):
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        with pytest.raises(DataError, match=f"{source.name}: the file is cut short or damaged"):
            read_geotiff(path)


def test_gdal_keeps_quiet_on_stderr(tmp_path):
    path = write_geotiff(tmp_path / "cut.tif", np.ones((13, 64, 64), np.uint16))
    os.truncate(path, path.stat().st_size // 2)
    code = (
        "import sys\nfrom croplem_hf.data.geotiff import read_geotiff\nfrom croplem_hf.errors import DataError\n"
        "for path in sys.argv[1:]:\n    try:\n        read_geotiff(path)\n    except DataError as error:\n"
        "        print(error)\n"
    )
    (tmp_path / "text.tif").write_text("no raster")
    run = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "text.tif"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert run.returncode == 0 and len(run.stdout.splitlines()) == 2 and run.stderr == ""


def test_write_refuses_what_is_no_raster_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match=r"a.tif: .*found \(4, 4\)"):
        write_geotiff(tmp_path / "a.tif", np.ones((4, 4)))
    with pytest.raises(DataError, match="1 band names for 2 bands"):
        write_geotiff(tmp_path / "a.tif", np.ones((2, 4, 4)), descriptions=["VV"])
    with pytest.raises(DataError, match="a.tif: cannot be written"):
        write_geotiff(tmp_path / "a.tif", np.ones((2, 4, 4)), crs="EPSG:nonsense")
    assert os.listdir(tmp_path) == []


@given(st.data())
def test_what_is_read_is_what_gdal_reads(tmp_path_factory, data):
    """Plain files in UTM zones take another way than the rest; nobody must see which."""
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16", "float32", "float64"]))
    shape = data.draw(st.tuples(st.integers(1, 13), st.integers(1, 20), st.integers(1, 20)))
    array = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    step = data.draw(st.sampled_from([10.0, 0.3, 20.0]))
    x, y = data.draw(st.floats(2e5, 8e5)), data.draw(st.floats(1e6, 9e6))
    options = {"crs": data.draw(st.sampled_from(["EPSG:32601", "EPSG:32760", "EPSG:32636", "EPSG:3857", None]))}
    options |= {"transform": (step, 0, x, 0, -step, y), "nodata": data.draw(st.sampled_from([None, 0]))}
    options |= {"compress": data.draw(st.sampled_from([None, None, "deflate"]))}
    path = write_geotiff(tmp_path_factory.mktemp("plain") / "a.tif", array, **options)
    found, info = read_geotiff(path)
    again, info_of_bytes = read_geotiff("name.tif", data=path.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as raster:
            expected = raster.read()
            crs, transform = raster.crs.to_string() if raster.crs else None, tuple(raster.transform[:6])
    for values in (found, again):
        assert values.dtype == expected.dtype and values.tobytes() == expected.tobytes() and values.flags.writeable
    assert info == info_of_bytes
    assert (info.crs, info.transform, info.nodata) == (crs, transform, options["nodata"])
    assert info.descriptions == (None,) * shape[0]
    if crs and crs != "EPSG:3857":
        assert info.gsd == pytest.approx(step)
        with rasterio.open(path) as raster:
            assert info == raster_info(raster, path)
