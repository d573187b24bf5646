"""
Image editing: train a small mask diffusion model to change what was asked and leave the rest alone.

    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit-demo.yaml   # minutes on a CPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit-cpu.yaml    # coarse tokens, on a CPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit.yaml        # the table; wants a GPU
    accelerate launch recipes/image_edit.py --config recipes/configs/image-edit.yaml --train_pairs train.jsonl \
        --eval_pairs eval.jsonl                                            # your pictures, in the form of ImgEdit

Systems of one size under one budget of steps: `rm` revises the source's tokens and reads its history, `rm-no-hr` reads
none, `sft` is vanilla masked-diffusion fine-tuning, which regenerates the whole canvas. Beside them stand copying the
source, an oracle that knows the target's tokens, and `sft-keep`: the model of `sft`, which keeps the source's tokens
above a threshold that is chosen on the split dev for the coverage of `rm`. Composed edits are also judged under other
conditions than those trained for. A run that is finished is not repeated, one that was interrupted continues.
"""

import os
import sys

# `recipes/math.py` must not shadow the standard library's `math`: drop this folder from the import path.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from rich.console import Console
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from hf_rm import RMForMaskedDiffusion, RMTrainingArguments
from hf_rm.checks import check_counts, check_probabilities, check_weight
from hf_rm.corruption import build_law
from hf_rm.corruption.shards import file_digest
from hf_rm.tasks.image_editing import (
    EditExamples,
    PatchCodebook,
    fit_codebook,
    generate_edits,
    load_codebook,
)
from hf_rm.tasks.image_editing.card import write_image_card
from hf_rm.tasks.image_editing.collator import EditSFTCollator, edit_collator, refuse_blank_rows
from hf_rm.tasks.image_editing.edit import DECODINGS, EditRun
from hf_rm.tasks.image_editing.editor import ImageEditor
from hf_rm.tasks.image_editing.layout import MASK_ID, EditLayout, EditRows, edit_layout, pairs_layout
from hf_rm.tasks.image_editing.metrics import described, load_scorer, vqa_score
from hf_rm.tasks.image_editing.model import build_image_edit_model
from hf_rm.tasks.image_editing.pairs import EditPairs, load_edit_pairs
from hf_rm.tasks.image_editing.report import (
    AT_EQUAL_COVERAGE,
    Record,
    comparison_tables,
    conditions_table,
    interval,
    measure,
    pooled,
    reconstruction_line,
    reference_records,
    results_tables,
    shippable,
    shown,
    success_by_operation,
    threshold_of_coverage,
)
from hf_rm.tasks.image_editing.scenes import emoji_pool
from hf_rm.tasks.image_editing.sheets import write_edit_sheet, write_revision_gif
from hf_rm.tasks.image_editing.trainer import ImageEditTrainer
from hf_rm.tasks.remask.problems import as_dict
from hf_rm.tasks.sudoku.model import VARIANTS
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer
from hf_rm.training.stages import CLOCK_FILE, Clock, claim_folder, settings_that_matter, write_json
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
    # Without None, HfArgumentParser makes `dict` read the command line's text.
    start: dict[str, Any] | str | None = field(
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
    dev_edits: int = field(
        default=200,
        metadata={"help": "Edits of dev on which sft's keep-threshold is chosen for rm's coverage; 0: no sft-keep."},
    )
    other_edits: int = field(
        default=200,
        metadata={"help": "Held-out edits under each of the other conditions (all names, any place, ...); 0: none."},
    )
    vqa: str | None = field(
        default=None, metadata={"help": "`module:callable` of a scorer of pictures and texts, for VQAScore."}
    )
    sheet_edits: int = field(default=24, metadata={"help": "Edits drawn on the sheet, taken at random by seed."})
    train_pairs: str | None = field(
        default=None, metadata={"help": "JSON lines of your own edits, in place of composed ones; with eval_pairs."}
    )
    eval_pairs: str | None = field(default=None, metadata={"help": "JSON lines of held-out edits."})
    size: int = field(
        default=64, metadata={"help": "Side of the pictures in pixels; yours are cut to a square and resized."}
    )
    card: str | None = field(
        default=None, metadata={"help": "Where to put the first system of the first seed, with a model card."}
    )

    def __post_init__(self) -> None:
        unknown = set(self.systems) - set(SYSTEMS)
        if unknown:
            raise ValueError(f"`systems` names {sorted(unknown)}: pass any of {', '.join(SYSTEMS)}.")
        if (self.train_pairs is None) != (self.eval_pairs is None):
            raise ValueError("`train_pairs` and `eval_pairs` go together: pass both, or neither for composed edits.")
        for name in as_dict(self.start, "start"):
            if name not in _SHARED:
                raise ValueError(f"`start` names {name!r}: pass any of {', '.join(_SHARED)}.")
        check_probabilities(self, "text_drop", "image_drop", "first_states", "false_alarms")
        check_weight("unlikelihood_weight", self.unlikelihood_weight)
        check_counts(self, "train_edits", "eval_edits", "sheet_edits", "patch", least=1)
        check_counts(self, "dev_edits", "other_edits")


def main() -> None:
    """Train and evaluate every system and seed; print the table."""
    arguments, training = TrlParser((ImageEditArguments, RMTrainingArguments)).parse_args_and_config()
    refuse_blank_rows(training)
    scorer = None if arguments.vqa is None else load_scorer(arguments.vqa)
    with PartialState().main_process_first():
        book = codebook(arguments, Path(training.output_dir))
    examples = held_out(arguments)
    judge = Judge(arguments, Path(training.output_dir), scorer)
    editors: dict[tuple[str, int], ImageEditor] = {}
    records: list[Record] = []
    for system in arguments.systems:
        for seed in arguments.seeds:
            editor, minutes = trained_editor(arguments, training, system, seed, book)
            if PartialState().is_main_process:
                editors[system, seed] = editor
                records.append(judge.evaluate(editor, system, seed, examples) | {"train_cpu_minutes": minutes})
    if PartialState().is_main_process:
        records += at_equal_coverage(arguments, judge, editors, examples)
        report(arguments, training, records, under_other_conditions(arguments, judge, editors), examples, book)


def training_edits(arguments: ImageEditArguments, seed: int, count: int | None = None) -> EditExamples | EditPairs:
    """Users' pairs, or composed edits as the arguments want them."""
    if arguments.train_pairs is not None:
        return users_pairs(arguments.train_pairs, arguments.size)
    return compose(arguments, arguments.train_edits if count is None else count, seed)


def held_out(arguments: ImageEditArguments) -> EditExamples | EditPairs:
    """What is evaluated."""
    if arguments.eval_pairs is not None:
        return users_pairs(arguments.eval_pairs, arguments.size)
    return compose(arguments, arguments.eval_edits, arguments.eval_seed, arguments.eval_split)


@lru_cache(maxsize=2)
def users_pairs(path: str, size: int) -> EditPairs:
    """The pairs of a file, read once."""
    return load_edit_pairs(path, size)


def compose(
    arguments: ImageEditArguments, count: int, seed: int, split: str = "train", **changes: Any
) -> EditExamples:
    """Composed edits."""
    material = {"size": arguments.size, "cell": arguments.cell, "emoji": arguments.emoji}
    return generate_edits(count, seed, split, **{**material, **changes})


def codebook(arguments: ImageEditArguments, folder: Path) -> PatchCodebook:
    """The package's codebook of 4 px patches, or one of other patches, fitted on training pictures and kept."""
    if arguments.patch == 4:
        return load_codebook()
    examples = training_edits(arguments, _CODEBOOK_SEED, _CODEBOOK_PICTURES)
    half = min(len(examples), _CODEBOOK_PICTURES) // 2
    pictures = np.concatenate((examples.source[:half], examples.target[half : 2 * half]))
    path = folder / f"codebook-{content_key(pictures, [arguments.patch, arguments.codes])}.npz"
    if not path.exists():
        with replacing(path) as draft:  # another process of this recipe may be fitting the same one
            fit_codebook(pictures, arguments.codes, arguments.patch, neighbours=False).save(draft)
    return load_codebook(path)


def content_key(*parts: Any) -> str:
    """What a kept result is a result of, in twelve letters: arrays by their bytes, anything else as JSON."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return digest.hexdigest()[:12]


def run_folder(training: RMTrainingArguments, system: str, seed: int) -> Path:
    """Where a run lives."""
    return Path(training.output_dir) / f"{system}_seed{seed}"


def run_settings(arguments: ImageEditArguments, training: RMTrainingArguments) -> dict[str, Any]:
    """What the trained weights depend on."""
    arguments_of_training = {item.name: getattr(training, item.name) for item in dataclasses.fields(training)}
    settings = settings_that_matter(arguments_of_training)
    settings |= {name: getattr(arguments, name) for name in _RECIPE_SETTINGS}
    own = {}
    if arguments.train_pairs is not None:
        own = {"train_pairs": arguments.train_pairs, "train_pairs_digest": file_digest(Path(arguments.train_pairs))}
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
    layout = pairs_layout(book, examples) if isinstance(examples, EditPairs) else edit_layout(book, arguments.size)
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
    """To the end, from the last checkpoint if there is one. CPU minutes of all parts, where one process did them."""
    last = get_last_checkpoint(folder)
    clock = Clock(folder / CLOCK_FILE, resumed=last is not None)
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=last)
    return clock.seconds["cpu_seconds"] / 60 if trainer.args.world_size == 1 else None


_RECIPE_SETTINGS = (
    "train_edits",
    "size",
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


@dataclass(frozen=True)
class Judge:
    """Edits pictures with trained systems and measures what came out; what was measured before is not done again."""

    arguments: ImageEditArguments
    folder: Path
    scorer: Any

    def evaluate(
        self,
        editor: ImageEditor,
        system: str,
        seed: int,
        examples: EditExamples | EditPairs,
        name: str | None = None,
        draws: bool = True,
        **decoding: Any,
    ) -> Record:
        """A record of what came out; where it `draws`, a sheet of edits and an animation beside the other systems'."""
        key = content_key(
            examples.source, examples.target, examples.mask, examples.instructions,
            [DECODINGS[editor.decoding], decoding, self.arguments.vqa],
        )  # fmt: skip
        results = self.folder / f"{system}_seed{seed}" / f"results-{key}.json"
        if results.exists():
            print(f"evaluated before: {results} (delete it to evaluate again)")
            return json.loads(results.read_text())
        run = editor.edit(examples.source, examples.instructions, progress_bar=True, **decoding)
        measured = measure(run.result, examples, editor.book)
        if draws:
            self._draw(run, examples, measured["success"], editor.book, self.folder / f"{system}_seed{seed}")
        record = {
            "name": f"{name or system}, seed {seed}",
            "system": system,
            "seed": seed,
            "edits": measured,
            "success_by_operation": success_by_operation(measured["success"], examples),
            "forwards": float(run.num_forwards.mean()),
            "unfinished": float((run.states[-1] < 0).any((1, 2)).mean()),
            "left_out": len(run.left_out),
            "parameters": editor.model.num_parameters(),
            "eval": what_is_evaluated(self.arguments, examples),
        }
        if self.scorer is not None:
            texts = described(examples) if isinstance(examples, EditExamples) else examples.descriptions
            record["vqa"] = vqa_score(self.scorer, run.result, texts).tolist()
        write_json(results, record)
        return record

    def _draw(
        self,
        run: EditRun,
        examples: EditExamples | EditPairs,
        success: list[float],
        book: PatchCodebook,
        folder: Path,
    ) -> None:
        """A sheet of edits taken at random, failures included, and the revision of its first one."""
        arguments = self.arguments
        count = min(arguments.sheet_edits, len(examples))
        chosen = np.random.default_rng(arguments.eval_seed).permutation(len(examples))[:count]
        judged = {0.0: ", failure", 1.0: ", success"}  # users' pairs are not judged
        notes = [f"edit {i}{judged.get(success[i], '')}" for i in chosen]
        pictures = (examples.source[chosen], run.predicted[chosen], run.result[chosen], examples.target[chosen])
        write_edit_sheet(sheet_of(folder), *pictures, [examples.instructions[i] for i in chosen], notes)
        write_revision_gif(animation_of(folder), run.states[:, chosen[0]], book, examples.source[chosen[0]])


def sheet_of(folder: Path) -> Path:
    """Where the sheet of a run's folder is: beside those of the other systems."""
    return folder.with_name(f"{folder.name}-sheet.png")


def animation_of(folder: Path) -> Path:
    """Where the animation of a run's folder is."""
    return folder.with_name(f"{folder.name}-revision.gif")


def at_equal_coverage(
    arguments: ImageEditArguments,
    judge: Judge,
    editors: dict[tuple[str, int], ImageEditor],
    examples: EditExamples | EditPairs,
) -> list[Record]:
    """Records of `sft` with the keep-threshold that gives it, on dev, the coverage of `rm` of the same seed."""
    if arguments.eval_pairs is not None or not arguments.dev_edits:
        return []
    dev = compose(arguments, arguments.dev_edits, arguments.eval_seed, "dev")
    seeds = [seed for system, seed in editors if system == "rm" and ("sft", seed) in editors]
    return [
        kept_at_equal_coverage(judge, editors["rm", seed], editors["sft", seed], seed, dev, examples) for seed in seeds
    ]


def kept_at_equal_coverage(
    judge: Judge, rm: ImageEditor, sft: ImageEditor, seed: int, dev: EditExamples, examples: EditExamples | EditPairs
) -> Record:
    """The record of one seed; [`KeptSource`] says what the threshold is of."""

    def covered(editor: ImageEditor, system: str, **decoding: Any) -> float:
        measured = judge.evaluate(editor, system, seed, dev, draws=False, **decoding)
        return interval(measured["edits"]["coverage"]).value

    wanted = covered(rm, "rm")
    threshold, found = threshold_of_coverage(lambda share: covered(sft, "sft", keep_threshold=share), wanted)
    print(f"sft keeps the source below a share of {threshold:.3f}: coverage {found:.3f} on dev, rm {wanted:.3f}")
    name = f"sft, keeping below {threshold:.3f}"
    record = judge.evaluate(sft, "sft", seed, examples, name, draws=False, keep_threshold=threshold)
    return record | {"system": AT_EQUAL_COVERAGE, "keep_threshold": threshold}


def under_other_conditions(
    arguments: ImageEditArguments, judge: Judge, editors: dict[tuple[str, int], ImageEditor]
) -> list[Record]:
    """Every system of the first seed, and the oracle, on edits of other names and places than those trained for."""
    if arguments.eval_pairs is not None or not arguments.other_edits:
        return []
    changes: dict[str, dict[str, Any]] = {}
    if arguments.emoji is not None:
        changes[f"all {len(emoji_pool())} training names"] = {"emoji": None}
    if arguments.cell != 1:
        changes["objects anywhere"] = {"cell": 1}
    if arguments.eval_split != "test":
        changes["unseen names"] = {"split": "test"}
    records: list[Record] = []
    for condition, change in changes.items():
        conditions = {"split": arguments.eval_split, **change}
        examples = compose(arguments, arguments.other_edits, arguments.eval_seed, **conditions)
        book = next(iter(editors.values())).book
        found = [reference_records(book, examples)[1]]
        for (system, seed), editor in editors.items():
            if seed == arguments.seeds[0]:
                found.append(judge.evaluate(editor, system, seed, examples, draws=False))
        records += [record | {"condition": condition} for record in found]
    return records


def report(
    arguments: ImageEditArguments,
    training: RMTrainingArguments,
    records: list[Record],
    conditions: list[Record],
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
    tables = [*results_tables(lines, title), *comparison_tables(pooled(records), title)]
    if conditions:
        tables.append(conditions_table(conditions, "other conditions than those trained for"))
    for table in tables:
        console.print(table)
    console.print(reconstruction_line(references), soft_wrap=True)
    for record in records:
        console.print(described_record(record), soft_wrap=True)
    write_json(folder / "records.json", [shippable(record) for record in (*references, *records, *conditions)])
    console.print(f"records: {folder / 'records.json'}; sheets and animations beside it", soft_wrap=True)
    if arguments.card:
        card = ship(arguments, training, [*references, *pooled(records)], conditions, examples)
        console.print(f"card: {card}", soft_wrap=True)


def described_record(record: Record) -> str:
    """What is known of a system beside its measures."""
    rates = ", ".join(f"{name} {rate:.3g}" for name, rate in record["success_by_operation"].items())
    minutes = record.get("train_cpu_minutes")
    trained = "" if minutes is None else f"; trained in {minutes:.1f} CPU minutes"
    scored = f"; VQAScore {shown(interval(record['vqa']))}" if "vqa" in record else ""
    return f"{record['name']}: success by operation: {rates or 'not judged'}{scored}{trained}"


def ship(
    arguments: ImageEditArguments,
    training: RMTrainingArguments,
    records: list[Record],
    conditions: list[Record],
    examples: EditExamples | EditPairs,
) -> Path:
    """The first system of the first seed as a repository: weights, words, codebook, code, card, sheets, animation."""
    system, seed = arguments.systems[0], arguments.seeds[0]
    folder = run_folder(training, system, seed)
    pictures = {"sheet.png": sheet_of(folder), "revision.gif": animation_of(folder)}
    if system != "sft" and "sft" in arguments.systems:
        pictures["sheet-sft.png"] = sheet_of(run_folder(training, "sft", seed))
    place = ImageEditor.load(folder).save(str(arguments.card))
    return write_image_card(
        place,
        records,
        pictures=pictures,
        settings=run_settings(arguments, training),
        command=" ".join(["python", *sys.argv]),
        conditions=conditions,
        instruction=examples.instructions[0],
    )


if __name__ == "__main__":
    main()
