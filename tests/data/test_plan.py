"""The planner: every item comes, batches are of one shape, and any batch can be had on its own."""

import itertools
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data import SeriesTable, open_source
from croplem_hf.data.plan import BatchPlan, Layout, read_layout, select_items
from croplem_hf.errors import DataError

SHAPES = np.array([(1, 1, 64, 64), (1, 0, 64, 64), (0, 1, 64, 64), (12, 12, 1, 1), (0, 2, 1, 1)], np.int32)


@st.composite
def plans(draw, weighted=False):
    """Arguments of a plan over one to three sources, some with row groups."""
    layouts = []
    for _ in range(draw(st.integers(1, 3))):
        kinds = draw(st.lists(st.integers(0, len(SHAPES) - 1), min_size=1, max_size=60))
        groups = np.arange(len(kinds), dtype=np.int32) // draw(st.integers(1, 9)) if draw(st.booleans()) else None
        layouts.append(Layout(SHAPES[kinds], groups))
    weight = st.sampled_from([0.3, 0.5, 1.0, 1.7, 3.0]) if weighted else st.just(1.0)
    weights = [draw(weight) for _ in layouts]
    size, seed = draw(st.integers(1, 9)), draw(st.integers(0, 9))
    return {"layouts": layouts, "batch_size": size, "seed": seed, "weights": weights}


def count(plan, epoch, layouts):
    """How often each item comes: one array a source."""
    items = plan.epoch(epoch).reshape(-1, 3)
    return [np.bincount(items[items[:, 0] == s, 1], minlength=len(x.shapes)) for s, x in enumerate(layouts)]


