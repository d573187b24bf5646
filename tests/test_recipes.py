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
from hf_rm.tasks.sudoku.arguments import SudokuArguments, check_run
from hf_rm.tasks.sudoku.card import blocks
from hf_rm.tasks.sudoku.report import ablation_markdown

ROOT = Path(__file__).parents[1]
CARD = ROOT / "model_cards" / "rm-sudoku"
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
    assert json.loads((run / "generation_config.json").read_text())["reveal"] == "threshold"

    again = launch(RECIPE, "--config", str(config), cwd=tmp_path)
    assert again.returncode == 0 and "finished before" in again.stdout
    assert "train_runtime" not in again.stdout

    other = launch(RECIPE, "--config", str(config), "--max_steps", "4", cwd=tmp_path)
    assert other.returncode != 0
    assert "max_steps is 3 there and 4 here" in other.stderr


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "recipes" / "configs").glob("sudoku-*.yaml"))])
def test_configurations_name_known_arguments(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments, training = parsed("--config", str(ROOT / "recipes" / "configs" / name))
    check_run(arguments, training)
    assert arguments.eval_boards >= (500 if name == "sudoku-demo.yaml" else 1000)  # the demo has eight minutes for all
    if name != "sudoku-final.yaml":
        assert training.min_corruption_rate * 81 < 4 <= 20 <= training.max_corruption_rate * 81 < 21
        assert training.pool_start_step < training.max_steps


def parsed(*words):
    from trl import TrlParser

    return TrlParser((SudokuArguments, RMTrainingArguments)).parse_args_and_config(list(words))


def sudoku_recipe() -> ModuleType:
    path = list(sys.path)
    specification = importlib.util.spec_from_file_location("sudoku_recipe", RECIPE)
    module = importlib.util.module_from_spec(specification)
    sys.modules["sudoku_recipe"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    sys.path[:] = path
    return module


def tiny_run(folder, **changes):
    """Arguments of a run of three steps."""
    names = {field.name for field in fields(SudokuArguments)}
    settings = {**TINY, "output_dir": str(folder), "disable_tqdm": True, **changes}
    arguments = SudokuArguments(**{name: value for name, value in settings.items() if name in names})
    return arguments, RMTrainingArguments(**{name: value for name, value in settings.items() if name not in names})


def test_what_is_evaluated_is_what_was_saved_without_the_trainers_autocast(tmp_path, monkeypatch):
    recipe, seen = sudoku_recipe(), {}
    ids = torch.randint(0, 10, (2, 81), generator=torch.Generator().manual_seed(0))

    def evaluate_model(arguments, model, folder, **labels):
        seen["logits"] = model(ids).logits
        return []

    monkeypatch.setattr(recipe, "evaluate_model", evaluate_model)
    recipe.train_and_evaluate(*tiny_run(tmp_path, bf16=True), "no-hr", "attempts", 0)
    saved = AutoModel.from_pretrained(tmp_path / "no-hr_attempts_seed0")
    assert torch.equal(seen["logits"], saved(ids).logits)


@pytest.mark.slow
def test_an_evaluation_of_other_settings_is_made_anew_without_training(tmp_path, monkeypatch):
    recipe = sudoku_recipe()
    run = "no-hr", "attempts", 0
    (first,) = recipe.train_and_evaluate(*tiny_run(tmp_path, finish_steps=[2]), *run)
    assert first["steps"] == 5 and first["train_cpu_minutes"] > 0

    monkeypatch.setattr("hf_rm.tasks.sudoku.training.run_stage", None)  # a training would fail
    folder = tmp_path / "no-hr_attempts_seed0"
    changes = {"finish_steps": [2], "revision_steps": 3, "decodings": ["threshold"], "revision_decoding": "eq1"}
    (other,) = recipe.train_and_evaluate(*tiny_run(tmp_path, **changes), *run)
    assert other["decoding"] == "threshold" and other["train_cpu_minutes"] == first["train_cpu_minutes"]
    saved = AutoModel.from_pretrained(folder).generation_config
    assert (saved.max_steps, saved.reveal, saved.editable) == (3, "all", "all")

    monkeypatch.setattr(recipe, "evaluate_model", None)  # and so would another evaluation
    (known,) = recipe.train_and_evaluate(*tiny_run(tmp_path, **changes), *run)
    assert json.dumps(known) == json.dumps(other)  # there are nan in them
    ceilings = {**changes, "ceiling_dir": str(ROOT / "benchmarks" / "results"), "eval_seed": 20261122}
    with pytest.raises(TypeError):  # other boards
        recipe.train_and_evaluate(*tiny_run(tmp_path, **ceilings), *run)


def launched(recipe, monkeypatch, *words):
    """The recipe as its command line launches it, in this process."""
    monkeypatch.setattr(sys, "argv", ["sudoku.py", *words])
    recipe.main()


def test_eval_only_writes_where_git_does_not_look(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--eval_only", str(CARD), "--eval_boards", "4", "--eval_seed", "5", "--use_cpu", "true"]
    launched(sudoku_recipe(), monkeypatch, *words, "--report_to", "none", "--replay_boards", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]  # it was trainer_output
    out = tmp_path / "outputs" / "sudoku"
    assert {path.name for path in out.iterdir()} == {"records.json", "rounds.png", "replay.html"}
    first, second = json.loads((out / "records.json").read_text())
    assert first["name"] == f"{CARD} (eq1)" and second["decoding"] == "threshold" and first["boards"] == 4
    printed = capsys.readouterr().out
    assert "Sudoku revision, 4 generated boards, seed 5" in printed and "own trajectories" in printed


@pytest.mark.slow
def test_also_evaluate_puts_another_model_into_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "also_evaluate": [str(CARD)], "output_dir": "out"}))
    launched(sudoku_recipe(), monkeypatch, "--config", str(config))
    ours, shipped = json.loads((tmp_path / "out" / "records.json").read_text())
    assert ours["seed"] == 0 and shipped["name"] == f"{CARD} (eq1)" and "seed" not in shipped
    assert shipped["exact_accuracy"] > ours["exact_accuracy"]


