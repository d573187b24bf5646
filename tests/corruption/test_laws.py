"""Trajectory laws against exact marginals, and the segments cut from them against the states they stand for."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_rm.corruption import (
    AttemptsLaw,
    PaperLaw,
    Trajectories,
    TrajectoryLaw,
    UniformProposal,
    build_law,
    oracle_labels,
)
from hf_rm.corruption.random import KeyedUniforms, row_keys
from hf_rm.history import HistoryReference, HistorySegments, accumulate

MASK, TARGET, VOCAB = 0, 4, 10
PROPOSAL = UniformProposal(VOCAB, excluded=[MASK])
SAMPLES = 30_000


def sample(
    law: TrajectoryLaw, rows: int = SAMPLES, length: int = 1, corrupted: bool = True, seed: int = 0
) -> Trajectories:
    """Trajectories of independent rows, every position corrupted."""
    targets = np.full((rows, length), TARGET, dtype=np.int64)
    uniforms = KeyedUniforms(row_keys(seed, 0, range(rows)))
    return law.sample(uniforms, targets, np.full(targets.shape, corrupted), PROPOSAL, MASK, list(range(rows)))


def assert_share(hits: np.ndarray, expected: float) -> None:
    """The share of hits lies within 4 standard errors of its exact value."""
    error = 4 * (expected * (1 - expected) / hits.size) ** 0.5
    assert abs(hits.mean() - expected) <= error + 1e-12, (hits.mean(), expected, error)


def classes(states: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where states show a wrong token, the mask, the target."""
    return (states != MASK) & (states != TARGET), states == MASK, states == TARGET


def random_steps(rows: int, horizon: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, horizon, rows)


# The paper's law


def test_marginals_of_the_wrong_rule() -> None:
    drawn = sample(PaperLaw(6, wrong_probability=1.0))
    for hits, expected in zip(classes(drawn.state(random_steps(SAMPLES, 6))), (1 / 2, 1 / 3, 1 / 6)):
        assert_share(hits, expected)
    mu = drawn.starts[..., 2]
    assert abs(mu.mean() - 5) <= 4 * mu.std() / SAMPLES**0.5


def test_marginals_of_the_mask_rule() -> None:
    drawn = sample(PaperLaw(6, wrong_probability=0.0))
    for hits, expected in zip(classes(drawn.state(random_steps(SAMPLES, 6))), (0, 7 / 12, 5 / 12)):
        assert_share(hits, expected)


@pytest.mark.parametrize(
    ("t", "wrong", "mask"),
    list(zip(range(6), (1, 0.8, 0.6, 0.4, 0.2, 0), (0, 1 / 5, 9 / 25, 47 / 100, 77 / 150, 137 / 300))),
)
def test_marginals_of_the_wrong_rule_at_each_step(t: int, wrong: float, mask: float) -> None:
    states = sample(PaperLaw(6, wrong_probability=1.0)).state(np.full(SAMPLES, t))
    for hits, expected in zip(classes(states), (wrong, mask, 1 - wrong - mask)):
        assert_share(hits, expected)


def test_labels_of_corrupted_positions() -> None:
    state = torch.from_numpy(sample(PaperLaw(6)).state(random_steps(SAMPLES, 6)))
    target = torch.full_like(state, TARGET)
    labels = oracle_labels(state, target, torch.ones_like(state, dtype=torch.bool), MASK).numpy()
    reveal = state.numpy() == MASK
    assert_share(reveal, 11 / 24)
    assert_share(labels == MASK, 1 / 4)
    assert_share(~reveal & (labels == TARGET), 7 / 24)


class Given:
    """Uniform numbers that a test chooses."""

    def __init__(self, *values: float) -> None:
        self.values = np.array(values)

    def draw(self, *shape: int) -> np.ndarray:
        return self.values.reshape(1, *shape)


@pytest.mark.parametrize("case", range(9))
def test_trajectory_vectors(vectors: Callable[[str], Any], case: int) -> None:
    hand = {"rule": "wrong", "horizon": 6, "beta": 2, "mu": 5, "target": 4, "wrong": 9, "mask_token_id": 0}
    hand |= {"states": [9, 9, 0, 0, 0, 4, 4], "oracle": [0, 0, 4, 4, 4, 4, 4]}
    vector = [*vectors("trajectories"), hand][case]
    horizon, target, mask = vector["horizon"], vector["target"], vector["mask_token_id"]
    beta, mu = vector["beta"], vector["mu"]
    # The middle of the interval of uniform numbers that leads to the boundary.
    if vector["rule"] == "wrong":
        numbers = (0.0, (beta - 0.5) / (horizon - 1), (mu - beta - 0.5) / (horizon - beta))
    else:
        numbers = (0.9, 0.0, ((mu or 1) - 0.5) / horizon)
    law, proposal = PaperLaw(horizon), UniformProposal(10, excluded=set(range(10)) - {vector["wrong"], 5})
    targets = np.array([[target]])
    drawn = law.sample(
        Given(*numbers, 0.99), targets, targets * 0 + (vector["rule"] != "keep") > 0, proposal, mask, [0]
    )
    states = [int(drawn.state(np.array([t]))[0, 0]) for t in range(horizon + 1)]
    assert states == vector["states"]
    row = torch.tensor([states])
    labels = oracle_labels(row, torch.full_like(row, target), torch.ones_like(row, dtype=torch.bool), mask)
    assert labels[0].tolist() == vector["oracle"]


