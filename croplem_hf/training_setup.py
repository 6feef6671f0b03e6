"""What a pretraining run is made of before its first step: processes, data, model, optimiser, schedule."""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DynamoBackend, ProjectConfiguration
from torch.distributed.fsdp import CPUOffloadPolicy

from .augment import Augmentation, augment, draw_recipe
from .data.plan import BatchPlan, read_layout, select_items
from .data.sample import Sample
from .embedding import Embedder
from .errors import DataError
from .model import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor
from .model.configuration_croplem import PRESETS
from .resolver import resolve_checkpoint
from .table import EmbeddingsTable, read_table
from .training_config import TrainingConfig, check_keys, checked_config
from .vitmae import from_vitmae, is_vitmae

logger = logging.getLogger(__name__)

COMPILED_SHAPES = 256
"""Numbers of tokens for which a layer may be compiled; further ones run as they are."""


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """The processes that a launcher started, and the trackers.

    Raises:
        DataError: another number of processes than the configuration allows, a way to share that is not supported, or a
            tracker that is not installed.
    """
    installed = [str(getattr(kind, "value", kind)) for kind in get_available_trackers()]
    trackers = config.trackers
    if trackers is None:
        trackers = ["tensorboard"] if "tensorboard" in installed else []
    for name in trackers:
        if name not in installed:
            raise DataError(
                f"trackers: {name!r} is not installed, or unknown to accelerate; here are "
                f"{', '.join(installed) or 'none'} (pip install tensorboard brings one)"
            )
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # A batch without one sensor leaves that sensor's parameters without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=trackers or None,
        project_config=ProjectConfiguration(project_dir=config.out, logging_dir=str(Path(config.out) / "trackers")),
    )
    check_processes(accelerator, config)
    # What the environment of a launcher would otherwise change behind the configuration's back.
    if accelerator.gradient_accumulation_steps != config.gradient_accumulation_steps:
        raise DataError(
            f"gradient_accumulation_steps is {config.gradient_accumulation_steps}, and the launcher says "
            f"{accelerator.gradient_accumulation_steps}; leave it out there"
        )
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise DataError("the launcher asks for torch.compile of the whole model; leave it out there, set compile: true")
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise DataError("mixed_precision fp16 needs a GPU; use bf16 or no on a CPU")
    return accelerator


def check_processes(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Refuse another number of processes than the configuration allows, and ways to share that are not supported."""
    ranks = accelerator.num_processes
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != ranks:
        raise DataError(
            f"{started} processes were started, and each takes itself for one of {ranks}: without GPUs, set "
            "ACCELERATE_USE_CPU=true"
        )
    if config.expected_processes not in (None, ranks):
        raise DataError(
            f"expected_processes is {config.expected_processes}, but the number of processes is {ranks}; on CPUs start "
            f"them with ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node {config.expected_processes} "
            "(`accelerate launch --cpu` starts only one), on GPUs with accelerate launch --num_processes "
            f"{config.expected_processes}"
        )
    if config.batch_size % ranks:
        raise DataError(f"batch_size {config.batch_size} must be divisible by the number of processes, {ranks}")
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA):
        raise DataError(
            f"{kind.value} is not supported; use --config_file scripts/accelerate_ddp.yaml, or, for weights that one "
            "GPU cannot hold, scripts/accelerate_fsdp.yaml"
        )
    if kind == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if getattr(plugin, "fsdp_version", 1) != 2:
            raise DataError("FSDP is supported in its version 2 alone: set fsdp_version: 2 (accelerate 1.6 or later)")
        if plugin.activation_checkpointing or isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            raise DataError(
                "fsdp_activation_checkpointing and fsdp_offload_params are not supported; leave them out for the "
                "launcher, and set activation_checkpointing: true in the configuration of the run"
            )


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimiser step `step`, counted from 0: a linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low, high = min(config.min_learning_rate, config.learning_rate), config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))


def open_data(config: TrainingConfig) -> tuple[list, BatchPlan, str]:
    """Sources, the plan over them, and a hash of what they hold: ids, shapes, and the vectors to tell."""
    sources, layouts, digest = [], [], hashlib.sha256()
    for spec in config.sources:
        source = spec.open()
        if hasattr(source, "labels"):
            source.labels = False  # nothing here looks at land cover, so it is not read
        keep = select_items(source, spec.where, spec.test_scenes)
        layout = read_layout(source).keep(keep).crop(config.crop_size)
        logger.info("%s: %d of %d items, weight %g", spec.path, int(keep.sum()), len(source), spec.weight)
        sources.append(source)
        layouts.append(layout)
        digest.update("\n".join(source.ids).encode() + layout.shapes.tobytes())
    if config.latent_targets is not None:
        digest.update(_latent_table(config).content_hash.encode())
    weights = [spec.weight for spec in config.sources]
    plan = BatchPlan(layouts, batch_size=config.batch_size, seed=config.seed, weights=weights)
    return sources, plan, digest.hexdigest()


def build_model(config: TrainingConfig, checkpoint: Path | None) -> tuple[CropLEMForPreTraining, CropLEMImageProcessor]:
    """Model and processor: of a checkpoint of this run, of `init_from`, or fresh; in training mode.

    Raises:
        DataError: settings of the model that are none, or that do not fit `init_from`.
    """
    torch.manual_seed(config.seed)  # of weights that are drawn: all of a fresh model
    folder = checkpoint or (config.init_from and resolve_checkpoint(config.init_from))
    if folder is None:
        model = CropLEMForPreTraining(model_config(config.model))
        processor = _processor(model.config)
    elif checkpoint is None and is_vitmae(folder):
        model = from_vitmae(folder, _settings(config.model))
        processor = _processor(model.config)
    elif checkpoint is None and config.model:
        raise DataError("model and init_from exclude each other: a checkpoint brings its own settings")
    else:
        model = CropLEMForPreTraining.from_pretrained(str(folder), dtype=torch.float32)
        processor = CropLEMImageProcessor.from_pretrained(str(folder))
    if config.activation_checkpointing:
        model.activation_checkpointing_enable()
    if config.compile:
        compile_layers(model)
    return model.train(), processor


def _processor(config: CropLEMConfig) -> CropLEMImageProcessor:
    """A processor that standardises optics as the model takes it to be, which computes normalised differences."""
    return CropLEMImageProcessor(s2_mean=config.s2_mean, s2_std=config.s2_std)


def model_config(settings: dict) -> CropLEMConfig:
    """`CropLEMConfig` of the key `model`: sizes of `preset`, if there is one, and whatever else is given.

    Raises:
        DataError: an unknown key or preset, or a value that is refused.
    """
    return checked_config(_settings(settings))


def _settings(settings: dict) -> dict:
    """The same with the sizes of the preset written out."""
    check_keys(settings, ["preset", *(field.name for field in dataclasses.fields(CropLEMConfig))], "model.")
    name = settings.get("preset", "nano")
    if name not in PRESETS:
        raise DataError(f"model.preset must be one of {', '.join(PRESETS)}, found {name!r}")
    return PRESETS[name] | {key: value for key, value in settings.items() if key != "preset"}


def compile_layers(model: CropLEMForPreTraining) -> None:
    """Compile encoder and decoder layer by layer, where the time goes; the rest depends on what a batch holds.

    Layers that are alike share their code. Each number of tokens is compiled for itself, at its first batch; a plan has
    few of them, for the samples of a batch have one shape, and masks hide a constant count.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_SHAPES)
    for layer in (*model.croplem.layers, *model.decoder.layers):
        layer.compile(dynamic=False)


