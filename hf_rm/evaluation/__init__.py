"""Evaluation: statistics that every task's metrics share, and the sandbox for model-written code."""

from .sandbox import SandboxResult, SandboxSupport, SandboxUnavailableError, run_code, sandbox_available
from .statistics import Interval, mean_interval, paired_difference_interval, wilson_interval

__all__ = [
    "Interval",
    "SandboxResult",
    "SandboxSupport",
    "SandboxUnavailableError",
    "mean_interval",
    "paired_difference_interval",
    "run_code",
    "sandbox_available",
    "wilson_interval",
]
