"""A source -> its embeddings table, by one process or by several that share the work, whoever is killed meanwhile.

The source is cut into blocks of rows, a function of its length alone; process r of R takes blocks r, r + R, ... and the
work inside a block depends on its rows alone. So rows and vectors do not depend on R, and a run that was cut off goes
on with any other R. (On CPUs to the last bit where processes have equally many threads.)

Processes meet only in the folder of parts, which all must see: no ports, no collectives, nothing that hangs where one
has died. Each touches a file of its own there; rank 0 waits for the blocks of the others as long as their files move,
then joins the parts.
"""

import contextlib
import csv
import io
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from . import embedding_inputs
from .data.sample import METADATA, SENSOR_KEYS, Sample
from .embedding_inputs import check_usable, size_of
from .embedding_options import EncodeOptions
from .errors import CheckpointError, CropLEMError, DataError
from .sensors import SENSORS
from .table_writer import WAIT, TableWriter, origin_of, rank_file

logger = logging.getLogger(__name__)

# What a reader was told or found out about its data.
SOURCE_OPTIONS = ("kind", "licence", "s1_units", "s2_units", "s2_offset", "s2_level")
# Blocks of a small source, so that many processes have something to do; but no block of fewer rows than this.
BLOCKS, FEWEST_ROWS = 64, 64

_SIGN_OF_LIFE = 5.0
_POLL = 0.5


def export_source(
    embedder,
    source,
    out: str | os.PathLike,
    *,
    progress: bool = True,
    rank: int = 0,
    ranks: int = 1,
    wait: float = WAIT,
    overwrite: bool = False,
    **options,
) -> tuple[int, int] | None:
    """Embed every item of a source into an embeddings table; what is held in memory does not grow with the source.

    Args:
        embedder: an `Embedder`.
        source: as `croplem_hf.open_source` gives it.
        out: Parquet file to write; in a folder that all processes see.
        progress: show a bar on stderr, on rank 0.
        rank, ranks: number of this process and of all that share the work, which all make this call.
        wait: seconds without a sign of life after which another process is given up.
        overwrite: replace a finished table of another source that lies at `out`.
        options: as in `Embedder.encode`.

    Returns:
        Numbers of embeddings and of skipped items; None on other ranks than 0.

    Raises:
        DataError, CheckpointError: as `Embedder.embed_source`.
    """
    if not 0 <= rank < ranks:
        raise DataError(f"rank must lie in 0..{ranks - 1}, found {rank} of {ranks}")
    missing = [name for name in ("ids", "kind", "unit") if not hasattr(source, name)]
    if missing:
        raise DataError(f"{type(source).__name__} is no source (it has no {missing[0]}); open_source(...) gives one")
    out = Path(out)
    info = embedder.info(source.unit, **options)
    info["source"] = {key: getattr(source, key) for key in SOURCE_OPTIONS if hasattr(source, key)}
    rows = block_rows(len(source))
    cut = {"rows": rows, "tokens": EncodeOptions(**options).tokens_per_batch}
    # Rounded when they are stored.
    options = options | {"precision": "float32"}
    quiet = rank > 0 or not progress
    blocks = [(start, min(start + rows, len(source))) for start in range(0, len(source), rows)]
    place = getattr(source, "root", getattr(source, "path", None))
    origin = None if place is None else origin_of(place)
    with (
        TableWriter(
            out, info, source.ids, cut=cut, rank=rank, wait=wait, origin=origin, overwrite=overwrite
        ) as writer,
        _signs_of_life(rank_file(writer.parts, rank)),
        tqdm(total=len(source), unit="samples", disable=quiet, desc=f"embedding {source.kind}") as bar,
    ):
        for start, end in blocks[rank::ranks]:
            row = start
            while row < end:
                stop = writer.finished(row)
                if stop is None:
                    stop = _add_part(embedder, source, writer, row, end, options)
                bar.update(stop - row)
                row = stop
        if rank:
            return None
        _wait_for_others(writer, blocks, ranks, wait, bar)
        return finish_table(writer)


