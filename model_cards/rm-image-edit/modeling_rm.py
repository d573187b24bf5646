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
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from .adapters_rm import (
    HUB_ARGUMENTS,
    commit_of,
    find_adapter,
    load_adapter_strictly,
    load_with_adapter,
    refuse_plain_adapter,
    take_over_placement,
)
from .configuration_rm import RMConfig, blocks_from_answer, embedding_width, reads_history
from .families_rm import (
    backbone_class,
    family_of,
    find_mask_token_id,
    load_backbone,
    readable_weights,
    refuse_wrong_keys,
)
from .generation_canvas_rm import check_entries
from .generation_rm import ReflectiveGenerationMixin
from .heads_rm import LogitsReader, answer_start, position_logits, read_logits, real_positions
from .history import Histories, HistoryReference, HistorySegments, HistoryState, check_history
from .llada import register_conversions
from .vocabulary_rm import reserved_token_ids, token_ids, tokenizer_beside


@dataclass
class RMOutput(ModelOutput):
    """
    Output of [`RMForMaskedDiffusion.forward`].

    Attributes:
        loss (`Tensor`, scalar, *optional*): mean cross-entropy over the labels that are not -100.
        logits (`Tensor` of shape `(B, N, V)`): scores over the vocabulary, the mask token included.
        history (`HistoryState`, *optional*): the memory after this state, for the next call; None without history.
        read (`tuple[Tensor, ...]`, *optional*): what a `logits_reader` has read, in place of the logits.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    history: HistoryState | None = None
    read: tuple[Tensor, ...] | None = None


class RMForMaskedDiffusion(ReflectiveGenerationMixin, PreTrainedModel):
    """
    A mask diffusion backbone with History Reference and [`~ReflectiveGenerationMixin.generate_reflective`].

    Args:
        config (`RMConfig`): the wrapper's configuration.
        backbone (`PreTrainedModel`, *optional*): the network to wrap; built from `config.text_config` without it.

    Raises:
        ValueError: for a configuration that cannot work; see [`RMConfig`].
    """

    config_class: ClassVar[type[RMConfig]] = RMConfig
    config: RMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    # Nothing of our own is tied; PEFT looks into the backbone's ties only where the wrapper has a dict.
    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The package puts its load-time probe here. Exported code has none: it reloads what was probed when it was made.
    backbone_probe: ClassVar[Callable[[Any], Any] | None] = None
    # And here how a model is published with code and card; exported code pushes as any transformers model does.
    hub_push: ClassVar[Callable[..., Any] | None] = None
    # Commit of the saved wrapper that the weights came from; an adapter's repository records it.
    base_commit: str | None = None

    def __init__(self, config: RMConfig, backbone: PreTrainedModel | None = None) -> None:
        config.check()
        super().__init__(config)
        self.model = build_backbone(config) if backbone is None else backbone
        self._takes_use_cache = "use_cache" in inspect.signature(self.model.forward).parameters
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
            ValueError: when no mask id is to be found, a setting cannot work, or an argument is none of these.

        Example:
            >>> from transformers import BertConfig, BertForMaskedLM
            >>> bert = BertForMaskedLM(BertConfig(vocab_size=120, hidden_size=16, num_hidden_layers=1,
            ...                                   num_attention_heads=2, intermediate_size=32))
            >>> RMForMaskedDiffusion.from_backbone(bert, mask_token_id=103).config.mask_token_id
            103
        """
        known = cls.config_class.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__
        if unknown := sorted(config_kwargs.keys() - known):
            raise ValueError(
                f"Unknown argument(s) {', '.join(map(repr, unknown))}: pass settings of {cls.config_class.__name__} "
                f"({', '.join(sorted(known))}), and what is for the backbone's from_pretrained as backbone_kwargs."
            )
        where: dict[str, Any] = {"local_files_only": True}  # a model at hand is not looked up on the Hub
        if isinstance(backbone, str):
            where = backbone_kwargs or {}
            backbone = load_backbone(backbone, **where)
        tokenizer = cache(partial(tokenizer_beside, backbone, where))  # read once, and only where it is asked for
        family = family_of(backbone.config)
        if family is not None:
            config_kwargs.setdefault("logits_shift", family.logits_shift)
            config_kwargs.setdefault("attention_block_length", family.attention_block_length)
        if "suppressed_token_ids" not in config_kwargs:
            known = None if family is None else family.suppressed_token_ids(backbone.config.vocab_size)
            config_kwargs["suppressed_token_ids"] = known or reserved_token_ids(
                tokenizer(), backbone.config.get_text_config().vocab_size
            )
        config = cls.config_class(
            text_config=copy.deepcopy(backbone.config),
            backbone_class=type(backbone).__name__,
            mask_token_id=find_mask_token_id(backbone, tokenizer) if mask_token_id is None else mask_token_id,
            backbone_name=backbone.name_or_path or None,
            backbone_revision=commit_of(backbone.name_or_path, where.get("revision"), where.get("cache_dir")),
            **config_kwargs,
        )
        model = cls(config, backbone=backbone)
        if model.position_group_embeddings is not None:
            model.position_group_embeddings.to(backbone.dtype).to(backbone.device)
        model.train(backbone.training)
        take_over_placement(model)
        if probe and cls.backbone_probe is not None:
            cls.backbone_probe(model)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """
        As in transformers, with more care: an adapter's repository brings its base, its settings and the adapter, and
        a damaged weight file is named.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a Hub name or a folder: a saved wrapper, or an adapter as
                `hf_rm.hub` publishes it.
            kwargs: as in transformers. For an adapter `revision` is its own (its base's is recorded), dtype, device
                map and quantization are the base's; `trust_remote_code` is not passed on to the base, pass
                `base_trust_remote_code=True` for that; `base_model` loads the base from another place;
                `is_trainable=True` goes on training.

        Raises:
            OSError: for a repository, file or revision that is missing, and for weights that are damaged or not all
                there.
            ValueError: for an adapter that was made for another base.
        """
        where = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key) is not None}
        adapter = find_adapter(pretrained_model_name_or_path, **where)
        with readable_weights(pretrained_model_name_or_path, kwargs):
            if adapter is not None:
                return load_with_adapter(cls, pretrained_model_name_or_path, adapter, **kwargs)
            refuse_plain_adapter(pretrained_model_name_or_path, **where)
            wants_report, kwargs["output_loading_info"] = kwargs.get("output_loading_info"), True
            model, report = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        # transformers would go on with random values in their place.
        refuse_wrong_keys(pretrained_model_name_or_path, model, report, ["missing"])
        model.base_commit = commit_of(model.config.name_or_path, kwargs.get("revision"), kwargs.get("cache_dir"))
        return (model, report) if wants_report else model

    def load_adapter(self, peft_model_id: Any = None, adapter_name: str | None = None, **kwargs: Any) -> Any:
        """
        As in transformers, for a plain adapter and for an adapter's repository; but missing and left over keys, other
        shapes and another base (unless `check_base=False`) raise a ValueError instead of a warning.
        """
        load = super().load_adapter
        if peft_model_id is None:
            return load(adapter_name=adapter_name, **kwargs)
        return load_adapter_strictly(self, load, peft_model_id, adapter_name, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Publish model (or its adapter), code, settings and card in one commit; arguments as for `hf_rm.hub.push`."""
        push = type(self).hub_push
        if push is not None:
            return push(self, repo_id, **kwargs)
        if self._hf_peft_config_loaded:
            raise ImportError("An adapter's repository also holds the wrapper's config: install hf_rm to publish one.")
        return super().push_to_hub(repo_id, **kwargs)

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
        history: Histories = None,
        editable_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_history: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_positions: Tensor | None = None,
        past_key_values: Cache | None = None,
        logits_reader: LogitsReader | None = None,
    ) -> RMOutput:
        """
        Logits for the current state, read together with its history.

        Args:
            input_ids (`Tensor` of shape `(B, N)`, of any integers): the current state.
            attention_mask (`Tensor` of shape `(B, N)`, *optional*): 1 for real positions, 0 for padding; or bool of
                shape `(B, 1, N, keys)`: who sees whom.
            position_ids (`Tensor` of shape `(B, N)`, *optional*): by default counted over the real positions.
            history (`HistoryState`, `HistorySegments`, or a list of them, *optional*): everything before the current
                state. In a list each holds the next rows of the batch. Default: nothing came before.
            editable_mask (`Tensor` of shape `(B, N)`, bool, *optional*): which positions may change; needed with
                `history_scope="editable"`; without it all may.
            labels (`Tensor` of shape `(B, N)`, long, *optional*): targets, -100 where there is none.
            use_history (`bool`, *optional*): overrides `config.history`.
            num_items_in_batch (`Tensor` or `int`, *optional*): divides the summed loss in place of the label count.
            logits_positions (`Tensor` of shape `(B, A)`, long, *optional*): compute logits at these positions only.
            past_key_values (`Cache`, *optional*): keys and values of other positions, for decoders.
            logits_reader ([`LogitsReader`], *optional*): read the logits of some positions in chunks, and return what
                was read, not the logits. For training with a large vocabulary.

        Returns:
            [`RMOutput`]

        Raises:
            ValueError: for shapes and dtypes that do not fit; on a CPU also for ids and labels outside the vocabulary
                and for labels of which none counts. An accelerator would have to be waited for to see them.
        """
        use_history = reads_history(self.config, use_history)
        wanted: Tensor | LogitsReader | None = logits_positions if logits_reader is None else logits_reader
        input_ids = _check_ids(self.config, input_ids, labels, wanted, num_items_in_batch)
        batch, length = input_ids.shape
        keys = getattr(attention_mask, "shape", ())[-1:]
        check_entries("attention_mask", attention_mask, (batch, length), (batch, 1, length, *keys))
        check_entries("editable_mask", editable_mask, (batch, length))
        check_history(history, batch, length, embedding_width(self.config.text_config))
        _prepare_token_adapters(self.get_input_embeddings(), self.get_output_embeddings())
        embeddings = self.get_input_embeddings()(input_ids)
        inputs, state = self._read_history(embeddings, history, editable_mask, use_history)
        caching = {} if past_key_values is None else {"past_key_values": past_key_values, "use_cache": True}
        logits = self._run_backbone(inputs, attention_mask, position_ids, editable_mask, wanted, **caching)
        if isinstance(logits, tuple):
            return RMOutput(history=state, read=logits)
        loss = None if labels is None else _mean_cross_entropy(logits, labels, num_items_in_batch)
        return RMOutput(loss=loss, logits=logits, history=state)

    def _read_history(
        self, embeddings: Tensor, history: Histories, editable_mask: Tensor | None, use_history: bool
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

    def _run_backbone(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        editable_mask: Tensor | None,
        wanted: Tensor | LogitsReader | None,
        **caching: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        config, padding_mask = self.config, attention_mask
        if self.position_group_embeddings is not None:
            inputs = inputs + self.position_group_embeddings()
            if torch.is_autocast_enabled(inputs.device.type):
                # The residual stream of these small models in 16 bits: half the memory traffic of elementwise steps.
                inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        if config.position_groups is not None and config.attention_groups is not None:
            groups, heads = tuple(map(tuple, config.position_groups)), tuple(config.attention_groups)
            attention_mask = _group_attention_mask(groups, heads, attention_mask, inputs)
        elif attention_mask is not None and attention_mask.dim() == 2 and config.backbone_positions:
            position_ids = real_positions(attention_mask) if position_ids is None else position_ids
        if attention_mask is not None and attention_mask.dim() == 4 and attention_mask.dtype == torch.bool:
            attention_mask = _additive(attention_mask, inputs)
        elif config.attention_block_length is not None:
            attention_mask = _block_causal_mask(config, attention_mask, position_ids, editable_mask, inputs)
        if not config.backbone_positions:
            position_ids = torch.zeros(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        arguments: dict[str, Any] = {} if position_ids is None else {"position_ids": position_ids}
        if self._takes_use_cache:
            arguments["use_cache"] = False  # many configs say True: a cache that nobody reads costs time and memory
        arguments |= {"inputs_embeds": inputs, "attention_mask": attention_mask, **caching}
        sources = _predictors(inputs, padding_mask) if config.logits_shift else None
        if isinstance(wanted, LogitsReader):
            return read_logits(self.model, wanted, sources, **arguments)
        return position_logits(self.model, wanted, sources, **arguments)


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


def _prepare_token_adapters(*modules: nn.Module | None) -> None:
    """Give PEFT's trainable token rows, where an adapter has put them, `_token_rows` as their forward."""
    for module in modules:
        adapter = getattr(module, "token_adapter", None)
        if adapter is not None and "forward_adapters" not in vars(adapter):
            adapter.forward_adapters = partial(_token_rows, adapter)


def _token_rows(layer: Any, inputs: Tensor, active: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
    """
    What an embedding or a head gives with a few of its rows replaced by trained ones.

    PEFT 0.21 computes the same with a new copy of the whole table at every call and, in training, a gradient of that
    size (1 GB each for LLaDA-8B's embedding and head); and it leaves out a head's bias, which BERT's heads have.
    """
    base = layer.get_base_layer()
    if layer.disable_adapters or layer.merged or not active or type(base) not in (nn.Embedding, nn.Linear):
        return type(layer).forward_adapters(layer, inputs, active, *args, **kwargs)
    result = base(inputs)
    for name in active:
        for token, row in zip(layer.token_indices[name], layer.trainable_tokens_delta[name], strict=True):
            if isinstance(base, nn.Embedding):
                result = torch.where((inputs == token)[..., None], row.to(result.dtype), result)
            else:
                scores = F.linear(inputs, row.to(inputs.dtype))
                result[..., token] = scores if base.bias is None else scores + base.bias[token]
    return result


def build_backbone(config: RMConfig) -> PreTrainedModel:
    """
    A freshly initialised backbone of `config.backbone_class` with `config.text_config`.

    Raises:
        ValueError: when transformers has no class of that name.
    """
    register_conversions()
    return backbone_class(config.backbone_class)._from_config(config.text_config)


def _advance(reference: HistoryReference, history: Histories, embeddings: Tensor, embed: nn.Module) -> HistoryState:
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


def _predictors(inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
    """
    (B, N) long: whose output speaks of each position of a shifted backbone: the one's before it.

    Nothing predicts the first real position but itself.
    """
    batch, length = inputs.shape[:2]
    places = torch.arange(length, device=inputs.device)
    before = (places - 1).clamp(min=0).expand(batch, -1)
    if attention_mask is None:
        return before
    real = attention_mask.bool()
    first = real & ~F.pad(real[:, :-1], (1, 0))
    return torch.where(first, places, before)


def _group_attention_mask(
    groups: tuple[tuple[int, ...], ...], heads: tuple[int | None, ...], attention_mask: Tensor | None, inputs: Tensor
) -> Tensor:
    """(1 or B, heads, N, N), 0 where a head may look and -inf elsewhere; padding is never looked at."""
    allowed = _allowed_by_groups(groups, heads, inputs.device)
    if attention_mask is not None and not attention_mask.all():
        allowed = allowed & attention_mask.bool()[:, None, None, :]
    return _additive(allowed, inputs)


def _additive(allowed: Tensor, inputs: Tensor) -> Tensor:
    """0 where `allowed`, -inf elsewhere."""
    return torch.zeros(allowed.shape, dtype=inputs.dtype, device=inputs.device).masked_fill(~allowed, -torch.inf)


def _block_causal_mask(
    config: RMConfig,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    editable_mask: Tensor | None,
    inputs: Tensor,
) -> Tensor:
    """(1 or B, 1, N, N), 0 where a position may look (its own block and earlier ones), -inf elsewhere."""
    length, block_length = inputs.shape[1], config.attention_block_length or inputs.shape[1]
    positions = torch.arange(length, device=inputs.device)[None] if position_ids is None else position_ids
    if blocks_from_answer(config) and editable_mask is not None:
        # The prompt, negative so far, is one block.
        positions = (positions - answer_start(editable_mask, positions)).clamp(min=-1)
    block = positions.div(block_length, rounding_mode="floor")
    allowed = block[:, :, None] >= block[:, None, :]
    if attention_mask is not None:
        allowed = allowed & attention_mask.bool()[:, None, :]
        # Padding sees itself: a row of the softmax must not be empty.
        allowed = allowed | torch.eye(length, dtype=torch.bool, device=inputs.device)
    return _additive(allowed[:, None], inputs)


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


def _check_ids(config: RMConfig, input_ids: Tensor, labels: Tensor | None, wanted: Any, num_items: Any) -> Tensor:
    """The input ids, long. Values are looked at on a CPU alone, where nothing has to be waited for; shapes always."""
    look = getattr(input_ids, "device", None) == torch.device("cpu") and not torch.compiler.is_compiling()
    input_ids = token_ids("input_ids", input_ids, config.vocab_size, look)
    if config.position_groups is not None and input_ids.shape[1] != len(config.position_groups[0]):
        raise ValueError(
            f"`input_ids` has {input_ids.shape[1]} positions, but the model's position groups describe "
            f"{len(config.position_groups[0])}: pass sequences of that length."
        )
    if labels is None:
        return input_ids
    if wanted is not None:
        name = "logits_reader" if isinstance(wanted, LogitsReader) else "logits_positions"
        raise ValueError(f"`labels` need logits everywhere: leave `{name}` out, or take the loss yourself.")
    check_entries("labels", labels, tuple(input_ids.shape))
    token_ids("labels", labels, config.vocab_size, look, nothing=-100)
    if look and num_items is None and not (labels != -100).any():
        raise ValueError("`labels` is -100 everywhere, and the mean over no label is none: leave `labels` out.")
    return input_ids
