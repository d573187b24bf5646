"""
Image editing: train a small mask diffusion model to change what was asked and leave the rest alone.

    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit-demo.yaml   # minutes on a CPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit-cpu.yaml    # coarse tokens, on a CPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit.yaml        # the table; wants a GPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit.yaml --train_pairs train.jsonl \
        --eval_pairs eval.jsonl                                            # your pictures, in the form of ImgEdit

Systems of one size under one budget of steps: `rm` revises the source's tokens and reads its history, `rm-no-hr` reads
none, `sft` is vanilla masked-diffusion fine-tuning, which regenerates the whole canvas. Beside them stand copying the
source and the tokenizer's limit. A run that is finished is not repeated, one that was interrupted continues.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import copy
import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from rich.console import Console
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from hf_rm import RMForMaskedDiffusion, RMTrainingArguments
from hf_rm.corruption import build_law
from hf_rm.tasks.image_editing import (
    EditExamples,
    PatchCodebook,
    fit_codebook,
    generate_edits,
    load_codebook,
)
from hf_rm.tasks.image_editing.card import write_image_card
from hf_rm.tasks.image_editing.collator import EditSFTCollator, edit_collator
from hf_rm.tasks.image_editing.edit import EditRun
from hf_rm.tasks.image_editing.editor import ImageEditor
from hf_rm.tasks.image_editing.layout import MASK_ID, EditLayout, EditRows, edit_layout, pairs_layout
from hf_rm.tasks.image_editing.model import build_image_edit_model
from hf_rm.tasks.image_editing.pairs import EditPairs, load_edit_pairs
from hf_rm.tasks.image_editing.report import (
    Record,
    differences_table,
    measure,
    pooled,
    reference_records,
    results_tables,
    success_by_operation,
)
from hf_rm.tasks.image_editing.sheets import write_edit_sheet, write_revision_gif
from hf_rm.tasks.image_editing.trainer import ImageEditTrainer
from hf_rm.tasks.remask.problems import as_dict
from hf_rm.tasks.sudoku.model import VARIANTS
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer
from hf_rm.training.stages import claim_folder, write_json
from hf_rm.visualize._files import replacing

SYSTEMS: dict[str, dict[str, str]] = {
    "rm": {"variant": "hr-decay-her", "decoding": "revise"},
    "rm-no-hr": {"variant": "no-hr", "decoding": "revise"},
    "sft": {"variant": "no-hr", "decoding": "regenerate"},
}
_CODEBOOK_SEED, _CODEBOOK_PICTURES = 11, 1200


@dataclass
class ImageEditArguments:
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    systems: list[str] = field(
        default_factory=lambda: ["rm", "rm-no-hr", "sft"], metadata={"help": f"Any of {', '.join(SYSTEMS)}."}
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Training seeds."})
    train_edits: int = field(default=20000, metadata={"help": "Composed edits to train on; more steps repeat them."})
    hidden_size: int = field(default=160, metadata={"help": "Width of the network."})
    intermediate_size: int = field(default=480, metadata={"help": "Width of the feed-forward layers."})
    num_layers: int = field(default=6, metadata={"help": "Layers of the network."})
    num_heads: int = field(default=5, metadata={"help": "Attention heads; the first ties a cell to its source."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "'eager' trains fastest on a CPU."})
    patch: int = field(default=4, metadata={"help": "Pixels of a token: 4, the package's codebook, or one is fitted."})
    codes: int = field(default=512, metadata={"help": "Size of a fitted codebook."})
    cell: int = field(default=1, metadata={"help": "Objects begin and end on multiples of this many pixels."})
    emoji: int | None = field(default=None, metadata={"help": "So many emoji of each split; all by default."})
    text_drop: float = field(default=0.1, metadata={"help": "Probability that a row loses its instruction."})
    image_drop: float = field(default=0.1, metadata={"help": "Probability that a row loses its source picture."})
    first_states: float = field(
        default=0.5, metadata={"help": "Share of training rows as decoding begins: the source, no history."}
    )
    false_alarms: float = field(
        default=0.02, metadata={"help": "Share of the unedited canvas that is corrupted too: to be taken back."}
    )
    start: dict[str, Any] | str = field(
        default_factory=dict,
        metadata={
            "help": "What all systems of a seed begin with: vanilla SFT with these settings (max_steps, "
            "learning_rate, ...) in place of the others. None: from scratch."
        },
    )
    unlikelihood_weight: float = field(default=0.1, metadata={"help": "Weight of -log(1 - p(M)) off the edit."})
    eval_split: Literal["dev", "test_photos", "test"] = field(
        default="test", metadata={"help": "'test': unseen emoji and photos; 'test_photos': unseen photos alone."}
    )
    eval_edits: int = field(default=500, metadata={"help": "Held-out edits."})
    eval_seed: int = field(default=20261122, metadata={"help": "Seed of the held-out edits."})
    sheet_edits: int = field(default=24, metadata={"help": "Edits drawn on the sheet, taken at random by seed."})
    train_pairs: str | None = field(
        default=None, metadata={"help": "JSON lines of your own edits, in place of composed ones; with eval_pairs."}
    )
    eval_pairs: str | None = field(default=None, metadata={"help": "JSON lines of held-out edits."})
    size: int = field(default=64, metadata={"help": "Side of your pictures after the shared square crop, in pixels."})
    card: str | None = field(
        default=None, metadata={"help": "Where to put the first system of the first seed, with a model card."}
    )


def main() -> None:
    """Train and evaluate every system and seed; print the table."""
    arguments, training = TrlParser((ImageEditArguments, RMTrainingArguments)).parse_args_and_config()
    unknown = set(arguments.systems) - set(SYSTEMS)
    if unknown:
        raise ValueError(f"`systems` names {sorted(unknown)}: pass any of {', '.join(SYSTEMS)}.")
    if (arguments.train_pairs is None) != (arguments.eval_pairs is None):
        raise ValueError("`train_pairs` and `eval_pairs` go together: pass both, or neither for composed edits.")
    with PartialState().main_process_first():
        book = codebook(arguments, Path(training.output_dir))
    examples = held_out(arguments)
    records: list[Record] = []
    for system in arguments.systems:
        for seed in arguments.seeds:
            editor, minutes = trained_editor(arguments, training, system, seed, book)
            if PartialState().is_main_process:
                folder = run_folder(training, system, seed)
                records.append(evaluate(arguments, editor, system, seed, examples, folder, minutes))
    if PartialState().is_main_process:
        report(arguments, training, records, examples, book)


def training_edits(arguments: ImageEditArguments, seed: int, count: int | None = None) -> EditExamples | EditPairs:
    """Users' pairs, or composed edits as the arguments want them."""
    if arguments.train_pairs is not None:
        return load_edit_pairs(arguments.train_pairs, arguments.size)
    return compose(arguments, arguments.train_edits if count is None else count, seed)


