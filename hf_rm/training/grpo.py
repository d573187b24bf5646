# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""Reinforcement learning of whole decoding runs, on TRL's GRPOTrainer: RemeDi's Remask RL, and the same for RM."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from numbers import Integral, Real
from typing import Any

import torch
from accelerate.utils import DistributedType
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checks import check_number
from ..generation_config_rm import ReflectiveGenerationConfig
from ..generation_rm import check_decoding
from ..generation_sampler_rm import _forbidden_ids, end_tokens
from ..modes import evaluating
from ..processes import meet_on_cpu
from ..remedi_rm import RemeDiForMaskedDiffusion
from .base import load_model
from .log_probs import ChoiceLogProbs, DrawSettings, choice_log_probs
from .lora import prepare_for_training
from .losses import CHUNK_LOGITS
from .rewards import check_rewards, contained
from .rollouts import Trajectory, check_rollout_config, left_padded, roll_out, stop_tokens, written_answers
from .saving import StagedCheckpoints, refuse_pickled_states

_LEAST, _BELOW = "1.16", "1.17"


def check_trl_version(version: str) -> None:
    """
    Raise an ImportError unless this is a TRL whose GRPOTrainer is known: what is overridden here is private there.

    Example:
        >>> check_trl_version("1.16.3")
    """
    # 1.17.0.dev0 comes before 1.17 and is no 1.16.
    if not SpecifierSet(f">={_LEAST},<{_BELOW}").contains(version, prereleases=True):
        raise ImportError(
            f"RemaskGRPOTrainer overrides private methods of TRL's GRPOTrainer and knows trl>={_LEAST},<{_BELOW}; "
            f'installed is {version}: pip install "trl>={_LEAST},<{_BELOW}".'
        )


try:
    import trl
except ImportError as error:
    raise ImportError('RemaskGRPOTrainer needs TRL and datasets: pip install "hf_rm[rl]".') from error
check_trl_version(trl.__version__)

from trl import GRPOConfig, GRPOTrainer  # noqa: E402

# Settings of GRPOConfig that a trajectory of masks has no meaning for, with the value that leaves each of them off.
_OFF: dict[str, Any] = {
    "beta": 0.0,
    "use_vllm": False,
    "use_transformers_continuous_batching": False,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "off_policy_mask_threshold": None,
    "delta": None,
    "sync_ref_model": False,
    "cast_lm_head_to_fp32": False,
    "use_liger_kernel": False,
}
# And those that nothing here reads, which are refused where they are not TRL's defaults.
_UNREAD = frozenset(
    """
    loss_type importance_sampling_level sapo_temperature_neg sapo_temperature_pos vespo_k_neg vespo_k_pos
    vespo_lambda_neg vespo_lambda_pos entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target
    ref_model_mixup_alpha ref_model_sync_steps router_aux_loss_coef max_tool_calling_iterations cache_implementation
    transformers_continuous_batching_config use_transformers_paged ds3_gather_for_generation trust_remote_code
    """.split()
)
_DEFAULTS = {item.name: item.default for item in fields(GRPOConfig)}
# Whole numbers, with the least that each may be; more than that is TRL's to say.
_COUNTS = {
    "num_generations": 2,
    "num_generations_eval": 1,
    "num_iterations": 1,
    "steps_per_generation": 1,
    "generation_batch_size": 1,
    "max_completion_length": 1,
    "pairs_per_forward": 1,
    "loss_steps": 1,
}
_OPTIONAL = tuple(name for name in _COUNTS if name not in ("num_generations", "num_iterations", "pairs_per_forward"))


