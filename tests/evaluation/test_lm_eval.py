"""hf_rm in lm-eval: the same numbers as the built-in evaluator, settings, and no code outside the sandbox."""

import importlib.metadata
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import lm_eval.tasks
import pytest
import torch
from isolation import isolated
from lm_eval.api.instance import Instance
from tiny_models import wrapped
from tiny_text import WritingModel, character_tokenizer

from hf_rm.evaluation import evaluate_multiple_choice, evaluate_text, score_continuations
from hf_rm.evaluation.lm_eval_model import ReflectiveLM, evaluate_tasks, main, refuse_unsafe
from hf_rm.evaluation.lm_eval_tasks import utils
from hf_rm.tasks.code.tasks import CodeTask
from hf_rm.tasks.math import answers_equal, extract_boxed, extract_marked, read_gsm8k, read_math
from hf_rm.tasks.math.tasks import TEMPLATE, MathTask
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
ANSWERS = [r"$\frac{1}{2}$", "$25$", r"$\frac{1}{3}$"]
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


def both(
    samples: Sequence[TextSample], texts: Sequence[str], grade: Any, task: str, path: Path, metric: str, **more: Any
) -> list[float]:
    """Accuracy by the built-in evaluator and by lm-eval."""
    spec = FILES.get(task, task)
    model = writer([sample.prompt for sample in samples], texts)
    own = evaluate_text(model, TOKENIZER, samples, grade, {"revise": None}, completion_length=LENGTH)
    lm = ReflectiveLM(model, TOKENIZER, batch_size=2, max_new_tokens=LENGTH, revise=None)
    theirs = evaluate_tasks(lm, [spec], {spec: path}, bootstrap_iters=0, **more)
    logged = sorted(theirs["samples"][task], key=lambda one: one["doc_id"])
    seen = {one["doc_id"]: one["resps"][0][0] for one in logged}
    for index, record in enumerate(own.records):
        assert record.completion.startswith(seen[index])  # what follows a stop word is cut off there
    return [own.accuracy.value, theirs["results"][task][metric]]


# The recipes' prompts, texts and graders: what a recipe reports is what lm-eval does


def test_gsm8k_as_the_recipe_asks(tmp_path: Path) -> None:
    path = written(tmp_path, GSM8K)
    task = MathTask("gsm8k", test_data=str(path))
    texts = ["1+2\n#### 3", "#### 71", "#### 12\nQuestion: more?\n#### 11", "#### 1,234", "I do not know: 15"]
    assert both(task.test(), texts, task.grade, "hf_rm_gsm8k", path, "exact_match,none") == [0.6, 0.6]


@pytest.mark.parametrize("name", ["hf_rm_math500", "hf_rm_minerva_math_algebra"])
def test_math_as_the_recipe_asks(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, MATH)
    task = MathTask("math", test_data=str(path))
    texts = [r"So \boxed{0.5}", r"\boxed{25}", "Problem:\n" + r"\boxed{1/3}"]
    own, theirs = both(task.test(), texts, task.grade, name, path, "exact_match,none")
    assert own == theirs == pytest.approx(2 / 3)


@isolated
@pytest.mark.parametrize("name", ["hf_rm_mbpp", "hf_rm_humaneval"])
def test_programs_as_the_recipe_asks(tmp_path: Path, name: str) -> None:
    kind, records, texts, right = {
        "hf_rm_mbpp": ("mbpp", MBPP, MBPP_TEXTS, 2 / 3),
        "hf_rm_humaneval": ("humaneval", HUMANEVAL, HUMANEVAL_TEXTS, 1 / 2),
    }[name]
    path = written(tmp_path, records)
    task = CodeTask(kind, test_data=str(path))
    own, theirs = both(task.test(), texts, task.grade, name, path, "pass_at_1,none")
    assert own == theirs == pytest.approx(right)


def test_prompts_of_our_tasks_are_those_of_the_recipes() -> None:
    """Whatever the data: line breaks of other systems, spaces around, accents."""
    question = "  Größe\r\nof\u2028one?\n"
    (problem,) = read(read_gsm8k, {"question": question, "answer": "#### 1"})
    assert utils.math_prompt({"question": question}) == TEMPLATE.format(question=problem.question)
    (problem,) = read(read_math, {"problem": question, "answer": "1"})
    assert utils.math_prompt({"problem": question}) == TEMPLATE.format(question=problem.question)


