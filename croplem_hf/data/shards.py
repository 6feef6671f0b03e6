"""Samples in Parquet shards: one row a sample, rasters as packed bytes, and an index that tells where they lie.

    README.md, manifest.json     what this is; size and SHA-256 of every shard
    index.parquet                one row a sample: all but the rasters, and the place of each raster in its shard
    skipped.csv                  what could not be taken in
    data/train-summer-00000-of-00096.parquet, ...

A raster `x` fills the columns `x` (bytes), `x_shape`, `x_dtype`, `x_codec` and `x_xxh3` (checksum of the bytes).
Rasters are stored as they are in the sample, in uncompressed column chunks, so that a reader that knows the index takes
one raster by one read, in any order, and needs no row group for it.
"""

import collections
import hashlib
import json
import logging
import mmap
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ..errors import DataError
from ..sensors import S1_BANDS, S2_BANDS, SENSORS
from .codec import checksum, decode, encode
from .files import write_aside
from .landcover import LABELS
from .plan import Layout
from .ranged import RangedFiles, file_system
from .sample import METADATA, Sample

logger = logging.getLogger(__name__)

ROW_GROUP = 16
RASTERS = ("s1", "s1_valid", "s2", "s2_valid", "lc")
"""Rasters that have columns of their own; a mask that is True everywhere is null."""

FORMAT = 1
"""Version of the layout, in the manifest."""

_TEXTS = ("season", "scene", "crs", "region", "crop_type", "s1_correction", "s2_correction", "land_use")
_SCALARS = {
    "id": pa.string(), "gsd": pa.float64(), "patch": pa.int32(), "lon": pa.float64(), "lat": pa.float64(),
    "field_id": pa.string(), "cropland": pa.int32(), "s1_kind": pa.string(), "s1_orbit": pa.string(),
    "s2_level": pa.string(), **dict.fromkeys(_TEXTS, pa.string()),
    **{name: pa.float64() if name.endswith("fraction") else pa.int32() for name in LABELS},
}  # fmt: skip
_LISTS = {
    "s1_dates": pa.list_(pa.string()), "s2_dates": pa.list_(pa.string()), "s2_bands": pa.list_(pa.bool_()),
    "transform": pa.list_(pa.float64()),
}  # fmt: skip
_RASTER = {"shape": pa.list_(pa.int32()), "dtype": pa.string(), "codec": pa.string(), "xxh3": pa.uint64()}
_KNOWN = {*_SCALARS, *_LISTS, *RASTERS}
_CHANNELS = {"s1": len(S1_BANDS), "s2": len(S2_BANDS)}
# Of other types than their columns in some sources; they stand in `extra` then.
_LOOSE = ("crop_type", "cropland", "field_id")

_ABOUT = {**_SCALARS, **_LISTS, "extra": pa.string(),
          **{f"{name}_{key}": kind for name in RASTERS for key, kind in _RASTER.items()}}  # fmt: skip
SCHEMA = pa.schema({**_ABOUT, **dict.fromkeys(RASTERS, pa.large_binary())})
"""Columns of a shard. `extra` is JSON of what has no column: further text, numbers and truth values of a sample."""

_PLACE = {"shard": pa.string(), "split": pa.string(), "row_group": pa.int32(), "row": pa.int32()}
_PLACE |= {f"{name}_offset": pa.int64() for name in RASTERS} | {f"{name}_bytes": pa.int32() for name in RASTERS}
INDEX_SCHEMA = pa.schema({**_ABOUT, **_PLACE})
_FEW = [name for name, kind in (_ABOUT | _PLACE).items() if kind == pa.string() and name not in ("id", "extra")]
_IN_MEMORY = pa.schema({**_ABOUT, **_PLACE} | dict.fromkeys(_FEW, pa.dictionary(pa.int32(), pa.string())))
"""Columns of the index. Offset and bytes of a raster are counted in the file of its shard."""


