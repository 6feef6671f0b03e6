"""Scores against scikit-learn's, intervals over blocks, and the worst of several regions."""

import warnings

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn import metrics

from croplem_hf.errors import DataError
from croplem_hf.evaluation import (
    METRICS,
    class_scores,
    region_scores,
    region_spread,
    score,
    score_intervals,
    spread,
    worst_region,
)
from croplem_hf.evaluation.fairness import paired_gap


def predictions(seed, classes, count, ties=False):
    """True codes, each class at least once, and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(classes, size=count)])
    raw = rng.random((len(y), classes)) + 0.8 * (y[:, None] == np.arange(classes))
    raw = np.round(raw, 1) + 0.05 if ties else raw
    return y, raw / raw.sum(axis=1, keepdims=True)


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(0, 60), st.booleans())
def test_scores_are_those_of_scikit_learn(seed, classes, count, ties):
    y, proba = predictions(seed, classes, count, ties)
    found = proba.argmax(axis=1)
    areas = [metrics.roc_auc_score(y == k, proba[:, k]) for k in range(classes)]
    expected = {
        "n": len(y),
        "auc": areas[1] if classes == 2 else np.mean(areas),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, found),
        "macro_f1": metrics.f1_score(y, found, average="macro"),
        "accuracy": metrics.accuracy_score(y, found),
    }
    assert score(y, proba) == pytest.approx(expected)


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_order_of_rows_and_names_of_classes_do_not_matter(seed, classes):
    y, proba = predictions(seed, classes, 30)
    order = np.random.default_rng(seed).permutation(len(y))
    names = np.array(list("wxyz"))[y]
    assert score(names[order], proba[order]) == pytest.approx(score(y, proba))


def test_a_class_that_is_not_there_is_not_judged():
    y = np.array(["a", "a", "a", "b"])
    proba = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1]])
    with pytest.raises(DataError, match="4 true classes of 2 kinds do not fit probabilities of shape"):
        score(y, proba)
    with pytest.raises(DataError, match="class 'a' has no column"):
        score(y, proba, ["b", "c", "d"])
    found = score(y, proba, ["a", "b", "c"])
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    # The class that is only predicted counts as in scikit-learn: its F1 is 0.
    assert found["macro_f1"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert np.isnan(score(["a", "a"], proba[:2], ["a", "b", "c"])["auc"])


def test_missing_predictions_are_refused():
    with pytest.raises(DataError, match="row 1 has no prediction"):
        score([0, 1], [[0.5, 0.5], [np.nan, np.nan]])


def test_intervals_hold_the_value_and_shrink_with_blocks():
    y, proba = predictions(0, 2, 2000)
    few = score_intervals(y, proba, np.arange(len(y)) % 20)
    many = score_intervals(y, proba)
    for metric in METRICS:
        assert few[metric]["low"] < few[metric]["value"] < few[metric]["high"]
        assert many[metric]["value"] == few[metric]["value"]
    assert (few["n"], few["blocks"], many["blocks"]) == (2002, 20, 2002)
    assert score_intervals(y, proba, seed=1) != many
    assert score_intervals(y, proba) == many


def test_intervals_are_those_of_an_ordinary_bootstrap():
    y, proba = predictions(1, 2, 400)
    rng = np.random.default_rng(0)
    draws = [score(y[rows], proba[rows]) for rows in rng.integers(len(y), size=(600, len(y)))]
    found = score_intervals(y, proba)
    for metric in METRICS:
        low, high = np.quantile([draw[metric] for draw in draws], [0.025, 0.975])
        assert [found[metric]["low"], found[metric]["high"]] == pytest.approx([low, high], abs=0.012)


def test_blocks_that_agree_within_widen_the_interval():
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(40), 25)
    right = rng.random(40)[blocks] < 0.6
    y = rng.integers(2, size=len(blocks))
    proba = np.eye(2)[np.where(right, y, 1 - y)]
    by_block, by_row = score_intervals(y, proba, blocks)["accuracy"], score_intervals(y, proba)["accuracy"]
    assert by_block["high"] - by_block["low"] > 3 * (by_row["high"] - by_row["low"])


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        blocks = np.repeat(np.arange(30), 8)
        y = rng.integers(2, size=240)
        right = rng.random(240) < np.clip(0.7 + 0.2 * rng.normal(size=30), 0, 1)[blocks]
        found = score_intervals(y, np.eye(2)[np.where(right, y, 1 - y)], blocks, n_bootstrap=200)["accuracy"]
        hits += found["low"] <= 0.69 <= found["high"]
    # The mean of the clipped normal is 0.69; 30 blocks give a little less than 95 %.
    assert 0.87 <= hits / 200 <= 0.99


def test_few_blocks_give_no_interval_and_no_warning():
    y, proba = predictions(0, 2, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score_intervals(y, proba, np.arange(len(y)) % 4)
    assert all(np.isnan([found[m]["low"], found[m]["high"]]).all() for m in METRICS)


def test_regions_are_scored_apart():
    y, proba = predictions(0, 3, 300)
    regions = np.array(["b", "a"])[np.arange(len(y)) % 2]
    rows = region_scores(y, proba, regions, n_bootstrap=50)
    assert [row["region"] for row in rows] == ["a", "b"]
    part = regions == "a"
    assert rows[0]["macro_f1"]["value"] == pytest.approx(score(y[part], proba[part], range(3))["macro_f1"])


def test_spread_names_the_worst_and_leaves_small_regions_out():
    values = [("a", 100, 0.9), ("b", 100, 0.5), ("tiny", 29, 0.1), ("none", 50, np.nan), ("c", 30, 0.7)]
    rows = [{"region": name, "n": n, "accuracy": {"value": value}} for name, n, value in values]
    found = spread(rows, "accuracy")
    assert found == {
        "regions": 3, "mean": pytest.approx(0.7), "worst": 0.5, "worst_region": "b", "best": 0.9, "best_region": "a",
        "gap": pytest.approx(0.4), "deviation": pytest.approx(np.std([0.9, 0.5, 0.7])),
    }  # fmt: skip
    assert spread(rows[2:4], "accuracy") == {"regions": 0}


def test_the_mean_over_regions_has_an_interval_that_holds_it():
    y, proba = predictions(0, 2, 600)
    regions = np.array(["a", "b", "c"])[np.arange(len(y)) % 3]
    rows, spreads = region_spread(y, proba, regions, n_bootstrap=200)
    assert rows == region_scores(y, proba, regions, n_bootstrap=200)
    for metric in METRICS:
        found, widths = spreads[metric], [row[metric]["high"] - row[metric]["low"] for row in rows]
        assert found["low"] < found["mean"] < found["high"]
        assert {key: found[key] for key in spread(rows, metric)} == spread(rows, metric)
        # Regions err apart.
        assert found["high"] - found["low"] == pytest.approx(np.sqrt(np.sum(np.square(widths))) / 3, rel=0.3)


def test_regions_are_resampled_apart():
    """Four regions of the same rows: resampled alike, their mean would be as unsure as each of them."""
    y, proba = predictions(0, 2, 300)
    four, regions = np.tile(y, 4), np.repeat(list("abcd"), len(y))
    rows, spreads = region_spread(four, np.tile(proba, (4, 1)), regions, n_bootstrap=400)
    for metric in METRICS:
        width = np.mean([row[metric]["high"] - row[metric]["low"] for row in rows])
        assert spreads[metric]["high"] - spreads[metric]["low"] == pytest.approx(width / 2, rel=0.25)


def test_a_region_of_one_class_takes_no_part_in_the_mean_of_auc():
    y, proba = predictions(0, 2, 600)
    regions = np.array(["a", "b", "c"])[np.arange(len(y)) % 3]
    y = np.where(regions == "c", 1, y)
    spreads = region_spread(y, proba, regions, n_bootstrap=100)[1]
    assert (spreads["auc"]["regions"], spreads["balanced_accuracy"]["regions"]) == (2, 3)
    assert all(found["low"] < found["mean"] < found["high"] for found in spreads.values())
    both = regions != "c"
    assert region_spread(y[both], proba[both], regions[both], n_bootstrap=100)[1]["auc"] == spreads["auc"]


def test_weights_of_regions_are_as_if_rows_were_repeated():
    y, proba = predictions(0, 3, 300)
    times = np.random.default_rng(0).integers(1, 4, size=len(y))
    regions, blocks = np.array(["a", "b"])[np.arange(len(y)) % 2], np.arange(len(y)) % 40
    weighted = region_spread(y, proba, regions, blocks, weights=times, n_bootstrap=50)[1]
    repeated = (part.repeat(times, axis=0) for part in (y, proba, regions, blocks))
    for metric, found in region_spread(*repeated, n_bootstrap=50)[1].items():
        for key in ("mean", "low", "high"):
            assert weighted[metric][key] == pytest.approx(found[key])


def test_weights_count_in_gaps_classes_and_the_worst_region():
    y, proba = predictions(0, 2, 300)
    _, other = predictions(1, 2, 300)
    times = np.random.default_rng(0).integers(1, 4, size=len(y))
    regions, blocks = np.array(["a", "b"])[np.arange(len(y)) % 2], np.arange(len(y)) % 40
    parts = [part.repeat(times, axis=0) for part in (y, proba, other, regions, blocks)]
    weighted = paired_gap(y, proba, other, regions, blocks, weights=times, n_bootstrap=50)
    assert weighted == pytest.approx(paired_gap(*parts, n_bootstrap=50))
    assert weighted["value"] != pytest.approx(paired_gap(y, proba, other, regions, blocks, n_bootstrap=50)["value"])
    found, repeated = class_scores(y, proba, weights=times), class_scores(parts[0], parts[1])
    for one, many in zip(found, repeated, strict=True):
        assert {key: one[key] for key in ("recall", "precision")} == pytest.approx(
            {key: many[key] for key in ("recall", "precision")}
        )
    assert [one["n"] for one in found] == np.bincount(y).tolist()
    # Where only rows that are right have any weight to speak of, the worst region is right too.
    heavy = np.where(proba.argmax(axis=1) == y, 1e6, 1.0)
    assert worst_region(y, proba, regions, blocks, weights=heavy, n_draws=50)["value"] > 0.999
    assert worst_region(y, proba, regions, blocks, n_draws=50)["value"] < 0.99


def test_the_interval_of_a_mean_covers_what_it_should():
    rng, held = np.random.default_rng(0), []
    truth = np.array([0.9, 0.8, 0.6])
    for number in range(200):
        # 30 blocks of five rows a region; rows of a block are right together more often than not.
        chance = np.clip(np.repeat(truth, 30) + rng.uniform(-0.1, 0.1, 90), 0, 1)
        right = rng.random((90, 5)) < chance[:, None]
        y = rng.integers(2, size=450)
        proba = np.eye(2)[np.where(right.ravel(), y, 1 - y)]
        names, blocks = np.repeat(["a", "b", "c"], 150), np.repeat(np.arange(90), 5)
        found = region_spread(y, proba, names, blocks, n_bootstrap=200, seed=number)[1]["accuracy"]
        held.append(found["low"] <= truth.mean() <= found["high"])
    assert 0.9 <= np.mean(held) <= 0.99


def test_the_mean_over_regions_has_no_interval_where_one_of_them_has_none():
    y, proba = predictions(0, 2, 300)
    regions = np.array(["a", "b"])[np.arange(len(y)) % 2]
    blocks = np.where(regions == "a", np.arange(len(y)), np.arange(len(y)) % 4)
    found = region_spread(y, proba, regions, blocks, n_bootstrap=50)[1]["accuracy"]
    assert found["regions"] == 2 and np.isnan([found["low"], found["high"]]).all()
    # A region that is too small to be judged does not take the interval away.
    regions = np.where(np.arange(len(y)) < 8, "tiny", "a")
    found = region_spread(y, proba, regions, np.where(regions == "a", np.arange(len(y)), 0), n_bootstrap=50)[1]
    assert found["accuracy"]["regions"] == 1 and found["accuracy"]["low"] < found["accuracy"]["high"]


def test_worst_region_at_equal_size_is_the_worst_one():
    rng = np.random.default_rng(0)
    regions = np.repeat(["bad", "good", "fair", "tiny"], [400, 300, 100, 20])
    share = {"bad": 0.6, "good": 0.95, "fair": 0.8, "tiny": 0.0}
    right = rng.random(len(regions)) < np.array([share[name] for name in regions])
    y = rng.integers(2, size=len(regions))
    proba = np.eye(2)[np.where(right, y, 1 - y)]
    found = worst_region(y, proba, regions, metric="accuracy", n_draws=300)
    assert (found["size"], found["regions"]) == (100, 3)
    assert found["low"] < 0.6 < found["high"] and found["value"] == pytest.approx(0.6, abs=0.04)


def test_worst_of_equal_regions_is_below_their_score_at_any_size():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=4000)
    proba = np.eye(2)[np.where(rng.random(4000) < 0.8, y, 1 - y)]
    regions = np.arange(4000) % 8
    found = worst_region(y, proba, regions.astype(str), np.arange(4000) // 16, n_draws=200)
    assert 0.7 < found["value"] < 0.79


def test_worst_region_without_regions_of_enough_rows():
    y, proba = predictions(0, 2, 20)
    found = worst_region(y, proba, np.full(len(y), "a"))
    assert found["regions"] == 0 and np.isnan(found["value"])


def test_class_scores_are_recall_and_precision():
    y, proba = predictions(3, 3, 100)
    found, predicted = class_scores(y, proba), proba.argmax(axis=1)
    recall, precision = (f(y, predicted, average=None) for f in (metrics.recall_score, metrics.precision_score))
    assert [row["recall"] for row in found] == pytest.approx(recall)
    assert [row["precision"] for row in found] == pytest.approx(precision)
    assert [row["n"] for row in found] == np.bincount(y).tolist()
    assert np.isnan(class_scores([0, 1], [[1, 0], [1, 0]])[1]["precision"])
