"""The parts of an evaluation: what is said of one way of splitting, of few labels, of sets of classes, of far rows."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import GroupShuffleSplit
from sklearn.preprocessing import StandardScaler

from ..active import CoverageBandit, RandomSampling, StratifiedRandomSampling, replay
from ..heads import ConformalSets, LabelledNeighbourhood
from .calibration import calibration
from .fairness import (
    METRICS,
    MIN_ROWS,
    class_scores,
    paired_gap,
    region_scores,
    region_spread,
    score,
    score_intervals,
    spread,
    worst_region,
)
from .label_efficiency import areas, differences, labels_to_reach, learning_curves
from .retrieval import retrieval
from .transfer import few_shot, few_shot_means, fit_predict

# One guess is as noisy as the test is small: the mean of several is chance.
GUESSES = {
    "majority class": [partial(DummyClassifier, strategy="prior")],
    "chance": [partial(DummyClassifier, strategy="stratified", random_state=number) for number in range(20)],
}
TARGET = 0.95
"""Labels are counted until a head reaches this share of the macro-F1 that all labels of the pool give."""
CONFIDENCE = 0.9


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labelled rows: X float32 (n, D), y text (n,), regions text (n,), blocks text (n,) or None; tests bool (n,), which
    may judge; weights float64 (n,) or None; others, further features (n, D') by name, to compare with.
    """

    X: np.ndarray
    y: np.ndarray
    regions: np.ndarray
    blocks: np.ndarray | None
    tests: np.ndarray
    weights: np.ndarray | None
    others: Mapping[str, np.ndarray]

    @property
    def classes(self) -> np.ndarray:
        """The sorted classes."""
        return np.unique(self.y)

    def judged(self, values: np.ndarray | None) -> np.ndarray | None:
        """The rows of an array that may judge."""
        return None if values is None else values[self.tests]


def account(
    rows: Labelled, predict: Callable, make_head: Callable[[], ClassifierMixin], n_bootstrap: int, seed: int
) -> tuple[dict, np.ndarray]:
    """All that is said of one way of splitting, and its predictions.

    Args:
        rows: labels.
        predict: (features, factory of classifiers) -> probabilities (n, K) of rows that were not in training.
        make_head: gives a fresh classifier.
        n_bootstrap, seed: of the intervals.
    """
    proba = predict(rows.X, make_head)
    y, p, names, weights = rows.judged(rows.y), rows.judged(proba), rows.judged(rows.regions), rows.judged(rows.weights)
    blocks, classes = rows.judged(rows.blocks), rows.classes
    common = {"classes": classes, "weights": weights, "n_bootstrap": n_bootstrap, "seed": seed}
    regions, spreads = region_spread(y, p, names, blocks, **common)
    for line in regions:
        own = names == line["region"]
        found = calibration(y[own], p[own], None if weights is None else weights[own], classes=classes)
        line["calibration"] = {key: value for key, value in found.items() if key != "points"}
        line["shares"] = _shares(y[own], p[own], classes, None if weights is None else weights[own])
    figures = {
        "regions": regions,
        "overall": score_intervals(y, p, blocks, **common),
        "spread": spreads,
        "worst_region": worst_region(y, p, names, blocks, classes=classes, weights=weights, seed=seed),
        "classes": class_scores(y, p, classes, weights),
        "calibration": calibration(y, p, weights, classes=classes),
        "baselines": {},
        "others": {},
    }
    for name, makes in GUESSES.items():
        guesses = [rows.judged(predict(rows.X, make)) for make in makes]
        tables = [region_scores(y, guess, names, **common | {"n_bootstrap": 0}) for guess in guesses]
        figures["baselines"][name] = {
            metric: float(np.mean([spread(table, metric).get("mean", math.nan) for table in tables]))
            for metric in METRICS
        }
    for name, features in rows.others.items():
        other = rows.judged(predict(features, make_head))
        table = region_scores(y, other, names, blocks, **common)
        figures["baselines"][name] = {metric: spread(table, metric).get("mean", math.nan) for metric in METRICS}
        figures["others"][name] = {
            "regions": table, "calibration": calibration(y, other, weights, classes=classes),
            "gap": paired_gap(y, p, other, names, blocks, **common),
        }  # fmt: skip
    return figures, proba


