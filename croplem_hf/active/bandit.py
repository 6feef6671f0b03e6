"""A linear submodular contextual bandit that learns, while labels come in, where the head errs, and covers that.

The value of a batch is the weighted share of the pool that lies near it (Yue and Guestrin 2011, "Linear submodular
bandits"; the shrinking kernel is that of Uncertainty Herding, Bae et al. 2025, arXiv 2412.20644). The weight of a place
is its expected error, linear in a context and learned from the labels that were bought, times that of its region. A
calibrated head that knows little doubts everywhere alike, and coverage then decides.
"""

import os
from collections.abc import Sequence

import numpy as np
from sklearn.base import BaseEstimator

from ..errors import CheckpointError, DataError
from .context import CONTEXT, contexts_of
from .coverage import LANDMARKS, Space, check_target, draw_landmarks, lazy_greedy, region_weights
from .explain import Explanation, explain
from .memory import Batch, describe_pool, read_state, write_state
from .strategies import MISSING, Pool, Strategy, fitted_head, stratified_rows
from .trips import Trips

RANDOM_CANDIDATES = 1_500
TOP_CANDIDATES = 2_500
# Contexts are computed for so many random candidates at most: the cost of a round then hardly depends on the pool.
SCREENED = 10_000
WIDTH = 0.7
ERRORS = (0.01, 1.0)
RIDGE = 1.0


