"""The stages of the text recipes, on a network of a few thousand weights."""

import json
import shutil
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_rm import RMForMaskedDiffusion, RMTrainer, RMTrainingArguments
from hf_rm.evaluation.text import Canvas
from hf_rm.evaluation.text_records import TextEvaluation, TextRecord
from hf_rm.tasks import post_training, text_recipe
from hf_rm.tasks.math.tasks import WordProblems
from hf_rm.tasks.math.tiny import build_math_tokenizer, build_tiny_math_model
from hf_rm.tasks.post_training import SYSTEMS as SYSTEM_TABLE
from hf_rm.tasks.post_training import PostTraining, PostTrainingArguments, Trained
from hf_rm.tasks.text import TextSample
from hf_rm.tasks.text_recipe import (
    budgeted,
    group_means_table,
    means,
    means_table,
    recall,
    recall_rows,
    report,
    with_default_config,
)
from hf_rm.training.base import MaskedTrainer
from hf_rm.training.stages import claim_folder

SYSTEMS = ["base", "sft", "rm", "rm-no-hr", "rm-paper", "rm-harvested"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    build_tiny_math_model(0, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2).save_pretrained(folder)
    build_math_tokenizer().save_pretrained(folder)
    return str(folder)


def prepared(root: Path, base: str, training: dict | None = None, problems: int = 12, **settings) -> PostTraining:
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
    budget = {"max_steps": 3, "per_device_train_batch_size": 4, "horizon": 8}
    budget |= {"pool_fraction": 0.5, "pool_start": "canvas"}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 1, "learning_rate": 1e-2}
    arguments = RMTrainingArguments(str(root), **{**budget, **quiet, **(training or {})})
    return PostTraining(PostTrainingArguments(**{**defaults, **settings}), arguments, WordProblems(problems, 6))


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
        training={"mask_row_batches": 1},
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
    assert {"rm, seed 0", "rm-harvested, seed 0"} <= records["recall"].keys()
    assert set(records["curves"]) == {"sft", "sft, low_prob", "sft, remdm", "rm"}
    for curve in records["curves"].values():
        assert [point["forwards"] <= budget for point, budget in zip(curve, (2, 4), strict=True)] == [True, True]
    assert (whole.root / "forwards.png").stat().st_size > 1000
    page = (whole.root / "seed0" / "trajectories-rm.html").read_text()
    assert page.count("Question") + page.count("How many") > 0


def test_what_each_stage_took_is_noted_and_summed(whole):
    records = {row["system"]: row for row in json.loads((whole.root / "records.json").read_text())["systems"]}
    parts = {name: list(row["training_seconds"]) for name, row in records.items()}
    assert parts["base"] == [] and parts["sft"] == ["start", "training"]
    assert parts["rm"] == ["start", "probe", "training"]
    assert parts["rm-harvested"] == ["start", "probe", "harvest", "training"]
    for name, row in records.items():
        assert all(part["cpu_seconds"] > 0 for part in row["training_seconds"].values()), name
        assert row["evaluation_seconds"]["cpu_seconds"] > 0 and row["evaluation_seconds"]["wall_seconds"] > 0
    whole_row = records["rm"]["training_seconds"]["training"]
    assert 0 < whole_row["mask_row"]["cpu_seconds"] < whole_row["cpu_seconds"]
    minutes = {name: whole.cpu_minutes(name, 0) for name in SYSTEMS}
    assert (
        minutes["base"] is None
        and minutes["rm-harvested"] > records["sft"]["training_seconds"]["start"]["cpu_seconds"] / 60
    )
    for name in SYSTEMS[1:]:
        expected = sum(part["cpu_seconds"] for part in records[name]["training_seconds"].values())
        assert minutes[name] == pytest.approx(expected / 60)


def test_reading_an_evaluation_back_costs_it_nothing(whole):
    one = whole.system("base", 0)
    before = (whole.evaluation_folder(one) / "clock.json").read_text()
    whole.evaluate(one)
    assert (whole.evaluation_folder(one) / "clock.json").read_text() == before


