"""Gradient-boosted trees, kept as plain arrays: their files need no pickle and outlive scikit-learn's versions."""

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from .base import Head

BINS = 63
"""Steps of a feature: four times as fast as 255."""
FIELDS = ("feature_idx", "num_threshold", "left", "right", "value", "is_leaf")


class BoostingHead(Head):
    """Gradient-boosted trees by histograms (`HistGradientBoostingClassifier`).

    Args:
        trees: rounds of boosting.
        learning_rate: shrinkage of each.
        leaves: leaves of a tree, at most.
        rows_per_leaf: labels in a leaf, at least; with fewer than twice as many labels there is nothing but the shares
            of the classes.
        class_weight, calibration, cv, random_state: as in `LogisticHead`.

    Attributes:
        feature_, left_, right_: int32 (T, nodes). threshold_, value_: float64 (T, nodes). A leaf points at itself.
        baseline_: float64 (K or 1,). Tree t belongs to class t modulo K (or the only score of two classes).
        depth_: int64 (1,), of the deepest tree.
    """

    TENSORS = ("feature_", "threshold_", "left_", "right_", "value_", "baseline_", "depth_")

    def __init__(
        self,
        trees: int = 100,
        *,
        learning_rate: float = 0.1,
        leaves: int = 15,
        rows_per_leaf: int = 5,
        class_weight=None,
        calibration: str = "temperature",
        cv: int = 5,
        random_state: int = 0,
    ):
        self.trees = trees
        self.learning_rate = learning_rate
        self.leaves = leaves
        self.rows_per_leaf = rows_per_leaf
        self.class_weight = class_weight
        self.calibration = calibration
        self.cv = cv
        self.random_state = random_state

    def _learn(self, Z: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
        model = HistGradientBoostingClassifier(
            max_iter=self.trees, learning_rate=self.learning_rate, max_leaf_nodes=self.leaves, l2_regularization=1.0,
            max_bins=BINS, min_samples_leaf=self.rows_per_leaf, early_stopping=False,
            random_state=self.random_state,
        ).fit(Z, codes, sample_weight=weight)  # fmt: skip
        nodes = [tree.nodes for round_ in model._predictors for tree in round_]
        shape = (len(nodes), max(map(len, nodes)))
        arrays = {name: np.zeros(shape, np.float64) for name in FIELDS}
        for number, tree in enumerate(nodes):
            for name in FIELDS:
                arrays[name][number, : len(tree)] = tree[name]
        leaf, own = arrays["is_leaf"] == 1, np.broadcast_to(np.arange(shape[1]), shape)
        self.left_, self.right_ = (np.where(leaf, own, arrays[k]).astype(np.int32) for k in ("left", "right"))
        self.feature_ = np.where(leaf, 0, arrays["feature_idx"]).astype(np.int32)
        self.threshold_, self.value_ = arrays["num_threshold"], arrays["value"]
        self.baseline_ = np.asarray(model._baseline_prediction, np.float64).reshape(-1)
        self.depth_ = np.array([max(int(tree["depth"].max()) for tree in nodes)])

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        scores, rows = np.tile(self.baseline_, (len(Z), 1)), np.arange(len(Z))
        for number in range(len(self.value_)):
            place = np.zeros(len(Z), np.int32)
            for _ in range(int(self.depth_[0])):
                left = Z[rows, self.feature_[number, place]] <= self.threshold_[number, place]
                place = np.where(left, self.left_[number, place], self.right_[number, place])
            scores[:, number % len(self.baseline_)] += self.value_[number, place]
        return np.concatenate([np.zeros_like(scores), scores], axis=1) if scores.shape[1] == 1 else scores


__all__ = ["BoostingHead"]
