"""Calibration against second implementations: scikit-learn's curve, and a loop over rows."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from croplem_hf.errors import DataError
from croplem_hf.evaluation import calibration, calibration_error, reliability

probabilities = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]), st.floats(0, 1)), st.booleans()), min_size=2
).filter(lambda rows: len({outcome for _, outcome in rows}) == 2)


@given(probabilities, st.integers(1, 12))
def test_points_are_those_of_scikit_learn(rows, bins):
    p, outcome = (np.array(column) for column in zip(*rows, strict=True))
    observed, predicted = calibration_curve(outcome, p, n_bins=bins)
    points = reliability(p, outcome, bins=bins)
    assert [point["observed"] for point in points] == pytest.approx(observed)
    assert [point["predicted"] for point in points] == pytest.approx(predicted)
    assert sum(point["n"] for point in points) == len(p)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_equal_mass_points_are_those_of_scikit_learn(seed, bins):
    rng = np.random.default_rng(seed)
    p = rng.random(60)
    outcome = rng.permutation(np.arange(60) % 2 == 0)
    observed, predicted = calibration_curve(outcome, p, n_bins=bins, strategy="quantile")
    points = reliability(p, outcome, bins=bins, strategy="mass")
    assert [point["observed"] for point in points] == pytest.approx(observed)
    assert [point["predicted"] for point in points] == pytest.approx(predicted)
    assert max(point["n"] for point in points) - min(point["n"] for point in points) <= 2


@given(probabilities, st.integers(1, 12))
def test_error_is_that_of_a_loop_over_rows(rows, bins):
    sums = np.zeros((bins, 2))
    for p, outcome in rows:
        k = next(k for k in range(bins) if p <= np.linspace(0, 1, bins + 1)[k + 1])
        sums[k] += p, outcome
    expected = np.abs(sums[:, 0] - sums[:, 1]).sum() / len(rows)
    p, outcome = zip(*rows, strict=True)
    assert calibration_error(reliability(p, outcome, bins=bins)) == pytest.approx(expected)


@given(probabilities)
def test_ties_do_not_lose_rows(rows):
    p, outcome = zip(*rows, strict=True)
    points = reliability(np.round(p, 1), outcome, strategy="mass")
    assert sum(point["n"] for point in points) == len(p)


def test_certain_and_right_is_without_error_at_both_ends():
    points = reliability([0.0, 0.0, 1.0], [False, False, True])
    assert [(point["low"], point["high"], point["n"]) for point in points] == [(0.0, 0.1, 2), (0.9, 1.0, 1)]
    assert calibration_error(points) == 0
    assert calibration_error(reliability([1.0, 1.0], [True, False])) == 0.5
    assert reliability([0.4, 0.4], [True, False], strategy="mass")[0]["n"] == 2


def test_probabilities_drawn_true_have_little_error_and_sharpened_ones_much():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    outcome = rng.random(20_000) < p
    sharp = p**3 / (p**3 + (1 - p) ** 3)
    for strategy in ("width", "mass"):
        assert calibration_error(reliability(p, outcome, strategy=strategy)) < 0.01
        assert calibration_error(reliability(sharp, outcome, strategy=strategy)) > 0.1


def test_figures_of_two_classes_are_of_the_second():
    rng = np.random.default_rng(0)
    y, p = rng.permutation(np.arange(200) % 2), rng.random(200)
    found = calibration(np.array(["no", "yes"])[y], np.stack([1 - p, p], axis=1))
    assert found["of"] == "yes" and found["n"] == 200
    assert found["ece"] == calibration_error(reliability(p, y == 1))
    assert found["brier"] == pytest.approx(brier_score_loss(y, p)) and found["brier_prior"] == pytest.approx(0.25)
    assert found["log_loss"] == pytest.approx(log_loss(y, p))


def test_figures_of_more_classes_are_of_the_predicted_one():
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(300) % 3)
    proba = rng.dirichlet(np.ones(3), size=300)
    found = calibration(y, proba)
    assert found["of"] == "predicted class"
    assert found["ece"] == calibration_error(reliability(proba.max(axis=1), proba.argmax(axis=1) == y))
    assert found["brier"] == pytest.approx(((proba - np.eye(3)[y]) ** 2).sum(axis=1).mean())
    assert found["brier_prior"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("p", "outcome", "strategy", "message"),
    [
        ([], [], "width", "or are none"),
        ([0.5], [True, False], "width", "do not fit outcomes"),
        ([0.5, 1.5], [True, False], "width", "between 0 and 1, found 1.5"),
        ([0.5, np.nan], [True, False], "width", "between 0 and 1, found nan"),
        ([0.5], [True], "quantile", "'width' or 'mass', found 'quantile'"),
    ],
)
def test_refuses(p, outcome, strategy, message):
    with pytest.raises(DataError, match=message):
        reliability(p, outcome, strategy=strategy)


def test_refuses_probabilities_of_other_classes():
    with pytest.raises(DataError, match="2 rows of 2 classes do not fit"):
        calibration([0, 1], np.full((2, 3), 1 / 3))
