"""Patches that wait on disk for their partners, while archives are joined."""

import logging
import shutil
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from .sample import Sample
from .sen12ms import KINDS, PATCH_ID, read_patch

logger = logging.getLogger(__name__)

_PATCH_BYTES = 2_600_000
"""S1, S2 and land cover of one patch as they lie in the archives, 256 x 256 pixels."""
_SPARE_BYTES = 256 * 2**20
"""What is left free on the disk of the spilled files."""


class SpilledGroup:
    """Patches that were joined, on disk: read one by one, in any process. `delete()` it when done.

    Attributes:
        ids: of its patches.
        path: its file; there is none where no patch could be read.
    """

    def __init__(self, ids: Sequence[str], path: Path, places: dict, problems: dict[str, str]):
        self.ids = list(ids)
        self.path = path
        self._places = places
        self._problems = problems

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        """Sample `i`.

        Raises:
            IndexError: past the end.
            DataError: naming the archive and member, or the id: what `read_patch` refuses, or nothing was there.
            OSError: the spilled file is gone.
        """
        id = self.ids[i]
        if id in self._problems:
            raise DataError(self._problems[id])
        names, contents = {}, {}
        try:
            with open(self.path, "rb") as file:
                for kind, (name, offset, size) in self._places[id].items():
                    file.seek(offset)
                    data = file.read(size)
                    names[kind], contents[kind] = Path(name), zlib.decompress(data) if kind == "lc" else data
        except (OSError, zlib.error) as error:
            raise OSError(f"{self.path}: {id} cannot be read back ({error}); run the same command again") from error
        return read_patch(id, {kind: names[kind] for kind in KINDS if kind in names}, contents=contents)

    def items(self) -> list[Sample | DataError]:
        """All samples in order, an error in the place of a bad one."""
        result = []
        for i in range(len(self)):
            try:
                result.append(self[i])
            except DataError as error:
                result.append(error)
        return result

    def delete(self) -> None:
        """Remove its file."""
        self.path.unlink(missing_ok=True)


