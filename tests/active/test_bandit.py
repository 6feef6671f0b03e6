"""The coverage bandit: what it covers, what it learns, what it remembers, what it explains."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from croplem_hf.active import MISSING, CoverageBandit, RandomSampling, Trips
from croplem_hf.active.coverage import lazy_greedy, region_weights
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.geodesy import kilometres


def clusters(sizes, dim=16, spread=0.4, seed=0):
    """Rows around one centre for each of `sizes`, and the number of its centre for every row."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(size=(len(sizes), dim)) * 2
    return (centres[number] + spread * rng.normal(size=(len(number), dim))).astype(np.float32), number


def buy(bandit, X, y, truth, size=10):
    rows = bandit.query(X, y, batch_size=size)
    y[rows] = truth[rows]
    return rows


def test_cold_start_covers_clusters_that_random_misses():
    X, number = clusters([200, 100, 50, 50, 30, 30, 20, 20, 20, 20])
    y = np.full(len(X), MISSING)
    found = [len(np.unique(number[CoverageBandit(seed=seed).query(X, y, batch_size=10)])) for seed in range(5)]
    chance = [len(np.unique(number[RandomSampling(seed=seed).query(X, y, batch_size=10)])) for seed in range(5)]
    assert min(found) >= 9
    assert max(chance) <= 8


def test_rows_already_labelled_are_not_covered_twice():
    X, number = clusters([40, 40, 40])
    y = np.full(120, MISSING)
    y[[0, 1, 40, 41]] = number[[0, 1, 40, 41]]
    assert number[CoverageBandit(seed=0).query(X, y)[0]] == 2


def test_region_weights_serve_small_regions():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 12)).astype(np.float32)
    regions = np.where(np.arange(1000) < 60, "small", "large")
    chosen = {}
    for rho in (0.0, 1.0):
        bandit = CoverageBandit(regions, rho=rho, seed=0)
        chosen[rho] = np.sum(bandit.query(X, np.full(1000, MISSING), batch_size=40) < 60)
    assert chosen[0.0] <= 6
    assert chosen[1.0] >= 2 * max(chosen[0.0], 3)
    served = [reason for reason in bandit.explanations_ if reason.region_name == "small"]
    assert np.mean([reason.region for reason in served]) > 0
    assert np.mean([r.region_weight for r in served]) > 1


@given(arrays(float, st.integers(1, 12), elements=st.floats(1e-4, 1)), st.floats(0, 1.5))
def test_region_weights_favour_the_small_within_bounds(size, rho):
    share = size / size.sum()
    weight = region_weights(share, rho)
    assert weight.min() >= 0.2 and weight.max() <= 5
    order = np.argsort(share)
    assert np.all(np.diff(weight[order]) <= 1e-9)
    if weight.min() > 0.2 and weight.max() < 5:
        assert share @ weight == pytest.approx(1)


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 30))
def test_lazy_greedy_equals_greedy(seed, candidates, landmarks):
    rng = np.random.default_rng(seed)
    kernel, covered, weight = rng.random((candidates, landmarks)), 0.5 * rng.random(landmarks), rng.random(landmarks)
    rows, gained, _ = lazy_greedy(kernel, covered, weight, candidates)
    assert sorted(rows) == list(range(candidates))
    for row, new in zip(rows, gained, strict=True):
        gains = np.maximum(kernel - covered, 0) @ weight
        left = ~np.isin(np.arange(candidates), rows[: list(rows).index(row)])
        assert gains[row] == pytest.approx(gains[left].max())
        np.testing.assert_allclose(new, np.maximum(kernel[row] - covered, 0))
        covered = np.maximum(covered, kernel[row])


