"""What every strategy must do, by one fixture; and the baselines."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from croplem_hf.active import (
    MISSING,
    BadgeSampling,
    ClusterMarginSampling,
    CoverageBandit,
    DropQuerySampling,
    EntropySampling,
    KCenterSampling,
    MarginSampling,
    RandomSampling,
    StratifiedRandomSampling,
    TypiClustSampling,
    UncertaintyHerdingSampling,
)
from croplem_hf.active.baselines import BASELINES, take_turns
from croplem_hf.active.coverage import Space
from croplem_hf.active.strategies import stratified_rows
from croplem_hf.errors import DataError

STRATEGIES = [RandomSampling, StratifiedRandomSampling, CoverageBandit, *BASELINES]


@pytest.fixture(params=STRATEGIES, ids=lambda strategy: strategy.__name__)
def make(request):
    """The class of a strategy."""
    return request.param


def invented(count=120, dim=6, classes=3, seed=0):
    """Pool of `count` rows with a class each, in three unequal regions."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=count)
    X = (rng.normal(size=(classes, dim))[truth] * 2 + rng.normal(size=(count, dim))).astype(np.float32)
    regions = rng.choice(["north", "south", "west"], count, p=[0.7, 0.2, 0.1]).tolist()
    return X, truth, regions


def labelled(truth, rows):
    y = np.full(len(truth), MISSING)
    y[rows] = truth[rows]
    return y


@pytest.mark.parametrize("rows", [[], [3], range(0, 40, 2)], ids=["cold", "one", "twenty"])
def test_choice_is_unique_unlabelled_and_of_the_size_asked_for(make, rows):
    X, truth, regions = invented()
    y = labelled(truth, list(rows))
    chosen = make(regions).query(X, y, batch_size=15)
    assert chosen.shape == (15,) and chosen.dtype == np.int64
    assert len(np.unique(chosen)) == 15
    assert np.all(y[chosen] == MISSING)


@pytest.mark.parametrize("rows", [[], range(12)], ids=["cold", "twelve"])
def test_same_seed_same_rows(make, rows):
    X, truth, regions = invented()
    y = labelled(truth, list(rows))
    first, again = (make(regions, seed=5).query(X, y, batch_size=10) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    others = [make(regions, seed=seed).query(X, y, batch_size=10).tolist() for seed in range(4)]
    # With labels, a head's doubt and a pool of which every row is a landmark leave nothing to chance.
    if make in (RandomSampling, StratifiedRandomSampling) or (make is not UncertaintyHerdingSampling and not len(rows)):
        assert len({tuple(rows) for rows in others}) > 1


def test_input_is_left_as_it_is(make):
    X, truth, regions = invented()
    y, candidates = labelled(truth, range(12)), np.arange(119, 40, -1)
    before = X.copy(), y.copy(), candidates.copy(), list(regions)
    for array in (X, y, candidates):
        array.flags.writeable = False
    make(regions).query(X, y, candidates, batch_size=9)
    for now, then in zip((X, y, candidates, regions), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_only_candidates_are_chosen(make):
    X, truth, regions = invented()
    candidates = np.array([100, 7, 55, 31, 90])
    for rows in ([], range(50, 54)):
        chosen = make(regions).query(X, labelled(truth, rows), candidates, batch_size=5)
        assert sorted(chosen) == sorted(candidates)


def test_one_class_only(make):
    X, truth, regions = invented()
    y = labelled(np.full(len(X), 4), range(8))
    assert len(make(regions).query(X, y, batch_size=20)) == 20


def test_every_row_can_be_bought(make):
    X, truth, regions = invented(count=30)
    strategy, y = make(regions), np.full(30, MISSING)
    while (y == MISSING).any():
        rows = strategy.query(X, y, batch_size=min(7, int((y == MISSING).sum())))
        y[rows] = truth[rows]
    with pytest.raises(DataError, match="asked for 1 rows, but only 0 may be chosen"):
        strategy.query(X, y)


def test_identical_rows_and_half_floats(make):
    chosen = make(seed=1).query(np.ones((20, 3), np.float16), labelled(np.arange(20) % 2, range(4)), batch_size=6)
    assert len(np.unique(chosen)) == 6


def test_regions_of_the_query_replace_those_of_construction():
    X, truth, _ = invented()
    small = ["small" if row < 10 else "large" for row in range(len(X))]
    for strategy in (StratifiedRandomSampling(seed=0), StratifiedRandomSampling(["all"] * len(X), seed=0)):
        assert np.sum(strategy.query(X, labelled(truth, []), batch_size=10, regions=small) < 10) == 5


def with_nan(X, row):
    X = X.copy()
    X[row, 2] = np.nan
    return X


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y, r: dict(X=with_nan(X, 17)), "row 17 of X is not finite"),
        (lambda X, y, r: dict(X=X[:, 0]), "X must be numbers"),
        (lambda X, y, r: dict(X=X[:0], y=y[:0], regions=[]), "not empty"),
        (lambda X, y, r: dict(y=y[:-1]), r"each of the 120 rows .* shape \(119,\)"),
        (lambda X, y, r: dict(y=y.astype(float)), "integer class code"),
        (lambda X, y, r: dict(y=np.where(np.arange(120) == 9, -7, y)), "row 9 of y is -7"),
        (lambda X, y, r: dict(batch_size=121), "asked for 121 rows, but only 115 may be chosen"),
        (lambda X, y, r: dict(batch_size=0), "batch_size must be a whole number from 1 on, found 0"),
        (lambda X, y, r: dict(batch_size=2.5), "found 2.5"),
        (lambda X, y, r: dict(candidates=[8, 9], batch_size=3), "asked for 3 rows, but only 2"),
        (lambda X, y, r: dict(candidates=[8, 120]), "candidate 120 is outside the pool of 120 rows"),
        (lambda X, y, r: dict(candidates=[-1]), "candidate -1 is outside"),
        (lambda X, y, r: dict(candidates=[8, 9, 8]), "candidate 8 is there twice"),
        (lambda X, y, r: dict(candidates=[8, 2]), "candidate 2 has a label already"),
        (lambda X, y, r: dict(candidates=y == MISSING), "must be row numbers, found bool"),
        (lambda X, y, r: dict(regions=r[:-1]), "regions name 119 rows, X has 120"),
        (lambda X, y, r: dict(regions=[*r[:-1], None]), "the region of row 119 is None"),
    ],
)
def test_refuses_what_does_not_fit(make, change, message):
    X, truth, regions = invented()
    y = labelled(truth, range(5))
    with pytest.raises(DataError, match=message):
        make().query(**{"X": X, "y": y, "regions": regions, **change(X, y, regions)})


