# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Running edits: pictures and requests in, edited pictures out, with everything that happened on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging

from ...checks import check_number
from .codebook import Grid, Image, check_images
from .guidance import KeptSource, TwoScaleGuidance
from .protocols import ImageTokens, Layout

# A saved editor's generation config holds the limits of its own decoding: another one begins without them.
_LIMITS = ("reveal_threshold", "revise_threshold", "max_remask_ratio", "max_remasks_per_position", "max_steps")
_WITHOUT_LIMITS = dict.fromkeys(_LIMITS)
DECODINGS: dict[str, dict[str, Any]] = {
    "revise": {
        "reveal": "threshold",
        "reveal_threshold": 0.5,
        "revise": "reflective",
        "revise_threshold": 0.8,
        "max_remask_ratio": 0.05,
        "max_remasks_per_position": 1,
        "max_steps": 48,
    },
    "regenerate": {**_WITHOUT_LIMITS, "reveal": "confidence", "steps": 16, "revise": None, "use_history": False},
}
"""`revise` starts from the source's tokens and takes back, by Eq. 1 with a threshold, the 5 % that it is surest
of, step after step: what it has taken back says where the rest of the region is, so that the borders agree.
It reveals what is sure enough. A position is re-masked once: what was behind a removed object is a guess, which may be
revised for ever. The method's predicted region is what the first round re-masks; under this limit it is what all
rounds together do, a departure.
`regenerate` fills a canvas of masks, as a model of vanilla fine-tuning does."""


@dataclass(frozen=True)
class EditRun:
    """
    Attributes:
        result (`(B, H, W, 3)` uint8): the edited pictures; with `keep_pixels` the source's own pixels wherever the
            final token is the source's.
        states (`(S + 1, B, rows, columns)` int64): the canvas after every step, -1 where it is masked; the shorter
            rows repeat their last state.
        predicted (`(B, rows, columns)` bool): the edit region that the model saw: what it re-masked in any round (of a
            regenerated canvas: where the result differs from the source).
        num_forwards (`(B,)` int64): forward passes an edit took.
        left_out (`dict[int, str]`): edits whose instruction cannot be read, by number, with the reason. They took no
            forward pass and show their source.
    """

    result: Image
    states: Grid
    predicted: npt.NDArray[np.bool_]
    num_forwards: npt.NDArray[np.int64]
    left_out: dict[int, str] = field(default_factory=dict)


