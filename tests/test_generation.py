"""The decoding loop: what every run must satisfy, how runs end, and what is refused before a run begins."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ScriptedModel, fixed_logits, forbidden_forward, one_hot_logits, wrapped
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from hf_rm import ReflectiveGenerationConfig
from hf_rm.generation_output_rm import KEEP, REMASK, REPLACE, REVEAL
from hf_rm.generation_rm import ReflectiveOutput, reflective_rule
from hf_rm.generation_rows_rm import LoopDetector
from hf_rm.history import accumulate

REVEALS = ("all", "threshold", "confidence", "margin", "entropy")
VOCAB, MASK = 11, 0


def draft(*shape: int, seed: int = 0, vocab_size: int = VOCAB) -> Tensor:
    """Random ids, masks among them."""
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def contrarian(ids: Tensor) -> Tensor:
    """Logits of a model that always wants every visible token back, and answers 3 everywhere."""
    return one_hot_logits(torch.full_like(ids, 3), mask=9.0)


def steady(ids: Tensor) -> Tensor:
    """Logits of a model that answers 3 everywhere and keeps whatever stands there."""
    return one_hot_logits(torch.full_like(ids, 3), mask=-5.0)


# Eq. 1, step by step


@pytest.mark.parametrize("seed", range(4))
def test_a_plain_run_without_history_is_eq1_repeated(seed: int) -> None:
    model = wrapped(seed, history=False)
    ids, editable = draft(3, 8, seed=seed), torch.rand(3, 8, generator=torch.Generator().manual_seed(seed)) < 0.8
    output = model.generate_reflective(ids, editable_mask=editable, max_steps=12, output_trajectory=True)
    states = output.trajectory.states
    # The last step of a loop is not Eq. 1: it reveals what is open and revises no more.
    lengths = output.num_steps - torch.tensor([reason == "loop" for reason in output.stop_reason]).long()
    assert int(lengths.min()) > 1
    for t in range(len(states) - 1):
        with torch.no_grad():
            expected = reflective_rule(states[t], model(states[t]).logits, MASK, editable)
        alive = lengths > t
        assert torch.equal(states[t + 1][alive], expected[alive])


@pytest.mark.parametrize("norm", ["match", "rms"])
@pytest.mark.parametrize("seed", range(3))
def test_a_plain_run_with_history_is_eq1_on_the_accumulated_states(seed: int, norm: str) -> None:
    """a(t) is computed anew from all states by the direct sum, and the bare backbone reads it."""
    model = wrapped(seed, history_norm=norm)
    ids = draft(2, 8, seed=seed)
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    output = model.generate_reflective(ids, editable_mask=everywhere, max_steps=10, output_trajectory=True)
    states, table = output.trajectory.states, model.get_input_embeddings().weight.detach()
    for t in range(len(states) - 1):
        a = accumulate(table[states[: t + 1]], 0.9, True)
        rms_a = a.square().mean(-1, keepdim=True).sqrt()
        size = table[states[t]].square().mean(-1, keepdim=True).sqrt() if norm == "match" else 1.0
        with torch.no_grad():
            expected = reflective_rule(states[t], model.model(inputs_embeds=a / rms_a * size).logits, MASK, everywhere)
        alive = output.num_steps > t
        assert torch.equal(states[t + 1][alive], expected[alive])
    assert int(output.num_remasks.sum()) > 0


def test_use_history_overrides_the_model() -> None:
    model, off = wrapped(1), wrapped(1, history=False)
    ids = draft(2, 8)
    settings = {"editable": "all", "max_steps": 10, "output_trajectory": True}
    plain = off.generate_reflective(ids, **settings).trajectory.states
    assert torch.equal(model.generate_reflective(ids, use_history=False, **settings).trajectory.states, plain)
    with_history = model.generate_reflective(ids, **settings).trajectory.states
    assert with_history.shape != plain.shape or not torch.equal(with_history, plain)


# Laws of every run


def check_run(output: ReflectiveOutput, ids: Tensor, editable: Tensor, forbidden: set[int]) -> None:
    """The laws that hold under all settings."""
    states, actions = output.trajectory.states, output.trajectory.actions
    assert torch.equal(states[0, :, : ids.shape[1]], ids)
    assert torch.equal(states[-1], output.sequences)
    assert actions.dtype == torch.int8 and len(actions) == len(states) - 1
    before, after = states[:-1], states[1:]
    # Actions and states tell the same story, and there is no token-to-token move.
    was_mask, is_mask = before == MASK, after == MASK
    assert torch.equal(actions == REVEAL, was_mask & ~is_mask)
    assert torch.equal(actions == REMASK, ~was_mask & is_mask)
    assert not (actions == REPLACE).any()
    assert torch.equal((actions == KEEP), before == after)
    # Positions that may not change did not; forbidden ids were not written.
    assert not ((before != after) & ~editable).any()
    assert not set(after[actions == REVEAL].tolist()) & forbidden
    # Counts and ends.
    assert torch.equal(output.num_reveals, (actions == REVEAL).sum((0, 2)))
    assert torch.equal(output.num_remasks, (actions == REMASK).sum((0, 2)))
    assert int(output.num_edits.sum()) == 0
    assert torch.equal(output.num_steps, output.num_forwards)
    assert int(output.num_steps.max()) == len(actions)
    for row, steps in enumerate(output.num_steps.tolist()):
        assert not actions[steps:, row].any()
    assert output.converged.tolist() == [reason == "converged" for reason in output.stop_reason]
    unfinished = ((output.sequences == MASK) & editable).any(-1)
    assert {output.stop_reason[row] for row in unfinished.nonzero()[:, 0].tolist()} <= {"max_steps"}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    reveal=st.sampled_from(REVEALS),
    history=st.booleans(),
    temperature=st.sampled_from([0.0, 1.5]),
    block_length=st.sampled_from([None, 2, 3]),
    max_new_tokens=st.sampled_from([None, 5]),
    limits=st.sampled_from(
        [{}, {"max_remasks_per_position": 1}, {"max_remask_ratio": 0.3}, {"max_revision_rounds": 2}, {"revise": None}]
    ),
    max_steps=st.sampled_from([3, 40]),
)
def test_every_run_obeys_the_state_machine(
    seed: int,
    reveal: str,
    history: bool,
    temperature: float,
    block_length: int | None,
    max_new_tokens: int | None,
    limits: dict[str, Any],
    max_steps: int,
) -> None:
    model = wrapped(seed % 5, history=history)
    ids = draft(3, 7, seed=seed)
    editable = torch.rand(3, 7, generator=torch.Generator().manual_seed(seed)) < 0.6
    editable[:, 3] = True
    kept = ids.clone(), editable.clone()
    output = model.generate_reflective(
        ids,
        editable_mask=editable,
        generator=torch.Generator().manual_seed(seed),
        max_new_tokens=max_new_tokens,
        reveal=reveal,
        reveal_threshold=0.5 if reveal == "threshold" else None,
        temperature=temperature,
        block_length=block_length,
        max_steps=max_steps,
        suppressed_token_ids=[5, 7],
        output_trajectory=True,
        **limits,
    )
    assert torch.equal(ids, kept[0]) and torch.equal(editable, kept[1])
    new = torch.ones(3, output.sequences.shape[1] - 7, dtype=torch.bool)
    check_run(output, ids, torch.cat((editable, new), 1), {MASK, 5, 7})


def test_generate_returns_the_sequences() -> None:
    model = wrapped()
    ids = draft(2, 6)
    expected = model.generate_reflective(ids, max_new_tokens=4, max_steps=9).sequences
    assert torch.equal(model.generate(ids, max_new_tokens=4, max_steps=9), expected)
    assert model.generate_reflective(ids, max_new_tokens=4, max_steps=9).trajectory is None


def test_greedy_decoding_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    wrapped_model = ScriptedModel(steady)
    wrapped_model.generate_reflective(torch.zeros(2, 4, dtype=torch.long))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mask_and_suppressed_ids_are_never_written() -> None:
    """Both by the model's own list and by the argument, under an adversary that prefers them."""
    logits = torch.zeros(4, 7)
    logits[:, [MASK, 2, 4]] = torch.tensor([9.0, 8.0, 7.0])
    logits[:, 6] = 1.0
    model = ScriptedModel(fixed_logits(logits), suppressed_token_ids=[2])
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert model.generate(ids, revise=None).tolist() == [[4, 4, 4, 4]]
    assert model.generate(ids, revise=None, suppressed_token_ids=[4]).tolist() == [[6, 6, 6, 6]]
    sampled = model.generate(ids.expand(50, -1), revise=None, temperature=3.0, suppressed_token_ids=[4])
    assert set(sampled.flatten().tolist()) == {1, 3, 5, 6}


