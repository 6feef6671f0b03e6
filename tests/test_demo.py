"""The demo runs the whole chain; here on a smaller sample."""

import json

import pytest

from croplem_hf import demo, read_table
from croplem_hf.cli import main
from croplem_hf.data.geotiff import read_geotiff


@pytest.fixture
def small(monkeypatch):
    for name, value in {
        "PATCHES": 25, "SIZE": 64, "SCENE_SIZE": 128, "STRIDE": 32, "STEPS": 2, "BATCH": 8, "BUDGET": 20, "ROUND": 5,
        "LOCAL": 5, "BUDGETS": (5, 10), "SEEDS": range(2),
    }.items():  # fmt: skip
        monkeypatch.setattr(demo, name, value)


def test_the_demo_makes_all_that_it_says(small, tmp_path, capsys, answer):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for name in ("embeddings.parquet", "index", "cropland.head", "map.tif", "report.html"):
        assert (out / name).exists() and str(out / name) in said
    assert "invented" in said and "1 broken and skipped" in said
    page = (out / "report.html").read_text()
    assert "invented sample" in page and "http" not in page.replace("http://www.w3.org", "")
    assert read_geotiff(out / "map.tif")[0].shape == (3, 128, 128)
    assert len(read_table(out / "embeddings.parquet")) == 199
    before = (out / "embeddings.parquet").stat().st_mtime_ns
    found = answer("demo", "--out", out)  # a second call goes on from what is there
    assert (found["rows"], found["skipped"], found["report"]) == (199, 1, str(out / "report.html"))
    assert (out / "embeddings.parquet").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main(["demo", "--out", str(out), "--seed", "1"]) == 1
    assert "seed 0" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("id,label\n")
    assert main(["demo", "--out", str(tmp_path)]) == 1 and "is no demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_the_held_out_place_is_in_no_training(small, tmp_path):
    demo.run_demo(tmp_path)
    state = next((tmp_path / "pretraining" / "checkpoints").iterdir()) / "state.json"
    scenes = json.loads(state.read_text())["config"]["sources"][0]["where"]["scene"]
    assert len(scenes) == 7 and demo.PLACES[demo.HELD_OUT].scene not in scenes
