# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
One gradient for a head that runs chunk by chunk.

Autograd makes the gradient of the whole weight (V, D) anew for every chunk and adds them up: with 126,464 tokens these
two are most of what a step needs. Here every chunk adds its product to one tensor, as far as possible `weight.grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def accumulating_head(head: nn.Sequential, in_place: bool = False) -> Callable[[Tensor], Tensor]:
    """
    A head for several calls on (k, D) rows and one `backward()` through all of them.

    The calls share one gradient of the last layer's weight, in the weight's dtype. A layer that is more than a
    trainable `nn.Linear` (an adapter, quantised, with hooks) and a frozen one are called as they are.

    Args:
        head (`nn.Sequential`): from hidden states to scores.
        in_place (`bool`, defaults to `False`): add to a `weight.grad` that is there already, not to a tensor that
            autograd then adds to it. Only where nobody else waits for that gradient (DistributedDataParallel does); a
            weight with hooks of its own never is treated so. `torch.autograd.grad` does not see such a gradient.

    Returns:
        What to call in place of the head, now: under another autocast, wrap it again.

    Example:
        >>> head = nn.Sequential(nn.Linear(2, 3))
        >>> scores = accumulating_head(head)
        >>> sum(scores(torch.ones(4, 2)).sum() for _ in range(2)).backward()
        >>> head[0].weight.grad[0].tolist()
        [8.0, 8.0]
    """
    *first, last = head
    if not (torch.is_grad_enabled() and _is_plain(last)):
        return head
    sums, weight, bias = _Sums(last.weight, in_place), last.weight, last.bias
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    shared = _Share.apply(weight, sums, dtype)

    def run(hidden: Tensor) -> Tensor:
        for layer in first:
            hidden = layer(hidden)
        return _Linear.apply(hidden, shared, bias, sums)

    return run


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling it is a product with a trainable weight, and nothing besides."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if type(layer) is not nn.Linear or "forward" in vars(layer) or any(hooks):
        return False
    return type(layer.weight) is nn.Parameter and layer.weight.requires_grad


@dataclass
class _Sums:
    """The gradient of one weight while the chunks of a backward pass add to it."""

    weight: Tensor
    in_place: bool
    total: Tensor | None = None

    def add(self, grad: Tensor, hidden: Tensor) -> None:
        """The product of scores' gradients (k, V) and hidden states (k, D)."""
        if self.total is None:
            self.total = self.weight.grad if self._may_use_grad() else torch.zeros_like(self.weight)
        assert self.total is not None
        if self.total.dtype == grad.dtype:
            self.total.addmm_(grad.t(), hidden)
            return
        # 16 bits into 32: no kernel adds across dtypes, and the whole product would be half a gradient.
        for rows, part in zip(
            self.total.split(_block(grad, hidden)), grad.split(_block(grad, hidden), 1), strict=True
        ):
            rows += part.t() @ hidden

    def take(self) -> Tensor | None:
        """What autograd has still to add to the weight's gradient."""
        total, self.total = self.total, None
        return None if total is self.weight.grad else total

    def _may_use_grad(self) -> bool:
        weight = self.weight
        hooked = weight._backward_hooks or weight._post_accumulate_grad_hooks
        return self.in_place and weight.grad is not None and not hooked


def _block(grad: Tensor, hidden: Tensor) -> int:
    """Rows of the weight whose product is no larger than the scores' gradient."""
    return max(1, grad.numel() // hidden.shape[1])


class _Share(torch.autograd.Function):
    """The weight as the chunks read it; its backward runs when all of theirs have."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sums: _Sums, dtype: torch.dtype) -> Tensor:
        ctx.sums = sums
        ctx.set_materialize_grads(False)
        return weight.view_as(weight) if weight.dtype == dtype else weight.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None) -> tuple[Tensor | None, None, None]:
        return ctx.sums.take(), None, None


class _Linear(torch.autograd.Function):
    """A product with the shared weight, whose gradient goes to the sums and not through autograd."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, sums: _Sums) -> Tensor:
        ctx.sums = sums
        ctx.save_for_backward(hidden, weight)
        return F.linear(hidden.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        hidden, weight = ctx.saved_tensors
        ctx.sums.add(grad, hidden.to(grad.dtype))
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )
