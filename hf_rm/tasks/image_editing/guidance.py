# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Guidance by two conditions, the instruction and the source picture, each with a scale of its own:

    cond + s_t (cond - uncond_text) + s_i (cond - uncond_image)

`uncond_text` has lost the instruction and keeps the source; `uncond_image` has lost the source and keeps the
instruction. The canvas is the same in all three, and each has a history of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...generation_config_rm import ReflectiveGenerationConfig
from ...generation_denoiser_rm import Denoised
from ...generation_output_rm import ReflectiveOutput
from ...generation_rm import ReflectiveGenerationMixin
from ...history import HistoryState
from .protocols import Conditions, Layout


def guided(cond: Tensor, others: Sequence[tuple[Tensor, float]]) -> Tensor:
    """
    The formula above, in float32: conditional scores, and those of each other branch with its scale.

    Example:
        >>> one, half, none = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.0])
        >>> guided(one, [(half, 2.5), (none, 4.0)])
        tensor([6.2500])
    """
    scores = cond.float()
    return sum((scale * (scores - other.float()) for other, scale in others), start=scores)


class TwoScaleGuidance(ReflectiveGenerationMixin, nn.Module):
    """
    A model and its conditions, to be decoded as a model is: `generate_reflective` takes the guided scores for its own.

    Args:
        model ([`RMForMaskedDiffusion`]): the network.
        conditions ([`Conditions`]): the layout of its sequences.
        text_scale (`float`, defaults to 2.5): s_t; with 0 its branch is not run.
        image_scale (`float`, defaults to 4.0): s_i; with 0 its branch is not run.

    Raises:
        ValueError: for scales that are no finite numbers, a model whose attention goes by blocks, and, when decoding,
            a `guidance_scale` beside these.
    """

    def __init__(self, model: Any, conditions: Conditions, text_scale: float = 2.5, image_scale: float = 4.0) -> None:
        for name, scale in (("text_scale", text_scale), ("image_scale", image_scale)):
            if not torch.tensor(float(scale)).isfinite():
                raise ValueError(f"`{name}` is {scale!r}: pass a finite number, 0 for no guidance by it.")
        if getattr(model.config, "attention_block_length", None) is not None:
            raise ValueError("`model` attends by blocks, and pictures are edited as a whole: pass another model.")
        super().__init__()
        self.model = model
        self.conditions = conditions
        self.text_scale, self.image_scale = float(text_scale), float(image_scale)
        self.config = model.config
        self.generation_config = model.generation_config

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device

    @property
    def forwards_per_step(self) -> int:
        """Branches that are run."""
        return 1 + (self.text_scale != 0) + (self.image_scale != 0)

    def generate_reflective(self, *args: Any, **kwargs: Any) -> ReflectiveOutput:
        """As [`ReflectiveGenerationMixin.generate_reflective`]; `num_forwards` counts every branch."""
        output = super().generate_reflective(*args, **kwargs)
        assert output.num_forwards is not None
        output.num_forwards = output.num_forwards * self.forwards_per_step
        return output

    def _resolve_generation_config(
        self, generation_config: ReflectiveGenerationConfig | None, changes: dict[str, Any]
    ) -> ReflectiveGenerationConfig:
        config = super()._resolve_generation_config(generation_config, changes)
        if config.guidance_scale != 1.0:
            raise ValueError(
                f"`guidance_scale` is {config.guidance_scale}, beside text_scale and image_scale: leave it at 1."
            )
        return config

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
        branches = self._branches(input_ids, attention_mask)
        # One memory that the loop keeps and selects rows of: the branches' side by side.
        width = len(branches)
        memories: list[HistoryState | None] = [None] * width
        if history is not None:
            memories = [HistoryState(part, history.steps) for part in history.accumulator.chunk(width, dim=-1)]
        results = [
            self.model._denoise(ids, mask, editable_mask, memory, use_history, positions, **inputs)
            for (ids, mask, _), memory in zip(branches, memories, strict=True)
        ]
        scales = [scale for _, _, scale in branches]
        logits = guided(
            results[0].logits, [(r.logits, scale) for r, scale in zip(results[1:], scales[1:], strict=True)]
        )
        after = [result.history for result in results]
        if after[0] is None:
            return Denoised(logits)
        joined = torch.cat([memory.accumulator for memory in after if memory is not None], dim=-1)
        return Denoised(logits, HistoryState(joined, after[0].steps))

    def _branches(self, ids: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor | None, float]]:
        """Ids, attention mask and scale of what is run; the conditional one first."""
        branches: list[tuple[Tensor, Tensor | None, float]] = [(ids, mask, 1.0)]
        if self.text_scale:
            branches.append((*self.conditions.without_text(ids, mask), self.text_scale))
        if self.image_scale:
            branches.append((*self.conditions.without_source(ids, mask), self.image_scale))
        return branches


class KeptSource(TwoScaleGuidance):
    """
    A model that leaves a place of the canvas as the source has it unless it is surer of something else: a token's
    share p(token) / (p(token) + p(source's token)) has to be above a threshold, as a mask's has to in revision.

    What a regenerating model is compared with at equal coverage.

    Args:
        model, layout, text_scale, image_scale: as [`TwoScaleGuidance`], which it is beside this.
        threshold (`float`): from 0.5 (nothing is preferred) to below 1.

    Raises:
        ValueError: as [`TwoScaleGuidance`], and for a threshold outside [0.5, 1).
    """

    def __init__(
        self, model: Any, layout: Layout, threshold: float, text_scale: float = 0.0, image_scale: float = 0.0
    ) -> None:
        if not 0.5 <= threshold < 1.0:
            raise ValueError(f"`keep_threshold` is {threshold!r}: pass a share from 0.5 (off) to below 1.")
        super().__init__(model, layout, text_scale, image_scale)
        self.layout = layout
        self.bonus = torch.tensor(threshold, dtype=torch.float64).logit().item()

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
        found = super()._denoise(input_ids, attention_mask, editable_mask, history, use_history, positions, **inputs)
        tokens = input_ids.clone()
        tokens[:, self.layout.canvas] = input_ids[:, self.layout.source]
        bonus = self.bonus * editable_mask.float()
        if positions is not None:  # one past the end stands for none: its scores mean nothing
            places = positions.clamp(max=tokens.shape[1] - 1)
            tokens, bonus = tokens.gather(1, places), bonus.gather(1, places)
        return replace(found, logits=found.logits.scatter_add(-1, tokens[..., None], bonus[..., None]))
