# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What decoding, guidance and training need of a layout and of image tokens: two kinds of each are here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from .codebook import Grid, Image


class Conditions(Protocol):
    """Sequences that have lost one of their conditions."""

    def without_text(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Sequences (B, N) and their mask, with the unconditional prefix in the instruction's place."""
        ...

    def without_source(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Sequences (B, N) and their mask, without the source: masks in its place, or hidden."""
        ...


class Layout(Conditions, Protocol):
    """Sequences of edits: [`EditLayout`] and [`DimooLayout`]."""

    @property
    def rows(self) -> int:
        """Of the token grid."""
        ...

    @property
    def columns(self) -> int:
        """Of the token grid."""
        ...

    @property
    def mask_token_id(self) -> int:
        """The mask."""
        ...

    @property
    def pad_token_id(self) -> int:
        """The padding of the text."""
        ...

    @property
    def first_code(self) -> int:
        """Id of image code 0."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids in all."""
        ...

    @property
    def source(self) -> slice:
        """Positions of the source."""
        ...

    @property
    def canvas(self) -> slice:
        """Positions of the canvas, in the source's order."""
        ...

    @property
    def length(self) -> int:
        """Of a sequence."""
        ...

    @property
    def editable_mask(self) -> Any:
        """(N,) bool: the canvas's codes."""
        ...

    @property
    def suppressed_token_ids(self) -> list[int]:
        """What a reveal must never write."""
        ...

    def encode_text(self, instruction: str) -> list[int]:
        """The ids of an instruction, padded; a ValueError for one that cannot be held."""
        ...

    def sequences(self, instructions: Sequence[str], source: Grid, canvas: Grid | None = None) -> Grid:
        """(B, N) ids."""
        ...

    def grid(self, sequences: Grid, part: str = "canvas") -> Grid:
        """Codes of the canvas or the source, -1 where masked."""
        ...

    def attention_mask(self, ids: Tensor) -> Tensor | None:
        """(B, N), 0 at padding that nobody may see; None where there is none."""
        ...


class ImageTokens(Protocol):
    """Pictures to token grids and back: [`PatchCodebook`] and [`VQTokens`]."""

    @property
    def patch(self) -> int:
        """Pixels a token, across and down."""
        ...

    def encode(self, images: Image) -> Grid:
        """(B, H, W, 3) uint8 to (B, h, w)."""
        ...

    def decode(self, grid: Grid) -> Image:
        """(B, h, w) to (B, H, W, 3) uint8."""
        ...

    def reconstruct(self, images: Image) -> Image:
        """What is left of pictures that are encoded and decoded."""
        ...
