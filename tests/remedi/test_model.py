"""RemeDi's network: what it computes, what it leaves alone, how it is saved, adapted and loaded."""

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from blocked import run_blocked
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_families import EOS, FAMILIES_UNDER_TEST, MASK, VOCABULARY, write
from tiny_models import BACKBONES, llama
from tiny_remedi import RELEASED_BLOCKS, answer_blocks, released, tiny_remedi, write_released
from torch import Tensor
from transformers import AlbertConfig, AlbertForMaskedLM, AutoConfig, AutoModel, AutoModelForMaskedLM

from hf_rm import RemeDiConfig, RemeDiForMaskedDiffusion, RMForMaskedDiffusion
from hf_rm.hub import save_adapter_for_hub, save_for_hub
from hf_rm.hub.publish import stage
from hf_rm.training import default_lora_config


def ids_of(rows: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(seed))


# What it leaves alone


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_an_untrained_stream_changes_no_bit_of_the_logits(kind: str) -> None:
    backbone, ids = BACKBONES[kind](layers=4), ids_of()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    plain = RMForMaskedDiffusion.from_backbone(copy.deepcopy(backbone), 0, history=False)(ids, mask).logits
    model = RemeDiForMaskedDiffusion.from_backbone(backbone, 0, policy_layers=[0, 2])
    output = model(ids, mask)
    assert torch.equal(output.logits, plain)
    assert output.policy.shape == ids.shape and output.policy.std() > 0.01
    fresh = RemeDiForMaskedDiffusion(copy.deepcopy(model.config)).eval()
    assert torch.equal(fresh(ids).logits, fresh.model(ids).logits)


@torch.no_grad()
def test_a_stream_that_has_something_to_say_is_heard_and_hears() -> None:
    model, ids = tiny_remedi(), ids_of()
    output = model(ids)
    assert not torch.allclose(output.logits, model.model(ids).logits, atol=1e-2)
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 11
    # The policy of a position looks at the whole row.
    assert ((model(changed).policy - output.policy)[:, 0].abs() > 1e-4).all()


@torch.no_grad()
def test_the_backbone_by_itself_and_under_another_wrapper_is_what_it_was() -> None:
    backbone, ids = llama(layers=3), ids_of()
    before = backbone(ids).logits
    first = RemeDiForMaskedDiffusion.from_backbone(backbone, 0, policy_layers=[0, 1])
    for exchange in first.stream.linears:
        torch.nn.init.normal_(exchange.weight)
    with_stream = first(ids).logits
    assert torch.equal(backbone(ids).logits, before)
    assert torch.equal(RMForMaskedDiffusion.from_backbone(backbone, 0, history=False)(ids).logits, before)
    second = RemeDiForMaskedDiffusion.from_backbone(backbone, 0, policy_layers=[1, 2])
    assert torch.equal(second(ids).logits, before)
    assert torch.equal(first(ids).logits, with_stream)
    assert torch.equal(copy.deepcopy(first)(ids).logits, with_stream)


