"""What a bandit remembers between rounds, and its file: safetensors with a JSON header."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import CheckpointError

FORMAT = 2
FINGERPRINT_ROWS = 256


@dataclasses.dataclass
class Batch:
    """Rows that wait for their labels, with what was known when they were chosen.

    rows: int64 (B,). contexts: float64 (B, 6 + R). new_coverage: float64 (B,). by_chance: bool (B,), drawn at random.
    classes: int64 (K,), those of the head, none where there was no head yet; probabilities: float64 (B, K).
    """

    rows: np.ndarray
    contexts: np.ndarray
    new_coverage: np.ndarray
    by_chance: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def take(self, keep: np.ndarray) -> "Batch":
        """The rows where `keep` (B,) is true."""
        parts = (self.rows, self.contexts, self.new_coverage, self.by_chance)
        return Batch(*(part[keep] for part in parts), self.classes, self.probabilities[keep])


def describe_pool(X: np.ndarray, regions: list[str], target: np.ndarray | None = None) -> dict:
    """What tells one pool from another: its size, regions, and a hash of a few hundred of its rows; of a target too."""
    about = {"rows": len(X), "dimensions": X.shape[1], "regions": regions, "sha256": _fingerprint(X)}
    return about | {"target": None if target is None else f"{len(target)} {_fingerprint(target)}"}


def _fingerprint(X: np.ndarray) -> str:
    picked = np.linspace(0, len(X) - 1, min(FINGERPRINT_ROWS, len(X))).astype(int)
    return hashlib.sha256(np.ascontiguousarray(np.asarray(X)[picked]).tobytes()).hexdigest()


def write_state(path: str | os.PathLike, about: dict, arrays: dict[str, np.ndarray], batches: list[Batch]) -> None:
    """Write JSON values, arrays and waiting batches under one name, whole or not at all."""
    for number, batch in enumerate(batches):
        arrays = arrays | {f"{number}.{key}": value for key, value in dataclasses.asdict(batch).items()}
    about = about | {"format": FORMAT, "batches": len(batches)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    save_file(arrays, partial, {"bandit": json.dumps(about)})
    os.replace(partial, path)


def read_state(path: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray], list[Batch]]:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or of another format.
    """
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["bandit"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        found = about["format"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; CoverageBandit.save writes one") from error
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: is no state of a CoverageBandit, or is damaged ({error})") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: state of format {found}, this library reads {FORMAT}; start a new campaign with another file"
        )
    names = [field.name for field in dataclasses.fields(Batch)]
    batches = [Batch(*(arrays[f"{n}.{name}"] for name in names)) for n in range(about["batches"])]
    return about, arrays, batches


__all__ = ["Batch", "describe_pool", "read_state", "write_state"]
