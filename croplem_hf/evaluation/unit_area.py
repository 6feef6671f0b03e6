"""Areas in parts of a map, such as administrative units, from the sample of the whole map.

Two estimates. The direct one uses the places inside the unit alone and assumes nothing: where the strata are the
classes of the map, each class inside the unit is a stratum of known size (Olofsson et al. 2014, after the sample was
drawn); else the unit is a domain of the design (Stehman 2014). The synthetic one is the map's count inside the unit,
corrected by how often each class of the map is which true class in the whole sample (Rao and Molina 2015, "Small area
estimation", ch. 3): units without a place get one too, **on the assumption that the map errs inside the unit as it does
everywhere**, which its interval does not doubt.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import beta, t

from .area import area_estimates, total_error

LEAST = 30
"""Places in a unit for a direct estimate: the least of the US National Center for Health Statistics (Parker et al.
2017, "Data presentation standards for proportions"), whose intervals these are."""
MOST_EFFECTIVE = 4
"""What strata save: n places may count as 4 n random ones at most. Without this bound the interval of a unit where the
sample met hardly any confusion held the truth in a fifth of simulated samples instead of 95 %."""

ROUNDING = 1e-12


def unit_estimates(
    mapped: np.ndarray,
    reference: np.ndarray,
    strata: np.ndarray,
    sizes: Mapping[str, float],
    counts: Mapping[str, float],
    inside: np.ndarray,
    *,
    by_class: bool,
) -> dict:
    """Shares of area by class in one unit, direct and synthetic.

    Args:
        mapped, reference, strata, sizes: the whole sample and the whole map, as in `area_estimates`.
        counts: pixels (or items) of each class of the map inside the unit, in the measure of `sizes`.
        inside: bool (n,), sampled places in the unit.
        by_class: the strata are the classes of the map.

    Returns:
        `n`, places inside; `classes`, dicts of `class`, `n_mapped`, `n_reference`, `direct` and `synthetic`, each a
        dict of `value`, `se`, `low`, `high` (95 %, Korn and Graubard 1998) or None; `no_direct`, `no_synthetic`: why,
        or None.
    """
    n, whole = int(inside.sum()), sum(counts.values())
    names = sorted(set(mapped) | set(reference) | set(counts))
    no_direct = no_synthetic = "the map has no data in it"
    if whole > 0:
        no_direct, no_synthetic = _no_direct(mapped[inside], counts, by_class), _no_synthetic(mapped, counts)
    direct, synthetic = dict.fromkeys(names), dict.fromkeys(names)
    if no_direct is None:
        direct |= _direct(mapped, reference, strata, sizes, counts, inside, by_class, names)
    if no_synthetic is None:
        synthetic |= _synthetic(mapped, reference, strata, sizes, {k: v / whole for k, v in counts.items()}, names)
    classes = [
        {"class": name, "n_mapped": int((mapped[inside] == name).sum()),
         "n_reference": int((reference[inside] == name).sum()), "direct": direct[name], "synthetic": synthetic[name]}
        for name in names
    ]  # fmt: skip
    return {"n": n, "classes": classes, "no_direct": no_direct, "no_synthetic": no_synthetic}


def _no_direct(mapped: np.ndarray, counts: Mapping[str, float], by_class: bool) -> str | None:
    if len(mapped) < LEAST:
        return f"{len(mapped)} labelled places in it, {LEAST} at least are needed"
    for name in counts if by_class else ():
        found = int((mapped == name).sum())
        if counts[name] > 0 and found < 2:
            return f"{found} labelled places where the map says {name}, 2 at least are needed"
        if 0 < counts[name] < found:
            return f"{found} labelled places where the map says {name}, more than its area there can hold"
    return None


def _no_synthetic(mapped: np.ndarray, counts: Mapping[str, float]) -> str | None:
    for name, count in counts.items():
        found = int((mapped == name).sum())
        if count > 0 and found < 2:
            return f"{found} labelled places in the whole map where it says {name}, 2 at least are needed"
    return None


def _direct(mapped, reference, strata, sizes, counts, inside, by_class, names: Sequence[str]) -> dict[str, dict]:
    """Estimates by class from the places inside."""
    n = int(inside.sum())
    if by_class:
        mapped, reference, strata = mapped[inside], reference[inside], mapped[inside]
        sizes = {name: count for name, count in counts.items() if count > 0}
        found = {row["class"]: row["area"] for row in area_estimates(mapped, reference, strata, sizes)["classes"]}
        estimates = {name: (found[name]["value"], found[name]["se"]) for name in found}
    else:
        weight = _weights(strata, sizes) * inside
        estimates = {}
        for name in set(reference[inside]):
            value = float(np.sum(weight * (reference == name)) / weight.sum())
            rest = inside * ((reference == name) - value)
            estimates[name] = value, total_error(rest, strata, sizes) / weight.sum()
    groups = len(set(strata if by_class else strata[inside]))
    absent = dict.fromkeys(names, _interval(0.0, 0.0, n, groups))
    return absent | {name: _interval(*estimate, n, groups) for name, estimate in estimates.items()}


def _synthetic(mapped, reference, strata, sizes, shares: Mapping[str, float], names: Sequence[str]) -> dict[str, dict]:
    """Estimates by class from the shares of the map's classes in the unit and the whole sample's confusion."""
    weight = _weights(strata, sizes)
    used = [name for name in shares if shares[name] > 0]
    those = np.isin(mapped, used)
    n, groups, found = int(those.sum()), len(set(strata[those])), {}
    for true in names:
        value, rest = 0.0, np.zeros(len(mapped))
        for name in used:
            own = mapped == name
            rate = np.sum(weight * own * (reference == true)) / np.sum(weight * own)
            value += shares[name] * rate
            rest += shares[name] * own * ((reference == true) - rate) / np.sum(weight * own)
        found[true] = _interval(float(value), total_error(rest, strata, sizes), n, groups)
    return found


def _weights(strata: np.ndarray, sizes: Mapping[str, float]) -> np.ndarray:
    """Pixels or items that each place stands for, float64 (n,)."""
    names, number, count = np.unique(strata, return_inverse=True, return_counts=True)
    return (np.array([sizes[name] for name in names]) / count)[number]


def _interval(value: float, se: float, n: int, groups: int) -> dict[str, float]:
    """Korn and Graubard 1998: Clopper-Pearson at the number of random places that would have the same error."""
    value = min(max(value, 0.0), 1.0)
    # Places of a stratum that are all alike have no variance, but for what rounding leaves of it.
    se = 0.0 if se < ROUNDING else float(se)
    effective = n if se == 0 else min(value * (1 - value) / se**2, MOST_EFFECTIVE * n)
    effective *= (t.ppf(0.975, n - 1) / t.ppf(0.975, max(n - groups, 1))) ** 2
    hits = value * effective
    low = float(beta.ppf(0.025, hits, effective - hits + 1)) if value > 0 else 0.0
    high = float(beta.ppf(0.975, hits + 1, effective - hits)) if value < 1 else 1.0
    return {"value": value, "se": se, "low": low, "high": high}


__all__ = ["LEAST", "unit_estimates"]
