"""A batch whose loss or gradient is not finite, kept so that it can be looked at."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save_bad_batch(
    out: Path, inputs: Mapping[str, torch.Tensor], *, step: int, rank: int, part: int, ids: Sequence[str], **record
) -> Path:
    """Write the inputs of one process to OUT/bad_batch-step-XXXXXXXX-rank-N-part-P.safetensors, the rest to .json.

    Args:
        out: folder of the run.
        inputs: of the model.
        step: optimiser step, counted from 1, in which it came. rank: of the process. part: of the step, from 0.
        ids: of the samples.
        record: what else is told, as JSON holds it.

    Returns:
        The file of the inputs.
    """
    path = out / f"bad_batch-step-{step:08d}-rank-{rank}-part-{part}.safetensors"
    save_file({key: value.detach().cpu().contiguous() for key, value in inputs.items()}, path)
    record = {"step": step, "rank": rank, "part": part, "ids": list(ids)} | record
    path.with_suffix(".json").write_text(json.dumps(record, indent=1))
    return path


def load_bad_batch(path: str | Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Inputs of the model and the record of a batch that stopped a run.

        inputs, record = load_bad_batch("runs/first/bad_batch-step-00000004-rank-0-part-0.safetensors")
        model = CropLEMForPreTraining.from_pretrained("runs/first/checkpoints/step-00000003")
        generator = torch.Generator().manual_seed(record["mask_seed"])
        model(**inputs, patch_size=record["patch_size"], generator=generator).loss

    gives the loss that was not finite, where the checkpoint is that of the step before.
    """
    path = Path(path)
    return load_file(path), json.loads(path.with_suffix(".json").read_text())


__all__ = ["load_bad_batch", "save_bad_batch"]
