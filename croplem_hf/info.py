"""What `croplem info` tells: versions and the packaged checkpoint, or what a file or folder holds."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

from . import __version__
from .errors import CheckpointError, DataError
from .resolver import DEFAULT_CHECKPOINT, packaged_path

LIBRARIES = ("torch", "transformers", "huggingface_hub", "faiss-cpu", "pyarrow", "rasterio", "numpy")


def describe(path: str | os.PathLike | None = None) -> dict:
    """Facts as a dict that prints as JSON.

    Args:
        path: an embeddings table, an index folder or a checkpoint folder; None for the library itself.

    Raises:
        DataError: nothing is there, or nothing that this library writes.
        CheckpointError: it is damaged.
    """
    if path is None:
        import torch

        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return {
            "kind": "library",
            "croplem_hf": __version__,
            "python": platform.python_version(),
            "libraries": {name: _version(name) for name in LIBRARIES},
            "accelerator": None if accelerator is None else str(accelerator),
            "cpu_threads": torch.get_num_threads(),
            "packaged_checkpoint": {"name": DEFAULT_CHECKPOINT} | _checkpoint(packaged_path()),
        }
    path = Path(path)
    if (path / "index.json").is_file():
        from .index import EmbeddingIndex

        index = EmbeddingIndex.load(path)
        return {"kind": "index", "rows": len(index), "columns": index.metadata.column_names} | index.info
    if (path / "config.json").is_file():
        return {"kind": "checkpoint"} | _checkpoint(path)
    if path.is_file():
        from .table import read_table

        table = read_table(path)
        return {"kind": "embeddings table", "rows": len(table), "columns": table.metadata.column_names} | table.info
    if path.exists():
        raise DataError(f"{path}: neither an embeddings table, an index nor a checkpoint")
    raise DataError(f"{path}: no such file or folder")


def _version(name: str) -> str | None:
    """Of an installed distribution; None where another installer calls it by another name, as conda does with faiss."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checkpoint(folder: Path) -> dict:
    try:
        config = dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: config.json is damaged ({error})") from error
    keys = ("model_type", "hidden_size", "num_hidden_layers", "patch_size", "s1_bands", "s2_bands", "s2_levels")
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    return {"folder": str(folder), "weights_bytes": size} | {k: config[k] for k in keys if k in config}


__all__ = ["describe"]
