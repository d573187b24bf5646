"""The Remask recipes: their configurations, all stages with tiny settings, what is refused, what the report says."""

import importlib.util
import json
import math
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from trl import TrlParser

from hf_rm import RemaskSFTArguments, RMTrainingArguments
from hf_rm.evaluation.sandbox import sandbox_available
from hf_rm.evaluation.statistics import wilson_interval
from hf_rm.tasks.remask import stages
from hf_rm.tasks.remask.problems import (
    Outcome,
    ProblemArguments,
    SudokuProblems,
    as_dict,
    build_problems,
    planted_errors,
)
from hf_rm.tasks.remask.report import less, plot_rewards, report, rewards_of, summary
from hf_rm.tasks.remask.stages import RemaskStages, Stage, read_stages, training_settings
from hf_rm.tasks.sudoku import MASK_ID
from hf_rm.tasks.sudoku.model import build_sudoku_model
from hf_rm.training import MaskedSFTArguments
from hf_rm.training.grpo import RemaskGRPOConfig
from hf_rm.training.stages import NEUTRAL_ARGUMENTS

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
TRAINERS = {"sft": MaskedSFTArguments, "remask": RemaskSFTArguments, "rm": RMTrainingArguments, "rl": RemaskGRPOConfig}
TINY = {"per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
BLOCKS = {"attention_block_length": 8, "attention_block_start": "answer"}
TINY_RL = {**TINY, "num_generations": 2, "loss_steps": 2, "max_steps": 2, "logging_steps": 1}


def recipe(name: str) -> Any:
    path = list(sys.path)
    specification = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[f"{name}_recipe"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    sys.path[:] = path
    return module


def launch(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, **changes: Any) -> None:
    """A recipe's main with a shipped configuration, made small."""
    settings = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text()) | {"output_dir": str(folder), **changes}
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--config", str(path)])
    monkeypatch.chdir(ROOT)
    recipe(name).main()


# Configurations


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("remask-*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_what_they_say(path: Path, tmp_path: Path) -> None:
    name = "remask_" + path.stem.split("-")[1]
    assert f"recipes/{name}.py" in path.read_text() and f"output_dir: outputs/{path.stem}\n" in path.read_text()
    text = path.read_text().replace("bf16: true", "bf16: false")  # this may be a CPU
    (tmp_path / "config.yaml").write_text(text)
    module = recipe(name)
    main: dict[str, Any] = {"remask_sft": RemaskSFTArguments, "remask_rl": RemaskGRPOConfig}
    own = next(v for k, v in vars(module).items() if k.endswith("Arguments") and v.__module__ == module.__name__)
    kinds = (own, main[name]) if name in main else (own,)
    arguments, *training = TrlParser(kinds).parse_args_and_config(["--config", str(tmp_path / "config.yaml")])
    if name == "remask_compare":
        stages = read_stages(arguments.stages, arguments.supervised, arguments.rl)
        shared = arguments.shared
    elif name == "remask_rl":
        stages = {}
        for policy in ("remedi", "rm") if arguments.start is None else (arguments.policy,):
            stages |= module.stages_of(replace(arguments, policy=policy), training[0])
        shared = {}
    else:
        stages, shared = {}, {}
        assert training[0].max_steps > 0
    for stage in stages.values():
        if stage.trainer == "given":
            assert (ROOT / stage.settings["model"] / "config.json").exists()
            continue
        settings = {key: value for key, value in stage.settings.items() if key not in ("proposal", "wrapper")}
        made = TRAINERS[stage.trainer](str(tmp_path), **{**shared, "use_cpu": True, "report_to": "none", **settings})
        embedded = arguments.base is None or (ROOT / arguments.base).exists()
        assert 0 < made.max_steps and (stage.trainer != "rl" or not embedded or made.max_steps <= 60)
    # What decodes by blocks attends by them, in all that is made for LLaDA.
    streams = [s.settings.get("wrapper", {}) for s in stages.values() if s.trainer == "remask"]
    for wrapper in [*streams, *([arguments.wrapper] if name == "remask_sft" else [])]:
        by_blocks = wrapper.get("attention_block_length")
        assert by_blocks == (32 if "llada" in path.stem else None)
        if by_blocks:
            assert wrapper["attention_block_start"] == "answer"
            assert arguments.decoding("remedi") | {"block_length": 32, "use_cache": True} == arguments.decoding(
                "remedi"
            )
    # Every kind of model has as many forward passes.
    remedi, rm, sft = (arguments.decoding(kind) for kind in ("remedi", "rm", "sft"))
    counts = {values[key] for values, key in ((remedi, "steps"), (rm, "max_steps"), (sft, "steps")) if values}
    assert len(counts) == 1


# The stages


@pytest.mark.slow
def test_both_policies_and_the_table_on_word_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped comparison with every step count at one or two; launched again it trains and decodes nothing."""
    given = yaml.safe_load((CONFIGS / "remask-compare-words.yaml").read_text())
    for stage in given["stages"].values():
        stage |= {"max_steps": 2 if stage["trainer"] == "rl" else 1}
    changes = {
        "seeds": [0],
        "stages": {name: given["stages"][name] for name in ("start", "sft", "remask-sft-short", "rm-short")}
        | {name: given["stages"][name] for name in ("remask-sft+rl", "rm+rl")},
        "supervised": {**given["supervised"], **TINY},
        "rl": {**given["rl"], **TINY_RL},
        "shared": {"report_to": "none"},
        "train_rows": 16,
        "eval_rows": 6,
        "decoding_sft": {"preset": "llada", "steps": 4},
        "decoding_remedi": {"block_length": 40, "steps": 4, "stop_at_eos": False},
        "decoding_rm": {"reveal": "confidence", "steps": 3, "revise": "reflective", "max_steps": 4},
    }
    out = tmp_path / "out"
    launch("remask_compare", out, monkeypatch, "remask-compare-words", **changes)
    records = json.loads((out / "records.json").read_text())
    assert list(records["stages"]) == ["sft", "remask-sft-short", "rm-short", "remask-sft+rl", "rm+rl"]
    for row in records["stages"].values():
        assert row["forwards"][0] <= 4 and 0 <= row["right"][1] <= row["right"][2] <= 1 and row["right"][3] == 6
        low, area, high = (row["auroc"]["seed 0"]["planted"][i] for i in (1, 0, 2))
        assert 0 <= low <= area <= high <= 1
        assert row["cpu minutes"] > 0
    assert (
        records["stages"]["rm+rl"]["less its start"] is not None and records["stages"]["sft"]["less its start"] is None
    )
    assert [len(records["curves"][name][0]["reward"]) for name in ("remask-sft+rl", "rm+rl")] == [2, 2]
    assert (out / "rewards.png").stat().st_size > 5000
    assert (out / "seed0" / "rm+rl" / "finished.json").exists()

    def nothing(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("what is done was done again")

    monkeypatch.setattr("hf_rm.tasks.remask.stages.RemaskStages._finish", nothing)
    monkeypatch.setattr("hf_rm.tasks.remask.problems.MathProblems.evaluate", nothing)
    launch("remask_compare", out, monkeypatch, "remask-compare-words", **changes)
    assert json.loads((out / "records.json").read_text()) == records
    changes["stages"]["rm-short"] |= {"max_steps": 5}
    with pytest.raises(ValueError, match="max_steps is 1 there and 5 here"):
        launch("remask_compare", out, monkeypatch, "remask-compare-words", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["remedi", "rm"])
def test_both_stages_on_sudoku(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"train_rows": 16, "eval_rows": 3, "num_layers": 3, "policy": policy, **TINY_RL}
    decoding = {"decoding_remedi": {"block_length": 81, "steps": 3}, "decoding_rm": {"max_steps": 3}}
    first = {**TINY, "max_steps": 1, "learning_rate": 0.001}
    launch("remask_rl", tmp_path / "out", monkeypatch, "remask-rl-sudoku", sft=first, **small, **decoding)
    name = {"remedi": "remask-sft", "rm": "rm"}[policy]
    records = json.loads((tmp_path / "out" / policy / "records.json").read_text())
    assert list(records["stages"]) == [name, f"{name}+rl"]
    for row in records["stages"].values():
        assert row["forwards"][0] <= 3 and row["ceiling"] is None and 0 <= row["conflict cells"][0] <= 81
    # A model that is there, in place of the supervised stage: the same reinforcement of the same weights.
    start = tmp_path / "out" / policy / "seed42" / name
    launch("remask_rl", tmp_path / "again", monkeypatch, "remask-rl-sudoku", start=str(start), **small, **decoding)
    again = json.loads((tmp_path / "again" / policy / "records.json").read_text())
    assert again["stages"][name]["exact"] == records["stages"][name]["exact"]
    assert again["stages"][name]["cpu minutes"] is None


def test_attention_by_blocks_goes_through_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for LLaDA-8B: supervised block by block, decoded and reinforced with finished blocks cached."""
    small = {"train_rows": 16, "eval_rows": 3, **TINY_RL}
    small["decoding_remedi"] = {"block_length": 8, "steps": 10, "use_cache": True, "stop_at_eos": False}
    small["sft"] = {**TINY, "max_steps": 1}
    small["sft_remedi"] = {"wrapper": {"policy_layers": [0, 2], **BLOCKS}}
    launch("remask_rl", tmp_path / "out", monkeypatch, "remask-rl-words", **small)
    records = json.loads((tmp_path / "out" / "remedi" / "records.json").read_text())
    assert [row["forwards"][3] for row in records["stages"].values()] == [3, 3]
    config = json.loads((tmp_path / "out" / "remedi" / "seed42" / "remask-sft+rl" / "config.json").read_text())
    assert {name: config[name] for name in BLOCKS} == BLOCKS


@pytest.mark.slow
def test_remask_sft_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"train_rows": 8, "eval_rows": 3, "num_layers": 3, "max_steps": 1, **TINY}
    launch("remask_sft", tmp_path / "out", monkeypatch, "remask-sft-sudoku", **small)
    records = json.loads((tmp_path / "out" / "records.json").read_text())
    assert records["stages"]["remask-sft"]["forwards"][0] == 12 and "curves" not in records


@pytest.mark.slow
def test_the_shipped_model_on_drafts_against_the_ceiling(tmp_path: Path) -> None:
    """Nothing is trained: the first boards of the evaluation set, their ceiling, confidence by Eq. 1's two atoms."""
    arguments = ProblemArguments(
        canvas="draft", eval_rows=8, decoding_rm={"max_steps": 12}, ceiling_dir=str(ROOT / "benchmarks" / "results")
    )
    problems = build_problems(arguments)
    given = Stage("given", settings={"model": str(ROOT / "model_cards" / "rm-sudoku"), "policy": "rm"})
    outcome, trust = RemaskStages(arguments, problems, {"rm": given}, tmp_path).outcome("rm", 0)
    assert len(outcome.main) == 8 and outcome.main.mean() >= 0.6 and max(outcome.values["forwards"]) <= 12
    assert trust["planted"].value > 0.95 and trust["planted"].observations == 8 * 81
    ceiling = problems.ceiling()
    assert ceiling is not None and len(ceiling) == 8 and 0.5 < ceiling.mean() <= 1
    missing = build_problems(replace(arguments, ceiling_dir=str(tmp_path)))
    assert missing.ceiling() is None


def sum_of_tokens(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [sum(ids) / 10 for ids in completion_ids]


@pytest.mark.slow
def test_an_adapter_goes_through_both_stages(tmp_path: Path) -> None:
    """As for LLaDA-8B: what reinforcement trains is the adapter of the first stage."""
    arguments = ProblemArguments(
        task="word-problems",
        base=str(ROOT / "model_cards" / "tiny-math-base"),
        rewards=["answer", "format"],
        completion_length=40,
        train_rows=8,
        eval_rows=2,
        decoding_remedi={"block_length": 40, "steps": 3, "stop_at_eos": False},
    )
    stages = {
        "remask-sft": Stage("remask", settings={**TINY, "max_steps": 1}),
        "remask-sft+rl": Stage(
            "rl",
            after="remask-sft",
            settings={**TINY_RL, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3},
        ),
    }
    problems: Any = build_problems(arguments)
    problems.reward_functions = lambda: [sum_of_tokens]  # right answers are not to be had so soon
    run = RemaskStages(arguments, problems, stages, tmp_path, lora_rank=2)
    outcome, _ = run.outcome("remask-sft+rl", 0)
    assert len(outcome.main) == 2
    first, folder = (tmp_path / "seed0" / name for name in stages)
    adapter = folder / "adapter" / "adapter_model.safetensors"
    whole = load_file(adapter)
    assert not list(folder.glob("model*.safetensors")) and any("stream" in name for name in whole)
    before = load_file(first / "adapter" / "adapter_model.safetensors")
    assert before.keys() == whole.keys() and any(not torch.equal(before[name], whole[name]) for name in whole)
    # Stopped after the first update, it goes on to the same weights.
    for path in (folder / "finished.json", folder / "checkpoint-2", folder / "adapter"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.train("remask-sft+rl", 0)
    again = load_file(adapter)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    with pytest.raises(ValueError, match="adapters all start from the base"):
        more = {"start": Stage("sft"), "remask-sft": Stage("remask", after="start")}
        RemaskStages(arguments, run.problems, more, tmp_path, lora_rank=2)


# What is refused


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "`stages` is empty"),
        ({"a": {"trainer": "ppo"}}, "stage 'a' has the trainer 'ppo'"),
        ({"a": {"trainer": "rl"}}, "stage 'a' reinforces nothing"),
        ({"a": {"trainer": "rm", "after": "b"}}, "stage 'a' comes after 'b', which is no stage"),
        ({"a": {"trainer": "sft"}, "b": {"trainer": "rl", "after": "a"}}, "let it follow a stage with a policy"),
        ({"a": {"trainer": "rm"}, "b": {"trainer": "remask", "after": "a"}}, "let it follow vanilla fine-tuning"),
        ({"a": {"trainer": "given", "model": "x"}}, "stage 'a' is given: it needs"),
    ],
)
def test_stages_that_cannot_work(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_stages(stages, {}, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "chess"}, "`task` is 'chess'"),
        ({"task": "mbpp", "rewards": ["answer"]}, "but task 'mbpp' has passes, format"),
        ({"rewards": ["answer"]}, "`rewards` is .'answer'., but task 'sudoku' has valid, exact, conflicts"),
        ({"canvas": "photo"}, "`canvas` is 'photo'"),
        ({"hidden_cells": [5]}, "`hidden_cells` is"),
        ({"hidden_cells": [5, 82]}, "`hidden_cells` is"),
        ({"eval_rows": 0}, "`eval_rows` is 0"),
    ],
)
def test_problems_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProblemArguments(**settings)


