# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Training states of in-place editing: the canvas begins as the source, and conditions are dropped now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checks import check_probabilities
from ...corruption.collator import RMDataCollator, row_id
from ...corruption.oracle import oracle_labels
from ...corruption.proposals import UniformProposal
from ...corruption.random import KeyedUniforms, row_keys
from ...corruption.source import SourceProposal
from ...training import MaskedSFTCollator
from .protocols import Layout


@dataclass
class EditCollator(RMDataCollator):
    """
    [`RMDataCollator`] for edits: only what the edit changes is corrupted, by the source's tokens.

    Everything else keeps its token, except for a few false alarms: positions that are masked and come back as they
    were, so that a model that re-masked too much knows what to reveal.

    Args:
        layout ([`EditLayout`], [`DimooLayout`]): where words, source and canvas stand.
        text_drop, image_drop (`float`, defaults to 0.1): probabilities, independent of each other, that a row loses
            its instruction (it becomes the unconditional prefix) or its source (its tokens become masks). The
            canvas is left alone.
        false_alarms (`float`, defaults to 0.02): share of the unedited canvas that takes part in a trajectory.
        first_states (`float`, defaults to 0): probability that a row is as decoding begins: the whole source on the
            canvas, no history. Only from these must a model find the region of an edit by reading the instruction: in
            every later state masks, past or present, give it away.
        others: as [`RMDataCollator`]; `full_corruption` is the probability that a row is corrupted wherever it is
            edited, as decoding begins.

    Returns, from a call, what [`RMDataCollator`] returns and `unlikelihood_mask` (B, N) bool: the canvas where the
    edit changes nothing, for [`~hf_rm.training.unlikelihood.unlikelihood`].

    Raises:
        ValueError: for probabilities outside [0, 1].
    """

    layout: Layout = None  # type: ignore[assignment]
    text_drop: float = 0.1
    image_drop: float = 0.1
    false_alarms: float = 0.02
    first_states: float = 0.0

    def __post_init__(self) -> None:
        check_probabilities(self, "text_drop", "image_drop", "false_alarms", "first_states")
        if self.layout is None or not isinstance(self.proposal, SourceProposal):
            raise ValueError("an EditCollator needs a layout and a SourceProposal: use `edit_collator`.")
        super().__post_init__()

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(features)
        if self.first_states:
            self._begin(batch, [f"{row_id(feature)}/first" for feature in features])
        drops = _drops(features, self.seed, int(self._epoch), self.text_drop, self.image_drop)
        for name in ("input_ids", "target_ids", "start_ids", "history_ids"):
            batch[name] = _without_conditions(batch[name], self.layout, drops)
        batch |= _attention(self.layout, batch["input_ids"])
        # What is edited is known of the rows as they were, before any lost its source.
        whole = torch.from_numpy(np.stack([feature["input_ids"] for feature in features]))
        batch["unlikelihood_mask"] = self.unedited(whole, batch["editable_mask"])
        return batch

    def unedited(self, targets: Tensor, editable: Tensor) -> Tensor:
        """(B, N) bool: the canvas of rows (B, N) that end with the target, where it is as the source."""
        found, canvas = torch.zeros_like(editable), self.layout.canvas
        found[:, canvas] = (targets[:, canvas] == targets[:, self.layout.source]) & editable[:, canvas]
        return found

    def _begin(self, batch: dict[str, Tensor], names: Sequence[str]) -> None:
        """Put the rows that are drawn for it where decoding begins."""
        assert isinstance(self.proposal, SourceProposal)
        first = torch.from_numpy(self.uniforms(names).draw(1)[:, 0] < self.first_states)
        targets, editable = batch["target_ids"], batch["editable_mask"]
        source = torch.from_numpy(self.proposal.source_tokens(targets.numpy()))
        labels = oracle_labels(source, targets, editable, self.mask_token_id)
        batch["input_ids"] = torch.where(first[:, None], source, batch["input_ids"])
        batch["labels"] = torch.where(first[:, None], labels, batch["labels"])
        batch["history_lags"] = batch["history_lags"].masked_fill(first[:, None, None], 1)  # runs of no step

    def _corrupted(self, uniforms: KeyedUniforms, editable: np.ndarray, targets: np.ndarray) -> np.ndarray:
        assert isinstance(self.proposal, SourceProposal)
        edited = editable & (self.proposal.source_tokens(targets) != targets)
        corrupted = super()._corrupted(uniforms, edited, targets)
        alarms = uniforms.draw(targets.shape[1]) < self.false_alarms
        return corrupted | (alarms & editable & ~edited)