@torch.no_grad()
def test_threads_do_not_mix_their_streams() -> None:
    model = tiny_remedi()
    inputs = [ids_of(seed=i) for i in range(8)]
    expected, got = [model(ids).policy for ids in inputs], {}
    threads = [
        threading.Thread(target=lambda i=i, ids=ids: got.update({i: [model(ids).policy for _ in range(5)]}))
        for i, ids in enumerate(inputs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(policy, expected[i]) for i in got for policy in got[i]) and len(got) == 8


# Where it goes


def test_four_blocks_at_even_distances_by_default() -> None:
    config = llama(layers=1).config
    for layers, expected in {32: [0, 10, 20, 30], 28: [0, 9, 18, 27], 6: [0, 2, 4], 2: [0, 1], 1: [0]}.items():
        config.num_hidden_layers = layers
        assert RemeDiConfig(text_config=config, mask_token_id=0).policy_layers == expected


@pytest.mark.parametrize("layers", [[], [3], [-1], [0, 0], [1, 0], [0, 1.5], "01", [None], [True], 1, [0, "1"]])
def test_layers_that_the_backbone_does_not_have(layers: Any) -> None:
    with pytest.raises(ValueError, match="`policy_layers`.*from 0 to 2 in ascending order"):
        RemeDiForMaskedDiffusion.from_backbone(llama(layers=3), 0, policy_layers=layers)


def test_a_backbone_without_a_list_of_layers() -> None:
    albert = AlbertForMaskedLM(
        AlbertConfig(vocab_size=11, hidden_size=16, embedding_size=8, num_hidden_layers=3, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="AlbertForMaskedLM, which has no list of its 3 layers"):
        RemeDiForMaskedDiffusion.from_backbone(albert, 0)


def test_the_blocks_begin_as_copies_and_go_their_own_way() -> None:
    model = tiny_remedi(talkative=False, policy_layers=[1, 2])
    for block, layer in zip(model.stream.blocks, model.model.model.layers[1:], strict=True):
        for (name, ours), (_, theirs) in zip(block.named_parameters(), layer.named_parameters(), strict=True):
            assert torch.equal(ours, theirs) and ours is not theirs, name


# Training it


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_remedi().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        output = model(ids_of())
        (output.logits.square().mean() + output.policy.square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert sum(grad is not None and "stream" in name for name, grad in gradients[0].items()) > 30
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad)


def test_an_adapter_holds_the_stream_and_comes_back(tmp_path: Path) -> None:
    llama(layers=3).save_pretrained(tmp_path / "base")
    model = RemeDiForMaskedDiffusion.from_backbone(str(tmp_path / "base"), 0)
    adapted = get_peft_model(model, default_lora_config(model, r=2))
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert any("stream" in name and "confidence" in name for name in trainable)
    assert any("lora_A" in name for name in trainable)
    assert not any("stream" in name and "lora" in name for name in trainable)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        output = adapted(ids_of())
        (output.logits.square().mean() + (output.policy - 1).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    save_adapter_for_hub(adapted, tmp_path / "adapter")
    for loader in (RemeDiForMaskedDiffusion, AutoModel):
        again = loader.from_pretrained(tmp_path / "adapter")
        with torch.no_grad():
            ours, theirs = adapted(ids_of()), again(ids_of())
        assert type(again) is RemeDiForMaskedDiffusion
        torch.testing.assert_close(theirs.policy, ours.policy)
        torch.testing.assert_close(theirs.logits, ours.logits)


def test_an_adapter_without_the_stream_is_refused_where_its_base_has_none(tmp_path: Path) -> None:
    llama(layers=3).save_pretrained(tmp_path / "base")
    model = RemeDiForMaskedDiffusion.from_backbone(str(tmp_path / "base"), 0)
    adapted = get_peft_model(model, default_lora_config(model, target_modules=["q_proj"], train_mask_row=False))
    with pytest.raises(ValueError, match=r"a stream of its own.*modules_to_save=\['stream'\]"):
        save_adapter_for_hub(adapted, tmp_path / "adapter")


# Saving and loading


def test_saved_and_loaded_by_every_auto_class(tmp_path: Path) -> None:
    model = tiny_remedi(policy_layers=[0, 2], attention_block_length=4, attention_block_start="answer")
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), RemeDiConfig)
    for auto in (AutoModel, AutoModelForMaskedLM, RemeDiForMaskedDiffusion):
        again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is RemeDiForMaskedDiffusion
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert again.config.policy_layers == [0, 2] and again.config.attention_block_start == "answer"
        assert again.generation_config.preset == "remedi" and again.generation_config.block_length == 4
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
        with (
            torch.no_grad()
        ):  # to the last bits: how products are summed may depend on where the weights lie in memory
            torch.testing.assert_close(again(ids_of()).policy, model(ids_of()).policy, rtol=1e-5, atol=1e-6)


SCRIPT = """
import torch
from safetensors.torch import save_file
from transformers import AutoModel
model = AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
generator = torch.Generator().manual_seed(0)
output = model.generate_reflective(torch.tensor([[3, 4]]), max_new_tokens=8, block_length=4, stop_at_eos=False)
policy = model(torch.tensor([[3, 4, 0, 5]])).policy.detach().contiguous()
save_file({{"policy": policy, "sequences": output.sequences}}, {out!r})
"""


def test_a_published_model_runs_without_hf_rm(tmp_path: Path) -> None:
    model = tiny_remedi()
    folder = save_for_hub(model, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoConfig"] == "remedi_rm.RemeDiConfig"
    result = run_blocked(SCRIPT.format(folder=str(folder), out=str(tmp_path / "out.safetensors")), {"hf_rm"}, tmp_path)
    assert result.returncode == 0, result.stderr
    said = load_file(tmp_path / "out.safetensors")
    policy, sequences = said["policy"], said["sequences"]
    prompt = torch.tensor([[3, 4]])
    assert torch.equal(policy, model(torch.tensor([[3, 4, 0, 5]])).policy)
    ours = model.generate_reflective(prompt, max_new_tokens=8, block_length=4, stop_at_eos=False)
    assert torch.equal(sequences, ours.sequences)


# The released checkpoints


def test_the_released_configuration(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(write_released(tmp_path))
    assert isinstance(config, RemeDiConfig)
    assert config.policy_layers == RELEASED_BLOCKS and config.mask_token_id == MASK
    assert (config.attention_block_length, config.attention_block_start) == (32, "answer")
    assert config.text_config.model_type == "llada" and not config.history


@torch.no_grad()
def test_the_released_names_load_and_compute_what_they_say(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released")
    model, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.randint(0, VOCABULARY, (3, 70), generator=torch.Generator().manual_seed(0))
    editable = (torch.arange(70) >= 3).repeat(3, 1)
    real = torch.ones_like(editable)
    real[1, :2], editable[2, 3:6] = False, False
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    logits, policy = released(
        load_file(folder / "model.safetensors"), ids, answer_blocks(editable, real, 32), positions
    )
    output = model(ids, attention_mask=real.long(), editable_mask=editable)
    torch.testing.assert_close(output.logits[real], logits[real], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(output.policy[real], policy[real], atol=2e-3, rtol=2e-3)
    assert policy.std() > 0.1
    assert model.generation_config.stop_at_eos and model.config.text_config.eos_token_id == EOS
    # Saved it is a model of ours, under our names.
    model.save_pretrained(tmp_path / "ours")
    names = set(load_file(tmp_path / "ours" / "model.safetensors"))
    assert {"stream.confidence.weight", "model.model.layers.0.self_attn.q_proj.weight"} <= names
    again = AutoModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(ids, editable_mask=editable).policy, model(ids, editable_mask=editable).policy)


def test_weights_without_a_stream_are_refused(tmp_path: Path) -> None:
    folder = write_released(tmp_path / "released")
    weights = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "upm.2" not in key}, folder / "model.safetensors")
    with pytest.raises(OSError, match=r"missing keys for RemeDi\S+: stream\.blocks\.2\..* and 6 more"):
        AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"a llada one, .*from_backbone"):
        RemeDiForMaskedDiffusion.from_pretrained(write("llada", tmp_path / "llada", n_layers=2))


@torch.no_grad()
def test_the_prompt_sees_itself_and_a_block_what_is_before_it() -> None:
    """Prompt of 3, blocks of 4: what a change at one position can reach."""
    model = tiny_remedi(attention_block_length=4, attention_block_start="answer")
    ids = ids_of(1, 11)
    editable = (torch.arange(11) >= 3)[None]
    before = model(ids, editable_mask=editable)
    block = torch.tensor([-1] * 3 + [0] * 4 + [1] * 4)
    for place in range(11):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 11
        after = model(changed, editable_mask=editable)
        reached = (after.policy - before.policy)[0].abs() > 1e-6
        assert torch.equal(reached, block >= block[place])
        assert torch.equal((after.logits - before.logits)[0].abs().amax(-1) > 1e-6, reached)


def test_what_is_published_names_its_class_and_its_layers(tmp_path: Path) -> None:
    card = (stage(tiny_remedi(policy_layers=[0, 2]), tmp_path, "user/tiny-remedi") / "README.md").read_text()
    assert 'RemeDiForMaskedDiffusion.from_pretrained("user/tiny-remedi")' in card
    assert "learned unmasking policy (RemeDi)" in card and "| policy_layers | [0, 2] |" in card


@pytest.mark.parametrize("family", [name for name in FAMILIES_UNDER_TEST if name != "albert"])
@torch.no_grad()
def test_the_stream_goes_on_every_family(family: str, tmp_path: Path) -> None:
    folder, mask = write(family, tmp_path), FAMILIES_UNDER_TEST[family].mask_token_id
    ids = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = RMForMaskedDiffusion.from_backbone(str(folder), mask, history=False, probe=False).eval()(ids).logits
    model = RemeDiForMaskedDiffusion.from_backbone(str(folder), mask, probe=False, policy_layers=[1]).eval()
    assert torch.equal(model(ids).logits, plain)
    for exchange in model.stream.linears:
        torch.nn.init.normal_(exchange.weight)
    before = model(ids)
    assert before.policy.std() > 1e-3 and not torch.allclose(before.logits, plain, atol=1e-3)
    model.save_pretrained(tmp_path / "saved")
    again, report = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(again(ids).policy, before.policy)
