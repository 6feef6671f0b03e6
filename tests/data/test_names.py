"""The names of all of SEN12MS, without its pixels: counts of seasons, scenes and official test scenes."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest

from croplem_hf.data import SEN12MSFolder
from croplem_hf.data.plan import select_items
from croplem_hf.data.sen12ms import BAD_PATCHES, HELD_OUT_SCENES
from croplem_hf.data.splits import scene_splits

# Season: scenes, patches, official test scenes, and the patches of those.
COUNTS = {
    "ROIs1158_spring": (56, 40_883, 6, 4_242),
    "ROIs1868_summer": (65, 45_753, 7, 4_529),
    "ROIs1970_fall": (85, 62_201, 8, 5_989),
    "ROIs2017_winter": (46, 31_825, 5, 3_346),
}


def make_names(root, share):
    """Empty files of S2 of all scenes with 1/`share` of the patches; gives the patches of each (season, test)."""
    made = {}
    for season, (scenes, patches, tests, test_patches) in COUNTS.items():
        held = sorted(int(scene.rpartition("_")[2]) for scene in HELD_OUT_SCENES if scene.startswith(season))
        assert len(held) == tests
        needed = [146] if season == "ROIs1868_summer" else []
        free = (n for n in range(1, 200) if n not in held and n not in needed)
        others = [*needed, *itertools.islice(free, scenes - tests - len(needed))]
        for numbers, total in ((held, test_patches), (others, patches - test_patches)):
            total = max(total // share, len(numbers))
            made[season, numbers is held] = total
            for number, count in zip(numbers, np.full(len(numbers), total // len(numbers)), strict=True):
                count = int(count) + (numbers.index(number) < total % len(numbers))
                folder = root / season / f"s2_{number}"
                folder.mkdir(parents=True)
                # The damaged patch 202 is there at every share.
                for patch in {202, *range(count)} if count > 202 else [202, *range(count - 1)]:
                    open(folder / f"{season}_s2_{number}_p{patch}.tif", "x").close()
    return made


def check_names(root, made):
    began = time.monotonic()
    source = SEN12MSFolder(root)
    columns = source.columns()
    seconds = time.monotonic() - began
    scenes = dict.fromkeys(columns["scene"].tolist())
    test = np.isin(columns["scene"].astype(str), sorted(HELD_OUT_SCENES))
    folders = np.array([scene.rpartition("_")[0] for scene in columns["scene"]])
    for (season, held), count in made.items():
        lost = int(season == "ROIs1868_summer" and not held)
        assert ((folders == season) & (test == held)).sum() == count - lost
    assert Counter(scene.rpartition("_")[0] for scene in scenes) == {season: row[0] for season, row in COUNTS.items()}
    assert not BAD_PATCHES.intersection(source.ids)
    assert np.array_equal(select_items(source, {}), ~test)
    splits = scene_splits(scenes)
    assert {scene for scene, split in splits.items() if split == "test"} == HELD_OUT_SCENES
    assert 0.04 < np.mean([split == "validation" for split in splits.values()]) < 0.16
    return source, seconds, int((~test).sum())


def test_a_hundredth_of_the_names(tmp_path):
    check_names(tmp_path, make_names(tmp_path, 100))


@pytest.mark.slow
def test_all_names(tmp_path):
    source, seconds, train = check_names(tmp_path, make_names(tmp_path, 1))
    print(f"{len(source)} patches found in {seconds:.1f} s")
    assert (len(source), train) == (180_661, 162_555)
    assert seconds < 60
