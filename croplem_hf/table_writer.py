"""Writing an embeddings table: in parts, by one process or several, so that a run that was cut off goes on."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .compact import quantise
from .data.files import write_aside
from .errors import CheckpointError, CropLEMError, DataError
from .table import KEY, SCALE, check_unique, read_info

ROW_GROUP = 8192
WAIT = 300.0
"""Seconds without a sign of life after which another process is given up."""

_POLL = 0.2

logger = logging.getLogger(__name__)


class TableWriter:
    """Writes an embeddings table in parts of its source, so that a run that was cut off goes on where it stopped.

    Walk the source from row 0: where `finished(row)` gives the end of a part, go on there, else embed some rows and
    `add_part` them; then `finish`. Parts lie in the folder `PATH.parts`; `finish` joins them in the order of the source
    and only then puts the table under its name.

    Several processes may share the work: each has a rank and adds parts of its own, rank 0 finishes. They meet in the
    folder of parts alone, which must be one that all see. Use it as a context: at its end others may write here again.

    Args:
        path: Parquet file to write; an embeddings table of the same source that is there is replaced by `finish`.
        info: how the vectors are made; `created`, `skipped` and `origin` are added. `precision` "int8" stores codes and
            scales.
        ids: the ids of the source, in its order.
        cut: how the work is cut into parts and batches, which a resumed run must share.
        rank: number of this process; others than 0 wait for rank 0 to begin.
        wait: seconds to wait for that.
        origin: what tells the source from others (`origin_of`), None where nothing does; kept in the table.
        overwrite: replace a table of another source too.

    Raises:
        DataError: ids repeat, something else than an embeddings table, or one of another source, lies at `path`, or
            nothing can be written there.
        CheckpointError: an unfinished table of other settings or another source lies at `path`, another run writes
            there, or rank 0 does not begin.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        info: dict,
        ids: Sequence[str],
        *,
        cut: dict | None = None,
        rank: int = 0,
        wait: float = WAIT,
        origin: str | None = None,
        overwrite: bool = False,
    ):
        self.path, self.origin = Path(path), origin
        check_unique(self.path, ids)
        _check_replaceable(self.path)
        # The others may see the source elsewhere.
        if self.path.exists() and not overwrite and rank == 0:
            _check_source(self.path, ids, info, origin)
        self.parts = self.path.with_name(self.path.name + ".parts")
        self.total, self.rank = len(ids), rank
        items = hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
        manifest = json.loads(json.dumps({"info": info, "items": items, "cut": cut or {}, "origin": origin}))
        self.info = manifest["info"]
        self._found: dict[int, Path] = {}
        self._checked: set[Path] = set()
        file = self.parts / "manifest.json"
        if rank:
            self._wait_for(file, wait)
        with self._writing():
            self.parts.mkdir(parents=True, exist_ok=True)
            # Closed when nobody holds the writer any more, at the latest.
            self._release = weakref.finalize(self, os.close, _claim(rank_file(self.parts, rank), self.path))
        try:
            self.refresh()
            if rank == 0:
                _forget_dead(self.parts)
            if file.is_file():
                self._compare(file, manifest)
            else:
                # Parts without a manifest are what a killed `discard` left behind.
                while self._found:
                    self._found.popitem()[1].unlink()
                with self._writing(), _aside(file) as aside:
                    aside.write_text(json.dumps(manifest))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Let others write here."""
        self._release()

    def refresh(self) -> None:
        """Look for parts that other processes have added."""
        self._found = {int(part.stem.split("-")[1]): part for part in self.parts.glob("part-*-*.parquet")}

    def finished(self, start: int, *, repair: bool = True) -> int | None:
        """Where the part that begins at row `start` of the source ends; None if there is none or it is damaged.

        Args:
            start: a row.
            repair: remove a damaged part, which then is to be made anew; not for parts of other processes.
        """
        part = self._found.get(start)
        if part is None or part in self._checked:
            return None if part is None else _stop(part)
        try:
            pq.read_metadata(part)
        except (pa.ArrowException, OSError):
            if repair:
                self._found.pop(start).unlink(missing_ok=True)
            return None
        self._checked.add(part)
        return _stop(part)

    def add_part(
        self, start: int, stop: int, vectors: np.ndarray, rows: Sequence[dict], skipped: Sequence[tuple[str, str]]
    ) -> None:
        """Store what became of rows `start` to `stop` of the source.

        Args:
            start, stop: the rows, `stop` excluded.
            vectors: float32 (n, D); n may be 0.
            rows: n dicts with `id` and metadata: text, numbers, bools, lists of floats or None. A column that is named
                as one of `croplem_hf.table.COLUMNS` gives way to it.
            skipped: (id, reason) of the other items, which could not be embedded.

        Raises:
            DataError: it cannot be written, as where the disk is full; nothing half is left then.
        """
        columns = {}
        if rows:
            coded = self.info.get("precision") == "int8"
            names = ["id", "embedding", *([SCALE] if coded else []), *(name for row in rows for name in row)]
            columns = {name: _column([row.get(name) for row in rows]) for name in dict.fromkeys(names)}
            numbers = np.asarray(vectors, np.float32)
            if coded:
                numbers, scales = quantise(numbers)
                columns[SCALE] = pa.array(scales)
            flat = pa.array(np.ascontiguousarray(numbers).reshape(-1))
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pa.table(columns).replace_schema_metadata({"skipped": json.dumps(list(skipped))})
        target = self.parts / f"part-{start:010d}-{stop:010d}.parquet"
        with self._writing(), _aside(target) as aside:
            pq.write_table(table, aside)
        self._found[start] = target
        self._checked.add(target)

    def skipped(self) -> list[tuple[str, str]]:
        """(id, reason) of all items that could not be embedded, in the order of the source."""
        return [tuple(s) for part in self._chain() for s in json.loads(pq.read_schema(part).metadata[b"skipped"])]

    def finish(self) -> None:
        """Join the parts under the final name and remove their folder. Needs memory for one row group.

        Raises:
            DataError: it cannot be written; the parts are kept.
            CheckpointError: parts are missing.
        """
        parts = self._chain()
        schema = _unify([s for s in (pq.read_schema(part) for part in parts) if "id" in s.names])
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        info = self.info | {"created": created, "skipped": len(self.skipped())}
        info |= {"origin": self.origin} if self.origin else {}
        # In the folder of parts, so that a kill leaves nothing beside it.
        whole = self.parts / "table.parquet"
        stamped = schema.with_metadata({KEY: json.dumps(info)})
        with self._writing():
            with write_aside(whole) as aside, pq.ParquetWriter(aside, stamped) as writer:
                group = []
                for part in parts:
                    table = pq.read_table(part, partitioning=None)
                    if len(table):
                        group.append(_conform(table, schema))
                    if part is parts[-1] or sum(map(len, group)) >= ROW_GROUP:
                        writer.write_table(pa.concat_tables(group) if group else schema.empty_table())
                        group = []
            os.replace(whole, self.path)
        self.discard()

    def write_beside(self, path: Path, text: str | None) -> None:
        """A text file beside the table, whole or not at all; None removes what is there.

        Raises:
            DataError: it cannot be written.
        """
        with self._writing():
            if text is None:
                path.unlink(missing_ok=True)
                return
            aside = self.parts / path.name
            aside.write_text(text, newline="", encoding="utf-8")
            os.replace(aside, path)

    def discard(self) -> None:
        """Remove the folder of parts."""
        self.close()
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

    def _compare(self, file: Path, manifest: dict) -> None:
        """Refuse to go on with what was begun otherwise."""
        try:
            found, info = json.loads(file.read_text()), self.info
            different = [k for k in found["info"] | info if found["info"].get(k) != info.get(k)]
            different += ["the items of the source"] if found["items"] != manifest["items"] else []
            different += ["how the work is cut"] if found.get("cut", {}) != manifest["cut"] else []
            places = {found.get("origin"), manifest["origin"]} - {None}
            different += ["where the source lies"] if self.rank == 0 and len(places) > 1 else []
        except (ValueError, KeyError, TypeError):
            different = ["everything (its manifest.json is damaged)"]
        if different:
            raise CheckpointError(
                f"{self.parts} holds an unfinished table that differs in {', '.join(different)}; "
                "delete that folder to start over, or write to another file"
            )

    def _wait_for(self, file: Path, wait: float) -> None:
        begin = time.monotonic()
        while not file.is_file():
            if time.monotonic() - begin > wait:
                raise CheckpointError(
                    f"{self.path}: rank 0 has not begun within {wait:g} s, or was done before rank {self.rank} came; "
                    "if the table is not there, run the same command again"
                )
            time.sleep(_POLL)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the file system refuses, as a clear error."""
        try:
            yield
        except CropLEMError:
            raise
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
            kept = "; what is embedded so far is kept, the same command goes on" if self._found else ""
            raise DataError(f"{self.path}: cannot be written ({reason}){kept}") from error


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """As `write_aside`, but not forced to the disk: parts are many, and a damaged one is made anew."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def rank_file(parts: Path, rank: int) -> Path:
    """The file by which a process of a rank tells that it works here."""
    return parts / f"rank-{rank:05d}"


def _forget_dead(parts: Path) -> None:
    """Remove what processes that are gone have left to tell that they work here."""
    for path in parts.glob("rank-*"):
        if path == rank_file(parts, 0):
            continue
        with contextlib.suppress(OSError):  # somebody's, or a file system without locks
            handle = os.open(path, os.O_RDWR)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


def _claim(path: Path, out: Path) -> int:
    """An open file that no other process can have; the claim goes with the process, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(os.fstat(handle), os.stat(path)):
            # Taken for the file of a dead process and removed, between the two lines above.
            os.close(handle)
            return _claim(path, out)
    except (BlockingIOError, PermissionError) as error:
        os.close(handle)
        raise CheckpointError(f"{out}: another run writes it; wait for it, stop it, or give another name") from error
    except OSError as error:
        logger.warning("%s cannot be locked (%s); see that no two runs write %s", path, error, out)
    return handle


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


def origin_of(path: str | os.PathLike) -> str:
    """What tells a source from others: a hash of where it lies, since folders are nobody's business."""
    place = str(path) if "://" in str(path) else str(Path(path).resolve())
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def _check_source(path: Path, ids: Sequence[str], info: dict, origin: str | None) -> None:
    """Refuse to replace the embeddings of another source: other kind or place, or hardly an id in common."""
    file = pq.ParquetFile(path)
    found = read_info(path, file)
    old = file.read_row_group(0, columns=["id"])["id"].cast(pa.string()).to_pylist() if file.num_row_groups else []
    kinds = ((about.get("source") or {}).get("kind") for about in (found, info))
    pairs = [(found.get("origin"), origin), tuple(kinds)]
    known = set(ids)
    same = 2 * sum(name in known for name in old) >= len(old)
    if old and (not same or any(a != b for a, b in pairs if a is not None and b is not None)):
        raise DataError(
            f"{path}: holds the embeddings of another source, such as {old[0]!r}; give another name, or --overwrite "
            "(overwrite=True) to replace them"
        )


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


__all__ = ["TableWriter", "WAIT", "origin_of", "rank_file"]
