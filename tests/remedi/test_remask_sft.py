"""Remask SFT: the noise in closed form, both losses on worked numbers, and that training does what it should."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import llama, wrapped
from tiny_remedi import BLOCKWISE, rows, sft_trainer, tiny_remedi
from torch import Tensor

from hf_rm import RemaskSFTArguments, RemaskSFTTrainer, RemeDiForMaskedDiffusion
from hf_rm.corruption import RemaskSFTCollator, UniformProposal
from hf_rm.corruption.remask import CLEAN, INCORRECT, MASKED, incorrect_ratio, noise_counts
from hf_rm.training import default_lora_config
from hf_rm.training.remask_sft import policy_losses, token_losses

WRONG = UniformProposal(11, excluded=[0])


# Noise


def test_the_ratio_on_the_vectors(vectors: Callable[[str], Any]) -> None:
    for case in vectors("remedi")["incorrect_ratio"]:
        assert incorrect_ratio(case["t"], case["r"]) == pytest.approx(case["ratio"], abs=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 10, 32, 1000])
@pytest.mark.parametrize("r", [0.1, 0.25])
def test_wrong_tokens_are_always_fewer_than_masks(length: int, r: float) -> None:
    """For t <= 1 / L the paper's own counts are not: that is where they are cut down, and hardly elsewhere."""
    cut = 0
    for time in np.linspace(0, 1, 2001)[1:]:
        masked, wrong = (int(n) for n in noise_counts(np.array(time), np.array(length), r))
        assert 1 <= masked <= length and 0 <= wrong < masked and masked + wrong <= length
        assert masked == max(1, math.ceil(round(time * length, 9)))
        stated = math.ceil(round(4 * r * time * (1 - time) ** 2 * length, 9))
        assert wrong == min(stated, masked - 1, length - masked)
        cut += time <= 1 / length and stated >= masked
    assert cut > 0 or length == 1000


def expected_counts(length: int, r: float, points: int = 20000) -> tuple[float, float]:
    """Mean masks and wrong tokens over t ~ U(0, 1), by the midpoint rule."""
    total = [0, 0]
    for i in range(points):
        time = (i + 0.5) / points
        masked = math.ceil(time * length)
        total[0] += masked
        total[1] += min(math.ceil(4 * r * time * (1 - time) ** 2 * length), masked - 1, length - masked)
    return total[0] / points, total[1] / points


def test_the_marginals_are_those_of_the_schedule() -> None:
    length, count = 12, 4000
    collate = RemaskSFTCollator(0, WRONG, seed=3)
    targets = [[1 + i % 10 for i in range(length)]] * count
    batch = collate([{"input_ids": ids, "idx": i} for i, ids in enumerate(targets)])
    groups, target = batch["groups"], torch.tensor(targets)
    masks, wrong = expected_counts(length, 0.1)
    assert masks == pytest.approx((length + 1) / 2)  # ceil(t L) is uniform over 1 .. L
    # The standard error of a mean of `count` rows, four of them.
    assert (groups == MASKED).sum(1).double().mean() == pytest.approx(masks, abs=4 * 3.5 / count**0.5)
    assert (groups == INCORRECT).sum(1).double().mean() == pytest.approx(wrong, abs=4 * 0.5 / count**0.5)
    for group in (MASKED, INCORRECT):  # no position is preferred
        share = (groups == group).double().mean(0)
        assert (share - share.mean()).abs().max() < 4 * 0.5 / count**0.5
    assert torch.equal(groups == MASKED, batch["input_ids"] == 0)
    assert torch.equal(groups == INCORRECT, (batch["input_ids"] != target) & (batch["input_ids"] != 0))
    assert torch.equal(batch["labels"], torch.where(groups == MASKED, target, -100))
    torch.testing.assert_close(batch["loss_weights"][:, 0], length / (groups == MASKED).sum(1))


def test_a_row_s_noise_depends_on_its_key_and_the_epoch_alone() -> None:
    collate = RemaskSFTCollator(0, WRONG, seed=1)
    features = [{**row, "idx": i} for i, row in enumerate(rows(6))]
    together = collate(features)
    for i, feature in enumerate(features):
        alone, length = collate([feature]), len(feature["input_ids"])
        for name in ("input_ids", "groups", "labels"):
            assert torch.equal(together[name][i, :length], alone[name][0]), name
        # Prompt and padding take no part.
        outside = (torch.arange(together["groups"].shape[1]) < 2) | (
            torch.arange(together["groups"].shape[1]) >= length
        )
        assert (together["groups"][i, outside] == -100).all()
    collate.set_epoch(1)
    assert not torch.equal(collate(features)["input_ids"], together["input_ids"])


