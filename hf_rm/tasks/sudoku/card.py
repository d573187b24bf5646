# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""A Sudoku model as it is published: its card, its records, its curve, and the same tables in the project's README."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoModel, AutoTokenizer

from ...generation_config_rm import ReflectiveGenerationConfig
from ...hub import card_metadata, render_card, save_for_hub
from ...training.stages import write_json
from .evaluate import DECODINGS
from .report import Record, errors_markdown, plot_rounds, recall_markdown, results_markdown
from .training import FINISHED, read_training

RECORDS = "records.json"
_METRICS = ("exact_accuracy", "exact_on_unique", "valid_rate", "conflict_cells", "replay_mistake")
_TEMPLATE = """---
{metadata}
---

# {name}

A mask diffusion model of {parameters:,} parameters that repairs Sudoku boards. It was trained by *Reflective Masking*:
at every step it decides for each cell whether to keep it, to mask it, or to fill it, and with *History Reference* it
reads its earlier states. Nothing tells it which cells are wrong.

```python
import hf_rm  # or trust_remote_code=True below, without hf_rm installed
from transformers import AutoModel, AutoTokenizer

name = "OWNER/{name}"  # its name on the Hub, or the folder that holds it
model = AutoModel.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
board = "534678912672195348198342567859761423426853791713924856961537284287419635345286171"  # the last cell is wrong
out = model.generate_reflective(tokenizer(board, return_tensors="pt").input_ids)
print(tokenizer.decode(out.sequences[0]), out.num_steps, out.stop_reason)
```

A board is 81 characters, row by row; "." is an empty cell. Where nothing else is said it decodes by `{decoding}`:
`threshold` reveals masks above a probability of 0.9 only (and the surest one always), `eq1` is plain Eq. 1
(`preset="rm-paper"`). Both revise by Eq. 1.

## What it can do

Solved boards in which 4 to 20 cells (uniform) hold a wrong digit, all cells editable. 95 % intervals in brackets.
*Ceiling*: what an exact decoder reaches on the same boards, ties at random (the original is often not the only closest
valid board); *gap*: paired, ceiling minus exact, in points; *unique*: boards whose original is the only closest one;
*replay*: re-masked wrong cells that were later filled with the same wrong digit. The paper's boards are not published.

{results}

Of the generated boards:

{errors}

*Recall*: the share of wrong cells that one step re-masks. *Same states*: the same wrong cells of 1,000 boards, each
under three pasts: it stood there from the start, it was revealed from a mask, it is the second wrong digit. *Own*:
along the model's own trajectories, where a past with a mask is one that the model itself brought about. There *every
step* counts a digit again at each step that keeps it, and counts boards that have several closest solutions, so it is
mostly about digits that are kept to the end; *first met* counts a digit the first time that a cell holds it, on
uniquely decodable boards alone. Those behind a mask are the model's own mistakes: few, and not drawn at random, since
it has just taken them for right.

{recall}

![Exact boards against decoding rounds](rounds.png)

## How it was trained

{training}

The encoder is transformers' pre-norm RoBERTa (6 layers, width 128, 4 heads). Three heads see only the own row, column
or box, and a cell's position is the sum of a row, a column and a box embedding: it knows the shape of a Sudoku, not
its rules. Training and evaluation boards come from disjoint random streams, and the published boards were never
trained on. All settings: `{records}`.

## Limits

It revises *drafts*: boards with a few wrong cells. Puzzles with few givens and many empty cells are another task, for
which it was not trained. Where several boards are equally close to the draft it cannot know which one was meant.

Licence: Apache-2.0. Paper: *Multi-Turn Reflective Masking Elicits Reasoning in Mask Diffusion Models*.
"""


def publish(
    model: str, folder: str | Path, records: Sequence[Record], *, command: str, readme: str | Path | None = None
) -> Path:
    """
    Put a model into its folder, with `records.json`, `rounds.png` and its card, and its tables into a README.

    Args:
        model (`str`): the evaluated model, a folder or Hub name; a `finished.json` there says how it was trained.
        folder (`str` or `Path`): where it is published; its name is the model's. It may be `model` itself.
        records (sequence of dicts): its evaluations, as [`make_record`] gives them, with `name`, `source`,
            `eval_seed`, `decoding` and `recall`.
        command (`str`): what printed them.
        readme (`str` or `Path`, *optional*): a file with the markers of [`blocks`].

    Returns:
        `Path`: the card.
    """
    folder = Path(folder)
    loaded = AutoModel.from_pretrained(model)
    if Path(model).resolve() != folder.resolve():
        save_for_hub(loaded, folder, tokenizer=AutoTokenizer.from_pretrained(model))
        if read_training(model) is not None:
            shutil.copyfile(Path(model) / FINISHED, folder / FINISHED)
    document = {
        "command": command,
        "parameters": loaded.num_parameters(),
        "decoding": default_decoding(loaded.generation_config),
        "training": read_training(folder),
        "records": [_strict({**record, "replay_page": None}) for record in records],
    }
    write_json(folder / RECORDS, document)
    plot_rounds(_generated(document), folder / "rounds.png")
    path = write_card(folder, document)
    if readme is not None:
        for name, text in blocks(document).items():
            replace_block(readme, name, text)
    return path


def write_card(folder: str | Path, document: Mapping[str, Any]) -> Path:
    """The card of a published model's records, `README.md` in its folder."""
    folder = Path(folder)
    card = render_card(
        _TEMPLATE,
        card_data(folder.name, document["records"]),
        name=folder.name,
        parameters=document["parameters"],
        decoding=document["decoding"],
        records=RECORDS,
        **blocks(document),
    )
    card.save(folder / "README.md")
    return folder / "README.md"


