"""Composed edits: what they hold, what they leave alone, and that they repeat."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hf_rm.tasks.image_editing import OPERATIONS, SPLITS, generate_edits, scenes
from hf_rm.tasks.image_editing.layout import EditLayout

DATA = Path(scenes.__file__).parent / "data"


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_region_changes_and_all_of_it_may(split: str) -> None:
    examples = generate_edits(60, seed=2, split=split)
    differs = (examples.source != examples.target).any(-1)

    assert not (differs & ~examples.mask).any()
    assert {edit.operation for edit in examples.edits} == set(OPERATIONS)
    # Faint edges of the alpha, and pixels that happen to have the new colour already, may stay.
    assert ((differs & examples.mask).sum((1, 2)) > 0.5 * examples.mask.sum((1, 2))).all()


def test_an_edit_depends_on_its_number_seed_and_split_alone() -> None:
    many, few = generate_edits(12, seed=5), generate_edits(3, seed=5, first=9)
    assert (many.source[9:] == few.source).all() and (many.target[9:] == few.target).all()
    assert many.edits[9:] == few.edits
    assert (generate_edits(3, seed=6, first=9).source != few.source).any()
    assert (generate_edits(3, seed=5, split="dev", first=9).source != few.source).any()


def test_the_splits_share_neither_emoji_nor_photographs_but_all_words() -> None:
    emoji = scenes.emoji_list()
    names = {split: {e.name for e in emoji if e.split == split} for split in ("train", "test")}
    words = {split: {word for name in found for word in name.split()} for split, found in names.items()}
    assert not names["train"] & names["test"] and len(names["train"]) + len(names["test"]) == len(emoji)
    assert words["test"] <= words["train"]

    train, test = ({photo.tobytes() for photo in scenes._photos(split)} for split in ("train", "test"))
    assert train and test and not train & test

    index = {e.number: e for e in emoji}
    used = {e.subject.emoji for e in generate_edits(80, split="test").edits if e.subject is not None}
    assert {index[i].split for i in used} == {"test"}
    used = {e.subject.emoji for e in generate_edits(80, split="test_photos").edits if e.subject is not None}
    assert {index[i].split for i in used} == {"train"}


def test_every_instruction_is_made_of_known_words_and_names_what_it_is_about() -> None:
    known = set(scenes.known_words())
    layout = EditLayout(sorted(known), codes=2, rows=1, columns=1)
    names = {e.number: e.name for e in scenes.emoji_list()}
    for split in ("train", "test"):
        for edit in generate_edits(200, seed=1, split=split).edits:
            assert set(edit.instruction.split()) <= known
            assert len(layout.encode_text(edit.instruction)) == layout.text_length
            named = edit.colour if edit.subject is None else names[edit.subject.emoji]
            assert named in edit.instruction


def test_operations_do_what_they_say() -> None:
    red = generate_edits(1, seed=4, operations=["background"])
    colour = scenes.BACKGROUNDS[red.edits[0].colour]
    solid = red.mask[0] & ~(red.source[0] == red.target[0]).all(-1)
    # Where no object is (the alpha is zero), the new background is exactly the named colour.
    assert (red.target[0][solid] == colour).all(-1).mean() > 0.8

    added = generate_edits(1, seed=4, operations=["add"])
    sprite = scenes.render_emoji(added.edits[0].subject.emoji, added.edits[0].subject.side)
    _, left, top, side = added.edits[0].subject
    inside = added.target[0, top : top + side, left : left + side]
    opaque = sprite[..., 3] == 1
    assert opaque.sum() > 30
    assert np.abs(inside[opaque] - sprite[opaque, :3]).max() <= 1


def test_recolouring_keeps_lightness_and_turns_the_hue() -> None:
    sprite = np.array([[[200, 40, 40, 1], [0, 0, 0, 1]]], dtype=np.float32)
    blue = scenes.recolour(sprite, "blue")
    assert blue[0, 0].argmax() == 2 and blue[0, 0, 2] == pytest.approx(200)
    assert (blue[0, 1, :3] == 0).all() and (blue[..., 3] == 1).all()


def test_larger_pictures_and_their_limits() -> None:
    assert generate_edits(1, size=128).source.shape == (1, 128, 128, 3)
    for wrong, name in (({"size": 16}, "size"), ({"split": "x"}, "split"), ({"operations": ["x"]}, "operations")):
        with pytest.raises(ValueError, match=f"`{name}`"):
            generate_edits(1, **wrong)
    with pytest.raises(ValueError, match="`count`"):
        generate_edits(0)


def test_every_file_of_the_data_is_accounted_for_and_small() -> None:
    notice = (DATA / "NOTICE").read_text()
    with (DATA / "photos.csv").open() as file:
        rows = list(csv.DictReader(file))
    photos = {path.name for path in DATA.glob("photo_*.jpg")}
    assert {row["file"] for row in rows} == photos and f"{len(photos)} photographs" in notice
    assert all("flickr.com" in row["credit"] for row in rows)
    assert all(
        name in notice
        for name in ("emoji.png", "codebook.npz", "Apache License 2.0", "creativecommons.org/licenses/by/2.0")
    )
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 3_000_000


def test_objects_on_cells_and_a_choice_of_emoji() -> None:
    examples = generate_edits(60, seed=3, cell=8, emoji=5)
    placed = [edit.subject for edit in examples.edits if edit.subject is not None]
    assert {value % 8 for one in placed for value in one[1:]} == {0}
    assert len({one.emoji for one in placed}) == 5
    assert all(0 <= one.left <= 64 - one.side and 0 <= one.top <= 64 - one.side for one in placed)
    with pytest.raises(ValueError, match="`cell`"):
        generate_edits(1, cell=17)
    with pytest.raises(ValueError, match="`emoji`"):
        generate_edits(1, emoji=3)
