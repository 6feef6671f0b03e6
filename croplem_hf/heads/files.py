"""Heads in files: `head.json` and `head.safetensors` in a folder of their own, without pickle."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .. import __version__
from ..errors import CheckpointError, DataError
from ..hub import fetch
from ..table import SETTINGS
from .base import Head
from .boosting import BoostingHead
from .conformal import ConformalSets
from .knn import KNNHead
from .logistic import LogisticHead
from .mlp import MLPHead
from .novelty import LabelledNeighbourhood
from .regions import RegionCentre

FORMAT = 2
FILES = ("head.json", "head.safetensors")
HEADS = {"logistic": LogisticHead, "knn": KNNHead, "mlp": MLPHead, "boosting": BoostingHead}


def save_head(head: Head, folder: str | os.PathLike) -> None:
    """`Head.save`."""
    folder = Path(os.path.abspath(folder))
    foreign = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if foreign and not (folder / FILES[0]).is_file():
        raise DataError(f"{folder}: exists and is no head; give another name")
    classes = head.classes_.tolist()
    if not (all(type(c) is str for c in classes) or all(type(c) is int for c in classes)):
        raise DataError(f"classes must be text or whole numbers to be saved, found {classes[0]!r}")
    weights = head.class_weight
    if isinstance(weights, dict):
        # JSON has text keys only; classes may be numbers.
        weights = [[name.item() if isinstance(name, np.generic) else name, w] for name, w in weights.items()]
    tensors = head.tensors()
    if head.neighbourhood_ is not None:
        tensors |= {"near_vectors": head.neighbourhood_.vectors_, "near_distances": head.neighbourhood_.distances_}
    if head.conformal_ is not None:
        tensors |= {"conformal_scores": head.conformal_.scores_, "conformal_places": head.conformal_.places_}
    about = {
        "format": FORMAT, "library_version": __version__, "kind": type(head).__name__, "classes": classes,
        "n_labels": head.n_labels_.tolist(), "calibrated": head.calibrated_, "dim": head.n_features_in_,
        "parameters": head.get_params() | {"class_weight": weights},
        "regions": None if head.regions_ is None else head.regions_.names_,
        "conformal_regions": None if head.conformal_ is None else head.conformal_.regions_.tolist(),
        "content_hash": head.content_hash_, "patch": head.patch_, "unit": head.info_.get("unit"),
        "settings": {key: head.info_[key] for key in SETTINGS if key in head.info_}, "info": head.info_,
    }  # fmt: skip
    # Hidden names that nobody else uses: what lies there is left over from a killed `save`.
    partial, old = (folder.with_name(f".{folder.name}.croplem-{end}") for end in ("new", "old"))
    for leftover in (partial, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    # safetensors writes the memory as it lies, which a solver may have left in columns.
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial / FILES[1])
    about["sha256"] = _sha256(partial / FILES[1])
    (partial / FILES[0]).write_text(json.dumps(about, indent=1))
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_head(
    folder: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> Head:
    """A head of any kind; see `Head.load`."""
    folder = fetch(folder, "head", revision=revision, token=token)
    try:
        about = json.loads((folder / FILES[0]).read_text())
        if about["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: a head of format {about['format']}, this library reads {FORMAT}; fit it again"
            )
        kinds = {kind.__name__: kind for kind in HEADS.values()}
        if about["kind"] not in kinds:
            raise CheckpointError(f"{folder}: a head of unknown kind {about['kind']!r}; known: {', '.join(kinds)}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder}: no head here (no {FILES[0]}); `croplem fit` writes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: {FILES[0]} is damaged ({error!r:.200}); fit the head again") from error
    if not (folder / FILES[1]).is_file():
        raise CheckpointError(f"{folder}: {FILES[1]} is missing; fit the head again")
    if _sha256(folder / FILES[1]) != about.get("sha256"):
        raise CheckpointError(f"{folder}: {FILES[1]} is damaged or foreign (checksum); fit the head again")
    try:
        return _read(kinds[about["kind"]], about, load_file(folder / FILES[1]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: not the files of a {about['kind']} ({error!r:.200})") from error


def _read(kind: type[Head], about: dict, tensors: dict[str, np.ndarray]) -> Head:
    weights = about["parameters"]["class_weight"]
    weights = {k: v for k, v in weights} if isinstance(weights, list) else weights
    head = kind(**about["parameters"] | {"class_weight": weights})
    for name in ("mean_", "scale_", *kind.TENSORS):
        setattr(head, name, tensors[name])
    head.temperature_ = float(tensors["temperature_"][0])
    if "isotonic_" in tensors:
        head.isotonic_ = tensors["isotonic_"]
    head.classes_, head.n_labels_ = np.array(about["classes"]), np.array(about["n_labels"], np.int64)
    head.calibrated_, head.n_features_in_ = about["calibrated"], about["dim"]
    head.info_, head.content_hash_, head.patch_ = about["info"], about["content_hash"], about["patch"]
    head.regions_ = head.neighbourhood_ = head.conformal_ = None
    if about["regions"] is not None:
        head.regions_ = RegionCentre.of_tensors(about["regions"], tensors)
    if "near_vectors" in tensors:
        near = head.neighbourhood_ = LabelledNeighbourhood()
        near.vectors_, near.distances_ = tensors["near_vectors"], tensors["near_distances"]
    if about["conformal_regions"] is not None:
        sets = head.conformal_ = ConformalSets()
        sets.scores_, sets.places_ = tensors["conformal_scores"], tensors["conformal_places"]
        sets.regions_ = np.array(about["conformal_regions"])
    return head


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


__all__ = ["FILES", "FORMAT", "HEADS", "load_head", "save_head"]