@dataclass
class EditSFTCollator(MaskedSFTCollator):
    """
    [`~hf_rm.training.MaskedSFTCollator`] for edits: rows lose instruction and source as under [`EditCollator`].

    Args: as [`~hf_rm.training.MaskedSFTCollator`], and `layout`, `text_drop`, `image_drop` of [`EditCollator`].

    Raises:
        ValueError: for probabilities outside [0, 1], or without a layout.
    """

    layout: Layout = None  # type: ignore[assignment]
    text_drop: float = 0.1
    image_drop: float = 0.1

    def __post_init__(self) -> None:
        check_probabilities(self, "text_drop", "image_drop")
        if self.layout is None:
            raise ValueError("`layout` is None: pass that of the rows, an EditLayout or a DimooLayout.")
        super().__post_init__()

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(features)
        drops = _drops(features, self.seed, int(self._epoch), self.text_drop, self.image_drop)
        batch["input_ids"] = _without_conditions(batch["input_ids"], self.layout, drops)
        return batch | _attention(self.layout, batch["input_ids"])


def _drops(
    features: Sequence[dict[str, Any]], seed: int, epoch: int, text_drop: float, image_drop: float
) -> tuple[Tensor, Tensor]:
    """(B,) bool each: which rows lose their text, which their source."""
    names = [f"{row_id(feature)}/drop" for feature in features]
    text, image = KeyedUniforms(row_keys(seed, epoch, names)).draw(2).T
    return torch.from_numpy(text < text_drop), torch.from_numpy(image < image_drop)


def _without_conditions(ids: Tensor, layout: Layout, drops: tuple[Tensor, Tensor]) -> Tensor:
    """Ids (B, N) or the ids of runs (B, N, S) without what the rows lose."""
    text, image = (drop.reshape(-1, *[1] * (ids.dim() - 1)) for drop in drops)
    ids = torch.where(text, layout.without_text(ids)[0], ids)
    return torch.where(image, layout.without_source(ids)[0], ids)


def _attention(layout: Layout, ids: Tensor) -> dict[str, Tensor]:
    """The attention mask, where the layout's own padding is not to be seen."""
    mask = layout.attention_mask(ids)
    return {} if mask is None else {"attention_mask": mask}


def edit_collator(layout: Layout, **settings: Any) -> EditCollator:
    """
    The collator of a layout; further wrong attempts are uniform over the image codes.

    Example:
        >>> from hf_rm.tasks.image_editing.layout import EditLayout
        >>> layout = EditLayout(["cat", "remove", "the"], codes=8, rows=2, columns=2, text_length=4)
        >>> collate = edit_collator(layout, full_corruption=1.0, text_drop=0, image_drop=0, false_alarms=0)
        >>> row = layout.sequences(["remove the cat"], np.array([[[1, 2], [3, 4]]]), np.array([[[1, 2], [5, 4]]]))[0]
        >>> batch = collate([{"input_ids": row, "editable_mask": layout.editable_mask, "idx": 0}])
        >>> batch["start_ids"][0, layout.canvas].tolist() == batch["input_ids"][0, layout.source].tolist()
        True
    """
    later = UniformProposal(layout.vocab_size, excluded=range(layout.first_code))
    proposal = SourceProposal(layout.source, layout.canvas, later)
    return EditCollator(layout.mask_token_id, proposal, layout=layout, pad_token_id=layout.pad_token_id, **settings)


def refuse_blank_rows(training: Any) -> None:
    """Raise a ValueError for the one training argument that the collator of edits is not given."""
    if training.blank_rows:
        raise ValueError(
            f"`blank_rows` is {training.blank_rows!r}, and nothing reads it where pictures are edited: leave it at "
            "0, and pass `full_corruption` for rows that are corrupted wherever they are edited, or `first_states` "
            "for rows as decoding begins."
        )
