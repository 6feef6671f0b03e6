"""What to look for in an index: what lies at a place, fields of a scene, or new images, embedded as the index was."""

import logging
from collections.abc import Sequence

import numpy as np

from .embedding import Embedder
from .embedding_options import pooling_name
from .errors import CheckpointError, DataError
from .geodesy import kilometres
from .index import EmbeddingIndex

logger = logging.getLogger(__name__)

"""Mean radius in metres (IUGG)."""
WITHIN = 1000.0
"""Metres: what lies farther from a place is not what is there."""
TOGETHER = 1.0
"""Metres between items that are the same place, seen several times."""
MOST_QUERIES = 20


def nearest_items(index: EmbeddingIndex, lon: float, lat: float, within: float = WITHIN) -> list[tuple[str, float]]:
    """(id, metres) of the indexed item that is nearest to a place, and of others at the same place as it.

    Args:
        index: its items have columns `lon` and `lat`, of their middle.
        lon, lat: degrees (WGS84).
        within: metres; infinite for the nearest, wherever it is.

    Raises:
        DataError: no longitude and latitude, an index without places, or nothing within the distance.
    """
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise DataError(f"({lon:g}, {lat:g}) is no longitude and latitude; longitude comes first")
    names = index.metadata.column_names
    there = ~index.removed
    if {"lon", "lat"} <= set(names):
        lons, lats = (index.metadata[name].to_numpy().astype(np.float64) for name in ("lon", "lat"))
        there = there & np.isfinite(lons) & np.isfinite(lats)
    if not {"lon", "lat"} <= set(names) or not there.any():
        raise DataError(f"the items of the index have no places (lon, lat); found columns {', '.join(names)}")
    rows = np.flatnonzero(there)
    places = np.stack([lons[rows], lats[rows]], axis=1)
    far = 1000 * kilometres(places, np.array([lon, lat]))
    nearest = far.argmin()
    least, same = far[nearest], 1000 * kilometres(places, places[nearest]) <= TOGETHER
    ids = index.metadata["id"].take(rows[same]).to_pylist()
    if least > within:
        raise DataError(
            f"the nearest item of the index, {ids[0]!r}, lies {least / 1000:,.1f} km from ({lon:g}, {lat:g}), farther "
            f"than {within:g} m; longitude comes first, and --within allows more"
        )
    return list(zip(ids, far[same].tolist(), strict=True))


def settings_of(index: EmbeddingIndex) -> dict:
    """Arguments of `Embedder.encode` that made the vectors of an index."""
    info = index.info
    if "weights_hash" not in info:
        raise CheckpointError("the index says nothing of how its vectors were made; index a table of `croplem embed`")
    size = info.get("patch_size")
    return {
        "sensors": info.get("sensors"),
        "patch_size": None if size == "auto" else size,
        "centre": bool(info.get("centred")),
        "pooling": pooling_name(info.get("pooling")),
        "truncate_dim": info.get("truncate_dim"),
    }


def embed_queries(index: EmbeddingIndex, embedder: Embedder, source, items: Sequence[str] | None = None):
    """Embed items of a source as those of an index were.

    Args:
        index: what is to be searched.
        embedder: the model of the index.
        source: images or series as `open_source` gives them, or `SceneFields` made with `field_options`.
        items: their ids; None for all, at most `MOST_QUERIES`.

    Returns:
        ids, vectors float32 (N, D), and a dict of plain metadata for each.

    Raises:
        DataError: an unknown item, too many, or one that cannot be embedded.
        CheckpointError: items of another unit than the index holds, or another model.
    """
    check_unit(index, source.unit)
    from_polygons = source.kind == "fields"
    settings = settings_of(index)
    if from_polygons:
        from .fields import encode_fields, field_info

        settings = {name: settings[name] for name in ("sensors", "patch_size", "centre")}
        settings["patch_size"] = settings["patch_size"] or 1
        info = field_info(embedder, **settings, shrink=source.shrink)
    else:
        info = embedder.info(source.unit, **settings)
    index.check_settings(info)
    if items is None and len(source) > MOST_QUERIES:
        text = "items are too many to look for at once; name some by --item, such as"
        raise DataError(f"{len(source)} {text} {source.ids[0]!r}")
    unknown = [name for name in items or () if name not in source.ids]
    if unknown:
        raise DataError(f"no {unknown[0]!r} among what to look for; there are {', '.join(source.ids[:5])}")
    ids = list(source.ids if items is None else items)
    samples = [source[source.ids.index(name)] for name in ids]
    if from_polygons:
        vectors = encode_fields(embedder, samples, patch_size=settings["patch_size"], centre=settings["centre"])
    else:
        _warn_of_sizes(index, samples)
        vectors = embedder.encode(samples, **settings)
    return ids, vectors, [{key: sample.get(key) for key in ("lon", "lat", "area_ha")} for sample in samples]


def check_unit(index: EmbeddingIndex, unit: str) -> None:
    """Refuse queries of another unit than the index holds.

    Raises:
        CheckpointError: and why they cannot be compared.
    """
    held = index.info.get("unit")
    if held == unit:
        return
    remedy = {
        "field": "index a table of fields: croplem embed SCENE OUT --fields FIELDS",
        "patch": "index a table of patches: croplem embed SRC OUT",
        "series": "index a table of series: croplem embed SERIES.parquet OUT",
    }
    why = {
        "field": "of a field, from its own pixels alone",
        "patch": "of a whole image, with everything in it",
        "series": "of single pixels through time",
    }
    raise CheckpointError(
        f"the index holds embeddings of unit {held!r} ({why.get(held, 'of another tool')}), the query is of unit "
        f"{unit!r} ({why.get(unit, 'unknown')}); their cosines mean nothing. To look for it, "
        f"{remedy.get(unit, 'embed alike')}"
    )


def field_options(index: EmbeddingIndex) -> dict:
    """Arguments of `SceneFields` that made the fields of an index."""
    return {
        "sensors": index.info.get("sensors"),
        "shrink": index.info.get("shrink_m", 0.0),
        "patch_size": settings_of(index)["patch_size"] or 1,
    }


def _warn_of_sizes(index: EmbeddingIndex, samples: Sequence[dict]) -> None:
    """Say where a query covers another ground than every item of the index."""
    names = index.metadata.column_names
    if not {"height", "width"} <= set(names):
        return
    heights, widths = (index.metadata[name].to_numpy() for name in ("height", "width"))
    for sample in samples:
        height, width = next(sample[s] for s in ("s2", "s1") if sample[s] is not None).shape[2:]
        if not ((heights == height) & (widths == width)).any():
            logger.warning(
                "%s has %d x %d pixels, the items of the index such as %d x %d; cosines between sizes are lower",
                sample["id"], height, width, heights[0], widths[0],
            )  # fmt: skip


__all__ = [
    "WITHIN", "check_unit", "embed_queries", "field_options", "nearest_items", "settings_of",
]  # fmt: skip
