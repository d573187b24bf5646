"""Whether two final answers are the same."""

from __future__ import annotations

import re
import threading
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

from .answers import extract_boxed, lacks_argument

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:/\d+)?")
SECONDS = 30  # for one answer; a short limit would make verdicts depend on the machine's load
ANSWER_LIMIT = 2000  # characters; what is longer is no final answer, and a parser's time grows with it


@lru_cache(maxsize=1)
def _math_verify() -> ModuleType:
    try:
        import math_verify

        # Its parser is built on first use, which must not count against an answer's time.
        math_verify.parse("\\boxed{\\frac{1}{2}}", parsing_timeout=None)
    except ImportError as error:
        raise ImportError(
            "comparing answers needs math-verify: pip install 'hf-rm[recipes]'. Where every answer is a plain number, "
            "method='numeric' needs no library."
        ) from error
    return math_verify


def _number(text: str) -> Fraction | None:
    """The number that a text is, as a whole: an integer, a decimal or a ratio; a currency sign and % may be there."""
    plain = re.sub(r"\\[$%]|[$%\s]|\\!", "", text).rstrip(".")
    if not re.search(r"\d", plain) or not NUMBER.fullmatch(plain):
        return None
    try:
        return Fraction(plain.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text).removeprefix("$").removesuffix("$").rstrip(".")


def _parsed(library: ModuleType, answer: str, seconds: int | None) -> Any:
    forms = [library.LatexExtractionConfig(), library.ExprExtractionConfig()]
    return library.parse(f"\\boxed{{{answer}}}", extraction_config=forms, parsing_timeout=seconds)


def _seconds() -> int | None:
    """The library's limit: its timeouts are alarms, which only a main thread can set."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None


def _by_math_verify(given: str, gold: str) -> bool:
    library, seconds = _math_verify(), _seconds()
    expected = _parsed(library, gold, seconds)
    if not expected:
        return False  # words: the same text or nothing
    return bool(library.verify(expected, _parsed(library, given, seconds), timeout_seconds=seconds))


def answers_equal(given: str | None, gold: str, method: Literal["math-verify", "numeric"] = "math-verify") -> bool:
    r"""Compare a final answer with the reference.

    The same text (spaces, dollar signs around it and a full stop aside) is the same answer. Otherwise math-verify
    decides: it parses both as LaTeX or plain expressions and compares values. Nothing takes its place by itself where
    it is not installed.

    Args:
        given: The model's answer, already extracted; None (no answer) equals nothing.
        gold: The reference.
        method: ``"numeric"`` compares numbers alone, exactly: for GSM8K and CMATH, without the library.

    Returns:
        Whether they are the same.

    Raises:
        ImportError: If math-verify is needed and missing; the message names the extra that brings it.
        ValueError: If `gold` is empty, or no number with ``method="numeric"``.

    Example:
        >>> answers_equal("1,024.0", "1024", method="numeric"), answers_equal("about 7", "7", method="numeric")
        (True, False)
        >>> answers_equal(r"\frac{1}{2}", "0.5")  # doctest: +SKIP
        True
    """
    if method not in ("math-verify", "numeric"):
        raise ValueError(f"method is {method!r}; pass 'math-verify' or 'numeric'.")
    if not gold.strip():
        raise ValueError("gold is empty: a problem without an answer cannot be graded.")
    if method == "numeric":
        expected = _number(gold)
        if expected is None:
            raise ValueError(f"gold is {gold!r}, which is no number; use method='math-verify'.")
        return given is not None and _number(given) == expected
    _math_verify()  # missing, it is an error for every answer, not only for those whose text differs
    if given is None or len(given) > ANSWER_LIMIT:
        return False
    return _plain(given) == _plain(gold) or _by_math_verify(given, gold)


def can_be_graded(gold: str) -> bool:
    r"""Whether a completion with this reference in its box is right: broken LaTeX nobody can answer with.

    What is looked at are braces and the arguments of commands, and not what math-verify makes of it. It takes 15 ms an
    answer, and has no value for some that are fine as text (``30^\circ.``).

    Args:
        gold: The reference.

    Returns:
        Whether it can be graded.

    Example:
        >>> can_be_graded(r"\frac{1}{2}"), can_be_graded(r"\frac{"), can_be_graded(r"\frac{}{}")
        (True, False, False)
    """
    boxed = extract_boxed(f"\\boxed{{{gold}}}")
    return boxed is not None and len(gold) <= ANSWER_LIMIT and not lacks_argument(gold)
