# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Multiple choice by likelihood: no text is decoded, every choice is scored behind its question, the best one wins.

A mask diffusion model gives no likelihood from left to right. Two scores of an answer y of L tokens take its place:

* **one forward pass** (the default): all L tokens masked at once, the sum of log p(y_i | question, masks). Cheap and
  without noise; it takes the tokens as independent of each other, so it is no bound on the model's likelihood.
* **Monte Carlo** (`num_samples=n`): the bound that such a model is trained on. A draw masks l of the L tokens, l
  uniform on 1..L, and gives L / l times the sum of their log p; the mean of n draws is an unbiased estimate of a lower
  bound on log p(y | question). The draws are stratified in l and keyed by (seed, question, answer): the same in any
  batch, and for any order of the questions. LLaDA's evaluation takes 128.

Probabilities are among the tokens that a text can hold: the mask and reserved ids are out of the softmax. Only the
masked positions of an answer go through the head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils import logging

from ..checks import check_number
from ..generation_canvas_rm import check_length
from ..generation_sampler_rm import log_partition
from ..modes import evaluating
from ..tasks.multiple_choice import ChoiceProblem
from .record_log import RecordLog, content_digest, weights_digest
from .statistics import Interval, wilson_interval
from .text import _fits, check_keys

Normalise = Literal["none", "tokens", "characters"]
Pair = tuple[list[int], list[int]]  # a prompt's tokens and an answer's


class Score(NamedTuple):
    """The score of one continuation.

    Attributes:
        log_likelihood: See the module.
        greedy: Whether every token that was masked was also the most probable one.
        tokens: How many tokens it has.

    Example:
        >>> Score(-3.5, False, 2).log_likelihood
        -3.5
    """

    log_likelihood: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class ChoiceRecord:
    """What a run keeps of one problem: a number for each of its choices, none where it is too long.

    Attributes:
        key: The problem's.
        log_likelihoods: As in [`Score`].
        greedy: As in [`Score`].
        tokens: As in [`Score`].

    Example:
        >>> ChoiceRecord("q1", (-1.0, -2.0), (True, False), (1, 1)).scores[1]
        Score(log_likelihood=-2.0, greedy=False, tokens=1)
    """

    key: str
    log_likelihoods: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def scores(self) -> tuple[Score, ...]:
        """A score for each choice."""
        return tuple(map(Score, self.log_likelihoods, self.greedy, self.tokens))


@dataclass(frozen=True)
class ChoiceEvaluation:
    """The result of [`evaluate_multiple_choice`], in the order of the problems.

    Attributes:
        name: What tables call it.
        scores: A score for each choice of each problem; none for a problem that is too long.
        chosen: Which choice won, from 0; -1 for a problem that is too long; (n,).
        answers: Which is right; (n,).
        too_long: Keys of the problems that do not fit into the model's context; they count as wrong.

    Example:
        >>> scores = ((Score(-1.0, True, 1), Score(-2.0, False, 1)),)
        >>> ChoiceEvaluation("base", scores, np.array([0]), np.array([0])).accuracy.value
        1.0
    """

    name: str
    scores: tuple[tuple[Score, ...], ...]
    chosen: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    too_long: tuple[str, ...] = ()

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the right choice won."""
        return self.chosen == self.answers

    @property
    def accuracy(self) -> Interval:
        """Share of right choices with Wilson's interval."""
        return wilson_interval(int(self.correct.sum()), len(self.correct))


