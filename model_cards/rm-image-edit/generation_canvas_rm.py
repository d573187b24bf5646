# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The canvas of reflective decoding: the caller's batch checked, extended by masks, cut into blocks and scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .generation_config_rm import ReflectiveGenerationConfig
from .heads_rm import answer_start


@dataclass
class Canvas:
    """
    The whole batch, in the caller's order.

    Attributes:
        ids (`Tensor` (B, N), long): the input and the masks behind it.
        attention_mask (`Tensor` (B, N), long, *optional*): 0 where there is padding.
        editable (`Tensor` (B, N), bool): what may change.
        blocks (`Tensor` (B, N), long): the block of each editable position, -1 elsewhere.
        rank (`Tensor` (B, N), long): which of its row's editable positions a position is, from 0.
        windows (`Tensor` (B, K, A), long): the positions of each block, in order; N fills short ones up.
        whole (`bool`): one block that is the whole canvas: nothing has to be gathered.
    """

    ids: Tensor
    attention_mask: Tensor | None
    editable: Tensor
    blocks: Tensor
    rank: Tensor
    windows: Tensor
    whole: bool

    @property
    def num_blocks(self) -> Tensor:
        """(B,) blocks of each row."""
        return self.blocks.amax(-1) + 1


def build_canvas(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    editable_mask: Tensor | None,
    config: ReflectiveGenerationConfig,
    mask_token_id: int,
    attention_block_length: int | None = None,
    from_answer: bool = False,
) -> Canvas:
    """
    The input with its masks appended, what may change in it, and the blocks: checked arguments (`check_inputs`).

    Under block-causal attention the blocks are those of the attention, counted from a row's first real position, so
    that prompt tokens may share the first one, or from its first editable one (`from_answer`); otherwise every
    `block_length` editable positions make a block.
    """
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
    rank = editable.long().cumsum(-1) - 1
    if attention_block_length is None:
        place, block_length = rank, config.block_length
    else:
        place, block_length = real.long().cumsum(-1) - 1, attention_block_length
        if from_answer:
            place = place - answer_start(editable, place)
    blocks = place.div(block_length, rounding_mode="floor") if block_length else torch.zeros_like(place)
    blocks = blocks - blocks.masked_fill(~editable, torch.iinfo(torch.long).max).amin(-1, keepdim=True)
    blocks = blocks.masked_fill(~editable, -1)
    windows = _windows(blocks, rank)
    places = torch.arange(ids.shape[1], device=ids.device)
    whole = windows.shape[1] == 1 and windows.shape[2] == len(places) and bool((windows == places).all())
    return Canvas(ids, None if attention_mask is None else real.long(), editable, blocks, rank, windows, whole)


def _windows(blocks: Tensor, rank: Tensor) -> Tensor:
    """(B, K, A): the positions of each block in order, N where a block has fewer than the longest."""
    batch, length = blocks.shape
    count = int(blocks.max()) + 1
    inside = blocks >= 0
    slot = torch.where(inside, blocks, count)
    sizes = torch.zeros(batch, count + 1, dtype=torch.long, device=blocks.device).scatter_add_(1, slot, inside.long())
    longest = int(sizes.max())
    before = sizes.cumsum(-1) - sizes
    column = torch.where(inside, blocks * longest + rank - before.gather(1, slot), count * longest)
    windows = torch.full((batch, count * longest + 1), length, dtype=torch.long, device=blocks.device)
    windows.scatter_(1, column, torch.arange(length, device=blocks.device).expand_as(blocks))
    return windows[:, :-1].reshape(batch, count, longest)


def block_schedule(config: ReflectiveGenerationConfig, canvas: Canvas, mask_token_id: int) -> Tensor:
    """
    (B, blocks) reveal steps of each block: `steps` shared out over the blocks with masks.

    The first blocks take the remainder, so that the steps of all blocks add up to `steps` (3 over 2 blocks: 2 and 1).

    Raises:
        ValueError: for fewer steps than there are blocks with masks.
    """
    num_blocks = canvas.windows.shape[1]
    open_masks = canvas.editable & (canvas.ids == mask_token_id)
    index = canvas.blocks.clamp(min=0)
    masks = torch.zeros(len(canvas.ids), num_blocks, dtype=torch.long, device=canvas.ids.device)
    masks.scatter_add_(1, index, open_masks.long())
    if config.steps is None:
        return masks.clamp(min=1)
    holding = (masks > 0).sum(-1, keepdim=True)
    most = int(holding.max())
    if config.steps < most:
        raise ValueError(
            f"`steps` is {config.steps}, but the canvas has {most} blocks with masks, which take a step each: pass "
            f"steps={most} or more, or a longer `block_length`."
        )
    holding = holding.clamp(min=1)
    order = ((masks > 0).cumsum(-1) - 1).clamp(min=0)
    return (config.steps // holding + (order < config.steps % holding)).clamp(min=1)


def step_bounds(config: ReflectiveGenerationConfig, canvas: Canvas, schedule: Tensor) -> Tensor:
    """(B,) bound on the steps of each row, from its own blocks alone: neighbours must not lengthen a run."""
    blocks = canvas.num_blocks[:, None]
    if config.max_steps is not None:
        return torch.full_like(blocks[:, 0], config.max_steps)
    own = torch.arange(schedule.shape[1], device=blocks.device) < blocks
    # `patience` steps for each step of the schedule: each block, however short, has to be quiet for that long.
    return 64 + (1 + config.patience) * (schedule * own).sum(-1)


def row_keys(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int, draws: bool, device: torch.device
) -> Tensor | None:
    """
    (B,) int64: the key of each row's random numbers, drawn from its own generator; None where nothing is drawn.

    A row's numbers are hashes of (key, step, position): no generator is touched again, and no neighbour can matter.
    """
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise ValueError(f"`generator` holds {len(generator)} generators for {batch} rows: pass one per row.")
    if not draws:  # greedy decoding moves nobody's random numbers
        return None
    if isinstance(generator, Sequence):
        each = [torch.randint(2**62, (1,), generator=g, device=g.device).to(device) for g in generator]
        return torch.cat(each)
    where = device if generator is None else generator.device
    return torch.randint(2**62, (batch,), generator=generator, device=where).to(device)


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


def check_length(length: int, model_config: Any) -> None:
    """Raise a ValueError where a canvas is longer than the positions that the model was built for."""
    inner = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
    inner = getattr(inner, "text_config", inner)
    limit = getattr(inner, "max_position_embeddings", None)
    if limit is not None and length > limit and getattr(model_config, "backbone_positions", True):
        raise ValueError(
            f"the canvas is {length} positions long (`input_ids` and `max_new_tokens` together), the model's context "
            f"{limit}: pass a shorter prompt or fewer new tokens."
        )


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