class CoverageBandit(Strategy):
    """Chooses rows whose neighbourhood is not covered by labels yet and where the head is expected to err.

        bandit = CoverageBandit(regions, seed=0)
        rows = bandit.query(X, y, batch_size=50)        # works without any label
        y[rows] = ...                                   # some or all of them, now or later
        rows = bandit.query(X, y, batch_size=50)        # learns from those that have come

    A round: contexts z = (1, margin, 1 - max p, distance to the nearest label, density, rarity of the class, region
    one-hot); expected error e = clip(z.theta + alpha sqrt(z A^-1 z), 0.01, 1). `explore` of the batch are random rows,
    equal in number over regions. Some 2,000 landmarks stand for the pool, each with weight e x v; lazy greedy choice of
    the candidates that cover most of what labels and the random rows leave, under a Gaussian kernel, whose width is 0.7
    x the median distance from a landmark to its nearest label (without labels: to as many random rows as are asked
    for). theta is a ridge regression of the observed errors 1 - p_before(y) on z, with the margin as its prior. The
    reward of a row is its error x its new coverage; as the coverage is known when a row is chosen and the noise grows
    with it, regressing the error itself is the weighted least-squares estimate.

    Distances are Euclidean between embeddings from which the mean of the pool is taken and which are then brought to
    length one (raw cosines of such embeddings are all near one). The head sees the embeddings as they are.
    Rows that wait for their label count as covered and are not offered again, unless `candidates` names them.

    With `target`, unlabelled embeddings of the place that is to be predicted, landmarks are drawn from it and not from
    the pool: what is bought resembles what the head will be used on. Regions then have no weights.

    Args:
        regions: name of the region of every row (N,), or None for a single one.
        head: scikit-learn classifier with calibrated `predict_proba`, cloned and fitted to the bought labels in every
            round; `LogisticHead` if None.
        rho: weight v of a region with share s of the pool ~ s ** -rho, mean 1 over the pool, clipped to [0.2, 5].
        alpha: how much of the uncertainty of theta is added to the learned error.
        explore: share of a batch that is drawn at random, 0 to 1. With `trips` nothing is: chance buys what is dear.
        learn: whether labels change anything but the head; False keeps the prior of theta.
        trips: prices of rows and of ways, `Trips`; all rows cost the same where None.
        target: float (M, D), or None where the pool itself is to be predicted.
        seed: of landmarks, screened candidates and random rows.

    Attributes:
        explanations_: one `Explanation` for each row of the last query.
        landmarks_, error_field_: int64 (M,) and float64 (M,), landmarks of the last query, numbered from N on where
            they are of the target, and the error expected there.
        rewards_: float64 (n, 5), row, error, new coverage, reward, and 1 where chance drew it, of every label that came
            after being chosen.
        theta_: float64 (6 + R,), in the order of `context_names_`.
        class_names_: what the codes of y stand for, kept for the caller and saved with the state; empty at first.

    Source of the constants: comparisons on pools of 570 to 20,000 rows, budgets from 10 to 400 labels; of `explore`,
    benchmarks/RESULTS.md.
    """

    cold_start = True

    def __init__(
        self,
        regions: Sequence[str] | None = None,
        head: BaseEstimator | None = None,
        rho: float = 0.5,
        alpha: float = 0.1,
        explore: float = 0.0,
        learn: bool = True,
        trips: Trips | None = None,
        target: np.ndarray | None = None,
        seed: int = 0,
    ):
        super().__init__(regions, seed)
        if not 0 <= explore <= 1:
            raise DataError(f"explore is a share from 0 to 1, found {explore}")
        self.head = head
        self.rho = rho
        self.alpha = alpha
        self.explore = explore
        self.learn = learn
        self.trips = trips
        self.target = target
        self.explanations_: list[Explanation] = []
        self.rewards_ = np.empty((0, 5))
        self._batches: list[Batch] = []
        self._round = 0
        self._pool: dict | None = None
        self.class_names_: list[str] = []

    @property
    def theta_(self) -> np.ndarray:
        """Coefficients of the learned error."""
        return np.linalg.solve(self._precision, self._target)

    @property
    def context_names_(self) -> list[str]:
        """Names of the parts of a context."""
        return [*CONTEXT, *(f"region {name}" for name in self._pool["regions"])]

    @property
    def pending_(self) -> np.ndarray:
        """Rows that were chosen and have no label yet, int64."""
        return np.concatenate([np.empty(0, np.int64), *(batch.rows for batch in self._batches)])

    def forget(self, rows: np.ndarray) -> None:
        """Wait no longer for the labels of `rows`, int (n,): they count as not covered and may be chosen again."""
        self._batches = [batch.take(~np.isin(batch.rows, rows)) for batch in self._batches]

    def _turn(self, pool: Pool) -> int:
        return self._round

    def _open_rows(self, y: np.ndarray) -> np.ndarray:
        return np.flatnonzero(_marked(y == MISSING, self.pending_, False))

    def _choose(self, pool: Pool, rng: np.random.Generator) -> np.ndarray:
        if self.trips is not None:
            self.trips.check(len(pool.X))
        if self._pool is None:
            self._begin(pool)
        self._receive(pool.y)
        share = np.bincount(pool.region, minlength=len(pool.regions)) / len(pool.X)
        weight = region_weights(share, self.rho if self.target is None else 0.0)
        landmarks, stands_for, served, space = self._landmarks(pool, share, weight, rng)
        # Every region gives as many as any other, or the smallest would have hardly a candidate in a large pool.
        count = min(max(SCREENED, pool.batch_size), len(pool.candidates))
        screened = stratified_rows(rng.permutation(pool.candidates), pool.region, np.zeros(len(share)), count, rng)
        rng.shuffle(screened)
        drawn, screened = self._draw(pool, screened)

        head = fitted_head(self.head, pool.X, pool.y)
        known = np.flatnonzero(_marked(pool.y != MISSING, self.pending_, True))
        anchors = np.concatenate([known, drawn])
        if not len(anchors):
            anchors = rng.choice(len(pool.X), min(pool.batch_size, len(pool.X)), replace=False)
        width = max(WIDTH * float(np.median(space.nearest(landmarks, anchors))), 1e-6)

        error = self._expected_error(contexts_of(pool, landmarks, space, known, head))
        value = stands_for * error * served
        covered = np.zeros(len(landmarks))
        if len(known):
            covered = _kernel(space.nearest(landmarks, known) ** 2, width)
        by_chance = np.empty((len(drawn), len(landmarks)))
        for number, line in enumerate(_kernel(space.squares(drawn, landmarks), width) if len(drawn) else ()):
            by_chance[number] = np.maximum(line - covered, 0)
            covered = covered + by_chance[number]

        candidates = screened
        left = pool.batch_size - len(drawn)
        if len(screened) > RANDOM_CANDIDATES + TOP_CANDIDATES:
            scores = self._expected_error(contexts_of(pool, screened, space, known, head))
            scores *= weight[pool.region[screened]]
            allowed = _marked(_marked(np.zeros(len(pool.X), bool), pool.candidates, True), drawn, False)
            near = landmarks[allowed[landmarks]] if self.target is None else space.closest(landmarks, screened)
            candidates = _shortlist(screened, scores, near, left)
        kernel = _kernel(space.squares(candidates, landmarks), width)
        trips = self.trips or Trips()
        places, gained, paid = lazy_greedy(kernel, covered, value, left, trips.prices(candidates), trips.budget)

        rows = np.concatenate([drawn, candidates[places]])
        gained = np.concatenate([by_chance, gained])
        paid = np.concatenate([np.ones(len(drawn)), paid])
        chance = np.arange(len(rows)) < len(drawn)
        # Whoever labels only the first rows of a sheet shall get of both.
        order = np.argsort(_spread(chance), kind="stable")
        rows, gained, paid, chance = rows[order], gained[order], paid[order], chance[order]
        self._remember(rows, contexts_of(pool, rows, space, known, head), gained @ stands_for, chance, pool, head)
        self.landmarks_, self.error_field_ = landmarks, error
        names = [pool.regions[number] for number in pool.region[rows]]
        self.explanations_ = explain(rows, gained, stands_for, error, served, names, chance, paid)
        self._round += 1
        return rows

    def _landmarks(
        self, pool: Pool, share: np.ndarray, weight: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Space]:
        """Landmarks, the share that each stands for, the weights of their regions, and distances to them."""
        if self.target is None:
            landmarks, stands_for = draw_landmarks(pool.region, share, rng)
            return landmarks, stands_for, weight[pool.region[landmarks]], Space(pool.X, landmarks)
        target = check_target(self.target, pool.X.shape[1])
        beyond = target[rng.permutation(len(target))[:LANDMARKS]].astype(np.float32)
        landmarks, alike = len(pool.X) + np.arange(len(beyond)), np.ones(len(beyond))
        return landmarks, alike / len(beyond), alike, Space(pool.X, landmarks, beyond)

    def _draw(self, pool: Pool, screened: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Random rows for `explore` of the batch, equal in number over regions with the labels, and the rest."""
        count = 0 if self.trips is not None else int(self.explore * pool.batch_size)
        have = np.bincount(pool.region[pool.labelled], minlength=len(pool.regions))
        drawn = stratified_rows(screened, pool.region, have, count, np.random.default_rng([self.seed, self._round, 1]))
        return drawn, screened[~np.isin(screened, drawn)]

    def _begin(self, pool: Pool) -> None:
        """Prior, and what the pool of all later rounds must be like."""
        self._pool = describe_pool(pool.X, pool.regions, self.target)
        prior = np.zeros(len(CONTEXT) + len(pool.regions))
        prior[CONTEXT.index("margin")] = 1
        self._precision, self._target = RIDGE * np.eye(len(prior)), RIDGE * prior

    def _recognise(self, X: np.ndarray, regions: list[str]) -> None:
        """Refuse another pool or target than in the earlier rounds: row numbers and contexts would mean nothing."""
        if self._pool is None:
            return
        found = describe_pool(X, regions, self.target)
        different = [key for key in self._pool if found[key] != self._pool[key]]
        if different:
            raise DataError(
                f"this pool differs from that of the earlier rounds in {', '.join(different)}; give the same "
                "embeddings and regions in the same order and the same target, or start a new CoverageBandit"
            )

    def _receive(self, y: np.ndarray) -> None:
        """Learn from the labels that have come for rows chosen earlier."""
        for batch in self._batches:
            here = batch.take(y[batch.rows] != MISSING)
            if not len(here.rows) or not len(batch.classes):
                continue
            # A class that the head did not know had probability 0.
            error = 1 - np.sum(here.probabilities * (here.classes == y[here.rows][:, None]), axis=1)
            new = np.stack([here.rows, error, here.new_coverage, error * here.new_coverage, here.by_chance], axis=1)
            self.rewards_ = np.concatenate([self.rewards_, new])
            if self.learn:
                self._precision = self._precision + here.contexts.T @ here.contexts
                self._target = self._target + here.contexts.T @ error
        waiting = [batch.take(y[batch.rows] == MISSING) for batch in self._batches]
        self._batches = [batch for batch in waiting if len(batch.rows)]

    def _expected_error(self, contexts: np.ndarray) -> np.ndarray:
        """Error expected for contexts (n, 6 + R), float64 (n,)."""
        spread = np.sqrt(np.sum(contexts @ np.linalg.inv(self._precision) * contexts, axis=1))
        return np.clip(contexts @ self.theta_ + self.alpha * spread, *ERRORS)

    def _remember(self, rows, contexts, coverage, by_chance, pool: Pool, head: BaseEstimator | None) -> None:
        """Keep what the coming labels will be judged by; a row that waits already is judged by its last choice."""
        self._batches = [batch.take(~np.isin(batch.rows, rows)) for batch in self._batches]
        classes = np.empty(0, np.int64) if head is None else np.asarray(head.classes_, np.int64)
        known = np.empty((len(rows), 0)) if head is None else np.asarray(head.predict_proba(pool.X[rows]), np.float64)
        self._batches.append(Batch(rows, contexts, coverage, by_chance, classes, known))

    def save(self, path: str | os.PathLike) -> None:
        """Write the state as one safetensors file with a JSON header, whole or not at all.

        Loaded again, the bandit goes on bit by bit. Head, regions of the rows, trips and target are not in it.

        Raises:
            DataError: there was no query yet, so that there is nothing to go on from.
        """
        if self._pool is None:
            raise DataError(f"{path}: the bandit has not chosen anything yet; save it after the first query")
        about = {
            "pool": self._pool, "round": self._round, "seed": int(self.seed), "rho": self.rho, "alpha": self.alpha,
            "explore": self.explore, "learn": self.learn, "head": repr(self.head), "class_names": self.class_names_,
        }  # fmt: skip
        arrays = {"precision": self._precision, "target": self._target, "rewards": self.rewards_}
        write_state(path, about, arrays, self._batches)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        regions: Sequence[str] | None = None,
        head: BaseEstimator | None = None,
        trips: Trips | None = None,
        target: np.ndarray | None = None,
    ) -> "CoverageBandit":
        """Read what `save` wrote; `regions`, `head`, `trips` and `target` are given as they were at construction.

        Raises:
            CheckpointError: the file is missing, damaged, foreign or of another format, or made with another head.
        """
        about, arrays, batches = read_state(path)
        if about["head"] != repr(head):
            raise CheckpointError(f"{path}: was made with head {about['head']}, not {head!r}; give the same head")
        kept = {key: about[key] for key in ("rho", "alpha", "explore", "learn", "seed")}
        bandit = cls(regions, head, trips=trips, target=target, **kept)
        bandit._pool, bandit._round, bandit.class_names_ = about["pool"], about["round"], about["class_names"]
        bandit._precision, bandit._target, bandit.rewards_ = (arrays[key] for key in ("precision", "target", "rewards"))
        bandit._batches = batches
        return bandit


def _kernel(squares: np.ndarray, width: float) -> np.ndarray:
    return np.exp(squares * (-0.5 / width**2))


def _marked(mask: np.ndarray, rows: np.ndarray, value: bool) -> np.ndarray:
    """A copy of `mask` (N,) with `rows` set to `value`: set operations on rows without sorting the pool."""
    mask = mask.copy()
    mask[rows] = value
    return mask


def _spread(chance: np.ndarray) -> np.ndarray:
    """Positions that mix the rows where `chance` is true evenly among the others, each kind in its own order."""
    place = np.empty(len(chance))
    for kind in (True, False):
        own = np.flatnonzero(chance == kind)
        place[own] = (np.arange(len(own)) + 0.5 + 0.01 * kind) / max(len(own), 1)
    return place


def _shortlist(screened: np.ndarray, scores: np.ndarray, landmarks: np.ndarray, count: int) -> np.ndarray:
    """Random candidates, those of highest weight, and landmarks or rows near them: enough for a batch of `count`."""
    chance = screened[: max(RANDOM_CANDIDATES, count)]
    top = screened[np.argsort(-scores, kind="stable")[:TOP_CANDIDATES]]
    return np.unique(np.concatenate([chance, top, landmarks]))


__all__ = ["CoverageBandit"]
