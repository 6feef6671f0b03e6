"""A whole round of choosing 50 rows from large pools with 200 labels: time and peak memory, beside other strategies.

    python benchmarks/suggest_speed.py --json speed.json

Vectors are invented: clusters in 192 dimensions, float32, in eight regions. Each strategy runs in a process of its own,
with its head fitted in the round; the best of --rounds counts, with new labels each time. Processor time, over all
threads, says more where the machine is busy. Memory is the peak resident set of that process, pool included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIMENSIONS, CLUSTERS, CLASSES, REGIONS, LABELS, BATCH = 192, 200, 5, 8, 200, 50
STRATEGIES = ("bandit", "k-center", "badge", "typiclust", "margin", "uncertainty-herding", "random")


def make_pool(rows: int, folder: Path) -> None:
    """Vectors (rows, 192), a class and a region for each, as .npy files."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, DIMENSIONS), np.float32)
    number = rng.integers(CLUSTERS, size=rows)
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, (rows, DIMENSIONS))
    for at in range(0, rows, 100_000):
        part = number[at : at + 100_000]
        X[at : at + len(part)] = centres[part] + 0.7 * rng.standard_normal((len(part), DIMENSIONS), np.float32)
    X.flush()
    np.save(folder / "y.npy", (number % CLASSES).astype(np.int64))
    share = np.arange(1, REGIONS + 1) ** 2.0
    np.save(folder / "region.npy", rng.choice(REGIONS, rows, p=share / share.sum()))


def one(name: str, folder: Path, rounds: int) -> dict:
    """Seconds of each round and peak memory of one strategy, measured in this process."""
    from croplem_hf.active.suggest import STRATEGIES as CLASSES_BY_NAME

    X, truth, region = (np.load(folder / f"{part}.npy") for part in ("X", "y", "region"))
    regions = np.array([f"region {number}" for number in range(REGIONS)])[region]
    seconds, processor = [], []
    for seed in range(rounds):
        y = np.full(len(X), -1)
        known = np.random.default_rng(seed).choice(len(X), LABELS, replace=False)
        y[known] = truth[known]
        strategy = CLASSES_BY_NAME[name](regions=regions, seed=seed)
        began = time.perf_counter(), time.process_time()
        chosen = strategy.query(X, y, batch_size=BATCH)
        seconds.append(time.perf_counter() - began[0])
        processor.append(time.process_time() - began[1])
        if len(np.unique(chosen)) != BATCH:
            raise SystemExit(f"{name} chose {len(np.unique(chosen))} different rows, not {BATCH}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": min(seconds), "processor_seconds": min(processor), "peak_rss_gb": peak}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of linear algebra and FAISS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--one", nargs=2, metavar=("STRATEGY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one[0], Path(options.one[1]), options.rounds)))
        return
    threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    found: dict = {"threads": options.threads, "dimensions": DIMENSIONS, "labels": LABELS, "batch": BATCH, "rounds": {}}
    print("| rows | strategy | seconds a round | processor seconds | peak memory, GB |\n|---:|---|---:|---:|---:|")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_pool(size, Path(folder))
            for name in options.strategies:
                command = [sys.executable, __file__, "--one", name, folder, "--rounds", str(options.rounds)]
                done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, check=True)
                figures = json.loads(done.stdout)
                found["rounds"].setdefault(str(size), {})[name] = figures
                cells = (f"{figures[key]:.2f}" for key in ("seconds", "processor_seconds", "peak_rss_gb"))
                print(f"| {size:,} | {name} | {' | '.join(cells)} |", flush=True)
    largest = found["rounds"].get("1000000", {})
    if "bandit" in largest:
        found["round_seconds_1e6"] = largest["bandit"]["seconds"]
        found["peak_rss_gb_1e6"] = largest["bandit"]["peak_rss_gb"]
        for other in ("badge", "typiclust"):
            if other in largest:
                found[f"speedup_vs_{other}"] = largest[other]["seconds"] / largest["bandit"]["seconds"]
    if options.json:
        partial = options.json.with_name(options.json.name + ".tmp")
        partial.write_text(json.dumps(found, indent=1))
        os.replace(partial, options.json)


if __name__ == "__main__":
    main()
