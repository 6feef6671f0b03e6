"""What the bandit knows of a row before its label comes."""

import numpy as np
from sklearn.base import BaseEstimator

from .coverage import Space
from .strategies import Pool

CONTEXT = ("constant", "margin", "doubt", "distance", "density", "rarity")


def contexts_of(
    pool: Pool, rows: np.ndarray, space: Space, known: np.ndarray, head: BaseEstimator | None
) -> np.ndarray:
    """Contexts of rows (n,), float64 (n, 6 + R): `CONTEXT`, then the region one-hot; all parts lie between 0 and 1.

    constant: 1. margin: one minus the difference of the two best probabilities. doubt: one minus the best.
    distance: to the nearest of the rows `known`, halved. density: rank among the landmarks. rarity: of the classes that
    the head expects, one minus their number over that of the commonest. Without a head the second and third are 1,
    without a known row the fourth is. Rows beyond the pool (`Space`) are of no region.
    """
    context = np.zeros((len(rows), len(CONTEXT) + len(pool.regions)))
    context[:, :4] = 1
    if head is not None:
        probability = head.predict_proba(space.take(rows))
        best = np.sort(probability, axis=1)[:, -2:]
        context[:, 1] = 1 - (best[:, 1] - best[:, 0])
        context[:, 2] = 1 - best[:, 1]
        classes, count = np.unique(pool.y[pool.labelled], return_counts=True)
        rare = 1 - count / count.max()
        context[:, 5] = probability @ rare[np.searchsorted(classes, head.classes_)]
    if len(known):
        context[:, 3] = space.nearest(rows, known) / 2
    context[:, 4] = space.density(rows)
    here = np.flatnonzero(rows < len(pool.X))
    context[here, len(CONTEXT) + pool.region[rows[here]]] = 1
    return context


__all__ = ["CONTEXT", "contexts_of"]
