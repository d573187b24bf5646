"""What the text recipes train on and grade: splits, held-out problems, gold solutions, data by Hub name."""

import gzip
import json
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
from isolation import isolated

from hf_rm.evaluation import sandbox
from hf_rm.evaluation.sandbox import SandboxSupport, SandboxUnavailableError
from hf_rm.tasks._records import read_records
from hf_rm.tasks.code.problems import SPLIT_SEED
from hf_rm.tasks.code.tasks import CodeTask, more_code_tests
from hf_rm.tasks.math import equivalence
from hf_rm.tasks.math.tasks import (
    MathTask,
    WordProblems,
    build_math_task,
    more_math_tests,
    more_math_training,
)
from hf_rm.tasks.text import TextSample, decoded, encode_samples


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def gsm8k(count: int = 60, start: int = 0) -> list[dict]:
    return [
        {"question": f"What is {i} + {i}?", "answer": f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i:,}"}
        for i in range(start, start + count)
    ]


MATH = [
    {
        "problem": r"What is $\frac12+\frac12$?",
        "solution": r"It is $\boxed{1}$.",
        "type": "Algebra",
        "level": "Level 1",
    },
    {"problem": "Half of 1?", "solution": r"So $\boxed{\frac{1}{2}}$.", "type": "Prealgebra", "level": "Level 2"},
]
CMATH = [
    {"question": "3加5等于几?", "golden": "8", "grade": 1},
    {"question": "9减2等于几?", "golden": "7", "grade": 2},
]
MBPP = [
    {
        "task_id": i,
        "text": f"Write a function to add {i}.",
        "code": f"def add_{i}(x):\r\n  return x + {i}",
        "test_list": [f"assert add_{i}(1) == {i + 1}", f"assert add_{i}(5) == {i + 5}"],
    }
    for i in range(1, 11)
]
HUMANEVAL = [
    {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        "entry_point": "double",
    }
]


read_only = partial(CodeTask, isolation="none")
"""For what runs no program, on any machine."""


def verdicts(task, shift: int = 0) -> list[bool]:
    """Grades of the gold completions, or of those of other samples."""
    samples = [sample for sample in task.test() if sample.completion]
    return [task.grade(sample, samples[(i + shift) % len(samples)].completion) for i, sample in enumerate(samples)]


def test_gold_solutions_are_right_and_others_wrong(tmp_path):
    tasks = [
        WordProblems(4, 20),
        MathTask("gsm8k", test_data=write(tmp_path / "gsm8k.jsonl", gsm8k())),
        MathTask("math", test_data=write(tmp_path / "math.jsonl", MATH)),
    ]
    for task in tasks:
        assert all(verdicts(task)), task.name
        assert sum(verdicts(task, shift=1)) <= 2, task.name


@isolated
def test_gold_programs_pass_and_others_do_not(tmp_path):
    for task in (
        CodeTask("mbpp", write(tmp_path / "mbpp.jsonl", MBPP)),
        CodeTask("humaneval", test_data=write(tmp_path / "humaneval.jsonl", HUMANEVAL)),
    ):
        assert all(verdicts(task)), task.name
    assert not any(verdicts(CodeTask("mbpp", str(tmp_path / "mbpp.jsonl")), shift=1))


def test_a_tenth_is_held_out_where_there_is_no_test_data(tmp_path):
    path = write(tmp_path / "train.jsonl", gsm8k(200))
    task = MathTask("gsm8k", path)
    train, test = task.train(), task.test()
    assert {sample.key for sample in train}.isdisjoint(sample.key for sample in test)
    assert len(train) + len(test) == 200 and 8 <= len(test) <= 32
    shuffled = MathTask("gsm8k", write(tmp_path / "again.jsonl", gsm8k(200)[::-1]))
    assert {sample.key for sample in shuffled.test()} == {sample.key for sample in test}


def test_training_problems_that_are_held_out_too_are_dropped(tmp_path):
    train, test = write(tmp_path / "a.jsonl", gsm8k(20)), write(tmp_path / "b.jsonl", gsm8k(20, start=15))
    task = MathTask("gsm8k", train, test)
    assert len(task.train()) == 15 and task.remarks == [f"{train}: 5 problems are held out, and not trained on"]
    code = read_only("mbpp", write(tmp_path / "c.jsonl", MBPP[:6]), write(tmp_path / "d.jsonl", MBPP[4:]))
    assert [sample.key for sample in code.train()] == ["1", "2", "3", "4"]
    assert code.remarks == [f"{tmp_path / 'c.jsonl'}: 2 problems are held out, and not trained on"]


