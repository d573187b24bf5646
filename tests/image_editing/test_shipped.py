"""The shipped image editor, as someone who downloads it finds it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_rm.hub import CODE_FILES
from hf_rm.tasks.image_editing import edit_metrics, generate_edits, instruction_success, receptive_field
from hf_rm.tasks.image_editing.editor import ImageEditor
from hf_rm.tasks.image_editing.report import interval, measure, read_records, shown
from hf_rm.tasks.image_editing.scenes import emoji_pool

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
    # 0.39 and 0.83 on 500 edits: these bounds leave room for 60.
    assert instruction_success(run.result, examples).mean() >= 0.2
    assert np.nanmean(measured["precision"]) >= 0.6
    assert (run.states[-1] >= 0).all(), "no edit ends with masks left"
    assert run.num_forwards.mean() <= 24


def test_tokens_that_it_does_not_re_mask_are_the_sources_and_so_are_pixels_beyond_their_reach(
    editor: ImageEditor,
) -> None:
    examples = generate_edits(60, seed=5, split="test_photos", cell=8, emoji=24)
    run = editor.edit(examples.source, examples.instructions)
    source = editor.book.encode(examples.source)
    ever = (run.states < 0).any(0)
    assert 0.05 < ever.mean() < 0.6 and (run.predicted == ever).all()
    assert (run.states[:, ~ever] == source[~ever]).all()
    patch, reach = editor.book.patch, receptive_field(editor.book.decode, len(editor.book))
    assert (patch, reach) == (8, 0)
    kept = ~ever.repeat(patch, axis=1).repeat(patch, axis=2)
    assert (run.result[kept] == examples.source[kept]).all()
    decoded = editor.edit(examples.source, examples.instructions, keep_pixels=False).result
    assert (decoded[kept] == editor.book.reconstruct(examples.source)[kept]).all()
    assert (decoded[kept] != examples.source[kept]).any()


def test_the_cards_example_runs_and_names_what_the_model_knows(monkeypatch) -> None:
    monkeypatch.chdir(CARD.parent)
    code = (CARD / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    run, edits = names["run"], names["edits"]
    assert run.result.shape == (1, 64, 64, 3) and run.predicted.any() and not run.left_out
    (asked,) = edits.instructions
    known = {word for emoji in emoji_pool(count=24) for word in emoji.name.split()}
    assert (
        f'["{asked}"]' in code and set(asked.split()) - {"take", "away", "the", "remove", "delete", "erase"} <= known
    )


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


def test_the_card_says_where_its_figures_come_from_and_under_which_conditions() -> None:
    text = (CARD / "README.md").read_text()
    assert "500 held-out edits (split test_photos, seed 20261122)" in text
    assert "recipes/image_edit.py --config recipes/configs/image-edit-cpu.yaml" in text
    for emoji in emoji_pool(count=24):
        assert emoji.name in text
    records = {r["system"]: r for r in read_records(CARD / "records.json") if "condition" not in r}
    assert {"copy", "oracle", "rm", "rm-no-hr", "sft"} <= set(records)
    for name in ("precision", "success", "psnr", "ssim"):
        assert shown(interval(records["rm"]["edits"][name])) in text, name
    means = {system: {name: of[0] for name, of in records[system]["means"].items()} for system in ("rm", "sft")}
    for name in ("precision", "psnr", "ssim"):
        assert means["rm"][name] > means["sft"][name], "what the card says RM is ahead in"
    assert means["rm"]["mae"] < means["sft"]["mae"] and records["rm"]["forwards"] < records["sft"]["forwards"]
    assert means["rm"]["coverage"] < means["sft"]["coverage"], "and what it is behind in"


def test_the_records_of_the_model_are_of_every_edit_and_what_it_does(editor: ImageEditor) -> None:
    (record,) = (r for r in read_records(CARD / "records.json") if r["system"] == "rm" and "condition" not in r)
    split, seed, count = record["eval"]
    assert {len(values) for values in record["edits"].values()} == {count}
    examples = generate_edits(16, seed, split, first=40, cell=8, emoji=24)
    measured = measure(editor.edit(examples.source, examples.instructions).result, examples, editor.book)
    for name in ("coverage", "success", "mae"):
        np.testing.assert_allclose(record["edits"][name][40:56], measured[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_it_is_a_repository_of_the_hub() -> None:
    names = {path.name for path in CARD.iterdir()}
    assert {*CODE_FILES, "config.json", "model.safetensors", "codebook.npz", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
