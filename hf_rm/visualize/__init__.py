"""Trajectories to look at: in a terminal, as one self-contained HTML page, as a contact sheet of images.

Everything is imported on first use, so `import hf_rm.visualize` loads neither matplotlib nor torch nor rich.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .html import render_html, write_html
    from .images import render_sheet
    from .replay import Replay, StepCounts
    from .terminal import play, render_step

_HOMES = {
    "Replay": "replay",
    "StepCounts": "replay",
    "play": "terminal",
    "render_html": "html",
    "render_sheet": "images",
    "render_step": "terminal",
    "write_html": "html",
}

__all__ = ["Replay", "StepCounts", "play", "render_html", "render_sheet", "render_step", "write_html"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # so the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