def read(reader: Any, record: dict[str, Any]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        return list(reader(written(Path(folder), [record])))


def test_a_group_over_local_files(tmp_path: Path) -> None:
    """Every problem counts alike, whichever subject it is of."""
    parts = {name: tmp_path / name for name in ("hf_rm_minerva_math_algebra", "hf_rm_minerva_math_geometry")}
    for path, records in zip(parts.values(), (MATH[:1], MATH[1:]), strict=True):
        path.mkdir()
        written(path, records)
    group = {"group": "two", "task": [*parts], "aggregate_metric_list": [{"metric": "exact_match"}]}
    (tmp_path / "two.yaml").write_text(json.dumps(group))
    samples = MathTask("math", test_data=str(written(tmp_path, MATH))).test()
    lm = ReflectiveLM(
        writer([sample.prompt for sample in samples], MATH_TEXTS), TOKENIZER, max_new_tokens=LENGTH, revise=None
    )
    files = {name: path / "test.jsonl" for name, path in parts.items()}
    results = evaluate_tasks(lm, ["two"], files, include_path=tmp_path, bootstrap_iters=0)["results"]
    found = {name: results[name]["exact_match,none"] for name in ("two", *parts)}
    assert list(found.values()) == [pytest.approx(2 / 3), 1.0, 0.5]
    whole = evaluate_tasks(
        lm,
        ["hf_rm_minerva_math"],
        dict.fromkeys(subjects("hf_rm_"), files["hf_rm_minerva_math_geometry"]),
        bootstrap_iters=0,
    )
    assert whole["results"]["hf_rm_minerva_math"]["exact_match,none"] == 0.5 and len(whole["results"]) == 8
    (tmp_path / "outer.yaml").write_text(json.dumps({"group": "outer", "task": ["two"]}))
    with pytest.raises(ValueError, match=r"`data_files` names 'outer' or what is in it, but no single task"):
        evaluate_tasks(lm, ["outer"], files, include_path=tmp_path)


def subjects(prefix: str = "") -> list[str]:
    names = "algebra counting_and_prob geometry intermediate_algebra num_theory prealgebra precalc".split()
    return [f"{prefix}minerva_math_{name}" for name in names]


# lm-eval's own prompts


def test_gsm8k(tmp_path: Path) -> None:
    path = written(tmp_path, GSM8K)
    samples = [
        TextSample(str(i), f"Question: {problem.question}\nAnswer:", problem.solution, problem.answer)
        for i, problem in enumerate(read_gsm8k(path))
    ]
    grade = lambda sample, text: answers_equal(extract_marked(text), sample.answer, "numeric")  # noqa: E731
    assert both(samples, GSM8K_TEXTS, grade, "gsm8k", path, "exact_match,strict-match") == [0.6, 0.6]


def test_minerva_math_as_lm_eval_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The group and its subjects, by lm-eval's files.

    They ask for version 4.11 of ANTLR's runtime. The set that the tests run with has a later one, whose format is the
    same; the number is all that is changed.
    """
    real = importlib.metadata.version
    changed = lambda name: "4.11" if name == "antlr4-python3-runtime" else real(name)  # noqa: E731
    monkeypatch.setattr(importlib.metadata, "version", changed)
    shutil.copytree(BUNDLED / "minerva_math", tmp_path / "minerva_math")
    shutil.copy(BUNDLED / "benchmarks" / "minerva_math.yaml", tmp_path)
    path = written(tmp_path, MATH)
    samples = [
        TextSample(str(i), f"Problem:\n{problem.question}\n\nSolution:", problem.solution, problem.answer)
        for i, problem in enumerate(read_math(path))
    ]
    grade = lambda sample, text: answers_equal(extract_boxed(text), sample.answer)  # noqa: E731
    name, inside = "minerva_math_algebra", {"include_path": tmp_path}
    own, theirs = both(samples, MATH_TEXTS, grade, name, path, "math_verify,none", **inside)
    assert own == theirs == pytest.approx(2 / 3)

    told = [f"Final Answer: The final answer is {answer}. I hope it is correct." for answer in ANSWERS]
    lm = ReflectiveLM(
        WritingModel({sample.prompt: text for sample, text in zip(samples, told, strict=True)}, TOKENIZER, 2 * LENGTH),
        TOKENIZER,
        max_new_tokens=2 * LENGTH,
        revise=None,
    )
    results = evaluate_tasks(lm, ["minerva_math"], dict.fromkeys(subjects(), path), bootstrap_iters=0, **inside)[
        "results"
    ]
    assert len(results) == 8
    for name in ("minerva_math", *subjects()):
        assert results[name]["exact_match,none"] == pytest.approx(2 / 3), "their form of the answer, their comparison"


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
        evaluate_tasks(lm, ["hf_rm_gsm8k"], {"arc_challenge": path})
    with pytest.raises(OSError, match="is no file"):
        evaluate_tasks(lm, ["hf_rm_gsm8k"], {"hf_rm_gsm8k": tmp_path / "none.jsonl"})
    with pytest.raises(ValueError, match="no single task"):
        evaluate_tasks(lm, ["hf_rm_minerva_math"], {"hf_rm_minerva_math": path})
    for file in ("mbpp/mbpp.yaml", "humaneval/humaneval_plus.yaml"):
        with pytest.raises(ValueError, match="runs model-written code"):
            evaluate_tasks(lm, [str(BUNDLED / file)])


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lm-eval's shell over a saved model, a task of the user's that is marked unsafe, and one that is not."""
    wrapped(vocab_size=len(TOKENIZER)).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    (tmp_path / "mine").mkdir()
    for name, unsafe in (("runs_code", True), ("harmless", False)):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(written(tmp_path, GSM8K))},
                "cache_dir": str(tmp_path / "cache"),
            },
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [], "max_gen_toks": 4},
            "unsafe_code": unsafe,
        }
        (tmp_path / "mine" / f"{name}.yaml").write_text(json.dumps(task))
    # The index of all that lm-eval has takes half a minute to read.
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: manager(**given, include_defaults=False))
    decoded: list[str] = []
    generate = ReflectiveLM.generate_until

    def watched(self: ReflectiveLM, requests: Any) -> Any:
        decoded.extend(request.task_name for request in requests)
        return generate(self, requests)

    monkeypatch.setattr(ReflectiveLM, "generate_until", watched)

    def run(*words: str) -> list[str]:
        decoded.clear()
        settings = f"pretrained={tmp_path}/model,steps=2,reveal=confidence,revise=none,max_new_tokens=4"
        command = ["lm_eval", "run", "--model", "hf_rm", "--model_args", settings, "--device", "cpu", *words]
        monkeypatch.setattr(sys, "argv", command)
        main()
        return sorted(set(decoded))

    return run


