"""
History Reference's share of a step, in decoding and in training, at T = 6 and T = 64; the cost of bf16 accumulation.

    python benchmarks/history_share.py [--repeats 15]

Share: CPU time of the part that History Reference adds (accumulation and norm, forward and, in training, backward),
over that of the whole step (forward; in training with loss, backward and optimizer, bf16 autocast). One thread, side
by side in one run, medians. Precision: largest relative error of the recurrence after 64 steps against a float64 sum,
for a float32 and for a bf16 accumulator fed with the same bf16 embeddings.
"""

import argparse
import statistics

import torch
from _common import Row, add_result, cpu_seconds, print_table

from hf_rm import RMForMaskedDiffusion
from hf_rm.corruption import AttemptsLaw, FixedProposal, RMDataCollator
from hf_rm.history import HistoryReference, HistorySegments, HistoryState, accumulate
from hf_rm.tasks.sudoku import generate_boards
from hf_rm.tasks.sudoku.model import build_sudoku_model
from hf_rm.training.optimizers import MuonWithAdamW, split_parameters

BATCH = 64


def make_batch(horizon: int) -> dict[str, torch.Tensor]:
    """A training batch of Sudoku boards under the attempts law (one attempt, so that it fits T = 6)."""
    boards = generate_boards(BATCH, seed=0)
    law = AttemptsLaw(horizon, max_attempts=1)
    collate = RMDataCollator(0, FixedProposal([0] + [1] * 9), law, corruption_rate=(0.0493, 0.247))
    return collate([{"input_ids": board, "idx": index} for index, board in enumerate(boards)])


def decoding_share(model: RMForMaskedDiffusion, repeats: int) -> Row:
    """The share of a decoding step."""
    ids = make_batch(6)["input_ids"]
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
        state = HistoryState.empty(*embeddings.shape)
        for _ in range(3):
            state = model.history_reference.advance(state, embeddings)
        step = cpu_seconds(lambda: model(ids, history=state), repeats)
        part = cpu_seconds(lambda: model._read_history(embeddings, state, None, True), repeats)
    return _row("decoding", step, part)


def training_share(model: RMForMaskedDiffusion, horizon: int, repeats: int) -> Row:
    """The share of a training step."""
    batch = make_batch(horizon)
    segments = HistorySegments(batch["history_ids"], batch["history_lags"])
    optimizer = MuonWithAdamW(*split_parameters(model), muon_lr=0.0, lr=0.0)
    embed = model.get_input_embeddings()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(batch["input_ids"], history=segments, labels=batch["labels"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def look_up(with_history: bool) -> None:
        inputs = embed(batch["input_ids"])
        if with_history:
            inputs, _ = model._read_history(inputs, segments, None, True)
        inputs.backward(torch.ones_like(inputs))
        optimizer.zero_grad()

    whole = cpu_seconds(step, repeats)
    with_history = cpu_seconds(lambda: look_up(True), repeats)
    without = cpu_seconds(lambda: look_up(False), repeats)
    part = [a - statistics.median(without) for a in with_history]
    return _row(f"training, T = {horizon}", whole, part)


def _row(what: str, whole: list[float], part: list[float]) -> Row:
    step, own = statistics.median(whole), statistics.median(part)
    return {
        "what": what,
        "step_ms": round(1000 * step, 2),
        "history_ms": round(1000 * own, 3),
        "share_percent": round(100 * own / step, 2),
    }


def precision() -> list[Row]:
    """Largest error after 64 steps, relative to the largest entry, of a float32 and of a bf16 accumulator."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(65, 1, 64, 128, generator=generator).bfloat16()
    exact = accumulate(embeddings.double(), 0.9, True)
    reference = HistoryReference(decay=0.9)
    rows = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        state = HistoryState.empty(1, 64, 128)
        for embedding in embeddings:
            state = reference.advance(state, embedding)
            state = HistoryState(state.accumulator.to(dtype).float(), state.steps)
        error = (state.accumulator.double() - exact).abs().max() / exact.abs().max()
        rows.append({"what": f"{name} accumulator, 64 steps", "relative_error": f"{error.item():.1e}"})
    return rows


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = build_sudoku_model()
    shares = [decoding_share(model.eval(), options.repeats)]
    shares += [training_share(model.train(), horizon, options.repeats) for horizon in (6, 64)]
    errors = precision()
    print_table(f"History Reference's share of a step, {BATCH} boards", shares)
    print_table("Accumulating in 16 bits", errors)
    add_result("history_share", {"shares": shares, "precision": errors, "batch": BATCH})


if __name__ == "__main__":
    main()
