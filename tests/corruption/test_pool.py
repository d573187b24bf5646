"""The on-policy pool: rows age, leave and resume."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_rm.corruption import OnPolicyPool
from hf_rm.corruption.pool import PoolRows, pool_places
from hf_rm.history import HistoryState


def refill(pool: OnPolicyPool, value: int, rows: int = 3) -> PoolRows:
    """Offer rows that hold `value` and weigh as much, whose target is 5."""
    start = torch.full((rows, 4), value)
    editable = torch.ones_like(start, dtype=torch.bool)
    return pool.refill(start, torch.full_like(start, 5), editable, editable.long(), editable * float(value))


def memory(value: float, rows: int = 3) -> HistoryState:
    return HistoryState(torch.full((rows, 4, 2), value, requires_grad=True), torch.ones(rows, dtype=torch.long))


def following(*rows: int) -> Tensor:
    return torch.tensor(rows)[:, None].expand(-1, 4).clone()


def test_rows_move_on_and_remember() -> None:
    pool = OnPolicyPool(range(3), width=2)
    assert refill(pool, 1).ids[:, 0].tolist() == [1, 1, 1]
    pool.advance(following(2, 3, 4), memory(0.5))
    rows = refill(pool, 9)
    assert rows.ids[:, 0].tolist() == [2, 3, 4]
    assert rows.age.tolist() == [1, 1, 1]
    assert rows.history.accumulator.unique().tolist() == [0.5]
    assert not rows.history.accumulator.requires_grad


def test_rows_at_rest_are_replaced_with_an_empty_memory() -> None:
    pool = OnPolicyPool(range(3), width=2)
    refill(pool, 1)
    pool.advance(following(5, 5, 2), memory(1.0))  # two are solved now, but not yet seen to stay
    assert refill(pool, 9).age.tolist() == [1, 1, 1]
    pool.advance(following(5, 6, 2), memory(1.0))  # one stays right, one was broken, one stays wrong
    rows = refill(pool, 9)
    assert rows.ids[:, 0].tolist() == [9, 6, 9], "each in its own place"
    assert rows.age.tolist() == [0, 2, 0]
    assert rows.weights[:, 0].tolist() == [9.0, 1.0, 9.0]
    assert rows.history.accumulator[:, 0, 0].tolist() == [0.0, 1.0, 0.0]
    assert rows.history.steps.tolist() == [0, 1, 0]


def test_positions_that_may_not_change_do_not_keep_a_row() -> None:
    pool = OnPolicyPool(range(1), width=2)
    editable = torch.tensor([[True, True, False, False]])
    target = torch.tensor([[5, 5, 7, 7]])
    frozen_wrong = torch.tensor([[5, 5, 1, 1]])
    pool.refill(frozen_wrong, target, editable, torch.ones_like(target), torch.ones(1, 4))
    pool.advance(frozen_wrong, None)
    assert pool.rows.age.tolist() == [pool.max_age]


def test_old_rows_are_replaced() -> None:
    pool = OnPolicyPool(range(3), width=2, max_age=2)
    refill(pool, 1)
    pool.advance(following(2, 2, 2), None)
    assert refill(pool, 9).ids[:, 0].tolist() == [2, 2, 2]
    pool.advance(following(3, 4, 3), None)
    assert refill(pool, 9).ids[:, 0].tolist() == [9, 9, 9]


def test_a_resumed_pool_goes_on_alike() -> None:
    pool, resumed = OnPolicyPool(range(3), width=2, max_age=3), OnPolicyPool(range(3), width=2, max_age=3)
    assert pool.state_dict() == {}
    refill(pool, 1)
    pool.advance(following(5, 2, 3), memory(0.25))
    saved = {name: value.clone() for name, value in pool.state_dict().items()}
    assert all(type(value) is Tensor and value.is_contiguous() for value in saved.values())
    resumed.load_state_dict(saved)
    for p in (pool, resumed):
        refill(p, 9)
        p.advance(following(5, 4, 4), memory(0.75))
    first, second = refill(pool, 8), refill(resumed, 8)
    assert first.ids.tolist() == second.ids.tolist() and first.age.tolist() == second.age.tolist()
    assert torch.equal(first.history.accumulator, second.history.accumulator)
    resumed.load_state_dict({})
    assert resumed.rows is None


@pytest.mark.parametrize(("size", "max_age"), [(0, 3), (3, 0), (3, -1)])
def test_bad_sizes_are_refused(size: int, max_age: int) -> None:
    with pytest.raises(ValueError, match=f"`places` has {size} rows and `max_age` is {max_age}"):
        OnPolicyPool(range(size), width=2, max_age=max_age)


def test_the_state_of_another_pool_is_refused() -> None:
    pool = OnPolicyPool(range(3), width=2)
    refill(pool, 1)
    with pytest.raises(ValueError, match="a pool of 3 rows and this one has 2.*processes"):
        OnPolicyPool(range(2), width=2).load_state_dict(pool.state_dict())


def test_the_rows_that_a_short_batch_has_no_place_for_wait() -> None:
    pool = OnPolicyPool(range(3), width=2)
    refill(pool, 1, rows=2)  # the very first batch is short
    pool.advance(following(2, 2), memory(0.5, rows=2))
    assert refill(pool, 9).ids[:, 0].tolist() == [2, 2, 9]
    pool.advance(following(3, 3, 4), memory(1.0))
    assert refill(pool, 8, rows=1).ids[:, 0].tolist() == [3]
    pool.advance(following(6), memory(2.0, rows=1))
    rows = refill(pool, 7)
    assert rows.ids[:, 0].tolist() == [6, 3, 4]
    assert rows.age.tolist() == [3, 2, 1]
    assert rows.history.accumulator[:, 0, 0].tolist() == [2.0, 1.0, 1.0]


@given(
    fraction=st.floats(0.01, 0.99),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_a_rows_number_in_the_step_decides_whatever_the_batches(fraction: float, sizes: list[int]) -> None:
    whole, first, parts = pool_places(fraction, 0, sum(sizes)), 0, []
    for size in sizes:
        parts += [first + place for place in pool_places(fraction, first, size)]
        first += size
    assert parts == whole
    assert abs(len(whole) - fraction * sum(sizes)) <= 0.5 + 1e-6
    gaps = {b - a for a, b in zip(whole, whole[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1, "evenly spread"


def offered(pool: OnPolicyPool, length: int, real: int, value: int = 1) -> PoolRows:
    """Rows of `length`, of which `real` positions count."""
    start = torch.full((len(pool.places), length), value)
    editable = (torch.arange(length) < real).expand(len(start), -1)
    return pool.refill(start, torch.full_like(start, 5), editable, editable.long(), editable.float())


def test_rows_of_any_length_live_side_by_side() -> None:
    pool = OnPolicyPool(range(2), width=2)
    offered(pool, 6, real=4)
    pool.advance(torch.full((2, 6), 2), HistoryState(torch.full((2, 6, 2), 0.5), torch.ones(2, dtype=torch.long)))
    longer = offered(pool, 9, real=9)
    assert longer.ids.shape == (2, 9)
    assert longer.attention_mask.sum(-1).tolist() == [4, 4]
    assert longer.ids[:, :4].unique().tolist() == [2]
    assert longer.history.accumulator[:, :4].unique().tolist() == [0.5]
    assert longer.history.accumulator[:, 6:].unique().tolist() == [0.0]
    pool.advance(longer.ids, None)  # at rest: both leave
    shorter = offered(pool, 3, real=3)
    assert shorter.ids.shape == (2, 3)


def test_padding_is_cut_but_no_row_that_stays() -> None:
    pool = OnPolicyPool(range(2), width=2)
    offered(pool, 9, real=5)
    pool.advance(torch.full((2, 9), 2), None)
    rows = offered(pool, 3, real=3)
    assert rows.ids.shape == rows.editable.shape == rows.weights.shape == (2, 5)
    assert rows.history.accumulator.shape == (2, 5, 2)
    assert rows.attention_mask.sum(-1).tolist() == [5, 5]
