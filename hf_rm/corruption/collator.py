# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""RMDataCollator: from clean sequences to Reflective Masking training states, as ids and integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .laws import AttemptsLaw, Trajectories, TrajectoryLaw
from .oracle import oracle_labels
from .proposals import Proposal
from .random import KeyedUniforms, row_keys

STARTS = ("draft", "law", "canvas")


class KeyedCollator:
    """
    Base of the collators whose draws depend on the seed, the epoch and the row's own key, and on nothing else.

    A subclass is a dataclass with a `seed`, a `mask_token_id`, a `pad_token_id` and, where it draws wrong tokens, a
    `proposal`.

    Raises:
        ValueError: for a proposal that may draw the mask.
    """

    seed: int
    mask_token_id: int
    pad_token_id: int

    def __post_init__(self) -> None:
        proposal: Proposal | None = getattr(self, "proposal", None)
        if proposal is not None and proposal.may_draw(self.mask_token_id):
            raise ValueError(
                f"`proposal` may draw {self.mask_token_id}, the mask, as a wrong token: give the mask no weight."
            )
        # Shared memory, so that loader workers forked before an epoch see its number.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Rows are corrupted anew in every epoch; the trainer calls this at its beginning."""
        self._epoch.fill_(epoch)

    def uniforms(self, row_ids: Sequence[int | str]) -> KeyedUniforms:
        """The random numbers of these rows in this epoch."""
        return KeyedUniforms(row_keys(self.seed, int(self._epoch), row_ids))


