"""Sequences of edits, ids by ids, and the training states made of them."""

import numpy as np
import pytest
import torch

from hf_rm.corruption import SourceProposal, UniformProposal
from hf_rm.tasks.image_editing import generate_edits, load_codebook
from hf_rm.tasks.image_editing.collator import EditSFTCollator, edit_collator
from hf_rm.tasks.image_editing.layout import EditLayout, EditRows, edit_layout

WORDS = ["cat", "paint", "red", "remove", "the"]  # ids 4 to 8; codes from 9 on
SOURCE = np.array([[[0, 1, 2], [3, 4, 5]]])
TARGET = np.array([[[0, 1, 7], [3, 6, 5]]])


@pytest.fixture
def layout() -> EditLayout:
    return EditLayout(WORDS, codes=8, rows=2, columns=3, text_length=4)


def rows_of(layout: EditLayout, count: int = 1) -> list[dict]:
    row = layout.sequences(["remove the cat"], SOURCE, TARGET)[0]
    return [{"input_ids": row, "editable_mask": layout.editable_mask, "idx": i} for i in range(count)]


def test_every_id_of_a_sequence(layout: EditLayout) -> None:
    ids = layout.sequences(["Remove the dog."], SOURCE, TARGET)
    assert ids.tolist() == [[7, 8, 3, 1, 9, 10, 11, 12, 13, 14, 9, 10, 16, 12, 15, 14]]
    assert (layout.vocab_size, layout.length, layout.source, layout.canvas) == (17, 16, slice(4, 10), slice(10, 16))
    assert layout.editable_mask.nonzero()[0].tolist() == [10, 11, 12, 13, 14, 15]
    assert layout.suppressed_token_ids == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (layout.grid(ids) == TARGET).all() and (layout.grid(ids, "source") == SOURCE).all()
    assert (layout.sequences(["cat"], SOURCE)[:, layout.canvas] == ids[:, layout.source]).all()


def test_positions_are_two_dimensional_and_shared_by_source_and_canvas(layout: EditLayout) -> None:
    part, row, column, cell = layout.position_groups
    assert part == [0, 1, 2, 3] + [4] * 6 + [5] * 6
    assert row == [0] * 4 + [1, 1, 1, 2, 2, 2] * 2
    assert column == [0] * 4 + [1, 2, 3, 1, 2, 3] * 2
    assert cell == [0, 1, 2, 3] + [4, 5, 6, 7, 8, 9] * 2


def test_the_tokenizer_has_the_same_ids(layout: EditLayout) -> None:
    tokenizer = layout.tokenizer()
    assert tokenizer("remove the cat <0> <7>")["input_ids"] == [7, 8, 4, 9, 16]
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 1, 3)
    assert len(tokenizer) == layout.vocab_size


def test_what_does_not_fit_is_refused(layout: EditLayout) -> None:
    with pytest.raises(ValueError, match="5 words"):
        layout.sequences(["remove the cat the cat"], SOURCE)
    with pytest.raises(ValueError, match="0 words"):
        layout.sequences([" "], SOURCE)
    with pytest.raises(ValueError, match="`source` has shape"):
        layout.sequences(["cat", "cat"], SOURCE)
    with pytest.raises(ValueError, match="0 to 7"):
        layout.sequences(["cat"], SOURCE + 3)
    ids = layout.sequences(["cat"], SOURCE)
    with pytest.raises(ValueError, match="pass"):
        layout.grid(ids[:, :-1])
    shifted = np.roll(ids, 1, axis=1)
    shifted[0, layout.canvas.start] = 8
    with pytest.raises(ValueError, match="id 8 in its canvas"):
        layout.grid(shifted)
    with pytest.raises(ValueError, match="twice"):
        EditLayout(["a", "a"], 8, 2, 2)
    with pytest.raises(ValueError, match="`rows`"):
        EditLayout(["a"], 8, 0, 2)


