# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
One sequence an edit, over one vocabulary: the instruction's words, the source picture, the canvas.

    [ words, padded ] [ source tokens, row by row ] [ canvas tokens, row by row ]

Only the canvas is editable. For Reflective Masking it begins as the source's own tokens; a model that regenerates
pictures begins from masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .codebook import Grid, PatchCodebook
from .pairs import MAX_WORDS, EditPairs
from .protocols import ImageTokens, Layout
from .scenes import EditExamples, instruction_words, known_words

Ids = npt.NDArray[np.int64]

MASK_ID, PAD_ID, UNCONDITIONAL_ID, UNKNOWN_ID = range(4)
SPECIAL = ("<mask>", "<pad>", "<unconditional>", "<unknown>")


@dataclass(frozen=True)
class EditLayout:
    """
    Where everything stands.

    Args:
        words (sequence of `str`): the known words; a word's id is its place here plus 4.
        codes (`int`): size of the image codebook; code c has the id `first_code + c`.
        rows, columns (`int`): of the token grid.
        text_length (`int`, defaults to 12): slots for words.

    Raises:
        ValueError: for a vocabulary with repeated words or a layout without room.

    Example:
        >>> layout = EditLayout(["cat", "remove", "the"], codes=8, rows=2, columns=2, text_length=4)
        >>> grid = np.arange(4).reshape(1, 2, 2)
        >>> layout.sequences(["Remove the cat"], grid, grid)
        array([[ 5,  6,  4,  1,  7,  8,  9, 10,  7,  8,  9, 10]])
        >>> layout.editable_mask.tolist() == [False] * 8 + [True] * 4
        True
    """

    words: Sequence[str]
    codes: int
    rows: int
    columns: int
    text_length: int = 12

    mask_token_id = MASK_ID
    pad_token_id = PAD_ID

    def __post_init__(self) -> None:
        if len(set(self.words)) != len(self.words):
            raise ValueError("`words` holds a word twice: pass each once.")
        if min(self.codes - 1, self.rows, self.columns, self.text_length) < 1:
            raise ValueError(
                f"`codes`, `rows`, `columns`, `text_length` are {self.codes}, {self.rows}, {self.columns}, "
                f"{self.text_length}: pass 2 codes and 1 of the others at least."
            )

    @property
    def cells(self) -> int:
        """Tokens a picture."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """Of a sequence."""
        return self.text_length + 2 * self.cells

    @property
    def source(self) -> slice:
        """Positions of the source picture."""
        return slice(self.text_length, self.text_length + self.cells)

    @property
    def canvas(self) -> slice:
        """Positions of the canvas."""
        return slice(self.text_length + self.cells, self.length)

    @property
    def first_code(self) -> int:
        """Id of image code 0."""
        return len(SPECIAL) + len(self.words)

    @property
    def vocab_size(self) -> int:
        """Ids in all."""
        return self.first_code + self.codes

    @property
    def suppressed_token_ids(self) -> list[int]:
        """What a reveal must never write onto the canvas: everything but image codes and the mask."""
        return [token for token in range(self.first_code) if token != MASK_ID]

    @property
    def editable_mask(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the canvas."""
        return np.arange(self.length) >= self.canvas.start

    @property
    def position_groups(self) -> list[list[int]]:
        """
        Two-dimensional positions, as `RMConfig` takes them: part (each word slot, source, canvas), row, column, cell.

        A place has the same row, column and cell in the source and on the canvas; words share row and column 0.
        """
        slots, cells = list(range(self.text_length)), range(self.cells)
        part = [*slots, *[self.text_length] * self.cells, *[self.text_length + 1] * self.cells]
        row = [0] * self.text_length + [1 + cell // self.columns for cell in cells] * 2
        column = [0] * self.text_length + [1 + cell % self.columns for cell in cells] * 2
        cell = slots + [self.text_length + cell for cell in cells] * 2
        return [part, row, column, cell]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: len(SPECIAL) + place for place, word in enumerate(self.words)}

    def encode_text(self, instruction: str) -> list[int]:
        """
        The ids of an instruction's words, padded; words that are not known become one id of their own.

        Raises:
            ValueError: for an instruction that is no text, is empty or has too many words.
        """
        if not isinstance(instruction, str):
            raise ValueError(f"`instruction` is {instruction!r}: pass a text.")
        words = instruction_words(instruction)
        if not 0 < len(words) <= self.text_length:
            raise ValueError(
                f"`instruction` {instruction!r} has {len(words)} words: pass 1 to {self.text_length}, or build a "
                "layout with a longer text."
            )
        ids = [self._ids.get(word, UNKNOWN_ID) for word in words]
        return ids + [PAD_ID] * (self.text_length - len(ids))

    @property
    def unconditional_text(self) -> list[int]:
        """What stands in the word slots when the instruction is dropped."""
        return [UNCONDITIONAL_ID] + [PAD_ID] * (self.text_length - 1)

    def attention_mask(self, ids: Tensor) -> None:
        """None: the padding of the words is read like a word."""
        return None

    def without_text(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Ids (B, N), or ids of runs (B, N, S), with the unconditional prefix in the word slots; the mask as it is."""
        ids = ids.clone()
        prefix = torch.tensor(self.unconditional_text, device=ids.device)
        ids[:, : self.text_length] = prefix.reshape(-1, *[1] * (ids.dim() - 2))
        return ids, attention_mask

    def without_source(self, ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Ids (B, N), or ids of runs (B, N, S), with masks in place of the source's tokens; the mask as it is."""
        ids = ids.clone()
        ids[:, self.source] = MASK_ID
        return ids, attention_mask

    def sequences(self, instructions: Sequence[str], source: Grid, canvas: Grid | None = None) -> Ids:
        """
        (B, N) ids.

        Args:
            instructions (sequence of B `str`): the requests.
            source (`(B, rows, columns)` int64): the source's codes.
            canvas (`(B, rows, columns)` int64, *optional*): the canvas's codes; by default the source's, a draft.

        Raises:
            ValueError: for grids of another shape or codes that do not exist.
        """
        canvas = source if canvas is None else canvas
        for name, grid in (("source", source), ("canvas", canvas)):
            if grid.shape != (len(instructions), self.rows, self.columns):
                raise ValueError(
                    f"`{name}` has shape {grid.shape}: pass {(len(instructions), self.rows, self.columns)}, one grid "
                    "an instruction."
                )
            if grid.size and not 0 <= grid.min() <= grid.max() < self.codes:
                raise ValueError(
                    f"`{name}` holds codes {grid.min()} to {grid.max()}: the codebook has 0 to {self.codes - 1}."
                )
        text = np.array([self.encode_text(instruction) for instruction in instructions], dtype=np.int64)
        flat = [grid.reshape(len(grid), -1) + self.first_code for grid in (source, canvas)]
        return np.concatenate((text.reshape(-1, self.text_length), *flat), axis=1)

    def grid(self, sequences: Ids, part: str = "canvas") -> Grid:
        """
        The codes of the canvas, or of the source, (B, rows, columns); a mask becomes -1.

        Raises:
            ValueError: for sequences of another length, or ids there that are no image codes.
        """
        if sequences.ndim != 2 or sequences.shape[1] != self.length:
            raise ValueError(f"`sequences` has shape {sequences.shape}: pass (B, {self.length}).")
        ids = sequences[:, getattr(self, part)]
        wrong = (ids != MASK_ID) & ((ids < self.first_code) | (ids >= self.vocab_size))
        if wrong.any():
            raise ValueError(
                f"`sequences` has the id {ids[wrong][0]} in its {part}: image codes are {self.first_code} to "
                f"{self.vocab_size - 1}. Was it made with another layout?"
            )
        return np.where(ids == MASK_ID, -1, ids - self.first_code).reshape(-1, self.rows, self.columns)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """
        The vocabulary as a tokenizer of transformers: words, and `<0>` to `<K - 1>` for the image codes.

        Example:
            >>> layout = EditLayout(["cat", "remove", "the"], codes=8, rows=2, columns=2)
            >>> layout.tokenizer()("remove the cat <3>")["input_ids"]
            [5, 6, 4, 10]
        """
        names = [*SPECIAL, *self.words, *(f"<{code}>" for code in range(self.codes))]
        tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=SPECIAL[3]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            mask_token=SPECIAL[0],
            pad_token=SPECIAL[1],
            unk_token=SPECIAL[3],
            additional_special_tokens=[SPECIAL[2]],
            model_max_length=self.length,
            clean_up_tokenization_spaces=False,
        )

    @classmethod
    def from_pretrained(cls, tokenizer: Any, config: Any) -> EditLayout:
        """
        The layout of a saved model, from its [`tokenizer`] and the position groups of its config.

        Raises:
            ValueError: for a tokenizer or a config of another kind of model.
        """
        vocabulary = tokenizer.get_vocab()
        names = sorted(vocabulary, key=vocabulary.get)
        groups = getattr(config, "position_groups", None)
        if tuple(names[: len(SPECIAL)]) != SPECIAL or "<0>" not in vocabulary or not groups or len(groups) != 4:
            raise ValueError("`tokenizer` and `config` are not those of an image-editing model of this package.")
        first = vocabulary["<0>"]
        rows, columns = max(groups[1]), max(groups[2])
        text_length = len(groups[0]) - 2 * rows * columns
        layout = cls(names[len(SPECIAL) : first], len(names) - first, rows, columns, text_length)
        if layout.position_groups != [list(group) for group in groups]:
            raise ValueError("`config` has other position groups than this layout: it belongs to another model.")
        return layout


