# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The built-in evaluator of text: decode every sample, grade it, keep what happened in a file that can be continued.

A sample's text depends on the model, the decoding, the seed and the sample's own key, and on nothing else: its random
numbers are its own, padding is invisible. What remains is rounding: matrix products of another shape may differ in
their last bits, and an argmax between two nearly equal tokens then falls the other way. So a continued run forms the
same batches as one that was never stopped.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.utils import logging

from ..generation_canvas_rm import check_length
from ..generation_config_rm import ReflectiveGenerationConfig
from ..modes import evaluating
from ..tasks.text import TextSample, decoded, prompt_ids
from .record_log import RecordLog
from .revision import revision_metrics
from .statistics import Interval
from .text_records import Grade, TextEvaluation, TextRecord, fingerprint, settings_of

Settings = ReflectiveGenerationConfig | Mapping[str, Any] | None


def evaluate_text(
    model: Any,
    tokenizer: Any,
    samples: Sequence[TextSample],
    grade: Grade,
    decoding: Settings = None,
    *,
    completion_length: int,
    batch_size: int = 32,
    seed: int = 0,
    folder: str | Path | None = None,
    name: str = "",
    revision: bool = False,
    batched_grade: bool = False,
    progress_bar: bool = False,
) -> TextEvaluation:
    """
    Decode and grade samples.

    Args:
        model: Anything with `generate_reflective`.
        tokenizer: Its tokenizer.
        samples: What to answer; a sample that does not fit into the model's context counts as wrong and is named.
        grade: ``grade(sample, text) -> bool``. With `batched_grade` it gets lists and returns a list.
        decoding: Settings of [`ReflectiveGenerationConfig`], over the model's own generation config.
        completion_length: Length of the canvas of masks behind each prompt.
        batch_size: Samples at a time; prompts of similar length share a batch.
        seed: With a sample's key it makes that sample's random numbers.
        folder: Where `samples.jsonl` is kept. A run that was stopped goes on with the samples that are missing, one
            that is complete is read back; neither the model nor the grader runs twice on a sample.
        name: What tables call it.
        revision: Record trajectories and grade the first complete draft too; see [`RevisionSeen`].
        batched_grade: Whether `grade` takes a whole batch.
        progress_bar: Show the samples done.

    Returns:
        A [`TextEvaluation`].

    Raises:
        ValueError: For no samples, two of one key, samples that are all too long, settings that cannot work, or a
            folder that holds the records of another model, decoding, seed, grader or other samples.

    Example:
        >>> result = evaluate_text(model, tokenizer, samples, lambda s, text: s.answer in text,
        ...                        {"steps": 32, "reveal": "confidence"}, completion_length=64)  # doctest: +SKIP
        >>> result.accuracy  # doctest: +SKIP
        Interval(value=0.31, low=0.282, high=0.339, observations=1000)
    """
    samples = list(samples)
    check_keys([sample.key for sample in samples], "samples")
    config = decoding_config(model, decoding, completion_length)
    prompts = [prompt_ids(sample, tokenizer) for sample in samples]
    fits = [_fits(model, len(ids) + completion_length) for ids in prompts]
    if not any(fits):
        raise ValueError(
            f"none of the {len(samples)} prompts fits into the model's context with completion_length="
            f"{completion_length}: shorten it, or use a model with a longer context."
        )
    log = RecordLog(
        folder, lambda: fingerprint(model, tokenizer, samples, prompts, grade, config, seed, revision), TextRecord
    )
    for sample, fit in zip(samples, fits, strict=True):
        if not fit and sample.key not in log:
            log.add([TextRecord(sample.key, sample.group, "", False, 0, 0, 0, False, (), too_long=True)])
    progress = logging.tqdm(total=len(samples), desc=name or "evaluate", disable=not progress_bar)
    progress.update(len(log))
    for batch in batches_by_length([len(ids) for ids in prompts], fits, batch_size):
        missing = [index for index in batch if samples[index].key not in log]
        if not missing:
            continue
        # The whole batch even where a part of it is there: a batch of another shape could round otherwise.
        canvases = decode_batch(
            model, tokenizer, [prompts[i] for i in batch], [samples[i].key for i in batch], config, seed, revision
        )
        wanted = [(samples[i], canvas) for i, canvas in zip(batch, canvases, strict=True) if i in set(missing)]
        log.add(_graded(wanted, tokenizer, grade, batched_grade, revision))
        progress.update(len(missing))
    progress.close()
    return TextEvaluation(name, tuple(log[sample.key] for sample in samples), settings_of(config), seed)


