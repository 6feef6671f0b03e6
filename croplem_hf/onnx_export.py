"""The encoder as an ONNX file for fixed sensors, dates and image size, held to the model when it is written.

    export_onnx("croplem/mae-s1s2", "encoder.onnx", sensors=["s2"], size=64, patch_size=8, dates=12)

Its inputs are those of `CropLEMImageProcessor`, its output `embedding` is what `Embedder.encode` gives. The file's
metadata hold bands, statistics and settings. The batch may be of any size; a sample with nothing valid gives NaN.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import __version__
from .data.files import write_aside
from .embedding import Embedder, weights_hash
from .errors import CheckpointError, DataError
from .model import CropLEMModel
from .model.tokens_croplem import SensorInput, pool_sensors
from .sensors import SENSORS

TOLERANCE = 1e-4
"""Largest difference of a number of an embedding between the file and the model, on samples with gaps."""
OPSET = 18


class Encoder(nn.Module):
    """`CropLEMModel` without branches that depend on values: absent tokens are masked, not left out."""

    def __init__(self, model: CropLEMModel, sensors: Sequence[str], patch_size: int, centre: bool):
        super().__init__()
        self.model, self.patch_size, self.centre = model, patch_size, centre
        self.sensors, self.names = list(sensors), input_names(sensors)

    def sensor_input(self, sensor: str, given: dict[str, torch.Tensor]) -> SensorInput:
        """As `CropLEMModel.sensor_inputs`, whose checks would fix the size of the batch."""
        values, days, valid = (given[f"{sensor}_{key}"] for key in ("values", "days", "valid"))
        if sensor == "s2":
            bands, level = given["s2_bands"], given["s2_level"]
        else:
            bands, level = torch.ones_like(values[..., 0, 0], dtype=torch.bool), None
        valid = valid & bands.any(dim=-1)[..., None, None]
        pad = (0, -values.shape[-1] % self.patch_size, 0, -values.shape[-2] % self.patch_size)
        values, valid = nn.functional.pad(values, pad), nn.functional.pad(valid, pad)
        return SensorInput(values, days, valid, bands, level)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        gsd, model, p = given["gsd"], self.model, self.patch_size
        sensors = {sensor: self.sensor_input(sensor, given) for sensor in self.sensors}
        tokens = torch.cat([model.embeddings(name, x, gsd, p) for name, x in sensors.items()], dim=1)
        present = torch.cat([x.present(p) for x in sensors.values()], dim=1)
        for layer in model.layers:
            tokens = layer(tokens, present[:, None, None])
        tokens = model.layernorm(tokens)
        index = model.token_index(sensors, p)
        pooled = pool_sensors(tokens, present, index[None, :, 0], model.config.pooling == "mean_std")
        pooled = pooled - model.embedding_centre if self.centre else pooled
        return torch.where(present.any(dim=1, keepdim=True), pooled, torch.nan)


def input_names(sensors: Sequence[str]) -> list[str]:
    """Inputs of the file, in their order."""
    names = []
    for sensor in sensors:
        names += [f"{sensor}_{key}" for key in ("values", "days", "valid")]
        names += ["s2_bands", "s2_level"] if sensor == "s2" else []
    return [*names, "gsd"]


def export_onnx(
    model: str | os.PathLike | Embedder,
    out: str | os.PathLike,
    *,
    sensors: Sequence[str] = SENSORS,
    size: int = 64,
    patch_size: int = 8,
    dates: int | Sequence[int] = 1,
    centre: bool = True,
) -> float:
    """Write an encoder as ONNX -> the largest difference to the model that was found.

    Args:
        model: a checkpoint's name or folder, or an Embedder.
        out: file to write, whole or not at all.
        sensors: which of "s1" and "s2" the file takes.
        size: pixels along a side.
        patch_size: pixels a patch, 1 to 16.
        dates: of each sensor, one number for both or one for each of `sensors`.
        centre: subtract the mean embedding of the pretraining data, as `Embedder.encode` does.

    Raises:
        DataError: an option that cannot be, or the packages of the extra `onnx` are missing.
        CheckpointError: the file gives other embeddings than the model, by more than `TOLERANCE`.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  what torch's exporter needs
    except ImportError as error:
        raise DataError(f"export to ONNX needs {error.name}; pip install 'croplem-hf[onnx]'") from error
    sensors = [name for name in SENSORS if name in sensors]
    dates = [dates] * len(sensors) if isinstance(dates, int) else list(dates)
    embedder = model if isinstance(model, Embedder) else Embedder.from_pretrained(model, device="cpu")
    largest = 2 * embedder.model.config.patch_size
    if not sensors or len(dates) != len(sensors) or min(dates) < 1 or size < 1 or not 1 <= patch_size <= largest:
        raise DataError(
            f"needs one of {SENSORS} at least, a number of dates for each, a size of at least 1 and a patch size of "
            f"1 to {largest}; found {sensors}, {dates}, {size}, {patch_size}"
        )
    encoder = Encoder(embedder.model, sensors, patch_size, centre).eval()
    names = input_names(sensors)
    example = draw_inputs(embedder.model.config, sensors, dates, size, batch=2, seed=0)
    batch = torch.export.Dim("batch")
    out = Path(out)
    with write_aside(out) as aside:
        with _quiet():
            program = torch.onnx.export(
                encoder, tuple(example[name] for name in names), input_names=names, output_names=["embedding"],
                dynamic_shapes={"inputs": tuple({0: batch} for _ in names)}, opset_version=OPSET, dynamo=True,
                verbose=False,
            )  # fmt: skip
        proto = program.model_proto
        processor = {key: getattr(embedder.processor, key) for key in _CONSTANTS}
        about = {
            "model": embedder.name, "weights_hash": weights_hash(embedder.model), "sensors": sensors, "dates": dates,
            "size": size, "patch_size": patch_size, "centred": centre, "processor": processor,
            "croplem_version": __version__, "tolerance": TOLERANCE,
        }  # fmt: skip
        for key, value in about.items():
            proto.metadata_props.add(key=f"croplem.{key}", value=value if isinstance(value, str) else json.dumps(value))
        onnx.checker.check_model(proto)
        aside.write_bytes(proto.SerializeToString())
        session = onnxruntime.InferenceSession(aside, providers=["CPUExecutionProvider"])
        worst = 0.0
        for count, seed in ((1, 1), (3, 2)):
            inputs = draw_inputs(embedder.model.config, sensors, dates, size, batch=count, seed=seed)
            with torch.inference_mode():
                expected = embedder.model(**inputs, patch_size=patch_size).pooler_output
                expected = expected - embedder.model.embedding_centre if centre else expected
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
            worst = max(worst, float(np.abs(found - expected.numpy()).max()))
        if not worst <= TOLERANCE:
            raise CheckpointError(f"{out}: differs from the model by {worst:.2g}, more than {TOLERANCE:g}; not written")
    return worst


