"""Embeddings in fewer bytes: fewer numbers, and one byte a number."""

import hashlib
from functools import lru_cache

import numpy as np
from scipy.fft import dct

PRECISIONS = ("float32", "int8")


@lru_cache(maxsize=8)
def projection(dim: int, kept: int) -> np.ndarray:
    """Rows of a rotation that spreads what a vector holds over all its numbers, so that any of them tell as much.

    An orthonormal discrete cosine transform after a fixed change of signs (a subsampled randomised trigonometric
    transform: Ailon and Chazelle 2009, doi 10.1137/060673096). Nothing is fitted, so it is the same for all data and
    machines; of two lengths the shorter vector is the beginning of the longer one.

    Args:
        dim: length of a vector.
        kept: numbers to keep.

    Returns:
        float32 (dim, kept): `vectors @ projection(dim, kept)` has kept / dim of the inner products, on average.
    """
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"croplem").digest(-(-dim // 8)), np.uint8))[:dim]
    rotation = dct(np.diag(1.0 - 2.0 * bits), axis=0, norm="ortho")  # (dim, dim), its rows are orthonormal
    matrix = np.ascontiguousarray(rotation[:kept].T, np.float32)
    matrix.flags.writeable = False
    return matrix


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


__all__ = ["PRECISIONS", "dequantise", "projection", "quantise"]
