"""
The decoding loop against the bare forwards that it needs, and against LLaDA's reference loop at equal forwards.

    python benchmarks/decoding.py                              # LLaDA's shape at width 2048 and 4 layers, minutes
    python benchmarks/decoding.py --width 64 --layers 1        # seconds, to see it run
    python benchmarks/decoding.py --device cuda --steps 64

One row of `--prompt` tokens and `--answer` masks in blocks of `--block`, random weights, greedy, the preset "llada".

* bare: the network at every position and its head at the 32 of the active block; nothing is done with the scores.
* ours: `generate_reflective(preset="llada")`. Its overhead is what it takes beyond the bare forwards, in two ways: a
  run against a run, and within one run the time outside the model's forward against the time inside.
* reference: LLaDA's published loop, written anew: scores of all positions, their softmax over the whole vocabulary in
  float64, top-k row by row; the mask's score at -inf before the argmax.

The three take turns in one process. CPU: seconds of this process on one thread, so that other programs' load is not in
them. GPU: wall time with a synchronisation at either end. Memory: the most that is allocated beyond the weights at
any one time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _common import Row, add_result, median_range, print_table
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from hf_rm import RMForMaskedDiffusion
from hf_rm.evaluation import Interval, mean_interval

MIB = 2**20


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None reads the real one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=126464)
    parser.add_argument("--prompt", type=int, default=128, help="positions before the masks")
    parser.add_argument("--answer", type=int, default=128, help="masks")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="forwards of a run, a multiple of the number of blocks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    options = parser.parse_args(arguments)
    if options.answer % options.block or options.steps % (options.answer // options.block):
        parser.error(
            f"--answer {options.answer} must hold whole blocks of {options.block}, and --steps {options.steps} be a "
            "multiple of their number: the reference loop takes no other."
        )
    return options


def build_model(options: argparse.Namespace) -> RMForMaskedDiffusion:
    """LLaDA's proportions (heads of 128, feed-forward three times the width, a head of its own), random weights."""
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(options.width // 128, 1),
        max_position_embeddings=4096,
        is_causal=False,
        tie_word_embeddings=False,
    )
    with no_init_weights():
        network = LlamaForCausalLM._from_config(config, dtype=getattr(torch, options.dtype))
    # Drawing 0.7 billion numbers takes most of a minute; a prime number of them, over and over, repeats no row.
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        scale = 0.02 if parameter.dim() > 1 else 0.0
        times = -(-parameter.numel() // len(noise))
        values = (scale * noise + (parameter.dim() == 1)).to(parameter.dtype)
        parameter.data.copy_(values.repeat(times)[: parameter.numel()].view_as(parameter))
    mask = mask_token(options)
    model = RMForMaskedDiffusion.from_backbone(network, mask_token_id=mask, history=False, probe=False)
    return model.eval().to(options.device)


def mask_token(options: argparse.Namespace) -> int:
    """LLaDA's own mask, 126336 of 126464; in a smaller vocabulary the last token."""
    return min(126336, options.vocabulary - 1)


def make_canvas(options: argparse.Namespace) -> Tensor:
    """(1, N): a random prompt and masks."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(mask_token(options), (1, options.prompt), generator=generator)
    canvas = F.pad(prompt, (0, options.answer), value=mask_token(options))
    return canvas.to(options.device)


@torch.no_grad()
def bare_forwards(model: Any, canvas: Tensor, options: argparse.Namespace) -> Tensor:
    """As many forwards as a run takes: the network everywhere, the head at the active block; the last scores."""
    network, blocks = model.model, options.answer // options.block
    for step in range(options.steps):
        start = options.prompt + step * blocks // options.steps * options.block
        hidden = network.model(input_ids=canvas).last_hidden_state
        logits = network.lm_head(hidden[:, start : start + options.block])
    return logits


def our_loop(model: Any, canvas: Tensor, options: argparse.Namespace) -> Tensor:
    """The preset "llada"; the sequence."""
    settings = {"preset": "llada", "block_length": options.block, "steps": options.steps}
    output = model.generate_reflective(canvas, **settings)
    assert int(output.num_forwards[0]) == options.steps
    return output.sequences


@torch.no_grad()
def reference_loop(model: Any, canvas: Tensor, options: argparse.Namespace) -> Tensor:
    """LLaDA's published loop at temperature 0 with low-confidence re-masking; the sequence."""
    mask, blocks = mask_token(options), options.answer // options.block
    steps_a_block = options.steps // blocks
    x = canvas.clone()
    for block in range(blocks):
        start = options.prompt + block * options.block
        end = start + options.block
        # How many fall in each step: as many in each, the first ones taking the remainder.
        masks = (x[:, start:end] == mask).sum(-1, keepdim=True)
        counts = masks // steps_a_block + (torch.arange(steps_a_block, device=x.device) < masks % steps_a_block)
        for step in range(steps_a_block):
            masked = x == mask
            logits = model.model(input_ids=x).logits
            logits[..., mask] = -torch.inf
            candidates = logits.argmax(dim=-1)
            probabilities = F.softmax(logits.to(torch.float64), dim=-1)
            confidence = probabilities.gather(-1, candidates[..., None])[..., 0]
            confidence[:, end:] = -torch.inf
            candidates = torch.where(masked, candidates, x)
            confidence = torch.where(masked, confidence, -torch.inf)
            reveal = torch.zeros_like(masked)
            for row in range(len(x)):
                chosen = confidence[row].topk(int(counts[row, step])).indices
                reveal[row, chosen] = True
            x[reveal] = candidates[reveal]
    return x


METHODS: dict[str, Callable[..., Tensor]] = {"bare": bare_forwards, "ours": our_loop, "reference": reference_loop}


def seconds_of(device: str, function: Callable[[], Any]) -> float:
    """Seconds of this process on a CPU, of the wall on a GPU."""
    if device == "cpu":
        began = time.process_time()
        function()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - began


class ForwardClock:
    """Wraps a model's forward pass of the loop and adds up its time."""

    def __init__(self, model: Any, device: str) -> None:
        self.inside, self.device, self.denoise = 0.0, device, model._denoise
        model._denoise = self

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        results: list[Any] = []
        self.inside += seconds_of(self.device, lambda: results.append(self.denoise(*arguments, **keywords)))
        return results[0]


def measure(model: Any, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each method, turn by turn after a round that is not counted; "outside": our loop's own time."""
    canvas = make_canvas(options)
    seconds: dict[str, list[float]] = {name: [] for name in (*METHODS, "inside", "outside")}
    for turn in range(options.repeats + 1):
        # Every other turn the other way round: what drifts does not favour the one that comes first.
        for name in list(METHODS)[:: 1 if turn % 2 else -1]:
            taken = seconds_of(options.device, lambda name=name: METHODS[name](model, canvas, options))
            if turn:
                seconds[name].append(taken)
        clock = ForwardClock(model, options.device)
        taken = seconds_of(options.device, lambda: our_loop(model, canvas, options))
        del model._denoise
        if turn:
            seconds["inside"].append(clock.inside)
            seconds["outside"].append(taken - clock.inside)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The mean ratio of two methods, turn by turn, with its interval."""
    return mean_interval([a / b for a, b in zip(above, below, strict=True)])


def peak_bytes(device: str, function: Callable[[], Any]) -> int:
    """The most bytes that are allocated at any one time during a call, beyond what was there before."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    now = most = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure_memory(model: Any, options: argparse.Namespace) -> dict[str, float]:
    """MiB that each method takes at its peak, a forward a block; and what scores alone take."""
    short = argparse.Namespace(**{**vars(options), "steps": options.answer // options.block})
    canvas = make_canvas(options)
    peaks = {
        name: peak_bytes(options.device, lambda method=method: method(model, canvas, short))
        for name, method in METHODS.items()
    }
    score = getattr(torch, options.dtype).itemsize * options.vocabulary
    peaks["logits_at_the_block"] = options.block * score
    peaks["logits_everywhere"] = (options.prompt + options.answer) * score
    peaks["float64_everywhere"] = (options.prompt + options.answer) * options.vocabulary * 8
    return {name: round(size / MIB, 2) for name, size in peaks.items()}


def summarise(seconds: dict[str, list[float]], memory: dict[str, float], options: argparse.Namespace) -> list[Row]:
    """One row a method."""
    return [
        {
            "what": f"{name}, {options.steps} forwards",
            **median_range(seconds[name], per=options.answer),
            "ms_a_forward": round(1000 * statistics.median(seconds[name]) / options.steps, 2),
            "peak_MiB": memory[name],
        }
        for name in METHODS
    ]


def verdict(seconds: dict[str, list[float]], same: float) -> dict[str, Any]:
    """What the two comparisons come to, each with its 95 % interval over turns."""
    overhead = ratios(seconds["ours"], seconds["bare"])
    within = ratios(seconds["outside"], seconds["inside"])
    speedup = ratios(seconds["reference"], seconds["ours"])
    percent = {"overhead_percent": [100 * (value - 1) for value in overhead[:3]]}
    percent["overhead_within_a_run_percent"] = [100 * value for value in within[:3]]
    rounded: dict[str, Any] = {name: [round(v, 2) for v in values] for name, values in percent.items()}
    rounded["times_the_reference"] = [round(value, 3) for value in speedup[:3]]
    rounded["same_tokens_as_the_reference"] = round(same, 4)
    return rounded


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and save; the result."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    model = build_model(options)
    canvas = make_canvas(options)
    ours, reference = (METHODS[name](model, canvas, options) for name in ("ours", "reference"))
    same = (ours == reference)[:, options.prompt :].float().mean().item()
    memory = measure_memory(model, options)
    seconds = measure(model, options)
    rows = summarise(seconds, memory, options)
    clock = "CPU seconds, one thread" if options.device == "cpu" else "seconds"
    print_table(f"Decoding {options.answer} tokens, {clock}, {options.repeats} turns", rows)
    result = verdict(seconds, same)
    for name, value in result.items():
        print(f"{name}: {value}")
    for name in ("logits_at_the_block", "logits_everywhere", "float64_everywhere"):
        print(f"{name}: {memory[name]} MiB")
    result = {"rows": rows, **result, "memory_MiB": memory, "settings": vars(options)}
    add_result("decoding", result)
    return result


if __name__ == "__main__":
    main()
