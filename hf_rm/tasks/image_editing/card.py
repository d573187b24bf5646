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
from .edit import DECODINGS
from .report import (
    EDITED,
    KEPT,
    ON_TOKENS,
    Record,
    interval,
    markdown_comparisons,
    markdown_conditions,
    markdown_table,
    reconstruction_line,
    shippable,
)
from .scenes import emoji_pool, generate_edits

_BASELINE_SHEET = "sheet-sft.png"
_OF_BASELINE = f"![The same edits by vanilla fine-tuning]({_BASELINE_SHEET})\n\n"
_TEMPLATE = """---
{metadata}
---

# {name}

A mask diffusion model of {parameters:,} parameters that changes in a small picture what it is asked to, and leaves the
rest alone. The canvas begins as the picture's own tokens; trained by *Reflective Masking*, the model masks those that
the edit concerns and fills them anew. A token that it does not mask stays what it was.

```python
{example}
```

The network alone, without hf_rm: `AutoModel.from_pretrained("{name}", trust_remote_code=True)`; pictures then have to
be encoded with `codebook.npz` by hand.

## What it can do

{evaluated}. 95 % intervals in brackets, over the edits. *precision*: share of the changed pixels inside the region;
*coverage*: share of the region that changed; *success*: what was asked for is there, where it should be, and what was
there before is gone (a check that agreed with the eye on 30 of the 36 results that had not set its limits); *acted*:
anything changed at all; *mae*, *psnr*, *ssim*: outside the region, against the source. Where a token ends as it was,
the source's own pixels stay, for every system. The oracle knows the target's tokens.

{table}

The tokenizer's limit: {reconstruction}.

The same outside the tokens that the region touches:

{on_tokens}

{conditions}## Against vanilla fine-tuning

Paired over the edits; vanilla fine-tuning (the canvas regenerated from masks) had the same number of steps, batches
and parameters. A star marks intervals without zero. **Whoever touches fewer tokens loses fewer pixels**: an edit that
does nothing has no precision and 60 dB outside the region. So the differences stand here three times: over all edits,
over those that both systems acted on, and against vanilla fine-tuning that keeps the source's token unless another
one's share of the two is above a threshold, which was chosen on the split dev for this model's coverage.

{differences}

Eq. 1 re-masks here where the mask's share of mask and token is above {threshold}, chosen on the split dev as the
lowest, in steps of 0.05, at which precision, MAE, PSNR and SSIM over all edits all differ from vanilla fine-tuning's.
A lower one covers and succeeds more, and is ahead in less.

Success by operation: {operations}.

![Edits drawn at random by seed, failures included](sheet.png)

{baseline_sheet}![The revision of the first of them](revision.gif)

```bash
{command}
```

`records.json` has every measure of every edit, null where it has none.

## How it was trained

{training}

{material}

## Limits

Small pictures and the kinds of edits and words that it was trained on; colours and edges are no better than the
tokenizer's limit above. What it has not seen it cannot draw, and a word that it has not seen it does not know.

Licence: Apache-2.0. Paper: *Multi-Turn Reflective Masking Elicits Reasoning in Mask Diffusion Models*.
"""

_COMPOSED = (
    "Composed pictures: emoji with exact masks (Noto) on crops of photographs (COCO, Creative Commons Attribution)\n"
    "and of scikit-image's pictures. Training and testing share no photograph; `NOTICE` in hf_rm names sources and "
    "licences."
)
_OWN = "Pairs of pictures that the user brought: nothing is known here of their origin and licence."
_CONDITIONS = """These are easy conditions: pictures of {size} px, objects {places}, and {names}.
{under}
"""
_OTHER_CONDITIONS = """Under others, for which it was not trained (the same seed):

{table}
"""
_EXAMPLE = """from hf_rm.tasks.image_editing import generate_edits
from hf_rm.tasks.image_editing.editor import ImageEditor

editor = ImageEditor.load("{name}")  # this folder
edits = generate_edits(1, split="test_photos", operations=["remove"], size={size}, cell={cell}, emoji={emoji})
run = editor.edit(edits.source, [{instruction}])  # (1, {size}, {size}, 3) uint8
run.result, run.predicted  # the edited picture, and the region that the model chose to edit"""
_OWN_EXAMPLE = """import numpy as np
from PIL import Image

from hf_rm.tasks.image_editing.editor import ImageEditor

editor = ImageEditor.load("{name}")  # this folder
picture = np.asarray(Image.open("picture.png").convert("RGB").resize(({size}, {size})))
run = editor.edit(picture[None], [{instruction}])
run.result, run.predicted  # the edited picture, and the region that the model chose to edit"""


