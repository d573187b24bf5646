# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Rows under way: the state of the unfinished ones, their random numbers, and the loops that they run into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .generation_canvas_rm import Canvas
from .history import HistoryState

CONVERGED, MAX_STEPS, MAX_REVISION_ROUNDS, LOOP, EOS = range(5)
STOP_REASONS = ("converged", "max_steps", "max_revision_rounds", "loop", "eos")


@dataclass
class Rows(Canvas):
    """
    The canvas of the unfinished rows, b <= B of them, and how far they are. One place, so that dropping rows cannot
    forget a tensor.

    A row that is `done` stays until the next look at the batch: nothing about it changes any more.
    """

    index: Tensor  # (b,) row in the caller's batch
    block: Tensor  # (b,) the active block
    block_step: Tensor  # (b,) steps done in it
    block_masks: Tensor  # (b,) masks it held when it began
    revisions: Tensor  # (b, N) how often each position was re-masked or replaced
    quiet: Tensor  # (b,) steps in a row without a mask and without a change
    rounds: Tensor  # (b,) steps in the block that began without a mask
    closed: Tensor  # (b,) revision is over for the active block
    done: Tensor  # (b,)
    reason: Tensor  # (b,) index into STOP_REASONS
    steps: Tensor  # (b,) steps done
    keys: Tensor | None  # (b,) of random numbers
    history: HistoryState | None = None
    unconditional: HistoryState | None = None

    @classmethod
    def begin(cls, canvas: Canvas, mask_token_id: int, keys: Tensor | None) -> Rows:
        """All rows, before their first step."""
        index = torch.arange(len(canvas.ids), device=canvas.ids.device)
        zeros = torch.zeros_like(index)
        values: dict[str, Any] = {**vars(canvas), "ids": canvas.ids.clone(), "index": index, "keys": keys}
        values |= dict.fromkeys(("block", "block_step", "quiet", "rounds", "reason", "steps"), zeros)
        values |= dict.fromkeys(("closed", "done"), zeros.bool())
        values["block_masks"] = ((canvas.blocks == 0) & (canvas.ids == mask_token_id)).sum(-1)
        return cls(**values, revisions=torch.zeros_like(canvas.ids))

    def select(self, keep: Tensor) -> Rows:
        """The rows where `keep` (b,) is true."""
        some = lambda v: v[keep] if isinstance(v, Tensor) else v.select(keep) if hasattr(v, "select") else v  # noqa: E731
        chosen: dict[str, Any] = {name: some(value) for name, value in vars(self).items()}
        return Rows(**chosen)

    def window(self, block: Tensor | None = None) -> Tensor:
        """(b, A) positions of each row's active block, or of the blocks (b,) named; N where there is none."""
        if self.windows.shape[1] == 1:
            return self.windows[:, 0]
        block = self.block if block is None else block
        return self.windows.gather(1, block[:, None, None].expand(-1, 1, self.windows.shape[2]))[:, 0]


def look(values: Tensor, window: Tensor | None, nothing: int = 0) -> Tensor:
    """(b, N) at the window's positions (b, A); `nothing` where a window has none."""
    return values if window is None else F.pad(values, (0, 1), value=nothing).gather(1, window)


def put(values: Tensor, window: Tensor | None, new: Tensor) -> Tensor:
    """(b, N) with `new` (b, A) at the window's positions."""
    return new if window is None else F.pad(values, (0, 1)).scatter(1, window, new)[:, :-1]


_GOLDEN, _FIRST, _SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # SplitMix64's, signed


def uniforms(keys: Tensor, step: Tensor, position: Tensor, stream: int) -> Tensor:
    """
    Numbers in (0, 1) from (key (b,), step (b,), position (b, A), stream): the same whatever else is in the batch.

    SplitMix64 (Steele, Lea and Flood 2014) as a hash. Every thread of every device computes its own; no state.

    Example:
        >>> key, step = torch.tensor([5]), torch.tensor([0])
        >>> bool(uniforms(key, step, torch.tensor([[0, 1]]), 0)[0, 1] == uniforms(key, step, torch.tensor([[1]]), 0))
        True
    """
    mixed = _mix(_mix(keys + stream) + _GOLDEN * step)
    mixed = _mix(mixed[:, None] + _GOLDEN * (position + 1))
    return ((_shift(mixed, 40)).double().add(0.5) * 2.0**-24).float()


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class LoopDetector:
    """Finds out whether a row has returned to a state it was in before, by a 64-bit hash of each state."""

    def __init__(self, ids: Tensor) -> None:
        # A generator of its own: detecting loops must not move the caller's random numbers.
        generator = torch.Generator().manual_seed(0)
        bounds = torch.iinfo(torch.int64)
        self.weights = torch.randint(bounds.min, bounds.max, ids.shape[1:], generator=generator).to(ids.device) | 1
        self.seen = self._hash(ids)[None]  # (states, b)
        self.count = 1
        self.since = torch.zeros_like(self.seen[0])

    def _hash(self, ids: Tensor) -> Tensor:
        return _mix((ids + 1) * self.weights).sum(-1)

    def returned(self, ids: Tensor) -> Tensor:
        """(b,) bool: states (b, N) that were there before; they are remembered."""
        new, before = self._hash(ids), self.seen[: self.count]
        if self.count == len(self.seen):
            # Twice the room: over a run no more is copied than the run is long.
            self.seen = F.pad(self.seen, (0, 0, 0, self.count))
        self.seen[self.count] = new
        self.count += 1
        place = torch.arange(len(before), device=ids.device)
        return ((before == new) & (place[:, None] >= self.since)).any(0)

    def forget(self, which: Tensor) -> None:
        """These rows (b,) begin another block, in which earlier states prove nothing."""
        self.since = torch.where(which, self.count, self.since)

    def select(self, keep: Tensor) -> None:
        """Go on with the rows where `keep` (b,) is true."""
        self.seen, self.since = self.seen[:, keep], self.since[keep]
