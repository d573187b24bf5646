"""
The published networks written out in plain torch, from their arithmetic: what native backbones are compared with.

Nothing here uses transformers or hf_rm. Shapes: B rows, N positions, h heads, w width of a head.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    """x W^T (+ b)."""
    y = x @ weights[name + ".weight"].T
    return y + weights[name + ".bias"] if name + ".bias" in weights else y


def swiglu(x: Tensor, weights: Weights, gate: str, up: str, down: str) -> Tensor:
    inner = linear(x, weights, gate)
    return linear(inner * torch.sigmoid(inner) * linear(x, weights, up), weights, down)


def rotate(x: Tensor, positions: Tensor, theta: float, rotated: int | None = None) -> Tensor:
    """RoPE on the first `rotated` dimensions of (B, h, N, w): dimension j turns with j + rotated / 2."""
    rotated = rotated or x.shape[-1]
    half = rotated // 2
    angles = positions[:, None, :, None] * theta ** (-torch.arange(half, dtype=torch.float64) * 2 / rotated)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second, rest = x[..., :half], x[..., half:rotated], x[..., rotated:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def heads(x: Tensor, width: int) -> Tensor:
    """(B, N, h w) to (B, h, N, w)."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention of (B, h, N, w) over what `allowed`, (B, N, N) bool, says; (B, N, h w)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    probabilities = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
    return (probabilities.nan_to_num() @ v).transpose(1, 2).flatten(-2)


def look_at_real(mask: Tensor) -> Tensor:
    """(B, N, N): everybody sees every position that is not padding."""
    return mask.bool()[:, None, :].expand(-1, mask.shape[1], -1)


def llada(weights: Weights, ids: Tensor, mask: Tensor, n_heads: int, layers: int, theta: float, eps: float) -> Tensor:
    """LLaDA's logits from weights in LLaDA's names; positions count from the left edge, padding included."""
    prefix = "model.transformer."
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    table = weights[prefix + "wte.weight"]
    x, width = table[ids], table.shape[1] // n_heads
    for i in range(layers):
        block = f"{prefix}blocks.{i}."
        y = rms_norm(x, weights[block + "attn_norm.weight"], eps)
        q, k, v = (heads(linear(y, weights, f"{block}{name}_proj"), width) for name in "qkv")
        q, k = rotate(q, positions, theta), rotate(k, positions, theta)
        x = x + linear(attend(q, k, v, look_at_real(mask)), weights, block + "attn_out")
        y = rms_norm(x, weights[block + "ff_norm.weight"], eps)
        x = x + swiglu(y, weights, block + "ff_proj", block + "up_proj", block + "ff_out")
    x = rms_norm(x, weights[prefix + "ln_f.weight"], eps)
    return x @ weights.get(prefix + "ff_out.weight", table).T


