"""The configuration of a pretraining run, read from YAML or JSON with every key and type checked."""

import contextlib
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError

from .augment import Augmentation
from .data import open_source
from .errors import DataError
from .model import CropLEMConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where samples come from.

    path: of a SEN12MS folder, a series table or a metadata.csv; relative to where the run is started.
    sensors, s2_level, s1_units, s2_units, s2_offset: see `open_source`.
    where: for each column the values that are wanted, such as {source: [presto_usa]} (`select_items`).
    """

    path: str
    sensors: list[str] | None = None
    s2_level: str | None = None
    s1_units: str = "auto"
    s2_units: str = "auto"
    s2_offset: int | str = "auto"
    where: dict = dataclasses.field(default_factory=dict)

    def open(self):
        """The source, all of it, as `open_source` gives it."""
        return open_source(
            self.path, sensors=self.sensors, s2_level=self.s2_level, s1_units=self.s1_units, s2_units=self.s2_units,
            s2_offset=self.s2_offset,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SourceConfig(DataConfig):
    """One source of samples. Beside what `DataConfig` has:

    weight: how often an epoch takes each item; 0.5 takes half of them.
    test_scenes: whether to train on the official test scenes of SEN12MS too.
    """

    weight: float = 1.0
    test_scenes: bool = False


@dataclasses.dataclass(frozen=True)
class ProbeConfig(DataConfig):
    """Labelled data on which embeddings are scored while they are learned; see `Probe`. No label reaches training.

    Beside what `DataConfig` has:

    label: column of the labels. group: column of what is left out as a whole, spatial blocks or regions.
    samples: at most so many, drawn once and alike in every run. patch_size: of the embeddings; None by their size.
    """

    label: str = dataclasses.field(kw_only=True)
    group: str = "block"
    samples: int = 2000
    patch_size: int | None = None

    def __post_init__(self):
        if self.samples < 10:
            raise DataError(f"probe.samples must be at least 10, found {self.samples}")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """A pretraining run.

    sources: list of `SourceConfig`.
    out: folder of checkpoints, log, pictures and, at the end, the model.
    model: settings of a fresh model (`CropLEMConfig`), and `preset: nano | small | base` for those that are not given;
    or init_from: name or folder of a checkpoint to start from. With a ViTMAE in init_from, whose blocks are copied,
    model may say what else the new model is to be.
    steps: optimiser steps of the whole run. batch_size: samples of a batch over all processes together, which a step
    takes gradient_accumulation_steps times.
    learning_rate: at the end of warmup_steps; then a cosine falls to min_learning_rate. clip_norm: of the gradient.
    mixed_precision: "no", "bf16" or "fp16"; None for what `accelerate launch` says.
    ema_decay: decay a step of an average of the weights (0.999), which then is the final model; None for no average.
    activation_checkpointing: keep only the inputs of the layers and compute the rest again: less memory, slower.
    compile: compile the layers with torch.compile, once for each number of tokens; results differ by rounding.
    crop_size: images are cropped to at most this many pixels; max_tokens: and so far that a sample has at most this
    many tokens at the patch size of the step, so that small patches see small windows.
    num_workers: loader processes a rank. expected_processes: refuse to run with another number of ranks.
    time_limit_minutes: stop after this time with a checkpoint.
    log_every, checkpoint_every, picture_every: in steps; the last step is always logged, saved and drawn.
    keep_checkpoints: how many of the newest checkpoints stay.
    probe: labelled data on which embeddings are scored every probe_every steps and at the end.
    keep_best: keep the model of the best score in OUT/best.
    trackers: what `Accelerator(log_with=...)` knows, such as [tensorboard]; None for TensorBoard where it is installed,
    [] for none. Events lie in OUT/trackers.
    augmentation: see `Augmentation`.
    latent_targets: Parquet table of `id` and `embedding`, vectors that the embeddings of these samples are to tell
    (`latent_size` in model is their length).
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
    ema_decay: float | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    crop_size: int | None = None
    max_tokens: int = 512
    num_workers: int = 2
    expected_processes: int | None = None
    time_limit_minutes: float | None = None
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    picture_every: int = 500
    probe: ProbeConfig | None = None
    probe_every: int = 500
    keep_best: bool = False
    trackers: list[str] | None = None
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    latent_targets: str | None = None

    def __post_init__(self):
        least = {"steps": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "max_tokens": 1, "log_every": 1,
                 "checkpoint_every": 1, "keep_checkpoints": 1, "picture_every": 1, "probe_every": 1,
                 "crop_size": 1, "seed": 0, "warmup_steps": 0, "num_workers": 0, "weight_decay": 0,
                 "min_learning_rate": 0}  # fmt: skip
        for key, low in least.items():
            if getattr(self, key) is not None and not low <= getattr(self, key) < float("inf"):
                raise DataError(f"{key} must be at least {low}, found {getattr(self, key)}")
        for key in ("learning_rate", "clip_norm", "time_limit_minutes"):
            if getattr(self, key) is not None and not 0 < getattr(self, key) < float("inf"):
                raise DataError(f"{key} must be above 0, found {getattr(self, key)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise DataError(f"betas must be two numbers of at least 0 and below 1, found {self.betas}")
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise DataError(f"mixed_precision must be 'no', 'bf16' or 'fp16', found {self.mixed_precision!r}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise DataError(f"ema_decay must lie between 0 and 1, found {self.ema_decay}")
        if self.keep_best and self.probe is None:
            raise DataError("keep_best needs a probe to tell what is best; set probe, or leave keep_best out")
        if not self.sources:
            raise DataError("sources is empty; name at least one, such as: - path: data/SEN12MS")


def load_config(path: str | os.PathLike, *, out: str | None = None) -> TrainingConfig:
    """Read a configuration from a YAML or JSON file.

    Args:
        path: the file.
        out: replaces its key `out`.

    Raises:
        DataError: no such file, not YAML, an unknown key, or a value of the wrong type or range.
    """
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
    check_keys(given, fields, where)
    for name, field in fields.items():
        if name not in given and field.default is field.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}{name} is missing" + ("; or pass --out DIR" if name == "out" else ""))
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(value, hints[name], f"{where}{name}") for name, value in given.items()})


def check_keys(given: Mapping, known: Sequence[str], where: str) -> None:
    """Refuse an unknown key and name the nearest known one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), 1, 0)
            raise DataError(f"unknown key {where}{key}; the nearest is {where}{near[0]}")


def checked_config(settings: Mapping) -> CropLEMConfig:
    """A model's configuration of these settings.

    Raises:
        DataError: an unknown key, or a value that is refused.
    """
    try:
        return CropLEMConfig(**settings)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise DataError(f"model: {' '.join(str(error).split())}") from error


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


__all__ = ["ProbeConfig", "SourceConfig", "TrainingConfig", "check_keys", "checked_config", "load_config"]
