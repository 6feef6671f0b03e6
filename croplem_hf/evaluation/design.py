"""How labels were chosen: only those drawn with known probabilities, or at least not picked, may judge a head.

A sheet of labels may have the columns `sample` ("validation", "picked" or anything else), `stratum` and
`inclusion_probability`, which `croplem suggest` writes.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..labels import as_label, read_columns

PICKED = "picked"
COLUMNS = ("sample", "stratum", "inclusion_probability")


@dataclasses.dataclass(frozen=True)
class Design:
    """Of N labels: tests bool (N,), which may judge; weights float64 (N,), one over the inclusion probability, all 1
    where none is known; strata text (N,), "" where none is known; known: whether the file says anything of it.
    """

    tests: np.ndarray
    weights: np.ndarray
    strata: np.ndarray
    known: bool

    @property
    def weighted(self) -> bool:
        """Whether the weights differ from one another."""
        return len(np.unique(self.weights[self.tests])) > 1

    def take(self, rows: np.ndarray) -> "Design":
        """The given rows."""
        return Design(self.tests[rows], self.weights[rows], self.strata[rows], self.known)


def read_design(path: str | os.PathLike, ids: Sequence[str]) -> Design:
    """The design of labels that stand in a file.

    Args:
        path: CSV or Parquet with a column `id`.
        ids: N ids, in whose order the answer is; what the file does not name may judge, with weight 1.

    Raises:
        DataError: inclusion probabilities that are no numbers above 0 and up to 1, strata without any
            (`refuse_unweighted`), or no label that may judge.
    """
    cells = read_columns(path, ("id", "label"), COLUMNS)
    rows = [row for row, label in enumerate(cells["label"]) if as_label(label) is not None]
    names = [str(cells["id"][row]).strip() for row in rows]
    found = design([cells.get(column, [None] * len(cells["id"])) for column in COLUMNS], rows, str(path))
    refuse_unweighted(found, str(path))
    place = {name: number for number, name in enumerate(names)}
    at = np.array([place.get(name, -1) for name in ids], int)
    tests, weights = np.append(found.tests, True)[at], np.append(found.weights, 1.0)[at]
    return Design(tests, weights, np.append(found.strata, "")[at], found.known)


def design(columns: Sequence[Sequence], rows: Sequence[int], where: str) -> Design:
    """`Design` of the given rows of the columns `sample`, `stratum` and `inclusion_probability`.

    Where any row has an inclusion probability, only rows that have one may judge; picked rows never may.

    Raises:
        DataError: as `read_design`, but for strata; `where` names the file.
    """
    sample, stratum = ([as_label(column[row]) or "" for row in rows] for column in columns[:2])
    probability = np.array([_probability(columns[2][row], where) for row in rows])
    tests = np.array([text != PICKED for text in sample], bool)
    drawn = ~np.isnan(probability)
    if drawn.any():
        tests &= drawn
    if not tests.any():
        raise DataError(
            f"{where}: all {len(rows)} labels were picked by a strategy (sample={PICKED}); they are no sample of the "
            "region and would give false figures. Label what `croplem suggest --validation` draws, or use other labels"
        )
    weights = np.where(drawn & tests, 1 / np.where(drawn, probability, 1), 1.0)
    return Design(tests, weights, np.array(stratum, object).astype(str), bool(drawn.any()) or any(sample))


def refuse_unweighted(found: Design, where: str) -> None:
    """Refuse labels of several strata where none has an inclusion probability: all would count alike.

    Raises:
        DataError: there are such; `where` names the file.
    """
    strata = np.unique(found.strata[found.tests & (found.strata != "")])
    if len(strata) > 1 and (found.weights == 1).all():
        raise DataError(
            f"{where}: has strata ({', '.join(strata[:3])}{', ...' if len(strata) > 3 else ''}) and no "
            "inclusion_probability, so labels of a small stratum would count as much as those of a large one; add the "
            "column (places drawn in the stratum by places in it), or take the column stratum out if all places were "
            "equally probable"
        )


def _probability(value: object, where: str) -> float:
    text = as_label(value)
    if text is None:
        return np.nan
    try:
        number = float(text)
    except ValueError:
        number = np.nan
    if not 0 < number <= 1:
        raise DataError(f"{where}: inclusion probabilities lie above 0 and up to 1, found {text!r}")
    return number


__all__ = ["PICKED", "Design", "design", "read_design", "refuse_unweighted"]
