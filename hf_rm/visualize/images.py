"""A contact sheet: the key frames of trajectories side by side in one image. Needs matplotlib."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._files import replacing
from .replay import KEEP, REMASK, REPLACE, REVEAL, Cell, Replay, printable, repeats_special

_INK, _FAINT, _LINE, _WRONG, _MASK = "#1b1c1f", "#90939b", "#dddbd5", "#b0123f", "#eceae5"
_FILL = {KEEP: "none", REVEAL: "#d9ebf9", REMASK: "#fdebd8", REPLACE: "#efe3f7"}
_COLOUR = {KEEP: _INK, REVEAL: "#0b5f9e", REMASK: "#a34a00", REPLACE: "#74409a"}
_TEXT_COLUMNS, _TEXT_SIZE = 44, 6.5
_ADVANCE = 0.602 * _TEXT_SIZE / 72  # inches a character of the bundled monospaced font is wide


def render_sheet(
    replays: Replay | Sequence[Replay],
    path: str | os.PathLike[str],
    steps: Sequence[int] | None = None,
    dpi: int = 150,
) -> Path:
    """Write a PNG with one row a replay and one column a step, whole or not at all.

    Args:
        replays: one replay or several.
        path: where the image goes; missing folders are made.
        steps: which steps to draw; by default each replay's own key frames (at most five).
        dpi: dots per inch; a board is 2.2 inches wide.

    Returns:
        `path` as a `Path`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `replays` or `steps` is empty.
        IndexError: a step does not exist.

    Example:
        >>> replay = Replay([["a", "?"], ["a", "b"]], [[0, 1]], [[False, True], [False, False]])
        >>> render_sheet(replay, "sheet.png")  # doctest: +SKIP
        PosixPath('sheet.png')
    """
    items = [replays] if isinstance(replays, Replay) else list(replays)
    if not items:
        raise ValueError("replays is empty; pass one Replay or a list with at least one.")
    if steps is not None and not len(steps):
        raise ValueError("steps is empty; name the steps to draw, or pass None for the key frames.")
    figure_class = _figure_class()
    chosen = [list(steps) if steps is not None else replay.key_steps(5) for replay in items]
    columns = max(map(len, chosen))
    heights = [_height(replay, row_steps) for replay, row_steps in zip(items, chosen, strict=True)]
    width = 2.4 if all(replay.layout == "grid" for replay in items) else _TEXT_COLUMNS * _ADVANCE + 0.2
    figure = figure_class(figsize=(width * columns, sum(heights)), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(len(items), columns, height_ratios=heights)
    for row, (replay, row_steps) in enumerate(zip(items, chosen, strict=True)):
        for column, step in enumerate(row_steps):
            axes = figure.add_subplot(grid[row, column])
            _draw(axes, replay, step, lines=_lines(replay, row_steps), first=column == 0)
    with replacing(path) as draft, warnings.catch_warnings():
        # A character the bundled font lacks becomes a box; a warning for each would bury the reader.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(draft, format="png", dpi=dpi)
    return Path(path)


def _figure_class() -> Any:
    try:
        # Not pyplot: it keeps every figure alive and picks a window system.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('render_sheet draws with matplotlib; run `pip install "hf-rm[app]"`.') from error
    return Figure


def _height(replay: Replay, steps: Sequence[int]) -> float:
    """Inches a replay's row takes, heading included."""
    return 0.7 + (2.2 / replay.columns if replay.layout == "grid" else 0.16) * _lines(replay, steps)


