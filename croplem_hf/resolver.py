"""Which local folder a checkpoint's name stands for: a folder, the Hub and its cache, or the packaged checkpoint."""

import hashlib
import logging
import os
import re
import threading
from pathlib import Path

from .errors import CheckpointError

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINT = "croplem/mae-s1s2"
# How long the Hub may take to answer: briefly where a packaged copy can serve, else as long as the stock client waits.
PROBE_SECONDS, PATIENT_PROBE_SECONDS = 2.0, 10.0
_told: set[str] = set()
NOT_FOUND = "no such repository on the Hub (404)"
PATTERNS = ("*.json", "*.safetensors", "*.py", "README.md")
OPTIONS = ("revision", "token", "force_download", "cache_dir", "local_files_only")


def packaged_path(name: str = DEFAULT_CHECKPOINT) -> Path:
    """Folder of a checkpoint that ships with the library, which the Auto classes can load from then on.

    Raises:
        CheckpointError: the library ships no such checkpoint, or the installation lacks it.
    """
    from . import model  # noqa: F401  registers the Auto classes

    if name != DEFAULT_CHECKPOINT:
        raise CheckpointError(f"the library ships no checkpoint {name!r}; there is {DEFAULT_CHECKPOINT!r}")
    return packaged_files() / name.rpartition("/")[2]


def packaged_files() -> Path:
    """Folder of what ships with the library beside its code: the checkpoint and templates of cards.

    Raises:
        CheckpointError: the installation lacks it.
    """
    package = Path(__file__).parent
    # A wheel holds hub/ as `croplem_hf._hub`; an editable install finds it beside the package.
    for root in (package / "_hub", package.parent / "hub"):
        if (root / DEFAULT_CHECKPOINT.rpartition("/")[2] / "config.json").is_file():
            return root
    raise CheckpointError(f"{package}: the checkpoint that ships with the library is missing; install croplem-hf again")


