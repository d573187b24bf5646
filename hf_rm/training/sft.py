# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Vanilla masked-diffusion fine-tuning, the baseline that Reflective Masking is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..corruption.collator import KeyedCollator, pad_rows, row_id
from ..corruption.oracle import IGNORE_INDEX
from .arguments import MaskedSFTArguments
from .base import MaskedTrainer, load_model
from .data import collator_settings


@dataclass
class MaskedSFTCollator(KeyedCollator):
    """
    Masks every editable position of a row with the row's own probability t ~ U(min_mask_rate, 1).

    Returns `input_ids`, `labels` (the right token at masks, -100 elsewhere), `attention_mask`, `editable_mask` and
    `loss_weights` (B, N), 1 / t. Draws are keyed by (seed, epoch, row), as those of [`RMDataCollator`].

    Example:
        >>> batch = MaskedSFTCollator(mask_token_id=0)([{"input_ids": [5, 6, 7, 8], "idx": 0}])
        >>> bool(((batch["input_ids"] == 0) == (batch["labels"] != -100)).all())
        True
    """

    mask_token_id: int
    min_mask_rate: float = 1e-3
    pad_token_id: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.min_mask_rate < 1.0:
            raise ValueError(f"`min_mask_rate` is {self.min_mask_rate!r}: pass a rate in (0, 1).")
        super().__post_init__()

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        targets, real, editable = pad_rows(features, self.pad_token_id, self.mask_token_id)
        uniforms = self.uniforms([row_id(feature) for feature in features])
        rate = self.min_mask_rate + (1 - self.min_mask_rate) * uniforms.draw(1)
        masked = torch.from_numpy(editable & (uniforms.draw(targets.shape[1]) < rate))
        target_ids = torch.from_numpy(targets)
        return {
            "input_ids": target_ids.masked_fill(masked, self.mask_token_id),
            "labels": target_ids.masked_fill(~masked, IGNORE_INDEX),
            "attention_mask": torch.from_numpy(real.astype("int64")),
            "editable_mask": torch.from_numpy(editable),
            # Memory of its own for each row: what is merely expanded cannot be pinned for a GPU.
            "loss_weights": torch.from_numpy(1 / rate).float().expand_as(masked).contiguous(),
        }


class MaskedSFTTrainer(MaskedTrainer):
    """
    Masked-diffusion fine-tuning (MDLM's bound: cross-entropy at masks, weighted 1 / t), without history.

    The loss is divided by the number of editable positions of the batch, which 1 / t makes unbiased whatever t is.

    Args: as [`RMTrainer`], with [`MaskedSFTArguments`].
    """

    _tag_names = ("hf_rm", "masked-diffusion-sft")

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: MaskedSFTArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: MaskedSFTCollator | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = MaskedSFTArguments("sft-output") if args is None else args
        model = load_model(model, args.model_init_kwargs)
        if data_collator is None:
            data_collator = MaskedSFTCollator(
                **collator_settings(model, args, processing_class), min_mask_rate=args.min_mask_rate
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        # The bound is a mean over all editable positions, not over the masked ones that carry labels.
        counted = [{"labels": torch.where(batch["editable_mask"], 0, IGNORE_INDEX)} for batch in batch_samples]
        return super()._get_num_items_in_batch(counted, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Cross-entropy at masks, weighted 1 / t."""
        outputs, per_position = self._cross_entropy(model, inputs, return_outputs)
        supervised = torch.where(inputs["editable_mask"], 0, IGNORE_INDEX)
        loss = self._normalise((per_position * inputs["loss_weights"].flatten()).sum(), supervised, num_items_in_batch)
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss
