"""
One small Remask RL run as a script, for tests that need processes; a row's draws depend on its place in the whole
batch, so that two processes and one see the same runs.

    python script_rl.py OUTPUT_DIR '{"max_steps": 2}' remedi
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import torch  # noqa: E402
from tiny_models import wrapped  # noqa: E402
from tiny_remedi import BLOCKWISE, tiny_remedi  # noqa: E402
from tiny_rl import block_trainer, draft_trainer, rl_trainer  # noqa: E402

from hf_rm.training import grpo  # noqa: E402

plain, calls = grpo.roll_out, [0]


def sums(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [sum(ids) / 10 for ids in completion_ids]


def main() -> None:
    policy = sys.argv[3]
    blocks = BLOCKWISE if policy == "blocks" else {}
    make = {"remedi": rl_trainer, "blocks": block_trainer, "rm": draft_trainer}[policy]
    model = wrapped(1) if policy == "rm" else tiny_remedi(1, **blocks)
    trainer = make(sys.argv[1], model, rewards=sums, optim="sgd", **json.loads(sys.argv[2]))

    def same_draws(model: Any, config: Any, ids: torch.Tensor, *args: Any) -> Any:
        first = trainer.accelerator.process_index * len(ids)
        calls[0] += 1
        generators = [torch.Generator().manual_seed(1000 * calls[0] + first + i) for i in range(len(ids))]
        return plain(model, config, ids, *args, generator=generators)

    grpo.roll_out = same_draws
    trainer.train()
    trainer.save_model(str(Path(sys.argv[1]) / "final"))
    if trainer.is_world_process_zero():
        (Path(sys.argv[1]) / "logs.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
