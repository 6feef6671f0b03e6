"""How good the embeddings of a model in training are: nearest neighbours in labelled data, on places left out."""

import logging
import warnings
from collections.abc import Iterator

import numpy as np
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut
from sklearn.neighbors import KNeighborsClassifier

from .data.plan import select_items
from .data.sample import Sample
from .embedding import Embedder
from .errors import DataError
from .labels import as_label
from .model import CropLEMImageProcessor, CropLEMModel
from .training_config import ProbeConfig

logger = logging.getLogger(__name__)

NEIGHBOURS = 20
MOST_REGIONS = 10
"""Up to so many groups, each is left out in turn, as regions are; of more, as of blocks, a fifth at a time."""


class Probe:
    """Labelled samples and the parts of them that are left out in turn; training never sees them by this way.

    Args:
        config: see `ProbeConfig`.

    Raises:
        DataError: a column is missing, or what is left cannot be scored.
    """

    def __init__(self, config: ProbeConfig):
        self.config = config
        self.source = config.open()
        columns = self.source.columns() if hasattr(self.source, "columns") else {}
        for name in (config.label, config.group):
            if name not in columns:
                raise DataError(f"probe: {config.path} has no column {name!r}; it has {', '.join(columns) or 'none'}")
        labels = np.array([as_label(value) for value in columns[config.label]], object)
        groups = np.array([as_label(value) for value in columns[config.group]], object)
        keep = select_items(self.source, config.where, test_scenes=True) & (labels != None) & (groups != None)  # noqa: E711
        rows = np.flatnonzero(keep)
        # The same samples whatever the run's seed, so that runs can be compared.
        rows = np.sort(np.random.default_rng(0).permutation(rows)[: config.samples])
        self.rows, self.labels, self.groups = rows, labels[rows], groups[rows]
        self.classes = np.unique(self.labels.astype(str))
        self.metric = "AUC" if len(self.classes) == 2 else "balanced accuracy"
        self.folds = self._folds()
        if not self.folds:
            raise DataError(
                f"probe: {len(rows)} labelled samples of {len(np.unique(self.groups.astype(str)))} groups (column "
                f"{config.group!r}) and labels {', '.join(self.classes[:5])} leave no part to test on and another to "
                "learn from, each with two labels; check label, group and where"
            )
        logger.info(
            "probe: %d samples of %s, %s of %s over %d parts of column %s", len(rows), config.path, self.metric,
            config.label, len(self.folds), config.group,
        )  # fmt: skip

    def _folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows to learn from and to test on, no group in both, and two labels or more in each."""
        count = len(np.unique(self.groups.astype(str)))
        if count < 2:
            return []
        splitter = LeaveOneGroupOut() if count <= MOST_REGIONS else GroupKFold(5)
        folds = splitter.split(self.rows, groups=self.groups.astype(str))
        return [fold for fold in folds if all(len(set(self.labels[part])) > 1 for part in fold)]

    def score(self, model: CropLEMModel, processor: CropLEMImageProcessor) -> float:
        """Mean over the parts of the score of nearest neighbours by cosine, 0 to 1: of 20, of few samples of fewer.

        Embeddings are centred by the mean of those learned from. AUC where there are two labels, else balanced
        accuracy; NaN where so few samples can be read that nothing is left to score. The model keeps its mode.
        """
        read = np.zeros(len(self.rows), bool)
        training = model.training
        embedder = Embedder(model, processor, device=model.device)
        found = embedder.encode(self._samples(read), patch_size=self.config.patch_size, centre=False)
        model.train(training)
        vectors = np.full((len(read), found.shape[1]), np.nan)
        vectors[read] = found
        scores = []
        for train, test in self.folds:
            train, test = train[read[train]], test[read[test]]
            if min(len(set(self.labels[part])) for part in (train, test)) < 2:
                continue
            scores.append(self._score(vectors, train, test))
        return float(np.mean(scores)) if scores else float("nan")

    def _samples(self, read: np.ndarray) -> Iterator[Sample]:
        for n, row in enumerate(self.rows.tolist()):
            try:
                sample = self.source[row]
            except DataError as error:
                logger.warning("probe: left out: %s", error)
                continue
            read[n] = True
            yield sample

    def _score(self, vectors: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
        y, centre = self.labels.astype(str), vectors[train].mean(axis=0)
        # Of few samples so many that not all of them vote each time.
        neighbours = KNeighborsClassifier(min(NEIGHBOURS, round(len(train) ** 0.5)), metric="cosine")
        neighbours.fit(vectors[train] - centre, y[train])
        if self.metric == "AUC":
            shares = neighbours.predict_proba(vectors[test] - centre)[:, 1]
            return roc_auc_score(y[test] == neighbours.classes_[1], shares)
        with warnings.catch_warnings():
            # A label that only the part to learn from has may be predicted.
            warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
            return balanced_accuracy_score(y[test], neighbours.predict(vectors[test] - centre))


__all__ = ["MOST_REGIONS", "NEIGHBOURS", "Probe"]
