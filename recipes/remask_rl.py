"""
Reinforcement of whole decoding runs: Remask RL of a RemeDi model, or the same for an RM model's own decisions.

    accelerate launch recipes/remask_rl.py  # RemeDi on Sudoku, on a CPU
    accelerate launch recipes/remask_rl.py --policy rm  # RM at the same forwards
    accelerate launch recipes/remask_rl.py --config recipes/configs/remask-rl-drafts.yaml  # the shipped Sudoku model
    accelerate launch recipes/remask_rl.py --config recipes/configs/remask-rl-words.yaml  # word problems, on a CPU
    accelerate launch --config_file recipes/accelerate/ddp_2gpu.yaml recipes/remask_rl.py \
        --config recipes/configs/remask-rl-llada-8b.yaml  # GSM8K, on GPUs; remask-rl-mbpp-llada-8b.yaml: programs

Begins with the model that `--start` names, or trains one first with the settings `sft`. Both are evaluated on the same
held-out rows with the same forward passes. What is done is not done again; what was stopped goes on.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trl import TrlParser

from hf_rm.tasks.remask.problems import ProblemArguments, as_dict, build_problems
from hf_rm.tasks.remask.report import report
from hf_rm.tasks.remask.stages import RemaskStages, Stage, training_settings
from hf_rm.tasks.text_recipe import with_default_config
from hf_rm.training.grpo import RemaskGRPOConfig

DEFAULT_CONFIG = Path(_HERE) / "configs" / "remask-rl-sudoku.yaml"
NAMES = {"remedi": "remask-sft", "rm": "rm"}


@dataclass
class RemaskRLRecipeArguments(ProblemArguments):
    """Arguments of this recipe, beside those of RemaskGRPOConfig."""

    policy: Literal["remedi", "rm"] = field(
        default="remedi", metadata={"help": "A learned unmasking policy, or Reflective Masking."}
    )
    start: str | None = field(
        default=None, metadata={"help": "A trained model of the policy; by default it is trained here first."}
    )
    sft: dict[str, Any] | str | None = field(
        default_factory=dict,
        metadata={"help": "Settings of the supervised stage: RemaskSFTArguments or RMTrainingArguments."},
    )
    sft_rm: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Those that differ with --policy rm, on top of `sft`."}
    )
    sft_remedi: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Those that differ with --policy remedi, on top of `sft`."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Train an adapter of this rank in both stages; 0: no adapter."}
    )


def stages_of(arguments: RemaskRLRecipeArguments, config: RemaskGRPOConfig) -> dict[str, Stage]:
    """The supervised stage, or what stands in for it, and the reinforcement."""
    policy = arguments.policy
    name = NAMES[policy]
    if arguments.start is not None:
        first = Stage("given", settings={"model": arguments.start, "policy": policy})
    else:
        own = as_dict(arguments.sft_rm if policy == "rm" else arguments.sft_remedi)
        shared = {"use_cpu": config.use_cpu, "bf16": config.bf16, "disable_tqdm": config.disable_tqdm}
        settings = {**shared, **as_dict(arguments.sft), **own}
        first = Stage("rm" if policy == "rm" else "remask", settings=settings)
    return {name: first, f"{name}+rl": Stage("rl", after=name, settings=training_settings(config))}


def main() -> None:
    """Both stages, and what each solves."""
    parser = TrlParser((RemaskRLRecipeArguments, RemaskGRPOConfig))
    arguments, config = parser.parse_args_and_config(with_default_config(DEFAULT_CONFIG))
    if arguments.canvas == "draft" and arguments.policy != "rm":
        raise ValueError("`canvas` is 'draft', but RemeDi's schedule begins with masks: pass --policy rm.")
    root, problems = Path(config.output_dir) / arguments.policy, build_problems(arguments)
    run = RemaskStages(arguments, problems, stages_of(arguments, config), root, lora_rank=arguments.lora_rank)
    report(run, [config.seed])


if __name__ == "__main__":
    main()