def resolve_checkpoint(
    name: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
) -> Path:
    """Folder with all files of a checkpoint, from one source, which is named in the log.

    A local folder is taken as it is. Otherwise the Hub is asked once, and not for long. The packaged copy of
    `croplem/mae-s1s2` serves where the Hub has no such repository (404), cannot be reached, or offline mode is set and
    the cache holds nothing; never where access is refused, the Hub fails or a file is damaged, and never where
    `revision`, a token or `force_download` is given, for then one particular checkpoint was asked for.

    Args:
        name: a folder, or a repository such as "croplem/mae-s1s2".
        revision, token, force_download, cache_dir, local_files_only: as in `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: saying what was tried and what to do.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json in this folder; give one that save_pretrained wrote")
        logger.debug("checkpoint %s: local folder", folder)
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file; a checkpoint is a folder that save_pretrained wrote")
    name = str(name)
    if _looks_like_a_path(name):
        raise CheckpointError(
            f"{name}: no such folder; give a folder with config.json, or a name such as {DEFAULT_CHECKPOINT}"
        )

    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise CheckpointError(f"{name}: neither a folder nor a repository name ({error})") from error
    packaged_may_serve = name == DEFAULT_CHECKPOINT and not (revision or force_download or token)
    options = {"revision": revision, "token": token, "cache_dir": cache_dir, "allow_patterns": list(PATTERNS)}
    offline = local_files_only or constants.HF_HUB_OFFLINE
    if offline and force_download:
        raise CheckpointError(f"{name}: force_download needs the network, but offline mode is set")
    reason = "offline mode is set" if offline else None
    try:
        if not offline:
            reason = probe(name, revision, token, PROBE_SECONDS if packaged_may_serve else PATIENT_PROBE_SECONDS)
        if reason is None:
            path = huggingface_hub.snapshot_download(name, force_download=force_download, **options)
            check_snapshot(Path(path))
            if not (Path(path) / "config.json").is_file():
                raise CheckpointError(f"{name}: the repository on the Hub holds no config.json")
            logger.info("checkpoint %s: Hub, %s", name, path)
            return Path(path)
    except HfHubHTTPError as error:
        text = explain(error)
        if name == DEFAULT_CHECKPOINT:
            text += ". croplem_hf.packaged_path() holds the checkpoint that ships with the library"
        raise CheckpointError(f"{name}: {text}") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        # A connection that broke after the probe, a full disk, or a file that is not what the Hub announced.
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name}: cannot be had from the Hub ({reason})") from error

    if not (force_download or reason == NOT_FOUND):
        try:
            path = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **options))
            if (path / "config.json").is_file() and list(path.glob("*.safetensors")):
                logger.info("checkpoint %s: cache, %s (%s)", name, path, reason)
                return path
        except LocalEntryNotFoundError:
            pass
        reason += ", and the cache holds no whole copy"
    if packaged_may_serve:
        path = packaged_path()
        # Said aloud once: model, processor and embedder of one name are three calls.
        level = logging.INFO if reason in _told else logging.WARNING
        _told.add(reason)
        logger.log(level, "checkpoint %s: packaged with the library, %s (%s)", name, path, reason)
        return path
    if name == DEFAULT_CHECKPOINT:
        reason += "; the packaged copy serves only without revision, token and force_download"
    raise CheckpointError(f"{name}: {reason}")


def check_snapshot(folder: Path) -> None:
    """Hold the files of a snapshot in the cache to the hashes that the Hub announced, by which their blobs are named.

    The client compares sizes alone. A damaged file is removed from the cache, so that the next download brings it anew.

    Raises:
        CheckpointError: naming the file.
    """
    for path in sorted(folder.rglob("*")):
        blob = path.resolve()
        if not path.is_symlink() or not blob.is_file() or not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            continue
        with open(blob, "rb") as handle:
            if len(blob.name) == 64:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
            else:
                # Small files have the hash that git gives them.
                data = handle.read()
                found = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        if found != blob.name:
            path.unlink()
            blob.unlink()
            raise CheckpointError(f"{path.name}: came damaged from the Hub (another hash than announced); try again")


def hook(name: str | os.PathLike, kwargs: dict) -> tuple[str, dict]:
    """Arguments of a `from_pretrained` -> the local folder, and the arguments that are left."""
    options = {key: kwargs[key] for key in OPTIONS if kwargs.get(key) is not None}
    rest = {key: value for key, value in kwargs.items() if key not in OPTIONS}
    return str(resolve_checkpoint(name, **options)), rest


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.endswith("/")


def probe(
    name: str, revision: str | None, token: str | bool | None, seconds: float, repo_type: str = "model"
) -> str | None:
    """Ask the Hub once whether it has the repository: None if so, else why it cannot serve it.

    Raises:
        HfHubHTTPError: the Hub answers with anything but success or 404.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the base class of whichever HTTP client it uses

    answer: list[BaseException | None] = []

    def ask():
        try:
            HfApi().repo_info(name, revision=revision, token=token, timeout=2 * seconds, repo_type=repo_type)
            answer.append(None)
        except Exception as error:  # handed to the caller's thread
            answer.append(error)

    # In a thread with a limit of its own: looking up the host's name knows none, and the client's is for each step.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        return f"the Hub did not answer within {seconds:g} seconds"
    error = answer[0]
    if error is None:
        return None
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        if status == 404 and revision is None:
            return NOT_FOUND
        raise error
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        return "no connection to the Hub"
    raise error


def explain(error) -> str:
    status = getattr(error.response, "status_code", None)
    if status == 401:
        return (
            "the Hub answers 401, which it does for private repositories and for missing ones; log in with "
            "`hf auth login` or check the name"
        )
    if status == 403:
        return "the Hub refuses access (403); ask the owner for it, or use a token that has it"
    if status == 404:
        return f"the Hub has no such file or revision (404): {str(error).splitlines()[0]}"
    return f"the Hub fails ({status or error}); try again later"


__all__ = [
    "DEFAULT_CHECKPOINT", "check_snapshot", "explain", "hook", "packaged_files", "packaged_path", "probe",
    "resolve_checkpoint",
]  # fmt: skip