@torch.inference_mode()
def edit_images(
    model: Any,
    layout: Layout,
    book: ImageTokens,
    source: Image,
    instructions: Sequence[str],
    decoding: str = "revise",
    batch_size: int = 64,
    progress_bar: bool = False,
    text_guidance: float = 0.0,
    image_guidance: float = 0.0,
    keep_pixels: bool = True,
    keep_threshold: float | None = None,
    **generation: Any,
) -> EditRun:
    """
    Edit pictures as asked. An instruction that cannot be read (no text, empty, too long) leaves its picture as it is;
    how many these are is warned of.

    Args:
        model ([`RMForMaskedDiffusion`]): a network of this layout.
        layout ([`EditLayout`], [`DimooLayout`]): of its sequences.
        book ([`PatchCodebook`], [`VQTokens`]): tokens from pictures and back.
        source (`(B, H, W, 3)` uint8): the pictures, as large as the layout's grid of the book's patches.
        instructions (sequence of B `str`): the requests.
        decoding (`str`, defaults to `"revise"`): a key of `DECODINGS`.
        batch_size (`int`, defaults to 64): edits at a time.
        progress_bar (`bool`, defaults to `False`): show one.
        text_guidance, image_guidance (`float`, defaults to 0): the scales of [`TwoScaleGuidance`]; each that is not 0
            costs one more forward pass a step, and needs a model that was trained with its condition dropped.
        keep_pixels (`bool`, defaults to `True`): where a token ends as it was, leave the source's pixels, which no
            tokenizer has been through ([`with_kept_pixels`]). False: the whole picture as its tokens show it.
        keep_threshold (`float`, *optional*): reveal the source's token unless another one's share of the two is above
            this, 0.5 to below 1 ([`KeptSource`]); of regeneration, to compare it at equal coverage.
        generation: further settings of the decoding loop.

    Raises:
        ValueError: for an unknown decoding, pictures that do not fit the layout, a batch size below 1, or no
            instruction that can be read.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"`decoding` is {decoding!r}: pass one of {', '.join(DECODINGS)}.")
    if len(source) != len(instructions):
        raise ValueError(f"{len(source)} pictures and {len(instructions)} instructions: pass one for each picture.")
    check_number("batch_size", batch_size, 1, inf, "a whole number of edits, 1 or more", Integral)
    _check_size(source, layout, book)
    kept, left_out = _readable(instructions, layout)
    encoded = book.encode(source)
    sequences = layout.sequences([instructions[i] for i in kept], encoded[kept])
    if decoding == "regenerate":
        sequences[:, layout.editable_mask] = layout.mask_token_id
    model.eval()
    if keep_threshold is not None:
        model = KeptSource(model, layout, keep_threshold, text_guidance, image_guidance)
    elif text_guidance or image_guidance:
        model = TwoScaleGuidance(model, layout, text_guidance, image_guidance)
    settings = {**DECODINGS[decoding], "suppressed_token_ids": layout.suppressed_token_ids, **generation}
    paths, forwards = [], np.zeros(len(source), dtype=np.int64)
    starts = range(0, len(sequences), batch_size)
    for start in logging.tqdm(starts, desc=f"edit ({decoding})", disable=not progress_bar):
        ids = torch.from_numpy(sequences[start : start + batch_size]).to(model.device)
        editable = torch.from_numpy(layout.editable_mask).to(model.device).expand_as(ids)
        output = model.generate_reflective(
            ids, layout.attention_mask(ids), editable, output_trajectory=True, **settings
        )
        paths.append(output.trajectory.states.cpu().numpy())
        forwards[kept[start : start + batch_size]] = output.num_forwards.cpu().numpy()
    ran = _grids(paths, layout)
    states = np.repeat(encoded[None], len(ran), axis=0)
    states[:, kept] = ran
    final = _final(states[-1], encoded)
    predicted = np.asarray(final != encoded if decoding == "regenerate" else (states < 0).any(0))
    result = book.decode(final)
    if keep_pixels:
        result = with_kept_pixels(result, source, final == encoded)
    return EditRun(result, states, predicted, forwards, left_out)


def _check_size(source: Image, layout: Layout, book: ImageTokens) -> None:
    """Raise a ValueError for pictures of other sides, in pixels, than those of the layout."""
    check_images(source, name="source")
    height, width = layout.rows * book.patch, layout.columns * book.patch
    if source.shape[1:3] != (height, width):
        raise ValueError(
            f"`source` has shape {source.shape}, and this model edits pictures of {height} x {width} pixels (height x "
            "width): crop or resize them to that first."
        )


def _readable(instructions: Sequence[str], layout: Layout) -> tuple[list[int], dict[int, str]]:
    """The numbers of the instructions that the layout can hold, and why it cannot hold the others."""
    left_out = {}
    for number, instruction in enumerate(instructions):
        try:
            layout.encode_text(instruction)
        except ValueError as reason:
            left_out[number] = str(reason)
    if len(left_out) == len(instructions):
        raise ValueError(f"no instruction can be read: {left_out[0] if left_out else 'there is none'}")
    if left_out:
        first = next(iter(left_out))
        logging.get_logger(__name__).warning(
            f"{len(left_out)} of {len(instructions)} instructions cannot be read; their pictures stay as they are. "
            f"The first, number {first}: {left_out[first]}"
        )
    return [number for number in range(len(instructions)) if number not in left_out], left_out


def _final(last: Grid, source: Grid) -> Grid:
    """The last state; a limit may end a run with masks left, and the source's tokens stand in for them."""
    unfinished = (last < 0).any((1, 2))
    if unfinished.any():
        logging.get_logger(__name__).warning(
            f"{unfinished.sum()} of {len(last)} edits ended with masks left; they show the source: raise `max_steps`."
        )
    return np.where(last < 0, source, last)


def with_kept_pixels(result: Image, source: Image, kept: npt.NDArray[np.bool_]) -> Image:
    """
    Pictures (B, H, W, 3) that show `source` where a token was kept (B, rows, columns), and `result` elsewhere.

    Example:
        >>> source, result = np.zeros((1, 4, 4, 3), dtype=np.uint8), np.ones((1, 4, 4, 3), dtype=np.uint8)
        >>> with_kept_pixels(result, source, np.array([[[True, False], [False, False]]]))[0, :, :, 0].tolist()
        [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    """
    down, across = (source.shape[i] // kept.shape[i] for i in (1, 2))
    pixels = kept.repeat(down, axis=1).repeat(across, axis=2)
    return np.where(pixels[..., None], source, result)


def _grids(paths: Sequence[npt.NDArray[np.int64]], layout: Layout) -> Grid:
    """(S + 1, B, rows, columns) of batches with unequal numbers of steps."""
    longest = max(map(len, paths))
    whole = [np.concatenate((path, np.repeat(path[-1:], longest - len(path), axis=0))) for path in paths]
    joined = np.concatenate(whole, axis=1)
    flat = layout.grid(joined.reshape(-1, layout.length))
    return flat.reshape(*joined.shape[:2], layout.rows, layout.columns)
