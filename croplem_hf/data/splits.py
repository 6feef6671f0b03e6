"""Train, validation and test of SEN12MS, by scene and by distance.

Neighbouring patches share half their pixels and some scenes overlap, also across seasons (fall 149 and winter 63 lie
23 km apart), so a split of patches at random leaks. Test is the official list of 26 scenes; all else is train, of which
about a tenth becomes validation here: the authors ship no list of it.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import DataError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")

NEIGHBOUR_KM = 60.0
"""Scenes whose centres are closer than this may share ground: a scene is about 38 km wide and 54 km along its diagonal,
and a centre is known to a few kilometres."""

VALIDATION_SHARE = 0.1
_EARTH_KM = 6371.0
# A scene is a square of 29 patches a side (31 in some), numbered row by row.
_SIDES = (29, 31)
_TRIES = 5


def scene_splits(
    places: Mapping[str, tuple[float, float] | None], fixed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Which split each scene is in.

    Scenes closer than `NEIGHBOUR_KM`, directly or through others, form one cluster. The official test scenes are test;
    the other scenes of a cluster with one are train, as they officially are. Of the remaining clusters those whose
    smallest scene name hashes into the first tenth are validation. So a scene's split hardly depends on which other
    scenes are there, and `fixed` keeps it for good.

    Args:
        places: longitude and latitude in degrees of the centre of each scene, such as {"ROIs1158_spring_1": (38.1,
            -17.0)}; None where it is unknown: such a scene is a cluster of its own.
        fixed: splits given before. Other scenes of their clusters follow them; where those differ, train is taken.

    Returns:
        "train", "validation" or "test" for every scene of `places`.

    Raises:
        DataError: a coordinate that is none, or a split that is none.
    """
    from .sen12ms import HELD_OUT_SCENES

    fixed = {scene: split for scene, split in (fixed or {}).items() if scene in places}
    for scene, split in fixed.items():
        if split not in SPLITS:
            raise DataError(f"{scene}: split must be one of {SPLITS}, found {split!r}")
    unknown = sorted(scene for scene, place in places.items() if place is None)
    if unknown:
        logger.warning(
            "%d scenes without coordinates, split by name alone, so that they may share ground with others: %s",
            len(unknown), ", ".join(unknown[:5]),
        )  # fmt: skip
    splits = {}
    for cluster in _clusters(places):
        test = HELD_OUT_SCENES.intersection(cluster)
        before = {fixed[scene] for scene in cluster if scene in fixed} - {"test"}
        if len(before) > 1:
            logger.warning("scenes of both train and validation are neighbours: %s", ", ".join(cluster))
        if before:
            rest = "train" if "train" in before else "validation"
        else:
            rest = "validation" if not test and _draw(cluster[0]) < VALIDATION_SHARE else "train"
        splits |= {scene: "test" if scene in test else rest for scene in cluster} | {
            scene: fixed[scene] for scene in cluster if scene in fixed
        }
    return {scene: splits[scene] for scene in places}


def scene_places(source) -> dict[str, tuple[float, float] | None]:
    """Centre of each scene of a source, longitude and latitude in degrees.

    Of a SEN12MS tree, the place of the patch nearest the middle of the scene: one file of each scene is opened. Of a
    source whose columns hold `scene`, `lon` and `lat`, their mean. None where nothing can be read.
    """
    columns = source.columns()
    scenes = columns["scene"]
    names, number = np.unique(scenes.astype(str), return_inverse=True)
    if "lon" in columns and "lat" in columns:
        return _mean_places(names, number, columns["lon"], columns["lat"])
    patches = np.array([int(id.rpartition("_p")[2]) for id in source.ids])
    order = np.lexsort((patches, from_middle(patches), number))
    starts = np.searchsorted(number[order], np.arange(len(names)))
    stops = np.append(starts[1:], len(order))
    return {
        name: _place_of(source, order[start : min(stop, start + _TRIES)].tolist())
        for name, start, stop in zip(names.tolist(), starts, stops, strict=True)
    }


def _mean_places(names: np.ndarray, number: np.ndarray, lon: np.ndarray, lat: np.ndarray) -> dict:
    lon, lat = (np.array([np.nan if v is None else v for v in column], float) for column in (lon, lat))
    places = {}
    for n, name in enumerate(names.tolist()):
        here = (number == n) & np.isfinite(lon) & np.isfinite(lat)
        mean = _vectors(np.stack([lon[here], lat[here]], axis=1)).mean(axis=0) if here.any() else None
        places[name] = None if mean is None else (
            float(np.degrees(np.arctan2(mean[1], mean[0]))),
            float(np.degrees(np.arctan2(mean[2], np.hypot(mean[0], mean[1])))),
        )  # fmt: skip
    return places


def from_middle(patches: np.ndarray) -> np.ndarray:
    """How far each patch number is from the middle of its scene, in patches, whichever side the scene has."""
    away = [np.hypot(patches // side - (side - 1) / 2, patches % side - (side - 1) / 2) for side in _SIDES]
    return np.maximum(*away)


def _place_of(source, rows: Sequence[int]) -> tuple[float, float] | None:
    from .geotiff import read_geotiff

    for row in rows:
        paths = source.paths(row)
        try:
            _, info = read_geotiff(paths.get("s1") or paths["s2"])
        except DataError as error:
            logger.warning("no place from it: %s", error)
            continue
        if info.lon is not None and info.lat is not None:
            return info.lon, info.lat
    return None


def _clusters(places: Mapping[str, tuple[float, float] | None]) -> list[list[str]]:
    """Scenes joined by chains of neighbours, each cluster in the order of its names."""
    names = sorted(places, key=_order)
    known = [name for name in names if places[name] is not None]
    points = np.array([places[name] for name in known], float).reshape(-1, 2)
    for name, (lon, lat) in zip(known, points.tolist(), strict=True):
        if not (abs(lon) <= 360 and abs(lat) <= 90):
            raise DataError(f"{name}: longitude {lon} and latitude {lat} are no place on Earth, in degrees")
    at = _vectors(points)
    # The chord of 60 km is 60 km to a metre; subtracting keeps more digits than a dot product.
    label = np.arange(len(known))
    near = [np.linalg.norm(at - here, axis=1) * _EARTH_KM < NEIGHBOUR_KM for here in at]
    changed = True
    while changed:
        smallest = np.array([label[row].min() for row in near], int)
        changed, label = bool((smallest != label).any()), smallest
    joined = [[known[k] for k in np.flatnonzero(label == first)] for first in np.unique(label)]
    return joined + [[name] for name in names if places[name] is None]


def _vectors(points: np.ndarray) -> np.ndarray:
    """Degrees (n, 2), longitude and latitude -> unit vectors (n, 3)."""
    lon, lat = np.radians(points).T
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)


def _order(scene: str) -> tuple:
    """Sort key of names, their numbers by value."""
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else part) for part in re.split(r"(\d+)", scene))


def _draw(scene: str) -> float:
    """0 to 1, fixed for a name."""
    return int.from_bytes(hashlib.blake2b(scene.encode(), digest_size=8).digest()) / 2**64


__all__ = ["NEIGHBOUR_KM", "SPLITS", "from_middle", "scene_places", "scene_splits"]
