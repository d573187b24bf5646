# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What a decoding run returns: sequences and counts, and on request every state and action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from .generation_rows_rm import Rows, put

KEEP, REVEAL, REMASK, REPLACE = 0, 1, 2, 3


@dataclass
class ReflectiveTrajectory:
    """
    Everything that happened, row by row.

    Attributes:
        states (`Tensor` of shape `(S + 1, B, N)`, long): the canvas before the first step and after each of S steps.
            A row that finished early repeats its last state.
        actions (`Tensor` of shape `(S, B, N)`, int8): 0 keep, 1 reveal, 2 re-mask, 3 replace; under `stop_at_eos` also
            what follows the end of a text and becomes padding when its row is over, which no count includes.
    """

    states: Tensor
    actions: Tensor


@dataclass
class ReflectiveOutput(ModelOutput):
    """
    Output of [`~ReflectiveGenerationMixin.generate_reflective`]; counts are per row, of shape `(B,)`.

    Attributes:
        sequences (`Tensor` of shape `(B, N)`, long): the final canvas, prompt included.
        num_steps, num_forwards, num_reveals, num_remasks, num_edits (`Tensor`, long): steps taken, forward passes (of
            both branches of guidance, and one more where a finished block goes into the cache), and how often a
            position was revealed, re-masked, or replaced outright.
        num_revision_rounds (`Tensor`, long): steps that began without a mask, or after the reveal schedule. All
            others are reveals, at most `steps` of them.
        converged (`Tensor`, bool): whether the row ended because nothing was left to do, rather than at a limit.
        stop_reason (`list[str]`): `"converged"` (nothing left to reveal or revise), `"loop"` (the run returned to an
            earlier state; revision was closed and the open masks revealed), `"max_revision_rounds"`, `"max_steps"` or
            `"eos"` (an end token stood before the last block).
        trajectory (`ReflectiveTrajectory`, *optional*): with `output_trajectory=True`.
    """

    sequences: Tensor
    num_steps: Tensor | None = None
    num_forwards: Tensor | None = None
    num_reveals: Tensor | None = None
    num_remasks: Tensor | None = None
    num_edits: Tensor | None = None
    num_revision_rounds: Tensor | None = None
    converged: Tensor | None = None
    stop_reason: list[str] | None = None
    trajectory: ReflectiveTrajectory | None = None


class Recorder:
    """Collects states and actions in the caller's row order."""

    def __init__(self, ids: Tensor) -> None:
        self.states = [ids.clone()]
        self.actions: list[Tensor] = []

    def add(self, ids: Tensor, rows: Rows, window: Tensor | None, done: Tensor, cut: Tensor | None) -> None:
        """
        The whole batch (B, N) after a step, the actions at the window of its unfinished rows (b, A), and where in
        these (b, N) a text was cut off.
        """
        actions = torch.zeros(ids.shape, dtype=torch.int8, device=ids.device)
        acted = put(actions[rows.index], window, done.to(torch.int8))
        if cut is not None:
            moved = self.states[-1][rows.index] != ids[rows.index]
            acted = torch.where(cut, (moved * REPLACE).to(torch.int8), acted)
        actions[rows.index] = acted
        self.states.append(ids.clone())
        self.actions.append(actions)

    def trajectory(self, steps: int) -> ReflectiveTrajectory:
        """Of the first so many steps: what comes after them changed nothing."""
        return ReflectiveTrajectory(torch.stack(self.states[: steps + 1]), torch.stack(self.actions[:steps]))
