"""RMTrainer: normalisation, the pool, history segments, checkpoints, what is logged, what is refused."""

import json

import pytest
import torch
from peft import LoraConfig
from tiny_training import tiny_model, tiny_rows

from hf_rm import RMTrainer, RMTrainingArguments
from hf_rm.corruption import AttemptsLaw, FixedProposal, RMDataCollator
from hf_rm.history import HistorySegments
from hf_rm.training import MaskedSFTArguments, MaskedSFTCollator, MaskedSFTTrainer
from hf_rm.training.mask_row import fit_mask_row


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def rows():
    return tiny_rows()


def arguments(folder, kind=RMTrainingArguments, **settings):
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return kind(str(folder), **{**defaults, **settings})


def logs_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("pool", [{}, {"pool_fraction": 0.4, "pool_max_age": 2}])
def test_accumulation_1x8_equals_8x1(tmp_path, rows, pool):
    runs = []
    for batch, accumulation in ((8, 1), (1, 8)):
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 5}
        settings |= pool
        trainer = RMTrainer(tiny_model(), arguments(tmp_path, **settings), train_dataset=rows)
        trainer.train()
        runs.append((logs_of(trainer), trainer.model.state_dict()))
    (whole_logs, whole), (split_logs, split) = runs
    for one, other in zip(whole_logs, split_logs, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["loss_keep"] == pytest.approx(one["loss_keep"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    for name in whole:
        assert (whole[name] - split[name]).abs().max() < 1e-5, name


def test_the_loss_is_the_mean_over_supervised_positions(tmp_path, model, rows):
    trainer = RMTrainer(model, arguments(tmp_path, max_steps=1), train_dataset=rows)
    batch = next(iter(trainer.get_train_dataloader()))
    history = HistorySegments(batch["history_ids"], batch["history_lags"])
    expected = model(batch["input_ids"], history=history, labels=batch["labels"]).loss.item()
    trainer.train()
    assert logs_of(trainer)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_losses_and_accuracies_are_logged_apart(tmp_path, model, rows):
    trainer = RMTrainer(model, arguments(tmp_path), train_dataset=rows)
    trainer.train()
    for entry in logs_of(trainer):
        for part in ("reveal", "mask", "keep"):
            assert entry[f"loss_{part}"] > 0
            assert 0 <= entry[f"accuracy_{part}"] <= 1


def test_training_reduces_every_loss(tmp_path, rows):
    # Constant rows are trivial: whatever is wrong or masked, the answer is the row's own token.
    constant = [{"input_ids": [1 + i % 3] * 8, "idx": i} for i in range(64)]
    settings = {"max_steps": 80, "logging_steps": 10, "learning_rate": 0.02, "max_corruption_rate": 0.3}
    trainer = RMTrainer(tiny_model(), arguments(tmp_path, **settings), train_dataset=constant)
    trainer.train()
    first, last = logs_of(trainer)[0], logs_of(trainer)[-1]
    for part in ("reveal", "mask", "keep"):
        assert last[f"loss_{part}"] < 0.6 * first[f"loss_{part}"], part


@pytest.mark.parametrize("left", [2, 4])  # fewer rows than the pool, and just as many
def test_a_short_last_batch_leaves_the_pool_alone(tmp_path, model, rows, left):
    settings = {"max_steps": 4, "pool_fraction": 0.5}
    trainer = RMTrainer(model, arguments(tmp_path, **settings), train_dataset=rows[: 8 + left])
    trainer.train()
    assert trainer.pools[0].active_rows().age.max() >= 1
    assert len(logs_of(trainer)) == 4


def test_evaluation_reports_the_mean_loss_and_leaves_the_pool_alone(tmp_path, model, rows):
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "pool_fraction": 0.5}
    trainer = RMTrainer(model, arguments(tmp_path, **settings), train_dataset=rows, eval_dataset=rows[:16])
    trainer.train()
    ages = trainer.pools[0].active_rows().age.clone()
    batch = trainer.data_collator([{**row} for row in rows[:16]])
    history = HistorySegments(batch["history_ids"], batch["history_lags"])
    with torch.no_grad():
        expected = model(batch["input_ids"], history=history, labels=batch["labels"]).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert torch.equal(trainer.pools[0].active_rows().age, ages)


def test_pool_rows_live_through_the_models_own_revision(tmp_path, model, rows):
    trainer = RMTrainer(model, arguments(tmp_path, max_steps=6, pool_fraction=0.5), train_dataset=rows)
    seen = []
    advance = trainer.pools[0].advance

    def spy(following, history):
        before = trainer.pools[0].rows
        seen.append((before.ids, following, before.history.steps, history.steps, history.accumulator.requires_grad))
        advance(following, history)
        assert not trainer.pools[0].rows.history.accumulator.requires_grad

    trainer.pools[0].advance = spy
    trainer.train()
    assert len(seen) == 6
    for ids, following, before, after, _ in seen:
        assert len(ids) == 4
        moved = ids != following
        assert ((ids == 0) | (following == 0))[moved].all(), "no token-to-token move"
        assert torch.equal(after, before + 1), "every pool row took in exactly its current state"
    assert any(int(before.max()) > 0 for _, _, before, _, _ in seen), "rows stay for several steps"


def test_pool_rows_reveal_what_is_sure_where_they_are_told_to(tmp_path, model, rows):
    """Nothing is above probability 1: each row reveals its surest mask alone."""
    settings = {"max_steps": 6, "pool_fraction": 0.5, "pool_start": "canvas", "full_corruption": 1.0}
    trainer = RMTrainer(model, arguments(tmp_path, pool_reveal_threshold=1.0, **settings), train_dataset=rows)
    revealed = []
    advance = trainer.pools[0].advance

    def spy(following, history):
        before = trainer.pools[0].rows.ids
        revealed.append(((before == 0) & (following != 0)).sum(-1)[(before == 0).any(-1)])
        advance(following, history)

    trainer.pools[0].advance = spy
    trainer.train()
    assert torch.cat(revealed).unique().tolist() == [1]
    assert len(torch.cat(revealed)) > 12


def test_the_pool_costs_no_extra_forward(tmp_path, rows):
    def forwards(**settings):
        model, calls = tiny_model(), []
        model.model.register_forward_hook(lambda module, args, output: calls.append(output.logits.shape[0]))
        RMTrainer(model, arguments(tmp_path, max_steps=3, **settings), train_dataset=rows).train()
        return calls

    assert forwards(pool_fraction=0.5) == forwards() == [8, 8, 8]


def test_the_pool_begins_when_it_is_told_to(tmp_path, model, rows):
    settings = {"max_steps": 3, "pool_fraction": 0.5, "pool_start_step": 2}
    trainer = RMTrainer(model, arguments(tmp_path, **settings), train_dataset=rows)
    calls = []
    refill = trainer.pools[0].refill
    trainer.pools[0].refill = lambda *args: calls.append(trainer.state.global_step) or refill(*args)
    trainer.train()
    assert calls == [2]


def test_a_batch_gives_the_logits_of_its_trajectories_states(model, rows):
    """The closed form in `forward` equals walking through the states one by one."""
    law = AttemptsLaw(16, 2)
    collate = RMDataCollator(0, FixedProposal([0] + [1] * 11), law, corruption_rate=(0.5, 0.9))
    batch = collate(rows[:8])
    logits = model(batch["input_ids"], history=HistorySegments(batch["history_ids"], batch["history_lags"])).logits
    from hf_rm.corruption.random import KeyedUniforms, row_keys

    uniforms = KeyedUniforms(row_keys(0, 0, range(8)))
    targets = batch["target_ids"].numpy()
    corrupted = collate._corrupted(uniforms, batch["editable_mask"].numpy(), targets)
    step = (uniforms.draw(1)[:, 0] * law.horizon).astype(int)
    path = law.sample(uniforms, targets, corrupted, collate.proposal, 0, range(8))
    for row in range(8):
        history = None
        for t in range(step[row] + 1):
            state = torch.from_numpy(path.state(step * 0 + t)[row : row + 1])
            output = model(state, history=history)
            history = output.history
        assert torch.equal(state[0], batch["input_ids"][row])
        assert (output.logits[0] - logits[row]).abs().max() < 1e-4


def test_edit_weights_move_the_loss(tmp_path, rows):
    losses = []
    for weight in (1.0, 5.0):
        settings = {"max_steps": 1, "edit_weight": weight, "pool_fraction": 0.25}
        trainer = RMTrainer(tiny_model(), arguments(tmp_path, **settings), train_dataset=rows)
        trainer.train()
        losses.append(logs_of(trainer)[0])
    assert losses[1]["loss"] > 1.5 * losses[0]["loss"]
    assert losses[1]["loss_mask"] == pytest.approx(losses[0]["loss_mask"]), "the parts are logged unweighted"


def scores_of_masks(model, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much the mask's score is above the visible token's: at wrong tokens, and at right ones."""
    collate = RMDataCollator(0, FixedProposal([0] + [1] * 11), AttemptsLaw(16), seed=5)
    batch = collate([{**rows[i], "idx": i} for i in range(64)])
    history = HistorySegments(batch["history_ids"], batch["history_lags"])
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"], history=history).logits
    above = logits[..., 0] - logits.gather(-1, batch["input_ids"][..., None])[..., 0]
    visible = batch["input_ids"] != 0
    return above[visible & (batch["labels"] == 0)], above[visible & (batch["labels"] == batch["input_ids"])]


def test_the_masks_row_is_solved_for_before_the_first_step(tmp_path, rows):
    plain, model = tiny_model(), tiny_model()
    with torch.no_grad():
        for each in (plain, model):
            each.get_output_embeddings().weight[0] -= 3 * each.get_output_embeddings().weight.mean(0)
    before = scores_of_masks(plain, rows)
    trainer = RMTrainer(model, arguments(tmp_path, mask_row_batches=8, learning_rate=0.0), train_dataset=rows)
    trainer.train()
    for name, value in model.state_dict().items():
        other = plain.state_dict()[name]
        if name == "model.lm_head.weight":
            assert torch.equal(value[1:], other[1:]) and not torch.allclose(value[0], other[0])
        else:
            assert torch.equal(value, other), name
    after = scores_of_masks(model, rows)
    wrong, right = after[0].mean(), after[1].mean()
    assert wrong > right + 0.02, "an untrained network's states say little of what is wrong, but something"
    assert abs(wrong + 3) < 4 and abs(right + 3) < 1, "3 below what is right, which most tokens are"
    assert (after[1] + 3).abs().mean() < (before[1] + 3).abs().mean()


def test_two_processes_share_the_sums_of_the_masks_row(rows):
    collate = RMDataCollator(0, FixedProposal([0] + [1] * 11), AttemptsLaw(16), seed=5)
    batches = [collate([{**rows[i], "idx": i} for i in range(begin, begin + 8)]) for begin in range(0, 32, 8)]
    whole, shared = tiny_model(), tiny_model()
    fit_mask_row(whole, batches)
    kept = []
    fit_mask_row(tiny_model(), batches[1::2], reduce=lambda sums: kept.append(sums.clone()) or sums)
    fit_mask_row(shared, batches[::2], chunk_rows=3, reduce=lambda sums: sums + kept[0])
    head, other = whole.get_output_embeddings().weight, shared.get_output_embeddings().weight
    assert torch.allclose(head, other, atol=1e-5)


def test_a_run_that_goes_on_keeps_its_masks_row(tmp_path, rows):
    settings = {"mask_row_batches": 2, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
    whole = RMTrainer(tiny_model(), arguments(tmp_path / "a", **settings), train_dataset=rows)
    whole.train()
    first = RMTrainer(tiny_model(), arguments(tmp_path / "b", **{**settings, "max_steps": 1}), train_dataset=rows)
    first.train()
    second = RMTrainer(tiny_model(), arguments(tmp_path / "b", **settings), train_dataset=rows)
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-1"))
    weights = (trainer.model.get_output_embeddings().weight for trainer in (whole, second))
    assert torch.equal(*weights)


def test_a_mask_row_that_could_not_be_kept_is_not_solved_for(tmp_path, model, rows):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=2)
    with pytest.raises(ValueError, match="`mask_row_batches` is set, but the head is not trained"):
        RMTrainer(model, arguments(tmp_path, mask_row_batches=2), train_dataset=rows, peft_config=lora)
    with pytest.raises(ValueError, match="`mask_row_batches` is -1"):
        arguments(tmp_path, mask_row_batches=-1)


def test_checkpoints_hold_no_pickled_arguments_and_the_pool(tmp_path, model, rows):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "pool_fraction": 0.5}
    trainer = RMTrainer(model, arguments(tmp_path, **settings), train_dataset=rows)
    trainer.train()
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "extra_state_0.safetensors", "training_args.json"} <= names
    assert "training_args.bin" not in names
    assert json.loads((tmp_path / "checkpoint-2" / "training_args.json").read_text())["pool_fraction"] == 0.5


def test_a_failed_save_leaves_the_older_checkpoint_whole(tmp_path, model, rows, monkeypatch):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = RMTrainer(model, arguments(tmp_path, **settings), train_dataset=rows)
    save = trainer._save_optimizer_and_scheduler

    def full_disk(folder):
        if trainer.state.global_step == 4:
            raise OSError("no space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full_disk)
    with pytest.raises(OSError, match="no space"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_lora_changes_the_adapter_and_nothing_else(tmp_path, model, rows):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights="gaussian")
    trainer = RMTrainer(model, arguments(tmp_path), train_dataset=rows, peft_config=lora)
    trainer.train()
    after = trainer.model.state_dict()
    for name, value in before.items():
        inner = name.replace("q_proj.weight", "q_proj.base_layer.weight").replace(
            "v_proj.weight", "v_proj.base_layer.weight"
        )
        assert torch.equal(after[f"base_model.model.{inner}"], value), name
    moved = [name for name, value in after.items() if "lora_B" in name and value.abs().sum() > 0]
    assert len(moved) == 2
    out = trainer.model.generate_reflective(torch.randint(1, 12, (1, 8)), editable="all")
    assert (out.sequences != 0).all() or not out.converged.all()


def test_the_model_may_be_a_folder(tmp_path, model, rows):
    model.save_pretrained(tmp_path / "saved")
    trainer = RMTrainer(str(tmp_path / "saved"), arguments(tmp_path / "out", max_steps=1), train_dataset=rows)
    trainer.train()
    assert logs_of(trainer)


def test_prompt_and_completion_rows_supervise_the_completion_only(tmp_path, model):
    from hf_rm.tasks.sudoku.model import build_sudoku_tokenizer

    texts = [{"prompt": "123", "completion": "456"} for _ in range(8)]
    trainer = RMTrainer(
        model, arguments(tmp_path, max_steps=1), train_dataset=texts, processing_class=build_sudoku_tokenizer()
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"][:, :3] == -100).all()
    assert (batch["labels"][:, 3:] != -100).all()
    assert (batch["input_ids"][:, :3] == torch.tensor([1, 2, 3])).all()


def test_a_pool_that_leaves_no_row_on_one_side_is_refused(tmp_path, model, rows):
    for fraction in (0.05, 0.95):
        with pytest.raises(ValueError, match=f"`pool_fraction` is {fraction} of a batch of 8"):
            RMTrainer(model, arguments(tmp_path, pool_fraction=fraction), train_dataset=rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"law": "papers"}, "law"),
        ({"law": "attempts", "horizon": 4}, "horizon"),
        ({"loss_clip": "soft"}, "loss_clip"),
        ({"pool_fraction": 1.0}, "pool_fraction"),
        ({"pool_reveal_threshold": 1.5}, "pool_reveal_threshold"),
        ({"reveal_context": "wrong"}, "reveal_context"),
        ({"edit_weight": 0.0}, "edit_weight"),
        ({"pool_start": "x"}, "`pool_start` is 'x': pass one of 'draft', 'law', 'canvas'"),
        ({"pool_start_step": -5}, "`pool_start_step` is -5"),
        ({"pool_max_age": 0}, "`pool_max_age` is 0"),
        ({"min_corruption_rate": 0.6}, "`min_corruption_rate` is 0.6 and `max_corruption_rate` 0.5"),
        ({"min_corruption_rate": -0.1}, "`min_corruption_rate` is -0.1"),
        ({"max_corruption_rate": 1.5}, "`max_corruption_rate` is 1.5"),
        ({"full_corruption": 2}, "`full_corruption` is 2"),
        ({"blank_rows": -1}, "`blank_rows` is -1"),
        ({"blank_rows": "half"}, "`blank_rows` is 'half'"),
        ({"reveal_weights": "1/t"}, "`reveal_weights`"),
        ({"muon_learning_rate": -1}, "`muon_learning_rate` is -1"),
        ({"max_length": -1}, "`max_length` is -1"),
        ({"max_length": 0}, "`max_length` is 0"),
        ({"loss_chunk_rows": -2}, "`loss_chunk_rows` is -2"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
    ],
)
def test_bad_arguments_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "train_dataset.*empty"),
        (iter([{"input_ids": [1], "idx": 0}]), "map-style"),
        ([{"text": "1"}], "columns"),
        ([{"prompt": "1", "completion": "2"}], "processing_class"),
    ],
)
def test_bad_datasets_are_named(tmp_path, model, dataset, message):
    with pytest.raises(ValueError, match=message):
        RMTrainer(model, arguments(tmp_path), train_dataset=dataset)


@pytest.mark.parametrize("kind", [RMTrainer, MaskedSFTTrainer])
def test_rows_that_are_not_the_models_are_named(tmp_path, model, rows, kind):
    settings = MaskedSFTArguments if kind is MaskedSFTTrainer else RMTrainingArguments

    def train(row: list, place: int, **more) -> None:
        data = [*rows[:place], {"input_ids": row, "idx": "odd", **more}, *rows[place:15]]
        kind(model, arguments(tmp_path, settings), train_dataset=data).train()

    for place in (0, 9):  # the first at once, others when they are read
        with pytest.raises(ValueError, match="row 'odd' has the id 12, outside the model's vocabulary of 12"):
            train([1, 12, 3], place)
        with pytest.raises(ValueError, match="row 'odd' has the id -100"):
            train([1, 2, -100], place)
        with pytest.raises(ValueError, match="row 'odd' has `input_ids` of float64"):
            train([1.0, 2.0], place)
        with pytest.raises(ValueError, match=r"row 'odd' has the mask \(0\) as a target"):
            train([1, 0, 3], place)
    train([1, 0, 3], 9, editable_mask=[False, False, True])  # a prompt may hold one


def test_a_sample_that_is_too_long_is_named(tmp_path, model, rows):
    trainer = RMTrainer(model, arguments(tmp_path, max_length=7), train_dataset=rows)
    with pytest.raises(ValueError, match="max_length=7"):
        trainer.train()


class TestVanillaSFT:
    def test_it_learns(self, tmp_path):
        constant = [{"input_ids": [1 + i % 3] * 8, "idx": i} for i in range(64)]
        args = arguments(tmp_path, MaskedSFTArguments, max_steps=60, logging_steps=10, learning_rate=0.02)
        trainer = MaskedSFTTrainer(tiny_model(), args, train_dataset=constant)
        trainer.train()
        assert logs_of(trainer)[-1]["loss"] < 0.7 * logs_of(trainer)[0]["loss"]

    def test_the_bound_is_a_mean_over_editable_positions(self, tmp_path, model, rows):
        args = arguments(tmp_path, MaskedSFTArguments, max_steps=1, learning_rate=0.0)
        trainer = MaskedSFTTrainer(model, args, train_dataset=rows)
        trainer.train()
        assert 0.5 < logs_of(trainer)[0]["loss"] < 8  # about log(12) for an untrained head

    def test_weights_are_the_inverse_masking_rate(self):
        rows = [{"input_ids": [1 + i % 9 for i in range(2000)], "idx": i} for i in range(4)]
        batch = MaskedSFTCollator(mask_token_id=0)(rows)
        share = (batch["input_ids"] == 0).float().mean(1)
        assert torch.allclose(share, 1 / batch["loss_weights"][:, 0], atol=0.05)
        assert ((batch["labels"] == -100) == (batch["input_ids"] != 0)).all()

    def test_accumulation_1x8_equals_8x1(self, tmp_path, rows):
        states = []
        for batch, accumulation in ((8, 1), (1, 8)):
            settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
            trainer = MaskedSFTTrainer(
                tiny_model(), arguments(tmp_path, MaskedSFTArguments, **settings), train_dataset=rows
            )
            trainer.train()
            states.append(trainer.model.state_dict())
        for name in states[0]:
            assert (states[0][name] - states[1][name]).abs().max() < 1e-5, name
