# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The harvested proposal: wrong tokens that the model itself has committed to.

    sample, some or all of it masked -> decoding -> every wrong token that became visible, by position, counted

Harvest between two stages of a training; the next one draws from what lies in the folder, and is as deterministic and
resumable as with any other proposal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modes import evaluating
from .collator import pad_rows, row_id
from .proposals import Proposal
from .random import KeyedUniforms, row_keys
from .shards import Arrays, ShardFolder, fill
from .topk import RowTable, data_digest, model_digest, offsets_of, sample_digests, search


@torch.no_grad()
def harvest(
    model: Any,
    rows: Any,
    folder: str | Path,
    *,
    mask_rate: tuple[float, float] = (0.2, 1.0),
    seed: int = 0,
    batch_size: int = 8,
    shard_rows: int = 256,
    on_shard: Callable[[], None] | None = None,
    **decoding: Any,
) -> ShardFolder:
    """
    Decode every sample and store the wrong tokens that the model committed to, position by position.

    A row starts with a share of its editable positions masked, drawn by row. A commitment is a token that is revealed
    or replaced at a position; it is wrong where the sample has another one. Call it in every process of a run: each
    takes a share of the shards. A harvest that was killed goes on with the shards that it lacks.

    Args:
        model ([`RMForMaskedDiffusion`]): the model as it is now.
        rows (sequence of dicts, [`RowDataset`] among them): `input_ids`, `idx` and optionally `editable_mask`.
        folder (`str` or `Path`): one harvest; a folder that all processes see.
        mask_rate (`tuple[float, float]`, defaults to (0.2, 1.0)): a row's share of masks is uniform between these.
            What stays visible keeps the answer in line with the sample; with (1, 1) a rewording is many errors.
        seed (`int`, defaults to 0): of the masks, and of the sampling where there is any.
        batch_size (`int`, defaults to 8): samples decoded side by side.
        shard_rows (`int`, defaults to 256): samples a file; what a kill costs at most, a process.
        on_shard (`Callable`, *optional*): called after every file that this process has written.
        decoding: settings of [`~ReflectiveGenerationMixin.generate_reflective`].

    Returns:
        [`ShardFolder`], for [`HarvestedProposal`].

    Raises:
        ValueError: for arguments that cannot work, and for a folder with a harvest of another model, data or setting:
            the message names the parts.
        OSError: for a damaged harvest.

    Example:
        >>> errors = harvest(model, rows, "harvest-1", preset="llada", steps=8)  # doctest: +SKIP
        >>> proposal = HarvestedProposal(errors, fallback=FrozenTopKProposal("cache"))  # doctest: +SKIP
    """
    low, high = mask_rate
    if not 0.0 < low <= high <= 1.0:
        raise ValueError(f"`mask_rate` is {mask_rate!r}: pass (low, high) with 0 < low <= high <= 1.")
    if batch_size < 1 or shard_rows < 1:
        raise ValueError(f"`batch_size` is {batch_size} and `shard_rows` {shard_rows}: pass positive numbers.")
    defaults = getattr(model, "generation_config", None)
    fingerprint = {
        "kind": "harvest",
        "checkpoint": model_digest(model, use_history=True),
        "data": data_digest(rows),
        "mask_rate": list(mask_rate),
        "seed": seed,
        "batch_size": batch_size,
        "decoding": {name: str(value) for name, value in sorted(decoding.items())},
        "defaults": None if defaults is None else str({**defaults.to_diff_dict(), "transformers_version": None}),
    }

    def compute(numbers: range) -> tuple[Arrays, list[int | str]]:
        keys: list[int | str] = []
        entries: list[tuple[int, int, int]] = []
        counts: list[int] = []
        samples: list[np.ndarray] = []
        for begin in range(0, len(numbers), batch_size):
            features = [rows[number] for number in numbers[begin : begin + batch_size]]
            keys += [row_id(feature) for feature in features]
            targets, real, editable = pad_rows(features, 0)
            samples.append(sample_digests(targets, real))
            for errors in _decode(model, features, targets, real, editable, mask_rate, seed, decoding):
                counts.append(len(errors))
                entries += [(position, token, count) for (position, token), count in sorted(errors.items())]
        columns = np.array(entries, dtype=np.int32).reshape(-1, 3)
        arrays = {name: np.ascontiguousarray(columns[:, i]) for i, name in enumerate(("positions", "ids", "counts"))}
        return {**arrays, "offsets": offsets_of(np.array(counts)), "samples": np.concatenate(samples)}, keys

    with evaluating(model):
        return fill(folder, fingerprint, len(rows), shard_rows, compute, on_shard)


