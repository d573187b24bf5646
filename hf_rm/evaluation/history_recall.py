# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Does a model take a wrong token back, whatever its past? The same states under three different histories."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from ..generation_rules_rm import remask_advantage
from ..history import HistorySegments
from ..modes import evaluating
from .statistics import shown_interval, wilson_interval

PASTS = {
    "since_start": (3, "state", "state", 1),
    "revealed_once": (1, "mask", "mask", 1),
    "second_attempt": (2, "attempt", "mask", 2),
}
"""Steps before the current one, the two runs of a wrong token in them, and the lag at which the second begins."""


@torch.no_grad()
def recall_by_history(
    model: Any,
    state: Tensor,
    target: Tensor,
    attempt: Tensor,
    mask_token_id: int,
    attention_mask: Tensor | None = None,
    editable_mask: Tensor | None = None,
    batch_size: int = 250,
) -> dict[str, dict[str, float]]:
    """
    How often one step re-masks a wrong token, by the history that it is given: same states, same errors, other pasts.

    `since_start` w w w w, `revealed_once` M w, `second_attempt` w' M w; every other token stood there from the start.
    A model without history cannot tell the three apart, so its recall is the same in each: that is what the others are
    held against.

    Args:
        model ([`RMForMaskedDiffusion`]): the model.
        state (`Tensor` of shape `(B, N)`, long): sequences with wrong tokens in them, and no mask.
        target (`Tensor` of shape `(B, N)`, long): the right ones.
        attempt (`Tensor` of shape `(B, N)`, long): first attempts w', read where a token is wrong.
        mask_token_id (`int`): the mask.
        attention_mask (`Tensor` of shape `(B, N)`, *optional*): 1 for real positions.
        editable_mask (`Tensor` of shape `(B, N)`, bool, *optional*): positions that count; by default all real ones.
        batch_size (`int`): rows at a time.

    Returns:
        For each class `recall` of wrong tokens with its 95 % Wilson interval `low` and `high`, their `count`, and
        `false_alarms`, the share of right tokens re-masked in the same step.

    Raises:
        ValueError: for shapes that differ.

    Example:
        >>> recall_by_history(model, boards, solutions, attempts, 0)["revealed_once"]["recall"]  # doctest: +SKIP
        0.978
    """
    for name, value in (("target", target), ("attempt", attempt)):
        if value.shape != state.shape:
            raise ValueError(f"`{name}` has shape {tuple(value.shape)}; pass that of `state`, {tuple(state.shape)}.")
    real = torch.ones_like(state) if attention_mask is None else attention_mask
    counted = real.bool() if editable_mask is None else editable_mask & real.bool()
    tallies = {name: torch.zeros(4, dtype=torch.long) for name in PASTS}
    with evaluating(model):
        for start in range(0, len(state), batch_size):
            rows = slice(start, start + batch_size)
            ids, right, other, keep, count = (
                value[rows].to(model.device) for value in (state, target, attempt, real, counted)
            )
            wrong = (ids != right) & count
            for name, past in PASTS.items():
                segments = _past_of_wrong_tokens(ids, other, wrong, past, mask_token_id)
                inputs = {} if attention_mask is None else {"attention_mask": keep}
                logits = model(ids, history=segments, editable_mask=count, **inputs).logits
                remasked = remask_advantage(ids, logits, mask_token_id) > 0
                sound = count & ~wrong
                found = ((remasked & wrong).sum(), wrong.sum(), (remasked & sound).sum(), sound.sum())
                tallies[name] += torch.stack(found).cpu()
    return {name: _tally(*counts.tolist()) for name, counts in tallies.items()}


def recall_table(
    rows: Iterable[tuple[str, Mapping[str, Mapping[str, Any]]]], of: str = "tokens", digits: int = 1
) -> Table:
    """
    What [`recall_by_history`] found, as a table with 95 % intervals in brackets.

    Args:
        rows (iterable of pairs): names of models, and what was found of each.
        of (`str`): what is wrong: tokens, cells.
        digits (`int`): of percentages, behind the point; false alarms, which are rare, have one more.

    Example:
        >>> found = {"recall": 0.75, "low": 0.3, "high": 0.95, "count": 4, "false_alarms": 0.001}
        >>> recall_table([("rm", {"since_start": found})]).row_count
        1
    """
    table = Table(title=f"Re-mask recall of wrong {of} by their history")
    for heading in ("model", "past", "recall %", f"wrong {of}", "false alarms %"):
        table.add_column(heading)
    for name, pasts in rows:
        for past, row in pasts.items():
            recall = shown_interval((row["recall"], row["low"], row["high"]), digits=digits)
            alarms = f"{100 * row['false_alarms']:.{digits + 1}f}"
            table.add_row(name, past.replace("_", " "), recall, f"{row['count']:,}", alarms)
    return table


def _past_of_wrong_tokens(
    state: Tensor, attempt: Tensor, wrong: Tensor, past: tuple[int, str, str, int], mask_token_id: int
) -> HistorySegments:
    steps, older, newer, change = past
    tokens = {"state": state, "attempt": attempt, "mask": torch.full_like(state, mask_token_id)}
    ids = torch.stack([torch.where(wrong, tokens[run], state) for run in (older, newer)], dim=-1)
    bounds = torch.where(wrong, change, 1)
    return HistorySegments(
        ids, torch.stack((torch.full_like(state, steps + 1), bounds, torch.ones_like(state)), dim=-1)
    )


def _tally(hits: int, wrong: int, alarms: int, right: int) -> dict[str, float]:
    recall = wilson_interval(hits, wrong)
    alarm_rate = alarms / right if right else math.nan
    return {
        "recall": recall.value, "low": recall.low, "high": recall.high, "count": wrong, "false_alarms": alarm_rate
    }  # fmt: skip