def test_labels_may_come_late():
    X, truth = clusters([60, 60, 60], spread=2.0)
    y = np.full(180, MISSING)
    y[::20] = truth[::20]
    bandit = CoverageBandit(seed=0)
    first = bandit.query(X, y, batch_size=6)
    prior = bandit.theta_
    second = bandit.query(X, y, batch_size=6)
    assert not set(first) & set(second)
    assert set(bandit.pending_) == {*first, *second}
    assert len(bandit.rewards_) == 0
    np.testing.assert_array_equal(bandit.theta_, prior)

    early, late = [first[0], second[1]], [first[3]]
    y[early] = truth[early]
    third = bandit.query(X, y, batch_size=1)
    assert set(bandit.rewards_[:, 0]) == set(early)
    assert not set(bandit.pending_) & set(early)
    learnt = bandit.theta_
    assert not np.array_equal(learnt, prior)

    y[late] = truth[late]
    bandit.query(X, y, batch_size=1)
    assert set(bandit.rewards_[:, 0]) == {*early, *late}
    assert not np.array_equal(bandit.theta_, learnt)
    assert third[0] in bandit.pending_


def test_a_waiting_row_comes_again_only_where_it_is_named():
    X, truth = clusters([30, 30])
    y = np.full(60, MISSING)
    bandit = CoverageBandit(seed=0)
    first = bandit.query(X, y, batch_size=40)
    with pytest.raises(DataError, match="only 20 may be chosen"):
        bandit.query(X, y, batch_size=21)
    again = bandit.query(X, y, candidates=first[:2], batch_size=2)
    assert set(again) == set(first[:2])
    assert len(bandit.pending_) == len(set(bandit.pending_)) == 40


def test_reward_is_the_error_of_the_label_times_its_new_coverage():
    X, _ = clusters([20, 20])
    y = np.full(40, MISSING)
    y[[0, 1, 2, 20]] = [5, 5, 5, 7]
    bandit = CoverageBandit(head=DummyClassifier(strategy="prior"), explore=0.4, seed=0)
    rows = bandit.query(X, y, batch_size=3)
    bandit_reasons = bandit.explanations_
    coverage = [reason.new_coverage for reason in bandit_reasons]
    y[rows] = [5, 7, 9]
    bandit.query(X, y)
    # The head's probabilities were 3/4 for class 5 and 1/4 for class 7; it did not know class 9.
    chance = [float(reason.by_chance) for reason in bandit_reasons]
    expected = [
        [row, error, new, error * new, drawn]
        for row, error, new, drawn in zip(rows, [0.25, 0.75, 1], coverage, chance, strict=True)
    ]
    np.testing.assert_allclose(bandit.rewards_, expected)
    assert sum(chance) == 1


def test_labels_bought_without_a_head_teach_nothing():
    X, truth = clusters([20, 20])
    y = np.full(40, MISSING)
    bandit = CoverageBandit(seed=0)
    buy(bandit, X, y, truth)
    buy(bandit, X, y, truth)
    assert len(bandit.rewards_) == 0 and len(bandit.pending_) == 10
    bandit.query(X, y)
    assert len(bandit.rewards_) == 10


def two_regions(seed=0):
    """The same two classes in two regions; in the noisy one a label says nothing."""
    rng = np.random.default_rng(seed)
    X, truth = clusters([200, 200], spread=0.8, seed=seed)
    regions = rng.choice(["clear", "noisy"], 400)
    truth = np.where(regions == "noisy", rng.integers(2, size=400), truth)
    return X, truth, regions


@pytest.mark.parametrize("learn", [True, False])
def test_posterior_learns_where_errors_are(learn):
    X, truth, regions = two_regions()
    y = np.full(400, MISSING)
    # A head that has seen only the clear region is sure of itself in both.
    clear = np.flatnonzero(regions == "clear")[::5]
    y[clear] = truth[clear]
    bandit = CoverageBandit(regions, rho=0, learn=learn, seed=0)
    for _ in range(4):
        buy(bandit, X, y, truth, size=15)
    noisy = regions[bandit.landmarks_] == "noisy"
    theta = dict(zip(bandit.context_names_, bandit.theta_, strict=True))
    raised = theta["region noisy"] - theta["region clear"]
    assert len(bandit.rewards_) == 45
    if learn:
        assert raised > 0.2
        assert bandit.error_field_[noisy].mean() > bandit.error_field_[~noisy].mean() + 0.1
    else:
        assert raised == pytest.approx(0, abs=1e-9) and theta["margin"] == pytest.approx(1)


