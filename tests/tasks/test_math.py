"""GSM8K, MATH and CMATH: readers, extraction, equivalence."""

import builtins
import json
from pathlib import Path

import pytest

from hf_rm.tasks._records import BadRecordError
from hf_rm.tasks.math import (
    answers_equal,
    equivalence,
    extract_answer,
    extract_boxed,
    extract_marked,
    read_cmath,
    read_gsm8k,
    read_math,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{a}{\sqrt{2}}}.", r"\frac{a}{\sqrt{2}}"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 7$", "7"),
        (r"\boxed{\left\{1\right\}}", r"\left\{1\right\}"),
        (r"\boxed{}", None),
        (r"\boxed{1} \boxed{2", None),
        ("7", None),
    ],
)
def test_boxed(text: str, answer: str | None) -> None:
    assert extract_boxed(text) == answer


def test_marked() -> None:
    assert extract_marked("#### 1\n#### 2\nQuestion") == "2"
    assert extract_marked("#### ") is None and extract_answer(r"#### 3 \boxed{4}", "boxed") == "4"


@pytest.mark.parametrize(
    ("given", "gold", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("1,000", "1000", True),
        ("x+1", "1+x", True),
        (r"\text{ Evelyn }", r"\text{Evelyn}", True),
        ("10^2", "100", True),
        (None, "5", False),
        ("", "5", False),
        ("6", "5", False),
        ("-5", "5", False),
        ("0.333", "1/3", False),
        ("5, 6", "5", False),
        ("1 2 3 4 5", "5", False),
        (r"\text{Bob}", r"\text{Evelyn}", False),
        ("}{", "5", False),
        ("5" * 5000, "5", False),
    ],
)
def test_equivalence(given: str | None, gold: str, equal: bool) -> None:
    pytest.importorskip("math_verify")
    assert answers_equal(given, gold) is equal


@pytest.mark.parametrize(
    ("given", "gold", "equal"),
    [
        (r"\$1,024.0", "1024", True),
        ("2/4", "0.5", True),
        ("7 or 8", "7", False),
        ("12 34", "12", False),
        ("1/0", "1", False),
    ],
)
def test_numeric(given: str, gold: str, equal: bool) -> None:
    assert answers_equal(given, gold, method="numeric") is equal


def test_numbers_never_stand_in_for_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *arguments: object) -> object:
        if name == "math_verify":
            raise ImportError(name)
        return real(name, *arguments)  # type: ignore[arg-type]

    equivalence._math_verify.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"hf-rm\[recipes\]"):
        answers_equal("5", "5")


def test_gold_that_cannot_be_graded() -> None:
    with pytest.raises(ValueError, match="no number"):
        answers_equal("5", "five", method="numeric")
    with pytest.raises(ValueError, match="empty"):
        answers_equal("5", " ")


def written(folder: Path, *records: dict) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_readers(tmp_path: Path) -> None:
    gsm = read_gsm8k(written(tmp_path, {"question": "Q", "answer": "<<500*2=1000>>1,000\n#### 1,000"}))[0]
    assert (gsm.answer, gsm.solution) == ("1000", "1,000\n#### 1,000")
    both = read_math(written(tmp_path, {"problem": "Q", "solution": r"\boxed{2}", "answer": "2", "level": 5}))[0]
    alone = read_math(written(tmp_path, {"question": "Q", "ground_truth": "2", "level": "Level 5", "subject": "A"}))[0]
    assert (both.answer, both.level, alone.answer, alone.level, alone.subject) == ("2", 5, "2", 5, "A")
    assert read_cmath(written(tmp_path, {"question": "3加5", "golden": "8", "grade": "2"}))[0].level == 2


def test_bad_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="####"):
        read_gsm8k(written(tmp_path, {"question": "Q", "answer": "5"}))
    with pytest.raises(ValueError, match="record 2.*'question'"):
        read_gsm8k(written(tmp_path, {"question": "Q", "answer": "#### 5"}, {"answer": "#### 5"}))
    with pytest.raises(ValueError, match="boxed"):
        read_math(written(tmp_path, {"problem": "Q", "solution": "5"}))
    with pytest.raises(ValueError, match="neither JSONL"):
        (tmp_path / "x.jsonl").write_text("{")
        read_gsm8k(tmp_path / "x.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(OSError, match="no record"):
        read_math(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    "answer",
    [r"\frac{", "}{", r"\frac{}{}", r"\dfrac{ \sqrt{2} } { }", r"\sqrt[3]{}", r"\sqrt{", "1 \\", "5" * 3000],
)
def test_broken_answers_of_math_are_left_out(tmp_path: Path, answer: str) -> None:
    left_out: list[str] = []
    path = written(tmp_path, {"problem": "Q", "answer": answer}, {"problem": "Q", "answer": "2"})
    assert [problem.answer for problem in read_math(path, left_out)] == ["2"]
    assert len(left_out) == 1 and "data.jsonl, record 1: its answer" in left_out[0]
    with pytest.raises(BadRecordError, match="no LaTeX that can be graded"):
        read_math(path)


@pytest.mark.parametrize(
    "answer",
    [
        *(r"\frac12", r"\dfrac{1}{\sqrt{2}}", r"\sqrt[3]{2}", r"\sqrt2", r"\binom{5}{2}", r"\frac{1}2", r"\frac 1 2"),
        *(r"30^\circ.", r"\text{Evelyn}", "a + b + c", r"2\pi{}", r"{}^{14}C", r"\{1\}", r"\boxed{5}"),
        *(r"[0,1)", r"(-\infty, 3]", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "10{,}000", r"5\%"),
    ],
)
def test_answers_that_can_be_graded_stay(tmp_path: Path, answer: str) -> None:
    assert read_math(written(tmp_path, {"problem": "Q", "answer": answer}))[0].answer == answer


CMATH = {"question": "3加5等于几?", "golden": "8", "grade": "2"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"golden": "8", "grade": 1}, "record 2 has no column 'question'"),
        ({"question": "3加5?", "grade": 1}, "record 2 has no column 'golden' or 'answer'"),
        ({**CMATH, "question": ""}, "record 2 has an empty 'question'"),
        ({**CMATH, "golden": ""}, "record 2 has an empty 'golden'"),
        ({**CMATH, "golden": None}, "record 2 has an empty 'golden'"),
        (["3加5?", "8"], "record 2 is no JSON object but list"),
    ],
)
def test_bad_records_of_cmath_are_named(tmp_path: Path, record: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_cmath(written(tmp_path, CMATH, record))


def test_columns_of_cmath(tmp_path: Path) -> None:
    """The published column is `golden`; a grade may be missing, and a number is an answer too."""
    problems = read_cmath(
        written(tmp_path, CMATH, {"question": "9减2?", "answer": 7}, {**CMATH, "golden": "", "answer": "8"})
    )
    assert [(problem.answer, problem.level) for problem in problems] == [("8", 2), ("7", 0), ("8", 2)]
