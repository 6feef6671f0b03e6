"""The embeddings table: Parquet of `id`, `embedding` and metadata, that says how its vectors were made."""

import dataclasses
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import CheckpointError, DataError

KEY = b"croplem"
SETTINGS = ("weights_hash", "processor", "sensors", "patch_size", "pooling", "centred", "unit")
"""What two tables must share for their vectors to be comparable."""


@dataclasses.dataclass
class EmbeddingsTable:
    """Embeddings in memory.

    ids: list of str, unique. vectors: float32 (N, D). metadata: the other columns, N rows. info: how the vectors were
    made (model, weights_hash, processor, sensors, patch_size, pooling, centred, unit, library_version, created, dim,
    skipped); empty for a foreign table.
    """

    ids: list[str]
    vectors: np.ndarray
    metadata: pa.Table
    info: dict

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> "EmbeddingsTable":
        """The given rows, in the given order."""
        rows = np.asarray(rows)
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
    digest = hashlib.sha256(json.dumps([list(ids), list(vectors.shape)]).encode())
    digest.update(np.ascontiguousarray(vectors, "<f4").tobytes())
    return digest.hexdigest()


def read_table(path: str | os.PathLike) -> EmbeddingsTable:
    """Read an embeddings table, ours or any Parquet with a text column `id` and a list column `embedding`.

    Raises:
        DataError: no such file, not Parquet, no rows, a column is missing, vectors are ragged or hold NaN, ids repeat.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such embeddings table; `croplem embed` writes one")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    for column in ("id", "embedding"):
        if column not in table.column_names:
            raise DataError(f"{path}: no column {column!r}; found {', '.join(table.column_names)}")
    if len(table) == 0:
        raise DataError(f"{path}: the table has no rows")
    ids = table["id"].cast(pa.string()).to_pylist()
    if None in ids:
        raise DataError(f"{path}: row {ids.index(None)} has no id")
    if len(set(ids)) < len(ids):
        seen = set()
        twice = next(name for name in ids if name in seen or seen.add(name))
        raise DataError(f"{path}: id {twice!r} stands in more than one row; ids must be unique")
    vectors = _vectors(path, table["embedding"].combine_chunks(), ids)
    info = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    return EmbeddingsTable(ids, vectors, table.drop_columns(["id", "embedding"]).replace_schema_metadata(None), info)


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
    vectors = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(ids), -1)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: {len(bad)} embeddings hold NaN or infinite values, the first is {ids[bad[0]]!r}")
    return vectors


class TableWriter:
    """Writes an embeddings table in chunks of its source, so that a run that was cut off goes on where it stopped.

    Finished chunks lie in the folder `PATH.parts`; `finish` joins them in the order of the source and only then puts
    the table under its name.

    Args:
        path: Parquet file to write.
        info: how the vectors are made; `created` and `skipped` are added.
        ids: the ids of the source, in its order.

    Raises:
        CheckpointError: an unfinished table of other settings or another source lies at `path`.
    """

    def __init__(self, path: str | os.PathLike, info: dict, ids: Sequence[str]):
        self.path = Path(path)
        if self.path.is_dir():
            raise DataError(f"{self.path}: is a folder; give the name of a .parquet file")
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.total = len(ids)
        manifest = {"info": info, "source": hashlib.sha256("\n".join(ids).encode()).hexdigest(), "rows": len(ids)}
        manifest = json.loads(json.dumps(manifest))
        self.info = manifest["info"]
        file = self.parts / "manifest.json"
        if file.exists():
            found = json.loads(file.read_text())
            different = [k for k in self.info if found["info"].get(k) != self.info[k]]
            different += ["the items of the source"] if found["source"] != manifest["source"] else []
            if different:
                raise CheckpointError(
                    f"{self.parts} holds an unfinished table that differs in {', '.join(different)}; "
                    "delete that folder to start over, or write to another file"
                )
        else:
            self.parts.mkdir(parents=True, exist_ok=True)
            _write_text(file, json.dumps(manifest))

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of each chunk of the source that is not finished yet."""
        for start in range(0, self.total, size):
            if not self._part(start).exists():
                yield start, min(start + size, self.total)

    def add_chunk(
        self, start: int, vectors: np.ndarray | None, rows: Sequence[dict], skipped: Sequence[tuple[str, str]]
    ) -> None:
        """Store one chunk.

        Args:
            start: where it begins in the source.
            vectors: float32 (n, D), or None where every item was skipped.
            rows: n dicts with `id` and metadata: text, numbers, bools, lists of floats or None.
            skipped: (id, reason) of the items that could not be embedded.
        """
        columns = {}
        if rows:
            names = list(dict.fromkeys(name for row in rows for name in row))
            columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
            vectors = np.ascontiguousarray(vectors, np.float32)
            flat = pa.array(vectors.reshape(-1), pa.float32())
            columns = {"id": columns.pop("id"), "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])} | columns  # noqa: E501
        table = pa.table(columns).replace_schema_metadata({"skipped": json.dumps(list(skipped))})
        target = self._part(start)
        partial = target.with_suffix(".tmp")
        pq.write_table(table, partial)
        os.replace(partial, target)

    def skipped(self) -> list[tuple[str, str]]:
        """(id, reason) of all items that could not be embedded, in the order of the source."""
        return [tuple(s) for part in self._finished() for s in json.loads(pq.read_schema(part).metadata[b"skipped"])]

    def finish(self) -> None:
        """Join the chunks under the final name and remove the folder of parts. Needs memory for one chunk."""
        parts = self._finished()
        schema = _unify([s for s in (pq.read_schema(part) for part in parts) if "id" in s.names])
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        info = self.info | {"created": created, "skipped": len(self.skipped())}
        partial = self.path.with_name(self.path.name + ".tmp")
        with pq.ParquetWriter(partial, schema.with_metadata({KEY: json.dumps(info)})) as writer:
            for part in parts:
                table = pq.read_table(part, partitioning=None)
                if "id" in table.column_names:
                    missing = [f for f in schema if f.name not in table.column_names]
                    for field in missing:
                        table = table.append_column(field, pa.nulls(len(table), field.type))
                    writer.write_table(table.select(schema.names).cast(schema))
        os.replace(partial, self.path)
        self.discard()

    def discard(self) -> None:
        """Remove the folder of parts."""
        shutil.rmtree(self.parts)

    def _part(self, start: int) -> Path:
        return self.parts / f"part-{start:010d}.parquet"

    def _finished(self) -> list[Path]:
        return sorted(self.parts.glob("part-*.parquet"))


def _column(name: str, values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Numbers of both kinds become floats, anything else mixed becomes text.
        if all(v is None or isinstance(v, (int, float)) for v in values):
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


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)


__all__ = ["EmbeddingsTable", "TableWriter", "content_hash", "read_table"]