@dataclass
class RemaskGRPOConfig(GRPOConfig):
    """
    Arguments of [`RemaskGRPOTrainer`]: TRL's `GRPOConfig` and what a decoding run adds.

    Of TRL's settings the groups, rewards, clipping (`epsilon`, `epsilon_high`), schedule and logging apply. Those that
    mean left-to-right sampling, a reference model or another loss (`loss_type`, `importance_sampling_level`) are
    refused: the loss is that of [`RemaskGRPOTrainer`]. So are processes that share the weights (FSDP, ZeRO-3).
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "decoding"]

    disable_dropout: bool = field(
        default=True, metadata={"help": "Dropout in the log-probabilities would be noise in the ratios."}
    )
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Kept off: rewards and canvases need the dataset's other columns."}
    )
    decoding: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Settings of ReflectiveGenerationConfig for rollouts, on top of the model's own: "
            '\'{"steps": 16, "block_length": 32}\'.'
        },
    )
    greedy_last_step: bool = field(
        default=True,
        metadata={
            "help": "RemeDi: in the last step of a block, which keeps every position, take the best tokens. It is "
            "deterministic then and contributes nothing, as in the paper. False draws its tokens and trains them."
        },
    )
    pairs_per_forward: int = field(
        default=64, metadata={"help": "Denoising steps (each of one row) in a forward pass of the loss."}
    )
    loss_steps: int | None = field(
        default=None,
        metadata={"help": "Denoising steps of each row that an update looks at, drawn by the row's content; all."},
    )
    reward_seconds: float | None = field(
        default=120.0,
        metadata={"help": "How long a reward may take over a batch; what is not done by then counts as not scored."},
    )
    ratio_level: str = field(
        default="step",
        metadata={"help": "'step': one ratio for all positions of a step, one for all its tokens; 'choice': each."},
    )

    def __post_init__(self) -> None:
        if meet_on_cpu():
            self.use_cpu = True
        self._check_numbers()
        self.decoding = _read_decoding(self.decoding)
        try:
            super().__post_init__()
        except ValueError as error:
            size = self.generation_batch_size  # known by now, unless it is something else that is wrong
            if size and size % self.num_generations:
                raise ValueError(_no_whole_groups(self.num_generations, size)) from error
            raise
        for name, off in _OFF.items():
            if getattr(self, name) not in (off, None):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}: Remask RL has no use for it. Leave it out ({off!r})."
                )
        for name in sorted(name for name in _DEFAULTS if name in _UNREAD or name.startswith("vllm_")):
            if getattr(self, name) != _DEFAULTS[name]:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but nothing in Remask RL reads it: leave it out "
                    f"({_DEFAULTS[name]!r})."
                )
        launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
        if self.fsdp or launched or getattr(self.deepspeed_plugin, "zero_stage", 0) == 3:
            refuse_spread_weights()
        if not self.temperature > 0:
            raise ValueError(f"`temperature` is {self.temperature}: rollouts are drawn, pass one above 0.")
        if self.ratio_level not in ("step", "choice"):
            raise ValueError(f"`ratio_level` is {self.ratio_level!r}: pass 'step' or 'choice'.")
        refuse_pickled_states(self)

    def _check_numbers(self) -> None:
        """Before TRL divides by some of them, and takes others as they are."""
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            more = ", or leave it out" if name in _OPTIONAL else ""
            check_number(name, value, least, inf, f"an integer of {least} or more{more}", Integral)
        value = self.reward_seconds
        if value is not None and (not isinstance(value, Real) or isinstance(value, bool) or not value > 0):
            raise ValueError(f"`reward_seconds` is {value!r}: pass a positive number, or None for no limit.")


def _read_decoding(given: Any) -> dict[str, Any] | None:
    """What `decoding` says, perhaps as JSON."""
    try:
        values = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`decoding` is {given!r}, no JSON ({error}): pass one such as '{{\"steps\": 16}}'."
        ) from error
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"`decoding` is {given!r}: pass a dict, or as JSON '{{\"steps\": 16}}'.")
    return values


def _no_whole_groups(generations: int, size: int) -> str:
    divisors = [str(number) for number in range(2, size + 1) if size % number == 0]
    return (
        f"`num_generations` is {generations}, which does not divide the {size} rows of a generation batch "
        "(`per_device_train_batch_size` times processes times `gradient_accumulation_steps` or "
        f"`steps_per_generation`): pass {'one of ' + ', '.join(divisors) + ', or ' if divisors else ''}such a "
        f"`per_device_train_batch_size` that the rows are a multiple of {generations}."
    )


def refuse_spread_weights() -> None:
    """The error for weights that are spread over processes."""
    raise ValueError(
        "the weights are spread over processes (FSDP, DeepSpeed ZeRO-3), but each process decodes its own rows, in as "
        "many forward passes as they take, and all would have to gather the weights as often: launch with DDP or "
        "ZeRO-2, and train an adapter where memory is short."
    )


def clipped_objective(
    log_ratio: Tensor, drawn: Tensor, advantages: Tensor, epsilon: tuple[float, float], level: str
) -> tuple[Tensor, Tensor, Tensor]:
    """
    min(r A, clip(r) A), summed over a row's choices.

    Args:
        log_ratio (`Tensor` (B, S, N)): log-probability now minus then, of each choice.
        drawn (`Tensor` (B, S, N), bool): where there is one.
        advantages (`Tensor` (B,)): A.
        epsilon: how far below and above 1 a ratio may go.
        level (`str`): `"step"`, r is that of all choices of a step; `"choice"`, each has its own.

    Returns:
        (B,) objectives; how many ratios were clipped, and how many there are.

    Example:
        >>> log_ratio, drawn = torch.tensor([[[0.1, 0.3], [0.0, 0.0]]]), torch.tensor([[[True, True], [True, False]]])
        >>> clipped_objective(log_ratio, drawn, torch.tensor([2.0]), (0.2, 0.2), "step")[0]
        tensor([4.4000])
    """
    log_ratio = torch.where(drawn, log_ratio, 0.0)
    if level == "step":
        log_ratio, drawn = log_ratio.sum(-1), drawn.any(-1)
    log_ratio, drawn = log_ratio.flatten(1), drawn.flatten(1)
    ratio, advantage = log_ratio.exp(), advantages[:, None]
    clipped = ratio.clamp(1 - epsilon[0], 1 + epsilon[1])
    each = torch.minimum(ratio * advantage, clipped * advantage)
    over = (clipped * advantage < ratio * advantage) & drawn
    return torch.where(drawn, each, 0.0).sum(-1), over.sum().float(), drawn.sum().float()


class RemaskGRPOTrainer(StagedCheckpoints, GRPOTrainer):
    """
    GRPO over decoding runs: a group of answers to each prompt, rewards of the final answers, and a loss over every
    choice that the runs made.

    A run's choices are, at each step, positions (RemeDi: K_n of the block, drawn by Plackett-Luce; RM: to keep or to
    re-mask each visible token) and tokens for the masks that are revealed. Each of the two has its own clipped ratio;

        loss = - mean over rows of 1/steps * sum over steps of [ min(r A, clip(r) A) + min(r' A, clip(r') A) ]

    without a KL term. The last step of a block in RemeDi's schedule keeps every position, K = B, and takes the best
    token for each mask that is left: deterministic, as the paper has it, it contributes no log-probability. What it
    writes is what decoding without chance would write there; on the tests' model the reward rises as fast either way,
    so that there is no reason to depart (`greedy_last_step=False` does). RM has no such step: its revision goes on.

    Rows of the dataset have `prompt`, as in TRL, a text or a conversation, which gets `max_completion_length` masks to
    fill; or also `input_ids`, a canvas of tokens, with `editable_mask`, what may change in it (by default its masks).
    Rewards see the final tokens of what may change, up to the first end token where the decoding stops there.

    Args:
        model (`str` or `PreTrainedModel`): a [`RemeDiForMaskedDiffusion`] or a [`RMForMaskedDiffusion`]; or a name.
        reward_funcs: as in TRL; [`hf_rm.training.rewards`] has some.
        args ([`RemaskGRPOConfig`]): settings.
        train_dataset, eval_dataset (`Dataset`): as in TRL.
        processing_class: the tokenizer.
        peft_config (`PeftConfig`, *optional*): train an adapter.
        kwargs: further arguments of `GRPOTrainer`; no tools and environments.

    Raises:
        ValueError: for settings and rows that cannot work, before the first rollout.
        ImportError: for a TRL that this was not written for.

    Example:
        >>> args = RemaskGRPOConfig("out", max_steps=100, decoding={"steps": 16})  # doctest: +SKIP
        >>> RemaskGRPOTrainer(model, math_reward(), args, rows, processing_class=tokenizer).train()  # doctest: +SKIP
    """

    _tag_names = ["trl", "grpo", "hf_rm"]
    _name = "Remask GRPO"

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any,
        args: RemaskGRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = RemaskGRPOConfig("trainer_output") if args is None else args
        unknown = [name for name in ("tools", "rollout_func", "environment_factory") if kwargs.get(name)]
        if unknown:
            raise ValueError(f"`{unknown[0]}` is given, but rollouts are decoding runs: leave it out.")
        if processing_class is None:
            raise ValueError("`processing_class` is None: pass the tokenizer, which rewards need to read an answer.")
        model = load_model(model, args.model_init_kwargs, RemeDiForMaskedDiffusion)
        args.model_init_kwargs = None  # used up: GRPOTrainer would warn
        own: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoding = rollout_decoding(own, args)
        if train_dataset is not None:  # TRL has words for that
            check_rollouts(own, self.decoding, train_dataset, args)
        others = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        for dataset in others:
            if dataset is not None:
                _most_steps(own, self.decoding, dataset, args)
        rewards = _contained(reward_funcs, args.reward_seconds)
        for dataset in (train_dataset, *others):
            check_rewards(rewards, dataset)
        had_forward, text_config = "forward" in vars(own), own.config.get_text_config()
        padding = getattr(text_config, "pad_token_id", None)
        if processing_class.pad_token is None and processing_class.eos_token is None:
            # TRL fills its batches with something; rewards never see it.
            processing_class = copy.deepcopy(processing_class)
            processing_class.pad_token = processing_class.mask_token or processing_class.unk_token
        super().__init__(
            model=prepare_for_training(model, peft_config),
            reward_funcs=rewards,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if not had_forward:
            # TRL's forward for next-token models; ours never takes that path.
            vars(own).pop("forward", None)
        # And the tokenizer's padding, which in a network's configuration can mean a row that is not trained.
        text_config.pad_token_id = padding
        self._rows: list[dict[str, Any]] = []
        self._trajectory: Trajectory | None = None

    def _own(self) -> Any:
        """The RM or RemeDi model, out of whatever is around it."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers; a ValueError where the weights are spread over processes."""
        super().create_accelerator_and_postprocess()
        kind, state = self.accelerator.distributed_type, self.accelerator.state
        zero = getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", 0)
        if kind == DistributedType.FSDP or zero == 3:
            refuse_spread_weights()

    # Rollouts

    def _tokenize_prompts(self, prompts: list) -> Any:
        if self._rows and _has_canvas(self._rows[0]):
            return [list(row["input_ids"]) for row in self._rows], None, {}
        return super()._tokenize_prompts(prompts)

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """Decode the prompts; the trajectory is kept for `_generate_and_score_completions`."""
        canvases = bool(self._rows) and _has_canvas(self._rows[0])
        marked = canvases and self._rows[0].get("editable_mask") is not None
        masks = [row["editable_mask"] for row in self._rows] if marked else None
        new = {} if canvases else {"max_new_tokens": self.args.max_completion_length}
        model, config = self._own(), self.decoding.updated(**new)
        batch = left_padded(prompt_ids, masks, self.accelerator.device)
        training = model.training
        with evaluating(model), self.compute_loss_context_manager():  # in the precision of the loss
            output, self._trajectory = roll_out(model, config, *batch, self.args.greedy_last_step)
        self._log_rollouts(output, "train" if training else "eval")
        return written_answers(output.sequences, self._trajectory.editable, stop_tokens(model, config)), None

    def _log_rollouts(self, output: Any, mode: str) -> None:
        for name in ("num_steps", "num_forwards", "num_reveals", "num_remasks", "converged"):
            mean = self.accelerator.gather(getattr(output, name).float()).mean().item()
            self._metrics[mode][f"rollout/{name}"].append(mean)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self._rows = []
        assert self._trajectory is not None
        # As many steps in every process: each has to run as many forward passes.
        batch |= self._trajectory.padded(self._most(self._trajectory.block.shape[1])).tensors()
        self._trajectory = None
        return batch

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Those of tokens from left to right, which nobody has a use for here; see `_prepare_inputs`."""
        return None, None, None

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        every = self.args.steps_per_generation * self.num_iterations
        fresh = self.model.training and (self._step % every == 0 or self._buffered_inputs is None)
        inputs = super()._prepare_inputs(generation_batch)
        # Unless all is used up before the weights change, the log-probabilities of now are needed later.
        if fresh and self.args.gradient_accumulation_steps % every:
            with torch.no_grad():
                for part in self._buffered_inputs:
                    then = self._log_probs(self.model_wrapped, Trajectory.of(part))
                    part["old_positions"], part["old_tokens"] = then.positions, then.tokens
        return inputs

    # Loss

    def _most(self, number: int) -> int:
        if self.accelerator.num_processes == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def _log_probs(self, model: Any, trajectory: Trajectory) -> ChoiceLogProbs:
        own = self._own()
        with self.compute_loss_context_manager():
            return choice_log_probs(
                model, own.config, trajectory, draw_settings(own, self.decoding, self.args), self._most
            )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        trajectory, advantages = Trajectory.of(inputs), inputs["advantages"]
        now = self._log_probs(model, trajectory)
        # On-policy then and now are the same numbers, and the ratio is 1 exactly.
        then = inputs.get("old_positions", now.positions.detach()), inputs.get("old_tokens", now.tokens.detach())
        epsilon, level = (self.epsilon_low, self.epsilon_high), self.args.ratio_level
        steps = trajectory.num_steps().clamp(min=1)
        total = torch.zeros_like(advantages)
        mode = "train" if self.model.training else "eval"
        kinds = (
            ("positions", now.positions, then[0], now.positions_drawn),
            ("tokens", now.tokens, then[1], now.tokens_drawn),
        )
        for name, new, old, drawn in kinds:
            objective, clipped, count = clipped_objective(new - old, drawn, advantages, epsilon, level)
            total = total + objective
            sums = torch.stack((clipped, count, -torch.where(drawn, new.detach(), 0.0).sum(), drawn.sum().float()))
            sums = self.accelerator.reduce(sums, reduction="sum")
            self._metrics[mode][f"clip_ratio/{name}"].append((sums[0] / sums[1].clamp(min=1)).item())
            self._metrics[mode][f"surprise/{name}"].append((sums[2] / sums[3].clamp(min=1)).item())
        # With `loss_steps` a few steps stand for all.
        loss = -(now.weight * total / steps).mean()
        return loss / (self.current_gradient_accumulation_steps if mode == "train" else 1)

    # Checkpoints

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None beside a checkpoint: a repository's card is written as it is pushed, by `hf_rm.hub`."""


