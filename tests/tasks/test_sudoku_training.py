"""Runs of the Sudoku recipe: refused before they compute, continued where they stopped, never taken for another."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_rm import RMTrainer, RMTrainingArguments
from hf_rm.tasks.sudoku import arguments as arguments_module
from hf_rm.tasks.sudoku import training as training_module
from hf_rm.tasks.sudoku.arguments import SudokuArguments, check_run
from hf_rm.tasks.sudoku.model import sudoku_config
from hf_rm.tasks.sudoku.training import read_training, run_settings, train_run
from hf_rm.training.stages import CLOCK_FILE, write_json

SMALL = {"num_layers": 4, "intermediate_size": 16, "finish_steps": [4], "finish_pool_max_age": 3}


def small(folder: Path, **changes: object) -> RMTrainingArguments:
    values = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": 4, "max_corruption_rate": 0.2,
        "pool_fraction": 0.5, "pool_start_step": 1, "muon_learning_rate": 0.01, "save_steps": 2, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, **changes,
    }  # fmt: skip
    return RMTrainingArguments(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["hr", "her"]}, "`variants` is .'hr', 'her'.: pass any of no-hr, hr"),
        ({"variants": []}, "`variants`"),
        ({"laws": ["attempts+pol"]}, "`laws` is .'attempts.pol'.: pass any of paper, attempts, paper.pool"),
        ({"decodings": ["foo"]}, "`decodings` is .'foo'.: pass any of eq1, threshold"),
        ({"decodings": []}, "`decodings`"),
        ({"decodings": ["eq1", "eq1"]}, "none twice"),
        ({"revision_decoding": "best"}, "`revision_decoding` is 'best'"),
        ({"seeds": []}, "`seeds`"),
        ({"seeds": [1, 1]}, "`seeds`"),
        ({"eval_boards": 0}, "`eval_boards` is 0: pass a positive"),
        ({"eval_source": "real", "eval_boards": 3000}, "`eval_boards` is 3000, but there are 2000 real boards"),
        ({"eval_source": "web"}, "`eval_source` is 'web'"),
        ({"eval_seed": -1}, "`eval_seed` is -1"),
        ({"revision_steps": 0}, "`revision_steps` is 0"),
        ({"finish_steps": [3, 0]}, "`finish_steps`"),
        ({"finish_pool_fraction": 1.0}, "`finish_pool_fraction` is 1.0"),
        ({"replay_boards": -1}, "`replay_boards` is -1"),
        ({"write_card": "card"}, "`write_card` is 'card', with `eval_only` None"),
        ({"write_card": "card", "eval_only": "a", "eval_source": "real"}, "`eval_source` 'real'"),
        ({"readme": "no/such/file.md"}, "`readme` is 'no/such/file.md', which is no file"),
    ],
)
def test_wrong_arguments_are_named_at_once(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SudokuArguments(**changes)


def test_what_would_stop_a_run_at_its_end_stops_it_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_run(SudokuArguments(), small(tmp_path))
    with pytest.raises(ValueError, match=r"`laws` has 'attempts\+pool', but `pool_fraction` is 0"):
        check_run(SudokuArguments(), small(tmp_path, pool_fraction=0.0))
    check_run(SudokuArguments(laws=["paper"]), small(tmp_path, pool_fraction=0.0))
    with pytest.raises(ValueError, match="`max_steps` is -1"):
        check_run(SudokuArguments(), small(tmp_path, max_steps=-1))
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        with pytest.raises(ValueError, match=f"`{name}` is 0: pass a positive number"):
            check_run(SudokuArguments(), small(tmp_path, **{name: 0}))
    with pytest.raises(ValueError, match="horizon"):  # long enough for the arguments' own law, too short for this one
        check_run(SudokuArguments(laws=["attempts"]), small(tmp_path, law="paper", horizon=3))
    with pytest.raises(OSError, match="missing"):
        check_run(SudokuArguments(also_evaluate=[str(tmp_path / "missing")]), small(tmp_path))
    with pytest.raises(OSError, match="missing"):
        check_run(SudokuArguments(eval_only=str(tmp_path / "missing")), small(tmp_path))
    monkeypatch.setattr(arguments_module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="matplotlib"):
        check_run(SudokuArguments(), small(tmp_path))


CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.mark.parametrize("argument", ["eval_only", "also_evaluate"])
def test_a_model_of_another_task_is_refused_before_it_is_loaded(argument: str, tmp_path: Path) -> None:
    def check(name: Path | str) -> None:
        check_run(
            SudokuArguments(**{argument: str(name) if argument == "eval_only" else [str(name)]}), small(tmp_path)
        )

    check(CARDS / "rm-sudoku")
    for card in ("tiny-math-base", "rm-image-edit"):
        with pytest.raises(ValueError, match=f"`{argument}` names .*{card}.*no Sudoku model .vocabulary"):
            check(CARDS / card)
    mended = sudoku_config(structured=False)
    mended.save_pretrained(tmp_path / "learned")  # its positions are learned, one for each cell
    check(tmp_path / "learned")
    changes = {"mask_token_id": 9}, {"position_groups": [[0] * 80]}, {"position_groups": None}
    for number, change in enumerate(changes):
        config = sudoku_config(structured=False)
        for name, value in change.items():
            setattr(config, name, value)
        config.save_pretrained(tmp_path / str(number))
        with pytest.raises(ValueError, match="no Sudoku model .vocabulary 10, mask"):
            check(tmp_path / str(number))


MATTERS = {
    "loss_clip": "hard", "edit_weight": 2.0, "reveal_weights": "inverse", "lr_scheduler_type": "cosine",
    "warmup_steps": 7, "adam_beta1": 0.8, "adam_beta2": 0.9, "bf16": True, "gradient_accumulation_steps": 2,
    "full_corruption": 0.1, "blank_rows": 0.1, "weight_decay": 0.1, "max_grad_norm": 0.5, "horizon": 12,
    "pool_start": "law", "pool_reveal_threshold": 0.9,
}  # fmt: skip
INDIFFERENT = {
    "logging_steps": 3,
    "save_steps": 1,
    "save_total_limit": 1,
    "disable_tqdm": False,
    "output_dir": "other",
}


@pytest.mark.parametrize("name", MATTERS)
def test_every_setting_that_matters_makes_another_run(name: str, tmp_path: Path) -> None:
    arguments = SudokuArguments(**SMALL)
    plain, changed = (run_settings(arguments, small(tmp_path, **given), "hr") for given in ({}, {name: MATTERS[name]}))
    assert plain != changed and {key for key in plain if plain[key] != changed.get(key)} == {name}


def test_what_does_not_matter_makes_no_other_run(tmp_path: Path) -> None:
    arguments = SudokuArguments(**SMALL)
    plain, changed = (run_settings(arguments, small(tmp_path, **given), "hr") for given in ({}, INDIFFERENT))
    assert plain == changed
    decoded = replace(arguments, revision_steps=3, decodings=["eq1"], eval_seed=4, replay_boards=0)
    assert run_settings(decoded, small(tmp_path), "hr") == plain


def test_every_argument_of_the_recipe_is_known_to_matter_or_not() -> None:
    """A new argument has to be sorted: what decides the weights must be among the run's settings."""
    indifferent = {
        "variants", "laws", "seeds", "revision_steps", "revision_decoding", "eval_only", "also_evaluate",
        "eval_source", "eval_boards", "eval_seed", "decodings", "ceiling_dir", "replay_boards", "write_card", "readme",
        "records",
    }  # fmt: skip
    assert {item.name for item in fields(SudokuArguments)} == indifferent | set(training_module._RECIPE_SETTINGS)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