def test_noise_in_one_block_of_the_answer() -> None:
    collate = RemaskSFTCollator(0, WRONG, block_length=4)
    target = list(range(1, 11)) + [1, 2, 3]
    features = [{"input_ids": target, "editable_mask": [i > 2 for i in range(13)], "idx": i} for i in range(400)]
    batch = collate(features)
    blocks = (torch.arange(13) - 3).div(4, rounding_mode="floor")
    seen = set()
    for row in range(400):
        noisy = batch["groups"][row] != -100
        (block,) = set(blocks[noisy].tolist())
        seen.add(block)
        assert torch.equal(noisy, blocks == block)
        assert torch.equal(batch["attention_mask"][row].bool(), blocks <= block)
        assert torch.equal(batch["input_ids"][row][blocks < block], torch.tensor(target)[blocks < block])
        masks = int((batch["groups"][row] == MASKED).sum())
        assert batch["loss_weights"][row, 0].item() == pytest.approx(int(noisy.sum()) / masks)
    assert seen == {0, 1, 2}


@torch.no_grad()
def test_a_block_is_learnt_in_the_context_it_is_decoded_in(tmp_path: Path) -> None:
    """Clean blocks before it, and behind it nothing: in decoding there are masks, which it does not see either."""
    model = tiny_remedi(1, **BLOCKWISE)
    trainer = sft_trainer(tmp_path, model)
    batch = trainer.data_collator([{"input_ids": list(range(1, 11)), "idx": i} for i in range(8)])
    trained_on = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "editable_mask")})
    decoded = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0)
    sampled = model(decoded, editable_mask=batch["editable_mask"])
    noisy = batch["groups"] != -100
    assert noisy.any(1).all() and (decoded == 0).sum() > (batch["input_ids"] == 0).sum()
    torch.testing.assert_close(trained_on.logits[noisy], sampled.logits[noisy])
    torch.testing.assert_close(trained_on.policy[noisy], sampled.policy[noisy])


def test_no_block_behind_the_end_of_the_text_is_drawn() -> None:
    """Decoding stops with the block that holds an end token (3): what fills the canvas behind it is never its own."""
    collate = RemaskSFTCollator(0, WRONG, block_length=4, stop_token_ids=[3])
    answers = [[1, 2, 4, 5, 6, 3, 3, 3, 3, 3], [1, 2, 3, 3, 3, 3, 3, 3, 3, 3], [1] * 10]
    features = [
        {"input_ids": [3, 7, *answers[i % 3]], "editable_mask": [False] * 2 + [True] * 10, "idx": i} for i in range(90)
    ]
    batch = collate(features)
    number = (torch.arange(12) - 2).div(4, rounding_mode="floor")
    noisy = [set(number[groups != -100].tolist()) for groups in batch["groups"]]
    assert [set.union(*noisy[i::3]) for i in range(3)] == [{0, 1}, {0}, {0, 1, 2}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"incorrect_rate": 0.3}, "`incorrect_rate` is 0.3"), ({"block_length": 0}, "`block_length` is 0")],
)
def test_collators_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemaskSFTCollator(0, WRONG, **settings)


# Losses


def test_the_losses_on_the_worked_numbers() -> None:
    groups = torch.tensor([[MASKED, CLEAN, MASKED, CLEAN]])
    p = torch.tensor([[0.5, 0.9, 0.25, 0.9]])
    assert token_losses(-p.log(), groups, torch.full((1, 4), 2.0)).sum().item() == pytest.approx(4.158883, abs=1e-6)
    groups = torch.tensor([[CLEAN, INCORRECT, MASKED, -100]])
    cross_entropy = torch.tensor([[0.0, 0.0, -math.log(0.3), 0.0]], requires_grad=True)
    policy = torch.tensor([[2.0, 2.0, 0.0, 5.0]], requires_grad=True)
    losses = policy_losses(policy, cross_entropy, groups)
    torch.testing.assert_close(losses, torch.tensor([[0.126928, 2.126928, 0.693147, 0.0]]), atol=1e-6, rtol=0)
    losses.sum().backward()
    # sigmoid(h) - y, and nothing through the soft label.
    expected = torch.tensor([[2.0, 2.0, 0.0, 5.0]]).sigmoid() - torch.tensor([[1, 0, 0.3, 0]])
    expected[0, 3] = 0
    torch.testing.assert_close(policy.grad, expected)
    assert cross_entropy.grad is None


