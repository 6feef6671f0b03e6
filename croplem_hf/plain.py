"""Values as JSON can hold them, for figures in files and for what commands answer."""

import math
from collections.abc import Mapping
from pathlib import PurePath


def plain(value: object) -> object:
    """A value as JSON can hold it: NaN and infinity become None, NumPy's numbers and arrays Python's, paths and other
    things text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, PurePath) and hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


__all__ = ["plain"]
