# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What is measured of an edited set, and the tables that are printed of it: always with 95 % intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from ...evaluation.statistics import Interval, mean_interval, paired_difference_interval
from .codebook import Image
from .edit import with_kept_pixels
from .metrics import Mask, edit_metrics, instruction_success
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
_NAMES = {"copy": "copy the source", "limit": "target's tokens (limit)"}
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
    """What needs no model: the source copied, and the target as its tokens show it; `keep_pixels` as in editing."""
    before, after = book.encode(examples.source), book.encode(examples.target)
    results = {"copy": book.decode(before), "limit": book.decode(after)}
    if keep_pixels:
        results["copy"] = examples.source
        results["limit"] = with_kept_pixels(results["limit"], examples.source, before == after)
    return [
        {"name": _NAMES[name], "system": name, "edits": measure(result, examples, book, keep_pixels)}
        for name, result in results.items()
    ]


def success_by_operation(success: Sequence[float], examples: EditExamples | EditPairs) -> dict[str, float]:
    """The share of edits of each operation that succeeded; empty for users' pairs."""
    if not isinstance(examples, EditExamples):
        return {}
    operations = np.array([edit.operation for edit in examples.edits])
    return {str(name): float(np.mean(np.asarray(success)[operations == name])) for name in np.unique(operations)}


def pooled(records: Sequence[Record]) -> list[Record]:
    """
    One record a system: each measure is averaged over the seeds, edit by edit, and so are forwards and seconds.

    Intervals of these means speak of other edits, not of other seeds.
    """
    together = []
    for system in dict.fromkeys(record["system"] for record in records):
        runs = [record for record in records if record["system"] == system]
        if len(runs) == 1:
            together.append(runs[0])
            continue
        edits = {name: _mean_of_finite([run["edits"][name] for run in runs]) for name in MEASURES}
        means = {name: float(np.mean([run[name] for run in runs])) for name in ("forwards", "seconds_an_edit")}
        operations = {
            name: float(np.mean([run["success_by_operation"][name] for run in runs]))
            for name in runs[0]["success_by_operation"]
        }
        own = {"name": f"{system}, {len(runs)} seeds", "seed": [run["seed"] for run in runs]}
        together.append({**runs[0], **own, "edits": edits, **means, "success_by_operation": operations})
    return together


def results_tables(records: Sequence[Record], title: str) -> list[Table]:
    """One table each of what was edited, what was kept, and both as tokens can show it."""
    tables = []
    for measures in (EDITED, KEPT, ON_TOKENS):
        table = Table(title=title)
        for heading in ("", *measures, *(("forwards", "edits / s") if measures is EDITED else ())):
            table.add_column(heading)
        for record in records:
            cells = [shown(interval(record["edits"][name])) for name in measures]
            table.add_row(record["name"], *cells, *(_costs(record) if measures is EDITED else ()))
        tables.append(table)
    return tables


def differences(record: Record, other: Record) -> dict[str, Interval]:
    """Of `record` minus `other`, paired over the edits that both have the measure for."""
    found = {}
    for name in MEASURES:
        a, b = (np.asarray(one["edits"][name], dtype=float) for one in (record, other))
        both = np.isfinite(a) & np.isfinite(b)
        found[name] = paired_difference_interval(a[both], b[both])
    return found


def differences_table(records: Sequence[Record], title: str, base: str = "sft") -> Table | None:
    """Every system minus `base`; a star marks intervals without zero. None where there is nothing to compare."""
    against = {record["system"]: record for record in records}
    others = [record for record in records if "forwards" in record and record["system"] != base]
    if base not in against or not others:
        return None
    table = Table(title=f"{title}: differences from {against[base]['name']}, paired")
    for heading in ("", *(record["name"] for record in others)):
        table.add_column(heading)
    columns = [differences(record, against[base]) for record in others]
    for name in MEASURES:
        table.add_row(name, *(starred(column[name]) for column in columns))
    return table


def markdown_table(records: Sequence[Record], measures: Sequence[str] = EDITED + KEPT) -> str:
    """The table of a card: one line a system."""
    return _markdown(
        ["", *measures, "forwards", "edits / s"],
        [[r["name"], *(shown(interval(r["edits"][name])) for name in measures), *_costs(r)] for r in records],
    )


def markdown_differences(records: Sequence[Record], base: str = "sft") -> str:
    """The paired differences of a card; empty where there is nothing to compare."""
    table = differences_table(records, "", base)
    if table is None:
        return ""
    columns = [list(column.cells) for column in table.columns]
    return _markdown([str(column.header) for column in table.columns], [*map(list, zip(*columns, strict=True))])


def interval(values: Sequence[float]) -> Interval:
    """Mean over the edits that have the measure."""
    array = np.asarray(values, dtype=float)
    finite = array[np.isfinite(array)]
    return mean_interval(finite) if len(finite) > 1 else Interval(np.nan, np.nan, np.nan, len(finite))


def shown(of: Interval) -> str:
    """An interval in a cell."""
    return f"{of.value:.3g} ({of.low:.3g} to {of.high:.3g})" if np.isfinite(of.value) else "-"


def starred(of: Interval) -> str:
    """A difference in a cell, with a star where its interval does not hold zero."""
    return shown(of) + (" *" if of.low > 0 or of.high < 0 else "")


def _costs(record: Record) -> tuple[str, str]:
    if "forwards" not in record:
        return "", ""
    return f"{record['forwards']:.3g}", f"{1 / record['seconds_an_edit']:.3g}"


def _mean_of_finite(rows: Sequence[Sequence[float]]) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nan where no seed has the measure
        mean: npt.NDArray[np.float64] = np.nanmean(np.asarray(rows, dtype=float), axis=0)
    return mean.tolist()


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    line: Callable[[Sequence[Any]], str] = lambda cells: f"| {' | '.join(map(str, cells))} |"  # noqa: E731
    return "\n".join([line(headings), "|" + " --- |" * len(headings), *map(line, rows)])
