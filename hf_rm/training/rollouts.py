# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Rollouts for reinforcement learning: the decoding loop with every choice drawn, and all of them written down.

    masks             tokens from the model's distribution at a temperature, mask and reserved ids left out
    RemeDi            K_n positions without replacement by Plackett-Luce: the K_n highest of h + Gumbel noise
    RM                each visible token is re-masked with probability sigmoid((l(M) - l(x)) / temperature), which is
                      Eq. 1 as the temperature goes to 0

Which masks of a schedule are revealed is ranked by the best token, not by the one that was drawn: given the state it
is then no matter of chance, and the tokens that appear are all that has a probability.

Shapes: B rows, S steps, N positions of the canvas, b unfinished rows, A positions of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ..generation_canvas_rm import Canvas
from ..generation_config_rm import ReflectiveGenerationConfig
from ..generation_denoiser_rm import Denoised
from ..generation_output_rm import ReflectiveOutput
from ..generation_revision_rm import ReflectiveRevision, Revision
from ..generation_rm import _check_policy, _DenoisingLoop, begin_canvas
from ..generation_rows_rm import Rows, put
from ..generation_rules_rm import DenoisingStep, RevealRule, remask_advantage
from ..generation_sampler_rm import end_tokens

NO_CHOICE, TOKEN, REVISION = 0, 1, 2


@dataclass
class Trajectory:
    """
    What happened in a rollout, batch first, so that rows can be shuffled and split.

    Attributes:
        states (`Tensor` (B, S + 1, N), long): the canvas before the first step and after each one.
        choices (`Tensor` (B, S, N), int8): TOKEN where a token was drawn for a mask, REVISION where a visible token
            was kept or re-masked by chance.
        order (`Tensor` (B, S, N), int16): place of each position of the active block in the draw of positions; -1
            elsewhere, and everywhere without a learned policy.
        block (`Tensor` (B, S), long): the active block, -1 once a row is done.
        blocks (`Tensor` (B, N), long): block of each editable position, -1 elsewhere.
        editable, real (`Tensor` (B, N), bool): what may change; what is not padding.
        ended (`Tensor` (B,), bool): the row came to its end, not to a bound.
    """

    states: Tensor
    choices: Tensor
    order: Tensor
    block: Tensor
    blocks: Tensor
    editable: Tensor
    real: Tensor
    ended: Tensor

    def tensors(self, prefix: str = "rollout_") -> dict[str, Tensor]:
        """The fields by name, for a batch of a trainer."""
        return {prefix + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, batch: dict[str, Any], prefix: str = "rollout_") -> Trajectory:
        """Undo [`Trajectory.tensors`]."""
        return cls(**{field.name: batch[prefix + field.name] for field in fields(cls)})

    def num_steps(self) -> Tensor:
        """(B,) steps that each row took."""
        return (self.block >= 0).sum(-1)

    def padded(self, steps: int) -> Trajectory:
        """With more steps, in which nothing happens."""
        more = steps - self.block.shape[1]
        if more <= 0:
            return self
        last = self.states[:, -1:].expand(-1, more, -1)
        return replace(
            self,
            states=torch.cat((self.states, last), dim=1),
            choices=F.pad(self.choices, (0, 0, 0, more)),
            order=F.pad(self.order, (0, 0, 0, more), value=-1),
            block=F.pad(self.block, (0, more), value=-1),
        )


