"""One call from labelled embeddings to an account of what they are good for: report.html, figures.json, regions.csv.

    table = select_where(read_table("series.parquet"), ["source=itu_cropland_2023"])
    evaluate(table, column_labels(table, "cropland"), "report")
"""

import csv
import datetime
import io
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from sklearn.base import ClassifierMixin
from tqdm import tqdm

from .. import __version__
from ..errors import DataError
from ..heads import LogisticHead, RegionCentre, region_names
from ..labels import column_values, spatial_blocks
from ..table import EmbeddingsTable
from .design import Design
from .fairness import METRICS, MIN_ROWS
from .pages import pages
from .parts import Labelled, account, efficiency, far_rows, few_local_labels, neighbours, sets_of_classes
from .report import write_json, write_report, write_text
from .transfer import grouped_cross_validation, leave_one_region_out

BUDGETS = (10, 20, 50, 100, 200, 500)
FILES = ("report.html", "figures.json", "regions.csv")
_SHOWN = 8
_log = logging.getLogger(__name__)


def evaluate(
    table: EmbeddingsTable,
    y: Sequence[str | None],
    out_dir: str | os.PathLike,
    *,
    title: str = "Evaluation of embeddings",
    region: str = "region",
    block: str = "block",
    make_head: Callable[[], ClassifierMixin] = LogisticHead,
    centre_by: str | None = None,
    design: Design | None = None,
    baselines: Callable[[list[str]], Mapping[str, np.ndarray]] | None = None,
    seeds: int = 5,
    budgets: Sequence[int] = BUDGETS,
    n_bootstrap: int = 1_000,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """Measure a head on embeddings where it has labels, where it has none, and with few labels, and report it.

    Grouped cross-validation over all labels; leave one region out, and the same with 10, 50 and 400 local labels;
    scores by region with intervals; calibration; sets of classes; nearest neighbours; labels bought at random, in equal
    numbers a region, and by the bandit. With a single region, what needs two is left out, and the report says so.

    Args:
        table: N embeddings.
        y: N labels, None where a row has none (`match_labels`, `column_labels`).
        out_dir: folder for report.html, figures.json and regions.csv; each is written aside and renamed. A new one, or
            that of an earlier report, which is replaced.
        title: of the report.
        region: metadata column of regions; one region where the table has no such column.
        block: metadata column of spatial blocks, which are never split between training and test; rows are split one by
            one where the table has no such column, which the report says.
        make_head: gives a fresh classifier.
        centre_by: metadata column of regions; each is centred on all of its embeddings, labelled or not, also the one
            that is left out.
        design: how the N labels were chosen (`read_design`); labels that a strategy picked are trained with and not
            tested on, and scores are weighted by inclusion probabilities.
        baselines: gives further features of the labelled rows by name, such as `imagery_baselines`, with ids as its
            argument; the same heads are fitted to them.
        seeds: replays of each strategy; 0 leaves label efficiency out.
        budgets: numbers of labels, rising; those beyond the pool are left out.
        n_bootstrap: resamplings of an interval.
        seed: of folds, resampling and the split of label efficiency.
        progress: show a bar.

    Returns:
        All figures, as in figures.json: `data`, `within`, `transfer`, `few_shot`, `sets`, `far`, `retrieval`,
        `label_efficiency`, `left_out` (why a part is missing), `settings`.

    Raises:
        DataError: no label, one class only, a single block, or a folder that holds other files than a report.
    """
    began, out = time.perf_counter(), Path(out_dir)
    _check_folder(out)
    rows = _labelled(table, y, region, block, centre_by, design, baselines)
    with tqdm(total=5, desc="evaluate", disable=not progress) as bar:
        figures = {"data": _describe(table, rows, design), "left_out": {}, "sets": [], "far": []}

        def within(X: np.ndarray, make: Callable[[], ClassifierMixin]) -> np.ndarray:
            return grouped_cross_validation(X, rows.y, make, rows.blocks, seed=seed)

        def beyond(X: np.ndarray, make: Callable[[], ClassifierMixin]) -> np.ndarray:
            return leave_one_region_out(X, rows.y, rows.regions, make, rows.blocks)

        figures["within"], _ = account(rows, within, make_head, n_bootstrap, seed)
        bar.update()
        try:
            figures["transfer"], proba = account(rows, beyond, make_head, n_bootstrap, seed)
            figures["sets"], figures["far"] = sets_of_classes(rows, proba, seed), far_rows(rows, proba, seed)
        except DataError as error:
            figures["transfer"], figures["left_out"]["transfer"] = None, str(error)
        bar.update()
        figures["few_shot"] = few_local_labels(rows, make_head, figures["left_out"])
        bar.update()
        figures["retrieval"] = neighbours(rows, seed)
        bar.update()
        figures["label_efficiency"] = efficiency(rows, make_head, seeds, budgets, seed, figures["left_out"])
        bar.update()
    figures["settings"] = {
        "head": repr(make_head()), "centre_by": centre_by, "region": region,
        "block": block if rows.blocks is not None else None,
        "seeds": seeds, "n_bootstrap": n_bootstrap, "seed": seed, "library_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    small = figures["data"]["small_regions"]
    if small:
        names = [f"{name} ({count})" for name, count in small.items()]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        _log.warning(
            "too few rows to test in %s: their figures mean little with fewer than %d; label more there, or join "
            "regions in another column (--region)", ", ".join(names[:_SHOWN]) + more, MIN_ROWS,
        )  # fmt: skip
    write_json(out / "figures.json", figures)
    write_text(out / "regions.csv", _regions_csv(figures))
    write_report(out / "report.html", title, pages(figures), subtitle=_subtitle(figures))
    return figures


def _check_folder(out: Path) -> None:
    """Refuse a folder in which a report would lie among, or replace, somebody's files."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give the name of a new folder")
    own = {*FILES, *(f"{name}.tmp" for name in FILES)}
    foreign = sorted(path.name for path in out.glob("*") if path.name not in own and not path.name.startswith("."))
    if foreign:
        raise DataError(
            f"{out}: holds other files than an earlier report, such as {foreign[0]}; give the name of a new folder"
        )


def _labelled(
    table: EmbeddingsTable, y: Sequence[str | None], region: str, block: str, centre_by: str | None,
    design: Design | None, baselines: Callable | None,
) -> Labelled:  # fmt: skip
    y = np.asarray(y, object)
    if y.shape != (len(table),):
        raise DataError(f"{len(y)} labels do not fit {len(table)} embeddings; give one, or None, for each row")
    keep = np.flatnonzero([label is not None for label in y])
    if len(keep) == 0:
        raise DataError("no row of the table has a label; an evaluation needs labels of two classes at least")
    text = np.array([str(label) for label in y[keep]])
    if len(np.unique(text)) < 2:
        raise DataError(f"all {len(keep)} labels are of one class, {str(text[0])!r}; an evaluation needs two at least")
    tests = np.ones(len(keep), bool) if design is None else design.tests[keep]
    if not tests.any():
        raise DataError("no label that may judge belongs to the table: all of them were picked by a strategy")
    if len(np.unique(text[tests])) < 2:
        raise DataError(
            f"all {tests.sum()} labels that may judge are of one class, {str(text[tests][0])!r}; draw more of them"
        )
    regions = ["all"] * len(table)
    if region in table.metadata.column_names:
        regions = [name or "(no region)" for name in column_values(table, region)]
    X = table.vectors
    if centre_by is not None:
        names = region_names(table, centre_by)
        X = RegionCentre().fit(X, names).transform(X, names)
    blocks = spatial_blocks(table, block)
    return Labelled(
        X[keep].astype(np.float32), text, np.array(regions)[keep], None if blocks is None else blocks[keep], tests,
        design.weights[keep] if design is not None and design.weighted else None,
        {} if baselines is None else baselines([table.ids[row] for row in keep]),
    )  # fmt: skip


def _describe(table: EmbeddingsTable, rows: Labelled, design: Design | None) -> dict:
    names, counts = np.unique(rows.y, return_counts=True)
    regions, tested = np.unique(rows.regions[rows.tests], return_counts=True)
    return {
        "rows": len(table), "labelled": len(rows.y), "dim": int(rows.X.shape[1]),
        "tested": int(rows.tests.sum()), "weighted": rows.weights is not None,
        "design_known": design is not None and design.known,
        "classes": dict(zip(names.tolist(), counts.tolist(), strict=True)),
        "blocks": None if rows.blocks is None else len(np.unique(rows.blocks)),
        "regions": {
            name: {str(k): int(np.sum(rows.y[rows.regions == name] == k)) for k in names}
            for name in np.unique(rows.regions).tolist()
        },
        "small_regions": {
            name: count for name, count in zip(regions.tolist(), tested.tolist(), strict=True) if count < MIN_ROWS
        },
        "content_hash": table.content_hash, "embeddings": table.info,
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
