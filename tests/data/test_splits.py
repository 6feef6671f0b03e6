import logging

import numpy as np
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data import SEN12MSFolder, generate_sen12ms
from croplem_hf.data.sen12ms import HELD_OUT_SCENES
from croplem_hf.data.splits import scene_places, scene_splits
from croplem_hf.errors import DataError

DEGREE_KM = 111.195
NAMES = [f"ROIs1158_spring_{n}" for n in range(200, 800)]
FAR = {name: (float(n % 30) * 6 - 90, float(n // 30) * 4 - 40) for n, name in enumerate(NAMES)}


def east(km):
    """A place on the equator."""
    return km / DEGREE_KM, 0.0


def test_about_a_tenth_of_the_scenes_is_validation_and_official_scenes_are_test():
    splits = scene_splits(FAR | {scene: (170.0, 5.0 * n - 65) for n, scene in enumerate(sorted(HELD_OUT_SCENES))})
    assert {scene for scene, split in splits.items() if split == "test"} == HELD_OUT_SCENES
    assert 0.06 < np.mean([splits[name] == "validation" for name in NAMES]) < 0.14


@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=50))
def test_a_lone_scene_keeps_its_split_whatever_else_is_there(names):
    whole = scene_splits(FAR)
    assert scene_splits({name: FAR[name] for name in sorted(names, reverse=True)}) == {n: whole[n] for n in names}


@given(st.lists(st.floats(0, 3000), min_size=2, max_size=40))
def test_no_validation_scene_has_a_train_neighbour(kilometres):
    places = {name: east(km) for name, km in zip(NAMES, kilometres, strict=False)}
    splits = scene_splits(places)
    for a, (lon, _) in places.items():
        for b, (other, _) in places.items():
            if abs(lon - other) * DEGREE_KM < 59.9:
                assert splits[a] == splits[b]


def test_neighbours_of_a_test_scene_stay_train_also_across_seasons_and_the_date_line():
    validation = next(name for name, split in scene_splits(FAR).items() if split == "validation")
    assert scene_splits({validation: (179.9, 0.0)}) == {validation: "validation"}
    for lon, expected in ((-179.9, "train"), (-179.0, "validation")):
        assert scene_splits({validation: (179.9, 0.0), "ROIs2017_winter_32": (lon, 0.0)})[validation] == expected


def test_given_splits_are_kept_and_followed_by_new_neighbours(caplog):
    a, b, c = NAMES[:3]
    places = {a: east(0), b: east(50), c: east(100)}
    for split in ("train", "validation"):
        assert set(scene_splits(places, {a: split}).values()) == {split}
    with caplog.at_level(logging.WARNING):
        assert scene_splits(places, {a: "train", c: "validation"}) == {a: "train", b: "train", c: "validation"}
    assert "neighbours" in caplog.text
    with pytest.raises(DataError, match="split must be one of"):
        scene_splits(places, {a: "dev"})


def test_scenes_without_coordinates_go_by_name_and_are_said(caplog):
    whole = scene_splits(FAR)
    with caplog.at_level(logging.WARNING):
        assert scene_splits(dict.fromkeys(NAMES)) == whole
    assert "600 scenes without coordinates" in caplog.text
    with pytest.raises(DataError, match="no place on Earth"):
        scene_splits({NAMES[0]: (0.0, 91.0)})


def test_places_come_from_a_file_of_each_scene_and_damaged_ones_are_passed_over(tmp_path):
    source = SEN12MSFolder(generate_sen12ms(tmp_path, size=16, scenes=2, patches_per_scene=3))
    places = scene_places(source)
    samples = list(source)
    assert set(places) == {sample["scene"] for sample in samples}
    for scene, place in places.items():
        assert place in [(sample["lon"], sample["lat"]) for sample in samples if sample["scene"] == scene]
    scene = samples[0]["scene"]
    for i, sample in enumerate(samples):
        if sample["scene"] == scene:
            for path in source.paths(i).values():
                path.write_bytes(b"")
    assert scene_places(source)[scene] is None and sum(p is None for p in scene_places(source).values()) == 1
