# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What evaluations of text are shown as: a table of systems, and accuracy against forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from .statistics import shown_interval
from .text_records import TextEvaluation

_REVISION = ["re-masks", "to right %", "to wrong %", "precision %"]


def text_results_table(
    evaluations: Sequence[TextEvaluation],
    baseline: TextEvaluation | None = None,
    title: str = "Text",
    seed: int = 0,
    more: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """
    A table of systems, a row each, with 95 % intervals in brackets.

    Args:
        evaluations: Of the same samples where `baseline` is given.
        baseline: The system that each one's accuracy is compared with, by a paired bootstrap.
        title: Of the table.
        seed: Of the bootstrap.
        more: Further columns by their headings, a cell a system.

    Returns:
        Accuracy, the difference, forward passes, accuracy by group; where it was recorded what revision did: tokens
        taken back a sample, answers that it made right and wrong, the share of the tokens taken back that were wrong.

    Example:
        >>> from hf_rm.evaluation.text_records import TextRecord
        >>> one = TextRecord("1", "", "#### 5", True, 8, 0, 0, True, ())
        >>> text_results_table([TextEvaluation("sft", (one,), {}, 0)]).row_count
        1
    """
    table = Table(title=title, caption="95 % intervals in brackets; differences in points, paired bootstrap")
    table.add_column("system", min_width=12)
    seen = any(evaluation.revision for evaluation in evaluations)
    groups = list(dict.fromkeys(group for one in evaluations for group in one.by_group()))
    groups = groups if len(groups) > 1 else []
    headings = ["samples", "accuracy %", *([] if baseline is None else [f"less {baseline.name}"]), "forwards"]
    headings += [*(_REVISION if seen else []), *(more or {})]
    for heading in [*headings, *(f"{group or '(none)'} %" for group in groups)]:
        table.add_column(heading, justify="right")
    for row, evaluation in enumerate(evaluations):
        further = [cells[row] for cells in (more or {}).values()]
        cells = [*_cells(evaluation, baseline, seen, seed), *further, *_group_cells(evaluation, groups)]
        table.add_row(evaluation.name, *cells)
    return table


def _cells(evaluation: TextEvaluation, baseline: TextEvaluation | None, seen: bool, seed: int) -> list[str]:
    left_out = len(evaluation.too_long)
    cells = [f"{len(evaluation.records):,}" + (f" ({left_out} too long)" if left_out else "")]
    cells.append(shown_interval(evaluation.accuracy))
    if baseline is not None:
        cells.append(
            "-" if evaluation is baseline else shown_interval(evaluation.minus(baseline, seed=seed), sign="+")
        )
    cells.append(f"{evaluation.forwards.value:.1f}")
    revision = evaluation.revision
    if seen and revision is None:
        cells += ["-"] * len(_REVISION)
    elif seen and revision is not None:
        cells += [
            f"{revision.remasks.value:.2f}",
            shown_interval(revision.to_right),
            shown_interval(revision.to_wrong),
            shown_interval(revision.precision),
        ]
    return cells


def _group_cells(evaluation: TextEvaluation, groups: Sequence[str]) -> list[str]:
    rates = evaluation.by_group()
    return [shown_interval(rates[group]) if group in rates else "-" for group in groups]


def plot_forwards(curves: Mapping[str, Sequence[TextEvaluation]], path: str | Path) -> Path:
    """
    Accuracy against mean forward passes a sample, a line a system, with 95 % intervals, as a picture.

    Args:
        curves: By system its evaluations, each decoded under a budget of its own.
        path: Of the picture; its ending says which kind.

    Returns:
        The path.

    Raises:
        ImportError: Without matplotlib.
        ValueError: Without a curve.

    Example:
        >>> plot_forwards({"RM": budgets, "T2M": others}, "forwards.png")  # doctest: +SKIP
    """
    if not any(curves.values()):
        raise ValueError("`curves` is empty: pass at least one evaluation.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`plot_forwards` needs matplotlib: pip install "hf-rm[recipes]"') from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for name, evaluations in curves.items():
        points = sorted(((e.forwards.value, *e.accuracy[:3]) for e in evaluations), key=lambda point: point[0])
        forwards, values, lows, highs = zip(*points, strict=True)
        errors = [[100 * (v - w) for v, w in zip(values, lows, strict=True)]]
        errors.append([100 * (w - v) for v, w in zip(values, highs, strict=True)])
        axes.errorbar(forwards, [100 * v for v in values], yerr=errors, marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("forward passes a sample")
    axes.set_ylabel("right answers, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