def held_out(arguments: ImageEditArguments) -> EditExamples | EditPairs:
    """What is evaluated."""
    if arguments.eval_pairs is not None:
        return load_edit_pairs(arguments.eval_pairs, arguments.size)
    return compose(arguments, arguments.eval_edits, arguments.eval_seed, arguments.eval_split)


def compose(arguments: ImageEditArguments, count: int, seed: int, split: str = "train") -> EditExamples:
    """Composed edits."""
    return generate_edits(count, seed, split, cell=arguments.cell, emoji=arguments.emoji)


def codebook(arguments: ImageEditArguments, folder: Path) -> PatchCodebook:
    """The package's codebook of 4 px patches, or one of other patches, fitted on training pictures and kept."""
    if arguments.patch == 4:
        return load_codebook()
    path = folder / f"codebook-{arguments.patch}px-{arguments.codes}.npz"
    if not path.exists():
        examples = training_edits(arguments, _CODEBOOK_SEED, _CODEBOOK_PICTURES)
        half = min(len(examples), _CODEBOOK_PICTURES) // 2
        pictures = np.concatenate((examples.source[:half], examples.target[half : 2 * half]))
        with replacing(path) as draft:  # another process of this recipe may be fitting the same one
            fit_codebook(pictures, arguments.codes, arguments.patch, neighbours=False).save(draft)
    return load_codebook(path)


