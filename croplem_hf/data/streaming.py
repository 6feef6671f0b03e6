"""SEN12MS as a stream: a `datasets.IterableDataset` over an unpacked tree or over shards, here or on the Hub.

The order of a stream is fixed before anything is read, by the seed, the epoch and the ids that are there. So it goes on
at any batch, and no buffer holds patches: samples are read one by one, whatever their order.
"""

import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from .sample import Sample
from .splits import SPLITS, scene_places, scene_splits

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

LANES = 5760
"""Parts of a stream whose number of workers is not given; the numbers of processes in use divide it: 1 to 6, 8, 9, 10,
12, 15, 16, 24, 32, 48, 64, 96, 128. Where it does not divide, `split_dataset_by_node` lets each process read all."""

# A lost disk must not pass for a stream of damaged items.
_MOST_IN_A_ROW = 100


def load_sen12ms(
    root: str | os.PathLike,
    split: str | None = "train",
    *,
    seasons: Sequence[str] | None = None,
    sensors: Sequence[str] | None = None,
    labels: bool = True,
    seed: int | None = None,
    epoch: int = 0,
    batch_size: int = 1,
    rank: int = 0,
    ranks: int = 1,
    num_workers: int | None = None,
    start_batch: int = 0,
    drop_last: bool = False,
    skip: Collection[str] = (),
    findings: str | os.PathLike | None = None,
    strict: bool = False,
) -> "datasets.IterableDataset":
    """Stream the samples of SEN12MS (see `sample`), their arrays as they are: float32, uint16, bool.

    There are two ways to share a stream among processes and loader workers:

    - `num_workers` left out: any `DataLoader`, and `datasets.distributed.split_dataset_by_node` or `rank` of `ranks`,
      not both. Every sample comes once, in an order that depends on the number of workers; processes may get a few
      samples more or less than others.
    - `num_workers` as given to the `DataLoader`, and `rank` of `ranks`: batches of `batch_size` in one order, whatever
      the number of workers, and `start_batch` goes on in it:

          done = 1200                                     # batches of this epoch that are behind us
          stream = load_sen12ms("shards", seed=0, epoch=3, batch_size=64, rank=rank, ranks=8, num_workers=4,
                                start_batch=done, drop_last=True)
          for batch in DataLoader(stream, batch_size=64, num_workers=4, collate_fn=list):
              train_on(batch)                             # a list of 64 samples
              done += 1

    A sample that cannot be read is left out with a warning, and those behind it in its worker move up: a run that goes
    on after that loses nothing and may see a few samples again. With `findings` they are known before.

    A new epoch is a new stream with another `epoch`; `set_epoch` of the dataset knows nothing of batches. Do not set a
    format: "numpy" and "torch" turn uint16 into int64.

    Args:
        root: an unpacked tree (`SEN12MSFolder`), a folder of shards, its address or its name on the Hub.
        split: "train", "validation" or "test": of shards as they were built, of a tree by `scene_splits`. None or "all"
            for everything.
        seasons: some of "winter", "spring", "summer" and "fall"; None for all.
        sensors: which of "s1" and "s2" to read; None for both. A patch with none of them is left out.
        labels: whether to read the raster of land cover.
        seed: of the order, 0 or more; None for the order of the source.
        epoch: 0 or more; with a seed, each has its own order.
        batch_size: samples of a batch of one process.
        rank: number of this process; batches go to the processes in turn.
        ranks: number of processes.
        num_workers: of the `DataLoader` that will read the stream; 0 where the process reads itself.
        start_batch: batches of this process to pass over without reading; needs `num_workers`.
        drop_last: leave out the last batches, so that all processes have as many, and all of them full.
        skip: further ids to leave out, such as "ROIs1868_summer_146_p202", which is known as damaged.
        findings: what `croplem data check` wrote; items with errors are left out.
        strict: raise where a sample cannot be read.

    Returns:
        `datasets.IterableDataset` without features or format.

    Raises:
        DataError: no SEN12MS there, nothing left, or an argument out of range; while reading, with `strict`, naming
            the file, and in any case after 100 failures in a row.
    """
    import datasets

    from . import open_source

    _check(split, seed, epoch, batch_size, rank, ranks, num_workers, start_batch)
    source = open_source(root, sensors=sensors)
    if source.kind not in ("sen12ms", "shards"):
        raise DataError(f"{root}: is a source of {source.kind}, neither a tree of SEN12MS nor shards; use open_source")
    source.labels = labels
    rows = _choose(source, str(root), split, seasons, {*skip, *_damaged(findings)})
    if seed is not None:
        rows = np.random.default_rng([seed, epoch]).permutation(rows)
    whole = batch_size * ranks
    steps = len(rows) // whole if drop_last else -(-len(rows) // whole)
    # int (batches of this process, batch_size), -1 where the last batch is short.
    batches = np.full(steps * whole, -1, np.int32)
    batches[: len(rows)] = rows[: len(batches)]
    batches = batches.reshape(steps, ranks, batch_size)[start_batch:, rank]
    stream = _Stream(source, batches, num_workers, strict)
    return datasets.IterableDataset.from_generator(
        _read, gen_kwargs={"lanes": list(range(stream.lanes)), "stream": stream},
        split=datasets.NamedSplit(split or "all"),
    )  # fmt: skip