class Joining:
    """What waits for its partners: a file for each group, and in memory where each member lies in it.

    A pass takes the groups that wait; a group that is let go waits for the next one.
    """

    def __init__(self, wanted: Sequence[Sequence[str]], spill: Path, spill_bytes: int):
        self.spill, self.spill_bytes = spill, spill_bytes
        self.wanted = {number: list(ids) for number, ids in enumerate(wanted) if len(ids)}
        self.waiting = set(self.wanted)
        self.group_of: dict[str, int] = {}
        for number, ids in self.wanted.items():
            for id in ids:
                if not PATCH_ID.match(id):
                    raise DataError(f"{id!r} is no id of a SEN12MS patch, such as ROIs1158_spring_1_p30")
                if id in self.group_of:
                    raise DataError(f"{id} is in group {self.group_of[id]} and again in group {number}")
                self.group_of[id] = number
        self.problems: dict[str, str] = {}
        self.bytes: dict[int, int] = {}

    def __enter__(self) -> "Joining":
        self.spill.mkdir(parents=True, exist_ok=True)
        for left in self.spill.glob("*.spill"):
            left.unlink()
        most = max(Counter(map(season_of, self.group_of)).values(), default=0) * _PATCH_BYTES
        self._check_space(min(self.spill_bytes, most))
        return self

    def __exit__(self, *_) -> None:
        for number in self.waiting:
            self._path(number).unlink(missing_ok=True)

    @property
    def held(self) -> int:
        """Bytes of the groups that wait."""
        return sum(self.bytes.values())

    def start_pass(self) -> None:
        self.group_of = {id: number for number in sorted(self.waiting) for id in self.wanted[number]}
        self.unsettled = Counter(map(season_of, self.group_of))
        self.left = {number: len(self.wanted[number]) for number in self.waiting}
        self.missing: dict[str, set[str]] = {}
        self.places: dict[int, dict[str, dict[str, tuple]]] = {number: {} for number in self.waiting}
        self.bytes = {}
        self.complete: list[int] = []

    def expect(self, season: str, kinds: Collection[str], problem: str | None = None) -> None:
        """The kinds that the patches of a season wait for in this pass."""
        for id in [id for id in self.group_of if season_of(id) == season]:
            self.missing[id] = set(kinds)
            if problem:
                self.problems[id] = problem
            self._check(id)

    def needs(self, season: str) -> bool:
        return self.unsettled[season] > 0

    def wants(self, id: str, kind: str) -> bool:
        return id in self.group_of and kind in self.missing[id]

    def add(self, id: str, kind: str, name: str, data: bytes) -> None:
        """Keep a member."""
        number = self.group_of[id]
        # Land cover of 500 m is almost nothing when packed; the others are not worth the time.
        data = zlib.compress(data, 1) if kind == "lc" else data
        self._check_space(len(data))
        try:
            with open(self._path(number), "ab") as file:
                file.write(data)
        except OSError as error:
            raise DataError(f"{self.spill}: cannot be written ({error.strerror}); give another folder") from error
        at = self.bytes.get(number, 0)
        self.places[number].setdefault(id, {})[kind] = (name, at, len(data))
        self.bytes[number] = at + len(data)
        self._settle(id, kind)
        self._make_room()

    def refuse(self, id: str, kind: str, problem: str) -> None:
        """A file of a patch that must not be read: the patch is an error."""
        if self.wants(id, kind):
            self.problems.setdefault(id, problem)
            self._settle(id, kind)

    def settle(self, season: str, kind: str, problem: str | None) -> None:
        """No more of this kind comes: with a problem for damage, else the patches without it never had it."""
        for id in [id for id in self.group_of if season_of(id) == season and kind in self.missing[id]]:
            if problem:
                self.problems.setdefault(id, f"{id}: its {kind} lies behind the damage of {problem}")
            self._settle(id, kind)

    def finished(self) -> Iterator[tuple[int, SpilledGroup]]:
        """Hand out what is complete."""
        while self.complete:
            number = self.complete.pop()
            places, ids = self.places.pop(number), self.wanted[number]
            for id in ids:
                del self.group_of[id]
                if not {"s1", "s2"} & places.get(id, {}).keys():
                    self.problems.setdefault(id, f"{id}: neither radar nor optics of this patch in the archives")
            problems = {id: self.problems[id] for id in ids if id in self.problems}
            self.bytes.pop(number, None)
            self.waiting.discard(number)
            yield number, SpilledGroup(ids, self._path(number), places, problems)

    def _settle(self, id: str, kind: str) -> None:
        self.missing[id].discard(kind)
        self._check(id)

    def _check(self, id: str) -> None:
        if self.missing[id]:
            return
        number = self.group_of[id]
        self.unsettled[season_of(id)] -= 1
        self.left[number] -= 1
        if self.left[number] == 0:
            self.complete.append(number)

    def _make_room(self) -> None:
        """Let go of the groups that are furthest from complete, but never of all."""
        while self.held > self.spill_bytes:
            open_ = [number for number in self.bytes if number not in self.complete]
            if len(open_) < 2:
                return
            number = min(open_, key=lambda n: (sum(map(len, self.places[n].values())) / len(self.wanted[n]), -n))
            logger.info("%s: full, group %d is left for another pass over the archives", self.spill, number)
            for id in self.wanted[number]:
                del self.group_of[id]
                # Patches of a season that was not read yet, or was already, are not counted there.
                if self.missing.pop(id, {"none yet"}):
                    self.unsettled[season_of(id)] -= 1
            del self.bytes[number], self.places[number]
            self._path(number).unlink(missing_ok=True)

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self.spill).free
        if free < size + _SPARE_BYTES:
            raise DataError(
                f"{self.spill}: {free / 1e9:.1f} GB are free on this disk and {(size + _SPARE_BYTES) / 1e9:.1f} GB are "
                "needed for patches that wait for their partners; make room, name a folder on another disk, or allow "
                "fewer bytes for spilling"
            )

    def _path(self, number: int) -> Path:
        return self.spill / f"{number:06d}.spill"


def season_of(id: str) -> str:
    """"ROIs1158_spring" of a patch."""
    return PATCH_ID.match(id)[2]


__all__ = ["Joining", "SpilledGroup", "season_of"]
