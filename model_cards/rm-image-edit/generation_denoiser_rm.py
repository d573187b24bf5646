# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
One forward pass of the decoding loop: scores of the active block, and nothing else.

What may surround it: history, classifier-free guidance (with a history of its own), and under block-causal attention a
cache of the keys and values of all positions, of which a step rewrites those of the active block.

Shapes: b unfinished rows, N positions of the canvas, A positions of a block, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache

from .configuration_rm import blocks_from_answer, reads_history
from .generation_canvas_rm import Canvas
from .generation_config_rm import ReflectiveGenerationConfig
from .generation_rows_rm import Rows, look
from .heads_rm import answer_start
from .history import HistoryState


@dataclass(frozen=True)
class Denoised:
    """
    What a model says of the current state.

    Attributes:
        logits (`Tensor` (b, A, V)): scores at the positions asked for.
        history ([`HistoryState`], *optional*): the memory after this state.
        policy (`Tensor` (b, A), *optional*): scores of a learned unmasking policy.
    """

    logits: Tensor
    history: HistoryState | None = None
    policy: Tensor | None = None


class Denoiser:
    """
    Runs the model for the loop.

    Args:
        model: what has `_denoise` ([`ReflectiveGenerationMixin`]).
        config, canvas, mask_token_id: of the run.

    Raises:
        ValueError: for a cache or guidance that cannot work, before any forward pass.
    """

    def __init__(self, model: Any, config: ReflectiveGenerationConfig, canvas: Canvas, mask_token_id: int) -> None:
        self.model = model
        self.scale = config.guidance_scale
        self.branches = 1 if self.scale == 1.0 else 2
        self.mask_token_id = mask_token_id
        self.use_history = reads_history(model.config, config.use_history)
        self.block_length: int | None = getattr(model.config, "attention_block_length", None)
        # With plain embeddings outside the editable positions a finished block can be left alone: its memory stands.
        self.freezes = bool(
            self.use_history and self.block_length and getattr(model.config, "history_scope", None) == "editable"
        )
        # An earlier block that may still be revised is not finished: a frozen memory would hide the revision.
        self.revisits = config.revise_scope == "all"
        self.forwards = torch.zeros_like(canvas.ids[:, 0])
        if self.scale != 1.0:
            _check_guidance(canvas)
        self.cache: BlockCache | None = None
        if config.use_cache:
            block_length = self._check_cache()
            # A revision of an earlier block invalidates all that comes after it: nothing is kept then.
            if not self.revisits:
                self.cache = BlockCache(canvas, block_length, self.branches, blocks_from_answer(model.config))

    def __call__(self, rows: Rows, window: Tensor | None) -> Denoised:
        """
        Scores at the window's positions (b, A), or everywhere; the rows' histories move on.

        `forwards` (b,) is then how many forward passes each row took part in, one for a block that was committed to
        the cache included.
        """
        self.forwards = torch.full_like(rows.block, self.branches)
        if self.cache is not None:
            self.forwards += self.branches * self._commit(rows)
        conditional, rows.history = self._branch(rows, rows.ids, rows.history, window, 0)
        if self.scale == 1.0:
            return conditional
        prompt = _prompt(rows.editable, rows.attention_mask)
        ids = rows.ids.masked_fill(prompt, self.mask_token_id)
        unconditional, rows.unconditional = self._branch(rows, ids, rows.unconditional, window, 1)
        logits = torch.lerp(unconditional.logits, conditional.logits, self.scale)
        return replace(conditional, logits=logits)

    def select(self, keep: Tensor) -> None:
        """Go on with the rows where `keep` (b,) is true."""
        if self.cache is not None:
            self.cache.select(keep)

    def _branch(
        self, rows: Rows, ids: Tensor, history: HistoryState | None, window: Tensor | None, branch: int
    ) -> tuple[Denoised, HistoryState | None]:
        """One branch of guidance, or all there is without."""
        if self.freezes and not self.revisits and history is not None:
            history = replace(history, frozen=self._finished(rows))
        if self.cache is None or not self.cache.filled[branch]:
            caching: dict[str, Any] = {}
            if self.cache is not None:
                caching = {"past_key_values": self.cache.begin(branch, ids.shape[1])}
            result = self.model._denoise(
                ids, rows.attention_mask, rows.editable, history, self.use_history, window, **caching
            )
            after = result.history
        else:
            assert window is not None
            result, after = self._cached(rows, ids, history, window, rows.block, branch)
        if self.freezes and after is not None:
            after = self._not_begun_is_empty(rows, after)
        return result, after

    def _cached(
        self, rows: Rows, ids: Tensor, history: HistoryState | None, window: Tensor, block: Tensor, branch: int
    ) -> tuple[Denoised, HistoryState | None]:
        """A forward over the positions of one block of the attention alone; the rest is in the cache."""
        assert self.cache is not None
        places, positions, allowed = self.cache.block(block)
        inside = None if history is None else _history_at(history, places)
        # Where in the block the wanted positions are.
        column = (window[:, :, None] == places[:, None, :]).long().argmax(-1)
        result = self.model._denoise(
            look(ids, places),
            allowed,
            look(rows.editable, places),
            inside,
            self.use_history,
            column,
            position_ids=positions,
            past_key_values=self.cache.at(branch, places),
        )
        after = None if history is None else _history_put(history, places, result.history)
        return result, after

    def _commit(self, rows: Rows) -> Tensor:
        """(b,) bool, rows that have just begun a block: the one before it as it ended goes into the cache."""
        assert self.cache is not None
        begun = (rows.block > 0) & (rows.block_step == 0) & ~rows.done
        if not self.cache.filled[0] or not bool(begun.any()):
            return torch.zeros_like(begun)
        before = rows.block - 1
        some, which = rows.select(begun), self.cache
        self.cache = which.part(begun)
        window = some.window(before[begun])
        try:
            _, history = self._cached(some, some.ids, some.history, window[:, :1], before[begun], 0)
            rows.history = _history_rows(rows.history, begun, history)
            if self.scale != 1.0:
                ids = some.ids.masked_fill(_prompt(some.editable, some.attention_mask), self.mask_token_id)
                _, history = self._cached(some, ids, some.unconditional, window[:, :1], before[begun], 1)
                rows.unconditional = _history_rows(rows.unconditional, begun, history)
        finally:
            which.write_back(self.cache, begun)
            self.cache = which
        return begun

    def _finished(self, rows: Rows) -> Tensor:
        """(b, N) bool: blocks whose last state has joined the memory."""
        # The state that a block ended with joins it in the first step of the next block.
        ended = rows.block - (rows.block_step == 0).long()
        if self.cache is not None:
            ended = rows.block
        return (rows.blocks >= 0) & (rows.blocks < ended[:, None])

    def _not_begun_is_empty(self, rows: Rows, history: HistoryState) -> HistoryState:
        """A position's history begins when its block does."""
        later = (rows.blocks > rows.block[:, None])[..., None]
        return HistoryState(history.accumulator.masked_fill(later, 0.0), history.steps)

    def _check_cache(self) -> int:
        """The attention's block length; a ValueError for a model whose keys and values never stand still."""
        if self.block_length is None:
            raise ValueError(
                "`use_cache` is True, but the model's attention is not block-causal: finished blocks still read the "
                "later ones, and their keys and values never stand still. Leave `use_cache` out."
            )
        if getattr(self.model.config, "logits_shift", False):
            raise ValueError("`use_cache` is True, but the model's logits are shifted across blocks: leave it out.")
        if self.use_history and not self.freezes:
            raise ValueError(
                '`use_cache` is True, but with history_scope="all" the prompt\'s inputs change at every step: use a '
                'model with history_scope="editable", or pass use_history=False.'
            )
        return self.block_length


