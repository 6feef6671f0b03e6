"""Where windows lie on a scene, how much each counts where they overlap, and which of them are read together."""

from collections.abc import Iterator

import numpy as np


def window_starts(total: int, size: int, step: int) -> np.ndarray:
    """First pixels of windows every `step` pixels that cover `total` pixels; the last is shifted inward.

    Args:
        total: pixels to cover, at least `size`.
        size: pixels of a window.
        step: pixels between windows, at most `size`.

    Returns:
        int64 (n,), rising.
    """
    return np.unique(np.minimum(np.arange(0, total - size + step, step), total - size))


def window_weight(size: int) -> np.ndarray:
    """How much a window counts in each of its pixels or tokens: sin² (a Hann window), float64 (size,).

    It falls to zero at the edges without a kink, so that no edge of a window shows, and windows that overlap by half
    add up to exactly one.
    """
    return np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2


def overlapping(starts: np.ndarray, size: int, start: int, stop: int) -> np.ndarray:
    """Numbers of the windows that reach into pixels `start` to `stop` (excluded)."""
    return np.flatnonzero((starts < stop) & (starts + size > start))


def weight_matrix(starts: np.ndarray, size: int, start: int, stop: int) -> np.ndarray:
    """Weight of each window in each of the pixels `start` to `stop` (excluded): float32 (pixels, windows)."""
    place = np.arange(start, stop)[:, None] - starts
    weight = np.where((place >= 0) & (place < size), window_weight(size)[place.clip(0, size - 1)], 0)
    return weight.astype(np.float32)


def blend(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Weighted mean of the windows that cover a pixel.

    Args:
        values: float32 (K, m, n), what is known of m x n windows; NaN where nothing is.
        rows, columns: float32 (h, m) and (w, n), weights of `weight_matrix`.

    Returns:
        float32 (K, h, w), NaN where no window counts.
    """
    known = np.isfinite(values).all(axis=0)
    weight = rows @ known.astype(np.float32) @ columns.T
    total = rows @ np.where(known, values, 0).astype(np.float32) @ columns.T
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def groups(
    rows: np.ndarray, columns: np.ndarray, steps: tuple[int, int], size: tuple[int, int], most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of a lattice of windows whose pixels are at most `most`, or single windows: (row numbers, column numbers).

    Args:
        rows, columns: int, numbers of the windows.
        steps: pixels between windows, down and across.
        size: height and width of a window in pixels.
        most: pixels that may be read at once.
    """
    side = 1
    while (size[0] + side * steps[0]) * (size[1] + side * steps[1]) <= most:
        side += 1
    for top in range(0, len(rows), side):
        for left in range(0, len(columns), side):
            yield rows[top : top + side], columns[left : left + side]


__all__ = ["blend", "groups", "overlapping", "weight_matrix", "window_starts", "window_weight"]
