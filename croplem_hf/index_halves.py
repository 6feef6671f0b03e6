"""Vectors as half floats in FAISS, in memory or mapped from a file that is written a block at a time."""

import os
import struct
from pathlib import Path

import faiss
import numpy as np

_COUNT_AT = 8  # in the file of an index: after its kind and the dimension, four bytes each


def new_halves(dim: int) -> faiss.IndexScalarQuantizer:
    """No vectors yet; `add` takes float32 (M, D)."""
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


class HalvesFile:
    """Writes what `faiss.write_index` would write of `new_halves`, without all of it in memory.

    Args:
        path: file to write.
        count: how many vectors will be added.
        dim: numbers in a vector.
    """

    def __init__(self, path: str | os.PathLike, count: int, dim: int):
        self.path, self._halves = Path(path), new_halves(dim)
        empty = faiss.serialize_index(self._halves).tobytes()
        size = count * self._halves.sa_code_size()
        self._file = open(path, "wb")
        self._file.write(empty[:_COUNT_AT] + struct.pack("<q", count) + empty[_COUNT_AT + 8 : -8])
        self._file.write(struct.pack("<q", size))

    def add(self, block: np.ndarray) -> None:
        """Append float32 (M, D)."""
        self._file.write(self._halves.sa_encode(block).tobytes())

    def finish(self) -> faiss.IndexScalarQuantizer:
        """The vectors, mapped from the file."""
        self._file.close()
        return map_halves(self.path)


def map_halves(path: str | os.PathLike) -> faiss.IndexScalarQuantizer:
    """The vectors of a file, mapped into memory and not read."""
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def take_halves(halves: faiss.IndexScalarQuantizer, rows: np.ndarray | slice) -> np.ndarray:
    """Vectors of some rows -> float32 (M, D)."""
    codes = _codes(halves)[rows]
    return halves.sa_decode(np.ascontiguousarray(codes))


def in_memory(halves: faiss.IndexScalarQuantizer) -> faiss.IndexScalarQuantizer:
    """A copy that can be added to, of vectors that may be mapped."""
    copy = new_halves(halves.d)
    copy.add_sa_codes(np.ascontiguousarray(_codes(halves)))
    return copy


def _codes(halves: faiss.IndexScalarQuantizer) -> np.ndarray:
    """uint8 (N, bytes of a vector), a view. In a file it need not start at an even byte, so it is no float16 array."""
    size = halves.sa_code_size()
    return faiss.rev_swig_ptr(halves.codes.data(), halves.ntotal * size).reshape(-1, size)


__all__ = ["HalvesFile", "in_memory", "map_halves", "new_halves", "take_halves"]
