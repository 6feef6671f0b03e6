"""A head for the labelled rows of an embeddings table."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..labels import column_values, spatial_blocks
from ..table import EmbeddingsTable
from .base import Head
from .files import HEADS
from .novelty import LabelledNeighbourhood
from .regions import RegionCentre

PATCH = ("height", "width", "gsd", "sensors", "s2_level")
COUNTS = ("s1_date_count", "s2_date_count")


def fit_head(
    table: EmbeddingsTable,
    y: Sequence[str | None],
    *,
    kind: str = "logistic",
    block: str = "block",
    centre_by: str | None = None,
    **parameters,
) -> Head:
    """A head for the labelled rows of a table, which it remembers.

    Args:
        table: N embeddings.
        y: N labels, None where a row has none (`match_labels`).
        kind: one of `HEADS`: logistic, knn, mlp or boosting.
        block: metadata column of spatial blocks for the calibration; not used where the table has no such column.
        centre_by: metadata column of regions; each is centred on all of its rows, labelled or not (`RegionCentre`), and
            predictions then need the region.
        parameters: of the head.

    Raises:
        DataError: one class only, no label at all, an unknown kind or column, or a row without a region.
    """
    if kind not in HEADS:
        raise DataError(f"a head is one of {', '.join(HEADS)}, found {kind!r}")
    y = np.asarray(y, object)
    rows = np.flatnonzero([label is not None for label in y])
    if len(rows) == 0:
        raise DataError("no row of the table has a label; a head needs labels of two classes at least")
    groups = spatial_blocks(table, block)
    groups = None if groups is None else groups[rows]
    X, centre = table.vectors[rows], None
    if centre_by is not None:
        regions = region_names(table, centre_by)
        centre = RegionCentre().fit(table.vectors, regions)
        X = centre.transform(X, regions[rows])
    head = HEADS[kind](**parameters).fit(X, np.array(y[rows].tolist()), groups)
    head.neighbourhood_ = LabelledNeighbourhood().fit((X - head.mean_) / head.scale_, groups, head.random_state)
    head.regions_, head.info_, head.content_hash_ = centre, table.info, table.content_hash
    for column in PATCH:
        if column in table.metadata.column_names:
            values = set(table.metadata[column].take(pa.array(rows)).to_pylist())
            head.patch_[column] = values.pop() if len(values) == 1 else None
    for column in COUNTS:
        if column in table.metadata.column_names:
            counts = [n for n in table.metadata[column].take(pa.array(rows)).to_pylist() if n is not None]
            head.patch_[column] = [min(counts), max(counts)] if counts else None
    return head


def conformalise(head: Head, table: EmbeddingsTable, y: Sequence[str | None], region: str | None = None) -> Head:
    """`Head.conformalise` with the labelled rows of a table.

    Args:
        head: of `fit_head`.
        table: N embeddings, made as those of the head.
        y: N labels that were not in training, None where a row has none.
        region: metadata column of regions, each of which is calibrated by its own labels; None for all together.

    Raises:
        DataError: no label, one of a class that the head does not know, or no such column.
    """
    head.check_settings(table.info)
    rows = np.flatnonzero([label is not None for label in y])
    if len(rows) == 0:
        raise DataError("no row of the table has a label for sets of classes")
    labels = np.array(np.asarray(y, object)[rows].tolist())
    return head.conformalise(table.vectors[rows], labels, None if region is None else region_names(table, region)[rows])


def region_names(table: EmbeddingsTable, column: str) -> np.ndarray:
    """Region of every row as text (N,).

    Raises:
        DataError: no such column, or a row without a region.
    """
    names = column_values(table, column)
    if None in names:
        raise DataError(f"{table.ids[names.index(None)]!r} has no {column!r}, by which regions are centred")
    return np.array(names)


__all__ = ["conformalise", "fit_head", "region_names"]
