"""Muon and AdamW behind one interface."""

import copy

import pytest
import torch
from torch import nn

from hf_rm.training.optimizers import MuonWithAdamW, split_parameters


def build(seed: int = 0) -> tuple[nn.Module, MuonWithAdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    matrices, others = split_parameters(model)
    return model, MuonWithAdamW(matrices, others, muon_lr=0.02, lr=0.001)


def step(model: nn.Module, optimizer: MuonWithAdamW) -> None:
    model(torch.tensor([[1, 2, 3]])).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_only_linear_matrices_go_to_muon():
    model, optimizer = build()
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model[1].weight)]
    assert len(optimizer.param_groups[1]["params"]) == 4


def test_a_scheduler_scales_both_rates():
    _, optimizer = build()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.0005])
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == pytest.approx([0.01, 0.0005])


def test_a_loaded_state_continues_bit_for_bit():
    model, optimizer = build()
    step(model, optimizer)
    twin, twin_optimizer = build(seed=1)
    twin.load_state_dict(model.state_dict())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin_optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    for _ in range(3):
        step(model, optimizer)
        step(twin, twin_optimizer)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_no_matrix_is_an_error():
    with pytest.raises(ValueError, match="matrices"):
        MuonWithAdamW([], [nn.Parameter(torch.zeros(3))], muon_lr=0.1, lr=0.1)
