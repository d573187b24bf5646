"""
One small Remask RL run as a script, for tests that need processes; a row's draws depend on its place in the whole
batch, so that two processes and one see the same runs (`"keyed": false`: they are the run's own).

    python script_rl.py OUTPUT_DIR '{"max_steps": 2}' remedi [--resume] [--die-while-saving N]
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import torch  # noqa: E402
from tiny_models import wrapped  # noqa: E402
from tiny_remedi import BLOCKWISE, tiny_remedi  # noqa: E402
from tiny_rl import block_trainer, draft_trainer, rl_trainer  # noqa: E402

from hf_rm.training import grpo, saving  # noqa: E402

plain, calls = grpo.roll_out, [0]


def sums(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [sum(ids) / 10 for ids in completion_ids]


def die_at_publication(number: int) -> None:
    """Kill this process in the middle of the given save: when all files are staged but not renamed."""
    publish, published = saving.publish_folder, []

    def killed(staged: Path, final: Path) -> None:
        published.append(final)
        if len(published) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(staged, final)

    saving.publish_folder = killed


def main() -> None:
    policy = sys.argv[3]
    if "--die-while-saving" in sys.argv:
        die_at_publication(int(sys.argv[sys.argv.index("--die-while-saving") + 1]))
    blocks = BLOCKWISE if policy == "blocks" else {}
    make = {"remedi": rl_trainer, "blocks": block_trainer, "rm": draft_trainer}[policy]
    model = wrapped(1) if policy == "rm" else tiny_remedi(1, **blocks)
    settings = json.loads(sys.argv[2])
    keyed = settings.pop("keyed", True)
    trainer = make(sys.argv[1], model, rewards=sums, optim="sgd", **settings)

    def same_draws(model: Any, config: Any, ids: torch.Tensor, *args: Any) -> Any:
        first = trainer.accelerator.process_index * len(ids)
        calls[0] += 1
        generators = [torch.Generator().manual_seed(1000 * calls[0] + first + i) for i in range(len(ids))]
        return plain(model, config, ids, *args, generator=generators)

    if keyed:
        grpo.roll_out = same_draws
    trainer.train(resume_from_checkpoint="--resume" in sys.argv or None)
    trainer.save_model(str(Path(sys.argv[1]) / "final"))
    if trainer.is_world_process_zero():
        (Path(sys.argv[1]) / "logs.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
