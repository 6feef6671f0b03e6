"""Pools whose labels are known, for replays of labelling, with the splits of each.

Real series come from an embeddings table (`croplem embed series.parquet`), with the columns source, region, block,
cropland and crop_type. A split is (part, rows of the pool, rows of the test); every seed draws its own.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from croplem_hf import Embedder, open_source, read_table
from croplem_hf.data import generate_kenya

SHARES = (0.50, 0.25, 0.12, 0.08, 0.05)
LEAST_OF_CLASS = 40
MOST_ROWS, MOST_TEST = 1_000, 800
Split = tuple[str, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LabelledPool:
    """X float32 (N, D), y int (N,), regions text (N,), spatial blocks (N,), and `splits(seed)`."""

    X: np.ndarray
    y: np.ndarray
    regions: np.ndarray
    blocks: np.ndarray
    splits: Callable[[int], Iterator[Split]]


def digits(kind: str = "within") -> LabelledPool:
    """Digits seen in five orientations, one a region: 50, 25, 12, 8 and 5 % of the rows; each row is a block."""
    data = load_digits()
    region = np.random.default_rng(0).choice(5, len(data.target), p=SHARES)
    turned = [
        np.rot90(image, number) if number < 4 else image.T for image, number in zip(data.images, region, strict=True)
    ]
    X = np.array(turned, np.float32).reshape(len(region), -1)
    names = np.array([f"region {number}" for number in region])
    blocks = np.arange(len(names))
    if kind == "left out":
        return LabelledPool(X, data.target, names, blocks, lambda seed: left_out(names, blocks, seed))
    return LabelledPool(X, data.target, names, blocks, lambda seed: by_blocks(names, blocks, seed, 0.8))


def breast_cancer() -> LabelledPool:
    """Wisconsin breast cancer, numbers standardised, one region."""
    data = load_breast_cancer()
    X = ((data.data - data.data.mean(axis=0)) / data.data.std(axis=0)).astype(np.float32)
    names, blocks = np.full(len(X), "all"), np.arange(len(X))
    return LabelledPool(X, data.target, names, blocks, lambda seed: by_blocks(names, blocks, seed, 0.5))


def series(path: Path, sources: list[str], column: str, kind: str, least: int = LEAST_OF_CLASS) -> LabelledPool:
    """Rows of some sources that have a label; classes of fewer than `least` rows are left out."""
    table = read_table(path)
    source, label = (np.array(table.metadata[name].to_pylist(), object) for name in ("source", column))
    keep = np.isin(source, sources) & np.array([value not in (None, -1, -1.0) and value == value for value in label])
    names, count = np.unique(label[keep].astype(str), return_counts=True)
    keep &= np.isin(label.astype(str), names[count >= least])
    regions, blocks = (
        np.array(table.metadata[name].to_pylist(), object)[keep].astype(str) for name in ("region", "block")
    )
    y = np.unique(label[keep].astype(str), return_inverse=True)[1]
    # Regions of a handful of rows say nothing by themselves.
    sizes = dict(zip(*np.unique(regions, return_counts=True), strict=True))
    regions = np.array([name if sizes[name] >= 2 * LEAST_OF_CLASS else "elsewhere" for name in regions])
    make = {"within": by_blocks, "one": one_region, "left out": left_out}[kind]
    return LabelledPool(table.vectors[keep], y, regions, blocks, lambda seed: make(regions, blocks, seed))


def by_blocks(
    regions: np.ndarray, blocks: np.ndarray, seed: int, share: float = 0.5, most: int = MOST_ROWS
) -> Iterator[Split]:
    """A share of the blocks for the pool; of the others equally many rows a region for the test."""
    rng = np.random.default_rng([seed, 1])
    names = rng.permutation(np.unique(blocks))
    in_pool = np.isin(blocks, names[: round(share * len(names))])
    order = rng.permutation(np.flatnonzero(~in_pool))
    kinds = np.unique(regions)
    count = min(min(np.sum(regions[order] == name) for name in kinds), MOST_TEST // len(kinds))
    test = np.concatenate([order[regions[order] == name][:count] for name in kinds])
    yield "", np.sort(rng.permutation(np.flatnonzero(in_pool))[:most]), test


def one_region(regions: np.ndarray, blocks: np.ndarray, seed: int) -> Iterator[Split]:
    """One region by itself, the next one for the next seed: half of its blocks for the pool, the rest for the test."""
    kinds = np.unique(regions)
    name = kinds[seed % len(kinds)]
    rows = np.flatnonzero(regions == name)
    for _, pool, test in by_blocks(regions[rows], blocks[rows], seed):
        yield name, rows[pool], rows[test]


def left_out(regions: np.ndarray, blocks: np.ndarray, seed: int) -> Iterator[Split]:
    """One region for the test, the next one for the next seed; half of the blocks of all others for the pool.

    With all blocks a strategy that leaves little to chance would choose the same rows for every seed.
    """
    rng = np.random.default_rng([seed, 1])
    names = rng.permutation(np.unique(blocks))
    drawn = np.isin(blocks, names[: len(names) // 2])
    kinds = np.unique(regions)
    name = kinds[seed % len(kinds)]
    pool, test = np.flatnonzero(drawn & (regions != name)), np.flatnonzero(regions == name)
    yield name, np.sort(rng.permutation(pool)[:MOST_ROWS]), rng.permutation(test)[:MOST_TEST]


def kenya(fields: int = 4_688) -> LabelledPool:
    """Invented fields in the layout of Kenya CV4A, embedded by the packaged checkpoint: tiles are regions.

    As many as there are (3,286 with a label); 70 % of them may be bought. Tiles are smaller than the published ones.
    Nothing that is measured on them holds for a real field.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = generate_kenya(Path(folder) / "kenya", fields=fields, tile_size=(640, 960))
        table = Embedder.from_pretrained().embed_source(open_source(root), Path(folder) / "kenya.parquet")
    label, tile = (np.array(table.metadata[name].to_pylist(), object) for name in ("crop_type", "tile"))
    keep = np.array([value is not None for value in label])
    y = np.unique(label[keep].astype(str), return_inverse=True)[1]
    regions = np.array([f"tile {number}" for number in tile[keep]])
    # Invented fields do not share a neighbourhood as real ones do: each is a block of its own.
    blocks = np.arange(len(y))
    X = table.vectors[keep]
    return LabelledPool(X, y, regions, blocks, lambda seed: by_blocks(regions, blocks, seed, 0.7, len(y)))


def pools(path: Path | None) -> dict[str, Callable[[], LabelledPool]]:
    """A maker for every pool by name; without an embeddings table those of scikit-learn alone."""
    made = {"digits": digits, "digits, region left out": lambda: digits("left out"), "breast cancer": breast_cancer}
    if path is None:
        return made
    africa, itu = ["dea_cropmask_2019"], ["itu_cropland_2023"]
    world = ["worldcereal_global_a"]
    return made | {
        "Africa": lambda: series(path, africa, "cropland", "within"),
        "Iran and Sudan": lambda: series(path, itu, "cropland", "one"),
        "Canada, crop types": lambda: series(path, ["worldcereal_canada"], "crop_type", "within", 190),
        "WorldCereal": lambda: series(path, world, "cropland", "within"),
        "Africa, region left out": lambda: series(path, africa, "cropland", "left out"),
        "Iran and Sudan, region left out": lambda: series(path, itu, "cropland", "left out"),
    }
