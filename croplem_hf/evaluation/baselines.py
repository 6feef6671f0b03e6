"""What embeddings have to beat, from the imagery itself: statistics of bands, and an encoder that learned nothing."""

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..embedding import Embedder
from ..errors import DataError
from ..model import CropLEMModel
from ..sensors import S2_BANDS

RED, NEAR_INFRARED = S2_BANDS.index("B04"), S2_BANDS.index("B08")


def band_statistics(sample: dict) -> np.ndarray:
    """Mean, standard deviation, minimum and maximum over valid dates and pixels of VV, VH, 13 bands and NDVI.

    Args:
        sample: of a reader (`croplem_hf.data.sample`).

    Returns:
        float32 (64,); 0 for what the sample does not hold. dB / 25, reflectance 0..1.
    """
    rows = []
    for sensor, width in (("s1", 2), ("s2", 13)):
        if sample.get(sensor) is None:
            rows.append(np.full((width + (sensor == "s2"), 1), np.nan))
            continue
        values = np.asarray(sample[sensor], np.float64)
        valid = np.broadcast_to(sample[f"{sensor}_valid"][:, None], values.shape)
        if sensor == "s2":
            valid = valid & np.asarray(sample["s2_bands"])[:, :, None, None]
        values = np.where(valid, values / (25 if sensor == "s1" else 1e4), np.nan)
        values = values.transpose(1, 0, 2, 3).reshape(width, -1)
        if sensor == "s2":
            red, infrared = values[RED], values[NEAR_INFRARED]
            values = np.concatenate([values, ((infrared - red) / (infrared + red + 1e-6))[None]])
        rows.append(values)
    out = [np.zeros(4) if np.isnan(v).all() else _four(v[~np.isnan(v)]) for part in rows for v in part]
    return np.stack(out, axis=1).reshape(-1).astype(np.float32)


def random_encoder(embedder: Embedder, seed: int = 0) -> Embedder:
    """The same encoder and processor with fresh weights: what its form alone is worth."""
    config = copy.deepcopy(embedder.model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CropLEMModel(config)
    return Embedder(model, embedder.processor, name="random weights", device=embedder.device)


def imagery_baselines(
    source: Sequence[dict], ids: Sequence[str], embedder: Embedder, settings: dict
) -> dict[str, np.ndarray]:
    """Both baselines for some items of a source.

    Args:
        source: a reader with `ids` (`open_source`).
        ids: n ids, all of them in the source.
        embedder: the encoder whose form the random one has.
        settings: `sensors` and `patch_size` of `Embedder.encode`.

    Returns:
        `band statistics` float32 (n, 64) and `random weights` float32 (n, D).

    Raises:
        DataError: an id that the source lacks.
    """
    place = {name: number for number, name in enumerate(source.ids)}
    missing = [name for name in ids if name not in place]
    if missing:
        raise DataError(f"{len(missing)} of {len(ids)} labelled ids are not in the imagery, such as {missing[0]!r}")
    statistics = np.empty((len(ids), 64), np.float32)

    def samples() -> Iterable[dict]:
        for row, name in enumerate(ids):
            sample = source[place[name]]
            statistics[row] = band_statistics(sample)
            yield sample

    vectors = random_encoder(embedder).encode(samples(), **settings)
    return {"band statistics": statistics, "random weights": vectors}


def _four(values: np.ndarray) -> np.ndarray:
    return np.array([values.mean(), values.std(), values.min(), values.max()])


__all__ = ["band_statistics", "imagery_baselines", "random_encoder"]