class Stop(TrainerCallback):
    """Ends the process, so to speak, before a step of one stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def on_step_begin(self, args, state, control, **kwargs):
        if Path(args.output_dir).name == self.stage and state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_finishing_stage_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = SudokuArguments(**SMALL)
    whole = train_run(arguments, small(tmp_path / "whole"), "hr-decay-her", "attempts+pool", 3, command="one run")
    stopper = Stop("finish1", 3)
    seen: list[str] = []

    class Trainer(RMTrainer):
        def __init__(self, model, args, **kwargs):
            kwargs["callbacks"] = [*kwargs["callbacks"], stopper]
            super().__init__(model, args, **kwargs)

        def training_step(self, *values, **named):
            seen.append(Path(self.args.output_dir).name)
            return super().training_step(*values, **named)

    monkeypatch.setattr(training_module, "RMTrainer", Trainer)
    parts = small(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train_run(arguments, parts, "hr-decay-her", "attempts+pool", 3)
    folder = tmp_path / "parts" / whole.name
    assert (folder / "finish1" / "checkpoint-2").is_dir() and read_training(folder) is None
    noted = {name: json.loads((folder / name / CLOCK_FILE).read_text()) for name in ("", "finish1")}
    for name, clock in noted.items():  # as if the first process had taken so long
        write_json(folder / name / CLOCK_FILE, {**clock, "cpu_seconds": 600.0})
    stopper.step, seen[:] = -1, []
    assert train_run(arguments, parts, "hr-decay-her", "attempts+pool", 3) == folder
    assert seen == ["finish1"] * 2  # steps 3 and 4; nothing of the main stage
    ours, theirs = weights(folder), weights(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    resumed = read_training(folder)
    assert resumed is not None and all(10 < stage["cpu_minutes"] < 11 for stage in resumed["stages"])
    known = read_training(whole)
    assert known is not None and known["command"] == "one run" and known["settings"]["seed"] == 3
    assert [stage["steps"] for stage in known["stages"]] == [4, 4]
    assert known["train_cpu_minutes"] == pytest.approx(sum(s["cpu_minutes"] for s in known["stages"]), abs=0.011)

    del seen[:]
    assert train_run(arguments, parts, "hr-decay-her", "attempts+pool", 3) == folder and not seen
    with pytest.raises(ValueError, match="holds another run: loss_clip is reported there and none here"):
        train_run(arguments, small(tmp_path / "parts", loss_clip="none"), "hr-decay-her", "attempts+pool", 3)
