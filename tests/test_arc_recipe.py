"""The recipe of multiple choice: what it reads back, goes on with, counts and refuses."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from launching import torchrun
from tiny_text import character_llada
from trl import TrlParser

from hf_rm import RMTrainingArguments, processes
from hf_rm.evaluation import multiple_choice
from hf_rm.processes import own_share

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "arc.py"
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("arc-*.yaml"))
DECODING = ["rm_decoding", "curve_forwards", "training_free", "recall_samples", "replay_samples"]
LIVELY = {"initializer_range": 0.5}  # by default random networks hardly prefer anything
WORDS = ("stone", "water", "air", "fire")


@pytest.fixture(scope="module")
def arc() -> ModuleType:
    """The recipe as a module."""
    path, specification = list(sys.path), importlib.util.spec_from_file_location("arc_recipe", RECIPE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["arc_recipe"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks of the same settings with other weights."""
    return [character_llada(tmp_path_factory.mktemp(f"base{seed}"), seed, **LIVELY) for seed in (0, 1)]


def questions(folder: Path, name: str, *numbers: int, extra: str = "") -> Path:
    rows = [
        {
            "id": f"q{i}",
            "question": f"Which is number {i}?{extra}",
            "choices": {"text": [w + "xyz"[: (i + k) % 4] for k, w in enumerate(WORDS)], "label": list("ABCD")},
            "answerKey": "ADBCCABDDBAC"[i % 12],
        }
        for i in numbers
    ]
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(folder: Path, base: Path, **settings: Any) -> list[str]:
    held_out = folder / "test.jsonl"
    values = {
        "base": base,
        "systems": "base",
        "train_data": questions(folder, "train.jsonl", *range(10, 22)),
        "test_data": held_out if held_out.exists() else questions(folder, "test.jsonl", *range(12)),
        "output_dir": folder / "out",
        "completion_length": 12,
        "max_length": 200,
        "eval_batch_size": 8,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "horizon": 8,
        "top_k": 5,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        **settings,
    }
    return [word for name, value in values.items() for word in (f"--{name}", *str(value).split())]


@pytest.fixture
def launch(arc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the recipe here, and return the systems of its records."""

    def run(base: Path, **settings: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["arc.py", *flags(tmp_path, base, **settings)])
        arc.main()
        folder = settings.get("output_dir", tmp_path / "out")
        systems: list[dict[str, Any]] = json.loads((folder / "records.json").read_text())["systems"]
        return systems

    return run


def test_every_system_chooses_and_is_compared(
    launch: Any, bases: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    systems = launch(bases[0], systems="base sft rm")
    assert [one["system"] for one in systems] == ["base", "sft", "rm"]
    for one in systems:
        assert list(one["right"]) == [f"q{i}" for i in range(12)] and one["too_long"] == []
        assert one["accuracy"][0] == pytest.approx(sum(one["right"].values()) / 12)
    assert [(one["less_base"] is None, one["less_sft"] is None) for one in systems] == [
        (True, False), (False, True), (False, False)
    ]  # fmt: skip
    assert systems[2]["less_base"][0] == pytest.approx(systems[2]["accuracy"][0] - systems[0]["accuracy"][0])
    shown = capsys.readouterr().out
    assert "Multiple choice by likelihood" in shown and "rm, seed 0" in shown and "less base" in shown


def test_another_models_answers_are_not_read_back(launch: Any, bases: list[Path], tmp_path: Path) -> None:
    first = launch(bases[0])
    with pytest.raises(ValueError, match="another evaluation, which differs in weights"):
        launch(bases[1])
    assert launch(bases[1], output_dir=tmp_path / "elsewhere")[0]["right"] != first[0]["right"]
    assert launch(bases[0]) == first


def test_answers_to_other_questions_are_not_read_back(launch: Any, bases: list[Path], tmp_path: Path) -> None:
    launch(bases[0])
    questions(tmp_path, "test.jsonl", *range(12), extra=" Really?")  # the same path, the same keys
    with pytest.raises(ValueError, match="another evaluation, which differs in problems"):
        launch(bases[0])


def test_what_is_scored_is_not_scored_again(
    launch: Any, bases: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A kill costs the batch it falls into: two questions of four choices at a time here."""
    scored: list[int] = []
    real = multiple_choice._masked_scores

    def stopped(model: Any, rows: Any) -> Any:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(rows))
        return real(model, rows)

    monkeypatch.setattr(multiple_choice, "_masked_scores", stopped)
    with pytest.raises(KeyboardInterrupt):
        launch(bases[0])
    assert scored == [8, 8, 8]
    again: list[int] = []
    monkeypatch.setattr(multiple_choice, "_masked_scores", lambda m, rows: again.append(len(rows)) or real(m, rows))
    resumed = launch(bases[0])
    assert again == [8, 8, 8], "six of twelve questions were there"
    monkeypatch.setattr(multiple_choice, "_masked_scores", lambda *arguments: pytest.fail("scored again"))
    assert launch(bases[0]) == resumed
    assert launch(bases[0], normalise="characters")[0]["right"].keys() == resumed[0]["right"].keys()
    monkeypatch.setattr(multiple_choice, "_masked_scores", real)
    assert launch(bases[0], output_dir=tmp_path / "whole") == resumed


