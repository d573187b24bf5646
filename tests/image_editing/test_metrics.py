"""Measures of edits: worked numbers, and results that must fail."""

import sys

import numpy as np
import pytest

from hf_rm.tasks.image_editing import edit_metrics, generate_edits, instruction_success, vqa_score
from hf_rm.tasks.image_editing.metrics import CHANGED, MAX_PSNR, described, load_scorer


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
