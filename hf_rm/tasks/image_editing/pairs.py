# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Users' edits from files: one JSON object a line with the names of the pictures and the request, or the same in Parquet.

    {"source": "a.png", "target": "b.png", "instruction": "remove the cat", "mask": "m.png"}

ImgEdit's own names do as well (`input_images` and `output_images`, lists of one name, and `prompt`); its multi-turn
rows, `{"data": [...]}`, are as many pairs as they have turns.

Names are relative to the file's folder and stay inside it; in Parquet a picture may also lie in the table, as datasets
writes them (`{"bytes": ..., "path": ...}`). `mask` (a picture, white, over 127 of 255, where the edit is, on black or
on nothing) or `box` (`[left, top, right, bottom]` in pixels) are optional: without them the region is where the two
pictures differ. So is `description`, what the target shows, for [`vqa_score`]. Pairs that cannot be used are left out,
and counted by reason: one bad file does not end a run.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers.utils import logging

from .codebook import Image
from .metrics import CHANGED
from .scenes import instruction_words

_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1")
_KEYS = ("source", "target", "instruction")
_OF_IMGEDIT = ("input_images", "output_images", "prompt")
_WHITE = 127  # of 255: above it a mask is white
_PARQUET_ROWS = 64  # read at a time: tables may hold whole pictures
MAX_WORDS = 24
"""Of an instruction, where words have slots of their own; longer ones are left out."""
Cut = Callable[[Sequence[Any], Sequence[Any]], list[Any]]
"""Pictures and masks of one size (pillow) to what is kept of them, all cut alike."""


class _Unusable(Exception):
    """A pair that is left out, with the reason that is counted."""


class EditPair(NamedTuple):
    """One edit: pictures (H, W, 3) uint8, region (H, W) bool, request, what the target shows, line of the file."""

    source: Image
    target: Image
    mask: npt.NDArray[np.bool_]
    instruction: str
    description: str
    line: int


@dataclass(frozen=True)
class EditPairs:
    """
    Attributes:
        source, target (`(B, H, W, 3)` uint8): the pictures, cut by one shared crop each pair.
        mask (`(B, H, W)` bool): the region of the edit.
        instructions (list of `str`): the requests.
        descriptions (list of `str`): what the targets show; the requests, where nobody said.
        lines (list of `int`): the line of the file that each came from, from 1.
        left_out (`Counter`): how many pairs were left out for which reason.
    """

    source: Image
    target: Image
    mask: npt.NDArray[np.bool_]
    instructions: list[str]
    descriptions: list[str]
    lines: list[int]
    left_out: Counter[str]

    def __len__(self) -> int:
        return len(self.instructions)

    @classmethod
    def of(cls, pairs: Sequence[EditPair], left_out: Counter[str] | None = None) -> EditPairs:
        """Pairs of one size side by side."""
        return cls(
            source=np.stack([pair.source for pair in pairs]),
            target=np.stack([pair.target for pair in pairs]),
            mask=np.stack([pair.mask for pair in pairs]),
            instructions=[pair.instruction for pair in pairs],
            descriptions=[pair.description for pair in pairs],
            lines=[pair.line for pair in pairs],
            left_out=Counter() if left_out is None else left_out,
        )


