"""CropLEM: a masked autoencoder over tokens of (sensor, date, patch), derived from ViTMAE."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEForPreTrainingOutput,
    ViTMAELayer,
    ViTMAEModelOutput,
    ViTMAEPreTrainedModel,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_croplem import CropLEMConfig, ResolvedFromPretrained
from .tokens_croplem import (
    SENSORS,
    SensorInput,
    contrast,
    draw_hidden_bands,
    draw_noise,
    from_patches,
    gather_tokens,
    normalised_differences,
    pool_sensors,
    positions,
    resample_matrices,
    select_visible,
    smooth_radar,
    summarise,
    to_patches,
)


@dataclass
class CropLEMModelOutput(ViTMAEModelOutput):
    r"""
    Output of [`CropLEMModel`]; N is the number of tokens, padded to the longest sample of the batch.

    pooler_output (`torch.FloatTensor` of shape `(batch_size, config.embedding_size)`):
        Embedding: mean of the tokens within each sensor, or mean and standard deviation (`config.pooling`), then their
        mean over the sensors that are there.
    token_mask (`torch.BoolTensor` of shape `(batch_size, N)`):
        True for tokens, False for padding.
    token_index (`torch.LongTensor` of shape `(batch_size, N, 4)`):
        Sensor (0 radar, 1 optics), date, row and column of each token.
    mask, ids_restore:
        Only where tokens were masked, in the order of all tokens (sensor, date, row, column): 1 is hidden.
    """

    pooler_output: torch.FloatTensor | None = None
    token_mask: torch.BoolTensor | None = None
    token_index: torch.LongTensor | None = None


@dataclass
class CropLEMForPreTrainingOutput(ViTMAEForPreTrainingOutput):
    r"""
    Output of [`CropLEMForPreTraining`]. `logits` is None: each sensor has its own reconstruction.

    s1_reconstruction (`torch.FloatTensor` of shape `(batch_size, T1, 2, height, width)`, *optional*):
        Predicted radar, standardised.
    s2_reconstruction (`torch.FloatTensor` of shape `(batch_size, T2, 13, height, width)`, *optional*):
        Predicted optics, standardised.
    s1_target, s2_target (`torch.BoolTensor` of the same shapes, *optional*):
        Which values count in the loss: hidden and valid.
    mask (`torch.Tensor` of shape `(batch_size, number of all tokens)`):
        1 for hidden tokens.
    reconstruction_loss, summary_loss, latent_loss, agreement_loss (`torch.FloatTensor` of shape `()`, *optional*):
        The terms of `loss`, before their weights.
    """

    s1_reconstruction: torch.FloatTensor | None = None
    s2_reconstruction: torch.FloatTensor | None = None
    s1_target: torch.BoolTensor | None = None
    s2_target: torch.BoolTensor | None = None
    reconstruction_loss: torch.FloatTensor | None = None
    summary_loss: torch.FloatTensor | None = None
    latent_loss: torch.FloatTensor | None = None
    agreement_loss: torch.FloatTensor | None = None


class CropLEMEmbeddings(nn.Module):
    """Tokens of all sensors: projection of the patch, what is missing in it, level, sensor and position."""

    def __init__(self, config: CropLEMConfig):
        super().__init__()
        self.config = config
        dim, base = config.hidden_size, config.patch_size
        self.pairs = [tuple(config.s2_bands.index(band) for band in pair) for pair in config.s2_indices]
        channels = {"s1": len(config.s1_bands), "s2": len(config.s2_bands) + len(self.pairs)}
        # The bias of each projection is also what tells the sensors apart.
        self.projection = nn.ModuleDict({s: nn.Conv2d(c, dim, base, stride=base) for s, c in channels.items()})
        # Weighted by the share of the patch that has no measurement in a band: 1 for a band that does not exist.
        self.missing = nn.ParameterDict({s: nn.Parameter(torch.zeros(c, dim)) for s, c in channels.items()})
        self.level = nn.Parameter(torch.zeros(len(config.s2_levels), dim))

    def initialize_weights(self):
        for sensor, projection in self.projection.items():
            init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
            init.zeros_(projection.bias)
            init.normal_(self.missing[sensor], std=self.config.initializer_range)
        init.normal_(self.level, std=self.config.initializer_range)

    def channels(self, sensor: str, x: SensorInput) -> tuple[torch.Tensor, torch.Tensor]:
        """-> bands and indices (B, T, C + K, H, W), 0 where nothing is to be seen; bool, where something is."""
        bands = x.bands if x.hidden is None else x.bands & ~x.hidden
        measured = x.valid[:, :, None] & bands[..., None, None]
        values = torch.where(measured, x.values, 0)
        if sensor == "s2" and self.pairs:
            mean, std = (values.new_tensor(v) for v in (self.config.s2_mean, self.config.s2_std))
            index, both = normalised_differences(values, measured, self.pairs, mean, std)
            values, measured = torch.cat([values, index], dim=2), torch.cat([measured, both], dim=2)
        return values, measured

    def forward(self, sensor: str, x: SensorInput, gsd: torch.Tensor, patch_size: int) -> torch.Tensor:
        """-> (B, tokens, hidden_size), ordered by date, row, column."""
        projection = self.projection[sensor]
        values, measured = self.channels(sensor, x)
        patches = to_patches(values.to(projection.weight.dtype), patch_size)
        weight = projection.weight.flatten(2)  # (D, C, base²)
        if patch_size != self.config.patch_size:
            resize = torch.as_tensor(resample_matrices(self.config.patch_size, patch_size)[1], device=weight.device)
            weight = weight @ resize.to(weight.dtype).T  # (D, C, patch_size²)
        tokens = patches.flatten(-2) @ weight.flatten(1).T + projection.bias  # (B, T, rows, cols, D)
        bands = x.bands if x.hidden is None else x.bands & ~x.hidden
        filled = to_patches(x.valid[:, :, None], patch_size).to(tokens.dtype).mean(dim=-1)  # (B, T, rows, cols, 1)
        seen = filled * bands[:, :, None, None].to(tokens.dtype)  # (B, T, rows, cols, C)
        if measured.shape[2] > bands.shape[2]:
            indices = to_patches(measured[:, :, bands.shape[2] :], patch_size).to(tokens.dtype).mean(dim=-1)
            seen = torch.cat([seen, indices], dim=-1)
        missing = 1 - seen  # (B, T, rows, cols, C + K)
        tokens = tokens + missing @ self.missing[sensor]
        if x.level is not None:
            tokens = tokens + self.level[x.level][:, None, None, None]
        where = positions(x.days, gsd, x.grid(patch_size), patch_size, tokens.shape[-1], self.config)
        return (tokens + where.to(tokens.dtype)).flatten(1, 3)


class CropLEMPreTrainedModel(ResolvedFromPretrained, ViTMAEPreTrainedModel):
    config: CropLEMConfig
    base_model_prefix = "croplem"
    main_input_name = "s2_values"
    _no_split_modules = ["CropLEMEmbeddings", "ViTMAELayer", "CropLEMDecoder"]
    _input_embed_layer = "embeddings"

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        # Never pickled weights, even where there are no others.
        return super().from_pretrained(*args, **{"use_safetensors": True} | kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (CropLEMEmbeddings, CropLEMDecoder)):
            module.initialize_weights()
        elif isinstance(module, CropLEMModel):
            init.zeros_(module.embedding_centre)


class CropLEMModel(CropLEMPreTrainedModel):
    """
    Encoder of Sentinel-1 and Sentinel-2: any sensor, any dates, any size, any patch size from 1 to 16.

    `embedding_centre` (config.embedding_size,) holds the mean embedding of the pretraining data, for centring.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^summary_head\.", r"^latent_head\."]

    def __init__(self, config: CropLEMConfig):
        super().__init__(config)
        self.embeddings = CropLEMEmbeddings(config)
        self.layers = nn.ModuleList([ViTMAELayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.register_buffer("embedding_centre", torch.zeros(config.embedding_size))
        self.post_init()

    def sensor_inputs(self, patch_size: int | None = None, **inputs) -> tuple[dict[str, SensorInput], int]:
        """Check the inputs of `forward` and pad them to whole patches -> ({sensor: input}, patch size)."""
        p = self.config.patch_size if patch_size is None else int(patch_size)
        if not 1 <= p <= 2 * self.config.patch_size:
            raise ValueError(f"patch_size must lie in 1..{2 * self.config.patch_size}, found {p}")
        out = {}
        for sensor in SENSORS:
            values, days, valid = (inputs.get(f"{sensor}_{key}") for key in ("values", "days", "valid"))
            if values is None:
                continue
            channels = len(self.config.s1_bands if sensor == "s1" else self.config.s2_bands)
            if values.ndim != 5 or values.shape[2] != channels:
                raise ValueError(f"{sensor}_values must be (B, T, {channels}, H, W), found {tuple(values.shape)}")
            b, t, c, h, w = values.shape
            if days is None or days.shape != (b, t):
                raise ValueError(f"{sensor}_days must be (B, T) = {(b, t)}")
            if valid is None:
                valid = torch.ones(b, t, h, w, dtype=torch.bool, device=values.device)
            if valid.shape != (b, t, h, w):
                raise ValueError(f"{sensor}_valid must be (B, T, H, W) = {(b, t, h, w)}, found {tuple(valid.shape)}")
            bands, level = torch.ones(b, t, c, dtype=torch.bool, device=values.device), None
            if sensor == "s2":
                level = inputs.get("s2_level")
                if level is None or level.shape != (b,):
                    raise ValueError(f"s2_level must be (B,) = {(b,)}, indices into config.s2_levels")
                bands = bands if inputs.get("s2_bands") is None else inputs["s2_bands"].bool()
                if bands.shape != (b, t, c):
                    raise ValueError(f"s2_bands must be (B, T, 13) = {(b, t, c)}, found {tuple(bands.shape)}")
            valid = valid.bool() & bands.any(dim=-1)[..., None, None]
            pad = (0, -w % p, 0, -h % p)
            if any(pad):  # else it would copy
                values, valid = nn.functional.pad(values, pad), nn.functional.pad(valid, pad)
            out[sensor] = SensorInput(values, days, valid, bands, level)
        if not out:
            raise ValueError("no sensor: pass s1_values or s2_values (with days, valid) from CropLEMImageProcessor")
        if len({(len(x.values), *x.values.shape[-2:]) for x in out.values()}) > 1:
            raise ValueError("s1_values and s2_values must agree in batch size, height and width")
        return out, p

    @staticmethod
    def token_index(sensors: dict[str, SensorInput], patch_size: int) -> torch.Tensor:
        """(all tokens, 4): sensor, date, row, column, in the order of the tokens."""
        parts = []
        for sensor, x in sensors.items():
            axes = [torch.arange(n, device=x.values.device) for n in (x.values.shape[1], *x.grid(patch_size))]
            index = torch.cartesian_prod(*axes).reshape(-1, 3)
            parts.append(torch.cat([torch.full_like(index[:, :1], SENSORS.index(sensor)), index], dim=1))
        return torch.cat(parts)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        s1_values: torch.Tensor | None = None,
        s1_days: torch.Tensor | None = None,
        s1_valid: torch.Tensor | None = None,
        s2_values: torch.Tensor | None = None,
        s2_days: torch.Tensor | None = None,
        s2_valid: torch.Tensor | None = None,
        s2_bands: torch.Tensor | None = None,
        s2_level: torch.Tensor | None = None,
        gsd: torch.Tensor | None = None,
        patch_size: int | None = None,
        noise: torch.Tensor | None = None,
        hidden_bands: dict[str, torch.Tensor] | None = None,
        **kwargs,
    ) -> CropLEMModelOutput:
        r"""
        All inputs but `patch_size`, `noise` and `hidden_bands` come from [`CropLEMImageProcessor`]; a sensor that is
        left out has no tokens.

        Args:
            s1_values (`torch.Tensor` of shape `(B, T1, 2, H, W)`, *optional*): radar, standardised.
            s1_days (`torch.Tensor` of shape `(B, T1)`): days since 1 January of the sample's first year.
            s1_valid (`torch.Tensor` of shape `(B, T1, H, W)`, *optional*): True where there is a measurement.
            s2_values (`torch.Tensor` of shape `(B, T2, 13, H, W)`, *optional*): optics, standardised.
            s2_days (`torch.Tensor` of shape `(B, T2)`), s2_valid (`torch.Tensor` of shape `(B, T2, H, W)`, *optional*).
            s2_bands (`torch.Tensor` of shape `(B, T2, 13)`, *optional*): True for bands that exist.
            s2_level (`torch.Tensor` of shape `(B,)`): index into `config.s2_levels`.
            gsd (`torch.Tensor` of shape `(B,)`, *optional*, defaults to 10): metres a pixel.
            patch_size (`int`, *optional*): pixels a patch, 1 to twice `config.patch_size`, which is the default.
            noise (`torch.Tensor` of shape `(B, all tokens)`, *optional*): hides the tokens with the highest scores, a
                share of `config.mask_ratio`. None, the default, hides nothing, in training mode too.
            hidden_bands (`dict[str, torch.Tensor]`, *optional*): for each sensor bool (B, T, C), bands to hide.
        """
        sensors, p = self.sensor_inputs(
            patch_size, s1_values=s1_values, s1_days=s1_days, s1_valid=s1_valid, s2_values=s2_values, s2_days=s2_days,
            s2_valid=s2_valid, s2_bands=s2_bands, s2_level=s2_level,
        )  # fmt: skip
        first = next(iter(sensors.values())).values
        gsd = torch.full((len(first),), 10.0, device=first.device) if gsd is None else gsd
        for sensor, hidden in (hidden_bands or {}).items():
            sensors[sensor].hidden = hidden
        tokens = torch.cat([self.embeddings(s, x, gsd, p) for s, x in sensors.items()], dim=1)
        present = torch.cat([x.present(p) for x in sensors.values()], dim=1)
        index = self.token_index(sensors, p).expand(len(tokens), -1, -1)

        mask = ids_restore = None
        token_mask, keep = present, None
        if noise is not None:
            keep, token_mask, mask = select_visible(noise, present, self.config.mask_ratio)
            ids_restore = keep.argsort(dim=1)
            keep = keep[:, : token_mask.shape[1]]
        elif not present.all():
            # What is absent has no token: gather those that are there, padded to the longest sample of the batch.
            counts = present.sum(dim=1)
            if not counts.all():
                empty = (counts == 0).nonzero().flatten().tolist()
                raise ValueError(f"samples {empty} of the batch hold nothing valid")
            keep = (~present).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(counts.max())]
            token_mask = present.gather(1, keep)
        if keep is not None:
            tokens, index = gather_tokens(tokens, keep), gather_tokens(index, keep)

        attention_mask = None
        if not token_mask.all():
            attention_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=tokens, attention_mask=token_mask
            )
        for layer in self.layers:
            tokens = layer(tokens, attention_mask, **kwargs)
        tokens = self.layernorm(tokens)
        return CropLEMModelOutput(
            last_hidden_state=tokens,
            pooler_output=pool_sensors(tokens, token_mask, index[..., 0], self.config.pooling == "mean_std"),
            token_mask=token_mask,
            token_index=index,
            mask=mask,
            ids_restore=ids_restore,
        )

    @staticmethod
    def dense_features(outputs: CropLEMModelOutput) -> torch.Tensor:
        """Features on the grid of patches: mean over dates within each sensor, then over sensors.

        Args:
            outputs: of `forward`, nothing masked.

        Returns:
            (B, rows, columns, hidden_size); NaN where a place has no token. Patches that lie only in padding are cut
            off where no sample of the batch has them.
        """
        tokens, token_mask, index = outputs.last_hidden_state, outputs.token_mask, outputs.token_index
        rows, cols = (int(index[..., k][token_mask].max()) + 1 for k in (2, 3))
        place = (index[..., 2] * cols + index[..., 3]).clamp(max=rows * cols - 1)
        total = count = 0
        for sensor in range(len(SENSORS)):
            weight = (token_mask & (index[..., 0] == sensor)).to(tokens.dtype)[..., None]
            sums = tokens.new_zeros(len(tokens), rows * cols, tokens.shape[-1] + 1)
            counted = torch.cat([tokens, torch.ones_like(weight)], dim=-1) * weight
            sums = sums.scatter_add(1, place[..., None].expand_as(counted), counted)
            there = (sums[..., -1:] > 0).to(tokens.dtype)
            total, count = total + sums[..., :-1] / sums[..., -1:].clamp(min=1), count + there
        return (total / count).unflatten(1, (rows, cols))