@torch.no_grad()
def evaluate_multiple_choice(
    model: Any,
    tokenizer: Any,
    problems: Sequence[ChoiceProblem],
    *,
    num_samples: int | None = None,
    normalise: Normalise = "none",
    batch_size: int = 32,
    seed: int = 0,
    folder: str | Path | None = None,
    name: str = "",
    progress_bar: bool = False,
) -> ChoiceEvaluation:
    """
    Choose the most likely answer to every question.

    Args:
        model: A model with `generate_reflective`.
        tokenizer: Its tokenizer.
        problems: The questions; one of which a choice does not fit into the model's context counts as wrong and is
            named.
        num_samples: Draws of the Monte-Carlo score; None for the one with a single forward pass.
        normalise: Divide a choice's score by its ``"tokens"`` or by its ``"characters"`` (lm-eval's `acc_norm`);
            ``"none"`` compares sums (`acc`).
        batch_size: Rows at a time.
        seed: Of the draws.
        folder: Where `samples.jsonl` is kept. A run that was stopped goes on with the problems that are missing, one
            that is complete is read back; the scores serve every normalisation.
        name: What tables call it.
        progress_bar: Show the problems done.

    Returns:
        A [`ChoiceEvaluation`]; of equally likely choices the first wins.

    Raises:
        ValueError: For no problems, two of one key, problems that are all too long, an unknown normalisation, a
            folder that holds the scores of another model, seed, number of draws or other problems, and as
            [`score_continuations`].

    Example:
        >>> evaluate_multiple_choice(model, tokenizer, read_arc("test.jsonl")).accuracy.value  # doctest: +SKIP
        0.737
    """
    check_keys([problem.key for problem in problems], "problems")
    if normalise not in ("none", "tokens", "characters"):
        raise ValueError(f"`normalise` is {normalise!r}: pass 'none', 'tokens' or 'characters'.")
    _check_counts(num_samples, batch_size)
    pairs = [_encoded(model, tokenizer, [(p.prompt, text) for text in p.continuations]) for p in problems]
    longest = [max(len(prompt) + len(answer) for prompt, answer in part) for part in pairs]
    fits = [_fits(model, length) for length in longest]
    if not any(fits):
        raise ValueError(f"none of the {len(problems)} problems fits into the model's context: use a longer one.")
    contents = [[p.key, p.answer, part] for p, part in zip(problems, pairs, strict=True)]
    log = RecordLog(
        folder,
        lambda: {
            "weights": weights_digest(model),
            "problems": content_digest(contents),
            "num_samples": num_samples,
            "seed": seed,
        },
        ChoiceRecord,
    )
    log.add([ChoiceRecord(p.key) for p, fit in zip(problems, fits, strict=True) if not fit and p.key not in log])
    progress = logging.tqdm(total=len(problems), desc=name or "score", disable=not progress_bar)
    progress.update(len(log))
    rows = [len(part) * (num_samples or 1) for part in pairs]
    for batch in _batches(longest, rows, fits, batch_size):
        # The whole batch even where a part of it is there: a batch of another shape could round otherwise.
        if all(problems[index].key in log for index in batch):
            continue
        flat = iter(_scores(model, [pair for i in batch for pair in pairs[i]], num_samples, batch_size, seed))
        records = [ChoiceRecord(problems[i].key, *zip(*(next(flat) for _ in pairs[i]))) for i in batch]
        missing = [record for record in records if record.key not in log]
        log.add(missing)
        progress.update(len(missing))
    progress.close()
    found = [log[problem.key] for problem in problems]
    return ChoiceEvaluation(
        name,
        tuple(record.scores for record in found),
        np.array([_best(record, p, normalise) for record, p in zip(found, problems, strict=True)]),
        np.array([problem.answer for problem in problems]),
        tuple(record.key for record in found if not record.scores),
    )


def _batches(
    longest: Sequence[int], rows: Sequence[int], fits: Sequence[bool], batch_size: int
) -> Iterator[list[int]]:
    """Indices of the problems that fit, the longest first, as many together as their rows leave room in a batch."""
    batch: list[int] = []
    for index in sorted((i for i, fit in enumerate(fits) if fit), key=lambda i: -longest[i]):
        if batch and sum(rows[i] for i in batch) + rows[index] > batch_size:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _best(record: ChoiceRecord, problem: ChoiceProblem, normalise: Normalise) -> int:
    if not record.scores:
        return -1
    rates = [s.log_likelihood / _size(s, text, normalise) for s, text in zip(record.scores, problem.choices)]
    return int(np.argmax(rates))


def _size(score: Score, text: str, normalise: Normalise) -> int:
    return {"none": 1, "tokens": score.tokens, "characters": len(text)}[normalise]


@torch.no_grad()
def score_continuations(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    num_samples: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress_bar: bool = False,
) -> list[Score]:
    """
    Score continuations of texts.

    Args:
        model: A model with `generate_reflective`.
        tokenizer: Its tokenizer. Text and continuation are tokenized apart, as in training and decoding.
        pairs: (text, continuation); the text may be empty.
        num_samples: Draws of the Monte-Carlo score; None for the one with a single forward pass.
        batch_size: Rows at a time; a draw is a row.
        seed: Of the draws.
        progress_bar: Show the batches done.

    Returns:
        A [`Score`] for each pair.

    Raises:
        ValueError: For a continuation without a token, a pair that does not fit into the model's context, or a number
            that makes no sense; before any forward pass.

    Example:
        >>> score_continuations(model, tokenizer, [("2 + 3 =", " 5"), ("2 + 3 =", " 6")])  # doctest: +SKIP
        [Score(log_likelihood=-0.31, greedy=True, tokens=1), Score(log_likelihood=-4.02, greedy=False, tokens=1)]
    """
    _check_counts(num_samples, batch_size)
    tokens = _encoded(model, tokenizer, pairs)
    for prompt, answer in tokens:
        check_length(len(prompt) + len(answer), model.config)
    return _scores(model, tokens, num_samples, batch_size, seed, progress_bar)


