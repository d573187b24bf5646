"""Measures of edits: worked numbers, and results that must fail."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_rm.tasks.image_editing import (
    edit_metrics,
    generate_edits,
    instruction_success,
    load_codebook,
    scenes,
    vqa_score,
)
from hf_rm.tasks.image_editing.edit import with_kept_pixels
from hf_rm.tasks.image_editing.metrics import CHANGED, MAX_PSNR, described, load_scorer, share_as_before

ROOT = Path(__file__).parents[2]


def picture(value: int = 100) -> np.ndarray:
    return np.full((1, 16, 16, 3), value, dtype=np.uint8)


def test_worked_numbers() -> None:
    source, mask = picture(), np.zeros((1, 16, 16), dtype=bool)
    mask[0, :4, :4] = True  # 16 pixels
    result = source.copy()
    result[0, :4, :3] += CHANGED + 1  # 12 of them changed
    result[0, 8, :4, 0] += 20  # and 4 elsewhere, one channel of each
    result[0, 12, 0] += CHANGED  # not more than the threshold
    measured = {name: float(value[0]) for name, value in edit_metrics(result, source, mask).items()}
    outside = (256 - 16) * 3
    assert measured["precision"] == 12 / 16 and measured["coverage"] == 12 / 16
    assert measured["mae"] == pytest.approx((4 * 20 + 3 * CHANGED) / outside)
    power = (4 * 20**2 + 3 * CHANGED**2) / outside
    assert measured["psnr"] == pytest.approx(10 * np.log10(255**2 / power))
    assert 0.5 < measured["ssim"] < 1


def test_what_the_tokenizer_loses_is_no_edit() -> None:
    source, mask = picture(), np.zeros((1, 16, 16), dtype=bool)
    mask[0, :4] = True
    unedited = source + np.uint8(40)
    result = unedited.copy()
    result[0, :2] = 0
    with_it = edit_metrics(result, source, mask, unedited)
    assert with_it["precision"][0] == 1 and with_it["coverage"][0] == 0.5 and with_it["mae"][0] == 40
    assert edit_metrics(result, source, mask)["precision"][0] == 0.25


def test_copying_the_source_has_no_precision_and_a_bounded_psnr() -> None:
    mask = np.zeros((1, 16, 16), dtype=bool)
    mask[0, :4] = True
    measured = edit_metrics(picture(), picture(), mask)
    assert np.isnan(measured["precision"][0]) and measured["coverage"][0] == 0 and measured["psnr"][0] == MAX_PSNR
    everything = edit_metrics(picture(), picture(), np.ones_like(mask))
    assert np.isnan(everything["psnr"][0]) and np.isnan(everything["ssim"][0])


def test_success_needs_the_right_thing_in_the_right_place() -> None:
    examples = generate_edits(40, seed=6, split="test_photos")
    assert instruction_success(examples.target, examples).all()
    assert not instruction_success(examples.source, examples).any()
    # Grey everywhere is no success, nor is the result of another edit.
    grey = np.full_like(examples.target, 128)
    operations = np.array([edit.operation for edit in examples.edits])
    gray_background = np.array([edit.colour == "gray" for edit in examples.edits])
    assert not instruction_success(grey, examples)[~gray_background].any()
    assert instruction_success(np.roll(examples.target, 1, axis=0), examples).mean() < 0.2
    # Some pixels beside its place an object is not where it should be.
    moved = operations == "add"
    shifted = np.roll(examples.target, 14, axis=2)
    assert instruction_success(shifted, examples)[moved].mean() < 0.5


@pytest.mark.parametrize("purpose, agree, succeed", [("calibration", 66, 25), ("validation", 30, 11)])
def test_the_check_agrees_with_the_eye(purpose: str, agree: int, succeed: int) -> None:
    judged = json.loads((ROOT / "tests" / "data" / "image_edit_judged.json").read_text())["sets"]
    (chosen,) = (part for part in judged if part["purpose"] == purpose)
    numbers = [edit["number"] for edit in chosen["edits"]]
    parts = [generate_edits(1, chosen["seed"], "dev", first=number, cell=8, emoji=24) for number in numbers]
    book = load_codebook(ROOT / "model_cards" / "rm-image-edit" / "codebook.npz")
    found = []
    for part, edit in zip(parts, chosen["edits"], strict=True):
        tokens = np.array(edit["tokens"]).reshape(1, 8, 8)
        result = with_kept_pixels(book.decode(tokens), part.source, tokens == book.encode(part.source))
        found.append(bool(instruction_success(result, part)[0]))
    done = [edit["done"] for edit in chosen["edits"]]
    assert (sum(a == b for a, b in zip(found, done, strict=True)), sum(found)) == (agree, succeed)


def test_leftovers_anywhere_in_the_region_are_no_success() -> None:
    """Also where the object is half transparent or thin: the place of the other comparison is its opaque middle."""
    examples, refused = generate_edits(60, seed=11, operations=["remove", "replace"]), 0
    for row in range(len(examples)):
        region = examples.mask[row]
        result = examples.target[row].copy()
        columns = np.flatnonzero(region.any(0))
        edge = region & (np.arange(64) < columns[0] + (columns[-1] - columns[0] + 1) * 0.3)
        result[edge] = examples.source[row][edge]
        one = generate_edits(1, seed=11, operations=["remove", "replace"], first=row)
        share = share_as_before(result, examples.source[row], examples.target[row], region)
        if share > 0.1:
            refused += 1
            assert not instruction_success(result[None], one)[0], row
        assert instruction_success(one.target, one)[0]
    assert refused > 30


def test_a_grey_filling_is_no_object_and_a_plain_background_is_one() -> None:
    for row in range(40):
        one = generate_edits(1, seed=6, split="test_photos", first=row)
        (edit,) = one.edits
        flat = one.target.copy()
        flat[one.mask] = scenes.BACKGROUNDS[edit.colour] if edit.subject is None else flat[one.mask].mean()
        assert instruction_success(flat, one)[0] == (edit.subject is None), (row, edit)


def test_a_scorer_is_asked_about_what_the_picture_should_show() -> None:
    examples = generate_edits(5, seed=1)
    asked: list[str] = []

    def scorer(pictures: np.ndarray, texts: list[str]) -> list[float]:
        asked.extend(texts)
        return [0.25] * len(pictures)

    texts = described(examples)
    assert vqa_score(scorer, examples.target, texts).tolist() == [0.25] * 5
    assert asked == texts and all(asked)
    with pytest.raises(ValueError, match="`scorer`"):
        vqa_score(lambda pictures, texts: [0.5], examples.target, texts)
    with pytest.raises(ValueError, match="`scorer`"):
        vqa_score(lambda pictures, texts: [2.0] * 5, examples.target, texts)
    with pytest.raises(ValueError, match="`texts` has 4"):
        vqa_score(scorer, examples.target, texts[1:])


def test_a_scorer_is_found_by_name_in_the_working_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_scorer_of_this_test.py").write_text(
        "half = lambda pictures, texts: [0.5] * len(texts)\nnine = 9\n"
    )
    scorer = load_scorer("own_scorer_of_this_test:half")
    assert vqa_score(scorer, picture(), ["a cat"]).tolist() == [0.5]
    for wrong in ("own_scorer_of_this_test", "own_scorer_of_this_test:none", "no_such_module_here:x", ":x"):
        with pytest.raises(ValueError, match=f"`vqa` is '{wrong}'"):
            load_scorer(wrong)
    with pytest.raises(ValueError, match="a int: name something to call"):
        load_scorer("own_scorer_of_this_test:nine")


def test_bad_input_is_named() -> None:
    mask = np.ones((1, 16, 16), dtype=bool)
    with pytest.raises(ValueError, match="`result` has shape"):
        edit_metrics(picture()[:, :8], picture(), mask)
    with pytest.raises(ValueError, match="`images`"):
        edit_metrics(picture().astype(float), picture(), mask)
    with pytest.raises(ValueError, match="`mask`"):
        edit_metrics(picture(), picture(), mask[:, :8])
    with pytest.raises(ValueError, match="`mask` is empty for edit 0"):
        edit_metrics(picture(), picture(), ~mask)
