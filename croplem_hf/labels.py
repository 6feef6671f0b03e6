"""Label files, their match with an embeddings table, and the choice of rows by metadata.

A label file is CSV or Parquet with a column `id` and a column of labels; other columns are ignored. Labels are text,
and whole numbers are written alike (`1.0` is `1`). Empty, NaN and -1 mean "not labelled": a sheet may be half filled.

Refused with a `DataError`: a file that is missing, unreadable or without rows, a missing column, a row without an id,
an id with two different labels, labels of which none belongs to the table, a class that a given list of classes lacks.
Said by a warning in the log: an id that stands twice with one label, ids that the table lacks, a file without a label,
labels that differ only by case (they stay classes of their own) or by blanks around them (which are taken off).
A header that stands again among the rows, as `cat` of several sheets leaves it, is no row.
One class alone is nothing to learn from: `LogisticHead.fit` and `evaluate` refuse it, choosing what to label does not.
"""

import collections
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .errors import DataError
from .table import EmbeddingsTable

MISSING = -1
"""Code of a row without a label."""

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_log = logging.getLogger(__name__)


def read_labels(path: str | os.PathLike, column: str = "label") -> dict[str, str]:
    """Read a label file -> label by id, without the rows that are not labelled.

    Args:
        path: Parquet where the name ends in .parquet, else CSV with a header, in UTF-8.
        column: the column of labels.

    Raises:
        DataError: see the module.
    """
    cells = read_columns(path, ("id", column))
    path = Path(path)
    labels: dict[str, str] = {}
    twice = []
    _warn_of_blanks(path, cells[column])
    for row, (name, label) in enumerate(zip(cells["id"], cells[column], strict=True), 1):
        name, label = ("" if name is None else str(name).strip()), as_label(label)
        if not name:
            raise DataError(f"{path}: data row {row} has no id")
        if label is None:
            continue
        if name in labels:
            if labels[name] != label:
                raise DataError(f"{path}: {name!r} is labelled {labels[name]!r} and {label!r}; keep one of them")
            twice.append(name)
        labels[name] = label
    if twice:
        _log.warning("%s: %d repeated labels, the first for %r; each counts once", path, len(twice), twice[0])
    if not labels:
        _log.warning("%s: column %r holds no label", path, column)
    return labels


def read_label_files(paths: Sequence[str | os.PathLike]) -> dict[str, str]:
    """`read_labels` of several files together, such as the sheets of several rounds.

    Raises:
        DataError: as `read_labels`, or two files that label an item differently.
    """
    labels: dict[str, str] = {}
    for path in paths:
        found = read_labels(path)
        for name, label in found.items():
            if labels.get(name, label) != label:
                raise DataError(f"{path}: {name!r} is {label!r} here and {labels[name]!r} in a file before")
        labels |= found
    return labels