@given(horizon=st.integers(2, 9), seed=st.integers(0, 50))
def test_boundaries_stay_in_their_ranges(horizon: int, seed: int) -> None:
    wrong = sample(PaperLaw(horizon, 1.0), rows=64, seed=seed).starts[:, 0]
    assert (wrong[:, 0] == 0).all() and (wrong[:, 1] >= 1).all() and (wrong[:, 1] < horizon).all()
    assert (wrong[:, 2] > wrong[:, 1]).all() and (wrong[:, 2] <= horizon).all()
    mask = sample(PaperLaw(horizon, 0.0), rows=64, seed=seed).starts[:, 0]
    assert (mask[:, 1] >= 1).all() and (mask[:, 1] <= horizon).all() and (mask[:, 2] == horizon + 1).all()


# The law of attempts


def patterns(drawn: Trajectories, horizon: int) -> list[str]:
    """One string a position: W a wrong token, M the mask, x the target, one letter a run."""
    letters = np.where(drawn.tokens == MASK, "M", np.where(drawn.tokens == TARGET, "x", "W"))
    used = drawn.starts <= horizon
    return ["".join(run[:count]) for run, count in zip(letters.reshape(-1, letters.shape[-1]), used.sum(-1).ravel())]


@pytest.mark.parametrize(("horizon", "attempts"), [(16, 2), (7, 2), (9, 3), (5, 1)])
def test_patterns_are_the_documented_ones(horizon: int, attempts: int) -> None:
    rows = 4000
    counts = Counter(patterns(sample(AttemptsLaw(horizon, attempts), rows=rows), horizon))
    drafts = {"WM" * k + "x" for k in range(1, attempts + 1)}
    canvases = {"M" + "WM" * k + "x" for k in range(attempts + 1)}
    alarms = {"xM" + "WM" * k + "x" for k in range(attempts + 1)}
    assert set(counts) == drafts | canvases | alarms
    # The prior of the beginnings, and attempts uniform within each.
    for kinds, prior in ((drafts, 0.5), (canvases, 0.4), (alarms, 0.1)):
        for pattern in kinds:
            p = prior / len(kinds)
            assert abs(counts[pattern] / rows - p) <= 4 * (p * (1 - p) / rows) ** 0.5


def test_every_attempt_is_an_independent_draw() -> None:
    drawn = sample(AttemptsLaw(16, 2, draft=1.0, canvas=0.0, false_alarm=0.0))
    two = drawn.starts[:, 0, 4] <= 16
    first, second = drawn.tokens[two, 0, 0], drawn.tokens[two, 0, 2]
    assert_share(first == second, 1 / (VOCAB - 2))


@pytest.mark.parametrize("horizon", [7, 12])
def test_cut_points_are_a_uniform_set_of_distinct_steps(horizon: int) -> None:
    starts = sample(AttemptsLaw(horizon, 2)).starts[:, 0]
    used = starts <= horizon
    assert (starts[:, 0] == 0).all()
    assert (np.diff(starts, axis=-1)[used[:, 1:]] > 0).all()
    assert (starts[~used] == horizon + 1).all()
    cuts = used.sum(-1) - 1
    for number in np.unique(cuts):
        rows = starts[cuts == number, 1:]
        for step in range(1, horizon + 1):
            assert_share((rows == step).any(-1), number / horizon)


def test_positions_that_are_not_corrupted_show_their_target_throughout() -> None:
    for law in (PaperLaw(6), AttemptsLaw(16, 2)):
        drawn = sample(law, rows=50, length=4, corrupted=False)
        for t in range(law.horizon + 1):
            assert (drawn.state(np.full(50, t)) == TARGET).all()
        assert (drawn.drafts == TARGET).all()


def test_every_trajectory_ends_at_the_target_and_drafts_are_wrong() -> None:
    for law in (PaperLaw(6), AttemptsLaw(16, 2)):
        drawn = sample(law, rows=500)
        assert (drawn.state(np.full(500, law.horizon)) == TARGET).all()
        assert classes(drawn.drafts)[0].all()


