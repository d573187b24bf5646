# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Remask SFT: RemeDi's backbone learns to fill masks, its policy stream which tokens are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..configuration_rm import blocks_from_answer
from ..corruption import Proposal
from ..corruption.oracle import IGNORE_INDEX
from ..corruption.remask import CLEAN, GROUP_NAMES, MASKED, RemaskSFTCollator
from ..generation_config_rm import ReflectiveGenerationConfig
from ..remedi_rm import RemeDiForMaskedDiffusion
from .arguments import MaskedTrainingArguments
from .base import MaskedTrainer, load_model
from .data import collator_settings, uniform_proposal
from .rollouts import stop_tokens


@dataclass
class RemaskSFTArguments(MaskedTrainingArguments):
    """Arguments of [`RemaskSFTTrainer`]; the defaults are the paper's."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of the policy stream."})
    backbone_learning_rate: float = field(
        default=2e-6, metadata={"help": "Learning rate of everything else: the backbone, or an adapter on it."}
    )
    policy_weight: float = field(
        default=0.3, metadata={"help": "Weight of the policy's loss; that of the tokens has 1."}
    )
    incorrect_rate: float = field(
        default=0.1, metadata={"help": "r: of the tokens that are not masked at time t, 4 r t (1 - t) are made wrong."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("backbone_learning_rate", "policy_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: pass a number of at least 0.")
        if self.muon_learning_rate is not None:
            raise ValueError(
                f"`muon_learning_rate` is {self.muon_learning_rate}, but Remask SFT has two learning rates of its "
                "own: leave it out."
            )


def token_losses(cross_entropy: Tensor, groups: Tensor, weights: Tensor) -> Tensor:
    """
    What each position contributes to the diffusion loss, -(L / masks) log p at masks and 0 elsewhere; all (B, N).

    Example:
        >>> groups, weights = torch.tensor([[2, 0, 2, 0]]), torch.full((1, 4), 4 / 2)
        >>> p = torch.tensor([[0.5, 1.0, 0.25, 1.0]])
        >>> round(token_losses(-p.log(), groups, weights).sum().item(), 6)
        4.158883
    """
    return torch.where(groups == MASKED, cross_entropy * weights, 0.0)


def policy_losses(policy: Tensor, cross_entropy: Tensor, groups: Tensor) -> Tensor:
    """
    Binary cross-entropy of sigmoid(h) at every supervised position: 1 where the token is right, 0 where it is wrong,
    at masks the probability of the right token, through which no gradient goes; all (B, N).

    Example:
        >>> policy, groups = torch.tensor([[2.0, 2.0, 0.0]]), torch.tensor([[0, 1, 2]])
        >>> policy_losses(policy, torch.tensor([[0.0, 0.0, 1.204]]), groups)
        tensor([[0.1269, 2.1269, 0.6931]])
    """
    right = torch.where(groups == MASKED, (-cross_entropy.detach()).exp(), (groups == CLEAN).float())
    loss = F.binary_cross_entropy_with_logits(policy.float(), right, reduction="none")
    return torch.where(groups == IGNORE_INDEX, 0.0, loss)


class GroupSums:
    """Running sums over the clean, the incorrect and the masked positions, kept on the device: no step waits."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    @torch.no_grad()
    def add(self, groups: Tensor, policy: Tensor, policy_loss: Tensor, token_loss: Tensor) -> None:
        """Count a batch, (B, N) each: groups, policy scores, both losses."""
        values = (policy_loss, policy.float().sigmoid(), token_loss, torch.ones_like(policy_loss))
        rows = torch.stack([value.flatten().float() for value in values])
        # Unsupervised positions go to a fourth bin, which nobody reads.
        bins = torch.where(groups == IGNORE_INDEX, len(GROUP_NAMES), groups).flatten()
        sums = rows.new_zeros(len(values), len(GROUP_NAMES) + 1).index_add_(1, bins, rows)[:, :-1]
        self.sums = sums if self.sums is None else self.sums + sums

    def pop(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Means since the last call, and start again. `reduce` sums the tensor over processes."""
        if self.sums is None:
            return {}
        losses, confidences, tokens, counts = reduce(self.sums).tolist()
        self.sums = None
        logs = {}
        for name, loss, confidence, count in zip(GROUP_NAMES, losses, confidences, counts, strict=True):
            if count:  # the mean of a group without positions does not exist
                logs[f"loss_policy_{name}"] = loss / count
                logs[f"confidence_{name}"] = confidence / count
        logs["loss_token"], logs["loss_policy"] = sum(tokens) / sum(counts), sum(losses) / sum(counts)
        return logs


class RemaskSFTTrainer(MaskedTrainer):
    """
    Supervised training of RemeDi: tokens at masks, and which visible tokens are right.

    The loss of a row of L supervised positions is -(L / masks) sum log p(x*) over the masks plus `policy_weight` times
    the sum of the policy's binary cross-entropies; that of a batch is the sum over its rows, divided by all their L.
    A model whose attention goes by blocks learns one block at a time, in the context it is decoded in (clean blocks
    before it, nothing behind it), of those that decoding reaches: none behind an end token where it stops at one. No
    history.

    Logs, besides the loss, `loss_token` and `loss_policy`, and for each of the three groups (clean, incorrect, masked)
    `loss_policy_*` and `confidence_*`, the mean of sigmoid(h).

    Args:
        model (`str` or `PreTrainedModel`): a [`RemeDiForMaskedDiffusion`]; or a name or folder of one, or of a
            backbone, which gets an untrained stream.
        args (`RemaskSFTArguments`): both learning rates, the losses' weights and everything `TrainingArguments` has.
        train_dataset, eval_dataset: see [`RowDataset`].
        processing_class: the tokenizer, for datasets of texts.
        data_collator ([`RemaskSFTCollator`], *optional*): by default built from `args` with `proposal`.
        proposal ([`Proposal`], *optional*): where wrong tokens come from; by default uniform over the vocabulary.
        peft_config (`PeftConfig`, *optional*): train an adapter; [`default_lora_config`] trains the stream whole.
        kwargs: further arguments of `Trainer`.

    Raises:
        ValueError: for a model without a policy, and for arguments that cannot work, before the first step.

    Example:
        >>> args = RemaskSFTArguments("out", max_steps=100)  # doctest: +SKIP
        >>> RemaskSFTTrainer("GSAI-ML/LLaDA-8B-Instruct", args, train_dataset=rows).train()  # doctest: +SKIP
    """

    _tag_names = ("hf_rm", "remask-sft")

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: RemaskSFTArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: RemaskSFTCollator | None = None,
        proposal: Proposal | None = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = RemaskSFTArguments("remask-sft-output") if args is None else args
        model = load_model(model, args.model_init_kwargs, RemeDiForMaskedDiffusion)
        if not getattr(model, "has_unmasking_policy", False):
            raise ValueError(
                f"`model` is a {type(model).__name__}, which has no policy to train: wrap its backbone with "
                "RemeDiForMaskedDiffusion.from_backbone."
            )
        if data_collator is None:
            data_collator = build_remask_collator(model, args, proposal, processing_class)
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
        self.group_sums = GroupSums()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in transformers, with `learning_rate` for the policy stream and `backbone_learning_rate` for the rest."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(trained))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(("stream" in name.split("."), name in decayed), []).append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            rates = {True: self.args.learning_rate, False: self.args.backbone_learning_rate}
            decay = {True: self.args.weight_decay, False: 0.0}
            self.optimizer = kind(
                [
                    {"params": parameters, "lr": rates[stream], "weight_decay": decay[decays]}
                    for (stream, decays), parameters in sorted(groups.items(), key=lambda group: group[0])
                ],
                **options,
            )
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        # The losses are means over all supervised positions, not over the masks, which carry the labels.
        return super()._get_num_items_in_batch([{"labels": batch["groups"]} for batch in batch_samples], device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Both losses of a batch."""
        groups = inputs["groups"]
        outputs, per_position = self._cross_entropy(model, inputs, return_outputs)
        cross_entropy = per_position.view_as(groups)
        token = token_losses(cross_entropy, groups, inputs["loss_weights"])
        policy = policy_losses(outputs.policy, cross_entropy, groups)
        total = token.sum() + self.args.policy_weight * policy.sum()
        loss = self._normalise(total, groups, num_items_in_batch)
        if model.training:
            self.group_sums.add(groups, outputs.policy, policy, token)
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the two losses and the three groups to the training logs, summed over all processes."""
        if "loss" in logs:
            logs.update(self.group_sums.pop(lambda sums: self.accelerator.reduce(sums, reduction="sum")))
        super().log(logs, *args, **kwargs)


def build_remask_collator(
    model: PreTrainedModel, args: RemaskSFTArguments, proposal: Proposal | None, processing_class: Any = None
) -> RemaskSFTCollator:
    """
    The collator that `args` describe; its proposal is uniform over the vocabulary by default.

    Raises:
        ValueError: for a model whose attention goes by blocks that are not counted from the answer.
    """
    config, decoding = model.config, getattr(model, "generation_config", None)
    if config.attention_block_length is not None and not blocks_from_answer(config):
        raise ValueError(
            f"`attention_block_length` is {config.attention_block_length} with blocks counted from the start of the "
            'sequence: Remask SFT knows blocks of the answer. Wrap the backbone with attention_block_start="answer".'
        )
    return RemaskSFTCollator(
        **collator_settings(model, args, processing_class),
        proposal=uniform_proposal(model) if proposal is None else proposal,
        incorrect_rate=args.incorrect_rate,
        block_length=config.attention_block_length,
        stop_token_ids=stop_tokens(model, decoding) if isinstance(decoding, ReflectiveGenerationConfig) else (),
    )