def test_the_evaluations_batches_are_not_the_probes(tmp_path, base):
    """A smaller evaluation batch goes on with the caches that are there; a smaller probe batch would make others."""
    settings = {"sft_steps": 0, "systems": ["rm-harvested"], "probe_batch_size": 3}
    run = prepared(tmp_path, base, **settings)
    run.proposal(SYSTEM_TABLE["rm-harvested"], 0)
    for cache in ("top-k", "harvest"):
        assert json.loads((tmp_path / "seed0" / cache / "cache.json").read_text())["fingerprint"]["batch_size"] == 3
    prepared(tmp_path, base, eval_batch_size=2, **settings).proposal(SYSTEM_TABLE["rm-harvested"], 0)
    with pytest.raises(ValueError, match="`batch_size` is 4 and was 3"):
        prepared(tmp_path, base, **{**settings, "probe_batch_size": 4}).proposal(SYSTEM_TABLE["rm-harvested"], 0)


def test_a_report_that_fails_late_leaves_what_came_before_it(tmp_path, base, monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(text_recipe, "write_replays", fails)
    run = prepared(tmp_path, base, systems=["rm"], sft_steps=0, curve_forwards=[2])
    with pytest.raises(OSError, match="no space left"):
        report(run)
    records = json.loads((tmp_path / "records.json").read_text())
    assert list(records) == ["systems", "curves", "recall"] and "word-problems, seed 0" in capsys.readouterr().out


@pytest.mark.parametrize("completion", ["", "9 " * 100])
def test_a_recall_that_finds_no_sample_is_left_out_with_a_line(tmp_path, base, capsys, completion):
    run = prepared(tmp_path, base, systems=["rm"], sft_steps=0)
    samples = [TextSample(str(i), f"How many are {i}?\n", completion, "9") for i in range(3)]
    run.task = SimpleNamespace(name="words", train=run.task.train, test=lambda: samples, grade=run.task.grade)
    report(run)
    assert "recall" not in json.loads((tmp_path / "records.json").read_text())
    assert "no probe of recall: no" in capsys.readouterr().out


def test_a_missing_library_is_named_before_anything_is_trained(tmp_path, base, monkeypatch, untrained):
    monkeypatch.setattr(text_recipe, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install 'hf-rm\[recipes\]'"):
        report(prepared(tmp_path, base, curve_forwards=[2]))
    assert untrained == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training_free": ["t2m"]}, "training_free.*'t2m'"),
        ({"rm_decoding": {"reveal": "confidenc"}}, "`reveal` is 'confidenc'"),
        ({"sft_decoding": {"preset": "lada"}}, "'lada'"),
        ({"rm_decoding": {"max_new_tokens": 41}}, "max_new_tokens=41, but `completion_length` is 40"),
        (
            {"sft_decoding": {"preset": "remdm-loop"}, "curve_forwards": [2], "training_free": ["low_prob"]},
            "`reveal` is 'remdm' and `revise` 'low_prob'",
        ),
    ],
)
def test_a_decoding_that_cannot_work_is_named_before_anything_is_trained(tmp_path, base, untrained, settings, message):
    with pytest.raises(ValueError, match=message):
        report(prepared(tmp_path, base, **settings))
    assert untrained == [] and [*tmp_path.iterdir()] == []


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


def test_a_budget_as_large_as_the_decodings_own_bound_hurries_nobody(tmp_path: Path, base: str) -> None:
    threshold = {"preset": "fast-dllm", "block_length": None, "reveal_threshold": 0.9, "max_steps": 32}
    run = prepared(tmp_path, base, sft_decoding=threshold)
    assert budgeted(run, "sft", 32) == threshold
    assert budgeted(run, "sft", 16) == {**threshold, "min_reveals_per_step": 3, "max_steps": 16}
    assert "min_reveals_per_step" not in budgeted(run, "low_prob", 32)


