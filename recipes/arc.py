"""
Multiple choice: what a model knew it should know after Reflective Masking too. ARC by likelihood, without decoding.

    accelerate launch recipes/arc.py --base MODEL --train_data allenai/ai2_arc:ARC-Challenge:train \
        --test_data allenai/ai2_arc:ARC-Challenge:test
    accelerate launch --config_file recipes/accelerate/ddp_2gpu.yaml recipes/arc.py \
        --config recipes/configs/arc-llada-8b.yaml
    accelerate launch recipes/arc.py --config recipes/configs/arc-llada-8b-24gb.yaml
    accelerate launch recipes/arc.py --config recipes/configs/arc-tiny.yaml --train_data FILE --test_data FILE

A stage that is done is not done again, one that was stopped goes on.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Literal, get_args

import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from trl import TrlParser

from hf_rm import ReflectiveGenerationConfig, RMTrainingArguments
from hf_rm.checks import check_number
from hf_rm.evaluation import evaluate_multiple_choice, paired_bootstrap, shown_interval, wilson_interval
from hf_rm.evaluation.multiple_choice import Normalise
from hf_rm.processes import gathered, own_share
from hf_rm.tasks._records import read_told
from hf_rm.tasks.multiple_choice import ChoiceProblem, read_arc
from hf_rm.tasks.post_training import PostTraining, PostTrainingArguments, Trained
from hf_rm.tasks.text import TextSample
from hf_rm.training.stages import write_json

BASELINES = ("base", "sft")
Verdicts = dict[str, bool | None]
"""By question whether the right choice won; None where the question is too long, which counts as wrong."""


@dataclass
class ArcArguments(PostTrainingArguments):
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    train_data: str = field(
        default="allenai/ai2_arc:ARC-Challenge:train",
        metadata={"help": "Data to train on: a file, a folder or owner/name:config:split."},
    )
    test_data: str = field(default="allenai/ai2_arc:ARC-Challenge:test", metadata={"help": "Held-out data."})
    likelihood_samples: int | None = field(
        default=None, metadata={"help": "Draws of the Monte-Carlo likelihood; one forward pass by default."}
    )
    normalise: Literal["none", "tokens", "characters"] = field(
        default="none", metadata={"help": "What a choice's score is divided by."}
    )
    # Nothing is decoded in the evaluation: no arguments of this recipe.
    rm_decoding: str = field(default="{}", init=False)
    curve_forwards: list[int] = field(default_factory=list, init=False)
    training_free: list[str] = field(default_factory=list, init=False)
    recall_samples: int = field(default=0, init=False)
    replay_samples: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.likelihood_samples is not None:
            what = "an integer of at least 1, or leave it out for one forward pass"
            check_number("likelihood_samples", self.likelihood_samples, 1, inf, what, int)
        if self.normalise not in get_args(Normalise):  # argparse checks the command line's, not a YAML file's
            raise ValueError(f"`normalise` is {self.normalise!r}: pass one of {', '.join(get_args(Normalise))}.")
        ReflectiveGenerationConfig(**self.decoding("sft"))  # the harvest decodes


class ArcTask:
    """Questions with their right answer as completion; what is left out of the data is told in `remarks`."""

    name = "arc"

    def __init__(self, train_data: str, test_data: str) -> None:
        self.train_data, self.test_data = train_data, test_data
        self.remarks: list[str] = []

    @cached_property
    def problems(self) -> list[ChoiceProblem]:
        """Held-out questions."""
        return self._read(self.test_data)

    def train(self) -> list[TextSample]:
        """Without questions that are held out too."""
        return self._learnt

    @cached_property
    def _learnt(self) -> list[TextSample]:
        held_out = {problem.question for problem in self.problems}
        problems = self._read(self.train_data)
        kept = [problem.sample for problem in problems if problem.question not in held_out]
        if not kept:
            raise ValueError(f"every question of {self.train_data} is held out: pass other `train_data`.")
        if len(kept) < len(problems):
            count = len(problems) - len(kept)
            self.remarks.append(f"{self.train_data}: {count:,} questions are held out, and not trained on")
        return kept

    def _read(self, source: str) -> list[ChoiceProblem]:
        """Of two questions with the same id the first stays."""
        problems, once = read_told(source, read_arc, self.remarks), dict[str, ChoiceProblem]()
        for problem in problems:
            once.setdefault(problem.key, problem)
        if len(once) < len(problems):
            count = len(problems) - len(once)
            self.remarks.append(f"{source}: {count:,} questions have the id of another one, and are left out")
        return list(once.values())

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
    problems = task.problems[: len(run.held_out())]  # which tells what was left out
    found = {(one.name, one.seed): choose(run, arguments, problems, one) for one in trained}
    if not PartialState().is_main_process:
        return
    records = [record(found, name, seed) for name, seed in found]
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(choice_table(records))
    too_long = records[0]["too_long"]
    if too_long:
        console.print(f"{len(too_long)} of {len(problems)} questions are too long, they count as wrong: {too_long}")
    write_json(run.root / "records.json", {"systems": records})
    console.print(f"records: {run.root / 'records.json'}", soft_wrap=True)


def choose(run: PostTraining, arguments: ArcArguments, problems: list[ChoiceProblem], one: Trained) -> Verdicts:
    """What a system chose, each process its share of the questions; read back if it was asked before."""
    share, place = own_share(problems)
    found: list[tuple[str, bool | None]] = []
    if share:
        result = evaluate_multiple_choice(
            one.load().to(PartialState().device).eval(),
            run.tokenizer,
            share,
            num_samples=arguments.likelihood_samples,
            normalise=arguments.normalise,
            batch_size=arguments.eval_batch_size,
            seed=arguments.eval_seed,
            folder=run.root / f"seed{one.seed}" / "evaluation" / f"{one.name}-choices" / place,
            name=one.label,
            progress_bar=PartialState().is_main_process and not run.training.disable_tqdm,
        )
        found = [
            (problem.key, None if problem.key in result.too_long else bool(right))
            for problem, right in zip(share, result.correct, strict=True)
        ]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    verdicts = dict(gathered(found))
    return {problem.key: verdicts[problem.key] for problem in problems}


def record(found: dict[tuple[str, int], Verdicts], name: str, seed: int) -> dict[str, Any]:
    """A system's accuracy with Wilson's interval, and by a paired bootstrap what it has less of base and of SFT."""
    verdicts = found[name, seed]
    right = [bool(verdict) for verdict in verdicts.values()]
    less: dict[str, list[float] | None] = {}
    for baseline in BASELINES:
        theirs = found.get((baseline, seed)) if name != baseline else None
        interval = theirs and paired_bootstrap(right, [*map(bool, theirs.values())])
        less[f"less_{baseline}"] = [*interval[:3]] if interval else None
    return {
        "system": name,
        "training_seed": seed,
        "questions": len(right),
        "too_long": [key for key, verdict in verdicts.items() if verdict is None],
        "accuracy": list(wilson_interval(sum(right), len(right))),
        **less,
        "right": verdicts,
    }


def choice_table(records: list[dict[str, Any]]) -> Table:
    """[`record`]s as a table."""
    table = Table(title="Multiple choice by likelihood", caption="95 % intervals in brackets")
    for heading in ("system", "questions", "accuracy %", *(f"less {name}, points" for name in BASELINES)):
        table.add_column(heading)
    for one in records:
        less = [one[f"less_{name}"] for name in BASELINES]
        shown = ["-" if interval is None else shown_interval(interval, sign="+") for interval in less]
        label = f"{one['system']}, seed {one['training_seed']}"
        table.add_row(label, f"{one['questions']:,}", shown_interval(one["accuracy"]), *shown)
    return table


if __name__ == "__main__":
    main()
