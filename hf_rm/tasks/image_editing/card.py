# Copyright 2026 The hf_rm authors. Licensed under the Apache License, Version 2.0.
"""The model card of an image editor, with the tables of its evaluation and the command that printed them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from ...hub import card_metadata, render_card
from .report import EDITED, KEPT, ON_TOKENS, Record, interval, markdown_differences, markdown_table

_PICTURES = ("sheet.png", "revision.gif")
_TEMPLATE = """---
{metadata}
---

# {name}

A mask diffusion model of {parameters:,} parameters that changes in a small picture what it is asked to, and leaves the
rest alone. The canvas begins as the picture's own tokens; trained by *Reflective Masking*, the model masks those that
the edit concerns and fills them anew. A token that it does not mask stays what it was.

```python
from hf_rm.tasks.image_editing.editor import ImageEditor

editor = ImageEditor.load("{name}")  # a folder
run = editor.edit(pictures, ["remove the crab"])  # (1, 64, 64, 3) uint8
run.result, run.predicted  # the edited picture, and the region that the model chose to edit
```

The network alone, without hf_rm: `AutoModel.from_pretrained("{name}", trust_remote_code=True)`; pictures then have to
be encoded with `codebook.npz` by hand.

## What it can do

{evaluated}. 95 % intervals in brackets, over the edits. *precision*: share of the changed pixels inside the region;
*coverage*: share of the region that changed; *success*: what was asked for is there, where it should be; *acted*:
anything changed at all; *mae*, *psnr*, *ssim*: outside the region, against the source. Where a token ends as it was,
the source's own pixels stay, for every system; the limit is the target's tokens, shown likewise.

{table}

The same outside the tokens that the region touches:

{on_tokens}

Differences, paired over the edits, from vanilla fine-tuning (the canvas regenerated from masks) with the same number
of steps, batches and parameters; a star marks intervals without zero:

{differences}

Success by operation: {operations}.

![Edits drawn at random by seed, failures included](sheet.png)

![The revision of the first of them](revision.gif)

```bash
{command}
```

## How it was trained

{training}

{material}

## Limits

Small pictures and the kinds of edits and words that it was trained on; colours and edges are no better than the
tokenizer's limit above. What it has not seen it cannot draw.

Licence: Apache-2.0. Paper: *Multi-Turn Reflective Masking Elicits Reasoning in Mask Diffusion Models*.
"""

_COMPOSED = (
    "Composed pictures: emoji with exact masks (Noto) on crops of photographs (COCO, Creative Commons Attribution)\n"
    "and of scikit-image's pictures. Training and testing share no photograph; `NOTICE` in hf_rm names sources and "
    "licences."
)
_OWN = "Pairs of pictures that the user brought: nothing is known here of their origin and licence."


def write_image_card(
    folder: str | Path, records: Sequence[Record], *, run: str | Path, settings: Mapping[str, Any], command: str
) -> Path:
    """
    Write `README.md`, `records.json` (means and intervals) and the run's pictures into a model's folder.

    Args:
        folder (`str` or `Path`): the model's folder; its name is the model's.
        records (sequence of dicts): the evaluation, as `recipes/image_edit.py` makes it; the first record with
            parameters is the model's.
        run (`str` or `Path`): where its training left sheet and animation.
        settings (mapping): of the training.
        command (`str`): what printed the figures.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: without any record of a model.
    """
    folder, run = Path(folder), Path(run)
    own = next((record for record in records if "forwards" in record), None)
    if own is None:
        raise ValueError("`records` has no model's record: evaluate one first.")
    for name in _PICTURES:
        shutil.copyfile(run / name, folder / name)
    split, seed, count = own["eval"]
    card = render_card(
        _TEMPLATE,
        _metadata(folder.name, own),
        name=folder.name,
        parameters=own["parameters"],
        evaluated=f"{count} held-out edits (split {split}, seed {seed})",
        table=markdown_table(records),
        on_tokens=markdown_table(records, ON_TOKENS),
        differences=markdown_differences(records) or "Not measured.",
        operations=", ".join(f"{name} {rate:.3g}" for name, rate in own["success_by_operation"].items())
        or "not judged",
        command=command,
        training=_training(records, settings),
        material=_OWN if settings.get("train_pairs") else _COMPOSED,
    )
    card.save(folder / "README.md")
    (folder / "records.json").write_text(json.dumps([_summary(record) for record in records], indent=1) + "\n")
    return folder / "README.md"


def _training(records: Sequence[Record], settings: Mapping[str, Any]) -> str:
    lines = [f"* `{name}`: {value}" for name, value in settings.items()]
    times = [f"{r['name']} {r['train_cpu_minutes']:.0f}" for r in records if r.get("train_cpu_minutes")]
    return "\n".join([*lines, *([f"* CPU minutes: {', '.join(times)}"] if times else [])])


def _summary(record: Record) -> Record:
    """A record with means and intervals in place of one number an edit."""
    means = {name: interval(record["edits"][name]) for name in EDITED + KEPT + ON_TOKENS}
    shown = {name: None if np.isnan(of.value) else [of.value, of.low, of.high] for name, of in means.items()}
    return {**record, "edits": shown}


def _metadata(name: str, own: Record) -> ModelCardData:
    split, seed, _ = own["eval"]
    means = {measure: interval(own["edits"][measure]).value for measure in EDITED + KEPT}
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name="image editing",
            dataset_type="composed-edits",
            dataset_name=f"composed edits, split {split}, seed {seed}",
            metric_type=measure,
            metric_name=measure,
            metric_value=round(value, 5),
        )
        for measure, value in means.items()
        if not np.isnan(value)
    ]
    return card_metadata(name, results, tags=["image-editing"], license="apache-2.0", pipeline_tag="image-to-image")