def run_folder(training: RMTrainingArguments, system: str, seed: int) -> Path:
    """Where a run lives."""
    return Path(training.output_dir) / f"{system}_seed{seed}"


def run_settings(arguments: ImageEditArguments, training: RMTrainingArguments) -> dict[str, Any]:
    """What the trained weights depend on."""
    settings = {name: getattr(training, name) for name in _TRAINING_SETTINGS}
    settings |= {name: getattr(arguments, name) for name in _RECIPE_SETTINGS}
    own = {} if arguments.train_pairs is None else {"train_pairs": arguments.train_pairs, "size": arguments.size}
    return settings | {"start": as_dict(arguments.start)} | own


def trained_editor(
    arguments: ImageEditArguments,
    training: RMTrainingArguments,
    system: str,
    seed: int,
    book: PatchCodebook,
) -> tuple[ImageEditor, float | None]:
    """
    Train a system, continuing from its last checkpoint; or load it, if it was trained before. And the CPU minutes of
    the training, where one process did all of it.
    """
    folder = run_folder(training, system, seed)
    claim_folder(folder, run_settings(arguments, training))
    if (folder / "trained.json").exists():
        print(f"trained before: {folder} (delete it to train again)")
        return ImageEditor.load(folder), json.loads((folder / "trained.json").read_text())["cpu_minutes"]
    rows, layout = training_rows(arguments, seed, book)
    start, start_minutes = started(arguments, training, seed, rows, layout)
    model = build(arguments, layout, SYSTEMS[system]["variant"], seed, start)
    trainer = make_trainer(arguments, training, system, seed, folder, model, rows, layout)
    minutes = train(trainer, folder)
    minutes = None if minutes is None or start_minutes is None else minutes + start_minutes
    if PartialState().is_main_process:
        ImageEditor(model, layout, book, SYSTEMS[system]["decoding"]).save(folder)
        write_json(folder / "trained.json", {"cpu_minutes": minutes})
    PartialState().wait_for_everyone()
    # What is evaluated is what was saved: the trainer leaves the model's forward in its autocast.
    return ImageEditor.load(folder), minutes


def training_rows(arguments: ImageEditArguments, seed: int, book: PatchCodebook) -> tuple[EditRows, EditLayout]:
    """What a seed trains on, as sequences."""
    examples = training_edits(arguments, seed)
    layout = pairs_layout(book, examples) if isinstance(examples, EditPairs) else edit_layout(book)
    return EditRows.from_examples(examples, book, layout), layout


def build(
    arguments: ImageEditArguments, layout: EditLayout, variant: str, seed: int, start: Path | None = None
) -> RMForMaskedDiffusion:
    """A fresh model, or the one of `start` with the history of `variant`."""
    set_seed(seed)
    attention = arguments.attn_implementation
    if start is not None:
        return RMForMaskedDiffusion.from_pretrained(start, attn_implementation=attention, **VARIANTS[variant])
    sizes = {n: getattr(arguments, n) for n in ("hidden_size", "intermediate_size", "num_layers", "num_heads")}
    return build_image_edit_model(layout, variant, attn_implementation=attention, **sizes)