class EditPairReader:
    """
    The pairs of a file one after another, each read when it is reached; and again from the start.

    Args:
        path: JSON lines, or `.parquet`.
        cut (`Cut`): makes pictures and mask as large as they are wanted.
        max_pixels (`int`, defaults to 40 million): larger pictures are not decoded (decompression bombs).
        max_words (`int`, *optional*): longer instructions are left out.

    Attributes:
        left_out (`Counter`): how many pairs of the last pass were left out for which reason.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        cut: Cut,
        max_pixels: int = 40_000_000,
        max_words: int | None = None,
    ) -> None:
        self.path, self.cut, self.max_pixels, self.max_words = Path(path), cut, max_pixels, max_words
        self.folder = self.path.resolve().parent
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[EditPair]:
        """
        Raises an OSError when the file itself cannot be read, and at its end a ValueError when no pair could be used.
        """
        self.left_out = Counter()
        found = 0
        for number, row in _numbered_rows(self.path):
            try:
                pair = self._read(row, number)
            except _Unusable as reason:
                self.left_out[str(reason)] += 1
                continue
            found += 1
            yield pair
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common())
        if not found:
            raise ValueError(f"{self.path} has no pair that can be used ({reasons or 'it is empty'}).")
        if self.left_out:
            logging.get_logger(__name__).warning(f"{self.path}: {self.left_out.total()} pairs left out: {reasons}")

    def _read(self, read: Any, number: int) -> EditPair:
        row = _record(read, self.max_words)
        source, target = (_open(self.folder, row[name], self.max_pixels) for name in ("source", "target"))
        if source.size != target.size:
            raise _Unusable("source and target of different sizes")
        if min(source.size) < 8:
            raise _Unusable("picture under 8 pixels")
        region = _region(row, self.folder, source.size, self.max_pixels)
        pictures = self.cut((source, target), () if region is None else (region,))
        before, after, *marked = (np.asarray(picture) for picture in pictures)
        mask = marked[0] > 0 if marked else np.abs(before.astype(np.int16) - after).max(-1) > CHANGED
        if not mask.any():
            raise _Unusable("nothing edited inside the crop")
        shows = "description" if _is_text(row.get("description")) else "instruction"
        return EditPair(before, after, mask, row["instruction"], row[shows], number)


def load_edit_pairs(
    path: str | os.PathLike[str],
    size: int = 64,
    max_pixels: int = 40_000_000,
    max_words: int | None = MAX_WORDS,
) -> EditPairs:
    """
    Read all pairs of pictures: both are cut to the same centred square and resized to `size`.

    Args:
        path: the file, as for [`EditPairReader`].
        size (`int`, defaults to 64): side of the pictures.
        max_pixels (`int`, defaults to 40 million): larger pictures are not decoded (decompression bombs).
        max_words (`int`, *optional*, defaults to 24): longer instructions are left out; None takes all.

    Raises:
        OSError: when the file itself cannot be read.
        ValueError: for a size below 8, or when no pair is left.
    """
    if size < 8:
        raise ValueError(f"`size` is {size}: pass 8 or more pixels.")
    reader = EditPairReader(path, square_cut(size), max_pixels, max_words)
    return EditPairs.of(list(reader), reader.left_out)


def square_cut(size: int) -> Cut:
    """The same centred square of pictures and masks, resized to `size`; a mask is where any of it was."""

    def cut(pictures: Sequence[Any], masks: Sequence[Any]) -> list[Any]:
        crop, box = shared_crop(*pictures[0].size), _pillow().Resampling.BOX
        return [picture.resize((size, size), box, box=crop) for picture in (*pictures, *masks)]

    return cut


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


def _numbered_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """What a file holds, with the line of each: pairs, the turns of multi-turn rows among them."""
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
    for number, row in rows:
        turns = row.get("data") if isinstance(row, dict) else None
        for turn in turns if isinstance(turns, list) and turns else [row]:
            yield number, turn


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):  # no JSON; a number of more digits than Python reads
                    yield number, None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError('Parquet is read with pyarrow; run `pip install "hf-rm[image]"`.') from error
    try:
        with ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {key: value for key, value in row.items() if value is not None}
    except ArrowException as error:
        raise OSError(f"{path} is no Parquet file, or damaged: {error}") from error


def _is_text(value: Any) -> bool:
    """Words that can be written: a lone surrogate is none."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _record(row: Any, max_words: int | None) -> dict[str, Any]:
    if row is None:
        raise _Unusable("line is no JSON")
    if isinstance(row, dict) and "prompt" in row:
        row = {**row, **{ours: _only(row.get(theirs)) for ours, theirs in zip(_KEYS, _OF_IMGEDIT, strict=True)}}
    if not isinstance(row, dict) or not all(row.get(key) for key in _KEYS) or not _is_text(row["instruction"]):
        raise _Unusable("no source, target or instruction")
    count = len(instruction_words(row["instruction"]))
    if not count:
        raise _Unusable("instruction without words")
    if max_words is not None and count > max_words:
        raise _Unusable(f"instruction of more than {max_words} words")
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
        if mask.getextrema()[1] <= _WHITE:  # values of 0 and 1, or a palette of dark colours
            raise _Unusable(f"mask without white (over {_WHITE})")
        return mask.point(lambda value: 255 if value > _WHITE else 0)
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
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the size, which is checked here, and of odd metadata
            with pillow.open(_place(folder, name)) as picture:
                return _upright(picture, max_pixels, mode)
    except FileNotFoundError as error:
        raise _Unusable("file missing") from error
    except pillow.DecompressionBombError as error:
        raise _Unusable("picture too large") from error
    except _Unusable:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise _Unusable("file is no picture, or damaged") from error


def _place(folder: Path, name: Any) -> Any:
    """Where a picture is: a path inside the folder, or the bytes of a table's cell."""
    if isinstance(name, dict) and isinstance(name.get("bytes"), bytes):
        return io.BytesIO(name["bytes"])
    name = name.get("path") if isinstance(name, dict) else name
    try:
        inside = isinstance(name, str) and "\0" not in name and (folder / name).resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a lone surrogate, a loop of links
        raise _Unusable("file name that leads nowhere") from error
    if not inside:
        raise _Unusable("file name outside the folder")
    return folder / name


def _upright(picture: Any, max_pixels: int, mode: str) -> Any:
    from PIL import ImageOps

    if picture.width * picture.height > max_pixels:
        raise _Unusable("picture too large")
    if picture.mode not in _MODES:
        raise _Unusable(f"picture of mode {picture.mode}")
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        # A picture lies on white paper; where a mask is transparent nothing is marked, whatever colour is behind that.
        paper = _pillow().new("RGBA", upright.size, "white" if mode == "RGB" else "black")
        return _pillow().alpha_composite(paper, upright.convert("RGBA")).convert(mode)
    return upright.convert(mode)


def _pillow() -> Any:
    try:
        from PIL import Image as pillow
    except ImportError as error:
        raise ImportError('pictures are read with pillow; run `pip install "hf-rm[image]"`.') from error
    return pillow
