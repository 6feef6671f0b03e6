"""How many of the ten nearest places are alike: crop type in Canada, and cropland, within regions and across them.

    python benchmarks/retrieval.py --data DIR [--embeddings series.emb.parquet] [--markdown OUT.md]

A query is a labelled point. Within a region its candidates are the labelled points of the same source and region in
other spatial blocks, so that no neighbour of the same field counts; across regions those of the same source in all
other regions. Sources are never pooled, since their definitions of cropland differ. Precision at ten is averaged for
each class and then over the classes, so that chance is 1 / classes whatever is common. 95 % intervals are from a
bootstrap of whole blocks of queries, the same draws for all embeddings, so that gaps are paired. Nothing is fitted to
labels and nothing is tuned here.

By cosine: "raw" as the encoder gives it; "centred" less a mean; "standardised" also by the spread of each number. Mean
and spread are those of all points of the table, without labels; for this library's embeddings "centred" takes the
constant of the checkpoint, as they come by default. "Kept" is the share of the ten nearest of the default embeddings,
among all points, that are among the ten nearest too. Needs pandas; without --embeddings the series are embedded first.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from croplem_hf import Embedder, open_source, packaged_path, read_table
from croplem_hf.compact import dequantise, quantise

K = 10
CROP_TYPES = 6
BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
USED = [BANDS.index(band) for band in ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")]
OURS = "CropLEM"
DEFAULT = f"{OURS}, centred (default)"
# Sources whose imagery may be trained on, for what is fitted without labels.
OPEN = ("dea_cropmask_2019", "presto_usa", "worldcereal_france_2022", "worldcereal_france_2023")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get("CROPLEM_REAL_DATA", "../shared/data/real")) / "series"
    parser.add_argument("--data", type=Path, default=data, help="folder of series.parquet and peer_embeddings.npz")
    parser.add_argument("--embeddings", type=Path, help="embeddings of the packaged checkpoint, from `croplem embed`")
    parser.add_argument("--queries", type=int, default=1000, help="at most so many of a region, at random")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    args = parser.parse_args(argv)
    table = pd.read_parquet(args.data / "series.parquet")
    labelled = ((table.cropland >= 0) | (table.temporary_crop >= 0)).to_numpy()
    features = read_features(args, table, labelled)
    table = table[labelled].reset_index(drop=True)
    tasks = make_tasks(table, args.queries)
    found = {name: {task: precision(x, *parts) for task, parts in tasks.items()} for name, x in features.items()}
    about = {name: (x.shape[1], kept(x, features[DEFAULT]) if name.startswith(OURS) else None)
             for name, x in features.items()}  # fmt: skip
    lines = report(found, tasks, table.block.to_numpy(str), about, args.draws)
    print("\n".join(lines))
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n")


def read_features(args: argparse.Namespace, table: pd.DataFrame, labelled: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (labelled points, D)}"""
    embedder = Embedder.from_pretrained(packaged_path())
    with tempfile.TemporaryDirectory() as folder:
        file = args.embeddings or Path(folder) / "series.emb.parquet"
        if args.embeddings is None:
            embedder.embed_source(open_source(args.data / "series.parquet"), file)
        ours = read_table(file)
    wanted = embedder.info("series")
    if ours.ids != table.id.tolist() or any(wanted[key] != value for key, value in ours.settings.items()):
        raise SystemExit(f"{file}: not the embeddings of these series by the packaged checkpoint with default settings")
    centred, centre = ours.vectors, embedder.model.embedding_centre.cpu().numpy()
    rotation = PCA(centred.shape[1] // 2, random_state=0).fit(centred[table.source.isin(OPEN).to_numpy()])
    out = {
        f"{OURS}, raw": centred + centre,
        DEFAULT: centred,
        f"{OURS}, standardised": standardised(centred),
        f"{OURS}, int8": dequantise(*quantise(centred)),
        f"{OURS}, first half": centred[:, : centred.shape[1] // 2],
        f"{OURS}, first half, int8": dequantise(*quantise(centred[:, : centred.shape[1] // 2])),
        f"{OURS}, half by principal components": rotation.transform(centred),
    }
    out = {name: x[labelled] for name, x in out.items()}
    ids = table.id[labelled].to_numpy(str)
    with np.load(args.data / "peer_embeddings.npz") as peers:
        rows = pd.Index(peers["id"].astype(str)).get_indexer(ids)
        if (rows < 0).any():
            raise SystemExit(f"peer_embeddings.npz: {(rows < 0).sum()} points have no embedding")
        others = {"Presto": peers["presto"][rows], "Galileo nano": peers["galileo_nano"][rows]}
    others["band statistics"] = band_statistics(table[labelled])
    for name, x in others.items():
        x = x.astype(np.float32)
        out |= {f"{name}, raw": x, f"{name}, centred": x - x.mean(axis=0), f"{name}, standardised": standardised(x)}
    return out


def band_statistics(table: pd.DataFrame) -> np.ndarray:
    """Mean, std, min and max over the dates of VV, VH, nine S2 bands and NDVI -> (N, 48); missing values are 0."""
    out = np.zeros((len(table), 48), np.float32)
    for n, (s1, s2) in enumerate(zip(table.s1, table.s2, strict=True)):
        s1, s2 = np.asarray(s1, np.float32).reshape(-1, 2) / 25, np.asarray(s2, np.float32).reshape(-1, 13)
        red, near = s2[:, 3], s2[:, 7]
        x = np.concatenate([s1, s2[:, USED] / 1e4, ((near - red) / (near + red + 1e-6))[:, None]], axis=1)
        x = np.where(np.isfinite(x).any(axis=0), x, 0)
        out[n] = np.concatenate([np.nanmean(x, 0), np.nanstd(x, 0), np.nanmin(x, 0), np.nanmax(x, 0)])
    return np.nan_to_num(out)


def standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6)


def make_tasks(table: pd.DataFrame, most: int) -> dict[str, tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]]:
    """{task: ([(rows of queries, rows of their candidates), ...], labels of all rows)}"""
    rng, tasks = np.random.default_rng(0), {}
    source, region, block = (table[c].to_numpy(str) for c in ("source", "region", "block"))
    kinds = table.crop_type.fillna("0").to_numpy(str)
    canada = np.flatnonzero((source == "worldcereal_canada") & (kinds != "0"))
    common = pd.Series(kinds[canada]).value_counts().index[:CROP_TYPES]
    canada = canada[np.isin(kinds[canada], common)]
    tasks["crop type, Canada"] = _within(canada, region, block, most, rng), kinds
    cropland = table.cropland.to_numpy()
    names = {"itu_cropland_2023": "Iran and Sudan", "dea_cropmask_2019": "Africa", "worldcereal_canada": "Canada"}
    for key, name in names.items():
        rows = np.flatnonzero((source == key) & (cropland >= 0))
        tasks[f"cropland, {name}, within"] = _within(rows, region, block, most, rng), cropland
        if len(set(region[rows])) > 1:
            tasks[f"cropland, {name}, across"] = _across(rows, region, most, rng), cropland
    rows = np.flatnonzero((source == "worldcereal_global_a") & (cropland >= 0))
    tasks["cropland, world, across"] = _across(rows, region, most, rng), cropland
    return tasks


def _within(rows, region, block, most, rng) -> list[tuple[np.ndarray, np.ndarray]]:
    groups = []
    for name in sorted(set(region[rows])):
        members = rows[region[rows] == name]
        chosen = np.sort(rng.permutation(members)[:most])
        for own in sorted(set(block[chosen])):
            groups.append((chosen[block[chosen] == own], members[block[members] != own]))
    return groups


def _across(rows, region, most, rng) -> list[tuple[np.ndarray, np.ndarray]]:
    names = sorted(set(region[rows]))
    return [
        (np.sort(rng.permutation(rows[region[rows] == name])[:most]), rows[region[rows] != name]) for name in names
    ]


def precision(x: np.ndarray, groups: list[tuple[np.ndarray, np.ndarray]], labels: np.ndarray) -> np.ndarray:
    """Share of the K nearest candidates, by cosine, that have the label of the query -> (queries,)."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    out = []
    for queries, candidates in groups:
        similarity = unit[queries] @ unit[candidates].T
        nearest = candidates[np.argpartition(-similarity, K, axis=1)[:, :K]]
        out.append((labels[nearest] == labels[queries][:, None]).mean(axis=1))
    return np.concatenate(out)


def kept(x: np.ndarray, reference: np.ndarray, queries: int = 1000) -> float:
    """Share of the K nearest in `reference` (N, E) that are among the K nearest in `x` (N, D), for random queries."""
    rows = np.random.default_rng(2).permutation(len(x))[:queries]
    found = []
    for vectors in (x, reference):
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        similarity = unit[rows] @ unit.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        found.append(np.argpartition(-similarity, K, axis=1)[:, :K])
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(*found, strict=True)]))


def balanced(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of each class, then over the classes, x 100."""
    means = [np.average(scores[labels == c], weights=weights[labels == c]) for c in np.unique(labels)
             if weights[labels == c].sum()]  # fmt: skip
    return 100 * float(np.mean(means))


def report(found: dict, tasks: dict, blocks: np.ndarray, about: dict, draws: int) -> list[str]:
    """Two tables in Markdown: precision, and paired gaps to ours.

    Args:
        found: {embedding: {task: (queries,)}}. tasks: of `make_tasks`. blocks: of all rows.
        about: {embedding: (its numbers, share of neighbours kept or None)}. draws: of the bootstrap.
    """
    values = {}
    for task, (groups, labels) in tasks.items():
        rows = np.concatenate([queries for queries, _ in groups])
        names, of_block = np.unique(blocks[rows], return_inverse=True)
        rng = np.random.default_rng(1)
        weights = [np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(draws)]
        weights = [np.ones(len(rows))] + [weight[of_block] for weight in weights]
        for name in found:
            values[name, task] = np.array([balanced(found[name][task], labels[rows], weight) for weight in weights])
    columns = list(tasks)
    lines = ["| embedding | numbers | kept | " + " | ".join(columns) + " |", "|---|---:|---:|" + "---:|" * len(columns)]
    for name in found:
        cells = [f"{values[name, task][0]:.1f}" for task in columns]
        same = "" if about[name][1] is None else f"{about[name][1]:.3f}"
        lines.append(f"| {name} | {about[name][0]} | {same} | " + " | ".join(cells) + " |")
    chance = [f"{100 / len(np.unique(labels[np.concatenate([q for q, _ in groups])])):.1f}"
              for groups, labels in tasks.values()]  # fmt: skip
    lines += ["| chance | | | " + " | ".join(chance) + " |", ""]
    lines += [f"{DEFAULT} less the other, with 95 % intervals:", ""]
    lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in found:
        if name == DEFAULT:
            continue
        cells = []
        for task in columns:
            gaps = values[DEFAULT, task] - values[name, task]
            low, high = np.quantile(gaps[1:], [0.025, 0.975])
            cells.append(f"{gaps[0]:+.1f} ({low:+.1f} to {high:+.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