def test_explanations_add_up():
    X, truth, regions = two_regions()
    y = np.full(400, MISSING)
    y[::40] = truth[::40]
    bandit = CoverageBandit(regions, rho=1.0, explore=0.25, seed=0)
    for _ in range(3):
        rows = buy(bandit, X, y, truth, size=12)
        reasons = bandit.explanations_
        assert [reason.row for reason in reasons] == rows.tolist()
        assert [reason.region_name for reason in reasons] == regions[rows].tolist()
        for reason in reasons:
            assert reason.gain == pytest.approx(reason.coverage + reason.uncertainty + reason.region)
            assert reason.coverage >= 0
            assert 0.01 - 1e-9 <= reason.error <= 1 + 1e-9 and 0.2 - 1e-9 <= reason.region_weight <= 5 + 1e-9
        gains = np.array([reason.gain for reason in reasons])
        by_chance = np.array([reason.by_chance for reason in reasons])
        assert 0 < gains.sum() <= 1
        assert by_chance.sum() == 3 and np.all(np.diff(gains[~by_chance]) <= 1e-9)


def test_a_cold_start_in_one_region_is_explained_by_coverage_alone():
    X, _ = clusters([30, 30])
    bandit = CoverageBandit(seed=0)
    bandit.query(X, np.full(60, MISSING), batch_size=5)
    for reason in bandit.explanations_:
        assert reason.uncertainty == pytest.approx(0) and reason.region == pytest.approx(0)
        assert reason.gain == pytest.approx(reason.coverage) == pytest.approx(reason.new_coverage)


def test_a_saved_state_goes_on_bit_by_bit(tmp_path):
    X, truth, regions = two_regions()
    y = np.full(400, MISSING)
    y[::50] = truth[::50]
    bandit = CoverageBandit(regions, rho=0.7, alpha=0.2, seed=3)
    buy(bandit, X, y, truth)
    waiting = bandit.query(X, y, batch_size=8)
    y[waiting[:3]] = truth[waiting[:3]]
    bandit.query(X, y, batch_size=4)
    bandit.save(tmp_path / "state" / "bandit.safetensors")
    loaded = CoverageBandit.load(tmp_path / "state" / "bandit.safetensors", regions)
    y[waiting[3:]] = truth[waiting[3:]]
    again = y.copy()
    for _ in range(3):
        np.testing.assert_array_equal(buy(bandit, X, y, truth), buy(loaded, X, again, truth))
        np.testing.assert_array_equal(bandit.theta_, loaded.theta_)
        np.testing.assert_array_equal(bandit.rewards_, loaded.rewards_)
        np.testing.assert_array_equal(bandit.error_field_, loaded.error_field_)
        assert list(map(dataclasses.astuple, bandit.explanations_)) == list(
            map(dataclasses.astuple, loaded.explanations_)
        )
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["bandit.safetensors"]


def test_a_state_before_the_first_head_can_be_saved(tmp_path):
    X, truth = clusters([20, 20])
    y = np.full(40, MISSING)
    bandit = CoverageBandit(seed=0)
    rows = bandit.query(X, y, batch_size=5)
    bandit.save(tmp_path / "state")
    np.testing.assert_array_equal(CoverageBandit.load(tmp_path / "state").pending_, rows)


def test_what_is_no_state_is_refused(tmp_path):
    X, truth = clusters([20, 20])
    y = np.full(40, MISSING)
    bandit = CoverageBandit(head=LogisticRegression(C=2.0), seed=0)
    with pytest.raises(DataError, match="has not chosen anything yet"):
        bandit.save(tmp_path / "state")
    with pytest.raises(CheckpointError, match="no such file"):
        CoverageBandit.load(tmp_path / "state")
    bandit.query(X, y, batch_size=5)
    bandit.save(tmp_path / "state")
    with pytest.raises(CheckpointError, match=r"made with head LogisticRegression\(C=2.0\), not None"):
        CoverageBandit.load(tmp_path / "state")
    whole = (tmp_path / "state").read_bytes()
    for damaged in (whole[:-8], whole[:100], b"", b"neither"):
        (tmp_path / "state").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="no state of a CoverageBandit, or is damaged"):
            CoverageBandit.load(tmp_path / "state", head=LogisticRegression(C=2.0))


