"""Causal language models made into mask diffusion backbones."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_rm import RMForMaskedDiffusion
from hf_rm.backbones import from_autoregressive, measure
from hf_rm.backbones.autoregressive import MASK_TOKEN
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
CLASSES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def causal(kind: str = "llama", vocab_size: int = 12, **kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model_class, config_class = CLASSES[kind]
    return model_class(config_class(vocab_size=vocab_size, **{**SIZES, **kwargs})).eval()


def words(count: int, *more: str, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `count` words, `<eos>` among them, and of the tokens in `more`."""
    names = [f"w{i}" for i in range(count - 2)] + ["<unk>", "<eos>", *more]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", **special)


def reads_what_follows(model: PreTrainedModel) -> bool:
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 5]])
    masks: list[Tensor | None] = [None, torch.ones_like(one)]
    with torch.no_grad():
        differences = [
            (model(one, attention_mask=m).logits - model(other, attention_mask=m).logits)[:, :3] for m in masks
        ]
    return all(bool((difference.abs() > 1e-6).any()) for difference in differences)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", CLASSES)
def test_it_reads_what_follows_also_after_a_reload(kind: str, attention: str, tmp_path: Path) -> None:
    model = causal(kind)
    model.set_attn_implementation(attention)
    assert not reads_what_follows(model)
    model, tokenizer = from_autoregressive(model, words(12))
    assert reads_what_follows(model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert again.config.is_causal is False and reads_what_follows(again)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_the_saved_folder_is_a_backbone(tmp_path: Path) -> None:
    model, tokenizer = from_autoregressive(causal(), words(12))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wrapper = RMForMaskedDiffusion.from_backbone(str(tmp_path))
    assert wrapper.config.mask_token_id == model.config.mask_token_id
    traits = measure(wrapper)
    assert traits.bidirectional and traits.mask_source == "the config" and not traits.problems
    sequences = wrapper.generate_reflective(torch.tensor([[1, 2]]), max_new_tokens=4, revise=None).sequences
    assert sequences.shape == (1, 6) and not (sequences == wrapper.config.mask_token_id).any()


def test_by_name(tmp_path: Path) -> None:
    causal().save_pretrained(tmp_path)
    words(12).save_pretrained(tmp_path)
    model, tokenizer = from_autoregressive(str(tmp_path), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert tokenizer.mask_token == MASK_TOKEN
    assert model.config.mask_token_id == 12


# The mask token


def test_a_reserved_token_becomes_the_mask() -> None:
    tokenizer = words(10, "unused", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    model, tokenizer = from_autoregressive(causal(vocab_size=13), tokenizer)
    assert tokenizer.mask_token == "<|reserved_special_token_0|>"
    assert tokenizer.mask_token_id == model.config.mask_token_id == 11
    assert len(tokenizer.get_vocab()) == model.get_input_embeddings().num_embeddings == 13
    assert tokenizer("w1")["input_ids"] == [1]


def test_a_row_without_a_token_becomes_the_mask() -> None:
    model, tokenizer = from_autoregressive(causal(vocab_size=16), words(12))
    assert tokenizer.mask_token_id == model.config.mask_token_id == 12
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 16


@pytest.mark.parametrize("tied", [False, True])
def test_otherwise_a_row_is_added(tied: bool) -> None:
    original = causal(tie_word_embeddings=tied)
    tables = [original.get_input_embeddings().weight.clone(), original.get_output_embeddings().weight.clone()]
    ids = torch.tensor([[1, 2, 3]])
    model, tokenizer = from_autoregressive(original, words(12))
    assert tokenizer.mask_token_id == model.config.mask_token_id == 12
    assert model.config.vocab_size == 13 and model(ids).logits.shape[-1] == 13
    for module, table in zip((model.get_input_embeddings(), model.get_output_embeddings()), tables, strict=True):
        assert torch.equal(module.weight[:12], table)
        torch.testing.assert_close(module.weight[12], table.mean(0))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_a_named_token_is_taken() -> None:
    model, tokenizer = from_autoregressive(causal(), words(12), mask_token="w4")
    assert tokenizer.mask_token_id == model.config.mask_token_id == 4
    model, tokenizer = from_autoregressive(causal(), words(12), mask_token="<M>")
    assert tokenizer.mask_token == "<M>" and model.config.mask_token_id == 12
    model, _ = from_autoregressive(causal(), mask_token=5)
    assert model.config.mask_token_id == 5


def test_the_tokenizers_own_mask_is_taken() -> None:
    tokenizer = words(10, "<|reserved_0|>", "<my mask>", mask_token="<my mask>")
    model, tokenizer = from_autoregressive(causal(), tokenizer)
    assert tokenizer.mask_token == "<my mask>" and model.config.mask_token_id == 11


def test_padding_is_given_and_never_the_mask() -> None:
    model, tokenizer = from_autoregressive(causal(), words(12))
    assert tokenizer.pad_token == "<eos>" and model.config.pad_token_id == tokenizer.pad_token_id == 11
    model, tokenizer = from_autoregressive(causal(), words(12, pad_token="w3"))
    assert tokenizer.pad_token == "w3"
    model, tokenizer = from_autoregressive(causal(), words(12, pad_token="w3", mask_token="w3"))
    assert tokenizer.pad_token == "<eos>"


def test_a_model_without_a_tokenizer() -> None:
    model, tokenizer = from_autoregressive(causal())
    assert tokenizer is None and model.config.mask_token_id == 12
    RMForMaskedDiffusion.from_backbone(model)  # the probe passes


# What it refuses


class Stubborn(LlamaForCausalLM):
    """Brings a causal mask of its own."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        length = input_ids.shape[1]
        mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
        return super().forward(input_ids, **{**kwargs, "attention_mask": mask})


def windowed() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(vocab_size=12, sliding_window=8, **SIZES))


def partly_windowed() -> PreTrainedModel:
    return causal("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)


def recurrent() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=12, hidden_size=16, state_size=4, num_hidden_layers=1))


def encoder_decoder() -> PreTrainedModel:
    sizes = {"vocab_size": 12, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (windowed, r"do not attend to everything \(sliding_window=8\)"),
        (partly_windowed, r"do not attend to everything \(sliding_attention\)"),
        (recurrent, "is recurrent"),
        (encoder_decoder, "is an encoder-decoder"),
        (lambda: causal().model, "no language-model head"),
        (lambda: Stubborn(causal().config), "stays causal with config.is_causal=False"),
    ],
    ids=["windows", "some windows", "recurrent", "encoder-decoder", "no head", "own mask"],
)
def test_other_networks_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_autoregressive(make())


def test_full_attention_of_a_class_with_windows_is_taken() -> None:
    model, _ = from_autoregressive(
        MistralForCausalLM(MistralConfig(vocab_size=12, **{**SIZES, "sliding_window": None}))
    )
    assert reads_what_follows(model.eval())


def test_gpt2_is_either_refused_or_bidirectional() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    try:
        model, _ = from_autoregressive(gpt2)
    except ValueError as error:
        assert "stays causal" in str(error)
    else:
        assert reads_what_follows(model)


def test_arguments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="'dtype', 'gguf_file' only mean something for a model given by name"):
        from_autoregressive(causal(), gguf_file="model.gguf", dtype="bfloat16")
    with pytest.raises(ValueError, match="without a tokenizer"):
        from_autoregressive(causal(), mask_token="<M>")
    with pytest.raises(ValueError, match="outside the embedding's 12 rows"):
        from_autoregressive(causal(), mask_token=12)


def test_a_gguf_file_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load_model(name: str, **kwargs: Any) -> PreTrainedModel:
        seen["model"] = (name, kwargs)
        return causal()

    def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerFast:
        seen["tokenizer"] = (name, kwargs)
        return words(12)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load_model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load_tokenizer)
    from_autoregressive("folder", gguf_file="smollm2.gguf", revision="r", dtype="float32")
    packed = seen["model"][1].pop("quantization_config", None)
    assert seen["model"] == ("folder", {"gguf_file": "smollm2.gguf", "revision": "r", "dtype": "float32"})
    if hasattr(transformers, "GgufConfig"):
        assert packed.dequantize, "weights that stay packed can neither be trained nor saved"
    assert seen["tokenizer"] == ("folder", {"gguf_file": "smollm2.gguf", "revision": "r"})


# Ready for masked-diffusion fine-tuning


def test_fine_tuning_brings_the_loss_down(tmp_path: Path) -> None:
    model, tokenizer = from_autoregressive(causal(hidden_size=32), words(12))
    wrapper = RMForMaskedDiffusion.from_backbone(model)
    start = copy.deepcopy(wrapper.state_dict())
    # One word over and over: a mask is told by any visible token, before or after it.
    rows = [{"input_ids": [word] * 12} for word in range(10)] * 4
    settings = {
        "max_steps": 60,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "logging_steps": 10,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 0,
    }
    trainer = MaskedSFTTrainer(
        wrapper, MaskedSFTArguments(str(tmp_path), **settings), train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    mask = model.config.mask_token_id
    assert not torch.equal(
        wrapper.state_dict()["model.model.embed_tokens.weight"][mask], start["model.model.embed_tokens.weight"][mask]
    )
    text = torch.tensor([[mask] * 9 + [4] + [mask] * 2, [7] + [mask] * 11])
    filled = wrapper.eval().generate_reflective(text, revise=None, use_history=False).sequences
    assert filled.tolist() == [[4] * 12, [7] * 12]
