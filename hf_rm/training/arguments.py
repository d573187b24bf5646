# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the trainers: transformers' TrainingArguments and what Reflective Masking adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from transformers import TrainingArguments

from ..corruption.collator import STARTS
from ..corruption.laws import build_law
from ..processes import meet_on_cpu
from .losses import CLIPS
from .saving import refuse_pickled_states


@dataclass
class MaskedTrainingArguments(TrainingArguments):
    """What every trainer of this package adds to `TrainingArguments`."""

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments of `from_pretrained`, for a model given by name: dtype, device_map, "
            '\'{"quantization_config": {"load_in_4bit": true}}\' for QLoRA.'
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Kept off: the collator needs the rows' `idx` and `editable_mask`."}
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Train the matrices with Muon at this rate (everything else with AdamW at `learning_rate`)."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest tokenised sample; longer ones are refused by name, never cut."}
    )

    loss_chunk_rows: int | None = field(
        default=None,
        metadata={
            "help": "Positions whose scores over the vocabulary exist at a time; the backward pass repeats a chunk. "
            "None: in chunks where the batch's scores are large; 0: never."
        },
    )

    def __post_init__(self) -> None:
        if meet_on_cpu():
            self.use_cpu = True
        super().__post_init__()
        self._check_number("muon_learning_rate", 0.0, inf, "a learning rate, or None for AdamW alone")
        self._check_number("max_length", 1, inf, "a number of tokens, or None for no limit")
        self._check_number("loss_chunk_rows", 0, inf, "a number of positions, 0 for no chunks, or None")
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` is True: the collator needs `idx` and `editable_mask`; pass False."
            )
        refuse_pickled_states(self)

    def _check_number(self, name: str, low: float, high: float, what: str) -> None:
        """Raise a ValueError for an argument that is outside of [low, high]; None is what its default allows."""
        value: Any = getattr(self, name)
        if value is None and self.__dataclass_fields__[name].default is None:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise ValueError(f"`{name}` is {value!r}: pass {what}.")

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(f"`{name}` is {value!r}: pass one of {', '.join(map(repr, choices))}.")


@dataclass
class MaskedSFTArguments(MaskedTrainingArguments):
    """Arguments of [`MaskedSFTTrainer`], vanilla masked-diffusion fine-tuning."""

    min_mask_rate: float = field(
        default=1e-3, metadata={"help": "Smallest masking rate t; the loss weight 1 / t is bounded by its inverse."}
    )


@dataclass
class RMTrainingArguments(MaskedTrainingArguments):
    """Arguments of [`RMTrainer`]."""

    law: str = field(
        default="attempts",
        metadata={"help": "Trajectory law: 'paper' (Appendix C) or 'attempts' (several wrong tries)."},
    )
    horizon: int = field(default=16, metadata={"help": "T, the steps of a trajectory."})
    max_attempts: int = field(default=2, metadata={"help": "Wrong attempts a position, under the law 'attempts'."})
    min_corruption_rate: float = field(
        default=0.05,
        metadata={
            "help": "Least share of corrupted positions in a row, and one at least; with 0 a row may have none."
        },
    )
    max_corruption_rate: float = field(
        default=0.5, metadata={"help": "Greatest share of corrupted positions in a row."}
    )
    full_corruption: float = field(default=0.0, metadata={"help": "Probability that a row is corrupted everywhere."})
    mask_row_batches: int = field(
        default=0,
        metadata={
            "help": "Before the first step solve for the head's mask row on so many batches (0: leave it): one that "
            "was never asked for the mask puts it so low that the first steps do little else than raise it. Not for "
            "adapters, nor where the head is the embedding."
        },
    )
    blank_rows: float = field(
        default=0.0,
        metadata={"help": "Probability that all of a row begins masked, as in writing from nothing (text)."},
    )
    edit_weight: float = field(
        default=1.0,
        metadata={"help": "Loss weight of corrupted positions relative to the others (1: constant weights)."},
    )
    reveal_weights: str = field(
        default="uniform",
        metadata={
            "help": "'uniform' weighs all positions alike (the paper); 'inverse' divides a mask's loss by its row's "
            "share of masks, as the 1 / t of vanilla SFT: what a row nearly done has to teach does not drown (text)."
        },
    )
    reveal_context: str = field(
        default="any",
        metadata={
            "help": "'any' teaches masks in every row (the paper), 'right' only in rows that show no wrong token: "
            "what masks should become beside wrong ones teaches mistrust of the page (text)."
        },
    )
    loss_clip: str = field(
        default="reported",
        metadata={
            "help": "'reported' clips the loss at 18.42 but not its gradient, 'hard' both (the paper), 'none' neither."
        },
    )
    pool_fraction: float = field(
        default=0.0, metadata={"help": "Share of each step's rows that comes from the on-policy pool (0: no pool)."}
    )
    pool_start: str = field(
        default="draft",
        metadata={"help": "How a pool row begins: 'draft' (corrupted positions wrong), 'canvas' (masked) or 'law'."},
    )
    pool_reveal_threshold: float | None = field(
        default=None,
        metadata={
            "help": "A pool row's masks become tokens above this probability only, and the surest one always, as in "
            "decoding text. By default all do at once (Eq. 1)."
        },
    )
    pool_start_step: int = field(default=0, metadata={"help": "Optimizer step at which the pool begins."})
    pool_max_age: int = field(default=8, metadata={"help": "Optimizer steps that a row stays in the pool at most."})

    def __post_init__(self) -> None:
        super().__post_init__()
        build_law(self.law, self.horizon, self.max_attempts)  # raises for what the law cannot do
        for name in ("min_corruption_rate", "max_corruption_rate", "full_corruption", "blank_rows"):
            self._check_number(name, 0.0, 1.0, "a share from 0 to 1")
        if self.min_corruption_rate > self.max_corruption_rate:
            raise ValueError(
                f"`min_corruption_rate` is {self.min_corruption_rate} and `max_corruption_rate` "
                f"{self.max_corruption_rate}: pass a least share that is not above the greatest."
            )
        self._check_choice("loss_clip", CLIPS)
        self._check_choice("reveal_weights", ("uniform", "inverse"))
        self._check_choice("reveal_context", ("any", "right"))
        self._check_choice("pool_start", STARTS)
        self._check_number("pool_fraction", 0.0, 1 - 1e-9, "a share in [0, 1)")
        self._check_number("pool_reveal_threshold", 0.0, 1.0, "a probability, or None for Eq. 1")
        self._check_number("pool_start_step", 0, inf, "a number of steps, or 0")
        self._check_number("pool_max_age", 1, inf, "a number of steps")
        self._check_number("mask_row_batches", 0, inf, "a number of batches, or 0")
        self._check_number("edit_weight", 1e-9, inf, "a positive number")
