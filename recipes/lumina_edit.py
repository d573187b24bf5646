"""
Reflective Masking for in-place editing on Lumina-DiMOO, from your own pairs of pictures.

    accelerate launch recipes/lumina_edit.py --config recipes/configs/lumina-edit.yaml \
        --train_pairs train.jsonl --eval_pairs eval.jsonl

The checkpoint, its tokenizer and its image tokens come from one repository. Every pair is cut to the size of the
checkpoint's table that keeps most of it; pairs are read one at a time, from JSON lines or Parquet, and what is kept of
them are their tokens. What is trained is an adapter with the mask's rows (or, with `--lora_rank 0`, everything); it is
saved as a repository of the Hub, for `DimooEditor.load(base, adapted=...)`. Beside it stand the source copied, an
oracle that knows the target's tokens, and the bare checkpoint, which regenerates the canvas from masks, guided as its
own sampler is. A run that is finished is not repeated, one that was interrupted continues.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from hf_rm import RMTrainingArguments
from hf_rm.adapters_rm import HUB_ARGUMENTS
from hf_rm.checks import check_counts, check_probabilities, check_scale, check_weight
from hf_rm.corruption import build_law
from hf_rm.corruption.shards import file_digest
from hf_rm.hub import save_adapter_for_hub, save_for_hub
from hf_rm.tasks.image_editing.buckets import SizedCollator, SizedRows, bucket_cut, by_size
from hf_rm.tasks.image_editing.collator import edit_collator, refuse_blank_rows
from hf_rm.tasks.image_editing.dimoo import DimooEditor
from hf_rm.tasks.image_editing.metrics import load_scorer, vqa_score
from hf_rm.tasks.image_editing.pairs import EditPairReader, EditPairs
from hf_rm.tasks.image_editing.report import (
    Record,
    interval,
    joined,
    measure,
    reconstruction_line,
    reference_records,
    results_tables,
    shippable,
    shown,
)
from hf_rm.tasks.image_editing.sheets import write_edit_sheet
from hf_rm.tasks.image_editing.trainer import ImageEditTrainer
from hf_rm.tasks.remask.problems import as_dict
from hf_rm.training import default_lora_config
from hf_rm.training.stages import claim_folder, settings_that_matter, write_json


@dataclass
class LuminaArguments:
    """Arguments of this recipe, beside those of RMTrainingArguments."""

    train_pairs: str = field(metadata={"help": "Edits to train on, JSON lines or Parquet, in the form of ImgEdit."})
    eval_pairs: str = field(metadata={"help": "Held-out edits."})
    base: str = field(default="Alpha-VLLM/Lumina-DiMOO", metadata={"help": "The checkpoint: a Hub name or a folder."})
    revision: str | None = field(default=None, metadata={"help": "Its commit, branch or tag."})
    size: int = field(
        default=512,
        metadata={"help": "Pictures are about this side squared, in the shape of the crop table's nearest."},
    )
    vqa: str | None = field(
        default=None, metadata={"help": "`module:callable` of a scorer of pictures and texts, for VQAScore."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapter; 0 trains all weights."})
    first_states: float = field(
        default=0.5, metadata={"help": "Share of training rows as decoding begins: the source, no history."}
    )
    text_drop: float = field(default=0.1, metadata={"help": "Probability that a row loses its instruction."})
    image_drop: float = field(default=0.1, metadata={"help": "Probability that a row loses its source picture."})
    unlikelihood_weight: float = field(default=0.1, metadata={"help": "Weight of -log(1 - p(M)) off the edit."})
    text_guidance: float = field(default=2.5, metadata={"help": "Scale of the instruction's guidance."})
    image_guidance: float = field(default=4.0, metadata={"help": "Scale of the source picture's guidance."})
    base_steps: int = field(default=64, metadata={"help": "Steps in which the bare checkpoint fills its canvas."})
    eval_batch_size: int = field(default=4, metadata={"help": "Edits decoded side by side."})
    sheet_edits: int = field(
        default=24, metadata={"help": "Edits drawn on each sheet: the first ones of the commonest size."}
    )

    def __post_init__(self) -> None:
        check_probabilities(self, "first_states", "text_drop", "image_drop")
        check_weight("unlikelihood_weight", self.unlikelihood_weight)
        for name in ("text_guidance", "image_guidance"):
            check_scale(name, getattr(self, name))
        check_counts(self, "sheet_edits", least=1)
        if self.size < 32 or self.size % 32:
            raise ValueError(f"`size` is {self.size}: pass a multiple of 32 pixels, the checkpoint's crops.")
        if self.eval_batch_size < 1 or self.base_steps < 1 or self.lora_rank < 0:
            raise ValueError(
                f"`eval_batch_size`, `base_steps`, `lora_rank` are {self.eval_batch_size}, {self.base_steps}, "
                f"{self.lora_rank}: pass 1 or more of the first two, and no negative rank."
            )


def main() -> None:
    """Train, unless that is done; evaluate; print the tables."""
    arguments, training = TrlParser((LuminaArguments, RMTrainingArguments)).parse_args_and_config()
    refuse_blank_rows(training)
    scorer = None if arguments.vqa is None else load_scorer(arguments.vqa)
    held_out = by_size(EditPairReader(arguments.eval_pairs, bucket_cut(arguments.size)))
    root, console = Path(training.output_dir), Console(width=None if sys.stdout.isatty() else 170)
    folder, loading = root / "rm", {"revision": arguments.revision, **(training.model_init_kwargs or {})}
    claim_folder(folder, settings(arguments, training))
    if not (folder / "trained.json").exists():
        # A file that cannot be read is an error before the checkpoint is loaded.
        next(iter(EditPairReader(arguments.train_pairs, bucket_cut(arguments.size))))
        train(arguments, training, DimooEditor.load(arguments.base, **loading), folder)
    if not PartialState().is_main_process:
        return
    guidance = {"text_guidance": arguments.text_guidance, "image_guidance": arguments.image_guidance}
    shared = {**guidance, "batch_size": arguments.eval_batch_size, "progress_bar": True}
    bare = on_device(DimooEditor.load(arguments.base, **loading))
    references = [reference_records(bare.tokens, pairs, keep_pixels=False) for pairs in held_out]
    records = [joined(parts) for parts in zip(*references, strict=True)]
    steps = {"decoding": "regenerate", "steps": arguments.base_steps, "source_drop": "remove"}
    judge = Judge(arguments, held_out, scorer)
    records.append(judge.evaluate(bare, "base, regenerated", root / "base.png", {**shared, **steps}))
    del bare
    editor = on_device(DimooEditor.load(arguments.base, adapted=str(folder), **loading))
    records.append(judge.evaluate(editor, "RM", root / "rm.png", shared))
    count = sum(map(len, held_out))
    for table in results_tables(records, f"{count} edits of {Path(arguments.eval_pairs).stem}, 95 % intervals"):
        console.print(table)
    console.print(reconstruction_line(records), soft_wrap=True)
    for record in records:
        if "vqa" in record:
            console.print(f"{record['name']}: VQAScore {shown(interval(record['vqa']))}")
    write_json(root / "records.json", [shippable(record) for record in records])
    console.print(f"records: {root / 'records.json'}; sheets: {root}", soft_wrap=True)


def settings(arguments: LuminaArguments, training: RMTrainingArguments) -> dict[str, Any]:
    """What the trained weights depend on."""
    ours = (
        "train_pairs", "base", "revision", "size", "lora_rank", "first_states", "text_drop", "image_drop",
        "unlikelihood_weight",
    )  # fmt: skip
    found = {name: getattr(arguments, name) for name in ours}
    found["train_pairs_digest"] = file_digest(Path(arguments.train_pairs))
    theirs = {item.name: getattr(training, item.name) for item in fields(training)}
    # What fetches the checkpoint is no setting, and a token is not to be written down.
    loading, fetching = as_dict(training.model_init_kwargs), set(HUB_ARGUMENTS) - {"revision"}
    theirs["model_init_kwargs"] = {key: value for key, value in loading.items() if key not in fetching}
    return settings_that_matter(theirs) | found | {"processes": training.world_size}


def on_device(editor: DimooEditor) -> DimooEditor:
    """The editor on this process's device."""
    device = PartialState().device
    editor.tokens.vqvae.to(device)
    return replace(editor, model=editor.model.to(device))


