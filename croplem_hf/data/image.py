"""One sensor of one place at one time: what its rasters hold, their units and offset, clouds and nodata."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..sensors import (
    BASELINE_0400,
    L2A_BANDS,
    S1_RANGE_DB,
    S2_BANDS,
    S2_OFFSET,
    SENSORS,
    Decision,
    decide_s1_units,
    decide_s2_offset,
    decide_s2_units,
    harmonise_s1,
    harmonise_s2,
    misplaced_b10,
    offset_by_name,
    offset_note,
    settled_reflectance,
)
from .layer import Layer
from .metadata import CHANNELS, CLOUD_BANDS
from .sample import parse_date

SCL_BAD = (0, 1, 3, 8, 9, 10)
"""Scene classes that are no view of the ground: nodata, defective, cloud shadow, cloud (two), cirrus (ESA, Sen2Cor)."""

QA60_BAD = 1 << 10 | 1 << 11
"""Bits of opaque cloud and cirrus in Earth Engine's QA60."""

# Sentinel Hub's CLP runs to 255, every other probability in integers to 100.
_FULL = {"CLP": 255}
_LEVEL = re.compile(r"L1C|L2A")
_KIND = re.compile(r"(?<![A-Z])(?:(GAMMA0|GAMMA_?NAUGHT|RTC)|(SIGMA0|SIGMA_?NAUGHT))(?![A-Z])")


