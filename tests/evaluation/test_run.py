"""The whole evaluation: what it writes, what it leaves out, and that it is honest about worlds that are known."""

import csv
import io
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from croplem_hf.errors import DataError
from croplem_hf.evaluation import METRICS, evaluate
from croplem_hf.labels import column_labels
from croplem_hf.table import EmbeddingsTable, read_table


def read_rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def make_table(seed=0, regions=3, blocks=10, size=8, shift=0.0, signal=1.5, **columns):
    """Points in blocks in regions, with labels; `shift` turns the direction of the signal from region to region."""
    rng = np.random.default_rng(seed)
    region = np.repeat(np.arange(regions), blocks * size)
    y = rng.integers(2, size=len(region))
    towards = np.stack([np.cos(shift * region), np.sin(shift * region)], axis=1) * signal * (2 * y - 1)[:, None]
    X = np.concatenate([towards, np.zeros((len(y), 6))], axis=1) + rng.normal(size=(len(y), 8))
    columns = {
        "region": [f"r{n}" for n in region],
        "block": [f"b{n}" for n in np.repeat(np.arange(regions * blocks), size)],
    } | columns
    columns = {name: values for name, values in columns.items() if values is not None}
    table = EmbeddingsTable([f"p{n}" for n in range(len(y))], X.astype(np.float32), pa.table(columns), {"model": "m"})
    return table, np.array(["crop", "other"], object)[y]


QUICK = {"seeds": 2, "budgets": (10, 40), "n_bootstrap": 100}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    table, y = make_table(shift=1.0)
    y[::10] = None
    out = tmp_path_factory.mktemp("report") / "deep" / "out"
    return evaluate(table, y, out, title="A <title>", **QUICK), out


def test_writes_three_files_and_nothing_else(report):
    figures, out = report
    assert sorted(path.name for path in out.iterdir()) == ["figures.json", "regions.csv", "report.html"]
    read = json.loads((out / "figures.json").read_text(), parse_constant=pytest.fail)
    assert read["within"]["overall"]["n"] == figures["within"]["overall"]["n"] == 216
    assert read["transfer"]["spread"]["macro_f1"] == figures["transfer"]["spread"]["macro_f1"]
    assert read["left_out"] == {} and read["data"]["rows"] == 240 and read["data"]["blocks"] == 30
    page = (out / "report.html").read_text()
    assert "A &lt;title&gt;" in page and page.count("<img ") == 4


def test_regions_are_in_the_table_with_their_intervals(report):
    figures, out = report
    rows = read_rows(out / "regions.csv")
    assert [(row["protocol"], row["region"]) for row in rows] == [
        (protocol, region) for protocol in ("within", "transfer") for region in ("r0", "r1", "r2")
    ]
    found = figures["transfer"]["regions"][1]["macro_f1"]
    assert [float(rows[4][f"macro_f1{end}"]) for end in ("", "_low", "_high")] == pytest.approx(
        [found["value"], found["low"], found["high"]], abs=1e-6
    )
    page = (out / "report.html").read_text()
    assert f"{100 * found['value']:.1f} ({100 * found['low']:.1f}-{100 * found['high']:.1f})" in page


def test_tells_regions_that_differ(report):
    figures, _ = report
    here, there = (figures[name]["spread"]["balanced_accuracy"]["mean"] for name in ("within", "transfer"))
    assert here > there + 0.05
    local = figures["few_shot"]["means"]["balanced_accuracy"]
    assert [point["n_labels"] for point in local] == [0, 10] and local[1]["mean"] > local[0]["mean"] - 0.05


def test_baselines_are_what_they_must_be(report):
    figures, _ = report
    for name in ("within", "transfer"):
        majority, chance = (figures[name]["baselines"][k] for k in ("majority class", "chance"))
        assert majority["balanced_accuracy"] <= 0.5
        for metric in METRICS:
            assert chance[metric] == pytest.approx(0.5, abs=0.06)


