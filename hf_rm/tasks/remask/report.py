# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What the Remask recipes print and leave behind: a table of stages, confidence against correctness, reward curves."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from ...evaluation.statistics import Interval, mean_interval, paired_bootstrap, wilson_interval
from ...training.stages import write_json
from .problems import Outcome
from .stages import RemaskStages

_WINDOW = 10


def report(run: RemaskStages, seeds: Sequence[int], baseline: str | None = None) -> dict[str, Any]:
    """
    Train and evaluate every stage of every seed, print the tables, draw the curves, write `records.json`.

    Args:
        run ([`RemaskStages`]): the stages.
        seeds: Of the training.
        baseline: The stage that all others are compared with; by default the first that is shown.

    Returns:
        The records.

    Raises:
        ValueError: for a baseline that is not shown, or no seeds, and as [`RemaskStages.check`]: before the training.
    """
    shown = [name for name, stage in run.stages.items() if stage.shown]
    baseline = shown[0] if baseline is None and shown else baseline
    if baseline not in shown:
        raise ValueError(f"`baseline` is {baseline!r}: pass one of the stages that are shown, {', '.join(shown)}.")
    if not seeds:
        raise ValueError("`seeds` is empty: pass at least one.")
    run.check(seeds[0])
    found = {(name, seed): run.outcome(name, seed) for seed in seeds for name in shown}
    if not PartialState().is_main_process:
        return {}
    outcomes = {name: [found[name, seed][0] for seed in seeds] for name in shown}
    ceiling = run.problems.ceiling()
    records: dict[str, Any] = {"seeds": list(seeds), "baseline": baseline, "stages": {}}
    for name in shown:
        record = summary(outcomes[name], run.problems.verdicts)
        record["less baseline"] = None if name == baseline else list(less(outcomes[name], outcomes[baseline]))
        after = run.stages[name].after
        reinforced = run.stages[name].trainer == "rl" and after in outcomes
        record["less its start"] = list(less(outcomes[name], outcomes[str(after)])) if reinforced else None
        record["ceiling"] = None if ceiling is None else float(ceiling.mean())
        record["below ceiling"] = None if ceiling is None else list(_below(ceiling, outcomes[name]))
        minutes = [run.cpu_minutes(name, seed) for seed in seeds]
        record["cpu minutes"] = None if None in minutes else float(np.mean([m for m in minutes if m is not None]))
        record["auroc"] = {
            f"seed {seed}": {key: list(interval) for key, interval in found[name, seed][1].items()} for seed in seeds
        }
        records["stages"][name] = record
    console = Console(width=None if sys.stdout.isatty() else 200)
    title = f"{run.problems.name}, {len(outcomes[baseline][0].main)} held-out rows, {len(seeds)} seed(s)"
    console.print(stages_table(records, title))
    console.print(confidence_table(records))
    curves = {
        name: [run.logs(name, seed) for seed in seeds]
        for name, stage in run.stages.items()
        if stage.trainer == "rl" and stage.shown
    }
    if curves:
        records["curves"] = {name: [rewards_of(log) for log in logs] for name, logs in curves.items()}
    write_json(run.root / "records.json", records)
    console.print(f"records: {run.root / 'records.json'}", soft_wrap=True)
    if curves:
        _print_picture(console, records["curves"], run.root / "rewards.png")
    return records


def _print_picture(console: Console, curves: Mapping[str, Any], path: Path) -> None:
    """Where the curves are; hours of training do not end in an error for want of a picture."""
    try:
        console.print(f"rewards: {plot_rewards(curves, path)}", soft_wrap=True)
    except ImportError as error:
        console.print(f"rewards: no picture ({error}); the numbers are in the records", soft_wrap=True, markup=False)


# Numbers


def summary(outcomes: Sequence[Outcome], verdicts: Sequence[str] = ()) -> dict[str, Any]:
    """
    Each value's mean with its 95 % interval over the rows, as a list; and the spread of the first one over the seeds.

    A row's values are first averaged over the seeds. Of one seed, verdicts have Wilson's interval.

    Example:
        >>> one = Outcome({"right": [1.0, 0.0]}, [[], []])
        >>> summary([one, one])["right"][0], summary([one, one])["spread"]
        (0.5, 0.0)
    """
    record: dict[str, Any] = {}
    for name in outcomes[0].values:
        each = np.array([outcome.values[name] for outcome in outcomes])
        if name in verdicts and len(each) == 1:
            record[name] = list(wilson_interval(float(each.sum()), each.shape[1]))
        else:
            record[name] = list(mean_interval(each.mean(0)))
    means = [float(outcome.main.mean()) for outcome in outcomes]
    return record | {"spread": float(np.std(means, ddof=1)) if len(means) > 1 else None}


def less(outcomes: Sequence[Outcome], others: Sequence[Outcome]) -> Interval:
    """
    How much the first value is above another stage's, on the same rows and seeds: a bootstrap of the rows.

    Example:
        >>> one, other = Outcome({"right": [1.0, 1.0]}, [[], []]), Outcome({"right": [0.0, 0.0]}, [[], []])
        >>> less([one], [other])[:3]
        (1.0, 1.0, 1.0)
    """
    own, theirs = (np.mean([outcome.main for outcome in side], axis=0) for side in (outcomes, others))
    return paired_bootstrap(own, theirs)


