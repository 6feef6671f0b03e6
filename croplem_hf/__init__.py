"""Embeddings of cropland from Sentinel-1 and Sentinel-2, native to the Hugging Face ecosystem.

Names are resolved on first use, so that importing the package loads neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data import (
        SEN12MSFolder as SEN12MSFolder,
        SeriesTable as SeriesTable,
        check_sample as check_sample,
        generate_sen12ms as generate_sen12ms,
        make_sample as make_sample,
        open_source as open_source,
    )
    from .embedding import Embedder as Embedder
    from .errors import CheckpointError as CheckpointError, CropLEMError as CropLEMError, DataError as DataError
    from .index import EmbeddingIndex as EmbeddingIndex
    from .model import (
        CropLEMConfig as CropLEMConfig,
        CropLEMForPreTraining as CropLEMForPreTraining,
        CropLEMImageProcessor as CropLEMImageProcessor,
        CropLEMModel as CropLEMModel,
    )
    from .resolver import packaged_path as packaged_path, resolve_checkpoint as resolve_checkpoint
    from .table import EmbeddingsTable as EmbeddingsTable, read_table as read_table

_WHERE = {
    "CheckpointError": "errors",
    "CropLEMConfig": "model",
    "CropLEMError": "errors",
    "CropLEMForPreTraining": "model",
    "CropLEMImageProcessor": "model",
    "CropLEMModel": "model",
    "DataError": "errors",
    "Embedder": "embedding",
    "EmbeddingIndex": "index",
    "EmbeddingsTable": "table",
    "SEN12MSFolder": "data",
    "SeriesTable": "data",
    "check_sample": "data",
    "generate_sen12ms": "data",
    "make_sample": "data",
    "open_source": "data",
    "packaged_path": "resolver",
    "read_table": "table",
    "resolve_checkpoint": "resolver",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
