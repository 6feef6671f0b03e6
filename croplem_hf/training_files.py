"""What a pretraining run keeps on disk: checkpoints to go on from, the log, the items it skipped, the model."""

import csv
import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from .errors import CheckpointError
from .model import CropLEMForPreTraining, CropLEMImageProcessor
from .training_config import TrainingConfig

logger = logging.getLogger(__name__)

# May change when a run is resumed: they do not touch what is computed. Data may move too, its content is compared.
FREE_KEYS = (
    "out", "time_limit_minutes", "expected_processes", "num_workers", "log_every", "checkpoint_every",
    "keep_checkpoints", "picture_every",
)  # fmt: skip
_LOG_COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "samples_per_second", "data_wait_percent")
_CHECKPOINT = re.compile(r"^step-(\d{8})$")


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


def prepare_folder(out: Path, *, fresh: bool) -> None:
    """Make OUT, and remove what an earlier run left half-written, or all of it."""
    out.mkdir(parents=True, exist_ok=True)
    if fresh:
        for name in ("checkpoints", "pictures", "model"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("log.csv", "skipped.csv"):
            (out / name).unlink(missing_ok=True)
    for partial in (out / "checkpoints").glob("*.tmp"):
        shutil.rmtree(partial)


def save_model(folder: Path, model: CropLEMForPreTraining, processor: CropLEMImageProcessor) -> None:
    """Write model and processor, whole or not at all; a model that is there is replaced."""
    partial, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    for path in (partial, old):
        shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


__all__ = [
    "RunFiles", "RunState", "checkpoints_in", "config_record", "load_optimizer", "prepare_folder", "read_state",
    "save_checkpoint", "save_model",
]  # fmt: skip
