"""
Sudoku revision: train a 0.8 M-parameter mask diffusion model to find and repair wrong cells, and prove it.

    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-demo.yaml       # a few minutes on a CPU
    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-best.yaml       # the shipped model
    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-paper.yaml      # the four variants of Table 2
    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-ablation.yaml   # x two laws x three seeds
    accelerate launch recipes/sudoku.py --eval_only model_cards/rm-sudoku --eval_boards 10000

Every run goes to its own folder under --output_dir. One that is finished is not repeated, one that was interrupted
continues from its last checkpoint.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from rich.console import Console
from transformers import AutoModel, set_seed
from transformers.trainer_utils import SchedulerType, get_last_checkpoint
from transformers.utils import logging
from trl import TrlParser

import hf_rm  # noqa: F401  (registers the Auto classes)
from hf_rm import RMForMaskedDiffusion, RMTrainer, RMTrainingArguments
from hf_rm.corruption import FixedProposal
from hf_rm.evaluation import recall_table
from hf_rm.hub import save_for_hub
from hf_rm.tasks.sudoku import CELLS, MASK_ID, VOCAB_SIZE, evaluation_set, generate_boards, load_ceiling
from hf_rm.tasks.sudoku.ceiling import CeilingTable, boards_digest
from hf_rm.tasks.sudoku.evaluate import DECODINGS, SudokuRun, recall_by_history, revise_boards
from hf_rm.tasks.sudoku.model import VARIANTS, build_sudoku_model, build_sudoku_tokenizer
from hf_rm.tasks.sudoku.report import (
    Record,
    ablation_table,
    errors_table,
    make_record,
    plot_rounds,
    results_table,
)
from hf_rm.training.stages import claim_folder, write_json
from hf_rm.visualize import Replay, write_html


@dataclass
class SudokuArguments:
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    variants: list[str] = field(
        default_factory=lambda: ["hr-decay-her"],
        metadata={"help": f"Histories to train: any of {', '.join(VARIANTS)}."},
    )
    laws: list[str] = field(
        default_factory=lambda: ["attempts+pool"],
        metadata={"help": "Trajectory laws to train with, each with '+pool' for on-policy rows or without."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Training seeds."})
    structured: bool = field(
        default=True, metadata={"help": "Row, column and box structure; otherwise full attention."}
    )
    num_layers: int = field(default=6, metadata={"help": "Layers of the network."})
    intermediate_size: int = field(default=240, metadata={"help": "Width of the feed-forward layers."})
    finish_steps: list[int] = field(
        default_factory=list, metadata={"help": "Steps of each finishing stage: mostly pool rows, which live longer."}
    )
    finish_pool_fraction: float = field(default=0.75, metadata={"help": "Share of pool rows in a finishing stage."})
    finish_pool_max_age: int = field(default=32, metadata={"help": "Steps a row stays in the pool there, at most."})
    revision_steps: int = field(default=256, metadata={"help": "Most steps of a revision, saved with the model."})
    eval_only: str | None = field(
        default=None, metadata={"help": "Evaluate this model (a folder or Hub name) and stop."}
    )
    also_evaluate: list[str] = field(
        default_factory=list, metadata={"help": "Further models (folders or Hub names) for the table."}
    )
    eval_source: Literal["generated", "real"] = field(
        default="generated", metadata={"help": "Boards of the generator's test split, or published ones."}
    )
    eval_boards: int = field(default=1000, metadata={"help": "Boards of the evaluation set."})
    eval_seed: int = field(default=20261122, metadata={"help": "Seed of the evaluation set; training never sees it."})
    decodings: list[str] = field(
        default_factory=lambda: ["eq1", "threshold"], metadata={"help": f"Any of {', '.join(DECODINGS)}."}
    )
    ceiling_dir: str = field(
        default="benchmarks/results", metadata={"help": "Where sudoku_ceiling.py keeps its results."}
    )
    replay_boards: int = field(default=3, metadata={"help": "Boards shown in the HTML replay."})


def main() -> None:
    """Train and evaluate every run that the arguments name, or evaluate one model."""
    arguments, training = TrlParser((SudokuArguments, RMTrainingArguments)).parse_args_and_config()
    records: list[Record] = []
    if arguments.eval_only is None:
        for variant in arguments.variants:
            for law in arguments.laws:
                for seed in arguments.seeds:
                    records += train_and_evaluate(arguments, training, variant, law, seed)
    if not PartialState().is_main_process:
        return
    for name in arguments.also_evaluate if arguments.eval_only is None else [arguments.eval_only]:
        model = AutoModel.from_pretrained(name)
        recall = recall_by_history(model, *recall_boards(arguments))
        records += evaluate_model(arguments, model, Path(training.output_dir), name=name, recall=recall)
    report(arguments, records, Path(training.output_dir))


def train_and_evaluate(
    arguments: SudokuArguments, training: RMTrainingArguments, variant: str, law: str, seed: int
) -> list[Record]:
    """One run: its records, one a decoding; read back if the run was finished before."""
    folder = Path(training.output_dir) / f"{variant}_{law}_seed{seed}"
    args = copy.deepcopy(training)
    args.output_dir, args.seed = str(folder), seed
    args.law, pool = law.removesuffix("+pool"), law.endswith("+pool")
    args.pool_fraction = training.pool_fraction if pool else 0.0
    claim_folder(folder, run_settings(arguments, args))
    results = folder / f"results_{arguments.eval_source}_{arguments.eval_seed}_{arguments.eval_boards}.json"
    if results.exists():
        print(f"finished before: {results} (delete {folder} to train again)")
        return json.loads(results.read_text())
    trained_before = (folder / "model.safetensors").exists()  # but not evaluated
    cpu_minutes = None if trained_before else train(arguments, args, variant, folder)
    if not PartialState().is_main_process:
        return []
    model = AutoModel.from_pretrained(folder)  # as it was saved: the trainer leaves a forward in its autocast
    labels = {"variant": variant, "law": law, "seed": seed, "train_cpu_minutes": cpu_minutes, "steps": args.max_steps}
    labels["recall"] = recall_by_history(model, *recall_boards(arguments))
    records = evaluate_model(arguments, model, folder, name=f"{variant}, {law}, seed {seed}", **labels)
    write_json(results, records)
    return records


_TRAINING_SETTINGS = (
    "max_steps",
    "per_device_train_batch_size",
    "learning_rate",
    "muon_learning_rate",
    "horizon",
    "max_attempts",
    "min_corruption_rate",
    "max_corruption_rate",
    "pool_fraction",
    "pool_start",
    "pool_start_step",
    "pool_max_age",
)
_RECIPE_SETTINGS = (
    "structured",
    "num_layers",
    "intermediate_size",
    "finish_steps",
    "finish_pool_fraction",
    "finish_pool_max_age",
)


def run_settings(arguments: SudokuArguments, args: RMTrainingArguments) -> dict[str, Any]:
    """What the trained weights depend on."""
    settings = {name: getattr(args, name) for name in _TRAINING_SETTINGS}
    return settings | {name: getattr(arguments, name) for name in _RECIPE_SETTINGS}


def train(arguments: SudokuArguments, args: RMTrainingArguments, variant: str, folder: Path) -> float:
    """Train and save a model, continuing from the last checkpoints; CPU minutes of this process."""
    set_seed(args.seed)
    size = {"num_layers": arguments.num_layers, "intermediate_size": arguments.intermediate_size}
    model = build_sudoku_model(variant, structured=arguments.structured, **size)
    model.generation_config = model.generation_config.updated(max_steps=arguments.revision_steps)
    began = time.process_time()
    run_stage(model, args)
    for stage, steps in enumerate(arguments.finish_steps, start=1):
        run_stage(model, finishing_arguments(arguments, args, stage, steps))
    if PartialState().is_main_process:
        save_for_hub(model, folder, tokenizer=build_sudoku_tokenizer())
    return (time.process_time() - began) / 60


def run_stage(model: RMForMaskedDiffusion, args: RMTrainingArguments) -> None:
    """Train `model` in place on boards that no other stage sees."""
    proposal = FixedProposal([0] + [1] * (VOCAB_SIZE - 1))
    trainer = RMTrainer(model, args, train_dataset=training_boards(args), proposal=proposal)
    folder = Path(args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)


def finishing_arguments(
    arguments: SudokuArguments, args: RMTrainingArguments, stage: int, steps: int
) -> RMTrainingArguments:
    """A short last stage: mostly pool rows, which stay until they come to rest, as long as decoding may take."""
    finish = copy.deepcopy(args)
    finish.output_dir, finish.seed = str(Path(args.output_dir) / f"finish{stage}"), args.seed + stage * _STAGE_SEED
    finish.max_steps, finish.pool_start_step = steps, 0
    finish.pool_fraction, finish.pool_max_age = arguments.finish_pool_fraction, arguments.finish_pool_max_age
    finish.learning_rate, finish.muon_learning_rate = (
        args.learning_rate / 2,
        (args.muon_learning_rate or 0) / 2 or None,
    )
    finish.lr_scheduler_type, finish.lr_scheduler_kwargs, finish.warmup_steps = SchedulerType.COSINE, {}, 20
    return finish


_STAGE_SEED = 1_000_000


class BoardRows:
    """Solved boards as rows for the trainer."""

    def __init__(self, boards: np.ndarray) -> None:
        self.boards = boards

    def __len__(self) -> int:
        return len(self.boards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.boards[index], "idx": index}


def training_boards(args: RMTrainingArguments) -> BoardRows:
    """As many boards as the run will look at, so that none comes twice; the seed is the run's own."""
    count = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return BoardRows(generate_boards(count, args.seed, split="train"))


