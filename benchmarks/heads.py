"""Heads beside each other: kinds, centring of regions, calibration, and sets of classes.

    croplem embed SERIES/series.parquet series.emb.parquet
    OMP_NUM_THREADS=1 python benchmarks/heads.py series.emb.parquet kinds calibration pools penalties sets

Transfers: each region of the two cropland sources left out in turn, and temporary crop of `worldcereal_global_a` from
the other WorldCereal tables. "pools" and "penalties" look at the pools of label_efficiency.py, of which digits and
Africa chose the defaults of heads.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from label_pools import LabelledPool, pools
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss, roc_auc_score
from sklearn.model_selection import GroupShuffleSplit

from croplem_hf import read_table
from croplem_hf.evaluation import calibration as score_calibration, calibration_error, reliability, score
from croplem_hf.heads import HEADS, ConformalSets, LogisticHead, RegionCentre

SOURCES = ("itu_cropland_2023", "dea_cropmask_2019")
BUDGETS = (50, 200, 500, 2_000)


class Data:
    """Embeddings and columns of the table as arrays."""

    def __init__(self, path: Path):
        table = read_table(path)
        self.X = table.vectors.astype(np.float64)
        for name in ("source", "region", "block"):
            setattr(self, name, np.array(table.metadata[name].to_pylist(), object).astype(str))
        for name in ("cropland", "temporary_crop"):
            setattr(self, name, np.array([-1 if v is None else int(v) for v in table.metadata[name].to_pylist()]))

    def transfers(self):
        """(task, training rows, test rows, labels, places): a place is what is left out as a whole."""
        for source in SOURCES:
            rows = np.flatnonzero((self.source == source) & (self.cropland >= 0))
            for name in sorted(set(self.region[rows])):
                own = self.region[rows] == name
                yield name, rows[~own], rows[own], self.cropland, self.region
        rows = np.flatnonzero((self.temporary_crop >= 0) & np.char.startswith(self.source, "worldcereal"))
        own = self.source[rows] == "worldcereal_global_a"
        yield "global_a", rows[~own], rows[own], self.temporary_crop, self.source


def scores(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """AUC, balanced accuracy, ECE x 100; Brier and log loss x 1000."""
    return {
        "AUC": 100 * roc_auc_score(y, p), "balanced accuracy": 100 * balanced_accuracy_score(y, p > 0.5),
        "ECE": 100 * calibration_error(reliability(p, y == 1)), "Brier": 1000 * brier_score_loss(y, p),
        "log loss": 1000 * log_loss(y, p),
    }  # fmt: skip


def table(title: str, columns: list[str], rows: dict[str, list[float]]) -> None:
    """Print a table of Markdown."""
    print(f"\n## {title}\n\n| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |", flush=True)


def centred(data: Data, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """All embeddings, those of `rows` centred by place; the labels are not looked at."""
    X = data.X.copy()
    X[rows] = RegionCentre().fit(X[rows], places[rows]).transform(X[rows], places[rows])
    return X


def kinds(data: Data, limit: int) -> None:
    """AUC of each kind of head on the eight transfers, without and with each region centred on its own embeddings.

    Not calibrated, which takes most of the time and changes neither figure.
    """
    for title, by_region in (("Kinds of heads, AUC x 100", False), ("The same, each region centred on itself", True)):
        rows: dict[str, list[float]] = {}
        for kind, make in HEADS.items():
            began, found = time.process_time(), []
            for _, train, test, y, places in data.transfers():
                train = np.random.default_rng(0).permutation(train)[:limit]
                X = centred(data, np.concatenate([train, test]), places) if by_region else data.X
                head = make(class_weight="balanced", calibration="none").fit(X[train], y[train])
                found.append(scores(y[test], head.predict_proba(X[test])[:, 1]))
            rows[kind] = [one["AUC"] for one in found]
            rows[kind] += [float(np.mean([one[k] for one in found])) for k in ("AUC", "balanced accuracy")]
            rows[kind].append(time.process_time() - began)
            print(kind, *(f"{value:.1f}" for value in rows[kind]), file=sys.stderr)
        names = [task for task, *_ in data.transfers()]
        table(title, [*names, "mean AUC", "mean balanced accuracy", "CPU s"], rows)


def calibration(data: Data) -> None:
    """Probabilities before and after calibration, on other blocks and in another region, by numbers of labels."""
    names = ("none", "temperature", "isotonic")
    found: dict[tuple, list[dict]] = {}
    for task, train, test, y, _ in data.transfers():
        pool, beside = next(GroupShuffleSplit(1, test_size=0.3, random_state=0).split(train, groups=data.block[train]))
        for count in (c for c in BUDGETS if c <= len(pool)):
            for seed in range(3):
                rows = np.random.default_rng(seed).permutation(train[pool])[:count]
                for name in names:
                    if name == "isotonic" and count < 200:
                        continue
                    head = LogisticHead(calibration=name).fit(data.X[rows], y[rows], groups=data.block[rows])
                    for where, at in (("other blocks", train[beside]), ("region left out", test)):
                        one = scores(y[at], head.predict_proba(data.X[at])[:, 1])
                        found.setdefault((where, count, name, task), []).append(one)
    for where in ("other blocks", "region left out"):
        rows = {}
        for count in BUDGETS:
            for name in names:
                ones = [one for key, some in found.items() if key[:3] == (where, count, name) for one in some]
                if ones:
                    means = [np.mean([one[k] for one in ones]) for k in ("ECE", "Brier", "log loss")]
                    rows[f"{count} labels, {name}"] = means
        table(f"Calibration of a logistic head, {where}", ["ECE", "Brier x 1000", "log loss x 1000"], rows)
        for metric in ("log loss", "Brier", "ECE"):
            gains = {}
            for key, some in found.items():
                if key[0] == where and key[2] == "temperature":
                    before = found[(*key[:2], "none", key[3])]
                    gains[key] = np.mean([a[metric] - b[metric] for a, b in zip(before, some, strict=True)])
            worse = {key: gain for key, gain in gains.items() if gain < 0}
            worst = min(gains, key=gains.get)
            mean = np.mean(list(gains.values()))
            print(
                f"{metric}: temperature worse than none in {len(worse)} of {len(gains)} (pool, labels); worst "
                f"{gains[worst]:+.2f} ({worst[3]}, {worst[1]} labels), mean {mean:+.2f}"
            )


def random_labels(pool: LabelledPool):
    """(labelled rows, tested rows): ten draws of each number of labels; a class without a label is not tested."""
    for seed in range(10):
        for _, pooled, test in pool.splits(seed):
            for count in (c for c in (50, 100, 200, 400) if c <= 0.8 * len(pooled)):
                drawn = np.random.default_rng(seed).permutation(pooled)[:count]
                yield drawn, test[np.isin(pool.y[test], pool.y[drawn])]


def by_pool(path: Path) -> None:
    """Calibration before and after on every pool, from `random_labels`."""
    rows = {}
    for name, make in pools(path).items():
        pool, losses, found = make(), {}, {"none": [], "temperature": []}
        for drawn, test in random_labels(pool):
            for kind in found:
                head = LogisticHead(calibration=kind).fit(pool.X[drawn], pool.y[drawn], groups=pool.blocks[drawn])
                one = score_calibration(pool.y[test], head.predict_proba(pool.X[test]), classes=head.classes_)
                found[kind].append(one)
                losses.setdefault((kind, len(drawn)), []).append(one["log_loss"])
        means = [
            scale * np.mean([one[key] for one in found[kind]])
            for key, scale in (("ece", 100), ("brier", 1000), ("log_loss", 1000))
            for kind in found
        ]
        counts = sorted({count for _, count in losses})
        worse = sum(np.mean(losses["temperature", c]) > np.mean(losses["none", c]) for c in counts)
        rows[name] = [*means, 100 * worse / len(counts)]
        print(name, *(f"{value:.1f}" for value in rows[name]), file=sys.stderr)
    columns = [f"{what}, {when}" for what in ("ECE", "Brier x 1000", "log loss x 1000") for when in ("none", "temp.")]
    table("Calibration by pool", [*columns, "% of the numbers of labels where log loss is worse"], rows)


def penalties(path: Path) -> None:
    """AUC and macro-F1 of the logistic head by the strength of its penalty on every pool, from `random_labels`."""
    strengths, rows = (1.0, 0.3, 0.1, 0.03, 0.01), {}
    for name, make in pools(path).items():
        pool, found = make(), {C: [] for C in strengths}
        for drawn, test in random_labels(pool):
            for C in strengths:
                head = LogisticHead(C=C, calibration="none").fit(pool.X[drawn], pool.y[drawn])
                one = score(pool.y[test], head.predict_proba(pool.X[test]), head.classes_)
                found[C].append((100 * one["auc"], 100 * one["macro_f1"]))
        rows[name] = [value for C in strengths for value in np.mean(found[C], axis=0)]
        print(name, *(f"{value:.1f}" for value in rows[name]), file=sys.stderr)
    columns = [f"C = {C:g}, {what}" for C in strengths for what in ("AUC", "macro-F1")]
    table("A logistic head by its penalty", columns, rows)


def sets(data: Data, confidence: float = 0.9) -> None:
    """Coverage of sets in a region left out, by the labels that calibrated them; means over 20 halves of its blocks."""
    rows = {}
    for task, train, test, y, _ in data.transfers():
        # Sets need probabilities of rows that were not in training, elsewhere too: a third of the blocks.
        split = GroupShuffleSplit(1, test_size=1 / 3, random_state=0).split(train, groups=data.block[train])
        learn, elsewhere = (train[part] for part in next(split))
        head = LogisticHead().fit(data.X[learn], y[learn], groups=data.block[learn])
        proba = {name: head.predict_proba(data.X[at]) for name, at in (("elsewhere", elsewhere), ("test", test))}
        foreign = ConformalSets().fit(proba["elsewhere"], y[elsewhere]).predict(proba["test"], confidence=confidence)
        held = foreign[np.arange(len(test)), y[test]]
        line = [100 * held.mean(), foreign.sum(axis=1).mean()]
        for count in (50, 10**9):
            cover, size = [], []
            halves = GroupShuffleSplit(20, test_size=0.5, random_state=0).split(test, groups=data.block[test])
            for seed, (local, rest) in enumerate(halves):
                local = np.random.default_rng(seed).permutation(local)[:count]
                made = ConformalSets().fit(proba["test"][local], y[test][local])
                found = made.predict(proba["test"][rest], confidence=confidence)
                cover.append(found[np.arange(len(rest)), y[test][rest]].mean())
                size.append(found.sum(axis=1).mean())
            line += [100 * np.mean(cover), np.mean(size)]
        rows[task] = line
    columns = [f"{name}, {what}" for name in ("elsewhere", "50 local", "half of the region") for what in ("%", "size")]
    table(f"Sets of classes: how often the true one is in, asked for {100 * confidence:.0f} %", columns, rows)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="embeddings of the series")
    parser.add_argument("parts", nargs="+", choices=["kinds", "calibration", "pools", "penalties", "sets"])
    parser.add_argument("--limit", type=int, default=2_000, help="training rows of a transfer, drawn (default 2000)")
    options = parser.parse_args()
    warnings.simplefilter("error")
    data = Data(options.table)
    for part in options.parts:
        {"kinds": lambda: kinds(data, options.limit), "calibration": lambda: calibration(data),
         "pools": lambda: by_pool(options.table), "penalties": lambda: penalties(options.table),
         "sets": lambda: sets(data)}[part]()  # fmt: skip


if __name__ == "__main__":
    main()
