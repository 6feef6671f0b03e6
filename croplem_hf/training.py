"""Masked-autoencoder pretraining on Accelerate: configuration, loop, checkpoints.

    accelerate launch scripts/pretrain.py --config scripts/pretrain_sen12ms.yaml
    accelerate launch -m croplem_hf.training --config scripts/pretrain_sen12ms.yaml --out runs/second
    ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 scripts/pretrain.py --config CONFIG

All that is random is a function of the seed and of a step's number, so a run that was stopped, however, goes on bit by
bit as if it had not been; run the same command again.
"""

import argparse
import contextlib
import csv
import dataclasses
import difflib
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from .augment import FEWEST_TRIED, Augmentation, TrainingBatches, augment, draw_recipe, mask_seed
from .data import open_source
from .data.plan import BatchPlan, read_layout, select_items
from .data.sample import Sample
from .embedding import Embedder
from .errors import CheckpointError, CropLEMError, DataError
from .model import CropLEMConfig, CropLEMForPreTraining, CropLEMImageProcessor
from .reconstruction import reconstruct, reconstruction_sheet

logger = logging.getLogger(__name__)

# May change when a run is resumed: they do not touch what is computed. Data may move too, its content is compared.
FREE_KEYS = (
    "out", "time_limit_minutes", "expected_processes", "num_workers", "log_every", "checkpoint_every",
    "keep_checkpoints", "picture_every",
)  # fmt: skip
CENTRE_SAMPLES = 1024
"""Samples over which the mean embedding is taken at the end of a run."""
PICTURE_SAMPLES = 6
_LOG_COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait_percent")
_CHECKPOINT = re.compile(r"^step-(\d{8})$")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of samples.

    path: of a SEN12MS folder or a series table; relative to where the run is started.
    weight: how often an epoch takes each item; 0.5 takes half of them.
    sensors, s2_level, s1_units, s2_units, s2_offset: see `open_source`.
    where: for each column the values that are wanted, such as {source: [presto_usa]} (`select_items`).
    test_scenes: whether to train on the official test scenes of SEN12MS too.
    """

    path: str
    weight: float = 1.0
    sensors: list[str] | None = None
    s2_level: str | None = None
    s1_units: str = "auto"
    s2_units: str = "auto"
    s2_offset: int | str = "auto"
    where: dict = dataclasses.field(default_factory=dict)
    test_scenes: bool = False


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """A pretraining run.

    sources: list of `SourceConfig`.
    out: folder of checkpoints, log, pictures and, at the end, the model.
    model: settings of a fresh model (`CropLEMConfig`); or init_from: name or folder of a checkpoint to start from.
    steps: optimiser steps of the whole run. batch_size: samples of a batch over all processes together, which a step
    takes gradient_accumulation_steps times.
    learning_rate: at the end of warmup_steps; then a cosine falls to min_learning_rate. clip_norm: of the gradient.
    mixed_precision: "no", "bf16" or "fp16"; None for what `accelerate launch` says.
    crop_size: images are cropped to at most this many pixels; max_tokens: and so far that a sample has at most this
    many tokens at the patch size of the step, so that small patches see small windows.
    num_workers: loader processes a rank. expected_processes: refuse to run with another number of ranks.
    time_limit_minutes: stop after this time with a checkpoint.
    log_every, checkpoint_every, picture_every: in steps; the last step is always logged, saved and drawn.
    keep_checkpoints: how many of the newest checkpoints stay.
    augmentation: see `Augmentation`.
    """

    sources: list[SourceConfig]
    out: str
    model: dict = dataclasses.field(default_factory=dict)
    init_from: str | None = None
    seed: int = 0
    steps: int = 10_000
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    min_learning_rate: float = 0.0
    warmup_steps: int = 500
    weight_decay: float = 0.05
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.95])
    clip_norm: float = 1.0
    mixed_precision: str | None = None
    crop_size: int | None = None
    max_tokens: int = 512
    num_workers: int = 2
    expected_processes: int | None = None
    time_limit_minutes: float | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    picture_every: int = 500
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __post_init__(self):
        least = {"steps": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "max_tokens": 1, "log_every": 1,
                 "checkpoint_every": 1, "keep_checkpoints": 1, "picture_every": 1, "crop_size": 1, "seed": 0,
                 "warmup_steps": 0, "num_workers": 0, "weight_decay": 0, "min_learning_rate": 0}  # fmt: skip
        for key, low in least.items():
            if getattr(self, key) is not None and getattr(self, key) < low:
                raise DataError(f"{key} must be at least {low}, found {getattr(self, key)}")
        for key in ("learning_rate", "clip_norm", "time_limit_minutes"):
            if getattr(self, key) is not None and not getattr(self, key) > 0:
                raise DataError(f"{key} must be above 0, found {getattr(self, key)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise DataError(f"betas must be two numbers of at least 0 and below 1, found {self.betas}")
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise DataError(f"mixed_precision must be 'no', 'bf16' or 'fp16', found {self.mixed_precision!r}")
        if not self.sources:
            raise DataError("sources is empty; name at least one, such as: - path: data/SEN12MS")
        if self.model and self.init_from:
            raise DataError("model and init_from exclude each other: a checkpoint brings its own settings")


def load_config(path: str | os.PathLike, *, out: str | None = None) -> TrainingConfig:
    """Read a configuration from a YAML or JSON file.

    Args:
        path: the file.
        out: replaces its key `out`.

    Raises:
        DataError: no such file, not YAML, an unknown key, or a value of the wrong type or range.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such configuration file; scripts/pretrain_sen12ms.yaml is an example")
    try:
        # JSON is YAML too.
        given = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: neither YAML nor JSON ({' '.join(str(error).split())})") from error
    if isinstance(given, Mapping) and out is not None:
        given = {**given, "out": out}
    try:
        return _build(TrainingConfig, given, "")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _build(cls: type, given, where: str):
    """A dataclass from a mapping, its keys and types checked."""
    if not isinstance(given, Mapping):
        raise DataError(f"{where or 'the file'} must hold keys and values, found {given!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    _check_keys(given, fields, where)
    for name, field in fields.items():
        if name not in given and field.default is field.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}{name} is missing" + ("; or pass --out DIR" if name == "out" else ""))
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(value, hints[name], f"{where}{name}") for name, value in given.items()})