@given(law=st.sampled_from(["paper", "attempts"]), seed=st.integers(0, 200), step=st.integers(0, 6))
def test_only_the_mask_lies_between_two_tokens(law: str, seed: int, step: int) -> None:
    drawn = sample(build_law(law, 7), rows=40, seed=seed)
    now, then = drawn.state(np.full(40, step)), drawn.state(np.full(40, step + 1))
    assert ((now == then) | (now == MASK) | (then == MASK)).all()


@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("law", [PaperLaw(6), AttemptsLaw(16, 2), AttemptsLaw(9, 3)])
def test_segments_reproduce_the_direct_sum_over_the_states(law: TrajectoryLaw, rotation: bool) -> None:
    rows, length = law.horizon, 12
    drawn = sample(law, rows=rows, length=length)
    step = np.arange(rows)  # one row for each current step
    table = nn.Embedding.from_pretrained(torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(0)))
    segments = HistorySegments(torch.from_numpy(drawn.tokens), torch.from_numpy(drawn.lags(step)))
    current = table(torch.from_numpy(drawn.state(step)))
    memory = HistoryReference(0.9, rotation).advance_segments(segments, current, table)
    assert memory.steps.tolist() == (step + 1).tolist()
    for row in range(rows):
        states = np.stack([drawn.state(np.full(rows, k))[row] for k in range(row + 1)])
        expected = accumulate(table.weight[torch.from_numpy(states)].double(), 0.9, rotation)
        torch.testing.assert_close(memory.accumulator[row].double(), expected, atol=1e-5, rtol=1e-5)


# Bad settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 6, "max_attempts": 2}, "horizon.* 6.*too short"),
        ({"horizon": 5, "max_attempts": 2, "canvas": 0.5, "false_alarm": 0.0}, "horizon.*too short"),
        ({"horizon": 9, "max_attempts": 0}, "max_attempts"),
        ({"draft": 0.5, "canvas": 0.5, "false_alarm": 0.5}, "sums to 1"),
        ({"draft": 1.5, "canvas": -0.5, "false_alarm": 0.0}, "sums to 1"),
    ],
)
def test_bad_attempts_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttemptsLaw(**settings)


def test_the_shortest_possible_horizons_work() -> None:
    sample(AttemptsLaw(7, 2), rows=20)
    sample(AttemptsLaw(6, 2, canvas=0.5, false_alarm=0.0), rows=20)
    assert set(patterns(sample(AttemptsLaw(5, 2, 1.0, 0.0, 0.0), rows=200), 5)) == {"WMx", "WMWMx"}
    assert all(re.fullmatch("WMx|Mx", p) for p in patterns(sample(PaperLaw(2), rows=200), 2))


def test_bad_laws_are_refused() -> None:
    with pytest.raises(ValueError, match="horizon"):
        PaperLaw(1)
    with pytest.raises(ValueError, match="wrong_probability"):
        PaperLaw(6, wrong_probability=1.5)
    with pytest.raises(ValueError, match="law"):
        build_law("appendix", 6)
    with pytest.raises(ValueError, match="horizon"):
        build_law("attempts", 6, max_attempts=3)
    assert type(build_law("paper", 6)) is PaperLaw


@pytest.mark.parametrize("law", [PaperLaw(8), AttemptsLaw(8, 2)], ids=["paper", "attempts"])
def test_blank_positions_begin_masked_and_only_corrupted_ones_err(law) -> None:
    targets = np.full((400, 6), 5)
    blank = np.zeros(targets.shape, dtype=bool)
    blank[:200] = True
    corrupted = np.zeros_like(blank)
    corrupted[:, :3] = True
    uniforms = KeyedUniforms(row_keys(0, 0, range(400)))
    ids = list(range(400))
    found = law.sample(uniforms, targets, corrupted, UniformProposal(10, excluded=[0]), 0, ids, blank)
    states = np.stack([found.state(np.full(400, step)) for step in range(9)])
    wrong = (states != 0) & (states != 5)
    assert (states[0, :200] == 0).all()
    assert not wrong[:, :200, 3:].any() and (states[-1] == 5).all()
    changes = (states[1:, :200, 3:] != states[:-1, :200, 3:]).sum(0)
    assert (changes == 1).all(), "from the mask to the target, once"
    errs = wrong[:, :200, :3].any(0)
    assert errs.all() if isinstance(law, AttemptsLaw) else not errs.any()
    assert (states[:, 200:, 3:] == 5).all(), "rows that are not blank are as before"


def test_blank_rows_need_a_law_with_canvases() -> None:
    law, targets = AttemptsLaw(8, 2, draft=1.0, canvas=0.0, false_alarm=0.0), np.full((2, 6), 5)
    everything = np.ones(targets.shape, dtype=bool)
    with pytest.raises(ValueError, match="`blank` needs a law with canvases"):
        law.sample(
            KeyedUniforms(row_keys(0, 0, [0, 1])), targets, everything, UniformProposal(9), 0, [0, 1], everything
        )
