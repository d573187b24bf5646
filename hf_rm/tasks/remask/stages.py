# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
The stages of the Remask recipes: each trains a model from the base or from an earlier stage's, in a folder of its own.

    sft      vanilla masked-diffusion fine-tuning
    remask   Remask SFT: a backbone and its policy stream
    rm       Reflective Masking
    rl       reinforcement of the stage before it, RemeDi's or RM's
    given    nothing is trained: a model that is there

A stage that is done is not done again, one that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from ...configuration_rm import RMConfig
from ...evaluation.statistics import Interval
from ...generation_rm import check_decoding
from ...hub import save_adapter_for_hub
from ...training import (
    MaskedSFTArguments,
    MaskedSFTTrainer,
    RemaskSFTArguments,
    RemaskSFTTrainer,
    RMTrainer,
    RMTrainingArguments,
    default_lora_config,
)
from ...training.checkpoints import saved_digest
from ...training.lora import is_adapted
from ...training.rewards import check_rewards
from ...training.stages import CLOCK_FILE, Clock, claim_folder, settings_that_matter, write_json
from .problems import Kind, Outcome, Outline, ProblemArguments, Problems, as_dict

FINISHED = "finished.json"
KINDS: dict[str, Kind] = {"sft": "sft", "remask": "remedi", "rm": "rm"}
_SUPERVISED: dict[str, tuple[Any, Any]] = {
    "sft": (MaskedSFTTrainer, MaskedSFTArguments),
    "remask": (RemaskSFTTrainer, RemaskSFTArguments),
    "rm": (RMTrainer, RMTrainingArguments),
}
# A later stage sees rows in another order and with other noise than the one before it.
_STAGE_SEED = 1_000_000


@dataclass(frozen=True)
class Stage:
    """
    One stage.

    Attributes:
        trainer: See the module.
        after: The stage that it begins with; None: the base.
        settings: Of its trainer's arguments; for `remask` and `rm` also `proposal` (`"top-k"`, `"uniform"`) and
            `wrapper`, arguments of its configuration; for `rl` perhaps `decoding`, what rollouts do otherwise than the
            evaluation; for `given` `model`, a folder or name, and `policy`.
        shown: Whether it is evaluated.

    Example:
        >>> Stage("rl", after="rm", settings={"max_steps": 60}).shown
        True
    """

    trainer: Literal["sft", "remask", "rm", "rl", "given"]
    after: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    shown: bool = True


def read_stages(given: Mapping[str, Any], supervised: Mapping[str, Any], rl: Mapping[str, Any]) -> dict[str, Stage]:
    """
    Stages as a YAML file has them: `trainer`, `after`, `shown` and, on top of the shared settings, the stage's own.

    Raises:
        ValueError: for no stages, an unknown trainer, and a stage that follows an unknown or an unfit one.

    Example:
        >>> stages = read_stages({"rm": {"trainer": "rm", "max_steps": 5}, "more": {"trainer": "rl", "after": "rm"}},
        ...                      {"learning_rate": 0.1}, {"max_steps": 3})
        >>> stages["rm"].settings, stages["more"].settings
        ({'learning_rate': 0.1, 'max_steps': 5}, {'max_steps': 3})
    """
    stages: dict[str, Stage] = {}
    for name, values in given.items():
        own = dict(values)
        trainer, after, shown = own.pop("trainer", None), own.pop("after", None), own.pop("shown", True)
        if trainer not in (*_SUPERVISED, "rl", "given"):
            raise ValueError(
                f"stage {name!r} has the trainer {trainer!r}: pass {', '.join(_SUPERVISED)}, rl or given."
            )
        shared: Mapping[str, Any] = {"rl": rl, "given": {}}.get(trainer, supervised)
        stages[name] = Stage(trainer, after, {**shared, **own}, shown)
        check_stage(name, stages)
    if not stages:
        raise ValueError("`stages` is empty: pass at least one.")
    return stages


