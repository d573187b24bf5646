# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The image-editing network: a small encoder of transformers with two-dimensional positions."""

from __future__ import annotations

from typing import Any

from transformers import RobertaPreLayerNormConfig

from ...configuration_rm import RMConfig
from ...modeling_rm import RMForMaskedDiffusion
from ..sudoku.model import VARIANTS
from .layout import MASK_ID, EditLayout

_CELL = 3  # index of the group that ties a canvas position to its place in the source


def image_edit_config(
    layout: EditLayout,
    variant: str = "hr-decay-her",
    hidden_size: int = 160,
    intermediate_size: int = 480,
    num_layers: int = 6,
    num_heads: int = 5,
    attn_implementation: str = "sdpa",
) -> RMConfig:
    """
    Configuration of the network.

    Positions are the sum of part, row, column and cell embeddings. The first head of every layer sees only the same
    cell of the two pictures: comparing and copying need no learned address. History is kept on the canvas alone
    (`history_scope="editable"`): words and source never change, and a dropped source then reads exactly the mask's
    embedding.

    Args:
        layout ([`EditLayout`]): of the sequences.
        variant (`str`): `"no-hr"`, `"hr"`, `"hr-decay"` or `"hr-decay-her"`, the history that the model reads.
        hidden_size, intermediate_size, num_layers, num_heads (`int`): of the encoder.
        attn_implementation (`str`): as in transformers.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"`variant` is {variant!r}: pass one of {', '.join(VARIANTS)}.")
    encoder = RobertaPreLayerNormConfig(
        vocab_size=layout.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=1,  # position groups say where a token is
        type_vocab_size=1,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        architectures=["RobertaPreLayerNormForMaskedLM"],
    )
    return RMConfig(
        text_config=encoder,
        mask_token_id=MASK_ID,
        suppressed_token_ids=layout.suppressed_token_ids,
        history_norm="rms",
        history_scope="editable",
        position_groups=layout.position_groups,
        attention_groups=[_CELL, *[None] * (num_heads - 1)],
        backbone_positions=False,
        attn_implementation=attn_implementation,
        **VARIANTS[variant],
    )


def build_image_edit_model(layout: EditLayout, variant: str = "hr-decay-her", **kwargs: Any) -> RMForMaskedDiffusion:
    """
    A freshly initialised image-editing model; arguments as [`image_edit_config`].

    Example:
        >>> from hf_rm.tasks.image_editing import load_codebook
        >>> from hf_rm.tasks.image_editing.layout import edit_layout
        >>> build_image_edit_model(edit_layout(load_codebook())).num_parameters() <= 2_000_000
        True
    """
    return RMForMaskedDiffusion(image_edit_config(layout, variant, **kwargs))
