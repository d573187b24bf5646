"""Rollouts for reinforcement learning: every choice's log-probability is the one that the sampler drew it with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import wrapped
from tiny_remedi import BLOCKWISE, tiny_remedi
from torch import Tensor

from hf_rm import ReflectiveGenerationConfig
from hf_rm.generation_denoiser_rm import Denoiser
from hf_rm.training.log_probs import (
    ChoiceLogProbs,
    DrawSettings,
    _Blocks,
    block_attention,
    choice_log_probs,
    pairs,
    plackett_luce,
)
from hf_rm.training.rollouts import REVISION, TOKEN, Trajectory, check_rollout_config, left_padded, roll_out

MASK, RESERVED, TEMPERATURE = 0, 7, 0.8
PROMPTS = torch.tensor([[3, 4, 6], [9, 1, 10], [9, 9, 6]])
REAL = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]])


def settings(**kwargs: Any) -> ReflectiveGenerationConfig:
    defaults = {"temperature": TEMPERATURE, "suppressed_token_ids": [RESERVED], "stop_at_eos": False}
    return ReflectiveGenerationConfig(**{**defaults, **kwargs})


def draws(**kwargs: Any) -> DrawSettings:
    return DrawSettings(**{
        "mask_token_id": MASK, "forbidden": torch.tensor([MASK, RESERVED]), "temperature": TEMPERATURE, **kwargs
    })  # fmt: skip


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Tensor, Tensor, Tensor | None]]:
    """What the sampler was told in each of its steps: rows, positions, logits and policy scores."""
    seen: list[Any] = []
    plain = Denoiser.__call__

    def call(self: Denoiser, rows: Any, window: Tensor | None) -> Any:
        result = plain(self, rows, window)
        places = torch.arange(rows.ids.shape[1]).expand_as(rows.ids) if window is None else window.clone()
        seen.append((rows.index.clone(), places, result.logits.clone(), result.policy))
        return result

    monkeypatch.setattr(Denoiser, "__call__", call)
    return seen


def slow(seen: list[Any], trajectory: Trajectory, policy: bool) -> tuple[Tensor, Tensor]:
    """(B, S, N) log-probabilities of positions and tokens, one choice after another from the sampler's own numbers."""
    positions = torch.zeros(trajectory.choices.shape, dtype=torch.float64)
    tokens = torch.zeros_like(positions)
    for step, (index, places, logits, worth) in enumerate(seen):
        for row, window, scores, h in zip(
            index.tolist(), places.tolist(), logits.double(), worth if policy else logits, strict=True
        ):
            before, after = trajectory.states[row, step].tolist(), trajectory.states[row, step + 1].tolist()
            drawn: list[tuple[int, int]] = []
            for column, place in enumerate(window):
                if place == len(before) or trajectory.block[row, step] != trajectory.blocks[row, place]:
                    continue
                scaled = scores[column] / TEMPERATURE
                if before[place] == MASK and after[place] != MASK:
                    writable = [token for token in range(len(scaled)) if token not in (MASK, RESERVED)]
                    tokens[row, step, place] = scaled[after[place]] - torch.logsumexp(scaled[writable], 0)
                elif before[place] != MASK and not policy:
                    two = torch.stack((scaled[MASK], scaled[before[place]]))
                    which = 0 if after[place] == MASK else 1
                    positions[row, step, place] = two[which] - torch.logsumexp(two, 0)
                drawn.append((int(trajectory.order[row, step, place]), column))
            if policy:
                left = [column for _, column in sorted(drawn)]
                kept = [column for column in left if after[window[column]] != MASK]
                for column in kept if len(kept) < len(left) else []:
                    assert column == left[0]  # the kept ones come first
                    value = h[column].double() - torch.logsumexp(h[left].double(), 0)
                    positions[row, step, window[column]] = value
                    left.remove(column)
    return positions, tokens


