"""RMForMaskedDiffusion: wrapping, saving, position groups, and what its calls refuse."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import BACKBONES, bert, grid, grid_model, llama, wrapped
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from hf_rm import HistorySegments, HistoryState, ReflectiveGenerationConfig, RMConfig, RMForMaskedDiffusion


def random_ids(*shape: int, vocab_size: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# Wrapping


@pytest.mark.parametrize("family", BACKBONES)
def test_wrapping_leaves_the_backbone_alone(family: str) -> None:
    backbone = BACKBONES[family]()
    with torch.no_grad():  # weights that no initialisation gives
        for parameter in backbone.parameters():
            parameter.add_(0.25)
    before = copy.deepcopy(backbone.state_dict())
    config = backbone.config.to_dict()
    model = RMForMaskedDiffusion.from_backbone(backbone, mask_token_id=0)
    assert model.model is backbone
    assert backbone.config.to_dict() == config
    assert before.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in backbone.parameters())
    assert not model.training


def test_the_backbone_keeps_no_cache_that_nobody_reads() -> None:
    model, seen = wrapped(), []
    model.model.register_forward_hook(lambda module, args, output: seen.append(output.past_key_values))
    model(torch.arange(6)[None])
    assert model.model.config.use_cache and seen == [None]


def test_wrapping_by_folder_and_by_the_config_s_mask_id(tmp_path: Path) -> None:
    backbone = bert()
    backbone.config.mask_token_id = 3
    backbone.save_pretrained(tmp_path)
    model = RMForMaskedDiffusion.from_backbone(str(tmp_path)).eval()
    assert model.config.mask_token_id == 3
    ids = random_ids(2, 6)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, backbone(ids).logits)


def test_a_backbone_without_a_mask_id_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_token_id"):
        RMForMaskedDiffusion.from_backbone(llama())
    with pytest.raises(ValueError, match="mask_token_id.*11"):
        RMForMaskedDiffusion.from_backbone(llama(), mask_token_id=11)


@pytest.mark.parametrize("name", ["histroy_decay", "dtype", "policy_layers"])
def test_an_argument_that_nobody_reads_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown argument.*'{name}'.*history_decay.*backbone_kwargs"):
        RMForMaskedDiffusion.from_backbone(llama(), mask_token_id=0, **{name: 0.5})


@pytest.mark.parametrize("name", ["NoSuchForMaskedLM", "LlamaConfig", "__version__", None])
def test_an_unknown_backbone_class_is_refused(name: str | None) -> None:
    config = RMConfig(text_config=llama().config, mask_token_id=0)
    config.backbone_class = name
    with pytest.raises(ValueError, match="backbone_class"):
        RMForMaskedDiffusion(config)


# Saving


def assert_same(first: RMForMaskedDiffusion, second: PreTrainedModel, ids: torch.Tensor) -> None:
    """The same logits, with and without a history, and the same decoding, to the bit."""
    with torch.no_grad():
        a, b = first(ids), second(ids)
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(first(ids.flip(1), history=a.history).logits, second(ids.flip(1), history=b.history).logits)
    settings: dict[str, Any] = {"editable": "all", "max_steps": 12, "output_trajectory": True}
    a, b = first.generate_reflective(ids, **settings), second.generate_reflective(ids, **settings)
    assert torch.equal(a.trajectory.states, b.trajectory.states)


@pytest.mark.parametrize("kind", ["llama", "bert", "grid"])
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM, RMForMaskedDiffusion])
def test_save_and_load(tmp_path: Path, kind: str, auto: Any) -> None:
    if kind == "grid":
        model = grid_model(history_norm="rms")
    else:
        model = RMForMaskedDiffusion.from_backbone(BACKBONES[kind](), mask_token_id=0, history_decay=0.8)
    model.generation_config = ReflectiveGenerationConfig(editable="all", max_remask_ratio=0.5)
    model.save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is RMForMaskedDiffusion
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = random_ids(3, 9)
    assert_same(model, loaded, ids)
    assert type(loaded.generation_config) is ReflectiveGenerationConfig
    assert (loaded.generation_config.editable, loaded.generation_config.max_remask_ratio) == ("all", 0.5)
    # The saved generation config decides: a full draft is editable without being told.
    assert torch.equal(loaded.generate(ids, max_steps=5), model.generate(ids, max_steps=5))
    if kind == "bert":
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_a_generation_config_may_be_given_or_missing(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    given = ReflectiveGenerationConfig(reveal="margin")
    assert AutoModel.from_pretrained(tmp_path, generation_config=given).generation_config.reveal == "margin"
    (tmp_path / "generation_config.json").unlink()
    assert AutoModel.from_pretrained(tmp_path).generation_config.reveal == "all"


def test_saving_in_bfloat16(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path / "float32")
    # Not `.to(torch.bfloat16)`, which would round the rotary frequencies too.
    model = AutoModel.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bfloat16")
    loaded = AutoModel.from_pretrained(tmp_path / "bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert_same(model, loaded, random_ids(2, 6))


def test_a_truncated_weight_file_is_named(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 100, 20, 0):
        file.write_bytes(whole[:size])
        for auto in (AutoModel, RMForMaskedDiffusion):
            with pytest.raises(OSError, match="model.safetensors.*truncated"):
                auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("auto", [AutoModel, RMForMaskedDiffusion])
def test_a_tensor_that_is_not_there_is_named(tmp_path: Path, auto: Any) -> None:
    grid_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "position_group_embeddings.weight"}, tmp_path / "model.safetensors"
    )
    with pytest.raises(OSError, match="missing keys for RMForMaskedDiffusion: position_group_embeddings.weight"):
        auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("left", [0, 1, 30])
def test_a_truncated_generation_config_is_not_an_absent_one(tmp_path: Path, left: int) -> None:
    model = wrapped()
    model.generation_config = ReflectiveGenerationConfig(editable="all", max_steps=7)
    model.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(file.read_text()[:left])
    with pytest.raises(OSError, match=r"generation_config\.json.*not a valid JSON file\. Copy it again, or delete it"):
        AutoModel.from_pretrained(tmp_path)


# Position groups


def test_a_grid_model_reads_its_group_embeddings() -> None:
    model = grid_model()
    ids = random_ids(2, 9)
    rows, columns = (torch.tensor(groups) for groups in grid()[0])
    table = model.position_group_embeddings.weight.detach()
    offsets = table[:3][rows] + table[3:][columns]  # one table, the groups of both lists one after another
    seen = []
    model.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
    with torch.no_grad():
        model(ids)
    torch.testing.assert_close(seen[0], model.get_input_embeddings()(ids).detach() + offsets)


def test_heads_look_inside_their_group_only() -> None:
    """One layer, all heads on rows: a cell's logits depend on its row and on nothing else."""
    rows = grid()[0][0]
    model = wrapped(position_groups=[rows], attention_groups=[0, 0], backbone_positions=False, history=False)
    ids = random_ids(1, 9)
    other = ids.clone()
    other[0, 4] = (ids[0, 4] + 1) % 11
    with torch.no_grad():
        changed = (model(ids).logits != model(other).logits).any(-1)[0]
    assert changed.tolist() == [row == 1 for row in rows]


