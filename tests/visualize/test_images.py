"""The contact sheet: an image of the expected shape, whole or not at all, and a clear word without matplotlib."""

import os
import sys
import warnings

import pytest

from hf_rm.visualize import Replay, render_sheet


def board(steps=2):
    frames = [[str(1 + (i + i // 4) % 4) for i in range(16)] for _ in range(steps + 1)]
    masked = [[False] * 16 for _ in range(steps + 1)]
    actions = [[0] * 16 for _ in range(steps)]
    masked[1][3], actions[0][3], actions[1][3] = True, 2, 1
    return Replay(frames, actions, masked, target=["1"] * 16, layout="grid", columns=4, box=2, title="A $board$")


def prose(tokens):
    n = len(tokens)
    return Replay([["x"] * n, tokens], [[1] * n], [[True] * n, [False] * n], title="Text")


def size(path):
    image = pytest.importorskip("PIL.Image")
    with image.open(path) as sheet:
        assert sheet.format == "PNG"
        return sheet.size, len(set(sheet.convert("RGB").resize((200, 200)).tobytes()))


def test_one_column_a_step(tmp_path):
    pytest.importorskip("matplotlib")
    path = render_sheet(board(), tmp_path / "new" / "sheet.png", dpi=50)
    (wide, high), shades = size(path)
    (narrow, same), _ = size(render_sheet(board(), tmp_path / "one.png", steps=[1], dpi=50))
    assert wide == 3 * narrow and high == same
    assert shades > 20  # something is drawn
    (_, double), _ = size(render_sheet([board(), board()], tmp_path / "two.png", steps=[1], dpi=50))
    assert double == 2 * same


def test_steps_differ(tmp_path):
    pytest.importorskip("matplotlib")
    first = render_sheet(board(), tmp_path / "a.png", steps=[0], dpi=50).read_bytes()
    assert first != render_sheet(board(), tmp_path / "b.png", steps=[1], dpi=50).read_bytes()
    assert first == render_sheet(board(), tmp_path / "c.png", steps=[0], dpi=50).read_bytes()


def test_any_text_can_be_drawn(tmp_path):
    """Mathematics, missing glyphs, controls, long tokens and blank ones neither raise nor warn."""
    pytest.importorskip("matplotlib")
    tokens = ["$x", "^{", "\\frac", "数", "\x1b[31m", "", " ", "\n\n", "w" * 200, "<|endoftext|>", "<|endoftext|>"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render_sheet([prose(tokens), board()], tmp_path / "sheet.png", dpi=40)


def test_a_failure_leaves_the_old_image(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "sheet.png"
    path.write_text("old")
    with pytest.raises(IndexError, match="step=9 does not exist"):
        render_sheet(board(), path, steps=[9])
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["sheet.png"]


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="replays is empty"):
        render_sheet([], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="steps is empty"):
        render_sheet(board(), tmp_path / "sheet.png", steps=[])


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hf-rm\[app\]"'):
        render_sheet(board(), tmp_path / "sheet.png")