def test_a_system_may_be_decoded_in_other_ways_too(tmp_path: Path, base: str, capsys) -> None:
    others = {"rm-only-writes": {"system": "rm", "revise": None}, "sft-1": {"system": "sft", "steps": 1}}
    run = prepared(tmp_path, base, systems=["sft", "rm"], other_decodings=others, seeds=[0, 1], recall_samples=0)
    report(run)
    records = json.loads((tmp_path / "records.json").read_text())
    rows = {(row["system"], row["training_seed"]): row for row in records["systems"]}
    assert {name for name, _ in rows} == {"sft", "rm", "rm-only-writes", "sft-1"} and len(rows) == 8
    assert rows["rm-only-writes", 1]["revision"]["remasks"] == 0 < rows["rm", 1]["forwards"]
    assert rows["sft-1", 0]["forwards"] == 1 and rows["sft-1", 0]["name"] == "sft-1, seed 0"
    assert records["means"]["sft-1"]["cpu_minutes"] == records["means"]["sft"]["cpu_minutes"] > 0
    assert (tmp_path / "seed1" / "evaluation" / "sft-sft-1" / "part-0-of-1" / "samples.jsonl").exists()
    assert "rm-only-writes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "others",
    [
        *({"sft": {"system": "sft"}}, {"a/b": {"system": "sft"}}, {"a": {}}, {"a": {"system": "start"}}),
        *({"a": 1}, {"a": None}, {"a": {"system": ["sft"]}}, '{"a": 1}'),
    ],
)
def test_other_decodings_without_a_name_or_a_system_are_refused(tmp_path: Path, base: str, others) -> None:
    with pytest.raises(ValueError, match="`other_decodings` has"):
        prepared(tmp_path, base, other_decodings=others)


def test_other_decodings_that_cannot_work_are_refused_before_anything_is_trained(tmp_path: Path, base: str) -> None:
    run = prepared(tmp_path, base, other_decodings={"a": {"system": "rm", "reveal": "al"}})
    with pytest.raises(ValueError, match="`reveal`"):
        report(run)
    assert not (tmp_path / "seed0").exists()
    easy = OtherProblems("easy", [], [])
    named = PostTrainingArguments(**{**vars(run.arguments), "other_decodings": {"easy": {"system": "rm"}}})
    with pytest.raises(ValueError, match="`other_decodings` has .'easy'., which name tests"):
        report(PostTraining(named, run.training, run.task, more_tests=[easy]))


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
    again = prepared(whole.root, base, systems=SYSTEMS, training={"mask_row_batches": 1})
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
        add_callback=lambda callback: None,
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
    assert json.loads((tmp_path / "sft" / "finished.json").read_text())["steps"] == 3