def test_heads_without_groups_look_everywhere() -> None:
    ids = random_ids(2, 6)
    free, plain = wrapped(attention_groups=[None, None]), wrapped()
    free.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(free(ids).logits, plain(ids).logits)


def test_without_backbone_positions_structure_is_all_there_is() -> None:
    """Cells that swap their contents swap their logits when the group embeddings say nothing."""
    model = wrapped(position_groups=[[0] * 6], backbone_positions=False, history=False)
    ids, order = random_ids(1, 6), torch.tensor([3, 1, 5, 0, 2, 4])
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:, order]).logits, model(ids).logits[:, order], atol=1e-4, rtol=1e-4)
        aware = wrapped(history=False)
        assert not torch.allclose(aware(ids[:, order]).logits, aware(ids).logits[:, order], atol=1e-2)


def test_padding_is_never_looked_at() -> None:
    for model in (wrapped(), wrapped(position_groups=[[0, 0, 0, 1, 1, 1]], attention_groups=[None, 0])):
        ids = random_ids(1, 6)
        other = ids.clone()
        other[0, 5] = (ids[0, 5] + 1) % 11
        mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
        with torch.no_grad():
            a, b = model(ids, attention_mask=mask).logits, model(other, attention_mask=mask).logits
        assert torch.equal(a[:, :5], b[:, :5])
        assert bool(a[:, :5].isfinite().all())


# Loss and arguments


def test_loss_is_the_mean_over_labels() -> None:
    model = wrapped()
    ids, labels = random_ids(2, 5), random_ids(2, 5, seed=1)
    labels[0, 2:] = -100
    with torch.no_grad():
        output = model(ids, labels=labels)
        known = labels != -100
        expected = F.cross_entropy(output.logits[known], labels[known])
        torch.testing.assert_close(output.loss, expected)
        torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=14).loss, expected * 7 / 14)
    assert model(ids).loss is None


IDS = torch.ones(2, 9, dtype=torch.long)


def memory(rows: int = 2, length: int = 9, width: int = 16, **changes: torch.Tensor) -> HistoryState:
    return replace(HistoryState.empty(rows, length, width), **changes)


def runs(ids: tuple[int, ...] = (2, 9, 3), lags: tuple[int, ...] = (2, 9, 4)) -> HistorySegments:
    return HistorySegments(torch.ones(ids, dtype=torch.long), torch.ones(lags, dtype=torch.long))


