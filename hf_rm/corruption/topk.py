# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The frozen top-k proposal (Appendix C): wrong tokens that a frozen checkpoint finds likely.

    clean sample -> one probe of the checkpoint -> its k best wrong tokens a position, with probabilities -> cache
    cache, the row's own random numbers -> an independent draw a position

The probe runs once, before the training, over all processes; the training reads the cache alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..heads_rm import LogitsReader
from ..modes import evaluating
from .collator import pad_rows, row_id
from .proposals import Proposal
from .random import KeyedUniforms, row_keys
from .shards import Arrays, ShardFolder, fill

PROBES = ("clean", "masked")
# What a config says about where it came from, not about what it computes.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_WRAPPER = (
    "logits_shift",
    "attention_block_length",
    "attention_block_start",
    "position_groups",
    "attention_groups",
    "backbone_positions",
)
_HISTORY = ("history_decay", "history_rotation", "history_base", "history_norm", "history_eps", "history_scope")


@torch.no_grad()
def build_topk_cache(
    model: Any,
    rows: Any,
    folder: str | Path,
    *,
    k: int = 50,
    probe: str = "clean",
    mask_rate: float = 0.5,
    seed: int = 0,
    tokenizer: Any = None,
    use_history: bool = False,
    batch_size: int = 8,
    chunk_rows: int = 128,
    shard_rows: int = 256,
    on_shard: Callable[[], None] | None = None,
) -> ShardFolder:
    """
    Probe a frozen checkpoint once a sample, and store its k most probable wrong tokens of every editable position.

    The mask, the suppressed ids and the sample's own token are left out, and the probabilities are those of the rest,
    among the k. Call it in every process of a run: each takes a share of the shards. A run that was killed goes on
    with the shards that it lacks, and a finished cache is only checked.

    Args:
        model ([`RMForMaskedDiffusion`]): the checkpoint, wrapped; without a history, as it was before RM.
        rows (sequence of dicts, [`RowDataset`] among them): `input_ids`, `idx` and optionally `editable_mask`.
        folder (`str` or `Path`): of the cache; a folder that all processes see.
        k (`int`, defaults to 50): tokens a position.
        probe (`str`, defaults to `"clean"`): what the checkpoint reads: the sample itself, or (`"masked"`) the sample
            with masks in it, drawn by row.
        mask_rate (`float`, defaults to 0.5): for `probe="masked"`: the share of editable positions that is masked.
        seed (`int`, defaults to 0): for `probe="masked"`.
        tokenizer (*optional*): part of the fingerprint.
        use_history (`bool`, defaults to `False`): read an empty history, for a checkpoint trained with one.
        batch_size (`int`, defaults to 8): samples a forward pass.
        chunk_rows (`int`, defaults to 128): positions whose scores exist at a time.
        shard_rows (`int`, defaults to 256): samples a file; what a kill costs at most, a process.
        on_shard (`Callable`, *optional*): called after every file that this process has written.

    Returns:
        [`ShardFolder`], for [`FrozenTopKProposal`].

    Raises:
        ValueError: for arguments that cannot work, and for a folder whose cache is of another checkpoint, tokenizer,
            data or setting: the message names the parts.
        OSError: for a damaged cache.

    Example:
        >>> cache = build_topk_cache(model, rows, "cache", k=50)  # doctest: +SKIP
        >>> trainer = RMTrainer(model, args, train_dataset=rows, proposal=FrozenTopKProposal(cache))  # doctest: +SKIP
    """
    config = model.config
    excluded = sorted({config.mask_token_id, *(config.suppressed_token_ids or ())})
    _check_arguments(k, probe, mask_rate, config.vocab_size - len(excluded) - 1)
    for name, value in (("batch_size", batch_size), ("chunk_rows", chunk_rows), ("shard_rows", shard_rows)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}: pass a positive number.")
    fingerprint: dict[str, Any] = {
        "kind": "top-k",
        "checkpoint": model_digest(model, use_history),
        "tokenizer": tokenizer_digest(tokenizer),
        "data": data_digest(rows),
        "k": k,
        "probe": probe if probe == "clean" else f"masked, rate {mask_rate}, seed {seed}",
        "dtype": str(next(model.parameters()).dtype),
        "excluded": excluded,
        "use_history": use_history,
        "batch_size": batch_size,
    }
    forbidden = torch.tensor(excluded, device=model.device)

    def compute(numbers: range) -> tuple[Arrays, list[int | str]]:
        parts: list[tuple[np.ndarray, ...]] = []
        keys: list[int | str] = []
        for begin in range(0, len(numbers), batch_size):
            features = [rows[number] for number in numbers[begin : begin + batch_size]]
            keys += [row_id(feature) for feature in features]
            inputs = probe_inputs(features, config.mask_token_id, mask_rate if probe == "masked" else None, seed)
            parts.append(_probe(model, inputs, k, forbidden, chunk_rows, use_history))
        columns = zip(*parts, strict=True)
        ids, probabilities, positions, counts, samples = (np.concatenate(column) for column in columns)
        table = {"offsets": offsets_of(counts), "samples": samples}
        return {"ids": ids, "probabilities": probabilities, "positions": positions, **table}, keys

    with evaluating(model):
        return fill(folder, fingerprint, len(rows), shard_rows, compute, on_shard)