def block_rows(length: int) -> int:
    """Rows of a block of a source of this length."""
    return min(embedding_inputs.CHUNK, max(FEWEST_ROWS, -(-length // BLOCKS)))


def _add_part(embedder, source, writer: TableWriter, start: int, end: int, options: dict) -> int:
    """Embed rows of a block from `start` on, as many as are held in memory at once -> where the next part begins."""
    samples, skipped, values, number = {}, {}, 0, start
    while number < end and values < embedding_inputs.CHUNK_VALUES:
        try:
            samples[number] = check_usable(source[number], number, options.get("sensors"))
            values += size_of(samples[number])
        except CropLEMError as error:
            skipped[number] = str(error)
        number += 1
    try:
        vectors = embedder.encode(list(samples.values()), **options)
    except DataError:
        # Something that only the processor sees; each is asked for alone.
        for row, sample in samples.items():
            try:
                embedder.encode(sample, **options)
            except DataError as error:
                skipped[row] = str(error)
        samples = {row: sample for row, sample in samples.items() if row not in skipped}
        vectors = embedder.encode(list(samples.values()), **options)
    finite = np.isfinite(vectors).all(axis=1)
    skipped |= {row: "its embedding is not finite" for row, good in zip(samples, finite, strict=True) if not good}
    rows = [_row(sample, options.get("sensors")) for sample, good in zip(samples.values(), finite, strict=True) if good]
    reasons = [(source.ids[row], skipped[row]) for row in sorted(skipped)]
    writer.add_part(start, number, vectors[finite], rows, reasons)
    return number


@contextlib.contextmanager
def _signs_of_life(file: Path) -> Iterator[None]:
    """Touch a file now and then, from a thread, so that neither long batches nor slow readers look like death."""
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(_SIGN_OF_LIFE):
            with contextlib.suppress(OSError):  # a full disk, which the writer reports
                os.utime(file)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _wait_for_others(writer: TableWriter, blocks: list[tuple[int, int]], ranks: int, wait: float, bar: tqdm) -> None:
    """Return when all parts are there, and all processes have come, who else would wait for a folder that is gone.

    Raises:
        CheckpointError: a process whose parts are missing gave no sign of life for `wait` seconds.
    """
    # A process is alive as long as its file changes; clocks of several machines need not agree for that.
    seen: dict[int, tuple[float | None, float]] = {}
    while True:
        writer.refresh()
        missing = {rank: 0 for rank in range(1, ranks) if not rank_file(writer.parts, rank).exists()}
        for number, (start, end) in enumerate(blocks):
            row = start
            while row is not None and row < end:
                row = writer.finished(row, repair=False)
            if row is None:
                missing[number % ranks] = missing.get(number % ranks, 0) + end - start
        done = bar.total - sum(missing.values())
        bar.update(max(0, done - bar.n))
        if not missing:
            return
        bar.set_postfix_str(f"waiting for rank {', '.join(map(str, sorted(missing)))}")
        for rank in missing:
            try:
                touched = rank_file(writer.parts, rank).stat().st_mtime
            except OSError:
                touched = None
            if rank not in seen or seen[rank][0] != touched:
                seen[rank] = touched, time.monotonic()
        dead = sorted(rank for rank in missing if time.monotonic() - seen[rank][1] > wait)
        lost = sum(missing[rank] for rank in dead)
        if len(dead) == len(missing) and not lost:
            return
        if lost:
            dead = [rank for rank in dead if missing[rank]]
            raise CheckpointError(
                f"{writer.path}: nothing was heard of rank {', '.join(map(str, dead))} for {wait:g} s, and some of "
                f"{lost} items are missing; what is embedded so far is kept, run the same command again, with any "
                "number of processes"
            )
        time.sleep(_POLL)


def finish_table(writer: TableWriter) -> tuple[int, int]:
    """Join the parts of a table and list in OUT.skipped.csv what is not in it -> numbers of embeddings and of those.

    Raises:
        DataError: nothing could be embedded.
    """
    skipped = writer.skipped()
    listed = writer.path.with_name(writer.path.name + ".skipped.csv")
    writer.write_beside(listed, _skipped_csv(skipped))
    if len(skipped) == writer.total:
        writer.discard()
        raise DataError(
            f"none of {writer.total} items could be embedded, see {listed}; the first: {skipped[0][1]}"
            if skipped
            else "the source holds no items"
        )
    writer.finish()
    if skipped:
        logger.warning("%d of %d items skipped, listed in %s", len(skipped), writer.total, listed)
    return writer.total - len(skipped), len(skipped)


def _row(sample: Sample, sensors: Sequence[str] | None) -> dict:
    """Metadata of a sample that become columns: plain values, the dominant land cover, and what was embedded."""
    row = {"id": sample["id"]} | {key: sample.get(key) for key in METADATA}
    taken = {*row, *SENSOR_KEYS, "lc"}
    row |= {k: v for k, v in sample.items() if k not in taken and isinstance(v, str | int | float | np.generic | None)}
    row["transform"] = None if sample.get("transform") is None else [float(v) for v in sample["transform"]]
    used = [s for s in SENSORS if s in (sensors or SENSORS) and sample[s] is not None]
    row["sensors"] = "+".join(used)
    row |= {f"{s}_date_count": len(sample[f"{s}_dates"]) if s in used else 0 for s in SENSORS}
    row |= {"s1_kind": sample.get("s1_kind"), "s2_level": sample.get("s2_level") if "s2" in used else None}
    row["height"], row["width"] = sample[used[0]].shape[2:]
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}


def _skipped_csv(skipped: Sequence[tuple[str, str]]) -> str | None:
    """A list of (id, reason) as text; None where there is nothing to list."""
    if not skipped:
        return None
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("id", "reason"), *skipped])
    return text.getvalue()


__all__ = ["block_rows", "export_source", "finish_table"]
