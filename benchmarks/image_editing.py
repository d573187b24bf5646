"""
Speed of image editing at the quality that comes with it: revising the source against regenerating the canvas.

    python benchmarks/image_editing.py outputs/image-edit-cpu       # what recipes/image_edit.py trained there
    python benchmarks/image_editing.py outputs/image-edit-cpu --steps 4 8 16 32 --edits 200

Revision takes as many forward passes as an edit needs. Regeneration (the fine-tuned baseline, and every revising
system from a canvas of masks) takes as many as it is given: each number is a point of its curve. Equal quality: for
every revising system and measure, the cheapest regeneration of the baseline that is not worse, which is to say whose
paired difference over the same edits does not exclude zero on the wrong side; or none, however many steps it was
given. Times are CPU seconds of one thread, encoding and decoding of the pictures included.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from _common import Row, add_result, print_table

from hf_rm.tasks.image_editing import EditExamples, generate_edits
from hf_rm.tasks.image_editing.editor import ImageEditor
from hf_rm.tasks.image_editing.report import Record, differences, interval, measure, shown

QUALITIES = {"success": 1, "ssim": 1, "mae": -1, "psnr_tokens": 1}  # and whether more is better


def main() -> None:
    """Measure every system, print the curve and what is equally good, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="The recipe's output folder, with one folder a system and seed.")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16, 32], help="Of regeneration.")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--split", default="test_photos")
    parser.add_argument("--seed", type=int, default=20261123)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = sorted(path.parent for path in options.folder.glob("*_seed*/trained.json"))
    if not runs:
        parser.error(f"{options.folder} holds no trained system: run recipes/image_edit.py first.")
    settings = json.loads((runs[0] / "settings.json").read_text())
    material = {name: settings[name] for name in ("size", "cell", "emoji")}
    examples = generate_edits(options.edits, options.seed, options.split, **material)
    records = [record for run in runs for record in time_system(run, examples, options.steps)]
    print_table(f"Image editing, {options.edits} edits of {options.split}", [row(record) for record in records])
    equal = equal_quality(records)
    if equal:
        print_table("Equal quality: the cheapest regeneration that is not worse", equal)
    asked = {"edits": options.edits, "split": options.split, "seed": options.seed, "steps": settings["max_steps"]}
    add_result("image_editing", {"rows": [row(record) for record in records], "equal_quality": equal, **asked})


def time_system(run: Path, examples: EditExamples, steps: list[int]) -> list[Record]:
    """The system as it was trained to decode, and regenerating in so many steps."""
    editor = ImageEditor.load(run)
    editor.edit(examples.source[:8], examples.instructions[:8])  # not counted
    records = []
    if editor.decoding == "revise":
        records.append(time_decoding(editor, run.name, examples))
    return records + [time_decoding(editor, run.name, examples, decoding="regenerate", steps=count) for count in steps]


def time_decoding(editor: ImageEditor, name: str, examples: EditExamples, **settings: object) -> Record:
    """CPU seconds, forwards and measures of one decoding."""
    began = time.process_time()
    run = editor.edit(examples.source, examples.instructions, **settings)
    seconds = (time.process_time() - began) / len(examples)
    what = f"{name}, {settings['steps']} steps from masks" if settings else f"{name}, revises"
    return {
        "name": what,
        "system": name,
        "revises": not settings,
        "baseline": editor.decoding == "regenerate",
        "forwards": float(run.num_forwards.mean()),
        "seconds_an_edit": seconds,
        "edits": measure(run.result, examples, editor.book),
    }


def row(record: Record) -> Row:
    """A line of the table."""
    costs = {"forwards": round(record["forwards"], 2), "edits_per_s": round(1 / record["seconds_an_edit"], 2)}
    return {"what": record["name"], **costs, **{n: shown(interval(record["edits"][n])) for n in QUALITIES}}


def equal_quality(records: list[Record]) -> list[Row]:
    """For each revising system and measure the cheapest regeneration by the baseline that is not worse."""
    baseline = sorted((r for r in records if r["baseline"]), key=lambda record: record["forwards"])
    lines = []
    for mine in (record for record in records if record["revises"]):
        for name, sign in QUALITIES.items():
            behind = [differences(other, mine)[name] for other in baseline]
            # Ahead, or the interval reaches zero.
            good = [o for o, d in zip(baseline, behind, strict=True) if max(sign * d.low, sign * d.high) >= 0]
            line: Row = {"what": mine["name"], "measure": name, "forwards": round(mine["forwards"], 2)}
            if not good:
                lines.append({**line, "regeneration": "none", "times_the_forwards": "-", "times_the_seconds": "-"})
                continue
            cheapest = good[0]
            ratios = [round(cheapest[cost] / mine[cost], 2) for cost in ("forwards", "seconds_an_edit")]
            lines.append(
                {
                    **line,
                    "regeneration": cheapest["name"],
                    "times_the_forwards": ratios[0],
                    "times_the_seconds": ratios[1],
                }
            )
    return lines


if __name__ == "__main__":
    main()
