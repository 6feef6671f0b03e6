import hashlib

import numpy as np
import pytest

from croplem_hf.data.eurosat import CLASSES, EuroSATFolder
from croplem_hf.data.synthetic import measure_bands
from croplem_hf.data.synthetic_eurosat import PUBLISHED_MEAN, PUBLISHED_STD, generate_eurosat
from croplem_hf.errors import DataError
from croplem_hf.sensors import S2_BANDS


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return generate_eurosat(tmp_path_factory.mktemp("eurosat"), per_class=3)


def digest(root):
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.tif")}


def test_the_tree_is_read_as_eurosat(tree):
    source = EuroSATFolder(tree)
    assert source.band_order == "eurosat" and len(source) == 30 and len(set(source.columns()["land_use"])) == 10
    assert (tree / "AnnualCrop" / "AnnualCrop_1.tif").is_file() and "GENERATED" in (tree / "GENERATED.txt").read_text()
    samples = list(source)
    assert {sample["s2"].shape for sample in samples} == {(1, 13, 64, 64)}
    assert all(-10 < sample["lon"] < 40 and 35 < sample["lat"] < 60 for sample in samples)


def test_values_are_near_the_published_ones(tree):
    found = measure_bands(EuroSATFolder(tree))
    for k, band in enumerate(S2_BANDS):
        mean, std = found[band]
        assert abs(mean - PUBLISHED_MEAN[k]) < 0.5 * PUBLISHED_STD[k], band
        assert 0.4 < std / PUBLISHED_STD[k] < 1.6, band


def test_classes_look_like_themselves(tree):
    s2 = {name: [] for name in CLASSES}
    for sample in EuroSATFolder(tree):
        s2[sample["land_use"]].append(sample["s2"][0].astype(float))
    mean = {name: np.mean(images, axis=(0, 2, 3)) for name, images in s2.items()}
    assert min(mean, key=lambda name: mean[name][7]) == "SeaLake"
    assert max(mean, key=lambda name: mean[name][1]) == "Industrial"
    assert mean["Forest"][3] < mean["Pasture"][3] < mean["Residential"][3]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    seeds = {"a": 0, "b": 0, "c": 1}
    roots = [generate_eurosat(tmp_path / name, per_class=1, size=16, seed=seed) for name, seed in seeds.items()]
    first, again, other = map(digest, roots)
    assert again == first and len(again) == 10
    assert other.keys() == again.keys() and other != again


def test_impossible_requests_are_refused(tmp_path):
    for options in ({"per_class": 0}, {"size": 4}, {"size": 500}):
        with pytest.raises(DataError, match="per_class must be"):
            generate_eurosat(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()
