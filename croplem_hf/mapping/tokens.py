"""The tokens of a scene on a grid of their own: overlapping windows are embedded and blended."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..data.folder import Scene
from ..embedding import Embedder
from ..embedding_options import TOKENS_PER_BATCH
from ..errors import DataError
from .block import pixels_at_once, read_block
from .windows import groups, overlapping, window_starts, window_weight

PATCH_SIZE = 8
WINDOW_TOKENS = 4
"""Side of a window in tokens, unless told: larger ones made tokens worse with the packaged checkpoint (RESULTS.md)."""
SAMPLED_WINDOWS = 64


class Tokens:
    """Settings of dense embeddings of one scene, and the embeddings of any part of it.

    Args:
        scene: the place.
        embedder: the encoder.
        sensors: use only these; None for both.
        patch_size: pixels a token; None for 8, the size that the packaged checkpoint's projection has.
        window: side of a window in pixels, a multiple of twice the patch size; None for four tokens.
        centre: subtract the mean embedding of the pretraining data.
        tokens_per_batch: how much is embedded at once.

    Attributes:
        shape: rows and columns of the grid; the last ones may reach beyond the scene. dim: numbers a token.
        transform: six numbers that place the grid.

    Raises:
        DataError: an option that does not fit, or none of the sensors in the scene.
    """

    def __init__(
        self,
        scene: Scene,
        embedder: Embedder,
        *,
        sensors: Sequence[str] | None = None,
        patch_size: int | None = None,
        window: int | None = None,
        centre: bool = True,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ):
        largest = 2 * embedder.model.config.patch_size
        p = min(PATCH_SIZE, largest) if patch_size is None else patch_size
        if not 1 <= p <= largest:
            raise DataError(f"patch_size must be 1 to {largest}, found {p}")
        self.shape = -(-scene.height // p), -(-scene.width // p)
        side = WINDOW_TOKENS * p if window is None else window
        if side < 2 * p or side % (2 * p):
            raise DataError(f"window must be a multiple of {2 * p} pixels, twice the patch size; found {side}")
        there = {sensor for sensor, dates in scene.dates.items() if dates}
        if sensors is not None and not there & set(sensors):
            raise DataError(f"{scene.id}: holds {'+'.join(sorted(there))}, but {'+'.join(sensors)} was asked for")
        self.scene, self.embedder, self.sensors, self.patch_size = scene, embedder, sensors, p
        self.tokens_per_batch, self.dim = tokens_per_batch, embedder.model.config.hidden_size
        self.centre = centre
        self.step = side // p // 2
        self.size = tuple(min(side // p, n) for n in self.shape)
        self.starts = tuple(window_starts(n, k, min(self.step, k)) for n, k in zip(self.shape, self.size, strict=True))
        a, b, c, d, e, f = scene.transform
        self.transform = (a * p, b * p, c, d * p, e * p, f)

    def read(self, window: tuple[int, int, int, int], progress: Callable[[float], object] | None = None) -> np.ndarray:
        """Blended tokens of a part of the grid.

        Args:
            window: row, column, height and width in tokens.
            progress: called with the share of the window that was done since the last call.

        Returns:
            float32 (height, width, D), NaN where nobody saw a pixel of the token.
        """
        row, column, height, width = window
        total, weight = np.zeros((height, width, self.dim), np.float32), np.zeros((height, width, 1), np.float32)
        rows = overlapping(self.starts[0], self.size[0], row, row + height)
        columns = overlapping(self.starts[1], self.size[1], column, column + width)
        falling = np.outer(*map(window_weight, self.size)).astype(np.float32)[..., None]
        pixels = tuple(n * self.patch_size for n in self.size)
        most = pixels_at_once(self.scene)

        def advance(count: int) -> None:
            if progress is not None and count:
                progress(count / (len(rows) * len(columns)))

        for i, j in groups(rows, columns, (self.step * self.patch_size,) * 2, pixels, most):
            down, across = (n.ravel() for n in np.meshgrid(self.starts[0][i], self.starts[1][j], indexing="ij"))
            left_over = len(down)
            for top, left, tokens in self._windows(down, across):
                y, x = max(top, row), max(left, column)
                cut = np.s_[y - top : row + height - top, x - left : column + width - left]
                part, how = tokens[cut], falling[cut]
                known = np.isfinite(part[..., :1])
                place = np.s_[y - row : y - row + part.shape[0], x - column : x - column + part.shape[1]]
                total[place] += np.where(known, part, 0) * how
                weight[place] += known * how
                advance(1)
                left_over -= 1
            # Windows in which nobody saw anything.
            advance(left_over)
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)

    def sample(self, count: int = SAMPLED_WINDOWS, seed: int = 0) -> np.ndarray:
        """Tokens float32 (N, D) of windows at random places, not blended.

        Raises:
            DataError: nobody saw a pixel in any of them.
        """
        rng = np.random.default_rng(seed)
        lattice = rng.permutation(len(self.starts[0]) * len(self.starts[1]))[:count]
        found = []
        for number in lattice:
            top, left = (s[k] for s, k in zip(self.starts, divmod(number, len(self.starts[1])), strict=True))
            for _, _, tokens in self._windows(np.array([top]), np.array([left])):
                found.append(tokens[np.isfinite(tokens[..., 0])])
        if not found:
            raise DataError(f"{self.scene.id}: nothing valid in {len(lattice)} windows at random places")
        return np.concatenate(found)

    def _windows(self, tops: np.ndarray, lefts: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """First row and column in tokens, and tokens (rows, columns, D), of windows that are read together."""
        p, (top, left) = self.patch_size, (tops.min(), lefts.min())
        height, width = tops.max() - top + self.size[0], lefts.max() - left + self.size[1]
        block = read_block(self.scene, self.embedder, self.sensors, (top * p, left * p, height * p, width * p))
        pixels = tuple(n * p for n in self.size)
        for numbers, inputs in block.batches(
            (tops - top) * p, (lefts - left) * p, pixels, p, self.tokens_per_batch
        ):
            dense = self.embedder.encode(
                inputs, patch_size=p, centre=self.centre, pooling="dense", tokens_per_batch=self.tokens_per_batch
            )
            for number, tokens in zip(numbers, dense, strict=True):
                yield int(tops[number]), int(lefts[number]), tokens


__all__ = ["Tokens"]