def assert_equal(found: ChoiceLogProbs, expected: tuple[Tensor, Tensor], trajectory: Trajectory) -> None:
    torch.testing.assert_close(found.positions.double(), expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.tokens.double(), expected[1], atol=1e-4, rtol=0)
    assert torch.equal(found.tokens_drawn, expected[1] != 0) and torch.equal(found.positions_drawn, expected[0] != 0)
    assert torch.equal(found.tokens_drawn, trajectory.choices == TOKEN)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("steps", [6, 8, 20])
def test_remedi_by_blocks(monkeypatch: pytest.MonkeyPatch, steps: int, by_block: bool, use_cache: bool) -> None:
    """B divisible by N, not divisible, N > B; prompts of three lengths, the last block a short one."""
    model = tiny_remedi(2, **BLOCKWISE)
    seen = watched(monkeypatch)
    config = settings(preset="remedi", block_length=4, max_new_tokens=10, steps=steps, use_cache=use_cache)
    output, trajectory = roll_out(model, config, PROMPTS, REAL, generator=torch.Generator().manual_seed(steps))
    expected = slow(seen, trajectory, policy=True)
    assert (output.sequences[:, 3:] != MASK).all()
    assert int(output.num_remasks.sum()) > 0 or steps == 6  # with two steps a block there is nothing to take back
    found = choice_log_probs(model, model.config, trajectory, draws(by_block=by_block, pairs_per_forward=4))
    assert_equal(found, expected, trajectory)
    assert float(expected[0].min()) < -0.5 and float(expected[1].min()) < -0.5  # something was at stake


def test_the_last_step_keeps_all_and_has_no_positions_to_score() -> None:
    model = tiny_remedi(2, **BLOCKWISE)
    config = settings(preset="remedi", block_length=4, max_new_tokens=8, steps=4)
    for greedy in (False, True):
        _, trajectory = roll_out(model, config, PROMPTS, REAL, greedy_last_step=greedy)
        found = choice_log_probs(model, model.config, trajectory, draws(by_block=True))
        last = torch.tensor([False, True, False, True])
        assert not found.positions_drawn[:, last].any() and found.positions_drawn[:, ~last].any()
        assert bool(found.tokens_drawn[:, last].any()) is not greedy
        assert greedy or float(found.tokens.detach()[:, last].min()) < 0


@pytest.mark.parametrize("history", [{}, {"history_scope": "editable"}, {"history_decay": 0.5}])
@pytest.mark.parametrize("model_seed", [1, 5])
def test_reflective_masking_with_its_history(
    monkeypatch: pytest.MonkeyPatch, history: dict[str, Any], model_seed: int
) -> None:
    """Drafts to revise: each visible token is kept or re-masked, each mask gets a token, and the past counts."""
    model = wrapped(model_seed, **history)
    seen = watched(monkeypatch)
    ids, editable = torch.tensor([[3, 0, 6, 2, 8, 0], [1, 2, 3, 4, 5, 6]]), torch.ones(2, 6, dtype=torch.bool)
    editable[:, 0] = False
    generator = torch.Generator().manual_seed(3)
    output, trajectory = roll_out(model, settings(max_steps=7), ids, editable_mask=editable, generator=generator)
    expected = slow(seen, trajectory, policy=False)
    assert int(output.num_remasks.sum()) > 0 and int(output.num_reveals.sum()) > 2
    assert torch.equal(trajectory.states[:, :, 0], ids[:, :1].expand(-1, trajectory.states.shape[1]))
    found = choice_log_probs(model, model.config, trajectory, draws(use_history=True, pairs_per_forward=3))
    assert_equal(found, expected, trajectory)
    forgetful = choice_log_probs(model, model.config, trajectory, draws(use_history=False))
    assert not torch.allclose(found.tokens, forgetful.tokens, atol=1e-2)


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("start", ["answer", "sequence"])
def test_reflective_masking_by_blocks_with_a_frozen_history(
    monkeypatch: pytest.MonkeyPatch, by_block: bool, use_cache: bool, start: str
) -> None:
    """A block's memory begins with it and stands still after it; with blocks from the start prompts share one."""
    model = wrapped(4, history_scope="editable", attention_block_length=4, attention_block_start=start)
    seen = watched(monkeypatch)
    config = settings(max_new_tokens=9, max_revision_rounds=3, reveal="confidence", use_cache=use_cache)
    _, trajectory = roll_out(model, config, PROMPTS, REAL, generator=torch.Generator().manual_seed(1))
    assert (trajectory.choices == REVISION).any()
    expected = slow(seen, trajectory, policy=False)
    # A revision that the bound on rounds had closed was no choice.
    closed = (expected[0] != 0) & (trajectory.choices != REVISION)
    expected = expected[0].masked_fill(closed, 0.0), expected[1]
    found = choice_log_probs(model, model.config, trajectory, draws(use_history=True, freezes=True, by_block=by_block))
    assert_equal(found, expected, trajectory)