def test_an_evaluation_that_was_cut_gives_the_same(tmp_path, base):
    run = prepared(tmp_path, base, systems=["base"])
    [system] = run.systems()
    first = run.evaluate(system)
    [log] = (tmp_path / "seed0" / "evaluation" / "base-main").rglob("samples.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20])
    assert run.evaluate(system).records == first.records


@pytest.fixture
def untrained(monkeypatch) -> list[str]:
    """Stages whose training is their name in this list and nothing else."""
    done: list[str] = []

    def train(self, name, seed, folder):
        if name != "start":
            self.start(seed)
        done.append(name)
        (folder / "finished.json").write_text("{}")

    monkeypatch.setattr(PostTraining, "_train", train)
    return done


@pytest.mark.parametrize(
    ("system", "change", "named"),
    [
        ("sft", {"training": {"lr_scheduler_type": "constant"}}, "lr_scheduler_type is linear there and constant"),
        ("sft", {"training": {"lr_scheduler_kwargs": {"a": 1}}}, "lr_scheduler_kwargs"),
        ("sft", {"training": {"warmup_steps": 1}}, "warmup_steps"),
        ("sft", {"training": {"weight_decay": 0.1}}, "weight_decay is 0.0 there and 0.1"),
        ("sft", {"training": {"adam_beta1": 0.8}}, "adam_beta1"),
        ("sft", {"training": {"adam_beta2": 0.9}}, "adam_beta2"),
        ("sft", {"training": {"adam_epsilon": 1e-6}}, "adam_epsilon"),
        ("sft", {"training": {"max_grad_norm": 0.5}}, "max_grad_norm"),
        ("sft", {"training": {"optim": "sgd"}}, "optim is adamw_torch_fused there and sgd"),
        ("sft", {"training": {"data_seed": 5}}, "data_seed"),
        ("sft", {"training": {"max_steps": 4}}, "max_steps is 3 there and 4"),
        ("sft", {"training": {"model_init_kwargs": {"attn_implementation": "eager"}}}, "model_init_kwargs"),
        ("sft", {"sft_steps": 3}, "sft_steps is 2 there and 3"),
        ("sft", {"min_mask_rate": 0.1}, "min_mask_rate"),
        ("sft", {"problems": 13}, "training data is 12 rows .* there and 13 rows"),
        ("sft", {"train_samples": 11}, "training data is 12 rows .* there and 11 rows"),
        ("sft", {"eos_tail": "one"}, "eos_tail is fill there and one"),
        ("rm", {"training": {"law": "paper"}}, "law is attempts there and paper"),
        ("rm", {"training": {"loss_clip": "hard"}}, "loss_clip"),
        ("rm", {"training": {"min_corruption_rate": 0.1}}, "min_corruption_rate is 0.05 there and 0.1"),
        ("rm", {"training": {"pool_fraction": 0.25}}, "pool_fraction is 0.5 there and 0.25"),
        ("rm", {"training": {"pool_fraction": 0.0}}, "pool_fraction is 0.5 there and 0.0"),
        ("rm", {"training": {"pool_start": "law"}}, "pool_start is canvas there and law"),
        ("rm", {"training": {"pool_start_step": 1}}, "pool_start_step"),
        ("rm", {"training": {"pool_max_age": 3}}, "pool_max_age"),
        ("rm", {"training": {"pool_reveal_threshold": 0.5}}, "pool_reveal_threshold"),
        ("rm", {"min_mask_rate": 0.1}, "min_mask_rate"),
        ("rm", {"history_decay": 0.5}, "history_decay is 0.9 there and 0.5"),
        ("rm", {"history_scope": "editable"}, "history_scope"),
        ("rm", {"top_k": 6}, "top_k"),
        ("rm", {"probe_mask_rate": 0.6}, "probe_mask_rate"),
        ("rm-no-hr", {"training": {"pool_fraction": 0.25}}, "pool_fraction"),
        ("rm-paper", {"training": {"horizon": 9}}, "horizon"),
        ("rm-harvested", {"harvest_samples": 5}, "harvest_samples"),
        ("rm-harvested", {"sft_decoding": {"preset": "llada", "steps": 5}}, "sft_decoding"),
    ],
)
def test_a_stage_is_refused_after_what_its_weights_depend_on(tmp_path, base, untrained, system, change, named):
    prepared(tmp_path, base).system(system, 0)
    with pytest.raises(ValueError, match=f"holds another run: .*{named}"):
        prepared(tmp_path, base, **change).system(system, 0)


@pytest.mark.parametrize(
    ("system", "change"),
    [
        ("sft", {"training": {"logging_steps": 7, "save_steps": 5, "save_total_limit": 1, "disable_tqdm": False}}),
        ("sft", {"training": {"dataloader_num_workers": 1, "per_device_eval_batch_size": 3, "run_name": "x"}}),
        ("sft", {"training": {"gradient_checkpointing": True, "max_length": 500, "num_train_epochs": 7}}),
        ("sft", {"training": {"model_init_kwargs": {"token": "secret", "cache_dir": "elsewhere"}}}),
        ("sft", {"training": {"pool_fraction": 0.25, "law": "paper", "horizon": 9, "min_corruption_rate": 0.1}}),
        ("sft", {"history_decay": 0.5, "top_k": 6, "probe": "clean", "harvest_samples": 5}),
        ("sft", {"eval_batch_size": 5, "eval_samples": 3, "recall_samples": 2, "train_samples": 12}),
        ("rm", {"harvest_samples": 5, "sft_decoding": {"preset": "llada", "steps": 5}}),
        ("rm", {"rm_decoding": {"steps": 5}, "systems": ["rm"], "seeds": [0, 1]}),
        ("rm-no-hr", {"history_decay": 0.5, "history_scope": "editable"}),
        ("rm-paper", {"training": {"law": "paper", "pool_fraction": 0.0, "pool_start": "law", "max_attempts": 1}}),
        ("rm-harvested", {"train_samples": 12}),
    ],
)
def test_a_stage_is_read_back_after_what_is_no_matter_to_it(tmp_path, base, untrained, system, change):
    prepared(tmp_path, base).system(system, 0)
    assert untrained == ["start", system]
    prepared(tmp_path, base, **change).system(system, 0)
    assert untrained == ["start", system], "trained again"
    assert "secret" not in (tmp_path / "seed0" / system / "settings.json").read_text()


def test_a_stage_is_refused_over_a_base_of_other_weights(tmp_path, base, untrained):
    """Under the same name, as a base that was trained again is."""
    other = tmp_path / "base"
    shutil.copytree(base, other)
    prepared(tmp_path / "out", str(other)).system("rm", 0)
    build_tiny_math_model(1, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2).save_pretrained(other)
    with pytest.raises(ValueError, match="holds another run: base is .* there and"):
        prepared(tmp_path / "out", str(other)).system("rm", 0)


def test_the_pools_settings_do_not_matter_without_a_pool(tmp_path, base, untrained):
    without = {"pool_fraction": 0.0}
    prepared(tmp_path, base, training=without).system("rm", 0)
    prepared(tmp_path, base, training={**without, "pool_start": "law", "pool_max_age": 3}).system("rm", 0)
    assert untrained == ["start", "rm"]


def test_law_and_pool_are_those_of_the_run_where_a_system_does_not_fix_them(tmp_path, base):
    """And a value that a system fixes wins over a given one."""
    run = prepared(tmp_path, base, training={"law": "paper", "pool_fraction": 0.25})
    taken = {name: run._trainer_arguments(name, 0, tmp_path) for name in SYSTEMS if name.startswith("rm")}
    for name in ("rm", "rm-no-hr", "rm-harvested"):
        assert (taken[name]["law"], taken[name]["pool_fraction"]) == ("paper", 0.25), name
    other = prepared(tmp_path, base, training={"law": "attempts"})._trainer_arguments("rm-paper", 0, tmp_path)
    assert (other["law"], other["pool_fraction"]) == ("paper", 0.0)


def test_a_refusal_that_would_fill_the_screen_is_cut(tmp_path):
    claim_folder(tmp_path, {f"a{i}": 0 for i in range(20)})
    with pytest.raises(ValueError, match=r"a7 is 0 there and 1 here; and 12 more\. Pass another"):
        claim_folder(tmp_path, {f"a{i}": 1 for i in range(20)})


def test_arguments_of_a_single_system_reach_it_alone(tmp_path, base):
    run = prepared(tmp_path, base, system_arguments={"rm-paper": {"blank_rows": 0.25}, "sft": {"learning_rate": 0.5}})
    values = {name: run._trainer_arguments(name, 0, tmp_path) for name in ("sft", "rm-paper", "rm")}
    assert (values["rm-paper"]["blank_rows"], values["rm"]["blank_rows"]) == (0.25, 0.0)
    assert [values[name]["learning_rate"] for name in values] == [0.5, 1e-2, 1e-2]
    assert run._settings("rm-paper", 0)["blank_rows"] == 0.25


@pytest.mark.parametrize(
    "given", [{"rm-paper": {"law": "attempts"}}, {"rm": {"blank": 1}}, {"base": {}}, {"x": {}}, '{"rm": 1}']
)
def test_arguments_that_a_system_cannot_have_are_refused(tmp_path, base, given):
    with pytest.raises(ValueError, match="`system_arguments` of"):
        prepared(tmp_path, base, system_arguments=given)


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
        ({"completion_length": 0}, "`completion_length` is 0: pass an integer of at least 1"),
        ({"probe_batch_size": 0}, "`probe_batch_size` is 0: pass an integer of at least 1"),
        ({"systems": ["rm", "sft", "rm"]}, "`systems` is .*: pass each of them once"),
        *(({name: 0}, f"`{name}` is 0: .* 1, or leave it out") for name in ("eval_samples", "train_samples")),
        *(({name: -5}, f"`{name}` is -5: .* 1, or leave it out") for name in ("eval_samples", "train_samples")),
        *(
            ({name: -4}, f"`{name}` is -4: pass an integer of at least 0")
            for name in ("sft_steps", "lora_rank", "recall_samples", "replay_samples")
        ),
        *(({"sft_steps": value}, f"`sft_steps` is {value!r}") for value in (1.5, True, None)),
        *(({"history_decay": value}, rf"`history_decay` is {value}: .*\(0, 1\]") for value in (1.5, 0, -0.1)),
        *(({"probe_mask_rate": value}, f"`probe_mask_rate` is {value}") for value in (2.0, 0.0, float("nan"))),
        *(({"min_mask_rate": value}, rf"`min_mask_rate` is {value}: .*\(0, 1\)") for value in (0, 1.0)),
        ({"curve_forwards": [2, 0]}, r"`curve_forwards` is \[2, 0\]: .* at least 1"),
        ({"seeds": []}, r"`seeds` is \[\]: pass one or more"),
        ({"seeds": [1, 0, 1]}, r"`seeds` is \[1, 0, 1\]: .* each once"),
        *(({"seeds": value}, "`seeds` is .*: pass a list of integers of at least 0") for value in (0, [-1], ["a"])),
        *(({name: "x"}, f"`{name}` is 'x': pass '") for name in ("eos_tail", "history_scope", "probe")),
        *(
            ({name: "{bad"}, f"`{name}` is '{{bad', which is no JSON .*: pass a JSON object")
            for name in ("sft_decoding", "rm_decoding", "other_decodings", "system_arguments")
        ),
        *(({"rm_decoding": value}, "`rm_decoding` is .*: pass a JSON object") for value in ("[1]", "3", None)),
    ],
)
def test_bad_arguments_are_named_before_anything_is_trained(tmp_path, base, untrained, settings, message):
    with pytest.raises(ValueError, match=message):
        report(prepared(tmp_path, base, **settings))
    assert untrained == [] and [*tmp_path.iterdir()] == []


