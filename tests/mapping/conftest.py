import pytest
from mapping_scenes import make_scene, tiny_embedder

from croplem_hf.mapping import block


@pytest.fixture(scope="module")
def embedder():
    return tiny_embedder()


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path, 18, 20)


@pytest.fixture
def small_reads(monkeypatch):
    """Several reads a tile on a small scene of 43 values a pixel."""
    monkeypatch.setattr(block, "BLOCK_VALUES", 16 * 10 * 43)
