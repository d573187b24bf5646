"""The terminal's drawing: the marks are there without colour, and a token cannot drive the terminal."""

import io
import time

import pytest
from rich.console import Console

from hf_rm.visualize import Replay, play, render_step

MASK = 0


def printed(renderable, width=80, **kwargs):
    console = Console(file=io.StringIO(), width=width, **kwargs)
    console.print(renderable)
    return console.file.getvalue()


def board():
    """Four by four, boxes of two: step 1 re-masks a 3 and reveals a wrong 4; step 2 replaces and reveals."""
    start = [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, MASK]
    second = start[:]
    second[2], second[15] = MASK, 4
    third = second[:]
    third[2], third[15] = 3, 1
    first_actions, second_actions = [0] * 16, [0] * 16
    first_actions[2], first_actions[15] = 2, 1
    second_actions[2], second_actions[15] = 1, 3
    return Replay.from_trajectory(
        [start, second, third], [first_actions, second_actions], mask_token_id=MASK, decode=str, target=third,
        layout="grid", columns=4, box=2, title="Small",
    )  # fmt: skip


def test_a_board_with_every_mark():
    assert printed(render_step(board(), 1)).splitlines() == [
        "Small  step 1 of 2",
        "┌────────┬────────┐",
        "│ 1   2  │[3]  4  │",
        "│ 3   4  │ 1   2  │",
        "├────────┼────────┤",
        "│ 2   1  │ 4   3  │",
        "│ 4   3  │ 2  (4)!│",
        "└────────┴────────┘",
        "revealed 1  re-masked 1  kept 14  masks left 1  wrong left 1",
        "(a) revealed  [a] re-masked  {a} replaced  · mask  a! wrong",
    ]
    last = printed(render_step(board(), 2))
    assert "│ 4   3  │ 2  {1} │" in last and "replaced 1" in last and "wrong left 0" in last


def test_a_waiting_mask_and_the_input():
    first = printed(render_step(board(), 0))
    assert "step 0 of 2, the input" in first
    assert "│ 4   3  │ 2   ·  │" in first


def test_colours_tell_the_actions_apart():
    text = printed(render_step(board(), 1), force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[33m[3]" in text  # re-masked: yellow
    assert "31m(4)!" in text  # wrong: red


def test_ascii_only_terminals_get_ascii():
    class Ascii(io.StringIO):
        encoding = "ascii"

    console = Console(file=Ascii(), width=60)
    console.print(render_step(board(), 1))
    text = console.file.getvalue()
    assert text.isascii()
    assert "+--------+--------+" in text


def prose(tokens, masked=None, actions=None, **kwargs):
    frames = [["x"] * len(tokens), list(tokens)]
    masks = [[True] * len(tokens), masked or [False] * len(tokens)]
    return Replay(frames, actions or [[1] * len(tokens)], masks, **kwargs)


def test_text_keeps_spaces_outside_and_marks_newlines():
    text = printed(render_step(prose(["The", " cat", "\n", "sat"]), 1))
    assert "(The) (cat)(↵)\n(sat)" in text


def test_end_markers_are_named_once():
    text = printed(render_step(prose(["a"] + ["<|endoftext|>"] * 3), 1))
    assert text.count("<|endoftext|>") == 1 and text.count("∎") == 2


@pytest.mark.parametrize("token", ["\x1b[2J", "\x1b]0;owned\x07", "\x9b31m"])
def test_a_token_cannot_drive_the_terminal(token):
    for layout in ("text", "grid"):
        text = printed(render_step(prose([token], layout=layout, title=token), 1))
        assert not any(character in text for character in "\x1b\x07\x9b")


def test_markup_in_a_token_stays_text():
    assert "[bold]" in printed(render_step(prose(["[bold]x[/bold]"]), 1))


def test_long_text_wraps():
    text = printed(render_step(prose([f" word{i}" for i in range(60)]), 1), width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert all(f"(word{i})" in text for i in range(60))


def test_play_prints_key_frames_when_it_is_no_terminal():
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    play(board(), console=console)
    text = console.file.getvalue()
    assert [text.count(f"step {step} of 2") for step in range(3)] == [1, 1, 1]
    assert "\x1b" not in text


def test_play_chooses_steps():
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    play(board(), console=console, steps=[-1])
    assert "step 2 of 2" in console.file.getvalue() and "step 0" not in console.file.getvalue()


def test_play_animates_in_a_terminal(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    console = Console(file=io.StringIO(), width=80, height=40, force_terminal=True, color_system=None)
    play(board(), console=console, delay=0.25)
    text = console.file.getvalue()
    assert waits == [0.25, 0.25]  # between the three steps, and not after the last
    assert text.index("step 0 of 2") < text.index("step 1 of 2") < text.index("step 2 of 2")


def test_play_refuses_a_negative_delay():
    with pytest.raises(ValueError, match="delay=-1 is negative"):
        play(board(), delay=-1)
