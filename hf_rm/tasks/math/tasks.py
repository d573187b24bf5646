# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Math tasks for the recipes: prompts, completions, and how an answer is read out of a completion and graded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from .._records import hub_name, named_sources, read_told
from ..text import TextSample
from .answers import extract_answer, extract_boxed, extract_marked
from .equivalence import answers_equal
from .problems import MathProblem, read_cmath, read_gsm8k, read_math
from .word_problems import generate_problems

TEMPLATE = "Question: {question}\nAnswer:\n"
"""What a model reads; the completion begins on a line of its own."""
HELD_OUT = 10
"""Without test data every tenth training problem, by the hash of its question, is kept for evaluation."""


@dataclass(frozen=True)
class _Form:
    read: Callable[..., list[MathProblem]]
    extract: Callable[[str], str | None]
    method: Literal["math-verify", "numeric"]


_FORMS = {
    "gsm8k": _Form(read_gsm8k, extract_marked, "numeric"),
    "math": _Form(read_math, extract_boxed, "math-verify"),
    "cmath": _Form(read_cmath, extract_answer, "numeric"),  # no form of its own: that of the training data
    "minerva": _Form(read_math, extract_boxed, "math-verify"),
}
MATH_DATA = tuple(_FORMS)
"""What data can be of: Minerva's is MATH's test set, by subject."""
MATH_TASKS = ("word-problems", "gsm8k", "math", "cmath")
MINERVA = "algebra+counting_and_probability+geometry+intermediate_algebra+number_theory+prealgebra+precalculus"
"""The configs that a data set of the Hub has for Minerva's subjects (``EleutherAI/hendrycks_math``)."""


def grade_answer(sample: TextSample, text: str, form: str) -> bool:
    """Whether a completion holds the sample's answer in the form that the task asks for."""
    reader = _FORMS[form]
    return answers_equal(reader.extract(text), sample.answer, reader.method)


class WordProblems:
    """The embedded default: problems made by rule; see `hf_rm.tasks.math.word_problems`.

    Args:
        train_count: Training problems.
        test_count: Held-out problems.
        seed: Of both.

    Raises:
        ValueError: For a count below 1.
    """

    name = "word-problems"

    def __init__(self, train_count: int = 20_000, test_count: int = 1000, seed: int = 0) -> None:
        for part, count in (("train", train_count), ("test", test_count)):
            if count < 1:
                raise ValueError(f"`{part}_count` (`made_{part}` of the recipe) is {count}: pass an integer above 0.")
        self.train_count, self.test_count, self.seed = train_count, test_count, seed

    def train(self) -> list[TextSample]:
        """Of the training split."""
        return generate_problems(self.train_count, self.seed, split="train")

    def test(self) -> list[TextSample]:
        """Of the test split: other skeletons, other numbers."""
        return generate_problems(self.test_count, self.seed, split="test")

    def grade(self, sample: TextSample, text: str) -> bool:
        """The number behind ``####``."""
        return grade_answer(sample, text, "gsm8k")


