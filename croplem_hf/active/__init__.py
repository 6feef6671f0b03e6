"""Choosing what to label: a bandit, the baselines it has to beat, and their replay on labelled pools."""

from .bandit import CoverageBandit
from .baselines import (
    BadgeSampling,
    ClusterMarginSampling,
    DropQuerySampling,
    EntropySampling,
    KCenterSampling,
    MarginSampling,
    TypiClustSampling,
    UncertaintyHerdingSampling,
)
from .explain import Explanation
from .simulate import aulc, compare, replay
from .strategies import MISSING, RandomSampling, Strategy, StratifiedRandomSampling
from .trips import Trips

__all__ = [
    "MISSING",
    "BadgeSampling",
    "ClusterMarginSampling",
    "CoverageBandit",
    "DropQuerySampling",
    "EntropySampling",
    "Explanation",
    "KCenterSampling",
    "MarginSampling",
    "RandomSampling",
    "StratifiedRandomSampling",
    "Strategy",
    "Trips",
    "TypiClustSampling",
    "UncertaintyHerdingSampling",
    "aulc",
    "compare",
    "replay",
]