def test_records_that_cannot_be_used_and_duplicates_are_counted_and_named(tmp_path):
    """As two of the 7,500 answers of MATH's training problems, which are empty."""
    good = [{"problem": f"{i}?", "answer": str(i), "solution": rf"\boxed{{{i}}}"} for i in range(30)]
    bad = [{"problem": "a?", "answer": ""}, {"problem": "b?", "solution": r"\boxed{", "answer": ""}]
    again = {**good[7], "answer": "8", "solution": r"\boxed{8}"}
    path = write(tmp_path / "math.jsonl", [*bad, *good, good[3], good[4], again])
    task = MathTask("math", path, test_data=write(tmp_path / "test.jsonl", good[:5]))
    assert len(task.train()) == 25 and len(task.test()) == 5
    assert task.remarks == [
        f"{path}: 2 of 35 records left out: math.jsonl, record 1 has an empty 'answer'; its columns are "
        "['answer', 'problem']. math.jsonl, record 2: its 'solution' has no complete \\boxed{...}, and there is no "
        "'answer'.",
        f"{path}: 2 duplicates dropped",
        f"{path}: 1 questions are there again with another answer",
        f"{path}: 5 problems are held out, and not trained on",
    ]
    words = [{"question": "1 + 1?", "answer": "two\n#### two"}, *gsm8k(60)]
    gsm = MathTask("gsm8k", write(tmp_path / "gsm8k.jsonl", words))
    assert len(gsm.train()) + len(gsm.test()) == 60
    assert "1 of 61 records left out: gsm8k.jsonl, record 1: gold is 'two', which is no number" in gsm.remarks[0]
    code = [MBPP[0], {**MBPP[1], "code": "def"}, *MBPP[2:], MBPP[0]]
    mbpp = read_only("mbpp", write(tmp_path / "mbpp.jsonl", code))
    assert len(mbpp.train()) + len(mbpp.test()) == 9
    assert ["record 2" in remark or "1 duplicates" in remark for remark in mbpp.remarks] == [True, True]


def test_math_without_its_library_is_refused_at_once(tmp_path, monkeypatch):
    equivalence._math_verify.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match=r"hf-rm\[recipes\]"):
        MathTask("math", "not_read.jsonl")
    MathTask("gsm8k", "not_read.jsonl")


def test_problems_without_a_solution_are_counted(tmp_path):
    rows = [{"problem": f"{i}?", "answer": str(i), "solution": rf"\boxed{{{i}}}" if i % 2 else ""} for i in range(40)]
    test = write(tmp_path / "test.jsonl", [{"problem": "x?", "answer": "1"}])
    task = MathTask("math", write(tmp_path / "train.jsonl", rows), test)
    assert len(task.train()) == 20
    assert task.remarks == [f"{tmp_path / 'train.jsonl'}: 20 problems are without a solution, and left out"]


def test_minerva_is_maths_test_set_by_subject(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{**row, "problem": f"{config}: {row['problem']}"} for row in MATH])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    [task] = more_math_tests(["minerva=EleutherAI/hendrycks_math"])
    assert len(task.test()) == 14 and task.test()[0].group == "Algebra"
    assert [split for _, _, split in asked] == ["test"] * 7 and asked[1][1] == "counting_and_probability"
    assert len(MathTask("minerva", test_data="EleutherAI/hendrycks_math:algebra:test").test()) == 2
    assert asked[-1] == ("EleutherAI/hendrycks_math", "algebra", "test")


@pytest.mark.parametrize("word", ["cmath", "cmath=", "=a.jsonl", "gsm9k=a.jsonl"])
def test_data_without_a_name_or_a_place_is_refused(word):
    with pytest.raises(ValueError, match=f"`more_tests` has '{word}': pass task=data, the task one of gsm8k, math"):
        more_math_tests([word])
    with pytest.raises(ValueError, match="`more_tests` has .*mbpp, humaneval"):
        more_code_tests([word])


def test_more_training_data_hold_nothing_out(tmp_path):
    path = write(tmp_path / "gsm8k.jsonl", gsm8k(60))
    [task] = more_math_training([f"gsm8k={path}"], "Q: {question}\nA: ")
    assert len(task.train()) == 60 and task.test() == [] and task.train()[0].prompt.startswith("Q: ")


def test_the_split_of_mbpp_is_by_a_seed(tmp_path):
    path = write(tmp_path / "mbpp.jsonl", MBPP)
    keys = {seed: [s.key for s in read_only("mbpp", path, split_seed=seed).train()] for seed in (SPLIT_SEED, 1)}
    assert keys[SPLIT_SEED] == [s.key for s in read_only("mbpp", path).train()] != keys[1]


