# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
What the text recipes share: from a base to vanilla SFT and to Reflective Masking on one budget, stage by stage.

    base --sft_steps--> start --max_steps of SFT--> "sft"
                          |-----max_steps of RM---> "rm", "rm-no-hr", "rm-paper", ...
                          '-----one probe---------> frozen top-k proposal (and a harvest of its own errors)

Every stage has a folder. One that is done is not done again, one that was stopped goes on: trainings from their last
checkpoint, caches from their last shard, evaluations from their last sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..corruption import FrozenTopKProposal, HarvestedProposal, Proposal, build_topk_cache, harvest
from ..evaluation.text import evaluate_text
from ..evaluation.text_records import TextEvaluation
from ..hub import save_adapter_for_hub, save_for_hub
from ..modeling_rm import RMForMaskedDiffusion
from ..training import MaskedSFTArguments, MaskedSFTTrainer, RMTrainer, RMTrainingArguments, default_lora_config
from ..training.arguments import MaskedTrainingArguments
from ..training.stages import claim_folder, write_json
from .text import TextSample, encode_samples

FINISHED = "finished.json"


class TextTask(Protocol):
    """What a recipe brings: samples and a grader."""

    name: str

    def train(self) -> list[TextSample]:
        """Samples with completions."""

    def test(self) -> list[TextSample]:
        """Held-out samples."""

    def grade(self, sample: TextSample, text: str) -> bool:
        """Whether a completion answers a sample."""


@dataclass(frozen=True)
class System:
    """How a row of the results table is trained.

    Attributes:
        trainer: ``None`` for the base as it is, ``"sft"`` or ``"rm"``.
        history: Whether the model reads its earlier states.
        law: Trajectory law.
        harvested: Whether wrong tokens are the start's own recorded errors where it made any.
        pool: Whether a part of each batch is the model's own revisions.
    """

    trainer: Literal["sft", "rm"] | None
    history: bool = True
    law: str = "attempts"
    harvested: bool = False
    pool: bool = False


SYSTEMS = {
    "base": System(None),
    "sft": System("sft", history=False),
    "rm-no-hr": System("rm", history=False),
    "rm-paper": System("rm", law="paper"),
    "rm": System("rm"),
    "rm-harvested": System("rm", harvested=True),
    "rm-pool": System("rm", pool=True),
}


