"""
Sudoku revision: train a 0.8 M-parameter mask diffusion model to find and repair wrong cells, and prove it.

    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-demo.yaml       # a few minutes on a CPU
    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-best.yaml       # the shipped model
    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-paper.yaml      # the four variants of Table 2
    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-ablation.yaml   # x two laws x three seeds
    accelerate launch recipes/sudoku.py --eval_only model_cards/rm-sudoku --eval_boards 10000
    accelerate launch recipes/sudoku.py --config recipes/configs/sudoku-final.yaml      # its card, records and figures

Every run goes to its own folder under --output_dir. One that is finished is not repeated, one that was interrupted
continues from its last checkpoint.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from transformers import AutoModel
from transformers.utils import logging
from trl import TrlParser

import hf_rm  # noqa: F401  (registers the Auto classes)
from hf_rm import RMTrainingArguments
from hf_rm.evaluation import recall_table
from hf_rm.tasks.sudoku import CELLS, MASK_ID, evaluation_set, find_ceiling
from hf_rm.tasks.sudoku.arguments import SudokuArguments, check_run
from hf_rm.tasks.sudoku.card import publish, replace_block
from hf_rm.tasks.sudoku.evaluate import DECODINGS, SudokuRun, recall_by_history, revise_boards
from hf_rm.tasks.sudoku.evaluation_set import Source
from hf_rm.tasks.sudoku.report import (
    Record,
    ablation_markdown,
    ablation_tables,
    errors_table,
    make_record,
    own_recall_table,
    plot_rounds,
    results_table,
)
from hf_rm.tasks.sudoku.training import read_training, train_run
from hf_rm.training.stages import write_json
from hf_rm.visualize import Replay, write_html


def main() -> None:
    """Train and evaluate every run that the arguments name, or evaluate one model."""
    parser = TrlParser((SudokuArguments, RMTrainingArguments))
    parser.set_defaults(output_dir="outputs/sudoku")
    arguments, training = parser.parse_args_and_config()
    check_run(arguments, training)
    folder = Path(training.output_dir)
    records: list[Record] = []
    if arguments.eval_only is None:
        for variant in arguments.variants:
            for law in arguments.laws:
                for seed in arguments.seeds:
                    records += train_and_evaluate(arguments, training, variant, law, seed)
    if not PartialState().is_main_process:
        return
    for name in arguments.also_evaluate if arguments.eval_only is None else [arguments.eval_only]:
        shown = Path(arguments.write_card).name if arguments.write_card else name
        records += evaluate_model(arguments, AutoModel.from_pretrained(name), folder, name=shown)
    report(arguments, records, folder)
    if arguments.write_card is not None and arguments.eval_only is not None:
        publish(arguments.eval_only, arguments.write_card, records, command=command(), readme=arguments.readme)
        print(f"published: {arguments.write_card}")


def command() -> str:
    """What launched this process, as one types it."""
    return shlex.join(["accelerate", "launch", "recipes/sudoku.py", *sys.argv[1:]])


def train_and_evaluate(
    arguments: SudokuArguments, training: RMTrainingArguments, variant: str, law: str, seed: int
) -> list[Record]:
    """One run: its records, one a decoding; read back if this very evaluation was made before."""
    folder = train_run(arguments, training, variant, law, seed, command())
    if not PartialState().is_main_process:
        return []
    results, settings = folder / "results.json", evaluation_settings(arguments)
    if results.exists():
        known = json.loads(results.read_text(encoding="utf-8"))
        if known["settings"] == settings:
            print(f"finished before: {results} (delete {folder} to train again)")
            return known["records"]
    model = AutoModel.from_pretrained(folder)  # as it was saved: the trainer leaves a forward in its autocast
    # No weight depends on it, so it may change after the training.
    decoding = DECODINGS[arguments.revision_decoding]
    model.generation_config = model.generation_config.updated(max_steps=arguments.revision_steps, **decoding)
    model.generation_config.save_pretrained(folder)
    finished = read_training(folder) or {}
    labels = {"variant": variant, "law": law, "seed": seed, "train_cpu_minutes": finished["train_cpu_minutes"]}
    labels["steps"] = sum(stage["steps"] for stage in finished["stages"])
    records = evaluate_model(arguments, model, folder, name=f"{variant}, {law}, seed {seed}", **labels)
    write_json(results, {"settings": settings, "records": records})
    return records


def evaluation_settings(arguments: SudokuArguments) -> dict[str, Any]:
    """What the records of a trained model depend on, as JSON holds it."""
    names = ("revision_steps", "revision_decoding", "eval_seed", "decodings", "replay_boards")
    ceilings = [ceiling_of(arguments, source, count) for source, count in arguments.evaluation_sets]
    settings = {name: getattr(arguments, name) for name in names} | {
        "sets": [list(one) for one in arguments.evaluation_sets],
        "ceilings": [table is not None for table in ceilings],
    }
    return json.loads(json.dumps(settings))


def ceiling_of(arguments: SudokuArguments, source: Source, count: int) -> Any:
    """The saved ceiling of an evaluation set, if there is one."""
    return find_ceiling(arguments.ceiling_dir, source, count, arguments.eval_seed)


def evaluate_model(arguments: SudokuArguments, model: Any, folder: Path, name: str, **labels: Any) -> list[Record]:
    """Revise every evaluation set with every decoding; records, and an HTML replay of a few boards in `folder`."""
    records = []
    for source, count in arguments.evaluation_sets:
        initial, target = evaluation_set(source, count, arguments.eval_seed)
        ceiling = ceiling_of(arguments, source, count)
        if ceiling is None:
            words = f"--source {source} --boards {count} --seed {arguments.eval_seed}"
            logging.get_logger(__name__).warning(
                f"no saved ceiling of these boards: python benchmarks/sudoku_ceiling.py {words}"
            )
        # At most 1,000 boards: recall is counted in cells.
        recall = recall_by_history(model, initial[:1000], target[:1000])
        shown = name if len(arguments.evaluation_sets) == 1 else f"{name}, {source}"
        for decoding in arguments.decodings:
            run = revise_boards(model, initial, target, decoding, progress_bar=True)
            told = {"source": source, "eval_seed": arguments.eval_seed, "decoding": decoding, "recall": recall}
            records.append(make_record(run, ceiling, name=f"{shown} ({decoding})", **told, **labels))
            if len(records) == 1 and arguments.replay_boards:
                facts = {"model": name, "decoding": decoding, "boards": source, "seed": str(arguments.eval_seed)}
                page = write_replay(run, folder / "replay.html", arguments.replay_boards, facts)
                records[0]["replay_page"] = str(page)
    return records


def write_replay(run: SudokuRun, path: Path, boards: int, facts: dict[str, str]) -> Path:
    """An HTML page with the first boards' revision."""
    replays = [
        Replay.from_trajectory(
            run.states[:, row].astype(np.int64),
            run.actions[:, row],
            mask_token_id=MASK_ID,
            decode=lambda token: "." if token == MASK_ID else str(token),
            target=run.target[row].astype(np.int64),
            editable=[True] * CELLS,
            num_steps=int(run.num_steps[row]),
            layout="grid",
            title=f"Board {row}, {facts['model']} ({facts['decoding']})",
            metadata=facts,
        )
        for row in range(min(boards, len(run.final)))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_html(replays, path)


def report(arguments: SudokuArguments, records: list[Record], folder: Path) -> None:
    """Print the tables beside the paper's; save the records and the scaling curve."""
    console = Console(width=None if sys.stdout.isatty() else 190)
    boards = " and ".join(f"{count:,} {source}" for source, count in arguments.evaluation_sets)
    title = f"Sudoku revision, {boards} boards, seed {arguments.eval_seed}"
    paper = arguments.variants if len(arguments.variants) > 1 else ["hr-decay-her"]
    console.print(results_table(records, title, paper))
    seeded = [record for record in records if "seed" in record and record["decoding"] == arguments.decodings[0]]
    if len(arguments.seeds) > 1:
        for table in ablation_tables(seeded):
            console.print(table)
        if arguments.readme is not None:
            replace_block(arguments.readme, "ablation", ablation_markdown(seeded))
    else:
        first = [record for record in records if record["decoding"] == arguments.decodings[0]]
        found = [(record["name"], record["recall"]) for record in first]
        console.print(errors_table(records))
        console.print(recall_table(found, of="cells", digits=2))
        console.print(own_recall_table(records))
    saved = Path(arguments.records or folder / "records.json")
    write_json(saved, records)
    console.print(f"records: {saved}", soft_wrap=True)
    console.print(f"accuracy against rounds: {plot_rounds(records, folder / 'rounds.png')}", soft_wrap=True)
    for record in records:
        if "replay_page" in record:
            console.print(f"replay of {record['name']}: {record['replay_page']}", soft_wrap=True)


if __name__ == "__main__":
    main()
