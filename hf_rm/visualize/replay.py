"""One row's decoding trajectory as plain Python data: what every renderer in this folder reads.

Nothing here needs torch: ids come in as anything with ``tolist()`` (a tensor, an array) or as nested lists.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KEEP, REVEAL, REMASK, REPLACE = 0, 1, 2, 3
ACTION_NAMES = ("keep", "reveal", "re-mask", "replace")
LAYOUTS = ("grid", "text")
_SPECIAL = re.compile(r"<\|[^<>]*\|>|</?s>|<pad>|<eos>|<bos>|<unk>|\[(?:PAD|EOS|SEP|CLS)\]")


class StepCounts(NamedTuple):
    """What happened at one step and what is left after it.

    `kept` counts editable positions that were visible and stayed as they were; a mask that waits is in `masks_left`
    only. `wrong_left` counts visible tokens that differ from the target, and is None without a target.

    Example:
        >>> StepCounts(kept=3, revealed=1, remasked=0, replaced=0, masks_left=2, wrong_left=None).masks_left
        2
    """

    kept: int
    revealed: int
    remasked: int
    replaced: int
    masks_left: int
    wrong_left: int | None


class Cell(NamedTuple):
    """One position at one step. `previous` is the token it held before the step ("" at step 0 or if it was a mask).

    Example:
        >>> Cell(text="5", previous="", action=REVEAL, masked=False, wrong=False, editable=True).text
        '5'
    """

    text: str
    previous: str
    action: int
    masked: bool
    wrong: bool
    editable: bool


def printable(text: str) -> str:
    r"""`text` with control characters made visible, so that a token can neither drive a terminal nor reorder a page.

    Newlines stay (each layout has its own mark for them) and a tab becomes one space. Escape and the other controls
    become their Unicode pictures; bidirectional overrides, other format characters and lone surrogates become
    U+FFFD. The zero-width joiners, which emoji and several scripts need, stay.

    Example:
        >>> printable("a\x1b[31m")
        'a␛[31m'
    """
    return "".join(map(_printable_character, text))


def repeats_special(cells: Sequence[Cell], position: int) -> bool:
    """True where a special token follows itself: a finished answer ends in hundreds of them, and one name will do.

    Example:
        >>> end = Cell("<|endoftext|>", "", KEEP, False, False, True)
        >>> [repeats_special([end, end], i) for i in (0, 1)]
        [False, True]
    """
    now, last = cells[position], cells[max(position - 1, 0)]
    same = position > 0 and not (now.masked or last.masked) and now.text == last.text
    return same and _SPECIAL.fullmatch(now.text) is not None


def _printable_character(character: str) -> str:
    code = ord(character)
    if character == "\n" or character in "\u200c\u200d":
        return character
    if character == "\t":
        return " "
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    unsafe = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "\ufffd" if unsafe else character


@dataclass
class Replay:
    """One row's trajectory: S + 1 states, the input first, and the S steps between them.

    Step 0 is the input; step s in 1..S shows `frames[s]` and the actions that produced it, `actions[s - 1]`.

    Args:
        frames: (S + 1, N) token strings. What stands at a masked position is never shown.
        actions: (S, N) codes: 0 keep, 1 reveal, 2 re-mask, 3 replace.
        masked: (S + 1, N), True where the position is a mask.
        target: (N,) token strings, if the right answer is known.
        editable: (N,), False where the decoder may not change anything (a prompt, givens). None: all may change.
        layout: `"grid"` (a board of `columns` cells a row, thick lines every `box` cells; 0 for none) or `"text"`.
        columns: cells in a row of the grid.
        box: cells between thick lines of the grid.
        title: a heading.
        metadata: short facts to print beside it (model, seed, ...).

    Raises:
        ValueError: a shape does not fit, or an action contradicts the states around it.

    Example:
        >>> replay = Replay([["a", "?"], ["a", "b"]], [[0, 1]], [[False, True], [False, False]], target=["a", "b"])
        >>> replay.counts(1)
        StepCounts(kept=1, revealed=1, remasked=0, replaced=0, masks_left=0, wrong_left=0)
    """

    frames: list[list[str]]
    actions: list[list[int]]
    masked: list[list[bool]]
    target: list[str] | None = None
    editable: list[bool] | None = None
    layout: str = "text"
    columns: int = 9
    box: int = 3
    title: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_shapes()
        self._check_layout()
        for step in range(1, self.num_steps + 1):
            self._check_step(step)

    @property
    def num_steps(self) -> int:
        """S, the number of steps; the last step is `num_steps`.

        Example:
            >>> Replay([["a"]], [], [[False]]).num_steps
            0
        """
        return len(self.actions)

    @property
    def length(self) -> int:
        """N, the number of positions.

        Example:
            >>> Replay([["a", "b"]], [], [[False, False]]).length
            2
        """
        return len(self.frames[0])

    @classmethod
    def from_trajectory(
        cls,
        states: Any,
        actions: Any,
        *,
        mask_token_id: int,
        decode: Callable[[int], str] | Any,
        target: Any = None,
        editable: Any = None,
        num_steps: int | None = None,
        mask_text: str = "[MASK]",
        layout: str = "text",
        columns: int = 9,
        box: int = 3,
        title: str = "",
        metadata: dict[str, str] | None = None,
    ) -> Replay:
        """Build a replay from one row of `ReflectiveOutput.trajectory`.

        Args:
            states: (S + 1, N) ids, the input first: `out.trajectory.states[:, row]`.
            actions: (S, N) codes: `out.trajectory.actions[:, row]`.
            mask_token_id: the id of the mask.
            decode: a tokenizer, or a function from one id to its text. It is never called for the mask.
            target: (N,) ids of the right answer, if known.
            editable: (N,) booleans: what the decoder was allowed to change.
            num_steps: how many steps this row really made (`out.num_steps[row]`); later ones, the padding of a
                batch whose other rows ran longer, are dropped.
            mask_text: what stands in `frames` at a mask.
            layout, columns, box, title, metadata: as in `Replay`.

        Raises:
            ValueError: a shape does not fit (a batch dimension was left in, say), or an action contradicts the states.
            TypeError: `decode` is neither a tokenizer nor callable.

        Example:
            >>> replay = Replay.from_trajectory([[1, 9], [1, 2]], [[0, 1]], mask_token_id=9, decode=str)
            >>> replay.frames[1]
            ['1', '2']
        """
        rows = _matrix("states", states)
        codes = _matrix("actions", actions)
        if num_steps is not None:
            steps = _scalar(num_steps)
            if not 0 <= steps <= len(codes):
                raise ValueError(
                    f"num_steps={steps} is outside 0..{len(codes)}, the steps in `actions`; pass this row's entry of "
                    "`out.num_steps`, or None for all of them."
                )
            rows, codes = rows[: steps + 1], codes[:steps]
        text = _Decoder(decode, mask_token_id, mask_text)
        return cls(
            frames=[[text(i) for i in row] for row in rows],
            actions=codes,
            masked=[[i == mask_token_id for i in row] for row in rows],
            target=None if target is None else [text(i) for i in _vector("target", target)],
            editable=None if editable is None else [bool(e) for e in _vector("editable", editable)],
            layout=layout,
            columns=columns,
            box=box,
            title=title,
            metadata=dict(metadata or {}),
        )

    def wrong(self, step: int) -> list[bool]:
        """(N,): visible at `step` and different from the target. All False without a target; a mask is not wrong.

        Raises:
            IndexError: there is no such step.

        Example:
            >>> Replay([["a", "b"]], [], [[False, False]], target=["a", "c"]).wrong(0)
            [False, True]
        """
        step = self._index(step)
        if self.target is None:
            return [False] * self.length
        rows = zip(self.frames[step], self.masked[step], self.target, strict=True)
        return [not masked and token != right for token, masked, right in rows]

    def cells(self, step: int) -> list[Cell]:
        """(N,) cells: everything a renderer needs to draw `step`.

        Raises:
            IndexError: there is no such step.

        Example:
            >>> Replay([["a"], ["b"]], [[3]], [[False], [False]]).cells(1)[0].previous
            'a'
        """
        step = self._index(step)
        wrong = self.wrong(step)
        editable = self.editable or [True] * self.length
        return [
            Cell(self.frames[step][i], self._previous(step, i), self._action(step, i), masked, wrong[i], editable[i])
            for i, masked in enumerate(self.masked[step])
        ]

    def counts(self, step: int) -> StepCounts:
        """What `step` did and what is left after it; step 0 did nothing and counts what it was given as kept.

        Raises:
            IndexError: there is no such step.

        Example:
            >>> Replay([["a"], ["?"]], [[2]], [[False], [True]]).counts(1).remasked
            1
        """
        cells = self.cells(step)
        actions = [cell.action for cell in cells]
        return StepCounts(
            kept=sum(cell.action == KEEP and not cell.masked and cell.editable for cell in cells),
            revealed=actions.count(REVEAL),
            remasked=actions.count(REMASK),
            replaced=actions.count(REPLACE),
            masks_left=sum(cell.masked for cell in cells),
            wrong_left=None if self.target is None else sum(cell.wrong for cell in cells),
        )

    def key_steps(self, limit: int = 6) -> list[int]:
        """At most `limit` steps worth a picture: the input, the end, and between them those that revised most.

        Raises:
            ValueError: `limit` is below 1.

        Example:
            >>> Replay([["a"], ["?"], ["b"]], [[2], [1]], [[False], [True], [False]]).key_steps(2)
            [0, 2]
        """
        if limit < 1:
            raise ValueError(f"limit={limit} asks for no step at all; pass 1 or more.")
        if self.num_steps + 1 <= limit:
            return list(range(self.num_steps + 1))
        if limit == 1:
            return [self.num_steps]

        def weight(step: int) -> tuple[int, int, int]:
            counts = self.counts(step)
            return counts.remasked + counts.replaced, counts.revealed, -step

        between = sorted(range(1, self.num_steps), key=weight, reverse=True)
        return sorted([0, self.num_steps, *between[: limit - 2]])

    def _index(self, step: int) -> int:
        """`step` itself, negative ones counted from the end as Python does."""
        last = self.num_steps
        if not -last - 1 <= step <= last:
            raise IndexError(f"step={step} does not exist: this replay has the steps 0 (the input) to {last}.")
        return step % (last + 1)

    def _action(self, step: int, position: int) -> int:
        return self.actions[step - 1][position] if step else KEEP

    def _previous(self, step: int, position: int) -> str:
        if step == 0 or self.masked[step - 1][position]:
            return ""
        return self.frames[step - 1][position]

    def _check_shapes(self) -> None:
        if not self.frames or not self.frames[0]:
            raise ValueError("frames is empty; pass S + 1 states of N tokens, the input first.")
        steps, length = len(self.frames) - 1, len(self.frames[0])
        if len(self.actions) != steps:
            raise ValueError(
                f"actions has {len(self.actions)} steps but frames has {steps + 1} states; S steps lie between S + 1 "
                "states, the input first."
            )
        if len(self.masked) != steps + 1:
            raise ValueError(f"masked has {len(self.masked)} rows but frames has {steps + 1}; pass one row a state.")
        rows: list[tuple[str, Sequence[Any] | None]] = [(f"frames[{t}]", row) for t, row in enumerate(self.frames)]
        rows += [(f"actions[{t}]", action_row) for t, action_row in enumerate(self.actions)]
        rows += [(f"masked[{t}]", mask_row) for t, mask_row in enumerate(self.masked)]
        rows += [("target", self.target), ("editable", self.editable)]
        for name, row in rows:
            if row is not None and len(row) != length:
                raise ValueError(
                    f"{name} has {len(row)} positions but frames[0] has {length}; every row covers the same N."
                )

    def _check_layout(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r} is unknown; choose one of {', '.join(map(repr, LAYOUTS))}.")
        if self.columns < 1:
            raise ValueError(f"columns={self.columns} is no width; pass 1 or more (9 for Sudoku).")
        if self.box < 0:
            raise ValueError(f"box={self.box} is negative; pass 0 for no thick lines or 3 for Sudoku.")

    def _check_step(self, step: int) -> None:
        """The pages store only what changed, so an action that contradicts the states would show a wrong board."""
        for i, action in enumerate(self.actions[step - 1]):
            was, now = self.masked[step - 1][i], self.masked[step][i]
            changed = not (was or now) and self.frames[step - 1][i] != self.frames[step][i]
            consistent = {
                KEEP: was == now and not changed,
                REVEAL: was and not now,
                REMASK: now and not was,
                REPLACE: not was and not now,
            }
            if action not in consistent:
                raise ValueError(
                    f"actions[{step - 1}][{i}]={action!r} is no action; the codes are 0 keep, 1 reveal, 2 re-mask and "
                    "3 replace."
                )
            if not consistent[action]:
                raise ValueError(
                    f"actions[{step - 1}][{i}]={action} ({ACTION_NAMES[action]}) contradicts the states, which go "
                    f"from {self._describe(step - 1, i)} to {self._describe(step, i)}; check that states and actions "
                    "come from the same run and that mask_token_id is the run's mask."
                )

    def _describe(self, step: int, position: int) -> str:
        return "a mask" if self.masked[step][position] else repr(self.frames[step][position])


class _Decoder:
    """Ids to strings, each id once: a trajectory repeats the same few tokens thousands of times."""

    def __init__(self, decode: Any, mask_token_id: int, mask_text: str) -> None:
        if not (callable(decode) or hasattr(decode, "decode")):
            raise TypeError(f"decode={decode!r} is neither a tokenizer nor a function from one id to its text.")
        self.decode = decode
        self.cache = {int(mask_token_id): mask_text}

    def __call__(self, token_id: int) -> str:
        if token_id not in self.cache:
            self.cache[token_id] = self._text(token_id)
        return self.cache[token_id]

    def _text(self, token_id: int) -> str:
        # A tokenizer is itself callable (it encodes), so it is recognised by its `decode`, and first.
        if not hasattr(self.decode, "decode"):
            return str(self.decode(token_id))
        text = str(self.decode.decode([token_id]))
        if _SPECIAL.fullmatch(text):
            return text
        # A tokenizer may write a space before a word that is not the first of its sequence (SentencePiece, words), or
        # mark a piece that is the first (WordPiece's ##): what a token adds behind itself is how it stands in a text.
        twice = str(self.decode.decode([token_id, token_id]))
        return twice.removeprefix(text) if twice.startswith(text) and twice != text else text


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def _scalar(value: Any) -> int:
    return int(_plain(value))


def _matrix(name: str, values: Any) -> list[list[int]]:
    """(rows, N) ids as nested lists. `actions` of a run without a step may have no row at all."""
    rows = [_plain(row) for row in _plain(values)]
    for row in rows:
        if not isinstance(row, (list, tuple)):
            raise ValueError(f"{name} has one dimension; pass a row's whole trajectory, (steps, N).")
        if any(isinstance(item, (list, tuple)) for item in map(_plain, row)):
            raise ValueError(f"{name} has three dimensions, (steps, B, N); pick one row of the batch: {name}[:, row].")
    return [[_scalar(item) for item in row] for row in rows]


def _vector(name: str, values: Any) -> list[int]:
    items = [_plain(item) for item in _plain(values)]
    if any(isinstance(item, (list, tuple)) for item in items):
        raise ValueError(f"{name} has more than one dimension; pass one row of the batch, (N,).")
    return [int(item) for item in items]