def test_arguments_at_their_bounds_are_taken(tmp_path, base):
    bounds = {"history_decay": 1, "probe_mask_rate": 1.0, "recall_samples": 0, "replay_samples": 0, "sft_steps": 0}
    bounds |= {"eval_samples": 1, "train_samples": None, "seeds": (0, 7)}
    assert prepared(tmp_path, base, **bounds).arguments.history_decay == 1


@pytest.mark.parametrize(
    ("given", "seeds", "names"),
    [
        ("me/words", [0], ["me/words-sft", "me/words-rm"]),
        ("me/words", [0, 1], ["me/words-sft-seed0", "me/words-rm-seed0", "me/words-sft-seed1", "me/words-rm-seed1"]),
        (None, [0], ["out-sft", "out-rm"]),
    ],
)
def test_every_system_is_published_under_its_own_name_and_the_start_is_not(
    tmp_path, base, monkeypatch, given, seeds, names
):
    made, pushed = [], []
    monkeypatch.setattr(MaskedTrainer, "init_hf_repo", lambda self: made.append(self.args.hub_model_id))
    monkeypatch.setattr(MaskedTrainer, "push_to_hub", lambda self: pushed.append(self.args.hub_model_id))
    hub = {"push_to_hub": True, "hub_model_id": given, "hub_strategy": "end", "max_steps": 1, "save_strategy": "no"}
    run = prepared(tmp_path / "out", base, training=hub, seeds=seeds, sft_steps=1)
    run.systems()
    assert made == pushed == names