def _check_keys(given: Mapping, known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), 1, 0)
            raise DataError(f"unknown key {where}{key}; the nearest is {where}{near[0]}")


def _convert(value, hint, where: str):
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if dataclasses.is_dataclass(kind):
            return _build(kind, value, f"{where}.")
        if typing.get_origin(kind) is list and isinstance(value, list):
            return [_convert(v, typing.get_args(kind)[0], f"{where}[{n}]") for n, v in enumerate(value)]
        if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            # YAML reads 1e-3 as text.
            with contextlib.suppress(ValueError):
                return float(value)
        if kind in (int, bool, str, dict, types.NoneType) and type(value) is kind:
            return value
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds).replace("NoneType", "null")
    raise DataError(f"{where} must be {names}, found {value!r}")


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimiser step `step`, counted from 0: a linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    low, high = min(config.min_learning_rate, config.learning_rate), config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))


def open_data(config: TrainingConfig) -> tuple[list, BatchPlan, str]:
    """Sources, the plan over them, and a hash of what they hold."""
    sources, layouts, digest = [], [], hashlib.sha256()
    for spec in config.sources:
        source = open_source(
            spec.path, sensors=spec.sensors, s2_level=spec.s2_level, s1_units=spec.s1_units, s2_units=spec.s2_units,
            s2_offset=spec.s2_offset,
        )  # fmt: skip
        if source.kind == "sen12ms":
            source.labels = False  # nothing here looks at land cover, so it is not read
        keep = select_items(source, spec.where, spec.test_scenes)
        layout = read_layout(source).keep(keep).crop(config.crop_size)
        logger.info("%s: %d of %d items, weight %g", spec.path, int(keep.sum()), len(source), spec.weight)
        sources.append(source)
        layouts.append(layout)
        digest.update("\n".join(source.ids).encode() + layout.shapes.tobytes())
    weights = [spec.weight for spec in config.sources]
    plan = BatchPlan(layouts, batch_size=config.batch_size, seed=config.seed, weights=weights)
    return sources, plan, digest.hexdigest()


