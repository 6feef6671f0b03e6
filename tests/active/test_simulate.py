"""Replay of labelling: complete and paired records, areas under curves, intervals of differences."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.dummy import DummyClassifier

from croplem_hf.active import MISSING, CoverageBandit, MarginSampling, RandomSampling, Strategy, aulc, compare, replay
from croplem_hf.active.simulate import METRICS, curves, scores
from croplem_hf.errors import DataError

BUDGETS = (8, 16, 32)


def invented(seed=0):
    """Ten classes, each a cluster, few of them common; two regions; every second row for testing."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(10), [120, 80, 40, 20, 20, 20, 20, 20, 20, 20])
    X = (2 * rng.normal(size=(10, 12))[truth] + 0.7 * rng.normal(size=(380, 12))).astype(np.float32)
    regions = np.where(rng.random(380) < 0.8, "big", "small")
    rows = rng.permutation(380)
    return {"X": X, "y": truth, "pool": rows[:190], "test": rows[190:], "regions": regions, "budgets": BUDGETS}


FACTORIES = {
    "random": lambda seed: RandomSampling(seed=seed),
    "margin": lambda seed: MarginSampling(seed=seed),
    "bandit": lambda seed: CoverageBandit(seed=seed),
}


@pytest.fixture(scope="module")
def records():
    return replay(**invented(), strategies=FACTORIES, seeds=range(4))


def test_records_are_complete(records):
    keys = {(record["strategy"], record["seed"], record["n_labels"]) for record in records}
    assert keys == {(name, seed, count) for name in FACTORIES for seed in range(4) for count in BUDGETS}
    assert len(records) == len(keys)
    for record in records:
        assert all(0 <= record[metric] <= 1 for metric in METRICS)
        assert record["worst_region_accuracy"] <= record["accuracy"]
        assert record["worst_region"] in ("big", "small") and record["start"] == "own"
        assert record["seconds"] >= 0


def test_records_repeat(records):
    again = replay(**invented(), strategies=FACTORIES, seeds=range(4))
    plain = [[{key: value for key, value in r.items() if key != "seconds"} for r in part] for part in (records, again)]
    assert plain[0] == plain[1]


def first(records, name):
    own = [record for record in records if (record["strategy"], record["n_labels"]) == (name, BUDGETS[0])]
    return {record["seed"]: [record[metric] for metric in METRICS] for record in own}


def test_start_decides_who_chooses_the_first_batch(records):
    assert first(records, "random") == first(records, "margin") != first(records, "bandit")
    same = replay(**invented(), strategies=FACTORIES, seeds=range(2), start="random")
    assert first(same, "random") == first(same, "margin") == first(same, "bandit")
    assert {record["start"] for record in same} == {"random"}


def test_a_better_strategy_wins(records):
    whole, low, high = compare(records, "bandit", "random", "macro_f1")
    assert [part.part for part in (whole, low, high)] == ["whole", "low", "high"]
    assert whole.lower > 0.05 and low.lower > 0.05
    assert whole.lower <= whole.mean <= whole.upper and whole.seeds == 4
    worse = compare(records, "random", "bandit", "macro_f1")[0]
    assert worse.mean == pytest.approx(-whole.mean)


def test_a_strategy_against_itself_differs_by_nothing(records):
    for part in compare(records, "bandit", "bandit", "accuracy"):
        assert (part.mean, part.lower, part.upper) == (0, 0, 0)


class Spy(Strategy):
    """Takes the first candidates and keeps what it was shown."""

    cold_start = True

    def _choose(self, pool, rng):
        self.seen.append((pool.X, pool.y.copy(), pool.batch_size, pool.regions))
        return pool.candidates[: pool.batch_size]


def test_a_strategy_sees_bought_labels_of_the_pool_and_nothing_else():
    data, spy = invented(), Spy()
    spy.seen = []
    replay(**data, strategies={"spy": lambda seed: spy}, seeds=[0])
    assert [seen[2] for seen in spy.seen] == [8, 8, 16]
    for bought, (X, y, _, regions) in zip([0, 8, 16], spy.seen, strict=True):
        np.testing.assert_array_equal(X, data["X"][data["pool"]])
        np.testing.assert_array_equal(y[:bought], data["y"][data["pool"]][:bought])
        assert np.all(y[bought:] == MISSING)
        assert regions == ["big", "small"]


def test_a_head_of_one_class_predicts_it():
    data = invented()
    data["y"] = np.where(np.arange(380) == data["test"][0], 3, 2)
    record = replay(**data, strategies={"random": FACTORIES["random"]}, seeds=[0])[0]
    assert record["accuracy"] == pytest.approx(189 / 190)
    # Class 2 is found with precision 189/190, class 3 not at all.
    assert record["macro_f1"] == pytest.approx(189 / (189 + 0.5) / 2)