def test_label_efficiency_has_all_strategies(report):
    figures, _ = report
    found = figures["label_efficiency"]
    assert list(found["curves"]["macro_f1"]) == ["random", "equal numbers a region", "bandit"]
    assert found["pool"] + found["test"] == 216
    assert {point["seeds"] for line in found["curves"]["macro_f1"].values() for point in line} == {2}
    assert found["target"] == pytest.approx(0.95 * found["all_labels"]["macro_f1"])


def test_the_same_seed_gives_the_same_figures(tmp_path):
    table, y = make_table(regions=2, blocks=6)
    first, second = (evaluate(table, y, tmp_path / "a", **QUICK) for _ in range(2))
    for name in ("within", "transfer", "few_shot"):
        assert json.dumps(first[name]) == json.dumps(second[name])
    assert first["label_efficiency"]["areas"] == second["label_efficiency"]["areas"]


def test_the_headline_does_not_compare_rows_of_one_region_with_those_of_another(tmp_path):
    """Regions that are easy by themselves, and whose scores lie on different levels."""
    table, y = make_table(signal=3.0)
    level = np.array([float(name[1:]) for name in table.metadata["region"].to_pylist()])
    vectors = table.vectors.copy()
    vectors[:, 0] += 5 * level
    table = EmbeddingsTable(table.ids, vectors, table.metadata, table.info)
    figures = evaluate(table, y, tmp_path, **QUICK | {"seeds": 0})
    mean, whole = figures["transfer"]["spread"]["auc"], figures["transfer"]["overall"]["auc"]["value"]
    assert mean["mean"] > 0.9 > 0.7 > whole
    page = (tmp_path / "report.html").read_text()
    for part, words in (("transfer", "in regions without labels"), ("within", "where labels are")):
        found = figures[part]["spread"]["auc"]
        bounds = f"{100 * found['low']:.1f}-{100 * found['high']:.1f}"
        shown = f"<b>{100 * found['mean']:.1f} <small>({bounds})</small></b>AUC {words}, mean of 3 regions"
        assert shown in page
        assert f"{100 * found['mean']:.1f} ({bounds})</td>" in page  # in the table too
    here = figures["within"]["overall"]["auc"]["value"]
    assert f"AUC is {100 * here:.1f} and {100 * whole:.1f}; the calibration errors are over all rows too." in page


def test_a_headline_without_a_mean_says_so(tmp_path):
    table, y = make_table(regions=2)
    y[np.array(table.metadata["region"].to_pylist()) == "r1"] = "crop"
    figures = evaluate(table, y, tmp_path / "two", **QUICK | {"seeds": 0})
    assert figures["within"]["spread"]["auc"]["regions"] == 1
    page = (tmp_path / "two/report.html").read_text()
    assert "Fewer than two regions have 30 rows of several classes" in page and "mean of 1 regions" not in page
    table, y = make_table(regions=1)
    evaluate(table, y, tmp_path / "one", **QUICK | {"seeds": 0})
    page = (tmp_path / "one/report.html").read_text()
    assert "Fewer than two regions" not in page and "mean of 1 regions" not in page


def test_labels_without_signal_are_told_as_chance(tmp_path):
    table, y = make_table(signal=0.0)
    figures = evaluate(table, y, tmp_path, **QUICK | {"seeds": 0})
    assert figures["transfer"]["overall"]["auc"]["low"] < 0.5 < figures["transfer"]["overall"]["auc"]["high"]
    assert "not told apart from chance in: r0 (80 rows)" in (tmp_path / "report.html").read_text()
    assert figures["label_efficiency"] is None and figures["left_out"]["label_efficiency"] == "not asked for"


