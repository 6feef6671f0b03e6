"""Which samples make up which batch of pretraining: a pure function of the seed and the batch's number.

Nothing is buffered and nothing is remembered, so a run resumes at any batch, with any number of loader workers, and
every process knows the whole plan. `read_layout` tells what the planner must know of a source, the rest does no I/O.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..errors import DataError
from ..sensors import SENSORS

logger = logging.getLogger(__name__)

# Streams of random numbers that must not meet; SeedSequence takes trailing zeros for nothing, so none is 0.
_ORDER, _PART, _REPLACEMENT = 1, 2, 3
# Items that are tried for the size of all: a few files may be damaged.
_SIZE_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the planner knows of a source without decoding it.

    shapes: int32 (N, 4), dates of radar T1, dates of optics T2, height and width in pixels of each item; an item
    with T1 = T2 = 0 is never planned.
    groups: int32 (N,), which items are read together (row group of a table), or None where each is read alone.
    """

    shapes: np.ndarray
    groups: np.ndarray | None = None

    def keep(self, rows: np.ndarray) -> "Layout":
        """The same with only the items planned where `rows`, bool (N,), is True; their numbers stay."""
        return Layout(np.where(rows[:, None], self.shapes, 0), self.groups)

    def crop(self, side: int | None) -> "Layout":
        """The same with images cut to at most `side` pixels."""
        if side is None:
            return self
        return Layout(np.minimum(self.shapes, [np.iinfo(np.int32).max] * 2 + [side] * 2).astype(np.int32), self.groups)


def read_layout(source) -> Layout:
    """Layout of a source as `open_source` gives it: what its `layout()` says, else every item is decoded once.

    A sample that turns out otherwise is padded.

    Raises:
        DataError: nothing can be read.
    """
    if hasattr(source, "layout"):
        return source.layout()
    logger.info("reading all %d items of %s once for their sizes", len(source), source.kind)
    shapes, first = np.zeros((len(source), 4), np.int32), None
    for i in range(len(source)):
        try:
            shapes[i] = sample_shape(source[i])
        except DataError as error:
            logger.warning("left out: %s", error)
            first = first or error
    if not shapes.any():
        raise DataError(f"no item of the source can be read; the first: {first}")
    return Layout(shapes)


def select_items(source, where: Mapping[str, Sequence], test_scenes: bool = False) -> np.ndarray:
    """Which items of a source to use.

    Args:
        source: as `open_source` gives it.
        where: for each column the values that are wanted; columns are those of `source.columns()`, and `id`.
        test_scenes: whether to use the official test scenes of SEN12MS, and what a source itself says is for test.

    Returns:
        bool (N,).

    Raises:
        DataError: an unknown column, or nothing left.
    """
    keep = np.ones(len(source), bool)
    columns = source.columns() if hasattr(source, "columns") else {}
    columns = {**columns, "id": np.array(source.ids, object)}
    if not test_scenes:
        keep &= ~_is_test(source.kind, columns)
    for name, values in where.items():
        if name not in columns:
            known = f"; known are {', '.join(columns)}" if columns else ""
            raise DataError(f"where: the {source.kind} source has no column {name!r} to choose by{known}")
        keep &= np.isin(columns[name].astype(str), [str(value) for value in values])
    if not keep.any():
        raise DataError(
            f"{source.kind} source of {len(source)} items: none is left by where={dict(where)}"
            + ("" if test_scenes else " and without the official test scenes")
        )
    return keep


