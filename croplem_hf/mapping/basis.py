"""How embeddings are stored in a map: all numbers or principal components, as they are or as bytes with a scale."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.decomposition import PCA

from ..data.files import write_aside
from ..errors import CheckpointError, DataError

MARGIN = 1.25
"""Bytes reach a quarter further than the largest value of the sample that they were scaled by."""
LARGEST = 127
NODATA = -128


@dataclasses.dataclass(frozen=True)
class Basis:
    """A linear map of D numbers to K bands, and the scale of their bytes.

    mean: float32 (D,), taken off first. components: float32 (K, D), rows of length one. scale: float32 (K,), a byte
    stands for byte x scale. explained: float32 (K,), share of the sample's variance in each band. about: the settings
    that the embeddings were made with.
    """

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    explained: np.ndarray
    about: dict

    @classmethod
    def fit(cls, vectors: np.ndarray, bands: int | None, about: dict) -> "Basis":
        """Principal components of a sample, or all numbers as they are.

        Args:
            vectors: float32 (N, D).
            bands: how many components; None for all D numbers, untouched.
            about: settings of the vectors, plain JSON.

        Raises:
            DataError: more bands than numbers, or than vectors in the sample.
        """
        dim = vectors.shape[1]
        if bands is None:
            mean, components = np.zeros(dim, np.float32), np.eye(dim, dtype=np.float32)
            variance = vectors.var(axis=0, dtype=np.float64)
            explained = variance / max(variance.sum(), np.finfo(float).tiny)
        else:
            if not 1 <= bands <= min(vectors.shape):
                raise DataError(
                    f"bands must be 1 to {min(vectors.shape)}, found {bands}: the embeddings have {dim} numbers, and "
                    f"{len(vectors)} of them were sampled in the scene"
                )
            with np.errstate(invalid="ignore"):  # a scene that is the same everywhere has no variance to share
                pca = PCA(bands, svd_solver="full").fit(vectors.astype(np.float64))
            mean, components = pca.mean_, pca.components_
            explained = np.nan_to_num(pca.explained_variance_ratio_)
        projected = (vectors - mean) @ components.T
        scale = np.maximum(np.abs(projected).max(axis=0) * MARGIN / LARGEST, np.finfo(np.float32).tiny)
        return cls(*(np.ascontiguousarray(x, np.float32) for x in (mean, components, scale, explained)), about)

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (..., D) -> (..., K)."""
        return (vectors - self.mean) @ self.components.T

    def to_bytes(self, values: np.ndarray) -> np.ndarray:
        """float32 (..., K), NaN where unknown -> int8 (..., K), `NODATA` there; what is too large is cut."""
        coded = np.rint(values / self.scale).clip(-LARGEST, LARGEST)
        return np.where(np.isfinite(coded), coded, NODATA).astype(np.int8)

    @property
    def hash(self) -> str:
        """SHA-256 over its numbers."""
        digest = hashlib.sha256()
        for array in (self.mean, self.components, self.scale):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Write a safetensors file, whole or not at all."""
        tensors = {"mean": self.mean, "components": self.components, "scale": self.scale, "explained": self.explained}
        with write_aside(path) as aside:
            save_file(tensors, aside, metadata={"croplem": json.dumps(self.about)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Basis":
        """Read what `save` wrote.

        Raises:
            CheckpointError: no such file, or not one of a basis.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file; `croplem map --embeddings --bands K` writes one")
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["croplem"])
                tensors = {name: file.get_tensor(name) for name in ("mean", "components", "scale", "explained")}
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"{path}: not a basis of embeddings ({error!r:.200})") from error
        shape = tensors["components"].shape
        if len(shape) != 2 or tensors["mean"].shape != shape[1:] or tensors["scale"].shape != shape[:1]:
            raise CheckpointError(f"{path}: not a basis of embeddings (its shapes do not fit each other)")
        return cls(**tensors, about=about)


__all__ = ["NODATA", "Basis"]
