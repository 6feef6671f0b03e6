"""Weights that lie scattered over the processes (FSDP): gathered to be kept and shown, scattered again to go on."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds but its share of the weights."""
    return accelerator.distributed_type == DistributedType.FSDP


def gather(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors by name, detached; all processes call it together, and those that do not keep them get none.

    What was scattered comes in the memory of the CPU: all states of an optimiser are more than a GPU may hold.
    """
    out = {}
    for name, tensor in tensors.items():
        scattered = isinstance(tensor, DTensor)
        whole = tensor.detach().full_tensor() if scattered else tensor.detach()
        if keep:
            out[name] = whole.cpu() if scattered else whole
    return out


def scatter_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of a parameter, and scattered as it is; all processes call it together."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


__all__ = ["gather", "is_sharded", "scatter_like"]