def read_columns(
    path: str | os.PathLike, columns: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, list]:
    """Columns of a label file, texts where it is CSV.

    Args:
        path: Parquet where the name ends in .parquet, else CSV with a header, in UTF-8.
        columns: those that it must have.
        optional: those that are left out of the answer where it lacks them.

    Raises:
        DataError: a file that is missing, unreadable or without rows, or a column that is missing or there twice.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such label file; it is CSV or Parquet with the columns {' and '.join(columns)}")
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path, partitioning=None)
        else:
            as_text = {name: pa.string() for name in (*columns, *optional)}
            table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=as_text))
        names = table.column_names
        cells = {
            name: table[name].to_pylist() if names.count(name) == 1 else []
            for name in (*columns, *(name for name in optional if name in names))
        }
    except pa.ArrowInvalid as error:
        remedy = "; are these several sheets put together? Give each a --labels of its own" * _has_header(path, columns)
        raise DataError(f"{path}: not a readable label file ({str(error).splitlines()[0]}){remedy}") from error
    # The last two are raised by texts that are not UTF-8 and by dates beyond the year 9999.
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise DataError(f"{path}: not a readable label file ({str(error).splitlines()[0]})") from error
    for name in cells:
        if names.count(name) != 1:
            found = ", ".join(map(repr, names))
            raise DataError(f"{path}: needs one column {name!r}, found {found} (columns are separated by commas)")
    if path.suffix.lower() != ".parquet":
        _drop_headers(path, cells, set(names))
    if not len(table) or not len(next(iter(cells.values()))):
        raise DataError(f"{path}: no rows below the header")
    return cells


def _has_header(path: Path, columns: Sequence[str]) -> bool:
    """Whether a CSV that cannot be read begins as one of labels does."""
    with open(path, "rb") as handle:
        first = handle.readline(10_000)
    return all(name.encode() in first for name in columns)


def _drop_headers(path: Path, cells: dict[str, list], names: set[str]) -> None:
    """Take out rows that repeat the header.

    Raises:
        DataError: a header with its columns in another order.
    """
    rows, header = list(zip(*cells.values(), strict=True)), tuple(cells)
    again = {row for row, values in enumerate(rows) if values == header}
    for row, values in enumerate(rows):
        if row not in again and len(values) > 1 and all(value in names for value in values):
            raise DataError(
                f"{path}: data row {row + 1} is a header with other columns; give each of the sheets that were put "
                "together a --labels of its own"
            )
    if again:
        _log.info("%s: %d repeated headers left out", path, len(again))
        for name in cells:
            cells[name] = [value for row, value in enumerate(cells[name]) if row not in again]


def as_label(value: object) -> str | None:
    """A cell as the text of a label, or None where it is none."""
    text = _text(value)
    return None if text in (None, "", "nan", "NaN", str(MISSING)) else text


def _warn_of_blanks(where: object, values: Iterable[object]) -> None:
    """Say where blanks around a label were taken off and it then is the same as another."""
    found: dict[str, collections.Counter] = {}
    for value in values:
        label = as_label(value)
        if label is not None and isinstance(value, str):
            found.setdefault(label, collections.Counter())[value] += 1
    for label, forms in found.items():
        if len({text for text in forms if text.strip() != text}) and len(forms) > 1:
            counts = ", ".join(f"{text!r} ({count})" for text, count in sorted(forms.items()))
            _log.warning("%s: %s are taken as one label %r, without the blanks", where, counts, label)


def warn_of_case(labels: Iterable[str | None], others: Iterable[str] = ()) -> None:
    """Say in the log which of the labels differ only by case, also from `others`: they are classes of their own."""
    alike: dict[str, list[str]] = {}
    counts = collections.Counter(label for label in labels if label is not None)
    counts.update(dict.fromkeys(others, 0))
    for label in sorted(counts):
        alike.setdefault(label.casefold(), []).append(label)
    for names in alike.values():
        if len(names) > 1:
            found = " and ".join(f"{name!r} ({counts[name]})" for name in names)
            _log.warning("labels %s differ only by case and are classes of their own; write them alike", found)


def match_labels(table: EmbeddingsTable, labels: Mapping[str, str]) -> np.ndarray:
    """Labels in the order of a table.

    Args:
        table: N embeddings.
        labels: label by id, from `read_labels`.

    Returns:
        Object array (N,) of text, None where a row has no label.

    Raises:
        DataError: there are labels, and none belongs to the table.
    """
    y = np.array([labels.get(name) for name in table.ids], object)
    known = sum(label is not None for label in y)
    if labels and not known:
        raise DataError(
            f"none of the {len(labels)} labelled ids is in the table: they look like {next(iter(labels))!r}, "
            f"the table's like {table.ids[0]!r}"
        )
    if known < len(labels):
        own = set(table.ids)
        first = next(name for name in labels if name not in own)
        lost = len(labels) - known
        _log.warning("%d of %d labelled ids are not in the table, the first is %r", lost, len(labels), first)
    warn_of_case(y)
    return y


def column_labels(table: EmbeddingsTable, column: str) -> np.ndarray:
    """A metadata column as labels: object array (N,) of text, None where empty, NaN or -1.

    Raises:
        DataError: no such column, or nothing in it.
    """
    cells = _column(table, column)
    y = np.array([as_label(value) for value in cells], object)
    if all(label is None for label in y):
        raise DataError(f"column {column!r} of the table holds no label")
    _warn_of_blanks(f"column {column!r}", cells)
    warn_of_case(y)
    return y


def encode_labels(y: Sequence[str | None], classes: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers.

    Args:
        y: N labels, None where a row has none.
        classes: what the codes stand for, such as `head.classes_`; by default the labels that occur, sorted.

    Returns:
        int64 (N,) codes, -1 where there is no label, and the K classes.

    Raises:
        DataError: a label that `classes` lacks.
    """
    present = sorted({str(label) for label in y if label is not None})
    names = present if classes is None else [str(name) for name in classes]
    unknown = [label for label in present if label not in names]
    if unknown:
        raise DataError(
            f"class {unknown[0]!r} was not seen in training (known: {', '.join(names)}); "
            "fit the head again with such labels, or leave them out"
        )
    code = {name: number for number, name in enumerate(names)}
    return np.array([MISSING if label is None else code[str(label)] for label in y], np.int64), names