def rollout_decoding(model: Any, args: RemaskGRPOConfig) -> ReflectiveGenerationConfig:
    """
    The rollouts' settings: the model's own, its preset's where it has none, and those of `decoding`.

    Raises:
        ValueError: for settings under which a run has no probability, or that another argument says.
    """
    own = getattr(model, "generation_config", None)
    config = own if isinstance(own, ReflectiveGenerationConfig) else ReflectiveGenerationConfig()
    changes: dict[str, Any] = dict(args.decoding or {})  # type: ignore[arg-type]  # JSON was read by now
    for name in ("temperature", "max_new_tokens"):
        if name in changes:
            raise ValueError(
                f"`decoding` sets {name!r}: `temperature` and `max_completion_length` of RemaskGRPOConfig say that."
            )
    config = config.updated(**changes, temperature=args.temperature)
    check_rollout_config(model, config)
    return config


def check_rollouts(model: Any, config: ReflectiveGenerationConfig, dataset: Any, args: RemaskGRPOConfig) -> None:
    """
    Raise the ValueError that a rollout would, without a forward pass: canvases that cannot be decoded, too few steps
    for the blocks, blocks that are not the attention's, a cache that the model cannot have.

    Args:
        model: what has `generate_reflective`; its weights need not be there.
        config: of [`rollout_decoding`].
        dataset (`Dataset` or list of `dict`): as the trainer has it; of one that is made as it is read the first row
            stands for all.
        args ([`RemaskGRPOConfig`]): of the training.
    """
    steps = _most_steps(model, config, dataset, args)
    if steps == 1 and config.reveal == "policy" and args.greedy_last_step:
        raise ValueError(
            f"`steps` is {config.steps}, one for each block, and the last step of a block is deterministic: nothing "
            "would be drawn. Pass more steps, or greedy_last_step=False."
        )


