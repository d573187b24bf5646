# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""RMTrainer: reveal, mask and keep losses over pseudo-trajectories and over the model's own revisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from ..corruption.pool import PoolRows, eq1_next_state, pool_places, reveal_confident
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
        whole = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        if args.pool_fraction and not 0 < len(pool_places(args.pool_fraction, 0, whole)) < whole:
            raise ValueError(
                f"`pool_fraction` is {args.pool_fraction} of a batch of {whole}: it leaves no row on one of the two "
                "sides. Pass a larger batch or another fraction."
            )
        self.pools = self._make_pools(embedding_width(model.config.text_config))
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

    def _make_pools(self, width: int) -> dict[int, OnPolicyPool]:
        """A pool for each batch of a step that has places of it in this process, by the batch's number."""
        args, pools = self.args, {}
        for turn in range(args.gradient_accumulation_steps if args.pool_fraction else 0):
            # As accelerate deals the sampler's batches out: one to each process, and again.
            first = (turn * args.world_size + args.process_index) * args.train_batch_size
            places = pool_places(args.pool_fraction, first, args.train_batch_size)
            if places:
                pools[turn] = OnPolicyPool(places, width, args.pool_max_age)
        return pools

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """As in transformers; but the pool's rows take their places, before the labels of the step are counted."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.pool_fraction and batches and self.state.global_step >= self.args.pool_start_step:
            batches = [self._with_pool(self.pools.get(turn), batch) for turn, batch in enumerate(batches)]
            count = self._get_num_items_in_batch(batches, device)
        return batches, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The weighted, clipped cross-entropy of a batch, in which some rows may be the pool's."""
        pool: OnPolicyPool | None = inputs.get("pool")
        labels = inputs["labels"]
        outputs, (per_position, best, *following) = self._forward(
            model,
            labels,
            self._reader(inputs, pool),
            return_outputs,
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            editable_mask=inputs["editable_mask"],
            history=_segments(inputs) if pool is None else inputs["history"],
        )
        weights = inputs["loss_weights"].flatten() if "loss_weights" in inputs else 1.0
        if self.args.reveal_weights == "inverse":
            weights = weights * reveal_weights(inputs["input_ids"], labels, self.mask_token_id).flatten()
        if self.args.reveal_context == "right":
            weights = weights * right_context(inputs["input_ids"], labels, self.mask_token_id).flatten()
        loss = self._normalise((per_position * weights).sum(), labels, num_items_in_batch)
        if model.training:
            self.loss_parts.add(inputs["input_ids"], labels, best, per_position, self.mask_token_id)
        if pool is not None:
            following = [column.view_as(labels) for column in following]
            self._advance_pool(pool, inputs["pool_rows"], outputs.history, *following)
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

    def _with_pool(self, pool: OnPolicyPool | None, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """The batch with the pool's rows, behind all others, instead of those in their places, which refill it."""
        inputs = self._prepare_inputs(inputs)
        number = range(len(inputs["input_ids"]))
        places = [] if pool is None else [place for place in pool.places if place in number]
        if pool is None or not places:
            return inputs
        others = sorted({*number} - {*places})
        first = {name: value[others] for name, value in inputs.items()}
        offered = {name: value[places] for name, value in inputs.items()}
        weights = offered.get("loss_weights", torch.ones_like(offered["start_ids"], dtype=torch.float32))
        rows = pool.refill(
            offered["start_ids"], offered["target_ids"], offered["editable_mask"], offered["attention_mask"], weights
        )
        pooled = self._pool_inputs(rows)
        # The collator's weights are those of the positions that a row's start has wrong: kept while the row lives.
        pooled = {name: value for name, value in pooled.items() if name in first}
        first = {name: _lengthened(name, value, rows.ids.shape[1]) for name, value in first.items()}
        batch: dict[str, Any] = {name: torch.cat((first[name], pooled[name])) for name in pooled}
        history: list[History] = [_segments(first), rows.history] if others else [rows.history]
        return {**batch, "history": history, "pool": pool, "pool_rows": rows}

    def _pool_inputs(self, rows: PoolRows) -> dict[str, Tensor]:
        """What a batch holds of rows of the pool."""
        return {
            "input_ids": rows.ids,
            "attention_mask": rows.attention_mask,
            "editable_mask": rows.editable,
            "labels": oracle_labels(rows.ids, rows.target, rows.editable, self.mask_token_id),
            "loss_weights": rows.weights,
        }

    @torch.no_grad()
    def _advance_pool(
        self,
        pool: OnPolicyPool,
        rows: PoolRows,
        history: HistoryState | None,
        following: Tensor,
        confidence: Tensor | None = None,
    ) -> None:
        last = slice(-len(rows.ids), None)
        following = torch.where(rows.editable, following[last], rows.ids)
        if confidence is not None:
            least = self.args.pool_reveal_threshold
            following = reveal_confident(rows.ids, following, confidence[last], self.mask_token_id, least)
        pool.advance(following, None if history is None else history.select(last))

    def extra_state(self) -> dict[str, Tensor]:
        return {
            f"{turn}.{name}": value for turn, pool in self.pools.items() for name, value in pool.state_dict().items()
        }

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        """
        Take the pool up again.

        Raises:
            ValueError: for the state of another pool: bit for bit a run goes on only as it was launched.
        """
        saved = {int(name.partition(".")[0]) for name in tensors}
        if self.pools and not (saved and saved <= self.pools.keys()):
            raise ValueError(
                f"the checkpoint has the pool rows of batches {sorted(saved)} of a step for process "
                f"{self.args.process_index}, which has some in {sorted(self.pools)}: resume with the processes, the "
                "accumulation steps and the `pool_fraction` of its training."
            )
        for turn, pool in self.pools.items():
            own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{turn}.")}
            pool.load_state_dict({name: value.to(self.args.device) for name, value in own.items()})

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