def column_values(table: EmbeddingsTable, column: str) -> list[str | None]:
    """A metadata column, or `id`, as N texts, None where a row has no value.

    Raises:
        DataError: no such column.
    """
    return [_text(value) for value in _column(table, column)]


def spatial_blocks(table: EmbeddingsTable, column: str = "block") -> np.ndarray | None:
    """Block of every row as text (N,), rows without one each in a block of their own; None without such a column."""
    if column not in table.metadata.column_names:
        return None
    names = column_values(table, column)
    if all(name is None for name in names):
        return None
    return np.array([f"row {row}" if name is None else name for row, name in enumerate(names)])


def select_where(table: EmbeddingsTable, filters: Sequence[str]) -> EmbeddingsTable:
    """The rows whose metadata fit, see `rows_where`: `select_where(table, ["region=Iran", "region=Sudan"])`."""
    return table.select(rows_where(table, filters))


def rows_where(table: EmbeddingsTable, filters: Sequence[str]) -> np.ndarray:
    """Numbers of the rows whose metadata fit, int64: `["source=itu_cropland_2023", "region=Iran", "region=Sudan"]`.

    Args:
        table: embeddings.
        filters: `column=value`, values compared as text (`1` fits 1.0, nothing fits an empty cell). One column given
            several times fits any of its values; different columns must all fit.

    Raises:
        DataError: not of that form, no such column, or no row fits.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        column, equals, value = text.partition("=")
        if not equals or not column.strip():
            raise DataError(f"{text!r} is not a filter of the form column=value")
        wanted.setdefault(column.strip(), []).append(_text(value))
    keep = np.ones(len(table), bool)
    for column, values in wanted.items():
        found = column_values(table, column)
        fits = np.array([value is not None and value in values for value in found])
        if not fits.any():
            some = sorted({value for value in found if value is not None})
            listed = ", ".join(some[:8]) + (", ..." if len(some) > 8 else "")
            raise DataError(f"no row has {column}={' or '.join(values)}; the column holds {listed or 'nothing'}")
        keep &= fits
    if not keep.any():
        raise DataError(f"no row fits {' and '.join(filters)} together")
    return np.flatnonzero(keep)


def read_ids(path: str | os.PathLike) -> list[str]:
    """The column `id` of a label file or sheet.

    Raises:
        DataError: see the module.
    """
    ids = ["" if name is None else str(name).strip() for name in read_columns(path, ("id",))["id"]]
    if "" in ids:
        raise DataError(f"{path}: data row {ids.index('') + 1} has no id")
    return ids


def _column(table: EmbeddingsTable, column: str) -> list:
    if column == "id":
        return table.ids
    if column not in table.metadata.column_names:
        raise DataError(f"the table has no column {column!r}; found {', '.join(table.metadata.column_names)}")
    return table.metadata[column].to_pylist()


def _text(value: object) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


__all__ = [
    "MISSING", "as_label", "column_labels", "column_values", "encode_labels", "match_labels", "read_columns",
    "read_ids", "read_label_files", "read_labels", "rows_where", "select_where", "spatial_blocks", "warn_of_case",
]  # fmt: skip
