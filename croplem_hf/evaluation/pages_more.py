"""Sections of a report beyond the scores: few local labels, sets of classes, rows unlike all labels, neighbours."""

import math
from collections.abc import Mapping, Sequence

from .fairness import METRICS
from .parts import CONFIDENCE
from .report import NAMES, paragraph, percent, section, table
from .retrieval import K
from .transfer import THRESHOLD_LABELS


def left_out(figures: Mapping, title: str, name: str) -> str:
    """A section that says why it is empty."""
    return section(title, paragraph(f"Left out: {figures['left_out'][name]}."))


def few_shot_section(figures: Mapping) -> str:
    """What a few local labels add."""
    title = "A few local labels"
    if not figures["few_shot"]:
        return left_out(figures, title, "few_shot")
    found = figures["few_shot"]
    means, others = found["means"], found["others"]
    rows = [
        [
            point["n_labels"], percent(point["mean"]), percent(point["worst"]),
            *(percent(lines[k]["mean"]) if k < len(lines) else "–" for lines in others.values()),
            *(percent(means[m][k]["mean"]) for m in METRICS[1:]),
        ]
        for k, point in enumerate(means["auc"])
    ]  # fmt: skip
    columns = ["Local labels", "AUC", "AUC, worst region", *(f"AUC, {name}" for name in others)]
    parts = [
        paragraph(
            "Labels of all other regions and a few random ones of the region itself, tested on the same half of its "
            "blocks. Local labels count as much as any other; with many labels elsewhere, a few weigh little."
        ),
        table(
            [*columns, *(NAMES[metric] for metric in METRICS[1:])], rows,
            caption=f"Percent, means over {means['auc'][0]['regions']} regions",
        ),
    ]  # fmt: skip
    moved = {name: lines[0]["mean"] for name, lines in found["moved"].items() if lines}
    if moved and not math.isnan(moved["moved_balanced_accuracy"]):
        before, after = means["balanced_accuracy"][0]["mean"], moved["moved_balanced_accuracy"]
        verdict = "" if after > before else ", so it cut well without them"
        parts.append(
            paragraph(
                "A head without local labels may rank well and cut in the wrong place. Where "
                f"{THRESHOLD_LABELS} local labels only move its threshold, without training on them, its balanced "
                f"accuracy goes from {percent(before)} to {percent(after)}{verdict}."
            )
        )
    return section(title, *parts)


def sets_section(figures: Mapping) -> str:
    """Conformal sets; nothing where no region had labels enough."""
    if not figures["sets"]:
        return ""
    rows = [
        [line["region"], line["n"], line["n_local"]]
        + [text for k in ("local", "elsewhere") for text in (percent(line[k]["coverage"]), f"{line[k]['size']:.2f}")]
        for line in figures["sets"]
    ]
    columns = ["Region", "Rows", "Local labels", "True class in set, %, local", "Classes in a set"]
    columns += ["True class in set, %, elsewhere", "Classes in a set "]
    return section(
        "Sets of classes",
        paragraph(
            f"Instead of one class a head can name all that are plausible, so that the true one is among them in "
            f"{100 * CONFIDENCE:.0f} % of rows. That holds where labels of the region itself calibrated the sets "
            "(local) and not where only labels of other regions did (elsewhere): below that share, the head is surer "
            "than it is right there. A set of two of two classes says: do not know; an empty one, which brings the "
            "classes in a set below one on average: unlike all that calibrated."
        ),
        table(columns, rows),
    )


def far_section(figures: Mapping) -> str:
    """Rows unlike all labels of the other regions."""
    if not figures["far"]:
        return ""
    rows = [
        [line["region"], line["n"], *(percent(line[key]) for key in ("far", "accuracy_far", "accuracy_near"))]
        for line in figures["far"]
    ]
    return section(
        "Rows unlike anything labelled",
        paragraph(
            "A row is far where its nearest label of another region is farther than it is for 19 of 20 of those labels "
            "among themselves (each to its nearest one in another block). Many far rows mean that a region is new "
            "ground: label there first. Few far rows do not prove that a head is right."
        ),
        table(["Region", "Rows", "Far, %", "Accuracy, far, %", "Accuracy, others, %"], rows),
    )


def retrieval_section(figures: Mapping) -> str:
    """Precision among the nearest."""
    found = figures["retrieval"]
    keys = ("within", "within_chance", "across", "across_chance")

    def line(name: str, values: Mapping) -> list:
        return [name, *(percent(values[key]) for key in keys)]

    rows: list[Sequence] = [line(row["region"], row) for row in found["regions"]]
    several = len(rows) > 1
    below = [line("mean over regions", found["mean"])] if several else []
    below += [line(f"{name}, mean", values) for name, values in found["others"].items()]
    return section(
        "Whether neighbours are alike",
        paragraph(
            f"Of the {K} most similar embeddings, the share that is of the same class as the one that asked: among "
            "other blocks of its own region, and among all other regions. By chance: what a blind draw would give."
        ),
        table(
            ["Region", "Same region, %", "by chance", "Other regions, %", "by chance "], rows + below,
            strong=[len(rows)] if several else (), faint=range(len(rows) + several, len(rows) + len(below)),
        ),
    )  # fmt: skip


__all__ = ["far_section", "few_shot_section", "left_out", "retrieval_section", "sets_section"]
