"""Embeddings of cropland from Sentinel-1 and Sentinel-2, native to the Hugging Face ecosystem.

Names are resolved on first use, so that importing the package loads neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .active import CoverageBandit as CoverageBandit
    from .data import (
        DFC2020Folder as DFC2020Folder,
        EuroSATFolder as EuroSATFolder,
        ImageFolder as ImageFolder,
        KenyaFields as KenyaFields,
        KenyaTiles as KenyaTiles,
        SEN12MSFolder as SEN12MSFolder,
        SeriesTable as SeriesTable,
        ShardFolder as ShardFolder,
        build_shards as build_shards,
        check_sample as check_sample,
        generate_eurosat as generate_eurosat,
        generate_kenya as generate_kenya,
        generate_scene as generate_scene,
        generate_sen12ms as generate_sen12ms,
        load_sen12ms as load_sen12ms,
        make_sample as make_sample,
        open_scene as open_scene,
        open_source as open_source,
    )
    from .data.polygons import read_polygons as read_polygons
    from .data.scene_fields import SceneFields as SceneFields
    from .embedding import Embedder as Embedder
    from .errors import (
        CheckpointError as CheckpointError,
        CropLEMError as CropLEMError,
        DataError as DataError,
        HubError as HubError,
    )
    from .evaluation import evaluate as evaluate
    from .fields import embed_fields as embed_fields
    from .heads import (
        BoostingHead as BoostingHead,
        Head as Head,
        KNNHead as KNNHead,
        LogisticHead as LogisticHead,
        MLPHead as MLPHead,
        fit_head as fit_head,
        load_head as load_head,
    )
    from .hub import push as push
    from .index import EmbeddingIndex as EmbeddingIndex
    from .labels import match_labels as match_labels, read_labels as read_labels
    from .mapping import map_embeddings as map_embeddings, map_scene as map_scene
    from .model import (
        CropLEMConfig as CropLEMConfig,
        CropLEMForPreTraining as CropLEMForPreTraining,
        CropLEMImageProcessor as CropLEMImageProcessor,
        CropLEMModel as CropLEMModel,
    )
    from .resolver import packaged_path as packaged_path, resolve_checkpoint as resolve_checkpoint
    from .table import EmbeddingsTable as EmbeddingsTable, read_table as read_table
    from .training import TrainingConfig as TrainingConfig, load_config as load_config, train as train

_WHERE = {
    "BoostingHead": "heads",
    "CheckpointError": "errors",
    "CoverageBandit": "active",
    "CropLEMConfig": "model",
    "CropLEMError": "errors",
    "CropLEMForPreTraining": "model",
    "CropLEMImageProcessor": "model",
    "CropLEMModel": "model",
    "DFC2020Folder": "data",
    "DataError": "errors",
    "Embedder": "embedding",
    "EmbeddingIndex": "index",
    "EmbeddingsTable": "table",
    "EuroSATFolder": "data",
    "Head": "heads",
    "HubError": "errors",
    "ImageFolder": "data",
    "KNNHead": "heads",
    "KenyaFields": "data",
    "KenyaTiles": "data",
    "LogisticHead": "heads",
    "MLPHead": "heads",
    "SEN12MSFolder": "data",
    "SceneFields": "data.scene_fields",
    "SeriesTable": "data",
    "ShardFolder": "data",
    "TrainingConfig": "training",
    "build_shards": "data",
    "check_sample": "data",
    "embed_fields": "fields",
    "evaluate": "evaluation",
    "fit_head": "heads",
    "generate_eurosat": "data",
    "generate_kenya": "data",
    "generate_scene": "data",
    "generate_sen12ms": "data",
    "load_config": "training",
    "load_head": "heads",
    "load_sen12ms": "data",
    "make_sample": "data",
    "map_embeddings": "mapping",
    "map_scene": "mapping",
    "match_labels": "labels",
    "open_scene": "data",
    "open_source": "data",
    "packaged_path": "resolver",
    "push": "hub",
    "read_labels": "labels",
    "read_polygons": "data.polygons",
    "read_table": "table",
    "resolve_checkpoint": "resolver",
    "train": "training",
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
