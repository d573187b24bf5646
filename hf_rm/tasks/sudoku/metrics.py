"""Metrics of Sudoku revision, vectorised over boards. Shapes: B boards, S steps, N cells (81)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_rm.evaluation.statistics import Interval, mean_interval, wilson_interval

from .boards import MASK_ID, PEERS, as_boards, is_valid, slices

REMASK = 2
"""The action code of a re-mask: 0 keep, 1 reveal, 2 re-mask, 3 replace."""


def conflict_cells(boards: Any) -> npt.NDArray[np.int64]:
    """Count the cells that share their digit with a peer in their row, column or box.

    Args:
        boards: Ids of shape (B, 81); masks (0) are never in conflict.

    Returns:
        Counts, int64 of shape (B,).

    Raises:
        ValueError: If the shape or an id is out of range.

    Example:
        >>> int(conflict_cells([[5, 5] + [0] * 79])[0])
        2
    """
    array = as_boards(boards)
    counts = np.zeros(len(array), dtype=np.int64)
    for part in slices(len(array)):
        cells = array[part]
        clash = (cells[:, PEERS] == cells[:, :, None]).any(axis=2)
        counts[part] = (clash & (cells != MASK_ID)).sum(axis=1)
    return counts


def _states(states: Any, target: npt.NDArray[Any], name: str = "states") -> npt.NDArray[Any]:
    array = np.asarray(states)
    if array.ndim != 3 or array.shape[0] < 1 or array.shape[1:] != target.shape:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)} where target has {tuple(target.shape)}; "
            "pass the trajectory with the input first, shape (S + 1, B, N)."
        )
    return array


def replay_cells(
    states: Any, target: Any, mask_id: int = MASK_ID
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count re-masked erroneous cells, and those later decoded back to the same wrong digit.

    The unit is a cell of a board: it counts once however often it was re-masked. "Later" is any later reveal, not only
    the next one: ``w M v M w`` is a replay.

    Args:
        states: The trajectory, the input first, shape (S + 1, B, N), ids in 0..62. Repeated states at the end are
            harmless.
        target: The right ids, shape (B, N).
        mask_id: The mask's id.

    Returns:
        Two int64 arrays of shape (B,): re-masked erroneous cells, and replayed ones among them.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> remasked, replayed = replay_cells([[[3, 1]], [[0, 1]], [[3, 1]]], [[2, 1]])
        >>> int(remasked[0]), int(replayed[0])
        (1, 1)
    """
    right = np.asarray(target)
    path = _states(states, right)
    given_up = np.zeros(right.shape, dtype=np.int64)  # bit w: the wrong digit w was re-masked here
    replayed = np.zeros(right.shape, dtype=bool)
    for every_before, every_after in pairwise(path):
        rows = (every_before != every_after).any(axis=1)  # most come to rest long before the last one
        before, after = every_before[rows], every_after[rows]
        was_mask, is_mask = before == mask_id, after == mask_id
        wrong = ~was_mask & (before != right[rows])
        given_up[rows] |= np.where(wrong & is_mask, np.left_shift(np.int64(1), before.astype(np.int64)), 0)
        back = (given_up[rows] >> after.astype(np.int64)) & 1
        replayed[rows] |= was_mask & ~is_mask & (back == 1)
    return (given_up != 0).sum(axis=1), replayed.sum(axis=1)


def _flat(estimates: Mapping[str, Interval]) -> dict[str, float]:
    """Lay intervals out as flat numbers, which every logger and JSON file takes."""
    flat: dict[str, float] = {}
    for name, interval in estimates.items():
        flat[name] = interval.value
        flat[f"{name}_low"] = interval.low
        flat[f"{name}_high"] = interval.high
    return flat


def sudoku_metrics(
    initial: Any, final: Any, target: Any, states: Any | None = None, confidence: float = 0.95
) -> dict[str, float]:
    """Grade revised boards.

    Args:
        initial: The corrupted boards, shape (B, 81).
        final: The model's boards, shape (B, 81).
        target: The original boards, shape (B, 81).
        states: The trajectory, `initial` first, shape (S + 1, B, 81); without it there is no replay mistake.
        confidence: Coverage of the intervals.

    Returns:
        For each of ``exact_accuracy`` (every cell equals the original), ``valid_rate``, ``conflict_cells`` (mean a
        board), ``cell_accuracy``, ``initial_errors`` (mean wrong cells a board before) and, with `states`,
        ``replay_mistake`` (of the re-masked erroneous cells, the share later decoded back to the same wrong digit):
        the value, and its interval under ``<name>_low`` and ``<name>_high``. Rates have Wilson's interval, means the
        normal one. Also ``boards`` and, with `states`, ``remasked_cells``: how many a rate rests on. Without data a
        value is nan.

    Raises:
        ValueError: If shapes differ, an id is out of range, or `states` does not run from `initial` to `final`.

    Example:
        >>> board = [[1 + (3 * (r % 3) + r // 3 + c) % 9 for r in range(9) for c in range(9)]]
        >>> sudoku_metrics(board, board, board)["exact_accuracy"]
        1.0
    """
    first, last, right = (as_boards(x, n) for x, n in ((initial, "initial"), (final, "final"), (target, "target")))
    if not first.shape == last.shape == right.shape:
        raise ValueError(
            f"initial, final, target have shapes {first.shape}, {last.shape}, {right.shape}; pass equal ones."
        )
    exact = (last == right).all(axis=1)
    estimates = {
        "exact_accuracy": wilson_interval(int(exact.sum()), len(exact), confidence),
        "valid_rate": wilson_interval(int(is_valid(last).sum()), len(exact), confidence),
        "conflict_cells": mean_interval(conflict_cells(last), confidence),
        # Cells of one board fail together, so the interval is over boards.
        "cell_accuracy": mean_interval((last == right).mean(axis=1), confidence),
        "initial_errors": mean_interval((first != right).sum(axis=1), confidence),
    }
    counts = {"boards": float(len(exact))}
    if states is not None:
        path = _states(states, right)
        if not (np.array_equal(path[0], first) and np.array_equal(path[-1], last)):
            raise ValueError(
                "states does not begin with initial and end with final; pass the whole trajectory of these."
            )
        remasked, replayed = replay_cells(path, right)
        estimates["replay_mistake"] = wilson_interval(int(replayed.sum()), int(remasked.sum()), confidence)
        counts["remasked_cells"] = float(remasked.sum())
    return _flat(estimates) | counts


