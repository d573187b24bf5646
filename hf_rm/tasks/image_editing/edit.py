# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Running edits: pictures and requests in, edited pictures out, with everything that happened on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging

from .codebook import Grid, Image
from .guidance import TwoScaleGuidance
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
    "revise-slowly": {
        **_WITHOUT_LIMITS,
        "reveal": "confidence",
        "steps": 16,
        "revise": "reflective",
        "max_steps": 64,
        "patience": 3,
    },
    "regenerate": {**_WITHOUT_LIMITS, "reveal": "confidence", "steps": 16, "revise": None, "use_history": False},
}
"""`revise` starts from the source's tokens and takes back, by Eq. 1 with a threshold, the 5 % that it is surest
of, step after step: what it has taken back says where the rest of the region is, so that the borders agree.
It reveals what is sure enough. A position is re-masked once: what was behind a removed object is a guess, which may be
revised for ever.
`revise-slowly` refills what it re-masked most confident tokens first; `regenerate` fills a canvas of masks, as a model
of vanilla fine-tuning does."""


@dataclass(frozen=True)
class EditRun:
    """
    Attributes:
        result (`(B, H, W, 3)` uint8): the edited pictures; with `keep_pixels` the source's own pixels wherever the
            final token is the source's.
        states (`(S + 1, B, rows, columns)` int64): the canvas after every step, -1 where it is masked; the shorter
            rows repeat their last state.
        predicted (`(B, rows, columns)` bool): the edit region that the model saw: what it re-masked (of a regenerated
            canvas: where the result differs from the source).
        num_forwards (`(B,)` int64): forward passes an edit took.
        seconds (`float`): of all edits together, encoding and decoding of pictures included.
    """

    result: Image
    states: Grid
    predicted: npt.NDArray[np.bool_]
    num_forwards: npt.NDArray[np.int64]
    seconds: float


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
    **generation: Any,
) -> EditRun:
    """
    Edit pictures as asked.

    Args:
        model ([`RMForMaskedDiffusion`]): a network of this layout.
        layout ([`EditLayout`], [`DimooLayout`]): of its sequences.
        book ([`PatchCodebook`], [`VQTokens`]): tokens from pictures and back.
        source (`(B, H, W, 3)` uint8): the pictures.
        instructions (sequence of B `str`): the requests.
        decoding (`str`, defaults to `"revise"`): a key of `DECODINGS`.
        batch_size (`int`, defaults to 64): edits at a time.
        progress_bar (`bool`, defaults to `False`): show one.
        text_guidance, image_guidance (`float`, defaults to 0): the scales of [`TwoScaleGuidance`]; each that is not 0
            costs one more forward pass a step, and needs a model that was trained with its condition dropped.
        keep_pixels (`bool`, defaults to `True`): where a token ends as it was, leave the source's pixels, which no
            tokenizer has been through ([`with_kept_pixels`]). False: the whole picture as its tokens show it.
        generation: further settings of the decoding loop.

    Raises:
        ValueError: for an unknown decoding, or pictures and requests that do not fit the layout.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"`decoding` is {decoding!r}: pass one of {', '.join(DECODINGS)}.")
    if len(source) != len(instructions):
        raise ValueError(f"{len(source)} pictures and {len(instructions)} instructions: pass one for each picture.")
    began = time.perf_counter()
    sequences = layout.sequences(instructions, book.encode(source))
    if decoding == "regenerate":
        sequences[:, layout.editable_mask] = layout.mask_token_id
    model.eval()
    if text_guidance or image_guidance:
        model = TwoScaleGuidance(model, layout, text_guidance, image_guidance)
    paths, forwards = [], []
    starts = range(0, len(sequences), batch_size)
    for start in logging.tqdm(starts, desc=f"edit ({decoding})", disable=not progress_bar):
        ids = torch.from_numpy(sequences[start : start + batch_size]).to(model.device)
        editable = torch.from_numpy(layout.editable_mask).to(model.device).expand_as(ids)
        settings = {**DECODINGS[decoding], "suppressed_token_ids": layout.suppressed_token_ids, **generation}
        output = model.generate_reflective(
            ids, layout.attention_mask(ids), editable, output_trajectory=True, **settings
        )
        paths.append(output.trajectory.states.cpu().numpy())
        forwards.append(output.num_forwards.cpu().numpy())
    states = _grids(paths, layout)
    unfinished = (states[-1] < 0).any((1, 2))
    # A limit may end a run with masks left: the source's tokens stand in for them.
    unedited = layout.grid(sequences, "source")
    final = np.where(states[-1] < 0, unedited, states[-1])
    predicted = np.asarray(final != unedited if decoding == "regenerate" else (states < 0).any(0))
    if unfinished.any():
        logging.get_logger(__name__).warning(
            f"{unfinished.sum()} of {len(states[-1])} edits ended with masks left; they show the source: "
            "raise `max_steps`."
        )
    result = book.decode(final)
    if keep_pixels:
        result = with_kept_pixels(result, source, final == unedited)
    return EditRun(result, states, predicted, np.concatenate(forwards), time.perf_counter() - began)


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
