"""The page for trying a model: what it plays, without gradio and with it."""

import json
import re
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from hf_rm import RMForMaskedDiffusion
from hf_rm.visualize.app import BOARD, build_app, main, replay_page

CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.fixture(scope="module")
def boards():
    return AutoModel.from_pretrained(CARDS / "rm-sudoku"), AutoTokenizer.from_pretrained(CARDS / "rm-sudoku")


def played(page):
    (data,) = json.loads(re.search(r'<script type="application/json".*?>(.*?)</script>', page, re.DOTALL)[1])[
        "replays"
    ]
    state = list(data["first"])
    for changes in data["steps"]:
        for position, token, _ in zip(*[iter(changes)] * 3, strict=True):
            state[position] = token
    return data, ["?" if token == -1 else data["vocabulary"][token] for token in state]


@pytest.mark.parametrize("preset", [None, "rm-paper"])
def test_a_board_is_repaired_and_played(boards, preset):
    data, final = played(replay_page(*boards, f" {BOARD}\n", preset=preset))
    assert data["layout"] == "grid" and "".join(final) == BOARD[:-1] + "9"
    assert data["editable"] == [1] * 81 and ["ended by", "converged"] in data["metadata"]


def test_a_prompt_is_written_on_from():
    model = RMForMaskedDiffusion.from_backbone(str(CARDS / "tiny-math-base"), history=False)
    tokenizer = AutoTokenizer.from_pretrained(CARDS / "tiny-math-base")
    prompt = "Henry starts with 10 toys."
    data, final = played(replay_page(model, tokenizer, prompt, new_tokens=12, preset="fast-dllm"))
    given = len(tokenizer(prompt)["input_ids"])
    assert data["layout"] == "text" and data["editable"] == [0] * given + [1] * 12
    assert "".join(final[:given]).strip() == prompt and "?" not in final


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "empty"),
        (BOARD[:-1] + "X", "cannot read"),
        (BOARD + "1", "82 positions.*81"),
        (BOARD[1:], "80 positions"),
    ],
)
def test_what_cannot_be_decoded_is_named(boards, text, message):
    with pytest.raises(ValueError, match=message):
        replay_page(*boards, text)


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"hf-rm\[app\]"):
        build_app(str(CARDS / "rm-sudoku"))


def test_the_page_is_built_and_answers(monkeypatch):
    gradio = pytest.importorskip("gradio")
    launched = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda app, **settings: launched.append((app, settings)))
    main([str(CARDS / "rm-sudoku"), "--port", "7999"])
    ((app, settings),) = launched
    assert settings == {"server_port": 7999}
    (show,) = [block.fn for block in app.fns.values()]
    frame = show(BOARD, 64, "as it was saved")
    assert frame.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and "<script" not in frame
    with pytest.raises(gradio.Error, match="cannot read"):
        show("x" * 81, 64, "rm-paper")
