"""Two scales of guidance: the formula, what each branch reads, and a history of its own for each."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_rm.generation_denoiser_rm import Denoised
from hf_rm.history import HistoryState
from hf_rm.tasks.image_editing import generate_edits, load_codebook
from hf_rm.tasks.image_editing.edit import edit_images
from hf_rm.tasks.image_editing.guidance import KeptSource, TwoScaleGuidance, guided
from hf_rm.tasks.image_editing.layout import EditLayout, edit_layout
from hf_rm.tasks.image_editing.model import build_image_edit_model

LAYOUT = EditLayout(["cat", "paint"], codes=6, rows=2, columns=2, text_length=2)
GRID = np.array([[[0, 1], [2, 3]], [[5, 4], [3, 2]], [[1, 1], [0, 0]]])


@pytest.fixture
def model():
    torch.manual_seed(1)
    model = build_image_edit_model(LAYOUT, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2).eval()
    model.config.trained_to_remask = True
    with torch.no_grad():  # let every position have an opinion, and the mask win now and then
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def start() -> tuple[Tensor, Tensor]:
    ids = torch.from_numpy(LAYOUT.sequences(["paint cat", "cat", "paint"], GRID))
    return ids, torch.from_numpy(LAYOUT.editable_mask).expand_as(ids)


def test_the_formula_by_hand() -> None:
    cond, text, image = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    assert guided(cond, [(text, 2.5), (image, 4.0)]).tolist() == [[3.5, -2.0]]
    assert guided(cond, []).tolist() == [[1.0, 2.0]]


def test_each_branch_loses_one_condition_and_keeps_the_other_and_the_canvas(model) -> None:
    ids, _ = start()
    (cond, _, _), (text, _, s_t), (image, _, s_i) = TwoScaleGuidance(model, LAYOUT)._branches(ids, None)
    assert (s_t, s_i) == (2.5, 4.0) and cond is ids
    #                                <uncond> <pad>  the source's tokens  the canvas
    assert text[0].tolist() == [2, 1, 6, 7, 8, 9, 6, 7, 8, 9]
    assert image[0].tolist() == [5, 4, 0, 0, 0, 0, 6, 7, 8, 9]
    assert ids[0].tolist() == [5, 4, 6, 7, 8, 9, 6, 7, 8, 9]


def test_scores_are_the_formula_of_three_forward_passes_with_their_own_histories(model) -> None:
    ids, editable = start()
    guidance = TwoScaleGuidance(model, LAYOUT, 1.5, 0.5)
    output = guidance.generate_reflective(
        ids, editable_mask=editable, reveal="all", revise="reflective", max_steps=5, output_trajectory=True
    )
    assert (output.num_forwards == 3 * output.num_steps).all()
    states = output.trajectory.states
    assert (states[1:] != states[:-1]).any()
    memories = [None, None, None]
    suppressed = LAYOUT.suppressed_token_ids
    for step in range(int(output.num_steps.max())):
        scores = []
        for branch, seen in enumerate(
            (states[step], LAYOUT.without_text(states[step])[0], LAYOUT.without_source(states[step])[0])
        ):
            out = model(seen, editable_mask=editable, history=memories[branch])
            memories[branch] = out.history
            scores.append(out.logits.float())
        logits = guided(scores[0], [(scores[1], 1.5), (scores[2], 0.5)])
        own = logits.gather(-1, states[step][..., None])[..., 0]
        fill = logits.clone()
        fill[..., [0, *suppressed]] = -torch.inf
        wanted = torch.where(logits[..., 0] > own, 0, states[step])
        wanted = torch.where(states[step] == 0, fill.argmax(-1), wanted)
        expected = torch.where(editable, wanted, states[step])
        going = output.num_steps > step  # rows that are done leave the batch and must not mix the others' memories
        assert torch.equal(states[step + 1][going], expected[going])


def test_rows_that_end_early_take_their_memories_along(model) -> None:
    ids, editable = start()
    guidance = TwoScaleGuidance(model, LAYOUT, 1.0, 2.0)
    settings = {"reveal": "all", "revise": "reflective", "max_steps": 9, "output_trajectory": True}
    together = guidance.generate_reflective(ids, editable_mask=editable, **settings)
    assert len(set(together.num_steps.tolist())) > 1
    for row in range(3):
        alone = guidance.generate_reflective(ids[row : row + 1], editable_mask=editable[row : row + 1], **settings)
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert int(alone.num_steps) == int(together.num_steps[row])


def test_a_scale_of_zero_runs_no_branch(model) -> None:
    ids, editable = start()
    settings = {"reveal": "all", "revise": "reflective", "max_steps": 4}
    off = TwoScaleGuidance(model, LAYOUT, 0.0, 0.0).generate_reflective(ids, editable_mask=editable, **settings)
    plain = model.generate_reflective(ids, editable_mask=editable, **settings)
    assert torch.equal(off.sequences, plain.sequences) and torch.equal(off.num_forwards, plain.num_forwards)
    assert TwoScaleGuidance(model, LAYOUT, 1.0, 0.0).forwards_per_step == 2


def test_scores_of_known_branches_come_out_as_computed() -> None:
    """A stand-in network whose scores say what it was asked: 1 for all, 0.5 without text, -1 without source."""

    class Known(torch.nn.Module):
        config = type("Config", (), {"attention_block_length": None, "vocab_size": LAYOUT.vocab_size})()
        generation_config = None

        def _denoise(self, ids, mask, editable, history, use_history, positions):
            value = 1.0 - 0.5 * (ids[:, 0] == 2) - 2.0 * (ids[:, 2] == 0)
            memory = HistoryState.empty(len(ids), ids.shape[1], 2) if history is None else history
            moved = replace(memory, accumulator=memory.accumulator + value[:, None, None], steps=memory.steps + 1)
            return Denoised(value[:, None, None].expand(-1, ids.shape[1], 3).bfloat16(), moved)

    guidance = TwoScaleGuidance(Known(), LAYOUT)
    ids, editable = start()
    first = guidance._denoise(ids, None, editable, None, True, None)
    assert (first.logits == 1 + 2.5 * 0.5 + 4 * 2).all() and first.logits.dtype == torch.float32
    second = guidance._denoise(ids, None, editable, first.history, True, None)
    assert second.history.accumulator[0, 0].tolist() == [2, 2, 1, 1, -2, -2]


def test_the_source_is_kept_below_a_share_that_is_asked_for(model) -> None:
    ids, editable = start()
    canvas, source = LAYOUT.canvas, ids[:, LAYOUT.source]
    blank = ids.masked_fill(editable, 0)
    with torch.no_grad():
        share = model(blank, editable_mask=editable, use_history=False).logits.float()[:, canvas].softmax(-1)
    share[..., [0, *LAYOUT.suppressed_token_ids]] = 0
    best, own = share.max(-1), share.gather(-1, source[..., None])[..., 0]
    settings = {"reveal": "all", "revise": None, "use_history": False, "max_steps": 1}
    changed = []
    for threshold in (0.5, 0.6, 0.9):
        kept = KeptSource(model, LAYOUT, threshold)
        found = kept.generate_reflective(blank, editable_mask=editable, **settings).sequences[:, canvas]
        surer = best.values / (best.values + own) > threshold
        assert torch.equal(found, torch.where(surer, best.indices, source)), threshold
        changed.append(int((found != source).sum()))
    assert changed[0] >= changed[1] >= changed[2] and changed[0] > changed[2], changed
    # The words and the source are never touched, and neither are scores at positions that do not exist.
    positions = torch.tensor([[canvas.start, LAYOUT.length + 5]]).expand(3, -1)
    scores = KeptSource(model, LAYOUT, 0.9)._denoise(blank, None, editable, None, False, positions).logits
    plain = model._denoise(blank, None, editable, None, False, positions).logits
    moved = (scores - plain)[:, 0]
    assert torch.equal(moved.nonzero()[:, 1], source[:, 0])
    assert moved.amax(-1).tolist() == pytest.approx([np.log(9)] * 3, abs=1e-5)
    for wrong in (0.4, 1.0):
        with pytest.raises(ValueError, match="`keep_threshold`"):
            KeptSource(model, LAYOUT, wrong)


def test_edits_take_scales_and_wrong_ones_are_refused(model) -> None:
    book = load_codebook()
    layout = edit_layout(book)
    small = build_image_edit_model(layout, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2)
    examples = generate_edits(1)
    scales = {"text_guidance": 2.5, "image_guidance": 4.0}
    # An untrained network is sure of nothing: it goes on only where everything may be taken back.
    settings = {"max_steps": 2, "revise_threshold": 0.0, **scales}
    run = edit_images(small, layout, book, examples.source, examples.instructions, **settings)
    assert run.num_forwards.tolist() == [6]
    with pytest.raises(ValueError, match="`image_scale`"):
        TwoScaleGuidance(model, LAYOUT, 1.0, float("inf"))
    with pytest.raises(ValueError, match="`guidance_scale`"):
        ids, editable = start()
        TwoScaleGuidance(model, LAYOUT).generate_reflective(ids, editable_mask=editable, guidance_scale=2.0)
