# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""RMTrainer for edits: one more term, unlikelihood of the mask where nothing is to be edited."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...corruption.pool import PoolRows
from ...training import RMTrainer
from ...training.unlikelihood import unlikelihood


class ImageEditTrainer(RMTrainer):
    """
    [`RMTrainer`] with `unlikelihood_weight` times the sum of `-log(1 - p(M))` over the unedited canvas, under the same
    denominator as the cross-entropy.

    Args: as [`RMTrainer`], with an [`~hf_rm.tasks.image_editing.collator.EditCollator`] and
        unlikelihood_weight (`float`, defaults to 0.1): 0 turns the term off.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(self, *args: Any, unlikelihood_weight: float = 0.1, **kwargs: Any) -> None:
        if unlikelihood_weight < 0:
            raise ValueError(f"`unlikelihood_weight` is {unlikelihood_weight!r}: pass 0 (off) or more.")
        super().__init__(*args, **kwargs)
        self.unlikelihood_weight = unlikelihood_weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The three losses of Reflective Masking and the fourth."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.unlikelihood_weight:
            positions = inputs["unlikelihood_mask"]
            total = self.unlikelihood_weight * unlikelihood(outputs["logits"], positions, self.mask_token_id)
            loss = loss + self._normalise(total, inputs["labels"], num_items_in_batch)
        return (loss, {**outputs, "loss": loss}) if return_outputs else loss

    def _pool_inputs(self, rows: PoolRows) -> dict[str, Tensor]:
        layout = self.data_collator.layout
        unedited = torch.zeros_like(rows.editable)
        # A row that lost its source has masks there: nothing is known to be unedited, and the term is left out.
        same = rows.target[:, layout.canvas] == rows.target[:, layout.source]
        unedited[:, layout.canvas] = same & rows.editable[:, layout.canvas]
        return {**super()._pool_inputs(rows), "unlikelihood_mask": unedited}
