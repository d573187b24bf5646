"""
What the wrapper costs at LLaDA-8B's shape: forward tokens a second against transformers' bare Llama, and a LoRA step.

    python benchmarks/backbone_scale.py [--repeats 20] [--small]

On a GPU: LLaDA-8B's shape with random bf16 weights. Without one (or with --small) the same at a small width, which
says nothing about 8B and is labelled so; float32 on a CPU.

Forward: the bare `LlamaForCausalLM` from input ids, and the wrapper around that same network, without History
Reference and with it (a running memory goes in, its successor comes out). The three take turns within each round; the
ratio is the bare model's time over the wrapper's, the median over rounds. Target: 0.98 at least.

LoRA step: a collated batch of the attempts law, forward with history segments, loss, backward, AdamW; rank 16 at the
attention's projections, without and with the mask token's rows, and with gradient checkpointing. Peak memory is that
of the step with the weights: allocated memory on a GPU, the resident set on a CPU.

Times are wall-clock between synchronisations on a GPU, and CPU time of one thread on a CPU.
"""

import argparse
import re
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from _common import Row, add_result, print_table
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rm import RMForMaskedDiffusion
from hf_rm.corruption import AttemptsLaw, RMDataCollator, UniformProposal
from hf_rm.history import HistorySegments, HistoryState
from hf_rm.training import default_lora_config