def test_another_pool_is_refused():
    X, truth = clusters([20, 20])
    y = np.full(40, MISSING)
    bandit = CoverageBandit(seed=0)
    assert bandit.query(X, y, batch_size=20).max() >= 30
    for other, message in [((X[:30], y[:30]), "rows"), ((X[::-1], y), "sha256"), ((X[:, :5], y), "dimensions")]:
        with pytest.raises(DataError, match=f"differs from that of the earlier rounds in .*{message}"):
            bandit.query(*other)
    with pytest.raises(DataError, match="in regions; give the same"):
        bandit.query(X, y, regions=["a", "b"] * 20)


def test_a_region_of_a_few_rows_in_a_large_pool_is_seen():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60_000, 8)).astype(np.float32)
    regions = np.where(np.arange(60_000) < 12, "tiny", "large")
    bandit = CoverageBandit(regions, seed=0)
    rows = bandit.query(X, np.full(60_000, MISSING), batch_size=20)
    assert len(np.unique(rows)) == 20
    assert np.sum(bandit.landmarks_ < 12) == 10
    assert len(bandit.landmarks_) == pytest.approx(2_000, abs=20)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 30), st.floats(0.5, 8))
def test_greedy_for_the_money_takes_the_best_ratio_within_the_budget(seed, candidates, landmarks, budget):
    rng = np.random.default_rng(seed)
    kernel, covered, weight = rng.random((candidates, landmarks)), np.zeros(landmarks), rng.random(landmarks)
    cost = rng.uniform(0.5, 3, candidates)
    rows, _, paid = lazy_greedy(kernel, covered, weight, candidates, lambda chosen: cost, budget)
    np.testing.assert_allclose(paid, cost[rows])
    assert paid.sum() <= budget + 1e-9
    spent, left = 0.0, np.ones(candidates, bool)
    for row in rows:
        ratio = np.where(left & (spent + cost <= budget), np.maximum(kernel - covered, 0) @ weight / cost, -1)
        assert ratio[row] == pytest.approx(ratio.max(), rel=1e-6)
        covered, spent, left[row] = np.maximum(covered, kernel[row]), spent + cost[row], False
    assert not np.any(left & (spent + cost <= budget - 1e-9))


def test_a_share_of_the_batch_is_left_to_chance_and_equal_over_regions():
    X, truth, _ = two_regions()
    regions = np.where(np.arange(400) < 40, "small", "large")
    bandit = CoverageBandit(regions, explore=0.5, seed=0)
    rows = bandit.query(X, np.full(400, MISSING), batch_size=20)
    by_chance = np.array([reason.by_chance for reason in bandit.explanations_])
    assert by_chance.sum() == 10 and by_chance[:4].any() and not by_chance[:4].all()
    assert np.sum(rows[by_chance] < 40) == 5
    drawn = [set(rows[by_chance]) for seed in range(2)]
    other = CoverageBandit(regions, explore=0.5, seed=1)
    again = other.query(X, np.full(400, MISSING), batch_size=20)
    assert set(again[[reason.by_chance for reason in other.explanations_]]) != drawn[0]
    assert not any(r.by_chance for r in explained(CoverageBandit(regions, explore=0, seed=0), X))
    with pytest.raises(DataError, match="share from 0 to 1"):
        CoverageBandit(explore=1.5)


def explained(bandit, X, size=20):
    bandit.query(X, np.full(len(X), MISSING), batch_size=size)
    return bandit.explanations_