def _step_counts(num_steps: Any | None, steps: int, rows: int) -> npt.NDArray[np.int64]:
    if num_steps is None:
        return np.full(rows, steps, dtype=np.int64)
    counts = np.asarray(num_steps, dtype=np.int64)
    if counts.shape != (rows,):
        raise ValueError(f"num_steps has shape {counts.shape}; pass one count a row, shape ({rows},).")
    if rows and (counts.min() < 0 or counts.max() > steps):
        raise ValueError(f"num_steps runs from {counts.min()} to {counts.max()}; pass counts in 0..{steps}.")
    return counts


def remask_recall_by_history(
    states: Any,
    actions: Any,
    target: Any,
    mask_id: int = MASK_ID,
    num_steps: Any | None = None,
    draft_is_attempt: bool = False,
    first_only: bool = False,
) -> dict[str, dict[str, float]]:
    """Measure how often a visible wrong token is re-masked, by what its history looks like.

    Every visible wrong token before every step counts once, in one class (so one that is kept for long counts often:
    `first_only` counts it the first time alone):

    - ``since_start``: wrong at every step so far and never a mask.
    - ``revealed_once``: revealed from a mask exactly once in its history.
    - ``second_attempt``: revealed two or more times.
    - ``replaced``: never revealed, but right at some time (a direct replacement made it wrong; re-masking never does).

    A model trained on trajectories where only right tokens follow a mask scores high on the first class and low on the
    others: it corrects its input, never itself.

    Args:
        states: The trajectory, the input first, shape (S + 1, B, N).
        actions: What each step did, shape (S, B, N): 0 keep, 1 reveal, 2 re-mask, 3 replace.
        target: The right ids, shape (B, N).
        mask_id: The mask's id.
        num_steps: Steps each row really took, shape (B,); later ones are padding and not counted.
        draft_is_attempt: Whether a token visible at the start is its position's first attempt, so that ``w' M w``
            counts as ``second_attempt``; by default only reveals count and it is ``revealed_once``.
        first_only: Whether a wrong token counts at a position only before the first step that finds it there. Ids then
            are in 0..62.

    Returns:
        For each class ``recall`` with its 95 % Wilson interval ``low`` and ``high``, and ``count``; nan where it is 0.

    Raises:
        ValueError: If the shapes do not fit or `num_steps` exceeds S.

    Example:
        >>> result = remask_recall_by_history([[[3, 1]], [[0, 1]]], [[[2, 0]]], [[2, 1]])
        >>> result["since_start"]["recall"], result["since_start"]["count"]
        (1.0, 1)
    """
    right = np.asarray(target)
    path, acts = _states(states, right), np.asarray(actions)
    if acts.shape != (len(path) - 1, *right.shape):
        raise ValueError(
            f"actions has shape {acts.shape}; pass one action a step, shape {(len(path) - 1, *right.shape)}."
        )
    lengths = _step_counts(num_steps, len(acts), len(right))
    attempts = ((path[0] != mask_id) & draft_is_attempt).astype(np.int64)
    reveals = np.zeros(right.shape, dtype=np.int64)
    always_wrong = np.ones(right.shape, dtype=bool)
    met = np.zeros(right.shape, dtype=np.int64)  # bit w: the wrong token w stood here before
    tallies: dict[str, list[int]] = {name: [0, 0] for name in _HISTORY_CLASSES}
    for step in range(int(lengths.max(initial=0))):
        rows = step < lengths  # most come to rest long before the last one
        state, remasked = path[step][rows], acts[step][rows] == REMASK
        if step:
            reveals[rows] += (path[step - 1][rows] == mask_id) & (state != mask_id)
        wrong = (state != mask_id) & (state != right[rows])
        always_wrong[rows] &= wrong
        counted = wrong
        if first_only:
            token = state.astype(np.int64)
            counted = wrong & ((met[rows] >> token) & 1 == 0)
            met[rows] |= np.left_shift(wrong.astype(np.int64), token)
        revealed, again, since_start = reveals[rows] > 0, (reveals + attempts)[rows] > 1, always_wrong[rows]
        members = (since_start, revealed & ~again, revealed & again, ~revealed & ~since_start)
        for name, member in zip(_HISTORY_CLASSES, members, strict=True):
            tallies[name][0] += int((counted & member & remasked).sum())
            tallies[name][1] += int((counted & member).sum())
    return {name: _recall(*tally) for name, tally in tallies.items()}


_HISTORY_CLASSES = ("since_start", "revealed_once", "second_attempt", "replaced")


def _recall(hits: int, count: int) -> dict[str, float]:
    interval = wilson_interval(hits, count)
    return {"recall": interval.value, "low": interval.low, "high": interval.high, "count": count}