def sample_row(sample: Sample) -> dict:
    """A sample as a row of a shard.

    Raises:
        DataError: it holds what no column and no JSON can hold.
    """
    row = dict.fromkeys(SCHEMA.names)
    for name in _SCALARS:
        row[name] = sample.get(name)
    row["field_id"] = None if row["field_id"] is None else str(row["field_id"])
    for name in ("s1_dates", "s2_dates", "transform"):
        row[name] = None if sample.get(name) is None else list(sample[name])
    row["s2_bands"] = None if sample["s2_bands"] is None else np.asarray(sample["s2_bands"]).ravel().tolist()
    extra = {key: value for key, value in sample.items() if key not in _KNOWN}
    if isinstance(sample.get("field_id"), int):
        extra["field_id"] = sample["field_id"]
    for name in ("cropland", "crop_type"):
        if type(row[name]) not in (type(None), {"cropland": int, "crop_type": str}[name]):
            extra[name], row[name] = row[name], None
    try:
        row["extra"] = json.dumps(extra, sort_keys=True, allow_nan=True) if extra else None
    except TypeError as error:
        raise DataError(f"{sample['id']}: cannot be stored in a shard ({error})") from error
    for name in RASTERS:
        values = sample.get(name)
        if values is None or (name.endswith("_valid") and np.all(values)):
            continue
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        data, codec = encode(values)
        about = {"shape": list(values.shape), "dtype": values.dtype.name, "codec": codec}
        row |= {name: data, f"{name}_xxh3": checksum(data)} | {f"{name}_{key}": about[key] for key in about}
    return row


