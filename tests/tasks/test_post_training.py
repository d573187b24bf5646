"""The stages of the text recipes, on a network of a few thousand weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_rm import RMForMaskedDiffusion, RMTrainer, RMTrainingArguments
from hf_rm.evaluation.text import Canvas
from hf_rm.tasks import post_training, text_recipe
from hf_rm.tasks.math.tasks import WordProblems
from hf_rm.tasks.math.tiny import build_math_tokenizer, build_tiny_math_model
from hf_rm.tasks.post_training import PostTraining, PostTrainingArguments
from hf_rm.tasks.text import TextSample
from hf_rm.tasks.text_recipe import budgeted, means, report, with_default_config

SYSTEMS = ["base", "sft", "rm", "rm-no-hr", "rm-paper", "rm-harvested", "rm-pool"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    build_tiny_math_model(0, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2).save_pretrained(folder)
    build_math_tokenizer().save_pretrained(folder)
    return str(folder)


def prepared(root: Path, base: str, training: dict | None = None, **settings) -> PostTraining:
    defaults = {
        "base": base,
        "systems": ["sft", "rm"],
        "sft_steps": 2,
        "completion_length": 40,
        "harvest_samples": 4,
        "top_k": 5,
        "probe": "masked",
        "recall_samples": 6,
        "replay_samples": 2,
        "sft_decoding": {"preset": "llada", "steps": 4},
        "rm_decoding": {"reveal": "confidence", "steps": 3, "revise": "reflective", "max_steps": 6},
    }
    budget = {"max_steps": 3, "per_device_train_batch_size": 4, "pool_fraction": 0.5, "pool_start": "canvas"}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 1, "learning_rate": 1e-2}
    arguments = RMTrainingArguments(str(root), horizon=8, **budget, **quiet, **(training or {}))
    return PostTraining(PostTrainingArguments(**{**defaults, **settings}), arguments, WordProblems(12, 6))


def weights(folder: Path | None) -> dict[str, torch.Tensor]:
    assert folder is not None
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base) -> PostTraining:
    run = prepared(
        tmp_path_factory.mktemp("whole"),
        base,
        systems=SYSTEMS,
        curve_forwards=[2, 4],
        training_free=["low_prob", "remdm"],
    )
    report(run)
    return run


def test_every_system_is_trained_from_the_same_start_and_differs(whole):
    trained = {one.name: one for one in whole.systems()}
    start = {
        f"model.{name}": value
        for name, value in load_file(whole.root / "seed0" / "start" / "model.safetensors").items()
    }
    found = {name: weights(trained[name].folder) for name in SYSTEMS[1:]}
    for name, own in found.items():
        assert own.keys() & start.keys() and not same(own, start), name
    for name in SYSTEMS[1:]:
        assert not any(same(found[name], found[other]) for other in SYSTEMS[1:] if other != name), name
    assert not trained["rm-no-hr"].load().config.history
    assert trained["rm"].load().config.history
    assert trained["rm"].load().config.trained_to_remask


def test_the_report_holds_everything(whole):
    records = json.loads((whole.root / "records.json").read_text())
    assert [row["system"] for row in records["systems"]] == SYSTEMS
    assert all(row["samples"] == 6 and row["forwards"] <= 6 for row in records["systems"])
    assert {"rm, seed 0", "rm-pool, seed 0"} <= records["recall"].keys()
    assert set(records["curves"]) == {"sft", "sft, low_prob", "sft, remdm", *SYSTEMS[2:]}
    for curve in records["curves"].values():
        assert [point["forwards"] <= budget for point, budget in zip(curve, (2, 4), strict=True)] == [True, True]
    assert (whole.root / "forwards.png").stat().st_size > 1000
    page = (whole.root / "seed0" / "trajectories-rm.html").read_text()
    assert page.count("Question") + page.count("How many") > 0


@pytest.mark.parametrize("rule", ["sft", "rm", "t2t_remask", "remdm"])
def test_a_budget_holds_where_a_threshold_reveals(tmp_path: Path, base: str, rule: str) -> None:
    threshold = {"reveal": "threshold", "reveal_threshold": 1.0}  # by itself one token a step
    run = prepared(
        tmp_path,
        base,
        sft_decoding={"preset": "fast-dllm", "block_length": None, **threshold},
        rm_decoding={**threshold, "revise": "reflective"},
    )
    one = run.system("sft", 0)
    for forwards in (1, 4, 7):
        found = run.evaluate(one, budgeted(run, rule, forwards), f"{rule}-{forwards}", revision=False)
        assert forwards / 2 <= found.forwards.value <= forwards
    with pytest.raises(ValueError, match="training_free.*'t2m'"):
        budgeted(run, "t2m", 4)


def test_a_replay_grades_what_the_evaluation_does_the_text_before_the_first_end(monkeypatch):
    tokenizer = build_math_tokenizer()
    ids = [*tokenizer("#### 5")["input_ids"], tokenizer.eos_token_id, *tokenizer("#### 9")["input_ids"]]
    states, actions = np.array([[tokenizer.mask_token_id] * len(ids), ids]), np.ones((1, len(ids)), dtype=int)
    canvas = Canvas(ids, 1, 0, 0, True, states, actions, tokenizer.mask_token_id)
    monkeypatch.setattr(text_recipe, "decode_batch", lambda *arguments: [canvas])
    graded = []
    task = SimpleNamespace(grade=lambda sample, text: graded.append(text) or text == "#### 5")
    run = SimpleNamespace(tokenizer=tokenizer, task=task, arguments=SimpleNamespace(eval_seed=0))
    replay = text_recipe._replay(run, None, TextSample("1", "How many?", "#### 5"), None)
    assert graded == ["#### 5"] and replay.title == "How many? (right)"


def test_what_is_done_is_not_done_again(whole, base, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(RMTrainer, "train", refused)
    monkeypatch.setattr(RMForMaskedDiffusion, "generate_reflective", refused)
    again = prepared(whole.root, base, systems=SYSTEMS)
    results = {one.name: again.evaluate(one) for one in again.systems()}
    assert all(len(result.records) == 6 for result in results.values())


def test_a_training_that_was_cut_goes_on_to_the_same_weights(tmp_path, base, monkeypatch):
    class Cut(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    trainer = post_training.RMTrainer
    run = prepared(tmp_path / "cut", base, systems=["rm"])
    with monkeypatch.context() as patch:
        patch.setattr(post_training, "RMTrainer", lambda *a, **k: trainer(*a, **k, callbacks=[Cut()]))
        with pytest.raises(KeyboardInterrupt):
            run.systems()
    assert not (run.root / "seed0" / "rm" / "finished.json").exists()
    steps = []
    following = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda self, *a, **k: steps.append(1) or following(self, *a, **k))
    [resumed] = prepared(tmp_path / "cut", base, systems=["rm"]).systems()
    assert len(steps) == 1, "the third step alone"
    [uncut] = prepared(tmp_path / "uncut", base, systems=["rm"]).systems()
    assert same(weights(resumed.folder), weights(uncut.folder))


def test_a_stop_while_the_last_note_is_written_leaves_the_stage_unfinished(tmp_path, base, monkeypatch):
    def half(self, text, **kwargs):
        self.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    trainer = SimpleNamespace(
        train=lambda **kwargs: None,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        model=None,
        state=SimpleNamespace(global_step=3),
    )
    monkeypatch.setattr(post_training, "save_for_hub", lambda *arguments: None)
    run = prepared(tmp_path, base)
    (tmp_path / "sft").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            run._finish(trainer, tmp_path / "sft")
    assert not (tmp_path / "sft" / "finished.json").exists()
    run._finish(trainer, tmp_path / "sft")
    assert json.loads((tmp_path / "sft" / "finished.json").read_text()) == {"steps": 3}


def test_an_evaluation_that_was_cut_gives_the_same(tmp_path, base):
    run = prepared(tmp_path, base, systems=["base"])
    [system] = run.systems()
    first = run.evaluate(system)
    [log] = (tmp_path / "seed0" / "evaluation" / "base-main").rglob("samples.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20])
    assert run.evaluate(system).records == first.records


def test_a_folder_of_another_run_is_refused(whole, base):
    other = prepared(whole.root, base, training={"min_corruption_rate": 0.1})
    with pytest.raises(ValueError, match="holds another run: min_corruption_rate is 0.05 there and 0.1 here"):
        other.systems()


def test_adapters_start_from_the_base(tmp_path, base):
    run = prepared(tmp_path, base, sft_steps=0, lora_rank=2)
    for system in run.systems():
        assert sorted(path.name for path in (system.folder / "adapter").iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        assert len(run.evaluate(system).records) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"systems": ["rm", "sftt"]}, r"`systems` is \['rm', 'sftt'\]: pass any of base, sft"),
        ({"systems": []}, "`systems` is"),
        ({"lora_rank": 4}, "adapters all start from the base"),
        ({"completion_length": 0}, "`completion_length` is 0: pass a positive number"),
    ],
)
def test_bad_arguments_are_named(tmp_path, base, settings, message):
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, base, **settings)


def test_samples_that_do_not_fit_are_counted_and_named(tmp_path, base, capsys):
    run = prepared(tmp_path, base, training={"max_length": 75})
    lengths = [len(row["input_ids"]) for row in run.rows]
    assert 0 < len(lengths) < 12 and max(lengths) <= 75
    assert f"{12 - len(lengths)} of 12 training samples are too long and left out: " in capsys.readouterr().out


def test_the_default_config_stands_in_front_of_the_command_line():
    assert with_default_config(Path("a.yaml"), ["--max_steps", "3"]) == ["--config", "a.yaml", "--max_steps", "3"]
    assert with_default_config(Path("a.yaml"), ["--config", "b.yaml"]) == ["--config", "b.yaml"]


def test_means_pair_by_seed_and_sample(whole):
    results = {(one.name, one.seed): whole.evaluate(one) for one in whole.systems()}
    twice = {**results, **{(name, 1): result for (name, _), result in results.items()}}
    table = means(twice)
    for name, _ in results:
        assert table[name]["accuracy"][0] == results[name, 0].accuracy.value
        assert table[name]["spread"] == 0
    assert table["sft"]["less_baseline"] is None
    expected = results["rm", 0].accuracy.value - results["sft", 0].accuracy.value
    assert table["rm"]["less_baseline"][0] == pytest.approx(expected)
