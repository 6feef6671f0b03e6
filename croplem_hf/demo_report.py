"""The report of `croplem demo`: what was made of an invented sample, as one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .data.sample import Sample
from .data.synthetic import LABELS
from .evaluation import (
    calibration,
    curve_figure,
    differences,
    image,
    key_facts,
    learning_curves,
    leave_one_region_out,
    paragraph,
    region_scores,
    region_table,
    reliability,
    reliability_figure,
    section,
    table as html_table,
    write_report,
)
from .evaluation.report import percent
from .heads import LogisticHead
from .mapping import NODATA
from .pictures import radar, true_colour
from .table import EmbeddingsTable

CROPLAND, OTHER, UNKNOWN = (222, 178, 60), (70, 110, 90), (200, 200, 200)
INVENTED = (
    "Everything here comes from an invented sample: landscapes, speckle, clouds and labels are generated. No figure of "
    "this page says anything about real places; it shows what the commands do and what their results look like."
)


def write_demo_report(
    out: Path,
    *,
    table: EmbeddingsTable,
    truth: np.ndarray,
    regions: np.ndarray,
    held_out: str,
    labelled: np.ndarray,
    heads: Mapping[str, LogisticHead],
    maps: Mapping[str, np.ndarray],
    records: Sequence[dict],
    scene: Sample,
    cropland: np.ndarray,
) -> float:
    """Write OUT/report.html.

    Args:
        out: folder of the demo; holds `similar.png` and the pictures of the pretraining.
        table: N embeddings. truth: their labels (N,). regions: their places (N,).
        held_out: the place that the encoder and the first head never saw.
        labelled: the labels that were bought (N,), None elsewhere.
        heads: without and with labels of the held-out place, by name.
        maps: uint8 (H, W), band 1 of the map of each head.
        records: of `croplem_hf.active.replay`, tested on the held-out place.
        scene: imagery of the maps. cropland: bool (H, W), the truth.

    Returns:
        Share of the classified pixels of the last map whose class is true.
    """
    bought = np.array([label is not None for label in labelled])
    test = (regions == held_out) & ~bought
    crops = {name: head.classes_.tolist().index(LABELS[0]) for name, head in heads.items()}
    probas = {name: head.predict_proba(table.vectors[test]) for name, head in heads.items()}
    points = {name: reliability(p[:, crops[name]], truth[test] == LABELS[0]) for name, p in probas.items()}
    own = {name: region_scores(truth[test], p, regions[test])[0] for name, p in probas.items()}
    errors = {name: calibration(truth[test], p) for name, p in probas.items()}
    masks = {name: np.where(found == NODATA, 2, found == crops[name]) for name, found in maps.items()}
    right = {name: float((mask == cropland)[mask < 2].mean()) for name, mask in masks.items()}
    always = float(max(cropland.mean(), 1 - cropland.mean()))
    by_region = region_scores(truth, leave_one_region_out(table.vectors, truth, regions, LogisticHead), regions)
    gaps = differences(records, "bandit", "macro_f1")
    last_step = sorted((out / "pretraining" / "pictures").glob("step-*.png"))[-1]
    first, last = heads
    elsewhere, local = int((bought & (regions != held_out)).sum()), int((bought & (regions == held_out)).sum())
    sections = [
        section(
            "What this is",
            paragraph(INVENTED),
            key_facts({
                "balanced accuracy in a place without labels": percent(own[first]["balanced_accuracy"]),
                f"the same with {last}": percent(own[last]["balanced_accuracy"]),
                f"pixels right in its map, {first}": f"{right[first]:.0%}",
                f"pixels right in its map, {last}": f"{right[last]:.0%}",
                "right with one class everywhere": f"{always:.0%}",
            }),
        ),
        section(
            "Inputs and reconstructions",
            paragraph(
                "The packaged checkpoint was trained a little further on the sample, without the held-out place. Left "
                "to right: radar and optics as measured, what the encoder saw, what it predicted for the rest. "
                "Detail of the size of a patch comes back blurred or not at all; tone and large shapes should."
            ),
            image(last_step, alt="Inputs, masked inputs and reconstructions of six patches, radar and optics"),
        ),
        section(
            "Similar patches",
            paragraph(
                "Each framed patch and those whose embeddings are nearest to its own. Neighbouring patches share half "
                "of their ground, so that the first answers often overlap the query."
            ),
            image(out / "similar.png", alt="Four query patches, each with its five nearest neighbours"),
        ),
        section(
            "Which patches to label",
            paragraph(
                f"Labels were bought from the other places only, by three ways of choosing, and a head was tested on "
                f"all {int((regions == held_out).sum())} patches of {held_out}. Mean of "
                f"{len({r['seed'] for r in records})} seeds; the bands are 95 % intervals of that mean. This is the "
                "hardest test of a choice: what covers the pool need not suit a place outside it. Where the pool is "
                "the region to be mapped, the bandit has more to offer (benchmarks/RESULTS.md)."
            ),
            curve_figure(learning_curves(records, "macro_f1"), metric="macro_f1"),
            html_table(
                ["Bandit against", "Area under the curve, points (95 % interval)", "Seeds"],
                [[gap["baseline"], percent(gap, signed=True), gap["seeds"]] for gap in gaps],
                caption="Difference of the mean macro-F1 over the logarithm of the labels, paired by seed",
            ),
        ),
        section(
            "Region by region",
            paragraph(
                "Each place predicted by a head that saw all labels of the others and none of its own. Patches of a "
                "place overlap and are alike, so the intervals, which resample patches, are too narrow."
            ),
            region_table(by_region),
        ),
        section(
            "Are the probabilities right?",
            paragraph(
                f"On the patches of {held_out} that were not labelled, by a head on {elsewhere} chosen labels of other "
                f"places, and by one on {local} of its own besides. "
                + "Expected calibration error and Brier score: "
                + "; ".join(f"{found['ece']:.2f} and {found['brier']:.3f}, {name}" for name, found in errors.items())
                + ". Patches overlap, so that those tested share ground with those labelled."
            ),
            reliability_figure(points, of="cropland"),
        ),
        section(
            "The map",
            paragraph(
                f"Other ground of the held-out place, {cropland.shape[0]} x {cropland.shape[1]} pixels of 10 m, "
                f"classified by both heads; map.tif holds the second map with its probabilities. {right[first]:.1%} of "
                f"the pixels are right with {first}, {right[last]:.1%} with {last}, {always:.1%} with one class "
                "everywhere. A head on patches sees 640 m at once: single fields and narrow rivers are not to be "
                "expected."
            ),
            image(
                _beside(scene, list(masks.values()), cropland),
                alt="True colour, radar, two maps of cropland and true cropland of the same ground",
                caption=f"True colour; radar (VV, VH, VV - VH); map, {first}; map, {last}; truth. Cropland is yellow.",
            ),
        ),
    ]
    write_report(out / "report.html", "croplem demo", sections, subtitle="An invented sample, from imagery to a map")
    return right[last]


def _beside(scene: Sample, masks: Sequence[np.ndarray], cropland: np.ndarray) -> np.ndarray:
    """uint8 (H, W of all panels, 3); masks hold 1 for cropland and 2 for nodata."""
    colours = np.array([OTHER, CROPLAND, UNKNOWN], np.uint8)
    gap = np.full((len(cropland), 8, 3), 255, np.uint8)
    panels = [true_colour(scene), radar(scene), *(colours[mask.astype(int)] for mask in (*masks, cropland))]
    return np.hstack([part for panel in panels for part in (panel, gap)][:-1])


__all__ = ["write_demo_report"]