# Decoding


class Canvas(NamedTuple):
    """One decoded row: the final ids of its canvas, the counts, and with a trajectory its states and actions."""

    ids: list[int]
    forwards: int
    remasks: int
    edits: int
    converged: bool
    states: npt.NDArray[np.int64] | None = None  # (S + 1, A)
    actions: npt.NDArray[np.int64] | None = None  # (S, A)
    mask_token_id: int = -1


def decoding_config(model: Any, decoding: Settings, completion_length: int) -> ReflectiveGenerationConfig:
    """The settings in full: given ones over the model's own; a ValueError for what cannot work."""
    if isinstance(completion_length, bool) or not isinstance(completion_length, int) or completion_length < 1:
        raise ValueError(f"completion_length is {completion_length!r}: pass an integer of at least 1.")
    given = decoding if isinstance(decoding, ReflectiveGenerationConfig) else None
    changes = {} if given is not None else dict(decoding or {})
    if changes.get("max_new_tokens", completion_length) != completion_length:
        raise ValueError(
            f"`decoding` has max_new_tokens={changes['max_new_tokens']}, but completion_length is "
            f"{completion_length}: leave the first out."
        )
    config: ReflectiveGenerationConfig = model._resolve_generation_config(
        given, {**changes, "max_new_tokens": completion_length, "output_trajectory": False, "editable": "auto"}
    )
    return config


def batches_by_length(lengths: Sequence[int], fits: Sequence[bool], batch_size: int) -> Iterator[list[int]]:
    """Indices of what fits, the longest first (what memory allows for the first batch it allows for all)."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}: pass an integer of at least 1.")
    order = sorted((i for i, fit in enumerate(fits) if fit), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def row_generator(seed: int, key: str) -> torch.Generator:
    """The random numbers of one sample."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def left_padded(rows: Sequence[Sequence[int]], padding: int, device: Any) -> tuple[Tensor, Tensor]:
    """(B, N) ids and their attention mask."""
    longest = max(len(row) for row in rows)
    ids = [[padding] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, dtype=torch.long, device=device), torch.tensor(mask, dtype=torch.long, device=device)


def decode_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[str],
    config: ReflectiveGenerationConfig,
    seed: int,
    trajectory: bool = False,
) -> list[Canvas]:
    """Decode one batch of prompts; `max_new_tokens` of the config is the canvas behind each."""
    length = int(config.max_new_tokens)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids, mask = left_padded(prompts, padding or 0, model.device)
    with evaluating(model):
        output = model.generate_reflective(
            ids,
            attention_mask=mask,
            generation_config=config,
            editable_mask=_canvas_mask(ids, length),
            generator=[row_generator(seed, key) for key in keys],
            output_trajectory=trajectory,
        )
    rows = []
    for row, final in enumerate(output.sequences[:, -length:].tolist()):
        forwards, remasks, edits = (int(counts[row]) for counts in _counts(output))
        seen: dict[str, Any] = {}
        if trajectory:
            steps = int(output.num_steps[row])
            seen["states"] = output.trajectory.states[: steps + 1, row, -length:].cpu().numpy().astype(np.int64)
            seen["actions"] = output.trajectory.actions[:steps, row, -length:].cpu().numpy().astype(np.int64)
            seen["mask_token_id"] = model._resolve_mask_token_id(config)
        rows.append(Canvas(final, forwards, remasks, edits, bool(output.converged[row]), **seen))
    return rows


def _counts(output: Any) -> tuple[Tensor, Tensor, Tensor]:
    return output.num_forwards, output.num_remasks, output.num_edits


def _canvas_mask(ids: Tensor, length: int) -> Tensor:
    """(B, N + length) bool: the canvas alone, even where a prompt quotes the mask token."""
    editable = torch.zeros(len(ids), ids.shape[1] + length, dtype=torch.bool, device=ids.device)
    editable[:, -length:] = True
    return editable


def _fits(model: Any, length: int) -> bool:
    try:
        check_length(length, model.config)
    except ValueError:
        return False
    return True


def check_keys(keys: Sequence[str], argument: str) -> None:
    """A ValueError for none, and for one that is there twice."""
    if not keys:
        raise ValueError(f"`{argument}` is empty: pass at least one.")
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(f"`{argument}` holds the key {twice!r} twice: a key names one of them.")


