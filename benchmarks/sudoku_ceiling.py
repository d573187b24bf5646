"""How exactly can corrupted Sudoku boards be restored at all? The exact ceiling of the Sudoku revision task.

    python benchmarks/sudoku_ceiling.py --boards 100 --seed 2026                   # seconds, one core
    python benchmarks/sudoku_ceiling.py --boards 10000 --seed 2026 --processes 2   # minutes
    python benchmarks/sudoku_ceiling.py --boards 2000 --seed 2026 --source real

The table of each board is written as npz (`hf_rm.tasks.sudoku.load_ceiling` reads it); a finished file with the same
settings is not computed again. One JSON line a run goes to sudoku_ceiling.jsonl beside it. Needs ortools
(`pip install hf-rm[sudoku]`).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _common import add_result

from hf_rm.evaluation import Interval
from hf_rm.tasks.sudoku import CeilingTable, boards_digest, evaluation_set, load_ceiling, map_ceiling, save_ceiling

RESULTS = Path(__file__).parent / "results"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: The words after the program's name; None reads the real ones.

    Returns:
        The options, `output` filled in.

    Example:
        >>> parse_arguments(["--boards", "5"]).boards
        5
    """
    parser = argparse.ArgumentParser(description="Exact ceiling of the Sudoku revision task.")
    parser.add_argument("--boards", type=int, default=1000, help="how many boards (real: at most 2000)")
    parser.add_argument("--seed", type=int, default=2026, help="seed of the evaluation set")
    parser.add_argument("--source", choices=["generated", "real"], default="generated", help="which boards")
    parser.add_argument("--limit", type=int, default=1000, help="list at most this many closest boards of one board")
    parser.add_argument("--processes", type=int, default=1, help="worker processes")
    parser.add_argument("--output", type=Path, help="npz file (default: in benchmarks/results, named by the settings)")
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = RESULTS / f"sudoku_ceiling_{options.source}_{options.boards}_{options.seed}.npz"
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Give the settings that decide the result (not how fast it is reached).

    Args:
        options: From [`parse_arguments`].

    Returns:
        Plain values for the npz file and the JSON line.

    Example:
        >>> settings_of(parse_arguments(["--seed", "3"]))["seed"]
        3
    """
    return {name: getattr(options, name) for name in ("source", "boards", "seed", "limit")}


def finished(path: Path, settings: dict[str, Any], digest: str) -> CeilingTable | None:
    """Load an earlier result if it has the same settings and speaks about the same boards.

    Args:
        path: The npz file.
        settings: What this run would compute.
        digest: Fingerprint of this run's boards.

    Returns:
        The table, or None if there is none to use.

    Example:
        >>> finished(Path("no such file"), {}, "") is None
        True
    """
    if not path.exists():
        return None
    table = load_ceiling(path)
    return table if table.settings.items() >= settings.items() and table.digest == digest else None


def show_progress(done: int, total: int) -> None:
    """Write a line to the terminal now and then.

    Args:
        done: Boards finished.
        total: Boards in all.

    Example:
        >>> show_progress(1, 1000)
    """
    if done % 500 == 0 or done == total:
        print(f"{done} of {total} boards", file=sys.stderr, flush=True)


def compute(options: argparse.Namespace) -> tuple[CeilingTable, bool]:
    """Compute the table and save it, or load it if it is already there.

    Args:
        options: From [`parse_arguments`].

    Returns:
        The table, and whether it was computed now.

    Example:
        >>> import tempfile
        >>> file = os.path.join(tempfile.mkdtemp(), "ceiling.npz")
        >>> compute(parse_arguments(["--boards", "2", "--output", file]))[1]
        True
    """
    corrupted, target = evaluation_set(options.source, options.boards, options.seed)
    settings = settings_of(options)
    table = finished(options.output, settings, boards_digest(corrupted, target))
    if table is not None:
        return table, False
    start = time.perf_counter()
    table = map_ceiling(corrupted, target, options.processes, show_progress, options.limit)
    seconds = time.perf_counter() - start
    run = {"processes": options.processes, "wall_seconds": round(seconds, 1)}
    table = replace(table, settings=table.settings | settings | run)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_ceiling(options.output, table)
    return table, True


def format_table(table: CeilingTable) -> str:
    """Lay the summary out as text.

    Args:
        table: The result.

    Returns:
        One line a number.

    Example:
        >>> corrupted, target = evaluation_set("generated", 1, 0)
        >>> "exact_ceiling" in format_table(map_ceiling(corrupted, target))
        True
    """

    def percent(interval: Interval) -> str:
        return f"{100 * interval.value:6.2f} %  [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"

    lines = [f"{name:24s} {percent(interval)}" for name, interval in table.summary().items()]
    lines.append(f"{'closest boards':24s} {table.closest.mean():6.3f} mean, {table.closest.max()} at most")
    lines.append(f"{'limit hit':24s} {int((~table.complete).sum()):6d} of {len(table.complete)} boards")
    lines.append(f"{'one core':24s} {1000 * table.seconds.mean():6.1f} ms a board")
    return "\n".join(lines)


def result_line(table: CeilingTable) -> dict[str, Any]:
    """Give what goes to the JSON lines: the settings, the result and its cost.

    Args:
        table: The result.

    Returns:
        Plain values.

    Example:
        >>> corrupted, target = evaluation_set("generated", 1, 0)
        >>> "digest" in result_line(map_ceiling(corrupted, target))
        True
    """
    results = {name: interval._asdict() for name, interval in table.summary().items()}
    cost = {"ms_per_board": round(1000 * float(table.seconds.mean()), 2), "digest": table.digest}
    return {**table.settings, **results, **cost, "ortools": version("ortools")}


def main() -> None:
    """Run the benchmark.

    Example:
        >>> callable(main)
        True
    """
    options = parse_arguments()
    table, is_new = compute(options)
    print(format_table(table))
    if is_new:
        add_result("sudoku_ceiling", result_line(table), folder=options.output.parent)
    else:
        print(f"(read from {options.output.name}; delete it to compute again)")


if __name__ == "__main__":
    main()