def started(
    arguments: ImageEditArguments, training: RMTrainingArguments, seed: int, rows: EditRows, layout: EditLayout
) -> tuple[Path | None, float | None]:
    """Folder and CPU minutes of what the systems of a seed begin with; the first that needs it trains it."""
    changes = as_dict(arguments.start)
    if not changes:
        return None, 0.0
    of_start, plain = copy.deepcopy(training), dataclasses.replace(arguments, start={})
    for name, value in changes.items():
        if name not in _SHARED:
            raise ValueError(f"`start` names {name!r}: pass any of {', '.join(_SHARED)}.")
        setattr(of_start, name, value)
    folder = run_folder(training, "start", seed)
    claim_folder(folder, run_settings(plain, of_start))
    if not (folder / "start.json").exists():
        model = build(plain, layout, SYSTEMS["sft"]["variant"], seed)
        minutes = train(make_trainer(plain, of_start, "sft", seed, folder, model, rows, layout), folder)
        if PartialState().is_main_process:
            model.save_pretrained(folder)
            write_json(folder / "start.json", {"cpu_minutes": minutes})
        PartialState().wait_for_everyone()
    return folder, json.loads((folder / "start.json").read_text())["cpu_minutes"]


def train(trainer: Any, folder: Path) -> float | None:
    """To the end, from the last checkpoint if there is one. CPU minutes, where one process did all of it."""
    last, began = get_last_checkpoint(folder), time.process_time()
    trainer.train(resume_from_checkpoint=last)
    return (time.process_time() - began) / 60 if last is None else None


_TRAINING_SETTINGS = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "muon_learning_rate",
    "law",
    "horizon",
    "max_attempts",
    "min_corruption_rate",
    "max_corruption_rate",
    "full_corruption",
    "edit_weight",
    "pool_fraction",
    "pool_start_step",
    "pool_start",
    "reveal_weights",
    "mask_row_batches",
    "bf16",
)
_RECIPE_SETTINGS = (
    "train_edits",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "patch",
    "codes",
    "cell",
    "emoji",
    "text_drop",
    "image_drop",
    "unlikelihood_weight",
    "first_states",
    "false_alarms",
)
_SHARED = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "muon_learning_rate",
    "adam_beta2",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "use_cpu",
    "logging_steps",
    "logging_strategy",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "report_to",
    "disable_tqdm",
    "dataloader_num_workers",
    "dataloader_pin_memory",
)


def make_trainer(
    arguments: ImageEditArguments,
    training: RMTrainingArguments,
    system: str,
    seed: int,
    folder: Path,
    model: RMForMaskedDiffusion,
    rows: EditRows,
    layout: EditLayout,
) -> Any:
    """The trainer of a system; the budget, the batches and the optimizer are the same for all."""
    if system == "sft":
        shared = {name: getattr(training, name) for name in _SHARED}
        args_of_sft = MaskedSFTArguments(str(folder), seed=seed, **shared)
        drops = EditSFTCollator(
            MASK_ID, seed=seed, layout=layout, text_drop=arguments.text_drop, image_drop=arguments.image_drop
        )
        return MaskedSFTTrainer(model, args_of_sft, train_dataset=rows, data_collator=drops)
    args = copy.deepcopy(training)
    args.output_dir, args.seed = str(folder), seed
    collate = edit_collator(
        layout,
        law=build_law(args.law, args.horizon, args.max_attempts),
        corruption_rate=(args.min_corruption_rate, args.max_corruption_rate),
        full_corruption=args.full_corruption,
        edit_weight=args.edit_weight,
        start=args.pool_start,
        text_drop=arguments.text_drop,
        image_drop=arguments.image_drop,
        first_states=arguments.first_states,
        false_alarms=arguments.false_alarms,
        seed=seed,
    )
    weight = arguments.unlikelihood_weight
    return ImageEditTrainer(model, args, train_dataset=rows, data_collator=collate, unlikelihood_weight=weight)


def what_is_evaluated(arguments: ImageEditArguments, examples: EditExamples | EditPairs) -> list[Any]:
    """Name, seed and number of the held-out edits."""
    if arguments.eval_pairs is not None:
        return [Path(arguments.eval_pairs).stem, None, len(examples)]
    return [arguments.eval_split, arguments.eval_seed, len(examples)]


