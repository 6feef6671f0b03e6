"""Which rows to label next: the interface that every strategy shares, and random sampling.

    rows = StratifiedRandomSampling(regions, seed=0).query(X, y, batch_size=50)

`X` are the embeddings of the whole pool, `y` its class codes with `MISSING` where there is no label. The manner is that
of scikit-activeml. A new strategy subclasses `Strategy` and writes `_choose`.
"""

import dataclasses
import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from sklearn.base import BaseEstimator, clone

from ..errors import DataError
from ..heads import LogisticHead

MISSING = -1
"""Class code of a row that has no label."""


@dataclasses.dataclass(frozen=True)
class Pool:
    """What a strategy sees in one query, checked.

    X: float32 (N, D). y: int64 (N,), `MISSING` where not labelled. candidates: int64 (C,), rows that may be chosen.
    batch_size: how many to choose, at most C. regions: names (R,), sorted; region: int64 (N,), number of its name.
    """

    X: np.ndarray
    y: np.ndarray
    candidates: np.ndarray
    batch_size: int
    regions: list[str]
    region: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """Rows that have a label, int64."""
        return np.flatnonzero(self.y != MISSING)


class Strategy(ABC):
    """Base of all strategies: checks the input, so that `_choose` only chooses.

    Args:
        regions: name of the region of every row (N,), or None for a single one.
        seed: of everything random; the same seed, state and input give the same rows.

    `cold_start` says that the strategy has a way of its own to choose a first batch, before there are labels.
    """

    cold_start = False

    def __init__(self, regions: Sequence[str] | None = None, seed: int = 0):
        self.regions = regions
        self.seed = seed

    def query(
        self,
        X: np.ndarray,
        y: np.ndarray,
        candidates: np.ndarray | None = None,
        batch_size: int = 1,
        regions: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Choose the rows to label next; the input is left as it is.

        Args:
            X: float (N, D), embeddings of the whole pool, labelled or not.
            y: int (N,), class codes from 0 on, `MISSING` where not labelled.
            candidates: int, numbers of the rows that may be chosen; all rows without a label where None. Rows that were
                handed out and wait for their label are to be left out (`CoverageBandit` remembers its own).
            batch_size: how many.
            regions: as at construction, which they replace for this query.

        Returns:
            int64 (batch_size,), different row numbers, the best first where the strategy has an order.

        Raises:
            DataError: arrays that do not fit each other, a value that is not finite, candidates that are labelled,
                doubled or outside the pool, or fewer candidates than `batch_size`.
        """
        pool = self._check(X, y, candidates, batch_size, self.regions if regions is None else regions)
        chosen = self._choose(pool, np.random.default_rng([self.seed, self._turn(pool)]))
        return np.asarray(chosen, np.int64)

    @abstractmethod
    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        """Rows to label, out of `pool.candidates`, `pool.batch_size` of them."""

    def _recognise(self, X: np.ndarray, regions: list[str]) -> None:  # noqa: B027 (a hook: most strategies remember nothing)
        """Refuse a pool that does not go with what the strategy remembers."""

    def _turn(self, pool: Pool) -> int:
        """What tells the random numbers of one query from those of the next."""
        return len(pool.labelled)

    def _open_rows(self, y: np.ndarray) -> np.ndarray:
        """Rows that may be chosen where the caller does not say."""
        return np.flatnonzero(y == MISSING)

    def _check(self, X, y, candidates, batch_size, regions) -> Pool:
        X, y = np.asarray(X), np.asarray(y)
        if X.ndim != 2 or X.dtype.kind not in "fiu" or 0 in X.shape:
            raise DataError(f"X must be numbers (rows, dimensions) and not empty, found {X.dtype} of shape {X.shape}")
        if y.shape != X.shape[:1] or y.dtype.kind not in "iu":
            raise DataError(
                f"y must hold one integer class code for each of the {len(X)} rows of X ({MISSING} if not labelled), "
                f"found {y.dtype} of shape {y.shape}"
            )
        X, y = X.astype(np.float32, copy=False), y.astype(np.int64, copy=False)
        # Sums find the few suspects without a second array of the size of X; as a product they use all threads.
        with np.errstate(over="ignore", invalid="ignore"):
            suspects = np.flatnonzero(~np.isfinite(X @ np.ones(X.shape[1], np.float32)))
        bad = suspects[~np.isfinite(X[suspects]).all(axis=1)]
        if len(bad):
            raise DataError(f"row {bad[0]} of X is not finite ({len(bad)} such rows); leave it out of the pool")
        if y.min() < MISSING:
            row = int(y.argmin())
            raise DataError(f"row {row} of y is {y[row]}; class codes start at 0, and {MISSING} means not labelled")
        names, region = _region_codes(regions, len(X))
        self._recognise(X, names)
        candidates = self._open_rows(y) if candidates is None else _check_candidates(candidates, y)
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise DataError(f"batch_size must be a whole number from 1 on, found {batch_size!r}")
        if batch_size > len(candidates):
            raise DataError(f"asked for {batch_size} rows, but only {len(candidates)} may be chosen; ask for less")
        return Pool(X, y, candidates, int(batch_size), names, region)


class RandomSampling(Strategy):
    """Rows uniformly at random: what every other strategy has to beat."""

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(pool.candidates, pool.batch_size, replace=False)


class StratifiedRandomSampling(Strategy):
    """Random rows, so that labels in all regions are equal in number as far as the candidates last.

    Labels that are there count, so that small batches add up to equal numbers too. This is the baseline for the worst
    region: with a few hundred labels it is hard to beat there.
    """

    cold_start = True

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        have = np.bincount(pool.region[pool.labelled], minlength=len(pool.regions))
        return stratified_rows(rng.permutation(pool.candidates), pool.region, have, pool.batch_size, rng)


def fitted_head(head: BaseEstimator | None, X: np.ndarray, y: np.ndarray) -> BaseEstimator | None:
    """A fresh copy of `head` (`LogisticHead` if None) fitted to the labelled rows; None below two classes."""
    rows = np.flatnonzero(y != MISSING)
    if len(np.unique(y[rows])) < 2:
        return None
    return (LogisticHead() if head is None else clone(head)).fit(X[rows], y[rows])


def stratified_rows(
    rows: np.ndarray, region: np.ndarray, have: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """The first `count` of `rows`, so that `have` (R,) plus those taken are equal over regions as far as rows last.

    Args:
        rows: int64 (C,), in the order in which each region gives them.
        region: int64 (N,), region number of every row of the pool.
        have: int (R,), what each region has already.
        count: how many, at most C.
        rng: for the order of regions that have equally many.
    """
    codes = region[rows]
    queues = [rows[codes == number] for number in range(len(have))]
    heap = [(int(have[number]), int(order), number, 0) for number, order in enumerate(rng.permutation(len(have)))]
    heap = [entry for entry in heap if len(queues[entry[2]])]
    heapq.heapify(heap)
    taken = np.empty(count, np.int64)
    for place in range(count):
        total, order, number, used = heapq.heappop(heap)
        taken[place] = queues[number][used]
        if used + 1 < len(queues[number]):
            heapq.heappush(heap, (total + 1, order, number, used + 1))
    return taken


def _region_codes(regions: Sequence[str] | None, count: int) -> tuple[list[str], np.ndarray]:
    """Names (R,), sorted, and the number of its name for every row (count,)."""
    if regions is None:
        return ["all"], np.zeros(count, np.int64)
    if len(regions) != count:
        raise DataError(f"regions name {len(regions)} rows, X has {count}; give one name for each row")
    try:
        # Ten times as fast as numpy's `unique` on a million texts.
        column = pa.array(regions, pa.string()).dictionary_encode()
        nameless = column.null_count > 0
    except (pa.ArrowException, TypeError):
        nameless = True
    if nameless:
        names = list(regions)
        row = next(row for row, name in enumerate(names) if not isinstance(name, str))
        raise DataError(f"the region of row {row} is {names[row]!r}; regions are names, for instance 'unknown'")
    found = np.array(column.dictionary.to_pylist())
    unique, rank = np.unique(found, return_inverse=True)
    return unique.tolist(), rank[column.indices.to_numpy()].astype(np.int64)


def _check_candidates(candidates: np.ndarray, y: np.ndarray) -> np.ndarray:
    candidates = np.asarray(candidates)
    if candidates.ndim != 1 or (len(candidates) and candidates.dtype.kind not in "iu"):
        raise DataError(f"candidates must be row numbers, found {candidates.dtype} of shape {candidates.shape}")
    candidates = candidates.astype(np.int64)
    outside = candidates[(candidates < 0) | (candidates >= len(y))]
    if len(outside):
        raise DataError(f"candidate {outside[0]} is outside the pool of {len(y)} rows")
    if len(np.unique(candidates)) < len(candidates):
        rows, times = np.unique(candidates, return_counts=True)
        raise DataError(f"candidate {rows[times > 1][0]} is there twice; name each row once")
    labelled = candidates[y[candidates] != MISSING]
    if len(labelled):
        raise DataError(f"candidate {labelled[0]} has a label already; leave labelled rows out ({len(labelled)} such)")
    return candidates


__all__ = [
    "MISSING",
    "Pool",
    "RandomSampling",
    "StratifiedRandomSampling",
    "Strategy",
    "fitted_head",
    "stratified_rows",
]