def test_a_question_that_is_too_long_is_counted_and_named(
    launch: Any, bases: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = questions(tmp_path, "test.jsonl", *range(6))
    path.write_text(path.read_text().replace("number 4", "number 4" + "!" * 120))
    short = character_llada(tmp_path / "short", max_position_embeddings=100)
    (one,) = launch(short)
    assert one["too_long"] == ["q4"] and one["right"]["q4"] is None
    assert one["questions"] == 6 and one["accuracy"][0] == sum(map(bool, one["right"].values())) / 6
    assert "1 of 6 questions are too long, they count as wrong: ['q4']" in capsys.readouterr().out


def test_bad_records_and_ids_that_are_there_twice_are_counted(
    launch: Any, bases: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = questions(tmp_path, "test.jsonl", *range(5))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    bad = [{**rows[0], "id": "bad", "answerKey": "E"}, rows[1], {**rows[2], "question": "Another?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*bad[:1], *rows, *bad[1:]]))
    (one,) = launch(bases[0], eval_samples=4)
    assert [*one["right"]] == ["q0", "q1", "q2", "q3"]
    shown = capsys.readouterr().out
    assert f"{path}: 1 of 8 records left out: test.jsonl, record 1 has the 'answerKey' 'E'" in shown
    assert f"{path}: 1 duplicates dropped" in shown
    assert f"{path}: 1 questions have the id of another one, and are left out" in shown


def test_of_two_training_questions_with_one_id_the_first_stays(arc: ModuleType, tmp_path: Path) -> None:
    train = questions(tmp_path, "train.jsonl", 2, 3, 4)
    again = questions(tmp_path, "again.jsonl", 3, extra=" Really?")
    train.write_text(train.read_text() + again.read_text())
    task = arc.ArcTask(str(train), str(questions(tmp_path, "test.jsonl", 4)))
    assert [sample.prompt for sample in task.train()] == [f"Question: Which is number {i}?\nAnswer:" for i in (2, 3)]
    assert task.remarks == [
        f"{train}: 1 questions have the id of another one, and are left out",
        f"{train}: 1 questions are held out, and not trained on",
    ]
    with pytest.raises(ValueError, match="every question of .*train.jsonl is held out: pass other `train_data`"):
        arc.ArcTask(str(train), str(train)).train()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"likelihood_samples": 0}, "`likelihood_samples` is 0: pass an integer of at least 1, or leave it out"),
        ({"normalise": "words"}, "`normalise` is 'words': pass one of none, tokens, characters"),
        ({"sft_decoding": '{"steps": 0}'}, "`steps` is 0"),
        ({"eval_samples": -5}, "`eval_samples` is -5"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(
    arc: ModuleType, bases: list[Path], tmp_path: Path, setting: dict[str, Any], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = tmp_path / "config.yaml"  # argparse itself would refuse some of them, but not from a file
    config.write_text(json.dumps(setting))
    monkeypatch.setattr(sys, "argv", ["arc.py", *flags(tmp_path, bases[0]), "--config", str(config)])
    with pytest.raises(ValueError, match=message):
        arc.main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["rm_decoding", "curve_forwards", "training_free", "recall_samples", "replay_samples"]
)
def test_settings_of_decoding_are_refused(
    arc: ModuleType, tmp_path: Path, bases: list[Path], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = TrlParser((arc.ArcArguments, RMTrainingArguments))
    with pytest.raises(ValueError, match=f"not used by the HfArgumentParser.*--{name}"):
        parser.parse_args_and_config([*flags(tmp_path, bases[0]), f"--{name}", "4"])
    config = tmp_path / "config.yaml"
    config.write_text(f"{name}: 4\n")
    with pytest.raises(ValueError, match=f"Unknown arguments from config file.*--{name}"):
        parser.parse_args_and_config([*flags(tmp_path, bases[0]), "--config", str(config)])


@pytest.mark.slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="two processes take an accelerator each")
def test_two_processes_share_the_questions(launch: Any, bases: list[Path], tmp_path: Path) -> None:
    alone = launch(bases[0])
    words = flags(tmp_path, bases[0], output_dir=tmp_path / "two", eval_samples=11)
    done = subprocess.run(
        [*torchrun(), str(RECIPE), *words],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Multiple choice by likelihood") == 1
    (both,) = json.loads((tmp_path / "two" / "records.json").read_text())["systems"]
    assert both["right"] == {key: verdict for key, verdict in alone[0]["right"].items() if key != "q11"}
    parts = sorted((tmp_path / "two" / "seed0" / "evaluation" / "base-choices").glob("*/samples.jsonl"))
    assert [len(part.read_text().splitlines()) - 1 for part in parts] == [6, 5]


def test_a_process_without_a_question_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "processes", lambda: SimpleNamespace(process_index=2, num_processes=3))
    assert own_share([1, 2]) == ([], "part-2-of-3") and own_share([1, 2, 3, 4, 5, 6]) == ([3, 6], "part-2-of-3")


@pytest.mark.parametrize(
    "config", sorted((ROOT / "recipes" / "configs").glob("arc-*.yaml")), ids=lambda path: path.stem
)
def test_configurations_are_what_their_first_lines_say(
    arc: ModuleType, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = next(line for line in config.read_text().splitlines() if "accelerate launch" in line)
    assert command.startswith("#") and f"recipes/configs/{config.name}" in command and "recipes/arc.py" in command
    monkeypatch.setattr(RMTrainingArguments, "__post_init__", lambda self: None)  # bf16 needs a GPU at hand
    parser = TrlParser((arc.ArcArguments, RMTrainingArguments))
    arguments, training = parser.parse_args_and_config(["--config", str(config)])
    assert training.output_dir == f"outputs/{config.stem}"
    assert training.max_steps > 0 and arguments.systems == ["base", "sft", "rm"]
