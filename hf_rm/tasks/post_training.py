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
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_type_hints

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoConfig, AutoTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..adapters_rm import _LOADING, HUB_ARGUMENTS
from ..checks import check_number
from ..corruption import FrozenTopKProposal, HarvestedProposal, Proposal, build_topk_cache, harvest
from ..corruption.topk import data_digest
from ..evaluation.text import evaluate_text
from ..evaluation.text_records import RECORDS_FILE, TextEvaluation
from ..hub import save_adapter_for_hub, save_for_hub
from ..modeling_rm import RMForMaskedDiffusion
from ..training import MaskedSFTArguments, MaskedSFTTrainer, RMTrainer, RMTrainingArguments, default_lora_config
from ..training.arguments import MaskedTrainingArguments
from ..training.checkpoints import saved_digest
from ..training.stages import CLOCK_FILE, Clock, claim_folder, read_clock, settings_that_matter, write_json
from .text import TextSample, encode_samples, joined_samples

FINISHED, MAIN = "finished.json", "main"


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
        what: In a few words, for the help.
        history: Whether the model reads its earlier states.
        harvested: Whether wrong tokens are the start's own recorded errors where it made any.
        fixed: Training arguments that the system sets, whatever was given. All others, law and pool among them, are
            those of the run.
    """

    trainer: Literal["sft", "rm"] | None
    what: str
    history: bool = True
    harvested: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def described(self) -> str:
        """What it is and what it fixes."""
        fixed = " and ".join(f"{name} {value}" for name, value in self.fixed.items())
        return f"{self.what}, with {fixed} whatever is given" if fixed else self.what


SYSTEMS = {
    "base": System(None, "the base as it is"),
    "sft": System("sft", "vanilla fine-tuning", history=False),
    "rm-no-hr": System("rm", "RM without history", history=False),
    "rm-paper": System("rm", "RM under the paper's law", fixed={"law": "paper", "pool_fraction": 0.0}),
    "rm-attempts": System("rm", "RM on synthetic states alone", fixed={"law": "attempts", "pool_fraction": 0.0}),
    "rm": System("rm", "RM"),
    "rm-harvested": System("rm", "RM with the start's own errors as wrong tokens", harvested=True),
}
_TRAINER_ARGUMENTS: dict[str, Any] = {"rm": RMTrainingArguments, "sft": MaskedTrainingArguments}
_DESCRIBED = "; ".join(f"{name}: {system.described}" for name, system in SYSTEMS.items())
_START, _START_SEED = "start", 1_000_000
_FILE_NAME = re.compile(r"[\w.-]+")
_STAGES = {**SYSTEMS, _START: System("sft", "where all but the base begin", history=False)}
_LEAST = {
    1: "completion_length top_k probe_batch_size harvest_samples eval_batch_size train_samples eval_samples".split(),
    0: "sft_steps lora_rank recall_samples replay_samples".split(),
}
_SHARES = {"history_decay": "(0, 1]", "probe_mask_rate": "(0, 1]", "min_mask_rate": "(0, 1)"}


@dataclass
class PostTrainingArguments:
    """Arguments of the text recipes, beside those of RMTrainingArguments: `max_steps` is the budget of each system."""

    base: str = field(
        default="model_cards/tiny-math-base", metadata={"help": "The model to post-train: a folder or Hub name."}
    )
    systems: list[str] = field(
        default_factory=lambda: ["base", "sft", "rm"],
        metadata={"help": f"Any of {_DESCRIBED}. Law, pool and all else are as given."},
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
    probe_batch_size: int = field(
        default=32,
        metadata={"help": "Samples side by side in the probe and the harvest; another number may round otherwise."},
    )
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
    other_decodings: str = field(
        default="{}",
        metadata={
            "help": "Further rows of the tables: trained systems decoded otherwise, by their names, as JSON: "
            '{"sft-above-0.99": {"system": "sft", "reveal_threshold": 0.99}}; what is not given is as for that system.'
        },
    )
    system_arguments: str = field(
        default="{}",
        metadata={"help": 'Training arguments of single systems, as JSON: {"rm-paper": {"blank_rows": 0.5}}.'},
    )
    curve_forwards: list[int] = field(
        default_factory=list, metadata={"help": "Budgets for the curve of accuracy against forwards; none by default."}
    )
    curve_systems: list[str] = field(
        default_factory=lambda: ["sft", "rm"], metadata={"help": "Systems in that curve, of those that are trained."}
    )
    training_free: list[str] = field(
        default_factory=list,
        metadata={"help": "Revision rules for the SFT model in that curve: low_prob, t2t_remask, logit_diff, remdm."},
    )
    recall_samples: int = field(default=300, metadata={"help": "Samples of the probe of recall by history."})
    replay_samples: int = field(default=12, metadata={"help": "Trajectories shown in an HTML page."})

    def __post_init__(self) -> None:
        self._check_systems()
        self._check_numbers()
        for name in ("eos_tail", "history_scope", "probe"):  # argparse checks the command line's, not a YAML file's
            choices = get_args(get_type_hints(PostTrainingArguments)[name])
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: pass {' or '.join(map(repr, choices))}.")
        if self.sft_steps and self.lora_rank:
            raise ValueError(
                f"`sft_steps` is {self.sft_steps} and `lora_rank` {self.lora_rank}: adapters all start from the base. "
                "Pass sft_steps=0, or a base that is fine-tuned already."
            )
        self._check_objects()

    def _check_systems(self) -> None:
        if not self.systems:
            raise ValueError(f"`systems` is empty: pass any of {', '.join(SYSTEMS)}.")
        for name, given in (("systems", self.systems), ("curve_systems", self.curve_systems)):
            if not {*given} <= {*SYSTEMS}:
                raise ValueError(f"`{name}` is {given}: pass any of {', '.join(SYSTEMS)}.")
        if len({*self.systems}) < len(self.systems):
            raise ValueError(f"`systems` is {self.systems}: pass each of them once.")

    def _check_numbers(self) -> None:
        for least, names in _LEAST.items():
            for name in names:
                value, optional = getattr(self, name), self.__dataclass_fields__[name].default is None
                more = ", or leave it out for all of them" if optional else ""
                if not (optional and value is None):
                    check_number(name, value, least, inf, f"an integer of at least {least}{more}", int)
        for name, interval in _SHARES.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= 1 or (value == 1 and interval.endswith(")")):
                raise ValueError(f"`{name}` is {value!r}: pass a number in {interval}.")
        for name, least in (("seeds", 0), ("curve_forwards", 1)):
            given: Any = getattr(self, name)
            if not isinstance(given, (list, tuple)) or not all(_is_integer(value, least) for value in given):
                raise ValueError(f"`{name}` is {given!r}: pass a list of integers of at least {least}.")
        if not self.seeds or len({*self.seeds}) < len(self.seeds):
            raise ValueError(f"`seeds` is {self.seeds}: pass one or more of them, each once.")

    def _check_objects(self) -> None:
        """What is given as JSON."""
        for name in ("sft_decoding", "rm_decoding"):
            self.parsed(name)
        for name, given in self.parsed("other_decodings").items():
            system = given.get("system") if isinstance(given, Mapping) else None
            if name in SYSTEMS or not _FILE_NAME.fullmatch(name) or system not in [*SYSTEMS]:
                raise ValueError(
                    f"`other_decodings` has {name!r}: {given}. Pass names of letters, digits, dots and dashes that no "
                    f"system has, each with an object that has a `system`: any of {', '.join(SYSTEMS)}."
                )
        for name, given in self.parsed("system_arguments").items():
            if not isinstance(given, Mapping):
                raise ValueError(f"`system_arguments` of {name!r} is {given!r}: pass an object of training arguments.")
            trainer = SYSTEMS[name].trainer if name in SYSTEMS else None
            known = {item.name for item in fields(_TRAINER_ARGUMENTS[trainer])} if trainer else set()
            wrong = sorted({*given} - (known - {*SYSTEMS[name].fixed})) if trainer else [name]
            if wrong:
                raise ValueError(
                    f"`system_arguments` of {name!r} has {', '.join(map(repr, wrong))}: pass training arguments that "
                    "the system does not fix, by the names of systems that are trained."
                )

    def parsed(self, name: str) -> dict[str, Any]:
        """An argument that is given as a JSON object, or in a YAML file as a mapping."""
        given: Any = getattr(self, name)
        try:
            found = json.loads(given) if isinstance(given, str) else given
        except ValueError as error:
            raise ValueError(f"`{name}` is {given!r}, which is no JSON ({error}): pass a JSON object.") from error
        if not isinstance(found, Mapping):
            raise ValueError(f"`{name}` is {given!r}: pass a JSON object, such as '{{\"steps\": 32}}'.")
        return dict(found)

    def decoding(self, trainer: str | None) -> dict[str, Any]:
        """The settings for systems of this trainer."""
        return self.parsed("rm_decoding" if trainer == "rm" else "sft_decoding")

    def decoded_otherwise(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """`other_decodings`: by name the system, and all its settings."""
        found = {}
        for name, given in self.parsed("other_decodings").items():
            system, more = given["system"], {key: value for key, value in given.items() if key != "system"}
            found[name] = (system, {**self.decoding(SYSTEMS[system].trainer), **more})
        return found


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class Trained:
    """A system of one seed: its name, its seed and what loads it, onto this process's device."""

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
        more_train (sequence of [`TextTask`]): further samples to train on, behind those of the task.
        more_tests (sequence of [`TextTask`]): further samples to be evaluated on, each with its own grader. What any
            test holds out is not trained on.

    Raises:
        ValueError: for settings that cannot work, and a folder that holds another run.

    Example:
        >>> run = PostTraining(arguments, training, task)  # doctest: +SKIP
        >>> [run.evaluate(system).accuracy.value for system in run.systems()]  # doctest: +SKIP
        [0.12, 0.51, 0.58]
    """

    def __init__(
        self,
        arguments: PostTrainingArguments,
        training: RMTrainingArguments,
        task: TextTask,
        more_train: Sequence[TextTask] = (),
        more_tests: Sequence[TextTask] = (),
    ) -> None:
        self.arguments, self.training, self.task, self.more_train = arguments, training, task, more_train
        names = [test.name for test in more_tests]
        self.more_tests = dict(zip(names, more_tests, strict=True))
        if len(self.more_tests) < len(names) or MAIN in names:
            raise ValueError(f"`more_tests` is of {names}: pass tests of different names, none of them {MAIN!r}.")
        self.root = Path(training.output_dir)
        self._told: set[str] = set()
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.base, **self._fetching)

    def systems(self) -> list[Trained]:
        """Train every system of every seed that is not there yet."""
        return [self.system(name, seed) for seed in self.arguments.seeds for name in self.arguments.systems]

    # Data

    @property
    def tests(self) -> dict[str, TextTask]:
        """What systems are evaluated on, by name; the task itself is the first."""
        return {MAIN: self.task, **self.more_tests}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The training samples as rows; what is too long is counted and named, never cut."""
        samples = self._training_samples()
        return self.encode(samples[: self.arguments.train_samples], "training samples")

    def _training_samples(self) -> list[TextSample]:
        """Those of all tasks once each, without what a test holds out."""
        samples = self.task.train()
        if self.more_train or self.more_tests:
            held_out = {sample.key for test in self.tests.values() for sample in test.test()}
            every = [*samples, *(sample for task in self.more_train for sample in task.train())]
            samples, remark = joined_samples(every, held_out)
            self._tell(remark)
        self._tell()
        return samples

    def held_out(self, test: str = MAIN) -> list[TextSample]:
        """The samples of a test that systems are evaluated on."""
        samples = self.tests[test].test()
        self._tell()
        return samples[: self.arguments.eval_samples]

    def _tell(self, *more: str) -> None:
        """Print what tasks left out of their data, once; a task of one's own need not have `remarks`."""
        tasks = [*self.tests.values(), *self.more_train]
        remarks = [*(remark for task in tasks for remark in getattr(task, "remarks", [])), *more]
        if PartialState().is_main_process:
            for remark in remarks:
                if remark not in self._told:
                    print(remark)
        self._told |= set(remarks)

    def encode(self, samples: Sequence[TextSample], what: str) -> list[dict[str, Any]]:
        """Samples as rows of the run's form; those that are too long are counted and named as `what`."""
        args, longest = self.arguments, self.longest
        encoded = encode_samples(samples, self.tokenizer, longest, args.completion_length, args.eos_tail)
        if PartialState().is_main_process and encoded.too_long:
            shown = ", ".join(encoded.too_long[:5])
            count = f"{len(encoded.too_long):,} of {len(samples):,} {what}"
            limit = f"{longest} tokens a row, {args.completion_length} of them for the completion"
            print(f"{count} are too long ({limit}) and left out: {shown}")
        return encoded.rows

    @cached_property
    def longest(self) -> int:
        """Tokens that a row may have: the least of `max_length`, the tokenizer's limit and the base's positions."""
        config = AutoConfig.from_pretrained(self.arguments.base, **self._fetching)
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        limits = (self.training.max_length, self.tokenizer.model_max_length, positions)
        return min(limit for limit in limits if limit)

    # Training

    def system(self, name: str, seed: int) -> Trained:
        """One system; read back if it was trained before."""
        if SYSTEMS[name].trainer is None:
            return Trained(name, seed, None, lambda: _placed(self._wrap(self.arguments.base, history=False)))
        folder = self._trained(name, seed)
        return Trained(name, seed, folder, lambda: _placed(self._read(folder)))

    def start(self, seed: int) -> str:
        """Where all systems but the base begin: the base, or a plain checkpoint after `sft_steps` of SFT."""
        return str(self._trained(_START, seed)) if self.arguments.sft_steps else self.arguments.base

    def _trained(self, name: str, seed: int) -> Path:
        """The folder of a stage, which is trained if it was not."""
        folder = self.root / f"seed{seed}" / name
        if PartialState().is_main_process:
            claim_folder(folder, self._settings(name, seed))
        PartialState().wait_for_everyone()
        if not (folder / FINISHED).exists():
            self._train(name, seed, folder)
        return folder

    def proposal(self, system: System, seed: int) -> Proposal:
        """Where wrong tokens come from: the start's top k, and its own errors where they were harvested."""
        args, folder = self.arguments, self.root / f"seed{seed}"
        frozen = _placed(self._wrap(self.start(seed), history=False))
        cache = build_topk_cache(
            frozen,
            self.rows,
            folder / _PROBE,
            k=args.top_k,
            probe=args.probe,
            mask_rate=args.probe_mask_rate,
            seed=seed,
            tokenizer=self.tokenizer,
            batch_size=args.probe_batch_size,
            on_shard=_noting(folder / _PROBE),
        )
        if not system.harvested:
            return FrozenTopKProposal(cache)
        rows = self.rows[: args.harvest_samples]
        settings = {"seed": seed, "batch_size": args.probe_batch_size, **args.decoding("sft")}
        errors = harvest(frozen, rows, folder / _HARVEST, on_shard=_noting(folder / _HARVEST), **settings)
        return HarvestedProposal(errors, fallback=FrozenTopKProposal(cache))

    def _train(self, name: str, seed: int, folder: Path) -> None:
        system, values = _STAGES[name], self._trainer_arguments(name, seed, folder)
        start = self.arguments.base if name == _START else self.start(seed)
        if system.trainer == "sft":
            model = self._wrap(start, history=False)
            trainer: Any = MaskedSFTTrainer(model, MaskedSFTArguments(**values), **self._data(model))
        else:
            proposal = self.proposal(system, seed)
            settings = {key: getattr(self.arguments, key) for key in _HISTORY_SETTINGS if system.history}
            model = self._wrap(start, history=system.history, **settings)
            trainer = RMTrainer(model, RMTrainingArguments(**values), proposal=proposal, **self._data(model))
        self._finish(trainer, folder, plain=name == _START)

    def _data(self, model: RMForMaskedDiffusion) -> dict[str, Any]:
        """What every trainer gets beside model and arguments."""
        rank = self.arguments.lora_rank
        adapter = default_lora_config(model, r=rank) if rank else None
        return {"train_dataset": self.rows, "processing_class": self.tokenizer, "peft_config": adapter}

    def _finish(self, trainer: Any, folder: Path, plain: bool = False) -> None:
        """Train, going on where a stopped run was; save what the next stage loads, and say so last."""
        checkpoint = get_last_checkpoint(folder) if folder.exists() else None
        clock = Clock(folder / CLOCK_FILE, checkpoint is not None, getattr(trainer, "part_seconds", None))
        trainer.add_callback(clock)
        trainer.train(resume_from_checkpoint=checkpoint)
        if PartialState().is_main_process:
            model = trainer.accelerator.unwrap_model(trainer.model)
            if plain:
                model.model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
            elif self.arguments.lora_rank:
                save_adapter_for_hub(model, folder, self.tokenizer)
            else:
                save_for_hub(model, folder, self.tokenizer)
            write_json(folder / FINISHED, {"steps": trainer.state.global_step, **clock.seconds})
        PartialState().wait_for_everyone()
        if self.training.push_to_hub and not plain:
            trainer.push_to_hub()

    def _trainer_arguments(self, name: str, seed: int, folder: Path) -> dict[str, Any]:
        """Those of a stage's trainer: the run's, and over them what the stage and its system set."""
        system = _STAGES[name]
        assert system.trainer is not None
        kind = _TRAINER_ARGUMENTS[system.trainer]
        values = {item.name: getattr(self.training, item.name) for item in fields(kind) if item.init}
        given = self.arguments.parsed("system_arguments").get(name, {})
        # The model is loaded already.
        own = {"output_dir": str(folder), "seed": seed, "model_init_kwargs": None, **given, **system.fixed}
        if system.trainer == "sft":
            own["min_mask_rate"] = self.arguments.min_mask_rate
        if name == _START:
            own |= {"seed": seed + _START_SEED, "max_steps": self.arguments.sft_steps, "push_to_hub": False}
        else:
            several = f"-seed{seed}" if len(self.arguments.seeds) > 1 else ""
            own |= {"hub_model_id": f"{self.training.hub_model_id or self.root.name}-{name}{several}"}
        return {**values, **own}

    def _wrap(self, name: str, **history: Any) -> RMForMaskedDiffusion:
        set_seed(0)  # nothing is drawn in wrapping; rows that a backbone lacks would be
        return RMForMaskedDiffusion.from_backbone(name, backbone_kwargs=self._loading, **history)

    def _read(self, folder: Path) -> RMForMaskedDiffusion:
        """A trained system, loaded as its base was: an adapter's base has no dtype or quantisation of its own."""
        given = {key: value for key, value in self._loading.items() if key in (*_LOADING, *_FETCHING)}
        if self.arguments.lora_rank and "trust_remote_code" in self._loading:
            given["base_trust_remote_code"] = self._loading["trust_remote_code"]
        return RMForMaskedDiffusion.from_pretrained(folder, **given)

    @property
    def _fetching(self) -> dict[str, Any]:
        """How files of the base beside its weights are had."""
        return {key: self._loading[key] for key in (*HUB_ARGUMENTS, "trust_remote_code") if key in self._loading}

    @property
    def _loading(self) -> dict[str, Any]:
        """How the base is loaded."""
        given: Any = self.training.model_init_kwargs
        return dict(given or {})

    def _settings(self, name: str, seed: int) -> dict[str, Any]:
        """What a stage's weights depend on, and nothing that they do not."""
        args, system = self.arguments, _STAGES[name]
        # What fetches the base is no setting, and a token is not to be written down.
        loading = {key: value for key, value in self._loading.items() if key not in _FETCHING}
        names = ["completion_length", "eos_tail", "lora_rank"]
        if name != _START:
            names += ["sft_steps"]
        if args.sft_steps:
            names += ["min_mask_rate"]
        if system.trainer == "rm":
            names += ["top_k", "probe", *(["probe_mask_rate"] if args.probe == "masked" else [])]
            names += _HISTORY_SETTINGS if system.history else ()
        settings = {
            "task": self.task.name,
            "system": name,
            "seed": seed,
            "base": self._base,
            "training data": self._data_digest,
        }
        settings |= {key: getattr(args, key) for key in names} | {"model_init_kwargs": loading}
        if system.harvested:
            settings["harvest_samples"] = min(args.harvest_samples, len(self.rows))
            settings["sft_decoding"] = args.decoding("sft")
        values = settings_that_matter(self._trainer_arguments(name, seed, self.root))
        return {**values, **settings, "processes": self.training.world_size}

    @cached_property
    def _base(self) -> str:
        """The base's name, and what says that it is the same model: a commit of the Hub, or the files' digest."""
        name = self.arguments.base
        return f"{name} {saved_digest(name, self._loading.get('revision'))}"

    @cached_property
    def _data_digest(self) -> str:
        return f"{len(self.rows)} rows with the digest {data_digest(self.rows)}"

    def training_seconds(self, name: str, seed: int) -> dict[str, dict[str, Any]]:
        """Seconds in the first process of a system's training and of all that it stands on; empty for the base."""
        system, folder = SYSTEMS[name], self.root / f"seed{seed}"
        if system.trainer is None:
            return {}
        places = {_START: folder / _START / FINISHED} if self.arguments.sft_steps else {}
        if system.trainer == "rm":
            places["probe"] = folder / _PROBE / CLOCK_FILE
        if system.harvested:
            places["harvest"] = folder / _HARVEST / CLOCK_FILE
        return {part: read_clock(place) for part, place in {**places, "training": folder / name / FINISHED}.items()}

    def cpu_minutes(self, name: str, seed: int) -> float | None:
        """CPU minutes of [`training_seconds`] together; None for the base, which is not trained here."""
        parts = self.training_seconds(name, seed)
        return sum(part["cpu_seconds"] for part in parts.values()) / 60 if parts else None

    # Evaluation

    def evaluation_folder(self, trained: Trained, name: str = MAIN) -> Path:
        """Where an evaluation's records lie, and what it took."""
        return self.root / f"seed{trained.seed}" / "evaluation" / f"{trained.name}-{name}"

    def evaluate(
        self,
        trained: Trained,
        decoding: dict[str, Any] | None = None,
        name: str | None = None,
        revision: bool = True,
        test: str = MAIN,
    ) -> TextEvaluation:
        """
        Decode and grade the held-out samples, each process its share.

        Args:
            trained ([`Trained`]): the system.
            decoding (`dict`, *optional*): settings; by default those of the arguments for this kind of system.
            name (`str`, *optional*): of the records' folder; by default the test's.
            revision (`bool`): record what revision did.
            test (`str`): of `tests`.
        """
        args, state = self.arguments, PartialState()
        if decoding is None:
            decoding = args.decoding(SYSTEMS[trained.name].trainer)
        samples = self.held_out(test)
        share = samples[state.process_index :: state.num_processes]
        folder = self.evaluation_folder(trained, name or test)
        place = folder / f"part-{state.process_index}-of-{state.num_processes}"
        found: Sequence[Any] = ()
        settings: dict[str, Any] = {}
        clock = Clock(folder / CLOCK_FILE)
        before = _size(place)
        if share:
            model = trained.load()
            done = evaluate_text(
                model,
                self.tokenizer,
                share,
                self.tests[test].grade,
                decoding,
                completion_length=args.completion_length,
                batch_size=args.eval_batch_size,
                seed=args.eval_seed,
                folder=place,
                name=trained.label,
                revision=revision,
                progress_bar=state.is_main_process,
            )
            found, settings = done.records, done.decoding
            del model
        if state.is_main_process and _size(place) > before:  # not what reading it back takes
            clock.save()
        records = {record.key: record for record in (gather_object(found) if state.num_processes > 1 else found)}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return TextEvaluation(
            trained.label, tuple(records[sample.key] for sample in samples), settings, args.eval_seed
        )


def _placed(model: RMForMaskedDiffusion) -> RMForMaskedDiffusion:
    """On this process's device, ready to be read; what was placed or quantised in loading stays where it is."""
    if not (getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)):
        model.to(PartialState().device)
    return model.eval()


def _noting(folder: Path) -> Callable[[], None]:
    """Notes in a cache's folder what its shards took, in the first process."""
    clock = Clock(folder / CLOCK_FILE)
    return clock.save if PartialState().is_main_process else lambda: None


def _size(folder: Path) -> int:
    """Bytes of the records in an evaluation's folder."""
    path = folder / RECORDS_FILE
    return path.stat().st_size if path.exists() else 0


_PROBE, _HARVEST = "top-k", "harvest"
_HISTORY_SETTINGS = ("history_decay", "history_scope")
_FETCHING = frozenset(HUB_ARGUMENTS) - {"revision"}
