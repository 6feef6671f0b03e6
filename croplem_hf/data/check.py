"""`croplem data check`: every file of a source opened, every pixel read, what is wrong with it in a table.

The table has a row a finding: `id` of the item ("" where there is none, as of a shard), `file` below the source, `kind`
(one of `pixel_checks.KINDS`), `severity` ("error": the item cannot be used; "warning": it can, look at it), `detail`,
and `share`, of the pixels, where there is one. Readers leave out the items with errors (`read_findings`).
"""

import collections
import concurrent.futures
import datetime
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .. import __version__, data
from ..errors import DataError
from .codec import checksum
from .files import entry_kind, write_aside
from .geotiff import read_geotiff
from .pixel_checks import Look, look_at_raster, look_at_sample, words
from .sen12ms import BAD_PATCHES, KINDS, PATCH_NAME, SEASON_DATES, check_same_grid, patch_order, read_patch
from .shards import ShardFolder, verify_shards
from .workers import available_cpus, worker_pool, worker_source

_TEXTS = ("id", "file", "kind", "severity", "detail")
SCHEMA = pa.schema([*((name, pa.string()) for name in _TEXTS), ("share", pa.float64())])
_ABOUT = b"croplem_findings"
# Items that a process takes at once, about a second of work.
_CHUNK = 64
_EXAMPLES = 3

Row = tuple[str, str, str, str, str, float | None]
# Findings, and of each raster that could be read its checksum, id and file.
Result = tuple[list[Row], list[tuple[int, str, str]]]
Files = dict[str, str]


