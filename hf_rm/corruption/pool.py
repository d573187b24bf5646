# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The on-policy pool: rows that live through the model's own revision, a step each training step, at no extra forward.

A pool row is trained like any other, with oracle labels for its current state. The logits of that same forward then
move it one step by Eq. 1, so that its next state and its history hold the model's own mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..history import HistoryState


@dataclass
class PoolRows:
    """Rows of the pool: states, targets, editable positions, loss weights (P, N), ages (P,), and what they saw."""

    ids: Tensor
    target: Tensor
    editable: Tensor
    attention_mask: Tensor
    weights: Tensor
    age: Tensor
    history: HistoryState

    def select(self, rows: Tensor) -> PoolRows:
        """The rows where the mask `rows` (P,) is true."""
        chosen: dict[str, Any] = {name: value[rows] for name, value in self.tensors().items()}
        return PoolRows(**chosen, history=self.history.select(rows))

    def resized(self, length: int) -> PoolRows:
        """The rows with padding added on the right, or cut off there, to (P, length)."""
        more = length - self.ids.shape[1]
        if not more:
            return self
        sized: dict[str, Any] = {n: v if v.dim() == 1 else F.pad(v, (0, more)) for n, v in self.tensors().items()}
        accumulator = F.pad(self.history.accumulator, (0, 0, 0, more))
        return PoolRows(**sized, history=HistoryState(accumulator, self.history.steps))

    def longest(self) -> int:
        """Length of the longest row without the padding behind it; 0 without rows."""
        if not len(self.age):
            return 0
        places = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        return int((self.attention_mask * places).max())

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name, without the history."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


class OnPolicyPool:
    """
    Args:
        size (`int`): rows in the pool.
        max_age (`int`, defaults to 8): steps after which a row is replaced, solved or not.
        width (`int`): the embedding's width.

    Rows that have come to rest, solved or not, are replaced at once, as decoding would stop there. Rows that are wrong
    for good (another answer fits as well) would otherwise gather here and teach the model to doubt its right answers.
    """

    def __init__(self, size: int, width: int, max_age: int = 8) -> None:
        if size < 1 or max_age < 1:
            raise ValueError(f"`size` is {size} and `max_age` {max_age}: pass positive integers.")
        self.size = size
        self.width = width
        self.max_age = max_age
        self.rows: PoolRows | None = None

    def refill(
        self, start: Tensor, target: Tensor, editable: Tensor, attention_mask: Tensor, weights: Tensor
    ) -> PoolRows:
        """
        Replace the rows that are done by the first of the given ones, (K, N) each with K >= size, and return all rows.

        They are as long as the given ones, or as the longest that stays.
        """
        kept = None if self.rows is None else self.rows.select(self.rows.age < self.max_age)
        missing = self.size - (0 if kept is None else len(kept.age))
        fresh = PoolRows(
            start[:missing],
            target[:missing],
            editable[:missing],
            attention_mask[:missing],
            weights[:missing],
            torch.zeros(missing, dtype=torch.long, device=start.device),
            HistoryState.empty(missing, start.shape[1], self.width, start.device),
        )
        if kept is not None:
            length = max(start.shape[1], kept.longest())
            fresh = _concatenate(kept.resized(length), fresh.resized(length))
        self.rows = fresh
        return self.rows

    def active_rows(self) -> PoolRows:
        """
        All rows.

        Raises:
            ValueError: before the first [`refill`].
        """
        if self.rows is None:
            raise ValueError("the pool has no rows yet: call `refill` first.")
        return self.rows

    def advance(self, following: Tensor, history: HistoryState | None) -> None:
        """Move every row to its next state (P, N), with the history (or none) after the forward that led to it."""
        rows = self.active_rows()
        at_rest = (following == rows.ids).all(-1)
        age = torch.where(at_rest, self.max_age, rows.age + 1)
        memory = rows.history if history is None else history.detach()
        self.rows = replace(rows, ids=following, age=age, history=memory)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as plain tensors."""
        if self.rows is None:
            return {}
        history = self.rows.history
        tensors = {**self.rows.tensors(), "accumulator": history.accumulator, "steps": history.steps}
        return {name: value.contiguous() for name, value in tensors.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Undo [`state_dict`]."""
        rows: dict[str, Any] = dict(tensors)
        if not rows:
            self.rows = None
            return
        history = HistoryState(rows.pop("accumulator"), rows.pop("steps"))
        self.rows = PoolRows(**rows, history=history)


def reveal_confident(
    ids: Tensor, following: Tensor, confidence: Tensor, mask_token_id: int, threshold: float
) -> Tensor:
    """
    The next state where masks become tokens above a threshold only, and the surest of a row always (Fast-dLLM).

    Args:
        ids (`Tensor` (P, N), long): the state.
        following (`Tensor` (P, N), long): the next state by Eq. 1, which reveals every mask.
        confidence (`Tensor` (P, N)): probability of the token that a mask would become; read at editable masks only.
        mask_token_id (`int`): the mask.
        threshold (`float`): a probability.

    Example:
        >>> state, following = torch.tensor([[0, 0, 3]]), torch.tensor([[1, 2, 0]])
        >>> reveal_confident(state, following, torch.tensor([[0.4, 0.6, 0.0]]), 0, 0.9)
        tensor([[0, 2, 0]])
    """
    revealed = (ids == mask_token_id) & (following != mask_token_id)
    confidence = confidence.masked_fill(~revealed, -1.0)
    sure = (confidence > threshold).scatter(-1, confidence.argmax(-1, keepdim=True), True)
    return torch.where(revealed & ~sure, ids, following)


def _concatenate(first: PoolRows, second: PoolRows) -> PoolRows:
    second_tensors = second.tensors()
    joined: dict[str, Any] = {n: torch.cat((v, second_tensors[n])) for n, v in first.tensors().items()}
    return PoolRows(**joined, history=HistoryState.cat((first.history, second.history)))
