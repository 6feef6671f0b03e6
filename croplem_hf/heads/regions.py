"""Every region centred on its own embeddings, which need no labels: takes away what moves a whole region.

The spread stays that of all regions: dividing each by its own cost 2 to 5 points of AUC in unseen regions, since what
hardly varies in a region is then blown up (benchmarks/heads.py).
"""

from collections.abc import Sequence

import numpy as np

from ..errors import DataError

SHRINK = 5
"""A region's mean is blended with that of all rows, which counts as so many rows."""


class RegionCentre:
    """Mean of the embeddings of each region, labelled or not: (n m + 5 M) / (n + 5) of n rows, M being that of all.

    Attributes:
        names_: R texts. mean_: float64 (R, D). all_: float64 (D,), mean of all rows.
    """

    def fit(self, X: np.ndarray, regions: Sequence[str]) -> "RegionCentre":
        """Learn from float (N, D) and N names."""
        X, regions = np.asarray(X, np.float64), np.asarray(regions, object).astype(str)
        if len(regions) != len(X):
            raise DataError(f"regions name {len(regions)} rows, X has {len(X)}; give one for each row")
        self.all_ = X.mean(axis=0)
        self.names_ = np.unique(regions).tolist()
        self.mean_ = np.stack([self._of(X[regions == name]) for name in self.names_])
        return self

    def transform(self, X: np.ndarray, regions: Sequence[str] | str | None = None) -> np.ndarray:
        """Centred rows, float64 (M, D).

        Args:
            X: float (M, D).
            regions: M names, or one for all rows; may be left out where a single region is known (`only`).

        Raises:
            DataError: regions are missing, or one is not known.
        """
        if regions is None and len(self.names_) > 1:
            raise DataError(
                "the head centres every region on its own embeddings: name the region of the rows, or take "
                f"head.for_region(name); known: {', '.join(self.names_)}"
            )
        names = np.full(len(X), self.names_[0] if regions is None else regions) if np.ndim(regions) == 0 else regions
        names = np.asarray(names, object).astype(str)
        if len(names) != len(X):
            raise DataError(f"regions name {len(names)} rows, X has {len(X)}; give one for each row")
        unknown = sorted(set(names) - set(self.names_))
        if unknown:
            raise DataError(
                f"region {str(unknown[0])!r} is not known to the head (known: {', '.join(self.names_)}); give some of "
                "its embeddings, which need no labels: head.for_region(name, X)"
            )
        places = np.array([self.names_.index(name) for name in names], int)
        return X - self.mean_[places]

    def only(self, name: str, X: np.ndarray | None = None) -> "RegionCentre":
        """The centre of one region: a known one, or any by its embeddings float (M, D)."""
        if X is None and name not in self.names_:
            self.transform(np.empty((1, len(self.all_))), [name])
        one = RegionCentre()
        one.all_, one.names_ = self.all_, [str(name)]
        if X is None:
            one.mean_ = self.mean_[[self.names_.index(name)]]
        else:
            one.mean_ = one._of(np.asarray(X, np.float64))[None]
        return one

    def tensors(self) -> dict[str, np.ndarray]:
        """Its arrays, for files."""
        return {"region_mean": self.mean_, "region_all": self.all_}

    @classmethod
    def of_tensors(cls, names: Sequence[str], tensors: dict[str, np.ndarray]) -> "RegionCentre":
        """What `tensors` and `names_` gave."""
        centre = cls()
        centre.names_ = list(names)
        centre.mean_, centre.all_ = tensors["region_mean"], tensors["region_all"]
        return centre

    def _of(self, X: np.ndarray) -> np.ndarray:
        share = len(X) / (len(X) + SHRINK)
        return share * X.mean(axis=0) + (1 - share) * self.all_


__all__ = ["RegionCentre"]
