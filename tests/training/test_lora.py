"""LoRA: what a step changes, family by family; the mask's rows; checkpoints, merging, QLoRA, refusals."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_families import FAMILIES_UNDER_TEST, MASK, VOCABULARY
from tiny_families import write as write_family
from tiny_training import tiny_model, tiny_rows
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from hf_rm import (
    RemaskSFTArguments,
    RemaskSFTTrainer,
    RemeDiForMaskedDiffusion,
    RMForMaskedDiffusion,
    RMTrainer,
    RMTrainingArguments,
)
from hf_rm.history import HistorySegments
from hf_rm.hub import save_adapter_for_hub
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer, default_lora_config, lora_targets, mask_rows
from hf_rm.training.base import load_model
from hf_rm.training.lora import complete_peft_config, prepare_for_training

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "is_causal": False,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 4}

NATIVE: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=4)),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **EXPERTS)),
}
# Checkpoints in the published naming go through `from_backbone`'s loading.
CHECKPOINTS = tuple(FAMILIES_UNDER_TEST)


def make_model(name: str, folder: Path) -> RMForMaskedDiffusion:
    if name in NATIVE:
        torch.manual_seed(0)
        return RMForMaskedDiffusion.from_backbone(NATIVE[name]().eval(), mask_token_id=MASK)
    mask_token_id = FAMILIES_UNDER_TEST[name].mask_token_id
    return RMForMaskedDiffusion.from_backbone(str(write_family(name, folder / name)), mask_token_id=mask_token_id)


def rows(vocabulary: int = 30) -> list[dict]:
    """Ids from 6 on, which are no family's mask."""
    return [{"input_ids": 6 + (torch.arange(8) * (i % 5 + 1) + i) % (vocabulary - 6), "idx": i} for i in range(32)]


def arguments(folder, kind=RMTrainingArguments, **settings):
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return kind(str(folder), **{**defaults, **settings})


def base_name(name: str) -> str:
    """The name that a parameter of an adapted model had before, or has inside the adapter."""
    return name.removeprefix("base_model.model.").replace("token_adapter.base_layer.", "").replace("base_layer.", "")


def base_weights(model) -> dict[str, torch.Tensor]:
    states = {base_name(name): value for name, value in model.state_dict().items()}
    return {
        name: value.clone()
        for name, value in states.items()
        if "lora_" not in name and "trainable_tokens_" not in name
    }


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    ids = torch.stack([row["input_ids"] for row in rows()[:4]]).clone()
    ids[:, ::3] = MASK
    past = HistorySegments(torch.full((4, 8, 1), MASK), torch.tensor([3, 1]).expand(4, 8, 2))
    model.eval()
    return model(input_ids=ids, history=past).logits


@pytest.fixture(scope="module", params=[*NATIVE, *CHECKPOINTS])
def trained(request, tmp_path_factory):
    """Two LoRA steps of each family: what the model was, and what it is."""
    folder = tmp_path_factory.mktemp("lora")
    model = make_model(request.param, folder)
    base, before, plain = copy.deepcopy(model), base_weights(model), logits_of(model)
    config = default_lora_config(model, r=2)
    trainer = RMTrainer(model, arguments(folder / "out"), train_dataset=rows(), peft_config=config)
    fresh = logits_of(trainer.model)
    initial = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    yield SimpleNamespace(
        name=request.param,
        trainer=trainer,
        model=trainer.model,
        base=base,
        before=before,
        plain=plain,
        fresh=fresh,
        initial=initial,
        after=logits_of(trainer.model),
    )


