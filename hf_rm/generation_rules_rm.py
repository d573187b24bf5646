# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
What the rules see of a step, the reveal rules, and what Eq. 1 compares.

At each step the loop hands a reveal rule and a revision rule the same `DenoisingStep`. A reveal rule says which masks
become tokens; a revision rule (`generation_revision_rm`) which visible tokens are taken back. To add one: write a
class and name it in `REVEAL_RULES` or `REVISION_RULES`. The loop need not change.

Shapes: B active rows, A positions of a row's active block, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .generation_config_rm import ReflectiveGenerationConfig


@dataclass(frozen=True)
class Schedule:
    """
    Where each row stands in its block: all (B,) long.

    Attributes:
        step: steps done in the block.
        steps: steps that its reveal schedule has.
        masks: masks it held when it began.
        size: editable positions that the rules see: the block's, with `revise_scope="all"` the earlier ones' too.
    """

    step: Tensor
    steps: Tensor
    masks: Tensor
    size: Tensor

    def reveals_now(self) -> Tensor:
        """(B,) masks to reveal: the block's spread evenly over its steps, the first taking the remainder (LLaDA)."""
        each, more = self.masks // self.steps, self.masks % self.steps
        quota = each + (self.step < more)
        # Past the schedule (masks that a revision reopened) the pace stays that of the schedule, at least one a step.
        return torch.where(self.step < self.steps, quota, each.clamp(min=1))

    def visible_after(self) -> Tensor:
        """(B,) K_n, positions visible after this step: spread evenly, the last steps taking the remainder (RemeDi)."""
        done = (self.step + 1).clamp(max=self.steps)
        each, more = self.masks // self.steps, self.masks % self.steps
        return self.size - self.masks + done * each + (done - (self.steps - more)).clamp(min=0)


@dataclass(frozen=True)
class DenoisingStep:
    """
    What the rules see of one step: the positions of the active block, and nothing else.

    Attributes:
        ids (`Tensor` (B, A), long): the state before the step.
        logits (`Tensor` (B, A, V)): the model's scores, mask and reserved ids included.
        masked (`Tensor` (B, A), bool): masks.
        visible (`Tensor` (B, A), bool): editable tokens that are not masks.
        mask_token_id (`int`): the mask.
        forbidden (`Tensor` (F,), long): the mask and the reserved ids, which are never written.
        proposal (`Tensor` (B, A), long): the token that each position would become.
        best (`Tensor` (B, A), long): the most probable token that may be written.
        best_logit (`Tensor` (B, A)): its score.
        log_partition (`Tensor` (B, A), float64): log sum exp of the scores, over the vocabulary or over what may be
            written (`restrict_confidence`).
        schedule ([`Schedule`]): where each row stands.
        policy (`Tensor` (B, A), *optional*): the score of a learned unmasking policy.
        delayed (`Tensor` (D,), *optional*): tokens that are revealed last.
        uniforms (`Callable`): stream number to (B, A) numbers in (0, 1) of the rows' own.
        memory (`dict`): what a rule noted in earlier steps of the block, (B, A) each; NaN when a block begins.
    """

    ids: Tensor
    logits: Tensor
    masked: Tensor
    visible: Tensor
    mask_token_id: int
    forbidden: Tensor
    proposal: Tensor
    best: Tensor
    best_logit: Tensor
    log_partition: Tensor
    schedule: Schedule
    policy: Tensor | None = None
    delayed: Tensor | None = None
    uniforms: Callable[[int], Tensor] | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)

    def probability(self, tokens: Tensor) -> Tensor:
        """(B, A) probability of the tokens (B, A)."""
        return (self.logits.gather(-1, tokens[..., None])[..., 0].float() - self.log_partition).exp()

    @cached_property
    def best_probability(self) -> Tensor:
        """(B, A) max p, the mask and reserved ids not counted."""
        return (self.best_logit.float() - self.log_partition).exp()

    @cached_property
    def confidence(self) -> Tensor:
        """(B, A) log-probability of the proposal at masks, -inf elsewhere; delayed tokens behind all others."""
        chosen = self.logits.gather(-1, self.proposal[..., None])[..., 0].float() - self.log_partition
        return self.behind(chosen).masked_fill(~self.masked, -torch.inf)

    def behind(self, score: Tensor) -> Tensor:
        """Scores (B, A) in which positions that would become a delayed token come after all others."""
        if self.delayed is None:
            return score
        return score - 1e9 * (self.proposal[..., None] == self.delayed).any(-1)

    @cached_property
    def writable_log_probabilities(self) -> Tensor:
        """(B, A, V) log-probabilities among what may be written; -inf at the rest. A copy: few rules need it."""
        return self.logits.float().index_fill(-1, self.forbidden, -torch.inf).log_softmax(-1)


