# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Reflective Masking wrapper: the backbone's own configuration plus History Reference."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .llada import CONFIGS

HISTORY_NORMS = ("rms", "match", "none")
HISTORY_SCOPES = ("all", "editable")
BLOCK_STARTS = ("sequence", "answer")
WRAPPER_TYPES = ("reflective_masking", "RemeDi")
"""Every `model_type` of ours that stands for a wrapper around a backbone."""


class RMConfig(PreTrainedConfig):
    r"""
    Configuration of [`RMForMaskedDiffusion`]: a mask diffusion backbone that reads a History Reference.

    Args:
        text_config (`PreTrainedConfig` or `dict`): configuration of the backbone, a masked (bidirectional) token model
            of transformers.
        backbone_class (`str`): name of the backbone's class in transformers (`"LlamaForCausalLM"`,
            `"BertForMaskedLM"`). It must take `inputs_embeds` and return `logits`. Defaults to the first of
            `text_config.architectures`.
        mask_token_id (`int`): id of the mask token, below the vocabulary's size.
        suppressed_token_ids (`list[int]`, *optional*): reserved or padding ids that a reveal never writes (the mask id
            never is one in any case).
        history (`bool`, defaults to `True`): whether the model reads its earlier states (Eq. 2 of the Reflective
            Masking paper) or the current one only.
        history_decay (`float`, defaults to 0.9): the decay per step, in (0, 1].
        history_rotation (`bool`, defaults to `True`): whether a past state is also rotated by its distance (History
            Embedding Rotation). Needs an even width.
        history_base (`float`, defaults to 10000.0): base of the rotation's frequencies.
        history_norm (`str`, defaults to `"match"`): `"rms"` (the paper: RMSNorm without parameters), `"match"`
            (rescaled to the current embedding's own root mean square, so that wrapping a pretrained backbone changes
            nothing while there is no history) or `"none"`.
        history_eps (`float`, defaults to 1e-8): added to mean squares under the root. A zero row stays zero.
        history_scope (`str`, defaults to `"all"`): `"all"` (the paper: every position accumulates) or `"editable"`
            (other positions read the plain embedding).
        position_groups (`list[list[int]]`, *optional*): learned structural positions: G lists of N group indices (for
            a Sudoku: the row, the column and the box of every cell). Position i reads the sum over g of a learned
            embedding of its group `position_groups[g][i]`. The sequence length is then N, always.
        attention_groups (`list[int | None]`, *optional*): one entry per attention head: `None` attends everywhere, an
            index g only inside the own group of `position_groups[g]`.
        backbone_positions (`bool`, defaults to `True`): whether the backbone sees the index of a position. `False`
            hands it position 0 everywhere: structure then comes from `position_groups` alone.
        logits_shift (`bool`, defaults to `False`): whether the backbone's output at position i - 1 predicts position
            i, as in Dream. The wrapper then moves the logits right by one: they always belong to their own position.
        attention_block_length (`int`, *optional*): block-causal attention (LLaDA2): a position sees its own block of
            this many positions and the blocks before it. `None`: it sees all.
        attention_block_start (`str`, defaults to `"sequence"`): where those blocks are counted from: `"sequence"` its
            first position (LLaDA2), or `"answer"` the first editable one (RemeDi): what comes before it, the prompt,
            is then a block by itself, however long.
        trained_to_remask (`bool`, *optional*): whether the head has been trained to predict the mask. `RMTrainer` sets
            it; the load-time probe sets it to `False` for a head that measurably never was; `None`: not known.
        backbone_name (`str`, *optional*): Hub name of the backbone that was wrapped; an adapter's repository is
            restored from it.
        backbone_revision (`str`, *optional*): the commit of `backbone_name`.

    Raises:
        ValueError: for a decay outside (0, 1], an odd width with rotation, an unknown norm or scope, a mask id outside
            the vocabulary, groups of unequal lengths, or a head that names a group that does not exist.

    Example:
        >>> from transformers import LlamaConfig
        >>> backbone = LlamaConfig(vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...                        num_attention_heads=2, is_causal=False, architectures=["LlamaForCausalLM"])
        >>> RMConfig(text_config=backbone, mask_token_id=0).history_decay
        0.9
    """

    model_type = "reflective_masking"
    sub_configs = {"text_config": AutoConfig}
    has_no_defaults_at_init = True

    text_config: Any = None
    backbone_class: str | None = None
    mask_token_id: int | None = None
    suppressed_token_ids: Sequence[int] | None = None
    history: bool = True
    history_decay: float = 0.9
    history_rotation: bool = True
    history_base: float = 10000.0
    history_norm: str = "match"
    history_eps: float = 1e-8
    history_scope: str = "all"
    position_groups: Sequence[Sequence[int]] | None = None
    attention_groups: Sequence[int | None] | None = None
    backbone_positions: bool = True
    logits_shift: bool = False
    attention_block_length: int | None = None
    attention_block_start: str = "sequence"
    trained_to_remask: bool | None = None
    backbone_name: str | None = None
    backbone_revision: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            self.text_config = _config_from_dict(self.text_config)
        architectures = getattr(self.text_config, "architectures", None) or (None,)
        self.backbone_class = self.backbone_class or architectures[0]
        if self.suppressed_token_ids is not None:
            self.suppressed_token_ids = [int(token) for token in self.suppressed_token_ids]
        if self.position_groups is not None:
            self.position_groups = [list(map(int, groups)) for groups in self.position_groups]
        if self.attention_groups is not None:
            self.attention_groups = list(self.attention_groups)
        super().__post_init__(**kwargs)
        # The backbone's, repeated: PEFT reads it here to keep a tied head on the adapted embedding.
        inner = getattr(self.text_config, "get_text_config", lambda: None)()
        self.tie_word_embeddings = bool(getattr(inner, "tie_word_embeddings", False))
        if self.text_config is not None:
            self.check()

    @property
    def vocab_size(self) -> int:
        """Width of the embedding table and of the logits, mask token included."""
        return self.text_config.get_text_config().vocab_size

    def check(self) -> None:
        """Raise a ValueError that names the argument, its value and the remedy for whatever cannot work."""
        self.mask_token_id = check_mask_token(self.mask_token_id, self.vocab_size)
        for name in ("history", "history_rotation", "backbone_positions", "logits_shift"):
            _check_choice(self, name, (True, False))
        _check_choice(self, "trained_to_remask", (True, False, None))
        _check_history(self)
        for token in self.suppressed_token_ids or ():
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"`suppressed_token_ids` holds {token}, outside the vocabulary of {self.vocab_size}: pass ids "
                    f"from 0 to {self.vocab_size - 1}."
                )
        _check_groups(self)


