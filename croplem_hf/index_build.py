"""Vectors into an index: what is trained, and what is kept of them, a block in memory at a time."""

import os
from collections.abc import Callable, Iterator, Sequence

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DataError
from .index_halves import HalvesFile
from .table import COLUMNS, check_unique, read_info

PRESETS = ("default", "compact")
"""default: half floats behind two bits a dimension, 0.59 of the bytes of float32; compact: one byte a number, 0.29."""

_LEAST_ROWS = 16 * 39  # for the sixteen centres of a pair, by the same rule
Halves = faiss.IndexScalarQuantizer | HalvesFile
_ROWS_PER_LIST = 39  # FAISS warns of fewer in training
_LARGE = 8192  # lists from which a graph finds the nearest ones


def build_parts(
    blocks: Callable[[], Iterator[tuple[Sequence[str], np.ndarray]]],
    shape: tuple[int, int],
    open_halves: Callable[[int, int], Halves],
    preset: str,
    exact_below: int,
    seed: int,
) -> dict:
    """Vectors and lists of an index.

    Args:
        blocks: gives ids and vectors, some at a time, each time from the start.
        shape: of all vectors, (N, D).
        open_halves: given N and D, makes what half floats are added to.
        preset: one of `PRESETS`.
        exact_below: number of rows up to which there are no lists; at least 624 for the default, whose
            lists need so many to be trained.
        seed: of the rows that the lists are trained on.

    Returns:
        `vectors`, `halves`, `centre`, `lists` and `settings`, as `EmbeddingIndex` takes them.

    Raises:
        DataError: an unknown preset, or a vector without direction.
    """
    if preset not in PRESETS:
        raise DataError(f"preset must be one of {', '.join(PRESETS)}, found {preset!r}")
    count, dim = shape
    compact = preset == "compact"
    exact = count <= (exact_below if compact else max(exact_below, _LEAST_ROWS))
    lists = centre = vectors = halves = None
    if not exact:
        lists = _empty_lists(count, dim, compact)
        ivf = faiss.extract_index_ivf(lists)
        rows = np.sort(np.random.default_rng(seed).permutation(count)[: _ROWS_PER_LIST * ivf.nlist])
        sample = _gather(blocks(), rows, dim)
        lists.train(sample)
        if not compact:
            centre, halves = sample.mean(axis=0), open_halves(count, dim)
    else:
        vectors = np.empty(shape, np.float32)
    start = 0
    for ids, block in blocks():
        block = unit_vectors(block, ids)
        if vectors is not None:
            vectors[start : start + len(block)] = block
        if halves is not None:
            halves.add(block - centre)
        if lists is not None:
            lists.add(block)
        start += len(block)
    if isinstance(halves, HalvesFile):
        halves = halves.finish()
    return {"vectors": vectors, "halves": halves, "centre": centre, "lists": lists, "settings": {"preset": preset}}


def _empty_lists(count: int, dim: int, compact: bool) -> faiss.Index:
    lists = max(1, min(2 ** round(np.log2(4 * np.sqrt(count))), count // _ROWS_PER_LIST))
    graph = "_HNSW32" if lists >= _LARGE else ""
    pieces = dim if dim % 2 else dim // 2
    kind = "SQ8" if compact else f"PQ{pieces}x4fsr"
    return faiss.index_factory(dim, f"IVF{lists}{graph},{kind}", faiss.METRIC_INNER_PRODUCT)


def _gather(blocks: Iterator[tuple[Sequence[str], np.ndarray]], rows: np.ndarray, dim: int) -> np.ndarray:
    """The vectors of sorted `rows`, of length one."""
    out, start, filled = np.empty((len(rows), dim), np.float32), 0, 0
    for ids, block in blocks:
        here = rows[(rows >= start) & (rows < start + len(block))] - start
        out[filled : filled + len(here)] = unit_vectors(block[here], [ids[k] for k in here.tolist()])
        start, filled = start + len(block), filled + len(here)
    return out


def read_metadata(path: str | os.PathLike, file: pq.ParquetFile) -> tuple[pa.Table, dict]:
    """Ids and metadata, and `info`, of an embeddings table on disk.

    Raises:
        DataError: an id stands in two rows.
    """
    columns = [name for name in file.schema_arrow.names if name not in COLUMNS]
    table = file.read(["id", *columns]).replace_schema_metadata(None).combine_chunks()
    ids = table["id"].cast(pa.string())
    check_unique(path, ids.to_pylist())
    return table.drop_columns("id").add_column(0, "id", ids), read_info(path, file)


def embedding_width(file: pq.ParquetFile) -> int:
    """Numbers in the first embedding of a table."""
    return len(next(file.iter_batches(1, columns=["embedding"]))["embedding"][0])


def unit_vectors(vectors: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Vectors (M, D) of length one, float32."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    # In doubles: the squares of tiny or huge floats are 0 or infinite.
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise DataError(f"the vector of {names[bad[0]]!r} is all zeros or not finite: it has no direction to compare")
    return np.divide(vectors, norms[:, None], out=np.empty_like(vectors), casting="same_kind")


__all__ = ["PRESETS", "build_parts", "embedding_width", "read_metadata", "unit_vectors"]