class Rule:
    """A rule is made from the generation config; most need nothing of it. `draws`: whether it needs `uniforms`."""

    draws: ClassVar[bool] = False
    # The rule keeps to the schedule: a block is over when that is, and not when nothing has changed for a while.
    ends_with_schedule: ClassVar[bool] = False

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        del config


class RevealRule(Rule, ABC):
    """Says which masks become their proposals. `follows_schedule`: whether `steps` means anything to the rule."""

    follows_schedule: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, step: DenoisingStep) -> Tensor:
        """(B, A) bool, a subset of `step.masked`."""


class RevealAll(RevealRule):
    """Every mask, as in Eq. 1."""

    def __call__(self, step: DenoisingStep) -> Tensor:
        return step.masked


class RevealAboveThreshold(RevealRule):
    """Masks whose proposal is more probable than the threshold, and always the few most confident ones (Fast-dLLM)."""

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        self.threshold = 0.9 if config.reveal_threshold is None else config.reveal_threshold
        self.at_least = config.min_reveals_per_step

    def __call__(self, step: DenoisingStep) -> Tensor:
        most_confident = lowest_ranked(-step.confidence, torch.full_like(step.schedule.step, self.at_least))
        return ((step.confidence.exp() > self.threshold) | most_confident) & step.masked


class RevealByFactor(RevealRule):
    """
    Fast-dLLM's factor rule: the most confident n masks, n the largest with (n + 1)(1 - c_n) < factor, at least one.

    c_n is the n-th highest confidence: the more masks fall at once, the surer each of them has to be.
    """

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        self.factor = config.reveal_factor
        self.at_least = config.min_reveals_per_step

    def __call__(self, step: DenoisingStep) -> Tensor:
        ordered = step.confidence.exp().sort(dim=-1, descending=True).values
        number = torch.arange(1, ordered.shape[-1] + 1, device=ordered.device)
        # (n + 1)(1 - c_n) grows with n, so the places that satisfy it come first.
        count = ((number + 1) * (1 - ordered) < self.factor).sum(-1).clamp(min=self.at_least)
        return lowest_ranked(-step.confidence, count) & step.masked


class RevealByConfidence(RevealRule):
    """The schedule's number of masks, most probable proposals first (LLaDA's low-confidence re-masking)."""

    follows_schedule: ClassVar[bool] = True

    def score(self, step: DenoisingStep) -> Tensor:
        """(B, A): the highest is revealed first."""
        return step.confidence

    def __call__(self, step: DenoisingStep) -> Tensor:
        score = self.score(step).masked_fill(~step.masked, -torch.inf)
        return lowest_ranked(-score, step.schedule.reveals_now()) & step.masked


class RevealByMargin(RevealByConfidence):
    """The schedule's number of masks, largest gap between the two most probable tokens first."""

    def score(self, step: DenoisingStep) -> Tensor:
        best = step.writable_log_probabilities.topk(2, dim=-1).values.exp()
        return step.behind(best[..., 0] - best[..., 1])


class RevealByEntropy(RevealByConfidence):
    """The schedule's number of masks, lowest entropy first (Dream)."""

    def score(self, step: DenoisingStep) -> Tensor:
        return step.behind(torch.special.entr(step.writable_log_probabilities.exp()).sum(-1).neg())


class RevealByPolicy(RevealRule):
    """The masks among the K_n positions of highest policy score (RemeDi); the revision rule takes back the others."""

    follows_schedule: ClassVar[bool] = True
    ends_with_schedule: ClassVar[bool] = True

    def __call__(self, step: DenoisingStep) -> Tensor:
        return kept_by_policy(step) & step.masked


