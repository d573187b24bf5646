# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""A causal language model made into a mask diffusion backbone: bidirectional attention and a mask token."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..modes import evaluating

MASK_TOKEN = "<|mask|>"
_SPARE = re.compile(r"[<\[].*(reserved|unused).*[>\]]", re.IGNORECASE)
_FULL_ATTENTION = "full_attention"


def from_autoregressive(
    model: str | PreTrainedModel,
    tokenizer: Any = None,
    mask_token: str | int | None = None,
    *,
    gguf_file: str | None = None,
    **model_kwargs: Any,
) -> tuple[PreTrainedModel, Any]:
    """
    Turn a causal language model into a bidirectional one with a mask token, ready for masked-diffusion fine-tuning.

    1. The configuration gets `is_causal=False`, which transformers' attention masks follow, also after a reload.
    2. The mask token is, in this order: `mask_token`; the tokenizer's own; a reserved token of the tokenizer; a row of
       the embedding table that no token has; a new row. Its embedding and its head row become the mean of the others.
    3. A tokenizer without a padding token pads with its end-of-text token.

    The weights still are those of a model that never saw what follows: train it (`MaskedSFTTrainer`, then `RMTrainer`)
    before expecting text. Its logits are not shifted: position i learns to predict its own token.

    Args:
        model (`str` or `PreTrainedModel`): a Hub name, a folder, or a loaded causal model (it is changed in place).
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default the one beside a model given by name.
        mask_token (`str` or `int`, *optional*): the token to use; a string that the tokenizer lacks is added to it.
        gguf_file (`str`, *optional*): a GGUF file in the repository or folder, passed on to transformers.
        model_kwargs: passed to the model's `from_pretrained` (dtype, device_map, revision, ...).

    Returns:
        `tuple`: the model and the tokenizer (None where there is none), for `RMForMaskedDiffusion.from_backbone`.

    Raises:
        ValueError: for a network whose attention cannot be made bidirectional (sliding windows, recurrent layers,
            encoder-decoders), and for a mask token that cannot be one.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=32,
        ...                                      num_hidden_layers=1, num_attention_heads=2))
        >>> diffusion, _ = from_autoregressive(llama)
        >>> diffusion.config.is_causal, diffusion.config.mask_token_id, diffusion.config.vocab_size
        (False, 20, 21)
    """
    if isinstance(model, str):
        where = {key: model_kwargs[key] for key in ("revision", "token", "cache_dir") if key in model_kwargs}
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(model, gguf_file=gguf_file, **where)
        if gguf_file is not None and hasattr(transformers, "GgufConfig"):
            # Left packed, as newer versions do by default, the weights could neither be trained nor saved.
            model_kwargs.setdefault("quantization_config", transformers.GgufConfig(dequantize=True))
        model = AutoModelForCausalLM.from_pretrained(model, gguf_file=gguf_file, **model_kwargs)
    elif gguf_file is not None or model_kwargs:
        given = sorted([*model_kwargs, *(["gguf_file"] if gguf_file else [])])
        raise ValueError(f"{', '.join(map(repr, given))} only mean something for a model given by name.")
    _check_architecture(model)
    config = model.config.get_text_config()
    config.is_causal = False
    config.use_cache = False  # keys and values of a position change with every other token
    _check_bidirectional(model)
    mask_token_id = _give_mask_token(model, tokenizer, mask_token)
    model.config.mask_token_id = mask_token_id
    if tokenizer is not None:
        _give_padding(model, tokenizer)
    return model, tokenizer


