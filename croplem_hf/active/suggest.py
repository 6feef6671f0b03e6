"""The next rows of an embeddings table to label, with the reasons, as a list for the field."""

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, DataError
from ..labels import column_values, encode_labels
from ..table import EmbeddingsTable, different_settings
from .bandit import CoverageBandit
from .baselines import (
    BadgeSampling,
    ClusterMarginSampling,
    DropQuerySampling,
    EntropySampling,
    KCenterSampling,
    MarginSampling,
    TypiClustSampling,
    UncertaintyHerdingSampling,
)  # fmt: skip
from .explain import in_words
from .sheets import write_sheets
from .strategies import MISSING, RandomSampling, StratifiedRandomSampling
from .trips import Trips

STRATEGIES = {
    "bandit": CoverageBandit,
    "stratified": StratifiedRandomSampling,
    "random": RandomSampling,
    "margin": MarginSampling,
    "entropy": EntropySampling,
    "k-center": KCenterSampling,
    "typiclust": TypiClustSampling,
    "badge": BadgeSampling,
    "cluster-margin": ClusterMarginSampling,
    "uncertainty-herding": UncertaintyHerdingSampling,
    "dropquery": DropQuerySampling,
}
PLACE = ("region", "lon", "lat")
logger = logging.getLogger(__name__)