def test_models_that_do_not_fit_the_problem() -> None:
    with pytest.raises(ValueError, match="`base` is None: task 'word-problems'"):
        build_problems(ProblemArguments(task="word-problems", rewards=["answer"]))
    with pytest.raises(ValueError, match="only RM revises drafts"):
        build_problems(ProblemArguments(canvas="draft")).model("remedi", None, {})
    with pytest.raises(ValueError, match="on Sudoku all begin afresh"):
        build_problems(ProblemArguments()).model("rm", "somewhere", {})


def test_arguments_that_the_recipes_have_their_own_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="pass `backbone_kwargs`"):
        launch("remask_rl", tmp_path / "out", monkeypatch, "remask-rl-sudoku", model_init_kwargs={"a": 1})
    with pytest.raises(ValueError, match="pass --policy rm"):
        launch("remask_rl", tmp_path / "out", monkeypatch, "remask-rl-sudoku", canvas="draft")
    assert not (tmp_path / "out").exists()


def test_rollouts_are_decoded_as_in_evaluation_but_for_what_the_stage_says(tmp_path: Path) -> None:
    arguments = ProblemArguments(decoding_rm='{"max_steps": 64, "patience": 2}')
    stages = {"rm": Stage("rm"), "a": Stage("rl", "rm"), "b": Stage("rl", "a", {"decoding": {"max_steps": 16}})}
    run = RemaskStages(arguments, build_problems(arguments), stages, tmp_path)
    assert run.rollouts("a") == {"max_steps": 64, "patience": 2} and run.kind("b") == "rm"
    assert run.settings("b", 0)["decoding"] == {"max_steps": 16, "patience": 2}
    after = run.settings("b", 0)["after"]
    assert run.chain("b") == ["rm", "a", "b"] and after == run.settings("a", 0) | {"weights": None}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("remask_sft", ["wrapper", "backbone_kwargs"]),
        ("remask_rl", ["sft", "sft_rm", "sft_remedi", "decoding_sft", "decoding_remedi", "decoding_rm"]),
        ("remask_compare", ["stages", "supervised", "rl", "shared"]),
    ],
)
def test_dicts_are_given_on_the_command_line_as_json(name: str, given: list[str]) -> None:
    module = recipe(name)
    own: Any = next(v for k, v in vars(module).items() if k.endswith("Arguments") and v.__module__ == module.__name__)
    words = [word for item in given for word in (f"--{item}", f'{{"{item}": [1]}}')]
    arguments, rest = TrlParser((own,)).parse_args_and_config(
        ["--config", str(module.DEFAULT_CONFIG), *words], return_remaining_strings=True
    )
    assert not [word for word in rest if word in words]
    assert [as_dict(getattr(arguments, item)) for item in given] == [{item: [1]} for item in given]
    for value in ('{"a": 1', "[1]", "steps=12"):
        with pytest.raises(ValueError, match=f"`{given[0]}` is .*no JSON.*pass one such as"):
            own(**{given[0]: value})
    assert as_dict(getattr(own(**{given[0]: None}), given[0])) == {}