def write_shard(path: str | os.PathLike, samples: Iterable[Sample], split: str = "train") -> pa.Table:
    """Write samples as one shard: aside first, then renamed. The same samples give the same bytes.

    Args:
        path: the file; its name stands in the index.
        samples: of any kind, few of them in memory at a time.
        split: for the index.

    Returns:
        Rows of the index (`INDEX_SCHEMA`).

    Raises:
        DataError: a sample cannot be stored.
    """
    path = Path(path)
    options = {
        "compression": {name: "NONE" if name in RASTERS else "ZSTD" for name in _leaves()},
        "use_dictionary": [name for name in _leaves() if name not in RASTERS],
        "write_statistics": [name for name in _leaves() if name not in RASTERS],
        "store_schema": False,
    }
    rows, group = [], []
    with write_aside(path) as aside:
        with pq.ParquetWriter(aside, SCHEMA, **options) as writer:
            for sample in samples:
                group.append(sample_row(sample))
                if len(group) == ROW_GROUP:
                    rows += _write_group(writer, group, len(rows) // ROW_GROUP)
                    group = []
            if group:
                rows += _write_group(writer, group, len(rows) // ROW_GROUP)
        _find_rasters(aside, rows)
    return pa.Table.from_pylist([row | {"shard": path.name, "split": split} for row in rows], INDEX_SCHEMA)


def _leaves() -> list[str]:
    """Paths of the columns as Parquet names them, lists by their elements."""
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in SCHEMA]


def _write_group(writer: pq.ParquetWriter, group: list[dict], number: int) -> list[dict]:
    """Write rows as row group `number` -> their rows of the index, but for the offsets."""
    writer.write_table(pa.Table.from_pylist(group, SCHEMA), row_group_size=ROW_GROUP)
    return [
        {name: value for name, value in row.items() if name not in RASTERS}
        | {"row_group": number, "row": k}
        | {f"{name}_bytes": None if row[name] is None else len(row[name]) for name in RASTERS}
        for k, row in enumerate(group)
    ]


def _find_rasters(path: Path, rows: list[dict]) -> None:
    """Set the offset of every raster: its chunk is plain, so the bytes follow their length, row after row."""
    metadata = pq.read_metadata(path)
    columns = {metadata.schema.column(c).path: c for c in range(metadata.num_columns)}
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name in RASTERS:
            group, at, end = -1, 0, 0
            for row in rows:
                if row[f"{name}_bytes"] is None:
                    continue
                if row["row_group"] != group:
                    group = row["row_group"]
                    chunk = metadata.row_group(group).column(columns[name])
                    at = chunk.data_page_offset
                    end = at + chunk.total_compressed_size
                size = row[f"{name}_bytes"]
                length = size.to_bytes(4, "little")
                while True:
                    at = data.find(length, at, end)
                    if at < 0:
                        raise DataError(f"{path}: {name} of {row['id']} is not in its column as it was written")
                    if checksum(data[at + 4 : at + 4 + size]) == row[f"{name}_xxh3"]:
                        break
                    at += 1
                row[f"{name}_offset"] = at + 4
                at += 4 + size


class ShardFolder:
    """Shards as samples, in the order of the index.

    Args:
        root: the folder, or its address for fsspec: "hf://datasets/croplem/sen12ms", "s3://bucket/sen12ms".
        sensors: which of "s1" and "s2" to read; None for both. A sample with none of them is no item.
        labels: whether to read land cover.
        split: "train", "validation" or "test"; None for all.
        skip: ids left out.

    Attributes:
        ids: of the samples. `unit`, `seasonal` and `generated` are those of the source that the shards were made of.

    Raises:
        DataError: no shards there, of a later format, no sample of the sensors or the split.
    """

    kind = "shards"

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        sensors: Sequence[str] | None = None,
        labels: bool = True,
        split: str | None = None,
        skip: Collection[str] = (),
    ):
        sensors = SENSORS if sensors is None else tuple(sensors)
        if not sensors or not set(sensors) <= set(SENSORS):
            raise DataError(f"sensors must be some of {SENSORS}, found {sensors!r}")
        self.root, self.sensors, self.labels = str(root).rstrip("/"), sensors, labels
        self._fs, self._path = file_system(self.root)
        self._files = RangedFiles(self._fs, f"{self._path}/data")
        self.manifest = self._manifest()
        self.unit, self.seasonal, self.generated = (self.manifest[key] for key in ("unit", "seasonal", "generated"))
        self.licence = "cc-by-4.0" if self.manifest.get("source") == "sen12ms" else None
        table = self._index()
        if split is not None:
            found = sorted(set(table["split"].to_pylist()))
            table = table.filter(pa.compute.equal(table["split"], split))
            if not len(table):
                raise DataError(f"{self.root}: no split {split!r} in these shards, only {', '.join(found)}")
        keep = np.zeros(len(table), bool)
        for sensor in sensors:
            keep |= table[f"{sensor}_bytes"].is_valid().to_numpy()
        ids = np.array(table["id"].to_pylist(), object)
        skip = set(skip)
        keep &= np.array([id not in skip for id in ids.tolist()], bool)
        if not keep.any():
            raise DataError(f"{self.root}: no sample with {' or '.join(sensors)} in these shards")
        self.ids: list[str] = ids[keep].tolist()
        self._table = table.filter(pa.array(keep)).combine_chunks()
        self._arrays: dict[str, pa.Array] | None = None

    @staticmethod
    def recognises(path: str | os.PathLike) -> bool:
        """Whether a folder holds shards."""
        path = Path(path)
        return path.is_dir() and (path / "manifest.json").is_file() and (path / "index.parquet").is_file()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`, bit by bit as it was stored, its arrays new.

        Raises:
            IndexError: past the end.
            DataError: naming sample and shard: the shard is missing, cut short, damaged or of another build.
        """
        i = range(len(self))[i]
        row = {name: column[i].as_py() for name, column in self._columns().items()}
        try:
            return self._sample(row)
        except DataError:
            raise
        except (AttributeError, MemoryError, TypeError, ValueError) as error:
            where = f"{row['id']}: {self.root}/index.parquet"
            raise DataError(f"{where} is damaged here ({error}); fetch it again") from error

    def _sample(self, row: dict) -> Sample:
        there = {name for name in RASTERS if row[f"{name}_bytes"] is not None}
        return _assemble(row, there, lambda name: self._raster(row, name), self.sensors, self.labels)

    def _raster(self, row: dict, name: str) -> np.ndarray:
        where = f"{row['id']}: {name} in {self.root}/data/{row['shard']}"
        start, size = row[f"{name}_offset"], row[f"{name}_bytes"]
        try:
            data = self._files.read(row["shard"], start, size)
        except FileNotFoundError as error:
            raise DataError(f"{where}: the shard is missing; build again or fetch it") from error
        except Exception as error:
            raise self._unreachable(error, where) from error
        if len(data) != size or checksum(data) != row[f"{name}_xxh3"]:
            raise DataError(
                f"{where}: the shard is damaged or of another build than index.parquet; fetch it again, or remove it "
                "and build again"
            )
        try:
            return decode(data, row[f"{name}_codec"], row[f"{name}_dtype"], tuple(row[f"{name}_shape"]))
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}; fetch index.parquet and the shard again") from error

    def layout(self) -> Layout:
        """Sizes of all samples, from the index; each is read alone."""
        shapes = np.zeros((len(self), 4), np.int32)
        for column, sensor in enumerate(SENSORS):
            if sensor in self.sensors:
                for i, size in enumerate(self._table[f"{sensor}_shape"].to_pylist()):
                    if size:
                        shapes[i, column], shapes[i, 2:] = size[0], size[2:]
        return Layout(shapes)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of single values by which samples can be chosen; object (N,)."""
        names = [*_SCALARS, "split", "shard"]
        return {name: np.array(self._table[name].to_pylist(), object) for name in names if name != "id"}

    def _columns(self) -> dict[str, pa.Array]:
        if self._arrays is None:
            self._arrays = {name: self._table[name].chunk(0) for name in self._table.column_names}
        return self._arrays

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_arrays": None}

    def _unreachable(self, error: Exception, where: str) -> Exception:
        """What to raise for an error of a file system: each has errors of its own, of no connection above all."""
        if self._files.local and not isinstance(error, OSError):
            return error
        reason = " ".join(str(error).split()) or type(error).__name__
        return DataError(f"{where}: cannot be read ({reason})")

    def _fetch(self, name: str) -> bytes:
        try:
            return self._fs.cat_file(f"{self._path}/{name}")
        except FileNotFoundError as error:
            made = "`croplem data build` makes shards, and where it was cut off, goes on"
            raise DataError(f"{self.root}: no {name} there; {made}") from error
        except Exception as error:
            raise self._unreachable(error, f"{self.root}/{name}") from error

    def _manifest(self) -> dict:
        path = f"{self.root}/manifest.json"
        data = self._fetch("manifest.json")
        try:
            manifest = json.loads(data)
            if manifest["format"] != FORMAT:
                raise DataError(f"{path}: format {manifest['format']}, this version reads {FORMAT}; update croplem_hf")
            if not isinstance(manifest.get("shards"), dict):
                raise ValueError("no shards in it")
            return {"unit": "patch", "seasonal": False, "generated": False} | manifest
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: not the manifest of shards ({error!r:.200}); fetch it again") from error

    def _index(self) -> pa.Table:
        path = f"{self.root}/index.parquet"
        data = self._fetch("index.parquet")
        try:
            # Text of few values as numbers into a list of them: a third of the memory.
            table = pq.read_table(pa.BufferReader(data), read_dictionary=_FEW)
            table = table.select(INDEX_SCHEMA.names).cast(_IN_MEMORY)
            for name in table["shard"].unique().to_pylist():
                if name is None or not re.fullmatch(r"\w[\w.-]*\.parquet", name):
                    raise DataError(f"{path}: names a shard {name!r}, which is no name of one; fetch it again")
            return table
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: not the index of shards ({reason}); fetch it again") from error


def row_sample(row: Mapping) -> Sample:
    """A row of a shard as `datasets` or pyarrow give it, a dict of the columns in `SCHEMA` -> the sample.

    Raises:
        DataError: naming the sample: a raster is damaged, or the row is not one of shards.
    """
    row = dict.fromkeys(SCHEMA.names) | dict(row)

    def raster(name: str) -> np.ndarray:
        if checksum(row[name]) != row[f"{name}_xxh3"]:
            raise ValueError(f"{name} is damaged (checksum)")
        return decode(row[name], row[f"{name}_codec"], row[f"{name}_dtype"], tuple(row[f"{name}_shape"]))

    try:
        return _assemble(row, {name for name in RASTERS if row[name] is not None}, raster)
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{row['id']}: cannot be read from its row of a shard ({error}); fetch it again") from error


def _assemble(
    row: Mapping,
    there: Collection[str],
    raster: Callable[[str], np.ndarray],
    sensors: Sequence[str] = SENSORS,
    labels: bool = True,
) -> Sample:
    """The sample of a row; `there` names its rasters, and `raster(name)` gives one.

    Raises:
        ValueError: a raster has an impossible shape.
    """
    sample = dict.fromkeys(METADATA) | {name: row[name] for name in _SCALARS if name in METADATA}
    sample |= {name: row[name] for name in LABELS if row[name] is not None}
    sample |= {name: row[name] for name in _TEXTS if name not in METADATA and row[name] is not None}
    sample |= {"id": row["id"], "gsd": row["gsd"], "lc": None}
    sample["transform"] = None if row["transform"] is None else tuple(row["transform"])
    for sensor in SENSORS:
        wanted = sensor in sensors and sensor in there
        sample[sensor] = values = raster(sensor) if wanted else None
        if wanted and (values.ndim != 4 or values.shape[1] != _CHANNELS[sensor]):
            raise ValueError(f"{sensor} has shape {values.shape}")
        keys = ("kind", "orbit") if sensor == "s1" else ("bands", "level")
        sample |= {f"{sensor}_{key}": row[f"{sensor}_{key}"] if wanted else None for key in keys}
        sample[f"{sensor}_dates"] = row[f"{sensor}_dates"] if wanted else []
        sample[f"{sensor}_valid"] = None
        if wanted and f"{sensor}_valid" not in there:
            sample[f"{sensor}_valid"] = np.ones((len(values), *values.shape[2:]), bool)
        elif wanted:
            sample[f"{sensor}_valid"] = mask = raster(f"{sensor}_valid")
            if mask.shape != (len(values), *values.shape[2:]):
                raise ValueError(f"{sensor}_valid has shape {mask.shape}")
    if sample["s2_bands"] is not None:
        sample["s2_bands"] = np.array(sample["s2_bands"], bool).reshape(-1, 13)
    if labels and "lc" in there:
        sample["lc"] = raster("lc")
    extra = json.loads(row["extra"] or "{}")
    return sample | {key: value for key, value in extra.items() if key not in _KNOWN or key in _LOOSE}


def verify_shards(root: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """Everything that is wrong with shards: sizes, SHA-256, rows, and every raster unpacked and held to the index.

    Yields:
        (name of the shard or id of the sample, what is wrong); nothing where all is well.

    Raises:
        DataError: there are no shards, or the index cannot be read.
    """
    source = ShardFolder(root)
    digest, expected = hashlib.sha256(source._fetch("index.parquet")).hexdigest(), source.manifest.get("index_sha256")
    if digest != expected:
        yield "index.parquet", f"has SHA-256 {digest}, the manifest says {expected}"
    for name, about in source.manifest["shards"].items():
        path = f"{source._path}/data/{name}"
        try:
            with source._fs.open(path, "rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            with source._fs.open(path, "rb") as handle:
                rows = pq.ParquetFile(handle).metadata.num_rows
        except pa.ArrowException as error:
            yield name, f"cannot be read ({str(error).splitlines()[0]})"
            continue
        except Exception as error:
            problem = source._unreachable(error, name)
            if problem is error:
                raise
            yield name, str(problem)
            continue
        if (digest, rows) != (about["sha256"], about["rows"]):
            expected = f"{about['rows']} and {about['sha256']}"
            yield name, f"holds {rows} rows and has SHA-256 {digest}, the manifest says {expected}"
    listed = collections.Counter(source._table["shard"].to_pylist())
    for name in listed.keys() | source.manifest["shards"].keys():
        expected = source.manifest["shards"].get(name, {}).get("rows", 0)
        if listed[name] != expected:
            yield name, f"the index has {listed[name]} rows of it, the manifest {expected}"
    for i, id in enumerate(source.ids):
        try:
            source[i]
        except DataError as error:
            yield id, str(error)


__all__ = [
    "INDEX_SCHEMA", "RASTERS", "SCHEMA", "ShardFolder", "row_sample", "sample_row", "verify_shards", "write_shard",
]  # fmt: skip