def _most_steps(model: Any, config: ReflectiveGenerationConfig, dataset: Any, args: RemaskGRPOConfig) -> int:
    """Of a block in any of the rows; a ValueError for what cannot be decoded."""
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("the dataset has no rows: pass one with prompts.")
    if not _has_canvas(first):
        if first.get("editable_mask") is not None:
            raise ValueError(
                "the dataset has `editable_mask` without `input_ids`: it marks what may change in them, pass both."
            )
        # How a prompt is tokenized is TRL's affair: one token in its place.
        canvas = torch.tensor([[int(model.config.mask_token_id == 0)]])
        return int(check_decoding(model, config.updated(max_new_tokens=args.max_completion_length), canvas).max())
    rows = enumerate(dataset) if hasattr(dataset, "__len__") else [(0, first)]
    canvases = _canvases(rows, first, model._resolve_mask_token_id(config), config)
    return max(_steps_of(model, config, batch) for batch in _same_length(canvases))


def _has_canvas(row: dict[str, Any]) -> bool:
    return row.get("input_ids") is not None


_Numbered = tuple[int, Tensor, Tensor | None]


def _canvases(
    rows: Iterable[tuple[int, dict[str, Any]]],
    first: dict[str, Any],
    mask_token_id: int,
    config: ReflectiveGenerationConfig,
) -> Iterable[_Numbered]:
    """Number, ids and editable mask of each row; a ValueError for one whose mask is not that of its ids."""
    marked = first.get("editable_mask") is not None
    for number, row in rows:
        ids, editable, where = row.get("input_ids"), row.get("editable_mask"), f"row {number} of the dataset"
        if ids is None or (editable is not None) is not marked:
            missing = "input_ids" if ids is None else "editable_mask"
            raise ValueError(
                f"{where} and row 0 differ in whether they have `{missing}`: pass it in all rows or none."
            )
        if editable is not None and len(editable) != len(ids):
            raise ValueError(
                f"{where} has {len(ids)} `input_ids` and an `editable_mask` of {len(editable)}: pass one a token."
            )
        ids = torch.as_tensor(ids)
        if editable is not None:
            editable = torch.as_tensor(editable)
            fixed, remedy = not bool(editable.any()), "only False in its `editable_mask`: mark what may change."
        else:
            fixed = config.editable != "all" and not bool((ids == mask_token_id).any())
            remedy = f"no masks (id {mask_token_id}) in its `input_ids`: put some in, or pass an `editable_mask`."
        if fixed and config.max_new_tokens is None:
            raise ValueError(f"{where} has {remedy}")
        yield number, ids, editable


