"""Figures of a report, as SVG images that are part of the page.

They are drawn without pyplot, so nothing global changes but the style while one is drawn.
"""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from .report import NAMES, embed, percent

# Okabe and Ito's colours, told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888", "axes.labelcolor": "#333", "xtick.color": "#555", "ytick.color": "#555",
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "axes.axisbelow": True,
    "legend.frameon": False, "svg.fonttype": "path", "svg.hashsalt": "croplem",
}  # fmt: skip


def curve_figure(
    curves: Mapping[str, Sequence[Mapping]], *, metric: str, level: float | None = None, level_name: str = "",
    caption: str = "",
) -> str:  # fmt: skip
    """Learning curves over the number of labels (log scale), with their intervals as bands.

    Args:
        curves: for every strategy a list of `n_labels`, `mean`, `low`, `high` (`learning_curves`).
        metric: what is drawn, shares from 0 to 1.
        level: a horizontal line to compare with.
        level_name: what that line is.
        caption: text below.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(curves.items()):
            at = [point["n_labels"] for point in points]
            colour = COLOURS[number % len(COLOURS)]
            low, high = ([100 * point[end] for point in points] for end in ("low", "high"))
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(at, [100 * p["mean"] for p in points], color=colour, marker=marker, markersize=4.5, label=name)
        if level is not None:
            axes.axhline(100 * level, color="#666", linewidth=1, linestyle=(0, (4, 3)), label=level_name)
        axes.set_xscale("log")
        axes.set_xticks(sorted({point["n_labels"] for points in curves.values() for point in points}))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.grid(False, axis="x")
        bottom, top = axes.get_ylim()
        axes.set(xlabel="labels bought", ylabel=f"{NAMES.get(metric, metric)}, %", ylim=(max(0, bottom), min(101, top)))
        axes.legend(loc="lower right")
        last = ", ".join(f"{name} {percent(points[-1]['mean'])}" for name, points in curves.items())
        alt = f"Learning curves of {NAMES.get(metric, metric)} over labels; at the last budget: {last}."
        return _svg(figure, alt, caption)


def region_figure(tables: Mapping[str, Sequence[Mapping]], *, metric: str, level: float, caption: str = "") -> str:
    """One metric by region as points with intervals, the worst region of the first table on top.

    Args:
        tables: what `region_scores` gives, by name.
        metric: a column, shares from 0 to 1.
        level: a vertical line: chance.
        caption: text below.
    """
    first = sorted(next(iter(tables.values())), key=lambda row: -np.nan_to_num(row[metric]["value"], nan=np.inf))
    place = {row["region"]: number for number, row in enumerate(first)}
    with matplotlib.rc_context(_STYLE):
        lines = -(-(len(tables) + 1) // 3)
        height = 0.9 + 0.2 * lines + max(0.42, 0.2 * (len(tables) + 0.8)) * len(place)
        figure = Figure(figsize=(7.6, height), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(100 * level, color="#666", linewidth=1, linestyle=(0, (4, 3)), label="chance")
        for number, (name, rows) in enumerate(tables.items()):
            shift = 0.8 * ((len(tables) - 1) / 2 - number) / max(len(tables), 3)
            at = [place[row["region"]] + shift for row in rows]
            value, low, high = (np.array([100 * row[metric][k] for row in rows]) for k in ("value", "low", "high"))
            axes.errorbar(
                value, at, xerr=np.nan_to_num([value - low, high - value]).clip(0), label=name, linestyle="none",
                marker=MARKERS[number], markersize=5, color=COLOURS[number], elinewidth=1.4,
            )  # fmt: skip
        axes.set_yticks(list(place.values()), list(place))
        axes.set(xlabel=f"{NAMES.get(metric, metric)}, %", ylim=(-0.6, len(place) - 0.4))
        axes.grid(False, axis="y")
        for edge in range(1, len(place)):
            axes.axhline(edge - 0.5, color="#e6e6e6", linewidth=0.8)
        figure.legend(loc="outside upper left", ncols=3)
        worst = first[-1]
        alt = f"{NAMES.get(metric, metric)} by region; the worst is {worst['region']}, {percent(worst[metric])}."
        return _svg(figure, alt, caption)


def reliability_figure(curves: Mapping[str, Sequence[Mapping]], *, of: str, caption: str = "") -> str:
    """Reliability diagram: observed over predicted probability, with the number of rows in each bin below.

    Args:
        curves: points of `reliability` by name.
        of: what the probability is of.
        caption: text below.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.0, 5.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.plot([0, 1], [0, 1], color="#999", linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
        for number, (name, points) in enumerate(curves.items()):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            at = [point["predicted"] for point in points]
            upper.plot(at, [p["observed"] for p in points], color=colour, marker=marker, markersize=5, label=name)
            lower.plot(at, [p["n"] for p in points], color=colour, marker=marker, markersize=4, linewidth=1)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed share")
        lower.set(ylim=(0, None), ylabel="rows", xlabel=f"predicted probability of {of}")
        upper.legend(loc="upper left")
        gaps = {name: max(abs(p["predicted"] - p["observed"]) for p in points) for name, points in curves.items()}
        listed = ", ".join(f"{name} {gap:.2f}" for name, gap in gaps.items())
        return _svg(figure, f"Reliability diagram of {of}; largest gap of a bin: {listed}.", caption)


def _svg(figure: Figure, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return embed("image/svg+xml", buffer.getvalue(), alt=alt, caption=caption, width=round(figure.get_figwidth() * 96))


__all__ = ["curve_figure", "region_figure", "reliability_figure"]
