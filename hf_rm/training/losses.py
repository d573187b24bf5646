# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The three losses of Reflective Masking, and their bookkeeping."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..corruption.oracle import IGNORE_INDEX, loss_parts

MAX_LOSS = -math.log(1e-8)
"""The paper clips probabilities at 1e-8: no position reports more than this, 18.42."""

LARGE_LOGITS = 2**26
"""Scores of a batch, positions times vocabulary, above which the trainers read them in chunks by themselves."""
CHUNK_LOGITS = 2**24
"""Scores of such a chunk: 67 MB in float32; 132 rows of LLaDA's vocabulary."""

CLIPS = ("reported", "hard", "none")
PART_NAMES = ("reveal", "mask", "keep")


def clipped_cross_entropy(logits: Tensor, labels: Tensor, clip: str = "reported") -> Tensor:
    """
    Cross-entropy of every position, (K, V) and (K,) to (K,) in float32; 0 where the label is -100.

    A pretrained head gives the mask less than 1e-8 at most visible positions. The paper's clamp has no gradient just
    there, so that the mask loss would never start. With `clip="reported"` the value is clamped and the gradient is
    that of the unclamped loss; `"hard"` is the paper's letter; `"none"` clamps nothing.

    Raises:
        ValueError: for an unknown `clip`.

    Example:
        >>> logits = torch.tensor([[0.0, -25.0]], requires_grad=True)
        >>> loss = clipped_cross_entropy(logits, torch.tensor([1])).sum()
        >>> loss.backward(); round(loss.item(), 2), logits.grad[0, 1].item()
        (18.42, -1.0)
    """
    if clip not in CLIPS:
        raise ValueError(f"`loss_clip` is {clip!r}: pass one of {', '.join(map(repr, CLIPS))}.")
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    if clip == "none":
        return loss
    clamped = loss.clamp(max=MAX_LOSS)
    return clamped if clip == "hard" else loss + (clamped - loss).detach()


def chunk_rows(setting: int | None, positions: int, vocab_size: int) -> int:
    """
    Rows of scores that exist at a time, 0 for all: the argument `loss_chunk_rows`, or by size where it is None.

    Example:
        >>> chunk_rows(None, 8 * 1024, 126464), chunk_rows(None, 64 * 81, 10), chunk_rows(0, 8 * 1024, 126464)
        (132, 0, 0)
    """
    if setting is not None:
        return setting
    return max(1, CHUNK_LOGITS // vocab_size) if positions * vocab_size > LARGE_LOGITS else 0


class LossParts:
    """
    Running sums of the reveal, mask and keep losses and accuracies, kept on the device: no step waits for them.

    Example:
        >>> parts = LossParts()
        >>> state, labels = torch.tensor([[0, 2]]), torch.tensor([[1, 2]])
        >>> logits = torch.tensor([[[0.0, 9, 0], [0, 0, 9]]])
        >>> parts.add(state, labels, logits.argmax(-1), clipped_cross_entropy(logits[0], labels[0]), 0)
        >>> sorted(parts.pop())
        ['accuracy_keep', 'accuracy_reveal', 'loss_keep', 'loss_reveal']
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    @torch.no_grad()
    def add(self, state: Tensor, labels: Tensor, best: Tensor, loss: Tensor, mask_token_id: int) -> None:
        """Count a batch: (B, N) state, labels and most probable ids, and as many losses, a position each."""
        parts = loss_parts(state, labels, mask_token_id).flatten()
        correct = (best.reshape(labels.shape) == labels).flatten()
        rows = torch.stack((loss.detach().flatten(), correct.float(), torch.ones_like(parts, dtype=loss.dtype)))
        # Unsupervised positions go to a fourth bin, which nobody reads.
        sums = rows.new_zeros(3, 4).index_add_(1, torch.where(parts < 0, 3, parts), rows)[:, :3]
        self.sums = sums if self.sums is None else self.sums + sums

    def pop(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """
        Means since the last call, and start again. `reduce` sums the (3, 3) tensor over processes.

        The mean of a part without positions does not exist and is left out.
        """
        if self.sums is None:
            return {}
        losses, correct, counts = reduce(self.sums).tolist()
        self.sums = None
        logs = {}
        for name, loss, right, count in zip(PART_NAMES, losses, correct, counts, strict=True):
            if count:
                logs[f"loss_{name}"] = loss / count
                logs[f"accuracy_{name}"] = right / count
        return logs


def right_context(input_ids: Tensor, labels: Tensor, mask_token_id: int) -> Tensor:
    """
    (B, N) weights: 0 at the masks of a row that shows a wrong token, elsewhere 1.

    What such a mask should become is what the whole sequence asks for, whatever stands beside it: to be learnt from
    there is mistrust of the page, and less of a mind of its own. A row's wrong tokens are to be taken back first.

    Example:
        >>> import torch
        >>> state, labels = torch.tensor([[0, 5, 6], [0, 5, 6]]), torch.tensor([[4, 5, 0], [4, 5, 6]])
        >>> right_context(state, labels, mask_token_id=0)
        tensor([[0., 1., 1.],
                [1., 1., 1.]])
    """
    masked = input_ids == mask_token_id
    wrong = (labels == mask_token_id) & ~masked
    return torch.where(masked & wrong.any(-1, keepdim=True), 0.0, 1.0)


def token_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """
    Probability of one token a position, (K, V) and (K,) to (K,) in float32.

    Example:
        >>> token_probability(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.5000])
    """
    return (-F.cross_entropy(logits.float(), tokens, reduction="none")).exp()


def reveal_weights(input_ids: Tensor, labels: Tensor, mask_token_id: int) -> Tensor:
    """
    (B, N) weights: at a mask the inverse of its row's share of masks among the labelled positions, elsewhere 1.

    For a row that is masked at rate t these are the 1 / t of masked diffusion's bound, with the rate as it came out.

    Example:
        >>> import torch
        >>> reveal_weights(torch.tensor([[5, 0, 6, 7]]), torch.tensor([[-100, 4, 6, 7]]), mask_token_id=0)
        tensor([[1., 3., 1., 1.]])
    """
    labelled = labels != IGNORE_INDEX
    masked = labelled & (input_ids == mask_token_id)
    inverse = labelled.sum(-1, keepdim=True) / masked.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(masked, inverse, 1.0)
