"""Which sample goes into which shard: a function of the source and the ids alone."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from .archives import Archives
from .shards import FORMAT
from .splits import SPLITS, scene_places, scene_splits

SHARD_COUNTS = (1, 2, 4, 8, 24, 48, 96, 192, 384, 768, 1536, 3072)
"""How many shards a split of a season can have, so that common numbers of processes divide it."""

SHARD_BYTES = 512 * 2**20
"""What a shard holds at the most, by an estimate."""

# Packed bytes of a pixel on one date: the share that real patches pack to, bands, bytes of a number.
_PACKED = {"s1": 0.8 * 2 * 4, "s2": 0.55 * 13 * 2}
_FEWEST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard to be: its name below `data/`, its split, its season ("" where there is none), and the ids in it."""

    name: str
    split: str
    season: str
    ids: list[str]

    @property
    def hash(self) -> str:
        return hashlib.sha256("\n".join([str(FORMAT), self.name, self.split, *self.ids]).encode()).hexdigest()


def plan_shards(source, ids: Sequence[str], splits: Mapping[str, str]) -> list[Shard]:
    """Shards of the given ids in their order: a number of `SHARD_COUNTS` for each split of each season."""
    size = _bytes_each(source)
    parts: dict[tuple[str, str], list[str]] = {}
    for id in ids:
        parts.setdefault((patch_season(id) if source.kind == "sen12ms" else "", splits[id]), []).append(id)
    shards = []
    for (season, split), members in parts.items():
        fitting = [count for count in SHARD_COUNTS if count * _FEWEST_ROWS <= len(members)] or [1]
        count = next((count for count in SHARD_COUNTS if len(members) * size / count <= SHARD_BYTES), SHARD_COUNTS[-1])
        count = min(max(count, min(8, fitting[-1])), len(members))
        count = max(n for n in SHARD_COUNTS if n <= count)
        label = f"{split}-{season}" if season else split
        for k, rows in enumerate(np.array_split(np.arange(len(members)), count)):
            name = f"{label}-{k:05d}-of-{count:05d}.parquet"
            shards.append(Shard(name, split, season, [members[row] for row in rows]))
    return shards


def choose_splits(source, fixed: Mapping[str, str]) -> dict[str, str]:
    """Split of each id: of SEN12MS by scene, where `fixed` keeps the splits of scenes; else by the column `split`."""
    if source.kind == "sen12ms":
        if isinstance(source, Archives):
            places = {patch_scene(id): source.scenes.get(patch_scene(id)) for id in source.ids}
        else:
            places = scene_places(source)
        scenes = scene_splits(places, fixed)
        return {id: scenes[patch_scene(id)] for id in source.ids}
    given = source.columns().get("split")
    given = [None] * len(source) if given is None else given.tolist()
    return {id: split if split in SPLITS else "train" for id, split in zip(source.ids, given, strict=True)}


def _bytes_each(source) -> float:
    """Estimate of the packed bytes of a sample."""
    if isinstance(source, Archives):
        return 256 * 256 * sum(_PACKED[sensor] for sensor in source.sensors)
    shapes = source.layout().shapes.astype(float)
    return float(((shapes[:, 0] * _PACKED["s1"] + shapes[:, 1] * _PACKED["s2"]) * shapes[:, 2] * shapes[:, 3]).mean())


def patch_season(id: str) -> str:
    """"spring" of a patch of SEN12MS."""
    return id.split("_")[1]


def patch_scene(id: str) -> str:
    """"ROIs1158_spring_1" of a patch of SEN12MS."""
    return id.rpartition("_p")[0]


__all__ = ["SHARD_BYTES", "SHARD_COUNTS", "Shard", "choose_splits", "patch_scene", "patch_season", "plan_shards"]
