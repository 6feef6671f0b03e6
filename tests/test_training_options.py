"""What a pretraining run can be told besides its data: averages, probe, trackers, presets, ViTMAE, checkpointing."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining

from croplem_hf import (
    CropLEMConfig,
    CropLEMForPreTraining,
    CropLEMImageProcessor,
    build_shards,
    generate_sen12ms,
    open_source,
)
from croplem_hf.errors import CropLEMError, DataError
from croplem_hf.training import load_bad_batch, main
from croplem_hf.training_config import ProbeConfig
from croplem_hf.training_ema import WeightAverage
from croplem_hf.training_probe import Probe
from croplem_hf.training_setup import build_model, load_config, open_data

from .test_training import TINY, rows_of, run, single_thread, tensors, write  # noqa: F401  fixtures
