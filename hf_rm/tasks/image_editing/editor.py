# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""A trained editor as one thing: network, layout and codebook, saved in one folder and loaded from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer

from ...hub import save_for_hub
from .codebook import Image, PatchCodebook, load_codebook
from .edit import DECODINGS, EditRun, edit_images
from .layout import EditLayout

CODEBOOK_FILE = "codebook.npz"


@dataclass(frozen=True)
class ImageEditor:
    """
    Attributes:
        model ([`RMForMaskedDiffusion`]): the network.
        layout ([`EditLayout`]): of its sequences.
        book ([`PatchCodebook`]): tokens from pictures and back.
        decoding (`str`): a key of [`~hf_rm.tasks.image_editing.edit.DECODINGS`], what it was trained for.

    Example:
        >>> from hf_rm.tasks.image_editing import generate_edits, load_codebook
        >>> from hf_rm.tasks.image_editing.layout import edit_layout
        >>> from hf_rm.tasks.image_editing.model import build_image_edit_model
        >>> book = load_codebook()
        >>> layout = edit_layout(book)
        >>> size = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}
        >>> editor = ImageEditor(build_image_edit_model(layout, **size), layout, book)
        >>> edits = generate_edits(1)
        >>> editor.edit(edits.source, edits.instructions, max_steps=1).result.shape
        (1, 64, 64, 3)
    """

    model: Any
    layout: EditLayout
    book: PatchCodebook
    decoding: str = "revise"

    def edit(self, source: Image, instructions: Sequence[str], **settings: Any) -> EditRun:
        """Edit pictures as asked; settings as [`~hf_rm.tasks.image_editing.edit.edit_images`] takes them."""
        settings = {"decoding": self.decoding, **settings}
        return edit_images(self.model, self.layout, self.book, source, instructions, **settings)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write network, settings, words and codebook, laid out as a repository of the Hub."""
        self.model.generation_config = self.model.generation_config.updated(**DECODINGS[self.decoding])
        place = save_for_hub(self.model, Path(folder), tokenizer=self.layout.tokenizer())
        self.book.save(place / CODEBOOK_FILE)
        return place

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ImageEditor:
        """
        What [`save`] wrote.

        Raises:
            OSError: for a folder without a network, words or codebook.
            ValueError: when they do not belong together.
        """
        model = AutoModel.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        layout = EditLayout.from_pretrained(tokenizer, model.config)
        book = load_codebook(Path(folder) / CODEBOOK_FILE)
        if len(book) != layout.codes:
            raise ValueError(
                f"{folder} has a codebook of {len(book)} codes and words for {layout.codes}: save it again."
            )
        if model.config.vocab_size != layout.vocab_size:
            raise ValueError(
                f"{folder} has a network of {model.config.vocab_size} ids, and words and codes for "
                f"{layout.vocab_size}: they are not of one editor. Save it again."
            )
        regenerates = model.generation_config.revise is None
        return cls(model.eval(), layout, book, "regenerate" if regenerates else "revise")
