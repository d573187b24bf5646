"""RemaskGRPOTrainer: its loss against a plain policy gradient, and that it learns, resumes and refuses."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from tiny_models import wrapped
from tiny_remedi import BLOCKWISE, tiny_remedi
from tiny_rl import block_trainer, draft_trainer, drafts, fives, prompts, rl_trainer, word_tokenizer
from torch import Tensor

from hf_rm.training.grpo import (
    _DEFAULTS,
    _UNREAD,
    RemaskGRPOConfig,
    RemaskGRPOTrainer,
    check_trl_version,
    clipped_objective,
    draw_settings,
)
from hf_rm.training.log_probs import choice_log_probs
from hf_rm.training.rollouts import Trajectory

NO_END = {"stop_at_eos": False, "steps": 4}
MAKERS: list[Callable[..., Any]] = [rl_trainer, block_trainer, draft_trainer]


def mixed(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Rewards that nearly always differ within a group."""
    return [sum(ids) / 10 + ids[0] for ids in completion_ids]


def first_batch(trainer: Any) -> dict[str, Any]:
    """What the first step of a training run would see."""
    trainer.create_optimizer_and_scheduler(2)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["remedi", "remedi-blocks", "rm", "rm-history"])
def test_the_first_gradient_is_the_plain_policy_gradient(tmp_path: Path, kind: str) -> None:
    """Against A / steps * grad log pi(run), by the form with one denoising step a row."""
    if kind.startswith("remedi"):
        model = tiny_remedi(1, **(BLOCKWISE if kind == "remedi-blocks" else {}))
        trainer = rl_trainer(tmp_path, model, mixed, decoding=NO_END, max_completion_length=8)
    else:
        trainer = draft_trainer(tmp_path, wrapped(1, history=kind == "rm-history"), rewards=mixed)
    batch = first_batch(trainer)
    assert batch["advantages"].abs().max() > 0.5
    found = gradients(trainer.model, trainer._compute_loss(trainer.model, batch))
    assert trainer._metrics["train"]["clip_ratio/tokens"] == [0.0]
    trajectory = Trajectory.of(batch)
    own = draw_settings(trainer.model, trainer.decoding, trainer.args)
    assert own.by_block is (kind == "remedi-blocks") and own.use_history is (kind == "rm-history")
    plain = type(own)(**{**vars(own), "by_block": False, "pairs_per_forward": 1})
    log_probs = choice_log_probs(trainer.model, trainer.model.config, trajectory, plain)
    runs = (log_probs.positions + log_probs.tokens).sum((1, 2)) / trajectory.num_steps()
    expected = gradients(trainer.model, -(batch["advantages"] * runs).mean())
    assert expected.keys() == found.keys()
    largest = max(float(values.abs().max()) for values in expected.values())
    assert largest > 1e-3
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-4 * largest, rtol=1e-3)


@pytest.mark.parametrize("make", MAKERS)
def test_ratios_are_exactly_one_at_the_first_update_and_move_on(tmp_path: Path, make: Callable[..., Any]) -> None:
    """With two updates on the same runs the first sees what it drew with, bit for bit; the second does not."""
    trainer = make(tmp_path, rewards=mixed, num_iterations=2, learning_rate=0.05)
    batch = first_batch(trainer)
    now = trainer._log_probs(trainer.model, Trajectory.of(batch))
    assert torch.equal(now.positions, batch["old_positions"]) and torch.equal(now.tokens, batch["old_tokens"])
    trainer._compute_loss(trainer.model, batch).backward()
    trainer.optimizer.step()
    trainer._metrics["train"].clear()
    trainer._compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["clip_ratio/tokens"][0] > 0


