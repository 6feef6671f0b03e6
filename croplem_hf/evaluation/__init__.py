"""Honest evaluation of heads on embeddings: unseen regions, few labels, fairness, calibration, and a report of it.

The functions take arrays of embeddings, labels, regions and blocks and a factory of classifiers; `evaluate` runs them
all on an embeddings table and writes the report.
"""

from .area import area_estimates, area_from_counts
from .calibration import calibration, calibration_error, reliability
from .fairness import METRICS, class_scores, region_scores, region_spread, score, score_intervals, spread, worst_region
from .figures import curve_figure, region_figure, reliability_figure
from .label_efficiency import areas, differences, labels_to_reach, learning_curves
from .report import image, image_section, key_facts, paragraph, region_table, section, table, write_report
from .run import evaluate
from .transfer import few_shot, few_shot_means, grouped_cross_validation, leave_one_region_out

__all__ = [
    "METRICS", "area_estimates", "area_from_counts", "areas", "calibration", "calibration_error", "class_scores",
    "curve_figure", "differences", "evaluate", "few_shot", "few_shot_means", "grouped_cross_validation", "image",
    "image_section", "key_facts", "labels_to_reach", "learning_curves", "leave_one_region_out", "paragraph",
    "region_figure", "region_scores", "region_spread", "region_table", "reliability", "reliability_figure", "score",
    "score_intervals", "section", "spread", "table", "worst_region", "write_report",
]  # fmt: skip
