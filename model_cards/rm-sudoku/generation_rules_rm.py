# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Reveal rules and revision rules: the two small objects that make one decoding loop into every decoder of the field.

At each step the loop hands both rules the same `DenoisingStep`. A reveal rule says which masks become tokens; a
revision rule says which visible tokens are taken back, and which of them first where a limit allows only some.

To add a rule: write a class below and name it in `REVEAL_RULES` or `REVISION_RULES`. The loop need not change.

Shapes: B active rows, N positions, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .generation_config_rm import ReflectiveGenerationConfig


@dataclass(frozen=True)
class DenoisingStep:
    """
    What the rules see of one step. Positions that are not in the active block are neither masked nor visible here.

    Attributes:
        ids (`Tensor` (B, N), long): the state before the step.
        logits (`Tensor` (B, N, V)): the model's scores, mask and reserved ids included.
        masked (`Tensor` (B, N), bool): masks of the active block.
        visible (`Tensor` (B, N), bool): editable tokens of the active block that are not masks.
        proposal (`Tensor` (B, N), long): the token each mask would become; undefined elsewhere.
        quota (`Tensor` (B,), long): how many masks the schedule wants revealed now.
        mask_token_id (`int`): the mask.
    """

    ids: Tensor
    logits: Tensor
    masked: Tensor
    visible: Tensor
    proposal: Tensor
    quota: Tensor
    mask_token_id: int

    @cached_property
    def proposal_log_probability(self) -> Tensor:
        """(B, N) log-probability of each mask's proposal under the full softmax; -inf where there is no mask."""
        rows = self.logits[self.masked].float()
        chosen = rows.gather(-1, self.proposal[self.masked][:, None])[:, 0] - rows.logsumexp(-1)
        return self.on_masks(chosen)

    def on_masks(self, values: Tensor) -> Tensor:
        """(K,) values of the masked positions, laid out as (B, N) with -inf elsewhere."""
        laid_out = torch.full(self.ids.shape, -torch.inf, dtype=torch.float32, device=self.ids.device)
        laid_out[self.masked] = values.float()
        return laid_out


class Rule:
    """A rule is made from the generation config; most need nothing of it."""

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        del config


class RevealRule(Rule, ABC):
    """Says which masks become their proposals. `follows_schedule`: whether `steps` means anything to the rule."""

    follows_schedule: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, step: DenoisingStep) -> Tensor:
        """(B, N) bool, a subset of `step.masked`."""


class RevisionRule(Rule, ABC):
    """
    Says which visible tokens are taken back.

    `remembers`: whether the rule carries a memory from step to step, so that a repeated state need not repeat itself.
    """

    remembers: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, step: DenoisingStep) -> tuple[Tensor, Tensor]:
        """(B, N) bool where it fires, a subset of `step.visible`, and (B, N) ranks: a cap takes the lowest first."""


class RevealAll(RevealRule):
    """Every mask, as in Eq. 1."""

    def __call__(self, step: DenoisingStep) -> Tensor:
        return step.masked


class RevealAboveThreshold(RevealRule):
    """Masks whose proposal is more probable than the threshold, and always the few most confident ones."""

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        self.threshold = config.reveal_threshold
        self.at_least = config.min_reveals_per_step

    def __call__(self, step: DenoisingStep) -> Tensor:
        confidence = step.proposal_log_probability
        most_confident = lowest_ranked(-confidence, step.quota.new_full(step.quota.shape, self.at_least))
        return ((confidence.exp() > self.threshold) | most_confident) & step.masked


class RevealByConfidence(RevealRule):
    """The schedule's number of masks, most probable proposals first (LLaDA's low-confidence re-masking)."""

    follows_schedule: ClassVar[bool] = True

    def score(self, step: DenoisingStep) -> Tensor:
        """(B, N): the highest is revealed first."""
        return step.proposal_log_probability

    def __call__(self, step: DenoisingStep) -> Tensor:
        return lowest_ranked(-self.score(step), step.quota) & step.masked


