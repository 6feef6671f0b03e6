"""The next rows of an embeddings table to label, with the reasons, as a list for the field."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError, DataError
from ..labels import column_values, encode_labels
from ..table import EmbeddingsTable
from .bandit import CoverageBandit
from .baselines import MarginSampling
from .strategies import RandomSampling, StratifiedRandomSampling

STRATEGIES = {
    "bandit": CoverageBandit,
    "stratified": StratifiedRandomSampling,
    "random": RandomSampling,
    "margin": MarginSampling,
}
PLACE = ("region", "lon", "lat")


def suggest(
    table: EmbeddingsTable,
    y: Sequence[str | None],
    n: int,
    *,
    strategy: str = "bandit",
    region: str = "region",
    seed: int = 0,
    state: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
) -> list[dict]:
    """Choose the next n rows of a table to label.

    Args:
        table: N embeddings.
        y: N labels so far, None where a row has none; all None at the start of a campaign.
        n: how many; fewer where fewer rows are left.
        strategy: one of `STRATEGIES`.
        region: metadata column of regions; one region where the table has no such column.
        seed: of all that is random.
        state: file of the bandit's state. Read where it exists, so that the bandit learns from the labels that came and
            does not offer again what waits for its label; written after the choice.
        out: CSV to write (`write_suggestions`), before the state: what was never shown is not waited for.

    Returns:
        One dict a row, the first choice first: `rank`, `id`, the table's `region`, `lon` and `lat`; from the bandit
        also `gain`, `coverage`, `uncertainty` and `region_weighting` (gain is their sum, see `Explanation`),
        `expected_error` and `reason` in words.

    Raises:
        DataError: nothing left to choose, an unknown strategy, or a state with another strategy than the bandit.
        CheckpointError: the state belongs to another pool, or is damaged.
    """
    if strategy not in STRATEGIES:
        raise DataError(f"strategy must be one of {', '.join(STRATEGIES)}, found {strategy!r}")
    if state is not None and strategy != "bandit":
        raise DataError(f"only the bandit has a state; leave it out with strategy {strategy!r}")
    known = table.metadata.column_names
    regions = None
    if region in known:
        regions = ["unknown" if name is None else name for name in column_values(table, region)]
    if state is not None and Path(state).exists():
        chooser = CoverageBandit.load(state, regions)
        if chooser.seed != seed:
            raise CheckpointError(f"{state}: was begun with seed {chooser.seed}, not {seed}; go on with that seed")
    else:
        chooser = STRATEGIES[strategy](regions=regions, seed=seed)
    # A class keeps its code when others come later: the state holds codes.
    names, waiting = [], set()
    if strategy == "bandit":
        names, waiting = chooser.class_names_, set(chooser.pending_.tolist())
    names = [*names, *sorted({label for label in y if label is not None}.difference(names))]
    codes, _ = encode_labels(y, names)
    left = sum(label is None for label in y) - sum(y[row] is None for row in waiting)
    if left == 0:
        raise DataError(f"nothing left to choose: all {len(table)} rows have a label or wait for one")
    rows = chooser.query(table.vectors, codes, batch_size=min(n, left))
    place = {name: table.metadata[name] for name in dict.fromkeys((region, *PLACE)) if name in known}
    picks = []
    for rank, row in enumerate(rows.tolist(), 1):
        pick = {"rank": rank, "id": table.ids[row]} | {name: column[row].as_py() for name, column in place.items()}
        if strategy == "bandit":
            why = chooser.explanations_[rank - 1]
            pick |= {"gain": why.gain, "coverage": why.coverage, "uncertainty": why.uncertainty}
            pick |= {"region_weighting": why.region, "expected_error": why.error, "reason": _reason(why)}
        picks.append(pick)
    if out is not None:
        write_suggestions(picks, out)
    if state is not None:
        chooser.class_names_ = names
        chooser.save(state)
    return picks


def write_suggestions(picks: Sequence[dict], path: str | os.PathLike) -> Path:
    """Write what `suggest` gives as CSV with an empty column `label` to fill in, whole or not at all.

    Raises:
        DataError: another file than a sheet without labels lies there.
    """
    path = Path(path)
    if path.exists() and not _is_empty_sheet(path):
        raise DataError(f"{path}: exists and is no sheet without labels; give another name, so that no label is lost")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    first = ["rank", "id", "label"]
    columns = first + [name for name in picks[0] if name not in first]
    with open(partial, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(columns)
        writer.writerows([_cell(pick.get(name)) for name in columns] for pick in picks)
    os.replace(partial, path)
    return path


def _is_empty_sheet(path: Path) -> bool:
    """Whether a file is one that `write_suggestions` wrote and nobody filled in."""
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.reader(handle))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    ours = bool(rows) and rows[0][:3] == ["rank", "id", "label"]
    return ours and not any("".join(row[2:3]).strip() for row in rows[1:])


def _reason(why) -> str:
    """In words: what is covered, and what else made up at least a twentieth of the gain."""
    words = [f"covers {100 * why.new_coverage:.2g} % of the pool anew"]
    if why.uncertainty > 0.05 * why.gain:
        words.append(f"more errors are expected there than elsewhere ({why.error:.2f})")
    if why.region > 0.05 * why.gain:
        words.append(f"{why.region_name} is small and counts for more")
    return "; ".join(words)


def _cell(value) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


__all__ = ["STRATEGIES", "suggest", "write_suggestions"]
