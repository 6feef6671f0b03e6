"""Why a row was chosen: its gain, taken apart."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a row was chosen: `gain` = `coverage` + `uncertainty` + `region`, each a share of all that could be covered.

    row: its number in the pool. gain: share of the weighted expected error of the pool that the row newly covers.
    coverage: the gain if errors were expected everywhere alike and regions counted alike. uncertainty: what is added
    because more (or, negative, fewer) errors than the mean are expected around the row. region: what the weights of the
    regions add or take. new_coverage: share of the pool newly covered, 0 to 1. error: expected error there, 0.01 to 1.
    region_weight: weight of the regions there, 0.2 to 5. region_name: region of the row itself. by_chance: whether the
    row was drawn at random, so that its gain is a fact and not the reason. cost: its price, see `Trips`.
    """

    row: int
    gain: float
    coverage: float
    uncertainty: float
    region: float
    new_coverage: float
    error: float
    region_weight: float
    region_name: str
    by_chance: bool
    cost: float


def explain(
    rows: np.ndarray,
    gained: np.ndarray,
    stands_for: np.ndarray,
    error: np.ndarray,
    weight: np.ndarray,
    names: list[str],
    by_chance: np.ndarray,
    cost: np.ndarray,
) -> list[Explanation]:
    """The gain of every row, taken apart in the order coverage, error, region (a telescoping sum, so it adds up).

    Args:
        rows: int64 (B,). names: their regions. by_chance: bool (B,). cost: float (B,).
        gained: float (B, M), what each newly covers of the landmarks.
        stands_for, error, weight: float (M,), share of the pool, expected error and weight of each landmark.
    """
    mean_error, mean_weight = stands_for @ error, stands_for @ weight
    total = stands_for @ (error * weight)
    new = gained * stands_for
    share = new.sum(axis=1)
    coverage = share * mean_error * mean_weight / total
    uncertainty = new @ (error - mean_error) * mean_weight / total
    region = new @ (error * (weight - mean_weight)) / total
    safe = np.where(share > 0, share, 1)
    # Where nothing new is covered there is no place to average over: the means of the pool.
    error_there = np.where(share > 0, new @ error / safe, mean_error)
    weight_there = np.where(share > 0, new @ weight / safe, mean_weight)
    return [
        Explanation(
            row=int(row),
            gain=float(coverage[n] + uncertainty[n] + region[n]),
            coverage=float(coverage[n]),
            uncertainty=float(uncertainty[n]),
            region=float(region[n]),
            new_coverage=float(share[n]),
            error=float(error_there[n]),
            region_weight=float(weight_there[n]),
            region_name=names[n],
            by_chance=bool(by_chance[n]),
            cost=float(cost[n]),
        )
        for n, row in enumerate(rows)
    ]


def in_words(why: Explanation, of: str = "pool") -> str:
    """What is covered of the pool (or whatever `of` says), and what else made up at least a twentieth of the gain."""
    share = f"covers {100 * why.new_coverage:.2g} % of the {of}"
    if why.by_chance:
        return f"drawn by chance, to see what the choice would miss; {share}"
    words = [f"{share} anew"]
    if why.uncertainty > 0.05 * why.gain:
        words.append(f"more errors are expected there than elsewhere ({why.error:.2f})")
    if why.region > 0.05 * why.gain:
        words.append(f"{why.region_name} is small and counts for more")
    return "; ".join(words)


__all__ = ["Explanation", "explain", "in_words"]