@dataclass
class PostTrainingArguments:
    """Arguments of the text recipes, beside those of RMTrainingArguments: `max_steps` is the budget of each system."""

    base: str = field(
        default="model_cards/tiny-math-base", metadata={"help": "The model to post-train: a folder or Hub name."}
    )
    systems: list[str] = field(
        default_factory=lambda: ["base", "sft", "rm"], metadata={"help": f"Any of {', '.join(SYSTEMS)}."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds of the post-training."})
    sft_steps: int = field(
        default=0, metadata={"help": "Steps of vanilla SFT that all systems but the base begin with."}
    )
    train_samples: int | None = field(default=None, metadata={"help": "Training samples; all of them by default."})
    completion_length: int = field(default=256, metadata={"help": "Tokens of the canvas behind a prompt."})
    eos_tail: Literal["fill", "one"] = field(
        default="fill",
        metadata={
            "help": "'fill' learns end tokens to the end of the canvas, 'one' a single one (block-wise decoding)."
        },
    )
    min_mask_rate: float = field(default=1e-3, metadata={"help": "Smallest masking rate of SFT."})
    lora_rank: int = field(default=0, metadata={"help": "Train adapters of this rank; 0 trains all weights."})
    history_decay: float = field(default=0.9, metadata={"help": "Decay of History Reference."})
    history_scope: Literal["all", "editable"] = field(
        default="all", metadata={"help": "Which positions have a history: all (the paper), or the canvas alone."}
    )
    top_k: int = field(default=50, metadata={"help": "Wrong tokens a position in the frozen proposal."})
    probe: Literal["clean", "masked"] = field(
        default="clean", metadata={"help": "What the frozen checkpoint reads: the sample, or one with masks in it."}
    )
    probe_mask_rate: float = field(default=0.5, metadata={"help": "Share of masks for the masked probe."})
    harvest_samples: int = field(default=2000, metadata={"help": "Training samples decoded for the harvest."})
    eval_samples: int | None = field(default=None, metadata={"help": "Held-out samples; all of them by default."})
    eval_batch_size: int = field(default=32, metadata={"help": "Samples decoded side by side."})
    eval_seed: int = field(default=20261122, metadata={"help": "Seed of sampling in evaluation."})
    sft_decoding: str = field(
        default='{"preset": "llada", "steps": 32}',
        metadata={"help": "Settings of generate_reflective for base and SFT, as JSON."},
    )
    rm_decoding: str = field(
        default='{"reveal": "confidence", "steps": 24, "revise": "reflective", "max_steps": 32}',
        metadata={"help": "Settings of generate_reflective for RM, as JSON."},
    )
    curve_forwards: list[int] = field(
        default_factory=list, metadata={"help": "Budgets for the curve of accuracy against forwards; none by default."}
    )
    training_free: list[str] = field(
        default_factory=list,
        metadata={"help": "Revision rules for the SFT model in that curve: low_prob, t2t_remask, logit_diff, remdm."},
    )
    recall_samples: int = field(default=300, metadata={"help": "Samples of the probe of recall by history."})
    replay_samples: int = field(default=12, metadata={"help": "Trajectories shown in an HTML page."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown or not self.systems:
            raise ValueError(f"`systems` is {self.systems}: pass any of {', '.join(SYSTEMS)}.")
        if self.sft_steps and self.lora_rank:
            raise ValueError(
                f"`sft_steps` is {self.sft_steps} and `lora_rank` {self.lora_rank}: adapters all start from the base. "
                "Pass sft_steps=0, or a base that is fine-tuned already."
            )
        for name in ("completion_length", "top_k", "harvest_samples", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}: pass a positive number.")

    def decoding(self, trainer: str | None) -> dict[str, Any]:
        """The settings for systems of this trainer."""
        settings: Any = self.rm_decoding if trainer == "rm" else self.sft_decoding
        return dict(json.loads(settings) if isinstance(settings, str) else settings)  # a YAML file may hold a dict


@dataclass(frozen=True)
class Trained:
    """A system of one seed: its name, its seed and what loads it."""

    name: str
    seed: int
    folder: Path | None
    load: Callable[[], RMForMaskedDiffusion]

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.name}, seed {self.seed}"


class PostTraining:
    """
    The stages of a text recipe.

    Args:
        arguments ([`PostTrainingArguments`]): which systems, and how they are decoded.
        training ([`RMTrainingArguments`]): of every training; `output_dir` holds everything.
        task ([`TextTask`]): samples and grader.

    Raises:
        ValueError: for settings that cannot work, and a folder that holds another run.

    Example:
        >>> run = PostTraining(arguments, training, task)  # doctest: +SKIP
        >>> [run.evaluate(system).accuracy.value for system in run.systems()]  # doctest: +SKIP
        [0.12, 0.51, 0.58]
    """

    def __init__(self, arguments: PostTrainingArguments, training: RMTrainingArguments, task: TextTask) -> None:
        self.arguments, self.training, self.task = arguments, training, task
        self.root = Path(training.output_dir)
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.base)
        self._rows: list[dict[str, Any]] | None = None

    def systems(self) -> list[Trained]:
        """Train every system of every seed that is not there yet."""
        return [self.system(name, seed) for seed in self.arguments.seeds for name in self.arguments.systems]

    # Data

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The training samples as rows; what is too long is counted and named, never cut."""
        if self._rows is None:
            args = self.arguments
            samples = self.task.train()[: args.train_samples]
            longest = self.training.max_length or self.tokenizer.model_max_length
            encoded = encode_samples(samples, self.tokenizer, longest, args.completion_length, args.eos_tail)
            self._rows = encoded.rows
            if PartialState().is_main_process and encoded.too_long:
                shown = ", ".join(encoded.too_long[:5])
                print(f"{len(encoded.too_long)} of {len(samples)} training samples are too long and left out: {shown}")
        return self._rows

    # Training

    def system(self, name: str, seed: int) -> Trained:
        """One system; read back if it was trained before."""
        system, args = SYSTEMS[name], self.arguments
        if system.trainer is None:
            return Trained(name, seed, None, lambda: self._wrap(args.base, history=False))
        folder = self.root / f"seed{seed}" / name
        if not self._finished(folder, self._settings(name, seed)):
            start = self.start(seed)
            if system.trainer == "sft":
                self._train_sft(start, folder, seed, self.training.max_steps)
            else:
                self._train_rm(system, start, folder, seed)
        return Trained(name, seed, folder, lambda: RMForMaskedDiffusion.from_pretrained(folder))

    def start(self, seed: int) -> str:
        """Where all systems but the base begin: the base, or a plain checkpoint after `sft_steps` of SFT."""
        steps = self.arguments.sft_steps
        if not steps:
            return self.arguments.base
        folder = self.root / f"seed{seed}" / "start"
        if not self._finished(folder, self._settings("start", seed)):
            self._train_sft(self.arguments.base, folder, seed + _START_SEED, steps, plain=True)
        return str(folder)

    def proposal(self, system: System, seed: int) -> Proposal:
        """Where wrong tokens come from: the start's top k, and its own errors where they were harvested."""
        args, folder = self.arguments, self.root / f"seed{seed}"
        frozen = self._wrap(self.start(seed), history=False).to(PartialState().device).eval()
        cache = build_topk_cache(
            frozen,
            self.rows,
            folder / "top-k",
            k=args.top_k,
            probe=args.probe,
            mask_rate=args.probe_mask_rate,
            seed=seed,
            tokenizer=self.tokenizer,
            batch_size=args.eval_batch_size,
        )
        if not system.harvested:
            return FrozenTopKProposal(cache)
        rows = self.rows[: args.harvest_samples]
        settings = {"seed": seed, "batch_size": args.eval_batch_size, **args.decoding("sft")}
        errors = harvest(frozen, rows, folder / "harvest", **settings)
        return HarvestedProposal(errors, fallback=FrozenTopKProposal(cache))

    def _train_sft(self, start: str, folder: Path, seed: int, steps: int, plain: bool = False) -> None:
        model = self._wrap(start, history=False)
        args = MaskedSFTArguments(
            **self._copied(MaskedTrainingArguments, folder, seed, steps), min_mask_rate=self.arguments.min_mask_rate
        )
        trainer = MaskedSFTTrainer(
            model, args, train_dataset=self.rows, processing_class=self.tokenizer, peft_config=self._adapter(model)
        )
        self._finish(trainer, folder, plain)

    def _train_rm(self, system: System, start: str, folder: Path, seed: int) -> None:
        proposal = self.proposal(system, seed)
        settings = {"history_decay": self.arguments.history_decay, "history_scope": self.arguments.history_scope}
        model = self._wrap(start, history=system.history, **settings)
        copied = self._copied(RMTrainingArguments, folder, seed, self.training.max_steps)
        own = {"law": system.law, "pool_fraction": self.training.pool_fraction if system.pool else 0.0}
        trainer = RMTrainer(
            model,
            RMTrainingArguments(**{**copied, **own}),
            train_dataset=self.rows,
            processing_class=self.tokenizer,
            proposal=proposal,
            peft_config=self._adapter(model),
        )
        self._finish(trainer, folder)

    def _finish(self, trainer: Any, folder: Path, plain: bool = False) -> None:
        """Train, going on where a stopped run was; save what the next stage loads, and say so last."""
        trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
        if PartialState().is_main_process:
            model = trainer.accelerator.unwrap_model(trainer.model)
            if plain:
                model.model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
            elif self.arguments.lora_rank:
                save_adapter_for_hub(model, folder, self.tokenizer)
            else:
                save_for_hub(model, folder, self.tokenizer)
            write_json(folder / FINISHED, {"steps": trainer.state.global_step})
        PartialState().wait_for_everyone()
        if self.training.push_to_hub and not plain:
            trainer.push_to_hub()

    def _copied(self, kind: type, folder: Path, seed: int, steps: int) -> dict[str, Any]:
        """The run's arguments for one stage; the model is loaded already."""
        values = {item.name: getattr(self.training, item.name) for item in fields(kind) if item.init}
        stage = {"output_dir": str(folder), "seed": seed, "max_steps": steps, "model_init_kwargs": None}
        return {**values, **stage}

    def _wrap(self, name: str, **history: Any) -> RMForMaskedDiffusion:
        set_seed(0)  # nothing is drawn in wrapping; rows that a backbone lacks would be
        loading: Any = self.training.model_init_kwargs
        return RMForMaskedDiffusion.from_backbone(name, backbone_kwargs=dict(loading or {}), **history)

    def _adapter(self, model: RMForMaskedDiffusion) -> Any:
        rank = self.arguments.lora_rank
        return default_lora_config(model, r=rank) if rank else None

    def _settings(self, name: str, seed: int) -> dict[str, Any]:
        """What a stage's result depends on."""
        args, training = self.arguments, self.training
        settings: dict[str, Any] = {"task": self.task.name, "system": name, "seed": seed}
        rm = SYSTEMS[name].trainer == "rm" if name in SYSTEMS else False
        settings |= {key: getattr(args, key) for key in (*_RECIPE_SETTINGS, *(_RM_RECIPE_SETTINGS if rm else ()))}
        settings |= {
            key: getattr(training, key) for key in (*_TRAINING_SETTINGS, *(_RM_TRAINING_SETTINGS if rm else ()))
        }
        if name in SYSTEMS:
            settings["max_steps"] = training.max_steps
        return settings | {"processes": training.world_size}

    def _finished(self, folder: Path, settings: dict[str, Any]) -> bool:
        if PartialState().is_main_process:
            claim_folder(folder, settings)
        PartialState().wait_for_everyone()
        return (folder / FINISHED).exists()

    # Evaluation

    def evaluate(
        self, trained: Trained, decoding: dict[str, Any] | None = None, name: str = "main", revision: bool = True
    ) -> TextEvaluation:
        """
        Decode and grade the held-out samples, each process its share.

        Args:
            trained ([`Trained`]): the system.
            decoding (`dict`, *optional*): settings; by default those of the arguments for this kind of system.
            name (`str`): of the records' folder.
            revision (`bool`): record what revision did.
        """
        args, state = self.arguments, PartialState()
        if decoding is None:
            decoding = args.decoding(SYSTEMS[trained.name].trainer)
        samples = self.task.test()[: args.eval_samples]
        share = samples[state.process_index :: state.num_processes]
        place = f"part-{state.process_index}-of-{state.num_processes}"
        found: Sequence[Any] = ()
        settings: dict[str, Any] = {}
        if share:
            model = trained.load().to(state.device).eval()
            done = evaluate_text(
                model,
                self.tokenizer,
                share,
                self.task.grade,
                decoding,
                completion_length=args.completion_length,
                batch_size=args.eval_batch_size,
                seed=args.eval_seed,
                folder=self.root / f"seed{trained.seed}" / "evaluation" / f"{trained.name}-{name}" / place,
                name=trained.label,
                revision=revision,
                progress_bar=state.is_main_process,
            )
            found, settings = done.records, done.decoding
            del model
        records = {record.key: record for record in (gather_object(found) if state.num_processes > 1 else found)}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return TextEvaluation(
            trained.label, tuple(records[sample.key] for sample in samples), settings, args.eval_seed
        )


_START_SEED = 1_000_000
# What the weights depend on: of every training, and of RM's alone.
_RECIPE_SETTINGS = (
    "base",
    "sft_steps",
    "train_samples",
    "completion_length",
    "eos_tail",
    "min_mask_rate",
    "lora_rank",
)
_RM_RECIPE_SETTINGS = ("history_decay", "history_scope", "top_k", "probe", "probe_mask_rate", "harvest_samples")
_TRAINING_SETTINGS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "muon_learning_rate",
    "warmup_steps",
    "max_length",
    "bf16",
)
_RM_TRAINING_SETTINGS = (
    "horizon",
    "max_attempts",
    "min_corruption_rate",
    "max_corruption_rate",
    "full_corruption",
    "blank_rows",
    "mask_row_batches",
    "edit_weight",
    "reveal_weights",
    "pool_fraction",
)