def test_samples_that_do_not_fit_are_counted_and_named(tmp_path, base, capsys):
    run = prepared(tmp_path, base, training={"max_length": 75})
    lengths = [len(row["input_ids"]) for row in run.rows]
    assert 0 < len(lengths) < 12 and max(lengths) <= 75
    assert (
        f"{12 - len(lengths)} of 12 training samples are too long (75 tokens a row, 40 of them"
        in capsys.readouterr().out
    )


def test_rows_longer_than_the_bases_positions_do_not_fit(tmp_path, capsys):
    """Whatever the tokenizer says, and however well rotary positions go on beyond them."""
    model = build_tiny_math_model(0, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    model.config.max_position_embeddings = 75
    model.save_pretrained(tmp_path / "base")
    tokenizer = build_math_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path / "base")
    run = prepared(tmp_path / "out", str(tmp_path / "base"), training={"max_length": 90})
    assert run.longest == 75 and max(len(row["input_ids"]) for row in run.rows) <= 75
    count = 12 - len(run.rows)
    assert count and f"{count} of 12 training samples are too long (75 tokens a row" in capsys.readouterr().out
    rows = recall_rows(run)
    assert 0 < len(rows) < 6 and "of 6 samples of the probe of recall are too long" in capsys.readouterr().out
    found = recall(run, Trained("base", 0, None, lambda: run._wrap(run.arguments.base, history=False)), rows)
    assert 0 < found["since_start"]["count"]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_trained_system_is_loaded_as_its_base_was(tmp_path, base, rank):
    loading = {"dtype": "bfloat16", "attn_implementation": "eager", "local_files_only": True, "revision": "main"}
    settings = {"sft_steps": 0, "lora_rank": rank, "systems": ["base", "rm"]}
    run = prepared(tmp_path, base, training={"model_init_kwargs": loading, "max_steps": 1}, **settings)
    for one in run.systems():
        model = one.load()
        assert model.model.config._attn_implementation == "eager", one.name
        assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}, one.name
        assert not model.training


