# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The canvas of reflective decoding: the caller's batch checked, extended by masks, cut into blocks and scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .generation_config_rm import ReflectiveGenerationConfig


@dataclass
class Canvas:
    """The whole batch, in the caller's order. `blocks` numbers the block of each editable position, -1 elsewhere."""

    ids: Tensor
    attention_mask: Tensor | None
    editable: Tensor
    blocks: Tensor


def build_canvas(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    editable_mask: Tensor | None,
    config: ReflectiveGenerationConfig,
    mask_token_id: int,
) -> Canvas:
    """The input with its masks appended, what may change in it, and the blocks: checked arguments (`check_inputs`)."""
    batch, length = input_ids.shape
    new = config.max_new_tokens or 0
    ids = torch.cat((input_ids, input_ids.new_full((batch, new), mask_token_id)), dim=1)
    real = torch.ones_like(ids, dtype=torch.bool)
    if attention_mask is not None:
        real[:, :length] = attention_mask.bool()
    if editable_mask is None:
        editable = real.clone() if config.editable == "all" else ids == mask_token_id
    else:
        editable = torch.ones_like(real)
        editable[:, : editable_mask.shape[1]] = editable_mask
    editable = editable & real
    if not editable.any(-1).all():
        row = int((~editable.any(-1)).nonzero()[0])
        raise ValueError(
            f"Row {row} of `input_ids` has nothing editable: pass masks in it, an `editable_mask`, max_new_tokens, or "
            'editable="all" to revise a full draft.'
        )
    place = editable.long().cumsum(-1) - 1
    blocks = place if config.block_length else torch.zeros_like(place)
    blocks = blocks.div(config.block_length or 1, rounding_mode="floor")
    return Canvas(ids, None if attention_mask is None else real.long(), editable, blocks.masked_fill(~editable, -1))


def block_schedule(config: ReflectiveGenerationConfig, canvas: Canvas, mask_token_id: int) -> Tensor:
    """(B, blocks) reveal steps of each block: `steps` shared out over the blocks with masks, each at least one."""
    num_blocks = int(canvas.blocks.max()) + 1
    open_masks = canvas.editable & (canvas.ids == mask_token_id)
    index = canvas.blocks.clamp(min=0)
    masks = torch.zeros(len(canvas.ids), num_blocks, dtype=torch.long, device=canvas.ids.device)
    masks.scatter_add_(1, index, open_masks.long())
    if config.steps is None:
        return masks.clamp(min=1)
    # The first blocks take the remainder, so that the steps of all blocks add up to `steps`.
    holding = (masks > 0).sum(-1, keepdim=True).clamp(min=1)
    order = ((masks > 0).cumsum(-1) - 1).clamp(min=0)
    return (config.steps // holding + (order < config.steps % holding)).clamp(min=1)


def step_bounds(config: ReflectiveGenerationConfig, canvas: Canvas, schedule: Tensor) -> Tensor:
    """(B,) bound on the steps of each row, from its own blocks alone: neighbours must not lengthen a run."""
    last_block = canvas.blocks.amax(-1, keepdim=True)
    if config.max_steps is not None:
        return torch.full_like(last_block[:, 0], config.max_steps)
    own = torch.arange(schedule.shape[1], device=last_block.device) <= last_block
    # `patience` steps for each step of the schedule: each block, however short, has to be quiet for that long.
    return 64 + (1 + config.patience) * (schedule * own).sum(-1)


def row_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int, samples: bool
) -> list[torch.Generator] | None:
    """One generator a row: a row must not draw from a stream that its neighbours move. None where nothing is drawn."""
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise ValueError(f"`generator` holds {len(generator)} generators for {batch} rows: pass one per row.")
    if not samples:  # greedy decoding moves nobody's random numbers
        return None
    if isinstance(generator, Sequence):
        return list(generator)
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (batch,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def check_inputs(
    input_ids: Any, attention_mask: Any, editable_mask: Any, config: ReflectiveGenerationConfig, vocab_size: int
) -> None:
    """Raise a ValueError that names the first tensor that cannot work, what it is and the remedy."""
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ValueError(f"`input_ids` is {_shape(input_ids)}: pass a (batch, length) tensor of token ids.")
    if input_ids.shape[0] == 0:
        raise ValueError("`input_ids` is an empty batch: pass at least one row.")
    outside = input_ids[(input_ids < 0) | (input_ids >= vocab_size)]
    if len(outside):
        raise ValueError(
            f"`input_ids` holds {int(outside[0])}, outside the vocabulary of {vocab_size}: pass the ids of this "
            "model's own tokenizer."
        )
    if attention_mask is not None and _shape(attention_mask) != input_ids.shape:
        raise ValueError(
            f"`attention_mask` is {_shape(attention_mask)} and `input_ids` {tuple(input_ids.shape)}: pass one entry a "
            "token, 0 for padding."
        )
    if editable_mask is not None:
        _check_editable_mask(editable_mask, input_ids, config.max_new_tokens or 0)


def _check_editable_mask(editable_mask: Any, input_ids: Tensor, new: int) -> None:
    if not isinstance(editable_mask, Tensor) or editable_mask.dtype != torch.bool:
        given = editable_mask.dtype if isinstance(editable_mask, Tensor) else type(editable_mask).__name__
        raise ValueError(f"`editable_mask` is {given}: pass a bool tensor, True where a token may change.")
    batch, length = input_ids.shape
    if editable_mask.shape not in {(batch, length), (batch, length + new)}:
        raise ValueError(
            f"`editable_mask` has shape {tuple(editable_mask.shape)} for `input_ids` of {tuple(input_ids.shape)}: "
            "pass one entry a token (the appended canvas may be included)."
        )


def _shape(value: Any) -> tuple[int, ...] | str:
    """The shape of a tensor, the type's name of anything else: for error messages."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
