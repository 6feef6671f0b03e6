"""What may be pushed: the files of each kind of thing, checked, with the licences that its data carry.

A push holds the files that are listed here and a card, and nothing else that lies beside them.
"""

import dataclasses
import fnmatch
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from .errors import CheckpointError, DataError
from .resolver import resolve_checkpoint

KINDS = {
    "model": "model", "head": "model", "dataset": "dataset", "embeddings": "dataset", "index": "dataset",
    "report": "space",
}  # fmt: skip
"""Kind of thing -> kind of repository. A report is a static page, which a Space shows."""

PATTERNS = {
    "model": (
        "config.json", "preprocessor_config.json", "model.safetensors", "model-*-of-*.safetensors",
        "model.safetensors.index.json", "training.json", "*_croplem.py",
    ),
    "head": ("head.json", "head.safetensors"),
    "dataset": ("manifest.json", "index.parquet", "skipped.csv", "data/*.parquet"),
    "embeddings": ("embeddings.parquet",),
    "index": (
        "index.json", "metadata.parquet", "vectors.npy", "vectors.faiss", "centre.npy", "lists.faiss", "removed.npy",
    ),
    "report": ("report.html", "figures.json", "regions.csv"),
}  # fmt: skip
"""Files of each kind in a repository, beside README.md: what a push writes and replaces, and what a pull takes."""

CLOSED = ("no-redistribution", "not-redistributable", "proprietary", "all-rights-reserved", "confidential")
"""Licences that say of data that they may not be passed on."""
LICENCE_COLUMNS = ("licence", "license")
SOURCE_COLUMN = "source"
_KNOWN_SOURCES = {"sen12ms": "cc-by-4.0"}
_REMOTE_CODE = ("configuration_croplem.py", "image_processing_croplem.py", "modeling_croplem.py", "tokens_croplem.py")


@dataclasses.dataclass
class Part:
    """One thing to push.

    kind: of `KINDS`. path: where it lies. files: {path in the repository: file}. facts: for its card. licences: of the
    data in it, as far as they are recorded.
    """

    kind: str
    path: Path
    files: dict[str, Path]
    facts: dict
    licences: set[str] = dataclasses.field(default_factory=set)

    @property
    def left_out(self) -> list[str]:
        """What lies in the folder and does not go along."""
        if not self.path.is_dir():
            return []
        gone = {path.resolve() for path in self.files.values()} | {(self.path / "README.md").resolve()}
        found = (path for path in self.path.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.path)) for path in found if path.resolve() not in gone)

    def licence(self, given: str | None) -> str:
        """The licence under which it goes.

        Args:
            given: what the owner says, an identifier of the Hub such as "cc-by-4.0".

        Raises:
            DataError: its data may not be passed on, carry another licence than the given one, or none is known.
        """
        given = None if given is None else _plain(given)
        closed = sorted(self.licences & set(CLOSED)) or [given] * (given in CLOSED)
        if closed and self.kind in ("dataset", "embeddings", "index"):
            raise DataError(
                f"{self.path}: holds data marked {closed[0]!r}, which may not be passed on; leave them out and make it "
                "anew"
            )
        found = sorted(self.licences - set(CLOSED))
        if given is None and len(found) == 1:
            return found[0]
        if given is None:
            why = f"its data carry {', '.join(found)}" if found else "nothing says under which licence it stands"
            raise DataError(f"{self.path}: {why}; give --licence, such as cc-by-4.0, or --licence other")
        if self.kind != "model" and found and found != [given] and given != "other":
            raise DataError(f"{self.path}: its data carry {', '.join(found)}, not {given}; give --licence other")
        return given


def read_part(kind: str, path: str | os.PathLike) -> Part:
    """Look at what is to be pushed, and check that it can be used by who pulls it.

    Args:
        kind: of `KINDS`.
        path: where it lies; of a model also its name, as `from_pretrained` takes it.

    Raises:
        DataError, CheckpointError: it is not there, not whole, or of another kind.
    """
    if kind not in KINDS:
        raise DataError(f"kind must be one of {', '.join(KINDS)}, found {kind!r}")
    path = resolve_checkpoint(path) if kind == "model" else Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such {'file' if kind == 'embeddings' else 'folder'}")
    readers = {
        "model": _model, "head": _head, "dataset": _dataset, "embeddings": _embeddings, "index": _index,
        "report": _report,
    }  # fmt: skip
    return readers[kind](path)


