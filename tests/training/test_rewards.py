"""Rewards in TRL's form, and what contains one that hangs, raises or returns nothing."""

import asyncio
import contextlib
import signal
import threading
import time
from typing import Any

import pytest
import torch
from datasets import Dataset
from isolation import isolated

from hf_rm.tasks.sudoku import format_board, generate_boards
from hf_rm.training.rewards import (
    MissingColumnError,
    check_rewards,
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


def slow_at(bad: set[int], seconds: float, calls: list[int]) -> Any:
    """One for each completion, after a pause at some of them."""

    def reward(completions: list[int], **columns: Any) -> list[float]:
        for number in completions:
            calls.append(number)
            if number in bad:
                time.sleep(seconds)
        return [1.0] * len(completions)

    return reward


def test_one_that_hangs_costs_the_others_nothing() -> None:
    """And all of it takes no longer than the one limit, however many hang or raise."""
    begin = time.monotonic()
    assert call(contained(slow_at({2}, 60, []), seconds=1.0), list(range(8))) == [1, 1, None, *[1.0] * 5]
    assert time.monotonic() - begin < 1.5
    calls: list[int] = []
    begin = time.monotonic()
    assert call(contained(slow_at(set(range(64)), 60, calls), seconds=1.0), list(range(64))) == [None] * 64
    assert time.monotonic() - begin < 2.0

    def raises_then_hangs(completions: list[int], **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("one at a time, please")
        return hang()

    begin = time.monotonic()
    assert call(contained(raises_then_hangs, seconds=1.0), list(range(64))) == [None] * 64
    assert time.monotonic() - begin < 2.0


def test_a_library_with_alarms_of_its_own_does_not_switch_ours_off() -> None:
    """math-verify sets the process's alarm for each answer, and clears it: what hangs afterwards is still ended."""
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    def reward(completions: list[str], **columns: Any) -> list[float]:
        assert timeout(20)(lambda: 1)() == 1
        return hang()

    begin = time.monotonic()
    assert call(contained(reward, seconds=0.5), ["a"]) == [None] and time.monotonic() - begin < 3

    def caught(completions: list[str], **columns: Any) -> list[float]:
        with contextlib.suppress(TimeoutException):
            timeout(20)(hang)()  # our signal is taken for the library's own alarm
        return hang()

    begin = time.monotonic()
    assert call(contained(caught, seconds=0.5), ["a"]) == [None] and time.monotonic() - begin < 3

    def escapes(completions: list[str], **columns: Any) -> list[float]:
        return timeout(20)(hang)()  # which is no Exception

    assert call(contained(escapes, seconds=0.5), ["a"]) == [None]
    before = signal.getsignal(signal.SIGALRM)
    assert call(contained(lambda **_: [1.0], seconds=0.5), ["a"]) == [1.0]
    assert signal.getsignal(signal.SIGALRM) is before
    time.sleep(0.6)  # nothing rings any more


@pytest.mark.timeout(60)
def test_a_search_that_keeps_the_gil_is_ended_and_its_neighbour_scored() -> None:
    """`re` lets no thread run before it is done, which here would take years: a timer of the kernel ends it."""
    before, begin = signal.getsignal(signal.SIGPROF), time.monotonic()
    reward = contained(format_reward(r"^(a+)+$"), seconds=1.5)
    assert call(reward, ["a" * 40 + "b", "aa"]) == [None, 1.0] and time.monotonic() - begin < 5
    assert signal.getsignal(signal.SIGPROF) is before and signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    time.sleep(0.2)  # nothing is on its way


def test_a_profiler_goes_on_afterwards() -> None:
    def profile(*args: Any) -> None:
        raise AssertionError("it is not due for an hour")

    before = signal.signal(signal.SIGPROF, profile)
    try:
        signal.setitimer(signal.ITIMER_PROF, 3600, 1800)
        assert call(contained(lambda **_: [1.0], seconds=0.5), ["a"]) == [1.0]
        left, again = signal.getitimer(signal.ITIMER_PROF)
        assert signal.getsignal(signal.SIGPROF) is profile and 3000 < left <= 3601 and again == pytest.approx(1800)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def test_coroutines_are_contained_too() -> None:
    async def reward(completions: list[int], weights: list[float], **columns: Any) -> list[Any]:
        if 3 in completions:
            await asyncio.sleep(60)
        if 1 in completions:
            raise RuntimeError("out of order")
        return [float("nan") if number == 2 else weight for number, weight in zip(completions, weights, strict=True)]

    safe = contained(reward, seconds=1.0)
    assert asyncio.iscoroutinefunction(safe) and safe.__name__ == "reward"
    begin = time.monotonic()
    found = asyncio.run(call(safe, [0, 1, 2, 3, 4], weights=[0.5, 1, 2, 3, 4]))
    assert found == [0.5, None, None, None, 4.0] and time.monotonic() - begin < 1.5

    async def short(**columns: Any) -> list[float]:
        return [1.0]

    with pytest.raises(ValueError, match="returned 1 values for 2"):
        asyncio.run(call(contained(short), ["a", "b"]))

    class Judge:
        async def __call__(self, completions: list[str], **columns: Any) -> list[float]:
            return [2.0] * len(completions)

    judged = contained(Judge())
    assert asyncio.run(call(judged, ["a", "b"])) == [2.0, 2.0] and judged.__name__ == "Judge"


def test_a_right_answer_that_cannot_be_one_is_an_error_before_training() -> None:
    numeric = contained(math_reward(method="numeric"))
    rows = [{"prompt": "", "answer": "7"}, {"prompt": "", "answer": r"\frac{1}{2}"}]
    with pytest.raises(ValueError, match=r"row 1 of the dataset: gold is .*frac.*which is no number"):
        check_rewards([numeric], rows)
    check_rewards([numeric], rows[:1])
    check_rewards([math_reward(), format_reward("a"), lambda **_: [1.0]], rows)
    with pytest.raises(MissingColumnError, match="math_answer reads the column 'answer'.*it has level, prompt"):
        check_rewards([numeric], [{"prompt": "", "level": 1}])
    with pytest.raises(MissingColumnError, match="sudoku_exact reads the column 'solution'"):
        check_rewards([sudoku_reward("exact")], Dataset.from_list([{"prompt": ""}]))


@pytest.mark.parametrize("bare", [1.0, None, torch.tensor(0.5)])
def test_one_bare_value_for_a_batch_is_a_mistake(bare: Any) -> None:
    """Contained it would train to the end on nothing."""

    async def later(**columns: Any) -> Any:
        return bare

    for seconds in (30.0, None):
        with pytest.raises(ValueError, match=r"returned .*, which is no list, for 2 completions: return a list with"):
            call(contained(lambda **_: bare, seconds), ["a", "b"])
    with pytest.raises(ValueError, match="The reward later returned .*, which is no list, for 2 completions"):
        asyncio.run(call(contained(later), ["a", "b"]))


def test_what_a_lazy_reward_raises_is_contained() -> None:
    """A TypeError of its own says nothing of how many values there are."""

    def lazy(completions: list[Any], **columns: Any) -> Any:
        return (len(text) for text in completions)

    assert call(contained(lazy), ["ab", 3]) == [2.0, None]


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
