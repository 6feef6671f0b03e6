"""What a pretraining run keeps on disk: checkpoints to go on from, models, the log, the items it skipped.

A process may be killed at any moment. Folders and tables are written aside, brought to the disk and then renamed, so
that what has its name is whole; folders that go are renamed before they are emptied.
"""

import contextlib
import csv
import dataclasses
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .errors import CheckpointError
from .model import CropLEMForPreTraining, CropLEMImageProcessor
from .training_config import TrainingConfig
from .training_sharding import is_sharded, scatter_like

logger = logging.getLogger(__name__)

# May change when a run is resumed: they do not touch what is computed, or are compared by themselves. Data may move:
# its ids and shapes are compared.
FREE_KEYS = (
    "out", "time_limit_minutes", "expected_processes", "num_workers", "log_every", "checkpoint_every",
    "mixed_precision", "keep_checkpoints", "picture_every", "probe", "probe_every", "keep_best", "trackers",
    "activation_checkpointing",
)  # fmt: skip
LOG_COLUMNS = (
    "step", "epoch", "loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait_percent", "probe",
)  # fmt: skip
_CHECKPOINT = re.compile(r"^step-(\d{8})$")
# What a run writes into OUT, besides checkpoints.
_FOLDERS, _FILES = ("pictures", "model", "best", "trackers"), ("log.csv", "skipped.csv")


@dataclasses.dataclass
class RunState:
    """Where a run stands: optimiser steps done, the losses since the last line of the log, and the time it took."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """OUT belongs to this process meanwhile. The lock goes with the process, however it ends.

    Raises:
        CheckpointError: another run writes into OUT, such as one whose launcher was killed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a+") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            handle.seek(0)
            raise CheckpointError(
                f"{out}: another run writes here (process {handle.read().strip() or 'unknown'}); wait for it, stop it, "
                "or choose another --out"
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s); see that no two runs write into it", out, error)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def tidy_folder(out: Path) -> None:
    """Make OUT, and mend or remove what an earlier run left half-written."""
    out.mkdir(parents=True, exist_ok=True)
    steps = {path.with_suffix("") for path in (out / "checkpoints").glob("*.*") if _CHECKPOINT.match(path.stem)}
    for path in (*(out / name for name in _FOLDERS), *steps):
        old = path.with_name(path.name + ".old")
        if old.exists() and not path.exists():
            # Killed between the two renamings of `replace_folder`.
            os.replace(old, path)
        for left in (old, path.with_name(path.name + ".tmp")):
            shutil.rmtree(left, ignore_errors=True)
    for name in _FILES:
        (out / (name + ".tmp")).unlink(missing_ok=True)


def clear_run(out: Path, *, fresh: bool) -> None:
    """Remove what an earlier run left in OUT; without `fresh`, of one that has no checkpoint and did not finish.

    Raises:
        CheckpointError: it finished, and `fresh` was not asked for.
    """
    if not fresh and (out / "model").exists():
        raise CheckpointError(f"{out}: holds a model but no checkpoint; choose another --out, or delete it by --fresh")
    for name in ("checkpoints", *_FOLDERS):
        shutil.rmtree(out / name, ignore_errors=True)
    for path in (*(out / name for name in _FILES), *out.glob("bad_batch-*")):
        path.unlink(missing_ok=True)


