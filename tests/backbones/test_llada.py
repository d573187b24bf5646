"""LLaDA without remote code: its arithmetic, both namings, the Auto classes, decoding, and what is refused."""

import json
from pathlib import Path
from typing import Any

import plain_torch
import pytest
import torch
from blocked import run_blocked
from safetensors.torch import load_file, save_file
from tiny_families import EOS, HEADS, LAYERS, MASK, VOCABULARY, llada_config, write
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, LlamaForCausalLM

from hf_rm import LLaDAConfig, LLaDAModelLM, ReflectiveGenerationConfig, RMForMaskedDiffusion
from hf_rm.families_rm import load_backbone
from hf_rm.hub import save_for_hub

VARIANTS = ("llada", "llada_grouped")


def batch(rows: int = 3, length: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids, and a mask with padding on the left of one row and on the right of another."""
    ids = torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, 6:] = 0, 0
    return ids, mask


def reference(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    weights = load_file(folder / "model.safetensors")
    return plain_torch.llada(weights, ids, mask, n_heads=HEADS, layers=LAYERS, theta=500000.0, eps=1e-5)


def assert_close_where_real(actual: Tensor, expected: Tensor, mask: Tensor) -> None:
    real = mask.bool()
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


def weight_file(folder: Path) -> Path:
    return folder / "model.safetensors"


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


# The arithmetic


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_native_logits_are_those_of_the_published_network(tmp_path: Path, variant: str, attention: str) -> None:
    folder = write(variant, tmp_path)
    ids, mask = batch()
    expected = reference(folder, ids, mask)
    bare = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation=attention)
    assert_close_where_real(bare(ids, attention_mask=mask).logits, expected, mask)
    wrapper = RMForMaskedDiffusion.from_backbone(str(folder), history=False, probe=False)
    assert_close_where_real(wrapper.eval()(ids, attention_mask=mask).logits, expected, mask)
    # What the comparison could miss: logits that say nothing, or a network that looks one way only.
    assert expected.std() > 0.5
    changed = ids.clone()
    changed[2, -1] = (ids[2, -1] + 1) % VOCABULARY
    assert not torch.allclose(bare(ids[2:]).logits[0, 0], bare(changed[2:]).logits[0, 0], atol=1e-2)


@torch.no_grad()
def test_a_checkpoint_that_is_lumina_s_is_the_same_network(tmp_path: Path) -> None:
    folder = write("lumina", tmp_path)
    ids, mask = batch()
    model = load_backbone(str(folder))
    assert isinstance(model, LLaDAModelLM)
    assert_close_where_real(model(ids, attention_mask=mask).logits, reference(folder, ids, mask), mask)


# Configuration


def test_the_configuration_speaks_both_languages() -> None:
    config = LLaDAConfig(**llada_config(n_kv_heads=2, embedding_size=48))
    assert (config.hidden_size, config.num_key_value_heads, config.intermediate_size) == (16, 2, 24)
    assert (config.d_model, config.n_heads, config.n_layers) == (16, HEADS, LAYERS)
    assert config.vocab_size == 48  # the table's rows
    assert config.rope_parameters["rope_theta"] == 500000.0
    assert config.is_causal is False and config.use_cache is False
    assert (config.mask_token_id, config.eos_token_id) == (MASK, EOS)
    native = LLaDAConfig(**config.to_dict())
    assert native.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"n_kv_heads": None}, HEADS), ({"n_kv_heads": None, "multi_query_attention": True}, 1), ({"n_kv_heads": 2}, 2)],
)
def test_key_value_heads(given: dict[str, Any], expected: int) -> None:
    assert LLaDAConfig(**llada_config(**given)).num_key_value_heads == expected


def test_the_feed_forward_width_may_be_a_ratio() -> None:
    assert LLaDAConfig(**llada_config(mlp_hidden_size=None, mlp_ratio=3)).intermediate_size == 48


REFUSED = {
    "alibi": True,
    "layer_norm_type": "default",
    "include_bias": True,
    "include_qkv_bias": True,
    "bias_for_layer_norm": True,
    "block_type": "sequential",
    "rope": False,
    "activation_type": "swiglu",
    "attention_layer_norm": True,
    "scale_logits": True,
    "input_emb_norm": True,
    "block_group_size": 2,
    "layer_norm_with_affine": False,
    "residual_dropout": 0.1,
}


@pytest.mark.parametrize("field", REFUSED)
def test_other_networks_are_refused_by_name(tmp_path: Path, field: str) -> None:
    folder = write("llada", tmp_path, **{field: REFUSED[field]})
    with pytest.raises(ValueError, match=f"`{field}` is {REFUSED[field]!r}"):
        AutoConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match=f"`{field}`"):
        load_backbone(str(folder))


@pytest.mark.parametrize("field", ["rope", "block_type"])
def test_a_field_left_out_means_the_published_default(field: str) -> None:
    values = llada_config()
    del values[field]
    with pytest.raises(ValueError, match=f"`{field}`"):
        LLaDAConfig(**values)


# Saving


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source", ["published", "native"])
def test_round_trip_to_both_namings(tmp_path: Path, variant: str, source: str) -> None:
    folder = write(variant, tmp_path / "first")
    original = load_file(weight_file(folder))
    model = AutoModel.from_pretrained(folder)
    if source == "native":
        model.save_pretrained(tmp_path / "between", save_original_format=False)
        model = AutoModel.from_pretrained(tmp_path / "between")
    ids, mask = batch()
    expected = reference(folder, ids, mask)

    model.save_pretrained(tmp_path / "published", save_original_format=True)
    saved = load_file(weight_file(tmp_path / "published"))
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in original)
    before = json.loads((folder / "config.json").read_text())
    after = json.loads((tmp_path / "published" / "config.json").read_text())
    network = ("d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "weight_tying", "vocab_size", "rope")
    more = ("embedding_size", "rope_theta", "rms_norm_eps", "block_type", "max_sequence_length", "mask_token_id")
    assert {name: after[name] for name in network + more} == {name: before[name] for name in network + more}
    assert not {"hidden_size", "num_attention_heads", "num_hidden_layers", "rope_parameters"} & after.keys()

    model.save_pretrained(tmp_path / "native", save_original_format=False)
    names = load_file(weight_file(tmp_path / "native")).keys()
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"} <= names
    assert not any("transformer" in name for name in names)
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config["hidden_size"] == 16 and "d_model" not in config
    for naming in ("published", "native"):
        again = AutoModelForMaskedLM.from_pretrained(tmp_path / naming)
        assert isinstance(again, LLaDAModelLM)
        assert_close_where_real(again(ids, attention_mask=mask).logits, expected, mask)
    # Weights under Llama's names are a Llama's: any tool that knows Llama reads them.
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "native")
    assert torch.equal(llama(ids).logits, model(ids).logits)


def test_a_fresh_model_is_saved_under_llada_s_names(tmp_path: Path) -> None:
    LLaDAModelLM(LLaDAConfig(**llada_config())).save_pretrained(tmp_path)
    assert load_file(weight_file(tmp_path)).keys() == load_file(weight_file(write("llada", tmp_path / "x"))).keys()


def test_a_scaled_rope_has_no_published_form(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    model = LLaDAModelLM(LLaDAConfig(**{**LLaDAConfig(**llada_config()).to_dict(), "rope_parameters": scaling}))
    with pytest.raises(ValueError, match="save_original_format=False"):
        model.save_pretrained(tmp_path / "published")
    model.save_pretrained(tmp_path / "native", save_original_format=False)
    assert AutoConfig.from_pretrained(tmp_path / "native").rope_parameters["factor"] == 2.0


@torch.no_grad()
def test_shards_dtype_and_device_map(tmp_path: Path) -> None:
    folder = write("llada", tmp_path / "whole")
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="6KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    assert all("transformer." in name for shard in shards for name in load_file(shard))
    ids, mask = batch()
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "shards")
    assert_close_where_real(again(ids, attention_mask=mask).logits, reference(folder, ids, mask), mask)
    half = load_backbone(str(tmp_path / "shards"), dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.lm_head.weight, model.lm_head.weight.bfloat16())


@torch.no_grad()
def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(write("llada", tmp_path)).train()
    ids, _ = batch()
    with torch.enable_grad():
        model(ids).logits.square().mean().backward()
        expected = model.model.embed_tokens.weight.grad.clone()
        model.zero_grad()
        model.model.gradient_checkpointing_enable()
        model(ids).logits.square().mean().backward()
    assert model.model.gradient_checkpointing
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, expected)


def test_the_embedding_of_the_token_that_pads_is_trained(tmp_path: Path) -> None:
    """LLaDA's padding token is its end of text."""
    model = AutoModelForMaskedLM.from_pretrained(write("llada", tmp_path))
    assert model.config.pad_token_id == model.config.eos_token_id == EOS
    model(torch.tensor([[1, EOS, 3]])).logits.square().mean().backward()
    assert model.model.embed_tokens.weight.grad[EOS].abs().max() > 0


# The Auto classes


def test_the_auto_classes_take_ours_without_remote_code(tmp_path: Path) -> None:
    """The published config.json names remote code; nobody is asked to trust it."""
    folder = write("llada", tmp_path)
    assert "auto_map" in json.loads((folder / "config.json").read_text())
    assert type(AutoConfig.from_pretrained(folder)) is LLaDAConfig
    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
        for trust in (None, False, True):  # what is registered by hand comes first, whatever the caller trusts
            assert type(auto.from_pretrained(folder, trust_remote_code=trust)) is LLaDAModelLM
    assert AutoModel.from_config(LLaDAConfig(**llada_config())).lm_head.weight.shape == (VOCABULARY, 16)


# Decoding


def test_the_bare_model_decodes(tmp_path: Path) -> None:
    folder = write("llada", tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    wrapper = RMForMaskedDiffusion.from_backbone(str(folder), history=False, probe=False)
    prompt, mask = batch(length=8)
    prompt[prompt == MASK] = 0
    settings: dict[str, Any] = {"max_new_tokens": 6, "max_steps": 30, "max_remasks_per_position": 1}
    for changes in ({}, {"reveal": "confidence", "steps": 3, "revise": None}):
        out = model.generate_reflective(prompt, mask, output_trajectory=True, **settings | changes | clean(changes))
        assert not (out.sequences == MASK).any()
        assert torch.equal(out.sequences[:, :8], prompt)
        same = wrapper.generate_reflective(prompt, mask, output_trajectory=True, **settings | changes | clean(changes))
        assert torch.equal(out.trajectory.states, same.trajectory.states)
    assert torch.equal(
        model.generate(prompt, max_new_tokens=4, **{"revise": None}),
        model.generate_reflective(prompt, max_new_tokens=4, revise=None).sequences,
    )


def clean(changes: dict[str, Any]) -> dict[str, Any]:
    """Limits on re-masks contradict a run that never re-masks."""
    return {"max_remasks_per_position": None} if "revise" in changes else {}


def test_history_needs_the_wrapper(tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(write("llada", tmp_path))
    with pytest.raises(ValueError, match="use_history.*RMForMaskedDiffusion.from_backbone"):
        model.generate_reflective(torch.zeros(1, 3, dtype=torch.long), max_new_tokens=2, use_history=True)


def test_generation_settings_are_saved_and_loaded(tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(write("llada", tmp_path / "a"))
    model.generation_config = ReflectiveGenerationConfig(max_new_tokens=5, block_length=2)
    model.save_pretrained(tmp_path / "b")
    assert AutoModel.from_pretrained(tmp_path / "b").generation_config.block_length == 2


# The wrapper around it


@pytest.mark.parametrize("published", [True, False])
@torch.no_grad()
def test_a_saved_wrapper_is_rebuilt(tmp_path: Path, published: bool) -> None:
    model = RMForMaskedDiffusion.from_backbone(str(write("llada_grouped", tmp_path / "a")), probe=False).eval()
    model.save_pretrained(tmp_path / "b", save_original_format=published)
    names = load_file(weight_file(tmp_path / "b"))
    assert any("transformer.blocks" in name for name in names) is published
    again = AutoModel.from_pretrained(tmp_path / "b")
    assert type(again.model) is LLaDAModelLM and type(again.config.text_config) is LLaDAConfig
    ids, mask = batch()
    assert torch.equal(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


REMOTE = """
from safetensors.torch import load_file, save_file
from transformers import AutoModel
model = AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
assert type(model.model).__module__.startswith("transformers_modules."), type(model.model)
ids = load_file({ids!r})["ids"]
output = model.generate_reflective(ids)
again = type(model).from_backbone({base!r}, **{settings!r})
said = {{"states": output.trajectory.states.contiguous(), "sequences": again.generate_reflective(ids).sequences}}
save_file(said, {out!r})
"""


def test_a_published_wrapper_runs_without_hf_rm(tmp_path: Path) -> None:
    """Both from its own weights and, as an adapter's repository does, from the base's."""
    base = write("llada", tmp_path / "base")
    settings = {"history_scope": "all", "probe": False}
    model = RMForMaskedDiffusion.from_backbone(str(base), **settings).eval()
    model.generation_config = ReflectiveGenerationConfig(editable="all", max_steps=12, output_trajectory=True)
    folder = save_for_hub(model, tmp_path / "model")
    ids, _ = batch(2, 7)
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    script = REMOTE.format(
        folder=str(folder),
        ids=str(tmp_path / "ids.safetensors"),
        out=str(tmp_path / "out.safetensors"),
        base=str(base),
        settings=settings,
    )
    # The reloaded base has no generation config of its own: give it the same settings.
    script = script.replace(
        "again.generate", "setattr(again, 'generation_config', model.generation_config) or again.generate"
    )
    result = run_blocked(script, {"hf_rm"}, tmp_path)
    assert result.returncode == 0, result.stderr
    expected = model.generate_reflective(ids)
    said = load_file(tmp_path / "out.safetensors")
    states, sequences = said["states"], said["sequences"]
    assert len(states) > 3
    assert torch.equal(states, expected.trajectory.states)
    assert torch.equal(sequences, expected.sequences)


# Broken checkpoints


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(weight_file(folder))
    change(weights)
    save_file(weights, weight_file(folder))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    folder = write("llada", tmp_path)
    rewrite(folder, lambda weights: weights.pop("model.transformer.blocks.1.ff_out.weight"))
    with pytest.raises(OSError, match=r"missing keys.*model\.layers\.1\.mlp\.down_proj\.weight"):
        load_backbone(str(folder))


def test_an_unexpected_key_is_named(tmp_path: Path) -> None:
    folder = write("llada", tmp_path)
    rewrite(
        folder, lambda w: w.update({f"model.transformer.blocks.{i}.q_norm.weight": torch.ones(4) for i in range(5)})
    )
    with pytest.raises(OSError, match="unexpected keys.*q_norm.* and 2 more"):
        load_backbone(str(folder))


def test_a_shape_that_disagrees_with_the_configuration_is_named(tmp_path: Path) -> None:
    folder = write("llada", tmp_path)
    edit_config(folder, embedding_size=48, vocab_size=48)
    with pytest.raises(OSError, match="config.json"):
        load_backbone(str(folder))


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    AutoModel.from_pretrained(write("llada", tmp_path / "a")).save_pretrained(tmp_path / "b", max_shard_size="6KB")
    victim = sorted((tmp_path / "b").glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-64])
    with pytest.raises(OSError, match=victim.name):
        load_backbone(str(tmp_path / "b"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    AutoModel.from_pretrained(write("llada", tmp_path / "a")).save_pretrained(tmp_path / "b", max_shard_size="6KB")
    victim = sorted((tmp_path / "b").glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(OSError, match=victim.name):
        load_backbone(str(tmp_path / "b"))
