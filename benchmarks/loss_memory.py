"""
The loss over a large vocabulary: chunks of rows through the head against all scores at once.

    python benchmarks/loss_memory.py [--rows 1024] [--width 512] [--vocabulary 126464] [--chunks 132 66] [--repeats 5]

A step is the head, the loss with its bookkeeping as RMTrainer reads it, and the backward pass, in float32 on one
thread: once with no gradients before it, as the first batch of a training step, and once with some to add to, as those
that follow. `all scores` is plain PyTorch; with `--autograd` the chunks also run without hf_rm.training.head_gradient.

Memory is what a step needs at most beyond weights and gradients, those that it makes included: `allocated_mb` by the
events of PyTorch's allocator, `resident_mb` by the process's greatest resident size; `share` is of the plain form's
`allocated_mb`. CPU seconds are medians; the forms take turns, and `times_plain` has its 95 % interval over the turns.
`error` is the largest difference from the plain form's gradients, relative to their largest entry.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import Row, add_result, print_table
from decoding import peak_bytes
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rm.evaluation import mean_interval
from hf_rm.heads_rm import LogitsReader, position_logits, read_logits
from hf_rm.training.head_gradient import accumulating_head
from hf_rm.training.losses import chunk_rows, clipped_cross_entropy

PLAIN = "all scores"
PROCESS = Path("/proc/self")
Step = Callable[[], None]


def megabytes(field: str) -> float:
    """A memory field of this process: VmRSS now, VmHWM at most."""
    lines = (PROCESS / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def most_memory(step: Step, parameters: list[Tensor]) -> tuple[float, float]:
    """Megabytes allocated and resident at most during a step, beyond what was there and the gradients that it made."""
    gc.collect()
    held = gradient_bytes(parameters)
    (PROCESS / "clear_refs").write_text("5")  # the greatest resident size starts again
    before = megabytes("VmRSS")
    most = peak_bytes("cpu", step)
    made = gradient_bytes(parameters) - held
    return (most - made) / 2**20, megabytes("VmHWM") - before - made / 2**20


def gradient_bytes(parameters: list[Tensor]) -> int:
    """What their gradients take."""
    return sum(0 if tensor.grad is None else tensor.grad.nbytes for tensor in parameters)


def build_forms(options: argparse.Namespace) -> tuple[dict[str, Step], list[Tensor]]:
    """The steps by name, and what they leave gradients in: the hidden states and the head."""
    rows, vocabulary = options.rows, options.vocabulary
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=options.width, num_hidden_layers=0, num_attention_heads=4, is_causal=False
    )
    model = LlamaForCausalLM(config)
    model.set_input_embeddings(torch.nn.Embedding(1, 1))  # not needed, and as large as the head
    hidden = torch.randn(1, rows, options.width, requires_grad=True)
    labels = torch.randint(vocabulary, (rows,))

    def read(logits: Tensor, which: slice) -> tuple[Tensor, Tensor]:
        return clipped_cross_entropy(logits, labels[which]), logits.detach().argmax(-1)

    def plain() -> None:
        read(position_logits(model, None, inputs_embeds=hidden).flatten(0, 1), slice(None))[0].mean().backward()

    def chunks(size: int, accumulate: bool) -> Step:
        def wrap(head: torch.nn.Sequential) -> Callable[[Tensor], Tensor]:
            return accumulating_head(head, in_place=True) if accumulate else head

        reader = LogitsReader(torch.arange(rows), read, size, wrap)
        return lambda: read_logits(model, reader, inputs_embeds=hidden)[0].mean().backward()

    sizes = options.chunks or [chunk_rows(None, 2**40, vocabulary)]
    forms = {PLAIN: plain, **{f"{size} rows": chunks(size, True) for size in sizes}}
    if options.autograd:
        forms |= {f"{size} rows, autograd": chunks(size, False) for size in sizes}
    return forms, [hidden, model.lm_head.weight]


def prepare(parameters: list[Tensor], there: bool) -> None:
    """Gradients of zero, or none."""
    for tensor in parameters:
        tensor.grad = torch.zeros_like(tensor) if there else None


def measure(forms: dict[str, Step], parameters: list[Tensor], there: bool, repeats: int) -> list[Row]:
    """A row of figures for each form, with or without gradients there before."""
    memory, errors, plain = {}, {}, []
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for name, step in forms.items():  # this warms up, too
        prepare(parameters, there)
        memory[name] = most_memory(step, parameters)
        # Of the head a sample of the rows: a copy of all would cost memory.
        found = [tensor.grad[:: 97 if tensor.dim() == 2 else 1].clone() for tensor in parameters]
        plain = plain or found
        errors[name] = max(
            float((one - other).abs().max() / other.abs().max()) for one, other in zip(found, plain, strict=True)
        )
    for turn in range(repeats):
        for name in list(forms) if turn % 2 else list(forms)[::-1]:
            prepare(parameters, there)
            began = time.process_time()
            forms[name]()
            seconds[name].append(time.process_time() - began)
    table: list[Row] = []
    for name in forms:
        ratio, low, high, _ = mean_interval([a / b for a, b in zip(seconds[name], seconds[PLAIN], strict=True)])
        table.append(
            {
                "what": name,
                "gradients": "there" if there else "none",
                "allocated_mb": round(memory[name][0]),
                "resident_mb": round(memory[name][1]),
                "share": round(memory[name][0] / memory[PLAIN][0], 3),
                "cpu_s": round(statistics.median(seconds[name]), 2),
                "times_plain": round(ratio, 3),
                "low": round(low, 3),
                "high": round(high, 3),
                "error": f"{errors[name]:.0e}",
            }
        )
    return table


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1024), ("width", 512), ("vocabulary", 126464), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--chunks", type=int, nargs="+")
    parser.add_argument("--autograd", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    forms, parameters = build_forms(options)
    table = [row for there in (False, True) for row in measure(forms, parameters, there, options.repeats)]
    shape = {name: getattr(options, name) for name in ("rows", "width", "vocabulary", "repeats")}
    print_table(f"Loss and gradients, {shape}", table)
    result = {"forms": table, **shape}
    add_result("loss_memory", result)
    return result


if __name__ == "__main__":
    main()
