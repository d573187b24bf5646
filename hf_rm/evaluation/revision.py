"""How well a decoding run revised itself, read off its trajectory. Shapes: B rows, S steps, N positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .statistics import Interval, mean_interval, wilson_interval

_REVEAL, _REMASK, _REPLACE = 1, 2, 3
_Bools = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]


class CurvePoint(NamedTuple):
    """Accuracy if decoding had stopped after so many forward passes.

    Attributes:
        forwards: Forward passes, 0 for the input.
        token_accuracy: Share of right editable tokens, the mean of the rows'. Masks are wrong.
        exact_rows: Share of rows without a wrong editable token.

    Example:
        >>> CurvePoint(0, Interval(0.5, 0.4, 0.6, 9), Interval(0.0, 0.0, 0.1, 9)).forwards
        0
    """

    forwards: int
    token_accuracy: Interval
    exact_rows: Interval


@dataclass(frozen=True)
class RevisionMetrics:
    """What [`revision_metrics`] counts. Rates of events have Wilson's interval, means of rows the normal one.

    Attributes:
        remask_precision: Of the visible tokens taken back, the share that was wrong.
        remask_recall: Of the mistakes, the share taken back. A mistake is a wrong token at a position from the step it
            appears to the step it goes, however long that takes; a mask is none.
        replay_mistake: Of the positions where a wrong token was taken back, the share where the same wrong token came
            back later.
        edits_per_token: Tokens taken back for each editable position, the mean of the rows'.
        token_accuracy: Share of right editable tokens at the end, the mean of the rows'. Masks are wrong.
        exact_rows: Share of rows without a wrong editable token at the end.
        curve: The last two after every step.
        row_accuracy: Token accuracy of each row at the end, shape (B,): for paired differences of two runs.

    Example:
        >>> states = [[[3, 1]], [[0, 1]], [[2, 1]]]
        >>> metrics = revision_metrics((states, [[[2, 0]], [[1, 0]]]), [[2, 1]])
        >>> metrics.remask_precision.value, metrics.edits_per_token.value, len(metrics.curve)
        (1.0, 0.5, 3)
    """

    remask_precision: Interval
    remask_recall: Interval
    replay_mistake: Interval
    edits_per_token: Interval
    token_accuracy: Interval
    exact_rows: Interval
    curve: tuple[CurvePoint, ...]
    row_accuracy: npt.NDArray[np.float64]

    def flat(self) -> dict[str, float]:
        """The estimates as flat numbers, which every logger and JSON file takes.

        Returns:
            For each estimate its value, its ends under ``<name>_low`` and ``<name>_high``, and how many observations
            it rests on under ``<name>_count``.

        Example:
            >>> revision_metrics(([[[2, 1]]], np.zeros((0, 1, 2))), [[2, 1]]).flat()["token_accuracy"]
            1.0
        """
        numbers: dict[str, float] = {}
        for name, interval in vars(self).items():
            if isinstance(interval, Interval):
                numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"], numbers[f"{name}_count"] = interval
        return numbers


def revision_metrics(
    output_or_trajectory: Any,
    target: Any,
    editable_mask: Any = None,
    mask_token_id: int | None = None,
    forwards_per_step: int | None = None,
    confidence: float = 0.95,
) -> RevisionMetrics:
    """Grade a decoding run against the right answer: not only where it ended, but what it took back on the way.

    To take a token back is to re-mask it, or to replace it outright (T2T). That is right when the token was wrong.

    Args:
        output_or_trajectory: A `ReflectiveOutput` of a run with ``output_trajectory=True``, its trajectory, or the
            states (S + 1, B, N), the input first, and the actions (S, B, N): 0 keep, 1 reveal, 2 re-mask, 3 replace.
            Steps past a row's end that repeat its last state are harmless.
        target: The right ids, shape (B, N).
        editable_mask: What counts, bool of shape (B, N) or (N,); by default every position. Pass the run's own: a
            prompt is always right.
        mask_token_id: The mask's id. By default what the actions show: a position held it before a reveal and after
            a re-mask. Where neither happened every position counts as visible.
        forwards_per_step: Forward passes that a step takes, for the curve. By default what the output says, else 1.
        confidence: Coverage of the intervals.

    Returns:
        A [`RevisionMetrics`]; an estimate without data is nan.

    Raises:
        ValueError: For an output without a trajectory, shapes that do not fit, actions that are not what happened to
            the states, a row without an editable position, or `forwards_per_step` below 1.

    Example:
        >>> states = [[[3, 1, 4]], [[0, 1, 4]], [[3, 1, 4]]]  # 0 is the mask; the wrong 3 goes and comes back
        >>> metrics = revision_metrics((states, [[[2, 0, 0]], [[1, 0, 0]]]), [[2, 1, 4]])
        >>> metrics.remask_precision.value, metrics.remask_recall.value, metrics.replay_mistake.value
        (1.0, 0.5, 1.0)
    """
    states, actions, own = _trajectory(output_or_trajectory)
    right = _checked_target(target, states)
    editable = _checked_editable(editable_mask, right)
    forwards = own if forwards_per_step is None else forwards_per_step
    if isinstance(forwards, bool) or not isinstance(forwards, int) or forwards < 1:
        raise ValueError(f"forwards_per_step is {forwards!r}; pass an integer of at least 1.")
    mask = _mask_of(states, actions) if mask_token_id is None else mask_token_id
    size = editable.sum(axis=-1)
    good = (states == right) & editable
    wrong = (states != mask) & (states != right) & editable
    taken = ((actions == _REMASK) | (actions == _REPLACE)) & editable
    corrected = taken & wrong[:-1]
    replayed, given_up = _replays(states, corrected, (actions == _REVEAL) | (actions == _REPLACE))
    curve = tuple(
        CurvePoint(
            step * forwards,
            mean_interval(now.sum(axis=-1) / size, confidence),
            wilson_interval(int((now.sum(axis=-1) == size).sum()), len(size), confidence),
        )
        for step, now in enumerate(good)
    )
    return RevisionMetrics(
        remask_precision=wilson_interval(int(corrected.sum()), int(taken.sum()), confidence),
        remask_recall=wilson_interval(int(corrected.sum()), _mistakes(states, wrong), confidence),
        replay_mistake=wilson_interval(replayed, given_up, confidence),
        edits_per_token=mean_interval(taken.sum(axis=(0, 2)) / size, confidence),
        token_accuracy=curve[-1].token_accuracy,
        exact_rows=curve[-1].exact_rows,
        curve=curve,
        row_accuracy=good[-1].sum(axis=-1) / size,
    )


def _mistakes(states: _Ints, wrong: _Bools) -> int:
    """How many wrong tokens appeared: those at the start, and each that was not the same wrong token a step before."""
    began = wrong[1:] & ~(wrong[:-1] & (states[1:] == states[:-1]))
    return int(wrong[0].sum()) + int(began.sum())


def _replays(states: _Ints, corrected: _Bools, written: _Bools) -> tuple[int, int]:
    """Positions where a wrong token that had been taken back was written again, and positions where one was."""
    first: dict[tuple[int, int, int], int] = {}
    for step, row, place in np.argwhere(corrected).tolist():  # in the order of steps
        first.setdefault((row, place, int(states[step, row, place])), step)
    again: set[tuple[int, int]] = set()
    for step, row, place in np.argwhere(written).tolist():
        if step > first.get((row, place, int(states[step + 1, row, place])), step):
            again.add((row, place))
    return len(again), len({key[:2] for key in first})


def _trajectory(source: Any) -> tuple[_Ints, _Ints, int]:
    """States, actions and forward passes a step."""
    forwards = 1
    if hasattr(source, "sequences"):
        if source.trajectory is None:
            raise ValueError("the output has no trajectory: decode with output_trajectory=True.")
        steps = int(source.num_steps.max())
        forwards = int(source.num_forwards.max()) // steps if steps else 1
        source = source.trajectory
    pair = (source.states, source.actions) if hasattr(source, "states") else source
    states, actions = (np.asarray(part.cpu() if hasattr(part, "cpu") else part).astype(np.int64) for part in pair)
    if states.ndim != 3 or actions.shape != (len(states) - 1, *states.shape[1:]):
        raise ValueError(
            f"states have shape {states.shape} and actions {actions.shape}; pass (S + 1, B, N), the input first, and "
            "(S, B, N)."
        )
    if (((actions != 0) != (states[1:] != states[:-1])) | (actions < 0) | (actions > _REPLACE)).any():
        raise ValueError(
            "actions are not what happened to the states; pass 0 where a position stayed, and 1 reveal, 2 re-mask or "
            "3 replace where it changed."
        )
    return states, actions, forwards


def _mask_of(states: _Ints, actions: _Ints) -> int:
    """The token before a reveal and after a re-mask; -1, which is none, where neither happened."""
    seen = np.unique(np.concatenate((states[:-1][actions == _REVEAL], states[1:][actions == _REMASK])))
    if len(seen) > 1:
        raise ValueError(
            f"actions reveal or re-mask the ids {seen.tolist()}; one mask is expected: pass actions of one run."
        )
    return int(seen[0]) if len(seen) else -1


def _checked_target(target: Any, states: _Ints) -> _Ints:
    right = np.asarray(target.cpu() if hasattr(target, "cpu") else target)
    if right.shape != states.shape[1:]:
        raise ValueError(f"target has shape {right.shape}; pass the right ids, shape {states.shape[1:]}.")
    return right.astype(np.int64)


def _checked_editable(editable_mask: Any, right: _Ints) -> _Bools:
    if editable_mask is None:
        return np.ones(right.shape, dtype=bool)
    mask = np.asarray(editable_mask.cpu() if hasattr(editable_mask, "cpu") else editable_mask)
    if mask.dtype != bool or mask.shape not in {right.shape, right.shape[1:]}:
        raise ValueError(
            f"editable_mask is {mask.dtype} of shape {mask.shape}; pass bools of shape {right.shape}, True where a "
            "token counts."
        )
    mask = np.broadcast_to(mask, right.shape)
    if not mask.any(axis=-1).all():
        row = int((~mask.any(axis=-1)).argmax())
        raise ValueError(f"editable_mask has no position in row {row}; leave that row out.")
    return mask