def test_a_head_at_chance_hardly_tells_places_apart():
    X, truth = clusters([150, 150], spread=0.5)
    noise = np.random.default_rng(1).integers(2, size=300)
    fields = {}
    for name, labels in (("able", truth), ("at chance", noise)):
        y = np.full(300, MISSING)
        y[::6] = labels[::6]
        bandit = CoverageBandit(seed=0)
        bandit.query(X, y, batch_size=5)
        fields[name] = bandit.error_field_
    assert fields["at chance"].min() > 0.5 > np.median(fields["able"])


def test_prices_decide_between_equals_and_budgets_end_a_batch():
    X, number = clusters([60, 60, 60], spread=0.3)
    costs = np.where(np.arange(180) % 2, 1.0, 4.0)
    bandit = CoverageBandit(trips=Trips(costs=costs), seed=0)
    rows = bandit.query(X, np.full(180, MISSING), batch_size=6)
    assert np.mean(costs[rows]) < 2 and len(np.unique(number[rows])) == 3
    assert [reason.cost for reason in bandit.explanations_] == costs[rows].tolist()
    bounded = CoverageBandit(trips=Trips(costs=costs, budget=3.5), seed=0)
    assert len(bounded.query(X, np.full(180, MISSING), batch_size=6)) == 3


def test_a_price_of_ways_gathers_a_batch_in_trips():
    rng = np.random.default_rng(0)
    X, town = rng.normal(size=(300, 8)).astype(np.float32), rng.integers(6, size=300)
    lonlat = np.array([[30 + 3 * k, 1.0] for k in range(6)])[town] + rng.normal(0, 0.02, (300, 2))
    ways = {}
    for per_km in (0.0, 1.0):
        bandit = CoverageBandit(explore=0, trips=Trips(lonlat=lonlat, per_km=per_km), seed=0)
        rows = bandit.query(X, np.full(300, MISSING), batch_size=12)
        ways[per_km] = len(np.unique(town[rows]))
        if per_km:
            first = lonlat[rows[0]]
            second = bandit.explanations_[1].cost
            assert second == pytest.approx(1 + kilometres(lonlat[rows[1]][None], first)[0])
    assert ways[1.0] <= 2 < ways[0.0]


def test_a_degree_of_latitude_is_some_111_kilometres():
    found = kilometres(np.array([[10.0, 1.0], [11.0, 0.0]]), np.array([10.0, 0.0]))
    assert found == pytest.approx([111.2] * 2, abs=0.1)


@pytest.mark.parametrize(
    ("trips", "message"),
    [
        (Trips(costs=np.ones(5)), "one price for each of the 40 rows"),
        (Trips(costs=np.r_[np.ones(39), 0]), "cost of row 39 is 0.0"),
        (Trips(per_km=-1), "from 0 on"),
        (Trips(per_km=1), "columns lon and lat"),
        (Trips(per_km=1, lonlat=np.full((40, 2), 95.0)), "no longitude and latitude"),
        (Trips(budget=0), "budget must be above 0"),
    ],
)
def test_prices_that_are_none_are_refused(trips, message):
    X, _ = clusters([20, 20])
    with pytest.raises(DataError, match=message):
        CoverageBandit(trips=trips).query(X, np.full(40, MISSING))


def test_a_campaign_stopped_and_resumed_gives_the_same_picks_as_an_unbroken_one(tmp_path):
    X, truth, regions = two_regions()
    picks = {}
    for broken in (False, True):
        y, bandit = np.full(400, MISSING), CoverageBandit(regions, seed=4)
        picks[broken], before = [], np.empty(0, int)
        for _ in range(5):
            rows = bandit.query(X, y, batch_size=12)
            # Labels of every third row come a round late.
            late = rows[::3]
            y[np.setdiff1d(rows, late)] = truth[np.setdiff1d(rows, late)]
            picks[broken].append(rows.tolist())
            if broken:
                bandit.save(tmp_path / "state")
                bandit = CoverageBandit.load(tmp_path / "state", regions)
            y[before] = truth[before]
            before = late
    assert picks[True] == picks[False]
    assert len({row for rows in picks[True] for row in rows}) == 60