def _shares(y: np.ndarray, proba: np.ndarray, classes: np.ndarray, weights: np.ndarray | None) -> list[dict]:
    """For each class: its true share, the share of rows where it is predicted, and its mean probability."""
    found = classes[proba.argmax(axis=1)]
    mean = partial(np.average, weights=weights)
    return [
        {
            "class": str(name), "true": float(mean(y == name)), "predicted": float(mean(found == name)),
            "probability": float(mean(proba[:, k])),
        }
        for k, name in enumerate(classes)
    ]  # fmt: skip


def few_local_labels(rows: Labelled, make_head: Callable[[], ClassifierMixin], left_out: dict) -> dict | None:
    """`few_shot` of the embeddings and of the features to compare with; None and the reason in `left_out`."""
    if "transfer" in left_out:
        left_out["few_shot"] = "it needs the predictions of a region left out"
        return None
    options = {"tests": rows.tests, "weights": rows.weights}
    records = few_shot(rows.X, rows.y, rows.regions, make_head, rows.blocks, **options)
    means = {metric: few_shot_means(records, metric) for metric in METRICS}
    if not means["macro_f1"]:
        left_out["few_shot"] = "no region has enough blocks and rows for a test and local labels apart"
        return None
    moved = [record for record in records if record["n_labels"] == 0]
    others = {
        name: few_shot_means(few_shot(X, rows.y, rows.regions, make_head, rows.blocks, **options), "auc")
        for name, X in rows.others.items()
    }
    names = ("moved_accuracy", "moved_balanced_accuracy")
    return {
        "records": records, "means": means, "others": others,
        "moved": {name: few_shot_means(moved, name) for name in names},
    }  # fmt: skip


def neighbours(rows: Labelled, seed: int) -> dict:
    """`retrieval` of the embeddings, and its means over regions of the features to compare with."""
    table = retrieval(rows.X, rows.y, rows.regions, rows.blocks, seed=seed)
    others = {name: retrieval(X, rows.y, rows.regions, rows.blocks, seed=seed) for name, X in rows.others.items()}
    keys = ("within", "within_chance", "across", "across_chance")

    def means(lines: Sequence[dict]) -> dict[str, float]:
        known = {key: [line[key] for line in lines if not math.isnan(line[key])] for key in keys}
        return {key: float(np.mean(values)) if values else math.nan for key, values in known.items()}

    return {"regions": table, "mean": means(table), "others": {name: means(lines) for name, lines in others.items()}}


def sets_of_classes(rows: Labelled, proba: np.ndarray, seed: int) -> list[dict]:
    """Coverage and size of conformal sets in a region that the head never saw, by whose labels calibrated them.

    Half of the blocks of a region are tested; `local`: calibrated on the other half; `elsewhere`: on all other regions.

    Args:
        rows: labels.
        proba: float (n, K), of the region left out.
        seed: of the halves.

    Returns:
        Dicts of `region`, `n`, and for both `coverage` and `size`; regions with fewer than `MIN_ROWS` rows to test or
        to calibrate are left out.
    """
    codes = np.searchsorted(rows.classes, rows.y)
    blocks = np.arange(len(codes)) if rows.blocks is None else rows.blocks
    table = []
    for region in np.unique(rows.regions):
        own, others = np.flatnonzero(rows.regions == region), np.flatnonzero((rows.regions != region) & rows.tests)
        own = own[rows.tests[own]]
        if len(own) < 2 * MIN_ROWS or len(np.unique(blocks[own])) < 2 or not len(others):
            continue
        split = GroupShuffleSplit(1, test_size=0.5, random_state=seed).split(own, groups=blocks[own])
        local, test = (own[part] for part in next(split))
        if min(len(local), len(test)) < MIN_ROWS:
            continue
        line = {"region": str(region), "n": len(test), "n_local": len(local)}
        for name, part in (("local", local), ("elsewhere", others)):
            sets = ConformalSets().fit(proba[part], codes[part]).predict(proba[test], confidence=CONFIDENCE)
            held = sets[np.arange(len(test)), codes[test]]
            line[name] = {"coverage": float(held.mean()), "size": float(sets.sum(axis=1).mean())}
        table.append(line)
    return table


