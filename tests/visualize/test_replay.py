"""The trajectory every renderer reads: shapes, counts, what is wrong, and errors that say what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

import hf_rm.visualize.replay as replay_module
from hf_rm.visualize import Replay
from hf_rm.visualize.replay import REMASK, StepCounts, printable

MASK = 9
STATES = [[1, 2, 3, MASK], [1, MASK, 3, 4], [1, 5, 3, 6]]
ACTIONS = [[0, 2, 0, 1], [0, 1, 0, 3]]
TARGET = [1, 5, 7, 6]


def replay(**kwargs):
    return Replay.from_trajectory(STATES, ACTIONS, mask_token_id=MASK, decode=str, **kwargs)


def test_counts_of_every_step():
    r = replay(target=TARGET)
    assert r.counts(0) == StepCounts(kept=3, revealed=0, remasked=0, replaced=0, masks_left=1, wrong_left=2)
    assert r.counts(1) == StepCounts(kept=2, revealed=1, remasked=1, replaced=0, masks_left=1, wrong_left=2)
    assert r.counts(2) == StepCounts(kept=2, revealed=1, remasked=0, replaced=1, masks_left=0, wrong_left=1)
    assert r.counts(-1) == r.counts(2)


def test_wrong_is_visible_and_different():
    r = replay(target=TARGET)
    assert [r.wrong(step) for step in range(3)] == [
        [False, True, True, False],
        [False, False, True, True],
        [False, False, True, False],
    ]
    assert replay().wrong(0) == [False] * 4
    assert replay().counts(0).wrong_left is None


def test_kept_counts_editable_positions_only():
    assert replay(editable=[False, True, True, True]).counts(0).kept == 2


def test_a_remasked_cell_remembers_its_token():
    cell = replay().cells(1)[1]
    assert (cell.previous, cell.action, cell.masked) == ("2", REMASK, True)
    assert replay().cells(1)[3].previous == ""


def test_num_steps_drops_the_padding_of_the_batch():
    r = replay(num_steps=1)
    assert r.num_steps == 1 and len(r.frames) == 2
    with pytest.raises(ValueError, match=r"num_steps=3 is outside 0\.\.2.*out\.num_steps"):
        replay(num_steps=3)


def test_tensors_and_arrays():
    torch = pytest.importorskip("torch")
    states = torch.tensor(STATES)
    actions = torch.tensor(ACTIONS, dtype=torch.int8)
    editable = torch.tensor([False, True, True, True])
    from_tensors = Replay.from_trajectory(
        states, actions, mask_token_id=MASK, decode=str, target=torch.tensor(TARGET), editable=editable
    )
    assert from_tensors == replay(target=TARGET, editable=[False, True, True, True])
    from_arrays = Replay.from_trajectory(states.numpy(), actions.numpy(), mask_token_id=MASK, decode=str)
    assert from_arrays == replay()


def test_a_run_without_a_step():
    torch = pytest.importorskip("torch")
    r = Replay.from_trajectory(
        torch.tensor([[1, 2]]), torch.empty(0, 2, dtype=torch.int8), mask_token_id=MASK, decode=str
    )
    assert r.num_steps == 0 and r.key_steps() == [0]


def test_the_batch_dimension_is_named():
    with pytest.raises(ValueError, match=r"states has three dimensions.*states\[:, row\]"):
        Replay.from_trajectory([[[1, 2]]], [], mask_token_id=MASK, decode=str)
    with pytest.raises(ValueError, match="actions has one dimension"):
        Replay.from_trajectory([[1, 2], [1, 2]], [0, 0], mask_token_id=MASK, decode=str)
    with pytest.raises(ValueError, match="target has more than one dimension"):
        replay(target=[TARGET])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": []}, "frames is empty"),
        ({"actions": []}, "actions has 0 steps but frames has 2 states"),
        ({"actions": [[0]]}, r"actions\[0\] has 1 positions but frames\[0\] has 2"),
        ({"masked": [[False, False]]}, "masked has 1 rows but frames has 2"),
        ({"target": ["a"]}, "target has 1 positions"),
        ({"editable": [True] * 3}, "editable has 3 positions"),
        ({"layout": "table"}, "layout='table' is unknown; choose one of 'grid', 'text'"),
        ({"columns": 0}, "columns=0"),
        ({"box": -1}, "box=-1"),
        ({"actions": [[7, 0]]}, r"actions\[0\]\[0\]=7 is no action"),
        ({"actions": [[1, 0]]}, r"actions\[0\]\[0\]=1 \(reveal\) contradicts the states, which go from 'a' to 'a'"),
        ({"actions": [[2, 0]]}, r"\(re-mask\) contradicts"),
        ({"frames": [["a", "b"], ["a", "c"]]}, r"actions\[0\]\[1\]=0 \(keep\) contradicts.*'b' to 'c'"),
    ],
)
def test_errors_name_the_argument(change, message):
    good = {
        "frames": [["a", "b"], ["a", "b"]],
        "actions": [[0, 0]],
        "masked": [[False, False], [False, False]],
    }
    Replay(**good)
    with pytest.raises(ValueError, match=message):
        Replay(**(good | change))


def test_a_step_that_does_not_exist():
    with pytest.raises(IndexError, match=r"step=3 does not exist.*0 \(the input\) to 2"):
        replay().counts(3)


def test_key_steps_prefer_revisions():
    states = [[1, 2], [1, 2], [MASK, 2], [1, 2], [1, 2], [1, 2]]
    actions = [[0, 0], [2, 0], [1, 0], [0, 0], [0, 0]]
    r = Replay.from_trajectory(states, actions, mask_token_id=MASK, decode=str)
    assert r.key_steps(3) == [0, 2, 5]
    assert r.key_steps(4) == [0, 2, 3, 5]
    assert r.key_steps(1) == [5]
    with pytest.raises(ValueError, match="limit=0"):
        r.key_steps(0)


def tokenizer_of(vocabulary, decoder):
    """A real tokenizer of whole words; what a decoder does to them is the library's own."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}))
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def decoders():
    from tokenizers import decoders

    words = decoders.WordPiece(prefix="\x00", cleanup=False)
    lines = [decoders.Replace(" \n", "\n"), decoders.Replace(" .", ".")]
    return {
        "SentencePiece": (["\u2581the", "re", "<mask>"], decoders.Metaspace(), [" the", "re"]),
        "WordPiece": (["the", "##re", "<mask>"], decoders.WordPiece(), [" the", "re"]),
        "byte level": (["\u0120the", "re", "<mask>"], decoders.ByteLevel(), [" the", "re"]),
        "words": (["the", ".", "<mask>"], decoders.Sequence([words, decoders.Fuse(), *lines]), [" the", "."]),
        "lines": (["7", "\n", "<mask>"], decoders.Sequence([words, decoders.Fuse(), *lines]), [" 7", "\n"]),
        "an end": (["the", "<eos>", "<mask>"], words, [" the", "<eos>"]),
        "no spaces": (["5", "6", "<mask>"], decoders.Fuse(), ["5", "6"]),
    }


