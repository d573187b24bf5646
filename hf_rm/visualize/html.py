"""One self-contained HTML page that plays trajectories: no network, no dependency, works from a file.

Everything that came from a model is data: it travels as JSON with nothing in it that HTML could read as markup, and
the page builds its elements with `textContent` only. The page's own style and script are admitted by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ._files import replacing
from .replay import KEEP, Replay, printable

_MASK = -1
_HOLE = re.compile(r"@@(TITLE|CSP|DATA)@@")
_DEFAULT_TITLE = "Reflective Masking replay"


def render_html(replays: Replay | Sequence[Replay], title: str | None = None) -> str:
    """The page as a string.

    Args:
        replays: one replay or several; several get a picker.
        title: the page's title; by default that of the only replay, or a general one.

    Returns:
        A whole HTML document. `#step=3&replay=1` behind its address opens the second replay at step 3.

    Raises:
        ValueError: `replays` is empty.
        TypeError: something in it is not a `Replay`.

    Example:
        >>> page = render_html(Replay([["a", "?"], ["a", "b"]], [[0, 1]], [[False, True], [False, False]]))
        >>> page.startswith("<!doctype html>")
        True
    """
    items = _as_list(replays)
    heading = printable(title or (items[0].title if len(items) == 1 else "") or _DEFAULT_TITLE)
    template = files(__package__).joinpath("replay_page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(heading),
        "CSP": _policy(template),
        "DATA": _inert_json({"title": heading, "replays": [_payload(replay) for replay in items]}),
    }
    # One pass: text that came from a model is never searched for another placeholder.
    return _HOLE.sub(lambda hole: parts[hole[1]], template)


def write_html(replays: Replay | Sequence[Replay], path: str | os.PathLike[str], title: str | None = None) -> Path:
    """Write the page to `path`, whole or not at all: what stood there stays until the new page is complete.

    Args:
        replays, title: as in `render_html`.
        path: where the page goes; missing folders are made.

    Returns:
        `path` as a `Path`.

    Raises:
        ValueError, TypeError: as `render_html`.

    Example:
        >>> import tempfile
        >>> replay = Replay([["a", "?"], ["a", "b"]], [[0, 1]], [[False, True], [False, False]])
        >>> write_html(replay, f"{tempfile.mkdtemp()}/replay.html").name
        'replay.html'
    """
    page = render_html(replays, title)
    with replacing(path) as draft:
        draft.write_bytes(page.encode("utf-8"))
    return Path(path)


def _as_list(replays: Replay | Sequence[Replay]) -> list[Replay]:
    items = [replays] if isinstance(replays, Replay) else list(replays)
    if not items:
        raise ValueError("replays is empty; pass one Replay or a list with at least one.")
    for index, item in enumerate(items):
        if not isinstance(item, Replay):
            raise TypeError(
                f"replays[{index}] is a {type(item).__name__}; make it a Replay with Replay.from_trajectory(...)."
            )
    return items


def _payload(replay: Replay) -> dict[str, Any]:
    """A replay as small JSON: a table of its tokens, the first state, and for each step only what changed."""
    table: dict[str, int] = {}

    def number(token: str, masked: bool) -> int:
        return _MASK if masked else table.setdefault(printable(token), len(table))

    first = [number(token, masked) for token, masked in zip(replay.frames[0], replay.masked[0], strict=True)]
    steps = [_changes(replay, step, number) for step in range(1, replay.num_steps + 1)]
    target = None if replay.target is None else [number(token, False) for token in replay.target]
    return {
        "title": printable(replay.title),
        "layout": replay.layout,
        "columns": replay.columns,
        "box": replay.box,
        "first": first,
        "steps": steps,
        "target": target,
        "editable": None if replay.editable is None else [int(e) for e in replay.editable],
        "metadata": [[printable(str(key)), printable(str(value))] for key, value in replay.metadata.items()],
        "vocabulary": list(table),
    }


def _changes(replay: Replay, step: int, number: Any) -> list[int]:
    """position, token, action for every position the step did not keep, flattened."""
    frame, masked = replay.frames[step], replay.masked[step]
    changed = (i for i, action in enumerate(replay.actions[step - 1]) if action != KEEP)
    return [v for i in changed for v in (i, number(frame[i], masked[i]), replay.actions[step - 1][i])]


def _inert_json(value: Any) -> str:
    """JSON without a character that could end or open an element. `ensure_ascii` covers U+2028 and U+2029."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(template: str) -> str:
    """Nothing may load or run but this page's own style and script, each named by its hash."""
    style, script = _hash(template, "style"), _hash(template, "script")
    return f"default-src 'none'; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"


def _hash(template: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    if found is None:
        raise RuntimeError(f"replay_page.html has no <{tag}> element; the installed package is damaged: reinstall it.")
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode("utf-8")).digest()).decode("ascii")