def test_who_sees_whom_row_by_row() -> None:
    """Prompt 1, answer 4, block 2: positions 0 | 1 2 | 3 4 and, noisy, 5 6 | 7 8."""
    number = torch.tensor([[-1, 0, 0, 1, 1]])
    allowed = block_attention(number, torch.ones(1, 5, dtype=torch.bool), 1)[0]
    expected = [[0], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    expected += [[0, 5, 6], [0, 5, 6], [0, 1, 2, 7, 8], [0, 1, 2, 7, 8]]
    assert [row.nonzero()[:, 0].tolist() for row in allowed] == expected


def test_plackett_luce_against_the_worked_numbers(vectors: Callable[[str], Any]) -> None:
    for case in vectors("remedi")["plackett_luce"]:
        h, drawn = torch.tensor([case["scores"]]).float(), case["order"]
        places = [drawn.index(i) if i in drawn else len(drawn) + i for i in range(len(case["scores"]))]
        taken = torch.tensor([[i in drawn for i in range(len(case["scores"]))]])
        total = plackett_luce(h, torch.tensor([places]), taken).sum().item()
        assert total == pytest.approx(0.0 if taken.all() else case["log_probability"], abs=1e-5)


def test_plackett_luce_gradient_agrees_with_finite_differences() -> None:
    h = torch.tensor([[0.3, -1.2, 2.0, 0.7, 5.0]], dtype=torch.float64)
    order, drawn = torch.tensor([[1, 3, 0, 2, -1]]), torch.tensor([[True, False, True, False, False]])

    def value(scores: Tensor) -> Tensor:
        return plackett_luce(scores, order, drawn).sum()

    leaf = h.clone().float().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    for place in range(5):
        step = torch.zeros_like(h)
        step[0, place] = 1e-2
        difference = (value((h + step).float()) - value((h - step).float())) / 2e-2
        assert gradient[0, place].item() == pytest.approx(difference.item(), abs=2e-3)
    assert gradient[0, 4] == 0 and gradient.isfinite().all()


def test_a_group_of_equal_prompts_differs_and_a_seed_repeats_it() -> None:
    model, prompts = tiny_remedi(2), torch.tensor([[3, 4]] * 8)
    config = settings(preset="remedi", max_new_tokens=6, steps=3)
    sample = lambda seed: roll_out(model, config, prompts, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    first, again, other = (sample(seed)[1].states for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row) for row in first[:, -1].tolist()}) > 4


