"""recipes/remedi.py as a user launches it, and its configurations."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import TrlParser

from hf_rm import RemaskSFTArguments, RMTrainingArguments
from hf_rm.training.grpo import RemaskGRPOConfig

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "configs"
SMALL = {"train_rows": 64, "eval_rows": 4, "num_layers": 2, "max_steps": 2, "num_generations": 4, "save_steps": 2}


def recipe() -> Any:
    path = list(sys.path)
    specification = importlib.util.spec_from_file_location("remedi_recipe", ROOT / "recipes" / "remedi.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["remedi_recipe"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    sys.path[:] = path
    return module


def small(name: str, folder: Path, **changes: Any) -> Path:
    """A shipped configuration, made small."""
    settings = yaml.safe_load((CONFIGS / f"remedi-{name}.yaml").read_text())
    settings |= {"output_dir": str(folder / "out"), "per_device_train_batch_size": 8, **SMALL, **changes}
    settings["sft"] |= {"max_steps": 2, "per_device_train_batch_size": 8}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def launch(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "recipes" / "remedi.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=folder)


@pytest.mark.parametrize("name", ["sudoku", "words", "llada-8b"])
def test_configurations_name_known_arguments(name: str, tmp_path: Path) -> None:
    module = recipe()
    text = (CONFIGS / f"remedi-{name}.yaml").read_text().replace("bf16: true", "bf16: false")  # this may be a CPU
    (tmp_path / "config.yaml").write_text(text)
    arguments, config = TrlParser((module.RemeDiArguments, RemaskGRPOConfig)).parse_args_and_config(
        ["--config", str(tmp_path / "config.yaml")]
    )
    assert config.decoding["steps"] >= arguments.decoding_rm["max_steps"]  # equal forwards
    shared = {**arguments.sft, "bf16": False, "use_cpu": True, "report_to": "none"}
    RMTrainingArguments(str(tmp_path), **shared, **arguments.sft_rm)
    RemaskSFTArguments(str(tmp_path), **shared, **arguments.sft_remedi)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["remedi", "rm"])
def test_both_stages_on_sudoku(policy: str, tmp_path: Path) -> None:
    decoding = {"decoding": {"block_length": 81, "steps": 4}, "decoding_rm": {"max_steps": 4}}
    config = small("sudoku", tmp_path, **decoding)
    first = launch("--config", str(config), "--policy", policy, folder=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    records = json.loads((tmp_path / "out" / policy / "records.json").read_text())
    assert records["sft"]["num_forwards"][0] <= 4 and 0 <= records["rl"]["sudoku_conflicts"][0] <= 1
    assert len(records["curve"]) == 2 and records["curve"][0]["rollout/num_forwards"] <= 4
    again = launch("--config", str(config), "--policy", policy, "--skip_rl", "true", folder=tmp_path)
    assert again.returncode == 0 and "train_runtime" not in again.stdout, again.stderr[-3000:]
    assert json.loads((tmp_path / "out" / policy / "records.json").read_text())["sft"] == records["sft"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["remedi", "rm"])
def test_both_stages_on_word_problems(policy: str, tmp_path: Path) -> None:
    config = small("words", tmp_path, base=str(ROOT / "model_cards" / "tiny-math-base"), max_steps=1)
    done = launch("--config", str(config), "--policy", policy, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    records = json.loads((tmp_path / "out" / policy / "records.json").read_text())
    assert records["rl"]["num_forwards"][0] <= 32 and set(records["rl"]) == set(records["sft"])
    assert 0 <= records["rl"]["math_answer"][0] <= 1


def test_a_draft_is_not_for_remedi(tmp_path: Path) -> None:
    config = small("sudoku", tmp_path, canvas="draft")
    refused = launch("--config", str(config), folder=tmp_path)
    assert refused.returncode != 0 and "pass --policy rm" in refused.stderr
