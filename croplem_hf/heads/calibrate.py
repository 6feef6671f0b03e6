"""Calibration on labels of the training alone: held-out scores, one temperature, or one isotonic curve a class."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from ..errors import DataError

CALIBRATIONS = ("temperature", "isotonic", "none")
MIN_ISOTONIC = 30
"""Labels of the rarest class that an isotonic curve needs; with a few hundred in all the temperature is better."""
HOTTEST = 50.0


def held_out_scores(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    codes: np.ndarray,
    groups: np.ndarray | None,
    cv: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Scores of rows by models that were not trained on them or on their group.

    Args:
        predict: (training rows, test rows) -> scores (test rows, classes that the training rows hold).
        codes: int (n,), classes 0 to K - 1.
        groups: (n,) or None for each row its own.
        cv: folds at most; fewer where a class has fewer groups.
        seed: of the folds.

    Returns:
        The classes that take part, those with two groups at least (k,); scores (m, k); their codes among the k (m,);
        the rows' groups (m,). None where fewer than two classes take part, or a class lies in one fold as a whole.
    """
    own = np.arange(len(codes)) if groups is None else np.asarray(groups)
    of_class = np.array([len(np.unique(own[codes == k])) for k in range(codes.max() + 1)])
    names = np.flatnonzero(of_class >= 2)
    if len(names) < 2:
        return None
    rows = np.flatnonzero(np.isin(codes, names))
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(min(cv, of_class[names].min()), shuffle=True, random_state=seed)
    splits = list(splitter.split(rows, codes[rows], None if groups is None else own[rows]))
    if any(len(np.unique(codes[rows[train]])) < len(names) for train, _ in splits):
        return None
    scores = np.empty((len(rows), len(names)))
    for train, test in splits:
        scores[test] = predict(rows[train], rows[test])
    return names, scores, np.searchsorted(names, codes[rows]), own[rows]


def fit_temperature(
    scores: np.ndarray, codes: np.ndarray, groups: np.ndarray | None = None, coolest: float = 1.0
) -> float:
    """Temperature of least cross-entropy (Guo et al. 2017), from `coolest` to 50; 1 where nothing calls for another.

    It is kept where it lowers the mean cross-entropy by more than one standard error of that difference over groups.

    Args:
        scores: float (n, K), held out.
        codes: int (n,).
        groups: (n,), rows that share their errors; each row its own where None.
        coolest: below 1 probabilities may be sharpened.
    """

    def losses(log_temperature: float) -> np.ndarray:
        return -log_softmax(scores / np.exp(log_temperature), axis=1)[np.arange(len(codes)), codes]

    best = minimize_scalar(lambda at: losses(at).mean(), bounds=np.log([coolest, HOTTEST]), method="bounded").x
    gains = losses(0.0) - losses(best)
    own = np.arange(len(codes)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(own, gains - gains.mean())
    error = np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(gains)
    return float(np.exp(best)) if gains.mean() > error else 1.0


def fit_isotonic(proba: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """One isotonic curve a class, each against the rest (Zadrozny and Elkan 2002).

    Args:
        proba: float (n, K), held out.
        codes: int (n,).

    Returns:
        float64 (3, points): class, probability before, probability after, which stays off 0 and 1 by 1 / (n + 2).

    Raises:
        DataError: fewer than `MIN_ISOTONIC` labels of a class.
    """
    counts = np.bincount(codes, minlength=proba.shape[1])
    if counts.min() < MIN_ISOTONIC:
        raise DataError(
            f"isotonic calibration needs {MIN_ISOTONIC} labels of each class, the rarest has {counts.min()}; "
            "use calibration 'temperature'"
        )
    curves = []
    for k in range(proba.shape[1]):
        curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(proba[:, k], codes == k)
        x, y = curve.X_thresholds_, curve.y_thresholds_
        curves.append(np.stack([np.full(len(x), k), x, np.clip(y, 1 / (len(codes) + 2), 1 - 1 / (len(codes) + 2))]))
    return np.concatenate(curves, axis=1)


def apply_isotonic(curves: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """Probabilities (M, K) through the curves of `fit_isotonic`, made to add up to one."""
    out = np.empty_like(proba)
    for k in range(proba.shape[1]):
        _, x, y = curves[:, curves[0] == k]
        out[:, k] = np.interp(proba[:, k], x, y)
    return out / out.sum(axis=1, keepdims=True)


__all__ = ["CALIBRATIONS", "MIN_ISOTONIC", "apply_isotonic", "fit_isotonic", "fit_temperature", "held_out_scores"]
