"""Nearest neighbours of embeddings on FAISS: arrays and tables in, ids and cosines out.

Few vectors are compared one by one. Of many, an index proposes some hundreds from two bits a dimension (product
quantisation of pairs in inverted lists, scanned in registers: arXiv 1812.09162), which are then compared exactly with
vectors that lie on disk as half floats:

    index.json          what the vectors are, and SHA-256 of the other files
    metadata.parquet    id and metadata of each row
    vectors.npy         the vectors, of length one, where there are at most `EXACT_BELOW`; mapped into memory, not read
    vectors.faiss       of more vectors: half floats less `centre`, mapped too
    centre.npy          what was taken off half floats, which else could not tell nearly parallel vectors apart
    lists.faiss         the inverted lists of more vectors
    removed.npy         which rows were removed, where some were
"""

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute

from .errors import CheckpointError, DataError
from .hub import fetch
from .index_build import PRESETS, build_parts, embedding_width, read_metadata, unit_vectors
from .index_files import free_folder, read_folder, write_folder
from .index_halves import HalvesFile, in_memory, new_halves, take_halves
from .table import (
    EmbeddingsTable,
    check_unique,
    content_hash_of_blocks,
    different_settings,
    open_table,
    read_batches,
)

# Up to here exact search answers in milliseconds and needs no training.
EXACT_BELOW = 100_000
RECALL = 0.983
"""Share of the true ten nearest that the default is tuned to, on rows of its own."""

_BLOCK = 65536
_PROBES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
_FACTORS = (16, 24, 32, 40, 50, 64, 128, 256)
_MOST_CANDIDATES = 8192
_AT_ONCE = 2**22  # candidates of all queries that are held together
_TUNING_ROWS = 1024
_EQUAL = 1e-6  # of cosines of the same vectors, summed in another order

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Neighbours:
    """Result of a query of M items, best first: ids, M lists of k names; rows int64 (M, k); cosines float32 (M, k).

    `metadata` is a table of M x k rows, those of the first query first.
    """

    ids: list[list[str]]
    rows: np.ndarray
    scores: np.ndarray
    metadata: pa.Table


