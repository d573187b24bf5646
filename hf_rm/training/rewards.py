# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Rewards in TRL's form, `f(prompts, completions, completion_ids, **columns)` to one number a completion, and what keeps
one that hangs, raises or has nothing to say from ending a training run ([`contained`]).
"""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal

from transformers.utils import logging

from ..evaluation.sandbox import SandboxUnavailableError, run_code, sandbox_available
from ..tasks.code.completion import extract_code
from ..tasks.math.answers import extract_answer
from ..tasks.math.equivalence import answers_equal
from ..tasks.sudoku.boards import CELLS, is_valid, parse_board
from ..tasks.sudoku.metrics import conflict_cells

logger = logging.get_logger(__name__)

Reward = Callable[..., Sequence[float | None]]


class MissingColumnError(ValueError):
    """A reward needs a column that the dataset does not have: no matter of one answer."""


class _Overdue(BaseException):
    """Not an Exception: a reward that catches those still ends."""


def contained(reward: Reward, seconds: float | None = 30.0) -> Reward:
    """
    A reward that cannot end a training run.

    Completions for which nothing is known get None, which TRL takes for "not scored": they have no advantage and do
    not count in their group's mean. That is so for each that got None, a NaN, an infinity or no number at all, for
    each that the reward raises on (after an error it is called with one completion at a time), and for all completions
    of a call that takes too long.

    Args:
        reward (`Callable`): in TRL's form.
        seconds (`float`, *optional*): how long a call may take; None for as long as it likes.

    Raises:
        ValueError: for a limit that is not positive; and, from a call, for the wrong number of rewards or a missing
            column: mistakes, and no matter of one answer. So is a missing sandbox.

    Example:
        >>> def broken(completions, **columns):
        ...     return [1 / len(text) for text in completions]
        >>> contained(broken)(prompts=["", ""], completions=["ab", ""], completion_ids=[[1], [2]])
        [0.5, None]
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"`seconds` is {seconds!r}: pass a positive number, or None for no limit.")
    name = getattr(reward, "__name__", type(reward).__name__)

    @wraps(reward)
    def call(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        count = len(completions)
        try:
            given = list(_within(seconds, lambda: reward(prompts=prompts, completions=completions, **columns)))
        except (MissingColumnError, SandboxUnavailableError):
            raise
        except _Overdue:
            logger.warning(f"The reward {name} took more than {seconds} s: {count} completions are not scored.")
            return [None] * count
        except Exception as error:
            if count > 1:
                rows = [_row(number, count, columns) for number in range(count)]
                return [call(prompts[i : i + 1], completions[i : i + 1], **row)[0] for i, row in enumerate(rows)]
            logger.warning(f"The reward {name} raised {error!r}: a completion is not scored.")
            return [None]
        if len(given) != count:
            raise ValueError(
                f"The reward {name} returned {len(given)} values for {count} completions: return one for each, None "
                "where there is nothing to say."
            )
        return [_number(value) for value in given]

    call.__name__ = name
    return call


def _row(number: int, count: int, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of one completion; what is no column (TRL's logging functions) as it is."""
    return {
        name: values[number : number + 1] if isinstance(values, list) and len(values) == count else values
        for name, values in columns.items()
    }


def _within(seconds: float | None, run: Callable[[], Any]) -> Any:
    """The result of `run`, or `_Overdue`."""
    if seconds is None:
        return run()
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        with _alarm(seconds):
            return run()
    box: list[Any] = []

    def work() -> None:
        try:
            box.append((True, run()))
        except BaseException as error:
            box.append((False, error))

    # A thread cannot be ended from outside: it is left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        raise _Overdue
    worked, result = box[0]
    if not worked:
        raise result
    return result


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*args: Any) -> None:
        raise _Overdue

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def completion_text(completion: Any) -> str:
    """
    What the model wrote, of a completion in either of TRL's forms.

    Example:
        >>> completion_text("7"), completion_text([{"role": "assistant", "content": "7"}])
        ('7', '7')
    """
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion if isinstance(message.get("content"), str))


def _column(columns: dict[str, Any], name: str, reward: str) -> Sequence[Any]:
    if name not in columns:
        raise MissingColumnError(
            f"The reward {reward} reads the column {name!r}, which the dataset does not have; it has "
            f"{', '.join(sorted(columns)) or 'none'}."
        )
    return columns[name]


def sudoku_reward(kind: Literal["valid", "exact", "conflicts"] = "exact", column: str = "solution") -> Reward:
    """
    Boards: 1 for a valid one; 1 for the one in the dataset's column; or the share of cells without a conflict.

    A completion that is no full board, such as one in which masks are left, has 0.

    Args:
        kind (`str`): `"valid"`, `"exact"` or `"conflicts"`.
        column (`str`): the right boards, as text or ids, for `"exact"`.

    Raises:
        ValueError: for another kind.

    Example:
        >>> from hf_rm.tasks.sudoku import format_board, generate_boards
        >>> board = format_board(generate_boards(1, seed=0)[0])
        >>> other = ("2" if board[0] == "1" else "1") + board[1:]
        >>> sudoku_reward("valid")(prompts=["", ""], completions=[board, other])
        [1.0, 0.0]
    """
    if kind not in ("valid", "exact", "conflicts"):
        raise ValueError(f"`kind` is {kind!r}: pass 'valid', 'exact' or 'conflicts'.")

    def score(text: str, solution: Any) -> float:
        cells = "".join(text.split())
        if not re.fullmatch(f"[1-9]{{{CELLS}}}", cells):
            return 0.0
        board = parse_board(cells)
        if kind == "valid":
            return float(is_valid(board)[0])
        if kind == "conflicts":
            return 1.0 - float(conflict_cells(board)[0]) / CELLS
        right = parse_board(solution) if isinstance(solution, str) else solution
        return float(board.tolist() == list(map(int, right)))

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        right = _column(columns, column, reward.__name__) if kind == "exact" else [None] * len(completions)
        return [score(completion_text(text), solution) for text, solution in zip(completions, right, strict=True)]

    reward.__name__ = f"sudoku_{kind}"
    return reward


def math_reward(
    column: str = "answer",
    form: Literal["boxed", "marked", "any"] = "any",
    method: Literal["math-verify", "numeric"] = "math-verify",
) -> Reward:
    """
    1 where the final answer equals the dataset's, else 0; see [`hf_rm.tasks.math.equivalence.answers_equal`].

    Args:
        column (`str`): the right answers.
        form (`str`): where the answer stands: `"boxed"`, `"marked"` (`####`) or `"any"`.
        method (`str`): `"math-verify"`, or `"numeric"` where all answers are numbers.

    Raises:
        ImportError: for math-verify, where it is not installed.
        ValueError: for another form or method.

    Example:
        >>> reward = math_reward(method="numeric")
        >>> reward(prompts=[""] * 2, completions=["2 + 3 = 5\\n#### 5", "#### 6"], answer=["5", "5"])
        [1.0, 0.0]
    """
    answers_equal(extract_answer("#### 1", form), "1", method)  # raises now for what would raise at every answer

    def math_answer(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        gold = _column(columns, column, "math_answer")
        return [_math(completion_text(text), str(right)) for text, right in zip(completions, gold, strict=True)]

    def _math(text: str, right: str) -> float | None:
        try:
            return float(answers_equal(extract_answer(text, form), right, method))
        except Exception as error:
            logger.warning(f"The answer to be compared with {right!r} is not scored: {error!r}")
            return None

    return math_answer


def code_reward(
    tests: str = "tests", entry_points: str = "entry_points", prefix: str = "prefix", **settings: Any
) -> Reward:
    """
    1 where the program passes its tests in the sandbox, else 0; a program that hangs, forks or eats memory has 0.

    Args:
        tests, entry_points, prefix (`str`): columns of the dataset: source texts of tests; names that they take from
            the program, the one asked for last (may be missing: all names); program text before the completion (may be
            missing).
        settings: of [`hf_rm.evaluation.sandbox.run_code`]: `timeout`, `memory_mb` and the others.

    Raises:
        SandboxUnavailableError: where this machine gives no isolation.

    Example:
        >>> reward, program = code_reward(timeout=5.0), "def f():\\n    return 4"  # doctest: +SKIP
        >>> reward(prompts=[""], completions=[program], tests=[["assert f() == 4"]])  # doctest: +SKIP
        [1.0]
    """
    support = sandbox_available()
    if settings.get("isolation", "full") == "full" and not support.available:
        raise SandboxUnavailableError(f"code_reward runs model-written code, and this machine lacks {support.missing}")

    def code_passes(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        count = len(completions)
        names, before = columns.get(entry_points) or [None] * count, columns.get(prefix) or [""] * count
        rows = zip(completions, _column(columns, tests, "code_passes"), names, before, strict=True)
        return [_passes(completion_text(text), *rest) for text, *rest in rows]

    def _passes(text: str, source: Any, names: Any, before: str) -> float:
        code = extract_code(text, before or "", names[-1] if names else None)
        return float(run_code(code, source, entry_points=names or None, **settings).passed)

    return code_passes


def format_reward(pattern: str, weight: float = 1.0) -> Reward:
    """
    `weight` where a regular expression is found in the completion, else 0.

    Raises:
        ValueError: for a pattern that is no regular expression.

    Example:
        >>> format_reward(r"^#### -?\\d+$")(prompts=["", ""], completions=["1 + 1 = 2\\n#### 2", "2"])
        [1.0, 0.0]
    """
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"`pattern` is {pattern!r}, which is no regular expression: {error}.") from error

    def format_found(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [weight * float(compiled.search(completion_text(text)) is not None) for text in completions]

    return format_found
