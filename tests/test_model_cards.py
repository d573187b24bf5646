"""The shipped models, as someone who downloads them finds them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import hf_rm
from hf_rm.hub import CODE_FILES
from hf_rm.tasks.sudoku import evaluation_set, format_board, parse_board, sudoku_metrics

ROOT = Path(__file__).parents[1]
CARD = ROOT / "model_cards" / "rm-sudoku"


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(CARD)


def test_it_is_small_and_reads_its_history(model):
    assert isinstance(model, hf_rm.RMForMaskedDiffusion)
    assert model.num_parameters() <= 814_999
    assert model.config.history and model.config.history_rotation and model.config.history_decay == 0.9
    assert model.generation_config.editable == "all"


def test_it_repairs_boards(model):
    initial, target = evaluation_set("generated", 60, seed=11)
    out = model.generate_reflective(torch.from_numpy(initial).long())
    metrics = sudoku_metrics(initial, out.sequences.numpy(), target)
    # 94 % exact and more than 99 % valid on large sets: these bounds leave room for 60 boards.
    assert metrics["exact_accuracy"] >= 0.85
    assert metrics["valid_rate"] >= 0.95
    assert metrics["initial_errors"] > 8


def test_real_boards_too(model):
    initial, target = evaluation_set("real", 40, seed=11)
    out = model.generate_reflective(torch.from_numpy(initial).long())
    assert sudoku_metrics(initial, out.sequences.numpy(), target)["exact_accuracy"] >= 0.8


def test_a_solved_board_is_left_alone(model):
    _, target = evaluation_set("generated", 20, seed=12)
    out = model.generate_reflective(torch.from_numpy(target).long())
    assert (out.sequences.numpy() == target).all(axis=1).mean() >= 0.95


def test_the_tokenizer_takes_boards(model):
    tokenizer = AutoTokenizer.from_pretrained(CARD)
    board = format_board(evaluation_set("generated", 1, seed=3)[0][0])
    with_gap = "." + board[1:]
    ids = tokenizer(with_gap)["input_ids"]
    assert len(ids) == 81 and ids == parse_board(with_gap).tolist()
    assert tokenizer.decode(ids) == with_gap
    assert tokenizer.mask_token_id == model.config.mask_token_id == 0


def test_save_and_reload_decode_alike(model, tmp_path):
    model.save_pretrained(tmp_path)
    twin = AutoModelForMaskedLM.from_pretrained(tmp_path)
    initial = torch.from_numpy(evaluation_set("generated", 16, seed=4)[0]).long()
    ours = model.generate_reflective(initial, output_trajectory=True)
    theirs = twin.generate_reflective(initial, output_trajectory=True)
    assert torch.equal(ours.trajectory.states, theirs.trajectory.states)


def test_the_exported_code_is_the_current_code():
    for name in CODE_FILES:
        assert (CARD / name).read_text() == (ROOT / "hf_rm" / name).read_text(), f"run hf_rm.hub.export_code: {name}"


def test_remote_code_without_the_package(model, tmp_path):
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_rm":
            raise ImportError("hf_rm is not installed here")
sys.meta_path.insert(0, Block())
import torch
from transformers import AutoModel, AutoTokenizer
folder, board = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
out = model.generate_reflective(tokenizer(board, return_tensors="pt").input_ids)
print("RESULT", tokenizer.decode(out.sequences[0]), type(model).__module__.partition(".")[0])
"""
    board = evaluation_set("generated", 1, seed=6)[0]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "PYTHONPATH": ""}
    command = [sys.executable, "-c", program, str(CARD), format_board(board[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = format_board(model.generate_reflective(torch.from_numpy(board).long()).sequences[0].numpy())
    assert f"RESULT {expected} transformers_modules" in done.stdout


def test_the_card_and_the_readme_print_the_recorded_figures():
    records = json.loads((CARD / "records.json").read_text())
    card, readme = (CARD / "README.md").read_text(), (ROOT / "README.md").read_text()
    for record in records:
        for key in ("exact_accuracy", "valid_rate", "exact_on_unique"):
            figure = f"{100 * record[key]:.2f}"
            assert figure in card and figure in readme, (record["name"], key, figure)
