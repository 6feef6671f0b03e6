"""How far labels go: the records of `croplem_hf.active.replay` as curves, areas, and labels needed for a target.

A record is a dict of `strategy`, `seed`, `n_labels` and metrics. Intervals are over seeds, by Student's t, and say how
sure the mean over draws of labels is on this pool and this test, not how another region would come out.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from ..active.simulate import compare, curves
from ..errors import DataError
from .fairness import LEVEL


def learning_curves(records: Sequence[dict], metric: str) -> dict[str, list[dict]]:
    """For every strategy a list of `n_labels`, `mean`, `low`, `high`, `seeds`; the bounds are NaN for a single seed.

    Raises:
        DataError: no records, or none of that metric.
    """
    lines = {}
    for strategy in _strategies(records, metric):
        own = [record for record in records if record["strategy"] == strategy]
        lines[strategy] = [
            {"n_labels": count} | mean_interval([r[metric] for r in own if r["n_labels"] == count])
            for count in sorted({record["n_labels"] for record in own})
        ]
    return lines


def areas(records: Sequence[dict], metric: str) -> dict[str, dict[str, dict]]:
    """Area under each learning curve over log(labels), as a mean height.

    Returns:
        For every strategy and for `whole`, `low` and `high` (the halves below and above the geometric mean of the
        budgets): `mean`, `low`, `high`, `seeds`.
    """
    found = {}
    for strategy in _strategies(records, metric):
        each = curves(records, strategy, metric)
        found[strategy] = {
            part: mean_interval([area[part] for area in each.values()]) for part in ("whole", "low", "high")
        }
    return found


def differences(records: Sequence[dict], strategy: str, metric: str) -> list[dict]:
    """Difference in area between one strategy and each other one, paired by seed.

    Returns:
        Dicts of `baseline`, `mean`, `low`, `high` (a bootstrap over seeds) and `seeds`.
    """
    found = []
    for baseline in _strategies(records, metric):
        if baseline != strategy:
            whole = next(d for d in compare(records, strategy, baseline, metric) if d.part == "whole")
            bounds = {"mean": whole.mean, "low": whole.lower, "high": whole.upper}
            found.append({"baseline": baseline} | bounds | {"seeds": whole.seeds})
    return found


def labels_to_reach(records: Sequence[dict], metric: str, target: float) -> dict[str, dict]:
    """The first budget at which a strategy reaches a target.

    A seed that never does is censored: it counts as more than the last budget, and is not dropped.

    Args:
        records: see the module.
        metric: name of the metric, more being better.
        target: value to reach.

    Returns:
        For every strategy `seeds`, `reached` (how many of them), `limit` (the last budget), and the `median`, `least`
        and `most` number of labels over seeds, None where that lies beyond the limit.
    """
    table = {}
    for strategy in _strategies(records, metric):
        own = [record for record in records if record["strategy"] == strategy]
        needed = []
        for seed in sorted({record["seed"] for record in own}):
            good = [r["n_labels"] for r in own if r["seed"] == seed and r[metric] >= target]
            needed.append(min(good, default=np.inf))
        # The upper of the two middle ones: half of an infinite number of labels is none.
        ordered = [int(count) if np.isfinite(count) else None for count in sorted(needed)]
        table[strategy] = {
            "seeds": len(needed), "reached": int(np.isfinite(needed).sum()),
            "limit": max(record["n_labels"] for record in own), "median": ordered[len(ordered) // 2],
            "least": ordered[0], "most": ordered[-1],
        }  # fmt: skip
    return table


def mean_interval(values: Sequence[float]) -> dict:
    """`mean` of values with `low` and `high`, its 95 % interval by Student's t (NaN for a single one), and `seeds`."""
    values = np.asarray(values, float)
    mean, count = float(values.mean()), len(values)
    half = float("nan")
    if count > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * values.std(ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": count}


def _strategies(records: Sequence[dict], metric: str) -> list[str]:
    """Names in the order in which they were replayed."""
    if not records:
        raise DataError("no records of a replay; `croplem_hf.active.replay` makes them")
    if any(metric not in record for record in records):
        raise DataError(f"the records have no metric {metric!r}; there are {', '.join(map(str, records[0]))}")
    return list(dict.fromkeys(record["strategy"] for record in records))


__all__ = ["areas", "differences", "labels_to_reach", "learning_curves", "mean_interval"]
