# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Reflective decoding: one loop for every way of revealing and revising a masked canvas.

    input ids -> canvas -> [ logits -> proposals -> reveal rule -> revision rule -> limits -> record ]* -> output

The state of an editable position:

           reveal (reveal rule)
      +------------------------------+
      |                              v
    [ M ]                        [ token ] --+ keep
      ^                              |   ^---+
      +------------------------------+
           re-mask (revision rule, within the limits)

There is no arrow from a token to another token: a token is changed by way of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .generation_config_rm import ReflectiveGenerationConfig
from .generation_rules_rm import REVEAL_RULES, REVISION_RULES, DenoisingStep, NoRevision, RemaskLimits
from .history import HistoryState

logger = logging.get_logger(__name__)

KEEP, REVEAL, REMASK, REPLACE = 0, 1, 2, 3

_DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


@dataclass
class ReflectiveTrajectory:
    """
    Everything that happened, row by row.

    Attributes:
        states (`Tensor` of shape `(S + 1, B, N)`, long): the canvas before the first step and after each of S steps. A
            row that finished early repeats its last state.
        actions (`Tensor` of shape `(S, B, N)`, int8): 0 keep, 1 reveal, 2 re-mask, 3 replace.
    """

    states: Tensor
    actions: Tensor


@dataclass
class ReflectiveOutput(ModelOutput):
    """
    Output of [`~ReflectiveGenerationMixin.generate_reflective`]; counts are per row, of shape `(B,)`.

    Attributes:
        sequences (`Tensor` of shape `(B, N)`, long): the final canvas, prompt included.
        num_steps, num_forwards, num_reveals, num_remasks, num_edits (`Tensor`, long): steps taken, forward passes, and
            how often a position was revealed, re-masked, or replaced outright.
        converged (`Tensor`, bool): whether the row ended because nothing was left to do, rather than at a limit.
        stop_reason (`list[str]`): `"converged"` (nothing left to reveal or revise), `"loop"` (the run returned to an
            earlier state; revision was closed and the open masks revealed), `"max_revision_rounds"` or `"max_steps"`.
        trajectory (`ReflectiveTrajectory`, *optional*): with `output_trajectory=True`.
    """

    sequences: Tensor | None = None
    num_steps: Tensor | None = None
    num_forwards: Tensor | None = None
    num_reveals: Tensor | None = None
    num_remasks: Tensor | None = None
    num_edits: Tensor | None = None
    converged: Tensor | None = None
    stop_reason: list[str] | None = None
    trajectory: ReflectiveTrajectory | None = None


def reflective_rule(state: Tensor, logits: Tensor, mask_token_id: int, editable_mask: Tensor) -> Tensor:
    """
    Eq. 1 of the Reflective Masking paper as it is written: the next state. Slow and obvious; the loop is tested against it.

    Args:
        state (`Tensor` of shape `(B, N)`, long): the current state.
        logits (`Tensor` of shape `(B, N, V)`): the model's scores.
        mask_token_id (`int`): the mask.
        editable_mask (`Tensor` of shape `(B, N)`, bool): positions that may change.

    Returns:
        `Tensor` of shape `(B, N)`: masks take the most probable token that is not the mask; a visible token becomes a mask
        where the mask is strictly more probable than the token itself; everything else stays.

    Example:
        >>> logits = torch.tensor([[[0.2, 0.5, 0.05, 0.25], [0.2, 0.3, 0.1, 0.4]]]).log()
        >>> reflective_rule(torch.tensor([[0, 3]]), logits, 3, torch.ones(1, 2, dtype=torch.bool))
        tensor([[3, 1]])
    """
    following = state.clone()
    for row, position in editable_mask.nonzero().tolist():
        scores = logits[row, position]
        token = int(state[row, position])
        if token == mask_token_id:
            scores = scores.clone()
            scores[mask_token_id] = -torch.inf
            following[row, position] = scores.argmax()
        elif scores[mask_token_id] > scores[token]:
            following[row, position] = mask_token_id
    return following