class TestEveryFamily:
    def test_an_untrained_adapter_changes_nothing(self, trained):
        assert (trained.fresh - trained.plain).abs().max() < 1e-5

    def test_a_step_changes_the_adapter_and_nothing_else(self, trained):
        now = base_weights(trained.model)
        assert now.keys() == trained.before.keys()
        for name, value in trained.before.items():
            assert torch.equal(now[name], value), name
        trainable = {n: p for n, p in trained.model.named_parameters() if p.requires_grad}
        assert trainable.keys() == trained.initial.keys()
        for name, value in trainable.items():
            assert "lora_" in name or "trainable_tokens_delta" in name, name
            assert not torch.equal(value, trained.initial[name]), f"{name} did not move"
        assert (trained.after - trained.plain).abs().max() > 1e-3

    def test_it_takes_attention_projections_only(self, trained):
        adapted = {name.split(".lora_A")[0] for name in trained.initial if ".lora_A." in name}
        assert adapted
        for name in adapted:
            assert "attn" in name or "attention" in name, name
            assert not any(word in name for word in ("mlp", "ffn", "expert", "intermediate", "head")), name
        per_layer = {name.rpartition(".")[2] for name in adapted}
        queries = {"q_proj", "query", "Wqkv", "query_key_value"}
        assert per_layer & queries, per_layer

    def test_the_masks_rows_move_and_no_other_row(self, trained):
        merged = copy.deepcopy(trained.model).merge_and_unload()
        for old, new in (
            (trained.base.get_input_embeddings(), merged.get_input_embeddings()),
            (trained.base.get_output_embeddings(), merged.get_output_embeddings()),
        ):
            moved = (old.weight != new.weight).any(dim=1).nonzero().flatten().tolist()
            assert moved == [trained.base.config.mask_token_id]
        tied = trained.base.get_output_embeddings().weight is trained.base.get_input_embeddings().weight
        assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == tied
        deltas = [name for name in trained.initial if "trainable_tokens_delta" in name]
        assert len(deltas) == (1 if tied else 2)

    def test_saved_and_loaded_it_computes_the_same(self, trained, tmp_path):
        trained.trainer.save_model(str(tmp_path))
        assert "adapter_model.safetensors" in {path.name for path in tmp_path.iterdir()}
        again = PeftModel.from_pretrained(copy.deepcopy(trained.base), tmp_path)
        assert torch.equal(logits_of(again), trained.after)

    def test_merged_it_computes_the_same_and_is_the_wrapper(self, trained):
        merged = copy.deepcopy(trained.model).merge_and_unload()
        assert type(merged) is RMForMaskedDiffusion
        assert (logits_of(merged) - trained.after).abs().max() < 1e-5
        assert merged.state_dict().keys() == trained.base.state_dict().keys()

    def test_unloaded_it_is_the_base(self, trained):
        base = copy.deepcopy(trained.model).unload()
        assert type(base) is RMForMaskedDiffusion
        assert torch.equal(logits_of(base), trained.plain)
        for name, value in base.state_dict().items():
            assert torch.equal(value, trained.before[name]), name

    def test_disabled_it_is_the_base(self, trained):
        with trained.model.disable_adapter():
            assert torch.equal(logits_of(trained.model), trained.plain)
        assert torch.equal(logits_of(trained.model), trained.after)

    def test_it_decodes(self, trained):
        canvas = torch.full((1, 6), trained.base.config.mask_token_id)
        out = trained.model.generate_reflective(canvas, max_steps=12)
        assert out.sequences.shape == (1, 6)
        assert (out.sequences != trained.base.config.mask_token_id).all() or not out.converged.all()


