"""
Remask SFT (RemeDi): a backbone learns to fill masks, a stream beside it which tokens to keep.

    accelerate launch recipes/remask_sft.py                                                   # Sudoku, on a CPU
    accelerate launch recipes/remask_sft.py --config recipes/configs/remask-sft-words.yaml    # word problems, on a CPU
    accelerate launch --config_file recipes/accelerate/ddp_2gpu.yaml recipes/remask_sft.py \
        --config recipes/configs/remask-sft-llada-8b.yaml                                     # GSM8K, on GPUs

The model is decoded on held-out rows, and its confidence held against correctness. What is done is not done again;
what was stopped goes on. `recipes/remask_rl.py --start OUTPUT_DIR/seed42/remask-sft` goes on with it by reinforcement.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import TrlParser

from hf_rm import RemaskSFTArguments
from hf_rm.tasks.remask.problems import ProblemArguments, as_dict, build_problems
from hf_rm.tasks.remask.report import report
from hf_rm.tasks.remask.stages import RemaskStages, Stage, training_settings
from hf_rm.tasks.text_recipe import with_default_config

DEFAULT_CONFIG = Path(_HERE) / "configs" / "remask-sft-sudoku.yaml"


@dataclass
class RemaskSFTRecipeArguments(ProblemArguments):
    """Arguments of this recipe, beside those of RemaskSFTArguments."""

    proposal: str = field(
        default="uniform", metadata={"help": "Wrong tokens of questions' answers: 'uniform', or 'top-k' of the base."}
    )
    wrapper: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Arguments of RemeDiConfig, such as policy_layers."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Train an adapter of this rank; 0 trains all weights."})


def main() -> None:
    """Train, evaluate, report."""
    parser = TrlParser((RemaskSFTRecipeArguments, RemaskSFTArguments))
    arguments, training = parser.parse_args_and_config(with_default_config(DEFAULT_CONFIG))
    settings = training_settings(training) | {"proposal": arguments.proposal, "wrapper": as_dict(arguments.wrapper)}
    stages = {"remask-sft": Stage("remask", settings=settings)}
    root, problems = Path(training.output_dir), build_problems(arguments)
    report(RemaskStages(arguments, problems, stages, root, lora_rank=arguments.lora_rank), [training.seed])


if __name__ == "__main__":
    main()
