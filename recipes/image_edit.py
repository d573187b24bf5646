"""
Image editing: train a small mask diffusion model to change what was asked and leave the rest alone.

    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit-demo.yaml   # minutes on a CPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit-cpu.yaml    # coarse tokens, on a CPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit.yaml        # the table; wants a GPU

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
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

import hf_rm  # noqa: F401  (registers the Auto classes)
from hf_rm import RMForMaskedDiffusion, RMTrainingArguments
from hf_rm.corruption import build_law
from hf_rm.evaluation.statistics import Interval, mean_interval, paired_difference_interval
from hf_rm.hub import save_for_hub
from hf_rm.tasks.image_editing import (
    EditExamples,
    PatchCodebook,
    edit_metrics,
    fit_codebook,
    generate_edits,
    instruction_success,
    load_codebook,
)
from hf_rm.tasks.image_editing.collator import EditSFTCollator, edit_collator
from hf_rm.tasks.image_editing.edit import EditRun, edit_images
from hf_rm.tasks.image_editing.layout import MASK_ID, EditLayout, EditRows, edit_layout
from hf_rm.tasks.image_editing.model import build_image_edit_model
from hf_rm.tasks.image_editing.sheets import write_edit_sheet, write_revision_gif
from hf_rm.tasks.image_editing.trainer import ImageEditTrainer
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer

SYSTEMS: dict[str, dict[str, str]] = {
    "rm": {"variant": "hr-decay-her", "decoding": "revise"},
    "rm-no-hr": {"variant": "no-hr", "decoding": "revise"},
    "sft": {"variant": "no-hr", "decoding": "regenerate"},
}
EDITED = ("precision", "coverage", "success", "acted")
KEPT = ("mae", "psnr", "ssim", "mae_decoded", "psnr_decoded", "ssim_decoded")
MEASURES = EDITED + KEPT
_CODEBOOK_SEED, _CODEBOOK_PICTURES = 11, 1200
Record = dict[str, Any]


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
    unlikelihood_weight: float = field(default=0.1, metadata={"help": "Weight of -log(1 - p(M)) off the edit."})
    eval_split: Literal["dev", "test_photos", "test"] = field(
        default="test", metadata={"help": "'test': unseen emoji and photos; 'test_photos': unseen photos alone."}
    )
    eval_edits: int = field(default=500, metadata={"help": "Held-out edits."})
    eval_seed: int = field(default=20261122, metadata={"help": "Seed of the held-out edits."})
    sheet_edits: int = field(default=24, metadata={"help": "Edits drawn on the sheet, taken at random by seed."})


def main() -> None:
    """Train and evaluate every system and seed; print the table."""
    arguments, training = TrlParser((ImageEditArguments, RMTrainingArguments)).parse_args_and_config()
    unknown = set(arguments.systems) - set(SYSTEMS)
    if unknown:
        raise ValueError(f"`systems` names {sorted(unknown)}: pass any of {', '.join(SYSTEMS)}.")
    with PartialState().main_process_first():
        book = codebook(arguments, Path(training.output_dir))
    layout = edit_layout(book)
    examples = edits(arguments, arguments.eval_edits, arguments.eval_seed, arguments.eval_split)
    records = references(book, examples)
    for system in arguments.systems:
        for seed in arguments.seeds:
            model = trained_model(arguments, training, system, seed, layout, book)
            if PartialState().is_main_process:
                folder = run_folder(training, system, seed)
                records.append(evaluate(arguments, model, system, seed, layout, book, examples, folder))
    if PartialState().is_main_process:
        report(arguments, records, Path(training.output_dir))


def edits(arguments: ImageEditArguments, count: int, seed: int, split: str = "train") -> EditExamples:
    """Composed edits as the arguments want them."""
    return generate_edits(count, seed, split, cell=arguments.cell, emoji=arguments.emoji)


def codebook(arguments: ImageEditArguments, folder: Path) -> PatchCodebook:
    """The package's codebook of 4 px patches, or one of other patches, fitted on training pictures and kept."""
    if arguments.patch == 4:
        return load_codebook()
    path = folder / f"codebook-{arguments.patch}px-{arguments.codes}.npz"
    if not path.exists():
        examples, half = edits(arguments, _CODEBOOK_PICTURES, _CODEBOOK_SEED), _CODEBOOK_PICTURES // 2
        pictures = np.concatenate((examples.source[:half], examples.target[half:]))
        folder.mkdir(parents=True, exist_ok=True)
        fit_codebook(pictures, arguments.codes, arguments.patch, neighbours=False).save(path)
    return load_codebook(path)


def run_folder(training: RMTrainingArguments, system: str, seed: int) -> Path:
    """Where a run lives."""
    return Path(training.output_dir) / f"{system}_seed{seed}"


def trained_model(
    arguments: ImageEditArguments,
    training: RMTrainingArguments,
    system: str,
    seed: int,
    layout: EditLayout,
    book: PatchCodebook,
) -> RMForMaskedDiffusion:
    """Train a system, continuing from its last checkpoint; or load it, if it was trained before."""
    folder = run_folder(training, system, seed)
    if (folder / "model.safetensors").exists():
        print(f"trained before: {folder} (delete it to train again)")
        return AutoModel.from_pretrained(folder)
    rows = EditRows.from_examples(edits(arguments, arguments.train_edits, seed), book, layout)
    set_seed(seed)
    names = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "attn_implementation")
    variant = SYSTEMS[system]["variant"]
    model = build_image_edit_model(layout, variant, **{name: getattr(arguments, name) for name in names})
    trainer = make_trainer(arguments, training, system, seed, folder, model, rows, layout)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    if PartialState().is_main_process:
        save_for_hub(model, folder, tokenizer=layout.tokenizer())
    return model


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
        seed=seed,
    )
    weight = arguments.unlikelihood_weight
    return ImageEditTrainer(model, args, train_dataset=rows, data_collator=collate, unlikelihood_weight=weight)


