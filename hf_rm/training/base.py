# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What the trainers of supervised stages share: data, optimizer, normalisation, the loader's epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, Trainer, TrainerCallback

from ..configuration_rm import WRAPPER_TYPES
from ..corruption.oracle import IGNORE_INDEX
from ..heads_rm import LogitsReader
from ..modeling_rm import RMForMaskedDiffusion
from .arguments import MaskedTrainingArguments
from .data import RowDataset
from .head_gradient import accumulating_head
from .lora import check_quantisation, prepare_for_training
from .losses import chunk_rows, clipped_cross_entropy
from .optimizers import MuonWithAdamW, split_parameters
from .saving import StagedCheckpoints


class _EpochCallback(TrainerCallback):
    """Tells the collator which epoch begins; also after a resume, where the first epoch is a later one."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.set_epoch(int((state.epoch or 0) + 1e-6))


class MaskedTrainer(StagedCheckpoints, Trainer):
    """
    Base of the trainers of this package; see [`RMTrainer`] and [`MaskedSFTTrainer`].

    Unlike plain `Trainer` it wraps datasets ([`RowDataset`]), takes a `peft_config`, and saves, resumes and publishes
    as [`StagedCheckpoints`] says.
    """

    _tag_names: tuple[str, ...] = ("hf_rm",)
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: MaskedTrainingArguments,
        data_collator: Any,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        # Data
        about = (processing_class, args.max_length, model.config.vocab_size)
        wrap = lambda rows: None if rows is None else RowDataset(rows, *about)  # noqa: E731
        super().__init__(
            # PEFT
            model=prepare_for_training(model, peft_config),
            args=args,
            data_collator=data_collator,
            train_dataset=wrap(train_dataset),
            eval_dataset=wrap(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        # The loss is divided by the labels of the whole accumulated batch, over all processes: Trainer has to count
        # them, and must not divide by the accumulation steps again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.add_callback(_EpochCallback(data_collator))
        self._logits_wanted = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.args.muon_learning_rate is None:
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        if self.optimizer is None:
            matrices, others = split_parameters(self.model if model is None else model)
            self.optimizer = MuonWithAdamW(
                matrices,
                others,
                muon_lr=self.args.muon_learning_rate,
                lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
        return self.optimizer

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers; where only the loss is wanted, an evaluation need not hold all scores either."""
        self._logits_wanted = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            self._logits_wanted = True

    def _forward(
        self,
        model: nn.Module,
        labels: Tensor,
        read: Callable[[Tensor, Any], tuple[Tensor, ...]],
        return_logits: bool,
        **inputs: Any,
    ) -> tuple[Any, list[Tensor]]:
        """
        The model's outputs, and what `read(scores, which)` found at every position: tensors of shape (B * N,).

        `read` gets scores (k, V) and an index of their positions among all. Where the scores of the batch are read in
        chunks, positions without a label are left out, and are 0 in the result.
        """
        plan = None if return_logits and self._logits_wanted else self._chunks(labels)
        if plan is None:
            outputs = model(**inputs)
            return outputs, list(read(outputs.logits.flatten(0, 1), slice(None)))
        supervised, rows, step = plan
        # Modules that gather their weights when they are called have to be called.
        alone = self.accelerator.distributed_type == DistributedType.NO
        wrap = None if self._weights_are_spread() else partial(accumulating_head, in_place=alone)
        reader = LogitsReader(rows, lambda scores, part: read(scores, rows[part]), step, wrap)
        outputs = model(**inputs, logits_reader=reader)
        count = len(supervised)
        return outputs, [
            column.new_zeros(labels.numel()).index_put((supervised,), column[:count]) for column in outputs.read
        ]

    def _cross_entropy(self, model: nn.Module, inputs: dict[str, Tensor], return_logits: bool) -> tuple[Any, Tensor]:
        """The model's outputs without history, and the cross-entropy at each position, (B * N,); 0 without a label."""
        labels = inputs["labels"].flatten()

        def read(logits: Tensor, which: Any) -> tuple[Tensor]:
            return (clipped_cross_entropy(logits, labels[which].to(logits.device), clip="none"),)

        read_by_model = {name: inputs[name] for name in ("input_ids", "attention_mask", "editable_mask")}
        outputs, (per_position,) = self._forward(
            model, inputs["labels"], read, return_logits, **read_by_model, use_history=False
        )
        return outputs, per_position

    def _chunks(self, labels: Tensor) -> tuple[Tensor, Tensor, int] | None:
        """Positions with a label, positions to read (as many or more), and rows a chunk; None without chunks."""
        vocab_size = self.model.config.vocab_size
        step = chunk_rows(self.args.loss_chunk_rows, self._most(labels.numel()), vocab_size)
        if not step:
            return None
        supervised = (labels.flatten() != IGNORE_INDEX).nonzero()[:, 0]
        count = len(supervised)
        calls = max(1, -(-count // step))
        most = self._most(calls)
        # At least one row, so that a batch without a label still has gradients: zeros.
        wanted = most * step if most > calls else max(count, 1)
        return supervised, F.pad(supervised, (0, wanted - count)), step

    def _most(self, number: int) -> int:
        """The greatest over all processes where they share the weights, so that each calls the head as often."""
        if not self._weights_are_spread():
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.args.device)).max())

    def _weights_are_spread(self) -> bool:
        return self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def _normalise(self, total: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """A sum over positions as its share of the mean over the whole accumulated batch, all processes included."""
        if num_items_in_batch is None:
            return total / (labels != -100).sum()
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        # Gradients are averaged over processes, but num_items_in_batch counts all of them.
        return total / num_items_in_batch * processes


def load_model(
    model: str | PreTrainedModel,
    model_init_kwargs: dict[str, Any] | str | None = None,
    wrapper: type[RMForMaskedDiffusion] = RMForMaskedDiffusion,
) -> PreTrainedModel:
    """
    A model, or the one that a name or folder stands for: a saved wrapper, or else a backbone to wrap in `wrapper`.

    Raises:
        ValueError: for `model_init_kwargs` beside a loaded model, and for a quantisation that cannot be had here.
    """
    kwargs = model_init_kwargs or {}
    if isinstance(kwargs, str):
        raise ValueError(f"`model_init_kwargs` is {kwargs!r}: pass a dict, or one written as JSON.")
    if not isinstance(model, str):
        if kwargs:
            raise ValueError(
                f"`model_init_kwargs` is {kwargs}, but `model` is a {type(model).__name__}, loaded already: pass its "
                "name, or load it with these arguments."
            )
        return model
    check_quantisation(kwargs)
    where = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
    saved = PreTrainedConfig.get_config_dict(model, **where)[0].get("model_type")
    if saved in WRAPPER_TYPES:
        # The class it was saved from, which a trainer may still refuse.
        return AutoModel.from_pretrained(model, **kwargs)
    return wrapper.from_backbone(model, backbone_kwargs=kwargs)
