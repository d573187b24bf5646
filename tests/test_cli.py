"""The `hf-rm` command."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from rxn import MASK, write_rxnmapper
from tiny_models import llama
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_rm.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The table as a dict: a trait's name and its value are two spaces apart or more."""
    lines = (line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip())
    return {name.strip(): value.strip() for name, value in lines}


def test_probe_prints_the_traits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(write_rxnmapper(tmp_path)), "--mask_token_id", str(MASK)]) == 0
    table = printed(capsys)
    assert table["mask token"] == "14, from the tokenizer"
    assert table["embedding"] == "albert.embeddings.word_embeddings, 128 wide (hidden size 256)"
    assert table["parameters"].startswith("735,567, float32")
    assert table["attention"] == "bidirectional"
    assert table["head predicts the mask"].startswith("no (p(mask)")


def test_probe_takes_a_saved_wrapper(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(ROOT / "model_cards" / "rm-sudoku")]) == 0
    table = printed(capsys)
    assert table["head predicts the mask"].startswith("yes")
    assert table["vocabulary"].startswith("10 rows")


def test_probe_names_a_false_claim_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {
        "vocab_size": 11,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path)
    assert main(["probe", str(tmp_path), "--mask_token_id", "0"]) == 1
    output = capsys.readouterr().out
    assert "false claim:" in output and "from_autoregressive" in output
    assert "causal" in output


def test_claims_can_be_overridden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama().save_pretrained(tmp_path)
    arguments = ["--mask_token_id", "0", "--logits_shift", "--attention_block_length", "4", "--dtype", "bfloat16"]
    assert main(["probe", str(tmp_path), *arguments]) == 0
    table = printed(capsys)
    assert table["logits shift"] == "claimed yes, not observable"
    assert table["blocks"] == "causal in blocks of 4: seen yes"
    assert "bfloat16" in table["parameters"]


def test_errors_are_one_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama().save_pretrained(tmp_path)
    assert main(["probe", str(tmp_path)]) == 1
    assert "hf-rm probe: `mask_token_id` is None" in capsys.readouterr().err
    assert main(["probe", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["prob"])
    assert stopped.value.code == 2


def test_the_command_is_installed() -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["hf-rm"]
    module, _, function = entry.partition(":")
    assert getattr(import_module(module), function) is main


def test_convert_saves_a_bidirectional_copy_with_a_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    causal, folder = str(tmp_path / "causal"), tmp_path / "new" / "diffusion"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "model_cards" / "tiny-math-base")
    tokenizer.mask_token = None
    tokenizer.save_pretrained(causal)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(causal)

    assert main(["convert", causal, str(folder), "--mask_token", "<hole>"]) == 0
    assert "mask token <hole>" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["diffusion"], "nothing staged is left"
    assert AutoTokenizer.from_pretrained(folder).mask_token == "<hole>"
    assert main(["probe", str(folder)]) == 0
    assert printed(capsys)["attention"] == "bidirectional"

    assert main(["convert", causal, str(folder)]) == 1
    assert "`folder` is" in capsys.readouterr().err and (folder / "model.safetensors").exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(ROOT / "model_cards" / "nowhere"), str(tmp_path / "copy")]) == 1
    assert "hf-rm convert:" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
