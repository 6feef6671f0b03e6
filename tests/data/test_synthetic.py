import csv
import hashlib
import os

import numpy as np
import pytest

from croplem_hf.cli import main
from croplem_hf.data import SEN12MSFolder, generate_scene, generate_sen12ms
from croplem_hf.data.geotiff import read_geotiff
from croplem_hf.data.synthetic import DEFECTS, LABELS, PLACES, damaged_ids, measure_bands
from croplem_hf.errors import DataError
from croplem_hf.sensors import S2_BANDS


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_tree_is_read_as_sen12ms(sen12ms_tree):
    source = SEN12MSFolder(sen12ms_tree)
    assert len(source) == 24
    assert (sen12ms_tree / "ROIs1158_spring/s1_1/ROIs1158_spring_s1_1_p30.tif").is_file()
    pairs = {(sample["s1"] is not None, sample["s2"] is not None) for sample in source}
    assert pairs == {(True, True), (True, False), (False, True)}
    samples = list(source)
    assert all(sample["lc"].dtype == np.uint8 and sample["lc"].shape == (4, 64, 64) for sample in samples)
    lats = np.array([sample["lat"] for sample in samples])
    assert (lats < 0).any() and (lats > 0).any() and len({sample["crs"] for sample in samples}) == 4
    assert all(sample["transform"][2] % 10 for sample in samples)


def test_neighbours_show_the_same_ground(sen12ms_tree):
    source = SEN12MSFolder(sen12ms_tree)
    left, right = (source[source.ids.index(f"ROIs1158_spring_1_p{p}")] for p in (30, 31))
    for kind in ("s1", "s2", "lc"):
        assert np.array_equal(left[kind][..., 32:], right[kind][..., :32])
    assert right["transform"][2] - left["transform"][2] == 320
    below = source[source.ids.index("ROIs1158_spring_1_p59")]
    assert np.array_equal(left["s1"][..., 32:, :], below["s1"][..., :32, :])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    options = {"scenes": ["iran"], "patches_per_scene": 1, "size": 32}
    first, again = (digest(generate_sen12ms(tmp_path / name, seed=3, **options)) for name in "ab")
    other = digest(generate_sen12ms(tmp_path / "c", seed=4, **options))
    assert first == again and first.keys() == other.keys() and first != other


def test_values_are_those_of_the_sensors(tmp_path):
    generate_sen12ms(tmp_path, scenes=len(PLACES), patches_per_scene=1)
    samples = list(SEN12MSFolder(tmp_path))
    assert len(samples) == len(PLACES)
    codes = set()
    for sample in samples:
        s1, s2 = sample["s1"][0], sample["s2"][0].astype(float)
        assert -17 < s1[0].mean() < -7 and 4 < (s1[0] - s1[1]).mean() < 10 and s1.min() > -50 and s1.max() < 20
        assert 900 < s2[S2_BANDS.index("B02")].mean() < 2000 and s2[S2_BANDS.index("B10")].mean() < 40
        ndvi = (s2[7] - s2[3]) / (s2[7] + s2[3])
        assert ndvi.std() > 0.08, "fields, woods and water differ"
        codes |= set(np.unique(sample["lc"][0]).tolist())
    assert {4, 10, 12, 13, 14} <= codes <= {4, 10, 12, 13, 14, 16, 17}


def test_clouds_cover_optics_only_and_as_much_as_asked(tmp_path):
    roots = [generate_scene(tmp_path / f"{clouds}", "france", size=256, clouds=clouds) for clouds in (0.0, 0.4)]
    clear, cloudy = (read_geotiff(root / "s2.tif")[0][S2_BANDS.index("B02")] for root in roots)
    assert (clear > 3000).mean() < 0.01 and 0.2 < (cloudy > 3000).mean() < 0.4
    assert (cloudy < 0.8 * clear).mean() > 0.02, "shadows"
    truths = [read_geotiff(root / "cropland.tif")[0] for root in roots]
    assert np.array_equal(*truths)


def test_every_second_scene_has_clouds(tmp_path):
    options = {"scenes": ["france", "iran", "ukraine", "canada"], "patches_per_scene": 1, "size": 128}
    clear, cloudy = (SEN12MSFolder(generate_sen12ms(tmp_path / f"{c}", clouds=c, **options)) for c in (0.0, 0.4))
    assert clear.ids == cloudy.ids
    same = [np.array_equal(a["s2"], b["s2"]) for a, b in zip(clear, cloudy, strict=True)]
    assert same.count(True) == 2


def test_labels_say_what_covers_most_of_a_patch(tmp_path):
    root = generate_sen12ms(tmp_path, scenes=["ukraine", "iran"], patches_per_scene=9, size=64)
    with open(root / "labels.csv", newline="") as handle:
        labels = {row["id"]: row["label"] for row in csv.DictReader(handle)}
    assert list(labels) and set(labels) == set(SEN12MSFolder(root).ids)
    assert set(labels.values()) == set(LABELS)