def blocks(document: Mapping[str, Any]) -> dict[str, str]:
    """
    What a card and a README print of a published model's records, by the name of its markers: `<!-- results -->` and
    `<!-- /results -->`, `errors`, `recall` and `training`.
    """
    generated = _generated(document)
    return {
        "results": results_markdown(document["records"]) + "\n\n" + _source(document),
        "errors": errors_markdown(generated),
        "recall": recall_markdown(generated),
        "training": _training(document["training"]),
    }


def replace_block(path: str | Path, name: str, text: str) -> None:
    """
    Replace what stands between a file's markers `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: for a file without these markers.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "README.md"
        >>> _ = file.write_text("<!-- results -->\\nold\\n<!-- /results -->\\n")
        >>> replace_block(file, "results", "new")
        >>> file.read_text()
        '<!-- results -->\\nnew\\n<!-- /results -->\\n'
    """
    file = Path(path)
    old = file.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(old)) != 1:
        raise ValueError(f"{file} has no <!-- {name} --> before one <!-- /{name} -->: put both there, once.")
    file.write_text(pattern.sub(lambda match: match[1] + text + match[2], old), encoding="utf-8")


def default_decoding(config: Any) -> str:
    """
    The key of `DECODINGS` that a generation config stands for; "its own settings" for any other.

    Example:
        >>> default_decoding(ReflectiveGenerationConfig())
        'eq1'
    """
    rules = ("reveal", "reveal_threshold", "revise", "revise_threshold")
    for name, settings in DECODINGS.items():
        decoding = ReflectiveGenerationConfig(**settings)
        if all(getattr(config, rule) == getattr(decoding, rule) for rule in rules):
            return name
    return "its own settings"


def card_data(name: str, records: Sequence[Record]) -> ModelCardData:
    """The card's YAML block; generated and real boards are two data sets."""
    results = [
        EvalResult(
            task_type="other",
            task_name="Sudoku revision",
            dataset_type="sudoku-revision",
            dataset_config=record["source"],
            dataset_name=f"{record['source']} boards, seed {record['eval_seed']}",
            metric_type=metric,
            metric_name=f"{metric} ({record['decoding']})",
            metric_value=round(record[metric], 5),
        )
        for record in records
        for metric in _METRICS
        if metric in record
    ]
    return card_metadata(name, results, tags=["sudoku"], license="apache-2.0")


def _strict(value: Any) -> Any:
    """Without what JSON has no word for (nan: of no cells, no share) and without keys that hold nothing."""
    if not isinstance(value, dict):
        return value
    parts = {key: _strict(part) for key, part in value.items()}
    return {
        key: part
        for key, part in parts.items()
        if part is not None and not (isinstance(part, float) and math.isnan(part))
    }


def _generated(document: Mapping[str, Any]) -> list[Record]:
    return [record for record in document["records"] if record["source"] == "generated"]


def _source(document: Mapping[str, Any]) -> str:
    """Which boards, and what printed the figures."""
    sets = dict.fromkeys((record["source"], int(record["boards"])) for record in document["records"])
    seeds = dict.fromkeys(str(record["eval_seed"]) for record in document["records"])
    boards = " and ".join(f"{boards:,} {source}" for source, boards in sets)
    rest = ", ".join(f"{record['unfinished']} ({record['decoding']})" for record in _generated(document))
    return (
        f"{boards} boards, seed {' and '.join(seeds)}, `{document['command']}`. Still being revised when the limit of "
        f"steps stopped them: {rest} of the generated ones."
    )


def _training(training: Mapping[str, Any] | None) -> str:
    if training is None:
        return "Not recorded."
    settings, stages = training["settings"], training["stages"]
    size = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * training["processes"]
    steps = [f"{stage['steps']:,}" for stage in stages]
    last = "a finishing stage" if len(steps) == 2 else "finishing stages"
    finish = f" and {last} of {', '.join(steps[1:])}" if steps[1:] else ""
    minutes = " + ".join(f"{stage['cpu_minutes']:.1f}" for stage in stages)
    parts = f" ({minutes})" if steps[1:] else ""
    where = f"{_count(training['processes'], 'process', 'es')} of {_count(training['threads'], 'thread')}"
    attempts = f", up to {settings['max_attempts']} wrong attempts a cell" if "max_attempts" in settings else ""
    pool = ""
    if settings["pool_fraction"]:
        pool = f"; {100 * settings['pool_fraction']:g} % of a batch from the on-policy pool"
        pool += f" after step {settings['pool_start_step']:,}" if settings.get("pool_start_step") else ""
        pool += f", {100 * settings['finish_pool_fraction']:g} % in {last.replace('a ', 'the ')}" if steps[1:] else ""
    muon = settings["muon_learning_rate"]
    rates = f"Muon at {muon:g} for the matrices and AdamW at {settings['learning_rate']:g} for the rest"
    return (
        f"`{training['command']}`, seed {settings['seed']}: {steps[0]} steps of {size} generated boards{finish}, "
        f"{training['train_cpu_minutes']:.1f} minutes of CPU time{parts} in {where}. Trajectory law "
        f"`{settings['law']}` (T = {settings['horizon']}{attempts}){pool}; "
        f"{rates if muon else 'AdamW at ' + format(settings['learning_rate'], 'g')}."
    )


def _count(number: int, word: str, plural: str = "s") -> str:
    return f"{number} {word}{plural if number != 1 else ''}"
