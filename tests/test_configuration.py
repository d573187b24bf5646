"""RMConfig and ReflectiveGenerationConfig: what they refuse, and that they survive being saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import grid
from transformers import AutoConfig, BertConfig, LlamaConfig

from hf_rm import ReflectiveGenerationConfig, RMConfig
from hf_rm.generation_config_rm import DEFAULTS, PRESETS


def backbone(**kwargs: Any) -> LlamaConfig:
    defaults = {"vocab_size": 10, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    defaults |= {"num_attention_heads": 2, "is_causal": False, "architectures": ["LlamaForCausalLM"]}
    return LlamaConfig(**{**defaults, **kwargs})


ODD = {"hidden_size": 15, "num_attention_heads": 1, "head_dim": 16}
BAD = {
    "no mask id": ({"mask_token_id": None}, "mask_token_id"),
    "mask id past the vocabulary": ({"mask_token_id": 10}, "mask_token_id.*10"),
    "negative mask id": ({"mask_token_id": -1}, "mask_token_id"),
    "mask id no integer": ({"mask_token_id": "9"}, "mask_token_id"),
    "mask id a bool": ({"mask_token_id": True}, "mask_token_id.*True.*pass an integer"),
    "history no bool": ({"history": "no"}, "`history` is 'no': pass one of True, False"),
    "rotation no bool": ({"history_rotation": "yes"}, "`history_rotation` is 'yes'"),
    "shift no bool": ({"logits_shift": None}, "`logits_shift` is None"),
    "positions no bool": ({"backbone_positions": "off"}, "`backbone_positions` is 'off'"),
    "trained no bool": ({"trained_to_remask": "yes"}, "`trained_to_remask` is 'yes': pass one of True, False, None"),
    "decay 0": ({"history_decay": 0.0}, "history_decay"),
    "decay above 1": ({"history_decay": 1.01}, "history_decay"),
    "negative decay": ({"history_decay": -0.5}, "history_decay"),
    "decay nan": ({"history_decay": float("nan")}, "history_decay"),
    "decay no number": ({"history_decay": "0.9"}, "history_decay"),
    "odd width with rotation": ({"text_config": backbone(**ODD)}, "history_rotation.*15"),
    "base 0": ({"history_base": 0}, "history_base"),
    "unknown norm": ({"history_norm": "layer"}, "history_norm.*rms, match, none"),
    "eps 0": ({"history_eps": 0.0}, "history_eps"),
    "unknown scope": ({"history_scope": "prompt"}, "history_scope.*all, editable"),
    "suppressed id outside": ({"suppressed_token_ids": [3, 10]}, "suppressed_token_ids.*10"),
    "groups of unequal lengths": ({"position_groups": [[0, 1, 2], [0, 1]]}, "position_groups"),
    "empty groups": ({"position_groups": [[], []]}, "position_groups"),
    "negative group": ({"position_groups": [[0, -1]]}, "position_groups"),
    "a head too few": ({"position_groups": [[0, 1]], "attention_groups": [0]}, "attention_groups"),
    "a group that does not exist": ({"position_groups": [[0, 1]], "attention_groups": [None, 1]}, "attention_groups"),
    "heads without groups": ({"attention_groups": [0, None]}, "attention_groups"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case: str) -> None:
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        RMConfig(**{"text_config": backbone(), "mask_token_id": 9, **arguments})


def test_the_good_arguments_of_the_bad_cases_are_accepted() -> None:
    RMConfig(text_config=backbone(), mask_token_id=9)
    RMConfig(text_config=backbone(**ODD), mask_token_id=9, history_rotation=False)
    RMConfig(text_config=backbone(**ODD), mask_token_id=9, history=False)  # a rotation that nothing turns
    RMConfig(
        text_config=backbone(),
        mask_token_id=0,
        history_decay=1.0,
        position_groups=[[0, 1]],
        attention_groups=[0, None],
    )


def test_numpys_integers_are_integers(tmp_path: Path) -> None:
    config = RMConfig(text_config=backbone(), mask_token_id=np.int64(9))
    assert type(config.mask_token_id) is int
    config.save_pretrained(tmp_path)
    settings = ReflectiveGenerationConfig(max_steps=np.int32(7), revise_threshold=np.float32(0.25))
    settings.save_pretrained(tmp_path)
    loaded = ReflectiveGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.max_steps, loaded.revise_threshold) == (7, 0.25)


def test_a_backbone_without_a_type_is_refused() -> None:
    with pytest.raises(ValueError, match="text_config.*model_type"):
        RMConfig(text_config={"hidden_size": 16}, mask_token_id=0)


def test_config_round_trip(tmp_path: Path) -> None:
    position_groups, attention_groups = grid()
    config = RMConfig(
        text_config=backbone(),
        mask_token_id=9,
        suppressed_token_ids=[7, 8],
        history=False,
        history_decay=0.8,
        history_rotation=False,
        history_base=500.0,
        history_norm="rms",
        history_eps=1e-6,
        history_scope="editable",
        position_groups=position_groups,
        attention_groups=attention_groups,
        backbone_positions=False,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is RMConfig and loaded.model_type == "reflective_masking"
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert type(loaded.text_config) is LlamaConfig and loaded.backbone_class == "LlamaForCausalLM"
    assert loaded.vocab_size == 10
    # What was saved is what was set, not what is the default.
    default = RMConfig(text_config=backbone(), mask_token_id=9).to_dict()
    ours = [name for name in default if name.startswith(("history", "position_", "attention_g", "suppressed"))]
    assert len(ours) >= 10 and all(loaded.to_dict()[name] != default[name] for name in ours)


def test_a_config_spoiled_on_disk_is_refused(tmp_path: Path) -> None:
    RMConfig(text_config=backbone(), mask_token_id=9).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "history_decay": 3}))
    with pytest.raises(ValueError, match="history_decay"):
        AutoConfig.from_pretrained(tmp_path)


def test_the_backbones_class_comes_from_its_config() -> None:
    bert = BertConfig(vocab_size=10, hidden_size=16, architectures=["BertForMaskedLM"])
    assert RMConfig(text_config=bert, mask_token_id=0).backbone_class == "BertForMaskedLM"
    assert RMConfig(text_config=bert.to_dict(), mask_token_id=0).text_config.to_dict() == bert.to_dict()


# The generation config

CHANGED = {
    "max_new_tokens": 12,
    "steps": 6,
    "block_length": 4,
    "reveal": "entropy",
    "temperature": 0.7,
    "top_k": 5,
    "max_remasks_per_position": 2,
    "max_remask_ratio": 0.25,
    "max_revision_rounds": 0,
    "use_history": False,
    "suppressed_token_ids": [1, 2],
    "output_trajectory": True,
}


def test_generation_config_round_trip(tmp_path: Path) -> None:
    config = ReflectiveGenerationConfig(**CHANGED)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    # Only what differs, and nothing of autoregressive decoding.
    assert set(saved) - {"transformers_version"} == set(CHANGED)
    loaded = ReflectiveGenerationConfig.from_pretrained(tmp_path)
    for name in DEFAULTS:
        assert getattr(loaded, name) == getattr(config, name) == CHANGED.get(name, DEFAULTS[name])


def test_unknown_settings_are_refused_everywhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_beams"):
        ReflectiveGenerationConfig(num_beams=2)
    with pytest.raises(ValueError, match="num_beams"):
        ReflectiveGenerationConfig().updated(num_beams=2)
    ReflectiveGenerationConfig(**CHANGED).save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_beams": 2}))
    with pytest.raises(ValueError, match="num_beams"):
        ReflectiveGenerationConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_threshold_of_a_preset_leaves_with_its_rule(preset: str) -> None:
    config = ReflectiveGenerationConfig(preset=preset)
    if config.reveal in ("policy", "remdm"):
        return
    for other in (config.updated(reveal="margin"), ReflectiveGenerationConfig(preset=preset, reveal="margin")):
        assert other.reveal == "margin" and other.reveal_threshold is None
        assert other.preset == preset and other.revise == config.revise
    assert config.updated(max_steps=3).reveal_threshold == config.reveal_threshold
    with pytest.raises(ValueError, match="reveal_threshold=None"):
        ReflectiveGenerationConfig(reveal="threshold", reveal_threshold=0.5).updated(reveal="margin")


@pytest.mark.parametrize("card", ["rm-sudoku", "rm-image-edit", "tiny-math-base"])
def test_what_is_shipped_is_valid(card: str) -> None:
    folder = Path(__file__).parents[1] / "model_cards" / card
    ReflectiveGenerationConfig.from_pretrained(folder).updated(max_steps=9)


def test_updating_copies_and_validates() -> None:
    config = ReflectiveGenerationConfig(steps=4, reveal="margin")
    assert config.updated(steps=5).steps == 5
    assert (config.steps, config.reveal) == (4, "margin")
    with pytest.raises(ValueError, match="steps"):
        config.updated(reveal="all")
