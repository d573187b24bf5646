# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What is measured of an edited set, and the tables that are printed of it: always with 95 % intervals."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from ...evaluation.statistics import Interval, mean_interval, paired_difference_interval
from .codebook import Image
from .edit import with_kept_pixels
from .metrics import Mask, edit_metrics, instruction_success, reconstruction_quality
from .pairs import EditPairs
from .protocols import ImageTokens
from .scenes import EditExamples

EDITED = ("precision", "coverage", "success", "acted")
KEPT = ("mae", "psnr", "ssim")
ON_TOKENS = ("precision_tokens", "mae_tokens", "psnr_tokens", "ssim_tokens")
MEASURES = EDITED + KEPT + ON_TOKENS
"""
`precision`, `coverage`, `mae`, `psnr`, `ssim`: as [`edit_metrics`] has them, against the true source.
`acted`: 1 where any pixel changed at all; `precision` is nan elsewhere.
`success`: [`instruction_success`]; nan for users' pairs, of which nobody knows what should be where.
`..._tokens`: the same outside the tokens that the region touches, against what a result without any edit looks like:
what an editor can reach that works on tokens. With kept pixels, or a decoder that looks at no neighbours, a model that
touches no other token has precision 1, mae 0 and 60 dB there (SSIM's windows reach over the border).
"""
_NAMES = {"copy": "copy the source", "oracle": "oracle: the target's own tokens"}
COSTS = ("forwards",)
BASE, AT_EQUAL_COVERAGE = "sft", "sft-keep"
Record = dict[str, Any]


