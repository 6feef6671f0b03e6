"""Areas from samples: a published example, an exhaustive sample, and whether intervals hold."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from croplem_hf.errors import DataError
from croplem_hf.evaluation import area_estimates, area_from_counts

COUNTS = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
SIZES = [200_000, 150_000, 3_200_000, 6_450_000]


def test_the_example_of_olofsson_and_others_comes_out():
    found = area_from_counts(COUNTS, SIZES, ["deforestation", "forest gain", "stable forest", "stable other"])
    rows = {row["class"]: row for row in found["classes"]}
    lost = rows["deforestation"]["area"]
    # Their text: 21,158 +- 6,158 ha of pixels of 0.09 ha.
    assert 10_000_000 * lost["value"] == pytest.approx(235_086, abs=1)
    assert 1.96 * 900_000 * lost["se"] == pytest.approx(6_158, abs=1)
    assert found["overall_accuracy"]["value"] == pytest.approx(0.95, abs=0.005)
    users = [row["users_accuracy"]["value"] for row in found["classes"]]
    producers = [row["producers_accuracy"]["value"] for row in found["classes"]]
    assert users == pytest.approx([0.88, 0.73, 0.93, 0.96], abs=0.005)
    assert producers == pytest.approx([0.75, 0.85, 0.93, 0.96], abs=0.005)
    # Equation 7 of theirs, for the first class.
    n, size, p, u = np.array(COUNTS).sum(axis=1), np.array(SIZES, float), producers[0], users[0]
    share = np.array(COUNTS)[:, 0] / n
    parts = size**2 * share * (1 - share) / (n - 1)
    variance = ((1 - p) ** 2 * size[0] ** 2 * u * (1 - u) / (n[0] - 1) + p**2 * parts[1:].sum()) / 235_086**2
    assert rows["deforestation"]["producers_accuracy"]["se"] == pytest.approx(np.sqrt(variance), rel=1e-3)


def test_the_example_of_stehman_comes_out_where_strata_are_not_classes():
    true = list("AAAAACBABCABBBBBAABBCCCCCDDBBADDDDDDDCCB")
    mapped = list("AAAAAAABBBABBBBBBBBBBBCCCCCCBBDDDDDDDDDD")
    sizes = {"1": 40_000, "2": 30_000, "3": 20_000, "4": 10_000}
    rows = {row["class"]: row for row in area_estimates(mapped, true, np.repeat(list("1234"), 10), sizes)["classes"]}
    for name, users, producers in (("A", (0.7419, 0.1646), (0.6571, 0.1477)), ("B", (0.5745, 0.1248), (0.7941, 0.1166)),
                                   ("C", (0.5, 0.2152), (0.3, 0.1504))):  # fmt: skip
        for key, expected in (("users_accuracy", users), ("producers_accuracy", producers)):
            assert (rows[name][key]["value"], rows[name][key]["se"]) == pytest.approx(expected, abs=1e-4)
    assert [rows[name]["area"]["value"] for name in "ABCD"] == pytest.approx([0.35, 0.34, 0.2, 0.11])


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_a_sample_of_everything_has_no_error(seed, count):
    rng = np.random.default_rng(seed)
    strata = np.concatenate([np.repeat(np.arange(count), 2), rng.integers(count, size=50)]).astype(str)
    mapped, true = rng.choice(["a", "b", "c"], size=(2, len(strata)))
    sizes = {name: int(np.sum(strata == name)) for name in np.unique(strata)}
    found = area_estimates(mapped, true, strata, sizes)
    assert found["overall_accuracy"]["value"] == pytest.approx(np.mean(mapped == true))
    for row in found["classes"]:
        assert row["area"]["value"] == pytest.approx(np.mean(true == row["class"]))
        assert row["area"]["se"] == pytest.approx(0, abs=1e-12)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    strata = np.repeat(["small", "large"], [2_000, 18_000])
    true = np.where(rng.random(20_000) < np.where(strata == "small", 0.6, 0.1), "crop", "other")
    mapped = np.where(rng.random(20_000) < 0.85, true, "crop")
    members = [np.flatnonzero(strata == name) for name in ("small", "large")]
    hits = 0
    for _ in range(300):
        rows = np.concatenate([rng.choice(own, 80, replace=False) for own in members])
        crop = area_estimates(mapped[rows], true[rows], strata[rows], {"small": 2_000, "large": 18_000})["classes"][0]
        hits += crop["area"]["low"] <= np.mean(true == "crop") <= crop["area"]["high"]
    assert 0.9 <= hits / 300 <= 0.99


def test_refuses_what_gives_no_error():
    with pytest.raises(DataError, match="stratum 'b' of 10 pixels or items has 1 labels"):
        area_estimates(["x"] * 3, ["x"] * 3, ["a", "a", "b"], {"a": 10, "b": 10})
    with pytest.raises(DataError, match="stratum 'b' has no size; known: a"):
        area_estimates(["x"] * 3, ["x"] * 3, ["a", "a", "b"], {"a": 10})
    with pytest.raises(DataError, match=r"counts of shape \(2, 3\) do not fit"):
        area_from_counts(np.ones((2, 3)), [1, 2])
