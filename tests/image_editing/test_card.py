"""The model card of an editor: every table in it, and records small enough to ship."""

from pathlib import Path

import numpy as np
import pytest

from hf_rm.tasks.image_editing.card import write_image_card
from hf_rm.tasks.image_editing.report import MEASURES, read_records


def record(system: str, value: float, **more: object) -> dict:
    edits = {name: [value, value, value] for name in MEASURES}
    return {"name": f"{system}, seed 0", "system": system, "edits": edits, **more}


MEASURED = {
    "seed": 0, "forwards": 4.0, "parameters": 1234, "train_cpu_minutes": 14.6, "eval": ["test_photos", 7, 3],
    "success_by_operation": {"add": 0.5},
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, Path]:
    names = ("sheet.png", "revision.gif", "sheet-sft.png")
    for name in names:
        (tmp_path / f"a-{name}").write_bytes(name.encode())
    return {name: tmp_path / f"a-{name}" for name in names}


def test_a_card_prints_tables_differences_conditions_and_settings(tmp_path: Path, pictures) -> None:
    folder = tmp_path / "rm-image-edit"
    folder.mkdir()
    oracle = record("oracle", 1.0) | {"reconstruction": {"source": [19.0, 21.0], "target": [20.0, 20.0]}}
    records = [record("copy", np.nan), oracle, record("rm", 0.75, **MEASURED), record("sft", 0.25, **MEASURED)]
    conditions = [record("rm", 0.125, **MEASURED) | {"condition": "objects anywhere"}]
    settings = {"max_steps": 800, "size": 64, "cell": 8, "emoji": 24}
    card = write_image_card(
        folder, records, pictures=pictures, settings=settings, command="python recipe", conditions=conditions
    )
    text = card.read_text()
    for expected in (
        "1,234 parameters", "3 held-out edits (split test_photos, seed 7)", "| rm, seed 0 | 0.75 (0.75 to 0.75) |",
        "| precision | 0.5 (0.5 to 0.5) * |", "Success by operation: add 0.5.", "* `max_steps`: 800",
        "rm, seed 0 15, sft, seed 0 15", "python recipe", "Noto", "pipeline_tag: image-to-image",
        "sources 20 (18.04 to 21.96) dB, targets 20 (20 to 20) dB", "begin and end on multiples of 8 px",
        "24 emoji (abacus, banana, bouquet, cheese", "| objects anywhere | 3 | rm, seed 0 | 0.125 (",
        "mask and token is above 0.8, chosen on the split dev", "Minus sft, seed 0, edits that both acted on:",
        '["take away the shark"]', "(sheet-sft.png)",
    ):  # fmt: skip
        assert expected in text, expected
    assert "edits / s" not in text
    shipped = read_records(folder / "records.json")
    assert shipped[2]["means"]["psnr"] == [0.75] * 3 and shipped[0]["means"]["psnr"] == [None] * 3
    assert shipped[2]["edits"]["psnr"] == [0.75] * 3 and np.isnan(shipped[0]["edits"]["psnr"]).all()
    assert shipped[4]["condition"] == "objects anywhere"
    assert (folder / "sheet.png").read_bytes() == b"sheet.png"
    assert (folder / "sheet-sft.png").read_bytes() == b"sheet-sft.png"
    with pytest.raises(ValueError, match="`records`"):
        write_image_card(folder, records[:1], pictures=pictures, settings={}, command="x")


def test_a_card_of_users_pairs_says_nothing_of_emoji(tmp_path: Path, pictures) -> None:
    del pictures["sheet-sft.png"]
    folder = tmp_path / "own"
    folder.mkdir()
    own = record("rm", 0.75, **MEASURED | {"success_by_operation": {}})
    settings = {"train_pairs": "mine.jsonl", "size": 32}
    card = write_image_card(
        folder, [own], pictures=pictures, settings=settings, command="x", instruction="say 'no' to it"
    )
    text = card.read_text()
    assert "emoji" not in text and "sheet-sft" not in text and "user brought" in text and "not judged" in text
    assert """run = editor.edit(picture[None], ["say 'no' to it"])""" in text and ".resize((32, 32))" in text
