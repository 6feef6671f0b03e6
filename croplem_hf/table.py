"""The embeddings table: Parquet of `id`, `embedding` and metadata, that says how its vectors were made.

`embedding` is a list of fixed size, float32; or int8 with a column `embedding_scale` (float32), and the vector is then
its codes times its scale (`croplem_hf.compact.quantise`). All that reads tables gives float32.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .compact import dequantise
from .errors import DataError

KEY = b"croplem"
SCALE = "embedding_scale"
COLUMNS = ("id", "embedding", SCALE)
"""Columns that are no metadata."""
SETTINGS = ("weights_hash", "processor", "sensors", "patch_size", "pooling", "centred", "truncate_dim", "unit")
"""What two tables must share for their vectors to be comparable. `precision` and `dtype` only round them."""


@dataclasses.dataclass
class EmbeddingsTable:
    """Embeddings in memory.

    ids: list of str, unique. vectors: float32 (N, D). metadata: the other columns, N rows. info: how the vectors were
    made (model, weights_hash, processor, sensors, patch_size, pooling, centred, truncate_dim, precision, dtype, unit,
    dim, source, origin, library_version, created, skipped); empty for a foreign table.
    """

    ids: list[str]
    vectors: np.ndarray
    metadata: pa.Table
    info: dict

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> "EmbeddingsTable":
        """The given rows (numbers, or a mask of all rows), in the given order."""
        rows = np.arange(len(self))[list(rows)]
        ids = [self.ids[row] for row in rows]
        metadata = self.with_ids().take(pa.array(rows)).drop_columns("id")
        return EmbeddingsTable(ids, self.vectors[rows], metadata, self.info)

    def with_ids(self) -> pa.Table:
        """The metadata with `id` before them. (A table of Arrow without columns has no rows.)"""
        columns = dict(zip(self.metadata.column_names, self.metadata.columns, strict=True))
        return pa.table({"id": pa.array(self.ids, pa.string())} | columns)

    @property
    def content_hash(self) -> str:
        """SHA-256 over ids and vectors: the same for the same rows in the same order, whatever the file."""
        return content_hash(self.ids, self.vectors)

    @property
    def settings(self) -> dict:
        """The part of `info` that must agree for two tables to be comparable."""
        return {key: self.info[key] for key in SETTINGS if key in self.info}


def different_settings(info: dict, other: dict) -> list[str]:
    """Names of the settings that keep vectors of two tables from being compared; `info` of both."""
    return [key for key in SETTINGS if info.get(key) != other.get(key)]


def content_hash(ids: Sequence[str], vectors: np.ndarray) -> str:
    """SHA-256 over ids (N) and float32 vectors (N, D), in their order."""
    return content_hash_of_blocks(ids, vectors.shape, [vectors])


def content_hash_of_blocks(ids: Sequence[str], shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> str:
    """`content_hash` of vectors of `shape` (N, D) that come some rows at a time."""
    digest = hashlib.sha256(json.dumps([list(ids), list(shape)]).encode())
    for block in blocks:
        digest.update(np.ascontiguousarray(block, "<f4").tobytes())
    return digest.hexdigest()


def read_table(path: str | os.PathLike) -> EmbeddingsTable:
    """Read an embeddings table, ours or any Parquet with a text column `id` and a list column `embedding`.

    Raises:
        DataError: no such file, not Parquet, no rows, a column is missing, vectors are ragged or hold NaN, ids repeat.
    """
    path = Path(path)
    file = open_table(path)
    try:
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    ids = _ids(path, table["id"], 0)
    check_unique(path, ids)
    vectors = _vectors(path, table, ids)
    metadata = table.drop_columns([name for name in COLUMNS if name in table.column_names])
    metadata = metadata.replace_schema_metadata(None)
    return EmbeddingsTable(ids, vectors, metadata, read_info(path, file))


def open_table(path: str | os.PathLike) -> pq.ParquetFile:
    """The Parquet file of an embeddings table, its columns checked.

    Raises:
        DataError: no such file, not Parquet, no rows, or a column is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such embeddings table; `croplem embed` writes one")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    schema = file.schema_arrow
    twice = [name for name, times in collections.Counter(schema.names).items() if times > 1]
    if twice:
        raise DataError(f"{path}: two columns are named {twice[0]!r}; rename one")
    for column in ("id", "embedding"):
        if column not in schema.names:
            raise DataError(f"{path}: no column {column!r}; found {', '.join(schema.names)}")
    if file.metadata.num_rows == 0:
        raise DataError(f"{path}: the table has no rows")
    if pa.types.is_nested(schema.field("id").type):
        raise DataError(f"{path}: column 'id' must hold texts or numbers, found {schema.field('id').type}")
    return file


