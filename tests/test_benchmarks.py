"""The benchmarks that compare decoders, small: what they compare is what they say, and their tables add up."""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = ["--width", "32", "--layers", "1", "--vocabulary", "500", "--prompt", "8", "--answer", "16", "--block", "8"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A benchmark as a module, its results going to a folder of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def load(name: str) -> ModuleType:
        module = __import__(name)
        common = sys.modules["_common"]
        monkeypatch.setattr(module, "add_result", lambda n, result: common.add_result(n, result, tmp_path))
        return module

    return load


def written(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.jsonl").read_text())


# Decoding speed


@pytest.mark.parametrize("steps", [2, 6, 16])
def test_the_reference_loop_writes_what_ours_writes(load: Any, steps: int) -> None:
    """Both at equal forwards in float32: otherwise their times could not be compared."""
    decoding = load("decoding")
    options = decoding.parse_arguments([*TINY, "--steps", str(steps), "--dtype", "float32"])
    model, canvas = decoding.build_model(options), decoding.make_canvas(options)
    for parameter in model.parameters():  # lively scores: the default ones hardly differ
        parameter.data.mul_(10 if parameter.dim() > 1 else 1)
    ours = decoding.our_loop(model, canvas, options)
    assert torch.equal(ours, decoding.reference_loop(model, canvas, options))
    assert (ours != decoding.mask_token(options)).all() and torch.equal(ours[:, :8], canvas[:, :8])


def test_the_bare_forwards_go_through_the_blocks(load: Any) -> None:
    decoding = load("decoding")
    options = decoding.parse_arguments([*TINY, "--steps", "4", "--dtype", "float32"])
    model, canvas = decoding.build_model(options), decoding.make_canvas(options)
    with torch.no_grad():
        whole = model.model(input_ids=canvas).logits
    torch.testing.assert_close(decoding.bare_forwards(model, canvas, options), whole[:, 16:])


def test_the_speed_benchmark_writes_its_table(load: Any, tmp_path: Path) -> None:
    result = load("decoding").main([*TINY, "--steps", "4", "--repeats", "2"])
    assert result == {k: v for k, v in written(tmp_path, "decoding").items() if k in result}
    assert [row["what"].split(",")[0] for row in result["rows"]] == ["bare", "ours", "reference"]
    assert result["same_tokens_as_the_reference"] > 0.5
    low, high = result["times_the_reference"][1:]
    assert low <= result["times_the_reference"][0] <= high


def test_only_the_active_block_gets_scores(load: Any) -> None:
    """Of 1,024 positions 8 are active: the scores of all of them would not fit into what our loop allocates."""
    decoding = load("decoding")
    sizes = ["--prompt", "1016", "--answer", "8", "--vocabulary", "4000", "--steps", "1"]
    options = decoding.parse_arguments([*TINY, *sizes])
    memory = decoding.measure_memory(decoding.build_model(options), options)
    assert memory["logits_everywhere"] == pytest.approx(1024 * 4000 * 2 / 2**20, abs=0.01)
    assert memory["ours"] < memory["logits_everywhere"] < memory["float64_everywhere"] < memory["reference"]


def test_peak_memory_counts_what_is_alive_at_once(load: Any) -> None:
    def allocate() -> None:
        first = torch.zeros(2**20, dtype=torch.uint8)
        second = first + 1
        del first
        third = second + 1
        del second, third

    assert load("decoding").peak_bytes("cpu", allocate) == pytest.approx(2 * 2**20, rel=0.01)


def test_steps_that_the_reference_cannot_share_out_are_refused(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("decoding").parse_arguments([*TINY, "--steps", "3"])
    assert "--steps 3" in capsys.readouterr().err


# The loss over a large vocabulary


def test_chunks_need_a_third_of_the_plain_losses_memory(load: Any, tmp_path: Path) -> None:
    sizes = ["--rows", "64", "--width", "32", "--vocabulary", "8000", "--chunks", "8", "--repeats", "2"]
    result = load("loss_memory").main([*sizes, "--autograd"])
    assert result == {k: v for k, v in written(tmp_path, "loss_memory").items() if k in result}
    scores = 64 * 8000 * 4 / 2**20
    for kind in ("none", "there"):
        plain, ours, autograd = (row for row in result["forms"] if row["gradients"] == kind)
        made = 8000 * 32 * 4 / 2**20 if kind == "none" else 0
        # Its log-probabilities, their gradient, and that of the scores; the head's own comes later.
        assert plain["allocated_mb"] == pytest.approx(3 * scores - made, abs=0.6)
        assert ours["share"] < 0.35 and ours["share"] < autograd["share"]
        assert float(ours["error"]) < 1e-5 and ours["low"] < ours["times_plain"] < ours["high"]


# Training-free repair


def test_only_what_may_be_corrupted_is(load: Any) -> None:
    free = load("training_free")
    vocabulary = free.Vocabulary(free.MODEL)
    target = vocabulary.encode(["CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1", "CCO>>CC=O"])
    drafts = free.corrupt(target, vocabulary, 0.1, 0.3, seed=0)
    changed = drafts.ids != target
    assert not (changed & ~drafts.editable).any()
    assert not np.isin(drafts.ids[drafts.editable], vocabulary.special).any()
    share = changed.sum(-1) / drafts.editable.sum(-1)
    assert ((share > 0.05) & (share < 0.35)).all()
    # [CLS], [SEP] and padding stay out; atoms in brackets and the arrow do not.
    assert drafts.editable.sum(-1).tolist() == [35, 8]
    assert drafts.real.sum(-1).tolist() == [37, 10]
    again = free.corrupt(target, vocabulary, 0.1, 0.3, seed=0)
    assert torch.equal(drafts.ids, again.ids)
    assert not torch.equal(drafts.ids, free.corrupt(target, vocabulary, 0.1, 0.3, seed=1).ids)


def test_every_string_is_in_the_vocabulary(load: Any) -> None:
    free = load("training_free")
    vocabulary = free.Vocabulary(free.MODEL)
    development, held_out = free.read_strings(free.parse_arguments([]))
    assert not set(development) & set(held_out)
    ids = vocabulary.encode([*development, *held_out])
    assert len(ids) == 314 and not (ids == vocabulary.unknown).any()


def test_a_real_model_repairs_real_strings(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = load("training_free")
    few = {rule: (preset, thresholds[-2:]) for rule, (preset, thresholds) in free.RULES.items()}
    monkeypatch.setattr(free, "RULES", few)
    shortest = sorted(free.STRINGS.read_text().split(), key=len)[:20]
    (tmp_path / "strings").write_text("\n".join(shortest))
    monkeypatch.setattr(free, "STRINGS", tmp_path / "strings")
    result = free.main(["--development", "6", "--held_out", "14"])
    rules = result["rules"]
    assert set(rules) == {"as it is", *few}
    # Draft errors alone: nothing is revised, nothing repaired.
    assert rules["as it is"]["edits_per_token"] == rules["logit_diff"]["edits_per_token"] == 0
    assert rules["as it is"]["token_accuracy"] == rules["logit_diff"]["token_accuracy"] < 1
    assert result["gain"]["low"] > 0, "the best rule beats leaving the drafts alone"
    assert rules[result["best"]]["remask_precision"] > 0.5
    assert written(tmp_path, "training_free")["best"] == result["best"]
    assert result["best"] in capsys.readouterr().out


def test_a_folder_without_the_model_is_refused(load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = load("training_free")
    with pytest.raises(SystemExit):
        free.parse_arguments(["--model", str(tmp_path)])
    assert "no config.json and no vocab.txt" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ask for 400 of 354"):
        free.read_strings(argparse.Namespace(development=200, held_out=200))


# A training step

STEP = ["--width", "32", "--layers", "1", "--vocabulary", "200", "--prompt", "8", "--answer", "16", "--repeats", "2"]


def test_a_step_of_every_form_is_timed_against_sft(load: Any, tmp_path: Path) -> None:
    result = load("training_step").main([*STEP, "--top_k", "5", "--optimizer", "--bf16"])
    assert result == {k: v for k, v in written(tmp_path, "training_step").items() if k in result}
    assert [row["what"] for row in result["forms"]] == ["vanilla SFT", "RM, T = 16", "RM, T = 64", "RM, T = 16, top 5"]
    assert result["forms"][0]["times_sft"] == 1 and result["probe_cpu_s"] > 0
    for row in result["forms"]:
        assert row["low"] <= row["times_sft"] <= row["high"] and row["cpu_s"] > 0


@pytest.mark.parametrize("optimizer", [True, False])
def test_a_step_is_what_it_says(load: Any, tmp_path: Path, optimizer: bool) -> None:
    """Its wrong tokens are the frozen network's where they should be, and only the optimizer moves the weights."""
    step = load("training_step")
    options = step.parse_arguments([*STEP, "--top_k", "5", *(["--optimizer"] if optimizer else [])])
    rows = step.make_rows(options)
    assert options.repeats == 2 and step.parse_arguments([]).repeats == 30
    trainers, _ = step.build_trainers(options, rows, str(tmp_path))
    trainer = trainers["RM, T = 16, top 5"]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    proposal = trainer.data_collator.proposal
    shard, entries = proposal.table(0, np.array(rows[0]["input_ids"]))
    assert shard["ids"][entries].shape == (16, 5)
    drawn: list[int] = []
    draw = proposal.draw
    proposal.draw = lambda *given: drawn.append(len(given[0])) or draw(*given)
    assert step.make_step(trainer, rows, options)(0) > 0 and drawn == [options.batch]
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert bool(moved) is optimizer


# Published files


def test_without_files_it_says_what_it_needs_and_records_nothing(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `make bench` runs it, which goes on with the next one."""
    assert load("real_files").main([]) is None
    shown = capsys.readouterr().out
    assert all(f"--{name} FILE" in shown for name in ("gsm8k", "math", "mbpp"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        load("real_files").main(["--math", str(tmp_path / "none.jsonl")])
    assert "none.jsonl is no file" in capsys.readouterr().err


def test_references_solve_their_own_problems_and_no_other(load: Any, tmp_path: Path) -> None:
    real = load("real_files")
    rows = [{"question": f"{i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(40)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = real.grade_references(real.MathTask("gsm8k", str(tmp_path / "gsm8k.jsonl")), 30)
    assert (row["file"], row["solutions"], row["own"], row["another's"]) == ("gsm8k", 30, 30, 0)


def test_the_base_is_the_same_again(load: Any, tmp_path: Path) -> None:
    """Or a second run would be refused the first one's evaluations."""
    real = load("real_files")
    samples = [real.TextSample(str(i), f"What is {i}?\n", f"It is {i}.") for i in range(9)]
    for name in ("a", "b"):
        real.build_base(samples, tmp_path / name)
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1] and "model.safetensors" in files[0]
