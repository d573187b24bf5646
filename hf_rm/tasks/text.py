# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Prompts with completions: what math, code and multiple choice share, and their rows for the trainers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TextSample:
    """One problem as a model sees it.

    Attributes:
        key: Its identifier within the task; random draws of training and decoding depend on it.
        prompt: The text before the completion, up to and with its last character (a newline, a space).
        completion: The reference completion; empty where the data has answers only (evaluation alone).
        answer: What grading needs, such as the final number; empty where the task keeps that elsewhere.
        group: What results are split by: a subject, a grade, the number of operations.

    Example:
        >>> TextSample("1", "2 + 3 = ?\\n", "2 + 3 = 5\\n#### 5", "5").group
        ''
    """

    key: str
    prompt: str
    completion: str = ""
    answer: str = ""
    group: str = ""


@dataclass(frozen=True)
class EncodedSamples:
    """Rows for the trainers, and what was left out.

    Attributes:
        rows: `input_ids`, `editable_mask` and `idx` each, as [`RMDataCollator`] takes them.
        too_long: Keys of the samples that do not fit; none is ever cut.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)


def encode_samples(
    samples: Iterable[TextSample],
    tokenizer: Any,
    max_length: int,
    completion_length: int | None = None,
    tail: Literal["fill", "one"] = "fill",
) -> EncodedSamples:
    """Tokenize samples for training: the prompt as it is, the completion editable, end tokens behind it.

    Completion and prompt are tokenized apart, as in decoding, where the completion is a canvas of masks: a token never
    spans both.

    Args:
        samples: With completions.
        tokenizer: It needs an end token.
        max_length: Tokens a row may have, its tail included.
        completion_length: Length of the canvas that decoding uses. A completion has to fit with one end token.
        tail: ``"fill"`` fills the canvas with end tokens, all of them learnt, so that the model can end a text
            anywhere in a canvas of that length (LLaDA's way); ``"one"`` puts one end token behind the completion, for
            block-wise decoding that stops there.

    Returns:
        [`EncodedSamples`]; samples that are too long are left out whole, and named.

    Raises:
        ValueError: For a tokenizer without an end token, ``tail="fill"`` without `completion_length`, an empty
            completion, or when nothing is left.

    Example:
        >>> encoded = encode_samples([TextSample("1", "1 + 1 =", " 2")], tokenizer, 16, 4)  # doctest: +SKIP
        >>> encoded.rows[0]["editable_mask"]  # doctest: +SKIP
        [False, False, False, True, True, True, True]
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("`tokenizer` has no end token: set `tokenizer.eos_token`.")
    if tail not in ("fill", "one"):
        raise ValueError(f"`tail` is {tail!r}: pass 'fill' or 'one'.")
    if tail == "fill" and completion_length is None:
        raise ValueError(
            "`completion_length` is None: tail='fill' needs the length of the canvas, or pass tail='one'."
        )
    encoded = EncodedSamples()
    for sample in samples:
        if not sample.completion.strip():
            raise ValueError(f"sample {sample.key!r} has an empty completion: nothing can be learnt from it.")
        prompt = prompt_ids(sample, tokenizer)
        completion = [*tokenizer(sample.completion, add_special_tokens=False)["input_ids"], end]
        fits = completion_length is None or len(completion) <= completion_length
        if tail == "fill" and completion_length is not None:
            completion += [end] * (completion_length - len(completion))
        if not fits or len(prompt) + len(completion) > max_length:
            encoded.too_long.append(sample.key)
            continue
        editable = [False] * len(prompt) + [True] * len(completion)
        encoded.rows.append({"input_ids": [*prompt, *completion], "editable_mask": editable, "idx": sample.key})
    if not encoded.rows:
        raise ValueError(
            f"none of {len(encoded.too_long)} samples fits into max_length={max_length} and "
            f"completion_length={completion_length}: raise them."
        )
    return encoded


def joined_samples(samples: Iterable[TextSample], held_out: Collection[str]) -> tuple[list[TextSample], str]:
    """Samples of several sources, once each and without what is held out, and how many that left.

    Args:
        samples: Of two with the same key the first stays.
        held_out: Keys.

    Example:
        >>> one, other = TextSample("1", "1 + 1 ="), TextSample("2", "1 + 2 =")
        >>> joined_samples([one, other, other], {"1"})[1]
        'of 3 training samples 1 stay: 1 are there twice, 1 held out by a test'
    """
    every, once = 0, dict[str, TextSample]()
    for sample in samples:
        every += 1
        once.setdefault(sample.key, sample)
    kept = [sample for key, sample in once.items() if key not in held_out]
    twice, dropped = every - len(once), len(once) - len(kept)
    remark = (
        f"of {every:,} training samples {len(kept):,} stay: {twice:,} are there twice, {dropped:,} held out by a test"
    )
    return kept, remark


def prompt_ids(sample: TextSample, tokenizer: Any) -> list[int]:
    """The prompt's tokens, as training and decoding use them; a chat template is the task's own affair."""
    return list(tokenizer(sample.prompt)["input_ids"])


def decoded(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of a canvas up to its first end token."""
    ids = list(ids)
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return str(tokenizer.decode(ids, skip_special_tokens=True))
