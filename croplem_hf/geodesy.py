"""Distances on the Earth."""

import numpy as np

EARTH_RADIUS_KM = 6371.009
"""Of a sphere, the mean radius (2 a + b) / 3 of WGS 84."""


def kilometres(places: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Great-circle distance of (n, 2) lon and lat in degrees to one (2,), float64 (n,), by the haversine formula."""
    lon, lat = np.radians(places).T
    lon0, lat0 = np.radians(place)
    half = np.sin((lat - lat0) / 2) ** 2 + np.cos(lat) * np.cos(lat0) * np.sin((lon - lon0) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(half, 1)))


__all__ = ["EARTH_RADIUS_KM", "kilometres"]
