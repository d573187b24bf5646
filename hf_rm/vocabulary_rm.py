# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The vocabulary really used: which rows of the embedding table have a token, which are reserved; and checked ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
MOST_RESERVED = 4096


def token_ids(name: str, value: Any, vocab_size: int, look: bool = True, nothing: int = 0) -> Tensor:
    """
    A caller's token ids as (batch, length) long.

    Args:
        name (`str`): of the argument.
        value: what was passed.
        vocab_size (`int`): rows of the embedding table.
        look (`bool`, defaults to `True`): at the values, for which an accelerator has to be waited for.
        nothing (`int`, defaults to 0): a value that stands for no id, and may be outside the vocabulary.

    Raises:
        ValueError: for another shape, for what is no integer (a bool is none), and for an id outside the vocabulary.
    """
    integers = isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())
    if not integers or value.dim() != 2 or value.dtype == torch.bool:
        raise ValueError(f"`{name}` is {described(value)}: pass a (batch, length) tensor of token ids, integers.")
    outside = value[((value < 0) | (value >= vocab_size)) & (value != nothing)] if look else value[:0]
    if outside.numel():
        raise ValueError(
            f"`{name}` holds {int(outside[0])}, outside the vocabulary of {vocab_size}: pass the ids of this model's "
            "own tokenizer."
        )
    return value.long()


def described(value: Any) -> str:
    """Dtype and shape of a tensor, the type's name of anything else: for error messages."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def find_tokenizer(name: str | None, **where: Any) -> Any:
    """The tokenizer that lies beside the weights `name` (a Hub name or a folder), or None where there is none."""
    if not name or (Path(name).is_dir() and not any((Path(name) / file).exists() for file in VOCABULARY_FILES)):
        return None
    try:
        if not Path(name).is_dir():  # without this file there is none, and transformers makes one up
            cached_file(name, "tokenizer_config.json", **{k: v for k, v in where.items() if k != "trust_remote_code"})
        tokenizer = AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **where})
    except OSError:
        return None
    except Exception as error:  # a damaged file raises nothing narrower, a foreign format anything
        logger.warning_once(
            f"The tokenizer of {name!r} cannot be read ({error}): which ids are reserved is not known."
        )
        return None
    # Where the file is not one that the class reads, what comes back knows its special tokens only.
    return tokenizer if set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) else None


def reserved_token_ids(tokenizer: Any, rows: int) -> list[int] | None:
    """
    Rows of the embedding table that no token of the tokenizer has: a reveal must not write them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): the vocabulary really used; None: nothing is known.
        rows (`int`): rows of the embedding table.

    Returns:
        `list[int]`, *optional*: the ids without a token, ascending. None when there is none, when nothing is known,
        and when there are more than 4,096: so many stand for something that a tokenizer does not spell (image codes).

    Raises:
        ValueError: for a tokenizer that has ids past the last row: it belongs to another model.

    Example:
        >>> from types import SimpleNamespace
        >>> reserved_token_ids(SimpleNamespace(get_vocab=lambda: {"a": 0, "b": 1, "[MASK]": 2}), 5)
        [3, 4]
    """
    used = set() if tokenizer is None else set(tokenizer.get_vocab().values())
    if not used:
        return None
    if max(used) >= rows:
        raise ValueError(
            f"the tokenizer has ids up to {max(used)}, but the embedding table has {rows} rows (ids to {rows - 1}): "
            "they disagree. Load the tokenizer of this checkpoint, or call "
            f"model.resize_token_embeddings({max(used) + 1}) before wrapping."
        )
    reserved = sorted(set(range(rows)) - used)
    return reserved if 0 < len(reserved) <= MOST_RESERVED else None


def tokenizer_beside(backbone: Any, where: dict[str, Any]) -> Any:
    """[`find_tokenizer`] of a loaded backbone; `where` holds the arguments that its `from_pretrained` had."""
    places = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")
    return find_tokenizer(backbone.name_or_path, **{key: where[key] for key in places if key in where})
