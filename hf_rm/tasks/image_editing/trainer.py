# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""RMTrainer for edits: one more term, unlikelihood of the mask where nothing is to be edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_weight
from ...corruption.pool import PoolRows
from ...training import RMTrainer
from ...training.unlikelihood import mask_unlikelihood


class ImageEditTrainer(RMTrainer):
    """
    [`RMTrainer`] with `unlikelihood_weight` times the sum of `-log(1 - p(M))` over the unedited canvas, under the same
    denominator as the cross-entropy. It is read from the scores where the cross-entropy is, a chunk at a time where
    the vocabulary is large.

    Args: as [`RMTrainer`], with an [`~hf_rm.tasks.image_editing.collator.EditCollator`] and
        unlikelihood_weight (`float`, defaults to 0.1): 0 turns the term off.

    Raises:
        ValueError: for a weight that is negative, or no finite number.
    """

    def __init__(self, *args: Any, unlikelihood_weight: float = 0.1, **kwargs: Any) -> None:
        check_weight("unlikelihood_weight", unlikelihood_weight)
        super().__init__(*args, **kwargs)
        self.unlikelihood_weight = unlikelihood_weight
        self._unedited: Tensor | None = None  # of the batch in hand, and the term that its forward found there
        self._term: Tensor | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The three losses of Reflective Masking and the fourth."""
        self._unedited = inputs["unlikelihood_mask"] if self.unlikelihood_weight else None
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._term is None:
            return found
        total, self._term = self.unlikelihood_weight * self._term, None
        term = self._normalise(total, inputs["labels"], num_items_in_batch)
        if isinstance(found, tuple):
            return found[0] + term, {**found[1], "loss": found[0] + term}
        return found + term

    def _forward(
        self,
        model: nn.Module,
        labels: Tensor,
        read: Callable[[Tensor, Any], tuple[Tensor, ...]],
        return_logits: bool,
        **inputs: Any,
    ) -> tuple[Any, list[Tensor]]:
        """As [`MaskedTrainer`], with the fourth loss in a column of its own, which stays here."""
        if self._unedited is None:
            return super()._forward(model, labels, read, return_logits, **inputs)
        unedited = self._unedited.flatten()

        def read_both(scores: Tensor, which: Any) -> tuple[Tensor, ...]:
            wanted = unedited[which].to(scores.device)
            term = mask_unlikelihood(scores[wanted], self.mask_token_id)
            column = torch.zeros(len(scores), dtype=term.dtype, device=term.device)
            # Before the rest, which ends with what has no gradient.
            return column.masked_scatter(wanted, term), *read(scores, which)

        outputs, (term, *columns) = super()._forward(model, labels, read_both, return_logits, **inputs)
        self._term = term.sum()
        return outputs, columns

    def _pool_inputs(self, rows: PoolRows) -> dict[str, Tensor]:
        # A row that lost its source has masks there: nothing is known to be unedited, and the term is left out.
        unedited = self.data_collator.unedited(rows.target, rows.editable)
        return {**super()._pool_inputs(rows), "unlikelihood_mask": unedited}