@dataclasses.dataclass
class Image:
    """One sensor at one time: its rasters and masks, and what was decided about their numbers.

    layers: that hold channels, and those of clouds. offset: None where the numbers do not tell (`evidence` says what
    was found), until `settle_offsets` asks the other dates. clouds: what full cloud is in each band of probability.
    """

    sensor: str
    date: str
    layers: list[Layer]
    masks: list[Layer]
    units: str = "auto"
    offset: int | str | None = "auto"
    evidence: str = ""
    clouds: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def where(self) -> str:
        row = self.layers[0].row
        return f"{row.where} ({row.path.name})"

    @property
    def exists(self) -> np.ndarray:
        """bool (C,), which bands there are."""
        return np.array([any(name in layer.bands for layer in self.layers) for name in CHANNELS[self.sensor]])

    @property
    def correction(self) -> str | None:
        """What is done to the stored numbers, in words that are the same for all like cases."""
        notes = ["scale tags applied"] if any(layer.scaling for layer in self.layers) else []
        notes += {"linear": ["linear power to dB"], "reflectance": ["reflectance to DN"]}.get(self.units, [])
        notes += [offset_note(self.evidence)] if self.offset == S2_OFFSET else []
        return "; ".join(notes) or None

    def stored(self, get: Callable[[Layer], dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (C, h, w) as stored, scale tags applied and 0 where invalid; and bool (h, w), which are valid."""
        names = CHANNELS[self.sensor]
        holders = [layer for layer in self.layers if set(layer.bands) & set(names)]
        plain = self.sensor == "s2" and all(x.dtype == np.uint16 and x.scaling is None for x in holders)
        values, valid, seen = None, True, False
        for layer in self.layers:
            planes = get(layer)
            for name in layer.bands:
                band = planes[name]
                valid = valid & ~layer.is_missing(band)
                if name not in names:
                    valid = valid & ~self._is_cloud(name, band, layer.row.cloud_threshold / 100)
                    continue
                if values is None:
                    values = np.zeros((len(names), *band.shape), np.uint16 if plain else np.float32)
                # 0 is the fill of the products where all bands are 0; in a single band it may be a dark measurement.
                seen = seen | (band != 0)
                scale, shift = (layer.scaling or {}).get(name, (None, None))
                values[names.index(name)] = band if scale is None else band * scale + shift
        for mask in self.masks:
            valid = valid & (get(mask)["mask"] == 0)
        valid = valid & seen
        values[:, ~valid] = 0
        return values, valid

    def _is_cloud(self, name: str, band: np.ndarray, threshold: float) -> np.ndarray | bool:
        """bool (h, w), where a band that is no channel says that the ground is not seen."""
        if name == "SCL":
            return np.isin(band, SCL_BAD)
        if name == "QA60":
            return (np.nan_to_num(band).astype(np.int64) & QA60_BAD) != 0
        if name in CLOUD_BANDS:
            share = band / np.float32(self.clouds.get(name, 100))
            # Half of the smallest step, so that a clear share of 0.6 is not cloud of 0.4 by rounding.
            return 1 - share > threshold + 1e-6 if name.startswith("CS") else share >= threshold - 1e-6
        return False

    def measured(self, get: Callable[[Layer], dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (C, h, w) in dB (NaN where invalid) or DN without offset (0 there), and bool (h, w), valid."""
        values, valid = self.stored(get)
        if self.units == "auto":
            # The overview met no valid pixel to judge by: what few there are stay unused.
            values[:], valid[:] = 0, False
        if self.sensor == "s2":
            options = {"units": self.units, "offset": self.offset, "bands": self.exists[None], "where": self.where}
            return harmonise_s2(values[None], **options)[0][0], valid
        if self.units == "db":
            # Single pixels beyond the range are artefacts of borders; `decide` has refused rasters full of them.
            valid = valid & ((values >= S1_RANGE_DB[0]) & (values <= S1_RANGE_DB[1])).all(axis=0)
        values[:, ~valid] = np.nan
        values = harmonise_s1(values, units=self.units, where=self.where)[0]
        valid = valid & np.isfinite(values).all(axis=0)
        values[:, ~valid] = np.nan
        return values, valid

    def decide(self, shape: tuple[int, int]) -> None:
        """Settle units and offset for good by an overview: a window of dark water says nothing.

        Raises:
            DataError: the numbers fit no units, or names and numbers contradict about the offset.
        """
        for key in ("units", "offset"):
            said = {getattr(layer.row, key) for layer in self.layers} - {"auto"}
            if len(said) > 1:
                raise DataError(f"{self.where}: {key} differ among the bands of one image: {sorted(map(str, said))}")
            setattr(self, key, said.pop() if said else "auto")
        overviews = defaultdict(dict)
        for layer in (*self.layers, *self.masks):
            overviews[layer.path] |= layer.overview(shape)
        self._drop_empty_bands(overviews)
        self._check_bands()
        self._decide_clouds(overviews)
        values, valid = self.stored(lambda layer: overviews[layer.path])
        if valid.any():
            (self._decide_radar if self.sensor == "s1" else self._decide_optics)(values, valid)

    def _drop_empty_bands(self, overviews: dict[Path, dict[str, np.ndarray]]) -> None:
        """A channel that is 0 or missing all over, where others are not, does not exist (B10 in 13 bands of L2A)."""
        empty = {
            (layer.path, name): bool((layer.is_missing(band) | (band == 0)).all())
            for layer in self.layers
            for name, band in overviews[layer.path].items()
            if name in CHANNELS[self.sensor]
        }
        if not all(empty.values()):
            self.layers = [x.without([n for n in x.bands if empty.get((x.path, n))]) for x in self.layers]

    def _check_bands(self) -> None:
        found = " ".join(sorted({name for layer in self.layers for name in layer.bands})) or "none"
        if self.sensor == "s1" and not self.exists.all():
            raise DataError(f"{self.where}: radar needs VV and VH at each time, found {found} with values in it")
        if not self.exists.any():
            raise DataError(f"{self.where}: no optical band with values among its rasters, found {found}")

    def _decide_clouds(self, overviews: dict[Path, dict[str, np.ndarray]]) -> None:
        """What full cloud is: 1, 100 or (CLP) 255."""
        for layer in self.layers:
            for name in set(layer.bands) & set(CLOUD_BANDS):
                band = overviews[layer.path][name]
                seen = band[~layer.is_missing(band)]
                high = float(seen.max(initial=0))
                full = _FULL.get(name, 100)
                if seen.dtype.kind == "f" and high <= 1:
                    full = 1
                if high > full or float(seen.min(initial=0)) < 0:
                    raise DataError(
                        f"{self.where}: the cloud probability {name} in {layer.path} runs from {seen.min():.4g} to "
                        f"{high:.4g}; expected 0..1 or 0..{full}. Bring it to percent, or give a mask instead"
                    )
                self.clouds[name] = full

    def _decide_radar(self, values: np.ndarray, valid: np.ndarray) -> None:
        seen = values[:, valid]
        if self.units == "auto":
            decision = decide_s1_units(seen)
            if decision.value is None:
                raise DataError(
                    f"{self.where}: {decision.evidence}; calibrate to sigma0 or gamma0 first, or say db or linear in "
                    "column units"
                )
            self.units = decision.value
        harmonise_s1(seen, units=self.units, where=self.where)

    def _decide_optics(self, values: np.ndarray, valid: np.ndarray) -> None:
        seen = values[self.exists][:, valid]
        if any(x.dtype == np.uint8 and set(x.bands) & set(S2_BANDS) and not x.scaling for x in self.layers):
            raise DataError(
                f"{self.where}: optics of 8 bits are a picture, no measurement; export digital numbers or reflectance"
            )
        if self.units == "auto":
            decision = decide_s2_units(seen)
            if decision.value is None:
                raise DataError(f"{self.where}: {decision.evidence}; say dn or reflectance in column units")
            self.units = decision.value
        numbers = np.zeros((len(S2_BANDS), seen.shape[1]), np.float32)
        numbers[self.exists] = seen * np.float32(10000 if self.units == "reflectance" else 1)
        self._check_order(numbers)
        if self.offset == "auto":
            decision = self._find_offset(decide_s2_offset(numbers, self.exists))
            self.offset, self.evidence = decision.value, decision.evidence

    def _check_order(self, numbers: np.ndarray) -> None:
        """Refuse 13 bands where another one than B10 is nearly black (EuroSAT stores B8A last)."""
        if not self.exists.all() or self.layers[0].row.bands:
            return
        black = misplaced_b10(np.median(numbers, axis=1))
        if black:
            raise DataError(
                f"{self.where}: the band in the place of {black} is nearly black and B10 is not: are they in another "
                f"order than {' '.join(S2_BANDS)}? Name them in column bands"
            )

    def _find_offset(self, seen: Decision) -> Decision:
        """The offset by what names and tags say and by the dark pixels, which must not contradict."""
        if self.units == "reflectance":
            return settled_reflectance(seen, self.where)
        layer = next(x for x in self.layers if set(x.bands) & set(S2_BANDS))
        if layer.scaling:
            return Decision(0, "scale tags")
        named = offset_by_name(layer.path.as_posix(), layer.tags)
        if named.value is None or named.value == seen.value:
            return seen
        # Names are right about a bright place, and wrong where something has been done to the numbers.
        if seen.value is not None:
            raise DataError(
                f"{self.where}: {named.evidence}: an offset of {named.value}, but by its numbers it is {seen.value} "
                f"({seen.evidence}). Was it taken off already? Say 0 or {S2_OFFSET} in column offset"
            )
        return named

    def kind(self) -> str | None:
        """sigma0 or gamma0, by the table, else by the names of the files and their folder; None where none tells.

        Raises:
            DataError: the table says both.
        """
        said = {layer.row.kind for layer in self.layers} - {None}
        if len(said) > 1:
            raise DataError(f"{self.where}: column kind says both {' and '.join(sorted(said))}")
        if not said:
            names = " ".join(f"{x.path.parent.name} {x.path.name}" for x in self.layers).upper()
            said = {"gamma0" if gamma else "sigma0" for gamma, _ in _KIND.findall(names)}
        return said.pop() if len(said) == 1 else None

    def level(self) -> str:
        """L1C or L2A, by the table, else by the names of the files and the bands.

        Raises:
            DataError: none of them tells, or they disagree.
        """
        said = {layer.row.level for layer in self.layers} - {None}
        if not said:
            said = {name for layer in self.layers for name in _LEVEL.findall(layer.path.as_posix().upper())}
            said |= {"L1C"} if self.exists[S2_BANDS.index("B10")] else set()
            said |= {"L2A"} if tuple(self.exists) == L2A_BANDS else set()
        if len(said) != 1:
            found = " and ".join(sorted(said)) or "unknown"
            raise DataError(f"{self.where}: the level of these optics is {found}; say L1C or L2A in column level")
        return said.pop()


def group_images(layers: Sequence[Layer], grid: Layer) -> dict[str, list[Image]]:
    """Layers -> images of each sensor in order of time."""
    found = defaultdict(list)
    for layer in layers:
        day = parse_date(layer.row.date, layer.row.where).isoformat()
        found[layer.row.sensor, day, layer.row.date].append(layer)
    images = {sensor: [] for sensor in SENSORS}
    for (sensor, day, _), group in sorted(found.items(), key=lambda item: item[0]):
        owner = {}
        for layer in group:
            for name in layer.bands:
                if name in owner:
                    raise DataError(
                        f"{layer.row.where}: band {name} of {day} stands in {owner[name].path} too; give two "
                        "acquisitions of one day their times (2021-06-15T05:40), or the places different ids"
                    )
                owner[name] = layer
        extra = {}
        for column in ("mask", "clouds"):
            rows = {getattr(layer.row, column): layer.row for layer in group if getattr(layer.row, column)}
            extra[column] = [Layer.open(row, column).fitted(grid) for row in rows.values()]
        images[sensor].append(Image(sensor, day, group + extra["clouds"], extra["mask"]))
    return images


def settle_offsets(images: Sequence[Image]) -> None:
    """Decide the offset of dates that are too bright to tell by the other dates of the place in the same units.

    Providers changed to baseline 04.00 on one day, so only dates on the same side of it count, two at least and all
    of one mind.

    Raises:
        DataError: naming the first date that stays undecided.
    """
    certain = [image for image in images if image.offset in (0, S2_OFFSET)]
    for image in [image for image in images if image.offset is None]:
        like = [
            other.offset
            for other in certain
            if other.units == image.units and (other.date < BASELINE_0400) == (image.date < BASELINE_0400)
        ]
        if len(like) < 2 or len(set(like)) > 1:
            raise DataError(f"{image.where}: {image.evidence}; say 0 or {S2_OFFSET} in column offset")
        image.offset, image.evidence = like[0], "other dates"


__all__ = ["Image", "group_images", "settle_offsets"]