def test_the_source_token_is_what_is_wrong(layout: EditLayout) -> None:
    ids = layout.sequences(["remove the cat"], SOURCE, TARGET)
    uniforms = np.zeros((1, layout.length, 2))
    drawn = SourceProposal(layout.source, layout.canvas).draw(uniforms, ids, [0])
    assert drawn[0, layout.canvas].tolist() == [[c + 9] * 2 for c in (0, 1, 2, 3, 4, 5)]
    assert (drawn[0, : layout.canvas.start] == ids[0, : layout.canvas.start, None]).all()

    later = UniformProposal(layout.vocab_size, excluded=range(layout.first_code))
    drawn = SourceProposal(layout.source, layout.canvas, later).draw(uniforms, ids, [0])
    # The second attempt differs from the target where the edit is, and is the target elsewhere.
    assert drawn[0, layout.canvas].tolist() == [[9, 9], [10, 10], [11, 9], [12, 12], [13, 9], [14, 14]]


def test_only_what_the_edit_changes_is_corrupted(layout: EditLayout) -> None:
    collate = edit_collator(layout, full_corruption=1.0, text_drop=0.0, image_drop=0.0, false_alarms=0.0)
    batch = collate(rows_of(layout, 200))
    ids, canvas = torch.from_numpy(rows_of(layout)[0]["input_ids"]), layout.canvas
    edited = [2, 4]
    kept = [i for i in range(6) if i not in edited]
    assert (batch["input_ids"][:, canvas][:, kept] == ids[canvas][kept]).all()
    assert (batch["labels"][:, canvas][:, kept] == ids[canvas][kept]).all()
    assert (batch["labels"][:, : canvas.start] == -100).all()
    seen = set(batch["input_ids"][:, canvas][:, edited[0]].tolist())
    assert {0, 11, 16} <= seen  # mask, the source's token, the target's
    assert (batch["start_ids"][:, canvas] == ids[layout.source]).all()
    assert batch["unlikelihood_mask"][0].nonzero().flatten().tolist() == [10 + i for i in kept]


def test_false_alarms_are_masks_that_come_back(layout: EditLayout) -> None:
    collate = edit_collator(layout, full_corruption=1.0, text_drop=0.0, image_drop=0.0, false_alarms=1.0)
    batch = collate(rows_of(layout, 100))
    column = layout.canvas.start  # unedited
    assert set(batch["input_ids"][:, column].tolist()) == {0, 9}
    assert (batch["labels"][:, column] == 9).all()


def test_dropped_conditions_exactly(layout: EditLayout) -> None:
    clean = edit_collator(layout, text_drop=0.0, image_drop=0.0)(rows_of(layout, 3))
    both = edit_collator(layout, text_drop=1.0, image_drop=1.0)(rows_of(layout, 3))
    for name in ("input_ids", "target_ids", "start_ids"):
        assert (both[name][:, :4] == torch.tensor([2, 1, 1, 1])).all()
        assert (both[name][:, layout.source] == 0).all()
        assert (both[name][:, layout.canvas] == clean[name][:, layout.canvas]).all()
    assert (both["history_ids"][:, layout.source] == 0).all()
    assert (both["history_ids"][:, :4] == torch.tensor([2, 1, 1, 1])[:, None]).all()
    assert (both["history_ids"][:, layout.canvas] == clean["history_ids"][:, layout.canvas]).all()
    assert (both["labels"] == clean["labels"]).all() and (both["history_lags"] == clean["history_lags"]).all()
    assert (both["unlikelihood_mask"] == clean["unlikelihood_mask"]).all()


def test_drops_come_at_their_rates_independently_and_by_row(layout: EditLayout) -> None:
    collate = edit_collator(layout, text_drop=0.3, image_drop=0.2)
    batch = collate(rows_of(layout, 4000))["input_ids"]
    text, image = batch[:, 0] == 2, batch[:, 4] == 0
    assert abs(text.float().mean() - 0.3) < 0.03 and abs(image.float().mean() - 0.2) < 0.03
    assert abs((text & image).float().mean() - 0.06) < 0.02
    assert (collate(rows_of(layout, 4000)[700:703])["input_ids"] == batch[700:703]).all()
    collate.set_epoch(1)
    assert (collate(rows_of(layout, 4000))["input_ids"] != batch).any()