def decoder(
    weights: Weights,
    ids: Tensor,
    allowed: Tensor,
    positions: Tensor,
    width: int,
    layers: int,
    theta: float,
    eps: float,
    feed_forward: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Logits of a network in Llama's names; with biases and query-key norms where there are weights."""

    def swiglu_layer(y: Tensor, i: int) -> Tensor:
        mlp = f"model.layers.{i}.mlp."
        return swiglu(y, weights, mlp + "gate_proj", mlp + "up_proj", mlp + "down_proj")

    feed_forward = feed_forward or swiglu_layer
    table = weights["model.embed_tokens.weight"]
    x = table[ids]
    for i in range(layers):
        layer = f"model.layers.{i}."
        y = rms_norm(x, weights[layer + "input_layernorm.weight"], eps)
        q, k, v = (heads(linear(y, weights, f"{layer}self_attn.{name}_proj"), width) for name in "qkv")
        if layer + "self_attn.q_norm.weight" in weights:
            q = rms_norm(q, weights[layer + "self_attn.q_norm.weight"], eps)
            k = rms_norm(k, weights[layer + "self_attn.k_norm.weight"], eps)
        q, k = rotate(q, positions, theta), rotate(k, positions, theta)
        x = x + linear(attend(q, k, v, allowed), weights, layer + "self_attn.o_proj")
        x = x + feed_forward(rms_norm(x, weights[layer + "post_attention_layernorm.weight"], eps), i)
    x = rms_norm(x, weights["model.norm.weight"], eps)
    return x @ weights.get("lm_head.weight", table).T


def softmax_experts(weights: Weights, y: Tensor, mlp: str, top: int) -> Tensor:
    """LLaDA-MoE: the `top` most probable experts of a softmax over all, weighted by their probability as it is."""
    probabilities = linear(y, weights, mlp + "gate").softmax(-1)
    out = torch.zeros_like(y)
    for b, n in torch.cartesian_prod(torch.arange(y.shape[0]), torch.arange(y.shape[1])).tolist():
        for expert in probabilities[b, n].argsort(descending=True)[:top].tolist():
            out[b, n] += probabilities[b, n, expert] * _expert(weights, y[b, n], f"{mlp}experts.{expert}.")
    return out


def grouped_experts(
    weights: Weights, y: Tensor, mlp: str, top: int, groups: int, top_groups: int, scale: float
) -> Tensor:
    """
    LLaDA2: sigmoid scores; a bias joins them for the choice alone. The best groups (by the sum of their two best
    biased scores) are open, the best experts in them are chosen, their unbiased scores are normalised and scaled; and
    every token passes through the shared expert.
    """
    scores = torch.sigmoid(linear(y, weights, mlp + "gate"))
    biased = scores + weights[mlp + "gate.expert_bias"]
    out = torch.zeros_like(y)
    for b, n in torch.cartesian_prod(torch.arange(y.shape[0]), torch.arange(y.shape[1])).tolist():
        members = biased[b, n].unflatten(0, (groups, -1))
        best = members.sort(descending=True).values[:, :2].sum(-1).argsort(descending=True)[:top_groups]
        open_ = torch.zeros_like(members, dtype=torch.bool)
        open_[best] = True
        chosen = biased[b, n].masked_fill(~open_.flatten(), -torch.inf).argsort(descending=True)[:top]
        shares = scores[b, n, chosen] / scores[b, n, chosen].sum() * scale
        for share, expert in zip(shares, chosen.tolist(), strict=True):
            out[b, n] += share * _expert(weights, y[b, n], f"{mlp}experts.{expert}.")
    return out + _expert(weights, y, mlp + "shared_experts.")


def _expert(weights: Weights, y: Tensor, prefix: str) -> Tensor:
    return swiglu(y, weights, prefix + "gate_proj", prefix + "up_proj", prefix + "down_proj")


def llada2(
    weights: Weights,
    ids: Tensor,
    allowed: Tensor,
    positions: Tensor,
    n_heads: int,
    kv_heads: int,
    width: int,
    layers: int,
    dense_layers: int,
    theta: float,
    eps: float,
    rotated: int,
    **routing: float,
) -> Tensor:
    """LLaDA2's logits from weights in LLaDA2's names."""
    x = weights["model.word_embeddings.weight"][ids]
    for i in range(layers):
        layer = f"model.layers.{i}."
        y = rms_norm(x, weights[layer + "input_layernorm.weight"], eps)
        fused = heads(linear(y, weights, layer + "attention.query_key_value"), width)
        q, k, v = fused.split([n_heads, kv_heads, kv_heads], dim=1)
        q = rotate(rms_norm(q, weights[layer + "attention.query_layernorm.weight"], eps), positions, theta, rotated)
        k = rotate(rms_norm(k, weights[layer + "attention.key_layernorm.weight"], eps), positions, theta, rotated)
        x = x + linear(attend(q, k, v, allowed), weights, layer + "attention.dense")
        y = rms_norm(x, weights[layer + "post_attention_layernorm.weight"], eps)
        dense = i < dense_layers
        x = x + (
            _expert(weights, y, layer + "mlp.") if dense else grouped_experts(weights, y, layer + "mlp.", **routing)
        )
    return linear(rms_norm(x, weights["model.norm.weight"], eps), weights, "lm_head")
