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

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .configuration_rm import check_mask_token
from .generation_canvas_rm import Canvas, block_schedule, build_canvas, check_inputs, row_generators, step_bounds
from .generation_config_rm import ReflectiveGenerationConfig
from .generation_output_rm import Recorder, ReflectiveOutput, ReflectiveTrajectory
from .generation_rows_rm import LoopDetector, Rows, Sampler
from .generation_rules_rm import REVEAL_RULES, REVISION_RULES, DenoisingStep, NoRevision, RemaskLimits
from .history import HistoryState

__all__ = ["ReflectiveGenerationMixin", "ReflectiveOutput", "ReflectiveTrajectory", "reflective_rule"]

logger = logging.get_logger(__name__)

_DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


def reflective_rule(state: Tensor, logits: Tensor, mask_token_id: int, editable_mask: Tensor) -> Tensor:
    """
    Eq. 1 of the Reflective Masking paper as it is written: the next state. The loop is tested against it.

    Args:
        state (`Tensor` of shape `(B, N)`, long): the current state.
        logits (`Tensor` of shape `(B, N, V)`): the model's scores.
        mask_token_id (`int`): the mask.
        editable_mask (`Tensor` of shape `(B, N)`, bool): positions that may change.

    Returns:
        `Tensor` of shape `(B, N)`: masks take the most probable token that is not the mask; a visible token becomes a
        mask where the mask is strictly more probable than the token itself; everything else stays.

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
    # What the model brings: a config with a `vocab_size`, and its forward pass.
    config: Any
    __call__: Callable[..., Any]

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
            attention_mask (`Tensor` of shape `(B, N)`, *optional*): 1 for real positions, 0 for padding on any side.
            editable_mask (`Tensor` of shape `(B, N)`, bool, *optional*): what may change, over the input or over the
                input and the canvas; by default the generation config's `editable` decides.
            generation_config (`ReflectiveGenerationConfig`, *optional*): by default the model's own.
            generator (`torch.Generator` or one per row, *optional*): with one per row, a row's result is the same in
                any batch; a single one seeds one per row.
            streamer (`BaseStreamer`, *optional*): gets the input (`put`), the canvas after each step (`put_draft`,
                where it has that), the final canvas (`put`) and `end`.
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
        check_inputs(input_ids, attention_mask, editable_mask, config, self.config.vocab_size)
        self._warn_of_untrained_head(config)
        # 2. the canvas
        canvas = build_canvas(input_ids, attention_mask, editable_mask, config, mask_token_id)
        generators = row_generators(generator, len(canvas.ids), samples=config.temperature > 0)
        # 3. the loop
        return _DenoisingLoop(self, config, canvas, mask_token_id, generators).run(streamer, progress_bar)

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

    def _warn_of_untrained_head(self, config: ReflectiveGenerationConfig) -> None:
        if config.revise == "reflective" and getattr(self.config, "trained_to_remask", None) is False:
            logger.warning_once(
                'revise="reflective" re-masks where the mask is the more probable token, but this head was never '
                "trained to predict the mask: it will hardly ever fire. Train the model with RMTrainer, or pass a "
                "rule that needs no training (or revise=None)."
            )

    def _resolve_mask_token_id(self, config: ReflectiveGenerationConfig) -> int:
        own = getattr(self.config, "mask_token_id", None)
        return check_mask_token(own if config.mask_token_id is None else config.mask_token_id, self.config.vocab_size)


class _DenoisingLoop:
    """The loop of `generate_reflective`, step 3 of its docstring."""

    def __init__(
        self,
        model: Any,
        config: ReflectiveGenerationConfig,
        canvas: Canvas,
        mask_token_id: int,
        generators: list[torch.Generator] | None,
    ) -> None:
        self.model = model
        self.config = config
        self.canvas = canvas
        self.mask_token_id = mask_token_id
        self.sampler = Sampler(model, config, mask_token_id)
        self.reveal = REVEAL_RULES[config.reveal](config)
        self.revise = (NoRevision if config.revise is None else REVISION_RULES[config.revise])(config)
        self.limits = RemaskLimits(config.max_remasks_per_position, config.max_remask_ratio)
        self.schedule = block_schedule(config, canvas, mask_token_id)
        self.max_steps = step_bounds(config, canvas, self.schedule)
        self.rows = Rows.begin(canvas, mask_token_id, generators)
        self.loops = LoopDetector(canvas.ids) if self._state_is_everything() else None
        self.recorder = Recorder(canvas.ids) if config.output_trajectory else None
        self.stop_reason = ["converged"] * len(canvas.ids)
        counts = ("num_steps", "num_forwards", "num_reveals", "num_remasks", "num_edits")
        self.counts = {name: torch.zeros_like(self.rows.index) for name in counts}

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
        proposal = self.sampler(logits, masked, rows)
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

    def _advance(self, rows: Rows, masked: Tensor, reveal: Tensor, remask: Tensor) -> int:
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
        row_done = block_done & (rows.block >= rows.blocks.amax(-1))
        self._begin_blocks(rows, block_done & ~row_done)
        out_of_steps = self.counts["num_steps"][rows.index] >= self.max_steps[rows.index]
        return self._drop(rows, row_done, out_of_steps & ~row_done)

    def _close(self, rows: Rows, which: Tensor, reason: str) -> None:
        """No more revision for these rows' active block: what is still masked is revealed, and that is that."""
        newly = which & ~rows.closed
        for row in rows.index[newly].tolist():
            self.stop_reason[row] = reason
        rows.closed = rows.closed | which

    def _begin_blocks(self, rows: Rows, which: Tensor) -> None:
        """These rows go on to their next block."""
        rows.block = rows.block + which
        for name in ("block_step", "quiet", "rounds"):
            setattr(rows, name, getattr(rows, name).masked_fill(which, 0))
        rows.closed = rows.closed & ~which
        in_block = (rows.blocks == rows.block[:, None]) & (rows.ids == self.mask_token_id)
        rows.block_masks = torch.where(which, in_block.sum(-1), rows.block_masks)
        if self.loops is not None:
            self.loops.forget(rows.index[which])

    def _drop(self, rows: Rows, done: Tensor, out_of_steps: Tensor) -> int:
        """Go on without these rows; how many they are."""
        for row in rows.index[out_of_steps].tolist():
            self.stop_reason[row] = "max_steps"
        dropped = done | out_of_steps
        finished = int(dropped.sum())
        self.rows = rows.select(~dropped) if finished else rows
        return finished

    def _quota(self, rows: Rows) -> Tensor:
        """(b,) masks to reveal now: the block's masks spread evenly over its steps, the first taking the remainder."""
        steps = self.schedule[rows.index].gather(-1, rows.block[:, None])[:, 0]
        each, more = rows.block_masks // steps, rows.block_masks % steps
        quota = each + (rows.block_step < more)
        # Past the schedule (masks that a revision reopened) the pace stays that of the schedule, at least one a step.
        return torch.where(rows.block_step < steps, quota, each.clamp(min=1))

    def _record(self, rows: Rows, reveal: Tensor, remask: Tensor) -> None:
        self.canvas.ids[rows.index] = rows.ids
        self.counts["num_steps"][rows.index] += 1
        self.counts["num_forwards"][rows.index] += 1
        self.counts["num_reveals"][rows.index] += reveal.sum(-1)
        self.counts["num_remasks"][rows.index] += remask.sum(-1)
        if self.recorder is not None:
            self.recorder.add(self.canvas.ids, rows.index, reveal, remask)

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
            converged=torch.tensor(
                [reason == "converged" for reason in self.stop_reason], device=self.canvas.ids.device
            ),
            stop_reason=self.stop_reason,
            trajectory=None if self.recorder is None else self.recorder.trajectory(),
        )
