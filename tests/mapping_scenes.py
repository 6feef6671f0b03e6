"""Invented scenes and heads that the tests of maps share."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import rasterio
import torch

from croplem_hf.data.folder import open_scene
from croplem_hf.data.geotiff import write_geotiff
from croplem_hf.data.sample import make_sample
from croplem_hf.embedding import Embedder
from croplem_hf.heads import LogisticHead, fit_head
from croplem_hf.model import CropLEMConfig, CropLEMImageProcessor, CropLEMModel
from croplem_hf.table import EmbeddingsTable

GRID = {"crs": "EPSG:32737", "transform": (10, 0, 375410.0, 0, -10, 8116740.0)}
CLASSES = ("beans", "cassava", "maize")


def tiny_embedder() -> Embedder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = CropLEMModel(CropLEMConfig(**sizes, initializer_range=0.3))
    model.embedding_centre.copy_(torch.randn(16))
    return Embedder(model, CropLEMImageProcessor(), name="tiny", device="cpu")


def make_scene(
    folder: Path, height: int, width: int, *, seed: int = 0, clouds: float = 0.3, radar: int = 2, grid: dict = GRID
):
    """Optics of three dates, the first in another year than the rest, and radar; a corner that nothing saw."""
    rng = np.random.default_rng(seed)
    lines = ["path,sensor,date,mask"]
    for t in range(3):
        values = rng.integers(100, 4000, (13, height, width)).astype(np.uint16)
        values[10] = rng.integers(3, 40, (height, width))
        cloudy = (rng.random((1, height, width)) < clouds).astype(np.uint8)
        cloudy[:, : height // 2, : width // 2] = 1
        write_geotiff(folder / f"o{t}.tif", values, **grid)
        write_geotiff(folder / f"m{t}.tif", cloudy, **grid)
        lines.append(f"o{t}.tif,s2,{('2019-11-20', '2020-02-10', '2020-05-01')[t]},m{t}.tif")
    for t in range(radar):
        values = rng.normal(-12, 3, (2, height, width)).clip(-30, -1).astype(np.float32)
        values[:, : height // 2, : width // 2] = np.nan
        values[:, rng.random((height, width)) < clouds] = 0
        write_geotiff(folder / f"r{t}.tif", values, **grid)
        lines.append(f"r{t}.tif,s1,2020-0{t + 1}-05,")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return open_scene(folder)


def make_head(
    embedder: Embedder, unit: str, height: int = 1, width: int = 1, *, info: dict | None = None, **encode
) -> LogisticHead:
    """A head that was fitted on invented patches of this size, or on series, with a temperature of 1."""
    rng = np.random.default_rng(1)
    samples = [
        make_sample(
            str(n), s1=rng.normal(-12, 3, (1, 2, height, width)), s1_dates=["2020-02-02"], s2_level="L1C",
            s2=rng.integers(100, 4000, (2, 13, height, width)).astype(np.uint16), s2_dates=["2020-02-10", "2020-05-01"],
        )
        for n in range(60)
    ]  # fmt: skip
    columns = {"height": height, "width": width, "gsd": 10.0}
    table = EmbeddingsTable(
        [sample["id"] for sample in samples],
        embedder.encode(samples, **encode),
        pa.table({name: [value] * 60 for name, value in columns.items()}),
        embedder.info(unit, **encode) | (info or {}),
    )
    # Calibrated on labels without meaning it would say the same everywhere.
    head = fit_head(table, [CLASSES[k] for k in rng.integers(0, 3, 60)])
    head.temperature_ = 1.0
    return head


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read()
