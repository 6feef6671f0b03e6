"""Which strategy makes the better head from the same number of labels: replay on pools whose labels are known.

    python benchmarks/active.py digits
    python benchmarks/active.py itu itu-transfer dea dea-transfer --data ../shared/data/real/series

`digits` needs nothing but scikit-learn; the others need `peer_embeddings.npz` and `series.parquet` in the folder of
--data. Every seed draws its own split and its own first rows; strategies are paired by seed. Nothing is tuned here.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from croplem_hf.active import (
    CoverageBandit,
    MarginSampling,
    RandomSampling,
    StratifiedRandomSampling,
    compare,
    replay,
)
from croplem_hf.active.simulate import curves

STRATEGIES = {
    "random": lambda seed: RandomSampling(seed=seed),
    "stratified": lambda seed: StratifiedRandomSampling(seed=seed),
    "margin": lambda seed: MarginSampling(seed=seed),
    "bandit": lambda seed: CoverageBandit(seed=seed),
    "bandit, frozen prior": lambda seed: CoverageBandit(seed=seed, learn=False),
}
BUDGETS = (10, 20, 30, 50, 75, 100, 150, 200, 300, 400)
SHARES = (0.50, 0.25, 0.12, 0.08, 0.05)
TEST_ROWS_PER_DIGITS_REGION = 40
Split = tuple[str, np.ndarray, np.ndarray]


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits seen in five orientations, one a region: 50, 25, 12, 8 and 5 % of the rows."""
    data = load_digits()
    region = np.random.default_rng(0).choice(5, len(data.target), p=SHARES)
    turned = [
        np.rot90(image, number) if number < 4 else image.T for image, number in zip(data.images, region, strict=True)
    ]
    X = np.array(turned, np.float32).reshape(len(region), -1)
    return X, data.target, np.array([f"region {number}" for number in region])


