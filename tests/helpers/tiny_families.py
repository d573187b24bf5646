"""
Tiny random checkpoints of every family, in the published naming: the keys and the config.json that a user finds on the
Hub. Plain tensors and dicts: nothing here goes through the code under test.

`write("llada", folder)` writes one; `FAMILIES_UNDER_TEST` says what must be true of it once it is loaded.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

VOCABULARY, WIDTH, LAYERS, HEADS, HEAD_WIDTH = 40, 16, 2, 4, 4
MASK, EOS = 37, 36

Weights = dict[str, Tensor]


class _Weights(dict[str, Tensor]):
    """A state dict under construction, from one generator."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, name: str, *shape: int, std: float = 0.3) -> None:
        self[name] = torch.randn(shape, generator=self.generator) * std

    def norm(self, name: str, width: int) -> None:
        """A normalisation's weight: around 1, so that a forgotten one shows."""
        self[name] = 1 + 0.2 * torch.randn(width, generator=self.generator)


def _save(folder: Path, config: dict[str, Any], weights: Weights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def _llada_weights(kv_heads: int, tied: bool, vocabulary: int, seed: int) -> Weights:
    weights, inner = _Weights(seed), 24
    weights.normal("model.transformer.wte.weight", vocabulary, WIDTH)
    weights.norm("model.transformer.ln_f.weight", WIDTH)
    if not tied:
        weights.normal("model.transformer.ff_out.weight", vocabulary, WIDTH)
    for i in range(LAYERS):
        block = f"model.transformer.blocks.{i}."
        weights.norm(block + "attn_norm.weight", WIDTH)
        weights.normal(block + "q_proj.weight", HEADS * HEAD_WIDTH, WIDTH)
        weights.normal(block + "k_proj.weight", kv_heads * HEAD_WIDTH, WIDTH)
        weights.normal(block + "v_proj.weight", kv_heads * HEAD_WIDTH, WIDTH)
        weights.normal(block + "attn_out.weight", WIDTH, WIDTH)
        weights.norm(block + "ff_norm.weight", WIDTH)
        weights.normal(block + "ff_proj.weight", inner, WIDTH)
        weights.normal(block + "up_proj.weight", inner, WIDTH)
        weights.normal(block + "ff_out.weight", WIDTH, inner)
    return weights


def llada_config(**changes: Any) -> dict[str, Any]:
    """LLaDA's config.json, every field that says something about the network."""
    config = {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": WIDTH,
        "embedding_dropout": 0.0,
        "embedding_size": VOCABULARY,
        "eos_token_id": EOS,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": MASK,
        "max_sequence_length": 128,
        "mlp_hidden_size": 24,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "n_layers": LAYERS,
        "pad_token_id": EOS,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": VOCABULARY,
        "weight_tying": False,
    }
    return {**config, **changes}


def write_llada(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """LLaDA-8B and LLaDA-1.5: as many key-value heads as heads, an untied head."""
    config = llada_config(**changes)
    weights = _llada_weights(config["n_kv_heads"] or HEADS, config["weight_tying"], config["embedding_size"], seed)
    return _save(folder, config, weights)


def write_llada_grouped(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """LLaDA's own naming with grouped key-value heads and a tied head."""
    return write_llada(folder, seed, **{"n_kv_heads": 2, "weight_tying": True, **changes})


def write_lumina(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Lumina-DiMOO's LLaDA: the same network and model type under another class name."""
    architectures = ["LLaDAForMultiModalGeneration"]
    return write_llada(folder, seed, **{"architectures": architectures, **changes})


def _decoder_weights(seed: int, bias: bool, qk_norm: bool, kv_heads: int, mlp: bool, tied: bool = False) -> _Weights:
    """A network in Llama's own naming (Qwen2, Qwen3, Dream), without its feed-forward layers where `mlp` is False."""
    weights = _Weights(seed)
    weights.normal("model.embed_tokens.weight", VOCABULARY, WIDTH)
    weights.norm("model.norm.weight", WIDTH)
    if not tied:
        weights.normal("lm_head.weight", VOCABULARY, WIDTH)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        weights.norm(layer + "input_layernorm.weight", WIDTH)
        weights.norm(layer + "post_attention_layernorm.weight", WIDTH)
        for name, heads in (("q", HEADS), ("k", kv_heads), ("v", kv_heads)):
            weights.normal(layer + f"self_attn.{name}_proj.weight", heads * HEAD_WIDTH, WIDTH)
            if bias:
                weights.normal(layer + f"self_attn.{name}_proj.bias", heads * HEAD_WIDTH)
            if qk_norm and name != "v":
                weights.norm(layer + f"self_attn.{name}_norm.weight", HEAD_WIDTH)
        weights.normal(layer + "self_attn.o_proj.weight", WIDTH, HEADS * HEAD_WIDTH)
        if mlp:
            _mlp(weights, layer + "mlp.", 24)
    return weights


def _mlp(weights: _Weights, prefix: str, inner: int) -> None:
    weights.normal(prefix + "gate_proj.weight", inner, WIDTH)
    weights.normal(prefix + "up_proj.weight", inner, WIDTH)
    weights.normal(prefix + "down_proj.weight", WIDTH, inner)


def write_illada(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """iLLaDA: Llama's naming, grouped key-value heads, a tied head that is stored all the same."""
    config = {
        "architectures": ["ILLaDAForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_illada.ILLaDAConfig",
            "AutoModel": "modeling_illada.ILLaDAForCausalLM",
            "AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM",
        },
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 24,
        "layer_norm_eps": None,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "illada",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "pad_token_id": 1,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
        **changes,
    }
    weights = _decoder_weights(seed, bias=False, qk_norm=False, kv_heads=2, mlp=True, tied=True)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    return _save(folder, config, weights)


def write_llada_moe(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """LLaDA-MoE: softmax router over 4 experts, the best 2 of them unnormalised; its model type is LLaDA's own."""
    config = {
        "architectures": ["LLaDAMoEModelLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_lladamoe.LLaDAConfig",
            "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM",
            "AutoModelForCausalLM": "modeling_lladamoe.LLaDAMoEModelLM",
        },
        "clip_qkv": None,
        "dense_intermediate_size": 48,
        "eos_token_id": EOS,
        "expert_intermediate_size": 12,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "max_position_embeddings": 128,
        "model_type": "llada",
        "moe_layer_freq": [1] * LAYERS,
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_attention_heads": HEADS,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "output_router_logits": False,
        "pad_token_id": EOS,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 50000,
        "routed_scaling_factor": 1,
        "router_aux_loss_coef": 0.01,
        "router_num_group": None,
        "router_topk_group": None,
        "shared_expert_intermediate_size": None,
        "tie_word_embeddings": False,
        "use_cache": False,
        "vocab_size": VOCABULARY,
        **changes,
    }
    weights = _decoder_weights(seed, bias=False, qk_norm=True, kv_heads=HEADS, mlp=False)
    for i in range(LAYERS):
        weights.normal(f"model.layers.{i}.mlp.gate.weight", 4, WIDTH)
        for expert in range(4):
            _mlp(weights, f"model.layers.{i}.mlp.experts.{expert}.", 12)
    return _save(folder, config, weights)


def write_llada2(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """LLaDA2.0 and 2.1: a dense first layer, then a group-limited sigmoid router over 8 experts and a shared one.

    Its heads together are wider than the network, and turn by half of their width.
    """
    config = {
        "architectures": ["LLaDA2MoeModelLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
            "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
            "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
        },
        "embedding_dropout": 0.0,
        "first_k_dense_replace": 1,
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 24,
        "max_position_embeddings": 128,
        "max_window_layers": 20,
        "model_type": "llada2_moe",
        "moe_intermediate_size": 12,
        "moe_router_enable_expert_bias": True,
        "n_group": 4,
        "norm_head": False,
        "norm_topk_prob": True,
        "num_attention_heads": HEADS,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "num_shared_experts": 1,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "pad_token_id": EOS,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 600000,
        "routed_scaling_factor": 2.5,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "topk_group": 2,
        "use_bias": False,
        "use_cache": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
        **changes,
    }
    weights = _Weights(seed)
    weights.normal("model.word_embeddings.weight", VOCABULARY, WIDTH)
    weights.norm("model.norm.weight", WIDTH)
    weights.normal("lm_head.weight", VOCABULARY, WIDTH)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        weights.norm(layer + "input_layernorm.weight", WIDTH)
        weights.norm(layer + "post_attention_layernorm.weight", WIDTH)
        weights.normal(layer + "attention.query_key_value.weight", (HEADS + 2 * 2) * 8, WIDTH)
        weights.norm(layer + "attention.query_layernorm.weight", 8)
        weights.norm(layer + "attention.key_layernorm.weight", 8)
        weights.normal(layer + "attention.dense.weight", WIDTH, HEADS * 8)
        if i < 1:
            _mlp(weights, layer + "mlp.", 24)
            continue
        weights.normal(layer + "mlp.gate.weight", 8, WIDTH)
        weights.normal(layer + "mlp.gate.expert_bias", 8)
        for expert in range(8):
            _mlp(weights, layer + f"mlp.experts.{expert}.", 12)
        _mlp(weights, layer + "mlp.shared_experts.", 12)
    return _save(folder, config, weights)


def write_dream(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Dream and DiffuCoder: Qwen2 with biases at q, k and v; position i predicts i + 1."""
    config = {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_dream.DreamConfig",
            "AutoModel": "modeling_dream.DreamModel",
        },
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 24,
        "mask_token_id": MASK,
        "max_position_embeddings": 128,
        "max_window_layers": 28,
        "model_type": "Dream",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "pad_token_id": EOS,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
        **changes,
    }
    return _save(folder, config, _decoder_weights(seed, bias=True, qk_norm=False, kv_heads=2, mlp=True))


def write_a2d_qwen3(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Qwen3 made bidirectional (A2D), with a tied head."""
    config = {
        "architectures": ["A2DQwen3LMHeadModel"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "modeling_qwen3.A2DQwen3Config",
            "AutoModel": "modeling_qwen3.A2DQwen3LMHeadModel",
            "AutoModelForMaskedLM": "modeling_qwen3.A2DQwen3LMHeadModel",
        },
        "eos_token_id": EOS,
        "head_dim": HEAD_WIDTH,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 24,
        "layer_types": ["full_attention"] * LAYERS,
        "max_position_embeddings": 128,
        "max_window_layers": 28,
        "model_type": "a2d-qwen3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
        **changes,
    }
    weights = _decoder_weights(seed, bias=False, qk_norm=True, kv_heads=2, mlp=True, tied=True)
    return _save(folder, config, weights)


def _write_native(model: PreTrainedModel, folder: Path) -> Path:
    model.eval().save_pretrained(folder)
    return folder


def write_bert(folder: Path, seed: int = 0, **changes: Any) -> Path:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        initializer_range=0.3,
        **changes,
    )
    return _write_native(BertForMaskedLM(config), folder)


def write_modernbert(folder: Path, seed: int = 0, **changes: Any) -> Path:
    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        local_attention=8,
        global_attn_every_n_layers=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        **changes,
    )
    return _write_native(ModernBertForMaskedLM(config), folder)


def write_albert(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """ALBERT: one layer used twice, an embedding (8) narrower than the network (16)."""
    torch.manual_seed(seed)
    config = AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=8,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=128,
        initializer_range=0.3,
        **changes,
    )
    return _write_native(AlbertForMaskedLM(config), folder)


@dataclass(frozen=True)
class TinyFamily:
    """
    A family under test.

    `write(folder, seed=0, **config changes)` puts a checkpoint there; the rest is what must hold once it is loaded.
    `mask_token_id` is to be passed where the tiny vocabulary has no room for the family's own (None: the config says).
    """

    write: Callable[..., Path]
    model_class: str
    tied: bool
    mask_token_id: int | None = MASK
    logits_shift: bool = False
    attention_block_length: int | None = None
    embedding_width: int = WIDTH


FAMILIES_UNDER_TEST: dict[str, TinyFamily] = {
    "llada": TinyFamily(write_llada, "LLaDAModelLM", tied=False, mask_token_id=None),
    "llada_grouped": TinyFamily(write_llada_grouped, "LLaDAModelLM", tied=True, mask_token_id=None),
    "illada": TinyFamily(write_illada, "ILLaDAForCausalLM", tied=True, mask_token_id=5),
    "lumina": TinyFamily(write_lumina, "LLaDAModelLM", tied=False, mask_token_id=None),
    "llada_moe": TinyFamily(write_llada_moe, "Qwen3MoeForCausalLM", tied=False),
    "llada2": TinyFamily(write_llada2, "Glm4MoeForCausalLM", tied=False, attention_block_length=32),
    "dream": TinyFamily(write_dream, "Qwen2ForCausalLM", tied=False, mask_token_id=None, logits_shift=True),
    "a2d_qwen3": TinyFamily(write_a2d_qwen3, "Qwen3ForCausalLM", tied=True),
    "bert": TinyFamily(write_bert, "BertForMaskedLM", tied=True),
    "modernbert": TinyFamily(write_modernbert, "ModernBertForMaskedLM", tied=True),
    "albert": TinyFamily(write_albert, "AlbertForMaskedLM", tied=True, embedding_width=8),
}


def write(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """The family's checkpoint in `folder`."""
    return FAMILIES_UNDER_TEST[name].write(folder, seed, **changes)