def evaluate_model(arguments: SudokuArguments, model: Any, folder: Path, name: str, **labels: Any) -> list[Record]:
    """Revise the evaluation set with every decoding; records, and an HTML replay of a few boards in `folder`."""
    initial, target = evaluation_set(arguments.eval_source, arguments.eval_boards, arguments.eval_seed)
    ceiling = find_ceiling(arguments, initial, target)
    records = []
    for decoding in arguments.decodings:
        run = revise_boards(model, initial, target, decoding, progress_bar=True)
        source = {"source": arguments.eval_source, "eval_seed": arguments.eval_seed, "decoding": decoding}
        records.append(make_record(run, ceiling, name=f"{name} ({decoding})", **source, **labels))
        if decoding == arguments.decodings[0]:
            page = write_replay(run, folder / "replay.html", arguments.replay_boards, name)
            records[-1]["replay_page"] = str(page)
    return records


def recall_boards(arguments: SudokuArguments) -> tuple[np.ndarray, np.ndarray]:
    """At most 1,000 boards of the evaluation set: recall is counted in cells."""
    return evaluation_set(arguments.eval_source, min(arguments.eval_boards, 1000), arguments.eval_seed)


def find_ceiling(arguments: SudokuArguments, initial: np.ndarray, target: np.ndarray) -> CeilingTable | None:
    """The saved ceiling of these very boards, or of a larger set that begins with them."""
    for path in sorted(Path(arguments.ceiling_dir).glob("*.npz")):
        table = load_ceiling(path)
        settings = table.settings
        same = settings.get("source") == arguments.eval_source and settings.get("seed") == arguments.eval_seed
        if same and len(table.credit) >= len(initial):
            whole = evaluation_set(arguments.eval_source, len(table.credit), arguments.eval_seed)
            if table.digest == boards_digest(*whole):
                return table
    logging.get_logger(__name__).warning(
        "no saved ceiling of these boards: python benchmarks/sudoku_ceiling.py makes one"
    )
    return None


