"""
Run by tests/hub/conftest.py in a process of its own: publishes everything that the tests pull.

    script_publish.py OUT   # OUT/expected.safetensors: what the models say; OUT/refused.json: the errors on the way
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hub_reading import IDS, attempt, read, write_models
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from tiny_families import write
from tiny_models import bert, grid_model, llama
from tiny_rl import draft_trainer

from hf_rm import ReflectiveGenerationConfig, RMForMaskedDiffusion, RMTrainer, RMTrainingArguments
from hf_rm.hub import CardFacts, Evaluation, push, push_folder, save_adapter_for_hub, save_for_hub

OUT = Path(sys.argv[1])
expected: dict[str, dict[str, Any]] = {}
refused: dict[str, list[str] | None] = {}

CARD = CardFacts(
    summary="Sorts nothing, but says so.",
    license="apache-2.0",
    datasets=["alice/sums"],
    training="Two steps on nothing.",
    evaluations=[
        Evaluation(
            "arithmetic",
            "sums, test split",
            "exact match",
            0.625,
            0.61,
            0.64,
            4000,
            "python eval.py --seed 7",
            seed=7,
            decoding="threshold 0.9",
            benchmark="alice/sums",
            benchmark_task="test",
            date="2026-11-22",
            source_url="https://example.org/logs",
        ),
        Evaluation("arithmetic", "products", "exact match", 0.5, 0.4, 0.6, 100, "python eval.py --products"),
    ],
    limits="Everything above nine.",
)


def settings(**changes: Any) -> ReflectiveGenerationConfig:
    return ReflectiveGenerationConfig(**{"editable": "all", "max_steps": 7, "output_trajectory": True, **changes})


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **changes})


# Backbones, as anybody publishes them; a saved wrapper, by the method that transformers' users know

llama(seed=1).push_to_hub("alice/tiny-llama")
bert(seed=2).push_to_hub("alice/tiny-bert")

full = RMForMaskedDiffusion.from_backbone(llama(seed=3), mask_token_id=0, history_decay=0.8, history_norm="rms")
full.generation_config = settings()
full.push_to_hub("alice/rm-full", private=True, commit_message="The first", tags=["demo"], card=CARD)
expected["alice/rm-full"] = read(full)

# An adapter on a bare backbone: PEFT around the wrapper, a trainable mask row, a second version on a branch

wrapper = RMForMaskedDiffusion.from_backbone("alice/tiny-llama", mask_token_id=0, history_decay=0.7)
wrapper.generation_config = settings(max_steps=6)
adapted = get_peft_model(wrapper, lora(trainable_token_indices={"embed_tokens": [0]}))
with torch.no_grad():
    for key, parameter in adapted.named_parameters():
        if "trainable_tokens_delta" in key:
            parameter.add_(1.0)
push(adapted, "alice/rm-lora", card=CARD)
expected["alice/rm-lora"] = read(adapted)
with torch.no_grad():
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            parameter.mul_(-1.0)
push(adapted, "alice/rm-lora", revision="second")
expected["alice/rm-lora@second"] = read(adapted)
push(adapted, "alice/rm-lora", create_pr=True)

# An adapter on a saved wrapper: transformers' own add_adapter, a head saved whole, other settings than the base's

based = RMForMaskedDiffusion.from_pretrained("alice/rm-full")
based.config.history_decay = 0.6
based.generation_config = settings(max_steps=5)
based.add_adapter(lora(modules_to_save=["lm_head"]))
with torch.no_grad():
    for key, parameter in based.named_parameters():
        if "modules_to_save" in key:
            parameter.mul_(0.5)
based.push_to_hub("alice/lora-on-full")
expected["alice/lora-on-full"] = read(based)

other = RMForMaskedDiffusion.from_backbone("alice/tiny-bert", mask_token_id=0, history=False)
other.generation_config = settings()
other = get_peft_model(other, lora(target_modules=["query"]))
push(other, "alice/bert-lora")
expected["alice/bert-lora"] = read(other)

# An adapter on LLaDA, published in its own words: no code of transformers knows them

api = HfApi()
api.create_repo("alice/tiny-llada")
api.upload_folder(repo_id="alice/tiny-llada", folder_path=write("llada", OUT / "llada"))
llada = RMForMaskedDiffusion.from_backbone("alice/tiny-llada", history_decay=0.6)
llada.generation_config = settings()
llada = get_peft_model(llada, lora())
push(llada, "alice/llada-lora")
expected["alice/llada-lora"] = read(llada)

# A repository whose model takes the adapter's place, and whose card somebody wrote

push(adapted, "alice/changes")
push(full, "alice/changes", card=CardFacts(summary="Mine."))
push(full, "alice/changes")
push_folder(save_for_hub(full, OUT / "as-a-folder"), "alice/as-a-folder")

# A trainer's

rows = [{"input_ids": IDS[0].tolist(), "editable_mask": [True] * 9}] * 4
arguments = RMTrainingArguments(
    output_dir=str(OUT / "run"),
    max_steps=2,
    per_device_train_batch_size=2,
    report_to=[],
    use_cpu=True,
    push_to_hub=True,
    hub_model_id="alice/trained",
    hub_strategy="every_save",
    hub_always_push=True,
    save_steps=1,
    disable_tqdm=True,
)
student = RMForMaskedDiffusion.from_backbone("alice/tiny-llama", mask_token_id=0)
student.generation_config = settings()
trainer = RMTrainer(student, args=arguments, train_dataset=rows, peft_config=lora(init_lora_weights=True))
trainer.train()
trainer.push_to_hub()
expected["alice/trained"] = read(trainer.model)

# Reinforcement's

student = RMForMaskedDiffusion.from_backbone("alice/tiny-llama", mask_token_id=0)
student.generation_config = settings()
hub = {"push_to_hub": True, "hub_model_id": "alice/reinforced", "hub_strategy": "every_save", "hub_always_push": True}
trainer = draft_trainer(
    OUT / "rl-run",
    student,
    rewards=lambda completion_ids, **columns: [float(sum(ids)) for ids in completion_ids],
    learning_rate=0.05,
    save_strategy="steps",
    save_steps=1,
    peft_config=lora(init_lora_weights=True),
    **hub,
)
trainer.train()
trainer.push_to_hub()
expected["alice/reinforced"] = read(trainer.model)

# What is refused

local = OUT / "local-base"
llama(seed=1).save_pretrained(local)
homeless = RMForMaskedDiffusion.from_backbone(str(local), mask_token_id=0)
homeless.generation_config = settings()
homeless = get_peft_model(homeless, lora())
save_adapter_for_hub(homeless, OUT / "local-adapter")
expected["local-adapter"] = read(homeless)
expected["local-adapter, again"] = read(RMForMaskedDiffusion.from_pretrained(OUT / "local-adapter"))
refused["local base"] = attempt(lambda: push(homeless, "alice/homeless"))
stay = RMTrainingArguments(output_dir=str(OUT / "no-run"), push_to_hub=True, hub_model_id="alice/x", use_cpu=True)
refused["local base, trainer"] = attempt(lambda: RMTrainer(homeless, args=stay, train_dataset=rows))
refused["base not on the Hub"] = attempt(lambda: push(adapted, "alice/homeless", base_model="alice/nowhere"))
groups = grid_model()
groups.config.backbone_name = "alice/tiny-llama"
refused["position groups"] = attempt(lambda: push(get_peft_model(groups, lora()), "alice/homeless"))
refused["bare backbone"] = attempt(lambda: push(llama(), "alice/homeless"))
refused["no adapter"] = attempt(lambda: save_adapter_for_hub(full, OUT / "nothing"))
refused["wrong token"] = attempt(lambda: push(full, "alice/secret", token="hf_wrong"))
refused["another's repository"] = attempt(lambda: push(full, "bob/his"))
folder = save_for_hub(full, OUT / "with-pickle")
torch.save({"a": 1}, folder / "training_args.bin")
refused["pickle"] = attempt(lambda: push_folder(folder, "alice/pickled"))
refused["pickled states"] = attempt(lambda: RMTrainingArguments(push_to_hub=True, hub_strategy="checkpoint"))

write_models(expected, OUT / "expected.safetensors")
(OUT / "refused.json").write_text(json.dumps(refused))
