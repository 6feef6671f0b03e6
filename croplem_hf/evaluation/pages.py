"""The sections of an evaluation report, from its figures: what was measured, in words, tables and pictures."""

from collections.abc import Mapping
from itertools import accumulate

from .fairness import METRICS, MIN_ROWS
from .figures import curve_figure, region_figure, reliability_figure
from .pages_more import far_section, few_shot_section, left_out, retrieval_section, sets_section
from .report import NAMES, bullets, key_facts, paragraph, percent, region_table, section, table

MAX_CLASSES = 20
HEAD_WIDTH = 60
"""Characters that the headings of a table may have together."""
HEADLINE = "auc"
NOT_SAID = (
    "A region which is not in the tables need not come out as these do: each is one case, and the next may be worse "
    "than the worst.",
    "Shares of predicted classes are no areas: errors of the two kinds need not cancel. The command croplem area "
    "corrects a map by a random sample, and gives the error.",
    "A difference within the intervals is none that was shown.",
    "Another year, another definition of the classes, or other sensors may give something else.",
)


def pages(figures: Mapping) -> list[str]:
    """Sections for `write_report`.

    Args:
        figures: what `evaluate` returns.
    """
    sections = [_summary(figures), _transfer(figures), _within(figures), few_shot_section(figures)]
    sections += [_calibration(figures), sets_section(figures), far_section(figures), retrieval_section(figures)]
    sections += [_efficiency(figures), _method(figures)]
    return [text for text in sections if text]


def _summary(figures: Mapping) -> str:
    within, transfer = figures["within"], figures["transfer"]
    facts = {f"AUC where labels are{_over(within)}": percent(_headline(within))}
    lines = [
        "AUC is the share of pairs, one row of a class and one of another, that the head puts in the right order: 50 "
        "is chance, 100 is perfect. It does not depend on where one cuts. Balanced accuracy is the mean share of each "
        "class that is found, cutting at 50 %."
    ]
    if transfer:
        facts[f"AUC in regions without labels{_over(transfer)}"] = percent(_headline(transfer))
        worst = transfer["spread"][HEADLINE]
        if worst["regions"] > 1:
            facts[f"AUC in the worst of them, {worst['worst_region']}"] = percent(worst["worst"])
            cuts = [percent(account["spread"]["balanced_accuracy"].get("mean")) for account in (within, transfer)]
            whole = [percent(account["overall"][HEADLINE]["value"]) for account in (within, transfer)]
            judged = transfer["spread"]["balanced_accuracy"]["regions"]
            over = "" if judged == worst["regions"] else f", of {judged} regions"
            lines.append(
                "These means count each region once, and pairs within a region alone; their intervals say nothing of a "
                f"region that is not among these. As such a mean{over}, balanced accuracy is {cuts[0]} with local "
                f"labels and {cuts[1]} without. With the rows of all regions in one order AUC is {whole[0]} and "
                f"{whole[1]}; the calibration errors are over all rows too. Between the best and the worst region "
                f"without local labels lie {percent(worst['gap'])} points of AUC."
            )
        lines += _unproven(transfer, "Without local labels")
    else:
        lines.append(f"Nothing can be said of other regions: {figures['left_out']['transfer']}.")
    lines += _unproven(within, "With local labels")
    for name, other in (transfer or within)["others"].items():
        where = "regions without labels" if transfer else "other blocks"
        lines.append(
            f"Beside {name} with the same head, in {where}: AUC {percent(other['gap'], signed=True)} (95 % "
            "interval; above 0 the embeddings are better)."
        )
    facts["calibration error (ECE) where labels are"] = percent(within["calibration"]["ece"])
    if transfer:
        facts["calibration error (ECE) in regions without"] = percent(transfer["calibration"]["ece"])
    majority = within["baselines"]["majority class"]
    if within["spread"]["accuracy"]["regions"]:
        judge = (
            f"the majority class alone has an accuracy of {percent(majority['accuracy'])} and a macro-F1 of "
            f"{percent(majority['macro_f1'])} (means over regions); "
        )
    else:
        judge = ""
    if within["spread"][HEADLINE]["regions"] < 2 <= len(within["regions"]):
        lines.append(
            f"Fewer than two regions have {MIN_ROWS} rows of several classes to test, so AUC has no mean over regions. "
            "The boxes put the rows of all regions into one order, which can be worse than the order within each."
        )
    lines.append(
        f"To judge by: {judge}guessing has an AUC of 50.0 and a balanced accuracy of {percent(_level(figures))}. All "
        "figures in percent."
    )
    lines += _design(figures["data"])
    return section("In short", key_facts(facts), *map(paragraph, lines), _data(figures)) + section(
        "What not to conclude", bullets(NOT_SAID)
    )