class _Stream:
    """What every worker knows of a stream: the source, and which of its rows are in which lane."""

    def __init__(self, source, batches: np.ndarray, num_workers: int | None, strict: bool):
        self.source, self.num_workers, self.strict = source, num_workers, strict
        self.lanes = LANES if num_workers is None else max(1, num_workers)
        self.batches = batches if num_workers is not None else batches[batches >= 0]
        self.failed = self.in_a_row = 0

    def rows(self, lane: int) -> np.ndarray:
        """Of a loader with W workers, batches lane, lane + W, ...; else a run of neighbours."""
        if self.num_workers is not None:
            rows = self.batches[lane :: self.lanes].ravel()
            return rows[rows >= 0]
        # Full lanes first, so that processes and workers, which take lanes in turn, have as many of them.
        size = -(-len(self.batches) // self.lanes)
        return self.batches[lane * size : (lane + 1) * size]

    def check_workers(self) -> None:
        """The order of batches holds only for the number of workers that was given."""
        if self.num_workers is None or "torch" not in sys.modules:
            return
        import torch.utils.data

        info = torch.utils.data.get_worker_info()
        found = 0 if info is None else info.num_workers
        if max(1, found) != self.lanes:
            raise DataError(
                f"load_sen12ms was given num_workers={self.num_workers}, but {found} workers read the stream; give the "
                "same to both, or leave it out here where the order of batches does not matter"
            )

    def read(self, row: int) -> Sample | None:
        """A sample, or None where it cannot be read."""
        try:
            sample = self.source[row]
        except DataError as error:
            if self.strict:
                raise
            self.failed, self.in_a_row = self.failed + 1, self.in_a_row + 1
            logger.warning("left out, number %d in this process: %s", self.failed, error)
            if self.in_a_row >= _MOST_IN_A_ROW:
                raise DataError(f"{self.in_a_row} samples in a row cannot be read; the last: {error}") from error
            return None
        self.in_a_row = 0
        return sample


def _read(lanes: list[int], stream: _Stream) -> Iterator[Sample]:
    stream.check_workers()
    for lane in lanes:
        for row in stream.rows(lane).tolist():
            sample = stream.read(row)
            if sample is not None:
                yield sample


def _check(split, seed, epoch, batch_size, rank, ranks, num_workers, start_batch) -> None:
    if split not in (None, "all", *SPLITS):
        raise DataError(f"split must be one of {SPLITS}, or None or 'all' for everything, found {split!r}")
    if batch_size < 1 or epoch < 0 or start_batch < 0 or (seed or 0) < 0 or (num_workers or 0) < 0:
        raise DataError(
            "batch_size must be at least 1, and seed, epoch, start_batch and num_workers at least 0, "
            f"found {batch_size}, {seed}, {epoch}, {start_batch} and {num_workers}"
        )
    if not 0 <= rank < ranks:
        raise DataError(f"rank must be 0 to ranks - 1, found rank {rank} of {ranks}")
    if start_batch and num_workers is None:
        raise DataError(
            f"start_batch={start_batch} needs num_workers, that of the DataLoader, or 0 where there is none: the order "
            "of batches is unknown without it"
        )


def _damaged(findings: str | os.PathLike | None) -> Collection[str]:
    if findings is None:
        return ()
    from .check import read_findings

    return read_findings(findings)


def _choose(source, where: str, split: str | None, seasons: Sequence[str] | None, skip: set[str]) -> np.ndarray:
    """Rows of the source that are wanted, int32, in its order."""
    from .sen12ms import BAD_PATCHES

    columns = source.columns()
    skip = skip | BAD_PATCHES
    keep = np.array([id not in skip for id in source.ids], bool)
    if seasons is not None:
        seasons = [seasons] if isinstance(seasons, str) else list(seasons)
        found = sorted({season for season in columns["season"] if season is not None})
        missing = [season for season in seasons if season not in found]
        if missing or not seasons:
            raise DataError(f"{where}: no patch of {' or '.join(missing) or 'no season'}, only of {', '.join(found)}")
        keep &= np.isin(columns["season"], seasons)
    if split not in (None, "all"):
        splits = columns["split"] if "split" in columns else _tree_splits(source, columns["scene"])
        found = {name: int(count) for name in SPLITS if (count := (keep & (splits == name)).sum())}
        keep &= splits == split
        if not keep.any():
            raise DataError(f"{where}: nothing is left of split {split!r}; samples of each split: {found}")
    if not keep.any():
        raise DataError(f"{where}: nothing is left; all {len(source)} samples are to be skipped")
    return np.flatnonzero(keep).astype(np.int32)


def _tree_splits(source, scenes: np.ndarray) -> np.ndarray:
    """Split of every patch, object (N,); of all scenes there, so that it does not depend on what is asked for."""
    splits = scene_splits(scene_places(source))
    return np.array([splits[scene] for scene in scenes], object)


__all__ = ["LANES", "load_sen12ms"]
