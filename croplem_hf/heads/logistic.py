"""Logistic regression: the default head."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from .base import Head

# Seconds on 17,681 x 128: two classes 0.08, 0.5 by newton-cg, 1.1 by lbfgs; on 3,907 x 128, ten classes 2.0, 0.5, 1.2.
SOLVERS = {True: "newton-cholesky", False: "newton-cg"}
PENALTY = 0.1
"""C of the head. Embeddings have hundreds of numbers and labels are few, so scikit-learn's 1 fits too much of them."""


class LogisticHead(Head):
    """Standardisation, logistic regression, and one temperature fitted to held-out scores (see `Head`).

    Args:
        C: inverse strength of the L2 penalty; its default was chosen among 1 to 0.01 (benchmarks/RESULTS.md).
        class_weight: None, "balanced" or a weight by class; weights other than None shift the probabilities.
        calibration: "temperature", "isotonic" or "none".
        cv: folds of the calibration, at most; fewer where a class has fewer labels.
        random_state: of the folds.

    Attributes:
        coef_: float64 (K or 1, D). intercept_: float64 (K or 1,). Others: see `Head`.
    """

    TENSORS = ("coef_", "intercept_")

    def __init__(
        self,
        C: float = PENALTY,
        *,
        class_weight=None,
        calibration: str = "temperature",
        cv: int = 5,
        random_state: int = 0,
    ):
        self.C = C
        self.class_weight = class_weight
        self.calibration = calibration
        self.cv = cv
        self.random_state = random_state

    def _learn(self, Z: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
        model = LogisticRegression(C=self.C, solver=SOLVERS[codes.max() == 1], max_iter=2000)
        model.fit(Z, codes, sample_weight=weight)
        self.coef_, self.intercept_ = np.ascontiguousarray(model.coef_), model.intercept_

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        scores = Z @ self.coef_.T + self.intercept_
        return np.concatenate([np.zeros_like(scores), scores], axis=1) if scores.shape[1] == 1 else scores


__all__ = ["PENALTY", "SOLVERS", "LogisticHead"]