def _headline(account: Mapping) -> Mapping:
    """AUC as the mean over regions, where several can be judged, else over all rows."""
    over_regions = account["spread"][HEADLINE]
    return over_regions if over_regions["regions"] > 1 else account["overall"][HEADLINE]


def _over(account: Mapping) -> str:
    count = account["spread"][HEADLINE]["regions"]
    return f", mean of {count} regions" if count > 1 else ""


def _design(data: Mapping) -> list[str]:
    """How the labels were chosen, and what follows."""
    picked = data["labelled"] - data["tested"]
    lines = []
    if picked:
        lines.append(
            f"{picked:,} labels were picked by a strategy or drawn without a known probability: they are trained with, "
            f"and only the other {data['tested']:,} are tested on."
        )
    if data["weighted"]:
        lines.append("Scores are weighted by one over the inclusion probability of each label.")
    if not data["design_known"]:
        lines.append(
            "How the labels were chosen is not recorded. If a strategy picked them, or whoever labelled took what was "
            "easy to see, these figures hold for such places and not for the region."
        )
    return lines


def _unproven(account: Mapping, words: str) -> list[str]:
    """Regions whose interval of AUC reaches down to chance."""
    names = [f"{row['region']} ({row['n']:,} rows)" for row in account["regions"] if row["auc"]["low"] <= 0.5]
    return [f"{words}, the ranking is not told apart from chance in: {', '.join(names)}."] if names else []


def _level(figures: Mapping) -> float:
    return 1 / len(figures["data"]["classes"])


def _data(figures: Mapping) -> str:
    data = figures["data"]
    classes = sorted(data["classes"], key=data["classes"].get, reverse=True)
    widths = accumulate(len(f"class {name}") for name in classes)
    shown = [name for name, width in zip(classes, widths, strict=True) if width <= HEAD_WIDTH]
    rest = len(classes) - len(shown)
    columns = ["Region", *(f"class {name}" for name in shown), *([f"{rest} more classes"] if rest else []), "All"]
    rows = []
    for region, counts in data["regions"].items():
        total = sum(counts.values())
        listed = [counts[name] for name in shown]
        rows.append([region, *listed, *([total - sum(listed)] if rest else []), total])
    return table(columns, rows, caption="Labels by region and class")


def _account(figures: Mapping, name: str, caption: str) -> str:
    account = figures[name]
    several = len(account["regions"]) > 1
    means = {}
    if several:
        means["mean over regions"] = {metric: account["spread"][metric] for metric in METRICS}
        means["worst region"] = {metric: account["spread"][metric].get("worst") for metric in METRICS}
    means |= {f"{name}, mean" if several else name: values for name, values in account["baselines"].items()}
    return region_table(account["regions"], means=means, caption=caption)


def _equal_size(account: Mapping) -> str:
    worst = account["worst_region"]
    if worst["regions"] < 2:
        return ""
    return paragraph(
        f"At equal test size ({worst['size']:,} rows each, of {worst['regions']} regions) the worst region has a "
        f"balanced accuracy of {percent(worst)}."
    )


