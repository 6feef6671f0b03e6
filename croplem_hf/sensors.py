"""What Sentinel-1 and Sentinel-2 measure: bands, order, wavelengths, statistics, units and their detection."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from .errors import DataError

S1_BANDS = ("VV", "VH")
"""Order of the radar channels (polarisations), backscatter in dB."""

S2_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""Order of the optical bands, as in SEN12MS."""

S2_WAVELENGTHS_NM = (442.7, 492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 945.1, 1373.5, 1613.7, 2202.4)
"""Central wavelengths of Sentinel-2A (ESA, Sentinel-2 MSI spectral responses v3.1)."""

S2_RESOLUTION_M = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20)
"""Native ground sampling distance of each band."""

S2_LEVELS = ("L1C", "L2A")
"""Processing levels: top-of-atmosphere and bottom-of-atmosphere reflectance. L2A has no B10."""

L2A_BANDS = tuple(band != "B10" for band in S2_BANDS)
"""Which of `S2_BANDS` exist at level L2A."""

SENSORS = ("s1", "s2")

# SEN12MS, sigma0 in dB: means and standard deviations in common use with the dataset.
S1_MEAN = (-11.76858, -18.294598)
S1_STD = (4.525339, 4.3586307)
# SSL4EO-S12 (Wang et al. 2023, arXiv 2211.07044), L1C digital numbers: one published set that holds all 13 bands.
S2_MEAN = (
    1605.58, 1390.78, 1314.87, 1363.52, 1549.44, 2091.75, 2371.72, 2299.90, 2560.30, 830.07, 22.10, 2177.07, 1524.07,
)  # fmt: skip
S2_STD = (
    786.79, 850.35, 875.06, 1138.85, 1122.18, 1161.59, 1274.39, 1248.43, 1345.53, 577.32, 51.15, 1336.10, 1136.54,
)  # fmt: skip

S1_RANGE_DB = (-60.0, 40.0)
"""Backscatter outside this range is not calibrated dB: scaled integers, amplitudes or uncalibrated counts."""

S2_OFFSET = 1000
"""Radiometric offset of processing baseline 04.00 and later: reflectance = (DN - 1000) / 10000."""

BASELINE_0400 = "2022-01-25"
"""The day from which new products carry the offset (ESA); reprocessed ones carry it at any date."""

