# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
RemeDi: a backbone and, beside it, a stream of blocks that learns which tokens to keep (Huang et al., ICLR 2026).

    x   = layer_i(x)                     the backbone, at the layers that the configuration names
    u_k = block_k(x + u_(k-1))           the stream; block 0 reads x alone
    x   = x + linear_k(norm_k(u_k))      what it tells the backbone: nothing at first, the linears begin at zero
    h   = confidence(norm(u_last))       one score a position: the policy of `reveal="policy"`, `revise="policy"`

The wrapper is the one of Reflective Masking, so backbones, Hub, adapters and decoding are the same; a history is
possible, and off by default. The backbone stays as it is: its layers, called during a forward pass of the wrapper,
hand their output to that pass's stream, which is no attribute of anything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from .configuration_rm import RMConfig
from .families_rm import FAMILIES
from .generation_config_rm import ReflectiveGenerationConfig
from .llada import LLADA_BLOCK, LLADA_OUTER, LLaDAConfig
from .modeling_rm import RMForMaskedDiffusion, RMOutput

_RELEASED_LAYERS, _RELEASED_BLOCK = (0, 10, 20, 30), 32


class RemeDiConfig(RMConfig):
    """
    Configuration of [`RemeDiForMaskedDiffusion`]; also reads the `config.json` of the released checkpoints.

    Args:
        text_config (`PreTrainedConfig` or `dict`): see [`RMConfig`].
        policy_layers (`list[int]`, *optional*): layers of the backbone that a block of the stream follows, in order.
            By default four (or fewer) at even distances: 0, 10, 20 and 30 of 32, as released.
        history (`bool`, defaults to `False`): see [`RMConfig`]; RemeDi has none.
        kwargs: further arguments of [`RMConfig`].

    Raises:
        ValueError: as [`RMConfig`], and for layers that the backbone does not have, or that do not ascend.

    Example:
        >>> from transformers import LlamaConfig
        >>> backbone = LlamaConfig(vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=32,
        ...                        num_attention_heads=2, is_causal=False, architectures=["LlamaForCausalLM"])
        >>> RemeDiConfig(text_config=backbone, mask_token_id=0).policy_layers
        [0, 10, 20, 30]
    """

    model_type = "RemeDi"

    policy_layers: Any = None
    history: bool = False

    def check(self) -> None:
        """As [`RMConfig.check`]; fills in the layers where none are named."""
        super().check()
        if isinstance(self.policy_layers, Sequence):
            self.policy_layers = list(self.policy_layers)
        layers = self.text_config.get_text_config().num_hidden_layers
        if self.policy_layers is None:
            step = max(layers // 3, 1)
            self.policy_layers = list(range(0, layers, step))[:4]
        numbers = self.policy_layers
        fits = isinstance(numbers, list) and all(type(number) is int and 0 <= number < layers for number in numbers)
        if not fits or not numbers or numbers != sorted(set(numbers)):
            raise ValueError(
                f"`policy_layers` is {numbers!r} for a backbone of {layers} layers: pass a list of different integers "
                f"from 0 to {layers - 1} in ascending order."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; a released configuration, in LLaDA's words, becomes a wrapper's around LLaDA."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"The configuration is a {kind} one, not a RemeDi model's: give a backbone a stream with "
                "RemeDiForMaskedDiffusion.from_backbone."
            )
        if "d_model" in config_dict:
            config_dict = _read_released(config_dict)
        return super().from_dict(config_dict, **kwargs)


def _read_released(values: dict[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in values.items() if name not in ("auto_map", "architectures")}
    text = LLaDAConfig(**values, architectures=["LLaDAModelLM"])
    family = FAMILIES["llada"]
    own = values.get("mask_token_id")
    return {
        "text_config": text.to_dict(),
        "mask_token_id": family.mask_token_id if own is None else own,
        "suppressed_token_ids": family.suppressed_token_ids(text.vocab_size),
        # The released code has these two as constants.
        "policy_layers": list(_RELEASED_LAYERS),
        "attention_block_length": _RELEASED_BLOCK,
        "attention_block_start": "answer",
    }


def policy_decoding(config: RemeDiConfig) -> ReflectiveGenerationConfig:
    """How a model of this configuration decodes by itself: the preset, by the attention's blocks, to an end token."""
    settings: dict[str, Any] = {"stop_at_eos": getattr(config.text_config, "eos_token_id", None) is not None}
    if config.attention_block_length is not None:
        settings["block_length"] = config.attention_block_length
    return ReflectiveGenerationConfig(preset="remedi", **settings)


@dataclass
class RemeDiOutput(RMOutput):
    """
    Output of [`RemeDiForMaskedDiffusion.forward`]: an [`RMOutput`], and

    Attributes:
        policy (`Tensor` of shape `(B, N)`): the confidence h of every position, before the sigmoid; of those at
            `logits_positions` where they are given.
    """

    policy: Tensor | None = None


class Exchange(nn.Linear):
    """What the stream tells the backbone. Zero at first: a class of its own, so that it is initialised as such."""


class PolicyStream(nn.Module):
    """
    The unmasking-policy stream beside a backbone: its blocks begin as copies of the layers that they follow.

    Args:
        backbone (`PreTrainedModel`): whose layers it follows; they are made to hand over their output.
        policy_layers (`list[int]`): which ones.

    Raises:
        ValueError: for a backbone whose layers are not one list.
    """

    def __init__(self, backbone: PreTrainedModel, policy_layers: Sequence[int]) -> None:
        super().__init__()
        config = backbone.config.get_text_config()
        layers = _layers(backbone)
        width = config.hidden_size
        eps = getattr(config, "rms_norm_eps", None) or getattr(config, "layer_norm_eps", None) or 1e-5
        self.places = {number: place for place, number in enumerate(policy_layers)}
        self.blocks = nn.ModuleList(_copy_of(layers[n], len(layers) + k) for k, n in enumerate(policy_layers))
        like = [{"dtype": backbone.dtype, "device": next(layers[n].parameters()).device} for n in policy_layers]
        self.linears = nn.ModuleList(Exchange(width, width, **where) for where in like)
        self.rmsnorms = nn.ModuleList(nn.RMSNorm(width, eps, **where) for where in like)
        self.norm = nn.RMSNorm(width, eps, **like[-1])
        self.confidence = nn.Linear(width, 1, **like[-1])
        for number in policy_layers:
            layer: Any = layers[number]
            layer.__class__, layer.policy_layer = _handing_over(_plain(layer)), number

    @contextmanager
    def running(self) -> Iterator[_Pass]:
        """A forward pass: what the backbone's layers compute in this context goes through the stream."""
        this = _Pass(self)
        token = _current.set(this)
        try:
            yield this
        finally:
            _current.reset(token)


@dataclass
class _Pass:
    """One forward pass, with the stream's hidden states (B, N, d) so far."""

    stream: PolicyStream
    hidden: Tensor | None = None

    def after(self, number: int, output: Any, *args: Any, **kwargs: Any) -> Any:
        """What layer `number` gives on, given its own output and its arguments but the first."""
        place = self.stream.places.get(number)
        if place is None:
            return output
        x = output[0] if isinstance(output, tuple) else output
        seen = x if self.hidden is None else x + self.hidden.to(x.device)
        norm: Any = self.stream.rmsnorms[place]
        dtype = norm.weight.dtype
        if seen.dtype != dtype and not torch.is_autocast_enabled(seen.device.type):
            # A stream that is trained in 32 bits beside a backbone in 16.
            seen, args, kwargs = _in_dtype(dtype, (seen, args, kwargs))
        result = self.stream.blocks[place](seen, *args, **kwargs)
        self.hidden = result[0] if isinstance(result, tuple) else result
        x = x + self.stream.linears[place](norm(self.hidden)).to(x)
        return (x, *output[1:]) if isinstance(output, tuple) else x

    def confidence(self) -> Tensor:
        """(B, N) h."""
        return self.stream.confidence(self.stream.norm(self.hidden))[..., 0]


def _in_dtype(dtype: torch.dtype, values: Any) -> Any:
    """Tensors of numbers, however nested, in another dtype; everything else as it is."""
    return tree_map(lambda v: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v, values)


_current: ContextVar[_Pass | None] = ContextVar("policy_stream", default=None)


@lru_cache
def _handing_over(plain: Any) -> Any:
    """A layer's class that hands its output to the pass under way; a layer outside of one is what it was."""

    # Around the call, not a hook: gradient checkpointing calls a layer's hooks again in the backward pass.
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output, this = plain.__call__(self, *args, **kwargs), _current.get()
        return output if this is None else this.after(self.policy_layer, output, *args[1:], **kwargs)

    # The same name: device maps and FSDP know layers by it.
    return type(plain.__name__, (plain,), {"__call__": call, "__module__": plain.__module__, "plain": plain})


def _plain(layer: nn.Module) -> Any:
    return getattr(type(layer), "plain", type(layer))


def _copy_of(layer: nn.Module, number: int) -> nn.Module:
    """A copy with a number of its own, under which it caches its keys and values."""
    block = copy.deepcopy(layer)
    block.__class__ = _plain(layer)
    module: Any
    for module in block.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = number
    return block


def _layers(backbone: PreTrainedModel) -> nn.ModuleList:
    count = backbone.config.get_text_config().num_hidden_layers
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not lists:
        raise ValueError(
            f"`backbone` is a {type(backbone).__name__}, which has no list of its {count} layers that a policy stream "
            "could follow (ALBERT's are one layer again and again): pass another backbone."
        )
    return lists[0]  # the outermost


# Signature and documentation: Trainer looks for `labels` there.
_as_in_the_wrapper: Any = wraps(RMForMaskedDiffusion.forward)


class RemeDiForMaskedDiffusion(RMForMaskedDiffusion):
    """
    A mask diffusion backbone with a learned unmasking policy; decodes by the preset `"remedi"`.

    Everything that [`RMForMaskedDiffusion`] does it does as well: `from_backbone` (then the logits are the backbone's
    bit for bit, and the policy is a random one that has to be trained), `from_pretrained`, also of the released
    checkpoints, adapters, the Hub.

    The policy ranks by the confidence that was trained for it. The script released with the authors' checkpoints
    ranks by the raw score of the token instead and never reads the confidence: its results are not this model's.

    Args:
        config (`RemeDiConfig`): the wrapper's configuration.
        backbone (`PreTrainedModel`, *optional*): as for [`RMForMaskedDiffusion`].

    Example:
        >>> model = RemeDiForMaskedDiffusion.from_pretrained("maple-research-lab/RemeDi-RL")  # doctest: +SKIP
        >>> model.generate_reflective(ids, max_new_tokens=256, use_cache=True)  # doctest: +SKIP
    """

    config_class = RemeDiConfig
    config: RemeDiConfig
    has_unmasking_policy = True

    def __init__(self, config: RemeDiConfig, backbone: PreTrainedModel | None = None) -> None:
        register_remedi_conversions()
        super().__init__(config, backbone)
        self.generation_config: Any = policy_decoding(config)

    def post_init(self) -> None:
        """As in transformers; first the stream beside the backbone, which is there by now."""
        self.stream = PolicyStream(self.model, self.config.policy_layers)
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Exchange):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)
            self.model._init_weights(module)  # what is left in the stream is as in the backbone

    @_as_in_the_wrapper
    def forward(self, *args: Any, **kwargs: Any) -> RemeDiOutput:
        with self.stream.running() as this:
            output = super().forward(*args, **kwargs)
        policy, positions = this.confidence(), kwargs.get("logits_positions")
        if positions is not None:
            policy = policy.gather(1, positions.clamp(max=policy.shape[1] - 1))
        return RemeDiOutput(**dict(output), policy=policy)

    def save_pretrained(self, *args: Any, save_original_format: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but under this class's own names also for a model that came under the released ones."""
        return super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)


def register_remedi_conversions() -> None:
    """Teach transformers' loader the names of the released checkpoints."""
    inner = {name: f"{native}." for name, native in LLADA_BLOCK.items()}
    outer = {rf"^model\.transformer\.{name}\.": f"model.{native}." for name, native in LLADA_OUTER.items()}
    backbone = {
        rf"^model\.transformer\.blocks\.(\d+)\.{name}\.": rf"model.model.layers.\1.{to}" for name, to in inner.items()
    }
    stream = {rf"^model\.blocks_upm\.(\d+)\.{name}\.": rf"stream.blocks.\1.{to}" for name, to in inner.items()}
    ends = {
        r"^model\.backprop_linears\.": "stream.linears.",
        r"^model\.backprop_norms\.": "stream.rmsnorms.",
        r"^model\.ln_f_upm\.": "stream.norm.",
        r"^model\.linear_confidence\.": "stream.confidence.",
    }
    names = {**outer, **backbone, **stream, **ends}
    renamings: list[Any] = [WeightRenaming(old, new) for old, new in names.items()]
    register_checkpoint_conversion_mapping("RemeDiForMaskedDiffusion", renamings, overwrite=True)
