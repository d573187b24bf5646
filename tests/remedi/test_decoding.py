"""RemeDi's decoding through the one loop, against a slow loop of its own: one row, no cache, nothing of the future."""

from typing import Any

import pytest
import torch
from tiny_remedi import BLOCKWISE, tiny_remedi
from torch import Tensor

from hf_rm import ReflectiveGenerationConfig, RemeDiForMaskedDiffusion
from hf_rm.generation_rm import ReflectiveOutput

MASK, BLOCK, END = 0, 4, 5
RESERVED = [7]


def slow(
    model: RemeDiForMaskedDiffusion, prompt: list[int], new: int, steps_of_blocks: list[int], end: int | None = None
) -> list[list[int]]:
    """
    All states of a row. Each forward pass reads the prompt, the finished blocks and the current one: where attention
    goes by blocks nothing else is ever seen; where it is full the masks of the later blocks are there too.
    """
    ids = [*prompt, *[MASK] * new]
    states = [list(ids)]
    full = model.config.attention_block_length is None
    for number, steps in enumerate(steps_of_blocks):
        begin = len(prompt) + number * BLOCK
        stop = min(begin + BLOCK, len(ids))
        size = stop - begin
        for step in range(1, steps + 1):
            seen = torch.tensor([ids if full else ids[:stop]])
            editable = torch.arange(seen.shape[1])[None] >= len(prompt)
            with torch.no_grad():
                output = model(seen, editable_mask=editable)
            logits, worth = output.logits[0].clone(), output.policy[0].tolist()
            logits[:, [MASK, *RESERVED]] = -torch.inf
            # K_n: size // steps a step, the remainder in the last ones.
            kept = step * (size // steps) + max(0, step - (steps - size % steps))
            best = sorted(range(begin, stop), key=lambda place: (-worth[place], place))[:kept]
            ids = [
                token
                if not begin <= place < stop
                else (int(logits[place].argmax()) if token == MASK else token)
                if place in best
                else MASK
                for place, token in enumerate(ids)
            ]
            states.append(list(ids))
        if end is not None and end in ids[begin:stop]:
            break
    return states


def decode(model: RemeDiForMaskedDiffusion, prompts: list[list[int]], side: str = "left", **kwargs: Any) -> Any:
    """A batch of prompts of unequal lengths, and how much padding each got."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    fill = [[9] * pad for pad in pads]
    rows = [[*f, *p] if side == "left" else [*p, *f] for p, f in zip(prompts, fill, strict=True)]
    real = [[0] * pad + [1] * (longest - pad) for pad in pads]
    mask = torch.tensor(real if side == "left" else [row[::-1] for row in real])
    settings = {"suppressed_token_ids": RESERVED, "output_trajectory": True, "stop_at_eos": False, **kwargs}
    return model.generate_reflective(torch.tensor(rows), mask, **settings), mask


def assert_row(output: ReflectiveOutput, row: int, mask: Tensor, expected: list[list[int]]) -> None:
    new = output.sequences.shape[1] - mask.shape[1]
    real = torch.cat((mask[row].bool(), torch.ones(new, dtype=torch.bool)))
    states = output.trajectory.states[: int(output.num_steps[row]) + 1, row, real].tolist()
    assert states == expected


PROMPTS = [[3, 4, 6, 2, 8], [1, 10], [6]]


@pytest.mark.parametrize("steps", [None, 6, 8, 20])
@pytest.mark.parametrize("use_cache", [False, True])
def test_blocks_with_and_without_a_cache_state_for_state(use_cache: bool, steps: int | None) -> None:
    """N < B, B not divisible by N, one a step, N > B; the last block is a short one."""
    model = tiny_remedi(2, **BLOCKWISE)
    output, mask = decode(model, PROMPTS, max_new_tokens=10, steps=steps, use_cache=use_cache)
    split = {None: [4, 4, 2], 6: [2, 2, 2], 8: [3, 3, 2], 20: [7, 7, 6]}[steps]
    for row, prompt in enumerate(PROMPTS):
        expected = slow(model, prompt, 10, split)
        assert_row(output, row, mask, expected)
    # Committing a finished block to the cache is no step, but a pass.
    assert output.num_steps.tolist() == [sum(split)] * 3
    assert output.num_forwards.tolist() == [sum(split) + (len(split) - 1) * use_cache] * 3
    assert int(output.num_remasks.sum()) > 0 or steps == 6
    assert output.stop_reason == ["converged"] * 3 and not (output.sequences == MASK).any()


def test_full_attention_state_for_state() -> None:
    model = tiny_remedi(1)
    output, mask = decode(model, PROMPTS, max_new_tokens=10, block_length=BLOCK)
    for row, prompt in enumerate(PROMPTS):
        assert_row(output, row, mask, slow(model, prompt, 10, [4, 4, 2]))
    assert int(output.num_remasks.sum()) > 0


@pytest.mark.parametrize("use_cache", [False, True])
def test_each_step_shows_exactly_k_n(use_cache: bool) -> None:
    output, _ = decode(tiny_remedi(3, **BLOCKWISE), PROMPTS, max_new_tokens=12, steps=9, use_cache=use_cache)
    visible = (output.trajectory.states[:, :, 5:] != MASK).unflatten(-1, (3, BLOCK)).sum(-1)
    for block in range(3):
        assert visible[3 * block : 3 * block + 4, :, block].tolist() == [[n] * 3 for n in (0, 1, 2, 4)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_row_is_the_same_alone(use_cache: bool, side: str) -> None:
    model = tiny_remedi(4, **BLOCKWISE)
    settings = {"max_new_tokens": 12, "use_cache": use_cache, "temperature": 0.7}
    generators = lambda: [torch.Generator().manual_seed(i) for i in range(3)]  # noqa: E731
    together, mask = decode(model, PROMPTS, side, **settings, generator=generators())
    for row, prompt in enumerate(PROMPTS):
        alone, _ = decode(model, [prompt], **settings, generator=generators()[row : row + 1])
        assert torch.equal(alone.sequences[0, len(prompt) :], together.sequences[row, mask.shape[1] :])


@pytest.mark.parametrize("use_cache", [False, True])
def test_an_answer_is_as_long_as_it_takes(use_cache: bool) -> None:
    """Rows end with the block that holds an end token; what follows it is padding."""
    lengths = set()
    for seed in (0, 4, 5):
        model = tiny_remedi(seed, **BLOCKWISE)
        output, mask = decode(
            model, PROMPTS, max_new_tokens=16, use_cache=use_cache, stop_at_eos=True, eos_token_id=END, pad_token_id=9
        )
        for row, prompt in enumerate(PROMPTS):
            states = slow(model, prompt, 16, [BLOCK] * 4, end=END)
            assert int(output.num_steps[row]) == len(states) - 1
            answer = [token for token in states[-1][len(prompt) :] if token != MASK]
            if END in answer:
                answer = answer[: answer.index(END) + 1]
                answer += [9] * (16 - len(answer))
            assert output.sequences[row, mask.shape[1] :].tolist() == answer
            lengths.add(len(states))
    assert len(lengths) > 1


def test_a_confidence_that_ranks_otherwise_decodes_otherwise() -> None:
    """The loop reads the learned confidence, not the scores of the tokens."""
    model = tiny_remedi(2, **BLOCKWISE)
    first, _ = decode(model, PROMPTS, max_new_tokens=10)
    model.stream.confidence.weight.data.neg_()
    second, _ = decode(model, PROMPTS, max_new_tokens=10)
    assert not torch.equal(first.trajectory.states, second.trajectory.states)


def test_the_model_s_own_settings_are_the_preset() -> None:
    model = tiny_remedi(0, **BLOCKWISE)
    config = model.generation_config
    assert isinstance(config, ReflectiveGenerationConfig)
    assert (config.reveal, config.revise, config.block_length) == ("policy", "policy", BLOCK)
    assert tiny_remedi(0).generation_config.block_length == 32


def test_a_cache_needs_attention_by_blocks() -> None:
    with pytest.raises(ValueError, match="not block-causal"):
        decode(tiny_remedi(0), PROMPTS, max_new_tokens=4, block_length=4, use_cache=True)


def test_blocks_that_start_anywhere_else_are_refused() -> None:
    with pytest.raises(ValueError, match="`attention_block_start` is 'prompt': pass one of sequence, answer"):
        tiny_remedi(0, attention_block_length=4, attention_block_start="prompt")
