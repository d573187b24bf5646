"""The image recipe as a user launches it, and the trainer with its fourth loss."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hf_rm import RMForMaskedDiffusion, RMTrainingArguments
from hf_rm.corruption.pool import pool_places
from hf_rm.history import HistorySegments, HistoryState
from hf_rm.tasks.image_editing import generate_edits
from hf_rm.tasks.image_editing.collator import edit_collator
from hf_rm.tasks.image_editing.editor import ImageEditor
from hf_rm.tasks.image_editing.layout import EditLayout, EditRows
from hf_rm.tasks.image_editing.model import build_image_edit_model
from hf_rm.tasks.image_editing.scenes import instruction_words
from hf_rm.tasks.image_editing.trainer import ImageEditTrainer
from hf_rm.tasks.sudoku.model import VARIANTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("pool", [0.0, 0.5])
def test_the_fourth_loss_looks_at_the_unedited_canvas_of_every_row(tmp_path: Path, pool: float) -> None:
    layout = EditLayout(["paint"], codes=4, rows=2, columns=2, text_length=1)
    source = np.random.default_rng(0).integers(0, 4, (16, 2, 2))
    target = np.where(source == 2, 3, source)
    rows = EditRows(layout.sequences(["paint"] * 16, source, target), layout)
    torch.manual_seed(0)
    model = build_image_edit_model(layout, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2)
    args = RMTrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, report_to="none", use_cpu=True, pool_fraction=pool
    )
    collate = edit_collator(layout, image_drop=0.0, full_corruption=1.0)
    batch = collate([rows[i] for i in range(8)])
    losses = {}
    for weight in (0.0, 0.1):
        trainer = ImageEditTrainer(model, args, train_dataset=rows, data_collator=collate, unlikelihood_weight=weight)
        model.train()
        (inputs,), _ = trainer.get_batch_samples(iter([batch]), 1, args.device)
        losses[weight] = trainer.compute_loss(model, inputs).item()
    # Model and rows are the same, and a pool that just began shows its rows' starts: the difference is the term.
    places = pool_places(pool, 0, 8)
    order = [place for place in range(8) if place not in places] + places  # the pool's rows are behind the others
    half = 8 - len(places)
    batch = {name: value[order] for name, value in batch.items()}
    state = torch.cat((batch["input_ids"][:half], batch["start_ids"][half:]))

    parts = [HistorySegments(batch["history_ids"][:half], batch["history_lags"][:half])]
    if half < 8:
        parts.append(HistoryState.empty(8 - half, layout.length, 16))
    with torch.no_grad():
        mask = model(state, editable_mask=batch["editable_mask"], history=parts).logits.softmax(-1)[..., 0]
    unedited = torch.from_numpy((source == target).reshape(16, -1)[order])
    term = -torch.log(1 - mask[:, layout.canvas][unedited]).sum().item()
    assert losses[0.1] - losses[0.0] == pytest.approx(0.1 * term / (8 * 4), rel=1e-3)
    with pytest.raises(ValueError, match="`unlikelihood_weight`"):
        ImageEditTrainer(model, args, train_dataset=rows, data_collator=collate, unlikelihood_weight=-1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_train_evaluate_and_report(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "recipes" / "configs" / "image-edit-demo.yaml").read_text())
    settings |= {
        "output_dir": str(tmp_path / "out"), "train_edits": 16, "eval_edits": 6, "max_steps": 2, "use_cpu": True,
        "per_device_train_batch_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_layers": 1,
        "pool_fraction": 0.5, "sheet_edits": 4, "logging_steps": 1, "warmup_steps": 0,
        "start": {"max_steps": 3, "learning_rate": 0.01},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, str(ROOT / "recipes" / "image_edit.py"), "--config", str(tmp_path / "tiny.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    card = tmp_path / "card"
    for more in (["--card", str(card)], []):  # the second time nothing is trained or evaluated again
        run = subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=280, env=environment, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert "copy the source" in run.stdout and "differences from sft, seed 0, paired" in run.stdout
        assert ("trained before" in run.stdout) == (not more) == ("evaluated before" in run.stdout)
    claimed = json.loads((tmp_path / "out" / "rm_seed0" / "settings.json").read_text())
    assert (claimed["train_edits"], claimed["max_steps"], claimed["cell"]) == (16, 2, 1)
    began = json.loads((tmp_path / "out" / "start_seed0" / "settings.json").read_text())
    assert claimed["start"] == {"max_steps": 3, "learning_rate": 0.01}
    assert (began["start"], began["max_steps"], began["learning_rate"]) == ({}, 3, 0.01)
    files = ("start_seed0/start.json", "rm_seed0/trained.json", "sft_seed0/trained.json")
    minutes = [json.loads((tmp_path / "out" / file).read_text())["cpu_minutes"] for file in files]
    assert minutes[0] < min(minutes[1:])  # the start counts for both
    records = {record["name"]: record for record in json.loads((tmp_path / "out" / "records.json").read_text())}
    assert set(records) == {"copy the source", "target's tokens (limit)", "rm, seed 0", "sft, seed 0"}
    assert all(len(record["edits"]["psnr"]) == 6 for record in records.values())
    assert records["copy the source"]["edits"]["success"] == [0.0] * 6
    for system in ("rm", "sft"):
        with Image.open(tmp_path / "out" / f"{system}_seed0" / "sheet.png") as sheet:
            assert sheet.height == 22 + 4 * 150
        assert (tmp_path / "out" / f"{system}_seed0" / "revision.gif").stat().st_size > 1000
    text = (card / "README.md").read_text()
    assert "| rm, seed 0 |" in text and "6 held-out edits (split dev" in text and "* `max_steps`: 2" in text
    assert "nan" not in (card / "records.json").read_text().lower()
    editor, trained = ImageEditor.load(card), ImageEditor.load(tmp_path / "out" / "rm_seed0")
    examples = generate_edits(2, seed=3)
    runs = [one.edit(examples.source, examples.instructions, max_steps=4) for one in (editor, trained)]
    assert (runs[0].states == runs[1].states).all() and (runs[0].result == runs[1].result).all()
    assert ImageEditor.load(tmp_path / "out" / "sft_seed0").decoding == "regenerate"


def test_what_is_evaluated_is_what_was_saved_without_the_trainers_autocast(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    specification = importlib.util.spec_from_file_location("image_edit_recipe", ROOT / "recipes" / "image_edit.py")
    recipe = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "image_edit_recipe", recipe)
    specification.loader.exec_module(recipe)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}
    arguments = recipe.ImageEditArguments(train_edits=4, codes=8, cell=8, patch=8, emoji=8, **sizes)
    training = RMTrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, save_strategy="no", bf16=True, use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    editor, _ = recipe.trained_editor(arguments, training, "rm", 0, recipe.codebook(arguments, tmp_path))
    ids = torch.zeros(1, editor.layout.length, dtype=torch.long)
    editable = torch.from_numpy(editor.layout.editable_mask)[None]
    logits = [
        one.model(ids, editable_mask=editable).logits for one in (editor, ImageEditor.load(tmp_path / "rm_seed0"))
    ]
    assert torch.equal(*logits)


def test_systems_begin_with_the_same_weights_and_their_own_history(tmp_path: Path) -> None:
    layout = EditLayout(["paint"], codes=4, rows=2, columns=2, text_length=1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}
    start = build_image_edit_model(layout, "no-hr", **sizes)
    start.save_pretrained(tmp_path)
    for variant in ("hr-decay-her", "no-hr"):
        model = RMForMaskedDiffusion.from_pretrained(tmp_path, attn_implementation="eager", **VARIANTS[variant])
        assert model.config.history == (variant != "no-hr") and model.config.history_scope == "editable"
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


@pytest.mark.slow
def test_users_pairs_are_trained_on_and_bad_ones_are_counted(tmp_path: Path) -> None:
    examples = generate_edits(4, seed=9)
    rows = [{"source": "none.png", "target": "none.png", "instruction": "lost"}]
    for i, instruction in enumerate(examples.instructions):
        Image.fromarray(examples.source[i]).save(tmp_path / f"{i}a.png")
        Image.fromarray(examples.target[i]).save(tmp_path / f"{i}b.png")
        rows.append({"source": f"{i}a.png", "target": f"{i}b.png", "instruction": instruction})
    for name in ("train", "held"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load((ROOT / "recipes" / "configs" / "image-edit-demo.yaml").read_text())
    settings |= {
        "output_dir": str(tmp_path / "out"), "systems": ["rm"], "max_steps": 1, "use_cpu": True, "hidden_size": 16,
        "intermediate_size": 16, "num_layers": 1, "per_device_train_batch_size": 2, "patch": 8, "codes": 16,
        "train_pairs": str(tmp_path / "train.jsonl"), "eval_pairs": str(tmp_path / "held.jsonl"), "warmup_steps": 0,
    }  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings))
    run = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "image_edit.py"), "--config", str(tmp_path / "own.yaml")],
        capture_output=True, text=True, timeout=280, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert "4 edits of held" in run.stdout and "1 pairs left out: 1 file missing" in run.stderr
    (record,) = [r for r in json.loads((tmp_path / "out" / "records.json").read_text()) if r["system"] == "rm"]
    assert len(record["edits"]["psnr"]) == 4 and np.isnan(record["edits"]["success"]).all()
    editor = ImageEditor.load(tmp_path / "out" / "rm_seed0")
    assert set(editor.layout.words) == {word for text in examples.instructions for word in instruction_words(text)}
