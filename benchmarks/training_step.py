"""
A step of Reflective Masking against a step of vanilla SFT, at equal batch.

    python benchmarks/training_step.py [--optimizer] [--bf16] [--repeats 30]
    python benchmarks/training_step.py --width 128 --layers 4 --vocabulary 146 --batch 64 --prompt 56 --answer 40

A step is what differs between the two: collating the same samples, the forward pass with its loss and bookkeeping, and
the backward pass; with `--optimizer` AdamW's step too, which is the same for both. By default at the proportions of
LLaDA-8B (the head is a thirtieth of the network). RM reads trajectories of T = 16 and of T = 64 as segments and scores
every editable position, SFT the masked ones. Wrong tokens come from the vocabulary alike, or from the 50 that a frozen
network finds most probable, which are looked up; the probe that finds them is timed by itself. Float32 (with `--bf16`
under autocast), one thread; the forms take turns, and a turn's steps are paired. CPU seconds, medians; the ratio with
its 95 % interval over the turns.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from _common import Row, add_result, print_table
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rm import RMForMaskedDiffusion, RMTrainer, RMTrainingArguments
from hf_rm.corruption import FrozenTopKProposal, build_topk_cache
from hf_rm.evaluation import mean_interval
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer

WARM_UP = 2  # turns that are not counted


def build_model(options: argparse.Namespace, history: bool) -> RMForMaskedDiffusion:
    """LLaDA's proportions, random weights; the mask is the last token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(options.width // 64, 1),
        is_causal=False,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    network = LlamaForCausalLM(config)
    return RMForMaskedDiffusion.from_backbone(
        network, mask_token_id=options.vocabulary - 1, history=history, probe=False
    )


def make_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A batch for every turn."""
    length = options.prompt + options.answer
    generator = torch.Generator().manual_seed(1)
    shape = ((options.repeats + WARM_UP) * options.batch, length)
    ids = torch.randint(options.vocabulary - 1, shape, generator=generator)
    editable = [place >= options.prompt for place in range(length)]
    return [{"input_ids": row.tolist(), "editable_mask": editable, "idx": i} for i, row in enumerate(ids)]


def build_trainers(
    options: argparse.Namespace, rows: list[dict[str, Any]], folder: str
) -> tuple[dict[str, Any], float]:
    """A trainer for every form, and the CPU seconds that the probe of one batch took."""
    common = {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": options.batch}
    sft = MaskedSFTTrainer(build_model(options, False), MaskedSFTArguments(folder, **common), train_dataset=rows)
    began = time.process_time()
    cache = build_topk_cache(
        build_model(options, False), rows, f"{folder}/top-k", k=options.top_k, batch_size=options.batch
    )
    probe = (time.process_time() - began) / (options.repeats + WARM_UP)
    trainers = {"vanilla SFT": sft}
    for horizon, proposal in ((16, None), (64, None), (16, FrozenTopKProposal(cache))):
        args = RMTrainingArguments(folder, horizon=horizon, full_corruption=0.25, **common)
        name = f"RM, T = {horizon}" + (f", top {options.top_k}" if proposal else "")
        trainers[name] = RMTrainer(build_model(options, True), args, train_dataset=rows, proposal=proposal)
    return trainers, probe


def make_step(trainer: Any, rows: list[dict[str, Any]], options: argparse.Namespace) -> Callable[[int], float]:
    """CPU seconds of the step of a turn."""
    model = trainer.model.train()
    optimizer = trainer.create_optimizer() if options.optimizer else None

    def step(turn: int) -> float:
        began = time.process_time()
        inputs = trainer.data_collator(rows[turn * options.batch : (turn + 1) * options.batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = trainer.compute_loss(model, inputs)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        spent = time.process_time() - began
        model.zero_grad()
        return spent

    return step


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 512, "layers": 8, "vocabulary": 3328, "batch": 2, "prompt": 128, "answer": 128}
    for name, default in {**sizes, "top_k": 50, "repeats": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--optimizer", action="store_true", help="Count AdamW's step too.")
    parser.add_argument("--bf16", action="store_true", help="Under autocast, as recipes train.")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and save."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    rows = make_rows(options)
    with tempfile.TemporaryDirectory() as folder:
        trainers, probe = build_trainers(options, rows, folder)
        steps = {name: make_step(trainer, rows, options) for name, trainer in trainers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.repeats + WARM_UP):
            names = list(steps) if turn % 2 else list(steps)[::-1]
            for name in names:
                spent = steps[name](turn)
                if turn >= WARM_UP:
                    seconds[name].append(spent)
    table: list[Row] = []
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["vanilla SFT"], strict=True)]
        mean, low, high, _ = mean_interval(ratios)
        row: Row = {"what": name, "cpu_s": round(statistics.median(values), 4), "times_sft": round(mean, 3)}
        table.append({**row, "low": round(low, 3), "high": round(high, 3)})
    print_table("A training step", table)
    print(f"the probe of a batch, once before the training: {probe:.3f} CPU seconds")
    result = {"forms": table, "probe_cpu_s": round(probe, 4), **vars(options)}
    add_result("training_step", result)
    return result


if __name__ == "__main__":
    main()