def check_source(
    src: str | os.PathLike,
    *,
    workers: int | None = None,
    seasons: Sequence[str] | None = None,
    progress: bool = False,
) -> pa.Table:
    """Read every pixel of a source and say what is wrong.

    Args:
        src: anything that `open_source` takes. Of a SEN12MS tree every file is looked at for itself; of shards the
            checksums are verified too; of other sources every sample is read.
        workers: processes; None for one a core. The findings are the same with any number.
        seasons: only these, such as ("summer", "fall").
        progress: show a bar on stderr.

    Returns:
        The findings in the order of the items; `about_findings` gives the counts.

    Raises:
        DataError: nothing there that can be read as a source, a season that is not there, or a process was killed.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise DataError(f"workers must be 1 or more, found {workers}")
    if _is_tree(src):
        source, check = str(src), _check_patch
        tree, rows = _scan(Path(src), seasons)
        ids = sorted(tree, key=patch_order)
        tasks = [(id, {kind: tree[id][kind] for kind in KINDS if kind in tree[id]}) for id in ids]
        rows += _missing_partners(tasks)
    else:
        source, check = data.open_source(src), _check_sample
        tasks = _of_seasons(source, src, seasons)
        ids = [source.ids[i] for i in tasks]
        rows = _check_shards(source) if isinstance(source, ShardFolder) else []
        damaged = {row[0] for row in rows}
        tasks = [i for i in tasks if source.ids[i] not in damaged]
    first: dict[int, str] = {}
    with tqdm(total=len(tasks), unit="item", disable=not progress) as bar:
        for count, (found, rasters) in _run(check, source, tasks, workers or available_cpus()):
            rows += found
            for digest, id, file in rasters:
                if first.setdefault(digest, id) != id:
                    rows.append((id, file, "duplicate", "warning", f"the same pixels as {first[digest]}", None))
            bar.update(count)
    order = {id: n for n, id in enumerate(ids)}
    rows.sort(key=lambda row: (order.get(row[0], -1), row[:5]))
    severities = collections.Counter(row[3] for row in rows)
    about = {
        "source": str(src),
        "seasons": list(seasons) if seasons else None,
        "version": __version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "items": len(ids),
        "items_with_errors": len({row[0] for row in rows if row[0] and row[3] == "error"}),
        "errors": severities["error"],
        "warnings": severities["warning"],
        "kinds": dict(sorted(collections.Counter(f"{row[3]} {row[2]}" for row in rows).items())),
    }
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata({_ABOUT: json.dumps(about)}))


def about_findings(table: pa.Table) -> dict:
    """What was checked: `source`, `seasons`, `version`, `time`, `seconds`, and the counts `items`, `items_with_errors`,
    `errors`, `warnings`, `kinds` ("error truncated": 3)."""
    return json.loads(table.schema.metadata[_ABOUT])


def summarise_findings(table: pa.Table) -> str:
    """The counts by kind, each with its first examples, for people."""
    about = about_findings(table)
    lines = [
        f"{about['items']} items checked in {about['seconds']:.0f} s: {about['errors']} errors in "
        f"{about['items_with_errors']} items, {about['warnings']} warnings"
    ]
    examples: dict[str, list[str]] = {}
    for row in table.to_pylist():
        shown = examples.setdefault(f"{row['severity']} {row['kind']}", [])
        if len(shown) < _EXAMPLES:
            shown.append(f"    {': '.join(text for text in (row['file'] or row['id'], row['detail']) if text)}")
    for name, count in about["kinds"].items():
        lines += [f"{name}: {count}", *examples[name], *(["    ..."] if count > _EXAMPLES else [])]
    return "\n".join(lines)


def check_replaceable(path: str | os.PathLike) -> None:
    """Refuse to write findings where something else lies.

    Raises:
        DataError: a file that is no table of findings.
    """
    if os.path.exists(path):
        try:
            ours = _ABOUT in (pq.read_schema(path).metadata or {})
        except (pa.ArrowException, OSError):
            ours = False
        if not ours:
            raise DataError(f"{path}: exists and is no table of findings; give another name")


def write_findings(table: pa.Table, path: str | os.PathLike) -> Path:
    """Write the table of `check_source` as Parquet: aside first, then renamed, so no half file ever shows."""
    path = Path(path)
    with write_aside(path) as aside:
        pq.write_table(table, aside)
    return path


def read_findings(path: str | os.PathLike) -> dict[str, list[str]]:
    """Items that cannot be used by a table of `write_findings`: id -> what is wrong, each as "kind: detail".

    Raises:
        DataError: no such file, or not a table of findings.
    """
    path = Path(path)
    try:
        table = pq.read_table(path)
        rows = table.select(_TEXTS).to_pylist()
        about_findings(table)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `croplem data check SRC --out {path}` writes one") from error
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a table that `croplem data check` wrote ({reason}); write it again") from error
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["severity"] == "error" and row["id"]:
            found.setdefault(row["id"], []).append(f"{row['kind']}: {row['detail']}")
    return found


def _is_tree(src: str | os.PathLike) -> bool:
    """Whether `open_source` would take it for SEN12MS, which it does with any folder that it does not know."""
    path = Path(src)
    return "://" not in str(src) and path.is_dir() and data.reader_of(path) == "SEN12MSFolder"


def _scan(root: Path, seasons: Sequence[str] | None) -> tuple[dict[str, Files], list[Row]]:
    """The files of each patch by kind, paths below root, and what is wrong with the tree itself."""
    found: dict[str, Files] = {}
    rows: list[Row] = []
    there, visited, stack = set(), set(), [""]
    while stack:
        below = stack.pop()
        try:
            status = os.stat(root / below)
            entries = sorted(os.scandir(root / below), key=lambda entry: entry.name)
        except OSError as error:
            detail = f"the folder cannot be read ({error.strerror})"
            rows.append(("", below or ".", "not_a_file", "error", detail, None))
            continue
        # Links may lead back up or twice to the same folder.
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        folders = []
        for entry in entries:
            match, what, file = PATCH_NAME.match(entry.name), entry_kind(entry), os.path.join(below, entry.name)
            if match is None:
                folders += [file] if what == "folder" else []
                continue
            name, kind, scene, patch = match.groups()
            there.add(name.split("_")[1])
            if seasons and name.split("_")[1] not in seasons:
                continue
            id = f"{name}_{scene}_p{patch}"
            files = found.setdefault(id, {})
            if what != "file":
                detail = "a folder" if what == "folder" else "neither a folder nor a file, or a link that leads nowhere"
                rows.append((id, file, "not_a_file", "warning", detail, None))
            elif kind in files:
                detail = f"also at {files[kind]}; the tree cannot be opened, remove one"
                rows.append((id, file, "duplicate", "error", detail, None))
            else:
                files[kind] = file
        stack += reversed(folders)
    missing = [season for season in seasons or () if season not in there]
    if missing:
        found_there = ", ".join(sorted(there)) or "no season"
        raise DataError(f"{root}: no patch of {' or '.join(missing)} there, only of {found_there}")
    if not found and not rows:
        archives = any(root.glob("*.tar.gz"))
        remedy = "archives are checked as they are built (`croplem data build`)" if archives else "give a SEN12MS tree"
        raise DataError(f"{root}: no SEN12MS patch in this folder and nothing else that can be checked; {remedy}")
    return found, rows


def _missing_partners(tasks: list[tuple[str, Files]]) -> list[Row]:
    """Patches without a file of a kind that others of their season have: a kind that was not fetched is not missed."""
    kinds: dict[str, set[str]] = {}
    for id, files in tasks:
        kinds.setdefault(id.split("_")[1], set()).update(files)
    rows = []
    for id, files in tasks:
        missing = [kind for kind in KINDS if kind in kinds[id.split("_")[1]] and kind not in files]
        if not files.keys() & {"s1", "s2"}:
            missing = ["s1", "s2"]
        if missing and files:
            detail = f"no {' and no '.join(missing)}, only {' and '.join(files)}"
            rows.append((id, next(iter(files.values())), "missing_partner", "warning", detail, None))
    return rows


def _of_seasons(source, src: str | os.PathLike, seasons: Sequence[str] | None) -> list[int]:
    if not seasons:
        return list(range(len(source)))
    given = source.columns().get("season") if hasattr(source, "columns") else None
    if given is None:
        raise DataError(f"{src}: a {source.kind} source has no seasons; leave them out")
    missing = sorted(set(seasons).difference(given.tolist()))
    if missing:
        raise DataError(f"{src}: no item of {' or '.join(missing)} there")
    return [i for i, season in enumerate(given) if season in seasons]


def _check_shards(source: ShardFolder) -> list[Row]:
    ids, rows = set(source.ids), []
    for name, problem in verify_shards(source.root):
        file = name if name == "index.parquet" else f"data/{name}"
        id, file = (name, "") if name in ids else ("", file)
        rows.append((id, file, "shard", "error", problem, None))
    return rows


def _check_patch(root: str, task: tuple[str, Files]) -> Result:
    """Every file of a patch, then the patch as a whole."""
    id, files = task
    rows, rasters = [], []

    def add(file: str, look: Look) -> None:
        rows.append((id, file, look.kind, look.severity, look.detail, look.share))

    anyone = next(iter(files.values()), "")
    if id in BAD_PATCHES:
        add(anyone, Look("known_bad", "error", "documented as damaged; readers leave it out"))
    season = id.split("_")[1]
    if season not in SEASON_DATES:
        add(anyone, Look("season", "error", f"{season!r}, expected one of {', '.join(SEASON_DATES)}"))
    grids = []
    for kind, file in files.items():
        path = Path(root, file)
        try:
            if path.stat().st_size == 0:
                add(file, Look("empty", "error", "the file is empty; fetch it again"))
                continue
            values, info = read_geotiff(path)
            looks = list(look_at_raster(kind, values, info.nodata, str(path)))
        except (DataError, OSError, MemoryError) as error:
            what = words(error, str(path))
            add(file, Look("truncated" if "cut short" in what else "unreadable", "error", what))
            continue
        for look in looks:
            add(file, look)
        if info.crs is None:
            add(file, Look("place", "warning", "no coordinate system: where the patch lies is unknown"))
        grids.append((file, (values.shape[-2:], info)))
        if kind != "lc":
            rasters.append((checksum(values), id, file))
    # Of three files, the one that differs is named.
    differing = min(([*_differing(one, grids)] for one in grids), key=len, default=[])
    for file, detail in differing:
        add(file, Look("grid", "error", detail))
    # The reader has the last word: what has no error here can be read.
    if files.keys() & {"s1", "s2"} and not any(row[3] == "error" for row in rows):
        try:
            read_patch(id, {kind: Path(root, file) for kind, file in files.items()})
        except DataError as error:
            add(anyone, Look("unreadable", "error", " ".join(str(error).split())))
    return rows, rasters


def _differing(one: tuple, grids: list[tuple]) -> Iterator[tuple[str, str]]:
    for file, grid in grids:
        try:
            check_same_grid(Path(one[0]), one[1], Path(file), grid)
        except DataError as error:
            yield file, " ".join(str(error).split())


def _check_sample(source, i: int) -> Result:
    id = source.ids[i]
    try:
        found = list(look_at_sample(source[i]))
    except (DataError, OSError, MemoryError) as error:
        return [(id, "", "unreadable", "error", words(error, id), None)], []
    return [(id, "", look.kind, look.severity, f"{sensor}: {look.detail}", look.share) for sensor, look in found], []


def _run(check: Callable, source, tasks: list, workers: int) -> Iterator[tuple[int, Result]]:
    """Results of chunks of tasks in their order, and of how many tasks each is; little is handed out ahead."""
    chunks = (tasks[start : start + _CHUNK] for start in range(0, len(tasks), _CHUNK))
    workers = min(workers, -(-len(tasks) // _CHUNK))
    if workers <= 1:
        yield from ((len(chunk), _check_chunk(check, source, chunk)) for chunk in chunks)
        return
    with worker_pool(workers, source) as pool:
        try:
            pending = collections.deque()
            for chunk in chunks:
                pending.append((chunk, pool.submit(_check_here, check, chunk)))
                if len(pending) >= 2 * workers:
                    yield _oldest(pending)
            while pending:
                yield _oldest(pending)
        except concurrent.futures.process.BrokenProcessPool as error:
            # Those behind the oldest were not waited for.
            raise DataError(
                f"a process was killed, by lack of memory perhaps, at one of the items from {_name(source, pending)} "
                "on; check again with fewer workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _oldest(pending: collections.deque) -> tuple[int, Result]:
    chunk, future = pending[0]
    result = future.result()
    pending.popleft()
    return len(chunk), result


def _name(source, pending: collections.deque) -> str:
    if not pending:
        return "the first"
    task = pending[0][0][0]
    return task[0] if isinstance(task, tuple) else source.ids[task]


def _check_here(check: Callable, chunk: list) -> Result:
    return _check_chunk(check, worker_source(), chunk)


def _check_chunk(check: Callable, source, chunk: list) -> Result:
    rows, rasters = [], []
    for task in chunk:
        found, read = check(source, task)
        rows += found
        rasters += read
    return rows, rasters


__all__ = ["SCHEMA", "about_findings", "check_source", "read_findings", "summarise_findings", "write_findings"]
