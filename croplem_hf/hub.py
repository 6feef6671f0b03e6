"""Push to the Hub what was made here, each in one commit with its card, and fetch it again.

    push("index", "patches.index", "me/patches-index", licence="cc-by-4.0")      # private, unless public=True
    EmbeddingIndex.load("me/patches-index")
"""

import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import CheckpointError, DataError, HubError
from .resolver import PATIENT_PROBE_SECONDS, check_snapshot, explain, probe

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclasses.dataclass(frozen=True)
class Push:
    """What goes to the Hub: `files`, {path in the repository: local file}, and `card`, its README.md."""

    kind: str
    repo: str
    repo_type: str
    files: dict[str, Path]
    card: str
    left_out: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file that goes, the card among them."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        return sizes | {"README.md": len(self.card.encode())}

    def describe(self) -> str:
        """What would go, as text: files with their sizes, what stays, and the card."""
        sizes = self.sizes
        lines = [f"{self.kind} to the {self.repo_type} repository {self.repo}, {_bytes(sum(sizes.values()))}"]
        lines += [f"  {name}  {_bytes(size)}" for name, size in sizes.items()]
        lines += [f"  stays here: {name}" for name in self.left_out]
        return "\n".join([*lines, "", self.card])


def prepare(
    kind: str,
    path: str | os.PathLike,
    repo: str,
    *,
    licence: str | None = None,
    evaluations: Sequence[str] = (),
    notes: str = "",
) -> Push:
    """Look at what is to be pushed and write its card; nothing is sent.

    Args:
        kind: "model", "dataset" (shards), "embeddings", "index", "head" or "report".
        path: folder, or the table of embeddings; of a model also its name, as `from_pretrained` takes it.
        repo: "owner/name".
        licence: identifier of the Hub; needed where neither the data nor a README.md say it.
        evaluations: "PATH" or "NAME=PATH" of figures of `croplem evaluate`, for the card of a model or head.
        notes: Markdown for the card: on what it was trained, where data come from, time and energy.

    Raises:
        DataError: not what it is said to be, data that may not be passed on, or no licence known.
        CheckpointError: damaged, or figures of another model.
    """
    from .hub_cards import make_card
    from .hub_figures import named_figures
    from .hub_parts import KINDS, read_part

    if not _REPOSITORY.fullmatch(repo):
        raise DataError(f"{repo!r} is no repository; give owner/name")
    if evaluations and kind not in ("model", "head"):
        raise DataError(f"evaluations go with a model or a head, not with kind {kind!r}")
    part = read_part(kind, path)
    weights = part.facts["weights_hash"] if kind == "model" else part.facts.get("info", {}).get("weights_hash")
    card = make_card(part, repo, licence, named_figures(list(evaluations), weights), notes)
    return Push(kind, repo, KINDS[kind], part.files, card, part.left_out)


def push(
    kind: str,
    path: str | os.PathLike,
    repo: str,
    *,
    public: bool = False,
    licence: str | None = None,
    evaluations: Sequence[str] = (),
    notes: str = "",
    token: str | None = None,
) -> str:
    """Push to the Hub in one commit, card included -> its address.

    The repository is made where there is none. Of one that is there, the files of this kind are replaced, and those
    that the new ones do not have are removed; other files stay. Large files that are there already are not sent again,
    so a push that was cut off goes on.

    Args:
        kind, path, repo, licence, evaluations, notes: as in `prepare`.
        public: whether all may see a repository that is made; one that is public is written to only with this.
        token: of the Hub; None for the one that is logged in.

    Raises:
        DataError, CheckpointError: as in `prepare`.
        HubError: the Hub refuses, fails or cannot be reached, or someone else wrote meanwhile.
    """
    plan = prepare(kind, path, repo, licence=licence, evaluations=evaluations, notes=notes)
    return send(plan, public=public, token=token)


