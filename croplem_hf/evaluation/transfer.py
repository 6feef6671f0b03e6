"""Predictions for rows that were not in training: a region left out, blocks left out, and a few local labels.

Classifiers come from a factory without arguments, such as the class `LogisticHead`, and see codes 0 to K - 1, the
places of the sorted classes of `y`. Where `blocks` are given, no block lies on both sides of a split, and classifiers
whose `fit` takes `groups` get them. Scores of the predictions: `fairness`, `calibration`.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, StratifiedKFold
from sklearn.utils.validation import has_fit_parameter

from ..errors import DataError
from .fairness import MIN_ROWS, score

SHOTS = (0, 10, 50, 400)
THRESHOLD_LABELS = 50


def leave_one_region_out(
    X: np.ndarray,
    y: Sequence,
    regions: Sequence[str],
    make_head: Callable[[], ClassifierMixin],
    blocks: Sequence | None = None,
) -> np.ndarray:
    """Predict each region with a head that was trained on all others.

    Args:
        X: float (n, D), embeddings.
        y: (n,) classes, of K kinds.
        regions: (n,) names, two at least.
        make_head: gives a fresh classifier.
        blocks: (n,) spatial blocks; those of the tested region leave training also where they reach into others.

    Returns:
        float64 (n, K), probabilities in the order of the sorted classes; 0 for a class the other regions lack.

    Raises:
        DataError: a single region, or other regions that hold one class only.
    """
    names, codes = np.unique(np.asarray(y), return_inverse=True)
    regions, blocks = np.asarray(regions), _blocks(blocks, len(codes))
    if len(np.unique(regions)) < 2:
        raise DataError("leaving one region out needs two regions at least; use grouped_cross_validation")
    proba = np.empty((len(codes), len(names)))
    for region in np.unique(regions):
        test = regions == region
        train = ~test & ~np.isin(blocks, blocks[test])
        if len(np.unique(codes[train])) < 2:
            raise DataError(f"the regions other than {str(region)!r} hold one class only; nothing to transfer from")
        proba[test] = fit_predict(make_head, X, codes, blocks, train, test, len(names))
    return proba


def grouped_cross_validation(
    X: np.ndarray,
    y: Sequence,
    make_head: Callable[[], ClassifierMixin],
    blocks: Sequence | None = None,
    *,
    n_splits: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Predict each row with a head that was trained on other blocks, those of its own region among them.

    Args:
        X, y, make_head: as in `leave_one_region_out`.
        blocks: (n,) spatial blocks; rows are split one by one where None, which flatters where neighbours are alike.
        n_splits: how many folds, fewer where there are fewer blocks, or fewer rows of every class.
        seed: of the folds.

    Returns:
        float64 (n, K), as there.

    Raises:
        DataError: a single block, or a single row of every class.
    """
    names, codes = np.unique(np.asarray(y), return_inverse=True)
    blocks = _blocks(blocks, len(codes))
    count = len(np.unique(blocks))
    if count < 2:
        raise DataError("all rows lie in one block; there is nothing to test on")
    most = int(np.bincount(codes).max())
    if most < 2:
        raise DataError(f"each of the {len(names)} classes has a single row; are these labels?")
    proba = np.empty((len(codes), len(names)))
    kind = StratifiedGroupKFold if count < len(codes) else StratifiedKFold
    splitter = kind(min(n_splits, count, most), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class rarer than the folds is lacking in some, which is as it should be.
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = list(splitter.split(X, codes, blocks if kind is StratifiedGroupKFold else None))
    for train, test in splits:
        proba[test] = fit_predict(make_head, X, codes, blocks, train, test, len(names))
    return proba


def few_shot(
    X: np.ndarray,
    y: Sequence,
    regions: Sequence[str],
    make_head: Callable[[], ClassifierMixin],
    blocks: Sequence | None = None,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = (0, 1, 2),
    tests: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[dict]:
    """What a few local labels add to those of all other regions.

    Half of the blocks of a region are the test, the same for all shots and seeds; local labels are drawn at random from
    the other half, the 10 among the 50. They count as much as any other label. Of two classes, `THRESHOLD_LABELS` of
    them also move the threshold of the head that saw no local label, to where its balanced accuracy on them is best.

    Args:
        X, y, regions, make_head, blocks: as in `leave_one_region_out`.
        shots: numbers of local labels.
        seeds: one draw of local labels for each.
        tests: bool (n,), rows that may be in a test; all where None.
        weights: float (n,), one over the inclusion probability, of the scores.

    Returns:
        One dict for each region, seed and number: `region`, `seed`, `n_labels` (local), and `score`; without local
        labels also `moved_accuracy` and `moved_balanced_accuracy`, with the moved threshold (NaN where it cannot be).
        Regions whose test would have fewer than `MIN_ROWS` rows are left out, and so are shots that a region lacks.
    """
    names, codes = np.unique(np.asarray(y), return_inverse=True)
    regions, blocks = np.asarray(regions), _blocks(blocks, len(codes))
    records = []
    for region in np.unique(regions):
        own = np.flatnonzero(regions == region)
        if len(np.unique(blocks[own])) < 2:
            continue
        local, test = next(GroupShuffleSplit(1, test_size=0.5, random_state=0).split(own, groups=blocks[own]))
        local, test = own[local], own[test] if tests is None else own[test][tests[own[test]]]
        others = np.flatnonzero((regions != region) & ~np.isin(blocks, blocks[test]))
        if len(test) < MIN_ROWS:
            continue
        own_weights = None if weights is None else weights[test]
        for count in (shot for shot in shots if shot <= len(local)):
            for seed in seeds:
                drawn = np.random.default_rng(seed).permutation(local)
                if count or seed == seeds[0]:
                    train = np.concatenate([others, drawn[:count]])
                    head = _fit(make_head, X, codes, blocks, train)
                    proba = _proba(head, X[test], len(names))
                    scores = score(codes[test], proba, range(len(names)), own_weights)
                record = {"region": str(region), "seed": int(seed), "n_labels": int(count)} | scores
                if count == 0:
                    few = drawn[:THRESHOLD_LABELS]
                    record |= _moved(head, X[few], codes[few], codes[test], proba, own_weights)
                records.append(record)
    return records


def few_shot_means(records: Sequence[dict], metric: str) -> list[dict]:
    """Means over regions: dicts of `n_labels`, `mean`, `worst` and `regions`; empty for none.

    Numbers that fewer than half of the regions can give are left out, and then regions that lack one of the others, so
    that all means are over the same regions.

    Args:
        records: of `few_shot`.
        metric: one of `METRICS`.
    """
    regions = sorted({record["region"] for record in records})
    given = {region: {r["n_labels"] for r in records if r["region"] == region} for region in regions}
    shots = [
        count
        for count in sorted({record["n_labels"] for record in records})
        if 2 * sum(count in own for own in given.values()) >= len(regions)
    ]
    whole = [region for region in regions if set(shots) <= given[region]]
    table = []
    for count in shots if whole else ():
        own = [
            np.mean([r[metric] for r in records if r["region"] == region and r["n_labels"] == count])
            for region in whole
        ]
        table.append({"n_labels": count, "mean": float(np.mean(own)), "worst": float(np.min(own)), "regions": len(own)})
    return table


def best_threshold(outcome: np.ndarray, p: np.ndarray) -> float:
    """Threshold of p at which the balanced accuracy on labels is best (Youden's index), nearest 0.5 among equals.

    Args:
        outcome: bool (n,), of both kinds.
        p: float (n,), probabilities.
    """
    steps = np.unique(p)
    middles = np.concatenate([[0.5], (steps[1:] + steps[:-1]) / 2])
    above = p[:, None] >= middles
    balanced = above[outcome].mean(axis=0) + (~above[~outcome]).mean(axis=0)
    best = middles[balanced >= balanced.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def _moved(
    head: ClassifierMixin, X: np.ndarray, bought: np.ndarray, codes: np.ndarray, proba: np.ndarray,
    weights: np.ndarray | None,
) -> dict[str, float]:  # fmt: skip
    names = ("accuracy", "balanced_accuracy")
    if proba.shape[1] != 2 or len(bought) < THRESHOLD_LABELS or len(np.unique(bought)) < 2:
        return {f"moved_{name}": float("nan") for name in names}
    positive = proba[:, 1] >= best_threshold(bought == 1, _proba(head, X, 2)[:, 1])
    found = score(codes, np.stack([~positive, positive], axis=1).astype(float), range(2), weights)
    return {f"moved_{name}": found[name] for name in names}


def fit_predict(
    make_head: Callable[[], ClassifierMixin],
    X: np.ndarray,
    codes: np.ndarray,
    blocks: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    classes: int,
) -> np.ndarray:
    """Probabilities (test rows, classes) of a fresh head; `train` and `test` are masks or row numbers."""
    return _proba(_fit(make_head, X, codes, blocks, train), X[test], classes)


def _fit(
    make_head: Callable[[], ClassifierMixin], X: np.ndarray, codes: np.ndarray, blocks: np.ndarray, train: np.ndarray
) -> ClassifierMixin:
    head = make_head()
    if has_fit_parameter(head, "groups") and len(np.unique(blocks)) < len(blocks):
        return head.fit(X[train], codes[train], groups=blocks[train])
    return head.fit(X[train], codes[train])


def _proba(head: ClassifierMixin, X: np.ndarray, classes: int) -> np.ndarray:
    proba = np.zeros((len(X), classes))
    proba[:, head.classes_] = head.predict_proba(X)
    return proba


def _blocks(blocks: Sequence | None, count: int) -> np.ndarray:
    """Block number of each row; a row is its own block where there are none."""
    if blocks is None:
        return np.arange(count)
    if len(blocks) != count:
        raise DataError(f"blocks name {len(blocks)} rows, there are {count}; give one block for each row")
    return np.unique(np.asarray(blocks), return_inverse=True)[1]


__all__ = [
    "best_threshold", "few_shot", "few_shot_means", "fit_predict", "grouped_cross_validation", "leave_one_region_out",
]  # fmt: skip
