"""
Remask SFT and Remask RL (both also with attention by blocks) and RM's RL, with an adapter and gradient checkpointing,
for a test that needs processes; in RL a row's draws depend on its place in the whole batch, so that two processes and
one see the same runs.

    python script_together.py OUTPUT_DIR '{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}'
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_models import wrapped  # noqa: E402
from tiny_remedi import BLOCKWISE, sft_trainer, tiny_remedi  # noqa: E402
from tiny_rl import block_trainer, draft_trainer, rl_trainer  # noqa: E402
from torch import Tensor  # noqa: E402

from hf_rm.training import default_lora_config, grpo  # noqa: E402

KINDS = ("sft", "sft-blocks", "remedi", "remedi-blocks", "rm")
BOTH = {"gradient_checkpointing": True, "optim": "sgd", "learning_rate": 0.02, "max_grad_norm": 0.0, "max_steps": 2}
ROLL_OUT = grpo.roll_out


def sums(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Rewards that nearly always differ within a group."""
    return [sum(ids) / 10 for ids in completion_ids]


def make(kind: str, folder: Path, **settings: Any) -> Any:
    """A trainer of an adapter (and, for RemeDi, of the whole stream)."""
    model = wrapped(1) if kind == "rm" else tiny_remedi(1, **(BLOCKWISE if kind.endswith("blocks") else {}))
    torch.manual_seed(0)
    settings = {**BOTH, "peft_config": default_lora_config(model, r=2), **settings}
    if kind.startswith("sft"):
        return sft_trainer(folder, model, backbone_learning_rate=0.01, **settings)
    rl = {"remedi": rl_trainer, "remedi-blocks": block_trainer, "rm": draft_trainer}[kind]
    return rl(folder, model, rewards=sums, **settings)


def keyed_draws(trainer: Any) -> Any:
    """Rollouts whose draws are those of the row's place and the call."""
    calls = [0]

    def same_draws(model: Any, config: Any, ids: Tensor, *args: Any) -> Any:
        first = trainer.accelerator.process_index * len(ids)
        calls[0] += 1
        generators = [torch.Generator().manual_seed(1000 * calls[0] + first + i) for i in range(len(ids))]
        return ROLL_OUT(model, config, ids, *args, generator=generators)

    return same_draws


def run(kind: str, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """The trained weights by name."""
    trainer = make(kind, folder, **settings)
    grpo.roll_out = keyed_draws(trainer)
    try:
        trainer.train()
    finally:
        grpo.roll_out = ROLL_OUT
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def main() -> None:
    folder = Path(sys.argv[1])
    for kind in KINDS:
        weights = run(kind, folder / kind, **json.loads(sys.argv[2]))
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            save_file({name: value.contiguous() for name, value in weights.items()}, folder / f"{kind}.safetensors")


if __name__ == "__main__":
    main()