class TestTheMasksRows:
    @pytest.mark.parametrize("tied", [False, True])
    def test_history_reads_the_adapted_row(self, tied):
        """A mask that only the past holds still trains the embedding's row; without history it cannot."""
        model = RMForMaskedDiffusion.from_backbone(
            LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied)), mask_token_id=MASK
        )
        adapted = get_peft_model(model, default_lora_config(model, r=2))
        delta = adapted.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
        past = HistorySegments(torch.full((2, 8, 1), MASK), torch.tensor([3, 1]).expand(2, 8, 2))
        ids = torch.arange(16).view(2, 8)
        # The score of an ordinary token: the mask's row of the head is not in it.
        (with_history,) = torch.autograd.grad(adapted(ids, history=past).logits[..., 5].sum(), delta)
        (without,) = torch.autograd.grad(adapted(ids).logits[..., 5].sum(), delta, materialize_grads=True)
        assert with_history.abs().max() > 1e-3
        assert without.abs().max() == 0

    def test_the_mask_loss_reaches_an_untied_heads_row(self):
        model = RMForMaskedDiffusion.from_backbone(LlamaForCausalLM(LlamaConfig(**SHAPE)), mask_token_id=MASK)
        adapted = get_peft_model(model, default_lora_config(model, r=2))
        delta = adapted.get_output_embeddings().token_adapter.trainable_tokens_delta["default"]
        ids = torch.arange(16).view(2, 8)
        adapted(ids, labels=torch.full((2, 8), MASK)).loss.backward()
        assert delta.grad.abs().max() > 1e-3

    def test_the_wrappers_rows_equal_pefts_on_an_embedding_and_a_head(self):
        model = RMForMaskedDiffusion.from_backbone(LlamaForCausalLM(LlamaConfig(**SHAPE)), mask_token_id=MASK)
        adapted = get_peft_model(model, default_lora_config(model, r=2))
        for module in (adapted.get_input_embeddings(), adapted.get_output_embeddings()):
            torch.nn.init.normal_(module.token_adapter.trainable_tokens_delta["default"])
        ids = torch.arange(30, 40).view(2, 5)

        def outputs():
            adapted.zero_grad()
            logits = adapted(ids).logits
            logits.square().mean().backward()
            return [logits.detach(), *(p.grad.clone() for p in adapted.parameters() if p.requires_grad)]

        ours = outputs()
        for module in (adapted.get_input_embeddings(), adapted.get_output_embeddings()):
            # peft's own, as a model without the wrapper runs it
            module.token_adapter.forward_adapters = type(module.token_adapter).forward_adapters.__get__(
                module.token_adapter
            )
        for one, other in zip(ours, outputs(), strict=True):
            assert (one - other).abs().max() < 1e-5

    def test_a_heads_bias_stays(self, tmp_path):
        model = make_model("bert", tmp_path)
        torch.nn.init.normal_(model.get_output_embeddings().bias)
        plain = logits_of(model)
        adapted = get_peft_model(model, default_lora_config(model, r=2))
        assert (logits_of(adapted) - plain).abs().max() < 1e-5

    def test_they_can_be_left_out(self):
        model = tiny_model()
        adapted = get_peft_model(model, default_lora_config(model, train_mask_row=False))
        assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)


class TestTargets:
    @pytest.mark.parametrize(
        ("paths", "expected"),
        [
            # LLaDA as its remote code names it: projections in the block, the MLP's last layer called like the head
            (
                ["blocks.0.q_proj", "blocks.0.attn_out", "blocks.0.ff_proj", "blocks.0.ff_out", "ff_out"],
                ["q_proj", "attn_out"],
            ),
            # a projection and an MLP that end alike
            (
                ["layer.0.attention.output.dense", "layer.0.output.dense", "layer.0.intermediate.dense"],
                ["attention.output.dense"],
            ),
            (["layers.0.attn.Wqkv", "layers.0.attn.Wo", "layers.0.mlp.Wo"], ["attn.Wqkv", "attn.Wo"]),
            (["layers.0.self_attn.qkv", "layers.0.mlp.experts.0.q_proj"], ["self_attn.qkv"]),
        ],
        ids=["llada", "bert", "modernbert", "experts"],
    )
    def test_an_unknown_familys_are_found_by_name(self, paths, expected):
        assert lora_targets(module_tree(paths)) == expected

    def test_without_any_the_error_says_what_to_pass(self):
        with pytest.raises(ValueError, match=r"target_modules.*fc1, fc2.*LoraConfig\(target_modules"):
            lora_targets(module_tree(["layers.0.fc1", "layers.0.fc2"]))

    def test_a_plain_lora_config_gets_the_familys(self, tmp_path):
        config = LoraConfig(r=2)
        trainer = RMTrainer(tiny_model(), arguments(tmp_path), train_dataset=tiny_rows(), peft_config=config)
        adapted = {name.split(".")[-4] for name, _ in trainer.model.named_parameters() if ".lora_A." in name}
        assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert config.target_modules is None, "the caller's config is left as it was"

    def test_targets_that_are_given_are_kept(self):
        config = complete_peft_config(tiny_model(), LoraConfig(r=2, target_modules=["v_proj"]))
        assert config.target_modules == {"v_proj"}

    def test_a_task_type_is_left_out(self, tmp_path):
        config = LoraConfig(r=2, task_type="CAUSAL_LM")
        trainer = RMTrainer(tiny_model(), arguments(tmp_path), train_dataset=tiny_rows(), peft_config=config)
        assert type(trainer.model) is PeftModel
        trainer.train()


def module_tree(paths: list[str]) -> nn.Module:
    """A module with a small linear layer at every path, and the config of a family that nobody knows."""
    root = nn.Module()
    for path in paths:
        *parents, leaf = path.split(".")
        parent = root
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(leaf, nn.Linear(2, 2))
    root.config = SimpleNamespace(model_type="unheard-of")
    return root


