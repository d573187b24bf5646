# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The load-time probe: runs a wrapped backbone on a few tokens and compares what it does with what is claimed of it.

Every finding is a comparison of two forward passes of the same shape, in which one thing differs: later tokens, tokens
under padding, the mask's form, ids against embeddings. What a model without influence computes is then equal to the
bit on most machines; the noise allowed below covers the others (experts that are batched anew, 16-bit sums).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..families_rm import family_of
from ..heads_rm import real_positions
from ..modeling_rm import RMForMaskedDiffusion
from ..vocabulary_rm import find_tokenizer
from .traits import BackboneTraits

_LENGTH = 16
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AssertionError)
# A head that never had the mask as its target: p(mask) below this share of 1 / V at three of four random tokens.
_NEVER_PREDICTED = 0.05
# One that had: the mask takes a share at half of the random tokens that no random weights give to one id.
_PREDICTED, _PREDICTED_OVER_CHANCE = 0.25, 3.0


def probe(model: RMForMaskedDiffusion, tokenizer: Any = None) -> BackboneTraits:
    """
    Measure a wrapped backbone and refuse it when a claim about it is false.

    Args:
        model ([`RMForMaskedDiffusion`]): the wrapper; its configuration holds the claims.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): by default the one beside the weights, if it lies on disk.

    Returns:
        [`BackboneTraits`]

    Raises:
        ValueError: names each false claim, what was found instead, and what to do about it.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> bert = BertForMaskedLM(BertConfig(vocab_size=120, hidden_size=16, num_hidden_layers=1,
        ...                                   num_attention_heads=2, intermediate_size=32))
        >>> traits = probe(RMForMaskedDiffusion.from_backbone(bert, mask_token_id=103))
        >>> traits.bidirectional, traits.honours_2d_mask, traits.tied_head
        (True, True, True)
    """
    traits = measure(model, tokenizer)
    if traits.problems:
        raise ValueError(
            f"the backbone {traits.name!r} ({traits.backbone_class}) is not what it is taken for:\n- "
            + "\n- ".join(traits.problems)
            + "\n(probe=False loads it all the same.)"
        )
    return traits


def probe_on_load(model: RMForMaskedDiffusion) -> None:
    """
    [`probe`], as `from_backbone` calls it; a head that was never trained to predict the mask is noted in the config.

    A model without weights (on the meta device) has nothing to run and is left alone.
    """
    if all(parameter.is_meta for parameter in model.parameters()) and not hasattr(model.model, "hf_device_map"):
        return
    if probe(model).predicts_mask is False:
        model.config.trained_to_remask = False


def measure(model: RMForMaskedDiffusion, tokenizer: Any = None) -> BackboneTraits:
    """
    Measure a wrapped backbone; false claims are listed in `problems`.

    Args: as [`probe`].

    Raises:
        ValueError: when there is nothing to measure: no finite logits, or fewer than two tokens.
    """
    with _undisturbed(model):
        bench = _Bench(model)
        return _measure(bench, find_tokenizer(bench.name, local_files_only=True) if tokenizer is None else tokenizer)