def belongs(kind: str, path: str) -> bool:
    """Whether a file of a repository is of those that a push of this kind replaces."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in PATTERNS[kind])


def _model(path: Path) -> Part:
    from .embedding import Embedder, weights_hash

    embedder = Embedder.from_pretrained(path, device="cpu")
    names = ["config.json", "preprocessor_config.json", *_REMOTE_CODE]
    # Its own, where the weights are in one file, whatever else lies there.
    single = (path / "model.safetensors").is_file()
    names += ["model.safetensors"] if single else sorted(file.name for file in path.glob("model*.safetensors*"))
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path}: {missing[0]} is missing; write model and processor by save_pretrained")
    # What a run of the library says of its cost; other checkpoints have none.
    cost = None
    if (path / "training.json").is_file():
        names.append("training.json")
        cost = _cost(path / "training.json")
    config = embedder.model.config
    facts = {
        "training": cost,
        "weights_hash": weights_hash(embedder.model), "dim": embedder.dim, "config": config.to_dict(),
        "parameters": sum(p.numel() for p in embedder.model.parameters()), "processor": embedder.processor.to_dict(),
    }  # fmt: skip
    return Part("model", path, {name: path / name for name in names}, facts)


def _cost(path: Path) -> dict:
    try:
        cost = json.loads(path.read_text(encoding="utf-8"))
        return {key: cost[key] for key in ("steps", "samples", "hours", "processes", "precision", "device")}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is not what pretraining writes ({error!r}); remove it") from error


def _head(path: Path) -> Part:
    from .heads import load_head

    head = load_head(path)
    facts = {
        "type": type(head).__name__, "dim": head.n_features_in_, "info": head.info_, "patch": head.patch_,
        "classes": dict(zip(map(str, head.classes_), head.n_labels_.tolist(), strict=True)),
        "calibrated": head.calibrated_, "calibration": head.calibration, "temperature": head.temperature_,
    }  # fmt: skip
    return Part("head", path, {name: path / name for name in PATTERNS["head"]}, facts, _recorded(head.info_))


def _dataset(path: Path) -> Part:
    from .data import ShardFolder

    source = ShardFolder(path)
    names = [name for name in PATTERNS["dataset"][:3] if (path / name).is_file()]
    files = {name: path / name for name in names}
    for name, about in source.manifest["shards"].items():
        file = path / "data" / name
        if not file.is_file() or file.stat().st_size != about["bytes"]:
            raise DataError(f"{file}: missing or not of the size in manifest.json; `croplem data build` again")
        files[f"data/{name}"] = file
    licences = set()
    if source.manifest.get("source") in _KNOWN_SOURCES:
        licences.add(_KNOWN_SOURCES[source.manifest["source"]])
    extra = pq.read_table(path / "index.parquet", columns=["extra"], partitioning=None)["extra"].unique().to_pylist()
    for line in filter(None, extra):
        licences |= _values(json.loads(line).get(name) for name in LICENCE_COLUMNS)
    return Part("dataset", path, files, {"manifest": source.manifest}, licences)


def _embeddings(path: Path) -> Part:
    from .table import open_table, read_batches, read_info

    file = open_table(path)
    rows = width = 0
    for ids, vectors in read_batches(path, 65536):
        rows, width = rows + len(ids), vectors.shape[1]
    info = read_info(path, file)
    columns = {field.name: str(field.type) for field in file.schema_arrow}
    there = [name for name in (*LICENCE_COLUMNS, SOURCE_COLUMN) if name in columns]
    metadata = file.read(columns=there)
    facts = {"rows": rows, "dim": width, "columns": columns, "info": info, "sources": _sources(metadata)}
    licences = _recorded(info) | _of_columns(metadata)
    return Part("embeddings", path, {"embeddings.parquet": path}, facts, licences)


def _index(path: Path) -> Part:
    from .index import EmbeddingIndex

    index = EmbeddingIndex.load(path)
    about = json.loads((path / "index.json").read_text())
    facts = {
        "rows": len(index), "dim": index.dim, "settings": index.settings, "columns": index.metadata.column_names,
        "info": index.info, "exact": index.lists is None, "sources": _sources(index.metadata),
    }  # fmt: skip
    files = {name: path / name for name in ("index.json", *about["sha256"])}
    return Part("index", path, files, facts, _recorded(index.info) | _of_columns(index.metadata))


def _report(path: Path) -> Part:
    from .hub_figures import read_figures

    missing = [name for name in PATTERNS["report"] if not (path / name).is_file()]
    if missing:
        raise DataError(f"{path}: {missing[0]} is missing; `croplem evaluate` writes a report")
    figures = read_figures(path / "figures.json")
    licences = _recorded(figures["data"]["embeddings"])
    return Part("report", path, {name: path / name for name in PATTERNS["report"]}, {"figures": figures}, licences)


def _recorded(info: dict) -> set[str]:
    """Licences that the `info` of a table names, by itself or by what it was made of."""
    source = info.get("source") or {}
    found = _values([info.get("licence"), source.get("licence")])
    return found or _values([_KNOWN_SOURCES.get(source.get("kind"))])


def _sources(metadata: pa.Table) -> list[str]:
    """What the rows say of where they come from, in order."""
    if SOURCE_COLUMN not in metadata.column_names:
        return []
    return sorted(str(value) for value in metadata[SOURCE_COLUMN].unique().to_pylist() if value not in (None, ""))


def _of_columns(table: pa.Table) -> set[str]:
    there = [table[name] for name in LICENCE_COLUMNS if name in table.column_names]
    return _values(value for column in there for value in column.cast(pa.string()).unique().to_pylist())


def _values(values: Iterable[object]) -> set[str]:
    """As the Hub writes them; "unknown" is no licence."""
    return {_plain(str(value)) for value in values if value not in (None, "", "unknown")}


def _plain(licence: str) -> str:
    return licence.strip().lower().replace(" ", "-").replace("_", "-")


def stale(kind: str, there: Collection[str], files: Collection[str]) -> list[str]:
    """Files of a repository that an earlier push of this kind left and this one no longer has."""
    return sorted(path for path in there if belongs(kind, path) and path not in files)


__all__ = ["CLOSED", "KINDS", "PATTERNS", "Part", "belongs", "read_part", "stale"]
