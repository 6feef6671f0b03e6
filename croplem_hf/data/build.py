"""Building shards: the work in processes, what remembers how far it is, and what lies around the shards.

A build that was stopped, however, goes on where it was: what is in a shard is a function of the arguments and of the
source, a shard stands under its name only when it is whole, and a record beside it says so. Finished shards are the
same bytes whatever the number of processes.
"""

import concurrent.futures
import contextlib
import csv
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from .. import __version__
from ..errors import DataError
from .archives import Archives, SpilledGroup
from .card import dataset_card
from .files import GENERATED, write_aside
from .shard_plan import Shard, choose_splits, patch_scene, patch_season, plan_shards
from .shards import FORMAT, INDEX_SCHEMA, write_shard
from .splits import SPLITS
from .workers import available_cpus, worker_pool, worker_source

logger = logging.getLogger(__name__)

SPILL_BYTES = 50 * 2**30
"""Disk for patches that wait while archives are joined, by default."""

_RECORDS = ".build"
# A shard of so many items or more of which none can be read says that the source is gone, not that they are damaged.
_MANY = 8
_SPOILED = re.compile("CRC|[Ii]ncorrect length")


def build_shards(
    src: str | os.PathLike,
    out: str | os.PathLike,
    *,
    seasons: Sequence[str] | None = None,
    limit: int | None = None,
    sensors: Sequence[str] | None = None,
    findings: str | os.PathLike | None = None,
    workers: int | None = None,
    spill_bytes: int = SPILL_BYTES,
    progress: bool = True,
) -> dict:
    """Turn images into a folder of Parquet shards, which is a dataset of the Hub as it lies there.

    Args:
        src: a SEN12MS tree, a folder with its `.tar.gz` archives, or any folder of images that `open_source` takes.
        out: the folder; a build that was cut off there goes on, and seasons may be added by a later call.
        seasons: which seasons of SEN12MS; None for all that are there.
        limit: how many samples, evenly over the sorted ids, so over scenes, and over the places within a scene.
        sensors: which of "s1" and "s2"; None for all that are there.
        findings: table of `croplem data check`; its errors are left out.
        workers: processes; None for one a core.
        spill_bytes: disk that may be used below `out` while archives are joined.
        progress: whether to show a bar on stderr.

    Returns:
        The manifest: shards with rows, bytes and SHA-256, rows of each split, skipped items.

    Raises:
        DataError: nothing to build from, or `out` holds other things or the shards of another selection.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise DataError(f"workers must be at least 1, found {workers}")
    source = _open(src, seasons, sensors)
    left_out = _left_out(findings)
    listed = _of_seasons(source, seasons)
    ids = [id for id in listed if id not in left_out]
    if limit is not None:
        if limit < 1:
            raise DataError(f"limit must be at least 1, found {limit}")
        ids = [ids[k] for k in np.unique(np.linspace(0, len(ids) - 1, min(limit, len(ids))).round().astype(int))]
    if not ids:
        raise DataError(f"{src}: nothing is left to build from")
    whole = set()
    if isinstance(source, Archives) and limit is None:
        whole = {patch_season(id) for id in ids}
    with _alone(out):
        _prepare(out)
        known = _read_plan(out)
        splits = choose_splits(source, known.get("scenes", {}))
        shards = plan_shards(source, ids, splits)
        scenes = {patch_scene(id): splits[id] for id in ids} if source.kind == "sen12ms" else {}
        about = {"format": FORMAT, "source": source.kind, "unit": source.unit, "sensors": sorted(source.sensors),
                 "seasonal": source.seasonal, "generated": Path(src, GENERATED).is_file()}  # fmt: skip
        skipped = {id: "; ".join(left_out[id]) for id in listed if id in left_out}
        plan = _write_plan(out, known, about, shards, scenes, skipped)

        # What was skipped is tried again: the source may have been mended, or only away.
        waiting = [shard for shard in shards if not (record := _record(out, shard)) or record["skipped"]]
        bar = tqdm(total=len(shards), initial=len(shards) - len(waiting), unit="shard", desc=f"building {out.name}",
                   disable=None if progress else True)  # fmt: skip
        with bar:
            # Archives are read to their end, where their checksum stands: once, and again when more is taken of them.
            again = {shard.season for shard in waiting}
            plan["read"] = [season for season in plan["read"] if season not in again]
            unread = sorted(whole.difference(plan["read"]))
            for _ in _work(source, waiting, out, workers, spill_bytes, unread):
                bar.update()
                if isinstance(source, Archives) and not source.read <= set(plan["read"]):
                    plan["read"] = sorted(source.read.union(plan["read"]))
                    _write_text(out / _RECORDS / "plan.json", json.dumps(plan, indent=1))
        if isinstance(source, Archives):
            shutil.rmtree(out / _RECORDS / "spill", ignore_errors=True)
            plan["read"] = sorted(source.read.union(plan["read"]))
            _settle(source, shards, out, plan)
        return _finish(out, plan)


def _open(src: str | os.PathLike, seasons: Sequence[str] | None, sensors: Sequence[str] | None):
    if Path(src).exists() and Archives.recognises(src):
        kinds = (*(sensors or ("s1", "s2")), "lc")
        return Archives(src, seasons=seasons, kinds=kinds)
    from . import open_source

    source = open_source(src, sensors=sensors)
    if source.kind in ("series", "shards"):
        raise DataError(f"{src}: is a table of {source.kind} already; shards are built from images")
    return source


def _of_seasons(source, seasons: Sequence[str] | None) -> list[str]:
    if seasons is None:
        return source.ids
    if source.kind != "sen12ms":
        raise DataError(f"seasons are those of SEN12MS; a {source.kind} source has none")
    found = sorted({patch_season(id) for id in source.ids})
    missing = [season for season in seasons if season not in found]
    if missing:
        raise DataError(f"no patch of {' or '.join(missing)} there, only of {', '.join(found)}")
    return [id for id in source.ids if patch_season(id) in seasons]


def _left_out(findings: str | os.PathLike | None) -> dict[str, list[str]]:
    if findings is None:
        return {}
    from .check import read_findings

    return read_findings(findings)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One build at a time in a folder."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give the name of a folder")
    (out / _RECORDS).mkdir(parents=True, exist_ok=True)
    with open(out / _RECORDS / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{out}: another build is at work there; wait for it") from error
        yield


def _prepare(out: Path) -> None:
    ours = {"README.md", "manifest.json", "index.parquet", "skipped.csv", "data", _RECORDS}
    # Hidden files are those of tools, and parts of a build that was killed.
    strange = sorted(path.name for path in out.iterdir() if path.name not in ours and not path.name.startswith("."))
    if strange:
        raise DataError(f"{out}: holds other things, such as {strange[0]}; give a new folder, or that of a build")
    (out / "data").mkdir(exist_ok=True)
    folders = (out, out / "data", out / _RECORDS)
    for part in (*(part for folder in folders for part in folder.glob(".*.part")), out / _RECORDS / "spill"):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _read_plan(out: Path) -> dict:
    path = out / _RECORDS / "plan.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        if any((out / "data").iterdir()) or (out / "manifest.json").exists():
            raise DataError(f"{out}: holds shards but not how they were planned; build into a new folder") from None
        return {}
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); build into a new folder") from error


def _write_plan(
    out: Path, known: dict, about: dict, shards: list[Shard], scenes: dict[str, str], skipped: dict[str, str]
) -> dict:
    """The plan with these shards: of the seasons of an earlier call, the very same shards."""
    if known and known["about"] != about:
        differing = [key for key in about if known["about"].get(key) != about[key]]
        raise DataError(
            f"{out}: holds shards with other {', '.join(differing)} "
            f"({', '.join(str(known['about'].get(key)) for key in differing)}); build into a new folder"
        )
    plan = {"about": about, "groups": {}, "scenes": {}, "skipped": {}, "read": []} | known
    groups: dict[str, dict[str, str]] = {}
    for shard in shards:
        groups.setdefault(shard.season, {})[shard.name] = shard.hash
    for season, members in groups.items():
        if plan["groups"].get(season, members) != members:
            raise DataError(
                f"{out}: holds shards of another selection of {season or 'this source'}; build into a new folder, or "
                "give the arguments of the first build"
            )
        plan["groups"][season] = members
    plan["scenes"] |= scenes
    plan["skipped"] |= skipped
    _write_text(out / _RECORDS / "plan.json", json.dumps(plan, indent=1))
    return plan


def _work(
    source, shards: list[Shard], out: Path, workers: int | None, spill_bytes: int, unread: Sequence[str]
) -> Iterator[str]:
    """Make the shards, in any order; gives their names as they are done. Archives of `unread` are read to the end."""
    workers = min(workers or available_cpus(), max(len(shards), 1))
    if not shards and not unread:
        return
    groups = _groups(source, shards, out, spill_bytes, unread)
    if workers == 1:
        for shard, group in groups:
            _make(source if group is None else group, shard, out)
            yield shard.name
        return
    with worker_pool(workers, None if isinstance(source, Archives) else source) as pool:
        try:
            pending = set()
            for shard, group in groups:
                pending.add(pool.submit(_make_here, shard, out, group))
                # What is handed out is on disk, so little is handed out ahead.
                while len(pending) >= 2 * workers:
                    done, pending = concurrent.futures.wait(pending, return_when="FIRST_COMPLETED")
                    yield from (future.result() for future in done)
            for future in concurrent.futures.as_completed(pending):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise DataError(
                f"{out}: a worker was killed, by lack of memory perhaps; run the same command again, with fewer workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _groups(
    source, shards: list[Shard], out: Path, spill_bytes: int, unread: Sequence[str]
) -> Iterator[tuple[Shard, object]]:
    if not isinstance(source, Archives):
        yield from ((shard, None) for shard in shards)
        return
    spill = out / _RECORDS / "spill"
    for number, group in source.spilled_groups([shard.ids for shard in shards], spill, spill_bytes, unread):
        yield shards[number], group


def _settle(source: Archives, shards: list[Shard], out: Path, plan: dict) -> None:
    """What was found in archives while they were read; shards that lack what lies behind damage are taken back."""
    if source.damaged:
        back = 0
        # A checksum that fails at the end of an archive says that anything before it may be wrong.
        spoiled = {patch_season(name) for name, reason in source.damaged.items() if _SPOILED.search(reason)}
        for shard in shards:
            record = _record(out, shard)
            if record and (
                shard.season in spoiled
                or any(damage in reason for _, reason in record["skipped"] for damage in source.damaged.values())
            ):
                (out / _RECORDS / shard.name).unlink()
                (out / "data" / shard.name).unlink()
                back += 1
        if back:
            _write_text(out / _RECORDS / "plan.json", json.dumps(plan, indent=1))
            raise DataError(
                f"{'; '.join(source.damaged.values())}. {back} shards lack patches for that, or may hold wrong ones, "
                "and are left out, not the others: fetch the archives again and run the same command; or unpack what "
                "can be read, and build from that tree into a new folder"
            )
    plan["skipped"] |= source.refused | {
        id: "not in the smallest archive of its season, by which shards are planned" for id in source.unlisted
    }
    _write_text(out / _RECORDS / "plan.json", json.dumps(plan, indent=1))


def _make_here(shard: Shard, out: Path, group) -> str:
    return _make(worker_source() if group is None else group, shard, out)


def _make(source, shard: Shard, out: Path) -> str:
    """Write one shard and the record that it is whole."""
    place = {id: i for i, id in enumerate(source.ids)}
    skipped: list[tuple[str, str]] = []

    def samples() -> Iterator[dict]:
        for id in shard.ids:
            try:
                yield source[place[id]]
            except DataError as error:
                skipped.append((id, str(error)))

    path = out / "data" / shard.name
    rows = write_shard(path, samples(), shard.split)
    # What lies behind the damage of an archive is no sign of that; `_settle` sees to it.
    if not rows and len(skipped) >= _MANY and not isinstance(source, SpilledGroup):
        path.unlink()
        raise DataError(
            f"{shard.name}: none of its {len(skipped)} items can be read, the first: {skipped[0][1]}. Is the disk "
            "still there? If so, leave them out by a table of `croplem data check`; shards that are done are kept"
        )
    record = {"plan": shard.hash, "bytes": path.stat().st_size, "sha256": _sha256(path), "rows": len(rows)}
    record["skipped"] = skipped
    with write_aside(out / _RECORDS / shard.name) as aside:
        pq.write_table(rows.replace_schema_metadata({"croplem": json.dumps(record)}), aside, compression="zstd")
    if hasattr(source, "delete"):
        source.delete()
    return shard.name


def _record(out: Path, shard: Shard) -> dict | None:
    """What is known of a shard that is whole, else None."""
    try:
        record = json.loads(pq.read_schema(out / _RECORDS / shard.name).metadata[b"croplem"])
        whole = record["plan"] == shard.hash and record["bytes"] == (out / "data" / shard.name).stat().st_size
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return record if whole else None


def _finish(out: Path, plan: dict) -> dict:
    """Index, manifest, card and list of skipped items, over the shards of all seasons that are whole."""
    tables, shards, skipped = [], {}, dict(plan["skipped"])
    for names in plan["groups"].values():
        for name in names:
            path = out / _RECORDS / name
            try:
                table = pq.read_table(path, partitioning=None)
            except FileNotFoundError:
                raise DataError(f"{out}: {name} of an earlier build is not finished; run that build again") from None
            record = json.loads(table.schema.metadata[b"croplem"])
            shard = out / "data" / name
            if not shard.is_file() or shard.stat().st_size != record["bytes"]:
                raise DataError(f"{shard}: of an earlier build, missing or changed; run that build again")
            skipped |= dict(record["skipped"])
            shards[name] = {key: record[key] for key in ("rows", "bytes", "sha256")}
            tables.append(table.replace_schema_metadata(None).cast(INDEX_SCHEMA))
    index = pa.concat_tables(tables)
    if len(index) == 0:
        raise DataError(f"{out}: not one sample could be read; the first: {next(iter(skipped.values()), 'none')}")
    there = set(index["id"].to_pylist())
    skipped = {id: reason for id, reason in skipped.items() if id not in there}
    counts = Counter(index["split"].to_pylist())
    manifest = plan["about"] | {
        "croplem_version": __version__, "samples": len(index), "skipped": len(skipped),
        "splits": {split: counts[split] for split in SPLITS if counts[split]},
        "seasons": [season for season in plan["groups"] if season], "shards": shards,
    }  # fmt: skip
    with write_aside(out / "index.parquet") as aside:
        pq.write_table(index, aside, compression="zstd", row_group_size=65536)
        manifest["index_sha256"] = _sha256(aside)
    with write_aside(out / "skipped.csv") as aside, open(aside, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("id", "reason"), *sorted(skipped.items())])
    _write_text(out / "manifest.json", json.dumps(manifest, indent=1))
    _write_text(out / "README.md", dataset_card(manifest))
    return manifest


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


__all__ = ["SPILL_BYTES", "build_shards"]
