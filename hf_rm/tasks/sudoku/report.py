# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation prints and saves: one flat record a run, a table beside the paper's, the scaling curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ...evaluation.statistics import shown_interval
from .ceiling import CeilingTable
from .evaluate import ROUNDS, SudokuRun

Record = dict[str, Any]

PAPER_TABLE_2: dict[str, dict[str, float]] = {
    "no-hr": {"exact_accuracy": 0.824, "valid_rate": 0.866, "replay_mistake": 0.0057, "conflict_cells": 0.578},
    "hr": {"exact_accuracy": 0.914, "valid_rate": 0.918, "replay_mistake": 0.0007, "conflict_cells": 0.300},
    "hr-decay": {"exact_accuracy": 0.894, "valid_rate": 0.896, "replay_mistake": 0.0007, "conflict_cells": 0.362},
    "hr-decay-her": {"exact_accuracy": 0.934, "valid_rate": 0.936, "replay_mistake": 0.0003, "conflict_cells": 0.236},
}
"""Table 2 of the paper (its 500 boards are not published), as shares."""

_COLUMNS = {
    "exact_accuracy": "exact %",
    "ceiling": "ceiling %",
    "gap": "gap",
    "exact_on_unique": "unique, exact %",
    "valid_rate": "valid %",
    "replay_mistake": "replay %",
    "conflict_cells": "conflict cells",
}
_PLAIN = {"conflict_cells"}


def make_record(run: SudokuRun, ceiling: CeilingTable | None = None, **labels: Any) -> Record:
    """
    Everything that is reported of a run, as one JSON-ready dict: `labels`, the metrics with their intervals under
    `<name>_low` and `<name>_high`, recall by history class along its own trajectories, accuracy after so many
    rounds, and (with a ceiling of the same boards) the ceiling, the paired gap and the accuracy on uniquely
    decodable boards.
    """
    record: Record = {**labels, **run.metrics()}
    record["mean_steps"] = float(run.num_steps.mean())
    record["boards_per_second"] = len(run.final) / run.seconds
    record["own_recall"] = run.own_recall()
    record["by_errors"] = run.by_errors()
    record["rounds"] = {str(r): list(run.accuracy_after(r))[:3] for r in ROUNDS}
    if ceiling is not None:
        count = len(run.final)
        record["ceiling"] = float(ceiling.credit[:count].mean())
        record["unique_boards"] = int(ceiling.unique[:count].sum())
        for name, interval in run.against_ceiling(ceiling).items():
            record.update({name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high})
    return record


def results_table(records: Sequence[Record], title: str, paper_variants: Sequence[str] = ()) -> Table:
    """A table of runs, one row each with 95 % intervals, above the paper's rows."""
    table = Table(title=title, caption="95 % intervals in brackets; paper: Table 2, 500 boards, not published")
    table.add_column("model", min_width=24)
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for record in records:
        table.add_row(record["name"], *(_cell(record, key) for key in _COLUMNS))
    if paper_variants:
        table.add_section()
    for variant in paper_variants:
        table.add_row(f"paper, {variant}", *(_cell(PAPER_TABLE_2[variant], key) for key in _COLUMNS))
    return table


def markdown_table(records: Sequence[Record]) -> str:
    """The rows of [`results_table`] as Markdown, for cards and READMEs."""
    lines = ["| model | " + " | ".join(_COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(_COLUMNS)]
    for record in records:
        lines.append(f"| {record['name']} | " + " | ".join(_cell(record, key) for key in _COLUMNS) + " |")
    return "\n".join(lines)


def ablation_table(records: Sequence[Record], group: Sequence[str] = ("law", "variant")) -> Table:
    """Mean and standard deviation over seeds for each combination of the labels `group`, recall by history too."""
    table = Table(title="Sudoku ablation: mean ± standard deviation over seeds")
    classes = ("since_start", "revealed_once", "second_attempt")
    for heading in (*group, "seeds", "exact %", "valid %", "replay %", "conflict cells"):
        table.add_column(heading)
    for name in classes:
        table.add_column(f"recall %, {name.replace('_', ' ')}", justify="right")
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        cells.setdefault(tuple(str(record[label]) for label in group), []).append(record)
    for labels, runs in cells.items():
        spread = [_spread([run[key] for run in runs], 1 if key in _PLAIN else 100) for key in _ABLATED]
        recalls = [
            _spread([run["recall"][name]["recall"] for run in runs if "recall" in run], 100) for name in classes
        ]
        table.add_row(*labels, str(len(runs)), *spread, *recalls)
    return table


_ABLATED = ("exact_accuracy", "valid_rate", "replay_mistake", "conflict_cells")


def errors_table(records: Sequence[Record]) -> Table:
    """Exact, valid and unfinished boards by the number of wrong cells that they began with."""
    table = Table(title="By wrong cells at the start")
    for heading in ("model", "wrong cells", "boards", "exact %", "valid %", "not come to rest"):
        table.add_column(heading)
    for record in records:
        for wrong, row in record["by_errors"].items():
            unfinished = f"{round(row['unfinished'] * row['boards'])}"
            shares = f"{100 * row['exact']:.2f}", f"{100 * row['valid']:.2f}"
            table.add_row(record["name"], wrong, f"{row['boards']:,}", *shares, unfinished)
    return table


def plot_rounds(records: Sequence[Record], path: str | Path) -> Path:
    """
    The test-time scaling curve: exact accuracy against decoding rounds, with 95 % intervals and the ceiling, as a PNG.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`plot_rounds` needs matplotlib: pip install "hf-rm[test]"') from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for record in records:
        rounds = [int(r) for r in record["rounds"]]
        values, lows, highs = zip(*(record["rounds"][str(r)] for r in rounds), strict=True)
        errors = [[100 * (v - w) for v, w in zip(values, lows, strict=True)]]
        errors.append([100 * (w - v) for v, w in zip(values, highs, strict=True)])
        axes.errorbar(rounds, [100 * v for v in values], yerr=errors, marker="o", capsize=3, label=record["name"])
    ceilings = {record["ceiling"] for record in records if "ceiling" in record}
    for ceiling in ceilings:
        axes.axhline(100 * ceiling, linestyle="--", color="black", linewidth=1, label=f"ceiling {100 * ceiling:.1f} %")
    axes.set_xscale("log", base=2)
    axes.set_xticks(rounds, [str(r) for r in rounds])
    axes.set_xlabel("decoding rounds")
    axes.set_ylabel("exact boards, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    path = Path(path)
    figure.savefig(path, dpi=150)
    return path


def _cell(record: Record, key: str) -> str:
    value = record.get(key)
    if value is None or math.isnan(value):
        return "-"
    scale = 1 if key in _PLAIN else 100
    digits = 3 if key in _PLAIN else 2
    if f"{key}_low" not in record:
        return f"{scale * value:.{digits}f}"
    return shown_interval((value, record[f"{key}_low"], record[f"{key}_high"]), scale, digits)


def _spread(values: Sequence[float], scale: float) -> str:
    known = [scale * value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    deviation = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{statistics.mean(known):.2f} ± {deviation:.2f}"