@pytest.mark.parametrize(("kind", "length"), [("remedi", 4), ("rm", 6), ("blocks", 12), ("blocks", 10)])
def test_a_few_steps_stand_for_all(tmp_path: Path, kind: str, length: int) -> None:
    """
    Over every choice of two steps to look at, each counted once, the mean loss is the loss of all steps: one step a
    look; a step of each of three blocks a look; and so where the last block is a short one.
    """
    settings: dict[str, Any] = {"rewards": mixed, "loss_steps": 2}
    if kind == "rm":
        trainer = draft_trainer(tmp_path, wrapped(5), **settings)
    else:
        model, steps = tiny_remedi(1, **(BLOCKWISE if kind == "blocks" else {})), {**NO_END, "steps": length}
        trainer = rl_trainer(tmp_path, model, decoding=steps, max_completion_length=length, **settings)
    batch, subsets = first_batch(trainer), []
    for row in range(len(batch["advantages"])):
        one = {name: value[row : row + 1] for name, value in batch.items() if name.startswith(("rollout", "adv"))}
        trainer.args.loss_steps = None
        now = trainer._log_probs(trainer.model, Trajectory.of(one))
        taken = int((now.tokens_drawn | now.positions_drawn).any(-1).sum())
        looks = 3 if kind == "blocks" else taken  # of four; the last step of a block draws nothing
        subsets.append(math.comb(looks, min(2, looks)))
        # Ratios other than 1, so that every step contributes something of its own.
        ago = torch.linspace(-0.1, 0.15, now.tokens.shape[1])[None, :, None]
        one |= {"old_positions": now.positions.detach() + ago, "old_tokens": now.tokens.detach() - ago}
        one["advantages"] = torch.ones(1)  # of a group with equal rewards it is 0
        whole = trainer._compute_loss(trainer.model, one).item()
        trainer.args.loss_steps = 2
        losses: dict[tuple[int, ...], float] = {}
        for seed in range(200):
            trainer.args.seed = seed
            few = trainer._log_probs(trainer.model, Trajectory.of(one))
            looked = tuple((few.tokens_drawn | few.positions_drawn).any(-1)[0].nonzero()[:, 0].tolist())
            if looked not in losses:
                losses[looked] = trainer._compute_loss(trainer.model, one).item()
            if len(losses) == subsets[-1]:
                break
        assert len(losses) == subsets[-1] and abs(whole) > 0.1
        assert sum(losses.values()) / len(losses) == pytest.approx(whole, rel=1e-4)
    assert max(subsets) > 1  # an RM run may take no more than two steps


def test_the_last_step_of_a_block_is_deterministic_unless_asked_for(tmp_path: Path) -> None:
    """Of two steps a block the first alone has anything to train; RM's schedule has no such step."""
    for settings, last in (({}, False), ({"greedy_last_step": False}, True)):
        trainer = block_trainer(tmp_path, tiny_remedi(1, **BLOCKWISE), rewards=mixed, **settings)
        found = trainer._log_probs(trainer.model, Trajectory.of(first_batch(trainer)))
        drawn = (found.tokens_drawn | found.positions_drawn).any(-1).any(0).tolist()
        assert drawn == [True, last] * 3
    schedule = {"reveal": "confidence", "steps": 3, "max_steps": 5}
    trainer = rl_trainer(tmp_path, wrapped(1), mixed, decoding=schedule, max_completion_length=6)
    found = trainer._log_probs(trainer.model, Trajectory.of(first_batch(trainer)))
    assert found.tokens_drawn[:, 2].any()


def test_runs_and_answers_stay_together(tmp_path: Path) -> None:
    """TRL shuffles and splits the batch: each row's run still ends in its own answer."""
    trainer = rl_trainer(tmp_path, tiny_remedi(2), mixed, decoding=NO_END, gradient_accumulation_steps=2)
    first_batch(trainer)
    assert len(trainer._buffered_inputs) == 2
    for part in trainer._buffered_inputs:
        run = Trajectory.of(part)
        final = torch.stack([state[mask] for state, mask in zip(run.states[:, -1], run.editable, strict=True)])
        assert torch.equal(final, part["completion_ids"])
        prompt = [row[mask.bool()].tolist() for row, mask in zip(part["prompt_ids"], part["prompt_mask"], strict=True)]
        kept = run.real & ~run.editable
        assert [s[m].tolist() for s, m in zip(run.states[:, 0], kept, strict=True)] == prompt
        assert part["advantages"].unique().numel() > 2


