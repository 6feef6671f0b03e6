"""Embeddings of fields: polygons over a scene, each embedded from its own pixels, weighted by the area it covers.

A field is seen through the smallest window of whole pixels that holds it, on the scene's grid; pixels outside it are
hidden from the model. So its embedding depends on the field and the imagery alone, not on neighbours, a tiling, or
where the scene ends: two scenes of the same imagery that overlap give the same field the same embedding.

A token counts by the area of its patch that the field covers, and tokens are pooled as the model pools them (within
sensors, then over sensors). A patch is one pixel for every field, since embeddings of different patch sizes lie apart.
A field of more than `TOKENS_PER_FIELD` tokens over all dates of both sensors is seen on a lattice of every second,
third ... row and column instead, which changes its embedding less than patches of 2 x 2 would.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from .data.folder import Scene
from .data.polygons import Polygons
from .data.sample import Sample
from .data.scene_fields import SceneFields, patch_weights
from .embedding import Embedder
from .embedding_options import TOKENS_PER_BATCH
from .errors import DataError
from .export import finish_table
from .model.tokens_croplem import pool_sensors
from .sensors import SENSORS
from .table import EmbeddingsTable, read_table
from .table_writer import TableWriter, origin_of

logger = logging.getLogger(__name__)

SMALL_PIXELS = 4
OWN_COLUMNS = ("id", "embedding", "lon", "lat", "area_ha", "pixels", "valid_share", "inside_share", "sampled_share",
               "patch_size", "repaired", "gsd", "sensors", "s1_kind", "s2_level", "scene")  # fmt: skip


def renamed(name: str) -> str:
    """Name in the embeddings table of an attribute: as it is, unless it is the name of a column of ours."""
    return f"{name}_given" if name in OWN_COLUMNS else name


def encode_fields(
    embedder: Embedder, samples: Sequence[Sample], *, patch_size: int = 1, centre: bool = True
) -> np.ndarray:
    """Embed samples of `SceneFields` of this patch size -> float32 (N, D).

    With a polygon of whole pixels that fills its window this is what `Embedder.encode` gives of the window.
    """
    out = np.empty((len(samples), embedder.dim), np.float32)
    areas = [patch_weights(sample["coverage"], patch_size) for sample in samples]
    tokens = [
        sum(len(sample[f"{s}_dates"]) for s in SENSORS) * int((area > 0).sum())
        for sample, area in zip(samples, areas, strict=True)
    ]
    # Fields of equally many tokens share a batch, which then needs little padding.
    order = sorted(range(len(samples)), key=tokens.__getitem__)
    while order:
        size = 1
        while size < len(order) and (size + 1) * tokens[order[size]] <= TOKENS_PER_BATCH:
            size += 1
        part, order = order[:size], order[size:]
        weights = [areas[k] for k in part]
        rows, columns = (max(w.shape[axis] for w in weights) for axis in (0, 1))
        padded = np.stack([np.pad(w, ((0, rows - w.shape[0]), (0, columns - w.shape[1]))) for w in weights])
        try:
            inputs = embedder.processor([samples[k] for k in part])
        except ValueError as error:
            raise DataError(str(error)) from error
        with torch.inference_mode():
            model = embedder.model
            found = model(**inputs.to(embedder.device), patch_size=patch_size)
            index, mask = found.token_index, found.token_mask
            area = torch.from_numpy(padded).to(embedder.device, found.last_hidden_state.dtype)
            # Of padding the place is arbitrary.
            y, x = index[..., 2].clamp(max=rows - 1), index[..., 3].clamp(max=columns - 1)
            weight = area[torch.arange(len(part), device=area.device)[:, None], y, x] * mask
            pooled = pool_sensors(found.last_hidden_state, weight, index[..., 0], model.config.pooling == "mean_std")
            pooled = pooled.float() - model.embedding_centre.float() if centre else pooled.float()
        out[part] = pooled.cpu().numpy()
    return out


def field_info(
    embedder: Embedder,
    *,
    sensors: Sequence[str] | None = None,
    patch_size: int = 1,
    centre: bool = True,
    shrink: float = 0.0,
) -> dict:
    """What a table of fields must say of how its vectors were made."""
    info = embedder.info("field", sensors=sensors, patch_size=patch_size, centre=centre)
    info["pooling"] += ", weighted by the area of the field"
    return info | {"shrink_m": float(shrink)}


def embed_fields(
    scene: Scene,
    polygons: Polygons,
    embedder: Embedder,
    out: str | os.PathLike,
    *,
    sensors: Sequence[str] | None = None,
    patch_size: int = 1,
    centre: bool = True,
    shrink: float = 0.0,
    progress: bool = True,
    overwrite: bool = False,
) -> EmbeddingsTable:
    """Embed the fields of a file over a scene into an embeddings table of unit "field", resuming where it was cut off.

    Columns beside `id` and `embedding`: `lon` and `lat` of the centroid; `area_ha` of the polygon as given; `pixels`
    that it covers after shrinking, in parts; `valid_share`, the mean over all dates and sensors of the share of its
    area that was seen; `inside_share`, how much of it lies in the scene; `sampled_share`, how much was looked at, below
    1 for large fields; `repaired`, whether a broken polygon was mended; `patch_size`, the scene, and all attributes of
    the polygons (one that is named as a column of ours gets the ending `_given`). Rows are in the order of reading.
    Fields that cannot be embedded are listed with the reason in `OUT.skipped.csv`: outside the scene, under cloud on
    every date, empty, broken, too large, or nothing left.

    `KenyaFields` gives the fields of that data set, which come as numbers of pixels, as items of
    `Embedder.embed_source`; polygons of any region go through here. Both hide what lies outside the field, and whole
    pixels get the same embedding at patch size 1. They differ where a polygon covers part of a pixel, so their tables
    are told apart.

    Args:
        scene: the place (`open_scene`).
        polygons: its fields (`read_polygons`).
        embedder: the encoder.
        out: Parquet file to write, under its name only when it is whole; replaces an embeddings table of the scene.
        sensors, centre: as in `Embedder.encode`.
        patch_size: pixels a patch; more than 1 blurs the border, and is for sensors of finer pixels.
        shrink: metres by which borders move inward.
        progress: show a bar on stderr.
        overwrite: replace a finished table of another scene, or of fields with other ids, that lies at `out`.

    Raises:
        DataError: not a single field could be embedded, or something else than an embeddings table, or one of another
            source, lies at `out`.
        CheckpointError: an unfinished table of other settings or polygons lies at `out`.
    """
    source, out = SceneFields(scene, polygons, sensors=sensors, shrink=shrink, patch_size=patch_size), Path(out)
    info = field_info(embedder, sensors=sensors, patch_size=patch_size, centre=centre, shrink=shrink)
    info["source"] = {"scene": scene.id, "polygons_sha256": polygons.sha256}
    # Not by its files, of which there are more when dates are added.
    origin = origin_of(Path(os.path.commonpath([path.resolve().parent for path in scene.paths])) / scene.id)
    row = 0
    with (
        TableWriter(out, info, source.ids, origin=origin, overwrite=overwrite) as writer,
        tqdm(total=len(source), unit="fields", disable=not progress, desc="embedding fields") as bar,
    ):
        while row < len(source):
            stop = writer.finished(row)
            if stop is None:
                samples, skipped, stop = source.read_chunk(row)
                vectors = encode_fields(embedder, samples, patch_size=patch_size, centre=centre)
                writer.add_part(row, stop, vectors, [field_row(sample, patch_size) for sample in samples], skipped)
            bar.update(stop - row)
            row = stop
        finish_table(writer)
    table = read_table(out)
    small = int((np.array(table.metadata["pixels"]) < SMALL_PIXELS).sum())
    for count, text in (
        (int(np.array(table.metadata["repaired"]).sum()), "broken polygons were mended (column repaired)"),
        (small, f"fields cover fewer than {SMALL_PIXELS} pixels, most of them shared with neighbours (column pixels)"),
    ):
        if count:
            logger.warning("%d of %d %s", count, len(source), text)
    return table


def field_row(sample: Sample, patch_size: int) -> dict:
    """The columns of a field in the embeddings table."""
    own = {name: sample[name] for name in OWN_COLUMNS if name in sample}
    used = [s for s in SENSORS if sample[s] is not None]
    attributes = {renamed(key): value for key, value in sample["attributes"].items()}
    return own | {"patch_size": patch_size, "sensors": "+".join(used)} | attributes


__all__ = ["embed_fields", "encode_fields", "field_info", "field_row"]
