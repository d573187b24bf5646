# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The auxiliary loss of in-place editing: do not re-mask what the edit leaves alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def unlikelihood(logits: Tensor, positions: Tensor, mask_token_id: int) -> Tensor:
    """
    `-log(1 - p(M))` summed over some positions, in float32, finite however sure the model is of the mask.

    Args:
        logits (`Tensor` of shape `(B, N, V)`): scores over the vocabulary.
        positions (`Tensor` of shape `(B, N)`, bool): where the mask is unwanted.
        mask_token_id (`int`): M.

    Example:
        >>> logits = torch.log(torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
        >>> round(unlikelihood(logits, torch.tensor([[True, False]]), mask_token_id=0).exp().item(), 4)
        4.0
    """
    return mask_unlikelihood(logits[positions], mask_token_id).sum()


def mask_unlikelihood(logits: Tensor, mask_token_id: int) -> Tensor:
    """`-log(1 - p(M))` of every row of scores (k, V), in float32: (k,), what [`unlikelihood`] sums."""
    scores = logits.float()
    others = torch.cat((scores[:, :mask_token_id], scores[:, mask_token_id + 1 :]), dim=-1).logsumexp(-1)
    # 1 - p(M) is the share of the other tokens: log sigmoid of their advantage over the mask.
    return F.softplus(scores[:, mask_token_id] - others)
