import numpy as np
import pytest

from croplem_hf.data import build_shards, generate_eurosat, generate_kenya, generate_scene, open_source
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.errors import DataError


@pytest.fixture(scope="module")
def places(tmp_path_factory, sen12ms_tree):
    """A small copy of every layout."""
    root = tmp_path_factory.mktemp("layouts")
    build_shards(sen12ms_tree, root / "shards", workers=1, progress=False)
    grid = {"crs": "EPSG:32632", "transform": (10, 0, 5e5, 0, -10, 5e6)}
    rng = np.random.default_rng(0)
    for kind, values in {"s1": rng.normal(-12, 3, (2, 8, 8)).astype(np.float32), "dfc": np.full((1, 8, 8), 6, np.uint8),
                         "s2": rng.integers(1, 900, (13, 8, 8)).astype(np.uint16)}.items():  # fmt: skip
        write_geotiff(root / f"dfc/ROIs0000_test/{kind}_0/ROIs0000_test_{kind}_0_p3.tif", values, **grid)
    return {
        "sen12ms": sen12ms_tree, "shards": root / "shards", "dfc2020": root / "dfc",
        "eurosat": generate_eurosat(root / "eurosat", per_class=1, size=32),
        "kenya": generate_kenya(root / "kenya", tile_size=(40, 50), fields=12),
        "folder": generate_scene(root / "scene", "kenya", size=16),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["sen12ms", "shards", "dfc2020", "eurosat", "kenya", "folder"])
def test_every_layout_is_known_by_its_names(places, kind):
    source = open_source(places[kind])
    assert source.kind == kind and len(source) > 0
    sample = source[0]
    assert sample["id"] == source.ids[0]
    shapes = source.layout().shapes
    assert shapes.shape == (len(source), 4)
    assert shapes[0, 2:].tolist() == list(sample["s2"].shape[2:])
    assert all(len(column) == len(source) for column in source.columns().values())
    assert isinstance(source.seasonal, bool)
    assert open_source(places[kind], sensors=["s2"])[0]["s1"] is None


@pytest.mark.parametrize(("kind", "options", "message"), [
    ("shards", {"s2_offset": 0}, "ShardFolder, which takes no s2_offset"),
    ("kenya", {"s1_units": "db"}, "KenyaFields, which takes no s1_units"),
    ("eurosat", {"s2_level": "L2A"}, "optics of EuroSATFolder are level L1C, not 'L2A'"),
    ("eurosat", {"sensors": ["s1"]}, "s1"),
])  # fmt: skip
def test_options_that_a_reader_does_not_take_are_refused(places, kind, options, message):
    with pytest.raises(DataError, match=message):
        open_source(places[kind], **options)
    assert open_source(places["kenya"], s2_level="L2A").kind == "kenya"


def test_shards_lie_at_addresses_too(places):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(places["shards"]), "/anywhere", recursive=True)
    source = open_source("memory://anywhere", sensors=["s1"])
    assert source.kind == "shards" and source[0]["s2"] is None
    memory.rm("/anywhere", recursive=True)


def test_a_name_that_is_no_folder_is_looked_for_on_the_hub(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr("croplem_hf.data.shards.ShardFolder.__init__", lambda self, root, **_: opened.append(root))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: None)
    open_source("croplem/sen12ms")
    assert opened == ["hf://datasets/croplem/sen12ms"]

    def offline(self, name, timeout):
        raise OfflineModeIsEnabled("offline mode")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    with pytest.raises(DataError, match="croplem/sen12ms: no such file or folder here, and the Hub cannot be asked"):
        open_source("croplem/sen12ms")
    with pytest.raises(DataError, match="no such file or folder; accepted are"):
        open_source(tmp_path / "croplem/sen12ms")
