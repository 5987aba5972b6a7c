"""Taps: the tensors whose sign says which gates of a network are open."""

from reluguard.detector.taps.survey import GateCounts, NotRead, Survey, find_taps, survey
from reluguard.detector.taps.tap import MAX_LEVEL, Tap, check_taps, in_blocks

__all__ = [
    "MAX_LEVEL",
    "GateCounts",
    "NotRead",
    "Survey",
    "Tap",
    "check_taps",
    "find_taps",
    "in_blocks",
    "survey",
]