def _decode(
    model: Any,
    features: Sequence[dict[str, Any]],
    targets: np.ndarray,
    real: np.ndarray,
    editable: np.ndarray,
    mask_rate: tuple[float, float],
    seed: int,
    decoding: dict[str, Any],
) -> list[Counter[tuple[int, int]]]:
    """Of every row: how often each (position, wrong token) was committed to."""
    keys = row_keys(seed, 0, [row_id(feature) for feature in features])
    uniforms = KeyedUniforms(keys)
    rate = mask_rate[0] + (mask_rate[1] - mask_rate[0]) * uniforms.draw(1)
    masked = editable & (uniforms.draw(targets.shape[1]) < rate)
    mask = model.config.mask_token_id
    canvas = np.where(masked, mask, targets)
    tensors = [torch.from_numpy(value).to(model.device) for value in (canvas, real.astype(np.int64), editable)]
    generators = [torch.Generator().manual_seed(int(key >> np.uint64(1))) for key in keys]
    output = model.generate_reflective(
        tensors[0],
        attention_mask=tensors[1],
        editable_mask=tensors[2],
        generator=generators,
        output_trajectory=True,
        **decoding,
    )
    return wrong_commitments(output.trajectory.states.cpu(), torch.from_numpy(targets), mask)


def wrong_commitments(states: Tensor, targets: Tensor, mask_token_id: int) -> list[Counter[tuple[int, int]]]:
    """
    Of every row of a trajectory: how often each (position, wrong token) was committed to.

    Args:
        states (`Tensor` of shape `(S + 1, B, N)`, long): the states of a [`ReflectiveTrajectory`].
        targets (`Tensor` of shape `(B, N)`, long): the samples.
        mask_token_id (`int`): the mask.

    Example:
        >>> states = torch.tensor([[[0, 0]], [[7, 5]], [[0, 5]], [[7, 5]]])
        >>> wrong_commitments(states, torch.tensor([[4, 5]]), 0)
        [Counter({(0, 7): 2})]
    """
    before, after = states[:-1], states[1:]
    wrong = (after != before) & (after != mask_token_id) & (after != targets)
    found: list[Counter[tuple[int, int]]] = [Counter() for _ in range(len(targets))]
    for step, row, position in wrong.nonzero().tolist():
        found[row][position, int(after[step, row, position])] += 1
    return found


class HarvestedProposal(Proposal):
    """
    Draws from the model's own wrong commitments at a position, as often as it made each; from another proposal where
    it made none.

    Args:
        harvests ([`ShardFolder`], `str`, `Path`, or a list of them): what [`harvest`] has made; counts are added up.
        fallback ([`Proposal`]): for positions without a harvested error, and for rows that no harvest has.
        share (`float`, defaults to 1): how often a position with harvested errors takes one of them.

    Raises:
        ValueError: for a harvest that is not finished, or is of another kind, and for a `share` outside (0, 1].
        OSError: for one that is missing, truncated or damaged.
    """

    def __init__(
        self, harvests: ShardFolder | str | Path | Sequence[Any], fallback: Proposal, share: float = 1.0
    ) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"`share` is {share!r}: pass a number in (0, 1].")
        given = [harvests] if isinstance(harvests, str | Path | ShardFolder) else list(harvests)
        self.tables = [RowTable(one) for one in given]
        for table in self.tables:
            if table.fingerprint.get("kind") != "harvest":
                raise ValueError(f"{table.folder} holds {table.fingerprint.get('kind')!r}, not a harvest.")
        self.fallback, self.share = fallback, share

    def draw(self, uniforms: np.ndarray, targets: np.ndarray, row_ids: Sequence[int | str]) -> np.ndarray:
        """As [`Proposal.draw`]."""
        # One number serves both choices: below `share` it picks an error, above it the fallback's token.
        rest = (uniforms - self.share) / (1 - self.share) if self.share < 1 else uniforms
        drawn = self.fallback.draw(np.where(uniforms < self.share, uniforms / self.share, rest), targets, row_ids)
        for number, row in enumerate(row_ids):
            for position, (ids, cumulative) in self._errors(row, targets[number]).items():
                own = uniforms[number, position] / self.share
                place = search(cumulative[None], np.minimum(own, 1.0)[None])[0]
                drawn[number, position] = np.where(own < 1, ids[place], drawn[number, position])
        return drawn

    def _errors(self, row: int | str, targets: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Ids and cumulative counts of every position of a row that has any."""
        counts: Counter[tuple[int, int]] = Counter()
        for table in self.tables:
            if row not in table.places:
                continue
            shard, entries = table(row, targets)
            columns = (shard[name][entries].tolist() for name in ("positions", "ids", "counts"))
            for position, token, count in zip(*columns, strict=True):
                counts[position, token] += count
        errors: dict[int, list[tuple[int, int]]] = {}
        for (position, token), count in sorted(counts.items()):
            errors.setdefault(position, []).append((token, count))
        return {
            position: (np.array([t for t, _ in found]), np.array([c for _, c in found], dtype=np.float64).cumsum())
            for position, found in errors.items()
        }
