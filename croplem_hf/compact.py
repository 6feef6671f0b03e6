"""Embeddings in a quarter of the bytes: one byte a number."""

import numpy as np

PRECISIONS = ("float32", "int8")


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One byte a number, symmetric around 0, with a scale of each vector's own.

    `codes * scales[:, None]` is the vector up to half a scale in every number, so the cosine between the two is at
    least sqrt(1 - D / 254**2), 0.998 for 256 numbers, whatever the vectors. Cosines between vectors need no scales.

    Args:
        vectors: float (N, D), finite.

    Returns:
        codes: int8 (N, D), -127 to 127. scales: float32 (N,), the largest magnitude of each vector / 127.
    """
    vectors = np.asarray(vectors, np.float64)
    scales = (np.abs(vectors).max(axis=1, initial=0) / 127).astype(np.float32)
    steps = np.where(scales > 0, scales, 1).astype(np.float64)
    return np.clip(np.rint(vectors / steps[:, None]), -127, 127).astype(np.int8), scales


def dequantise(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int8 (N, D) and float32 (N,) as of `quantise` -> float32 (N, D)."""
    return codes.astype(np.float32) * np.asarray(scales, np.float32)[:, None]


__all__ = ["PRECISIONS", "dequantise", "quantise"]