class TestTraining:
    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_gradient_checkpointing_changes_no_loss_and_no_gradient(self, tmp_path, use_reentrant):
        runs = []
        for settings in (
            {},
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}},
        ):
            model, calls = tiny_model(), []
            model.model.model.layers[0].input_layernorm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            trainer = RMTrainer(
                model,
                arguments(tmp_path, max_steps=3, **settings),
                train_dataset=tiny_rows(),
                peft_config=default_lora_config(model, r=2),
            )
            trainer.train()
            logs = [entry for entry in trainer.state.log_history if "loss" in entry]
            runs.append((logs, trainer.model.state_dict(), len(calls)))
        (plain, weights, once), (recomputed, other_weights, twice) = runs
        assert twice == 2 * once, "the layer was run again in every backward pass"
        for one, other in zip(plain, recomputed, strict=True):
            assert one["grad_norm"] > 0
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-6)
        for name, value in weights.items():
            assert (value - other_weights[name]).abs().max() < 1e-6, name

    def test_a_resumed_run_ends_bit_for_bit_where_the_whole_one_does(self, tmp_path):
        def run(folder, stop=None, resume=None):
            model = tiny_model()
            settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "pool_fraction": 0.5}
            args = arguments(folder, **settings)
            trainer = RMTrainer(
                model, args, train_dataset=tiny_rows(), peft_config=default_lora_config(model, r=2, lora_dropout=0.1)
            )
            trainer.train(resume_from_checkpoint=resume)
            return trainer.model.state_dict()

        whole = run(tmp_path / "whole")
        resumed = run(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
        for name, value in whole.items():
            assert torch.equal(value, resumed[name]), name

    def test_a_checkpoint_holds_the_adapter_alone(self, tmp_path):
        model = tiny_model()
        settings = {"save_strategy": "steps", "save_steps": 2}
        trainer = RMTrainer(
            model,
            arguments(tmp_path, **settings),
            train_dataset=tiny_rows(),
            peft_config=default_lora_config(model, r=2),
        )
        trainer.train()
        trainer.save_model(str(tmp_path / "final"))
        names = {path.name for path in (tmp_path / "final").iterdir()}
        assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "training_args.json"}
        saved = load_file(tmp_path / "final" / "adapter_model.safetensors")
        assert all("lora_" in name or "token_adapter" in name for name in saved)
        assert sum(value.numel() for value in saved.values()) == sum(
            p.numel() for p in trainer.model.parameters() if p.requires_grad
        )
        checkpoint = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
        assert "adapter_model.safetensors" in checkpoint
        assert not checkpoint & {"model.safetensors", "pytorch_model.bin", "adapter_model.bin", "training_args.bin"}
        with safe_open(tmp_path / "checkpoint-2" / "adapter_model.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(saved)

    def test_an_adapted_model_goes_on_with_its_adapter(self, tmp_path):
        model = tiny_model()
        adapted = get_peft_model(model, default_lora_config(model, r=2))
        trainer = RMTrainer(adapted, arguments(tmp_path), train_dataset=tiny_rows())
        trainer.train()
        assert trainer.model is adapted
        assert all(p.abs().sum() > 0 for n, p in adapted.named_parameters() if "lora_B" in n)

    @pytest.mark.parametrize("name", ["llama", "llama, tied"])
    def test_published_and_loaded_it_computes_the_same(self, name, tmp_path, caplog):
        """Of a tied head's rows, stored once, the loader said that they were missing, and printed that as well."""
        make_model(name, tmp_path).model.save_pretrained(tmp_path / "base")
        model = RMForMaskedDiffusion.from_backbone(str(tmp_path / "base"), mask_token_id=MASK)
        config = default_lora_config(model, r=2)
        trainer = RMTrainer(model, arguments(tmp_path / "out"), train_dataset=rows(), peft_config=config)
        trainer.train()
        adapted = trainer.accelerator.unwrap_model(trainer.model).eval()
        save_adapter_for_hub(adapted, tmp_path / "published")
        loader = logging.getLogger("transformers.integrations.peft")
        loader.addHandler(caplog.handler)
        again = RMForMaskedDiffusion.from_pretrained(tmp_path / "published").eval()
        loader.removeHandler(caplog.handler)
        assert not caplog.records
        ids = torch.tensor([[1, MASK, 2, MASK]])
        with torch.no_grad():
            torch.testing.assert_close(again(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-6)

    def test_vanilla_sft_takes_one_too(self, tmp_path):
        model = tiny_model()
        before = base_weights(model)
        trainer = MaskedSFTTrainer(
            model,
            arguments(tmp_path, MaskedSFTArguments),
            train_dataset=tiny_rows(),
            peft_config=default_lora_config(model, r=2),
        )
        trainer.train()
        now = base_weights(trainer.model)
        assert all(torch.equal(now[name], value) for name, value in before.items())
        assert all(p.abs().sum() > 0 for n, p in trainer.model.named_parameters() if "lora_B" in n)

    def test_muon_takes_the_adapters_matrices(self, tmp_path):
        model = tiny_model()
        trainer = RMTrainer(
            model,
            arguments(tmp_path, muon_learning_rate=0.01),
            train_dataset=tiny_rows(),
            peft_config=default_lora_config(model, r=2),
        )
        before = base_weights(trainer.model)
        trainer.train()
        assert all(torch.equal(base_weights(trainer.model)[name], value) for name, value in before.items())
        assert all(p.abs().sum() > 0 for n, p in trainer.model.named_parameters() if "lora_B" in n)

    def test_a_bf16_base_keeps_its_dtype_and_trains_an_fp32_adapter(self, tmp_path):
        model = tiny_model().to(torch.bfloat16)
        trainer = RMTrainer(
            model, arguments(tmp_path), train_dataset=tiny_rows(), peft_config=default_lora_config(model, r=2)
        )
        trainer.train()
        for name, parameter in trainer.model.named_parameters():
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        assert trainer.model(torch.arange(8)[None]).logits.dtype == torch.bfloat16


class TestRefusals:
    def test_a_second_adapter(self, tmp_path):
        model = tiny_model()
        adapted = get_peft_model(model, default_lora_config(model, r=2))
        with pytest.raises(ValueError, match="already has an adapter.*merge_and_unload"):
            RMTrainer(adapted, arguments(tmp_path), train_dataset=tiny_rows(), peft_config=LoraConfig())

    def test_an_adapter_loaded_for_inference(self, tmp_path):
        model = tiny_model()
        get_peft_model(model, default_lora_config(model, r=2)).save_pretrained(tmp_path / "adapter")
        frozen = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
        with pytest.raises(ValueError, match="is_trainable=True"):
            RMTrainer(frozen, arguments(tmp_path), train_dataset=tiny_rows())

    def test_something_else_than_a_config(self, tmp_path):
        with pytest.raises(ValueError, match="`peft_config` is a dict.*default_lora_config"):
            RMTrainer(tiny_model(), arguments(tmp_path), train_dataset=tiny_rows(), peft_config={"r": 2})

    def test_arguments_of_a_load_for_a_loaded_model(self):
        with pytest.raises(ValueError, match="model_init_kwargs.*loaded already"):
            load_model(tiny_model(), {"dtype": "bfloat16"})

    def test_rows_of_an_embedding_that_peft_cannot_split(self):
        model = tiny_model()
        embedding = nn.Module()
        embedding.weight = model.get_input_embeddings().weight
        model.set_input_embeddings(embedding)
        with pytest.raises(ValueError, match="train_mask_row=False"):
            mask_rows(model)

    def test_a_quantised_model_without_an_adapter(self, tmp_path):
        model = tiny_model()
        model.model.is_quantized = True
        with pytest.raises(ValueError, match="quantised.*peft_config"):
            RMTrainer(model, arguments(tmp_path), train_dataset=tiny_rows())

    def test_four_bits_without_bitsandbytes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hf_rm.training.lora.find_spec", lambda name: None)
        settings = {"model_init_kwargs": '{"quantization_config": {"load_in_4bit": true}}'}
        with pytest.raises(ValueError, match="bitsandbytes, which is not installed"):
            RMTrainer("a model that is not there", arguments(tmp_path, **settings), train_dataset=tiny_rows())


def test_model_init_kwargs_reach_the_load(tmp_path):
    config = LlamaConfig(**SHAPE)
    config.mask_token_id = MASK
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    backbone = load_model(str(tmp_path / "base"), {"dtype": torch.bfloat16})
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    backbone.save_pretrained(tmp_path / "wrapper")
    wrapper = load_model(str(tmp_path / "wrapper"), {"dtype": torch.float16})
    assert {p.dtype for p in wrapper.parameters()} == {torch.float16}


def test_qlora_trains_an_adapter_on_a_four_bit_base(tmp_path):
    pytest.importorskip("bitsandbytes", reason="an optional package; the GPU machines of users have it")
    config = LlamaConfig(**{**SHAPE, "hidden_size": 64, "intermediate_size": 64})
    config.mask_token_id = MASK
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    settings = {
        "model_init_kwargs": '{"quantization_config": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}}',
        "gradient_checkpointing": True,
        "learning_rate": 1e-3,
    }
    args = arguments(tmp_path / "out", **settings)
    trainer = RMTrainer(str(tmp_path / "base"), args, train_dataset=rows(), peft_config=LoraConfig(r=2))
    layer = trainer.model.base_model.model.model.model.layers[0].self_attn.q_proj
    assert type(layer.base_layer).__name__ == "Linear4bit"
    assert type(layer).__module__ == "peft.tuners.lora.bnb", "peft's own four-bit layer, which can be merged"
    packed = layer.base_layer.weight.detach().clone()
    trainer.train()
    assert torch.equal(layer.base_layer.weight, packed)
    assert layer.lora_B["default"].weight.abs().sum() > 0
    trainer.save_model(str(tmp_path / "final"))
    assert all("lora_" in name for name in load_file(tmp_path / "final" / "adapter_model.safetensors"))


# 16 bits


def half(layers: int = 2) -> PreTrainedModel:
    """A backbone in bfloat16, in which a norm's weight of 1 has a last bit of 0.008."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": layers})).to(torch.bfloat16).eval()


@pytest.mark.parametrize("autocast", [False, True])
def test_what_an_adapter_trains_of_a_16_bit_backbone_moves(tmp_path: Path, autocast: bool) -> None:
    """At the learning rate of the published settings; the backbone stays in 16 bits, and decoding works as before."""
    model = RemeDiForMaskedDiffusion.from_backbone(half(3), MASK, policy_layers=[0, 2])
    args = arguments(tmp_path, RemaskSFTArguments, bf16=autocast, learning_rate=2e-5, backbone_learning_rate=2e-5)
    config = default_lora_config(model, r=2)
    trainer = RemaskSFTTrainer(model, args, train_dataset=rows(), peft_config=config)
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    assert all(p.dtype == torch.float32 for p in trained.values())
    trainer.train()
    norms = [name for name in trained if "norm" in name]
    assert len(norms) == 2 * 2 + 2 + 1 and any("trainable_tokens" in name for name in trained)
    for name in norms:
        assert (trained[name] != before[name]).float().mean() > 0.9, name
    rest = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    assert rest == {torch.bfloat16}
    ids = torch.tensor([[1, 2, 3]])
    mask = torch.ones_like(ids)
    output = trainer.model.eval().generate_reflective(ids, mask, max_new_tokens=4, block_length=4)
    assert output.sequences.shape == (1, 7)
    again = prepare_for_training(trainer.model, None)  # to go on by reinforcement
    assert again is trainer.model and all(p.dtype == torch.float32 for p in trained.values())


@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens", "norm"])
@pytest.mark.parametrize("autocast", [False, True])
def test_modules_that_are_saved_whole_fit_into_a_16_bit_model(tmp_path: Path, saved: str, autocast: bool) -> None:
    model = RMForMaskedDiffusion.from_backbone(half(), MASK)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[saved])
    args = arguments(tmp_path, bf16=autocast, learning_rate=2e-5)
    with torch.no_grad():
        plain = logits_of(copy.deepcopy(model))
    trainer = RMTrainer(model, args, train_dataset=rows(), peft_config=config)
    whole = [p for name, p in trainer.model.named_parameters() if "modules_to_save" in name]
    assert {p.dtype for p in whole} == {torch.float32}
    fresh = logits_of(trainer.model)
    assert fresh.dtype == torch.bfloat16
    torch.testing.assert_close(fresh, plain, atol=0.05, rtol=0.05)
    before = whole[0].detach().clone()
    trainer.train()
    moved = (whole[0] != before).float().mean()
    assert moved > 0.2  # of an embedding the rows that occur


def test_a_16_bit_model_without_an_adapter_is_left_as_it_is_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    model = RMForMaskedDiffusion.from_backbone(half(), MASK)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert prepare_for_training(model, None).dtype == torch.bfloat16
    finally:
        logger.removeHandler(caplog.handler)
    assert "trained in torch.bfloat16" in caplog.text and "dtype=float32" in caplog.text
