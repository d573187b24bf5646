# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Log-probabilities of a rollout's choices, each in the context in which it was drawn.

Two forms. One denoising step a row: any model. All blocks at once, for attention by blocks: step i of every block is
in one forward pass over [clean answer and prompt | noisy answer],

                      sees  prompt   clean blocks        noisy blocks
    prompt                  itself   -                   -
    clean block j           all      up to j             -
    noisy block j           all      before j            j alone

with the position ids of the clean positions, so that S steps take as many passes as the longest block has steps.

Shapes: B rows, S steps, N positions, k pairs of a row and a step, L positions of a forward pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..configuration_rm import blocks_from_answer
from ..generation_rows_rm import LoopDetector, uniforms
from ..heads_rm import LogitsReader, answer_start, real_positions
from ..history import HistorySegments
from .rollouts import REVISION, TOKEN, Trajectory


@dataclass(frozen=True)
class ChoiceLogProbs:
    """
    Log-probabilities of single choices, 0 where there was none; all (B, S, N).

    Attributes:
        positions: of drawn positions (each given those before it), or of keeping or re-masking a visible token.
        tokens: of tokens drawn for masks.
        positions_drawn, tokens_drawn (bool): where there was such a choice, in a step that was looked at.
        weight (`Tensor` (B,)): how many steps of its row a step that was looked at stands for; 1 where all were.
    """

    positions: Tensor
    tokens: Tensor
    positions_drawn: Tensor
    tokens_drawn: Tensor
    weight: Tensor


def plackett_luce(scores: Tensor, order: Tensor, drawn: Tensor) -> Tensor:
    """
    Log-probability of each draw without replacement, given the draws before it.

    Args:
        scores (`Tensor` (R, A)): log-weights.
        order (`Tensor` (R, A), long): place of each position in the draw; -1 where it took no part.
        drawn (`Tensor` (R, A), bool): which were drawn: those of the first places.

    Returns:
        `Tensor` (R, A): 0 where nothing was drawn, and in a row where everything was: whatever the order, the set was
        certain.

    Example:
        >>> h = torch.tensor([[2.0, 1.0, 0.0]])
        >>> first, second = torch.tensor([[0, 1, 2]]), torch.tensor([[1, 0, 2]])
        >>> drawn = torch.tensor([[True, True, False]])
        >>> [round(plackett_luce(h, order, drawn).sum().item(), 6) for order in (first, second)]
        [-0.720868, -1.534534]
    """
    member = order >= 0
    permutation = torch.where(member, order.long(), order.shape[-1]).argsort(dim=-1, stable=True)
    # Not -inf, whose gradient in the cumulated sum would not be a number.
    ordered = scores.float().masked_fill(~member, -1e9).gather(-1, permutation)
    left = ordered.flip(-1).logcumsumexp(-1).flip(-1)
    each = torch.zeros_like(ordered).scatter(-1, permutation, ordered - left)
    certain = (drawn == member).all(-1, keepdim=True)
    return torch.where(drawn & ~certain, each, 0.0)


@dataclass(frozen=True)
class DrawSettings:
    """
    How the rollout drew.

    Attributes:
        mask_token_id (`int`), forbidden (`Tensor`): the mask; it and what else was never written.
        temperature (`float`): of tokens and revisions.
        use_history, freezes (`bool`): whether the model read its earlier states, and whether those of a finished block
            stood still.
        by_block (`bool`): all blocks in one forward pass.
        pairs_per_forward (`int`): rows of a forward pass.
        chunk_rows (`int`): rows of scores at a time.
        steps (`int`, *optional*): look at so many steps of each row, drawn by its content.
        seed (`int`): of that draw.
    """

    mask_token_id: int
    forbidden: Tensor
    temperature: float
    use_history: bool = False
    freezes: bool = False
    by_block: bool = False
    pairs_per_forward: int = 64
    chunk_rows: int = 1024
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class _View:
    """
    A forward pass's inputs, and where in it the choices are.

    Attributes:
        rows (k,): rows of the batch.
        time (k, N): the step in which each position is looked at; valid (k, N): whether there is one.
        group (k, N): which of the draws of positions each belongs to.
        column (N,): where in the L positions the position's scores are.
        inputs: of the model.
    """

    rows: Tensor
    time: Tensor
    valid: Tensor
    group: Tensor
    column: Tensor
    inputs: dict[str, Any]