def check_stage(name: str, stages: Mapping[str, Stage]) -> None:
    """Raise a ValueError for a stage that cannot follow the one that it names."""
    stage = stages[name]
    if stage.trainer == "given":
        if not stage.settings.get("model") or stage.settings.get("policy") not in ("remedi", "rm"):
            raise ValueError(f"stage {name!r} is given: it needs `model`, and `policy` 'remedi' or 'rm'.")
        return
    if stage.after is None:
        if stage.trainer == "rl":
            raise ValueError(f"stage {name!r} reinforces nothing: name the stage that it comes `after`.")
        return
    if stage.after not in stages:
        raise ValueError(f"stage {name!r} comes after {stage.after!r}, which is no stage before it.")
    before = stages[stage.after].trainer
    if (stage.trainer == "rl") == (before == "sft"):
        fit = "a stage with a policy: remask, rm or given" if stage.trainer == "rl" else "vanilla fine-tuning (sft)"
        raise ValueError(f"stage {name!r} comes after {stage.after!r}, a {before} stage: let it follow {fit}.")


class RemaskStages:
    """
    Trains and evaluates stages, each once for a seed.

    Args:
        arguments ([`ProblemArguments`]): of the problems.
        problems ([`Problems`]): those.
        stages (`dict[str, Stage]`): by name, each after the one that it follows.
        root (`Path`): where everything goes: `seed0/rm`, `seed0/rm-rl`, ...
        shared (`dict`): settings of every trainer, such as `use_cpu`.
        lora_rank (`int`): train adapters of this rank; 0 trains all weights.

    Raises:
        ValueError: for a stage that cannot follow the one that it names.

    Example:
        >>> run = RemaskStages(arguments, build_problems(arguments), stages, Path("out"))  # doctest: +SKIP
        >>> run.outcome("rm-rl", seed=0).main.mean()  # doctest: +SKIP
        0.31
    """

    def __init__(
        self,
        arguments: ProblemArguments,
        problems: Problems,
        stages: Mapping[str, Stage],
        root: Path,
        shared: Mapping[str, Any] | None = None,
        lora_rank: int = 0,
    ) -> None:
        self.arguments, self.problems, self.stages, self.root = arguments, problems, dict(stages), root
        self.shared, self.lora_rank = dict(shared or {}), lora_rank
        for name, stage in self.stages.items():
            check_stage(name, self.stages)
            if lora_rank and stage.trainer in _SUPERVISED and stage.after:
                raise ValueError(
                    f"stage {name!r} comes after {stage.after!r} with `lora_rank` {lora_rank}: adapters all start "
                    "from the base. Leave `after` out, or name a base that is fine-tuned already."
                )

    def kind(self, name: str) -> Kind:
        """Which kind of model a stage leaves behind."""
        stage = self.stages[name]
        if stage.trainer == "given":
            return stage.settings["policy"]
        return self.kind(str(stage.after)) if stage.trainer == "rl" else KINDS[stage.trainer]

    def folder(self, name: str, seed: int) -> Path:
        """Where a stage's model lies."""
        stage = self.stages[name]
        return Path(stage.settings["model"]) if stage.trainer == "given" else self.root / f"seed{seed}" / name

    def chain(self, name: str) -> list[str]:
        """A stage and those that it stands on, the first one first."""
        after = self.stages[name].after
        return [*(self.chain(after) if after else []), name]

    def load(self, name: str, seed: int) -> Any:
        """The model of a finished stage."""
        return self.problems.load(self.kind(name), self.folder(name, seed))

    # Before anything is trained

    def check(self, seed: int) -> None:
        """
        Raise now what would end the run after hours: arguments of trainers, rewards, decodings that do not fit.

        Raises:
            ValueError: for what cannot work.
            ImportError: for a library that a reward or a trainer needs.
        """
        for name, stage in self.stages.items():
            own = {key: value for key, value in stage.settings.items() if key not in ("proposal", "wrapper")}
            if stage.trainer in _SUPERVISED:
                self._arguments(_SUPERVISED[stage.trainer][1], name, seed, **own)
            outline = self._outline(name)
            if stage.trainer == "rl":
                from ...training.grpo import check_rollouts, rollout_decoding

                config, row = self._rl_config(name, seed), self.problems.prompts(seed, 1)[0]
                check_rewards(self.problems.reward_functions(), [row])
                check_rollouts(outline, rollout_decoding(outline, config), [row], config)
            if stage.shown:
                self._check_evaluation(name, outline, self.problems.canvas(seed))

    def _outline(self, name: str) -> Any:
        """Of the model that a stage begins with."""
        stage = self.stages[name]
        if stage.trainer == "given":
            return _given_outline(name, str(stage.settings["model"]), stage.settings["policy"])
        if stage.trainer == "rl":
            return self._outline(str(stage.after))
        return self.problems.outline(KINDS[stage.trainer], as_dict(stage.settings.get("wrapper", {})))

    def _check_evaluation(self, name: str, outline: Any, row: Mapping[str, Any]) -> None:
        decoding = self.arguments.decoding(self.kind(name))
        if row:
            ids, editable = torch.tensor([row["input_ids"]]), torch.tensor([row["editable_mask"]])
        else:
            ids, editable = torch.tensor([[1]]), None
            decoding = {"max_new_tokens": self.arguments.completion_length, "editable": "auto", **decoding}
        try:
            check_decoding(outline, outline._resolve_generation_config(None, decoding), ids, editable)
        except ValueError as error:
            raise ValueError(
                f"stage {name!r} cannot be decoded as `decoding_{self.kind(name)}` says: {error}"
            ) from error

    # Training

    def train(self, name: str, seed: int) -> Path:
        """A stage's folder; it and those before it are trained if they were not."""
        stage, folder = self.stages[name], self.folder(name, seed)
        if stage.trainer == "given":
            return folder
        if stage.after is not None:
            self.train(stage.after, seed)
        if not self._finished(folder, self.settings(name, seed)):
            trainer = self._reinforcement(name, seed) if stage.trainer == "rl" else self._supervised(name, seed)
            self._finish(trainer, folder, plain=stage.trainer == "sft" and self.problems.name != "sudoku")
        return folder

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """What a stage's weights depend on: everything that is not known to be of no consequence."""
        stage, args = self.stages[name], self.arguments
        if stage.trainer == "given":
            return dict(stage.settings)
        own = settings_that_matter({**self.shared, **stage.settings})
        named = self._problem_settings(_EVALUATION_ALONE) | own
        named |= {"trainer": stage.trainer, "seed": seed, "lora_rank": self.lora_rank}
        if stage.trainer == "rl":
            named |= {"rewards": args.rewards, "decoding": self.rollouts(name)}
        named |= {"base weights": self._base_digest(), "processes": PartialState().num_processes}
        if stage.after is not None:
            before = self.settings(stage.after, seed)
            named["after"] = before | {"weights": self._digest(stage.after, seed)}
        return named

    def _problem_settings(self, left_out: Sequence[str] = ()) -> dict[str, Any]:
        names = [item.name for item in fields(ProblemArguments)]
        named = {name: getattr(self.arguments, name) for name in names if name not in (*_PROBLEM_ASIDE, *left_out)}
        return named | {"backbone_kwargs": as_dict(self.arguments.backbone_kwargs)}

    def _digest(self, name: str, seed: int) -> str | None:
        """Of the weights that a stage left behind."""
        stage = self.stages[name]
        given = stage.trainer == "given"
        return saved_digest(stage.settings["model"] if given else self.folder(name, seed))

    def _base_digest(self) -> str | None:
        base, loading = self.arguments.base, as_dict(self.arguments.backbone_kwargs)
        return None if base is None else saved_digest(base, loading.get("revision"))

    def rollouts(self, name: str) -> dict[str, Any]:
        """How the rollouts of an `rl` stage are decoded: as in evaluation, with what its `decoding` says otherwise."""
        return self.arguments.decoding(self.kind(name)) | as_dict(self.stages[name].settings.get("decoding") or {})

    def _finished(self, folder: Path, settings: dict[str, Any]) -> bool:
        if PartialState().is_main_process:
            claim_folder(folder, settings)
        PartialState().wait_for_everyone()
        return (folder / FINISHED).exists()

    def _arguments(self, kind: Any, name: str, seed: int, **own: Any) -> Any:
        depth = len(self.chain(name)) - 1
        stage = {"output_dir": str(self.folder(name, seed)), "seed": seed + _STAGE_SEED * depth}
        return kind(**{"report_to": "none", **self.shared, **own, **stage})

    def _supervised(self, name: str, seed: int) -> Any:
        stage, settings = self.stages[name], dict(self.stages[name].settings)
        proposal = settings.pop("proposal", "top-k" if stage.trainer == "rm" else "uniform")
        wrapper = as_dict(settings.pop("wrapper", {}))
        start = None if stage.after is None else str(self.folder(stage.after, seed))
        set_seed(seed)
        model = self.problems.model(KINDS[stage.trainer], start, wrapper)
        kind, arguments = _SUPERVISED[stage.trainer]
        more = {}
        if stage.trainer != "sft":
            more["proposal"] = self.problems.proposal(proposal, start, self.root / f"seed{seed}", seed)
        set_seed(seed)
        return kind(
            model,
            self._arguments(arguments, name, seed, **settings),
            train_dataset=self.problems.rows(seed),
            processing_class=self.problems.tokenizer,
            peft_config=default_lora_config(model, r=self.lora_rank) if self.lora_rank else None,
            **more,
        )

    def _rl_config(self, name: str, seed: int) -> Any:
        from ...training.grpo import RemaskGRPOConfig

        own = {"decoding": self.rollouts(name), "max_completion_length": self.arguments.completion_length}
        return self._arguments(RemaskGRPOConfig, name, seed, **{**self.stages[name].settings, **own})

    def _reinforcement(self, name: str, seed: int) -> Any:
        from datasets import Dataset

        from ...training.grpo import RemaskGRPOTrainer

        stage, config = self.stages[name], self._rl_config(name, seed)
        assert stage.after is not None
        set_seed(seed)
        # The adapter of the stage before goes on; where that has none, a fresh one is trained.
        model = self.problems.load(self.kind(name), self.folder(stage.after, seed), trainable=True)
        adapter = default_lora_config(model, r=self.lora_rank) if self.lora_rank and not is_adapted(model) else None
        rows, tokenizer = Dataset.from_list(self.problems.prompts(seed)), self.problems.tokenizer
        rewards = self.problems.reward_functions()
        return RemaskGRPOTrainer(model, rewards, config, rows, processing_class=tokenizer, peft_config=adapter)

    def _finish(self, trainer: Any, folder: Path, plain: bool) -> None:
        """Train, going on where a stopped run was; save what the next stage loads, and say so last."""
        checkpoint = get_last_checkpoint(folder)
        clock = Clock(folder / CLOCK_FILE, checkpoint is not None)
        trainer.add_callback(clock)
        trainer.train(resume_from_checkpoint=checkpoint)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if not plain and not is_adapted(model):
            trainer.save_model(str(folder))
        if PartialState().is_main_process:
            if is_adapted(model):
                save_adapter_for_hub(model, folder)
            elif plain:
                model.model.save_pretrained(folder)
            self.problems.tokenizer.save_pretrained(folder)
            write_json(folder / "logs.json", trainer.state.log_history)
            write_json(folder / FINISHED, {"steps": trainer.state.global_step, **clock.seconds})
        PartialState().wait_for_everyone()

    # What came of it

    def cpu_minutes(self, name: str, seed: int) -> float | None:
        """CPU minutes of a stage and all before it, in the first process; None with one that was not trained here."""
        seconds = 0.0
        for part in self.chain(name):
            if self.stages[part].trainer == "given":
                return None
            seconds += json.loads((self.folder(part, seed) / FINISHED).read_text())["cpu_seconds"]
        return seconds / 60

    def logs(self, name: str, seed: int) -> list[dict[str, float]]:
        """What a stage's trainer logged."""
        return json.loads((self.folder(name, seed) / "logs.json").read_text())

    def outcome(self, name: str, seed: int) -> tuple[Outcome, dict[str, Interval]]:
        """What the stage's model makes of the held-out rows, and its confidence; read back if that is known."""
        self.train(name, seed)
        args, kind = self.arguments, self.kind(name)
        path = self.root / f"seed{seed}" / "evaluation" / f"{name}.json"
        settings = self._problem_settings() | {"decoding": args.decoding(kind), "stage": self.settings(name, seed)}
        # A model at the same place may be another one by now.
        settings = json.loads(json.dumps(settings | {"weights": self._digest(name, seed)}))
        known = json.loads(path.read_text()) if path.exists() else {}
        PartialState().wait_for_everyone()
        if known.get("settings") != settings:
            model = self.load(name, seed).to(PartialState().device).eval()
            found = self.problems.evaluate(model, kind, path.with_suffix(""), f"{name}, seed {seed}")
            trust = self.problems.confidence(model, found)
            known = {"settings": settings, "values": found.values, "answers": found.answers}
            known["confidence"] = {key: list(interval) for key, interval in trust.items()}
            if PartialState().is_main_process:
                write_json(path, known)
            del model
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        trust = {key: Interval(*values) for key, values in known["confidence"].items()}
        return Outcome(known["values"], known["answers"]), trust