class EmbeddingIndex:
    """Embeddings that can be searched by cosine.

        index = EmbeddingIndex.build(read_table("patches.parquet"))
        index.query(ids=["ROIs1970_fall_139_p839"], k=5, where={"season": "fall"})

    Made by `build`, `build_file` or `load`.

    Attributes:
        metadata: pyarrow table of `id` and the metadata columns, a row for each vector, removed ones too.
        info: how the vectors were made.
        content_hash: of the table; of additions and removals too.
        vectors: float32 (N, D) of length one, perhaps on disk; None where there are lists.
        lists: FAISS index that proposes candidates; None where search is exact.
        halves: FAISS index of half floats, less `centre` (D,), that candidates are compared with; None without lists
            and in a compact index.
        settings: preset, and how much is looked at: `probes` lists, `factor` candidates for each result, and the
            `recall` at ten that this had on a sample of the rows.
    """

    def __init__(
        self,
        metadata: pa.Table,
        info: dict,
        content_hash: str,
        *,
        vectors: np.ndarray | None = None,
        halves: faiss.IndexScalarQuantizer | None = None,
        centre: np.ndarray | None = None,
        lists: faiss.Index | None = None,
        removed: np.ndarray | None = None,
        settings: dict | None = None,
    ):
        self.metadata, self.info, self.content_hash = metadata, info, content_hash
        self.vectors, self.halves, self.lists = vectors, halves, lists
        self.centre = np.zeros(self.dim, np.float32) if centre is None else centre
        self.removed = np.zeros(len(metadata), bool) if removed is None else removed
        self.settings = {"preset": "default"} if settings is None else settings
        if lists is not None and halves is None:
            # Inverted lists find the vector of a row only through a map, which is not saved.
            faiss.extract_index_ivf(lists).make_direct_map()
        self._places: dict[str, int] | None = None

    def __len__(self) -> int:
        """Number of vectors that can be found."""
        return len(self.metadata) - int(self.removed.sum())

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1] if self.lists is None else self.lists.d

    @property
    def ids(self) -> list[str]:
        """Names of the vectors that can be found, in the order of the rows."""
        return self.metadata["id"].filter(pa.array(~self.removed)).to_pylist()

    @classmethod
    def build(
        cls,
        table: EmbeddingsTable,
        *,
        preset: str = "default",
        exact_below: int = EXACT_BELOW,
        recall: float = RECALL,
        seed: int = 0,
    ) -> "EmbeddingIndex":
        """Index a table in memory by cosine.

        Args:
            table: the embeddings.
            preset: one of `PRESETS`, above `exact_below` rows.
            exact_below: number of rows up to which search is exact; at least 624 for the default.
            recall: at ten, to which the default is tuned on rows of its own, or as near as it comes.
            seed: of the random rows for training and tuning.

        Raises:
            DataError: a vector has no direction (all zeros), an id twice, or an unknown preset.
        """

        def blocks() -> Iterator[tuple[Sequence[str], np.ndarray]]:
            for start in range(0, len(table), _BLOCK):
                yield table.ids[start : start + _BLOCK], table.vectors[start : start + _BLOCK]

        check_unique("the table", table.ids)
        parts = build_parts(blocks, table.vectors.shape, lambda _, dim: new_halves(dim), preset, exact_below, seed)
        metadata = table.with_ids()
        index = cls(metadata, table.info, table.content_hash, **parts)
        index._tune(recall, seed)
        return index

    @classmethod
    def build_file(
        cls,
        path: str | os.PathLike,
        folder: str | os.PathLike,
        *,
        preset: str = "default",
        exact_below: int = EXACT_BELOW,
        recall: float = RECALL,
        seed: int = 0,
    ) -> "EmbeddingIndex":
        """Index an embeddings table that need not fit into memory, straight into a folder; arguments as in `build`.

        It is read three times. In memory are the lists (44 bytes a vector of 128 numbers), ids and metadata, and, while
        the lists are trained, 39 vectors for each list (at ten million rows 330 MB).

        Args:
            path: the table (Parquet).
            folder: as in `save`.

        Raises:
            DataError: as in `build` and `read_table`, or something else lies at `folder`.
        """
        folder = free_folder(folder)
        # A name that nobody else uses: what lies there is left over from a killed call.
        work = folder.with_name(f".{folder.name}.croplem-work")
        if work.exists():
            shutil.rmtree(work)
        work.mkdir()
        try:

            def blocks() -> Iterator[tuple[Sequence[str], np.ndarray]]:
                return read_batches(path, _BLOCK)

            def open_halves(count: int, dim: int) -> HalvesFile:
                return HalvesFile(work / "vectors.faiss", count, dim)

            file = open_table(path)
            shape = file.metadata.num_rows, embedding_width(file)
            metadata, info = read_metadata(path, file)
            parts = build_parts(blocks, shape, open_halves, preset, exact_below, seed)
            hashed = content_hash_of_blocks(metadata["id"].to_pylist(), shape, (vectors for _, vectors in blocks()))
            index = cls(metadata, info, hashed, **parts)
            index._tune(recall, seed)
            write_folder(index, folder, work / "vectors.faiss")
        finally:
            shutil.rmtree(work)
        return cls.load(folder)

    def _tune(self, recall: float, seed: int) -> None:
        """Set how many lists and candidates are looked at: the least that reaches `recall` on rows of the index."""
        if self.halves is None:
            return
        rows = np.sort(np.random.default_rng([seed, 1]).permutation(len(self.metadata))[:_TUNING_ROWS])
        queries = self._take(rows)
        k = min(10, len(self.metadata) - 1)
        if k < 1:
            return
        # Itself, which each finds, does not count; and of equals any will do.
        least = self._scan(queries, k + 1)[0][:, -1:] - _EQUAL
        lists = faiss.extract_index_ivf(self.lists)
        scanned = len(self.metadata) / lists.nlist
        # A candidate that is compared costs some thirty times one that is scanned.
        trials = sorted((p * scanned + 30 * f * k, p, f) for p in _PROBES for f in _FACTORS if p <= lists.nlist)
        best = None
        for _, probes, factor in trials or [(0, lists.nlist, _FACTORS[0])]:
            self.settings |= {"probes": probes, "factor": factor}
            found = self._search(queries, k + 1)[0]
            reached = float(((found >= least).sum(axis=1) - 1).clip(0).mean() / k)
            if best is None or reached > best["recall"]:
                best = self.settings | {"recall": round(reached, 4)}
            if reached >= recall:
                break
        self.settings = best
        if best["recall"] < recall:
            logger.warning("recall at ten is %.3f, not the %.3f that was asked for", best["recall"], recall)

    def query(
        self,
        vectors: np.ndarray | EmbeddingsTable | None = None,
        *,
        ids: Sequence[str] | None = None,
        k: int = 10,
        where: Mapping[str, object] | None = None,
    ) -> Neighbours:
        """The k nearest items of each vector, or of each indexed item, which is left out of its own result.

        Args:
            vectors: an embeddings table, whose settings must be those of the index; or float (M, D) or (D,), of which
                the caller knows that they were made alike (`check_settings`).
            ids: names of indexed items, instead of vectors.
            k: how many; fewer where the index holds fewer.
            where: for metadata columns the value, or list of values, that results must have: {"region": "Kenya"}.
                Search among those is exact.

        Raises:
            DataError: an unknown id or column, nothing that `where` leaves, or vectors of another length, with NaN or
                without direction.
            CheckpointError: a table that was made with other settings.
        """
        if (vectors is None) == (ids is None):
            raise DataError("give either vectors or ids")
        if k < 1:
            raise DataError(f"k must be at least 1, found {k}")
        own = None
        if ids is not None:
            own, names = np.array([self._row(name) for name in ids], np.int64), list(ids)
            vectors = self._take(own)
        elif isinstance(vectors, EmbeddingsTable):
            self.check_settings(vectors.info)
            vectors, names = vectors.vectors, vectors.ids
        else:
            vectors = np.atleast_2d(vectors)
            names = [f"query {n}" for n in range(len(vectors))]
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise DataError(f"queries have shape {vectors.shape}, the index holds vectors of {self.dim} numbers")
        queries = unit_vectors(vectors, names)
        among = None if where is None else self._chosen(where)
        there = len(self) if among is None else len(among)
        among_own = own is not None and (among is None or bool(np.isin(own, among).any()))
        wanted = min(k + (own is not None), there)
        scores, rows = self._search(queries, wanted) if among is None else self._scan(queries, wanted, among)
        k = min(k, there - among_own)
        if own is not None:
            keep = rows != own[:, None]
            # Where the item itself is not in its list, as among twins or under a filter, the last neighbour goes.
            order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        scores, rows = scores[:, :k], rows[:, :k]
        metadata = self.metadata.take(pa.array(rows.ravel()))
        flat = iter(metadata["id"].to_pylist())
        return Neighbours([[next(flat) for _ in line] for line in rows], rows, scores, metadata)

    def add(self, table: EmbeddingsTable) -> None:
        """Add vectors that were made as those of the index were; the lists stay those of the rows it was built of.

        Columns that only one of the two has are empty for the other. A mapped index is read into memory.

        Raises:
            DataError: an id that is there or twice, vectors of another length or without direction, columns whose
                values do not go together.
            CheckpointError: other settings.
        """
        self.check_settings(table.info)
        if table.vectors.shape[1] != self.dim:
            raise DataError(f"vectors of {table.vectors.shape[1]} numbers, the index holds such of {self.dim}")
        check_unique("the table", table.ids)
        twice = sorted(set(self.ids).intersection(table.ids))
        if twice:
            raise DataError(f"{twice[0]!r} is in the index; remove it first to replace it")
        vectors = unit_vectors(table.vectors, table.ids)
        rows = table.with_ids()
        try:
            self.metadata = pa.concat_tables([self.metadata, rows], promote_options="permissive").combine_chunks()
        except pa.ArrowException as error:
            raise DataError(f"the columns do not go with those of the index ({error})") from error
        if self.lists is not None:
            self.lists.add(vectors)
        if self.halves is not None:
            self.halves = in_memory(self.halves)
            self.halves.add(vectors - self.centre)
        if self.vectors is not None:
            self.vectors = np.concatenate([self.vectors, vectors])
        self.removed = np.concatenate([self.removed, np.zeros(len(table), bool)])
        self._changed("add", table.content_hash)

    def remove(self, ids: Sequence[str]) -> None:
        """Let items be found no more. Their room is used until the index is built again, which pays when whole
        neighbourhoods are gone: the lists looked into are still those around them.

        Raises:
            DataError: an unknown id; then nothing is removed.
        """
        rows = [self._row(name) for name in ids]
        self.removed = self.removed.copy()
        self.removed[rows] = True
        self._changed("remove", json.dumps(sorted(ids)))

    def _changed(self, what: str, of: str) -> None:
        self.content_hash = hashlib.sha256(f"{self.content_hash} {what} {of}".encode()).hexdigest()
        self._places = None

    def check_settings(self, info: dict) -> None:
        """Refuse vectors that were not made as those of the index were.

        Args:
            info: `info` of an embeddings table, or of `Embedder.info`.

        Raises:
            CheckpointError: naming the settings that differ.
        """
        different = different_settings(info, self.info)
        if different:
            raise CheckpointError(
                f"these vectors differ from the index in {', '.join(different)}; embed them with the model and "
                "settings of the index, or index their own table"
            )

    def save(self, folder: str | os.PathLike) -> None:
        """Write the index as a folder, whole or not at all; an index that is there is replaced.

        Raises:
            DataError: something else than an index lies there.
        """
        write_folder(self, free_folder(folder))

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
    ) -> "EmbeddingIndex":
        """Read what `save` wrote, wherever it lies now; the vectors stay on disk and are mapped into memory.

        Args:
            folder: the folder, or where there is none of that name "owner/name", a dataset repository of the Hub.
            revision, token: for the Hub.

        Raises:
            CheckpointError: no index there, or files missing, damaged, foreign or of another format.
        """
        return cls(**read_folder(fetch(folder, "index", revision=revision, token=token)))

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows (M, k) among all that can be found; k at most their number."""
        many = min(k * self.settings.get("factor", 1), max(k, _MOST_CANDIDATES))
        if self.lists is None or many >= len(self) or not len(queries):
            return self._scan(queries, k)
        step = max(1, _AT_ONCE // many)
        parts = [self._propose(queries[start : start + step], k, many) for start in range(0, len(queries), step)]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([rows for _, rows in parts])

    def _propose(self, queries: np.ndarray, k: int, many: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows (M, k) of the best of `many` candidates from the lists."""
        nlist = faiss.extract_index_ivf(self.lists).nlist
        options = {"nprobe": min(self.settings.get("probes", _PROBES[-1]), nlist)}
        if self.removed.any():
            there = np.packbits(~self.removed, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(there)
        parameters = faiss.SearchParametersIVF(**options)
        if self.halves is None:
            scores, rows = self.lists.search(queries, k, params=parameters)
        else:
            both = faiss.IndexRefineSearchParameters(k_factor=many / k, base_index_params=parameters)
            scores, rows = faiss.IndexRefine(self.lists, self.halves).search(queries, k, params=both)
            scores += (queries @ self.centre)[:, None]
        short = (rows < 0).any(axis=1)
        if short.any():
            # The lists looked into held fewer than k.
            scores[short], rows[short] = self._scan(queries[short], k)
        return scores, rows

    def _scan(self, queries: np.ndarray, k: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows (M, k) by comparison with every row that can be found, or with these rows alone."""
        if among is None and self.removed.any():
            among = np.flatnonzero(~self.removed)
        count = len(self.metadata) if among is None else len(among)
        if not k or not len(queries):
            return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
        best = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            rows = np.arange(start, stop) if among is None else among[start:stop]
            block = self._take(slice(start, stop) if among is None else rows)
            found = faiss.knn(queries, block, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
            scores, places = (np.concatenate([a, b], 1) for a, b in zip(best, (found[0], rows[found[1]]), strict=True))
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)
        return best

    def _take(self, rows: np.ndarray | slice) -> np.ndarray:
        """Vectors of some rows, float32."""
        if self.vectors is not None:
            return np.ascontiguousarray(self.vectors[rows])
        if self.halves is not None:
            return take_halves(self.halves, rows) + self.centre
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else np.asarray(rows, np.int64)
        return self.lists.reconstruct_batch(rows).reshape(-1, self.dim)

    def _chosen(self, where: Mapping[str, object]) -> np.ndarray:
        """Rows that can be found and have the wanted values."""
        keep = ~self.removed
        for column, wanted in where.items():
            if column not in self.metadata.column_names:
                raise DataError(f"the index has no column {column!r}; found {', '.join(self.metadata.column_names)}")
            wanted = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
            there = self.metadata[column]
            try:
                if pa.types.is_dictionary(there.type):
                    there = there.cast(there.type.value_type)
                fits = pa.compute.is_in(there, value_set=pa.array(wanted).cast(there.type))
            except (pa.ArrowException, TypeError) as error:
                raise DataError(f"column {column!r} cannot hold {wanted!r} ({error})") from error
            keep &= fits.to_numpy(zero_copy_only=False)
        if not keep.any():
            raise DataError(f"no item of the index has {', '.join(f'{c} {v!r}' for c, v in where.items())}")
        return np.flatnonzero(keep)

    def _row(self, name: str) -> int:
        if self._places is None:
            names = self.metadata["id"].to_pylist()
            self._places = {names[row]: row for row in np.flatnonzero(~self.removed).tolist()}
        if name not in self._places:
            near = difflib.get_close_matches(str(name), list(self._places)[:1000], n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "".join(
                f"; ids look like {example!r}" for example in list(self._places)[:1]
            )  # fmt: skip
            raise DataError(f"the index holds no {name!r}{hint}")
        return self._places[name]


__all__ = ["PRESETS", "EmbeddingIndex", "Neighbours"]
