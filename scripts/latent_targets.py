#!/usr/bin/env python3
"""Make targets for pretraining out of frozen embeddings of other encoders: one table of `id` and `embedding`.

    python scripts/latent_targets.py SERIES.parquet EMBEDDINGS.npz OUT.parquet --sources A B [--without-regions R]

EMBEDDINGS.npz holds `id` and one 2-D array an encoder. Only rows of the named sources are used, for the statistics too.
The encoders are standardised by column and joined; principal components are scaled by (variance)^(-power / 2), between
their own spread (0) and none (1), so that the lesser ones are learned too. No label is read.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def shrink(vectors: np.ndarray, weights: np.ndarray, rank: int, power: float) -> np.ndarray:
    """Principal components (N, K), at most `rank` and none without variance, scaled to variance^(1 - power), and all
    together to a mean square of 1.
    """
    weights = weights / weights.sum()
    vectors = vectors - weights @ vectors
    vectors = np.clip(vectors / np.maximum(np.sqrt(weights @ vectors**2), 1e-6), -6, 6)
    vectors = vectors - weights @ vectors
    variance, axes = np.linalg.eigh((vectors.T * weights) @ vectors)
    order = variance.argsort()[::-1][:rank]
    order = order[variance[order] > 1e-8 * variance.max()]
    out = vectors @ axes[:, order] * variance[order] ** (-power / 2)
    return out / np.sqrt((weights @ out**2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sources", nargs="+", required=True, help="values of the column source")
    parser.add_argument("--without-regions", nargs="*", default=[], help="values of the column region to leave out")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--power", type=float, default=0.4)
    args = parser.parse_args()

    table = pq.read_table(args.series, columns=["id", "source", "region"]).to_pandas()
    table = table[table.source.isin(args.sources) & ~table.region.isin(args.without_regions)]
    with np.load(args.embeddings) as file:
        row = {name: n for n, name in enumerate(file["id"].astype(str))}
        table = table[table.id.isin(row)]
        rows = [row[name] for name in table.id]
        joined = np.concatenate([file[k][rows].astype(np.float64) for k in file.files if k != "id"], axis=1)
    # Sources weigh like the root of their size, so that the largest does not decide alone.
    weights = 1 / np.sqrt(table.source.map(table.source.value_counts()).to_numpy())
    vectors = shrink(joined, weights, min(args.rank, *joined.shape), args.power).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(pa.table({"id": table.id.tolist(), "embedding": lists}), args.out)
    print(f"{args.out}: {len(vectors)} vectors of {vectors.shape[1]} from {joined.shape[1]}")


if __name__ == "__main__":
    main()
