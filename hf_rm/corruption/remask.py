# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Training states of Remask SFT (RemeDi): masks, and wrong tokens as a second kind of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .collator import KeyedCollator, pad_rows, row_id
from .oracle import IGNORE_INDEX
from .proposals import Proposal

CLEAN, INCORRECT, MASKED = 0, 1, 2
GROUP_NAMES = ("clean", "incorrect", "masked")


def incorrect_ratio(time: np.ndarray | float, r: float = 0.1) -> Any:
    """
    Share of wrong tokens among those that are not masked, 4 r t (1 - t).

    Example:
        >>> incorrect_ratio(0.5), round(incorrect_ratio(0.25), 3), incorrect_ratio(1.0)
        (0.1, 0.075, 0.0)
    """
    return 4 * r * time * (1 - time)


def noise_counts(time: np.ndarray, length: np.ndarray, r: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """
    How many of `length` positions are masked, and how many of the others are wrong, at times in (0, 1].

    ceil(t L) masks; ceil(rho (1 - t) L) wrong tokens, but always fewer than masks, so that a step towards fewer masks
    can take all of them back. The paper says that this holds by itself; for t <= 1 / L, one mask, it does not, and
    the count is cut down. Neither may the two exceed the length.

    Example:
        >>> noise_counts(np.array([0.05, 0.5, 1.0]), np.array([20, 20, 20]))
        (array([ 1, 10, 20]), array([0, 1, 0]))
    """
    # 1e-9: 0.1 * 30 is a hair above 3, and no fourth mask.
    masked = np.clip(np.ceil(time * length - 1e-9), 1, length).astype(np.int64)
    wrong = np.ceil(incorrect_ratio(time, r) * (1 - time) * length - 1e-9).astype(np.int64)
    return masked, np.minimum(wrong, np.minimum(masked - 1, length - masked))


@dataclass
class RemaskSFTCollator(KeyedCollator):
    """
    Masks a share t ~ U(0, 1) of a row's editable positions and makes a few of the others wrong ([`noise_counts`]).

    Args:
        mask_token_id (`int`): the mask.
        proposal ([`Proposal`]): where wrong tokens come from.
        incorrect_rate (`float`, defaults to 0.1): r; 0 for no wrong tokens.
        block_length (`int`, *optional*): for attention by blocks counted from the answer: the noise is in one block of
            this many positions, drawn at random, as when it is decoded; what comes before it is clean and not
            supervised, what comes after it is not shown.
        stop_token_ids (sequence of `int`): decoding by blocks ends with the block that holds one of these, so that no
            later one is drawn.
        pad_token_id (`int`, defaults to 0): fills shorter rows on the right.
        seed (`int`, defaults to 0): of the whole run.

    Returns, from a call, a dict of tensors (B, N): `input_ids`, `labels` (the right token at masks, -100 elsewhere),
    `groups` (CLEAN, INCORRECT, MASKED; -100 where nothing is supervised), `loss_weights` (supervised positions over
    masks of the row), `attention_mask`, `editable_mask`. Draws are keyed by (seed, epoch, row), as those of
    [`RMDataCollator`].

    Raises:
        ValueError: for a rate from which wrong tokens would not stay fewer than masks, or a length below 1.

    Example:
        >>> from hf_rm.corruption import UniformProposal
        >>> collate = RemaskSFTCollator(0, UniformProposal(9, excluded=[0]))
        >>> batch = collate([{"input_ids": [5, 6, 7, 8], "idx": 0}])
        >>> bool(((batch["groups"] == MASKED) == (batch["input_ids"] == 0)).all())
        True
    """

    mask_token_id: int
    proposal: Proposal
    incorrect_rate: float = 0.1
    block_length: int | None = None
    stop_token_ids: Sequence[int] = ()
    pad_token_id: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        # 4 r t (1 - t)^2 < t for all t in (0, 1] asks for no more.
        if not 0.0 <= self.incorrect_rate <= 0.25:
            raise ValueError(f"`incorrect_rate` is {self.incorrect_rate!r}: pass r from 0 to 0.25 (the paper: 0.1).")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"`block_length` is {self.block_length!r}: pass a positive integer, or None.")
        super().__post_init__()

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        row_ids = [row_id(feature) for feature in features]
        targets, real, editable = pad_rows(features, self.pad_token_id, self.mask_token_id)
        uniforms = self.uniforms(row_ids)
        time, block = np.moveaxis(uniforms.draw(2), -1, 0)
        noisy, shown = self._block(block, editable, targets) if self.block_length else (editable, real)
        groups = self._groups(noisy, 1 - time, uniforms.draw(targets.shape[1]))
        wrong = self.proposal.draw(uniforms.draw(targets.shape[1], 1), targets, row_ids)[..., 0]
        state = np.where(groups == MASKED, self.mask_token_id, np.where(groups == INCORRECT, wrong, targets))
        weights = noisy.sum(-1) / (groups == MASKED).sum(-1)
        return {
            "input_ids": torch.from_numpy(state),
            "labels": torch.from_numpy(np.where(groups == MASKED, targets, IGNORE_INDEX)),
            "groups": torch.from_numpy(groups),
            "loss_weights": torch.from_numpy(np.broadcast_to(weights[:, None], targets.shape).astype(np.float32)),
            "attention_mask": torch.from_numpy((real & shown).astype(np.int64)),
            "editable_mask": torch.from_numpy(editable),
        }

    def _groups(self, noisy: np.ndarray, time: np.ndarray, order: np.ndarray) -> np.ndarray:
        """(B, N) groups: of the noisy positions in a random order the first are masked, the next ones wrong."""
        masked, wrong = noise_counts(time, noisy.sum(-1), self.incorrect_rate)
        place = np.where(noisy, order, 2.0).argsort(-1, kind="stable").argsort(-1)
        groups = np.where(place < (masked + wrong)[:, None], INCORRECT, CLEAN)
        groups = np.where(place < masked[:, None], MASKED, groups)
        return np.where(noisy, groups, IGNORE_INDEX)

    def _block(self, uniform: np.ndarray, editable: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, N) bool: the editable positions of a block drawn for each row, and everything up to its end."""
        assert self.block_length is not None
        number = (np.arange(editable.shape[1]) - editable.argmax(-1)[:, None]) // self.block_length
        ends = editable & np.isin(targets, list(self.stop_token_ids))
        last = np.where(ends.any(-1), np.take_along_axis(number, ends.argmax(-1)[:, None], 1)[:, 0], number[:, -1])
        # Of the blocks that hold something editable; a long prompt in between may fill one.
        reached = editable & (number <= last[:, None])
        holding = [np.unique(row[mask]) for row, mask in zip(number, reached, strict=True)]
        chosen = np.array([blocks[int(u * len(blocks))] for blocks, u in zip(holding, uniform, strict=True)])
        return editable & (number == chosen[:, None]), number <= chosen[:, None]
