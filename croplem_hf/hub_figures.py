"""Figures of an evaluation for a card: read from `figures.json`, never typed in."""

import json
import math
import os
from pathlib import Path

from .errors import CheckpointError, DataError

METRICS = {
    "auc": ("roc_auc", "AUC"), "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "macro_f1": ("f1", "macro-F1"),
}  # fmt: skip
PROTOCOLS = {"transfer": "region left out", "within": "labels of all regions"}


def read_figures(path: str | os.PathLike) -> dict:
    """What `croplem evaluate` wrote.

    Args:
        path: `figures.json`, or the folder of the report.

    Raises:
        DataError: it is not there, or not such a file.
    """
    path = Path(path)
    path = path / "figures.json" if path.is_dir() else path
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        for part in PROTOCOLS:
            if figures[part] is not None:
                figures[part]["regions"], figures[part]["calibration"]["ece"], figures[part]["spread"]["auc"]
        figures["data"]["embeddings"], figures["data"]["labelled"], figures["settings"]["created"]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `croplem evaluate` writes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the figures that `croplem evaluate` writes ({error!r:.200})") from error
    return figures


def named_figures(evaluations: list[str], weights_hash: str) -> dict[str, dict]:
    """Figures by name, all of one model.

    Args:
        evaluations: each "PATH", or "NAME=PATH" to call it otherwise than its folder.
        weights_hash: of the model whose card shows them.

    Raises:
        CheckpointError: the figures are of another model.
        DataError: as `read_figures`, or two have one name.
    """
    out = {}
    for text in evaluations:
        name, equal, path = text.partition("=")
        if not equal:
            path = text
            folder = Path(path) if Path(path).is_dir() else Path(path).parent
            name = folder.resolve().name
        figures = read_figures(path)
        if figures["data"]["embeddings"].get("weights_hash") != weights_hash:
            raise CheckpointError(f"{path}: these figures are of another model; embed with this one and evaluate again")
        if name in out:
            raise DataError(f"two evaluations are named {name!r}; give NAME=PATH")
        out[name] = figures
    return out


def eval_results(figures: dict[str, dict]) -> list:
    """Entries of `model-index`: for each evaluation and way of splitting the mean over regions and the worst one."""
    from huggingface_hub import EvalResult

    out = []
    for name, of in figures.items():
        for part, how in PROTOCOLS.items():
            if of[part] is None:
                continue
            spread = of[part]["spread"]
            for metric, (kind, text) in METRICS.items():
                for key, which in (("mean", "mean of regions"), ("worst", "worst region")):
                    value = _number(spread[metric].get(key))
                    if value is None:
                        continue
                    out.append(
                        EvalResult(
                            task_type="image-classification",
                            task_name="classification of frozen embeddings by a logistic head",
                            dataset_type="_".join(name.lower().split()), dataset_name=name, dataset_split=how,
                            metric_type=kind, metric_name=f"{text}, {which}", metric_value=round(value, 4),
                        )
                    )  # fmt: skip
    return out


def tables(of: dict) -> list[dict]:
    """For each way of splitting: `how`, `regions` (rows of a table, as text), `chance`, `calibration`."""
    out = []
    for part, how in PROTOCOLS.items():
        if of[part] is None:
            continue
        rows = [
            {"region": row["region"], "n": row["n"], "cells": [_cell(row[metric]) for metric in METRICS]}
            for row in of[part]["regions"]
        ]
        chance = of[part]["baselines"].get("chance", {})
        calibration = {key: _number(of[part]["calibration"].get(key)) for key in ("ece", "brier", "brier_prior")}
        chance = [_percent(_number(chance.get(metric))) for metric in METRICS]
        out.append({"how": how, "regions": rows, "chance": chance, "calibration": calibration})
    return out


def _cell(score: dict) -> str:
    value, low, high = (_number(score.get(key)) for key in ("value", "low", "high"))
    if value is None or low is None:
        return _percent(value)
    return f"{_percent(value)} ({_percent(low)} to {_percent(high)})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _number(value) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


__all__ = ["METRICS", "eval_results", "named_figures", "read_figures", "tables"]
