"""Sets of classes that hold the true one as often as asked: split conformal prediction, per region.

Written here, being ten lines: of the kept libraries MAPIE (1.6) wraps an estimator and knows no groups, and crepes
(0.9), which does, loads pandas and 1,400 modules; neither keeps its state in files without pickle.
"""

import math
from collections.abc import Sequence

import numpy as np

from ..errors import DataError


class ConformalSets:
    """Score 1 - p(true class); a set holds the classes whose score is not above the quantile of the calibration.

    The k-th smallest of n scores, k = ceil((n + 1) x confidence) (Vovk et al. 2005; Sadinle et al. 2019, doi
    10.1080/01621459.2017.1395341): on average the true class is in the set at least as often as that, if the rows are
    like those of the calibration (exchangeable). Labels that a strategy picked, or another region's, are not.
    With regions, each is calibrated by its own labels (Mondrian). Where k > n, or a region has no such labels, the set
    holds every class: nothing is known.

    Attributes:
        scores_: float64 (n,). regions_: names. places_: int64 (n,), which region; all 0 without regions.
    """

    def fit(self, proba: np.ndarray, codes: np.ndarray, regions: Sequence[str] | None = None) -> "ConformalSets":
        """Learn from probabilities (n, K) of rows that were not in training, their classes' columns, and regions."""
        if len(codes) != len(proba) or (regions is not None and len(regions) != len(proba)):
            raise DataError(f"{len(proba)} probabilities do not fit {len(codes)} classes and their regions")
        self.scores_ = 1 - np.asarray(proba, float)[np.arange(len(codes)), codes]
        names = np.full(len(codes), "") if regions is None else np.asarray(regions, object).astype(str)
        self.regions_, self.places_ = np.unique(names, return_inverse=True)
        return self

    def predict(
        self, proba: np.ndarray, regions: Sequence[str] | None = None, *, confidence: float = 0.9
    ) -> np.ndarray:
        """Sets, bool (M, K).

        Raises:
            DataError: a confidence that is not between 0 and 1, or regions here and not there.
        """
        if not 0 < confidence < 1:
            raise DataError(f"confidence lies between 0 and 1, found {confidence}")
        if (regions is None) != (self.regions_.tolist() == [""]):
            raise DataError("regions must be given here as they were for the calibration, or left out in both")
        names = np.full(len(proba), "") if regions is None else np.asarray(regions, object).astype(str)
        limits = {
            name: self._limit(np.sort(self.scores_[self.places_ == place]), confidence)
            for place, name in enumerate(self.regions_)
        }
        limit = np.array([limits.get(name, math.inf) for name in names])
        return 1 - np.asarray(proba, float) <= limit[:, None]

    @staticmethod
    def _limit(scores: np.ndarray, confidence: float) -> float:
        # Rounded, for 0.95 x 20 is a little more than 19 in floating point.
        k = math.ceil(round((len(scores) + 1) * confidence, 9))
        return scores[k - 1] if k <= len(scores) else math.inf


__all__ = ["ConformalSets"]
