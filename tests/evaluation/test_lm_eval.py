"""hf_rm in lm-eval: the same numbers as the built-in evaluator, settings, and no code outside the sandbox."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import pytest
import torch
from isolation import isolated
from lm_eval.api.instance import Instance
from tiny_models import wrapped
from tiny_text import WritingModel, character_tokenizer

from hf_rm.evaluation import evaluate_multiple_choice, evaluate_text, score_continuations
from hf_rm.evaluation.lm_eval_model import ReflectiveLM, evaluate_tasks, refuse_unsafe
from hf_rm.tasks.code import read_humaneval, read_mbpp, verify_code
from hf_rm.tasks.math import answers_equal, extract_boxed, extract_marked, read_gsm8k, read_math
from hf_rm.tasks.multiple_choice import read_arc
from hf_rm.tasks.text import TextSample

TOKENIZER = character_tokenizer()
LENGTH = 48
# Hand-made records of the published schemas.
GSM8K = [
    {"question": f"Ann has {a} pens and buys {b}. How many?", "answer": f"She has {a}+{b}.\n#### {a + b}"}
    for a, b in ((1, 2), (30, 40), (5, 6), (1000, 234), (7, 8))
]
GSM8K_TEXTS = ["1+2\n#### 3", "#### 71", "so #### 11", "#### 1,234", "I do not know: 15"]
MATH = [
    {"problem": "Half of one?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "Level 1", "type": "Algebra"},
    {"problem": "Two dozen?", "solution": r"\boxed{24}", "level": "Level 2", "type": "Algebra"},
    {"problem": "A third?", "solution": r"\boxed{\frac{1}{3}}", "level": "Level 2", "type": "Algebra"},
]
MATH_TEXTS = [r"So \boxed{0.5}", r"\boxed{25}", r"\boxed{1/3} Problem: next"]
ARC = [
    {
        "id": f"q{i}",
        "question": f"Which is number {i}?",
        "choices": {"text": [word + "xyz"[: (i + k) % 4] for k, word in enumerate(("stone", "water", "air", "wood"))],
                    "label": ["A", "B", "C", "D"]},
        "answerKey": "DCBA"[i % 4],
    }
    for i in range(12)
]  # fmt: skip
MBPP = [
    {
        "task_id": i,
        "text": f"Add {i}.",
        "code": f"def add(x):\n    return x + {i}",
        "test_list": [f"assert add(1) == {1 + i}", f"assert add(2) == {2 + i}"],
        "test_setup_code": "",
    }
    for i in range(3)
]
MBPP_TEXTS = ["def add(x):\n    return x", "def add(x):\n    return x + 2", "def add(x):\n return x+2\n[DONE]!"]
HUMANEVAL = [
    {
        "task_id": f"H/{i}",
        "prompt": f"def times(x):\n    # {i}\n",
        "canonical_solution": f"    return x * {i}\n",
        "test": f"def check(candidate):\n    assert candidate(2) == {2 * i}\n",
        "entry_point": "times",
    }
    for i in range(2)
]
HUMANEVAL_TEXTS = ["    return 0\n", "    return x + x\n"]


def written(folder: Path, records: Sequence[dict[str, Any]]) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def writer(prompts: Sequence[str], texts: Sequence[str]) -> WritingModel:
    return WritingModel(dict(zip(prompts, texts, strict=True)), TOKENIZER, LENGTH)


# Bundled tasks by their files: the index of all that lm-eval has takes half a minute to read.
BUNDLED = Path(lm_eval.__file__).parent / "tasks"
FILES = {"gsm8k": str(BUNDLED / "gsm8k/gsm8k.yaml"), "arc_challenge": str(BUNDLED / "arc/arc_challenge.yaml")}


def both(samples: list[TextSample], texts: list[str], grade: Any, task: str, path: Path, metric: str) -> list[float]:
    """Accuracy by the built-in evaluator and by lm-eval."""
    spec = FILES.get(task, task)
    model = writer([sample.prompt for sample in samples], texts)
    own = evaluate_text(model, TOKENIZER, samples, grade, {"revise": None}, completion_length=LENGTH)
    lm = ReflectiveLM(model, TOKENIZER, batch_size=2, max_new_tokens=LENGTH, revise=None)
    theirs = evaluate_tasks(lm, [spec], {spec: path}, bootstrap_iters=0)
    logged = sorted(theirs["samples"][task], key=lambda one: one["doc_id"])
    seen = {one["doc_id"]: one["resps"][0][0] for one in logged}
    for index, record in enumerate(own.records):
        assert record.completion.startswith(seen[index])  # what follows a stop word is cut off there
    return [own.accuracy.value, theirs["results"][task][metric]]


def test_gsm8k(tmp_path: Path) -> None:
    path = written(tmp_path, GSM8K)
    samples = [
        TextSample(str(i), f"Question: {problem.question}\nAnswer:", problem.solution, problem.answer)
        for i, problem in enumerate(read_gsm8k(path))
    ]
    grade = lambda sample, text: answers_equal(extract_marked(text), sample.answer, "numeric")  # noqa: E731
    assert both(samples, GSM8K_TEXTS, grade, "gsm8k", path, "exact_match,strict-match") == [0.6, 0.6]


def test_minerva_math(tmp_path: Path) -> None:
    path = written(tmp_path, MATH)
    samples = [
        TextSample(str(i), f"Problem:\n{problem.question}\n\nSolution:", problem.solution, problem.answer)
        for i, problem in enumerate(read_math(path))
    ]
    grade = lambda sample, text: answers_equal(extract_boxed(text), sample.answer)  # noqa: E731
    task = "hf_rm_minerva_math_algebra"
    own, theirs = both(samples, MATH_TEXTS, grade, task, path, "exact_match,none")
    assert own == theirs == pytest.approx(2 / 3)


@isolated
@pytest.mark.parametrize("task", ["hf_rm_mbpp", "hf_rm_humaneval"])
def test_programs_in_our_sandbox(tmp_path: Path, task: str) -> None:
    read, records, texts, right = {
        "hf_rm_mbpp": (read_mbpp, MBPP, MBPP_TEXTS, 2 / 3),
        "hf_rm_humaneval": (read_humaneval, HUMANEVAL, HUMANEVAL_TEXTS, 1 / 2),
    }[task]
    path = written(tmp_path, records)
    problems = {problem.task_id: problem for problem in read(path)}
    samples = [TextSample(key, problem.prompt) for key, problem in problems.items()]
    grade = lambda sample, text: verify_code(problems[sample.key], text).passed  # noqa: E731
    own, theirs = both(samples, texts, grade, task, path, "pass_at_1,none")
    assert own == theirs == pytest.approx(right)


@pytest.mark.parametrize("num_samples", [None, 3])
def test_arc(tmp_path: Path, num_samples: int | None) -> None:
    path = written(tmp_path, ARC)
    model = wrapped(vocab_size=len(TOKENIZER))
    lm = ReflectiveLM(model, TOKENIZER, batch_size=5, num_samples=num_samples, seed=4)
    theirs = evaluate_tasks(lm, [FILES["arc_challenge"]], {FILES["arc_challenge"]: path}, bootstrap_iters=0)
    for metric, normalise in (("acc", "none"), ("acc_norm", "characters")):
        own = evaluate_multiple_choice(
            model, TOKENIZER, read_arc(path), num_samples=num_samples, seed=4, normalise=normalise  # type: ignore
        )  # fmt: skip
        assert theirs["results"]["arc_challenge"][f"{metric},none"] == own.accuracy.value
        logged = sorted(theirs["samples"]["arc_challenge"], key=lambda one: one["doc_id"])
        assert [one[metric] for one in logged] == own.correct.tolist()
    assert 0 < own.accuracy.value < 1


def requests(*pairs: tuple[Any, ...], kind: Any = "generate_until", task: str = "t") -> list[Any]:
    return [Instance(kind, {}, pair, 0, (task, number, 1)) for number, pair in enumerate(pairs)]


# Settings


def test_settings_given_here_win_and_a_task_fills_in_the_rest() -> None:
    model = wrapped(vocab_size=len(TOKENIZER))
    lm = ReflectiveLM(model, TOKENIZER, steps=4, reveal="confidence", revise="none")
    asked = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 9, "steps": 8}
    assert lm._settings(asked) == (9, {"steps": 4, "reveal": "confidence", "revise": None, "temperature": 0.0}, ["\n"])
    assert lm._settings({"until": "x", "do_sample": True, "top_p": 0.5}) == (
        256,
        {"steps": 4, "reveal": "confidence", "revise": None, "temperature": 1.0, "top_p": 0.5},
        ["x"],
    )
    sampling = ReflectiveLM(model, TOKENIZER, preset="remdm-loop", max_new_tokens=7)
    assert sampling._settings(asked) == (7, {"preset": "remdm-loop", "steps": 8}, ["\n"])
    greedy = ReflectiveLM(model, TOKENIZER, temperature=0.0)
    assert greedy._settings({"do_sample": True, "top_k": 5}) == (256, {"temperature": 0.0}, [])
    with pytest.raises(ValueError, match="'num_beams'"):
        lm._settings({"num_beams": 4})


def test_a_text_is_the_same_in_any_batch_and_another_for_another_seed_or_repeat() -> None:
    model = wrapped(vocab_size=len(TOKENIZER))
    settings = {"steps": 4, "reveal": "confidence", "revise": None, "temperature": 1.0, "max_new_tokens": 8}
    asked = requests(("abc", {}), ("a longer prompt", {}), ("x", {"steps": 2}))
    texts = ReflectiveLM(model, TOKENIZER, batch_size=1, **settings).generate_until(asked)
    assert texts == ReflectiveLM(model, TOKENIZER, batch_size="64", **settings).generate_until(asked)
    assert texts != ReflectiveLM(model, TOKENIZER, seed=1, **settings).generate_until(asked)
    repeated = ReflectiveLM(model, TOKENIZER, **settings).generate_until([asked[0]] * 3)
    assert repeated[0] == texts[0] and len(set(repeated)) == 3


def test_stop_words_and_prompts_that_do_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    model = writer(["a", "b"], ["one. two; three", "four"])
    model.config.max_position_embeddings = LENGTH + 4
    lm = ReflectiveLM(model, TOKENIZER, max_new_tokens=LENGTH, revise=None)
    stored: list[Any] = []
    lm.set_cache_hook(SimpleNamespace(add_partial=lambda *entry: stored.append(entry)))
    wanted = {"until": [";", "."]}
    asked = requests(("a", wanted), ("b", {"until": "u"}), ("a" * 5, wanted), ("b", {}))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert lm.generate_until(asked) == ["one", "fo", "", "four"]
    finally:
        logger.removeHandler(caplog.handler)
    assert "1 of 4 prompts do not fit" in caplog.text
    assert sorted(entry[2] for entry in stored) == ["fo", "four", "one"]


def test_likelihoods() -> None:
    model = wrapped(vocab_size=len(TOKENIZER))
    pairs = [("What is ice?", " water"), ("What is ice?", " fire")]
    scores = score_continuations(model, TOKENIZER, pairs)
    found = ReflectiveLM(model, TOKENIZER).loglikelihood(requests(*pairs, kind="loglikelihood"))
    assert found == [(score.log_likelihood, score.greedy) for score in scores]
    whole = requests(("What?",), kind="loglikelihood_rolling")
    with pytest.raises(ValueError, match="Pass num_samples"):
        ReflectiveLM(model, TOKENIZER).loglikelihood_rolling(whole)
    (bound,) = ReflectiveLM(model, TOKENIZER, num_samples=4).loglikelihood_rolling(whole)
    assert bound == score_continuations(model, TOKENIZER, [("", "What?")], num_samples=4)[0].log_likelihood


def test_chat_templates() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = character_tokenizer(chat_template=template, bos_token="[END]")
    model = WritingModel({"[END]user: a\nassistant:": "yes"}, tokenizer, LENGTH)
    lm = ReflectiveLM(model, tokenizer, max_new_tokens=LENGTH, revise=None)
    prompt = lm.apply_chat_template([{"role": "user", "content": "a"}])
    assert prompt == "[END]user: a\nassistant:"
    assert lm.generate_until(requests((prompt, {}))) == ["yes"]
    assert (lm.chat_template(False), lm.chat_template(True)) == ("", template)


def test_a_model_by_name_with_an_adapter(tmp_path: Path) -> None:
    from peft import LoraConfig

    model = wrapped(vocab_size=len(TOKENIZER))
    model.save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    asked = requests(("a", {}), ("bc", {}))
    settings = {"steps": 4, "reveal": "confidence", "revise": None, "max_new_tokens": 8}
    plain = ReflectiveLM(model, TOKENIZER, **settings).generate_until(asked)
    by_name = ReflectiveLM.create_from_arg_string(
        f"pretrained={tmp_path}/base,steps=4,reveal=confidence,revise=none,max_new_tokens=8",
        {"batch_size": 3, "device": None if torch.cuda.is_available() else "cuda:0"},  # the shell's default
    )
    assert by_name.rows == 3 and by_name.generate_until(asked) == plain

    from hf_rm import RMForMaskedDiffusion

    tuned = RMForMaskedDiffusion.from_pretrained(tmp_path / "base")
    tuned.add_adapter(LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    with_adapter = ReflectiveLM(f"{tmp_path}/base", adapter=f"{tmp_path}/adapter", **settings)
    texts = with_adapter.generate_until(asked)
    assert texts == ReflectiveLM(tuned.eval(), TOKENIZER, **settings).generate_until(asked) != plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "'stepz'"),
        ({"steps": 0}, "`steps` is 0"),
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
        ({"tokenizer": None}, "`tokenizer` is None"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReflectiveLM(writer(["a"], ["b"]), **{"tokenizer": TOKENIZER, **settings})


# Code outside the sandbox

UNSAFE = ["mbpp", "mbpp_instruct", "mbpp_plus", "humaneval", "humaneval_instruct", "humaneval_single_line_infilling"]


@pytest.mark.parametrize("task", [*UNSAFE, "cruxeval_o", "pseudo_to_code_2k"])
def test_code_tasks_of_lm_eval_are_refused_by_name(task: str) -> None:
    model = writer(["a"], ["b"])
    lm = ReflectiveLM(model, TOKENIZER)
    for run in (
        lambda: evaluate_tasks(lm, ["arc_challenge", task]),
        lambda: lm.generate_until(requests(("a", {}), task=task)),
        lambda: lm.loglikelihood(requests(("a", "b"), task=task)),
    ):
        with pytest.raises(ValueError, match=f"'{task}' runs model-written code"):
            run()
    assert model.seen == []


def test_what_is_marked_unsafe_is_found_in_groups_and_files(tmp_path: Path) -> None:
    lm = ReflectiveLM(writer(["a"], ["b"]), TOKENIZER)
    path = written(tmp_path, GSM8K)
    task = {
        "task": "mine",
        "tag": "marked",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "unsafe_code": True,
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/mine.yaml").write_text(json.dumps(task))
    (tmp_path / "tasks/group.yaml").write_text(json.dumps({"group": "all", "task": ["hf_rm_mbpp", {"task": "mine"}]}))
    (tmp_path / "tasks/other.yaml").write_text(json.dumps({"group": "code", "task": ["all", "humaneval"]}))
    for name, found in (("mine", "mine"), ("all", "mine"), ("marked", "mine"), ("code", "humaneval")):
        with pytest.raises(ValueError, match=f"'{found}' runs model-written code"):
            evaluate_tasks(lm, [name], include_path=tmp_path / "tasks")
    (tmp_path / "apart.yaml").write_text(json.dumps(task))
    with pytest.raises(ValueError, match=r"'mine' runs model-written code"):
        evaluate_tasks(lm, [str(tmp_path / "apart.yaml")])
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        evaluate_tasks(lm, ["gsm8k"], confirm_run_unsafe_code=True)
    refuse_unsafe("hf_rm_mbpp")
    with pytest.raises(ValueError, match="data_files"):
        evaluate_tasks(lm, ["gsm8k"], {"arc_challenge": path})
    with pytest.raises(OSError, match="is no file"):
        evaluate_tasks(lm, ["gsm8k"], {"gsm8k": tmp_path / "none.jsonl"})
    with pytest.raises(ValueError, match="no single task"):
        evaluate_tasks(lm, ["hf_rm_minerva_math"], {"hf_rm_minerva_math": path})
    for file in ("mbpp/mbpp.yaml", "humaneval/humaneval_plus.yaml"):
        with pytest.raises(ValueError, match="runs model-written code"):
            evaluate_tasks(lm, [str(BUNDLED / file)])


def test_the_package_does_not_import_lm_eval() -> None:
    code = "import sys, hf_rm, hf_rm.evaluation as e; assert 'lm_eval' not in sys.modules; e.ReflectiveLM; "
    code += "assert 'lm_eval' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0
