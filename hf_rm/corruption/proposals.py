# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Proposals: where wrong tokens come from.

A proposal never depends on the live parameters, and never returns the right token or the mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import numpy as np


class Proposal(ABC):
    """The law nu(. | i) of wrong tokens, Appendix C step 2."""

    @abstractmethod
    def draw(self, uniforms: np.ndarray, targets: np.ndarray, row_ids: Sequence[int | str]) -> np.ndarray:
        """
        Wrong tokens for a batch.

        Args:
            uniforms (`(B, N, A)` float64 in [0, 1)): one number for each of A attempts at each position. All
                randomness comes from here, so that a row's draws are the same whatever batch it is in.
            targets (`(B, N)` int64): the right tokens.
            row_ids (sequence of B): keys of the rows, for proposals that look their law up.

        Returns:
            `(B, N, A)` int64, nowhere equal to the target.
        """

    def may_draw(self, token_id: int) -> bool:
        """Whether the law is known to have some weight on a token (the mask, which is no wrong token)."""
        del token_id
        return False


class FixedProposal(Proposal):
    """
    One law for every position: given weights over the vocabulary, the right token left out.

    Args:
        weights (sequence of V numbers): non-negative; the mask and reserved ids get 0. At least two must be positive.

    Raises:
        ValueError: for weights from which no wrong token can be drawn.

    Example:
        >>> digits = FixedProposal([0] + [1] * 9)
        >>> digits.draw(np.array([[[0.0, 0.99]]]), np.array([[1]]), [0])
        array([[[2, 9]]])
    """

    def __init__(self, weights: Sequence[float]) -> None:
        law = np.asarray(weights, dtype=np.float64)
        if law.ndim != 1 or (law < 0).any() or (law > 0).sum() < 2:
            raise ValueError(
                f"`weights` {weights!r}: pass one non-negative weight a token id, at least two of them positive."
            )
        self.law = law
        # Row v holds the cumulative law without v; drawing is then one search in a row.
        without = np.where(np.eye(len(law), dtype=bool), 0.0, law)
        self.cumulative = without.cumsum(1) / without.sum(1, keepdims=True)
        self.last = len(law) - 1 - (without[:, ::-1] > 0).argmax(1)

    def draw(self, uniforms: np.ndarray, targets: np.ndarray, row_ids: Sequence[int | str]) -> np.ndarray:
        row = int(targets.max(-1).argmax())
        if targets[row].max() >= len(self.law):
            raise ValueError(
                f"row {row_ids[row]!r} has the target {targets[row].max()}, and `weights` are those of "
                f"{len(self.law)} ids: pass one weight for each id of the vocabulary."
            )
        drawn = (uniforms[..., None] >= self.cumulative[targets][:, :, None, :]).sum(-1)
        # Rounding may leave the last cumulative weight a hair below 1.
        return np.minimum(drawn, self.last[targets][..., None])

    def may_draw(self, token_id: int) -> bool:
        return token_id < len(self.law) and bool(self.law[token_id] > 0)


class UniformProposal(Proposal):
    """
    Every id from `first` to `last` alike, except the right token and the excluded ids; needs no table of size V x V.

    Args:
        vocab_size (`int`): ids run from 0 to `vocab_size - 1`.
        excluded (collection of int): ids that are never proposed: the mask and the reserved ones.

    Raises:
        ValueError: when fewer than two ids are left.

    Example:
        >>> UniformProposal(4, excluded=[0]).draw(np.array([[[0.0, 0.9]]]), np.array([[1]]), [0])
        array([[[2, 3]]])
    """

    def __init__(self, vocab_size: int, excluded: Collection[int] = ()) -> None:
        self.allowed = np.setdiff1d(np.arange(vocab_size), np.asarray(sorted(excluded), dtype=np.int64))
        if len(self.allowed) < 2:
            raise ValueError(
                f"`excluded` leaves {len(self.allowed)} of {vocab_size} ids: two at least are needed for a wrong one."
            )

    def draw(self, uniforms: np.ndarray, targets: np.ndarray, row_ids: Sequence[int | str]) -> np.ndarray:
        place = np.searchsorted(self.allowed, targets)
        inside = self.allowed[np.minimum(place, len(self.allowed) - 1)] == targets
        choices = len(self.allowed) - inside
        drawn = np.floor(uniforms * choices[..., None]).astype(np.int64)
        # Step over the target's own place.
        drawn += inside[..., None] & (drawn >= place[..., None])
        return self.allowed[drawn]

    def may_draw(self, token_id: int) -> bool:
        return token_id in self.allowed
