"""What a head's training data were, so that a map asks it for the same; and what of that a scene does not have."""

import dataclasses
import logging

from ..data.folder import Scene
from ..embedding import Embedder, default_patch_size
from ..embedding_options import pooling_name
from ..errors import DataError
from ..heads import Head

logger = logging.getLogger(__name__)

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
    pooling: str = "default"
    truncate_dim: int | None = None

    @property
    def encode(self) -> dict:
        """Arguments of `Embedder.encode`."""
        return {
            "sensors": self.sensors, "patch_size": self.patch_size, "centre": self.centre, "pooling": self.pooling,
            "truncate_dim": self.truncate_dim,
        }  # fmt: skip

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a window."""
        return self.height, self.width

    def pixels_per_token(self, embedder: Embedder) -> int:
        """The patch size that `Embedder.encode` takes for such a window."""
        return int(self.patch_size or min(default_patch_size(*self.size), 2 * embedder.model.config.patch_size))


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
        pooling_name(info.get("pooling")),
        info.get("truncate_dim"),
    )
    if unit not in ("series", "patch", None):
        remedy = "; such a head tells the class of whole fields: predict from embeddings of fields" * (unit == "field")
        raise DataError(f"the head was fitted on embeddings of unit {unit!r}, a map needs 'series' or 'patch'{remedy}")
    head.check_settings(embedder.info(unit, **settings.encode))
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
    for sensor in sensors.split("+"):
        least, most = head.patch_.get(f"{sensor}_date_count") or (None, None)
        here = len(scene.dates[sensor])
        if most and not least <= here <= most:
            different.append(f"{least if least == most else f'{least} to {most}'} dates of {sensor}, here {here}")
    if head.patch_.get("gsd") is None:
        different.append(f"pixels of unknown size, here {scene.gsd:.4g} m")
    if different:
        logger.warning("%s: the head was fitted on %s; check the map", scene.id, ", and on ".join(different))


__all__ = ["MapSettings", "map_settings"]
