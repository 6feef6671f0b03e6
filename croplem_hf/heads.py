"""Small classifiers on frozen embeddings, with calibrated probabilities, saved without pickle.

    table = read_table("patches.parquet")
    head = fit_head(table, match_labels(table, read_labels("labels.csv")))
    head.save("cropland.head")
    LogisticHead.load("cropland.head").predict_proba(other.vectors)
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from . import __version__
from .errors import CheckpointError, DataError
from .hub import fetch
from .labels import spatial_blocks
from .table import SETTINGS, EmbeddingsTable

FORMAT = 1
FILES = ("head.json", "head.safetensors")
TENSORS = ("mean_", "scale_", "coef_", "intercept_", "temperature_")
PATCH = ("height", "width", "gsd", "sensors", "s2_level")
TEMPERATURES = (0.05, 50.0)
# Seconds on 17,681 x 128: two classes 0.08, 0.5 by newton-cg, 1.1 by lbfgs; on 3,907 x 128, ten classes 2.0, 0.5, 1.2.
SOLVERS = {True: "newton-cholesky", False: "newton-cg"}


class LogisticHead(ClassifierMixin, BaseEstimator):
    """Standardisation, logistic regression, and one temperature fitted to held-out scores of the training labels.

    The scores are divided by the temperature (Guo et al. 2017, arXiv 1706.04599), so that a head is as sure as its
    cross-validation is right. Targets are softened to 1 - 1 / (n + 2) (after Platt 1999): with bare targets, as in
    `CalibratedClassifierCV(method="temperature")`, few labels that are all found right make a head certain.

    Few labels: a class with one label (or one group) takes part in the regression and not in the calibration; where
    fewer than two classes have two, the temperature stays 1 and `calibrated_` is False.

    Args:
        C: inverse strength of the L2 penalty.
        class_weight: None, "balanced" or a weight by class; weights other than None shift the probabilities.
        cv: folds of the calibration, at most; fewer where a class has fewer labels.
        random_state: of the folds.

    Attributes:
        classes_: (K,), sorted. n_labels_: int64 (K,), labels of each class in training.
        mean_, scale_: float64 (D,). coef_: float64 (K or 1, D). intercept_: float64 (K or 1,). temperature_: float.
        calibrated_: whether the temperature was fitted.
        info_: settings of the embeddings, `info` of their table; content_hash_: of the table's ids and vectors;
            patch_: `height` and `width` in pixels, `gsd` in metres and `sensors`, None where the labelled rows differ.
            Filled in by `fit_head`; empty after `fit` on arrays.
    """

    def __init__(self, C: float = 1.0, *, class_weight=None, cv: int = 5, random_state: int = 0):
        self.C = C
        self.class_weight = class_weight
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> "LogisticHead":
        """Learn from labelled embeddings.

        Args:
            X: float (n, D).
            y: (n,), text or whole numbers, two classes at least.
            groups: (n,), spatial blocks that the calibration does not split; neighbours share their errors, and a
                split between them would make the head too sure.

        Raises:
            DataError: NaN or infinite values, one class only, or groups of another length.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite=False)
        _check_finite(X)
        with warnings.catch_warnings():
            # Few labels of many classes are what a head starts from, not a regression in disguise.
            warnings.filterwarnings("ignore", message="The number of unique classes")
            return self._fit(X, y, groups)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities, float64 (M, K), in the order of `classes_`.

        Raises:
            DataError: NaN or infinite values.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False, ensure_all_finite=False)
        _check_finite(X)
        scores = ((X - self.mean_) / self.scale_) @ self.coef_.T + self.intercept_
        return softmax(_logits(scores) / self.temperature_, axis=1)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class of each row (M,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def check_settings(self, info: dict) -> None:
        """Refuse embeddings that were not made as those of the training were.

        Args:
            info: `info` of an embeddings table, or of `Embedder.info`.

        Raises:
            CheckpointError: naming the settings that differ.
        """
        check_is_fitted(self)
        different = [key for key in SETTINGS if info.get(key) != self.info_.get(key)]
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
        check_is_fitted(self)
        folder = Path(os.path.abspath(folder))
        foreign = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
        if foreign and not (folder / FILES[0]).is_file():
            raise DataError(f"{folder}: exists and is no head; give another name")
        classes = self.classes_.tolist()
        if not (all(type(c) is str for c in classes) or all(type(c) is int for c in classes)):
            raise DataError(f"classes must be text or whole numbers to be saved, found {classes[0]!r}")
        weights = self.class_weight
        if isinstance(weights, dict):
            # JSON has text keys only; classes may be numbers.
            weights = [[name.item() if isinstance(name, np.generic) else name, w] for name, w in weights.items()]
        about = {
            "format": FORMAT, "library_version": __version__, "kind": type(self).__name__, "classes": classes,
            "n_labels": self.n_labels_.tolist(), "calibrated": self.calibrated_, "dim": self.n_features_in_,
            "parameters": self.get_params() | {"class_weight": weights},
            "content_hash": self.content_hash_, "patch": self.patch_, "unit": self.info_.get("unit"),
            "settings": {key: self.info_[key] for key in SETTINGS if key in self.info_}, "info": self.info_,
        }  # fmt: skip
        # Hidden names that nobody else uses: what lies there is left over from a killed `save`.
        partial, old = (folder.with_name(f".{folder.name}.croplem-{end}") for end in ("new", "old"))
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir(parents=True)
        tensors = {name: np.atleast_1d(getattr(self, name)) for name in TENSORS}
        # safetensors writes the memory as it lies, which the solver may have left in columns.
        save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, partial / FILES[1])
        about["sha256"] = _sha256(partial / FILES[1])
        (partial / FILES[0]).write_text(json.dumps(about, indent=1))
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(
        cls, folder: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
    ) -> "LogisticHead":
        """Read what `save` wrote: the probabilities are the same to the last bit.

        Args:
            folder: the folder, or where there is none of that name "owner/name", a model repository of the Hub.
            revision, token: for the Hub.

        Raises:
            CheckpointError: no head there, or files missing, damaged, foreign or of another format.
        """
        folder = fetch(folder, "head", revision=revision, token=token)
        try:
            about = json.loads((folder / FILES[0]).read_text())
            if about["format"] != FORMAT:
                raise CheckpointError(
                    f"{folder}: a head of format {about['format']}, this library reads {FORMAT}; fit it again"
                )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CheckpointError(f"{folder}: no head here (no {FILES[0]}); `croplem fit` writes one") from error
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: {FILES[0]} is damaged ({error!r}); fit the head again") from error
        if not (folder / FILES[1]).is_file():
            raise CheckpointError(f"{folder}: {FILES[1]} is missing; fit the head again")
        if _sha256(folder / FILES[1]) != about.get("sha256"):
            raise CheckpointError(f"{folder}: {FILES[1]} is damaged or foreign (checksum); fit the head again")
        try:
            tensors = load_file(folder / FILES[1])
            weights = about["parameters"]["class_weight"]
            weights = {k: v for k, v in weights} if isinstance(weights, list) else weights
            head = cls(**about["parameters"] | {"class_weight": weights})
            for name in TENSORS:
                setattr(head, name, tensors[name])
            head.temperature_ = float(head.temperature_[0])
            head.classes_, head.n_labels_ = np.array(about["classes"]), np.array(about["n_labels"], np.int64)
            head.calibrated_, head.n_features_in_ = about["calibrated"], about["dim"]
            head.info_, head.content_hash_, head.patch_ = about["info"], about["content_hash"], about["patch"]
        except (SafetensorError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: not the files of a {cls.__name__} ({error!r})") from error
        return head

    def _fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray | None) -> "LogisticHead":
        check_classification_targets(y)
        if groups is not None and len(groups) != len(y):
            raise DataError(f"groups name {len(groups)} rows, X has {len(y)}; give one group for each row")
        self.classes_, codes, self.n_labels_ = np.unique(y, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            name = self.classes_.tolist()[0]
            raise DataError(f"all {len(y)} labels are of one class, {name!r}; a head needs two at least")
        solver = SOLVERS[len(self.classes_) == 2]
        regression = LogisticRegression(C=self.C, class_weight=self.class_weight, solver=solver, max_iter=2000)
        model = make_pipeline(StandardScaler(), regression)
        self.temperature_ = self._calibrate(model, X, y, codes, groups)
        self.calibrated_ = self.temperature_ is not None
        self.temperature_ = self.temperature_ or 1.0
        model.fit(X, y)
        self.mean_, self.scale_ = model[0].mean_, model[0].scale_
        self.coef_, self.intercept_ = np.ascontiguousarray(model[1].coef_), model[1].intercept_
        self.info_, self.content_hash_, self.patch_ = {}, None, {}
        return self

    def _calibrate(self, model, X, y, codes, groups) -> float | None:
        """Temperature of least cross-entropy over held-out scores; None where no folds can be made."""
        own = np.arange(len(y)) if groups is None else np.asarray(groups)
        of_class = np.array([len(np.unique(own[codes == k])) for k in range(len(self.classes_))])
        rows = np.flatnonzero((of_class >= 2)[codes])
        if np.sum(of_class >= 2) < 2:
            return None
        folds = min(self.cv, of_class[of_class >= 2].min())
        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        splitter = kind(folds, shuffle=True, random_state=self.random_state)
        splits = list(splitter.split(X[rows], codes[rows], None if groups is None else own[rows]))
        names, codes = np.unique(codes[rows], return_inverse=True)
        # Blocks of one class can all fall into one fold.
        if any(len(np.unique(codes[train])) < len(names) for train, _ in splits):
            return None
        scores = cross_val_predict(model, X[rows], y[rows], cv=splits, method="decision_function")
        return _temperature(_logits(scores), codes)


def fit_head(table: EmbeddingsTable, y: Sequence[str | None], *, block: str = "block", **parameters) -> LogisticHead:
    """A head for the labelled rows of a table, which it remembers.

    Args:
        table: N embeddings.
        y: N labels, None where a row has none (`match_labels`).
        block: metadata column of spatial blocks for the calibration; not used where the table has no such column.
        parameters: of `LogisticHead`.

    Raises:
        DataError: one class only, or no label at all.
    """
    y = np.asarray(y, object)
    rows = np.flatnonzero([label is not None for label in y])
    if len(rows) == 0:
        raise DataError("no row of the table has a label; a head needs labels of two classes at least")
    groups = spatial_blocks(table, block)
    head = LogisticHead(**parameters)
    head.fit(table.vectors[rows], np.array(y[rows].tolist()), None if groups is None else groups[rows])
    head.info_, head.content_hash_ = table.info, table.content_hash
    for column in PATCH:
        if column in table.metadata.column_names:
            values = set(table.metadata[column].take(pa.array(rows)).to_pylist())
            head.patch_[column] = values.pop() if len(values) == 1 else None
    return head


def _logits(scores: np.ndarray) -> np.ndarray:
    """Scores of a logistic regression as (M, K); two classes give one column, that of the second."""
    scores = scores.reshape(len(scores), -1)
    return np.concatenate([np.zeros_like(scores), scores], axis=1) if scores.shape[1] == 1 else scores


def _temperature(logits: np.ndarray, codes: np.ndarray) -> float:
    count, classes = logits.shape
    target = np.full((count, classes), 1 / (count + 2) / (classes - 1))
    target[np.arange(count), codes] = 1 - 1 / (count + 2)

    def loss(log_temperature: float) -> float:
        return -np.mean(np.sum(target * log_softmax(logits / np.exp(log_temperature), axis=1), axis=1))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def _check_finite(X: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise DataError(f"row {bad[0]} of X holds NaN or infinite values ({len(bad)} such rows); leave them out")


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


__all__ = ["LogisticHead", "fit_head"]
