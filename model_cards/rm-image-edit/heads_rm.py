# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Scores at some positions only: the base model everywhere, the head where it is asked for.

With a vocabulary of 126,464 the scores of one batch are larger than the network. Decoding asks for those of a block
(`position_logits`); training never holds more than those of a few rows (`read_logits`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

# How classes of transformers get from the last hidden state to logits: attributes, one after another.
_HEADS = (("head", "decoder"), ("cls",), ("predictions",), ("lm_head",))
# Settings under which logits are more than what these attributes compute.
_SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class LogitsReader:
    """
    What a caller wants to know of the scores, so that they need not all exist at once.

    Attributes:
        rows (`Tensor` of shape `(K,)`, long): the positions that count, `row * N + position` in a batch of length N.
        read (`Callable`): scores (k, V) and which of the K rows they are, a slice, to a tuple of (k, ...) tensors. Run
            again in the backward pass: it must not change anything.
        chunk_rows (`int`): the most rows whose scores exist at a time.
        wrap (`Callable`, *optional*): the head, a `Sequential`, to what is called in its place, chunk by chunk.
    """

    rows: Tensor
    read: Callable[[Tensor, slice], tuple[Tensor, ...]]
    chunk_rows: int
    wrap: Callable[[nn.Sequential], Callable[[Tensor], Tensor]] | None = None


def real_positions(attention_mask: Tensor) -> Tensor:
    """(B, N) long: positions counted over what is real, whatever side the padding is on; 0 for padding before it."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def answer_start(editable_mask: Tensor, places: Tensor) -> Tensor:
    """(B, 1) the least of the places (1 or B, N) at which a row may change."""
    return places.expand(editable_mask.shape).masked_fill(~editable_mask, places.shape[-1]).amin(-1, keepdim=True)


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


def read_logits(
    model: PreTrainedModel, reader: LogitsReader, sources: Tensor | None = None, **inputs: Any
) -> tuple[Tensor, ...]:
    """
    What `reader` reads from the scores of its rows: its (K, ...) tensors, with their gradients.

    A chunk's scores are made again in the backward pass. A class whose head is not known computes all scores at once.

    Args:
        model (`PreTrainedModel`): the model.
        reader ([`LogitsReader`]): which rows, and what of them.
        sources (`Tensor` of shape `(B, N)`, long, *optional*): as for [`position_logits`].
        inputs: of the forward pass, batch first.
    """
    head, rows = _head(model), reader.rows
    if model.base_model is model:
        head = None
    values = model(**inputs).logits if head is None else model.base_model(**inputs)[0]
    if sources is not None:
        rows = rows - rows % values.shape[1] + sources.flatten()[rows]
    chosen = values.flatten(0, 1)[rows.to(values.device)]
    if head is None:
        return reader.read(chosen, slice(None))

    scores = head if reader.wrap is None else reader.wrap(head)

    def read(hidden: Tensor, part: slice) -> tuple[Tensor, ...]:
        return reader.read(scores(hidden), part)

    chunks, step = [], reader.chunk_rows
    for number, hidden in enumerate(chosen.split(step)):
        part = slice(number * step, number * step + len(hidden))
        again = torch.is_grad_enabled()
        chunks.append(checkpoint(read, hidden, part, use_reentrant=False) if again else read(hidden, part))
    return tuple(torch.cat(column) for column in zip(*chunks, strict=True))


def _head(model: PreTrainedModel) -> nn.Sequential | None:
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