class ReflectiveGenerationMixin:
    """Gives a bidirectional token model `generate_reflective()`, and `generate()` as a shorthand for its sequences."""

    generation_config_class = ReflectiveGenerationConfig

    @torch.no_grad()
    def generate_reflective(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        editable_mask: Tensor | None = None,
        generation_config: ReflectiveGenerationConfig | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        streamer: BaseStreamer | None = None,
        max_new_tokens: int | None = None,
        progress_bar: bool = False,
        **kwargs: Any,
    ) -> ReflectiveOutput:
        """
        Write and revise a canvas.

        1. Resolve the settings and check every argument.
        2. Build the canvas: the input, and `max_new_tokens` masks behind it.
        3. Until every row is done:
           a. run the model on the unfinished rows: logits, and their history with this state joined to it;
           b. propose a token for every mask of the active block (argmax, or a sample from the row's own generator);
           c. the reveal rule picks the masks that become their proposals;
           d. the revision rule picks the visible tokens that become masks, and the limits cut its choice down;
           e. apply both, record, stream;
           f. move rows on to their next block, or finish them, and drop finished rows from the batch.

        Args:
            input_ids (`Tensor` of shape `(B, N)`, long): a prompt, a text with masks in it, or a full draft to revise.
            attention_mask (`Tensor` of shape `(B, N)`, *optional*): 1 for real positions, 0 for padding on either side.
            editable_mask (`Tensor` of shape `(B, N)`, bool, *optional*): what may change, over the input or over the input
                and the canvas; by default the generation config's `editable` decides.
            generation_config (`ReflectiveGenerationConfig`, *optional*): by default the model's own.
            generator (`torch.Generator` or one per row, *optional*): with one per row, a row's result is the same in any
                batch; a single one seeds one per row.
            streamer (`BaseStreamer`, *optional*): gets the input (`put`), the canvas after each step (`put_draft`, where it
                has that), the final canvas (`put`) and `end`.
            max_new_tokens (`int`, *optional*): overrides the config's.
            progress_bar (`bool`, defaults to `False`): show how many rows are done.
            kwargs: further settings of [`ReflectiveGenerationConfig`], by name.

        Returns:
            [`ReflectiveOutput`]

        Raises:
            ValueError: for any argument that cannot work, before the first forward pass.

        Example:
            >>> import hf_rm  # doctest: +SKIP
            >>> model = AutoModel.from_pretrained("model_cards/rm-sudoku")  # doctest: +SKIP
            >>> model.generate_reflective(boards).sequences.shape  # doctest: +SKIP
            torch.Size([8, 81])
        """
        # 1. settings
        if max_new_tokens is not None:
            kwargs["max_new_tokens"] = max_new_tokens
        config = self._resolve_generation_config(generation_config, kwargs)
        mask_token_id = self._resolve_mask_token_id(config)
        _check_inputs(input_ids, attention_mask, editable_mask, config, self.config.vocab_size)
        # 2. the canvas
        canvas = _build_canvas(input_ids, attention_mask, editable_mask, config, mask_token_id)
        generators = _row_generators(generator, len(canvas.ids), samples=config.temperature > 0)
        loop = _DenoisingLoop(self, config, canvas, mask_token_id, generators)
        # 3. the loop
        return loop.run(streamer, progress_bar)

    def generate(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """The sequences of [`generate_reflective`], for code that expects `generate()`."""
        return self.generate_reflective(input_ids, **kwargs).sequences

    def adjust_generation_fn(
        self,
        generation_config: ReflectiveGenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        **loading: Any,
    ) -> None:
        """The last step of transformers' `from_pretrained`: take the generation config given, or the saved one."""
        if generation_config is not None:
            self.generation_config = generation_config
        elif pretrained_model_name_or_path is not None:
            where = {name: loading[name] for name in _DOWNLOAD_ARGUMENTS}
            load = self.generation_config_class.from_pretrained
            try:
                self.generation_config = load(pretrained_model_name_or_path, **where)
            except OSError:
                logger.info("No generation config was saved with this model: its settings are the defaults.")

    def _denoise(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        editable_mask: Tensor,
        history: HistoryState | None,
        use_history: bool | None,
    ) -> tuple[Tensor, HistoryState | None]:
        """One forward pass of the loop: logits (B, N, V) and the history after this state."""
        output = self(
            input_ids=input_ids,
            attention_mask=attention_mask,
            editable_mask=editable_mask,
            history=history,
            use_history=use_history,
        )
        return output.logits, output.history

    def _resolve_generation_config(
        self, generation_config: ReflectiveGenerationConfig | None, changes: dict[str, Any]
    ) -> ReflectiveGenerationConfig:
        config = getattr(self, "generation_config", None) if generation_config is None else generation_config
        if config is None:
            config = ReflectiveGenerationConfig()
        if not isinstance(config, ReflectiveGenerationConfig):
            raise ValueError(
                f"`generation_config` is a {type(config).__name__}: pass a ReflectiveGenerationConfig, whose settings "
                "are those of masked decoding."
            )
        # Also with nothing to change: an attribute set by hand on the config is validated here.
        return config.updated(**changes)

    def _resolve_mask_token_id(self, config: ReflectiveGenerationConfig) -> int:
        own = getattr(self.config, "mask_token_id", None)
        mask_token_id = own if config.mask_token_id is None else config.mask_token_id
        if mask_token_id is None:
            raise ValueError(
                "`mask_token_id` is found neither in the generation config nor in the model's config: pass "
                "mask_token_id=..., the id of the mask token that the model was trained with."
            )
        if not isinstance(mask_token_id, int) or not 0 <= mask_token_id < self.config.vocab_size:
            raise ValueError(
                f"`mask_token_id` is {mask_token_id!r}, outside the vocabulary of {self.config.vocab_size}: pass the id "
                "of the mask token that the model was trained with."
            )
        return mask_token_id


@dataclass
class _Canvas:
    """The whole batch, in the caller's order. `blocks` numbers the block of each editable position, -1 elsewhere."""

    ids: Tensor
    attention_mask: Tensor | None
    editable: Tensor
    blocks: Tensor


@dataclass
class _Rows:
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

    def select(self, keep: Tensor) -> _Rows:
        """The rows where `keep` (b,) is true."""
        chosen = {name: value[keep] if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        if self.history is not None:
            chosen["history"] = self.history.select(keep)
        if self.generators is not None:
            chosen["generators"] = [g for g, kept in zip(self.generators, keep.tolist(), strict=True) if kept]
        return _Rows(**chosen)


class _DenoisingLoop:
    """The loop of `generate_reflective`, step 3 of its docstring."""

    def __init__(
        self,
        model: Any,
        config: ReflectiveGenerationConfig,
        canvas: _Canvas,
        mask_token_id: int,
        generators: list[torch.Generator] | None,
    ) -> None:
        self.model = model
        self.config = config
        self.canvas = canvas
        self.mask_token_id = mask_token_id
        self.reveal = REVEAL_RULES[config.reveal](config)
        self.revise = (REVISION_RULES[config.revise] if config.revise is not None else NoRevision)(config)
        self.limits = RemaskLimits(config.max_remasks_per_position, config.max_remask_ratio)
        self.forbidden = _forbidden_ids(model, config, mask_token_id)
        self.schedule_steps = _schedule_steps(config, canvas, mask_token_id)
        self.max_steps = _max_steps(config, canvas, self.schedule_steps)
        self.sampler = _Sampler(config)
        self.rows = self._first_rows(generators)
        self.loops = _LoopDetector(canvas.ids) if self._state_is_everything() else None
        batch = canvas.ids.shape[0]
        self.counts = {name: torch.zeros(batch, dtype=torch.long, device=canvas.ids.device) for name in _COUNTS}
        self.stop_reason = ["converged"] * batch
        self.recorder = _Recorder(canvas.ids) if config.output_trajectory else None

    def run(self, streamer: BaseStreamer | None, progress_bar: bool) -> ReflectiveOutput:
        if streamer is not None:
            streamer.put(self.canvas.ids.cpu())
        progress = logging.tqdm(total=len(self.canvas.ids), desc="rows", disable=not progress_bar)
        while len(self.rows.index):
            finished = self._step()
            progress.update(finished)
            if streamer is not None and hasattr(streamer, "put_draft"):
                streamer.put_draft(self.canvas.ids.cpu())
        progress.close()
        if streamer is not None:
            streamer.put(self.canvas.ids.cpu())
            streamer.end()
        return self._output()

    def _step(self) -> int:
        """Steps a to f for the unfinished rows; the number of rows that finished."""
        rows = self.rows
        # a. the model
        logits, rows.history = self.model._denoise(
            rows.ids, rows.attention_mask, rows.editable, rows.history, self.config.use_history
        )
        # b. proposals
        active = rows.blocks == rows.block[:, None]
        is_mask = rows.ids == self.mask_token_id
        masked, visible = active & is_mask, active & ~is_mask
        proposal = self.sampler(logits, masked, rows.ids, self.forbidden, rows.generators)
        step = DenoisingStep(rows.ids, logits, masked, visible, proposal, self._quota(rows), self.mask_token_id)
        # c. reveal, d. revise
        reveal = self.reveal(step)
        fires, ranks = self.revise(step)
        remask = self.limits(fires & ~rows.closed[:, None], ranks, visible, rows.remasks)
        # e. apply and record
        rows.ids = torch.where(reveal, proposal, rows.ids.masked_fill(remask, self.mask_token_id))
        rows.remasks = rows.remasks + remask
        self._record(rows, reveal, remask)
        # f. move on
        return self._advance(rows, masked, reveal, remask)

    def _advance(self, rows: _Rows, masked: Tensor, reveal: Tensor, remask: Tensor) -> int:
        """Decide for every row whether its block goes on, its next block begins, or it is done."""
        had_mask, revised = masked.any(-1), remask.any(-1)
        has_mask = (masked & ~reveal).any(-1) | revised
        rows.quiet = torch.where(had_mask | revised, 0, rows.quiet + 1)
        rows.rounds = rows.rounds + ~had_mask
        rows.block_step = rows.block_step + 1
        settled = ~has_mask if self.config.revise is None else ~has_mask & (rows.quiet >= self.config.patience)
        if self.config.max_revision_rounds is not None:
            spent = rows.rounds >= self.config.max_revision_rounds
            self._close(rows, spent & ~has_mask & ~settled, "max_revision_rounds")
        if self.loops is not None:
            self._close(rows, self.loops.returned(rows.index, rows.ids) & (has_mask | revised), "loop")
        block_done = settled | ~has_mask & rows.closed
        row_done = block_done & (rows.block + 1 >= self.num_blocks_of(rows))
        self._begin_blocks(rows, block_done & ~row_done)
        out_of_steps = self.counts["num_steps"][rows.index] >= self.max_steps[rows.index]
        return self._drop(rows, row_done, out_of_steps & ~row_done)

    def num_blocks_of(self, rows: _Rows) -> Tensor:
        return rows.blocks.amax(-1) + 1

    def _close(self, rows: _Rows, which: Tensor, reason: str) -> None:
        """No more revision for these rows' active block: what is still masked is revealed, and that is that."""
        newly = which & ~rows.closed
        for row in rows.index[newly].tolist():
            self.stop_reason[row] = reason
        rows.closed = rows.closed | which

    def _begin_blocks(self, rows: _Rows, which: Tensor) -> None:
        rows.block = rows.block + which
        for name in ("block_step", "quiet", "rounds"):
            setattr(rows, name, getattr(rows, name).masked_fill(which, 0))
        rows.closed = rows.closed & ~which
        in_block = (rows.blocks == rows.block[:, None]) & (rows.ids == self.mask_token_id)
        rows.block_masks = torch.where(which, in_block.sum(-1), rows.block_masks)
        if self.loops is not None:
            self.loops.forget(rows.index[which])

    def _drop(self, rows: _Rows, done: Tensor, out_of_steps: Tensor) -> int:
        for row in rows.index[out_of_steps].tolist():
            self.stop_reason[row] = "max_steps"
        dropped = done | out_of_steps
        finished = int(dropped.sum())
        self.rows = rows.select(~dropped) if finished else rows
        return finished

    def _quota(self, rows: _Rows) -> Tensor:
        """Masks to reveal now: the block's masks spread evenly over its steps, the first steps taking the remainder."""
        steps = self.schedule_steps[rows.index].gather(-1, rows.block[:, None])[:, 0]
        each, more = rows.block_masks // steps, rows.block_masks % steps
        quota = each + (rows.block_step < more)
        # Past the schedule (masks that a revision reopened) the pace stays that of the schedule, at least one a step.
        return torch.where(rows.block_step < steps, quota, each.clamp(min=1))

    def _record(self, rows: _Rows, reveal: Tensor, remask: Tensor) -> None:
        self.canvas.ids[rows.index] = rows.ids
        self.counts["num_steps"][rows.index] += 1
        self.counts["num_forwards"][rows.index] += 1
        self.counts["num_reveals"][rows.index] += reveal.sum(-1)
        self.counts["num_remasks"][rows.index] += remask.sum(-1)
        if self.recorder is not None:
            self.recorder.add(self.canvas.ids, rows.index, reveal * REVEAL + remask * REMASK)

    def _first_rows(self, generators: list[torch.Generator] | None) -> _Rows:
        canvas = self.canvas
        batch = canvas.ids.shape[0]
        zeros = torch.zeros(batch, dtype=torch.long, device=canvas.ids.device)
        block_masks = ((canvas.blocks == 0) & (canvas.ids == self.mask_token_id)).sum(-1)
        return _Rows(
            index=torch.arange(batch, device=canvas.ids.device),
            ids=canvas.ids.clone(),
            attention_mask=canvas.attention_mask,
            editable=canvas.editable,
            blocks=canvas.blocks,
            block=zeros,
            block_step=zeros,
            block_masks=block_masks,
            remasks=torch.zeros_like(canvas.ids),
            quiet=zeros,
            rounds=zeros,
            closed=zeros.bool(),
            history=None,
            generators=generators,
        )

    def _state_is_everything(self) -> bool:
        """Whether the next step depends on the current state alone, so that a repeated state proves a loop."""
        use_history = self.config.use_history
        if use_history is None:
            use_history = getattr(self.model.config, "history", False)
        return not (
            use_history
            or self.config.temperature > 0
            or self.revise.remembers
            or self.limits.per_position is not None
            or self.reveal.follows_schedule
        )

    def _output(self) -> ReflectiveOutput:
        return ReflectiveOutput(
            sequences=self.canvas.ids,
            **self.counts,
            converged=torch.tensor([reason == "converged" for reason in self.stop_reason]),
            stop_reason=self.stop_reason,
            trajectory=None if self.recorder is None else self.recorder.trajectory(),
        )


_COUNTS = ("num_steps", "num_forwards", "num_reveals", "num_remasks", "num_edits")


class _Sampler:
    """Proposes a token for every mask: the argmax, or a sample drawn with the row's own generator."""

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        self.processors = LogitsProcessorList()
        self.samples = config.temperature > 0
        if self.samples:
            self.processors.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k is not None:
            self.processors.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None:
            self.processors.append(TopPLogitsWarper(float(config.top_p)))

    def __call__(
        self,
        logits: Tensor,
        masked: Tensor,
        ids: Tensor,
        forbidden: Tensor,
        generators: list[torch.Generator] | None,
    ) -> Tensor:
        """(B, N) long: proposals at the masks, `ids` elsewhere."""
        # Only the rows of masks are looked at: (K, V), not (B, N, V).
        scores = logits[masked].index_fill(-1, forbidden, -torch.inf)
        if self.samples:
            scores = self.processors(None, scores.float())
            scores = scores - _exponential_noise(masked.sum(-1).tolist(), scores, generators).log()
        proposal = ids.clone()
        proposal[masked] = scores.argmax(-1)
        return proposal


def _exponential_noise(counts: list[int], like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Exp(1) noise of shape (K, V), each row's part from its own generator, so that neighbours never matter."""
    parts = []
    for count, generator in zip(counts, generators, strict=True):
        part = torch.empty(count, like.shape[-1], dtype=torch.float32, device=generator.device)
        parts.append(part.exponential_(generator=generator).to(like.device))
    return torch.cat(parts)


class _LoopDetector:
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
        for row in index.tolist():
            self.seen[row].clear()


class _Recorder:
    """Collects states and actions in the caller's row order."""

    def __init__(self, ids: Tensor) -> None:
        self.states = [ids.clone()]
        self.actions: list[Tensor] = []

    def add(self, ids: Tensor, index: Tensor, actions: Tensor) -> None:
        self.states.append(ids.clone())
        laid_out = torch.zeros(ids.shape, dtype=torch.int8, device=ids.device)
        laid_out[index] = actions.to(torch.int8)
        self.actions.append(laid_out)

    def trajectory(self) -> ReflectiveTrajectory:
        return ReflectiveTrajectory(torch.stack(self.states), torch.stack(self.actions))


def _build_canvas(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    editable_mask: Tensor | None,
    config: ReflectiveGenerationConfig,
    mask_token_id: int,
) -> _Canvas:
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
    return _Canvas(ids, None if attention_mask is None else real.long(), editable, blocks.masked_fill(~editable, -1))


def _schedule_steps(config: ReflectiveGenerationConfig, canvas: _Canvas, mask_token_id: int) -> Tensor:
    """(B, blocks) reveal steps of each block: `steps` shared out over the blocks that hold masks, each at least one."""
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


def _max_steps(config: ReflectiveGenerationConfig, canvas: _Canvas, schedule_steps: Tensor) -> Tensor:
    """(B,) bound on the steps of each row, from its own blocks alone: neighbours must not lengthen a run."""
    last_block = canvas.blocks.amax(-1, keepdim=True)
    if config.max_steps is not None:
        return torch.full_like(last_block[:, 0], config.max_steps)
    own = torch.arange(schedule_steps.shape[1], device=last_block.device) <= last_block
    # `patience` steps for each step of the schedule: each block, however short, has to be quiet for that long.
    return 64 + (1 + config.patience) * (schedule_steps * own).sum(-1)


def _forbidden_ids(model: Any, config: ReflectiveGenerationConfig, mask_token_id: int) -> Tensor:
    """Ids that no reveal writes: the mask and the reserved ones."""
    own = getattr(model.config, "suppressed_token_ids", None) or []
    ids = sorted({mask_token_id, *own, *(config.suppressed_token_ids or [])})
    vocab_size = model.config.vocab_size
    if ids[0] < 0 or ids[-1] >= vocab_size or len(ids) == vocab_size:
        raise ValueError(
            f"`suppressed_token_ids` is {config.suppressed_token_ids} for a vocabulary of {vocab_size}: pass ids from 0 "
            f"to {vocab_size - 1} that leave at least one token to reveal."
        )
    return torch.tensor(ids, device=model.device)


def _row_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int, samples: bool
) -> list[torch.Generator] | None:
    """One generator a row, always: a row must not draw from a stream that its neighbours move."""
    if isinstance(generator, Sequence):
        if len(generator) != batch:
            raise ValueError(f"`generator` holds {len(generator)} generators for {batch} rows: pass one per row.")
        return list(generator)
    if not samples:  # greedy decoding moves nobody's random numbers
        return None
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (batch,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _check_inputs(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    editable_mask: Tensor | None,
    config: ReflectiveGenerationConfig,
    vocab_size: int,
) -> None:
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
        raise ValueError(f"`input_ids` is {_shape(input_ids)}: pass a (batch, length) tensor of token ids.")
    if input_ids.shape[0] == 0:
        raise ValueError("`input_ids` is an empty batch: pass at least one row.")
    outside = input_ids[(input_ids < 0) | (input_ids >= vocab_size)]
    if len(outside):
        raise ValueError(
            f"`input_ids` holds {int(outside[0])}, outside the vocabulary of {vocab_size}: pass the ids of this model's "
            "own tokenizer."
        )
    if attention_mask is not None and _shape(attention_mask) != input_ids.shape:
        raise ValueError(
            f"`attention_mask` is {_shape(attention_mask)} and `input_ids` {tuple(input_ids.shape)}: pass "
            "one entry a token, 0 for padding."
        )
    if editable_mask is None:
        return
    if not isinstance(editable_mask, Tensor) or editable_mask.dtype != torch.bool:
        given = editable_mask.dtype if isinstance(editable_mask, Tensor) else type(editable_mask).__name__
        raise ValueError(f"`editable_mask` is {given}: pass a bool tensor, True where a token may change.")
    length = input_ids.shape[1] + (config.max_new_tokens or 0)
    if editable_mask.shape not in {input_ids.shape, (input_ids.shape[0], length)}:
        raise ValueError(
            f"`editable_mask` has shape {tuple(editable_mask.shape)} for `input_ids` of {tuple(input_ids.shape)}: pass "
            "one entry a token (the appended canvas may be included)."
        )


def _shape(value: Any) -> tuple[int, ...] | str:
    """The shape of a tensor, the type's name of anything else: for error messages."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
