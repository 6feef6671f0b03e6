"""Areas of maps: through the command line, on grids in metres and degrees, and what is refused."""

import json

import numpy as np
import pytest
from area_maps import write_map, write_sample

from croplem_hf.cli import main
from croplem_hf.errors import DataError
from croplem_hf.evaluation.map_area import area_lines, map_area


@pytest.fixture
def world(tmp_path):
    """A map of 200 x 100 pixels (200 ha) that calls a tenth of what is other crop, and places drawn from each class."""
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 100)) > 0.2).astype(int)
    mapped = np.where((truth == 1) & (rng.random(truth.shape) < 0.1), 0, truth)
    mapped[:10] = 255
    path = write_map(tmp_path / "map.tif", mapped)
    places = np.concatenate([rng.permutation(np.argwhere(mapped == k))[:200] for k in (0, 1)])
    return path, mapped, truth, places, np.array(["crop", "other"])[truth[tuple(places.T)]]


def test_the_sample_corrects_the_pixel_count(world, tmp_path, capsys, answer):
    path, mapped, truth, places, labels = world
    sample = write_sample(tmp_path / "s.csv", places, labels, path)
    assert main(["area", str(path), "--labels", str(sample), "--out", str(tmp_path / "area.json")]) == 0
    crop = json.loads((tmp_path / "area.json").read_text())["classes"][0]
    assert crop["mapped_hectares"] == pytest.approx(np.sum(mapped == 0) / 100)
    true = np.sum((truth == 0) & (mapped < 255)) / 100
    assert crop["hectares"]["low"] < true < crop["hectares"]["high"] < crop["mapped_hectares"]
    assert "strata: classes of the map" in capsys.readouterr().out
    assert answer("area", path, "--labels", sample)["classes"][0] == crop


def test_strata_of_the_sample_are_used_where_probabilities_are_given(world, tmp_path):
    path, mapped, truth, _, _ = world
    rng = np.random.default_rng(1)
    north, south = np.argwhere(mapped[:100] < 255), np.argwhere(mapped[100:] < 255) + [100, 0]
    places = np.concatenate([rng.permutation(north)[:40], rng.permutation(south)[:160]])
    labels = np.array(["crop", "other"])[truth[tuple(places.T)]]
    columns = {"stratum": ["n"] * 40 + ["s"] * 160, "sample": ["validation"] * 200,
               "inclusion_probability": [40 / len(north)] * 40 + [160 / len(south)] * 160}  # fmt: skip
    found = map_area(path, write_sample(tmp_path / "s.csv", places, labels, path, **columns))
    shares = [np.mean(labels[:40] == "crop"), np.mean(labels[40:] == "crop")]
    expected = np.average(shares, weights=[len(north), len(south)])
    assert found["classes"][0]["area"]["value"] == pytest.approx(expected)
    assert found["strata"] == "strata of the sample"


def test_degrees_are_measured_on_the_ellipsoid(tmp_path):
    path = write_map(tmp_path / "map.tif", np.arange(10_000).reshape(100, 100) % 2, "EPSG:4326", 1e-3, (30.0, 45.05))
    places = [(k, k + j) for k in range(0, 40, 2) for j in (0, 1)]
    found = map_area(path, write_sample(tmp_path / "s.csv", places, ["crop", "other"] * 20, path))
    # A tenth of a degree squared at 45 degrees: 11.1132 km by 7.8847 km.
    assert found["hectares"] == pytest.approx(8_762, rel=1e-3)
    assert "met no confusion" in list(area_lines(found))[-1]


def test_refuses_what_is_no_sample(world, tmp_path, caplog):
    path, _, _, places, labels = world
    with pytest.raises(DataError, match="all 400 labels were picked by a strategy"):
        map_area(path, write_sample(tmp_path / "s.csv", places, labels, path, sample=["picked"] * 400))
    with pytest.raises(DataError, match="inclusion probabilities lie above 0 and up to 1, found '1.5'"):
        map_area(path, write_sample(tmp_path / "s.csv", places, labels, path, inclusion_probability=[1.5] * 400))
    with pytest.raises(DataError, match="needs one column 'lon'"):
        (tmp_path / "x.csv").write_text("id,label\na,b\n")
        map_area(path, tmp_path / "x.csv")
    with pytest.raises(DataError, match="none of the 3 labels lies on pixels"):
        map_area(path, write_sample(tmp_path / "s.csv", [(0, 0), (1, 1), (2, 2)], labels[:3], path))
    places = np.concatenate([places, [[0, 0]]])
    found = map_area(path, write_sample(tmp_path / "s.csv", places, [*labels, "crop"], path))
    assert found["outside"] == 1 and found["n"] == 400 and "1 of 401 labels" in caplog.text
    (tmp_path / "bad.tif").write_text("no map")
    with pytest.raises(DataError, match="bad.tif: cannot be read"):
        map_area(tmp_path / "bad.tif", tmp_path / "s.csv")


def test_labels_of_other_classes_are_refused(world, tmp_path, caplog):
    path, _, _, places, labels = world
    large = np.where(labels == "crop", "Crop", labels)
    map_area(path, write_sample(tmp_path / "s.csv", places, large, path))
    assert f"'Crop' ({np.sum(large == 'Crop')}) and 'crop' (0) differ only by case" in caplog.text
    numbers = np.where(labels == "crop", "1", "0")
    with pytest.raises(DataError, match="labels are 0, 1, the classes of .*map.tif crop, other; none agrees"):
        map_area(path, write_sample(tmp_path / "s.csv", places, numbers, path))
