"""History Reference: Eq. 2 in its three forms, the normalisation, and what must not change it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BACKBONES, llama, wrapped
from torch import Tensor, nn

from hf_rm import RMForMaskedDiffusion, history
from hf_rm.history import HistoryReference, HistorySegments, HistoryState, accumulate

EMBEDDINGS = torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ABLATIONS = {
    "off": {"history": False},
    "plain": {"history_decay": 1.0, "history_rotation": False},
    "decay": {"history_decay": 0.7, "history_rotation": False},
    "decay+rotation": {"history_decay": 0.7, "history_rotation": True},
}


def recurrence(reference: HistoryReference, embeddings: Tensor) -> Tensor:
    """(t + 1, d) states, oldest first, to a(t) by the recurrence."""
    state = HistoryState.empty(1, 1, embeddings.shape[-1])
    for embedding in embeddings:
        state = reference.advance(state, embedding[None, None])
    return state.accumulator[0, 0]


def as_runs(states: list[int]) -> HistorySegments:
    """The past of one position, its last state left out, as runs of one token."""
    ids: list[int] = []
    lags: list[int] = []
    for step, token in enumerate(states[:-1]):
        if step == 0 or token != states[step - 1]:
            ids.append(token)
            lags.append(len(states) - step)
    return HistorySegments(torch.tensor([[ids]], dtype=torch.long), torch.tensor([[[*lags, 1]]]))


def by_segments(reference: HistoryReference, states: list[int], table: nn.Embedding) -> Tensor:
    """a(t) of one position from its states by the prefix table."""
    current = table(torch.tensor([[states[-1]]]))
    return reference.advance_segments(as_runs(states), current, table).accumulator[0, 0]


# The worked numbers


@pytest.mark.parametrize(
    ("last", "expected"),
    [(1, [0.270151, 0.579265, 0.499975, 0.995]), (2, [2.316699, 0.042827, 0.254950, -0.505025])],
)
def test_hand_computed_example(last: int, expected: list[float]) -> None:
    embeddings = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [2, 0, 0, -1]])[: last + 1]
    for value in (accumulate(embeddings, 0.5, True), recurrence(HistoryReference(0.5), embeddings)):
        torch.testing.assert_close(value, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", range(6))
def test_vectors(vectors: Callable[[str], Any], case: int) -> None:
    vector = vectors("history_reference")[case]
    embeddings = torch.tensor(vector["embeddings"])
    expected = torch.tensor(vector["accumulated"])
    reference = HistoryReference(vector["decay"], vector["rotary"], vector["base"], eps=1e-30)
    table = nn.Embedding.from_pretrained(embeddings)
    segments = by_segments(reference, list(range(len(embeddings))), table)
    direct = accumulate(embeddings, vector["decay"], vector["rotary"], vector["base"])
    for value in (direct, recurrence(reference, embeddings), segments):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
    for norm, key in (("rms", "rms_normed_eps0"), ("match", "norm_matched")):
        normed = replace(reference, norm=norm).normalise(direct, embeddings[-1])
        torch.testing.assert_close(normed, torch.tensor(vector[key]), atol=2e-6, rtol=1e-6)


# Three forms of one sum


@settings(max_examples=40)
@given(
    decay=st.floats(0.05, 1.0),
    rotation=st.booleans(),
    runs=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 16)), min_size=1, max_size=12),
    base=st.sampled_from([10000.0, 100.0]),
)
def test_three_forms_agree_over_64_steps(
    decay: float, rotation: bool, runs: list[tuple[int, int]], base: float
) -> None:
    """Under any decay, as the network reads them: of root mean square 1. (A sum of 64 equal states is large.)"""
    states = [token for token, length in runs for _ in range(length)][:64]
    table = nn.Embedding.from_pretrained(torch.randn(7, 8, generator=torch.Generator().manual_seed(1)))
    reference = HistoryReference(decay, rotation, base, norm="rms", eps=1e-30)
    expected = accumulate(table.weight[states].double(), decay, rotation, base)
    expected = expected / expected.square().mean().sqrt()
    current = table.weight[states[-1]]
    by_recurrence, closed = recurrence(reference, table.weight[states]), by_segments(reference, states, table)
    read = [reference.normalise(value, current).double() for value in (by_recurrence, closed)]
    for value, other in ((read[0], expected), (read[1], expected), (read[0], read[1])):
        assert float((value - other).abs().max()) <= 1e-5


@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_sums_themselves_agree_to_1e_5_over_64_steps(decay: float, rotation: bool) -> None:
    """Up to the decay that is the default, without a scale; one token all along makes the largest sums."""
    table = nn.Embedding.from_pretrained(torch.randn(7, 8, generator=torch.Generator().manual_seed(1)))
    reference, random = HistoryReference(decay, rotation), torch.Generator().manual_seed(2)
    paths = [[token] * 64 for token in range(7)] + torch.randint(0, 7, (20, 64), generator=random).tolist()
    for states in paths:
        expected = accumulate(table.weight[states].double(), decay, rotation)
        by_recurrence, closed = recurrence(reference, table.weight[states]), by_segments(reference, states, table)
        for value, other in ((by_recurrence, expected), (closed, expected), (by_recurrence, closed)):
            assert float((value.double() - other).abs().max()) <= 1e-5


def test_padded_runs_change_nothing() -> None:
    table = nn.Embedding.from_pretrained(torch.randn(7, 8))
    reference = HistoryReference(0.8)
    current = table(torch.tensor([[4]]))
    tight = HistorySegments(torch.tensor([[[5, 0]]]), torch.tensor([[[6, 4, 1]]]))
    padded = HistorySegments(torch.tensor([[[5, 3, 0, 6]]]), torch.tensor([[[6, 4, 4, 1, 1]]]))
    expected = accumulate(table.weight[[5, 5, 0, 0, 0, 4]], 0.8, True)
    for segments in (tight, padded):
        state = reference.advance_segments(segments, current, table)
        torch.testing.assert_close(state.accumulator[0, 0], expected, atol=1e-6, rtol=0)
        assert state.steps.tolist() == [6]


def test_decay_outside_one_step_is_not_the_absolute_form() -> None:
    relative = accumulate(EMBEDDINGS, 0.9, True)
    last = len(EMBEDDINGS) - 1
    absolute = sum(0.9 ** (last - k) * history._rotate(e, k, 10000.0) for k, e in enumerate(EMBEDDINGS))
    assert float((absolute - relative).norm() / relative.norm()) > 0.1
    torch.testing.assert_close(absolute, history._rotate(relative, last, 10000.0))
    torch.testing.assert_close(recurrence(HistoryReference(0.9), EMBEDDINGS).double(), relative, atol=1e-5, rtol=1e-5)


def test_the_past_turns_by_negative_angles() -> None:
    past, now = torch.tensor([1.0, 0.0]), torch.zeros(2)
    expected = torch.tensor([math.cos(1.0), -math.sin(1.0)])
    torch.testing.assert_close(accumulate(torch.stack((past, now)), 1.0, True), expected)
    torch.testing.assert_close(recurrence(HistoryReference(1.0), torch.stack((past, now))), expected)
    table = nn.Embedding.from_pretrained(torch.stack((now, past)))
    torch.testing.assert_close(by_segments(HistoryReference(1.0), [1, 0], table), expected)


def test_order_is_read_unless_nothing_decays_or_turns() -> None:
    w, mask = EMBEDDINGS[0], EMBEDDINGS[1]
    early, late = torch.stack((mask, w, w, w)), torch.stack((w, w, mask, w))
    torch.testing.assert_close(accumulate(early, 1.0, False), accumulate(late, 1.0, False))
    for decay, rotation in ((0.9, False), (1.0, True), (0.9, True)):
        difference = accumulate(early, decay, rotation) - accumulate(late, decay, rotation)
        assert float(difference.norm()) > 0.05


@given(decay=st.floats(0.05, 0.99), rotation=st.booleans(), length=st.integers(1, 64), seed=st.integers(0, 99))
def test_norm_stays_below_the_geometric_bound(decay: float, rotation: bool, length: int, seed: int) -> None:
    embeddings = torch.randn(length, 8, generator=torch.Generator().manual_seed(seed))
    bound = float(embeddings.norm(dim=-1).max()) * (1 - decay**length) / (1 - decay)
    assert float(recurrence(HistoryReference(decay, rotation), embeddings).norm()) <= bound * (1 + 1e-5)
    # Without rotation, a constant token attains it.
    constant = recurrence(HistoryReference(decay, False), embeddings[:1].expand(length, -1))
    expected = float(embeddings[0].norm()) * (1 - decay**length) / (1 - decay)
    assert float(constant.norm()) == pytest.approx(expected, rel=1e-4)


def test_a_constant_token_drifts_as_method_says() -> None:
    embedding = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    a = accumulate(embedding.expand(6, -1), 0.9, True)
    assert float(torch.cosine_similarity(a, embedding, dim=0)) == pytest.approx(0.93, abs=0.02)


# What the backbone reads


def backbone_inputs(model: RMForMaskedDiffusion, states: list[Tensor], **kwargs: Any) -> Tensor:
    """The vectors that the backbone gets for the last of `states`, which are shown one after another."""
    seen: list[Tensor] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, arguments: seen.append(arguments["inputs_embeds"]), with_kwargs=True
    )
    memory = None
    with torch.no_grad():
        for state in states:
            memory = model(state, history=memory, **kwargs).history
    hook.remove()
    return seen[-1]


@pytest.mark.parametrize("scope", ["all", "editable"])
@pytest.mark.parametrize("norm", ["rms", "match", "none"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_norms_and_scopes(ablation: str, norm: str, scope: str) -> None:
    settings = ABLATIONS[ablation]
    model = wrapped(history_norm=norm, history_scope=scope, **settings)
    states = list(torch.randint(0, 11, (5, 2, 6), generator=torch.Generator().manual_seed(2)))
    editable = torch.tensor([[True, False, True, True, False, True], [False, True, True, True, True, False]])
    given = backbone_inputs(model, states, editable_mask=editable)
    embeddings = model.get_input_embeddings().weight.detach().double()[torch.stack(states)]
    expected = embeddings[-1]
    if ablation != "off":
        a = accumulate(embeddings, settings["history_decay"], settings["history_rotation"])
        rms_e, rms_a = (x.square().mean(-1, keepdim=True).sqrt() for x in (embeddings[-1], a))
        expected = {"rms": a / rms_a, "match": a * rms_e / rms_a, "none": a}[norm]
        if scope == "editable":
            expected = torch.where(editable[..., None], expected, embeddings[-1])
    torch.testing.assert_close(given.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("setting", [{"history_norm": "match"}, {"history_norm": "none"}, {"history": False}])
@pytest.mark.parametrize("family", BACKBONES)
def test_without_a_history_the_backbone_is_unchanged_bit_for_bit(
    family: str, setting: dict[str, Any], dtype: torch.dtype
) -> None:
    backbone = BACKBONES[family](vocab_size=40, hidden_size=32, layers=2).to(dtype)
    ids = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    padding = torch.ones_like(ids)
    padding[1, 6:] = 0
    with torch.no_grad():
        bare, bare_padded = backbone(ids).logits, backbone(ids, attention_mask=padding).logits
        model = RMForMaskedDiffusion.from_backbone(backbone, mask_token_id=0, **setting)
        assert torch.equal(model(ids).logits, bare)
        if family == "llama":  # its positions are those of the mask only at real tokens
            bare_padded, padding = bare_padded[:, :6], padding
            assert torch.equal(model(ids, attention_mask=padding).logits[:, :6], bare_padded)
        if setting != {"history": False}:
            memory = model(ids.flip(1)).history
            assert not torch.equal(model(ids, history=memory).logits, bare)


def test_the_paper_norm_does_change_a_backbone() -> None:
    backbone = llama()
    ids = torch.randint(0, 11, (2, 6))
    with torch.no_grad():
        bare = backbone(ids).logits
        model = RMForMaskedDiffusion.from_backbone(backbone, mask_token_id=0, history_norm="rms")
        assert not torch.equal(model(ids).logits, bare)


@pytest.mark.parametrize("norm", ["rms", "match", "none"])
def test_zero_rows_stay_zero(norm: str) -> None:
    reference = HistoryReference(norm=norm)
    zeros = torch.zeros(1, 2, 8)
    read = reference.normalise(reference.advance(HistoryState.empty(1, 2, 8), zeros).accumulator, zeros)
    assert torch.equal(read, zeros)
    # A zero token after a history: "match" follows the current token, the other two remember.
    state = reference.advance(HistoryState.empty(1, 2, 8), torch.ones(1, 2, 8))
    later = reference.normalise(reference.advance(state, zeros).accumulator, zeros)
    assert bool(later.isfinite().all())
    # eps keeps the ratio defined: a zero token's size is sqrt(eps).
    assert (float(later.abs().max()) < 1e-3) == (norm == "match")


def test_scope_editable_without_a_mask_is_refused() -> None:
    model = wrapped(history_scope="editable")
    with pytest.raises(ValueError, match="editable_mask"):
        model(torch.zeros(1, 3, dtype=torch.long))
    # Whether history is read decides, not how the model was made.
    assert model(torch.zeros(1, 3, dtype=torch.long), use_history=False).history is None


def test_a_history_that_no_weight_ever_read_is_refused() -> None:
    """In a forward pass and in decoding; what is no bool is not taken for True."""
    off = wrapped(history=False)
    for call in (off, off.generate_reflective):
        with pytest.raises(ValueError, match=r"`use_history` is True.*from_backbone\(\.\.\., history=True\)"):
            call(torch.zeros(1, 3, dtype=torch.long), use_history=True)
        with pytest.raises(ValueError, match="`use_history` is 'no': pass "):
            call(torch.zeros(1, 3, dtype=torch.long), use_history="no")


# Precision


def test_the_accumulator_is_float32_and_bfloat16_would_cost() -> None:
    """Measured over 64 steps with decay 0.9: relative error 1e-7 in float32, 4e-3 in bfloat16."""
    model = wrapped(history_norm="none", seed=3).to(torch.bfloat16)
    ids = torch.randint(0, 11, (64, 2, 5), generator=torch.Generator().manual_seed(0))
    memory = None
    with torch.no_grad():
        for state in ids:
            memory = model(state, history=memory).history
    assert memory.accumulator.dtype == torch.float32
    assert memory.steps.tolist() == [64, 64]
    embeddings = model.get_input_embeddings().weight.detach()[ids]
    exact = accumulate(embeddings.double(), 0.9, True)
    in_bfloat16 = torch.zeros_like(embeddings[0])
    for embedding in embeddings:
        in_bfloat16 = embedding + (0.9 * history._rotate(in_bfloat16, -1, 10000.0)).to(torch.bfloat16)
    error = float((memory.accumulator - exact).norm() / exact.norm())
    cost = float((in_bfloat16.double() - exact).norm() / exact.norm())
    assert error < 1e-6
    assert cost > 1000 * error


# Gradients and graphs


@pytest.mark.parametrize("rotation", [True, False])
def test_gradient_reaches_the_embeddings_of_past_tokens(rotation: bool) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(7, 8)
    states, weights = [5, 5, 0, 0, 3, 3, 3, 4], torch.randn(8)
    reference = HistoryReference(0.9, rotation)
    (by_segments(reference, states, table) * weights).sum().backward()
    fast = table.weight.grad.clone()
    table.weight.grad = None
    (accumulate(table.weight[states], 0.9, rotation) * weights).sum().backward()
    torch.testing.assert_close(fast, table.weight.grad, atol=1e-5, rtol=1e-5)
    assert all(float(fast[token].norm()) > 0 for token in set(states))
    assert float(fast[6].norm()) == 0


def test_gradient_reaches_past_tokens_through_the_model() -> None:
    model = wrapped(history_norm="match")
    ids = torch.full((1, 3), 4)
    past = HistorySegments(torch.full((1, 3, 1), 9), torch.tensor([3, 1]).expand(1, 3, 2))
    # Token 9 stands nowhere in the current state: only the history leads to its embedding.
    model(ids, history=past, labels=torch.full((1, 3), 2)).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert float(gradient[9].norm()) > 0
    assert float(gradient[8].norm()) == 0


def test_inference_mode_does_not_poison_training() -> None:
    for cached in (history._phasor, history._prefix_table):
        cached.cache_clear()
    model = wrapped()
    ids = torch.randint(0, 11, (1, 4), generator=torch.Generator().manual_seed(0))
    past = HistorySegments(ids[..., None], torch.tensor([4, 1]).expand(1, 4, 2))
    with torch.inference_mode():
        memory = model(ids).history
        model(ids, history=memory)
        model(ids, history=past)
        assert memory.accumulator.is_inference()
    for earlier in (memory, past, [memory.select(slice(0, 1)), past], model(ids).history):
        doubled = ids.repeat(len(earlier), 1) if isinstance(earlier, list) else ids
        model.zero_grad()
        model(doubled, history=earlier, labels=doubled).loss.backward()
        assert float(model.get_input_embeddings().weight.grad.norm()) > 0


def test_a_grid_model_trains_after_inference_mode() -> None:
    from tiny_models import grid_model

    from hf_rm import modeling_rm

    for cached in (modeling_rm._group_rows, modeling_rm._allowed_by_groups):
        cached.cache_clear()
    model = grid_model()
    ids = torch.ones(1, 9, dtype=torch.long)
    with torch.inference_mode():
        model(ids)
    model(ids, labels=ids).loss.backward()
    assert float(model.position_group_embeddings.weight.grad.norm()) > 0


# Values, not attributes


def test_a_state_is_a_value() -> None:
    model = wrapped()
    first, second = torch.randint(0, 11, (2, 2, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        memory = model(first).history
        kept = memory.accumulator.clone()
        once = model(second, history=memory)
        model(first, history=once.history)
        again = model(second, history=memory)
    assert torch.equal(memory.accumulator, kept)
    assert torch.equal(once.logits, again.logits)
    assert once.history.steps.tolist() == [2, 2]
    with pytest.raises(AttributeError):
        memory.steps = torch.zeros(2)


def test_rows_of_a_state_can_be_taken_apart_and_joined() -> None:
    state = HistoryState(torch.randn(3, 2, 4, requires_grad=True), torch.tensor([1, 2, 3]))
    parts = [
        state.select(torch.tensor([0])),
        state.select(torch.tensor([False, True, False])),
        state.select(slice(2, 3)),
    ]
    joined = HistoryState.cat(parts)
    assert torch.equal(joined.accumulator, state.accumulator)
    assert torch.equal(joined.steps, state.steps)
    assert joined.frozen is None
    assert not joined.detach().accumulator.requires_grad


def test_what_is_frozen_stays_so_in_a_joined_memory() -> None:
    """Rows of which some have finished blocks: their memory must stand in the next step."""
    free = HistoryState(torch.randn(1, 3, 4), torch.tensor([2]))
    held = HistoryState(torch.randn(2, 3, 4), torch.tensor([1, 1]), torch.tensor([[1, 0, 0], [0, 1, 1]]) > 0)
    joined = HistoryState.cat([free, held])
    assert joined.frozen.tolist() == [[False] * 3, [True, False, False], [False, True, True]]
    after = HistoryReference().advance(joined, torch.ones(3, 3, 4)).accumulator
    assert torch.equal((after == joined.accumulator).all(-1), joined.frozen)


def test_a_batch_may_mix_memories_and_segments() -> None:
    model = wrapped()
    table = model.get_input_embeddings()
    states = [[3, 3, 0, 5], [7, 0, 0, 2]]
    embeddings = table.weight.detach()[torch.tensor(states)]
    with torch.no_grad():
        memory = None
        for step in range(3):
            memory = model(torch.tensor([[states[0][step]]]), history=memory).history
        mixed = model(torch.tensor([[5], [2]]), history=[memory, as_runs(states[1])]).history
    expected = torch.stack([accumulate(e, 0.9, True) for e in embeddings])
    torch.testing.assert_close(mixed.accumulator[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert mixed.steps.tolist() == [4, 4]


@given(step=st.integers(0, 15), seed=st.integers(0, 30))
def test_later_states_do_not_leak_into_the_history(step: int, seed: int) -> None:
    """a(t) of a training sample does not change with anything the trajectory does after t."""
    import numpy as np

    from hf_rm.corruption import AttemptsLaw, UniformProposal
    from hf_rm.corruption.random import KeyedUniforms, row_keys

    law = AttemptsLaw(16, 2)
    targets = np.full((1, 20), 4, dtype=np.int64)
    drawn = law.sample(KeyedUniforms(row_keys(seed, 0, [0])), targets, targets > 0, UniformProposal(9, [0]), 0, [0])
    later = drawn.starts > step
    other = replace(
        drawn,
        tokens=np.where(later, 8 - drawn.tokens, drawn.tokens),
        starts=np.where(later, np.minimum(drawn.starts + 1, 17), drawn.starts),
    )
    table = nn.Embedding.from_pretrained(torch.randn(9, 8, generator=torch.Generator().manual_seed(0)))
    now = np.array([step])

    def history_of(trajectories: Any) -> Tensor:
        current = table(torch.from_numpy(trajectories.state(now)))
        segments = HistorySegments(torch.from_numpy(trajectories.tokens), torch.from_numpy(trajectories.lags(now)))
        return HistoryReference(0.9).advance_segments(segments, current, table).accumulator

    assert torch.equal(history_of(drawn), history_of(other))
