"""The recipes as a user launches them: in their own process, from the command line."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from transformers import AutoModel

from hf_rm import RMTrainingArguments

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "sudoku.py"
TINY = {
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "intermediate_size": 16,
    "min_corruption_rate": 0.0493,
    "max_corruption_rate": 0.247,
    "pool_fraction": 0.5,
    "eval_boards": 6,
    "eval_seed": 5,
    "decodings": ["eq1"],
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
}


def launch(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=cwd)


@pytest.mark.skipif("math" in sys.builtin_module_names, reason="this Python's math is built in: nothing can shadow it")
def test_a_recipe_named_math_does_not_shadow_the_standard_library(tmp_path):
    shutil.copy(RECIPE, tmp_path / "sudoku.py")
    (tmp_path / "math.py").write_text("raise ImportError('the recipe was imported in place of the library')\n")
    guarded = launch(tmp_path / "sudoku.py", "--help", cwd=tmp_path)
    assert guarded.returncode == 0, guarded.stderr[-2000:]
    assert "--eval_only" in guarded.stdout

    text = RECIPE.read_text()
    start = text.index("sys.path[:]")
    (tmp_path / "sudoku.py").write_text(text[:start] + text[text.index("\n", start) :])
    unguarded = launch(tmp_path / "sudoku.py", "--help", cwd=tmp_path)
    assert unguarded.returncode != 0, "without the guard the test must fail, or it proves nothing"


@pytest.mark.slow
def test_train_evaluate_and_report(tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "output_dir": str(tmp_path / "out")}))
    first = launch(RECIPE, "--config", str(config), cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "Sudoku revision, 6 generated boards, seed 5" in first.stdout
    assert "paper, hr-decay-her" in first.stdout and "93.40" in first.stdout
    run = tmp_path / "out" / "hr-decay-her_attempts+pool_seed0"
    assert {"model.safetensors", "modeling_rm.py", "tokenizer.json", "replay.html"} <= {p.name for p in run.iterdir()}
    (record,) = json.loads((tmp_path / "out" / "records.json").read_text())
    assert record["boards"] == 6 and record["steps"] == 3

    again = launch(RECIPE, "--config", str(config), cwd=tmp_path)
    assert again.returncode == 0 and "finished before" in again.stdout
    assert "train_runtime" not in again.stdout

    other = launch(RECIPE, "--config", str(config), "--max_steps", "4", cwd=tmp_path)
    assert other.returncode != 0
    assert "max_steps is 3 there and 4 here" in other.stderr


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "recipes" / "configs").glob("sudoku-*.yaml"))])
def test_configurations_name_known_arguments(name, monkeypatch):
    from trl import TrlParser

    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    arguments, training = TrlParser((sudoku_recipe().SudokuArguments, RMTrainingArguments)).parse_args_and_config(
        ["--config", str(ROOT / "recipes" / "configs" / name)]
    )
    assert training.min_corruption_rate * 81 < 4 <= 20 <= training.max_corruption_rate * 81 < 21
    assert training.pool_start_step < training.max_steps
    assert arguments.eval_boards >= (500 if name == "sudoku-demo.yaml" else 1000)  # the demo has eight minutes for all


def sudoku_recipe() -> ModuleType:
    path = list(sys.path)
    specification = importlib.util.spec_from_file_location("sudoku_recipe", RECIPE)
    module = importlib.util.module_from_spec(specification)
    sys.modules["sudoku_recipe"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_what_is_evaluated_is_what_was_saved_without_the_trainers_autocast(tmp_path, monkeypatch):
    recipe, seen = sudoku_recipe(), {}
    ids = torch.randint(0, 10, (2, 81), generator=torch.Generator().manual_seed(0))

    def evaluate_model(arguments, model, folder, **labels):
        seen["logits"] = model(ids).logits
        return []

    monkeypatch.setattr(recipe, "evaluate_model", evaluate_model)
    monkeypatch.setattr(recipe, "recall_by_history", lambda *boards: {})
    monkeypatch.setattr(recipe, "recall_boards", lambda arguments: ())
    names = {field.name for field in fields(recipe.SudokuArguments)}
    settings = {**TINY, "output_dir": str(tmp_path), "bf16": True, "disable_tqdm": True}
    arguments = recipe.SudokuArguments(**{name: value for name, value in settings.items() if name in names})
    training = RMTrainingArguments(**{name: value for name, value in settings.items() if name not in names})
    recipe.train_and_evaluate(arguments, training, "no-hr", "attempts", 0)
    saved = AutoModel.from_pretrained(tmp_path / "no-hr_attempts_seed0")
    assert torch.equal(seen["logits"], saved(ids).logits)