def test_a_missing_model_is_named_before_the_training(tmp_path, monkeypatch):
    recipe = sudoku_recipe()
    monkeypatch.setattr(recipe, "train_run", None)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "also_evaluate": ["no/such-model"], "output_dir": str(tmp_path)}))
    with pytest.raises(OSError, match="such-model"):
        launched(recipe, monkeypatch, "--config", str(config))


def test_an_ablation_replaces_its_table_and_its_records(tmp_path, capsys):
    saved = ROOT / "benchmarks" / "results" / "sudoku_ablation.json"
    records = json.loads(saved.read_text())
    for record in records:
        record["exact_accuracy"] -= 0.5
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    arguments = SudokuArguments(
        variants=["no-hr", "hr"],
        seeds=[0, 1, 2],
        decodings=["eq1"],
        readme=str(readme),
        records=str(tmp_path / "a.json"),
    )
    sudoku_recipe().report(arguments, records, tmp_path / "out")
    assert f"<!-- ablation -->\n{ablation_markdown(records)}\n<!-- /ablation -->" in readme.read_text()
    assert json.loads((tmp_path / "a.json").read_text())[3]["exact_accuracy"] == records[3]["exact_accuracy"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rounds.png"]
    printed = capsys.readouterr().out
    assert "mean ± standard deviation over seeds" in printed and "Recall along their own trajectories" in printed


@pytest.mark.slow
def test_one_command_publishes_a_model_with_its_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = shutil.copytree(CARD, tmp_path / "trained")
    shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    ceilings = str(ROOT / "benchmarks" / "results")
    words = ["--eval_only", "trained", "--write_card", "cards/rm-mine", "--readme", "README.md", "--eval_boards", "6"]
    words += ["--ceiling_dir", ceilings, "--use_cpu", "true", "--report_to", "none"]
    launched(sudoku_recipe(), monkeypatch, *words)

    card = tmp_path / "cards" / "rm-mine"
    document = json.loads((card / "records.json").read_text())
    names = [
        f"rm-mine, {source} ({decoding})" for source in ("generated", "real") for decoding in ("eq1", "threshold")
    ]
    assert [record["name"] for record in document["records"]] == names
    assert document["command"].startswith("accelerate launch recipes/sudoku.py --eval_only trained --write_card")
    assert document["training"] == json.loads((trained / "finished.json").read_text())
    assert document["decoding"] == "threshold" and "replay_page" not in document["records"][0]
    text, readme = (card / "README.md").read_text(), (tmp_path / "README.md").read_text()
    for name, block in blocks(document).items():
        assert block in text, name
        assert f"<!-- {name} -->\n{block}\n<!-- /{name} -->" in readme, name
    assert (card / "rounds.png").read_bytes()[:4] == b"\x89PNG"
    ours, theirs = (AutoModel.from_pretrained(folder).state_dict() for folder in (card, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    kept = {"modeling_rm.py", "tokenizer.json", "generation_config.json", "finished.json"}
    assert kept <= {path.name for path in card.iterdir()}