def _lines(replay: Replay, steps: Sequence[int]) -> int:
    """Rows of the board, or lines of the longest frame: all frames of a row of pictures share one scale."""
    if replay.layout == "grid":
        return -(-replay.length // replay.columns)
    return max(len(_flow(replay.cells(step))[1]) for step in steps)


def _draw(axes: Any, replay: Replay, step: int, lines: int, first: bool) -> None:
    counts, cells = replay.counts(step), replay.cells(step)
    shown = step % (replay.num_steps + 1)
    heading = ["input" if shown == 0 else f"step {shown}: +{counts.revealed} revealed, {counts.remasked} re-masked"]
    left = [f"{counts.masks_left} masks left"] + ([] if counts.wrong_left is None else [f"{counts.wrong_left} wrong"])
    heading.append(", ".join(left))
    if first and replay.title:
        heading.insert(0, printable(replay.title))
    axes.set_title("\n".join(heading), fontsize=7, color=_INK, loc="left", parse_math=False)
    axes.set_axis_off()
    if replay.layout == "grid":
        _grid(axes, replay, cells)
    else:
        _text(axes, cells, lines)


def _grid(axes: Any, replay: Replay, cells: Sequence[Cell]) -> None:
    columns, rows = replay.columns, -(-len(cells) // replay.columns)
    longest = max(1, *(len(cell.text.strip()) for cell in cells if not cell.masked), 1)
    size = min(10.0, 150 / columns / longest)
    for position, cell in enumerate(cells):
        _square(axes, cell, position % columns, position // columns, size)
    for index in range(columns + 1):
        axes.plot([index, index], [0, rows], **_line(index, columns, replay.box))
    for index in range(rows + 1):
        axes.plot([0, columns], [index, index], **_line(index, rows, replay.box))
    axes.set(xlim=(-0.05, columns + 0.05), ylim=(rows + 0.05, -0.05), aspect="equal")


def _line(index: int, last: int, box: int) -> dict[str, Any]:
    thick = index in (0, last) or (box > 0 and index % box == 0)
    return {"color": _INK if thick else _LINE, "linewidth": 1.2 if thick else 0.5, "zorder": 3 if thick else 2}


def _square(axes: Any, cell: Cell, x: int, y: int, size: float) -> None:
    fill = _MASK if cell.masked and cell.action != REMASK else _FILL[cell.action]
    hatch = "/////" if cell.action == REMASK else None
    axes.add_patch(_rectangle(x, y, 1, 1, facecolor=fill, edgecolor="#e8c39d", linewidth=0, hatch=hatch))
    if cell.wrong:
        axes.fill([x + 0.7, x + 1, x + 1], [y, y, y + 0.3], color=_WRONG, linewidth=0, zorder=4)
    token = _token(cell)
    if token:
        axes.text(x + 0.5, y + 0.52, token.strip(), ha="center", va="center", **_font(cell, size))
    if cell.action == REMASK:
        axes.plot([x + 0.28, x + 0.72], [y + 0.5, y + 0.5], color=_COLOUR[REMASK], linewidth=0.8, zorder=5)


def _text(axes: Any, cells: Sequence[Cell], lines: int) -> None:
    placed, _ = _flow(cells)
    for (x, y, token), cell in zip(placed, cells, strict=True):
        if not token:
            continue
        if cell.masked or cell.action != KEEP:
            fill = _FILL[cell.action] if cell.action != KEEP else _MASK
            axes.add_patch(_rectangle(x, y + 0.1, len(token), 0.8, facecolor=fill, linewidth=0))
        if not cell.masked or cell.action == REMASK:
            font = _font(cell, _TEXT_SIZE) | {"family": "monospace"}
            # One character at a time: the font's own advance is then no matter, and the marks sit under their text.
            for offset, character in enumerate(token):
                axes.text(x + offset + 0.5, y + 0.5, character, ha="center", va="center", **font)
        if cell.wrong or cell.action == REMASK:
            level = y + (0.5 if cell.action == REMASK else 0.95)
            axes.plot([x, x + len(token)], [level, level], color=_font(cell, _TEXT_SIZE)["color"], linewidth=0.8)
    axes.set(xlim=(0, _TEXT_COLUMNS), ylim=(lines, 0))


def _flow(cells: Sequence[Cell]) -> tuple[list[tuple[int, int, str]], list[int]]:
    """Where each token goes, (column, line, what is drawn), and the lines' lengths."""
    placed: list[tuple[int, int, str]] = []
    lines = [0]
    for position, cell in enumerate(cells):
        if repeats_special(cells, position):
            cell = cell._replace(text="·")
        token = "   " if cell.masked and cell.action != REMASK else _token(cell)
        # The blank that stands for a waiting mask is its whole drawing; a struck or visible token goes without spaces.
        body = token if cell.masked and cell.action != REMASK else token.strip(" \n")
        spaces = 0 if cell.masked else len(token) - len(token.lstrip(" "))
        body = body.replace("\n", " ")[:_TEXT_COLUMNS]
        if lines[-1] + spaces + len(body) > _TEXT_COLUMNS:
            lines.append(0)
            spaces = 0  # a line begins with a word, not with the space in front of it
        placed.append((lines[-1] + spaces, len(lines) - 1, body))
        lines[-1] += spaces + len(body) + (1 if cell.masked else 0)
        if not cell.masked:
            lines += [0] * token.count("\n")
    return placed, lines


def _token(cell: Cell) -> str:
    if cell.masked and cell.action != REMASK:
        return ""
    return printable(cell.previous if cell.action == REMASK else cell.text)


def _font(cell: Cell, size: float) -> dict[str, Any]:
    """How a token is set. Mathematics stays off: `$` in a model's text is a dollar."""
    colour = _WRONG if cell.wrong else _COLOUR[cell.action]
    if cell.action == KEEP and not cell.editable and not cell.wrong:
        colour = _FAINT
    weight = "bold" if cell.action in (REVEAL, REPLACE) else "normal"
    return {"fontsize": size, "color": colour, "weight": weight, "parse_math": False, "clip_on": True, "zorder": 5}


def _rectangle(x: float, y: float, width: float, height: float, **look: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, zorder=1, **look)
