"""Tiny RemeDi models, a checkpoint under the released names, and its arithmetic in plain torch."""

import json
from pathlib import Path
from typing import Any

import torch
from plain_torch import Weights, attend, heads, linear, rms_norm, rotate, swiglu
from safetensors.torch import save_file
from tiny_families import EOS, HEADS, MASK, VOCABULARY, WIDTH, llada_config
from tiny_models import llama
from torch import Tensor

from hf_rm import RemaskSFTArguments, RemaskSFTTrainer, RemeDiForMaskedDiffusion

RELEASED_LAYERS, RELEASED_BLOCKS = 32, [0, 10, 20, 30]
INNER = 24
BLOCKWISE = {"attention_block_length": 4, "attention_block_start": "answer"}


def tiny_remedi(seed: int = 0, layers: int = 3, talkative: bool = True, **config: Any) -> RemeDiForMaskedDiffusion:
    """A RemeDi around a tiny Llama of 11 tokens, mask 0; its stream has something to say if `talkative`."""
    model = RemeDiForMaskedDiffusion.from_backbone(llama(layers=layers, seed=seed), mask_token_id=0, **config).eval()
    if talkative:
        generator = torch.Generator().manual_seed(seed + 1)
        for exchange in model.stream.linears:
            exchange.weight.data = 0.3 * torch.randn(exchange.weight.shape, generator=generator)
            exchange.bias.data = 0.3 * torch.randn(exchange.bias.shape, generator=generator)
    return model


def write_released(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint of 32 thin layers with the names and the configuration of the released ones."""
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def normal(name: str, *shape: int) -> None:
        weights[name] = 0.3 * torch.randn(shape, generator=random)

    def norm(name: str) -> None:
        weights[name] = 1 + 0.2 * torch.randn(WIDTH, generator=random)

    def block(prefix: str) -> None:
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            normal(f"{prefix}.{name}.weight", WIDTH, WIDTH)
        for name, shape in {"ff_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH), "ff_out": (WIDTH, INNER)}.items():
            normal(f"{prefix}.{name}.weight", *shape)
        norm(f"{prefix}.attn_norm.weight")
        norm(f"{prefix}.ff_norm.weight")

    normal("model.transformer.wte.weight", VOCABULARY, WIDTH)
    normal("model.transformer.ff_out.weight", VOCABULARY, WIDTH)
    norm("model.transformer.ln_f.weight")
    for i in range(RELEASED_LAYERS):
        block(f"model.transformer.blocks.{i}")
    for k in range(len(RELEASED_BLOCKS)):
        block(f"model.blocks_upm.{k}")
        normal(f"model.backprop_linears.{k}.weight", WIDTH, WIDTH)
        normal(f"model.backprop_linears.{k}.bias", WIDTH)
        norm(f"model.backprop_norms.{k}.weight")
    norm("model.ln_f_upm.weight")
    normal("model.linear_confidence.weight", 1, WIDTH)
    normal("model.linear_confidence.bias", 1)
    folder.mkdir(parents=True, exist_ok=True)
    own = {"model_type": "RemeDi", "architectures": ["RemeDiUPMModelLM"], "n_layers": RELEASED_LAYERS}
    config = llada_config(**own, auto_map={}, eos_token_id=EOS, mask_token_id=MASK, **changes)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def released(weights: Weights, ids: Tensor, allowed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and confidence from the released names: the arithmetic of the paper, a line a formula."""
    theta, eps = 500000.0, 1e-5

    def block(x: Tensor, name: str) -> Tensor:
        y = rms_norm(x, weights[f"{name}.attn_norm.weight"], eps)
        q, k, v = (heads(linear(y, weights, f"{name}.{part}_proj"), WIDTH // HEADS) for part in "qkv")
        seen = attend(rotate(q, positions, theta), rotate(k, positions, theta), v, allowed)
        x = x + linear(seen, weights, f"{name}.attn_out")
        y = rms_norm(x, weights[f"{name}.ff_norm.weight"], eps)
        return x + swiglu(y, weights, f"{name}.ff_proj", f"{name}.up_proj", f"{name}.ff_out")

    x, u = weights["model.transformer.wte.weight"][ids], torch.zeros(())
    for i in range(RELEASED_LAYERS):
        x = block(x, f"model.transformer.blocks.{i}")
        if i in RELEASED_BLOCKS:
            k = RELEASED_BLOCKS.index(i)
            u = block(x + u, f"model.blocks_upm.{k}")
            normed = rms_norm(u, weights[f"model.backprop_norms.{k}.weight"], eps)
            x = x + linear(normed, weights, f"model.backprop_linears.{k}")
    logits = linear(rms_norm(x, weights["model.transformer.ln_f.weight"], eps), weights, "model.transformer.ff_out")
    u = rms_norm(u, weights["model.ln_f_upm.weight"], eps)
    return logits, linear(u, weights, "model.linear_confidence")[..., 0]


def answer_blocks(editable: Tensor, real: Tensor, block_length: int) -> Tensor:
    """(B, N, N) who sees whom, by a loop: the prompt itself, an answer's block the prompt and the blocks so far."""
    batch, length = editable.shape
    allowed = torch.zeros(batch, length, length, dtype=torch.bool)
    for b in range(batch):
        start = editable[b].nonzero()[0]
        place = [int(real[b, :i].sum()) - int(real[b, :start].sum()) for i in range(length)]
        for i in range(length):
            for j in range(length):
                mine, theirs = (max(p // block_length, -1) for p in (place[i], place[j]))
                allowed[b, i, j] = bool(real[b, j]) and theirs <= mine
    return allowed


def rows(count: int = 48) -> list[dict[str, Any]]:
    """Rows of 6 to 9 tokens, the first two a prompt."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(6, 10, (count,), generator=random).tolist()
    tokens = [torch.randint(1, 11, (length,), generator=random).tolist() for length in lengths]
    return [{"input_ids": ids, "editable_mask": [i > 1 for i in range(len(ids))]} for ids in tokens]


def sft_trainer(folder: str | Path, model: Any = None, train_dataset: Any = None, **settings: Any) -> RemaskSFTTrainer:
    """A trainer of a tiny model; extra arguments are its settings, or `peft_config` and `proposal`."""
    more = {name: settings.pop(name) for name in ("peft_config", "proposal", "eval_dataset") if name in settings}
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "backbone_learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_nan_inf_filter": False,
    }
    args = RemaskSFTArguments(str(folder), **{**defaults, **settings})
    model = tiny_remedi(talkative=False) if model is None else model
    return RemaskSFTTrainer(model, args, train_dataset=rows() if train_dataset is None else train_dataset, **more)
