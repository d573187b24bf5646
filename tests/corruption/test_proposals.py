"""Proposals: never the right token, never the mask, and otherwise their law."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_rm.corruption import FixedProposal, Proposal, UniformProposal

ALMOST_ONE = float(np.nextafter(1.0, 0.0))
MASK = 0


def draw(proposal: Proposal, target: int, count: int, seed: int = 0) -> np.ndarray:
    uniforms = np.random.default_rng(seed).random((1, 1, count))
    return proposal.draw(uniforms, np.array([[target]]), [0]).ravel()


@given(
    weights=st.lists(st.sampled_from([0.0, 0.0, 1e-9, 0.3, 1.0, 5.0]), min_size=2, max_size=8),
    uniforms=st.lists(st.one_of(st.floats(0, ALMOST_ONE), st.sampled_from([0.0, ALMOST_ONE])), min_size=1, max_size=8),
    data=st.data(),
)
def test_fixed_proposals_are_wrong_tokens_of_positive_weight(
    weights: list[float], uniforms: list[float], data: st.DataObject
) -> None:
    weights = [0.0, *weights, 1.0, 1.0]  # the mask is id 0
    target = data.draw(st.integers(1, len(weights) - 1))
    drawn = FixedProposal(weights).draw(np.array([[uniforms]]), np.array([[target]]), [0])
    assert drawn.shape == (1, 1, len(uniforms))
    for token in drawn.ravel():
        assert token not in (MASK, target) and weights[token] > 0


@given(
    vocab_size=st.integers(4, 30),
    uniforms=st.lists(st.one_of(st.floats(0, ALMOST_ONE), st.sampled_from([0.0, ALMOST_ONE])), min_size=1, max_size=8),
    data=st.data(),
)
def test_uniform_proposals_are_wrong_allowed_tokens(
    vocab_size: int, uniforms: list[float], data: st.DataObject
) -> None:
    others = st.integers(1, vocab_size - 1)
    excluded = {MASK, *data.draw(st.lists(others, max_size=vocab_size - 3, unique=True))}
    target = data.draw(others)  # it may be an excluded one: a reserved token in a clean text
    drawn = UniformProposal(vocab_size, excluded).draw(np.array([[uniforms]]), np.array([[target]]), [0])
    assert not set(drawn.ravel().tolist()) & (excluded | {target})
    assert ((drawn >= 0) & (drawn < vocab_size)).all()


def assert_law(drawn: np.ndarray, law: np.ndarray) -> None:
    share = np.bincount(drawn, minlength=len(law)) / len(drawn)
    assert (np.abs(share - law) <= 4 * np.sqrt(law * (1 - law) / len(drawn)) + 1e-12).all(), share


@pytest.mark.parametrize("target", [1, 3, 5])
def test_fixed_proposals_follow_their_weights_without_the_target(target: int) -> None:
    weights = np.array([0, 1, 2, 3, 0, 4.0])
    law = np.where(np.arange(6) == target, 0, weights)
    assert_law(draw(FixedProposal(weights), target, 40_000), law / law.sum())


@pytest.mark.parametrize("target", [1, 4, 6])
def test_uniform_proposals_are_uniform(target: int) -> None:
    law = np.array([0, 1, 1, 0, 1, 1, 1.0])
    law[target] = 0
    assert_law(draw(UniformProposal(7, excluded=[0, 3]), target, 40_000), law / law.sum())


def test_a_position_uses_its_own_number_and_target() -> None:
    uniforms = np.array([[[0.0, 0.99], [0.5, 0.5]], [[0.99, 0.0], [0.0, 0.0]]])
    targets = np.array([[1, 2], [9, 1]])
    expected = [[[2, 9], [6, 6]], [[8, 1], [2, 2]]]
    for proposal in (FixedProposal([0] + [1] * 9), UniformProposal(10, excluded=[0])):
        assert proposal.draw(uniforms, targets, ["a", "b"]).tolist() == expected


@pytest.mark.parametrize("weights", [[1.0], [0, 1], [0, 0, 0], [1, -1, 1], [[1, 1], [1, 1]]])
def test_weights_without_a_wrong_token_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        FixedProposal(weights)


def test_a_target_without_a_weight_is_named() -> None:
    with pytest.raises(ValueError, match="row 'b' has the target 3, and `weights` are those of 3 ids"):
        FixedProposal([0, 1, 1]).draw(np.zeros((2, 2, 1)), np.array([[1, 2], [1, 3]]), ["a", "b"])


def test_what_may_be_drawn_is_known() -> None:
    fixed, uniform = FixedProposal([0, 1, 0.5, 0]), UniformProposal(4, excluded=[0, 3])
    for proposal in (fixed, uniform):
        assert [proposal.may_draw(token) for token in range(5)] == [False, True, True, False, False]


def test_exclusions_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="excluded"):
        UniformProposal(3, excluded=[0, 1])
