import collections
import hashlib

import numpy as np
import pytest

from croplem_hf.data.geotiff import read_geotiff
from croplem_hf.data.kenya import CROPS, KenyaFields
from croplem_hf.data.synthetic_kenya import DATES, FIELD_COUNTS, generate_kenya
from croplem_hf.errors import DataError

TINY = {"tile_size": (30, 36), "fields": 30}


def digest(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_the_seed_settles_everything(tmp_path):
    a, b, c = (generate_kenya(tmp_path / name, seed=seed, **TINY) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert digest(a) == digest(b) != digest(c)


def test_files_are_as_published(tmp_path):
    root = generate_kenya(tmp_path, layout="zindi", **TINY)
    assert len(DATES) == 13 and len(list(root.rglob("*.tif"))) == 4 * (13 * 13 + 2)
    values, info = read_geotiff(root / "data" / "02" / DATES[3] / f"2_B8A_{DATES[3]}.tif", count=1)
    assert values.shape == (1, 36, 30) and values.dtype == np.float32 and 0 < values.min() and values.max() < 1.7
    assert info.crs is None
    clouds, _ = read_geotiff(root / "data" / "02" / DATES[3] / f"2_CLD_{DATES[3]}.tif", count=1)
    assert 0 <= clouds.min() and clouds.max() <= 100
    assert "NOT KENYA" in (root / "GENERATED.txt").read_text()


def test_fields_and_classes_are_in_the_published_mix(tmp_path):
    source = KenyaFields(generate_kenya(tmp_path, clouds=0))
    columns = source.columns()
    assert len(source) == 240 and 8 <= np.median(columns["area_px"].astype(int)) <= 12
    assert list(columns["split"]).count("test") == round(240 * 1402 / 4688)
    found = collections.Counter(columns["crop_code"])
    for code, count in zip(CROPS, FIELD_COUNTS, strict=True):
        assert abs(found[code] / 168 - count / 3286) < 0.07, code
    # Maize is greener in July than in November, cassava keeps its leaves.
    change = collections.defaultdict(list)
    for i, code in enumerate(columns["crop_code"]):
        if code in (1, 2):
            s2 = source[i]["s2"].mean(axis=(2, 3))
            ndvi = (s2[:, 7] - s2[:, 3]) / (s2[:, 7] + s2[:, 3])
            change[code].append(ndvi[3] - ndvi[11])
    assert np.mean(change[1]) > 0.2 > 0.1 > np.mean(change[2])


def test_planted_defects_are_found_by_the_reader(tmp_path, caplog):
    source = KenyaFields(generate_kenya(tmp_path, defects=True, clouds=0, **TINY))
    assert "1 fields have pixels of several classes" in caplog.text and "are in no raster" in caplog.text
    bad = []
    for i in range(len(source)):
        try:
            source[i]
        except DataError as error:
            bad.append(str(error))
    assert bad and len(bad) < len(source) / 2 and all(f"2_B12_{DATES[-1]}.tif" in text for text in bad)


@pytest.mark.parametrize("options", [{"layout": "azure"}, {"tile_size": (4, 40)}, {"fields": 0}, {"clouds": 1.0}])
def test_options_out_of_range_are_refused(tmp_path, options):
    with pytest.raises(DataError):
        generate_kenya(tmp_path, **options)
