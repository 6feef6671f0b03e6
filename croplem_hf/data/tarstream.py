"""Members of a tar archive, plain or gzip, in one pass: nothing is unpacked, and nothing it claims is believed.

`tarfile` reads headers of any size into memory, takes the end of a file that was cut short for the end of the archive,
and in its stream mode neither compares the checksum of gzip nor reads a second gzip member.
"""

import dataclasses
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

MOST_BYTES = 64 * 2**20
"""A member is at most so large; a patch of SEN12MS is below 8 MB."""
_MOST_HEADER = 2**20
_BLOCK = 512
_CHUNK = 2**20
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


@dataclasses.dataclass(frozen=True)
class Member:
    """One member of an archive.

    Attributes:
        name: its path in the archive; bytes that are no UTF-8 are written as `\\xNN`.
        problem: why it must not be read (a link, a path that leads outside, too large, ...), or None.
    """

    name: str
    problem: str | None


class TarStream:
    """Iterate over the members of an archive; `read()` gives the bytes of the current one.

    Args:
        path: a `.tar` or `.tar.gz`; the content tells which.

    Raises:
        DataError: while reading, naming the archive: no such file, no tar, cut short, damaged. Whatever came before is
            as it was written, unless the checksum at the very end says otherwise (then the message tells).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._count = 0
        self._left = 0
        self._pad = 0

    def __iter__(self) -> Iterator[Member]:
        try:
            file = open(self.path, "rb")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be opened ({error.strerror})") from error
        with file:
            if os.fstat(file.fileno()).st_size == 0:
                raise self._damage("the file is empty")
            self._file = file
            self._stream = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            yield from self._members()

    @property
    def position(self) -> int:
        """Bytes of the file that were read, packed."""
        return self._file.tell()

    def read(self) -> bytes:
        """All bytes of the current member, once.

        Raises:
            DataError: the member must not be read, or the archive is damaged here.
        """
        if self._left > MOST_BYTES:
            raise DataError(f"{self.path}: a member of {self._left} bytes, more than {MOST_BYTES}")
        data, self._left = self._take(self._left), 0
        return data

    def _members(self) -> Iterator[Member]:
        extra, ended = {}, False
        while True:
            self._skip()
            block = self._take(_BLOCK, or_end=True)
            if not block:
                break
            # Archives that were joined hold such blocks in the middle, too.
            ended = block.count(0) == _BLOCK
            if ended:
                continue
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
            except (tarfile.TarError, ValueError) as error:
                what = "the header of a member is damaged" if self._count else "this is no tar archive"
                raise self._damage(f"{what} ({error})") from error
            if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
                raise self._damage(f"{info.name!r} is sparse or has no size")
            if info.type in _LONG + _PAX:
                extra |= self._header(info)
                continue
            name, size = extra.get("path", info.name), extra.get("size", info.size)
            sparse = "sparse" in extra
            extra = {}
            self._count += 1
            # Only these have bytes behind their header, whatever size a link claims.
            holds = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
            self._left, self._pad = (size, -size % _BLOCK) if holds else (0, 0)
            if not info.isreg() or sparse:
                problem = "a link, device, folder or sparse file, not a plain file"
            elif name.startswith("/") or ".." in name.split("/"):
                problem = "its path leads outside of the archive"
            elif size > MOST_BYTES:
                problem = f"it claims {size} bytes, more than {MOST_BYTES}"
            else:
                problem = None
            yield Member(name, problem)
        if not ended:
            raise self._damage("it has no end mark")

    def _header(self, info: tarfile.TarInfo) -> dict:
        """The path and size that a long name or PAX header gives to the member behind it."""
        if info.size > _MOST_HEADER:
            raise self._damage(f"a header claims {info.size} bytes")
        data = self._take(info.size + -info.size % _BLOCK)[: info.size]
        if info.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": data.partition(b"\0")[0].decode("utf-8", "backslashreplace")}
        extra, at = {}, 0
        while info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) and at < len(data):
            match = _PAX_RECORD.match(data, at)
            end = at + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(data):
                raise self._damage("a PAX header cannot be read")
            key, value = match[2], data[match.end() : end - 1]
            if key == b"path":
                extra["path"] = value.decode("utf-8", "backslashreplace")
            elif key == b"size":
                if not value.isdigit() or len(value) > 20:
                    raise self._damage("a PAX header gives a size that is no number")
                extra["size"] = int(value)
            elif key.startswith(b"GNU.sparse"):
                extra["sparse"] = True
            at = end
        return extra

    def _skip(self) -> None:
        """Pass over what is left of the current member."""
        left, self._left, self._pad = self._left + self._pad, 0, 0
        while left:
            left -= len(self._take(min(left, _CHUNK)))

    def _take(self, size: int, or_end: bool = False) -> bytes:
        try:
            data = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self._damage(str(error)) from error
        if len(data) < size and (data or not or_end):
            raise self._damage("the file ends in the middle of a member")
        return data

    def _damage(self, what: str) -> DataError:
        behind = f" behind member {self._count}" if self._count else ""
        return DataError(
            f"{self.path}: cut short or damaged{behind}: {what}. Download it again and compare its MD5 with the "
            "published one"
        )


__all__ = ["MOST_BYTES", "Member", "TarStream"]
