# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Code tasks for the recipes: MBPP in the paper's proportions, HumanEval for evaluation, graded in the sandbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from ...evaluation.sandbox import check_sandbox
from .._records import named_sources, read_told
from ..text import TextSample
from .problems import SPLIT_SEED, CodeProblem, read_humaneval, read_mbpp, split_problems
from .verify import verify_code

CODE_TASKS = ("mbpp", "humaneval")
FENCED = "```python\n{code}\n```"


class CodeTask:
    """
    MBPP, split 30 / 70 by a documented seed unless test data is given; or HumanEval as held-out data.

    What is left out of the data (records that cannot be used, duplicates, what is held out too) is told in `remarks`.
    A completion is a fenced block; what is graded is the program in it, run against the tests in the sandbox.

    Args:
        name: ``"mbpp"`` or ``"humaneval"``: what the test data is.
        train_data: MBPP to train on: a file, a folder or ``owner/name:config:split``.
        test_data: Held-out data of the kind that `name` says. Without it, 70 % of `train_data`.
        timeout: Seconds a program may run.
        split_seed: Of the split, without test data.
        sandbox: Further settings of [`~hf_rm.evaluation.sandbox.run_code`], such as `isolation`.

    Raises:
        SandboxUnavailableError: If this machine gives no isolation: at once, not at the first grade.
        ValueError: For an unknown name, a setting of the sandbox that makes no sense, HumanEval without test data, or
            data in which an identifier is there twice or that is too small to be split.
        OSError: For data that is not there.

    Example:
        >>> task = CodeTask("mbpp", "mbpp_train.jsonl")  # doctest: +SKIP
        >>> len(task.train()), len(task.test())  # doctest: +SKIP
        (142, 332)
    """

    def __init__(
        self,
        name: str = "mbpp",
        train_data: str | None = None,
        test_data: str | None = None,
        timeout: float = 10.0,
        split_seed: int = SPLIT_SEED,
        **sandbox: Any,
    ) -> None:
        if name not in CODE_TASKS:
            raise ValueError(f"`task` is {name!r}: pass one of {', '.join(map(repr, CODE_TASKS))}.")
        if test_data is None and (name == "humaneval" or train_data is None):
            missing = "`test_data`" if name == "humaneval" else "`train_data`, `test_data` or both"
            raise ValueError(f"task {name!r} has no data to be held out: pass {missing}.")
        self.name, self.train_data, self.test_data, self.split_seed = name, train_data, test_data, split_seed
        self.sandbox = {"timeout": timeout, **sandbox}
        check_sandbox(**self.sandbox)
        self.remarks: list[str] = []

    def train(self) -> list[TextSample]:
        """Training problems with their solutions."""
        if self.train_data is None:
            raise ValueError(f"task {self.name!r} has no training data: pass `train_data`, an MBPP file.")
        if not self._parts[0]:
            raise ValueError(f"every problem of {self.train_data} is held out: pass other `train_data`.")
        return [self._sample(problem) for problem in self._parts[0]]

    def test(self) -> list[TextSample]:
        """Held-out problems."""
        return [self._sample(problem) for problem in self._parts[1]]

    def grade(self, sample: TextSample, text: str) -> bool:
        """Whether the program in a completion passes its problem's tests."""
        return verify_code(self.problem(sample), text, **self.sandbox).passed

    def problem(self, sample: TextSample) -> CodeProblem:
        """The problem that a sample was made of, with its tests."""
        return self._by_key[sample.key]

    @cached_property
    def _parts(self) -> tuple[list[CodeProblem], list[CodeProblem]]:
        train = [] if self.train_data is None else self._read(self.train_data, read_mbpp)
        if self.test_data is None:
            parts = split_problems(train, seed=self.split_seed)
            if not all(parts):
                raise ValueError(f"{self.train_data} is too small to be split ({len(train)}): pass `test_data`.")
            return parts
        test = self._read(self.test_data, read_humaneval if self.name == "humaneval" else read_mbpp)
        held_out = {problem.task_id for problem in test}
        kept = [problem for problem in train if problem.task_id not in held_out]
        if len(kept) < len(train):
            count = len(train) - len(kept)
            self.remarks.append(f"{self.train_data}: {count:,} problems are held out, and not trained on")
        return kept, test

    def _read(self, source: str, read: Callable[..., list[CodeProblem]]) -> list[CodeProblem]:
        problems = read_told(source, read, self.remarks)
        counts = Counter(problem.task_id for problem in problems)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"{source} has different problems of one task_id: give {twice[:5]} one each.")
        return problems

    @cached_property
    def _by_key(self) -> dict[str, CodeProblem]:
        return {problem.task_id: problem for part in self._parts for problem in part}

    def _sample(self, problem: CodeProblem) -> TextSample:
        return TextSample(problem.task_id, problem.prompt, FENCED.format(code=problem.solution.strip()))


def more_code_tests(given: Sequence[str], **settings: Any) -> list[CodeTask]:
    """Further data to be tested on, each ``task=data``; settings as of [`CodeTask`]."""
    pairs = named_sources(given, "more_tests", CODE_TASKS)
    return [CodeTask(name, None, source, **settings) for name, source in pairs]
