"""
The decoding loop against the bare forwards that it needs, and against LLaDA's reference loop at equal forwards.

    python benchmarks/decoding.py                              # LLaDA's shape at width 2048 and 4 layers, minutes
    python benchmarks/decoding.py --width 64 --layers 1        # seconds, to see it run
    python benchmarks/decoding.py --device cuda --steps 64

One row of `--prompt` tokens and `--answer` masks in blocks of `--block`, random weights, greedy, the preset "llada".

* bare: the network at every position and its head at those of the active block; nothing is done with the scores.
* ours: `generate_reflective(preset="llada")`. Its overhead is what it takes beyond the bare forwards. Before or after
  each of its forwards, turn by turn, a bare one runs on the same ids: the two are paired step by step. "within" is the
  loop's own time, outside the model's forward, against the time inside.
* reference: LLaDA's published loop, written anew: scores of all positions, their softmax over the whole vocabulary in
  float64, top-k row by row; the mask's score at -inf before the argmax. Against whole runs of ours, turn by turn.

All in one process. CPU: seconds of this process on one thread; other programs' load is not in them, but slows caches
and memory, hence the pairs. GPU: wall time with a synchronisation at either end. Memory: the most that is allocated
beyond the weights at any one time.
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
def bare_forward(network: Any, ids: Tensor, start: int, length: int) -> Tensor:
    """The network everywhere, the head at `length` positions; their scores."""
    return network.lm_head(network.model(input_ids=ids).last_hidden_state[:, start : start + length])


def bare_forwards(model: Any, canvas: Tensor, options: argparse.Namespace) -> Tensor:
    """As many forwards as a run takes, block after block; the last scores."""
    for step in range(options.steps):
        logits = bare_forward(model.model, canvas, block_start(step, options), options.block)
    return logits


def block_start(step: int, options: argparse.Namespace) -> int:
    """Where the block begins that is active in this step."""
    blocks = options.answer // options.block
    return options.prompt + step * blocks // options.steps * options.block


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


def now(device: str) -> float:
    """Seconds of this process on a CPU, of the wall on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class PairedSteps:
    """Stands in for the model's forward in the loop and runs a bare one beside it: the seconds of every step."""

    def __init__(self, model: Any, options: argparse.Namespace) -> None:
        self.model, self.options = model, options
        self.bare: list[float] = []
        self.inside: list[float] = []
        self.outside: list[float] = []
        self.denoise = model._denoise
        self.left = now(options.device)

    def __call__(self, ids: Tensor, *arguments: Any, **keywords: Any) -> Any:
        entered = now(self.options.device)
        self.outside.append(entered - self.left)
        bare_first = len(self.outside) % 2 == 0
        if bare_first:
            self.run_bare(ids)
        began = now(self.options.device)
        result = self.denoise(ids, *arguments, **keywords)
        self.inside.append(now(self.options.device) - began)
        if not bare_first:
            self.run_bare(ids)
        self.left = now(self.options.device)
        return result

    def run_bare(self, ids: Tensor) -> None:
        began = now(self.options.device)
        bare_forward(self.model.model, ids, block_start(len(self.bare), self.options), self.options.block)
        self.bare.append(now(self.options.device) - began)

    def steps(self) -> dict[str, list[float]]:
        """Seconds of each step; what comes before the first forward and after the last belongs to these two."""
        after = [*self.outside[1:], now(self.options.device) - self.left]
        after[0] += self.outside[0]
        whole = [inside + own for inside, own in zip(self.inside, after, strict=True)]
        return {"bare": self.bare, "inside": self.inside, "outside": after, "step": whole}


def measure_steps(model: Any, canvas: Tensor, options: argparse.Namespace) -> dict[str, list[float]]:
    """One run of our loop with a bare forward beside each of its own."""
    pairs = PairedSteps(model, options)
    model._denoise = pairs
    try:
        our_loop(model, canvas, options)
        return pairs.steps()
    finally:
        del model._denoise


def measure(model: Any, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of whole runs ("ours", "reference"), and of single steps."""
    canvas = make_canvas(options)
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "reference", "bare", "inside", "outside", "step")}
    for turn in range(options.repeats):
        # Every other turn the other way round: what drifts does not favour the one that comes first.
        for name in ("ours", "reference")[:: -1 if turn % 2 else 1]:
            began = now(options.device)
            METHODS[name](model, canvas, options)
            seconds[name].append(now(options.device) - began)
        for name, values in measure_steps(model, canvas, options).items():
            seconds[name] += values
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> Interval:
    """The mean ratio of two measurements, pair by pair, with its interval."""
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
    single = {"bare": seconds["bare"], "ours": seconds["step"]}
    rows = []
    for name in METHODS:
        each = single.get(name) or [taken / options.steps for taken in seconds[name]]
        timing = median_range(each, per=options.answer // options.steps)
        rows.append({"what": f"{name}, a forward", **timing, "peak_MiB": memory[name]})
    return rows


def verdict(seconds: dict[str, list[float]], same: float) -> dict[str, Any]:
    """What the comparisons come to; of each a mean with its 95 % interval, or a ratio of medians or minima."""
    step, bare = seconds["step"], seconds["bare"]
    paired = [100 * (value - 1) for value in ratios(step, bare)[:3]]
    within = [100 * value for value in ratios(seconds["outside"], seconds["inside"])[:3]]
    return {
        "overhead_percent": [round(value, 2) for value in paired],
        "overhead_percent_of_medians": round(100 * (statistics.median(step) / statistics.median(bare) - 1), 2),
        "overhead_percent_of_minima": round(100 * (min(step) / min(bare) - 1), 2),
        "overhead_percent_within": [round(value, 2) for value in within],
        "times_the_reference": [round(value, 3) for value in ratios(seconds["reference"], seconds["ours"])[:3]],
        "same_tokens_as_the_reference": round(same, 4),
    }


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
