# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The on-policy pool: rows that live through the model's own revision, one step a training step, at no extra forward pass.

A pool row is trained like any other, with oracle labels for its current state. The logits of that same forward then move
it one step by Eq. 1, so that its next state and its history hold the model's own mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..history import HistoryState


@dataclass
class PoolRows:
    """Rows of the pool: states, targets, editable positions and loss weights (P, N), ages (P,), and what they have seen."""

    ids: Tensor
    target: Tensor
    editable: Tensor
    attention_mask: Tensor
    weights: Tensor
    age: Tensor
    history: HistoryState

    def select(self, rows: Tensor) -> PoolRows:
        """The rows where the mask `rows` (P,) is true."""
        return PoolRows(
            *(value[rows] if isinstance(value, Tensor) else value.select(rows) for value in vars(self).values())
        )


class OnPolicyPool:
    """
    Args:
        size (`int`): rows in the pool.
        max_age (`int`, defaults to 8): steps after which a row is replaced, solved or not.
        width (`int`): the embedding's width.

    Rows that are solved and would stay so are replaced at once.
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
        self.rows = fresh if kept is None else _concatenate(kept, fresh)
        return self.rows

    def advance(self, following: Tensor, history: HistoryState | None) -> None:
        """Move every row to its next state (P, N), with the history (or none) after the forward pass that led to it."""
        rows = self.rows
        solved = ((following == rows.target) & (rows.ids == rows.target) | ~rows.editable).all(-1)
        age = torch.where(solved, self.max_age, rows.age + 1)
        memory = rows.history if history is None else history.detach()
        self.rows = replace(rows, ids=following, age=age, history=memory)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as plain tensors."""
        if self.rows is None:
            return {}
        tensors = {name: value for name, value in vars(self.rows).items() if isinstance(value, Tensor)}
        history = self.rows.history
        tensors.update(accumulator=history.accumulator, steps=history.steps)
        return {name: value.contiguous() for name, value in tensors.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Undo [`state_dict`]."""
        tensors = dict(tensors)
        if not tensors:
            self.rows = None
            return
        history = HistoryState(tensors.pop("accumulator"), tensors.pop("steps"))
        self.rows = PoolRows(**tensors, history=history)


def _concatenate(first: PoolRows, second: PoolRows) -> PoolRows:
    joined = {}
    for name, value in vars(first).items():
        other = getattr(second, name)
        joined[name] = torch.cat((value, other)) if isinstance(value, Tensor) else HistoryState.cat((value, other))
    return PoolRows(**joined)
