"""Cards: valid metadata in both of the Hub's forms, and every figure with its command and interval."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from tiny_models import wrapped

from hf_rm.hub import CardFacts, Evaluation, write_model_card
from hf_rm.tasks.sudoku.card import card_data

SHIPPED = Path(__file__).parents[2] / "model_cards" / "rm-sudoku"


def evaluation(**changes: object) -> Evaluation:
    values = {"value": 0.5, "low": 0.4, "high": 0.6, "samples": 100, "command": "python eval.py", **changes}
    return Evaluation("arithmetic", "sums", "exact match", **values)  # type: ignore[arg-type]


def write(folder: Path, adapter: bool = False, base: str | None = None, **facts: object) -> ModelCard:
    model = wrapped()
    model.config.backbone_name, model.config.backbone_revision = base, "abc" if base else None
    card = write_model_card(
        folder, "alice/rm", model.config, model.generation_config, CardFacts(**facts), adapter=adapter
    )
    return ModelCard.load(card)


def test_metadata_is_valid_and_complete(tmp_path: Path) -> None:
    card = write(
        tmp_path,
        adapter=True,
        base="alice/base",
        license="mit",
        datasets=["alice/sums"],
        language="en",
        evaluations=[evaluation(benchmark="alice/sums")],
    )
    data = card.data.to_dict()
    assert data["base_model"] == "alice/base" and data["base_model_relation"] == "adapter"
    assert {"hf_rm", "reflective-masking", "peft"} <= set(data["tags"])
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert (data["license"], data["datasets"], data["language"]) == ("mit", ["alice/sums"], "en")
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("alice/sums", "exact match", 0.5)


def test_figures_on_a_benchmark_go_to_eval_results(tmp_path: Path) -> None:
    write(tmp_path, evaluations=[evaluation(benchmark="alice/sums", benchmark_task="test"), evaluation()])
    (file,) = (tmp_path / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (file.name, entry.dataset_id, entry.task_id, entry.value) == ("sums.yaml", "alice/sums", "test", 0.5)
    assert "python eval.py" in entry.notes and "[0.4, 0.6]" in entry.notes and "n = 100" in entry.notes


def test_the_text_says_how_to_load_it_and_how_it_was_measured(tmp_path: Path) -> None:
    text = write(tmp_path, base="alice/base", evaluations=[evaluation(seed=7)]).text
    for part in (
        'RMForMaskedDiffusion.from_pretrained("alice/rm")',
        'AutoModel.from_pretrained("alice/rm")',
        'AutoModel.from_pretrained("alice/rm", trust_remote_code=True)',
        "alice/base at abc",
        "| history_decay | 0.9 |",
        "| arithmetic | sums | exact match | 0.5 [0.4, 0.6] | 100 | 7 |",
        "```bash\npython eval.py\n```",
        "Multi-Turn Reflective Masking",
    ):
        assert part in text, part


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    card = write(tmp_path, base=str(tmp_path))
    assert not {"base_model", "license", "datasets", "model-index"} & set(card.data.to_dict())
    assert "None recorded." in card.text and "No licence is stated" in card.text
    assert not (tmp_path / ".eval_results").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 0.7}, r"`value` is 0.7, outside its interval \[0.4, 0.6\]"),
        ({"command": " "}, "`command`"),
        ({"samples": 0}, "`samples`"),
    ],
)
def test_a_figure_without_its_command_or_interval_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation(**changes)


def test_the_sudoku_card_comes_from_the_same_engine_and_says_what_it_said() -> None:
    records = json.loads((SHIPPED / "records.json").read_text())["records"]
    shipped = ModelCard.load(SHIPPED / "README.md").data
    assert card_data("rm-sudoku", records).to_dict() == shipped.to_dict()


def test_the_sudoku_card_has_generated_and_real_boards_apart() -> None:
    """They share a type of data set: without a configuration the Hub's format made one of them."""
    (model,) = ModelCard.load(SHIPPED / "README.md").data.to_dict()["model-index"]
    assert [result["dataset"]["config"] for result in model["results"]] == ["generated", "real"]
    assert all("real" in result["dataset"]["name"] for result in model["results"][1:])
    for result in model["results"]:
        names = [metric["name"] for metric in result["metrics"]]
        assert len(names) == len(set(names)) == 10
