"""Parts of files, here or behind an address of fsspec: what is asked for is read, and little more."""

import collections
import os
import threading
import weakref

import fsspec
import fsspec.implementations.local

from ..errors import DataError

# How many places of a folder may be read in their order at once: each raster of a sample has its own.
_ENDS = 10


def file_system(root: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system of an address, and the path in it.

    Raises:
        DataError: no such kind of address.
    """
    try:
        return fsspec.core.url_to_fs(root)
    except (ImportError, ValueError) as error:
        raise DataError(f"{root}: cannot be opened ({error})") from error


class RangedFiles:
    """Reads parts of the files of a folder: what is asked for, and from afar more where a file is read in its order."""

    OPEN = 64
    AHEAD = 16 * 2**20
    NEAR = 4096
    KEPT = 4

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str):
        self.fs, self.folder = fs, path
        self.local = isinstance(fs, fsspec.implementations.local.LocalFileSystem)
        self._reset()

    def _reset(self) -> None:
        self.owner = os.getpid()
        self.open, self.parts, self.lock = collections.OrderedDict(), collections.OrderedDict(), threading.Lock()
        self.ends = collections.deque(maxlen=_ENDS)
        # Not `__del__`: at the end of the interpreter nothing is left to close files with.
        self.closing = weakref.finalize(self, _close, self.open)

    def __getstate__(self) -> dict:
        return {key: self.__dict__[key] for key in ("fs", "folder", "local")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._reset()

    def read(self, name: str, start: int, size: int) -> bytes:
        path = f"{self.folder}/{name}"
        if self.owner != os.getpid():
            # In a fork: a lock that another thread held stays locked for ever, and connections are the parent's.
            self._reset()
            if not self.local:
                self.fs = type(self.fs)(*self.fs.storage_args, **self.fs.storage_options, skip_instance_cache=True)
        if not self.local:
            return self._from_afar(path, start, size)
        with self.lock:
            if path not in self.open:
                self.open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                if len(self.open) > self.OPEN:
                    os.close(self.open.popitem(last=False)[1])
            self.open.move_to_end(path)
            return os.pread(self.open[path], size, start)

    def _from_afar(self, path: str, start: int, size: int) -> bytes:
        with self.lock:
            in_order = any(where == path and 0 <= start - end <= self.NEAR for where, end in self.ends)
            self.ends.append((path, start + size))
            for (where, first), part in self.parts.items():
                if where == path and first <= start and start + size <= first + len(part):
                    self.parts.move_to_end((where, first))
                    return part[start - first : start - first + size]
        part = self.fetch(path, start=start, end=start + (max(size, self.AHEAD) if in_order else size))
        if in_order:
            with self.lock:
                self.parts[path, start] = part
                if len(self.parts) > self.KEPT:
                    self.parts.popitem(last=False)
        return part[:size]

    def fetch(self, path: str, start: int, end: int) -> bytes:
        # The default of fsspec opens the file, whose cache reads megabytes ahead of what is asked for.
        own = self.fs.async_impl or type(self.fs).cat_file is not fsspec.AbstractFileSystem.cat_file
        part = self.fs.cat_file(path, start=start, end=end, **({} if own else {"cache_type": "none"}))
        if len(part) > end - start:
            raise OSError("the server sends whole files where parts of them are asked for")
        return part


def _close(files: dict[str, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)


__all__ = ["RangedFiles", "file_system"]
