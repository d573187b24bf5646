# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The Sudoku network (a structured 0.8 M-parameter mask diffusion model) and its tokenizer."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, RobertaPreLayerNormConfig

from ...configuration_rm import RMConfig
from ...modeling_rm import RMForMaskedDiffusion
from .boards import CELLS, MASK_ID, VOCAB_SIZE

VARIANTS: dict[str, dict[str, Any]] = {
    "no-hr": {"history": False},
    "hr": {"history": True, "history_decay": 1.0, "history_rotation": False},
    "hr-decay": {"history": True, "history_decay": 0.9, "history_rotation": False},
    "hr-decay-her": {"history": True, "history_decay": 0.9, "history_rotation": True},
}
"""The four rows of the paper's Table 2, as arguments of [`RMConfig`]."""

_ROWS = [cell // 9 for cell in range(CELLS)]
_COLUMNS = [cell % 9 for cell in range(CELLS)]
_BOXES = [cell // 27 * 3 + cell % 9 // 3 for cell in range(CELLS)]


def sudoku_config(
    variant: str = "hr-decay-her",
    hidden_size: int = 128,
    intermediate_size: int = 240,
    num_layers: int = 6,
    num_heads: int = 4,
    structured: bool = True,
    attn_implementation: str = "eager",
) -> RMConfig:
    """
    Configuration of the Sudoku model: a pre-norm encoder of transformers, ReLU, no dropout.

    Args:
        variant (`str`): a key of `VARIANTS`, the history that the model reads.
        hidden_size, intermediate_size, num_layers, num_heads (`int`): of the encoder.
        structured (`bool`, defaults to `True`): positions are the sum of row, column and box embeddings, and three of
            every four heads see only the own row, column or box. `False`: learned positions, full attention.
        attn_implementation (`str`): on a CPU `"eager"` trains twice as fast as `"sdpa"` at this size.

    Raises:
        ValueError: for an unknown variant.

    Example:
        >>> sudoku_config("hr").history_rotation
        False
    """
    if variant not in VARIANTS:
        raise ValueError(f"`variant` is {variant!r}: pass one of {', '.join(VARIANTS)}.")
    encoder = RobertaPreLayerNormConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        hidden_act="relu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # Position groups say where a cell is; the encoder's own table shrinks to one row.
        max_position_embeddings=1,
        type_vocab_size=1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        architectures=["RobertaPreLayerNormForMaskedLM"],
    )
    return RMConfig(
        text_config=encoder,
        mask_token_id=MASK_ID,
        history_norm="rms",
        position_groups=[_ROWS, _COLUMNS, _BOXES] if structured else [list(range(CELLS))],
        attention_groups=[None if head % 4 == 0 else head % 4 - 1 for head in range(num_heads)]
        if structured
        else None,
        backbone_positions=False,
        attn_implementation=attn_implementation,
        **VARIANTS[variant],
    )


def build_sudoku_model(variant: str = "hr-decay-her", **kwargs: Any) -> RMForMaskedDiffusion:
    """
    A freshly initialised Sudoku model; arguments as [`sudoku_config`].

    Its generation config revises whole drafts (`editable="all"`) and stops after three steps without a change: with
    history the model's input still changes while the board does not, and some boards move again.

    Example:
        >>> build_sudoku_model().num_parameters() <= 814_999
        True
    """
    model = RMForMaskedDiffusion(sudoku_config(variant, **kwargs))
    model.generation_config = model.generation_config.updated(editable="all", max_steps=256, patience=3)
    return model


def build_sudoku_tokenizer() -> PreTrainedTokenizerFast:
    """
    A tokenizer that turns a board of 81 characters into 81 ids and back; `.` is the mask. Any other character is an
    error: there is no unknown token, which would have to be a digit or the mask.

    Example:
        >>> tokenizer = build_sudoku_tokenizer()
        >>> tokenizer("53.")["input_ids"], tokenizer.decode([5, 3, 0])
        ([5, 3, 0], '53.')
    """
    vocabulary = {".": MASK_ID, **{str(digit): digit for digit in range(1, VOCAB_SIZE)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, mask_token=".", model_max_length=CELLS, clean_up_tokenization_spaces=False
    )
