"""Solved Sudoku boards: generation, text form, files and the geometry the metrics share.

A board is 81 token ids in row-major order. Digit ``d`` has id ``d`` (1 to 9); id 0 is the mask, written ``.``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from importlib import resources
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

BoardArray: TypeAlias = npt.NDArray[np.uint8]
Split: TypeAlias = Literal["train", "test"]

MASK_ID = 0
VOCAB_SIZE = 10
CELLS = 81

MAX_INDEPENDENT_FILLS = 20_000
"""Boards beyond this many are random symmetries of the first ones; up to it every board is a fill of its own."""

_SPLIT_CODES: dict[str, int] = {"train": 0, "test": 1}
_STREAM_TAG = 0x5D0C0  # keeps these streams apart from other users of the same integer seed
_CHUNK = 1024
_ATTEMPTS = 2048
_ALL_DIGITS = 0x1FF
_BORDER = "------+-------+------"


def _units() -> npt.NDArray[np.int64]:
    """Give the cells of the 27 units, (27, 9): rows, then columns, then boxes."""
    cells = np.arange(CELLS).reshape(9, 9)
    boxes = cells.reshape(3, 3, 3, 3).transpose(0, 2, 1, 3).reshape(9, 9)
    return np.concatenate([cells, cells.T, boxes])


def _peers() -> npt.NDArray[np.int64]:
    """Give the 20 cells that share a unit with each cell, (81, 20)."""
    table = [sorted({int(c) for unit in UNITS if cell in unit for c in unit} - {cell}) for cell in range(CELLS)]
    return np.array(table)


UNITS = _units()
PEERS = _peers()

_IS_PEER_OR_SELF = np.zeros((CELLS, CELLS), dtype=bool)
np.put_along_axis(_IS_PEER_OR_SELF, PEERS, True, axis=1)
np.fill_diagonal(_IS_PEER_OR_SELF, True)
_PEER_CLEAR = np.where(_IS_PEER_OR_SELF, _ALL_DIGITS, 0).astype(np.int16)
_POPCOUNT = np.array([bin(mask).count("1") for mask in range(512)], dtype=np.float32)
_DIGIT_TABLE = np.array([[mask >> d & 1 for d in range(9)] for mask in range(512)], dtype=np.float32)


def as_boards(boards: Any, name: str = "boards") -> BoardArray:
    """Check an array (or CPU tensor) of boards and return it as uint8.

    Args:
        boards: Token ids in 0..9, whole numbers of any numeric dtype, shape (B, 81), or (81,) for one board.
        name: The argument's name in error messages.

    Returns:
        The ids as uint8 of shape (B, 81).

    Raises:
        ValueError: If the last axis is not 81, there are more than two axes, or an entry is no number (a boolean is
            none), no whole one or outside 0..9.

    Example:
        >>> as_boards([[0] * 81]).shape
        (1, 81)
    """
    array = np.asarray(boards)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != CELLS:
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}; pass boards of shape (B, {CELLS}) in row-major order."
        )
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} has dtype {array.dtype}; pass token ids, whole numbers from 0 to {VOCAB_SIZE - 1}.")
    # What is not equal to itself rounded down is a fraction or no number at all; infinities fall out of the range.
    broken = array[array != np.floor(array)] if array.dtype.kind == "f" else array[:0]
    if broken.size:
        raise ValueError(f"{name} holds {broken.flat[0]}; pass token ids, whole numbers from 0 to {VOCAB_SIZE - 1}.")
    if array.size and (array.min() < 0 or array.max() >= VOCAB_SIZE):
        raise ValueError(
            f"{name} holds ids from {array.min()} to {array.max()}; pass 1..9 for digits and {MASK_ID} for the mask."
        )
    return np.asarray(array, dtype=np.uint8)


def is_valid(boards: Any) -> npt.NDArray[np.bool_]:
    """Tell which boards are complete and have every digit once in each row, column and box.

    Args:
        boards: Ids of shape (B, 81), digits 1..9 and 0 for masks; a CPU tensor will do.

    Returns:
        Booleans of shape (B,). A board with a mask is not valid.

    Raises:
        ValueError: If the shape or an id is out of range.

    Example:
        >>> bool(is_valid(generate_boards(1, seed=0))[0])
        True
    """
    bits = np.left_shift(1, as_boards(boards).astype(np.int16))
    seen = np.bitwise_or.reduce(bits[:, UNITS], axis=2)
    return np.asarray((seen == _ALL_DIGITS << 1).all(axis=1))


def parse_board(text: str) -> BoardArray:
    """Read one board from text.

    Args:
        text: 81 characters ``1``..``9``, with ``.`` or ``0`` for a mask; white space and the borders
            of [`format_board`]'s pretty form are skipped.

    Returns:
        The ids, uint8 of shape (81,).

    Raises:
        ValueError: If it is no text, there are not 81 cells or a character is none of the above.

    Example:
        >>> int(parse_board("5" + "." * 80)[0])
        5
    """
    if not isinstance(text, str):
        raise ValueError(f"text is {text!r}; pass a string of {CELLS} characters, '.' or '0' for an empty cell.")
    cells = "".join(text.replace(_BORDER, "").replace("|", "").split()).replace(".", "0")
    unknown = sorted(set(cells) - set("0123456789"))
    if unknown:
        raise ValueError(f"text holds {unknown!r} in {text!r}; write digits 1..9 and '.' or '0' for an empty cell.")
    if len(cells) != CELLS:
        raise ValueError(f"text has {len(cells)} cells in {text!r}; write {CELLS} in row-major order.")
    return np.frombuffer(cells.encode("ascii"), dtype=np.uint8) - np.uint8(ord("0"))


def format_board(ids: Any, pretty: bool = False) -> str:
    """Write one board as text.

    Args:
        ids: 81 ids, digits 1..9 and 0 for masks.
        pretty: Whether to lay the board out in nine lines with box borders instead of one line.

    Returns:
        81 characters, ``.`` for masks; or the nine lines.

    Raises:
        ValueError: If there are not 81 ids or one is outside 0..9.

    Example:
        >>> format_board([0] * 80 + [7])[-2:]
        '.7'
    """
    line = "".join(".123456789"[int(i)] for i in as_boards(np.asarray(ids).reshape(-1), "ids")[0])
    if not pretty:
        return line
    rows = [" | ".join(" ".join(line[start : start + 3]) for start in range(r, r + 9, 3)) for r in range(0, CELLS, 9)]
    return "\n".join([*rows[:3], _BORDER, *rows[3:6], _BORDER, *rows[6:]])


def _attempt_fills(rng: np.random.Generator, attempts: int) -> BoardArray:
    """Fill `attempts` empty boards in parallel, most constrained cell first; return those that did not run dead.

    Starting dead boards afresh instead of backtracking keeps all lanes in one numpy operation. It costs little (most
    attempts succeed) and, unlike undoing the latest choices, favours no part of the search tree.
    """
    candidates = np.full((attempts, CELLS), _ALL_DIGITS, dtype=np.int16)
    boards = np.zeros((attempts, CELLS), dtype=np.uint8)
    for _ in range(CELLS):
        sizes = np.where(boards == 0, _POPCOUNT[candidates], np.float32(99))
        alive = sizes.min(axis=1) > 0
        candidates, boards, sizes = candidates[alive], boards[alive], sizes[alive]
        lanes = np.arange(len(boards))
        sizes += rng.random(sizes.shape, dtype=np.float32) * np.float32(0.5)  # random among the most constrained
        cells = sizes.argmin(axis=1)
        options = _DIGIT_TABLE[candidates[lanes, cells]]
        # The offset keeps an allowed digit above a forbidden one even when its random number is 0.
        digits = (options * (rng.random(options.shape, dtype=np.float32) + np.float32(0.01))).argmax(axis=1)
        boards[lanes, cells] = digits + 1
        bit = np.left_shift(1, digits).astype(np.int16)
        candidates &= ~(_PEER_CLEAR[cells] & bit[:, None])
    return boards


def _independent_chunk(rng: np.random.Generator) -> BoardArray:
    """Give `_CHUNK` boards, each a random fill of its own."""
    found: list[BoardArray] = []
    while sum(map(len, found)) < _CHUNK:
        found.append(_attempt_fills(rng, _ATTEMPTS))
    return np.concatenate(found)[:_CHUNK]


def _line_orders(rng: np.random.Generator, count: int) -> npt.NDArray[np.intp]:
    """Give random orders of nine lines that keep bands (or stacks) together, (count, 9)."""
    bands = rng.random((count, 3)).argsort(axis=1)
    inner = rng.random((count, 3, 3)).argsort(axis=2)
    return np.asarray((bands[:, :, None] * 3 + inner).reshape(count, 9))


def _random_symmetries(boards: BoardArray, rng: np.random.Generator) -> BoardArray:
    """Apply to each board its own random relabelling, line orders, band and stack orders, and transposition."""
    count = len(boards)
    labels = rng.random((count, 9)).argsort(axis=1).astype(np.uint8) + np.uint8(1)
    grid = np.take_along_axis(labels, boards.astype(np.intp) - 1, axis=1).reshape(count, 9, 9)
    grid = np.take_along_axis(grid, _line_orders(rng, count)[:, :, None], axis=1)
    grid = np.take_along_axis(grid, _line_orders(rng, count)[:, None, :], axis=2)
    flip = rng.random(count) < 0.5
    grid = np.where(flip[:, None, None], grid.transpose(0, 2, 1), grid)
    return np.ascontiguousarray(grid.reshape(count, CELLS))


def _chunk_rng(split: str, seed: int, chunk: int) -> np.random.Generator:
    """Seed one chunk's stream.

    Four 32-bit words fill SeedSequence's pool exactly and its mixing is a bijection of the pool, so two different
    (split, seed, chunk) never share a stream: training and test boards come from disjoint seeds.
    """
    return np.random.default_rng(np.random.SeedSequence([_STREAM_TAG, _SPLIT_CODES[split], seed, chunk]))


def _check_generation(count: int, seed: int, split: str) -> None:
    if count < 0:
        raise ValueError(f"count is {count}; pass a number of boards >= 0.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; pass an integer in 0..2**32-1 (streams are told apart by 32-bit words).")
    if split not in _SPLIT_CODES:
        raise ValueError(f"split is {split!r}; pass one of {sorted(_SPLIT_CODES)}.")


def generate_boards(count: int, seed: int, split: Split = "train") -> BoardArray:
    """Generate diverse solved boards.

    The first 20,000 boards are independent random fills; further ones are random symmetries (relabelling, row, column,
    band and stack orders, transposition) of those, each with its own. Size-4 unavoidable sets, which decide whether a
    corrupted board can be restored at all, survive symmetries: many fills are needed for a fair mixture of them.

    Args:
        count: How many boards.
        seed: In 0..2**32-1. The same seed gives the same boards, and a smaller `count` gives their beginning.
        split: ``"train"`` or ``"test"``. No seed of one shares a random stream with any seed of the other.

    Returns:
        Digits 1..9, uint8 of shape (count, 81).

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> generate_boards(3, seed=0).shape
        (3, 81)
    """
    _check_generation(count, seed, split)
    independent = min(count, MAX_INDEPENDENT_FILLS)
    chunks = [_independent_chunk(_chunk_rng(split, seed, c)) for c in range(-(-independent // _CHUNK))]
    fills = np.concatenate(chunks)[:independent] if chunks else np.zeros((0, CELLS), dtype=np.uint8)
    if count <= independent:
        return fills
    boards = [fills]
    for copy in range(1, -(-count // independent)):
        # Chunk numbers from 2**20 on are out of reach for the fills above.
        boards.append(_random_symmetries(fills, _chunk_rng(split, seed, 2**20 + copy)))
    return np.concatenate(boards)[:count]


def _rectangles() -> npt.NDArray[np.int64]:
    """Give the corners (top left, top right, bottom left, bottom right) of all rectangles in two boxes, (486, 4)."""
    pairs = list(combinations(range(9), 2))
    corners = [
        (9 * r1 + c1, 9 * r1 + c2, 9 * r2 + c1, 9 * r2 + c2)
        for r1, r2 in pairs
        for c1, c2 in pairs
        if (r1 // 3 == r2 // 3) != (c1 // 3 == c2 // 3)
    ]
    return np.array(corners)


_RECTANGLES = _rectangles()


def count_unavoidable_rectangles(boards: Any) -> npt.NDArray[np.int64]:
    """Count size-4 unavoidable sets: digits a, b in one row and b, a below them, within exactly two boxes.

    Swapping a and b there gives another valid board at distance 4, which is why a corruption that hits half of such a
    rectangle cannot be undone for sure. Diverse boards have about ten; boards permuted from the cyclic pattern none.

    Args:
        boards: Ids of shape (B, 81).

    Returns:
        Counts, int64 of shape (B,).

    Raises:
        ValueError: If the shape or an id is out of range.

    Example:
        >>> int(count_unavoidable_rectangles(parse_board("." * 81))[0])
        0
    """
    array = as_boards(boards)
    counts = np.zeros(len(array), dtype=np.int64)
    for part in slices(len(array)):
        a, b, c, d = (array[part][:, _RECTANGLES[:, i]] for i in range(4))
        counts[part] = ((a == d) & (b == c) & (a != b) & (a != MASK_ID) & (b != MASK_ID)).sum(axis=1)
    return counts


def slices(count: int, size: int = 4096) -> Iterator[slice]:
    """Cut a long batch into slices, so that tables of (B, cells, peers) stay small.

    Args:
        count: Length of the batch.
        size: Longest slice.

    Returns:
        Slices that cover ``0..count-1`` in order.

    Example:
        >>> list(slices(5, 3))
        [slice(0, 3, None), slice(3, 6, None)]
    """
    return (slice(start, start + size) for start in range(0, count, size))


def _checked_solutions(lines: Iterable[str], source: str) -> BoardArray:
    boards = [parse_board(line) for line in lines]
    if not boards:
        raise ValueError(f"path {source!r} holds no board; give one 81-character board a line or a 'solution' column.")
    array = np.stack(boards)
    wrong = np.flatnonzero(~is_valid(array))
    if len(wrong):
        raise ValueError(
            f"path {source!r}: board {int(wrong[0])} is not a solved board ({format_board(array[wrong[0]])}), "
            f"{len(wrong)} such in all; give solutions, not puzzles."
        )
    return array


def _solution_lines(handle: Iterable[str], source: str) -> Iterator[str]:
    rows = (row for row in csv.reader(handle) if row and not row[0].startswith("#"))
    first = next(rows, None)
    if first is None:
        return
    if len(first) == 1:
        yield first[0]
        yield from (row[0] for row in rows)
        return
    if "solution" not in first:
        raise ValueError(f"path {source!r} has columns {first}; name the column of solved boards 'solution'.")
    column = first.index("solution")
    yield from (row[column] for row in rows)


def load_boards(path: str | os.PathLike[str]) -> BoardArray:
    """Read solved boards from a file.

    Args:
        path: A csv file with a header and a ``solution`` column, or a text file with one 81-character board a line
            (empty lines and lines that start with ``#`` are skipped).

    Returns:
        Digits 1..9, uint8 of shape (boards, 81).

    Raises:
        ValueError: If a line is no board, a board is not solved, or there is none.
        OSError: If the file cannot be read.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "boards.txt"
        >>> _ = file.write_text(format_board(generate_boards(1, seed=0)[0]))
        >>> load_boards(file).shape
        (1, 81)
    """
    with open(path, encoding="utf-8", newline="") as handle:
        return _checked_solutions(_solution_lines(handle, os.fspath(path)), os.fspath(path))


def load_real_boards() -> BoardArray:
    """Load the 2,000 solved boards shipped with the package: published puzzles, another law than the generator's.

    They are solutions from Peter Norvig's collection (MIT; see the NOTICE beside the file).

    Returns:
        Digits 1..9, uint8 of shape (2000, 81).

    Raises:
        OSError: If the package was installed without its data files.

    Example:
        >>> load_real_boards().shape
        (2000, 81)
    """
    file = resources.files("hf_rm.tasks.sudoku") / "data" / "norvig_solved_2000.txt"
    with file.open(encoding="utf-8") as handle:
        return _checked_solutions(_solution_lines(handle, str(file)), str(file))