_CONSTANTS = ("s1_bands", "s2_bands", "s2_levels", "s1_mean", "s1_std", "s2_mean", "s2_std", "max_deviation")


def draw_inputs(
    config, sensors: Sequence[str], dates: Sequence[int], size: int, *, batch: int, seed: int
) -> dict[str, torch.Tensor]:
    """Random inputs with gaps: a fifth of the pixels, the lower right corner, and of optics a tenth of the bands."""
    rng = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=rng)

    out = {}
    for sensor, count in zip(sensors, dates, strict=True):
        bands = len(config.s1_bands if sensor == "s1" else config.s2_bands)
        valid = rand(batch, count, size, size) > 0.2
        valid[:, :, size // 2 + 1 :, size // 2 + 1 :] = False
        valid[:, :, 0, 0] = True
        out[f"{sensor}_days"] = (rand(batch, count) * 365).long().sort(dim=1).values
        out[f"{sensor}_valid"] = valid
        measured = valid[:, :, None].expand(-1, -1, bands, -1, -1)
        if sensor == "s2":
            out["s2_bands"] = rand(batch, count, bands) > 0.1
            out["s2_bands"][:, :, 0] = True
            out["s2_level"] = (rand(batch) * len(config.s2_levels)).long()
            measured = measured & out["s2_bands"][..., None, None]
        values = torch.randn(batch, count, bands, size, size, generator=rng)
        out[f"{sensor}_values"] = values.masked_fill(~measured, 0)
    return out | {"gsd": torch.full((batch,), 10.0)}


@contextlib.contextmanager
def _quiet():
    """torch's exporter tells of its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


__all__ = ["TOLERANCE", "export_onnx", "input_names"]
