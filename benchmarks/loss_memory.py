"""
The loss over a large vocabulary: chunks of rows through the head against all scores at once.

    python benchmarks/loss_memory.py [--rows 1024] [--width 512] [--vocabulary 126464] [--repeats 2]

One step is the head, the loss with its bookkeeping as RMTrainer reads it, and the backward pass, in float32 on one
thread; the forms take turns in one run. CPU seconds are medians. Memory is the process's greatest resident size during
the step less that before it, when the weights and their gradients are there already; of several steps the greatest.
`error` is the largest difference from the plain form's gradient, relative to its largest entry.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _common import Row, add_result, print_table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rm.heads_rm import LogitsReader, position_logits, read_logits
from hf_rm.training.losses import chunk_rows, clipped_cross_entropy

STATUS = Path("/proc/self/status")


def megabytes(field: str) -> float:
    """A memory field of this process: VmRSS now, VmHWM at most."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measured(step: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of a step, and the megabytes that it needed at most beyond what was there."""
    Path("/proc/self/clear_refs").write_text("5")  # the greatest resident size starts again
    before, began = megabytes("VmRSS"), time.process_time()
    step()
    return time.process_time() - began, megabytes("VmHWM") - before


def build_forms(rows: int, width: int, vocabulary: int) -> tuple[dict[str, Callable[[], None]], Tensor, Tensor]:
    """The steps by name, and what they leave gradients in: the hidden states and the head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=0, num_attention_heads=4, is_causal=False
    )
    model = LlamaForCausalLM(config)
    model.get_input_embeddings().requires_grad_(False)
    hidden = torch.randn(1, rows, width, requires_grad=True)
    labels = torch.randint(vocabulary, (rows,))

    def read(logits: Tensor, which: slice) -> tuple[Tensor, Tensor]:
        return clipped_cross_entropy(logits, labels[which]), logits.detach().argmax(-1)

    def plain() -> None:
        read(position_logits(model, None, inputs_embeds=hidden).flatten(0, 1), slice(None))[0].mean().backward()

    def chunks(size: int) -> Callable[[], None]:
        reader = LogitsReader(torch.arange(rows), read, size)
        return lambda: read_logits(model, reader, inputs_embeds=hidden)[0].mean().backward()

    sizes = {chunk_rows(None, 2**40, vocabulary), 32}  # what the trainers choose, and less
    forms = {"all scores": plain, **{f"chunks of {size} rows": chunks(size) for size in sorted(sizes, reverse=True)}}
    return forms, hidden, model.lm_head.weight


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1024), ("width", 512), ("vocabulary", 126464), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    forms, hidden, weight = build_forms(options.rows, options.width, options.vocabulary)
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    most: dict[str, list[float]] = {name: [] for name in forms}
    gradients: dict[str, list[Tensor]] = {}
    for turn in range(options.repeats + 1):
        for name, step in forms.items():
            hidden.grad.zero_()
            weight.grad.zero_()
            spent, memory = measured(step)
            if turn:  # the first turn warms up
                seconds[name].append(spent)
                most[name].append(memory)
            elif name == "all scores" or gradients:
                some = slice(None, None, 97)  # a sample of the head's rows: a copy of all would cost memory
                gradients[name] = [hidden.grad.clone(), weight.grad[some].clone()]
    table: list[Row] = []
    plain_seconds, plain_memory = statistics.median(seconds["all scores"]), max(most["all scores"])
    for name in forms:
        pairs = zip(gradients[name], gradients["all scores"], strict=True)
        error = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
        median = statistics.median(seconds[name])
        table.append(
            {
                "what": name,
                "cpu_s": round(median, 2),
                "times_plain": round(median / plain_seconds, 2),
                "extra_mb": round(max(most[name])),
                "share_of_plain": round(max(most[name]) / plain_memory, 3),
                "error": f"{error:.0e}",
            }
        )
    shape = {"rows": options.rows, "width": options.width, "vocabulary": options.vocabulary}
    print_table(f"Loss and gradients, {shape}", table)
    add_result("loss_memory", {"forms": table, **shape, "repeats": options.repeats})


if __name__ == "__main__":
    main()
