"""The model card of an editor: every table in it, and records small enough to ship."""

import json
from pathlib import Path

import numpy as np
import pytest

from hf_rm.tasks.image_editing.card import write_image_card
from hf_rm.tasks.image_editing.report import MEASURES


def record(system: str, value: float, **more: object) -> dict:
    edits = {name: [value, value, value] for name in MEASURES}
    return {"name": f"{system}, seed 0", "system": system, "edits": edits, **more}


def test_a_card_prints_tables_differences_and_settings(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "rm-image-edit"
    run.mkdir()
    folder.mkdir()
    for name in ("sheet.png", "revision.gif"):
        (run / name).write_bytes(name.encode())
    measured = {
        "seed": 0, "forwards": 4.0, "seconds_an_edit": 0.25, "parameters": 1234, "train_cpu_minutes": 14.6,
        "success_by_operation": {"add": 0.5}, "eval": ["test_photos", 7, 3],
    }  # fmt: skip
    records = [record("copy", np.nan), record("rm", 0.75, **measured), record("sft", 0.25, **measured)]
    card = write_image_card(folder, records, run=run, settings={"max_steps": 800}, command="python recipe")
    text = card.read_text()
    for expected in (
        "1,234 parameters", "3 held-out edits (split test_photos, seed 7)", "| rm, seed 0 | 0.75 (0.75 to 0.75) |",
        "| precision | 0.5 (0.5 to 0.5) * |", "Success by operation: add 0.5.", "* `max_steps`: 800",
        "rm, seed 0 15, sft, seed 0 15", "python recipe", "Noto", "pipeline_tag: image-to-image",
    ):  # fmt: skip
        assert expected in text, expected
    shipped = json.loads((folder / "records.json").read_text())
    assert shipped[1]["edits"]["psnr"] == [0.75] * 3 and shipped[0]["edits"]["psnr"] is None
    assert (folder / "sheet.png").read_bytes() == b"sheet.png"
    with pytest.raises(ValueError, match="`records`"):
        write_image_card(folder, records[:1], run=run, settings={}, command="x")
