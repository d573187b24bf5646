# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
RMForMaskedDiffusion: any bidirectional token model, reading a History Reference in place of its plain embeddings.

    input ids -> embedding -> + History Reference -> (+ position groups) -> backbone -> logits (and the new history)

What is unusual here: the backbone is held whole as `self.model` and never sees input ids; history goes in as an
explicit value and comes back as one, nothing is remembered between calls; and there is no parameter of our own unless
the configuration asks for structural position groups.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from .configuration_rm import RMConfig, embedding_width
from .families_rm import backbone_class, family_of, find_mask_token_id, load_backbone, readable_weights
from .generation_rm import ReflectiveGenerationMixin
from .history import History, HistoryReference, HistorySegments, HistoryState
from .llada import register_conversions
from .vocabulary_rm import reserved_beside


@dataclass
class RMOutput(ModelOutput):
    """
    Output of [`RMForMaskedDiffusion.forward`].

    Attributes:
        loss (`Tensor`, scalar, *optional*): mean cross-entropy over the labels that are not -100.
        logits (`Tensor` of shape `(B, N, V)`): scores over the vocabulary, the mask token included.
        history (`HistoryState`, *optional*): the memory after this state, for the next call; None without history.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    history: HistoryState | None = None


class RMForMaskedDiffusion(ReflectiveGenerationMixin, PreTrainedModel):
    """
    A mask diffusion backbone with History Reference and [`~ReflectiveGenerationMixin.generate_reflective`].

    Args:
        config (`RMConfig`): the wrapper's configuration.
        backbone (`PreTrainedModel`, *optional*): the network to wrap; built from `config.text_config` without it.

    Raises:
        ValueError: for a configuration that cannot work; see [`RMConfig`].
    """

    config_class = RMConfig
    config: RMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The package puts its load-time probe here. Exported code has none: it reloads what was probed when it was made.
    backbone_probe: ClassVar[Callable[[Any], Any] | None] = None

    def __init__(self, config: RMConfig, backbone: PreTrainedModel | None = None) -> None:
        config.check()
        super().__init__(config)
        self.model = build_backbone(config) if backbone is None else backbone
        groups, width = config.position_groups, embedding_width(config.text_config)
        self.position_group_embeddings = None if groups is None else PositionGroupEmbeddings(groups, width)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | PreTrainedModel,
        mask_token_id: int | None = None,
        *,
        probe: bool = True,
        backbone_kwargs: dict[str, Any] | None = None,
        **config_kwargs: Any,
    ) -> RMForMaskedDiffusion:
        """
        Wrap a pretrained backbone. Without a history the wrapper computes the backbone's own logits, bit for bit.

        Args:
            backbone (`str` or `PreTrainedModel`): a Hub name, a folder, or a loaded model with a language-model head.
            mask_token_id (`int`, *optional*): id of the mask token; by default that of the backbone's config, of its
                tokenizer or of its family.
            probe (`bool`, defaults to `True`): run the wrapped model on a few tokens and refuse a backbone that is not
                what it is taken for: causal, shifted, deaf to its attention mask (`hf_rm.backbones.probe`).
            backbone_kwargs (`dict`, *optional*): passed to the backbone's `from_pretrained` (dtype, device_map, ...).
            config_kwargs: further arguments of [`RMConfig`]: `history`, `history_decay`, `position_groups` and so on.
                `suppressed_token_ids` defaults to the ids that the tokenizer beside the weights does not have.

        Raises:
            ValueError: when no mask id is to be found or a setting cannot work.

        Example:
            >>> from transformers import BertConfig, BertForMaskedLM
            >>> bert = BertForMaskedLM(BertConfig(vocab_size=120, hidden_size=16, num_hidden_layers=1,
            ...                                   num_attention_heads=2, intermediate_size=32))
            >>> RMForMaskedDiffusion.from_backbone(bert, mask_token_id=103).config.mask_token_id
            103
        """
        where: dict[str, Any] = {"local_files_only": True}  # a model at hand is not looked up on the Hub
        if isinstance(backbone, str):
            where = backbone_kwargs or {}
            backbone = load_backbone(backbone, **where)
        family = family_of(backbone.config)
        if family is not None:
            config_kwargs.setdefault("logits_shift", family.logits_shift)
            config_kwargs.setdefault("attention_block_length", family.attention_block_length)
        if "suppressed_token_ids" not in config_kwargs:
            known = None if family is None else family.suppressed_token_ids(backbone.config.vocab_size)
            config_kwargs["suppressed_token_ids"] = known or reserved_beside(backbone, where)
        config = RMConfig(
            text_config=copy.deepcopy(backbone.config),
            backbone_class=type(backbone).__name__,
            mask_token_id=find_mask_token_id(backbone) if mask_token_id is None else mask_token_id,
            backbone_name=backbone.name_or_path or None,
            backbone_revision=getattr(backbone.config, "_commit_hash", None),
            **config_kwargs,
        )
        model = cls(config, backbone=backbone)
        if model.position_group_embeddings is not None:
            model.position_group_embeddings.to(backbone.dtype).to(backbone.device)
        model.train(backbone.training)
        if probe and cls.backbone_probe is not None:
            cls.backbone_probe(model)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a damaged weight file is named."""
        with readable_weights(pretrained_model_name_or_path, kwargs):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The backbone initialises itself; what is left is ours.
        if isinstance(module, PositionGroupEmbeddings):
            init.normal_(module.weight, std=0.02)

    @property
    def history_reference(self) -> HistoryReference:
        """Eq. 2 with this model's settings."""
        config = self.config
        return HistoryReference(
            config.history_decay, config.history_rotation, config.history_base, config.history_norm, config.history_eps
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        history: History | Sequence[History] | None = None,
        editable_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_history: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> RMOutput:
        """
        Logits for the current state, read together with its history.

        Args:
            input_ids (`Tensor` of shape `(B, N)`, long): the current state.
            attention_mask (`Tensor` of shape `(B, N)`, *optional*): 1 for real positions, 0 for padding.
            position_ids (`Tensor` of shape `(B, N)`, *optional*): by default counted over the real positions.
            history (`HistoryState`, `HistorySegments`, or a list of them, *optional*): everything before the current
                state. In a list each holds the next rows of the batch. Default: nothing came before.
            editable_mask (`Tensor` of shape `(B, N)`, bool, *optional*): which positions may change; needed with
                `history_scope="editable"`.
            labels (`Tensor` of shape `(B, N)`, long, *optional*): targets, -100 where there is none.
            use_history (`bool`, *optional*): overrides `config.history`.
            num_items_in_batch (`Tensor` or `int`, *optional*): divides the summed loss in place of the label count.

        Returns:
            [`RMOutput`]

        Raises:
            ValueError: for shapes and dtypes that do not fit.
        """
        use_history = self.config.history if use_history is None else use_history
        _check_forward(self.config, input_ids, labels)
        embeddings = self.get_input_embeddings()(input_ids)
        inputs, state = self._read_history(embeddings, history, editable_mask, use_history)
        logits = self._run_backbone(inputs, attention_mask, position_ids)
        loss = None if labels is None else _mean_cross_entropy(logits, labels, num_items_in_batch)
        return RMOutput(loss=loss, logits=logits, history=state)

    def _read_history(
        self,
        embeddings: Tensor,
        history: History | Sequence[History] | None,
        editable_mask: Tensor | None,
        use_history: bool,
    ) -> tuple[Tensor, HistoryState | None]:
        """The vectors that the backbone reads, and the memory after this state."""
        if not use_history:
            return embeddings, None
        reference = self.history_reference
        state = _advance(reference, history, embeddings, self.get_input_embeddings())
        inputs = reference.normalise(state.accumulator, embeddings)
        if self.config.history_scope == "editable":
            if editable_mask is None:
                raise ValueError(
                    'history_scope="editable" needs `editable_mask`, a (batch, length) bool tensor of the positions '
                    "that may change."
                )
            inputs = torch.where(editable_mask[..., None], inputs, embeddings)
        return inputs, state

    def _run_backbone(self, inputs: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
        config, padding_mask = self.config, attention_mask
        if self.position_group_embeddings is not None:
            inputs = inputs + self.position_group_embeddings()
            if torch.is_autocast_enabled(inputs.device.type):
                # The residual stream of these small models in 16 bits: half the memory traffic of elementwise steps.
                inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        if config.position_groups is not None and config.attention_groups is not None:
            groups, heads = tuple(map(tuple, config.position_groups)), tuple(config.attention_groups)
            attention_mask = _group_attention_mask(groups, heads, attention_mask, inputs)
        elif attention_mask is not None and position_ids is None and config.backbone_positions:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if config.attention_block_length is not None:
            attention_mask = _block_causal_mask(config.attention_block_length, attention_mask, position_ids, inputs)
        if not config.backbone_positions:
            position_ids = torch.zeros(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        arguments = {} if position_ids is None else {"position_ids": position_ids}
        logits = self.model(inputs_embeds=inputs, attention_mask=attention_mask, **arguments).logits
        return _shifted_right(logits, padding_mask) if config.logits_shift else logits


class PositionGroupEmbeddings(nn.Module):
    """
    A learned vector for every group that a position belongs to: the sum is (N, d), one row a position.

    The offsets of all group lists lie in one table, `weight`, so that a forward pass is one look-up.
    """

    def __init__(self, position_groups: Sequence[Sequence[int]], width: int) -> None:
        super().__init__()
        self.position_groups = [list(groups) for groups in position_groups]
        self.weight = nn.Parameter(torch.zeros(sum(max(groups) + 1 for groups in position_groups), width))

    def forward(self) -> Tensor:
        rows = _group_rows(tuple(map(tuple, self.position_groups)), self.weight.device)
        return F.embedding(rows, self.weight).sum(dim=0)


def build_backbone(config: RMConfig) -> PreTrainedModel:
    """
    A freshly initialised backbone of `config.backbone_class` with `config.text_config`.

    Raises:
        ValueError: when transformers has no class of that name.
    """
    register_conversions()
    return backbone_class(config.backbone_class)._from_config(config.text_config)


def _advance(
    reference: HistoryReference,
    history: History | Sequence[History] | None,
    embeddings: Tensor,
    embed: nn.Module,
) -> HistoryState:
    if history is None:
        batch, length, width = embeddings.shape
        history = HistoryState.empty(batch, length, width, embeddings.device)
    if isinstance(history, HistoryState):
        return reference.advance(history, embeddings)
    if isinstance(history, HistorySegments):
        return reference.advance_segments(history, embeddings, embed)
    sizes = [len(part.steps) if isinstance(part, HistoryState) else len(part.ids) for part in history]
    parts = zip(history, embeddings.split(sizes), strict=True)
    return HistoryState.cat([_advance(reference, part, rows, embed) for part, rows in parts])


def _shifted_right(logits: Tensor, attention_mask: Tensor | None) -> Tensor:
    """A shifted backbone says at position i - 1 what stands at i; nothing predicts the first real one but itself."""
    shifted = torch.cat((logits[:, :1], logits[:, :-1]), dim=1)
    if attention_mask is None:
        return shifted
    real = attention_mask.bool()
    first = real & ~F.pad(real[:, :-1], (1, 0))
    return torch.where(first[..., None], logits, shifted)


def _group_attention_mask(
    groups: tuple[tuple[int, ...], ...], heads: tuple[int | None, ...], attention_mask: Tensor | None, inputs: Tensor
) -> Tensor:
    """(1 or B, heads, N, N), 0 where a head may look and -inf elsewhere; padding is never looked at."""
    allowed = _allowed_by_groups(groups, heads, inputs.device)
    if attention_mask is not None and not attention_mask.all():
        allowed = allowed & attention_mask.bool()[:, None, None, :]
    return torch.zeros(allowed.shape, dtype=inputs.dtype, device=inputs.device).masked_fill(~allowed, -torch.inf)


def _block_causal_mask(
    block_length: int, attention_mask: Tensor | None, position_ids: Tensor | None, inputs: Tensor
) -> Tensor:
    """(1 or B, 1, N, N), 0 where a position may look (its own block and earlier ones), -inf elsewhere."""
    length = inputs.shape[1]
    positions = torch.arange(length, device=inputs.device)[None] if position_ids is None else position_ids
    block = positions // block_length
    allowed = block[:, :, None] >= block[:, None, :]
    if attention_mask is not None:
        allowed = allowed & attention_mask.bool()[:, None, :]
        # Padding sees itself: a row of the softmax must not be empty.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=inputs.device)
    allowed = allowed[:, None]
    return torch.zeros(allowed.shape, dtype=inputs.dtype, device=inputs.device).masked_fill(~allowed, -torch.inf)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached tensor must also serve a later training step
def _group_rows(groups: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """(G, N) rows of one table that holds the groups of all G lists one after another."""
    sizes = torch.tensor([0] + [max(g) + 1 for g in groups[:-1]])
    return (torch.tensor(groups) + sizes.cumsum(0)[:, None]).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _allowed_by_groups(
    groups: tuple[tuple[int, ...], ...], heads: tuple[int | None, ...], device: torch.device
) -> Tensor:
    """(1, heads, N, N) bool: which pairs of positions a head connects."""
    index = torch.tensor(groups)
    same = index[:, :, None] == index[:, None, :]
    everywhere = torch.ones_like(same[0])
    return torch.stack([everywhere if g is None else same[g] for g in heads])[None].to(device)


def _mean_cross_entropy(logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if num_items is None else num_items)


def _check_forward(config: RMConfig, input_ids: Tensor, labels: Tensor | None) -> None:
    if input_ids.dim() != 2:
        raise ValueError(
            f"`input_ids` has shape {tuple(input_ids.shape)}: pass a (batch, length) tensor of token ids."
        )
    if config.position_groups is not None and input_ids.shape[1] != len(config.position_groups[0]):
        raise ValueError(
            f"`input_ids` has {input_ids.shape[1]} positions, but the model's position groups describe "
            f"{len(config.position_groups[0])}: pass sequences of that length."
        )
    if labels is not None and labels.shape != input_ids.shape:
        raise ValueError(
            f"`labels` has shape {tuple(labels.shape)} and `input_ids` {tuple(input_ids.shape)}: pass labels of the "
            "same shape, -100 where a position has none."
        )
