"""The boards that both the ceiling and the evaluation of a model speak about."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from .boards import BoardArray, generate_boards, load_real_boards
from .corruption import corrupt_boards

Source: TypeAlias = Literal["generated", "real"]

_SOURCE_CODES: dict[str, int] = {"generated": 0, "real": 1}
_STREAM_TAG = 0xE7A15E7
_CHUNK = 1024


def _corrupt_in_chunks(target: BoardArray, source: str, seed: int) -> BoardArray:
    """Corrupt chunks of a fixed size, each from its own stream: a smaller set is the beginning of a larger one."""
    parts = []
    for chunk, start in enumerate(range(0, len(target), _CHUNK)):
        part = target[start : start + _CHUNK]
        rng = np.random.default_rng(np.random.SeedSequence([_STREAM_TAG, _SOURCE_CODES[source], seed, chunk]))
        parts.append(corrupt_boards(np.resize(part, (_CHUNK, part.shape[1])), rng)[: len(part)])
    return np.concatenate(parts) if parts else target.copy()


def evaluation_set(source: Source, count: int, seed: int) -> tuple[BoardArray, BoardArray]:
    """Make an evaluation set of Sudoku revision: 4 to 20 wrong cells a board.

    Args:
        source: ``"generated"``: boards of the generator's test split, which shares no random stream with training.
            ``"real"``: the published boards shipped with the package (at most 2,000), another law of boards.
        count: How many boards. A smaller set is the beginning of a larger one.
        seed: In 0..2**32-1; for ``"real"`` it decides the corruption only.

    Returns:
        The corrupted boards and the originals, each uint8 of shape (count, 81).

    Raises:
        ValueError: If the source is unknown, the seed out of range, or there are not so many real boards.

    Example:
        >>> corrupted, target = evaluation_set("generated", 3, seed=0)
        >>> bool(((corrupted != target).sum(axis=1) >= 4).all())
        True
    """
    if source not in _SOURCE_CODES:
        raise ValueError(f"source is {source!r}; pass one of {sorted(_SOURCE_CODES)}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; pass an integer in 0..2**32-1.")
    if source == "generated":
        target = generate_boards(count, seed, split="test")
    else:
        real = load_real_boards()
        if not 0 <= count <= len(real):
            raise ValueError(f"count is {count}; there are {len(real)} real boards, pass at most that or 'generated'.")
        target = real[:count]
    return _corrupt_in_chunks(target, source, seed), target