# What may change


def test_editable_auto_and_all() -> None:
    ids = torch.tensor([[4, 0, 5, 0]])
    auto = ScriptedModel(contrarian).generate_reflective(ids, max_new_tokens=2, max_steps=1)
    assert auto.sequences.tolist() == [[4, 3, 5, 3, 3, 3]]
    every = ScriptedModel(contrarian).generate_reflective(ids, max_new_tokens=2, max_steps=1, editable="all")
    assert every.sequences.tolist() == [[0, 3, 0, 3, 3, 3]]


def test_padding_is_never_touched() -> None:
    ids = torch.tensor([[0, 0, 4, 0], [4, 0, 0, 0]])
    attention_mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    output = ScriptedModel(contrarian).generate_reflective(ids, attention_mask, editable="all", max_steps=1)
    assert output.sequences.tolist() == [[0, 3, 0, 3], [0, 3, 3, 0]]


def test_an_editable_mask_may_cover_the_canvas() -> None:
    ids = torch.tensor([[4, 4]])
    mask = torch.tensor([[False, False, True, False]])
    output = ScriptedModel(steady).generate_reflective(ids, editable_mask=mask, max_new_tokens=2)
    assert output.sequences.tolist() == [[4, 4, 3, 0]]


# How runs end


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_limit_per_position_ends_an_adversary(most: int) -> None:
    output = ScriptedModel(contrarian).generate_reflective(
        draft(2, 6, vocab_size=7), editable="all", max_remasks_per_position=most, max_steps=100, output_trajectory=True
    )
    assert output.stop_reason == ["converged"] * 2
    assert ((output.trajectory.actions == REMASK).sum(0) == most).all()
    assert not (output.sequences == MASK).any()