def test_what_a_task_leaves_out_is_told_once(tmp_path, base, capsys):
    run = prepared(tmp_path, base)
    run.task.remarks = ["two records left out"]
    assert len(run.rows) == 12 and len(run.held_out()) == 6
    run.task.remarks.append("one more")
    assert len(run.held_out()) == 6
    assert capsys.readouterr().out == "two records left out\none more\n"


class OtherProblems(WordProblems):
    """Further problems, of another name and another grader."""

    def __init__(self, name: str, train: list[TextSample], test: list[TextSample]) -> None:
        super().__init__()
        self.name, self.samples = name, (train, test)

    def train(self) -> list[TextSample]:
        return self.samples[0]

    def test(self) -> list[TextSample]:
        return self.samples[1]

    def grade(self, sample, text) -> bool:
        return True


def test_further_tests_have_records_and_tables_of_their_own_and_are_not_trained_on(tmp_path, base, capsys):
    first = prepared(tmp_path, base)
    own, others = first.task.train(), WordProblems(3, 1, seed=5).train()
    easy = OtherProblems("easy", [], own[:2])
    more = OtherProblems("more", [*others, own[5], first.task.test()[0]], [])
    settings = {**vars(first.arguments), "systems": ["base", "sft"], "sft_steps": 0, "recall_samples": 0}
    settings |= {"seeds": [0, 1], "curve_forwards": [2]}
    run = PostTraining(PostTrainingArguments(**settings), first.training, first.task, [more], [easy])
    assert [row["idx"] for row in run.rows] == [sample.key for sample in [*own[2:], *others]]
    assert "of 17 training samples 13 stay: 1 are there twice, 3 held out by a test" in capsys.readouterr().out
    report(run)
    shown = capsys.readouterr().out
    assert "word-problems, seed 0" in shown and "easy, seed 0" in shown and "easy, means of 2 seeds" in shown
    records = json.loads((tmp_path / "records.json").read_text())
    found = records["more_tests"]["easy"]["systems"]
    assert [(row["system"], row["samples"], row["accuracy"]) for row in found[:2]] == [("base", 2, 1), ("sft", 2, 1)]
    assert records["more_tests"]["easy"]["means"]["sft"]["accuracy"][0] == 1
    assert records["systems"][0]["samples"] == 6 and records["systems"][0]["accuracy"] < 1
    assert found[1]["evaluation_seconds"]["wall_seconds"] > 0
    assert (tmp_path / "seed0" / "evaluation" / "sft-easy" / "part-0-of-1" / "samples.jsonl").exists()
    assert list(records["curves"]) == ["sft"]


