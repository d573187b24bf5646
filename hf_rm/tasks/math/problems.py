"""GSM8K, MATH and CMATH problems from local files of the published schemas."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._records import BadRecordError, column, read_each
from .answers import extract_boxed, extract_marked
from .equivalence import answers_equal, can_be_graded

CALCULATOR = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class MathProblem:
    """One problem with its answer.

    Attributes:
        question: The problem.
        answer: The final answer alone.
        solution: The worked solution, with the final answer in its own form (``#### 12``, ``\\boxed{12}``); empty
            where the file has answers only.
        subject: MATH's subject, else empty.
        level: MATH's level or CMATH's grade, else 0.

    Example:
        >>> MathProblem("1 + 1?", "2").level
        0
    """

    question: str
    answer: str
    solution: str = ""
    subject: str = ""
    level: int = 0


def _text(record: dict[str, Any], where: str, *names: str) -> str:
    text = str(column(record, where, *names)).replace("\r\n", "\n").strip()
    if not text:
        raise BadRecordError(f"{where} has nothing but spaces in {' or '.join(map(repr, names))}.")
    return text


def _number(answer: str, where: str) -> str:
    """An answer that is to be graded by its value."""
    try:
        answers_equal(answer, answer, "numeric")
    except ValueError as error:
        raise BadRecordError(f"{where}: {error}") from error
    return answer


def _level(value: Any) -> int:
    digits = re.search(r"\d+", str(value))
    return int(digits[0]) if digits else 0


def read_gsm8k(path: str | Path, calculator: bool = False, left_out: list[str] | None = None) -> list[MathProblem]:
    """Read GSM8K (columns `question` and `answer`, whose last line is ``#### number``).

    Args:
        path: A JSON or JSONL file, or a folder of them.
        calculator: Keep the calculator marks ``<<48/2=24>>`` in the solutions.
        left_out: Gets a message for every record that cannot be used; without it that is an error.

    Returns:
        The problems in the file's order. Commas are left out of the answers' numbers.

    Raises:
        OSError: If there is nothing to read.
        ValueError: If a record lacks a column, or cannot be used: its answer has no final ``####`` and number.

    Example:
        >>> import json, tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps({"question": "4 * 12?", "answer": "<<4*12=48>>48\\n#### 48"})); file.flush()
        ...     read_gsm8k(file.name)[0].solution
        '48\\n#### 48'
    """

    def read(where: str, record: dict[str, Any]) -> MathProblem:
        solution = _text(record, where, "answer")
        answer = extract_marked(solution)
        if answer is None:
            raise BadRecordError(f"{where}: its 'answer' does not end in '#### number', but in {solution[-40:]!r}.")
        solution = solution if calculator else CALCULATOR.sub("", solution)
        return MathProblem(_text(record, where, "question"), _number(answer.replace(",", ""), where), solution)

    return read_each(path, read, left_out)


def read_math(path: str | Path, left_out: list[str] | None = None) -> list[MathProblem]:
    r"""Read MATH in its published forms: with a worked solution, with an answer (MATH500), or with both.

    Args:
        path: A JSON or JSONL file, or a folder of them. Columns: `problem` (or `question`), `solution`, `answer` (or
            `ground_truth`), `subject` (or `type`) and `level`; a solution or an answer has to be there.
        left_out: Gets a message for every record that cannot be used; without it that is an error.

    Returns:
        The problems in the file's order. Without an `answer`, it is what the solution's last ``\boxed`` holds.

    Raises:
        OSError: If there is nothing to read.
        ValueError: If a record lacks a column, or cannot be used: it has no answer, or one that is broken LaTeX.

    Example:
        >>> import json, tempfile
        >>> row = {"problem": "1 + 1?", "solution": r"It is $\boxed{2}$.", "level": "Level 1", "type": "Algebra"}
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps(row)); file.flush()
        ...     read_math(file.name)[0].answer
        '2'
    """
    return read_each(path, _math_problem, left_out)


def _math_problem(where: str, record: dict[str, Any]) -> MathProblem:
    solution = str(record.get("solution") or "").strip()
    if record.get("answer") or record.get("ground_truth") or not solution:
        answer: str | None = _text(record, where, "answer", "ground_truth")
    else:
        answer = extract_boxed(solution)
    if answer is None:
        raise BadRecordError(f"{where}: its 'solution' has no complete \\boxed{{...}}, and there is no 'answer'.")
    if not can_be_graded(answer):
        raise BadRecordError(f"{where}: its answer {answer[:80]!r} is no LaTeX that can be graded.")
    subject = str(record.get("subject") or record.get("type") or "")
    question = _text(record, where, "problem", "question")
    return MathProblem(question, answer, solution, subject, _level(record.get("level")))


def read_cmath(path: str | Path, left_out: list[str] | None = None) -> list[MathProblem]:
    """Read CMATH, Chinese problems of six grades (columns `question`, `golden` or `answer`, `grade`); answers only.

    Args:
        path: A JSON or JSONL file, or a folder of them.
        left_out: Gets a message for every record that cannot be used; without it that is an error.

    Returns:
        The problems in the file's order; the grade is their level.

    Raises:
        OSError: If there is nothing to read.
        ValueError: If a record lacks a column, or cannot be used: its answer is no number.

    Example:
        >>> import json, tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps({"question": "3加5等于几?", "golden": "8", "grade": 1})); file.flush()
        ...     read_cmath(file.name)[0].answer
        '8'
    """
    return read_each(path, _cmath_problem, left_out)


def _cmath_problem(where: str, record: dict[str, Any]) -> MathProblem:
    answer = _number(_text(record, where, "golden", "answer"), where)
    return MathProblem(_text(record, where, "question"), answer, level=_level(record.get("grade")))
