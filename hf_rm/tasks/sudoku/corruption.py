"""The Sudoku revision task's corruption: a solved board with some cells replaced by wrong digits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .boards import CELLS, MASK_ID, BoardArray, as_boards


def corrupt_boards(boards: Any, rng: np.random.Generator, min_wrong: int = 4, max_wrong: int = 20) -> BoardArray:
    """Replace some cells of each board by a wrong digit.

    The number of cells is uniform in ``min_wrong..max_wrong`` for each board, the cells are distinct and uniform, and
    each wrong digit is uniform over the eight others.

    Args:
        boards: Solved boards, digits 1..9, shape (B, 81) (or (81,) for one).
        rng: Where the randomness comes from; the result is a function of its state.
        min_wrong: Fewest replaced cells, at least 0.
        max_wrong: Most replaced cells, at most 81.

    Returns:
        Corrupted copies, uint8 of shape (B, 81).

    Raises:
        ValueError: If the range is empty or out of 0..81, or a board has a masked cell.

    Example:
        >>> board = np.tile(np.arange(1, 10), 9)[None]
        >>> wrong = corrupt_boards(board, np.random.default_rng(0), 5, 5)
        >>> int((wrong != board).sum())
        5
    """
    if not 0 <= min_wrong <= max_wrong <= CELLS:
        raise ValueError(
            f"min_wrong is {min_wrong} and max_wrong {max_wrong}; pass 0 <= min_wrong <= max_wrong <= {CELLS}."
        )
    array = as_boards(boards)
    if (array == MASK_ID).any():
        raise ValueError("boards holds masked cells (id 0); pass solved boards, 'another digit' needs a digit.")
    counts = rng.integers(min_wrong, max_wrong + 1, size=len(array))
    order = rng.random(array.shape).argsort(axis=1).argsort(axis=1)
    shifts = rng.integers(
        1, 9, size=array.shape, dtype=np.uint8
    )  # 1..8: a shift in the circle of nine never comes home
    wrong = (array - np.uint8(1) + shifts) % np.uint8(9) + np.uint8(1)
    return np.asarray(np.where(order < counts[:, None], wrong, array), dtype=np.uint8)
