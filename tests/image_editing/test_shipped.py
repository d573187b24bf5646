"""The shipped image editor, as someone who downloads it finds it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_rm.hub import CODE_FILES
from hf_rm.tasks.image_editing import edit_metrics, generate_edits, instruction_success
from hf_rm.tasks.image_editing.editor import ImageEditor

ROOT = Path(__file__).parents[2]
CARD = ROOT / "model_cards" / "rm-image-edit"


@pytest.fixture(scope="module")
def editor() -> ImageEditor:
    return ImageEditor.load(CARD)


def test_it_edits_what_was_asked_for_and_leaves_the_rest(editor: ImageEditor) -> None:
    assert editor.model.num_parameters() <= 2_000_000
    examples = generate_edits(60, seed=5, split="test_photos", cell=8, emoji=24)
    run = editor.edit(examples.source, examples.instructions)
    measured = edit_metrics(run.result, examples.source, examples.mask)
    # About 0.55 and 0.8 on large sets: these bounds leave room for 60 edits.
    assert instruction_success(run.result, examples).mean() >= 0.35
    assert np.nanmean(measured["precision"]) >= 0.6
    assert (run.states[-1] >= 0).all(), "no edit ends with masks left"
    assert run.num_forwards.mean() <= 24


def test_another_request_is_another_edit(editor: ImageEditor) -> None:
    examples = generate_edits(20, seed=6, split="test_photos", cell=8, emoji=24, operations=["remove"])
    asked = editor.edit(examples.source, examples.instructions)
    other = editor.edit(examples.source, ["make the background blue"] * 20)
    assert asked.predicted.mean() < 0.25 < 0.6 < other.predicted.mean()


def test_it_decodes_in_other_ways_than_it_was_saved_with(editor: ImageEditor, tmp_path: Path) -> None:
    examples = generate_edits(2, seed=6, split="test_photos", cell=8, emoji=24)
    run = editor.edit(examples.source, examples.instructions, decoding="regenerate", steps=4)
    assert (run.states[0] == -1).all() and run.num_forwards.tolist() == [4, 4]
    other = replace(ImageEditor.load(CARD), decoding="regenerate")
    assert ImageEditor.load(other.save(tmp_path / "other")).decoding == "regenerate"


def test_the_card_says_where_its_figures_come_from() -> None:
    text = (CARD / "README.md").read_text()
    assert "500 held-out edits (split test_photos, seed 20261122)" in text
    assert "recipes/image_edit.py --config recipes/configs/image-edit-cpu.yaml" in text
    records = {record["system"]: record for record in json.loads((CARD / "records.json").read_text())}
    assert {"copy", "limit", "rm", "rm-no-hr", "sft"} <= set(records)
    means = {system: {name: value[0] for name, value in records[system]["edits"].items()} for system in ("rm", "sft")}
    for name in ("precision", "psnr", "ssim"):
        assert means["rm"][name] > means["sft"][name], "what the card says RM is ahead in"
    assert means["rm"]["mae"] < means["sft"]["mae"] and records["rm"]["forwards"] < records["sft"]["forwards"]


def test_it_is_a_repository_of_the_hub() -> None:
    names = {path.name for path in CARD.iterdir()}
    assert {*CODE_FILES, "config.json", "model.safetensors", "codebook.npz", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