def edit_layout(book: PatchCodebook, size: int = 64, text_length: int = 12) -> EditLayout:
    """
    The layout of composed edits of `size` x `size` pixels with the words that their training split knows.

    Raises:
        ValueError: for a size that the codebook's patches do not fill.
    """
    if size % book.patch:
        raise ValueError(f"`size` is {size}: pass a multiple of the codebook's patch of {book.patch} pixels.")
    side = size // book.patch
    return EditLayout(known_words(), len(book), side, side, text_length)


def pairs_layout(book: PatchCodebook, pairs: EditPairs, max_words: int = 4096) -> EditLayout:
    """
    The layout of users' pairs, with the words of their instructions: the most frequent ones, where they are many.

    Args:
        book ([`PatchCodebook`]): of the pictures.
        pairs ([`EditPairs`]): for training.
        max_words (`int`, defaults to 4096): the others become one id, "unknown".
    """
    counts = Counter(word for instruction in pairs.instructions for word in instruction_words(instruction))
    for word in [word for word in counts if word.startswith("<")]:
        del counts[word]  # it could be the name of a code, or of the mask, in the tokenizer
    words = sorted(word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:max_words])
    side = pairs.source.shape[1] // book.patch
    return EditLayout(words, len(book), side, side, MAX_WORDS)


class EditRows:
    """
    Edits as rows for the trainers: `input_ids` ends with the *target's* tokens, `editable_mask` is the canvas.

    Example:
        >>> from hf_rm.tasks.image_editing import generate_edits, load_codebook
        >>> book = load_codebook()
        >>> rows = EditRows.from_examples(generate_edits(4), book, edit_layout(book))
        >>> len(rows), rows[0]["input_ids"].shape
        (4, (524,))
    """

    def __init__(self, sequences: Ids, layout: Layout, first: int = 0) -> None:
        self.sequences = sequences.astype(np.int16 if layout.vocab_size < 2**15 else np.int32)
        self.layout = layout
        self.first = first

    @classmethod
    def from_examples(
        cls, examples: EditExamples | EditPairs, book: ImageTokens, layout: Layout, first: int = 0
    ) -> Any:
        """Encode pictures and words; `first` is the number of the first row, its key in every draw."""
        source, target = book.encode(examples.source), book.encode(examples.target)
        return cls(layout.sequences(examples.instructions, source, target), layout, first)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.sequences[index].astype(np.int64)
        return {"input_ids": ids, "editable_mask": self.layout.editable_mask, "idx": self.first + index}
