# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The families of published mask diffusion models, and how each becomes a class of transformers.

A family whose network transformers already has (LLaDA is a bidirectional Llama) is a configuration that translates the
published one, a key mapping for the weights, and a handful of facts. No network of our own, no remote code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Family:
    """
    What is known of a family before any of its checkpoints is opened.

    Attributes:
        name (`str`): how it is called in tables and messages.
        mask_token_id (`int`, *optional*): what its checkpoints mask with, where neither config nor tokenizer says so.
        logits_shift (`bool`): see [`RMConfig`].
        attention_block_length (`int`, *optional*): see [`RMConfig`].
        lora_targets (`tuple[str, ...]`): projections that an adapter takes by default: the attention's.
    """

    name: str
    mask_token_id: int | None = None
    logits_shift: bool = False
    attention_block_length: int | None = None
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


FAMILIES: dict[str, Family] = {
    "llada": Family("LLaDA", mask_token_id=126336),
    "bert": Family("BERT", lora_targets=("query", "key", "value")),
}
"""Families by `model_type`."""


def family_of(config: PreTrainedConfig) -> Family | None:
    """The family of a loaded backbone's config, or None for one that is not known."""
    return FAMILIES.get(config.model_type)


def find_mask_token_id(backbone: PreTrainedModel) -> int | None:
    """The mask id of the config, else of the tokenizer beside the weights, else of the family; None without any."""
    own = getattr(backbone.config, "mask_token_id", None)
    if own is not None:
        return own
    family = family_of(backbone.config)
    return None if family is None else family.mask_token_id


def load_backbone(name: str, **kwargs: Any) -> PreTrainedModel:
    """A backbone with a language-model head by Hub name or folder; `kwargs` as for `from_pretrained`."""
    where = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "trust_remote_code") if key in kwargs}
    config = transformers.AutoConfig.from_pretrained(name, **where)
    if type(config) in AutoModelForMaskedLM._model_mapping:
        return AutoModelForMaskedLM.from_pretrained(name, **kwargs)
    return AutoModelForCausalLM.from_pretrained(name, **kwargs)
