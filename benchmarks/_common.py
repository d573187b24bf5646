"""What the benchmarks share: medians, a table, a JSON line with the machine it was measured on."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, threads, versions."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "")
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
        model += " amx_bf16" if "amx_bf16" in flags else " avx512_bf16" if "avx512_bf16" in flags else ""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cpu_seconds(function: Callable[[], Any], repeats: int) -> list[float]:
    """CPU seconds of each of `repeats` calls after one that is not counted: other programs' load is not in them."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        function()
        seconds.append(time.process_time() - began)
    return seconds


def median_range(seconds: Sequence[float], per: int) -> Row:
    """Median, minimum and maximum of a timing, and items a second at the median."""
    median = statistics.median(seconds)
    return {
        "median_s": round(median, 5),
        "min_s": round(min(seconds), 5),
        "max_s": round(max(seconds), 5),
        "items_per_s": round(per / median, 1),
    }


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Rows with the same keys as a table."""
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key, justify="left" if key == "what" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=140).print(table)


def add_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Append one JSON line to <name>.jsonl in `folder`, with the machine and the day."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"benchmark": name, "day": time.strftime("%Y-%m-%d"), **result, "machine": machine()}
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(entry) + "\n")
    print(f"appended to {folder.name}/{name}.jsonl")