BAD = {
    "bools": ({"input_ids": IDS > 0}, "`input_ids` is torch.bool"),
    "floats": ({"input_ids": IDS.float()}, "`input_ids` is torch.float32"),
    "a list": ({"input_ids": IDS.tolist()}, "`input_ids` is list"),
    "an id past the vocabulary": ({"input_ids": IDS * 11}, "`input_ids` holds 11, outside the vocabulary of 11"),
    "a negative id": ({"input_ids": -IDS}, "`input_ids` holds -1"),
    "a padding mask of another length": ({"attention_mask": torch.ones(2, 8)}, r"`attention_mask` is .*\(2, 8\)"),
    "a padding mask of another batch": ({"attention_mask": torch.ones(1, 9)}, r"`attention_mask` is .*\(1, 9\)"),
    "who sees whom, of another length": ({"attention_mask": torch.ones(2, 1, 8, 9) > 0}, "`attention_mask`"),
    "an editable mask of another length": ({"editable_mask": torch.ones(2, 8) > 0}, r"`editable_mask` is .*\(2, 8\)"),
    "an editable mask of numbers": ({"editable_mask": torch.ones(2, 9)}, "`editable_mask` is torch.float32.* bool"),
    "a history of other rows": ({"history": memory(rows=3)}, "`history` has 3 rows and `input_ids` 2"),
    "a history of another length": ({"history": memory(length=8)}, r"`history.accumulator` has shape \(2, 8, 16\)"),
    "a history of another width": ({"history": memory(width=8)}, r"`history.accumulator` has shape \(2, 9, 8\)"),
    "steps of other rows": ({"history": memory(steps=torch.ones(3))}, r"`history.steps` has shape \(3,\)"),
    "frozen of another length": ({"history": memory(frozen=torch.ones(2, 8) > 0)}, "`history.frozen`"),
    "segments of other rows": ({"history": runs((3, 9, 3), (3, 9, 4))}, "`history` has 3 rows"),
    "segments of another length": ({"history": runs((2, 8, 3), (2, 8, 4))}, r"`history.ids` has shape \(2, 8, 3\)"),
    "as many lags as segments": ({"history": runs(lags=(2, 9, 3))}, r"`history.lags` .*: pass \(2, 9, 4\)"),
    "segments without a batch": ({"history": runs((9, 3), (9, 4))}, "`history.ids`"),
    "a list of too many rows": ({"history": [memory(1), runs()]}, "`history` has 3 rows"),
    "a list of too few": ({"history": [memory(1)]}, "`history` has 1 rows"),
    "no history": ({"history": [torch.zeros(2, 9, 16)]}, "`history` is a Tensor"),
    "labels of floats": ({"labels": torch.zeros(2, 9)}, "`labels` is torch.float32"),
    "labels past the vocabulary": ({"labels": IDS * 11}, "`labels` holds 11, outside the vocabulary of 11"),
    "negative labels but -100": ({"labels": -IDS}, "`labels` holds -1, outside"),
    "no label at all": ({"labels": IDS * -100}, "`labels` is -100 everywhere"),
    "labels of the wrong length": ({"labels": torch.zeros(2, 8, dtype=torch.long)}, "labels"),
    "labels of the wrong rank": ({"labels": torch.zeros(9, dtype=torch.long)}, "labels"),
    "a row without a batch": ({"input_ids": torch.zeros(9, dtype=torch.long)}, "input_ids"),
    "another length than the groups": ({"input_ids": torch.zeros(2, 8, dtype=torch.long)}, "position groups"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_refused_before_the_backbone_runs(case: str) -> None:
    arguments, message = BAD[case]
    model = grid_model()

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the backbone ran")

    model.model.register_forward_pre_hook(forbidden)
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": torch.zeros(2, 9, dtype=torch.long), **arguments})


def test_the_good_arguments_of_the_bad_cases_do_run() -> None:
    model, many = grid_model(), torch.ones(2, 1, 9, 9, dtype=torch.bool)
    model(IDS, IDS, history=memory(frozen=IDS > 5), editable_mask=IDS > 0, labels=IDS)
    wrapped()(IDS, many, history=[memory(1), runs((1, 9, 3), (1, 9, 4))])
    # A batch without a label is a share of nothing, where the whole is counted elsewhere.
    assert model(IDS, labels=IDS * -100, num_items_in_batch=3).loss == 0


def test_an_accelerator_is_not_waited_for() -> None:
    """On a device that cannot say what a tensor holds, shapes are checked and values are not."""
    ids, model = IDS.to("meta"), wrapped().to("meta")
    with pytest.raises(ValueError, match="`labels`"):
        model(ids, labels=ids[:, 1:])
    assert model(ids, labels=ids).loss.device.type == "meta"


def test_another_length_than_the_groups_is_refused_when_decoding() -> None:
    with pytest.raises(ValueError, match="position groups describe 9"):
        grid_model().generate_reflective(torch.zeros(1, 9, dtype=torch.long), max_new_tokens=1)