class MathTask:
    """
    GSM8K, MATH (MATH500, Minerva's subjects) or CMATH from files or from the Hub.

    What is left out of the data (records that cannot be used, duplicates, what is held out too, problems without a
    solution) is told in `remarks`.

    Args:
        name: ``"gsm8k"``, ``"math"``, ``"cmath"``, or ``"minerva"``: of a data set of the Hub that is named without a
            config, the test split of all subjects.
        train_data: Training data: a file, a folder, or ``owner/name:config:split``. CMATH has none.
        test_data: Held-out data. Without it every tenth training problem, by the hash of its question.
        hold_out: False for data that is all to be trained on, and tested elsewhere.
        template: Of the prompt, with ``{question}``; other braces stand for themselves.

    Raises:
        ValueError: For an unknown name, a template without ``{question}``, a record without a column (the message
            names it), or data of which nothing can be used.
        OSError: For data that is not there.
        ImportError: For MATH without math-verify.

    Example:
        >>> task = MathTask("gsm8k", "gsm8k/train.jsonl")  # doctest: +SKIP
        >>> task.grade(task.test()[0], task.test()[0].completion)  # doctest: +SKIP
        True
    """

    def __init__(
        self,
        name: str,
        train_data: str | None = None,
        test_data: str | None = None,
        template: str = TEMPLATE,
        hold_out: bool = True,
    ) -> None:
        if name not in _FORMS:
            raise ValueError(f"`task` is {name!r}: pass one of {', '.join(map(repr, _FORMS))}.")
        if "{question}" not in template:
            raise ValueError(f"`template` is {template!r}: it needs {{question}}.")
        if train_data is None and test_data is None:
            raise ValueError(f"task {name!r} has no data: pass `train_data`, `test_data` or both.")
        self.name, self.form = name, _FORMS[name]
        answers_equal("1", "1", self.form.method)  # where math-verify is missing it raises now, not after a training
        self.train_data, self.test_data, self.template, self.hold_out = train_data, test_data, template, hold_out
        self.remarks: list[str] = []

    def train(self) -> list[TextSample]:
        """Training problems with a solution, without those that are held out or are in the test data too."""
        if self.train_data is None:
            raise ValueError(f"task {self.name!r} has no training data: pass `train_data`.")
        return [self._sample(problem) for problem in self._learnt]

    def test(self) -> list[TextSample]:
        """Held-out problems."""
        return [self._sample(problem) for problem in self._test_problems]

    def grade(self, sample: TextSample, text: str) -> bool:
        """
        The number behind ``####`` (GSM8K), there or else in the last box (CMATH), or what math-verify finds equal to
        the last box (MATH).
        """
        return grade_answer(sample, text, self.name)

    @cached_property
    def _train_problems(self) -> list[MathProblem]:
        return self._read(str(self.train_data))

    @cached_property
    def _learnt(self) -> list[MathProblem]:
        held_out = {problem.question for problem in self._test_problems}
        kept = [problem for problem in self._train_problems if problem.question not in held_out]
        solved = [problem for problem in kept if problem.solution]
        if not solved:
            raise ValueError(
                f"none of the {len(self._train_problems)} problems of {self.train_data} has a solution to learn from, "
                "and is not held out."
            )
        for count, fate in (
            (len(self._train_problems) - len(kept), "held out, and not trained on"),
            (len(kept) - len(solved), "without a solution, and left out"),
        ):
            if count:
                self.remarks.append(f"{self.train_data}: {count:,} problems are {fate}")
        return solved

    @cached_property
    def _test_problems(self) -> list[MathProblem]:
        if self.test_data is not None:
            return self._read(self.test_data)
        if not self.hold_out:
            return []
        problems = [problem for problem in self._train_problems if _digest(problem.question) % HELD_OUT == 0]
        if not problems:
            raise ValueError(f"{self.train_data} is too small to hold problems out: pass `test_data`.")
        return problems

    def _read(self, source: str) -> list[MathProblem]:
        named = hub_name(source)
        if self.name == "minerva" and named is not None and named["config"] is None:
            source = f"{source}:{MINERVA}:test"
        problems = read_told(source, self.form.read, self.remarks)
        once = list({problem.question: problem for problem in problems}.values())
        if len(once) < len(problems):
            self.remarks.append(
                f"{source}: {len(problems) - len(once):,} questions are there again with another answer"
            )
        return once

    def _sample(self, problem: MathProblem) -> TextSample:
        key = f"{_digest(problem.question):016x}"
        group = problem.subject or (str(problem.level) if problem.level else "")
        return TextSample(
            key, self.template.replace("{question}", problem.question), problem.solution, problem.answer, group
        )


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def build_math_task(
    name: str,
    train_data: str | None = None,
    test_data: str | None = None,
    template: str = TEMPLATE,
    train_count: int = 20_000,
    test_count: int = 1000,
) -> WordProblems | MathTask:
    """The task of a recipe's arguments; data beside ``"word-problems"``, which makes its own, is refused."""
    if name != "word-problems":
        return MathTask(name, train_data, test_data, template)
    if train_data or test_data:
        raise ValueError(
            f"task 'word-problems' makes its own problems, but data was passed ({Path(train_data or test_data or '')})"
            ": name the task that the data is of."
        )
    return WordProblems(train_count, test_count)


def more_math_training(given: Sequence[str], template: str = TEMPLATE) -> list[MathTask]:
    """Further data to train on, each ``task=data``, all of it: none is held out."""
    pairs = named_sources(given, "more_train", MATH_DATA)
    return [MathTask(name, source, None, template, hold_out=False) for name, source in pairs]


def more_math_tests(given: Sequence[str], template: str = TEMPLATE) -> list[MathTask]:
    """Further data to be tested on, each ``task=data``."""
    return [MathTask(name, None, source, template) for name, source in named_sources(given, "more_tests", MATH_DATA)]
