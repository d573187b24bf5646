"""The image recipe as a user launches it, and the trainer with its fourth loss."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
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
from hf_rm.tasks.image_editing.collator import EditSFTCollator, edit_collator
from hf_rm.tasks.image_editing.editor import ImageEditor
from hf_rm.tasks.image_editing.layout import EditLayout, EditRows
from hf_rm.tasks.image_editing.model import build_image_edit_model
from hf_rm.tasks.image_editing.report import read_records
from hf_rm.tasks.image_editing.scenes import instruction_words
from hf_rm.tasks.image_editing.trainer import ImageEditTrainer
from hf_rm.tasks.sudoku.model import VARIANTS
from hf_rm.training.stages import claim_folder

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


@pytest.mark.parametrize("pool", [0.0, 0.5])
def test_four_losses_in_chunks_are_those_of_all_scores_at_once(tmp_path: Path, pool: float) -> None:
    layout = EditLayout(["paint"], codes=4, rows=2, columns=2, text_length=1)
    source = np.random.default_rng(0).integers(0, 4, (16, 2, 2))
    rows = EditRows(layout.sequences(["paint"] * 16, source, np.where(source == 2, 3, source)), layout)
    collate = edit_collator(layout, full_corruption=1.0, first_states=0.3)
    batch = collate([rows[i] for i in range(8)])
    found = []
    for chunk in (0, 5):
        torch.manual_seed(0)
        model = build_image_edit_model(layout, **TINY)
        shapes: list = []
        model.get_output_embeddings().register_forward_hook(lambda module, given, out: shapes.append(out.shape))  # noqa: B023
        args = tiny_training(tmp_path, pool_fraction=pool, loss_chunk_rows=chunk, per_device_train_batch_size=8)
        trainer = ImageEditTrainer(model, args, train_dataset=rows, data_collator=collate, unlikelihood_weight=0.5)
        model.train()
        total = 0.0
        for _ in range(3):  # the pool goes on
            loss = trainer.compute_loss(model, {name: value.clone() for name, value in batch.items()})
            loss.backward()
            total += loss.item()
        found.append((total, [parameter.grad.clone() for parameter in model.parameters()]))
        assert max(shape[0] if len(shape) == 2 else shape[0] * shape[1] for shape in shapes) == (chunk or 8 * 9)
        assert not trainer.compute_loss(model, batch, return_outputs=True)[1]["loss"].isnan()
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_train_evaluate_and_report(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "recipes" / "configs" / "image-edit-demo.yaml").read_text())
    settings |= {
        "output_dir": str(tmp_path / "out"), "train_edits": 16, "eval_edits": 6, "max_steps": 2, "use_cpu": True,
        "per_device_train_batch_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_layers": 1,
        "pool_fraction": 0.5, "sheet_edits": 4, "logging_steps": 1, "warmup_steps": 0, "patch": 8, "codes": 16,
        "cell": 8, "emoji": 12, "dev_edits": 3, "other_edits": 2, "vqa": "own_scorer:half",
        "start": {"max_steps": 3, "learning_rate": 0.01},
    }  # fmt: skip
    (tmp_path / "own_scorer.py").write_text("half = lambda pictures, texts: [0.5] * len(texts)\n")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, str(ROOT / "recipes" / "image_edit.py"), "--config", str(tmp_path / "tiny.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    card = tmp_path / "card"
    for more in (["--card", str(card)], []):  # the second time nothing is trained or evaluated again
        run = subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=280, env=environment, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr[-3000:]
        for expected in (
            "copy the source", "oracle: the target's own", "minus sft, seed 0, all edits, paired", "VQAScore 0.5 (",
            "minus sft, seed 0, edits that both acted on", "at equal coverage, paired", "all 200 training names",
            "objects anywhere", "unseen names", "encoded and decoded (PSNR): sources",
        ):  # fmt: skip
            assert expected in " ".join(run.stdout.split()), expected
        assert ("trained before" in run.stdout) == (not more) == ("evaluated before" in run.stdout)
    claimed = json.loads((tmp_path / "out" / "rm_seed0" / "settings.json").read_text())
    assert (claimed["train_edits"], claimed["max_steps"], claimed["cell"], claimed["size"]) == (16, 2, 8, 64)
    began = json.loads((tmp_path / "out" / "start_seed0" / "settings.json").read_text())
    assert claimed["start"] == {"max_steps": 3, "learning_rate": 0.01}
    assert (began["start"], began["max_steps"], began["learning_rate"]) == ({}, 3, 0.01)
    files = ("start_seed0/start.json", "rm_seed0/trained.json", "sft_seed0/trained.json")
    minutes = [json.loads((tmp_path / "out" / file).read_text())["cpu_minutes"] for file in files]
    assert minutes[0] < min(minutes[1:])  # the start counts for both
    everything = read_records(tmp_path / "out" / "records.json")
    records = {record["system"]: record for record in everything if "condition" not in record}
    assert list(records) == ["copy", "oracle", "rm", "sft", "sft-keep"]
    assert all(len(record["edits"]["psnr"]) == 6 for record in records.values())
    assert records["copy"]["edits"]["success"] == [0.0] * 6 and records["sft-keep"]["keep_threshold"] >= 0.5
    conditions = [(record["condition"], record["system"]) for record in everything if "condition" in record]
    assert conditions == [
        (condition, system)
        for condition in ("all 200 training names", "objects anywhere", "unseen names")
        for system in ("oracle", "rm", "sft")
    ]
    for system in ("rm", "sft"):
        with Image.open(tmp_path / "out" / f"{system}_seed0-sheet.png") as sheet:
            assert sheet.height == 22 + 4 * 150
        assert (tmp_path / "out" / f"{system}_seed0-revision.gif").stat().st_size > 1000
    assert (card / "sheet-sft.png").read_bytes() == (tmp_path / "out" / "sft_seed0-sheet.png").read_bytes()
    text = (card / "README.md").read_text()
    assert "| rm, seed 0 |" in text and "6 held-out edits (split dev" in text and "* `max_steps`: 2" in text
    assert "nan" not in (card / "records.json").read_text().lower()
    assert len(read_records(card / "records.json")) == len(everything)
    editor, trained = ImageEditor.load(card), ImageEditor.load(tmp_path / "out" / "rm_seed0")
    examples = generate_edits(2, seed=3, cell=8, emoji=12)
    runs = [one.edit(examples.source, examples.instructions, max_steps=4) for one in (editor, trained)]
    assert (runs[0].states == runs[1].states).all() and (runs[0].result == runs[1].result).all()
    assert ImageEditor.load(tmp_path / "out" / "sft_seed0").decoding == "regenerate"


def loaded(monkeypatch, name: str):
    monkeypatch.setattr(sys, "path", [*sys.path])
    specification = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, f"{name}_recipe", module)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def recipe(monkeypatch):
    module = loaded(monkeypatch, "image_edit")
    monkeypatch.setattr(module, "_CODEBOOK_PICTURES", 16)
    return module


@pytest.fixture
def lumina(monkeypatch):
    return loaded(monkeypatch, "lumina_edit")


TINY = {"hidden_size": 16, "intermediate_size": 16, "num_layers": 1, "num_heads": 2}


def tiny_training(folder: Path, **more: object) -> RMTrainingArguments:
    settings = {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 2, **more}
    return RMTrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **settings)


def test_minutes_of_an_interrupted_training_count(tmp_path: Path, recipe, monkeypatch) -> None:
    arguments = recipe.ImageEditArguments(train_edits=8, codes=8, cell=8, patch=8, emoji=8, **TINY)
    training = tiny_training(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    book = recipe.codebook(arguments, tmp_path)
    seconds = iter(range(10_000))
    monkeypatch.setattr(time, "process_time", lambda: 600.0 * next(seconds))
    compute = recipe.ImageEditTrainer.compute_loss

    def interrupted(self, *given, **named):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return compute(self, *given, **named)

    monkeypatch.setattr(recipe.ImageEditTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe.trained_editor(arguments, training, "rm", 0, book)
    before = json.loads((tmp_path / "rm_seed0" / "clock.json").read_text())["cpu_seconds"]
    monkeypatch.setattr(recipe.ImageEditTrainer, "compute_loss", compute)
    _, minutes = recipe.trained_editor(arguments, training, "rm", 0, book)
    assert before >= 600 and minutes > before / 60 + 5
    assert recipe.trained_editor(arguments, training, "rm", 0, book)[1] == minutes
    assert json.loads((tmp_path / "rm_seed0" / "trained.json").read_text()) == {"cpu_minutes": minutes}


def test_what_is_kept_is_found_again_by_its_content(tmp_path: Path, recipe) -> None:
    fitted = set()
    for changes in ({}, {"emoji": 9}, {"codes": 9}, {"cell": 4}, {}):
        settings = {"codes": 8, "cell": 8, "patch": 8, "emoji": 8, "train_edits": 8, **changes}
        recipe.codebook(recipe.ImageEditArguments(**settings), tmp_path)
        fitted.add(len(list(tmp_path.glob("codebook-*.npz"))))
    assert fitted == {1, 2, 3, 4}

    arguments = recipe.ImageEditArguments(eval_edits=3, cell=8, emoji=8, patch=8, codes=8, eval_split="dev", **TINY)
    editor, _ = recipe.trained_editor(
        dataclasses.replace(arguments, train_edits=4), tiny_training(tmp_path), "rm", 0,
        recipe.codebook(arguments, tmp_path),
    )  # fmt: skip
    judge = recipe.Judge(arguments, tmp_path, None)
    found = [
        judge.evaluate(
            editor, "rm", 0, recipe.compose(arguments, 3, seed, "dev"), draws=False, decoding="regenerate", **more
        )
        for seed, more in ((1, {}), (2, {}), (1, {"keep_threshold": 0.9}), (1, {}))
    ]
    assert len(list((tmp_path / "rm_seed0").glob("results-*.json"))) == 3
    assert found[3] == found[0]
    assert found[1]["edits"]["ssim"] != found[0]["edits"]["ssim"]


def test_what_the_recipe_takes_unless_asked_otherwise(recipe) -> None:
    arguments = recipe.ImageEditArguments()
    assert (arguments.text_drop, arguments.image_drop, arguments.unlikelihood_weight) == (0.1, 0.1, 0.1)
    assert (arguments.eval_edits, arguments.dev_edits, arguments.other_edits, arguments.size) == (500, 200, 200, 64)


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--start", '{"max_steps": 3, "learning_rate": 0.01}'], {"max_steps": 3, "learning_rate": 0.01}),
        ([], {}),
        (["--config", str(ROOT / "recipes" / "configs" / "image-edit-cpu.yaml")], "yaml"),
    ],
)
def test_a_start_is_given_as_json_on_the_command_line_or_in_yaml(recipe, monkeypatch, given, expected) -> None:
    monkeypatch.setattr(sys, "argv", ["image_edit.py", "--output_dir", "out", "--use_cpu", *given])
    parser = recipe.TrlParser((recipe.ImageEditArguments, RMTrainingArguments))
    arguments, training = parser.parse_args_and_config()
    if expected == "yaml":
        expected = yaml.safe_load(Path(given[1]).read_text())["start"]
    assert recipe.run_settings(arguments, training)["start"] == expected


def test_no_start_is_from_scratch(tmp_path: Path, recipe) -> None:
    arguments, training = recipe.ImageEditArguments(start=None), tiny_training(tmp_path)
    assert recipe.run_settings(arguments, training)["start"] == {}
    assert recipe.started(arguments, training, 0, None, None) == (None, 0.0)


SHARED_REFUSALS = [
    ({"sheet_edits": 0}, "`sheet_edits` is 0: pass a whole number, 1 or more"),
    ({"text_drop": 1.5}, "`text_drop` is 1.5: pass a probability"),
    ({"image_drop": -0.1}, "`image_drop` is -0.1: pass a probability"),
    ({"first_states": float("nan")}, "`first_states` is nan: pass a probability"),
    ({"unlikelihood_weight": -1}, "`unlikelihood_weight` is -1: pass 0 .off. or more"),
    ({"unlikelihood_weight": float("inf")}, "`unlikelihood_weight` is inf"),
]


@pytest.mark.parametrize(
    "changes, expected",
    [
        *SHARED_REFUSALS,
        ({"false_alarms": 2}, "`false_alarms` is 2: pass a probability"),
        ({"dev_edits": -1}, "`dev_edits` is -1: pass a whole number, 0 or more"),
        ({"other_edits": -1}, "`other_edits` is -1: pass a whole number, 0 or more"),
        ({"eval_edits": 0}, "`eval_edits` is 0: pass a whole number, 1 or more"),
        ({"train_edits": 0}, "`train_edits` is 0"),
        ({"patch": 0}, "`patch` is 0"),
        ({"start": {"max_step": 3}}, "`start` names 'max_step': pass any of max_steps"),
        ({"start": '{"max_step": 3}'}, "`start` names 'max_step'"),
        ({"start": "3 steps"}, "`start` is '3 steps'"),
        ({"systems": ["rl"]}, "`systems` names .'rl'."),
        ({"train_pairs": "a.jsonl"}, "go together"),
    ],
)
def test_settings_that_nothing_can_be_done_with_are_refused_by_name(recipe, changes, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        recipe.ImageEditArguments(**changes)


@pytest.mark.parametrize(
    "changes, expected",
    [
        *SHARED_REFUSALS,
        ({"text_guidance": float("nan")}, "`text_guidance` is nan: pass a finite number"),
        ({"image_guidance": float("inf")}, "`image_guidance` is inf: pass a finite number"),
    ],
)
def test_so_are_those_of_lumina(lumina, changes, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        lumina.LuminaArguments(train_pairs="a.jsonl", eval_pairs="b.jsonl", **changes)


@pytest.mark.parametrize("name", ["image_edit", "lumina_edit"])
def test_blank_rows_which_no_edit_has_are_refused_before_a_folder_is_claimed(tmp_path, monkeypatch, name) -> None:
    module = loaded(monkeypatch, name)
    pairs = ["--train_pairs", "none.jsonl", "--eval_pairs", "none.jsonl"]
    command = ["x.py", "--output_dir", str(tmp_path / "out"), "--use_cpu", "--blank_rows", "0.5", *pairs]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ValueError, match="`blank_rows` is 0.5.*`full_corruption`"):
        module.main()
    assert not (tmp_path / "out").exists()


def test_the_collator_of_vanilla_fine_tuning_refuses_what_that_of_edits_does() -> None:
    layout = EditLayout(["paint"], codes=4, rows=2, columns=2, text_length=1)
    for name in ("text_drop", "image_drop"):
        with pytest.raises(ValueError, match=f"`{name}` is 1.5: pass a probability from 0 to 1"):
            EditSFTCollator(0, layout=layout, **{name: 1.5})
    with pytest.raises(ValueError, match="`layout` is None"):
        EditSFTCollator(0)
    with pytest.raises(ValueError, match="`min_mask_rate`"):
        EditSFTCollator(0, layout=layout, min_mask_rate=0)


def test_a_finished_run_is_one_of_the_same_pairs(tmp_path: Path, recipe, lumina) -> None:
    path, training = tmp_path / "pairs.jsonl", tiny_training(tmp_path)
    own = {"train_pairs": str(path), "eval_pairs": str(path)}
    path.write_text('{"source": "a.png"}\n')
    ours = recipe.ImageEditArguments(**own), lumina.LuminaArguments(**own)
    for name, settings, arguments in zip("il", (recipe.run_settings, lumina.settings), ours, strict=True):
        path.write_text('{"source": "a.png"}\n')
        claim_folder(tmp_path / name, settings(arguments, training))
        claim_folder(tmp_path / name, settings(arguments, training))
        path.write_text('{"source": "b.png"}\n')
        with pytest.raises(ValueError, match="train_pairs_digest is .* there"):
            claim_folder(tmp_path / name, settings(arguments, training))
    assert (
        not {"train_pairs", "train_pairs_digest"} & recipe.run_settings(recipe.ImageEditArguments(), training).keys()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_scheduler_type": "cosine"}, {"warmup_steps": 100}, {"weight_decay": 0.5}, {"max_grad_norm": 0.1},
        {"optim": "sgd"}, {"reveal_weights": "inverse"}, {"mask_row_batches": 4}, {"loss_clip": "hard"},
        {"label_smoothing_factor": 0.1}, {"model_init_kwargs": {"dtype": "bfloat16"}}, {"seed": 7},
        {"model_init_kwargs": {"revision": "abc"}}, {"pool_fraction": 0.5, "pool_max_age": 3},
    ],
)  # fmt: skip
def test_a_training_of_lumina_under_other_settings_is_another_one(tmp_path: Path, lumina, changes) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("{}\n")
    arguments = lumina.LuminaArguments(train_pairs=str(path), eval_pairs=str(path))
    known = lumina.settings(arguments, tiny_training(tmp_path))
    assert lumina.settings(arguments, tiny_training(tmp_path, **changes)) != known
    neutral = {"logging_steps": 3, "model_init_kwargs": {"token": "secret", "local_files_only": True}}
    again = lumina.settings(arguments, tiny_training(tmp_path, **neutral))
    assert again == known and "secret" not in json.dumps(again)


def test_the_finished_runs_of_the_shipped_editor_are_known_again(recipe, monkeypatch) -> None:
    """What a run of image-edit-cpu.yaml notes of itself, as the card lists it."""
    config = ROOT / "recipes" / "configs" / "image-edit-cpu.yaml"
    monkeypatch.setattr(sys, "argv", ["image_edit.py", "--config", str(config)])
    arguments, training = recipe.TrlParser((recipe.ImageEditArguments, RMTrainingArguments)).parse_args_and_config()
    text = (ROOT / "model_cards" / "rm-image-edit" / "README.md").read_text()
    noted = dict(line[3:].split("`: ", 1) for line in text.splitlines() if line.startswith("* `"))
    assert {name: str(value) for name, value in recipe.run_settings(arguments, training).items()} == noted


def test_larger_pictures_get_larger_layouts(tmp_path: Path, recipe) -> None:
    arguments = recipe.ImageEditArguments(train_edits=4, size=128, cell=8, emoji=8, patch=16, codes=8, **TINY)
    book = recipe.codebook(arguments, tmp_path)
    rows, layout = recipe.training_rows(arguments, 0, book)
    assert (layout.rows, layout.columns, len(rows)) == (8, 8, 4)
    assert recipe.held_out(dataclasses.replace(arguments, eval_edits=2)).source.shape == (2, 128, 128, 3)
    with pytest.raises(ValueError, match="`size` is 72"):
        recipe.training_rows(dataclasses.replace(arguments, size=72), 0, book)


def test_what_is_evaluated_is_what_was_saved_without_the_trainers_autocast(tmp_path: Path, recipe) -> None:
    arguments = recipe.ImageEditArguments(train_edits=4, codes=8, cell=8, patch=8, emoji=8, **TINY)
    training = tiny_training(tmp_path, bf16=True)
    editor, _ = recipe.trained_editor(arguments, training, "rm", 0, recipe.codebook(arguments, tmp_path))
    ids = torch.zeros(1, editor.layout.length, dtype=torch.long)
    editable = torch.from_numpy(editor.layout.editable_mask)[None]
    logits = [
        one.model(ids, editable_mask=editable).logits for one in (editor, ImageEditor.load(tmp_path / "rm_seed0"))
    ]
    assert torch.equal(*logits)


def test_systems_begin_with_the_same_weights_and_their_own_history(tmp_path: Path) -> None:
    layout = EditLayout(["paint"], codes=4, rows=2, columns=2, text_length=1)
    start = build_image_edit_model(layout, "no-hr", **TINY)
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
    (record,) = [r for r in read_records(tmp_path / "out" / "records.json") if r["system"] == "rm"]
    assert len(record["edits"]["psnr"]) == 4 and np.isnan(record["edits"]["success"]).all()
    editor = ImageEditor.load(tmp_path / "out" / "rm_seed0")
    assert set(editor.layout.words) == {word for text in examples.instructions for word in instruction_words(text)}
