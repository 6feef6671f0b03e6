"""Whether a row is unlike everything that was labelled: distance to the nearest labelled embedding."""

from collections.abc import Sequence

import faiss
import numpy as np

from .directions import directions

ROWS = 2_000
LEVEL = 0.05


class LabelledNeighbourhood:
    """Distances to the nearest labelled row, against the same among the labelled rows of different blocks.

    A row is far where fewer than `LEVEL` of the labelled rows are as far from their own nearest one in another block.
    Distance: 1 - cosine of standardised embeddings. Of more than `ROWS` labelled rows so many are drawn.

    Attributes:
        vectors_: float32 (n, D), of length one. distances_: float64 (n,), sorted.
    """

    def fit(self, Z: np.ndarray, groups: Sequence | None = None, seed: int = 0) -> "LabelledNeighbourhood":
        """Learn from standardised embeddings (n, D) and their spatial blocks."""
        own = np.arange(len(Z)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        rows = np.sort(np.random.default_rng(seed).permutation(len(Z))[:ROWS])
        self.vectors_ = directions(np.asarray(Z)[rows])
        similar = self.vectors_ @ self.vectors_.T
        similar[own[rows][:, None] == own[rows]] = -1
        self.distances_ = np.sort(1 - similar.max(axis=1).astype(np.float64))
        return self

    def typical(self, Z: np.ndarray) -> np.ndarray:
        """Share of labelled rows that are at least as far from their nearest other one, float64 (M,)."""
        similar, _ = faiss.knn(directions(Z), self.vectors_, 1, metric=faiss.METRIC_INNER_PRODUCT)
        # Float32: a row that is labelled itself is not farther than its own copy.
        distance = 1 - similar[:, 0].astype(np.float64) - 1e-6
        return 1 - np.searchsorted(self.distances_, distance, side="left") / len(self.distances_)

    def far(self, Z: np.ndarray) -> np.ndarray:
        """Whether fewer than `LEVEL` of them are, bool (M,)."""
        return self.typical(Z) < LEVEL


__all__ = ["LabelledNeighbourhood"]
