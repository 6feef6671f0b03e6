"""One call from labelled embeddings to an account of what they are good for: report.html, figures.json, regions.csv.

    table = select_where(read_table("series.parquet"), ["source=itu_cropland_2023"])
    evaluate(table, column_labels(table, "cropland"), "report")
"""

import csv
import dataclasses
import datetime
import io
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import GroupShuffleSplit
from tqdm import tqdm

from .. import __version__
from ..active import CoverageBandit, RandomSampling, StratifiedRandomSampling, replay
from ..errors import DataError
from ..heads import LogisticHead
from ..labels import column_values, spatial_blocks
from ..table import EmbeddingsTable
from .calibration import calibration
from .fairness import METRICS, class_scores, region_scores, score, score_intervals, spread, worst_region
from .label_efficiency import areas, differences, labels_to_reach, learning_curves
from .pages import pages
from .report import write_json, write_report, write_text
from .transfer import few_shot, few_shot_means, fit_predict, grouped_cross_validation, leave_one_region_out

BUDGETS = (10, 20, 50, 100, 200, 500)
# One guess is as noisy as the test is small: the mean of several is chance.
BASELINES = {
    "majority class": [partial(DummyClassifier, strategy="prior")],
    "chance": [partial(DummyClassifier, strategy="stratified", random_state=number) for number in range(20)],
}
TARGET = 0.95
"""Labels are counted until a head reaches this share of the macro-F1 that all labels of the pool give."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labelled rows: X float32 (n, D), y text (n,), regions text (n,), blocks text (n,) or None."""

    X: np.ndarray
    y: np.ndarray
    regions: np.ndarray
    blocks: np.ndarray | None