def kept_by_policy(step: DenoisingStep) -> Tensor:
    """(B, A) bool: the K_n positions of the block with the highest policy score; ties go to the lower index."""
    assert step.policy is not None
    score = step.policy.float().masked_fill(~(step.masked | step.visible), -torch.inf)
    return lowest_ranked(-score, step.schedule.visible_after())


class RevealAtRandom(RevealRule):
    """ReMDM's posterior: each mask falls with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)."""

    follows_schedule: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    ends_with_schedule: ClassVar[bool] = True

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        self.times = RemaskingTimes(config)

    def __call__(self, step: DenoisingStep) -> Tensor:
        assert step.uniforms is not None
        return (step.uniforms(1) < self.times.reveal_probability(step.schedule)[:, None]) & step.masked


class RemaskingTimes:
    """
    ReMDM's schedule (Wang et al. 2025): alpha, the expected visible share, and sigma, the re-masking probability.

    With n steps, step i goes from t = 1 - i/n to s = 1 - (i + 1)/n. alpha_t = 1 - t; the variant "loop" instead rises
    to `remdm_alpha` until t = `remdm_window[0]`, stays there until `remdm_window[1]`, and then rises to 1.
    """

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        self.variant, self.eta = config.remdm_variant, config.remdm_eta
        self.window, self.plateau = config.remdm_window, config.remdm_alpha

    def alpha(self, time: Tensor) -> Tensor:
        """(B,) expected visible share at time 1 (all masked) to 0 (all visible)."""
        if self.variant != "loop":
            return 1 - time
        on, off = self.window
        rising = self.plateau * (1 - time) / (1 - on)
        ending = self.plateau + (1 - self.plateau) * (off - time) / off
        return torch.where(time > on, rising, torch.where(time > off, self.plateau, ending))

    def at(self, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) alpha_t, alpha_s and the largest sigma that is possible, float64."""
        done = schedule.step.clamp(max=schedule.steps - 1).double()
        now, then = self.alpha(1 - done / schedule.steps), self.alpha(1 - (done + 1) / schedule.steps)
        return now, then, ((1 - then) / now.clamp(min=1e-12)).clamp(max=1.0)

    def sigma(self, schedule: Schedule) -> Tensor:
        """(B,) re-masking probability of a visible token; "conf" still shares it out by confidence."""
        now, then, most = self.at(schedule)
        if self.variant == "cap":
            return most.clamp(max=self.eta)
        if self.variant == "rescale":
            return self.eta * most
        if self.variant == "conf":
            return most
        return torch.where(now == then, most.clamp(max=self.eta), 0.0)

    def reveal_probability(self, schedule: Schedule) -> Tensor:
        """(B,): what keeps the expected visible share at alpha_s; 1 in the last step."""
        now, then, _ = self.at(schedule)
        # Under "conf" a mask's own sigma is 0: its confidence is infinite.
        sigma = torch.zeros_like(now) if self.variant == "conf" else self.sigma(schedule)
        last = schedule.step >= schedule.steps - 1
        return torch.where(last, 1.0, (then - (1 - sigma) * now) / (1 - now).clamp(min=1e-12)).float()


REVEAL_RULES: dict[str, type[RevealRule]] = {
    "all": RevealAll,
    "threshold": RevealAboveThreshold,
    "factor": RevealByFactor,
    "confidence": RevealByConfidence,
    "margin": RevealByMargin,
    "entropy": RevealByEntropy,
    "policy": RevealByPolicy,
    "remdm": RevealAtRandom,
}


def lowest_ranked(ranks: Tensor, count: Tensor) -> Tensor:
    """
    (B, A) bool: in each row the `count[b]` entries of lowest rank; ties go to the lower index, +inf is never taken.

    Example:
        >>> lowest_ranked(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), torch.tensor([2]))
        tensor([[False,  True,  True, False]])
    """
    order = ranks.sort(dim=-1, stable=True).indices
    places = torch.arange(ranks.shape[-1], device=ranks.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, places)
    return (place < count[:, None]) & (ranks < torch.inf)


def remask_advantage(ids: Tensor, logits: Tensor, mask_token_id: int) -> Tensor:
    """(B, N) logit of the mask minus that of the token that stands there; Eq. 1 re-masks where it is positive."""
    return logits[..., mask_token_id] - logits.gather(-1, ids[..., None])[..., 0]