class CropLEMDecoder(nn.Module):
    """Predicts each sensor's pixels from the visible tokens; the base grid is resampled to the patch size."""

    def __init__(self, config: CropLEMConfig):
        super().__init__()
        decoder_config = deepcopy(config)
        decoder_config.hidden_size = config.decoder_hidden_size
        decoder_config.num_attention_heads = config.decoder_num_attention_heads
        decoder_config.intermediate_size = config.decoder_intermediate_size
        self.config = decoder_config
        dim = config.decoder_hidden_size
        self.decoder_embed = nn.Linear(config.hidden_size, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.sensor = nn.Parameter(torch.zeros(len(SENSORS), dim))
        # A hidden optical token must know which level it stands for.
        self.level = nn.Parameter(torch.zeros(len(config.s2_levels), dim))
        self.layers = nn.ModuleList([ViTMAELayer(decoder_config) for _ in range(config.decoder_num_hidden_layers)])
        self.layernorm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        channels = {"s1": len(config.s1_bands), "s2": len(config.s2_bands)}
        self.prediction = nn.ModuleDict({s: nn.Linear(dim, c * config.patch_size**2) for s, c in channels.items()})

    def initialize_weights(self):
        for parameter in (self.mask_token, self.sensor, self.level):
            init.normal_(parameter, std=self.config.initializer_range)

    def forward(
        self,
        encoded: CropLEMModelOutput,
        present: torch.Tensor,
        sensors: dict[str, SensorInput],
        gsd: torch.Tensor,
        patch_size: int,
    ) -> dict[str, torch.Tensor]:
        """-> {sensor: (B, T, C, H, W)}."""
        where = []
        for sensor, x in sensors.items():
            code = positions(x.days, gsd, x.grid(patch_size), patch_size, self.sensor.shape[-1], self.config)
            code = code.flatten(1, 3).to(self.sensor.dtype) + self.sensor[SENSORS.index(sensor)]
            where.append(code if x.level is None else code + self.level[x.level][:, None])
        where = torch.cat(where, dim=1)  # (B, N, dim)
        order = encoded.ids_restore.argsort(dim=1)
        order = order[:, : int(present.sum(dim=1).max())]
        there = present.gather(1, order)

        visible = self.decoder_embed(encoded.last_hidden_state)
        visible = torch.where(encoded.token_mask[..., None], visible, self.mask_token.to(visible.dtype))
        hidden = self.mask_token.to(visible.dtype).expand(len(visible), order.shape[1] - visible.shape[1], -1)
        tokens = torch.cat([visible, hidden], dim=1) + gather_tokens(where, order)
        attention_mask = None
        if not there.all():
            attention_mask = create_bidirectional_mask(config=self.config, inputs_embeds=tokens, attention_mask=there)
        for layer in self.layers:
            tokens = layer(tokens, attention_mask)
        tokens = self.layernorm(tokens)
        # Back to the order of all tokens; those of absent patches stay 0.
        tokens = torch.zeros_like(where, dtype=tokens.dtype).scatter(
            1, order[..., None].expand_as(tokens), tokens * there[..., None]
        )
        out, start = {}, 0
        resize = torch.as_tensor(resample_matrices(self.config.patch_size, patch_size)[0], device=tokens.device)
        for sensor, x in sensors.items():
            shape = (x.values.shape[1], *x.grid(patch_size))
            n = int(np.prod(shape))
            pixels = self.prediction[sensor](tokens[:, start : start + n])
            pixels = pixels.unflatten(1, shape).unflatten(-1, (-1, self.config.patch_size**2))
            if patch_size != self.config.patch_size:
                pixels = pixels @ resize.to(pixels.dtype).T
            out[sensor] = from_patches(pixels, patch_size)
            start += n
        return out


class CropLEMForPreTraining(CropLEMPreTrainedModel):
    """
    Masked autoencoder: hides tokens and bands of visible tokens, and predicts what was measured there.

    Further terms of the loss, by the weights of the configuration, are told from the embedding of the whole sample:
    a summary of its values, vectors from outside, and agreement of the two sensors.
    """

    def __init__(self, config: CropLEMConfig):
        super().__init__(config)
        self.croplem = CropLEMModel(config)
        self.decoder = CropLEMDecoder(config)
        # Linear, so that an embedding holds these things where a linear head finds them.
        if config.summary_weight:
            channels = len(config.s1_bands) + len(config.s2_bands) + len(config.s2_indices)
            self.summary_head = nn.Linear(config.embedding_size, 4 * channels)
        if config.latent_size:
            self.latent_head = nn.Linear(config.embedding_size, config.latent_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        s1_values: torch.Tensor | None = None,
        s1_days: torch.Tensor | None = None,
        s1_valid: torch.Tensor | None = None,
        s2_values: torch.Tensor | None = None,
        s2_days: torch.Tensor | None = None,
        s2_valid: torch.Tensor | None = None,
        s2_bands: torch.Tensor | None = None,
        s2_level: torch.Tensor | None = None,
        gsd: torch.Tensor | None = None,
        patch_size: int | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        latent_target: torch.Tensor | None = None,
        **kwargs,
    ) -> CropLEMForPreTrainingOutput:
        r"""
        Inputs as in [`CropLEMModel`].

        Args:
            noise (`torch.Tensor` of shape `(B, all tokens)`, *optional*): scores instead of drawn ones.
            generator (`torch.Generator`, *optional*): draws masks and hidden bands, on the device of the inputs.
            latent_target (`torch.Tensor` of shape `(B, config.latent_size)`, *optional*): vectors to be told from the
                embeddings; NaN for samples that have none.

        Returns:
            [`CropLEMForPreTrainingOutput`]: `reconstruction_loss` is the squared error of hidden, valid, standardised
            values, averaged within each sensor and then over the sensors that have any. At patch size 1 radar is
            compared with a mean of 3 x 3 pixels, or of three dates in a point series, not with raw speckle. `loss` is
            the sum of all terms that have a weight in the configuration.
        """
        inputs = {
            "s1_values": s1_values, "s1_days": s1_days, "s1_valid": s1_valid, "s2_values": s2_values,
            "s2_days": s2_days, "s2_valid": s2_valid, "s2_bands": s2_bands, "s2_level": s2_level,
        }  # fmt: skip
        sensors, p = self.croplem.sensor_inputs(patch_size, **inputs)
        first = next(iter(sensors.values())).values
        gsd = torch.full((len(first),), 10.0, device=first.device) if gsd is None else gsd
        present = torch.cat([x.present(p) for x in sensors.values()], dim=1)
        if noise is None:
            index = self.croplem.token_index(sensors, p)
            noise = draw_noise(index, len(first), list(self.config.mask_weights), generator)
        few = present.sum(dim=1) <= self.config.band_mask_tokens
        hidden = {s: draw_hidden_bands(x, few, self.config.band_mask_prob, generator) for s, x in sensors.items()}
        encoded = self.croplem(**inputs, gsd=gsd, patch_size=p, noise=noise, hidden_bands=hidden, **kwargs)
        predicted = self.decoder(encoded, present, sensors, gsd, p)

        out, losses, counts, start = {}, [], [], 0
        for sensor, x in sensors.items():
            b, t, c, h, w = x.values.shape
            rows, cols = x.grid(p)
            masked = encoded.mask[:, start : start + t * rows * cols].bool().reshape(b, t, rows, cols)
            masked = masked.repeat_interleave(p, dim=-2).repeat_interleave(p, dim=-1)  # (B, T, H, W)
            # Few passes over all values: this is what a step takes more than that of a ViTMAE.
            masked = (x.valid & masked)[:, :, None] & x.bands[..., None, None]
            target = torch.where(hidden[sensor][..., None, None], x.valid[:, :, None], masked)
            truth = smooth_radar(x) if sensor == "s1" and p == 1 else x.values
            told, count = predicted[sensor].float(), torch.count_nonzero(target)  # a sum would copy it to int64
            # What is no target has no error, being compared with itself.
            truth = torch.where(target, truth.float(), told.detach())
            losses.append(nn.functional.mse_loss(told, truth, reduction="sum") / count.clamp(min=1))
            counts.append(count > 0)
            height, width = inputs[f"{sensor}_values"].shape[-2:]
            out[f"{sensor}_reconstruction"] = predicted[sensor][..., :height, :width]
            out[f"{sensor}_target"] = target[..., :height, :width]
            start += t * rows * cols
        counts = torch.stack(counts).to(losses[0].dtype)
        out["reconstruction_loss"] = (torch.stack(losses) * counts).sum() / counts.sum().clamp(min=1)
        loss = self.config.reconstruction_weight * out["reconstruction_loss"]
        whole = inputs | {"gsd": gsd, "patch_size": p}
        if self.config.summary_weight or self.config.latent_size:
            # One more pass, with nothing hidden: what the embedding will be when it is used.
            embedding = self.croplem(**whole).pooler_output
        if self.config.summary_weight:
            out["summary_loss"] = self._summary_loss(embedding, sensors)
            loss = loss + self.config.summary_weight * out["summary_loss"]
        if self.config.latent_size:
            out["latent_loss"] = self._latent_loss(embedding, latent_target)
            loss = loss + self.config.latent_weight * out["latent_loss"]
        if self.config.agreement_weight:
            out["agreement_loss"] = self._agreement_loss(whole, sensors)
            loss = loss + self.config.agreement_weight * out["agreement_loss"]
        return CropLEMForPreTrainingOutput(
            loss=loss, mask=encoded.mask, ids_restore=encoded.ids_restore, hidden_states=encoded.hidden_states,
            attentions=encoded.attentions, **out,
        )  # fmt: skip

    def _summary_loss(self, embedding: torch.Tensor, sensors: dict[str, SensorInput]) -> torch.Tensor:
        """Mean smooth error of the summary of all channels that were measured."""
        found, known = [], []
        for sensor in SENSORS:
            if sensor in sensors:
                values, there = summarise(*self.croplem.embeddings.channels(sensor, sensors[sensor]))
            else:
                width = 4 * self.croplem.embeddings.projection[sensor].in_channels
                values = embedding.new_zeros(len(embedding), width)
                there = torch.zeros_like(values, dtype=torch.bool)
            found.append(values)
            known.append(there)
        known = torch.cat(known, dim=1)
        told = self.summary_head(embedding).float()
        error = nn.functional.smooth_l1_loss(told, torch.cat(found, dim=1).float(), beta=0.5, reduction="none")
        return (error * known).sum() / known.sum().clamp(min=1)

    def _latent_loss(self, embedding: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
        """Mean squared error of the vectors of those samples that have one; 0 for a batch of none."""
        told = self.latent_head(embedding).float()
        if target is None:
            return told.sum() * 0
        if target.shape != told.shape:
            raise ValueError(f"latent_target must be {tuple(told.shape)}, found {tuple(target.shape)}")
        known = target.isfinite()
        error = (told - target.masked_fill(~known, 0).float()) ** 2
        return (error * known).sum() / known.sum().clamp(min=1)

    def _agreement_loss(self, whole: dict, sensors: dict[str, SensorInput]) -> torch.Tensor:
        """InfoNCE between places seen by radar alone and by optics alone; 0 where fewer than two have both.

        Without such places one sample goes through all the same: each process runs as many passes in every step.
        """
        there = torch.stack([x.valid.flatten(1).any(dim=1) for x in sensors.values()])
        rows = there.all(dim=0).nonzero().flatten()
        pairs = len(sensors) == len(SENSORS) and len(rows) > 1
        embeddings = []
        for number in range(len(SENSORS)):
            if pairs:
                sensor, chosen = SENSORS[number], rows
            else:
                sensor = next(name for name, seen in zip(sensors, there, strict=True) if seen.any())
                chosen = there[list(sensors).index(sensor)].nonzero()[0]
            part = {
                key: value[chosen] if torch.is_tensor(value) else value
                for key, value in whole.items()
                if key in ("gsd", "patch_size") or key.startswith(sensor)
            }
            embeddings.append(self.croplem(**part).pooler_output)
        return contrast(*embeddings, self.config.agreement_temperature)


__all__ = [
    "CropLEMForPreTraining",
    "CropLEMForPreTrainingOutput",
    "CropLEMModel",
    "CropLEMModelOutput",
    "CropLEMPreTrainedModel",
]