def write_replay(run: SudokuRun, path: Path, boards: int, name: str) -> Path:
    """An HTML page with the first boards' revision."""
    replays = []
    for row in range(min(boards, len(run.final))):
        replays.append(
            Replay.from_trajectory(
                run.states[:, row].astype(np.int64),
                run.actions[:, row],
                mask_token_id=MASK_ID,
                decode=lambda token: "." if token == MASK_ID else str(token),
                target=run.target[row].astype(np.int64),
                editable=[True] * CELLS,
                num_steps=int(run.num_steps[row]),
                layout="grid",
                title=f"Board {row}, {name}",
            )
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_html(replays, path)


def report(arguments: SudokuArguments, records: list[Record], folder: Path) -> None:
    """Print the table beside the paper's; save the records and the scaling curve."""
    console = Console(width=None if sys.stdout.isatty() else 190)
    title = f"Sudoku revision, {arguments.eval_boards} {arguments.eval_source} boards, seed {arguments.eval_seed}"
    paper = arguments.variants if len(arguments.variants) > 1 else ["hr-decay-her"]
    console.print(results_table(records, title, paper))
    seeded = [record for record in records if "seed" in record and record["decoding"] == arguments.decodings[0]]
    if len(arguments.seeds) > 1:
        console.print(ablation_table(seeded))
    else:
        console.print(errors_table(records))
        first = [record for record in records if record["decoding"] == arguments.decodings[0]]
        found = [(record["name"], record["recall"]) for record in first]
        console.print(recall_table(found, of="cells", digits=2))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "records.json", records)
    console.print(f"records: {folder / 'records.json'}", soft_wrap=True)
    console.print(f"accuracy against rounds: {plot_rounds(records, folder / 'rounds.png')}", soft_wrap=True)
    for record in records:
        if "replay_page" in record:
            console.print(f"replay of {record['name']}: {record['replay_page']}", soft_wrap=True)


if __name__ == "__main__":
    main()