# What is done, and what only looks so


def tiny_sudoku(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    build_sudoku_model("no-hr", num_layers=1).save_pretrained(folder)
    return folder


def reinforced(start: Path, root: Path, **problem: Any) -> RemaskStages:
    """The stages of remask_rl.py with --start."""
    arguments = ProblemArguments(eval_rows=2, decoding_rm={"max_steps": 2}, **problem)
    given = Stage("given", settings={"model": str(start), "policy": "rm"})
    stages = {"rm": given, "rm+rl": Stage("rl", "rm", {**TINY_RL, "max_steps": 1})}
    return RemaskStages(arguments, build_problems(arguments), stages, root)


def test_a_finished_stage_is_not_that_of_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tiny_sudoku(tmp_path / "one"), tiny_sudoku(tmp_path / "other", seed=1)
    trained: list[Path] = []

    def finish(self: Any, trainer: Any, folder: Path, plain: bool) -> None:
        trained.append(folder)
        (folder / "finished.json").write_text("{}")

    monkeypatch.setattr(RemaskStages, "_finish", finish)
    monkeypatch.setattr(RemaskStages, "_reinforcement", lambda *args: None)
    out = tmp_path / "out"
    for _ in range(2):
        reinforced(one, out).train("rm+rl", 0)
    assert len(trained) == 1
    with pytest.raises(ValueError, match=r"holds another run: after\.model is .*one there and .*other here"):
        reinforced(other, out).train("rm+rl", 0)
    tiny_sudoku(one, seed=2)
    with pytest.raises(ValueError, match=r"holds another run: after\.weights is \w+ there and \w+ here"):
        reinforced(one, out).train("rm+rl", 0)
    assert len(trained) == 1


def test_a_model_that_was_trained_again_is_evaluated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, found = tiny_sudoku(tmp_path / "start"), []
    monkeypatch.setattr("hf_rm.tasks.remask.problems.SudokuProblems.confidence", lambda *args: {})
    plain = SudokuProblems.evaluate
    monkeypatch.setattr(SudokuProblems, "evaluate", lambda *args: found.append(plain(*args)) or found[-1])
    for _ in range(2):
        reinforced(start, tmp_path / "out").outcome("rm", 0)
    assert len(found) == 1
    tiny_sudoku(start, seed=1)
    outcome, _ = reinforced(start, tmp_path / "out").outcome("rm", 0)
    assert len(found) == 2 and outcome.answers == found[1].answers != found[0].answers
    reinforced(start, tmp_path / "out", hidden_cells=[30, 40]).outcome("rm", 0)
    assert len(found) == 3


PROBLEM_CHANGES = {
    "test_data": "other.jsonl",
    "longest_row": 99,
    "proposal_top_k": 7,
    "probe": "clean",
    "backbone_kwargs": {"dtype": "float64"},
    "template": "{question}?",
    "rewards": ["answer"],
    "decoding_rm": {"max_steps": 9},
}
STAGE_CHANGES = {
    "reward_weights": [1.0, 0.5],
    "multi_objective_aggregation": "normalize_then_sum",
    "steps_per_generation": 4,
    "max_steps": 7,
    "decoding": {"max_steps": 3},
}
RM_CHANGES = {
    "pool_reveal_threshold": 0.9,
    "pool_start": "canvas",
    "pool_fraction": 0.25,
    "wrapper": {"history": False},
}


def of_words(root: Path, rl: dict[str, Any], rm: dict[str, Any], **problem: Any) -> RemaskStages:
    base = str(ROOT / "model_cards" / "tiny-math-base")
    arguments = ProblemArguments(**{"task": "word-problems", "base": base, "rewards": ["answer", "format"], **problem})
    return RemaskStages(arguments, None, {"rm": Stage("rm", settings=rm), "rm+rl": Stage("rl", "rm", rl)}, root)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*PROBLEM_CHANGES, *STAGE_CHANGES, *RM_CHANGES, "base", "shared", "lora_rank"])