def choice_log_probs(
    model: Any,
    model_config: Any,
    trajectory: Trajectory,
    settings: DrawSettings,
    at_least: Callable[[int], int] = lambda count: count,
) -> ChoiceLogProbs:
    """
    Log-probabilities of a rollout's choices under a model, with gradients.

    Args:
        model: RM or RemeDi, as it is or wrapped for training.
        model_config: the wrapper's configuration.
        trajectory ([`Trajectory`]): of [`roll_out`].
        settings ([`DrawSettings`]): how it drew.
        at_least (`Callable`): the number of pairs to run on, given how many there are: the greatest of all processes,
            so that each runs as many forward passes. What is added counts for nothing.

    Raises:
        ValueError: for `by_block` and a model whose attention does not go by blocks.
    """
    blocks = _Blocks.of(trajectory, model_config)
    if settings.by_block and getattr(model_config, "attention_block_length", None) is None:
        raise ValueError("`by_block` is True, but the model's attention does not go by blocks: leave it out.")
    rows, steps = pairs(trajectory, blocks, settings)
    count = len(rows)
    extra = rows.new_zeros(max(at_least(count), 1) - count)
    rows, steps = torch.cat((rows, extra)), torch.cat((steps, extra))
    counts = torch.arange(len(rows), device=rows.device) < count
    found = []
    for part in torch.arange(len(rows), device=rows.device).split(settings.pairs_per_forward):
        build = _all_blocks if settings.by_block else _one_step
        view = build(trajectory, blocks, rows[part], steps[part], settings)
        found.append((*_read(model, trajectory, view, settings), counts[part]))
    where, positions, tokens, positions_drawn, tokens_drawn, alive = (
        torch.cat(column) for column in zip(*found, strict=True)
    )
    # What was added is in the graph, so that every process has gradients for the same weights.
    nothing = (positions.sum() + tokens.sum()) * 0.0
    shape = trajectory.choices.shape
    dense = []
    for values, drawn in ((positions, positions_drawn), (tokens, tokens_drawn)):
        drawn = drawn & alive[:, None]
        flags = torch.zeros(shape.numel(), dtype=torch.bool, device=drawn.device)
        flags[where[drawn]] = True
        put = values.new_zeros(shape.numel()).index_put((where[drawn],), values[drawn])
        dense.append((put.view(shape) + nothing, flags.view(shape)))
    weight = _weights(trajectory, blocks, settings)
    return ChoiceLogProbs(dense[0][0], dense[1][0], dense[0][1], dense[1][1], weight)


@dataclass(frozen=True)
class _Blocks:
    """
    When each block was active.

    Attributes:
        number (B, N): block of every position, also of prompt tokens that share one; negative before the answer.
        place (B, N): position ids.
        first, count (B, K): a block's first step and how many it had; S and 0 where it had none.
    """

    number: Tensor
    place: Tensor
    first: Tensor
    count: Tensor

    @classmethod
    def of(cls, trajectory: Trajectory, model_config: Any) -> _Blocks:
        block, blocks = trajectory.block, trajectory.blocks
        steps, many = block.shape[1], int(blocks.max()) + 1
        active = block[:, :, None] == torch.arange(many, device=block.device)
        count = active.sum(1)
        first = torch.where(count > 0, active.int().argmax(1), steps)
        place, number = real_positions(trajectory.real), blocks
        length = getattr(model_config, "attention_block_length", None)
        if length is not None:
            place_of_all = trajectory.real.long().cumsum(-1) - 1
            if blocks_from_answer(model_config):
                raw = (place_of_all - answer_start(trajectory.editable, place_of_all)).clamp(min=-1)
            else:
                raw = place_of_all
            raw = raw.div(length, rounding_mode="floor")
            begin = raw.masked_fill(~trajectory.editable, torch.iinfo(torch.long).max).amin(-1, keepdim=True)
            number = (raw - begin).masked_fill(~trajectory.real, -(2**31))
        return cls(number, place, first, count)

    def at(self, rows: Tensor, values: Tensor, nothing: int) -> Tensor:
        """(k, N): `first` or `count` of each position's block, `nothing` where it has none."""
        number = self.number[rows]
        inside = (number >= 0) & (number < values.shape[1])
        return torch.where(inside, values[rows].gather(1, number.clamp(0, values.shape[1] - 1)), nothing)


