"""What is printed of an evaluation: every exact accuracy beside its ceiling, recall with what it rests on."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from hf_rm.tasks.sudoku import CeilingTable, evaluation_set
from hf_rm.tasks.sudoku.card import blocks, card_data, default_decoding, replace_block, write_card
from hf_rm.tasks.sudoku.evaluate import SudokuRun
from hf_rm.tasks.sudoku.model import build_sudoku_model
from hf_rm.tasks.sudoku.report import (
    ablation_markdown,
    ablation_tables,
    errors_markdown,
    errors_table,
    make_record,
    own_recall_table,
    plot_rounds,
    recall_markdown,
    results_markdown,
    results_table,
)


def run_of(boards: int = 12) -> SudokuRun:
    """Masks every wrong cell in step 1 and fills it in step 2: right, but for one cell of the first board."""
    initial, target = evaluation_set("generated", boards, seed=3)
    masked = np.where(initial == target, target, 0).astype(np.uint8)
    final = target.copy()
    cell = int((initial[0] != target[0]).argmax())
    final[0, cell] = initial[0, cell]
    states = np.stack([initial, masked, final, final])
    actions = np.zeros((3, *initial.shape), dtype=np.int8)
    actions[0][initial != target], actions[1][masked == 0] = 2, 1
    steps = np.full(boards, 3)
    return SudokuRun(initial, final, target, states, actions, steps, np.arange(boards) > 1, seconds=2.0)


def ceiling_of(run: SudokuRun, unique: list[int]) -> CeilingTable:
    """A ceiling under which the named boards alone are uniquely decodable, and the others have two answers."""
    alone = np.isin(np.arange(len(run.final)), unique)
    closest = np.where(alone, 1, 2)
    true, none = np.ones(len(alone), dtype=bool), np.zeros(len(alone))
    return CeilingTable(none, closest, true, 1 / closest, alone, true, none, "", {})


LABELS = {"name": "m (eq1)", "source": "generated", "eval_seed": 3, "decoding": "eq1"}
RECALL = {past: {"recall": 0.5, "low": 0.25, "high": 0.75, "count": 1234, "false_alarms": 0.001}
          for past in ("since_start", "revealed_once", "second_attempt")}  # fmt: skip


def record_of(unique: list[int] | None = None, **labels: object) -> dict:
    run = run_of()
    ceiling = None if unique is None else ceiling_of(run, unique)
    return make_record(run, ceiling, **{**LABELS, "recall": RECALL, **labels})


def printed(table: object) -> str:
    console = Console(width=250, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_record_has_the_ceiling_beside_every_exact_accuracy() -> None:
    run, record = run_of(), record_of([0, 1, 2])
    assert record["exact_accuracy"] == pytest.approx(11 / 12) and record["ceiling"] == pytest.approx(7.5 / 12)
    assert record["exact_on_unique"] == pytest.approx(2 / 3) and record["unfinished"] == 2
    errors = (run.initial != run.target).sum(axis=1)
    for wrong, row in record["by_errors"].items():
        low, high = map(int, wrong.split(" to "))
        rows = (errors >= low) & (errors <= high)
        alone = rows[:3].sum()
        assert row["boards"] == rows.sum() and row["unique_boards"] == alone
        assert row["ceiling"] == pytest.approx((alone + (rows.sum() - alone) / 2) / rows.sum())
        expected = (rows[:3] & run.exact[:3]).sum() / alone if alone else math.nan
        assert row["exact_on_unique"] == pytest.approx(expected, nan_ok=True)
    assert "ceiling" not in record_of()["by_errors"]["4 to 8"]


def test_own_recall_of_first_meetings_is_of_uniquely_decodable_boards() -> None:
    """The kept mistake of board 0 counts once where that board is decodable, and not at all where it is not."""
    every = record_of([0])["own_recall"]["revealed_once"]
    assert (every["recall"], every["count"]) == (0.0, 1)
    run = run_of()
    wrong = int((run.initial[0] != run.target[0]).sum())
    first = record_of([0])["own_recall_first"]
    assert first["since_start"]["count"] == wrong and first["since_start"]["recall"] == 1.0
    assert first["revealed_once"]["count"] == 0  # the very digit that the cell held before
    assert record_of([1])["own_recall_first"]["since_start"]["count"] == (run.initial[1] != run.target[1]).sum()
    assert "own_recall_first" not in record_of()


def test_tables_print_the_ceiling_and_both_recalls() -> None:
    record = record_of([0, 1, 2])
    text = printed(errors_table([record]))
    assert "ceiling %" in text and "unique, exact %" in text
    for row in record["by_errors"].values():
        assert f"{100 * row['ceiling']:.2f}" in text and f"{100 * row['exact']:.2f}" in text
    assert f"| {100 * record['by_errors']['4 to 8']['ceiling']:.2f} |" in errors_markdown([record])
    results = printed(results_table([record], "title", ["hr-decay-her"]))
    assert "62.50" in results and "93.40" in results and "| the paper's model" in results_markdown([record])
    own = printed(own_recall_table([record, record_of(name="bare")]))
    assert "first met, unique boards" in own and "every step" in own
    assert f"100.0 [{100 * record['own_recall']['since_start']['low']:.1f}, 100.0]" in own
    lines = recall_markdown([record]).splitlines()
    assert len(lines) == 5 and "| m (eq1) | since start | 50.0 [25.0, 75.0] of 1,234 |" in lines[2]


def test_the_ablation_prints_means_beside_the_ceiling() -> None:
    runs = [record_of([0, 1], variant=variant, law=law, seed=seed)
            for law in ("paper", "attempts+pool") for variant in ("hr", "no-hr") for seed in (0, 1)]  # fmt: skip
    runs[0]["exact_accuracy"] = 0.8
    figures, own = ablation_markdown(runs).split("\n\n")
    heading, _, *rows = figures.splitlines()
    assert "| exact % | ceiling % | unique, exact % |" in heading
    assert [row.split(" | ")[0:3] for row in rows] == [
        ["| paper", "no-hr", "2"], ["| paper", "hr", "2"], ["| attempts+pool", "no-hr", "2"],
        ["| attempts+pool", "hr", "2"],
    ]  # fmt: skip
    spread = np.std([80, 100 * 11 / 12], ddof=1)
    assert f"| {np.mean([80, 100 * 11 / 12]):.1f} ± {spread:.1f} | 58.3 | 50.0 |" in rows[1]
    assert own.splitlines()[2].startswith("| paper | no-hr | 100.0 |")
    without = [{key: value for key, value in run.items() if key != "own_recall_first"} for run in runs]
    assert (
        ablation_markdown(without).split("\n\n")[1].splitlines()[0].startswith("| law | history | every step %: since")
    )
    tables = [printed(table) for table in ablation_tables(runs)]
    assert "ceiling %" in tables[0] and "58.3" in tables[0] and "every step %" in tables[1]


def test_the_curve_is_a_picture_with_and_without_a_ceiling(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, records in (("with", [record_of([0]), record_of([0], name="b")]), ("without", [record_of()])):
        path = plot_rounds(records, tmp_path / "new" / f"{name}.png")
        assert path.read_bytes()[:4] == b"\x89PNG"


def document(**changes: object) -> dict:
    run = {
        "command": "train it", "settings": {
            "seed": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "law": "attempts",
            "horizon": 16, "max_attempts": 2, "pool_fraction": 0.5, "pool_start_step": 1000,
            "finish_pool_fraction": 0.75, "learning_rate": 0.003, "muon_learning_rate": 0.01,
        },
        "train_cpu_minutes": 12.34, "processes": 1, "threads": 2,
        "stages": [{"steps": 1200, "cpu_minutes": 10.0}, {"steps": 30, "cpu_minutes": 2.34}],
    }  # fmt: skip
    records = [record_of([0, 1], name="m, generated (eq1)"), record_of([0, 1], name="m, real (eq1)", source="real")]
    return {"command": "print it", "parameters": 7, "decoding": "eq1", "training": run, "records": records, **changes}


def test_a_card_prints_its_records_and_their_command(tmp_path: Path) -> None:
    folder = tmp_path / "rm-mine"
    folder.mkdir()
    text = write_card(folder, document()).read_text()
    for name, block in blocks(document()).items():
        assert block in text, name
    assert "12 generated and 12 real boards, seed 3, `print it`" in text
    assert "2 (eq1) of the generated ones" in text
    assert "`train it`, seed 4: 1,200 steps of 16 generated boards and a finishing stage of 30, 12.3 minutes" in text
    assert (
        "(10.0 + 2.3) in 1 process of 2 threads" in text
        and "from the on-policy pool after step 1,000, 75 % in the finishing stage;" in text
    )
    assert 'name = "OWNER/rm-mine"' in text and '"rm-mine")' not in text
    assert "Not recorded." in blocks(document(training=None))["training"]


def test_generated_and_real_boards_are_two_data_sets() -> None:
    index = card_data("m", document()["records"]).to_dict()["model-index"]
    datasets = [result["dataset"] for result in index[0]["results"]]
    assert [(found["config"], found["name"]) for found in datasets] == [
        ("generated", "generated boards, seed 3"), ("real", "real boards, seed 3"),
    ]  # fmt: skip


def test_blocks_are_replaced_where_their_markers_are(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("a\n<!-- x -->\nold\nolder\n<!-- /x -->\nb\n<!-- y -->\n\n<!-- /y -->\n")
    replace_block(file, "x", "new \\1 {text}")
    assert file.read_text() == "a\n<!-- x -->\nnew \\1 {text}\n<!-- /x -->\nb\n<!-- y -->\n\n<!-- /y -->\n"
    with pytest.raises(ValueError, match=r"<!-- z -->"):
        replace_block(file, "z", "new")
    file.write_text(file.read_text() * 2)
    with pytest.raises(ValueError, match="once"):
        replace_block(file, "x", "new")


def test_the_decoding_of_a_saved_model_has_its_name() -> None:
    config = build_sudoku_model(num_layers=4).generation_config
    assert default_decoding(config) == "eq1"
    assert default_decoding(config.updated(reveal="threshold")) == "threshold"
    assert default_decoding(config.updated(reveal="threshold", reveal_threshold=0.5)) == "its own settings"


def test_published_records_are_json_that_any_reader_takes() -> None:
    from hf_rm.tasks.sudoku.card import _strict

    text = json.dumps(_strict({**record_of([0]), "replay_page": None}), allow_nan=False)
    assert "replay_page" not in text and json.loads(text)["own_recall"]["replaced"] == {"count": 0}
