"""Exponential moving average of the weights of a pretraining run."""

import contextlib
from collections.abc import Iterator, Mapping

import torch

from .training_sharding import scatter_like


class WeightAverage:
    """Average of a model's parameters over optimiser steps, in float32 on the device of each.

    After step t, counted from 0, average = d average + (1 - d) weights with d = min(decay, (1 + t) / (10 + t)), so that
    a short run is not dominated by the weights it began with. It is a function of the weights and of t alone.

    Args:
        model: whose parameters are averaged; they are the first average.
        decay: 0 to 1.
        averages: those of a checkpoint by the names of the parameters, to go on from.
    """

    def __init__(self, model: torch.nn.Module, decay: float, averages: Mapping[str, torch.Tensor] | None = None):
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.averages = {
            name: (p.detach() if averages is None else scatter_like(averages[name], p)).to(torch.float32, copy=True)
            for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.averages.items():
            average.lerp_(self._parameters[name].float(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averages meanwhile, and its own weights again afterwards, bit by bit."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._copy(self.averages)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])


__all__ = ["WeightAverage"]
