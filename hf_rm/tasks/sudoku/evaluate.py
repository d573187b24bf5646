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

from ...evaluation.statistics import Interval, paired_difference_interval, wilson_interval
from ...generation_rm import ReflectiveTrajectory
from ...generation_rules_rm import remask_advantage
from ...history import HistorySegments
from .boards import MASK_ID, BoardArray, is_valid
from .ceiling import CeilingTable
from .metrics import remask_recall_by_history, sudoku_metrics

DECODINGS: dict[str, dict[str, Any]] = {
    "eq1": {"reveal": "all", "revise": "reflective"},
    "threshold": {"reveal": "threshold", "reveal_threshold": 0.9, "revise": "reflective"},
}
"""Plain Eq. 1, and Eq. 1 with masks revealed only above 0.9 (and always the most confident one)."""

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

    def own_recall(self) -> dict[str, dict[str, float]]:
        """Re-mask recall of wrong tokens along the model's own trajectories; see [`remask_recall_by_history`]."""
        return remask_recall_by_history(self.states, self.actions, self.target, num_steps=self.num_steps)

    def by_errors(self) -> dict[str, dict[str, float]]:
        """By the number of wrong cells a board began with: counts, shares exact, valid and not come to rest."""
        errors = (self.initial != self.target).sum(axis=1)
        valid = is_valid(self.final)
        table = {}
        for low, high in ERROR_RANGES:
            rows = (errors >= low) & (errors <= high)
            if rows.any():
                shares = {"exact": self.exact, "valid": valid, "unfinished": ~self.converged}
                table[f"{low} to {high}"] = {"boards": int(rows.sum())} | {
                    name: float(value[rows].mean()) for name, value in shares.items()
                }
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


@torch.no_grad()
def recall_by_history(
    model: Any, initial: BoardArray, target: BoardArray, seed: int = 0, batch_size: int = 250
) -> dict[str, dict[str, float]]:
    """
    How often one step re-masks a wrong cell, by the history that it is given: same boards, same errors, other pasts.

    `since_start` w w w w, `revealed_once` M w, `second_attempt` w' M w; every other cell kept its digit. A model
    without history cannot tell the three apart, so its recall is the same in each: that is what the others are
    held against.

    Args:
        model ([`RMForMaskedDiffusion`]): the model.
        initial, target (`(B, 81)` uint8): corrupted boards and the originals.
        seed (`int`): of the first attempts w'.

    Returns:
        For each class `recall` of wrong cells with its 95 % Wilson interval `low` and `high`, their `count`, and
        `false_alarms`, the share of right cells re-masked in the same step.
    """
    rng = np.random.default_rng(seed)
    first = (target + rng.integers(1, 9, target.shape, dtype=np.uint8) - 1) % 9 + 1  # a wrong digit, any of the eight
    tallies = {name: np.zeros(4, dtype=np.int64) for name in _PASTS}
    model.eval()
    for start in range(0, len(initial), batch_size):
        rows = slice(start, start + batch_size)
        state, right, attempt = (
            torch.from_numpy(board[rows].astype(np.int64)).to(model.device) for board in (initial, target, first)
        )
        wrong = state != right
        for name, past in _PASTS.items():
            segments = _past_of_wrong_cells(state, attempt, wrong, past)
            remasked = remask_advantage(state, model(state, history=segments).logits, MASK_ID) > 0
            counts = (remasked & wrong).sum(), wrong.sum(), (remasked & ~wrong).sum(), (~wrong).sum()
            tallies[name] += np.array([int(count) for count in counts])
    return {name: _tally(*counts.tolist()) for name, counts in tallies.items()}


_PASTS = {
    "since_start": (3, "state", "state", 1),
    "revealed_once": (1, "mask", "mask", 1),
    "second_attempt": (2, "attempt", "mask", 2),
}
"""Steps before the current one, the two runs of a wrong cell in them, and the lag at which the second begins."""


def _past_of_wrong_cells(
    state: torch.Tensor, attempt: torch.Tensor, wrong: torch.Tensor, past: tuple[int, str, str, int]
) -> HistorySegments:
    steps, older, newer, change = past
    tokens = {"state": state, "attempt": attempt, "mask": torch.full_like(state, MASK_ID)}
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
