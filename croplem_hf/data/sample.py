"""The sample: one dict, the same from every reader.

Each sensor has its own dates (T1 radar, T2 optical); a point series has H = W = 1. Absent means absent: None, or False
in a mask, never zeros that look like data.

    id          str
    gsd         float, metres a pixel
    s1          float32 (T1, 2, H, W), backscatter in dB, VV VH, or None
    s1_dates    list of T1 ISO dates             s1_valid  bool (T1, H, W)
    s1_kind     "sigma0", "gamma0" or None       s1_orbit  "ascending", "descending" or None
    s2          uint16 or float32 (T2, 13, H, W), digital numbers 0..10000 without offset, or None
    s2_dates    list of T2 ISO dates             s2_valid  bool (T2, H, W): clouds and nodata are False
    s2_bands    bool (T2, 13), which bands exist on that date
    s2_level    "L1C" or "L2A"

Metadata, each None where unknown: `METADATA` and any further key whose value is a string, number or bool.
`lc` is a raster of land cover uint8 or uint16 (bands, H, W).
"""

import datetime
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..sensors import L2A_BANDS, S2_LEVELS

METADATA = ("season", "scene", "patch", "lon", "lat", "crs", "transform", "region", "field_id", "crop_type", "cropland")
"""Metadata of a sample that become columns of the embeddings table (with the dominant class of `lc`)."""

SENSOR_KEYS = (
    "s1", "s1_dates", "s1_valid", "s1_kind", "s1_orbit", "s2", "s2_dates", "s2_valid", "s2_bands", "s2_level",
)  # fmt: skip

Sample = dict


def parse_date(text: str, where: str = "date") -> datetime.date:
    """ISO text (a time after the day is ignored) -> date; `DataError` if it is not one."""
    try:
        return datetime.date.fromisoformat(str(text)[:10])
    except ValueError:
        raise DataError(f"{where}: {text!r} is not an ISO date such as 2019-06-15") from None


def make_sample(
    id: str,
    *,
    gsd: float = 10.0,
    s1: np.ndarray | None = None,
    s1_dates: Sequence[str] = (),
    s1_valid: np.ndarray | None = None,
    s1_kind: str | None = None,
    s1_orbit: str | None = None,
    s2: np.ndarray | None = None,
    s2_dates: Sequence[str] = (),
    s2_valid: np.ndarray | None = None,
    s2_bands: np.ndarray | None = None,
    s2_level: str | None = None,
    lc: np.ndarray | None = None,
    **metadata,
) -> Sample:
    """Complete and check a sample.

    A pixel is valid where the given mask says so and every band that exists is finite; a band exists on a date where it
    holds a finite value, unless `s2_bands` says otherwise (level L2A never has B10). A sensor with nothing valid
    becomes None.

    Raises:
        DataError: wrong shapes, dates or units of time, different grids, or nothing valid in either sensor.
    """
    sample = dict.fromkeys(METADATA) | {"id": str(id), "gsd": float(gsd), "lc": lc}
    sample |= dict.fromkeys(SENSOR_KEYS) | {"s1_dates": [], "s2_dates": []}
    if s1 is not None:
        s1 = np.asarray(s1, np.float32)
        _check_stack(id, "s1", s1, 2, s1_dates)
        valid = np.isfinite(s1).all(axis=1) & _mask(id, "s1_valid", s1_valid, s1)
        if valid.any():
            sample |= {"s1": s1, "s1_dates": list(s1_dates), "s1_valid": valid}
            sample |= {"s1_kind": s1_kind, "s1_orbit": s1_orbit}
    if s2 is not None:
        s2 = np.asarray(s2)
        s2 = s2 if s2.dtype == np.uint16 else s2.astype(np.float32)
        _check_stack(id, "s2", s2, 13, s2_dates)
        if s2_level not in S2_LEVELS:
            raise DataError(f"{id}: s2_level must be one of {S2_LEVELS}, found {s2_level!r}")
        # Whole numbers are finite, and most samples hold them: nothing is looked at then.
        finite = None if s2.dtype == np.uint16 else np.isfinite(s2)
        bands = np.ones(s2.shape[:2], bool) if finite is None else finite.any(axis=(2, 3))
        if s2_bands is not None:
            if np.shape(s2_bands) != s2.shape[:2]:
                raise DataError(f"{id}: s2_bands has shape {np.shape(s2_bands)}, expected {s2.shape[:2]}")
            bands &= np.asarray(s2_bands, bool)
        if s2_level == "L2A":
            bands &= np.array(L2A_BANDS)
        valid = bands.any(axis=1)[:, None, None] & _mask(id, "s2_valid", s2_valid, s2)
        if finite is not None:
            valid &= (finite | ~bands[:, :, None, None]).all(axis=1)
        if valid.any():
            sample |= {"s2": s2, "s2_dates": list(s2_dates), "s2_valid": valid, "s2_bands": bands, "s2_level": s2_level}
    sample |= metadata
    return check_sample(sample)


