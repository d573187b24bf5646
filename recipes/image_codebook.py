"""
Fit the codebook of the image tokens, and report what it loses: the limit of every edit.

    python recipes/image_codebook.py                              # refit the package's own and compare the two
    python recipes/image_codebook.py --out codebook.npz --codes 1024
    python recipes/image_codebook.py --codebook model_cards/rm-image-edit/codebook.npz    # measure a saved one
    python recipes/image_codebook.py --taef2 FOLDER               # weigh it against TAEF2's latents

It takes a minute or two on one CPU core; nothing is downloaded.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hf_rm.evaluation.statistics import mean_interval
from hf_rm.tasks.image_editing.codebook import (
    PatchCodebook,
    fit_codebook,
    k_means,
    load_codebook,
    nearest_codes,
    receptive_field,
)
from hf_rm.tasks.image_editing.metrics import reconstruction_quality
from hf_rm.tasks.image_editing.scenes import generate_edits

_FIT_SEED, _TEST_SEED = 11, 12


def main() -> None:
    """Fit, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=512, help="Size of the codebook.")
    parser.add_argument("--patch", type=int, default=4, help="Side of a patch in pixels.")
    parser.add_argument("--pictures", type=int, default=2400, help="Composed training pictures to fit.")
    parser.add_argument("--test_pictures", type=int, default=200, help="Pictures of each split to measure on.")
    parser.add_argument("--codebook", help="A saved codebook to measure, in place of fitting one.")
    parser.add_argument("--out", help="Where to save the fitted codebook.")
    parser.add_argument("--taef2", help="Folder of TAEF2's two state dicts, to measure them too (slow).")
    arguments = parser.parse_args()

    if arguments.codebook and arguments.out:
        parser.error("--codebook measures what is saved already: leave --out out.")
    books = {"the package's": load_codebook()}
    if arguments.codebook:
        books = {arguments.codebook: load_codebook(arguments.codebook)} | books
    else:
        began = time.perf_counter()
        fitted = fit_codebook(fitting_pictures(arguments.pictures), arguments.codes, arguments.patch)
        print(f"fitted {arguments.codes} patches of {arguments.patch} px in {time.perf_counter() - began:.0f} s")
        if arguments.out:
            fitted.save(arguments.out)
        books = {"fitted": fitted} | books
    for name, book in books.items():
        report(name, book.reconstruct, (64 // book.patch) ** 2, arguments.test_pictures)
        print(f"  receptive field: {receptive_field(book.decode, len(book))} px beyond the patch")
        print(f"  without neighbours: {plain_psnr(book, arguments.test_pictures):.2f} dB on dev")
    if arguments.taef2:
        report_taef2(arguments.taef2, arguments.codes)


def fitting_pictures(count: int) -> np.ndarray:
    """Half of them before and half after an edit."""
    examples = generate_edits(count, seed=_FIT_SEED)
    return np.concatenate((examples.source[: count // 2], examples.target[count // 2 :]))


def report(name: str, reconstruct: Callable[[np.ndarray], np.ndarray], tokens: int, count: int) -> None:
    """PSNR and SSIM with intervals, and the time a picture takes."""
    for split in ("dev", "test"):
        pictures = generate_edits(count, seed=_TEST_SEED, split=split).target
        began = time.perf_counter()
        quality = reconstruction_quality(pictures, reconstruct(pictures))
        seconds = (time.perf_counter() - began) / count
        psnr, ssim = mean_interval(quality["psnr"]), mean_interval(quality["ssim"])
        print(
            f"{name}, {split}, {tokens} tokens: PSNR {psnr.value:.2f} dB ({psnr.low:.2f} to {psnr.high:.2f}), "
            f"SSIM {ssim.value:.3f} ({ssim.low:.3f} to {ssim.high:.3f}), n = {count}, {1000 * seconds:.1f} ms each"
        )


def plain_psnr(book: PatchCodebook, count: int) -> float:
    """What the centres alone would give."""
    pictures = generate_edits(count, seed=_TEST_SEED, split="dev").target
    alone = np.zeros_like(book.tables)
    alone[4, :-1] = book.centres
    return float(
        reconstruction_quality(pictures, PatchCodebook(book.centres, alone).reconstruct(pictures))["psnr"].mean()
    )


def report_taef2(folder: str, codes: int) -> None:
    """The same for the nearest of `codes` latents, at 64 px and at twice that, and without any codebook."""
    from hf_rm.tasks.image_editing.taef2 import load_taef2

    encoder, decoder = load_taef2(folder)
    for scale in (1, 2):
        seen: list[np.ndarray] = []
        through = partial(pass_through, encoder, decoder, scale)
        through(partial(remember, seen), fitting_pictures(120))
        centres = k_means(np.random.default_rng(0).permutation(np.concatenate(seen)), codes)
        tokens = (8 * scale) ** 2
        report(f"TAEF2 x{scale}, continuous", partial(through, partial(remember, [])), tokens, 40)
        report(f"TAEF2 x{scale}, nearest", partial(through, partial(nearest_latents, centres)), tokens, 40)


def remember(seen: list[np.ndarray], latents: np.ndarray) -> np.ndarray:
    """Keep them as they are, and note them."""
    seen.append(latents)
    return latents


def nearest_latents(centres: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """What a codebook makes of them."""
    return centres[nearest_codes(latents, centres)]


@torch.no_grad()
def pass_through(
    encoder: Any, decoder: Any, scale: int, change: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray
) -> np.ndarray:
    """Pictures, enlarged, through the autoencoder, with their latents (n, 32) changed on the way."""
    out = []
    for chunk in np.array_split(pictures, -(-len(pictures) // 20)):
        images = torch.from_numpy(chunk).permute(0, 3, 1, 2).float() / 255
        enlarged = F.interpolate(images, scale_factor=scale, mode="bicubic").clamp(0, 1)
        latents = encoder(enlarged).permute(0, 2, 3, 1)
        changed = torch.from_numpy(change(latents.reshape(-1, 32).numpy())).reshape(latents.shape)
        small = F.avg_pool2d(decoder(changed.permute(0, 3, 1, 2)).clamp(0, 1), scale)
        out.append((255 * small.permute(0, 2, 3, 1) + 0.5).numpy().astype(np.uint8))
    return np.concatenate(out)


if __name__ == "__main__":
    main()
