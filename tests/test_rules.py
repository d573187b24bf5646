"""Eq. 1, the reveal rules and the limits, each on states and logits written down here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_rm import ReflectiveGenerationConfig
from hf_rm.corruption.pool import eq1_next_state
from hf_rm.generation_revision_rm import REVISION_RULES, RemaskLimits
from hf_rm.generation_rm import reflective_rule
from hf_rm.generation_rules_rm import (
    REVEAL_RULES,
    DenoisingStep,
    Schedule,
    lowest_ranked,
    remask_advantage,
)

RULES = [reflective_rule, eq1_next_state]


def denoising_step(
    logits: Tensor, ids: Tensor, quota: int = 1, mask_token_id: int = 0, **fields: Any
) -> DenoisingStep:
    """A step over (B, N) ids in which every position is editable; the schedule wants `quota` masks now."""
    masked = ids == mask_token_id
    forbidden = torch.tensor([mask_token_id])
    best_logit, best = logits.index_fill(-1, forbidden, -torch.inf).max(-1)
    each = torch.full((len(ids),), 1)
    schedule = Schedule(each * 0, each, each * quota, each * ids.shape[1])
    given = {"proposal": best, "best": best, "best_logit": best_logit, "log_partition": logits.logsumexp(-1)}
    return DenoisingStep(
        ids, logits, masked, ~masked, mask_token_id, forbidden, schedule=schedule, **{**given, **fields}
    )


# Eq. 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", range(6))
def test_vectors(vectors: Callable[[str], Any], case: int, rule: Callable[..., Tensor]) -> None:
    vector = vectors("reflective_rule")[case]
    following = rule(
        torch.tensor([vector["state"]]),
        torch.tensor([vector["logits"]]),
        vector["mask_token_id"],
        torch.tensor([vector["editable"]]),
    )
    assert following[0].tolist() == vector["next_state"]


@pytest.mark.parametrize("rule", RULES)
def test_hand_computed_example(rule: Callable[..., Tensor]) -> None:
    a, b, mask = 0, 1, 3
    rows = [(0.2, 0.5, 0.05, 0.25), (0.3, 0.1, 0.3, 0.3), (0.1, 0.85, 0.04, 0.01), (0.2, 0.3, 0.1, 0.4), (0, 0, 0, 1)]
    state = torch.tensor([[a, a, a, mask, mask]])
    following = rule(state, torch.tensor([rows]).log(), mask, torch.ones_like(state, dtype=torch.bool))
    assert following.tolist() == [[mask, a, a, b, a]]


@given(
    seed=st.integers(0, 10_000),
    vocab_size=st.integers(2, 7),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 8)),
    coarse=st.booleans(),
    data=st.data(),
)
def test_fast_and_obvious_eq1_agree(
    seed: int, vocab_size: int, shape: tuple[int, int], coarse: bool, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = data.draw(st.integers(0, vocab_size - 1))
    state = torch.randint(0, vocab_size, shape, generator=generator)
    logits = torch.randn(*shape, vocab_size, generator=generator)
    if coarse:  # many ties
        logits = logits.round()
    editable = torch.rand(shape, generator=generator) < 0.7
    before = state.clone()
    following = eq1_next_state(state, logits, mask, editable)
    assert torch.equal(following, reflective_rule(state, logits, mask, editable))
    assert torch.equal(state, before)
    assert torch.equal(following[~editable], state[~editable])
    moved = (following != state) & (state != mask)
    assert bool((following[moved] == mask).all())
    assert bool((following[(state == mask) & editable] != mask).all())


def test_a_tie_keeps_and_a_third_token_does_not_matter() -> None:
    state = torch.tensor([[1, 1, 1]])
    logits = torch.tensor([[[2.0, 2.0, 9.0], [2.0, 2.001, 9.0], [2.001, 2.0, 9.0]]])
    following = eq1_next_state(state, logits, 0, torch.ones(1, 3, dtype=torch.bool))
    assert following.tolist() == [[1, 1, 0]]
    assert (remask_advantage(state, logits, 0) > 0).tolist() == [[False, False, True]]


def test_forbidden_ids_are_never_revealed() -> None:
    logits = torch.tensor([[[9.0, 1.0, 8.0, 2.0, 7.0]]])
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    assert eq1_next_state(torch.tensor([[0]]), logits, 0, everywhere).tolist() == [[2]]
    assert eq1_next_state(torch.tensor([[0]]), logits, 0, everywhere, forbidden=[2, 4]).tolist() == [[3]]


# Reveal rules


def probabilities(rows: list[list[float]]) -> Tensor:
    """(1, N, V) logits whose softmax are the given rows."""
    return torch.tensor([rows]).log()


def revealed(name: str, rows: list[list[float]], quota: int = 1, **settings: Any) -> list[int]:
    config = ReflectiveGenerationConfig(reveal=name, **settings)
    step = denoising_step(probabilities(rows), torch.zeros(1, len(rows), dtype=torch.long), quota)
    return REVEAL_RULES[name](config)(step)[0].nonzero()[:, 0].tolist()


ROWS = [
    [0.01, 0.50, 0.48, 0.01],  # most probable, small margin, low entropy
    [0.01, 0.45, 0.27, 0.27],  # larger margin
    [0.01, 0.40, 0.39, 0.20],
    [0.01, 0.34, 0.33, 0.32],
]


def test_reveal_all() -> None:
    assert revealed("all", ROWS) == [0, 1, 2, 3]


def test_reveal_by_confidence_takes_the_most_probable() -> None:
    assert revealed("confidence", ROWS, quota=1) == [0]
    assert revealed("confidence", ROWS, quota=3) == [0, 1, 2]


def test_reveal_by_margin_takes_the_widest_gap() -> None:
    assert revealed("margin", ROWS, quota=1) == [1]
    assert revealed("margin", ROWS, quota=2) == [0, 1]


def test_reveal_by_entropy_takes_the_most_certain() -> None:
    rows = [[0.01, 0.52, 0.235, 0.235], [0.01, 0.49, 0.49, 0.01]]
    assert revealed("confidence", rows, quota=1) == [0]
    assert revealed("entropy", rows, quota=1) == [1]


def test_reveal_above_a_threshold_and_at_least_the_best() -> None:
    assert revealed("threshold", ROWS, reveal_threshold=0.42) == [0, 1]
    assert revealed("threshold", ROWS, reveal_threshold=0.9) == [0]
    assert revealed("threshold", ROWS, reveal_threshold=0.9, min_reveals_per_step=2) == [0, 1]


@pytest.mark.parametrize("name", REVEAL_RULES)
def test_only_masks_are_revealed(name: str) -> None:
    ids = torch.tensor([[0, 3, 0, 2], [1, 1, 2, 3]])
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    step = denoising_step(logits, ids, quota=2, policy=logits[..., 1], uniforms=lambda stream: torch.zeros(2, 4))
    revise = name if name in ("policy", "remdm") else "reflective"
    reveal = REVEAL_RULES[name](ReflectiveGenerationConfig(reveal=name, revise=revise))(step)
    assert reveal[0].any() and not (reveal & ~step.masked).any()


def test_reflective_revision_fires_where_the_mask_is_ahead() -> None:
    ids = torch.tensor([[0, 3, 1, 2]])
    logits = torch.zeros(1, 4, 5)
    logits[0, :, 0] = torch.tensor([5.0, 2.0, 1.0, 0.0])
    wanted = REVISION_RULES["reflective"](ReflectiveGenerationConfig())(denoising_step(logits, ids))
    assert wanted.fires.tolist() == [[False, True, True, False]]
    assert wanted.ranks[0, 1] < wanted.ranks[0, 2]


# Limits


@given(ranks=st.lists(st.sampled_from([0.0, 1.0, 2.0, float("inf")]), min_size=1, max_size=8), count=st.integers(0, 9))
def test_lowest_ranked_is_a_stable_sort(ranks: list[float], count: int) -> None:
    taken = lowest_ranked(torch.tensor([ranks]), torch.tensor([count]))[0].nonzero()[:, 0].tolist()
    finite = [
        place for place in sorted(range(len(ranks)), key=lambda i: (ranks[i], i)) if ranks[place] != float("inf")
    ]
    assert taken == sorted(finite[:count])


def test_limits_cut_a_choice_down() -> None:
    """method.md, section 8: the same numbers under any rule that ranks by p."""
    p = torch.tensor([[0.9, 0.05, 0.2, 0.29, 0.3, 0.1, 0.8, 0.25]])
    fires, visible, unused = p < 0.3, torch.ones_like(p, dtype=torch.bool), torch.zeros(1, 8, dtype=torch.long)
    limits = RemaskLimits(per_position=1, ratio=0.25)
    assert limits(fires, p, visible, unused)[0].nonzero()[:, 0].tolist() == [1, 5]
    used = unused.clone()
    used[0, 1] = 1
    assert limits(fires, p, visible, used)[0].nonzero()[:, 0].tolist() == [2, 5]
    assert RemaskLimits()(fires, p, visible, used).equal(fires)
    # Rounded down, but at least one.
    assert RemaskLimits(ratio=0.01)(fires, p, visible, unused).sum() == 1
    assert RemaskLimits(per_position=0)(fires, p, visible, unused).sum() == 0