def test_a_ratio_bounds_every_step() -> None:
    output = ScriptedModel(contrarian).generate_reflective(
        torch.full((1, 8), 4), editable="all", max_remask_ratio=0.25, max_steps=6, output_trajectory=True
    )
    visible = (output.trajectory.states[:-1] != MASK).sum(-1)
    remasked = (output.trajectory.actions == REMASK).sum(-1)
    assert torch.equal(remasked, (visible // 4).clamp(min=1))
    assert output.stop_reason == ["max_steps"]


def test_revision_rounds_bound_a_polite_adversary() -> None:
    """It re-masks only full canvases: each revision round opens everything again."""

    def script(ids: Tensor) -> Tensor:
        full = (ids != MASK).all(-1)
        return torch.where(full[:, None, None], contrarian(ids), steady(ids))

    for rounds in (0, 1, 3):
        output = ScriptedModel(script, history=True).generate_reflective(
            torch.zeros(1, 4, dtype=torch.long), max_revision_rounds=rounds, max_steps=50
        )
        assert output.stop_reason == ["max_revision_rounds"], rounds
        assert output.sequences.tolist() == [[3, 3, 3, 3]]
        assert int(output.num_remasks) == 4 * rounds


@pytest.mark.parametrize(("rounds", "reason"), [(0, "max_revision_rounds"), (1, "converged"), (5, "converged")])
def test_a_bound_that_was_not_needed_is_not_the_reason(rounds: int, reason: str) -> None:
    output = ScriptedModel(steady).generate_reflective(torch.zeros(1, 4, dtype=torch.long), max_revision_rounds=rounds)
    assert output.stop_reason == [reason]


@pytest.mark.parametrize("rounds", [1, 2])
def test_every_block_has_its_own_revision_rounds(rounds: int) -> None:
    output = ScriptedModel(contrarian, history=True).generate_reflective(
        torch.zeros(1, 6, dtype=torch.long), block_length=2, max_revision_rounds=rounds, output_trajectory=True
    )
    assert (output.trajectory.actions == REMASK).sum(0).tolist() == [[rounds] * 6]
    assert output.stop_reason == ["max_revision_rounds"]
    assert not (output.sequences == MASK).any()


def test_a_loop_in_one_block_does_not_close_the_next() -> None:
    output = ScriptedModel(contrarian).generate_reflective(
        torch.zeros(1, 6, dtype=torch.long), block_length=2, output_trajectory=True
    )
    remasks = (output.trajectory.actions == REMASK).sum(0)[0].tolist()
    assert min(remasks) > 0
    assert remasks[2:4] == remasks[4:]
    assert output.stop_reason == ["loop"]


def test_max_steps_bounds_everything_and_says_so() -> None:
    model = ScriptedModel(contrarian, history=True)  # with history, a repeated state is no proof of a loop
    output = model.generate_reflective(torch.full((2, 5), 4), editable="all", max_steps=7)
    assert output.num_steps.tolist() == [7, 7]
    assert output.stop_reason == ["max_steps"] * 2
    assert not output.converged.any()
    assert len(model.seen) == 7


def test_a_two_cycle_without_history_is_found() -> None:
    model = ScriptedModel(contrarian)
    output = model.generate_reflective(torch.full((1, 4), 3), editable="all", max_steps=60)
    assert output.stop_reason == ["loop"]
    assert output.sequences.tolist() == [[3, 3, 3, 3]]
    assert not output.converged.any()
    assert int(output.num_steps) <= 6


def test_a_longer_cycle_beside_a_quiet_row() -> None:
    """Row one goes round through four states; row two is done at once and is not disturbed."""

    def script(ids: Tensor) -> Tensor:
        # The first mask decides which answers come back: 3 becomes a mask, is revealed as 4, becomes a mask, ...
        following = torch.where(ids == 4, 4, 3)
        cycling = (ids[:, :1] != 6)[..., None]
        return torch.where(cycling, one_hot_logits(following, mask=9.0), one_hot_logits(ids))

    output = ScriptedModel(script).generate_reflective(
        torch.tensor([[4, 3, 0], [6, 5, 5]]), editable="all", max_steps=60
    )
    assert output.stop_reason == ["loop", "converged"]
    assert not (output.sequences == MASK).any()
    assert output.sequences[1].tolist() == [6, 5, 5]
    assert output.converged.tolist() == [False, True]


def test_a_run_cut_off_after_its_loop_was_found_ended_at_max_steps() -> None:
    """A loop is found at step 3, with masks open; a limit of 3 leaves them."""
    full = ScriptedModel(contrarian).generate_reflective(torch.full((1, 4), 3), editable="all", output_trajectory=True)
    cut = int(full.num_steps) - 1
    output = ScriptedModel(contrarian).generate_reflective(torch.full((1, 4), 3), editable="all", max_steps=cut)
    assert (output.sequences == MASK).any()
    assert output.stop_reason == ["max_steps"]


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_patience_counts_quiet_steps(patience: int) -> None:
    output = ScriptedModel(steady).generate_reflective(torch.tensor([[0, 4]]), patience=patience)
    # One step reveals; `patience` steps change nothing.
    assert int(output.num_steps) == 1 + patience
    assert output.stop_reason == ["converged"]


def test_without_revision_a_run_ends_with_its_last_mask() -> None:
    output = ScriptedModel(contrarian).generate_reflective(torch.zeros(1, 6, dtype=torch.long), revise=None)
    assert int(output.num_steps) == 1
    assert output.converged.tolist() == [True]


@pytest.mark.parametrize("revise", ["reflective", None])
@pytest.mark.parametrize(("block_length", "patience"), [(None, 1), (1, 1), (1, 3), (8, 1)])
def test_the_default_bound_lets_a_long_canvas_finish(
    block_length: int | None, patience: int, revise: str | None
) -> None:
    output = ScriptedModel(steady).generate_reflective(
        torch.tensor([[4]]),
        max_new_tokens=200,
        reveal="confidence",
        block_length=block_length,
        patience=patience,
        revise=revise,
    )
    assert output.stop_reason == ["converged"]
    assert output.sequences[0, 1:].tolist() == [3] * 200


def test_the_default_bound_of_a_row_is_its_own() -> None:
    """A neighbour with a longer schedule must not buy a row more steps."""
    short = torch.tensor([[4, 4, 4, 4, 4, 0]])
    long = torch.zeros(1, 6, dtype=torch.long)
    model = ScriptedModel(contrarian, history=True)
    alone = model.generate_reflective(short, reveal="confidence")
    both = model.generate_reflective(torch.cat((long, short)), reveal="confidence")
    assert both.num_steps[1] == alone.num_steps[0] == 64 + 2 * 1
    assert both.num_steps[0] == 64 + 2 * 6
    assert torch.equal(both.sequences[1], alone.sequences[0])


# Blocks and the schedule


@pytest.mark.parametrize("reveal", REVEALS)
def test_blocks_are_finished_in_order(reveal: str) -> None:
    output = wrapped(2).generate_reflective(
        draft(2, 3), max_new_tokens=9, block_length=3, reveal=reveal, output_trajectory=True, max_steps=100
    )
    new = output.trajectory.actions[:, :, 3:]
    for row in range(2):
        active = [step.nonzero()[:, 0].tolist() for step in new[:, row]]
        blocks = [{position // 3 for position in positions} for positions in active if positions]
        assert all(len(block) == 1 for block in blocks)
        order = [block.pop() for block in blocks]
        assert order == sorted(order)


def reveals_per_step(steps: int | None, block_length: int | None, canvas: int = 10, prompt: int = 2) -> list[int]:
    output = ScriptedModel(steady).generate_reflective(
        torch.full((1, prompt), 4),
        max_new_tokens=canvas,
        steps=steps,
        block_length=block_length,
        reveal="confidence",
        revise=None,
        output_trajectory=True,
    )
    return (output.trajectory.actions == REVEAL).sum((1, 2)).tolist()


@pytest.mark.parametrize(
    ("steps", "block_length", "expected"),
    [
        (None, None, [1] * 10),
        (4, None, [3, 3, 2, 2]),
        (5, 5, [2, 2, 1, 3, 2]),  # three steps for the first block, two for the second
        (4, 4, [2, 2, 4, 2]),  # 2 + 1 + 1 steps for blocks of 4, 4 and 2
        (20, None, [1] * 10),  # empty steps come last, and a finished block does not wait for them
    ],
)
def test_steps_are_split_over_the_blocks(steps: int | None, block_length: int | None, expected: list[int]) -> None:
    assert reveals_per_step(steps, block_length) == expected


def test_fewer_steps_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="`steps` is 1, but the canvas has 2 blocks"):
        reveals_per_step(1, 5)


def test_masks_reopened_after_the_schedule_are_revealed() -> None:
    output = ScriptedModel(contrarian).generate_reflective(
        torch.zeros(1, 6, dtype=torch.long), steps=2, reveal="confidence", max_remasks_per_position=2, max_steps=60
    )
    assert output.stop_reason == ["converged"]
    assert not (output.sequences == MASK).any()


# Rows do not see each other


def assert_rows_agree(
    model: Any, rows: list[tuple[Tensor, Tensor | None]], batch: tuple[Tensor, Tensor], **kwargs: Any
) -> None:
    """Each of `rows` (ids, attention mask) alone gives its row of the padded batch."""
    ids, attention_mask = batch
    together = model.generate_reflective(ids, attention_mask, generator=generators(*range(len(rows))), **kwargs)
    for row, (alone_ids, _) in enumerate(rows):
        alone = model.generate_reflective(alone_ids[None], generator=generators(row), **kwargs)
        real = torch.cat((attention_mask[row], torch.ones(alone.sequences.shape[1] - len(alone_ids)))).bool()
        assert together.sequences[row][real].tolist() == alone.sequences[0].tolist(), row
        for name in ("num_steps", "num_reveals", "num_remasks"):
            assert int(together[name][row]) == int(alone[name]), (row, name)
        assert together.stop_reason[row] == alone.stop_reason[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("reveal", REVEALS)
def test_a_row_is_the_same_in_any_batch(reveal: str, temperature: float, side: str) -> None:
    model = wrapped(3)
    rows = [draft(length, seed=length) for length in (3, 7, 5, 7)]
    width = max(map(len, rows))
    ids, attention_mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, where], attention_mask[row, where] = tokens, 1
    assert_rows_agree(
        model,
        [(tokens, None) for tokens in rows],
        (ids, attention_mask),
        reveal=reveal,
        reveal_threshold=0.4 if reveal == "threshold" else None,
        temperature=temperature,
        max_new_tokens=4,
        block_length=3,
        max_steps=40,
    )


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    lengths=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    side=st.sampled_from(["left", "right"]),
    padding=st.integers(0, 3),
    reveal=st.sampled_from(REVEALS),
    history=st.booleans(),
    block_length=st.sampled_from([None, 3]),
    limits=st.sampled_from([{}, {"max_remasks_per_position": 1}, {"max_remask_ratio": 0.3}, {"revise": "low_prob"}]),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_neither_neighbours_nor_padding_matter(
    seed: int,
    lengths: list[int],
    side: str,
    padding: int,
    reveal: str,
    history: bool,
    block_length: int | None,
    limits: dict[str, Any],
    temperature: float,
) -> None:
    """A row alone and without padding, and among others with any amount of it: the same text, steps and end."""
    rows, width = [draft(length, seed=seed + length) for length in lengths], max(lengths) + padding
    ids, attention_mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, where], attention_mask[row, where] = tokens, 1
    chosen = {"reveal": reveal, "block_length": block_length, "temperature": temperature, **limits}
    assert_rows_agree(
        wrapped(seed % 4, history=history),
        [(tokens, None) for tokens in rows],
        (ids, attention_mask),
        max_new_tokens=3,
        max_steps=25,
        **chosen,
    )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    reveal=st.sampled_from(REVEALS),
    revise=st.sampled_from(["reflective", "low_prob", "t2t_remask", "logit_diff"]),
    block_length=st.sampled_from([None, 2]),
    limit=st.sampled_from([{"max_remasks_per_position": 2}, {"max_remasks": 5}, {"max_steps": 9}]),
    history=st.booleans(),
)
def test_any_limit_ends_any_model(
    seed: int, reveal: str, revise: str, block_length: int | None, limit: dict[str, int], history: bool
) -> None:
    """A model of no mind, whose scores are new in every step: runs end where the limit says, and without a mask."""
    generator = torch.Generator().manual_seed(seed)

    def script(ids: Tensor) -> Tensor:
        return 3 * torch.randn(*ids.shape, 7, generator=generator)

    ids = draft(3, 6, seed=seed, vocab_size=7)
    # Far out: what ends the run is the limit itself.
    settings = {"max_steps": 5000, "editable": "all", "block_length": block_length, **limit}
    output = ScriptedModel(script, history=history).generate_reflective(ids, reveal=reveal, revise=revise, **settings)
    if "max_steps" in limit:
        assert int(output.num_steps.max()) <= 9
        return
    assert not (output.sequences == MASK).any()
    assert int(output.num_steps.max()) < 2000 and "max_steps" not in output.stop_reason
    assert int(output.num_remasks.max()) <= (5 if "max_remasks" in limit else 2 * 6)


@pytest.mark.parametrize("history", [True, False])
def test_drafts_under_revision_are_the_same_in_any_batch(history: bool) -> None:
    model = wrapped(4, history=history)
    ids = draft(6, 8, seed=9)
    settings = {"editable": "all", "max_steps": 30, "max_remask_ratio": 0.5}
    together = model.generate_reflective(ids, **settings)
    assert len(set(together.num_steps.tolist())) > 1  # rows leave the batch at different times
    for row in range(6):
        alone = model.generate_reflective(ids[row : row + 1], **settings)
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert together.stop_reason[row] == alone.stop_reason[0]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(model.generate_reflective(ids[order], **settings).sequences, together.sequences[order])


def test_generators_decide_and_reproduce() -> None:
    model = wrapped(1)
    prompt = draft(1, 4).expand(3, -1)
    settings = {"max_new_tokens": 8, "temperature": 1.5, "revise": None}
    sampled = model.generate(prompt, generator=generators(1, 2, 1), **settings)
    assert not torch.equal(sampled[0], sampled[1])
    assert torch.equal(sampled[0], sampled[2])
    one = model.generate(prompt, generator=torch.Generator().manual_seed(5), **settings)
    again = model.generate(prompt, generator=torch.Generator().manual_seed(5), **settings)
    other = model.generate(prompt, generator=torch.Generator().manual_seed(6), **settings)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert len({tuple(row) for row in one.tolist()}) == 3  # one generator: still three different rows
    torch.manual_seed(7)
    first = model.generate(prompt, **settings)
    torch.manual_seed(7)
    assert torch.equal(model.generate(prompt, **settings), first)


def test_sampling_follows_the_tempered_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 0.0, 2.0, -1.0, 0.5, -30.0])
    rows, temperature = 4000, 0.8
    model = ScriptedModel(fixed_logits(logits.expand(1, 7)))
    ids = torch.zeros(rows, 1, dtype=torch.long)
    sampled = model.generate(ids, generator=torch.Generator().manual_seed(0), temperature=temperature, revise=None)
    share = torch.bincount(sampled[:, 0], minlength=7) / rows
    p = (logits.index_fill(0, torch.tensor([MASK]), -torch.inf) / temperature).softmax(-1)
    assert ((share - p).abs() <= 4 * (p * (1 - p) / rows).sqrt() + 1e-9).all()
    top = model.generate(ids, generator=torch.Generator().manual_seed(0), temperature=1.0, top_k=2, revise=None)
    assert set(top[:, 0].tolist()) == {1, 3}
    nucleus = model.generate(ids, generator=torch.Generator().manual_seed(0), temperature=1.0, top_p=0.5, revise=None)
    assert set(nucleus[:, 0].tolist()) == {3}


