# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Trajectory laws: how a corrupted position comes to its right token.

Every law fills the same two arrays: the tokens a position shows one after another and the steps at which they change.
With W a wrong token, M the mask and x the right one:

    paper       wrong: W M x         mask: M x                                       (Appendix C)
    attempts    draft: W M W M ... x    canvas: M W M ... x    false alarm: x M x

Under the paper's law a mask in a position's history proves that what is visible now is right, and History Reference
makes that readable: a model trained on it alone stops revising its own output. The second law breaks the inference.

Shapes: B rows, N positions, S runs at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .proposals import Proposal
from .random import KeyedUniforms


@dataclass(frozen=True)
class Trajectories:
    """
    Attributes:
        tokens (`(B, N, S)` int64): the runs of every position, oldest first; unused ones repeat the target.
        starts (`(B, N, S)` int64): the step at which each run begins: 0 first, ascending, `horizon + 1` where unused.
        drafts (`(B, N)` int64): a full draft instead: a wrong token at every corrupted position, the target elsewhere.
    """

    tokens: np.ndarray
    starts: np.ndarray
    drafts: np.ndarray

    def state(self, step: np.ndarray) -> np.ndarray:
        """(B, N) tokens at the rows' steps, (B,)."""
        run = (self.starts <= step[:, None, None]).sum(-1) - 1
        return np.take_along_axis(self.tokens, run[..., None], -1)[..., 0]

    def lags(self, step: np.ndarray) -> np.ndarray:
        """(B, N, S + 1) bounds of the runs before the rows' steps, as [`HistorySegments`] has them."""
        now = step[:, None, None]
        edges = np.concatenate((self.starts, np.full_like(self.starts[..., :1], np.iinfo(np.int64).max)), -1)
        return now + 1 - np.minimum(edges, now)


