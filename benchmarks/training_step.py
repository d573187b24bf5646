"""
A step of Reflective Masking against a step of vanilla SFT, at equal batch.

    python benchmarks/training_step.py [--repeats 15]
    python benchmarks/training_step.py --width 128 --layers 4 --vocabulary 146 --batch 64 --prompt 56 --answer 40

A step is what differs between the two: collating the same samples, the forward pass with its loss and bookkeeping, and
the backward pass; by default at LLaDA-8B's proportions (the head is a thirtieth of the network). RM reads trajectories
of T = 16 and of T = 64 as segments and scores every editable position, SFT the masked ones. Float32, one thread; the
forms take turns, and a turn's steps are paired. CPU seconds, medians; the ratio with its 95 % interval over the turns.
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
from hf_rm.evaluation import mean_interval
from hf_rm.training import MaskedSFTArguments, MaskedSFTTrainer


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
    ids = torch.randint(options.vocabulary - 1, ((options.repeats + 2) * options.batch, length), generator=generator)
    editable = [place >= options.prompt for place in range(length)]
    return [{"input_ids": row.tolist(), "editable_mask": editable, "idx": i} for i, row in enumerate(ids)]


def make_step(trainer: Any, rows: list[dict[str, Any]], batch: int) -> Callable[[int], float]:
    """CPU seconds of the step of a turn."""
    model = trainer.model.train()

    def step(turn: int) -> float:
        began = time.process_time()
        inputs = trainer.data_collator(rows[turn * batch : (turn + 1) * batch])
        trainer.compute_loss(model, inputs).backward()
        spent = time.process_time() - began
        model.zero_grad()
        return spent

    return step


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"width": 512, "layers": 8, "vocabulary": 3328, "batch": 4, "prompt": 128, "answer": 128, "repeats": 15}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = make_rows(options)
    with tempfile.TemporaryDirectory() as folder:
        common = {"report_to": "none", "use_cpu": True, "per_device_train_batch_size": options.batch}
        sft = MaskedSFTTrainer(build_model(options, False), MaskedSFTArguments(folder, **common), train_dataset=rows)
        steps = {"vanilla SFT": make_step(sft, rows, options.batch)}
        for horizon in (16, 64):
            args = RMTrainingArguments(folder, horizon=horizon, full_corruption=0.25, **common)
            trainer = RMTrainer(build_model(options, True), args, train_dataset=rows)
            steps[f"RM, T = {horizon}"] = make_step(trainer, rows, options.batch)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(options.repeats + 2):
            names = list(steps) if turn % 2 else list(steps)[::-1]
            for name in names:
                spent = steps[name](turn)
                if turn >= 2:  # the first turns warm up
                    seconds[name].append(spent)
    table: list[Row] = []
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["vanilla SFT"], strict=True)]
        mean, low, high, _ = mean_interval(ratios)
        row: Row = {"what": name, "cpu_s": round(statistics.median(values), 4), "times_sft": round(mean, 3)}
        table.append({**row, "low": round(low, 3), "high": round(high, 3)})
    print_table("A training step", table)
    add_result("training_step", {"forms": table, **vars(options)})


if __name__ == "__main__":
    main()
