# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
One training of the Sudoku recipe: a main stage and finishing stages, in a folder of its own.

A stage that was stopped goes on from its last checkpoint, and its processor time counts on; `finished.json`, written
last, says what the weights come from and what they cost.
"""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_utils import SchedulerType, get_last_checkpoint

from ...corruption import FixedProposal
from ...hub import save_for_hub
from ...modeling_rm import RMForMaskedDiffusion
from ...training import RMTrainer, RMTrainingArguments
from ...training.stages import CLOCK_FILE, Clock, claim_folder, settings_that_matter, write_json
from .arguments import SudokuArguments, split_law
from .boards import VOCAB_SIZE, BoardArray, generate_boards
from .model import VARIANTS, build_sudoku_model, build_sudoku_tokenizer

FINISHED = "finished.json"
_STAGE_SEED = 1_000_000
# What the weights depend on beside the trainers' arguments.
_RECIPE_SETTINGS = (
    "structured",
    "num_layers",
    "intermediate_size",
    "finish_steps",
    "finish_pool_fraction",
    "finish_pool_max_age",
)


def train_run(
    arguments: SudokuArguments, training: RMTrainingArguments, variant: str, law: str, seed: int, command: str = ""
) -> Path:
    """
    Train one run that was not finished before.

    Args:
        arguments ([`SudokuArguments`]): network and finishing stages.
        training ([`RMTrainingArguments`]): of the main stage; `output_dir` holds all runs.
        variant (`str`): a key of `VARIANTS`.
        law (`str`): a trajectory law, with `"+pool"` for on-policy rows.
        seed (`int`): of the run.
        command (`str`): that launched it, to be recorded.

    Returns:
        `Path`: the run's folder, with the model as the Hub holds it, and `finished.json`.

    Raises:
        ValueError: for a folder that holds a run of other settings.
    """
    folder = Path(training.output_dir) / f"{variant}_{law}_seed{seed}"
    args = copy.deepcopy(training)
    args.output_dir, args.seed = str(folder), seed
    args.law, pool = split_law(law)
    args.pool_fraction = training.pool_fraction if pool else 0.0
    settings = run_settings(arguments, args, variant)
    if PartialState().is_main_process:
        claim_folder(folder, settings)
    PartialState().wait_for_everyone()
    if (folder / FINISHED).exists():
        return folder
    set_seed(seed)
    size = {"num_layers": arguments.num_layers, "intermediate_size": arguments.intermediate_size}
    model = build_sudoku_model(variant, structured=arguments.structured, **size)
    stages = [run_stage(model, args)]
    for number, steps in enumerate(arguments.finish_steps, start=1):
        stages.append(run_stage(model, finishing_arguments(arguments, args, number, steps)))
    if PartialState().is_main_process:
        save_for_hub(model, folder, tokenizer=build_sudoku_tokenizer())
        cost = {"processes": args.world_size, "threads": torch.get_num_threads(), "stages": stages}
        minutes = sum(stage["cpu_minutes"] for stage in stages)
        write_json(
            folder / FINISHED,
            {"command": command, "settings": settings, "train_cpu_minutes": round(minutes, 2), **cost},
        )
    PartialState().wait_for_everyone()
    return folder


def run_settings(arguments: SudokuArguments, args: RMTrainingArguments, variant: str) -> dict[str, Any]:
    """What the trained weights depend on: everything that is not known to be irrelevant."""
    values = {item.name: getattr(args, item.name) for item in fields(args) if item.init}
    recipe = {name: getattr(arguments, name) for name in _RECIPE_SETTINGS}
    if not arguments.finish_steps:
        recipe = {name: value for name, value in recipe.items() if not name.startswith("finish_pool")}
    return {"history": VARIANTS[variant], **recipe, **settings_that_matter(values), "processes": args.world_size}


def run_stage(model: RMForMaskedDiffusion, args: RMTrainingArguments) -> dict[str, Any]:
    """Train `model` in place on boards that no other stage sees; its steps and CPU minutes of this process."""
    folder = Path(args.output_dir)
    checkpoint = get_last_checkpoint(folder) if folder.exists() else None
    clock = Clock(folder / CLOCK_FILE, resumed=checkpoint is not None)
    proposal = FixedProposal([0] + [1] * (VOCAB_SIZE - 1))
    trainer = RMTrainer(model, args, train_dataset=training_boards(args), proposal=proposal, callbacks=[clock])
    trainer.train(resume_from_checkpoint=checkpoint)
    return {"steps": trainer.state.global_step, "cpu_minutes": round(clock.seconds["cpu_seconds"] / 60, 2)}


def finishing_arguments(
    arguments: SudokuArguments, args: RMTrainingArguments, stage: int, steps: int
) -> RMTrainingArguments:
    """A short last stage: mostly pool rows, which stay until they come to rest, as long as decoding may take."""
    finish = copy.deepcopy(args)
    finish.output_dir, finish.seed = str(Path(args.output_dir) / f"finish{stage}"), args.seed + stage * _STAGE_SEED
    finish.max_steps, finish.pool_start_step = steps, 0
    finish.pool_fraction, finish.pool_max_age = arguments.finish_pool_fraction, arguments.finish_pool_max_age
    finish.learning_rate, finish.muon_learning_rate = (
        args.learning_rate / 2,
        (args.muon_learning_rate or 0) / 2 or None,
    )
    finish.lr_scheduler_type, finish.lr_scheduler_kwargs, finish.warmup_steps = SchedulerType.COSINE, {}, 20
    return finish


class BoardRows:
    """Solved boards as rows for the trainer."""

    def __init__(self, boards: BoardArray) -> None:
        self.boards = boards

    def __len__(self) -> int:
        return len(self.boards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.boards[index], "idx": index}


def training_boards(args: RMTrainingArguments) -> BoardRows:
    """As many boards as the run will look at, so that none comes twice; the seed is the run's own."""
    count = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return BoardRows(generate_boards(count, args.seed, split="train"))


def read_training(folder: str | Path) -> dict[str, Any] | None:
    """What a run's `finished.json` says; None where a model has none."""
    path = Path(folder) / FINISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
