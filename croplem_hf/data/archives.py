"""SEN12MS from its twelve archives, without unpacking them: the streams of a season are read side by side and joined.

The archives of a season (`ROIs1158_spring_s1.tar.gz`, `_s2`, `_lc`) cannot be read from the middle, and each may hold
the patches in an order of its own. What waits for its partners lies on disk, one file for each group of patches.
"""

import json
import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import DataError
from .files import write_aside
from .geotiff import read_geotiff
from .sen12ms import BAD_PATCHES, KINDS, PATCH_NAME, SEASON_DATES, patch_order
from .spill import Joining, SpilledGroup, season_of
from .splits import from_middle
from .tarstream import Member, TarStream

logger = logging.getLogger(__name__)

_ARCHIVE_NAME = re.compile(r"^(ROIs\d+_([a-z]+))_(s1|s2|lc)\.(?:tar\.gz|tgz|tar)$")
_WARNED = 5


class Archives:
    """The patches of SEN12MS in a folder of its archives (or in one of them), to be read in groups.

    Opening makes an inventory: one pass over the smallest archive of every season (land cover: 47 GB of the 450 GB in
    all), which is remembered in `ROIs1158_spring_inventory.json` beside the archives. Where that archive is damaged the
    next one is passed over too.

    Args:
        path: the folder, or one archive; `.tar.gz`, `.tgz` or `.tar`, named as they are published.
        seasons: which of "winter", "spring", "summer", "fall"; None for all that are there.
        kinds: which of "s1", "s2" and "lc" to read.
        skip: ids left out.

    Attributes:
        ids: of the patches of the inventory, in the order of `SEN12MSFolder`.
        scenes: (longitude, latitude) of the centre of each scene's readable patch nearest its middle, by
            "ROIs1158_spring_1"; a scene without a readable patch there, or without coordinates, is not in it.
        present: the kinds of a patch that the inventory saw, by id: mostly ("lc",).
        damaged: what is wrong with an archive, by its name; filled by the inventory and by `spilled_groups`. A checksum
            that fails at the very end of an archive comes here too: groups of that season that were read before may be
            damaged.
        unlisted: ids that `spilled_groups` came upon and the inventory did not know.
        read: seasons, such as "spring", whose archives `spilled_groups` read to the end and found whole.
        refused: members that were not read (links, second copies, huge, ...) and why, by "archive/member".

    Raises:
        DataError: no archive there, none of the seasons or kinds, one archive twice, or no patch in any.
    """

    kind = "sen12ms"
    unit = "patch"
    seasonal = True

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        seasons: Sequence[str] | None = None,
        kinds: Sequence[str] = KINDS,
        skip: Collection[str] = BAD_PATCHES,
    ):
        self.path = Path(path)
        if not set(kinds) & {"s1", "s2"} or not set(kinds) <= set(KINDS):
            raise DataError(f'kinds must be some of {KINDS}, with "s1" or "s2" among them; found {tuple(kinds)!r}')
        if seasons is not None and not set(seasons) <= set(SEASON_DATES):
            raise DataError(f"seasons must be some of {tuple(SEASON_DATES)}, found {tuple(seasons)!r}")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        found = _find(self.path)
        self._archives = {key: files for key, files in found.items() if not seasons or key.split("_")[1] in seasons}
        if not self._archives:
            raise DataError(f"{self.path}: no archive of {' or '.join(seasons or SEASON_DATES)}, only of {list(found)}")
        held = {kind for files in self._archives.values() for kind in files}
        self.sensors = tuple(kind for kind in self.kinds if kind in held and kind != "lc")
        if not self.sensors:
            raise DataError(f"{self.path}: no archive of {' or '.join(self.kinds)}, only of {sorted(held)}")
        self.damaged: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.unlisted: set[str] = set()
        self.read: set[str] = set()
        self.scenes: dict[str, tuple[float, float]] = {}
        self.present: dict[str, tuple[str, ...]] = {}
        for season, files in self._archives.items():
            self._take_stock(season, files)
        if not self.present:
            reasons = "; ".join(self.damaged.values())
            raise DataError(f"{self.path}: no patch in the archives; {reasons or 'other files?'}")
        bad = sorted(set(skip).intersection(self.present))
        if bad:
            logger.warning("%s: leaving out %d patches known as damaged: %s", path, len(bad), ", ".join(bad[:_WARNED]))
        self._skip = frozenset(skip)
        self.ids = sorted(set(self.present).difference(bad), key=patch_order)

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def recognises(path: str | os.PathLike) -> bool:
        """Whether `path` is an archive of SEN12MS, or a folder that holds one."""
        path = Path(path)
        names = os.listdir(path) if path.is_dir() else [path.name] * path.is_file()
        return any(map(_ARCHIVE_NAME.match, names))

    def spilled_groups(
        self,
        wanted: Sequence[Sequence[str]],
        spill: str | os.PathLike,
        spill_bytes: int,
        to_end: Collection[str] = (),
    ) -> Iterator[tuple[int, "SpilledGroup"]]:
        """Join the archives, and give out each group of patches as soon as it is complete.

        A patch is complete with all kinds of which its season has an archive. At the end of the archives it is an item
        with the sensors that were there, or an error if a file of it was damaged or lies behind the damage of an
        archive: a damaged sensor is never passed over for the other one. What can be given is always given; look at
        `damaged`, `unlisted` and `refused` afterwards.

        Land cover is read first, then radar and optics in step; only radar while more than half of `spill_bytes` waits.
        Where that is not enough, groups are let go and read in another pass. So the disk that is needed is at most
        `spill_bytes`, or one group and one patch if that is more, and the groups that were given out and not deleted
        yet. One pass is enough where S1 and land cover of a season fit, with some S2 for groups of patches
        from two scenes: at most some 50 GB for fall; 15 GB where the archives have one order.

        Args:
            wanted: ids of each group; groups that are done already may be empty, and are not given out.
            spill: a folder for this call alone; spilled files that an earlier call left there are removed.
            spill_bytes: of the groups that wait.
            to_end: seasons, such as "spring", whose archives are read to their end, where the checksum stands,
                even if nothing or no more is wanted of them. Others are left as soon as all is there.

        Yields:
            (place in `wanted`, `SpilledGroup`), in no order. Its taker deletes it.

        Raises:
            DataError: an id in two groups, an id of no patch, or no space on the disk.
        """
        joining = Joining(wanted, Path(spill), spill_bytes)
        unread = {season for season in self._archives if season.split("_")[1] in to_end}
        with joining:
            while joining.waiting or unread:
                joining.start_pass()
                present = {season_of(id) for id in joining.group_of} | unread
                for season in sorted(present.difference(self._archives)):
                    joining.expect(season, (), f"{self.path}: no archive of {season} here")
                for season in sorted(present.intersection(self._archives)):
                    yield from self._read_season(season, joining, season in unread)
                unread.clear()
                yield from joining.finished()
        if self.unlisted:
            logger.warning(
                "%s: %d patches are not in the smallest archive of their season, so *_inventory.json lacks them "
                "and they are in no group: %s, ...; download that archive again, or unpack all and open the folder",
                self.path, len(self.unlisted), ", ".join(sorted(self.unlisted)[:_WARNED]),
            )  # fmt: skip

    def _read_season(self, season: str, joining: Joining, to_end: bool) -> Iterator[tuple[int, "SpilledGroup"]]:
        files = {kind: path for kind, path in self._archives[season].items() if kind in self.kinds}
        joining.expect(season, tuple(files))
        streams = {kind: self._patches(season, kind, path) for kind, path in files.items()}
        known = {id for id in self.present if season_of(id) == season}
        taken, sound = dict.fromkeys(streams, 0), True
        try:
            while streams and (to_end or joining.needs(season)):
                kind = _turn(taken, streams, joining)
                try:
                    id, name, problem, stream = next(streams[kind])
                    if id not in known and id not in self._skip:
                        self.unlisted.add(id)
                    if problem:
                        joining.refuse(id, kind, f"{name}: {problem}")
                    elif joining.wants(id, kind):
                        joining.add(id, kind, name, stream.read())
                        taken[kind] += 1
                except StopIteration:
                    del streams[kind]
                    joining.settle(season, kind, None)
                except _Damaged as error:
                    sound = False
                    streams.pop(kind).close()
                    joining.settle(season, kind, str(error))
                yield from joining.finished()
            if sound and not streams:
                self.read.add(season.split("_")[1])
        finally:
            for stream in streams.values():
                stream.close()

    def _patches(self, season: str, kind: str, path: Path) -> Iterator[tuple[str, str, str | None, "_Reading"]]:
        """Each patch of an archive once: id, "archive/member", why it must not be read or None, and its stream."""
        stream = _Reading(path, self.damaged)
        seen = set()
        for member in stream:
            match = PATCH_NAME.match(member.name.rpartition("/")[2])
            if match is None or not match[0].isascii() or len(match[0]) > 80 or len(match[4]) > 9:
                continue
            name, problem = f"{path.name}/{member.name}", member.problem
            id = f"{match[1]}_{match[3]}_p{match[4]}"
            if (match[1], match[2]) != (season, kind):
                self._refuse(name, f"it is no {kind} of {season}")
                continue
            if id in seen:
                self._refuse(name, "the same patch a second time")
                continue
            seen.add(id)
            if problem:
                self._refuse(name, problem)
            yield id, name, problem, stream

    def _refuse(self, name: str, problem: str) -> None:
        if name not in self.refused:
            self.refused[name] = problem
            if len(self.refused) <= _WARNED:
                logger.warning("%s: not read: %s", name, problem)

    def _take_stock(self, season: str, files: Mapping[str, Path]) -> None:
        """Fill `present` and `scenes` for a season, from its inventory or by a pass over its smallest archive."""
        memo = next(iter(files.values())).parent / f"{season}_inventory.json"
        stock = _load(memo, season, files)
        if stock is None:
            stock = {"archives": {}, "patches": {}, "scenes": {}, "damaged": {}}
            for kind, path in sorted(files.items(), key=lambda item: item[1].stat().st_size):
                stock["archives"][kind] = _stamp(path)
                if self._list(season, kind, path, stock):
                    _save(memo, stock)
                    break
                stock["damaged"][path.name] = self.damaged[path.name]
        self.damaged |= stock["damaged"]
        for kind, ids in stock["patches"].items():
            for id in ids:
                self.present[id] = (*self.present.get(id, ()), kind)
        self.scenes |= {scene: (place[2], place[3]) for scene, place in sorted(stock["scenes"].items())}

    def _list(self, season: str, kind: str, path: Path, stock: dict) -> bool:
        """One pass over an archive into `stock`; whether it was whole."""
        logger.info("%s: listing its patches", path)
        ids, scenes = stock["patches"].setdefault(kind, []), stock["scenes"]
        size = path.stat().st_size
        try:
            with tqdm(total=size, unit="B", unit_scale=True, desc=f"listing {path.name}", disable=None) as bar:
                for id, name, problem, stream in self._patches(season, kind, path):
                    ids.append(id)
                    bar.update(stream.position - bar.n)
                    scene, _, patch = id.rpartition("_p")
                    # As `scene_places` has it of a tree: in whatever order the archive holds the patches.
                    rank = (float(from_middle(np.array([int(patch)]))[0]), int(patch))
                    if problem is None and (scene not in scenes or rank < tuple(scenes[scene][:2])):
                        place = _place(name, stream.read())
                        if place:
                            scenes[scene] = [*rank, *place]
        except _Damaged:
            return False
        return True


