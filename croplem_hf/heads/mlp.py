"""A small neural network."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from .base import Head

STEPS = 2_000
BATCH = 200
EPOCHS = (20, 300)


class MLPHead(Head):
    """One hidden layer of rectified units, trained by Adam for a fixed number of steps.

    Args:
        hidden: units of the hidden layer.
        alpha: strength of the L2 penalty.
        class_weight, calibration, cv, random_state: as in `LogisticHead`; the seed is also that of the weights.

    Attributes:
        hidden_coef_: float64 (D, hidden). hidden_intercept_: float64 (hidden,). coef_: float64 (hidden, K or 1).
        intercept_: float64 (K or 1,).
    """

    TENSORS = ("hidden_coef_", "hidden_intercept_", "coef_", "intercept_")

    def __init__(
        self,
        hidden: int = 64,
        *,
        alpha: float = 0.1,
        class_weight=None,
        calibration: str = "temperature",
        cv: int = 5,
        random_state: int = 0,
    ):
        self.hidden = hidden
        self.alpha = alpha
        self.class_weight = class_weight
        self.calibration = calibration
        self.cv = cv
        self.random_state = random_state

    def _learn(self, Z: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
        epochs = int(np.clip(STEPS * BATCH / len(Z), *EPOCHS))
        model = MLPClassifier(
            (self.hidden,), alpha=self.alpha, learning_rate_init=3e-3, batch_size=min(BATCH, len(Z)), max_iter=epochs,
            n_iter_no_change=epochs, random_state=self.random_state,
        )  # fmt: skip
        with warnings.catch_warnings():
            # The number of epochs is fixed on purpose.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(Z, codes, sample_weight=weight)
        (self.hidden_coef_, self.coef_), (self.hidden_intercept_, self.intercept_) = model.coefs_, model.intercepts_

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        units = np.maximum(Z @ self.hidden_coef_ + self.hidden_intercept_, 0)
        scores = units @ self.coef_ + self.intercept_
        return np.concatenate([np.zeros_like(scores), scores], axis=1) if scores.shape[1] == 1 else scores


__all__ = ["MLPHead"]
