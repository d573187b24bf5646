# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Datasets as the collators want them: `input_ids`, `editable_mask` and a key for every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from ..corruption import UniformProposal


def collator_settings(model: PreTrainedModel, args: TrainingArguments, processing_class: Any = None) -> dict[str, Any]:
    """
    What every collator takes from a training: `mask_token_id`, `pad_token_id` and `seed`.

    Args:
        model (`PreTrainedModel`): its configuration names the mask.
        args (`TrainingArguments`): `data_seed`, or else `seed`.
        processing_class (*optional*): the tokenizer, which may have a padding token.

    Example:
        >>> from types import SimpleNamespace as Named
        >>> model, args = Named(config=Named(mask_token_id=9)), Named(seed=3, data_seed=None)
        >>> collator_settings(model, args)
        {'mask_token_id': 9, 'pad_token_id': 0, 'seed': 3}
    """
    return {
        "mask_token_id": model.config.mask_token_id,
        "pad_token_id": getattr(processing_class, "pad_token_id", None) or 0,
        "seed": args.seed if args.data_seed is None else args.data_seed,
    }


def uniform_proposal(model: PreTrainedModel) -> UniformProposal:
    """
    Wrong tokens from the whole vocabulary, but the mask and what the model never writes.

    Example:
        >>> from types import SimpleNamespace as Named
        >>> config = Named(vocab_size=5, mask_token_id=0, suppressed_token_ids=[4])
        >>> uniform_proposal(Named(config=config)).allowed
        array([1, 2, 3])
    """
    config = model.config
    return UniformProposal(config.vocab_size, excluded=[config.mask_token_id, *(config.suppressed_token_ids or ())])


class RowDataset(Dataset):
    """
    A map-style view of a dataset: rows become `input_ids`, `idx` and, where only a part may change, `editable_mask`.

    Rows may hold `prompt` and `completion` (texts or lists of messages), `messages` (the last one is the completion),
    or `input_ids` with an optional `editable_mask`. `idx` defaults to the row's number.

    Args:
        rows (sequence of dicts, a `datasets.Dataset` among them): the data.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): needed for texts.
        max_length (`int`, *optional*): longest sample.
        vocab_size (`int`, *optional*): of the model: greater ids than it has are refused.

    Raises:
        ValueError: for a dataset without length, an empty one, unknown columns, texts without a tokenizer; and when
            the row is read (the first one's ids at once) for a sample longer than `max_length` and for ids outside the
            vocabulary.
    """

    def __init__(
        self, rows: Any, tokenizer: Any = None, max_length: int | None = None, vocab_size: int | None = None
    ) -> None:
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise ValueError(
                f"`train_dataset` is a {type(rows).__name__}: pass a map-style dataset, one with a length."
            )
        if len(rows) == 0:
            raise ValueError("`train_dataset` is empty: pass at least one row.")
        self.rows = rows
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self._check(rows[0])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        sample = {"idx": row.get("idx", index)}
        if "input_ids" in row:
            sample.update({key: row[key] for key in ("input_ids", "editable_mask") if key in row})
        else:
            sample.update(self._tokenize(*_prompt_and_completion(row)))
        if self.max_length is not None and len(sample["input_ids"]) > self.max_length:
            raise ValueError(
                f"row {sample['idx']!r} has {len(sample['input_ids'])} tokens, more than max_length={self.max_length}"
                ": drop it or raise max_length."
            )
        self._check_ids(sample["idx"], sample["input_ids"])
        return sample

    def _check_ids(self, idx: int | str, input_ids: Any) -> None:
        ids = np.asarray(input_ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"row {idx!r} has `input_ids` of {ids.dtype} {ids.shape}: pass one list of token ids.")
        outside = ids[(ids < 0) | (ids >= (np.inf if self.vocab_size is None else self.vocab_size))]
        if outside.size:
            raise ValueError(
                f"row {idx!r} has the id {outside[0]}, outside the model's vocabulary of {self.vocab_size}: tokenise "
                "with the model's own tokenizer, or call resize_token_embeddings."
            )

    def _check(self, row: dict[str, Any]) -> None:
        if "input_ids" in row:
            self._check_ids(row.get("idx", 0), row["input_ids"])
            return
        if not ("messages" in row or {"prompt", "completion"} <= set(row)):
            raise ValueError(
                f"`train_dataset` has the columns {sorted(row)}: pass `prompt` and `completion`, `messages`, or "
                "`input_ids`."
            )
        if self.tokenizer is None:
            raise ValueError("`train_dataset` holds texts: pass the tokenizer as `processing_class`.")

    def _tokenize(self, prompt: Any, completion: Any) -> dict[str, list]:
        if isinstance(prompt, str):
            prompt_ids = self.tokenizer(prompt)["input_ids"]
            completion_ids = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
            ids = [*prompt_ids, *completion_ids]
        else:
            prompt_ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            ids = self.tokenizer.apply_chat_template([*prompt, *completion], return_dict=False)
            if ids[: len(prompt_ids)] != prompt_ids:
                raise ValueError(
                    "the chat template renders the prompt differently once the completion follows: pass `prompt` and "
                    "`completion` as texts."
                )
        return {"input_ids": ids, "editable_mask": [i >= len(prompt_ids) for i in range(len(ids))]}


def _prompt_and_completion(row: dict[str, Any]) -> tuple[Any, Any]:
    if "messages" in row:
        messages: Sequence[Any] = row["messages"]
        return list(messages[:-1]), list(messages[-1:])
    return row["prompt"], row["completion"]
