"""A trajectory in the terminal: a board with box lines or flowing text, readable with and without colour.

What happened to a token shows in its brackets as well as in its colour: (5) revealed, [5] re-masked (the token that
was taken back; the position is a mask now), {5} replaced; 5! is wrong where the target is known.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.style import Style
from rich.text import Text

from .replay import KEEP, REMASK, REPLACE, REVEAL, Cell, Replay, printable, repeats_special

_BRACKETS = {KEEP: ("", ""), REVEAL: ("(", ")"), REMASK: ("[", "]"), REPLACE: ("{", "}")}
# Blue, orange and magenta stay apart in the common kinds of colour blindness, on light and on dark terminals.
_STYLES = {KEEP: "", REVEAL: "bold blue", REMASK: "yellow", REPLACE: "bold magenta"}
_WRONG = Style(color="red", underline=True)


@dataclass(frozen=True)
class _Glyphs:
    """The few characters beyond ASCII that the drawing uses, or their stand-ins."""

    mask: str
    newline: str
    dash: str
    again: str  # one more of the same end marker
    bar: str
    corners: str  # top left, top middle, top right, the same for the middle and for the bottom


_UNICODE = _Glyphs("·", "↵", "─", "∎", "│", "┌┬┐├┼┤└┴┘")
_ASCII = _Glyphs(".", "\\n", "-", "#", "|", "+++++++++")


class StepView:
    """One step as something rich can print; it looks at the console first, so ASCII-only terminals get ASCII.

    Example:
        >>> from rich.console import Console
        >>> console = Console(width=60, file=__import__("io").StringIO())
        >>> console.print(StepView(Replay([["a", "?"], ["a", "b"]], [[0, 1]], [[False, True], [False, False]]), 1))
        >>> "(b)" in console.file.getvalue()
        True
    """

    def __init__(self, replay: Replay, step: int) -> None:
        self.replay = replay
        self.cells = replay.cells(step)
        self.counts = replay.counts(step)
        self.step = step % (replay.num_steps + 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = _ASCII if options.ascii_only else _UNICODE
        draw = _board if self.replay.layout == "grid" else _prose
        body = draw(self.replay, self.cells, glyphs)
        parts = [self._heading(), body, self._numbers(), self._legend(glyphs)]
        yield Group(*(_ascii(part) if options.ascii_only else part for part in parts))

    def _heading(self) -> Text:
        where = f"step {self.step} of {self.replay.num_steps}" + ("" if self.step else ", the input")
        title = printable(self.replay.title).replace("\n", " ")
        return Text.assemble((f"{title}  " if title else "", "bold"), (where, "" if title else "bold"))

    def _numbers(self) -> Text:
        counts = self.counts
        parts = [f"revealed {counts.revealed}", f"re-masked {counts.remasked}"]
        parts += [f"replaced {counts.replaced}"] if counts.replaced else []
        parts += [f"kept {counts.kept}", f"masks left {counts.masks_left}"]
        parts += [] if counts.wrong_left is None else [f"wrong left {counts.wrong_left}"]
        return Text("  ".join(parts))

    def _legend(self, glyphs: _Glyphs) -> Text:
        entries = [("(a)", _STYLES[REVEAL], "revealed"), ("[a]", _STYLES[REMASK], "re-masked")]
        if any(REPLACE in row for row in self.replay.actions):
            entries.append(("{a}", _STYLES[REPLACE], "replaced"))
        entries.append((glyphs.mask, "dim", "mask"))
        legend = Text()
        for mark, style, meaning in entries:
            legend.append(mark, style).append(f" {meaning}  ", "dim")
        if self.replay.target is not None:
            legend.append("a!", _WRONG).append(" wrong", "dim")
        return legend


def render_step(replay: Replay, step: int) -> StepView:
    """One step, ready for `rich.print` or a console: heading, board or text, counts and legend.

    Args:
        replay: the trajectory.
        step: 0 (the input) to `replay.num_steps`; negative steps count from the end.

    Returns:
        A rich renderable.

    Raises:
        IndexError: there is no such step.

    Example:
        >>> from rich.console import Console
        >>> Console().print(render_step(Replay([["a", "b"]], [], [[False, False]]), 0))  # doctest: +SKIP
    """
    return StepView(replay, step)


def play(
    replay: Replay, console: Console | None = None, delay: float = 0.4, steps: Sequence[int] | None = None
) -> None:
    """Animate the trajectory in a terminal; anywhere else (a file, a log, CI) print its key frames one below another.

    Args:
        replay: the trajectory.
        console: where to; by default standard output.
        delay: seconds each step stays, in a terminal only.
        steps: which steps to show, in this order; by default every one in a terminal and the key frames elsewhere.

    Raises:
        ValueError: `delay` is negative.
        IndexError: a step does not exist.

    Example:
        >>> play(Replay([["a", "?"], ["a", "b"]], [[0, 1]], [[False, True], [False, False]]))  # doctest: +SKIP
    """
    if delay < 0:
        raise ValueError(f"delay={delay} is negative; pass the seconds each step stays, 0 or more.")
    console = console or Console()
    if console.is_terminal:
        views = [render_step(replay, step) for step in (range(replay.num_steps + 1) if steps is None else steps)]
        _animate(views, console, delay)
    else:
        views = [render_step(replay, step) for step in (replay.key_steps() if steps is None else steps)]
        for number, view in enumerate(views):
            console.print(*([""] if number else []), view, sep="\n")


def _animate(views: Sequence[StepView], console: Console, delay: float) -> None:
    if not views:
        return
    with Live(views[0], console=console, auto_refresh=False) as live:
        for number, view in enumerate(views):
            live.update(view, refresh=True)
            if number + 1 < len(views):
                time.sleep(delay)


def _style(cell: Cell) -> Style:
    if cell.masked and cell.action != REMASK:
        return Style(dim=True)
    style = Style.parse(_STYLES[cell.action])
    if cell.action == KEEP and not cell.editable:
        style += Style(dim=True)
    return style + _WRONG if cell.wrong else style


def _marked(cell: Cell, glyphs: _Glyphs, token: str) -> str:
    """The token in the brackets of what happened to it."""
    if cell.masked and cell.action != REMASK:
        return glyphs.mask
    left, right = _BRACKETS[cell.action]
    return left + token + right + ("!" if cell.wrong else "")


def _shown(cell: Cell) -> str:
    return printable(cell.previous if cell.action == REMASK else cell.text)


def _ascii(text: Text) -> Text:
    """`text` with every character an ASCII terminal cannot print as a question mark, styles kept."""
    plain = "".join(character if character.isascii() else "?" for character in text.plain)
    return Text(plain, spans=text.spans, style=text.style)


def _board(replay: Replay, cells: Sequence[Cell], glyphs: _Glyphs) -> Text:
    faces = [_marked(cell, glyphs, _shown(cell).replace("\n", glyphs.newline).strip()) for cell in cells]
    # A bare token sits where a bracketed one has it, so that digits keep their column from step to step.
    faces = [face if _BRACKETS[cell.action][0] else f" {face}" for face, cell in zip(faces, cells, strict=True)]
    width = max(4, *map(cell_len, faces))
    groups = [len(list(group)) for _, group in groupby(range(replay.columns), lambda c: _box(c, replay.box))]
    rules = [_rule(groups, width, glyphs, level) for level in range(3)]
    board = Text(rules[0] + "\n", no_wrap=True, overflow="crop")
    rows = -(-len(cells) // replay.columns)
    for row in range(rows):
        if row and _box(row, replay.box) != _box(row - 1, replay.box):
            board.append(rules[1] + "\n")
        for column in range(replay.columns):
            if column == 0 or _box(column, replay.box) != _box(column - 1, replay.box):
                board.append(glyphs.bar)
            position = row * replay.columns + column
            board.append(_face(faces, cells, position, width))
        board.append(glyphs.bar + "\n")
    board.append(rules[2])
    return board


def _face(faces: Sequence[str], cells: Sequence[Cell], position: int, width: int) -> Text:
    if position >= len(faces):  # the last row of a board whose length is no multiple of its columns
        return Text(" " * width)
    face = faces[position]
    token = face.lstrip(" ")
    # The padding stays unstyled: an underline belongs to the token only.
    return Text.assemble(
        " " * (len(face) - len(token)), (token, _style(cells[position])), " " * (width - cell_len(face))
    )


def _box(index: int, box: int) -> int:
    return index // box if box else 0


def _rule(groups: Sequence[int], width: int, glyphs: _Glyphs, level: int) -> str:
    ends = glyphs.corners[3 * level : 3 * level + 3]
    return ends[0] + ends[1].join(glyphs.dash * (width * size) for size in groups) + ends[2]


def _prose(replay: Replay, cells: Sequence[Cell], glyphs: _Glyphs) -> Text:
    text = Text(overflow="fold")
    for position, cell in enumerate(cells):
        if repeats_special(cells, position):
            cell = cell._replace(text=glyphs.again)
        for piece, style in _pieces(cell, glyphs):
            text.append(piece, style)
    text.rstrip()
    return text


def _pieces(cell: Cell, glyphs: _Glyphs) -> Iterator[tuple[str, Style]]:
    """A token's leading spaces, the token itself in its brackets, and the line breaks it makes."""
    token = _shown(cell)
    body = token.lstrip(" ")
    if cell.masked:
        # Neighbouring masks would run into one word otherwise.
        yield " ", Style()
        yield _marked(cell, glyphs, body.replace("\n", glyphs.newline) or "_"), _style(cell)
        return
    breaks = len(body) - len(body.rstrip("\n"))
    body = body.rstrip("\n").replace("\n", f"{glyphs.newline}\n")
    touched = cell.action != KEEP or cell.wrong
    if not body and not breaks and touched:
        yield _marked(cell, glyphs, "_" * len(token)), _style(cell)
        return
    yield token[: len(token) - len(token.lstrip(" "))], Style()
    mark = glyphs.newline if breaks else ""
    if body or mark:
        yield _marked(cell, glyphs, body + mark), _style(cell) if body or touched else Style(dim=True)
    yield "\n" * breaks, Style()