def pairs(trajectory: Trajectory, blocks: _Blocks, settings: DrawSettings) -> tuple[Tensor, Tensor]:
    """
    (k,) rows and (k,) steps to look at: all in which something was drawn, or a few of them.

    With `by_block` steps are counted in each block, and a look sees that step of every block. Which few depends on the
    row's answer alone: the same before and after an update and wherever the row stands.
    """
    wanted = _looks(trajectory, blocks, settings)
    if settings.steps is not None:
        keys = LoopDetector(trajectory.states[:, -1]).seen[0] + settings.seed
        number = torch.arange(wanted.shape[1], device=wanted.device)
        drawn = uniforms(keys, torch.zeros_like(keys), number.expand(len(keys), -1), 0)
        wanted &= drawn.masked_fill(~wanted, 2.0).argsort(-1).argsort(-1) < settings.steps
    rows, steps = wanted.nonzero(as_tuple=True)
    return rows, steps


def _looks(trajectory: Trajectory, blocks: _Blocks, settings: DrawSettings) -> Tensor:
    """(B, I) bool: the looks at a row that see a choice, one a step, or (`by_block`) one a step of all its blocks."""
    kept, member = trajectory.states[:, 1:] != settings.mask_token_id, trajectory.order >= 0
    # Positions are drawn where some are kept and some are not; all of them, or none, is no draw.
    drawn = (trajectory.choices > 0).any(-1) | (member & kept).any(-1) & (member & ~kept).any(-1)
    if not settings.by_block:
        return drawn
    number = torch.arange(int(blocks.count.max()), device=drawn.device)
    step = (blocks.first[..., None] + number).clamp(max=drawn.shape[1] - 1)
    seen = drawn.gather(1, step.flatten(1)).view_as(step) & (number < blocks.count[..., None])
    return seen.any(1)


def _weights(trajectory: Trajectory, blocks: _Blocks, settings: DrawSettings) -> Tensor:
    """
    (B,) how many looks one that was taken stands for.

    With `by_block` a look at step i sees that step of every block, and all i are drawn alike: so the share is that of
    looks, not of steps, also where blocks differ in length.
    """
    every = _looks(trajectory, blocks, settings).sum(-1).clamp(min=1)
    return torch.ones_like(every) if settings.steps is None else every / every.clamp(max=settings.steps)


def _one_step(trajectory: Trajectory, blocks: _Blocks, rows: Tensor, steps: Tensor, settings: DrawSettings) -> _View:
    """The canvas of each row at a step, as the sampler saw it."""
    time = steps[:, None].expand(-1, trajectory.states.shape[2])
    editable, real = trajectory.editable[rows], trajectory.real[rows]
    inputs: dict[str, Any] = {
        "input_ids": trajectory.states[rows, steps],
        "attention_mask": None if bool(trajectory.real.all()) else real.long(),
        "editable_mask": editable,
    }
    if settings.use_history:
        inputs["history"] = _history(trajectory, blocks, rows, time, settings)
    valid = torch.ones_like(time, dtype=torch.bool)
    column = torch.arange(time.shape[1], device=time.device)
    return _View(rows, time, valid, torch.zeros_like(time), column, inputs)