def test_random_sampling_is_uniform():
    X, truth, _ = invented(count=20)
    y = labelled(truth, range(10))
    draws = np.concatenate([RandomSampling(seed=seed).query(X, y, batch_size=5) for seed in range(400)])
    count = np.bincount(draws, minlength=20)[10:]
    # 200 expected each; five standard deviations of a binomial count are 50.
    assert np.all(np.abs(count - 200) < 50)


@given(
    region=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    have=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    share=st.floats(0, 1),
)
def test_stratified_totals_are_equal_as_far_as_rows_last(region, have, share):
    region, have = np.array(region), np.array(have)
    count = int(round(share * len(region)))
    taken = stratified_rows(np.arange(len(region)), region, have, count, np.random.default_rng(0))
    assert len(np.unique(taken)) == count
    got, available = np.bincount(region[taken], minlength=4), np.bincount(region, minlength=4)
    total = have + got
    for poor in np.flatnonzero(got < available):
        # Nobody was given a row while a region that still had some was more than one behind.
        assert np.all(total[got > 0] <= total[poor] + 1)


def test_stratified_small_batches_add_up_to_equal_numbers():
    X, truth, regions = invented(count=300)
    strategy, y = StratifiedRandomSampling(regions, seed=2), np.full(300, MISSING)
    for _ in range(30):
        rows = strategy.query(X, y, batch_size=1)
        y[rows] = truth[rows]
    assert np.unique(np.array(regions)[y != MISSING], return_counts=True)[1].tolist() == [10, 10, 10]


def test_margin_takes_the_rows_the_head_is_least_sure_of():
    X, truth, _ = invented(classes=2)
    y = labelled(truth, range(20))
    head = make_pipeline(StandardScaler(), LogisticRegression())
    chosen = MarginSampling(head=head, seed=0).query(X, y, batch_size=10)
    doubt = np.abs(head.fit(X[:20], y[:20]).predict_proba(X)[:, 1] - 0.5)
    assert set(chosen) == set(20 + np.argsort(doubt[20:])[:10])


def test_margin_without_a_preference_is_random():
    X, truth, _ = invented()
    head, y = DummyClassifier(strategy="prior"), labelled(truth, range(9))
    chosen = {tuple(MarginSampling(head=head, seed=seed).query(X, y, batch_size=5)) for seed in range(5)}
    assert len(chosen) == 5


