# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a Sudoku model: one decoding run over an evaluation set, and everything that is read off it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging

from ...evaluation.history_recall import recall_by_history as history_recall
from ...evaluation.statistics import Interval, paired_difference_interval, wilson_interval
from ...generation_rm import ReflectiveTrajectory
from .boards import MASK_ID, BoardArray, is_valid
from .ceiling import CeilingTable
from .metrics import remask_recall_by_history, sudoku_metrics

DECODINGS: dict[str, dict[str, Any]] = {
    "eq1": {"reveal": "all", "revise": "reflective"},
    "threshold": {"reveal": "threshold", "revise": "reflective"},
}
"""Plain Eq. 1, and Eq. 1 with masks revealed only above 0.9, the rule's own (and always the most confident one)."""

ROUNDS = (1, 2, 4, 8, 16, 32)
ERROR_RANGES = ((4, 8), (9, 12), (13, 16), (17, 20))


@dataclass(frozen=True)
class SudokuRun:
    """
    A model's revision of B boards.

    Attributes:
        initial, final, target (`(B, 81)` uint8): the corrupted, the revised and the original boards.
        states (`(S + 1, B, 81)` uint8), actions (`(S, B, 81)` int8): the trajectory.
        num_steps (`(B,)` int64): steps of every row.
        converged (`(B,)` bool): whether a row came to rest before the limit of steps.
        seconds (`float`): wall-clock time of decoding.
    """

    initial: BoardArray
    final: BoardArray
    target: BoardArray
    states: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.int8]
    num_steps: npt.NDArray[np.int64]
    converged: npt.NDArray[np.bool_]
    seconds: float

    @property
    def exact(self) -> npt.NDArray[np.bool_]:
        """(B,) whether every cell equals the original's."""
        return (self.final == self.target).all(axis=1)

    def metrics(self) -> dict[str, float]:
        """The metrics of Table 2 with their 95 % intervals; see [`sudoku_metrics`]."""
        return sudoku_metrics(self.initial, self.final, self.target, states=self.states)

    def own_recall(
        self, boards: npt.NDArray[np.bool_] | None = None, first_only: bool = False
    ) -> dict[str, dict[str, float]]:
        """Re-mask recall of wrong tokens along the model's own trajectories; see [`remask_recall_by_history`]."""
        steps = self.num_steps if boards is None else np.where(boards, self.num_steps, 0)
        return remask_recall_by_history(self.states, self.actions, self.target, num_steps=steps, first_only=first_only)

    def by_errors(self, ceiling: CeilingTable | None = None) -> dict[str, dict[str, float]]:
        """
        By the number of wrong cells a board began with: counts, shares exact, valid and not come to rest, and with a
        ceiling of the same boards that, and the share exact of the uniquely decodable ones.
        """
        errors = (self.initial != self.target).sum(axis=1)
        shares: dict[str, npt.NDArray[Any]] = {
            "exact": self.exact,
            "valid": is_valid(self.final),
            "unfinished": ~self.converged,
        }
        unique = None
        if ceiling is not None:
            shares["ceiling"], unique = ceiling.credit[: len(errors)], ceiling.unique[: len(errors)]
        table: dict[str, dict[str, float]] = {}
        for low, high in ERROR_RANGES:
            rows = (errors >= low) & (errors <= high)
            if not rows.any():
                continue
            row = {"boards": int(rows.sum())} | {name: float(value[rows].mean()) for name, value in shares.items()}
            if unique is not None:
                alone = self.exact[rows & unique]
                row |= {
                    "unique_boards": len(alone),
                    "exact_on_unique": float(alone.mean()) if len(alone) else math.nan,
                }
            table[f"{low} to {high}"] = row
        return table

    def accuracy_after(self, rounds: int) -> Interval:
        """Exact accuracy if decoding stopped after so many steps: the test-time scaling curve. Masks are wrong."""
        state = self.states[min(rounds, len(self.states) - 1)]
        exact = (state == self.target).all(axis=1)
        return wilson_interval(int(exact.sum()), len(exact))

    def against_ceiling(self, ceiling: CeilingTable) -> dict[str, Interval]:
        """The paired gap of ceiling to exact accuracy, and the accuracy where the original is the only answer."""
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
        generation: further settings of the decoding loop; what is not named comes from the model's generation config.

    Raises:
        ValueError: for an unknown decoding.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"`decoding` is {decoding!r}: pass one of {', '.join(DECODINGS)}.")
    settings = {**DECODINGS[decoding], **generation}
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
    num_steps, converged = (
        torch.cat([getattr(output, name) for output in outputs]).cpu().numpy() for name in ("num_steps", "converged")
    )
    return SudokuRun(initial, states[-1], target, states, actions, num_steps, converged, seconds)


def recall_by_history(
    model: Any, initial: BoardArray, target: BoardArray, seed: int = 0, batch_size: int = 250
) -> dict[str, dict[str, float]]:
    """
    How often one step re-masks a wrong cell, by the past that it is given; see `hf_rm.evaluation.recall_by_history`.

    Args:
        model ([`RMForMaskedDiffusion`]): the model.
        initial, target (`(B, 81)` uint8): corrupted boards and the originals.
        seed (`int`): of the first attempts, any of the eight wrong digits.
        batch_size (`int`): boards at a time.
    """
    rng = np.random.default_rng(seed)
    first = (target + rng.integers(1, 9, target.shape, dtype=np.uint8) - 1) % 9 + 1
    state, right, attempt = (torch.from_numpy(board.astype(np.int64)) for board in (initial, target, first))
    return history_recall(model, state, right, attempt, MASK_ID, batch_size=batch_size)


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
