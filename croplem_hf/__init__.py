"""Embeddings of cropland from Sentinel-1 and Sentinel-2, native to the Hugging Face ecosystem.

Names are resolved on first use, so that importing the package loads neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .data import (
        SEN12MSFolder as SEN12MSFolder,
    )
    from .data import (
        SeriesTable as SeriesTable,
    )
    from .data import (
        check_sample as check_sample,
    )
    from .data import (
        generate_sen12ms as generate_sen12ms,
    )
    from .data import (
        make_sample as make_sample,
    )
    from .data import (
        open_source as open_source,
    )
    from .embedding import Embedder as Embedder
    from .errors import CheckpointError as CheckpointError
    from .errors import CropLEMError as CropLEMError
    from .errors import DataError as DataError
    from .index import EmbeddingIndex as EmbeddingIndex
    from .model import (
        CropLEMConfig as CropLEMConfig,
    )
    from .model import (
        CropLEMForPreTraining as CropLEMForPreTraining,
    )
    from .model import (
        CropLEMImageProcessor as CropLEMImageProcessor,
    )
    from .model import (
        CropLEMModel as CropLEMModel,
    )
    from .resolver import packaged_path as packaged_path
    from .resolver import resolve_checkpoint as resolve_checkpoint
    from .table import EmbeddingsTable as EmbeddingsTable
    from .table import read_table as read_table

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
