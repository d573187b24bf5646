"""Block diffusion: bidirectional inside a block, causal across blocks, with a cache of finished blocks and without."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import llama
from torch import Tensor

from hf_rm import RMForMaskedDiffusion
from hf_rm.generation_denoiser_rm import Denoised, Denoiser
from hf_rm.generation_rm import ReflectiveOutput
from hf_rm.generation_rows_rm import Rows
from hf_rm.history import accumulate

VOCAB, MASK, BLOCK = 11, 0, 4


@cache
def block_model(history: bool, seed: int = 0) -> RMForMaskedDiffusion:
    return RMForMaskedDiffusion.from_backbone(
        llama(VOCAB, layers=2, seed=seed),
        mask_token_id=MASK,
        attention_block_length=BLOCK,
        history=history,
        history_scope="editable",
    ).eval()


def prompts(lengths: list[int], side: str) -> tuple[Tensor, Tensor]:
    width = max(lengths)
    ids, attention_mask = torch.zeros(2, len(lengths), width, dtype=torch.long)
    random = torch.Generator().manual_seed(3)
    for row, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, where] = torch.randint(1, VOCAB, (length,), generator=random)
        attention_mask[row, where] = 1
    return ids, attention_mask


class Spy:
    """Keeps the logits of every call of the denoiser: {(row, step): {position: logits}}."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: dict[tuple[int, int], dict[int, Tensor]] = {}
        plain = Denoiser.__call__

        def call(denoiser: Denoiser, rows: Rows, window: Tensor | None) -> Denoised:
            denoised = plain(denoiser, rows, window)
            length = rows.ids.shape[1]
            places = torch.arange(length).expand(len(rows.ids), -1) if window is None else window
            for i, row in enumerate(rows.index.tolist()):
                active = {
                    place: denoised.logits[i, column].clone()
                    for column, place in enumerate(places[i].tolist())
                    if place < length and rows.blocks[i, place] == rows.block[i]
                }
                self.seen[row, int(rows.steps[i])] = active
            return denoised

        patch.setattr(Denoiser, "__call__", call)


def decode(model: Any, ids: Tensor, attention_mask: Tensor | None, **settings: Any) -> tuple[ReflectiveOutput, Spy]:
    with pytest.MonkeyPatch.context() as patch:
        spy = Spy(patch)
        given = {"max_new_tokens": 10, "max_steps": 60, "output_trajectory": True, **settings}
        return model.generate_reflective(ids, attention_mask, **given), spy


def assert_same_logits(first: Spy, second: Spy) -> float:
    """The largest difference there is."""
    assert first.seen.keys() == second.seen.keys()
    worst = 0.0
    for step, positions in first.seen.items():
        assert positions.keys() == second.seen[step].keys()
        for position, logits in positions.items():
            worst = max(worst, float((logits - second.seen[step][position]).abs().max()))
    assert worst <= 1e-5
    return worst


SETTINGS: dict[str, dict[str, Any]] = {
    "reflective": {"reveal": "confidence", "max_remasks_per_position": 2},
    "low_prob": {"reveal": "threshold", "revise": "low_prob", "max_remasks_per_position": 2, "max_remask_ratio": 0.5},
    "t2t": {"preset": "llada2.1-speed", "block_length": BLOCK, "use_history": None, "max_revision_rounds": 4},
    "llada": {"preset": "llada", "steps": 6, "use_history": None},
}


@pytest.mark.parametrize(("side", "guidance_scale"), [("left", 1.7), ("right", 1.0)])
@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_with_cache_as_without(name: str, history: bool, side: str, guidance_scale: float) -> None:
    """
    Prompts that fill their last block (4) and that share it with the canvas; canvases whose last block is cut off;
    rows that reach their blocks at different steps and end at different times.
    """
    ids, attention_mask = prompts([5, 3, 9, 4], side)
    model = block_model(history)
    settings = {**SETTINGS[name], "guidance_scale": guidance_scale}
    plain, without = decode(model, ids, attention_mask, **settings)
    cached, within = decode(model, ids, attention_mask, use_cache=True, **settings)
    assert torch.equal(plain.sequences, cached.sequences)
    assert torch.equal(plain.trajectory.states, cached.trajectory.states)
    assert torch.equal(plain.num_steps, cached.num_steps)
    assert plain.stop_reason == cached.stop_reason
    assert_same_logits(without, within)
    assert len(set(plain.num_steps.tolist())) > 1 or name == "llada"
    if name != "llada":
        assert int((plain.num_remasks + plain.num_edits).sum()) > 0


