"""
Multiple choice: what a model knew it should know after Reflective Masking too. ARC by likelihood, without decoding.

    accelerate launch recipes/arc.py --base MODEL --train_data allenai/ai2_arc:ARC-Challenge:train \
        --test_data allenai/ai2_arc:ARC-Challenge:test
    accelerate launch --config_file recipes/accelerate/ddp_2gpu.yaml recipes/arc.py \
        --config recipes/configs/arc-llada-8b.yaml
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from trl import TrlParser

from hf_rm import RMTrainingArguments
from hf_rm.evaluation import evaluate_multiple_choice, paired_bootstrap, shown_interval, wilson_interval
from hf_rm.tasks.multiple_choice import ChoiceProblem, read_arc
from hf_rm.tasks.post_training import PostTraining, PostTrainingArguments, Trained
from hf_rm.tasks.text import TextSample
from hf_rm.training.stages import claim_folder, write_json


@dataclass
class ArcArguments(PostTrainingArguments):
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    train_data: str = field(default="allenai/ai2_arc:ARC-Challenge:train", metadata={"help": "Data to train on."})
    test_data: str = field(default="allenai/ai2_arc:ARC-Challenge:test", metadata={"help": "Held-out data."})
    likelihood_samples: int | None = field(
        default=None, metadata={"help": "Draws of the Monte-Carlo likelihood; one forward pass by default."}
    )
    normalise: Literal["none", "tokens", "characters"] = field(
        default="none", metadata={"help": "What a choice's score is divided by."}
    )


class ArcTask:
    """Questions with their right answer as completion."""

    name = "arc"

    def __init__(self, train_data: str, test_data: str) -> None:
        self.train_data, self.test_data = train_data, test_data

    @cached_property
    def problems(self) -> list[ChoiceProblem]:
        """Held-out questions."""
        return read_arc(self.test_data)

    def train(self) -> list[TextSample]:
        """Without questions that are held out too."""
        held_out = {problem.question for problem in self.problems}
        return [problem.sample for problem in read_arc(self.train_data) if problem.question not in held_out]

    def test(self) -> list[TextSample]:
        """The held-out questions with their right answer."""
        return [problem.sample for problem in self.problems]

    def grade(self, sample: TextSample, text: str) -> bool:
        """Whether a completion is the right choice, word for word."""
        return text.strip() == sample.answer


def main() -> None:
    """Train every system that the arguments name, and let each choose."""
    arguments, training = TrlParser((ArcArguments, RMTrainingArguments)).parse_args_and_config()
    task = ArcTask(arguments.train_data, arguments.test_data)
    run = PostTraining(arguments, training, task)
    trained = run.systems()
    if not PartialState().is_main_process:
        return
    verdicts = {one.label: choose(run, arguments, task.problems, one) for one in trained}
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(choice_table(verdicts, {one.label: f"sft, seed {one.seed}" for one in trained}))
    write_json(run.root / "records.json", {name: [int(right) for right in row] for name, row in verdicts.items()})
    console.print(f"records: {run.root / 'records.json'}", soft_wrap=True)


def choose(run: PostTraining, arguments: ArcArguments, problems: list[ChoiceProblem], one: Trained) -> list[bool]:
    """Whether a system chose right, question by question; read back if it was asked before."""
    folder = run.root / f"seed{one.seed}" / "evaluation" / f"{one.name}-choices"
    settings: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("test_data", "likelihood_samples", "normalise", "eval_samples", "eval_seed")
    }
    claim_folder(folder, settings)
    path = folder / "verdicts.json"
    if not path.exists():
        model = one.load().to(PartialState().device).eval()
        result = evaluate_multiple_choice(
            model,
            run.tokenizer,
            problems[: arguments.eval_samples],
            num_samples=arguments.likelihood_samples,
            normalise=arguments.normalise,
            batch_size=arguments.eval_batch_size,
            seed=arguments.eval_seed,
            name=one.label,
            progress_bar=True,
        )
        write_json(path, result.correct.tolist())
    verdicts: list[bool] = json.loads(Path(path).read_text(encoding="utf-8"))
    return verdicts


def choice_table(verdicts: dict[str, list[bool]], baselines: dict[str, str]) -> Table:
    """Accuracy with Wilson's interval, and the difference to SFT by a paired bootstrap."""
    table = Table(title="Multiple choice by likelihood", caption="95 % intervals in brackets")
    for heading in ("system", "questions", "accuracy %", "less sft, points"):
        table.add_column(heading)
    for name, right in verdicts.items():
        shown = shown_interval(wilson_interval(sum(right), len(right)))
        baseline, less = baselines[name], "-"
        if baseline in verdicts and baseline != name:
            less = shown_interval(paired_bootstrap(right, verdicts[baseline]), sign="+")
        table.add_row(name, f"{len(right):,}", shown, less)
    return table


if __name__ == "__main__":
    main()
