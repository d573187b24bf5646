"""Tables of an evaluation: seeds pooled edit by edit, differences paired, nothing averaged that was not measured."""

import numpy as np
import pytest

from hf_rm.tasks.image_editing import PatchCodebook, generate_edits, load_codebook
from hf_rm.tasks.image_editing.edit import with_kept_pixels
from hf_rm.tasks.image_editing.report import (
    MEASURES,
    differences,
    differences_table,
    markdown_differences,
    markdown_table,
    measure,
    pooled,
    reference_records,
    token_region,
)


def record(system: str, seed: int, **values: list[float]) -> dict:
    edits = {name: [1.0, 2.0, 3.0] for name in MEASURES} | values
    return {
        "name": f"{system}, seed {seed}", "system": system, "seed": seed, "edits": edits, "forwards": 4.0 + seed,
        "seconds_an_edit": 0.5, "success_by_operation": {"add": 0.5 * seed},
    }  # fmt: skip


def test_seeds_are_averaged_edit_by_edit_over_what_was_measured() -> None:
    runs = [record("rm", 0, precision=[1.0, np.nan, np.nan]), record("rm", 1, precision=[0.5, 0.25, np.nan])]
    rm, sft = pooled([*runs, record("sft", 0)])
    assert rm["name"] == "rm, 2 seeds" and rm["seed"] == [0, 1] and sft["name"] == "sft, seed 0"
    np.testing.assert_equal(rm["edits"]["precision"], [0.75, 0.25, np.nan])
    assert rm["forwards"] == 4.5 and rm["success_by_operation"] == {"add": 0.25}


def test_differences_are_paired_over_the_edits_that_both_have() -> None:
    one, other = record("rm", 0, psnr=[5.0, np.nan, 7.0]), record("sft", 0, psnr=[1.0, 9.0, 4.0])
    found = differences(one, other)["psnr"]
    assert (found.value, found.observations) == (3.5, 2)
    assert found.high - found.value == pytest.approx(1.959964 * np.std([4, 3], ddof=1) / 2**0.5)
    text = markdown_differences([one, other])
    assert "| psnr | 3.5 (2.52 to 4.48) * |" in text and "| ssim | 0 (0 to 0) |" in text
    assert differences_table([one], "") is None and markdown_differences([one]) == ""
    assert "| sft, seed 0 | 2 (" in markdown_table([one, other])


def test_what_tokens_can_reach_is_measured_on_whole_tokens() -> None:
    book, examples = load_codebook(), generate_edits(6, seed=2)
    limit = measure(book.reconstruct(examples.target), examples, book, keep_pixels=False)
    copied, target = reference_records(book, examples, keep_pixels=False)
    assert limit == target["edits"] and copied["edits"]["acted"] == [0.0] * 6
    assert np.isnan(copied["edits"]["precision"]).all() and copied["edits"]["psnr_tokens"][0] == 60.0
    assert (np.asarray(limit["precision_tokens"]) >= limit["precision"]).all()
    region = token_region(examples.mask, 4)
    assert (region >= examples.mask).all()
    assert (region.reshape(6, 16, 4, 16, 4).any((2, 4)) == examples.mask.reshape(6, 16, 4, 16, 4).any((2, 4))).all()
    # A result that moved only tokens of the region, shown without neighbours, leaves every other token alone.
    alone = np.zeros_like(book.tables)
    alone[4, :-1] = book.centres
    plain = PatchCodebook(book.centres, alone)
    mixed = np.where(region[:, ::4, ::4], book.encode(examples.target), book.encode(examples.source))
    moved = measure(plain.decode(mixed), examples, plain, keep_pixels=False)
    assert moved["precision_tokens"] == [1.0] * 6 and set(moved["mae_tokens"]) <= {0.0}
    assert set(moved["psnr_tokens"]) == {60.0} and min(moved["precision"]) < 1


def test_with_kept_pixels_the_source_itself_is_what_no_edit_looks_like() -> None:
    book, examples = load_codebook(), generate_edits(6, seed=2)
    copied, limit = (record["edits"] for record in reference_records(book, examples))
    assert copied["mae"] == [0.0] * 6 and copied["psnr"] == [60.0] * 6 and copied["acted"] == [0.0] * 6
    whole = reference_records(book, examples, keep_pixels=False)[1]["edits"]
    assert (np.asarray(limit["mae"]) < whole["mae"]).all(), "tokens that the edit leaves as they were are not decoded"
    same = book.encode(examples.source) == book.encode(examples.target)
    pasted = with_kept_pixels(book.reconstruct(examples.target), examples.source, same)
    assert limit == measure(pasted, examples, book)