@torch.no_grad()
def roll_out(
    model: Any,
    config: ReflectiveGenerationConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    editable_mask: Tensor | None = None,
    greedy_last_step: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> tuple[ReflectiveOutput, Trajectory]:
    """
    Decode a batch, drawing every choice.

    Args:
        model (`RMForMaskedDiffusion`): RM or RemeDi.
        config ([`ReflectiveGenerationConfig`]): checked by [`check_rollout_config`].
        input_ids, attention_mask, editable_mask: as for `generate_reflective`.
        greedy_last_step (`bool`): with a learned policy, take the best tokens in the last step of each block.
        generator (`torch.Generator` or one a row, *optional*): seeds each row's numbers; by default torch's own.

    Returns:
        the output of `generate_reflective`, and the [`Trajectory`].

    Raises:
        ValueError: for arguments that cannot work, before the first forward pass.
    """
    check_rollout_config(model, config)
    canvas, mask_token_id = begin_canvas(model, config, input_ids, attention_mask, editable_mask)
    config = config.updated(output_trajectory=True)
    loop = _Rollout(model, config, canvas, mask_token_id, generator, greedy_last_step)
    output = loop.run(None, False)
    return output, loop.trajectory(output)


def left_padded(
    token_ids: Sequence[Sequence[int]],
    editable_masks: Sequence[Sequence[bool]] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """
    Rows of unequal length as a batch: ids, attention mask (None where nothing is padded), editable mask (if given).

    Raises:
        ValueError: for a row with a mask of another length: padded on the left, it would mark other tokens.

    Example:
        >>> left_padded([[5, 6], [7]])
        (tensor([[5, 6],
                [0, 7]]), tensor([[1, 1],
                [0, 1]]), None)
    """

    for number, (ids, mask) in enumerate(zip(token_ids, editable_masks or token_ids, strict=True)):
        if len(ids) != len(mask):
            raise ValueError(
                f"row {number} has {len(ids)} ids and an editable mask of {len(mask)}: pass one entry a token."
            )

    def pad(rows: Sequence[Sequence[int]]) -> Tensor:
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_side="left").to(device)

    real = pad([[1] * len(ids) for ids in token_ids])
    editable = None if editable_masks is None else pad(editable_masks).bool()
    return pad(token_ids), None if bool(real.all()) else real, editable


def written_answers(sequences: Tensor, editable: Tensor, ends: Iterable[int] = ()) -> list[list[int]]:
    """
    What stands at the editable positions of each row, up to and with its first end token.

    Example:
        >>> written_answers(torch.tensor([[3, 5, 9, 9]]), torch.tensor([[False, True, True, True]]), [9])
        [[5, 9]]
    """
    found, last = [], set(ends)
    for row, mask in zip(sequences, editable, strict=True):
        answer = row[mask].tolist()
        end = next((place for place, token in enumerate(answer) if token in last), len(answer))
        found.append(answer[: end + 1])
    return found


def stop_tokens(model: Any, config: ReflectiveGenerationConfig) -> list[int]:
    """The tokens at which a decoding run stops, none where it does not."""
    ends = end_tokens(model, config, torch.device("cpu")) if config.stop_at_eos else None
    return [] if ends is None else ends.tolist()


def check_rollout_config(model: Any, config: ReflectiveGenerationConfig) -> None:
    """
    Raise a ValueError for decoding settings under which the probability of a trajectory is not known.

    Example:
        >>> from hf_rm import ReflectiveGenerationConfig
        >>> check_rollout_config(None, ReflectiveGenerationConfig(preset="llada"))
        Traceback (most recent call last):
        ...
        ValueError: `temperature` is 0.0: a rollout draws its tokens, pass a temperature above 0.
    """
    if not config.temperature > 0:
        raise ValueError(
            f"`temperature` is {config.temperature}: a rollout draws its tokens, pass a temperature above 0."
        )
    if config.revise not in ("reflective", "policy", None):
        raise ValueError(
            f'`revise` is {config.revise!r}, a rule without a probability: pass "reflective" (RM), "policy" (RemeDi) '
            "or None."
        )
    if config.reveal == "remdm":
        raise ValueError('`reveal` is "remdm", which is trained by nothing: pass another rule.')
    off: dict[str, Any] = {"top_k": None, "top_p": None, "guidance_scale": 1.0, "max_remask_ratio": None}
    off |= {"max_remasks_per_position": None, "max_remasks": None}
    for name, value in off.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"`{name}` is {getattr(config, name)}: it changes what is drawn in a way that has no gradient. Leave "
                "it out of rollouts."
            )
    if config.revise_threshold is not None:
        raise ValueError(f"`revise_threshold` is {config.revise_threshold}: a drawn revision has none, leave it out.")
    _check_policy(model, config)
    if config.revise_scope == "all" and model.config.history_scope == "editable":
        if model.config.history and model.config.attention_block_length is not None:
            raise ValueError(
                '`revise_scope` is "all" with a memory that begins with each block: pass revise_scope="block".'
            )