class _Bench:
    """A model, a few tokens of its vocabulary, and the forward passes that the findings compare."""

    def __init__(self, model: RMForMaskedDiffusion) -> None:
        self.model, self.backbone, self.config = model, model.model, model.config
        self.name = model.config.backbone_name or type(model.model).__name__
        self.embedding = model.get_input_embeddings()
        self.device = _execution_device(self.embedding)
        self.generator = torch.Generator().manual_seed(0)
        self.allowed = self._allowed_tokens()
        groups, block = model.config.position_groups, model.config.attention_block_length
        room = getattr(model.config.text_config.get_text_config(), "max_position_embeddings", None) or _LENGTH
        self.room = room
        self.length = len(groups[0]) if groups is not None else min(_LENGTH, room, block or _LENGTH)
        half = str(model.dtype) not in ("torch.float32", "torch.float64")
        # In standard deviations of the logits: what is no influence, and what padding may change.
        self.noise, self.tolerance = (2e-3, 0.1) if half else (2e-6, 1e-4)

    def _allowed_tokens(self) -> Tensor:
        special = getattr(self.config.text_config.get_text_config(), "pad_token_id", None)
        banned = [self.config.mask_token_id, *(self.config.suppressed_token_ids or ())]
        banned += [special] if isinstance(special, int) and 0 <= special < self.config.vocab_size else []
        free = torch.ones(self.config.vocab_size, dtype=torch.bool)
        free[banned] = False
        if free.sum() < 2:
            raise ValueError(
                f"the vocabulary of {self.config.vocab_size} has {int(free.sum())} tokens besides the mask, padding "
                "and `suppressed_token_ids`: a probe needs two. Pass probe=False."
            )
        return free.nonzero()[:, 0]

    def tokens(self, length: int) -> Tensor:
        """(1, length) ids; neighbours differ."""
        order = torch.randperm(len(self.allowed), generator=self.generator)[:length]
        return self.allowed[order.repeat(-(-length // len(order)))[:length]][None].to(self.device)

    def changed(self, ids: Tensor, where: Tensor) -> Tensor:
        """`ids` with another token wherever `where` (length,) is true."""
        place = torch.searchsorted(self.allowed, ids.cpu())
        return torch.where(where.to(self.device), self.allowed[(place + 1) % len(self.allowed)].to(self.device), ids)

    def logits(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(N, V) from the wrapper without history."""
        logits = self.model(input_ids=ids, attention_mask=attention_mask, use_history=False).logits
        return self._checked(logits)

    def bare(self, ids: Tensor, attention_mask: Tensor | None = None, embeds: bool = True) -> Tensor:
        """(N, V) from the backbone itself."""
        inputs = {"inputs_embeds": self.embedding(ids)} if embeds else {"input_ids": ids}
        if not self.config.backbone_positions:
            inputs["position_ids"] = torch.zeros_like(ids)
        elif attention_mask is not None and attention_mask.dim() == 2:
            inputs["position_ids"] = real_positions(attention_mask)
        return self._checked(self.backbone(attention_mask=attention_mask, **inputs).logits)

    def rounding(self, ids: Tensor) -> float:
        """
        What rounding may change: that of every embedding's component, amplified by the network, three times over.

        Every layer rounds anew, and independent errors grow as the root of their number. In half precision a deep
        network comes to tenths of a standard deviation; one that counts positions its own way, to more than half.
        """
        layers = getattr(self.config.text_config.get_text_config(), "num_hidden_layers", None) or 1
        return min(3 * math.sqrt(layers) * max(self._nudged(ids) for _ in range(3)), 0.5)

    def _nudged(self, ids: Tensor) -> float:
        """What the last bit of every embedding's component changes."""
        embeds = self.embedding(ids)
        signs = torch.randint(0, 2, embeds.shape, generator=self.generator).to(embeds) * 2 - 1
        inputs = {} if self.config.backbone_positions else {"position_ids": torch.zeros_like(ids)}
        one, other = (
            self._checked(self.backbone(inputs_embeds=nudged, **inputs).logits)
            for nudged in (embeds, embeds * (1 + torch.finfo(embeds.dtype).eps * signs))
        )
        return self.change(one, other)

    def _checked(self, logits: Tensor) -> Tensor:
        return logits[0].float().cpu()

    def change(self, one: Tensor, other: Tensor) -> float:
        """Mean difference, in standard deviations."""
        known = one.isfinite() & other.isfinite()
        difference, scale = (one - other)[known].abs().mean(), one[known].std()
        return float(difference / scale.clamp(min=1e-12)) if known.any() else math.inf

    def differs(self, one: Tensor, other: Tensor) -> bool:
        return self.change(one, other) > self.noise


def _measure(bench: _Bench, tokenizer: Any) -> BackboneTraits:
    config, backbone = bench.config, bench.backbone
    ids = bench.tokens(bench.length)
    logits = bench.logits(ids)
    problems = _vocabulary_problems(bench, tokenizer, logits)
    if not logits[:, bench.allowed].isfinite().all():
        raise ValueError(
            f"the backbone {bench.name!r} gives logits that are not finite: its weights are damaged, or overflow in "
            f"{str(bench.model.dtype).removeprefix('torch.')}. Load it with backbone_kwargs={{'dtype': 'float32'}}."
        )
    bidirectional = _bidirectional(bench, ids)
    two_d, padding_error, padding_problems = _padding(bench)
    four_d, per_head = _honours_4d(bench, ids), _honours_heads(bench, ids)
    block_causal = _block_causal(bench)
    by_embeds, by_ids = bench.bare(ids), bench.bare(ids, embeds=False)
    embeds_error = float((by_embeds - by_ids).abs().nan_to_num().max())
    shift, shift_problems = _observed_shift(bench, ids, logits)
    predicts_mask, mask_probability = _predicts_mask(bench, logits)
    # Claims
    if not bidirectional and (config.attention_block_length or 2) > 1:
        problems.append(
            "it should be bidirectional, but a later token has no influence on earlier logits: it is causal "
            "(autoregressive). Convert it with hf_rm.backbones.from_autoregressive and train it on masked text, or "
            "pass backbone_kwargs={'is_causal': False} (a loaded model: set config.is_causal=False) if its "
            "weights were trained without a causal mask."
        )
    problems += padding_problems
    if block_causal is False:
        problems.append(
            f"attention_block_length={config.attention_block_length} claims block-causal attention, but a later block "
            "changes the logits of an earlier one: the backbone ignores (B, 1, N, N) masks. Load it with "
            "backbone_kwargs={'attn_implementation': 'sdpa'}."
        )
    if config.attention_groups is not None and not per_head:
        problems.append(
            "`attention_groups` needs masks that differ between heads, and the backbone ignores them or refuses them. "
            "Load it with backbone_kwargs={'attn_implementation': 'sdpa'}, or pass attention_groups=None."
        )
    if bench.change(by_ids, by_embeds) > bench.tolerance:
        problems.append(
            "the wrapper hands it `inputs_embeds`, but they give other logits than the ids (by "
            f"{embeds_error:.1e}): it does more to ids than embedding them. Wrap a class of transformers that embeds "
            "both alike."
        )
    problems += shift_problems
    text_config = config.text_config.get_text_config()
    family = family_of(backbone.config)
    return BackboneTraits(
        name=bench.name,
        backbone_class=type(backbone).__name__,
        family=None if family is None else family.name,
        parameters=backbone.num_parameters(),
        dtype=str(bench.model.dtype).removeprefix("torch."),
        device=str(bench.device),
        mask_token_id=int(config.mask_token_id or 0),
        mask_source=_mask_source(bench, tokenizer),
        embedding_module=next(n for n, module in backbone.named_modules() if module is bench.embedding),
        embedding_width=bench.embedding(ids).shape[-1],
        hidden_size=text_config.hidden_size,
        embedding_rows=config.vocab_size,
        vocabulary=None if tokenizer is None else len(tokenizer.get_vocab()),
        suppressed=len(set(config.suppressed_token_ids or ()) - {config.mask_token_id}),
        tied_head=_tied(bench),
        bidirectional=bidirectional,
        attention_block_length=config.attention_block_length,
        block_causal=block_causal,
        honours_2d_mask=two_d,
        honours_4d_mask=four_d,
        honours_head_mask=per_head,
        padding_error=padding_error,
        embeds_error=embeds_error,
        logits_shift=config.logits_shift,
        observed_shift=shift,
        predicts_mask=predicts_mask,
        mask_probability=mask_probability,
        problems=tuple(problems),
    )


def _vocabulary_problems(bench: _Bench, tokenizer: Any, logits: Tensor) -> list[str]:
    problems, rows = [], bench.config.vocab_size
    highest = max(tokenizer.get_vocab().values(), default=-1) if tokenizer is not None else -1
    if highest >= rows:
        problems.append(
            f"its tokenizer has ids up to {highest}, but the embedding table has {rows} rows: they disagree. Load the "
            f"tokenizer of this checkpoint, or call model.resize_token_embeddings({highest + 1}) before wrapping."
        )
    if logits.shape[-1] != rows:
        problems.append(
            f"its embedding table has {rows} rows, but its logits are {logits.shape[-1]} wide: the head belongs to "
            "another vocabulary. Load the checkpoint with the config it was saved with."
        )
    return problems


def _bidirectional(bench: _Bench, ids: Tensor) -> bool:
    """Whether the second half has influence on the first."""
    half = bench.length // 2
    others = bench.changed(ids, torch.arange(bench.length) >= half)
    forward: Callable[[Tensor], Tensor] = bench.logits
    if bench.config.attention_groups is not None:
        # The heads' groups may part the two halves: what the backbone can do is seen through an empty mask.
        mask = _additive(bench, torch.ones(1, bench.length, bench.length, dtype=torch.bool))
        forward = lambda tokens: bench.bare(tokens, mask)  # noqa: E731
    return bench.differs(forward(ids)[:half], forward(others)[:half])


def _padding(bench: _Bench) -> tuple[bool, float | None, list[str]]:
    """Whether the backbone honours 2-D masks, the error through padding, and the claims that it shows to be false."""
    length = bench.length
    pad = max(1, length // 4)
    place = torch.arange(length)
    real = (place >= pad) & (place < length - pad)
    mask = real.long()[None].to(bench.device)
    ids = bench.tokens(length)
    others = bench.changed(ids, ~real)
    if not real.any():
        return True, None, []
    honoured = _runs(lambda: not bench.differs(bench.bare(ids, mask)[real], bench.bare(others, mask)[real]))
    ignored = bench.differs(bench.logits(ids, mask)[real], bench.logits(others, mask)[real])
    problems = []
    if ignored:
        problems.append(
            "it should leave padding out of its attention, but tokens under attention_mask=0 change the logits of "
            "real positions: the mask is ignored. Load a version of the model that honours it (LLaDA's code from "
            "before October 2025 does not, hf_rm's native one does), or pass "
            "backbone_kwargs={'attn_implementation': 'sdpa'}."
        )
    if bench.config.position_groups is not None:
        return honoured, None, problems
    error = max(_padding_error(bench, left) for left in (True, False))
    amplified = 0.0 if error <= bench.tolerance else bench.rounding(ids)
    if error > max(bench.tolerance, amplified) and not ignored:
        problems.append(
            f"padding should change nothing, but it moves the logits of real positions by {error:.1e} standard "
            "deviations: the backbone counts positions its own way. Pass probe=False and inputs without padding."
        )
    return honoured, error, problems


def _padding_error(bench: _Bench, left: bool) -> float:
    """Mean change of the logits of a short input through padding on one side."""
    pad = max(1, bench.length // 4)
    ids = bench.tokens(bench.length)
    real = torch.arange(bench.length) >= pad if left else torch.arange(bench.length) < bench.length - pad
    padded = bench.logits(ids, real.long()[None].to(bench.device))[real]
    alone = bench.logits(ids[:, real.to(bench.device)])
    return bench.change(alone, padded)


def _additive(bench: _Bench, allowed: Tensor) -> Tensor:
    """(1, heads or 1, N, N), 0 where a position may look and -inf elsewhere."""
    mask = torch.zeros(1, *allowed.shape, dtype=bench.model.dtype).masked_fill(~allowed, -torch.inf)
    return mask.to(bench.device)


def _honours_4d(bench: _Bench, ids: Tensor) -> bool:
    """Whether a position that may only look at itself is free of all others' influence."""
    alone = _additive(bench, torch.eye(bench.length, dtype=torch.bool)[None])
    middle = bench.length // 2
    others = bench.changed(ids, torch.arange(bench.length) != middle)

    def test() -> bool:
        one, other = (bench.bare(tokens, alone)[middle : middle + 1] for tokens in (ids, others))
        free = bench.bare(ids)[middle : middle + 1]
        return not bench.differs(one, other) and bench.differs(one, free)

    return _runs(test)


def _honours_heads(bench: _Bench, ids: Tensor) -> bool:
    """Whether shutting every other head gives something else than shutting none or all."""
    heads = getattr(bench.config.text_config.get_text_config(), "num_attention_heads", 1)
    if heads < 2:
        return _honours_4d(bench, ids)
    alone = torch.eye(bench.length, dtype=torch.bool)
    free = torch.ones_like(alone)
    masks = {
        "mixed": torch.stack([alone if head % 2 else free for head in range(heads)]),
        "alone": alone.expand(heads, -1, -1),
        "free": free.expand(heads, -1, -1),
    }

    def test() -> bool:
        mixed, shut, opened = (bench.bare(ids, _additive(bench, mask)) for mask in masks.values())
        return bench.differs(mixed, shut) and bench.differs(mixed, opened)

    return _runs(test)


def _block_causal(bench: _Bench) -> bool | None:
    """Whether the second block has no influence on the first; None where none is claimed or two do not fit."""
    block = bench.config.attention_block_length
    if block is None or 2 * block > bench.room or bench.config.position_groups is not None:
        return None
    ids = bench.tokens(2 * block)
    others = bench.changed(ids, torch.arange(2 * block) >= block)
    return not bench.differs(bench.logits(ids)[:block], bench.logits(others)[:block])


def _observed_shift(bench: _Bench, ids: Tensor, logits: Tensor) -> tuple[bool | None, list[str]]:
    """Whether the raw output at a visible token repeats the next one (shifted) or the own one; None: neither."""
    claimed = bench.config.logits_shift
    best = (logits[1:] if claimed else logits[:-1]).argmax(-1)  # the raw outputs at positions 0 .. N - 2
    own = float((best == ids[0, :-1].cpu()).float().mean())
    following = float((best == ids[0, 1:].cpu()).float().mean())
    if following >= 0.5 and own <= 0.25:
        seen = True
    elif own >= 0.5 and following <= 0.25 and not _tied(bench):
        seen = False
    else:
        return None, []
    if seen == claimed:
        return seen, []
    return seen, [
        f"logits_shift={claimed} is claimed, but at {100 * (following if seen else own):.0f} % of visible tokens the "
        f"output repeats the {'next' if seen else 'own'} token: pass logits_shift={seen}."
    ]


def _predicts_mask(bench: _Bench, logits: Tensor) -> tuple[bool | None, float]:
    """Whether the head was ever trained to predict the mask, and p(mask) at random tokens (upper quartile)."""
    log_p = logits.log_softmax(-1)[int(bench.config.logits_shift) :, bench.config.mask_token_id]
    probability = float(log_p.exp().quantile(0.75))
    if probability * logits.shape[-1] < _NEVER_PREDICTED:
        return False, probability
    median = float(log_p.exp().median())
    certain = median >= max(_PREDICTED, _PREDICTED_OVER_CHANCE / logits.shape[-1])
    return (True if certain else None), probability


def _mask_source(bench: _Bench, tokenizer: Any) -> str:
    """Who names this mask id; and who names another."""
    family = family_of(bench.backbone.config)
    named = {
        "the config": getattr(bench.backbone.config, "mask_token_id", None),
        "the tokenizer": getattr(tokenizer, "mask_token_id", None),
        "the family": None if family is None else family.mask_token_id,
    }
    agreeing = [source for source, token in named.items() if token == bench.config.mask_token_id]
    others = ", ".join(f"{source} says {token}" for source, token in named.items() if token is not None)
    return agreeing[0] if agreeing else f"the argument ({others or 'nothing else names one'})"


def _tied(bench: _Bench) -> bool:
    head = bench.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    return weight is not None and weight is getattr(bench.embedding, "weight", None)


def _runs(test: Callable[[], bool]) -> bool:
    """The test's answer; False where the backbone refuses its input."""
    try:
        return test()
    except _REFUSALS:
        return False


def _execution_device(embedding: torch.nn.Module) -> torch.device:
    """Where token ids must lie: for offloaded weights their hook knows."""
    hook = getattr(embedding, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return next(embedding.parameters()).device if device is None else torch.device(device)


@contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and the random state are restored."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device.index for device in devices]):
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
