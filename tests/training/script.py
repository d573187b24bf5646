"""
One small training run as a script, for tests that need processes: to launch two, to kill one, to resume one.

    python script.py OUTPUT_DIR '{"max_steps": 4}' [--lora] [--ragged] [--resume] [--die-while-saving N]
        [--die-while-writing N] [--die-after N]
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import torch  # noqa: E402
from tiny_training import tiny_model, tiny_rows  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from hf_rm import RMTrainer, RMTrainingArguments  # noqa: E402
from hf_rm.training import default_lora_config, saving  # noqa: E402


class LossRecorder(TrainerCallback):
    """Writes the losses of every log to OUTPUT_DIR/losses.json."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "loss" in (logs or {}):
            path = Path(args.output_dir) / "losses.json"
            known = json.loads(path.read_text()) if path.exists() else []
            path.write_text(json.dumps([*known, {key: value for key, value in logs.items() if "loss" in key}]))


def die_at_publication(number: int) -> None:
    """Kill this process, uncatchably, in the middle of the given save: when all files are staged but not renamed."""
    publish, calls = saving.publish_folder, []

    def killed(staged, final):
        calls.append(final)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        publish(staged, final)

    saving.publish_folder = killed


def die_while_writing(number: int) -> None:
    """Kill this process, uncatchably, in the given save: when half of the optimizer's state is written."""
    save, calls = torch.save, []

    def killed(value, file, *args, **kwargs):
        save(value, file, *args, **kwargs)
        if Path(file).name == "optimizer.pt":
            calls.append(file)
        if len(calls) == number:
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = killed


class DieAfter(TrainerCallback):
    """Kills the process after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.steps:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    output_dir, settings = sys.argv[1], json.loads(sys.argv[2])
    resume = "--resume" in sys.argv
    if "--die-while-saving" in sys.argv:
        die_at_publication(int(sys.argv[sys.argv.index("--die-while-saving") + 1]))
    if "--die-while-writing" in sys.argv:
        die_while_writing(int(sys.argv[sys.argv.index("--die-while-writing") + 1]))
    defaults = {
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_corruption_rate": 0.9,
        "logging_nan_inf_filter": False,
    }
    args = RMTrainingArguments(output_dir, **{**defaults, **settings})
    callbacks = [LossRecorder()]
    if "--die-after" in sys.argv:
        callbacks.append(DieAfter(int(sys.argv[sys.argv.index("--die-after") + 1])))
    model = tiny_model()
    peft_config = default_lora_config(model, r=2) if "--lora" in sys.argv else None
    rows = tiny_rows(ragged="--ragged" in sys.argv)
    trainer = RMTrainer(model, args, train_dataset=rows, callbacks=callbacks, peft_config=peft_config)
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_model(str(Path(output_dir) / "final"))


if __name__ == "__main__":
    main()