def _below(ceiling: Any, outcomes: Sequence[Outcome]) -> Interval:
    return paired_bootstrap(ceiling, np.mean([outcome.main for outcome in outcomes], axis=0))


# Tables


def stages_table(records: Mapping[str, Any], title: str) -> Table:
    """A row a stage: its values, the differences, the compute that it took."""
    caption = (
        "95 % intervals over the rows in brackets; differences: points, paired bootstrap; CPU min with all before"
    )
    table = Table(title=title, caption=caption)
    rows = records["stages"]
    first = next(iter(rows.values()))
    names = [name for name, value in first.items() if isinstance(value, list) and name not in _DIFFERENCES]
    columns: dict[str, Any] = {}
    for name in names:
        scale = 100 if name in _SHARES else 1
        columns[f"{name} %" if scale == 100 else name] = lambda row, name=name, scale=scale: (
            f"{row[name][0]:.1f}" if name in _COUNTS else _shown(row[name], scale)
        )
    if len(records["seeds"]) > 1:
        columns["spread over seeds"] = lambda row: f"{100 * row['spread']:.1f}"
    if len(rows) > 1:
        columns[f"less {records['baseline']}"] = lambda row: _shown(row["less baseline"], 100, "+")
    if any(row["less its start"] for row in rows.values()):
        columns["less its start"] = lambda row: _shown(row["less its start"], 100, "+")
    if first["ceiling"] is not None:
        columns[f"below {100 * first['ceiling']:.2f}, the ceiling"] = lambda row: _shown(row["below ceiling"], 100)
    columns["CPU min"] = lambda row: "-" if row["cpu minutes"] is None else f"{row['cpu minutes']:.1f}"
    for heading in ("stage", *columns):
        table.add_column(heading)
    for stage, row in rows.items():
        table.add_row(stage, *(cell(row) for cell in columns.values()))
    return table


_COUNTS = ("forwards", "re-masks")
_SHARES = ("right", "exact", "valid")
_DIFFERENCES = ("less baseline", "less its start", "below ceiling")


def confidence_table(records: Mapping[str, Any]) -> Table:
    """The area under the ROC curve of confidence against correctness, a row a stage and seed."""
    caption = "RemeDi: h; otherwise l(x) - l(M), Eq. 1's atoms. 95 % intervals by resampling rows in brackets"
    table = Table(title="Confidence in a visible token against its correctness: AUROC", caption=caption)
    for heading in ("stage", "seed", "planted errors", "tokens", "its own final tokens", "tokens"):
        table.add_column(heading)
    for stage, row in records["stages"].items():
        for seed, found in row["auroc"].items():
            cells = []
            for name in ("planted", "own"):
                interval = found.get(name)
                cells += ["-", "-"] if interval is None else [_shown(interval, 1, digits=3), f"{interval[3]:,}"]
            table.add_row(stage, seed.removeprefix("seed "), *cells)
    return table


def _shown(interval: Sequence[float] | None, scale: float, sign: str = "", digits: int = 2) -> str:
    if interval is None or np.isnan(interval[0]):
        return "-"
    digits = 1 if scale == 100 else digits
    value, low, high = (f"{scale * part:{sign}.{digits}f}" for part in interval[:3])
    return f"{value} [{low}, {high}]"


# Curves


def rewards_of(log: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Reward, its spread within groups, and forward passes of every logged step."""
    names = ("step", "reward", "reward_std", "rollout/num_forwards", "rollout/num_remasks")
    entries = [entry for entry in log if "reward" in entry]
    return {name: [float(entry[name]) for entry in entries] for name in names if all(name in e for e in entries)}


def plot_rewards(curves: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], path: str | Path) -> Path:
    """
    Mean reward of the rollouts against the update, a thin line a seed and a bold one their moving mean, as a picture.

    Args:
        curves: By stage, of each seed what [`rewards_of`] gives.
        path: Of the picture; its ending says which kind.

    Returns:
        The path.

    Raises:
        ImportError: Without matplotlib.

    Example:
        >>> plot_rewards({"rm-rl": [{"step": [1, 2], "reward": [0.2, 0.3]}]}, "rewards.png")  # doctest: +SKIP
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('`plot_rewards` needs matplotlib: pip install "hf-rm[recipes]"') from error
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, runs) in enumerate(curves.items()):
        colour = f"C{number}"
        for one in runs:
            axes.plot(one["step"], one["reward"], color=colour, linewidth=0.6, alpha=0.5)
        shortest = min(len(one["reward"]) for one in runs)
        mean = np.mean([one["reward"][:shortest] for one in runs], axis=0)
        window = max(1, min(_WINDOW, shortest // 2))
        smooth = np.convolve(mean, np.ones(window) / window, mode="valid")
        axes.plot(runs[0]["step"][window - 1 : shortest], smooth, color=colour, linewidth=2, label=name)
    axes.set_xlabel("update")
    axes.set_ylabel("mean reward of the rollouts")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