@pytest.mark.parametrize("history", [False, True])
def test_the_cache_spares_the_finished_blocks(history: bool) -> None:
    """After the first forward pass none reads more than a block."""
    model, widths = block_model(history), []
    inner = model.model.model
    handle = inner.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(output[0].shape[1]), with_kwargs=True
    )
    try:
        ids, attention_mask = prompts([5, 9], "left")
        decode(model, ids, attention_mask, use_cache=True, **SETTINGS["reflective"])
    finally:
        handle.remove()
    assert widths[0] == 19 and set(widths[1:]) == {BLOCK}


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("history", [False, True])
def test_logits_are_those_of_the_sum_over_all_states(history: bool, use_cache: bool) -> None:
    """
    Independent of the loop: each row alone; Eq. 2 as it is written, from the states of each block's own time; a mask
    from two nested loops; the bare backbone.
    """
    ids, attention_mask = prompts([5, 3], "left")
    model = block_model(history)
    settings = {**SETTINGS["low_prob"], "revise_threshold": 0.8}
    output, spy = decode(model, ids, attention_mask, use_cache=use_cache, **settings)
    table = model.get_input_embeddings().weight.detach()
    for row, length in enumerate((5, 3)):
        padding = ids.shape[1] - length
        states = output.trajectory.states[:, row, padding:]
        whole = states.shape[1]
        block_of = [place // BLOCK for place in range(whole)]
        mask = torch.full((whole, whole), -math.inf)
        for i in range(whole):
            for j in range(whole):
                if block_of[j] <= block_of[i]:
                    mask[i, j] = 0.0
        # Which block each step worked on, and from which step to which.
        steps = int(output.num_steps[row])
        active = [block_of[min(spy.seen[row, step]) - padding] for step in range(steps)]
        for step in range(steps):
            inputs = table[states[step]].clone()
            for place in range(length, whole):
                block = block_of[place]
                if not history or block > active[step]:
                    continue
                first = active.index(block)
                # The state that a block ended with is the last to join its memory.
                last = min(step, first + active.count(block))
                e = table[states[first : last + 1, place]]
                a = accumulate(e, 0.9, True)
                now = table[states[step, place]]
                inputs[place] = a * (now.square().mean() + 1e-8).sqrt() / (a.square().mean() + 1e-8).sqrt()
            with torch.no_grad():
                logits = model.model(inputs_embeds=inputs[None], attention_mask=mask[None, None]).logits[0]
            for place, seen in spy.seen[row, step].items():
                assert float((logits[place - padding] - seen).abs().max()) <= 2e-5, (row, step, place)
    assert int(output.num_remasks.min()) > 0


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("history", [False, True])
def test_a_later_block_changes_nothing_earlier(history: bool, use_cache: bool) -> None:
    """A draft in the third block, another one, or masks: the first two come out the same, step by step."""
    model = block_model(history)
    prompt, _ = prompts([6], "left")
    editable = torch.arange(16)[None] >= 6
    runs = []
    for later in ([0, 0, 0, 0], [3, 1, 4, 1], [9, 2, 6, 0]):
        ids = torch.cat((prompt, torch.zeros(1, 6, dtype=torch.long), torch.tensor([later])), dim=1)
        runs.append(
            decode(
                model,
                ids,
                None,
                editable_mask=editable,
                max_new_tokens=None,
                use_cache=use_cache,
                **SETTINGS["reflective"],
            )
        )
    first, spy = runs[0]
    earlier = {step for step, positions in spy.seen.items() if max(positions) < 12}
    assert len(earlier) > 4
    for output, other in runs[1:]:
        for step in earlier:
            assert spy.seen[step].keys() == other.seen[step].keys()
            for position in spy.seen[step]:
                assert float((spy.seen[step][position] - other.seen[step][position]).abs().max()) <= 1e-6
        count = len(earlier) + 1
        assert torch.equal(output.trajectory.states[:count, :, :12], first.trajectory.states[:count, :, :12])
    assert not torch.equal(runs[0][0].sequences, runs[1][0].sequences) or not history


def test_later_blocks_do_matter_to_the_one_that_reads_them() -> None:
    """So that the test above can fail: an earlier block does change a later one."""
    model = block_model(True)
    ids, _ = prompts([12], "left")
    other = ids.clone()
    other[:, 2] = other[:, 2] % (VOCAB - 1) + 1
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        logits, changed = (model(i, editable_mask=everywhere).logits for i in (ids, other))
    assert float((logits[:, 8:] - changed[:, 8:]).abs().max()) > 1e-2


def test_a_revision_beyond_the_active_block_is_seen() -> None:
    """With `revise_scope="all"` nothing is frozen and nothing cached: every step reads the canvas as it stands."""
    model = block_model(True)
    prompt, _ = prompts([5], "left")
    settings = {
        **SETTINGS["low_prob"],
        "revise_scope": "all",
        "max_remask_ratio": None,
        "revise_threshold": 0.97,
        "max_revision_rounds": 0,
    }
    plain, spy = decode(model, prompt, None, **settings)
    cached, _ = decode(model, prompt, None, use_cache=True, **settings)
    assert torch.equal(plain.trajectory.states, cached.trajectory.states)
    blocks = torch.arange(15) // BLOCK
    beyond = 0
    for step in range(int(plain.num_steps)):
        active = blocks[min(spy.seen[0, step])]
        beyond += int(((plain.trajectory.actions[step, 0] == 2) & (blocks < active)).sum())
    assert beyond > 0


def test_a_revised_token_of_an_earlier_block_reaches_the_network() -> None:
    """The memory of a finished block stands under `revise_scope="block"`, and goes on under "all"."""
    seen: dict[str, list[Tensor]] = {"block": [], "all": []}
    model = block_model(True)
    prompt, _ = prompts([4], "left")
    for scope, kept in seen.items():
        plain = Denoiser.__call__

        def call(denoiser: Any, rows: Rows, window: Any, kept: Any = kept, plain: Any = plain) -> Denoised:
            denoised = plain(denoiser, rows, window)
            kept.append(rows.history.accumulator[0, 4:8].clone())
            return denoised

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Denoiser, "__call__", call)
            model.generate_reflective(
                prompt, max_new_tokens=12, reveal="all", revise="low_prob", revise_scope=scope, revise_threshold=0.0
            )
    # Three blocks, two steps each, nothing re-masked: the first block's memory after each step.
    stands = [torch.equal(a, b) for a, b in zip(seen["block"], seen["block"][1:])]
    assert stands == [False, False, True, True, True]
    assert not any(torch.equal(a, b) for a, b in zip(seen["all"], seen["all"][1:]))


@pytest.mark.parametrize("use_cache", [False, True])
def test_a_gap_between_the_blocks_with_masks(use_cache: bool) -> None:
    """Masks in the first and the third block of the attention, text between them."""
    model = block_model(True)
    ids = torch.tensor([[4, 0, 0, 2, 5, 6, 7, 8, 1, 0, 3, 0], [4, 1, 3, 2, 0, 6, 7, 8, 1, 2, 3, 0]])
    output, _ = decode(model, ids, None, max_new_tokens=None, use_cache=use_cache, **SETTINGS["reflective"])
    assert not (output.sequences == MASK).any()
    assert torch.equal(output.sequences[ids != 0], ids[ids != 0])
    for row in range(2):
        alone, _ = decode(model, ids[row : row + 1], None, max_new_tokens=None, **SETTINGS["reflective"])
        assert torch.equal(alone.sequences[0], output.sequences[row])
