"""
Run by tests/hub/conftest.py in a fresh process with an empty cache: pulls what script_publish.py published.

    script_pull.py OUT   # OUT/pulled.safetensors: what the models say; OUT/errors.json: the errors on the way
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hub_reading import IDS, attempt, read, write_models
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_models import bert, llama
from transformers import AutoModel, AutoModelForMaskedLM

from hf_rm import RMForMaskedDiffusion
from hf_rm.hub import load_adapter, push

OUT = Path(sys.argv[1])
pulled: dict[str, dict[str, Any]] = {}
errors: dict[str, list[str] | None] = {}
load = RMForMaskedDiffusion.from_pretrained

# A download is cut in the middle (the server's doing): the first one continues by itself, the second time it is called
constants.DOWNLOAD_CHUNK_SIZE = 1024  # the client keeps whole chunks only, and these files are small

pulled["alice/rm-full"] = read(load("alice/rm-full"))
errors["cut"] = attempt(lambda: load("alice/rm-lora"))
pulled["alice/rm-lora"] = read(load("alice/rm-lora"))

# The same repositories by every door

for name in ("alice/rm-full", "alice/rm-lora", "alice/lora-on-full"):
    pulled[f"auto {name}"] = read(AutoModel.from_pretrained(name))
pulled["auto masked alice/rm-lora"] = read(AutoModelForMaskedLM.from_pretrained("alice/rm-lora"))
pulled["alice/rm-lora@second"] = read(load("alice/rm-lora", revision="second"))
pulled["auto alice/rm-lora@second"] = read(AutoModel.from_pretrained("alice/rm-lora", revision="second"))
pulled["alice/rm-lora@refs/pr/1"] = read(load("alice/rm-lora", revision="refs/pr/1"))
for name in (
    "alice/lora-on-full",
    "alice/bert-lora",
    "alice/llada-lora",
    "alice/trained",
    "alice/reinforced",
    "alice/changes",
    "alice/as-a-folder",
):
    pulled[name] = read(load(name))
pulled["cache_dir"] = read(load("alice/rm-lora", cache_dir=str(OUT / "elsewhere"), token="hf_reader"))
assert (OUT / "elsewhere" / "models--alice--tiny-llama").is_dir()  # the base too

# Arguments that are the base's, and those that are the wrapper's

half = load("alice/rm-lora", dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager")
assert half.model.dtype == torch.bfloat16 and half.config.text_config._attn_implementation == "eager"
assert half.generate_reflective(IDS).sequences.shape == IDS.shape
changed = load("alice/rm-lora", history_decay=0.3, is_trainable=True)
assert changed.config.history_decay == 0.3
trainable = {key for key, parameter in changed.named_parameters() if parameter.requires_grad and "lora" in key}
assert trainable and all("q_proj" in key or "v_proj" in key for key in trainable)
assert not any(p.requires_grad for k, p in load("alice/rm-lora").named_parameters() if "lora" in k)
model, report = load("alice/rm-lora", output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"]

# A base from another place; an adapter on a wrapper that is there; pushed on after pulling

llama(seed=1).save_pretrained(OUT / "copy")
pulled["copied base"] = read(load("alice/rm-lora", base_model=str(OUT / "copy")))
made = RMForMaskedDiffusion.from_backbone("alice/tiny-llama", mask_token_id=0, history_decay=0.7)
made.generation_config = model.generation_config
pulled["into a wrapper"] = read(load_adapter(made, "alice/rm-lora", revision="second"))
push(load("alice/rm-lora"), "alice/again")
pulled["again"] = read(load("alice/again"))
reloaded = load("alice/lora-on-full")
push(reloaded, "alice/again-on-full")

# What is refused

errors["no such repository"] = attempt(lambda: load("alice/nothing"))
errors["no such revision"] = attempt(lambda: load("alice/rm-lora", revision="third"))
errors["wrong token"] = attempt(lambda: load("alice/rm-lora", token="hf_wrong", cache_dir=OUT / "nobody"))
errors["wrong token, full"] = attempt(lambda: load("alice/rm-full", token="hf_wrong", cache_dir=OUT / "nobody"))
errors["private"] = attempt(lambda: load("alice/rm-full", token=False, cache_dir=OUT / "nobody"))
errors["bare backbone"] = attempt(lambda: load_adapter(llama(seed=1), "alice/rm-lora"))
errors["another base by name"] = attempt(lambda: load("alice/rm-full").load_adapter("alice/rm-lora"))
errors["other shapes"] = attempt(lambda: load("alice/rm-lora", base_model="alice/tiny-bert"))
errors["other full base"] = attempt(lambda: load("alice/lora-on-full", base_model="alice/rm-lora"))
wide = RMForMaskedDiffusion.from_backbone(llama(hidden_size=32), mask_token_id=0)
errors["other width"] = attempt(lambda: wide.load_adapter("alice/rm-lora", check_base=False))
foreign = RMForMaskedDiffusion.from_backbone(bert(), mask_token_id=0)
weights = {key: value.clone() for key, value in foreign.state_dict().items()}
errors["other modules"] = attempt(lambda: foreign.load_adapter("alice/rm-lora", check_base=False))
after = foreign.state_dict()
assert not getattr(foreign, "peft_config", None) and all(torch.equal(weights[key], after[key]) for key in weights)

damaged = OUT / "damaged"
load("alice/rm-lora").save_pretrained(damaged)
tensors = load_file(damaged / "adapter_model.safetensors")
first = sorted(tensors)[0]
save_file({key: value for key, value in tensors.items() if key != first}, damaged / "adapter_model.safetensors")
wrapper = RMForMaskedDiffusion.from_backbone("alice/tiny-llama", mask_token_id=0)
errors["missing keys"] = attempt(lambda: wrapper.load_adapter(damaged))
save_file(
    {**tensors, "base_model.model.model.extra.lora_A.weight": torch.ones(1)}, damaged / "adapter_model.safetensors"
)
wrapper = RMForMaskedDiffusion.from_backbone("alice/tiny-llama", mask_token_id=0)
errors["left over keys"] = attempt(lambda: wrapper.load_adapter(damaged))
(damaged / "adapter_model.safetensors").rename(damaged / "adapter_model.bin")
errors["pickled adapter"] = attempt(lambda: wrapper.load_adapter(damaged))
(damaged / "adapter_model.bin").rename(damaged / "adapter_model.safetensors")
(damaged / "config.json").unlink(missing_ok=True)
errors["adapter without the wrapper's config"] = attempt(lambda: load(damaged))
errors["no adapter"] = attempt(lambda: load("alice/rm-full").load_adapter("alice/tiny-llama"))

write_models(pulled, OUT / "pulled.safetensors")
(OUT / "errors.json").write_text(json.dumps(errors))
