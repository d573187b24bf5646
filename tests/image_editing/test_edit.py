"""The network, its decoding, and what is drawn of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_rm import RMTrainer, RMTrainingArguments
from hf_rm.history import HistorySegments, HistoryState
from hf_rm.tasks.image_editing import fit_codebook, generate_edits, load_codebook, receptive_field
from hf_rm.tasks.image_editing.collator import edit_collator
from hf_rm.tasks.image_editing.edit import edit_images, with_kept_pixels
from hf_rm.tasks.image_editing.editor import ImageEditor
from hf_rm.tasks.image_editing.layout import EditLayout, EditRows, edit_layout
from hf_rm.tasks.image_editing.model import build_image_edit_model
from hf_rm.tasks.image_editing.sheets import (
    difference_map,
    region_overlay,
    revision_frames,
    write_edit_sheet,
    write_revision_gif,
)
from hf_rm.training.unlikelihood import unlikelihood

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def book():
    return load_codebook()


@pytest.fixture(scope="module")
def layout(book) -> EditLayout:
    return edit_layout(book)


@pytest.fixture(scope="module")
def model(layout: EditLayout):
    torch.manual_seed(0)
    model = build_image_edit_model(layout, **TINY).eval()
    with torch.no_grad():  # a few positions prefer the mask, as a trained model's would
        model.model.lm_head.bias[0] = 0.03
    model.config.trained_to_remask = True
    return model


def test_the_network_is_small_and_reads_history_on_the_canvas_only(layout: EditLayout, model) -> None:
    assert build_image_edit_model(layout).num_parameters() <= 2_000_000
    ids = torch.from_numpy(layout.sequences(["remove the crab"], np.zeros((1, 16, 16), dtype=np.int64)))
    editable = torch.from_numpy(layout.editable_mask)[None]
    past = ids.clone()
    past[:, layout.source] = layout.first_code + 5
    history = model(past, editable_mask=editable).history
    without = model(ids, editable_mask=editable, history=HistoryState.empty(1, layout.length, 16)).logits
    # Another source in the past changes nothing: the canvas's past was the same, only repeated.
    same = model(ids, editable_mask=editable, history=model(ids, editable_mask=editable).history).logits
    assert torch.equal(model(ids, editable_mask=editable, history=history).logits, same)
    assert not torch.equal(without, same)


def test_a_dropped_source_reads_exactly_the_masks_embedding(layout: EditLayout, model) -> None:
    row = layout.sequences(
        ["remove the crab"], np.zeros((1, 16, 16), dtype=np.int64), np.ones((1, 16, 16), dtype=np.int64)
    )[0]
    batch = edit_collator(layout, text_drop=0, image_drop=1)(
        [{"input_ids": row, "editable_mask": layout.editable_mask, "idx": 0}]
    )
    embeddings = model.get_input_embeddings()(batch["input_ids"])

    history = HistorySegments(batch["history_ids"], batch["history_lags"])
    inputs, _ = model._read_history(embeddings, history, batch["editable_mask"], True)
    mask = model.get_input_embeddings()(torch.tensor(0))
    assert torch.equal(inputs[0, layout.source], mask.expand(256, -1))
    assert not torch.equal(inputs[0, layout.canvas], embeddings[0, layout.canvas])


def test_tokens_that_were_not_re_masked_and_far_pixels_stay(book, layout: EditLayout, model) -> None:
    examples = generate_edits(3, seed=4)
    settings = {"batch_size": 2, "max_steps": 6, "revise_threshold": 0.5}
    run = edit_images(model, layout, book, examples.source, examples.instructions, keep_pixels=False, **settings)
    start = book.encode(examples.source)
    assert (run.states[0] == start).all()
    ever = (run.states < 0).any(0)
    final = book.encode(examples.source)
    assert ever.any() and not ever.all()
    last = np.where(run.states[-1] < 0, final, run.states[-1])
    assert (last[~ever] == start[~ever]).all()
    assert (run.predicted == ever).all()
    # At most a twentieth of the canvas at a time, once a position.
    taken = [(before >= 0) & (after < 0) for before, after in zip(run.states, run.states[1:])]
    assert max(step.sum((1, 2)).max() for step in taken) == 256 // 20 and max(sum(taken).flat) == 1

    reach = receptive_field(book.decode, len(book))
    touched = np.zeros(examples.mask.shape, dtype=bool)
    for edit, row, column in np.argwhere(ever):
        top, left = row * 4, column * 4
        touched[edit, max(0, top - reach) : top + 4 + reach, max(0, left - reach) : left + 4 + reach] = True
    moved = (run.result != book.reconstruct(examples.source)).any(-1)
    assert not (moved & ~touched).any()

    kept = edit_images(model, layout, book, examples.source, examples.instructions, **settings)
    same = (last == start).repeat(4, axis=1).repeat(4, axis=2)
    assert (kept.result[same] == examples.source[same]).all() and (kept.result[~same] == run.result[~same]).all()


def test_the_first_round_follows_eq1_and_the_region_is_what_any_round_re_masks(
    book, layout: EditLayout, model
) -> None:
    examples = generate_edits(2, seed=7)
    settings = {"reveal": "all", "max_steps": 2, "revise_threshold": 0.5}
    settings |= dict.fromkeys(("reveal_threshold", "max_remask_ratio"))
    run = edit_images(model, layout, book, examples.source, examples.instructions, **settings)
    ids = torch.from_numpy(layout.sequences(examples.instructions, book.encode(examples.source)))
    with torch.no_grad():
        logits = model(ids, editable_mask=torch.from_numpy(layout.editable_mask).expand_as(ids)).logits
    # Eq. 1 on the source's own tokens, before anything was written: the mask is the more probable one.
    wanted = logits[..., 0] > logits.gather(-1, ids[..., None])[..., 0]
    first = run.states[1] < 0
    assert (first == wanted[:, layout.canvas].reshape(first.shape).numpy()).all()
    assert first.any() and not first.all()
    # And it alone is empty after that round; the next round fills all of it.
    assert (run.states[1] == run.states[0])[~first].all()
    assert (run.states[2][first] >= 0).all()
    assert (run.predicted == (run.states < 0).any(0)).all()


def test_a_canvas_of_masks_is_filled_with_codes(book, layout: EditLayout, model) -> None:
    examples = generate_edits(2, seed=4)
    run = edit_images(model, layout, book, examples.source, examples.instructions, decoding="regenerate", steps=4)
    assert (run.states[0] == -1).all() and (run.states[-1] >= 0).all()
    assert run.num_forwards.tolist() == [4, 4]
    with pytest.raises(ValueError, match="`decoding`"):
        edit_images(model, layout, book, examples.source, examples.instructions, decoding="x")
    with pytest.raises(ValueError, match="one for each"):
        edit_images(model, layout, book, examples.source, ["remove the crab"])


def test_pictures_and_batches_that_do_not_fit_are_refused_by_name_before_anything_is_encoded(
    book, layout: EditLayout, model, monkeypatch
) -> None:
    def computed(*given):
        raise AssertionError("encoded first")

    monkeypatch.setattr(type(book), "encode", computed)
    examples, larger = generate_edits(1), generate_edits(1, size=128)
    expected = r"`source` has shape \(1, 128, 128, 3\), and .* 64 x 64 pixels .*: crop or resize"
    with pytest.raises(ValueError, match=expected):
        edit_images(model, layout, book, larger.source, larger.instructions)
    for wrong, expected in (
        (examples.source / 255, "`source` is float64"),
        (list(examples.source), "`source` is list"),
    ):
        with pytest.raises(ValueError, match=expected):
            edit_images(model, layout, book, wrong, examples.instructions)
    for size in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"`batch_size` is {size}: pass a whole number of edits, 1 or more"):
            edit_images(model, layout, book, examples.source, examples.instructions, batch_size=size)


def test_an_instruction_that_cannot_be_read_leaves_its_picture_and_the_others_go_on(
    book, layout: EditLayout, model, caplog
) -> None:
    examples = generate_edits(4, seed=7)
    settings = {"max_steps": 4, "revise_threshold": 0.5, "batch_size": 2}
    asked = [examples.instructions[0], " ", "word " * 13, examples.instructions[3]]
    run = edit_images(model, layout, book, examples.source, asked, **settings)
    assert list(run.left_out) == [1, 2] and "0 words" in run.left_out[1] and "13 words" in run.left_out[2]
    assert "2 of 4 instructions cannot be read" in caplog.text
    alone = edit_images(model, layout, book, examples.source[[0, 3]], [asked[0], asked[3]], **settings)
    assert (run.states[:, [0, 3]] == alone.states).all() and (run.result[[0, 3]] == alone.result).all()
    assert run.num_forwards.tolist() == [alone.num_forwards[0], 0, 0, alone.num_forwards[1]]
    assert (run.result[1:3] == examples.source[1:3]).all() and not run.predicted[1:3].any()
    filled = edit_images(model, layout, book, examples.source, asked, decoding="regenerate", steps=2)
    assert (filled.result[1:3] == examples.source[1:3]).all() and (filled.states[0, [0, 3]] == -1).all()
    values = edit_images(model, layout, book, examples.source, [asked[0], None, 3, asked[3]], **settings)
    assert values.left_out == {1: "`instruction` is None: pass a text.", 2: "`instruction` is 3: pass a text."}
    assert (values.states == run.states).all() and (values.result == run.result).all()
    with pytest.raises(ValueError, match="no instruction can be read: `instruction` is None"):
        edit_images(model, layout, book, examples.source[:1], [None])
    with pytest.raises(ValueError, match="no instruction can be read"):
        edit_images(model, layout, book, examples.source[:1], [""])


def test_an_editor_of_parts_that_do_not_fit_is_refused(layout: EditLayout, book, tmp_path: Path) -> None:
    fewer = EditLayout(layout.words[:-1], layout.codes, layout.rows, layout.columns, layout.text_length)
    folder = ImageEditor(build_image_edit_model(fewer, **TINY), layout, book).save(tmp_path / "narrow")
    with pytest.raises(ValueError, match=rf"{fewer.vocab_size} ids, and words and codes for {layout.vocab_size}"):
        ImageEditor.load(folder)
    small = fit_codebook(generate_edits(4).source, codes=16)
    ImageEditor(build_image_edit_model(layout, **TINY), layout, small).save(tmp_path / "other")
    with pytest.raises(ValueError, match="codebook of 16 codes"):
        ImageEditor.load(tmp_path / "other")


def test_training_learns_to_copy_and_to_re_mask(tmp_path: Path) -> None:
    """Toy edits: 'paint' turns every code 2 of the source into 3; everything else stays."""
    toy = EditLayout(["paint"], codes=4, rows=3, columns=3, text_length=1)
    rng = np.random.default_rng(0)
    source = rng.integers(0, 4, (512, 3, 3))
    source[:, 0, 0] = 2
    rows = EditRows(toy.sequences(["paint"] * 512, source, np.where(source == 2, 3, source)), toy)
    torch.manual_seed(0)
    model = build_image_edit_model(toy, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)
    args = RMTrainingArguments(
        str(tmp_path), max_steps=150, per_device_train_batch_size=64, learning_rate=5e-3, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    collate = edit_collator(toy, full_corruption=0.7, text_drop=0.0, image_drop=0.0)
    RMTrainer(model, args, train_dataset=rows, data_collator=collate).train()

    test = rng.integers(0, 4, (64, 3, 3))
    ids = torch.from_numpy(toy.sequences(["paint"] * 64, test))
    editable = torch.from_numpy(toy.editable_mask).expand_as(ids)
    output = model.eval().generate_reflective(
        ids, editable_mask=editable, reveal="all", revise="reflective", max_steps=16
    )
    right = toy.grid(output.sequences.numpy()) == np.where(test == 2, 3, test)
    assert right.mean() > 0.95


def test_unlikelihood_is_that_of_the_mask_and_never_infinite() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    positions = torch.rand(2, 5) < 0.5
    slow = -torch.log(1 - logits.softmax(-1)[positions][:, 3]).sum()
    assert unlikelihood(logits, positions, 3).item() == pytest.approx(slow.item(), rel=1e-5)
    sure = torch.zeros(1, 1, 4)
    sure[..., 0] = 300.0
    assert unlikelihood(sure, torch.ones(1, 1, dtype=torch.bool), 0).isfinite()
    assert unlikelihood(sure, torch.zeros(1, 1, dtype=torch.bool), 0) == 0


def test_sheets_and_animations_show_what_happened(book, tmp_path: Path) -> None:
    examples = generate_edits(2, seed=5)
    before, after = book.encode(examples.source), book.encode(examples.target)
    changed = before != after
    sheet = write_edit_sheet(
        tmp_path / "new" / "sheet.png", examples.source, changed, book.decode(after), examples.target,
        ["first", "second ★"], notes=["ok", ""],
    )  # fmt: skip
    with Image.open(sheet) as drawn:
        assert drawn.size == (6 + 5 * 134, 22 + 2 * 150)
    overlay = region_overlay(examples.source, changed).astype(int)
    fine = changed.repeat(4, 1).repeat(4, 2)
    assert (overlay[fine][:, 0] > overlay[fine][:, 2]).all() and np.ptp(overlay[~fine], axis=-1).max() == 0
    heat = difference_map(examples.source, examples.target)
    assert (heat[~examples.mask] == 0).all() and heat[examples.mask].max() > 100

    states = np.stack((before[0], np.where(changed[0], -1, before[0]), after[0], after[0]))
    frames = revision_frames(states, book)
    assert len(frames) == 3  # the last step changed nothing
    assert (frames[0] == book.decode(before[:1])[0]).all() and (frames[2] == book.decode(after[:1])[0]).all()
    assert np.isin(frames[1][fine[0]], (205, 203, 198, 184, 182, 177)).all()
    # What the user gets: the source's own pixels wherever the token is the source's.
    shown = revision_frames(states, book, examples.source[0])
    assert (shown[0] == examples.source[0]).all() and not (frames[0] == examples.source[0]).all()
    assert (shown[2] == with_kept_pixels(book.decode(after[:1]), examples.source[:1], ~changed[:1])[0]).all()
    assert (shown[1][fine[0]] == frames[1][fine[0]]).all()
    with Image.open(write_revision_gif(tmp_path / "a.gif", states, book, examples.source[0])) as gif:
        assert gif.n_frames == 3 and gif.size == (256, 256)
    with pytest.raises(ValueError, match="one of each"):
        write_edit_sheet(tmp_path / "x.png", examples.source, changed, examples.source, examples.target, ["one"])
    with pytest.raises(ValueError, match="`states`"):
        write_revision_gif(tmp_path / "b.gif", states[0], book)
