"""Every family: the published arithmetic through the wrapper, the facts of the table, and what is refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import plain_torch
import pytest
import torch
from safetensors.torch import load_file
from tiny_families import FAMILIES_UNDER_TEST, HEAD_WIDTH, HEADS, LAYERS, MASK, VOCABULARY, write
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from hf_rm import RMConfig, RMForMaskedDiffusion
from hf_rm.families_rm import FAMILIES, family_of, find_mask_token_id, load_backbone
from hf_rm.llada import CONFIGS
from hf_rm.vocabulary_rm import find_tokenizer


def batch(length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, a mask with padding on the left of one row and on the right of another, and the positions counted by it."""
    ids = torch.randint(0, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, 6:] = 0, 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def wrapper(name: str, folder: Path, **kwargs: Any) -> RMForMaskedDiffusion:
    """The family's checkpoint as a user gets it, without history: its own logits."""
    family = FAMILIES_UNDER_TEST[name]
    model = RMForMaskedDiffusion.from_backbone(str(folder), family.mask_token_id, history=False, probe=False, **kwargs)
    return model.eval()


def assert_close(actual: Tensor, expected: Tensor, real: Tensor) -> None:
    assert expected[real].std() > 0.3
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


# The arithmetic of each family


@torch.no_grad()
def test_dream_s_logits_are_shifted_by_one(tmp_path: Path) -> None:
    folder = write("dream", tmp_path)
    ids, mask, positions = batch()
    allowed = plain_torch.look_at_real(mask)
    raw = plain_torch.decoder(weights_of(folder), ids, allowed, positions, HEAD_WIDTH, LAYERS, 1e6, 1e-6)
    model = wrapper("dream", folder)
    logits = model(ids, attention_mask=mask).logits
    # What stands at i is said at i - 1, and the first position of a row says what stands there itself.
    real = mask.bool().clone()
    real[0, 3] = False  # its predecessor is padding
    real[:, 0] = False
    assert_close(logits[:, 1:], raw[:, :-1], real[:, 1:])
    assert_close(logits[1:, :1], raw[1:, :1], torch.ones(2, 1, dtype=torch.bool))
    assert not torch.allclose(logits[1:], raw[1:], atol=0.1)
    unshifted = wrapper("dream", folder, logits_shift=False)(ids, attention_mask=mask).logits
    assert_close(unshifted, raw, mask.bool())


@pytest.mark.parametrize("name", ["a2d_qwen3", "illada"])
@torch.no_grad()
def test_networks_in_llama_s_names(tmp_path: Path, name: str) -> None:
    theta, eps = {"a2d_qwen3": (1e6, 1e-6), "illada": (500000.0, 1e-5)}[name]
    folder = write(name, tmp_path)
    ids, mask, positions = batch()
    allowed = plain_torch.look_at_real(mask)
    expected = plain_torch.decoder(weights_of(folder), ids, allowed, positions, HEAD_WIDTH, LAYERS, theta, eps)
    assert_close(wrapper(name, folder)(ids, attention_mask=mask).logits, expected, mask.bool())


@pytest.mark.parametrize("claim", [None, True])
@torch.no_grad()
def test_llada_moe_weighs_its_experts_by_the_whole_softmax(tmp_path: Path, claim: bool | None) -> None:
    """Whatever `norm_topk_prob` says: the published code does not read it."""
    folder = write("llada_moe", tmp_path, norm_topk_prob=claim)
    weights = weights_of(folder)
    ids, mask, positions = batch()

    def experts(y: Tensor, layer: int) -> Tensor:
        return plain_torch.softmax_experts(weights, y, f"model.layers.{layer}.mlp.", top=2)

    allowed = plain_torch.look_at_real(mask)
    expected = plain_torch.decoder(weights, ids, allowed, positions, HEAD_WIDTH, LAYERS, 50000.0, 1e-5, experts)
    assert_close(wrapper("llada_moe", folder)(ids, attention_mask=mask).logits, expected, mask.bool())


def llada2_logits(folder: Path, ids: Tensor, allowed: Tensor, positions: Tensor, scale: float = 2.5) -> Tensor:
    routing: dict[str, Any] = {"top": 3, "groups": 4, "top_groups": 2, "scale": scale}
    shape: dict[str, Any] = {"n_heads": HEADS, "kv_heads": 2, "width": 8, "layers": LAYERS, "dense_layers": 1}
    numbers: dict[str, Any] = {"theta": 600000.0, "eps": 1e-6, "rotated": 4}
    return plain_torch.llada2(weights_of(folder), ids, allowed, positions, **shape, **numbers, **routing)


