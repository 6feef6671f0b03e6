"""Nearest neighbours by cosine, exact, with FAISS."""

import faiss
import numpy as np

from .base import Head
from .directions import directions

NEAR = 1e-3
"""Cosine distances below this count as this: the weight of a neighbour is one over its distance."""


class KNNHead(Head):
    """The votes of the nearest labelled rows by cosine of standardised embeddings, weighted by one over the distance.

    One further vote is shared by all classes, so that no class has probability 0. Few parameters, many labels to keep:
    the files grow with the training.

    Args:
        n_neighbors: how many vote; all where there are fewer labels.
        class_weight: None, "balanced" or a weight by class, which multiplies its votes.
        calibration, cv, random_state: as in `LogisticHead`.

    Attributes:
        vectors_: float32 (n, D), of length one. codes_: int64 (n,). votes_: float64 (n,), weights of classes.
        n_classes_: int64 (1,).
    """

    TENSORS = ("vectors_", "codes_", "votes_", "n_classes_")
    COOLEST = 0.5
    """Votes that are shared with every class are too modest, the more so the fewer labels there are."""

    def __init__(
        self,
        n_neighbors: int = 20,
        *,
        class_weight=None,
        calibration: str = "temperature",
        cv: int = 5,
        random_state: int = 0,
    ):
        self.n_neighbors = n_neighbors
        self.class_weight = class_weight
        self.calibration = calibration
        self.cv = cv
        self.random_state = random_state

    def _learn(self, Z: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
        self.vectors_, self.codes_, self.votes_ = directions(Z), codes.astype(np.int64), weight
        self.n_classes_ = np.array([codes.max() + 1])

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        k, classes = min(self.n_neighbors, len(self.codes_)), int(self.n_classes_[0])
        similar, rows = faiss.knn(directions(Z), self.vectors_, k, metric=faiss.METRIC_INNER_PRODUCT)
        near = self.votes_[rows] / np.maximum(1 - similar.astype(np.float64), NEAR)
        votes = np.stack([np.where(self.codes_[rows] == code, near, 0).sum(axis=1) for code in range(classes)], axis=1)
        return np.log(k * votes / votes.sum(axis=1, keepdims=True) + 1 / classes)


__all__ = ["KNNHead"]
