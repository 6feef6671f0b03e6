"""Fetching the archives of SEN12MS: what was cut off goes on where it stopped, and every file is held to its MD5."""

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ..errors import DataError
from .sen12ms import KINDS, SEASON_DATES

logger = logging.getLogger(__name__)

URL = "https://dataserv.ub.tum.de/s/m1474000/download?path=/&files="
"""Address of the files at mediaTUM, without a name (doi 10.14459/2019mp1474000). In bulk, rsync is offered too:
rsync://m1474000@dataserv.ub.tum.de/m1474000, password m1474000."""

URL_VARIABLE = "CROPLEM_SEN12MS_URL"
"""Environment variable of another address, such as that of a mirror."""

_SEASONS = {"spring": "ROIs1158", "summer": "ROIs1868", "fall": "ROIs1970", "winter": "ROIs2017"}
_MD5 = {
    "spring": (
        "fba019bb27a08c1db96b31f718c34d79", "d58af2c15a16f376eb3308dc9b685af2",
        "6e2e8fa8b8cba77ddab49fd20ff5c37b",
    ),
    "summer": (
        "01044b7f58d33570c6b57fec28a3d449", "4dbaf72ecb704a4794036fe691427ff3",
        "2c5bd80244440b6f9d54957c6b1f23d4",
    ),
    "fall": (
        "19132e0aab9d4d6862fd42e8e6760847", "b8f117818878da86b5f5e06400eb1866",
        "9b126a68b0e3af260071b3139cb57cee",
    ),
    "winter": (
        "bb8cbfc16b95a4f054a3d5380e0130ed", "3807545661288dcca312c9c538537b63",
        "0fa0420ef7bcfe4387c7e6fe226dc728",
    ),
}  # fmt: skip
FILES = {
    f"{_SEASONS[season]}_{season}_{kind}.tar.gz": md5
    for season, sums in _MD5.items()
    for kind, md5 in zip(KINDS, sums, strict=True)
} | {"train_list.txt": "0a68d4e1eb24f128fccdb930000b2546", "test_list.txt": "c7faad064001e646445c4c634169484d"}
"""Name and MD5 of every file."""

_LISTS = ("train_list.txt", "test_list.txt")
_BLOCK = 1 << 20
_TRIES = 6
_TIMEOUT = 60


class _HTTPError(Exception):
    """An answer that trying again does not mend."""


class _DiskError(Exception):
    """What was fetched cannot be written here."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, where anyone on the way may change or read what is sent."""

    def redirect_request(self, request, file, code, message, headers, url):
        if request.type == "https" and urllib.parse.urlsplit(url).scheme != "https":
            raise _HTTPError(f"{request.full_url} leads to {url}, which is not encrypted; give --url if you trust it")
        return super().redirect_request(request, file, code, message, headers, url)


_opener = urllib.request.build_opener(_SafeRedirects)


def sen12ms_files(seasons: Sequence[str] | None = None, kinds: Sequence[str] | None = None) -> dict[str, str]:
    """Names and MD5 of the archives of some seasons and kinds, with the lists of patches.

    Raises:
        DataError: an unknown season or kind.
    """
    for name, given, known in (("seasons", seasons, tuple(SEASON_DATES)), ("kinds", kinds, KINDS)):
        if given is not None and (not given or not set(given) <= set(known)):
            raise DataError(f"{name} must be some of {', '.join(known)}, found {', '.join(given) or 'none'}")
    wanted = {f"{_SEASONS[season]}_{season}_{kind}.tar.gz" for season in seasons or _SEASONS for kind in kinds or KINDS}
    return {name: md5 for name, md5 in FILES.items() if name in wanted or name in _LISTS}


def download_sen12ms(
    out: str | os.PathLike,
    *,
    seasons: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    url: str | None = None,
    files: Mapping[str, str] | None = None,
    progress: bool = True,
    wait: float = 1.0,
) -> list[Path]:
    """Fetch files into a folder. What is there and whole is kept; `NAME.part` is gone on with.

    Args:
        out: the folder, made where missing.
        seasons, kinds: which archives; None for all (510 GB).
        url: what a name is put behind; None for `CROPLEM_SEN12MS_URL`, else `URL`.
        files: name and MD5 of other files than `FILES`.
        progress: whether to show a bar on stderr.
        wait: seconds before a second try, doubled for every further one.

    Returns:
        The files. The lists of patches may be missing with a warning: the splits here do not need them.

    Raises:
        DataError: after all files were tried, naming the first that is missing and why: not there, refused, another
            content than its MD5 says, or the disk is full.
    """
    out = Path(out)
    url = url or os.environ.get(URL_VARIABLE) or URL
    if urllib.parse.urlsplit(url).scheme not in ("https", "http"):
        raise DataError(f"{url}: the address must begin with https:// or http://")
    url = url if url.endswith(("/", "=")) else f"{url}/"
    files = sen12ms_files(seasons, kinds) if files is None else files
    out.mkdir(parents=True, exist_ok=True)
    errors, whole = [], []
    for name, md5 in files.items():
        path = out / name
        try:
            if not path.is_file():
                _fetch(url + urllib.parse.quote(name), path, md5, progress, wait)
            elif _md5(path, progress) != md5:
                raise DataError(f"{path}: is there and has another MD5 than {md5}; remove it to fetch it again")
            whole.append(path)
        except DataError as error:
            logger.warning("%s", error)
            if name not in _LISTS:
                errors.append(error)
    if errors:
        more = f"; and {len(errors) - 1} of the other {len(files) - 1} files are missing too" if errors[1:] else ""
        raise DataError(f"{errors[0]}{more}") from errors[0]
    return whole


