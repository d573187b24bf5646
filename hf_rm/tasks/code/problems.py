"""MBPP and HumanEval problems from local files of the published schema."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._records import BadRecordError, column, read_each

SPLIT_SEED = 20261122


@dataclass(frozen=True)
class CodeProblem:
    """One problem with its tests.

    Attributes:
        task_id: The data set's own identifier.
        description: What is asked for: MBPP's sentence, or HumanEval's unfinished function.
        tests: Source text, run in order; one that raises fails the completion.
        entry_points: Names that the tests take from the program; the one that is asked for is the last.
        solution: The data set's own solution, a whole program.
        prefix: Program text that a completion may continue (HumanEval), else empty.

    Example:
        >>> problem = CodeProblem("1", "Double a number.", ("assert double(2) == 4",), ("double",), "", "")
        >>> print(problem.prompt)
        Write a Python program for this task:
        Double a number.
        It has to pass this test:
        assert double(2) == 4
        <BLANKLINE>
    """

    task_id: str
    description: str
    tests: tuple[str, ...]
    entry_points: tuple[str, ...]
    solution: str
    prefix: str = ""

    @property
    def prompt(self) -> str:
        """The text a model is given: the unfinished function, or the description with the first test (it names the
        function)."""
        if self.prefix:
            return self.prefix
        shown = next(test for test in self.tests if "assert" in test)
        return f"Write a Python program for this task:\n{self.description}\nIt has to pass this test:\n{shown}\n"


def _unix(text: Any) -> str:
    return str(text).replace("\r\n", "\n")


def _parsed(code: str, where: str, name: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError) as error:
        raise BadRecordError(f"{where} has a {name!r} that is no Python: {error}") from error


def _lines(listed: Any, where: str, name: str) -> list[str]:
    """Source texts, of which a column holds a list."""
    if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) for text in listed):
        raise BadRecordError(f"{where} has a {name!r} that is no list of texts, but {str(listed)[:80]!r}.")
    return [_unix(text) for text in listed]


def _defined(tree: ast.Module) -> list[str]:
    """Names that a module binds at its top level by def, class or assignment."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return list(dict.fromkeys(names))


def _used(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def mbpp_problem(where: str, record: dict[str, Any]) -> CodeProblem:
    """One MBPP record as a problem; `where` it is, for messages."""
    solution = _unix(column(record, where, "code"))
    listed = _lines(column(record, where, "test_list"), where, "test_list")
    imports = _lines(record.get("test_imports") or [], where, "test_imports")
    setup = [_unix(record.get("test_setup_code") or ""), "\n".join(imports)]
    tests = [text for text in [*setup, *listed] if text.strip()]
    used = set().union(*(_used(_parsed(test, where, "test_list")) for test in tests))
    names = tuple(name for name in _defined(_parsed(solution, where, "code")) if name in used)
    if not names:
        raise BadRecordError(f"{where}: no test uses a name that its 'code' defines.")
    description = _unix(column(record, where, "text", "prompt")).strip()
    return CodeProblem(str(column(record, where, "task_id")), description, tuple(tests), names, solution)


def read_mbpp(path: str | Path, left_out: list[str] | None = None) -> list[CodeProblem]:
    """Read MBPP problems: the full set (JSONL) or the sanitized one (a JSON list).

    Args:
        path: A file, or a folder of files.
        left_out: Gets a message for every record that cannot be used; without it that is an error.

    Returns:
        The problems in the file's order.

    Raises:
        OSError: If there is nothing to read.
        ValueError: If a record lacks a column, or cannot be used: its code or tests are no Python, no list or do not
            belong together; the message says which.

    Example:
        >>> import json, tempfile
        >>> row = {"task_id": 1, "text": "Double.", "code": "def d(x): return 2*x", "test_list": ["assert d(2) == 4"]}
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps(row)); file.flush()
        ...     read_mbpp(file.name)[0].entry_points
        ('d',)
    """
    return read_each(path, mbpp_problem, left_out)


def humaneval_problem(where: str, record: dict[str, Any]) -> CodeProblem:
    """One HumanEval record as a problem; `where` it is, for messages."""
    prompt = _unix(column(record, where, "prompt"))
    entry_point = str(column(record, where, "entry_point"))
    solution = prompt + _unix(column(record, where, "canonical_solution"))
    names = _defined(_parsed(solution, where, "canonical_solution"))
    if entry_point not in names:
        raise BadRecordError(f"{where}: its 'prompt' defines {names}, not its 'entry_point' {entry_point!r}.")
    test = f"{_unix(column(record, where, 'test'))}\n\ncheck({entry_point})\n"
    _parsed(test, where, "test")
    names = [name for name in names if name != entry_point] + [entry_point]  # tests may use the prompt's others too
    return CodeProblem(str(column(record, where, "task_id")), prompt, (test,), tuple(names), solution, prompt)


def read_humaneval(path: str | Path, left_out: list[str] | None = None) -> list[CodeProblem]:
    """Read HumanEval problems.

    Args:
        path: A file, or a folder of files.
        left_out: Gets a message for every record that cannot be used; without it that is an error.

    Returns:
        The problems in the file's order.

    Raises:
        OSError: If there is nothing to read.
        ValueError: If a record lacks a column, or cannot be used: its code or tests are no Python, or do not belong
            together; the message says which.

    Example:
        >>> import json, tempfile
        >>> row = {"task_id": "H/0", "prompt": "def d(x):\\n", "canonical_solution": "    return 2 * x\\n",
        ...        "test": "def check(candidate):\\n    assert candidate(2) == 4\\n", "entry_point": "d"}
        >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        ...     _ = file.write(json.dumps(row)); file.flush()
        ...     read_humaneval(file.name)[0].prompt
        'def d(x):\\n'
    """
    return read_each(path, humaneval_problem, left_out)


def split_problems(
    problems: Sequence[CodeProblem], train_share: float = 0.3, seed: int = SPLIT_SEED
) -> tuple[list[CodeProblem], list[CodeProblem]]:
    """Split into training and test problems, by a digest of the seed and each problem's identifier.

    The result does not depend on the order of the file. The paper trains on 30 % of MBPP and tests on 70 %; which
    problems those are it does not say.

    Args:
        problems: All problems.
        train_share: The share for training, rounded to whole problems.
        seed: Seed of the split.

    Returns:
        Training and test problems, each in the given order.

    Raises:
        ValueError: If `train_share` is not between 0 and 1, or two problems share an identifier.

    Example:
        >>> problems = [CodeProblem(str(number), "", ("assert f()",), ("f",), "") for number in range(10)]
        >>> [len(part) for part in split_problems(problems)]
        [3, 7]
    """
    if not 0 <= train_share <= 1:
        raise ValueError(f"train_share is {train_share}; pass a share between 0 and 1, such as 0.3.")
    names = [problem.task_id for problem in problems]
    if len(set(names)) < len(names):
        raise ValueError("problems holds one task_id twice: it could be in both parts.")
    order = sorted(names, key=lambda name: hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest())
    chosen = set(order[: round(train_share * len(order))])
    train = [problem for problem in problems if problem.task_id in chosen]
    return train, [problem for problem in problems if problem.task_id not in chosen]
