"""Retrieval, moved thresholds, paired gaps, baselines from imagery, sets and far rows of a report."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from croplem_hf import Embedder, generate_sen12ms, open_source, packaged_path
from croplem_hf.errors import DataError
from croplem_hf.evaluation import evaluate
from croplem_hf.evaluation.baselines import band_statistics, imagery_baselines
from croplem_hf.evaluation.fairness import paired_gap
from croplem_hf.evaluation.retrieval import retrieval
from croplem_hf.evaluation.transfer import best_threshold
from croplem_hf.table import EmbeddingsTable


def test_neighbours_are_of_other_blocks_and_counted_by_region():
    rng = np.random.default_rng(0)
    y, regions, blocks = rng.integers(2, size=400), np.repeat(["a", "b"], 200), np.arange(400) // 4
    signal = np.eye(8)[y] * 5
    (a, b) = retrieval(signal + rng.normal(size=(400, 8)), y, regions, blocks)
    assert a["within"] > 0.95 and b["across"] > 0.95 and a["within_chance"] == pytest.approx(0.5, abs=0.05)
    # A signal that all rows of a block share, and no others, finds nothing.
    own = rng.normal(size=(100, 8))[blocks] + 0.01 * rng.normal(size=(400, 8))
    same = (np.arange(400) // 4) % 2
    (a, _) = retrieval(own, same, regions, blocks)
    assert a["within"] == pytest.approx(a["within_chance"], abs=0.12)


def test_regions_too_small_for_ten_neighbours_are_told_by_nan():
    X, y = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 2
    small, large = sorted(retrieval(X, y, ["s"] * 8 + ["t"] * 22), key=lambda row: row["n"])
    assert np.isnan(small["within"]) and not np.isnan(small["across"]) and np.isnan(large["across"])


@given(st.integers(0, 10**6))
def test_the_moved_threshold_is_the_best_there_is(seed):
    rng = np.random.default_rng(seed)
    outcome, p = np.arange(40) % 2 == 0, np.round(rng.random(40), 1)
    at = best_threshold(outcome, p)

    def balanced(threshold):
        return (p[outcome] >= threshold).mean() + (p[~outcome] < threshold).mean()

    assert balanced(at) >= max(balanced(t) for t in np.linspace(0.05, 0.95, 10)) - 1e-9


def test_paired_gaps_are_narrower_than_the_scores_they_compare():
    rng = np.random.default_rng(0)
    y, regions, blocks = rng.integers(2, size=600), np.repeat(["a", "b"], 300), np.arange(600) // 10
    base = rng.normal(size=600) + y
    proba = [np.stack([-s, s], axis=1) for s in (base, base + 0.3 * rng.normal(size=600))]
    found = paired_gap(y, *proba, regions, blocks)
    assert found["low"] < found["value"] < found["high"] and found["high"] - found["low"] < 0.06
    assert paired_gap(y, proba[0], proba[0], regions, blocks) == {"value": 0, "low": 0, "high": 0}


def test_band_statistics_leave_out_what_is_not_valid():
    s2 = np.full((2, 13, 1, 1), 1_000, np.uint16)
    s2[:, 7] = 3_000
    s2[1] = 9_999
    sample = {"s1": None, "s2": s2, "s2_valid": np.array([True, False]).reshape(2, 1, 1),
              "s2_bands": np.ones((2, 13), bool)}  # fmt: skip
    found = band_statistics(sample)
    assert found.shape == (64,)
    # Statistic by statistic: VV, VH, 13 bands, NDVI.
    assert found[2] == pytest.approx(0.1) and found[15] == pytest.approx(0.5, abs=1e-4) and found[0] == 0


def test_an_evaluation_with_baselines_from_the_imagery(tmp_path):
    source = open_source(generate_sen12ms(tmp_path / "images", scenes=2, patches_per_scene=20, size=32, defects=False))
    embedder = Embedder.from_pretrained(packaged_path())
    vectors = embedder.encode(source[k] for k in range(len(source)))
    region = [name.rsplit("_", 1)[0] for name in source.ids]
    y = np.array(["crop", "other"], object)[np.arange(len(source)) % 2]
    table = EmbeddingsTable(list(source.ids), vectors, pa.table({"region": region}), {})
    figures = evaluate(
        table, y, tmp_path / "out", seeds=0, n_bootstrap=20, centre_by="region",
        baselines=lambda ids: imagery_baselines(source, ids, embedder, {}),
    )  # fmt: skip
    assert list(figures["transfer"]["others"]) == ["band statistics", "random weights"]
    assert set(figures["transfer"]["others"]["band statistics"]["gap"]) == {"value", "low", "high"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Beside band statistics" in page and "random weights, mean" in page
    with pytest.raises(DataError, match="1 of 1 labelled ids are not in the imagery, such as 'x'"):
        imagery_baselines(source, ["x"], embedder, {})