def test_a_missing_column_is_an_error_and_so_is_nothing_that_is_left(tmp_path):
    with pytest.raises(ValueError, match="record 2 has no column 'question'"):
        MathTask("gsm8k", write(tmp_path / "a.jsonl", [gsm8k(1)[0], {"answer": "#### 5"}])).test()
    with pytest.raises(ValueError, match="none of the 2 records .* can be used: b.jsonl, record 1 has an empty"):
        MathTask("math", write(tmp_path / "b.jsonl", [{"problem": "a?", "answer": ""}] * 2)).test()


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (MBPP[:1], None, r"train.jsonl is too small to be split \(1\): pass `test_data`"),
        (MBPP[:2], MBPP[:3], "every problem of .*train.jsonl is held out: pass other `train_data`"),
        (MBPP, [*MBPP, {**MBPP[2], "text": "Add."}], r"test.jsonl has different problems .*: give \['3'\]"),
    ],
)
def test_mbpp_without_a_part_or_with_an_identifier_twice_is_refused(tmp_path, train, test, message):
    data = [write(tmp_path / "train.jsonl", train), test and write(tmp_path / "test.jsonl", test)]
    with pytest.raises(ValueError, match=message):
        read_only("mbpp", *data).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"timeout": value}, f"timeout is {value}; pass") for value in (-1, 0, float("inf"))),
        ({"memory_mb": 1}, "memory_mb is 1"),
        ({"isolation": "some"}, "isolation is 'some'; pass 'full', or 'none'"),
    ],
)
def test_settings_of_the_sandbox_are_checked_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        CodeTask("mbpp", "not_read.jsonl", **settings)


def test_where_there_is_no_isolation_code_is_refused_at_once(tmp_path, monkeypatch):
    missing = SandboxSupport(False, f"no user namespace. {sandbox.REMEDY}", (), False)
    monkeypatch.setattr(sandbox, "sandbox_available", lambda: missing)
    with pytest.raises(SandboxUnavailableError, match="isolation is 'full', .* no user namespace.*isolation='none'"):
        CodeTask("mbpp", "not_read.jsonl")
    with pytest.raises(SandboxUnavailableError):
        more_code_tests(["mbpp=not_read.jsonl"])
    task = CodeTask("mbpp", write(tmp_path / "mbpp.jsonl", MBPP), isolation="none")
    sample = task.test()[0]
    assert task.grade(sample, sample.completion) and not task.grade(sample, "def add(): pass")


def test_mbpp_is_split_in_the_papers_proportions(tmp_path):
    task = read_only("mbpp", write(tmp_path / "mbpp.jsonl", MBPP))
    assert (len(task.train()), len(task.test())) == (3, 7)
    assert task.train()[0].completion.startswith("```python\ndef add_")


def test_groups_and_prompts(tmp_path):
    math = MathTask("math", test_data=write(tmp_path / "math.jsonl", MATH), template="Q: {question}\nA: ")
    assert [sample.group for sample in math.test()] == ["Algebra", "Prealgebra"]
    assert math.test()[1].prompt == "Q: Half of 1?\nA: "
    cmath = MathTask("cmath", test_data=write(tmp_path / "cmath.jsonl", CMATH))
    assert [(sample.group, sample.answer) for sample in cmath.test()] == [("1", "8"), ("2", "7")]
    first = cmath.test()[0]
    assert cmath.grade(first, "3 + 5 = 8\n#### 8.0") and cmath.grade(first, r"It is $\boxed{8}$.")
    assert not cmath.grade(first, "8") and not cmath.grade(first, r"#### 7 \boxed{8}")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: MathTask("gsm9k", p), "`task` is 'gsm9k': pass one of 'gsm8k', 'math', 'cmath'"),
        (lambda p: MathTask("gsm8k"), "has no data"),
        (lambda p: MathTask("gsm8k", p, template="hello"), r"`template` is 'hello': it needs \{question\}"),
        (lambda p: MathTask("gsm8k", test_data=p).train(), "no training data"),
        (lambda p: MathTask("gsm8k", test_data=p).test(), "'about two', which is no number"),
        (lambda p: CodeTask("mbpp"), "no data to be held out"),
        (lambda p: CodeTask("humaneval", p), "pass `test_data`"),
        (lambda p: build_math_task("word-problems", p), "makes its own problems"),
    ],
)
def test_bad_tasks_are_named(tmp_path, build, message):
    path = write(tmp_path / "words.jsonl", [{"question": "1 + 1?", "answer": "#### about two"}])
    with pytest.raises(ValueError, match=message):
        build(path)


