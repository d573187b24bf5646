"""Rewards in TRL's form, and what contains one that hangs, raises or returns nothing."""

import threading
import time
from typing import Any

import pytest
from isolation import isolated

from hf_rm.tasks.sudoku import format_board, generate_boards
from hf_rm.training.rewards import (
    MissingColumnError,
    code_reward,
    completion_text,
    contained,
    format_reward,
    math_reward,
    sudoku_reward,
)


def call(reward: Any, completions: list[Any], **columns: Any) -> list[float | None]:
    ids = [[1] for _ in completions]
    return reward(prompts=[""] * len(ids), completions=completions, completion_ids=ids, **columns)


def test_sudoku() -> None:
    board, other = (format_board(ids) for ids in generate_boards(2, seed=0))
    swapped = board[1] + board[0] + board[2:]  # two cells of a row and box: their columns conflict
    masked, short = "." + board[1:], board[:80]
    given = [board, other, swapped, masked, short, "no board"]
    assert call(sudoku_reward("valid"), given) == [1, 1, 0, 0, 0, 0]
    assert call(sudoku_reward("exact"), given, solution=[board] * 6) == [1, 0, 0, 0, 0, 0]
    assert call(sudoku_reward("exact", "ids"), given[:2], ids=[list(map(int, board))] * 2) == [1, 0]
    # Each of the two digits now meets its other self in its new column.
    assert call(sudoku_reward("conflicts"), given) == [1, 1, pytest.approx(1 - 4 / 81), 0, 0, 0]


def test_math_by_math_verify() -> None:
    texts = [r"\boxed{\frac{1}{2}}", "#### 0.5", "0.5", r"\boxed{2}", [{"role": "assistant", "content": "#### 1/2"}]]
    assert call(math_reward(), texts, answer=["0.5"] * 5) == [1, 1, 0, 0, 1]


@isolated
def test_code_in_the_sandbox() -> None:
    programs = ["def f(x):\n    return 2 * x", "def f(x):\n    return x", "def f(:", "def f(x):\n    while True: pass"]
    reward = code_reward(timeout=1.0)
    columns = {"tests": [["assert f(2) == 4"]] * 4, "entry_points": [["f"]] * 4}
    assert call(reward, programs, **columns) == [1, 0, 0, 0]
    assert call(reward, programs[:1], tests=["assert f(3) == 6"]) == [1]


def test_format() -> None:
    assert call(format_reward(r"^#### \d+$", 0.5), ["a\n#### 3", "#### x"]) == [0.5, 0]
    with pytest.raises(ValueError, match="`pattern`"):
        format_reward("(")


def test_raising_on_one_completion_costs_that_one_its_score() -> None:
    def inverse(completions: list[str], numbers: list[int], trainer_state: Any, **columns: Any) -> list[float]:
        return [1 / number for number in numbers]

    reward = contained(inverse)
    assert reward.__name__ == "inverse"
    assert call(reward, ["a", "b", "c"], numbers=[1, 0, 4], trainer_state=object()) == [1, None, 0.25]


def test_none_nan_and_nonsense_are_not_scored() -> None:
    assert call(contained(lambda **_: [None, float("nan"), float("inf"), "x", 2]), list("abcde")) == [*[None] * 4, 2.0]


def hang(**columns: Any) -> list[float]:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except Exception:  # a reward that catches everything
            continue
    return [1.0]


def test_hanging_in_the_main_thread_and_in_another() -> None:
    reward, found, begin = contained(hang, seconds=0.2), [], time.monotonic()
    assert call(reward, ["a"]) == [None]
    thread = threading.Thread(target=lambda: found.append(call(reward, ["a", "b"])))
    thread.start()
    thread.join(10)
    assert found == [[None, None]] and time.monotonic() - begin < 5
    assert call(contained(lambda **_: [1]), ["a"]) == [1.0]  # the alarm is off again


def test_mistakes_are_not_contained() -> None:
    with pytest.raises(ValueError, match="returned 1 values for 2"):
        call(contained(lambda **_: [1.0]), ["a", "b"])
    with pytest.raises(MissingColumnError, match="'answer'.*has completion_ids, level"):
        call(contained(math_reward(method="numeric")), ["a", "b"], level=[1, 2])
    with pytest.raises(ValueError, match="`seconds` is 0"):
        contained(hang, 0)
    with pytest.raises(ValueError, match="`kind`"):
        sudoku_reward("best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form"):
        math_reward(form="loud")  # type: ignore[arg-type]


def test_both_forms_of_a_completion() -> None:
    assert completion_text([{"role": "assistant", "content": "a"}, {"role": "tool", "content": None}]) == "a"
