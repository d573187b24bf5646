# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a Sudoku model: one decoding run over an evaluation set, and everything that is read off it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging

from ...evaluation.statistics import Interval, paired_difference_interval, wilson_interval
from ...generation_rm import ReflectiveTrajectory
from .boards import BoardArray
from .ceiling import CeilingTable
from .metrics import remask_recall_by_history, sudoku_metrics

DECODINGS: dict[str, dict[str, Any]] = {
    "eq1": {"reveal": "all", "revise": "reflective"},
    "threshold": {"reveal": "threshold", "reveal_threshold": 0.9, "revise": "reflective"},
}
"""Plain Eq. 1, and Eq. 1 with masks revealed only above 0.9 (and always the most confident one)."""

ROUNDS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class SudokuRun:
    """
    A model's revision of B boards.

    Attributes:
        initial, final, target (`(B, 81)` uint8): the corrupted, the revised and the original boards.
        states (`(S + 1, B, 81)` uint8), actions (`(S, B, 81)` int8): the trajectory.
        num_steps (`(B,)` int64): steps of every row.
        seconds (`float`): wall-clock time of decoding.
    """

    initial: BoardArray
    final: BoardArray
    target: BoardArray
    states: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.int8]
    num_steps: npt.NDArray[np.int64]
    seconds: float

    @property
    def exact(self) -> npt.NDArray[np.bool_]:
        """(B,) whether every cell equals the original's."""
        return (self.final == self.target).all(axis=1)

    def metrics(self) -> dict[str, float]:
        """The metrics of Table 2 with their 95 % intervals; see [`sudoku_metrics`]."""
        return sudoku_metrics(self.initial, self.final, self.target, states=self.states)

    def recall(self) -> dict[str, dict[str, float]]:
        """Re-mask recall of wrong tokens by how often their cell was revealed before; see [`remask_recall_by_history`]."""
        return remask_recall_by_history(self.states, self.actions, self.target, num_steps=self.num_steps)

    def accuracy_after(self, rounds: int) -> Interval:
        """Exact accuracy if decoding stopped after so many steps: the test-time scaling curve. Masks count as wrong."""
        state = self.states[min(rounds, len(self.states) - 1)]
        exact = (state == self.target).all(axis=1)
        return wilson_interval(int(exact.sum()), len(exact))

    def against_ceiling(self, ceiling: CeilingTable) -> dict[str, Interval]:
        """The paired gap of the ceiling to the exact accuracy, and the accuracy where the original is the only answer."""
        count = len(self.final)
        unique = ceiling.unique[:count]
        return {
            "gap": paired_difference_interval(ceiling.credit[:count], self.exact),
            "exact_on_unique": wilson_interval(int(self.exact[unique].sum()), int(unique.sum())),
        }


def revise_boards(
    model: Any,
    initial: BoardArray,
    target: BoardArray,
    decoding: str = "eq1",
    batch_size: int = 500,
    progress_bar: bool = False,
    **generation: Any,
) -> SudokuRun:
    """
    Let a model revise boards, with their trajectory.

    Args:
        model: anything with `generate_reflective`.
        initial, target (`(B, 81)` uint8): corrupted boards and the originals.
        decoding (`str`): a key of `DECODINGS`.
        batch_size (`int`): boards at a time.
        generation: further settings of the decoding loop.

    Raises:
        ValueError: for an unknown decoding.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"`decoding` is {decoding!r}: pass one of {', '.join(DECODINGS)}.")
    settings = {"editable": "all", "max_steps": 64, **DECODINGS[decoding], **generation}
    model.eval()
    began = time.perf_counter()
    outputs = []
    for start in logging.tqdm(
        range(0, len(initial), batch_size), desc=f"revise ({decoding})", disable=not progress_bar
    ):
        boards = torch.from_numpy(initial[start : start + batch_size].astype(np.int64)).to(model.device)
        outputs.append(model.generate_reflective(boards, output_trajectory=True, **settings))
    seconds = time.perf_counter() - began
    states, actions = _join([output.trajectory for output in outputs])
    num_steps = torch.cat([output.num_steps for output in outputs]).cpu().numpy()
    return SudokuRun(initial, states[-1], target, states, actions, num_steps, seconds)


def _join(
    trajectories: list[ReflectiveTrajectory],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int8]]:
    """Trajectories of several batches side by side; the shorter ones repeat their last state."""
    longest = max(len(trajectory.actions) for trajectory in trajectories)
    states, actions = [], []
    for trajectory in trajectories:
        missing = longest - len(trajectory.actions)
        moves = trajectory.actions.cpu().numpy()
        path = trajectory.states.cpu().numpy().astype(np.uint8)
        states.append(np.concatenate((path, np.repeat(path[-1:], missing, axis=0))))
        actions.append(np.concatenate((moves, np.zeros((missing, *moves.shape[1:]), dtype=np.int8))))
    return np.concatenate(states, axis=1), np.concatenate(actions, axis=1)
