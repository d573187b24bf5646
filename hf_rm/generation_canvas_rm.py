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
from .vocabulary_rm import described, token_ids


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
        num_blocks (`Tensor` (B,), long): blocks of each row.
    """

    ids: Tensor
    attention_mask: Tensor | None
    editable: Tensor
    blocks: Tensor
    rank: Tensor
    windows: Tensor
    whole: bool
    num_blocks: Tensor


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
    padding = None if attention_mask is None else real.long()
    return Canvas(ids, padding, editable, blocks, rank, windows, whole, blocks.amax(-1) + 1)


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
    given = generator if isinstance(generator, Sequence) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in given):
        raise ValueError(
            f"`generator` is {generator!r}: pass a torch.Generator (torch.Generator().manual_seed(42)), or a list of "
            "them, one per row."
        )
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise ValueError(f"`generator` holds {len(generator)} generators for {batch} rows: pass one per row.")
    if not draws:  # greedy decoding moves nobody's random numbers
        return None
    if isinstance(generator, Sequence):
        return torch.cat([torch.randint(2**62, (1,), generator=g, device=g.device).to(device) for g in generator])
    where = device if generator is None else generator.device
    return torch.randint(2**62, (batch,), generator=generator, device=where).to(device)


def check_inputs(
    input_ids: Any, attention_mask: Any, editable_mask: Any, config: ReflectiveGenerationConfig, model_config: Any
) -> Tensor:
    """The input ids, long; a ValueError names the first tensor that cannot work, what it is and the remedy."""
    input_ids = token_ids("input_ids", input_ids, model_config.vocab_size)
    batch, length = input_ids.shape
    if batch == 0:
        raise ValueError("`input_ids` is an empty batch: pass at least one row.")
    check_entries("attention_mask", attention_mask, (batch, length))
    # Looked at here alone, where the ids were just waited for, and never in a forward pass.
    odd = input_ids[:0] if attention_mask is None else attention_mask[(attention_mask != 0) & (attention_mask != 1)]
    if odd.numel():
        raise ValueError(f"`attention_mask` holds {odd[0].item()}: pass 1 for a real token and 0 for padding.")
    check_entries("editable_mask", editable_mask, (batch, length), (batch, length + (config.max_new_tokens or 0)))
    check_length(length + (config.max_new_tokens or 0), model_config)
    return input_ids


_MEANING = {"attention_mask": "0 for padding", "editable_mask": "True where it may change", "labels": "-100 for none"}


def check_entries(name: str, value: Any, *shapes: tuple[int, ...]) -> None:
    """Raise a ValueError for a tensor of none of these shapes, and for an editable mask that is not bool."""
    boolean = name == "editable_mask" and getattr(value, "dtype", None) != torch.bool
    if value is not None and (boolean or not isinstance(value, Tensor) or value.shape not in shapes):
        kind = "bool tensor" if name == "editable_mask" else "tensor"
        raise ValueError(
            f"`{name}` is {described(value)}: pass a {kind} of shape {' or '.join(map(str, dict.fromkeys(shapes)))}, "
            f"one entry a token, {_MEANING[name]}."
        )


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
