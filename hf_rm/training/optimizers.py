# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices, AdamW for everything else, as one optimizer that Trainer and its schedulers understand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """
    Two of torch's optimizers behind one interface. A scheduler scales both learning rates by the same factor.

    Args:
        matrices (list of `nn.Parameter`): two-dimensional parameters for Muon.
        others (list of `nn.Parameter`): the rest, for AdamW.
        muon_lr, lr (`float`): their learning rates.
        weight_decay (`float`): of both.
        betas (`tuple[float, float]`), eps (`float`): of AdamW.

    Raises:
        ValueError: when there is no matrix for Muon.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        muon_lr: float,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not matrices:
            raise ValueError("`matrices` is empty: Muon needs two-dimensional parameters; use AdamW alone.")
        self.parts: list[Optimizer] = [Muon(matrices, lr=muon_lr, weight_decay=weight_decay)]
        if others:
            self.parts.append(AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        super().__init__([group for part in self.parts for group in part.param_groups], defaults={})
        self._link()

    def _link(self) -> None:
        # The very dicts of the parts: a learning rate that a scheduler sets here is the one the part uses.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # the closure's loss, or None
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (matrices of linear layers, the rest); the output head counts as the rest."""
    get_head = getattr(model, "get_output_embeddings", lambda: None)
    head = get_head()
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and module.weight.requires_grad
    }
    if head is not None:
        matrices.discard(id(head.weight))
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trainable if id(p) in matrices], [p for p in trainable if id(p) not in matrices]
