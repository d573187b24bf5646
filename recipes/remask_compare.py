"""
One command, one table: vanilla SFT, Remask SFT, RM, and each with reinforcement, at equal compute and equal forwards.

    accelerate launch recipes/remask_compare.py                                                      # word problems
    accelerate launch recipes/remask_compare.py --seeds 0                                            # one seed of them
    accelerate launch recipes/remask_compare.py --config recipes/configs/remask-compare-sudoku.yaml  # and a ceiling

A configuration names the stages and what each begins with. Each stage of each seed has a folder: what is done is not
done again, what was stopped goes on. So seeds can be run one by one or side by side; all together print the table.
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

from hf_rm.tasks.remask.problems import ProblemArguments, as_dict, build_problems
from hf_rm.tasks.remask.report import report
from hf_rm.tasks.remask.stages import RemaskStages, read_stages
from hf_rm.tasks.text_recipe import with_default_config

DEFAULT_CONFIG = Path(_HERE) / "configs" / "remask-compare-words.yaml"


@dataclass
class CompareArguments(ProblemArguments):
    """Arguments of this recipe."""

    output_dir: str = field(default="outputs/remask-compare", metadata={"help": "Where everything goes."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the training."})
    stages: dict[str, Any] | str | None = field(
        default_factory=dict,
        metadata={
            "help": "By name: `trainer` (sft, remask, rm, rl, given), `after`, `shown`, and settings of the trainer."
        },
    )
    supervised: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Settings of all supervised stages, which a stage's own go before."}
    )
    rl: dict[str, Any] | str | None = field(default_factory=dict, metadata={"help": "The same for reinforcement."})
    shared: dict[str, Any] | str | None = field(default_factory=dict, metadata={"help": "The same for all trainers."})
    baseline: str | None = field(
        default=None, metadata={"help": "The stage that differences are taken to; the first."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Train adapters of this rank; 0 trains all weights."})


def main() -> None:
    """Train and evaluate every stage of every seed."""
    (arguments,) = TrlParser((CompareArguments,)).parse_args_and_config(with_default_config(DEFAULT_CONFIG))
    stages = read_stages(as_dict(arguments.stages), as_dict(arguments.supervised), as_dict(arguments.rl))
    problems, root = build_problems(arguments), Path(arguments.output_dir)
    run = RemaskStages(arguments, problems, stages, root, as_dict(arguments.shared), arguments.lora_rank)
    report(run, arguments.seeds, arguments.baseline)


if __name__ == "__main__":
    main()
