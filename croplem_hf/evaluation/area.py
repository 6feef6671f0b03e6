"""Areas and the accuracy of a map from a probability sample, with their errors.

Pixel counts of a map are biased by its errors; the sample corrects them. Where the strata of the sample are the classes
of the map these are the estimators of Olofsson et al. 2014 (doi 10.1016/j.rse.2014.02.015), otherwise those of Stehman
2014 (doi 10.1080/01431161.2014.930207), of which the former are a special case.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import DataError

Z95 = 1.959963984540054


def area_estimates(
    mapped: Sequence, reference: Sequence, strata: Sequence, sizes: Mapping[str, float]
) -> dict:
    """Shares of area by class, and the accuracy of a map, from a stratified random sample.

    Args:
        mapped: n classes of the map at the sampled places.
        reference: n true classes there.
        strata: n strata from which the places were drawn.
        sizes: how many pixels (or items) each stratum holds, sampled or not.

    Returns:
        `n`; `overall_accuracy`; `classes`, dicts of `class`, `n_mapped`, `n_reference`, `area` (its true share of the
        whole), `users_accuracy` and `producers_accuracy`; each estimate is a dict of `value`, `se`, `low`, `high`
        (95 %, normal), NaN where no sampled place is of that class.

    Raises:
        DataError: a stratum with fewer than two sampled places or without a size, or more places than it holds.
    """
    mapped, reference, strata = (np.asarray(x, object).astype(str) for x in (mapped, reference, strata))
    if not len(mapped) == len(reference) == len(strata) > 0:
        raise DataError(f"{len(mapped)} mapped, {len(reference)} true classes and {len(strata)} strata do not fit")
    unknown = sorted(set(strata) - set(sizes))
    if unknown:
        raise DataError(f"stratum {str(unknown[0])!r} has no size; known: {', '.join(sizes)}")
    for name in sizes:
        count = int(np.sum(strata == name))
        if sizes[name] > 0 and not 2 <= count <= sizes[name]:
            raise DataError(
                f"stratum {name!r} of {sizes[name]:g} pixels or items has {count} labels; two at least are needed, or "
                "join it with another stratum"
            )

    def ratio(top: np.ndarray, bottom: np.ndarray) -> dict[str, float]:
        return _ratio(top.astype(float), bottom.astype(float), strata, sizes)

    everything = np.ones(len(mapped))
    classes = []
    for name in sorted(set(mapped) | set(reference)):
        is_mapped, is_true = mapped == name, reference == name
        classes.append(
            {
                "class": name, "n_mapped": int(is_mapped.sum()), "n_reference": int(is_true.sum()),
                "area": ratio(is_true, everything),
                "users_accuracy": ratio(is_mapped & is_true, is_mapped),
                "producers_accuracy": ratio(is_mapped & is_true, is_true),
            }
        )  # fmt: skip
    return {"n": len(mapped), "overall_accuracy": ratio(mapped == reference, everything), "classes": classes}


def area_from_counts(counts: np.ndarray, sizes: Sequence[float], classes: Sequence[str] | None = None) -> dict:
    """`area_estimates` of an error matrix, whose strata are the classes of the map.

    Args:
        counts: int (K, K), sampled places by class of the map (rows) and true class (columns).
        sizes: K, pixels of each class in the whole map.
        classes: K names; "0" to "K - 1" where None.

    Raises:
        DataError: a matrix that is not square or does not fit, and as in `area_estimates`.
    """
    counts = np.asarray(counts)
    names = [str(k) for k in range(len(counts))] if classes is None else [str(name) for name in classes]
    if counts.ndim != 2 or counts.shape != (len(names), len(sizes)) or (counts < 0).any():
        raise DataError(f"counts of shape {counts.shape} do not fit {len(names)} classes and {len(sizes)} sizes")
    rows, columns = np.indices(counts.shape).reshape(2, -1)
    mapped, reference = (np.repeat(np.array(names)[places], counts.reshape(-1)) for places in (rows, columns))
    return area_estimates(mapped, reference, mapped, dict(zip(names, sizes, strict=True)))


def total_error(values: np.ndarray, strata: np.ndarray, sizes: Mapping[str, float]) -> float:
    """Standard error of the total of `values` (n,) over all pixels or items, with the finite population correction."""
    variance = 0.0
    for name in sizes:
        own = values[strata == name]
        if sizes[name] > 0:
            variance += sizes[name] ** 2 * (1 - len(own) / sizes[name]) * own.var(ddof=1) / len(own)
    return float(np.sqrt(variance))


def _ratio(top: np.ndarray, bottom: np.ndarray, strata: np.ndarray, sizes: Mapping[str, float]) -> dict[str, float]:
    """Stehman 2014, equations 27 and 28."""
    members = {name: np.flatnonzero(strata == name) for name in sizes if sizes[name] > 0}
    whole = sum(sizes[name] * bottom[rows].mean() for name, rows in members.items())
    if whole == 0:
        return dict.fromkeys(("value", "se", "low", "high"), float("nan"))
    value = sum(sizes[name] * top[rows].mean() for name, rows in members.items()) / whole
    se = total_error(top - value * bottom, strata, sizes) / whole
    value = float(value)
    return {"value": value, "se": se, "low": max(0.0, value - Z95 * se), "high": min(1.0, value + Z95 * se)}


__all__ = ["area_estimates", "area_from_counts", "total_error"]