def token_region(mask: Mask, patch: int) -> Mask:
    """
    The region of an edit, grown to whole tokens of `patch` pixels.

    Example:
        >>> mask = np.zeros((1, 4, 4), dtype=bool)
        >>> mask[0, 1, 2] = True
        >>> token_region(mask, 2)[0].astype(int).tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    batch, height, width = mask.shape
    touched = mask.reshape(batch, height // patch, patch, width // patch, patch).any((2, 4))
    return touched.repeat(patch, axis=1).repeat(patch, axis=2)


def measure(
    result: Image, examples: EditExamples | EditPairs, book: ImageTokens, keep_pixels: bool = True
) -> dict[str, list[float]]:
    """
    All of `MEASURES`, one number an edit. `keep_pixels` as it was in editing: without an edit a result is then the
    source itself, otherwise what its tokens show.
    """
    unedited = examples.source if keep_pixels else book.reconstruct(examples.source)
    measured = edit_metrics(result, examples.source, examples.mask, unedited)
    on_tokens = edit_metrics(result, unedited, token_region(examples.mask, book.patch), unedited)
    measured |= {f"{name}_tokens": on_tokens[name] for name in ("precision", *KEPT)}
    measured["acted"] = np.isfinite(measured["precision"]).astype(float)
    measured["success"] = np.full(len(examples), np.nan)
    if isinstance(examples, EditExamples):
        measured["success"] = instruction_success(result, examples, unedited).astype(float)
    return {name: measured[name].tolist() for name in MEASURES}


def reference_records(book: ImageTokens, examples: EditExamples | EditPairs, keep_pixels: bool = True) -> list[Record]:
    """
    What needs no model: the source copied, and the oracle, which knows the target's tokens (`keep_pixels` as in
    editing: its pixels are the source's where the tokens agree, so that it is no limit of the tokenizer's).

    The oracle's record also holds `reconstruction`, the limit: PSNR of every whole picture, encoded and decoded.
    """
    before, after = book.encode(examples.source), book.encode(examples.target)
    shown = {"source": book.decode(before), "target": book.decode(after)}
    whole = {name: reconstruction_quality(getattr(examples, name), shown[name])["psnr"].tolist() for name in shown}
    results = {"copy": shown["source"], "oracle": shown["target"]}
    if keep_pixels:
        results = {
            "copy": examples.source,
            "oracle": with_kept_pixels(shown["target"], examples.source, before == after),
        }
    copied, oracle = (
        {"name": _NAMES[name], "system": name, "edits": measure(result, examples, book, keep_pixels)}
        for name, result in results.items()
    )
    return [copied, oracle | {"reconstruction": whole}]


def reconstruction_line(records: Sequence[Record]) -> str:
    """The tokenizer's limit in words, from the oracle's record; empty without one."""
    whole = next((record["reconstruction"] for record in records if "reconstruction" in record), None)
    if whole is None:
        return ""
    parts = [f"{name}s {shown(mean_interval(np.asarray(psnr)), 4)} dB" for name, psnr in whole.items()]
    return f"whole pictures, encoded and decoded (PSNR): {', '.join(parts)}"


def threshold_of_coverage(coverage: Callable[[float], float], wanted: float, rounds: int = 6) -> tuple[float, float]:
    """
    The keep-threshold ([`KeptSource`]) at which a system covers about so much, and its coverage there: bisection.

    Args:
        coverage: a threshold to the mean coverage under it, which falls as the threshold rises.
        wanted (`float`): the coverage to come near to.
        rounds (`int`, defaults to 6): evaluations, beside the one at 0.5.

    Returns:
        The best of what was tried; 0.5, which keeps nothing, where the system covers no more than wanted by itself.

    Example:
        >>> threshold, covered = threshold_of_coverage(lambda threshold: 1.4 - threshold, 0.6)
        >>> abs(threshold - 0.8) < 0.01 and abs(covered - 0.6) < 0.01
        True
    """
    low, high = 0.0, 6.0  # log-odds
    tried = {0.5: coverage(0.5)}
    for _ in range(rounds if tried[0.5] > wanted else 0):
        middle = (low + high) / 2
        threshold = float(1 / (1 + np.exp(-middle)))
        tried[threshold] = coverage(threshold)
        low, high = (middle, high) if tried[threshold] > wanted else (low, middle)
    return min(tried.items(), key=lambda one: abs(one[1] - wanted))


def success_by_operation(success: Sequence[float], examples: EditExamples | EditPairs) -> dict[str, float]:
    """The share of edits of each operation that succeeded; empty for users' pairs."""
    if not isinstance(examples, EditExamples):
        return {}
    operations = np.array([edit.operation for edit in examples.edits])
    return {str(name): float(np.mean(np.asarray(success)[operations == name])) for name in np.unique(operations)}


def pooled(records: Sequence[Record]) -> list[Record]:
    """
    One record a system: each measure is averaged over the seeds, edit by edit, and so are the forwards.

    Intervals of these means speak of other edits, not of other seeds.
    """
    together = []
    for system in dict.fromkeys(record["system"] for record in records):
        runs = [record for record in records if record["system"] == system]
        if len(runs) == 1:
            together.append(runs[0])
            continue
        edits = {name: _mean_of_finite([run["edits"][name] for run in runs]) for name in MEASURES}
        means = {name: float(np.mean([run[name] for run in runs])) for name in COSTS}
        operations = {
            name: float(np.mean([run["success_by_operation"][name] for run in runs]))
            for name in runs[0]["success_by_operation"]
        }
        own = {"name": f"{system}, {len(runs)} seeds", "seed": [run["seed"] for run in runs]}
        together.append({**runs[0], **own, "edits": edits, **means, "success_by_operation": operations})
    return together


def joined(parts: Sequence[Record]) -> Record:
    """
    One system's records of several sets of edits as one: what is of every edit behind each other, forwards averaged.

    Example:
        >>> parts = [{"edits": {"mae": [1.0]}, "forwards": 2.0}, {"edits": {"mae": [4.0, 5.0]}, "forwards": 5.0}]
        >>> joined(parts)
        {'edits': {'mae': [1.0, 4.0, 5.0]}, 'forwards': 4.0}
    """
    whole: Record = {**parts[0], "edits": _behind_each_other([part["edits"] for part in parts])}
    if "reconstruction" in whole:
        whole["reconstruction"] = _behind_each_other([part["reconstruction"] for part in parts])
    if "vqa" in whole:
        whole["vqa"] = [score for part in parts for score in part["vqa"]]
    counts = [len(part["edits"]["mae"]) for part in parts]
    for name in COSTS:
        if name in whole:
            whole[name] = float(np.average([part[name] for part in parts], weights=counts))
    return whole