def measure(result: np.ndarray, examples: EditExamples, unedited: np.ndarray) -> dict[str, list[float]]:
    """
    Every measure, one number an edit: what is kept against the true source, and against it as its tokens show it.

    `acted` is 1 where any pixel changed at all; `precision` is nan elsewhere.
    """
    measured = edit_metrics(result, examples.source, examples.mask, unedited)
    kept = edit_metrics(result, unedited, examples.mask, unedited)
    measured |= {f"{name}_decoded": kept[name] for name in ("mae", "psnr", "ssim")}
    measured["acted"] = np.isfinite(measured["precision"]).astype(float)
    measured["success"] = instruction_success(result, examples, unedited).astype(float)
    return {name: measured[name].tolist() for name in MEASURES}


def references(book: PatchCodebook, examples: EditExamples) -> list[Record]:
    """What needs no model: the source copied, and the target as its tokens show it."""
    unedited, limit = book.reconstruct(examples.source), book.reconstruct(examples.target)
    named = (("copy the source", unedited), ("target's tokens (limit)", limit))
    return [{"name": name, "edits": measure(result, examples, unedited)} for name, result in named]


def evaluate(
    arguments: ImageEditArguments,
    model: RMForMaskedDiffusion,
    system: str,
    seed: int,
    layout: EditLayout,
    book: PatchCodebook,
    examples: EditExamples,
    folder: Path,
) -> Record:
    """Edit the held-out pictures; a record, a sheet of edits drawn by seed and an animation in `folder`."""
    decoding = SYSTEMS[system]["decoding"]
    run = edit_images(model, layout, book, examples.source, examples.instructions, decoding, progress_bar=True)
    measured = measure(run.result, examples, book.reconstruct(examples.source))
    draw(arguments, run, examples, measured["success"], book, folder)
    operations = [edit.operation for edit in examples.edits]
    by_operation = {
        name: float(np.mean([s for s, of in zip(measured["success"], operations, strict=True) if of == name]))
        for name in sorted(set(operations))
    }
    return {
        "name": f"{system}, seed {seed}",
        "system": system,
        "seed": seed,
        "edits": measured,
        "success_by_operation": by_operation,
        "forwards": float(run.num_forwards.mean()),
        "seconds_an_edit": run.seconds / len(examples),
        "parameters": model.num_parameters(),
        "eval": [arguments.eval_split, arguments.eval_seed, arguments.eval_edits],
    }


def draw(
    arguments: ImageEditArguments,
    run: EditRun,
    examples: EditExamples,
    success: list[float],
    book: PatchCodebook,
    folder: Path,
) -> None:
    """A sheet of edits taken at random, failures included, and the revision of its first one."""
    count = min(arguments.sheet_edits, len(examples))
    chosen = np.random.default_rng(arguments.eval_seed).permutation(len(examples))[:count]
    notes = [f"edit {i}, {'success' if success[i] else 'failure'}" for i in chosen]
    pictures = (examples.source[chosen], run.predicted[chosen], run.result[chosen], examples.target[chosen])
    write_edit_sheet(folder / "sheet.png", *pictures, [examples.instructions[i] for i in chosen], notes)
    write_revision_gif(folder / "revision.gif", run.states[:, chosen[0]], book)


def report(arguments: ImageEditArguments, records: list[Record], folder: Path) -> None:
    """Print the table and the paired differences; save the records."""
    console = Console(width=None if sys.stdout.isatty() else 170)
    title = f"{arguments.eval_edits} edits of split {arguments.eval_split}, seed {arguments.eval_seed}, 95 % intervals"
    for measures in (EDITED, KEPT):
        table = Table(title=title)
        for heading in ("", *measures, *(("forwards", "s / edit") if measures is EDITED else ())):
            table.add_column(heading)
        for record in records:
            cells = [shown(interval(record["edits"][name])) for name in measures]
            if measures is EDITED:
                cells += [f"{record[name]:.3g}" if name in record else "" for name in ("forwards", "seconds_an_edit")]
            table.add_row(record["name"], *cells)
        console.print(table)
    sft = {record["seed"]: record for record in records if record.get("system") == "sft"}
    for record in records:
        other = sft.get(record.get("seed"))
        if other is not None and other is not record:
            console.print(f"{record['name']} minus sft: {differences(record, other)}", soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.json").write_text(json.dumps(records))
    console.print(f"records: {folder / 'records.json'}", soft_wrap=True)


def interval(values: list[float]) -> Interval:
    """Mean over the edits that have the measure."""
    array = np.asarray(values)
    finite = array[np.isfinite(array)]
    return mean_interval(finite) if len(finite) > 1 else Interval(np.nan, np.nan, np.nan, len(finite))


def shown(of: Interval) -> str:
    """An interval in a cell."""
    return f"{of.value:.3g} ({of.low:.3g} to {of.high:.3g})"


def differences(record: Record, other: Record) -> str:
    """Paired over the edits that both have the measure for."""
    parts = []
    for name in MEASURES:
        a, b = (np.asarray(one["edits"][name]) for one in (record, other))
        both = np.isfinite(a) & np.isfinite(b)
        parts.append(f"{name} {shown(paired_difference_interval(a[both], b[both]))}")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
