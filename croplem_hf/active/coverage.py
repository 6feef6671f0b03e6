"""What a batch covers: distances between embeddings, landmarks that stand for a pool, and greedy coverage of them."""

from collections.abc import Callable

import faiss
import numpy as np

from ..errors import DataError

LANDMARKS = 2_000
LANDMARKS_PER_REGION = 10
NEIGHBOURS = 10
MEAN_ROWS = 100_000
WEIGHTS = (0.2, 5.0)


def region_weights(share: np.ndarray, rho: float) -> np.ndarray:
    """Weights ~ share ** -rho of regions with `share` (R,) of the pool, mean 1 over the pool, clipped to [0.2, 5]."""
    raw = share**-rho
    return np.clip(raw / np.sum(share * raw), *WEIGHTS)


def lazy_greedy(
    kernel: np.ndarray,
    covered: np.ndarray,
    weight: np.ndarray,
    count: int,
    price: Callable[[list[int]], np.ndarray] | None = None,
    budget: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates that together cover most, one after the other (Minoux 1978: gains only fall, so old ones are bounds).

    Args:
        kernel: float (C, M), how much candidate c covers landmark m, 0 to 1.
        covered: float (M,), how much of each landmark is covered already.
        weight: float (M,), value of each landmark, not negative.
        count: how many, at most C.
        price: gives the prices (C,) after what was chosen so far; the gain for the money then decides (Leskovec et al.
            2007). All cost 1 where None.
        budget: the prices of the chosen add up to this at most.

    Returns:
        int64 (n,), the candidates in order; float64 (n, M), what each newly covers; and float64 (n,), its price. n is
        `count`, or less where the budget ends before.
    """
    covered, spent = covered.astype(np.float64), 0.0
    bounds = _first_gains(kernel, covered, weight)
    seen = np.zeros(len(kernel), int)
    chosen, gained, paid = [], [], []
    left = np.ones(len(kernel), bool)
    while len(chosen) < count:
        cost = np.ones(len(kernel)) if price is None else price(chosen)
        able = left if budget is None else left & (spent + cost <= budget)
        if not able.any():
            break
        worth = np.where(able, bounds / cost, -np.inf)
        while True:
            number = int(worth.argmax())
            if seen[number] == len(chosen):
                break
            bounds[number] = np.maximum(kernel[number] - covered, 0) @ weight
            seen[number], worth[number] = len(chosen), bounds[number] / cost[number]
        new = np.maximum(kernel[number] - covered, 0)
        chosen.append(number)
        gained.append(new)
        paid.append(cost[number])
        spent += cost[number]
        left[number] = False
        covered = covered + new
    return np.array(chosen, np.int64), np.array(gained).reshape(len(chosen), len(covered)), np.array(paid)


def _first_gains(kernel: np.ndarray, covered: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Gain of each candidate alone, some rows at a time."""
    covered, weight = covered.astype(kernel.dtype), weight.astype(kernel.dtype)
    parts = [np.maximum(kernel[at : at + 256] - covered, 0) @ weight for at in range(0, len(kernel), 256)]
    # Rounding must not make a bound of a gain too low.
    return np.concatenate(parts).astype(np.float64) * (1 + 8 * np.finfo(kernel.dtype).eps * np.sqrt(len(covered)))


def mean_row(X: np.ndarray) -> np.ndarray:
    """Mean of rows (N, D), float32 (D,), over evenly spaced ones where there are more than 100,000."""
    return X[:: -(-len(X) // MEAN_ROWS)].mean(axis=0, dtype=np.float64).astype(np.float32)


class Space:
    """Centred embeddings of length one, made for the rows that are asked for, and distances between them.

    Rows of another place, `beyond` (B, D), are numbered from N on; both then count alike for the centre.
    """

    def __init__(self, X: np.ndarray, landmarks: np.ndarray | None = None, beyond: np.ndarray | None = None):
        self.X, self.beyond = X, beyond
        self.mean = mean_row(X)
        if beyond is not None:
            self.mean = (self.mean + mean_row(beyond)) / 2
        if landmarks is not None:
            self.landmarks = landmarks
            self.marks = self.vectors(landmarks)
            self.ranks = np.sort(self._closeness(landmarks))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings as they are, float32 (n, D)."""
        there = rows >= len(self.X)
        if not there.any():
            return self.X[rows]
        found = np.empty((len(rows), self.X.shape[1]), np.float32)
        found[~there], found[there] = self.X[rows[~there]], self.beyond[rows[there] - len(self.X)]
        return found

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 (n, D); a row that equals the mean stays zero."""
        vectors = self.take(rows) - self.mean
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1))

    def nearest(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Distance of each row to the nearest of `others`, float64 (n,), 0 to 2."""
        squares, _ = faiss.knn(self.vectors(rows), self.vectors(others), 1)
        return np.sqrt(np.maximum(squares[:, 0], 0).astype(np.float64))

    def closest(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Those of `others` that are nearest to any of the rows, int64, rising."""
        return np.unique(others[faiss.knn(self.vectors(rows), self.vectors(others), 1)[1]])

    def squares(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Squared distances, float32 (n, m)."""
        return np.maximum(faiss.pairwise_distances(self.vectors(rows), self.vectors(others)), 0)

    def density(self, rows: np.ndarray) -> np.ndarray:
        """Share of landmarks in sparser surroundings than a row, float64 (n,), 0 to 1."""
        return np.searchsorted(self.ranks, self._closeness(rows)) / len(self.ranks)

    def _closeness(self, rows: np.ndarray) -> np.ndarray:
        """Minus the mean squared distance to the nearest landmarks, not counting the row itself."""
        count = min(NEIGHBOURS + 1, len(self.landmarks))
        squares, numbers = faiss.knn(self.vectors(rows), self.marks, count)
        own = self.landmarks[numbers] == rows[:, None]
        # Where the row itself is not among them, the last one goes, so that all means are over equally many.
        own[:, -1] |= ~own.any(axis=1)
        return -np.sum(np.where(own, 0, squares), axis=1) / max(count - 1, 1)


def check_target(target: np.ndarray, dimensions: int) -> np.ndarray:
    """Embeddings of a place to be predicted, as an array.

    Raises:
        DataError: no rows, other dimensions than the pool, or values that are not finite.
    """
    target = np.asarray(target)
    if target.ndim != 2 or target.dtype.kind not in "fiu" or not len(target) or target.shape[1] != dimensions:
        raise DataError(f"target must be numbers (rows, {dimensions}), found {target.dtype} of shape {target.shape}")
    bad = np.flatnonzero(~np.isfinite(target).all(axis=1))
    if len(bad):
        raise DataError(f"row {bad[0]} of target is not finite ({len(bad)} such rows); leave it out")
    return target


def draw_landmarks(region: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random rows that stand for the pool, some from every region, and the share of the pool that each stands for."""
    order = rng.permutation(len(region))
    size = np.bincount(region, minlength=len(share))
    quota = np.ceil(share * min(LANDMARKS, len(region))).astype(int)
    quota = np.minimum(np.maximum(quota, LANDMARKS_PER_REGION), size)
    shuffled = region[order]
    rows = np.concatenate([order[np.flatnonzero(shuffled == number)[:count]] for number, count in enumerate(quota)])
    return rows, (share / quota)[region[rows]]


__all__ = [
    "LANDMARKS", "LANDMARKS_PER_REGION", "Space", "check_target", "draw_landmarks", "lazy_greedy", "region_weights",
]  # fmt: skip
