# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The proposal of in-place editing: what is wrong on the canvas is what the source has there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .proposals import Proposal


class SourceProposal(Proposal):
    """
    The source's token where it differs from the target's, otherwise the target's own: keep (method section 3).

    A row holds its source: the canvas's positions follow it in the same order, so nothing is looked up. Unlike other
    proposals this one returns the right token where there is nothing to edit; [`EditCollator`] corrupts nothing there
    but false alarms.

    Args:
        source (`slice`): positions of the source.
        canvas (`slice`): positions of the canvas, as many.
        later ([`Proposal`], *optional*): where the second and further wrong attempts at a position to edit come from
            (say, uniform over the image codes); by default they are the source's token again.

    Raises:
        ValueError: for slices of unequal lengths.

    Example:
        >>> proposal = SourceProposal(slice(0, 2), slice(2, 4))
        >>> proposal.draw(np.zeros((1, 4, 1)), np.array([[7, 8, 7, 9]]), [0])[0, :, 0]
        array([7, 8, 7, 8])
    """

    def __init__(self, source: slice, canvas: slice, later: Proposal | None = None) -> None:
        if source.stop - source.start != canvas.stop - canvas.start:
            raise ValueError(f"`source` is {source} and `canvas` {canvas}: pass slices of one length.")
        self.source, self.canvas, self.later = source, canvas, later

    def source_tokens(self, targets: np.ndarray) -> np.ndarray:
        """(B, N): the source's token at every position of the canvas, the row's own tokens elsewhere."""
        tokens = targets.copy()
        tokens[:, self.canvas] = targets[:, self.source]
        return tokens

    def draw(self, uniforms: np.ndarray, targets: np.ndarray, row_ids: Sequence[int | str]) -> np.ndarray:
        first = self.source_tokens(targets)
        drawn = np.repeat(first[..., None], uniforms.shape[-1], axis=-1)
        if self.later is not None and uniforms.shape[-1] > 1:
            others = self.later.draw(uniforms[..., 1:], targets, row_ids)
            drawn[..., 1:] = np.where((first != targets)[..., None], others, targets[..., None])
        return drawn