@pytest.mark.parametrize("block", [4, 32])
@torch.no_grad()
def test_llada2_is_block_causal_and_routes_within_groups(tmp_path: Path, block: int) -> None:
    folder = write("llada2", tmp_path)
    ids, mask, positions = batch()
    model = wrapper("llada2", folder, **({} if block == 32 else {"attention_block_length": block}))
    assert model.config.attention_block_length == block
    later = positions[:, :, None] // block < positions[:, None, :] // block
    expected = llada2_logits(folder, ids, plain_torch.look_at_real(mask) & ~later, positions)
    assert_close(model(ids, attention_mask=mask).logits, expected, mask.bool())
    if block == 4:
        full = llada2_logits(folder, ids, plain_torch.look_at_real(mask), positions)
        assert not torch.allclose(full[2], expected[2], atol=0.1)
    # The routing matters in this checkpoint: another scale is another model.
    other = llada2_logits(folder, ids, plain_torch.look_at_real(mask) & ~later, positions, scale=1.0)
    assert not torch.allclose(other[2], expected[2], atol=0.1)


@torch.no_grad()
def test_llada2_round_trip_in_its_own_names(tmp_path: Path) -> None:
    folder = write("llada2", tmp_path / "a")
    model = load_backbone(str(folder))
    model.save_pretrained(tmp_path / "b")
    before, after = weights_of(folder), weights_of(tmp_path / "b")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.save_pretrained(tmp_path / "c", save_original_format=False)
    assert "model.layers.0.self_attn.k_proj.weight" in weights_of(tmp_path / "c")
    ids, _, _ = batch()
    for copy in ("b", "c"):
        assert torch.equal(load_backbone(str(tmp_path / copy))(ids).logits, model(ids).logits)


# Every family, as the table has it


@pytest.mark.parametrize("name", FAMILIES_UNDER_TEST)
@torch.no_grad()
def test_a_checkpoint_becomes_its_native_class(tmp_path: Path, name: str) -> None:
    family = FAMILIES_UNDER_TEST[name]
    folder = write(name, tmp_path / "a")
    model = wrapper(name, folder)
    assert type(model.model).__name__ == family.model_class
    assert model.config.logits_shift is family.logits_shift
    assert model.config.attention_block_length == family.attention_block_length
    assert model.config.mask_token_id == (MASK if family.mask_token_id is None else family.mask_token_id)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) is family.tied
    assert embedding.shape == (VOCABULARY, family.embedding_width)
    model.save_pretrained(tmp_path / "b")
    again = RMForMaskedDiffusion.from_pretrained(tmp_path / "b")
    ids, mask, _ = batch()
    assert type(again.config.text_config) is type(model.config.text_config)
    assert torch.equal(again(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("name", FAMILIES_UNDER_TEST)
def test_an_adapter_s_default_targets_are_the_attention(tmp_path: Path, name: str) -> None:
    model = load_backbone(str(write(name, tmp_path)))
    family = family_of(model.config)
    assert family is not None
    modules = {path for path, _ in model.named_modules()}
    hits = {t: {path for path in modules if path.endswith(f".{t}")} for t in family.lora_targets}
    assert all(hits.values()), hits
    for path in set().union(*hits.values()):
        assert any(part in path for part in ("attn", "attention")), path
        assert not any(part in path for part in ("mlp", "ffn", "expert", "lm_head")), path


def test_facts_of_the_published_checkpoints() -> None:
    """Mask and end ids, and the ids past the vocabulary, from the families' own releases."""
    facts = {type_: (f.mask_token_id, f.eos_token_id) for type_, f in FAMILIES.items() if f.mask_token_id}
    assert facts == {
        "llada": (126336, 126081),
        "illada": (5, 2),
        "lumina": (126336, 126081),
        "lladamoe": (156895, 156892),
        "llada2_moe": (156895, 156892),
        "Dream": (151666, 151643),
        "a2d-qwen3": (151669, 151645),
    }
    suppressed = FAMILIES["llada"].suppressed_token_ids(126464)
    assert suppressed is not None and (suppressed[0], suppressed[-1], len(suppressed)) == (126349, 126463, 115)
    assert 126348 not in suppressed  # the end of a turn is a token
    assert FAMILIES["llada"].suppressed_token_ids(134548) is None  # another table: Lumina's image codes live there
    assert FAMILIES["bert"].suppressed_token_ids(30522) is None


def test_families_that_share_llada_s_model_type() -> None:
    common: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2}
    config = CONFIGS["llada"](**common, vocab_size=134548, architectures=["LLaDAForMultiModalGeneration"])
    assert family_of(config) is FAMILIES["lumina"]
    assert family_of(CONFIGS["llada"](**common, vocab_size=155136)) is FAMILIES["illada"]
    assert family_of(CONFIGS["llada"](**common, vocab_size=126464)) is FAMILIES["llada"]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_configuration_is_known_to_transformers_and_to_the_wrapper(model_type: str) -> None:
    config = CONFIGS[model_type](vocab_size=VOCABULARY, architectures=["LlamaForCausalLM"])
    assert type(AutoConfig.for_model(model_type)) is CONFIGS[model_type]
    rebuilt = RMConfig(**RMConfig(text_config=config, mask_token_id=3).to_dict())
    assert type(rebuilt.text_config) is CONFIGS[model_type]
    assert rebuilt.text_config.is_causal is False
    assert model_type in FAMILIES


# The mask id


def tokenizer_with_mask(folder: Path, mask: str | None) -> None:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    special = {} if mask is None else {"mask_token": mask}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words)), **special).save_pretrained(folder)


