"""Image tokens: encoding, decoding, how far a token reaches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_rm.tasks.image_editing import (
    PatchCodebook,
    fit_codebook,
    generate_edits,
    load_codebook,
    receptive_field,
    reconstruction_quality,
)
from hf_rm.tasks.image_editing import codebook as module

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fitted() -> PatchCodebook:
    return fit_codebook(generate_edits(60, seed=1).target, codes=32)


def test_decoding_is_the_sum_of_nine_look_ups(fitted: PatchCodebook) -> None:
    grid = np.random.default_rng(0).integers(0, 32, (1, 3, 2))
    slow = np.zeros((12, 8, 3))
    for row in range(3):
        for column in range(2):
            for place, (down, across) in enumerate((d, a) for d in (-1, 0, 1) for a in (-1, 0, 1)):
                y, x = row + down, column + across
                token = grid[0, y, x] if 0 <= y < 3 and 0 <= x < 2 else 32
                slow[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += fitted.tables[place, token].reshape(
                    4, 4, 3
                )
    assert np.abs(fitted.decode(grid)[0] - (slow + 0.5).clip(0, 255).astype(np.uint8).astype(int)).max() <= 1


def test_encoding_takes_the_nearest_patch_by_lightness_and_colour(fitted: PatchCodebook) -> None:
    picture = generate_edits(1, seed=3).source
    grid = fitted.encode(picture)
    patch = picture[0, 8:12, 20:24].astype(float).reshape(16, 3)
    centres = fitted.centres.reshape(32, 16, 3).astype(float)
    difference = patch - centres
    grey = difference.sum(-1) / np.sqrt(3)
    colour = (difference**2).sum(-1) - grey**2
    distance = (grey**2 + module._CHROMA**2 * colour).sum(-1)
    assert grid[0, 2, 5] == distance.argmin()


def test_a_fitted_codebook_is_better_than_its_centres_alone_and_repeats(fitted: PatchCodebook) -> None:
    pictures = generate_edits(20, seed=2, split="dev").target
    alone = np.zeros_like(fitted.tables)
    alone[4, :-1] = fitted.centres
    psnr = reconstruction_quality(pictures, fitted.reconstruct(pictures))["psnr"].mean()
    plain = PatchCodebook(fitted.centres, alone)
    assert psnr > reconstruction_quality(pictures, plain.reconstruct(pictures))["psnr"].mean() + 0.3
    again = fit_codebook(generate_edits(60, seed=1).target, codes=32)
    assert (again.centres == fitted.centres).all() and (again.tables == fitted.tables).all()


def test_how_far_a_token_reaches_is_measured(fitted: PatchCodebook) -> None:
    alone = np.zeros_like(fitted.tables)
    alone[4, :-1] = fitted.centres
    assert receptive_field(PatchCodebook(fitted.centres, alone).decode, 32) == 0
    assert receptive_field(fitted.decode, 32) == fitted.patch


def test_a_reach_that_the_grid_cannot_hold_is_not_taken_for_its_edge() -> None:
    def blurred(radius: int):
        def decode(grid: np.ndarray) -> np.ndarray:
            value = np.pad((grid * 20).astype(np.float64), ((0, 0), (radius, radius), (radius, radius)))
            side = 2 * radius + 1
            windows = np.lib.stride_tricks.sliding_window_view(value, (side, side), axis=(1, 2)).max((-1, -2))
            return np.repeat(windows[..., None], 3, -1).astype(np.uint8)  # pictures of a pixel a token

        return decode

    assert receptive_field(blurred(2), 12) == 2 and receptive_field(blurred(3), 12) == 3
    # The middle of nine reaches the edge with four: it may reach further.
    assert receptive_field(blurred(4), 12, trials=400) == np.inf
    assert receptive_field(blurred(5), 12, side=13, trials=2000) == 5
    with pytest.raises(ValueError, match="`side`"):
        receptive_field(blurred(1), 12, side=8)


def test_the_codebook_recipe_measures_a_saved_one(tmp_path: Path, fitted: PatchCodebook) -> None:
    fitted.save(tmp_path / "own.npz")
    command = [sys.executable, str(ROOT / "recipes" / "image_codebook.py"), "--test_pictures", "3", "--codebook"]
    done = subprocess.run(
        [*command, "own.npz"], capture_output=True, text=True, cwd=tmp_path, timeout=250,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    pictures = generate_edits(3, seed=12, split="dev").target
    psnr = reconstruction_quality(pictures, load_codebook(tmp_path / "own.npz").reconstruct(pictures))
    assert f"own.npz, dev, 256 tokens: PSNR {psnr['psnr'].mean():.2f} dB" in done.stdout
    assert "the package's, test" in done.stdout and "fitted" not in done.stdout


def test_pixels_beyond_the_receptive_field_of_a_changed_token_stay() -> None:
    book = load_codebook()
    reach = receptive_field(book.decode, len(book))
    grid = book.encode(generate_edits(1, seed=7).source)
    changed = grid.copy()
    changed[0, 5:8, 9:11] = (changed[0, 5:8, 9:11] + 17) % len(book)
    moved = (book.decode(grid) != book.decode(changed))[0].any(-1)
    near = np.zeros_like(moved)
    near[5 * 4 - reach : 8 * 4 + reach, 9 * 4 - reach : 11 * 4 + reach] = True
    assert moved[20:32, 36:44].any() and not (moved & ~near).any()


def test_the_packaged_codebook_loses_what_its_documentation_says() -> None:
    pictures = generate_edits(40, seed=12, split="dev").target
    quality = reconstruction_quality(pictures, load_codebook().reconstruct(pictures))
    assert quality["psnr"].mean() > 22.5 and quality["ssim"].mean() > 0.7


def test_saving_rounds_to_half_precision_and_changes_no_token(fitted: PatchCodebook, tmp_path: Path) -> None:
    pictures = generate_edits(4, seed=3).source
    fitted.save(tmp_path / "book.npz")
    loaded = load_codebook(tmp_path / "book.npz")
    assert (loaded.encode(pictures) == fitted.encode(pictures)).all()
    assert np.abs(loaded.reconstruct(pictures).astype(int) - fitted.reconstruct(pictures)).max() <= 2


def test_what_cannot_be_encoded_or_loaded_is_refused(tmp_path: Path, fitted: PatchCodebook) -> None:
    for wrong in (
        np.zeros((1, 62, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 4), np.uint8),
    ):
        with pytest.raises(ValueError, match="`images`"):
            fitted.encode(wrong)
    with pytest.raises(ValueError, match="`grid`"):
        fitted.decode(np.full((1, 2, 2), 32))
    with pytest.raises(ValueError, match="`codes`"):
        fit_codebook(np.zeros((1, 8, 8, 3), np.uint8), codes=5)
    for patch in (0, -4, 2.0):
        with pytest.raises(ValueError, match=f"`patch` is {patch}: pass a whole number of pixels, 1 or more"):
            fit_codebook(np.zeros((1, 8, 8, 3), np.uint8), codes=2, patch=patch)
    with pytest.raises(ValueError, match=r"`images` has shape \(0, 8, 8, 3\): pass one picture or more"):
        fitted.encode(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(OSError):
        load_codebook(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"not a codebook")
    with pytest.raises(OSError, match="not a codebook"):
        load_codebook(tmp_path / "bad.npz")


def test_without_neighbours_a_token_is_its_own_patch_alone() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    book = fit_codebook(pictures, codes=12, patch=8, neighbours=False)
    assert receptive_field(book.decode, 12, side=5) == 0
    grid = book.encode(pictures[:1])
    patch = (book.centres[grid[0, 1, 2]].reshape(8, 8, 3) + 0.5).clip(0, 255).astype(np.uint8)
    assert (book.decode(grid)[0, 8:16, 16:24] == patch).all()