# Grading


def _graded(
    rows: Sequence[tuple[TextSample, Canvas]], tokenizer: Any, grade: Grade, batched: bool, revision: bool
) -> list[TextRecord]:
    texts = [decoded(canvas.ids, tokenizer) for _, canvas in rows]
    drafts = [_first_draft(canvas, tokenizer) if revision else None for _, canvas in rows]
    asked = [(sample, text) for (sample, _), text in zip(rows, texts, strict=True)]
    changed = [index for index, draft in enumerate(drafts) if draft is not None and draft[0] != texts[index]]
    asked += [(rows[index][0], drafts[index][0]) for index in changed]  # type: ignore[index]
    verdicts = _verdicts(asked, grade, batched)
    of_drafts = dict(zip(changed, verdicts[len(rows) :], strict=True))
    records = []
    for index, (sample, canvas) in enumerate(rows):
        seen: dict[str, Any] = {}
        draft = drafts[index]
        if draft is not None:
            seen = {"draft": draft[0], "draft_forwards": draft[1]}
            seen["draft_correct"] = of_drafts.get(index, verdicts[index])
        if revision:
            seen["taken_back"] = _taken_back(canvas)
            seen["reference"] = _against_reference(canvas, sample, tokenizer)
        counts = (canvas.forwards, canvas.remasks, canvas.edits, canvas.converged)
        row = (sample.key, sample.group, texts[index], verdicts[index], *counts, tuple(canvas.ids))
        records.append(TextRecord(*row, **seen))
    return records


def _verdicts(asked: Sequence[tuple[TextSample, str]], grade: Grade, batched: bool) -> list[bool]:
    if not batched:
        return [bool(grade(sample, text)) for sample, text in asked]
    verdicts = [bool(v) for v in grade([sample for sample, _ in asked], [text for _, text in asked])]
    if len(verdicts) != len(asked):
        raise ValueError(f"`grade` gave {len(verdicts)} verdicts for {len(asked)} texts: return one for each.")
    return verdicts


def _first_draft(canvas: Canvas, tokenizer: Any) -> tuple[str, int] | None:
    """
    The text of the first state without a mask, and the forward passes up to it.

    Where an end token stopped the run before the later blocks, it is the first without a mask up to that token.
    """
    assert canvas.states is not None
    mask = canvas.states == canvas.mask_token_id
    steps = len(canvas.states) - 1
    complete = ~mask.any(axis=1)
    if not complete[1:].any():
        ended = (canvas.states == tokenizer.eos_token_id).cumsum(axis=1) > 0
        complete = ended.any(axis=1) & ~(mask & ~ended).any(axis=1)
    found = [step for step in range(1, steps + 1) if complete[step]]
    if not found:
        return None
    return decoded(canvas.states[found[0]].tolist(), tokenizer), found[0] * (canvas.forwards // steps)


def _taken_back(canvas: Canvas) -> tuple[int, int]:
    """Positions where a token was taken back, and those where the same one came back later."""
    assert canvas.states is not None and canvas.actions is not None
    # Against a target that nothing equals every token counts as wrong.
    nowhere = np.full((1, canvas.states.shape[1]), -1)
    rate = revision_metrics(
        (canvas.states[:, None], canvas.actions[:, None]), nowhere, mask_token_id=canvas.mask_token_id
    ).replay_mistake
    return rate.observations, _successes(rate)


def _against_reference(canvas: Canvas, sample: TextSample, tokenizer: Any) -> tuple[int, int, int, int, int] | None:
    """Counts against the sample's own completion in a canvas of this length; None where it does not fit."""
    end = tokenizer.eos_token_id
    if not sample.completion.strip() or end is None or canvas.states is None:
        return None
    length = canvas.states.shape[1]
    target = [*tokenizer(sample.completion, add_special_tokens=False)["input_ids"], end]
    if len(target) > length:
        return None
    target += [end] * (length - len(target))
    metrics = revision_metrics(
        (canvas.states[:, None], canvas.actions[:, None]),  # type: ignore[index]
        np.array([target]),
        mask_token_id=canvas.mask_token_id,
    )
    taken, mistakes, replays = metrics.remask_precision, metrics.remask_recall, metrics.replay_mistake
    return (
        _successes(taken), taken.observations, mistakes.observations, _successes(replays), replays.observations
    )  # fmt: skip


def _successes(rate: Interval) -> int:
    return round(rate.value * rate.observations) if rate.observations else 0
