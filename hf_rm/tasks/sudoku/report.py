# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation prints and saves: one flat record a run, a table beside the paper's, the scaling curve."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.table import Table

from ...evaluation.statistics import shown_interval
from .ceiling import CeilingTable
from .evaluate import ROUNDS, SudokuRun

Record: TypeAlias = dict[str, Any]
_Rows: TypeAlias = tuple[list[str], list[list[str]]]  # headings, and what stands below them

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
_ABLATED = {
    "exact_accuracy": 1,
    "ceiling": 1,
    "exact_on_unique": 1,
    "valid_rate": 1,
    "replay_mistake": 2,
    "conflict_cells": 2,
}
"""Columns of the ablation, and their digits behind the point."""
_PASTS = ("since_start", "revealed_once", "second_attempt")


def make_record(run: SudokuRun, ceiling: CeilingTable | None = None, **labels: Any) -> Record:
    """
    Everything that is reported of a run, as one JSON-ready dict: `labels`, the metrics with their intervals under
    `<name>_low` and `<name>_high`, recall by history class along its own trajectories, accuracy after so many
    rounds, and (with a ceiling of the same boards) the ceiling, the paired gap, the accuracy on uniquely decodable
    boards, and recall there of wrong digits that a cell holds for the first time (`own_recall_first`).
    """
    record: Record = {**labels, **run.metrics()}
    record["mean_steps"] = float(run.num_steps.mean())
    record["unfinished"] = int((~run.converged).sum())
    record["boards_per_second"] = len(run.final) / run.seconds
    record["own_recall"] = run.own_recall()
    record["by_errors"] = run.by_errors(ceiling)
    record["rounds"] = {str(r): list(run.accuracy_after(r))[:3] for r in ROUNDS}
    if ceiling is not None:
        unique = ceiling.unique[: len(run.final)]
        record["ceiling"] = float(ceiling.credit[: len(run.final)].mean())
        record["unique_boards"] = int(unique.sum())
        record["own_recall_first"] = run.own_recall(unique, first_only=True)
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


def results_markdown(records: Sequence[Record]) -> str:
    """The rows of [`results_table`] as Markdown, the paper's model below."""
    rows = [[record["name"], *(_cell(record, key) for key in _COLUMNS)] for record in records]
    paper = PAPER_TABLE_2["hr-decay-her"]
    rows.append(["the paper's model, 500 boards of its own", *(_cell(paper, key) for key in _COLUMNS)])
    return _markdown(["model", *_COLUMNS.values()], rows)


def errors_table(records: Sequence[Record]) -> Table:
    """Exact boards beside the ceiling, valid and unfinished ones, by the number of wrong cells they began with."""
    return _table("By wrong cells at the start", *_errors(records))


def errors_markdown(records: Sequence[Record]) -> str:
    """[`errors_table`] as Markdown."""
    return _markdown(*_errors(records), left=2)


def _errors(records: Sequence[Record]) -> _Rows:
    headings = ["model", "wrong cells", "boards", "exact %", "ceiling %", "unique, exact %", "valid %", "no rest"]
    shares = ("exact", "ceiling", "exact_on_unique", "valid")
    rows = [
        [
            record["name"],
            wrong,
            f"{row['boards']:,}",
            *(_cell(row, name) for name in shares),
            f"{round(row['unfinished'] * row['boards'])}",
        ]
        for record in records
        for wrong, row in record["by_errors"].items()
    ]
    return headings, rows


def own_recall_table(records: Sequence[Record]) -> Table:
    """Recall along the models' own trajectories: first meetings on uniquely decodable boards, and every step."""
    return _table("Re-mask recall along the models' own trajectories", *_own_recall(records))


def recall_markdown(records: Sequence[Record]) -> str:
    """Recall from the same states beside that along the own trajectories, with the wrong cells it rests on."""
    headings, rows = _own_recall(records)
    given = [_recall(record["recall"][past]) for record in records for past in _PASTS]
    headings[2:2] = ["same states %"]
    for row, value in zip(rows, given, strict=True):
        row[2:2] = [value]
    return _markdown(headings, rows, left=2)


def _own_recall(records: Sequence[Record]) -> _Rows:
    rows = [
        [
            record["name"],
            past.replace("_", " "),
            _recall(record.get("own_recall_first", {}).get(past)),
            _recall(record["own_recall"][past]),
        ]
        for record in records
        for past in _PASTS
    ]
    return ["model", "past", "own, first met, unique boards %", "own, every step %"], rows


def _recall(row: Mapping[str, float] | None) -> str:
    if row is None or not row["count"]:
        return "-"
    return f"{shown_interval((row['recall'], row['low'], row['high']))} of {row['count']:,}"


def ablation_tables(records: Sequence[Record], group: Sequence[str] = ("law", "variant")) -> list[Table]:
    """
    Mean and standard deviation over seeds for each combination of the labels `group`: figures beside the ceiling and
    recall from the same states, and in a second table recall along the models' own trajectories.
    """
    titles = "Sudoku ablation: mean ± standard deviation over seeds", "Recall along their own trajectories"
    return [_table(title, *rows) for title, rows in zip(titles, _ablation(records, group), strict=True)]


def ablation_markdown(records: Sequence[Record], group: Sequence[str] = ("law", "variant")) -> str:
    """[`ablation_tables`] as Markdown."""
    return "\n\n".join(_markdown(*rows, left=len(group)) for rows in _ablation(records, group))


