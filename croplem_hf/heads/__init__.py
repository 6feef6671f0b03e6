"""Small classifiers on frozen embeddings, with calibrated probabilities, saved without pickle.

    table = read_table("patches.parquet")
    head = fit_head(table, match_labels(table, read_labels("labels.csv")))
    head.save("cropland.head")
    LogisticHead.load("cropland.head").predict_proba(other.vectors)
"""

from .base import Head
from .boosting import BoostingHead
from .conformal import ConformalSets
from .files import HEADS, load_head
from .fitting import conformalise, fit_head, region_names
from .knn import KNNHead
from .logistic import LogisticHead
from .mlp import MLPHead
from .novelty import LabelledNeighbourhood
from .regions import RegionCentre

__all__ = [
    "HEADS", "BoostingHead", "ConformalSets", "Head", "KNNHead", "LabelledNeighbourhood", "LogisticHead", "MLPHead",
    "RegionCentre", "conformalise", "fit_head", "load_head", "region_names",
]  # fmt: skip
