# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Users' edits from files: one JSON object a line with the names of the pictures and the request.

    {"source": "a.png", "target": "b.png", "instruction": "remove the cat", "mask": "m.png"}

ImgEdit's own names do as well (`input_images` and `output_images`, lists of one name, and `prompt`); its multi-turn
rows, `{"data": [...]}`, are as many pairs as they have turns.

Names are relative to the file's folder and stay inside it. `mask` (a picture, white where the edit is) or `box`
(`[left, top, right, bottom]` in pixels) are optional: without them the region is where the two pictures differ. Pairs
that cannot be used are left out, and counted by reason: one bad file does not end a run.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.utils import logging

from .codebook import Image
from .metrics import CHANGED
from .scenes import instruction_words

_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1")
_KEYS = ("source", "target", "instruction")
_OF_IMGEDIT = ("input_images", "output_images", "prompt")
MAX_WORDS = 24
"""Of an instruction; longer ones are left out."""


class _Unusable(Exception):
    """A pair that is left out, with the reason that is counted."""


@dataclass(frozen=True)
class EditPairs:
    """
    Attributes:
        source, target (`(B, size, size, 3)` uint8): the pictures, cut by one shared crop each pair.
        mask (`(B, size, size)` bool): the region of the edit.
        instructions (list of `str`): the requests.
        lines (list of `int`): the line of the file that each came from, from 1.
        left_out (`Counter`): how many pairs were left out for which reason.
    """

    source: Image
    target: Image
    mask: npt.NDArray[np.bool_]
    instructions: list[str]
    lines: list[int]
    left_out: Counter[str]

    def __len__(self) -> int:
        return len(self.instructions)


def load_edit_pairs(path: str | os.PathLike[str], size: int = 64, max_pixels: int = 40_000_000) -> EditPairs:
    """
    Read pairs of pictures: both are cut to the same centred square and resized to `size`.

    Args:
        path: the file of JSON lines.
        size (`int`, defaults to 64): side of the pictures.
        max_pixels (`int`, defaults to 40 million): larger pictures are not decoded (decompression bombs).

    Raises:
        OSError: when the file itself cannot be read.
        ValueError: for a size below 8, or when no pair is left.
    """
    if size < 8:
        raise ValueError(f"`size` is {size}: pass 8 or more pixels.")
    folder = Path(path).resolve().parent
    kept: list[tuple[Image, Image, npt.NDArray[np.bool_], str, int]] = []
    left_out: Counter[str] = Counter()
    for number, line in _lines(path):
        for row in _rows(line):
            try:
                kept.append((*_read_pair(row, folder, size, max_pixels), number))
            except _Unusable as reason:
                left_out[str(reason)] += 1
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    if not kept:
        raise ValueError(f"{path} has no pair that can be used ({reasons or 'it is empty'}).")
    if left_out:
        logging.get_logger(__name__).warning(f"{path}: {left_out.total()} pairs left out: {reasons}")
    source, target, mask, instructions, lines = zip(*kept, strict=True)
    return EditPairs(np.stack(source), np.stack(target), np.stack(mask), list(instructions), list(lines), left_out)


def shared_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """
    The largest centred square, (left, top, right, bottom); one for both pictures of a pair.

    Example:
        >>> shared_crop(640, 427)
        (106, 0, 533, 427)
    """
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _rows(line: str) -> list[Any]:
    """What a line holds: one pair, or the turns of a multi-turn row."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return [None]
    turns = row.get("data") if isinstance(row, dict) else None
    return turns if isinstance(turns, list) and turns else [row]


def _read_pair(read: Any, folder: Path, size: int, max_pixels: int) -> tuple[Image, Image, npt.NDArray[np.bool_], str]:
    row = _record(read)
    source, target = (_open(folder, row[name], max_pixels) for name in ("source", "target"))
    if source.size != target.size:
        raise _Unusable("source and target of different sizes")
    if min(source.size) < 8:
        raise _Unusable("picture under 8 pixels")
    region = _region(row, folder, source.size, max_pixels)
    crop = shared_crop(*source.size)
    resampling = _pillow().Resampling
    before, after = (
        np.asarray(picture.resize((size, size), resampling.BOX, box=crop)) for picture in (source, target)
    )
    if region is None:
        mask = np.abs(before.astype(np.int16) - after).max(-1) > CHANGED
    else:
        mask = np.asarray(region.resize((size, size), resampling.BOX, box=crop)) > 0
    if not mask.any():
        raise _Unusable("nothing edited inside the crop")
    return before, after, mask, row["instruction"]


def _record(row: Any) -> dict[str, Any]:
    if row is None:
        raise _Unusable("line is no JSON")
    if isinstance(row, dict) and "prompt" in row:
        row = {**row, **{ours: _only(row.get(theirs)) for ours, theirs in zip(_KEYS, _OF_IMGEDIT, strict=True)}}
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) and row[key].strip() for key in _KEYS):
        raise _Unusable("no source, target or instruction")
    if not 0 < len(instruction_words(row["instruction"])) <= MAX_WORDS:
        raise _Unusable(f"instruction without words, or over {MAX_WORDS}")
    return row


def _only(names: Any) -> Any:
    """The one name of a list; None for an edit of several pictures."""
    if isinstance(names, list):
        return names[0] if len(names) == 1 else None
    return names


def _region(row: dict[str, Any], folder: Path, size: tuple[int, int], max_pixels: int) -> Any:
    """The mask or box as a picture of mode L, or None."""
    if row.get("mask") is not None:
        mask = _open(folder, row["mask"], max_pixels, mode="L")
        if mask.size != size:
            raise _Unusable("mask of another size than its picture")
        return mask.point(lambda value: 255 if value > 127 else 0)
    if row.get("box") is None:
        return None
    left, top, right, bottom = _box(row["box"])
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise _Unusable("box outside its picture")
    region = _pillow().new("L", size)
    region.paste(255, (left, top, right, bottom))
    return region


def _box(box: Any) -> Sequence[int]:
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) is int for value in box):
        raise _Unusable("box is not four whole numbers")
    return box


def _open(folder: Path, name: Any, max_pixels: int, mode: str = "RGB") -> Any:
    """A picture, upright; whatever is wrong with the file becomes the reason to leave the pair out."""
    if not isinstance(name, str) or "\0" in name or not (folder / name).resolve().is_relative_to(folder):
        raise _Unusable("file name outside the folder")
    pillow = _pillow()
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the size, which is checked here, and of odd metadata
            with pillow.open(folder / name) as picture:
                if picture.width * picture.height > max_pixels:
                    raise _Unusable("picture too large")
                if picture.mode not in _MODES:
                    raise _Unusable(f"picture of mode {picture.mode}")
                upright = ImageOps.exif_transpose(picture)
                if mode == "RGB" and upright.has_transparency_data:
                    paper = pillow.new("RGBA", upright.size, "white")
                    return pillow.alpha_composite(paper, upright.convert("RGBA")).convert("RGB")
                return upright.convert(mode)
    except FileNotFoundError as error:
        raise _Unusable("file missing") from error
    except pillow.DecompressionBombError as error:
        raise _Unusable("picture too large") from error
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        raise _Unusable("file is no picture, or damaged") from error


def _pillow() -> Any:
    try:
        from PIL import Image as pillow
    except ImportError as error:
        raise ImportError('pictures are read with pillow; run `pip install "hf-rm[image]"`.') from error
    return pillow