def check_sample(sample: Sample) -> Sample:
    """Check a sample against the contract of this module and return it unchanged.

    Raises:
        DataError: naming the sample, the key and what was found.
    """
    name = sample.get("id")
    if not isinstance(name, str) or not name:
        raise DataError(f"a sample needs an id, found {name!r}")
    missing = [key for key in ("gsd", *SENSOR_KEYS) if key not in sample]
    if missing:
        raise DataError(f"{name}: keys {missing} are missing; build samples with make_sample()")
    if not np.isfinite(sample["gsd"]) or sample["gsd"] <= 0:
        raise DataError(f"{name}: gsd must be metres a pixel above 0, found {sample['gsd']!r}")
    if sample["s1"] is None and sample["s2"] is None:
        raise DataError(f"{name}: nothing valid in either sensor (all pixels missing, masked or cloudy)")
    for sensor, channels in (("s1", 2), ("s2", 13)):
        values = sample[sensor]
        if values is None:
            continue
        _check_stack(name, sensor, values, channels, sample[f"{sensor}_dates"])
        valid = sample[f"{sensor}_valid"]
        if np.shape(valid) != (len(values), *values.shape[2:]) or np.asarray(valid).dtype != bool:
            raise DataError(f"{name}: {sensor}_valid must be bool {(len(values), *values.shape[2:])}")
        for text in sample[f"{sensor}_dates"]:
            parse_date(text, f"{name}: {sensor}_dates")
    if sample["s2"] is not None:
        if np.shape(sample["s2_bands"]) != sample["s2"].shape[:2]:
            raise DataError(f"{name}: s2_bands must be bool {sample['s2'].shape[:2]}")
        if sample["s2_level"] not in S2_LEVELS:
            raise DataError(f"{name}: s2_level must be one of {S2_LEVELS}, found {sample['s2_level']!r}")
    if sample["s1"] is not None and sample["s2"] is not None and sample["s1"].shape[2:] != sample["s2"].shape[2:]:
        raise DataError(
            f"{name}: S1 is {sample['s1'].shape[2:]} and S2 {sample['s2'].shape[2:]} pixels; bring both to one grid"
        )
    if not any(sample[s] is not None and np.any(sample[f"{s}_valid"]) for s in ("s1", "s2")):
        raise DataError(f"{name}: nothing valid in either sensor (all pixels missing, masked or cloudy)")
    return sample


def _check_stack(name: str, sensor: str, values: np.ndarray, channels: int, dates: Sequence[str]) -> None:
    if values.ndim != 4 or values.shape[1] != channels or 0 in values.shape:
        raise DataError(f"{name}: {sensor} must have shape (T, {channels}, H, W), found {values.shape}")
    if len(dates) != len(values):
        raise DataError(f"{name}: {sensor} has {len(values)} dates of pixels but {len(dates)} date texts")


def _mask(name: str, key: str, mask: np.ndarray | None, values: np.ndarray) -> np.ndarray:
    shape = (len(values), *values.shape[2:])
    if mask is None:
        return np.ones(shape, bool)
    if np.shape(mask) != shape:
        raise DataError(f"{name}: {key} has shape {np.shape(mask)}, expected {shape}")
    return np.asarray(mask, bool)


__all__ = ["METADATA", "Sample", "check_sample", "make_sample", "parse_date"]
