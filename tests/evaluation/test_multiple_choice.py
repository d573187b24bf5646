"""Multiple choice by likelihood: both scores against slow forms, ARC in both schemas."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import wrapped
from tiny_text import MASK, character_tokenizer

from hf_rm.evaluation import evaluate_multiple_choice, score_continuations
from hf_rm.tasks._records import BadRecordError
from hf_rm.tasks.multiple_choice import ChoiceProblem, read_arc

TOKENIZER = character_tokenizer()
RESERVED = [2, 40]
PAIRS = [("What is ice?", " hot"), ("What is ice?", " cold water"), ("a", "b"), ("", "cb"), ("ab", "c")]


def network(seed: int = 0, **config: Any) -> Any:
    return wrapped(seed, vocab_size=len(TOKENIZER), suppressed_token_ids=RESERVED, **config)


@torch.no_grad()
def slow_log_p(model: Any, prompt: list[int], answer: list[int], places: tuple[int, ...]) -> tuple[float, bool]:
    """The sum of log p at the masked places, from all logits of one row."""
    ids = torch.tensor([prompt + answer])
    begin = len(prompt)
    for place in places:
        ids[0, begin + place] = MASK
    editable = torch.arange(ids.shape[1])[None] >= begin
    logits = model(input_ids=ids, editable_mask=editable).logits[0]
    logits[:, [MASK, *RESERVED]] = -torch.inf
    log_p = logits.double().log_softmax(-1)
    rows = [log_p[begin + place] for place in places]
    tokens = [answer[place] for place in places]
    return (
        float(sum(row[token] for row, token in zip(rows, tokens, strict=True))),
        all(int(row.argmax()) == token for row, token in zip(rows, tokens, strict=True)),
    )


def encoded(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("config", [{"history": False}, {"history_norm": "rms"}, {"history_scope": "editable"}])
def test_one_forward_pass_is_the_sum_at_the_masks(config: dict[str, Any]) -> None:
    model = network(**config)
    scores = score_continuations(model, TOKENIZER, PAIRS, batch_size=3)
    for score, (prompt, answer) in zip(scores, PAIRS, strict=True):
        tokens = encoded(answer)
        slow, greedy = slow_log_p(model, encoded(prompt), tokens, tuple(range(len(tokens))))
        assert score.log_likelihood == pytest.approx(slow, abs=1e-4)
        assert (score.greedy, score.tokens) == (greedy, len(tokens))


def test_greedy_means_the_most_probable_tokens() -> None:
    model = network()
    tokens = encoded(" 12")
    ids = torch.tensor([encoded("1, 2") + [MASK] * len(tokens)])
    logits = model(input_ids=ids).logits[0, -len(tokens) :]
    logits[:, [MASK, 1, *RESERVED]] = -torch.inf
    best = TOKENIZER.decode(logits.argmax(-1))
    (score,) = score_continuations(model, TOKENIZER, [("1, 2", best)])
    assert score.tokens == len(tokens)
    assert score.greedy == all(logits.argmax(-1) == torch.tensor(encoded(best))) and score.greedy
    assert not score_continuations(model, TOKENIZER, [("1, 2", best[:-1] + "~")])[0].greedy


def exact_bound(model: Any, prompt: str, answer: str) -> float:
    """The mean over l of 1..L and over all subsets of that size."""
    tokens = encoded(answer)
    length = len(tokens)
    means = []
    for count in range(1, length + 1):
        subsets = list(combinations(range(length), count))
        values = [slow_log_p(model, encoded(prompt), tokens, subset)[0] for subset in subsets]
        means.append(length / count * float(np.mean(values)))
    return float(np.mean(means))


def test_monte_carlo_comes_to_the_exact_mean() -> None:
    model = network()
    pairs = [("What is ice?", " cold"), ("a", "bc")]
    scores = score_continuations(model, TOKENIZER, pairs, num_samples=600, batch_size=200)
    for score, pair in zip(scores, pairs, strict=True):
        assert score.log_likelihood == pytest.approx(exact_bound(model, *pair), rel=0.03)
    # One token leaves no choice of what to mask.
    single = [("ab", "c")]
    assert score_continuations(model, TOKENIZER, single, num_samples=3)[0].log_likelihood == pytest.approx(
        score_continuations(model, TOKENIZER, single)[0].log_likelihood, abs=1e-5
    )


@pytest.mark.parametrize("num_samples", [None, 5])
def test_scores_do_not_depend_on_batches_or_order(num_samples: int | None) -> None:
    model = network()
    one = score_continuations(model, TOKENIZER, PAIRS, num_samples, batch_size=1)
    many = score_continuations(model, TOKENIZER, PAIRS[::-1], num_samples, batch_size=64)[::-1]
    for left, right in zip(one, many, strict=True):
        assert left.log_likelihood == pytest.approx(right.log_likelihood, abs=1e-4)
        assert left.greedy == right.greedy
    if num_samples:
        other = score_continuations(model, TOKENIZER, PAIRS, num_samples, seed=1)
        assert [s.log_likelihood for s in other] != [s.log_likelihood for s in one]


def test_the_best_choice_wins_by_each_normalisation() -> None:
    model = network()
    rng = np.random.default_rng(0)
    problems = [
        ChoiceProblem(str(i), f"{i} + {i}?", tuple("abcdefghij"[: 1 + int(n)] for n in rng.permutation(9)[:4]), i % 4)
        for i in range(12)
    ]
    chosen = {}
    for normalise in ("none", "tokens", "characters"):
        result = evaluate_multiple_choice(model, TOKENIZER, problems, normalise=normalise)  # type: ignore[arg-type]
        sizes = {
            "none": lambda text: 1,
            "tokens": lambda text: len(text) + 1,  # the space in front
            "characters": len,
        }[normalise]
        for problem, scores, best in zip(problems, result.scores, result.chosen, strict=True):
            values = [
                slow_log_p(model, encoded(problem.prompt), encoded(c), tuple(range(len(c))))[0] / sizes(c[1:])
                for c in problem.continuations
            ]
            assert [s.log_likelihood for s in scores] == pytest.approx(
                [v * sizes(c) for v, c in zip(values, problem.choices, strict=True)], abs=1e-3
            )
            assert best == int(np.argmax(values))
        assert result.accuracy.value == np.mean(result.chosen == [problem.answer for problem in problems])
        chosen[normalise] = result.chosen.tolist()
    assert chosen["none"] != chosen["tokens"]


def test_the_head_sees_the_masked_positions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    shapes = []
    head = model.model.lm_head
    head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    score_continuations(model, TOKENIZER, [("a long question, and more of it", " no"), ("b", " yes")])
    assert shapes == [(2, 4, len(TOKENIZER))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([("a", "")],), "has no token|at least one token"),
        (([("a", "[MASK]")],), "the mask and reserved ids"),
        (([("a" * 200, "b")],), "200|201"),
        ((PAIRS, 0), "`num_samples` is 0"),
        ((PAIRS, None, 0), "`batch_size` is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_continuations(network(), TOKENIZER, *arguments)
    with pytest.raises(ValueError, match="`problems` is empty"):
        evaluate_multiple_choice(network(), TOKENIZER, [])
    with pytest.raises(ValueError, match="`normalise` is 'x'"):
        evaluate_multiple_choice(network(), TOKENIZER, [ChoiceProblem("", "", ("a",), 0)], normalise="x")  # type: ignore


# Runs with a folder

CHOICES = [ChoiceProblem(f"q{i}", f"{i} + 1?", (str(i + 1), f"{i} and a half", "none"), 0) for i in range(5)]


@pytest.mark.parametrize("num_samples", [None, 7])
def test_a_run_that_was_stopped_anywhere_gives_the_same(tmp_path: Path, num_samples: int | None) -> None:
    settings: dict[str, Any] = {"num_samples": num_samples, "batch_size": 6, "seed": 3}
    free = evaluate_multiple_choice(network(), TOKENIZER, CHOICES, **settings)
    whole = evaluate_multiple_choice(network(), TOKENIZER, CHOICES, folder=tmp_path / "whole", **settings)
    assert whole.scores == free.scores and whole.chosen.tolist() == free.chosen.tolist()
    content = (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert len(content.splitlines()) == 1 + len(CHOICES)
    for cut in (0, 5, content.index(b"\n") + 1, len(content) // 2, len(content) - 1, len(content)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "samples.jsonl").write_bytes(content[:cut])
        resumed = evaluate_multiple_choice(network(), TOKENIZER, CHOICES, folder=folder, **settings)
        assert resumed.scores == whole.scores


def test_scores_of_another_run_are_refused_by_name_and_serve_every_normalisation(tmp_path: Path) -> None:
    first = evaluate_multiple_choice(network(), TOKENIZER, CHOICES, folder=tmp_path)
    changed = [ChoiceProblem("q0", "0 + 2?", ("2", "3"), 0), *CHOICES[1:]]
    for settings, name in (
        ({"model": network(1)}, "weights"),
        ({"problems": changed}, "problems"),
        ({"problems": CHOICES[1:]}, "problems"),
        ({"problems": [ChoiceProblem("q0", "0 + 1?", CHOICES[0].choices, 1), *CHOICES[1:]]}, "problems"),
        ({"num_samples": 2}, r"num_samples \(None there, 2 now\)"),
        ({"seed": 1}, r"seed \(0 there, 1 now\)"),
    ):
        given: dict[str, Any] = {"model": network(), "problems": CHOICES, **settings}
        with pytest.raises(ValueError, match=f"another evaluation, which differs in {name}"):
            evaluate_multiple_choice(given.pop("model"), TOKENIZER, given.pop("problems"), folder=tmp_path, **given)
    by_length = evaluate_multiple_choice(network(), TOKENIZER, CHOICES, normalise="characters", folder=tmp_path)
    assert by_length.scores == first.scores and by_length.chosen.tolist() != first.chosen.tolist()


def test_a_problem_that_does_not_fit_counts_as_wrong_and_is_named(tmp_path: Path) -> None:
    long = ChoiceProblem("long", "What?", ("yes", "no" * 60), 0)  # its right choice alone would fit
    for _ in range(2):  # decided, then read back
        result = evaluate_multiple_choice(network(), TOKENIZER, [CHOICES[0], long, CHOICES[1]], folder=tmp_path)
        assert result.too_long == ("long",) and result.scores[1] == () and result.chosen[1] == -1
        assert not result.correct[1] and result.accuracy.observations == 3
    with pytest.raises(ValueError, match="none of the 1 problems fits"):
        evaluate_multiple_choice(network(), TOKENIZER, [long])
    with pytest.raises(ValueError, match="`problems` holds the key 'q0' twice"):
        evaluate_multiple_choice(network(), TOKENIZER, [CHOICES[0], CHOICES[0]])


def test_rows_of_a_batch_are_never_more_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = network(), []
    model.model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    evaluate_multiple_choice(model, TOKENIZER, CHOICES, batch_size=7)
    assert rows == [6, 6, 3], "two problems of three choices at a time"
    rows.clear()
    evaluate_multiple_choice(model, TOKENIZER, CHOICES[:1], batch_size=4, num_samples=5)
    assert rows == [4, 4, 4, 3]


# ARC

HUB = {
    "id": "a",
    "question": " What is ice? ",
    "choices": {"text": ["Fire.", "Water."], "label": ["A", "B"]},
    "answerKey": "B",
}
AI2: dict[str, Any] = {
    "id": "b",
    "question": {
        "stem": "What is steam?",
        "choices": [{"text": "Water.", "label": "1"}, {"text": "Fire.", "label": "2"}, {"text": "Air.", "label": "3"}],
    },
    "answerKey": "1",
}


def test_both_schemas_are_read(tmp_path: Path) -> None:
    path = tmp_path / "arc.jsonl"
    path.write_text("\n".join(map(json.dumps, (HUB, AI2))))
    assert read_arc(path) == [
        ChoiceProblem("a", "What is ice?", ("Fire.", "Water."), 1),
        ChoiceProblem("b", "What is steam?", ("Water.", "Fire.", "Air."), 0),
    ]
    sample = read_arc(path)[0].sample
    assert (sample.prompt, sample.completion) == ("Question: What is ice?\nAnswer:", " Water.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "C"}, r"record 1 has the 'answerKey' 'C', but its labels are \['A', 'B'\]"),
        ({"answerKey": ""}, "empty 'answerKey'"),
        ({"choices": {"text": ["One."], "label": ["A"]}}, "each needs a text"),
        ({"choices": {"text": ["One.", " "], "label": ["A", "B"]}}, "each needs a text"),
        ({"choices": {"text": ["One.", "Two."], "label": ["A", "A"]}}, "each needs a text"),
        ({"choices": {"text": ["One.", "Two."]}}, "no column 'label'"),
        ({"question": {"stem": "What?"}}, "no column 'choices'"),
        ({"question": {"stem": "", "choices": AI2["question"]["choices"]}}, "its 'question' has an empty 'stem'"),
        ({"question": ""}, "record 1 has an empty 'question'"),
        ({"id": None}, "record 1 has an empty 'id'"),
        ({"choices": []}, "record 1 has an empty 'choices'"),
        ({"choices": {"text": ["One.", "Two."], "label": ["A"]}}, "each needs a text"),
        ({"choices": [{"text": "One."}, {"text": "Two.", "label": "B"}]}, "a choice has no column 'label'"),
        ({"choices": [1, 2]}, "a choice is no object with 'text', but 1"),
        ({"choices": "AB"}, "its 'choices' is no object with 'text', but 'AB'"),
        ({"choices": {"text": "XY", "label": "AB"}}, "'text' and 'label' each have to be a list"),
        ({"question": "  "}, "nothing but spaces in 'question'"),
    ],
)
def test_bad_records_are_named_and_left_out(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "arc.jsonl"
    path.write_text(f"{json.dumps({**HUB, **change})}\n{json.dumps(AI2)}")
    with pytest.raises(BadRecordError, match=message):
        read_arc(path)
    left_out: list[str] = []
    assert [problem.key for problem in read_arc(path, left_out)] == ["b"]
    assert len(left_out) == 1 and left_out[0].startswith("arc.jsonl, record 1")


@pytest.mark.parametrize("column", sorted(HUB))
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "arc.jsonl"
    path.write_text(json.dumps({name: value for name, value in HUB.items() if name != column}))
    with pytest.raises(ValueError, match=f"record 1 has no column '{column}'"):
        read_arc(path)
