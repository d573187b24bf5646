# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Lumina-DiMOO's edits in pictures of several sizes: every pair is cut to the size of the crop table that keeps most of
it, every size has a layout, and all layouts have one length (padding in front of the text), so that any rows may share
a batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .codebook import Grid
from .collator import EditCollator
from .dimoo import DimooLayout, choose_crop, crop_sizes, shared_cut
from .layout import EditRows
from .pairs import Cut, EditPair, EditPairs
from .protocols import ImageTokens

_BATCH = 8  # pictures of a size that are encoded together


def bucket_cut(side: int = 512) -> Cut:
    """
    Pictures cut alike to the size of [`crop_sizes`] (about `side` x `side` pixels) that keeps most of them.

    Raises:
        ValueError: for a side that is no multiple of 32.

    Example:
        >>> from PIL import Image
        >>> [picture.size for picture in bucket_cut()([Image.new("RGB", (640, 427))], [])]
        [(608, 416)]
    """
    sizes = crop_sizes(side)

    def cut(pictures: Sequence[Any], masks: Sequence[Any]) -> list[Any]:
        width, height = pictures[0].size
        return shared_cut(pictures, choose_crop(width, height, sizes), masks)

    return cut


def by_size(pairs: Iterable[EditPair]) -> list[EditPairs]:
    """Pairs of one size side by side, the commonest size first."""
    sizes: dict[tuple[int, ...], list[EditPair]] = {}
    for pair in pairs:
        sizes.setdefault(pair.source.shape, []).append(pair)
    return [EditPairs.of(of_size) for of_size in sorted(sizes.values(), key=len, reverse=True)]


def equal_layouts(
    tokenizer: Any, instructions: Sequence[str], grids: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], DimooLayout]:
    """A layout for every grid (rows, columns), all of the length of the longest."""
    layouts = {grid: DimooLayout.of(tokenizer, instructions, *grid) for grid in grids}
    longest = max(layout.length for layout in layouts.values())
    return {
        grid: replace(layout, text_length=layout.text_length + longest - layout.length)
        for grid, layout in layouts.items()
    }


class SizedRows:
    """
    Rows of several layouts one after another, with one numbering.

    Args:
        pairs (iterable of [`EditPair`]): read one at a time; what is kept of each are its tokens.
        tokens ([`VQTokens`]): encodes them.
        tokenizer: the checkpoint's.
    """

    def __init__(self, pairs: Iterable[EditPair], tokens: ImageTokens, tokenizer: Any) -> None:
        encoded = _encoded(pairs, tokens)
        requests = {grid: [text for text, _, _ in edits] for grid, edits in encoded.items()}
        every = [text for texts in requests.values() for text in texts]
        self.layouts = equal_layouts(tokenizer, every, encoded)
        starts = [0, *accumulate(len(texts) for texts in requests.values())]
        self._starts = starts[:-1]
        self._length = starts[-1]
        self._parts = []
        for first, (grid, edits) in zip(starts, encoded.items(), strict=False):
            source, target = (np.stack([edit[part] for edit in edits]).astype(np.int64) for part in (1, 2))
            layout = self.layouts[grid]
            self._parts.append(EditRows(layout.sequences(requests[grid], source, target), layout, first))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = bisect_right(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]


def _encoded(pairs: Iterable[EditPair], tokens: ImageTokens) -> dict[tuple[int, int], list[tuple[str, Grid, Grid]]]:
    """Request, source and target of every edit, by their grid."""
    encoded: dict[tuple[int, int], list[tuple[str, Grid, Grid]]] = {}
    waiting: dict[tuple[int, ...], list[EditPair]] = {}

    def encode(batch: list[EditPair]) -> None:
        source, target = (tokens.encode(np.stack(of)).astype(np.int16) for of in zip(*((p[0], p[1]) for p in batch)))
        edits = encoded.setdefault(source.shape[1:], [])
        edits += [(pair.instruction, *grids) for pair, *grids in zip(batch, source, target, strict=True)]

    for pair in pairs:
        batch = waiting.setdefault(pair.source.shape, [])
        batch.append(pair)
        if len(batch) == _BATCH:
            encode(waiting.pop(pair.source.shape))
    for batch in waiting.values():
        encode(batch)
    return encoded


class SizedCollator:
    """
    The collators of several layouts of one length as one: a row goes to the one whose canvas is where its own is.

    Args:
        collators (sequence of [`EditCollator`]): one a layout.

    Raises:
        ValueError: for layouts of unequal lengths, and, in a call, for a row of none of them.
    """

    def __init__(self, collators: Sequence[EditCollator]) -> None:
        lengths = {collator.layout.length for collator in collators}
        if len(lengths) != 1:
            raise ValueError(f"the layouts have the lengths {sorted(lengths)}: make them with `equal_layouts`.")
        self.collators = {collator.layout.editable_mask.tobytes(): collator for collator in collators}

    def set_epoch(self, epoch: int) -> None:
        """As [`EditCollator`]."""
        for collator in self.collators.values():
            collator.set_epoch(epoch)

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        groups = self._groups([np.asarray(feature["editable_mask"]) for feature in features])
        parts = [collator([features[i] for i in rows]) for collator, rows in groups]
        back = torch.tensor([row for _, rows in groups for row in rows]).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def unedited(self, targets: Tensor, editable: Tensor) -> Tensor:
        """As [`EditCollator.unedited`], every row by its own layout."""
        found = torch.zeros_like(editable)
        for collator, rows in self._groups(list(editable.cpu().numpy())):
            found[rows] = collator.unedited(targets[rows], editable[rows])
        return found

    def _groups(self, editable: Sequence[np.ndarray]) -> list[tuple[EditCollator, list[int]]]:
        rows: dict[bytes, list[int]] = {}
        for row, mask in enumerate(editable):
            rows.setdefault(np.ascontiguousarray(mask).tobytes(), []).append(row)
        unknown = rows.keys() - self.collators.keys()
        if unknown:
            raise ValueError("a row is of none of the layouts: its `editable_mask` is another one's canvas.")
        return [(self.collators[mask], of) for mask, of in rows.items()]
