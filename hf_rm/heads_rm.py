# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Scores at some positions only: the base model everywhere, the head where it is asked for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

# How classes of transformers get from the last hidden state to logits: attributes, one after another.
_HEADS = (("head", "decoder"), ("cls",), ("predictions",), ("lm_head",))
# Settings under which logits are more than what these attributes compute.
_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def real_positions(attention_mask: Tensor) -> Tensor:
    """(B, N) long: positions counted over what is real, whatever side the padding is on; 0 for padding before it."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def position_logits(
    model: PreTrainedModel, positions: Tensor | None, sources: Tensor | None = None, **inputs: Any
) -> Tensor:
    """
    Logits of a transformers model with a language-model head.

    Args:
        model (`PreTrainedModel`): the model.
        positions (`Tensor` of shape `(B, A)`, long, *optional*): where logits are wanted; everywhere without it. A
            position past the end stands for none: its logits mean nothing.
        sources (`Tensor` of shape `(B, N)`, long, *optional*): the position whose output speaks of each, where that
            is not the position itself.
        inputs: of the forward pass, batch first.

    Returns:
        `Tensor` of shape `(B, A, V)`, or `(B, N, V)`: the head runs at these positions and nowhere else, where the
        class is one whose head is known.
    """
    wanted = positions
    if sources is not None:
        wanted = sources if positions is None else sources.gather(1, positions.clamp(max=sources.shape[1] - 1))
    head = _head(model)
    if wanted is None or head is None or model.base_model is model:
        logits = model(**inputs).logits
        return logits if wanted is None else _gather(logits, wanted)
    return head(_gather(model.base_model(**inputs)[0], wanted))


def _head(model: PreTrainedModel) -> nn.Module | None:
    """What turns hidden states into logits; None for a class in which that is not known to be all."""
    if any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _SCALED):
        return None
    for names in _HEADS:
        if all(isinstance(getattr(model, name, None), nn.Module) for name in names):
            return nn.Sequential(*(getattr(model, name) for name in names))
    return None


def _gather(values: Tensor, positions: Tensor) -> Tensor:
    """(B, N, d) at positions (B, A)."""
    index = positions.clamp(max=values.shape[1] - 1)[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)
