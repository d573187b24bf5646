# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What each position would become: the most probable token that may be written, or a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .generation_config_rm import ReflectiveGenerationConfig


class Sampler:
    """
    Proposals for all positions of a block.

    The forbidden ids are taken out of the logits in place and put back: at 126,464 tokens a copy of the scores would
    cost as much as everything else that the loop does with them.
    """

    def __init__(
        self,
        model: Any,
        config: ReflectiveGenerationConfig,
        mask_token_id: int,
        ends: Tensor | None,
        device: torch.device,
    ) -> None:
        self.forbidden = _forbidden_ids(model, config, mask_token_id, ends, device)
        self.restricted = config.restrict_confidence
        self.processors = LogitsProcessorList()
        if config.temperature > 0:
            self.processors.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k is not None:
            self.processors.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None:
            self.processors.append(TopPLogitsWarper(float(config.top_p)))

    def __call__(
        self, logits: Tensor, uniforms: Callable[[int], Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(b, A) proposals, best tokens, their logits and log-partitions of logits (b, A, V), left as they are."""
        kept = logits.index_select(-1, self.forbidden)
        logits.index_fill_(-1, self.forbidden, -torch.inf)
        best_logit, best = most_probable(logits)
        proposal = best
        if len(self.processors):
            assert uniforms is not None
            proposal = self._sample(logits, uniforms(0))
        if not self.restricted:
            logits.index_copy_(-1, self.forbidden, kept)
        # The best token is added last and in 64 bits: in 32 all that is nearly certain would look equally certain.
        wide = torch.float32 if logits.device.type == "mps" else torch.float64
        # Not scatter_, which passes over all scores on a CPU.
        row, column = (torch.arange(size, device=logits.device) for size in best.shape)
        place = (row[:, None], column, best)
        logits.index_put_(place, best_logit.new_tensor(-torch.inf))
        rest = log_partition(logits)
        logits.index_put_(place, best_logit)
        partition = torch.logaddexp(rest.to(wide), best_logit.to(wide))
        if self.restricted:
            logits.index_copy_(-1, self.forbidden, kept)
        return proposal, best, best_logit, partition

    def _sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """(b, A): inverts the cumulated probabilities, one number a position instead of one a token."""
        scores = self.processors(None, logits.float().flatten(0, 1)).view_as(logits)
        total = scores.softmax(-1).cumsum(-1)
        # A number at the very end of the interval must not go past the last token with any probability.
        wanted = (uniform * total[..., -1])[..., None]
        chosen = torch.searchsorted(total, wanted, right=True)[..., 0]
        last = scores.shape[-1] - 1 - scores.flip(-1).isfinite().int().argmax(-1)
        return torch.minimum(chosen, last)


def most_probable(logits: Tensor, part: int = 1024) -> tuple[Tensor, Tensor]:
    """
    The greatest of (b, A, V) scores and its index, the first among equals, as `max(-1)` has them.

    On a CPU in two stages, first the parts' greatest: `amax` is vectorised there, and `max` with indices is not.

    Example:
        >>> most_probable(torch.tensor([[[1.0, 3.0, 3.0]]]))
        (tensor([[3.]]), tensor([[1]]))
    """
    size = logits.shape[-1] // part * part
    if logits.device.type != "cpu" or not size:
        greatest = logits.max(-1)
        return greatest.values, greatest.indices
    parts = logits[..., :size].unflatten(-1, (-1, part))
    value, where = parts.amax(-1).max(-1)
    within = parts.gather(-2, where[..., None, None].expand(*where.shape, 1, part))[..., 0, :].argmax(-1)
    index = where * part + within
    if size < logits.shape[-1]:
        rest = logits[..., size:].max(-1)
        index = torch.where(rest.values > value, rest.indices + size, index)
        value = torch.maximum(rest.values, value)
    return value, index


def log_partition(logits: Tensor) -> Tensor:
    """
    Log sum exp of (b, A, V) scores in float32, (b, A).

    On a CPU a part at a time that its cache holds in float32, without a copy of all the scores.

    Example:
        >>> log_partition(torch.zeros(1, 2, 8).bfloat16()).exp()
        tensor([[8., 8.]])
    """
    if logits.device.type != "cpu":
        return torch.logsumexp(logits.float(), dim=-1)
    parts = logits.flatten(0, 1).split(max(2**17 // logits.shape[-1], 1))
    return torch.cat([torch.logsumexp(part.float(), dim=-1) for part in parts]).view(logits.shape[:-1])


def end_tokens(model: Any, config: ReflectiveGenerationConfig, device: torch.device) -> Tensor | None:
    """
    Ids that end a text, where a setting needs them: those of the generation config, else the model's.

    Raises:
        ValueError: where a setting needs them and there are none.
    """
    if not (config.stop_at_eos or config.suppress_eos or config.delay_eos):
        return None
    own = _special_token(model, config, "eos_token_id")
    ids = own if isinstance(own, (list, tuple)) else [own]
    if not ids or not all(isinstance(i, int) and 0 <= i < model.config.vocab_size for i in ids):
        raise ValueError(
            f"`stop_at_eos`, `suppress_eos` or `delay_eos` is set, but `eos_token_id` is {own!r}: pass ids from 0 to "
            f"{model.config.vocab_size - 1}."
        )
    return torch.tensor(ids, device=device)


def padding_token(model: Any, config: ReflectiveGenerationConfig, ends: Tensor | None) -> int | None:
    """What follows the end of a text: the padding of the generation config, else the model's, else the end itself."""
    own = _special_token(model, config, "pad_token_id")
    return own if own is not None or ends is None else int(ends[0])


def _special_token(model: Any, config: ReflectiveGenerationConfig, name: str) -> Any:
    inner = getattr(model.config, "text_config", None) or model.config
    own = getattr(config, name)
    return getattr(inner, name, None) if own is None else own


def _forbidden_ids(
    model: Any, config: ReflectiveGenerationConfig, mask_token_id: int, ends: Tensor | None, device: torch.device
) -> Tensor:
    """Ids that no reveal writes: the mask and the reserved ones."""
    own = getattr(model.config, "suppressed_token_ids", None) or []
    others = {*own, *(config.suppressed_token_ids or [])} - {mask_token_id}
    if config.suppress_eos and ends is not None:
        others |= set(ends.tolist())
    ids = [mask_token_id, *sorted(others)]
    vocab_size = model.config.vocab_size
    if min(ids) < 0 or max(ids) >= vocab_size or len(ids) == vocab_size:
        raise ValueError(
            f"`suppressed_token_ids` is {config.suppressed_token_ids} for a vocabulary of {vocab_size}: pass ids from "
            f"0 to {vocab_size - 1} that leave at least one token to reveal."
        )
    return torch.tensor(ids, device=device)
