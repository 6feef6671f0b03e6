"""Records of replays as curves, areas and labels needed."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from croplem_hf.active import RandomSampling, aulc, replay
from croplem_hf.errors import DataError
from croplem_hf.evaluation import areas, differences, labels_to_reach, learning_curves

BUDGETS = (10, 20, 40, 80)


def records(tables, metric="macro_f1"):
    """tables: for every strategy, rows of values, one row a seed."""
    return [
        {"strategy": name, "seed": seed, "n_labels": count, metric: value}
        for name, rows in tables.items()
        for seed, row in enumerate(rows)
        for count, value in zip(BUDGETS, row, strict=True)
    ]


CASE = records({"random": [[0.5, 0.6, 0.7, 0.8], [0.4, 0.6, 0.9, 0.7], [0.6, 0.6, 0.8, 0.6]],
                "bandit": [[0.6, 0.7, 0.8, 0.9], [0.6, 0.7, 0.9, 0.9], [0.6, 0.7, 0.7, 0.6]]})  # fmt: skip


def test_curves_are_means_with_intervals_over_seeds():
    found = learning_curves(CASE, "macro_f1")
    assert list(found) == ["random", "bandit"]
    first = found["random"][0]
    low, high = stats.t.interval(0.95, 2, loc=0.5, scale=stats.sem([0.5, 0.4, 0.6]))
    assert first == {"n_labels": 10, "mean": pytest.approx(0.5), "low": pytest.approx(low), "high": pytest.approx(high),
                     "seeds": 3}  # fmt: skip
    assert [point["n_labels"] for point in found["bandit"]] == list(BUDGETS)


def test_order_of_records_does_not_matter():
    shuffled = [CASE[n] for n in np.random.default_rng(0).permutation(len(CASE))]
    assert learning_curves(shuffled, "macro_f1")["bandit"] == learning_curves(CASE, "macro_f1")["bandit"]
    assert labels_to_reach(shuffled, "macro_f1", 0.7)["random"] == labels_to_reach(CASE, "macro_f1", 0.7)["random"]


def test_one_seed_has_no_interval():
    point = learning_curves(records({"a": [[0.5, 0.6, 0.7, 0.8]]}), "macro_f1")["a"][0]
    assert point["mean"] == 0.5 and np.isnan([point["low"], point["high"]]).all()


def test_areas_and_differences_are_over_log_labels():
    found = areas(CASE, "macro_f1")
    # Budgets double, so the area is the mean of the trapezoids.
    assert found["bandit"]["whole"]["mean"] == pytest.approx(np.mean([0.75, 0.7833333, 0.6666667]))
    assert found["bandit"]["low"]["mean"] < found["bandit"]["high"]["mean"]
    line = [record["macro_f1"] for record in CASE[:4]]
    assert aulc(BUDGETS, line)["whole"] == pytest.approx(0.65)
    (difference,) = differences(CASE, "bandit", "macro_f1")
    assert difference["baseline"] == "random" and difference["seeds"] == 3
    assert difference["mean"] == pytest.approx(
        found["bandit"]["whole"]["mean"] - found["random"]["whole"]["mean"]
    )
    assert difference["low"] <= difference["mean"] <= difference["high"]


def test_targets_that_are_not_reached_are_censored_and_not_dropped():
    found = labels_to_reach(CASE, "macro_f1", 0.8)
    assert found["random"] == {"seeds": 3, "reached": 3, "limit": 80, "median": 40, "least": 40, "most": 80}
    assert found["bandit"] == {"seeds": 3, "reached": 2, "limit": 80, "median": 40, "least": 40, "most": None}
    assert labels_to_reach(CASE, "macro_f1", 0.9)["bandit"]["median"] == 80
    never = labels_to_reach(CASE, "macro_f1", 0.95)["random"]
    assert (never["reached"], never["median"], never["least"]) == (0, None, None)


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=6), st.floats(0, 1))
def test_a_higher_target_never_takes_fewer_labels(rows, target):
    case = records({"a": rows})
    low, high = (labels_to_reach(case, "macro_f1", t)["a"] for t in (target, min(1.0, target + 0.1)))
    for key in ("least", "median", "most"):
        assert (low[key] or np.inf) <= (high[key] or np.inf)
    assert low["reached"] >= high["reached"] and low["seeds"] == len(rows)


def test_takes_what_a_replay_gives():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=120)
    X = (rng.normal(size=(120, 3)) + y[:, None]).astype(np.float32)
    found = replay(X, y, {"random": lambda seed: RandomSampling(seed=seed)}, pool=np.arange(80),
                   test=np.arange(80, 120), budgets=(10, 40), seeds=range(2))  # fmt: skip
    curve = learning_curves(found, "macro_f1")["random"]
    assert [(point["n_labels"], point["seeds"]) for point in curve] == [(10, 2), (40, 2)]


def test_refuses_what_is_no_record():
    with pytest.raises(DataError, match="no records"):
        learning_curves([], "macro_f1")
    with pytest.raises(DataError, match="no metric 'auc'; there are strategy, seed, n_labels, macro_f1"):
        areas(CASE, "auc")
