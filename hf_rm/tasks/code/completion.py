"""The program in a completion."""

from __future__ import annotations

import re

FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
PYTHON = {"", "python", "python3", "py"}
MARKED = re.compile(r"\[BEGIN\]\n?(.*?)(?:\[DONE\]|\Z)", re.DOTALL)
# A line at the margin with which the text after a function's body goes on to something else.
AFTER_BODY = re.compile(r"^(?:def |class |if |print|assert |@|#|```|\[DONE\])", re.MULTILINE)


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async )?(?:def|class) +{re.escape(name)}\b", code, re.MULTILINE) is not None


def _choose(blocks: list[str], entry_point: str | None) -> str:
    """The last block that defines the function that is asked for (drafts come first), else the first."""
    return next((block for block in reversed(blocks) if entry_point and _defines(block, entry_point)), blocks[0])


def _continued(prefix: str, body: str) -> str:
    """The function that `prefix` begins, up to where its body ends."""
    body = body.lstrip("\n")
    end = AFTER_BODY.search(body)
    body = body[: end.start()] if end else body
    lines = body.split("\n")
    rest = [line for line in lines[1:] if line.strip()]
    if lines[0] and not lines[0][0].isspace() and all(line[0].isspace() for line in rest):
        lines[0] = "    " + lines[0]  # the first line's indentation was the prompt's last token
    return prefix + ("" if prefix.endswith("\n") else "\n") + "\n".join(lines)


def extract_code(completion: str, prefix: str = "", entry_point: str | None = None) -> str:
    """Take the program out of a completion.

    In this order: a fenced block (of several, the last that defines `entry_point`, else the first; a fence that is
    never closed goes to the end); the text between ``[BEGIN]`` and ``[DONE]``; the text up to ``[DONE]``, or all of
    it. With `prefix`, text that does not define `entry_point` is the rest of the function that the prefix begins, up
    to the first line at the margin that begins something else. Nothing is repaired beyond that: a program that does
    not parse stays so, and fails.

    Args:
        completion: What the model wrote, without the prompt.
        prefix: An unfinished program that the completion may continue.
        entry_point: The function that is asked for.

    Returns:
        Program text.

    Example:
        >>> extract_code("Here it is:\\n```python\\ndef f():\\n    return 1\\n```\\nIt returns 1.")
        'def f():\\n    return 1\\n'
        >>> extract_code("return 2 * x\\n\\nprint(f(1))", "def f(x):\\n", "f")
        'def f(x):\\n    return 2 * x\\n\\n'
    """
    text = completion.replace("\r\n", "\n")
    blocks = [block for language, block in FENCE.findall(text) if language.lower() in PYTHON]
    marked = MARKED.findall(text)
    if blocks:
        code = _choose(blocks, entry_point)
    elif marked:
        code = _choose(marked, entry_point)
    else:
        code = text.partition("[DONE]")[0]
    if prefix and not (entry_point and _defines(code, entry_point)):
        return _continued(prefix, code)
    if prefix:  # a whole function may still need what the prompt imports or defines
        return f"{prefix.rstrip()}\n    pass\n\n\n{code}"
    return code