def train(arguments: LuminaArguments, training: RMTrainingArguments, editor: DimooEditor, folder: Path) -> None:
    """Post-train on the pairs, going on where a stopped run was; save what the Hub is given."""
    set_seed(training.seed)
    editor.tokens.vqvae.to(PartialState().device)
    pairs = EditPairReader(arguments.train_pairs, bucket_cut(arguments.size))
    rows = SizedRows(pairs, editor.tokens, editor.tokenizer)
    editor.tokens.vqvae.to("cpu")
    states = {
        "law": build_law(training.law, training.horizon, training.max_attempts),
        "corruption_rate": (training.min_corruption_rate, training.max_corruption_rate),
        "full_corruption": training.full_corruption,
        "edit_weight": training.edit_weight,
        "start": training.pool_start,
        "text_drop": arguments.text_drop,
        "image_drop": arguments.image_drop,
        "first_states": arguments.first_states,
        "seed": training.seed,
    }
    collate = SizedCollator([edit_collator(layout, **states) for layout in rows.layouts.values()])
    args = copy.deepcopy(training)
    args.output_dir, args.model_init_kwargs = str(folder), None  # the network is loaded already
    trainer = ImageEditTrainer(
        editor.model,
        args,
        train_dataset=rows,
        data_collator=collate,
        processing_class=editor.tokenizer,
        peft_config=default_lora_config(editor.model, r=arguments.lora_rank) if arguments.lora_rank else None,
        unlikelihood_weight=arguments.unlikelihood_weight,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
    if PartialState().is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        (save_adapter_for_hub if arguments.lora_rank else save_for_hub)(model, folder, editor.tokenizer)
        write_json(folder / "trained.json", {"steps": trainer.state.global_step})
    PartialState().wait_for_everyone()
    if training.push_to_hub:
        trainer.push_to_hub()


@dataclass(frozen=True)
class Judge:
    """Edits the held-out pictures, size by size, and measures what came out."""

    arguments: LuminaArguments
    held_out: Sequence[EditPairs]
    scorer: Any

    def evaluate(self, editor: DimooEditor, name: str, sheet: Path, decoding: dict[str, Any]) -> Record:
        """A record of what came out, and a sheet of the first edits of the commonest size."""
        parts = []
        for pairs in self.held_out:
            run = editor.edit(pairs.source, pairs.instructions, **decoding)
            if pairs is self.held_out[0]:
                first = slice(0, self.arguments.sheet_edits)
                pictures = (pairs.source[first], run.predicted[first], run.result[first], pairs.target[first])
                write_edit_sheet(sheet, *pictures, pairs.instructions[first])
            part: Record = {
                "name": name,
                "system": name,
                "seed": None,
                "edits": measure(run.result, pairs, editor.tokens, keep_pixels=False),
                "forwards": float(run.num_forwards.mean()),
            }
            if self.scorer is not None:
                part["vqa"] = vqa_score(self.scorer, run.result, pairs.descriptions).tolist()
            parts.append(part)
        return joined(parts)


if __name__ == "__main__":
    main()
