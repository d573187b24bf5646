"""MBPP and HumanEval: readers, extraction and verification."""

import json
from pathlib import Path

import pytest
from isolation import isolated

from hf_rm.tasks._records import BadRecordError
from hf_rm.tasks.code import CodeProblem, extract_code, read_humaneval, read_mbpp, split_problems, verify_code

# Hand-made records of the published schemas.
MBPP = {
    "task_id": 1,
    "text": "Write a function to add the parts of a pair.",
    "code": "class Pair:\r\n    def __init__(self, a, b): self.a, self.b = a, b\r\ndef add(p): return p.a + p.b",
    "test_setup_code": "one = Pair(1, 2)",
    "test_list": ["assert add(one) == 3", "assert add(Pair(2, 2)) == 4"],
}
HUMANEVAL = {
    "task_id": "H/0",
    "prompt": 'def half(x):\n    return x / 2\n\n\ndef quarter(x: float) -> float:\n    """A quarter."""\n',
    "canonical_solution": "    return half(half(x))\n",
    "test": "def check(candidate):\n    assert candidate(8) == half(4)\n",
    "entry_point": "quarter",
}


def written(folder: Path, *records: dict) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@isolated
def test_gold_solutions_pass_and_others_fail(tmp_path: Path) -> None:
    mbpp, human = read_mbpp(written(tmp_path, MBPP))[0], read_humaneval(written(tmp_path, HUMANEVAL))[0]
    assert mbpp.entry_points == ("Pair", "add") and human.entry_points == ("half", "quarter")
    for problem in (mbpp, human):
        assert verify_code(problem, f"Sure:\n```python\n{problem.solution}\n```\nDone.").passed
        assert verify_code(problem, "def add(p): return 0\n").status == "failed"
    assert verify_code(human, "    return half(half(x))\n\nprint(quarter('x'))").passed


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("```\ndraft\n```\n```py\ndef f(): pass\n```", "def f(): pass\n"),
        ("```python\ndef f(): pass", "def f(): pass"),
        ("```bash\npip\n```\ndef f(): pass", "```bash\npip\n```\ndef f(): pass"),
        ("[BEGIN]\ndef f(): pass\n[DONE]\nmore", "def f(): pass\n"),
        ("def f(): pass\n[DONE] more", "def f(): pass\n"),
    ],
)
def test_the_program_in_a_completion(completion: str, code: str) -> None:
    assert extract_code(completion, entry_point="f") == code


def test_the_split_does_not_depend_on_order() -> None:
    problems = [CodeProblem(str(number), "", ("assert f()",), ("f",), "") for number in range(100)]
    train, test = split_problems(problems)
    other, _ = split_problems(problems[::-1])
    assert (len(train), len(test)) == (30, 70) and set(train) == set(other)
    assert set(split_problems(problems, seed=1)[0]) != set(train)
    with pytest.raises(ValueError, match="twice"):
        split_problems([problems[0], problems[0]])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"test_list": []}, "test_list"),
        ({"code": "def"}, "'code'"),
        ({"code": "x = 1"}, "no test uses"),
        ({"text": ""}, "text"),
        ({"test_list": "assert add(one) == 3"}, "'test_list' that is no list of texts, but 'assert add"),
        ({"test_list": [1]}, "record 1 has a 'test_list' that is no list of texts"),
        ({"test_imports": "import math"}, "record 1 has a 'test_imports' that is no list of texts, but 'import math'"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, change: dict, named: str) -> None:
    with pytest.raises(BadRecordError, match=named):
        read_mbpp(written(tmp_path, MBPP | change))


def test_imports_come_before_the_tests(tmp_path: Path) -> None:
    (problem,) = read_mbpp(written(tmp_path, MBPP | {"test_imports": ["import math", "import re"]}))
    assert problem.tests == ("one = Pair(1, 2)", "import math\nimport re", *MBPP["test_list"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": ""}, "record 2 has an empty 'prompt'"),
        ({"canonical_solution": ""}, "record 2 has an empty 'canonical_solution'"),
        ({"canonical_solution": "    return half(\n"}, "record 2 has a 'canonical_solution' that is no Python"),
        ({"entry_point": ""}, "record 2 has an empty 'entry_point'"),
        (
            {"entry_point": "third"},
            r"record 2: its 'prompt' defines \['half', 'quarter'\], not its 'entry_point' 'third'",
        ),
        ({"test": "def check(candidate):\n"}, "record 2 has a 'test' that is no Python"),
        ({"test": ""}, "record 2 has an empty 'test'"),
        ({"task_id": ""}, "record 2 has an empty 'task_id'"),
    ],
)
def test_bad_records_of_humaneval_are_named(tmp_path: Path, change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_humaneval(written(tmp_path, HUMANEVAL, HUMANEVAL | change))


@pytest.mark.parametrize("column", sorted(HUMANEVAL))
def test_a_missing_column_of_humaneval_is_named(tmp_path: Path, column: str) -> None:
    record = {name: value for name, value in HUMANEVAL.items() if name != column}
    with pytest.raises(ValueError, match=f"record 1 has no column '{column}'"):
        read_humaneval(written(tmp_path, record))