def by_hand(model: RemeDiForMaskedDiffusion, batch: dict[str, Tensor], weight: float) -> float:
    """The loss of a batch, position by position."""
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "editable_mask")}
        output = model(**inputs)
    total, count = 0.0, 0
    for row, groups in enumerate(batch["groups"].tolist()):
        supervised = [i for i, group in enumerate(groups) if group != -100]
        masks = sum(group == MASKED for group in groups)
        for i in supervised:
            right = 1.0 if groups[i] == CLEAN else 0.0
            if groups[i] == MASKED:
                right = float(output.logits[row, i].double().softmax(-1)[batch["labels"][row, i]])
                total -= len(supervised) / masks * math.log(right)
            says = 1 / (1 + math.exp(-float(output.policy[row, i])))
            total -= weight * (right * math.log(says) + (1 - right) * math.log(1 - says))
        count += len(supervised)
    return total / count


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("blocks", [{}, BLOCKWISE])
def test_the_trainer_s_loss_is_the_sum_over_positions(tmp_path: Path, chunk: int, blocks: dict[str, Any]) -> None:
    trainer = sft_trainer(tmp_path, tiny_remedi(1, **blocks), policy_weight=0.7, loss_chunk_rows=chunk)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model.eval(), batch)
    assert loss.item() == pytest.approx(by_hand(trainer.model, batch, 0.7), rel=1e-5)
    assert (batch["groups"] == INCORRECT).any()


# Training


def test_the_two_learning_rates(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, learning_rate=2e-5, backbone_learning_rate=2e-6, weight_decay=0.1)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    counted = 0
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == (2e-5 if name.startswith("stream.") else 2e-6), name
            assert group["weight_decay"] == (0.1 if parameter.dim() > 1 else 0.0), name
            counted += 1
    assert counted == len(names)
    assert (RemaskSFTArguments("x").learning_rate, RemaskSFTArguments("x").backbone_learning_rate) == (2e-5, 2e-6)


def test_a_backbone_at_rate_zero_stands_still_and_the_stream_moves(tmp_path: Path) -> None:
    model = tiny_remedi(talkative=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sft_trainer(tmp_path, model, backbone_learning_rate=0.0, weight_decay=0.1, max_steps=2).train()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("stream."), name


def run(folder: Path, settings: dict[str, Any], processes: int = 1) -> tuple[list[dict], dict[str, Tensor]]:
    script = [str(Path(__file__).with_name("script.py")), str(folder), json.dumps(settings)]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29533"]
    command = [sys.executable, *(launcher if processes > 1 else []), *script]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "logs.json").read_text()), load_file(folder / "final" / "model.safetensors")


def trained(trainer: RemaskSFTTrainer) -> tuple[list[dict], dict[str, Tensor]]:
    trainer.train()
    return trainer.state.log_history, {name: p.detach() for name, p in trainer.model.named_parameters()}


def assert_same(one: tuple[list[dict], dict[str, Tensor]], other: tuple[list[dict], dict[str, Tensor]]) -> None:
    compared = 0
    for ours, theirs in zip(one[0], other[0], strict=True):
        for key in ours:
            if "loss" in key and "train" not in key or "confidence" in key:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-6), key
                compared += 1
    assert compared > 20
    for name, value in one[1].items():
        if name in other[1]:
            assert (value - other[1][name]).abs().max() < 2e-5, name


@pytest.mark.parametrize("blocks", [{}, BLOCKWISE])
def test_accumulated_and_on_two_processes_it_is_the_same_run(tmp_path: Path, blocks: dict[str, Any]) -> None:
    model = lambda: tiny_remedi(talkative=False, **blocks)  # noqa: E731
    whole = trained(sft_trainer(tmp_path / "one", model(), max_steps=4))
    small = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert_same(whole, trained(sft_trainer(tmp_path / "parts", model(), **small)))
    settings = {**small, "gradient_accumulation_steps": 2, "blocks": bool(blocks)}
    assert_same(whole, run(tmp_path / "two", settings, processes=2))


