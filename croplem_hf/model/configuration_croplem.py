"""CropLEM model configuration."""

from huggingface_hub.dataclasses import strict
from transformers import ViTMAEConfig

REMOTE_CODE = {
    "AutoConfig": "configuration_croplem.CropLEMConfig",
    "AutoModel": "modeling_croplem.CropLEMModel",
    "AutoModelForPreTraining": "modeling_croplem.CropLEMForPreTraining",
    "AutoImageProcessor": "image_processing_croplem.CropLEMImageProcessor",
}


PRESETS = {
    "nano": {},
    "small": {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536,
        "decoder_hidden_size": 256, "decoder_num_hidden_layers": 4, "decoder_num_attention_heads": 8,
        "decoder_intermediate_size": 1024,
    },
    "base": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
    },
}  # fmt: skip
"""Sizes by name: nano is the packaged one (128 wide, 4 layers), small is ViT-S, base is ViT-B with ViTMAE's decoder."""


class ResolvedFromPretrained:
    """`from_pretrained` that asks `resolve`, where one is set, which local folder a name stands for.

    The library sets it, so that configuration, model and processor find one name in one place. Without the library
    (these files on the Hub) names mean what they always mean.
    """

    resolve = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        name = pretrained_model_name_or_path
        if ResolvedFromPretrained.resolve is not None:
            name, kwargs = ResolvedFromPretrained.resolve(name, kwargs)
        return super().from_pretrained(name, *args, **kwargs)


