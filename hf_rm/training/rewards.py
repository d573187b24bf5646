# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Rewards in TRL's form, `f(prompts, completions, completion_ids, **columns)` to one number a completion, and what keeps
one that hangs, raises or has nothing to say from ending a training run ([`contained`]).
"""

from __future__ import annotations

import asyncio
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, Literal

from transformers.utils import logging

from ..evaluation.sandbox import SandboxUnavailableError, check_sandbox, run_code
from ..tasks.code.completion import extract_code
from ..tasks.math.answers import extract_answer
from ..tasks.math.equivalence import answers_equal
from ..tasks.sudoku.boards import CELLS, is_valid, parse_board
from ..tasks.sudoku.metrics import conflict_cells

logger = logging.get_logger(__name__)

Reward = Callable[..., Sequence[float | None]]


class MissingColumnError(ValueError):
    """A reward needs a column that the dataset does not have: no matter of one answer."""


class _WrongLengthError(ValueError):
    """Not one reward for each completion."""


class _Overdue(BaseException):
    """Not an Exception: a reward that catches those still ends."""


def contained(reward: Reward, seconds: float | None = 30.0) -> Reward:
    """
    A reward that cannot end a training run.

    Completions for which nothing is known get None, which TRL takes for "not scored": one that no reward scores has no
    advantage and does not count in its group's mean; where others score it, TRL's sum of the rewards takes what is
    missing for 0. So it is for each that got None, a NaN, an infinity or no number at all, for each that the reward
    raises on, and for each that takes too long: a call that raised, or did not end in three quarters of the time, is
    followed by one for each single completion, and what is left of the time is shared out among these.

    Args:
        reward (`Callable`): in TRL's form; it may be a coroutine function (one that blocks its loop cannot be ended).
        seconds (`float`, *optional*): how long all calls for a batch may take together; None for as long as they like.
            Outside of the main thread what takes too long is left behind in a thread of its own. A call into C that
            neither gives up the GIL nor looks for signals (`re` does look) cannot be ended at all.

    Raises:
        ValueError: for a limit that is not positive; and, from a call, for the wrong number of rewards (one bare
            number in place of a list, too) or a missing column: mistakes, and no matter of one answer. So is a missing
            sandbox.

    Example:
        >>> def broken(completions, **columns):
        ...     return [1 / len(text) for text in completions]
        >>> contained(broken)(prompts=["", ""], completions=["ab", ""], completion_ids=[[1], [2]])
        [0.5, None]
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"`seconds` is {seconds!r}: pass a positive number, or None for no limit.")
    name = getattr(reward, "__name__", type(reward).__name__)
    wrap = _contained_coroutine if _is_coroutine(reward) else _contained_function
    call = wrap(reward, seconds, name)
    call.__name__ = name
    return call


_WHOLE_SHARE = 0.75  # of the time for the whole batch; the rest is kept for its single completions
# Everything else is contained, also what is no Exception: math-verify's timeout is none.
_FATAL = (
    MissingColumnError,
    SandboxUnavailableError,
    _WrongLengthError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
)