def test_entropy_and_margin_differ_with_three_classes():
    X, truth, _ = invented(count=400, dim=2)
    y = labelled(truth, range(30))
    head = make_pipeline(StandardScaler(), LogisticRegression())
    p = head.fit(X[:30], y[:30]).predict_proba(X)
    entropy = -np.sum(p * np.log(p), axis=1)
    chosen = EntropySampling(head=head, seed=0).query(X, y, batch_size=10)
    assert set(chosen) == set(30 + np.argsort(-entropy[30:])[:10])
    assert set(chosen) != set(MarginSampling(head=head, seed=0).query(X, y, batch_size=10))


def clusters(sizes, seed=0, spread=0.05):
    """Tight clusters of the given sizes, and the cluster of every row."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][: len(sizes)]
    return (centres[number] + spread * rng.normal(size=(len(number), 16))).astype(np.float32), number


@pytest.mark.parametrize("make", [KCenterSampling, TypiClustSampling, UncertaintyHerdingSampling, DropQuerySampling])
def test_cold_start_finds_every_cluster(make):
    X, number = clusters([60, 60, 40, 40, 30, 30])
    found = number[make(seed=0).query(X, np.full(len(X), MISSING), batch_size=6)]
    assert len(np.unique(found)) == 6


def test_k_center_takes_the_farthest_row_each_time():
    X, truth, _ = invented(count=60)
    y = labelled(truth, [3, 4])
    chosen, space = KCenterSampling(seed=0).query(X, y, batch_size=5), Space(X)
    have = [3, 4]
    for row in chosen:
        distance = space.nearest(np.arange(60), np.array(have))
        assert distance[row] == pytest.approx(distance.max(), abs=1e-3)
        have.append(row)


def test_typiclust_prefers_the_middle_of_a_cluster_without_labels():
    X, number = clusters([50, 50, 50])
    y = np.full(150, MISSING)
    y[[0, 60]] = 0
    row = TypiClustSampling(seed=0).query(X, y, batch_size=1)[0]
    assert number[row] == 2
    own = np.flatnonzero(number == 2)
    distance = np.linalg.norm(X[own] - X[own].mean(axis=0), axis=1)
    assert distance[own == row] <= np.quantile(distance, 0.2)


def test_badge_gradients_are_those_of_the_products():
    X, truth, _ = invented(count=50)
    y, space = labelled(truth, range(20)), Space(X)
    head = make_pipeline(StandardScaler(), LogisticRegression())
    p = head.fit(X[:20], y[:20]).predict_proba(X)
    gradient = ((p - np.eye(3)[p.argmax(axis=1)])[:, :, None] * space.vectors(np.arange(50))[:, None]).reshape(50, -1)
    first, second = BadgeSampling(head=head, seed=0).query(X, y, batch_size=30)[:2]
    assert np.linalg.norm(gradient[first]) == pytest.approx(np.linalg.norm(gradient[20:], axis=1).max(), rel=1e-4)
    # k-means++ draws the second by squared distance to the first: over seeds, farther ones come more often.
    seconds = [BadgeSampling(head=head, seed=s).query(X, y, batch_size=2)[1] for s in range(150)]
    squares = np.sum((gradient[20:] - gradient[first]) ** 2, axis=1)
    drawn = np.bincount(np.array(seconds) - 20, minlength=30) / 150
    assert np.corrcoef(drawn, squares / squares.sum())[0, 1] > 0.5 and second != first


def test_cluster_margin_takes_small_margins_from_different_clusters():
    X, number = clusters([40, 40, 40, 40], spread=0.2)
    y = labelled(number % 2, [0, 40, 80, 120])
    chosen = ClusterMarginSampling(seed=0).query(X, y, batch_size=4)
    margin = MarginSampling(seed=0).query(X, y, batch_size=40)
    assert set(chosen) <= set(margin)
    assert take_turns(np.arange(6), np.array([0, 0, 0, 0, 1, 1]), 3).tolist() == [4, 0, 5]


def test_dropquery_takes_rows_that_change_their_class():
    nearer = {DropQuerySampling: [], RandomSampling: []}
    for seed in range(12):
        # Many numbers of equal say: what is left of them flips a row near the border rather than one far from it.
        X = np.random.default_rng(seed).normal(size=(600, 32)).astype(np.float32)
        side = X[:, :16].sum(axis=1)
        y = labelled((side > 0).astype(int), range(200))
        for kind, found in nearer.items():
            found.append(np.abs(side[kind(seed=seed).query(X, y, batch_size=20)]).mean())
    assert np.mean(nearer[DropQuerySampling]) < 0.8 * np.mean(nearer[RandomSampling])