def _fetch(url: str, path: Path, md5: str, progress: bool, wait: float) -> None:
    part = path.with_name(f"{path.name}.part")
    again = False
    attempt = 0  # in a row, without a byte gained
    while True:
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        before = part.stat().st_size if part.exists() else 0
        try:
            _get(url, path, part, progress)
        except _HTTPError as error:
            raise DataError(f"{path.name}: {error}") from error
        except _DiskError as error:
            raise DataError(f"{part}: {error}; what was fetched is kept, run the same command again") from error
        except (OSError, http.client.HTTPException) as error:
            after = part.stat().st_size if part.exists() else 0
            reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
            logger.warning("%s: cut off at %d bytes (%s)", path.name, after, reason)
            attempt = 1 if after > before else attempt + 1
            if attempt == _TRIES:
                raise DataError(
                    f"{path.name}: {url} cannot be reached ({reason}); what was fetched is kept, run the same command "
                    "again"
                ) from error
            continue
        found = _md5(part, progress)
        if found == md5:
            os.replace(part, path)
            part.with_name(f"{part.name}.etag").unlink(missing_ok=True)
            return
        part.unlink()
        if again:
            raise DataError(f"{path.name}: fetched twice with MD5 {found}, expected {md5}; is {url} the right address?")
        again, attempt = True, 1
        logger.warning("%s: MD5 %s instead of %s; fetched once more from its start", path.name, found, md5)


def _get(url: str, path: Path, part: Path, progress: bool) -> None:
    """One request; appends to `part` where the server goes on from there, else writes it anew."""
    start = part.stat().st_size if part.exists() else 0
    etag = part.with_name(f"{part.name}.etag")
    headers = {"User-Agent": "croplem_hf", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag.exists():
            headers["If-Range"] = etag.read_text()
    try:
        response = _opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            # Nothing is left to fetch, or the file there is shorter now; the MD5 tells.
            total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if total == str(start):
                return
            _disk(part.unlink)
            raise OSError("the file there is another one now") from error
        if error.code in (401, 403, 404, 410):
            what = {401: "asks for a log-in", 403: "refuses it", 404: "has no such file", 410: "has it no more"}
            raise _HTTPError(f"{url} {what[error.code]} (HTTP {error.code})") from error
        raise
    with response:
        resumed = response.status == 206
        if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise OSError("the server sent another part than was asked for")
        length = response.headers.get("Content-Length")
        left = int(length) if length and length.isdecimal() else None
        free = shutil.disk_usage(path.parent).free + (0 if resumed else start)
        if left is not None and left > free:
            raise _HTTPError(f"needs {left / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB left; make room")
        tag = response.headers.get("ETag")
        if tag and not tag.startswith("W/"):
            _disk(etag.write_text, tag)
        else:
            _disk(etag.unlink, missing_ok=True)
        first = start if resumed else 0
        total = None if left is None else first + left
        with (
            _writing(part, "ab" if resumed else "wb") as write,
            tqdm(total=total, initial=first, unit="B", unit_scale=True, desc=path.name,
                 disable=None if progress else True) as bar,
        ):  # fmt: skip
            while block := response.read(_BLOCK):
                write(block)
                bar.update(len(block))
        if total is not None and part.stat().st_size < total:
            raise OSError(f"the connection ended at {part.stat().st_size} of {total} bytes")
    _disk(etag.unlink, missing_ok=True)


def _disk(call: Callable, *args, **options):
    """Call what touches the disk; its errors are told from those of the connection."""
    try:
        return call(*args, **options)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        reason = "the disk is full, make room" if full else f"cannot be written ({error.strerror})"
        raise _DiskError(reason) from error


@contextlib.contextmanager
def _writing(path: Path, mode: str) -> Iterator[Callable[[bytes], None]]:
    handle = _disk(open, path, mode)
    try:
        yield lambda block: _disk(handle.write, block)
    finally:
        _disk(handle.close)


def _md5(path: Path, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as handle,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"MD5 of {path.name}", leave=False,
             disable=None if progress else True) as bar,
    ):  # fmt: skip
        while block := handle.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


__all__ = ["FILES", "URL", "URL_VARIABLE", "download_sen12ms", "sen12ms_files"]
