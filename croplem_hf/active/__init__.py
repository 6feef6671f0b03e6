"""Choosing what to label: a bandit, the baselines it has to beat, and their replay on labelled pools."""

from .bandit import CoverageBandit, Explanation
from .simulate import aulc, compare, replay
from .strategies import (
    MISSING,
    MarginSampling,
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
