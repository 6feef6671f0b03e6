"""The map of a head over a scene: pixels or windows are embedded as the head's training data were, then classified."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.windows import Window
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from . import __version__
from .data.folder import Scene
from .data.sample import make_sample
from .embedding import TOKENS_PER_BATCH, Embedder, default_patch_size
from .errors import DataError
from .heads import Head

logger = logging.getLogger(__name__)

NODATA = 255
TILE = 256
# What is read and standardised at once holds at most this many values (bands, dates, pixels), 64 MB of float32.
BLOCK_VALUES = 2**24
GSD_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class MapSettings:
    """How a head's embeddings were made: unit "series" or "patch", and the arguments of `Embedder.encode`.

    height, width: pixels of a window, 1 for series.
    """

    unit: str
    height: int
    width: int
    sensors: tuple[str, ...] | None
    patch_size: int | None
    centre: bool

    @property
    def encode(self) -> dict:
        return {"sensors": self.sensors, "patch_size": self.patch_size, "centre": self.centre}


def map_settings(scene: Scene, embedder: Embedder, head: Head) -> MapSettings:
    """Settings that reproduce the head's embeddings on a scene.

    Raises:
        CheckpointError: the embedder is not the one that the head was fitted on.
        DataError: fields or patches of several sizes cannot be reproduced; another pixel size than the head saw (more
            than 2 % off); none of its sensors in the scene; or the scene is smaller than a patch.
    """
    info, seen = head.info_, head.patch_
    unit, sensors, patch_size = info.get("unit"), info.get("sensors"), info.get("patch_size")
    height, width = (1, 1) if unit == "series" else (seen.get("height"), seen.get("width"))
    settings = MapSettings(
        unit,
        height,
        width,
        None if sensors is None else tuple(sensors),
        None if patch_size == "auto" else patch_size,
        bool(info.get("centred")),
    )
    head.check_settings(embedder.info(unit, **settings.encode))
    if unit not in ("series", "patch"):
        raise DataError(f"the head was fitted on embeddings of unit {unit!r}; a map needs 'series' or 'patch'")
    if height is None or width is None:
        raise DataError("the head was fitted on patches of several or unknown sizes; fit it on patches of one size")
    if height > scene.height or width > scene.width:
        raise DataError(
            f"{scene.id}: the scene of {scene.height} x {scene.width} pixels is smaller than the head's patches of "
            f"{height} x {width}"
        )
    gsd = seen.get("gsd")
    if gsd is not None and abs(scene.gsd / gsd - 1) > GSD_TOLERANCE:
        raise DataError(
            f"{scene.id}: pixels of {scene.gsd:.4g} m, but the head was fitted on {gsd:.4g} m; resample the scene"
        )
    there = {sensor for sensor, dates in scene.dates.items() if dates}
    if sensors is not None and not there & set(sensors):
        raise DataError(f"{scene.id}: holds {'+'.join(sorted(there))}, but the head was fitted on {'+'.join(sensors)}")
    _warn_of_differences(scene, head, "+".join(sorted(there & set(sensors or there))))
    return settings


def _warn_of_differences(scene: Scene, head: Head, sensors: str) -> None:
    """One line on what the head was fitted on and this scene is not; a head need not know."""
    level = head.patch_.get("s2_level")
    pairs = [("sensors", head.patch_.get("sensors"), sensors)]
    pairs += [("level of optics", level, scene.s2_level)] if "s2" in sensors else []
    different = [f"{name} {a}, here {b}" for name, a, b in pairs if a is not None and a != b]
    if head.patch_.get("gsd") is None:
        different.append(f"pixels of unknown size, here {scene.gsd:.4g} m")
    if different:
        logger.warning("%s: the head was fitted on %s; check the map", scene.id, ", and on ".join(different))


def map_scene(
    scene: Scene,
    embedder: Embedder,
    head: Head,
    out: str | os.PathLike,
    *,
    stride: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> Path:
    """Classify a scene into a GeoTIFF on its own grid.

    All bands are uint8, nodata 255, deflated, in tiles of 256: the number of the class in `head.classes_`, then the
    probability of each class in percent, rounded. The tags name the classes, model, weights, head and dates.

    A head on series classifies each pixel by its own series, as in training. A head on patches slides a window of their
    size; its result goes to the cell of `stride` x `stride` pixels in the middle of the window. At the edges windows
    are shifted inward, so that every window is whole. A pixel or cell that no date or sensor saw is nodata.

    Memory does not grow with the height of the scene. The map appears under its name when it is whole; a run that was
    cut off starts over.

    Args:
        scene: the place (`croplem_hf.data.folder.open_scene`).
        embedder: the encoder that the head was fitted on.
        head: a fitted head that knows how its embeddings were made (`croplem_hf.heads.fit_head`).
        out: file to write; one that is there is replaced.
        stride: pixels between windows, for heads on patches; None for a quarter of the window, at least 1.
        tokens_per_batch: how much is embedded at once.
        progress: show a bar on stderr.

    Raises:
        DataError, CheckpointError: see `map_settings`; more than 255 classes; a stride that does not fit.
    """
    if Path(out).resolve() in {path.resolve() for path in scene.paths}:
        raise DataError(f"{out}: is imagery of the scene; give the map another name")
    settings = map_settings(scene, embedder, head)
    if len(head.classes_) > NODATA:
        raise DataError(f"a map holds at most {NODATA} classes, the head has {len(head.classes_)}")
    if (settings.height, settings.width) == (1, 1):
        if stride not in (None, 1):
            raise DataError(f"the head classifies single pixels; stride {stride} is for heads on patches")
        blocks = _pixel_blocks(scene, embedder, head, settings, tokens_per_batch)
    else:
        steps = _steps(settings, stride)
        blocks = _cell_blocks(scene, embedder, head, settings, steps)
    with (
        _map_file(Path(out), scene, embedder, head, settings) as raster,
        logging_redirect_tqdm(),
        tqdm(total=scene.height * scene.width, unit="px", unit_scale=True, desc="map", disable=not progress) as bar,
    ):
        for row, column, probabilities in blocks:
            height, width = probabilities.shape[1:]
            raster.write(_coded(probabilities), window=Window(column, row, width, height))
            bar.update(height * width)
    return Path(out)


def _steps(settings: MapSettings, stride: int | None) -> tuple[int, int]:
    if stride is None:
        return max(1, settings.height // 4), max(1, settings.width // 4)
    if not 1 <= stride <= min(settings.height, settings.width):
        raise DataError(f"stride must be 1 to {min(settings.height, settings.width)} (the window), found {stride}")
    return stride, stride


def _coded(probabilities: np.ndarray) -> np.ndarray:
    """float (K, h, w), NaN where unknown -> uint8 (1 + K, h, w): number of the class, percents."""
    known = np.isfinite(probabilities).all(axis=0)
    filled = np.where(known, probabilities, 0)
    coded = np.concatenate([filled.argmax(axis=0)[None], np.rint(100 * filled)]).astype(np.uint8)
    coded[:, ~known] = NODATA
    return coded


def _pixel_blocks(
    scene: Scene, embedder: Embedder, head: Head, settings: MapSettings, tokens: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(row, column, probabilities (K, h, w)) of each tile."""
    values = 2 * len(scene.dates["s1"]) + 13 * len(scene.dates["s2"])
    lines = max(1, min(TILE, BLOCK_VALUES // (values * TILE)))
    for row in range(0, scene.height, TILE):
        height = min(TILE, scene.height - row)
        for column in range(0, scene.width, TILE):
            width = min(TILE, scene.width - column)
            parts = [
                predict_pixels(
                    scene, embedder, head, settings, (top, column, min(lines, row + height - top), width), tokens
                )
                for top in range(row, row + height, lines)
            ]
            yield row, column, np.concatenate(parts, axis=1)


def predict_pixels(
    scene: Scene,
    embedder: Embedder,
    head: Head,
    settings: MapSettings,
    window: tuple[int, int, int, int],
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> np.ndarray:
    """Class probabilities of every pixel of a window, each embedded as its own series.

    The same as `head.predict_proba(embedder.encode(scene.read(row, column, 1, 1)))`, without a dict a pixel.

    Args:
        scene, embedder, head: as in `map_scene`.
        settings: of `map_settings`.
        window: row, column, height and width in pixels.
        tokens_per_batch: how much is embedded at once.

    Returns:
        float32 (K, height, width), NaN where nothing is valid.
    """
    height, width = window[2:]
    out = np.full((len(head.classes_), height * width), np.nan, np.float32)
    pixels = _pixel_inputs(scene, embedder, settings, window)
    if pixels is not None:
        known, vectors = _embed_pixels(embedder, settings, pixels, tokens_per_batch)
        out[:, known] = head.predict_proba(vectors).T
    return out.reshape(-1, height, width)


def _pixel_inputs(
    scene: Scene, embedder: Embedder, settings: MapSettings, window: tuple[int, int, int, int]
) -> dict[str, dict[str, np.ndarray]] | None:
    """Model inputs by sensor: `values` (P, T, C), `days` and `valid` (P, T), and for optics `bands` and `level`."""
    fields = scene.arrays(*window)
    wanted = settings.sensors or tuple(scene.dates)
    if not any(fields[f"{sensor}_valid"].any() for sensor in wanted if sensor in fields):
        return None
    inputs = embedder.processor(fields | {"id": scene.id, "gsd": scene.gsd}, sensors=wanted, return_tensors="np")
    pixels, new_years = {}, []
    for sensor in (s for s in wanted if f"{s}_values" in inputs):
        values, days = inputs[f"{sensor}_values"][0], inputs[f"{sensor}_days"][0]
        pixels[sensor] = {
            "values": values.reshape(*values.shape[:2], -1).transpose(2, 0, 1),
            "valid": inputs[f"{sensor}_valid"][0].reshape(len(days), -1).T,
            "days": days,
        }
        elapsed = [date.fromisoformat(text).timetuple().tm_yday - 1 for text in fields[f"{sensor}_dates"]]
        new_years.append(days - np.array(elapsed))
    if "s2" in pixels:
        pixels["s2"] |= {"bands": inputs["s2_bands"][0], "level": inputs["s2_level"][0]}
    # A pixel counts its days from the year of its own first valid date.
    days = np.concatenate([part["days"] for part in pixels.values()])
    valid = np.concatenate([part["valid"] for part in pixels.values()], axis=1)
    first = np.where(valid, days, np.iinfo(days.dtype).max).argmin(axis=1)
    shift = np.concatenate(new_years)[first]
    for part in pixels.values():
        part["days"] = part["days"] - shift[:, None]
    return pixels | {"gsd": inputs["gsd"][0]}


def _embed_pixels(
    embedder: Embedder, settings: MapSettings, pixels: dict, tokens_per_batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """-> numbers of the pixels that have something valid (n,), and their embeddings (n, D)."""
    gsd = pixels.pop("gsd")
    counts = sum(part["valid"].sum(axis=1) for part in pixels.values())
    # Pixels with equally many dates share a batch, which then needs no padding.
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    size = max(1, tokens_per_batch // sum(part["valid"].shape[1] for part in pixels.values()))
    vectors = np.empty((len(order), embedder.dim), np.float32)
    for start in range(0, len(order), size):
        batch, n = order[start : start + size], len(order[start : start + size])
        inputs = {"gsd": np.full(n, gsd, np.float32)}
        for sensor, part in pixels.items():
            inputs[f"{sensor}_values"] = part["values"][batch][..., None, None]
            inputs[f"{sensor}_days"] = part["days"][batch]
            inputs[f"{sensor}_valid"] = part["valid"][batch][..., None, None]
        if "s2" in pixels:
            inputs["s2_bands"] = np.repeat(pixels["s2"]["bands"][None], n, axis=0)
            inputs["s2_level"] = np.full(n, pixels["s2"]["level"])
        tensors = {name: torch.from_numpy(array).to(embedder.device) for name, array in inputs.items()}
        with torch.inference_mode():
            pooled = embedder.model(**tensors, patch_size=settings.patch_size or default_patch_size(1, 1)).pooler_output
            pooled = pooled.float() - embedder.model.embedding_centre.float() if settings.centre else pooled.float()
        vectors[start : start + n] = pooled.cpu().numpy()
    return order, vectors


def _cell_blocks(
    scene: Scene, embedder: Embedder, head: Head, settings: MapSettings, steps: tuple[int, int]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(row, 0, probabilities (K, h, W)) of each row of tiles."""
    number, line = -1, None
    for row in range(0, scene.height, TILE):
        bottom = min(row + TILE, scene.height)
        strip = np.empty((len(head.classes_), bottom - row, scene.width), np.float32)
        for cell in range(row // steps[0], -(-bottom // steps[0])):
            if cell != number:
                number, line = cell, predict_cells(scene, embedder, head, settings, steps, cell)
            start, stop = max(cell * steps[0], row), min((cell + 1) * steps[0], bottom)
            strip[:, start - row : stop - row] = line[:, None]
        yield row, 0, strip


def predict_cells(
    scene: Scene, embedder: Embedder, head: Head, settings: MapSettings, steps: tuple[int, int], number: int
) -> np.ndarray:
    """Class probabilities of one row of cells, each by the window around it.

    Args:
        scene, embedder, head: as in `map_scene`.
        settings: of `map_settings`.
        steps: height and width of a cell in pixels.
        number: which row of cells.

    Returns:
        float32 (K, width of the scene), NaN where no pixel of a cell is valid.
    """
    top, cell_top = _start(number, steps[0], settings.height, scene.height), number * steps[0]
    lefts = [_start(k, steps[1], settings.width, scene.width) for k in range(-(-scene.width // steps[1]))]
    pixel_values = 2 * len(scene.dates["s1"]) + 13 * len(scene.dates["s2"])
    group = max(1, BLOCK_VALUES // (pixel_values * settings.height * settings.width))
    out = np.full((len(head.classes_), scene.width), np.nan, np.float32)
    for first in range(0, len(lefts), group):
        part = lefts[first : first + group]
        fields = scene.arrays(top, part[0], settings.height, part[-1] + settings.width - part[0])
        samples, cells = [], []
        for k, left in enumerate(part, start=first):
            window = {name: _cut(value, left - part[0], settings.width) for name, value in fields.items()}
            cell = np.s_[cell_top - top :, k * steps[1] - left :]
            if any(
                window[f"{s}_valid"][:, *cell][:, : steps[0], : steps[1]].any()
                for s in settings.sensors or scene.dates
                if s in window
            ):
                name = f"{scene.id} [{top}, {left}]"
                samples.append(make_sample(name, gsd=scene.gsd, **window))
                cells.append(np.s_[k * steps[1] : (k + 1) * steps[1]])
        if samples:
            for cell, row in zip(cells, head.predict_proba(embedder.encode(samples, **settings.encode)), strict=True):
                out[:, cell] = row[:, None]
    return out


def _start(number: int, step: int, size: int, total: int) -> int:
    """First pixel of the window around cell `number`, shifted inward at the edges."""
    return min(max(number * step - (size - step) // 2, 0), total - size)


def _head_hash(head: Head) -> str:
    """SHA-256 over the classes and the fitted numbers of a head: the same however it was stored."""
    digest = hashlib.sha256(json.dumps(head.classes_.tolist()).encode())
    for name, array in sorted(head.tensors().items()):
        digest.update(name.encode() + np.ascontiguousarray(array, "<f8").tobytes())
    return digest.hexdigest()


def _cut(value, left: int, width: int):
    """Columns of the arrays of pixels among the keywords of a sample."""
    return value[..., left : left + width] if isinstance(value, np.ndarray) and value.ndim > 2 else value


@contextlib.contextmanager
def _map_file(
    out: Path, scene: Scene, embedder: Embedder, head: Head, settings: MapSettings
) -> Iterator[rasterio.io.DatasetWriter]:
    """The GeoTIFF to write blocks to, under its name only after the last one."""
    classes = [str(name) for name in head.classes_]
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1 + len(classes), "height": scene.height, "width": scene.width,
        "crs": scene.crs, "transform": Affine(*scene.transform), "nodata": NODATA, "compress": "deflate",
        "tiled": True, "blockxsize": TILE, "blockysize": TILE, "interleave": "band", "photometric": "MINISBLACK",
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    tags = {
        "TIFFTAG_SOFTWARE": f"croplem_hf {__version__}",
        "CLASSES": json.dumps(dict(enumerate(classes))),
        "SCENE": scene.id,
        "DATES": json.dumps(scene.dates),
        "MODEL": embedder.name,
        "WEIGHTS_HASH": head.info_["weights_hash"],
        "HEAD_HASH": _head_hash(head),
        "UNIT": settings.unit,
        "WINDOW": f"{settings.height} x {settings.width}",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.part")
    try:
        with rasterio.open(aside, "w", **profile) as raster:
            raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * len(classes)
            raster.update_tags(**tags)
            raster.set_band_description(1, "class")
            for band, name in enumerate(classes, start=2):
                raster.set_band_description(band, f"{name} (percent)")
            yield raster
        os.replace(aside, out)
    except RasterioError as error:
        raise DataError(f"{out}: cannot be written ({' '.join(str(error).split())})") from error
    finally:
        aside.unlink(missing_ok=True)


__all__ = ["MapSettings", "map_scene", "map_settings", "predict_cells", "predict_pixels"]