@pytest.mark.parametrize("kind", decoders())
def test_a_token_stands_as_it_does_inside_a_text(kind):
    """A lone word loses the space before it: a page of a tokenizer that joins words showed themallrunintoone."""
    vocabulary, decoder, shown = decoders()[kind]
    replay = Replay.from_trajectory([[0, 1, 2]], [], mask_token_id=2, decode=tokenizer_of(vocabulary, decoder))
    assert replay.frames == [[*shown, "[MASK]"]]


def test_the_text_models_words_are_apart():
    from pathlib import Path

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[2] / "model_cards" / "tiny-math-base")
    ids = tokenizer("Henry starts with 10 toys.\n10 * 2 = 20\n")["input_ids"]
    replay = Replay.from_trajectory([ids], [], mask_token_id=-1, decode=tokenizer)
    assert "".join(replay.frames[0]) == " Henry starts with 10 toys.\n 10 * 2 = 20\n"


def test_decode_is_never_asked_for_the_mask():
    assert Replay.from_trajectory([[1]], [], mask_token_id=1, decode={}.__getitem__).frames == [["[MASK]"]]
    with pytest.raises(TypeError, match="decode=3 is neither a tokenizer nor a function"):
        Replay.from_trajectory([[1]], [], mask_token_id=1, decode=3)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[2J", "\u241b[2J"),
        ("\x7f\x9b", "\u2421\ufffd"),
        ("a\u202eb\u2028\ud800", "a\ufffdb\ufffd\ufffd"),
        ("a\tb\n", "a b\n"),
        ("\U0001f469\u200d\U0001f4bb né 数", "\U0001f469\u200d\U0001f4bb né 数"),
    ],
)
def test_printable(raw, shown):
    assert printable(raw) == shown


def test_importing_the_package_is_light():
    """Without hf_rm/__init__.py, which registers the Auto classes and needs torch for that."""
    code = (
        "import sys, types; parent = types.ModuleType('hf_rm'); parent.__path__ = [sys.argv[1]]\n"
        "sys.modules['hf_rm'] = parent\n"
        "import hf_rm.visualize as v; v.Replay; v.render_html; v.render_sheet; v.play\n"
        "print([name for name in ('torch', 'matplotlib', 'transformers') if name in sys.modules])"
    )
    package = str(Path(replay_module.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, package], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_names():
    import hf_rm.visualize as visualize

    assert set(visualize.__all__) <= set(dir(visualize))
    assert all(getattr(visualize, name) is not None for name in visualize.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = visualize.nothing
