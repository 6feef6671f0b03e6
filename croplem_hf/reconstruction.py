"""Pictures of what a masked autoencoder was shown, what was hidden from it, and what it made of that."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from .data.sample import Sample
from .embedding import default_patch_size
from .errors import DataError
from .model import CropLEMForPreTraining, CropLEMImageProcessor
from .pictures import CELL, GAP, GREY, _empty, _fit, _font, _shorten, radar, true_colour
from .sensors import SENSORS

_HEAD = 40
_INK, _FAINT, _PAPER = (25, 25, 25), (120, 120, 120), (255, 255, 255)
_PANELS = ("input", "what the model saw", "prediction")
# Standard deviations at which the colours of a series saturate.
_SERIES_RANGE = 2.0
# What is hidden, and the place of that kind in `CropLEMConfig.mask_weights`; samples take turns.
_KINDS = (("single patches and dates", 0), ("the same places of all dates and sensors", 3), ("a whole sensor first", 1))


def reconstruct(
    model: CropLEMForPreTraining,
    processor: CropLEMImageProcessor,
    samples: Sequence[Sample],
    *,
    patch_size: int | None = None,
    seed: int = 0,
) -> list[dict]:
    """Hide tokens of each sample as in pretraining and predict them; single tokens, places and sensors take turns.

    Bands of visible tokens are hidden only where a sample has few tokens.

    Args:
        model: it is put into evaluation mode for this, and back.
        processor: of the model.
        samples: see `data.sample`.
        patch_size: pixels a patch; None for the model's own, less for small images.
        seed: of the masks.

    Returns:
        For each sample "hidden", what was hidden in words, and {sensor: {"input", "seen", "predicted"}}, float32
        (T, C, H, W), standardised; a sensor that is absent is left out. NaN where there is no measurement, and in
        "seen" where it was hidden. "predicted" holds the prediction where something was hidden, else the input.

    Raises:
        DataError: a sample cannot be prepared.
    """
    training, kept = model.training, (model.config.band_mask_prob, model.config.mask_weights)
    device = next(model.parameters()).device
    results = []
    model.eval()
    # Bands hidden here and there would grey a whole picture, of which three bands are shown.
    model.config.band_mask_prob = 0.0
    try:
        for number, sample in enumerate(samples):
            try:
                inputs = processor(sample).to(device)
            except ValueError as error:
                raise DataError(str(error)) from error
            present = [s for s in SENSORS if f"{s}_values" in inputs]
            p = patch_size or min(
                default_patch_size(*inputs[f"{present[0]}_values"].shape[-2:]), model.config.patch_size
            )
            kind, place = _KINDS[number % len(_KINDS)] if len(present) > 1 else _KINDS[number % 2]
            model.config.mask_weights = [float(k == place) for k in range(4)]
            generator = torch.Generator(device).manual_seed(seed + number)
            with torch.no_grad():
                output = model(**inputs, patch_size=p, generator=generator)
            results.append({"hidden": kind} | {s: _parts(s, inputs, output) for s in present})
    finally:
        model.config.band_mask_prob, model.config.mask_weights = kept
        model.train(training)
    return results


def _parts(sensor: str, inputs: dict, output) -> dict[str, np.ndarray]:
    values = inputs[f"{sensor}_values"][0]
    measured = inputs[f"{sensor}_valid"][0][:, None].expand_as(values)
    if sensor == "s2":
        measured = measured & inputs["s2_bands"][0][..., None, None]
    hidden = output[f"{sensor}_target"][0]
    predicted = torch.where(hidden, output[f"{sensor}_reconstruction"][0].float(), values)
    parts = {"input": values, "seen": values.masked_fill(hidden, torch.nan), "predicted": predicted}
    parts = {name: part.masked_fill(~measured, torch.nan) for name, part in parts.items()}
    return {name: part.cpu().numpy() for name, part in parts.items()}


def reconstruction_sheet(
    results: Sequence[dict],
    captions: Sequence[str],
    processor: CropLEMImageProcessor,
    path: str | os.PathLike,
    *,
    title: str = "",
) -> None:
    """Draw results of `reconstruct` as a PNG, a row a sample: input, what was seen, prediction, of optics and of radar.

    Images are in true colour (B04, B03, B02) and as VV, VH, VV - VH, of the date that is hidden least, each row of
    three with one stretch; grey is hidden or not measured. Series of one pixel are drawn as bands (rows) by dates
    (columns), from blue over white, the mean, to red at two standard deviations.

    Args:
        results: of `reconstruct`.
        captions: one a sample.
        processor: of the model, for the units.
        path: file to write; folders are made.
        title: above everything.
    """
    width = 6 * (CELL + GAP) + 4 * GAP
    height = CELL + 32
    sheet = Image.new("RGB", (width, _HEAD + GAP + len(results) * height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 4), title, fill=_INK, font=_font(13))
    lefts = {"s2": GAP, "s1": 3 * (CELL + GAP) + 4 * GAP}
    for sensor, name in (("s2", "optics"), ("s1", "radar")):
        for n, panel in enumerate(_PANELS):
            draw.text((lefts[sensor] + n * (CELL + GAP), 24), f"{name}: {panel}", fill=_FAINT, font=_font(12))
    for row, (result, caption) in enumerate(zip(results, captions, strict=True)):
        top = _HEAD + GAP + row * height
        for sensor, left in lefts.items():
            panels = _images(sensor, result[sensor], processor) if sensor in result else [None] * 3
            for n, pixels in enumerate(panels):
                panel = _empty("absent", CELL) if pixels is None else _fit(pixels, CELL)
                sheet.paste(panel, (left + n * (CELL + GAP), top))
        text = f"{caption}   hidden: {result['hidden']}"
        draw.text((GAP, top + CELL + 3), _shorten(text, width - 2 * GAP, _font(12)), fill=_INK, font=_font(12))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    sheet.save(partial, format="PNG")
    os.replace(partial, path)


def _images(sensor: str, parts: dict[str, np.ndarray], processor: CropLEMImageProcessor) -> list[np.ndarray]:
    """The three panels, uint8 (H, W, 3)."""
    panels = [parts["input"], parts["seen"], parts["predicted"]]
    if parts["input"].shape[2:] == (1, 1):
        return [_heatmap(x[:, :, 0, 0].T) for x in panels]
    mean, std = (np.array(getattr(processor, f"{sensor}_{key}"), np.float32)[:, None, None] for key in ("mean", "std"))
    date = int(np.isfinite(parts["seen"]).sum(axis=(1, 2, 3)).argmax())
    # Side by side in one image, so that all three share one stretch.
    strip = np.concatenate([x[date] * std + mean for x in panels], axis=-1)
    shown = [3, 2, 1] if sensor == "s2" else [0, 1]
    sample = {
        sensor: strip[None],
        f"{sensor}_valid": np.isfinite(strip[None, shown]).all(axis=1),
        f"{sensor}_bands": np.isfinite(strip[None]).any(axis=(2, 3)),
    }
    drawn = true_colour(sample) if sensor == "s2" else radar(sample)
    return np.split(drawn, 3, axis=1) if drawn is not None else [None] * 3


def _heatmap(values: np.ndarray) -> np.ndarray:
    """(bands, dates) -> uint8 (CELL, CELL, 3)."""
    strength = np.clip(np.nan_to_num(values) / _SERIES_RANGE, -1, 1)[..., None]
    red, white, blue = np.array([[178, 24, 43], [255, 255, 255], [33, 102, 172]])
    pixels = white + np.abs(strength) * (np.where(strength > 0, red, blue) - white)
    pixels = np.where(np.isfinite(values)[..., None], pixels, GREY).round().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.NEAREST))


__all__ = ["reconstruct", "reconstruction_sheet"]
