"""Labels bought here for a place elsewhere: what the bandit covers when it is shown that place."""

import faiss
import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from croplem_hf.active import MISSING, CoverageBandit
from croplem_hf.active.suggest import suggest
from croplem_hf.errors import CheckpointError, DataError
from croplem_hf.table import EmbeddingsTable


def clusters(sizes, seed=0, dim=16):
    """Rows around a centre for each size, the same centres with every seed, and the number of each row's centre."""
    centres = np.random.default_rng(9).normal(size=(8, dim)) * 2
    number = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(number), dim))
    return (centres[number] + 0.4 * noise).astype(np.float32), number


def make_table(X, **info):
    ids = [str(row) for row in range(len(X))]
    return EmbeddingsTable(ids, X, pa.table({"id": ids}), {"weights_hash": "m"} | info)


def test_what_resembles_the_target_is_bought():
    X, number = clusters([300, 200, 20, 20, 100])
    target = clusters([0, 0, 60, 60], seed=1)[0]
    bandit = CoverageBandit(target=target, seed=0)
    y = np.full(len(X), MISSING)
    first = bandit.query(X, y, batch_size=10)
    assert np.isin(number[first], [2, 3]).mean() >= 0.8
    assert np.isin(number[CoverageBandit(seed=0).query(X, y, batch_size=10)], [2, 3]).sum() <= 4
    y[first] = number[first]
    assert np.isin(number[bandit.query(X, y, batch_size=10)], [2, 3]).mean() >= 0.5
    assert bandit.landmarks_.min() == len(X) and len(bandit.landmarks_) == len(target)
    assert all(why.region_weight == pytest.approx(1) for why in bandit.explanations_)


def test_a_few_rows_like_the_target_are_found_in_a_large_pool():
    X, number = clusters([5_000, 4_000, 20])
    target = clusters([0, 0, 80], seed=1)[0]
    y = np.full(len(X), MISSING)
    y[:40] = 0
    y[5_000:5_040] = 1
    assert np.sum(number[CoverageBandit(target=target, seed=0).query(X, y, batch_size=10)] == 2) >= 8


def test_regions_of_the_pool_have_no_weight_beside_a_target():
    X, number = clusters([3_000, 3_000, 3_000, 3_000])
    target = clusters([200, 200, 200, 200], seed=1)[0]
    y = np.full(len(X), MISSING)
    y[::60] = number[::60]
    regions = np.where(np.arange(len(X)) % 4 == 0, "small", "large")
    chosen = [CoverageBandit(regions, rho=rho, target=target, seed=0).query(X, y, batch_size=20) for rho in (0, 3)]
    np.testing.assert_array_equal(*chosen)


def test_a_state_goes_on_with_the_same_target(tmp_path):
    X, number = clusters([100, 100, 100])
    target = clusters([50, 0, 50], seed=1)[0]
    bandit, y = CoverageBandit(target=target, seed=0), np.full(300, MISSING)
    rows = bandit.query(X, y, batch_size=10)
    bandit.save(tmp_path / "state")
    y[rows] = number[rows]
    loaded = CoverageBandit.load(tmp_path / "state", target=target)
    np.testing.assert_array_equal(bandit.query(X, y, batch_size=10), loaded.query(X, y, batch_size=10))
    for other in (None, target[::-1]):
        with pytest.raises(DataError, match="differs from that of the earlier rounds in target; give the same"):
            CoverageBandit.load(tmp_path / "state", target=other).query(X, y, batch_size=10)


def test_targets_that_do_not_fit_are_refused():
    X, y = clusters([50, 50])[0], np.full(100, MISSING)
    with pytest.raises(DataError, match=r"target must be numbers \(rows, 16\), found float32 of shape \(100, 15\)"):
        CoverageBandit(target=X[:, :15]).query(X, y)
    with pytest.raises(DataError, match="row 1 of target is not finite"):
        CoverageBandit(target=np.where(np.arange(100)[:, None] == 1, np.nan, X)).query(X, y)
    table = make_table(X)
    with pytest.raises(DataError, match="only the bandit has a target; leave that out with strategy 'margin'"):
        suggest(table, [None] * 100, 5, strategy="margin", target=table)
    with pytest.raises(CheckpointError, match="target and table differ in weights_hash"):
        suggest(table, [None] * 100, 5, target=make_table(X, weights_hash="other"))
    assert "of the target anew" in suggest(table, [None] * 100, 5, target=table)[0]["reason"]


def test_the_choice_does_not_depend_on_the_number_of_threads():
    X, number = clusters([3_000, 2_000, 1_000, 500])
    y = np.full(len(X), MISSING)
    y[::100] = number[::100]
    chosen, threads = [], faiss.omp_get_max_threads()
    try:
        for count in (1, 3):
            faiss.omp_set_num_threads(count)
            with threadpool_limits(count):
                chosen.append(CoverageBandit(seed=0).query(X, y, batch_size=30).tolist())
    finally:
        faiss.omp_set_num_threads(threads)
    assert chosen[0] == chosen[1]
