"""Whether the nearest embeddings are of the same class: precision among the k nearest, by cosine."""

from collections.abc import Sequence

import numpy as np
from sklearn.preprocessing import normalize

from ..errors import DataError

K = 10
QUERIES = 2_000
PIECE = 256


def retrieval(
    X: np.ndarray,
    y: Sequence,
    regions: Sequence[str],
    blocks: Sequence | None = None,
    *,
    k: int = K,
    queries: int = QUERIES,
    seed: int = 0,
) -> list[dict]:
    """Precision among the k nearest rows of other blocks, in the same region and in all other regions.

    Cosine after the mean of all rows is taken away, as the index compares.

    Args:
        X: float (n, D), embeddings.
        y: (n,) classes.
        regions: (n,) names.
        blocks: (n,) spatial blocks, whose other rows are no answers; rows are their own blocks where None.
        k: neighbours.
        queries: rows that ask, drawn at random; all where there are fewer.
        seed: of the draw.

    Returns:
        One dict for each region: `region`, `n` (queries), `within` and `across` (shares of the k nearest with the class
        of the query; NaN where fewer than k rows can answer), and `within_chance`, `across_chance` (shares among all
        that could answer).

    Raises:
        DataError: lengths that do not fit.
    """
    y, regions = np.asarray(y), np.asarray(regions)
    block = np.arange(len(y)) if blocks is None else np.unique(np.asarray(blocks), return_inverse=True)[1]
    if not len(X) == len(y) == len(regions) == len(block):
        raise DataError(f"{len(X)} embeddings, {len(y)} classes, {len(regions)} regions and {len(block)} blocks differ")
    vectors = normalize(np.asarray(X, np.float32) - np.mean(X, axis=0, dtype=np.float64).astype(np.float32))
    asked = np.sort(np.random.default_rng(seed).permutation(len(y))[:queries])
    found = {name: np.full((len(asked), 2), np.nan) for name in ("within", "across")}
    for start in range(0, len(asked), PIECE):
        rows = asked[start : start + PIECE]
        similar = vectors[rows] @ vectors.T
        same, inside = y[rows][:, None] == y, regions[rows][:, None] == regions
        apart = block[rows][:, None] != block
        for name, allowed in (("within", inside & apart), ("across", ~inside & apart)):
            enough = allowed.sum(axis=1) >= k
            if not enough.any():
                continue
            best = np.argpartition(np.where(allowed, -similar, np.inf), k - 1, axis=1)[:, :k]
            precision = np.take_along_axis(same, best, axis=1).mean(axis=1)
            chance = (same & allowed).sum(axis=1) / np.maximum(allowed.sum(axis=1), 1)
            both = np.stack([precision, chance], axis=1)
            found[name][start : start + PIECE] = np.where(enough[:, None], both, np.nan)
    table = []
    for region in np.unique(regions[asked]):
        own = regions[asked] == region
        line = {"region": str(region), "n": int(own.sum())}
        for name, values in found.items():
            values = values[own & ~np.isnan(values[:, 0])]
            means = values.mean(axis=0) if len(values) else (np.nan, np.nan)
            line |= {name: float(means[0]), f"{name}_chance": float(means[1])}
        table.append(line)
    return table


__all__ = ["retrieval"]