def _transfer(figures: Mapping) -> str:
    if not figures["transfer"]:
        return left_out(figures, "Regions without labels", "transfer")
    tables = {"no local labels": figures["transfer"]["regions"], "with local labels": figures["within"]["regions"]}
    for name, other in figures["transfer"]["others"].items():
        tables[f"{name}, no local labels"] = other["regions"]
    picture = region_figure(
        tables, metric=HEADLINE, level=0.5, caption="Each region, with 95 % intervals over blocks; the worst on top"
    )
    return section(
        "Regions without labels",
        paragraph(
            "Each region is predicted by a head that was trained on all other regions. This is what to expect where "
            "nobody has labelled yet."
        ),
        picture,
        _account(figures, "transfer", "Percent, with 95 % intervals over resampled blocks"),
        _equal_size(figures["transfer"]),
    )


def _within(figures: Mapping) -> str:
    blocks = figures["settings"]["block"]
    split = (
        f"No spatial block (column {blocks}) is on both sides of a split."
        if blocks
        else "The table has no column of spatial blocks: rows are split one by one, and where neighbours are alike "
        "these figures are too good."
    )
    found = sorted(figures["within"]["classes"], key=lambda row: -row["n"])
    classes = [
        [row["class"], row["n"], row["predicted"], percent(row["recall"]), percent(row["precision"])]
        for row in found[:MAX_CLASSES]
    ]
    caption = "By class" if len(found) == len(classes) else f"The {MAX_CLASSES} most common of {len(found)} classes"
    return section(
        "Where labels are",
        paragraph(f"Cross-validation in five folds over all labels: a region's own labels are in training. {split}"),
        _account(figures, "within", "Percent, with 95 % intervals over resampled blocks"),
        _equal_size(figures["within"]),
        table(["Class", "Rows", "Predicted", "Recall, %", "Precision, %"], classes, caption=caption),
    )


def _efficiency(figures: Mapping) -> str:
    found = figures["label_efficiency"]
    if not found:
        return left_out(figures, "How far labels go", "label_efficiency")
    whole, several = found["all_labels"], len(found["curves"]) > 1
    seeds = next(iter(found["curves"]["macro_f1"].values()))[0]["seeds"]
    parts = [
        paragraph(
            f"Labels are bought from a pool of {found['pool']:,} and tested on {found['test']:,} rows of other blocks. "
            f"Means and 95 % intervals over {seeds} seeds; the intervals are those of the mean on this pool."
        ),
        curve_figure(
            found["curves"]["macro_f1"], metric="macro_f1", level=whole["macro_f1"], level_name="all labels of the pool"
        ),
    ]
    if several:
        parts.append(curve_figure(found["curves"]["worst_region_accuracy"], metric="worst_region_accuracy"))
    need = found["labels_to_reach"]
    rows = [
        [
            name,
            *(percent(found["areas"][metric][name]["whole"]) for metric in found["areas"]),
            f"> {need[name]['limit']}" if need[name]["median"] is None else str(need[name]["median"]),
            f"{need[name]['reached']} of {need[name]['seeds']}",
        ]
        for name in found["curves"]["macro_f1"]
    ]
    columns = ["Strategy", *(f"{NAMES[metric]}, area" for metric in found["areas"]), "Labels to target", "Seeds there"]
    parts.append(
        table(
            columns, rows,
            caption="Area: mean height of the curve over log(labels), percent. Target: a macro-F1 of "
            f"{percent(found['target'])}, which is 95 % of what all labels of the pool give; median over seeds.",
        )
    )  # fmt: skip
    versus = [
        [difference["baseline"], NAMES[metric], percent(difference, signed=True)]
        for metric, differences in found["differences"].items()
        for difference in differences
    ]
    columns = ["Against", "Metric", "Bandit's area minus its"]
    parts.append(table(columns, versus, caption="Paired by seed, with 95 % bootstrap intervals over seeds"))
    return section("How far labels go", *parts)


