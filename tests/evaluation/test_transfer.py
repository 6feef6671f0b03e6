"""What is in training and what is not: regions left out, blocks left out, local labels apart from the test."""

import warnings

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier

from croplem_hf.errors import DataError
from croplem_hf.evaluation import few_shot, few_shot_means, grouped_cross_validation, leave_one_region_out, score
from croplem_hf.heads import LogisticHead


class Recorder(ClassifierMixin, BaseEstimator):
    """Remembers the row numbers (column 0 of X) that it was fitted to and asked about."""

    log: list = []  # noqa: RUF012

    def fit(self, X, y, groups=None):
        self.classes_ = np.unique(y)
        self.rows, self.groups = X[:, 0].astype(int), groups
        return self

    def predict_proba(self, X):
        Recorder.log.append((self.rows, X[:, 0].astype(int), self.groups))
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


@pytest.fixture(autouse=True)
def _empty_log():
    Recorder.log.clear()


def numbered(count, dim=3):
    X = np.random.default_rng(0).normal(size=(count, dim))
    X[:, 0] = np.arange(count)
    return X


def world(seed=0, regions=4, blocks=12, size=8, shift=0.0):
    """Points in blocks in regions; `shift` moves the direction that tells the classes apart from region to region."""
    rng = np.random.default_rng(seed)
    region = np.repeat(np.arange(regions), blocks * size)
    block = np.repeat(np.arange(regions * blocks), size)
    y = rng.integers(2, size=len(region))
    angle = shift * region
    signal = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (2 * y - 1)[:, None]
    X = np.concatenate([signal + rng.normal(size=signal.shape), rng.normal(size=(len(y), 6))], axis=1)
    return X, np.array(["crop", "other"])[y], np.char.add("r", region.astype(str)), np.char.add("b", block.astype(str))


@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(6, 12))
def test_neither_region_nor_block_is_on_both_sides(seed, regions, blocks):
    Recorder.log.clear()
    rng = np.random.default_rng(seed)
    X, y = numbered(120), np.arange(120) % 2
    # Blocks may reach over regions; those of the test leave training all the same.
    region, block = rng.integers(regions, size=120).astype(str), rng.integers(20 * blocks, size=120)
    proba = leave_one_region_out(X, y, region, Recorder, block)
    assert proba.shape == (120, 2) and len(Recorder.log) == len(np.unique(region))
    for train, test, groups in Recorder.log:
        assert len(set(region[test])) == 1 and not set(region[test]) & set(region[train])
        assert not set(block[test]) & set(block[train])
        others = np.flatnonzero(region != region[test[0]])
        assert set(train) == {row for row in others if block[row] not in block[test]}
        assert groups is None or len(groups) == len(train)


@given(st.integers(0, 10**6), st.integers(2, 30))
def test_folds_do_not_split_blocks_and_test_every_row_once(seed, blocks):
    Recorder.log.clear()
    X, y = numbered(90), np.arange(90) % 3
    block = np.concatenate([np.arange(blocks), np.random.default_rng(seed).integers(blocks, size=90 - blocks)])
    proba = grouped_cross_validation(X, y, Recorder, block, seed=seed)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert sorted(np.concatenate([test for _, test, _ in Recorder.log])) == list(range(90))
    for train, test, groups in Recorder.log:
        assert not set(block[test]) & set(block[train]) and len(train) + len(test) == 90
        assert [block[row] for row in train] == [block[train[groups == g]][0] for g in groups]


def test_rows_without_blocks_are_split_one_by_one_and_heads_get_no_groups():
    X, y = numbered(50), np.arange(50) % 2
    grouped_cross_validation(X, y, Recorder)
    leave_one_region_out(X, y, np.arange(50) % 3, Recorder)
    assert all(groups is None for *_, groups in Recorder.log)
    assert len(Recorder.log) == 8


def test_transfer_is_worse_where_regions_differ_and_not_where_they_are_alike():
    for shift, worse in ((0.0, False), (0.8, True)):
        X, y, region, block = world(shift=shift)
        here = score(y, grouped_cross_validation(X, y, LogisticHead, block))["balanced_accuracy"]
        there = score(y, leave_one_region_out(X, y, region, LogisticHead, block))["balanced_accuracy"]
        assert here > 0.7
        assert (there < here - 0.05) == worse


