"""A linear submodular contextual bandit that learns, while labels come in, where the head errs, and covers that.

The value of a batch is the weighted share of the pool that lies near it (Yue and Guestrin 2011, "Linear submodular
bandits"; the shrinking kernel is that of Uncertainty Herding, Bae et al. 2025, arXiv 2412.20644). The weight of a place
is its expected error, linear in a context and learned from the labels that were bought, times that of its region.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.base import BaseEstimator

from ..errors import CheckpointError, DataError
from .coverage import Space, draw_landmarks, lazy_greedy, region_weights
from .strategies import MISSING, Pool, Strategy, fitted_head, stratified_rows

FORMAT = 1
RANDOM_CANDIDATES = 1_500
TOP_CANDIDATES = 2_500
# Contexts are computed for so many random candidates at most: the cost of a round then hardly depends on the pool.
SCREENED = 50_000
WIDTH = 0.7
ERRORS = (0.01, 1.0)
RIDGE = 1.0
CONTEXT = ("constant", "margin", "doubt", "distance", "density", "rarity")
FINGERPRINT_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a row was chosen: `gain` = `coverage` + `uncertainty` + `region`, each a share of all that could be covered.

    row: its number in the pool. gain: share of the weighted expected error of the pool that the row newly covers.
    coverage: the gain if errors were expected everywhere alike and regions counted alike. uncertainty: what is added
    because more (or, negative, fewer) errors than the mean are expected around the row. region: what the weights of the
    regions add or take. new_coverage: share of the pool newly covered, 0 to 1. error: expected error there, 0.01 to 1.
    region_weight: weight of the regions there, 0.2 to 5. region_name: region of the row itself.
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


@dataclasses.dataclass
class Batch:
    """Rows that wait for their labels, with what was known when they were chosen.

    rows: int64 (B,). contexts: float64 (B, 6 + R). new_coverage: float64 (B,). classes: int64 (K,), those of the head,
    none where there was no head yet; probabilities: float64 (B, K).
    """

    rows: np.ndarray
    contexts: np.ndarray
    new_coverage: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def take(self, keep: np.ndarray) -> "Batch":
        """The rows where `keep` (B,) is true."""
        parts = (self.rows, self.contexts, self.new_coverage)
        return Batch(*(part[keep] for part in parts), self.classes, self.probabilities[keep])


class CoverageBandit(Strategy):
    """Chooses rows whose neighbourhood is not covered by labels yet and where the head is expected to err.

        bandit = CoverageBandit(regions, seed=0)
        rows = bandit.query(X, y, batch_size=50)        # works without any label
        y[rows] = ...                                   # some or all of them, now or later
        rows = bandit.query(X, y, batch_size=50)        # learns from those that have come

    A round: contexts z = (1, margin, 1 - max p, distance to the nearest label, density, rarity of the class, region
    one-hot); expected error e = clip(z.theta + alpha sqrt(z A^-1 z), 0.01, 1); some 2,000 landmarks stand for the pool,
    each with weight e x v; lazy greedy choice of the candidates that cover most of it under a Gaussian kernel, whose
    width is 0.7 x the median distance from a landmark to its nearest label (without labels: to as many random rows
    as are asked for). theta is a ridge regression of the observed errors 1 - p_before(y) on z, with the margin as its
    prior. The reward of a row is its error x its new coverage; as the coverage is known when a row is chosen and the
    noise grows with it, regressing the error itself is the weighted least-squares estimate.

    Distances are Euclidean between embeddings from which the mean of the pool is taken and which are then brought to
    length one (raw cosines of such embeddings are all near one). The head sees the embeddings as they are.
    Rows that wait for their label count as covered and are not offered again, unless `candidates` names them.

    Args:
        regions: name of the region of every row (N,), or None for a single one.
        head: scikit-learn classifier with calibrated `predict_proba`, cloned and fitted to the bought labels in every
            round; `LogisticHead` if None.
        rho: weight v of a region with share s of the pool ~ s ** -rho, mean 1 over the pool, clipped to [0.2, 5].
        alpha: how much of the uncertainty of theta is added to the expected error.
        learn: whether labels update theta; False keeps the prior.
        seed: of landmarks and screened candidates.

    Attributes:
        explanations_: one `Explanation` for each row of the last query.
        landmarks_, error_field_: int64 (M,) and float64 (M,), landmarks of the last query and the error expected there.
        rewards_: float64 (n, 4), row, error, new coverage and reward of every label that came after being chosen.
        theta_: float64 (6 + R,), in the order of `context_names_`.
        class_names_: what the codes of y stand for, kept for the caller and saved with the state; empty at first.

    Source of the constants: a comparison on five pools of 570 to 20,000 rows, budgets from 10 to 400 labels.
    """

    cold_start = True

    def __init__(
        self,
        regions: Sequence[str] | None = None,
        head: BaseEstimator | None = None,
        rho: float = 0.5,
        alpha: float = 0.1,
        learn: bool = True,
        seed: int = 0,
    ):
        super().__init__(regions, seed)
        self.head = head
        self.rho = rho
        self.alpha = alpha
        self.learn = learn
        self.explanations_: list[Explanation] = []
        self.rewards_ = np.empty((0, 4))
        self._batches: list[Batch] = []
        self._round = 0
        self._pool: dict | None = None
        self.class_names_: list[str] = []

    @property
    def theta_(self) -> np.ndarray:
        """Coefficients of the expected error."""
        return np.linalg.solve(self._precision, self._target)

    @property
    def context_names_(self) -> list[str]:
        """Names of the parts of a context."""
        return [*CONTEXT, *(f"region {name}" for name in self._pool["regions"])]

    @property
    def pending_(self) -> np.ndarray:
        """Rows that were chosen and have no label yet, int64."""
        return np.concatenate([np.empty(0, np.int64), *(batch.rows for batch in self._batches)])

    def _turn(self, pool: Pool) -> int:
        return self._round

    def _open_rows(self, y: np.ndarray) -> np.ndarray:
        return np.flatnonzero(_marked(y == MISSING, self.pending_, False))

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        if self._pool is None:
            self._begin(pool)
        self._receive(pool.y)
        share = np.bincount(pool.region, minlength=len(pool.regions)) / len(pool.X)
        weight = region_weights(share, self.rho)
        landmarks, stands_for = draw_landmarks(pool.region, share, rng)
        # Every region gives as many as any other, or the smallest would have hardly a candidate in a large pool.
        screened = stratified_rows(
            rng.permutation(pool.candidates), pool.region, np.zeros(len(share)), min(SCREENED, len(pool.candidates)),
            rng,
        )
        rng.shuffle(screened)
        head = fitted_head(self.head, pool.X, pool.y)
        space = Space(pool.X, landmarks)
        known = np.flatnonzero(_marked(pool.y != MISSING, self.pending_, True))
        anchors = known if len(known) else rng.choice(len(pool.X), min(pool.batch_size, len(pool.X)), replace=False)
        width = max(WIDTH * float(np.median(space.nearest(landmarks, anchors))), 1e-6)

        contexts = self._contexts(pool, landmarks, space, known, head)
        error = self._expected_error(contexts)
        scores = self._expected_error(self._contexts(pool, screened, space, known, head))
        scores *= weight[pool.region[screened]]
        allowed = _marked(np.zeros(len(pool.X), bool), pool.candidates, True)
        candidates = _shortlist(screened, scores, landmarks[allowed[landmarks]], pool.batch_size)
        covered = np.zeros(len(landmarks))
        if len(known):
            covered = np.exp(-0.5 * (space.nearest(landmarks, known) / width) ** 2)
        kernel = np.exp(-0.5 * space.squares(candidates, landmarks) / width**2)
        value = stands_for * error * weight[pool.region[landmarks]]
        places, gained, _ = lazy_greedy(kernel, covered, value, pool.batch_size)

        rows = candidates[places]
        self._remember(rows, self._contexts(pool, rows, space, known, head), gained @ stands_for, pool, head)
        self.landmarks_, self.error_field_ = landmarks, error
        self.explanations_ = _explain(rows, gained, stands_for, error, weight[pool.region[landmarks]], pool)
        self._round += 1
        return rows

    def _begin(self, pool: Pool) -> None:
        """Prior, and what the pool of all later rounds must be like."""
        self._pool = _describe(pool.X, pool.regions)
        prior = np.zeros(len(CONTEXT) + len(pool.regions))
        prior[CONTEXT.index("margin")] = 1
        self._precision, self._target = RIDGE * np.eye(len(prior)), RIDGE * prior

    def _recognise(self, X: np.ndarray, regions: list[str]) -> None:
        """Refuse another pool than that of the earlier rounds: row numbers and contexts would mean nothing."""
        if self._pool is None:
            return
        found = _describe(X, regions)
        different = [key for key in found if found[key] != self._pool[key]]
        if different:
            raise DataError(
                f"this pool differs from that of the earlier rounds in {', '.join(different)}; give the same "
                "embeddings and regions in the same order, or start a new CoverageBandit"
            )

    def _receive(self, y: np.ndarray) -> None:
        """Learn from the labels that have come for rows chosen earlier."""
        for batch in self._batches:
            here = batch.take(y[batch.rows] != MISSING)
            if not len(here.rows) or not len(batch.classes):
                continue
            # A class that the head did not know had probability 0.
            error = 1 - np.sum(here.probabilities * (here.classes == y[here.rows][:, None]), axis=1)
            new = np.stack([here.rows, error, here.new_coverage, error * here.new_coverage], axis=1)
            self.rewards_ = np.concatenate([self.rewards_, new])
            if self.learn:
                self._precision = self._precision + here.contexts.T @ here.contexts
                self._target = self._target + here.contexts.T @ error
        waiting = [batch.take(y[batch.rows] == MISSING) for batch in self._batches]
        self._batches = [batch for batch in waiting if len(batch.rows)]

    def _contexts(
        self, pool: Pool, rows: np.ndarray, space: "Space", known: np.ndarray, head: BaseEstimator | None
    ) -> np.ndarray:
        """Contexts of rows (n,), float64 (n, 6 + R); all parts lie between 0 and 1."""
        context = np.zeros((len(rows), len(CONTEXT) + len(pool.regions)))
        context[:, 0] = 1
        # Without a head nothing is known: full doubt. Without a label all is as far as vectors of length one can be.
        context[:, 1:4] = 1
        if head is not None:
            probability = head.predict_proba(pool.X[rows])
            best = np.sort(probability, axis=1)[:, -2:]
            context[:, 1] = 1 - (best[:, 1] - best[:, 0])
            context[:, 2] = 1 - best[:, 1]
            classes, count = np.unique(pool.y[pool.labelled], return_counts=True)
            rare = 1 - count / count.max()
            context[:, 5] = probability @ rare[np.searchsorted(classes, head.classes_)]
        if len(known):
            context[:, 3] = space.nearest(rows, known) / 2
        context[:, 4] = space.density(rows)
        context[np.arange(len(rows)), len(CONTEXT) + pool.region[rows]] = 1
        return context

    def _expected_error(self, contexts: np.ndarray) -> np.ndarray:
        """Upper bound of the error expected for contexts (n, 6 + R), float64 (n,)."""
        spread = np.sqrt(np.sum(contexts @ np.linalg.inv(self._precision) * contexts, axis=1))
        return np.clip(contexts @ self.theta_ + self.alpha * spread, *ERRORS)

    def _remember(
        self, rows: np.ndarray, contexts: np.ndarray, coverage: np.ndarray, pool: Pool, head: BaseEstimator | None
    ) -> None:
        """Keep what the coming labels will be judged by; a row that waits already is judged by its last choice."""
        self._batches = [batch.take(~np.isin(batch.rows, rows)) for batch in self._batches]
        classes = np.empty(0, np.int64) if head is None else np.asarray(head.classes_, np.int64)
        known = np.empty((len(rows), 0)) if head is None else np.asarray(head.predict_proba(pool.X[rows]), np.float64)
        self._batches.append(Batch(rows, contexts, coverage, classes, known))

    def save(self, path: str | os.PathLike) -> None:
        """Write the state as one safetensors file with a JSON header, whole or not at all.

        Loaded again, the bandit goes on bit by bit. The head and the regions of the rows are not in it.

        Raises:
            DataError: there was no query yet, so that there is nothing to go on from.
        """
        if self._pool is None:
            raise DataError(f"{path}: the bandit has not chosen anything yet; save it after the first query")
        arrays = {"precision": self._precision, "target": self._target, "rewards": self.rewards_}
        for number, batch in enumerate(self._batches):
            arrays |= {f"{number}.{key}": value for key, value in dataclasses.asdict(batch).items()}
        about = {
            "format": FORMAT, "pool": self._pool, "round": self._round, "batches": len(self._batches),
            "seed": int(self.seed), "rho": self.rho, "alpha": self.alpha, "learn": self.learn, "head": repr(self.head),
            "class_names": self.class_names_,
        }  # fmt: skip
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.tmp")
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        save_file(arrays, partial, {"bandit": json.dumps(about)})
        os.replace(partial, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike, regions: Sequence[str] | None = None, head: BaseEstimator | None = None
    ) -> "CoverageBandit":
        """Read what `save` wrote; `regions` and `head` are given as they were at construction.

        Raises:
            CheckpointError: the file is missing, damaged, foreign or of another format, or made with another head.
        """
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["bandit"])
                arrays = {key: file.get_tensor(key) for key in file.keys()}
            found = about["format"]
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such file; CoverageBandit.save writes one") from error
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: is no state of a CoverageBandit, or is damaged ({error})") from error
        if found != FORMAT:
            raise CheckpointError(
                f"{path}: state of format {found}, this library reads {FORMAT}; update croplem_hf"
            )
        if about["head"] != repr(head):
            raise CheckpointError(f"{path}: was made with head {about['head']}, not {head!r}; give the same head")
        bandit = cls(regions, head, about["rho"], about["alpha"], about["learn"], about["seed"])
        bandit._pool, bandit._round, bandit.class_names_ = about["pool"], about["round"], about["class_names"]
        bandit._precision, bandit._target, bandit.rewards_ = (arrays[key] for key in ("precision", "target", "rewards"))
        names = [field.name for field in dataclasses.fields(Batch)]
        bandit._batches = [Batch(*(arrays[f"{n}.{name}"] for name in names)) for n in range(about["batches"])]
        return bandit


def _describe(X: np.ndarray, regions: list[str]) -> dict:
    """What tells one pool from another: its size, regions, and a hash of a few hundred of its rows."""
    picked = np.linspace(0, len(X) - 1, min(FINGERPRINT_ROWS, len(X))).astype(int)
    digest = hashlib.sha256(np.ascontiguousarray(X[picked]).tobytes()).hexdigest()
    return {"rows": len(X), "dimensions": X.shape[1], "regions": regions, "sha256": digest}


def _marked(mask: np.ndarray, rows: np.ndarray, value: bool) -> np.ndarray:
    """A copy of `mask` (N,) with `rows` set to `value`: set operations on rows without sorting the pool."""
    mask = mask.copy()
    mask[rows] = value
    return mask


def _shortlist(screened: np.ndarray, scores: np.ndarray, landmarks: np.ndarray, count: int) -> np.ndarray:
    """Random candidates, those of highest weight and the landmarks among them: enough for a batch of `count`."""
    chance = screened[: max(RANDOM_CANDIDATES, count)]
    top = screened[np.argsort(-scores, kind="stable")[:TOP_CANDIDATES]]
    return np.unique(np.concatenate([chance, top, landmarks]))


def _explain(
    rows: np.ndarray, gained: np.ndarray, stands_for: np.ndarray, error: np.ndarray, weight: np.ndarray, pool: Pool
) -> list[Explanation]:
    """The gain of every row, taken apart in the order coverage, error, region (a telescoping sum, so it adds up)."""
    mean_error, mean_weight = stands_for @ error, stands_for @ weight
    total = stands_for @ (error * weight)
    new = gained * stands_for
    coverage = new.sum(axis=1) * mean_error * mean_weight / total
    uncertainty = new @ (error - mean_error) * mean_weight / total
    region = new @ (error * (weight - mean_weight)) / total
    share = new.sum(axis=1)
    safe = np.where(share > 0, share, 1)
    return [
        Explanation(
            row=int(row),
            gain=float(coverage[n] + uncertainty[n] + region[n]),
            coverage=float(coverage[n]),
            uncertainty=float(uncertainty[n]),
            region=float(region[n]),
            new_coverage=float(share[n]),
            error=float(new[n] @ error / safe[n]),
            region_weight=float(new[n] @ weight / safe[n]),
            region_name=pool.regions[pool.region[row]],
        )
        for n, row in enumerate(rows)
    ]


__all__ = ["Batch", "CoverageBandit", "Explanation"]