@strict
class CropLEMConfig(ResolvedFromPretrained, ViTMAEConfig):
    r"""
    Configuration of [`CropLEMModel`] and [`CropLEMForPreTraining`], derived from [`ViTMAEConfig`]; the defaults have
    the size of the checkpoint `croplem/mae-s1s2`, which adds indices, spread and further terms of the loss.
    `image_size` and `num_channels` of the parent are not used: any image size works, and the channels follow from the
    bands.

    Args:
        patch_size (`int`, *optional*, defaults to 8):
            Side in pixels of the base grid of projection and decoder. Any patch size from 1 to twice this works at run
            time with the same weights (FlexiViT, arXiv 2212.08013).
        train_patch_sizes (`list[int]`, *optional*, defaults to `[1, 2, 4, 8, 16]`):
            Patch sizes to draw from in pretraining.
        s1_bands (`list[str]`, *optional*), s2_bands (`list[str]`, *optional*), s2_levels (`list[str]`, *optional*):
            Names and order of the radar channels, the optical bands and the optical processing levels.
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of the tokens that pretraining hides.
        mask_weights (`list[float]`, *optional*, defaults to `[0.4, 0.2, 0.2, 0.2]`):
            How often each kind of mask is drawn: single tokens, a whole sensor first, whole dates, and the same places
            through all dates and sensors.
        band_mask_prob (`float`, *optional*, defaults to 0.5):
            Share of samples in which bands of the visible tokens are hidden too, and are targets.
        band_mask_tokens (`int`, *optional*, defaults to 8):
            Samples of at most this many tokens always have bands hidden: masking tokens alone teaches them little.
        s2_indices (`list[list[str]]`, *optional*, defaults to `[]`):
            Pairs of optical bands (a, b) whose normalised difference (a - b) / (a + b) is a further input channel, such
            as B08 and B04 for NDVI; missing where one of the two is missing or hidden.
        s2_mean (`list[float]`, *optional*), s2_std (`list[float]`, *optional*):
            Statistics by which the processor standardised the optical bands; indices need the digital numbers back.
            SSL4EO-S12, L1C.
        pooling (`str`, *optional*, defaults to `"mean"`):
            What the embedding holds of the tokens of each sensor: their mean, or with `"mean_std"` their mean and
            their standard deviation, which doubles its length.
        reconstruction_weight (`float`, *optional*, defaults to 1), summary_weight (`float`, *optional*, defaults to 0):
            Weight in the pretraining loss of what the masks hide, and of the mean, deviation, least and largest value
            of each channel and index over a whole sample, told from its embedding with nothing hidden.
        latent_size (`int`, *optional*, defaults to 0), latent_weight (`float`, *optional*, defaults to 1):
            Length of `latent_target`, vectors from outside that pretraining tells from the embedding; 0 for none.
        agreement_weight (`float`, *optional*, defaults to 0), agreement_temperature (`float`, *optional*, defaults to
            0.1): Weight of InfoNCE (arXiv 1807.03748) between the embeddings of a place by one sensor and the other.
        min_wavelength_m (`float`, *optional*, defaults to 40), max_wavelength_m (`float`, *optional*, defaults to 20480):
            Range of wavelengths, in metres on the ground, of the sin-cos position of a patch.

    `norm_pix_loss` is refused: a patch of one pixel has no variance, and radar would lose its level.
    """  # noqa: E501

    model_type = "croplem"

    @classmethod
    def preset(cls, name: str, **changes) -> "CropLEMConfig":
        """Configuration of a size by name, of `PRESETS`: nano, small or base; `changes` go before.

        All have the base grid of 8 x 8 pixels and run at any patch size; at 256 pixels base is a ViT-B/16 at
        `patch_size=16`.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, found {name!r}")
        return cls(**PRESETS[name] | changes)

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 512
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 256
    patch_size: int | list[int] | tuple[int, int] = 8
    num_channels: int = 15
    decoder_hidden_size: int = 128
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int = 4
    decoder_intermediate_size: int = 512
    train_patch_sizes: list[int] | tuple[int, ...] = (1, 2, 4, 8, 16)
    s1_bands: list[str] | tuple[str, ...] = ("VV", "VH")
    s2_bands: list[str] | tuple[str, ...] = (
        "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
    )  # fmt: skip
    s2_levels: list[str] | tuple[str, ...] = ("L1C", "L2A")
    s2_mean: list[float] | tuple[float, ...] = (
        1605.58, 1390.78, 1314.87, 1363.52, 1549.44, 2091.75, 2371.72, 2299.90, 2560.30, 830.07, 22.10, 2177.07,
        1524.07,
    )  # fmt: skip
    s2_std: list[float] | tuple[float, ...] = (
        786.79, 850.35, 875.06, 1138.85, 1122.18, 1161.59, 1274.39, 1248.43, 1345.53, 577.32, 51.15, 1336.10,
        1136.54,
    )  # fmt: skip
    s2_indices: list[list[str]] | tuple[list[str], ...] = ()
    pooling: str = "mean"
    mask_weights: list[float] | tuple[float, ...] = (0.4, 0.2, 0.2, 0.2)
    band_mask_prob: float = 0.5
    band_mask_tokens: int = 8
    reconstruction_weight: float = 1.0
    summary_weight: float = 0.0
    latent_size: int = 0
    latent_weight: float = 1.0
    agreement_weight: float = 0.0
    agreement_temperature: float = 0.1
    min_wavelength_m: float = 40.0
    max_wavelength_m: float = 20480.0

    def __post_init__(self, **kwargs):
        # A checkpoint of either class names every class, so that AutoModel finds the encoder of a pretraining model.
        kwargs["auto_map"] = REMOTE_CODE | (kwargs.get("auto_map") or {})
        super().__post_init__(**kwargs)
        if self.norm_pix_loss:
            raise ValueError("norm_pix_loss=True is not supported: at patch size 1 it destroys radar; leave it False")
        if not isinstance(self.patch_size, int):
            raise ValueError(f"patch_size must be one integer, found {self.patch_size!r}")
        for name in ("hidden_size", "decoder_hidden_size"):
            if getattr(self, name) % 16:
                raise ValueError(f"{name} must be divisible by 16 (position layout), found {getattr(self, name)}")
        bad = [p for p in self.train_patch_sizes if not 1 <= p <= 2 * self.patch_size]
        if bad:
            raise ValueError(f"train_patch_sizes must lie in 1..{2 * self.patch_size}, found {bad}")
        if len(self.mask_weights) != 4 or min(self.mask_weights) < 0 or sum(self.mask_weights) <= 0:
            raise ValueError(f"mask_weights must be four weights of at least 0, found {self.mask_weights}")
        if len(self.s2_mean) != len(self.s2_bands) or len(self.s2_std) != len(self.s2_bands):
            raise ValueError(f"s2_mean and s2_std must hold {len(self.s2_bands)} numbers, one for each of s2_bands")
        self.s2_indices = [list(pair) for pair in self.s2_indices]
        for pair in self.s2_indices:
            if len(pair) != 2 or len(set(pair) & set(self.s2_bands)) != 2:
                raise ValueError(f"s2_indices must hold pairs of two of s2_bands, found {pair}")
        if self.pooling not in ("mean", "mean_std"):
            raise ValueError(f"pooling must be 'mean' or 'mean_std', found {self.pooling!r}")
        for name in ("reconstruction_weight", "summary_weight", "latent_size", "latent_weight", "agreement_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, found {getattr(self, name)}")
        if self.agreement_temperature <= 0:
            raise ValueError(f"agreement_temperature must be above 0, found {self.agreement_temperature}")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie between 0 and 1, found {self.mask_ratio}")

    @property
    def embedding_size(self) -> int:
        """Length of an embedding, `pooler_output`."""
        return self.hidden_size * (2 if self.pooling == "mean_std" else 1)


__all__ = ["PRESETS", "CropLEMConfig", "ResolvedFromPretrained"]