def series(folder: Path, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (galileo_nano), cropland, region and block of the labelled points of one source."""
    peers = np.load(folder / "peer_embeddings.npz")
    table = pd.read_parquet(folder / "series.parquet", columns=["id", "source", "region", "block", "cropland"])
    table = table.set_index("id").loc[peers["id"]]
    keep = ((table["source"] == source) & (table["cropland"] >= 0)).to_numpy()
    table = table[keep]
    X = peers["galileo_nano"][keep].astype(np.float32)
    return X, table["cropland"].to_numpy(), table["region"].to_numpy(str), table["block"].to_numpy(str)


def by_rows(regions: np.ndarray, seed: int) -> Iterator[Split]:
    """Equally many test rows from every region; the rest is the pool."""
    order = np.random.default_rng([seed, 1]).permutation(len(regions))
    test = [order[regions[order] == name][:TEST_ROWS_PER_DIGITS_REGION] for name in np.unique(regions)]
    test = np.concatenate(test)
    yield "", np.setdiff1d(order, test), test


def by_blocks(regions: np.ndarray, blocks: np.ndarray, seed: int) -> Iterator[Split]:
    """Half of the blocks of every region for the pool; equally many rows a region of the others for the test."""
    rng = np.random.default_rng([seed, 1])
    names = rng.permutation(np.unique(blocks))
    in_pool = np.isin(blocks, names[: len(names) // 2])
    order = rng.permutation(np.flatnonzero(~in_pool))
    count = min(np.sum(regions[order] == name) for name in np.unique(regions))
    test = np.concatenate([order[regions[order] == name][:count] for name in np.unique(regions)])
    yield "", np.flatnonzero(in_pool), test


def one_region(regions: np.ndarray, blocks: np.ndarray, seed: int) -> Iterator[Split]:
    """Each region by itself: half of its blocks for the pool, the other half for the test."""
    for name in np.unique(regions):
        rows = np.flatnonzero(regions == name)
        for _, pool, test in by_blocks(regions[rows], blocks[rows], seed):
            yield name, rows[pool], rows[test]


def left_out(regions: np.ndarray, blocks: np.ndarray, seed: int) -> Iterator[Split]:
    """Each region in turn for the test, half of the blocks of all others for the pool.

    With all blocks a strategy that leaves little to chance would choose the same rows for every seed.
    """
    names = np.random.default_rng([seed, 1]).permutation(np.unique(blocks))
    drawn = np.isin(blocks, names[: len(names) // 2])
    for name in np.unique(regions):
        yield name, np.flatnonzero(drawn & (regions != name)), np.flatnonzero(regions == name)


def merged(records: list[dict]) -> list[dict]:
    """Records of several test regions as one for each strategy, seed and budget: mean, and the worst region."""
    table = pd.DataFrame(records)
    grouped = table.groupby(["strategy", "seed", "n_labels"], sort=False)
    columns = {"macro_f1": "mean", "accuracy": "mean", "worst_region_accuracy": "min", "seconds": "mean"}
    return grouped.agg(columns).reset_index().to_dict("records")


def measure(name: str, folder: Path, seeds: range, start: str) -> list[dict]:
    """Replay all strategies on one of the pools."""
    if name == "digits":
        X, y, regions = digits()
    else:
        source = {"itu": "itu_cropland_2023", "dea": "dea_cropmask_2019"}[name.split("-")[0]]
        X, y, regions, blocks = series(folder, source)
    splits = {
        "digits": lambda seed: by_rows(regions, seed),
        "itu": lambda seed: one_region(regions, blocks, seed),
        "dea": lambda seed: by_blocks(regions, blocks, seed),
    }.get(name, lambda seed: left_out(regions, blocks, seed))
    drawn = [(seed, part, pool, test) for seed in seeds for part, pool, test in splits(seed)]
    # The same budgets for all, or areas would not compare.
    budgets = [budget for budget in BUDGETS if budget < min(len(pool) for _, _, pool, _ in drawn)]
    records = []
    for seed, part, pool, test in drawn:
        found = replay(
            X, y, STRATEGIES, pool=pool, test=test, budgets=budgets, seeds=[seed], regions=regions, start=start
        )
        records += [record | {"part": part} for record in found]
    return merged(records)


def report(name: str, start: str, records: list[dict]) -> None:
    """Print areas, values at the last budget, and differences, all times 100."""
    seeds, last = len({r["seed"] for r in records}), max(r["n_labels"] for r in records)
    print(f"\n## {name}, start {start}, {seeds} seeds, up to {last} labels (x 100)\n")
    for metric in ("macro_f1", "worst_region_accuracy"):
        print(f"| {metric} | AULC | low | high | at {last} | seconds a query |\n|---|---:|---:|---:|---:|---:|")
        for strategy in STRATEGIES:
            areas = list(curves(records, strategy, metric).values())
            means = [100 * np.mean([area[part] for area in areas]) for part in ("whole", "low", "high")]
            own = [record for record in records if record["strategy"] == strategy]
            end = 100 * np.mean([record[metric] for record in own if record["n_labels"] == last])
            seconds = np.mean([record["seconds"] for record in own])
            print(f"| {strategy} | {means[0]:.1f} | {means[1]:.1f} | {means[2]:.1f} | {end:.1f} | {seconds:.3f} |")
        print(f"\n| {metric}, bandit minus | AULC (95 %) | low | high |\n|---|---:|---:|---:|")
        for strategy in STRATEGIES:
            if strategy != "bandit":
                parts = compare(records, "bandit", strategy, metric)
                cells = [f"{100 * p.mean:+.1f} ({100 * p.lower:+.1f} to {100 * p.upper:+.1f})" for p in parts]
                print(f"| {strategy} | {' | '.join(cells)} |")
        print(flush=True)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="+", choices=["digits", "itu", "itu-transfer", "dea", "dea-transfer"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/real/series"), help="folder of the series")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--start", choices=["own", "random"], default="own", help="who chooses the first batch")
    options = parser.parse_args()
    for name in options.pools:
        report(name, options.start, measure(name, options.data, range(options.seeds), options.start))


if __name__ == "__main__":
    main()
