"""Evaluation: statistics that every task's metrics share, how well a run revised itself, and a sandbox for code."""

from .revision import CurvePoint, RevisionMetrics, revision_metrics
from .sandbox import SandboxResult, SandboxSupport, SandboxUnavailableError, run_code, sandbox_available
from .statistics import Interval, mean_interval, paired_difference_interval, wilson_interval

__all__ = [
    "CurvePoint",
    "Interval",
    "RevisionMetrics",
    "SandboxResult",
    "SandboxSupport",
    "SandboxUnavailableError",
    "mean_interval",
    "paired_difference_interval",
    "revision_metrics",
    "run_code",
    "sandbox_available",
    "wilson_interval",
]
