"""The map of a head over a scene: windows are embedded as the head's training data were, classified and blended."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..data.folder import Scene
from ..embedding import Embedder
from ..embedding_options import TOKENS_PER_BATCH
from ..errors import DataError
from ..heads import Head
from .block import pixels_at_once, read_block
from .cog import BandGroup, write_cog
from .settings import MapSettings, map_settings
from .tiles import TileStore, bounded_cache, imagery_hash
from .windows import blend, groups, overlapping, weight_matrix, window_starts

logger = logging.getLogger(__name__)

NODATA = 255
TILES = {"series": 256, "patch": 1024}
"""Rows and columns that are finished at once: about a minute of a head on pixels, and few windows of patches twice."""


def map_scene(
    scene: Scene,
    embedder: Embedder,
    head: Head,
    out: str | os.PathLike,
    *,
    stride: int | None = None,
    tile: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> Path:
    """Classify a scene into a Cloud-Optimised GeoTIFF on its own grid.

    All bands are uint8, nodata 255: the number of the class in `head.classes_`, then the probability of each class in
    percent, rounded. Overviews show the most frequent class and mean probabilities. The tags name the classes, model,
    weights, head and dates.

    A head on series classifies each pixel by its own series, as in training. A head on patches tells what a whole patch
    is: a window of their size slides over the scene, and a pixel gets the mean of the windows that cover it, weighted
    by `window_weight`, so that no edge of a window shows. Such a map is smooth: what is smaller than half a patch is
    not in it, whatever the stride. A pixel that no date or sensor saw is nodata.

    Tiles are finished one by one in the folder `OUT.parts`; memory does not grow with the scene, and the same call goes
    on where an earlier one was cut off. The map appears under its name when it is whole.

    Args:
        scene: the place (`croplem_hf.data.folder.open_scene`).
        embedder: the encoder that the head was fitted on.
        head: a fitted head that knows how its embeddings were made (`croplem_hf.heads.fit_head`).
        out: file to write; a map that is there is replaced.
        stride: pixels between windows, for heads on patches; None for a quarter of the window, at least 1.
        tile: rows and columns of the scene that are finished at once; the map does not depend on it. None for 256 for
            heads on single pixels, 1024 for others.
        tokens_per_batch: how much is embedded at once.
        progress: show a bar on stderr.

    Raises:
        DataError, CheckpointError: see `map_settings`; more than 255 classes; a stride that does not fit; unfinished
            tiles of another map at `out`.
    """
    out = Path(out)
    if out.resolve() in {path.resolve() for path in scene.paths}:
        raise DataError(f"{out}: is imagery of the scene; give the map another name")
    settings = map_settings(scene, embedder, head)
    if len(head.classes_) > NODATA:
        raise DataError(f"a map holds at most {NODATA} classes, the head has {len(head.classes_)}")
    steps = _steps(settings, stride)
    if settings.size == (scene.height, scene.width) != (1, 1):
        logger.warning(
            "%s: the scene of %d x %d pixels is a single window of this head, so all of the map gets one value; give a "
            "larger scene (--stride then sets how fine), or a head on smaller patches or on series of pixels",
            scene.id, scene.height, scene.width,
        )  # fmt: skip
    classes = [str(name) for name in head.classes_]
    tags = {
        "CLASSES": json.dumps(dict(enumerate(classes))),
        "SCENE": scene.id,
        "DATES": json.dumps(scene.dates),
        "MODEL": embedder.name,
        "WEIGHTS_HASH": head.info_["weights_hash"],
        "HEAD_HASH": _head_hash(head),
        "UNIT": settings.unit,
        "WINDOW": f"{settings.height} x {settings.width}",
        "STRIDE": f"{steps[0]} x {steps[1]}",
    }
    tile = tile or TILES["series" if settings.size == (1, 1) else "patch"]
    store = TileStore(out, tags | {"imagery": imagery_hash(scene)}, (scene.height, scene.width), tile)
    store.start()
    names = [f"{name} (percent)" for name in classes]
    with (
        bounded_cache(),
        logging_redirect_tqdm(),
        tqdm(total=scene.height * scene.width, unit="px", unit_scale=True, desc="map", disable=not progress) as bar,
    ):
        for window in store:
            count = window[2] * window[3]
            if store.is_finished(window):
                bar.update(count)
                continue
            found = predict_window(
                scene, embedder, head, settings, steps, window, tokens_per_batch=tokens_per_batch,
                progress=lambda share, count=count: bar.update(share * count),
            )  # fmt: skip
            store.add(window, _coded(found))
        write_cog(
            out, store, [BandGroup(["class"], "mode"), BandGroup(names, "average")], dtype="uint8", nodata=NODATA,
            crs=scene.crs, transform=scene.transform, tags=tags,
        )  # fmt: skip
    return out


def predict_window(
    scene: Scene,
    embedder: Embedder,
    head: Head,
    settings: MapSettings,
    steps: tuple[int, int],
    window: tuple[int, int, int, int],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: Callable[[float], object] | None = None,
) -> np.ndarray:
    """Class probabilities of every pixel of a part of a scene.

    Args:
        scene, embedder, head: as in `map_scene`.
        settings: of `map_settings`.
        steps: pixels between windows, down and across; (1, 1) for series.
        window: row, column, height and width in pixels.
        tokens_per_batch: how much is embedded at once.
        progress: called with the share of the window that was done since the last call.

    Returns:
        float32 (K, height, width), NaN where no date or sensor saw the pixel.
    """
    row, column, height, width = window
    size, patch_size = settings.size, settings.pixels_per_token(embedder)
    tops = window_starts(scene.height, size[0], steps[0])
    lefts = window_starts(scene.width, size[1], steps[1])
    rows = overlapping(tops, size[0], row, row + height)
    columns = overlapping(lefts, size[1], column, column + width)
    found = np.full((len(head.classes_), len(rows), len(columns)), np.nan, np.float32)
    seen = np.zeros((height, width), bool)

    def advance(count: int) -> None:
        if progress is not None and count:
            progress(count / (len(rows) * len(columns)))

    for i, j in groups(rows, columns, steps, size, pixels_at_once(scene)):
        top, left, bottom, right = tops[i[0]], lefts[j[0]], tops[i[-1]] + size[0], lefts[j[-1]] + size[1]
        block = read_block(scene, embedder, settings.sensors, (top, left, bottom - top, right - left))
        y, x = max(top, row), max(left, column)
        part = block.seen[y - top : row + height - top, x - left : column + width - left]
        seen[y - row : y - row + part.shape[0], x - column : x - column + part.shape[1]] |= part
        down, across = (n.ravel() for n in np.meshgrid(i, j, indexing="ij"))
        left_over = len(down)
        for numbers, inputs in block.batches(
            tops[down] - top, lefts[across] - left, size, patch_size, tokens_per_batch
        ):
            vectors = embedder.encode(inputs, tokens_per_batch=tokens_per_batch, **settings.encode)
            place = down[numbers] - rows[0], across[numbers] - columns[0]
            found[:, *place] = head.predict_proba(vectors).T
            advance(len(numbers))
            left_over -= len(numbers)
        # Windows in which nobody saw anything.
        advance(left_over)
    weights = (
        weight_matrix(starts[numbers], side, first, first + count)
        for starts, numbers, side, first, count in (
            (tops, rows, size[0], row, height),
            (lefts, columns, size[1], column, width),
        )
    )
    return np.where(seen, blend(found, *weights), np.nan)


def _steps(settings: MapSettings, stride: int | None) -> tuple[int, int]:
    if settings.size == (1, 1) and stride not in (None, 1):
        raise DataError(f"the head classifies single pixels; stride {stride} is for heads on patches")
    if stride is None:
        return max(1, settings.height // 4), max(1, settings.width // 4)
    if not 1 <= stride <= min(settings.size):
        raise DataError(f"stride must be 1 to {min(settings.size)} (the window), found {stride}")
    return stride, stride


def _coded(probabilities: np.ndarray) -> np.ndarray:
    """float (K, h, w), NaN where unknown -> uint8 (1 + K, h, w): number of the class, percents."""
    known = np.isfinite(probabilities).all(axis=0)
    filled = np.where(known, probabilities, 0)
    coded = np.concatenate([filled.argmax(axis=0)[None], np.rint(100 * filled)]).astype(np.uint8)
    coded[:, ~known] = NODATA
    return coded


def _head_hash(head: Head) -> str:
    """SHA-256 over the classes and the fitted numbers of a head: the same however it was stored."""
    digest = hashlib.sha256(json.dumps(head.classes_.tolist()).encode())
    for name, array in sorted(head.tensors().items()):
        digest.update(name.encode() + np.ascontiguousarray(array, "<f8").tobytes())
    return digest.hexdigest()


__all__ = ["NODATA", "map_scene", "predict_window"]