def test_random_labels_are_not_predicted():
    X, _, region, block = world()
    y = np.random.default_rng(1).integers(2, size=len(X))
    for proba in (leave_one_region_out(X, y, region, LogisticHead, block),
                  grouped_cross_validation(X, y, LogisticHead, block)):  # fmt: skip
        assert 0.42 < score(y, proba)["auc"] < 0.58


def test_a_class_that_the_other_regions_lack_has_no_probability():
    X, y, region, block = world()
    y = np.where((region == "r0") & (y == "crop"), "rice", y)
    proba = leave_one_region_out(X, y, region, LogisticHead, block)
    np.testing.assert_array_equal(proba[region == "r0"][:, 2], 0)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_rare_classes_raise_no_warning():
    X, y, _, block = world()
    y = y.astype("U9")
    y[:2] = ["rare", "rarest"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for blocks in (block, None):
            proba = grouped_cross_validation(X, y, LogisticHead, blocks)
            np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_majority_class_is_where_it_must_be():
    X, y, region, _ = world()
    found = score(y, leave_one_region_out(X, y, region, lambda: DummyClassifier(strategy="prior")))
    assert found["balanced_accuracy"] <= 0.5 and found["auc"] <= 0.5 + 1e-9


def test_refuses_splits_that_say_nothing():
    X, y = numbered(10), np.arange(10) % 2
    with pytest.raises(DataError, match="two regions at least"):
        leave_one_region_out(X, y, ["a"] * 10, Recorder)
    with pytest.raises(DataError, match="regions other than 'a' hold one class only"):
        leave_one_region_out(X, np.arange(10) > 3, np.repeat(["a", "b"], [4, 6]), Recorder)
    with pytest.raises(DataError, match="all rows lie in one block"):
        grouped_cross_validation(X, y, Recorder, ["x"] * 10)
    with pytest.raises(DataError, match="blocks name 3 rows, there are 10"):
        grouped_cross_validation(X, y, Recorder, [1, 2, 3])


def test_local_labels_are_apart_from_a_test_that_stays():
    X, y = numbered(400), np.arange(400) % 2
    region, block = np.repeat(["a", "b", "c"], [150, 150, 100]), np.arange(400) // 5
    records = few_shot(X, y, region, Recorder, block, shots=(0, 10, 40), seeds=(0, 1))
    assert [(r["region"], r["n_labels"], r["seed"]) for r in records] == [
        (name, count, seed) for name in "abc" for count in (0, 10, 40) for seed in (0, 1)
    ]
    tests, bought = {}, {}
    for train, test, _ in Recorder.log:
        name = region[test[0]]
        if not tests.get(name, set(test)) & set(test):
            # The local labels that move the threshold of a head that saw none of them.
            assert len(test) == 50 and name not in region[train]
            continue
        assert tests.setdefault(name, set(test)) == set(test)
        assert set(region[test]) == {name} and not set(block[test]) & set(block[train])
        assert set(np.flatnonzero(region != name)) <= set(train)
        local = [row for row in train if region[row] == name]
        bought.setdefault(name, []).append(local)
    for name, lists in bought.items():
        zero, first, other, more, *_ = lists
        assert (len(zero), len(first), len(more)) == (0, 10, 40)
        assert first != other and set(first) < set(more)
        assert len(tests[name]) == (region == name).sum() // 2


def test_local_labels_help_where_regions_differ():
    X, y, region, block = world(regions=2, shift=1.2, blocks=20)
    records = few_shot(X, y, region, LogisticHead, block, shots=(0, 60))
    for metric in ("balanced_accuracy", "auc"):
        none, sixty = few_shot_means(records, metric)
        assert none["n_labels"] == 0 and sixty["n_labels"] == 60 and none["regions"] == 2
        assert sixty["mean"] > none["mean"] + 0.03 and sixty["worst"] <= sixty["mean"]


def test_regions_that_are_too_small_for_a_test_are_left_out():
    X, y = numbered(150), np.arange(150) % 2
    region, block = np.repeat(["big", "lone", "small"], [90, 40, 20]), np.arange(150) // 5
    block[region == "lone"] = 99
    records = few_shot(X, y, region, Recorder, block)
    assert {record["region"] for record in records} == {"big"}
    assert {record["n_labels"] for record in records} == {0, 10}
    assert few_shot_means([], "auc") == []