def suggest(
    table: EmbeddingsTable,
    y: Sequence[str | None],
    n: int,
    *,
    strategy: str = "bandit",
    region: str = "region",
    seed: int = 0,
    exclude: Collection[str] = (),
    explore: float | None = None,
    cost: str | None = None,
    per_km: float = 0.0,
    budget: float | None = None,
    target: EmbeddingsTable | None = None,
    state: str | os.PathLike | None = None,
    forget: Collection[str] = (),
    out: str | os.PathLike | None = None,
) -> list[dict]:
    """Choose the next n rows of a table to label.

    Args:
        table: N embeddings.
        y: N labels so far, None where a row has none; all None at the start of a campaign.
        n: how many; fewer where fewer rows are left, or `budget` is spent.
        strategy: one of `STRATEGIES`.
        region: metadata column of regions; one region where the table has no such column.
        seed: of all that is random.
        exclude: ids that are not to be chosen, such as places that cannot be visited; they still count as part of the
            area to be covered. Items kept for validation belong here, and their labels not into `y`.
        explore: share of the batch that the bandit leaves to chance, 0 to 1; as before with a state, else 0, if None.
        cost, per_km, budget: metadata column of prices; price of a kilometre between the places of the batch, from the
            columns lon and lat; most that the batch may cost. See `Trips`; for the bandit alone.
        target: unlabelled embeddings of the place that will be predicted, where none of it can be labelled: the bandit
            covers that instead of the table. A state refuses another one in later rounds.
        state: file of the bandit's state. Read where it exists, so that the bandit learns from the labels that came and
            does not offer again what waits for its label; written after the choice.
        forget: ids of which no label will come, such as those of a lost sheet: they no longer wait and may be chosen.
        out: CSV to write, and a GeoJSON beside it where all have lon and lat (`write_sheets`), before the state: what
            was never shown is not waited for.

    Returns:
        One dict a row, the first choice first: `rank`, `id`, `sample` ("picked"), the table's `region`, `lon` and
        `lat`; from the bandit also `gain`, `coverage`, `uncertainty` and `region_weighting` (gain is their sum, see
        `Explanation`), `expected_error`, `reason` in words, and `cost` where prices were given.

    Raises:
        DataError: nothing left to choose, an unknown strategy, a state, prices or a share of chance with another
            strategy than the bandit, or prices or a share that are none.
        CheckpointError: the state belongs to another pool, or is damaged, or the target was embedded otherwise.
    """
    if strategy not in STRATEGIES:
        raise DataError(f"strategy must be one of {', '.join(STRATEGIES)}, found {strategy!r}")
    priced = cost is not None or per_km or budget is not None
    of_bandit = {
        "has a state": state, "counts prices": priced or None, "has a share of chance": explore, "has a target": target,
    }  # fmt: skip
    given = [words for words, value in of_bandit.items() if value is not None]
    if strategy != "bandit" and given:
        raise DataError(f"only the bandit {given[0]}; leave that out with strategy {strategy!r}")
    known = table.metadata.column_names
    regions = None
    if region in known:
        regions = ["unknown" if name is None else name for name in column_values(table, region)]
    trips = _trips(table, cost, per_km, budget) if priced else None
    if target is not None:
        different = different_settings(table.info, target.info)
        if different:
            raise CheckpointError(f"target and table differ in {', '.join(different)}; embed both alike")
    goal = None if target is None else target.vectors
    extra = {"trips": trips, "target": goal} if strategy == "bandit" else {}
    if state is not None and Path(state).exists():
        chooser = CoverageBandit.load(state, regions, **extra)
        if chooser.seed != seed:
            raise CheckpointError(f"{state}: was begun with seed {chooser.seed}, not {seed}; go on with that seed")
    else:
        chooser = STRATEGIES[strategy](regions=regions, seed=seed, **extra)
    if explore is not None:
        if not 0 <= explore <= 1:
            raise DataError(f"explore is a share from 0 to 1, found {explore}")
        chooser.explore = explore
    # A class keeps its code when others come later: the state holds codes.
    names, waiting = [], np.empty(0, np.int64)
    if strategy == "bandit":
        chooser.forget(np.array([row for row in _rows_of(table, forget) if y[row] is None], np.int64))
        names, waiting = chooser.class_names_, chooser.pending_
    names = [*names, *sorted({label for label in y if label is not None}.difference(names))]
    codes, _ = encode_labels(y, names)
    may = codes == MISSING
    late = int(may[waiting].sum())
    if late:
        logger.warning(
            "%d items of earlier sheets have no label yet and are not offered again; if a sheet was lost, release its "
            "items by --forget SHEET.csv (forget=ids)", late,
        )  # fmt: skip
    may[waiting] = False
    may[_rows_of(table, exclude)] = False
    candidates = np.flatnonzero(may)
    if not len(candidates):
        raise DataError(f"nothing left to choose: all {len(table)} rows have a label, wait for one or are excluded")
    rows = chooser.query(table.vectors, codes, candidates, batch_size=min(n, len(candidates)))
    if not len(rows):
        raise DataError(f"a budget of {budget:g} pays for none of the {len(candidates)} rows that are left")
    picks = _describe(table, rows, region, "picked")
    if strategy == "bandit":
        for pick, why in zip(picks, chooser.explanations_, strict=True):
            pick |= {"gain": why.gain, "coverage": why.coverage, "uncertainty": why.uncertainty}
            pick |= {"region_weighting": why.region, "expected_error": why.error}
            pick |= {"cost": why.cost} if priced else {}
            pick |= {"reason": in_words(why, "pool" if target is None else "target")}
    if out is not None:
        write_sheets(picks, out)
    if state is not None:
        chooser.class_names_ = names
        chooser.save(state)
    return picks


