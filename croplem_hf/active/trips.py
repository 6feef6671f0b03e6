"""What it costs to label a place, and to get there from the other places of the batch."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ..errors import DataError
from ..geodesy import kilometres


@dataclasses.dataclass(frozen=True)
class Trips:
    """Prices that the bandit divides gains by, so that a batch covers most for its money.

    A pick costs its own price and, with `per_km`, the way from the nearest place already in the batch: picks gather in
    trips as far as that pays. The way to the first place is not counted; it would be the same for all of a campaign.

    Args:
        costs: price of labelling each row (N,), above 0; 1 for all where None.
        lonlat: degrees (N, 2), needed for `per_km`.
        per_km: price of a kilometre, great circle; 0 leaves distances out.
        budget: most that a batch may cost; it then may have fewer rows than asked for.
    """

    costs: np.ndarray | None = None
    lonlat: np.ndarray | None = None
    per_km: float = 0.0
    budget: float | None = None

    def check(self, rows: int) -> None:
        """Refuse prices that do not fit a pool of so many rows.

        Raises:
            DataError: wrong lengths, prices that are not above 0, places that are no degrees, per_km without places.
        """
        if self.costs is not None:
            costs = np.asarray(self.costs)
            if costs.shape != (rows,):
                raise DataError(f"costs have shape {costs.shape}; give one price for each of the {rows} rows")
            bad = np.flatnonzero(~(np.isfinite(costs) & (costs > 0)))
            if len(bad):
                raise DataError(f"the cost of row {bad[0]} is {costs[bad[0]]}; prices are numbers above 0")
        if self.per_km < 0 or not np.isfinite(self.per_km):
            raise DataError(f"the price of a kilometre must be a number from 0 on, found {self.per_km}")
        if self.budget is not None and not self.budget > 0:
            raise DataError(f"a budget must be above 0, found {self.budget}")
        if self.per_km:
            if self.lonlat is None:
                raise DataError("a price for each kilometre needs the places: columns lon and lat")
            places = np.asarray(self.lonlat, float)
            if places.shape != (rows, 2):
                raise DataError(f"lonlat has shape {places.shape}; give longitude and latitude for each of {rows} rows")
            bad = np.flatnonzero(~np.isfinite(places).all(axis=1) | (np.abs(places[:, 1]) > 90))
            if len(bad):
                raise DataError(f"row {bad[0]} lies at {places[bad[0]].tolist()}, which is no longitude and latitude")

    def prices(self, rows: np.ndarray) -> Callable[[list[int]], np.ndarray]:
        """-> function of the places in `rows` (C,) chosen so far, the last one new, that gives all prices (C,)."""
        own = np.ones(len(rows)) if self.costs is None else np.asarray(self.costs, float)[rows]
        if not self.per_km:
            return lambda chosen: own
        places = np.asarray(self.lonlat, float)[rows]
        way = np.zeros(len(rows))

        def price(chosen: list[int]) -> np.ndarray:
            nonlocal way
            if chosen:
                new = kilometres(places, places[chosen[-1]])
                way = new if len(chosen) == 1 else np.minimum(way, new)
            return own + self.per_km * way

        return price


__all__ = ["Trips"]