def _all_blocks(trajectory: Trajectory, blocks: _Blocks, rows: Tensor, steps: Tensor, settings: DrawSettings) -> _View:
    """Step `steps` of every block: the clean canvas, and behind it the noisy blocks."""
    begin, count = blocks.at(rows, blocks.first, 0), blocks.at(rows, blocks.count, 0)
    valid = steps[:, None] < count
    end = begin + count
    time = torch.minimum(begin + steps[:, None], (end - 1).clamp(min=0))
    length = time.shape[1]
    start = int((blocks.number >= 0).any(0).int().argmax())
    tail = slice(start, None)
    noisy = trajectory.states[rows].gather(1, time[:, None])[:, 0]
    number, editable = blocks.number[rows], trajectory.editable[rows]
    inputs: dict[str, Any] = {
        "input_ids": torch.cat((trajectory.states[rows, -1], noisy[:, tail]), dim=1),
        "attention_mask": block_attention(number, trajectory.real[rows], start)[:, None],
        "position_ids": torch.cat((blocks.place[rows], blocks.place[rows][:, tail]), dim=1),
        "editable_mask": torch.cat((editable, editable[:, tail]), dim=1),
    }
    if settings.use_history:
        clean = _history(trajectory, blocks, rows, end, settings)
        noisy_past = _history(trajectory, blocks, rows, time, settings)
        inputs["history"] = _joined(clean, noisy_past, tail)
    column = torch.arange(length, device=time.device)
    column = torch.where(column < start, column, column - start + length)
    return _View(rows, time, valid, number.clamp(min=0), column, inputs)


def block_attention(number: Tensor, real: Tensor, start: int) -> Tensor:
    """
    (k, L, L) bool, who sees whom: N clean positions and, behind them, noisy copies of those from `start` on.

    Args:
        number (`Tensor` (k, N), long): block of each position, negative before the answer.
        real (`Tensor` (k, N), bool): what is not padding.
        start (`int`): the first position with a noisy copy.

    Example:
        >>> number = torch.tensor([[-1, 0, 0, 1, 1]])
        >>> block_attention(number, number > -2, 1)[0, -1].nonzero()[:, 0]  # the last noisy one
        tensor([0, 1, 2, 7, 8])
    """
    tail = slice(start, None)
    # A noisy copy of a position before the answer is nobody's business.
    answer = (number >= 0) & real
    clean_clean = (number[:, :, None] >= number[:, None, :]) & real[:, None, :]
    noisy_clean = (number[:, tail, None] > number[:, None, :]) & real[:, None, :]
    noisy_noisy = (number[:, tail, None] == number[:, None, tail]) & answer[:, None, tail]
    clean_noisy = torch.zeros_like(noisy_clean.transpose(1, 2))
    allowed = torch.cat((torch.cat((clean_clean, clean_noisy), 2), torch.cat((noisy_clean, noisy_noisy), 2)), 1)
    # Padding sees itself: a row of the softmax must not be empty.
    return allowed | torch.eye(allowed.shape[1], dtype=torch.bool, device=allowed.device)


def _history(
    trajectory: Trajectory, blocks: _Blocks, rows: Tensor, time: Tensor, settings: DrawSettings
) -> HistorySegments:
    """The states before those at `time` (k, N), as the sampler's memory had them."""
    begin = torch.zeros_like(time)
    if settings.freezes:
        # A position's history begins with its block, and the block's last state is the last that joins it.
        begin = blocks.at(rows, blocks.first, 0)
        end = begin + blocks.at(rows, blocks.count, trajectory.block.shape[1])
        time = torch.minimum(time, end)
    states = trajectory.states[rows]
    past = (time - begin).clamp(min=0)
    number = torch.arange(int(past.max()), device=time.device)
    index = (begin[:, None] + number[:, None]).clamp(max=states.shape[1] - 1)
    ids = states.gather(1, index).transpose(1, 2)
    changed = torch.ones_like(ids, dtype=torch.bool)
    changed[..., 1:] = ids[..., 1:] != ids[..., :-1]
    # States that repeat the one before join its run; runs past the current state are empty.
    run = torch.where(changed, number, 0).cummax(-1).values if len(number) else ids
    lags = torch.where(number < past[..., None], past[..., None] - run + 1, 1)
    return HistorySegments(ids, torch.cat((lags, torch.ones_like(lags.new_empty(*lags.shape[:2], 1))), dim=-1))