def far_rows(rows: Labelled, proba: np.ndarray, seed: int) -> list[dict]:
    """Rows of a region that are unlike all labels of the others: `region`, `n`, `far` (share), accuracies of both."""
    codes = np.searchsorted(rows.classes, rows.y)
    right = proba.argmax(axis=1) == codes
    table = []
    for region in np.unique(rows.regions):
        train, test = rows.regions != region, (rows.regions == region) & rows.tests
        if not test.any():
            continue
        scaler = StandardScaler().fit(rows.X[train])
        near = LabelledNeighbourhood().fit(
            scaler.transform(rows.X[train]), None if rows.blocks is None else rows.blocks[train], seed
        )
        far = near.far(scaler.transform(rows.X[test]))
        accuracy = {name: float(right[test][part].mean()) if part.any() else math.nan
                    for name, part in (("accuracy_far", far), ("accuracy_near", ~far))}  # fmt: skip
        table.append({"region": str(region), "n": int(test.sum()), "far": float(far.mean())} | accuracy)
    return table


def efficiency(
    rows: Labelled, make_head: Callable[[], ClassifierMixin], seeds: int, budgets: Sequence[int], seed: int,
    left_out: dict,
) -> dict | None:  # fmt: skip
    """Learning curves of random, stratified and bandit choices; None and the reason in `left_out`."""
    blocks = np.arange(len(rows.y)) if rows.blocks is None else np.unique(rows.blocks, return_inverse=True)[1]
    pool, test = next(GroupShuffleSplit(1, test_size=1 / 3, random_state=seed).split(rows.X, groups=blocks))
    test = test[rows.tests[test]]
    budgets = [int(count) for count in budgets if count <= len(pool)]
    names, codes = np.unique(rows.y, return_inverse=True)
    if seeds < 1 or len(budgets) < 2 or len(np.unique(codes[pool])) < 2 or len(np.unique(codes[test])) < 2:
        left_out["label_efficiency"] = (
            "not asked for" if seeds < 1 else f"{len(pool)} labels in the pool are too few for the budgets"
        )
        return None
    several = len(np.unique(rows.regions)) > 1
    strategies = {"random": lambda number: RandomSampling(seed=number)}
    if several:
        strategies["equal numbers a region"] = lambda number: StratifiedRandomSampling(seed=number)
    strategies["bandit"] = lambda number: CoverageBandit(head=make_head(), seed=number)
    common = {"pool": pool, "test": test, "budgets": budgets, "seeds": range(seeds), "regions": rows.regions}
    records = replay(rows.X, codes, strategies, head=make_head(), **common)
    for name, X in rows.others.items():
        chance = {f"{name}, random": lambda number: RandomSampling(seed=number)}
        records += replay(X, codes, chance, head=make_head(), **common)
    whole = score(codes[test], fit_predict(make_head, rows.X, codes, blocks, pool, test, len(names)), range(len(names)))
    metrics = ("macro_f1", "worst_region_accuracy") if several else ("macro_f1",)
    return {
        "pool": len(pool), "test": len(test), "all_labels": whole, "target": TARGET * whole["macro_f1"],
        "curves": {metric: learning_curves(records, metric) for metric in metrics},
        "areas": {metric: areas(records, metric) for metric in metrics},
        "differences": {metric: differences(records, "bandit", metric) for metric in metrics},
        "labels_to_reach": labels_to_reach(records, "macro_f1", TARGET * whole["macro_f1"]), "records": records,
    }  # fmt: skip


__all__ = [
    "CONFIDENCE", "Labelled", "account", "efficiency", "far_rows", "few_local_labels", "neighbours", "sets_of_classes",
]  # fmt: skip
