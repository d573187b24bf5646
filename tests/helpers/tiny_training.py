"""A tiny model and tiny data for the trainers."""

import numpy as np
import torch
from transformers import LlamaConfig

from hf_rm import RMConfig, RMForMaskedDiffusion


def tiny_model(seed: int = 0, **config) -> RMForMaskedDiffusion:
    torch.manual_seed(seed)
    backbone = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        is_causal=False,
        pad_token_id=None,
        architectures=["LlamaForCausalLM"],
    )
    return RMForMaskedDiffusion(RMConfig(text_config=backbone, mask_token_id=0, **config))


def tiny_rows(count: int = 64, length: int = 8, ragged: bool = False) -> list[dict]:
    """Random rows; ragged ones are from half as long to as long, and their first two positions are a prompt."""
    rng = np.random.default_rng(0)
    if not ragged:
        return [{"input_ids": rng.integers(1, 12, length), "idx": i} for i in range(count)]
    lengths = rng.integers(length // 2, length + 1, count)
    ids = (rng.integers(1, 12, n) for n in lengths)
    return [{"input_ids": row, "editable_mask": np.arange(len(row)) > 1, "idx": i} for i, row in enumerate(ids)]