def reads_history(config: Any, use_history: bool | None) -> bool:
    """
    Whether a model reads its history: as its configuration says, or not where `use_history` is False.

    Raises:
        ValueError: for what is no bool, and for True where the configuration, the wrapper's or a backbone's, has none.
    """
    own = getattr(config, "history", False)
    if use_history is not None and not isinstance(use_history, bool):
        raise ValueError(f"`use_history` is {use_history!r}: pass True, False or None.")
    if use_history and not own:
        raise ValueError(
            "`use_history` is True, but this model has no history and never learned to read one: wrap its backbone "
            "with RMForMaskedDiffusion.from_backbone(..., history=True) and train it, or leave use_history out."
        )
    return own if use_history is None else use_history


def blocks_from_answer(config: Any) -> bool:
    """Whether the attention's blocks are counted from the first editable position."""
    return getattr(config, "attention_block_start", None) == "answer"


def embedding_width(text_config: PreTrainedConfig) -> int:
    """Width of the token embedding: `embedding_size` where a family keeps it apart (ALBERT), else `hidden_size`."""
    inner = text_config.get_text_config()
    return getattr(inner, "embedding_size", None) or inner.hidden_size


def _check_history(config: RMConfig) -> None:
    decay, width = config.history_decay, embedding_width(config.text_config)
    if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0.0 < decay <= 1.0:
        raise ValueError(f"`history_decay` is {decay!r}: pass a number in (0, 1] (1 forgets nothing, 0.9 is usual).")
    if config.history and config.history_rotation and width % 2:
        raise ValueError(
            f"`history_rotation` turns pairs of dimensions, but the embedding is {width} wide: pass "
            "history_rotation=False or a backbone of even width."
        )
    if not config.history_base > 0:
        raise ValueError(f"`history_base` is {config.history_base!r}: pass a positive number such as 10000.0.")
    _check_choice(config, "history_norm", HISTORY_NORMS)
    if not config.history_eps > 0:
        raise ValueError(f"`history_eps` is {config.history_eps!r}: pass a small positive number such as 1e-8.")
    _check_choice(config, "history_scope", HISTORY_SCOPES)


def _check_choice(config: RMConfig, name: str, choices: Sequence[Any]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}: pass one of {', '.join(map(str, choices))}.")


def check_mask_token(mask_token_id: int | None, vocab_size: int) -> int:
    """The id of the mask token; a ValueError where there is none in the vocabulary."""
    if mask_token_id is None:
        raise ValueError(
            "`mask_token_id` is None: pass the id of the mask token that the model was trained with (LLaDA-8B: "
            "126336)."
        )
    integral = isinstance(mask_token_id, Integral) and not isinstance(mask_token_id, bool)
    if not integral or not 0 <= mask_token_id < vocab_size:
        raise ValueError(
            f"`mask_token_id` is {mask_token_id!r}, outside the vocabulary of {vocab_size}: pass an integer from 0 "
            f"to {vocab_size - 1}, or resize the embeddings first."
        )
    return int(mask_token_id)


def _check_groups(config: RMConfig) -> None:
    position_groups, attention_groups = config.position_groups, config.attention_groups
    block_length = config.attention_block_length
    if block_length is not None and (isinstance(block_length, bool) or block_length < 1):
        raise ValueError(
            f"`attention_block_length` is {block_length!r}: pass a positive integer, or None for full attention."
        )
    _check_choice(config, "attention_block_start", BLOCK_STARTS)
    if block_length is not None and attention_groups is not None:
        raise ValueError("`attention_block_length` and `attention_groups` are both given: pass one of them.")
    if position_groups is not None:
        lengths = {len(groups) for groups in position_groups}
        if len(lengths) != 1 or 0 in lengths or min(map(min, position_groups)) < 0:
            raise ValueError(
                f"`position_groups` has lists of lengths {sorted(lengths)}: pass lists of one length (the sequence "
                "length) with group indices from 0."
            )
    if attention_groups is None:
        return
    heads = config.text_config.get_text_config().num_attention_heads
    if len(attention_groups) != heads:
        raise ValueError(
            f"`attention_groups` names {len(attention_groups)} heads, but the backbone has {heads}: pass one entry a "
            "head."
        )
    known = range(len(position_groups or ()))
    for group in attention_groups:
        if group is not None and group not in known:
            raise ValueError(
                f"`attention_groups` names group {group}, but `position_groups` has {len(known)}: pass None or an "
                "index into position_groups."
            )


def _config_from_dict(values: dict[str, Any]) -> PreTrainedConfig:
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise ValueError("`text_config` has no model_type: pass a PreTrainedConfig or the dict of a saved one.")
    own = CONFIGS.get(model_type)
    return own(**values) if own is not None else AutoConfig.for_model(model_type, **values)