def test_a_scene_is_imagery_with_its_truth(tmp_path):
    root = generate_scene(tmp_path / "scene", "france", size=96)
    with open(root / "metadata.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["sensor"] for row in rows] == ["s1", "s2"] and {row["date"] for row in rows} == {"2017-10-15"}
    (s1, grid), (s2, other), (truth, _) = (read_geotiff(root / name) for name in ("s1.tif", "s2.tif", "cropland.tif"))
    assert s1.shape == (2, 96, 96) and s2.shape == (13, 96, 96) and truth.shape == (1, 96, 96)
    assert grid.transform == other.transform and grid.crs == "EPSG:32631" and set(np.unique(truth)) == {0, 1}
    with pytest.raises(DataError, match="unknown places"):
        generate_scene(tmp_path / "x", "atlantis")


def test_crops_follow_the_hemisphere(tmp_path):
    generate_sen12ms(tmp_path, scenes=["brazil", "france"], patches_per_scene=1)
    green = {}
    for sample in SEN12MSFolder(tmp_path):
        s2 = sample["s2"][0].astype(float)
        green[sample["season"]] = ((s2[7] - s2[3]) / (s2[7] + s2[3]))[sample["lc"][0] == 12].mean()
    # January is summer in Brazil, October is after the harvest in France.
    assert green["winter"] > green["fall"]


def test_a_planted_defect_is_one_file_that_fails_by_name(tmp_path):
    generate_sen12ms(tmp_path, scenes=1, patches_per_scene=2, size=64, defects=True)
    source, failed = SEN12MSFolder(tmp_path), []
    for i in range(len(source)):
        try:
            source[i]
        except DataError as error:
            failed.append(str(error))
    assert len(failed) == 1 and "_s2_" in failed[0]


def test_each_defect_is_where_the_list_says(tmp_path):
    options = {"scenes": 3, "patches_per_scene": 6, "size": 32}
    good = generate_sen12ms(tmp_path / "good", **options)
    bad = generate_sen12ms(tmp_path / "bad", defects=list(DEFECTS), **options)
    with open(bad / "defects.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["kind"] for row in rows] == list(DEFECTS) and len(damaged_ids(bad)) == len(DEFECTS)
    changed = {name for name, its in digest(good).items() if digest(bad).get(name) != its}
    assert changed == {row["file"] for row in rows}
    assert all(f"_{DEFECTS[row['kind']]}_" in row["file"] for row in rows)
    read = {row["kind"]: bad / row["file"] for row in rows}
    assert read["empty"].stat().st_size == 0 and not read["missing_partner"].exists()
    assert np.isnan(read_geotiff(read["nan"])[0]).mean() == 0.25
    assert read_geotiff(read["linear"])[0].min() > 0 and len(read_geotiff(read["band_count"])[0]) == 12
    assert read_geotiff(read["offset"])[0].min() >= 1000 and read_geotiff(read["reflectance"])[0].max() < 2
    assert len(np.unique(read_geotiff(read["constant_band"])[0][4])) == 1
    assert (read_geotiff(read["saturated"])[0] == 65535).mean() == 0.25
    skipped = SEN12MSFolder(bad, skip=damaged_ids(bad))
    whole = SEN12MSFolder(good, skip=damaged_ids(bad))
    assert skipped.ids == whole.ids and measure_bands(skipped) == measure_bands(whole)


def test_the_tree_says_that_it_is_invented(sen12ms_tree):
    assert "GENERATED DATA" in (sen12ms_tree / "GENERATED.txt").read_text() and damaged_ids(sen12ms_tree) == set()


def test_the_verb_writes_and_measures(tmp_path, capsys):
    options = ["--scenes", "3", "--patches", "5", "--size", "16", "--defects"]
    assert main(["data", "sample", str(tmp_path / "tree"), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("15 invented patches (no real place)") and sum(line[0] in "BV" for line in lines) == 15
    assert len(damaged_ids(tmp_path / "tree")) == len(DEFECTS)
    assert main(["data", "sample", str(tmp_path / "tree")]) == 1, "never into a folder that holds something"


@pytest.mark.parametrize(
    "options", [["kenya", "--patches", "3"], ["eurosat", "--clouds", "1"], ["sen12ms", "--fields", "9"]]
)
def test_options_of_another_layout_are_wrong_usage(tmp_path, options, capsys):
    with pytest.raises(SystemExit) as error:
        main(["data", "sample", str(tmp_path / "x"), "--layout", *options])
    assert error.value.code == 2 and f"does not go with --layout {options[0]}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_bands_are_measured_over_what_is_valid(sen12ms_tree):
    found = measure_bands(SEN12MSFolder(sen12ms_tree))
    images = [sample["s2"][:, 3] for sample in SEN12MSFolder(sen12ms_tree) if sample["s2"] is not None]
    assert np.allclose(found["B04"], (np.mean(images), np.std(images)))
    assert len(found) == 15


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scenes": ["atlantis"]}, "unknown places .*atlantis"),
        ({"scenes": []}, "unknown places"),
        ({"scenes": 0}, "scenes must be 1 to"),
        ({"scenes": 99}, "scenes must be 1 to"),
        ({"size": 63}, "size must be even"),
        ({"patches_per_scene": 0}, "patches at least 1"),
        ({"defects": ["rust"]}, "unknown defects .*rust"),
        ({"scenes": 1, "patches_per_scene": 2, "defects": list(DEFECTS)}, "ask for more"),
    ],
)
def test_impossible_requests_are_refused(tmp_path, options, text):
    with pytest.raises(DataError, match=text):
        generate_sen12ms(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("value", "message"), [("2", "is not a number from 0 to 1"), ("nan", "is not a number of"),
                                                ("x", "is not a number of")])  # fmt: skip
def test_a_share_is_a_share(tmp_path, capsys, value, message):
    with pytest.raises(SystemExit) as stop:
        main(["data", "sample", str(tmp_path / "x"), "--clouds", value])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path, monkeypatch):
    """It may be a mount, or where somebody stands."""
    monkeypatch.chdir(tmp_path)
    before = os.stat(tmp_path).st_ino
    assert main(["data", "sample", ".", "--scenes", "1", "--patches", "4", "--size", "16"]) == 0
    assert os.stat(tmp_path).st_ino == before and (tmp_path / "labels.csv").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