def _check_architecture(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    name = type(model).__name__
    remedy = "Pass a decoder with full attention in every layer, such as a Llama, a Qwen2 / Qwen3 or a SmolLM2."
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder, which has no single stack to make bidirectional. {remedy}")
    if model.get_output_embeddings() is None:
        raise ValueError(f"{name} has no language-model head: load it with AutoModelForCausalLM. {remedy}")
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"{name} is recurrent: a state that runs forward cannot read what follows. {remedy}")
    kinds = set(getattr(config, "layer_types", None) or ()) - {_FULL_ATTENTION}
    window = getattr(config, "sliding_window", None) if getattr(config, "layer_types", None) is None else None
    if kinds or window is not None:
        what = ", ".join(sorted(kinds)) or f"sliding_window={window}"
        raise ValueError(
            f"{name} has layers that do not attend to everything ({what}): a bidirectional copy would not be the "
            f"network that was trained. {remedy}"
        )


@torch.no_grad()
def _check_bidirectional(model: PreTrainedModel) -> None:
    """Attention that does not follow `config.is_causal` (position biases, code of its own) is found by trying."""
    embedding = model.get_input_embeddings()
    if any(parameter.is_meta for parameter in embedding.parameters()):
        return
    with evaluating(model):
        ids = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 1]], device=model.device)
        first, second = model(input_ids=ids).logits[:, :2].float()
    if torch.allclose(first, second, rtol=1e-4, atol=1e-6):  # experts are batched anew: not equal to the bit
        raise ValueError(
            f"{type(model).__name__} stays causal with config.is_causal=False: its attention does not follow the "
            "setting. Pass a Llama, a Qwen2 / Qwen3 or a SmolLM2, or attn_implementation='sdpa'."
        )


def _give_mask_token(model: PreTrainedModel, tokenizer: Any, mask_token: str | int | None) -> int:
    rows = model.get_input_embeddings().weight.shape[0]
    if isinstance(mask_token, int):
        token_id = mask_token
    elif tokenizer is not None:
        token_id = _mask_token_of(tokenizer, mask_token)
    elif mask_token is None:
        token_id = rows
    else:
        raise ValueError(f"`mask_token` is {mask_token!r} without a tokenizer: pass the tokenizer, or the mask's id.")
    if isinstance(mask_token, int) and not 0 <= mask_token < rows:
        raise ValueError(
            f"`mask_token` is {mask_token}, outside the embedding's {rows} rows: pass an id from 0 to {rows - 1}, or "
            "None to have a row added."
        )
    if token_id >= rows:
        model.resize_token_embeddings(token_id + 1, mean_resizing=False)
    _take_mean(model, token_id, rows)
    return token_id


def _mask_token_of(tokenizer: Any, mask_token: str | None) -> int:
    """The id of the named token, of the tokenizer's mask token, of a reserved token, or of one that is added."""
    vocabulary = tokenizer.get_vocab()
    if mask_token is None:
        taken = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
        spare = [token for token in vocabulary if _SPARE.fullmatch(token) and token not in taken]
        mask_token = tokenizer.mask_token or min(spare, key=vocabulary.__getitem__, default=MASK_TOKEN)
    tokenizer.add_special_tokens({"mask_token": mask_token})
    return tokenizer.convert_tokens_to_ids(mask_token)


@torch.no_grad()
def _take_mean(model: PreTrainedModel, token_id: int, rows: int) -> None:
    """The mask's rows become the mean of the first `rows`: a vector the network knows, and a middling logit."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding.weight] if head.weight is embedding.weight else [embedding.weight, head.weight]
    for values in (*tables, *([] if getattr(head, "bias", None) is None else [head.bias])):
        others = torch.cat((values[:token_id][:rows], values[token_id + 1 : rows]))
        values[token_id] = others.float().mean(0).to(values.dtype)


def _give_padding(model: PreTrainedModel, tokenizer: Any) -> None:
    """Padding is never attended to, so that the end-of-text token will do; the mask will not: it would be revealed."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == model.config.mask_token_id:
        if tokenizer.eos_token is None:
            raise ValueError(
                "the tokenizer has neither a padding token nor an end-of-text token: set tokenizer.pad_token to a "
                "token other than the mask."
            )
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