def _check_counts(num_samples: int | None, batch_size: int) -> None:
    for name, value in (("num_samples", 1 if num_samples is None else num_samples), ("batch_size", batch_size)):
        check_number(name, value, 1, inf, "an integer of at least 1", int)


def _encoded(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """The tokens of texts and of their continuations, which hold no reserved id."""
    reserved = set(_reserved(model))
    tokens = []
    for text, continuation in pairs:
        prompt = list(tokenizer(text)["input_ids"]) if text else _beginning(tokenizer)
        answer = list(tokenizer(continuation, add_special_tokens=False)["input_ids"])
        if not answer or set(answer) & reserved:
            raise ValueError(
                f"the continuation {continuation!r} has the tokens {answer}: pass text of at least one token, without "
                "the mask and reserved ids, which no text holds."
            )
        tokens.append((prompt, answer))
    return tokens


def _scores(
    model: Any,
    tokens: Sequence[Pair],
    num_samples: int | None,
    batch_size: int,
    seed: int,
    progress_bar: bool = False,
) -> list[Score]:
    """A score for each pair of a prompt's and an answer's tokens."""
    rows = [
        (index, kept)
        for index, (prompt, answer) in enumerate(tokens)
        for kept in _draws(prompt, answer, num_samples, seed)
    ]
    rows.sort(key=lambda row: -len(tokens[row[0]][0]) - len(tokens[row[0]][1]))  # stable: draws stay in order
    sums: list[list[float]] = [[] for _ in tokens]
    greedy = [True] * len(tokens)
    starts = range(0, len(rows), batch_size)
    with evaluating(model):
        for start in logging.tqdm(starts, desc="score", disable=not progress_bar):
            part = rows[start : start + batch_size]
            masked = [(*tokens[index], places) for index, places in part]
            for (index, places), (total, hit) in zip(part, _masked_scores(model, masked), strict=True):
                sums[index].append(total * len(tokens[index][1]) / len(places))
                greedy[index] &= hit
    return [Score(float(np.mean(part)), hit, len(answer)) for part, hit, (_, answer) in zip(sums, greedy, tokens)]


def _reserved(model: Any) -> list[int]:
    """Ids that are no text: the mask and those that the model suppresses."""
    return sorted({int(model.config.mask_token_id), *(getattr(model.config, "suppressed_token_ids", None) or [])})


def _beginning(tokenizer: Any) -> list[int]:
    """What comes before a text with nothing before it."""
    return list(tokenizer("")["input_ids"])


def _draws(prompt: Sequence[int], answer: Sequence[int], num_samples: int | None, seed: int) -> list[list[int]]:
    """Positions of the answer that each draw masks."""
    length = len(answer)
    if num_samples is None:
        return [list(range(length))]
    digest = hashlib.blake2b(repr((seed, list(prompt), list(answer))).encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "big"))
    # One number for all draws: their counts spread evenly over 1..length, each by itself is uniform.
    offset = generator.random()
    counts = [1 + int(length * ((offset + draw) / num_samples)) for draw in range(num_samples)]
    return [sorted(generator.permutation(length)[:count].tolist()) for count in counts]


def _masked_scores(
    model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int], Sequence[int]]]
) -> list[tuple[float, bool]]:
    """For rows (prompt, answer, masked places of the answer): the sum of their log p, whether all were the argmax."""
    mask_id, device = int(model.config.mask_token_id), model.device
    longest = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
    most = max(len(places) for _, _, places in rows)
    # Padding on the left, and past the end where a row has fewer masked positions than another.
    ids = torch.full((len(rows), longest), mask_id)
    real, editable = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    positions, targets = torch.full((len(rows), most), longest), torch.zeros(len(rows), most, dtype=torch.long)
    for row, (prompt, answer, places) in enumerate(rows):
        begin = longest - len(prompt) - len(answer)
        ids[row, begin:] = torch.tensor([*prompt, *answer])
        real[row, begin:] = 1
        editable[row, begin + len(prompt) :] = True
        where = torch.tensor(places) + begin + len(prompt)
        ids[row, where] = mask_id
        positions[row, : len(places)] = where
        targets[row, : len(places)] = torch.tensor([answer[place] for place in places])
    history = bool(getattr(model.config, "history", False))
    logits = model._denoise(
        ids.to(device), real.to(device), editable.to(device), None, history, positions.to(device)
    ).logits
    logits.index_fill_(-1, torch.tensor(_reserved(model), device=device), -torch.inf)
    targets = targets.to(device)[..., None]
    chosen = logits.gather(-1, targets)[..., 0].float()
    log_p = chosen - log_partition(logits)
    hit = chosen >= logits.amax(-1).float()
    inside = (positions < longest).to(device)
    totals = torch.where(inside, log_p, 0.0).double().sum(-1).tolist()
    return list(zip(totals, (hit | ~inside).all(-1).tolist(), strict=True))
