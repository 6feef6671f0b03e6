"""Which labels may judge, and what they weigh."""

import csv

import numpy as np
import pyarrow as pa
import pytest

from croplem_hf.errors import DataError
from croplem_hf.evaluation import calibration, evaluate, score, score_intervals
from croplem_hf.evaluation.design import read_design
from croplem_hf.table import EmbeddingsTable


def sheet(path, rows, header=("id", "label", "sample", "stratum", "inclusion_probability")):
    with open(path, "w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def test_picked_labels_do_not_judge_and_probabilities_give_weights(tmp_path):
    rows = [("a", "x", "picked", "", ""), ("b", "y", "validation", "s", "0.5"), ("c", "x", "validation", "t", "0.1"),
            ("d", "", "validation", "t", "0.1"), ("e", "y", "", "", "")]  # fmt: skip
    found = read_design(sheet(tmp_path / "s.csv", rows), ["c", "b", "a", "e"])
    assert found.tests.tolist() == [True, True, False, False]
    assert found.weights.tolist() == [10, 2, 1, 1] and found.weighted and found.known
    assert found.strata.tolist() == ["t", "s", "", ""]


def test_files_that_say_nothing_are_taken_as_they_are(tmp_path):
    found = read_design(sheet(tmp_path / "s.csv", [("a", "x"), ("b", "y")], ("id", "label")), ["a", "b"])
    assert found.tests.all() and not found.weighted and not found.known


def test_refuses_what_may_not_judge(tmp_path):
    rows = [("a", "x", "picked", "", ""), ("b", "y", "picked", "", "")]
    with pytest.raises(DataError, match="all 2 labels were picked by a strategy"):
        read_design(sheet(tmp_path / "s.csv", rows), ["a", "b"])
    with pytest.raises(DataError, match="inclusion probabilities lie above 0 and up to 1, found '0'"):
        read_design(sheet(tmp_path / "s.csv", [("a", "x", "", "", "0.0")]), ["a"])


def test_strata_without_probabilities_are_refused(tmp_path):
    rows = [("a", "x", "", "hills", ""), ("b", "y", "", "plain", ""), ("c", "y", "", "", "")]
    with pytest.raises(DataError, match=r"has strata \(hills, plain\) and no inclusion_probability, so .*; add"):
        read_design(sheet(tmp_path / "s.csv", rows), ["a", "b"])
    # One stratum weighs nothing, and strata of picked labels judge nothing.
    rows = [("a", "x", "", "hills", ""), ("b", "y", "picked", "plain", "")]
    assert read_design(sheet(tmp_path / "s.csv", rows), ["a", "b"]).tests.tolist() == [True, False]


def test_weights_are_as_if_rows_were_repeated():
    rng = np.random.default_rng(0)
    y, p = rng.integers(2, size=60), rng.random(60)
    proba, times = np.stack([1 - p, p], axis=1), rng.integers(1, 5, size=60)
    weighted, repeated = score(y, proba, [0, 1], times), score(y.repeat(times), proba.repeat(times, axis=0))
    assert {k: v for k, v in weighted.items() if k != "n"} == pytest.approx(
        {k: v for k, v in repeated.items() if k != "n"}
    )
    a, b = calibration(y, proba, times), calibration(y.repeat(times), proba.repeat(times, axis=0))
    for key in ("ece", "brier", "brier_prior", "log_loss"):
        assert a[key] == pytest.approx(b[key])
    found = score_intervals(y, proba, weights=times, n_bootstrap=200)["accuracy"]
    assert found["low"] < weighted["accuracy"] == found["value"] < found["high"]


def test_evaluation_tests_on_drawn_labels_alone(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=300)
    X = (rng.normal(size=(300, 4)) + 2 * y[:, None]).astype(np.float32)
    # Labels that were picked are wrong as often as right: judged by them, the head would look bad.
    picked = np.arange(300) % 3 == 0
    names = np.where(picked & (rng.random(300) < 0.3), 1 - y, y).astype(str).astype(object)
    ids = [f"p{k}" for k in range(300)]
    columns = {"region": np.array(["a", "b"])[np.arange(300) // 150], "block": [f"b{k // 10}" for k in range(300)]}
    share = ["0.5"] * 150 + ["0.25"] * 150
    drawn = [("picked", "", "") if picked[k] else ("validation", columns["region"][k], share[k]) for k in range(300)]
    rows = [(ids[k], names[k], *drawn[k]) for k in range(300)]
    table = EmbeddingsTable(ids, X, pa.table(columns), {})
    found = read_design(sheet(tmp_path / "s.csv", rows), ids)
    figures = evaluate(table, names, tmp_path / "out", design=found, seeds=0, n_bootstrap=50)
    assert figures["within"]["overall"]["n"] == figures["data"]["tested"] == (~picked).sum()
    assert figures["within"]["overall"]["accuracy"]["value"] > 0.9 and figures["data"]["weighted"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "100 labels were picked" in page and "weighted by one over the inclusion probability" in page