def test_finished_rows_leave_the_forward_pass() -> None:
    def script(ids: Tensor) -> Tensor:
        return one_hot_logits(torch.full_like(ids, 3), mask=-5.0)

    model = ScriptedModel(script)
    ids = torch.tensor([[4, 4, 4, 0], [0, 0, 0, 0], [4, 4, 0, 0]])
    output = model.generate_reflective(ids, reveal="confidence", revise=None)
    assert output.num_steps.tolist() == [1, 4, 2]
    assert [len(seen) for seen in model.seen] == [3, 2, 1, 1]
    assert (output.sequences == torch.where(ids == 0, 3, ids)).all()


# Scores that are none


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [MASK, 4], ids=["at the mask", "at a token"])
def test_scores_that_are_no_numbers_are_not_decoded(bad: float, place: int) -> None:
    """Else every position becomes token 1, which the run calls converged."""

    def script(ids: Tensor) -> Tensor:
        logits = steady(ids)
        logits[ids[:, 0] == 5, 2, place] = bad  # the row that begins with a 5, at its third position
        return logits

    model, ids = ScriptedModel(script), torch.tensor([[4, 0, 0], [5, 0, 0]])
    with pytest.raises(ValueError, match="scores of row 1 are not finite"):
        model.generate_reflective(ids)
    # Where nothing is decoded, nobody reads them: padding may see nothing at all.
    output = model.generate_reflective(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert output.sequences.tolist() == [[4, 3, 3], [5, 3, 0]]


# Loops


def test_the_loop_detector_finds_what_a_set_finds_and_copies_little() -> None:
    states = torch.randint(0, 3, (400, 2, 4), generator=torch.Generator().manual_seed(0))
    detector, places = LoopDetector(states[0]), set()
    seen = [{tuple(row)} for row in states[0].tolist()]
    for step, ids in enumerate(states[1:]):
        if step == 200:  # the second row begins a block
            detector.forget(torch.tensor([False, True]))
            seen[1] = set()
        found = detector.returned(ids).tolist()
        assert found == [tuple(row) in known for row, known in zip(ids.tolist(), seen, strict=True)]
        for row, known in zip(ids.tolist(), seen, strict=True):
            known.add(tuple(row))
        places.add(detector.seen.data_ptr())
    assert len(places) <= 10, "a new place for 1, 2, 4, ... states, not for each"
    detector.select(torch.tensor([False, True]))
    assert detector.returned(states[-1][1:]).tolist() == [True]


# Streaming


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def put(self, value: Tensor) -> None:
        self.calls.append(("put", value.clone()))

    def put_draft(self, value: Tensor) -> None:
        self.calls.append(("put_draft", value.clone()))

    def end(self) -> None:
        self.calls.append(("end", None))


def test_streamer_sees_every_state_in_order() -> None:
    streamer = Recorder()
    output = wrapped(2).generate_reflective(
        draft(2, 4), max_new_tokens=4, streamer=streamer, output_trajectory=True, max_steps=20
    )
    states = output.trajectory.states
    names = [name for name, _ in streamer.calls]
    assert names == ["put", *["put_draft"] * (len(states) - 1), "put", "end"]
    for (_, value), state in zip(streamer.calls[:-2], states):
        assert torch.equal(value, state)
    assert torch.equal(streamer.calls[-2][1], output.sequences)


def test_a_plain_streamer_gets_no_drafts() -> None:
    class Plain(BaseStreamer):
        calls: list[str] = []

        def put(self, value: Tensor) -> None:
            self.calls.append("put")

        def end(self) -> None:
            self.calls.append("end")

    streamer = Plain()
    ScriptedModel(steady).generate_reflective(torch.zeros(1, 3, dtype=torch.long), streamer=streamer)
    assert streamer.calls == ["put", "put", "end"]


# Bad input: a clear error that names the argument, before any forward pass

IDS = torch.tensor([[4, 0, 0], [4, 4, 0]])
BAD = {
    "unknown argument": ({"num_beams": 4}, "num_beams"),
    "several unknown arguments": ({"do_sample": True, "stepz": 3}, "do_sample.*stepz"),
    "empty batch": ({"input_ids": IDS[:0]}, "input_ids"),
    "one row without a batch": ({"input_ids": IDS[0]}, "input_ids"),
    "floats": ({"input_ids": IDS.float()}, "input_ids"),
    "a list": ({"input_ids": IDS.tolist()}, "input_ids"),
    "bools": ({"input_ids": IDS > 0}, "`input_ids` is torch.bool"),
    "complex": ({"input_ids": IDS.to(torch.complex64)}, "`input_ids` is torch.complex64"),
    "an id past the vocabulary": ({"input_ids": torch.tensor([[4, 7, 0]])}, "input_ids"),
    "a negative id": ({"input_ids": torch.tensor([[4, -100, 0]])}, "input_ids"),
    "attention mask shape": ({"attention_mask": torch.ones(2, 4)}, "attention_mask"),
    "attention mask list": ({"attention_mask": [[1, 1, 1], [1, 1, 1]]}, "attention_mask"),
    "attention mask nan": (
        {"attention_mask": torch.tensor([[1.0, float("nan"), 1.0], [1.0, 1.0, 1.0]])},
        "`attention_mask` holds nan: pass 1",
    ),
    "attention mask negative": (
        {"attention_mask": torch.tensor([[1, 1, 1], [-1, 1, 1]])},
        "`attention_mask` holds -1",
    ),
    "attention mask 2": ({"attention_mask": torch.tensor([[1, 1, 2], [1, 1, 1]])}, "`attention_mask` holds 2"),
    "attention mask additive": ({"attention_mask": torch.zeros(2, 3) - torch.inf}, "`attention_mask` holds -inf"),
    "attention mask array": ({"attention_mask": torch.ones(2, 3).numpy()}, "`attention_mask` is ndarray"),
    "editable mask shape": ({"editable_mask": torch.ones(2, 4, dtype=torch.bool)}, "editable_mask"),
    "editable mask rank": ({"editable_mask": torch.ones(3, dtype=torch.bool)}, "editable_mask"),
    "editable mask dtype": ({"editable_mask": torch.ones(2, 3)}, "editable_mask"),
    "editable mask list": ({"editable_mask": [[True] * 3] * 2}, "editable_mask"),
    "nothing editable": ({"input_ids": torch.full((2, 3), 4)}, "nothing editable"),
    "nothing editable in one row": ({"editable_mask": IDS == torch.tensor([[0], [1]])}, "Row 1.*nothing editable"),
    "padding only": ({"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}, "Row 1.*nothing editable"),
    "mask id outside": ({"mask_token_id": 7}, "mask_token_id"),
    "mask id negative": ({"mask_token_id": -1}, "mask_token_id"),
    "mask id no integer": ({"mask_token_id": "0"}, "mask_token_id"),
    "suppressed id outside": ({"suppressed_token_ids": [9]}, "suppressed_token_ids"),
    "suppressed fraction": (
        {"suppressed_token_ids": [1.5]},
        r"`suppressed_token_ids` is \[1.5\]: pass a list of token",
    ),
    "suppressed whole float": ({"suppressed_token_ids": [1.0]}, "`suppressed_token_ids` is .*pass a list"),
    "suppressed bool": ({"suppressed_token_ids": [True]}, "`suppressed_token_ids` is .*pass a list"),
    "suppressed text": ({"suppressed_token_ids": "12"}, "`suppressed_token_ids` is '12': pass a list"),
    "suppressed number": ({"suppressed_token_ids": 5}, "`suppressed_token_ids` is 5: pass a list"),
    "suppressed tensor": (
        {"suppressed_token_ids": torch.tensor([1, 2])},
        "`suppressed_token_ids` is tensor.*pass a list",
    ),
    "everything suppressed": ({"suppressed_token_ids": [1, 2, 3, 4, 5, 6]}, "suppressed_token_ids"),
    "negative steps": ({"steps": -1, "reveal": "confidence"}, "steps"),
    "negative max_steps": ({"max_steps": -3}, "max_steps"),
    "negative new tokens": ({"max_new_tokens": -1}, "max_new_tokens"),
    "negative rounds": ({"max_revision_rounds": -1}, "max_revision_rounds"),
    "negative re-masks": ({"max_remasks_per_position": -1}, "max_remasks_per_position"),
    "negative ratio": ({"max_remask_ratio": -0.1}, "max_remask_ratio"),
    "ratio above 1": ({"max_remask_ratio": 1.1}, "max_remask_ratio"),
    "block length 0": ({"block_length": 0}, "block_length"),
    "patience 0": ({"patience": 0}, "patience"),
    "negative temperature": ({"temperature": -1.0}, "temperature"),
    "temperature nan": ({"temperature": float("nan")}, "temperature"),
    "top_p out of range": ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
    "top_k without sampling": ({"top_k": 3}, "temperature"),
    "unknown reveal": ({"reveal": "random"}, "reveal"),
    "unknown revise": ({"revise": "sometimes"}, "revise"),
    "unknown editable": ({"editable": "none"}, "editable"),
    "steps without a schedule": ({"reveal": "threshold", "steps": 4}, "steps"),
    "a threshold that nothing reads": ({"reveal_threshold": 0.5}, '`reveal_threshold` is 0.5, but reveal="all"'),
    "the default one too": ({"reveal_threshold": 0.9, "reveal": "margin"}, 'reveal="margin" has no threshold'),
    "rounds without revision": ({"revise": None, "max_revision_rounds": 2}, "`max_revision_rounds` contradict revise"),
    "limits without revision": ({"revise": None, "max_remask_ratio": 0.5}, "revise"),
    "generators of another number": ({"generator": generators(0, 1, 2), "temperature": 1.0}, "generator"),
    "generators of another number, greedy": ({"generator": generators(0)}, "generator"),
    "a seed for a generator": ({"generator": 42}, r"`generator` is 42: .*manual_seed\(42\)"),
    "seeds for generators": ({"generator": [1, 2], "temperature": 1.0}, r"`generator` is \[1, 2\]"),
    "no generators": ({"generator": [None, None]}, r"`generator` is \[None, None\]"),
    "no generators, sampling": ({"generator": [None, None], "temperature": 1.0}, r"`generator` is \[None, None\]"),
    "a text for a streamer": ({"streamer": "x"}, r"`streamer` is 'x': pass an object with put\(ids\) and end\(\)"),
    "a list for a streamer": ({"streamer": []}, r"`streamer` is \[\]"),
    "history no bool": ({"use_history": "no"}, "`use_history` is 'no': pass one of True, False, None"),
    "trajectory no bool": ({"output_trajectory": "yes"}, "`output_trajectory` is 'yes': pass one of True, False"),
    "cache no bool": ({"use_cache": None}, "`use_cache` is None"),
    "end no bool": ({"stop_at_eos": "false"}, "`stop_at_eos`"),
    "another library's config": ({"generation_config": object()}, "generation_config"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_forward(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ScriptedModel(forbidden_forward).generate_reflective(**{"input_ids": IDS, **arguments})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integers_are_token_ids(dtype: torch.dtype) -> None:
    model, ids = wrapped(1), draft(2, 6)
    expected = model.generate_reflective(ids, editable_mask=ids < 9, max_steps=6, output_trajectory=True)
    output = model.generate_reflective(ids.to(dtype), editable_mask=ids < 9, max_steps=6, output_trajectory=True)
    assert output.sequences.dtype == torch.long
    assert torch.equal(output.trajectory.states, expected.trajectory.states)
    with torch.no_grad():
        assert torch.equal(model(ids.to(dtype)).logits, model(ids).logits)


def test_a_model_without_a_mask_id_is_refused_before_any_forward() -> None:
    with pytest.raises(ValueError, match="mask_token_id"):
        ScriptedModel(forbidden_forward, mask_token_id=None).generate_reflective(IDS)
    # An id given by hand is enough.
    assert ScriptedModel(steady, mask_token_id=None).generate(IDS, mask_token_id=0).tolist() == [[4, 3, 3], [4, 4, 3]]


def test_a_setting_spoiled_by_hand_is_refused_before_any_forward() -> None:
    config = ReflectiveGenerationConfig()
    config.max_steps = -4
    with pytest.raises(ValueError, match="max_steps"):
        ScriptedModel(forbidden_forward).generate_reflective(IDS, generation_config=config)


def test_the_good_arguments_of_the_bad_cases_do_run() -> None:
    """So that the cases above fail for the reason they name."""
    output = ScriptedModel(steady).generate_reflective(IDS, torch.ones(2, 3), IDS == 0, generator=generators(0, 1))
    assert output.converged.all()
    for ids in ([], (1, 2), {1, 2}, range(1, 3), [np.int64(1)]):
        assert ScriptedModel(steady).generate_reflective(IDS, suppressed_token_ids=ids).converged.all()
    for dtype in (torch.bool, torch.uint8, torch.bfloat16):
        assert ScriptedModel(steady).generate_reflective(IDS, torch.ones(2, 3, dtype=dtype)).converged.all()