def test_a_single_region_leaves_transfer_out_and_says_so(tmp_path):
    table, y = make_table(regions=1)
    figures = evaluate(table, y, tmp_path, **QUICK)
    assert figures["transfer"] is None and "two regions" in figures["left_out"]["transfer"]
    page = (tmp_path / "report.html").read_text()
    assert "Left out: leaving one region out needs two regions at least" in page
    assert list(figures["label_efficiency"]["curves"]) == ["macro_f1"]
    assert {row["protocol"] for row in read_rows(tmp_path / "regions.csv")} == {"within"}


def test_a_table_without_regions_and_blocks_is_taken_and_told(tmp_path):
    table, y = make_table(regions=1, block=None, region=None, other=list(range(80)))
    figures = evaluate(table, y, tmp_path, **QUICK)
    assert figures["data"]["blocks"] is None and list(figures["data"]["regions"]) == ["all"]
    assert "no column of spatial blocks" in (tmp_path / "report.html").read_text()


def test_small_regions_without_intervals_and_rows_without_a_region(tmp_path):
    table, y = make_table(regions=2, blocks=3, size=12, region=["a"] * 40 + ["b"] * 25 + [None] * 7)
    figures = evaluate(table, y, tmp_path, **QUICK | {"seeds": 0})
    assert [row["region"] for row in figures["within"]["regions"]] == ["(no region)", "a", "b"]
    assert figures["within"]["spread"]["accuracy"]["regions"] == 1
    assert math.isnan(figures["within"]["regions"][1]["accuracy"]["low"])
    assert figures["few_shot"] is None and "Left out: no region has enough" in (tmp_path / "report.html").read_text()


def test_where_every_region_is_small_no_mean_is_told(report, tmp_path):
    table, y = make_table(regions=3, blocks=5, size=4)
    evaluate(table, y, tmp_path, **QUICK | {"seeds": 0})
    page = (tmp_path / "report.html").read_text()
    assert "Fewer than two regions have 30 rows" in page and "majority class alone" not in page
    page = (report[1] / "report.html").read_text()
    assert "No region has" not in page and "majority class alone" in page


def test_more_than_two_classes(tmp_path):
    table, y = make_table()
    y = np.where(np.arange(len(y)) % 3 == 0, "a class with a rather long name " + y.astype("U9"), y)
    y[0] = "rare"
    figures = evaluate(table, y, tmp_path, **QUICK)
    assert len(figures["within"]["classes"]) == 5
    assert figures["within"]["calibration"]["of"] == "predicted class"
    assert "more classes" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["a"] * 3, "3 labels do not fit 240"), ([None] * 240, "no row of the table has a label"),
     (["a"] * 240, "all 240 labels are of one class, 'a'")],
)  # fmt: skip
def test_refuses_labels_that_cannot_be_judged(tmp_path, labels, message):
    table, _ = make_table()
    with pytest.raises(DataError, match=message):
        evaluate(table, labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unwritten_reports_leave_the_last_one(report, tmp_path, monkeypatch):
    table, y = make_table(regions=1, blocks=6)
    evaluate(table, y, tmp_path, **QUICK | {"seeds": 0})
    before = (tmp_path / "figures.json").read_text()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate(table, y, tmp_path, **QUICK | {"seeds": 0, "seed": 1})
    assert (tmp_path / "figures.json").read_text() == before


@pytest.mark.slow
def test_real_labels_are_better_than_chance_in_an_unseen_region(real_data, tmp_path):
    from croplem_hf.data import open_source
    from croplem_hf.embedding import Embedder
    from croplem_hf.resolver import packaged_path

    source = open_source(real_data / "series" / "series.parquet")
    Embedder.from_pretrained(packaged_path()).embed_source(source, tmp_path / "t.parquet", progress=False)
    table = read_table(tmp_path / "t.parquet")
    rows = [n for n, name in enumerate(table.metadata["source"].to_pylist()) if name == "itu_cropland_2023"]
    table = table.select(rows)
    figures = evaluate(table, column_labels(table, "cropland"), tmp_path / "out", seeds=0)
    for name in ("within", "transfer"):
        assert all(row["auc"]["low"] > 0.5 for row in figures[name]["regions"])
