"""Replay of labelling on a pool whose labels are known: which strategy makes the better head with the same money.

    strategies = {"random": lambda seed: RandomSampling(seed=seed), "bandit": lambda seed: CoverageBandit(seed=seed)}
    records = replay(X, y, strategies, pool=pool, test=test, budgets=(10, 20, 50, 100), seeds=range(10))
    compare(records, "bandit", "random", "macro_f1")

Records are tidy: one dict for each strategy, seed and number of labels. Everything is paired by seed.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import f1_score
from tqdm import tqdm

from ..errors import DataError
from .strategies import MISSING, Strategy, fitted_head

METRICS = ("macro_f1", "accuracy", "worst_region_accuracy")
RESAMPLES = 2_000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean over seeds of strategy minus baseline, with a paired bootstrap interval of 95 % over the seeds.

    part is `whole`, `low` or `high`: the whole range of labels, or its half below or above the geometric mean.
    """

    metric: str
    part: str
    strategy: str
    baseline: str
    mean: float
    lower: float
    upper: float
    seeds: int


def replay(
    X: np.ndarray,
    y: np.ndarray,
    strategies: Mapping[str, Callable[[int], Strategy]],
    *,
    pool: np.ndarray,
    test: np.ndarray,
    budgets: Sequence[int] = (10, 20, 30, 50, 75, 100, 150, 200, 300, 400),
    seeds: Iterable[int] = range(10),
    regions: Sequence[str] | None = None,
    head: BaseEstimator | None = None,
    start: str = "own",
    jobs: int = 1,
    record_file: str | os.PathLike | None = None,
    progress: bool = False,
) -> list[dict]:
    """Buy labels with every strategy and seed, and test a head on rows that no strategy ever sees.

    Args:
        X: float (N, D), embeddings.
        y: int (N,), true class codes of all rows of `pool` and `test`.
        strategies: a factory for each name; it takes the seed and gives a fresh strategy. Regions are given to `query`.
        pool: int, rows that can be bought.
        test: int, rows to test on.
        budgets: numbers of labels at which a head is tested, rising; the steps between them are the batches.
        seeds: one replay for each.
        regions: name of the region of every row (N,).
        head: classifier to test with, cloned; `LogisticHead` if None. A factory gives a strategy its own.
        start: "own": strategies with a cold start choose their first batch, the others start from random rows;
            "random": all start from the same random rows. Random rows are the same for all strategies of a seed.
        jobs: processes; each replays one strategy with one seed at a time. Records do not depend on it.
        record_file: JSON lines, one for each strategy and seed as soon as it is done. Read where it exists, so that a
            replay that was stopped goes on; it must be of the same data, budgets, head and start. Strategies are
            known by their names alone: remove the file after changing one.
        progress: show a bar.

    Returns:
        One dict for each strategy, seed and budget: `strategy`, `seed`, `start`, `n_labels`, `macro_f1` (over the
        classes of the test rows), `accuracy`, `worst_region_accuracy`, `worst_region` (its name) and
        `seconds` (the query's). A head of one class predicts that class.

    Raises:
        DataError: pool and test overlap, rows without a label, budgets that do not rise or exceed the pool, or a record
            file of another replay.
    """
    pool, test = np.asarray(pool), np.asarray(test)
    seeds = list(seeds)
    _check(X, y, pool, test, budgets, seeds, start)
    names = np.full(len(X), "all") if regions is None else np.asarray(regions, object)
    X_pool, truth = np.ascontiguousarray(X[pool], np.float32), np.asarray(y[pool], np.int64)
    tests = X[test], np.asarray(y)[test], names[test]
    done: dict[tuple[str, int], list[dict]] = {}
    if record_file is not None:
        done = _begin_file(Path(record_file), _fingerprint(X_pool, truth, names[pool], *tests, budgets, start, head))
    tasks = [(name, int(seed)) for seed in seeds for name in strategies]
    open_tasks = [task for task in tasks if task not in done]
    work = (
        joblib.delayed(_replay_one)(
            name, seed, strategies[name], X_pool, truth, names[pool], tests, budgets, head, start
        )
        for name, seed in open_tasks
    )
    found = joblib.Parallel(jobs, return_as="generator_unordered")(work)
    for lines in tqdm(found, desc="replay", total=len(open_tasks), disable=not progress):
        done[lines[0]["strategy"], lines[0]["seed"]] = lines
        if record_file is not None:
            with open(record_file, "a") as handle:
                handle.write(json.dumps(lines) + "\n")
    return [line for task in tasks for line in done[task]]


def _replay_one(name, seed, make, X_pool, truth, regions, tests, budgets, head, start) -> list[dict]:
    """The records of one strategy with one seed."""
    strategy = make(seed)
    known, records = np.full(len(truth), MISSING, np.int64), []
    X_test, y_test, regions_test = tests
    for turn, batch in enumerate(np.diff([0, *budgets])):
        began = time.perf_counter()
        if turn == 0 and (start == "random" or not strategy.cold_start):
            rows = np.random.default_rng([seed, len(truth)]).choice(len(truth), batch, replace=False)
        else:
            rows = strategy.query(X_pool, known, batch_size=int(batch), regions=regions)
        seconds = time.perf_counter() - began
        known[rows] = truth[rows]
        fitted = fitted_head(head, X_pool, known)
        found = fitted.predict(X_test) if fitted is not None else np.full(len(y_test), known[rows[0]])
        records.append(
            {"strategy": name, "seed": seed, "start": start, "n_labels": int(budgets[turn])}
            | scores(y_test, found, regions_test)
            | {"seconds": seconds}
        )
    return records