def _behind_each_other(columns: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    return {name: [value for column in columns for value in column[name]] for name in columns[0]}


def results_tables(records: Sequence[Record], title: str) -> list[Table]:
    """One table each of what was edited, what was kept, and both as tokens can show it."""
    return [
        _rich(title, *_results(records, measures, costs=measures is EDITED)) for measures in (EDITED, KEPT, ON_TOKENS)
    ]


def markdown_table(records: Sequence[Record], measures: Sequence[str] = EDITED + KEPT) -> str:
    """The table of a card: one line a system."""
    return _markdown(*_results(records, measures, costs=True))


def differences(record: Record, other: Record, where_both_acted: bool = False) -> dict[str, Interval]:
    """
    Of `record` minus `other`, paired over the edits that both have the measure for.

    Args:
        record, other (dict): two systems' records over the same edits.
        where_both_acted (`bool`, defaults to `False`): only over edits that both did something about. One that does
            nothing has no precision, and 60 dB outside the region.

    Example:
        >>> one = {"edits": {name: [1.0, 5.0, 9.0] for name in MEASURES} | {"acted": [1.0, 1.0, 0.0]}}
        >>> other = {"edits": {name: [0.0, 1.0, 0.0] for name in MEASURES} | {"acted": [1.0, 1.0, 1.0]}}
        >>> differences(one, other)["psnr"].value, differences(one, other, where_both_acted=True)["psnr"].value
        (4.666666666666667, 2.5)
    """
    found = {}
    acted = [np.asarray(one["edits"]["acted"], dtype=float) == 1 for one in (record, other)]
    counted = acted[0] & acted[1] if where_both_acted else np.ones_like(acted[0])
    for name in MEASURES:
        a, b = (np.asarray(one["edits"][name], dtype=float) for one in (record, other))
        both = np.isfinite(a) & np.isfinite(b) & counted
        found[name] = paired_difference_interval(a[both], b[both])
    return found


@dataclass(frozen=True)
class Comparison:
    """Systems minus another one: `title` says over which edits, `rows` have a heading, and a difference a system."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def comparisons(records: Sequence[Record]) -> list[Comparison]:
    """
    Every system minus vanilla fine-tuning: over all edits, then over those that both acted on; and RM minus the
    baseline at equal coverage ([`AT_EQUAL_COVERAGE`]). A star marks intervals without zero. Empty without a baseline.
    """
    by_system = {record["system"]: record for record in records}
    base, equal = by_system.get(BASE), by_system.get(AT_EQUAL_COVERAGE)
    others = [record for record in records if "forwards" in record and record["system"] != BASE]
    tables = []
    if base is not None and others:
        name = base["name"]
        tables.append(_comparison(f"minus {name}, all edits", base, others, False))
        tables.append(_comparison(f"minus {name}, edits that both acted on", base, others, True))
    if equal is not None and "rm" in by_system:
        tables.append(_comparison(f"minus {equal['name']}, at equal coverage", equal, [by_system["rm"]], False))
    return tables


def _comparison(title: str, base: Record, others: Sequence[Record], where_both_acted: bool) -> Comparison:
    columns = [differences(record, base, where_both_acted) for record in others]
    counts = [column["coverage"].observations for column in columns]  # every edit has one
    rows = [["edits", *map(str, counts)]]
    for name in MEASURES:
        if name != "acted" or not where_both_acted:
            rows.append(
                [name, *(_of_edits(column[name], count) for column, count in zip(columns, counts, strict=True))]
            )
    return Comparison(title, ["", *(record["name"] for record in others)], rows)


def _of_edits(of: Interval, edits: int) -> str:
    """A difference, and over how many edits where not all of them have the measure."""
    return starred(of) if of.observations == edits else f"{starred(of)}, n = {of.observations}"


def comparison_tables(records: Sequence[Record], title: str) -> list[Table]:
    """[`comparisons`] for the terminal."""
    return [_rich(f"{title}: {c.title}, paired", c.columns, c.rows) for c in comparisons(records)]


def markdown_comparisons(records: Sequence[Record]) -> str:
    """[`comparisons`] for a card; empty where there is nothing to compare."""
    return "\n\n".join(
        f"{c.title[0].upper()}{c.title[1:]}:\n\n{_markdown(c.columns, c.rows)}" for c in comparisons(records)
    )


CONDITION_MEASURES = ("precision", "coverage", "success", "psnr")


def condition_rows(conditions: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of what systems do under other conditions than those that they were trained for."""
    headings = ["condition", "edits", "system", *CONDITION_MEASURES]
    rows = [
        [r["condition"], str(len(r["edits"]["mae"])), r["name"], *(_shown(r, name) for name in CONDITION_MEASURES)]
        for r in conditions
    ]
    return headings, rows


def conditions_table(conditions: Sequence[Record], title: str) -> Table:
    """[`condition_rows`] for the terminal."""
    return _rich(title, *condition_rows(conditions))


def markdown_conditions(conditions: Sequence[Record]) -> str:
    """[`condition_rows`] for a card."""
    return _markdown(*condition_rows(conditions))


def shippable(record: Record) -> Record:
    """
    A record as a file: one number an edit, in five figures, null where there is none, and `means` with intervals.

    [`read_records`] undoes it, so that any difference can be computed from what is shipped.
    """
    edits = {name: [_rounded(value) for value in values] for name, values in record["edits"].items()}
    means = {name: interval(values) for name, values in record["edits"].items()}
    return {**record, "edits": edits, "means": {name: [_rounded(x) for x in of[:3]] for name, of in means.items()}}


def read_records(path: str | Path) -> list[Record]:
    """What `records.json` of a run or of a card holds, with nan in place of null."""
    records: list[Record] = json.loads(Path(path).read_text(encoding="utf-8"))
    for record in records:
        record["edits"] = {
            name: [np.nan if value is None else value for value in values] for name, values in record["edits"].items()
        }
    return records


def interval(values: Sequence[float]) -> Interval:
    """Mean over the edits that have the measure."""
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    return mean_interval(finite) if len(finite) > 1 else Interval(np.nan, np.nan, np.nan, len(finite))


def shown(of: Interval, figures: int = 3) -> str:
    """An interval in a cell."""
    return "{:.{f}g} ({:.{f}g} to {:.{f}g})".format(*of[:3], f=figures) if np.isfinite(of.value) else "-"


def starred(of: Interval) -> str:
    """A difference in a cell, with a star where its interval does not hold zero."""
    return shown(of) + (" *" if of.low > 0 or of.high < 0 else "")


def _shown(record: Record, name: str) -> str:
    return shown(interval(record["edits"][name]))


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _results(records: Sequence[Record], measures: Sequence[str], costs: bool) -> tuple[list[str], list[list[str]]]:
    headings = ["", *measures, *(COSTS if costs else ())]
    rows = []
    for record in records:
        own = [f"{record[name]:.3g}" if name in record else "" for name in COSTS] if costs else []
        rows.append([record["name"], *(_shown(record, name) for name in measures), *own])
    return headings, rows


def _rich(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean_of_finite(rows: Sequence[Sequence[float]]) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nan where no seed has the measure
        mean: npt.NDArray[np.float64] = np.nanmean(np.asarray(rows, dtype=float), axis=0)
    return mean.tolist()
