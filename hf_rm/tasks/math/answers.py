"""The final answer in a worked solution."""

from __future__ import annotations

import re
from typing import Literal

MARK = "####"
# Commands with arguments: two for `two`, else one. They may come without braces, as in \frac12.
TAKES = re.compile(r"\\(?:(?P<two>[cdt]?frac|[dt]?binom)|sqrt)(?![A-Za-z])(?:\s*\[[^\]]*\])?\s*")


def _braced(text: str, start: int) -> str | None:
    """The content of the group that opens at `start`, or None if it is never closed."""
    depth = 0
    for position in range(start, len(text)):
        escaped = position > 0 and text[position - 1] == "\\"
        if text[position] == "{" and not escaped:
            depth += 1
        elif text[position] == "}" and not escaped:
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
    return None


def extract_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` (or ``\fbox{...}``, or ``\boxed 7``).

    Args:
        text: A solution.

    Returns:
        The answer without the box; None without one, or where the last one is empty or never closed.

    Example:
        >>> extract_boxed(r"So $x = \boxed{\frac{1}{2}}$.")
        '\\frac{1}{2}'
        >>> extract_boxed(r"\boxed{3} and then \boxed{4") is None
        True
    """
    found = list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", text))
    if not found:
        return None
    start = found[-1].end()
    if text[start : start + 1] == "{":
        content = _braced(text, start)
    else:
        content = re.split(r"[\s$.,;]", text[start:], maxsplit=1)[0]
    return (content or "").strip() or None


def lacks_argument(text: str) -> bool:
    r"""Whether a fraction, a binomial or a root has an empty group where an argument belongs.

    Args:
        text: LaTeX.

    Example:
        >>> lacks_argument(r"\frac{1}{}"), lacks_argument(r"\frac{1}{2}"), lacks_argument(r"2\pi{}")
        (True, False, False)
    """
    for command in TAKES.finditer(text):
        rest = text[command.end() :]
        for _ in range(2 if command["two"] else 1):
            group = _braced(rest, 0) if rest.startswith("{") else None
            if group is None:
                break
            if not group.strip():
                return True
            rest = rest[len(group) + 2 :].lstrip()
    return False


def extract_marked(text: str) -> str | None:
    """What follows the last ``####`` on its line, as GSM8K writes it.

    Args:
        text: A solution.

    Returns:
        The answer; None without a mark, or with nothing after it.

    Example:
        >>> extract_marked("5 * 2 = 10\\n#### 10 ")
        '10'
    """
    before, mark, after = text.rpartition(MARK)
    return (after.strip(" \t").split("\n", 1)[0].strip() or None) if mark else None


def extract_answer(text: str, form: Literal["boxed", "marked", "any"] = "any") -> str | None:
    r"""The final answer of a completion.

    Args:
        text: What the model wrote.
        form: ``"boxed"`` for MATH, ``"marked"`` for GSM8K, or ``"any"``: the mark if there is one, else the box. A
            number somewhere in the text is not an answer.

    Returns:
        The answer, or None.

    Raises:
        ValueError: If `form` is none of these.

    Example:
        >>> extract_answer("#### 12"), extract_answer(r"\boxed{12}"), extract_answer("It is 12.")
        ('12', '12', None)
    """
    if form not in ("boxed", "marked", "any"):
        raise ValueError(f"form is {form!r}; pass 'boxed', 'marked' or 'any'.")
    if form == "boxed":
        return extract_boxed(text)
    marked = extract_marked(text)
    return marked if form == "marked" or marked is not None else extract_boxed(text)