def test_what_a_stage_depends_on(name: str, tmp_path: Path) -> None:
    pool = {"pool_fraction": 0.5}  # without one its settings are of no consequence
    before = of_words(tmp_path, {}, pool)
    reinforced, supervised = ({name: known[name]} if name in known else {} for known in (STAGE_CHANGES, RM_CHANGES))
    given = (reinforced, {**pool, **supervised})
    problem = {name: PROBLEM_CHANGES[name]} if name in PROBLEM_CHANGES else {}
    if name == "base":  # the same path, other weights
        shutil.copytree(ROOT / "model_cards" / "tiny-math-base", tmp_path / "base")
        before = of_words(tmp_path, {}, {}, base=str(tmp_path / "base"))
        first = before.settings("rm+rl", 0)
        save_file({"a": torch.zeros(1)}, tmp_path / "base" / "model.safetensors")
        assert first != before.settings("rm+rl", 0)
        return
    after = of_words(tmp_path, *given, **problem)
    if name == "shared":
        after.shared = {"bf16": True}
    if name == "lora_rank":
        after.lora_rank = 2
    assert after.settings("rm+rl", 0) != before.settings("rm+rl", 0)
    # Reinforcement's own settings say nothing of the stage before it.
    own = name in STAGE_CHANGES or name in ("rewards", "decoding_rm")
    assert (after.settings("rm", 0) == before.settings("rm", 0)) is own


