# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""An untrained base for any text, made in a moment: to see every part of a recipe work where no weights are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..families_rm import LLaDAModelLM
from ..llada import LLaDAConfig

PAD, EOS, MASK = "<pad>", "<eos>", "<mask>"


def make_fresh_base(texts: Iterable[str], folder: str | Path, length: int = 1024, seed: int = 0) -> Path:
    """
    Save an untrained LLaDA of some 0.4 M parameters, and a byte-level tokenizer that is fitted on texts.

    Args:
        texts (iterable of `str`): what the tokenizer is fitted on.
        folder (`str` or `Path`): where to.
        length (`int`, defaults to 1024): of the longest text, in tokens.
        seed (`int`, defaults to 0): of the weights.

    Returns:
        `Path`: the folder.

    Example:
        >>> import tempfile
        >>> from transformers import AutoTokenizer
        >>> folder = make_fresh_base(["def f(x):\\n    return x"] * 9, tempfile.mkdtemp())
        >>> tokenizer = AutoTokenizer.from_pretrained(folder)
        >>> tokenizer.decode(tokenizer("def f(x):\\n")["input_ids"])
        'def f(x):\\n'
    """
    tokenizer = _fitted(texts, length)
    torch.manual_seed(seed)
    config = LLaDAConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        mask_token_id=tokenizer.mask_token_id,
    )
    tokenizer.save_pretrained(folder)
    LLaDAModelLM(config).save_pretrained(folder)  # last: a folder with weights is a finished one
    return Path(folder)


def _fitted(texts: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[PAD, EOS, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        mask_token=MASK,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )
