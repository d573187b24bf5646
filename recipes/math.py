"""
Math: from a base to vanilla SFT and to Reflective Masking on one budget, and what each solves.

    accelerate launch recipes/math.py                                               # embedded default, on a CPU
    accelerate launch recipes/math.py --config recipes/configs/math-compare.yaml    # the whole comparison, three seeds
    accelerate launch --config_file recipes/accelerate/ddp_2gpu.yaml recipes/math.py \
        --config recipes/configs/math-llada-8b-paper.yaml                           # the paper's setting
    accelerate launch recipes/math.py --config recipes/configs/math-llada-8b-24gb.yaml

A stage that is done is not done again, one that was stopped goes on.
"""

import os
import sys

# This file must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

from dataclasses import dataclass, field
from pathlib import Path

from trl import TrlParser

from hf_rm import RMTrainingArguments
from hf_rm.tasks.math.tasks import (
    MATH_DATA,
    MATH_TASKS,
    TEMPLATE,
    build_math_task,
    more_math_tests,
    more_math_training,
)
from hf_rm.tasks.post_training import PostTraining, PostTrainingArguments
from hf_rm.tasks.text_recipe import report, with_default_config

DEFAULT_CONFIG = Path(_HERE) / "configs" / "math-tiny.yaml"


@dataclass
class MathArguments(PostTrainingArguments):
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    task: str = field(default="word-problems", metadata={"help": f"One of {', '.join(MATH_TASKS)}."})
    train_data: str | None = field(
        default=None,
        metadata={"help": "A file, a folder or owner/name:config:split, such as openai/gsm8k:main:train."},
    )
    test_data: str | None = field(
        default=None, metadata={"help": "Held-out data; by default a tenth of the training data."}
    )
    more_train: list[str] = field(
        default_factory=list,
        metadata={"help": f"Further data to train on, each task=data, the task one of {', '.join(MATH_DATA)}."},
    )
    more_tests: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Further data to be evaluated on, each task=data, with a table of its own; what is in it is not "
            "trained on. minerva=EleutherAI/hendrycks_math is MATH's test set by subject."
        },
    )
    template: str = field(default=TEMPLATE, metadata={"help": "Of the prompt, with {question}."})
    made_train: int = field(default=20_000, metadata={"help": "Training problems made for 'word-problems'."})
    made_test: int = field(default=1000, metadata={"help": "Held-out problems made for 'word-problems'."})


def main() -> None:
    """Train and evaluate every system that the arguments name."""
    parser = TrlParser((MathArguments, RMTrainingArguments))
    arguments, training = parser.parse_args_and_config(with_default_config(DEFAULT_CONFIG))
    task = build_math_task(
        arguments.task,
        arguments.train_data,
        arguments.test_data,
        arguments.template,
        arguments.made_train,
        arguments.made_test,
    )
    more_train = more_math_training(arguments.more_train, arguments.template)
    more_tests = more_math_tests(arguments.more_tests, arguments.template)
    report(PostTraining(arguments, training, task, more_train, more_tests))


if __name__ == "__main__":
    main()