def _check_arguments(k: int, probe: str, mask_rate: float, wrong_tokens: int) -> None:
    if probe not in PROBES:
        raise ValueError(f"`probe` is {probe!r}: pass one of {', '.join(map(repr, PROBES))}.")
    if not 1 <= k <= wrong_tokens:
        raise ValueError(f"`k` is {k}: pass 1 to {wrong_tokens}, the wrong tokens that a position can have.")
    if not 0.0 < mask_rate <= 1.0:
        raise ValueError(f"`mask_rate` is {mask_rate!r}: pass a share in (0, 1].")


Inputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def probe_inputs(features: Sequence[dict[str, Any]], mask_token_id: int, mask_rate: float | None, seed: int) -> Inputs:
    """(B, N) each: what the checkpoint reads, the clean ids, real and editable positions."""
    targets, real, editable = pad_rows(features, 0)
    if mask_rate is None:
        return targets, targets, real, editable
    uniforms = KeyedUniforms(row_keys(seed, 0, [feature["idx"] for feature in features]))
    masked = editable & (uniforms.draw(targets.shape[1]) < mask_rate)
    return np.where(masked, mask_token_id, targets), targets, real, editable


def _probe(
    model: Any, inputs: Inputs, k: int, forbidden: Tensor, chunk_rows: int, use_history: bool
) -> tuple[np.ndarray, ...]:
    """Of all editable positions: k ids, k probabilities, position; of all samples: their count and digest."""
    state, targets, real, editable = inputs
    device = model.device
    where = editable.ravel().nonzero()[0]
    gold = torch.from_numpy(targets.ravel()[where]).to(device)

    def read(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        scores = logits.index_fill(-1, forbidden.to(logits.device), -torch.inf)
        scores.scatter_(-1, gold[part].to(logits.device)[:, None], -torch.inf)
        best, ids = scores.topk(k, dim=-1)
        return ids.int(), best.float().softmax(-1)

    reader = LogitsReader(torch.from_numpy(where).to(device), read, chunk_rows)
    ids, probabilities = model(
        input_ids=torch.from_numpy(state).to(device),
        attention_mask=torch.from_numpy(real.astype(np.int64)).to(device),
        editable_mask=torch.from_numpy(editable).to(device),
        use_history=use_history,
        logits_reader=reader,
    ).read
    if not torch.isfinite(probabilities).all():
        raise ValueError("`model` gives scores that are not finite: it cannot be probed. Load it in another dtype.")
    return (
        ids.cpu().numpy(),
        probabilities.half().cpu().numpy(),
        (where % targets.shape[1]).astype(np.int32),
        editable.sum(-1),
        sample_digests(targets, real),
    )


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """(R + 1,) int64: where the entries of each of R rows begin, and where the last ends."""
    return np.concatenate(([0], counts.cumsum())).astype(np.int64)


def sample_digests(targets: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(B, 2) uint64: length and digest of each row, by which a [`RowTable`] knows it again."""
    rows = [(int(length), _row_digest(row[:length])) for row, length in zip(targets, real.sum(-1), strict=True)]
    return np.array(rows, dtype=np.uint64)


class RowTable:
    """
    Where a row's entries lie in a [`ShardFolder`]: shared by the proposals that read one.

    Raises:
        ValueError, OSError: as [`ShardFolder.open`].
    """

    def __init__(self, cache: ShardFolder | str | Path) -> None:
        store = cache if isinstance(cache, ShardFolder) else ShardFolder(cache)
        self.folder, self.fingerprint = store.folder, store.header()["fingerprint"]
        self.shards: list[Arrays] = []
        self.places: dict[int | str, tuple[int, int]] = {}
        for number, (arrays, keys) in enumerate(store.open()):
            self.shards.append(arrays)
            self.places.update((key, (number, place)) for place, key in enumerate(keys))

    def __reduce__(self) -> Any:
        # To a data loader's worker goes the name of the folder, not what is mapped from it.
        return RowTable, (self.folder,)

    def __call__(self, row: int | str, targets: np.ndarray) -> tuple[Arrays, slice]:
        """
        A row's shard and its entries there.

        Raises:
            ValueError: for a row that the cache does not know, or knows with other tokens.
        """
        key = row.item() if isinstance(row, np.generic) else row
        if key not in self.places:
            raise ValueError(f"row {key!r} is not in the cache {self.folder}: make one of the data you train on.")
        number, place = self.places[key]
        shard = self.shards[number]
        length, digest = (int(value) for value in shard["samples"][place])
        if length > len(targets) or _row_digest(targets[:length]) != digest:
            raise ValueError(
                f"row {key!r} has other tokens than in the cache {self.folder}: make one of the data you train on."
            )
        first, last = (int(value) for value in shard["offsets"][place : place + 2])
        return shard, slice(first, last)


class FrozenTopKProposal(Proposal):
    """
    Draws from the k tokens that a frozen checkpoint finds likely at a position: its softmax, cut to these.

    Args:
        cache ([`ShardFolder`], `str` or `Path`): what [`build_topk_cache`] has made.

    Raises:
        ValueError: for a cache that is not finished, or is of another kind.
        OSError: for one that is missing, truncated or damaged.

    Example:
        >>> FrozenTopKProposal("cache").draw(uniforms, targets, row_ids)  # doctest: +SKIP
    """

    def __init__(self, cache: ShardFolder | str | Path) -> None:
        self.table = RowTable(cache)
        self.fingerprint = self.table.fingerprint
        if self.fingerprint.get("kind") != "top-k":
            raise ValueError(f"{self.table.folder} holds {self.fingerprint.get('kind')!r}, not a top-k cache.")

    def draw(self, uniforms: np.ndarray, targets: np.ndarray, row_ids: Sequence[int | str]) -> np.ndarray:
        """As [`Proposal.draw`]; positions that were not editable get any token but their own."""
        drawn = np.repeat(np.where(targets == 0, 1, 0)[..., None], uniforms.shape[-1], -1).astype(np.int64)
        for number, row in enumerate(row_ids):
            shard, entries = self.table(row, targets[number])
            positions = shard["positions"][entries]
            cumulative = shard["probabilities"][entries].astype(np.float64).cumsum(-1)
            chosen = search(cumulative, uniforms[number, positions])
            drawn[number, positions] = np.take_along_axis(shard["ids"][entries], chosen, -1)
        return drawn


def search(cumulative: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Cumulative weights (P, k), not normalised, and uniform numbers (P, A): the (P, A) places that they fall on."""
    total = cumulative[:, -1:]
    place = (uniforms[..., None] * total[..., None] >= cumulative[:, None, :]).sum(-1)
    # Never past the last place with a weight, wherever rounding puts the product.
    return np.minimum(place, (cumulative < total).sum(-1, keepdims=True))


def model_digest(model: Any, use_history: bool = False) -> str:
    """What a model computes, as a digest: of its class, its settings (of History Reference, if used), every weight."""
    config, names = model.config, (*_WRAPPER, *(_HISTORY if use_history else ()))
    settings: dict[str, Any] = {name: getattr(config, name, None) for name in names}
    inner = getattr(config, "text_config", config).to_diff_dict()
    settings["network"] = {name: value for name, value in inner.items() if name not in _VOLATILE}
    digest = blake2b(f"{type(model).__name__} {json.dumps(settings, sort_keys=True, default=str)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(data.numpy())
    return digest.hexdigest()[:32]


def tokenizer_digest(tokenizer: Any) -> str | None:
    """Of a tokenizer's vocabulary and special tokens; None without one."""
    if tokenizer is None:
        return None
    parts = (sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.special_tokens_map.items())))
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def data_digest(rows: Any) -> str:
    """Of all rows in order: keys, tokens, editable positions; a ValueError for two rows with the same key."""
    digest, known = blake2b(digest_size=16), set[int | str]()
    for number in range(len(rows)):
        row = rows[number]
        key = row_id(row)
        if key in known:
            raise ValueError(f"two rows have the key {key!r}: give every row an `idx` of its own.")
        known.add(key)
        ids, _, editable = pad_rows([row], 0)
        digest.update(f"{key} {ids.shape[1]} ".encode() + ids.tobytes() + editable.tobytes())
    return digest.hexdigest()


def _row_digest(ids: np.ndarray) -> int:
    data = np.ascontiguousarray(ids, dtype=np.int64).tobytes()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