def _calibration(figures: Mapping) -> str:
    # In the order of the picture of regions, so that colours mean the same.
    names = {"no local labels": figures["transfer"], "with local labels": figures["within"]}
    names = {name: account for name, account in names.items() if account}
    found = {name: account["calibration"] for name, account in names.items()}
    drawn = dict(found)
    of = figures["within"]["calibration"]["of"]
    of = of if of == "predicted class" else f"class {of}"
    scores = ("brier", "brier_prior", "log_loss")
    for name, other in (figures["transfer"] or figures["within"])["others"].items():
        found[f"{name}, {'no' if figures['transfer'] else 'with'} local labels"] = other["calibration"]
    rows = [
        [name, percent(c["ece"]), percent(c["ece_mass"]), *(f"{c[score]:.3f}" for score in scores)]
        for name, c in found.items()
    ]
    picture = reliability_figure({name: c["points"] for name, c in drawn.items()}, of=of)
    columns = ["", "ECE, %", "ECE, equal mass, %", "Brier", "Brier of the shares", "Log loss"]
    return section(
        "Whether probabilities can be believed",
        paragraph(
            "On the diagonal, of the rows predicted with 70 % as many come true. ECE is the mean gap; the Brier score "
            "is to be compared with that of always predicting the shares of the classes: above it, the probabilities "
            "are worse than none. Points of few rows (below) jump about and say little."
        ),
        table(columns, rows),
        picture,
        _calibration_by_region(figures),
    )


def _calibration_by_region(figures: Mapping) -> str:
    """ECE of every region, and the share of the last class: true, and as counted from predictions."""
    accounts = {"with local labels": figures["within"]}
    if figures["transfer"]:
        accounts["no local labels"] = figures["transfer"]
    shown = figures["data"]["classes"]
    name = max(shown) if len(shown) == 2 else max(shown, key=shown.get)
    columns, rows = ["Region", f"Share of class {name}, %"], []
    for which in accounts:
        columns += [f"ECE, {which}, %", f"Share predicted, {which}, %"]
    for k, line in enumerate(figures["within"]["regions"]):
        row = [line["region"]]
        for account in accounts.values():
            own = account["regions"][k]
            share = next(part for part in own["shares"] if part["class"] == name)
            row += [] if len(row) > 1 else [percent(share["true"])]
            row += [percent(own["calibration"]["ece"]), percent(share["predicted"])]
        rows.append(row)
    caption = f"By region. A share of class {name} that is predicted too high is as much area too much on a map"
    return table(columns, rows, caption=caption)


def _method(figures: Mapping) -> str:
    data, settings = figures["data"], figures["settings"]
    info = data["embeddings"]
    facts = [
        ["Embeddings", f"{data['labelled']:,} labelled of {data['rows']:,} rows, {data['dim']} numbers each"],
        ["Model", str(info.get("model", "unknown"))],
        ["Weights", str(info.get("weights_hash", "unknown"))[:16]],
        ["Sensors", str(info.get("sensors") or "all that are there")],
        ["Content hash", data["content_hash"][:16]],
        ["Head", settings["head"]],
        ["Every region centred on its own embeddings", settings["centre_by"] or "no"],
        ["Spatial blocks", "none" if data["blocks"] is None else f"{data['blocks']:,}"],
        ["Seed; resamplings", f"{settings['seed']}; {settings['n_bootstrap']:,}"],
        ["Made", f"{settings['created']} with croplem_hf {settings['library_version']} in {settings['seconds']} s"],
    ]
    notes = [
        "Scaling, regression and temperature are learned from the training rows of each split; nothing is tuned on "
        "test rows. Intervals resample blocks and say nothing of other places, years or definitions of classes.",
        f"AUC of more than two classes is the mean of one against the rest. Regions of fewer than {MIN_ROWS} rows are "
        "listed, and left out of means and worst. Whether the encoder saw these places in pretraining is for its card "
        "to say.",
    ]
    return section("How it was measured", table(["", ""], facts), *(paragraph(note, note=True) for note in notes))


__all__ = ["pages"]
