"""The text recipes as a user launches them: files of the published schemas, a network of a few thousand weights."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from isolation import isolated
from safetensors.torch import load_file
from tiny_text import character_llada

from hf_rm import ReflectiveGenerationConfig, RMTrainingArguments
from hf_rm.evaluation import sandbox
from hf_rm.evaluation.sandbox import SandboxSupport, SandboxUnavailableError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path for path in (ROOT / "recipes" / "configs").glob("*.yaml"))
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "horizon": 8,
    "max_length": 400,
    "completion_length": 48,
    "eval_samples": 4,
    "recall_samples": 4,
    "replay_samples": 2,
    "top_k": 5,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "sft_decoding": '{"preset": "llada", "steps": 4}',
    "rm_decoding": '{"reveal": "confidence", "steps": 3, "max_steps": 4}',
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A LLaDA that reads characters."""
    return character_llada(tmp_path_factory.mktemp("characters"))


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def launch(recipe: str, base: Path, folder: Path, *flags: str, **settings) -> str:
    """The recipe's printed lines; its records lie in `folder`."""
    values = {**SMALL, "base": base, "output_dir": folder, **settings}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "recipes" / f"{recipe}.py"), *words, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_math_on_gsm8k(tmp_path, base):
    rows = [{"question": f"{i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(40)]
    data = write(tmp_path / "train.jsonl", rows)
    config = tmp_path / "small.yaml"
    extra = write(tmp_path / "extra.jsonl", [{"problem": "5?", "solution": r"It is \boxed{5}."}])
    chinese = write(
        tmp_path / "cmath.jsonl", [{"question": f"3加{i}?", "golden": 3 + i, "grade": 1} for i in range(5)]
    )
    config.write_text(
        f"systems: [base, sft, rm]\nprobe: masked\nmore_train: [math={extra}]\nmore_tests: [cmath={chinese}]\n"
    )
    shown = launch("math", base, tmp_path / "out", "--config", str(config), task="gsm8k", train_data=data)
    assert "gsm8k, seed 0" in shown and "cmath, seed 0" in shown and "Re-mask recall" in shown
    records = json.loads((tmp_path / "out" / "records.json").read_text())
    assert [(row["system"], row["samples"]) for row in records["systems"]] == [("base", 4), ("sft", 4), ("rm", 4)]
    assert [row["samples"] for row in records["more_tests"]["cmath"]["systems"]] == [4, 4, 4]
    again = launch("math", base, tmp_path / "out", "--config", str(config), task="gsm8k", train_data=data)
    assert "train_runtime" in shown and "train_runtime" not in again


@pytest.mark.slow
def test_the_embedded_default(tmp_path):
    """The shipped configuration on the shipped base, with two steps and eight problems."""
    small = {"sft_steps": 2, "max_steps": 2, "made_train": 8, "made_test": 8, "per_device_train_batch_size": 4}
    small |= {"recall_samples": 8, "replay_samples": 1, "output_dir": tmp_path / "out"}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "recipes" / "math.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "word-problems, seed 0" in done.stdout and "Re-mask recall" in done.stdout
    records = json.loads((tmp_path / "out" / "records.json").read_text())
    systems = yaml.safe_load((ROOT / "recipes" / "configs" / "math-tiny.yaml").read_text())["systems"]
    assert [(row["system"], row["samples"]) for row in records["systems"]] == [(name, 8) for name in systems]
    assert all(0 < row["forwards"] <= 32 for row in records["systems"])


def numbers(folder: Path) -> dict:
    """What a run came to, without what it took."""
    records = json.loads((folder / "records.json").read_text())
    [system] = records["systems"]
    return {name: value for name, value in system.items() if not name.endswith("_seconds")}


def samples(folder: Path) -> list[dict]:
    [log] = (folder / "seed0" / "evaluation").rglob("samples.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()[1:]]


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_stage_ends_where_it_would_have(tmp_path):
    script = ROOT / "tests" / "tasks" / "script_killed.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "whole 0, probe -9, harvest -9, training -9, evaluation -9, again 0"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert numbers(killed) == numbers(whole) and samples(killed) == samples(whole)
    for stage in ("start", "rm-harvested"):
        ours, theirs = (load_file(folder / "seed0" / stage / "model.safetensors") for folder in (killed, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours), stage
    for cache in ("top-k", "harvest"):
        headers = [json.loads((folder / "seed0" / cache / "cache.json").read_text()) for folder in (killed, whole)]
        assert headers[0] == headers[1] and len(headers[0]["shards"]) == 3


@isolated
def test_mbpp(tmp_path, base):
    rows = [
        {
            "task_id": i,
            "text": f"Add {i}.",
            "code": f"def f{i}(x):\n  return x+{i}",
            "test_list": [f"assert f{i}(1) == {i + 1}"],
        }
        for i in range(1, 11)
    ]
    human = {
        "task_id": "HumanEval/0",
        "prompt": "def double(x):\n",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "double",
    }
    data = {
        "train_data": write(tmp_path / "mbpp.jsonl", rows),
        "more_tests": f"humaneval={write(tmp_path / 'humaneval.jsonl', [human])}",
    }
    shown = launch("mbpp", base, tmp_path / "out", "--systems", "rm", split_seed=3, fresh_base=True, **data)
    assert (tmp_path / "out" / "base" / "model.safetensors").exists()
    assert "mbpp, seed 0" in shown and "humaneval, seed 0" in shown
    records = json.loads((tmp_path / "out" / "records.json").read_text())
    [record], [other] = records["systems"], records["more_tests"]["humaneval"]["systems"]
    assert (record["samples"], other["samples"]) == (4, 1)


def module_of(recipe: str) -> ModuleType:
    """A recipe as a module."""
    path, name = list(sys.path), f"{recipe}_recipe"
    specification = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{recipe}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    sys.path[:] = path
    return module


def arguments_of(recipe: str) -> tuple[type, ...]:
    """The dataclasses that a recipe parses, by its own words."""
    module = module_of(recipe)
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return next(kind for kind in own if kind.__name__.endswith("Arguments")), RMTrainingArguments


@pytest.fixture
def main(base, tmp_path, monkeypatch):
    """Run a recipe in this process, which shall not get to its data."""

    def run(recipe: str, **settings) -> None:
        values = {**SMALL, "base": base, "output_dir": tmp_path / "out", "train_data": tmp_path / "none.jsonl"}
        words = [word for name, value in {**values, **settings}.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *words])
        module_of(recipe).main()

    return run


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("math", {"task": "gsm8k", "history_decay": 1.5}, "`history_decay` is 1.5"),
        ("math", {"task": "gsm8k", "rm_decoding": "{bad"}, "`rm_decoding` is '{bad', which is no JSON"),
        ("math", {"task": "gsm8k", "rm_decoding": '{"steps": 0}'}, "`steps` is 0"),
        ("math", {"train_data": "", "made_test": 0}, "`made_test` of the recipe. is 0: pass an integer above 0"),
        ("mbpp", {"timeout": -1}, "timeout is -1.0; pass a number of at least 0.01"),
        ("mbpp", {"timeout": "nan"}, "timeout is nan"),
        ("mbpp", {"eval_samples": 0}, "`eval_samples` is 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(main, tmp_path, recipe, settings, message):
    with pytest.raises(ValueError, match=message):
        main(recipe, **settings)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("isolation", "error"), [("full", SandboxUnavailableError), ("none", FileNotFoundError)])
def test_mbpp_begins_only_where_it_can_grade_or_need_not_be_safe(main, tmp_path, monkeypatch, isolation, error):
    """With isolation="none" it gets as far as to the data, which are not there."""
    missing = SandboxSupport(False, f"a user namespace. {sandbox.REMEDY}", (), False)
    monkeypatch.setattr(sandbox, "sandbox_available", lambda: missing)
    with pytest.raises(error, match="none"):
        main("mbpp", isolation=isolation, fresh_base=True)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("recipe", ["math", "mbpp", "arc"])
def test_the_help_can_be_read(recipe):
    """A percent sign in a help text is a format to argparse."""
    from trl import TrlParser

    shown = " ".join(TrlParser(arguments_of(recipe)).format_help().split())
    assert "rm-paper: RM under the paper's law, with law paper and pool_fraction 0.0 whatever is given" in shown
    assert recipe != "mbpp" or "(default: 20261122)" in shown.split("--split_seed")[-1]


@pytest.mark.parametrize(
    "config",
    [path for path in CONFIGS if path.stem.split("-")[0] in ("math", "gsm8k", "mbpp")],
    ids=lambda path: path.stem,
)
def test_configurations_are_what_their_first_lines_say(config, monkeypatch):
    from trl import TrlParser

    command = next(line for line in config.read_text().splitlines() if "accelerate launch" in line)
    recipe = command.split("recipes/")[-1 if command.count("recipes/") == 1 else -2].split(".py")[0]
    monkeypatch.setattr(RMTrainingArguments, "__post_init__", lambda self: None)  # bf16 needs a GPU at hand
    arguments, training = TrlParser(arguments_of(recipe)).parse_args_and_config(["--config", str(config)])
    assert training.output_dir == f"outputs/{config.stem}"
    assert training.max_steps > 0
    rm, sft = arguments.decoding("rm"), arguments.decoding("sft")
    for settings in (rm, sft):
        ReflectiveGenerationConfig(**settings)  # raises for what cannot work
    assert rm["max_steps"] == (sft.get("max_steps") or sft["steps"]), "the same bound on forwards"
    assert rm.get("steps", 0) < rm["max_steps"], "a schedule leaves forwards for revision"