def evaluate(
    arguments: ImageEditArguments,
    editor: ImageEditor,
    system: str,
    seed: int,
    examples: EditExamples | EditPairs,
    folder: Path,
    minutes: float | None,
) -> Record:
    """Edit the held-out pictures; a record, a sheet of edits drawn by seed and an animation in `folder`."""
    asked = what_is_evaluated(arguments, examples)
    results = folder / f"results_{'_'.join(map(str, asked))}.json"
    if results.exists():
        print(f"evaluated before: {results} (delete it to evaluate again)")
        return json.loads(results.read_text())
    run = editor.edit(examples.source, examples.instructions, progress_bar=True)
    measured = measure(run.result, examples, editor.book)
    draw(arguments, run, examples, measured["success"], editor.book, folder)
    record = {
        "name": f"{system}, seed {seed}",
        "system": system,
        "seed": seed,
        "edits": measured,
        "success_by_operation": success_by_operation(measured["success"], examples),
        "forwards": float(run.num_forwards.mean()),
        "seconds_an_edit": run.seconds / len(examples),
        "unfinished": float((run.states[-1] < 0).any((1, 2)).mean()),
        "parameters": editor.model.num_parameters(),
        "train_cpu_minutes": minutes,
        "eval": asked,
    }
    write_json(results, record)
    return record


def draw(
    arguments: ImageEditArguments,
    run: EditRun,
    examples: EditExamples | EditPairs,
    success: list[float],
    book: PatchCodebook,
    folder: Path,
) -> None:
    """A sheet of edits taken at random, failures included, and the revision of its first one."""
    count = min(arguments.sheet_edits, len(examples))
    chosen = np.random.default_rng(arguments.eval_seed).permutation(len(examples))[:count]
    judged = {0.0: ", failure", 1.0: ", success"}  # users' pairs are not judged
    notes = [f"edit {i}{judged.get(success[i], '')}" for i in chosen]
    pictures = (examples.source[chosen], run.predicted[chosen], run.result[chosen], examples.target[chosen])
    write_edit_sheet(folder / "sheet.png", *pictures, [examples.instructions[i] for i in chosen], notes)
    write_revision_gif(folder / "revision.gif", run.states[:, chosen[0]], book)


def report(
    arguments: ImageEditArguments,
    training: RMTrainingArguments,
    records: list[Record],
    examples: EditExamples | EditPairs,
    book: PatchCodebook,
) -> None:
    """Print the tables and the paired differences; save the records, and the card where one is wanted."""
    console, folder = Console(width=None if sys.stdout.isatty() else 170), Path(training.output_dir)
    name, seed, count = what_is_evaluated(arguments, examples)
    title = f"{count} edits of {name}, seed {seed}, 95 % intervals"
    references = reference_records(book, examples)
    lines = [*references, *records]
    lines += [record for record in pooled(records) if isinstance(record["seed"], list)]
    for table in results_tables(lines, title):
        console.print(table)
    compared = differences_table(pooled(records), title)
    if compared is not None:
        console.print(compared)
    for record in records:
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in record["success_by_operation"].items())
        minutes = record["train_cpu_minutes"]
        trained = "" if minutes is None else f"; trained in {minutes:.1f} CPU minutes"
        console.print(f"{record['name']}: success by operation: {rates}{trained}", soft_wrap=True)
    write_json(folder / "records.json", [*references, *records])
    console.print(f"records: {folder / 'records.json'}", soft_wrap=True)
    if arguments.card:
        console.print(f"card: {ship(arguments, training, [*references, *pooled(records)])}", soft_wrap=True)


def ship(arguments: ImageEditArguments, training: RMTrainingArguments, records: list[Record]) -> Path:
    """The first system of the first seed as a repository: weights, words, codebook, code, card, sheet, animation."""
    folder = run_folder(training, arguments.systems[0], arguments.seeds[0])
    settings = run_settings(arguments, training)
    place = ImageEditor.load(folder).save(str(arguments.card))
    return write_image_card(place, records, run=folder, settings=settings, command=" ".join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
