"""How far the doubt of a head may be trusted: its skill on labels that it was not fitted to."""

import warnings

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..heads.logistic import PENALTY, SOLVERS

FOLDS = 5


def cross_validated_skill(X: np.ndarray, y: np.ndarray, seed: int) -> float:
    """Balanced accuracy of a logistic regression on left-out labels, from 0 (chance, or worse) to 1 (no error).

    Args:
        X: float (n, D), labelled embeddings.
        y: int (n,), their classes. Those with a single label are left out.
        seed: of the folds.

    Returns:
        (b - 1/K) / (1 - 1/K) for K classes of at least two labels and b the mean of their recalls; 0 for K < 2.
    """
    classes, codes, count = np.unique(y, return_inverse=True, return_counts=True)
    rows = np.flatnonzero((count >= 2)[codes])
    kinds = int(np.sum(count >= 2))
    if kinds < 2:
        return 0.0
    folds = StratifiedKFold(min(FOLDS, int(count[count >= 2].min())), shuffle=True, random_state=seed)
    # What is asked is which class, not how probable: a loose tolerance will do.
    model = LogisticRegression(C=PENALTY, solver=SOLVERS[kinds == 2], tol=0.01, max_iter=500)
    with warnings.catch_warnings():
        # Few labels of many classes are what a campaign starts from, not a regression in disguise.
        warnings.filterwarnings("ignore", message="The number of unique classes")
        found = cross_val_predict(make_pipeline(StandardScaler(), model), X[rows], y[rows], cv=folds)
    right = found == y[rows]
    recall = np.mean([right[y[rows] == name].mean() for name in classes[count >= 2]])
    return max(float(recall - 1 / kinds) / (1 - 1 / kinds), 0.0)


__all__ = ["cross_validated_skill"]
