"""Choosing what to label: a bandit, the baselines it has to beat, and their replay on labelled pools."""

from .bandit import CoverageBandit, Explanation
from .simulate import aulc, compare, replay
from .baselines import (
    BadgeSampling, ClusterMarginSampling, DropQuerySampling, EntropySampling, KCenterSampling, MarginSampling,
    TypiClustSampling, UncertaintyHerdingSampling,
)  # fmt: skip
from .strategies import (
    MISSING,
    RandomSampling,
    Strategy,
    StratifiedRandomSampling,
)

__all__ = [
    "MISSING",
    "CoverageBandit",
    "Explanation",
    "MarginSampling",
    "RandomSampling",
    "StratifiedRandomSampling",
    "Strategy",
    "aulc",
    "compare",
    "replay",
]
