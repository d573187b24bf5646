# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Revision rules: which visible tokens are taken back or replaced outright, and the limits that any of them may get.

    reflective   Eq. 1: the mask's share of the two, mask and token, above a threshold (needs a model trained for it)
    low_prob     the token's probability fell below a threshold                        Token-to-Mask
    t2t_remask   another token is above a threshold: back to the mask                  Token-to-Mask
    logit_diff   the token's probability dropped since the step before                 Token-to-Mask
    t2t          another token is above a threshold: becomes that token                LLaDA2.1
    remdm        at random, as the noise schedule allows                               ReMDM
    policy       not among the K_n positions that a learned policy keeps               RemeDi

Shapes: B active rows, A positions of a row's active block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .generation_rules_rm import DenoisingStep, RemaskingTimes, Rule, kept_by_policy, lowest_ranked, remask_advantage

if TYPE_CHECKING:
    from .generation_config_rm import ReflectiveGenerationConfig


@dataclass(frozen=True)
class Revision:
    """
    What a rule wants.

    Attributes:
        fires (`Tensor` (B, A), bool): where, a subset of `step.visible`.
        ranks (`Tensor` (B, A), float): where a limit allows only some, it takes the lowest first.
    """

    fires: Tensor
    ranks: Tensor


class RevisionRule(Rule, ABC):
    """
    Says which visible tokens are taken back.

    `threshold`: what `revise_threshold` is by default, None where the rule has none. `replaces`: whether it puts
    another token in place at once, instead of the mask. `remembers`: whether the rule carries a memory from step to
    step, so that a repeated state need not repeat itself.
    """

    threshold: ClassVar[float | None] = None
    replaces: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        given = config.revise_threshold
        self.tau: float = (self.threshold or 0.0) if given is None else given

    @abstractmethod
    def __call__(self, step: DenoisingStep) -> Revision:
        """What the rule wants, before any limit."""

    def note(self, step: DenoisingStep, reveal: Tensor) -> dict[str, Tensor]:
        """What to remember of this step, (B, A) each; `reveal` are the masks that became their proposals."""
        del step, reveal
        return {}


class ReflectiveRevision(RevisionRule):
    """
    Eq. 1: re-mask where the mask is more probable than the token that stands there; a tie keeps.

    That is a share p(mask) / (p(mask) + p(token)) above one half; a higher threshold takes back only what the model is
    surer of.
    """

    threshold: ClassVar[float | None] = 0.5

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        super().__init__(config)
        self.least_advantage = torch.tensor(self.tau, dtype=torch.float64).logit().item()

    def __call__(self, step: DenoisingStep) -> Revision:
        advantage = remask_advantage(step.ids, step.logits, step.mask_token_id).float()
        return Revision((advantage > self.least_advantage) & step.visible, -advantage)


class LowProbability(RevisionRule):
    """Token-to-Mask, LowProb: p(x) < tau."""

    threshold: ClassVar[float | None] = 0.3

    def __call__(self, step: DenoisingStep) -> Revision:
        probability = step.probability(step.ids)
        return Revision((probability < self.tau) & step.visible, probability)


class TokenToToken(RevisionRule):
    """LLaDA2.1's token editing: max p > tau and the best token is another one; it takes the place."""

    threshold: ClassVar[float | None] = 0.5
    replaces: ClassVar[bool] = True

    def __call__(self, step: DenoisingStep) -> Revision:
        best = step.best_probability
        return Revision((best > self.tau) & (step.best != step.ids) & step.visible, 1 - best)


class TokenToTokenRemask(TokenToToken):
    """Token-to-Mask, T2T-Remask: the same detector, but the token goes back to the mask."""

    threshold: ClassVar[float | None] = 0.9
    replaces: ClassVar[bool] = False