def test_conditions_are_dropped_in_a_tenth_of_the_rows_unless_asked_otherwise(layout: EditLayout) -> None:
    for collate in (edit_collator(layout), EditSFTCollator(0, layout=layout)):
        assert (collate.text_drop, collate.image_drop) == (0.1, 0.1)
        batch = collate(rows_of(layout, 4000))["input_ids"]
        text, image = batch[:, 0] == 2, (batch[:, layout.source] == 0).all(-1)
        assert abs(text.float().mean() - 0.1) < 0.02 and abs(image.float().mean() - 0.1) < 0.02


def test_wrong_settings_are_refused(layout: EditLayout) -> None:
    with pytest.raises(ValueError, match="`text_drop`"):
        edit_collator(layout, text_drop=1.5)
    with pytest.raises(ValueError, match="slices of one length"):
        SourceProposal(slice(0, 2), slice(2, 5))


def test_rows_of_pictures_end_with_the_target() -> None:
    book = load_codebook()
    layout = edit_layout(book)
    examples = generate_edits(3, seed=8)
    rows = EditRows.from_examples(examples, book, layout, first=100)
    ids = np.stack([rows[i]["input_ids"] for i in range(3)])
    assert (layout.grid(ids) == book.encode(examples.target)).all()
    assert (layout.grid(ids, "source") == book.encode(examples.source)).all()
    assert rows[2]["idx"] == 102 and len(rows) == 3


def test_vanilla_fine_tuning_loses_the_same_conditions(layout: EditLayout) -> None:
    rows = rows_of(layout, 200)
    settings = {"layout": layout, "text_drop": 0.3, "image_drop": 0.3}
    plain, rm = EditSFTCollator(0, **settings)(rows), edit_collator(**settings)(rows)
    before = slice(0, layout.canvas.start)
    assert torch.equal(plain["input_ids"][:, before], rm["target_ids"][:, before])
    text, image = plain["input_ids"][:, 0] == 2, (plain["input_ids"][:, layout.source] == 0).all(-1)
    assert 0 < int((text & image).sum()) < int(text.sum()) < 200 and 0 < int((image & ~text).sum())
    assert (plain["labels"][:, before] == -100).all()
    target = torch.from_numpy(rows[0]["input_ids"])[layout.canvas]
    masked = plain["input_ids"][:, layout.canvas] == 0
    assert torch.equal(plain["labels"][:, layout.canvas][masked], target.expand(200, -1)[masked])


def test_first_states_are_the_source_without_history(layout: EditLayout) -> None:
    collate = edit_collator(layout, text_drop=0.0, image_drop=0.0, first_states=1.0)
    batch = collate(rows_of(layout, 50))
    source, target = batch["target_ids"][:, layout.source], batch["target_ids"][:, layout.canvas]
    assert (batch["input_ids"][:, layout.canvas] == source).all()
    assert (batch["labels"][:, layout.canvas] == torch.where(source != target, 0, target)).all()
    spans = batch["history_lags"].diff(dim=-1)
    assert (spans == 0).all(), "no run of the history has a step"


def test_first_states_have_their_share_and_leave_the_other_rows_alone(layout: EditLayout) -> None:
    settings = {"text_drop": 0.0, "image_drop": 0.0, "full_corruption": 1.0}
    plain = edit_collator(layout, **settings)(rows_of(layout, 2000))
    mixed = edit_collator(layout, **settings, first_states=0.4)(rows_of(layout, 2000))
    first = (mixed["history_lags"] == 1).all(-1).all(-1)
    step_zero = (plain["history_lags"] == 1).all(-1).all(-1)
    drawn = (first & ~step_zero).sum() / (~step_zero).sum()
    assert abs(drawn - 0.4) < 4 * (0.4 * 0.6 / 2000) ** 0.5
    for name in ("input_ids", "labels", "history_lags"):
        assert (mixed[name][~first] == plain[name][~first]).all()
