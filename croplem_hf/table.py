"""The embeddings table: Parquet of `id`, `embedding` and metadata, that says how its vectors were made."""

import collections
import dataclasses
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import CheckpointError, DataError

KEY = b"croplem"
SETTINGS = ("weights_hash", "processor", "sensors", "patch_size", "pooling", "centred", "unit")
"""What two tables must share for their vectors to be comparable."""
ROW_GROUP = 8192


@dataclasses.dataclass
class EmbeddingsTable:
    """Embeddings in memory.

    ids: list of str, unique. vectors: float32 (N, D). metadata: the other columns, N rows. info: how the vectors were
    made (model, weights_hash, processor, sensors, patch_size, pooling, centred, unit, dim, source, library_version,
    created, skipped); empty for a foreign table.
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
        return EmbeddingsTable(ids, self.vectors[rows], self.metadata.take(pa.array(rows)), self.info)

    @property
    def content_hash(self) -> str:
        """SHA-256 over ids and vectors: the same for the same rows in the same order, whatever the file."""
        return content_hash(self.ids, self.vectors)

    @property
    def settings(self) -> dict:
        """The part of `info` that must agree for two tables to be comparable."""
        return {key: self.info[key] for key in SETTINGS if key in self.info}


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
    vectors = _vectors(path, table["embedding"].combine_chunks(), ids)
    metadata = table.drop_columns(["id", "embedding"]).replace_schema_metadata(None)
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
        for batch in open_table(path).iter_batches(rows, columns=["id", "embedding"]):
            ids = _ids(path, batch["id"], start)
            vectors = _vectors(path, batch["embedding"], ids)
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                raise DataError(f"{path}: the embedding of {ids[0]!r} has {vectors.shape[1]} numbers, expected {width}")
            yield ids, vectors
            start += len(ids)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error


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


def _vectors(path: Path, column: pa.Array, ids: list[str]) -> np.ndarray:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
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
        vectors = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(ids), -1)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: {len(bad)} embeddings hold NaN or infinite values, the first is {ids[bad[0]]!r}")
    return vectors


class TableWriter:
    """Writes an embeddings table in parts of its source, so that a run that was cut off goes on where it stopped.

    Walk the source from row 0: where `finished(row)` gives the end of a part, go on there, else embed some rows and
    `add_part` them; then `finish`. Parts lie in the folder `PATH.parts`; `finish` joins them in the order of the source
    and only then puts the table under its name.

    Args:
        path: Parquet file to write; an embeddings table that is there is replaced by `finish`.
        info: how the vectors are made; `created` and `skipped` are added.
        ids: the ids of the source, in its order.

    Raises:
        DataError: ids repeat, or something else than an embeddings table lies at `path`.
        CheckpointError: an unfinished table of other settings or another source lies at `path`.
    """

    def __init__(self, path: str | os.PathLike, info: dict, ids: Sequence[str]):
        self.path = Path(path)
        check_unique(self.path, ids)
        _check_replaceable(self.path)
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.total = len(ids)
        items = hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
        manifest = json.loads(json.dumps({"info": info, "items": items}))
        self.info = manifest["info"]
        file = self.parts / "manifest.json"
        self._found = {int(part.stem.split("-")[1]): part for part in self.parts.glob("part-*-*.parquet")}
        if file.is_file():
            try:
                found = json.loads(file.read_text())
                different = [k for k in found["info"] | info if found["info"].get(k) != self.info.get(k)]
                different += ["the items of the source"] if found["items"] != items else []
            except (ValueError, KeyError, TypeError):
                different = ["everything (its manifest.json is damaged)"]
            if different:
                raise CheckpointError(
                    f"{self.parts} holds an unfinished table that differs in {', '.join(different)}; "
                    "delete that folder to start over, or write to another file"
                )
        else:
            self.parts.mkdir(parents=True, exist_ok=True)
            # Parts without a manifest are what a killed `discard` left behind.
            while self._found:
                self._found.popitem()[1].unlink()
            partial = file.with_suffix(".tmp")
            partial.write_text(json.dumps(manifest))
            os.replace(partial, file)

    def finished(self, start: int) -> int | None:
        """Where the part that begins at row `start` of the source ends; None if there is none or it is damaged."""
        part = self._found.get(start)
        if part is None:
            return None
        try:
            pq.read_metadata(part)
        except (pa.ArrowException, OSError):
            self._found.pop(start).unlink(missing_ok=True)
            return None
        return _stop(part)

    def add_part(
        self, start: int, stop: int, vectors: np.ndarray, rows: Sequence[dict], skipped: Sequence[tuple[str, str]]
    ) -> None:
        """Store what became of rows `start` to `stop` of the source.

        Args:
            start, stop: the rows, `stop` excluded.
            vectors: float32 (n, D); n may be 0.
            rows: n dicts with `id` and metadata: text, numbers, bools, lists of floats or None. A column that is named
                `embedding` gives way to the vectors.
            skipped: (id, reason) of the other items, which could not be embedded.
        """
        columns = {}
        if rows:
            names = ["id", "embedding", *dict.fromkeys(name for row in rows for name in row)]
            columns = {name: _column([row.get(name) for row in rows]) for name in names}
            flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pa.table(columns).replace_schema_metadata({"skipped": json.dumps(list(skipped))})
        target = self.parts / f"part-{start:010d}-{stop:010d}.parquet"
        partial = target.with_suffix(".tmp")
        pq.write_table(table, partial)
        os.replace(partial, target)
        self._found[start] = target

    def skipped(self) -> list[tuple[str, str]]:
        """(id, reason) of all items that could not be embedded, in the order of the source."""
        return [tuple(s) for part in self._chain() for s in json.loads(pq.read_schema(part).metadata[b"skipped"])]

    def finish(self) -> None:
        """Join the parts under the final name and remove their folder. Needs memory for one row group."""
        parts = self._chain()
        schema = _unify([s for s in (pq.read_schema(part) for part in parts) if "id" in s.names])
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        info = self.info | {"created": created, "skipped": len(self.skipped())}
        partial = self.path.with_name(self.path.name + ".tmp")
        with pq.ParquetWriter(partial, schema.with_metadata({KEY: json.dumps(info)})) as writer:
            group = []
            for part in parts:
                table = pq.read_table(part, partitioning=None)
                if len(table):
                    group.append(_conform(table, schema))
                if part is parts[-1] or sum(map(len, group)) >= ROW_GROUP:
                    writer.write_table(pa.concat_tables(group) if group else schema.empty_table())
                    group = []
        os.replace(partial, self.path)
        self.discard()

    def discard(self) -> None:
        """Remove the folder of parts."""
        shutil.rmtree(self.parts)

    def _chain(self) -> list[Path]:
        """The parts that cover the source, from its first row to its last."""
        chain, row = [], 0
        while row < self.total:
            if row not in self._found:
                raise CheckpointError(f"{self.parts}: rows from {row} on are missing; run the same command again")
            chain.append(self._found[row])
            row = _stop(chain[-1])
        return chain


def _stop(part: Path) -> int:
    return int(part.stem.rpartition("-")[2])


def _check_replaceable(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the name of a .parquet file")
    if path.exists():
        try:
            names = pq.read_schema(path).names
        except (pa.ArrowException, OSError):
            names = []
        if not {"id", "embedding"} <= set(names):
            raise DataError(f"{path}: exists and is no embeddings table; give another name")


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` in its order and types; those that the part lacks are null."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    # Not safe: integers that no double holds exactly are rounded, not refused.
    return table.select(schema.names).cast(schema, safe=False)


def _column(values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # Numbers of both kinds become floats; other mixtures, and integers beyond 64 bits, become text.
        if all(v is None or isinstance(v, float) or (isinstance(v, int) and abs(v) < 2**63) for v in values):
            return pa.array([None if v is None else float(v) for v in values], pa.float64())
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def _unify(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for all parts: ints and floats become floats, other mixtures and columns without a value text."""
    types: dict[str, pa.DataType] = {}
    for name in dict.fromkeys(name for schema in schemas for name in schema.names):
        fields = [pa.schema([schema.field(name)]).remove_metadata() for schema in schemas if name in schema.names]
        try:
            types[name] = pa.unify_schemas(fields, promote_options="permissive").field(0).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            types[name] = pa.string()
        if pa.types.is_null(types[name]):
            types[name] = pa.string()
    return pa.schema(types)


__all__ = [
    "EmbeddingsTable", "TableWriter", "check_unique", "content_hash", "content_hash_of_blocks", "open_table",
    "read_batches", "read_info", "read_table",
]  # fmt: skip
