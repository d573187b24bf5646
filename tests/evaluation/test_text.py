"""The built-in evaluator: what it decodes and counts, batches, and runs that were stopped."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_models import wrapped
from tiny_text import WritingModel, character_tokenizer

from hf_rm.evaluation import (
    Interval,
    TextEvaluation,
    evaluate_text,
    paired_bootstrap,
    paired_difference_interval,
    plot_forwards,
    text_results_table,
)
from hf_rm.tasks.math import answers_equal, extract_answer
from hf_rm.tasks.text import TextSample

TOKENIZER = character_tokenizer()
LENGTH = 16
# A problem, what the reference says, what the model drafts, what it ends with.
ROWS = [
    ("1 + 1", "2", "#### 2", "#### 2"),
    ("2 + 2", "4", "#### 5", "#### 4"),
    ("10 + 10 + 10", "30", "#### 30", "#### 31"),
    ("3", "3", "no idea", "no idea"),
    ("2 * 2 + 1", "5", "4 + 1\n#### 5", "4 + 1\n#### 5"),
]
SAMPLES = [
    TextSample(f"s{i}", f"{question} = ?\n", f"#### {answer}", answer, str(len(question.split())))
    for i, (question, answer, _, _) in enumerate(ROWS)
]
DECODING = {"reveal": "all", "revise": "reflective"}


def model(**config: Any) -> WritingModel:
    texts = {sample.prompt: row[2:] for sample, row in zip(SAMPLES, ROWS, strict=True)}
    return WritingModel(texts, TOKENIZER, LENGTH, **config)


def grade(sample: TextSample, text: str) -> bool:
    return answers_equal(extract_answer(text), sample.answer, "numeric")


def run(samples: Any = SAMPLES, decoding: Any = DECODING, grader: Any = grade, **settings: Any) -> TextEvaluation:
    settings = {"completion_length": LENGTH, "batch_size": 2, **settings}
    return evaluate_text(settings.pop("model", None) or model(), TOKENIZER, samples, grader, decoding, **settings)


def test_texts_verdicts_and_counts() -> None:
    result = run(name="rm")
    assert [record.completion for record in result.records] == [row[3] for row in ROWS]
    assert result.correct.tolist() == [True, True, False, False, True]
    assert result.accuracy[0] == 0.6 and 0 < result.accuracy.low < 0.6
    assert {name: rate.value for name, rate in result.by_group().items()} == {"1": 0.0, "3": 1.0, "5": 0.5}
    # Reveal and rest, or reveal, take back, reveal, rest.
    assert [record.forwards for record in result.records] == [2, 4, 4, 2, 2]
    assert [record.remasks for record in result.records] == [0, 1, 1, 0, 0]
    assert result.forwards.value == 2.8 and result.revision is None
    json.dumps(result.summary())


def test_gold_completions_are_all_right_and_those_of_others_all_wrong() -> None:
    gold = [sample.completion for sample in SAMPLES]
    for texts, right in ((gold, 1.0), (gold[1:] + gold[:1], 0.0)):
        texts_by_prompt = {sample.prompt: text for sample, text in zip(SAMPLES, texts, strict=True)}
        assert run(model=WritingModel(texts_by_prompt, TOKENIZER, LENGTH)).accuracy.value == right


def test_revision_is_seen() -> None:
    result = run(revision=True)
    assert [record.draft for record in result.records] == [row[2] for row in ROWS]
    assert [record.draft_correct for record in result.records] == [True, False, True, False, True]
    assert {record.draft_forwards for record in result.records} == {1}
    seen = result.revision
    assert seen is not None
    assert (seen.draft_accuracy.value, seen.to_right.value, seen.to_wrong.value) == (0.6, 0.2, 0.2)
    assert seen.to_right.observations == 5 and seen.remasks.value == 0.4
    # Two tokens were taken back, another came; one of the two was wrong.
    assert (seen.replays.value, seen.replays.observations, seen.precision.value) == (0.0, 2, 0.5)
    assert seen.recall.observations > 1 and seen.replay_mistake == (0.0, *seen.replay_mistake[1:])
    assert result.summary()["revision"]["to_wrong"] == 0.2


def test_a_draft_is_not_graded_twice_where_it_stayed() -> None:
    asked: list[str] = []

    def counting(samples: list[TextSample], texts: list[str]) -> list[bool]:
        asked.extend(texts)
        return [grade(*pair) for pair in zip(samples, texts, strict=True)]

    assert run(grader=counting, batched_grade=True, revision=True).correct.sum() == 3
    assert sorted(asked) == sorted([row[3] for row in ROWS] + ["#### 5", "#### 30"])
    with pytest.raises(ValueError, match="1 verdicts for 2 texts"):
        run(grader=lambda samples, texts: [True], batched_grade=True)


# Batches


def lively(seed: int = 0) -> Any:
    return wrapped(seed, vocab_size=len(TOKENIZER))


@pytest.mark.parametrize(
    "decoding",
    [
        {"steps": 6, "reveal": "confidence", "revise": "reflective", "max_steps": 12},
        {"steps": 6, "reveal": "confidence", "revise": None, "temperature": 1.0},
        {"preset": "remdm-loop", "steps": 8},
    ],
)
def test_the_result_does_not_depend_on_batches_or_order(decoding: dict[str, Any]) -> None:
    network = lively()
    settings = {"model": network, "decoding": decoding, "grader": lambda s, text: "a" in text}
    one = run(batch_size=1, **settings)
    for batch_size, samples in ((5, SAMPLES), (2, SAMPLES[::-1])):
        other = run(samples, batch_size=batch_size, **settings)
        assert {record.key: record for record in other.records} == {record.key: record for record in one.records}
    assert len({record.ids for record in one.records}) > 1


def test_the_seed_and_the_key_make_the_random_numbers() -> None:
    decoding = {"steps": 6, "reveal": "confidence", "revise": None, "temperature": 1.0}
    twins = [TextSample(key, "1 = ?\n") for key in "abc"]
    first, again, other = (
        run(twins, decoding, lambda s, t: True, model=lively(), seed=seed) for seed in (0, 0, 1)
    )  # fmt: skip
    ids = [record.ids for record in first.records]
    assert len(set(ids)) == 3
    assert ids == [record.ids for record in again.records] and ids != [record.ids for record in other.records]


# Stopped runs


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    whole = run(folder=tmp_path / "whole", revision=True)
    asked: list[str] = []

    def failing(sample: TextSample, text: str) -> bool:
        if sample.key == "s3":
            raise Stopped
        return grade(sample, text)

    def again(sample: TextSample, text: str) -> bool:
        asked.append(sample.key)
        return grade(sample, text)

    failing.__qualname__ = again.__qualname__ = grade.__qualname__
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        run(folder=folder, revision=True, grader=failing)
    file = folder / "samples.jsonl"
    kept = [json.loads(line)["key"] for line in file.read_text().splitlines()[1:]]
    assert 0 < len(kept) < len(SAMPLES)
    file.write_bytes(file.read_bytes() + b'{"key": "s3", "completion": "half a li')  # the disk was full
    resumed = run(folder=folder, revision=True, grader=again)
    assert resumed == whole
    assert set(asked) == {sample.key for sample in SAMPLES} - set(kept)
    assert sorted(file.read_text().splitlines()) == sorted((tmp_path / "whole/samples.jsonl").read_text().splitlines())

    quiet = model()
    asked.clear()
    assert run(folder=folder, revision=True, grader=again, model=quiet) == whole
    assert asked == [] and quiet.seen == []


def test_every_line_may_be_the_last(tmp_path: Path) -> None:
    whole = run(folder=tmp_path / "whole")
    content = (tmp_path / "whole/samples.jsonl").read_bytes()
    for cut in (0, 5, content.index(b"\n") + 1, len(content) // 2, len(content) - 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "samples.jsonl").write_bytes(content[:cut])
        assert run(folder=folder) == whole


def test_records_of_another_run_are_refused_by_name(tmp_path: Path) -> None:
    run(folder=tmp_path)
    other = model()
    other.weight += 1
    changed = [TextSample(s.key, s.prompt, s.completion, "7", s.group) for s in SAMPLES]
    for settings, name in (
        ({"seed": 3}, r"seed \(0 there, 3 now\)"),
        ({"decoding": {**DECODING, "patience": 2}}, r"decoding.patience"),
        ({"model": other}, "weights"),
        ({"samples": changed}, "samples"),
        ({"samples": SAMPLES[1:]}, "samples"),
        ({"grader": lambda s, t: True}, "grade"),
        ({"revision": True}, "revision"),
        ({"completion_length": LENGTH + 1}, "decoding.max_new_tokens"),
    ):
        with pytest.raises(ValueError, match=f"another evaluation.*{name}"):
            run(**{"folder": tmp_path, **settings})
    file = tmp_path / "samples.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{]", *lines[2:], ""]))
    with pytest.raises(ValueError, match="line 2, is no record"):
        run(folder=tmp_path)


# Bad input


def test_what_does_not_fit_counts_as_wrong_and_is_named(tmp_path: Path) -> None:
    short = model(max_position_embeddings=LENGTH + 12)
    result = run(model=short, folder=tmp_path)
    assert result.too_long == ("s2", "s4") and result.accuracy.observations == 5
    assert result.correct.tolist() == [True, True, False, False, False]
    assert result.forwards.observations == 3
    assert run(model=short, folder=tmp_path) == result
    with pytest.raises(ValueError, match="none of the 5 prompts fits"):
        run(model=model(max_position_embeddings=LENGTH))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": []}, "`samples` is empty"),
        ({"samples": [SAMPLES[0], SAMPLES[0]]}, "'s0' twice"),
        ({"completion_length": 0}, "completion_length is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"decoding": {"max_new_tokens": 3}}, "max_new_tokens=3"),
        ({"decoding": {"reveal": "none"}}, "`reveal` is 'none'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(settings: dict[str, Any], message: str) -> None:
    quiet = model()
    with pytest.raises(ValueError, match=message):
        run(model=quiet, **settings)
    assert quiet.seen == []


# Comparisons and reports


def test_the_bootstrap_agrees_with_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(1000) < 0.6, rng.random(1000) < 0.5
    boot, closed = paired_bootstrap(a, b, seed=1, resamples=2050), paired_difference_interval(a, b)
    assert boot.value == closed.value and boot.observations == 1000
    assert abs(boot.low - closed.low) < 0.005 and abs(boot.high - closed.high) < 0.005
    assert boot == paired_bootstrap(a, b, seed=1, resamples=2050) != paired_bootstrap(a, b, seed=2, resamples=2050)
    assert paired_bootstrap(a, a) == Interval(0.0, 0.0, 0.0, 1000)
    with pytest.raises(ValueError, match="same items"):
        paired_bootstrap([1], [1, 0])
    with pytest.raises(ValueError, match="resamples is 0"):
        paired_bootstrap([1], [1], resamples=0)


def test_systems_are_compared_sample_by_sample() -> None:
    better, worse = run(name="rm"), run(grader=lambda s, t: False, name="sft")
    turned = run(SAMPLES[::-1], grader=lambda s, t: s.key == "s2")
    assert better.minus(worse).value == 0.6 == better.minus(worse, "normal").value
    assert better.minus(turned).value == pytest.approx(0.4)
    with pytest.raises(ValueError, match="different samples"):
        better.minus(run(SAMPLES[:2]))
    table = text_results_table([worse, better, run(name="seen", revision=True)], baseline=worse)
    console = Console(width=220, record=True, file=StringIO())
    console.print(table)
    text = console.export_text()
    assert "+60.0 [+20.0, +100.0]" in text and "20.0 [" in text and "less sft" in text and "precision %" in text


def test_budgets_and_their_plot(tmp_path: Path) -> None:
    budgets = [run(decoding=decoding) for decoding in ({"reveal": "all", "revise": None}, DECODING)]
    assert [e.forwards.value for e in budgets] == [1.0, 2.8]
    assert [bool(e.correct[1]) for e in budgets] == [False, True]
    picture = plot_forwards({"rm": budgets}, tmp_path / "plots/forwards.png")
    assert picture.stat().st_size > 5000
