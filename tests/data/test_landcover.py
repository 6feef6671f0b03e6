import numpy as np
import pytest
from hypothesis import given, strategies as st

from croplem_hf.data import SEN12MSFolder
from croplem_hf.data.landcover import CROPLAND, IGBP, LABELS, SIMPLIFIED, patch_labels, simplified


def test_every_code_has_a_name_and_a_simplified_class():
    assert sorted(IGBP) == list(range(1, 18)) and sorted(SIMPLIFIED) == list(range(1, 11))
    assert simplified(np.arange(18)).tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 6, 8, 9, 10]
    assert simplified(np.array([[18, 255, -1]])).tolist() == [[0, 0, 0]]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.sampled_from([np.uint8, np.uint16, np.int32]))
def test_labels_equal_a_count_by_hand(codes, dtype):
    found = patch_labels(np.array([codes] * 4, dtype)[:, None])
    known = [code for code in codes if 1 <= code <= 17]
    assert tuple(found) == LABELS
    if not known:
        assert set(found.values()) == {None}
        return
    for name, values in (("igbp", known), ("land_cover", simplified(np.array(known)).tolist())):
        best = min(set(values), key=lambda code, values=values: (-values.count(code), code))
        assert found[name] == best and found[f"{name}_fraction"] == values.count(best) / len(known)
    crop = sum(code in CROPLAND for code in known)
    assert found["cropland_fraction"] == crop / len(known) and found["cropland"] == int(crop * 2 > len(known))
    assert all(type(value) in (int, float) for value in found.values())


def test_samples_carry_the_labels_where_land_cover_is_read(sen12ms_tree):
    sample = SEN12MSFolder(sen12ms_tree)[0]
    assert {key: sample[key] for key in LABELS} == patch_labels(sample["lc"]) and sample["igbp"] in IGBP
    bare = SEN12MSFolder(sen12ms_tree, labels=False)[0]
    assert bare["cropland"] is None and "igbp" not in bare


def test_the_real_patch(real_data):
    source = SEN12MSFolder(real_data / "sen12ms")
    found = patch_labels(source[0]["lc"])
    assert found["igbp"] in IGBP and found["igbp_fraction"] == pytest.approx(
        np.mean(source[0]["lc"][0] == found["igbp"]), abs=1e-12
    )