@dataclass
class RMDataCollator(KeyedCollator):
    """
    Draws a pseudo-trajectory for every row and cuts it at a random step (Appendix C, steps 1 to 4).

    Each feature is a dict with `input_ids` (the clean sequence), `idx` (a key of the row: its draws depend on it, on
    the seed and on the epoch, and on nothing else) and optionally `editable_mask`; without it every position is
    editable.

    Args:
        mask_token_id (`int`): the mask.
        proposal ([`Proposal`]): where wrong tokens come from.
        law ([`TrajectoryLaw`]): how corrupted positions come to their right token.
        corruption_rate (`tuple[float, float]`, defaults to (0.05, 0.5)): a row's share of corrupted editable positions
            is uniform between these: a uniform whole number of positions, and at least one. With a low of 0 the share
            itself is uniform, and rounded up or down by chance so that its mean is kept: a row may stay as it is.
        full_corruption (`float`, defaults to 0): probability that a row is corrupted everywhere instead.
        blank_rows (`float`, defaults to 0): probability that all editable positions of a row begin masked, as in
            writing from nothing; the corrupted ones err on their way, the others are filled once and right.
        edit_weight (`float`, defaults to 1): loss weight of corrupted positions; the others weigh 1.
        start (`str`, defaults to `"draft"`): what `start_ids` hold, for the on-policy pool: `"draft"` a wrong token at
            every corrupted position, `"law"` the trajectory's own first state, `"canvas"` a mask at every corrupted
            position.
        pad_token_id (`int`, defaults to 0): fills shorter rows on the right.
        seed (`int`, defaults to 0): of the whole run.

    Returns, from a call, a dict of tensors: `input_ids` (B, N) the state, `labels` (B, N), `attention_mask` (B, N),
    `editable_mask` (B, N) bool, `history_ids` (B, N, S) and `history_lags` (B, N, S + 1) as in [`HistorySegments`],
    `target_ids` (B, N), `start_ids` (B, N), where a pool row begins, and with an `edit_weight` other than 1
    `loss_weights` (B, N).

    Raises:
        ValueError: for rates outside [0, 1], a proposal of the mask, features without `input_ids` or `idx`, a row with
            nothing editable, or with the mask as a target.

    Example:
        >>> from hf_rm.corruption import FixedProposal, PaperLaw, RMDataCollator
        >>> collate = RMDataCollator(0, FixedProposal([0] + [1] * 9), PaperLaw(6), corruption_rate=(0.5, 0.5))
        >>> batch = collate([{"input_ids": [1, 2, 3, 4], "idx": 0}])
        >>> batch["input_ids"], batch["labels"], batch["history_lags"].shape
        (tensor([[3, 2, 0, 4]]), tensor([[0, 2, 3, 4]]), torch.Size([1, 4, 4]))
    """

    mask_token_id: int
    proposal: Proposal
    law: TrajectoryLaw = field(default_factory=AttemptsLaw)
    corruption_rate: tuple[float, float] = (0.05, 0.5)
    full_corruption: float = 0.0
    blank_rows: float = 0.0
    pad_token_id: int = 0
    edit_weight: float = 1.0
    start: str = "draft"
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.corruption_rate
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                f"`corruption_rate` is {self.corruption_rate!r}: pass (low, high) with 0 <= low <= high <= 1."
            )
        for name in ("full_corruption", "blank_rows"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: pass a probability from 0 to 1.")
        if self.start not in STARTS:
            raise ValueError(f"`start` is {self.start!r}: pass one of {', '.join(map(repr, STARTS))}.")
        super().__post_init__()

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        row_ids = [row_id(feature) for feature in features]
        targets, real, editable = pad_rows(features, self.pad_token_id, self.mask_token_id)
        uniforms = self.uniforms(row_ids)
        corrupted = self._corrupted(uniforms, editable, targets)
        step = np.floor(uniforms.draw(1)[:, 0] * self.law.horizon).astype(np.int64)
        blank = None
        if self.blank_rows:
            blank = editable & (uniforms.draw(1) < self.blank_rows)
        trajectories = self.law.sample(uniforms, targets, corrupted, self.proposal, self.mask_token_id, row_ids, blank)
        moving = corrupted if blank is None else corrupted | blank
        state = torch.from_numpy(trajectories.state(step))
        target_ids, editable_mask = torch.from_numpy(targets), torch.from_numpy(editable)
        weights = {}
        if self.edit_weight != 1.0:
            weights["loss_weights"] = torch.where(torch.from_numpy(moving), self.edit_weight, 1.0)
        return {
            **weights,
            "input_ids": state,
            "labels": oracle_labels(state, target_ids, editable_mask, self.mask_token_id),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "editable_mask": editable_mask,
            "history_ids": torch.from_numpy(trajectories.tokens),
            "history_lags": torch.from_numpy(trajectories.lags(step)),
            "target_ids": target_ids,
            "start_ids": torch.from_numpy(self._start(trajectories, targets, moving)),
        }

    def _start(self, trajectories: Trajectories, targets: np.ndarray, moving: np.ndarray) -> np.ndarray:
        if self.start == "law":
            return np.ascontiguousarray(trajectories.tokens[..., 0])
        return trajectories.drafts if self.start == "draft" else np.where(moving, self.mask_token_id, targets)

    def _corrupted(self, uniforms: KeyedUniforms, editable: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(B, N) bool: a uniformly drawn subset of the editable positions, of a size drawn per row."""
        size, everywhere, rounding = np.moveaxis(uniforms.draw(3), -1, 0)
        available = editable.sum(-1)
        least, most = (rate * available for rate in self.corruption_rate)
        if self.corruption_rate[0] == 0:
            # As whole numbers 0 to 1 % and 0 to 2 % of 40 positions would be the same.
            count = np.floor(size * most + rounding)
        else:
            low = np.maximum(np.ceil(least - 1e-9), 1)
            high = np.maximum(np.floor(most + 1e-9), low)
            count = low + np.floor(size * (high - low + 1))
        count = np.where(everywhere < self.full_corruption, available, count)
        order = np.where(editable, uniforms.draw(editable.shape[1]), 2.0).argsort(-1).argsort(-1)
        return editable & (order < count[:, None])


def row_id(feature: dict[str, Any]) -> int | str:
    """The key of a row, `idx`; a ValueError for a feature without one."""
    if "input_ids" not in feature or "idx" not in feature:
        raise ValueError(
            f"a feature has the keys {sorted(feature)}: pass `input_ids` and `idx` (and remove_unused_columns=False, "
            "so that the Trainer leaves them in)."
        )
    return feature["idx"]


def pad_rows(
    features: Sequence[dict[str, Any]], pad_token_id: int, mask_token_id: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Rows of unequal lengths, padded on the right: (B, N) int64 targets, bool real positions, bool editable positions.

    Raises:
        ValueError: for a row with nothing editable, with a mask of another length, or with `mask_token_id` where it
            says what is right.
    """
    longest = max(len(feature["input_ids"]) for feature in features)
    targets = np.full((len(features), longest), pad_token_id, dtype=np.int64)
    real = np.zeros((len(features), longest), dtype=bool)
    editable = np.zeros((len(features), longest), dtype=bool)
    for row, feature in enumerate(features):
        length = len(feature["input_ids"])
        targets[row, :length] = feature["input_ids"]
        real[row, :length] = True
        mask = feature.get("editable_mask", [True] * length)
        if len(mask) != length:
            raise ValueError(
                f"row {feature['idx']!r} has {length} ids and an `editable_mask` of {len(mask)}: pass one entry a "
                "token."
            )
        editable[row, :length] = mask
        if not editable[row].any():
            raise ValueError(
                f"row {feature['idx']!r} has nothing editable: drop it or mark positions in `editable_mask`."
            )
        if (targets[row, editable[row]] == mask_token_id).any():
            raise ValueError(
                f"row {feature['idx']!r} has the mask ({mask_token_id}) as a target: pass clean rows, or leave such "
                "positions out of `editable_mask`."
            )
    return targets, real, editable
