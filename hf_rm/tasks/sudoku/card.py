# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The model card of a Sudoku model, with the figures of its evaluation and the command of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ...hub import card_metadata, render_card
from .report import Record, markdown_table, plot_rounds

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

model = AutoModel.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
board = "..."  # 81 characters, row by row; "." is an empty cell
out = model.generate_reflective(tokenizer(board, return_tensors="pt").input_ids)
print(tokenizer.decode(out.sequences[0]), out.num_steps, out.stop_reason)
```

## What it can do

Solved boards in which 4 to 20 cells (uniform) hold a wrong digit, all cells editable; {evaluations}. 95 % intervals in
brackets. *Ceiling*: what an exact decoder reaches on the same boards, ties at random (the original is often not the
only closest valid board); *gap*: paired, ceiling minus exact, in points; *unique*: boards whose original is the only
closest one; *replay*: re-masked wrong cells that were later filled with the same wrong digit.

{table}

The paper's model (its boards are not published): 93.40 exact, 93.60 valid, 0.03 replay, 0.236 conflict cells on 500
boards.

```bash
{commands}
```

![Exact boards against decoding rounds](rounds.png)

## How it was trained

{training}

The encoder is transformers' pre-norm RoBERTa (4 layers, width 128, 4 heads). Three heads see only the own row, column
or box, and a cell's position is the sum of a row, a column and a box embedding: it knows the shape of a Sudoku, not
its rules.

## Limits

It revises *drafts*: boards with a few wrong cells. Puzzles with few givens and many empty cells are another task, for
which it was not trained. Where several boards are equally close to the draft it cannot know which one was meant.

Licence: Apache-2.0. Paper: *Multi-Turn Reflective Masking Elicits Reasoning in Mask Diffusion Models*.
"""


def write_card(
    folder: str | Path,
    records: Sequence[Record],
    *,
    parameters: int,
    commands: Sequence[str],
    training: str,
) -> Path:
    """
    Write `README.md` and `rounds.png` into a model's folder.

    Args:
        folder (`str` or `Path`): the model's folder; its name is the model's.
        records (sequence of dicts): evaluations, as [`make_record`] gives them, with `name`, `source` and `eval_seed`.
        parameters (`int`): of the model.
        commands (sequence of `str`): what printed the figures.
        training (`str`): how it was trained: command, seed, steps, time.

    Returns:
        `Path`: the card.
    """
    folder = Path(folder)
    plot_rounds([record for record in records if record["source"] == "generated"], folder / "rounds.png")
    sets = {(record["source"], int(record["boards"]), record["eval_seed"]) for record in records}
    evaluations = "; ".join(f"{boards:,} {source} boards, seed {key}" for source, boards, key in sorted(sets))
    card = render_card(
        _TEMPLATE,
        _metadata(folder.name, records),
        name=folder.name,
        parameters=parameters,
        evaluations=evaluations,
        table=markdown_table(records),
        commands="\n".join(commands),
        training=training,
    )
    path = folder / "README.md"
    card.save(path)
    return path


def _metadata(name: str, records: Sequence[Record]) -> ModelCardData:
    results = [
        EvalResult(
            task_type="other",
            task_name="Sudoku revision",
            dataset_type="sudoku-revision",
            dataset_name=f"{record['source']} boards, seed {record['eval_seed']}",
            metric_type=metric,
            metric_name=f"{metric} ({record['decoding']})",
            metric_value=round(record[metric], 5),
        )
        for record in records
        for metric in ("exact_accuracy", "valid_rate", "conflict_cells", "replay_mistake")
    ]
    return card_metadata(name, results, tags=["sudoku"], license="apache-2.0")
