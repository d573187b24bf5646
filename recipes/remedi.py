"""
A policy of what to keep, learnt twice: supervised (Remask SFT), then by reinforcement of whole decoding runs.

    accelerate launch recipes/remedi.py                                                  # RemeDi on Sudoku, on a CPU
    accelerate launch recipes/remedi.py --policy rm                                      # RM at the same forwards
    accelerate launch recipes/remedi.py --config recipes/configs/remedi-words.yaml       # word problems
    accelerate launch recipes/remedi.py --config recipes/configs/remedi-llada-8b.yaml    # GSM8K, on GPUs

Both policies see the same rows and decode with the same number of forward passes; each is evaluated before and after
the reinforcement. The supervised stage is not repeated where its folder is there.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer, set_seed
from trl import TrlParser

from hf_rm import (
    RemaskSFTArguments,
    RemaskSFTTrainer,
    RemeDiForMaskedDiffusion,
    RMForMaskedDiffusion,
    RMTrainer,
    RMTrainingArguments,
)
from hf_rm.corruption import FixedProposal
from hf_rm.evaluation.statistics import mean_interval
from hf_rm.remedi_rm import RemeDiConfig
from hf_rm.tasks.math.tasks import MATH_TASKS, TEMPLATE, build_math_task
from hf_rm.tasks.sudoku import format_board, generate_boards
from hf_rm.tasks.sudoku.corruption import corrupt_boards
from hf_rm.tasks.sudoku.model import build_sudoku_model, build_sudoku_tokenizer, sudoku_config
from hf_rm.tasks.text import encode_samples
from hf_rm.tasks.text_recipe import with_default_config
from hf_rm.training import default_lora_config
from hf_rm.training.grpo import RemaskGRPOConfig, RemaskGRPOTrainer, greedy_answers
from hf_rm.training.rewards import format_reward, math_reward, sudoku_reward
from hf_rm.training.stages import claim_folder, write_json

DEFAULT_CONFIG = Path(_HERE) / "configs" / "remedi-sudoku.yaml"
Rows = list[dict[str, Any]]


@dataclass
class RemeDiArguments:
    """Arguments of this recipe, beside those of RemaskGRPOConfig."""

    policy: Literal["remedi", "rm"] = field(
        default="remedi", metadata={"help": "A learned unmasking policy, or Reflective Masking."}
    )
    task: str = field(default="sudoku", metadata={"help": f"'sudoku', or one of {', '.join(MATH_TASKS)}."})
    base: str | None = field(
        default=None, metadata={"help": "A name or folder to start from; a fresh model for 'sudoku'."}
    )
    canvas: Literal["masks", "draft"] = field(
        default="masks",
        metadata={"help": "Sudoku: fill in hidden cells, or (RM alone) revise boards with wrong ones."},
    )
    hidden_cells: list[int] = field(
        default_factory=lambda: [20, 40], metadata={"help": "Fewest and most cells that are hidden."}
    )
    num_layers: int = field(default=4, metadata={"help": "Layers of the fresh Sudoku model."})
    train_data: str | None = field(default=None, metadata={"help": "As for recipes/math.py."})
    test_data: str | None = field(default=None, metadata={"help": "As for recipes/math.py."})
    template: str = field(default=TEMPLATE, metadata={"help": "Of the prompt, with {question}."})
    sft: dict[str, Any] | str = field(
        default_factory=dict,
        metadata={"help": "Settings of the supervised stage: RemaskSFTArguments or RMTrainingArguments."},
    )
    sft_rm: dict[str, Any] | str = field(
        default_factory=dict, metadata={"help": "Those that differ with --policy rm, on top of `sft`."}
    )
    sft_remedi: dict[str, Any] | str = field(
        default_factory=dict, metadata={"help": "Those that differ with --policy remedi, on top of `sft`."}
    )
    decoding_rm: dict[str, Any] | str = field(
        default_factory=dict, metadata={"help": "Decoding with --policy rm, where `decoding` is RemeDi's."}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["valid", "conflicts"],
        metadata={"help": "Sudoku: 'valid', 'exact', 'conflicts'. Math: 'answer', 'format'."},
    )
    lora_rank: int | None = field(default=None, metadata={"help": "Train an adapter of this rank in both stages."})
    train_rows: int = field(default=4096, metadata={"help": "Rows made for training."})
    eval_rows: int = field(default=200, metadata={"help": "Held-out rows."})
    eval_batch_size: int = field(default=50, metadata={"help": "Rows decoded at once."})
    skip_rl: bool = field(default=False, metadata={"help": "Stop after the supervised stage."})


def main() -> None:
    """Both stages, and what each solves."""
    parser = TrlParser((RemeDiArguments, RemaskGRPOConfig))
    arguments, config = parser.parse_args_and_config(with_default_config(DEFAULT_CONFIG))
    if arguments.canvas == "draft" and arguments.policy != "rm":
        raise ValueError("canvas is 'draft', but RemeDi's schedule begins with masks: pass --policy rm.")
    if arguments.policy == "rm" and arguments.decoding_rm:
        config.decoding = _settings(arguments.decoding_rm)
    root = Path(config.output_dir) / arguments.policy
    config.output_dir = str(root / "rl")
    task = (SudokuRows if arguments.task == "sudoku" else MathRows)(arguments, config)
    set_seed(config.seed)
    model = supervised(arguments, task, root / "sft", config)
    records: dict[str, Any] = {"sft": evaluate(model, task, config, arguments)}
    if not arguments.skip_rl:
        # The adapter of the first stage is in the model, and goes on; so are the arguments it was loaded with.
        config.model_init_kwargs = None
        trainer = RemaskGRPOTrainer(
            model, task.rewards(), config, Dataset.from_list(task.prompts("train")), processing_class=task.tokenizer
        )
        trainer.train()
        trainer.save_model()
        records["rl"] = evaluate(trainer._own(), task, config, arguments)
        curve = ("reward", "rollout/num_forwards", "rollout/num_remasks")
        records["curve"] = [{name: e[name] for name in curve} for e in trainer.state.log_history if "reward" in e]
    if PartialState().is_main_process:
        write_json(root / "records.json", records)
        for stage in ("sft", "rl"):
            print(stage, json.dumps(records.get(stage)))
        print(f"records: {root / 'records.json'}")


class SudokuRows:
    """Boards: with hidden cells to fill in, or with wrong ones to revise."""

    def __init__(self, arguments: RemeDiArguments, config: RemaskGRPOConfig) -> None:
        self.arguments, self.config = arguments, config
        self.tokenizer = build_sudoku_tokenizer()
        self.new_tokens: int | None = None

    def model(self) -> Any:
        """A fresh one, or that of `base`."""
        if self.arguments.base is not None:
            return AutoModel.from_pretrained(self.arguments.base)
        if self.arguments.policy == "rm":
            model = build_sudoku_model(num_layers=self.arguments.num_layers)
            model.generation_config = model.generation_config.updated(editable="auto", patience=1, max_steps=None)
            return model
        own = sudoku_config(num_layers=self.arguments.num_layers)
        names = ("text_config", "mask_token_id", "position_groups", "attention_groups", "backbone_positions")
        return RemeDiForMaskedDiffusion(RemeDiConfig(**{name: getattr(own, name) for name in names}))

    def supervised(self) -> Any:
        """Solved boards, every cell of which may change, and where their wrong digits come from."""
        boards = self._boards("train")
        rows = [{"input_ids": board.tolist(), "idx": i} for i, board in enumerate(boards)]
        return rows, FixedProposal([0] + [1] * 9)

    def prompts(self, split: Literal["train", "test"]) -> Rows:
        """Boards to be completed or revised, with their solutions."""
        boards, rng = self._boards(split), np.random.default_rng([self.config.seed, split == "test"])
        if self.arguments.canvas == "draft":
            given, editable = corrupt_boards(boards, rng), np.ones(boards.shape, dtype=bool)
        else:
            least, most = self.arguments.hidden_cells
            count = rng.integers(least, most + 1, size=len(boards))
            editable = rng.random(boards.shape).argsort(1).argsort(1) < count[:, None]
            given = np.where(editable, 0, boards)
        return [
            {
                "prompt": format_board(ids),
                "input_ids": ids.tolist(),
                "editable_mask": mask.tolist(),
                "solution": format_board(board),
            }
            for ids, mask, board in zip(given, editable, boards, strict=True)
        ]

    def rewards(self) -> list[Any]:
        """Of whole boards: what is given, and in it what was written."""
        return [_of_whole_board(sudoku_reward(kind)) for kind in self.arguments.rewards]  # type: ignore[arg-type]

    def _boards(self, split: Literal["train", "test"]) -> Any:
        count = self.arguments.train_rows if split == "train" else self.arguments.eval_rows
        return generate_boards(count, seed=self.config.seed, split=split)


def _of_whole_board(reward: Any) -> Any:
    """A reward of the answer put into the board that it completes."""

    def whole(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        boards = []
        for ids, mask, written in zip(columns["input_ids"], columns["editable_mask"], completion_ids, strict=True):
            left = iter(written)
            boards.append(format_board([next(left) if m else i for i, m in zip(ids, mask, strict=True)]))
        return reward(prompts=prompts, completions=boards, **columns)

    whole.__name__ = reward.__name__
    return whole


class MathRows:
    """Questions with a final number: the made ones, or a data set's."""

    def __init__(self, arguments: RemeDiArguments, config: RemaskGRPOConfig) -> None:
        if arguments.base is None:
            raise ValueError(f"base is None: task {arguments.task!r} starts from a trained model, name one.")
        self.arguments, self.config = arguments, config
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.base)
        counts = arguments.train_rows, arguments.eval_rows
        self.task = build_math_task(
            arguments.task, arguments.train_data, arguments.test_data, arguments.template, *counts
        )
        self.new_tokens: int | None = config.max_completion_length

    def model(self) -> Any:
        """The base, wrapped for the policy; a wrapper as it is."""
        wrapper = RemeDiForMaskedDiffusion if self.arguments.policy == "remedi" else RMForMaskedDiffusion
        return wrapper.from_backbone(self.arguments.base, backbone_kwargs=self.config.model_init_kwargs or {})

    def supervised(self) -> Any:
        """Questions with worked answers."""
        length = self.config.max_completion_length
        longest = _settings(self.arguments.sft).get("max_length") or 10**9
        return encode_samples(self.task.train(), self.tokenizer, longest, length).rows, None

    def prompts(self, split: Literal["train", "test"]) -> Rows:
        """Questions with their answers."""
        samples = self.task.train() if split == "train" else self.task.test()[: self.arguments.eval_rows]
        return [{"prompt": sample.prompt, "answer": sample.answer} for sample in samples]

    def rewards(self) -> list[Any]:
        """Of the final answer, and of its form."""
        boxed = self.arguments.task == "math"
        made = {
            "answer": math_reward(method="math-verify" if boxed else "numeric"),
            "format": format_reward(r"\\boxed\{.+\}" if boxed else r"^#### -?[\d.,]+$", weight=0.1),
        }
        return [made[name] for name in self.arguments.rewards]