def test_the_mask_id_of_config_then_tokenizer_then_family(tmp_path: Path) -> None:
    def found(folder: Path) -> int | None:
        return find_mask_token_id(load_backbone(str(folder)), partial(find_tokenizer, str(folder)))

    dream = write("dream", tmp_path / "dream")
    tokenizer_with_mask(dream, "w9")
    assert found(dream) == MASK  # the config's
    llada2 = write("llada2", tmp_path / "llada2")
    assert found(llada2) == 156895  # the family's
    tokenizer_with_mask(llada2, None)
    assert found(llada2) == 156895
    tokenizer_with_mask(llada2, "w11")
    assert found(llada2) == 11
    model = RMForMaskedDiffusion.from_backbone(str(llada2), probe=False)
    assert model.config.mask_token_id == 11
    assert found(write("bert", tmp_path / "bert")) is None


def test_the_tokenizer_is_read_once_and_from_where_the_weights_came(tmp_path, monkeypatch) -> None:
    folder, calls = write("llada2", tmp_path / "llada2"), []
    tokenizer_with_mask(folder, "w11")
    read = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: calls.append(k) or read(*a, **k))
    where = {"cache_dir": str(tmp_path / "cache"), "token": "hf_test"}
    model = RMForMaskedDiffusion.from_backbone(str(folder), probe=False, backbone_kwargs=where)
    assert model.config.mask_token_id == 11
    assert len(calls) == 1
    assert where.items() <= calls[0].items()


def test_a_family_s_mask_outside_a_small_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`mask_token_id` is 156895, outside the vocabulary of 40"):
        RMForMaskedDiffusion.from_backbone(str(write("llada_moe", tmp_path)), probe=False)


# What is refused


REFUSED: dict[str, tuple[str, Any]] = {
    "a shared expert": ("llada_moe", {"shared_expert_intermediate_size": 12}),
    "an expert bias": ("llada_moe", {"moe_router_enable_expert_bias": True}),
    "clipped projections": ("llada_moe", {"clip_qkv": 8.0}),
    "a sigmoid router": ("llada_moe", {"moe_router_score_function": "sigmoid"}),
    "no norm of queries and keys": ("llada_moe", {"qk_layernorm": False}),
    "a partial rotation": ("llada_moe", {"partial_rotary_factor": 0.5}),
    "biases of the fused projection": ("llada2", {"use_qkv_bias": True}),
    "a bias of the output projection": ("llada2", {"use_bias": True}),
    "a softmax router": ("llada2", {"score_function": "softmax"}),
    "a normed head": ("llada2", {"norm_head": True}),
    "a sliding window": ("llada2", {"use_sliding_window": True}),
    "no shared expert": ("llada2", {"num_shared_experts": 0}),
    "layer norm": ("illada", {"layer_norm_eps": 1e-5}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_native_network_does_not_compute_is_refused(tmp_path: Path, case: str) -> None:
    name, changes = REFUSED[case]
    (field,) = changes
    with pytest.raises(ValueError, match=f"`{field}`"):
        load_backbone(str(write(name, tmp_path, **changes)))


def test_an_unknown_model_type_is_named(tmp_path: Path) -> None:
    folder = write("llada", tmp_path, model_type="llada9")
    with pytest.raises(ValueError, match="model_type 'llada9'.*trust_remote_code"):
        load_backbone(str(folder))


def test_a_model_without_a_language_model_head_is_refused(tmp_path: Path) -> None:
    config = CLIPTextConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="clip_text_model.*no language-model head"):
        load_backbone(str(tmp_path))


def test_an_empty_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="config.json"):
        load_backbone(str(tmp_path))


def test_other_tasks_heads_are_no_unexpected_keys(tmp_path: Path) -> None:
    """BERT is published with a pooler and the head of its second pretraining task."""
    from safetensors.torch import save_file

    folder = write("bert", tmp_path)
    extra = {"bert.pooler.dense.weight": torch.zeros(16, 16), "cls.seq_relationship.weight": torch.zeros(2, 16)}
    save_file({**weights_of(folder), **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_backbone(str(folder)).config.model_type == "bert"
    save_file({**weights_of(folder), "bert.adapter.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(OSError, match="unexpected keys.*bert.adapter.weight"):
        load_backbone(str(folder))


# Overrides


def test_a_causal_model_may_be_loaded_to_look_both_ways(tmp_path: Path) -> None:
    folder = write("dream", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config))
    ids, _, _ = batch()
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % VOCABULARY
    for is_causal in (None, False):
        model = load_backbone(str(folder), is_causal=is_causal)
        assert type(model).__name__ == "Qwen2ForCausalLM"
        same = torch.allclose(model(ids).logits[:, 0], model(changed).logits[:, 0], atol=1e-4)
        assert same is (is_causal is None)
    given = AutoConfig.from_pretrained(folder, rms_norm_eps=0.5)
    assert load_backbone(str(folder), config=given).config.rms_norm_eps == 0.5
