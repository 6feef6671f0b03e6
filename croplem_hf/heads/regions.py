"""Every region standardised by its own embeddings, which need no labels: takes away what moves a whole region."""

from collections.abc import Sequence

import numpy as np

from ..errors import DataError

SHRINK = 5
"""A region's mean and variance are blended with those of all rows, which count as so many rows."""


class RegionScaler:
    """Mean and standard deviation of the embeddings of each region, labelled or not.

    A region of n rows has the mean (n m + 5 M) / (n + 5), M being that of all rows; its variance likewise.

    Attributes:
        names_: R texts. mean_, scale_: float64 (R, D). all_: float64 (2, D), mean and variance of all rows.
    """

    def fit(self, X: np.ndarray, regions: Sequence[str]) -> "RegionScaler":
        """Learn from float (N, D) and N names."""
        X, regions = np.asarray(X, np.float64), np.asarray(regions, object).astype(str)
        if len(regions) != len(X):
            raise DataError(f"regions name {len(regions)} rows, X has {len(X)}; give one for each row")
        self.all_ = np.stack([X.mean(axis=0), X.var(axis=0)])
        self.names_ = np.unique(regions).tolist()
        self._set([self._of(X[regions == name]) for name in self.names_])
        return self

    def transform(self, X: np.ndarray, regions: Sequence[str] | str | None = None) -> np.ndarray:
        """Standardised rows, float64 (M, D).

        Args:
            X: float (M, D).
            regions: M names, or one for all rows; may be left out where a single region is known (`only`).

        Raises:
            DataError: regions are missing, or one is not known.
        """
        if regions is None and len(self.names_) > 1:
            raise DataError(
                "the head standardises every region by its own embeddings: name the region of the rows, or take "
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
        return (X - self.mean_[places]) / self.scale_[places]

    def only(self, name: str, X: np.ndarray | None = None) -> "RegionScaler":
        """A scaler for one region: a known one, or any by its embeddings float (M, D)."""
        if X is None and name not in self.names_:
            self.transform(np.empty((1, len(self.all_[0]))), [name])
        one = RegionScaler()
        one.all_, one.names_ = self.all_, [str(name)]
        if X is None:
            place = self.names_.index(name)
            one.mean_, one.scale_ = self.mean_[[place]], self.scale_[[place]]
        else:
            one._set([one._of(np.asarray(X, np.float64))])
        return one

    def tensors(self) -> dict[str, np.ndarray]:
        """Its arrays, for files."""
        return {"region_mean": self.mean_, "region_scale": self.scale_, "region_all": self.all_}

    @classmethod
    def of_tensors(cls, names: Sequence[str], tensors: dict[str, np.ndarray]) -> "RegionScaler":
        """What `tensors` and `names_` gave."""
        scaler = cls()
        scaler.names_ = list(names)
        scaler.mean_, scaler.scale_, scaler.all_ = (tensors[f"region_{key}"] for key in ("mean", "scale", "all"))
        return scaler

    def _of(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        share = len(X) / (len(X) + SHRINK)
        return share * X.mean(axis=0) + (1 - share) * self.all_[0], share * X.var(axis=0) + (1 - share) * self.all_[1]

    def _set(self, moments: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.mean_ = np.stack([mean for mean, _ in moments])
        spread = np.sqrt(np.stack([variance for _, variance in moments]))
        self.scale_ = np.where(spread > 0, spread, 1)


__all__ = ["RegionScaler"]
