# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The on-policy pool: rows that live through the model's own revision, a step each training step, at no extra forward.

A pool row is trained like any other, with oracle labels for its current state. The logits of that same forward then
move it one step by Eq. 1, so that its next state and its history hold the model's own mistakes.

Every row has a place in the batch and is replaced by what the loader put there: no row's life depends on another's, so
that two processes with half the batch train on the rows of one with all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..generation_rules_rm import remask_advantage
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

    def select(self, rows: Tensor | slice) -> PoolRows:
        """The rows that `rows` names: a mask (P,) or a slice."""
        chosen: dict[str, Any] = {name: value[rows] for name, value in self.tensors().items()}
        return PoolRows(**chosen, history=self.history.select(rows))

    def where(self, which: Tensor, others: PoolRows) -> PoolRows:
        """These rows where `which` (P,) is true, the others elsewhere."""
        choose = lambda a, b: torch.where(which.view(-1, *[1] * (a.dim() - 1)), a, b)  # noqa: E731
        theirs, (mine, their) = others.tensors(), (self.history, others.history)
        chosen: dict[str, Any] = {name: choose(value, theirs[name]) for name, value in self.tensors().items()}
        history = HistoryState(choose(mine.accumulator, their.accumulator), choose(mine.steps, their.steps))
        return PoolRows(**chosen, history=history)

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


def pool_places(fraction: float, first: int, count: int) -> list[int]:
    """
    Which of the rows number `first` to `first + count - 1` of a training step, as places from 0, are the pool's.

    They are spread evenly over the step, and a row's number in it decides, however the step is cut into batches.

    Example:
        >>> pool_places(0.5, 0, 8), pool_places(0.5, 0, 4), pool_places(0.5, 4, 4)
        ([0, 2, 4, 6], [0, 2], [0, 2])
    """
    # A hair more, so that rounding of the product never moves a row.
    rows_before = lambda number: math.floor(number * fraction + 0.5 + 1e-9)  # noqa: E731
    return [place for place in range(count) if rows_before(first + place + 1) > rows_before(first + place)]


class OnPolicyPool:
    """
    Args:
        places (sequence of `int`): which rows of a batch are the pool's, ascending; see [`pool_places`].
        max_age (`int`, defaults to 8): steps after which a row is replaced, solved or not.
        width (`int`): the embedding's width.

    Rows that have come to rest, solved or not, are replaced at once, as decoding would stop there. Rows that are wrong
    for good (another answer fits as well) would otherwise gather here and teach the model to doubt its right answers.
    """

    def __init__(self, places: Sequence[int], width: int, max_age: int = 8) -> None:
        if not places or max_age < 1:
            raise ValueError(f"`places` has {len(places)} rows and `max_age` is {max_age}: pass one at least of both.")
        self.places = list(places)
        self.width = width
        self.max_age = max_age
        self.rows: PoolRows | None = None

    def refill(
        self, start: Tensor, target: Tensor, editable: Tensor, attention_mask: Tensor, weights: Tensor
    ) -> PoolRows:
        """
        Replace each row that is done by the given one in its place, (K, N), and return these K rows.

        A short batch has K of the places, the first ones; the rows of the others wait. The returned rows are as long
        as the given ones, or as the longest that stays.
        """
        count, length = start.shape
        fresh = PoolRows(
            start,
            target,
            editable,
            attention_mask,
            weights,
            torch.zeros(count, dtype=torch.long, device=start.device),
            HistoryState.empty(count, length, self.width, start.device),
        )
        rows = self._nothing_but_done_rows(fresh) if self.rows is None else self.rows
        length = max(length, rows.select(rows.age < self.max_age).longest())
        rows, fresh = rows.resized(length), fresh.resized(length)
        mine = rows.select(slice(count))
        self.rows = rows
        return self._put(fresh.where(mine.age >= self.max_age, mine))

    def _nothing_but_done_rows(self, like: PoolRows) -> PoolRows:
        size = len(self.places)
        rows: dict[str, Any] = {n: v.new_zeros(size, *v.shape[1:]) for n, v in like.tensors().items()}
        rows["age"] = rows["age"] + self.max_age
        return PoolRows(**rows, history=HistoryState.empty(size, like.ids.shape[1], self.width, like.ids.device))

    def _put(self, first: PoolRows) -> PoolRows:
        """The first rows of the pool anew."""
        count = len(first.age)
        self.rows = (
            first if count == len(self.places) else _concatenate(first, self.active_rows().select(slice(count, None)))
        )
        return first

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
        """Move the first K rows to their next states (K, N), with the history (or none) after the forward before."""
        rows = self.active_rows().select(slice(len(following)))
        at_rest = (following == rows.ids).all(-1)
        age = torch.where(at_rest, self.max_age, rows.age + 1)
        memory = rows.history if history is None else history.detach()
        self._put(replace(rows, ids=following, age=age, history=memory))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as plain tensors."""
        if self.rows is None:
            return {}
        history = self.rows.history
        tensors = {**self.rows.tensors(), "accumulator": history.accumulator, "steps": history.steps}
        return {name: value.contiguous() for name, value in tensors.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """
        Undo [`state_dict`].

        Raises:
            ValueError: for the state of a pool of another size.
        """
        rows: dict[str, Any] = dict(tensors)
        if not rows:
            self.rows = None
            return
        if len(rows["age"]) != len(self.places):
            raise ValueError(
                f"the state is that of a pool of {len(rows['age'])} rows and this one has {len(self.places)}: resume "
                "with the batch size, the accumulation steps, the processes and the `pool_fraction` of its training."
            )
        history = HistoryState(rows.pop("accumulator"), rows.pop("steps"))
        self.rows = PoolRows(**rows, history=history)


def eq1_next_state(
    ids: Tensor, logits: Tensor, mask_token_id: int, editable: Tensor, forbidden: Sequence[int] = ()
) -> Tensor:
    """
    Eq. 1 for whole batches, (B, N) to (B, N): what a plain run of the decoding loop does in one step.

    `forbidden` ids are never revealed; the mask never is.
    """
    is_mask = ids == mask_token_id
    best = logits.index_fill(-1, torch.tensor([mask_token_id, *forbidden], device=ids.device), -torch.inf).argmax(-1)
    remask = remask_advantage(ids, logits, mask_token_id) > 0
    following = torch.where(is_mask, best, torch.where(remask, mask_token_id, ids))
    return torch.where(editable, following, ids)


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