def _is_test(kind: str, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool (N,): said by a column `split`, or of an official test scene of SEN12MS, in files or shards."""
    from .sen12ms import HELD_OUT_SCENES

    test = np.zeros(len(columns["id"]), bool)
    if "split" in columns:
        test |= columns["split"] == "test"
    if kind in ("sen12ms", "shards") and "scene" in columns:
        test |= np.isin(columns["scene"].astype(str), sorted(HELD_OUT_SCENES))
    return test


def sample_shape(sample: Mapping) -> tuple[int, int, int, int]:
    """T1, T2, height and width of a sample."""
    dates = [0 if sample[s] is None else len(sample[s]) for s in SENSORS]
    image = sample["s1"] if sample["s1"] is not None else sample["s2"]
    return (*dates, *image.shape[2:])


def first_size(source) -> tuple[int, int]:
    """Height and width of the first sample that can be read, for sources whose items are alike.

    Raises:
        DataError: none of the first ones can be read.
    """
    reasons = []
    for i in range(min(len(source), _SIZE_TRIES)):
        try:
            return sample_shape(source[i])[2:]
        except DataError as error:
            reasons.append(error)
    raise DataError(f"the first {len(reasons)} patches cannot be read; the very first: {reasons[0]}")


class BatchPlan:
    """The batches of a pretraining run.

    An item belongs to the bucket of its shape (T1, T2, H, W); a batch takes its items from one bucket, so that nothing
    is padded. What the buckets leave over of one image size, fewer than a batch each, is joined to batches of mixed
    dates, and the last of those is filled up with items of that size taken once more. So in an epoch every item comes
    at least once and, for each image size, fewer than `batch_size` items come again (a size of fewer items than that
    makes one batch in which all of them are repeated). Batches of all buckets and sources alternate at random.

    Where items are read in groups, an epoch walks through a few groups at a time, in an order of its own.

    Args:
        layouts: of the sources.
        batch_size: items of a batch over all processes.
        seed: of the order, 0 or more.
        weights: for each source, how often an epoch takes each of its items: 2 takes all twice, 0.5 takes half of each
            bucket, the other half in the next epoch. None for 1.

    Raises:
        DataError: no item, or an argument out of range.
    """

    def __init__(
        self, layouts: Sequence[Layout], *, batch_size: int, seed: int = 0, weights: Sequence[float] | None = None
    ):
        self.batch_size, self.seed = batch_size, seed
        self.weights = [1.0] * len(layouts) if weights is None else [float(weight) for weight in weights]
        if batch_size < 1 or seed < 0:
            raise DataError(f"batch_size must be at least 1 and seed at least 0, found {batch_size} and {seed}")
        if len(self.weights) != len(layouts) or not all(0 < weight < math.inf for weight in self.weights):
            raise DataError(f"weights must be {len(layouts)} numbers above 0, found {self.weights}")
        self._starts = np.cumsum([0, *(len(layout.shapes) for layout in layouts)])
        self._shapes = np.concatenate([np.zeros((0, 4), np.int32), *(layout.shapes for layout in layouts)])
        self._usable = self._shapes[:, :2].any(axis=1)
        if not self._usable.any():
            raise DataError("the sources hold no item to train on")
        # Numbered by image size first, so that buckets of one size are neighbours.
        found, self._bucket = np.unique(self._shapes[:, [2, 3, 0, 1]], axis=0, return_inverse=True)
        self._bucket = self._bucket.reshape(-1).astype(np.int32)
        self._size = np.unique(found[:, :2], axis=0, return_inverse=True)[1].reshape(-1)
        self._groups = [layout.groups for layout in layouts]
        self._cached: tuple[int, np.ndarray] | None = None
        self._ring = self._rank = None
        self.batches_per_epoch = len(self.epoch(0))

    @property
    def items(self) -> int:
        """Items that are planned, over all sources."""
        return int(self._usable.sum())

    def batch(self, number: int) -> np.ndarray:
        """Batch `number` of the run, counted through all epochs -> int32 (batch_size, 3): source, row and repetition.

        The repetition tells apart the times that an item comes in one epoch.
        """
        epoch, k = divmod(number, self.batches_per_epoch)
        return self.epoch(epoch)[k]

    def epoch(self, epoch: int) -> np.ndarray:
        """All batches of an epoch: int32 (batches_per_epoch, batch_size, 3); the latest one is kept in memory."""
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, self._plan(epoch)
        return self._cached[1]

    def shapes(self, items: np.ndarray) -> np.ndarray:
        """int (n, 2 or more) of sources and rows -> their shapes, int32 (n, 4)."""
        return self._shapes[self._flat(items)]

    def replacements(self, source: int, row: int) -> Iterator[tuple[int, int]]:
        """What to take instead of an item that cannot be used, in order: its bucket, then everything else.

        Neighbours on disk are often damaged together, so the order is shuffled, the same in every epoch.
        """
        if self._ring is None:
            shuffled = np.random.default_rng([self.seed, _REPLACEMENT]).permutation(np.flatnonzero(self._usable))
            self._ring = shuffled[np.argsort(self._bucket[shuffled], kind="stable")].astype(np.int32)
            self._rank = np.empty(len(self._bucket), np.int32)
            self._rank[self._ring] = np.arange(len(self._ring))
        item = int(self._starts[source] + row)
        first, last = np.searchsorted(self._bucket[self._ring], self._bucket[item] + np.arange(2))
        at = int(self._rank[item])
        for walk in (range(at + 1, last), range(first, at), range(last, len(self._ring)), range(first)):
            for place in walk:
                yield tuple(self._pairs(self._ring[place : place + 1])[0].tolist())

    def _flat(self, items: np.ndarray) -> np.ndarray:
        return self._starts[items[:, 0]] + items[:, 1]

    def _pairs(self, flat: np.ndarray) -> np.ndarray:
        source = np.searchsorted(self._starts, flat, side="right") - 1
        return np.stack([source, flat - self._starts[source]], axis=-1).astype(np.int32)

    def _plan(self, epoch: int) -> np.ndarray:
        rng, size = np.random.default_rng([self.seed, epoch, _ORDER]), self.batch_size
        item, time, repeat = self._passes(epoch, rng)
        order = np.lexsort((time, self._bucket[item]))
        item, time, repeat = item[order], time[order], repeat[order]
        _, bucket, counts = np.unique(self._bucket[item], return_inverse=True, return_counts=True)
        place = np.arange(len(item)) - (np.cumsum(counts) - counts)[bucket]
        full = place < (counts // size * size)[bucket]
        chosen, when = [np.flatnonzero(full)], [time[full].reshape(-1, size).mean(axis=1)]
        again = [np.zeros(len(chosen[0]), np.int32)]
        edges = np.flatnonzero(np.diff(self._size[self._bucket[item]], prepend=-1, append=-1))
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            rest = start + np.flatnonzero(~full[start:stop])
            if len(rest) == 0:
                continue
            done = start + np.flatnonzero(full[start:stop])
            pool = np.concatenate([done[np.argsort(time[done], kind="stable")], rest])
            fill = np.arange(-len(rest) % size)
            mixed = np.concatenate([rest, pool[fill % len(pool)]])
            by_bucket = np.argsort(self._bucket[item[mixed]], kind="stable")
            chosen.append(mixed[by_bucket])
            again.append(np.concatenate([np.zeros(len(rest), int), fill // len(pool) + 1])[by_bucket])
            when.append(rng.random(len(mixed) // size))
        chosen, when, again = (np.concatenate(part) for part in (chosen, when, again))
        most = math.ceil(max(self.weights))
        batches = np.concatenate([self._pairs(item[chosen]), (repeat[chosen] + most * again)[:, None]], axis=1)
        batches = batches.astype(np.int32).reshape(-1, size, 3)[np.argsort(when, kind="stable")]
        # Sorted inside a batch, so that items of one row group are read together.
        inside = np.argsort(self._starts[batches[..., 0]] + batches[..., 1], axis=1, kind="stable")
        return np.take_along_axis(batches, inside[..., None], axis=1)

    def _passes(self, epoch: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items of an epoch, when in it each comes (0 to 1), and for which time."""
        parts = []
        for s, weight in enumerate(self.weights):
            rows = np.flatnonzero(self._usable[self._starts[s] : self._starts[s + 1]])
            whole = math.floor(weight)
            for n in range(math.ceil(weight)):
                span = min(1.0, weight - n)
                taken = rows if n < whole else self._share(s, rows, span, epoch)
                window, windows = self._windows(s, taken, rng)
                time = (n + span * (window + rng.random(len(taken))) / windows) / weight
                parts.append((self._starts[s] + taken, time, np.full(len(taken), n)))
        return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))

    def _share(self, source: int, rows: np.ndarray, share: float, epoch: int) -> np.ndarray:
        """A share of each bucket, as many in every epoch; over the epochs all rows take turns."""
        shuffled = np.random.default_rng([self.seed, source, _PART]).permutation(rows)
        bucket = self._bucket[self._starts[source] + shuffled]
        chosen = []
        for b in np.unique(bucket):
            members = shuffled[bucket == b]
            count = math.ceil(share * len(members) - 1e-9)
            chosen.append(members[(epoch * count + np.arange(count)) % len(members)])
        return np.concatenate([np.zeros(0, int), *chosen])

    def _windows(self, source: int, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray | int, int]:
        """Which part of the epoch reads each row, so that a reader holds few row groups at a time."""
        groups = self._groups[source]
        if groups is None or len(rows) == 0:
            return 0, 1
        found, group = np.unique(groups[rows], return_inverse=True)
        # Two groups are what a reader keeps; small groups are cheap to read again, and a batch should mix many.
        width = max(2, math.ceil(4 * self.batch_size * len(found) / len(rows)))
        return rng.permutation(len(found))[group] // width, math.ceil(len(found) / width)


__all__ = ["BatchPlan", "Layout", "first_size", "read_layout", "sample_shape", "select_items"]
