"""What Sentinel-1 and Sentinel-2 measure: bands, order, wavelengths, statistics, units and their detection."""

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


def s1_to_db(values: np.ndarray, *, units: str = "auto", where: str = "radar") -> np.ndarray:
    """Backscatter -> float32 in dB, NaN where there is no measurement.

    Args:
        values: any shape, backscatter in dB or as linear power; NaN or infinite where missing.
        units: "db", "linear" (power), or "auto": a negative value means dB, none means linear power.
        where: name for messages: a file or an id.

    Raises:
        DataError: the values are neither dB nor linear power (scaled integers, amplitudes, counts).
    """
    if units not in ("auto", "db", "linear"):
        raise DataError(f"{where}: radar units must be 'db', 'linear' or 'auto', found {units!r}")
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return values
    low, high = float(finite.min()), float(finite.max())
    if units == "auto":
        units = "db" if low < 0 else "linear"
        # Linear power of natural surfaces is far below 1; strong corner reflectors reach some thousands at the most.
        if units == "linear" and float(np.median(finite)) > 5:
            raise DataError(
                f"{where}: radar values run from {low:.4g} to {high:.4g} with a median above 5: neither dB nor linear "
                "power. Calibrate to sigma0 or gamma0 first, or say the units ('db' or 'linear')"
            )
    if units == "linear":
        with np.errstate(divide="ignore", invalid="ignore"):
            db = 10 * np.log10(values)
        return np.where(np.isfinite(db), db, np.nan).astype(np.float32)
    if low < S1_RANGE_DB[0] or high > S1_RANGE_DB[1]:
        raise DataError(
            f"{where}: radar values run from {low:.4g} to {high:.4g}, outside {S1_RANGE_DB} dB. "
            "Scale integers back to dB, and mark nodata values as NaN or by the file's nodata value"
        )
    return values


def s2_to_dn(
    values: np.ndarray,
    *,
    units: str = "auto",
    offset: int | str = "auto",
    bands: np.ndarray | None = None,
    where: str = "optics",
) -> np.ndarray:
    """Reflectance or digital numbers (T, 13, H, W) -> digital numbers 0..10000 without radiometric offset.

    Integer input that needs no correction stays as it is (uint16); everything else becomes float32 with NaN kept.

    Args:
        values: (T, 13, H, W) in the order of `S2_BANDS`.
        units: "dn", "reflectance" (0..1), or "auto": a maximum of at most 2 means reflectance.
        offset: 0, 1000, or "auto": 1000 only where B10, which the atmosphere makes nearly black, never falls
            below 900 on a date, and no other band does either; without B10, no offset is assumed.
        bands: bool (T, 13), the bands that exist; None for all.
        where: name for messages: a file or an id.

    Raises:
        DataError: unknown units or offset, or values that fit neither.
    """
    if units not in ("auto", "dn", "reflectance"):
        raise DataError(f"{where}: optical units must be 'dn', 'reflectance' or 'auto', found {units!r}")
    if offset not in ("auto", 0, S2_OFFSET):
        raise DataError(f"{where}: the radiometric offset must be 0, {S2_OFFSET} or 'auto', found {offset!r}")
    exists = np.ones(values.shape[:2], bool) if bands is None else np.asarray(bands, bool)
    present = values[exists]
    present = present[np.isfinite(present)] if values.dtype.kind == "f" else present
    if present.size == 0:
        return values if values.dtype == np.uint16 else values.astype(np.float32)
    low, high = float(present.min()), float(present.max())
    if units == "auto":
        units = "reflectance" if high <= 2 and values.dtype.kind == "f" else "dn"
    if units == "reflectance":
        if high > 20:
            raise DataError(f"{where}: values up to {high:.4g} are not reflectance 0..1; say units='dn'")
        return values.astype(np.float32) * np.float32(10000)
    if high > 65535 or low < -S2_OFFSET:
        raise DataError(f"{where}: values from {low:.4g} to {high:.4g} are not digital numbers 0..10000")
    shift = np.zeros(len(values), np.float32)
    for t in range(len(values)):
        if offset == S2_OFFSET or (offset == "auto" and _has_offset(values[t], exists[t])):
            shift[t] = S2_OFFSET
    if not shift.any():
        return values if values.dtype == np.uint16 else values.astype(np.float32)
    return np.maximum(values.astype(np.float32) - shift[:, None, None, None], 0)


def _has_offset(date: np.ndarray, exists: np.ndarray) -> bool:
    """Whether one date (13, H, W) carries the +1000 offset beyond doubt; zeros and NaN count as missing."""
    if not exists[S2_BANDS.index("B10")]:
        return False
    # B10 alone settles nearly every date, at a thirteenth of the cost.
    return _lowest(date[S2_BANDS.index("B10")]) >= 900 and _lowest(date[exists]) >= 900


def _lowest(values: np.ndarray) -> float:
    """Smallest value that is neither missing nor 0; -inf where there is none."""
    values = values[values > 0]
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(values.min()) if values.size else -np.inf


__all__ = [
    "L2A_BANDS", "S1_BANDS", "S1_MEAN", "S1_STD", "S2_BANDS", "S2_LEVELS", "S2_MEAN", "S2_OFFSET", "S2_RESOLUTION_M",
    "S2_STD", "S2_WAVELENGTHS_NM", "SENSORS", "s1_to_db", "s2_to_dn",
]  # fmt: skip
