# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""
Word problems with worked solutions in GSM8K's manner, made by rule: 2 to 6 operations, every number from 1 to 30.

A problem is an opening, some events and a question (its *skeleton*), filled with numbers, names and things. One
quantity runs through it; some sentences need a quantity of their own first (``3 bags of 6 pens``), so that a later
line refers to two earlier ones. Train and test have neither a skeleton nor a tuple of stated numbers in common: a
skeleton belongs to the test split if its hash is a multiple of 3, a tuple of numbers if their sum is. Single
sentences, single numbers and single sums (``12 + 7 = 19``) occur in both, as words of one language do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from random import Random
from typing import Literal

from ..text import TextSample

LARGEST = 30
"""No number in a problem or its solution is larger."""
OPERATIONS = (2, 3, 4, 5, 6)
"""How many steps a solution may have; each number of steps is equally frequent."""
PROMPT_LENGTH = 56
"""Tokens of the longest prompt, with its newline."""
CANVAS_LENGTH = 40
"""Tokens of the longest solution, with its end token: the canvas to train and to decode with."""

TOKEN = re.compile(r"\n|####|\d{1,2}|[A-Za-z]+|[^\sA-Za-z\d]")
"""What counts as one token; `hf_rm.tasks.math.tiny` builds its tokenizer from the same expression."""

PEOPLE = (
    ("Anna", "She", "she", "her"),
    ("Ben", "He", "he", "him"),
    ("Clara", "She", "she", "her"),
    ("David", "He", "he", "him"),
    ("Emma", "She", "she", "her"),
    ("Felix", "He", "he", "him"),
    ("Grace", "She", "she", "her"),
    ("Henry", "He", "he", "him"),
    ("Ida", "She", "she", "her"),
    ("Jack", "He", "he", "him"),
    ("Lucy", "She", "she", "her"),
    ("Tom", "He", "he", "him"),
)
THINGS = (
    *("apples", "beads", "books", "cards", "coins", "cookies", "eggs", "flowers"),
    *("marbles", "nuts", "pencils", "pens", "shells", "stamps", "stickers", "toys"),
)

Split = Literal["train", "test"]
Step = tuple[int, str, int, int]
Filled = tuple[dict[str, int], list[Step], int]
"""The numbers that a sentence states, the steps it asks for, and the quantity after it."""


def _divisor(rng: Random, value: int) -> int | None:
    divisors = [k for k in range(2, 10) if value % k == 0 and value > k]
    return rng.choice(divisors) if divisors else None


def _start(rng: Random, value: int) -> Filled | None:
    n = rng.randint(5, 20)
    return {"n": n}, [], n


def _start_packs(rng: Random, value: int) -> Filled | None:
    k, n = rng.randint(2, 5), rng.randint(2, 5)
    return {"k": k, "n": n}, [(k, "*", n, k * n)], k * n


def _start_sum(rng: Random, value: int) -> Filled | None:
    n, k = rng.randint(2, 9), rng.randint(2, 9)
    return {"n": n, "k": k}, [(n, "+", k, n + k)], n + k


def _gain(rng: Random, value: int) -> Filled | None:
    n = rng.randint(2, 9)
    return {"n": n}, [(value, "+", n, value + n)], value + n


def _lose(rng: Random, value: int) -> Filled | None:
    n = rng.randint(2, 9)
    return {"n": n}, [(value, "-", n, value - n)], value - n


def _times(rng: Random, value: int) -> Filled | None:
    k = rng.randint(2, 4)
    return {"k": k}, [(value, "*", k, value * k)], value * k


def _double(rng: Random, value: int) -> Filled | None:
    return {}, [(value, "*", 2, value * 2)], value * 2