def _joined(clean: HistorySegments, noisy: HistorySegments, tail: slice) -> HistorySegments:
    """Histories of the clean positions and of the noisy ones behind them."""
    most = max(clean.ids.shape[-1], noisy.ids.shape[-1])

    def fill(segments: HistorySegments) -> tuple[Tensor, Tensor]:
        more = most - segments.ids.shape[-1]
        return F.pad(segments.ids, (0, more)), F.pad(segments.lags, (0, more), value=1)

    (ids, lags), (noisy_ids, noisy_lags) = fill(clean), fill(noisy)
    return HistorySegments(torch.cat((ids, noisy_ids[:, tail]), 1), torch.cat((lags, noisy_lags[:, tail]), 1))


def _read(model: Any, trajectory: Trajectory, view: _View, settings: DrawSettings) -> Iterator[Tensor]:
    """(k, N) each: flat place of every choice, log-probabilities of positions and tokens, and where there is one."""
    rows, time = view.rows, view.time

    def at(values: Tensor) -> Tensor:
        return values[rows].gather(1, time[:, None])[:, 0]

    before, after = at(trajectory.states), at(trajectory.states[:, 1:])
    choices, order = at(trajectory.choices), at(trajectory.order).long()
    choices, order = torch.where(view.valid, choices, 0), torch.where(view.valid, order, -1)
    kept = after != settings.mask_token_id
    row, position = (choices > 0).nonzero(as_tuple=True)
    length = view.inputs["input_ids"].shape[1]
    chosen, revised = choices[row, position] == TOKEN, choices[row, position] == REVISION
    target = torch.where(chosen, after[row, position], before[row, position])
    read = _Reading(settings, target, chosen, kept[row, position])
    # At least one row, so that each process calls the head.
    flat = row * length + view.column[position]
    reader = LogitsReader(flat if len(flat) else flat.new_zeros(1), read, settings.chunk_rows)
    output = model(**view.inputs, use_history=settings.use_history, logits_reader=reader)
    values = output.read[0][: len(flat)]
    nothing = 0.0 * output.read[0].sum()
    empty = values.new_zeros(before.shape) + nothing
    tokens = empty.index_put((row[chosen], position[chosen]), values[chosen])
    positions = empty.index_put((row[revised], position[revised]), values[revised])
    drawn = choices == REVISION
    policy = getattr(output, "policy", None)
    if policy is not None:
        each, member = _positions_drawn(policy[:, view.column], order, kept & (order >= 0), view.group)
        positions, drawn = positions + each, drawn | member
    where = (rows[:, None] * trajectory.choices.shape[1] + time) * before.shape[1] + torch.arange(
        before.shape[1], device=rows.device
    )
    yield from (where, positions, tokens, drawn, choices == TOKEN)


def _positions_drawn(policy: Tensor, order: Tensor, drawn: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(k, N) log-probability of each drawn position within its group, and where it is not certain."""
    each, member = torch.zeros_like(policy, dtype=torch.float32), torch.zeros_like(drawn)
    for number in range(int(group.max()) + 1):
        mine = group == number
        own = torch.where(mine, order, -1)
        taken = drawn & mine
        each = each + plackett_luce(policy, own, taken)
        member |= taken & ~(taken == (own >= 0)).all(-1, keepdim=True)
    return each, member


@dataclass(frozen=True)
class _Reading:
    """What is read of scores (c, V): the log-probability of each choice, (c,)."""

    settings: DrawSettings
    target: Tensor
    chosen: Tensor
    kept: Tensor

    def __call__(self, scores: Tensor, part: slice) -> tuple[Tensor]:
        target, chosen, kept = (values[part] for values in (self.target, self.chosen, self.kept))
        scores = scores.float() / self.settings.temperature
        if not len(target):
            return (0.0 * scores.sum(-1),)
        writable = scores.index_fill(-1, self.settings.forbidden, -torch.inf)
        # A visible token may be one that is never written: the best one stands in for it where it is not asked for.
        token = torch.where(chosen, target, writable.argmax(-1))
        token_log_prob = writable.log_softmax(-1).gather(-1, token[:, None])[:, 0]
        gap = scores[:, self.settings.mask_token_id] - scores.gather(-1, target[:, None])[:, 0]
        revision = F.logsigmoid(torch.where(kept, -gap, gap))
        return (torch.where(chosen, token_log_prob, revision),)
