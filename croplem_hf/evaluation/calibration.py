"""Whether probabilities mean what they say: reliability, expected calibration error, Brier score.

Two classes are judged by the probability of the second; more classes by that of the predicted class ("confidence").
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import brier_score_loss, log_loss

from ..errors import DataError

BINS = 10


def reliability(
    p: np.ndarray, outcome: np.ndarray, weights: np.ndarray | None = None, *, bins: int = BINS, strategy: str = "width"
) -> list[dict]:
    """Predicted against observed frequency, in bins.

    Args:
        p: float (n,), probabilities.
        outcome: bool (n,), whether it came true.
        weights: float (n,), one over the inclusion probability; all alike where None.
        bins: how many.
        strategy: "width": bins equally wide; "mass": edges at the quantiles of `p`, equally full as far as ties allow.

    Returns:
        One dict for each bin that holds rows: `low`, `high` (edges), `n`, `weight` (sum of weights), `predicted` (mean
        of p), `observed` (share that came true). A bin holds its upper edge and not its lower one; the first holds
        both, so 0 and 1 are in.

    Raises:
        DataError: nothing to judge, probabilities outside 0 to 1, or another strategy.
    """
    p, outcome = np.asarray(p, float), np.asarray(outcome, bool)
    if p.ndim != 1 or p.shape != outcome.shape or len(p) == 0:
        raise DataError(f"probabilities of shape {p.shape} do not fit outcomes of shape {outcome.shape}, or are none")
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"probabilities lie between 0 and 1, found {p[~((p >= 0) & (p <= 1))][0]}")
    if strategy not in ("width", "mass"):
        raise DataError(f"strategy is 'width' or 'mass', found {strategy!r}")
    steps = np.linspace(0, 1, bins + 1)
    edges = steps if strategy == "width" else np.unique(np.quantile(p, steps))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    place = np.searchsorted(edges[1:-1], p)
    weights = np.ones(len(p)) if weights is None else np.asarray(weights, float)
    return [
        {
            "low": float(edges[k]), "high": float(edges[k + 1]),
            "n": int(inside.sum()), "weight": float(weights[inside].sum()),
            "predicted": float(np.average(p[inside], weights=weights[inside])),
            "observed": float(np.average(outcome[inside], weights=weights[inside])),
        }
        for k in range(len(edges) - 1)
        if (inside := place == k).any()
    ]  # fmt: skip


def calibration_error(points: Sequence[dict]) -> float:
    """Expected calibration error: mean of `|predicted - observed|` over the bins of `reliability`, by their weights.

    Guo et al. 2017, arXiv 1706.04599. It depends on the number of bins, and is never quite 0 for few rows.
    """
    rows = np.array([point["weight"] for point in points])
    gaps = np.array([abs(point["predicted"] - point["observed"]) for point in points])
    return float((rows * gaps).sum() / rows.sum())


def calibration(
    y: Sequence, proba: np.ndarray, weights: np.ndarray | None = None, *, classes: Sequence | None = None,
    bins: int = BINS,
) -> dict:  # fmt: skip
    """All figures of calibration for predictions on rows that were not in training.

    Args:
        y: (n,) true classes.
        proba: float (n, K).
        weights: as in `reliability`.
        classes: K, what the columns stand for, sorted; the sorted classes of `y` where None.
        bins: of the reliability.

    Returns:
        `of` (what the probability is of), `n`, `ece` (equally wide bins), `ece_mass` (equally full ones), `brier` and
        `log_loss` (scikit-learn's, the Brier score of two classes from 0 to 1), `brier_prior` (that of always
        predicting the shares of the classes) and `points` (`reliability`, equally wide).
    """
    names = np.unique(np.asarray(y) if classes is None else np.asarray(classes))
    codes, proba = np.searchsorted(names, np.asarray(y)), np.asarray(proba, float)
    if proba.shape != (len(codes), len(names)):
        raise DataError(f"{len(codes)} rows of {len(names)} classes do not fit probabilities of shape {proba.shape}")
    if len(names) == 2:
        of, p, outcome = str(names[1]), proba[:, 1], codes == 1
    else:
        of, p, outcome = "predicted class", proba.max(axis=1), proba.argmax(axis=1) == codes
    points = reliability(np.clip(p, 0, 1), outcome, weights, bins=bins)
    shares = np.bincount(codes, weights, minlength=len(names))
    prior = np.tile(shares / shares.sum(), (len(codes), 1))
    labels = np.arange(len(names))
    return {
        "of": of, "n": len(codes), "ece": calibration_error(points),
        "ece_mass": calibration_error(reliability(np.clip(p, 0, 1), outcome, weights, bins=bins, strategy="mass")),
        "brier": _brier(codes, proba, labels, weights), "brier_prior": _brier(codes, prior, labels, weights),
        "log_loss": float(log_loss(codes, proba, labels=labels, sample_weight=weights)), "points": points,
    }  # fmt: skip


def _brier(codes: np.ndarray, proba: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> float:
    p = proba if len(labels) > 2 else proba[:, 1]
    return float(brier_score_loss(codes, p, labels=labels, sample_weight=weights))


__all__ = ["calibration", "calibration_error", "reliability"]
