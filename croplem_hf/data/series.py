"""Point series in Parquet: one row a place, with its dates and the flat values of each sensor."""

import collections
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError
from ..sensors import (
    BASELINE_0400,
    S2_BANDS,
    S2_LEVELS,
    SENSORS,
    decide_s1_units,
    decide_s2_offset,
    decide_s2_units,
    harmonise_s1,
    harmonise_s2,
    settled_reflectance,
)
from .plan import Layout
from .sample import SENSOR_KEYS, Sample, make_sample

logger = logging.getLogger(__name__)

CHANNELS = {"s1": 2, "s2": 13}
LABELS = ("cropland", "temporary_crop")
"""Columns of 1, 0 and -1 (unknown); -1 becomes None."""

_B10 = S2_BANDS.index("B10")
_CACHED_GROUPS = 2
# Columns of one value a row that have a meaning of their own in the sample.
_FIELDS = ("gsd", "s1_kind", "s1_orbit", "s2_level")
_OFFSET_EVIDENCE = 100


class SeriesTable:
    """A Parquet table of single-pixel series as samples with H = W = 1.

    Columns: `id`; `dates` (list of ISO texts or dates, T); `s1` (list of T x 2 numbers: VV VH of the first date, then
    of the second, ...) and `s2` (list of T x 13, bands as in `S2_BANDS`), NaN or null where missing; one of the two may
    be absent. Columns `gsd`, `s1_kind`, `s1_orbit` and `s2_level` fill the sample's keys; every other column of single
    values becomes metadata. A date whose values are all exactly 0 counts as missing.

    Row groups are read when needed and a few are kept: walk in order, or write small row groups for random access.

    Args:
        path: the table.
        sensors: which of "s1" and "s2" to read; None for those that the table has.
        s1_units: "db", "linear" or "auto", decided once for the table by its first row group with radar.
        s2_units: "dn", "reflectance" or "auto", decided likewise: a single pixel of dark water says nothing.
        s2_offset: 0, 1000 or "auto", decided likewise by the darkest pixels (`decide_s2_offset`).
        s2_level: "L1C" or "L2A" for all rows. Else the column `s2_level`; else L1C where B10 is present; else L2A, an
            assumption that is logged, since L1C tables without B10 exist.

    Attributes:
        ids: the column `id` as text, in the order of the table.

    Raises:
        DataError: no such file, not Parquet, no rows, a missing column or one of the wrong type, ids that repeat, or
            values in no known unit.
    """

    kind = "series"
    unit = "series"
    seasonal = False

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        sensors: Sequence[str] | None = None,
        s1_units: str = "auto",
        s2_units: str = "auto",
        s2_offset: int | str = "auto",
        s2_level: str | None = None,
    ):
        if s2_level not in (None, *S2_LEVELS):
            raise DataError(f"s2_level must be one of {S2_LEVELS} or None, found {s2_level!r}")
        self.path = Path(path)
        self.s2_level = s2_level
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        try:
            with pq.ParquetFile(self.path) as table:
                schema = table.schema_arrow
                sizes = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
                self.sensors = self._check_columns(schema, sensors)
                if sum(sizes) == 0:
                    raise DataError(f"{self.path}: the table holds no rows")
                ids = table.read(columns=["id"]).column("id").cast(pa.large_string()).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: not a readable Parquet file ({_line(error)})") from error
        self._starts = np.cumsum([0, *sizes])
        self._columns = ["id", "dates", *self.sensors, *self._scalar_columns(schema)]
        self.ids: list[str] = ids
        self._check_ids()
        self._groups: collections.OrderedDict[int, _RowGroup] = collections.OrderedDict()
        self._level_assumed = False
        self.s1_units = self._find_s1_units() if s1_units == "auto" else s1_units
        self.s2_units, self.s2_offset = s2_units, s2_offset
        if "auto" in (s2_units, s2_offset):
            self._find_s2_units()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`.

        Raises:
            IndexError: past the end.
            DataError: naming the id: lengths that disagree, a date that is none, values out of range, nothing valid.
        """
        id = self.ids[i]
        i = range(len(self))[i]
        g = int(np.searchsorted(self._starts, i, side="right")) - 1
        group, row = self._group(g), i - int(self._starts[g])
        dates = group.row_dates(row)
        try:
            scalars = group.row_scalars(row)
        except UnicodeDecodeError as error:
            raise DataError(f"{id}: a text of its row is not UTF-8, the table is damaged ({self.path})") from error
        given = {key: scalars.pop(key) for key in _FIELDS if key in scalars}
        fields = {}
        s1 = self._values(id, group, row, "s1", len(dates))
        if s1 is not None:
            fields["s1"], note = harmonise_s1(s1, units=self.s1_units, where=id)
            fields |= {"s1_dates": dates} | ({"s1_correction": note} if note else {})
            fields |= {"s1_kind": given.get("s1_kind"), "s1_orbit": given.get("s1_orbit")}
        s2 = self._values(id, group, row, "s2", len(dates))
        if s2 is not None:
            fields["s2"], note = harmonise_s2(s2, units=self.s2_units, offset=self.s2_offset, where=id)
            scalars |= {"s2_correction": note} if note else {}
            fields |= {"s2_dates": dates, "s2_level": self._level(s2, given.get("s2_level"))}
        for label in LABELS:
            if isinstance(scalars.get(label), int | float) and scalars[label] < 0:
                scalars[label] = None
        gsd = given.get("gsd")
        return make_sample(id, gsd=10.0 if gsd is None else gsd, **fields, **scalars)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is a Parquet file, other than the table of a folder of rasters."""
        return path.suffix.lower() == ".parquet" and path.name != "metadata.parquet" and path.is_file()

    def layout(self) -> Layout:
        """Lengths of the lists, read once without decoding a row; items of a row group are read together.

        Raises:
            DataError: the table cannot be read.
        """
        parts, groups = [], []
        try:
            with pq.ParquetFile(self.path) as file:
                for g in range(file.num_row_groups):
                    table = file.read_row_group(g, columns=list(self.sensors))
                    part = np.zeros((len(table), 4), np.int32)
                    part[:, 2:] = 1
                    for k, sensor in enumerate(SENSORS):
                        if sensor in self.sensors:
                            part[:, k] = _dates_with_values(table[sensor]) // CHANNELS[sensor]
                    parts.append(part)
                    groups.append(np.full(len(table), g, np.int32))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: cannot be read ({_line(error)})") from error
        return Layout(np.concatenate(parts), np.concatenate(groups))

    def columns(self) -> dict[str, np.ndarray]:
        """Every column of single values but `id`: object (N,), None where missing.

        Raises:
            DataError: the table cannot be read.
        """
        names = [name for name in self._columns if name not in ("id", "dates", *SENSORS)]
        try:
            table = pq.read_table(self.path, columns=names, partitioning=None)
            columns = {name: _plain(table[name].combine_chunks()).to_pylist() for name in names}
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: cannot be read ({_line(error)})") from error
        found = {}
        for name, values in columns.items():
            found[name] = np.empty(len(self), object)
            found[name][:] = [None if value != value else value for value in values]
        return found

    def __getstate__(self) -> dict:
        # Worker processes read for themselves instead of receiving what this one has cached.
        return self.__dict__ | {"_groups": collections.OrderedDict()}

    def _values(self, id: str, group: "_RowGroup", row: int, sensor: str, dates: int) -> np.ndarray | None:
        """Values of one row as (T, C, 1, 1); None where the row has none."""
        flat = group.row_values(sensor, row) if sensor in self.sensors else None
        if flat is None or (flat.size == 0 and dates > 0):
            return None
        channels = CHANNELS[sensor]
        if dates == 0 or flat.size != dates * channels:
            raise DataError(
                f"{id}: {dates} dates but {flat.size} values in {sensor}, expected {dates} x {channels} ({self.path})"
            )
        values = flat.reshape(dates, channels, 1, 1)
        empty = (values == 0).sum(axis=1, keepdims=True) == np.isfinite(values).sum(axis=1, keepdims=True)
        return np.where(empty, np.nan, values)

    def _level(self, s2: np.ndarray, column: str | None) -> str:
        if self.s2_level or column:
            return self.s2_level or column
        if np.isfinite(s2[:, _B10]).any():
            return "L1C"
        if not self._level_assumed:
            self._level_assumed = True
            logger.warning(
                "%s: optical rows without B10 are taken as level L2A; say s2_level='L1C' or add a column s2_level if "
                "they are top of atmosphere",
                self.path,
            )
        return "L2A"

    def _group(self, g: int) -> "_RowGroup":
        if g not in self._groups:
            try:
                # Opened each time: a handle would be shared by forked workers.
                with pq.ParquetFile(self.path) as table:
                    self._groups[g] = _RowGroup(table.read_row_group(g, columns=self._columns))
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise DataError(f"{self.path}: row group {g} cannot be read ({_line(error)})") from error
            while len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(g)
        return self._groups[g]

    def _check_columns(self, schema: pa.Schema, sensors: Sequence[str] | None) -> tuple[str, ...]:
        found = ", ".join(schema.names)
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"{self.path}: two columns have one name; found {found}")
        present = tuple(sensor for sensor in SENSORS if sensor in schema.names)
        if sensors is None:
            sensors = present
            if not sensors and "embedding" in schema.names:
                raise DataError(f"{self.path}: holds embeddings, no imagery; give the imagery that they were made from")
            if not sensors:
                raise DataError(f"{self.path}: columns s1 and s2 are both missing, one is needed; found {found}")
        if not sensors or not set(sensors) <= set(SENSORS):
            raise DataError(f"sensors must be some of {SENSORS}, found {sensors!r}")
        for name in ("id", "dates", *sensors):
            if name not in schema.names:
                raise DataError(f"{self.path}: column {name!r} is missing; found {found}")
        for name in ("dates", *sensors):
            column = schema.field(name).type
            if not _is_list(column) or pa.types.is_nested(column.value_type):
                raise DataError(f"{self.path}: column {name!r} must be a flat list in each row, found {column}")
        return tuple(sensors)

    def _scalar_columns(self, schema: pa.Schema) -> list[str]:
        taken = {"id", "dates", "lc", *SENSOR_KEYS} - set(_FIELDS)
        others = [field for field in schema if field.name not in taken]
        left = [field.name for field in others if pa.types.is_nested(field.type) or _is_binary(field.type)]
        if left:
            logger.info("%s: columns %s hold no single values and are left out", self.path, left)
        return [field.name for field in others if field.name not in left]

    def _check_ids(self) -> None:
        if None in self.ids or "" in self.ids:
            raise DataError(f"{self.path}: column 'id' has empty values; give every row an id")
        if len(set(self.ids)) < len(self.ids):
            example, times = collections.Counter(self.ids).most_common(1)[0]
            raise DataError(f"{self.path}: ids repeat, for example {example!r} ({times} rows); make them unique")

    def _first_values(self, sensor: str) -> np.ndarray:
        """Finite, non-zero values of the first row group that has any; rows of the wrong length are passed over."""
        for g in range(len(self._starts) - 1):
            values = self._group(g).flat(sensor)
            if (np.isfinite(values) & (values != 0)).any():
                return values
        return np.empty(0, np.float32)

    def _find_s1_units(self) -> str:
        decision = decide_s1_units(self._first_values("s1") if "s1" in self.sensors else np.empty(0))
        if decision.value is None:
            raise DataError(
                f"{self.path}: {decision.evidence}; calibrate to sigma0 or gamma0 first, or say s1_units='db' or "
                "'linear'"
            )
        return decision.value

    def _find_s2_units(self) -> None:
        values = self._first_values("s2") if "s2" in self.sensors else np.empty(0, np.float32)
        if self.s2_units == "auto":
            decision = decide_s2_units(values)
            if decision.value is None:
                raise DataError(f"{self.path}: {decision.evidence}; say s2_units='dn' or 'reflectance'")
            self.s2_units = decision.value
        if self.s2_offset == "auto":
            found = [self._find_offset(values) for values in self._by_baseline() if values.size]
            if len(set(found)) > 1:
                raise DataError(
                    f"{self.path}: dates before {BASELINE_0400} have no offset and later ones have it; take it off "
                    "(Earth Engine's HARMONIZED collections are without), or write two tables"
                )
            self.s2_offset = found[0] if found else 0

    def _by_baseline(self) -> list[np.ndarray]:
        """Optical values of the first row group that has any, (13, dates), before baseline 04.00 and from then on."""
        for g in range(len(self._starts) - 1):
            group = self._group(g)
            values, dates = group.aligned("s2", len(S2_BANDS)) if "s2" in self.sensors else (np.empty((0, 13)), [])
            if (np.isfinite(values) & (values != 0)).any():
                late = np.array([text >= BASELINE_0400 for text in dates])
                return [values[~late].T, values[late].T]
        return []

    def _find_offset(self, bands: np.ndarray) -> int:
        decision = decide_s2_offset(bands * np.float32(10000 if self.s2_units == "reflectance" else 1))
        if self.s2_units == "reflectance":
            decision = settled_reflectance(decision, str(self.path))
        if decision.value is None or (decision.value and bands.shape[1] < _OFFSET_EVIDENCE):
            found = decision.evidence if decision.value is None else f"all of {bands.shape[1]} dates are bright"
            raise DataError(f"{self.path}: {found}; say s2_offset=0 or 1000")
        return decision.value


class _RowGroup:
    """One row group decoded to flat arrays and offsets, so that a row costs slices only."""

    def __init__(self, table: pa.Table):
        self._lists = {}
        self._scalars = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            column = column.combine_chunks()
            if name == "dates":
                dates = column.cast(pa.large_list(pa.large_string()))
                codes = dates.values.dictionary_encode()
                self._texts = codes.dictionary.to_pylist() + [""]
                self._lists[name] = (codes.indices.fill_null(-1).to_numpy(), *_rows(dates))
            elif _is_list(column.type):
                lists = column.cast(pa.large_list(pa.float32()), safe=False)
                self._lists[name] = (lists.values.to_numpy(zero_copy_only=False), *_rows(lists))
            elif name != "id":
                self._scalars[name] = _plain(column)

    def row_dates(self, row: int) -> list[str]:
        codes = self.row_values("dates", row)
        return [] if codes is None else [self._texts[code] for code in codes]

    def row_values(self, name: str, row: int) -> np.ndarray | None:
        values, offsets, exists = self._lists[name]
        return values[offsets[row] : offsets[row + 1]] if exists[row] else None

    def row_scalars(self, row: int) -> dict:
        values = {name: column[row].as_py() for name, column in self._scalars.items()}
        return {name: None if value != value else value for name, value in values.items()}

    def aligned(self, name: str, channels: int) -> tuple[np.ndarray, list[str]]:
        """Values (n, channels) and ISO dates of all rows whose lengths agree."""
        values, starts, _ = self._lists[name]
        codes, places, _ = self._lists["dates"]
        lengths, dates = np.diff(starts), np.diff(places)
        good = lengths == channels * dates
        values = values[starts[0] : starts[-1]][np.repeat(good, lengths)].reshape(-1, channels)
        return values, [self._texts[code] for code in codes[places[0] : places[-1]][np.repeat(good, dates)]]

    def flat(self, name: str) -> np.ndarray:
        values, offsets, _ = self._lists[name]
        return values[offsets[0] : offsets[-1]]


def _dates_with_values(lists: pa.ChunkedArray) -> np.ndarray:
    """Lengths of lists of values; 0 for a list of nothing but gaps, which is a sensor that is absent."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    values = pc.cast(pc.list_flatten(lists), pa.float32(), safe=False).to_numpy()
    seen = np.concatenate([[0], np.cumsum(np.isfinite(values) & (values != 0))])
    ends = np.cumsum(lengths)
    return np.where(seen[ends] > seen[ends - lengths], lengths, 0)


def _rows(lists: pa.LargeListArray) -> tuple[np.ndarray, np.ndarray]:
    return lists.offsets.to_numpy(), lists.is_valid().to_numpy(zero_copy_only=False)


def _plain(column: pa.Array) -> pa.Array:
    """A column whose values are texts, numbers and booleans in Python too: dates become ISO texts."""
    if pa.types.is_temporal(column.type):
        return column.cast(pa.string())
    if pa.types.is_decimal(column.type):
        return column.cast(pa.float64())
    return column


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)


def _is_binary(type: pa.DataType) -> bool:
    return pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


__all__ = ["LABELS", "SeriesTable"]
