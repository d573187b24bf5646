# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Questions with several answers to choose from: ARC from local files, in the hub's schema and in AI2's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._records import BadRecordError, column, read_each
from .text import TextSample


@dataclass(frozen=True)
class ChoiceProblem:
    """One question with its choices.

    Attributes:
        key: Its identifier in the data set.
        question: The question.
        choices: What can be answered.
        answer: Which of them is right, counted from 0.

    Example:
        >>> problem = ChoiceProblem("1", "What is ice?", ("Water.", "Fire."), 0)
        >>> problem.prompt, problem.continuations
        ('Question: What is ice?\\nAnswer:', (' Water.', ' Fire.'))
    """

    key: str
    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """The text before the answer, as lm-eval's ARC tasks have it."""
        return f"Question: {self.question}\nAnswer:"

    @property
    def continuations(self) -> tuple[str, ...]:
        """The choices as text behind the prompt."""
        return tuple(f" {choice}" for choice in self.choices)

    @property
    def sample(self) -> TextSample:
        """The question with its right answer, for training."""
        return TextSample(self.key, self.prompt, self.continuations[self.answer], self.choices[self.answer])


def read_arc(path: str | Path, left_out: list[str] | None = None) -> list[ChoiceProblem]:
    """Read ARC in the hub's schema or in AI2's.

    Args:
        path: A JSON or JSONL file, or a folder of them. Columns: `id`, `answerKey` and either `question` and
            `choices` with the lists `text` and `label` (hub), or `question` with `stem` and a list `choices` of
            objects with `text` and `label` (AI2).
        left_out: Gets a message for every record that cannot be used; without it that is an error.

    Returns:
        The problems in the file's order. Some have three or five choices, some labels are numbers.

    Raises:
        OSError: If there is nothing to read.
        ValueError: If a record lacks a column, or cannot be used: it has fewer than two choices or an empty one, or a
            key that labels none of them; the message says which.

    Example:
        >>> import json, tempfile
        >>> row = {"id": "a", "question": "What is ice?", "answerKey": "B",
        ...        "choices": {"text": ["Fire.", "Water."], "label": ["A", "B"]}}
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps(row)); file.flush()
        ...     read_arc(file.name)[0].answer
        1
    """
    return read_each(path, _arc, left_out)


def _arc(where: str, record: dict[str, Any]) -> ChoiceProblem:
    key, question = str(column(record, where, "id")), column(record, where, "question")
    if isinstance(question, dict):
        listed = _part(question, f"{where}, its 'question'", "choices")
        question = _part(question, f"{where}, its 'question'", "stem")
    else:
        listed = column(record, where, "choices")
    found: list[Any]
    if isinstance(listed, list):
        found = [[_part(choice, f"{where}, a choice", name) for choice in listed] for name in ("text", "label")]
    else:
        found = [_part(listed, f"{where}, its 'choices'", name) for name in ("text", "label")]
    if not all(isinstance(part, list) for part in found):
        raise BadRecordError(f"{where} has the choices {listed}: 'text' and 'label' each have to be a list.")
    texts, labels = [str(text).strip() for text in found[0]], [str(label) for label in found[1]]
    if len(texts) != len(labels) or len(texts) < 2 or len(set(labels)) < len(labels) or not all(texts):
        raise BadRecordError(
            f"{where} has the choices {texts} with the labels {labels}: each needs a text and its label."
        )
    right, question = str(column(record, where, "answerKey")), str(question).strip()
    if right not in labels:
        raise BadRecordError(f"{where} has the 'answerKey' {right!r}, but its labels are {labels}.")
    if not question:
        raise BadRecordError(f"{where} has nothing but spaces in 'question'.")
    return ChoiceProblem(key, question, tuple(texts), labels.index(right))


def _part(inner: Any, where: str, name: str) -> Any:
    """A column inside of a record's column; where it is missing the record is bad, and not the file another."""
    if not isinstance(inner, dict):
        raise BadRecordError(f"{where} is no object with {name!r}, but {inner!r}.")
    if name not in inner:
        raise BadRecordError(f"{where} has no column {name!r}; its columns are {sorted(inner)}.")
    return column(inner, where, name)
