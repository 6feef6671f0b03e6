"""How far labels go, by the way they are chosen: replays of all strategies on pools whose labels are known.

    python benchmarks/label_efficiency.py --embeddings series.emb.parquet --json efficiency.json
    python benchmarks/label_efficiency.py --pools digits "breast cancer"         # needs nothing but scikit-learn
    python benchmarks/label_efficiency.py --kenya --pools "Kenya (generated)" --strategies random bandit

The embeddings are those of the packaged checkpoint (`croplem embed series.parquet series.emb.parquet`). Pools are cut
to 1,000 rows, tests to 800. Of pools by region each seed takes one region, of those with a region left out it leaves
out one. Every seed draws its own split and its own first rows, and strategies are paired by seed; each has its own
start. The bandit was developed on seeds 0 to 19 of digits, Africa (with and without a region left out), Iran and Sudan;
seeds here start at 100, and the other pools were not looked at before.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from label_pools import kenya, pools
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from croplem_hf.active import CoverageBandit, RandomSampling, StratifiedRandomSampling, compare, replay
from croplem_hf.active.baselines import BASELINES
from croplem_hf.active.simulate import curves
from croplem_hf.evaluation.label_efficiency import areas, labels_to_reach
from croplem_hf.heads.logistic import PENALTY, SOLVERS

BUDGETS = (10, 25, 50, 100, 200, 400)
METRICS = ("macro_f1", "worst_region_accuracy")
STRATEGIES = {
    "random": lambda seed: RandomSampling(seed=seed),
    "stratified": lambda seed: StratifiedRandomSampling(seed=seed),
    **{kind.__name__.removesuffix("Sampling"): lambda seed, kind=kind: kind(seed=seed) for kind in BASELINES},
    "bandit": lambda seed: CoverageBandit(seed=seed),
    "bandit, frozen prior": lambda seed: CoverageBandit(seed=seed, learn=False),
}
OTHERS = "best by the other seeds"
TARGETED = "bandit, target"
"""Sees the embeddings of the region left out, if there is one: rows that are not tested on, where there are such."""


def test_head(classes: int):
    """Predicts what `LogisticHead` predicts, without its calibration, which changes no class."""
    model = LogisticRegression(C=PENALTY, solver=SOLVERS[classes == 2], max_iter=2000)
    return make_pipeline(StandardScaler(), model)


def measure(make, names: list[str], seeds: range, jobs: int, folder: Path | None) -> tuple[list[dict], dict]:
    """Replay strategies on one pool -> records, and what all labels of the pool would give."""
    strategies = {name: STRATEGIES[name] for name in names if name != TARGETED}
    pool = make()
    head = test_head(len(np.unique(pool.y)))
    drawn = [(seed, part, rows, test) for seed in seeds for part, rows, test in pool.splits(seed)]
    size = min(len(rows) for _, _, rows, _ in drawn)
    budgets = [budget for budget in BUDGETS if budget <= 0.8 * size]
    records, full = [], []
    for seed, part, rows, test in drawn:
        apart = np.setdiff1d(pool.regions[test], pool.regions[rows])
        if TARGETED in names and len(apart):
            there = np.setdiff1d(np.flatnonzero(np.isin(pool.regions, apart)), test)
            target = pool.X[there if len(there) else test]
            strategies[TARGETED] = lambda seed, target=target: CoverageBandit(target=target, seed=seed)
        found = replay(
            pool.X, pool.y, strategies, pool=rows, test=test, budgets=budgets, seeds=[seed], regions=pool.regions,
            head=head, jobs=jobs, record_file=None if folder is None else folder / f"{seed} {part}.jsonl",
        )  # fmt: skip
        records += [record | {"part": part} for record in found]
        truth = pool.y[test]
        guess = head.fit(pool.X[rows], pool.y[rows]).predict(pool.X[test])
        full.append(f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0))
    rows = float(np.mean([len(rows) for _, _, rows, _ in drawn]))
    return merged(records), {"rows": rows, "all_labels_macro_f1": float(np.mean(full))}


def merged(records: list[dict]) -> list[dict]:
    """Records of several parts as one for each strategy, seed and budget: mean, and the worst region."""
    grouped = pd.DataFrame(records).groupby(["strategy", "seed", "n_labels"], sort=False)
    columns = {"macro_f1": "mean", "accuracy": "mean", "worst_region_accuracy": "min", "seconds": "mean"}
    return grouped.agg(columns).reset_index().to_dict("records")


def summary(records: list[dict], about: dict) -> dict:
    """Areas, differences to the bandit, labels needed, and how close some of the labels come to all of them, x 100."""
    found: dict = {"rows": about["rows"], "all_labels_macro_f1": 100 * about["all_labels_macro_f1"], "strategies": {}}
    mean_f1 = {
        (name, count): np.mean([r["macro_f1"] for r in records if (r["strategy"], r["n_labels"]) == (name, count)])
        for name, count in {(r["strategy"], r["n_labels"]) for r in records}
    }
    counts = sorted({count for _, count in mean_f1})
    start, end = mean_f1["random", counts[0]], about["all_labels_macro_f1"]
    target = start + 0.9 * (end - start)
    found |= {"target_macro_f1": 100 * target, "budgets": counts}
    needed = labels_to_reach(records, "macro_f1", target)
    area = {metric: areas(records, metric) for metric in METRICS}
    names = list(dict.fromkeys(r["strategy"] for r in records))
    for name in names:
        line = [mean_f1[name, count] for count in counts]
        row = {f"{metric}_aulc": 100 * area[metric][name]["whole"]["mean"] for metric in METRICS}
        at_last = [r["worst_region_accuracy"] for r in records if (r["strategy"], r["n_labels"]) == (name, counts[-1])]
        row["worst_region_at_last"] = 100 * float(np.mean(at_last))
        row |= {f"macro_f1_{part}": 100 * area["macro_f1"][name][part]["mean"] for part in ("low", "high")}
        row |= {"macro_f1": [100 * value for value in line], "labels_to_target": needed[name]["median"]}
        for share in (0.10, 0.15):
            at = np.interp(np.log(share * about["rows"]), np.log(counts), line)
            row[f"of_all_at_{share:.0%}"] = 100 * float(at / end)
        row["of_all_at_last"] = 100 * float(line[-1] / end)
        row["seconds"] = float(np.mean([r["seconds"] for r in records if r["strategy"] == name]))
        for metric in METRICS if name != "bandit" else ():
            whole = compare(records, "bandit", name, metric)[0]
            row[f"bandit_minus_{metric}"] = [100 * value for value in (whole.mean, whole.lower, whole.upper)]
        found["strategies"][name] = row
    fixed = [name for name in names if not name.startswith("bandit")]
    best = max(fixed, key=lambda name: found["strategies"][name]["macro_f1_aulc"])
    mine = found["strategies"]["bandit"]
    found |= {
        "best_fixed": best,
        "bandit_minus_best_fixed": mine["macro_f1_aulc"] - found["strategies"][best]["macro_f1_aulc"],
        "bandit_minus_random": mine["macro_f1_aulc"] - found["strategies"]["random"]["macro_f1_aulc"],
    }  # fmt: skip
    if len({record["seed"] for record in records}) > 1:
        whole = compare(records + best_by_other_seeds(records, fixed), "bandit", OTHERS, "macro_f1")[0]
        found["bandit_minus_best_by_other_seeds"] = [100 * value for value in (whole.mean, whole.lower, whole.upper)]
    if "UncertaintyHerding" in names:
        theirs = found["strategies"]["UncertaintyHerding"]["worst_region_accuracy_aulc"]
        found["worst_region_minus_uncertainty_herding"] = mine["worst_region_accuracy_aulc"] - theirs
    return found


def best_by_other_seeds(records: list[dict], fixed: list[str]) -> list[dict]:
    """Records of the strategy that a seed would take by the means of all others: what is best without hindsight."""
    area = {name: curves(records, name, "macro_f1") for name in fixed}
    taken = {}
    for seed in area[fixed[0]]:
        rest = {name: np.mean([part["whole"] for k, part in own.items() if k != seed]) for name, own in area.items()}
        taken[seed] = max(rest, key=rest.get)
    return [record | {"strategy": OTHERS} for record in records if record["strategy"] == taken.get(record["seed"])]


def report(name: str, found: dict) -> None:
    """Print one pool's table."""
    last = found["budgets"][-1]
    print(f"\n## {name}: pool of {found['rows']:.0f}, all labels {found['all_labels_macro_f1']:.1f} macro-F1 (x 100)\n")
    columns = ["strategy", "AULC", "low", "high", f"at {last}", "worst region", f"worst at {last}", "labels to 90 %",
               "bandit minus it (95 %)", "s"]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|---|{'---:|' * 7}---|---:|")
    for strategy, row in found["strategies"].items():
        needed = f"> {last}" if row["labels_to_target"] is None else row["labels_to_target"]
        gap = row.get("bandit_minus_macro_f1")
        cells = [
            f"{row['macro_f1_aulc']:.1f}", f"{row['macro_f1_low']:.1f}", f"{row['macro_f1_high']:.1f}",
            f"{row['macro_f1'][-1]:.1f}", f"{row['worst_region_accuracy_aulc']:.1f}",
            f"{row['worst_region_at_last']:.1f}", str(needed),
            "" if gap is None else f"{gap[0]:+.1f} ({gap[1]:+.1f} to {gap[2]:+.1f})", f"{row['seconds']:.2f}",
        ]  # fmt: skip
        print(f"| {strategy} | {' | '.join(cells)} |")
    mine = found["strategies"]["bandit"]
    print(f"\nBandit minus best fixed ({found['best_fixed']}): {found['bandit_minus_best_fixed']:+.1f}")
    if "bandit_minus_best_by_other_seeds" in found:
        mean, low, high = found["bandit_minus_best_by_other_seeds"]
        print(f"Bandit minus the best by the means of the other seeds: {mean:+.1f} ({low:+.1f} to {high:+.1f})")
    if "worst_region_minus_uncertainty_herding" in found:
        print(f"Worst region minus Uncertainty Herding's: {found['worst_region_minus_uncertainty_herding']:+.1f}")
    few, more, most = (mine[f"of_all_at_{at}"] for at in ("10%", "15%", "last"))
    print(f"Of all labels' F1: {few:.0f} % with 10 %, {more:.0f} % with 15 %, {most:.0f} % with {last}", flush=True)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=Path, metavar="TABLE", help="embedded series; without it, scikit-learn's")
    parser.add_argument("--pools", nargs="+", metavar="NAME", help="some of the pools (default: all)")
    parser.add_argument("--strategies", nargs="+", choices=[*STRATEGIES, TARGETED], metavar="NAME",
                        default=[*STRATEGIES, TARGETED])  # fmt: skip
    parser.add_argument("--kenya", action="store_true", help="add invented fields in Kenya's layout, embedded here")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--records", type=Path, metavar="DIR", help="keep records; a run that was stopped goes on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    makers = pools(options.embeddings)
    if options.kenya:
        makers["Kenya (generated)"] = kenya
    if not {"random", "bandit"} <= set(options.strategies):
        parser.error("--strategies needs random and bandit, which all others are compared with")
    unknown = set(options.pools or ()) - set(makers)
    if unknown:
        parser.error(f"no pool {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    figures = {"seeds": [seeds[0], seeds[-1]], "pools": {}}
    for name in options.pools or makers:
        folder = None if options.records is None else options.records / name
        figures["pools"][name] = summary(*measure(makers[name], options.strategies, seeds, options.jobs, folder))
        report(name, figures["pools"][name])
        if options.json:
            with tempfile.NamedTemporaryFile("w", dir=options.json.parent, suffix=".tmp", delete=False) as handle:
                json.dump(figures, handle, indent=1)
            os.replace(handle.name, options.json)


if __name__ == "__main__":
    main()
