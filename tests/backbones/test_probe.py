"""The load-time probe: what it finds out, and each false claim that it refuses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rxn import MASK, REACTIONS, rxn_tokenizer, write_rxnmapper
from tiny_models import BACKBONES, bert, grid, grid_model, llama
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import hf_rm.generation_rm as generation
import hf_rm.vocabulary_rm as vocabulary
from hf_rm import RMConfig, RMForMaskedDiffusion, RMTrainer, RMTrainingArguments
from hf_rm.backbones import BackboneTraits, measure, probe
from hf_rm.backbones.probe import _Bench
from hf_rm.vocabulary_rm import find_tokenizer, reserved_token_ids


def wrap(backbone: PreTrainedModel, mask_token_id: int = 0, **kwargs: Any) -> RMForMaskedDiffusion:
    return RMForMaskedDiffusion.from_backbone(backbone, mask_token_id, probe=False, **kwargs)


def traits_of(backbone: PreTrainedModel, **kwargs: Any) -> BackboneTraits:
    return measure(wrap(backbone, **kwargs))


def albert(**kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 20,
        "embedding_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
    }
    return AlbertForMaskedLM(AlbertConfig(**sizes, num_hidden_layers=1, initializer_range=0.5, **kwargs)).eval()


def modernbert() -> PreTrainedModel:
    torch.manual_seed(0)
    special = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    sizes = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return ModernBertForMaskedLM(ModernBertConfig(**sizes, **special, initializer_range=0.5)).eval()


def words(count: int, mask: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of `count` words."""
    vocabulary = {f"w{i}": i for i in range(count - 1)} | {"<unk>": count - 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), unk_token="<unk>", mask_token=mask
    )


@pytest.fixture
def warnings_seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of the decoding loop and of the vocabulary, from a fresh start."""
    seen: list[str] = []
    for module in (generation, vocabulary):
        monkeypatch.setattr(module.logger, "warning", lambda message, *args, **kwargs: seen.append(message))
        module.logger.warning_once.cache_clear()
    return seen


# What it sees


@pytest.mark.parametrize("make", [*BACKBONES.values(), albert, modernbert], ids=lambda make: make.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_sound_backbone_has_no_problem(make: Callable[[], PreTrainedModel], dtype: torch.dtype) -> None:
    traits = probe(wrap(make().to(dtype)))
    assert traits.bidirectional and traits.honours_2d_mask and traits.honours_4d_mask and traits.honours_head_mask
    assert traits.embeds_error == 0
    assert traits.padding_error < (1e-5 if dtype == torch.float32 else 0.05)
    assert traits.dtype == str(dtype).removeprefix("torch.")
    assert traits.block_causal is None


def test_the_embedding_is_described() -> None:
    traits = traits_of(albert())
    assert (traits.embedding_width, traits.hidden_size, traits.embedding_rows) == (8, 16, 20)
    assert traits.embedding_module == "albert.embeddings.word_embeddings"
    assert traits.parameters == sum(p.numel() for p in albert().parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_seen(tied: bool) -> None:
    assert traits_of(llama(tie_word_embeddings=tied)).tied_head is tied


def test_it_says_who_names_the_mask(tmp_path: Path) -> None:
    backbone = llama()
    assert traits_of(backbone, mask_token_id=4).mask_source.startswith("the argument")
    assert measure(wrap(backbone, 4), words(11, mask="w4")).mask_source == "the tokenizer"
    assert "the tokenizer says 5" in measure(wrap(backbone, 4), words(11, mask="w5")).mask_source
    backbone.config.mask_token_id = 4
    assert traits_of(backbone, mask_token_id=4).mask_source == "the config"


def test_nothing_is_disturbed() -> None:
    model = wrap(bert()).train()
    model.model.bert.encoder.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    random_state = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_of_fixed_length_passes() -> None:
    traits = probe(grid_model())
    assert traits.padding_error is None
    assert traits.bidirectional and traits.honours_head_mask


def test_a_model_without_weights_is_left_alone() -> None:
    with torch.device("meta"):
        backbone = LlamaForCausalLM(llama().config)
    assert RMForMaskedDiffusion.from_backbone(backbone, 0).config.mask_token_id == 0


def test_offloaded_weights_are_run_where_they_belong(tmp_path: Path) -> None:
    llama(layers=2).save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "lm_head": "cpu"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu"}
    loading = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    model = RMForMaskedDiffusion.from_backbone(str(tmp_path / "model"), 0, backbone_kwargs=loading)
    assert any(parameter.is_meta for parameter in model.parameters())
    traits = measure(model)
    expected = traits_of(llama(layers=2))
    assert traits.device == "cpu" and traits.mask_probability == pytest.approx(expected.mask_probability)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_experts_do_not_blur_the_picture(causal: bool, dtype: torch.dtype) -> None:
    """Experts compute other batches when other tokens change: earlier logits need not be equal to the bit."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "initializer_range": 0.3}
    config = Qwen3MoeConfig(**sizes, **experts, num_attention_heads=4, num_key_value_heads=2, is_causal=causal)
    traits = traits_of(Qwen3MoeForCausalLM(config).eval().to(dtype))
    assert traits.bidirectional is not causal
    assert traits.honours_2d_mask and traits.honours_4d_mask


