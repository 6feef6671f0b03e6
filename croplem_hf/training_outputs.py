"""What a pretraining run shows of its model while it goes: pictures, the probe's score, and models that are kept."""

import contextlib
import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from .data.plan import BatchPlan
from .model import CropLEMForPreTraining, CropLEMImageProcessor
from .reconstruction import reconstruct, reconstruction_sheet
from .training_config import TrainingConfig
from .training_ema import WeightAverage
from .training_files import best_score, config_record, save_model
from .training_probe import Probe
from .training_setup import mean_embedding, read_some
from .training_sharding import gather, is_sharded

logger = logging.getLogger(__name__)

CENTRE_SAMPLES = 1024
"""Samples over which the mean embedding is taken for a model that is kept."""
PICTURE_SAMPLES = 6


class WholeModel:
    """The model in training with all of its weights, for the main process to show and to save.

    That is the model itself, but with FSDP a copy, which `refresh` brings up to date.

    Args:
        model: before `Accelerator.prepare`.
        accelerator: the processes.
    """

    def __init__(self, model: CropLEMForPreTraining, accelerator: Accelerator):
        self.is_main, self.sharded = accelerator.is_main_process, is_sharded(accelerator)
        self.model = copy.deepcopy(model).to(accelerator.device) if self.sharded and self.is_main else model
        self.average = self._plain = self._scattered = None

    def follow(self, plain: CropLEMForPreTraining, average: WeightAverage | None) -> None:
        """After `prepare`: the model in training, and the average of its weights, if there is one; as `refresh`."""
        self._plain, self._scattered = plain, average
        if not self.sharded:
            self.model, self.average = plain, average
        elif self.is_main and average is not None:
            self.average = WeightAverage(self.model, average.decay)
        # A run that was finished is saved again without a step.
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take in the weights as they are now; all processes call it together."""
        if not self.sharded:
            return
        weights = gather(dict(self._plain.named_parameters()), keep=self.is_main)
        averages = {} if self._scattered is None else gather(self._scattered.averages, keep=self.is_main)
        if self.is_main:
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        if self.average is not None:
            self.average.averages = averages


class Outputs:
    """Of the main process. The model in training is afterwards what it was before, bit by bit.

    Args:
        config: of the run.
        model, processor: in training.
        average: of the weights; where there is one, all that is shown and kept is of the averaged weights.
        sources, plan: of the run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: CropLEMForPreTraining,
        processor: CropLEMImageProcessor,
        average: WeightAverage | None,
        sources: Sequence,
        plan: BatchPlan,
    ):
        self.config, self.model, self.processor, self.average = config, model, processor, average
        self.sources, self.plan, self.out = sources, plan, Path(config.out)
        self.probe = None if config.probe is None else Probe(config.probe)

    def draw(self, step: int) -> None:
        """OUT/pictures/step-XXXXXXXX.png."""
        window = (self.model.config.patch_size, self.config.max_tokens)
        samples = list(read_some(self.sources, self.plan, PICTURE_SAMPLES, window))
        with self._averaged():
            results = reconstruct(self.model, self.processor, samples, seed=self.config.seed)
        path = self.out / "pictures" / f"step-{step:08d}.png"
        reconstruction_sheet(results, [sample["id"] for sample in samples], self.processor, path, title=f"step {step}")

    def score(self, step: int) -> float:
        """Score of the embeddings by the probe; the best model so far is kept, where that is wanted."""
        with self._averaged():
            value = self.probe.score(self.model.croplem, self.processor)
        logger.info("step %d: probe, %s %.4f", step, self.probe.metric, value)
        settings = config_record(self.config)["probe"]
        if self.config.keep_best and value > best_score(self.out, settings):
            record = {"step": step, "metric": self.probe.metric, "value": value, "probe": settings}
            self.save("best", {"probe.json": record})
        return value

    def save(self, name: str, records: dict[str, dict]) -> None:
        """OUT/`name`: model and processor with the mean embedding of the data, and records by the name of the file."""
        centre = self.model.croplem.embedding_centre
        before = centre.clone()
        with self._averaged():
            centre.copy_(mean_embedding(self.model, self.processor, read_some(self.sources, self.plan, CENTRE_SAMPLES)))
            save_model(self.out / name, self.model, self.processor, records)
        centre.copy_(before)
        self.model.train()

    def _averaged(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.average is None else self.average.applied()


__all__ = ["CENTRE_SAMPLES", "PICTURE_SAMPLES", "Outputs", "WholeModel"]
