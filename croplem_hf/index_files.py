"""The folder of an index: written whole or not at all, and refused where anything in it is not as it was written."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import __version__
from .errors import CheckpointError, DataError
from .index_halves import map_halves

FORMAT = 3
FILES = ("metadata.parquet", "vectors.npy", "vectors.faiss", "centre.npy", "lists.faiss", "removed.npy")
_LOOKED_AT = ("probes", "factor")


def write_folder(index, folder: Path, written: Path | None = None) -> None:
    """Write an `EmbeddingIndex`, all of it or nothing; half floats that stand in the file `written` are moved there."""
    # Hidden names that nobody else uses: what lies there is left over from a killed `save`.
    partial, old = (folder.with_name(f".{folder.name}.croplem-{end}") for end in ("new", "old"))
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    for leftover in (partial, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    pq.write_table(index.metadata, partial / "metadata.parquet")
    if index.vectors is not None:
        np.save(partial / "vectors.npy", index.vectors)
    if index.halves is not None and written is not None:
        os.replace(written, partial / "vectors.faiss")
    elif index.halves is not None:
        faiss.write_index(index.halves, str(partial / "vectors.faiss"))
    if index.centre.any():
        np.save(partial / "centre.npy", index.centre)
    if index.lists is not None:
        faiss.write_index(index.lists, str(partial / "lists.faiss"))
    if index.removed.any():
        np.save(partial / "removed.npy", index.removed)
    about = {
        "format": FORMAT, "library_version": __version__, "metric": "cosine", "rows": len(index), "dim": index.dim,
        "content_hash": index.content_hash, "settings": index.settings, "info": index.info,
        "sha256": {name: _sha256(partial / name) for name in FILES if (partial / name).exists()},
    }  # fmt: skip
    (partial / "index.json").write_text(json.dumps(about, indent=1))
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def read_folder(folder: Path) -> dict:
    """The arguments of `EmbeddingIndex` that `write_folder` wrote; vectors are mapped into memory.

    Raises:
        CheckpointError: no index there, or files missing, damaged, foreign or of another format.
    """
    try:
        about = json.loads((folder / "index.json").read_text())
        if about["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: an index of format {about['format']}, this library reads {FORMAT}; build it again"
            )
        sums, settings = dict(about["sha256"]), about["settings"]
        info, content = about["info"], about["content_hash"]
        if not all(isinstance(settings.get(key, 1), int) and settings.get(key, 1) > 0 for key in _LOOKED_AT):
            raise ValueError(f"settings {settings}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder}: no index here (no index.json); `croplem index` writes one") from error
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: index.json is damaged ({error!r:.200}); build the index again") from error
    held = {"vectors.npy", "vectors.faiss", "lists.faiss"} & set(sums)
    kinds = ({"vectors.npy"}, {"vectors.faiss", "lists.faiss"}, {"lists.faiss"})
    if set(sums) - set(FILES) or "metadata.parquet" not in sums or held not in kinds:
        raise CheckpointError(f"{folder}: index.json is damaged (its files are {sorted(sums)}); build it again")
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing; build the index again")
        if _sha256(folder / name) != expected:
            raise CheckpointError(f"{folder}: {name} is damaged or foreign (checksum); build the index again")

    def read(name: str, reader: Callable, **options):
        try:
            return reader(str(folder / name), **options) if name in sums else None
        except (ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            # Of the right checksum, so nothing that this library wrote.
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder}: {name} cannot be read ({reason}); build the index again") from error

    arrays = {
        name: read(f"{name}.npy", np.load, mmap_mode="r", allow_pickle=False)
        for name in ("vectors", "centre", "removed")
    }
    halves, lists = read("vectors.faiss", map_halves), read("lists.faiss", faiss.read_index)
    metadata = read("metadata.parquet", pq.read_table, partitioning=None).combine_chunks()
    return arrays | {
        "metadata": metadata, "info": info, "content_hash": content, "settings": settings, "halves": halves,
        "lists": lists,
    }  # fmt: skip


def free_folder(folder: str | os.PathLike) -> Path:
    """The absolute path of a folder where an index may be written."""
    folder = Path(os.path.realpath(folder))
    foreign = folder.is_file()
    if folder.is_dir() and any(folder.iterdir()):
        try:
            foreign = not {"format", "sha256"} <= set(json.loads((folder / "index.json").read_text()))
        except (OSError, ValueError, TypeError):
            foreign = True
        foreign = foreign or bool(set(os.listdir(folder)) - {"index.json", "index.faiss", *FILES})
    if foreign:
        raise DataError(f"{folder}: exists and is no index, or holds other files too; give another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


__all__ = ["FILES", "FORMAT", "free_folder", "read_folder", "write_folder"]