def _share(rng: Random, value: int) -> Filled | None:
    k = _divisor(rng, value)
    return None if k is None else ({"k": k}, [(value, "/", k, value // k)], value // k)


def _half(rng: Random, value: int) -> Filled | None:
    return None if value % 2 else ({}, [(value, "/", 2, value // 2)], value // 2)


def _gain_packs(rng: Random, value: int) -> Filled | None:
    k, n = rng.randint(2, 5), rng.randint(2, 5)
    return {"k": k, "n": n}, [(k, "*", n, k * n), (value, "+", k * n, value + k * n)], value + k * n


def _lose_packs(rng: Random, value: int) -> Filled | None:
    k, n = rng.randint(2, 5), rng.randint(2, 5)
    return {"k": k, "n": n}, [(k, "*", n, k * n), (value, "-", k * n, value - k * n)], value - k * n


def _ask(rng: Random, value: int) -> Filled | None:
    return {}, [], value


def _missing(rng: Random, value: int) -> Filled | None:
    n = value + rng.randint(2, 9)
    return None if n > LARGEST else ({"n": n}, [(n, "-", value, n - value)], n - value)


def _together_more(rng: Random, value: int) -> Filled | None:
    n = rng.randint(2, 9)
    return {"n": n}, [(value, "+", n, value + n), (value, "+", value + n, 2 * value + n)], 2 * value + n


def _together_fewer(rng: Random, value: int) -> Filled | None:
    n = rng.randint(2, 9)
    return {"n": n}, [(value, "-", n, value - n), (value, "+", value - n, 2 * value - n)], 2 * value - n


def _together_times(rng: Random, value: int) -> Filled | None:
    k = rng.randint(2, 4)
    return {"k": k}, [(value, "*", k, value * k), (value, "+", value * k, value * (k + 1))], value * (k + 1)


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: each sentence exists once
class Part:
    """A sentence with slots, and the arithmetic behind it: `steps` operations on the quantity so far."""

    text: str
    fill: Callable[[Random, int], Filled | None]
    steps: int


OPENINGS = (
    Part("{A} has {n} {things}.", _start, 0),
    Part("{A} starts with {n} {things}.", _start, 0),
    Part("{A} buys {k} boxes of {n} {things}.", _start_packs, 1),
    Part("{A} fills {k} jars with {n} {things} each.", _start_packs, 1),
    Part("{A} has {n} old {things} and {k} new {things}.", _start_sum, 1),
)
EVENTS = (
    Part("{He} buys {n} more {things}.", _gain, 1),
    Part("{He} finds {n} {things}.", _gain, 1),
    Part("{B} gives {him} {n} {things}.", _gain, 1),
    Part("Then {he} gets {n} more.", _gain, 1),
    Part("{He} gives {n} {things} to {B}.", _lose, 1),
    Part("{He} loses {n} {things}.", _lose, 1),
    Part("{He} sells {n} of them.", _lose, 1),
    Part("Then {B} takes {n} {things}.", _lose, 1),
    Part("Then the number of {things} doubles.", _double, 1),
    Part("A week later {he} has {k} times as many.", _times, 1),
    Part("{He} makes {k} equal piles and keeps one.", _share, 1),
    Part("{He} keeps half of the {things}.", _half, 1),
    Part("{He} buys {k} bags of {n} {things}.", _gain_packs, 2),
    Part("{k} friends give {him} {n} {things} each.", _gain_packs, 2),
    Part("For {k} days {he} gets {n} a day.", _gain_packs, 2),
    Part("{He} gives {k} friends {n} {things} each.", _lose_packs, 2),
    Part("For {k} days {he} uses {n} a day.", _lose_packs, 2),
)
QUESTIONS = (
    Part("How many {things} does {he} have now?", _ask, 0),
    Part("How many {things} are left?", _ask, 0),
    Part("How many does {A} have in the end?", _ask, 0),
    Part("They cost {k} dollars each. How much is that?", _times, 1),
    Part("{k} children share them. How many does each get?", _share, 1),
    Part("{He} needs {n}. How many more are needed?", _missing, 1),
    Part("{B} has {n} more. How many do they have together?", _together_more, 2),
    Part("{B} has {n} fewer. How many do they have together?", _together_fewer, 2),
    Part("{B} has {k} times as many. How many do they have together?", _together_times, 2),
)


def vocabulary() -> list[str]:
    """Every word and sign of the corpus but numbers, sorted.

    Example:
        >>> "apples" in vocabulary(), "7" in vocabulary()
        (True, False)
    """
    words = {word for person in PEOPLE for word in person} | set(THINGS) | {"\n", "####", "=", *"+-*/"}
    for part in (*OPENINGS, *EVENTS, *QUESTIONS):
        words.update(TOKEN.findall(re.sub(r"\{\w+\}", " ", part.text)))
    return sorted(words)


@cache
def _length(part: Part) -> int:
    return len(TOKEN.findall(re.sub(r"\{\w+\}", "x", part.text)))


@lru_cache(maxsize=200_000)
def split_of_skeleton(parts: tuple[Part, ...]) -> Split:
    """The only split in which this sequence of sentences occurs."""
    digest = blake2b("|".join(part.text for part in parts).encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest, "big") % 3 else "test"


def split_of_numbers(numbers: tuple[int, ...]) -> Split:
    """The only split in which this tuple of stated numbers occurs."""
    return "train" if sum(numbers) % 3 else "test"


@dataclass(frozen=True)
class WordProblem:
    """A problem with what it was made from.

    Attributes:
        question: The text.
        steps: The solution: (left, operator, right, result) each.
        skeleton: Its sentences, without their numbers, names and things.
        numbers: The numbers that the text states, in its order.
    """

    question: str
    steps: tuple[Step, ...]
    skeleton: tuple[Part, ...]
    numbers: tuple[int, ...]

    @property
    def answer(self) -> int:
        """The last step's result."""
        return self.steps[-1][3]

    @property
    def solution(self) -> str:
        """One line a step, and the answer behind GSM8K's mark."""
        lines = [f"{left} {sign} {right} = {result}" for left, sign, right, result in self.steps]
        return "\n".join([*lines, f"#### {self.answer}"])


def _skeleton(rng: Random, operations: int, split: Split) -> tuple[Part, ...]:
    while True:
        opening, question = rng.choice(OPENINGS), rng.choice(QUESTIONS)
        left = operations - opening.steps - question.steps
        events: list[Part] = []
        while left > 0:
            event = rng.choice(EVENTS)
            if event not in events and event.steps <= left:
                events.append(event)
                left -= event.steps
        parts = (opening, *events, question)
        if left == 0 and sum(map(_length, parts)) < PROMPT_LENGTH and split_of_skeleton(parts) == split:
            return parts


def _numbers(rng: Random, parts: tuple[Part, ...]) -> tuple[list[dict[str, int]], list[Step]] | None:
    value, stated, steps = 0, [], []
    for part in parts:
        filled = part.fill(rng, value)
        if filled is None:
            return None
        numbers, new, value = filled
        for step in new:
            if not 0 < step[3] <= LARGEST:
                return None
        stated.append(numbers)
        steps += new
    return stated, steps


def _make(rng: Random, split: Split) -> WordProblem:
    operations = rng.choice(OPERATIONS)
    while True:
        parts = _skeleton(rng, operations, split)
        for _ in range(12):  # some skeletons seldom stay within 1 to 30: another one then
            drawn = _numbers(rng, parts)
            if drawn is None:
                continue
            numbers = tuple(number for stated in drawn[0] for number in stated.values())
            if split_of_numbers(numbers) == split:
                return WordProblem(_text(rng, parts, drawn[0]), tuple(drawn[1]), parts, numbers)


def _text(rng: Random, parts: tuple[Part, ...], stated: list[dict[str, int]]) -> str:
    first, second = rng.sample(PEOPLE, 2)
    words = {"A": first[0], "He": first[1], "he": first[2], "him": first[3]}
    words |= {"B": second[0], "things": rng.choice(THINGS)}
    return " ".join(part.text.format(**words, **numbers) for part, numbers in zip(parts, stated))


def word_problem(index: int, seed: int = 0, split: Split = "train") -> WordProblem:
    """The problem with this index: it depends on seed, split and index alone.

    Args:
        index: Of the problem, from 0.
        seed: Of the corpus.
        split: ``"train"`` or ``"test"``.

    Returns:
        [`WordProblem`].

    Raises:
        ValueError: For another split.

    Example:
        >>> print(word_problem(1).solution)  # doctest: +SKIP
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` is {split!r}: pass 'train' or 'test'.")
    return _make(Random(f"word problem {seed} {split} {index}"), split)


def generate_problems(count: int, seed: int = 0, split: Split = "train") -> list[TextSample]:
    """Word problems as a model sees them.

    Args:
        count: How many.
        seed: Of the corpus; a longer list with the same seed begins with the shorter one.
        split: ``"train"`` or ``"test"``; they share no skeleton and no tuple of stated numbers.

    Returns:
        Samples whose prompt is the question and a newline, whose completion is the worked solution, and whose group is
        the number of operations.

    Raises:
        ValueError: For a negative count or another split.

    Example:
        >>> sample = generate_problems(3, seed=1, split="test")[2]
        >>> sample.completion.splitlines()[-1] == f"#### {sample.answer}"
        True
    """
    if count < 0:
        raise ValueError(f"`count` is {count}: pass how many problems to make.")
    samples = []
    for index in range(count):
        problem = word_problem(index, seed, split)
        samples.append(
            TextSample(
                key=f"{split}-{seed}-{index}",
                prompt=problem.question + "\n",
                completion=problem.solution,
                answer=str(problem.answer),
                group=str(len(problem.steps)),
            )
        )
    return samples


def _facts(rng: Random) -> Iterator[str]:
    while True:
        sign = rng.choice("+++---*/")
        if sign in "+-":
            right = rng.randint(2, 9) if rng.random() < 0.7 else rng.randint(2, 25)
            left = rng.randint(1, LARGEST - right)
            yield f"{left} + {right} = {left + right}" if sign == "+" else f"{left + right} - {right} = {left}"
        else:
            right = rng.randint(2, 9)
            left = rng.randint(2, LARGEST // right)
            yield f"{left} * {right} = {left * right}" if sign == "*" else f"{left * right} / {right} = {left}"


def generate_sheets(count: int, seed: int = 0, lines: int = 7) -> list[str]:
    """Sheets of sums, the other half of the base model's corpus: the arithmetic of the problems without their words.

    Args:
        count: How many sheets.
        seed: Of the corpus.
        lines: Sums a sheet.

    Returns:
        One text a sheet, one sum a line.

    Example:
        >>> sheet = generate_sheets(1, lines=3)[0]
        >>> all(eval(left) == int(right) for left, right in (line.split(" = ") for line in sheet.splitlines()))
        True
    """
    sheets = []
    for index in range(count):
        facts = _facts(Random(f"sheet {seed} {index}"))
        sheets.append("\n".join(next(facts) for _ in range(lines)))
    return sheets