def build_model(config: TrainingConfig, checkpoint: Path | None) -> tuple[CropLEMForPreTraining, CropLEMImageProcessor]:
    """Model and processor: of a checkpoint of this run, of `init_from`, or fresh."""
    start = checkpoint or config.init_from
    if start is not None:
        model = CropLEMForPreTraining.from_pretrained(str(start), dtype=torch.float32)
        return model, CropLEMImageProcessor.from_pretrained(str(start))
    _check_keys(config.model, [field.name for field in dataclasses.fields(CropLEMConfig)], "model.")
    try:
        model_config = CropLEMConfig(**config.model)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise DataError(f"model: {' '.join(str(error).split())}") from error
    torch.manual_seed(config.seed)
    return CropLEMForPreTraining(model_config), CropLEMImageProcessor()


def build_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; biases, norms and other vectors do not decay."""
    groups = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    groups = [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=tuple(config.betas), weight_decay=config.weight_decay
    )


@dataclasses.dataclass
class RunState:
    """Where a run stands: optimiser steps done, and the losses since the last line of the log."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0


def save_checkpoint(
    folder: Path, model: CropLEMForPreTraining, processor: CropLEMImageProcessor, optimizer, record: dict
) -> None:
    """Write model, processor, optimiser and `state.json` aside, then rename: a folder of this name is complete."""
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    states = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
    tensors = {f"{name}/{key}": value.contiguous() for name, state in states.items() for key, value in state.items()}
    save_file(tensors, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps(record, indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load_optimizer(checkpoint: Path, model: CropLEMForPreTraining, optimizer) -> None:
    """Give each parameter the state that `save_checkpoint` stored under its name."""
    parameters = dict(model.named_parameters())
    for key, value in load_file(checkpoint / "optimizer.safetensors").items():
        name, _, kind = key.rpartition("/")
        # AdamW counts its steps on the CPU.
        value = value if kind == "step" else value.to(parameters[name].device)
        optimizer.state.setdefault(parameters[name], {})[kind] = value


def checkpoints_in(out: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = out / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _CHECKPOINT.match(path.name) and (path / "state.json").is_file())


def read_state(checkpoint: Path, config: TrainingConfig, data: str, accelerator: Accelerator) -> tuple[RunState, dict]:
    """State of a checkpoint that belongs to this configuration and data.

    Raises:
        CheckpointError: it does not, naming the keys that differ.
    """
    record = json.loads((checkpoint / "state.json").read_text())
    ours, theirs = _comparable(config_record(config)), _comparable(record["config"])
    different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    different += ["the items of the sources"] if record["data"] != data and "sources" not in different else []
    if accelerator.mixed_precision != record["mixed_precision"]:
        different.append("mixed_precision")
    if different:
        changes = ", ".join(
            f"{key} ({theirs.get(key)!r} there, {ours.get(key)!r} now)" if key in ours.keys() & theirs.keys() else key
            for key in different
        )
        raise CheckpointError(
            f"{checkpoint} belongs to another run, it differs in {changes}; set it back, choose another --out, or "
            "start over with --fresh (to train further from a finished model, set init_from in a new run)"
        )
    if record["world_size"] != accelerator.num_processes:
        logger.warning(
            "the checkpoint was written by %d processes, now there are %d: the run goes on at step %d with the same "
            "batches, %d samples a process instead of %d, but with other masks, so not bit by bit",
            record["world_size"], accelerator.num_processes, record["step"] + 1,
            config.batch_size // accelerator.num_processes, config.batch_size // record["world_size"],
        )  # fmt: skip
    return RunState(record["step"], record["loss_sum"], record["loss_count"]), record


def config_record(config: TrainingConfig) -> dict:
    """A configuration as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _comparable(config: dict) -> dict:
    sources = [{key: value for key, value in source.items() if key != "path"} for source in config["sources"]]
    return {key: value for key, value in (config | {"sources": sources}).items() if key not in FREE_KEYS}


class RunFiles:
    """What the main process writes beside the checkpoints: log.csv and skipped.csv."""

    def __init__(self, out: Path, step: int):
        self.log, self.skipped_file = out / "log.csv", out / "skipped.csv"
        rows, self.skipped = _read_csv(self.log), dict(_read_csv(self.skipped_file)[1:])
        # Steps after the checkpoint are done again.
        rows = [row for row in rows[1:] if len(row) == len(_LOG_COLUMNS) and int(row[0]) <= step]
        _write_csv(self.log, [_LOG_COLUMNS, *rows])

    def add_row(self, row: Sequence) -> None:
        with open(self.log, "a", newline="") as handle:
            csv.writer(handle).writerow(row)

    def add_skipped(self, bad: Sequence[tuple[str, str]]) -> None:
        new = {id: reason for id, reason in bad if id not in self.skipped}
        for id, reason in new.items():
            logger.warning("skipped %s: %s", id, reason)
        if new:
            self.skipped |= new
            _write_csv(self.skipped_file, [("id", "reason"), *self.skipped.items()])


def _read_csv(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with open(path, newline="") as handle:
        return list(csv.reader(handle))


def _write_csv(path: Path, rows: Sequence[Sequence]) -> None:
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    os.replace(partial, path)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step in progress can be finished; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def handle(number: int, frame) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_signals_to_parent(worker: int) -> None:
    # Ctrl-C and launchers signal whole process groups; the loaders must outlive that until the step is done.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
    """Mean embedding (hidden_size,) of samples, few of them in memory at a time."""
    embedder = Embedder(model.croplem, processor, device=model.device)
    total, count = 0.0, 0
    while part := list(itertools.islice(samples, 16)):
        total = total + embedder.encode(part, centre=False).astype(np.float64).sum(axis=0)
        count += len(part)
    return torch.as_tensor(total / count, dtype=torch.float32)


def train(config: TrainingConfig, *, resume: bool | None = None) -> str:
    """Run a configuration in this process, which may be one of several that a launcher started.

    Writes OUT/checkpoints/step-XXXXXXXX, OUT/log.csv, OUT/pictures and OUT/skipped.csv, and at the end OUT/model:
    encoder, decoder and processor, with the encoder's `embedding_centre` set.

    Args:
        config: the run.
        resume: go on from the newest checkpoint in `config.out`, or False to delete what is there and start over; None
            goes on if there is a checkpoint.

    Returns:
        "finished", "interrupted" or "time limit".

    Raises:
        DataError: data or configuration cannot be used, or more than half of the items that were tried.
        CheckpointError: the checkpoint belongs to another configuration or other data, or there is none.
        CropLEMError: the loss is not finite, naming step and items.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # A batch without one sensor leaves that sensor's parameters without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    _check_processes(accelerator, config)
    rank, ranks, is_main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    device = accelerator.device
    out, accumulation = Path(config.out), config.gradient_accumulation_steps

    sources, plan, data = open_data(config)
    if is_main:
        _prepare_folder(out, fresh=resume is False)
    accelerator.wait_for_everyone()
    checkpoint = next(reversed(checkpoints_in(out)), None)
    if checkpoint is None and resume:
        raise CheckpointError(f"{out / 'checkpoints'}: no checkpoint to resume from; leave --resume out to start")
    state, record = (RunState(), {}) if checkpoint is None else read_state(checkpoint, config, data, accelerator)
    model, processor = build_model(config, checkpoint)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    plain = accelerator.unwrap_model(model)
    if checkpoint is not None:
        load_optimizer(checkpoint, plain, optimizer)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(record["scaler"])
    logger.info(
        "%s processes: %d (%s, precision: %s), %d items, %d batches of %d an epoch, %.4g epochs; step %d of %d",
        "start:" if checkpoint is None else f"resume from {checkpoint}:", ranks, device.type,
        accelerator.mixed_precision, plan.items, plan.batches_per_epoch, config.batch_size,
        config.steps * accumulation / plan.batches_per_epoch, state.step, config.steps,
    )  # fmt: skip

    batches = TrainingBatches(
        sources, plan, processor, patch_sizes=plain.config.train_patch_sizes, max_tokens=config.max_tokens,
        augmentation=config.augmentation, seed=config.seed, rank=rank, ranks=ranks,
    )  # fmt: skip
    # The sampler is the list of batches to come: worker w of W reads the first of them, w, w + W, ...
    loader = iter(torch.utils.data.DataLoader(
        batches, batch_size=None, sampler=range(state.step * accumulation, config.steps * accumulation),
        num_workers=config.num_workers, worker_init_fn=_leave_signals_to_parent, pin_memory=device.type == "cuda",
    ))  # fmt: skip

    def save() -> None:
        if is_main:
            position = state.step * accumulation
            content = dataclasses.asdict(state) | {
                "epoch": position // plan.batches_per_epoch, "next_batch": position % plan.batches_per_epoch,
                "seed": config.seed, "world_size": ranks, "mixed_precision": accelerator.mixed_precision, "data": data,
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "config": config_record(config),
            }  # fmt: skip
            folder = out / "checkpoints" / f"step-{state.step:08d}"
            save_checkpoint(folder, plain, processor, optimizer, content)
            for old in checkpoints_in(out)[: -config.keep_checkpoints]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def draw() -> None:
        if is_main:
            window = (plain.config.patch_size, config.max_tokens)
            samples = list(read_some(sources, plan, PICTURE_SAMPLES, window))
            results = reconstruct(plain, processor, samples, seed=config.seed)
            path = out / "pictures" / f"step-{state.step:08d}.png"
            reconstruction_sheet(
                results, [sample["id"] for sample in samples], processor, path, title=f"step {state.step}"
            )

    files = RunFiles(out, state.step) if is_main else None
    result, bad, tried, waited, steps_timed = "finished", 0, 0, 0.0, 0
    begin = mark = time.monotonic()
    with catch_signals() as caught:
        while state.step < config.steps and result == "finished":
            rate = learning_rate_at(state.step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for number in range(state.step * accumulation, (state.step + 1) * accumulation):
                tick = time.monotonic()
                batch = next(loader)
                waited += time.monotonic() - tick

                # What one process knows, all must know, or the others wait for it for ever.
                late = (time.monotonic() - begin) / 60 > (config.time_limit_minutes or math.inf)
                news = [batch["inputs"] is None, len(batch["bad"]), batch["tried"], bool(caught), late]
                failed, new_bad, new_tried, stop, late = accelerator.reduce(
                    torch.tensor(news, dtype=torch.float32, device=device), "sum"
                ).tolist()
                result = "interrupted" if stop else "time limit" if late else result
                bad, tried = bad + int(new_bad), tried + int(new_tried)
                if new_bad:
                    reasons = gather_object(batch["bad"])
                    if is_main:
                        files.add_skipped(reasons)
                if failed or (tried >= FEWEST_TRIED and 2 * bad > tried):
                    first = f"; the last: {reasons[-1][1]}" if new_bad else ""
                    raise DataError(
                        f"step {state.step + 1}: {bad} of {tried} items that were tried cannot be used{first}"
                    )

                inputs = {key: value.to(device, non_blocking=True) for key, value in batch["inputs"].items()}
                seed = mask_seed(config.seed, number, rank)
                torch.manual_seed(seed)  # of dropout, where the model has it
                with accelerator.accumulate(model):
                    generator = torch.Generator(device).manual_seed(seed)
                    loss = model(**inputs, patch_size=batch["patch_size"], generator=generator).loss
                    mean = accelerator.reduce(loss.detach().float(), "mean").item()
                    if not math.isfinite(mean):
                        _stop_at(f"the loss is {mean}", state.step, loss, batch["ids"])
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip_norm))
                        # In half precision the scaler skips such a step; here it would destroy the weights.
                        if not math.isfinite(norm) and accelerator.scaler is None:
                            _stop_at(f"the gradient's norm is {norm}", state.step, None, batch["ids"])
                    optimizer.step()
                    optimizer.zero_grad()
                state.loss_sum, state.loss_count = state.loss_sum + mean, state.loss_count + 1

            state.step += 1
            steps_timed += 1
            last = state.step == config.steps
            if is_main and (state.step % config.log_every == 0 or last):
                seconds = time.monotonic() - mark
                speed = steps_timed * accumulation * config.batch_size / seconds
                loss_mean, wait = state.loss_sum / state.loss_count, 100 * waited / seconds
                epoch = state.step * accumulation / plan.batches_per_epoch
                logger.info(
                    "step %d/%d  epoch %.2f  loss %.4f  lr %.2e  %.1f samples/s  data wait %.0f %%",
                    state.step, config.steps, epoch, loss_mean, rate, speed, wait,
                )  # fmt: skip
                files.add_row((state.step, f"{epoch:.4f}", loss_mean, rate, norm, f"{speed:.1f}", f"{wait:.1f}"))
            if state.step % config.log_every == 0:
                state.loss_sum, state.loss_count = 0.0, 0
                mark, waited, steps_timed = time.monotonic(), 0.0, 0
            if state.step % config.picture_every == 0 or last:
                draw()
            if state.step % config.checkpoint_every == 0 or last or result != "finished":
                save()
            result = "finished" if last else result

    if result != "finished":
        logger.info(
            "%s: stopped after step %d of %d, checkpoint in %s; the same command goes on from there (without --fresh)",
            result, state.step, config.steps, out / "checkpoints" / f"step-{state.step:08d}",
        )  # fmt: skip
    elif is_main:
        centre = mean_embedding(plain, processor, read_some(sources, plan, CENTRE_SAMPLES))
        plain.croplem.embedding_centre.copy_(centre)
        _save_model(out / "model", plain, processor)
        logger.info("finished: %d steps, model in %s", state.step, out / "model")
    accelerator.wait_for_everyone()
    return result


def _check_processes(accelerator: Accelerator, config: TrainingConfig) -> None:
    ranks = accelerator.num_processes
    if config.expected_processes not in (None, ranks):
        raise DataError(
            f"expected_processes is {config.expected_processes}, but the number of processes is {ranks}; on CPUs start "
            f"them with ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node {config.expected_processes} "
            "(`accelerate launch --cpu` starts only one), on GPUs with accelerate launch --num_processes "
            f"{config.expected_processes}"
        )
    if config.batch_size % ranks:
        raise DataError(f"batch_size {config.batch_size} must be divisible by the number of processes, {ranks}")
    if accelerator.distributed_type in (
        DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA,
    ):  # fmt: skip
        raise DataError(
            f"{accelerator.distributed_type.value} is not supported, checkpoints here hold whole models; run "
            "`accelerate config` and choose plain data parallelism"
        )


def _prepare_folder(out: Path, *, fresh: bool) -> None:
    """Make OUT, and remove what an earlier run left half-written, or all of it."""
    out.mkdir(parents=True, exist_ok=True)
    if fresh:
        for name in ("checkpoints", "pictures", "model"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("log.csv", "skipped.csv"):
            (out / name).unlink(missing_ok=True)
    for partial in (out / "checkpoints").glob("*.tmp"):
        shutil.rmtree(partial)


def _save_model(folder: Path, model: CropLEMForPreTraining, processor: CropLEMImageProcessor) -> None:
    partial, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def _stop_at(what: str, step: int, loss: torch.Tensor | None, ids: Sequence[str]) -> typing.NoReturn:
    """Called by all processes together: names the items of those whose loss is not finite (of all, if none is)."""
    guilty = loss is None or not bool(torch.isfinite(loss))
    names = gather_object(list(ids) if guilty else [])
    raise CropLEMError(
        f"step {step + 1}: {what}; the run stops, and its checkpoints are as they were before. Items of this batch: "
        f"{', '.join(names)}. Try a lower learning_rate or longer warmup_steps, or look at these items"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 1 after an error, 130 after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="pretrain", description="Pretrain the encoder as a masked autoencoder.",
        epilog="Start it with accelerate launch or torchrun. The same command again goes on where a run was stopped.",
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML or JSON, see TrainingConfig")
    parser.add_argument("--out", metavar="DIR", help="folder to write, instead of the configuration's")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="insist on a checkpoint in DIR to go on from")
    either.add_argument("--fresh", action="store_true", help="start over; deletes checkpoints and model in DIR")
    args = parser.parse_args(argv)
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("httpx", "accelerate", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        config = load_config(args.config, out=args.out)
        result = train(config, resume=True if args.resume else False if args.fresh else None)
        return 130 if result == "interrupted" else 0
    except CropLEMError as error:
        where = f" (process {rank})" if rank else ""
        print(f"pretrain{where}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pretrain: stopped at once; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


__all__ = ["SourceConfig", "TrainingConfig", "learning_rate_at", "load_config", "main", "train"]

if __name__ == "__main__":
    sys.exit(main())