# What it refuses


class Deaf(LlamaForCausalLM):
    """Ignores every attention mask."""

    def forward(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OnlyPaddingMasks(LlamaForCausalLM):
    """Takes (B, N) masks and crashes on others."""

    def forward(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() != 2:
            raise RuntimeError("too many dimensions")
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class OnlyBlockMasks(LlamaForCausalLM):
    """Takes (B, 1, N, N) masks and ignores others, as LLaDA2's own code does."""

    def forward(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 2:
            attention_mask = None
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


class OwnPositions(BertForMaskedLM):
    """Counts positions from the left end, padding or not."""

    def forward(self, *args: Any, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class MoreThanEmbeddings(BertForMaskedLM):
    """Does something to ids that `inputs_embeds` does not get."""

    def forward(self, *args: Any, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        output = super().forward(*args, input_ids=input_ids, **kwargs)
        if input_ids is not None:
            output.logits[..., 3] += 1.0
        return output


def other(kind: type[PreTrainedModel], like: PreTrainedModel) -> PreTrainedModel:
    """The same weights in another class."""
    model = kind(like.config).eval()
    model.load_state_dict(like.state_dict())
    return model


def causal(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 11,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.5)).eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_causal_model_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"(?s)causal \(autoregressive\).*from_autoregressive.*is_causal"):
        RMForMaskedDiffusion.from_backbone(causal(dtype), 0)
    assert not traits_of(causal(dtype)).bidirectional
    assert RMForMaskedDiffusion.from_backbone(causal(), 0, probe=False).config.mask_token_id == 0


def test_an_ignored_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"(?s)attention_mask=0 change the logits.*the mask is ignored"):
        RMForMaskedDiffusion.from_backbone(other(Deaf, llama()), 0)
    traits = traits_of(other(Deaf, llama()))
    assert not (traits.honours_2d_mask or traits.honours_4d_mask or traits.honours_head_mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_positions_of_its_own_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="padding should change nothing"):
        RMForMaskedDiffusion.from_backbone(other(OwnPositions, bert()).to(dtype), 0)
    assert traits_of(other(OwnPositions, bert()).to(dtype)).honours_2d_mask


def test_rounding_that_a_network_amplifies_is_not_taken_for_positions_of_its_own() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2}
    sharp = LlamaForCausalLM(LlamaConfig(vocab_size=50, is_causal=False, pad_token_id=1, **sizes))
    with torch.no_grad():  # attention that is all but a maximum: one bit more decides where it looks
        for name, parameter in sharp.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(40 if "q_proj" in name or "k_proj" in name else 5)
    traits = traits_of(sharp.to(torch.bfloat16))
    assert traits.padding_error > 0.3 and not traits.problems


def test_ids_that_are_more_than_embedded_are_refused() -> None:
    with pytest.raises(ValueError, match="other logits than the ids"):
        RMForMaskedDiffusion.from_backbone(other(MoreThanEmbeddings, bert()), 0)
    assert traits_of(other(MoreThanEmbeddings, bert())).embeds_error == pytest.approx(1.0, abs=1e-6)


def test_masks_per_head_are_needed_by_attention_groups_only() -> None:
    groups, heads = grid()
    settings = {"position_groups": groups, "attention_groups": heads, "backbone_positions": False}
    with pytest.raises(ValueError, match="`attention_groups` needs masks that differ between heads"):
        RMForMaskedDiffusion.from_backbone(other(Deaf, llama()), 0, **settings)
    traits = probe(wrap(other(OnlyPaddingMasks, llama())))
    assert traits.honours_2d_mask and not traits.honours_4d_mask and not traits.honours_head_mask


def test_a_block_causal_claim_is_checked() -> None:
    assert traits_of(llama(), attention_block_length=4).block_causal is True
    with pytest.raises(ValueError, match=r"attention_block_length=4 claims block-causal"):
        RMForMaskedDiffusion.from_backbone(other(Deaf, llama()), 0, attention_block_length=4)
    assert traits_of(llama(), attention_block_length=100).block_causal is None  # two blocks do not fit in 128


def test_a_backbone_without_2d_masks_serves_behind_block_masks() -> None:
    traits = probe(wrap(other(OnlyBlockMasks, llama()), attention_block_length=4))
    assert traits.block_causal and not traits.honours_2d_mask


def test_logits_that_are_not_finite_are_refused() -> None:
    backbone = llama()
    backbone.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        RMForMaskedDiffusion.from_backbone(backbone, 0)


def test_a_head_for_another_vocabulary_is_refused() -> None:
    backbone = llama()
    backbone.lm_head = torch.nn.Linear(16, 13, bias=False)
    with pytest.raises(ValueError, match="11 rows, but its logits are 13 wide"):
        RMForMaskedDiffusion.from_backbone(backbone, 0)


def test_every_false_claim_is_named_at_once() -> None:
    backbone = other(Deaf, causal())
    problems = traits_of(backbone, attention_block_length=None).problems
    assert any("causal" in problem for problem in problems)
    with pytest.raises(ValueError, match="probe=False"):
        probe(wrap(backbone))


# Shifted logits


@pytest.fixture(scope="module")
def repeats_next() -> PreTrainedModel:
    """A tiny model that was trained to say the next token, which it sees: what Dream does at visible tokens."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 21,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    backbone = LlamaForCausalLM(LlamaConfig(**sizes, is_causal=False, initializer_range=0.1))
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        ids = torch.randint(1, 21, (16, 16), generator=generator)
        logits = backbone(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    return backbone.eval()


def test_a_silent_shift_is_refused(repeats_next: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"logits_shift=False is claimed.*repeats the next token.*logits_shift=True"):
        RMForMaskedDiffusion.from_backbone(repeats_next, 0)
    traits = probe(wrap(repeats_next, logits_shift=True))
    assert traits.observed_shift is True and traits.logits_shift


def test_a_shift_that_is_not_there_is_refused() -> None:
    backbone = llama(vocab_size=21, hidden_size=32)
    with torch.no_grad():  # a network that passes its input on, under a head that reads it
        backbone.lm_head.weight.copy_(backbone.model.embed_tokens.weight)
        for layer in backbone.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.mul_(0.01)
    with pytest.raises(ValueError, match=r"logits_shift=True is claimed.*repeats the own token.*logits_shift=False"):
        RMForMaskedDiffusion.from_backbone(backbone, 0, logits_shift=True)
    assert probe(wrap(backbone)).observed_shift is False


def test_random_weights_show_no_shift() -> None:
    for seed in range(5):
        assert traits_of(llama(vocab_size=30, seed=seed)).observed_shift is None
        assert traits_of(bert(vocab_size=30, seed=seed), logits_shift=True).observed_shift is None


# The vocabulary


def saved(folder: Path, backbone: PreTrainedModel, tokenizer: Any) -> str:
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_rows_without_a_token_are_never_revealed(tmp_path: Path) -> None:
    backbone = llama()
    with torch.no_grad():  # every mask wants to become 9 or 10, which are no tokens
        backbone.lm_head.weight[:8] *= 1e-3
        backbone.lm_head.weight[10] = -backbone.lm_head.weight[9]
    name = saved(tmp_path, backbone, words(8, mask="w3"))
    model = RMForMaskedDiffusion.from_backbone(name, mask_token_id=3)
    assert model.config.suppressed_token_ids == [8, 9, 10]
    traits = measure(model)
    assert (traits.vocabulary, traits.embedding_rows, traits.suppressed) == (8, 11, 3)
    canvas = torch.full((4, 12), 3)
    sequences = model.generate_reflective(canvas, editable="all", revise=None).sequences
    assert sequences.max() < 8 and not (sequences == 3).any()
    free = RMForMaskedDiffusion.from_backbone(name, mask_token_id=3, suppressed_token_ids=None)
    assert free.config.suppressed_token_ids is None
    assert free.generate_reflective(canvas, editable="all", revise=None).sequences.min() >= 8


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path: Path) -> None:
    name = saved(tmp_path, llama(), words(14))
    with pytest.raises(ValueError, match=r"ids up to 13.*11 rows.*resize_token_embeddings\(14\)"):
        RMForMaskedDiffusion.from_backbone(name, mask_token_id=3)
    model = RMForMaskedDiffusion.from_backbone(name, mask_token_id=3, suppressed_token_ids=None, probe=False)
    with pytest.raises(ValueError, match="they disagree"):
        probe(model)


def test_no_mask_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`mask_token_id` is None"):
        RMForMaskedDiffusion.from_backbone(saved(tmp_path, llama(), words(11)))


def test_reserved_ids() -> None:
    assert reserved_token_ids(words(8), 11) == [8, 9, 10]
    assert reserved_token_ids(words(11), 11) is None
    assert reserved_token_ids(None, 11) is None
    assert reserved_token_ids(words(8), 8 + 8192) is None  # image codes that the tokenizer does not spell


def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    assert find_tokenizer(str(tmp_path)) is None
    (tmp_path / "vocab.txt").write_text("[PAD]\n[MASK]\n")  # a file that this class does not read
    assert find_tokenizer(str(tmp_path)) is None


def test_a_damaged_tokenizer_is_named_and_left(tmp_path: Path, warnings_seen: list[str]) -> None:
    llama().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{nonsense")
    assert RMForMaskedDiffusion.from_backbone(str(tmp_path), 0).config.suppressed_token_ids is None
    assert len(warnings_seen) == 1 and str(tmp_path) in warnings_seen[0]


# A real pretrained masked language model


@pytest.fixture(scope="module")
def rxnmapper(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_rxnmapper(tmp_path_factory.mktemp("rxnmapper")))


def test_a_real_masked_language_model_passes(rxnmapper: str) -> None:
    model = RMForMaskedDiffusion.from_backbone(rxnmapper, MASK)
    traits = probe(model)
    assert traits.mask_source == "the tokenizer"
    assert (traits.embedding_width, traits.hidden_size) == (128, 256)
    assert (traits.embedding_rows, traits.vocabulary, traits.suppressed) == (591, 591, 0)
    assert traits.bidirectional and traits.tied_head and traits.embeds_error == 0
    assert traits.padding_error < 1e-5


def test_its_head_was_never_trained_to_predict_the_mask(rxnmapper: str) -> None:
    model = RMForMaskedDiffusion.from_backbone(rxnmapper, MASK)
    assert model.config.trained_to_remask is False
    traits = measure(model)
    assert traits.predicts_mask is False
    assert traits.mask_probability < 0.05 / 591


def test_it_fills_masks(rxnmapper: str) -> None:
    model = RMForMaskedDiffusion.from_backbone(rxnmapper, MASK).eval()
    tokenizer, right, total = rxn_tokenizer(), 0, 0
    for reaction in REACTIONS:
        ids = torch.tensor(tokenizer(reaction)["input_ids"])
        assert tokenizer.unk_token_id not in ids
        inner = torch.arange(1, len(ids) - 1)
        rows = ids.repeat(len(inner), 1).scatter(1, inner[:, None], MASK)
        with torch.no_grad():
            logits = model(rows, use_history=False).logits
        right += int((logits[torch.arange(len(inner)), inner].argmax(-1) == ids[inner]).sum())
        total += len(inner)
    assert right / total > 0.85  # one token in 591 by chance


def test_without_history_it_is_the_backbone_bit_for_bit(rxnmapper: str) -> None:
    backbone = AlbertForMaskedLM.from_pretrained(rxnmapper)
    model = RMForMaskedDiffusion.from_backbone(rxnmapper, MASK, history=False).eval()
    batch = rxn_tokenizer()(list(REACTIONS), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = backbone(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        got = model(batch["input_ids"], batch["attention_mask"]).logits
        unpadded = model(batch["input_ids"][2:3]).logits
    real = batch["attention_mask"].bool()
    assert torch.equal(got[real], expected[real])
    assert torch.equal(unpadded, backbone(input_ids=batch["input_ids"][2:3]).logits)


# A head that was never trained to predict the mask


def test_reflection_with_an_untrained_head_warns_once(rxnmapper: str, warnings_seen: list[str]) -> None:
    model = RMForMaskedDiffusion.from_backbone(rxnmapper, MASK)
    ids = torch.tensor([rxn_tokenizer()(REACTIONS[0])["input_ids"]])
    model.generate_reflective(ids, revise=None, editable="all")
    assert warnings_seen == []
    for _ in range(2):
        model.generate_reflective(ids, revise="reflective", editable="all")
    assert len(warnings_seen) == 1
    assert "never trained to predict the mask" in warnings_seen[0] and "RMTrainer" in warnings_seen[0]


def test_a_trained_head_does_not_warn(rxnmapper: str, warnings_seen: list[str], tmp_path: Path) -> None:
    model = RMForMaskedDiffusion.from_backbone(rxnmapper, MASK)
    rows = [{"input_ids": rxn_tokenizer()(reaction)["input_ids"], "idx": i} for i, reaction in enumerate(REACTIONS)]
    settings = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
    }
    trainer = RMTrainer(model, RMTrainingArguments(str(tmp_path), **settings), train_dataset=rows)
    assert model.config.trained_to_remask is False  # nothing was trained yet
    trainer.train()
    assert model.config.trained_to_remask is True
    ids = torch.tensor([rows[0]["input_ids"]])
    model.generate_reflective(ids, editable="all", max_steps=2)
    model.save_pretrained(tmp_path / "saved")
    again = RMForMaskedDiffusion.from_pretrained(tmp_path / "saved")
    again.generate_reflective(ids, editable="all", max_steps=2)
    assert warnings_seen == []


def test_the_shipped_model_predicts_its_mask(warnings_seen: list[str]) -> None:
    folder = Path(__file__).parents[2] / "model_cards" / "rm-sudoku"
    model = RMForMaskedDiffusion.from_pretrained(folder)
    assert probe(model).predicts_mask is True
    board = torch.randint(1, 10, (1, 81), generator=torch.Generator().manual_seed(0))
    model.generate_reflective(board, max_steps=1)
    assert warnings_seen == []


def test_random_weights_say_nothing_about_the_mask() -> None:
    model = RMForMaskedDiffusion.from_backbone(llama(vocab_size=30), 0)
    assert measure(model).predicts_mask is None
    assert model.config.trained_to_remask is None


def test_the_table_says_all_of_it() -> None:
    traits = traits_of(albert())
    table = dict(traits.table())
    assert table["embedding"] == "albert.embeddings.word_embeddings, 8 wide (hidden size 16)"
    assert table["attention"] == "bidirectional" and table["2-D mask"] == "honoured"
    deaf = dict(dataclasses.replace(traits, honours_2d_mask=False, observed_shift=True).table())
    assert deaf["2-D mask"] == "ignored or refused" and deaf["logits shift"] == "claimed no, seen yes"


def test_the_config_keeps_what_is_known_of_the_head() -> None:
    config = RMConfig(text_config=llama().config, mask_token_id=0, trained_to_remask=False)
    assert RMConfig.from_dict(config.to_dict()).trained_to_remask is False


def test_what_rounding_may_change_grows_with_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found on a 30-layer model in bf16: its own rounding was taken for positions of its own in one run of three."""
    monkeypatch.setattr(_Bench, "_nudged", lambda self, ids: 0.02)
    limits = []
    for layers in (1, 16, 400):
        bench = _Bench(wrap(llama()))
        bench.config.text_config.num_hidden_layers = layers
        limits.append(bench.rounding(bench.tokens(4)))
    assert limits == pytest.approx([0.06, 0.24, 0.5])