_POLICY_NAMES = {"remedi": "RemeDi", "rm": "RM"}


def _given_outline(name: str, model: str, policy: str) -> Outline:
    """Of the model that stage `name` is given; a ValueError where it is not there, or of another kind than said."""
    # Two parts may be a name on the Hub, which says for itself that it is not there.
    local = model.startswith((".", "~")) or model.count("/") > 1 or os.path.isabs(model)
    if local and not Path(model).exists():
        raise ValueError(
            f"stage {name!r} is given the model {model!r}, a folder that does not exist here ({Path.cwd()}): pass the "
            "folder of a trained model (remask_rl.py: --start OUTPUT_DIR/seed42/remask-sft), or a name on the Hub."
        )
    outline = Outline.saved(model)
    if not isinstance(outline.config, RMConfig):
        kind = getattr(outline.config, "model_type", type(outline.config).__name__)
        raise ValueError(
            f"stage {name!r} is given the model {model!r}, a plain {kind} one without a policy: pass a trained RM or "
            "RemeDi model, or train one from it (remask_rl.py: --base in place of --start)."
        )
    own = "remedi" if outline.has_unmasking_policy else "rm"
    if own != policy:
        raise ValueError(
            f"stage {name!r} is given the model {model!r}, which is no {_POLICY_NAMES[policy]} model but "
            f"{_POLICY_NAMES[own]}'s: pass --policy {own} (in a configuration's stage `policy: {own}`)."
        )
    return outline


def training_settings(args: Any) -> dict[str, Any]:
    """
    A parsed command line's trainer arguments as a stage's settings.

    Raises:
        ValueError: for `model_init_kwargs`, where the recipe loads the model.
    """
    if args.model_init_kwargs:
        raise ValueError("`model_init_kwargs` is given, but the recipe loads the model: pass `backbone_kwargs`.")
    # The stage says the first two; the others follow from settings that are there as well.
    left_out = ("output_dir", "seed", "generation_batch_size", "max_completion_length")
    return {item.name: getattr(args, item.name) for item in fields(args) if item.init and item.name not in left_out}


# Of no consequence for a stage's result, or (the first four) named by the stages that they concern. All else matters.
_PROBLEM_ASIDE = ("decoding_sft", "decoding_remedi", "decoding_rm", "rewards", "eval_batch_size", "ceiling_dir")
_EVALUATION_ALONE = ("eval_rows", "eval_seed")
