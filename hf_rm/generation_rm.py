# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Reflective decoding: one loop for every way of revealing and revising a masked canvas.

    input ids -> canvas -> [ logits -> proposals -> reveal rule -> revision rule -> limits -> record ]* -> output

The state of an editable position:

           reveal (reveal rule)
      +------------------------------+
      |                              v
    [ M ]                        [ token ] --+ keep; or another token (T2T alone)
      ^                              |   ^---+
      +------------------------------+
           re-mask (revision rule, within the limits)

A step works on the positions of each row's active block and asks nothing of the host: rows that are done stand still
until the next look at the batch, every step on a CPU, every few on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from json import JSONDecodeError
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .configuration_rm import blocks_from_answer, check_mask_token
from .generation_canvas_rm import (
    Canvas,
    block_schedule,
    build_canvas,
    check_inputs,
    row_keys,
    step_bounds,
)
from .generation_config_rm import ReflectiveGenerationConfig
from .generation_denoiser_rm import Denoised, Denoiser
from .generation_output_rm import REMASK, REPLACE, REVEAL, Recorder, ReflectiveOutput, ReflectiveTrajectory
from .generation_revision_rm import REVISION_RULES, NoRevision, RemaskLimits
from .generation_rows_rm import (
    EOS,
    LOOP,
    MAX_REVISION_ROUNDS,
    MAX_STEPS,
    STOP_REASONS,
    LoopDetector,
    Rows,
    look,
    put,
    uniforms,
)
from .generation_rules_rm import REVEAL_RULES, DenoisingStep, Schedule
from .generation_sampler_rm import Sampler, end_tokens, padding_token
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
    # Whether a forward pass also returns the scores of a learned unmasking policy.
    has_unmasking_policy = False
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
           a. run the model on the unfinished rows: logits of the active block, the history with this state joined;
           b. propose a token for every position of the block (argmax, or a sample with the row's own numbers);
           c. the reveal rule picks the masks that become their proposals;
           d. the revision rule picks the visible tokens to take back, and the limits cut its choice down;
           e. apply both;
           f. move rows on to their next block, or finish them; record, stream, and now and then drop the finished ones
              from the batch.

        Args:
            input_ids (`Tensor` of shape `(B, N)`, of any integers): a prompt, a text with masks in it, or a full draft
                to revise.
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
            ValueError: for any argument that cannot work, before the first forward pass; and for a model whose scores
                are not finite.

        Example:
            >>> import hf_rm  # doctest: +SKIP
            >>> model = AutoModel.from_pretrained("model_cards/rm-sudoku")  # doctest: +SKIP
            >>> model.generate_reflective(boards).sequences.shape  # doctest: +SKIP
            torch.Size([8, 81])
        """
        # 1. settings
        if not (streamer is None or hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise ValueError(f"`streamer` is {streamer!r}: pass an object with put(ids) and end(), like TextStreamer.")
        if max_new_tokens is not None:
            kwargs["max_new_tokens"] = max_new_tokens
        config = self._resolve_generation_config(generation_config, kwargs)
        self._warn_of_untrained_head(config)
        # 2. the canvas
        canvas, mask_token_id = begin_canvas(self, config, input_ids, attention_mask, editable_mask)
        # 3. the loop
        return _DenoisingLoop(self, config, canvas, mask_token_id, generator).run(streamer, progress_bar)

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
            except OSError as error:
                if isinstance(error.__context__, (JSONDecodeError, UnicodeDecodeError)):
                    raise OSError(f"{error} Copy it again, or delete it to decode by the default settings.") from error
                logger.info("No generation config was saved with this model: its settings are the defaults.")

    def _denoise(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        editable_mask: Tensor,
        history: HistoryState | None,
        use_history: bool,
        positions: Tensor | None,
        **inputs: Any,
    ) -> Denoised:
        """One forward pass of the loop: logits at `positions` (B, A) or everywhere, the history after this state."""
        output = self(
            input_ids=input_ids,
            attention_mask=attention_mask,
            editable_mask=editable_mask,
            history=history,
            use_history=use_history,
            logits_positions=positions,
            **inputs,
        )
        return Denoised(output.logits, output.history, getattr(output, "policy", None))

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


def begin_canvas(
    model: Any,
    config: ReflectiveGenerationConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    editable_mask: Tensor | None = None,
) -> tuple[Canvas, int]:
    """The canvas of a run and its mask; a ValueError for any argument that cannot work. No weights are needed."""
    mask_token_id = model._resolve_mask_token_id(config)
    input_ids = check_inputs(input_ids, attention_mask, editable_mask, config, model.config)
    _check_policy(model, config)
    blocks, from_answer = _attention_blocks(model.config, config), blocks_from_answer(model.config)
    canvas = build_canvas(input_ids, attention_mask, editable_mask, config, mask_token_id, blocks, from_answer)
    return canvas, mask_token_id


def check_decoding(
    model: Any, config: ReflectiveGenerationConfig, input_ids: Tensor, editable_mask: Tensor | None = None
) -> Tensor:
    """
    Raise the ValueError that decoding these rows would, without a forward pass.

    Args:
        model: what has `generate_reflective`; its weights need not be there.
        config, input_ids, editable_mask: as for `generate_reflective`.

    Returns:
        `Tensor` (B, blocks): the steps of each block's schedule.
    """
    canvas, mask_token_id = begin_canvas(model, config, input_ids, None, editable_mask)
    # Its own generator: nobody's random numbers move.
    return _DenoisingLoop(model, config, canvas, mask_token_id, torch.Generator()).schedule


def _attention_blocks(model_config: Any, config: ReflectiveGenerationConfig) -> int | None:
    """Length of the attention's own blocks, which the canvas has to keep to; None for attention to all."""
    own = getattr(model_config, "attention_block_length", None)
    if own is not None and config.block_length not in (None, own):
        raise ValueError(
            f"`block_length` is {config.block_length}, but the model's attention goes by blocks of {own}: pass "
            f"block_length={own} or leave it out."
        )
    return own


def _check_policy(model: Any, config: ReflectiveGenerationConfig) -> None:
    if "policy" in (config.reveal, config.revise) and not model.has_unmasking_policy:
        raise ValueError(
            'reveal="policy" and revise="policy" need a model with a learned unmasking policy, and '
            f'{type(model).__name__} has none: pass reveal="confidence" and another revision rule.'
        )


class _DenoisingLoop:
    """The loop of `generate_reflective`, step 3 of its docstring."""

    def __init__(
        self,
        model: Any,
        config: ReflectiveGenerationConfig,
        canvas: Canvas,
        mask_token_id: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> None:
        self.config = config
        self.canvas = canvas
        self.mask_token_id = mask_token_id
        self.device = canvas.ids.device
        self.reveal = REVEAL_RULES[config.reveal](config)
        self.revise = (NoRevision if config.revise is None else REVISION_RULES[config.revise])(config)
        self.limits = RemaskLimits(
            config.max_remasks_per_position, config.max_remask_ratio, config.min_remasks_per_step, config.max_remasks
        )
        self.schedule = block_schedule(config, canvas, mask_token_id)
        self.max_steps = step_bounds(config, canvas, self.schedule)
        self.ends = end_tokens(model, config, self.device)
        self.padding = padding_token(model, config, self.ends)
        self.sampler = Sampler(model, config, mask_token_id, self.ends, self.device)
        self.denoiser = Denoiser(model, config, canvas, mask_token_id)
        # With every block in reach there is one window over all of them.
        self.everywhere = config.revise_scope == "all"
        if self.everywhere and canvas.windows.shape[1] > 1:
            canvas.windows = canvas.windows.flatten(1).sort(-1).values[:, None, : int(canvas.editable.sum(-1).max())]
        draws = config.temperature > 0 or self.reveal.draws or self.revise.draws
        self.rows = Rows.begin(canvas, mask_token_id, row_keys(generator, len(canvas.ids), draws, self.device))
        self.memory: dict[str, Tensor] = {}
        self.loops = LoopDetector(canvas.ids) if self._state_is_everything() else None
        self.recorder = Recorder(canvas.ids) if config.output_trajectory else None
        self.reason = torch.zeros_like(self.rows.index)
        self.spoiled = self.reason.bool()
        names = ("num_steps", "num_forwards", "num_reveals", "num_remasks", "num_edits", "num_revision_rounds")
        self.counts = {name: torch.zeros_like(self.rows.index) for name in names}
        # How many steps go by before the host looks which rows are done: looking makes a GPU wait.
        self.look_every = 1 if self.device.type == "cpu" else 8

    def run(self, streamer: BaseStreamer | None, progress_bar: bool) -> ReflectiveOutput:
        if streamer is not None:
            streamer.put(self.canvas.ids.cpu())
        progress = logging.tqdm(total=len(self.canvas.ids), desc="rows", disable=not progress_bar)
        step = 0
        while len(self.rows.index):
            self._step()
            step += 1
            if step % self.look_every == 0:
                progress.update(self._drop_done())
            if streamer is not None and hasattr(streamer, "put_draft"):
                streamer.put_draft(self.canvas.ids.cpu())
        progress.close()
        if streamer is not None:
            streamer.put(self.canvas.ids.cpu())
            streamer.end()
        return self._output()

    def _step(self) -> None:
        """Steps a to f for the unfinished rows."""
        rows = self.rows
        window = None if rows.whole else rows.window()
        # a. the model
        denoised = self.denoiser(rows, window)
        # b. proposals
        step = self._look(rows, window, denoised)
        # c. reveal, d. revise
        reveal = self.reveal(step)
        wanted = self.revise(step)
        revised = self.limits(
            wanted.fires & ~rows.closed[:, None],
            wanted.ranks,
            step.visible,
            look(rows.revisions, window),
            self.counts["num_remasks"][rows.index] + self.counts["num_edits"][rows.index],
        )
        # e. apply
        self._apply(rows, window, step, reveal, revised)
        # f. move on
        cut = self._advance(rows, step.masked, reveal, revised)
        if self.recorder is not None:
            done = reveal * REVEAL + revised * (REPLACE if self.revise.replaces else REMASK)
            self.recorder.add(self.canvas.ids, rows, window, done, cut)

    def _look(self, rows: Rows, window: Tensor | None, denoised: Denoised) -> DenoisingStep:
        """What the rules see: the active block of every row that is not done."""
        ids = look(rows.ids, window)
        blocks = look(rows.blocks, window, nothing=-1)
        active = (blocks <= rows.block[:, None]) if self.everywhere else (blocks == rows.block[:, None])
        active = active & (blocks >= 0) & ~rows.done[:, None]
        is_mask = ids == self.mask_token_id
        rank, keys, now = look(rows.rank, window), rows.keys, rows.steps
        draw = None if keys is None else lambda stream: uniforms(keys, now, rank, stream)
        proposal, best, best_logit, log_partition = self.sampler(denoised.logits, draw)
        return DenoisingStep(
            ids=ids,
            logits=denoised.logits,
            masked=active & is_mask,
            visible=active & ~is_mask,
            mask_token_id=self.mask_token_id,
            forbidden=self.sampler.forbidden,
            proposal=proposal,
            best=best,
            best_logit=best_logit,
            log_partition=log_partition,
            schedule=Schedule(rows.block_step, self._block_steps(rows), rows.block_masks, active.sum(-1)),
            policy=denoised.policy,
            delayed=self.ends if self.config.delay_eos else None,
            uniforms=draw,
            memory=self.memory,
        )

    def _apply(self, rows: Rows, window: Tensor | None, step: DenoisingStep, reveal: Tensor, revised: Tensor) -> None:
        replaces = self.revise.replaces
        instead = step.best if replaces else self.mask_token_id
        new = torch.where(reveal, step.proposal, torch.where(revised, instead, step.ids))
        rows.ids = put(rows.ids, window, new)
        rows.revisions = rows.revisions + put(torch.zeros_like(rows.ids), window, revised.long())
        self.memory = self.revise.note(step, reveal)
        wrong = ~step.log_partition.isfinite() & (step.masked | step.visible)
        self.spoiled[rows.index] |= wrong.any(-1)
        alive = ~rows.done
        rows.steps = rows.steps + alive
        additions = {
            "num_steps": alive,
            "num_forwards": alive * self.denoiser.forwards,
            "num_reveals": reveal.sum(-1),
            "num_edits" if replaces else "num_remasks": revised.sum(-1),
            "num_revision_rounds": alive & (~step.masked.any(-1) | self._past_schedule(step.schedule)),
        }
        for name, amount in additions.items():
            self.counts[name][rows.index] += amount

    def _advance(self, rows: Rows, masked: Tensor, reveal: Tensor, revised: Tensor) -> Tensor | None:
        """Decide for every row whether its block goes on, its next begins, or it is done; where a text was cut off."""
        had_mask, moved = masked.any(-1), revised.any(-1)
        has_mask = (masked & ~reveal).any(-1)
        if not self.revise.replaces:
            has_mask = has_mask | moved
        rows.quiet = torch.where(had_mask | moved, 0, rows.quiet + 1)
        rows.rounds = rows.rounds + ~had_mask
        rows.block_step = rows.block_step + 1
        settled = ~has_mask & self._at_rest(rows)
        if self.config.max_revision_rounds is not None:
            spent = rows.rounds >= self.config.max_revision_rounds
            self._close(rows, spent & ~has_mask & ~settled, MAX_REVISION_ROUNDS)
        if self.loops is not None:
            self._close(rows, self.loops.returned(rows.ids) & (has_mask | moved), LOOP)
        block_done = (settled | ~has_mask & rows.closed) & ~rows.done
        row_done = block_done & (rows.block >= rows.num_blocks - 1)
        if self.config.stop_at_eos:
            ended = block_done & self._has_end(rows)
            rows.reason = torch.where(ended & ~row_done, EOS, rows.reason)
            row_done = row_done | ended
        self._begin_blocks(rows, block_done & ~row_done)
        out_of_steps = (rows.steps >= self.max_steps[rows.index]) & ~row_done & ~rows.done
        rows.reason = torch.where(out_of_steps, MAX_STEPS, rows.reason)
        cut = self._cut_at_end(rows, row_done | out_of_steps) if self.config.stop_at_eos else None
        rows.done = rows.done | row_done | out_of_steps
        self.canvas.ids[rows.index] = rows.ids
        return cut

    def _past_schedule(self, schedule: Schedule) -> Tensor:
        """(b,) bool: the block's share of `steps` is spent, and what is masked now was reopened by a revision."""
        return (schedule.step >= schedule.steps) & self.reveal.follows_schedule

    def _block_steps(self, rows: Rows) -> Tensor:
        """(b,) steps that the reveal schedule has for each row's active block."""
        return self.schedule[rows.index].gather(-1, rows.block[:, None])[:, 0]

    def _at_rest(self, rows: Rows) -> Tensor:
        """(b,) bool: nothing has changed for long enough, or the schedule is over where the rules keep to one."""
        if self.config.revise is None:
            return torch.ones_like(rows.closed)
        if self.revise.ends_with_schedule:
            return rows.block_step >= self._block_steps(rows)
        return rows.quiet >= self.config.patience

    def _has_end(self, rows: Rows) -> Tensor:
        """(b,) bool: an end token stands among the editable tokens of the blocks so far."""
        assert self.ends is not None
        so_far = (rows.blocks >= 0) & (rows.blocks <= rows.block[:, None])
        return ((rows.ids[..., None] == self.ends).any(-1) & so_far).any(-1)

    def _close(self, rows: Rows, which: Tensor, reason: int) -> None:
        """No more revision for these rows' active block: what is still masked is revealed, and that is that."""
        rows.reason = torch.where(which & ~rows.closed & ~rows.done, reason, rows.reason)
        rows.closed = rows.closed | which

    def _begin_blocks(self, rows: Rows, which: Tensor) -> None:
        """These rows go on to their next block."""
        rows.block = rows.block + which
        for name in ("block_step", "quiet", "rounds"):
            setattr(rows, name, getattr(rows, name).masked_fill(which, 0))
        rows.closed = rows.closed & ~which
        in_block = (rows.blocks == rows.block[:, None]) & (rows.ids == self.mask_token_id)
        rows.block_masks = torch.where(which, in_block.sum(-1), rows.block_masks)
        for name, values in self.memory.items():
            self.memory[name] = values.masked_fill(which[:, None], torch.nan)
        if self.loops is not None:
            self.loops.forget(which)

    def _drop_done(self) -> int:
        """Go on without the rows that are done; how many they are."""
        rows = self.rows
        keep = ~rows.done
        finished, spoiled = torch.stack((rows.done.sum(), self.spoiled.sum())).tolist()
        if spoiled:
            raise ValueError(
                f"the model's scores of row {int(self.spoiled.nonzero()[0])} are not finite: check its weights, "
                "and load it in bfloat16 or float32 where it is in float16."
            )
        if finished:
            self.reason[rows.index] = rows.reason
            self.rows = rows.select(keep)
            self.memory = {name: values[keep] for name, values in self.memory.items()}
            self.denoiser.select(keep)
            if self.loops is not None:
                self.loops.select(keep)
        return finished

    def _cut_at_end(self, rows: Rows, which: Tensor) -> Tensor:
        """What follows the first end token of these rows' answers becomes padding: they are over. (b, N), where."""
        assert self.ends is not None and self.padding is not None
        is_end = (rows.ids[..., None] == self.ends).any(-1) & rows.editable
        cut = ((is_end.long().cumsum(-1) - is_end.long()) > 0) & rows.editable & which[:, None]
        rows.ids = torch.where(cut, self.padding, rows.ids)
        return cut

    def _state_is_everything(self) -> bool:
        """Whether the next step depends on the current state alone, so that a repeated state proves a loop."""
        return not (
            self.denoiser.use_history
            or self.config.temperature > 0
            or self.revise.remembers
            or self.revise.draws
            or self.limits.per_position is not None
            or self.limits.total is not None
            or self.reveal.follows_schedule
            # Replacing goes round without a mask: the bound ends that, after as many steps as LLaDA2.1 takes.
            or (self.revise.replaces and self.config.max_revision_rounds is not None)
        )

    def _output(self) -> ReflectiveOutput:
        reasons = [STOP_REASONS[reason] for reason in self.reason.tolist()]
        ended = torch.tensor([reason in ("converged", "eos") for reason in reasons], device=self.device)
        trajectory = None if self.recorder is None else self.recorder.trajectory(int(self.counts["num_steps"].max()))
        return ReflectiveOutput(
            sequences=self.canvas.ids, **self.counts, converged=ended, stop_reason=reasons, trajectory=trajectory
        )