def _ablation(records: Sequence[Record], group: Sequence[str]) -> tuple[_Rows, _Rows]:
    cells: dict[tuple[str, ...], list[Record]] = {
        labels: [] for labels in product(*(_values(records, label) for label in group))
    }
    for record in records:
        cells[tuple(str(record[label]) for label in group)].append(record)
    cells = {labels: runs for labels, runs in cells.items() if runs}
    labels = ["history" if label == "variant" else label for label in group]
    headings = [*labels, "seeds", *(_COLUMNS[key] for key in _ABLATED)]
    headings += [f"recall %: {past}" for past in ("since start", "M w", "w' M w")]
    rows = [[*names, str(len(runs)), *_figures(runs), *_recalls(runs, "recall")] for names, runs in cells.items()]
    # Records of an evaluation without a ceiling do not know which boards are uniquely decodable.
    ways = {"own_recall_first": "first met", "own_recall": "every step"}
    known = {which: how for which, how in ways.items() if any(which in record for record in records)}
    own = [f"{how} %: {past}" for how in known.values() for past in ("since start", "masked once", "masked again")]
    own_rows = [
        [*names, *(cell for which in known for cell in _recalls(runs, which))] for names, runs in cells.items()
    ]
    return (headings, rows), ([*labels, *own], own_rows)


def _values(records: Sequence[Record], label: str) -> list[str]:
    """Histories in the paper's order, all else as it comes."""
    seen = list(dict.fromkeys(str(record[label]) for record in records))
    return sorted(seen, key=lambda value: list(PAPER_TABLE_2).index(value) if value in PAPER_TABLE_2 else -1)


def _figures(runs: Sequence[Record]) -> list[str]:
    return [
        _spread([run.get(key, math.nan) for run in runs], 1 if key in _PLAIN else 100, digits)
        for key, digits in _ABLATED.items()
    ]


def _recalls(runs: Sequence[Record], which: str) -> list[str]:
    return [_spread([run[which][past]["recall"] for run in runs if which in run], 100) for past in _PASTS]


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    rule = "| " + " | ".join(["---"] * left + ["---:"] * (len(headings) - left)) + " |"
    return "\n".join([f"| {' | '.join(headings)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])


def plot_rounds(records: Sequence[Record], path: str | Path) -> Path:
    """
    The test-time scaling curve as a PNG: exact boards against decoding rounds with 95 % intervals, the ceiling as a
    line; and below it what is left to the ceiling, on a scale of its own, since the curve is near it after few rounds.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`plot_rounds` needs matplotlib: pip install "hf-rm[recipes]"') from error
    ceilings = {record["name"]: 100 * record["ceiling"] for record in records if "ceiling" in record}
    panels = 2 if ceilings else 1
    figure = Figure(figsize=(7.2, 4.0 + 2.4 * (panels - 1)), layout="constrained")
    axes = list(figure.subplots(panels, sharex=True, squeeze=False, height_ratios=(3, 2)[:panels]).flat)
    for number, record in enumerate(records):
        # Side by side: the intervals of two decodings would lie over one another.
        shift = 2 ** (min(0.08, 0.3 / len(records)) * (number - (len(records) - 1) / 2))
        rounds = np.array([int(r) for r in record["rounds"]])
        exact, low, high = 100 * np.array(list(record["rounds"].values())).T
        style = {"marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1.4, "color": f"C{number % 10}"}
        axes[0].errorbar(rounds * shift, exact, yerr=[exact - low, high - exact], label=record["name"], **style)
        if record["name"] in ceilings:
            gap = ceilings[record["name"]] - exact
            axes[1].errorbar(rounds * shift, gap, yerr=[high - exact, exact - low], **style)
            _write_gaps(axes[1], rounds * shift, gap, number == len(records) - 1)
    for ceiling in sorted(set(ceilings.values())):
        axes[0].axhline(ceiling, linestyle="--", color="black", linewidth=1, label=f"ceiling, {ceiling:.2f} %")
    # After one round nothing is exact, a mask is no digit: the scale begins where there is news.
    least = min(100 * of[0] for record in records for r, of in record["rounds"].items() if int(r) > 1)
    axes[0].set_ylim(min(80.0, least - 3), min(100.0, axes[0].get_ylim()[1]))
    axes[0].set_ylabel("exact boards, %")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xscale("log", base=2)
    axes[-1].set_xlim(0.8, 1.4 * ROUNDS[-1])
    axes[-1].set_xticks(ROUNDS, [str(r) for r in ROUNDS])
    axes[-1].set_xlabel("decoding rounds (after one nothing is exact: what was wrong is a mask)")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


_GAPS = (0.25, 0.5, 1, 2, 4, 8, 16)


def _write_gaps(panel: Any, places: Any, gaps: Any, label: bool) -> None:
    """The panel's logarithmic scale, and one curve's gaps in figures."""
    panel.set_ylabel("points below the ceiling")
    panel.set_yscale("log", base=2)
    panel.set_yticks(_GAPS, [f"{gap:g}" for gap in _GAPS])
    panel.set_ylim(_GAPS[0], 1.25 * _GAPS[-1])
    for place, gap in zip(places, gaps):
        if label and _GAPS[0] <= gap <= _GAPS[-1]:
            panel.annotate(f"{gap:.1f}", (place, gap), (7, 3), textcoords="offset points", fontsize=8)


def _cell(record: Record, key: str) -> str:
    value = record.get(key)
    if value is None or math.isnan(value):
        return "-"
    scale = 1 if key in _PLAIN else 100
    digits = 3 if key in _PLAIN else 2
    if f"{key}_low" not in record:
        return f"{scale * value:.{digits}f}"
    return shown_interval((value, record[f"{key}_low"], record[f"{key}_high"]), scale, digits)


def _spread(values: Sequence[float], scale: float, digits: int = 1) -> str:
    known = [scale * value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    if len(set(known)) == 1:  # one run, or the same boards' ceiling
        return f"{known[0]:.{digits}f}"
    return f"{statistics.mean(known):.{digits}f} ± {statistics.stdev(known):.{digits}f}"