@pytest.mark.parametrize("make", MAKERS)
def test_accumulation_takes_the_same_step(tmp_path: Path, make: Callable[..., Any]) -> None:
    weights = []
    for size, accumulate in ((8, 1), (4, 2)):
        trainer = make(
            tmp_path,
            rewards=mixed,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            optim="sgd",
            max_grad_norm=0.0,
            max_steps=1,
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("make", [rl_trainer, draft_trainer])
def test_the_reward_rises(tmp_path: Path, make: Callable[..., Any]) -> None:
    """Fives are wanted, and come: from almost none to most of all tokens."""
    decoding = {"stop_at_eos": False, "steps": 2} if make is rl_trainer else {"max_steps": 5}
    trainer = make(
        tmp_path,
        decoding=decoding,
        max_steps=18,
        learning_rate=0.015,
        per_device_train_batch_size=32,
        num_generations=8,
        lr_scheduler_type="constant",
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert len(rewards) == 18 and rewards[0] < 0.15 and sum(rewards[-3:]) / 3 > 0.6


def test_the_policy_alone_learns_what_to_keep(tmp_path: Path) -> None:
    """
    The backbone is frozen and what is wanted is a first token revealed before the last: only the stream's scores can
    bring that about.
    """
    model = tiny_remedi(5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("stream.confidence" in name or "stream.norm" in name)

    def first_is_early(trainer_state: Any, **columns: Any) -> list[float]:
        run = trainer._trajectory
        place = run.editable.int().argmax(-1)
        return (run.states[torch.arange(len(place)), 1, place] != 0).float().tolist()

    trainer = rl_trainer(
        tmp_path,
        model,
        first_is_early,
        decoding={"stop_at_eos": False, "steps": 4},
        max_steps=12,
        learning_rate=0.1,
        per_device_train_batch_size=24,
        num_generations=8,
        lr_scheduler_type="constant",
    )
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert rewards[0] < 0.55 and sum(rewards[-3:]) / 3 > rewards[0] + 0.3


@pytest.mark.parametrize("make", MAKERS)
def test_resume_repeats_the_run(tmp_path: Path, make: Callable[..., Any]) -> None:
    """Four steps at once, and two and two: the same weights, bit for bit, and the same rewards."""
    settings = {"rewards": mixed, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make(tmp_path / "a", **settings)
    whole.train()
    later = make(tmp_path / "b", **settings)
    later.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(later.model.state_dict()[name], value), name
    rewards = [[e["reward"] for e in t.state.log_history if "reward" in e] for t in (whole, later)]
    assert rewards[0] == rewards[1] and len(rewards[0]) == 4
    files = {path.name for path in (tmp_path / "a" / "checkpoint-4").iterdir()}
    assert "training_args.json" in files and "training_args.bin" not in files


@pytest.mark.parametrize("make", [rl_trainer, block_trainer])
def test_lora_and_checkpointing_give_the_same_gradients(tmp_path: Path, make: Callable[..., Any]) -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = tiny_remedi(1, **(BLOCKWISE if make is block_trainer else {}))
        trainer = make(tmp_path, model, rewards=mixed, peft_config=lora, gradient_checkpointing=again)
        batch = first_batch(trainer)
        found.append(gradients(trainer.model, trainer._compute_loss(trainer.model, batch)))
    assert found[0].keys() == found[1].keys() and all("lora" in name for name in found[0])
    assert any("stream" in name for name in found[0])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-4)


def test_evaluation(tmp_path: Path) -> None:
    trainer = rl_trainer(tmp_path, tiny_remedi(1), mixed, eval_dataset=prompts(2), per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] > 0 and metrics["eval_rollout/num_steps"] == 4


def broken(**columns: Any) -> list[float]:
    raise RuntimeError("out of order")


async def endless(**columns: Any) -> list[float]:
    await asyncio.sleep(60)
    return []


@pytest.mark.parametrize("reward", [broken, endless])
def test_a_broken_reward_ends_nothing_and_moves_nothing(tmp_path: Path, reward: Any) -> None:
    trainer = rl_trainer(tmp_path, tiny_remedi(1), reward, weight_decay=0.0, reward_seconds=0.5)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.global_step == 2
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_clipped_objective_by_hand() -> None:
    log_ratio = torch.tensor([[[1.5, 0.5]], [[1.5, 0.5]]]).log()
    drawn, advantages = torch.tensor([[[True, True]], [[True, True]]]), torch.tensor([1.0, -1.0])
    each, over, count = clipped_objective(log_ratio, drawn, advantages, (0.2, 0.2), "choice")
    assert each.tolist() == pytest.approx([1.2 + 0.5, -1.5 - 0.8]) and (over.item(), count.item()) == (2, 4)
    step, _, count = clipped_objective(log_ratio, drawn, advantages, (0.3, 0.2), "step")
    assert step.tolist() == pytest.approx([0.75, -0.75]) and count == 2
    step, over, _ = clipped_objective(log_ratio, drawn & torch.tensor([True, False]), advantages, (0.2, 0.3), "step")
    assert step.tolist() == pytest.approx([1.3, -1.5]) and over == 1


@pytest.mark.parametrize("version", ["1.15.9", "1.16.0.dev0", "1.17.0.dev0", "1.17.0rc1", "1.17.0", "2.0"])
def test_another_trl_is_refused(version: str) -> None:
    with pytest.raises(ImportError, match=r"trl>=1\.16,<1\.17.*" + version.replace(".", r"\.")):
        check_trl_version(version)


def test_what_nothing_reads_is_named_rightly() -> None:
    assert set(_UNREAD) <= set(_DEFAULTS) and not any(_DEFAULTS[name] is MISSING for name in _UNREAD)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.1}, "`beta` is 0.1"),
        ({"top_k": 5}, "`top_k` is 5"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"loss_type": "grpo"}, "`loss_type` is 'grpo', but nothing in Remask RL reads it"),
        ({"importance_sampling_level": "sequence"}, "`importance_sampling_level` is 'sequence'"),
        ({"sapo_temperature_neg": 2.0}, "`sapo_temperature_neg` is 2.0"),
        ({"vllm_mode": "server"}, "`vllm_mode` is 'server'"),
        ({"use_liger_kernel": True}, "`use_liger_kernel` is True"),
        ({"ratio_level": "row"}, "`ratio_level` is 'row'"),
        ({"loss_steps": 0}, "`loss_steps` is 0: pass an integer of 1 or more, or leave it out"),
        ({"loss_steps": 1.5}, "`loss_steps` is 1.5: pass an integer"),
        ({"loss_steps": True}, "`loss_steps` is True: pass an integer"),
        ({"pairs_per_forward": 2.5}, r"`pairs_per_forward` is 2.5: pass an integer of 1 or more\."),
        ({"num_generations": 0}, r"`num_generations` is 0: pass an integer of 2 or more\."),
        ({"num_generations": 1}, "`num_generations` is 1: pass an integer of 2"),
        ({"num_generations": 4.0}, "`num_generations` is 4.0: pass an integer"),
        ({"num_generations_eval": 0}, "`num_generations_eval` is 0"),
        ({"num_iterations": 0}, "`num_iterations` is 0"),
        ({"steps_per_generation": 0}, "`steps_per_generation` is 0"),
        ({"max_completion_length": 0}, "`max_completion_length` is 0"),
        ({"reward_seconds": 0}, "`reward_seconds` is 0: pass a positive number"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "`hub_strategy` is 'checkpoint'"),
        (
            {"num_generations": 3},
            "`num_generations` is 3, which does not divide the 8 rows .*: pass one of 2, 4, 8, or",
        ),
        (
            {"num_generations": 4, "per_device_train_batch_size": 1},
            "does not divide the 1 rows .*: pass such a `per_device_train_batch_size` that .* multiple of 4",
        ),
        ({"steps_per_generation": 2, "generation_batch_size": 16}, "can not be both configured"),
        ({"decoding": {"temperature": 0.5}}, "`decoding` sets 'temperature'"),
        ({"decoding": {"revise": "low_prob", "reveal": "all"}}, "`revise` is 'low_prob'"),
        ({"decoding": {"stepps": 3}}, "Unknown generation argument"),
        ({"decoding": '{"top_p": 0.5}'}, "`top_p` is 0.5"),
        ({"decoding": '{"steps": 4'}, "`decoding` is .*, no JSON .*: pass one such as"),
        ({"decoding": "[4]"}, r"`decoding` is '\[4\]': pass a dict"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rl_trainer(tmp_path, **settings)


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"steps": 1}, "`steps` is 1, but the canvas has 2 blocks"),
        ({"block_length": 8}, "`block_length` is 8, but the model's attention goes by blocks of 4"),
        ({"steps": 2}, "`steps` is 2, one for each block, .* nothing would be drawn"),
    ],
)
def test_decodings_that_do_not_fit_the_model_are_refused_before_training(
    tmp_path: Path, decoding: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rl_trainer(tmp_path, tiny_remedi(1, **BLOCKWISE), max_completion_length=8, decoding=decoding)
    with pytest.raises(ValueError, match="`use_cache` is True, but the model's attention is not block-causal"):
        rl_trainer(tmp_path, tiny_remedi(1), decoding={"use_cache": True})


@pytest.mark.parametrize("how", ["argument", "launcher", "accelerator"])
def test_weights_that_are_spread_over_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Each process decodes in as many passes as its rows take: with FSDP the others would wait for ever."""
    if how == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    if how == "accelerator":
        monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"spread over processes \(FSDP, DeepSpeed ZeRO-3\).*launch with DDP"):
        rl_trainer(tmp_path, **({"fsdp": True} if how == "argument" else {}))


def test_rewards_of_the_wrong_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="returned 1 values for 8"):
        rl_trainer(tmp_path, rewards=lambda **columns: [1.0]).train()
    with pytest.raises(ValueError, match="returned 1.0, which is no list, for 8 completions"):
        rl_trainer(tmp_path, rewards=lambda **columns: 1.0).train()


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "long mask": ({"editable_mask": [True] * 8}, "has 6 `input_ids` and an `editable_mask` of 8: pass one a token"),
    "short mask": ({"editable_mask": [True] * 4}, "has 6 `input_ids` and an `editable_mask` of 4: pass one a token"),
    "no mask": ({"editable_mask": None}, "and row 0 differ in whether they have `editable_mask`"),
    "no ids": ({"input_ids": None}, "and row 0 differ in whether they have `input_ids`"),
    "nothing": ({"editable_mask": [False] * 6}, "has only False in its `editable_mask`: mark what may change"),
    "vocabulary": ({"input_ids": [1, 2, 3, 4, 5, 11]}, "cannot be decoded: `input_ids` holds 11, outside the vocab"),
    "empty": ({"input_ids": [], "editable_mask": []}, "has only False in its `editable_mask`"),
}


@pytest.mark.parametrize("where", ["train", "eval"])
@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_decoded_is_found_wherever_it_is(tmp_path: Path, case: str, where: str) -> None:
    """Not in the first row alone; a mask of another length would be padded to mark other tokens."""
    change, message = ROWS[case]
    rows = drafts(300).to_list()
    rows[270] |= change
    bad = Dataset.from_list(rows)
    with pytest.raises(ValueError, match=f"^row 270 of the dataset {message}"):
        draft_trainer(tmp_path, **({"rows": bad} if where == "train" else {"eval_dataset": {"held out": bad}}))


def test_canvases_of_several_lengths_and_blocks(tmp_path: Path) -> None:
    """Each is held against its own number of blocks; what has one step a block is fine if another row has more."""
    rows = [{"prompt": "", "input_ids": [0] * length} for length in (4, 8, 4, 12, 8)]
    model, decoding = tiny_remedi(1, **BLOCKWISE), {"stop_at_eos": False, "steps": 3}
    rl_trainer(tmp_path, model, rows=Dataset.from_list(rows), decoding=decoding)
    with pytest.raises(ValueError, match="^row 5 of the dataset cannot be decoded: `steps` is 3, but .* has 4 blocks"):
        rl_trainer(
            tmp_path, model, rows=Dataset.from_list([*rows, {**rows[0], "input_ids": [0] * 16}]), decoding=decoding
        )
    with pytest.raises(ValueError, match="nothing would be drawn"):
        rl_trainer(tmp_path, model, rows=Dataset.from_list(rows[3:4]), decoding=decoding)
    with pytest.raises(ValueError, match="^row 1 of the dataset has no masks .id 0. in its `input_ids`"):
        rl_trainer(tmp_path, model, rows=Dataset.from_list([rows[0], {"prompt": "", "input_ids": [1, 2]}]))
    with pytest.raises(ValueError, match="the dataset has no rows"):
        rl_trainer(tmp_path, rows=prompts().select([]))


def test_datasets_and_models_that_cannot_work(tmp_path: Path) -> None:
    whole = drafts(4).remove_columns("editable_mask")
    with pytest.raises(ValueError, match="no masks"):
        draft_trainer(tmp_path, rows=whole)
    with pytest.raises(ValueError, match="without `input_ids`"):
        draft_trainer(tmp_path, rows=drafts(4).remove_columns("input_ids"))
    with pytest.raises(ValueError, match="learned unmasking policy"):
        rl_trainer(tmp_path, wrapped(), decoding={"preset": "remedi"})
    args = RemaskGRPOConfig(str(tmp_path), per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        RemaskGRPOTrainer(tiny_remedi(), fives, args, None, processing_class=word_tokenizer())
    with pytest.raises(ValueError, match="`processing_class` is None"):
        RemaskGRPOTrainer(tiny_remedi(), fives, args, prompts())
    with pytest.raises(ValueError, match="`tools` is given"):
        RemaskGRPOTrainer(tiny_remedi(), fives, args, prompts(), processing_class=word_tokenizer(), tools=[print])
