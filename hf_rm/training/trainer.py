# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""RMTrainer: reveal, mask and keep losses over pseudo-trajectories and over the model's own revisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..configuration_rm import embedding_width
from ..corruption import (
    IGNORE_INDEX,
    OnPolicyPool,
    Proposal,
    RMDataCollator,
    build_law,
    oracle_labels,
)
from ..corruption.pool import reveal_confident
from ..generation_rules_rm import eq1_next_state
from ..history import History, HistorySegments, HistoryState
from .arguments import RMTrainingArguments
from .base import MaskedTrainer, load_model
from .data import collator_settings, uniform_proposal
from .losses import LossParts, clipped_cross_entropy, reveal_weights, right_context, token_probability
from .mask_row import fit_mask_row, own_head
from .stages import Clock


class RMTrainer(MaskedTrainer):
    """
    Post-trains a mask diffusion model to reveal, keep and re-mask (Reflective Masking, Appendix C).

    Args:
        model (`str` or `PreTrainedModel`): the wrapper; or a name or folder of one, or of a backbone to wrap.
        args (`RMTrainingArguments`): law, horizon, corruption, pool and everything `TrainingArguments` has.
        train_dataset, eval_dataset: see [`RowDataset`].
        processing_class: the tokenizer, for datasets of texts.
        data_collator ([`RMDataCollator`], *optional*): by default built from `args` with `proposal`.
        proposal ([`Proposal`], *optional*): where wrong tokens come from; by default uniform over the vocabulary.
        peft_config (`PeftConfig`, *optional*): train an adapter; without target modules it takes the attention's
            projections. [`default_lora_config`] trains the mask token's rows as well. A model that is a `PeftModel`
            already goes on with its adapter.
        kwargs: further arguments of `Trainer`.

    Raises:
        ValueError: for data and arguments that cannot work, before the first step.

    Example:
        >>> trainer = RMTrainer(model, RMTrainingArguments("out", max_steps=100), train_dataset=rows)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    _tag_names = ("hf_rm", "reflective-masking")

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RMTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: RMDataCollator | None = None,
        proposal: Proposal | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        # Args
        args = RMTrainingArguments("rm-output") if args is None else args
        # Model
        model = load_model(model, args.model_init_kwargs)
        self.mask_token_id = model.config.mask_token_id
        # Data
        if data_collator is None:
            data_collator = build_collator(model, args, proposal, processing_class)
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
        if args.mask_row_batches:
            own_head(self.model)  # raises now, not after the data has been read
        # Pool
        pool_rows = round(args.pool_fraction * args.per_device_train_batch_size)
        if args.pool_fraction and not 0 < pool_rows < args.per_device_train_batch_size:
            raise ValueError(
                f"`pool_fraction` is {args.pool_fraction} of a batch of {args.per_device_train_batch_size}: it leaves "
                "no row on one of the two sides. Pass a larger batch or another fraction."
            )
        width = embedding_width(model.config.text_config)
        self.pool = OnPolicyPool(pool_rows, width, args.pool_max_age) if pool_rows else None
        self.loss_parts = LossParts()
        self.part_seconds: dict[str, dict[str, float]] = {}  # what the fit of the mask row took

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As in transformers; from here on the head counts as one that has learned to predict the mask."""
        if self.args.mask_row_batches and not (resume_from_checkpoint or self.model.config.trained_to_remask):
            clock = Clock()
            self._fit_mask_row()
            self.part_seconds["mask_row"] = clock.seconds
        self.model.config.trained_to_remask = True
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _fit_mask_row(self) -> None:
        """Each process reads its share of the first batches; the collator's draws depend on the rows alone."""
        size, processes = self.args.per_device_train_batch_size, self.args.world_size
        count = min(self.args.mask_row_batches * size * processes, len(self.train_dataset))
        own = range(self.args.process_index, count, processes)
        batches = (
            {
                name: value.to(self.args.device)
                for name, value in self.data_collator([self.train_dataset[row] for row in own[i : i + size]]).items()
            }
            for i in range(0, len(own), size)
        )
        fit_mask_row(self.model, batches, reduce=lambda sums: self.accelerator.reduce(sums, reduction="sum"))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The weighted, clipped cross-entropy of a batch, part of which comes from the pool once that has begun."""
        pool = self._pool_for(inputs) if model.training else None
        history: History | list[History]
        batch, history = (inputs, _segments(inputs)) if pool is None else self._with_pool(pool, inputs)
        labels = batch["labels"]
        outputs, (per_position, best, *following) = self._forward(
            model,
            labels,
            self._reader(batch, pool),
            return_outputs,
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            editable_mask=batch["editable_mask"],
            history=history,
        )
        weights = batch["loss_weights"].flatten() if "loss_weights" in batch else 1.0
        if self.args.reveal_weights == "inverse":
            weights = weights * reveal_weights(batch["input_ids"], labels, self.mask_token_id).flatten()
        if self.args.reveal_context == "right":
            weights = weights * right_context(batch["input_ids"], labels, self.mask_token_id).flatten()
        if num_items_in_batch is not None and pool is not None:
            # The Trainer counted the labels of the rows that came out of the loader; the pool replaced some of them.
            num_items_in_batch = num_items_in_batch * _count(labels) / _count(inputs["labels"])
        loss = self._normalise((per_position * weights).sum(), labels, num_items_in_batch)
        if model.training:
            self.loss_parts.add(batch["input_ids"], labels, best, per_position, self.mask_token_id)
        if pool is not None:
            self._advance_pool(pool, outputs.history, *(column.view_as(labels) for column in following))
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss

    def _reader(self, batch: dict[str, Tensor], pool: OnPolicyPool | None) -> Callable[[Tensor, Any], Any]:
        """What a step reads from scores (k, V): loss, best id; with a pool the next id by Eq. 1, its probability."""
        state, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
        forbidden = self.model.config.suppressed_token_ids or ()

        def read(logits: Tensor, which: Any) -> tuple[Tensor, ...]:
            # First what has a gradient: a chunk that is computed again stops there.
            loss = clipped_cross_entropy(logits, labels[which].to(logits.device), self.args.loss_clip)
            with torch.no_grad():
                best = logits.argmax(-1)
                if pool is None:
                    return loss, best
                ids = state[which].to(logits.device)
                everywhere = torch.ones_like(ids, dtype=torch.bool)
                following = eq1_next_state(ids, logits, self.mask_token_id, everywhere, forbidden)
                if self.args.pool_reveal_threshold is None:
                    return loss, best, following
                return loss, best, following, token_probability(logits, following)

        return read

    def _pool_for(self, inputs: dict[str, Tensor]) -> OnPolicyPool | None:
        """The pool, once it has begun, for a batch with more rows than it has: a last, short one is left as it is."""
        begun = self.state.global_step >= self.args.pool_start_step
        return self.pool if begun and self.pool is not None and len(inputs["input_ids"]) > self.pool.size else None

    def _with_pool(self, pool: OnPolicyPool, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[History]]:
        """The batch with its last rows replaced by the pool's; what they would have been refills the pool."""
        synthetic = len(inputs["input_ids"]) - pool.size
        first = {name: value[:synthetic] for name, value in inputs.items()}
        last = {name: value[synthetic:] for name, value in inputs.items()}
        weights = last.get("loss_weights", torch.ones_like(last["start_ids"], dtype=torch.float32))
        rows = pool.refill(
            last["start_ids"], last["target_ids"], last["editable_mask"], last["attention_mask"], weights
        )
        pooled = {
            "input_ids": rows.ids,
            "attention_mask": rows.attention_mask,
            "editable_mask": rows.editable,
            "labels": oracle_labels(rows.ids, rows.target, rows.editable, self.mask_token_id),
        }
        first = {name: _lengthened(name, value, rows.ids.shape[1]) for name, value in first.items()}
        if "loss_weights" in first:
            # The collator's weights are those of the positions that a row's start has wrong: kept while the row lives.
            pooled["loss_weights"] = rows.weights
        batch = {name: torch.cat((first[name], pooled[name])) for name in pooled}
        return batch, [_segments(first), rows.history]

    @torch.no_grad()
    def _advance_pool(
        self, pool: OnPolicyPool, history: HistoryState | None, following: Tensor, confidence: Tensor | None = None
    ) -> None:
        rows, count = pool.active_rows(), pool.size
        following = torch.where(rows.editable, following[-count:], rows.ids)
        if confidence is not None:
            least = self.args.pool_reveal_threshold
            following = reveal_confident(rows.ids, following, confidence[-count:], self.mask_token_id, least)
        pool.advance(following, None if history is None else history.select(slice(-count, None)))

    def extra_state(self) -> dict[str, Tensor]:
        return {} if self.pool is None else self.pool.state_dict()

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        if self.pool is not None:
            self.pool.load_state_dict({name: value.to(self.args.device) for name, value in tensors.items()})

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the three losses and accuracies to the training logs, summed over all processes."""
        if "loss" in logs:
            logs.update(self.loss_parts.pop(lambda sums: self.accelerator.reduce(sums, reduction="sum")))
        super().log(logs, *args, **kwargs)


def build_collator(
    model: PreTrainedModel, args: RMTrainingArguments, proposal: Proposal | None, processing_class: Any = None
) -> RMDataCollator:
    """The collator that `args` describe; its proposal is uniform over the vocabulary by default."""
    return RMDataCollator(
        **collator_settings(model, args, processing_class),
        proposal=uniform_proposal(model) if proposal is None else proposal,
        law=build_law(args.law, args.horizon, args.max_attempts),
        corruption_rate=(args.min_corruption_rate, args.max_corruption_rate),
        full_corruption=args.full_corruption,
        blank_rows=args.blank_rows,
        edit_weight=args.edit_weight,
        start=args.pool_start,
    )


def _lengthened(name: str, value: Tensor, length: int) -> Tensor:
    """A tensor (B, N) or (B, N, S) of a batch with padding on the right, to the length of the pool's longest row."""
    behind = (0, 0) * (value.dim() - 2) + (0, length - value.shape[1])
    return F.pad(value, behind, value=IGNORE_INDEX if name == "labels" else 0)


def _segments(inputs: dict[str, Tensor]) -> HistorySegments:
    return HistorySegments(inputs["history_ids"], inputs["history_lags"])


def _count(labels: Tensor) -> Tensor:
    return (labels != -100).sum()
