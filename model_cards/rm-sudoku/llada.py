# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Published configurations and weights of LLaDA and its relatives, in the words of transformers' own networks.

LLaDA is a Llama that looks both ways, LLaDA-MoE a Qwen3-MoE, LLaDA2 a GLM-4-MoE, Dream a Qwen2. A subclass of the
native configuration reads the published `config.json`, refuses what the native network does not compute, and carries
the family's `model_type`; `register_conversions` teaches transformers' loader the published names of the weights.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import (
    Glm4MoeConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter, WeightRenaming

_LLADA_NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layers": "num_hidden_layers",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
    "init_std": "initializer_range",
}
# What Llama computes. A field that is left out has LLaDA's own default, which for the first four is something else.
_LLADA_NETWORK = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "embedding_dropout": 0.0,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_with_affine": True,
    "residual_dropout": 0.0,
    "scale_logits": False,
}
_LLADA_STATED = ("block_type", "layer_norm_type", "activation_type", "rope")
_LLADA_MOE_NETWORK = {
    "clip_qkv": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "routed_scaling_factor": 1,
    "shared_expert_intermediate_size": None,
}
_LLADA2_NETWORK = {
    "norm_head": False,
    "score_function": "sigmoid",
    "use_bias": False,
    "use_qkv_bias": False,
    "use_sliding_window": False,
}
_ILLADA_NETWORK = {"layer_norm_eps": None, "resid_pdrop": 0.0}

# What every one of them is, where its file does not say so.
_DIFFUSION = {"is_causal": False, "use_cache": False, "mask_token_id": None}

# Whether `config.json` is being written in LLaDA's own words (`LLaDAModelLM.save_pretrained`).
published_names: ContextVar[bool] = ContextVar("published_names", default=False)


def _check_network(family: str, values: dict[str, Any], network: dict[str, Any], stated: tuple[str, ...] = ()) -> None:
    """Take the fields of `network` out of `values`; a ValueError names the first that says something else."""
    for field, native in network.items():
        value = values.pop(field, None)
        if value != native and (value or field in stated or (native and value is not None)):
            raise ValueError(
                f"`{field}` is {value!r} in this {family} configuration, and the network of transformers that stands "
                f"in for it computes {native!r}: use a checkpoint of the published form, or pass a model loaded with "
                "its own code."
            )


@dataclass(kw_only=True)
class _BothWays:
    """Fields of a network of transformers that was trained to look both ways."""

    is_causal: bool = False
    use_cache: bool = False
    mask_token_id: int | None = None