def write_image_card(
    folder: str | Path,
    records: Sequence[Record],
    *,
    pictures: Mapping[str, str | Path],
    settings: Mapping[str, Any],
    command: str,
    conditions: Sequence[Record] = (),
    instruction: str | None = None,
) -> Path:
    """
    Write `README.md`, `records.json` (every measure of every edit) and pictures of edits into a model's folder.

    Args:
        folder (`str` or `Path`): the model's folder; its name is the model's.
        records (sequence of dicts): the evaluation, as `recipes/image_edit.py` makes it; the first record with
            parameters is the model's.
        pictures (mapping): where `sheet.png` and `revision.gif` are to be copied from, and, where vanilla fine-tuning
            drew the same edits, `sheet-sft.png`.
        settings (mapping): of the training.
        command (`str`): what printed the figures.
        conditions (sequence of dicts): records of systems under other conditions, which name theirs as `condition`.
        instruction (`str`, *optional*): a request of the user's own pairs, for the example.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: without any record of a model.
    """
    folder = Path(folder)
    own = next((record for record in records if "forwards" in record), None)
    if own is None:
        raise ValueError("`records` has no model's record: evaluate one first.")
    for name, place in pictures.items():
        shutil.copyfile(place, folder / name)
    split, seed, count = own["eval"]
    composed = not settings.get("train_pairs")
    card = render_card(
        _TEMPLATE,
        _metadata(folder.name, own),
        name=folder.name,
        parameters=own["parameters"],
        example=_example(folder.name, settings, instruction),
        evaluated=f"{count} held-out edits (split {split}, seed {seed})",
        table=markdown_table(records),
        reconstruction=reconstruction_line(records) or "not measured",
        on_tokens=markdown_table(records, ON_TOKENS),
        conditions=_conditions(settings, conditions) if composed else "",
        differences=markdown_comparisons(records) or "Not measured.",
        threshold=DECODINGS["revise"]["revise_threshold"],
        operations=", ".join(f"{name} {rate:.3g}" for name, rate in own["success_by_operation"].items())
        or "not judged",
        baseline_sheet=_OF_BASELINE if _BASELINE_SHEET in pictures else "",
        command=command,
        training=_training(records, settings),
        material=_COMPOSED if composed else _OWN,
    )
    card.save(folder / "README.md")
    shipped = [shippable(record) for record in (*records, *conditions)]
    (folder / "records.json").write_text(json.dumps(shipped, separators=(",", ":")) + "\n", encoding="utf-8")
    return folder / "README.md"


def _example(name: str, settings: Mapping[str, Any], instruction: str | None) -> str:
    if settings.get("train_pairs"):
        return _OWN_EXAMPLE.format(name=name, size=settings["size"], instruction=json.dumps(instruction))
    material = {key: settings[key] for key in ("size", "cell", "emoji")}
    (request,) = generate_edits(1, split="test_photos", operations=["remove"], **material).instructions
    return _EXAMPLE.format(name=name, instruction=json.dumps(request), **material)


def _conditions(settings: Mapping[str, Any], conditions: Sequence[Record]) -> str:
    pool = emoji_pool("train", settings["emoji"])
    cell = settings["cell"]
    names = ", ".join(emoji.name for emoji in pool)
    return _CONDITIONS.format(
        size=settings["size"],
        places="anywhere" if cell == 1 else f"that begin and end on multiples of {cell} px, as its tokens do",
        names=f"{len(pool)} emoji ({names})",
        under=_OTHER_CONDITIONS.format(table=markdown_conditions(conditions)) if conditions else "",
    )


def _training(records: Sequence[Record], settings: Mapping[str, Any]) -> str:
    lines = [f"* `{name}`: {value}" for name, value in settings.items()]
    times = [f"{r['name']} {r['train_cpu_minutes']:.0f}" for r in records if r.get("train_cpu_minutes")]
    return "\n".join([*lines, *([f"* CPU minutes: {', '.join(times)}"] if times else [])])


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
