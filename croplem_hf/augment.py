"""Training batches: how each one looks, what is varied in its samples, and what stands in for a damaged item.

Everything is a function of the seed and of numbers: what a whole batch shares (patch size, sensors, dates, crop) of the
batch's number, what is done to one sample of its id, the epoch and the repetition. So it does not matter which process
or worker makes a batch, or whether the run was resumed.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .data.plan import BatchPlan
from .data.sample import Sample
from .errors import DataError
from .sensors import SENSORS

# A batch in which more than half of at least this many items were damaged is given up.
FEWEST_TRIED = 16
_RECIPE, _SAMPLE, _MASK = 11, 12, 13


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is varied in training.

    Attributes:
        date_jitter_days: of sources whose dates are the middle of a three-month window (SEN12MS): each sensor's date
            moves by up to this many days either way.
        calendar_shift: share of the samples whose dates all move by the same 0 to 364 days.
        flips: turn and mirror images.
        radar_gain_db: standard deviation, in dB, of a gain on the radar of a sample.
        optics_gain: standard deviation of the logarithm of a factor on the optics of a sample.
        hide_sensor: share of the batches with both sensors that lose one of them, so that either suffices.
        drop_dates: share of the batches of three dates or more in which each sample keeps only some of its dates.
    """

    date_jitter_days: int = 45
    calendar_shift: float = 0.5
    flips: bool = True
    radar_gain_db: float = 1.5
    optics_gain: float = 0.1
    hide_sensor: float = 0.3
    drop_dates: float = 0.5

    def __post_init__(self):
        for key in ("calendar_shift", "hide_sensor", "drop_dates"):
            if not 0 <= getattr(self, key) <= 1:
                raise DataError(f"augmentation.{key} must lie between 0 and 1, found {getattr(self, key)}")
        for key in ("date_jitter_days", "radar_gain_db", "optics_gain"):
            if not getattr(self, key) >= 0:
                raise DataError(f"augmentation.{key} must be at least 0, found {getattr(self, key)}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the samples of one batch share: patch size, sensors, dates at most of each sensor, pixels at most."""

    patch_size: int
    sensors: tuple[str, ...]
    dates: tuple[int, int]
    height: int
    width: int


def draw_recipe(
    shapes: np.ndarray,
    *,
    seed: int,
    number: int,
    patch_sizes: Sequence[int],
    max_tokens: int,
    augmentation: Augmentation,
) -> Recipe:
    """The recipe of batch `number`, the same in every process.

    Args:
        shapes: (n, 4), T1, T2, height and width of all items of the batch, over all processes.
        patch_sizes: to draw from, among those not larger than the images (the smallest one, if all are).
        max_tokens: larger images are cropped, so that a sample has at most this many tokens at the drawn patch size.
    """
    rng = np.random.default_rng([seed, number, _RECIPE])
    hide, drop, which, patch = rng.random(4)
    present = [s for k, s in enumerate(SENSORS) if shapes[:, k].any()]
    if shapes[:, :2].all() and hide < augmentation.hide_sensor:
        present = [present[int(which < 0.5)]]
    dates = [int(shapes[:, k].max()) if s in present else 0 for k, s in enumerate(SENSORS)]
    if drop < augmentation.drop_dates:
        dates = [t if t < 3 else int(rng.integers(2, t)) for t in dates]
    height, width = shapes[:, 2:].min(axis=0).tolist()
    fitting = [p for p in patch_sizes if p <= min(height, width)] or [min(patch_sizes)]
    p = fitting[int(patch * len(fitting))]
    side = p * max(1, math.isqrt(max_tokens // sum(dates)))
    return Recipe(p, tuple(present), tuple(dates), min(height, side), min(width, side))


def augment(
    sample: Sample, recipe: Recipe, rng: np.random.Generator, settings: Augmentation, *, jitter: bool = False
) -> Sample:
    """A varied copy of a sample, of the sensors, dates and size that the recipe wants.

    Args:
        sample: see `data.sample`; it is not changed.
        recipe: of its batch.
        rng: of this sample.
        settings: what to vary.
        jitter: whether its dates stand for a window of three months.

    Returns:
        A sample with those keys that the processor reads. It may hold less than the recipe says, never more.
    """
    shift = int(rng.integers(0, 365)) if rng.random() < settings.calendar_shift else 0
    out = {"id": sample["id"], "gsd": sample["gsd"], "s2_level": sample.get("s2_level")} | dict.fromkeys(SENSORS)
    wanted = [s for s in recipe.sensors if sample[s] is not None]
    if not wanted:
        return out
    valid = np.concatenate([sample[f"{s}_valid"] for s in wanted]).any(axis=0)
    window = _window(valid, recipe.height, recipe.width, rng)
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    for sensor in wanted:
        gain, days = rng.normal(), int(rng.integers(-settings.date_jitter_days, settings.date_jitter_days + 1))
        kept = _dates(sample[f"{sensor}_valid"], recipe.dates[SENSORS.index(sensor)], rng)
        values, mask = sample[sensor][(kept, slice(None), *window)], sample[f"{sensor}_valid"][(kept, *window)]
        if settings.flips:
            values, mask = (_turn(x, turns, mirror) for x in (values, mask))
        if sensor == "s1":
            values = values + np.float32(gain * settings.radar_gain_db)
        else:
            values = values * np.float32(math.exp(gain * settings.optics_gain))
            out["s2_bands"] = sample["s2_bands"][kept]
        moved = np.timedelta64(shift + (days if jitter else 0), "D")
        dates = np.array([sample[f"{sensor}_dates"][t][:10] for t in kept], "datetime64[D]") + moved
        out |= {sensor: values, f"{sensor}_valid": mask, f"{sensor}_dates": dates.astype(str).tolist()}
    return out


def _window(valid: np.ndarray, height: int, width: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A random window; where it holds nothing valid, one around a random valid pixel."""
    shape = np.array(valid.shape)
    size = np.minimum(shape, (height, width))
    corner = rng.integers(0, shape - size + 1)
    window = tuple(slice(a, a + n) for a, n in zip(corner.tolist(), size.tolist(), strict=True))
    pixels = np.argwhere(valid)
    if len(pixels) and not valid[window].any():
        pixel = pixels[rng.integers(len(pixels))]
        corner = np.clip(pixel - rng.integers(0, size), 0, shape - size)
        window = tuple(slice(a, a + n) for a, n in zip(corner.tolist(), size.tolist(), strict=True))
    return window


def _dates(valid: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the dates to keep, in order; dates that hold something go first."""
    if count >= len(valid):
        return np.arange(len(valid))
    order = rng.permutation(len(valid))
    filled = valid[order].any(axis=(1, 2))
    return np.sort(np.concatenate([order[filled], order[~filled]])[:count])


def _turn(x: np.ndarray, turns: int, mirror: bool) -> np.ndarray:
    """Turn by quarters, or by halves where the sides differ, and mirror."""
    quarters = turns if x.shape[-2] == x.shape[-1] else turns // 2 * 2
    x = np.rot90(x, quarters, axes=(-2, -1))
    return x[..., ::-1] if mirror else x


def sample_seed(seed: int, id: str, epoch: int, repeat: int) -> np.random.Generator:
    """Generator of one sample in one epoch."""
    name = int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest())
    return np.random.default_rng([seed, name, epoch, repeat, _SAMPLE])


def mask_seed(seed: int, number: int, rank: int) -> int:
    """Seed of the masks and hidden bands of one process in batch `number`, 0 to 2^63 - 1."""
    return int(np.random.SeedSequence([seed, number, rank, _MASK]).generate_state(1, np.uint64)[0] >> np.uint64(1))


class TrainingBatches:
    """Map-style data set whose item `number` is this process's part of batch `number` of the run.

    An item is a dict: `inputs`, the model's inputs, or None where the batch had to be given up; `patch_size`; `ids`;
    `bad`, the (id, reason) of items that could not be read and were replaced; `tried`, how many were read.

    Args:
        sources: as `open_source` gives them.
        plan: over these sources.
        processor: of the model.
        patch_sizes, max_tokens, augmentation: see `draw_recipe`.
        seed: of the augmentation.
        rank, ranks: this process and how many there are; `plan.batch_size` is divisible by `ranks`.
        targets: {id: vector (K,)}, of which the samples that have one bring it as `latent_target` in `inputs`.
    """

    def __init__(
        self,
        sources: Sequence,
        plan: BatchPlan,
        processor,
        *,
        patch_sizes: Sequence[int],
        max_tokens: int,
        augmentation: Augmentation,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        targets: Mapping[str, np.ndarray] | None = None,
    ):
        self.sources, self.plan, self.processor = sources, plan, processor
        self.patch_sizes, self.max_tokens, self.augmentation = tuple(patch_sizes), max_tokens, augmentation
        self.seed, self.rank, self.ranks = seed, rank, ranks
        self.targets = targets or {}

    def __getitem__(self, number: int) -> dict:
        items = self.plan.batch(number)
        recipe = draw_recipe(
            self.plan.shapes(items), seed=self.seed, number=number, patch_sizes=self.patch_sizes,
            max_tokens=self.max_tokens, augmentation=self.augmentation,
        )  # fmt: skip
        epoch = number // self.plan.batches_per_epoch
        out = {"inputs": None, "patch_size": recipe.patch_size, "ids": [], "bad": [], "tried": 0}
        samples = []
        for source, row, repeat in items[self.rank :: self.ranks].tolist():
            sample = self._load(source, row, repeat, epoch, recipe, out)
            if sample is None:
                return out
            samples.append(sample)
        out["ids"] = [sample["id"] for sample in samples]
        out["inputs"] = dict(self.processor(samples, sensors=recipe.sensors))
        if self.targets:
            none = np.full_like(next(iter(self.targets.values())), np.nan)
            found = np.stack([self.targets.get(id, none) for id in out["ids"]])
            out["inputs"]["latent_target"] = torch.from_numpy(found)
        return out

    def _load(self, source: int, row: int, repeat: int, epoch: int, recipe: Recipe, out: dict) -> Sample | None:
        """The sample, or the next one that can be used; None where too many cannot be read."""
        candidates = self.plan.replacements(source, row)
        while True:
            out["tried"] += 1
            try:
                sample = self.sources[source][row]
                rng = sample_seed(self.seed, sample["id"], epoch, repeat)
                jitter = getattr(self.sources[source], "seasonal", False)
                sample = augment(sample, recipe, rng, self.augmentation, jitter=jitter)
                # A sound item may still lack the one sensor that this batch shows; it is replaced without complaint.
                if any(sample[s] is not None and sample[f"{s}_valid"].any() for s in SENSORS):
                    return sample
            except DataError as error:
                out["bad"].append((self.sources[source].ids[row], str(error)))
                if out["tried"] >= FEWEST_TRIED and 2 * len(out["bad"]) > out["tried"]:
                    return None
            following = next(candidates, None)
            if following is None:
                return None
            source, row = following


__all__ = [
    "FEWEST_TRIED",
    "Augmentation",
    "Recipe",
    "TrainingBatches",
    "augment",
    "draw_recipe",
    "mask_seed",
    "sample_seed",
]
