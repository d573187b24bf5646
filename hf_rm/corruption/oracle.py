# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The oracle: what a perfect model would do with a state, and which of the three losses teaches it."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100
REVEAL_LOSS, MASK_LOSS, KEEP_LOSS = 0, 1, 2


def oracle_labels(state: Tensor, target: Tensor, editable: Tensor, mask_token_id: int) -> Tensor:
    """
    Labels of Appendix C: the mask where a wrong token stands, the target's token everywhere else.

    Args:
        state, target (`Tensor` of shape `(B, N)`, long): the current and the true sequence.
        editable (`Tensor` of shape `(B, N)`, bool): positions that are supervised; the rest get -100.
        mask_token_id (`int`): the mask.

    Returns:
        `Tensor` of shape `(B, N)`, long.

    Example:
        >>> state, target = torch.tensor([[9, 0, 4]]), torch.tensor([[4, 4, 4]])
        >>> oracle_labels(state, target, torch.ones(1, 3, dtype=torch.bool), 0)
        tensor([[0, 4, 4]])
    """
    wrong = (state != mask_token_id) & (state != target)
    return torch.where(wrong, mask_token_id, target).masked_fill(~editable, IGNORE_INDEX)


def loss_parts(state: Tensor, labels: Tensor, mask_token_id: int) -> Tensor:
    """
    Which loss each position belongs to: (B, N) long of REVEAL_LOSS (a mask to fill), MASK_LOSS (a wrong token to
    re-mask), KEEP_LOSS (a right token to keep), or -100 where there is no label.

    Example:
        >>> loss_parts(torch.tensor([[9, 0, 4]]), torch.tensor([[0, 4, 4]]), 0)
        tensor([[1, 0, 2]])
    """
    parts = torch.where(labels == mask_token_id, MASK_LOSS, KEEP_LOSS)
    parts = torch.where(state == mask_token_id, REVEAL_LOSS, parts)
    return parts.masked_fill(labels == IGNORE_INDEX, IGNORE_INDEX)
