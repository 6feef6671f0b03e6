"""Published strategies to compare with: by the head's doubt, by clusters of embeddings, and by both.

    rows = TypiClustSampling(seed=0).query(X, y, batch_size=50)

Each is written from its paper and for pools of a million rows: no matrix of all pairs. Distances are those of
`coverage.Space`, between centred embeddings of length one.
"""

from abc import abstractmethod
from collections.abc import Sequence

import faiss
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.cluster import AgglomerativeClustering

from .coverage import LANDMARKS, Space, lazy_greedy
from .strategies import Pool, Strategy, fitted_head

TYPICAL_OF = 20
MOST_CLUSTERS = 500
MARGIN_FACTOR = 10
DROPOUT, DROPOUT_COPIES = 0.75, 3
# Random starts end in poor optima; several are cheap where there are few vectors.
SMALL_POOL, SMALL_POOL_STARTS = 20_000, 5


class HeadSampling(Strategy):
    """Base of strategies that ask a head; random rows until two classes have labels.

    Args:
        regions: not used; taken so that all strategies are made alike.
        head: scikit-learn classifier with `predict_proba`, cloned and fitted to the labels; `LogisticHead` if None.
        seed: of the random first rows, and of the order of equals.
    """

    def __init__(self, regions: Sequence[str] | None = None, head: BaseEstimator | None = None, seed: int = 0):
        super().__init__(regions, seed)
        self.head = head

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        rows = rng.permutation(pool.candidates)
        head = fitted_head(self.head, pool.X, pool.y)
        if head is None:
            return self._start(pool, rows, rng)
        return self._ask(pool, rows, head, rng)

    def _start(self, pool: Pool, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows to label before there is a head."""
        return rows[: pool.batch_size]

    @abstractmethod
    def _ask(self, pool: Pool, rows: np.ndarray, head: BaseEstimator, rng: np.random.Generator) -> np.ndarray:
        """`pool.batch_size` of `rows`, the candidates in random order."""


class MarginSampling(HeadSampling):
    """Rows where the two best classes of a head are closest (Scheffer et al. 2001)."""

    def _ask(self, pool, rows, head, rng):
        return rows[np.argsort(margins(head.predict_proba(pool.X[rows])), kind="stable")[: pool.batch_size]]


class EntropySampling(HeadSampling):
    """Rows where the probabilities of a head have the highest entropy (Settles 2009)."""

    def _ask(self, pool, rows, head, rng):
        p = head.predict_proba(pool.X[rows])
        entropy = -np.sum(p * np.log(np.maximum(p, np.finfo(float).tiny)), axis=1)
        return rows[np.argsort(-entropy, kind="stable")[: pool.batch_size]]


class BadgeSampling(HeadSampling):
    """k-means++ on gradients of the head's last layer at its own predictions (Ash et al. 2020, arXiv 1906.03671).

    A gradient is the outer product of (p - one-hot of the best class) and the embedding. Distances between such
    products come from those of their factors, so the products are never made.
    """

    def _ask(self, pool, rows, head, rng):
        residual = head.predict_proba(pool.X[rows])
        residual[np.arange(len(rows)), residual.argmax(axis=1)] -= 1
        residual = residual.astype(np.float32)
        vectors = Space(pool.X).vectors(rows)
        size = np.sum(residual**2, axis=1) * np.sum(vectors**2, axis=1)
        nearest, chosen = np.full(len(rows), np.inf, np.float32), []
        place = int(size.argmax())
        for _ in range(pool.batch_size):
            chosen.append(place)
            product = (residual @ residual[place]) * (vectors @ vectors[place])
            nearest = np.minimum(nearest, np.maximum(size + size[place] - 2 * product, 0))
            nearest[place] = 0
            place = _draw(nearest, chosen, rng)
        return rows[chosen]


class ClusterMarginSampling(HeadSampling):
    """The smallest margins, spread over clusters of them (Citovsky et al. 2021, arXiv 2107.14263).

    The paper clusters the whole pool once; here the 10 x `batch_size` rows of smallest margin are clustered, by average
    linkage, into `batch_size` clusters. Rows are taken in turns, from the smallest cluster on.
    """

    def _ask(self, pool, rows, head, rng):
        margin = margins(head.predict_proba(pool.X[rows]))
        order = np.argsort(margin, kind="stable")[: MARGIN_FACTOR * pool.batch_size]
        rows = rows[order]
        if len(rows) == pool.batch_size or pool.batch_size == 1:
            return rows[: pool.batch_size]
        clustering = AgglomerativeClustering(pool.batch_size, linkage="average")
        return take_turns(rows, clustering.fit_predict(Space(pool.X).vectors(rows)), pool.batch_size)


class DropQuerySampling(HeadSampling):
    """Rows whose class changes when numbers of the embedding are dropped (Gupte et al. 2024, arXiv 2401.14555).

    A row is a candidate where most of three copies, each with three quarters of its numbers dropped, get another class
    than the row itself. Candidates are clustered by k-means and the row nearest to each centre is taken; the first
    batch is taken so from the whole pool. Where there are too few candidates, the smallest margins are added.
    """

    cold_start = True

    def _start(self, pool, rows, rng):
        return central_rows(Space(pool.X), rows, pool.batch_size, self._turn(pool) + self.seed)

    def _ask(self, pool, rows, head, rng):
        X = pool.X[rows]
        p = head.predict_proba(X)
        best, changed = p.argmax(axis=1), np.zeros(len(rows), int)
        centre = pool.X.mean(axis=0, dtype=np.float64).astype(np.float32)
        for _ in range(DROPOUT_COPIES):
            # Dropped numbers are those of a mean embedding, and the others grow, as in dropout of centred inputs.
            kept = rng.random(X.shape, np.float32) >= DROPOUT
            copy = centre + np.where(kept, (X - centre) / (1 - DROPOUT), 0)
            changed += head.predict_proba(copy).argmax(axis=1) != best
        order = np.argsort(margins(p), kind="stable")
        unsure = 2 * changed > DROPOUT_COPIES
        if unsure.sum() < pool.batch_size:
            first = order[unsure[order]]
            return rows[np.concatenate([first, order[~unsure[order]]])[: pool.batch_size]]
        return central_rows(Space(pool.X), rows[unsure], pool.batch_size, self._turn(pool) + self.seed)


class KCenterSampling(Strategy):
    """The row farthest from all that is labelled or chosen, again and again (Sener and Savarese 2018, 1708.00489)."""

    cold_start = True

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        rows, space = rng.permutation(pool.candidates), Space(pool.X)
        vectors = space.vectors(rows)
        nearest = np.full(len(rows), np.inf, np.float32)
        if len(pool.labelled):
            nearest = space.nearest(rows, pool.labelled).astype(np.float32) ** 2
        size, chosen = np.sum(vectors**2, axis=1), []
        for _ in range(pool.batch_size):
            place = int(nearest.argmax())
            chosen.append(place)
            squares = np.maximum(size + size[place] - 2 * (vectors @ vectors[place]), 0)
            nearest = np.minimum(nearest, squares)
            nearest[chosen] = -1
        return rows[chosen]


class TypiClustSampling(Strategy):
    """The most typical row of each cluster that has fewest labels (Hacohen et al. 2022, arXiv 2202.02794).

    k-means into as many clusters as labels and new rows together, 500 at most. Of the clusters with fewest labels the
    largest come first. Typical is what lies closest to its 20 nearest neighbours in the cluster.
    """

    cold_start = True

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        space, have = Space(pool.X), len(pool.labelled)
        everything = space.vectors(np.arange(len(pool.X)))
        count = min(have + pool.batch_size, MOST_CLUSTERS, len(everything))
        cluster = kmeans(everything, count, self._turn(pool) + self.seed)[1]
        labels = np.bincount(cluster[pool.labelled], minlength=count)
        size = np.bincount(cluster, minlength=count)
        open_rows = np.zeros(len(pool.X), bool)
        open_rows[pool.candidates] = True
        by_cluster = np.split(np.argsort(cluster, kind="stable"), np.cumsum(size)[:-1])
        queues: dict[int, list[int]] = {}
        chosen: list[int] = []
        while len(chosen) < pool.batch_size:
            for number in np.lexsort((-size, labels)):
                if number not in queues:
                    members = by_cluster[number]
                    loose = _looseness(everything[members]) if len(members) else np.empty(0)
                    order = np.argsort(loose, kind="stable")
                    queues[number] = [row for row in members[order] if open_rows[row]]
                if queues[number]:
                    chosen.append(queues[number].pop(0))
                    labels[number] += 1
                    break
                labels[number] = np.iinfo(labels.dtype).max // 2
        return np.array(chosen)


class UncertaintyHerdingSampling(Strategy):
    """Greedy coverage of the head's doubt under a kernel (Bae et al. 2025, arXiv 2412.20644).

    The doubt is one minus the margin of the calibrated head, the kernel Gaussian, its width the smallest distance
    between two labelled rows (without labels: the median distance between rows is divided by the root of the batch,
    since the paper leaves it open). 2,000 random rows stand for the pool and 4,000 for the candidates.
    """

    cold_start = True

    def __init__(self, regions: Sequence[str] | None = None, head: BaseEstimator | None = None, seed: int = 0):
        super().__init__(regions, seed)
        self.head = head

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        space = Space(pool.X)
        landmarks = rng.permutation(len(pool.X))[:LANDMARKS]
        candidates = rng.permutation(pool.candidates)[: max(2 * LANDMARKS, pool.batch_size)]
        head, known = fitted_head(self.head, pool.X, pool.y), pool.labelled
        doubt = np.ones(len(landmarks)) if head is None else 1 - margins(head.predict_proba(pool.X[landmarks]))
        squares = space.squares(candidates, landmarks)
        width = np.sqrt(np.median(squares)) / np.sqrt(pool.batch_size)
        covered = np.zeros(len(landmarks))
        if len(known) > 1:
            between = space.squares(known, known)[np.triu_indices(len(known), 1)]
            # Squares of float32 vectors of length one below 1e-6 are rounding.
            width = np.sqrt(between[between > 1e-6].min(initial=4.0))
        width = max(float(width), 1e-3)
        if len(known):
            covered = np.exp(-0.5 * (space.nearest(landmarks, known) / width) ** 2)
        places, _, _ = lazy_greedy(np.exp(-0.5 * squares / width**2), covered, doubt, pool.batch_size)
        return candidates[places]


def margins(probability: np.ndarray) -> np.ndarray:
    """Best minus second best probability of each row (n, K), float64 (n,)."""
    best = np.partition(probability, -2, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0]


def kmeans(vectors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres float32 (count, D) of vectors (n, D) with n >= count, and the number of the nearest for each, (n,)."""
    starts = SMALL_POOL_STARTS if len(vectors) <= SMALL_POOL else 1
    clustering = faiss.Kmeans(
        vectors.shape[1], count, niter=10, nredo=starts, seed=int(seed % 2**31), min_points_per_centroid=1
    )
    clustering.train(vectors)
    return clustering.centroids, clustering.index.search(vectors, 1)[1][:, 0]


def central_rows(space: Space, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The row nearest to each of `count` centres of k-means; a row that is taken leaves the next nearest."""
    vectors = space.vectors(rows)
    centres, _ = kmeans(vectors, count, seed)
    _, order = faiss.knn(centres, vectors, min(count, len(rows)))
    taken: dict[int, None] = {}
    for line in order:
        taken.setdefault(next(place for place in line.tolist() if place not in taken))
    return rows[list(taken)]


def take_turns(rows: np.ndarray, cluster: np.ndarray, count: int) -> np.ndarray:
    """`count` of rows (n,), one from each cluster in turn, from the smallest on; each gives its first rows first."""
    size = np.bincount(cluster)
    turn = np.empty(len(rows), int)
    for number in np.unique(cluster):
        own = np.flatnonzero(cluster == number)
        turn[own] = np.arange(len(own))
    return rows[np.lexsort((cluster, size[cluster], turn))[:count]]


def _draw(weight: np.ndarray, chosen: list[int], rng: np.random.Generator) -> int:
    """A place by weight, or any that is not chosen yet where all weights are zero."""
    total = np.cumsum(weight, dtype=np.float64)
    if total[-1] > 0:
        return int(np.searchsorted(total, rng.random() * total[-1], side="right"))
    left = np.setdiff1d(np.arange(len(weight)), chosen)
    return int(left[0]) if len(left) else chosen[-1]


def _looseness(vectors: np.ndarray) -> np.ndarray:
    """Mean distance to the nearest neighbours among the same vectors (n,)."""
    count = min(TYPICAL_OF + 1, len(vectors))
    squares, _ = faiss.knn(vectors, vectors, count)
    return np.sqrt(np.maximum(squares, 0)).mean(axis=1)


BASELINES = (
    MarginSampling, EntropySampling, KCenterSampling, TypiClustSampling, BadgeSampling, ClusterMarginSampling,
    UncertaintyHerdingSampling, DropQuerySampling,
)  # fmt: skip
__all__ = [
    "BASELINES", "BadgeSampling", "ClusterMarginSampling", "DropQuerySampling", "EntropySampling", "HeadSampling",
    "KCenterSampling", "MarginSampling", "TypiClustSampling", "UncertaintyHerdingSampling", "central_rows", "kmeans",
    "margins", "take_turns",
]  # fmt: skip