def _contained_function(reward: Reward, seconds: float | None, name: str) -> Any:
    @wraps(reward)
    def call(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        left = _time_left(seconds)

        def score(part: slice, limit: float | None, **own: Any) -> list[float | None]:
            texts = completions[part]
            run = partial(reward, prompts=prompts[part], completions=texts, **own)
            return _within(limit, lambda: _one_each(run(), len(texts), name))

        count = len(completions)
        try:
            return score(slice(None), _share(left(), _WHOLE_SHARE if count > 1 else 1.0), **columns)
        except _FATAL:
            raise
        except BaseException as error:
            problem = error
        found: list[float | None] = [None] * count
        for number in range(count if count > 1 else 0):
            limit = _share(left(), 1 / (count - number))
            if limit == 0:
                break
            try:
                found[number : number + 1] = score(slice(number, number + 1), limit, **_row(number, count, columns))
            except _FATAL:
                raise
            except BaseException as error:
                problem = error
        _warn(name, problem, found, seconds)
        return found

    return call


def _contained_coroutine(reward: Any, seconds: float | None, name: str) -> Any:
    @wraps(reward)
    async def call(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        left, count = _time_left(seconds), len(completions)
        problems: list[BaseException] = []

        async def score(part: slice, limit: float | None, **own: Any) -> list[float | None] | None:
            texts = completions[part]
            try:
                given = await asyncio.wait_for(reward(prompts=prompts[part], completions=texts, **own), limit)
            except (*_FATAL, asyncio.CancelledError):
                raise
            except BaseException as error:
                problems.append(_Overdue() if isinstance(error, TimeoutError) else error)
                return None
            return _one_each(given, len(texts), name)

        whole = await score(slice(None), _share(left(), _WHOLE_SHARE if count > 1 else 1.0), **columns)
        if whole is not None:
            return whole
        found: list[float | None] = [None] * count
        if count > 1:  # side by side: each has all the time that is left
            rows = [(slice(i, i + 1), _row(i, count, columns)) for i in range(count)]
            each = await asyncio.gather(*(score(part, left(), **row) for part, row in rows))
            found = [None if one is None else one[0] for one in each]
        _warn(name, problems[-1], found, seconds)
        return found

    return call


def _is_coroutine(reward: Any) -> bool:
    while isinstance(reward, partial):
        reward = reward.func
    return iscoroutinefunction(reward) or iscoroutinefunction(getattr(reward, "__call__", None))  # noqa: B004


def _time_left(seconds: float | None) -> Callable[[], float | None]:
    """Seconds until this moment's limit is over, 0 behind it; None without one."""
    if seconds is None:
        return lambda: None
    end = time.monotonic() + seconds
    return lambda: max(0.0, end - time.monotonic())


def _share(left: float | None, share: float) -> float | None:
    return None if left is None else left * share


def _one_each(given: Any, count: int, name: str) -> list[float | None]:
    try:
        each = iter(given)
    except TypeError:  # of this alone: one that a generator raises is no matter of how many there are
        raise _wrong_length(f"{given!r}, which is no list,", count, name) from None
    values = list(each)
    if len(values) != count:
        raise _wrong_length(f"{len(values)} values", count, name)
    return [_number(value) for value in values]


def _wrong_length(returned: str, count: int, name: str) -> _WrongLengthError:
    return _WrongLengthError(
        f"The reward {name} returned {returned} for {count} completions: return a list with one for each, None where "
        "there is nothing to say."
    )


def _warn(name: str, problem: BaseException, found: list[float | None], seconds: float | None) -> None:
    missing = found.count(None)
    what = f"took more than its share of {seconds} s" if isinstance(problem, _Overdue) else f"raised {problem!r}"
    logger.warning(f"The reward {name} {what}: {missing} of {len(found)} completions are not scored.")


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
    if hasattr(signal, "pthread_kill") and threading.current_thread() is threading.main_thread():
        alarm = _Alarm(seconds)
        try:
            try:
                alarm.start()
                return run()
            finally:
                alarm.stop()
        except _Overdue:
            alarm.stop()  # it may have rung while it was stopped
            raise
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


class _Alarm:
    """
    Raises `_Overdue` in the main thread after so many seconds, and again where that was not heard.

    The process's timer of real time, of which there is one, is left alone: math-verify sets it for itself and switches
    it off afterwards. Two others ring in its place, again and again, since math-verify would hear what comes while its
    own handler is there. A thread sends SIGALRM, which ends what sleeps. But a thread needs the GIL, and `re` keeps it
    for as long as it searches: what computes is ended by SIGPROF, which the kernel sends as the process uses the CPU.
    """

    again = 0.05
    """Seconds between two signals; an exception takes ten times as long to be raised once more."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.over = seconds, threading.Event()
        self.due = time.monotonic() + seconds
        self.thread = threading.Thread(target=self._send, daemon=True)
        self.before: dict[int, Any] = {}
        self.timer = (0.0, 0.0)

    def start(self) -> None:
        for number in (signal.SIGALRM, signal.SIGPROF):
            before = signal.getsignal(number)
            if before is not None:  # one that was not set from Python, a profiler's, could not be put back
                self.before[number] = before
                signal.signal(number, self._ring)
        if signal.SIGPROF in self.before:
            signal.siginterrupt(signal.SIGPROF, False)  # it may meet any thread: blocking calls of libraries go on
            self.timer = signal.setitimer(signal.ITIMER_PROF, self.again, self.again)
        self.thread.start()

    def stop(self) -> None:
        self.due = math.inf  # from here on nothing is raised, also not in the midst of what follows
        self.over.set()
        if signal.SIGPROF in self.before:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if self.thread.is_alive():
            self.thread.join()
        for number, before in self.before.items():
            # A signal may be on its way to a thread that is not running just now, and the default would end the
            # process: ignoring it first discards it.
            signal.signal(number, signal.SIG_IGN)
            signal.signal(number, before)
        if self.timer[0]:
            signal.setitimer(signal.ITIMER_PROF, *self.timer)

    def _send(self) -> None:
        wait = self.seconds
        while not self.over.wait(wait):
            if signal.SIGALRM in self.before:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            wait = self.again

    def _ring(self, *args: Any) -> None:
        now = time.monotonic()
        if now >= self.due:
            self.due = now + 10 * self.again
            raise _Overdue


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


def check_rewards(rewards: Iterable[Any], dataset: Any) -> None:
    """
    Raise now, before anything is trained, for a column that is missing, and for a right answer that cannot be one.

    Args:
        rewards: of this module, contained or not; others are not asked.
        dataset (`Dataset` or list of `dict`): what they will read; one that is made as it is read is left alone.

    Raises:
        MissingColumnError: for a column that a reward reads and no row has.
        ValueError: for an answer that nothing can equal.

    Example:
        >>> check_rewards([math_reward(method="numeric")], [{"prompt": "", "answer": "seven"}])
        Traceback (most recent call last):
        ...
        ValueError: row 0 of the dataset: gold is 'seven', which is no number; use method='math-verify'.
    """
    for reward in rewards:
        reads, check = getattr(reward, "reads", None), getattr(reward, "check_value", None)
        if reads is None or not hasattr(dataset, "__len__"):
            continue
        names = getattr(dataset, "column_names", None) or list(dataset[0] if len(dataset) else {reads: None})
        _column(dict.fromkeys(names, ()), reads, getattr(reward, "__name__", str(reward)))
        for number, row in enumerate(dataset if check is not None else ()):
            try:
                check(row[reads])  # type: ignore[misc]
            except ValueError as error:
                raise ValueError(f"row {number} of the dataset: {error}") from error


def _reading(reward: Any, column: str, check: Callable[[Any], Any] | None = None) -> Any:
    """A reward that says which column it reads, and what its values have to pass: see [`check_rewards`]."""
    reward.reads, reward.check_value = column, check
    return reward


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
    return _reading(reward, column) if kind == "exact" else reward


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

    return _reading(math_answer, column, lambda right: answers_equal(None, str(right), method))


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
        ValueError: for a setting that `run_code` would refuse.

    Example:
        >>> reward, program = code_reward(timeout=5.0), "def f():\\n    return 4"  # doctest: +SKIP
        >>> reward(prompts=[""], completions=[program], tests=[["assert f() == 4"]])  # doctest: +SKIP
        [1.0]
    """
    check_sandbox(**settings)

    def code_passes(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        count = len(completions)
        names, before = columns.get(entry_points) or [None] * count, columns.get(prefix) or [""] * count
        rows = zip(completions, _column(columns, tests, "code_passes"), names, before, strict=True)
        return [_passes(completion_text(text), *rest) for text, *rest in rows]

    def _passes(text: str, source: Any, names: Any, before: str) -> float:
        code = extract_code(text, before or "", names[-1] if names else None)
        return float(run_code(code, source, entry_points=names or None, **settings).passed)

    return _reading(code_passes, tests)


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
