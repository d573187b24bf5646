# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Keyed random numbers: a row's draws depend on (seed, epoch, row id) and on nothing else.

A collator that drew from a global generator would give other rows with another number of workers or processes, and
other batches after a resume, since data loaders fetch ahead. Here every row has a key of its own, and number n of its
draw c is a hash of (key, c, n): all rows of a batch are drawn at once, without a generator object a row, and how far a
batch is padded shifts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_keys(seed: int, epoch: int, row_ids: Sequence[int | str]) -> np.ndarray:
    """(B,) uint64 keys, one a row, from a blake2b digest of (seed, epoch, row id)."""
    digests = (blake2b(f"{seed}/{epoch}/{row}".encode(), digest_size=8).digest() for row in row_ids)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


class KeyedUniforms:
    """
    Streams of uniform numbers in [0, 1), one a row.

    Example:
        >>> a, b = KeyedUniforms(row_keys(0, 0, [3, 7])), KeyedUniforms(row_keys(0, 0, [7]))
        >>> bool((a.draw(5)[1] == b.draw(5)[0]).all())
        True
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self.draws = 0

    def draw(self, *shape: int) -> np.ndarray:
        """
        (B, *shape) float64: every row's next draw.

        One of a larger leading size begins with the numbers of a smaller one.
        """
        self.draws += 1
        keys = _splitmix64(self.keys + np.array([self.draws], dtype=np.uint64) * _GOLDEN)
        counters = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
        bits = _splitmix64(keys[:, None] + counters * _GOLDEN)
        return ((bits >> np.uint64(11)) * 2.0**-53).reshape(len(self.keys), *shape)


def _splitmix64(z: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014), elementwise."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
