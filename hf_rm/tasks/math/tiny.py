# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""A tokenizer and a LLaDA network of about 1 M parameters for the word problems of `word_problems`."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ...families_rm import LLaDAModelLM
from ...llada import LLaDAConfig
from .word_problems import CANVAS_LENGTH, LARGEST, PROMPT_LENGTH, TOKEN, vocabulary

PAD, EOS, MASK, UNKNOWN = "<pad>", "<eos>", "<mask>", "<unk>"
MAX_LENGTH = PROMPT_LENGTH + CANVAS_LENGTH


def build_math_tokenizer() -> PreTrainedTokenizerFast:
    """
    Words, signs and the numbers 0 to 30 as single tokens; spaces are put back in decoding.

    A number is one token because the corpus has no other numbers: its arithmetic is a table that a small model can
    learn, a text is short, and a slip is a wrong number rather than a broken one.

    Example:
        >>> tokenizer = build_math_tokenizer()
        >>> text = "Anna has 12 pens. How many are left?\\n12 - 5 = 7\\n#### 7"
        >>> ids = tokenizer(text)["input_ids"]
        >>> len(ids), tokenizer.decode(ids) == text
        (19, True)
    """
    numbers = [str(number) for number in range(LARGEST + 1)]
    entries = [PAD, EOS, MASK, UNKNOWN, *numbers, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN.pattern), behavior="removed", invert=True)
    # One space between two tokens, and none beside a newline or before a sign of punctuation.
    tight = [(" \n", "\n"), ("\n ", "\n"), (" .", "."), (" ?", "?")]
    joined = [decoders.WordPiece(prefix="\0", cleanup=False), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*joined, *(decoders.Replace(a, b) for a, b in tight)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        mask_token=MASK,
        unk_token=UNKNOWN,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_tiny_math_model(
    seed: int = 0,
    hidden_size: int = 128,
    intermediate_size: int = 384,
    num_layers: int = 4,
    num_heads: int = 4,
    attn_implementation: str = "eager",
) -> LLaDAModelLM:
    """
    A freshly initialised LLaDA, a Llama that looks both ways, for [`build_math_tokenizer`].

    Args:
        seed (`int`, defaults to 0): of the initialisation; the global random state is left as it was.
        hidden_size, intermediate_size, num_layers, num_heads (`int`): of the network.
        attn_implementation (`str`): on a CPU `"eager"` trains faster than `"sdpa"` at this size.

    Example:
        >>> build_tiny_math_model().num_parameters() <= 1_500_000
        True
    """
    tokenizer = build_math_tokenizer()
    config = LLaDAConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=2 * MAX_LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        attn_implementation=attn_implementation,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LLaDAModelLM(config)