def test_the_shell_runs_no_code_outside_the_sandbox(shell: Any, tmp_path: Path) -> None:
    mine = ("--include_path", str(tmp_path / "mine"))
    with pytest.raises(ValueError, match="runs_code which is marked as unsafe"):
        shell(*mine, "--tasks", "runs_code")
    config = tmp_path / "config.yaml"
    config.write_text("confirm_run_unsafe_code: true\n")
    for words in (["--confirm_run_unsafe_code"], ["--confirm_run_unsafe"], ["--config", str(config)]):
        for task in ("runs_code", "harmless", str(tmp_path / "mine" / "runs_code.yaml")):
            with pytest.raises(SystemExit, match="code runs in the sandbox alone; use hf_rm_mbpp"):
                shell(*mine, "--tasks", task, *words)


def test_the_shell_knows_our_tasks_beside_the_users(
    shell: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell("--include_path", str(tmp_path / "mine"), "--tasks", "harmless") == ["harmless"]
    assert "harmless" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["lm_eval", "ls", "subtasks", "--include_path", str(tmp_path / "mine")])
    main()
    shown = capsys.readouterr().out
    assert "hf_rm_mbpp" in shown and "harmless" in shown


def test_the_package_does_not_import_lm_eval() -> None:
    code = "import sys, hf_rm, hf_rm.evaluation as e; assert 'lm_eval' not in sys.modules; e.ReflectiveLM; "
    code += "assert 'lm_eval' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0