def build_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors do not decay."""
    groups = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    groups = [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=tuple(config.betas), weight_decay=config.weight_decay
    )


def read_targets(config: TrainingConfig, size: int, sources: list, plan: BatchPlan) -> dict[str, np.ndarray]:
    """{id: float32 (size,)} of `config.latent_targets`; empty where there is none.

    Raises:
        DataError: a fresh model wants vectors and there is no file, it cannot be read, or its vectors are not as long
            as the model's `latent_size`; ids are missing, repeat or fit no item, or vectors are not finite.
    """
    if config.latent_targets is None:
        # A checkpoint that learned such vectors may go on without them: that term is then 0.
        if config.model.get("latent_size"):
            raise DataError(f"model.latent_size is {size}, but latent_targets names no table of vectors")
        return {}
    table = _latent_table(config)
    ids, vectors = table.ids, table.vectors
    if vectors.shape[1] != size:
        raise DataError(f"{config.latent_targets}: vectors {vectors.shape[1:]}, but model.latent_size is {size}")
    wanted = {sources[source].ids[row] for source, row in plan.epoch(0).reshape(-1, 3)[:, :2].tolist()}
    found = len(wanted.intersection(ids))
    if not found:
        raise DataError(
            f"{config.latent_targets}: none of its ids is one of the sources; it has {ids[0]!r}, they {min(wanted)!r}"
        )
    logger.info("%s: %d of %d items have a vector to tell", config.latent_targets, found, len(wanted))
    return dict(zip(ids, vectors, strict=True))


def _latent_table(config: TrainingConfig) -> EmbeddingsTable:
    try:
        return read_table(config.latent_targets)
    except DataError as error:
        raise DataError(f"latent_targets cannot be read as a table of id and embedding: {error}") from error


def read_some(
    sources: Sequence, plan: BatchPlan, count: int, window: tuple[int, int] | None = None
) -> Iterator[Sample]:
    """Up to `count` samples that do not change with the run: one of each source and shape, then others.

    With `window`, a patch size and a number of tokens, images are cropped as in training, else they are whole.
    """
    items = np.random.default_rng([plan.seed, 21]).permutation(plan.epoch(0).reshape(-1, 3)[:, :2])
    items = items[np.sort(np.unique(items, axis=0, return_index=True)[1])]
    kinds = np.concatenate([items[:, :1], plan.shapes(items)], axis=1)
    first = np.sort(np.unique(kinds, axis=0, return_index=True)[1])[:count]
    rest = np.setdiff1d(np.arange(len(items)), first)
    still = Augmentation(0, 0.0, False, 0.0, 0.0, 0.0, 0.0)
    for item in items[np.concatenate([first, rest])][: 2 * count]:
        if count == 0:
            return
        with contextlib.suppress(DataError):
            sample = sources[item[0]][int(item[1])]
            if window is not None:
                recipe = draw_recipe(
                    plan.shapes(item[None]), seed=0, number=0, patch_sizes=window[:1], max_tokens=window[1],
                    augmentation=still,
                )  # fmt: skip
                sample = augment(sample, recipe, np.random.default_rng(0), still)
            yield sample
            count -= 1


def mean_embedding(model: CropLEMForPreTraining, processor: CropLEMImageProcessor, samples: Iterator) -> torch.Tensor:
    """Mean embedding (config.embedding_size,) of samples, few of them in memory at a time."""
    embedder = Embedder(model.croplem, processor, device=model.device)
    total, count = 0.0, 0
    while part := list(itertools.islice(samples, 16)):
        total = total + embedder.encode(part, centre=False).astype(np.float64).sum(axis=0)
        count += len(part)
    return torch.as_tensor(total / count, dtype=torch.float32)


__all__ = [
    "build_accelerator", "build_model", "build_optimizer", "check_processes", "compile_layers", "learning_rate_at",
    "mean_embedding", "model_config", "open_data", "read_some", "read_targets",
]  # fmt: skip