class RevealByMargin(RevealByConfidence):
    """The schedule's number of masks, largest gap between the two most probable tokens first."""

    def score(self, step: DenoisingStep) -> Tensor:
        best = step.logits[step.masked].float().softmax(-1).topk(2, dim=-1).values
        return step.on_masks(best[:, 0] - best[:, 1])


class RevealByEntropy(RevealByConfidence):
    """The schedule's number of masks, lowest entropy first (Dream)."""

    def score(self, step: DenoisingStep) -> Tensor:
        log_p = step.logits[step.masked].float().log_softmax(-1)
        return step.on_masks(torch.special.entr(log_p.exp()).sum(-1).neg())


class ReflectiveRevision(RevisionRule):
    """Eq. 1: re-mask where the mask is more probable than the token that stands there; a tie keeps."""

    def __call__(self, step: DenoisingStep) -> tuple[Tensor, Tensor]:
        advantage = remask_advantage(step.ids, step.logits, step.mask_token_id)
        return (advantage > 0) & step.visible, -advantage


class NoRevision(RevisionRule):
    """What is revealed stays."""

    def __call__(self, step: DenoisingStep) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(step.visible), torch.zeros_like(step.ids, dtype=torch.float32)


REVEAL_RULES: dict[str, type[RevealRule]] = {
    "all": RevealAll,
    "threshold": RevealAboveThreshold,
    "confidence": RevealByConfidence,
    "margin": RevealByMargin,
    "entropy": RevealByEntropy,
}
REVISION_RULES: dict[str, type[RevisionRule]] = {"reflective": ReflectiveRevision}


def lowest_ranked(ranks: Tensor, count: Tensor) -> Tensor:
    """
    (B, N) bool: in each row the `count[b]` entries of lowest rank; ties go to the lower index, +inf is never taken.

    Example:
        >>> lowest_ranked(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), torch.tensor([2]))
        tensor([[False,  True,  True, False]])
    """
    order = ranks.sort(dim=-1, stable=True).indices
    places = torch.arange(ranks.shape[-1], device=ranks.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, places)
    return (place < count[:, None]) & (ranks < torch.inf)


def remask_advantage(ids: Tensor, logits: Tensor, mask_token_id: int) -> Tensor:
    """(B, N) logit of the mask minus logit of the token that stands there: Eq. 1 re-masks where it is positive."""
    return logits[..., mask_token_id] - logits.gather(-1, ids[..., None])[..., 0]


def eq1_next_state(
    ids: Tensor, logits: Tensor, mask_token_id: int, editable: Tensor, forbidden: Sequence[int] = ()
) -> Tensor:
    """
    Eq. 1 for whole batches, (B, N) to (B, N): what a plain run of the loop does in one step.

    `forbidden` ids are never revealed; the mask never is.
    """
    is_mask = ids == mask_token_id
    best = logits.index_fill(-1, torch.tensor([mask_token_id, *forbidden], device=ids.device), -torch.inf).argmax(-1)
    remask = remask_advantage(ids, logits, mask_token_id) > 0
    following = torch.where(is_mask, best, torch.where(remask, mask_token_id, ids))
    return torch.where(editable, following, ids)


@dataclass(frozen=True)
class RemaskLimits:
    """
    Bounds on any revision rule.

    Attributes:
        per_position (`int`, *optional*): re-masks a position may suffer within its block.
        ratio (`float`, *optional*): share of the visible tokens that one step may re-mask, rounded down, at least one.
    """

    per_position: int | None = None
    ratio: float | None = None

    def __call__(self, fires: Tensor, ranks: Tensor, visible: Tensor, counts: Tensor) -> Tensor:
        """(B, N) bool: the part of `fires` that the limits allow. `counts` are the re-masks so far, (B, N)."""
        if self.per_position is not None:
            fires = fires & (counts < self.per_position)
        if self.ratio is not None:
            most = (self.ratio * visible.sum(-1)).floor().long().clamp(min=1)
            fires = fires & lowest_ranked(ranks.masked_fill(~fires, torch.inf), most)
        return fires
