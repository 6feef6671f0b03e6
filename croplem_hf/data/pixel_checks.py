"""What `croplem data check` looks for in pixels: each look gives what it found, never raises over data.

A threshold is a share of pixels. On real patches of SEN12MS (land, coast, open sea) nothing here is an error.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..errors import DataError
from ..sensors import S1_BANDS, S2_BANDS, harmonise_s1, harmonise_s2, misplaced_b10
from .landcover import IGBP
from .sample import Sample

KINDS = {
    "unreadable": "the file is no raster, or the item cannot be read",
    "empty": "the file has no byte",
    "truncated": "the file is cut short or damaged inside",
    "band_count": "another number of bands than 2 (s1), 13 (s2) or 4 (lc)",
    "dtype": "another type than float (s1), uint16 (s2), uint8 or uint16 (lc)",
    "no_data": "no valid pixel",
    "nan": "NaN or infinite pixels",
    "fill": "pixels without a measurement",
    "constant": "a band has one value only; an error where every band has",
    "saturated": "many pixels at one end of the values: clipped or saturated",
    "clouds": "much of B02 is as bright as cloud or snow",
    "units": "linear power or reflectance, which readers convert; an error where the units are unknown",
    "offset": "the offset of +1000, which readers take off; an error where it may or may not be there",
    "corrected": "readers convert something else, as said",
    "band_order": "bands seem to be in another order",
    "grid": "radar, optics and land cover lie on different grids",
    "place": "no coordinate system",
    "land_cover": "IGBP codes outside 1 to 17",
    "missing_partner": "a file of radar, optics or land cover is missing that others of the season have",
    "duplicate": "the same patch twice, or the same pixels under two ids",
    "season": "a season that is none of winter, spring, summer, fall",
    "known_bad": "documented as damaged by those who published it",
    "not_a_file": "a folder or a dead link in the place of a file, or a folder that cannot be read",
    "shard": "a shard that is not as it was built",
}
"""Kind of a finding -> what it means."""

FEW = 16
"""Bands with fewer valid values say nothing about clipping or constancy."""

FILL_SHARE = 0.01
"""Borders of products leave some fill at the edge of a scene; more than a hundredth is worth a look."""

MASKED_SHARE = 0.5
"""Masks of samples hold clouds and months without a measurement too, so only more than half is worth a look."""

CLIPPED_SHARE = {"s1": 0.05, "s2": 0.01}
"""Share at the very end of a band's values. Real patches have up to 0.004 of radar (VV at 0 dB over towns) and 0.001 of
bright optics there."""

ZERO_SHARE = 0.05
"""Share of an optical band at 0 where others are not: clipped below, or lost. B10 is as dark by nature."""

CLOUD_BLUE, CLOUD_SHARE = 3000, 0.1
"""Clear land is below 0.3 in B02 at the top of the atmosphere, bright desert too; cloud, snow and salt are above."""

BRIGHT = 10_000
"""The highest value of an optical band is looked at for clipping from here on: reflectance of 1."""

_NUMBER = {"s1": 2, "s2": 13, "lc": 4}


class Look(NamedTuple):
    """One thing found: its kind, "error" (the item cannot be used) or "warning", what, and the share of pixels."""

    kind: str
    severity: str
    detail: str
    share: float | None = None


def look_at_raster(sensor: str, values: np.ndarray, nodata: float | None, where: str) -> Iterator[Look]:
    """All that can be told of the raster of one sensor.

    Args:
        sensor: "s1", "s2" or "lc".
        values: (bands, H, W) as stored.
        nodata: of the file, None for none.
        where: its path, for the names of products that tell the offset and the words of messages.
    """
    if len(values) != _NUMBER[sensor]:
        yield Look("band_count", "error", f"{len(values)} bands, expected {_NUMBER[sensor]}")
        return
    if sensor == "lc":
        yield from _look_at_land_cover(values)
        return
    if (values.dtype.kind != "f") if sensor == "s1" else (values.dtype != np.uint16):
        yield Look("dtype", "warning", f"{values.dtype}, SEN12MS has {'float32' if sensor == 's1' else 'uint16'}")
    # As the readers have it: fill is 0 in all bands, or the nodata value in any band of radar, in all of optics.
    fill = ~values.any(axis=0)
    if nodata is not None:
        given = values == np.asarray(nodata).astype(values.dtype, casting="unsafe")
        fill |= given.any(axis=0) if sensor == "s1" else given.all(axis=0)
    broken = np.zeros_like(fill)
    if values.dtype.kind == "f":
        broken = ~np.isfinite(values).all(axis=0) & ~fill
    valid = ~fill & ~broken
    if not valid.any():
        yield Look("no_data", "error", "every pixel is NaN, infinite, 0 or nodata", 1.0)
        return
    if broken.any():
        share = float(broken.mean())
        yield Look("nan", "warning", f"{_percent(share)} of the pixels are NaN or infinite", share)
    if fill.mean() > FILL_SHARE:
        share = float(fill.mean())
        yield Look("fill", "warning", f"{_percent(share)} of the pixels are 0 or nodata", share)
    pixels = values.reshape(len(values), -1) if valid.all() else values[:, valid]
    constant = [name for name, band in zip(_names(sensor), pixels, strict=True) if _is_constant(band)]
    if len(constant) == len(pixels):
        yield Look("constant", "error", "every band has one value only")
        return
    corrected, looks = _corrected(sensor, pixels, where)
    yield from looks
    if corrected is not None:
        yield from look_at_bands(sensor, dict(zip(_names(sensor), corrected, strict=True)))


def look_at_sample(sample: Sample) -> Iterator[tuple[str, Look]]:
    """(sensor, what was found) in a sample that could be read; sensors of samples are corrected already."""
    for sensor in ("s1", "s2"):
        if sample[sensor] is None:
            continue
        valid = sample[f"{sensor}_valid"]
        missing = 1 - float(valid.mean())
        if missing > MASKED_SHARE:
            yield sensor, Look("fill", "warning", f"{_percent(missing)} of the pixels are not valid or masked", missing)
        bands = {}
        for k, name in enumerate(_names(sensor)):
            dates = np.ones(len(valid), bool) if sensor == "s1" else sample["s2_bands"][:, k]
            if dates.any():
                bands[name] = sample[sensor][dates, k][valid[dates]]
        yield from ((sensor, look) for look in look_at_bands(sensor, bands))
        note = sample.get(f"{sensor}_correction")
        if note:
            yield sensor, Look(_note_kind(note), "warning", f"readers correct: {note}")
    if sample["lc"] is not None and sample.get("igbp") is not None:
        yield from (("lc", look) for look in _look_at_land_cover(sample["lc"]))


def look_at_bands(sensor: str, bands: Mapping[str, np.ndarray]) -> Iterator[Look]:
    """What the valid values tell, by band: dB of radar, digital numbers of optics."""
    bands = {name: values for name, values in bands.items() if values.size >= FEW}
    if not bands:
        return
    constant = [name for name, values in bands.items() if _is_constant(values)]
    if constant:
        yield Look("constant", "warning", f"one value only in {', '.join(constant)}")
    clipped = {}
    for name, values in bands.items():
        if name in constant:
            continue
        low, high = values.min(), values.max()
        ends = (low, high) if sensor == "s1" else (high,) if high >= BRIGHT else ()
        for end in ends:
            count = int(np.count_nonzero(values == end))
            if count >= FEW and count > CLIPPED_SHARE[sensor] * values.size:
                clipped.setdefault(f"{end:.6g}", {})[name] = count / values.size
        if sensor == "s2" and name != "B10" and low <= 0:
            share = np.count_nonzero(values <= 0) / values.size
            if share > ZERO_SHARE:
                clipped.setdefault("0", {})[name] = share
    for end, shares in clipped.items():
        share = max(shares.values())
        names = "all bands" if len(shares) == len(_names(sensor)) else ", ".join(shares)
        yield Look("saturated", "warning", f"up to {_percent(share)} at {end} in {names}", share)
    if sensor == "s1" and len(bands) == 2:
        vv, vh = (float(np.median(bands[name])) for name in S1_BANDS)
        if vh > vv:
            yield Look("band_order", "warning", f"the median of VH is {vh:.1f} dB, above that of VV, {vv:.1f}")
    if sensor == "s2":
        # Where B10 itself is dark, as nearly everywhere, nothing can be in its place.
        if len(bands) == len(S2_BANDS) and np.median(bands["B10"]) > 500:
            dark = misplaced_b10([float(np.median(values)) for values in bands.values()])
            if dark:
                yield Look("band_order", "warning", f"{dark} is as dark as B10 should be, and B10 is bright")
        share = float((bands["B02"] > CLOUD_BLUE).mean()) if "B02" in bands else 0.0
        if share > CLOUD_SHARE:
            yield Look("clouds", "warning", f"{_percent(share)} of B02 above {CLOUD_BLUE}: cloud, snow or salt", share)


def _corrected(sensor: str, pixels: np.ndarray, where: str) -> tuple[np.ndarray | None, list[Look]]:
    """Pixels (bands, N) in the units of a sample, None where those are not known; and what that tells."""
    if sensor == "s1":
        try:
            values, note = harmonise_s1(pixels, where=where)
        except DataError as error:
            return None, [Look("units", "error", words(error, where))]
        if not np.isfinite(values).all(axis=0).any():
            return None, [Look("no_data", "error", "no pixel is within the range of radar", 1.0)]
        values = values[:, np.isfinite(values).all(axis=0)]
        return values, [Look("units", "warning", f"readers correct: {note}")] if note else []
    stack = pixels[None, :, None]
    try:
        harmonise_s2(stack, offset=0, where=where)
    except DataError as error:
        return None, [Look("units", "error", words(error, where))]
    try:
        values, note = harmonise_s2(stack, where=where)
    except DataError as error:
        return None, [Look("offset", "error", words(error, where))]
    notes = note.split("; ") if note else []
    return values[0, :, 0], [Look(_note_kind(part), "warning", f"readers correct: {part}") for part in notes]


def _look_at_land_cover(values: np.ndarray) -> Iterator[Look]:
    if values.dtype not in (np.uint8, np.uint16):
        yield Look("dtype", "error", f"{values.dtype}, expected uint8 or uint16")
        return
    strange = (values[0] < min(IGBP)) | (values[0] > max(IGBP))
    if strange.any():
        codes = ", ".join(str(code) for code in np.unique(values[0][strange])[:5])
        share = float(strange.mean())
        yield Look("land_cover", "warning", f"{_percent(share)} of the IGBP codes are none, such as {codes}", share)


def words(error: Exception, where: str) -> str:
    """The message without the path, which stands beside it, on one line."""
    return " ".join(str(error).removeprefix(f"{where}: ").split())


def _note_kind(note: str) -> str:
    return "offset" if note.startswith("offset") else "units" if " to " in note else "corrected"


def _names(sensor: str) -> tuple[str, ...]:
    return S1_BANDS if sensor == "s1" else S2_BANDS


def _is_constant(values: np.ndarray) -> bool:
    return values.size >= FEW and values.min() == values.max()


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


__all__ = ["KINDS", "Look", "look_at_bands", "look_at_raster", "look_at_sample", "words"]