class LogitDifference(RevisionRule):
    """Token-to-Mask, LogitDiff: the token's probability dropped by more than tau since the step before."""

    threshold: ClassVar[float | None] = 0.3
    remembers: ClassVar[bool] = True

    def __call__(self, step: DenoisingStep) -> Revision:
        before = step.memory.get("probability")
        if before is None:
            return Revision(torch.zeros_like(step.visible), torch.zeros_like(step.log_partition))
        drop = before - step.probability(step.ids)
        # Without a step before in this block the memory is NaN, and nothing is larger than that.
        return Revision((drop > self.tau) & step.visible, -drop.nan_to_num())

    def note(self, step: DenoisingStep, reveal: Tensor) -> dict[str, Tensor]:
        return {"probability": step.probability(torch.where(reveal, step.proposal, step.ids))}


class RandomRemasking(RevisionRule):
    """ReMDM: every visible token goes back with probability sigma; "conf" shares it out by confidence at reveal."""

    draws: ClassVar[bool] = True
    ends_with_schedule: ClassVar[bool] = True

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        super().__init__(config)
        self.times = RemaskingTimes(config)

    def __call__(self, step: DenoisingStep) -> Revision:
        assert step.uniforms is not None
        sigma = self.times.sigma(step.schedule).float()[:, None].expand(step.ids.shape)
        if self.times.variant == "conf":
            # A token that stood there from the start was never revealed: it counts as certain.
            certainty = step.memory.get("confidence", torch.ones_like(step.log_partition)).nan_to_num(nan=1.0)
            weights = (-certainty).masked_fill(~step.visible, -torch.inf).softmax(-1).nan_to_num()
            sigma = sigma * weights
        drawn = step.uniforms(2)
        return Revision((drawn < sigma) & step.visible, drawn)

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return self.times.variant == "conf"

    def note(self, step: DenoisingStep, reveal: Tensor) -> dict[str, Tensor]:
        if not self.remembers:
            return {}
        before = step.memory.get("confidence", torch.full_like(step.log_partition, torch.nan))
        return {"confidence": torch.where(reveal, step.confidence.exp(), before)}


class PolicyRevision(RevisionRule):
    """RemeDi: every visible token that is not among the K_n positions of highest policy score."""

    ends_with_schedule: ClassVar[bool] = True

    def __call__(self, step: DenoisingStep) -> Revision:
        fires = step.visible & ~kept_by_policy(step)
        assert step.policy is not None
        return Revision(fires, step.policy.float())


class NoRevision(RevisionRule):
    """What is revealed stays."""

    def __call__(self, step: DenoisingStep) -> Revision:
        return Revision(torch.zeros_like(step.visible), torch.zeros_like(step.log_partition))


REVISION_RULES: dict[str, type[RevisionRule]] = {
    "reflective": ReflectiveRevision,
    "low_prob": LowProbability,
    "t2t_remask": TokenToTokenRemask,
    "logit_diff": LogitDifference,
    "t2t": TokenToToken,
    "remdm": RandomRemasking,
    "policy": PolicyRevision,
}


@dataclass(frozen=True)
class RemaskLimits:
    """
    Bounds on any revision rule.

    Attributes:
        per_position (`int`, *optional*): revisions a position may suffer within its block.
        ratio (`float`, *optional*): share of the visible tokens that one step may revise, rounded down.
        at_least (`int`, defaults to 1): but so many; 0 is the letter of the Token-to-Mask paper.
        total (`int`, *optional*): revisions a row may suffer in all.
    """

    per_position: int | None = None
    ratio: float | None = None
    at_least: int = 1
    total: int | None = None

    def __call__(
        self, fires: Tensor, ranks: Tensor, visible: Tensor, counts: Tensor, spent: Tensor | None = None
    ) -> Tensor:
        """
        (B, A) bool: the part of `fires` that the limits allow.

        `counts` (B, A) are the revisions of each position so far, `spent` (B,) those of the whole row.
        """
        if self.per_position is not None:
            fires = fires & (counts < self.per_position)
        if self.ratio is not None:
            most = (self.ratio * visible.sum(-1)).floor().long().clamp(min=self.at_least)
            fires = fires & lowest_ranked(ranks.masked_fill(~fires, torch.inf), most)
        if self.total is not None and spent is not None:
            fires = fires & lowest_ranked(ranks.masked_fill(~fires, torch.inf), (self.total - spent).clamp(min=0))
        return fires