@given(plans(), st.integers(0, 5))
def test_every_item_comes_and_only_the_last_batch_of_a_size_repeats(arguments, epoch):
    plan, layouts, size = BatchPlan(**arguments), arguments["layouts"], arguments["batch_size"]
    counts = np.concatenate(count(plan, epoch, layouts))
    shapes = np.concatenate([layout.shapes for layout in layouts])
    assert counts.min() >= 1
    for pixels in (64, 1):
        here = counts[shapes[:, 2] == pixels]
        if len(here):
            assert here.sum() == -(-len(here) // size) * size
            assert here.max() - here.min() <= 1 and (len(here) < size or here.min() == 1)
    # Each time that an item comes it has another number, so that it is augmented differently.
    items = plan.epoch(epoch).reshape(-1, 3)
    assert len(np.unique(items, axis=0)) == len(items)


@given(plans(), st.integers(0, 5))
def test_a_batch_is_of_one_bucket_until_only_remainders_are_left(arguments, epoch):
    plan, size = BatchPlan(**arguments), arguments["batch_size"]
    shapes = np.stack([plan.shapes(batch) for batch in plan.epoch(epoch)])
    assert (shapes[..., 2:] == shapes[:, :1, 2:]).all()
    mixed = int((shapes != shapes[:, :1]).any(axis=(1, 2)).sum())
    whole = np.unique(np.concatenate([layout.shapes for layout in arguments["layouts"]]), axis=0, return_counts=True)[1]
    assert len(shapes) - mixed >= sum(n // size for n in whole)


@given(plans(weighted=True), st.integers(0, 4), st.data())
def test_any_batch_alone_equals_the_batch_in_the_run(arguments, epochs, data):
    plan = BatchPlan(**arguments)
    length = plan.batches_per_epoch
    run = [plan.batch(number) for number in range((epochs + 1) * length)]
    number = data.draw(st.integers(0, len(run) - 1))
    assert np.array_equal(BatchPlan(**arguments).batch(number), run[number])
    # Workers w of W read w, w + W, ...: together the same batches, whatever W.
    workers = data.draw(st.integers(1, 4))
    shared = [[BatchPlan(**arguments).batch(n) for n in range(w, len(run), workers)] for w in range(workers)]
    interleaved = [batch for turn in itertools.zip_longest(*shared) for batch in turn if batch is not None]
    assert np.array_equal(np.stack(interleaved), np.stack(run))


def test_processes_take_disjoint_parts_of_a_batch():
    plan = BatchPlan([Layout(SHAPES[np.zeros(48, int)])], batch_size=8, seed=3)
    batch = plan.batch(4)
    parts = [{tuple(item) for item in batch[rank::4].tolist()} for rank in range(4)]
    assert len(set.union(*parts)) == 8 and all(len(part) == 2 for part in parts)


def test_epochs_and_seeds_differ_and_batches_mix_scenes():
    layout = Layout(SHAPES[np.zeros(1000, int)])
    plan = BatchPlan([layout], batch_size=10, seed=1)
    assert not np.array_equal(plan.epoch(0), plan.epoch(1))
    assert not np.array_equal(plan.epoch(0), BatchPlan([layout], batch_size=10, seed=2).epoch(0))
    scenes = plan.epoch(0)[..., 1] // 100
    assert np.mean([len(set(batch)) for batch in scenes.tolist()]) > 5


def test_buckets_and_sources_alternate():
    a, b = Layout(SHAPES[np.zeros(400, int)]), Layout(SHAPES[np.full(400, 3)])
    source = BatchPlan([a, b], batch_size=10).epoch(0)[:, 0, 0]
    assert 20 < (np.diff(source) != 0).sum() < 79 and source[:40].mean() == pytest.approx(0.5, abs=0.2)


@given(plans(weighted=True))
def test_weights_thin_and_repeat_each_bucket_alike_in_every_epoch(arguments):
    plan, layouts = BatchPlan(**arguments), arguments["layouts"]
    length = plan.batches_per_epoch
    assert [len(plan.epoch(e)) for e in range(4)] == [length] * 4
    total = [np.sum(counts, axis=0) for counts in zip(*(count(plan, e, layouts) for e in range(4)), strict=True)]
    for got, weight in zip(total, arguments["weights"], strict=True):
        assert got.min() >= np.floor(4 * weight + 1e-9)


def test_a_thinned_source_takes_turns():
    plan = BatchPlan([Layout(SHAPES[np.zeros(100, int)])], batch_size=5, weights=[0.25])
    seen = [set(plan.epoch(e)[..., 1].ravel().tolist()) for e in range(4)]
    assert [len(rows) for rows in seen] == [25] * 4 and set.union(*seen) == set(range(100))


def test_row_groups_are_walked_a_few_at_a_time():
    groups = np.arange(100_000, dtype=np.int32) // 10_000
    plan = BatchPlan([Layout(SHAPES[np.full(100_000, 3)], groups)], batch_size=50, seed=5)
    read = [set(groups[batch[:, 1]].tolist()) for batch in plan.epoch(1)]
    assert max(map(len, read)) == 2
    # A reader that keeps two groups decodes each of the ten about once.
    changes = sum(len(now - before) for before, now in itertools.pairwise(read))
    assert changes + len(read[0]) <= 14
    assert {tuple(sorted(r)) for r in read} != {(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)}


def test_small_row_groups_are_mixed():
    groups = np.arange(10_000, dtype=np.int32) // 8
    plan = BatchPlan([Layout(SHAPES[np.zeros(10_000, int)], groups)], batch_size=64)
    assert np.mean([len(set(groups[batch[:, 1]].tolist())) for batch in plan.epoch(0)]) > 16


@given(plans(), st.data())
def test_replacements_reach_every_item_once_and_start_in_the_same_bucket(arguments, data):
    plan = BatchPlan(**arguments)
    source = data.draw(st.integers(0, len(arguments["layouts"]) - 1))
    row = data.draw(st.integers(0, len(arguments["layouts"][source].shapes) - 1))
    found = list(plan.replacements(source, row))
    assert len(set(found)) == len(found) == plan.items - 1 and (source, row) not in found
    same = (plan.shapes(np.array(found + [(source, row)])) == plan.shapes(np.array([[source, row]]))).all(axis=1)
    assert not np.diff(same[:-1].astype(int)).max(initial=0) > 0
    assert found == list(BatchPlan(**arguments).replacements(source, row))


def test_all_of_sen12ms_is_planned_in_seconds():
    kinds = np.random.default_rng(0).choice(3, 180_662, p=[0.98, 0.01, 0.01])
    start = time.process_time()
    plan = BatchPlan([Layout(SHAPES[kinds])], batch_size=8 * 128)
    batches = plan.epoch(1)
    assert time.process_time() - start < 10
    assert batches.shape == (177, 1024, 3) and len(np.unique(batches[..., 1])) == 180_662
    assert batches.nbytes < 4e6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"weights": [0]}, "weights"),
        ({"weights": [1, 1]}, "weights"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        BatchPlan([Layout(SHAPES[:1])], **{"batch_size": 1} | change)


def test_nothing_to_plan_is_refused():
    with pytest.raises(DataError, match="no item"):
        BatchPlan([Layout(SHAPES[:2]).keep(np.zeros(2, bool))], batch_size=1)


def test_left_out_items_are_never_planned():
    keep = np.arange(20) % 3 > 0
    layouts = [Layout(SHAPES[np.arange(20) % 5]).keep(keep)]
    plan = BatchPlan(layouts, batch_size=4)
    assert plan.items == keep.sum() and not count(plan, 0, layouts)[0][~keep].any()
    assert {row for _, row in plan.replacements(0, 1)} == set(np.flatnonzero(keep).tolist()) - {1}


def test_layout_of_patches(sen12ms_tree):
    source = open_source(sen12ms_tree)
    layout = read_layout(source)
    truth = [[*(0 if sample[s] is None else 1 for s in ("s1", "s2")), 64, 64] for sample in source]
    assert layout.shapes.tolist() == truth and layout.groups is None
    assert layout.crop(32).shapes[:, 2:].max() == 32 and (layout.crop(32).shapes[:, :2] == layout.shapes[:, :2]).all()


def test_a_first_patch_that_is_damaged_does_not_matter(tmp_path):
    from croplem_hf.data import generate_sen12ms

    source = open_source(generate_sen12ms(tmp_path, size=16, scenes=1, patches_per_scene=2, defects=True))
    assert read_layout(source).shapes.tolist() == [[1, 1, 16, 16]] * 2
    for file in tmp_path.rglob("*_s1_*.tif"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        read_layout(source)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows of every kind: both sensors, one of them missing or nothing but gaps, other lengths; groups of 3 rows."""
    nan = float("nan")
    rows = [(3, [-9.0] * 6, [900.0] * 39), (3, None, [900.0] * 39)]
    rows += [(2, [-9.0] * 4, [nan] * 26), (1, [-9.0] * 2, [0.0] * 13)]
    rows = [rows[n % 4] for n in range(8)]
    columns = {
        "id": [f"p{n}" for n in range(8)],
        "dates": [["2019-01-01", "2019-02-01", "2019-03-01"][:t] for t, _, _ in rows],
        "s1": pa.array([s1 for _, s1, _ in rows], pa.list_(pa.float32())),
        "s2": pa.array([s2 for _, _, s2 in rows], pa.list_(pa.float32())),
        "place": list("aabbaabb"),
    }
    path = tmp_path_factory.mktemp("series") / "series.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return SeriesTable(path, s2_level="L2A", s1_units="db")


def test_layout_of_series(table):
    layout = read_layout(table)
    assert layout.shapes.tolist() == [[3, 3, 1, 1], [0, 3, 1, 1], [2, 0, 1, 1], [1, 0, 1, 1]] * 2
    assert layout.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    truth = [[0 if sample[s] is None else len(sample[s]) for s in ("s1", "s2")] for sample in table]
    assert layout.shapes[:, :2].tolist() == truth
    assert read_layout(SeriesTable(table.path, sensors=["s1"])).shapes[1].tolist() == [0, 0, 1, 1]


def test_any_other_source_is_read_once(table):
    class Other:
        kind, ids = "other", table.ids

        def __len__(self):
            return len(table)

        def __getitem__(self, i):
            if i == 1:
                raise DataError("p1: damaged")
            return table[i]

    shapes = read_layout(Other()).shapes
    assert shapes[1].tolist() == [0] * 4 and shapes[[0, 2]].tolist() == [[3, 3, 1, 1], [2, 0, 1, 1]]


def test_items_are_chosen_by_column(table, sen12ms_tree):
    assert select_items(table, {"place": ["b"]}).tolist() == [False, False, True, True] * 2
    assert select_items(table, {"place": ["a"], "id": ["p0", "p2"]}).tolist() == [True] + [False] * 7
    with pytest.raises(DataError, match=r"'colour'.*known are place"):
        select_items(table, {"place": ["a"], "colour": ["red"]})
    with pytest.raises(DataError, match="none is left"):
        select_items(table, {"place": ["z"]})
    source = open_source(sen12ms_tree)
    assert select_items(source, {"season": ["fall"]}).sum() == 6
    assert select_items(source, {"scene": ["ROIs1158_spring_1"]}).sum() == 6
    with pytest.raises(DataError, match="'region'"):
        select_items(source, {"region": ["x"]})


def test_official_test_scenes_are_left_out(tmp_path, sen12ms_tree):
    for scene in (14, 15):
        target = tmp_path / f"ROIs1158_spring/s1_{scene}/ROIs1158_spring_s1_{scene}_p30.tif"
        target.parent.mkdir(parents=True)
        target.write_bytes((sen12ms_tree / "ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif").read_bytes())
    source = open_source(tmp_path)
    assert source.ids == ["ROIs1158_spring_14_p30", "ROIs1158_spring_15_p30"]
    assert select_items(source, {}).tolist() == [True, False]
    assert select_items(source, {}, test_scenes=True).all()


def test_the_real_table(real_data):
    source = open_source(real_data / "series/series.parquet", s2_level="L2A")
    layout = read_layout(source)
    rows = np.random.default_rng(0).integers(0, len(source), 100)
    samples = [source[int(row)] for row in rows]
    truth = [[0 if sample[s] is None else len(sample[s]) for s in ("s1", "s2")] for sample in samples]
    assert layout.shapes[rows, :2].tolist() == truth
    plan = BatchPlan([layout.keep(select_items(source, {"source": ["dea_cropmask_2019"]}))], batch_size=64)
    assert plan.items == 17_681 and (plan.shapes(plan.batch(0)) == (0, 2, 1, 1)).all()