def test_what_it_does_not_depend_on_is_named_rightly(tmp_path: Path) -> None:
    """Logging, saving and evaluation settings: all that is left aside exists, and no token is ever written down."""
    known = {item.name for kind in (ProblemArguments, *TRAINERS.values()) for item in fields(kind)}
    assert {*stages._PROBLEM_ASIDE, *stages._EVALUATION_ALONE, *NEUTRAL_ARGUMENTS} <= known
    quiet = {"logging_steps": 3, "save_steps": 9, "hub_token": "secret", "disable_tqdm": True, "pairs_per_forward": 2}
    other = of_words(
        tmp_path, quiet, {"save_total_limit": 1}, eval_rows=3, eval_batch_size=1, decoding_sft={"steps": 2}
    )
    assert other.settings("rm+rl", 0) == of_words(tmp_path, {}, {}).settings("rm+rl", 0)


def test_a_parsed_command_line_can_be_noted(tmp_path: Path) -> None:
    """Every value, objects of accelerate's included, as it is and again after it was read back."""
    config = RemaskGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", per_device_train_batch_size=8)
    run = of_words(tmp_path, training_settings(config), {})
    noted = run.settings("rm+rl", 0)
    assert json.loads(json.dumps(noted)) == noted and noted["lr_scheduler_type"] == "linear"
    assert noted["accelerator_config"]["split_batches"] is False and "object at" not in json.dumps(noted)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "groups": ({"num_generations": 3}, {}, {}, "`num_generations` is 3, which does not divide the 4 rows"),
    "unread": ({"loss_type": "grpo"}, {}, {}, "`loss_type` is 'grpo'"),
    "rollouts": ({"decoding": {"steps": 3}}, {"wrapper": BLOCKS}, {"steps": 10}, "`steps` is 3, but the canvas has 5"),
    "evaluation": ({}, {"wrapper": BLOCKS}, {"steps": 3}, "'remask-sft' cannot be decoded as `decoding_remedi` says"),
    "blocks": ({}, {"wrapper": BLOCKS}, {"block_length": 16}, "`block_length` is 16, but the model's attention"),
    "cache": ({}, {}, {"use_cache": True}, "`use_cache` is True, but the model's attention is not block-causal"),
    "layers": ({}, {"wrapper": {"policy_layers": [0, 9]}}, {}, r"`policy_layers` is \[0, 9\] for a backbone of 4"),
    "rate": ({}, {"backbone_learning_rate": -1}, {}, "`backbone_learning_rate` is -1"),
    "name": ({}, {}, {"stepps": 3}, "Unknown generation argument"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_found_before_anything_is_trained(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rl, first, decoding, message = WRONG[case]
    monkeypatch.setattr(RemaskStages, "train", lambda *args: pytest.fail("it was trained"))
    arguments = ProblemArguments(
        task="word-problems",
        base=str(ROOT / "model_cards" / "tiny-math-base"),
        rewards=["answer"],
        completion_length=40,
        decoding_remedi={"stop_at_eos": False, **decoding},
    )
    given = {
        "remask-sft": Stage("remask", settings={**TINY, **first}),
        "remask-sft+rl": Stage("rl", "remask-sft", {**TINY_RL, **rl}),
    }
    with pytest.raises((ValueError, TypeError), match=message):
        report(RemaskStages(arguments, build_problems(arguments), given, tmp_path), [0])


def given_model(model: Path | str, policy: str, root: Path) -> RemaskStages:
    """A stage of a model that is there, as remask_rl.py makes it."""
    stage = Stage("given", settings={"model": str(model), "policy": policy})
    return RemaskStages(ProblemArguments(), build_problems(ProblemArguments()), {"start": stage}, root)


def test_a_given_model_of_the_other_kind_is_named(tmp_path: Path) -> None:
    shipped = ROOT / "model_cards" / "rm-sudoku"
    with pytest.raises(ValueError, match="rm-sudoku', which is no RemeDi model but RM's: pass --policy rm"):
        given_model(shipped, "remedi", tmp_path).check(0)
    build_problems(ProblemArguments(num_layers=2)).model("remedi", None, {}).config.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="own', which is no RM model but RemeDi's: pass --policy remedi"):
        given_model(tmp_path / "own", "rm", tmp_path).check(0)
    LlamaConfig().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="plain', a plain llama one without a policy"):
        given_model(tmp_path / "plain", "rm", tmp_path).check(0)
    given_model(shipped, "rm", tmp_path).check(0)
    given_model(tmp_path / "own", "remedi", tmp_path).check(0)


