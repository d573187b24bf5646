# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""How well a model's confidence in a visible token tells right ones from wrong ones: the area under the ROC curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..generation_rules_rm import remask_advantage
from .statistics import Interval


def auroc(scores: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """
    The probability that a right token's score is above a wrong one's, ties counted half (Mann and Whitney's U).

    Args:
        scores: One a token, shape (n,).
        right: Whether the token is right, shape (n,).

    Returns:
        The area; nan where all tokens are right, or all wrong.

    Raises:
        ValueError: For shapes that differ.

    Example:
        >>> auroc([0.9, 0.2, 0.6, 0.6], [True, False, True, False])
        0.875
    """
    values, truth = _checked(scores, right)
    return _area(_Ranked(values, truth, np.zeros(len(values), dtype=np.int64)), np.ones(1))


def auroc_interval(
    scores: npt.ArrayLike, right: npt.ArrayLike, rows: npt.ArrayLike, seed: int = 0, resamples: int = 1000
) -> Interval:
    """
    [`auroc`] with a 95 % interval by resampling whole rows: tokens of one answer are right or wrong together.

    Args:
        scores: One a token, shape (n,).
        right: Whether the token is right, shape (n,).
        rows: Which answer the token is of, integers of shape (n,).
        seed: Of the resampling.
        resamples: How many; their quantiles are the interval's ends.

    Returns:
        The area and its interval, over as many tokens.

    Raises:
        ValueError: For shapes that differ.

    Example:
        >>> auroc_interval([2.0, 1.0, 2.0, 1.0], [True, False, True, False], [0, 0, 1, 1])[:3]
        (1.0, 1.0, 1.0)
    """
    values, truth = _checked(scores, right)
    names, number = np.unique(np.asarray(rows), return_inverse=True)
    if number.shape != values.shape:
        raise ValueError(f"rows has shape {number.shape} where scores has {values.shape}; pass one row a token.")
    ranked = _Ranked(values, truth, number)
    area = _area(ranked, np.ones(len(names)))
    if math.isnan(area):
        return Interval(math.nan, math.nan, math.nan, len(values))
    generator = np.random.default_rng(seed)
    drawn = [
        _area(ranked, np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names)).astype(float))
        for _ in range(resamples)
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(area, min(float(low), area), max(float(high), area), len(values))


class _Ranked:
    """Tokens in ascending order of their scores: whose they are, whether they are right, where runs of ties begin."""

    def __init__(self, scores: npt.NDArray[Any], right: npt.NDArray[Any], rows: npt.NDArray[Any]) -> None:
        order = scores.argsort(kind="stable")
        self.right, self.rows, ascending = right[order], rows[order], scores[order]
        self.first = np.flatnonzero(np.concatenate(([True], ascending[1:] != ascending[:-1]))) if len(order) else order


def _area(ranked: _Ranked, weights: npt.NDArray[np.float64]) -> float:
    """The area where each row counts as often as `weights` says."""
    each = weights[ranked.rows]
    if not len(each):
        return math.nan
    right = np.add.reduceat(each * ranked.right, ranked.first)
    wrong = np.add.reduceat(each * ~ranked.right, ranked.first)
    below = wrong.cumsum() - wrong
    pairs = right.sum() * wrong.sum()
    return float((right * (below + wrong / 2)).sum() / pairs) if pairs else math.nan


def _checked(scores: npt.ArrayLike, right: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores has shape {values.shape} and right {truth.shape}; pass one of each a token, (n,).")
    return values, truth


@torch.no_grad()
def token_confidence(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    editable_mask: Tensor | None = None,
    batch_size: int = 100,
) -> Tensor:
    """
    A model's confidence in each visible token of texts without a past.

    Args:
        model: With a learned policy its h; otherwise the logit of keeping by Eq. 1's two atoms, l(x) - l(M).
        input_ids (`Tensor` (B, N)): what is visible.
        attention_mask, editable_mask (`Tensor` (B, N), *optional*): as for the model.
        batch_size (`int`): rows at a time.

    Returns:
        (B, N) scores, on the CPU.

    Example:
        >>> token_confidence(model, boards).shape  # doctest: +SKIP
        torch.Size([500, 81])
    """
    found = []
    training = model.training
    model.eval()
    try:
        for begin in range(0, len(input_ids), batch_size):
            rows = slice(begin, begin + batch_size)
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "editable_mask": editable_mask}
            inputs = {name: value[rows].to(model.device) for name, value in given.items() if value is not None}
            output = model(**inputs)
            policy = getattr(output, "policy", None)
            if policy is None:
                policy = -remask_advantage(inputs["input_ids"], output.logits, model.config.mask_token_id)
            found.append(policy.float().cpu())
    finally:
        model.train(training)
    return torch.cat(found)
