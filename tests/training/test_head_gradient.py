"""A head in chunks: the gradients of one call, one tensor for them, and whoever waits for them gets them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hf_rm.training.head_gradient import accumulating_head

V, D, K = 301, 16, 23
AUTOCAST = partial(torch.autocast, "cpu", torch.bfloat16)


def build_head(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, V, bias=bias))


def loss_of(scores, dtype=torch.float32, chunk: int | None = None) -> torch.Tensor:
    """Of the same rows each time, weighted unequally; in chunks that are computed again if `chunk` says so."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(K, D, generator=generator).to(dtype)
    labels = torch.randint(V, (K,), generator=generator)
    weights = torch.rand(K, generator=generator)

    def read(rows, ids):
        return F.cross_entropy(scores(rows).float(), ids, reduction="none")

    if chunk is None:
        return (read(hidden, labels) * weights).sum()
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    losses = [checkpoint(read, rows, ids, use_reentrant=False) for rows, ids in parts]
    return (torch.cat(losses) * weights).sum()


def gradients(head) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in head.named_parameters()}


def assert_close(ours, plain, tolerance: float) -> None:
    assert ours.keys() == plain.keys()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0 and ours[name].dtype == gradient.dtype
        assert (ours[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name


@pytest.mark.parametrize("chunk", [1, 5, 23])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_one_call(bias, in_place, chunk):
    """Also those of a second and third batch, which meet gradients that are there already."""
    plain, ours = build_head(bias), build_head(bias)
    for _ in range(3):
        loss = loss_of(accumulating_head(ours, in_place), chunk=chunk)
        assert loss.item() == pytest.approx(loss_of(plain).item(), rel=1e-6)
        loss_of(plain).backward()
        loss.backward()
        assert_close(gradients(ours), gradients(plain), 1e-6)


@pytest.mark.parametrize("in_place", [False, True])
def test_16_bit_autocast(in_place):
    """Sums in the weight's 32 bits: no further from the exact gradient than one call, whose product is of 16 bits."""
    exact, plain, ours = build_head(), build_head(), build_head()
    for _ in range(2):
        loss_of(exact).backward()
        with AUTOCAST():
            one = loss_of(plain)
            scores = accumulating_head(ours, in_place)
            assert scores(torch.ones(1, D)).dtype == torch.bfloat16
            other = loss_of(scores, chunk=5)
        assert other.item() == pytest.approx(one.item(), rel=1e-5)
        one.backward()
        other.backward()
        assert_close(gradients(ours), gradients(plain), 2e-2)
    errors = [float((head[2].weight.grad - exact[2].weight.grad).norm()) for head in (ours, plain)]
    assert errors[0] < 1.1 * errors[1]


def test_16_bit_weights():
    plain, ours = build_head().bfloat16(), build_head().bfloat16()
    for _ in range(2):
        loss_of(plain, torch.bfloat16).backward()
        loss_of(accumulating_head(ours, True), torch.bfloat16, chunk=5).backward()
    assert_close(gradients(ours), gradients(plain), 3e-2)


def test_two_backward_passes_through_one_graph():
    plain, ours = build_head(), build_head()
    for loss in (loss_of(plain), loss_of(accumulating_head(ours))):
        loss.backward(retain_graph=True)
        loss.backward()
    assert_close(gradients(ours), gradients(plain), 1e-6)


class NewTensors(TorchDispatchMode):
    """Counts the storages of a size that a pass makes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.known, self.made = size, set(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {leaf.untyped_storage().data_ptr() for leaf in args if isinstance(leaf, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == self.size:
            if result.untyped_storage().data_ptr() not in before:
                self.made.append(str(function))
        return result


@pytest.mark.parametrize(("there", "in_place", "made"), [(False, True, 1), (True, True, 0), (True, False, 1)])
def test_how_many_tensors_of_the_weights_size_a_pass_makes(there, in_place, made):
    head = build_head()
    weight = head[2].weight
    if there:
        weight.grad = torch.zeros_like(weight)
    address = weight.grad.data_ptr() if there else None
    with NewTensors(V * D) as tensors:
        loss_of(accumulating_head(head, in_place), chunk=5).backward()
    assert len(tensors.made) == made, tensors.made
    assert weight.grad.abs().max() > 0
    if there:
        assert weight.grad.data_ptr() == address


def test_16_bit_products_are_made_in_blocks():
    head = build_head()
    head[2].weight.grad = torch.zeros_like(head[2].weight)
    with AUTOCAST():
        loss = loss_of(accumulating_head(head, True), chunk=1)
    with NewTensors(V * D) as tensors:
        loss.backward()
    assert tensors.made == []


@pytest.mark.parametrize("kind", ["before", "after"])
def test_hooks_of_the_weight_see_the_gradient_of_the_pass(kind):
    """Once, and whole: optimizers that step in the backward pass wait for it."""
    plain, ours, seen = build_head(), build_head(), []
    loss_of(plain).backward()
    weight = ours[2].weight
    weight.grad = torch.zeros_like(weight)
    if kind == "before":
        weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    else:
        weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    loss_of(accumulating_head(ours, in_place=True), chunk=5).backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], plain[2].weight.grad)


class OtherLinear(nn.Linear):
    pass


def frozen(head: nn.Sequential) -> None:
    head[2].weight.requires_grad_(False)


def hooked(head: nn.Sequential) -> None:
    head[2].register_forward_hook(lambda module, args, output: 2 * output)


def replaced(head: nn.Sequential) -> None:
    head[2].forward = lambda hidden: 2 * F.linear(hidden, head[2].weight)


def derived(head: nn.Sequential) -> None:
    head[2] = OtherLinear(D, V)


def not_linear(head: nn.Sequential) -> None:
    head.append(nn.Tanh())


@pytest.mark.parametrize("change", [frozen, hooked, replaced, derived, not_linear])
def test_a_layer_that_is_more_or_less_is_called_as_it_is(change):
    head = build_head()
    change(head)
    assert accumulating_head(head) is head


def test_nothing_is_prepared_where_there_will_be_no_gradient():
    head = build_head()
    with torch.no_grad():
        assert accumulating_head(head) is head
