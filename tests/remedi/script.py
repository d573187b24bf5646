"""
One small Remask SFT run as a script, for tests that need processes.

    python script.py OUTPUT_DIR '{"max_steps": 4}'
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from tiny_remedi import BLOCKWISE, sft_trainer, tiny_remedi  # noqa: E402


def main() -> None:
    settings = json.loads(sys.argv[2])
    model = tiny_remedi(talkative=False, **(BLOCKWISE if settings.pop("blocks", False) else {}))
    trainer = sft_trainer(sys.argv[1], model, **settings)
    trainer.train()
    trainer.save_model(str(Path(sys.argv[1]) / "final"))
    if trainer.is_world_process_zero():
        (Path(sys.argv[1]) / "logs.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