def _fingerprint(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray) and part.dtype != object
        digest.update(np.ascontiguousarray(part).tobytes() if array else repr(_plain(part)).encode())
    return digest.hexdigest()


def _plain(part):
    return part.tolist() if isinstance(part, np.ndarray) else list(part) if isinstance(part, list | tuple) else part


def _begin_file(path: Path, fingerprint: str) -> dict[tuple[str, int], list[dict]]:
    """Finished records of a file, which is begun where there is none; a last line that was cut off is dropped.

    Raises:
        DataError: the file belongs to another replay, or is none.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"replay": fingerprint}) + "\n")
        return {}
    whole = path.read_text().rpartition("\n")[0]
    try:
        head, *lines = [json.loads(line) for line in whole.splitlines()]
        same = head["replay"] == fingerprint
        done = {(line[0]["strategy"], line[0]["seed"]): line for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: holds no records of a replay ({error}); give another name") from error
    if not same:
        raise DataError(f"{path}: holds records of another pool, test, budgets, head or start; give another name")
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(whole + "\n")
    os.replace(partial, path)
    return done


def scores(truth: np.ndarray, found: np.ndarray, regions: np.ndarray) -> dict:
    """Macro-F1 over the classes of `truth`, accuracy, and the accuracy and name of the worst region."""
    right = truth == found
    by_region = {str(name): float(right[regions == name].mean()) for name in np.unique(regions)}
    worst = min(by_region, key=by_region.get)
    return {
        "macro_f1": float(f1_score(truth, found, labels=np.unique(truth), average="macro", zero_division=0)),
        "accuracy": float(right.mean()),
        "worst_region_accuracy": by_region[worst],
        "worst_region": worst,
    }


def aulc(n_labels: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Area under a learning curve over log(labels), as a mean height: `whole`, and the `low` and `high` half apart.

    The halves meet at the geometric mean of the first and the last number of labels, where the curve is interpolated.
    """
    if len(n_labels) < 2 or len(n_labels) != len(values):
        raise DataError(f"an area needs two budgets and a value for each, found {len(n_labels)} and {len(values)}")
    order = np.argsort(n_labels)
    at, height = np.log(np.asarray(n_labels, float)[order]), np.asarray(values, float)[order]
    middle = (at[0] + at[-1]) / 2
    bounds = {"whole": (at[0], at[-1]), "low": (at[0], middle), "high": (middle, at[-1])}
    areas = {}
    for part, (left, right) in bounds.items():
        grid = np.concatenate([[left], at[(at > left) & (at < right)], [right]])
        areas[part] = float(np.trapezoid(np.interp(grid, at, height), grid) / (right - left))
    return areas


def curves(records: Sequence[Mapping], strategy: str, metric: str) -> dict[int, dict[str, float]]:
    """`aulc` of one strategy for every seed.

    Raises:
        DataError: no records of that strategy.
    """
    own = [record for record in records if record["strategy"] == strategy]
    if not own:
        found = sorted({record["strategy"] for record in records})
        raise DataError(f"no records of strategy {strategy!r}; there are {', '.join(found)}")
    areas = {}
    for seed in sorted({record["seed"] for record in own}):
        line = [record for record in own if record["seed"] == seed]
        areas[seed] = aulc([record["n_labels"] for record in line], [record[metric] for record in line])
    return areas


def compare(records: Sequence[Mapping], strategy: str, baseline: str, metric: str, seed: int = 0) -> list[Difference]:
    """Differences of `aulc` between two strategies, paired by seed: whole, low and high.

    The interval resamples seeds; with ten of them it is a little too narrow, and it says nothing of other pools.

    Raises:
        DataError: the two were not replayed with the same seeds.
    """
    mine, theirs = curves(records, strategy, metric), curves(records, baseline, metric)
    if mine.keys() != theirs.keys():
        raise DataError(f"{strategy!r} and {baseline!r} have different seeds; replay them together")
    draws = np.random.default_rng(seed).integers(len(mine), size=(RESAMPLES, len(mine)))
    differences = []
    for part in ("whole", "low", "high"):
        each = np.array([mine[number][part] - theirs[number][part] for number in mine])
        lower, upper = np.quantile(each[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        differences.append(
            Difference(metric, part, strategy, baseline, float(each.mean()), float(lower), float(upper), len(each))
        )
    return differences


def _check(X, y, pool, test, budgets, seeds, start) -> None:
    for name, rows in (("pool", pool), ("test", test)):
        if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu":
            raise DataError(f"{name} must be row numbers and not empty, found {rows.dtype} of shape {rows.shape}")
        if rows.min() < 0 or rows.max() >= len(X) or len(np.unique(rows)) < len(rows):
            raise DataError(f"{name} must name rows of X (0 to {len(X) - 1}), each once")
        unlabelled = rows[np.asarray(y)[rows] < 0]
        if len(unlabelled):
            raise DataError(f"row {unlabelled[0]} of {name} has no label; a replay needs all of them")
    both = np.intersect1d(pool, test)
    if len(both):
        raise DataError(f"row {both[0]} is in pool and test ({len(both)} such rows); a test row must not be bought")
    if len(budgets) == 0 or np.any(np.diff([0, *budgets]) < 1) or budgets[-1] > len(pool):
        raise DataError(f"budgets must rise and end within the pool of {len(pool)} rows, found {list(budgets)}")
    if not seeds:
        raise DataError("no seeds: give one at least")
    if start not in ("own", "random"):
        raise DataError(f"start is 'own' or 'random', found {start!r}")


__all__ = ["METRICS", "Difference", "aulc", "compare", "curves", "replay", "scores"]
