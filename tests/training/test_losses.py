"""The losses: clipping, gradients, and the bookkeeping of the three parts."""

import math

import pytest
import torch

from hf_rm.training.losses import MAX_LOSS, LossParts, clipped_cross_entropy


def far_logits() -> torch.Tensor:
    """A head that gives the mask (id 1) a logit of -25: exp(-25) is far below 1e-8."""
    return torch.tensor([[0.0, -25.0, 0.0]], requires_grad=True)


@pytest.mark.parametrize(("clip", "value", "has_gradient"), [("reported", MAX_LOSS, True), ("hard", MAX_LOSS, False)])
def test_a_mask_logit_at_minus_25(clip, value, has_gradient):
    logits = far_logits()
    loss = clipped_cross_entropy(logits, torch.tensor([1]), clip)
    loss.sum().backward()
    assert loss.item() == pytest.approx(value)
    assert bool(logits.grad[0, 1]) is has_gradient


def test_unclipped_is_the_plain_loss():
    loss = clipped_cross_entropy(far_logits(), torch.tensor([1]), "none")
    assert loss.item() == pytest.approx(25 + math.log(2), abs=1e-4)


def test_the_gradient_of_the_reported_loss_is_that_of_the_plain_one():
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * 20
    labels = torch.tensor([0, 1, 2, 3, 4, -100, 0])
    gradients = []
    for clip in ("reported", "none"):
        leaf = logits.clone().requires_grad_()
        clipped_cross_entropy(leaf, labels, clip).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_the_clip_is_at_probability_1e_8():
    assert MAX_LOSS == pytest.approx(18.4207, abs=1e-4)


def test_unknown_clip_is_named():
    with pytest.raises(ValueError, match="loss_clip.*'soft'"):
        clipped_cross_entropy(far_logits(), torch.tensor([1]), "soft")


def test_parts_are_told_apart_and_start_again():
    state = torch.tensor([[0, 2, 1, 1]])
    labels = torch.tensor([[1, 0, 1, -100]])  # reveal 1, re-mask the 2, keep the 1, nothing
    logits = torch.full((1, 4, 3), -5.0)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[0, 2, 1] = 5.0  # reveal right, re-mask wrong, keep right
    loss = clipped_cross_entropy(logits[0], labels[0])
    parts = LossParts()
    parts.add(state, labels, logits.argmax(-1), loss, mask_token_id=0)
    parts.add(state, labels, logits.argmax(-1), loss, mask_token_id=0)
    logs = parts.pop()
    assert (logs["accuracy_reveal"], logs["accuracy_mask"], logs["accuracy_keep"]) == (1.0, 0.0, 1.0)
    assert logs["loss_mask"] == pytest.approx(loss[1].item())
    assert logs["loss_reveal"] == pytest.approx(loss[0].item())
    assert parts.pop() == {}
