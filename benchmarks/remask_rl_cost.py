"""
What a rollout and an update of Remask RL cost: all blocks in one forward pass against one denoising step a row.

    python benchmarks/remask_rl_cost.py [--repeats 3]

A small RemeDi with attention by blocks. A rollout keeps finished blocks cached; an update is the log-probabilities of
every choice of the runs and their gradient. Forward passes of a row, the positions that they read, and CPU time of
a batch; one thread, side by side in one run, medians.
"""

import argparse

import torch
from _common import Row, add_result, cpu_seconds, median_range, print_table
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rm import ReflectiveGenerationConfig, RemeDiForMaskedDiffusion
from hf_rm.training.log_probs import DrawSettings, choice_log_probs
from hf_rm.training.rollouts import Trajectory, roll_out

ROWS, PROMPT, ANSWER, BLOCK, STEPS, MASK = 2, 32, 96, 32, 24, 0


def build_model() -> RemeDiForMaskedDiffusion:
    """Four layers of width 64, of which two have a block of the policy stream."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        is_causal=False,
    )
    return RemeDiForMaskedDiffusion.from_backbone(
        LlamaForCausalLM(config),
        mask_token_id=MASK,
        policy_layers=[0, 2],
        attention_block_length=BLOCK,
        attention_block_start="answer",
    )


def update(model: RemeDiForMaskedDiffusion, trajectory: Trajectory, by_block: bool) -> None:
    """The log-probabilities of all choices, and their gradient."""
    settings = DrawSettings(MASK, torch.tensor([MASK]), 1.0, by_block=by_block, pairs_per_forward=ROWS)
    found = choice_log_probs(model, model.config, trajectory, settings)
    (found.positions.sum() + found.tokens.sum()).backward()


def main() -> None:
    """Measure, print, and add a line to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    model = build_model()
    prompts = torch.randint(1, 512, (ROWS, PROMPT))
    config = ReflectiveGenerationConfig(
        preset="remedi", temperature=1.0, max_new_tokens=ANSWER, steps=STEPS, block_length=BLOCK, use_cache=True
    )
    output, trajectory = roll_out(model, config, prompts)
    # A rollout has passes that commit a finished block to the cache beside those of its steps.
    forwards, steps = int(output.num_forwards.max()), int(output.num_steps.max())
    blocks, length = ANSWER // BLOCK, PROMPT + ANSWER
    rows: list[Row] = []
    for name, passes, positions, function in (
        ("rollout, cached", forwards, length + (forwards - 1) * BLOCK, lambda: roll_out(model, config, prompts)),
        ("update, one step a row", steps, steps * length, lambda: update(model, trajectory, False)),
        (
            "update, all blocks at once",
            steps // blocks,
            steps // blocks * (length + ANSWER),
            lambda: update(model, trajectory, True),
        ),
    ):
        timing = median_range(cpu_seconds(function, repeats), ROWS)
        rows.append({"what": name, "forwards": passes, "positions": positions, **timing})
    print_table("Remask RL: cost of a row", rows)
    sizes = {"rows": ROWS, "prompt": PROMPT, "answer": ANSWER, "block": BLOCK, "steps": STEPS}
    add_result("remask_rl_cost", {"costs": rows, **sizes})


if __name__ == "__main__":
    main()
