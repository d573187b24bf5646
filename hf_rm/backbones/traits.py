# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""BackboneTraits: what is claimed of a backbone and what the probe saw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneTraits:
    """
    What a wrapped backbone is. Made by [`~hf_rm.backbones.measure`]; `None` means that it could not be observed.

    Attributes:
        name (`str`): Hub name, folder, or the class for a model that was built by hand.
        backbone_class (`str`): its class in transformers.
        family (`str`, *optional*): the family that hf_rm knows it as.
        parameters (`int`), dtype (`str`), device (`str`): its size and where it lies.
        mask_token_id (`int`): the id that stands for "not yet written".
        mask_source (`str`): who says so: the config, the tokenizer, the family, or only the caller.
        embedding_module (`str`): path of the input embedding inside the backbone.
        embedding_width (`int`): its width; History Reference works in it.
        hidden_size (`int`): width of the network; ALBERT's embedding is narrower.
        embedding_rows (`int`): rows of the embedding, which is the width of the logits.
        vocabulary (`int`, *optional*): tokens of the tokenizer beside the weights.
        suppressed (`int`): ids that no reveal writes, besides the mask.
        tied_head (`bool`): whether the head is the embedding, so that training the one moves the other.
        bidirectional (`bool`): whether a later token has influence on earlier logits.
        attention_block_length (`int`, *optional*): claimed: block-causal attention in blocks of this length.
        block_causal (`bool`, *optional*): seen: later blocks have no influence on earlier ones.
        honours_2d_mask (`bool`): whether the backbone itself leaves padding out of its attention, by a (B, N) mask.
        honours_4d_mask (`bool`): the same for additive (B, 1, N, N) masks.
        honours_head_mask (`bool`): the same for masks that differ between heads, (B, heads, N, N).
        padding_error (`float`, *optional*): largest change of a real position's logits through padding on the left or
            on the right, in standard deviations of the logits; None where the length is fixed.
        embeds_error (`float`): largest difference between the logits from `input_ids` and from `inputs_embeds`; 0.0
            means bit for bit.
        logits_shift (`bool`): claimed: the output at position i - 1 belongs to position i.
        observed_shift (`bool`, *optional*): seen: at visible tokens the raw output repeats the next token (True) or
            the own one (False). Random weights show neither, and a tied head repeats its own token untrained.
        predicts_mask (`bool`, *optional*): whether the head was ever trained to predict the mask; see
            `mask_probability`.
        mask_probability (`float`): upper quartile of p(mask) over visible random tokens. A head that was trained to
            re-mask gives most of them a large one; a head that never had the mask as its target far less than 1 / V;
            random weights about 1 / V, which says nothing.
        problems (`tuple[str, ...]`): claims that turned out to be false, each with what was found and what to do.
    """

    name: str
    backbone_class: str
    family: str | None
    parameters: int
    dtype: str
    device: str
    mask_token_id: int
    mask_source: str
    embedding_module: str
    embedding_width: int
    hidden_size: int
    embedding_rows: int
    vocabulary: int | None
    suppressed: int
    tied_head: bool
    bidirectional: bool
    attention_block_length: int | None
    block_causal: bool | None
    honours_2d_mask: bool
    honours_4d_mask: bool
    honours_head_mask: bool
    padding_error: float | None
    embeds_error: float
    logits_shift: bool
    observed_shift: bool | None
    predicts_mask: bool | None
    mask_probability: float
    problems: tuple[str, ...] = ()

    def table(self) -> list[tuple[str, str]]:
        """Pairs of a trait's name and its value in words, in the order of a report."""
        blocks = self.attention_block_length
        vocabulary = "no tokenizer found" if self.vocabulary is None else f"{self.vocabulary} in the tokenizer"
        padding = "not tested: the length is fixed" if self.padding_error is None else f"{self.padding_error:.1e}"
        return [
            ("backbone", f"{self.name} ({self.backbone_class}, family {self.family or 'unknown'})"),
            ("parameters", f"{self.parameters:,}, {self.dtype}, {self.device}"),
            ("mask token", f"{self.mask_token_id}, from {self.mask_source}"),
            ("embedding", f"{self.embedding_module}, {self.embedding_width} wide (hidden size {self.hidden_size})"),
            ("vocabulary", f"{self.embedding_rows} rows, {vocabulary}, {self.suppressed} never revealed"),
            ("head", "tied to the embedding" if self.tied_head else "untied"),
            ("attention", "bidirectional" if self.bidirectional else "causal"),
            ("blocks", "none" if blocks is None else f"causal in blocks of {blocks}: {_seen(self.block_causal)}"),
            ("2-D mask", _honoured(self.honours_2d_mask)),
            ("4-D mask", _honoured(self.honours_4d_mask)),
            ("mask per head", _honoured(self.honours_head_mask)),
            ("padding changes logits by", padding),
            ("inputs_embeds", "bit for bit" if self.embeds_error == 0 else f"differ by {self.embeds_error:.1e}"),
            ("logits shift", f"claimed {_yes(self.logits_shift)}, {_seen(self.observed_shift)}"),
            (
                "head predicts the mask",
                f"{'not observable' if self.predicts_mask is None else _yes(self.predicts_mask)} "
                f"(p(mask) {self.mask_probability:.1e} at random tokens, 1 / V is {1 / self.embedding_rows:.1e})",
            ),
        ]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _seen(value: bool | None) -> str:
    return "not observable" if value is None else f"seen {_yes(value)}"


def _honoured(value: bool) -> str:
    return "honoured" if value else "ignored or refused"