LLADA_8B = {
    "vocab_size": 126464,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
SMALL = {
    **LLADA_8B,
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
# (rows, length): one short answer, and a batch
FORWARD_SHAPES = {True: ((1, 256), (4, 1024)), False: ((1, 128), (4, 128))}
TRAINING_SHAPE = {True: (4, 1024), False: (4, 128)}


def build(shape: dict[str, Any], device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A bidirectional Llama of that shape with random weights, made where it will run."""
    torch.manual_seed(0)
    with device:
        return LlamaForCausalLM._from_config(LlamaConfig(**shape, is_causal=False), dtype=dtype).eval()


def stopwatch(device: torch.device) -> Callable[[], float]:
    """A clock whose differences are the work done in between."""
    if device.type != "cuda":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def begin_peak(device: torch.device) -> None:
    """From here on `peak_gib` counts."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set starts anew
    except OSError:
        pass


def peak_gib(device: torch.device) -> float | None:
    """Peak memory in GiB: allocated on the GPU, or resident; None on a system that does not say."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 3)
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return round(int(found[1]) / 2**20, 3) if found else None


def interleaved(
    variants: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float | None]]:
    """Seconds of each variant in every round, and its peak memory; the order turns with the rounds."""
    names, now, peaks = list(variants), stopwatch(device), {}
    for name in names:
        variants[name]()  # not counted: kernels are chosen, caches filled
        begin_peak(device)
        variants[name]()
        peaks[name] = peak_gib(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(repeats):
        for offset in range(len(names)):
            name = names[(round_ + offset) % len(names)]
            began = now()
            variants[name]()
            seconds[name].append(now() - began)
    return seconds, peaks


@torch.inference_mode()
def forward_rows(
    llama: LlamaForCausalLM, model: RMForMaskedDiffusion, shape: tuple[int, int], repeats: int, device: torch.device
) -> list[Row]:
    """Tokens a second of the bare model and of the wrapper, with their ratio."""
    ids = torch.randint(0, model.config.vocab_size - 1, shape, device=device)
    history = model(ids, history=HistoryState.empty(*shape, llama.config.hidden_size, device)).history
    variants: dict[str, Callable[[], Any]] = {
        "bare Llama": lambda: llama(input_ids=ids, use_cache=False).logits,
        "wrapper, no history": lambda: model(ids, use_history=False).logits,
        "wrapper, history": lambda: model(ids, history=history).logits,
    }
    difference = (variants["bare Llama"]() - variants["wrapper, no history"]()).abs().max().item()
    print(
        f"{shape[0]} x {shape[1]}: without history the wrapper's logits differ from the bare model's by {difference}"
    )
    seconds, peaks = interleaved(variants, repeats, device)
    bare = seconds["bare Llama"]
    rows = []
    for name, own in seconds.items():
        ratios = [one / other for one, other in zip(bare, own, strict=True)]
        rows.append(
            {
                "what": f"{name}, {shape[0]} x {shape[1]}",
                "median_ms": round(1000 * statistics.median(own), 2),
                "min_ms": round(1000 * min(own), 2),
                "max_ms": round(1000 * max(own), 2),
                "tokens_per_s": round(ids.numel() / statistics.median(own)),
                "ratio_to_bare": round(statistics.median(ratios), 4),
                "peak_gib": peaks[name],
            }
        )
    return rows


def training_batch(model: RMForMaskedDiffusion, shape: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """A batch as RMTrainer gets it, on the device."""
    mask, vocabulary = model.config.mask_token_id, model.config.vocab_size
    collate = RMDataCollator(
        mask, UniformProposal(vocabulary, excluded=[mask]), AttemptsLaw(16, 2), corruption_rate=(0.05, 0.5)
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary - 1, shape, generator=generator)
    batch = collate([{"input_ids": row.numpy(), "idx": index} for index, row in enumerate(ids)])
    return {name: value.to(device) for name, value in batch.items()}


def lora_row(
    llama: LlamaForCausalLM, what: str, shape: tuple[int, int], repeats: int, device: torch.device, **settings: bool
) -> Row:
    """A LoRA step: median time, tokens a second, peak memory. The backbone comes back as it was."""
    model = RMForMaskedDiffusion.from_backbone(llama, mask_token_id=llama.config.vocab_size - 1, probe=False)
    adapted = get_peft_model(model, default_lora_config(model, train_mask_row=settings["mask_rows"])).train()
    if settings["checkpointing"]:
        llama.enable_input_require_grads()
        llama.gradient_checkpointing_enable({"use_reentrant": False})
    batch = training_batch(model, shape, device)
    segments = HistorySegments(batch["history_ids"], batch["history_lags"])
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)

    def step() -> None:
        # Trainer's bf16=True: the adapter's weights are float32, its products 16 bits.
        with torch.autocast(device.type, torch.bfloat16, enabled=llama.dtype == torch.bfloat16):
            loss = adapted(input_ids=batch["input_ids"], history=segments, labels=batch["labels"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds, peaks = interleaved({what: step}, repeats, device)
    median = statistics.median(seconds[what])
    if settings["checkpointing"]:
        llama.gradient_checkpointing_disable()
        llama.disable_input_require_grads()
    adapted.unload()
    return {
        "what": f"{what}, {shape[0]} x {shape[1]}",
        "median_ms": round(1000 * median, 1),
        "min_ms": round(1000 * min(seconds[what]), 1),
        "max_ms": round(1000 * max(seconds[what]), 1),
        "tokens_per_s": round(shape[0] * shape[1] / median),
        "trainable": sum(parameter.numel() for parameter in trainable),
        "peak_gib": peaks[what],
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="the small width even where there is a GPU")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # names that 5.17 needs
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = device.type == "cuda" and not options.small
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cpu":
        torch.set_num_threads(1)
    size = "LLaDA-8B's shape" if full else "a SMALL width, not LLaDA-8B's"
    begin_peak(device)
    llama = build(LLADA_8B if full else SMALL, device, dtype)
    parameters = sum(parameter.numel() for parameter in llama.parameters())
    loaded = peak_gib(device)
    print(f"{size}, {parameters / 1e6:.1f} M parameters, {dtype}, {device.type}; {loaded} GiB once loaded")
    model = RMForMaskedDiffusion.from_backbone(llama, mask_token_id=llama.config.vocab_size - 1, probe=False).eval()
    forward = [
        row for shape in FORWARD_SHAPES[full] for row in forward_rows(llama, model, shape, options.repeats, device)
    ]
    del model
    steps = {
        "LoRA": {"mask_rows": False, "checkpointing": False},
        "LoRA and mask rows": {"mask_rows": True, "checkpointing": False},
        "LoRA and mask rows, checkpointing": {"mask_rows": True, "checkpointing": True},
    }
    repeats = max(3, options.repeats // 2)
    training = [
        lora_row(llama, what, TRAINING_SHAPE[full], repeats, device, **settings) for what, settings in steps.items()
    ]
    print_table(f"Forward, {size}, {dtype} on {device.type}", forward)
    print_table(f"LoRA step, {size}, {dtype} on {device.type}", training)
    result = {
        "full_size": full,
        "size": size,
        "parameters": parameters,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "loaded_gib": loaded,
        "forward": forward,
        "training": training,
        "peft": peft.__version__,
    }
    add_result("backbone_scale", result)


if __name__ == "__main__":
    main()
