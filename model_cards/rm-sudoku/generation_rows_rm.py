# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Rows under way: the state of the unfinished ones, their proposals, and the loops that they run into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .generation_canvas_rm import Canvas
from .generation_config_rm import ReflectiveGenerationConfig
from .history import HistoryState


@dataclass
class Rows:
    """State of the unfinished rows, b <= B of them. One place, so that dropping rows cannot forget a tensor."""

    index: Tensor  # (b,) row in the caller's batch
    ids: Tensor  # (b, N)
    attention_mask: Tensor | None  # (b, N)
    editable: Tensor  # (b, N)
    blocks: Tensor  # (b, N)
    block: Tensor  # (b,) the active block
    block_step: Tensor  # (b,) steps done in it
    block_masks: Tensor  # (b,) masks it held when it began
    remasks: Tensor  # (b, N) re-masks of each position
    quiet: Tensor  # (b,) steps in a row without a mask and without a change
    rounds: Tensor  # (b,) steps that began without a mask
    closed: Tensor  # (b,) revision is over for the active block
    history: HistoryState | None
    generators: list[torch.Generator] | None

    @classmethod
    def begin(cls, canvas: Canvas, mask_token_id: int, generators: list[torch.Generator] | None) -> Rows:
        """All rows, before their first step."""
        index = torch.arange(len(canvas.ids), device=canvas.ids.device)
        zeros = torch.zeros_like(index)
        return cls(
            index=index,
            ids=canvas.ids.clone(),
            attention_mask=canvas.attention_mask,
            editable=canvas.editable,
            blocks=canvas.blocks,
            block=zeros,
            block_step=zeros,
            block_masks=((canvas.blocks == 0) & (canvas.ids == mask_token_id)).sum(-1),
            remasks=torch.zeros_like(canvas.ids),
            quiet=zeros,
            rounds=zeros,
            closed=zeros.bool(),
            history=None,
            generators=generators,
        )

    def select(self, keep: Tensor) -> Rows:
        """The rows where `keep` (b,) is true."""
        chosen: dict[str, Any] = {n: v[keep] if isinstance(v, Tensor) else v for n, v in vars(self).items()}
        if self.history is not None:
            chosen["history"] = self.history.select(keep)
        if self.generators is not None:
            chosen["generators"] = [g for g, kept in zip(self.generators, keep.tolist(), strict=True) if kept]
        return Rows(**chosen)


class Sampler:
    """Proposes a token for every mask: the argmax, or a sample drawn with the row's own generator."""

    def __init__(self, model: Any, config: ReflectiveGenerationConfig, mask_token_id: int) -> None:
        self.forbidden = _forbidden_ids(model, config, mask_token_id)
        self.processors = LogitsProcessorList()
        if config.temperature > 0:
            self.processors.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k is not None:
            self.processors.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None:
            self.processors.append(TopPLogitsWarper(float(config.top_p)))

    def __call__(self, logits: Tensor, masked: Tensor, rows: Rows) -> Tensor:
        """(b, N) long: proposals where `masked` (b, N), the present ids elsewhere."""
        # Only the rows of masks are looked at: (K, V), not (b, N, V).
        scores = logits[masked].index_fill(-1, self.forbidden, -torch.inf)
        if rows.generators is not None:
            scores = self.processors(None, scores.float())
            scores = scores - _exponential_noise(masked.sum(-1).tolist(), scores, rows.generators).log()
        proposal = rows.ids.clone()
        proposal[masked] = scores.argmax(-1)
        return proposal


def _forbidden_ids(model: Any, config: ReflectiveGenerationConfig, mask_token_id: int) -> Tensor:
    """Ids that no reveal writes: the mask and the reserved ones."""
    own = getattr(model.config, "suppressed_token_ids", None) or []
    ids = sorted({mask_token_id, *own, *(config.suppressed_token_ids or [])})
    vocab_size = model.config.vocab_size
    if ids[0] < 0 or ids[-1] >= vocab_size or len(ids) == vocab_size:
        raise ValueError(
            f"`suppressed_token_ids` is {config.suppressed_token_ids} for a vocabulary of {vocab_size}: pass ids from "
            f"0 to {vocab_size - 1} that leave at least one token to reveal."
        )
    return torch.tensor(ids, device=model.device)


def _exponential_noise(counts: list[int], like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Exp(1) noise of shape (K, V), each row's part from its own generator, so that neighbours never matter."""
    parts = []
    for count, generator in zip(counts, generators, strict=True):
        part = torch.empty(count, like.shape[-1], dtype=torch.float32, device=generator.device)
        parts.append(part.exponential_(generator=generator).to(like.device))
    return torch.cat(parts)


class LoopDetector:
    """Finds out whether a row has returned to a state it was in before, by a 64-bit hash of each state."""

    def __init__(self, ids: Tensor) -> None:
        # A generator of its own: detecting loops must not move the caller's random numbers.
        generator = torch.Generator().manual_seed(0)
        bounds = torch.iinfo(torch.int64)
        self.weights = torch.randint(bounds.min, bounds.max, ids.shape[1:], generator=generator).to(ids.device) | 1
        self.seen: list[set[int]] = [{h} for h in self._hash(ids)]

    def _hash(self, ids: Tensor) -> list[int]:
        mixed = (ids + 1) * self.weights
        mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
        return (mixed ^ (mixed >> 32)).sum(-1).tolist()

    def returned(self, index: Tensor, ids: Tensor) -> Tensor:
        """(b,) bool for the rows `index`; their new states are remembered."""
        result = []
        for row, value in zip(index.tolist(), self._hash(ids), strict=True):
            result.append(value in self.seen[row])
            self.seen[row].add(value)
        return torch.tensor(result, dtype=torch.bool, device=ids.device)

    def forget(self, index: Tensor) -> None:
        """The rows `index` begin another block, in which earlier states prove nothing."""
        for row in index.tolist():
            self.seen[row].clear()