class _DrawnRevision(ReflectiveRevision):
    """Eq. 1 as a probability: re-mask with the share that the mask has of the two atoms."""

    draws = True

    def __init__(self, config: ReflectiveGenerationConfig) -> None:
        super().__init__(config)
        self.temperature = float(config.temperature)

    def __call__(self, step: DenoisingStep) -> Revision:
        assert step.uniforms is not None
        advantage = remask_advantage(step.ids, step.logits, step.mask_token_id).float() / self.temperature
        return Revision((step.uniforms(1) < advantage.sigmoid()) & step.visible, -advantage)


class _RankedByBest(RevealRule):
    """Another rule, which sees the best tokens in place of the drawn ones."""

    def __init__(self, rule: RevealRule) -> None:
        self.rule = rule
        self.follows_schedule, self.draws = rule.follows_schedule, rule.draws  # type: ignore[misc]
        self.ends_with_schedule = rule.ends_with_schedule  # type: ignore[misc]

    def __call__(self, step: DenoisingStep) -> Tensor:
        return self.rule(replace(step, proposal=step.best))


class _Rollout(_DenoisingLoop):
    """The loop, drawing and taking notes."""

    def __init__(
        self,
        model: Any,
        config: ReflectiveGenerationConfig,
        canvas: Canvas,
        mask_token_id: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        greedy_last_step: bool,
    ) -> None:
        super().__init__(model, config, canvas, mask_token_id, generator)
        self.greedy_last_step = greedy_last_step
        self.reveal = _RankedByBest(self.reveal)
        if config.revise == "reflective":
            self.revise = _DrawnRevision(config)
        self.notes: list[tuple[Tensor, Tensor, Tensor]] = []

    def _look(self, rows: Rows, window: Tensor | None, denoised: Denoised) -> DenoisingStep:
        step = super()._look(rows, window, denoised)
        if step.policy is not None and self.config.reveal == "policy":
            assert step.uniforms is not None
            # The K highest of h plus Gumbel noise, in falling order, are a Plackett-Luce draw. (A number just below 1
            # may have been rounded to it.)
            uniform = step.uniforms(1).clamp(max=1 - 2**-24)
            step = replace(step, policy=step.policy.float() - (-uniform.log()).log())
        if self.greedy_last_step:
            step = replace(step, proposal=torch.where(self._last(step)[:, None], step.best, step.proposal))
        return step

    def _last(self, step: DenoisingStep) -> Tensor:
        """(b,) bool: the last step of the active block in a learned policy's schedule, in which it keeps all of it."""
        return (step.schedule.step == step.schedule.steps - 1) & (self.config.reveal == "policy")

    def _apply(self, rows: Rows, window: Tensor | None, step: DenoisingStep, reveal: Tensor, revised: Tensor) -> None:
        drawn = reveal & ~(self._last(step)[:, None] & self.greedy_last_step)
        choices = drawn * TOKEN
        if self.config.revise == "reflective":
            choices = choices + (step.visible & ~rows.closed[:, None]) * REVISION
        order = torch.full_like(step.ids, -1)
        if step.policy is not None and self.config.reveal == "policy":
            member = step.masked | step.visible
            place = (
                step.policy.masked_fill(~member, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(-1)
            )
            order = torch.where(member, place, -1)
        whole = torch.zeros_like(self.canvas.ids)
        block = torch.full_like(whole[:, 0], -1)
        block[rows.index] = torch.where(rows.done, -1, rows.block)
        noted = [whole.to(torch.int8), torch.full_like(whole, -1, dtype=torch.int16)]
        for values, new in zip(noted, (choices, order), strict=True):
            values[rows.index] = put(values[rows.index], window, new.to(values.dtype))
        self.notes.append((noted[0], noted[1], block))
        super()._apply(rows, window, step, reveal, revised)

    def trajectory(self, output: ReflectiveOutput) -> Trajectory:
        """All notes, batch first."""
        assert output.trajectory is not None and output.converged is not None
        states = output.trajectory.states.transpose(0, 1).contiguous()
        choices, order, block = (torch.stack(notes, dim=1) for notes in zip(*self.notes, strict=True))
        steps, canvas = states.shape[1] - 1, self.canvas
        real = torch.ones_like(canvas.editable) if canvas.attention_mask is None else canvas.attention_mask.bool()
        return Trajectory(
            states=states,
            choices=choices[:, :steps],
            order=order[:, :steps],
            block=block[:, :steps],
            blocks=canvas.blocks,
            editable=canvas.editable,
            real=real,
            ended=output.converged,
        )
