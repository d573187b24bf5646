# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Edits to look at: a sheet with one row an edit, and the revision of one edit as an animation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...visualize._files import replacing
from .codebook import Grid, Image, PatchCodebook, check_images
from .edit import with_kept_pixels

_COLUMNS = ("source", "predicted region", "result", "target", "difference")
_SIDE, _GAP, _LINE = 128, 6, 16
_INK, _PAPER, _FAINT = (27, 28, 31), (255, 255, 255), (144, 147, 155)
_REGION = np.array([255.0, 96.0, 0.0])
_MASKED = np.array([[205, 203, 198], [184, 182, 177]], dtype=np.uint8)


def difference_map(result: Image, target: Image) -> Image:
    """
    How far pixels are from the target: black (equal) over red and yellow to white (as far as can be).

    Example:
        >>> pair = np.zeros((2, 1, 1, 1, 3), dtype=np.uint8)
        >>> int(difference_map(pair[0], pair[1]).max()), int(difference_map(pair[0], pair[1] + np.uint8(255)).min())
        (0, 255)
    """
    heat = np.abs(result.astype(np.float64) - target).max(-1, keepdims=True) / 255
    # The square root lifts small differences into sight.
    return (255 * np.clip(3 * np.sqrt(heat) - np.arange(3), 0, 1) + 0.5).astype(np.uint8)


def region_overlay(pictures: Image, region: npt.NDArray[np.bool_]) -> Image:
    """Pictures (B, H, W, 3) faded, with a region of their token grid (B, rows, columns) in orange."""
    fine = _enlarge(region, pictures.shape[1:3])[..., None]
    grey = pictures.mean(-1, keepdims=True) * 0.5 + 120
    return np.where(fine, 0.5 * pictures + 0.5 * _REGION, grey).clip(0, 255).astype(np.uint8)


def write_edit_sheet(
    path: str | os.PathLike[str],
    source: Image,
    predicted: npt.NDArray[np.bool_],
    result: Image,
    target: Image,
    instructions: Sequence[str],
    notes: Sequence[str] | None = None,
) -> Path:
    """
    Write a PNG with one row an edit: source, predicted region, result, target, difference of the last two.

    Args:
        path: where it goes; missing folders are made, an older file is replaced when the new one is complete.
        source, result, target (`(B, H, W, 3)` uint8): the pictures.
        predicted (`(B, rows, columns)` bool): the region that the model re-masked, on the token grid.
        instructions (sequence of B `str`): the heading of each row.
        notes (sequence of B `str`, *optional*): more words for each row, such as whether it succeeded.

    Raises:
        ValueError: for pictures that do not belong together, or none.

    Example:
        >>> import tempfile
        >>> black = np.zeros((1, 8, 8, 3), dtype=np.uint8)
        >>> region = np.ones((1, 2, 2), dtype=bool)
        >>> write_edit_sheet(f"{tempfile.mkdtemp()}/sheet.png", black, region, black, black, ["do nothing"]).name
        'sheet.png'
    """
    pictures = {"source": source, "result": result, "target": target}
    for name, images in pictures.items():
        check_images(images, name=name)
        if images.shape != source.shape or not len(images):
            raise ValueError(
                f"`{name}` has shape {images.shape} and `source` {source.shape}: pass pairs, one or more."
            )
    notes = [""] * len(source) if notes is None else notes
    if not len(source) == len(predicted) == len(instructions) == len(notes):
        raise ValueError(
            f"{len(source)} pictures, {len(predicted)} regions, {len(instructions)} instructions and {len(notes)} "
            "notes: pass one of each an edit."
        )
    panels = (source, region_overlay(source, predicted), result, target, difference_map(result, target))
    pillow, draw_module = _pillow()
    width, height = _GAP + (_SIDE + _GAP) * len(panels), _GAP + _LINE + (_LINE + _SIDE + _GAP) * len(source)
    scale = _SIDE / max(source.shape[1:3])
    tile_size = (round(scale * source.shape[2]), round(scale * source.shape[1]))
    sheet = pillow.new("RGB", (width, height), _PAPER)
    draw = draw_module.Draw(sheet)
    for column, name in enumerate(_COLUMNS):
        draw.text((_GAP + column * (_SIDE + _GAP), _GAP), name, fill=_FAINT)
    for row in range(len(source)):
        top = _GAP + _LINE + row * (_LINE + _SIDE + _GAP)
        heading = f"{row}. {instructions[row]}" + (f"   [{notes[row]}]" if notes[row] else "")
        draw.text((_GAP, top), heading.encode("latin-1", "replace").decode("latin-1"), fill=_INK)
        for column, panel in enumerate(panels):
            tile = pillow.fromarray(panel[row]).resize(tile_size, pillow.Resampling.NEAREST)
            sheet.paste(tile, (_GAP + column * (_SIDE + _GAP), top + _LINE))
    with replacing(path) as draft:
        sheet.save(draft, format="PNG", optimize=True)
    return Path(path)