def read_batches(path: str | os.PathLike, rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids and float32 vectors of an embeddings table, at most `rows` at a time; what `read_table` checks, by part.

    Raises:
        DataError: as `read_table`, but for ids that repeat.
    """
    path, start, width = Path(path), 0, None
    try:
        file = open_table(path)
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        for batch in _batches(file, rows, columns):
            ids = _ids(path, batch["id"], start)
            vectors = _vectors(path, pa.table(batch), ids)
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                raise DataError(f"{path}: the embedding of {ids[0]!r} has {vectors.shape[1]} numbers, expected {width}")
            yield ids, vectors
            start += len(ids)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


def _batches(file: pq.ParquetFile, rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """At most `rows` at a time. One call for the whole file would keep what it has read until its end."""
    sizes = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    first = 0
    while first < len(sizes):
        end = first + 1
        while end < len(sizes) and sum(sizes[first : end + 1]) <= rows:
            end += 1
        yield from file.iter_batches(rows, columns=columns, row_groups=list(range(first, end)))
        first = end


def read_info(path: str | os.PathLike, file: pq.ParquetFile) -> dict:
    """How the vectors of an embeddings table were made; empty for a foreign table.

    Raises:
        DataError: what stands there is not JSON.
    """
    try:
        return json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
    except ValueError as error:
        raise DataError(f"{path}: the file's metadata {KEY.decode()!r} is not JSON ({error}); embed again") from error


def _ids(path: Path, column: pa.ChunkedArray | pa.Array, start: int) -> list[str]:
    ids = column.cast(pa.string()).to_pylist()
    if None in ids:
        raise DataError(f"{path}: row {start + ids.index(None)} has no id")
    return ids


def check_unique(path: str | os.PathLike, ids: Sequence[str]) -> None:
    """Refuse ids that repeat."""
    if len(set(ids)) < len(ids):
        name, times = collections.Counter(ids).most_common(1)[0]
        raise DataError(f"{path}: id {name!r} stands in {times} rows; ids must be unique")


def _vectors(path: Path, table: pa.Table, ids: list[str]) -> np.ndarray:
    column = table["embedding"].combine_chunks()
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    coded = is_list and pa.types.is_int8(kind.value_type)
    if coded and SCALE not in table.column_names:
        raise DataError(f"{path}: column 'embedding' holds int8 without the column {SCALE!r} that gives its scale")
    if not is_list or not (coded or pa.types.is_floating(kind.value_type)):
        raise DataError(f"{path}: column 'embedding' must hold lists of floats, found {kind}")
    lengths = np.array(column.value_lengths().fill_null(0))
    wrong = np.flatnonzero(lengths != lengths[0])
    if lengths[0] == 0 or len(wrong):
        row = 0 if lengths[0] == 0 else wrong[0]
        raise DataError(
            f"{path}: the embedding of {ids[row]!r} has {lengths[row]} numbers, expected {lengths[0] or 'at least 1'}"
        )
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{path}: column 'embedding' holds empty values")
    with np.errstate(over="ignore"):  # doubles beyond float32 become infinite and are refused below
        vectors = values.to_numpy(zero_copy_only=False).reshape(len(ids), -1)
        if coded:
            scales = table[SCALE].cast(pa.float32()).to_numpy()  # an empty one becomes NaN
            vectors = dequantise(vectors, scales)
        vectors = vectors.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: {len(bad)} embeddings hold NaN or infinite values, the first is {ids[bad[0]]!r}")
    return vectors


__all__ = [
    "COLUMNS", "EmbeddingsTable", "SCALE", "SETTINGS", "check_unique", "content_hash", "content_hash_of_blocks",
    "different_settings", "open_table", "read_batches", "read_info", "read_table",
]  # fmt: skip