def draw_validation(
    table: EmbeddingsTable,
    y: Sequence[str | None],
    n: int,
    *,
    strata: str = "region",
    region: str = "region",
    seed: int = 0,
    exclude: Collection[str] = (),
    out: str | os.PathLike | None = None,
) -> list[dict]:
    """Draw a stratified random sample to test a head on: what was chosen for learning cannot say how good it is.

    Every row that has no label and is not excluded can be drawn, so estimates hold for those rows: draw before labels
    for learning are chosen, or accept that the labelled rows are outside. Strata get two rows each as far as they last,
    and of the rest in proportion to their size (Cochran 1977, ch. 5); within a stratum all rows are equally probable.

    Args:
        table, y, region, seed, out: as in `suggest`.
        n: how many.
        strata: "region", or "class": the class that a head fitted to `y` predicts.
        exclude: ids that are not to be drawn, such as those that were picked and have no label yet.

    Returns:
        One dict a row, in random order: `rank`, `id`, `sample` ("validation"), `stratum`, `inclusion_probability`
        (drawn over all rows of the stratum that could be drawn), and the table's `region`, `lon` and `lat`.

    Raises:
        DataError: n exceeds what is left or is less than the strata, or there are no labels to predict classes with.
    """
    from ..heads import LogisticHead

    codes, names = encode_labels(y)
    may = codes == MISSING
    may[_rows_of(table, exclude)] = False
    rows = np.flatnonzero(may)
    if n > len(rows):
        raise DataError(f"asked for {n} rows to validate with, but only {len(rows)} have no label and are not excluded")
    if strata == "region":
        known = region in table.metadata.column_names
        values = column_values(table, region) if known else ["all"] * len(table)
        stratum = np.array(["unknown" if value is None else value for value in values])[rows]
    elif strata == "class":
        if len(names) < 2:
            raise DataError("strata by class need labels of two classes to predict them with; take strata by region")
        learnt = codes != MISSING
        head = LogisticHead().fit(table.vectors[learnt], codes[learnt])
        stratum = np.array(names)[head.predict(table.vectors[rows])]
    else:
        raise DataError(f"strata are 'region' or 'class', found {strata!r}")
    kinds, number, size = np.unique(stratum, return_inverse=True, return_counts=True)
    if n < len(kinds):
        raise DataError(f"{n} rows are too few for {len(kinds)} strata; ask for {2 * len(kinds)} at least")
    quota = allocate(size, n)
    rng = np.random.default_rng([seed, len(rows), 2])
    drawn = [rng.choice(np.flatnonzero(number == k), count, replace=False) for k, count in enumerate(quota)]
    places = rng.permutation(np.concatenate(drawn))
    picks = _describe(table, rows[places], region, "validation")
    for pick, place in zip(picks, places, strict=True):
        kind = number[place]
        pick |= {"stratum": str(kinds[kind]), "inclusion_probability": float(quota[kind] / size[kind])}
    if out is not None:
        write_sheets(picks, out)
    return picks


def allocate(size: np.ndarray, count: int) -> np.ndarray:
    """How many of `count` each stratum of `size` (K,) gets: two each as far as they last, the rest by size."""
    base = np.minimum(size, 2 if count >= np.minimum(size, 2).sum() else 1)
    room, left = size - base, count - base.sum()
    exact = left * room / max(room.sum(), 1)
    quota = np.floor(exact).astype(int)
    # Largest remainders; a quota never exceeds its room, as left <= room.sum().
    for kind in np.argsort(quota - exact, kind="stable")[: left - quota.sum()]:
        quota[kind] += 1
    return base + quota


def _describe(table: EmbeddingsTable, rows: np.ndarray, region: str, sample: str) -> list[dict]:
    known = table.metadata.column_names
    place = {name: table.metadata[name] for name in dict.fromkeys((region, *PLACE)) if name in known}
    return [
        {"rank": rank, "id": table.ids[row], "sample": sample} | {k: column[row].as_py() for k, column in place.items()}
        for rank, row in enumerate(rows.tolist(), 1)
    ]


def _rows_of(table: EmbeddingsTable, ids: Collection[str]) -> np.ndarray:
    """Row numbers of ids, those that the table lacks left out."""
    wanted = set(ids)
    return np.array([row for row, name in enumerate(table.ids) if name in wanted], np.int64)


def _trips(table: EmbeddingsTable, cost: str | None, per_km: float, budget: float | None) -> Trips:
    def numbers(column: str) -> np.ndarray:
        if column not in table.metadata.column_names:
            raise DataError(f"the table has no column {column!r}; found {', '.join(table.metadata.column_names)}")
        try:
            return np.array([np.nan if v is None else float(v) for v in table.metadata[column].to_pylist()])
        except (TypeError, ValueError) as error:
            raise DataError(f"column {column!r} must hold numbers ({error})") from error

    lonlat = np.stack([numbers("lon"), numbers("lat")], axis=1) if per_km else None
    return Trips(None if cost is None else numbers(cost), lonlat, per_km, budget)


__all__ = ["STRATEGIES", "allocate", "draw_validation", "suggest"]
