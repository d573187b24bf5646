"""Evaluation: statistics that every task's metrics share, and how well a decoding run revised itself."""

from .revision import CurvePoint, RevisionMetrics, revision_metrics
from .statistics import Interval, mean_interval, paired_difference_interval, wilson_interval

__all__ = [
    "CurvePoint",
    "Interval",
    "RevisionMetrics",
    "mean_interval",
    "paired_difference_interval",
    "revision_metrics",
    "wilson_interval",
]