def evaluate(
    table: EmbeddingsTable,
    y: Sequence[str | None],
    out_dir: str | os.PathLike,
    *,
    title: str = "Evaluation of embeddings",
    region: str = "region",
    block: str = "block",
    make_head: Callable[[], ClassifierMixin] = LogisticHead,
    seeds: int = 5,
    budgets: Sequence[int] = BUDGETS,
    n_bootstrap: int = 1_000,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """Measure a head on embeddings where it has labels, where it has none, and with few labels, and report it.

    Grouped cross-validation over all labels; leave one region out, and the same with 10 and 50 local labels; scores by
    region with intervals; calibration; labels bought at random, in equal numbers a region, and by the bandit. With a
    single region, what needs two is left out, and the report says so.

    Args:
        table: N embeddings.
        y: N labels, None where a row has none (`match_labels`, `column_labels`).
        out_dir: folder for report.html, figures.json and regions.csv; each is written aside and renamed.
        title: of the report.
        region: metadata column of regions; one region where the table has no such column.
        block: metadata column of spatial blocks, which are never split between training and test; rows are split one by
            one where the table has no such column, which the report says.
        make_head: gives a fresh classifier.
        seeds: replays of each strategy; 0 leaves label efficiency out.
        budgets: numbers of labels, rising; those beyond the pool are left out.
        n_bootstrap: resamplings of an interval.
        seed: of folds, resampling and the split of label efficiency.
        progress: show a bar.

    Returns:
        All figures, as in figures.json: `data`, `within`, `transfer`, `few_shot`, `label_efficiency`, `left_out` (why
        a part is missing), `settings`.

    Raises:
        DataError: no label, one class only, or a single block.
    """
    began = time.perf_counter()
    rows = _labelled(table, y, region, block)
    with tqdm(total=4, desc="evaluate", disable=not progress) as bar:
        figures = {"data": _describe(table, rows), "left_out": {}}
        within = partial(grouped_cross_validation, rows.X, rows.y, blocks=rows.blocks, seed=seed)
        figures["within"] = _account(rows, within, make_head, n_bootstrap, seed)
        bar.update()
        beyond = partial(leave_one_region_out, rows.X, rows.y, rows.regions, blocks=rows.blocks)
        try:
            figures["transfer"] = _account(rows, beyond, make_head, n_bootstrap, seed)
        except DataError as error:
            figures["transfer"], figures["left_out"]["transfer"] = None, str(error)
        bar.update()
        figures["few_shot"] = _few_shot(rows, make_head, figures["left_out"])
        bar.update()
        figures["label_efficiency"] = _efficiency(rows, make_head, seeds, budgets, seed, figures["left_out"])
        bar.update()
    figures["settings"] = {
        "head": repr(make_head()), "region": region, "block": block if rows.blocks is not None else None,
        "seeds": seeds, "n_bootstrap": n_bootstrap, "seed": seed, "library_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "figures.json", figures)
    write_text(out / "regions.csv", _regions_csv(figures))
    write_report(out / "report.html", title, pages(figures), subtitle=_subtitle(figures))
    return figures


def _labelled(table: EmbeddingsTable, y: Sequence[str | None], region: str, block: str) -> Labelled:
    y = np.asarray(y, object)
    if y.shape != (len(table),):
        raise DataError(f"{len(y)} labels do not fit {len(table)} embeddings; give one, or None, for each row")
    keep = np.flatnonzero([label is not None for label in y])
    if len(keep) == 0:
        raise DataError("no row of the table has a label; an evaluation needs labels of two classes at least")
    text = np.array([str(label) for label in y[keep]])
    if len(np.unique(text)) < 2:
        raise DataError(f"all {len(keep)} labels are of one class, {str(text[0])!r}; an evaluation needs two at least")
    regions = ["all"] * len(table)
    if region in table.metadata.column_names:
        regions = [name or "(no region)" for name in column_values(table, region)]
    blocks = spatial_blocks(table, block)
    return Labelled(table.vectors[keep], text, np.array(regions)[keep], None if blocks is None else blocks[keep])


def _describe(table: EmbeddingsTable, rows: Labelled) -> dict:
    names, counts = np.unique(rows.y, return_counts=True)
    return {
        "rows": len(table), "labelled": len(rows.y), "dim": int(rows.X.shape[1]),
        "classes": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "blocks": None if rows.blocks is None else len(np.unique(rows.blocks)),
        "regions": {
            name: {str(k): int(np.sum(rows.y[rows.regions == name] == k)) for k in names}
            for name in np.unique(rows.regions).tolist()
        },
        "content_hash": table.content_hash, "embeddings": table.info,
    }  # fmt: skip


def _account(rows: Labelled, predict: Callable, make_head: Callable, n_bootstrap: int, seed: int) -> dict:
    """All that is said of one way of splitting; `predict` takes a factory of classifiers."""
    proba = predict(make_head)
    regions = region_scores(rows.y, proba, rows.regions, rows.blocks, n_bootstrap=n_bootstrap, seed=seed)
    return {
        "regions": regions,
        "overall": score_intervals(rows.y, proba, rows.blocks, n_bootstrap=n_bootstrap, seed=seed),
        "spread": {metric: spread(regions, metric) for metric in METRICS},
        "worst_region": worst_region(rows.y, proba, rows.regions, rows.blocks, seed=seed),
        "classes": class_scores(rows.y, proba),
        "calibration": calibration(rows.y, proba),
        "baselines": {
            name: _mean_over_regions(rows, [predict(make) for make in makes]) for name, makes in BASELINES.items()
        },
    }


def _mean_over_regions(rows: Labelled, guesses: Sequence[np.ndarray]) -> dict[str, float]:
    tables = [region_scores(rows.y, proba, rows.regions, n_bootstrap=0) for proba in guesses]
    return {
        metric: float(np.mean([spread(table, metric).get("mean", math.nan) for table in tables])) for metric in METRICS
    }


def _few_shot(rows: Labelled, make_head: Callable, left_out: dict) -> dict | None:
    if "transfer" in left_out:
        left_out["few_shot"] = "it needs the predictions of a region left out"
        return None
    records = few_shot(rows.X, rows.y, rows.regions, make_head, rows.blocks)
    means = {metric: few_shot_means(records, metric) for metric in METRICS}
    if not means["macro_f1"]:
        left_out["few_shot"] = "no region has enough blocks and rows for a test and local labels apart"
        return None
    return {"records": records, "means": means}


def _efficiency(
    rows: Labelled, make_head: Callable, seeds: int, budgets: Sequence[int], seed: int, left_out: dict
) -> dict | None:
    blocks = np.arange(len(rows.y)) if rows.blocks is None else np.unique(rows.blocks, return_inverse=True)[1]
    pool, test = next(GroupShuffleSplit(1, test_size=1 / 3, random_state=seed).split(rows.X, groups=blocks))
    budgets = [int(count) for count in budgets if count <= len(pool)]
    names, codes = np.unique(rows.y, return_inverse=True)
    if seeds < 1 or len(budgets) < 2 or len(np.unique(codes[pool])) < 2:
        left_out["label_efficiency"] = (
            "not asked for" if seeds < 1 else f"{len(pool)} labels in the pool are too few for the budgets"
        )
        return None
    several = len(np.unique(rows.regions)) > 1
    strategies = {"random": lambda number: RandomSampling(seed=number)}
    if several:
        strategies["equal numbers a region"] = lambda number: StratifiedRandomSampling(seed=number)
    strategies["bandit"] = lambda number: CoverageBandit(head=make_head(), seed=number)
    records = replay(
        rows.X, codes, strategies, pool=pool, test=test, budgets=budgets, seeds=range(seeds), regions=rows.regions,
        head=make_head(),
    )  # fmt: skip
    whole = score(codes[test], fit_predict(make_head, rows.X, codes, blocks, pool, test, len(names)), range(len(names)))
    metrics = ("macro_f1", "worst_region_accuracy") if several else ("macro_f1",)
    return {
        "pool": len(pool), "test": len(test), "all_labels": whole, "target": TARGET * whole["macro_f1"],
        "curves": {metric: learning_curves(records, metric) for metric in metrics},
        "areas": {metric: areas(records, metric) for metric in metrics},
        "differences": {metric: differences(records, "bandit", metric) for metric in metrics},
        "labels_to_reach": labels_to_reach(records, "macro_f1", TARGET * whole["macro_f1"]), "records": records,
    }  # fmt: skip


def _subtitle(figures: dict) -> str:
    data = figures["data"]
    model = data["embeddings"].get("model", "embeddings of unknown origin")
    return f"{data['labelled']:,} labelled rows of {data['rows']:,}; {model}; {figures['settings']['created'][:10]}"


def _regions_csv(figures: dict) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    bounds = [f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")]
    writer.writerow(["protocol", "region", "rows", "blocks", *bounds])
    for protocol in ("within", "transfer"):
        for row in (figures[protocol] or {}).get("regions", ()):
            values = [row[metric][key] for metric in METRICS for key in ("value", "low", "high")]
            texts = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
            writer.writerow([protocol, row["region"], row["n"], row["blocks"], *texts])
    return buffer.getvalue()


__all__ = ["evaluate"]
