"""Dense embeddings of a scene as a GeoTIFF: all numbers of a token or principal components, as bytes or floats."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..data.folder import Scene
from ..embedding import Embedder
from ..embedding_options import TOKENS_PER_BATCH
from ..errors import CheckpointError, DataError
from .basis import NODATA, Basis
from .cog import BandGroup, write_cog
from .tiles import TileStore, bounded_cache, imagery_hash
from .tokens import Tokens

TILE_TOKENS = 256
FORMATS = {"int8": NODATA, "float32": np.nan}
SETTINGS = ("weights_hash", "processor", "sensors", "patch_size", "centred")
"""What two maps must share for one basis to fit both."""


def map_embeddings(
    scene: Scene,
    embedder: Embedder,
    out: str | os.PathLike,
    *,
    bands: int | None = None,
    basis: str | os.PathLike | None = None,
    precision: str = "int8",
    sensors: Sequence[str] | None = None,
    patch_size: int | None = None,
    window: int | None = None,
    centre: bool = True,
    seed: int = 0,
    tile: int = TILE_TOKENS,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    progress: bool = True,
) -> Path:
    """Write dense embeddings of a scene as a Cloud-Optimised GeoTIFF.

    A pixel of the file is a token: `patch_size` pixels of the scene, with a transform of its own. Finer pixels would
    only repeat it. A token is the mean over dates within each sensor, then over sensors, in windows of `window` pixels
    that overlap by half, weighted by `window_weight`. What nobody saw is nodata.

    "int8" takes a quarter of the bytes of float32 at a cosine of 0.999 and more; each band has its own scale, which
    GDAL and rasterio know as the band's scale: value = number x scale.

    With `bands`, principal components of tokens in random windows of the scene are stored; their mean and components go
    to `OUT.basis.safetensors`, which `basis` applies to another scene, so that both have the same bands.

    Memory, tiles and resuming are as in `map_scene`.

    Args:
        scene, embedder: as in `map_scene`.
        out: file to write; a map that is there is replaced.
        bands: number of principal components, None for all numbers of a token.
        basis: file of an earlier call to take components and scales from.
        precision: "int8" or "float32".
        sensors, patch_size, window, centre: as in `Tokens`.
        seed: of the windows that components and scales are fitted on.
        tile: rows and columns of tokens that are finished at once.
        tokens_per_batch: how much is embedded at once.
        progress: show a bar on stderr.

    Raises:
        DataError: options that do not fit; nothing valid in the scene.
        CheckpointError: a basis of another model or settings; unfinished tiles of other settings at `out`.
    """
    out = Path(out)
    if out.resolve() in {path.resolve() for path in scene.paths}:
        raise DataError(f"{out}: is imagery of the scene; give the map another name")
    if precision not in FORMATS:
        raise DataError(f"precision must be one of {', '.join(FORMATS)}, found {precision!r}")
    if bands is not None and basis is not None:
        raise DataError("a basis has its own number of bands; give one of the two")
    options = {"sensors": sensors, "patch_size": patch_size, "window": window, "centre": centre}
    tokens = Tokens(scene, embedder, **options, tokens_per_batch=tokens_per_batch)
    info = embedder.info("token", sensors=sensors, patch_size=tokens.patch_size, centre=centre)
    about = {key: info[key] for key in SETTINGS}
    given = None if basis is None else _given_basis(Path(basis), about)
    side = 2 * tokens.step * tokens.patch_size
    settings = about | {
        "scene": scene.id, "imagery": imagery_hash(scene), "window": side, "bands": bands, "precision": precision,
        "basis": None if given is None else given.hash, "seed": seed, "library_version": info["library_version"],
    }  # fmt: skip
    store = TileStore(out, settings, tokens.shape, tile)
    kept = store.folder / "basis.safetensors"
    total = store.shape[0] * store.shape[1]
    with (
        bounded_cache(),
        logging_redirect_tqdm(),
        tqdm(total=total, unit="tokens", unit_scale=True, desc="map", disable=not progress) as bar,
    ):
        chosen = given or (Basis.load(kept) if kept.is_file() else Basis.fit(tokens.sample(seed=seed), bands, about))
        store.start()
        chosen.save(kept)
        for window in store:
            count = window[2] * window[3]
            if store.is_finished(window):
                bar.update(count)
                continue
            values = chosen.project(tokens.read(window, progress=lambda share, count=count: bar.update(share * count)))
            values = chosen.to_bytes(values) if precision == "int8" else values
            store.add(window, np.moveaxis(values, -1, 0))
    if bands is not None:
        chosen.save(basis_path(out))
    tags = {
        "SCENE": scene.id,
        "DATES": json.dumps(scene.dates),
        "MODEL": embedder.name,
        "WEIGHTS_HASH": info["weights_hash"],
        "SENSORS": "+".join(sensors or ("s1", "s2")),
        "PATCH_SIZE": str(tokens.patch_size),
        "WINDOW": f"{side} x {side}",
        "CENTRED": str(centre),
    }
    if bands is not None or given is not None:
        tags |= {"BASIS_HASH": chosen.hash, "EXPLAINED": json.dumps([round(float(x), 5) for x in chosen.explained])}
        names = [f"component {n}" for n in range(1, len(chosen.scale) + 1)]
    else:
        names = [f"embedding {n}" for n in range(len(chosen.scale))]
    group = BandGroup(names, "average", chosen.scale if precision == "int8" else None)
    with bounded_cache():
        write_cog(
            out, store, [group], dtype=precision, nodata=FORMATS[precision], crs=scene.crs,
            transform=tokens.transform, tags=tags,
        )  # fmt: skip
    return out


def basis_path(out: str | os.PathLike) -> Path:
    """Where the components of a map lie: `map.basis.safetensors` beside `map.tif`."""
    return Path(out).with_suffix(".basis.safetensors")


def _given_basis(path: Path, about: dict) -> Basis:
    found = Basis.load(path)
    different = [key for key in SETTINGS if found.about.get(key) != about[key]]
    if different:
        raise CheckpointError(
            f"{path}: was fitted on embeddings that differ in {', '.join(different)}; use the model and settings of "
            "that map, or fit components to this scene"
        )
    return found


__all__ = ["basis_path", "map_embeddings"]
