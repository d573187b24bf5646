# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
A beginning for the head's mask row in closed form.

A head that was never asked for the mask scores it some twenty nats below everything else: a training that starts
there spends its first hundreds of steps on raising one row. What the row has to tell apart, wrong tokens from right
ones, is mostly written in the hidden states already, so that ridge regression finds it without a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..corruption import IGNORE_INDEX
from ..heads_rm import LogitsReader
from ..history import HistorySegments
from ..modes import evaluating

MARGIN = 3.0
"""Nats that the mask should be above a wrong token, and below a right one."""
RIDGE = 1e-3
"""Of the regression, relative to the mean square of a hidden state's entries."""


@torch.no_grad()
def fit_mask_row(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    chunk_rows: int = 1024,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> None:
    """
    Set the mask's row of the head, and its bias, so that Eq. 1 already tells wrong tokens from right ones.

    The row solves a least-squares problem over the labelled positions: its score should be 3 nats above that of a
    visible wrong token, 3 below that of a visible right one, and 3 below the right token's at a mask. Nothing else
    changes. Every process that shares the weights has to call it.

    Args:
        model ([`RMForMaskedDiffusion`]): its head is trained and is not its embedding.
        batches: of [`RMDataCollator`], on the model's device.
        chunk_rows (`int`): positions whose scores exist at a time.
        reduce (`Callable`): sums a tensor over processes.

    Raises:
        ValueError: for a head that is frozen (an adapter could not save the row), is the embedding (what the model
            reads at a mask would change with it), or is not known to be all that makes the scores.
    """
    head = own_head(model)
    width = head.weight.shape[1] + 1  # and a constant, for the bias
    moments = torch.zeros(width, width + 1, dtype=torch.float64, device=head.weight.device)
    read: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    try:
        with evaluating(model):
            for batch in batches:
                hidden, wanted = _wanted_scores(model, batch, chunk_rows, read)
                moments += hidden.T @ torch.cat((hidden, wanted[:, None]), 1)
    finally:
        handle.remove()
    _write_row(head, model.config.mask_token_id, reduce(moments))


def own_head(model: Any) -> nn.Linear:
    """The head, if its mask row is the model's to set; raises as [`fit_mask_row`]."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if any(not parameter.requires_grad for parameter in head.parameters()):
        raise ValueError("`mask_row_batches` is set, but the head is not trained: leave it out for adapters.")
    if head.weight is embedding.weight:
        raise ValueError("`mask_row_batches` is set, but the head is the embedding: leave it out.")
    return head


def _wanted_scores(model: Any, batch: dict[str, Tensor], chunk_rows: int, read: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the head read at the labelled positions (K, d + 1), with a 1 behind, and the mask's wanted scores (K,)."""
    mask_token_id = model.config.mask_token_id
    rows = (batch["labels"].flatten() != IGNORE_INDEX).nonzero()[:, 0]
    state, labels = batch["input_ids"].flatten()[rows], batch["labels"].flatten()[rows]
    shown = torch.where(state == mask_token_id, labels, state)
    margin = torch.where((labels == mask_token_id) & (state != mask_token_id), MARGIN, -MARGIN)

    def wanted(scores: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        hidden = read.pop().double()
        if hidden.shape[:-1] != scores.shape[:-1]:
            raise ValueError(
                f"`mask_row_batches` is set, but the scores of {type(model.model).__name__} are more than its head's "
                "output: leave it out."
            )
        score = scores.double().gather(1, shown[part].to(scores.device)[:, None])[:, 0]
        constant = hidden.new_ones(len(hidden), 1)
        return torch.cat((hidden, constant), 1), score + margin[part].to(scores.device)

    outputs = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        editable_mask=batch["editable_mask"],
        history=HistorySegments(batch["history_ids"], batch["history_lags"]),
        logits_reader=LogitsReader(rows, wanted, chunk_rows),
    )
    hidden, scores = outputs.read
    return hidden, scores


def _write_row(head: nn.Linear, mask_token_id: int, moments: Tensor) -> None:
    """Solve the normal equations (d + 1, d + 2); a head without bias is solved without the constant."""
    bias = getattr(head, "bias", None)
    size = moments.shape[0] if bias is not None else moments.shape[0] - 1
    gram, target = moments[:size, :size], moments[:size, -1]
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(size, dtype=gram.dtype, device=gram.device)
    row = torch.linalg.solve(gram + ridge, target)
    head.weight[mask_token_id] = row[: head.weight.shape[1]].to(head.weight.dtype)
    if bias is not None:
        bias[mask_token_id] = row[-1].to(bias.dtype)