_B10 = S2_BANDS.index("B10")
# Bands that water, shadow and dense crops darken each in its own part of the spectrum.
_PARTS = {"visible": S2_BANDS[:5], "near infrared": S2_BANDS[5:9], "shortwave infrared": S2_BANDS[11:]}
# Where the darkest ground lies with the offset: reflectance -0.015 to 0.015, as far as atmospheric correction errs.
_FLOOR = (850, 1150)
# With the offset a hundredth of the pixels below this would reflect less than -0.02, which only water does.
_DARK = 800
# Fewer pixels than these say nothing about the darkest of a place, and about B10, which is as dark everywhere.
_ENOUGH, _ENOUGH_B10 = 10_000, 4
# Where B10 lies with the offset and without cirrus, which is uneven and brighter.
_STEADY = (980, 1100)
# With the offset B10 never falls so low.
_B10_CLEAR = 950
# A share of pixels beyond the range of dB that is put down to the borders of a raster.
_FEW = 0.01
_BASELINE = re.compile(r"_N(\d{2})\.?(\d{2})_")
_CALIBRATE = "Counts and amplitudes: calibrate to sigma0 or gamma0 first"
_OFFSET_TAG = re.compile(r"(?:BOA|RADIO)_ADD_OFFSET", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided about stored numbers, and why.

    value: the units, the offset, ...; None where nothing tells for certain.
    evidence: in a few words; what was found, where nothing tells.
    """

    value: str | int | None
    evidence: str


def decide_s1_units(values: np.ndarray) -> Decision:
    """"db" or "linear" (power) for backscatter of any shape; NaN, infinite and 0 are not looked at.

    Nearly all surfaces return less than they receive: dB is below 0, and linear power below 1 (of which the removal of
    noise leaves a few values below 0).
    """
    seen = values[np.isfinite(values) & (values != 0)]
    if seen.size == 0:
        return Decision("db", "no value")
    negative = float((seen < 0).mean())
    if negative >= 0.5:
        return Decision("db", f"{negative:.0%} of the values below 0")
    middle = float(np.median(seen))
    found = f"a median of {middle:.4g} and {negative:.0%} of the values below 0"
    if negative <= 0.05 and middle <= 1:
        return Decision("linear", found)
    return Decision(None, f"radar with {found}, neither dB nor linear power")


def decide_s2_units(values: np.ndarray) -> Decision:
    """"dn" or "reflectance" (0..1) for optics of any shape; NaN, infinite and 0 are not looked at."""
    if values.dtype == np.uint8:
        return Decision(None, "8-bit numbers, which are a picture and no measurement")
    if values.dtype.kind != "f":
        return Decision("dn", "integers")
    seen = values[np.isfinite(values) & (values != 0)]
    if seen.size == 0:
        return Decision("dn", "no value")
    middle, high = (float(v) for v in np.percentile(seen, (50, 99)))
    if high <= 2:
        return Decision("reflectance", f"99 % of the values up to {high:.4g}")
    if high > 100:
        return Decision("dn", f"values up to {high:.4g}")
    return Decision(None, f"optics with a median of {middle:.4g} and 99 % up to {high:.4g}, neither DN nor reflectance")


def decide_s2_offset(values: np.ndarray, exists: np.ndarray | None = None) -> Decision:
    """0 or 1000 for the digital numbers of one date, by its darkest pixels.

    B10 is nearly black everywhere, so with it the case is clear but for thick cirrus. Without B10, dark
    pixels in any band rule the offset out, and only a place that has pixels at about 1000, and none below, in the
    visible, the near infrared and the shortwave infrared carries it for certain: bright sand has none in the infrared,
    snow none in the visible. Everything else (clouds, haze, a few bright pixels) is not decided.

    Args:
        values: (13, ...) in the order of `S2_BANDS`; 0 and NaN are missing.
        exists: bool (13,), the bands that exist; None for all.
    """
    ends, sizes = {}, {}
    for k, name in enumerate(S2_BANDS):
        band = values[k].ravel()
        seen = band[(band != 0) & np.isfinite(band)] if exists is None or exists[k] else band[:0]
        if seen.size:
            ends[name], sizes[name] = [float(v) for v in np.percentile(seen, (0.1, 1, 50))], seen.size
    if not ends:
        return Decision(0, "no value")
    darkest = min(ends, key=lambda name: ends[name][1])
    found = f"the darkest hundredth of {darkest} is at {ends[darkest][1]:.0f}"
    if "B10" in ends:
        low, dark, middle = ends["B10"]
        if dark < _B10_CLEAR or ends[darkest][1] < _DARK:
            return Decision(0, found)
        steady = _STEADY[0] <= low and middle <= _STEADY[1] and sizes["B10"] >= _ENOUGH_B10
        if steady and ends[darkest][1] >= 900:
            return Decision(S2_OFFSET, "B10")
        return Decision(None, f"{found} and B10 is at {middle:.0f}: thick cloud or the offset of baseline 04.00")
    parts = {part: [ends[b][0] for b in bands if b in ends] for part, bands in _PARTS.items()}
    floors = {part: min(lows) for part, lows in parts.items() if lows}
    if all(_FLOOR[0] <= low <= _FLOOR[1] for low in floors.values()):
        if len(floors) == len(_PARTS) and min(sizes.values()) >= _ENOUGH:
            return Decision(S2_OFFSET, "dark pixels")
    elif ends[darkest][1] < _DARK:
        return Decision(0, found)
    return Decision(None, f"{found} and there is no B10: a bright place or the offset of baseline 04.00")


def offset_by_name(text: str, tags: Mapping[str, str] | None = None) -> Decision:
    """The offset that names and tags of a product tell: 0, 1000, or None where they tell nothing or disagree.

    Args:
        text: path of the file, as far as it may name the product: `_N0400_` (the baseline), or Earth Engine's
            HARMONIZED collections, which have the offset taken off.
        tags: of the file: `PROCESSING_BASELINE`, or `BOA_ADD_OFFSET` and `RADIO_ADD_OFFSET` with -1000 or 0.
    """
    found = {}
    for major, minor in _BASELINE.findall(text):
        found["baseline in the name"] = S2_OFFSET if (major, minor) >= ("04", "00") else 0
    if "HARMONIZED" in text.upper():
        found = {"HARMONIZED in the name": 0}
    said = {abs(int(n)) for key, v in (tags or {}).items() if _OFFSET_TAG.search(key) for n in re.findall(r"-?\d+", v)}
    baseline = re.fullmatch(r"(\d{2})\.(\d{2})", (tags or {}).get("PROCESSING_BASELINE", "").strip())
    if said:
        found = {"offset in the tags": S2_OFFSET if said == {S2_OFFSET} else 0 if said == {0} else None}
    elif baseline:
        found["baseline in the tags"] = S2_OFFSET if baseline.groups() >= ("04", "00") else 0
    if len(set(found.values())) == 1:
        return Decision(next(iter(found.values())), " and ".join(found))
    return Decision(None, "names and tags " + ("disagree: " + str(found) if found else "say nothing"))


def misplaced_b10(medians: Sequence[float]) -> str | None:
    """The band that is nearly black in the place of B10, whose values 13 bands in another order have; None if none is.

    Args:
        medians: of the 13 bands, digital numbers.
    """
    darkest = int(np.argmin(medians))
    if medians[darkest] < 100 and medians[_B10] > medians[darkest] + 500:
        return S2_BANDS[darkest]
    return None


def harmonise_s1(
    values: np.ndarray, *, units: str = "auto", where: str = "radar"
) -> tuple[np.ndarray, str | None]:
    """`s1_to_db`, and what was corrected in a few words that are the same for all like cases (None for nothing)."""
    if units not in ("auto", "db", "linear"):
        raise DataError(f"{where}: radar units must be 'db', 'linear' or 'auto', found {units!r}")
    values = np.asarray(values, np.float32)
    finite = np.isfinite(values)
    count = int(np.count_nonzero(finite))
    if count < values.size:
        values = np.where(finite, values, np.float32(np.nan))
    if count == 0:
        return values, None
    if units == "auto":
        decision = decide_s1_units(values)
        if decision.value is None:
            raise DataError(f"{where}: {decision.evidence}. {_CALIBRATE}, or say the units ('db' or 'linear')")
        units = decision.value
    note = None
    if units == "linear":
        with np.errstate(divide="ignore", invalid="ignore"):
            values = 10 * np.log10(values)
        # What the removal of noise left below the range is no measurement, however much of it there is.
        values[~(values >= S1_RANGE_DB[0])] = np.nan
        note = "linear power to dB"
    outside = (values < S1_RANGE_DB[0]) | (values > S1_RANGE_DB[1])
    wrong = int(np.count_nonzero(outside))
    if wrong > _FEW * count:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        raise DataError(
            f"{where}: radar values run from {low:.4g} to {high:.4g} dB, outside {S1_RANGE_DB}. Scale integers back to "
            f"dB (dB x 100 and dB x 10,000 are common), mark nodata by NaN or the file's nodata value. {_CALIBRATE}"
        )
    return (np.where(outside, np.float32(np.nan), values) if wrong else values), note


def harmonise_s2(
    values: np.ndarray,
    *,
    units: str = "auto",
    offset: int | str = "auto",
    bands: np.ndarray | None = None,
    where: str = "optics",
) -> tuple[np.ndarray, str | None]:
    """`s2_to_dn`, and what was corrected in a few words that are the same for all like cases (None for nothing)."""
    if units not in ("auto", "dn", "reflectance"):
        raise DataError(f"{where}: optical units must be 'dn', 'reflectance' or 'auto', found {units!r}")
    if offset not in ("auto", 0, S2_OFFSET):
        raise DataError(f"{where}: the radiometric offset must be 0, {S2_OFFSET} or 'auto', found {offset!r}")
    exists = np.ones(values.shape[:2], bool) if bands is None else np.asarray(bands, bool)
    if values.dtype == np.uint16 and units != "reflectance":
        dates = zip(exists[:, _B10], values, strict=True)
        # B10 alone settles nearly every patch, at a thirteenth of the cost.
        clear = offset == "auto" and all(there and 0 < date[_B10].max() < _B10_CLEAR for there, date in dates)
        if offset == 0 or clear:
            return values, None
    present = values[exists]
    present = present[np.isfinite(present)] if values.dtype.kind == "f" else present
    if present.size == 0 or not present.any():
        return values if values.dtype == np.uint16 else values.astype(np.float32), None
    if units == "auto":
        decision = decide_s2_units(present)
        if decision.value is None:
            raise DataError(f"{where}: {decision.evidence}; say the units ('dn' or 'reflectance')")
        units = decision.value
    low, high = float(present.min()), float(present.max())
    notes = []
    if units == "reflectance":
        if high > 20:
            raise DataError(f"{where}: values up to {high:.4g} are not reflectance 0..1; say units='dn'")
        values, notes = values.astype(np.float32) * np.float32(10000), ["reflectance to DN"]
    elif high > 65535 or low < -S2_OFFSET:
        raise DataError(f"{where}: values from {low:.4g} to {high:.4g} are not digital numbers 0..10000")
    shift = np.zeros(len(values), np.uint16)
    for t in range(len(values)):
        decision = Decision(offset, "")
        if offset == "auto":
            decision = decide_s2_offset(values[t], exists[t])
            decision = settled_reflectance(decision, where) if units == "reflectance" else decision
        if decision.value is None:
            raise DataError(f"{where}: {decision.evidence}; say 0 or {S2_OFFSET} as the offset (s2_offset)")
        shift[t] = decision.value
        if decision.value:
            notes.append(offset_note(decision.evidence))
    note = "; ".join(dict.fromkeys(notes)) or None
    if not shift.any():
        return values if values.dtype == np.uint16 else values.astype(np.float32), note
    shift = shift[:, None, None, None]
    if values.dtype == np.uint16:
        return np.maximum(values, shift) - shift, note
    return np.maximum(values.astype(np.float32) - shift, 0), note


def offset_note(evidence: str) -> str:
    """How a sample records that the offset was taken off, and why ("" where it was said)."""
    return f"offset {S2_OFFSET} off" + (f" ({evidence})" if evidence else "")


def settled_reflectance(decision: Decision, where: str) -> Decision:
    """The offset of reflectance, which by its name has none.

    Raises:
        DataError: the offset is there for certain: digital numbers were divided by 10,000 as they were.
    """
    if decision.value == S2_OFFSET:
        raise DataError(
            f"{where}: this reflectance is 0.1 too high ({decision.evidence}): digital numbers of baseline 04.00 or "
            f"later were divided by 10,000 with their offset. Say {S2_OFFSET} as the offset to have it taken off, or 0"
        )
    return Decision(0, "reflectance")


def s1_to_db(values: np.ndarray, *, units: str = "auto", where: str = "radar") -> np.ndarray:
    """Backscatter -> float32 in dB, NaN where there is no measurement.

    Args:
        values: any shape, backscatter in dB or as linear power; NaN or infinite where missing. Float32 that needs no
            correction is returned as it is.
        units: "db", "linear" (power), or "auto" (see `decide_s1_units`).
        where: name for messages: a file or an id.

    Raises:
        DataError: the values are neither dB nor linear power (scaled integers, amplitudes, counts). Up to a hundredth
            of them outside `S1_RANGE_DB`, as borders of rasters have, becomes NaN.
    """
    return harmonise_s1(values, units=units, where=where)[0]


def s2_to_dn(
    values: np.ndarray,
    *,
    units: str = "auto",
    offset: int | str = "auto",
    bands: np.ndarray | None = None,
    where: str = "optics",
) -> np.ndarray:
    """Reflectance or digital numbers (T, 13, H, W) -> digital numbers 0..10000 without radiometric offset.

    Integers of 16 bits stay such, and are returned as they are where they need no correction; everything else becomes
    float32 with NaN kept. What the offset brings below 0 becomes 0.

    Args:
        values: (T, 13, H, W) in the order of `S2_BANDS`; 0 in all bands and NaN are missing.
        units: "dn", "reflectance" (0..1), or "auto" (see `decide_s2_units`).
        offset: 0, 1000, or "auto": date by date (see `decide_s2_offset`).
        bands: bool (T, 13), the bands that exist; None for all.
        where: name for messages: a file or an id.

    Raises:
        DataError: unknown units or offset, values that fit neither, or that may or may not carry the offset.
    """
    return harmonise_s2(values, units=units, offset=offset, bands=bands, where=where)[0]


__all__ = [
    "BASELINE_0400", "Decision", "L2A_BANDS", "S1_BANDS", "S1_MEAN", "S1_RANGE_DB", "S1_STD", "S2_BANDS", "S2_LEVELS",
    "S2_MEAN", "S2_OFFSET", "S2_RESOLUTION_M", "S2_STD", "S2_WAVELENGTHS_NM", "SENSORS", "decide_s1_units",
    "decide_s2_offset", "decide_s2_units", "harmonise_s1", "harmonise_s2", "misplaced_b10", "offset_by_name",
    "offset_note", "s1_to_db", "s2_to_dn", "settled_reflectance",
]  # fmt: skip
