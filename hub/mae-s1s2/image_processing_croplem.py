"""Image processor of CropLEM: samples of Sentinel-1 and Sentinel-2 -> padded, standardised model inputs."""

import datetime
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from transformers import BaseImageProcessor, BatchFeature

from .configuration_croplem import ResolvedFromPretrained


class CropLEMImageProcessor(ResolvedFromPretrained, BaseImageProcessor):
    r"""
    Turns samples (dicts) into the inputs of [`CropLEMModel`]. A sample holds, each sensor with its own dates:

    - `s1` float (T1, 2, H, W), backscatter in dB, and `s1_dates`, ISO strings; `s1_valid` bool (T1, H, W), optional;
    - `s2` (T2, 13, H, W), digital numbers 0..10000 without radiometric offset, and `s2_dates`; `s2_level` "L1C" or
      "L2A"; `s2_valid` bool (T2, H, W) and `s2_bands` bool (T2, 13), optional;
    - `gsd` in metres (10 if absent).

    A sensor that is None or absent gets no values, not zeros. Values are standardised, clipped and only then set to 0
    where missing. Samples of different sizes are padded with invalid dates and pixels.

    Args:
        s1_mean, s1_std (`list[float]` of 2): statistics of radar in dB. SEN12MS.
        s2_mean, s2_std (`list[float]` of 13): statistics of optics in digital numbers. SSL4EO-S12, L1C.
        max_deviation (`float`, defaults to 8): standardised values are clipped to plus and minus this. That keeps
            radar down to -48 dB (VH of dry cropland lies below -25 dB more often than not) and keeps cirrus in B10,
            whose spread is tiny, from drowning everything else.
    """

    model_input_names = ["s1_values", "s1_days", "s1_valid", "s2_values", "s2_days", "s2_valid", "s2_bands", "s2_level", "gsd"]  # noqa: E501, RUF012  # fmt: skip

    def __init__(
        self,
        s1_bands=("VV", "VH"),
        s2_bands=("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"),
        s2_levels=("L1C", "L2A"),
        s1_mean=(-11.76858, -18.294598),
        s1_std=(4.525339, 4.3586307),
        s2_mean=(
            1605.58,
            1390.78,
            1314.87,
            1363.52,
            1549.44,
            2091.75,
            2371.72,
            2299.90,
            2560.30,
            830.07,
            22.10,
            2177.07,
            1524.07,
        ),  # noqa: E501  # fmt: skip
        s2_std=(
            786.79,
            850.35,
            875.06,
            1138.85,
            1122.18,
            1161.59,
            1274.39,
            1248.43,
            1345.53,
            577.32,
            51.15,
            1336.10,
            1136.54,
        ),  # noqa: E501  # fmt: skip
        max_deviation=8.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        # Lists, so that the JSON file and a loaded processor compare equal.
        self.s1_bands, self.s2_bands, self.s2_levels = list(s1_bands), list(s2_bands), list(s2_levels)
        self.s1_mean, self.s1_std = list(s1_mean), list(s1_std)
        self.s2_mean, self.s2_std = list(s2_mean), list(s2_std)
        self.max_deviation = max_deviation

    def __call__(self, samples: Mapping | Sequence[Mapping], *args, **kwargs) -> BatchFeature:
        return self.preprocess(samples, *args, **kwargs)

    def preprocess(
        self,
        samples: Mapping | Sequence[Mapping],
        sensors: Sequence[str] | None = None,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        r"""
        Args:
            samples (`dict` or `list[dict]`): one sample or a batch.
            sensors (`list[str]`, *optional*): use only these, of "s1" and "s2".
            return_tensors (`str`, *optional*, defaults to `"pt"`): `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`]: for each sensor present in the batch `{sensor}_values` float32 (B, T, C, H, W),
            `{sensor}_days` int64 (B, T), days from 1 January of the year of the sample's first valid date,
            `{sensor}_valid` bool (B, T, H, W); for optics also `s2_bands` bool (B, T2, 13) and `s2_level` int64 (B,);
            and `gsd` float32 (B,).

        Raises:
            ValueError: naming the sample, where a shape, date or level is wrong, or nothing is valid.
        """
        samples = [samples] if isinstance(samples, Mapping) else list(samples)
        if not samples:
            raise ValueError("no samples: pass a sample or a list of at least one")
        wanted = ("s1", "s2") if sensors is None else tuple(sensors)
        if not wanted or set(wanted) - {"s1", "s2"}:
            raise ValueError(f"sensors must be of 's1' and 's2', found {sensors!r}")
        prepared = [self._prepare(sample, n, wanted) for n, sample in enumerate(samples)]
        sizes = [p[s]["valid"].shape[1:] for p in prepared for s in ("s1", "s2") if s in p]
        height, width = max(s[0] for s in sizes), max(s[1] for s in sizes)
        data = {"gsd": np.array([p["gsd"] for p in prepared], np.float32)}
        for sensor, channels in (("s1", len(self.s1_bands)), ("s2", len(self.s2_bands))):
            if not any(sensor in p for p in prepared):
                continue
            batch, dates = len(prepared), max(len(p[sensor]["days"]) for p in prepared if sensor in p)
            values = np.zeros((batch, dates, channels, height, width), np.float32)
            days = np.zeros((batch, dates), np.int64)
            valid = np.zeros((batch, dates, height, width), bool)
            bands = np.zeros((batch, dates, channels), bool)
            for n, p in enumerate(prepared):
                if sensor in p:
                    part = p[sensor]
                    t, h, w = part["valid"].shape
                    values[n, :t, :, :h, :w] = part["values"]
                    days[n, :t], valid[n, :t, :h, :w], bands[n, :t] = part["days"], part["valid"], part["bands"]
            data |= {f"{sensor}_values": values, f"{sensor}_days": days, f"{sensor}_valid": valid}
            if sensor == "s2":
                data["s2_bands"] = bands
                data["s2_level"] = np.array([p["s2"]["level"] if "s2" in p else 0 for p in prepared], np.int64)
        return BatchFeature(data, tensor_type=return_tensors)

    def _prepare(self, sample: Mapping, number: int, wanted: Sequence[str]) -> dict:
        """One sample -> {"gsd", "s1": {...}, "s2": {...}} without absent sensors."""
        name = sample.get("id") or f"sample {number}"
        out, gsd = {}, sample.get("gsd")
        out["gsd"] = 10.0 if gsd is None else float(gsd)
        for sensor in wanted:
            if sample.get(sensor) is not None:
                part = self._prepare_sensor(sample, sensor, name)
                if part["valid"].any():
                    out[sensor] = part
        present = [out[s] for s in ("s1", "s2") if s in out]
        if not present:
            raise ValueError(f"{name}: nothing valid in {' or '.join(wanted)}")
        if len({p["valid"].shape[1:] for p in present}) > 1:
            raise ValueError(f"{name}: S1 and S2 have different sizes {[p['valid'].shape[1:] for p in present]}")
        # Only dates that hold something count, so that an empty date changes nothing.
        first = min(day for p in present for day, v in zip(p["days"], p["valid"], strict=True) if v.any())
        new_year = datetime.date(datetime.date.fromordinal(int(first)).year, 1, 1).toordinal()
        for part in present:
            part["days"] = part["days"] - new_year
        return out

    def _prepare_sensor(self, sample: Mapping, sensor: str, name: str) -> dict:
        values = np.asarray(sample[sensor])
        mean, std = (np.asarray(getattr(self, f"{sensor}_{key}"), np.float32) for key in ("mean", "std"))
        dates = sample.get(f"{sensor}_dates")
        if values.ndim != 4 or values.shape[1] != len(mean):
            raise ValueError(f"{name}: {sensor} must have shape (T, {len(mean)}, H, W), found {values.shape}")
        if dates is None or len(dates) != len(values):
            raise ValueError(f"{name}: {sensor}_dates must hold {len(values)} dates, found {dates!r}")
        finite = np.isfinite(values)
        bands = sample.get(f"{sensor}_bands")
        if bands is not None and np.shape(bands) != values.shape[:2]:
            raise ValueError(f"{name}: {sensor}_bands must be bool {values.shape[:2]}, found {np.shape(bands)}")
        bands = finite.any(axis=(2, 3)) & (True if bands is None else np.asarray(bands, bool))
        part = {}
        if sensor == "s1":
            bands[:] = True
        else:
            level = sample.get("s2_level")
            if level not in self.s2_levels:
                raise ValueError(f"{name}: s2_level must be one of {self.s2_levels}, found {level!r}")
            part["level"] = self.s2_levels.index(level)
            if level == "L2A":
                bands &= np.array([band != "B10" for band in self.s2_bands])
        valid = sample.get(f"{sensor}_valid")
        if valid is not None and np.shape(valid) != (len(values), *values.shape[2:]):
            raise ValueError(f"{name}: {sensor}_valid must be bool {(len(values), *values.shape[2:])}")
        usable = (finite | ~bands[:, :, None, None]).all(axis=1) & bands.any(axis=1)[:, None, None]
        valid = usable if valid is None else usable & np.asarray(valid, bool)
        standard = (values.astype(np.float32, copy=False) - mean[:, None, None]) / std[:, None, None]
        standard = np.clip(standard, -self.max_deviation, self.max_deviation)
        part["values"] = np.where(valid[:, None] & bands[:, :, None, None], standard, np.float32(0))
        try:
            part["days"] = np.array([_ordinal(str(date)[:10]) for date in dates], np.int64)
        except ValueError:
            raise ValueError(f"{name}: {sensor}_dates must be ISO dates such as 2019-06-15, found {dates!r}") from None
        return part | {"valid": valid, "bands": bands}


@lru_cache(maxsize=65536)
def _ordinal(text: str) -> int:
    return datetime.date.fromisoformat(text).toordinal()


__all__ = ["CropLEMImageProcessor"]