def test_training_data_without_solutions_is_refused(tmp_path):
    rows = [{"problem": f"{i}?", "answer": str(i)} for i in range(30)]
    with pytest.raises(ValueError, match="has a solution to learn from"):
        MathTask("math", write(tmp_path / "answers.jsonl", rows)).train()


def test_a_name_of_the_hub_is_looked_up_there(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list(gsm8k(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_records("openai/gsm8k:main:test")[1][1]["question"] == "What is 1 + 1?"
    read_records("openai/gsm8k")
    read_records("HuggingFaceH4/MATH-500::test")
    assert asked == [
        ("openai/gsm8k", "main", "test"),
        ("openai/gsm8k", None, "train"),
        ("HuggingFaceH4/MATH-500", None, "test"),
    ]


def test_a_file_that_is_missing_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("looked up"))
    with pytest.raises(OSError):
        read_records("data/train.jsonl")

    def refused(*args, **kwargs):
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", refused)
    with pytest.raises(OSError, match="owner/name:main:train is no file here"):
        read_records("owner/name:main:train")


class Words:
    """A tokenizer of single characters."""

    eos_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [*([1] if add_special_tokens else []), *map(ord, text)]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(map(chr, ids))


def test_completions_fill_the_canvas_with_end_tokens():
    samples = [TextSample("a", "1+1=", "2"), TextSample("b", "1+1=", "it is two")]
    encoded = encode_samples(samples, Words(), 20, completion_length=4)
    assert encoded.too_long == ["b"]
    [row] = encoded.rows
    assert row["input_ids"] == [1, *map(ord, "1+1=2"), 0, 0, 0]
    assert row["editable_mask"] == [False] * 5 + [True] * 4
    assert decoded(row["input_ids"][5:], Words()) == "2"
    [short, long] = encode_samples(samples, Words(), 20, tail="one").rows
    assert short["input_ids"][5:] == [ord("2"), 0] and len(long["input_ids"]) == 15


@pytest.mark.parametrize("template", [r"\boxed{} {question}", "{0} {question} {{}} {x}", "{question}{question}"])
def test_other_braces_of_a_template_stand_for_themselves(tmp_path, template):
    task = MathTask("gsm8k", test_data=write(tmp_path / "gsm8k.jsonl", gsm8k(1)), template=template)
    assert task.test()[0].prompt == template.replace("{question}", "What is 0 + 0?")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("count", [0, -3])
def test_no_made_problems_are_refused(part, count):
    with pytest.raises(ValueError, match=f"`{part}_count` .`made_{part}` of the recipe. is {count}: pass"):
        build_math_task("word-problems", **{f"{part}_count": count})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl.gz", gzip.compress(b'{"question": "1?"}\n', mtime=0)),
        ("train.parquet", b"PAR1\x15\x04\x15\xa0PAR1"),
        ("train.jsonl", '{"question": "caf\u00e9?"}'.encode("latin-1")),
        ("train.json", '[{"question": "1?"}]'.encode("utf-16")),
    ],
)
def test_a_file_that_is_no_text_is_named_with_what_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    message = rf"{name} is no text in UTF-8 \(.* at byte \d+\): pass JSON or JSONL"
    with pytest.raises(ValueError, match=message) as raised:
        MathTask("gsm8k", str(tmp_path / name)).test()
    assert not isinstance(raised.value, UnicodeError)


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}', '[{"a": 1}, {"a": 2}]'])
def test_a_byte_order_mark_is_no_matter(tmp_path, text):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [record for _, record in read_records(tmp_path / "a.jsonl")] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"a": 1}\n\n{"a": 2,}\n', "line 3 column 9"),
        ('{"a": 1} {"a": 2}', "line 1 column 10"),
        ('[{"a": 1},\n{"a"}]', "line 2 column 5"),
    ],
)
def test_where_a_file_is_no_json_is_said(tmp_path, text, place):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"a.jsonl is neither JSONL nor a JSON list: .*: {place}"):
        read_records(tmp_path / "a.jsonl")


def test_empty_completions_and_tails_without_a_length_are_named():
    with pytest.raises(ValueError, match="sample 'a' has an empty completion"):
        encode_samples([TextSample("a", "1+1=", " ")], Words(), 20, tail="one")
    with pytest.raises(ValueError, match="`completion_length` is None"):
        encode_samples([TextSample("a", "1+1=", "2")], Words(), 20)
    with pytest.raises(ValueError, match="none of 1 samples fits"):
        encode_samples([TextSample("a", "1+1=", "2")], Words(), 5, tail="one")
