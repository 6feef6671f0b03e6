"""What all heads share: standardisation, calibration, the settings of the embeddings, regions, and files.

A kind of head gives its parameters, `_learn` (standardised vectors and codes of classes -> fitted arrays), `_scores`
(standardised vectors -> unnormalised log probabilities) and `TENSORS`, the names of its fitted arrays.
"""

import copy
import os
import warnings
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import CheckpointError, DataError
from ..table import different_settings
from .calibrate import CALIBRATIONS, apply_isotonic, fit_isotonic, fit_temperature, held_out_scores
from .conformal import ConformalSets


class Head(ClassifierMixin, BaseEstimator):
    """A classifier on frozen embeddings with calibrated probabilities, saved without pickle; see its kinds.

    The scores of held-out rows of the training decide the calibration. "temperature": one divisor for all scores (Guo
    et al. 2017, arXiv 1706.04599), never below `COOLEST`, and 1 unless it lowers their cross-entropy by more than a
    standard error over groups, so that chance does not blunt a head that is right. "isotonic": a curve a class; for a
    thousand labels and more. "none".

    Few labels: a class with one label (or one group) takes part in the training and not in the calibration; where
    fewer than two classes have two, the temperature stays 1 and `calibrated_` is False; "isotonic" is then refused.

    Attributes:
        classes_: (K,), sorted. n_labels_: int64 (K,), labels of each class in training.
        mean_, scale_: float64 (D,), of the training rows. temperature_: float; isotonic_: float64 (3, points).
        calibrated_: whether the calibration could be fitted.
        info_: settings of the embeddings, `info` of their table; content_hash_: of the table's ids and vectors;
            patch_: `height` and `width` in pixels, `gsd` in metres, `sensors` and `s2_level`, None where the labelled
            rows differ; `s1_date_count` and `s2_date_count`, the fewest and the most dates.
            Filled in by `fit_head`; empty after `fit` on arrays.
        regions_: `RegionCentre` where every region is centred on its own embeddings, else None.
        neighbourhood_: `LabelledNeighbourhood` of the training, from `fit_head`, else None.
        conformal_: `ConformalSets` after `conformalise`, else None.
    """

    TENSORS: tuple[str, ...] = ()
    COOLEST = 1.0
    """The least temperature: heads that were made surer did worse in regions left out (benchmarks/RESULTS.md)."""

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> "Head":
        """Learn from labelled embeddings.

        Args:
            X: float (n, D).
            y: (n,), text or whole numbers, two classes at least.
            groups: (n,), spatial blocks that the calibration does not split; neighbours share their errors, and a
                split between them would make the head too sure.

        Raises:
            DataError: NaN or infinite values, one class only, groups of another length, an unknown calibration, or too
                few labels for an isotonic one.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False)
        check_finite(X)
        if self.calibration not in CALIBRATIONS:
            raise DataError(f"calibration is one of {', '.join(CALIBRATIONS)}, found {self.calibration!r}")
        if groups is not None and len(groups) != len(y):
            raise DataError(f"groups name {len(groups)} rows, X has {len(y)}; give one group for each row")
        with warnings.catch_warnings():
            # Few labels of many classes are what a head starts from, not a regression in disguise.
            warnings.filterwarnings("ignore", message="The number of unique classes")
            check_classification_targets(y)
            self.classes_, codes, self.n_labels_ = np.unique(y, return_inverse=True, return_counts=True)
            if len(self.classes_) < 2:
                name = self.classes_.tolist()[0]
                raise DataError(f"all {len(y)} labels are of one class, {name!r}; a head needs two at least")
            weight = compute_sample_weight(self.class_weight, y)
        self._calibrate(X, codes, weight, groups)
        self._standardise_and_learn(X, codes, weight)
        self.info_, self.content_hash_, self.patch_ = {}, None, {}
        self.regions_ = self.neighbourhood_ = self.conformal_ = None
        return self

    def predict_proba(self, X: np.ndarray, regions: Sequence[str] | str | None = None) -> np.ndarray:
        """Probabilities, float64 (M, K), in the order of `classes_`.

        Args:
            X: float (M, D).
            regions: name of the region of each row, or of all rows: needed where `regions_` is not None, else not used.

        Raises:
            DataError: NaN or infinite values, or no region or an unknown one where regions are centred.
        """
        scores = self._scores(self._standardised(X, regions))
        if self.calibration == "isotonic":
            return apply_isotonic(self.isotonic_, softmax(scores, axis=1))
        return softmax(scores / self.temperature_, axis=1)

    def predict(self, X: np.ndarray, regions: Sequence[str] | str | None = None) -> np.ndarray:
        """The most probable class of each row (M,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X, regions).argmax(axis=1)]

    def conformalise(self, X: np.ndarray, y: Sequence, regions: Sequence[str] | None = None) -> "Head":
        """Learn from labels that were not in training how large sets of classes must be (`predict_set`).

        Args:
            X: float (n, D). y: (n,), classes that the head knows.
            regions: (n,); each region is then calibrated by its own labels.

        Raises:
            DataError: a class that the head does not know.
        """
        proba = self.predict_proba(X, regions if self.regions_ is not None else None)
        self.conformal_ = ConformalSets().fit(proba, _codes(self.classes_, y), regions)
        return self

    def predict_set(
        self, X: np.ndarray, regions: Sequence[str] | None = None, *, confidence: float = 0.9
    ) -> np.ndarray:
        """Sets of classes that hold the true one as often as `confidence` says: bool (M, K), see `ConformalSets`.

        Raises:
            DataError: `conformalise` was not called, or regions are missing.
        """
        check_is_fitted(self)
        if self.conformal_ is None:
            raise DataError("the head has no labels for sets of classes; call conformalise with labels kept apart")
        proba = self.predict_proba(X, regions if self.regions_ is not None else None)
        return self.conformal_.predict(proba, regions, confidence=confidence)

    def far_from_labels(self, X: np.ndarray, regions: Sequence[str] | str | None = None) -> np.ndarray:
        """Rows unlike all that was labelled, bool (M,): what the head says of them is a guess (`novelty`).

        Raises:
            DataError: the head was fitted on arrays and not by `fit_head`.
        """
        check_is_fitted(self)
        if self.neighbourhood_ is None:
            raise DataError("the head keeps no labelled embeddings; fit it with fit_head")
        return self.neighbourhood_.far(self._standardised(X, regions))

    def for_region(self, name: str, X: np.ndarray | None = None) -> "Head":
        """A copy for rows of one region, whose methods need no `regions`; itself where regions are not centred.

        Args:
            name: the region.
            X: float (M, D), unlabelled embeddings of a region that the head does not know.

        Raises:
            DataError: the head does not know the region, and no embeddings were given.
        """
        check_is_fitted(self)
        if self.regions_ is None:
            return self
        head = copy.copy(self)
        head.regions_ = self.regions_.only(name, X)
        return head

    def check_settings(self, info: dict) -> None:
        """Refuse embeddings that were not made as those of the training were.

        Args:
            info: `info` of an embeddings table, or of `Embedder.info`.

        Raises:
            CheckpointError: naming the settings that differ.
        """
        check_is_fitted(self)
        different = different_settings(info, self.info_)
        if different:
            raise CheckpointError(
                f"these embeddings differ from those of the head in {', '.join(different)}; embed with the model and "
                "settings of the head, or fit a head to these"
            )

    def save(self, folder: str | os.PathLike) -> None:
        """Write `head.json` and `head.safetensors`, whole or not at all; a head that is there is replaced.

        Raises:
            DataError: something else than a head lies there, or classes are neither text nor whole numbers.
        """
        from .files import save_head

        check_is_fitted(self)
        save_head(self, folder)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
    ) -> "Head":
        """Read what `save` wrote: the probabilities are the same to the last bit. `Head.load` reads any kind.

        Args:
            folder: the folder, or where there is none of that name "owner/name", a model repository of the Hub.
            revision, token: for the Hub.

        Raises:
            CheckpointError: no head there, another kind of head, or files missing, damaged, foreign or of another
                format.
        """
        from .files import load_head

        head = load_head(folder, revision=revision, token=token)
        if not isinstance(head, cls):
            raise CheckpointError(f"{folder}: a {type(head).__name__}, not a {cls.__name__}; Head.load reads any kind")
        return head

    def tensors(self) -> dict[str, np.ndarray]:
        """All that was fitted and decides the probabilities, by name."""
        check_is_fitted(self)
        names = ("mean_", "scale_", "temperature_", *(("isotonic_",) if self.calibration == "isotonic" else ()))
        found = {name: np.ascontiguousarray(np.atleast_1d(getattr(self, name))) for name in (*names, *self.TENSORS)}
        return found | ({} if self.regions_ is None else self.regions_.tensors())

    def _learn(self, Z: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
        raise NotImplementedError

    def _scores(self, Z: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _standardise_and_learn(self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray) -> None:
        scaler = StandardScaler().fit(X)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        self._learn(scaler.transform(X), codes, weight)

    def _standardised(self, X: np.ndarray, regions: Sequence[str] | str | None) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=False)
        check_finite(X)
        if self.regions_ is not None:
            X = self.regions_.transform(X, regions)
        return (X - self.mean_) / self.scale_

    def _calibrate(self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray, groups: np.ndarray | None) -> None:
        self.temperature_, self.calibrated_ = 1.0, False
        if self.calibration == "none":
            return

        def predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            model = copy.copy(self)
            model._standardise_and_learn(X[train], np.unique(codes[train], return_inverse=True)[1], weight[train])
            return model._scores((X[test] - model.mean_) / model.scale_)

        found = held_out_scores(predict, codes, groups, self.cv, self.random_state)
        if self.calibration == "isotonic":
            if found is None or len(found[0]) < len(self.classes_):
                raise DataError(
                    "isotonic calibration needs two groups at least of every class, spread over the folds; use "
                    "calibration 'temperature'"
                )
            self.isotonic_, self.calibrated_ = fit_isotonic(softmax(found[1], axis=1), found[2]), True
        elif found is not None:
            self.temperature_, self.calibrated_ = fit_temperature(*found[1:], coolest=self.COOLEST), True


def check_finite(X: np.ndarray) -> None:
    """Refuse NaN and infinite values, naming the first row."""
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise DataError(f"row {bad[0]} of X holds NaN or infinite values ({len(bad)} such rows); leave them out")


def _codes(classes: np.ndarray, y: Sequence) -> np.ndarray:
    y = np.asarray(y)
    places = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    if (classes[places] != y).any():
        unknown = y[classes[places] != y].tolist()[0]
        raise DataError(f"class {unknown!r} was not seen in training (known: {', '.join(map(str, classes))})")
    return places


__all__ = ["Head", "check_finite"]
