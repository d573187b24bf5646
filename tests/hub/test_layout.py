"""What needs no Hub: which names are local, what PEFT sees of a base, which arguments are refused at once."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from tiny_models import wrapped
from transformers import AutoTokenizer

from hf_rm.adapters_rm import take_over_placement
from hf_rm.hub import save_adapter_for_hub, save_for_hub
from hf_rm.hub.layout import active_adapter, has_adapter, is_local
from hf_rm.tasks.sudoku.model import build_sudoku_tokenizer


def test_which_bases_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "folder").mkdir(parents=True)
    names = ["user/model", "gpt2", "/somewhere/else", "./model", "a/b/c", "user/folder", str(tmp_path)]
    assert [is_local(name) for name in names] == [False, False, True, True, True, True, True]


def test_where_and_how_the_base_is_held_is_taken_over() -> None:
    model = wrapped()
    model.model.hf_device_map = {"model.layers.0": 0, "lm_head": 1}
    model.model.is_loaded_in_4bit = True
    take_over_placement(model)
    assert model.hf_device_map == {"model.model.layers.0": 0, "model.lm_head": 1}
    assert model.is_loaded_in_4bit and not hasattr(model, "is_loaded_in_8bit")
    whole = wrapped()
    whole.model.hf_device_map = {"": "cpu"}
    take_over_placement(whole)
    assert whole.hf_device_map == {"model": "cpu"}


def test_a_tokenizer_does_not_say_how_it_was_loaded(tmp_path: Path) -> None:
    build_sudoku_tokenizer().save_pretrained(tmp_path / "made")
    save_for_hub(wrapped(), tmp_path / "again", tokenizer=AutoTokenizer.from_pretrained(tmp_path / "made"))
    made, again = (json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("made", "again"))
    assert again == made


def test_several_active_adapters_are_refused(tmp_path: Path) -> None:
    model = wrapped()
    assert not has_adapter(model)
    for name in ("one", "two"):
        model.add_adapter(LoraConfig(target_modules=["q_proj"]), name)
    assert active_adapter(model) == "two"
    model.set_adapter(["one", "two"])
    with pytest.raises(ValueError, match="one, two: activate one"):
        save_adapter_for_hub(model, tmp_path, base_model="user/base")


def test_a_merged_adapter_is_none(tmp_path: Path) -> None:
    merged = get_peft_model(wrapped(), LoraConfig(target_modules=["q_proj"])).merge_and_unload()
    assert not has_adapter(merged)
    with pytest.raises(ValueError, match="save_for_hub"):
        save_adapter_for_hub(merged, tmp_path, base_model="user/base")


def test_a_base_built_in_memory_has_to_be_named(tmp_path: Path) -> None:
    adapted = get_peft_model(wrapped(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="pass base_model="):
        save_adapter_for_hub(adapted, tmp_path)
