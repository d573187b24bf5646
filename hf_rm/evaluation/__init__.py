"""Evaluation: statistics that every task's metrics share, how well a run revised itself, text and multiple choice, by
ourselves and in lm-eval, and a sandbox for code."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .history_recall import recall_by_history, recall_table
from .multiple_choice import ChoiceEvaluation, Score, evaluate_multiple_choice, score_continuations
from .revision import CurvePoint, RevisionMetrics, revision_metrics
from .sandbox import SandboxResult, SandboxSupport, SandboxUnavailableError, run_code, sandbox_available
from .statistics import (
    Interval,
    mean_interval,
    paired_bootstrap,
    paired_difference_interval,
    shown_interval,
    wilson_interval,
)
from .text import evaluate_text
from .text_records import RevisionSeen, TextEvaluation, TextRecord
from .text_report import plot_forwards, text_results_table

if TYPE_CHECKING:
    from .lm_eval_model import ReflectiveLM as ReflectiveLM
    from .lm_eval_model import evaluate_tasks as evaluate_tasks

_LAZY = ("ReflectiveLM", "evaluate_tasks")  # they need lm-eval

__all__ = [
    "ChoiceEvaluation",
    "CurvePoint",
    "Interval",
    "ReflectiveLM",
    "RevisionMetrics",
    "RevisionSeen",
    "SandboxResult",
    "SandboxSupport",
    "SandboxUnavailableError",
    "Score",
    "TextEvaluation",
    "TextRecord",
    "evaluate_multiple_choice",
    "evaluate_tasks",
    "evaluate_text",
    "mean_interval",
    "paired_bootstrap",
    "paired_difference_interval",
    "plot_forwards",
    "recall_by_history",
    "recall_table",
    "revision_metrics",
    "run_code",
    "sandbox_available",
    "score_continuations",
    "shown_interval",
    "text_results_table",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".lm_eval_model", __name__), name)