def test_positions_are_drawn_as_plackett_luce_says() -> None:
    """4,000 first draws of one position of three: frequencies against softmax(h)."""
    model = tiny_remedi(3)
    ids = torch.tensor([[3, 0, 0, 0]])
    with torch.no_grad():
        expected = model(ids).policy[0, 1:].softmax(-1)
    config = settings(preset="remedi", steps=3)
    generator = torch.Generator().manual_seed(0)
    _, trajectory = roll_out(model, config, ids.expand(4000, -1), generator=generator)
    found = (trajectory.states[:, 1, 1:] != MASK).float().mean(0)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_looking_at_a_few_steps_depends_on_the_answer_alone() -> None:
    model = tiny_remedi(2)
    _, trajectory = roll_out(model, settings(preset="remedi", max_new_tokens=8, steps=8), PROMPTS.repeat(3, 1))
    few = draws(steps=3)
    found = choice_log_probs(model, model.config, trajectory, few)
    assert (found.tokens_drawn | found.positions_drawn).any(-1).sum(-1).tolist() == [3] * 9
    shuffle = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = Trajectory(**{name: value[shuffle] for name, value in vars(trajectory).items()})
    other = choice_log_probs(model, model.config, moved, few)
    torch.testing.assert_close(other.tokens, found.tokens[shuffle])
    whole = choice_log_probs(model, model.config, trajectory, draws())
    torch.testing.assert_close(found.tokens, torch.where(found.tokens_drawn, whole.tokens, 0.0))


@pytest.mark.parametrize("blocks", [{}, BLOCKWISE])
def test_steps_without_a_choice_are_not_looked_at(blocks: dict[str, Any]) -> None:
    """The greedy last step of each block, and steps that keep nothing, where there are more steps than positions."""
    model = tiny_remedi(2, **blocks)
    length = {"block_length": 4, "max_new_tokens": 8}
    for steps, looks in ((8, 3), (20, 3)):
        config = settings(preset="remedi", steps=steps, **length)
        _, trajectory = roll_out(model, config, PROMPTS, REAL, greedy_last_step=True)
        rows, looked = pairs(trajectory, _Blocks.of(trajectory, model.config), draws(by_block=bool(blocks)))
        assert rows.bincount().tolist() == [looks * (1 if blocks else 2)] * 3
        found = choice_log_probs(model, model.config, trajectory, draws(by_block=bool(blocks)))
        whole = choice_log_probs(model, model.config, trajectory, draws())
        torch.testing.assert_close(found.positions, whole.positions)
        torch.testing.assert_close(found.tokens, whole.tokens)
        assert int((found.tokens_drawn | found.positions_drawn).any(-1).sum()) == looks * 2 * 3


def test_padding_with_steps_changes_nothing() -> None:
    model = tiny_remedi(2)
    _, trajectory = roll_out(model, settings(preset="remedi", max_new_tokens=4, steps=4), PROMPTS)
    more = choice_log_probs(model, model.config, trajectory.padded(9), draws(), at_least=lambda count: count + 5)
    plain = choice_log_probs(model, model.config, trajectory, draws())
    torch.testing.assert_close(more.tokens[:, :4], plain.tokens)
    torch.testing.assert_close(more.positions[:, :4], plain.positions)
    assert not more.tokens_drawn[:, 4:].any() and not more.positions_drawn[:, 4:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "`temperature` is 0.0: a rollout draws its tokens"),
        ({"revise": "low_prob"}, "`revise` is 'low_prob', a rule without a probability"),
        ({"top_k": 3}, "`top_k` is 3: it changes what is drawn"),
        ({"guidance_scale": 2.0}, "`guidance_scale` is 2.0: it changes what is drawn"),
        ({"max_remasks": 3}, "`max_remasks` is 3: it changes what is drawn"),
        ({"reveal": "remdm", "revise": "remdm"}, "`revise` is 'remdm', a rule without a probability"),
        ({"preset": "remedi"}, 'reveal="policy" and revise="policy" need a model with a learned unmasking policy'),
    ],
)
def test_settings_without_a_probability_are_refused(changes: dict[str, Any], message: str) -> None:
    config = ReflectiveGenerationConfig(**{"temperature": 1.0, **changes})
    with pytest.raises(ValueError, match=message):
        check_rollout_config(wrapped(), config)


def test_a_mask_of_another_length_is_not_padded() -> None:
    with pytest.raises(ValueError, match="row 1 has 2 ids and an editable mask of 3: pass one entry a token"):
        left_padded([[1, 2, 3], [4, 5]], [[True] * 3, [True] * 3])