_LOOK = 256  # canvases at a time


def _same_length(canvases: Iterable[_Numbered]) -> Iterable[list[_Numbered]]:
    """Batches of canvases of one length, so that a large dataset is looked at in seconds."""
    waiting: dict[int, list[_Numbered]] = {}
    for canvas in canvases:
        batch = waiting.setdefault(len(canvas[1]), [])
        batch.append(canvas)
        if len(batch) == _LOOK:
            yield waiting.pop(len(canvas[1]))
    yield from waiting.values()


def _steps_of(model: Any, config: ReflectiveGenerationConfig, canvases: Sequence[_Numbered]) -> int:
    """The most steps of a block in canvases of one length; a ValueError names the row."""
    ids = torch.stack([canvas[1] for canvas in canvases])
    editable = [canvas[2] for canvas in canvases if canvas[2] is not None]
    try:
        return int(check_decoding(model, config, ids, torch.stack(editable) if editable else None).max())
    except ValueError as error:
        if len(canvases) == 1:
            raise ValueError(f"row {canvases[0][0]} of the dataset cannot be decoded: {error}") from error
        for canvas in canvases:
            _steps_of(model, config, [canvas])
        raise


def draw_settings(model: Any, config: ReflectiveGenerationConfig, args: RemaskGRPOConfig) -> DrawSettings:
    """
    How a rollout of this model with these settings draws, for [`choice_log_probs`].

    All blocks go into one forward pass where the attention goes by blocks, a finished block stays as it is, and
    nothing else ties one step to another.
    """
    own, device = model.config, next(model.parameters()).device
    mask_token_id = model._resolve_mask_token_id(config)
    use_history = own.history if config.use_history is None else config.use_history
    blocks, alone = own.attention_block_length is not None, config.revise_scope == "block"
    freezes = bool(use_history and blocks and own.history_scope == "editable")
    return DrawSettings(
        mask_token_id=mask_token_id,
        forbidden=_forbidden_ids(model, config, mask_token_id, end_tokens(model, config, device), device),
        temperature=float(config.temperature),
        use_history=use_history,
        freezes=freezes,
        by_block=blocks and alone and not own.logits_shift and (freezes or not use_history),
        pairs_per_forward=args.pairs_per_forward,
        chunk_rows=max(1, CHUNK_LOGITS // own.vocab_size),
        steps=args.loss_steps,
        seed=args.seed,
    )


def _contained(reward_funcs: Any, seconds: float | None) -> list[Any]:
    """Rewards that cannot end the run; models are TRL's business."""
    listed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    plain = lambda f: callable(f) and not isinstance(f, nn.Module)  # noqa: E731
    return [contained(reward, seconds) if plain(reward) else reward for reward in listed]