@pytest.mark.parametrize("model", ["./nowhere", "outputs/run/seed42/nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_given_folder_that_is_not_there(model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"is given the model '{model}', a folder that does not exist here"):
        given_model(model, "rm", tmp_path).check(0)


def test_a_library_that_a_reward_needs_is_missed_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Any) -> None:
        raise ImportError("comparing answers needs math-verify")

    run = reinforced(tiny_sudoku(tmp_path / "start"), tmp_path / "out")
    run.check(0)
    monkeypatch.setattr(SudokuProblems, "reward_functions", missing)
    with pytest.raises(ImportError, match="math-verify"):
        run.check(0)


# Problems and numbers


def test_hidden_cells_are_as_many_as_asked_for_and_held_out_boards_are_others() -> None:
    problems = build_problems(ProblemArguments(hidden_cells=[20, 22], train_rows=30, eval_rows=30))
    rows = problems.prompts(0)
    for row in rows:
        hidden = [i for i, cell in enumerate(row["input_ids"]) if cell == MASK_ID]
        assert 20 <= len(hidden) <= 22 and hidden == np.flatnonzero(row["editable_mask"]).tolist()
    assert len({sum(row["editable_mask"]) for row in rows}) == 3
    _, boards, _ = problems.held_out  # type: ignore[attr-defined]
    assert not {row["solution"] for row in rows} & {"".join(map(str, board)) for board in boards}


MBPP = [
    {
        "task_id": i,
        "text": f"Write a function to add {i}.",
        "code": f"def add_{i}(x):\n    return x + {i}",
        "test_list": [f"assert add_{i}(1) == {i + 1}"],
    }
    for i in range(1, 11)
]


def test_programs_are_rewarded_for_passing_their_tests(tmp_path: Path) -> None:
    if not sandbox_available().available:
        pytest.skip("no sandbox here")
    data = tmp_path / "mbpp.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in MBPP))
    arguments = ProblemArguments(
        task="mbpp",
        base=str(ROOT / "model_cards" / "tiny-math-base"),
        train_data=str(data),
        rewards=["passes", "format"],
        completion_length=40,
        decoding_remedi={"stop_at_eos": False},
    )
    problems = build_problems(arguments)
    rows, rewards = problems.prompts(0, 2), problems.reward_functions()
    assert len(rows) == 2 and len(problems.prompts(0)) > 2
    number = rows[0]["tests"][0].split("_")[1].split("(")[0]
    right = f"```python\ndef add_{number}(x):\n    return x + {number}\n```"
    columns = {name: [rows[0][name]] * 3 for name in ("tests", "entry_points", "prefix")}
    completions = [right, right.replace("return x", "return 2 * x"), "no program"]
    found = [reward(prompts=[""] * 3, completions=completions, **columns) for reward in rewards]
    assert found == [[1.0, 0.0, 0.0], [0.1, 0.1, 0.0]]
    stages = {"a": Stage("remask", settings=TINY), "b": Stage("rl", "a", {**TINY_RL, "max_steps": 1})}
    RemaskStages(arguments, problems, stages, tmp_path).check(0)


def test_planted_errors_are_as_many_as_said_and_keyed_by_the_row() -> None:
    target = np.random.default_rng(0).integers(1, 30, (40, 50))
    editable = np.arange(50) > 9
    keys = list(range(40))
    wrong = planted_errors(target, np.tile(editable, (40, 1)), 0, keys)
    share = float((wrong != target)[:, editable].mean())
    assert (wrong == target)[:, ~editable].all() and 0.12 < share < 0.18
    assert set(np.unique(wrong)) <= set(np.unique(target))
    part = planted_errors(target[5:6], editable[None], 0, keys[5:6])
    assert ((part != target[5]) == (wrong != target)[5:6]).mean() > 0.95  # the same places


def test_the_numbers_of_a_table() -> None:
    """One seed: Wilson's interval of verdicts. Two: the rows' means, and the spread over the seeds."""
    one = Outcome({"right": [1, 1, 0, 0], "forwards": [3, 5, 4, 4]}, [[]] * 4)
    two = Outcome({"right": [1, 0, 0, 0], "forwards": [4, 4, 4, 4]}, [[]] * 4)
    alone = summary([one], ("right",))
    assert alone["right"] == list(wilson_interval(2, 4)) and alone["spread"] is None and alone["forwards"][0] == 4
    both = summary([one, two], ("right",))
    assert both["right"][0] == 0.375 and both["spread"] == pytest.approx(0.25 / math.sqrt(2))
    difference = less([one, one], [two, two])
    assert difference.value == 0.25 and difference.low <= 0.25 <= difference.high and difference.observations == 4


def test_curves_have_a_point_a_logged_update(tmp_path: Path) -> None:
    log = [{"step": i, "reward": 0.1 * i, "reward_std": 0.2, "other": 1.0} for i in (1, 2, 3)] + [{"step": 3}]
    found = rewards_of(log)
    assert found == {"step": [1, 2, 3], "reward": pytest.approx([0.1, 0.2, 0.3]), "reward_std": [0.2] * 3}
    picture = plot_rewards({"rm+rl": [found, found], "remask-sft+rl": [found]}, tmp_path / "new" / "rewards.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_a_run_ends_with_its_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any) -> Path:
        raise ImportError('`plot_rewards` needs matplotlib: pip install "hf-rm[recipes]"')

    monkeypatch.setattr("hf_rm.tasks.remask.report.plot_rewards", missing)
    monkeypatch.setattr(RemaskStages, "train", lambda *args: None)
    monkeypatch.setattr(RemaskStages, "logs", lambda *args: [{"step": 1, "reward": 0.5}])
    monkeypatch.setattr(RemaskStages, "cpu_minutes", lambda *args: None)
    monkeypatch.setattr(RemaskStages, "outcome", lambda *args: (Outcome({"exact": [1.0, 0.0]}, [[], []]), {}))
    records = report(reinforced(tiny_sudoku(tmp_path / "start"), tmp_path / "out"), [0])
    assert json.loads((tmp_path / "out" / "records.json").read_text())["curves"] == records["curves"]
    assert records["curves"]["rm+rl"] == [{"step": [1.0], "reward": [0.5]}]