def _settings(given: dict[str, Any] | str) -> dict[str, Any]:
    return json.loads(given) if isinstance(given, str) else dict(given)


def supervised(arguments: RemeDiArguments, task: Any, folder: Path, config: RemaskGRPOConfig) -> Any:
    """The model after the supervised stage, read back where that was done before."""
    policy = arguments.policy
    settings = _settings(arguments.sft) | _settings(arguments.sft_rm if policy == "rm" else arguments.sft_remedi)
    claim_folder(folder, {"task": arguments.task, "base": arguments.base, "seed": config.seed, **settings})
    done = folder / "done"
    if done.exists():
        return (RMForMaskedDiffusion if policy == "rm" else RemeDiForMaskedDiffusion).from_pretrained(
            folder, **({"is_trainable": True} if arguments.lora_rank else {})
        )
    model = task.model()
    rows, proposal = task.supervised()
    adapter = default_lora_config(model, r=arguments.lora_rank) if arguments.lora_rank else None
    shared = {"report_to": "none", "use_cpu": config.use_cpu, "seed": config.seed, "bf16": config.bf16, **settings}
    trainer: Any
    if policy == "rm":
        args = RMTrainingArguments(str(folder), **shared)
        trainer = RMTrainer(model, args, train_dataset=rows, proposal=proposal, peft_config=adapter)
    else:
        remask = RemaskSFTArguments(str(folder), **shared)
        trainer = RemaskSFTTrainer(model, remask, train_dataset=rows, proposal=proposal, peft_config=adapter)
    trainer.train()
    trainer.save_model()
    done.touch()
    return trainer.model


def evaluate(model: Any, task: Any, config: RemaskGRPOConfig, arguments: RemeDiArguments) -> dict[str, Any]:
    """Mean rewards of held-out rows, decoded without chance, with 95 % intervals; forwards and re-masks a row."""
    rows = task.prompts("test")
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    written, counts = greedy_answers(own, rows, task.tokenizer, config, arguments.eval_batch_size)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    texts, prompts = task.tokenizer.batch_decode(written, skip_special_tokens=True), [row["prompt"] for row in rows]
    found: dict[str, Any] = dict(counts)
    for reward in task.rewards():
        values = reward(prompts=prompts, completions=texts, completion_ids=written, **columns)
        found[reward.__name__] = [value or 0.0 for value in values]
    return {name: list(mean_interval(np.array(values, dtype=float))) for name, values in found.items()}


if __name__ == "__main__":
    main()
