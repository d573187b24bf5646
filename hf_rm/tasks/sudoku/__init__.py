"""Sudoku revision: restore a solved board in which some cells were replaced by wrong digits.

[`closest_boards`] and [`map_ceiling`] need the optional solver library ortools (``pip install hf-rm[sudoku]``); it is
imported when they are called.
"""

from .boards import (
    CELLS,
    MASK_ID,
    VOCAB_SIZE,
    BoardArray,
    count_unavoidable_rectangles,
    format_board,
    generate_boards,
    is_valid,
    load_boards,
    load_real_boards,
    parse_board,
)
from .ceiling import (
    CeilingResult,
    CeilingTable,
    boards_digest,
    closest_boards,
    find_ceiling,
    load_ceiling,
    map_ceiling,
    save_ceiling,
)
from .corruption import corrupt_boards
from .evaluation_set import evaluation_set
from .metrics import conflict_cells, remask_recall_by_history, replay_cells, sudoku_metrics

__all__ = [
    "CELLS",
    "MASK_ID",
    "VOCAB_SIZE",
    "BoardArray",
    "CeilingResult",
    "CeilingTable",
    "boards_digest",
    "closest_boards",
    "conflict_cells",
    "corrupt_boards",
    "count_unavoidable_rectangles",
    "evaluation_set",
    "find_ceiling",
    "format_board",
    "generate_boards",
    "is_valid",
    "load_boards",
    "load_ceiling",
    "load_real_boards",
    "map_ceiling",
    "parse_board",
    "remask_recall_by_history",
    "replay_cells",
    "save_ceiling",
    "sudoku_metrics",
]
