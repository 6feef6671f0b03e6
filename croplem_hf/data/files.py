"""Files as every module here handles them: written aside, and looked at without trust."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError

GENERATED = "GENERATED.txt"
"""A folder with this file holds invented data."""


@contextlib.contextmanager
def write_aside(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, which becomes `path` when all went well and is removed when not; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        # Else a power cut can leave a name whose content never reached the disk.
        with open(aside, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_aside(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder to fill, which becomes `path` when all went well and is removed when not.

    Where `path` is there, and empty, it stays, as it may be a mount, and gets what was written.
    """
    path = Path(path)
    there = path.is_dir()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path / f".{os.getpid()}.part" if there else path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.mkdir()
    try:
        yield aside
        if there:
            for child in aside.iterdir():
                os.replace(child, path / child.name)
        else:
            os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_ending(path: str | os.PathLike | None, ending: str, *others: str) -> None:
    """Refuse to write a file under a name with another ending, so that nobody's table is replaced by a slip.

    Raises:
        DataError: another ending, or a folder.
    """
    if path is None:
        return
    if Path(path).is_dir():
        raise DataError(f"{path}: is a folder; give the name of a file that ends in {ending}")
    if Path(path).suffix.lower() not in (ending, *others):
        raise DataError(f"{path}: would become a {ending[1:].upper()} file; give it a name that ends in {ending}")


def entry_kind(entry: os.DirEntry) -> str | None:
    """What an entry of a folder is: "folder", "file", or None, such as a link that leads nowhere or to itself."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else None
    except OSError:
        return None


__all__ = ["GENERATED", "check_ending", "entry_kind", "write_aside", "write_folder_aside"]
