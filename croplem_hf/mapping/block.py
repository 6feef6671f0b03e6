"""A rectangle of a scene, read and standardised once, and windows of it."""

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import date

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..data.folder import Scene
from ..embedding import Embedder
from ..embedding_options import TOKENS_PER_BATCH

BLOCK_VALUES = 2**24
"""What is read at once holds at most this many values (bands, dates, pixels), 64 MB of float32, or a single window."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Standardised model inputs of a rectangle.

    sensors: by name of those that saw something: `values` float32 (T, C, h, w), `valid` bool (T, h, w), `ordinals` and
    `new_years` int64 (T,) (proleptic days of each date and of 1 January of its year), and for optics `bands` bool
    (T, 13) and `level`. seen: bool (h, w), pixels with something valid in them. gsd: metres a pixel.
    """

    sensors: dict[str, dict]
    seen: np.ndarray
    gsd: float

    def batches(
        self,
        tops: np.ndarray,
        lefts: np.ndarray,
        size: tuple[int, int],
        patch_size: int,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Windows as inputs of the model, each as a sample of its own, those with equally many valid pixels together.

        Args:
            tops, lefts: int (n,), first row and column of each window in the block.
            size: height and width of a window in pixels.
            patch_size: pixels a patch.
            tokens_per_batch: how much is embedded at once.

        Yields:
            numbers of some windows, int (m,), and their inputs. Windows without a valid pixel are left out.
        """
        counts = sum(_box_sums(part["valid"], size) for part in self.sensors.values())
        counts = np.zeros(len(tops), int) if not self.sensors else counts[tops, lefts]
        order = np.argsort(counts, kind="stable")
        order = order[counts[order] > 0]
        dates = sum(len(part["ordinals"]) for part in self.sensors.values())
        tokens = dates * -(-size[0] // patch_size) * -(-size[1] // patch_size)
        batch = max(1, tokens_per_batch // max(1, tokens))
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            yield part, self._inputs(tops[part], lefts[part], size)

    def _inputs(self, tops: np.ndarray, lefts: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Inputs of `CropLEMModel.forward` for n windows."""
        n = len(tops)
        inputs, firsts, new_years = {"gsd": np.full(n, self.gsd, np.float32)}, [], []
        for sensor, part in self.sensors.items():
            values = sliding_window_view(part["values"], size, axis=(2, 3))[:, :, tops, lefts]
            valid = sliding_window_view(part["valid"], size, axis=(1, 2))[:, tops, lefts]
            inputs[f"{sensor}_values"] = np.ascontiguousarray(values.transpose(2, 0, 1, 3, 4))
            inputs[f"{sensor}_valid"] = np.ascontiguousarray(valid.transpose(1, 0, 2, 3))
            there = valid.any(axis=(2, 3)).T
            firsts.append(np.where(there, part["ordinals"], np.iinfo(np.int64).max))
            new_years.append(part["new_years"])
            if sensor == "s2":
                inputs["s2_bands"] = np.repeat(part["bands"][None], n, axis=0)
                inputs["s2_level"] = np.full(n, part["level"])
        # Days count from the year of a window's own first valid date.
        new_year = np.concatenate(new_years)[np.concatenate(firsts, axis=1).argmin(axis=1)]
        for sensor, part in self.sensors.items():
            inputs[f"{sensor}_days"] = part["ordinals"] - new_year[:, None]
        return inputs


def read_block(
    scene: Scene,
    embedder: Embedder,
    sensors: Sequence[str] | None,
    window: tuple[int, int, int, int],
) -> Block:
    """Read and standardise a rectangle.

    Args:
        scene: the place.
        embedder: its processor standardises.
        sensors: use only these; None for all.
        window: row, column, height and width in pixels; what lies beyond the lower and right edges is not valid.
    """
    row, column, height, width = window
    inside = (min(height, scene.height - row), min(width, scene.width - column))
    fields = scene.arrays(row, column, *inside)
    wanted = [sensor for sensor in scene.dates if sensor in fields and (sensors is None or sensor in sensors)]
    wanted = [sensor for sensor in wanted if fields[f"{sensor}_valid"].any()]
    seen = np.zeros((height, width), bool)
    if not wanted:
        return Block({}, seen, scene.gsd)
    inputs = embedder.processor(fields | {"id": scene.id, "gsd": scene.gsd}, sensors=wanted, return_tensors="np")
    parts = {}
    for sensor in wanted:
        days = [date.fromisoformat(text[:10]) for text in fields[f"{sensor}_dates"]]
        parts[sensor] = {
            "values": _padded(inputs[f"{sensor}_values"][0], (height, width)),
            "valid": _padded(inputs[f"{sensor}_valid"][0], (height, width)),
            "ordinals": np.array([day.toordinal() for day in days]),
            "new_years": np.array([day.replace(month=1, day=1).toordinal() for day in days]),
        }
        seen |= parts[sensor]["valid"].any(axis=0)
    if "s2" in parts:
        parts["s2"] |= {"bands": inputs["s2_bands"][0], "level": inputs["s2_level"][0]}
    return Block(parts, seen, scene.gsd)


def pixels_at_once(scene: Scene) -> int:
    """How many pixels of a scene make `BLOCK_VALUES`."""
    return BLOCK_VALUES // (2 * len(scene.dates["s1"]) + 13 * len(scene.dates["s2"]))


def _padded(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(..., h, w) with zeros below and to the right, up to `size`."""
    lack = [want - have for want, have in zip(size, array.shape[-2:], strict=True)]
    return np.pad(array, [(0, 0)] * (array.ndim - 2) + [(0, n) for n in lack]) if any(lack) else array


def _box_sums(valid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool (T, h, w) -> int (h - height + 1, w - width + 1), how many are true in each window of `size`."""
    total = np.pad(valid.sum(axis=0).cumsum(axis=0).cumsum(axis=1), [(1, 0), (1, 0)])
    total = total[size[0] :] - total[: -size[0]]
    return total[:, size[1] :] - total[:, : -size[1]]


__all__ = ["BLOCK_VALUES", "Block", "pixels_at_once", "read_block"]