@pytest.mark.parametrize("blocks", [{}, BLOCKWISE])
def test_resumed_it_is_the_same_run(tmp_path: Path, blocks: dict[str, Any]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 9}
    _, whole = trained(sft_trainer(tmp_path / "whole", tiny_remedi(talkative=False, **blocks), **saving))
    resumed = sft_trainer(tmp_path / "resumed", tiny_remedi(5, talkative=False, **blocks), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, whole[name]), name


def test_an_adapter_and_a_name(tmp_path: Path) -> None:
    llama(layers=3).save_pretrained(tmp_path / "base")
    settings = {"model_init_kwargs": {"dtype": "float32"}, "max_steps": 2, "gradient_checkpointing": True}
    trainer = sft_trainer(
        tmp_path / "run",
        RemeDiForMaskedDiffusion.from_backbone(str(tmp_path / "base"), 0),
        **{**settings, "model_init_kwargs": None},
        peft_config=default_lora_config(RemeDiForMaskedDiffusion.from_backbone(llama(layers=3), 0), r=2),
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    rates = {name: 1e-2 if "stream" in name else 1e-3 for name in before}
    named = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    assert all(group["lr"] == rates[named[id(p)]] for group in groups for p in group["params"])
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert any("confidence" in name for name in moved) and any("lora_B" in name for name in moved)
    assert all("lora" in name or "modules_to_save" in name or "trainable_tokens" in name for name in moved)


def test_evaluation_has_a_loss(tmp_path: Path) -> None:
    trainer = sft_trainer(tmp_path, eval_dataset=rows(8))
    assert 0 < trainer.evaluate()["eval_loss"] < 100


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "muon": ({"muon_learning_rate": 0.1}, "two learning rates of its"),
    "rate": ({"backbone_learning_rate": -1.0}, "`backbone_learning_rate` is -1.0"),
    "weight": ({"policy_weight": -1.0}, "`policy_weight` is -1.0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_cannot_work(tmp_path: Path, case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        RemaskSFTArguments(str(tmp_path), **settings)


def test_models_that_cannot_be_trained_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="RMForMaskedDiffusion, which has no policy"):
        sft_trainer(tmp_path, wrapped())
    with pytest.raises(ValueError, match='attention_block_start="answer"'):
        sft_trainer(tmp_path, tiny_remedi(attention_block_length=4))


# What it is for


def copies(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of one token ten times: a wrong one stands out against all that are visible."""
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 11, (count, 1), generator=random).repeat(1, 10)
    return [{"input_ids": word.tolist(), "idx": f"{seed}/{i}"} for i, word in enumerate(words)]


def auroc(right: Tensor, wrong: Tensor) -> float:
    """The probability that a right token's score is above a wrong one's."""
    return float((right[:, None] > wrong[None]).double().mean())


def test_the_confidence_learns_to_tell_wrong_tokens_from_right_ones(tmp_path: Path) -> None:
    model = RemeDiForMaskedDiffusion.from_backbone(llama(hidden_size=32, layers=2), mask_token_id=0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 0.3  # the backbones of the tests are lively, which is hard to train
    settings = {"learning_rate": 5e-3, "backbone_learning_rate": 5e-3, "per_device_train_batch_size": 32}
    trainer = sft_trainer(tmp_path, model, copies(4000, 0), max_steps=350, logging_steps=350, **settings)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss_token" in entry)
    batch = trainer.data_collator(copies(200, 1))
    with torch.no_grad():
        policy = model.eval()(batch["input_ids"], editable_mask=batch["editable_mask"]).policy
    some = (batch["groups"] == MASKED).float().mean(1) < 0.5  # with little left nobody could tell
    right, wrong = (policy[some[:, None] & (batch["groups"] == group)] for group in (CLEAN, INCORRECT))
    assert auroc(right, wrong) > 0.97, (auroc(right, wrong), logged)
    assert logged["confidence_incorrect"] < logged["confidence_clean"]
    # A step of decoding that shows nine of ten takes a planted mistake back, and only it.
    planted = torch.tensor([[3, 3, 3, 3, 3, 4, 3, 3, 3, 3]])
    with torch.no_grad():
        assert int(model(planted).policy.argmin()) == 5
