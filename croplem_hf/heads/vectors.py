"""Embeddings as directions."""

import numpy as np


def unit_vectors(Z: np.ndarray) -> np.ndarray:
    """Rows of length one, float32; rows of zeros stay."""
    length = np.linalg.norm(Z, axis=1, keepdims=True)
    return np.ascontiguousarray(Z / np.where(length > 0, length, 1), np.float32)


__all__ = ["unit_vectors"]
