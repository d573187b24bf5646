# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""What the YAML files beside this one call. lm-eval loads the file by its path, hence the absolute imports."""

from __future__ import annotations

from typing import Any

from hf_rm.tasks.code import CodeProblem, humaneval_problem, mbpp_problem, verify_code
from hf_rm.tasks.math import extract_boxed, extract_marked
from hf_rm.tasks.math.tasks import TEMPLATE, grade_answer
from hf_rm.tasks.text import TextSample

Document = dict[str, Any]


def mbpp(doc: Document) -> CodeProblem:
    """A document of the MBPP task as a problem."""
    return mbpp_problem(f"MBPP problem {doc.get('task_id')}", doc)


def humaneval(doc: Document) -> CodeProblem:
    """A document of the HumanEval task as a problem."""
    return humaneval_problem(f"HumanEval problem {doc.get('task_id')}", doc)


def mbpp_prompt(doc: Document) -> str:
    """What the model is given."""
    return mbpp(doc).prompt


def humaneval_prompt(doc: Document) -> str:
    """What the model is given."""
    return humaneval(doc).prompt


def mbpp_solution(doc: Document) -> str:
    """The data set's own program, which solved examples show."""
    return mbpp(doc).solution


def mbpp_results(doc: Document, results: list[str]) -> dict[str, float]:
    """Whether the completion passes the tests, in the sandbox."""
    return {"pass_at_1": float(verify_code(mbpp(doc), results[0]).passed)}


def humaneval_results(doc: Document, results: list[str]) -> dict[str, float]:
    """Whether the completion passes the tests, in the sandbox."""
    return {"pass_at_1": float(verify_code(humaneval(doc), results[0]).passed)}


def math_prompt(doc: Document) -> str:
    """What the model is given: the prompt that recipes/math.py trains and evaluates with."""
    question = str(doc.get("problem") or doc.get("question") or "").replace("\r\n", "\n").strip()
    return TEMPLATE.format(question=question)


def math_answer(doc: Document) -> str:
    """The boxed answer of a MATH document's solution, or its column `answer`."""
    answer = doc.get("answer") or extract_boxed(doc.get("solution") or "")
    if not answer:
        raise ValueError(f"the problem {doc.get('problem', '')[:60]!r} has neither an answer nor a boxed one.")
    return str(answer)


def gsm8k_answer(doc: Document) -> str:
    """The number behind the last ``####`` of a GSM8K document's answer."""
    answer = extract_marked(str(doc.get("answer") or ""))
    if answer is None:
        raise ValueError(f"the problem {doc.get('question', '')[:60]!r} has no answer behind '####'.")
    return answer.replace(",", "")


def math_results(doc: Document, results: list[str]) -> dict[str, float]:
    """Whether the completion's boxed answer equals the reference."""
    return {"exact_match": float(grade_answer(TextSample("", "", answer=math_answer(doc)), results[0], "math"))}


def gsm8k_results(doc: Document, results: list[str]) -> dict[str, float]:
    """Whether the completion's number behind ``####`` is the reference's."""
    return {"exact_match": float(grade_answer(TextSample("", "", answer=gsm8k_answer(doc)), results[0], "gsm8k"))}