def revision_frames(states: Grid, book: PatchCodebook, source: Image | None = None) -> Image:
    """
    (S, H, W, 3) pictures of the canvas (S, rows, columns) step by step; masked tokens are a grey chequer.

    With `source` (H, W, 3) its own pixels stand where the token is the source's, as in what an editor returns.
    Steps at the end that change nothing are left out.
    """
    moved = np.flatnonzero((states[1:] != states[:-1]).any((1, 2)))
    states = states[: (moved[-1] + 2 if len(moved) else 1)]
    masked = states < 0
    pictures = book.decode(np.where(masked, 0, states))
    if source is not None:
        pictures = with_kept_pixels(pictures, source[None], states == book.encode(source[None]))
    rows, columns = np.indices(pictures.shape[1:3])
    chequer = _MASKED[(rows // 2 + columns // 2) % 2]
    return np.where(_enlarge(masked, pictures.shape[1:3])[..., None], chequer, pictures)


def write_revision_gif(
    path: str | os.PathLike[str],
    states: Grid,
    book: PatchCodebook,
    source: Image | None = None,
    scale: int = 4,
    milliseconds: int = 400,
) -> Path:
    """
    Write the revision of one edit as an animated GIF that repeats; the last frame stays longer.

    Args:
        path: where it goes.
        states (`(S, rows, columns)` int64): the canvas step by step, -1 where masked; `run.states[:, i]`.
        book ([`PatchCodebook`]): decodes it.
        source (`(H, W, 3)` uint8, *optional*): the picture, of which an editor keeps the pixels where it keeps a
            token. With it the last frame is the edit's result; without it every token is shown as decoded.
        scale (`int`, defaults to 4): enlargement.
        milliseconds (`int`, defaults to 400): of a frame.

    Raises:
        ValueError: for states of another shape.
    """
    if states.ndim != 3 or not len(states):
        raise ValueError(f"`states` has shape {states.shape}: pass (steps, rows, columns), one edit's states.")
    pillow, _ = _pillow()
    frames = []
    for picture in revision_frames(states, book, source):
        frame = pillow.fromarray(picture)
        frames.append(frame.resize((frame.width * scale, frame.height * scale), pillow.Resampling.NEAREST))
    durations = [milliseconds] * (len(frames) - 1) + [4 * milliseconds]
    with replacing(path) as draft:
        frames[0].save(draft, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return Path(path)


def _enlarge(region: npt.NDArray[np.bool_], shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    height, width = shape[0] // region.shape[1], shape[1] // region.shape[2]
    return region.repeat(height, axis=1).repeat(width, axis=2)


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image as pillow
        from PIL import ImageDraw as draw
    except ImportError as error:
        raise ImportError('sheets are drawn with pillow; run `pip install "hf-rm[image]"`.') from error
    return pillow, draw