def send(plan: Push, *, public: bool = False, token: str | None = None) -> str:
    """`push` of what `prepare` gave."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    from .hub_parts import stale

    api = HfApi(token=token, library_name="croplem_hf", library_version=__version__)
    where = {"repo_id": plan.repo, "repo_type": plan.repo_type}
    try:
        api.create_repo(
            **where, private=not public, exist_ok=True, space_sdk="static" if plan.repo_type == "space" else None
        )
        about = api.repo_info(**where)
        if not public and not about.private:
            raise HubError(f"{plan.repo}: is there and public; push with --public (public=True), or to another name")
        there = [file.rfilename for file in about.siblings or ()]
        operations = [CommitOperationAdd(name, str(file)) for name, file in plan.files.items()]
        operations.append(CommitOperationAdd("README.md", plan.card.encode()))
        operations += [CommitOperationDelete(name) for name in stale(plan.kind, there, plan.files)]
        commit = api.create_commit(
            **where, operations=operations, commit_message=f"{plan.kind.capitalize()}, by croplem_hf {__version__}",
            parent_commit=about.sha,
        )  # fmt: skip
    except HfHubHTTPError as error:
        raise HubError(f"{plan.repo}: {_refused(error)}") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"{plan.repo}: not logged in; `hf auth login` with a token that may write") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{plan.repo}: offline mode is set (HF_HUB_OFFLINE), and a push needs the Hub") from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"{plan.repo}: no connection to the Hub ({text}); push again when there is") from error
    return str(commit.commit_url)


def fetch(
    name: str | os.PathLike, kind: str, *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """Folder of a head, an index, shards or a report; the file of embeddings. Local ones are taken as they are.

    Args:
        name: a path, or "owner/name" of the Hub where no such path is.
        kind: as in `push`.
        revision, token: as in `huggingface_hub.snapshot_download`.

    Raises:
        CheckpointError: the Hub does not have it, refuses it, or cannot be reached while the cache holds nothing.
    """
    path, name = Path(os.path.expanduser(name)), str(name)
    if path.exists() or not _REPOSITORY.fullmatch(name):
        return path
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    from .hub_parts import KINDS, PATTERNS

    options = {"repo_type": KINDS[kind], "revision": revision, "token": token, "allow_patterns": list(PATTERNS[kind])}
    try:
        offline = constants.HF_HUB_OFFLINE
        reason = "offline mode is set" if offline else probe(
            name, revision, token, PATIENT_PROBE_SECONDS, repo_type=KINDS[kind]
        )  # fmt: skip
        if reason and "404" in reason:
            raise CheckpointError(f"{name}: no such path here, and no such {KINDS[kind]} repository on the Hub (404)")
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=reason is not None, **options))
        if reason is None:
            check_snapshot(folder)
    except LocalEntryNotFoundError as error:
        raise CheckpointError(f"{name}: no such path here, {reason}, and the cache does not hold it") from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{name}: no such path here, and {explain(error)}") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{name}: cannot be had from the Hub ({text})") from error
    logger.info("%s %s: %s, %s", kind, name, "cache" if reason else "Hub", folder)
    return folder / PATTERNS[kind][0] if kind == "embeddings" else folder


def _refused(error) -> str:
    """What an answer of the Hub that is no success means for who wanted to write, and what to do."""
    status = getattr(error.response, "status_code", None)
    said = " ".join((getattr(error, "server_message", None) or "").split())
    return {
        400: f"the Hub does not take it (400: {said}); see the licence and the notes that go into the card",
        401: "the Hub does not know who you are (401); `hf auth login` with a token that may write",
        403: f"you may not write there (403: {said}); use a token that may, or a name of your own",
        404: "no such repository for you (404); check the owner and that the token may see it",
        409: "another write is going on, or the name is taken by something else (409); try again, or another name",
        412: "someone else wrote to it meanwhile (412); look at what is there and push again",
        413: "too large for one commit (413)",
        429: "the Hub asks for patience (429); the same push goes on later",
    }.get(status, f"the Hub fails ({status}); the same push goes on where it stopped")


def _bytes(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


__all__ = ["Push", "fetch", "prepare", "push", "send"]