class LLaDAConfig(LlamaConfig):
    """
    Configuration of LLaDA-8B, LLaDA-1.5 and Lumina-DiMOO's LLaDA: LLaDA's own fields (`d_model`, `n_heads`, ...) or
    Llama's.

    Raises:
        ValueError: for a network that Llama does not compute (ALiBi, biases, another norm, ...), naming the field.

    Example:
        >>> config = LLaDAConfig(d_model=16, n_heads=2, n_layers=1, mlp_hidden_size=32, vocab_size=40, rope=True,
        ...                      block_type="llama", layer_norm_type="rms", activation_type="silu")
        >>> config.hidden_size, config.d_model, config.is_causal
        (16, 16, False)
    """

    model_type = "llada"
    attribute_map = dict(_LLADA_NAMES)

    def __init__(self, **values: Any) -> None:
        super().__init__(**{**_DIFFUSION, **(_read_llada(values) if "d_model" in values else values)})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers. LLaDA-MoE is published under LLaDA's `model_type`: its experts tell it apart."""
        if "num_experts" in config_dict:
            return LLaDAMoEConfig.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` holds: Llama's fields, or LLaDA's while the weights are saved under LLaDA's names."""
        values = super().to_diff_dict()
        return _write_llada(values) if published_names.get() else values


def _read_llada(values: dict[str, Any]) -> dict[str, Any]:
    values = dict(values)
    values.pop("model_type", None)
    _check_network("LLaDA", values, _LLADA_NETWORK, _LLADA_STATED)
    one_kv_head = values.pop("multi_query_attention", None)
    values = {_LLADA_NAMES.get(name, name): value for name, value in values.items()}
    if one_kv_head:
        values["num_key_value_heads"] = 1
    if values.get("intermediate_size") is None:
        values["intermediate_size"] = values.get("mlp_ratio", 4) * values["hidden_size"]
    # The embedding's rows, which are the logits' columns, may be more than the tokens.
    values["vocab_size"] = values.pop("embedding_size", None) or values["vocab_size"]
    values.setdefault("tie_word_embeddings", True)
    values.setdefault("rms_norm_eps", 1e-5)
    return values


def _write_llada(values: dict[str, Any]) -> dict[str, Any]:
    rope = values.pop("rope_parameters")
    if rope["rope_type"] != "default":
        raise ValueError(
            f"`rope_parameters` is {rope}, which LLaDA's own configuration cannot say: pass "
            "save_original_format=False to save in transformers' names."
        )
    for llama_only in ("attention_bias", "head_dim", "hidden_act", "is_causal", "mlp_bias", "pretraining_tp"):
        values.pop(llama_only, None)
    published = {native: name for name, native in _LLADA_NAMES.items()}
    values = {published.get(name, name): value for name, value in values.items()}
    return {**values, **_LLADA_NETWORK, "embedding_size": values["vocab_size"], "rope_theta": rope["rope_theta"]}


class ILLaDAConfig(_BothWays, LlamaConfig):
    """Configuration of iLLaDA-8B: a Llama in Llama's own words, with grouped key-value heads and a tied head."""

    model_type = "illada"

    def __post_init__(self, **values: Any) -> None:
        _check_network("iLLaDA", values, _ILLADA_NETWORK)
        super().__post_init__(**values)


class LLaDAMoEConfig(Qwen3MoeConfig):
    """Configuration of LLaDA-MoE: a Qwen3-MoE whose router does not renormalise the chosen experts' weights."""

    model_type = "lladamoe"

    def __init__(self, **values: Any) -> None:
        super().__init__(
            **{**_DIFFUSION, **(_read_llada_moe(values) if "expert_intermediate_size" in values else values)}
        )


def _read_llada_moe(values: dict[str, Any]) -> dict[str, Any]:
    values = {"moe_router_score_function": "softmax", "qk_layernorm": True, **values}
    values.pop("model_type", None)
    _check_network("LLaDA-MoE", values, _LLADA_MOE_NETWORK, ("qk_layernorm",))
    values["moe_intermediate_size"] = values.pop("expert_intermediate_size")
    dense = values.pop("dense_intermediate_size", None)
    values["intermediate_size"] = dense or values["moe_intermediate_size"]
    frequencies = values.pop("moe_layer_freq", None) or ()
    values["mlp_only_layers"] = [layer for layer, sparse in enumerate(frequencies) if not sparse]
    values["num_key_value_heads"] = values.get("num_key_value_heads") or values["num_attention_heads"]
    values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    values["norm_topk_prob"] = False  # whatever the file says, its own code never did
    return values


class LLaDA2MoeConfig(Glm4MoeConfig):
    """Configuration of LLaDA2.0 and 2.1: a GLM-4-MoE that sees its own block of 32 and everything before it."""

    model_type = "llada2_moe"

    def __init__(self, **values: Any) -> None:
        super().__init__(**{**_DIFFUSION, **(_read_llada2(values) if "num_experts" in values else values)})


def _read_llada2(values: dict[str, Any]) -> dict[str, Any]:
    values = {"score_function": "sigmoid", "use_qk_norm": True, "use_bias": True, **values}
    values.pop("model_type", None)
    _check_network("LLaDA2", values, _LLADA2_NETWORK)
    values["n_routed_experts"] = values.pop("num_experts")
    values["n_shared_experts"] = values.pop("num_shared_experts", 0)
    if not values["n_shared_experts"]:
        raise ValueError(
            "`num_shared_experts` is 0 in this LLaDA2 configuration, and GLM-4-MoE always has a shared expert: use a "
            "checkpoint of the published form, or pass a model that you loaded with its own code."
        )
    values["num_key_value_heads"] = values.get("num_key_value_heads") or values["num_attention_heads"]
    values["head_dim"] = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    values["norm_topk_prob"] = values["num_experts_per_tok"] > 1
    values["num_mtp_layers"] = 0
    return values


class DreamConfig(_BothWays, Qwen2Config):
    """Configuration of Dream and DiffuCoder: a Qwen2 whose output at position i predicts position i + 1."""

    model_type = "Dream"

    mask_token_id: int | None = 151666


class A2DQwen3Config(_BothWays, Qwen3Config):
    """Configuration of an A2D Qwen3: an autoregressive model trained on as a mask diffusion model."""

    model_type = "a2d-qwen3"


class A2DQwen2Config(_BothWays, Qwen2Config):
    """Configuration of an A2D Qwen2."""

    model_type = "a2d-qwen2"


class A2DLlamaConfig(_BothWays, LlamaConfig):
    """Configuration of an A2D Llama."""

    model_type = "a2d-llama"


CONFIGS: dict[str, type[PreTrainedConfig]] = {
    str(config.model_type): config
    for config in (
        LLaDAConfig,
        ILLaDAConfig,
        LLaDAMoEConfig,
        LLaDA2MoeConfig,
        DreamConfig,
        A2DQwen3Config,
        A2DQwen2Config,
        A2DLlamaConfig,
    )
}
"""Our configurations by `model_type`."""


class _SplitHeads(ConversionOps):
    """One fused projection to queries, keys and values: all heads of one kind lie together."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        (fused,) = input_dict.values()
        tensor: Tensor = fused[0] if isinstance(fused, list) else fused
        config = kwargs["config"].get_text_config()
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        # From the tensor itself, so that a quantised or narrower one splits as well.
        parts = tensor.split([tensor.shape[0] * count // sum(heads) for count in heads], dim=0)
        return {name: part.contiguous() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        return Concatenate(dim=0)


# Modules of one of LLaDA's blocks, and those around the blocks, by their names in Llama.
LLADA_BLOCK = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
LLADA_OUTER = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}


def _llada_conversions() -> list[Any]:
    block, layer = r"model\.transformer\.blocks\.(\d+)\.", r"model.layers.\1."
    return [
        *(WeightRenaming(rf"model\.transformer\.{name}\.", f"{native}.") for name, native in LLADA_OUTER.items()),
        *(WeightRenaming(rf"{block}{name}\.", f"{layer}{native}.") for name, native in LLADA_BLOCK.items()),
    ]


def _llada2_conversions() -> list[Any]:
    names = {
        r"model\.word_embeddings\.": "model.embed_tokens.",
        r"\.attention\.dense\.": ".self_attn.o_proj.",
        r"\.attention\.query_layernorm\.": ".self_attn.q_norm.",
        r"\.attention\.key_layernorm\.": ".self_attn.k_norm.",
        r"\.gate\.expert_bias": ".gate.e_score_correction_bias",
    }
    parts = [f"self_attn.{name}_proj.weight" for name in "qkv"]
    return [
        *(WeightRenaming(name, native) for name, native in names.items()),
        WeightConverter("attention.query_key_value.weight", parts, operations=[_SplitHeads()]),
        *get_checkpoint_conversion_mapping("glm4_moe"),
    ]


def register_conversions() -> None:
    """Teach transformers' loader the published names: shards, dtypes and device maps then work as for any model."""
    register_checkpoint_conversion_mapping("LLaDAModelLM", _llada_conversions(), overwrite=True)
    register_checkpoint_conversion_mapping("llada2_moe", _llada2_conversions(), overwrite=True)
    experts = get_checkpoint_conversion_mapping("qwen3_moe")
    register_checkpoint_conversion_mapping("lladamoe", experts, overwrite=True)