def save_checkpoint(
    folder: Path,
    model: CropLEMForPreTraining,
    processor: CropLEMImageProcessor,
    optimizer: dict[str, torch.Tensor],
    record: dict,
    averages: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model, processor, optimiser, averaged weights if there are, and `state.json`; all of it or nothing.

    All tensors are whole; `optimizer` holds those of `optimizer_tensors`.
    """
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    save_file({key: value.contiguous() for key, value in optimizer.items()}, partial / "optimizer.safetensors")
    if averages is not None:
        save_file(averages, partial / "ema.safetensors")
    (partial / "state.json").write_text(json.dumps(record, indent=1))
    replace_folder(partial, folder)


def optimizer_tensors(model: CropLEMForPreTraining, optimizer) -> dict[str, torch.Tensor]:
    """State of an optimiser by PARAMETER/KIND, in the order of the parameters; scattered where they are."""
    states = {name: optimizer.state.get(p, {}) for name, p in model.named_parameters()}
    return {f"{name}/{kind}": value for name, state in states.items() for kind, value in state.items()}


def load_optimizer(checkpoint: Path, model: CropLEMForPreTraining, optimizer) -> None:
    """Give each parameter the state that `save_checkpoint` stored under its name."""
    parameters = dict(model.named_parameters())
    try:
        tensors = load_file(checkpoint / "optimizer.safetensors")
    except SafetensorError as error:
        raise CheckpointError(
            f"{checkpoint}: optimizer.safetensors is damaged ({error}); remove this folder to go on from one before"
        ) from error
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        # AdamW counts its steps on the CPU.
        value = value if kind == "step" else scatter_like(value, parameters[name])
        optimizer.state.setdefault(parameters[name], {})[kind] = value


def load_averages(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Averaged weights that `save_checkpoint` stored."""
    return load_file(checkpoint / "ema.safetensors")


def checkpoints_in(out: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = out / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _CHECKPOINT.match(path.name) and (path / "state.json").is_file())


def rotate(out: Path, keep: int) -> None:
    """Remove all but the newest checkpoints."""
    for old in checkpoints_in(out)[:-keep]:
        # Under another name first: a checkpoint is whole or none.
        going = old.with_name(old.name + ".tmp")
        os.replace(old, going)
        shutil.rmtree(going)


def read_state(checkpoint: Path, config: TrainingConfig, data: str, accelerator: Accelerator) -> tuple[RunState, dict]:
    """State of a checkpoint that belongs to this configuration and data.

    Raises:
        CheckpointError: it does not, naming the keys that differ.
    """
    try:
        record = json.loads((checkpoint / "state.json").read_text())
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: state.json is damaged; remove it to go on from one before") from error
    # What an older checkpoint does not tell had its default.
    defaults = config_record(TrainingConfig(sources=config.sources, out=config.out))
    ours, theirs = _comparable(config_record(config)), _comparable(defaults | record["config"])
    different = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if record["data"] != data and "sources" not in different:
        different.append("the items of the sources, or latent_targets")
    if accelerator.mixed_precision != record["mixed_precision"]:
        different.append(f"precision ({record['mixed_precision']} there, {accelerator.mixed_precision} now)")
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
    sharded = record.get("sharded", False)
    if sharded != is_sharded(accelerator):
        logger.warning(
            "the checkpoint was written %s FSDP, now it is the other way: the run goes on, but not bit by bit",
            "with" if sharded else "without",
        )  # fmt: skip
    state = RunState(record["step"], record["loss_sum"], record["loss_count"], record.get("seconds", 0.0))
    return state, record


def config_record(config: TrainingConfig) -> dict:
    """A configuration as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _comparable(config: dict) -> dict:
    sources = [{key: value for key, value in source.items() if key != "path"} for source in config["sources"]]
    return {key: value for key, value in (config | {"sources": sources}).items() if key not in FREE_KEYS}


def save_model(
    folder: Path, model: CropLEMForPreTraining, processor: CropLEMImageProcessor, records: dict[str, dict]
) -> None:
    """Write model, processor and records, as JSON by the names of their files; a model that is there is replaced."""
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    for name, record in records.items():
        (partial / name).write_text(json.dumps(record, indent=1))
    replace_folder(partial, folder)


def best_score(out: Path, probe: dict) -> float:
    """Score of OUT/best under this probe, minus infinity where there is none.

    It may be of a step after the checkpoint; that step comes again with the same score.
    """
    try:
        record = json.loads((out / "best" / "probe.json").read_text())
    except FileNotFoundError:
        return float("-inf")
    if record["probe"] != probe:
        logger.warning("%s was chosen by another probe and will be replaced", out / "best")
        return float("-inf")
    return record["value"]


def replace_folder(partial: Path, folder: Path) -> None:
    """Bring a folder to the disk and give it its name; what had the name is removed."""
    for path in (*partial.iterdir(), partial):
        _sync(path)
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(partial, folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunFiles:
    """What the main process writes beside the checkpoints: log.csv and skipped.csv."""

    def __init__(self, out: Path, step: int):
        self.log, self.skipped_file = out / "log.csv", out / "skipped.csv"
        rows, self.skipped = _read_csv(self.log), dict(_read_csv(self.skipped_file)[1:])
        header = rows[0] if rows else []
        # Steps after the checkpoint are done again; a line that a kill has cut is one of them.
        rows = [dict(zip(header, row, strict=True)) for row in rows[1:] if len(row) == len(header)]
        rows = [[row.get(name, "") for name in LOG_COLUMNS] for row in rows if int(row["step"]) <= step]
        _write_csv(self.log, [LOG_COLUMNS, *rows])

    def add_row(self, step: int, row: dict) -> None:
        with open(self.log, "a", newline="") as handle:
            csv.writer(handle).writerow([step, *(row.get(name, "") for name in LOG_COLUMNS[1:])])
            handle.flush()
            os.fsync(handle.fileno())

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
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)


__all__ = [
    "LOG_COLUMNS", "RunFiles", "RunState", "best_score", "checkpoints_in", "config_record", "load_averages",
    "load_optimizer", "locked", "clear_run", "tidy_folder", "optimizer_tensors", "read_state", "rotate",
    "save_checkpoint", "save_model",
]  # fmt: skip