def _check_guidance(canvas: Canvas) -> None:
    without = ~_prompt(canvas.editable, canvas.attention_mask).any(-1)
    if bool(without.any()):
        raise ValueError(
            f"`guidance_scale` is not 1, but row {int(without.nonzero()[0])} has no prompt that an unconditional "
            "branch could leave out: every position is editable. Pass guidance_scale=1."
        )


def _prompt(editable: Tensor, attention_mask: Tensor | None) -> Tensor:
    return ~editable if attention_mask is None else ~editable & attention_mask.bool()


class BlockCache:
    """
    Keys and values of every position of the canvas, for block-causal attention.

    A block's entries are rewritten at each of its steps and stand when it is finished. Rows may be at different
    blocks, prompts of different lengths and padded on either side: a block is looked up by its positions.
    """

    def __init__(self, canvas: Canvas, block_length: int, branches: int, from_answer: bool = False) -> None:
        batch, length = canvas.ids.shape
        device = canvas.ids.device
        real = torch.ones_like(canvas.editable) if canvas.attention_mask is None else canvas.attention_mask.bool()
        place = real.long().cumsum(-1) - 1
        origin = answer_start(canvas.editable, place) if from_answer else torch.zeros_like(place[:, :1])
        number = (place - origin).div(block_length, rounding_mode="floor")
        first = number.masked_fill(~canvas.editable, length).amin(-1, keepdim=True)
        self.number = torch.where(
            real, number - first, length
        )  # block of every position; the active ones count from 0
        self.real, self.place = real, place.clamp(min=0)
        offset = torch.arange(block_length, device=device)
        begin = (first + torch.arange(canvas.windows.shape[1], device=device)) * block_length + origin
        # (B, K, L): physical positions of the blocks; N where a block is cut off.
        wanted = begin[..., None] + offset
        physical = torch.full((batch, length + 1), length, dtype=torch.long, device=device)
        physical.scatter_(1, torch.where(real, place, length), torch.arange(length, device=device).expand(batch, -1))
        physical[:, length] = length
        self.places = physical.gather(1, wanted.flatten(1).clamp(max=length)).view_as(wanted)
        self.layers: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(branches)]
        self.filled = [False] * branches

    def begin(self, branch: int, length: int) -> Cache:
        """A cache that takes the whole canvas in; the branch is filled with the forward pass it goes into."""
        self.filled[branch] = True
        return _Layers(self.layers[branch], None, length)

    def at(self, branch: int, places: Tensor) -> Cache:
        """A cache that rewrites the entries at `places` (b, L) and gives back all of them."""
        return _Layers(self.layers[branch], places, self.real.shape[1])

    def block(self, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For the rows' blocks (b,): positions (b, L), position ids (b, L), and who sees whom (b, 1, L, N) bool."""
        places = self.places.gather(1, block[:, None, None].expand(-1, 1, self.places.shape[2]))[:, 0]
        seen = self.real & (self.number <= block[:, None])
        # A place that is cut off sees something: a row of the softmax must not be empty.
        allowed = seen[:, None, None, :].expand(-1, 1, places.shape[1], -1)
        return places, look(self.place, places), allowed

    def select(self, keep: Tensor) -> None:
        """Go on with the rows where `keep` (b,) is true."""
        for name in ("number", "real", "place", "places"):
            setattr(self, name, getattr(self, name)[keep])
        self.layers = [{i: (k[keep], v[keep]) for i, (k, v) in layers.items()} for layers in self.layers]

    def part(self, which: Tensor) -> BlockCache:
        """A copy with the rows `which` (b,) alone."""
        copy: BlockCache = object.__new__(BlockCache)
        vars(copy).update(vars(self))
        copy.select(which)
        return copy

    def write_back(self, part: BlockCache, which: Tensor) -> None:
        """Take over the rows of a [`part`]."""
        for mine, theirs in zip(self.layers, part.layers, strict=True):
            for layer, (keys, values) in theirs.items():
                mine[layer][0][which], mine[layer][1][which] = keys, values


class _Layers(Cache):
    """What a decoder of transformers calls: `update` takes keys and values (b, H, L, D) and gives all (b, H, N, D)."""

    def __init__(self, layers: dict[int, tuple[Tensor, Tensor]], places: Tensor | None, length: int) -> None:
        super().__init__(layers=[])
        self.kept, self.places, self.length = layers, places, length

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self.places is None:
            # One entry more than there are positions: what a cut-off place writes goes there.
            self.kept[layer_idx] = F.pad(key_states, (0, 0, 0, 1)), F.pad(value_states, (0, 0, 0, 1))
            return key_states, value_states
        kept = self.kept[layer_idx]
        for buffer, new in zip(kept, (key_states, value_states), strict=True):
            buffer.scatter_(2, self.places[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3]), new)
        return kept[0][:, :, : self.length], kept[1][:, :, : self.length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def _history_at(history: HistoryState, places: Tensor) -> HistoryState:
    """The memory at positions (b, L); where a place is cut off, that of the last position."""
    index = places.clamp(max=history.accumulator.shape[1] - 1)
    accumulator = history.accumulator.gather(1, index[..., None].expand(-1, -1, history.accumulator.shape[-1]))
    frozen = None if history.frozen is None else history.frozen.gather(1, index)
    return HistoryState(accumulator, history.steps, frozen)


def _history_put(history: HistoryState, places: Tensor, new: HistoryState | None) -> HistoryState:
    """The memory with new entries at positions (b, L)."""
    assert new is not None
    accumulator = torch.cat((history.accumulator, torch.zeros_like(history.accumulator[:, :1])), dim=1)
    index = places[..., None].expand(-1, -1, accumulator.shape[-1])
    return HistoryState(accumulator.scatter(1, index, new.accumulator)[:, :-1], new.steps)


def _history_rows(history: HistoryState | None, which: Tensor, new: HistoryState | None) -> HistoryState | None:
    if history is None or new is None:
        return history
    accumulator = history.accumulator.clone()
    accumulator[which] = new.accumulator
    # The commit is no step of the rows: their count stays.
    return HistoryState(accumulator, history.steps)
