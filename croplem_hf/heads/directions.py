"""Embeddings as directions."""

import numpy as np
from sklearn.preprocessing import normalize


def directions(Z: np.ndarray) -> np.ndarray:
    """Rows of length one, float32 as FAISS takes them; rows of zeros stay."""
    return np.ascontiguousarray(normalize(Z), np.float32)


__all__ = ["directions"]
