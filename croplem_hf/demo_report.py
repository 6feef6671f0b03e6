"""The report of `croplem demo`: what was made of an invented sample, as one page."""

from collections.abc import Sequence
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
    head: LogisticHead,
    bought: int,
    records: Sequence[dict],
    scene: Sample,
    cropland: np.ndarray,
    class_map: np.ndarray,
) -> dict:
    """Write OUT/report.html.

    Args:
        out: folder of the demo; holds `similar.png` and the pictures of the pretraining.
        table: N embeddings. truth: their labels (N,). regions: their places (N,).
        held_out: the place that was in no training.
        head: fitted on `bought` labels of the other places.
        records: of `croplem_hf.active.replay`, tested on the held-out place.
        scene: imagery of the map. cropland: bool (H, W), the truth. class_map: uint8 (H, W), band 1 of the map.

    Returns:
        "map_agreement": share of the classified pixels whose class is true; "held_out": scores of the head there.
    """
    test = regions == held_out
    proba = head.predict_proba(table.vectors[test])
    crop = head.classes_.tolist().index(LABELS[0])
    found = calibration(truth[test], proba)
    points = reliability(proba[:, crop], truth[test] == LABELS[0])
    known = class_map != NODATA
    agreement = float(((class_map == crop) == cropland)[known].mean())
    always = float(max(cropland[known].mean(), 1 - cropland[known].mean()))
    own = region_scores(truth[test], proba, regions[test])[0]
    left_out = leave_one_region_out(table.vectors, truth, regions, LogisticHead)
    by_region = region_scores(truth, left_out, regions)
    gaps = differences(records, "bandit", "macro_f1")
    last_step = sorted((out / "pretraining" / "pictures").glob("step-*.png"))[-1]
    sections = [
        section(
            "What this is",
            paragraph(INVENTED),
            key_facts({
                f"labels bought, of {int((~test).sum())} patches": str(bought),
                f"balanced accuracy in {held_out}, never trained on": percent(own["balanced_accuracy"]),
                "pixels of its map that are right": f"{agreement:.0%}",
                "for one class everywhere": f"{always:.0%}",
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
                f"all {int(test.sum())} patches of {held_out}. Mean of {len({r['seed'] for r in records})} seeds; the "
                "bands are 95 % intervals of that mean."
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
                f"The head on {bought} chosen labels, in {held_out}. Expected calibration error "
                f"{found['ece']:.3f}, Brier score {found['brier']:.3f}."
            ),
            reliability_figure({held_out: points}, of="cropland"),
        ),
        section(
            "The map",
            paragraph(
                f"Other ground of the held-out place, {class_map.shape[0]} x {class_map.shape[1]} pixels of 10 m, "
                f"classified by the same head; map.tif holds it with its probabilities. {agreement:.1%} of the "
                f"pixels are right; one class everywhere would be right on {always:.1%}. A patch head sees "
                "640 m at once, so that single fields and narrow rivers are not to be expected."
            ),
            image(
                _beside(scene, class_map, crop, cropland),
                alt="True colour, radar, mapped cropland and true cropland of the same ground",
                caption="True colour, radar (VV, VH, VV - VH), map, truth. Cropland is yellow, all else green.",
            ),
        ),
    ]
    write_report(out / "report.html", "croplem demo", sections, subtitle="An invented sample, from imagery to a map")
    return {"map_agreement": agreement, "held_out": own}


def _beside(scene: Sample, class_map: np.ndarray, crop: int, cropland: np.ndarray) -> np.ndarray:
    """uint8 (H, 4 W + gaps, 3)."""
    colours = np.array([OTHER, CROPLAND, UNKNOWN], np.uint8)
    mapped = colours[np.where(class_map == NODATA, 2, class_map == crop)]
    gap = np.full((class_map.shape[0], 8, 3), 255, np.uint8)
    return np.hstack([true_colour(scene), gap, radar(scene), gap, mapped, gap, colours[cropland.astype(int)]])


__all__ = ["write_demo_report"]
