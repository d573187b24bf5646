"""
Boards a second of the Sudoku model in training and in decoding, on this machine, one thread.

    python benchmarks/sudoku_speed.py [--model model_cards/rm-sudoku] [--repeats 5]

Training: one optimizer step of RMTrainer's batch (64 boards, on-policy pool on, bf16 autocast, Muon and AdamW), loader
and collator included. Decoding: whole revisions of corrupted boards, trajectory off. Medians and ranges of CPU
seconds.
"""

import argparse
import tempfile
import time

import numpy as np
import torch
from _common import Row, add_result, median_range, print_table
from transformers import AutoModel, TrainerCallback

import hf_rm  # noqa: F401
from hf_rm import RMTrainer, RMTrainingArguments
from hf_rm.corruption import FixedProposal
from hf_rm.tasks.sudoku import evaluation_set, generate_boards
from hf_rm.tasks.sudoku.evaluate import DECODINGS
from hf_rm.tasks.sudoku.model import build_sudoku_model


class StepClock(TrainerCallback):
    """CPU seconds of every optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.process_time() - self.began)


def time_training(repeats: int) -> list[float]:
    """CPU seconds of steps of 64 boards, half of them from the pool, after a warm-up."""
    boards = generate_boards(64 * (repeats + 4), seed=0)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        args = RMTrainingArguments(
            folder, max_steps=repeats + 4, per_device_train_batch_size=64, min_corruption_rate=0.0493,
            max_corruption_rate=0.247, pool_fraction=0.5, muon_learning_rate=0.01, bf16=True, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        rows = [{"input_ids": board, "idx": index} for index, board in enumerate(boards)]
        proposal = FixedProposal([0] + [1] * 9)
        RMTrainer(build_sudoku_model(), args, train_dataset=rows, proposal=proposal, callbacks=[clock]).train()
    return clock.seconds[4:]


def time_decoding(model, decoding: str, repeats: int, boards: int) -> tuple[list[float], float]:
    """CPU seconds of whole revisions of so many boards, and the mean number of steps a board."""
    initial, _ = evaluation_set("generated", boards, seed=0)
    ids = torch.from_numpy(initial.astype(np.int64))
    seconds, steps = [], 0.0
    for _ in range(repeats + 1):
        began = time.process_time()
        output = model.generate_reflective(ids, **DECODINGS[decoding])
        seconds.append(time.process_time() - began)
        steps = output.num_steps.float().mean().item()
    return seconds[1:], steps


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/rm-sudoku")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--boards", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    rows.append({"what": "training step, 64 boards", **median_range(time_training(options.repeats), per=64)})
    model = AutoModel.from_pretrained(options.model).eval()
    for decoding in DECODINGS:
        seconds, steps = time_decoding(model, decoding, options.repeats, options.boards)
        what = f"decoding, {decoding}, {steps:.1f} steps a board"
        rows.append({"what": what, **median_range(seconds, per=options.boards)})
    print_table("Sudoku speed, CPU seconds, one thread", rows)
    add_result("sudoku_speed", {"rows": rows, "model": options.model, "boards": options.boards})


if __name__ == "__main__":
    main()
