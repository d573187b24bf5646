"""Tables of an evaluation: seeds pooled edit by edit, differences paired, nothing averaged that was not measured."""

import json

import numpy as np
import pytest

from hf_rm.tasks.image_editing import PatchCodebook, generate_edits, load_codebook
from hf_rm.tasks.image_editing.edit import with_kept_pixels
from hf_rm.tasks.image_editing.report import (
    MEASURES,
    comparisons,
    differences,
    markdown_comparisons,
    markdown_conditions,
    markdown_table,
    measure,
    pooled,
    read_records,
    reconstruction_line,
    reference_records,
    shippable,
    threshold_of_coverage,
    token_region,
)


def record(system: str, seed: int, **values: list[float]) -> dict:
    edits = {name: [1.0, 2.0, 3.0] for name in MEASURES} | values
    return {
        "name": f"{system}, seed {seed}", "system": system, "seed": seed, "edits": edits, "forwards": 4.0 + seed,
        "success_by_operation": {"add": 0.5 * seed},
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
    text = markdown_comparisons([one, other])
    assert "| psnr | 3.5 (2.52 to 4.48) *, n = 2 |" in text and "| ssim | 0 (0 to 0) |" in text
    assert comparisons([one]) == [] and markdown_comparisons([one]) == ""
    assert "| sft, seed 0 | 2 (" in markdown_table([one, other])


def test_edits_that_one_of_two_did_nothing_about_are_left_out_of_the_second_comparison() -> None:
    # The first edit is RM's doing nothing: 60 dB that nobody earned.
    rm = record("rm", 0, psnr=[60.0, 20.0, 30.0], acted=[0.0, 1.0, 1.0], coverage=[0.0, 0.5, 0.5])
    sft = record("sft", 0, psnr=[30.0, 22.0, 31.0], acted=[1.0, 1.0, 1.0], coverage=[0.5, 0.6, 0.7])
    kept = record("sft-keep", 0, psnr=[30.0, 25.0, 40.0], acted=[1.0, 1.0, 1.0], coverage=[0.25, 0.25, 0.5])
    assert differences(rm, sft)["psnr"].value == 9.0
    both = differences(rm, sft, where_both_acted=True)
    assert (both["psnr"].value, both["psnr"].observations) == (-1.5, 2)
    everything, acted, equal = comparisons([rm, sft, kept])
    cells = [{row[0]: row[1:] for row in table.rows} for table in (everything, acted, equal)]
    assert [table.columns for table in (everything, acted, equal)] == [
        ["", "rm, seed 0", "sft-keep, seed 0"], ["", "rm, seed 0", "sft-keep, seed 0"], ["", "rm, seed 0"],
    ]  # fmt: skip
    assert [table["edits"] for table in cells] == [["3", "3"], ["2", "3"], ["3"]]
    assert [table["psnr"][0].split()[0] for table in cells] == ["9", "-1.5", "5"]
    assert [table["coverage"][0].split()[0] for table in cells] == ["-0.267", "-0.15", "0"]
    assert "acted" in cells[0] and "acted" not in cells[1]


def test_the_threshold_of_a_coverage_is_searched_for_on_what_is_asked() -> None:
    asked = []

    def coverage(threshold: float) -> float:
        asked.append(threshold)
        return 0.8 - 0.1 * float(np.log(threshold / (1 - threshold)))

    threshold, found = threshold_of_coverage(coverage, 0.65)
    assert len(asked) == 7 and asked[:3] == pytest.approx([0.5, 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1.5))])
    assert threshold == asked[2] and found == pytest.approx(0.65)
    assert threshold_of_coverage(lambda _: 0.4, 0.65) == (0.5, 0.4)


def test_what_is_shipped_gives_the_same_differences_back(tmp_path) -> None:
    one = record("rm", 0, precision=[0.123456789, np.nan, 0.5]) | {"condition": "any place"}
    other = record("sft", 0, precision=[0.1, 0.2, 0.3])
    (tmp_path / "records.json").write_text(json.dumps([shippable(one), shippable(other)], allow_nan=False))
    read = read_records(tmp_path / "records.json")
    np.testing.assert_equal(read[0]["edits"]["precision"], [0.12346, np.nan, 0.5])
    assert read[0]["means"]["coverage"][0] == 2.0 and read[0]["means"]["precision"][1] < 0.3
    assert differences(*read)["coverage"] == differences(one, other)["coverage"]
    assert "| any place | 3 | rm, seed 0 | 0.312 (" in markdown_conditions(read[:1])


def test_the_tokenizers_limit_is_that_of_whole_pictures() -> None:
    book, examples = load_codebook(), generate_edits(4, seed=2)
    (_, oracle) = references = reference_records(book, examples)
    error = ((book.reconstruct(examples.source).astype(float) - examples.source) ** 2).mean((1, 2, 3))
    assert oracle["reconstruction"]["source"] == pytest.approx((10 * np.log10(255**2 / error)).tolist())
    assert len(oracle["reconstruction"]["target"]) == 4
    value = np.mean(oracle["reconstruction"]["source"])
    assert f"(PSNR): sources {value:.4g} (" in reconstruction_line(references) and reconstruction_line([]) == ""


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
