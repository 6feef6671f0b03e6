"""Scores of predictions, overall and for every region, with intervals over spatial blocks.

Intervals resample whole blocks, because neighbours share their errors, by the Bayesian bootstrap (Rubin 1981): a draw
gives every block a random weight above zero, so that no draw lacks a rare class. fairlearn's `MetricFrame` resamples
rows only, so the few sums that are needed stand here in plain numpy.
"""

from collections.abc import Sequence

import numpy as np

from ..errors import DataError

METRICS = ("auc", "balanced_accuracy", "macro_f1", "accuracy")
LEVEL = 0.95
BOOTSTRAP = 1_000
PIECE = 4_000_000
MIN_BLOCKS = 5
"""Fewer blocks than this give no interval."""
MIN_ROWS = 30
"""Regions with fewer tested rows are listed, and left out of the mean and the worst."""


def score(
    y: Sequence, proba: np.ndarray, classes: Sequence | None = None, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Scores of predicted probabilities.

    Args:
        y: (n,) true classes.
        proba: float (n, K).
        classes: K, what the columns stand for; the sorted classes of `y` where None.
        weights: float (n,), one over the inclusion probability; all alike where None.

    Returns:
        `n`; `auc`: area under the ROC curve of two classes, the mean of one against the rest over the classes that
        occur for more, NaN where `y` holds one class; `balanced_accuracy`: mean recall of the classes that occur;
        `macro_f1`: over the classes that occur or are predicted; `accuracy`. As scikit-learn defines them.
    """
    codes, proba = _encode(y, proba, classes)
    weights = _weights(weights, len(codes))
    values = _from_counts(*_counts(codes, proba.argmax(axis=1), proba.shape[1], weights))
    return {"n": len(codes), "auc": float(_auc(codes, proba, weights[None])[0])} | {
        name: float(value) for name, value in values.items()
    }


def score_intervals(
    y: Sequence,
    proba: np.ndarray,
    blocks: Sequence | None = None,
    *,
    classes: Sequence | None = None,
    weights: np.ndarray | None = None,
    n_bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> dict:
    """`score` with the middle 95 % of what it is over resampled blocks.

    Args:
        y, proba, classes, weights: as in `score`.
        blocks: (n,) spatial block of each row; each row its own where None.
        n_bootstrap: how often to resample; 0 for no intervals.
        seed: of the resampling.

    Returns:
        `n`, `blocks` (their number), and for each metric a dict of `value`, `low`, `high`; the bounds are NaN below
        `MIN_BLOCKS` blocks. The interval says nothing of other places and years.
    """
    codes, proba = _encode(y, proba, classes)
    found, _ = _intervals(codes, proba, blocks, weights, n_bootstrap, seed)
    return found


def _intervals(
    codes: np.ndarray, proba: np.ndarray, blocks: Sequence | None, weights: np.ndarray | None, n_bootstrap: int,
    seed: int | Sequence[int],
) -> tuple[dict, dict[str, np.ndarray]]:  # fmt: skip
    """What `score_intervals` gives, and each metric over the resampled blocks; one NaN below `MIN_BLOCKS` blocks."""
    own = _weights(weights, len(codes))
    values = score(codes, proba, range(proba.shape[1]), own)
    block = np.arange(len(codes)) if blocks is None else np.unique(np.asarray(blocks), return_inverse=True)[1]
    count = int(block.max()) + 1
    pieces: dict[str, list] = {name: [] for name in METRICS}
    if n_bootstrap and count >= MIN_BLOCKS:
        rng, found, width = np.random.default_rng(seed), proba.argmax(axis=1), proba.shape[1]
        parts = [np.zeros((count, width)) for _ in range(3)]
        np.add.at(parts[0], (block, codes), own * (found == codes))
        np.add.at(parts[1], (block, codes), own)
        np.add.at(parts[2], (block, found), own)
        # In pieces, so that memory stays small with many rows.
        step = max(1, PIECE // len(codes))
        for start in range(0, n_bootstrap, step):
            drawn = rng.dirichlet(np.ones(count), size=min(step, n_bootstrap - start))
            areas = _auc(codes, proba, drawn[:, block] * own)
            drawn = _from_counts(*(drawn @ part for part in parts)) | {"auc": areas}
            for name in METRICS:
                pieces[name].append(drawn[name])
    draws = {name: np.concatenate(some) if some else np.array([np.nan]) for name, some in pieces.items()}
    return {"n": values["n"], "blocks": count} | {
        name: {"value": values[name]} | _bounds(draws[name]) for name in METRICS
    }, draws


def _bounds(draws: np.ndarray) -> dict[str, float]:
    return dict(zip(("low", "high"), interval(draws), strict=True))


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Bounds of the middle 95 % of the draws that are not NaN."""
    draws = draws[~np.isnan(draws)]
    if len(draws) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def region_scores(
    y: Sequence,
    proba: np.ndarray,
    regions: Sequence[str],
    blocks: Sequence | None = None,
    *,
    classes: Sequence | None = None,
    weights: np.ndarray | None = None,
    n_bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> list[dict]:
    """`score_intervals` of every region, sorted by name: dicts with `region` and what that function gives.

    Args:
        y: (n,) true classes.
        proba: float (n, K), predictions for rows that were not in training.
        regions: (n,) names.
        blocks, classes, weights, n_bootstrap, seed: as there.
    """
    common = {"classes": classes, "weights": weights, "n_bootstrap": n_bootstrap, "seed": seed}
    return region_spread(y, proba, regions, blocks, **common)[0]


def region_spread(
    y: Sequence,
    proba: np.ndarray,
    regions: Sequence[str],
    blocks: Sequence | None = None,
    *,
    classes: Sequence | None = None,
    weights: np.ndarray | None = None,
    n_bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> tuple[list[dict], dict[str, dict]]:
    """`region_scores`, and for each metric the `spread` of it with an interval of the mean over regions.

    Args:
        y, proba, regions, blocks, classes, weights, n_bootstrap, seed: as in `region_scores`.

    Returns:
        The rows, and by metric what `spread` gives with `low` and `high` of `mean`: blocks are resampled within each
        region, the regions being those that there are. NaN where a region that counts has too few blocks.
    """
    codes, proba = _encode(y, proba, classes)
    regions, rows, draws = np.asarray(regions), [], []
    for number, region in enumerate(np.unique(regions)):
        own = np.flatnonzero(regions == region)
        line, drawn = _intervals(
            codes[own], proba[own], None if blocks is None else np.asarray(blocks)[own],
            None if weights is None else weights[own], n_bootstrap, [seed, number],
        )  # fmt: skip
        rows.append({"region": str(region)} | line)
        draws.append(drawn)
    spreads = {}
    for metric in METRICS:
        own = [drawn[metric] for row, drawn in zip(rows, draws, strict=True) if _judged(row, metric)]
        few = len({len(drawn) for drawn in own}) != 1
        spreads[metric] = spread(rows, metric) | _bounds(np.array([np.nan]) if few else np.mean(own, axis=0))
    return rows, spreads


def paired_gap(
    y: Sequence,
    proba: np.ndarray,
    other: np.ndarray,
    regions: Sequence[str],
    blocks: Sequence | None = None,
    *,
    classes: Sequence | None = None,
    weights: np.ndarray | None = None,
    n_bootstrap: int = BOOTSTRAP,
    seed: int = 0,
) -> dict:
    """How much better one set of predictions ranks than another: mean over regions of the difference in AUC.

    Args:
        y, proba, regions, blocks, classes, weights: as in `region_scores`.
        other: float (n, K), the predictions to compare with, for the same rows.
        n_bootstrap, seed: of the interval, over blocks that both share.

    Returns:
        `value`, `low`, `high`; NaN where no region of `MIN_ROWS` rows has two classes, bounds also below `MIN_BLOCKS`.
    """
    codes, proba = _encode(y, proba, classes)
    _, other = _encode(y, other, classes)
    own = _weights(weights, len(codes))
    regions, rng = np.asarray(regions), np.random.default_rng(seed)
    values, draws, few = [], [], False
    for region in np.unique(regions):
        rows = np.flatnonzero(regions == region)
        if len(rows) < MIN_ROWS or len(np.unique(codes[rows])) < 2:
            continue
        block = np.arange(len(rows)) if blocks is None else np.unique(np.asarray(blocks)[rows], return_inverse=True)[1]
        few |= block.max() + 1 < MIN_BLOCKS
        # One line of equal weights, then the draws.
        drawn = [np.ones((1, block.max() + 1)), rng.dirichlet(np.ones(block.max() + 1), size=n_bootstrap)]
        step = max(1, PIECE // len(rows))
        drawn = np.concatenate(drawn)
        parts = [drawn[start : start + step][:, block] * own[rows] for start in range(0, len(drawn), step)]
        gaps = np.concatenate(
            [_auc(codes[rows], proba[rows], part) - _auc(codes[rows], other[rows], part) for part in parts]
        )
        values.append(gaps[0])
        draws.append(gaps[1:])
    if not values:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = (float("nan"),) * 2 if few or not n_bootstrap else interval(np.mean(draws, axis=0))
    return {"value": float(np.mean(values)), "low": low, "high": high}


def spread(rows: Sequence[dict], metric: str) -> dict:
    """Mean, worst and spread of one metric over regions.

    Args:
        rows: what `region_scores` gives.
        metric: one of `METRICS`.

    Returns:
        `regions` (how many were judged: `MIN_ROWS` rows, and a value), `mean` (each region counts once), `worst`,
        `worst_region`, `best`, `best_region`, `gap` (best minus worst), `deviation` (standard deviation).
    """
    judged = [row for row in rows if _judged(row, metric)]
    if not judged:
        return {"regions": 0}
    values = np.array([row[metric]["value"] for row in judged])
    worst, best = int(values.argmin()), int(values.argmax())
    return {
        "regions": len(judged), "mean": float(values.mean()),
        "worst": float(values[worst]), "worst_region": judged[worst]["region"],
        "best": float(values[best]), "best_region": judged[best]["region"],
        "gap": float(values[best] - values[worst]), "deviation": float(values.std()),
    }  # fmt: skip


def _judged(row: dict, metric: str) -> bool:
    return row["n"] >= MIN_ROWS and not np.isnan(row[metric]["value"])


def worst_region(
    y: Sequence,
    proba: np.ndarray,
    regions: Sequence[str],
    blocks: Sequence | None = None,
    *,
    classes: Sequence | None = None,
    weights: np.ndarray | None = None,
    metric: str = "balanced_accuracy",
    n_draws: int = BOOTSTRAP,
    seed: int = 0,
) -> dict:
    """The worst region's score at equal test size, with an interval.

    The smallest of several noisy scores is too small, and the more so the smaller the tests. Here every region gives as
    many rows as the smallest one has, from blocks drawn with replacement, and the worst of each draw is kept.

    Args:
        y, proba, regions, blocks, classes, weights: as in `region_scores`.
        metric: one of `METRICS` except auc.
        n_draws: how often to draw.
        seed: of the draws.

    Returns:
        `value` (mean over draws), `low`, `high`, `size` (rows of each region), `regions` (how many had `MIN_ROWS`).
    """
    codes, proba = _encode(y, proba, classes)
    regions, width, own = np.asarray(regions), proba.shape[1], _weights(weights, len(codes))
    found = proba.argmax(axis=1)
    rows_of = [np.flatnonzero(regions == region) for region in np.unique(regions)]
    rows_of = [rows for rows in rows_of if len(rows) >= MIN_ROWS]
    if not rows_of:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "size": 0, "regions": 0}
    size = min(map(len, rows_of))
    blocks_of = []
    for rows in rows_of:
        block = np.arange(len(rows)) if blocks is None else np.unique(np.asarray(blocks)[rows], return_inverse=True)[1]
        blocks_of.append(np.split(rows[np.argsort(block, kind="stable")], np.cumsum(np.bincount(block))[:-1]))
    rng = np.random.default_rng(seed)
    worst = np.empty(n_draws)
    for draw in range(n_draws):
        values = []
        for groups in blocks_of:
            drawn = [groups[number] for number in rng.integers(len(groups), size=size)]
            enough = int(np.searchsorted(np.cumsum([len(rows) for rows in drawn]), size)) + 1
            rows = np.concatenate(drawn[:enough])[:size]
            values.append(float(_from_counts(*_counts(codes[rows], found[rows], width, own[rows]))[metric]))
        worst[draw] = min(values)
    low, high = interval(worst)
    return {"value": float(worst.mean()), "low": low, "high": high, "size": size, "regions": len(rows_of)}


def class_scores(
    y: Sequence, proba: np.ndarray, classes: Sequence | None = None, weights: np.ndarray | None = None
) -> list[dict]:
    """For each class: `class`, `n` (true rows), `predicted` (rows), `recall` and `precision` (NaN without rows).

    Args:
        y, proba, classes, weights: as in `score`; weights count in the two ratios.
    """
    names = np.unique(np.asarray(y)) if classes is None else np.asarray(classes)
    codes, proba = _encode(y, proba, names)
    found = proba.argmax(axis=1)
    right, true, predicted = _counts(codes, found, len(names), weights)
    _, rows, told = _counts(codes, found, len(names))
    return [
        {
            "class": str(name), "n": int(rows[k]), "predicted": int(told[k]),
            "recall": float(_ratio(right, true)[k]), "precision": float(_ratio(right, predicted)[k]),
        }
        for k, name in enumerate(names)
    ]  # fmt: skip


def _encode(y: Sequence, proba: np.ndarray, classes: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    y, proba = np.asarray(y), np.asarray(proba, float)
    names = np.unique(y) if classes is None else np.asarray(classes)
    if proba.shape != (len(y), len(names)) or len(y) == 0:
        raise DataError(f"{len(y)} true classes of {len(names)} kinds do not fit probabilities of shape {proba.shape}")
    if np.isnan(proba).any():
        raise DataError(f"row {int(np.isnan(proba).any(axis=1).argmax())} has no prediction; leave it out")
    order = np.argsort(names)
    places = order[np.minimum(np.searchsorted(names[order], y), len(names) - 1)]
    if (names[places] != y).any():
        unknown = y[names[places] != y].tolist()[0]
        raise DataError(f"class {unknown!r} has no column among the probabilities")
    return places, proba


def _counts(
    codes: np.ndarray, found: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each class, float (K,): rows found right, true rows, predicted rows; or the sums of their weights."""
    weights = _weights(weights, len(codes))
    return tuple(
        np.bincount(some, own, minlength=classes)
        for some, own in ((codes, weights * (found == codes)), (codes, weights), (found, weights))
    )


def _weights(weights: np.ndarray | None, count: int) -> np.ndarray:
    weights = np.ones(count) if weights is None else np.asarray(weights, float)
    if weights.shape != (count,) or not (weights > 0).all():
        raise DataError(f"weights must be {count} numbers above 0, found {weights.shape}")
    return weights


def _from_counts(right: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of counts (..., K)."""
    return {
        "balanced_accuracy": _mean(_ratio(right, true)),
        "macro_f1": _mean(_ratio(2 * right, true + predicted)),
        "accuracy": _ratio(right.sum(axis=-1), true.sum(axis=-1)),
    }


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values that are not NaN."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def _auc(codes: np.ndarray, proba: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for rows weighted by each line of weights (B, n) -> (B,)."""
    columns = [1] if proba.shape[1] == 2 else range(proba.shape[1])
    areas = []
    for k in columns:
        order = np.argsort(proba[:, k], kind="stable")
        ordered = proba[order, k]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        positive = codes[order] == k
        above = np.add.reduceat(weights[:, order] * positive, starts, axis=1)
        below = np.add.reduceat(weights[:, order] * ~positive, starts, axis=1)
        # Equal scores count half (Mann-Whitney).
        pairs = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        areas.append(_ratio(pairs, above.sum(axis=1) * below.sum(axis=1)))
    return _mean(np.stack(areas, axis=-1))


__all__ = [
    "METRICS", "class_scores", "interval", "paired_gap", "region_scores", "region_spread", "score", "score_intervals",
    "spread", "worst_region",
]  # fmt: skip