@pytest.mark.parametrize("names", [["easy", "easy"], ["main"]])
def test_tests_that_would_share_a_folder_are_refused(tmp_path, base, names):
    run = prepared(tmp_path, base)
    tests = [OtherProblems(name, [], []) for name in names]
    with pytest.raises(ValueError, match="`more_tests` is of .*: pass tests of different names"):
        PostTraining(run.arguments, run.training, run.task, more_tests=tests)


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


def evaluated(*rows: str) -> TextEvaluation:
    """Six problems, the first two of group 2, the others of group 10; "1" is a right answer, and one was revised."""
    records = []
    for number, right in enumerate("".join(rows)):
        revised = {"taken_back": (2, 1), "reference": (1, 2, 4, 0, 2), "draft": "", "draft_correct": False}
        group, seen = ("2" if number < 2 else "10"), (revised if number == 0 else {})
        records.append(TextRecord(str(number), group, "", right == "1", 4, 2, 0, True, (), **seen))
    return TextEvaluation("", tuple(records), {}, 0)


def test_means_by_group_and_of_revision():
    found = means({
        ("sft", 0): evaluated("00", "1100"), ("sft", 1): evaluated("00", "1000"),
        ("rm", 0): evaluated("11", "1100"), ("rm", 1): evaluated("10", "1000"),
    })  # fmt: skip
    assert list(found["rm"]["by_group"]) == ["2", "10"], "numbers by value"
    two, ten = found["rm"]["by_group"].values()
    assert (two["accuracy"][0], ten["accuracy"][0]) == (0.75, 0.375)
    assert two["accuracy"][1:3] == pytest.approx([0.75 - 1.96 * 0.25, 0.75 + 1.96 * 0.25], abs=1e-3)
    assert two["less_baseline"][0] == 0.75 and ten["less_baseline"][:3] == [0, 0, 0]
    assert two["spread"] == pytest.approx(0.5 / 2**0.5)
    assert found["sft"]["by_group"]["2"]["less_baseline"] is None
    assert (found["rm"]["precision"][0], found["rm"]["precision"][3]) == (0.5, 4)
    assert (found["rm"]["to_right"][0], found["sft"]["to_right"][0], found["rm"]["to_wrong"][0]) == (1, 0, 0)
    shown = Console(width=200, record=True, file=StringIO())
    shown.print(means_table(found), group_means_table(found))
    text = shown.export_text()
    assert "75.0 [26.0, 124.0]" in text and "+75.0 [+26.0, +124.0]" in text and "50.0 [15.0, 85.0]" in text
