"""Small things of every kind that can be pushed, of one model."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from croplem_hf import (
    CropLEMConfig,
    CropLEMForPreTraining,
    CropLEMImageProcessor,
    Embedder,
    EmbeddingIndex,
    build_shards,
    evaluate,
    fit_head,
    read_table,
)


def make_things(root: Path, tree: Path) -> dict[str, Path]:
    """A model, shards of a SEN12MS tree, an embeddings table, an index, a head and a report -> {kind: path}."""
    out = {kind: root / kind for kind in ("model", "dataset", "index", "head", "report")}
    torch.manual_seed(0)
    config = CropLEMConfig(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, decoder_hidden_size=32, decoder_num_hidden_layers=1,
        decoder_intermediate_size=64,
    )  # fmt: skip
    CropLEMForPreTraining(config).save_pretrained(out["model"])
    CropLEMImageProcessor(max_deviation=6.5).save_pretrained(out["model"])
    (out["model"] / "notes.txt").write_text("of nobody's business")
    build_shards(tree, out["dataset"], limit=8, workers=1, progress=False)

    embedder = Embedder.from_pretrained(out["model"], device="cpu")
    rng, n = np.random.default_rng(0), 80
    label = np.arange(n) % 2
    vectors = rng.normal(size=(n, 32)).astype(np.float32)
    vectors[:, 0] += 2 * label
    out["embeddings"] = root / "patches.parquet"
    write_table(
        out["embeddings"], vectors, embedder.info("patch"), cropland=label.astype(str),
        region=[("north", "south")[k // 4 % 2] for k in range(n)], block=[f"b{k // 4}" for k in range(n)],
    )  # fmt: skip
    table = read_table(out["embeddings"])
    labels = table.metadata["cropland"].to_pylist()
    EmbeddingIndex.build(table).save(out["index"])
    fit_head(table, labels).save(out["head"])
    evaluate(table, labels, out["report"], seeds=0, n_bootstrap=20)
    return out


def write_table(path: Path, vectors: np.ndarray, info: dict, **columns) -> None:
    """An embeddings table with the ids p0, p1, ... and text columns."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    names = pa.array([f"p{k}" for k in range(len(vectors))])
    table = pa.table({"id": names, "embedding": flat} | {name: pa.array(list(v)) for name, v in columns.items()})
    pq.write_table(table.replace_schema_metadata({"croplem": json.dumps(info)}), path)
