"""Land cover of SEN12MS: the IGBP classes, the simplified scheme of DFC2020, and what a patch is by them.

The labels come from MODIS at 500 m, laid over pixels of 10 m: true for a place as a whole, noisy at a pixel, and
blind to fields smaller than a few hundred metres.
"""

import numpy as np

IGBP = {
    1: "evergreen needleleaf forest", 2: "evergreen broadleaf forest", 3: "deciduous needleleaf forest",
    4: "deciduous broadleaf forest", 5: "mixed forest", 6: "closed shrubland", 7: "open shrubland", 8: "woody savanna",
    9: "savanna", 10: "grassland", 11: "wetland", 12: "cropland", 13: "urban",
    14: "cropland / natural vegetation mosaic", 15: "snow and ice", 16: "barren", 17: "water",
}  # fmt: skip
"""Codes of the first band of `lc` as they stand in the files; texts that say 0 to 16 mean code - 1."""

SIMPLIFIED = {
    1: "forest", 2: "shrubland", 3: "savanna", 4: "grassland", 5: "wetland", 6: "cropland", 7: "urban",
    8: "snow and ice", 9: "barren", 10: "water",
}  # fmt: skip
"""The scheme of DFC2020, which is also that of its `dfc` rasters."""

CROPLAND = (12, 14)
"""IGBP codes that are cropland."""

# Simplified code of each IGBP code; 0, and what is no code, is unknown.
_TO_SIMPLIFIED = np.array([0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10], np.uint8)


def simplified(igbp: np.ndarray) -> np.ndarray:
    """A raster of IGBP codes, any integers and shape -> codes of the simplified scheme, uint8, 0 where unknown."""
    igbp = np.asarray(igbp)
    known = (igbp >= 0) & (igbp < len(_TO_SIMPLIFIED))
    return _TO_SIMPLIFIED[np.where(known, igbp, 0)]


def patch_labels(lc: np.ndarray) -> dict[str, int | float | None]:
    """What a patch is by the majority of its pixels.

    Args:
        lc: integers (4, H, W) as in the sample, or any (bands, H, W) whose first band is IGBP.

    Returns:
        `igbp`, the commonest code (1 to 17; the smaller one of two as common), and `igbp_fraction`, its share;
        `land_cover` (1 to 10) and `land_cover_fraction`, likewise in the simplified scheme; `cropland_fraction`, the
        share of codes 12 and 14, and `cropland`, 1 where that is more than half, else 0. Pixels of unknown class count
        for nothing; where all are unknown, every value is None.
    """
    codes = np.asarray(lc[0]).ravel()
    if codes.dtype != np.uint8:
        codes = np.where((codes >= 0) & (codes < len(_TO_SIMPLIFIED)), codes, 0)
    counts = np.bincount(codes, minlength=len(_TO_SIMPLIFIED))[: len(_TO_SIMPLIFIED)]
    counts[0] = 0
    total = int(counts.sum())
    if total == 0:
        return dict.fromkeys(LABELS)
    coarse = np.bincount(_TO_SIMPLIFIED, weights=counts)
    labels = {"igbp": int(counts.argmax()), "igbp_fraction": int(counts.max()) / total}
    return labels | simplified_labels(coarse)


def simplified_labels(counts: np.ndarray) -> dict[str, int | float | None]:
    """`land_cover`, `land_cover_fraction`, `cropland_fraction` and `cropland` as in `patch_labels`.

    Args:
        counts: (11,), pixels of each code of the simplified scheme; those of code 0, unknown, count for nothing.
    """
    counts = counts[1:]
    total = int(counts.sum())
    if total == 0:
        return dict.fromkeys(SIMPLIFIED_LABELS)
    crop = int(counts[_TO_SIMPLIFIED[CROPLAND[0]] - 1])
    return {
        "land_cover": int(counts.argmax()) + 1,
        "land_cover_fraction": int(counts.max()) / total,
        "cropland_fraction": crop / total,
        "cropland": int(2 * crop > total),
    }


SIMPLIFIED_LABELS = ("land_cover", "land_cover_fraction", "cropland_fraction", "cropland")
"""Keys of `simplified_labels`."""

LABELS = ("igbp", "igbp_fraction", *SIMPLIFIED_LABELS)
"""Keys of `patch_labels`."""

__all__ = [
    "CROPLAND", "IGBP", "LABELS", "SIMPLIFIED", "SIMPLIFIED_LABELS", "patch_labels", "simplified", "simplified_labels",
]  # fmt: skip