class TrajectoryLaw(ABC):
    """
    A law over trajectories of `horizon` steps.

    Attributes:
        horizon (`int`): T; the current step of a training sample is drawn from 0 .. T - 1.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    @abstractmethod
    def sample(
        self,
        uniforms: KeyedUniforms,
        targets: np.ndarray,
        corrupted: np.ndarray,
        proposal: Proposal,
        mask_token_id: int,
        row_ids: Sequence[int | str],
        blank: np.ndarray | None = None,
    ) -> Trajectories:
        """
        Trajectories for a batch.

        Args:
            uniforms ([`KeyedUniforms`]): the rows' random numbers.
            targets (`(B, N)` int64): the right tokens.
            corrupted (`(B, N)` bool): positions that get a trajectory; the others show their target throughout.
            proposal ([`Proposal`]): where wrong tokens come from.
            mask_token_id (`int`): the mask.
            row_ids (sequence of B): keys of the rows, handed to the proposal.
            blank (`(B, N)` bool, *optional*): positions that begin masked, as all of an answer does that is written
                from nothing; those that are not corrupted too go straight from the mask to their target.
        """


class PaperLaw(TrajectoryLaw):
    """
    Appendix C: each corrupted position is wrong (W until beta, M until mu, then x) or masked (M until mu, then x).

    Args:
        horizon (`int`, defaults to 6): T, at least 2.
        wrong_probability (`float`, defaults to 0.5): prior of the wrong rule.

    Raises:
        ValueError: for a horizon in which beta < mu has no room, or a probability outside [0, 1].
    """

    def __init__(self, horizon: int = 6, wrong_probability: float = 0.5) -> None:
        super().__init__(horizon)
        if horizon < 2:
            raise ValueError(f"`horizon` is {horizon}: the paper's law needs at least 2 steps (wrong, then masked).")
        _check_probability("wrong_probability", wrong_probability)
        self.wrong_probability = wrong_probability

    def sample(
        self,
        uniforms: KeyedUniforms,
        targets: np.ndarray,
        corrupted: np.ndarray,
        proposal: Proposal,
        mask_token_id: int,
        row_ids: Sequence[int | str],
        blank: np.ndarray | None = None,
    ) -> Trajectories:
        length, horizon = targets.shape[1], self.horizon
        rule, beta, mu, wrong = np.moveaxis(uniforms.draw(length, 4), -1, 0)
        is_wrong = corrupted & (rule < self.wrong_probability)
        if blank is not None:  # under this law nothing is wrong after a mask
            is_wrong, corrupted = is_wrong & ~blank, corrupted | blank
        beta = np.where(is_wrong, 1 + _integers(beta, horizon - 1), 0)
        mu = np.where(is_wrong, beta + 1 + _integers(mu, horizon - beta), 1 + _integers(mu, horizon))
        drawn = proposal.draw(wrong[..., None], targets, row_ids)[..., 0]
        first = np.where(is_wrong, drawn, np.where(corrupted, mask_token_id, targets))
        second = np.where(is_wrong, mask_token_id, targets)
        never = horizon + 1
        zero = np.zeros_like(targets)
        starts = np.stack(
            (zero, np.where(is_wrong, beta, np.where(corrupted, mu, never)), np.where(is_wrong, mu, never)), -1
        )
        drafts = np.where(corrupted, drawn, targets)
        return Trajectories(np.stack((first, second, targets), -1), starts, drafts)


class AttemptsLaw(TrajectoryLaw):
    """
    A corrupted position starts as a draft, a canvas or a false alarm and errs several times before it is right.

    draft `W M (W M)* x`, canvas `M (W M)* x`, false alarm `x M (W M)* x`: the number of wrong attempts is uniform in
    0 .. `max_attempts` (1 .. `max_attempts` for a draft, whose first token counts), the steps of change are a
    uniformly drawn set of distinct steps in 1 .. T.

    Args:
        horizon (`int`, defaults to 16): T.
        max_attempts (`int`, defaults to 2): wrong attempts at most.
        draft, canvas, false_alarm (`float`): prior of the three beginnings, summing to 1.

    Raises:
        ValueError: when the longest trajectory has more runs than the horizon has steps, or for a prior that is none.
    """

    def __init__(
        self,
        horizon: int = 16,
        max_attempts: int = 2,
        draft: float = 0.5,
        canvas: float = 0.4,
        false_alarm: float = 0.1,
    ) -> None:
        super().__init__(horizon)
        if max_attempts < 1:
            raise ValueError(f"`max_attempts` is {max_attempts}: pass at least 1.")
        self.prior = np.array([draft, canvas, false_alarm], dtype=np.float64)
        if (self.prior < 0).any() or abs(self.prior.sum() - 1) > 1e-9:
            raise ValueError(
                f"`draft`, `canvas`, `false_alarm` are {self.prior.tolist()}: pass a prior that sums to 1."
            )
        # draft: 2k + 1 runs, canvas: 2k + 2, false alarm: 2k + 3.
        self.runs = 2 * max_attempts + (3 if false_alarm else 2 if canvas else 1)
        if horizon < self.runs:
            raise ValueError(
                f"`horizon` is {horizon}, too short for {max_attempts} attempts: they take up to {self.runs} runs. "
                f"Pass a horizon of at least {self.runs} or fewer attempts."
            )
        self.max_attempts = max_attempts

    def sample(
        self,
        uniforms: KeyedUniforms,
        targets: np.ndarray,
        corrupted: np.ndarray,
        proposal: Proposal,
        mask_token_id: int,
        row_ids: Sequence[int | str],
        blank: np.ndarray | None = None,
    ) -> Trajectories:
        length, most = targets.shape[1], self.max_attempts
        beginning, attempts = np.moveaxis(uniforms.draw(length, 2), -1, 0)
        kind = (beginning[..., None] >= self.prior.cumsum()[:2]).sum(-1)  # 0 draft, 1 canvas, 2 false alarm
        attempts = np.where(kind == 0, 1 + _integers(attempts, most), _integers(attempts, most + 1))
        moving = corrupted
        if blank is not None:
            if self.runs < 2 * most + 2:
                raise ValueError("`blank` needs a law with canvases: pass `canvas` above 0.")
            erring = 1 + _integers(uniforms.draw(length), most)
            kind = np.where(blank, 1, kind)
            attempts = np.where(blank, np.where(corrupted, erring, 0), attempts)
            moving = corrupted | blank
        runs = np.where(moving, 2 * attempts + 1 + kind, 1)
        wrong = proposal.draw(uniforms.draw(length, most), targets, row_ids)
        starts = self._starts(uniforms.draw(length, self.horizon), runs)
        drafts = np.where(corrupted, wrong[..., 0], targets)
        return Trajectories(self._tokens(targets, wrong, kind, runs, mask_token_id), starts, drafts)

    def _tokens(
        self, targets: np.ndarray, wrong: np.ndarray, kind: np.ndarray, runs: np.ndarray, mask_token_id: int
    ) -> np.ndarray:
        """(B, N, runs): the pattern [x M] W M W M ... cut at its start by kind and closed with x."""
        masks = np.full_like(wrong, mask_token_id)
        pattern = np.stack((wrong, masks), -1).reshape(*wrong.shape[:2], -1)
        lead = np.stack((targets, masks[..., 0]), -1)
        # After the lead come the attempts, then padding wide enough for the latest start.
        padding = np.repeat(targets[..., None], 3, -1)
        full = np.concatenate((lead, pattern, padding), -1)
        place = np.arange(self.runs) + (2 - kind)[..., None]
        tokens = np.take_along_axis(full, np.minimum(place, full.shape[-1] - 1), -1)
        return np.where(np.arange(self.runs) >= runs[..., None] - 1, targets[..., None], tokens)

    def _starts(self, uniforms: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """(B, N, runs): 0 and then `runs - 1` distinct steps of 1 .. T in order; a uniform subset by random ranks."""
        ranks = uniforms.argsort(-1).argsort(-1)
        chosen = ranks < (runs - 1)[..., None]
        steps = np.where(chosen, np.arange(1, self.horizon + 1), self.horizon + 1)
        steps.sort(-1)
        return np.concatenate((np.zeros_like(steps[..., :1]), steps[..., : self.runs - 1]), -1)


LAWS: dict[str, type[TrajectoryLaw]] = {"paper": PaperLaw, "attempts": AttemptsLaw}


def build_law(name: str, horizon: int, max_attempts: int = 2) -> TrajectoryLaw:
    """
    A law by its name, `"paper"` or `"attempts"`, with the default priors.

    Raises:
        ValueError: for an unknown name or a horizon too short.
    """
    if name not in LAWS:
        raise ValueError(f"`law` is {name!r}: pass one of {', '.join(map(repr, LAWS))}.")
    return PaperLaw(horizon) if name == "paper" else AttemptsLaw(horizon, max_attempts)


def _integers(uniforms: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Uniform integers in 0 .. count - 1."""
    return np.floor(uniforms * count).astype(np.int64)


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"`{name}` is {value!r}: pass a probability from 0 to 1.")