def test_the_head_to_test_with_can_be_given():
    data = invented()
    head = DummyClassifier(strategy="most_frequent")
    record = replay(**data, strategies={"random": FACTORIES["random"]}, seeds=[0], head=head)[-1]
    assert record["accuracy"] == pytest.approx(np.mean(data["y"][data["test"]] == 0))


def test_scores_name_the_worst_region():
    found = scores(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), np.array(["a", "a", "b", "b"]))
    assert found["worst_region"] == "b" and found["worst_region_accuracy"] == 0.5
    assert found["accuracy"] == 0.75 and found["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


@given(st.floats(0, 1), st.floats(-0.1, 0.1), st.sets(st.integers(1, 2000), min_size=2, max_size=12))
def test_area_of_a_line_over_log_labels(base, slope, budgets):
    budgets = sorted(budgets)
    at = np.log(budgets)
    areas = aulc(budgets, base + slope * at)
    assert areas["whole"] == pytest.approx(base + slope * (at[0] + at[-1]) / 2, abs=1e-9)
    assert areas["low"] == pytest.approx(base + slope * (0.75 * at[0] + 0.25 * at[-1]), abs=1e-9)
    assert (areas["low"] + areas["high"]) / 2 == pytest.approx(areas["whole"], abs=1e-9)


@given(st.dictionaries(st.integers(1, 2000), st.floats(0, 1), min_size=2, max_size=12))
def test_halves_add_up_and_order_does_not_matter(curve):
    areas = aulc(list(curve), list(curve.values()))
    assert areas == aulc(sorted(curve), [curve[count] for count in sorted(curve)])
    assert (areas["low"] + areas["high"]) / 2 == pytest.approx(areas["whole"], abs=1e-9)
    assert min(curve.values()) - 1e-9 <= areas["whole"] <= max(curve.values()) + 1e-9


def test_unlike_records_are_refused(records):
    with pytest.raises(DataError, match="no records of strategy 'bandits'; there are bandit, margin, random"):
        curves(records, "bandits", "macro_f1")
    part = [record for record in records if record["strategy"] == "random" or record["seed"]]
    with pytest.raises(DataError, match="different seeds"):
        compare(part, "bandit", "random", "macro_f1")
    with pytest.raises(DataError, match="two budgets"):
        aulc([10], [0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"test": d["pool"][:3]}, "is in pool and test .3 such rows"),
        (lambda d: {"pool": np.r_[d["pool"], d["pool"][:1]]}, "pool must name rows of X .*each once"),
        (lambda d: {"test": np.array([380])}, "test must name rows of X"),
        (lambda d: {"test": np.array([], int)}, "not empty"),
        (lambda d: {"y": np.where(np.arange(380) == d["pool"][0], -1, d["y"])}, "of pool has no label"),
        (lambda d: {"budgets": (10, 10)}, "budgets must rise"),
        (lambda d: {"budgets": (10, 191)}, "end within the pool of 190 rows"),
        (lambda d: {"budgets": ()}, "budgets must rise"),
        (lambda d: {"seeds": []}, "no seeds"),
        (lambda d: {"start": "warm"}, "start is 'own' or 'random', found 'warm'"),
    ],
)
def test_refuses_what_cannot_be_replayed(change, message):
    data = {**invented(), "strategies": FACTORIES, "seeds": [0]}
    with pytest.raises(DataError, match=message):
        replay(**{**data, **change(data)})


def plain(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.slow
def test_processes_change_nothing(records):
    assert plain(replay(**invented(), strategies=FACTORIES, seeds=range(4), jobs=2)) == plain(records)


def test_a_replay_that_was_stopped_goes_on(records, tmp_path):
    file, started = tmp_path / "records.jsonl", []

    def stops(seed):
        if seed == 2:
            raise KeyboardInterrupt
        return FACTORIES["random"](seed)

    with pytest.raises(KeyboardInterrupt):
        replay(**invented(), strategies={"random": stops}, seeds=range(4), record_file=file)
    # Killed while it wrote a line.
    with open(file, "a") as handle:
        handle.write('[{"strategy": "random", "se')

    def watched(seed):
        started.append(seed)
        return FACTORIES["random"](seed)

    found = replay(**invented(), strategies={"random": watched}, seeds=range(4), record_file=file)
    assert started == [2, 3]
    assert plain(found) == plain([record for record in records if record["strategy"] == "random"])
    assert plain(replay(**invented(), strategies={"random": watched}, seeds=range(4), record_file=file)) == plain(found)
    assert started == [2, 3]


def test_records_of_another_replay_are_refused(tmp_path):
    file, data = tmp_path / "records.jsonl", invented()
    replay(**data, strategies={"random": FACTORIES["random"]}, seeds=[0], record_file=file)
    with pytest.raises(DataError, match="records of another pool"):
        replay(**invented(seed=1), strategies={"random": FACTORIES["random"]}, seeds=[0], record_file=file)
    file.write_text("nothing\n")
    with pytest.raises(DataError, match="no records of a replay"):
        replay(**data, strategies={"random": FACTORIES["random"]}, seeds=[0], record_file=file)
