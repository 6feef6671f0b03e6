"""The baselines beside their counterparts in scikit-activeml, where that is installed: the same rows, or as good ones.

Both get the same centred vectors of length one, so that distances are the same. Uncertainty Herding and Cluster-Margin
have no counterpart there; its MaxHerding and ProbCover have none here.
"""

import numpy as np
import pytest

from croplem_hf.active.baselines import (
    BadgeSampling,
    DropQuerySampling,
    EntropySampling,
    KCenterSampling,
    MarginSampling,
    TypiClustSampling,
)
from croplem_hf.active.coverage import Space
from croplem_hf.heads import LogisticHead

theirs = pytest.importorskip("skactiveml.pool")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the other library
BATCH, CLASSES = 8, 4


@pytest.fixture(scope="module")
def pool():
    """Vectors (400, 16) of length one around 12 centres and mean 0, their classes, and 20 labels."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 16))
    number = rng.integers(12, size=400)
    X = Space((centres[number] + 0.6 * rng.standard_normal((400, 16))).astype(np.float32)).vectors(np.arange(400))
    # Twice each, with its opposite, the mean is 0: centring and scaling change nothing.
    X, number = np.concatenate([X, -X]), np.concatenate([number, number + 1])
    y = np.full(800, -1)
    rows = rng.choice(800, 20, replace=False)
    y[rows] = number[rows] % CLASSES
    return X, y


def classifier(X, y):
    """Our head as one of theirs, fitted."""
    from skactiveml.classifier import SklearnClassifier

    return SklearnClassifier(LogisticHead(), classes=range(CLASSES), missing_label=-1).fit(X, y)


@pytest.mark.parametrize(("ours", "method"), [(MarginSampling, "margin_sampling"), (EntropySampling, "entropy")])
def test_uncertainty_asks_for_the_same_rows(pool, ours, method):
    X, y = pool
    other = theirs.UncertaintySampling(method=method, missing_label=-1, random_state=0)
    expected = other.query(X, y, clf=classifier(X, y), fit_clf=False, batch_size=BATCH)
    assert set(ours(seed=0).query(X, y, batch_size=BATCH)) == set(expected)


def test_k_center_is_core_set(pool):
    X, y = pool
    expected = theirs.CoreSet(missing_label=-1, random_state=0).query(X, y, batch_size=BATCH)
    assert KCenterSampling(seed=0).query(X, y, batch_size=BATCH).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_typiclust_takes_the_same_rows_where_clusters_are_clear(seed):
    rng = np.random.default_rng(seed)
    X = (np.repeat(10 * np.eye(16), 30, axis=0) + rng.standard_normal((480, 16))).astype(np.float32)
    vectors, y = Space(X).vectors(np.arange(480)), np.full(480, -1)
    y[:180:30] = 0
    # Ten of 16 clusters have no label, and ten rows are asked for. k-means may miss one of them.
    other = theirs.TypiClust(missing_label=-1, random_state=seed, k=20, cluster_algo_dict={"n_init": 10})
    expected, found = other.query(vectors, y, batch_size=10), TypiClustSampling(seed=seed).query(X, y, batch_size=10)
    hit = set(found // 30) - set(range(6))
    assert len(hit) >= 9
    assert len(hit) < 10 or set(found) == set(expected)


def test_badge_spreads_over_gradients_as_well(pool):
    X, y = pool
    clf = classifier(X, y)
    residual = clf.predict_proba(X)
    residual[np.arange(800), residual.argmax(axis=1)] -= 1
    gradients = (residual[:, :, None] * X[:, None, :]).reshape(800, -1)[y == -1]
    place = np.cumsum(y == -1) - 1

    def potential(rows):
        squares = ((gradients[:, None] - gradients[place[rows]][None]) ** 2).sum(axis=2)
        return squares.min(axis=1).mean()

    mine = [potential(BadgeSampling(seed=seed).query(X, y, batch_size=BATCH)) for seed in range(20)]
    others = [
        potential(theirs.Badge(missing_label=-1, random_state=seed).query(X, y, clf=clf, fit_clf=False,
                                                                          batch_size=BATCH))
        for seed in range(20)
    ]  # fmt: skip
    assert np.mean(mine) < 1.05 * np.mean(others)


def test_dropquery_asks_for_rows_as_easily_lost(pool):
    X, y = pool
    clf, rng = classifier(X, y), np.random.default_rng(0)
    best, changed = clf.predict(X), np.zeros(800)
    for _ in range(200):
        # What is left grows fourfold, as in dropout; theirs leaves it as it is.
        changed += clf.predict(np.where(rng.random(X.shape) < 0.75, 0, 4 * X)) != best
    mine = [changed[DropQuerySampling(seed=seed).query(X, y, batch_size=BATCH)].mean() for seed in range(10)]
    others = []
    for seed in range(10):
        other = theirs.DropQuery(missing_label=-1, random_state=seed, n_dropout_samples=3)
        others.append(changed[other.query(X, y, clf=clf, fit_clf=False, batch_size=BATCH)].mean())
    assert np.mean(mine) > 0.97 * np.mean(others) > 1.05 * changed[y == -1].mean()
