"""
Code: from a base to vanilla SFT and to Reflective Masking on MBPP, graded by running the programs in a sandbox.

    accelerate launch recipes/mbpp.py --config recipes/configs/mbpp-tiny.yaml --train_data mbpp.jsonl    # on a CPU
    accelerate launch recipes/mbpp.py --base MODEL --train_data google-research-datasets/mbpp:full:train
    accelerate launch --config_file recipes/accelerate/ddp_2gpu.yaml recipes/mbpp.py \
        --config recipes/configs/mbpp-llada-8b.yaml
    accelerate launch recipes/mbpp.py --config recipes/configs/mbpp-llada-8b-24gb.yaml
    accelerate launch recipes/mbpp.py --more_tests humaneval=openai/openai_humaneval::test ...

Without test data 30 % of the problems are trained on and 70 % held out, by --split_seed.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from trl import TrlParser

from hf_rm import RMTrainingArguments
from hf_rm.tasks.code.problems import SPLIT_SEED
from hf_rm.tasks.code.tasks import CODE_TASKS, CodeTask, more_code_tests
from hf_rm.tasks.fresh_base import make_fresh_base
from hf_rm.tasks.post_training import PostTraining, PostTrainingArguments
from hf_rm.tasks.text_recipe import report


@dataclass
class MBPPArguments(PostTrainingArguments):
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    task: str = field(default="mbpp", metadata={"help": f"What is held out: {' or '.join(CODE_TASKS)}."})
    train_data: str | None = field(
        default=None, metadata={"help": "MBPP: a file, a folder or owner/name:config:split."}
    )
    test_data: str | None = field(
        default=None, metadata={"help": "Held-out problems; by default seven tenths of the training data."}
    )
    split_seed: int = field(
        default=SPLIT_SEED,
        metadata={"help": "Which problems those are: the split is by a hash of this and their identifiers."},
    )
    more_tests: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Further data to be evaluated on, each task=data, the task {' or '.join(CODE_TASKS)}, with a "
            "table of its own; what is in it is not trained on."
        },
    )
    fresh_base: bool = field(
        default=False,
        metadata={
            "help": "Make an untrained base of 0.4 M parameters with a tokenizer fitted on the training data, and "
            "begin with that: to see every part work where no weights are."
        },
    )
    timeout: float = field(default=10.0, metadata={"help": "Seconds a program may run."})
    isolation: Literal["full", "none"] = field(
        default="full",
        metadata={
            "help": "'full' runs the model's programs in the sandbox, and refuses to begin where the machine gives "
            "none. 'none' runs them unprotected: they can read and change what you can. For a machine with nothing to "
            "lose, such as a container of its own."
        },
    )


def main() -> None:
    """Train and evaluate every system that the arguments name."""
    arguments, training = TrlParser((MBPPArguments, RMTrainingArguments)).parse_args_and_config()
    sandbox: dict[str, Any] = {"timeout": arguments.timeout, "isolation": arguments.isolation}
    seed = arguments.split_seed
    task = CodeTask(arguments.task, arguments.train_data, arguments.test_data, split_seed=seed, **sandbox)
    more_tests = more_code_tests(arguments.more_tests, **sandbox)
    if arguments.fresh_base:
        arguments.base = str(fresh_base(task, Path(training.output_dir) / "base"))
    report(PostTraining(arguments, training, task, more_tests=more_tests))


def fresh_base(task: CodeTask, folder: Path) -> Path:
    """An untrained base; read back if it was made before."""
    with PartialState().main_process_first():
        if not (folder / "model.safetensors").exists():
            make_fresh_base([sample.prompt + sample.completion for sample in task.train()], folder)
    return folder


if __name__ == "__main__":
    main()