class _Damaged(DataError):
    """The archive cannot be read any further."""


class _Reading(TarStream):
    """A `TarStream` whose damage is noted by the name of the archive."""

    def __init__(self, path: Path, damaged: dict[str, str]):
        super().__init__(path)
        self._damaged = damaged

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from super().__iter__()
        except DataError as error:
            raise self._note(error) from error

    def read(self) -> bytes:
        try:
            return super().read()
        except DataError as error:
            raise self._note(error) from error

    def _note(self, error: DataError) -> _Damaged:
        if self.path.name not in self._damaged:
            self._damaged[self.path.name] = str(error)
            logger.warning("%s", error)
        return _Damaged(str(error))


def _turn(taken: Mapping[str, int], streams: Collection[str], joining: Joining) -> str:
    """The kind to read next: land cover first, then in step, and radar alone while much waits."""
    if "lc" in streams:
        return "lc"
    if "s1" in streams and joining.held > joining.spill_bytes // 2:
        return "s1"
    return min(streams, key=taken.__getitem__)


def _find(path: Path) -> dict[str, dict[str, Path]]:
    """Archives by season and kind."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = {}
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        match = _ARCHIVE_NAME.match(file.name)
        if match is None or not file.is_file():
            continue
        files = found.setdefault(match[1], {})
        if match[3] in files:
            raise DataError(f"the same archive twice: {files[match[3]]} and {file}; remove one")
        files[match[3]] = file
    if not found:
        raise DataError(f"{path}: no archive of SEN12MS; expected names such as ROIs1158_spring_s1.tar.gz")
    return found


def _place(name: str, data: bytes) -> tuple[float, float] | None:
    """Longitude and latitude of a raster; None if it cannot be read or does not tell."""
    try:
        _, info = read_geotiff(name, data=data)
    except DataError:
        return None
    if info.lon is None or not (math.isfinite(info.lon) and math.isfinite(info.lat)):
        return None
    return info.lon, info.lat


def _stamp(path: Path) -> list:
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _load(memo: Path, season: str, files: Mapping[str, Path]) -> dict | None:
    """The inventory of a season; None if there is none of these very archives."""
    try:
        stock = json.loads(memo.read_text(encoding="utf-8"))
        if any(_stamp(files[kind]) != stamp for kind, stamp in stock["archives"].items()):
            return None
        ids = [id for kind in stock["archives"] for id in stock["patches"][kind]]
        places = [tuple(map(float, place)) for place in stock["scenes"].values()]
        good = all(season_of(id) == season for id in ids) and all(len(place) == 4 for place in places)
        return stock if good and isinstance(stock["damaged"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _save(memo: Path, stock: dict) -> None:
    try:
        with write_aside(memo) as aside:
            aside.write_text(json.dumps(stock), encoding="utf-8")
    except OSError as error:
        logger.warning("%s: the inventory cannot be kept (%s), the next start makes it anew", memo, error.strerror)


__all__ = ["Archives", "SpilledGroup"]
