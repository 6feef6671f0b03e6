"""Start a CropLEM from a published ViTMAE, such as facebook/vit-mae-base: the blocks are the same, what goes in is not.
"""

import logging
from pathlib import Path

import torch
from transformers import PretrainedConfig, ViTMAEConfig, ViTMAEForPreTraining

from .errors import CheckpointError, DataError
from .model import CropLEMForPreTraining
from .training_config import checked_config

logger = logging.getLogger(__name__)

SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "qkv_bias",
)  # fmt: skip
DECODER_SIZES = (
    "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip


def is_vitmae(folder: str | Path) -> bool:
    """Whether a local folder holds a ViTMAE."""
    return PretrainedConfig.get_config_dict(str(folder))[0].get("model_type") == ViTMAEConfig.model_type


def from_vitmae(folder: str | Path, settings: dict) -> CropLEMForPreTraining:
    """A CropLEM whose blocks are those of a ViTMAE; what is copied and what stays as drawn goes to the log.

    The encoder's blocks and last norm are copied, and the decoder's with its first projection where its sizes are the
    same too. Projections of patches (other bands), predictions, mask token and positions (computed here) are not.

    Args:
        folder: local folder of the ViTMAE.
        settings: of `CropLEMConfig`; sizes that are not given are those of the ViTMAE.

    Raises:
        DataError: the encoder has another size than the settings say, or a setting is refused.
        CheckpointError: weights are missing.
    """
    theirs = ViTMAEConfig.from_pretrained(folder)
    sizes = {name: getattr(theirs, name) for name in (*SIZES, *DECODER_SIZES)}
    different = [name for name in SIZES if settings.get(name, sizes[name]) != sizes[name]]
    if different:
        found = ", ".join(f"{name} ({sizes[name]!r} there, {settings[name]!r} in model)" for name in different)
        raise DataError(f"init_from: {folder} is a ViTMAE with another {found}; leave it out of model")
    model = CropLEMForPreTraining(checked_config(sizes | settings))
    # The native class, since it knows the older names of the weights.
    native, report = ViTMAEForPreTraining.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    lost = [key for key in report["missing_keys"] if "position" not in key and "pos_embed" not in key]
    given = native.state_dict()
    wanted = {"vit.layers.": "croplem.layers.", "vit.layernorm.": "croplem.layernorm."}
    if all(getattr(model.config, name) == sizes[name] for name in DECODER_SIZES):
        wanted |= {
            "decoder.decoder_embed.": "decoder.decoder_embed.", "decoder.decoder_layers.": "decoder.layers.",
            "decoder.decoder_norm.": "decoder.layernorm.",
        }  # fmt: skip
    copied = {
        ours + key.removeprefix(prefix): value
        for key, value in given.items() for prefix, ours in wanted.items() if key.startswith(prefix)
    }  # fmt: skip
    lost = [key for key in lost if any(key.startswith(prefix) for prefix in wanted)]
    unknown = [key for key in copied if key not in model.state_dict()]
    if lost or unknown:
        raise CheckpointError(f"{folder}: weights are missing or unknown, such as {(lost + unknown)[0]}")
    model.load_state_dict(copied, strict=False)
    drawn = sorted({_short(key) for key in model.state_dict().keys() - copied.keys()})
    unused = sorted({_short(key) for key in given if not any(key.startswith(prefix) for prefix in wanted)})
    logger.info(
        "start from the ViTMAE %s: %d tensors copied (%s); drawn afresh: %s; not used: %s", folder, len(copied),
        ", ".join(prefix.rstrip(".") for prefix in wanted), ", ".join(drawn), ", ".join(unused),
    )  # fmt: skip
    return model


def _short(key: str) -> str:
    """Name of a weight, cut at the number of its layer: `decoder.layers.3.mlp.fc1.bias` -> `decoder.layers`."""
    parts = key.removesuffix(".weight").removesuffix(".bias").split(".")
    numbers = [n for n, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0]] if numbers else parts)


__all__ = ["from_vitmae", "is_vitmae"]
