"""Nearest neighbours of embeddings on FAISS: arrays and tables in, ids and cosines out."""

import dataclasses
import difflib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import __version__
from .errors import CheckpointError, DataError
from .table import SETTINGS, EmbeddingsTable

FORMAT = 1
FILES = ("index.faiss", "metadata.parquet")
# Up to here exact search answers in milliseconds and needs no training.
EXACT_BELOW = 100_000
# Recall@10 0.989 at 13.6 times the speed of exact search on 1e6 x 128 (IVF4096,SQfp16).
NPROBE = 32
TRAINING_ROWS_PER_LIST = 64
MIN_ROWS_PER_LIST = 39  # faiss warns below


@dataclasses.dataclass
class Neighbours:
    """Result of a query of M items, best first: ids, M lists of k names; rows int64 (M, k); cosines float32 (M, k)."""

    ids: list[list[str]]
    rows: np.ndarray
    scores: np.ndarray


class EmbeddingIndex:
    """Embeddings that can be searched by cosine.

        index = EmbeddingIndex.build(read_table("patches.parquet"))
        index.query(ids=["ROIs1970_fall_139_p839"], k=5)

    Made by `build` or `load`. `ids` are the names in the order of the rows, `metadata` a pyarrow table of `id` and the
    metadata columns, `info` how the vectors were made, `content_hash` that of the table.
    """

    def __init__(self, search: faiss.Index, metadata: pa.Table, info: dict, content_hash: str):
        self.search = search
        self.metadata = metadata
        self.info = info
        self.content_hash = content_hash
        self.ids: list[str] = metadata["id"].to_pylist()
        self._rows = {name: row for row, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return self.search.ntotal

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.search.d

    @classmethod
    def build(cls, table: EmbeddingsTable, *, exact_below: int = EXACT_BELOW, seed: int = 0) -> "EmbeddingIndex":
        """Index a table by cosine: exact for up to `exact_below` rows, inverted lists of half floats above.

        Args:
            table: the embeddings.
            exact_below: number of rows up to which search is exact.
            seed: of the random rows that inverted lists are trained on.

        Raises:
            DataError: a vector has no direction (all zeros).
        """
        vectors = _unit(table.vectors, table.ids)
        count, dim = vectors.shape
        if count <= exact_below:
            search = faiss.IndexFlatIP(dim)
        else:
            lists = min(2 ** round(np.log2(4 * np.sqrt(count))), max(1, count // MIN_ROWS_PER_LIST))
            search = faiss.index_factory(dim, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
            search.nprobe = min(NPROBE, lists)
            rows = np.random.default_rng(seed).permutation(count)[: TRAINING_ROWS_PER_LIST * lists]
            search.train(vectors[np.sort(rows)])
        search.add(vectors)
        metadata = table.metadata.add_column(0, "id", pa.array(table.ids, pa.string()))
        return cls(_with_map(search), metadata, table.info, table.content_hash)

    def query(
        self, vectors: np.ndarray | EmbeddingsTable | None = None, *, ids: Sequence[str] | None = None, k: int = 10
    ) -> Neighbours:
        """The k nearest items of each vector, or of each indexed item, which is left out of its own result.

        Args:
            vectors: an embeddings table, whose settings must be those of the index; or float (M, D) or (D,), of which
                the caller knows that they were made alike (`check_settings`).
            ids: names of indexed items, instead of vectors.
            k: how many; fewer where the index holds fewer.

        Raises:
            DataError: an unknown id, or vectors of another length, with NaN or without direction.
            CheckpointError: a table that was made with other settings.
        """
        if (vectors is None) == (ids is None):
            raise DataError("give either vectors or ids")
        if k < 1:
            raise DataError(f"k must be at least 1, found {k}")
        own = None
        if ids is not None:
            own = np.array([self._row(name) for name in ids], np.int64)
            vectors = np.array([self.search.reconstruct(int(row)) for row in own]).reshape(len(own), self.dim)
            names = list(ids)
        elif isinstance(vectors, EmbeddingsTable):
            self.check_settings(vectors.info)
            vectors, names = vectors.vectors, vectors.ids
        else:
            vectors = np.atleast_2d(vectors)
            names = [f"query {n}" for n in range(len(vectors))]
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise DataError(f"queries have shape {vectors.shape}, the index holds vectors of {self.dim} numbers")
        k = min(k, len(self) - (own is not None))
        scores, rows = self._search(_unit(vectors, names), k + (own is not None))
        if own is not None:
            keep = rows != own[:, None]
            # A twin may push the item itself out of its list; then the last neighbour goes instead.
            keep[:, -1] &= ~keep.all(axis=1)
            scores, rows = scores[keep].reshape(len(own), k), rows[keep].reshape(len(own), k)
        return Neighbours([[self.ids[row] for row in line] for line in rows], rows, scores)

    def _search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows (M, k), k at most the number of rows."""
        scores, rows = self.search.search(vectors, k)
        short = (rows < 0).any(axis=1)
        if short.any():
            # The lists looked into held fewer than k: look into all.
            everywhere = faiss.SearchParametersIVF(nprobe=self.search.nlist)
            scores[short], rows[short] = self.search.search(vectors[short], k, params=everywhere)
        return scores, rows

    def check_settings(self, info: dict) -> None:
        """Refuse vectors that were not made as those of the index were.

        Args:
            info: `info` of an embeddings table, or of `Embedder.info`.

        Raises:
            CheckpointError: naming the settings that differ.
        """
        different = [key for key in SETTINGS if info.get(key) != self.info.get(key)]
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
        folder = Path(os.path.abspath(folder))
        foreign = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
        if foreign and not (folder / "index.json").is_file():
            raise DataError(f"{folder}: exists and is no index; give another name")
        # Hidden names that nobody else uses: what lies there is left over from a killed `save`.
        partial, old = (folder.with_name(f".{folder.name}.croplem-{end}") for end in ("new", "old"))
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        faiss.write_index(self.search, str(partial / FILES[0]))
        pq.write_table(self.metadata, partial / FILES[1])
        about = {
            "format": FORMAT, "library_version": __version__, "metric": "cosine", "rows": len(self), "dim": self.dim,
            "content_hash": self.content_hash, "info": self.info, "sha256": {f: _sha256(partial / f) for f in FILES},
        }  # fmt: skip
        (partial / "index.json").write_text(json.dumps(about, indent=1))
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "EmbeddingIndex":
        """Read what `save` wrote.

        Raises:
            CheckpointError: no index there, or files missing, damaged, foreign or of a newer format.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "index.json").read_text())
            if about["format"] != FORMAT:
                raise CheckpointError(
                    f"{folder}: an index of format {about['format']}, this library reads {FORMAT}; build it again"
                )
            sums, info, content = dict(about["sha256"]), about["info"], about["content_hash"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(f"{folder}: no index here (no index.json); `croplem index` writes one") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: index.json is damaged ({error!r}); build the index again") from error
        for name in FILES:
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name} is missing; build the index again")
            if _sha256(folder / name) != sums.get(name):
                raise CheckpointError(f"{folder}: {name} is damaged or foreign (checksum); build the index again")
        search = _with_map(faiss.read_index(str(folder / FILES[0])))
        return cls(search, pq.read_table(folder / FILES[1], partitioning=None), info, content)

    def _row(self, name: str) -> int:
        if name not in self._rows:
            close = difflib.get_close_matches(str(name), self.ids[:EXACT_BELOW], n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else f"; ids look like {self.ids[0]!r}"
            raise DataError(f"the index holds no {name!r}{hint}")
        return self._rows[name]


def _unit(vectors: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Vectors (M, D) of length one, float32."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    # In doubles: the squares of tiny or huge floats are 0 or infinite.
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise DataError(f"the vector of {names[bad[0]]!r} is all zeros or not finite: it has no direction to compare")
    return np.divide(vectors, norms[:, None], out=np.empty_like(vectors), casting="same_kind")


def _with_map(search: faiss.Index) -> faiss.Index:
    """Inverted lists find the vector of a row only through a map, which is not saved."""
    if isinstance(search, faiss.IndexIVF):
        search.make_direct_map()
    return search


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


__all__ = ["EmbeddingIndex", "Neighbours"]
